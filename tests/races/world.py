"""One race: a runtime, a job, those who take part, and what happens to the job all at once.

A job is submitted; its submitter, and another session of the same principal, follow it. Then every cause of the
schedule's case (:mod:`races.causes`) begins in a task of its own, a few checkpoints from now, and the scheduler decides
who is first. When all have acted, whatever still runs is let go, everybody asks once more how the job has ended, and
all leave. What must hold then is in :mod:`races.invariants`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio
import trio.testing
from provisioning.fakes import FakeProvisioner, KeptLedger
from provisioning.running import LEASE, credentials_of
from races.participants import Participant

import arcp_trio
from arcp_trio.records import JobRecord
from arcp_trio.wire.ids import IdFactory
from arcp_trio.wire.timestamps import WallClock, format_timestamp
from benchmarks.verdicts import TERMINAL_STATUSES

if TYPE_CHECKING:
    from races.schedules import Schedule

__all__ = ["EXPIRES_AFTER", "GRACE", "Cause", "Residue", "World", "run_world"]

GRACE = 3
DEADLINE_AFTER = 10
EXPIRES_AFTER = 10
_EPOCH = 1_750_000_000.0
_LONG = 1_000
# No limit but those that are raced plays a part: what else takes long is the clock's jumps.
_LIMITS = arcp_trio.Limits(
    cancel_grace_seconds=GRACE,
    expiry_grace_seconds=1,
    shutdown_seconds=100,
    hello_seconds=_LONG,
    close_seconds=_LONG,
    write_seconds=_LONG,
    revocation_seconds=_LONG,
    resume_seconds=600,
    retention_seconds=600,
)
_SLICES = (0, _LONG)
_LATEST_CAUSE = 12
_LATEST_LINES = 4


@attrs.frozen
class Residue:
    """What a runtime still holds when all have left and every window and retention has passed."""

    sessions: int
    records: int
    timers: int
    connections: int
    tasks: tuple[str, ...]


@attrs.define
class World:
    """What a cause acts on, and what an invariant looks at.

    Attributes:
        causes: Their names.
        chance: Decides what the scheduler does not.
        runtime: The runtime.
        owner: Who submitted the job, and may cancel it.
        other: Another session of the same principal, which follows the job from the start.
        guest: A session that comes when all is over, and asks how the job has ended.
        late: A session that comes meanwhile, if one does.
        job_id: The job.
        credential_ids: Its credentials.
        children: What it has delegated.
        finals: The statuses that something in the case can bring about.
        is_stubborn: Whether the agent refuses to stop.
        left: Whether the other session has left the job.
        was_shut_down: Whether the runtime was shut down.
        statuses: How each job ended, as its record says.
        provisioner: Where the job's credentials come from, if it has any.
        statistics: The runtime's, when all was over.
        residue: What was left.
    """

    causes: tuple[str, ...]
    chance: random.Random
    runtime: arcp_trio.Runtime
    owner: Participant
    other: Participant
    guest: Participant
    provisioner: FakeProvisioner | None = None
    late: Participant | None = None
    job_id: str = ""
    credential_ids: list[str] = attrs.field(factory=list)
    children: list[str] = attrs.field(factory=list)
    finals: set[str] = attrs.field(factory=lambda: {"success"})
    is_stubborn: bool = False
    left: bool = False
    was_shut_down: bool = False
    statuses: dict[str, str] = attrs.field(factory=dict)
    statistics: arcp_trio.RuntimeStatistics | None = None
    residue: Residue | None = None
    _orders: tuple[trio.MemorySendChannel[str], trio.MemoryReceiveChannel[str]] = attrs.field(
        factory=lambda: trio.open_memory_channel[str](100)
    )
    _let_go: trio.Event = attrs.field(factory=trio.Event)

    @property
    def participants(self) -> list[Participant]:
        """All of them."""
        return [each for each in (self.owner, self.other, self.late, self.guest) if each is not None]

    def order(self, what: str) -> None:
        """Tell the agent what to do next: ``return``, ``raise`` or ``delegate``."""
        self._orders[0].send_nowait(what)

    def let_go(self) -> None:
        """Tell every agent to end."""
        self.order("return")
        self._let_go.set()

    def jump_to(self, time: float) -> None:
        """Let the clock jump, unless it is that late already."""
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(max(0.0, time - trio.current_time()))

    # --- the agents -------------------------------------------------------------------------------

    async def race(self, job: arcp_trio.JobContext, value: Any) -> str:
        """Do as told; the agent of the job."""
        with trio.CancelScope(shield=self.is_stubborn):
            await job.log("info", "begun")
            while True:
                order = await self._orders[1].receive()
                for number in range(self.chance.randrange(_LATEST_LINES)):
                    await job.log("info", f"{order} {number}")
                if order == "return":
                    return "done"
                if order == "raise":
                    raise arcp_trio.ARCPError("as told", code="x-told")
                child = await job.delegate("child")
                self.children.append(child.job_id)

    async def be_a_child(self, job: arcp_trio.JobContext, value: Any) -> str:
        """Say something and wait to be let go; the agent of what was delegated."""
        with trio.CancelScope(shield=self.is_stubborn):
            await job.log("info", "a child has begun")
            await self._let_go.wait()
        return "done"

    # --- the race ---------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Submit the job and have it followed."""
        await self.owner.connect()
        await self.other.connect()
        payload: dict[str, Any] = {"agent": "race", "input": None}
        if "deadline" in self.causes:
            payload["max_runtime_sec"] = DEADLINE_AFTER
        if "expiry" in self.causes:
            after = EXPIRES_AFTER + self.chance.choice([-0.5, 0, 0.5])
            payload["lease_constraints"] = {"expires_at": format_timestamp(_EPOCH + after)}
        lease: dict[str, list[str]] = {}
        if "delegate" in self.causes:
            lease["agent.delegate"] = ["*"]
        if self.provisioner is not None:
            lease |= LEASE
        payload["lease_request"] = lease
        accepted = await self.owner.answered(await self.owner.ask("job.submit", payload))
        assert accepted is not None
        assert accepted["type"] == "job.accepted", accepted
        self.job_id = accepted["payload"]["job_id"]
        self.credential_ids = [credential["id"] for credential in credentials_of(accepted)]
        subscribed = await self.other.ask("job.subscribe", {"job_id": self.job_id, "history": True})
        if self.chance.random() < 0.5:
            await self.other.answered(subscribed)
        if self.chance.random() < 0.5:
            await trio.testing.wait_all_tasks_blocked()

    async def act(self, cause: Callable[[World], Awaitable[None]]) -> None:
        """Act, a few checkpoints from now."""
        for _ in range(self.chance.randrange(_LATEST_CAUSE)):
            await trio.lowlevel.checkpoint()
        await cause(self)

    async def end(self) -> None:
        """Have the job ended, if nothing has; ask everybody how; leave."""
        if self.is_stubborn:
            # Its grace ends it, if something stops it at all.
            await trio.sleep(_LIMITS.shutdown_seconds)
        self.let_go()
        await self.runtime.wait_jobs_ended()
        if self.was_shut_down:
            await self.runtime.aclose()
        else:
            await self._ask_once_more()
        await trio.testing.wait_all_tasks_blocked()
        jobs = {job_id: self.runtime._directory.find(job_id) for job_id in (self.job_id, *self.children)}
        self.statuses = {job_id: job.status for job_id, job in jobs.items() if isinstance(job, JobRecord)}
        self.statistics = self.runtime.statistics()
        for participant in self.participants:
            await participant.leave()
        # Long enough for every window to pass, and then every retention.
        await trio.sleep(_LIMITS.retention_seconds + _LIMITS.resume_seconds)
        self.residue = self._look_back()

    async def _ask_once_more(self) -> None:
        if not self.owner.is_connected:
            await self.owner.connect()
        await self.guest.connect()
        asked = [
            (self.owner, await self.owner.ask("job.cancel", {"job_id": self.job_id})),
            (self.owner, await self.owner.ask("session.list_jobs", {"filter": {"status": sorted(TERMINAL_STATUSES)}})),
            (self.other, await self.other.ask("session.list_jobs", {})),
            (self.guest, await self.guest.ask("job.subscribe", {"job_id": self.job_id, "history": True})),
        ]
        for participant, request_id in asked:
            await participant.answered(request_id)

    def _look_back(self) -> Residue:
        runtime = self.runtime
        statistics = runtime.statistics()
        nurseries = (runtime._connection_nursery, runtime._actor_nursery, runtime._agent_nursery)
        # The agents' nursery is the innermost: the task that holds all of them is none of theirs.
        tasks = [task.name for nursery in nurseries for task in nursery.child_tasks]
        return Residue(
            statistics.sessions + statistics.sessions_waiting,
            statistics.jobs_retained,
            statistics.timers,
            statistics.connections,
            tuple(tasks),
        )


