"""Spans end once, whatever ends their jobs and sessions, and whatever their providers do (P11.1)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from helpers import Script, open_raw, terminals
from jobs.ends import causes_of_an_end
from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import StatusCode
from traced import (
    NOW,
    PARENT,
    THEIR_CLOCK,
    TRACE,
    Recorded,
    agents_that,
    carrying,
    ids_of,
    recorded,
)

import arcp_trio
from arcp_trio.wire.timestamps import format_timestamp

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["recorded"]

# --- every end, once ------------------------------------------------------------------------------

ENDS = {
    "success": ("success", ""),
    "raised": ("error", "INTERNAL_ERROR"),
    "own code": ("error", "PERMISSION_DENIED"),
    "asyncio cancel": ("error", "INTERNAL_ERROR"),
    "cancel": ("cancelled", "CANCELLED"),
    "cancel before the first step": ("cancelled", "CANCELLED"),
    "timeout": ("timed_out", "TIMEOUT"),
    "disowned": ("cancelled", "CANCELLED"),
    "expiry": ("error", "LEASE_EXPIRED"),
    "parent": ("cancelled", "INTERNAL_ERROR"),
    "actor bug": ("error", "INTERNAL_ERROR"),
    "actor cancelled": ("error", "INTERNAL_ERROR"),
    "publication bug": ("success", ""),
    "shutdown": ("error", "INTERNAL_ERROR"),
}


async def bring_about(end: str, runtime: arcp_trio.Runtime, client: Any, script: Script, patch: Any) -> None:
    """Let one job end so."""
    from arcp_trio.jobs import actor as module
    from arcp_trio.jobs.feed import TerminalEntry
    from arcp_trio.sessions.session import Session

    agent, value = {
        "success": ("echo", 1),
        "raised": ("fail", None),
        "own code": ("fail", None),
        "asyncio cancel": ("fail", None),
        "disowned": ("stubborn", None),
        "publication bug": ("echo", 1),
    }.get(end, ("sleep", None))
    if end == "own code":
        script.error = arcp_trio.PermissionDeniedError("no")
    elif end == "asyncio cancel":
        script.error = asyncio.CancelledError()
    elif end == "publication bug":
        append = Session.append

        def broken(self: Session, entry: Any, feed: Any) -> None:
            append(self, entry, feed)
            assert not isinstance(entry, TerminalEntry), "a bug"

        patch.setattr(Session, "append", broken)
    payload = {"agent": agent, "input": value, "max_runtime_sec": 50}
    if end == "expiry":
        payload["lease_constraints"] = {"expires_at": format_timestamp(NOW + trio.current_time() + 5)}
    submit = client.make("job.submit", payload)
    if end == "cancel before the first step":
        await client.send(submit)
        accepted = await client.receive_until("job.accepted")
        await client.request("job.cancel", {"job_id": accepted["job_id"]})
        return
    await client.send(submit)
    job_id = (await client.receive_until("job.accepted"))["job_id"]
    await client.settle()
    actor = runtime._directory.find(job_id)
    if end in ("cancel", "disowned"):
        await client.request("job.cancel", {"job_id": job_id})
    elif end == "parent":
        assert isinstance(actor, module.JobActor)
        actor._mailbox.post(causes_of_an_end(trio.current_time() + 1)["parent"])
    elif end == "actor bug":
        patch.setattr(module, "apply", lambda state, message: 1 / 0)
        await client.request("job.cancel", {"job_id": job_id})
    elif end == "actor cancelled":
        runtime._actor_nursery.cancel_scope.cancel()


@pytest.mark.requirement("P11.1", "P7.8")
@pytest.mark.parametrize("end", ENDS)
async def test_a_span_ends_once_however_its_job_does(
    end: str,
    recorded: Recorded,
    script: Script,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        await end_a_job(end, recorded, script, patch)
    span = recorded.one("arcp.job")
    attributes = span.attributes or {}
    status, code = ENDS[end]
    assert attributes["arcp.job.status"] == status
    # OpenTelemetry itself would leave what was cancelled unset.
    assert span.status.status_code is (StatusCode.ERROR if code else StatusCode.OK)
    assert (span.status.description or "", attributes.get("error.type", "")) == (code, code)
    assert span.events == ()
    # Nothing in the runtime cancels its actors: then there is no shutdown either, which ends what waits.
    assert len(recorded.named("arcp.session")) == (end != "actor cancelled")
    # What the SDK says of a span that ends twice, or is changed behind its end.
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


async def end_a_job(end: str, recorded: Recorded, script: Script, patch: pytest.MonkeyPatch) -> None:
    async with (
        arcp_trio.open_runtime(script.agents, tracer_provider=recorded.provider, clock=THEIR_CLOCK) as runtime,
        open_raw(runtime) as client,
    ):
        await bring_about(end, runtime, client, script, patch)
        if end != "shutdown":
            if not terminals(client.received):
                await client.receive_until(lambda frame: bool(terminals([frame])))
            assert len(recorded.named("arcp.job")) == 1
            # What comes later changes nothing: the end of a disowned agent, a late cancel.
            script.gate.set()
            await client.request("job.cancel", {"job_id": terminals(client.received)[0]["job_id"]})
            await client.settle()


@pytest.mark.requirement("P11.1")
async def test_a_session_has_one_span_through_all_its_connections(
    recorded: Recorded, script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    from helpers import make_hello

    async with arcp_trio.open_runtime(script.agents, tracer_provider=recorded.provider) as runtime:
        async with open_raw(runtime) as client:
            await client.submit("gate")
            token = client.received[0]["payload"]["resume_token"]
        await trio.testing.wait_all_tasks_blocked()
        assert recorded.named("arcp.session") == []
        hello = make_hello()
        hello["payload"]["resume"] = {"resume_token": token, "last_event_seq": 0}
        async with open_raw(runtime, hello=hello):
            pass
        await trio.testing.wait_all_tasks_blocked()
        assert recorded.named("arcp.session") == []
        async with open_raw(runtime, principal="other") as second:
            await second.submit("gate")
        # Its window ends with nobody there.
        await trio.sleep(runtime.limits.resume_seconds + 1)
        assert {(span.attributes or {})["arcp.session_id"] for span in recorded.named("arcp.session")} == {
            client.session_id,
            second.session_id,
        }
        async with open_raw(runtime) as third:
            await third.submit("gate")
        await trio.testing.wait_all_tasks_blocked()
        script.gate.set()
    # The runtime has ended with that one waiting.
    assert len(recorded.named("arcp.session")) == 3
    assert {span.status.status_code for span in recorded.named("arcp.session")} == {StatusCode.OK}


# --- other people's providers --------------------------------------------------------------------------


class Failing:
    """A span processor of somebody else's, with a bug."""

    def __init__(self, where: str) -> None:
        self._where = where

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self._where == "start":
            raise RuntimeError("a bug in a processor")

    def _on_ending(self, span: Any) -> None:
        pass

    def on_end(self, span: ReadableSpan) -> None:
        if self._where == "end":
            raise RuntimeError("a bug in a processor")

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


