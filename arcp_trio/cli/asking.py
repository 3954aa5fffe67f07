"""A question at the terminal, while everything else goes on."""

from __future__ import annotations

import os
import sys

import trio

from .terminal import Output

__all__ = ["ask", "can_ask"]

_STDIN = 0
_LINE_BYTES = 1_024
_NEWLINE_SECONDS = 0.5


def can_ask() -> bool:
    """Say whether somebody is there to be asked: at a terminal that shows stderr and gives its lines to this process.

    In a pipe nobody is, and nobody would expect a question; a process in the background would be stopped
    for reading the terminal. Windows cannot wait for a console's line and do something else.
    """
    if sys.platform == "win32" or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        return os.tcgetpgrp(_STDIN) == os.getpgrp()
    except OSError:
        # A terminal, but not the one that controls this process.
        return True


async def ask(question: str, *, seconds: float) -> bool:
    """Ask for yes or no, and return whether it was yes; anything else is no, and so is silence.

    The terminal itself gathers the line: until return is pressed there is nothing to read, so it is waited for as for
    a socket. A thread that reads could not be stopped.

    Args:
        question: Ends with what can be answered, ``[y/N]``.
        seconds: How long an answer is waited for.

    Cancellation: the question is withdrawn, and the cursor stands at the beginning of a line.
    """
    import termios  # noqa: PLC0415  # not on Windows, where nobody is asked

    # What was typed ahead was no answer to this.
    termios.tcflush(_STDIN, termios.TCIFLUSH)
    output = Output(2)
    answer: bytes | None = None
    try:
        await output.write(f"{question} ".encode(errors="backslashreplace"))
        with trio.move_on_after(seconds):
            await trio.lowlevel.wait_readable(_STDIN)
            answer = os.read(_STDIN, _LINE_BYTES)
    finally:
        if not answer:
            # No return key has ended the line. The deadline is for a terminal that is paused.
            with trio.move_on_after(_NEWLINE_SECONDS, shield=True):
                await output.write(b"\n")
    return answer is not None and answer.strip().lower() in (b"y", b"yes")
