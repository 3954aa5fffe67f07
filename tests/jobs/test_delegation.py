"""Delegation over the wire and in the agent: who is told, what a child gives back, what it costs (section 10)."""

from __future__ import annotations

import json
import logging
from decimal import Decimal
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Script, connect_raw, make_hello, open_raw, terminals
from jobs.parents import ANY, Family, accepted, end_of, numbers, of_kind, run_parent

import arcp_trio
from arcp_trio.jobs.lifecycle import Phase
from arcp_trio.records import JobRecord

# --- a child ----------------------------------------------------------------------------------------


@pytest.mark.requirement("P10.1", "P7.2", "P11.1", "D48", "X15", "T23")
async def test_a_delegation_is_told_then_accepted_then_interleaved() -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        child = await job.delegate("echo", {"n": [1, "ü"]}, lease_request={"tool.call": ["search"]})
        assert child.agent == "echo@1.0.0"
        assert child.status in ("pending", "running")
        result = await child.result()
        assert child.status == "success"
        return {"child": child.job_id, "result": result}

    frames, runtime, parent_id = await run_parent(body, {"agent.delegate": ["echo"], "tool.call": ["search"]})
    (delegate,) = of_kind(frames, "delegate")
    child_id = delegate["child_job_id"]
    assert delegate == {
        "delegate_id": delegate["delegate_id"],
        "child_job_id": child_id,
        "agent": "echo@1.0.0",
        "input": {"n": [1, "ü"]},
        "lease_request": {"tool.call": ["search"]},
    }
    assert delegate["delegate_id"].startswith("del_")
    own, child = accepted(frames)
    assert own["payload"].get("parent_job_id") is None
    payload = child["payload"]
    assert (payload["job_id"], payload["parent_job_id"]) == (child_id, parent_id)
    assert (payload["delegate_id"], payload["agent"]) == (delegate["delegate_id"], "echo@1.0.0")
    assert payload["lease"] == {"tool.call": ["search"]}
    # Nobody has asked for it: it names no request.
    assert {"request_id", "reply_to"}.isdisjoint(payload)
    assert "correlation_id" not in child
    traces = {frame["trace_id"] for frame in frames if frame.get("job_id") in (parent_id, child_id)}
    assert traces == {own["payload"]["trace_id"]}
    kinds = [(frame["type"], frame["job_id"]) for frame in frames if frame["type"].startswith("job.")]
    assert kinds == [
        ("job.accepted", parent_id),
        ("job.event", parent_id),
        ("job.accepted", child_id),
        ("job.result", child_id),
        ("job.result", parent_id),
    ]
    assert numbers(frames) == [1, 2, 3]
    assert frames[-1]["payload"]["result"] == {"child": child_id, "result": {"n": [1, "ü"]}}
    record = runtime._directory.find(child_id)
    assert isinstance(record, JobRecord)
    assert (record.parent_job_id, record.principal) == (parent_id, "me")


@pytest.mark.requirement("P10.1", "P9.4")
async def test_who_names_no_lease_gets_none() -> None:
    family = Family(lambda job: job.delegate("sly"))

    @family.agents.register("sly")
    async def sly(job: arcp_trio.JobContext, value: Any) -> None:
        assert dict(job.lease.grants) == {}
        with pytest.raises(arcp_trio.PermissionDeniedError):
            await job.authorize("tool.call", "search")
        with pytest.raises(arcp_trio.PermissionDeniedError):
            await job.delegate("echo")

    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request={**ANY, "tool.call": ["*"]})
        await end_of(client, job_id)
        (delegate,) = of_kind(client.received, "delegate")
        assert delegate["lease_request"] == {}
        (child, parent) = terminals(client.received)
        assert child["job_id"] == delegate["child_job_id"]
        # A handle is no JSON: the parent's mistake, and only its own.
        assert (child["type"], parent["payload"]["code"]) == ("job.result", "INTERNAL_ERROR")


@pytest.mark.requirement("T22")
async def test_a_child_gets_a_copy_of_its_input_and_each_caller_one_of_the_result() -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        value: dict[str, Any] = {"list": [1]}
        child = await job.delegate("echo", value)
        value["list"].append(2)
        first = await child.result()
        assert first == {"list": [1]}
        first["list"].append(3)
        assert await child.result() == {"list": [1]}

    frames, _, _ = await run_parent(body)
    assert frames[-1]["type"] == "job.result"