class Keeping(Failing):
    """One that looks at the context in which a span starts, as those do that make attributes of its baggage."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self.found: list[str] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.found += baggage.get_all(parent_context)


@pytest.mark.requirement("P11.1", "P14.2")
async def test_what_a_program_keeps_in_its_baggage_is_in_no_span(recorded: Recorded, script: Script) -> None:
    processor = Keeping()
    recorded.provider.add_span_processor(processor)  # type: ignore[arg-type]
    token = attach(baggage.set_baggage("user", "somebody"))
    try:
        async with (
            arcp_trio.open_runtime(script.agents, tracer_provider=recorded.provider) as runtime,
            runtime.open_session(principal="me") as client,
        ):
            for trace_id in (TRACE, None):
                await (await client.submit("echo", 1, trace_id=trace_id)).result()
            with recorded.tracer.start_as_current_span("asking"):
                assert processor.found == ["user"]
                await (await client.submit("echo", 1)).result()
    finally:
        detach(token)
    assert len(recorded.spans) == 5
    assert processor.found == ["user"]


class Astray(trace.TracerProvider):
    """A provider whose spans are in whatever trace it likes."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def get_tracer(self, *_: Any, **__: Any) -> Any:
        return self

    def start_span(self, name: str, *_: Any, **__: Any) -> trace.Span:
        return self._recorded.tracer.start_span(name, Context())


@pytest.mark.requirement("P5.8", "P11.1")
async def test_a_job_is_in_the_trace_that_was_named_whatever_a_provider_does(recorded: Recorded) -> None:
    agents = agents_that(lambda job: job.trace_headers())
    async with (
        arcp_trio.open_runtime(agents, tracer_provider=Astray(recorded)) as runtime,
        open_raw(runtime) as client,
    ):
        await client.request("job.submit", {"agent": "look"}, trace_id=TRACE, extensions=carrying(PARENT))
        result = await client.receive_until("job.result")
    assert (result["trace_id"], result["payload"]["result"]) == (TRACE, {"traceparent": PARENT})
    assert ids_of(recorded.one("arcp.job"))[0] != TRACE


@pytest.mark.requirement("P11.1")
@pytest.mark.parametrize("where", ["start", "end"])
async def test_a_provider_that_fails_costs_its_spans_and_nothing_else(
    where: str, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = Recorded()
    recorded.provider.add_span_processor(Failing(where))  # type: ignore[arg-type]
    async with (
        arcp_trio.open_runtime(script.agents, tracer_provider=recorded.provider) as runtime,
        open_raw(runtime) as client,
    ):
        await client.request("job.submit", {"agent": "echo", "input": 5}, trace_id=TRACE)
        result = await client.receive_until("job.result")
        assert (result["payload"]["result"], result["trace_id"]) == (5, TRACE)
        assert runtime.statistics().bugs == 0
    mine = [record for record in caplog.records if record.name == "arcp_trio.tracing"]
    assert [record.levelno for record in mine] == [logging.ERROR] * 2
    assert all(record.exc_info for record in mine)
