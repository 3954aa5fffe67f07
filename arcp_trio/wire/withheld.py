"""Frames that are kept without what is secret in them, which is filled in as they are written (P9.10).

A session's window may hold a frame for long after a credential has died, and a store may write it down. So what is
kept is the frame without the value; the value has one home, the job's own
:class:`~arcp_trio.jobs.credentials.JobCredentials`, and goes with the job.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Content", "Withheld"]


class Withheld:
    """The bytes of a frame, or of a tail, with a place that is filled in each time it is written.

    Args:
        kept: Everything but the secret: well formed as it is.
        place: Where the secret goes, counted from the end.
        secret: Returns what goes there; nothing once it may be told no more. Synchronous; never fails.

    Its length is what it has with what ``secret`` returns now, and never changes: bounds count it.
    """

    __slots__ = ("_length", "_place", "_secret", "kept")

    def __init__(self, kept: bytes, place: int, secret: Callable[[], bytes]) -> None:
        self.kept = kept
        self._place = place
        self._secret = secret
        self._length = len(kept) + len(secret())

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return f"<Withheld, {self._length} bytes>"

    def write(self) -> bytes:
        """Return the bytes with what may be told now."""
        return b"".join((self.kept[: -self._place], self._secret(), self.kept[-self._place :]))


Content = bytes | Withheld
"""What a session's stream keeps."""
