"""What can go wrong with a file, by what follows from it; and the named points at which a test may stop the writing.

Crash points. A store that is given a :class:`Hooks` calls it at each of :data:`CRASH_POINTS`, in this order:

::

    created                          the file is there and empty
    migrated                         a step of the schema, before its commit
    opened                           all is ready
    appended                         a batch was taken; nothing of it is in a transaction
      begun                          a transaction began
      written                        it has all that waited
      swept                          and a slice of what is no longer kept was deleted
      (the commit)
      committed                      durable; nobody was told
    told                             everybody was
    closing                          the last commit is over

A hook that kills the process shows what a crash there leaves; one that raises an error of SQLite shows what a failing
disk does. Without a hook each point costs a comparison with ``None``.
"""

from __future__ import annotations

import sqlite3
from enum import Enum
from typing import Protocol

__all__ = ["CRASH_POINTS", "Hooks", "Trouble", "TroubleError", "trouble_of"]

CRASH_POINTS = (
    "created",
    "migrated",
    "opened",
    "appended",
    "begun",
    "written",
    "swept",
    "committed",
    "told",
    "closing",
)
"""Every point of the path from a batch to its commit, in order."""


class Hooks(Protocol):
    """What a test gives a store."""

    def reach(self, point: str) -> None:
        """Be told that ``point`` was reached; in the thread that writes, but for ``appended`` and ``told``.

        May raise what SQLite or the operating system might at that point.
        """


class Trouble(Enum):
    """What follows from an error."""

    PASSES = "passes"
    """It may be gone later: the same is tried again, unchanged."""
    DAMAGE = "damage"
    """The file is damaged: nothing can be tried."""
    CONTENT = "content"
    """It is what was to be written: nothing else is wrong."""


class TroubleError(Exception):
    """The file cannot be used just now.

    Args:
        problem: What is wrong, in a few words, without paths: clients may hear them.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


# Primary result codes of SQLite, and what to say of them. What is not here is a bug of ours.
_PROBLEMS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk fails",
    sqlite3.SQLITE_BUSY: "another program has the file locked",
    sqlite3.SQLITE_LOCKED: "another program has the file locked",
    sqlite3.SQLITE_NOMEM: "there is no memory",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_READONLY: "the file cannot be written",
    sqlite3.SQLITE_PERM: "the file cannot be written",
    sqlite3.SQLITE_INTERRUPT: "it was interrupted",
    sqlite3.SQLITE_PROTOCOL: "another program has the file locked",
}
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_CONTENT = frozenset({sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH})


def trouble_of(error: Exception) -> tuple[Trouble, str] | None:
    """Say what follows from an error of SQLite or of the operating system, and what to call it.

    Returns:
        ``None`` for one that only a bug of ours can bring.
    """
    if isinstance(error, MemoryError):
        return Trouble.PASSES, _PROBLEMS[sqlite3.SQLITE_NOMEM]
    if isinstance(error, OSError):
        return Trouble.PASSES, error.strerror or "the operating system refuses"
    if isinstance(error, (OverflowError, sqlite3.DataError)):
        return Trouble.CONTENT, "too large"
    if not isinstance(error, sqlite3.Error):
        return None
    # The lowest byte is the kind of error, what is above it says more.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _DAMAGE:
        return Trouble.DAMAGE, "the file is damaged"
    if code in _CONTENT:
        return Trouble.CONTENT, str(error)
    problem = _PROBLEMS.get(code)
    return None if problem is None else (Trouble.PASSES, problem)
