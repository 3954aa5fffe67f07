"""Opens the file of a store: for the one process that writes it, and for those that only look."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from urllib.parse import quote

import attrs

from ..limits import Limits
from .cipher import Cipher, make_cipher
from .errors import StoreCorruptError, StoreError, StoreFormatError
from .faults import Hooks, Trouble, trouble_of
from .files import StoreLock, create_file, tighten
from .schema import prepare, schema_version

__all__ = ["Database", "check_structure", "connect", "open_database", "opening_error", "wal_reset_warning"]

logger = logging.getLogger("arcp_trio.store")

# Another program may look at the file: what it holds up is tried again anyway.
_BUSY_SECONDS = 1.0
_WAL_PAGES = 1_000
_PAGE_BYTES = 4_096
# What is small first: of a large file the check does not get to the end.
_CHECKED = (
    "ownership",
    "ledger",
    "keys",
    "sessions",
    "follows",
    "riders",
    "own",
    "owners",
    "spans",
    "jobs",
    "outcomes",
    "events",
)
_CHECK_STEPS = 1_000
_SYNCHRONOUS = ("full", "extra", "normal")


@attrs.frozen(eq=False)
class Database:
    """A store's file that is open for writing.

    Attributes:
        path: The file.
        db: The one connection that writes and checkpoints.
        lock: What keeps others from it.
        cipher: What it is read and written with.
    """

    path: Path
    db: sqlite3.Connection
    lock: StoreLock
    cipher: Cipher

    def close(self) -> None:
        """Close the connection, then give the lock back."""
        try:
            self.db.close()
        finally:
            self.lock.release()


def wal_reset_warning(version: tuple[int, ...]) -> str | None:
    """Return what is to be said of a version of SQLite that can damage a file with a write-ahead log, if it is one.

    Two connections that write or checkpoint at the same instant bring it about. A store has one that does, and a lock
    that keeps a second process of ours away; of another program it knows nothing.
    """
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    if version < (3, 7, 0) or fixed:
        return None
    return (
        f"SQLite {'.'.join(map(str, version))} can damage a store that a second program writes at the same time:"
        " let none do so, or use SQLite 3.51.3 or newer"
    )


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Return a connection that leaves transactions to its user.

    Args:
        path: The file; it exists.
        mode: ``rw``, ``ro``, or ``ro&immutable=1`` where nobody writes it meanwhile.
    """
    db = sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        isolation_level=None,
        # One thread at a time, but not always the same.
        check_same_thread=False,
        timeout=_BUSY_SECONDS,
        cached_statements=256,
    )
    try:
        # What the file says of itself is not believed, and a failing disk must be an error and no signal.
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0", "temp_store = MEMORY"):
            db.execute(f"PRAGMA {pragma}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def opening_error(error: Exception, path: Path) -> StoreError | None:
    """Return what is raised where a file cannot be opened because of ``error``; ``None`` where that is a bug."""
    trouble = trouble_of(error)
    if trouble is None:
        return None
    kind, problem = trouble
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB:
        return StoreFormatError(f"{path} is not a store: {error}")
    if kind is Trouble.DAMAGE:
        return StoreCorruptError(f"{path} is damaged: {error}")
    return StoreError(f"{path}: the store cannot be opened: {problem}")


def check_structure(db: sqlite3.Connection, path: Path, seconds: float, clock: Callable[[], float] = monotonic) -> bool:
    """Check how a file is built, table by table, for a limited time: a sound one of any size opens quickly.

    Args:
        db: A connection.
        path: The file, for the message.
        seconds: How long.
        clock: A monotonic clock in seconds.

    Returns:
        Whether that sufficed for all of it.

    Raises:
        StoreError: It is damaged, or cannot be read.
    """
    deadline = clock() + seconds
    db.set_progress_handler(lambda: clock() >= deadline, _CHECK_STEPS)
    try:
        for table in _CHECKED:
            found = [row[0] for row in db.execute(f"PRAGMA quick_check({table})")]
            if found != ["ok"]:
                raise StoreCorruptError(f"{path} is damaged: {found[0]}")
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            return False
        error = opening_error(exc, path)
        if error is None:
            raise
        raise error from exc
    finally:
        db.set_progress_handler(None, 0)
    return True


def open_database(
    path: Path, *, key: bytes | None, synchronous: str, limits: Limits, hooks: Hooks | None = None
) -> Database:
    """Open a store's file for writing; make it if there is none, and bring it to this version's schema.

    Args:
        path: The file; its directory exists.
        key: What its contents are encrypted with, or ``None``.
        synchronous: When SQLite waits for the disk: ``full``, ``extra``, or ``normal``, which a power failure can take
            the newest commits of.
        limits: How long the check may take.
        hooks: Is told of the crash points.

    Raises:
        StoreError: It cannot be opened; the class says why.
    """
    if synchronous not in _SYNCHRONOUS:
        raise ValueError(f"synchronous: expected one of {', '.join(_SYNCHRONOUS)}, got {synchronous!r}")
    try:
        with ExitStack() as opened:
            lock = StoreLock.acquire(path)
            opened.callback(lock.release)
            if create_file(path) and hooks is not None:
                hooks.reach("created")
            tighten(path)
            db = connect(path, "rw")
            opened.callback(db.close)
            cipher = _prepare(db, path, key=key, synchronous=synchronous, limits=limits, hooks=hooks)
            opened.pop_all()
            return Database(path, db, lock, cipher)
    except Exception as exc:
        error = opening_error(exc, path)
        if error is None:
            raise
        raise error from exc


def _prepare(
    db: sqlite3.Connection, path: Path, *, key: bytes | None, synchronous: str, limits: Limits, hooks: Hooks | None
) -> Cipher:
    version = schema_version(db, path)
    canary = None
    if version:
        if not check_structure(db, path, limits.store_check_seconds):
            logger.debug("%s: checked in part; arcp-trio store inspect --full checks all of it", path)
        (canary,) = db.execute("SELECT canary FROM ownership").fetchone()
    # Before anything is changed: with the wrong key nothing is.
    cipher, canary = make_cipher(key, canary, path, new=not version)
    if not version:
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    (journal,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if journal != "wal":
        raise StoreFormatError(f"{path}: its file system cannot share memory, which SQLite's write-ahead log needs")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * _PAGE_BYTES}")
    # What was deleted is gone, and not only free (P14.3).
    db.execute("PRAGMA secure_delete = ON")

    def migrated() -> None:
        if not version:
            db.execute("UPDATE ownership SET canary = ?", (canary,))
        if hooks is not None:
            hooks.reach("migrated")

    prepare(db, version, migrated)
    return cipher
