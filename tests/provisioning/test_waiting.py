"""A submit that waits for its credentials: in its session's order, whatever becomes of the connection."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, RawClient, connect_raw, make_hello, open_raw, terminals
from provisioning.fakes import CANARY, deaf, failing, waiting
from provisioning.running import Bench, credentials_of, open_bench
from sessions.resuming import drop, resume

import arcp_trio
from arcp_trio import LedgerState, ProvisioningError
from arcp_trio.transports.memory import MemoryTransport, open_memory_pair
from arcp_trio.wire.timestamps import WallClock, format_timestamp


def answers(frames: list[Frame]) -> list[tuple[str, str]]:
    """Return what was answered, in order: the type and the request."""
    return [
        (frame["type"], frame["payload"]["request_id"])
        for frame in frames
        if frame["type"] in ("job.accepted", "session.error")
    ]


async def ask(client: RawClient, agent: str = "sleep", **payload: Any) -> str:
    return await client.request("job.submit", {"agent": agent, "input": 1, **payload})


@pytest.mark.requirement("P7.6", "P7.2")
async def test_the_answers_of_a_session_keep_their_order() -> None:
    gates = [trio.Event(), trio.Event()]
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        submits = []
        for gate in gates:
            bench.provisioner.before["issue"] = waiting(gate)
            submits.append(await ask(client))
            await trio.testing.wait_all_tasks_blocked()
        first, second = submits
        bad, unknown = await ask(client, max_runtime_sec=-1), await ask(client, agent="nobody")
        assert answers(await client.settle()) == []
        assert runtime.statistics().submits_waiting == 2
        # What is no submit does not wait.
        await client.request("session.ping", {"nonce": "n"})
        await client.receive_until("session.pong")
        gates[1].set()
        assert answers(await client.settle()) == []
        gates[0].set()
        assert answers(await client.settle()) == [
            ("job.accepted", first),
            ("job.accepted", second),
            ("session.error", bad),
            ("session.error", unknown),
        ]
        # Nothing waits any more: what is refused now is refused at once.
        last = await ask(client, agent="nobody")
        assert answers(await client.settle()) == [("session.error", last)]


@pytest.mark.requirement("P7.6")
async def test_the_answers_of_another_session_do_not_wait() -> None:
    gate = trio.Event()
    async with open_bench() as (bench, runtime), open_raw(runtime) as client, open_raw(runtime) as other:
        bench.provisioner.before["issue"] = waiting(gate)
        await ask(client)
        await trio.testing.wait_all_tasks_blocked()
        bench.provisioner.before.clear()
        await other.submit("sleep")
        assert client.received[-1]["type"] == "session.welcome"


@pytest.mark.requirement("P7.6", "P5.5")
async def test_malformed_submits_behind_one_that_waits_still_close_the_connection() -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        bench.provisioner.before["issue"] = waiting(trio.Event())
        await ask(client)
        for _ in range(8):
            await client.request("job.submit", {"agent": 5})
        assert (await client.receive_close()).code == 1008


async def test_so_many_may_wait() -> None:
    async with open_bench(waiting_submits=2) as (bench, runtime), open_raw(runtime) as client:
        gate = trio.Event()
        bench.provisioner.before["issue"] = waiting(gate)
        first, second, third = [await ask(client) for _ in range(3)]
        (refused,) = await client.settle()
        assert answers([refused]) == [("session.error", third)]
        assert refused["payload"]["details"] == {"limit": "waiting_submits", "value": 2}
        assert refused["payload"]["retryable"] is True
        gate.set()
        assert answers(await client.settle()) == [("job.accepted", first), ("job.accepted", second)]


@pytest.mark.requirement("P6.3", "P7.6")
async def test_what_waits_counts_in_the_caps() -> None:
    async with open_bench(jobs_per_principal=2) as (bench, runtime), open_raw(runtime) as client:
        gate = trio.Event()
        bench.provisioner.before["issue"] = waiting(gate)
        first, second, third = [await ask(client) for _ in range(3)]
        assert await client.settle() == []
        gate.set()
        frames = await client.settle()
        assert answers(frames) == [("job.accepted", first), ("job.accepted", second), ("session.error", third)]
        refused = next(frame for frame in frames if frame["type"] == "session.error")
        assert refused["payload"]["details"]["limit"] == "jobs_per_principal"
        assert runtime.statistics().jobs_running == 2


@pytest.mark.requirement("P7.6", "P6.9", "P6.12")
async def test_a_broken_connection_does_not_end_a_submit() -> None:
    gate = trio.Event()
    async with open_bench() as (bench, runtime):
        bench.provisioner.before["issue"] = waiting(gate)
        client = await connect_raw(runtime)
        request_id = await ask(client, "gate")
        await trio.testing.wait_all_tasks_blocked()
        await drop(client)
        # There is no job, no subscription and no event: what it waits for keeps the session.
        assert runtime.statistics().sessions_waiting == 1
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.statistics().jobs_running == 1
        again = await resume(runtime, client, 0)
        frames = await again.settle()
        assert answers(frames) == [("job.accepted", request_id)]
        assert credentials_of(frames[0])
        bench.script.gate.set()
        await again.receive_until("job.result")
        assert bench.is_clean


@pytest.mark.requirement("P7.6", "P6.9")
@pytest.mark.parametrize("ends", ["accepted", "refused"])
async def test_the_end_of_a_replay_is_said_behind_what_still_waits(ends: str) -> None:
    """Our client gives up on a submit that has no answer by then."""
    gate = trio.Event()
    async with open_bench() as (bench, runtime):
        bench.provisioner.before["issue"] = waiting(gate)
        client = await connect_raw(runtime)
        request_id = await ask(client)
        await client.settle()
        await drop(client)
        again = await resume(runtime, client, 0)
        assert await again.settle() == []
        if ends == "refused":
            bench.provisioner.after["issue"] = failing(ProvisioningError("503"))
        gate.set()
        frames = await again.settle()
        said = "job.accepted" if ends == "accepted" else "session.error"
        assert [frame["type"] for frame in frames if frame["type"] != "job.event"] == [said, "x-arcp-trio.replayed"]
        assert answers(frames) == [(said, request_id)]


@asynccontextmanager
async def _connect(runtime: arcp_trio.Runtime, transports: list[MemoryTransport]) -> AsyncGenerator[MemoryTransport]:
    theirs, ours = open_memory_pair()
    runtime.spawn_connection(partial(runtime.serve_transport, theirs, principal="me"), "a connection")
    transports.append(ours)
    yield ours


@pytest.mark.requirement("P7.6", "K02")
async def test_our_client_gets_its_job_over_the_next_connection(autojump_clock: trio.testing.MockClock) -> None:
    gate = trio.Event()
    bench = Bench()
    async with bench.open() as runtime, trio.open_nursery() as nursery:
        bench.provisioner.before["issue"] = waiting(gate)
        transports: list[MemoryTransport] = []
        connect = partial(_connect, runtime, transports)
        async with connect() as first, arcp_trio.open_client_over(first, token="t", connect=connect) as client:
            handles: list[arcp_trio.JobHandle] = []

            async def submit() -> None:
                handles.append(await client.submit("gate"))

            nursery.start_soon(submit)
            await trio.testing.wait_all_tasks_blocked()
            await transports[0].abort()
            # Longer than the client waits before it connects again.
            await trio.sleep(1)
            assert len(transports) == 2
            assert handles == []
            gate.set()
            await trio.testing.wait_all_tasks_blocked()
            (handle,) = handles
            assert len(handle.credentials) == 1
            bench.script.gate.set()
            assert await handle.result() == "through"
            assert handle.credentials == ()


@pytest.mark.requirement("P5.7", "C07")
async def test_a_submit_that_comes_again_while_it_waits_is_one_submit() -> None:
    gate = trio.Event()
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        bench.provisioner.before["issue"] = waiting(gate)
        frame = client.make("job.submit", {"agent": "gate", "input": 1})
        await client.send(frame, frame)
        assert await client.settle() == []
        gate.set()
        frames = await client.settle()
        assert answers(frames) == [("job.accepted", frame["id"])]
        # And once it is answered, it is answered again, with what is live by then.
        await client.send(frame)
        (again,) = await client.settle()
        assert credentials_of(again) == credentials_of(frames[0]) != []
        bench.script.gate.set()
        await client.receive_until("job.result")
        await client.send(frame)
        (again,) = await client.settle()
        assert (again["type"], "credentials" in again["payload"]) == ("job.accepted", False)
        assert len(bench.provisioner.calls_of("issue")) == 1


@pytest.mark.requirement("P7.15", "P9.10")
async def test_a_cancel_on_reading_the_acceptance() -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        await client.request("job.cancel", {"job_id": job_id})
        frames = await client.settle()
        assert [frame["payload"].get("code") for frame in terminals(frames)] == ["CANCELLED"]
        assert bench.is_clean


@pytest.mark.requirement("L08", "P9.6", "P9.10")
async def test_a_lease_that_expires_while_its_job_waits(autojump_clock: trio.testing.MockClock) -> None:
    clock = WallClock(lambda: 1_000_000 + trio.current_time())
    async with open_bench(clock=clock, submit_seconds=60) as (bench, runtime), open_raw(runtime) as client:

        async def take_long(job_id: str) -> None:
            await trio.sleep(10)

        bench.provisioner.before["issue"] = take_long
        expires_at = format_timestamp(1_000_000 + trio.current_time() + 5)
        await ask(client, "gate", lease_constraints={"expires_at": expires_at})
        end = await client.receive_until("job.error")
        assert end["payload"]["code"] == "LEASE_EXPIRED"
        assert bench.script.entered == 0
        assert bench.is_clean


@pytest.mark.requirement("T16", "C13", "P9.10")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_shutdown_refuses_what_waits(when: str, autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    getattr(bench.provisioner, when)["issue"] = waiting(trio.Event())
    async with bench.open(shutdown_seconds=10) as runtime:
        client = await connect_raw(runtime)
        request_id = await ask(client)
        await client.settle()
        began = trio.current_time()
        await runtime.aclose()
        assert trio.current_time() - began < 1
        frames = await client.settle()
        assert answers(frames) == [("session.error", request_id)]
        assert frames[0]["payload"]["message"] == "the runtime is shutting down"
        assert runtime.statistics().jobs_accepted == 0
    # What may have been minted is known to the ledger, and to the next start.
    left = await bench.ledger.outstanding()
    if bench.provisioner.live:
        assert [entry.state for entry in left] == [LedgerState.INTENDED]
    async with bench.open():
        assert bench.provisioner.live == {}
        assert await bench.ledger.outstanding() == []


@pytest.mark.requirement("T16", "C13", "P9.10")
async def test_a_shutdown_refuses_what_is_ready_and_waits_for_its_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    async with bench.open(shutdown_seconds=10) as runtime:
        client = await connect_raw(runtime)
        bench.provisioner.before["issue"] = waiting(trio.Event())
        first = await ask(client)
        await client.settle()
        bench.provisioner.before.clear()
        second = await ask(client)
        await client.settle()
        assert len(bench.provisioner.live) == 1
        await runtime.aclose()
        frames = await client.settle()
        assert answers(frames) == [("session.error", first), ("session.error", second)]
        # Nobody has them, and nobody will.
        assert runtime.statistics().credentials_live == 0
        assert LedgerState.ISSUED in {entry.state for entry in runtime.unrevoked_credentials()}
    async with bench.open():
        assert bench.is_clean


@pytest.mark.requirement("T16", "P7.6")
async def test_a_shutdown_waits_for_what_takes_its_time_to_give_up(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    async with bench.open(shutdown_seconds=10) as runtime:
        client = await connect_raw(runtime)
        await client.submit("sleep")
        bench.provisioner.before["issue"] = deaf(2)
        request_id = await ask(client)
        await trio.sleep(1)
        await runtime.aclose()
        assert ("session.error", request_id) in answers(await client.settle())


@pytest.mark.requirement("P7.6", "P7.2")
async def test_a_submit_that_needs_nothing_is_answered_behind_one_that_waits() -> None:
    gate = trio.Event()
    async with open_bench() as (_, runtime), open_raw(runtime, hello=make_hello(features=[])) as client:
        session = runtime._sessions.find(str(client.session_id))
        assert session is not None
        said: list[str] = []
        runtime._admissions.admit(
            session.submits,
            "me",
            prepare=gate.wait,
            accept=lambda _: said.append(str(runtime.statistics().jobs_accepted)),
            refuse=lambda _: None,
        )
        request_id = await ask(client)
        assert await client.settle() == []
        assert runtime.statistics().submits_waiting == 2
        gate.set()
        assert answers(await client.settle()) == [("job.accepted", request_id)]
        assert said == ["0"]


async def test_a_job_of_a_session_that_has_gone_runs_all_the_same(autojump_clock: trio.testing.MockClock) -> None:
    """It belongs to the runtime; nobody is told, and its credentials end with it."""
    gate = trio.Event()
    async with open_bench(resume_seconds=1, submit_seconds=100) as (bench, runtime):
        bench.provisioner.before["issue"] = waiting(gate)
        client = await connect_raw(runtime)
        await ask(client, "gate")
        await client.settle()
        await drop(client)
        await trio.sleep(2)
        assert runtime.statistics().sessions_waiting == 0
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.statistics().jobs_running == 1
        bench.script.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.statistics().terminals_published == 1
        assert bench.is_clean


@pytest.mark.requirement("X4", "P12.2")
@pytest.mark.parametrize("compat", ["typescript", "java"])
async def test_a_late_refusal_in_the_form_of_a_dialect(compat: str) -> None:
    gate = trio.Event()
    async with open_bench() as (bench, runtime):
        bench.provisioner.before["issue"] = waiting(gate)
        bench.provisioner.after["issue"] = failing(ValueError(CANARY))
        client = await connect_raw(runtime, compat=compat, hello=make_hello())
        request_id = await ask(client)
        gate.set()
        (refused,) = await client.settle()
        assert refused["type"] == "job.error"
        assert refused["payload"]["code"] == "INTERNAL_ERROR"
        assert (refused["id"] == request_id) is (compat == "java")
        assert ("event_seq" in refused) is (compat == "typescript")
