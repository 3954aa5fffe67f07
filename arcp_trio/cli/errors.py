"""How the command ends: its exit codes, and the errors that are one line on stderr and no traceback."""

from __future__ import annotations

from enum import IntEnum

from ..wire.errors import ARCPError, ConnectionLostError, ResumeWindowExpiredError, UnauthenticatedError
from .text import clean

__all__ = ["CommandError", "ExitCode", "describe_error", "describe_lost", "describe_refusal", "leaves"]


class ExitCode(IntEnum):
    """What the process ends with.

    Attributes:
        OK: What was asked for was done.
        FAILED: It was not: the job did not succeed, a request was refused, nobody answered.
        USAGE: The command line or the environment is not right; nothing was tried.
        ABANDONED: ``serve`` left an agent behind that refused to stop (EX_SOFTWARE of sysexits.h).
        INTERRUPTED: Control-C, as shells report it: 128 + SIGINT.
    """

    OK = 0
    FAILED = 1
    USAGE = 2
    ABANDONED = 70
    INTERRUPTED = 130


class CommandError(Exception):
    """Ends the command with one line on stderr.

    Args:
        message: What was wrong and what to do about it; no secret.
        exit_code: What the process ends with.
    """

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def describe_error(error: ARCPError) -> str:
    """Return ``CODE: message`` in one line that is safe to print."""
    return f"{clean(error.code)}: {clean(error.message)}"


def describe_refusal(error: ARCPError, *, has_token: bool) -> str:
    """Return why a session could not be opened or a request was refused, in one line.

    Args:
        error: What was raised.
        has_token: Whether the user gave a token.
    """
    if isinstance(error, ConnectionLostError):
        return clean(error.message)
    if isinstance(error, UnauthenticatedError):
        hint = "is the token right?" if has_token else "give a token in ARCP_TOKEN or with --token"
        return f"{describe_error(error)} ({hint})"
    return describe_error(error)


def describe_lost(error: ARCPError) -> str:
    """Return why a session was lost, in one line: what the client says of it needs no code before it."""
    if isinstance(error, (ConnectionLostError, ResumeWindowExpiredError)):
        return clean(error.message)
    return f"the session was lost: {describe_error(error)}"


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return the exceptions of a group that are no groups themselves."""
    found: list[BaseException] = []
    for exc in group.exceptions:
        found += leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc]
    return found
