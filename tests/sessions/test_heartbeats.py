"""Signs of life, and what ends without them: a connection, and nothing else (P6.13, P6.14)."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from helpers import ALL_FEATURES, RawClient, Script, connect_raw, make_hello, terminals
from sessions.resuming import resume_hello, sequence

import arcp_trio
from arcp_trio.timers import Timers
from arcp_trio.transports.heartbeat import Heartbeat


async def connect(runtime: arcp_trio.Runtime) -> RawClient:
    return await connect_raw(runtime, hello=make_hello(features=ALL_FEATURES))


def pings(client: RawClient) -> list[dict[str, Any]]:
    return [frame for frame in client.received if frame["type"] == "session.ping"]


@pytest.mark.requirement("P6.13", "P6.6", "H05", "H06")
async def test_an_idle_peer_is_asked_once_an_interval(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents, limits=arcp_trio.Limits(heartbeat_seconds=10)) as runtime:
        client = await connect(runtime)
        assert client.received[0]["payload"]["heartbeat_interval_sec"] == 10
        await client.submit("gate")
        started = trio.current_time()
        for number in range(1, 6):
            ping = await client.receive_until("session.ping")
            assert trio.current_time() - started == pytest.approx(10 * number)
            assert "event_seq" not in ping
            assert ping["payload"]["sent_at"].endswith("Z")
            await client.request("session.pong", {"ping_nonce": ping["payload"]["nonce"]})
        nonces = [ping["payload"]["nonce"] for ping in pings(client)]
        assert len(set(nonces)) == 5
        # Pings take no numbers and are not sent again.
        script.gate.set()
        await client.receive_until("job.result")
        assert sequence(client.received) == [1, 2]
        await client.transport.abort()
        await trio.testing.wait_all_tasks_blocked()
        hello = resume_hello(client, 0)
        hello["payload"]["capabilities"]["features"] = ALL_FEATURES
        resumed = await connect_raw(runtime, hello=hello)
        frames = await resumed.settle()
        assert [frame["type"] for frame in frames if frame["type"] == "session.ping"] == []


@pytest.mark.requirement("P6.13", "H02")
async def test_any_message_is_a_sign_of_life(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents, limits=arcp_trio.Limits(heartbeat_seconds=10)) as runtime:
        client = await connect(runtime)
        for _ in range(20):
            await trio.sleep(9)
            await client.request("x-vendor.anything")
        assert runtime.statistics().connections == 1
        # It was never silent, but we were: it watches us as we watch it, and hears from us once an interval.
        await client.settle()
        assert 17 <= len(pings(client)) <= 18


@pytest.mark.requirement("P6.13")
async def test_who_talks_all_the_time_and_hears_nothing_is_asked(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    """Idleness is measured for each direction apart: events alone are no sign that the client lives."""
    agents = arcp_trio.Agents()

    @agents.register("tick")
    async def tick(job: arcp_trio.JobContext, value: Any) -> None:
        while True:
            await job.log("info", "tick")
            await trio.sleep(1)

    async with arcp_trio.open_runtime(agents, limits=arcp_trio.Limits(heartbeat_seconds=10)) as runtime:
        client = await connect(runtime)
        await client.submit("tick")
        await client.receive_until("session.ping")
        assert (await client.receive_close()).code == 4002
        assert trio.current_time() == pytest.approx(20)
        assert len(pings(client)) == 1


@pytest.mark.requirement("P6.14", "P4.5", "H03", "H04", "H05")
async def test_a_silent_peer_loses_its_connection_and_nothing_else(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents, limits=arcp_trio.Limits(heartbeat_seconds=10)) as runtime:
        client = await connect(runtime)
        job_id = await client.submit("gate")
        closed = await client.receive_close()
        assert trio.current_time() == pytest.approx(20)
        assert closed.code == 4002
        last = client.received[-1]
        assert (last["type"], last["payload"]["code"]) == ("session.error", "HEARTBEAT_LOST")
        assert last["payload"]["retryable"] is True
        await trio.testing.wait_all_tasks_blocked()
        statistics = runtime.statistics()
        assert (statistics.jobs_running, statistics.connections, statistics.sessions_waiting) == (1, 0, 1)
        hello = resume_hello(client, 1)
        hello["payload"]["capabilities"]["features"] = ALL_FEATURES
        resumed = await connect_raw(runtime, hello=hello)
        script.gate.set()
        frames = await resumed.settle()
        assert len(terminals(frames, job_id)) == 1


@pytest.mark.requirement("P6.14", "H09", "H14")
async def test_a_write_that_is_stuck_does_not_hide_the_loss(autojump_clock: trio.testing.MockClock) -> None:
    agents = arcp_trio.Agents()

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, value: Any) -> None:
        for _ in range(500):
            await job.log("info", "x" * 1000)
        await trio.sleep_forever()

    limits = arcp_trio.Limits(heartbeat_seconds=10, write_seconds=1000, close_seconds=3)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime:
        client = await connect(runtime)
        await client.request("job.submit", {"agent": "flood"})
        # It never reads: the buffer between the two is full, and the writer waits in the middle of a write.
        await trio.sleep(19)
        assert runtime.statistics().connections == 1
        await trio.sleep(2)
        assert runtime.statistics().sessions_waiting == 1
        await trio.sleep(3)
        assert (runtime.statistics().connections, runtime.statistics().jobs_running) == (0, 1)
        # With no further byte: what the client still reads is whole frames.
        closed = await client.receive_close()
        assert closed.code in (4002, 1006)
        numbers = sequence(client.received)
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.requirement("P6.13", "P6.4")
async def test_without_the_feature_nobody_is_asked_and_who_asks_is_answered(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        assert "heartbeat_interval_sec" not in client.received[0]["payload"]
        await trio.sleep(10_000)
        await client.request("session.ping", {"nonce": "n"})
        frames = await client.settle()
        assert [frame["type"] for frame in frames] == ["session.pong"]


@pytest.mark.requirement("H07")
def test_an_interval_that_would_spin_is_refused() -> None:
    for seconds in (0, -1, 0.01, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="heartbeat_seconds"):
            arcp_trio.Limits(heartbeat_seconds=seconds)


@pytest.mark.requirement("P6.13", "P6.14", "M03")
async def test_one_deadline_for_each_connection(autojump_clock: trio.testing.MockClock) -> None:
    timers = Timers()
    calls: list[tuple[str, float]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        heartbeat = Heartbeat(
            timers,
            10,
            ping=lambda: calls.append(("ping", trio.current_time())),
            lost=lambda: calls.append(("lost", trio.current_time())),
        )
        heartbeat.stop()
        heartbeat.start()
        for _ in range(1000):
            heartbeat.received()
            heartbeat.sent()
            assert len(timers) == 1
        await trio.sleep(25)
        assert calls == [("ping", 10), ("lost", 20)]
        assert len(timers) == 0
        heartbeat.start()
        heartbeat.stop()
        await trio.sleep(100)
        assert len(calls) == 2
        nursery.cancel_scope.cancel()


@pytest.mark.requirement("P6.11", "P6.14")
async def test_the_heartbeat_of_a_connection_that_was_replaced_ends_with_it(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents, limits=arcp_trio.Limits(heartbeat_seconds=10)) as runtime:
        old = await connect(runtime)
        await old.submit("gate")
        hello = resume_hello(old, 1)
        hello["payload"]["capabilities"]["features"] = ALL_FEATURES
        await trio.sleep(5)
        new = await connect_raw(runtime, hello=hello)
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.statistics().timers == 1
        for _ in range(10):
            await trio.sleep(9)
            await new.request("session.ping", {"nonce": "n"})
        assert runtime.statistics().sessions == 1
