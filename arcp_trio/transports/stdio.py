"""The process's own stdin and stdout as a transport, for it alone (P4.2).

Whatever else writes to stdout (a print in an agent, a C library, a child that inherits it) would stand in the middle
of the protocol, and a child that reads stdin would steal from it. So both are moved: the transport has the
descriptors as they were, under numbers that no child inherits; in their old places stand stderr and /dev/null.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from typing import TextIO

import trio

from ..limits import Limits
from .lines import LineTransport

__all__ = ["open_stdio"]

_STDIN, _STDOUT, _STDERR = 0, 1, 2

_taken = False


@asynccontextmanager
async def open_stdio(*, receive_bytes: int | None = None) -> AsyncGenerator[LineTransport, None]:
    """Take the process's stdin and stdout for the protocol, as an asynchronous context manager (P4.2).

    Inside, descriptor 1 and ``sys.stdout`` lead to stderr, and descriptor 0 to /dev/null: prints of agents, C
    libraries and children that inherit them corrupt nothing. Enter it before anything that may print. On leaving the
    transport is closed and everything is as it was, ``O_NONBLOCK`` too, which whoever shares the pipe would feel.

    The descriptors are kept for that: the process at the other end reads the end of stdout when this one has ended,
    not when the transport is closed.

    Args:
        receive_bytes: The longest line that is read; ``None`` for the default of ``Limits.receive_bytes``.

    Raises:
        OSError: Stdin or stdout is not open; or is a terminal, or one pipe with stderr, where the log would stand
            between the frames.
        RuntimeError: They are taken already.
        NotImplementedError: On Windows, whose pipes Trio cannot wait for.

    Whatever the body raises leaves as it is.

    Cancellation: the transport is closed at once.
    """
    if sys.platform == "win32":
        raise NotImplementedError("stdio is not supported on Windows: use a WebSocket")
    with _taken_stdio() as (read_from, write_to):
        # In this order, and closed in the other: each puts O_NONBLOCK back as it found it, and the two may be one
        # socket.
        incoming = trio.lowlevel.FdStream(read_from)
        outgoing = trio.lowlevel.FdStream(write_to)
        transport = LineTransport(
            incoming,
            outgoing,
            receive_bytes=Limits().receive_bytes if receive_bytes is None else receive_bytes,
            description="stdio",
        )
        try:
            yield transport
        finally:
            await transport.abort()  # noqa: ASYNC102  # never blocks


@contextmanager
def _taken_stdio() -> Iterator[tuple[int, int]]:
    """Move stdin and stdout away, and yield where they are now; both are the caller's to close."""
    global _taken  # noqa: PLW0603  # a process has one stdin and one stdout
    if _taken:
        raise RuntimeError("stdin and stdout are taken already")
    _check()
    with ExitStack() as stack:
        saved_in, saved_out = os.dup(_STDIN), os.dup(_STDOUT)
        stack.callback(os.close, saved_in)
        stack.callback(os.close, saved_out)
        nowhere = os.open(os.devnull, os.O_RDWR)
        stack.callback(os.close, nowhere)
        print_to = sys.stdout
        _taken = True
        try:
            os.dup2(nowhere, _STDIN)
            os.dup2(_STDERR if _is_open(_STDERR) else nowhere, _STDOUT)
            # What was printed before and not written yet is no frame either.
            _flush(print_to)
            sys.stdout = sys.stderr
            yield os.dup(saved_in), os.dup(saved_out)
        finally:
            if sys.stdout is sys.stderr:
                sys.stdout = print_to
            # Whoever kept the old sys.stdout: what they printed stays out of the real one.
            _flush(print_to)
            os.dup2(saved_in, _STDIN)
            os.dup2(saved_out, _STDOUT)
            _taken = False


def _flush(stream: TextIO | None) -> None:
    if stream is not None:
        # Closed, or nobody reads it: neither may keep the descriptors from being put back.
        with suppress(OSError, ValueError):
            stream.flush()


def _is_open(descriptor: int) -> bool:
    try:
        # What Python opens no child inherits: where a stream is closed, its number may have gone to Trio's own epoll.
        return os.get_inheritable(descriptor)
    except OSError:
        return False


def _check() -> None:
    """Refuse what cannot work, before anything is changed."""
    for descriptor, name in ((_STDIN, "stdin"), (_STDOUT, "stdout")):
        if not _is_open(descriptor):
            raise OSError(f"{name} is not open: expected a pipe, a socket or a file")
        if os.isatty(descriptor):
            # It is one file with stderr, so O_NONBLOCK would break the log, and the shell's next command.
            raise OSError(
                f"{name} is a terminal: expected a pipe, a socket or a file. A program that speaks ARCP starts this "
                "one; to look at its frames, put it between two pipes: cat | ... | cat"
            )
    if _is_open(_STDERR):
        out, err = os.fstat(_STDOUT), os.fstat(_STDERR)
        devices = stat.S_ISCHR(out.st_mode)
        if not devices and (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino):
            raise OSError("stdout and stderr are one: the log would stand between the frames")
