"""Envelopes: every way in which a frame can be none, and how our own are written."""
# what a parametrised test is given has names where it is given

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcp_trio.wire.envelope import (
    JOB_SEQ_EXTENSION,
    MAX_ID_LENGTH,
    NUMBERED_TYPES,
    PROTOCOL_VERSION,
    Envelope,
    EnvelopeSplicer,
    EventTails,
    decode_envelope,
    encode_envelope,
    encode_tail,
    speaks_our_version,
)
from arcp_trio.wire.errors import InvalidRequestError, MalformedFrameError
from arcp_trio.wire.ids import IdFactory, event_id_stem, numbered_event_id
from arcp_trio.wire.jsontext import encode_json

GOOD = {"arcp": "1.1", "id": "m", "type": "session.ping", "payload": {"nonce": "n"}}


def text_of(**changes: Any) -> str:
    """Return the good frame's text with changes; ``...`` drops a field."""
    return json.dumps({key: value for key, value in {**GOOD, **changes}.items() if value is not ...})


def refusal(text: bytes | str, *, strict: bool = True) -> MalformedFrameError:
    with pytest.raises(MalformedFrameError) as caught:
        decode_envelope(text, strict=strict)
    assert isinstance(caught.value, InvalidRequestError)
    assert caught.value.code == "INVALID_REQUEST"
    return caught.value


def test_a_frame_is_read() -> None:
    text = text_of(
        session_id="s",
        job_id="j",
        event_seq=3,
        trace_id="a" * 32,
        correlation_id="c",
        timestamp="t",
        extensions={JOB_SEQ_EXTENSION: 7},
        unknown=[1],
    )
    expected = Envelope(
        type="session.ping",
        id="m",
        payload={"nonce": "n"},
        arcp="1.1",
        session_id="s",
        job_id="j",
        event_seq=3,
        trace_id="a" * 32,
        correlation_id="c",
        timestamp="t",
        extensions={JOB_SEQ_EXTENSION: 7},
    )
    assert decode_envelope(text) == decode_envelope(text.encode()) == expected
    assert expected.job_seq == 7


@pytest.mark.requirement("P5.1", "P5.5", "T01")
@pytest.mark.parametrize(
    ("text", "path", "request_id"),
    [
        ("", "$:", None),
        ("{", "$:", None),
        (b"\xff{}", "$:", None),
        ('{"arcp":"1.1"', "$:", None),
        ("[]", "$: expected an object, got an array", None),
        ("null", "$: expected an object, got null", None),
        ('"text"', "$: expected an object, got a string", None),
        ("3", "$: expected an object, got a number", None),
        ("true", "$: expected an object, got a boolean", None),
        ("{}", "$.id:", None),
        (text_of(id=...), "$.id: expected a string of 1 to 256 characters, got null", None),
        (text_of(id=None), "$.id:", None),
        (text_of(id=""), "$.id:", None),
        (text_of(id="x" * 257), "$.id:", None),
        (text_of(id=5), "$.id: expected a string of 1 to 256 characters, got a number", None),
        (text_of(id=["m"]), "$.id:", None),
        (text_of(type=...), "$.type: expected a string, got null", "m"),
        (text_of(type=""), "$.type: expected a string, got an empty string", "m"),
        (text_of(type=7), "$.type: expected a string, got a number", "m"),
        (text_of(arcp=...), "$.arcp:", "m"),
        (text_of(arcp=1.1), "$.arcp: expected a string, got a number", "m"),
        (text_of(arcp=None), "$.arcp:", "m"),
        (text_of(payload=...), "$.payload: expected an object, got null", "m"),
        (text_of(payload=None), "$.payload:", "m"),
        (text_of(payload=[]), "$.payload: expected an object, got an array", "m"),
        (text_of(payload="{}"), "$.payload: expected an object, got a string", "m"),
        (text_of(session_id=""), "$.session_id:", "m"),
        (text_of(session_id=3), "$.session_id:", "m"),
        (text_of(session_id="s" * 257), "$.session_id:", "m"),
        (text_of(job_id=""), "$.job_id:", "m"),
        (text_of(job_id={}), "$.job_id: expected a string of 1 to 256 characters, got an object", "m"),
        (text_of(job_id="j" * 257), "$.job_id:", "m"),
        (text_of(event_seq="1"), "$.event_seq:", "m"),
        (text_of(event_seq=1.0), "$.event_seq:", "m"),
        (text_of(event_seq=True), "$.event_seq: expected an integer from 0 to 2**63 - 1, got a boolean", "m"),
        (text_of(event_seq=-1), "$.event_seq:", "m"),
        (text_of(event_seq=2**63), "$.event_seq:", "m"),
        (text_of(event_seq=10**40), "$.event_seq:", "m"),
        (text_of(payload={"a": float("nan")}), "$:", None),
        (text_of(payload={"a": float("inf")}), "$:", None),
        (text_of(payload={"a": "\ud800"}), "$:", None),
        ('{"id":"m","x":' + "[" * 64 + "]" * 64 + "}", "$:", None),
        ('{"id":"m","x":' + "[" * 3000 + "]" * 3000 + "}", "$:", None),
    ],
)
def test_what_is_no_envelope(text: bytes | str, path: str, request_id: str | None) -> None:
    """Each says where and what was expected, and whose request it was where that could be read."""
    error = refusal(text)
    assert error.message.startswith(path)
    assert error.request_id == request_id
    if isinstance(text, str):
        encoded = refusal(text.encode("utf-8", "surrogatepass"))
        assert (encoded.message.partition(":")[0], encoded.request_id) == (error.message.partition(":")[0], request_id)


