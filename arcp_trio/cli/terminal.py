"""Where the command writes: stdout for what was asked for, stderr for everything else.

Rich writes what is for people at a terminal. What goes into pipes and files is written by :class:`Output`, in a
thread: a reader that pauses (a pager, a full pipe) must not hold up the connection.
"""

from __future__ import annotations

import logging
import os
import sys

import trio
from rich.console import Console
from rich.text import Text

from .text import clean

__all__ = ["LineWriter", "Output", "complain", "log_to_stderr", "make_console", "symbol"]

_WIDE = 10_000
_WAITING_BYTES = 8 * 1024 * 1024


def make_console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr that prints what it is given: no markup, no emoji, no guessed colours.

    Rich itself honours ``NO_COLOR`` and ``TERM=dumb``. A pipe has no width: its lines are never wrapped.
    """
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDE
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def symbol(console: Console, wanted: str, plain: str) -> str:
    """Return ``wanted`` where the console's encoding has it, else ``plain``."""
    return wanted if console.encoding.lower().startswith("utf") else plain


class Output:
    """A file descriptor that is written to without blocking the loop.

    Args:
        descriptor: 1 for stdout, 2 for stderr.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def write(self, data: bytes) -> None:
        """Write all of ``data``.

        Raises:
            BrokenPipeError: Nobody reads any more.
            OSError: It cannot be written.

        Cancellation: how much was written is unknown; a thread may still be writing when this has returned.
        """
        await trio.to_thread.run_sync(self._write, data, abandon_on_cancel=True)

    async def print(self, line: str) -> None:
        """Write a line; see :meth:`write`."""
        await self.write(f"{line}\n".encode(errors="backslashreplace"))

    def _write(self, data: bytes) -> None:
        # Not through sys.stdout: its lock, held by an abandoned thread, would block the interpreter's end.
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]


class LineWriter:
    """Lines for one output: taken at once and written in the background, all that wait with one write.

    A thread's turn for each line would cost more than the line, and events that nobody takes are dropped
    by the client. While nothing runs :meth:`run`, a line is written before :meth:`print` returns.

    Args:
        descriptor: 1 for stdout, 2 for stderr.
    """

    def __init__(self, descriptor: int) -> None:
        self._output = Output(descriptor)
        self._waiting: list[bytes] = []
        self._size = 0
        self._runs = False
        self._filled = trio.Event()
        self._emptied = trio.Event()

    async def print(self, line: str) -> None:
        """Take a line; past 8 MiB that wait it waits itself.

        Raises:
            OSError: It cannot be written; only where nothing runs :meth:`run`, which raises it otherwise.

        Cancellation: the line was not taken; where nothing runs :meth:`run`, part of it may have been written.
        """
        if not self._runs:
            await self._output.print(line)
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._size > _WAITING_BYTES:
            await self._emptied.wait()
        self._waiting.append(f"{line}\n".encode(errors="backslashreplace"))
        self._size += len(self._waiting[-1])
        self._filled.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what comes, until cancelled; see :meth:`flush`.

        Raises:
            BrokenPipeError: Nobody reads any more.
            OSError: It cannot be written.

        Cancellation: what still waits is dropped; part of it may have been written.
        """
        self._runs = True
        task_status.started()
        try:
            while True:
                await self._filled.wait()
                self._filled = trio.Event()
                batch, self._waiting = self._waiting, []
                await self._output.write(b"".join(batch))
                # Only now: what is being written still takes room.
                self._size -= sum(map(len, batch))
                self._emptied.set()
                self._emptied = trio.Event()
        finally:
            self._runs = False

    async def flush(self) -> None:
        """Wait until all lines that were taken are written.

        Cancellation: they may be written later.
        """
        await trio.lowlevel.checkpoint()
        while self._runs and self._size:
            await self._emptied.wait()


def complain(message: str) -> None:
    """Print an error: one line on stderr."""
    console = make_console(stderr=True)
    text = Text("arcp-trio: ", style="bold red", no_wrap=False)
    text.append(message, style="not bold default")
    console.print(text, soft_wrap=True)


class _StderrHandler(logging.Handler):
    """Prints records on the stderr of the moment: while a live display is on, that is above it.

    Args:
        server: Whether a line begins with the time, and a record's traceback follows it.
    """

    def __init__(self, *, server: bool) -> None:
        super().__init__()
        self._server = server
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        try:
            line = f"{record.levelname.lower()}: {clean(record.getMessage())}"
            if self._server:
                line = f"{self._formatter.formatTime(record, '%Y-%m-%d %H:%M:%S')} {line}"
            if record.exc_info and self._server:
                line += "\n" + self._formatter.formatException(record.exc_info)
            elif record.exc_info and record.exc_info[1] is not None:
                line += f" ({type(record.exc_info[1]).__name__}: {clean(str(record.exc_info[1]))})"
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001  # what logging's own handlers do: a log line never fails its caller
            self.handleError(record)


def log_to_stderr(level: int, *, server: bool = False) -> None:
    """Send the log of this package, and warnings of all others, to stderr.

    Args:
        level: The lowest level of this package that is shown.
        server: Whether lines have the time, and exceptions their tracebacks, rather than one line each.
    """
    logging.basicConfig(level=logging.WARNING, handlers=[_StderrHandler(server=server)], force=True)
    logging.getLogger("arcp_trio").setLevel(level)
