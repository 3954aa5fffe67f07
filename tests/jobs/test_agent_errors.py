"""What an agent raises, and what its job ends as: the first is its own business, the second everybody's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Script, open_raw
from jobs.ends import last_of

import arcp_trio
from arcp_trio.wire.errors import BudgetExhaustedError, LeaseExpiredError


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


@pytest.mark.requirement("E05", "Z07")
async def test_control_c_reaches_an_agents_own_code_and_nothing_else_of_its_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from arcp_trio.jobs.mailbox import Mailbox
    from arcp_trio.sessions.session import Session

    protected: dict[str, bool] = {}
    append, post = Session.append, Mailbox.post

    def note_append(self: Session, entry: Any, feed: Any) -> None:
        protected[type(entry).__name__] = trio.lowlevel.currently_ki_protected()
        append(self, entry, feed)

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