@pytest.mark.requirement("P5.3")
def test_ids_may_have_256_characters_of_any_kind() -> None:
    for each in ("x", "é" * MAX_ID_LENGTH, 'with "quotes" and \\ and \n', "01ARZ3NDEKTSV4RRFFQ69G5FAV"):
        envelope = decode_envelope(text_of(id=each, session_id=each, job_id=each))
        assert (envelope.id, envelope.session_id, envelope.job_id) == (each, each, each)


@pytest.mark.requirement("P5.1")
@pytest.mark.parametrize("number", [0, 1, 2**53 + 1, 2**63 - 1])
def test_numbers_in_range(number: int) -> None:
    assert decode_envelope(text_of(event_seq=number)).event_seq == number


@pytest.mark.requirement("P5.3a", "D54")
def test_null_is_absent() -> None:
    names = ["session_id", "job_id", "event_seq", "trace_id", "correlation_id", "timestamp", "extensions"]
    assert decode_envelope(text_of(**dict.fromkeys(names))) == decode_envelope(text_of())


@pytest.mark.requirement("P5.4")
def test_what_is_not_in_the_specification_may_have_any_shape() -> None:
    for value in (3, [], {"a": 1}, True, "text"):
        envelope = decode_envelope(text_of(timestamp=value, correlation_id=value, extensions=value, other=value))
        assert envelope.timestamp == (value if isinstance(value, str) else None)
        assert envelope.correlation_id == (value if isinstance(value, str) else None)
        assert envelope.extensions == (value if isinstance(value, dict) else {})
    for odd in ("7", True, 1.5, None):
        assert decode_envelope(text_of(extensions={JOB_SEQ_EXTENSION: odd})).job_seq is None


# --- duplicates ---------------------------------------------------------------------------------------


