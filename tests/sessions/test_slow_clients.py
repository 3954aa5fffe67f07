"""What happens to a client that does not read, and the caps on sessions."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from helpers import RawClient, Script, connect_raw, open_raw

import arcp_trio


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

    limits = arcp_trio.Limits(lag_events=500, throttle_seconds=5, window_events=4000)
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
@pytest.mark.parametrize(("limit", "value"), [("window_events", 2000), ("window_bytes", 3_000_000)])
async def test_a_client_that_reads_again_in_time_is_told_why(
    limit: str, value: int, autojump_clock: trio.testing.MockClock
) -> None:
    agents = arcp_trio.Agents()

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, count: int) -> int:
        for _ in range(count):
            await job.log("info", "x" * 1000)
        return count

    bounds: dict[str, Any] = {"lag_events": 500, "throttle_seconds": 1, "close_seconds": 30, limit: value}
    async with arcp_trio.open_runtime(agents, limits=arcp_trio.Limits(**bounds)) as runtime:
        client = await connect_raw(runtime)
        await client.request("job.submit", {"agent": "flood", "input": 5000})
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.statistics().jobs_running == 1
        await runtime._directory.wait_idle()
        frames, code = await read_on(client)
        assert code == 4001
        last = frames[-1]
        assert (last["type"], last["payload"]["code"]) == ("session.error", "INTERNAL_ERROR")
        assert last["payload"]["details"] == {"limit": limit, "resumable_from": 0}
        assert last["payload"]["retryable"] is True


async def test_an_agent_waits_only_while_its_client_lags(autojump_clock: trio.testing.MockClock) -> None:
    """A client that reads slowly gets everything: each episode of lag has its own time."""
    agents = arcp_trio.Agents()

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, count: int) -> int:
        for _ in range(count):
            await job.log("info", "x" * 1000)
        return count

    limits = arcp_trio.Limits(lag_events=200, throttle_seconds=5, window_events=2000)
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
        notices = [
            frame for frame in client.received if frame["payload"].get("body", {}).get("phase") == "back_pressure"
        ]
        assert notices
        assert count == 5001 + len(notices)


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


@pytest.mark.requirement("P6.17", "H11")
async def test_who_lags_is_told_once_an_episode(autojump_clock: trio.testing.MockClock) -> None:
    agents = arcp_trio.Agents()
    go_on = [trio.Event() for _ in range(3)]

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, count: int) -> None:
        for event in go_on:
            await event.wait()
            for _ in range(count):
                await job.log("info", "x" * 1000)

    # The agent does not wait: each of its bursts is one lag, and is read before the next. It yields after each event:
    # one that said more than a lag in its slice would begin one that what is between the two ends could still take.
    limits = arcp_trio.Limits(lag_events=200, throttle_seconds=0, slice_seconds=0)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime:
        client = await connect_raw(runtime)
        job_id = await client.submit("flood", 1000)
        observer = await connect_raw(runtime)
        await observer.request("job.subscribe", {"job_id": job_id, "history": False})
        for event in go_on:
            event.set()
            await trio.testing.wait_all_tasks_blocked()
            await client.settle()
        notices = [
            (position, frame)
            for position, frame in enumerate(frame for frame in client.received if "event_seq" in frame)
            if frame["payload"].get("body", {}).get("phase") == "back_pressure"
        ]
        assert len(notices) == 3
        for _, frame in notices:
            assert frame["job_id"] == job_id
            # For this session alone: it has no number among the job's own events.
            assert "extensions" not in frame
            assert "wait to be read" in frame["payload"]["body"]["message"]
        numbers = [frame["event_seq"] for frame in client.received if "event_seq" in frame]
        assert numbers == list(range(1, len(numbers) + 1))
        # The other one, who never read, was told once, and got none of the notices of this one.
        await observer.receive_until(lambda frame: frame["payload"].get("body", {}).get("phase") == "back_pressure")


class DeafConnection:
    """Takes nothing that its session has."""

    def wake(self) -> None:
        pass

    def too_slow(self, limit: str, resumable_from: int) -> None:
        raise AssertionError

    def replaced(self) -> None:
        pass


@pytest.mark.requirement("P6.17")
@pytest.mark.parametrize(("count", "notices"), [(9, 0), (10, 0), (11, 1), (30, 1)])
async def test_a_notice_is_about_a_job_that_still_runs(count: int, notices: int) -> None:
    """Where the terminal event itself crosses the threshold, nobody is told: nothing of a job comes behind its end."""
    agents = arcp_trio.Agents()
    begin = trio.Event()

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, value: Any) -> None:
        await begin.wait()
        for _ in range(count):
            await job.log("info", "x")

    # The agent does not wait, so that nothing but the count matters.
    limits = arcp_trio.Limits(lag_events=10, throttle_seconds=0)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime:
        client = await connect_raw(runtime)
        await client.submit("flood")
        (session,) = runtime._sessions._sessions.values()
        session.attach(DeafConnection())
        begin.set()
        await runtime._directory.wait_idle()
        waiting = b"".join(content for _, content, _ in session.stream._unsent)
        assert waiting.count(b'"phase":"back_pressure"') == notices
        assert waiting.count(b'"type":"job.result"') == 1
        assert session.stream.unsent_events == count + 1 + notices


@pytest.mark.requirement("P6.17", "P6.18", "Q12", "H13", "H14")
async def test_one_subscriber_that_never_reads_among_many_that_do(autojump_clock: trio.testing.MockClock) -> None:
    """The job is never held up, the others miss nothing, and what is kept for the sleeper has its bound."""
    agents = arcp_trio.Agents()
    begin = trio.Event()
    times: list[float] = []

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, count: int) -> int:
        await begin.wait()
        for number in range(count):
            await job.log("info", f"{number} " + "x" * 500)
            times.append(trio.current_time())
        return count

    count = 4000
    limits = arcp_trio.Limits(window_events=2000, window_bytes=1024 * 1024)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime, trio.open_nursery() as nursery:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("flood", count)
        readers = [await connect_raw(runtime) for _ in range(20)]
        sleeper = await connect_raw(runtime)
        for client in (*readers, sleeper):
            await client.request("job.subscribe", {"job_id": job_id})
            await trio.testing.wait_all_tasks_blocked()
        for client in (*readers, owner):
            nursery.start_soon(client.receive_until, "job.result")
        (session,) = [each for each in runtime._sessions._sessions.values() if each.session_id == sleeper.session_id]
        begin.set()
        await runtime._directory.wait_idle()
        # The mock clock stood still: the agent waited for nobody.
        assert times[-1] == times[0]
        assert session.stream.kept_bytes <= limits.window_bytes
        closed = await sleeper.receive_close()
        assert closed.code in (4001, 1006)
        await trio.testing.wait_all_tasks_blocked()
        for client in (*readers, owner):
            said = [
                int(frame["payload"]["body"]["message"].split()[0])
                for frame in client.received
                if frame["type"] == "job.event" and frame["payload"]["kind"] == "log"
            ]
            assert said == list(range(count))


@pytest.mark.requirement("P6.21")
async def test_a_flood_does_not_put_a_close_off(autojump_clock: trio.testing.MockClock) -> None:
    agents = arcp_trio.Agents()

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, value: Any) -> None:
        while True:
            await job.log("info", "x" * 1000)

    async with arcp_trio.open_runtime(agents, limits=arcp_trio.Limits(slice_seconds=0.0001)) as runtime:
        client = await connect_raw(runtime)
        await client.submit("flood")
        await client.request("session.close")
        assert (await client.receive_close()).code == 1000
        assert client.received[-1]["type"] == "session.closed"
        assert trio.current_time() == 0
        assert runtime.statistics().jobs_running == 1


@pytest.mark.requirement("P6.16", "P14.4", "H13")
async def test_who_has_most_makes_room_for_the_others(script: Script) -> None:
    """However many sessions a principal fills, and never acks, it alone pays for them."""
    limits = arcp_trio.Limits(windows_bytes=250_000)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        sessions = runtime._sessions._sessions
        client = await connect_raw(runtime)
        await client.submit("flood", 100)
        await client.receive_until("job.result")
        mine = sessions[client.session_id or ""]
        waiting = await connect_raw(runtime)
        await waiting.submit("flood", 10)
        await waiting.settle()
        await waiting.transport.abort()
        others = [await connect_raw(runtime, principal="somebody") for _ in range(4)]
        for other in others * 2:
            await other.submit("flood", 100)
            await other.receive_until("job.result")
            assert mine._parts.total.used <= limits.windows_bytes
        # All is full of theirs: what comes now is mine.
        await client.submit("flood", 100)
        await client.receive_until("job.result")
        assert mine._parts.total.used <= limits.windows_bytes
        # Nothing of mine has gone, and of theirs no more than what they had read.
        assert (mine.stream.floor, mine.stream.kept_events) == (0, 202)
        assert sessions[waiting.session_id or ""].stream.kept_events == 11
        assert any(sessions[other.session_id or ""].stream.floor for other in others)
        assert runtime.statistics().connections == 5


@pytest.mark.requirement("P6.18", "P14.4")
async def test_who_has_most_unread_is_closed_and_then_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    agents = arcp_trio.Agents()

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, count: int) -> None:
        for _ in range(count):
            await job.log("info", "x" * 1000)

    limits = arcp_trio.Limits(windows_bytes=1_000_000, throttle_seconds=0)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime:
        client = await connect_raw(runtime)
        sleepers = [await connect_raw(runtime, principal="somebody") for _ in range(3)]
        for sleeper in sleepers:
            await sleeper.request("job.submit", {"agent": "flood", "input": 1000})
        await runtime._directory.wait_idle()
        for _ in range(5):
            await client.submit("flood", 10)
            await client.receive_until("job.result")
        mine = runtime._sessions._sessions[client.session_id or ""]
        assert mine.stream.floor == 0
        assert mine._parts.total.used <= limits.windows_bytes
        codes = []
        for sleeper in sleepers:
            with trio.move_on_after(100):
                codes.append((await sleeper.receive_close()).code)
        assert set(codes) & {4001, 1006}
        assert runtime.statistics().bugs == 0