@pytest.mark.requirement("P10.1", "P7.12", "P7.13")
async def test_the_owner_of_the_parent_may_cancel_the_child() -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        child = await job.delegate("sleep")
        with pytest.raises(arcp_trio.JobCancelledError) as caught:
            await child.result()
        return [child.status, caught.value.message]

    family = Family(body)
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        child_id = (await client.receive_until("job.accepted"))["job_id"]
        async with open_raw(runtime) as other:
            await other.request("job.cancel", {"job_id": child_id})
            refusal = await other.receive_until("session.error")
            assert refusal["payload"]["code"] == "PERMISSION_DENIED"
        await client.request("job.cancel", {"job_id": child_id, "reason": "enough"})
        await end_of(client, job_id)
        kinds = [frame["type"] for frame in client.received if frame.get("job_id") == child_id]
        assert kinds == ["job.accepted", "job.cancelled", "job.error"]
        assert client.received[-1]["payload"]["result"] == ["cancelled", "the job was cancelled: enough"]


@pytest.mark.requirement("P7.13", "P10.4")
async def test_a_child_that_its_parent_cancels_is_cancelled_without_an_acknowledgement() -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        child = await job.delegate("sleep")
        child.cancel("not needed")
        child.cancel()
        with pytest.raises(arcp_trio.JobCancelledError, match="not needed"):
            await child.result()
        child.cancel()
        return child.status

    frames, _, _ = await run_parent(body)
    assert [frame["type"] for frame in frames if frame["type"] == "job.cancelled"] == []
    child, parent = terminals(frames)
    assert (child["payload"]["final_status"], child["payload"]["code"]) == ("cancelled", "CANCELLED")
    assert parent["payload"]["result"] == "cancelled"


@pytest.mark.requirement("P10.4", "P7.9")
async def test_a_failed_child_raises_where_it_is_awaited_and_nowhere_else() -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        family.error = arcp_trio.ARCPError("no paper", code="x-printer", retryable=True, details={"tray": 2})
        child = await job.delegate("fail")
        await child.wait_ended()
        told = []
        for _ in range(2):
            with pytest.raises(arcp_trio.ARCPError) as caught:
                await child.result()
            told.append((caught.value.code, caught.value.message, caught.value.retryable, caught.value.details))
        assert told[0] == told[1]
        unheard = await job.delegate("fail")
        await unheard.wait_ended()
        return list(told[0])

    family = Family(body)
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        frame = await end_of(client, job_id)
        assert frame["payload"]["result"] == ["x-printer", "no paper", True, {"tray": 2}]


@pytest.mark.requirement("P10.4", "P7.8a")
async def test_a_failure_that_nobody_catches_is_the_parents_own() -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        return await (await job.delegate("fail")).result()

    frames, _, _ = await run_parent(body)
    child, parent = terminals(frames)
    for frame in (child, parent):
        assert (frame["payload"]["code"], frame["payload"]["final_status"]) == ("INTERNAL_ERROR", "error")
    assert child["payload"]["details"] == parent["payload"]["details"]


@pytest.mark.requirement("P10.4", "P7.9", "Z06")
async def test_a_failure_is_not_masked_by_the_cancel_of_its_own_cleanup() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        child = await job.delegate("sleep")
        try:
            raise ValueError("the source")
        finally:
            child.cancel("cleanup")
            with trio.CancelScope(shield=True):
                await child.wait_ended()

    frames, _, _ = await run_parent(body)
    child, parent = terminals(frames)
    assert (child["payload"]["code"], parent["payload"]["code"]) == ("CANCELLED", "INTERNAL_ERROR")


@pytest.mark.requirement("P10.4", "Z07")
async def test_of_several_children_that_fail_alike_the_parent_fails_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon((await job.delegate("sleep", max_runtime_sec=1)).result)

    frames, _, _ = await run_parent(body)
    assert frames[-1]["payload"]["code"] == "TIMEOUT"


@pytest.mark.requirement("P10.4", "P7.10")
async def test_a_child_has_a_time_limit_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        child = await job.delegate("sleep", max_runtime_sec=5)
        with pytest.raises(arcp_trio.JobTimeoutError) as caught:
            await child.result()
        return [child.status, caught.value.retryable]

    frames, _, _ = await run_parent(body)
    assert frames[-1]["payload"]["result"] == ["timed_out", True]


