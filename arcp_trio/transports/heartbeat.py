"""Signs of life of one connection: when to ask the peer for one, and when to give it up (P6.13, P6.14)."""

from __future__ import annotations

from collections.abc import Callable

import trio

from ..timers import Timer, Timers

__all__ = ["Heartbeat"]


class Heartbeat:
    """Watches one connection from one end.

    ``ping`` is called when nothing was sent, or nothing received, for one interval: the peer watches us as we watch
    it, and some peers only ever answer. ``lost`` is called once, when nothing was received for two. One deadline stands
    at a time, and is moved only when it is reached: a frame costs a look at the clock.

    Args:
        timers: Who calls at the deadlines.
        interval: Seconds, more than 0.
        ping: Sends a ping. Synchronous; never fails.
        lost: Ends the connection. Synchronous; never fails.
    """

    __slots__ = ("_interval", "_lost", "_ping", "_pinged", "_received", "_sent", "_timer", "_timers")

    def __init__(self, timers: Timers, interval: float, *, ping: Callable[[], None], lost: Callable[[], None]) -> None:
        self._timers = timers
        self._interval = interval
        self._ping = ping
        self._lost = lost
        self._timer: Timer | None = None
        self._received = self._sent = self._pinged = 0.0

    def received(self) -> None:
        """Note that something came: any message is a sign of life."""
        self._received = trio.current_time()

    def sent(self) -> None:
        """Note that something was written to the end."""
        self._sent = trio.current_time()

    def start(self) -> None:
        """Watch from now on."""
        self._received = self._sent = self._pinged = trio.current_time()
        self._arm()

    def stop(self) -> None:
        """Watch no more. Harmless twice, or before :meth:`start`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _next_ping(self) -> float:
        # A ping that is not written yet, or not answered, is not repeated sooner than an interval later.
        return max(min(self._received, self._sent), self._pinged) + self._interval

    def _arm(self) -> None:
        deadline = min(self._received + 2 * self._interval, self._next_ping())
        self._timer = self._timers.call_at(deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        now = trio.current_time()
        if now >= self._received + 2 * self._interval:
            self._lost()
            return
        if now >= self._next_ping():
            self._pinged = now
            self._ping()
        self._arm()
