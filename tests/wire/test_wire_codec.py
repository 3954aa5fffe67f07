"""The converter: strict in every type, exact about where, silent about what it does not know."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire.schema_check import problems_of_schema

from arcp_trio.wire.codec import MESSAGES, decode_payload, encode_payload, read_message, structure_body
from arcp_trio.wire.envelope import Envelope
from arcp_trio.wire.errors import InvalidRequestError
from arcp_trio.wire.events import EVENT_BODIES, Metric, ToolCall
from arcp_trio.wire.job_messages import (
    JobAccepted,
    JobCancel,
    JobError,
    JobEvent,
    JobResult,
    JobSubmit,
    JobSubscribed,
    LeaseConstraints,
    Reply,
)
from arcp_trio.wire.jsontext import MAX_DEPTH, decode_json
from arcp_trio.wire.session_messages import (
    AgentInventory,
    Auth,
    ClientCapabilities,
    Peer,
    ResumeRequest,
    SessionAck,
    SessionHello,
    SessionJobs,
    SessionJobsEntry,
    SessionPing,
    SessionWelcome,
)

CLASSES = sorted({*MESSAGES.values(), *EVENT_BODIES.values()}, key=lambda cls: cls.__name__)


def refusal(cls: type[Any], payload: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        decode_payload(cls, payload)
    assert caught.value.__cause__ is None
    assert not isinstance(caught.value, BaseExceptionGroup)
    return caught.value.message


# --- strictness ---------------------------------------------------------------------------------------

WRONG: Mapping[str, list[tuple[Any, str]]] = {
    "a string": [
        (1, "a number"),
        (1.5, "a number"),
        (True, "a boolean"),
        (None, "null"),
        (["a"], "an array"),
        ({"a": 1}, "an object"),
    ],
    "an integer": [
        ("1", "a string"),
        (1.0, "a number"),
        (1.5, "a number"),
        (True, "a boolean"),
        (False, "a boolean"),
        ([1], "an array"),
        ({}, "an object"),
        ("", "an empty string"),
    ],
    "a boolean": [(0, "a number"), (1, "a number"), ("true", "a string"), ([], "an array")],
    "a number": [("1", "a string"), (True, "a boolean"), ([1], "an array"), ({}, "an object"), (None, "null")],
    "an array": [("ab", "a string"), ({}, "an object"), (1, "a number"), (True, "a boolean")],
    "an object": [("ab", "a string"), ([], "an array"), (1, "a number"), ([["a", 1]], "an array")],
}


@pytest.mark.requirement("P5.5", "P5.6")
@pytest.mark.parametrize(
    ("cls", "path", "expected", "good", "make"),
    [
        (JobSubmit, "$.payload.agent", "a string", "a", lambda x: {"agent": x}),
        (SessionPing, "$.payload.nonce", "a string", "", lambda x: {"nonce": x}),
        (SessionAck, "$.payload.last_processed_seq", "an integer", 7, lambda x: {"last_processed_seq": x}),
        (Reply, "$.payload.applied", "a boolean", False, lambda x: reply(applied=x)),
        (Metric, "$.payload.value", "a number", 1.5, lambda x: {"name": "m", "value": x}),
        (Metric, "$.payload.value", "a number", 1, lambda x: {"name": "m", "value": x}),
        (SessionJobs, "$.payload.jobs", "an array", [], lambda x: {"jobs": x}),
        (AgentInventory, "$.payload.versions", "an array", ["1"], lambda x: {"name": "a", "versions": x}),
        (JobEvent, "$.payload.body", "an object", {}, lambda x: {"kind": "log", "body": x}),
    ],
)
def test_required_fields_are_strict(cls: type[Any], path: str, expected: str, good: Any, make: Any) -> None:
    decode_payload(cls, make(good))
    for value, got in WRONG[expected]:
        assert refusal(cls, make(value)) == f"{path}: expected {expected}, got {got}"


@pytest.mark.requirement("P5.5", "P5.6")
@pytest.mark.parametrize(
    ("cls", "name", "expected", "rest"),
    [
        (JobCancel, "job_id", "a string", {}),
        (JobSubmit, "idempotency_key", "a string", {"agent": "a"}),
        (JobSubmit, "max_runtime_sec", "a number", {"agent": "a"}),
        (JobSubmit, "lease_request", "an object", {"agent": "a"}),
        (JobSubmit, "lease_constraints", "an object", {"agent": "a"}),
        (JobResult, "result_size", "an integer", {}),
        (JobError, "retryable", "a boolean", {"code": "X"}),
        (JobError, "details", "an object", {"code": "X"}),
        (ClientCapabilities, "features", "an array", {}),
        (SessionWelcome, "resume_window_sec", "a number", {}),
    ],
)
def test_optional_fields_are_strict_too(cls: type[Any], name: str, expected: str, rest: dict[str, Any]) -> None:
    assert decode_payload(cls, {**rest, name: None}) == decode_payload(cls, rest)
    for value, got in WRONG[expected]:
        if value is not None:
            assert refusal(cls, {**rest, name: value}) == f"$.payload.{name}: expected {expected}, got {got}"


def reply(**changes: Any) -> dict[str, Any]:
    return {"request_id": "r", "applied": True, "job_id": "j", "job_status": "success", **changes}


@pytest.mark.requirement("P5.6")
def test_protocol_integers_fit_64_bits() -> None:
    for number in (-(2**63), 2**63 - 1):
        assert decode_payload(SessionAck, {"last_processed_seq": number}).last_processed_seq == number
    for number in (2**63, -(2**63) - 1, 10**40):
        expected = "$.payload.last_processed_seq: expected an integer of at most 64 bits, got a larger one"
        assert refusal(SessionAck, {"last_processed_seq": number}) == expected


@pytest.mark.requirement("P5.6", "P7.3")
def test_what_passes_through_passes_as_it_is() -> None:
    for value in (10**40, 1.0, True, None, "", [], {}, {"a": [1, 1.0, True, None, {"b": "1"}]}):
        submit = decode_payload(JobSubmit, {"agent": "a", "input": value})
        assert (submit.input, type(submit.input)) == (value, type(value))
        event = decode_payload(JobEvent, {"kind": "x-a", "body": {"v": value}})
        assert (event.body["v"], type(event.body["v"])) == (value, type(value))
        assert decode_payload(Metric, {"name": "m", "value": 10**40}).value == 10**40


# --- paths --------------------------------------------------------------------------------------------


@pytest.mark.requirement("P5.5")
@pytest.mark.parametrize(
    ("cls", "payload", "message"),
    [
        (JobSubmit, {}, "$.payload.agent: required, but not there"),
        (
            JobSubmit,
            {"agent": "a", "lease_request": {"fs.read": [1]}},
            '$.payload.lease_request."fs.read"[0]: expected a string, got a number',
        ),
        (
            JobSubmit,
            {"agent": "a", "lease_request": {"fs.read": ["a"], "net.fetch": ["a", "b", None]}},
            '$.payload.lease_request."net.fetch"[2]: expected a string, got null',
        ),
        (
            JobSubmit,
            {"agent": "a", "lease_request": {"fs.read": "a"}},
            '$.payload.lease_request."fs.read": expected an array, got a string',
        ),
        (
            JobSubmit,
            {"agent": "a", "lease_constraints": {"expires_at": 5}},
            "$.payload.lease_constraints.expires_at: expected a string, got a number",
        ),
        (SessionHello, {"client": {"name": 5}}, "$.payload.client.name: expected a string, got a number"),
        (SessionHello, {"client": "me"}, "$.payload.client: expected an object, got a string"),
        (SessionHello, {"auth": {"token": 5}}, "$.payload.auth.token: expected a string, got a number"),
        (
            SessionHello,
            {"capabilities": {"features": ["ack", {}]}},
            "$.payload.capabilities.features[1]: expected a string, got an object",
        ),
        (SessionHello, {"resume": {"last_event_seq": 1}}, "$.payload.resume.resume_token: required, but not there"),
        (
            SessionWelcome,
            {"capabilities": {"agents": [{"name": "a", "versions": []}, {"name": "b", "versions": [1]}]}},
            "$.payload.capabilities.agents[1].versions[0]: expected a string, got a number",
        ),
        (
            SessionJobs,
            {"jobs": [{"job_id": "j", "agent": "a"}]},
            "$.payload.jobs[0].status: required, but not there",
        ),
        (SessionJobs, {"jobs": [7]}, "$.payload.jobs[0]: expected an object, got a number"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(cls: type[Any], payload: Any, message: str) -> None:
    assert refusal(cls, payload) == message


@pytest.mark.requirement("P5.5")
def test_several_wrong_fields_are_all_named() -> None:
    message = refusal(JobSubmit, {"agent": 1, "idempotency_key": 2, "lease_request": {"a": [3]}, "input": object})
    assert message.split("; ") == [
        "$.payload.agent: expected a string, got a number",
        '$.payload.lease_request."a"[0]: expected a string, got a number',
        "$.payload.idempotency_key: expected a string, got a number",
    ]
    assert refusal(Reply, {}).count("required, but not there") == 4


@pytest.mark.requirement("P5.5", "P4.4")
def test_a_million_wrong_elements_are_one_message() -> None:
    """An exception for each would exhaust the process, before anybody has shown a token."""
    before = time.process_time()
    message = refusal(SessionHello, {"capabilities": {"features": [1] * 1_000_000}})
    assert message == "$.payload.capabilities.features[0]: expected a string, got a number"
    assert time.process_time() - before < 1  # it took 12 s, and gigabytes


def test_another_root_for_a_body() -> None:
    with pytest.raises(InvalidRequestError, match=r"^\$\.payload\.body\.value: expected a number"):
        structure_body(Metric, {"name": "m", "value": "1"}, "$.payload.body")
    with pytest.raises(InvalidRequestError, match=r"^\$\.x: expected an object, got an array"):
        structure_body(Metric, [], "$.x")


@pytest.mark.requirement("P5.4", "T02")
def test_unknown_fields_are_ignored_at_every_level() -> None:
    assert decode_payload(SessionPing, {"nonce": "n", "more": {"a": [1]}}) == SessionPing(nonce="n")
    hello = {"client": {"name": "c", "x": 1}, "auth": {"token": "t", "x": None}, "x": [], "capabilities": {"x": {}}}
    assert decode_payload(SessionHello, hello) == SessionHello(client=Peer(name="c"), auth=Auth(token="t"))


@pytest.mark.requirement("T21")
@pytest.mark.parametrize(
    ("frame_type", "payload"),
    [
        ("session.welcome", {}),
        ("session.error", {"code": "X"}),
        ("session.jobs", {"jobs": []}),
        ("session.closed", {}),
        ("session.bye", {}),
        ("session.close", {}),
        ("job.accepted", {"job_id": "j"}),
        ("job.cancelled", {}),
        ("job.event", {"kind": "k", "body": {}}),
        ("job.result", {}),
        ("job.error", {"code": "X"}),
        ("job.subscribed", {"job_id": "j", "current_status": "running"}),
        ("job.submit", {"agent": "a"}),
        ("job.cancel", {}),
        ("session.list_jobs", {}),
        ("session.pong", {"ping_nonce": "n"}),
    ],
)
def test_the_least_that_a_message_may_say(frame_type: str, payload: dict[str, Any]) -> None:
    message = read_message(Envelope(type=frame_type, id="m", payload=payload), MESSAGES[frame_type])
    assert isinstance(message, MESSAGES[frame_type])


# --- what is sent -------------------------------------------------------------------------------------


@pytest.mark.requirement("P5.3a", "D54")
def test_no_null_is_sent_but_those_that_peers_want() -> None:
    assert encode_payload(JobAccepted(job_id="j")) == b'{"job_id":"j"}'
    assert encode_payload(JobResult()) == b'{"final_status":"success"}'
    assert encode_payload(JobError(code="X", details=None)) == b'{"code":"X","message":"","final_status":"error"}'
    assert decode_json(encode_payload(JobSubscribed(job_id="j", current_status="running"))) == {
        "job_id": "j",
        "current_status": "running",
        "parent_job_id": None,
    }
    entry = SessionJobsEntry(job_id="j", agent="a", status="s")
    assert decode_json(encode_payload(SessionJobs(jobs=(entry,)))) == {
        "jobs": [{"job_id": "j", "agent": "a", "status": "s", "parent_job_id": None}],
        "next_cursor": None,
    }
    assert encode_payload(JobSubmit(agent="a")) == b'{"agent":"a","input":null}'
    assert decode_json(encode_payload(ToolCall(tool="t", args=None, call_id="c"))) == {
        "tool": "t",
        "args": None,
        "call_id": "c",
    }
    # False, 0 and what is empty are no nulls.
    assert decode_json(encode_payload(JobError(code="X", retryable=False, details={}))) == {
        "code": "X",
        "message": "",
        "retryable": False,
        "final_status": "error",
        "details": {},
    }


def test_a_null_inside_of_a_value_is_the_users() -> None:
    assert encode_payload(JobResult(result={"a": None})) == b'{"final_status":"success","result":{"a":null}}'


@attrs.frozen
class NotAMessage:
    x: int = 1


@pytest.mark.parametrize("value", [NotAMessage(), {1, 2}, b"a", {1: 2}, float("nan"), "\ud800", object(), Metric])
def test_nothing_but_json_is_sent(value: Any) -> None:
    """A value is not turned into JSON on the way: whoever sent it would get another one back."""
    for message in (
        JobSubmit(agent="a", input=value),
        JobSubmit(agent="a", input={"deep": [value]}),
        JobResult(result=value),
        JobError(code="X", details={"v": value}),
        JobEvent(kind="x-a", body={"v": value}),
    ):
        with pytest.raises(ValueError, match=r"."):
            encode_payload(message)
    with pytest.raises(ValueError, match=r"."):
        encode_payload(object())


@pytest.mark.requirement("P5.5", "P7.9")
def test_a_frame_is_never_nested_deeper_than_it_may() -> None:
    """The envelope and the payload stand around a value: 62 levels are left to it."""

    def nested(depth: int) -> Any:
        value: Any = 1
        for _ in range(depth):
            value = [value]
        return value

    payload = encode_payload(JobSubmit(agent="a", input=nested(MAX_DEPTH - 2)))
    decode_json(b'{"payload":%b}' % payload)
    for depth in (MAX_DEPTH - 1, MAX_DEPTH, 200, 5000):
        with pytest.raises(ValueError, match=r"."):
            encode_payload(JobSubmit(agent="a", input=nested(depth)))


def test_a_value_is_neither_copied_nor_changed() -> None:
    value = {"a": [1, {"b": (2, 3)}]}
    before = json.dumps(value)
    encode_payload(JobSubmit(agent="a", input=value))
    assert json.dumps(value) == before
    payload = {"agent": "a", "input": value, "lease_request": {"fs.read": ["/a"]}, "x": 1}
    copy = json.dumps(payload)
    read_message(Envelope(type="job.submit", id="m", payload=payload), JobSubmit)
    assert json.dumps(payload) == copy


def test_a_secret_is_not_in_a_repr() -> None:
    for message in (
        Auth(token="s3cret"),
        ResumeRequest(resume_token="s3cret", last_event_seq=0),
        SessionWelcome(resume_token="s3cret"),
        JobAccepted(job_id="j", credentials=({"value": "s3cret"},)),
        SessionHello(auth=Auth(token="s3cret"), resume=ResumeRequest(resume_token="s3cret", last_event_seq=0)),
    ):
        assert "s3cret" not in repr(message)
        assert b"s3cret" in encode_payload(message)


# --- round trips --------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


def strategy_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Return values of a type; independent of the converter and of the schema."""
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: text,
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63 - 1),
        float: numbers,
        type(None): st.none(),
        Any: json_values,
    }
    if annotation in simple:
        return simple[annotation]
    if attrs.has(annotation):
        hints = get_type_hints(annotation)
        return st.builds(
            annotation,
            **{field.name: strategy_of(hints[field.name]) for field in attrs.fields(annotation)},
        )
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        if {int, float} <= set(arguments):
            return numbers if type(None) not in arguments else st.none() | numbers
        return st.one_of([strategy_of(each) for each in arguments])
    if get_origin(annotation) is tuple:
        return st.lists(strategy_of(arguments[0]), max_size=3).map(tuple)
    assert get_origin(annotation) is dict
    return st.dictionaries(text, strategy_of(arguments[1]), max_size=3)


