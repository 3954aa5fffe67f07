"""One job at a time, from its acceptance to its record, seen from the wire."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, RawClient, Script, open_raw, terminals

import arcp_trio
from arcp_trio.jobs.lifecycle import (
    Cancel,
    DeadlinePassed,
    FinalStatus,
    LeaseExpired,
    Outcome,
    ParentStopping,
    RuntimeClosing,
    TornDown,
)
from arcp_trio.wire.errors import BudgetExhaustedError, LeaseExpiredError
from arcp_trio.wire.ids import IdFactory
from arcp_trio.wire.timestamps import WallClock


async def last_of(client: RawClient, job_id: str) -> Frame:
    """Read to the job's terminal event, let all come to rest, and show that it is the last word."""
    frame = await client.receive_until(lambda frame: frame["type"] in ("job.result", "job.error"))
    assert frame["job_id"] == job_id
    await client.settle()
    assert terminals(client.received, job_id) == [frame]
    after = client.received[client.received.index(frame) + 1 :]
    assert [late for late in after if late["type"] == "job.event"] == []
    return frame


@pytest.mark.requirement("P7.2", "P7.7", "P7.8", "P8.2", "S01")
async def test_success_on_the_wire(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        request_id = await client.request("job.submit", {"agent": "gate", "input": None}, trace_id="ab" * 16)
        accepted = await client.receive()
        job_id = accepted["payload"]["job_id"]
        assert accepted["type"] == "job.accepted"
        assert accepted["job_id"] == job_id
        assert accepted["correlation_id"] == accepted["payload"]["request_id"] == request_id
        assert accepted["payload"]["reply_to"] == request_id
        assert accepted["payload"]["agent"] == "gate@1.0.0"
        assert accepted["trace_id"] == accepted["payload"]["trace_id"] == "ab" * 16
        assert "event_seq" not in accepted
        event = await client.receive()
        assert (event["type"], event["event_seq"], event["payload"]["kind"]) == ("job.event", 1, "log")
        script.gate.set()
        result = await last_of(client, job_id)
        assert (result["type"], result["event_seq"]) == ("job.result", 2)
        payload = result["payload"]
        assert payload["final_status"] == "success"
        assert payload["result"] == payload["output"] == "through"
        assert payload["job_id"] == job_id
        assert {frame["trace_id"] for frame in (accepted, event, result)} == {"ab" * 16}


@pytest.mark.requirement("P7.8")
async def test_null_result_has_neither_name(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", None)
        payload = (await last_of(client, job_id))["payload"]
        assert not {"result", "output", "result_id"} & payload.keys()


@pytest.mark.requirement("L27")
async def test_terminal_times_are_the_injected_clocks(script: Script) -> None:
    clock = WallClock(lambda: 1_700_000_000.5)
    async with arcp_trio.open_runtime(script.agents, clock=clock) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", 1)
        frame = await last_of(client, job_id)
        assert frame["payload"]["completed_at"] == frame["timestamp"] == "2023-11-14T22:13:20.500Z"


@pytest.mark.requirement("P7.9", "L24", "E05")
async def test_a_failing_agent_tells_the_client_nothing_but_a_reference(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("fail")
        payload = (await last_of(client, job_id))["payload"]
    assert (payload["code"], payload["final_status"], payload["retryable"]) == ("INTERNAL_ERROR", "error", True)
    reference = payload["details"]["reference"]
    assert reference in payload["message"]
    assert "secret" not in str(payload)
    record = next(record for record in caplog.records if reference in record.getMessage())
    assert record.exc_info is not None
    assert "a secret" in str(record.exc_info[1])


class Custom(arcp_trio.ARCPError):
    """An application's own."""


@pytest.mark.requirement("P7.8a", "P7.9", "P12.1", "E04")
@pytest.mark.parametrize(
    ("error", "code", "retryable", "details"),
    [
        (arcp_trio.PermissionDeniedError("no"), "PERMISSION_DENIED", False, None),
        (arcp_trio.AgentNotAvailableError("no", details={"a": 1}), "AGENT_NOT_AVAILABLE", True, {"a": 1}),
        (LeaseExpiredError("no", retryable=True), "LEASE_EXPIRED", False, None),
        (BudgetExhaustedError("no", retryable=True), "BUDGET_EXHAUSTED", False, None),
        (arcp_trio.InternalError("no", retryable=False), "INTERNAL_ERROR", True, None),
        (arcp_trio.JobCancelledError("no"), "CANCELLED", False, None),
        (arcp_trio.JobTimeoutError("no"), "TIMEOUT", True, None),
        (arcp_trio.ARCPError("no", code="X_MINE", retryable=True), "X_MINE", True, None),
        (
            ExceptionGroup("two", [arcp_trio.DuplicateKeyError("no"), arcp_trio.DuplicateKeyError("b")]),
            "DUPLICATE_KEY",
            False,
            None,
        ),
        (
            ExceptionGroup("nested", [ExceptionGroup("inner", [arcp_trio.DuplicateKeyError("no")])]),
            "DUPLICATE_KEY",
            False,
            None,
        ),
        (arcp_trio.InvalidRequestError("no", details={"x": {1, 2}}), "INVALID_REQUEST", False, None),
    ],
)
async def test_an_arcp_error_of_an_agent_keeps_what_it_is(
    script: Script, error: BaseException, code: str, retryable: bool, details: dict[str, Any] | None
) -> None:
    script.error = error
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("fail")
        payload = (await last_of(client, job_id))["payload"]
    assert (payload["final_status"], payload["code"], payload["message"]) == ("error", code, "no")
    assert payload["retryable"] is retryable
    assert payload.get("details") == details


@pytest.mark.requirement("P7.9", "P4.4")
@pytest.mark.parametrize(
    ("error", "message", "details"),
    [
        (arcp_trio.InvalidRequestError("\ud800"), "'\\ud800'", None),
        (arcp_trio.InvalidRequestError(""), "INVALID_REQUEST", None),
        (arcp_trio.InvalidRequestError("x" * 10**6), "x" * 16 * 1024, None),
        (arcp_trio.InvalidRequestError("large", details={"x": "y" * 10**6}), "large", None),
        (arcp_trio.InvalidRequestError("odd", details={"x": "\udfff"}), "odd", None),
        (arcp_trio.InvalidRequestError("fits", details={"x": "y" * 1000}), "fits", {"x": "y" * 1000}),
    ],
    ids=["no unicode", "empty", "long", "large details", "odd details", "details"],
)
async def test_what_an_error_says_always_fits_its_frame(
    script: Script, error: arcp_trio.ARCPError, message: str, details: dict[str, Any] | None
) -> None:
    script.error = error
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        payload = (await last_of(client, await client.submit("fail")))["payload"]
        assert (payload["code"], payload["message"], payload.get("details")) == ("INVALID_REQUEST", message, details)
        assert runtime.statistics().bugs == 0


@pytest.mark.requirement("E05", "Z07")
@pytest.mark.parametrize(
    "error",
    [
        ValueError("v"),
        SystemExit(3),
        asyncio.CancelledError(),
        ExceptionGroup("mixed", [ValueError("a"), arcp_trio.PermissionDeniedError("b")]),
        ExceptionGroup("two codes", [arcp_trio.DuplicateKeyError("a"), arcp_trio.PermissionDeniedError("b")]),
        BaseExceptionGroup("mixed", [SystemExit(1), ValueError("a")]),
        ExceptionGroup("nested", [ExceptionGroup("inner", [TypeError("x")])]),
        StopAsyncIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_an_agent_raises_ends_its_job_alone(script: Script, error: BaseException) -> None:
    script.error = error
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("fail")
        assert (await last_of(client, job_id))["payload"]["code"] == "INTERNAL_ERROR"
        job_id = await client.submit("echo", "alive")
        assert (await last_of(client, job_id))["payload"]["result"] == "alive"
        assert runtime.statistics().bugs == 0


@pytest.mark.requirement("Z07")
async def test_a_group_with_cancelled_leaves_and_an_error_of_the_agent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    agents = arcp_trio.Agents()

    @agents.register("siblings")
    async def siblings(job: arcp_trio.JobContext, value: Any) -> None:
        async def fail() -> None:
            raise arcp_trio.PermissionDeniedError("one of two")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail)

    async with arcp_trio.open_runtime(agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("siblings")
        assert (await last_of(client, job_id))["payload"]["code"] == "PERMISSION_DENIED"


@pytest.mark.requirement("Z07")
async def test_leaves_of_a_group_that_only_say_cancelled_are_no_errors() -> None:
    agents = arcp_trio.Agents()

    @agents.register("collects")
    async def collects(job: arcp_trio.JobContext, value: Any) -> None:
        caught: list[BaseException] = [arcp_trio.PermissionDeniedError("the cause")]
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as exc:
                caught.append(exc)
                raise
        raise BaseExceptionGroup("what was collected", caught)

    async with arcp_trio.open_runtime(agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("collects")
        assert (await last_of(client, job_id))["payload"]["code"] == "PERMISSION_DENIED"


@pytest.mark.requirement("P7.13", "L05")
async def test_cancel_is_acknowledged_and_then_ends_the_job(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        await trio.testing.wait_all_tasks_blocked()
        request_id = await client.request("job.cancel", {"reason": "enough"}, job_id=job_id)
        ack = await client.receive()
        assert ack["type"] == "job.cancelled"
        assert "event_seq" not in ack
        assert ack["payload"] == {
            "job_id": job_id,
            "reason": "enough",
            "request_id": request_id,
            "reply_to": request_id,
        }
        error = await last_of(client, job_id)
        assert error["payload"]["code"] == "CANCELLED"
        assert error["payload"]["final_status"] == "cancelled"
        assert "enough" in error["payload"]["message"]
        assert (runtime.statistics().cancels_acknowledged, runtime.statistics().cancels_refused) == (1, 0)
    assert (script.entered, script.left) == (1, 1)


class ForeseenIds(IdFactory):
    """Jobs get ids that a test knows before it submits."""

    def job(self) -> str:
        return "job_" + "0" * 26


@pytest.mark.requirement("P7.15")
@pytest.mark.parametrize("together", [True, False])
async def test_a_cancel_before_the_agents_first_step(script: Script, together: bool) -> None:
    """Accepted, cancelled and CANCELLED; in one read with its submit, the agent's body is not even entered."""
    job_id = ForeseenIds().job()
    async with (
        arcp_trio.open_runtime(script.agents, ids=ForeseenIds()) as runtime,
        open_raw(runtime) as client,
    ):
        submit = client.make("job.submit", {"agent": "sleep"})
        cancel = client.make("job.cancel", {"job_id": job_id})
        if together:
            await client.send(submit, cancel)
        else:
            await client.send(submit)
            await client.receive_until("job.accepted")
            await client.send(cancel)
        error = await last_of(client, job_id)
        assert error["payload"]["code"] == "CANCELLED"
        types = [frame["type"] for frame in client.received if frame.get("job_id") == job_id]
        assert types == ["job.accepted", "job.cancelled", "job.error"]
    assert script.entered == (0 if together else 1)


@pytest.mark.requirement("P7.15", "L08")
async def test_a_job_cancelled_while_pending_never_enters_its_agent(script: Script) -> None:
    from arcp_trio.jobs.lifecycle import Phase

    async with arcp_trio.open_runtime(script.agents) as runtime:
        spec_actor = []
        original = runtime._start_job

        def start_and_cancel(spec: Any, accept: Any) -> Any:
            actor = original(spec, accept)
            assert actor.state.phase is Phase.PENDING

            class Request:
                reason = None

                def acknowledge(self) -> None:
                    spec_actor.append("acknowledged")

                def refuse(self, job_status: str) -> None:
                    spec_actor.append(f"refused {job_status}")

            actor.request_cancel(Request())
            actor.request_cancel(Request())
            return actor

        object.__setattr__(runtime._session_services, "start_job", start_and_cancel)
        agents_started: list[str] = []
        object.__setattr__(runtime._job_services, "spawn_agent", lambda function, name: agents_started.append(name))
        async with open_raw(runtime) as client:
            job_id = await client.submit("sleep")
            assert (await last_of(client, job_id))["payload"]["code"] == "CANCELLED"
        assert spec_actor == ["acknowledged", "refused cancelled"]
        assert agents_started == []
        assert runtime.statistics().bugs == 0
    assert script.entered == 0


@pytest.mark.requirement("P7.15")
async def test_an_agent_that_is_stopped_before_its_first_step_is_not_entered() -> None:
    from arcp_trio.jobs.agent_task import run_agent
    from arcp_trio.jobs.lifecycle import End

    entered: list[str] = []

    async def agent(job: Any, value: Any) -> None:
        entered.append("the body")

    scope = trio.CancelScope()
    scope.cancel()
    ended = await run_agent(agent, None, None, scope, lambda exc: None)  # type: ignore[arg-type]
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


@pytest.mark.requirement("Z06")
async def test_an_error_while_it_is_cancelled_does_not_change_the_outcome(
    autojump_clock: trio.testing.MockClock,
) -> None:
    agents = arcp_trio.Agents()

    @agents.register("messy")
    async def messy(job: arcp_trio.JobContext, value: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("while unwinding")

    async with arcp_trio.open_runtime(agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("messy")
        await trio.testing.wait_all_tasks_blocked()
        await client.request("job.cancel", {"job_id": job_id})
        assert (await last_of(client, job_id))["payload"]["code"] == "CANCELLED"


@pytest.mark.requirement("P7.10", "L13")
async def test_max_runtime(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        started = trio.current_time()
        job_id = await client.submit("sleep", max_runtime_sec=5)
        payload = (await last_of(client, job_id))["payload"]
        assert (payload["code"], payload["final_status"], payload["retryable"]) == ("TIMEOUT", "timed_out", True)
        assert trio.current_time() - started == pytest.approx(5)


def causes_of_an_end(until: float) -> dict[str, Any]:
    """Return what stops a job, each with an outcome of its own, as its sender posts it."""
    kinds = {
        "cancel": (Cancel, FinalStatus.CANCELLED),
        "deadline": (DeadlinePassed, FinalStatus.TIMED_OUT),
        "lease": (LeaseExpired, FinalStatus.ERROR),
        "parent": (ParentStopping, FinalStatus.CANCELLED),
        "closing": (RuntimeClosing, FinalStatus.ERROR),
    }
    return {
        name: kind(until, Outcome(final_status=status, code="INTERNAL_ERROR", message=name))
        for name, (kind, status) in kinds.items()
    }


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


@pytest.mark.requirement("P9.6", "P10.3")
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


@pytest.mark.requirement("P7.14", "L01", "L04")
async def test_the_seed_of_this_project(script: Script) -> None:
    """Complete a job; cancel it: the status stays success, nothing is emitted, nothing is torn down twice."""
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", 1)
        await last_of(client, job_id)
        before = runtime.statistics()
        for _ in range(3):
            request_id = await client.request("job.cancel", {"job_id": job_id})
            reply = await client.receive()
            assert reply["type"] == "x-arcp-trio.reply"
            assert reply["payload"] == {
                "request_id": request_id,
                "reply_to": request_id,
                "applied": False,
                "job_id": job_id,
                "job_status": "success",
            }
            assert "event_seq" not in reply
        assert await client.settle() == []
        after = runtime.statistics()
        assert after.cancels_refused == before.cancels_refused + 3
        assert (after.terminals_published, after.tear_downs, after.cancels_acknowledged) == (1, 1, 0)
        # The session's numbering has no hole: the next event has the next number.
        other = await client.submit("echo", 2)
        assert (await last_of(client, other))["event_seq"] == 2


@pytest.mark.requirement("P7.7", "L14")
@pytest.mark.parametrize("status", ["success", "error", "cancelled", "timed_out"])
async def test_a_terminal_state_has_one_name_wherever_it_is_told(
    script: Script, status: str, autojump_clock: trio.testing.MockClock
) -> None:
    """In the event, in the answer to a late cancel, in the record and in the client's handle."""
    agent = {"success": "echo", "error": "fail"}.get(status, "sleep")
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit(agent, max_runtime_sec=5)
        if status == "cancelled":
            await client.request("job.cancel", {"job_id": job_id})
        assert (await last_of(client, job_id))["payload"]["final_status"] == status
        await client.request("job.cancel", {"job_id": job_id})
        assert (await client.receive_until("x-arcp-trio.reply"))["payload"]["job_status"] == status
        record = runtime._directory.find(job_id)
        assert record is not None
        assert record.status == status
        async with runtime.open_session(principal="me") as embedded:
            job = await embedded.submit(agent, max_runtime_sec=5)
            if status == "cancelled":
                await job.cancel()
            await job.wait_ended()
            assert job.status == status


@pytest.mark.requirement("P7.14")
async def test_a_late_cancel_is_silent_to_a_client_that_knows_no_replies(script: Script) -> None:
    from helpers import make_hello

    hello = make_hello(features=["progress"])
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime, hello=hello) as client:
        job_id = await client.submit("echo", 1)
        await last_of(client, job_id)
        await client.request("job.cancel", {"job_id": job_id})
        assert await client.settle() == []


@pytest.mark.requirement("P7.14")
async def test_refused_cancels_of_a_stopping_job_are_answered_behind_its_terminal(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    limits = arcp_trio.Limits(cancel_grace_seconds=3, waiting_cancels=5)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("stubborn")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(8):
            await client.request("job.cancel", {"job_id": job_id})
        error = await last_of(client, job_id)
        position = client.received.index(error)
        replies = [
            (client.received.index(frame) > position, frame["payload"]["job_status"])
            for frame in client.received
            if frame["type"] == "x-arcp-trio.reply"
        ]
        # Seven are refused: two over the bound at once, as running, five behind the terminal event.
        assert sorted(replies) == [(False, "running")] * 2 + [(True, "cancelled")] * 5
        assert [frame["type"] for frame in client.received].count("job.cancelled") == 1
        script.gate.set()


@pytest.mark.requirement("P7.14", "M02")
async def test_after_the_retention_the_job_is_unknown(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.Limits(retention_seconds=100)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", 1)
        await last_of(client, job_id)
        await trio.sleep(99)
        await client.request("job.cancel", {"job_id": job_id})
        assert (await client.receive())["type"] == "x-arcp-trio.reply"
        await trio.sleep(2)
        assert runtime.statistics().jobs_retained == 0
        request_id = await client.request("job.cancel", {"job_id": job_id})
        answer = await client.receive()
        assert (answer["type"], answer["payload"]["code"]) == ("session.error", "JOB_NOT_FOUND")
        assert answer["payload"]["request_id"] == request_id


@pytest.mark.requirement("P7.1", "L11")
async def test_a_refused_submit_leaves_nothing(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        before = runtime.statistics()
        for payload in (
            {"agent": "nobody"},
            {"agent": "echo@9"},
            {"agent": "Upper"},
            {"agent": "echo", "max_runtime_sec": 0},
            {"agent": "echo", "max_runtime_sec": -1},
            {"agent": "echo", "lease_request": {"fs.read": []}},
            {"agent": "echo", "lease_request": {"": ["x"]}},
            {"agent": "echo", "lease_request": {"fs.read": [""]}},
            {"agent": "echo", "lease_request": {"cost.budget": ["USD:1"]}},
            {"agent": "echo", "lease_constraints": {"expires_at": "2099-01-01T00:00:00Z"}},
            {"agent": "echo", "idempotency_key": "k"},
            {"agent": 5},
            {},
        ):
            request_id = await client.request("job.submit", payload)
            answer = await client.receive()
            assert answer["type"] == "session.error", payload
            assert answer["payload"]["request_id"] == answer["payload"]["reply_to"] == request_id
            assert answer["correlation_id"] == request_id
            if answer["payload"]["code"] == "INVALID_REQUEST":
                assert "$.payload" in answer["payload"]["message"]
            # Eight wrong requests in a row would close the connection.
            await client.request("session.ping", {"nonce": "n"})
            assert (await client.receive())["type"] == "session.pong"
        await trio.sleep(1_000_000)
        assert await client.settle() == []
        assert runtime.statistics() == before


@pytest.mark.requirement("P6.3")
async def test_caps_on_running_jobs(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.Limits(jobs_per_principal=2, jobs=3)
    async with (
        arcp_trio.open_runtime(script.agents, limits=limits) as runtime,
        open_raw(runtime, principal="a") as first,
        open_raw(runtime, principal="b") as second,
    ):
        await first.submit("gate")
        await first.submit("gate")
        await first.request("job.submit", {"agent": "echo"})
        refusal = await first.receive_until("session.error")
        assert refusal["payload"]["code"] == "INTERNAL_ERROR"
        assert refusal["payload"]["retryable"] is True
        assert refusal["payload"]["details"] == {"limit": "jobs_per_principal", "value": 2}
        await second.submit("gate")
        await second.request("job.submit", {"agent": "echo"})
        refusal = await second.receive_until("session.error")
        assert refusal["payload"]["details"] == {"limit": "jobs", "value": 3}
        script.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        await first.submit("echo", 1)


@pytest.mark.requirement("L20", "L21", "P6.21", "Z11")
@pytest.mark.parametrize("how", ["close", "bye", "drop"])
async def test_a_job_goes_on_when_its_connection_ends(
    script: Script, how: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        async with open_raw(runtime) as client:
            await client.submit("gate")
            await client.settle()
            if how != "drop":
                await client.request(f"session.{how}")
                assert (await client.receive_close()).code == 1000
                if how == "close":
                    assert client.received[-1]["type"] == "session.closed"
        await trio.testing.wait_all_tasks_blocked()
        assert (runtime.statistics().sessions, runtime.statistics().jobs_running) == (0, 1)
        (actor,) = runtime._directory.actors()
        assert actor.feed.followers == 0
        assert actor.throttle is None
        script.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (runtime.statistics().jobs_running, runtime.statistics().jobs_retained) == (0, 1)
    assert script.left == 1


async def test_context_variables_of_a_connection_do_not_reach_a_job() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="the runtime's")
    agents = arcp_trio.Agents()

    @agents.register("look")
    async def look(job: arcp_trio.JobContext, value: Any) -> str:
        return variable.get()

    async with arcp_trio.open_runtime(agents) as runtime:
        variable.set("the caller's")
        async with runtime.open_session(principal="me") as client:
            assert await (await client.submit("look")).result() == "the runtime's"


@pytest.mark.requirement("L25")
async def test_a_bug_in_an_actor_ends_its_job_and_no_other(
    script: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from arcp_trio.jobs import actor as module

    original = module.apply

    def broken(state: Any, message: Any) -> Any:
        if type(message).__name__ == "Start" and broken_once:
            broken_once.clear()
            raise RuntimeError("a bug")
        return original(state, message)

    broken_once = [True]
    monkeypatch.setattr(module, "apply", broken)
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", 1)
        assert (await last_of(client, job_id))["payload"]["code"] == "INTERNAL_ERROR"
        job_id = await client.submit("echo", 2)
        assert (await last_of(client, job_id))["payload"]["result"] == 2
        assert runtime.statistics().bugs == 1
    assert any(record.levelno == logging.ERROR and "a bug" in record.getMessage() for record in caplog.records)


@pytest.mark.requirement("P7.8", "L25")
@pytest.mark.parametrize(
    ("agent", "when"),
    [
        ("sleep", "at the cancel"),
        ("stubborn", "at the cancel"),
        ("stubborn", "behind the decision"),
        ("sleep", "behind the tear-down"),
    ],
)
async def test_a_bug_in_an_actor_while_its_agent_runs(
    script: Script, agent: str, when: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """The agent is stopped, nothing stays behind, who waits is answered, and what was decided stands."""
    from arcp_trio.jobs import actor as module

    original = module.apply

    def broken(state: Any, message: Any) -> Any:
        if type(message) is {"at the cancel": Cancel, "behind the decision": LeaseExpired}.get(when, TornDown):
            raise RuntimeError("a bug")
        return original(state, message)

    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit(agent, max_runtime_sec=1000)
        await trio.testing.wait_all_tasks_blocked()
        (actor,) = runtime._directory.actors()
        monkeypatch.setattr(module, "apply", broken)
        await client.send(client.make("job.cancel", {"job_id": job_id}), client.make("job.cancel", {"job_id": job_id}))
        if when == "behind the decision":
            await client.receive_until("job.cancelled")
            actor._mailbox.post(causes_of_an_end(trio.current_time())["lease"])
        payload = (await last_of(client, job_id))["payload"]
        assert payload["code"] == ("INTERNAL_ERROR" if when == "at the cancel" else "CANCELLED")
        assert client.received[-1]["type"] == "x-arcp-trio.reply"
        assert client.received[-1]["payload"]["job_status"] == payload["final_status"]
        statistics = runtime.statistics()
        # The record's retention is the only deadline that is left.
        assert (statistics.jobs_running, statistics.tear_downs, statistics.bugs, statistics.timers) == (0, 1, 1, 1)
        assert len(statistics.disowned_agents) == (agent == "stubborn")
        script.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (script.left, runtime.statistics().disowned_agents) == (1, ())
        await trio.sleep(2000)
        assert await client.settle() == []


@pytest.mark.requirement("P7.8", "Z07")
@pytest.mark.parametrize("agent", ["sleep", "siblings"])
async def test_an_agent_that_is_cancelled_by_other_than_its_scope_ends_its_job(
    script: Script, agent: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing in the runtime does that; its cancellation is nobody's error, and goes where it came from."""

    @script.agents.register("siblings")
    async def siblings(job: arcp_trio.JobContext, value: Any) -> None:
        caught: list[BaseException] = []
        try:
            await trio.sleep_forever()
        except trio.Cancelled as exc:
            caught.append(exc)
        raise BaseExceptionGroup("siblings that were stopped", caught)

    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit(agent)
        await client.settle()
        runtime._agent_nursery.cancel_scope.cancel()
        payload = (await last_of(client, job_id))["payload"]
        assert (payload["code"], payload["message"]) == ("INTERNAL_ERROR", "the runtime is shutting down")
        assert (runtime.statistics().terminals_published, runtime.statistics().bugs) == (1, 0)
    assert caplog.records == []


async def test_an_input_is_its_agents_alone(script: Script) -> None:
    """What may be megabytes is not kept for as long as a job runs."""
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.submit("gate", ["a large input"])
        await client.settle()
        (actor,) = runtime._directory.actors()
        assert actor.input is None
        script.gate.set()


@pytest.mark.requirement("L25")
async def test_a_bug_while_the_terminal_event_is_handed_out(
    script: Script, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """It is not handed out again, and the job is over for all who ask and wait."""
    from arcp_trio.jobs.feed import TerminalEntry
    from arcp_trio.sessions.session import Session

    original = Session.append

    def broken(self: Session, entry: Any) -> None:
        original(self, entry)
        assert not isinstance(entry, TerminalEntry), "a bug"

    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("gate")
        monkeypatch.setattr(Session, "append", broken)
        script.gate.set()
        assert (await last_of(client, job_id))["type"] == "job.result"
        statistics = runtime.statistics()
        assert (statistics.jobs_running, statistics.terminals_published, statistics.tear_downs) == (0, 1, 1)
        assert statistics.bugs == 1
        await client.request("job.cancel", {"job_id": job_id})
        assert (await client.receive())["payload"]["job_status"] == "success"


@pytest.mark.requirement("E05", "Z07")
async def test_control_c_reaches_an_agents_own_code_and_nothing_else_of_its_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from arcp_trio.jobs.mailbox import Mailbox
    from arcp_trio.sessions.session import Session

    protected: dict[str, bool] = {}
    append, post = Session.append, Mailbox.post

    def note_append(self: Session, entry: Any) -> None:
        protected[type(entry).__name__] = trio.lowlevel.currently_ki_protected()
        append(self, entry)

    def note_post(self: Mailbox, message: Any) -> None:
        protected[type(message).__name__] = trio.lowlevel.currently_ki_protected()
        post(self, message)

    monkeypatch.setattr(Session, "append", note_append)
    monkeypatch.setattr(Mailbox, "post", note_post)
    agents = arcp_trio.Agents()

    @agents.register("look")
    async def look(job: arcp_trio.JobContext, value: Any) -> None:
        await job.log("info", "an event")
        protected["the agent"] = trio.lowlevel.currently_ki_protected()

    async with arcp_trio.open_runtime(agents) as runtime, open_raw(runtime) as client:
        await last_of(client, await client.submit("look"))
    assert protected.pop("the agent") is False
    assert protected == {"EventEntry": True, "AgentEnded": True, "TornDown": True, "TerminalEntry": True}


@pytest.mark.requirement("E05", "Z07")
@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        BaseExceptionGroup("tasks", [ValueError("v"), BaseExceptionGroup("x", [KeyboardInterrupt()])]),
    ],
    ids=["alone", "in a group"],
)
async def test_an_agents_control_c_is_the_programs(script: Script, error: BaseException) -> None:
    script.error = error
    with pytest.raises(KeyboardInterrupt):
        async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
            job_id = await client.submit("fail")
            payload = (await last_of(client, job_id))["payload"]
            assert (payload["code"], payload["message"]) == ("INTERNAL_ERROR", "the runtime was interrupted")
            await trio.sleep_forever()
    assert runtime.statistics().terminals_published == 1


@pytest.mark.requirement("P7.14", "L25")
async def test_a_cancel_that_lies_behind_a_bug_is_answered(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    from arcp_trio.jobs import actor as module

    original = module.apply

    def broken(state: Any, message: Any) -> Any:
        if type(message) is LeaseExpired:
            raise RuntimeError("a bug")
        return original(state, message)

    answers: list[str] = []

    class Request:
        reason = None

        def acknowledge(self) -> None:
            raise AssertionError

        def refuse(self, job_status: str) -> None:
            answers.append(job_status)

    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        await client.settle()
        (actor,) = runtime._directory.actors()
        monkeypatch.setattr(module, "apply", broken)
        actor._mailbox.post(causes_of_an_end(0)["lease"])
        actor.request_cancel(Request())
        await last_of(client, job_id)
        assert answers == ["error"]


@pytest.mark.requirement("P7.8", "L25")
async def test_an_actor_that_is_cancelled_still_ends_its_job(script: Script) -> None:
    """Nothing in the runtime does that; were it done, the terminal event would go out all the same."""
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        await client.settle()
        runtime._actor_nursery.cancel_scope.cancel()
        assert (await last_of(client, job_id))["payload"]["code"] == "INTERNAL_ERROR"
        assert (runtime.statistics().terminals_published, runtime.statistics().tear_downs) == (1, 1)
    assert script.left == 1


@pytest.mark.requirement("P7.3", "P5.6")
async def test_inputs_and_results_pass_through_as_they_are(script: Script) -> None:
    values = [None, True, 0, -1, 2**53 + 1, 2**80, 1.5, "", "é\U0001f600", [], {}, {"": [None, {"a": [1.0]}]}, [[]] * 5]
    async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
        for value in values:
            result = await (await client.submit("echo", value)).result()
            expected = {} if value is None else value
            assert result == expected
            assert type(result) is type(expected)


@pytest.mark.requirement("P7.9")
@pytest.mark.parametrize("value", [{1, 2}, float("nan"), [float("inf")], b"bytes", "\ud800", {1: 2}, object()])
async def test_a_result_that_json_cannot_carry(value: Any) -> None:
    agents = arcp_trio.Agents()

    @agents.register("odd")
    async def odd(job: arcp_trio.JobContext, _: Any) -> Any:
        await job.log("info", "before")
        return value

    async with arcp_trio.open_runtime(agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("odd")
        error = await last_of(client, job_id)
        assert (error["payload"]["code"], error["event_seq"]) == ("INTERNAL_ERROR", 2)
