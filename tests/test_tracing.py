"""Traces without OpenTelemetry, and what it costs where it is: the trace of a job is on all that is said of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, RawClient, Script, connect_raw, open_raw
from interop.strict_peers import SERVERS
from interop.test_client_matching import sit_down
from playing import Call, open_played, start_job
from traced import Recorded, ids_of, recorded

import arcp_trio
from arcp_trio.tracing import outgoing_headers
from arcp_trio.wire.tracecontext import TRACECONTEXT_EXTENSION, TraceContext

__all__ = ["recorded"]

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


# --- trace_id, everywhere -------------------------------------------------------------------------


async def hear_all(script: Script, runtime: arcp_trio.Runtime, client: RawClient) -> None:
    """Have a runtime say all that it can say of jobs."""

    @script.agents.register("all")
    async def everything(job: arcp_trio.JobContext, value: Any) -> None:
        await job.log("info", "line")
        await job.progress(1, 2)
        await job.metric("latency", 1.5)
        await job.status("working")
        await job.tool_result(await job.tool_call("tool"), 1)
        async with job.stream_result() as out:
            await out.write("text")

    for agent in ("all", "echo", "fail"):
        await client.request("job.submit", {"agent": agent, "input": 1}, trace_id=TRACE)
        await client.receive_until(lambda frame: frame["type"] in ("job.result", "job.error"))
    await client.request("job.submit", {"agent": "sleep", "max_runtime_sec": 1}, trace_id=TRACE)
    await client.receive_until("job.error")
    await client.request("job.submit", {"agent": "gate"}, trace_id=TRACE)
    accepted = await client.receive_until("job.accepted")
    payload = {"job_id": accepted["job_id"]}
    other = await connect_raw(runtime)
    await other.request("job.subscribe", {**payload, "history": True})
    await other.receive_until("job.subscribed")
    await client.request("job.cancel", payload)
    await client.receive_until("job.error")
    await other.receive_until("job.error")
    await client.request("job.cancel", payload)
    await client.receive_until("x-arcp-trio.reply")
    await other.request("job.subscribe", {**payload, "history": True})
    await other.receive_until("job.error")
    client.received += other.received


@pytest.mark.requirement("P11.1", "P5.8", "T23")
async def test_every_frame_of_a_job_has_its_trace(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await hear_all(script, runtime, client)
    of_jobs = [frame for frame in client.received if "job_id" in frame]
    assert {frame["type"] for frame in of_jobs} == {
        "job.accepted",
        "job.event",
        "job.result",
        "job.error",
        "job.cancelled",
        "job.subscribed",
        "x-arcp-trio.reply",
    }
    assert [frame for frame in of_jobs if frame.get("trace_id") != TRACE] == []
    for frame in of_jobs:
        if frame["type"] in ("job.accepted", "job.subscribed"):
            assert frame["payload"]["trace_id"] == TRACE


@pytest.mark.requirement("P11.1", "P6.17")
async def test_a_notice_of_back_pressure_has_the_trace_of_its_job(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    limits = arcp_trio.Limits(lag_events=10, throttle_seconds=1)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        await client.request("job.submit", {"agent": "flood", "input": 3000}, trace_id=TRACE)
        await trio.sleep(5)
        frames = await client.settle()
    notices = [frame for frame in frames if frame["payload"].get("body", {}).get("phase") == "back_pressure"]
    assert notices
    assert {frame.get("trace_id") for frame in frames} == {TRACE}


@pytest.mark.requirement("P11.1", "P7.19", "Q01")
async def test_a_refusal_has_the_trace_of_its_request_and_no_other(script: Script) -> None:
    """That of a job would say that there is one."""
    mine = "ab" * 16
    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime) as client,
        open_raw(runtime, principal="other") as other,
    ):
        await client.request("job.submit", {"agent": "sleep"}, trace_id=TRACE)
        job_id = (await client.receive_until("job.accepted"))["job_id"]
        refusals = []
        for name, fields in (
            (job_id, {"trace_id": mine}),
            ("job_none", {"trace_id": mine}),
            (job_id, {}),
            ("job_none", {}),
        ):
            await other.request("job.cancel", {"job_id": name}, job_id=name, **fields)
            refusals.append(await other.receive_until("session.error"))
        assert [frame.get("trace_id") for frame in refusals] == [mine, mine, None, None]
        await client.request("job.submit", {"agent": "nobody"}, trace_id=mine)
        assert (await client.receive_until("session.error"))["trace_id"] == mine


@pytest.mark.requirement("P5.8", "P5.3")
async def test_a_job_without_a_trace_gets_one_of_its_own(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        for _ in range(2):
            await client.submit("echo", 1)
            await client.receive_until("job.result")
    traces = [frame["trace_id"] for frame in client.received if frame["type"] == "job.result"]
    assert len(set(traces)) == 2
    for trace_id in traces:
        assert TraceContext.parse(f"00-{trace_id}-{SPAN}-01") is not None


@pytest.mark.requirement("P11.1", "P5.8")
@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"trace_id": TRACE, "extensions": {TRACECONTEXT_EXTENSION: {"traceparent": PARENT}}}, PARENT),
        ({"trace_id": PARENT}, PARENT),
        # Whoever names a trace alone gets an operation of it, the same for the whole job.
        ({"trace_id": TRACE}, None),
        ({}, None),
    ],
)
async def test_without_spans_a_job_passes_on_what_asked_for_it(fields: Frame, wanted: str | None) -> None:
    agents = arcp_trio.Agents()

    @agents.register("look")
    async def look(job: arcp_trio.JobContext, value: Any) -> Any:
        first = job.trace_headers()
        second = job.trace_headers()
        second["traceparent"] = "changed"
        return [first, job.trace_headers(), job.trace_id]

    async with arcp_trio.open_runtime(agents) as runtime, open_raw(runtime) as client:
        await client.request("job.submit", {"agent": "look"}, **fields)
        first, again, trace_id = (await client.receive_until("job.result"))["payload"]["result"]
    assert first == again
    found = TraceContext.read(first)
    assert found is not None
    assert found.trace_id == trace_id
    assert wanted in (found.traceparent, None)
    # Else those who are called would record nothing.
    assert found.flags == 1


# --- our client -----------------------------------------------------------------------------------


@pytest.mark.requirement("P11.1", "P5.8", "T23")
async def test_our_client_sends_its_active_trace_and_every_server_takes_it(recorded: Recorded) -> None:
    given: Frame = {"a": [1]}
    lease = {"fs.read": ["/a"]}
    before = json.dumps([given, lease])
    async with open_played() as (_, connection, client), trio.open_nursery() as nursery:
        with recorded.tracer.start_as_current_span("asking") as asking:
            call = Call(nursery, client.submit, "a", given, lease_request=lease)
            submit = await connection.expect("job.submit")
        await connection.accept(submit)
        with recorded.tracer.start_as_current_span("another"):
            cancel = Call(nursery, call.value.cancel)
            cancelling = await connection.expect("job.cancel")
        await connection.result(1)
        cancel.scope.cancel()
    trace_id, span_id = ids_of(asking)
    assert (submit["trace_id"], call.value.trace_id) == (trace_id, trace_id)
    # As newer versions say of a trace id that they have made.
    carrier = submit["extensions"].pop(TRACECONTEXT_EXTENSION)
    assert carrier in ({"traceparent": f"00-{trace_id}-{span_id}-{flags}"} for flags in ("01", "03"))
    assert submit["extensions"] == {}
    assert json.dumps([given, lease]) == before
    # Of the job, whatever runs meanwhile.
    assert (cancelling["trace_id"], "extensions" in cancelling) == (trace_id, False)
    for frame in ({**submit, "extensions": {TRACECONTEXT_EXTENSION: carrier}}, cancelling):
        for name, validate in SERVERS.items():
            assert validate(frame) == [], name


@pytest.mark.requirement("P11.1", "P5.8")
async def test_a_trace_that_the_caller_names_is_the_one_that_is_sent(recorded: Recorded) -> None:
    async with open_played() as (_, connection, client), trio.open_nursery() as nursery:
        with recorded.tracer.start_as_current_span("asking") as asking:
            for trace_id, extended in ((TRACE, False), (ids_of(asking)[0], True)):
                call = Call(nursery, client.submit, "a", trace_id=trace_id)
                submit = await connection.expect("job.submit")
                await connection.accept(submit, f"job_{trace_id}")
                # An operation of another trace is no parent in this one.
                assert (submit["trace_id"], "extensions" in submit) == (trace_id, extended)
                assert call.value.trace_id == trace_id


@pytest.mark.requirement("P5.8")
async def test_without_an_active_span_each_submit_has_a_trace_of_its_own() -> None:
    async with open_played() as (_, connection, client), trio.open_nursery() as nursery:
        jobs = [await start_job(nursery, client, connection, f"job_{number}") for number in range(3)]
    assert len({job.trace_id for job in jobs}) == 3
    submits = [frame for frame in connection.raw.received if frame["type"] == "job.submit"]
    assert [frame["trace_id"] for frame in submits] == [job.trace_id for job in jobs]
    assert [frame for frame in submits if "extensions" in frame] == []


@pytest.mark.requirement("P11.1", "D31", "K02")
async def test_a_trace_that_would_mistake_one_submit_for_another_is_not_sent(recorded: Recorded) -> None:
    """A runtime that names no request is told apart by traces alone (interop.md, section 3)."""
    async with sit_down("typescript") as table:
        with recorded.tracer.start_as_current_span("asking") as asking:
            left, frame_of_left = await table.submit()
            left.scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            call, frame = await table.submit()
        assert frame_of_left["trace_id"] == ids_of(asking)[0] != frame["trace_id"]
        assert "extensions" not in frame
        await table.accept(frame_of_left, "job_left", by="trace_id")
        assert call.outcome is None
        await table.accept(frame, "job_mine", by="trace_id")
        assert call.handle.job_id == "job_mine"


@pytest.mark.requirement("P5.8")
async def test_a_subscription_takes_no_trace_that_it_could_not_send(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, connection, client), trio.open_nursery() as nursery:
        for number, (trace_id, read) in enumerate([(TRACE, TRACE), (PARENT, TRACE), ("some text", ""), (None, "")]):
            job_id = f"job_{number}"
            call = Call(nursery, client.subscribe, job_id)
            asked = await connection.expect("job.subscribe")
            payload = {"job_id": job_id, "current_status": "running", "request_id": asked["id"], "trace_id": trace_id}
            payload = {name: value for name, value in payload.items() if value is not None}
            await connection.say("job.subscribed", payload, job_id=job_id, correlation_id=asked["id"])
            assert call.value.trace_id == read
            cancel = Call(nursery, call.value.cancel)
            assert (await connection.expect("job.cancel")).get("trace_id", "") == read
            cancel.scope.cancel()


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.requirement("P11.1")
def test_the_headers_are_those_of_the_call_then_of_where_it_is_made_then_of_the_job(recorded: Recorded) -> None:
    from arcp_trio.spans import Spans

    asked = TraceContext(trace_id=TRACE, span_id=SPAN, tracestate="a=1")
    assert outgoing_headers(asked) == {"traceparent": PARENT, "tracestate": "a=1"}
    job = Spans(recorded.provider).start_job(
        job_id="job_1", session_id="sess_1", agent="a@1", namespaces=(), expires_at=None, remaining={}, parent=asked
    )
    assert job is not None
    assert job.context is not None
    call = job.start_operation("arcp.tool.call", {})
    assert call is not None
    assert call.context is not None
    assert {job.context.trace_id, call.context.trace_id} == {TRACE}
    # Where another trace is current, it is none of this job's.
    with recorded.tracer.start_as_current_span("another trace"):
        assert outgoing_headers(job.context) == job.context.headers()
        assert outgoing_headers(job.context, call) == call.context.headers()
        other = job.start_operation("arcp.tool.call", {})
        assert other is not None
        assert other.context is not None
        assert other.context.trace_id == TRACE
    with job:
        assert outgoing_headers(asked) == job.context.headers()
        with call:
            assert outgoing_headers(asked) == outgoing_headers(job.context) == call.context.headers()
        assert outgoing_headers(asked) == job.context.headers()
    assert outgoing_headers(asked)["traceparent"] == PARENT


# --- without OpenTelemetry, and what it costs ----------------------------------------------------------

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ImportError(name)
sys.meta_path.insert(0, Hidden())
"""

