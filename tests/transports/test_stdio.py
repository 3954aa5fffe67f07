"""The process's own stdin and stdout: programs in processes of their own, whose real descriptors are taken."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import make_hello

import arcp_trio
from arcp_trio.transports.stdio import open_stdio

pytestmark = pytest.mark.requirement("P4.2")

PRELUDE = """
import ctypes, os, subprocess, sys
import trio, arcp_trio
print("printed before, and not flushed")
agents = arcp_trio.Agents()
"""

NOISY = (
    PRELUDE
    + """
kept = sys.stdout

@agents.register("noisy")
async def noisy(job, value):
    print("printed")
    print("through the old object", file=kept)
    os.write(1, b"raw\\n")
    ctypes.CDLL(None).puts(b"from C")
    ctypes.CDLL(None).fflush(None)
    # The child has what any child has: our standard streams.
    child = subprocess.run([sys.executable, "-c", "import sys; print('child read', repr(sys.stdin.read()))"])
    print("half a line", end="")
    return [child.returncode, len(value or "")]

async def main():
    async with arcp_trio.open_stdio() as transport, arcp_trio.open_runtime(agents) as runtime:
        await arcp_trio.serve_stdio(runtime, transport, principal="me")

trio.run(main)
"""
)


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@contextmanager
def start(program: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-W", "error", "-c", program]
    with subprocess.Popen(command, env=ENVIRONMENT, **options) as process:
        # A hang must not become ours.
        guard = threading.Timer(60, process.kill)
        guard.start()
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        finally:
            guard.cancel()


def run(program: str, *, closed: int | None = None, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-W", "error", "-c", program]
    if closed is not None:
        command = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *command]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    if "input" in options:
        del options["stdin"]
    return subprocess.run(command, timeout=60, check=False, env=ENVIRONMENT, **options)


def submit(agent: str, value: Any = None) -> bytes:
    frames = [
        make_hello(),
        {"arcp": "1.1", "id": "msg_1", "type": "job.submit", "payload": {"agent": agent, "input": value}},
    ]
    return b"".join(json.dumps(frame).encode() + b"\r\n" for frame in frames)


@pytest.mark.requirement("T06")
def test_whatever_prints_the_protocol_stays_clean() -> None:
    with start(NOISY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(submit("noisy", "x" * 900_000))
        process.stdin.flush()
        frames = []
        while not frames or frames[-1]["type"] != "job.result":
            # A line that is no frame fails here.
            frames.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        rest = process.stdout.read()
        shown = process.stderr.read().decode()
    assert [frame["type"] for frame in frames] == ["session.welcome", "job.accepted", "job.result"]
    assert frames[-1]["payload"]["result"] == [0, 900_000]
    assert (rest, process.returncode) == (b"", 0)
    for text in ("printed before, and not flushed", "printed", "through the old object", "raw", "from C"):
        assert f"{text}\n" in shown
    assert "child read ''\n" in shown
    assert "half a line" in shown


@pytest.mark.requirement("P7.8")
def test_a_client_that_only_closes_its_side_hears_how_its_jobs_end() -> None:
    program = NOISY.replace(
        "async def noisy(job, value):", "async def noisy(job, value):\n    await trio.sleep_forever()"
    )
    done = run(program, input=submit("noisy"))
    frames = [json.loads(line) for line in done.stdout.splitlines()]
    assert [frame["type"] for frame in frames] == ["session.welcome", "job.accepted", "job.error"]
    assert frames[-1]["payload"]["code"] == "INTERNAL_ERROR"
    assert done.returncode == 0


def test_files_in_place_of_pipes(tmp_path: Path) -> None:
    """A recorded session, and its answers."""
    (tmp_path / "in").write_bytes(submit("nobody"))
    with (tmp_path / "in").open("rb") as read_from, (tmp_path / "out").open("wb") as write_to:
        done = run(NOISY, stdin=read_from, stdout=write_to)
    frames = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [frame["type"] for frame in frames] == ["session.welcome", "session.error"]
    assert done.returncode == 0


def test_one_socket_for_both_directions() -> None:
    """As a super-server starts its services."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with (
            start(NOISY, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL) as process,
            ours.makefile("rb") as lines,
        ):
            ours.sendall(submit("noisy"))
            types = [json.loads(lines.readline())["type"] for _ in range(3)]
            ours.shutdown(socket.SHUT_WR)
            assert process.wait() == 0
        assert types == ["session.welcome", "job.accepted", "job.result"]
        assert os.get_blocking(theirs.fileno())


