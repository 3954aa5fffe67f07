"""Cancel, second cancel, finish, deadline and shutdown at every order and distance: one terminal event.

Each run starts one job whose agent waits, and then lets a permutation of causes happen to it. Between two causes
lies either nothing (both are there before any task runs), one turn of the loop, or a rest. After each run the
same invariants hold, whatever won.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, cast

import pytest
import trio
import trio.testing
from helpers import Frame, RawClient, Script, make_hello, open_raw, terminals

import arcp_trio
from arcp_trio.records import JobRecord
from arcp_trio.transports.engines import EngineName, find_engine
from arcp_trio.transports.memory import MemoryTransport

CAUSES = ("cancel", "cancel again", "finish", "deadline", "shutdown")
GAPS = ("nothing", "one turn", "a rest")


@asynccontextmanager
async def open_raw_websocket(engine: EngineName, runtime: arcp_trio.Runtime) -> AsyncGenerator[RawClient, None]:
    """A raw client over a real WebSocket, on a stream in memory: its clock can be mocked."""
    left, right = trio.testing.memory_stream_pair()
    options: dict[str, Any] = {"receive_bytes": 10**6, "description": "stream in memory"}

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            request = await find_engine(engine).accept_websocket(nursery, left, **options)
            await runtime.serve_transport(await request.accept(), principal="me")
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        runtime.spawn_connection(serve, "websocket")
        connected = await find_engine(engine).connect_websocket(nursery, right, "localhost", "/arcp", **options)
        client = RawClient(cast("MemoryTransport", connected))
        await client.send(make_hello())
        client.session_id = (await client.receive())["session_id"]
        try:
            yield client
        finally:
            with trio.CancelScope(shield=True):
                await client.transport.abort()
            nursery.cancel_scope.cancel()


async def run_race(
    causes: Sequence[str],
    gaps: Sequence[str],
    open_client: Callable[[arcp_trio.Runtime], Any],
    agent: str = "gate",
) -> None:
    script = Script()
    label = (causes, gaps)
    stack = AsyncExitStack()
    runtime: arcp_trio.Runtime
    async with stack:
        runtime = await stack.enter_async_context(
            arcp_trio.open_runtime(script.agents, limits=arcp_trio.Limits(cancel_grace_seconds=3, shutdown_seconds=5))
        )
        client: RawClient = await stack.enter_async_context(open_client(runtime))
        watcher: RawClient = await stack.enter_async_context(open_raw(runtime, principal="other"))
        job_id = await client.submit(agent, None, max_runtime_sec=10)
        await client.settle()
        actor = runtime._directory.find(job_id)
        assert not isinstance(actor, JobRecord)
        assert actor is not None

        async def cancel() -> None:
            await client.request("job.cancel", {"job_id": job_id})

        async def finish() -> None:
            script.gate.set()

        async def deadline() -> None:
            # What the timer's callback does, without waiting for it.
            if actor._deadline is not None and actor._deadline.callback is not None:
                actor._deadline.cancel()
                actor._deadline_passed()

        async with trio.open_nursery() as nursery:

            async def shutdown() -> None:
                nursery.start_soon(runtime.aclose)

            acts: dict[str, Callable[[], Awaitable[None]]] = {
                "cancel": cancel,
                "cancel again": cancel,
                "finish": finish,
                "deadline": deadline,
                "shutdown": shutdown,
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
            # A cancel alone never ends an agent that is stubborn; the grace does.
            await trio.sleep(20)
            assert isinstance(runtime._directory.find(job_id), JobRecord), label
            script.gate.set()
        await client.settle()
        check(client.received, job_id, runtime, label)
        await watcher.settle()
        assert terminals(watcher.received) == [], label


def check(frames: list[Frame], job_id: str, runtime: arcp_trio.Runtime, label: object) -> None:
    """The invariants of one job, on the wire and in the record."""
    ours = {id(frame): frame for frame in frames if frame.get("job_id") == job_id}
    ended = terminals(list(ours.values()), job_id)
    assert len(ended) == 1, (label, ended)
    status = ended[0]["payload"]["final_status"]
    record = runtime._directory.find(job_id)
    assert isinstance(record, JobRecord), label
    assert record.status == status, label
    position = list(ours.values()).index(ended[0])
    before, after = list(ours.values())[:position], list(ours.values())[position + 1 :]
    acks = [frame for frame in before if frame["type"] == "job.cancelled"]
    # An ack comes before CANCELLED, once, and before nothing else.
    assert len(acks) == (1 if status == "cancelled" else 0), (label, status)
    # Behind the terminal stand only answers, and they tell the same status.
    assert {frame["type"] for frame in after} <= {"x-arcp-trio.reply"}, (label, after)
    assert all(frame["payload"]["job_status"] == status for frame in after), (label, after)
    numbered = [frame["event_seq"] for frame in ours.values() if "event_seq" in frame]
    assert numbered == list(range(1, len(numbered) + 1)), label
    statistics = runtime.statistics()
    assert (statistics.jobs_accepted, statistics.terminals_published, statistics.tear_downs) == (1, 1, 1), label
    assert statistics.bugs == 0, label
    assert statistics.jobs_running == 0, label


def races(length: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [
        (causes, gaps)
        for causes in itertools.permutations(CAUSES, length)
        for gaps in itertools.product(GAPS, repeat=length - 1)
        # The two cancels are alike: one order of them is enough.
        if "cancel again" not in causes
        or ("cancel" in causes and causes.index("cancel") < causes.index("cancel again"))
    ]


def run_all(length: int, open_client: Callable[[arcp_trio.Runtime], Any], agent: str, every: int = 1) -> int:
    count = 0
    for causes, gaps in races(length)[::every]:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(partial(run_race, causes, gaps, open_client, agent), clock=clock)
        count += 1
    return count


@pytest.mark.requirement("P7.8", "P7.10", "P7.13", "P7.14", "L01", "L02", "Z10")
@pytest.mark.parametrize("agent", ["gate", "stubborn"])
@pytest.mark.parametrize("length", [2, 3])
def test_every_order_of_two_and_three_causes_embedded(length: int, agent: str) -> None:
    assert run_all(length, open_raw, agent) > 30


@pytest.mark.requirement("P7.8", "P7.13", "P7.14", "L01", "L02")
@pytest.mark.parametrize("length", [4, 5])
def test_orders_of_four_and_five_causes_embedded(length: int) -> None:
    # A fifth of them, evenly: the whole is covered over the two agents and lengths.
    assert run_all(length, open_raw, "gate", every=5 if length == 4 else 23) > 100


@pytest.mark.requirement("P7.8", "P7.13", "P7.14", "L01", "L02")
@pytest.mark.parametrize("agent", ["gate", "stubborn"])
def test_every_order_of_two_causes_over_websocket(engine: EngineName, agent: str) -> None:
    assert run_all(2, partial(open_raw_websocket, engine), agent) > 30


@pytest.mark.requirement("P7.8", "P7.14", "L01")
def test_orders_of_three_causes_over_websocket(engine: EngineName) -> None:
    assert run_all(3, partial(open_raw_websocket, engine), "gate", every=4) > 70


@pytest.mark.requirement("L02", "P7.14")
@pytest.mark.parametrize("cancels", [1, 50])
async def test_a_cancel_storm_against_the_agents_own_end(cancels: int) -> None:
    """Many jobs end by themselves while each is cancelled from many tasks of its client."""
    agents = arcp_trio.Agents()

    @agents.register("nap")
    async def nap(job: arcp_trio.JobContext, turns: int) -> int:
        for _ in range(turns):
            await trio.lowlevel.checkpoint()
        return turns

    async with arcp_trio.open_runtime(agents) as runtime, runtime.open_session(principal="me") as client:
        outcomes: dict[str, list[arcp_trio.CancelOutcome]] = {}

        async def storm(turns: int) -> None:
            job = await client.submit("nap", turns)
            outcomes[job.job_id] = []

            async def cancel() -> None:
                outcomes[job.job_id].append(await job.cancel())

            async with trio.open_nursery() as nursery:
                for _ in range(cancels):
                    nursery.start_soon(cancel)
            await job.wait_ended()
            applied = [outcome for outcome in outcomes[job.job_id] if outcome.applied]
            assert len(applied) == (1 if job.status == "cancelled" else 0)
            assert {outcome.status for outcome in outcomes[job.job_id]} <= {job.status}

        async with trio.open_nursery() as nursery:
            for turns in range(40):
                nursery.start_soon(storm, turns)
        statistics = runtime.statistics()
        assert statistics.terminals_published == statistics.tear_downs == 40
        assert statistics.cancels_acknowledged + statistics.cancels_refused == 40 * cancels
        assert statistics.bugs == 0
    won = {job_id for job_id, found in outcomes.items() if any(outcome.applied for outcome in found)}
    assert 0 < len(won) <= 40
