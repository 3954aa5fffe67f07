"""Guarded operations: asked for before they are done, told once, and nothing is done that was refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from helpers import open_raw
from jobs.guarded_runs import EVERYTHING, OPERATIONS, Run, agents_that, call_tool, folder, run

import arcp_trio
from arcp_trio.wire.tracecontext import TRACECONTEXT_EXTENSION

__all__ = ["folder"]

NOW = 1_800_000_000.0


# --- what a lease does not cover ----------------------------------------------------------------------


@pytest.mark.requirement("P9.4", "G01", "G02")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("all_others", [False, True])
async def test_what_the_lease_does_not_cover_is_not_done(folder: Path, operation: str, all_others: bool) -> None:
    does, namespace = OPERATIONS[operation]
    lease = {name: patterns for name, patterns in EVERYTHING.items() if name != namespace} if all_others else {}
    path = folder / "done"

    async def agent(job: arcp_trio.JobContext) -> str:
        with pytest.raises(arcp_trio.PermissionDeniedError, match=namespace):
            await does(job, path)
        return "it went on"

    ended = await run(agent, lease)
    assert ended.terminal["result"] == "it went on"
    # The refusal is the one thing that is said: no tool_call, whose result would be missing.
    ((kind, body),) = ended.events
    assert kind == "tool_result"
    assert body.keys() == {"call_id", "error"}
    assert re.fullmatch("call_[0-9A-Z]{26}", body["call_id"])
    assert (body["error"]["code"], body["error"]["retryable"]) == ("PERMISSION_DENIED", False)
    assert not path.exists() or path.read_text() == ""


@pytest.mark.requirement("P9.4", "P9.8")
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_what_the_lease_covers_is_done(folder: Path, operation: str) -> None:
    does, namespace = OPERATIONS[operation]
    path = folder / "done"
    ended = await run(lambda job: does(job, path), {namespace: EVERYTHING[namespace]})
    assert ended.terminal["final_status"] == "success"
    assert path.read_text()
    assert ended.errors == []


@pytest.mark.requirement("P9.4", "P7.9")
async def test_a_refusal_that_nobody_catches_is_the_jobs_error(folder: Path) -> None:
    ended = await run(lambda job: call_tool(job, folder / "done"), {"cost.budget": ["USD:0"], "tool.call": ["*"]})
    assert [error["code"] for error in ended.errors] == ["BUDGET_EXHAUSTED"]
    assert (ended.terminal["code"], ended.terminal["final_status"]) == ("BUDGET_EXHAUSTED", "error")


# --- after the end, and before it ---------------------------------------------------------------------


@pytest.mark.requirement("P7.11", "P9.4")
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_after_the_jobs_end_nothing_is_done(
    folder: Path, operation: str, autojump_clock: trio.testing.MockClock
) -> None:
    does, _ = OPERATIONS[operation]
    path = folder / "done"
    path.touch()
    raised: list[BaseException] = []

    async def agent(job: arcp_trio.JobContext) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(500)
            try:
                await does(job, path)
            except arcp_trio.PermissionDeniedError as exc:
                raised.append(exc)

    async with arcp_trio.open_runtime(agents_that(agent)) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("agent", lease_request=EVERYTHING)
        await client.request("job.cancel", {"job_id": job_id})
        await client.receive_until("job.error")
        await trio.sleep(1_000)
        assert await client.settle() == []
    assert [type(exc) for exc in raised] == [arcp_trio.JobEndedError]
    assert path.read_text() == ""


@pytest.mark.requirement("P7.11")
@pytest.mark.parametrize("error", [None, ValueError("as it was")])
async def test_a_call_that_outlives_its_job_is_told_to_its_agent_alone(
    error: Exception | None, autojump_clock: trio.testing.MockClock
) -> None:
    raised: list[BaseException] = []

    async def agent(job: arcp_trio.JobContext) -> None:
        with trio.CancelScope(shield=True):
            try:
                async with job.tool_call("search"):
                    await trio.sleep(500)
                    if error is not None:
                        raise error
            except Exception as exc:  # noqa: BLE001  # looked at below
                raised.append(exc)

    async with arcp_trio.open_runtime(agents_that(agent)) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("agent", lease_request=EVERYTHING)
        await client.receive_until("job.event")
        await client.request("job.cancel", {"job_id": job_id})
        await client.receive_until("job.error")
        await trio.sleep(1_000)
        assert await client.settle() == []
        assert runtime.statistics().bugs == 0
    (exc,) = raised
    assert exc is error if error is not None else isinstance(exc, arcp_trio.JobEndedError)


@pytest.mark.requirement("P7.11", "P7.13")
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_agent_that_is_being_stopped_may_clean_up(folder: Path, operation: str) -> None:
    does, _ = OPERATIONS[operation]
    path = folder / "done"

    async def agent(job: arcp_trio.JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await does(job, path)

    async with arcp_trio.open_runtime(agents_that(agent)) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("agent", lease_request=EVERYTHING)
        await client.settle()
        await client.request("job.cancel", {"job_id": job_id})
        ended = await client.receive_until("job.error")
        assert ended["payload"]["code"] == "CANCELLED"
        assert Run(client.received).errors == []
    assert path.read_text()


# --- models, URLs, and what is passed on --------------------------------------------------------------


@pytest.mark.requirement("P9.8")
async def test_a_model_is_used_by_the_name_that_was_allowed() -> None:
    async def agent(job: arcp_trio.JobContext) -> str:
        with pytest.raises(arcp_trio.PermissionDeniedError):
            await job.use_model("tier-slow/large")
        return (await job.use_model("tier-fast/small")).name

    ended = await run(agent, {"model.use": ["tier-fast/*"]})
    assert ended.terminal["result"] == "tier-fast/small"
    ended = await run(lambda job: job.use_model(5), {"model.use": ["*"]})  # type: ignore[arg-type]
    assert ended.terminal["code"] == "INVALID_REQUEST"


@pytest.mark.requirement("P9.3", "P9.4")
async def test_a_url_is_fetched_in_its_canonical_form() -> None:
    async def agent(job: arcp_trio.JobContext) -> str:
        return (await job.fetch_allowed("HTTPS://Example.COM:443/a%7Eb?q=1#part")).url

    ended = await run(agent)
    assert ended.terminal["result"] == "https://example.com/a~b?q=1"


@pytest.mark.requirement("P9.3", "P9.4", "G04")
@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b", "https://example.com/b"),
        ("c?x=y", "https://example.com/a/c?x=y"),
        ("../d", "https://example.com/d"),
        ("?q", "https://example.com/a/b?q"),
        ("https://example.com/e", "https://example.com/e"),
        ("//example.com/f", "https://example.com/f"),
        ("//evil.example/a", None),
        ("http://example.com/a", None),
        ("https://example.com.evil.example/", None),
        ("https://example.com@evil.example/", None),
        ("https://example.com:8443/", None),
        ("ftp://example.com/", None),
        ("javascript:alert(1)", None),
        ("\\\\evil.example/a", None),
        ("/\\evil.example/a", None),
        ("/a\n/b", None),
        ("\thttps://evil.example/", None),
        ("https://[::1", None),
        ("/a%2f..%2fb", None),
    ],
)
async def test_each_hop_of_a_redirect_is_asked_for(location: str, url: str | None) -> None:
    async def agent(job: arcp_trio.JobContext) -> Any:
        fetch = await job.fetch_allowed("https://example.com/a/b?secret=1")
        try:
            hop = await fetch.redirect(location)
        except arcp_trio.PermissionDeniedError:
            return None
        assert (fetch.redirects, hop.redirects) == (0, 1)
        return hop.url

    ended = await run(agent)
    assert ended.terminal.get("result") == url
    assert len(ended.errors) == (url is None)


@pytest.mark.requirement("P9.4")
async def test_a_server_that_leads_in_circles() -> None:
    async def agent(job: arcp_trio.JobContext) -> int:
        fetch = await job.fetch_allowed("https://example.com/")
        with pytest.raises(arcp_trio.InvalidRequestError, match="location"):
            await fetch.redirect(None)  # type: ignore[arg-type]
        with pytest.raises(arcp_trio.PermissionDeniedError, match="20 redirects"):
            while True:
                fetch = await fetch.redirect("/")
        return fetch.redirects

    ended = await run(agent)
    assert ended.terminal["result"] == 20


@pytest.mark.requirement("P11.1", "T23")
async def test_each_operation_passes_the_jobs_trace_on() -> None:
    found: list[Mapping[str, str]] = []
    carrier = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "vendor=theirs"}

    async def agent(job: arcp_trio.JobContext) -> None:
        call = job.tool_call("search")
        assert call.headers == {}
        async with call:
            found.append(call.headers)
        found.append((await job.use_model("m")).headers)
        fetch = await job.fetch_allowed("https://example.com/")
        found.extend([fetch.headers, (await fetch.redirect("/b")).headers])

    async with arcp_trio.open_runtime(agents_that(agent)) as runtime, open_raw(runtime) as client:
        submit = {"agent": "agent", "lease_request": EVERYTHING}
        await client.request("job.submit", submit, extensions={TRACECONTEXT_EXTENSION: carrier})
        assert (await client.receive_until("job.result"))["trace_id"] == "ab" * 16
    # Without OpenTelemetry the operation that asked for the job is what is passed on.
    assert found == [carrier] * 4
    for headers in found:
        # Nobody changes what another one sends.
        with pytest.raises(TypeError):
            headers["traceparent"] = "mine"  # type: ignore[index]
