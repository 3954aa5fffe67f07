"""What benchmarks share: processes that speak JSON lines, what the kernel counts for them, the reference's home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Process", "open_process", "reference_python"]

ROOT = Path(__file__).parent.parent
REFERENCE = "agentruntimecontrolprotocol==1.1.3"


class Process:
    """A process that is running: JSON lines from it, lines to it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def next_line(self) -> dict[str, Any]:
        """Return what it says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} has ended with {self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said

    def go_on(self) -> None:
        """Let it take its next step."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """Close its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    @property
    def cpu_seconds(self) -> float:
        """What its threads have used of the processor so far; those that have ended do not count."""
        # In nanoseconds, where /proc/…/stat counts in hundredths of a second: some runs are as short as that.
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    @property
    def waited_seconds(self) -> float:
        """How long it could have run and had no processor: what the rest of the machine has cost it."""
        return int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[1]) / 1e9

    def memory(self, field: str) -> int:
        """Return ``VmRSS``, what it has of the memory, or ``VmHWM``, the most that it had; in bytes."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
        raise KeyError(field)


@contextmanager
def open_process(*command: str) -> Iterator[Process]:
    """Run a command in the project's directory; it ends with the block."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Linux shares processors among sessions first: in one session, a client that floods and the gateway would take
        # turns with the client whose latency is measured.
        start_new_session=True,
    ) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


def reference_python() -> str:
    """Return the Python of an environment with the reference implementation; it is made the first time."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    home = Path(tempfile.gettempdir()) / f"arcp-trio-benchmarks-{os.getuid()}" / f"{REFERENCE}-{version}"
    python = home / "bin" / "python"
    # Written last: without it the environment is half made.
    complete = home / "complete"
    if not complete.exists():
        print(f"installing {REFERENCE} into {home}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", REFERENCE], check=True)
        complete.touch()
    return str(python)
