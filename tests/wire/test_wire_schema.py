"""The schema says what the classes say, and every kind of frame that the runtime sends obeys it."""
# what a parametrised test is given has names where it is given

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
from helpers import TOKEN, Script, make_hello, open_raw
from wire.schema_check import check_exchanged, problems_of_runtime_frame, problems_of_schema, validator

import arcp_trio
from arcp_trio.wire import schema
from arcp_trio.wire.codec import MESSAGES
from arcp_trio.wire.events import EVENT_BODIES

COMMITTED = Path(schema.__file__).with_name("messages.schema.json")


def frame(frame_type: str, payload: Any, **fields: Any) -> dict[str, Any]:
    return {"arcp": "1.1", "id": "msg_1", "type": frame_type, "payload": payload, **fields}


def test_the_committed_schema_is_up_to_date() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == schema.schema_text(), (
        "run: python -m arcp_trio.wire.schema > arcp_trio/wire/messages.schema.json"
    )


def test_the_schema_is_one_and_can_be_printed() -> None:
    validator()  # checks it against the meta-schema
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-m", "arcp_trio.wire.schema"], capture_output=True, text=True, check=True
    )
    assert json.loads(printed.stdout) == schema.message_schema()


def test_every_message_and_every_event_is_in_it() -> None:
    made = schema.message_schema()
    types = {rule["if"]["properties"]["type"].get("const") for rule in made["allOf"]} - {None}
    assert types == set(MESSAGES)
    kinds = {rule["if"]["properties"]["kind"]["const"] for rule in made["$defs"]["JobEvent"]["allOf"]}
    assert kinds == set(EVENT_BODIES)
    for cls in (*MESSAGES.values(), *EVENT_BODIES.values()):
        definition = made["$defs"][cls.__name__]
        assert list(definition["properties"]) == [field.name for field in attrs.fields(cls)]
        assert definition["description"]


@pytest.mark.requirement("P5.1")
@pytest.mark.parametrize(
    ("frame_type", "payload"),
    [
        ("job.event", {"kind": "log", "body": {"level": "info", "message": "m"}}),
        ("job.result", {"final_status": "success"}),
        ("job.error", {"code": "CANCELLED"}),
    ],
)
def test_numbered_frames_need_their_number(frame_type: str, payload: Any) -> None:
    assert problems_of_schema(frame(frame_type, payload, event_seq=1)) == []
    assert problems_of_schema(frame(frame_type, payload)) == ["$: 'event_seq' is a required property"]
    assert problems_of_schema(frame(frame_type, payload, event_seq=0))
    assert problems_of_schema(frame(frame_type, payload, event_seq=2**63))
    assert problems_of_schema(frame(frame_type, payload, event_seq="1"))


@pytest.mark.requirement("P5.1")
@pytest.mark.parametrize(
    ("frame_type", "payload"),
    [("job.accepted", {"job_id": "j"}), ("session.ping", {"nonce": "n"}), ("x-vendor.thing", {})],
)
def test_other_frames_have_no_number(frame_type: str, payload: Any) -> None:
    assert problems_of_schema(frame(frame_type, payload)) == []
    assert problems_of_schema(frame(frame_type, payload, event_seq=1))