@pytest.mark.requirement("P5.5")
@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"arcp":"1.1","id":"m","id":"m","type":"t","payload":{}}', "$.id"),
        ('{"arcp":"1.1","id":"m","type":"t","type":"u","payload":{}}', "$.type"),
        ('{"arcp":"1.1","id":"m","type":"t","payload":{},"payload":{}}', "$.payload"),
        ('{"arcp":"1.1","arcp":"1.1","id":"m","type":"t","payload":{}}', "$.arcp"),
        ('{"arcp":"1.1","id":"m","type":"t","payload":{},"job_id":"a","job_id":"a"}', "$.job_id"),
        ('{"arcp":"1.1","id":"m","type":"t","payload":{},"session_id":"a","session_id":"b"}', "$.session_id"),
        ('{"arcp":"1.1","id":"m","type":"t","payload":{},"event_seq":1,"event_seq":2}', "$.event_seq"),
        ('{"arcp":"1.1","id":"m","type":"t","payload":{},"trace_id":"a","trace_id":"b"}', "$.trace_id"),
        ('{"arcp":"1.1","id":"m","type":"t","payload":{"agent":"a","agent":"b"}}', "$.payload.agent"),
        # The other spelling of the same name: an escape.
        (r'{"arcp":"1.1","id":"m","type":"t","payload":{"agent":"a","\u0061gent":"b"}}', "$.payload.agent"),
        (r'{"arcp":"1.1","id":"m","\u0074ype":"t","type":"u","payload":{}}', "$.type"),
        (r'{"arcp":"1.1","id":"m","type":"t","p\u0061yload":{},"payload":{}}', "$.payload"),
        # Names that have several spellings without \u.
        (r'{"arcp":"1.1","id":"m","type":"t","payload":{"a\"b":1,"a\"b":2}}', '$.payload.a"b'),
        (r'{"arcp":"1.1","id":"m","type":"t","payload":{"a/b":1,"a\/b":2}}', "$.payload.a/b"),
        (r'{"arcp":"1.1","id":"m","type":"t","payload":{"a\nb":1,"a\nb":2}}', "$.payload.a\nb"),
        (r'{"arcp":"1.1","id":"m","type":"t","payload":{"a\\":1,"a\\":2}}', "$.payload.a\\"),
        ('{"arcp":"1.1","id":"m","type":"t","payload":{"":1,"":2}}', "$.payload."),
    ],
)
def test_a_field_that_stands_twice(text: str, path: str) -> None:
    for each in (text, text.encode()):
        error = refusal(each)
        assert error.message == f"{path}: stands twice"
        assert error.request_id == "m"
    # A client takes what runtimes send.
    assert decode_envelope(text, strict=False).id == "m"


@pytest.mark.requirement("P5.4", "P5.5")
@pytest.mark.parametrize(
    "text",
    [
        # The name as a value, or of a field further in.
        '{"arcp":"1.1","id":"id","type":"type","payload":{"agent":"agent","input":{"agent":1,"id":2,"type":3}}}',
        # A field twice inside of an input: the input is the agent's own.
        '{"arcp":"1.1","id":"m","type":"t","payload":{"input":{"a":1,"a":2}}}',
        # A field of the envelope that means nothing to us, with and without an escape in the frame.
        '{"arcp":"1.1","id":"m","type":"t","payload":{},"x":1,"x":2}',
        r'{"arcp":"1.1","id":"m","type":"t","payload":{"input":"\u00e9"},"x":1,"x":2}',
        r'{"arcp":"1.1","id":"m","type":"t","payload":{"a/b":1,"a\"b":2,"a\\b":3,"\u0061":4}}',
    ],
)
def test_what_only_looks_like_a_duplicate(text: str) -> None:
    assert decode_envelope(text) == decode_envelope(text, strict=False) == decode_envelope(text.encode())


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", 'q"', "s/", "n\n", "é", "", "\\"]), st.booleans()), min_size=0, max_size=6
    ),
    st.booleans(),
)
@settings(deadline=None, print_blob=True)
def test_duplicates_are_found_in_every_spelling(names: list[tuple[str, bool]], many: bool) -> None:
    """Also among many names, where the frame is not scanned for each."""

    def spell(name: str, escaped: bool) -> str:
        return '"' + "".join(f"\\u{ord(each):04x}" for each in name) + '"' if escaped else json.dumps(name)

    fields = [f"{spell(name, escaped)}:{number}" for number, (name, escaped) in enumerate(names)]
    fields += [f'"filler {number}":0' for number in range(40 if many else 0)]
    text = '{"arcp":"1.1","id":"m","type":"t","payload":{' + ",".join(fields) + "}}"
    plain = [name for name, _ in names]
    if len(set(plain)) == len(plain):
        assert set(decode_envelope(text).payload) >= set(plain)
    else:
        assert refusal(text).message.endswith(": stands twice")


