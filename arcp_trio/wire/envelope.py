"""The envelope: what stands around every payload, read and written as bytes.

Reading is by hand and not with the converter of :mod:`arcp_trio.wire.codec`: every frame passes
here, and the converter's detailed errors cost more than a whole event (baselines.md, 8).

Writing has two forms. :func:`encode_envelope` writes a whole frame, for requests and replies.
A numbered frame is spliced by :func:`splice_envelope` from what one session adds and a *tail* that
:func:`encode_tail` made once for all that follow the job.
"""

from __future__ import annotations

import json
import re
from typing import Any

import attrs

from .errors import MalformedFrameError
from .jsontext import JSONValue, decode_json, encode_json

__all__ = [
    "JOB_SEQ_EXTENSION",
    "NUMBERED_TYPES",
    "PROTOCOL_VERSION",
    "Envelope",
    "decode_envelope",
    "encode_envelope",
    "encode_tail",
    "speaks_our_version",
    "splice_envelope",
]

PROTOCOL_VERSION = "1.1"
MAX_ID_LENGTH = 256
MAX_INTEGER = 2**63 - 1

NUMBERED_TYPES = frozenset({"job.event", "job.result", "job.error"})
"""The types that carry ``event_seq``, and nothing else does (P5.1)."""

JOB_SEQ_EXTENSION = "x-vendor.arcp-trio.job_seq"
"""Where a job frame carries the job's own number (P7.18)."""

_VERSION = re.compile(r"1(\.\d+)?")
_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}")
_TRACEPARENT = re.compile(r"[0-9a-fA-F]{2}-([0-9a-fA-F]{32})-[0-9a-fA-F]{16}-[0-9a-fA-F]{2}.*")


@attrs.frozen(kw_only=True)
class Envelope:
    """One message as it was received, its payload not yet looked at.

    Unknown fields are dropped (P5.4).
    """

    type: str
    id: str
    payload: dict[str, JSONValue]
    arcp: str = PROTOCOL_VERSION
    session_id: str | None = None
    job_id: str | None = None
    event_seq: int | None = None
    trace_id: str | None = None
    correlation_id: str | None = None
    timestamp: str | None = None
    extensions: dict[str, JSONValue] = attrs.field(factory=dict)

    @property
    def job_seq(self) -> int | None:
        """The job's own number of this frame, where the sender gave one (P7.18)."""
        number = self.extensions.get(JOB_SEQ_EXTENSION)
        return number if type(number) is int else None


def speaks_our_version(arcp: str) -> bool:
    """Say whether a peer's ``arcp`` is a version that we accept: "1" or any "1.n" (P5.2)."""
    return _VERSION.fullmatch(arcp) is not None


