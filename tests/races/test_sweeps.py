"""A runtime that is left at each checkpoint of each of its tasks, one after the other: its jobs end all the same."""

from __future__ import annotations

import pytest
import trio
from races.schedules import Explorer, Schedule

import arcp_trio


async def leave_in_the_middle(schedule: Schedule, scope: trio.CancelScope) -> None:
    """Whoever holds the runtime open is cancelled: its shutdown still gives the job its one end."""
    agents = arcp_trio.Agents()
    ends: list[str] = []
    statistics: arcp_trio.RuntimeStatistics | None = None

    @agents.register("nap")
    async def nap(job: arcp_trio.JobContext, value: object) -> str:
        for _ in range(5):
            await job.log("info", "still here")
            await trio.lowlevel.checkpoint()
        return "rested"

    with trio.fail_after(1_000):
        try:
            with scope:
                async with arcp_trio.open_runtime(agents) as runtime:
                    try:
                        async with runtime.open_session(principal="me") as client:
                            job = await client.submit("nap")
                            await job.wait_ended()
                            ends.append(str(job.status))
                    finally:
                        with trio.CancelScope(shield=True):
                            await runtime.aclose()
                            statistics = runtime.statistics()
        except* arcp_trio.ConnectionLostError:
            # What the session meets that is opened while its runtime shuts down.
            assert scope.cancel_called
    if not scope.cancel_called:
        assert ends == ["success"]
    if statistics is not None:
        assert statistics.jobs_accepted == statistics.terminals_published == statistics.tear_downs
        assert (statistics.bugs, statistics.jobs_running, statistics.connections) == (0, 0, 0)


@pytest.mark.requirement("L22", "Z03", "Z07")
@pytest.mark.parametrize("task", ["leave_in_the_middle", "actor of", "agent nap", "arcp timers", "writer of"])
def test_a_runtime_that_is_left_at_any_checkpoint_ends_its_jobs(explorer: Explorer, task: str) -> None:
    for hold in (0.0, 0.6):
        assert explorer.sweep(leave_in_the_middle, task, Schedule(1, hold)) >= 2


async def test_a_runtime_that_is_opened_in_a_cancelled_scope_is_left_again() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with arcp_trio.open_runtime(arcp_trio.Agents()):
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