@pytest.mark.requirement("P5.3a", "P5.4", "P5.6", "T21")
@pytest.mark.parametrize(
    ("given", "valid"),
    [
        (frame("session.ping", {"nonce": "n"}), True),
        (frame("session.ping", {"nonce": "n", "unknown": [None]}, unknown={}), True),
        (frame("session.unknown", {"anything": 1}), True),
        (frame("session.ping", {}), False),
        (frame("session.ping", {"nonce": 1}), False),
        (frame("session.ping", {"nonce": "n", "sent_at": None}), False),
        (frame("session.ping", []), False),
        (frame("session.ack", {"last_processed_seq": 2**63}), False),
        (frame("session.ack", {"last_processed_seq": "1"}), False),
        (frame("session.jobs", {"jobs": [], "next_cursor": None}), True),
        (frame("session.jobs", {"jobs": [{"job_id": "j", "agent": "a", "status": "s", "parent_job_id": None}]}), True),
        (frame("session.jobs", {"jobs": [{"job_id": "j", "agent": "a", "status": "s", "trace_id": None}]}), False),
        (frame("job.submit", {"agent": "a", "lease_request": {"fs.read": ["/a"]}}), True),
        (frame("job.submit", {"agent": "a", "lease_request": {"fs.read": "/a"}}), False),
        (frame("job.submit", {"agent": "a", "lease_request": {"fs.read": [1]}}), False),
        (frame("job.submit", {"agent": "a", "lease_constraints": {"expires_at": 1}}), False),
        (frame("job.submit", {"agent": "a", "max_runtime_sec": 1.5, "input": None}), True),
        (frame("job.submit", {"agent": "a", "max_runtime_sec": True}), False),
        (frame("job.event", {"kind": "x-mine", "body": {"any": "thing"}}, event_seq=1), True),
        (frame("job.event", {"kind": "unheard-of", "body": {}}, event_seq=1), True),
        (frame("job.event", {"kind": "log", "body": {"level": "info"}}, event_seq=1), False),
        (frame("job.event", {"kind": "metric", "body": {"name": "m", "value": "1"}}, event_seq=1), False),
        (frame("job.event", {"kind": "metric", "body": {"name": "m", "value": 2**80}}, event_seq=1), True),
        (frame("job.event", {"kind": "log", "body": []}, event_seq=1), False),
        (frame("session.ping", {"nonce": "n"}, trace_id="0" * 32), False),
        (frame("session.ping", {"nonce": "n"}, trace_id="A" * 32), False),
        (frame("session.ping", {"nonce": "n"}, trace_id="a" * 32), True),
        (frame("session.ping", {"nonce": "n"}) | {"arcp": "2.0"}, False),
        (frame("session.ping", {"nonce": "n"}) | {"arcp": "1"}, True),
        (frame("session.ping", {"nonce": "n"}) | {"id": ""}, False),
        ([], False),
    ],
)
def test_what_is_valid(given: Any, valid: bool) -> None:
    assert validator().is_valid(given) is valid
    # The quick way for each type says the same.
    assert (problems_of_schema(given) == []) is valid


def test_a_new_type_in_a_class_is_not_passed_over() -> None:
    definitions = schema._Definitions()
    with pytest.raises(TypeError, match="no schema for the type"):
        definitions.of_type(set[str])

    @attrs.frozen
    class Peer:
        pass

    definitions.reference(MESSAGES["session.hello"])
    with pytest.raises(TypeError, match="two classes are named Peer"):
        definitions.reference(Peer)


async def chatter(job: arcp_trio.JobContext, value: Any) -> None:
    """Emit an event of each kind that an agent can emit."""
    await job.log("info", "line", {"field": [1, None]})
    await job.log("trace", "without fields")
    await job.thought("hm")
    with suppress(arcp_trio.PermissionDeniedError):
        # Two of its three jobs may not.
        async with job.tool_call("search", {"query": "a"}) as call:
            call.result = {"hits": 0}
        async with job.tool_call("search"):
            pass
        with suppress(arcp_trio.JobTimeoutError):
            async with job.tool_call("search"):
                raise arcp_trio.JobTimeoutError("slow")
    await job.status("reading", "page 1")
    await job.status("writing")
    await job.metric("cost.inference", 0.25, "USD", {"model": "m"})
    await job.metric("tokens", 2**70)
    await job.progress(1, 3, "pages", "going on")
    await job.progress(0.5)
    await job.artifact_ref("file:///a", "text/plain", byte_size=3, sha256="00")
    await job.artifact_ref("file:///b", "text/plain")
    await job.emit("x-vendor.thing", {"anything": {"nested": None}})
    async with job.stream_result(content_type="text/plain") as out:
        await out.write("first ")
        await out.write("second")