SAY = """
import sys; sys.path.insert(0, sys.argv[1])
import json, random, trio, arcp_trio, helpers
from arcp_trio.wire.ids import IdFactory
from arcp_trio.wire.timestamps import WallClock

async def main():
    agents = arcp_trio.Agents()
    @agents.register("a")
    async def agent(job, value):
        await job.log("info", "line")
        return [value, job.trace_id, job.trace_headers()]
    ids = IdFactory(now_ms=lambda: 1, random_bits=random.Random(1).getrandbits)
    clock = WallClock(lambda: 1e9)
    async with arcp_trio.open_runtime(agents, ids=ids, clock=clock) as runtime:
        client = await helpers.connect_raw(runtime)
        for fields in ({}, {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}):
            await client.request("job.submit", {"agent": "a", "input": 7}, **fields)
            await client.receive_until("job.result")
        await client.request("job.cancel", {"job_id": client.received[-1]["job_id"]})
        await client.receive()
    async with arcp_trio.open_runtime(agents) as runtime, runtime.open_session(principal="me") as embedded:
        job = await embedded.submit("a", 8)
        assert (await job.result())[:2] == [8, job.trace_id]
    # Behind the welcome, whose resume token is a secret and another each time.
    print(json.dumps(client.received[1:]))

trio.run(main)
"""


