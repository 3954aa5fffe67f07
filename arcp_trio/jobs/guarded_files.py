"""Opening a file below a lease: what is opened is what was allowed, whatever happens to its path meanwhile (P9.3).

Theory of operation. The path is walked by hand: each directory is opened relative to the one before it and never
through a symbolic link; links are read, and what they say is walked likewise. So at every moment there is one
descriptor, and the real names that led to it, and nothing that others rename or replace can turn the next step
elsewhere. The last name is looked at, its real path is asked for, and only then is it opened, once more without
following; where something else has come to stand there, all is done again. Before the real path is allowed nothing is
created, cut or waited for: what exists is opened as it is and cut through its descriptor, and a FIFO or a device is not
opened at all.

Out of reach: a hard link inside of what is allowed, to a file outside, is as good a name of that file as any other.
What is open stays open: a file that is moved away later, or a lease that expires, takes nothing back.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from posixpath import join, normpath

import attrs

from ..wire.errors import PermissionDeniedError

__all__ = ["CAN_OPEN", "Check", "open_checked"]

Check = Callable[[str], object]
"""Raises where a real path is not allowed."""

# As many as Linux follows.
_MAX_LINKS = 40
# Whoever swaps what stands there as often as it is looked at gets no file, and no loop.
_MAX_ROUNDS = 16

CAN_OPEN = {os.open, os.stat, os.readlink} <= os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
"""Whether this platform lets paths be walked by descriptors. Windows does not."""


def _flags(*names: str) -> int:
    """Return flags of ``open``, those that this platform has."""
    flags = 0
    for name in names:
        flags |= getattr(os, name, 0)
    return flags


# With O_PATH it takes no right to read a directory to pass through it, as it takes none by name.
_DIRECTORY = _flags("O_PATH", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")
# Never through a link; and if a FIFO or a terminal came there since it was looked at, without waiting for anybody.
_CAREFULLY = _flags("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC")
# What an operation answers if what it meets is not what was looked at: links have no one error of their own.
_OTHER_THAN_SEEN = {
    errno.ELOOP,
    errno.EMLINK,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENXIO,
    errno.EINVAL,
}


class _ChangedError(Exception):
    """What was looked at is there no more: all is to be done again."""


def _problem(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@contextmanager
def _as_seen() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _OTHER_THAN_SEEN:
            raise _ChangedError from exc
        raise


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


@attrs.frozen
class _Found:
    """The end of a walk.

    Attributes:
        directory: A descriptor of the real directory; the walk's.
        parent: Its real path.
        name: The last name in it, no link unless that was wanted.
        status: What stands there, or ``None``.
    """

    directory: int
    parent: str
    name: str
    status: os.stat_result | None

    @property
    def path(self) -> str:
        """The real path."""
        return join(self.parent, self.name)


class _Walk:
    """One walk along a path. Holds one descriptor, which :meth:`close` closes."""

    def __init__(self, path: str) -> None:
        self._todo = deque(_names(path))
        self._done: list[str] = []
        self._links = 0
        self._directory = os.open("/", _DIRECTORY)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._directory)

    @property
    def ahead(self) -> str:
        """Where it leads, as far as it got, and as it reads from there."""
        return normpath(join("/", *self._done, *self._todo))

    def find(self, *, follow_last: bool) -> _Found:
        """Walk to the last name.

        Raises:
            OSError: Something on the way is missing, is no directory or may not be passed.
            _ChangedError: Something changed on the way.
        """
        while self._todo:
            name = self._todo[0]
            if name == "..":
                self._go_up()
                continue
            status = self._look(name)
            is_last = len(self._todo) == 1
            if status is not None and stat.S_ISLNK(status.st_mode) and (follow_last or not is_last):
                self._follow(name)
            elif is_last:
                return _Found(self._directory, join("/", *self._done), name, status)
            elif status is None:
                raise _problem(errno.ENOENT)
            elif stat.S_ISDIR(status.st_mode):
                self._enter(name)
            else:
                raise _problem(errno.ENOTDIR)
        # Only the root has no name.
        raise _problem(errno.EISDIR)

    def _look(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _enter(self, name: str) -> None:
        with _as_seen():
            self._stand_at(os.open(name, _DIRECTORY, dir_fd=self._directory))
        self._done.append(self._todo.popleft())

    def _follow(self, name: str) -> None:
        self._links += 1
        if self._links > _MAX_LINKS:
            raise _problem(errno.ELOOP)
        with _as_seen():
            target = os.readlink(name, dir_fd=self._directory)
        self._todo.popleft()
        names = _names(target)
        if target.startswith("/"):
            self._begin_again([*names, *self._todo])
        else:
            self._todo.extendleft(reversed(names))

    def _go_up(self) -> None:
        """Begin again with fewer names: what is the parent of the descriptor by now, whoever moved it decides."""
        while self._todo and self._todo[0] == "..":
            self._todo.popleft()
            del self._done[-1:]
        self._begin_again([*self._done, *self._todo])

    def _begin_again(self, names: Iterable[str]) -> None:
        self._stand_at(os.open("/", _DIRECTORY))
        self._todo = deque(names)
        self._done = []

    def _stand_at(self, directory: int) -> None:
        left, self._directory = self._directory, directory
        os.close(left)


def _kernel_path(descriptor: int) -> str | None:
    """Return where a descriptor's file is now, where the system can say so."""
    if not os.fstat(descriptor).st_nlink:
        # It has gone: what Linux tells of it then is no path.
        return None
    import fcntl  # noqa: PLC0415  # not on Windows, which never comes here

    command = getattr(fcntl, "F_GETPATH", None)
    try:
        if command is not None:
            return os.fsdecode(bytes(fcntl.fcntl(descriptor, command, bytes(1024))).partition(b"\0")[0])
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115  # a text, and none of this machine's paths
    except OSError:
        return None


