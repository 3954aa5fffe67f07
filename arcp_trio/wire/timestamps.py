"""Times on the wire: RFC 3339 in UTC with ``Z`` and milliseconds (section 5 of protocol.md)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache

__all__ = ["WallClock", "format_timestamp", "parse_timestamp"]

_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d)(?:\.(\d+))?Z", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def format_timestamp(seconds: float) -> str:
    """Return ``seconds`` since 1970 as ``2026-05-13T19:42:13.000Z``."""
    whole, milliseconds = divmod(int(seconds * 1000), 1000)
    moment = time.gmtime(whole)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{milliseconds:03d}Z"


def parse_timestamp(text: str) -> int:
    """Return what an RFC 3339 time in UTC says, in milliseconds since 1970; what is finer is cut off.

    Args:
        text: With ``Z``, in capitals, and any number of decimals: no other offset can be mistaken for UTC.

    Raises:
        ValueError: It is no such time.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError("expected a time like 2026-05-13T19:42:13.000Z")
    whole, fraction = match.groups()
    return _parse_second(whole) + int(((fraction or "") + "000")[:3])


@lru_cache(maxsize=256)
def _parse_second(text: str) -> int:
    """Return what a time without decimals says, in milliseconds; most times are of a second that was asked for."""
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)


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