@pytest.mark.requirement("P5.5", "P4.4")
def test_many_names_take_no_more_time_than_their_bytes() -> None:
    """A frame of names alone must not hold the loop: before, 16,000 took more than a second, and the square of it."""
    payload = {f"name{number}": 0 for number in range(50_000)}
    text = json.dumps({**GOOD, "payload": payload}).encode()
    before = time.process_time()
    assert len(decode_envelope(text).payload) == 50_000
    # 0.1 s on a slow machine; the scan for each name took 16 s here.
    assert time.process_time() - before < 2


# --- trace ids and versions ---------------------------------------------------------------------------

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.requirement("P5.8")
@pytest.mark.parametrize(
    ("given", "read"),
    [
        (TRACE, TRACE),
        (TRACE.upper(), TRACE),
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"00-{TRACE.upper()}-00F067AA0BA902B7-01", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-the-future-will-be", TRACE),
        ("0" * 32, None),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (TRACE[:-1], None),
        (TRACE + "0", None),
        (f" {TRACE}", None),
        (f"{TRACE}\n", None),
        ("g" * 32, None),
        (f"00-{TRACE}", None),
        (f"00-{TRACE[:-1]}-00f067aa0ba902b7-01", None),
        ("٣" * 32, None),
        ("", None),
        (7, None),
        (True, None),
        ([TRACE], None),
        ({"trace": TRACE}, None),
        (None, None),
    ],
)
def test_a_trace_id_is_taken_or_dropped(given: Any, read: str | None) -> None:
    assert decode_envelope(text_of(trace_id=given)).trace_id == read


@pytest.mark.requirement("P5.2", "T01")
@pytest.mark.parametrize("arcp", ["1", "1.0", "1.1", "1.2", "1.10", "1.999"])
def test_versions_that_we_speak(arcp: str) -> None:
    assert speaks_our_version(arcp)


@pytest.mark.requirement("P5.2", "T01")
@pytest.mark.parametrize("arcp", ["", "2", "2.1", "0.9", "11", "1.", "1.x", "1.1.1", "v1", " 1", "1\n", "1.1\n", "-1"])
def test_versions_that_we_do_not_speak(arcp: str) -> None:
    assert not speaks_our_version(arcp)
    # Saying so is the session's part: the frame itself can be read.
    assert decode_envelope(text_of(arcp=arcp)).arcp == arcp


# --- as a client reads --------------------------------------------------------------------------------


@pytest.mark.requirement("T21")
def test_a_client_takes_a_frame_without_a_payload() -> None:
    for text in (text_of(payload=...), text_of(payload=None)):
        assert decode_envelope(text, strict=False).payload == {}
    assert refusal(text_of(payload=[]), strict=False).request_id == "m"
    assert refusal(text_of(id=...), strict=False).request_id is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
field_names = st.sampled_from([*GOOD, "session_id", "job_id", "event_seq", "trace_id", "extensions", "timestamp"])


@pytest.mark.requirement("P5.5")
@given(st.dictionaries(field_names, json_values | st.just(...), max_size=4), st.booleans())
@settings(deadline=None, print_blob=True)
def test_whatever_comes_is_an_envelope_or_malformed(changes: dict[str, Any], strict: bool) -> None:
    text = text_of(**changes)
    refused = None
    try:
        envelope = decode_envelope(text, strict=strict)
    except MalformedFrameError as exc:
        refused = exc
    if refused is None:
        assert type(envelope.id) is str
        assert type(envelope.payload) is dict
    else:
        assert refused.message.startswith("$")
        assert refused.request_id is None or refused.request_id == changes.get("id", "m")


# --- writing ------------------------------------------------------------------------------------------

AT = "2026-01-01T00:00:00.000Z"


