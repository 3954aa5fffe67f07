"""The command as users run it: in processes of its own, each bounded, and with a canary for a token."""

from __future__ import annotations

import codecs
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import trio

SECONDS = 60
TOKEN = "canary-5f1e=="
"""Must appear nowhere: no test that sees a process's output leaves that unchecked."""

AGENTS = r"""
import contextlib
import os
import threading
import trio
import arcp_trio

agents = arcp_trio.Agents()


async def wait_open(gate):
    descriptor = os.open(gate, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


@agents.register("echo")
async def echo(job, value):
    await job.log("info", "echoing", {"size": 1})
    return value


@agents.register("fail")
async def fail(job, value):
    raise ValueError("what only the log may know")


@agents.register("text")
async def text(job, value):
    async with job.stream_result() as out:
        await out.write("first line\nsecond")


@agents.register("binary")
async def binary(job, value):
    async with job.stream_result() as out:
        for _ in range(value):
            await out.write(bytes(range(256)) * 4096)


@agents.register("hostile")
async def hostile(job, value):
    await job.log("info", "\x1b[2Jgone\nforged")


@agents.register("steps")
async def steps(job, value):
    for step in range(value):
        await job.progress(step + 1, value, "steps")


@agents.register("gate")
async def gate(job, value):
    await job.log("info", "waiting")
    await trio.sleep_forever()


@agents.register("gated")
async def gated(job, value):
    # Says something before the gate, and more behind it.
    await job.progress(1, 3, "steps")
    await job.log("info", "before")
    await wait_open(value)
    for step in range(100):
        await job.log("info", f"after {step}")
    await job.progress(3, 3, "steps")
    return "opened"


@agents.register("slow_text")
async def slow_text(job, value):
    async with job.stream_result() as out:
        await out.write("first ")
        await wait_open(value)
        await out.write("second")


@agents.register("spender")
async def spender(job, value):
    # Searches as often as it may, for a dime each.
    searches = 0
    try:
        while searches < value:
            await job.authorize("tool.call", "search")
            await job.metric("cost.search", 0.10, "USD")
            searches += 1
    except arcp_trio.BudgetExhaustedError:
        await job.log("warn", "out of money")
    return searches


@agents.register("boss")
async def boss(job, value):
    await job.log("info", "giving orders")
    child = await job.delegate("gated", value)
    with contextlib.suppress(arcp_trio.ARCPError):
        await (await job.delegate("fail", {"n": 1})).result()
    return await child.result()


@agents.register("stuck")
async def stuck(job, value):
    await job.log("info", "waiting")
    await trio.to_thread.run_sync(threading.Event().wait)
"""


@attrs.frozen
class Gate:
    """What an agent in another process waits at (``gated``, ``slow_text``), until the test opens it for good."""

    path: str
    _descriptor: int

    def open(self) -> None:
        # Nobody reads it: a pipe that can be read wakes whoever waits, now and later.
        os.write(self._descriptor, b"!")


def environment(**more: str) -> dict[str, str]:
    """Return an environment without the user's own settings, and without a terminal's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ARCP_", "COLUMNS", "LINES"))}
    return {**kept, **more}


def check_no_token(*outputs: str) -> None:
    for output in outputs:
        assert "canary" not in output


async def run_command(
    *arguments: str, cwd: Path | None = None, stdin: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ``arcp-trio`` to its end."""
    with trio.fail_after(SECONDS):
        done = await trio.run_process(
            [sys.executable, "-m", "arcp_trio", *arguments],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=cwd,
            env=environment(**variables),
        )
    stdout, stderr = done.stdout.decode(), done.stderr.decode()
    check_no_token(stdout, stderr)
    assert "Traceback" not in stderr
    return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)


@attrs.define
class Command:
    """``arcp-trio`` while it runs."""

    process: trio.Process
    stdout: str = ""
    stderr: str = ""
    changed: trio.Event = attrs.field(factory=trio.Event)

    async def _read(self, name: str, stream: trio.abc.ReceiveStream) -> None:
        async for data in stream:
            setattr(self, name, getattr(self, name) + data.decode())
            self.changed.set()
            self.changed = trio.Event()

    async def until(self, text: str) -> None:
        """Wait until ``text`` stands in its output."""
        while text not in self.stdout + self.stderr:
            await self.changed.wait()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    async def ended(self) -> int:
        """Wait for its end and return its exit code."""
        return await self.process.wait()


