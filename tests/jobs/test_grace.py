"""How a job is stopped: before its agent starts, within its grace, and when the agent does not care."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Script, connect_raw, open_raw, terminals
from jobs.ends import causes_of_an_end, last_of

import arcp_trio
from arcp_trio.jobs.lifecycle import (
    TornDown,
)


@pytest.mark.requirement("P7.15")
async def test_an_agent_that_is_stopped_before_its_first_step_is_not_entered() -> None:
    from arcp_trio.jobs.agent_task import run_agent
    from arcp_trio.jobs.lifecycle import End

    entered: list[str] = []

    async def agent(job: Any, value: Any) -> None:
        entered.append("the body")

    scope = trio.CancelScope()
    scope.cancel()
    ended = await run_agent(agent, None, None, scope, lambda exc: None, translators=())  # type: ignore[arg-type]
    assert (ended.end, entered) == (End.STOPPED, [])


@pytest.mark.requirement("P7.11")
async def test_nothing_is_emitted_between_the_decision_and_the_publication(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    """A tear-down may take its time: an agent that has had its own says nothing more."""
    from arcp_trio.jobs.actor import JobActor
    from arcp_trio.jobs.lifecycle import Phase

    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("gate")
        await client.settle()
        actor = runtime._directory.find(job_id)
        assert isinstance(actor, JobActor)
        posted: list[Any] = []
        original = actor._mailbox.post
        held = type(actor._mailbox).post

        def post(self: Any, message: Any) -> None:
            if type(message) is TornDown and self is actor._mailbox:
                posted.append(message)
            else:
                held(self, message)

        type(actor._mailbox).post = post  # type: ignore[method-assign]
        try:
            script.gate.set()
            await client.settle()
            assert actor.state.phase is Phase.ENDING
            assert actor.status == "running"
            with pytest.raises(arcp_trio.JobEndedError):
                actor.append_event("log", b"{}", None)
            # No agent is left that a grace could bound: no deadline is set for one.
            timers = runtime.statistics().timers
            held(actor._mailbox, causes_of_an_end(trio.current_time() + 1)["closing"])
            await client.settle()
            assert (actor.state.phase, runtime.statistics().timers) == (Phase.ENDING, timers)
        finally:
            type(actor._mailbox).post = held  # type: ignore[method-assign]
        original(posted[0])
        assert (await last_of(client, job_id))["type"] == "job.result"


@pytest.mark.requirement("P7.13", "Z10")
async def test_an_agent_that_returns_a_value_after_the_cancel_is_still_cancelled(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("stubborn")
        await trio.testing.wait_all_tasks_blocked()
        await client.request("job.cancel", {"job_id": job_id})
        await client.receive_until("job.cancelled")
        script.gate.set()
        assert (await last_of(client, job_id))["payload"]["final_status"] == "cancelled"
        assert runtime.statistics().disowned_agents == ()


@pytest.mark.requirement("P7.10", "L13")
async def test_max_runtime(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        started = trio.current_time()
        job_id = await client.submit("sleep", max_runtime_sec=5)
        payload = (await last_of(client, job_id))["payload"]
        assert (payload["code"], payload["final_status"], payload["retryable"]) == ("TIMEOUT", "timed_out", True)
        assert trio.current_time() - started == pytest.approx(5)


@pytest.mark.requirement("P7.8a", "P7.10", "P7.13")
@pytest.mark.parametrize("cause", ["cancel", "deadline", "lease", "parent", "closing"])
async def test_whatever_stops_a_job_its_agent_has_until_its_grace_is_over(
    script: Script, cause: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("stubborn")
        await trio.testing.wait_all_tasks_blocked()
        (actor,) = runtime._directory.actors()
        now = trio.current_time()
        actor._mailbox.post(causes_of_an_end(now + 4)[cause])
        payload = (await last_of(client, job_id))["payload"]
        assert (payload["message"], trio.current_time() - now) == (cause, pytest.approx(4))
        assert len(runtime.statistics().disowned_agents) == 1
        script.gate.set()


@pytest.mark.requirement("P7.10", "P7.13")
@pytest.mark.parametrize(("cause", "seconds"), [("lease", 4), ("parent", 4), ("closing", 4), ("deadline", 20)])
async def test_a_grace_that_runs_is_shortened_by_what_is_above(
    script: Script, cause: str, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    """A deadline is not; and what decided first stands. A second, later bound lengthens nothing."""
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("stubborn")
        await trio.testing.wait_all_tasks_blocked()
        (actor,) = runtime._directory.actors()
        now = trio.current_time()
        actor._mailbox.post(causes_of_an_end(now + 20)["cancel"])
        await trio.testing.wait_all_tasks_blocked()
        timers = runtime.statistics().timers
        for until in (now + 4, now + 10):
            actor._mailbox.post(causes_of_an_end(until)[cause])
            await trio.testing.wait_all_tasks_blocked()
        # The timer of the grace was moved, not joined by others.
        assert runtime.statistics().timers == timers
        payload = (await last_of(client, job_id))["payload"]
        assert (payload["message"], trio.current_time() - now) == ("cancel", pytest.approx(seconds))
        script.gate.set()


@pytest.mark.requirement("P7.15", "L08")
@pytest.mark.parametrize("cause", ["cancel", "lease", "parent", "closing"])
async def test_what_ends_a_pending_job_ends_it_before_its_agent(script: Script, cause: str) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        original = runtime._start_job

        def start_and_end(spec: Any, accept: Any) -> Any:
            actor = original(spec, accept)
            actor._mailbox.post(causes_of_an_end(trio.current_time() + 5)[cause])
            return actor

        object.__setattr__(runtime._session_services, "start_job", start_and_end)
        async with open_raw(runtime) as client:
            job_id = await client.submit("sleep")
            assert (await last_of(client, job_id))["payload"]["message"] == cause
        statistics = runtime.statistics()
        assert (statistics.terminals_published, statistics.tear_downs, statistics.bugs) == (1, 1, 0)
    assert script.entered == 0


@pytest.mark.requirement("L09")
async def test_a_deadline_does_not_outlive_its_job(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        before = runtime.statistics().timers
        job_id = await client.submit("echo", 1, max_runtime_sec=5)
        await last_of(client, job_id)
        # The retention of the record is the only deadline that is left.
        assert runtime.statistics().timers == before + 1
        await trio.sleep(60)
        assert await client.settle() == []


@pytest.mark.requirement("P7.11", "P7.13")
async def test_an_agent_that_ignores_its_cancel_is_disowned(
    script: Script, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    limits = arcp_trio.Limits(cancel_grace_seconds=7)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("stubborn")
        await trio.testing.wait_all_tasks_blocked()
        cancelled_at = trio.current_time()
        await client.request("job.cancel", {"job_id": job_id})
        assert (await last_of(client, job_id))["payload"]["code"] == "CANCELLED"
        assert trio.current_time() - cancelled_at == pytest.approx(7)
        assert runtime.statistics().disowned_agents == (f"stubborn@1.0.0 of {job_id}",)
        assert any(job_id in record.getMessage() for record in caplog.records)
        script.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.statistics().disowned_agents == ()
        assert await client.settle() == []
    assert script.left == 1


@pytest.mark.requirement("P7.11", "P7.13")
async def test_an_agent_may_speak_within_its_grace(autojump_clock: trio.testing.MockClock) -> None:
    """What it says while it cleans up stands between the acknowledgement and the terminal event."""
    agents = arcp_trio.Agents()

    @agents.register("tidy")
    async def tidy(job: arcp_trio.JobContext, value: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await job.log("info", "tidying up")

    async with arcp_trio.open_runtime(agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("tidy")
        await client.settle()
        await client.request("job.cancel", {"job_id": job_id})
        await last_of(client, job_id)
        types = [frame["type"] for frame in client.received if frame.get("job_id") == job_id]
        assert types == ["job.accepted", "job.cancelled", "job.event", "job.error"]


async def test_an_agent_that_ends_in_the_very_turn_of_its_grace_is_not_disowned_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whichever of the two is first: who is named as disowned holds the runtime."""
    for _ in range(30):
        script = Script()
        async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
            job_id = await client.submit("stubborn")
            await trio.testing.wait_all_tasks_blocked()
            (actor,) = runtime._directory.actors()
            await client.request("job.cancel", {"job_id": job_id})
            await client.settle()
            actor._grace_elapsed()
            script.gate.set()
            await client.settle()
            assert [frame["payload"]["code"] for frame in terminals(client.received)] == ["CANCELLED"]
            assert runtime.statistics().disowned_agents == ()