@pytest.mark.requirement("P5.1", "P5.2", "P5.3a")
def test_a_whole_frame() -> None:
    frame = encode_envelope("session.ping", b'{"nonce":"n"}', message_id="msg_1", timestamp=AT)
    assert json.loads(frame) == {
        "arcp": "1.1",
        "id": "msg_1",
        "type": "session.ping",
        "timestamp": AT,
        "payload": {"nonce": "n"},
    }
    fields = {"session_id": "s", "job_id": "j", "trace_id": TRACE, "correlation_id": "c", "event_seq": 4}
    frame = encode_envelope("job.event", b"{}", message_id="msg_1", timestamp=AT, **fields)  # type: ignore[arg-type]
    assert json.loads(frame) == {
        "arcp": PROTOCOL_VERSION,
        "id": "msg_1",
        "type": "job.event",
        "timestamp": AT,
        "payload": {},
        **fields,
    }


@pytest.mark.requirement("P5.3a")
def test_a_foreign_id_is_escaped() -> None:
    odd = 'a"b\\c\né'
    frame = encode_envelope("t", b"{}", message_id=odd, timestamp=AT, session_id=odd, correlation_id=odd)
    envelope = decode_envelope(frame)
    assert (envelope.id, envelope.session_id, envelope.correlation_id) == (odd, odd, odd)
    assert b"\n" not in frame


@pytest.mark.requirement("P5.1", "P5.3")
@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.text('é\n"\\}{'), max_size=4),
    st.integers(1, 2**50 - 1),
    st.integers(1, 2**63 - 1),
    st.sampled_from(sorted(NUMBERED_TYPES)),
    st.integers(0, 2**32),
)
@settings(deadline=None, print_blob=True)
def test_a_spliced_frame_equals_one_written_plainly(
    payload: dict[str, Any], event_seq: int, job_seq: int, frame_type: str, seed: int
) -> None:
    ids = IdFactory(random_bits=lambda bits: seed % 2**bits)
    session_id, job_id, trace_id = ids.session(), ids.job(), f"{seed + 1:032x}"
    message_id = numbered_event_id(event_id_stem(session_id), event_seq)
    body = encode_json(payload)
    tail = encode_tail(frame_type, body, job_id=job_id, trace_id=trace_id, timestamp=AT, job_seq=job_seq)
    if frame_type == "job.event":
        tails = EventTails(job_id, trace_id)
        assert tails.encode(body, timestamp=AT, job_seq=job_seq) == tail
        assert tails.encode(body, timestamp=AT, job_seq=job_seq) == tail
    splicer = EnvelopeSplicer(session_id)
    spliced = splicer.splice(event_seq, tail)
    plain = encode_envelope(
        frame_type,
        body,
        message_id=message_id,
        timestamp=AT,
        session_id=session_id,
        job_id=job_id,
        trace_id=trace_id,
        event_seq=event_seq,
    )
    assert json.loads(spliced) == {**json.loads(plain), "extensions": {JOB_SEQ_EXTENSION: job_seq}}
    envelope = decode_envelope(spliced)
    assert envelope == decode_envelope(spliced, strict=False)
    assert (envelope.event_seq, envelope.job_seq, envelope.payload) == (event_seq, job_seq, payload)
    # The same tail again, for another session: nothing of the first is left in it.
    other = ids.session()
    again = json.loads(EnvelopeSplicer(other).splice(1, tail))
    assert (again["session_id"], again["event_seq"], again["payload"]) == (other, 1, payload)
    assert session_id.encode() not in EnvelopeSplicer(other).splice(1, tail)
    # What one splicer has spliced before changes nothing, wherever in its pages the numbers lie.
    for number in (event_seq ^ 1, event_seq ^ 1024, 1, 1023, 1024, 1025, event_seq):
        frame = json.loads(splicer.splice(number, tail))
        assert frame["id"] == numbered_event_id(event_id_stem(session_id), number)
        assert (frame["event_seq"], frame["payload"]) == (number, payload)
    assert splicer.splice(event_seq, tail) == spliced


def test_the_numbered_types() -> None:
    assert {"job.event", "job.result", "job.error"} == NUMBERED_TYPES
