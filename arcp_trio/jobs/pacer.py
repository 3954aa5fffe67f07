"""How agents share the loop with the writers.

A full checkpoint at every emission would cost nine tenths of the throughput: each follower's writer
would wake for one frame (baselines.md, 4). So an emission yields only when the loop's slice of time
is over. The slice belongs to the loop and not to a job: it begins anew once in a turn, when the
pacer's own task has run, so 200 flooding agents share one slice in a turn instead of having 200.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import trio

__all__ = ["Pacer"]


class Pacer:
    """Gives out the loop's slices.

    Args:
        slice_seconds: How long agents may emit in one turn of the loop.
        clock: A monotonic clock in seconds. Not Trio's: a test's clock stands still while agents work.
    """

    __slots__ = ("_clock", "_seconds", "_task", "slice_end")

    def __init__(self, slice_seconds: float, clock: Callable[[], float] = perf_counter) -> None:
        self._seconds = slice_seconds
        self._clock = clock
        self._task: trio.lowlevel.Task | None = None
        self.slice_end = 0.0

    def slice_is_over(self) -> bool:
        """Say whether the agent that asks must let the others run."""
        return self._clock() >= self.slice_end

    async def yield_turn(self) -> None:
        """Let the others run. Not cancellable: what was emitted before it happened."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None
        await trio.lowlevel.cancel_shielded_checkpoint()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Begin a slice in each turn in which one was asked for, until cancelled."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            self._task = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)
            self.slice_end = self._clock() + self._seconds
