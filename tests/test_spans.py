"""Spans of sessions and jobs: under whom, where they are current, what they say and do not say (P11.1)."""

from __future__ import annotations

from contextlib import aclosing
from decimal import Decimal
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, Script, open_raw
from jobs.ends import last_of
from opentelemetry import trace
from opentelemetry.context import attach
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from traced import (
    NOW,
    PARENT,
    SPAN,
    THEIR_CLOCK,
    TRACE,
    Recorded,
    agents_that,
    carrying,
    current_id,
    ids_of,
    parent_id,
    recorded,
)

import arcp_trio
from arcp_trio.jobs.actor import JobActor
from arcp_trio.wire.timestamps import format_timestamp
from arcp_trio.wire.tracecontext import TRACECONTEXT_EXTENSION

__all__ = ["recorded"]

# --- what there is, and under whom ----------------------------------------------------------------


@pytest.mark.requirement("P11.1", "P5.8", "T23")
async def test_a_job_runs_under_the_span_in_which_its_client_has_asked(recorded: Recorded) -> None:
    agents = agents_that(lambda job: [current_id(), job.trace_headers(), job.trace_id])
    async with (
        arcp_trio.open_runtime(agents, tracer_provider=recorded.provider) as runtime,
        runtime.open_session(principal="me") as client,
    ):
        with recorded.tracer.start_as_current_span("asking") as asking:
            job = await client.submit("look")
            # What the runtime does in its own tasks is not this task's.
            assert trace.get_current_span() is asking
        seen = await job.result()
    span = recorded.one("arcp.job")
    assert parent_id(span) == ids_of(asking)[1]
    assert span.parent is not None
    assert span.parent.is_remote
    trace_id, span_id = ids_of(span)
    assert trace_id == ids_of(asking)[0] == job.trace_id
    # Newer versions say of a trace id that they have made that it is random.
    assert seen in ([span_id, {"traceparent": f"00-{trace_id}-{span_id}-{flags}"}, trace_id] for flags in ("01", "03"))


@pytest.mark.requirement("P11.1")
async def test_what_a_session_and_a_job_say_of_themselves(
    recorded: Recorded, script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    @script.agents.register("spend")
    async def spend(job: arcp_trio.JobContext, value: Any) -> None:
        await job.log("info", "about to")
        await trio.sleep(1)
        budget = job._actor.authority.budget
        budget.charge("USD", Decimal("1.25"))
        budget.charge("EUR", Decimal("2.0000001"))

    async with (
        arcp_trio.open_runtime(script.agents, tracer_provider=recorded.provider, clock=THEIR_CLOCK) as runtime,
        open_raw(runtime) as client,
    ):
        lease = {"net.fetch": ["https://a.example/**"], "fs.read": ["/data/**"], "cost.budget": ["USD:5.00", "EUR:2"]}
        constraints = {"expires_at": format_timestamp(NOW + 3600)}
        job_id = await client.submit("spend", 1, lease_request=lease, lease_constraints=constraints)
        await client.receive_until("job.event")
        actor = runtime._directory.find(job_id)
        assert isinstance(actor, JobActor)
        running = dict(actor.trace._span._span.attributes)  # type: ignore[union-attr]
        await last_of(client, job_id)
        plain_id = await client.submit("echo", 2)
        await last_of(client, plain_id)
        await client.request("session.close")
        await client.receive_close()
    session, first, second = recorded.one("arcp.session"), *recorded.named("arcp.job")
    assert [first.name, second.name] == ["arcp.job spend@1.0.0", "arcp.job echo@1.0.0"]
    assert dict(session.attributes or {}) == {"arcp.session_id": client.session_id}
    assert running == {
        "arcp.session_id": client.session_id,
        "arcp.job_id": job_id,
        "arcp.agent": "spend@1.0.0",
        "arcp.lease.capabilities": "cost.budget,fs.read,net.fetch",
        "arcp.lease.expires_at": "2027-01-15T09:00:00.000Z",
        "arcp.budget.remaining": '{"EUR":2,"USD":5.00}',
    }
    # What was spent, exactly, as far below zero as it went.
    assert dict(first.attributes or {}) == running | {
        "arcp.budget.remaining": '{"EUR":-0.0000001,"USD":3.75}',
        "arcp.job.status": "success",
    }
    assert dict(second.attributes or {}) == {
        "arcp.session_id": client.session_id,
        "arcp.job_id": plain_id,
        "arcp.agent": "echo@1.0.0",
        "arcp.job.status": "success",
    }
    assert {span.kind for span in (session, first, second)} == {SpanKind.SERVER}
    assert {span.status.status_code for span in (session, first, second)} == {StatusCode.OK}
    scope = first.instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.version) == ("arcp_trio", arcp_trio.__version__)