Cause = Callable[[World], Awaitable[None]]


async def run_world(
    schedule: Schedule,
    scope: trio.CancelScope,
    *,
    causes: Mapping[str, Cause],
    check: Callable[[World], None],
) -> None:
    """Run one race.

    Args:
        schedule: Its case names the causes, with ``+`` between them.
        scope: Is not entered: nothing is interrupted but by the causes.
        causes: All that there are.
        check: Is called at the end, with the runtime still there.
    """
    names = tuple(schedule.case.split("+"))
    chance = random.Random(schedule.seed)
    agents = arcp_trio.Agents()
    limits = attrs.evolve(_LIMITS, slice_seconds=chance.choice(_SLICES))
    clock = WallClock(lambda: _EPOCH + trio.current_time())
    ids = IdFactory(now_ms=lambda: int(_EPOCH * 1000), random_bits=chance.getrandbits)
    provisioner = FakeProvisioner() if {"rotate", "revoke"} & set(names) else None
    ledger = KeptLedger() if provisioner is not None else None
    with trio.fail_after(100_000):
        async with (
            arcp_trio.open_runtime(
                agents, limits=limits, clock=clock, ids=ids, provisioner=provisioner, ledger=ledger
            ) as runtime,
            trio.open_nursery() as readers,
        ):
            open_participant = partial(Participant, runtime=runtime, nursery=readers)
            owner, other, guest = map(open_participant, ("owner", "other", "guest"))
            world = World(names, chance, runtime, owner, other, guest, provisioner)
            if "subscribe" in names:
                world.late = open_participant("late")
            world.is_stubborn = "grace" in names
            agents.register("race")(world.race)
            agents.register("child")(world.be_a_child)
            await world.begin()
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(world.act, causes[name], name=f"cause {name}")
            await world.end()
            check(world)
            readers.cancel_scope.cancel()