def _describe(value: JSONValue) -> str:
    """Name what came instead of what was expected, without repeating its content."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "an empty string" if not value else "a string"
    return "an array" if isinstance(value, list) else "an object"


def _read_trace_id(value: JSONValue) -> str | None:
    """Take the trace id from 32 hex digits or a traceparent; drop all else (P5.8)."""
    if not isinstance(value, str):
        return None
    match = _TRACEPARENT.fullmatch(value)
    trace_id = (match.group(1) if match else value).lower()
    if _TRACE_ID.fullmatch(trace_id) and trace_id.strip("0"):
        return trace_id
    return None


def _check_id(fields: dict[str, JSONValue], name: str, request_id: str | None) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not str or not 0 < len(value) <= MAX_ID_LENGTH:
        raise MalformedFrameError(
            f"$.{name}: expected a string of 1 to {MAX_ID_LENGTH} characters, got {_describe(value)}",
            request_id=request_id,
        )
    return value


_ENVELOPE_KEYS = (
    "arcp",
    "id",
    "type",
    "payload",
    "session_id",
    "job_id",
    "event_seq",
    "trace_id",
    "correlation_id",
    "timestamp",
    "extensions",
)
# A scan of the frame for each of many names would be quadratic: 16 MiB of them took hours.
_FEW_NAMES = 32
# A name without these is spelt in one way, or with a \u escape.
_ESCAPED_CHARACTER = re.compile(r'["\\/\x00-\x1f]')


def _check_duplicates(text: bytes | str, payload: dict[str, JSONValue], request_id: str | None) -> None:
    """Refuse an envelope or payload that names a field twice: which one counts is anybody's guess.

    A scan of the text tells whether it can be so; only then it is parsed again, with pairs kept.
    """
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if (
        len(payload) <= _FEW_NAMES
        and b"\\u" not in raw
        and not any(map(_ESCAPED_CHARACTER.search, payload))
        and all(raw.count(b'"%b"' % name.encode()) <= 1 for name in {*_ENVELOPE_KEYS, *payload})
    ):
        return

    def keep_pairs(pairs: list[tuple[str, JSONValue]]) -> list[tuple[str, JSONValue]]:
        return pairs

    top: list[tuple[str, Any]] = json.loads(raw, object_pairs_hook=keep_pairs)
    for path, pairs, names in (("$", top, _ENVELOPE_KEYS), ("$.payload", dict(top)["payload"], payload)):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen and name in names:
                raise MalformedFrameError(f"{path}.{name}: stands twice", request_id=request_id)
            seen.add(name)


def decode_envelope(text: bytes | str, *, strict: bool = True) -> Envelope:
    """Read one frame.

    Args:
        text: The frame: one JSON object.
        strict: As a runtime reads its clients: the payload is required, and no field may stand
            twice. A client passes ``False`` and takes what the runtimes in use send.

    Raises:
        MalformedFrameError: The frame is not an envelope (P5.5); it says where and what was expected.
    """
    try:
        fields = decode_json(text)
    except ValueError as exc:
        raise MalformedFrameError(f"$: not JSON that this protocol takes: {exc}") from None
    if type(fields) is not dict:
        raise MalformedFrameError(f"$: expected an object, got {_describe(fields)}")
    request_id = fields.get("id")
    if type(request_id) is not str or not 0 < len(request_id) <= MAX_ID_LENGTH:
        raise MalformedFrameError(
            f"$.id: expected a string of 1 to {MAX_ID_LENGTH} characters, got {_describe(request_id)}"
        )
    frame_type = fields.get("type")
    if type(frame_type) is not str or not frame_type:
        raise MalformedFrameError(f"$.type: expected a string, got {_describe(frame_type)}", request_id=request_id)
    arcp = fields.get("arcp")
    if type(arcp) is not str:
        raise MalformedFrameError(f"$.arcp: expected a string, got {_describe(arcp)}", request_id=request_id)
    payload = fields.get("payload")
    if payload is None and not strict:
        payload = {}
    if type(payload) is not dict:
        raise MalformedFrameError(f"$.payload: expected an object, got {_describe(payload)}", request_id=request_id)
    if strict:
        _check_duplicates(text, payload, request_id)
    event_seq = fields.get("event_seq")
    if event_seq is not None and (type(event_seq) is not int or not 0 <= event_seq <= MAX_INTEGER):
        raise MalformedFrameError(
            f"$.event_seq: expected an integer from 0 to 2**63 - 1, got {_describe(event_seq)}",
            request_id=request_id,
        )
    extensions = fields.get("extensions")
    correlation_id = fields.get("correlation_id")
    timestamp = fields.get("timestamp")
    return Envelope(
        type=frame_type,
        id=request_id,
        payload=payload,
        arcp=arcp,
        session_id=_check_id(fields, "session_id", request_id),
        job_id=_check_id(fields, "job_id", request_id),
        event_seq=event_seq,
        trace_id=_read_trace_id(fields.get("trace_id")),
        # Not in the specification, so of any shape: taken where they are what we would send.
        correlation_id=correlation_id if isinstance(correlation_id, str) else None,
        timestamp=timestamp if isinstance(timestamp, str) else None,
        extensions=extensions if isinstance(extensions, dict) else {},
    )


def encode_envelope(
    frame_type: str,
    payload: bytes,
    *,
    message_id: str,
    timestamp: str,
    session_id: str | None = None,
    job_id: str | None = None,
    trace_id: str | None = None,
    correlation_id: str | None = None,
    event_seq: int | None = None,
) -> bytes:
    """Write a whole frame around an encoded payload; absent fields are left out, never null (P5.3a)."""
    head: dict[str, Any] = {"arcp": PROTOCOL_VERSION, "id": message_id, "type": frame_type}
    if session_id is not None:
        head["session_id"] = session_id
    if job_id is not None:
        head["job_id"] = job_id
    if trace_id is not None:
        head["trace_id"] = trace_id
    if correlation_id is not None:
        head["correlation_id"] = correlation_id
    if event_seq is not None:
        head["event_seq"] = event_seq
    head["timestamp"] = timestamp
    return b'%b,"payload":%b}' % (encode_json(head)[:-1], payload)


def encode_tail(
    frame_type: str, payload: bytes, *, job_id: str, trace_id: str, timestamp: str, job_seq: int | None
) -> bytes:
    """Write the part of a numbered frame that is the same for every session that follows the job.

    ``job_seq`` is the job's own number (P7.18); ``None`` for an event that is for one session alone.
    """
    extensions = b"" if job_seq is None else b',"extensions":{"%b":%d}' % (JOB_SEQ_EXTENSION.encode(), job_seq)
    # All of them are our own: they need no escaping.
    return b',"type":"%b","job_id":"%b","trace_id":"%b","timestamp":"%b"%b,"payload":%b}' % (
        frame_type.encode(),
        job_id.encode(),
        trace_id.encode(),
        timestamp.encode(),
        extensions,
        payload,
    )


def splice_envelope(session_id: str, message_id: str, event_seq: int, tail: bytes) -> bytes:
    """Put one session's head before a tail: the whole cost of one more follower.

    ``session_id`` must be one that needs no escaping in JSON, as all that we mint are.
    """
    return b'{"arcp":"1.1","session_id":"%b","id":"%b","event_seq":%d%b' % (
        session_id.encode(),
        message_id.encode(),
        event_seq,
        tail,
    )