@pytest.mark.requirement("P11.1")
async def test_the_lease_of_a_client_does_not_make_a_span_of_any_size(recorded: Recorded, script: Script) -> None:
    async with (
        arcp_trio.open_runtime(script.agents, tracer_provider=recorded.provider) as runtime,
        open_raw(runtime) as client,
    ):
        lease = {f"namespace{number}.x": ["a"] for number in range(1000)}
        await last_of(client, await client.submit("echo", 1, lease_request=lease))
    (found,) = [(span.attributes or {})["arcp.lease.capabilities"] for span in recorded.named("arcp.job")]
    assert len(str(found)) == 1024


@pytest.mark.requirement("P5.8", "P11.1")
@pytest.mark.parametrize(
    ("fields", "parent", "trace_id"),
    [
        ({"trace_id": TRACE, "extensions": carrying(PARENT)}, SPAN, TRACE),
        ({"extensions": carrying(PARENT)}, SPAN, TRACE),
        ({"trace_id": PARENT}, SPAN, TRACE),
        # The envelope's trace counts; in it, a parent that nobody knows.
        ({"trace_id": "ab" * 16, "extensions": carrying(PARENT)}, "any", "ab" * 16),
        ({"trace_id": TRACE}, "any", TRACE),
        ({"trace_id": TRACE, "extensions": carrying("malformed")}, "any", TRACE),
        # The root of a trace of its own, which the whole job then has.
        ({}, None, None),
        ({"trace_id": "malformed", "extensions": {TRACECONTEXT_EXTENSION: 7}}, None, None),
    ],
)
async def test_the_trace_of_a_job_is_the_one_that_was_named(
    recorded: Recorded, fields: Frame, parent: str | None, trace_id: str | None
) -> None:
    agents = agents_that(lambda job: [job.trace_id, job.trace_headers()["traceparent"].split("-")[1]])
    async with (
        arcp_trio.open_runtime(agents, tracer_provider=recorded.provider) as runtime,
        open_raw(runtime) as client,
    ):
        await client.request("job.submit", {"agent": "look"}, **fields)
        result = await client.receive_until("job.result")
    span = recorded.one("arcp.job")
    assert (parent_id(span) is None) == (parent is None)
    assert parent in (parent_id(span), "any")
    found = ids_of(span)[0]
    assert trace_id in (found, None)
    assert {frame["trace_id"] for frame in client.received if "job_id" in frame} == {found}
    assert result["payload"]["result"] == [found, found]
    # By default nothing is recorded beneath a parent that is not.
    assert span.parent is None or span.parent.trace_flags.sampled


@pytest.mark.requirement("P11.1")
async def test_a_session_is_under_what_its_hello_names_and_else_alone(recorded: Recorded, script: Script) -> None:
    from helpers import make_hello

    hello = {**make_hello(), "extensions": carrying(PARENT)}
    with recorded.tracer.start_as_current_span("the program"):
        async with arcp_trio.open_runtime(script.agents, tracer_provider=recorded.provider) as runtime:
            async with open_raw(runtime, hello=hello):
                pass
            async with open_raw(runtime):
                pass
            async with runtime.open_session(principal="me") as client:
                await (await client.submit("echo", 1, trace_id=TRACE)).result()
    named, *others = recorded.named("arcp.session")
    assert (ids_of(named)[0], parent_id(named)) == (TRACE, SPAN)
    assert [parent_id(span) for span in others] == [None, None]
    assert len({ids_of(span)[0] for span in recorded.named("arcp.session")}) == 3
    # Nor is a job beneath the program that opened its runtime.
    assert ids_of(recorded.one("arcp.job"))[0] == TRACE