@asynccontextmanager
async def open_command(*arguments: str, cwd: Path | None = None, **variables: str) -> AsyncGenerator[Command, None]:
    """Start ``arcp-trio``; it is killed on leaving, if it has not ended."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "arcp_trio", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment(**variables),
    )
    command = Command(process)
    assert process.stdout is not None
    assert process.stderr is not None
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(command._read, "stdout", process.stdout)
            nursery.start_soon(command._read, "stderr", process.stderr)
            try:
                yield command
            finally:
                if process.poll() is None:
                    process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
    check_no_token(command.stdout, command.stderr)


# A terminal's control-C reaches the processes that it controls, and a new session has no such terminal yet.
_ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "arcp_trio", *sys.argv[1:]])
"""


@attrs.define
class Terminal:
    """``arcp-trio`` at a pseudo-terminal, while it runs."""

    process: trio.Process
    keyboard: trio.lowlevel.FdStream
    shown: str = ""
    """All that was written on the screen, escapes included."""
    changed: trio.Event = attrs.field(factory=trio.Event)
    closed: trio.Event = attrs.field(factory=trio.Event)

    async def _read(self) -> None:
        decode = codecs.getincrementaldecoder("utf-8")().decode
        with suppress(trio.BrokenResourceError):
            # Linux says EIO where the other end of a terminal is closed.
            while data := await self.keyboard.receive_some():
                self.shown += decode(data)
                self.changed.set()
                self.changed = trio.Event()
        self.closed.set()

    @property
    def text(self) -> str:
        """What was written without its colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self.shown)

    async def until(self, text: str) -> None:
        """Wait until ``text`` is shown."""
        while text not in self.text:
            await self.changed.wait()

    async def press(self, keys: str) -> None:
        """Press keys: ``"\\r"`` is return, ``"\\x03"`` control-C."""
        await self.keyboard.send_all(keys.encode())

    async def ended(self) -> int:
        """Wait for the end, and for all that was shown until then; return the exit code."""
        code = await self.process.wait()
        await self.closed.wait()
        return code


@asynccontextmanager
async def open_terminal(*arguments: str, **variables: str) -> AsyncGenerator[Terminal, None]:
    """Start ``arcp-trio`` with a pseudo-terminal for all that it reads and prints; it is killed on leaving."""
    ours, theirs = os.openpty()
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", _ON_TERMINAL, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=environment(TERM="xterm-256color", **variables),
    )
    os.close(theirs)
    with trio.fail_after(SECONDS):
        async with trio.lowlevel.FdStream(ours) as stream, trio.open_nursery() as nursery:
            terminal = Terminal(process, stream)
            nursery.start_soon(terminal._read)
            try:
                yield terminal
            finally:
                if process.poll() is None:
                    process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
                nursery.cancel_scope.cancel()
    check_no_token(terminal.shown)
    assert "Traceback" not in terminal.shown


@attrs.define
class Server:
    """``arcp-trio serve`` while it runs."""

    command: Command
    url: str

    async def submit(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return await run_command("submit", *arguments, **self.variables(), **variables)

    def variables(self) -> dict[str, str]:
        return {"ARCP_URL": self.url, "ARCP_TOKEN": TOKEN}

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port


@asynccontextmanager
async def open_server(folder: Path, *arguments: str) -> AsyncGenerator[Server, None]:
    """Start ``arcp-trio serve`` on a free port, with the agents above."""
    (folder / "myagents.py").write_text(AGENTS)
    async with open_command(
        "serve", "myagents:agents", "--port", "0", *arguments, cwd=folder, ARCP_TOKENS=f"{TOKEN}=me, other=you"
    ) as command:
        await command.until("\n")
        await command.until("agents: ")
        first = command.stdout.splitlines()[0]
        assert first.startswith("listening on ws://127.0.0.1:")
        assert first.endswith("/arcp")
        yield Server(command, first.removeprefix("listening on "))