@pytest.mark.requirement("P5.1", "P5.3", "P5.3a", "P8.2", "S01")
async def test_a_rich_conversation_obeys_the_schema(script: Script) -> None:
    """All kinds of frames that the runtime sends, and no exception to the rules."""
    script.agents.register("chatter")(chatter)
    async with (
        arcp_trio.open_runtime(script.agents, verifier=arcp_trio.StaticTokens({TOKEN: "me"})) as runtime,
        open_raw(runtime, principal=None) as client,
        open_raw(runtime, hello=make_hello(features=[])) as plain,
        open_raw(runtime, principal=None, shake_hands=False) as refused,
    ):
        await client.submit("chatter", lease_request={"fs.read": ["/a/**"], "tool.call": ["*"]})
        await client.receive_until("job.result")
        await plain.submit("chatter")
        await plain.receive_until("job.result")
        await client.submit("echo", {"value": [1, "two", None]})
        await client.receive_until("job.result")
        await client.submit("echo", None)
        await client.receive_until("job.result")
        script.error = arcp_trio.BudgetExhaustedError("all spent", retryable=True, details={"currency": "USD"})
        await client.submit("fail")
        await client.receive_until("job.error")
        script.error = ValueError("a bug")
        await client.submit("fail")
        await client.receive_until("job.error")
        script.error = arcp_trio.ARCPError("odd", code="X_VENDOR")
        await client.submit("fail")
        await client.receive_until("job.error")
        # A cancel in time, and one too late; a refusal; a pong; the end.
        job_id = await client.submit("sleep")
        await client.request("job.cancel", {"job_id": job_id, "reason": "enough"})
        await client.receive_until("job.error")
        await client.request("job.cancel", {"job_id": job_id})
        await client.receive_until("x-arcp-trio.reply")
        await client.request("job.cancel", {"job_id": "job_unknown"}, job_id="job_unknown")
        await client.request("job.submit", {"agent": "echo@9"})
        await client.request("session.list_jobs", {})
        await client.request("session.ping", {"nonce": "n"})
        await client.receive_until("session.pong")
        await client.request("session.close", {"reason": "done"})
        await client.receive_close()
        await refused.send(make_hello(token="wrong"))
        await refused.receive_close()
        # As each dialect has it.
        for dialect in ("spec", "python", "typescript", "ruby", "java"):
            async with open_raw(runtime, compat=dialect) as peer:
                await peer.submit("echo", 1, lease_request={"fs.read": ["/a"]})
                await peer.receive_until("job.result")
                script.error = arcp_trio.ARCPError("odd", code="X_VENDOR")
                await peer.submit("fail")
                await peer.receive_until("job.error")
                job_id = await peer.submit("sleep")
                await peer.request("job.cancel", {"job_id": job_id})
                await peer.receive_until("job.error")
                await peer.request("job.submit", {"agent": "nobody"})
                await peer.request("session.unknown")
                plain.received += await peer.settle() + peer.received
    frames = client.received + plain.received + refused.received
    assert {each["type"] for each in frames} == {
        "session.welcome",
        "session.error",
        "session.pong",
        "session.jobs",
        "session.closed",
        "job.accepted",
        "job.event",
        "job.result",
        "job.error",
        "job.cancelled",
        "x-arcp-trio.reply",
    }
    kinds = {each["payload"]["kind"] for each in frames if each["type"] == "job.event"}
    # The runtime alone will emit a delegation, once it can.
    assert kinds == set(EVENT_BODIES) - {"delegate"} | {"x-vendor.thing"}
    for each in frames:
        assert problems_of_runtime_frame(each) == [], each
    # The numbers of each session are 1, 2, 3, … (P8.2).
    numbers = [each["event_seq"] for each in client.received if "event_seq" in each]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.requirement("P5.3a")
def test_the_check_of_a_session_finds_what_is_wrong() -> None:
    """The check that the whole test session ends with is one that can fail."""
    base = {
        "arcp": "1.1",
        "id": "msg_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "session_id": "sess_1",
        "timestamp": "2026-01-01T00:00:00.000Z",
    }
    pong = {**base, "type": "session.pong", "payload": {"ping_nonce": "n"}}
    payload = {"code": "TIMEOUT", "message": "m", "retryable": False, "request_id": "r", "reply_to": "r"}
    error = {**base, "type": "session.error", "payload": payload, "correlation_id": "r"}
    result = {**base, "type": "job.result", "job_id": "j", "event_seq": 1, "payload": {"final_status": "success"}}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**pong, "id": "1"}, "$.id"),
        ({**pong, "session_id": None}, "$.session_id"),
        ({key: value for key, value in pong.items() if key != "timestamp"}, "$.timestamp: missing"),
        ({**pong, "payload": {}}, "ping_nonce"),
        ({**error, "payload": {**payload, "reply_to": "q"}}, "reply_to"),
        ({**error, "correlation_id": "q"}, "correlation_id"),
        ({**error, "payload": {**payload, "code": "NOT_FOUND"}}, "none of the fifteen"),
        ({**error, "payload": {**payload, "message": ""}}, "message"),
        ({**error, "payload": {**payload, "retryable": None}}, "retryable"),
        ({**error, "payload": {**payload, "code": "INTERNAL_ERROR"}}, "retryable"),
        ({**error, "payload": {**payload, "code": "LEASE_EXPIRED", "retryable": True}}, "retryable"),
        ({key: value for key, value in result.items() if key != "job_id"}, "$.job_id"),
        ({**result, "payload": {"result": None}}, "explicit null"),
    ]
    good = [("S>C", json.dumps(each)) for each in (pong, error, result)]
    assert check_exchanged(good) == []
    for each, expected in wrong:
        (problem,) = check_exchanged([*good, ("S>C", json.dumps(each))])
        assert expected in problem
        assert check_exchanged([("C>S", json.dumps(each))]) == []
    assert check_exchanged([("S>C", "[]")])