@pytest.mark.requirement("P7.11")
async def test_what_a_disowned_agent_emits_reaches_nobody(autojump_clock: trio.testing.MockClock) -> None:
    agents = arcp_trio.Agents()
    gate = trio.Event()
    raised: list[BaseException] = []

    @agents.register("zombie")
    async def zombie(job: arcp_trio.JobContext, value: Any) -> None:
        out = job.stream_result()
        with trio.CancelScope(shield=True):
            await out.write("while it ran")
            await gate.wait()
            for emit in (
                lambda: job.log("info", "late"),
                lambda: job.progress(1),
                lambda: job.emit("x-late", {}),
                lambda: out.write("late"),
                out.aclose,
            ):
                with pytest.raises(arcp_trio.JobEndedError) as caught:
                    await emit()
                raised.append(caught.value)

    limits = arcp_trio.Limits(cancel_grace_seconds=1)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("zombie")
        await trio.testing.wait_all_tasks_blocked()
        await client.request("job.cancel", {"job_id": job_id})
        await last_of(client, job_id)
        gate.set()
        assert await client.settle() == []
    assert [error.code for error in raised] == ["PERMISSION_DENIED"] * 5


async def test_a_thread_that_ignores_its_cancel(autojump_clock: trio.testing.MockClock) -> None:
    """The terminal event goes out at the grace; the job's flag is what the thread can look at."""
    autojump_clock.autojump_threshold = float("inf")
    agents = arcp_trio.Agents()
    started, seen = threading.Event(), threading.Event()
    gate = threading.Event()

    @agents.register("threaded")
    async def threaded(job: arcp_trio.JobContext, value: Any) -> None:
        def work() -> None:
            started.set()
            gate.wait(20)
            if job.cancel_requested:
                seen.set()

        await trio.to_thread.run_sync(work)

    async with arcp_trio.open_runtime(agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("threaded")
        await trio.to_thread.run_sync(started.wait, 20)
        await client.request("job.cancel", {"job_id": job_id})
        await client.receive_until("job.cancelled")
        autojump_clock.jump(31)
        assert (await client.receive_until("job.error"))["payload"]["code"] == "CANCELLED"
        assert len(runtime.statistics().disowned_agents) == 1
        gate.set()
        assert await trio.to_thread.run_sync(seen.wait, 20)


@pytest.mark.requirement("P6.17", "P7.13")
async def test_an_agent_that_is_being_stopped_waits_for_no_reader(autojump_clock: trio.testing.MockClock) -> None:
    """Its grace is for its cleaning up, and not for a connection that lags."""
    agents = arcp_trio.Agents()
    took: list[float] = []

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, value: Any) -> None:
        try:
            while True:
                await job.log("info", "x" * 1000)
        finally:
            before = trio.current_time()
            with trio.CancelScope(shield=True):
                for _ in range(5):
                    await job.log("info", "cleaning up")
            took.append(trio.current_time() - before)

    limits = arcp_trio.Limits(lag_events=500, throttle_seconds=60, window_events=100_000, cancel_grace_seconds=30)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime:
        sleeper = await connect_raw(runtime)
        await sleeper.request("job.submit", {"agent": "flood"})
        await trio.sleep(1)
        (actor,) = runtime._directory.actors()
        assert actor.throttle is not None
        assert actor.throttle.lags()
        runtime.close_jobs(trio.current_time() + 30)
        await runtime.wait_jobs_ended()
        assert took == [0]
