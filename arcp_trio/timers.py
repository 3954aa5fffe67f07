"""One task for every deadline of a runtime: a heap, sleeping until the nearest or until it changes.

A task, a scope or a poll for each job would cost more than the job; a cancelled deadline costs
nothing but its place in the heap until the heap is half dead.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

import trio

__all__ = ["Timer", "Timers"]

_COMPACT_ABOVE = 64


class Timer:
    """A deadline that can be cancelled."""

    __slots__ = ("_timers", "callback", "deadline")

    def __init__(self, timers: Timers, deadline: float, callback: Callable[[], None]) -> None:
        self._timers = timers
        self.deadline = deadline
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Drop the callback; harmless after it ran, or twice."""
        if self.callback is not None:
            # Dropped at once: it may hold a whole job alive.
            self.callback = None
            self._timers._note_cancelled()  # noqa: SLF001  # the two classes are one


class Timers:
    """Calls functions at their time, on Trio's clock.

    The callbacks are synchronous and short. One that raises is a bug in the runtime, and ends it
    (design.md, "The actor").
    """

    __slots__ = ("_cancelled", "_changed", "_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._cancelled = 0
        self._changed = trio.Event()

    def __len__(self) -> int:
        """Return how many deadlines stand, cancelled ones not counted."""
        return len(self._heap) - self._cancelled

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` when :func:`trio.current_time` has reached ``deadline`` (seconds)."""
        timer = Timer(self, deadline, callback)
        heapq.heappush(self._heap, (deadline, next(self._order), timer))
        if self._heap[0][2] is timer:
            self._changed.set()
        return timer

    def _note_cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled > _COMPACT_ABOVE and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def _run_due(self) -> float:
        """Run what is due; return the nearest deadline that is left."""
        now = trio.current_time()
        while self._heap:
            deadline, _, timer = self._heap[0]
            callback = timer.callback
            if callback is None:
                heapq.heappop(self._heap)
                self._cancelled -= 1
            elif deadline <= now:
                heapq.heappop(self._heap)
                timer.callback = None
                callback()
            else:
                return deadline
        return float("inf")

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Serve deadlines until cancelled."""
        while True:
            # The event is replaced before the heap is read, so no change is lost between the two.
            self._changed = trio.Event()
            with trio.CancelScope(deadline=self._run_due()):
                await self._changed.wait()
