"""The forms of interop.md, section 3: the same message, as each implementation writes it."""
# what a parametrised test is given has names where it is given

from __future__ import annotations

import copy
from typing import Any

import pytest

from arcp_trio.wire.codec import MESSAGES, read_message
from arcp_trio.wire.envelope import Envelope
from arcp_trio.wire.errors import InvalidRequestError
from arcp_trio.wire.forms import READERS
from arcp_trio.wire.job_messages import LeaseConstraints
from arcp_trio.wire.session_messages import AgentInventory, Peer, ResumeRequest


def read(frame_type: str, payload: dict[str, Any], **fields: Any) -> Any:
    """Read a message; what was received must stay as it was."""
    before = copy.deepcopy(payload)
    message = read_message(Envelope(type=frame_type, id="m", payload=payload, **fields), MESSAGES[frame_type])
    assert payload == before
    return message


def test_every_reader_is_of_a_message() -> None:
    assert set(READERS) <= set(MESSAGES)


# --- 3.1 hello ----------------------------------------------------------------------------------------


@pytest.mark.requirement("D6")
@pytest.mark.parametrize(
    ("payload", "client"),
    [
        ({"client": {"name": "c", "version": "1", "kind": "k"}}, Peer(name="c", version="1", kind="k")),
        ({"client": {"name": "c"}, "client_name": "other"}, Peer(name="c")),
        ({"client_name": "flat", "client_version": "2"}, Peer(name="flat", version="2")),
        ({"client": None, "client_name": "flat"}, Peer(name="flat")),
        ({"client_name": "", "client_version": None}, Peer(name="unknown")),
        ({"client": {}}, Peer(name="unknown")),
        ({}, Peer(name="unknown")),
    ],
)
def test_a_hello_names_its_client_in_either_way_or_not(payload: dict[str, Any], client: Peer) -> None:
    assert read("session.hello", payload).client == client


@pytest.mark.requirement("D7")
def test_the_scheme_of_a_hello_may_be_missing() -> None:
    assert read("session.hello", {"auth": {"token": "t"}}).auth.scheme == "bearer"
    assert read("session.hello", {"auth": {"token": "t", "scheme": "basic"}}).auth.scheme == "basic"


def test_the_capabilities_of_a_hello_may_be_missing_or_null() -> None:
    for payload in ({}, {"capabilities": None}, {"capabilities": {}}, {"capabilities": {"features": None}}):
        assert read("session.hello", payload).capabilities.features is None
    full = read("session.hello", {"capabilities": {"features": ["ack"], "encodings": ["json"], "agents": []}})
    assert (full.capabilities.features, full.capabilities.encodings) == (("ack",), ("json",))


@pytest.mark.requirement("D18")
@pytest.mark.parametrize(
    ("payload", "resume"),
    [
        (
            {"resume": {"session_id": "s", "resume_token": "t", "last_event_seq": 4}},
            ResumeRequest(session_id="s", resume_token="t", last_event_seq=4),
        ),
        ({"resume": {"token": "t", "last_event_seq": 4}}, ResumeRequest(resume_token="t", last_event_seq=4)),
        (
            {"resume": {"token": "old", "resume_token": "t", "last_event_seq": 4}},
            ResumeRequest(resume_token="t", last_event_seq=4),
        ),
        ({"resume_token": "t", "last_event_seq": 4}, ResumeRequest(resume_token="t", last_event_seq=4)),
        ({"resume_token": "t"}, ResumeRequest(resume_token="t", last_event_seq=0)),
        (
            {"resume": {"resume_token": "t", "last_event_seq": 4}, "resume_token": "u", "last_event_seq": 9},
            ResumeRequest(resume_token="t", last_event_seq=4),
        ),
        ({"resume": None, "resume_token": None}, None),
        ({}, None),
    ],
)
def test_a_resume_stands_in_four_places(payload: dict[str, Any], resume: ResumeRequest | None) -> None:
    assert read("session.hello", payload).resume == resume


