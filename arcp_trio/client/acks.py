"""Telling a runtime how far its events were taken (P6.15)."""

from __future__ import annotations

from collections.abc import Callable

import trio

from ..timers import Timer, Timers

__all__ = ["Acks"]


class Acks:
    """Acknowledges the events of a session: seldom while they come, and once at the end.

    Args:
        timers: Who calls when an ack is due.
        interval: The shortest time between two acks, in seconds.
        last: Returns the number up to which everything was taken.
        send: Sends an ack. Synchronous; never fails.
    """

    __slots__ = ("_acked", "_interval", "_last", "_send", "_timer", "_timers")

    def __init__(
        self, timers: Timers, interval: float, *, last: Callable[[], int], send: Callable[[int], None]
    ) -> None:
        self._timers = timers
        self._interval = interval
        self._last = last
        self._send = send
        self._acked = 0
        self._timer: Timer | None = None

    def taken(self) -> None:
        """Note that an event was taken: an ack is due an interval after the first one that is not acked."""
        if self._timer is None:
            self._timer = self._timers.call_at(trio.current_time() + self._interval, self.flush)

    def flush(self) -> None:
        """Acknowledge what was taken, if that is more than before."""
        self.stop()
        last = self._last()
        if last > self._acked:
            self._acked = last
            self._send(last)

    def resumed(self) -> None:
        """Note that the runtime was told in another way: the hello of a resume names the number."""
        self.stop()
        self._acked = max(self._acked, self._last())

    def stop(self) -> None:
        """Send none until another event is taken."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