RESTORED = (
    PRELUDE
    + """
def state():
    descriptors = [os.fstat(number) for number in (0, 1)]
    files = [(found.st_dev, found.st_ino, os.get_blocking(number)) for number, found in enumerate(descriptors)]
    return files, sys.stdout, len(os.listdir("/dev/fd"))

async def main():
    before = state()
    for end in ("leave", "close", "raise", "cancel"):
        try:
            with trio.CancelScope() as scope:
                async with arcp_trio.open_stdio() as transport:
                    assert os.get_inheritable(0) and os.get_inheritable(1)
                    inside = state()
                    assert [file != old for file, old in zip(inside[0], before[0])] == [True, True]
                    assert inside[1] is sys.stderr
                    await transport.send([b'{"from":"%s"}' % end.encode()])
                    if end == "close":
                        await transport.aclose()
                    elif end == "raise":
                        raise KeyError
                    elif end == "cancel":
                        scope.cancel()
                        await trio.sleep_forever()
        except KeyError:
            pass
        assert state() == before, (end, state(), before)
        print("after", end, flush=True)

trio.run(main)
"""
)


def test_everything_is_as_it_was_afterwards() -> None:
    read_from, write_to = os.pipe()
    in_read, in_write = os.pipe()
    try:
        done = run(RESTORED, stdin=in_read, stdout=write_to)
        assert (done.returncode, done.stderr) == (0, b"printed before, and not flushed\n")
        # O_NONBLOCK belongs to the open file, which we share.
        assert os.get_blocking(in_read)
        assert os.get_blocking(write_to)
        lines = os.read(read_from, 10_000).decode().splitlines()
        expected = [[f'{{"from":"{end}"}}', f"after {end}"] for end in ("leave", "close", "raise", "cancel")]
        assert lines == [line for pair in expected for line in pair]
    finally:
        for descriptor in (read_from, write_to, in_read, in_write):
            os.close(descriptor)


# --- what is refused --------------------------------------------------------------------------------

REFUSED = (
    PRELUDE
    + """
sys.stdout = None
async def main():
    async with arcp_trio.open_stdio():
        raise AssertionError
try:
    trio.run(main)
except OSError as exc:
    os.write(2 if len(sys.argv) == 1 else int(sys.argv[1]), str(exc).encode())
"""
)


@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_a_terminal_is_refused(name: str) -> None:
    ours, theirs = pty.openpty()
    try:
        done = run(REFUSED, **{name: theirs})
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert f"{name} is a terminal: expected a pipe" in done.stderr.decode()


def test_one_pipe_for_stdout_and_stderr_is_refused() -> None:
    done = run(REFUSED, stderr=subprocess.STDOUT)
    assert b"stdout and stderr are one: the log would stand between the frames" in done.stdout


@pytest.mark.parametrize(("descriptor", "name"), [(0, "stdin"), (1, "stdout")])
def test_a_stream_that_is_not_open_is_refused(descriptor: int, name: str) -> None:
    done = run(REFUSED, closed=descriptor)
    assert done.stderr.decode() == f"{name} is not open: expected a pipe, a socket or a file"


def test_without_a_stderr_prints_go_nowhere() -> None:
    done = run(NOISY, closed=2, input=submit("nobody"))
    frames = [json.loads(line) for line in done.stdout.splitlines()]
    assert [frame["type"] for frame in frames] == ["session.welcome", "session.error"]


def test_it_can_be_taken_once_at_a_time() -> None:
    program = (
        PRELUDE
        + """
async def main():
    async with arcp_trio.open_stdio() as transport:
        try:
            async with arcp_trio.open_stdio():
                pass
        except RuntimeError as exc:
            await transport.send([b'{"refused":"%s"}' % str(exc).encode()])
trio.run(main)
"""
    )
    assert run(program).stdout == b'{"refused":"stdin and stdout are taken already"}\n'


@pytest.mark.requirement("P4.2")
async def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(NotImplementedError, match="use a WebSocket"):
        async with open_stdio():
            pass
    with pytest.raises(NotImplementedError, match="use a WebSocket"):
        async with arcp_trio.open_process_client(["anything"]):
            pass
    await trio.lowlevel.checkpoint()
