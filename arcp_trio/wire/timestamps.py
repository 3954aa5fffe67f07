"""Times on the wire: RFC 3339 in UTC with ``Z`` and milliseconds (section 5 of protocol.md)."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["WallClock", "format_timestamp"]


def format_timestamp(seconds: float) -> str:
    """Return ``seconds`` since 1970 as ``2026-05-13T19:42:13.000Z``."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    moment = time.gmtime(whole)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{milliseconds:03d}Z"


class WallClock:
    """The time of day for timestamps; durations are never measured with it.

    Args:
        now: Returns the seconds since 1970; tests give their own.
    """

    __slots__ = ("_now", "_prefix", "_second")

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._second = -1
        self._prefix = ""

    def seconds(self) -> float:
        """Return the seconds since 1970."""
        return self._now()

    def timestamp(self) -> str:
        """Return now as the wire writes it.

        The text of the current second is kept: formatting it anew was a quarter of the cost of an
        event (baselines.md, 8).
        """
        whole, milliseconds = divmod(int(self._now() * 1000), 1000)
        if whole != self._second:
            self._second = whole
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        return f"{self._prefix}.{milliseconds:03d}Z"