def run(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.requirement("P11.1")
def test_without_opentelemetry_all_is_as_with_one_that_records_nothing() -> None:
    with_it = run(SAY + "assert 'opentelemetry.trace' in sys.modules")
    without = run(HIDE + SAY + "assert 'opentelemetry.trace' not in sys.modules")
    assert without == with_it
    assert [frame["type"] for frame in json.loads(without)][-2:] == ["job.result", "x-arcp-trio.reply"]


@pytest.mark.requirement("P11.1")
def test_a_provider_that_cannot_be_used_is_not_passed_over() -> None:
    run(
        HIDE
        + """
import trio, arcp_trio
async def main():
    async with arcp_trio.open_runtime(arcp_trio.Agents(), tracer_provider=object()):
        pass
try:
    trio.run(main)
except ImportError:
    pass
else:
    raise AssertionError
"""
    )


@pytest.mark.requirement("P11.1")
def test_the_global_provider_counts_also_where_it_is_set_later() -> None:
    found = run(
        """
import sys; sys.path.insert(0, sys.argv[1])
import trio, arcp_trio
from opentelemetry import trace
from traced import Recorded

async def main():
    recorded = Recorded()
    agents = arcp_trio.Agents()
    @agents.register("a")
    async def agent(job, value):
        pass
    async with arcp_trio.open_runtime(agents) as runtime, runtime.open_session(principal="me") as client:
        await (await client.submit("a")).result()
        trace.set_tracer_provider(recorded.provider)
        await (await client.submit("a")).result()
    print([span.name for span in recorded.spans])

trio.run(main)
"""
    )
    assert found.strip() == "['arcp.job a@1.0.0']"


async def calls_of(script: Script, events: int, where: str, **options: Any) -> int:
    """Count the calls into files of that name while a job emits events."""
    count = 0

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and where in frame.f_code.co_filename

    async with arcp_trio.open_runtime(script.agents, **options) as runtime, open_raw(runtime) as client:
        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            await client.request("job.submit", {"agent": "flood", "input": events}, trace_id=TRACE)
            await client.receive_until("job.result")
        finally:
            sys.setprofile(before)
    return count


@pytest.mark.requirement("P11.1")
async def test_events_cost_nothing_where_they_are_watched(script: Script, recorded: Recorded) -> None:
    for where in ("opentelemetry", "spans.py"):
        few, many = [await calls_of(script, n, where, tracer_provider=recorded.provider) for n in (1, 400)]
        assert few == many > 0


@pytest.mark.requirement("P11.1")
async def test_without_opentelemetry_a_job_does_not_call_into_it(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it were not installed: an attribute is looked at, where a span would begin and end."""
    monkeypatch.setattr(arcp_trio.runtime, "find_spans", lambda provider: None)
    for where in ("opentelemetry", "spans.py", "arcp_trio/tracing.py"):
        assert await calls_of(script, 50, where) == 0
