"""A tree of jobs that does what comes to mind, held against a model that knows nothing of how it is done.

Random trees of delegation, with random leases, budgets and ends: whatever is asked of them, no job does what its lease
or one above it forbids, siblings never have more together than their parent, money is neither lost nor made, and no
child outlives its parent, nor a credential its job (P9.4, P9.5, P9.7, P10.2, P10.3).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import cache
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from helpers import RawClient, connect_raw, terminals
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from provisioning.fakes import FakeProvisioner, KeptLedger

import arcp_trio
from arcp_trio.jobs.actor import JobActor
from arcp_trio.wire.timestamps import WallClock, format_timestamp

NOW = 1_800_000_000.0
CURRENCIES = ("USD", "credits")
SEGMENTS = ("a", "b", "ab", "z", "")
NAMES = sorted({"/".join(parts) for length in (1, 2, 3) for parts in itertools.product(SEGMENTS, repeat=length)} - {""})
PATTERN_SEGMENTS = ("a", "b", "a*", "*", "**")

Act = Callable[[arcp_trio.JobContext], Awaitable[Any]]


# --- what the leases mean, slowly -------------------------------------------------------------------


@cache
def covered(pattern: str) -> frozenset[str]:
    """Return the names of the universe that a pattern stands for, by way of a regular expression.

    The name of no segment is among them: nobody can ask for it, and ``**`` alone stands for it (P9.2).
    """
    parts = []
    for part in pattern.split("/"):
        if part == "**":
            parts.append("(/[^/]*)*")
        elif part == "*":
            parts.append("/[^/]+")
        else:
            parts.append("/" + re.escape(part).replace(r"\*", "[^/]*"))
    whole = re.compile("".join(parts))
    return frozenset(name for name in ("", *NAMES) if whole.fullmatch("/" + name if name else ""))


patterns = st.lists(st.sampled_from(PATTERN_SEGMENTS), min_size=1, max_size=3).map("/".join)
leases = st.lists(patterns, min_size=1, max_size=2, unique=True)
amounts = st.integers(0, 400).map(lambda cents: Decimal(cents) / 100)
budgets = st.dictionaries(st.sampled_from(CURRENCIES), amounts, max_size=2)
# What a parent often has: trees grow only where delegations succeed.
small = st.dictionaries(st.sampled_from(CURRENCIES), st.integers(0, 100).map(lambda cents: Decimal(cents) / 100))


# --- the model --------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Node:
    """One job, as the model has it.

    Attributes:
        patterns: What it may call.
        ends: When its lease ends, in seconds of the mock clock; infinite for never.
        limits: Its own counters, as they began.
        spent: What was charged to them.
        claimed: What its reservation holds, or ``None`` for no reservation.
    """

    key: int
    parent: Node | None
    patterns: list[str]
    ends: float
    limits: dict[str, Decimal]
    spent: dict[str, Decimal] = attrs.field(factory=dict)
    claimed: dict[str, Decimal] | None = None
    children: list[Node] = attrs.field(factory=list)
    alive: bool = True
    leaving: bool = False
    code: str | None = None
    job_id: str = ""

    @property
    def living(self) -> list[Node]:
        return [child for child in self.children if child.alive]

    def payer(self, currency: str) -> Node | None:
        """Return whose counter its costs go to."""
        if currency in self.limits:
            return self
        return None if self.parent is None else self.parent.payer(currency)

    def held(self, currency: str) -> Decimal:
        """Return what its descendants have got out of one of its own counters."""

        def given_to(node: Node) -> Decimal:
            total = Decimal(0)
            for child in node.living:
                total += child.limits[currency] if currency in child.limits else given_to(child)
            return total

        return given_to(self)

    def remaining(self, currency: str) -> Decimal:
        return self.limits[currency] - self.spent.get(currency, Decimal(0)) - self.held(currency)

    def reserved(self, currency: str) -> Decimal:
        """Return what is claimed of one of its own counters, by itself and by those who are charged to it."""

        def claims_of(node: Node) -> Decimal:
            own = (node.claimed or {}).get(currency, Decimal(0))
            return own + sum((claims_of(each) for each in node.living if currency not in each.limits), Decimal(0))

        return claims_of(self)

    def free(self, currency: str) -> Decimal | None:
        payer = self.payer(currency)
        return None if payer is None else payer.remaining(currency) - payer.reserved(currency)

    @property
    def exhausted(self) -> bool:
        payers = [(payer, currency) for currency in CURRENCIES if (payer := self.payer(currency)) is not None]
        return any(payer.remaining(currency) <= 0 for payer, currency in payers)

    def charge(self, currency: str, amount: Decimal) -> None:
        payer = self.payer(currency)
        if payer is not None:
            payer.spent[currency] = payer.spent.get(currency, Decimal(0)) + amount

    def end(self, code: str | None) -> None:
        """End with all below it; what was spent is charged to where the money came from."""
        if not self.alive:
            return
        for child in self.living:
            child.end("LEASE_EXPIRED" if code == "LEASE_EXPIRED" else "CANCELLED")
        self.alive = False
        self.claimed = None
        self.code = code
        if self.parent is not None:
            for currency in self.limits:
                self.parent.charge(currency, self.spent.get(currency, Decimal(0)))
            if self.parent.leaving and not self.parent.living:
                self.parent.end(None)


# --- the jobs ---------------------------------------------------------------------------------------


class Stage:
    """Agents that do one thing after the other, as they are told."""

    def __init__(self) -> None:
        self.agents = arcp_trio.Agents()
        self.told: dict[int, trio.MemorySendChannel[Act]] = {}
        self.said: list[Any] = []
        self.ids: dict[int, str] = {}

        @self.agents.register("puppet")
        async def puppet(job: arcp_trio.JobContext, key: Any) -> None:
            self.told[key], acts = trio.open_memory_channel[Act](1)
            self.ids[key] = job.job_id
            with acts:
                async for act in acts:
                    try:
                        self.said.append(await act(job))
                    except arcp_trio.InternalError:
                        raise
                    except arcp_trio.ARCPError as exc:
                        self.said.append(exc)

    async def tell(self, node: Node, act: Act) -> Any:
        """Have a job do something; return what came of it."""
        self.said.clear()
        self.told[node.key].send_nowait(act)
        await trio.testing.wait_all_tasks_blocked()
        assert len(self.said) == 1, (node, self.said)
        return self.said[0]


def code_of(said: Any) -> str | None:
    return said.code if isinstance(said, arcp_trio.ARCPError) else None


class Play:
    """One tree, its model, and what may be done to both at once."""

    def __init__(self, data: st.DataObject, clock: trio.testing.MockClock) -> None:
        self.data = data
        self.clock = clock
        self.stage = Stage()
        self.provisioner = FakeProvisioner()
        self.nodes: list[Node] = []
        self.reservations: dict[int, Any] = {}

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self.data.draw(strategy)

    @property
    def active(self) -> list[Node]:
        return [node for node in self.nodes if node.alive and not node.leaving]

    def expired(self, node: Node) -> bool:
        return trio.current_time() >= node.ends

    async def run(self) -> None:
        wall = WallClock(lambda: NOW + trio.current_time())
        async with arcp_trio.open_runtime(
            self.stage.agents, clock=wall, provisioner=self.provisioner, ledger=KeptLedger()
        ) as runtime:
            self.runtime = runtime
            self.client: RawClient = await connect_raw(runtime)
            self.frames = self.client.received
            await self.submit()
            steps = self.draw(st.lists(st.sampled_from(sorted(ACTS)), min_size=10, max_size=40))
            for step in steps:
                if not self.active:
                    break
                await ACTS[step](self, self.draw(st.sampled_from(self.active)))
                await self.client.settle()
                self.check()
            for node in self.nodes:
                if node.alive and node.parent is None:
                    await self.cancel(node)
            await self.client.settle()
            self.check()
            assert runtime.statistics().jobs_running == runtime.statistics().bugs == 0

    # --- what may be done -----------------------------------------------------------------------

    async def submit(self) -> None:
        lease = self.draw(st.one_of(leases, st.just(["**"])))
        budget = {"USD": Decimal(4), **self.draw(budgets)}
        ends = self.draw(st.sampled_from([60.0, float("inf")]))
        node = Node(0, None, lease, ends, budget)
        constraints = (
            {} if ends == float("inf") else {"lease_constraints": {"expires_at": format_timestamp(NOW + ends)}}
        )
        node.job_id = await self.client.submit("puppet", 0, lease_request=request_of(lease, budget), **constraints)
        self.nodes.append(node)
        await trio.testing.wait_all_tasks_blocked()

    async def delegate(self, parent: Node) -> None:
        key = len(self.nodes)
        lease = self.draw(st.one_of(leases, st.just(parent.patterns[:1])))
        budget = self.draw(st.one_of(small, small, budgets))
        ends = self.draw(st.sampled_from([None, None, 30.0, 60.0, 90.0]))
        if ends is not None and ends <= trio.current_time():
            return
        expires_at = None if ends is None else format_timestamp(NOW + ends)
        request = request_of(lease, budget)
        said = await self.stage.tell(
            parent, lambda job: job.delegate("puppet", key, lease_request=request, expires_at=expires_at)
        )
        await trio.testing.wait_all_tasks_blocked()
        within = all(any(covered(child) <= covered(own) for own in parent.patterns) for child in lease)
        affordable = all(
            (free := parent.free(currency)) is not None and free >= limit for currency, limit in budget.items()
        )
        if parent.exhausted:
            assert code_of(said) == "BUDGET_EXHAUSTED"
        elif within and affordable and (ends is None or ends <= parent.ends):
            assert isinstance(said, arcp_trio.Child), said
            child = Node(key, parent, lease, parent.ends if ends is None else ends, budget, job_id=said.job_id)
            parent.children.append(child)
            self.nodes.append(child)
        else:
            assert code_of(said) == "LEASE_SUBSET_VIOLATION", (said, within, affordable)

    async def operate(self, node: Node) -> None:
        name = self.draw(st.sampled_from(NAMES))
        said = await self.stage.tell(node, lambda job: job.authorize("x.call", name))
        own = any(name in covered(pattern) for pattern in node.patterns)
        if node.exhausted:
            assert code_of(said) == "BUDGET_EXHAUSTED"
        elif own:
            assert said == name
            above: Node | None = node
            while above is not None:
                # What is allowed here is allowed all the way up, and its time has not come anywhere.
                assert any(name in covered(pattern) for pattern in above.patterns)
                assert not self.expired(above)
                above = above.parent
        else:
            assert code_of(said) == "PERMISSION_DENIED"

    async def spend(self, node: Node) -> None:
        currency, amount = self.draw(st.sampled_from((*CURRENCIES, "EUR"))), self.draw(amounts)
        said = await self.stage.tell(node, lambda job: job.metric("cost.work", amount, unit=currency))
        assert said is None
        node.charge(currency, amount)
        # A cost beside a reservation does not come out of it.

    async def reserve(self, node: Node) -> None:
        if node.key in self.reservations:
            return
        wanted = self.draw(st.dictionaries(st.sampled_from(CURRENCIES), amounts, min_size=1, max_size=2))
        hold: Any = None

        async def act(job: arcp_trio.JobContext) -> Any:
            nonlocal hold
            hold = job.reserve(wanted)
            return await hold.__aenter__()

        said = await self.stage.tell(node, act)
        has_any = any(node.payer(currency) is not None for currency in CURRENCIES)
        fits = all((free := node.free(currency)) is not None and free >= amount for currency, amount in wanted.items())
        if has_any and not fits:
            assert code_of(said) == "BUDGET_EXHAUSTED", said
        else:
            assert code_of(said) is None, said
            self.reservations[node.key] = hold
            node.claimed = {currency: amount for currency, amount in wanted.items() if node.payer(currency) is not None}

    async def release(self, node: Node) -> None:
        hold = self.reservations.pop(node.key, None)
        if hold is not None:
            await self.stage.tell(node, lambda job: hold.__aexit__(None, None, None))
            node.claimed = None

    async def finish(self, node: Node) -> None:
        self.stage.told[node.key].close()
        await trio.testing.wait_all_tasks_blocked()
        if node.living:
            node.leaving = True
        else:
            node.end(None)

    async def fail(self, node: Node) -> None:
        async def act(job: arcp_trio.JobContext) -> None:
            raise arcp_trio.InternalError("on purpose")

        self.stage.told[node.key].send_nowait(act)
        await trio.testing.wait_all_tasks_blocked()
        node.end("INTERNAL_ERROR")

    async def cancel(self, node: Node) -> None:
        await self.client.request("job.cancel", {"job_id": node.job_id, "reason": "r"})
        await trio.testing.wait_all_tasks_blocked()
        node.end("CANCELLED")

    async def wait(self, node: Node) -> None:  # whoever it is: time passes for all
        self.clock.jump(self.draw(st.sampled_from([1.0, 29.0, 31.0])))
        await trio.testing.wait_all_tasks_blocked()
        for each in self.nodes:
            if each.alive and self.expired(each):
                each.end("LEASE_EXPIRED")

    # --- what holds at every moment -------------------------------------------------------------

    def check(self) -> None:
        ended = [frame["payload"]["job_id"] for frame in terminals(self.frames)]
        assert len(ended) == len(set(ended)), "a second terminal event"
        assert set(ended) == {node.job_id for node in self.nodes if not node.alive}
        codes = {frame["payload"]["job_id"]: frame["payload"].get("code") for frame in terminals(self.frames)}
        for node in self.nodes:
            if not node.alive:
                assert codes[node.job_id] == node.code, node
                if node.parent is not None and not node.parent.alive:
                    assert ended.index(node.job_id) < ended.index(node.parent.job_id), "a child outlived its parent"
                continue
            actor = self.runtime._directory.find(node.job_id)
            assert isinstance(actor, JobActor)
            assert actor.authority.budget.remaining() == {each: node.remaining(each) for each in node.limits}
            for currency in node.limits:
                assert node.held(currency) <= node.limits[currency], "more was given to children than there was"
        # Who lives has its credential, who has ended has none: no key outlives its job, none is revoked twice.
        assert sorted(self.provisioner.live.values()) == sorted(node.job_id for node in self.nodes if node.alive)
        assert set(self.provisioner.revoked.values()) <= {1}
        for currency in self.nodes[0].limits if self.nodes[0].alive else ():
            self.check_conserved(currency)

    def check_conserved(self, currency: str) -> None:
        """What is left anywhere in the tree and what was spent in it are what there was at first."""
        budgets = [
            actor.authority.budget
            for node in self.nodes
            if node.alive and isinstance(actor := self.runtime._directory.find(node.job_id), JobActor)
        ]
        left = sum(budget.remaining().get(currency, Decimal(0)) for budget in budgets)
        spent = sum(budget.spent().get(currency, Decimal(0)) for budget in budgets)
        assert left + spent == self.nodes[0].limits[currency]


def request_of(lease: list[str], budget: dict[str, Decimal]) -> dict[str, list[str]]:
    request = {"x.call": lease, "agent.delegate": ["*"]}
    if budget:
        request["cost.budget"] = [f"{currency}:{amount}" for currency, amount in budget.items()]
    return request


ACTS: dict[str, Callable[[Play, Node], Awaitable[None]]] = {
    # Some twice: trees should grow before they are felled.
    "delegate": Play.delegate,
    "delegate again": Play.delegate,
    "delegate once more": Play.delegate,
    "operate": Play.operate,
    "operate again": Play.operate,
    "spend": Play.spend,
    "spend again": Play.spend,
    "reserve": Play.reserve,
    "release": Play.release,
    "finish": Play.finish,
    "fail": Play.fail,
    "cancel": Play.cancel,
    "wait": Play.wait,
}


@pytest.mark.requirement("P9.4", "P9.5", "P9.6", "P9.7", "P10.2", "P10.3", "P9.10", "G18", "B05", "B15", "C01", "C03")
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_tree_of_jobs_does_more_than_it_may(data: st.DataObject) -> None:
    clock = trio.testing.MockClock()
    trio.run(Play(data, clock).run, clock=clock)
