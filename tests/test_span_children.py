"""A trace from a client's span through a gateway, jobs and their children to what the last of them calls (P11.1)."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from helpers import open_raw
from opentelemetry.trace import SpanKind, StatusCode
from traced import PARENT, SPAN, TRACE, Recorded, carrying, current_id, ids_of, parent_id, recorded

import arcp_trio

__all__ = ["recorded"]

LEASE = {
    "agent.delegate": ["*"],
    "tool.call": ["search"],
    "net.fetch": ["https://example.com/**"],
    "cost.budget": ["USD:5.00"],
}


def family() -> arcp_trio.Agents:
    """Return agents that delegate: ``parent`` to ``child``, which calls a tool and fetches."""
    agents = arcp_trio.Agents()

    @agents.register("child", version="1.0.0")
    async def child(job: arcp_trio.JobContext, value: Any) -> Any:
        async with job.tool_call("search") as call:
            tool = dict(call.headers)
        fetch = await job.fetch_allowed("https://example.com/a")
        return [current_id(), tool, dict(fetch.headers), job.trace_headers()]

    @agents.register("parent", version="1.0.0")
    async def parent(job: arcp_trio.JobContext, value: Any) -> Any:
        lease = {"tool.call": ["search"], "net.fetch": ["https://example.com/**"], "cost.budget": ["USD:2.00"]}
        children = [await job.delegate("child", lease_request=lease) for _ in range(value)]
        return [await each.result() for each in children]

    return agents


@pytest.mark.requirement("P11.1", "P5.8", "P10.1", "T23")
async def test_a_trace_goes_from_a_clients_span_to_what_a_child_calls(recorded: Recorded) -> None:
    verifier = arcp_trio.StaticTokens({"s3cret": "me"})
    with trio.fail_after(30):
        async with (
            arcp_trio.open_runtime(family(), tracer_provider=recorded.provider, verifier=verifier) as runtime,
            trio.open_nursery() as nursery,
        ):
            listening = await nursery.start(arcp_trio.serve_websocket, runtime, "127.0.0.1", 0)
            async with arcp_trio.open_client(listening.url, token="s3cret") as client:
                with recorded.tracer.start_as_current_span("asking") as asking:
                    job = await client.submit("parent", 1, lease_request=LEASE)
                ((inside, *headers),) = await job.result()
            nursery.cancel_scope.cancel()
    parent, child = recorded.one("arcp.job parent"), recorded.one("arcp.job child")
    calls = [recorded.one("arcp.tool.call"), recorded.one("arcp.net.fetch")]
    assert {ids_of(span)[0] for span in (asking, parent, child, *calls)} == {job.trace_id}
    assert parent_id(parent) == ids_of(asking)[1]
    # In a span of its own, beneath its parent's; here no process lies between the two.
    assert parent_id(child) == ids_of(parent)[1]
    assert [span.kind for span in (parent, child)] == [SpanKind.SERVER, SpanKind.INTERNAL]
    assert inside == ids_of(child)[1]
    assert [parent_id(span) for span in calls] == [inside, inside]
    assert [tuple(each["traceparent"].split("-")[1:3]) for each in headers] == [
        ids_of(span) for span in (*calls, child)
    ]
    assert parent.end_time is not None
    assert child.end_time is not None
    assert child.end_time <= parent.end_time


@pytest.mark.requirement("P11.1", "P10.2")
async def test_each_child_has_a_span_with_what_it_may_do(recorded: Recorded) -> None:
    async with (
        arcp_trio.open_runtime(family(), tracer_provider=recorded.provider) as runtime,
        open_raw(runtime) as client,
    ):
        await client.request("job.submit", {"agent": "parent", "input": 2, "lease_request": LEASE}, trace_id=TRACE)
        await client.receive_until(lambda frame: frame["type"] == "job.result" and len(frame["payload"]["result"]) == 2)
    (parent,), children = recorded.named("arcp.job parent"), recorded.named("arcp.job child")
    assert len({ids_of(span)[1] for span in children}) == 2
    for span in children:
        assert parent_id(span) == ids_of(parent)[1]
        attributes = span.attributes or {}
        assert attributes["arcp.session_id"] == client.session_id
        assert attributes["arcp.lease.capabilities"] == "cost.budget,net.fetch,tool.call"
        assert attributes["arcp.budget.remaining"] == '{"USD":2.00}'
    # All that the session hears of the children has the trace too.
    of_jobs = [frame for frame in client.received if "job_id" in frame]
    assert len({frame["job_id"] for frame in of_jobs}) == 3
    assert {frame.get("trace_id") for frame in of_jobs} == {TRACE}


@pytest.mark.requirement("P11.1", "P10.3")
@pytest.mark.parametrize(
    ("end", "codes"),
    [("cancel", ["CANCELLED", "CANCELLED"]), ("timeout", ["CANCELLED", "TIMEOUT"]), ("shutdown", None)],
)
async def test_the_span_of_a_child_ends_once_before_its_parents(
    end: str,
    codes: list[str] | None,
    recorded: Recorded,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    agents = arcp_trio.Agents()

    @agents.register("child")
    async def child(job: arcp_trio.JobContext, value: Any) -> None:
        await trio.sleep_forever()

    @agents.register("parent")
    async def parent(job: arcp_trio.JobContext, value: Any) -> None:
        await (await job.delegate("child")).result()

    async with (
        arcp_trio.open_runtime(agents, tracer_provider=recorded.provider) as runtime,
        open_raw(runtime) as client,
    ):
        seconds = 5 if end == "timeout" else 500
        job_id = await client.submit("parent", lease_request=LEASE, max_runtime_sec=seconds)
        await client.settle()
        if end == "cancel":
            await client.request("job.cancel", {"job_id": job_id})
        if end != "shutdown":
            await client.receive_until(lambda frame: frame["type"] == "job.error" and frame["job_id"] == job_id)
    spans = recorded.named("arcp.job")
    assert [span.name.split()[1] for span in spans] == ["child@1.0.0", "parent@1.0.0"]
    assert {span.status.status_code for span in spans} == {StatusCode.ERROR}
    if codes is not None:
        assert [span.status.description for span in spans] == codes
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


@pytest.mark.requirement("P11.1", "P10.1", "T23")
async def test_without_spans_a_child_passes_on_what_has_asked_for_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arcp_trio.runtime, "find_spans", lambda provider: None)
    async with arcp_trio.open_runtime(family()) as runtime, open_raw(runtime) as client:
        payload = {"agent": "parent", "input": 1, "lease_request": LEASE}
        await client.request("job.submit", payload, trace_id=TRACE, extensions=carrying(PARENT, "a=1"))
        result = await client.receive_until(
            lambda frame: frame["type"] == "job.result" and len(frame["payload"]["result"]) == 1
        )
    ((inside, *headers),) = result["payload"]["result"]
    assert inside is None
    assert headers == [{"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1"}] * 3