@pytest.mark.requirement("P5.5")
@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"resume": {"resume_token": "t"}}, "$.payload.resume.last_event_seq"),
        ({"resume": {"last_event_seq": 1}}, "$.payload.resume.resume_token"),
        ({"resume": {"token": 5, "last_event_seq": 1}}, "$.payload.resume.resume_token"),
        ({"resume": "t"}, "$.payload.resume"),
        ({"resume_token": 5}, "$.payload.resume.resume_token"),
        ({"resume_token": "t", "last_event_seq": "4"}, "$.payload.resume.last_event_seq"),
        ({"resume": {"resume_token": "t", "last_event_seq": 1.5}}, "$.payload.resume.last_event_seq"),
        ({"resume": {"resume_token": "t", "last_event_seq": True}}, "$.payload.resume.last_event_seq"),
        ({"resume": {"resume_token": "t", "last_event_seq": 2**63}}, "$.payload.resume.last_event_seq"),
        ({"client_name": 5}, "$.payload.client.name"),
        ({"client": []}, "$.payload.client"),
        ({"capabilities": []}, "$.payload.capabilities"),
    ],
)
def test_what_is_wrong_in_another_form_is_still_wrong(payload: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read("session.hello", payload)
    assert caught.value.message.startswith(path + ":")


def test_a_resume_as_a_message_of_its_own() -> None:
    message = read("session.resume", {"resume_token": "t", "last_event_seq": 3, "auth": {"token": "b"}})
    assert (message.resume_token, message.last_event_seq, message.session_id) == ("t", 3, None)


# --- 3.2 welcome --------------------------------------------------------------------------------------


@pytest.mark.requirement("D8", "D5")
def test_a_welcome_names_its_runtime_and_session_in_either_way() -> None:
    rich = read("session.welcome", {"runtime": {"name": "r", "version": "1"}, "session_id": "p"}, session_id="e")
    assert (rich.runtime, rich.session_id) == (Peer(name="r", version="1"), "p")
    flat = read("session.welcome", {"runtime_name": "r", "runtime_version": "1"}, session_id="e")
    assert (flat.runtime, flat.session_id) == (Peer(name="r", version="1"), "e")
    bare = read("session.welcome", {})
    assert (bare.runtime, bare.session_id) == (Peer(name="unknown"), None)


@pytest.mark.requirement("D10", "D12")
def test_the_agents_of_a_welcome_in_every_form() -> None:
    agents = [
        "plain",
        {"name": "bare", "bare": True},
        {"name": "rich", "versions": ["1", "2"], "default": "2"},
        {"name": "nulls", "versions": None, "default": None},
    ]
    welcome = read("session.welcome", {"capabilities": {"agents": agents}, "heartbeat_interval_sec": None})
    assert welcome.capabilities.agents == (
        AgentInventory(name="plain", versions=()),
        AgentInventory(name="bare", versions=()),
        AgentInventory(name="rich", versions=("1", "2"), default="2"),
        AgentInventory(name="nulls", versions=()),
    )
    assert welcome.heartbeat_interval_sec is None
    assert read("session.welcome", {"heartbeat_interval_sec": 0}).heartbeat_interval_sec == 0
    for capabilities in (None, {}, {"agents": None}):
        assert read("session.welcome", {"capabilities": capabilities}).capabilities.agents is None
    for wrong in ([5], [{"versions": []}], [{"name": 5}], {"a": 1}):
        with pytest.raises(InvalidRequestError, match=r"^\$\.payload\.capabilities\.agents"):
            read("session.welcome", {"capabilities": {"agents": wrong}})


# --- 3.3 errors ---------------------------------------------------------------------------------------


@pytest.mark.requirement("D17")
@pytest.mark.parametrize("details", [None, "text", 5, [1]])
@pytest.mark.parametrize("frame_type", ["session.error", "job.error"])
def test_details_that_are_no_object_are_dropped(frame_type: str, details: Any) -> None:
    assert read(frame_type, {"code": "X", "details": details}).details is None
    assert read(frame_type, {"code": "X", "details": {"a": 1}}).details == {"a": 1}


# --- 3.9 submit ---------------------------------------------------------------------------------------


@pytest.mark.requirement("D28")
def test_an_input_may_be_missing() -> None:
    assert read("job.submit", {"agent": "a"}).input is None
    assert read("job.submit", {"agent": "a", "input": None}).input is None


@pytest.mark.requirement("D27")
@pytest.mark.parametrize(
    ("payload", "lease", "expires_at"),
    [
        ({"lease_request": {"fs.read": ["/a"]}}, {"fs.read": ("/a",)}, None),
        ({"lease_request": {}}, {}, None),
        ({"lease_request": None}, None, None),
        (
            {"lease_request": {"capabilities": ["fs.read", "net.fetch", "x.y"]}},
            {"fs.read": ("/**",), "net.fetch": ("http://*/**", "https://*/**"), "x.y": ("*",)},
            None,
        ),
        (
            {"lease_request": {"capabilities": ["fs.read"], "fs.read": ["/a"], "cost.budget": ["USD:1"]}},
            {"fs.read": ("/a",), "cost.budget": ("USD:1",)},
            None,
        ),
        ({"lease_request": {"capabilities": []}}, {}, None),
        ({"lease_request": {"capabilities": None, "a": ["b"]}}, {"a": ("b",)}, None),
        ({"lease_request": {"expires_at": "T", "a": ["b"]}}, {"a": ("b",)}, "T"),
        ({"lease_request": {"expires_at": "T"}, "lease_constraints": {"expires_at": "C"}}, {}, "C"),
        # A constraint without an end must not make the lease endless.
        ({"lease_request": {"expires_at": "T"}, "lease_constraints": {}}, {}, "T"),
        ({"lease_request": {"expires_at": "T"}, "lease_constraints": {"expires_at": None}}, {}, "T"),
        # As a namespace it is left alone: a list of patterns.
        ({"lease_request": {"expires_at": ["T"]}}, {"expires_at": ("T",)}, None),
    ],
)
def test_a_lease_in_both_forms(payload: dict[str, Any], lease: Any, expires_at: str | None) -> None:
    submit = read("job.submit", {"agent": "a", **payload})
    assert submit.lease_request == lease
    assert (submit.lease_constraints or LeaseConstraints()).expires_at == expires_at


@pytest.mark.requirement("B13")
@pytest.mark.parametrize(
    ("constraints", "most"),
    [
        ({"max_budget": ["USD:1", "EUR:2"]}, ("USD:1", "EUR:2")),
        ({"max_budget": "USD:1"}, ("USD:1",)),
        ({"max_budget": []}, ()),
        ({"max_budget": None}, None),
        ({}, None),
    ],
)
def test_the_largest_budget_is_one_amount_or_several(constraints: Any, most: Any) -> None:
    submit = read("job.submit", {"agent": "a", "lease_constraints": {"expires_at": "T", **constraints}})
    assert submit.lease_constraints == LeaseConstraints(expires_at="T", max_budget=most)


@pytest.mark.requirement("P5.5")
@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"lease_constraints": {"max_budget": 5}}, "$.payload.lease_constraints.max_budget"),
        ({"lease_constraints": {"max_budget": [5]}}, "$.payload.lease_constraints.max_budget[0]"),
        ({"lease_request": {"capabilities": [1]}}, '$.payload.lease_request."capabilities"[0]'),
        ({"lease_request": {"capabilities": "fs.read"}}, '$.payload.lease_request."capabilities"'),
        ({"lease_request": ["fs.read"]}, "$.payload.lease_request"),
        ({"lease_request": {"expires_at": 5}}, '$.payload.lease_request."expires_at"'),
        ({"lease_request": {"expires_at": "T"}, "lease_constraints": 5}, "$.payload.lease_constraints"),
    ],
)
def test_a_lease_that_is_wrong_in_its_own_form(payload: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read("job.submit", {"agent": "a", **payload})
    assert caught.value.message.startswith(path + ":")


# --- 3.10 to 3.17: what a runtime says of a job -------------------------------------------------------


@pytest.mark.requirement("D40")
@pytest.mark.parametrize(
    "frame_type",
    [
        "job.cancel",
        "job.cancelled",
        "job.subscribe",
        "job.unsubscribe",
        "job.result",
        "job.accepted",
        "job.subscribed",
        "job.error",
    ],
)
def test_a_job_id_on_the_envelope_or_in_the_payload(frame_type: str) -> None:
    rest = {"job.subscribed": {"current_status": "running"}, "job.error": {"code": "X"}}.get(frame_type, {})
    assert read(frame_type, {**rest, "job_id": "p"}).job_id == "p"
    assert read(frame_type, {**rest}, job_id="e").job_id == "e"
    assert read(frame_type, {**rest, "job_id": None}, job_id="e").job_id == "e"
    assert read(frame_type, {**rest, "job_id": "p"}, job_id="e").job_id == "p"
    with pytest.raises(InvalidRequestError, match=r"^\$\.payload\.job_id: expected a string"):
        read(frame_type, {**rest, "job_id": 5}, job_id="e")


def test_a_cancel_without_a_job_says_so() -> None:
    assert read("job.cancel", {}).job_id is None


@pytest.mark.requirement("D35")
def test_an_event_without_a_time() -> None:
    for payload in ({}, {"ts": None}, {"ts": 5}):
        assert read("job.event", {"kind": "log", "body": {}, **payload}).ts is None
    assert read("job.event", {"kind": "log", "body": {}, "ts": "T"}).ts == "T"


@pytest.mark.requirement("D36")
@pytest.mark.parametrize(
    ("payload", "result"),
    [
        ({"result": 1}, 1),
        ({"output": 2}, 2),
        ({"value": 3}, 3),
        ({"result": 1, "output": 2, "value": 3}, 1),
        ({"output": 2, "value": 3}, 2),
        ({"result": None, "output": None, "value": 3}, 3),
        ({"result": False, "output": 2}, False),
        ({"result": 0}, 0),
        ({}, None),
    ],
)
def test_a_result_under_its_three_names(payload: dict[str, Any], result: Any) -> None:
    assert read("job.result", payload, job_id="j").result == result


@pytest.mark.requirement("D37")
def test_a_terminal_event_without_more() -> None:
    result = read("job.result", {}, job_id="j")
    assert (result.final_status, result.completed_at, result.result) == ("success", None, None)
    error = read("job.error", {"code": "TIMEOUT"}, job_id="j")
    assert (error.final_status, error.message, error.retryable) == ("error", "", None)


@pytest.mark.requirement("D44")
@pytest.mark.parametrize(("replayed", "read_as"), [(True, True), (False, False), (0, False), (5, True), (None, None)])
def test_replayed_may_be_a_count(replayed: Any, read_as: bool | None) -> None:
    message = read("job.subscribed", {"job_id": "j", "current_status": "running", "replayed": replayed})
    assert message.replayed is read_as