@pytest.mark.requirement("P8.5", "P4.4", "P6.4")
async def test_a_streamed_result_comes_back_whole_or_is_refused() -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        whole = [await (await job.delegate("stream", kind)).result() for kind in ("text", "json", "bytes", "empty")]
        assert whole == ["first second", {"a": [1, 2]}, "AAECAw==", ""]
        large = await (await job.delegate("large", 30_000)).result()
        assert large == "x" * 30_000
        too_large = await job.delegate("large", 60_000)
        await too_large.wait_ended()
        assert too_large.status == "success"
        with pytest.raises(arcp_trio.ARCPError, match="60002 bytes, above the limit") as caught:
            await too_large.result()
        assert (caught.value.code, caught.value.retryable) == ("INTERNAL_ERROR", False)
        assert caught.value.details == {"limit": "inline_result_bytes", "value": 50_000}
        return "all"

    family = Family(body)

    @family.agents.register("stream")
    async def stream(job: arcp_trio.JobContext, kind: str) -> None:
        pieces: list[str | bytes] = {"text": ["first ", "second"], "json": ['{"a":', "[1, 2]}"], "empty": []}.get(
            kind, [bytes([0, 1]), bytes([2, 3])]
        )
        async with job.stream_result(content_type="application/json" if kind == "json" else None) as out:
            for piece in pieces:
                await out.write(piece)

    @family.agents.register("large")
    async def large(job: arcp_trio.JobContext, size: int) -> str:
        return "x" * size

    limits = arcp_trio.Limits(send_bytes=20_000, inline_result_bytes=50_000, chunk_bytes=8_000)
    async with arcp_trio.open_runtime(family.agents, limits=limits) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        frame = await end_of(client, job_id)
        assert frame["payload"].get("result") == "all", frame
        # What only the parent needed is not kept with what has ended.
        assert runtime._directory.retained_bytes < 7 * 3_000


@pytest.mark.requirement("P10.3")
async def test_a_child_that_nobody_awaits_is_waited_for() -> None:
    async def body(job: arcp_trio.JobContext) -> str:
        for _ in range(3):
            await job.delegate("gate")
        return "returned"

    family = Family(body)
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        await client.settle()
        parent = runtime._directory.find(job_id)
        assert isinstance(parent, arcp_trio.jobs.actor.JobActor)
        assert (parent.state.phase, len(parent.children), terminals(client.received)) == (Phase.RUNNING, 3, [])
        family.gate.set()
        await end_of(client, job_id)
        ended = terminals(client.received)
        assert [frame["payload"]["result"] for frame in ended] == ["through"] * 3 + ["returned"]


# --- who is told ------------------------------------------------------------------------------------


@pytest.mark.requirement("P10.1", "P7.17", "P6.20")
async def test_a_subscriber_of_the_parent_does_not_follow_the_child_but_may(script: Script) -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        await family.gate.wait()
        child = await job.delegate("gate")
        return await child.result()

    family = Family(body)
    inner = trio.Event()

    @family.agents.register("inner")
    async def wait(job: arcp_trio.JobContext, value: Any) -> None:
        await job.log("info", "in here")
        await inner.wait()

    async def outer(job: arcp_trio.JobContext) -> Any:
        await family.gate.wait()
        return await (await job.delegate("inner")).result()

    family.agents.register("outer")(lambda job, value: outer(job))
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("outer", lease_request=ANY)
        async with open_raw(runtime) as other:
            await other.request("job.subscribe", {"job_id": job_id})
            await other.receive_until("job.subscribed")
            family.gate.set()
            child_id = (await client.receive_until("job.accepted"))["job_id"]
            frames = await other.settle()
            assert [frame["job_id"] for frame in frames] == [job_id]
            await other.request("job.subscribe", {"job_id": child_id, "history": True})
            there = (await other.receive_until("job.subscribed"))["payload"]
            assert (there["parent_job_id"], there["agent"]) == (job_id, "inner@1.0.0")
            assert (await other.receive())["payload"]["body"]["message"] == "in here"
            await other.request("session.list_jobs", {})
            entries = (await other.receive_until("session.jobs"))["payload"]["jobs"]
            assert {entry["job_id"]: entry["parent_job_id"] for entry in entries} == {job_id: None, child_id: job_id}
            inner.set()
            await end_of(client, job_id)
            assert [frame["job_id"] for frame in terminals(await other.settle())] == [child_id, job_id]
            await other.request("session.list_jobs", {})
            entries = (await other.receive_until("session.jobs"))["payload"]["jobs"]
            assert [entry["parent_job_id"] for entry in entries] == [None, job_id]


@pytest.mark.requirement("P6.9", "P10.1")
async def test_a_child_is_told_to_a_session_that_comes_back() -> None:
    """It began while nobody was connected: the resume tells of it in its place."""
    away = trio.Event()

    async def body(job: arcp_trio.JobContext) -> Any:
        await away.wait()
        return await (await job.delegate("echo", 1)).result()

    family = Family(body)
    async with arcp_trio.open_runtime(family.agents) as runtime:
        client = await connect_raw(runtime, shake_hands=False)
        await client.send(hello := make_hello())
        welcome = await client.receive()
        client.session_id = welcome["session_id"]
        job_id = await client.submit("parent", lease_request=ANY)
        await client.transport.abort()
        await trio.testing.wait_all_tasks_blocked()
        away.set()
        await trio.testing.wait_all_tasks_blocked()
        hello["payload"]["resume"] = {
            "session_id": client.session_id,
            "resume_token": welcome["payload"]["resume_token"],
            "last_event_seq": 0,
        }
        async with open_raw(runtime, hello=hello) as again:
            await end_of(again, job_id)
            assert [frame["type"] for frame in again.received if frame["type"].startswith("job.")] == [
                "job.accepted",
                "job.event",
                "job.accepted",
                "job.result",
                "job.result",
            ]
            assert numbers(again.received) == [1, 2, 3]


