"""A runtime that is a child process: frames over its stdin and stdout (P4.2)."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

import trio

from .base import CloseCode, TransportClosedError
from .lines import LineTransport

__all__ = ["open_process_transport"]

logger = logging.getLogger("arcp_trio.transports")

_READ_BYTES = 64 * 1024
_KILL_SECONDS = 5.0
"""How long the kernel may take to end a process that was killed: one that waits for a broken disk never ends."""


class _ProcessTransport(LineTransport):
    """A line transport whose end says how the process ended."""

    def __init__(self, process: trio.Process, *, description: str, receive_bytes: int, status_seconds: float) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        super().__init__(
            process.stdout, process.stdin, receive_bytes=receive_bytes, description=description, skips_text=True
        )
        self._process = process
        self._status_seconds = status_seconds

    async def receive(self) -> Sequence[bytes | str]:
        """Return the frames that have arrived."""
        try:
            return await super().receive()
        except TransportClosedError as exc:
            raise await self._explain(exc) from None

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write frames as lines."""
        try:
            await super().send(frames)
        except TransportClosedError as exc:
            raise await self._explain(exc) from None

    async def _explain(self, end: TransportClosedError) -> TransportClosedError:
        if self._closing is not None or end.code not in (CloseCode.NORMAL, CloseCode.ABNORMAL):
            return end
        # The pipes of a process that ends are closed a moment before its status is there.
        with trio.move_on_after(self._status_seconds):
            await self._process.wait()
        if self._process.returncode is None:
            return TransportClosedError(end.code, f"{self.description} closed its pipes", can_send=end.can_send)
        return TransportClosedError(CloseCode.ABNORMAL, f"{self.description} {_status(self._process.returncode)}")


def _status(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


@asynccontextmanager
async def open_process_transport(
    command: Sequence[str | os.PathLike[str]],
    *,
    receive_bytes: int,
    exit_seconds: float,
    terminate_seconds: float,
    status_seconds: float,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stderr: int | IO[bytes] | IO[str] | None = None,
) -> AsyncGenerator[LineTransport, None]:
    """Start a process and speak over its stdin and stdout, as an asynchronous context manager.

    It gets a process group of its own: a control-C at the terminal is this program's to deal with, and what the
    process leaves behind when it must be killed is killed with it. On leaving, its stdin is closed and its end
    awaited, then SIGTERM, then SIGKILL; it never stays behind as a zombie.

    Args:
        command: The program and its arguments; no shell reads them.
        receive_bytes: The longest line that is read.
        exit_seconds: How long it may take to end once its stdin is closed; past it SIGTERM.
        terminate_seconds: How long then; past it SIGKILL.
        status_seconds: How long its exit status is waited for once it has closed its pipes, to name it.
        cwd: Its working directory; ``None`` for this process's.
        env: Its whole environment; ``None`` for this process's.
        stderr: Where its stderr goes: a file, ``subprocess.DEVNULL``; ``None`` for this process's.

    Raises:
        TypeError: ``command`` is one string.
        ValueError: ``command`` is empty, or ``stderr`` is a pipe that nobody would read.
        TransportClosedError: The process cannot be started. Only the program's name is in the text, no argument.
        NotImplementedError: On Windows.

    Whatever the body raises leaves as it is.

    Cancellation: the process is ended as on leaving, within the three limits together.
    """
    if sys.platform == "win32":
        raise NotImplementedError("stdio is not supported on Windows: use a WebSocket")
    if isinstance(command, (str, bytes, os.PathLike)):
        raise TypeError("command: expected a list, the program and its arguments, got one string")
    if not command:
        raise ValueError("command: expected a program, got an empty list")
    if stderr == subprocess.PIPE:
        raise ValueError("stderr: expected a file, subprocess.DEVNULL or None: nobody would read a pipe")
    program = Path(command[0]).name
    try:
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=cwd,
            env=env,
            process_group=0,
        )
    except OSError as exc:
        # The file is the program or the directory, whichever it was.
        why = f"{exc.filename}: {exc.strerror}" if exc.filename and exc.strerror else type(exc).__name__
        raise TransportClosedError(CloseCode.ABNORMAL, f"cannot start {program}: {why}") from None
    transport = _ProcessTransport(
        process,
        description=f"{program} (process {process.pid})",
        receive_bytes=receive_bytes,
        status_seconds=status_seconds,
    )
    output: int | None = None
    try:
        assert isinstance(process.stdout, trio.lowlevel.FdStream)
        # What it says last is read and dropped: with its stdout closed it could not end by itself, but by SIGPIPE.
        output = os.dup(process.stdout.fileno())
        yield transport
    finally:
        await transport.abort()  # noqa: ASYNC102  # never blocks
        await _end(process, output, transport.description, exit_seconds, terminate_seconds)  # noqa: ASYNC102


@trio.lowlevel.enable_ki_protection
async def _end(
    process: trio.Process,
    output: int | None,
    name: str,
    exit_seconds: float,
    terminate_seconds: float,
) -> None:
    """Wait until a process whose stdin is closed has ended, and see to it that it does. Not cancellable; bounded."""
    steps = (
        (exit_seconds, "after its stdin was closed: SIGTERM", process.terminate),
        (terminate_seconds, "after SIGTERM: SIGKILL", lambda: os.killpg(process.pid, signal.SIGKILL)),
        (_KILL_SECONDS, "after SIGKILL: left behind", lambda: None),
    )
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            if output is not None:
                # Not earlier: the stream that was closed has put back the O_NONBLOCK that it shares with this one.
                nursery.start_soon(_drain, trio.lowlevel.FdStream(output))
            for seconds, what, act in steps:
                with trio.move_on_after(seconds):
                    await process.wait()
                if process.returncode is not None:
                    break
                logger.warning("%s did not end within %g seconds %s", name, seconds, what)
                with suppress(ProcessLookupError):
                    act()
            nursery.cancel_scope.cancel(reason="the process has ended")
    if process.returncode:
        logger.warning("%s %s", name, _status(process.returncode))


async def _drain(output: trio.lowlevel.FdStream) -> None:
    async with output:
        with suppress(trio.BrokenResourceError):
            while await output.receive_some(_READ_BYTES):
                pass
