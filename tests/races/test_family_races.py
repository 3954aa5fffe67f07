"""A parent that returns, raises, is cancelled, timed out, expired or shut down, while its children end or do not.

Each run starts a parent with two children, one of which has a child of its own, and lets a permutation of causes happen
to them, with nothing, one turn of the loop or a rest between two causes. Whatever won, nobody outlives its parent.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from helpers import RawClient, Script, open_raw
from races.families import check_family

import arcp_trio
from arcp_trio.jobs.actor import JobActor

GAPS = ("nothing", "one turn", "a rest")
GRACE = 4
ANY = {"agent.delegate": ["*"]}

# What ends the parent while its children would go on for ever.
STOPS = {"raise": "error", "cancel": "cancelled", "deadline": "timed_out", "expiry": "error", "shutdown": "error"}
# What does not: a parent that returns waits.
OTHERS = ("return", "cancel a child", "a child fails", "its agent cancels a child", "children return")


class FamilyScript(Script):
    """Agents ``top``, ``middle`` and ``leaf``; how top ends and whether leaves fail is said by the test."""

    def __init__(self, *, stubborn: bool) -> None:
        super().__init__()
        self.verdict = trio.Event()
        self.raises = False
        self.leaf_fails = trio.Event()
        self.children: list[arcp_trio.Child] = []
        kind = "stubborn" if stubborn else "gate"

        @self.agents.register("top")
        async def top(job: arcp_trio.JobContext, value: Any) -> str:
            self.children.append(await job.delegate("middle", lease_request=ANY))
            self.children.append(await job.delegate("leaf"))
            await self.verdict.wait()
            if self.raises:
                raise arcp_trio.ARCPError("as told", code="x-told")
            return "returned"

        @self.agents.register("middle")
        async def middle(job: arcp_trio.JobContext, value: Any) -> Any:
            child = await job.delegate(kind)
            return await child.result()

        @self.agents.register("leaf")
        async def leaf(job: arcp_trio.JobContext, value: Any) -> Any:
            async with trio.open_nursery() as nursery:

                async def fail() -> None:
                    await self.leaf_fails.wait()
                    raise arcp_trio.ARCPError("a leaf fell", code="x-leaf")

                nursery.start_soon(fail)
                with trio.CancelScope(shield=stubborn):
                    await self.gate.wait()
                nursery.cancel_scope.cancel()


def stop_of(causes: Sequence[str]) -> str | None:
    """Return the first cause that stops the parent: who has returned raises nothing any more."""
    returned = False
    for cause in causes:
        returned = returned or cause == "return"
        if cause in STOPS and not (returned and cause == "raise"):
            return cause
    return None


async def run_race(causes: Sequence[str], gaps: Sequence[str], *, stubborn: bool) -> None:
    script = FamilyScript(stubborn=stubborn)
    label = (causes, gaps)
    limits = arcp_trio.Limits(cancel_grace_seconds=GRACE, shutdown_seconds=6)
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(arcp_trio.open_runtime(script.agents, limits=limits))
        client: RawClient = await stack.enter_async_context(open_raw(runtime))
        job_id = await client.submit("top", lease_request=ANY, max_runtime_sec=1_000)
        await client.settle()
        actor = runtime._directory.find(job_id)
        assert isinstance(actor, JobActor)
        assert runtime.statistics().jobs_running == 4

        async def decide(*, raises: bool) -> None:
            script.raises = script.raises or (raises and not script.verdict.is_set())
            script.verdict.set()

        async def cancel(job_id: str) -> None:
            await client.request("job.cancel", {"job_id": job_id})

        async def deadline() -> None:
            # What the timer's callback does, without waiting for it.
            if actor._deadline is not None and actor._deadline.callback is not None:
                actor._deadline.cancel()
                actor._deadline_passed()

        async def expiry() -> None:
            actor._lease_expired()

        async def fail() -> None:
            script.leaf_fails.set()

        async def give_up() -> None:
            script.children[0].cancel("by its parent's agent")

        async def let_go() -> None:
            script.gate.set()

        async with trio.open_nursery() as nursery:

            async def shutdown() -> None:
                nursery.start_soon(runtime.aclose)

            acts: dict[str, Callable[[], Awaitable[None]]] = {
                "return": partial(decide, raises=False),
                "raise": partial(decide, raises=True),
                "cancel": partial(cancel, job_id),
                "deadline": deadline,
                "expiry": expiry,
                "shutdown": shutdown,
                "cancel a child": partial(cancel, script.children[1].job_id),
                "a child fails": fail,
                "its agent cancels a child": give_up,
                "children return": let_go,
            }
            for cause, gap in zip(causes, (*gaps, "a rest"), strict=True):
                try:
                    await acts[cause]()
                except arcp_trio.transports.base.TransportClosedError:
                    assert "shutdown" in causes, label
                if gap == "one turn":
                    await trio.lowlevel.checkpoint()
                elif gap == "a rest":
                    await trio.testing.wait_all_tasks_blocked()
            stop = stop_of(causes)
            if stop is not None:
                # However stubborn, nobody is waited for longer than the parent's own time.
                with trio.fail_after(GRACE + 0.001):
                    await runtime.wait_jobs_ended()
            script.gate.set()
            script.verdict.set()
            with trio.fail_after(GRACE + 0.001):
                await runtime.wait_jobs_ended()
        await client.settle()
        ended = check_family(client.received, runtime, label)
        assert len(ended) == 4, label
        if set(gaps) <= {"a rest"}:
            # One that has returned may have ended before what would have stopped it.
            early = {"success"} if stop is None or "return" in causes[: causes.index(stop)] else set()
            assert ended[job_id] in early | {STOPS[stop] if stop is not None else "success"}, (label, ended)
        # Who asked for nothing is acknowledged nothing.
        asked = {"cancel": job_id, "cancel a child": script.children[1].job_id}
        acks = {frame["job_id"] for frame in client.received if frame["type"] == "job.cancelled"}
        assert acks <= {asked[cause] for cause in causes if cause in asked}, label
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.statistics().disowned_agents == (), label


def run_all(length: int, *, stubborn: bool, every: int = 1) -> int:
    count = 0
    races = [
        (causes, gaps)
        for causes in itertools.permutations((*STOPS, *OTHERS), length)
        for gaps in itertools.product(GAPS, repeat=length - 1)
    ]
    for causes, gaps in races[::every]:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(partial(run_race, causes, gaps, stubborn=stubborn), clock=clock)
        count += 1
    return count


@pytest.mark.requirement("P10.3", "P10.4", "P7.8", "P7.13", "L01", "L02", "Z06", "Z10")
@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize(("length", "every"), [(1, 1), (2, 1), (3, 16)])
def test_nobody_outlives_its_parent_whatever_the_order(length: int, every: int, stubborn: bool) -> None:
    assert run_all(length, stubborn=stubborn, every=every) >= 10
