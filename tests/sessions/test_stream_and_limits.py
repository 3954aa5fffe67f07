"""A session's stream against a model, and what happens to a client that does not read."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing
from helpers import RawClient, Script, connect_raw, open_raw
from hypothesis import given
from hypothesis import strategies as st

import arcp_trio
from arcp_trio.sessions.stream import SessionStream


@pytest.mark.requirement("P8.2", "S02")
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("event"), st.integers(0, 300)),
            st.tuples(st.just("rider"), st.integers(1, 300)),
            st.tuples(st.just("take"), st.integers(1, 1000)),
        ),
        max_size=80,
    )
)
def test_a_stream_against_a_model(steps: list[tuple[str, int]]) -> None:
    stream = SessionStream("sess_01M85F391K8FD3QA6M9FPWSM41")
    waiting: list[tuple[int | None, int]] = []
    told: list[int | None] = []
    number = 0
    for step, size in steps:
        if step == "event":
            number += 1
            tail = b',"payload":{"x":"%b"}}' % (b"x" * size)
            assert stream.append(tail) == number
            waiting.append((number, len(tail)))
        elif step == "rider":
            stream.append_rider(b'{"rider":"%b"}' % (b"x" * size))
            waiting.append((None, len(b'{"rider":""}') + size))
        else:
            frames = [json.loads(frame) for frame in stream.take(size)]
            # At least one if there is one, in order, with no gap.
            assert bool(frames) == bool(waiting)
            for frame in frames:
                assert frame.get("event_seq") == waiting.pop(0)[0]
                told.append(frame.get("event_seq"))
        assert stream.unsent_events == len(waiting)
        assert stream.unsent_bytes == sum(length for _, length in waiting)
    while frames := stream.take(500):
        told += [json.loads(frame).get("event_seq") for frame in frames]
    numbered = [seq for seq in told if seq is not None]
    assert numbered == list(range(1, number + 1))


async def read_on(client: RawClient) -> tuple[list[dict[str, Any]], int]:
    closed = await client.receive_close()
    return client.received, closed.code


@pytest.mark.requirement("P6.17", "P6.18", "H13", "Q12")
async def test_a_client_that_never_reads_hurts_itself_alone(autojump_clock: trio.testing.MockClock) -> None:
    """Its agent waits for it once, for a bounded time; then it is closed with 4001, and the job goes on."""
    agents = arcp_trio.Agents()
    waited: list[float] = []

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, count: int) -> int:
        for _ in range(count):
            before = trio.current_time()
            await job.log("info", "x" * 1000)
            if trio.current_time() > before:
                waited.append(trio.current_time() - before)
        return count

    @agents.register("echo")
    async def echo(job: arcp_trio.JobContext, value: Any) -> Any:
        return value

    limits = arcp_trio.Limits(throttle_events=500, throttle_seconds=5, unsent_events=2000)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime:
        sleeper = await connect_raw(runtime)
        await sleeper.request("job.submit", {"agent": "flood", "input": 20_000})
        async with runtime.open_session(principal="other") as other:
            for number in range(50):
                assert await (await other.submit("echo", number)).result() == number
            await runtime._directory.wait_idle()
        assert waited == [pytest.approx(5)]
        statistics = runtime.statistics()
        assert (statistics.jobs_running, statistics.terminals_published, statistics.bugs) == (0, 51, 0)
        frames, code = await read_on(sleeper)
        # The writer was in the middle of a write: only what was between whole frames can have come.
        assert code in (4001, 1006)
        numbers = [frame["event_seq"] for frame in frames if "event_seq" in frame]
        assert numbers == list(range(1, len(numbers) + 1))
        assert runtime.statistics().sessions == 0


@pytest.mark.requirement("P6.18", "P4.5")
async def test_a_client_that_reads_again_in_time_is_told_why(autojump_clock: trio.testing.MockClock) -> None:
    agents = arcp_trio.Agents()

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, count: int) -> int:
        for _ in range(count):
            await job.log("info", "x" * 1000)
        return count

    limits = arcp_trio.Limits(throttle_events=500, throttle_seconds=1, unsent_events=1000, close_seconds=30)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime:
        client = await connect_raw(runtime)
        await client.request("job.submit", {"agent": "flood", "input": 5000})
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.statistics().jobs_running == 1
        await runtime._directory.wait_idle()
        frames, code = await read_on(client)
        assert code == 4001
        last = frames[-1]
        assert (last["type"], last["payload"]["code"]) == ("session.error", "INTERNAL_ERROR")
        assert last["payload"]["details"] == {"limit": "unsent_events"}
        assert last["payload"]["retryable"] is True


async def test_an_agent_waits_only_while_its_client_lags(autojump_clock: trio.testing.MockClock) -> None:
    """A client that reads slowly gets everything: each episode of lag has its own time."""
    agents = arcp_trio.Agents()

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, count: int) -> int:
        for _ in range(count):
            await job.log("info", "x" * 1000)
        return count

    limits = arcp_trio.Limits(throttle_events=200, throttle_seconds=5, unsent_events=1000)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime, open_raw(runtime) as client:
        await client.request("job.submit", {"agent": "flood", "input": 5000})
        count = 0
        while True:
            frame = await client.receive()
            count += "event_seq" in frame
            if count % 250 == 0:
                await trio.sleep(1)
            if frame["type"] == "job.result":
                break
        assert count == 5001


async def test_a_client_that_asks_and_never_reads(autojump_clock: trio.testing.MockClock, script: Script) -> None:
    limits = arcp_trio.Limits(replies=50)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        client = await connect_raw(runtime)
        closed = False
        for number in range(20_000):
            try:
                await client.request("session.ping", {"nonce": f"{number} " + "x" * 200})
            except arcp_trio.transports.base.TransportClosedError:
                closed = True
                break
        assert closed
        _, code = await read_on(client)
        assert code in (1008, 1006)
        assert runtime.statistics().sessions == 0


@pytest.mark.requirement("P6.3", "H16")
async def test_the_cap_on_a_principals_sessions(script: Script) -> None:
    limits = arcp_trio.Limits(sessions_per_principal=2)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        async with open_raw(runtime), open_raw(runtime), open_raw(runtime, principal="other"):
            with pytest.raises(arcp_trio.InternalError) as caught:
                async with runtime.open_session(principal="me"):
                    raise AssertionError
            assert caught.value.retryable
            assert caught.value.details == {"limit": "sessions_per_principal", "value": 2}
        await trio.testing.wait_all_tasks_blocked()
        async with runtime.open_session(principal="me"):
            pass
