"""The spans of a family: each child has one of its own, beneath what its parent's agent was doing (P11.1)."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from helpers import open_raw, terminals
from jobs.parents import ANY, Family, accepted, end_of
from traced import PARENT, TRACE, Recorded, carrying, current_id, ids_of, parent_id, recorded

import arcp_trio

__all__ = ["recorded"]


@pytest.mark.requirement("P11.1", "P10.1", "T23")
async def test_a_child_has_a_span_beneath_that_of_its_parents_agent(recorded: Recorded) -> None:
    seen: list[str | None] = []

    async def body(job: arcp_trio.JobContext) -> None:
        with recorded.tracer.start_as_current_span("plan") as span:
            seen.append(ids_of(span)[1])
            inside = await job.delegate("look")
        outside = await job.delegate("look")
        for child in (inside, outside):
            await child.result()
        await (await job.delegate("fail")).wait_ended()

    family = Family(body)

    @family.agents.register("look")
    async def look(job: arcp_trio.JobContext, value: Any) -> None:
        # Its own, and not that of whoever has asked for it.
        seen.append(current_id())

    async with arcp_trio.open_runtime(family.agents, tracer_provider=recorded.provider) as runtime:
        async with open_raw(runtime) as client:
            frame = client.make("job.submit", {"agent": "parent", "lease_request": ANY}, extensions=carrying(PARENT))
            await client.send(frame)
            job_id = (await client.receive_until("job.accepted"))["job_id"]
            await end_of(client, job_id)
            assert {frame["trace_id"] for frame in client.received if "trace_id" in frame} == {TRACE}
            ended = [frame["job_id"] for frame in terminals(client.received)]
            children = [frame["job_id"] for frame in accepted(client.received)][1:]
    jobs = {str((span.attributes or {})["arcp.job_id"]): span for span in recorded.named("arcp.job")}
    assert set(jobs) == {*ended}
    parent = jobs[job_id]
    inside, outside, failed = (jobs[child_id] for child_id in children)
    assert {ids_of(span)[0] for span in jobs.values()} == {TRACE}
    planned, *own = seen
    assert (parent_id(inside), parent_id(outside), parent_id(failed)) == (planned, *[ids_of(parent)[1]] * 2)
    assert sorted(map(str, own)) == sorted([ids_of(inside)[1], ids_of(outside)[1]])
    session_ids = {(span.attributes or {})["arcp.session_id"] for span in jobs.values()}
    assert session_ids == {client.session_id}
    # A child's span ends before its parent's, as its job does.
    assert recorded.named("arcp.job")[-1] is parent


@pytest.mark.requirement("P11.1", "T23")
async def test_without_spans_the_trace_is_inherited_all_the_same() -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        headers = job.trace_headers()["traceparent"]
        return [headers, await (await job.delegate("headers")).result()]

    family = Family(body)

    @family.agents.register("headers")
    async def headers(job: arcp_trio.JobContext, value: Any) -> str:
        await trio.lowlevel.checkpoint()
        return job.trace_headers()["traceparent"]

    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        result = (await end_of(client, job_id))["payload"]["result"]
        assert len({header.split("-")[1] for header in result}) == 1
