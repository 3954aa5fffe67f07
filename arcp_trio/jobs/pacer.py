"""How agents share the loop with the writers.

A full checkpoint at every emission would cost nine tenths of the throughput: each follower's writer
would wake for one frame (baselines.md, 4). So an emission yields only when the loop's slice of time
is over. The slice belongs to the loop and not to a job: it begins anew once in a turn, when the
pacer's own task has run, so 200 flooding agents share one slice in a turn instead of having 200.

Where the rest of a turn takes longer than a slice, because there are many writers, the next slice is as long as
that, within a bound: with 100 followers a turn would else be nothing but writes, of one or two frames each. A turn
is at most twice as long for it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, thread_time

import trio

__all__ = ["Pacer"]

_LARGEST_SLICE = 8
"""In slices: how much longer than an ordinary one a slice may become."""


class Pacer:
    """Gives out the loop's slices.

    Args:
        slice_seconds: How long agents may emit in one turn of the loop, if the rest of a turn takes no longer.
        clock: A monotonic clock in seconds. Not Trio's: a test's clock stands still while agents work.
        work_clock: How many seconds this thread has worked: what others took of the processor is no work of the loop's.
    """

    __slots__ = ("_asked_at", "_clock", "_seconds", "_task", "_work_clock", "slice_end")

    def __init__(
        self,
        slice_seconds: float,
        clock: Callable[[], float] = perf_counter,
        work_clock: Callable[[], float] = thread_time,
    ) -> None:
        self._seconds = slice_seconds
        self._clock = clock
        self._work_clock = work_clock
        self._task: trio.lowlevel.Task | None = None
        self._asked_at = 0.0
        self.slice_end = 0.0

    def slice_is_over(self) -> bool:
        """Say whether the agent that asks must let the others run."""
        return self._clock() >= self.slice_end

    async def yield_turn(self) -> None:
        """Let the others run. Not cancellable: what was emitted before it happened."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None
            self._asked_at = self._work_clock()
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
            rest_of_turn = min(self._work_clock() - self._asked_at, self._seconds * _LARGEST_SLICE)
            self.slice_end = self._clock() + max(self._seconds, rest_of_turn)
