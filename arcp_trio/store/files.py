"""The files of a store: who may read them, and that one process writes them.

Beside the file itself there are SQLite's ``-wal`` and ``-shm``, which get the file's own mode, and ``.lock``, which
has the process id of whoever has the store open, and stays: to remove it would let two processes lock two files of one
name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import StoreError, StoreFormatError, StoreLockedError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["StoreLock", "create_file", "file_bytes", "reading_lock", "tighten", "wal_path"]

_MODE = 0o600
_PID_LENGTH = 20
_LOCKED_BYTE = 1024


def wal_path(path: Path) -> Path:
    """Return the path of a store's write-ahead log."""
    return path.with_name(path.name + "-wal")


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def file_bytes(path: Path) -> int:
    """Return the size of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def create_file(path: Path) -> bool:
    """Make an empty file that its owner alone can read, unless there is one; say whether it was made.

    Raises:
        StoreError: It cannot be made there.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, _MODE)
    except FileExistsError:
        if not path.is_file():
            raise StoreFormatError(f"{path} is not a file") from None
        return False
    except OSError as exc:
        raise StoreError(f"{path}: the store cannot be made: {exc.strerror}") from exc
    os.close(descriptor)
    _sync_directory(path.parent)
    return True


def _sync_directory(directory: Path) -> None:
    """Make the name of a new file durable: SQLite does so for its own files, and not for one that was there."""
    if sys.platform != "win32":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def tighten(path: Path) -> None:
    """Take a store's files away from everybody but their owner: one that was copied back may be open to all (P14.3)."""
    for each in (path, wal_path(path), path.with_name(path.name + "-shm")):
        # Those that are not there, and those of another owner who let us in.
        with suppress(FileNotFoundError, PermissionError):
            if each.stat().st_mode & 0o077:
                each.chmod(_MODE)


def _lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file without waiting, and say whether it could be; closing it unlocks, as the process's end does."""
    try:
        if sys.platform == "win32":
            # A byte far behind the process id: there, nobody can read what is locked.
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class StoreLock:
    """The right to write a store. Made by :meth:`acquire`, given back by :meth:`release`.

    On a file of its own: SQLite's locks on the store itself would be lost with any other descriptor of it that is
    closed.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, path: Path) -> StoreLock:
        """Take the right to write the store at ``path``.

        Raises:
            StoreLockedError: Somebody has it; the message names the file and the process.
            StoreError: The lock cannot be made there.
        """
        try:
            descriptor = os.open(_lock_path(path), os.O_CREAT | os.O_RDWR, _MODE)
        except OSError as exc:
            raise StoreError(f"{_lock_path(path)}: the store cannot be locked: {exc.strerror}") from exc
        if not _lock(descriptor):
            os.lseek(descriptor, 0, os.SEEK_SET)
            owner = os.read(descriptor, _PID_LENGTH).decode(errors="replace").strip()
            os.close(descriptor)
            raise StoreLockedError(
                f"{path} is in use by process {owner or 'unknown'}: one process at a time writes a store"
            )
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, b"%d\n" % os.getpid())
        return cls(descriptor)

    def release(self) -> None:
        """Give the right back."""
        os.close(self._descriptor)


@contextmanager
def reading_lock(path: Path) -> Iterator[bool]:
    """Keep writers away while a store is read by who has not opened it; changes no file.

    Yields:
        Whether nobody writes it meanwhile: a store that is in use can be read all the same.
    """
    try:
        descriptor = os.open(_lock_path(path), os.O_RDONLY)
    except OSError:
        # Nobody has ever opened it here: a copy.
        yield not wal_path(path).exists()
        return
    try:
        yield _lock(descriptor, shared=True)
    finally:
        os.close(descriptor)