def _confirm(descriptor: int, path: str, check: Check, name: str = "") -> None:
    """Ask again where the system sees a descriptor elsewhere than the walk did: somebody moved a directory."""
    seen = _kernel_path(descriptor)
    if seen is not None and seen != path:
        check(join(seen, name) if name else seen)


def _open_found(found: _Found, flags: int, check: Check) -> int:
    """Open what a walk has found, and the lease allows."""
    if found.status is None:
        if not flags & os.O_CREAT:
            raise _problem(errno.ENOENT)
        # What is created cannot be taken back: this is asked before.
        _confirm(found.directory, found.parent, check, found.name)
    else:
        if flags & os.O_EXCL:
            raise _problem(errno.EEXIST)
        if stat.S_ISDIR(found.status.st_mode):
            raise _problem(errno.EISDIR)
        if not stat.S_ISREG(found.status.st_mode):
            raise PermissionDeniedError(f"{found.path[:200]!r} is not a regular file: it is not opened")
        flags &= ~os.O_CREAT
    with _as_seen():
        descriptor = os.open(found.name, flags & ~os.O_TRUNC | _CAREFULLY, 0o666, dir_fd=found.directory)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _ChangedError  # noqa: TRY301  # the descriptor is closed below
        _confirm(descriptor, found.path, check)
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_once(path: str, flags: int, check: Check) -> int:
    walk = _Walk(path)
    try:
        try:
            found = walk.find(follow_last=not flags & os.O_EXCL)
        except OSError:
            # Whether something is there is told of what is allowed, and of nothing else.
            check(walk.ahead)
            raise
        check(found.path)
        return _open_found(found, flags, check)
    finally:
        walk.close()


def open_checked(path: str, flags: int, check: Check) -> int:
    """Open a file if its real path is allowed; blocks, and knows no Trio.

    Args:
        path: An absolute path in canonical form, which the lease covers.
        flags: As :func:`os.open` takes them.
        check: Is asked for the real path before anything is done to the file, perhaps several times.

    Returns:
        A descriptor of a regular file, not inheritable.

    Raises:
        OSError: As :func:`os.open` raises it; EBUSY where the path changed again and again.
        PermissionDeniedError: There is something else than a file or a directory.
        Exception: What ``check`` raises.
    """
    cause: BaseException | None = None
    for _ in range(_MAX_ROUNDS):
        try:
            return _open_once(path, flags, check)
        except _ChangedError as exc:
            cause = exc.__cause__
        except OSError as exc:
            # By the name that was asked for: it knows the last one alone, or none.
            raise OSError(exc.errno, os.strerror(exc.errno or 0), path) from None
    raise OSError(errno.EBUSY, "what is there changed again and again", path) from cause
