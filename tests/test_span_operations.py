"""Spans of guarded operations: one for each, under the job's, ended with what came of it (P11.1)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from helpers import open_raw
from opentelemetry.trace import SpanKind, StatusCode
from traced import Recorded, current_id, ids_of, parent_id, recorded

import arcp_trio

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["recorded"]

LEASE = {
    "tool.call": ["search"],
    "model.use": ["tier-fast/*"],
    "net.fetch": ["https://example.com/**"],
    "cost.budget": ["USD:1.00"],
}


async def run(recorded: Recorded, does: Callable[[arcp_trio.JobContext], Awaitable[Any]], **lease: list[str]) -> Any:
    """Run an agent's body to its end; return its result."""
    agents = arcp_trio.Agents()

    @agents.register("agent", version="1.0.0")
    async def agent(job: arcp_trio.JobContext, value: Any) -> Any:
        return await does(job)

    async with (
        arcp_trio.open_runtime(agents, tracer_provider=recorded.provider) as runtime,
        open_raw(runtime) as client,
    ):
        await client.submit("agent", lease_request={**LEASE, **lease})
        last = await client.receive_until(lambda frame: frame["type"] in ("job.result", "job.error"))
        return last["payload"].get("result")


def codes_of(spans: list[ReadableSpan]) -> list[str]:
    """Return the codes with which they ended, ``""`` for success."""
    codes = []
    for span in spans:
        code = str((span.attributes or {}).get("error.type", ""))
        assert span.status.status_code is (StatusCode.ERROR if code else StatusCode.OK)
        assert span.events == ()
        codes.append(code)
    return codes


@pytest.mark.requirement("P11.1", "T23")
async def test_each_operation_has_a_span_of_its_own_and_passes_it_on(recorded: Recorded) -> None:
    async def does(job: arcp_trio.JobContext) -> list[Any]:
        outside = current_id()
        async with job.tool_call("search", call_id="c") as call:
            inside = current_id()
            assert job.trace_headers() == call.headers
        model = await job.use_model("tier-fast/small")
        fetch = await job.fetch_allowed("https://example.com/path?key=a-secret")
        hop = await fetch.redirect("/next")
        assert current_id() == outside
        return [outside, inside, *(dict(each.headers) for each in (call, model, fetch, hop))]

    outside, inside, *headers = await run(recorded, does)
    job = recorded.one("arcp.job")
    names = ["arcp.tool.call", "arcp.model.use", "arcp.net.fetch", "arcp.net.fetch"]
    spans = [span for span in recorded.spans if span.name in names]
    assert [span.name for span in spans] == names
    assert [parent_id(span) for span in spans] == [ids_of(job)[1]] * 4 == [outside] * 4
    assert inside == ids_of(spans[0])[1]
    assert [each["traceparent"].split("-")[1:3] for each in headers] == [list(ids_of(span)) for span in spans]
    assert len({ids_of(span)[1] for span in spans}) == 4
    assert {span.kind for span in spans} == {SpanKind.CLIENT}
    assert codes_of(spans) == [""] * 4
    about = [
        {name: value for name, value in (span.attributes or {}).items() if name not in (job.attributes or {})}
        for span in spans
    ]
    assert about == [
        {"arcp.tool": "search", "arcp.call_id": "c"},
        {"arcp.model": "tier-fast/small"},
        {"server.address": "example.com"},
        {"server.address": "example.com"},
    ]
    for span in spans:
        assert (span.attributes or {})["arcp.job_id"] == (job.attributes or {})["arcp.job_id"]
    assert "secret" not in recorded.texts()