@pytest.mark.requirement("P5.3a", "P5.6")
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_message_survives_the_wire(cls: type[Any]) -> None:
    """Every field of every class, through the text; and what is written is what the schema says."""
    frame_types = [name for name, each in MESSAGES.items() if each is cls]

    @given(strategy_of(cls))
    @settings(deadline=None, print_blob=True, max_examples=40)
    def round_trip(message: Any) -> None:
        payload = decode_json(encode_payload(message))
        assert decode_payload(cls, payload) == message
        assert set(payload) <= {field.name for field in attrs.fields(cls)}
        for frame_type in frame_types:
            number = {"event_seq": 1} if frame_type in ("job.event", "job.result", "job.error") else {}
            if cls is JobEvent and message.kind in EVENT_BODIES:
                continue
            frame = {"arcp": "1.1", "id": "m", "type": frame_type, "payload": payload, **number}
            assert problems_of_schema(frame) == []
        if cls in EVENT_BODIES.values():
            (kind,) = [name for name, each in EVENT_BODIES.items() if each is cls]
            event = {"arcp": "1.1", "id": "m", "type": "job.event", "event_seq": 1}
            assert problems_of_schema({**event, "payload": {"kind": kind, "body": payload}}) == []

    round_trip()


@pytest.mark.requirement("P5.5")
@given(st.sampled_from(sorted(MESSAGES)), st.data())
@settings(deadline=None, print_blob=True, max_examples=400)
def test_any_payload_is_a_message_or_an_invalid_request(frame_type: str, data: st.DataObject) -> None:
    """Nothing else is raised, whatever stands in which field; a group would be split by a caller's ``except*``."""
    cls = MESSAGES[frame_type]
    names = [field.name for field in attrs.fields(cls)]
    names += ["client_name", "resume_token", "last_event_seq", "capabilities", "runtime_name", "value", "output"]
    payload = data.draw(st.dictionaries(st.sampled_from(names), json_values, max_size=6))
    if data.draw(st.booleans()):
        nested = st.sampled_from(["capabilities", "agents", "expires_at", "resume_token", "token", "name", "features"])
        payload = {name: data.draw(st.dictionaries(nested, json_values, max_size=3)) for name in payload}
    envelope = Envelope(type=frame_type, id="m", payload=payload, job_id=data.draw(st.none() | text))
    refused = ""
    try:
        message = read_message(envelope, cls)
    except InvalidRequestError as exc:
        refused = exc.message
    if refused:
        assert refused.startswith("$.payload")
    else:
        assert type(message) is cls
        encode_payload(message)


def test_constraints_are_a_message_of_their_own() -> None:
    submit = decode_payload(JobSubmit, {"agent": "a", "lease_constraints": {}})
    assert submit.lease_constraints == LeaseConstraints()