@pytest.mark.requirement("P11.1")
async def test_a_trace_that_is_not_sampled_goes_on_unsampled_and_its_state_with_it(script: Script) -> None:
    recorded = Recorded(ALWAYS_OFF)
    agents = agents_that(lambda job: job.trace_headers())
    async with (
        arcp_trio.open_runtime(agents, tracer_provider=recorded.provider) as runtime,
        open_raw(runtime) as client,
    ):
        extensions = carrying(PARENT, "congo=t61rcWkgMzE,rojo=1")
        await client.request("job.submit", {"agent": "look"}, trace_id=TRACE, extensions=extensions)
        headers = (await client.receive_until("job.result"))["payload"]["result"]
    assert headers["traceparent"].startswith(f"00-{TRACE}-")
    assert headers["traceparent"].endswith("-00")
    assert SPAN not in headers["traceparent"]
    assert headers.get("tracestate", "congo=t61rcWkgMzE,rojo=1") == "congo=t61rcWkgMzE,rojo=1"
    assert recorded.spans == ()


@pytest.mark.requirement("P11.1")
async def test_the_state_of_a_trace_goes_on_with_it(recorded: Recorded) -> None:
    agents = agents_that(lambda job: job.trace_headers())
    async with (
        arcp_trio.open_runtime(agents, tracer_provider=recorded.provider) as runtime,
        open_raw(runtime) as client,
    ):
        extensions = carrying(PARENT, "congo=t61rcWkgMzE, rojo=1")
        await client.request("job.submit", {"agent": "look"}, trace_id=TRACE, extensions=extensions)
        headers = (await client.receive_until("job.result"))["payload"]["result"]
    assert headers["tracestate"] == "congo=t61rcWkgMzE,rojo=1"
    assert ids_of(recorded.one("arcp.job")) == tuple(headers["traceparent"].split("-")[1:3])


# --- where it is current --------------------------------------------------------------------------


@pytest.mark.requirement("P11.1")
async def test_what_an_agent_starts_is_under_its_job(recorded: Recorded) -> None:
    """Its own spans, its tasks, its threads, and what those call back."""
    agents = arcp_trio.Agents()
    seen: list[str | None] = []

    async def look() -> None:
        seen.append(current_id())

    def in_a_thread() -> None:
        seen.append(current_id())
        trio.from_thread.run(look)
        trio.from_thread.run_sync(lambda: seen.append(current_id()))

    @agents.register("a")
    async def agent(job: arcp_trio.JobContext, value: Any) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
        await trio.to_thread.run_sync(in_a_thread)
        with recorded.tracer.start_as_current_span("own"):
            headers = job.trace_headers()
            await look()
        await look()
        return headers["traceparent"].split("-")[2]

    async with (
        arcp_trio.open_runtime(agents, tracer_provider=recorded.provider) as runtime,
        runtime.open_session(principal="me") as client,
    ):
        with trio.fail_after(30):
            innermost = await (await client.submit("a")).result()
    job_id, own = ids_of(recorded.one("arcp.job"))[1], recorded.one("own")
    assert parent_id(own) == job_id
    assert seen == [job_id, job_id, job_id, job_id, ids_of(own)[1], job_id]
    assert innermost == ids_of(own)[1]