# --- what it costs ----------------------------------------------------------------------------------


@pytest.mark.requirement("P10.2", "B15")
async def test_a_childs_budget_is_held_and_what_is_left_is_back_before_its_end_is_known() -> None:
    async def body(job: arcp_trio.JobContext) -> list[str]:
        budget = job._actor.authority.budget
        told = []
        children = [await job.delegate("spender", n, lease_request={"cost.budget": ["USD:4"]}) for n in range(2)]
        told.append(f"{budget.remaining()['USD']:f}")
        with pytest.raises(arcp_trio.LeaseSubsetViolationError):
            await job.delegate("spender", 0, lease_request={"cost.budget": ["USD:2.01"]})
        for number, child in enumerate(children):
            gates[number].set()
            await child.result()
            told.append(f"{budget.remaining()['USD']:f}")
        # Without a budget of its own it is charged to this one, at once.
        await (await job.delegate("spender", 0)).result()
        told.append(f"{budget.remaining()['USD']:f}")
        return told

    gates = [trio.Event(), trio.Event()]

    family = Family(body)

    @family.agents.register("spender")
    async def spender(job: arcp_trio.JobContext, gate: int) -> None:
        await gates[gate].wait()
        await job.metric("cost.inference", Decimal("1.5"), "USD")

    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request={**ANY, "cost.budget": ["USD:10"]})
        frame = await end_of(client, job_id)
        assert frame["payload"].get("result") == ["2", "4.5", "7.0", "5.5"], frame


# --- what nobody may ----------------------------------------------------------------------------------


@pytest.mark.requirement("G18", "P5.4")
async def test_a_submit_names_no_parent(script: Script) -> None:
    """One implementation reads these fields in a submit: here they are unknown ones, and give nothing."""
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime, principal="victim") as victim:
        theirs = await victim.submit("sleep", lease_request={**ANY, "cost.budget": ["USD:5"]})
        async with open_raw(runtime) as client:
            await client.submit("echo", 1, parent_job_id=theirs, delegate_id="del_1")
            (frame,) = accepted(client.received)
            assert {"parent_job_id", "delegate_id"}.isdisjoint(frame["payload"])
            await client.request("session.list_jobs", {})
            (entry,) = (await client.receive_until("session.jobs"))["payload"]["jobs"]
            assert entry["parent_job_id"] is None
        parent = runtime._directory.find(theirs)
        assert isinstance(parent, arcp_trio.jobs.actor.JobActor)
        assert (len(parent.children), str(parent.authority.budget.remaining()["USD"])) == (0, "5")
        assert [frame["job_id"] for frame in await victim.settle() if "job_id" in frame] == []


@pytest.mark.requirement("P7.19")
async def test_each_decision_is_a_line_of_the_audit_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "arcp_trio.audit")

    async def body(job: arcp_trio.JobContext) -> Any:
        child = await job.delegate("echo")
        with pytest.raises(arcp_trio.PermissionDeniedError):
            await job.delegate("gate", "a secret of the input")
        return child.job_id

    frames, _, job_id = await run_parent(body, {"agent.delegate": ["echo"]})
    lines = [record.getMessage() for record in caplog.records if record.name == "arcp_trio.audit"]
    child_id = frames[-1]["payload"]["result"]
    assert lines == [
        f"delegate granted: principal 'me', job {job_id!r}, echo@1.0.0 as {child_id}",
        f"delegate denied: principal 'me', job {job_id!r}, 'gate', PERMISSION_DENIED",
    ]


async def test_a_handle_is_for_looking_at() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        child = await job.delegate("sleep")
        assert repr(child) == f"<Child {child.job_id} sleep@1.0.0 {child.status}>"
        child.cancel()
        with pytest.raises(AttributeError):
            child.job_id = "job_2"  # type: ignore[misc]
        with trio.testing.assert_checkpoints(), pytest.raises(arcp_trio.JobCancelledError):
            await child.result()
        with trio.testing.assert_checkpoints():
            await child.wait_ended()
        assert job.parent_job_id is None
        child = await job.delegate("who")
        assert await child.result() == [child.job_id, job.job_id]

    family = Family(body)

    @family.agents.register("who")
    async def who(job: arcp_trio.JobContext, value: Any) -> list[str | None]:
        return [job.job_id, job.parent_job_id]

    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        frame = await end_of(client, job_id)
        assert frame["type"] == "job.result", json.dumps(frame)
