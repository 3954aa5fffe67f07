"""Budgets of a job and its children at work: who is charged, who is told, what returns (P10.2)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, RawClient, open_raw

import arcp_trio
from arcp_trio.jobs.actor import JobActor
from arcp_trio.wire.errors import BudgetExhaustedError


class Family:
    """Jobs whose agents do what a test asks them to, one thing at a time."""

    def __init__(self) -> None:
        self.agents = arcp_trio.Agents()
        self.contexts: dict[str, arcp_trio.JobContext] = {}
        self._over: dict[str, trio.Event] = {}

        @self.agents.register("member")
        async def member(job: arcp_trio.JobContext, value: Any) -> None:
            self.contexts[job.job_id] = job
            self._over[job.job_id] = trio.Event()
            await self._over[job.job_id].wait()

    async def end(self, actor: JobActor) -> None:
        self._over[actor.job_id].set()
        await trio.testing.wait_all_tasks_blocked()

    async def spend(self, actor: JobActor, amount: str, unit: str = "USD") -> None:
        await self.contexts[actor.job_id].metric("cost.x", Decimal(amount), unit)

    async def may(self, actor: JobActor) -> bool:
        try:
            await self.contexts[actor.job_id].authorize("tool.call", "search")
        except BudgetExhaustedError:
            return False
        return True


ALL = {"tool.call": ["*"], "agent.delegate": ["*"]}


async def delegate(family: Family, runtime: arcp_trio.Runtime, parent: JobActor, **limits: str) -> JobActor:
    """Have a job delegate to another of its kind, with a part of its budget."""
    amounts = [f"{currency}:{amount}" for currency, amount in limits.items()]
    lease = {**ALL, "cost.budget": amounts} if amounts else ALL
    child = await family.contexts[parent.job_id].delegate("member", lease_request=lease)
    await trio.testing.wait_all_tasks_blocked()
    actor = runtime._directory.find(child.job_id)
    assert isinstance(actor, JobActor)
    return actor


Body = Callable[[Family, arcp_trio.Runtime, RawClient, JobActor], Awaitable[None]]


async def play(body: Body, *amounts: str) -> None:
    family = Family()
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("member", lease_request={**ALL, "cost.budget": list(amounts)})
        await client.settle()
        root = runtime._directory.find(job_id)
        assert isinstance(root, JobActor)
        await body(family, runtime, client, root)
        assert runtime.statistics().bugs == 0


def gauges(frames: list[Frame], actor: JobActor | None = None) -> list[tuple[Any, Any]]:
    """Return the counters that were told of, by one job or by any, in their order; other events are left out."""
    events = [frame for frame in frames if frame["type"] == "job.event"]
    bodies = [frame["payload"]["body"] for frame in events if actor is None or frame["job_id"] == actor.job_id]
    return [(body["unit"], body["value"]) for body in bodies if body.get("name") == "cost.budget.remaining"]


@pytest.mark.requirement("P10.2", "P9.7", "B15")
async def test_what_a_child_gets_is_its_parents_no_more_and_returns(autojump_clock: trio.testing.MockClock) -> None:
    async def body(family: Family, runtime: arcp_trio.Runtime, client: RawClient, root: JobActor) -> None:
        child = await delegate(family, runtime, root, USD="3")
        assert gauges(await client.settle()) == [("USD", 2)]
        assert (root.budget, child.budget) == ({"USD": 2}, {"USD": 3})
        await family.spend(child, "1.25")
        # The child's counter is the child's: who follows its parent alone is told when that has ended.
        frames = await client.settle()
        assert (gauges(frames, root), gauges(frames, child)) == ([], [("USD", 1.75)])
        assert await family.may(child)
        await family.end(child)
        assert gauges(await client.settle()) == [("USD", 3.75)]
        assert root.budget == {"USD": Decimal("3.75")}
        record = runtime._directory.find(child.job_id)
        assert record is not None
        assert record.budget == {"USD": Decimal("1.75")}

    await play(body, "USD:5")


@pytest.mark.requirement("P10.2", "P9.7", "B15")
async def test_a_child_without_a_counter_is_charged_to_its_parents_and_stops_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def body(family: Family, runtime: arcp_trio.Runtime, client: RawClient, root: JobActor) -> None:
        child = await delegate(family, runtime, root, EUR="1")
        grandchild = await delegate(family, runtime, child)
        assert gauges(await client.settle()) == [("EUR", 0)]
        assert family.contexts[grandchild.job_id].budget == {"USD": 5, "EUR": 1}
        await family.spend(grandchild, "4.50")
        await family.spend(child, "0.25", "EUR")
        # In the feed of the job whose counter it is, and in no other.
        frames = await client.settle()
        told = [gauges(frames, actor) for actor in (root, child, grandchild)]
        assert told == [[("USD", 0.5)], [("EUR", 0.75)], []]
        assert await family.may(grandchild)
        await family.spend(grandchild, "0.50")
        assert [await family.may(each) for each in (root, child, grandchild)] == [False, False, False]
        await family.end(grandchild)
        await family.end(child)
        assert gauges([frame for frame in await client.settle() if frame.get("job_id") == root.job_id]) == [
            ("USD", 0),
            ("EUR", 0.75),
        ]

    await play(body, "USD:5", "EUR:1")


@pytest.mark.requirement("P10.2", "P9.4")
async def test_a_parent_that_gave_all_away_stops_and_its_children_do_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def body(family: Family, runtime: arcp_trio.Runtime, client: RawClient, root: JobActor) -> None:
        first = await delegate(family, runtime, root, USD="2")
        second = await delegate(family, runtime, root, USD="3")
        assert [await family.may(each) for each in (root, first, second)] == [False, True, True]
        with pytest.raises(arcp_trio.LeaseSubsetViolationError):
            root.authority.budget.delegate({"USD": Decimal("0.01")})
        # An overdraft is the parent's, once the child has ended.
        await family.spend(first, "2.50")
        assert [await family.may(each) for each in (first, second)] == [False, True]
        await family.end(second)
        assert await family.may(root)
        await family.end(first)
        assert root.budget == {"USD": Decimal("2.50")}

    await play(body, "USD:5")


@pytest.mark.requirement("P10.2", "P9.7")
@pytest.mark.parametrize("ending", ["cancelled", "by force"])
async def test_what_a_child_had_returns_however_it_ends(ending: str, autojump_clock: trio.testing.MockClock) -> None:
    async def body(family: Family, runtime: arcp_trio.Runtime, client: RawClient, root: JobActor) -> None:
        child = await delegate(family, runtime, root, USD="3")
        held = family.contexts[child.job_id].reserve({"USD": 2})
        await held.__aenter__()
        await family.spend(child, "1")
        if ending == "cancelled":
            await client.request("job.cancel", {"job_id": child.job_id})
        else:
            child.end_by_force()
        await trio.testing.wait_all_tasks_blocked()
        assert runtime._directory.find(child.job_id) is not child
        assert root.budget == {"USD": 4}
        assert held.left == {}
        await held.__aexit__(None, None, None)
        assert root.budget == {"USD": 4}

    await play(body, "USD:5")