@pytest.mark.requirement("P11.1")
async def test_no_span_is_current_beyond_its_agent(recorded: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    """Also where an agent leaves its own behind; and an agent has none of what its client or its runtime do."""
    agents = arcp_trio.Agents()

    @agents.register("a")
    async def agent(job: arcp_trio.JobContext, value: Any) -> Any:
        before = current_id()
        attach(trace.set_span_in_context(recorded.tracer.start_span("left behind")))
        return before

    with recorded.tracer.start_as_current_span("the program") as program:
        async with arcp_trio.open_runtime(agents, tracer_provider=recorded.provider) as runtime:
            async with runtime.open_session(principal="me") as client:
                with recorded.tracer.start_as_current_span("asking") as asking:
                    jobs = [await client.submit("a") for _ in range(3)]
                    seen = [await job.result() for job in jobs]
                    assert trace.get_current_span() is asking
                assert trace.get_current_span() is program
        assert trace.get_current_span() is program
    assert current_id() is None
    assert sorted(seen) == sorted(ids_of(span)[1] for span in recorded.named("arcp.job"))
    assert caplog.records == []


@pytest.mark.requirement("P11.1")
async def test_a_session_that_is_left_from_a_generator_leaves_nothing_behind(
    recorded: Recorded, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    """A span that is opened in an asynchronous generator stays current in whoever breaks out of it: none is."""

    async def events_of(runtime: arcp_trio.Runtime) -> Any:
        async with runtime.open_session(principal="me") as client:
            job = await client.submit("flood", 5)
            async for event in job.events():
                yield event

    async with arcp_trio.open_runtime(script.agents, tracer_provider=recorded.provider) as runtime:
        async with aclosing(events_of(runtime)) as events:
            async for _ in events:
                assert current_id() is None
                break
        assert current_id() is None
    assert current_id() is None
    assert len(recorded.named("arcp.session")) == len(recorded.named("arcp.job")) == 1
    assert caplog.records == []


# --- what it costs, and what it must not tell -----------------------------------------------------


@pytest.mark.requirement("P11.1")
async def test_there_is_a_span_for_each_job_and_none_for_its_events(recorded: Recorded, script: Script) -> None:
    async with (
        arcp_trio.open_runtime(script.agents, tracer_provider=recorded.provider) as runtime,
        open_raw(runtime) as client,
    ):
        await last_of(client, await client.submit("flood", 300))
    assert len(recorded.spans) == 2
    assert recorded.one("arcp.job").events == ()


@pytest.mark.requirement("C07", "P14.2", "P11.1")
async def test_no_secret_is_in_a_span(
    recorded: Recorded, script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    canary = "canary-5ca1ab1e"
    agents = script.agents

    @agents.register("tell")
    async def tell(job: arcp_trio.JobContext, value: Any) -> Any:
        await job.log("info", value["say"])
        await job.tool_result(await job.tool_call("tool", {"key": value["say"]}), value["say"])
        if value.get("raise"):
            raise value_error(value["say"])
        return value

    def value_error(text: str) -> Exception:
        return arcp_trio.InvalidRequestError(text, details={"text": text})

    script.error = ValueError(canary)
    verifier = arcp_trio.StaticTokens({canary: "me"})
    async with arcp_trio.open_runtime(agents, tracer_provider=recorded.provider, verifier=verifier) as runtime:
        from helpers import make_hello

        async with open_raw(runtime, principal=None, hello=make_hello(token=canary)) as client:
            lease = {"fs.read": [f"/{canary}/**"], "tool.call": [canary]}
            for value in ({"say": canary}, {"say": canary, "raise": True}):
                await last_of(client, await client.submit("tell", value, lease_request=lease))
            await last_of(client, await client.submit("fail", canary))
            job_id = await client.submit("sleep", canary)
            await client.request("job.cancel", {"job_id": job_id, "reason": canary})
            await last_of(client, job_id)
            resume_token = client.received[0]["payload"]["resume_token"]
    assert len(recorded.named("arcp.job")) == 4
    assert canary in str(client.received)
    assert canary not in recorded.texts()
    assert resume_token not in recorded.texts()


@pytest.mark.requirement("P11.1")
def test_a_span_ends_once(recorded: Recorded, caplog: pytest.LogCaptureFixture) -> None:
    from arcp_trio.spans import Spans

    span = Spans(recorded.provider).start_session("sess_1", None)
    assert span is not None
    span.end()
    span.end("TIMEOUT", attributes={"late": "yes"})
    ended = recorded.one("arcp.session")
    assert (ended.status.status_code, dict(ended.attributes or {})) == (StatusCode.OK, {"arcp.session_id": "sess_1"})
    assert caplog.records == []
