"""What a provisioner asks its upstream is in the trace of the job that it asks for (P11.1)."""

from __future__ import annotations

import pytest
from helpers import open_raw
from provisioning.running import LEASE, credentials_of, open_bench
from traced import PARENT, TRACE, Recorded, carrying, ids_of, parent_id, recorded

from arcp_trio.wire.tracecontext import TraceContext

__all__ = ["recorded"]


@pytest.mark.requirement("P11.1", "P9.11")
async def test_a_provisioner_is_asked_in_the_trace_of_the_submit() -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        submit = {"agent": "gate", "lease_request": LEASE}
        await client.request("job.submit", submit, trace_id=TRACE, extensions=carrying(PARENT, "a=1"))
        accepted = await client.receive_until("job.accepted")
        (asked,) = bench.provisioner.requests
        assert asked.trace_id == TRACE
        assert asked.trace_headers == {"traceparent": PARENT, "tracestate": "a=1"}
        # And so is a rotation, however long after.
        await runtime.rotate_credential(accepted["job_id"], credentials_of(accepted)[0]["id"])
        assert bench.provisioner.requests[1].trace_headers == asked.trace_headers


@pytest.mark.requirement("P11.1", "P5.8")
async def test_a_trace_that_nobody_named_is_the_jobs_before_there_is_a_job(recorded: Recorded) -> None:
    for options in ({}, {"tracer_provider": recorded.provider}):
        async with open_bench(**options) as (bench, runtime), open_raw(runtime) as client:
            await client.request("job.submit", {"agent": "gate", "lease_request": LEASE})
            accepted = await client.receive_until("job.accepted")
            (asked,) = bench.provisioner.requests
            found = TraceContext.read(dict(asked.trace_headers))
            assert found is not None
            assert asked.trace_id == found.trace_id == accepted["trace_id"] == accepted["payload"]["trace_id"]
    # Both are beneath the same operation: the job, and what was asked for it.
    assert parent_id(recorded.one("arcp.job")) == found.span_id


@pytest.mark.requirement("P11.1")
async def test_a_rotation_is_asked_for_beneath_what_the_agent_does(recorded: Recorded) -> None:
    async with open_bench(tracer_provider=recorded.provider) as (bench, runtime), open_raw(runtime) as client:
        await client.submit("rotate", 1, lease_request=LEASE)
        await client.settle()
        bench.script.gate.set()
        await client.receive_until("job.result")
        rotated = TraceContext.read(dict(bench.provisioner.requests[1].trace_headers))
        assert rotated is not None
    assert (rotated.trace_id, rotated.span_id) == ids_of(recorded.one("arcp.job"))