@pytest.mark.requirement("P11.1")
async def test_operations_inside_of_a_tool_are_under_it(recorded: Recorded, tmp_path: Path) -> None:
    path = tmp_path.resolve() / "file"  # noqa: ASYNC240  # the test's own
    path.touch()

    async def does(job: arcp_trio.JobContext) -> None:
        async with job.tool_call("search"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(job.fetch_allowed, "https://example.com/")
            async with job.open_file(path) as file:
                await file.read()

    await run(recorded, does, **{"fs.read": [str(path)]})
    tool = recorded.one("arcp.tool.call")
    for name, kind in (("arcp.net.fetch", SpanKind.CLIENT), ("arcp.fs.open", SpanKind.INTERNAL)):
        span = recorded.one(name)
        assert (parent_id(span), span.kind) == (ids_of(tool)[1], kind)
    assert str(path) not in recorded.texts()


@pytest.mark.requirement("P11.1", "P9.4")
async def test_a_span_ends_with_the_code_of_what_came_of_it(recorded: Recorded, tmp_path: Path) -> None:
    class UpstreamError(Exception):
        status_code = 402

    async def does(job: arcp_trio.JobContext) -> None:
        for error in (arcp_trio.JobTimeoutError("slow"), UpstreamError("a secret"), ValueError("a secret")):
            with suppress(type(error)):
                async with job.tool_call("search"):
                    raise error
        with suppress(arcp_trio.InvalidRequestError):
            async with job.tool_call("search") as call:
                call.result = {1}
        with trio.CancelScope() as scope:
            async with job.tool_call("search"):
                scope.cancel()
                await trio.lowlevel.checkpoint()
        with trio.CancelScope() as scope:
            # Cancelled behind its result: the call is not.
            async with job.tool_call("search"):
                scope.cancel()
        with suppress(arcp_trio.PermissionDeniedError):
            async with job.tool_call("rm"):
                raise AssertionError("the body ran")
        for operation in (
            job.use_model("tier-slow/large"),
            job.fetch_allowed("https://evil.example/a-secret"),
            job.open_file(tmp_path / "a-secret").__aenter__(),
        ):
            with suppress(arcp_trio.PermissionDeniedError):
                await operation
        with suppress(FileNotFoundError):
            async with job.open_file("/nowhere"):
                raise AssertionError("it was opened")
        await job.metric("cost.search", 2, "USD")
        with suppress(arcp_trio.BudgetExhaustedError):
            await job.use_model("tier-fast/small")

    await run(recorded, does, **{"fs.read": ["/nowhere"]})
    assert codes_of(recorded.named("arcp.tool.call")) == [
        "TIMEOUT",
        "BUDGET_EXHAUSTED",
        "INTERNAL_ERROR",
        "INVALID_REQUEST",
        "CANCELLED",
        "",
        "PERMISSION_DENIED",
    ]
    assert codes_of(recorded.named("arcp.model.use")) == ["PERMISSION_DENIED", "BUDGET_EXHAUSTED"]
    assert codes_of(recorded.named("arcp.net.fetch")) == ["PERMISSION_DENIED"]
    assert codes_of(recorded.named("arcp.fs.open")) == ["PERMISSION_DENIED", "INTERNAL_ERROR"]
    left = [str((span.attributes or {})["arcp.budget.remaining"]) for span in recorded.named("arcp.model.use")]
    assert left == ['{"USD":1.00}', '{"USD":-1.00}']
    assert "secret" not in recorded.texts()


@pytest.mark.requirement("P11.1")
@pytest.mark.parametrize("closes", [True, False])
async def test_a_call_that_an_agent_keeps_in_a_generator_ends_without_a_complaint(
    closes: bool, recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever leaves the loop early has its span around him, until the generator is closed, perhaps by another task."""

    async def calling(job: arcp_trio.JobContext) -> AsyncGenerator[str | None, None]:
        async with job.tool_call("search"):
            while True:
                yield current_id()

    async def does(job: arcp_trio.JobContext) -> list[str | None]:
        generator = calling(job)
        inside = await anext(generator)
        if closes:
            await generator.aclose()
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(generator.aclose)
        return [inside, current_id()]

    inside, after = await run(recorded, does)
    call, job = recorded.one("arcp.tool.call"), recorded.one("arcp.job")
    assert inside == ids_of(call)[1]
    # Another task's context is its own: there it was restored, here it goes with the agent.
    assert after == (ids_of(job)[1] if closes else inside)
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []
