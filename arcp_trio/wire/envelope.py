"""The envelope: what stands around every payload, read and written as bytes.

Reading is by hand and not with the converter of :mod:`arcp_trio.wire.codec`: every frame passes
here, and the converter's detailed errors cost more than a whole event (baselines.md, 8).

Writing has two forms. :func:`encode_envelope` writes a whole frame, for requests and replies.
A numbered frame is spliced by an :class:`EnvelopeSplicer` from what one session adds and a *tail* that
:func:`encode_tail` made once for all that follow the job.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import attrs

from .errors import MalformedFrameError
from .ids import EVENT_ID_ENDS, EVENT_ID_PAGE_BITS, event_id_stem, numbered_event_id
from .jsontext import JSONValue, decode_json, encode_json, is_as_encoded
from .tracecontext import TRACECONTEXT_EXTENSION, TraceContext, read_trace_id

__all__ = [
    "JOB_SEQ_EXTENSION",
    "NUMBERED_TYPES",
    "PROTOCOL_VERSION",
    "Envelope",
    "EnvelopeSplicer",
    "EventTails",
    "decode_envelope",
    "encode_envelope",
    "encode_tail",
    "speaks_our_version",
]

PROTOCOL_VERSION = "1.1"
MAX_ID_LENGTH = 256
_PLACE = (1 << EVENT_ID_PAGE_BITS) - 1
MAX_INTEGER = 2**63 - 1

NUMBERED_TYPES = frozenset({"job.event", "job.result", "job.error"})
"""The types that carry ``event_seq``, and nothing else does (P5.1)."""

JOB_SEQ_EXTENSION = "x-vendor.arcp-trio.job_seq"
"""Where a job frame carries the job's own number (P7.18)."""
_JOB_SEQ_BYTES = JOB_SEQ_EXTENSION.encode()

_VERSION = re.compile(r"1(\.\d+)?")


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

    @property
    def trace_context(self) -> TraceContext | None:
        """The operation that sent it, where it names one (P5.8); never of another trace than ``trace_id``."""
        named = TraceContext.read(self.extensions.get(TRACECONTEXT_EXTENSION))
        return named if named is not None and self.trace_id in (None, named.trace_id) else None


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


def _read_trace(value: JSONValue, extensions: JSONValue) -> tuple[str | None, dict[str, JSONValue]]:
    """Return the trace id and the extensions, where a traceparent moves that stands in the former's place (P5.8)."""
    found = extensions if isinstance(extensions, dict) else {}
    trace_id = read_trace_id(value)
    if trace_id is not None and isinstance(value, str) and len(value) > len(trace_id):
        named = TraceContext.read(found.get(TRACECONTEXT_EXTENSION))
        if named is None or named.trace_id != trace_id:
            found = {**found, TRACECONTEXT_EXTENSION: {"traceparent": value.lower()}}
    return trace_id, found


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
_QUOTED_KEYS = {name: b'"%b"' % name.encode() for name in _ENVELOPE_KEYS}
# A scan of the frame for each of many names would be quadratic: 16 MiB of them took hours.
_FEW_NAMES = 32
# A name without these is spelt in one way, or with a \u escape.
_ESCAPED_CHARACTER = re.compile(r'["\\/\x00-\x1f]')


def _stands_once(raw: bytes, fields: dict[str, JSONValue], payload: dict[str, JSONValue]) -> bool:
    """Say whether no name of a field stands twice in quotes, whatever it stands for."""
    count = raw.count
    for name in fields:
        quoted = _QUOTED_KEYS.get(name)
        if quoted is not None and count(quoted) > 1:
            return False
    return all(count(b'"%b"' % name.encode()) <= 1 for name in payload)


def _check_duplicates(
    text: bytes | str, fields: dict[str, JSONValue], payload: dict[str, JSONValue], request_id: str | None
) -> None:
    """Refuse an envelope or payload that names a field twice: which one counts is anybody's guess.

    Writing it anew, or else a scan of the text, tells whether it can be so; only then it is parsed again, with pairs
    kept.
    """
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if is_as_encoded(raw, fields) or (
        len(payload) <= _FEW_NAMES
        and b"\\u" not in raw
        and not any(map(_ESCAPED_CHARACTER.search, payload))
        and _stands_once(raw, fields, payload)
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
        _check_duplicates(text, fields, payload, request_id)
    event_seq = fields.get("event_seq")
    if event_seq is not None and (type(event_seq) is not int or not 0 <= event_seq <= MAX_INTEGER):
        raise MalformedFrameError(
            f"$.event_seq: expected an integer from 0 to 2**63 - 1, got {_describe(event_seq)}",
            request_id=request_id,
        )
    correlation_id = fields.get("correlation_id")
    trace_id, extensions = _read_trace(fields.get("trace_id"), fields.get("extensions"))
    timestamp = fields.get("timestamp")
    return Envelope(
        type=frame_type,
        id=request_id,
        payload=payload,
        arcp=arcp,
        session_id=_check_id(fields, "session_id", request_id),
        job_id=_check_id(fields, "job_id", request_id),
        event_seq=event_seq,
        trace_id=trace_id,
        # Not in the specification, so of any shape: taken where they are what we would send.
        correlation_id=correlation_id if isinstance(correlation_id, str) else None,
        timestamp=timestamp if isinstance(timestamp, str) else None,
        extensions=extensions,
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
    extensions: Mapping[str, JSONValue] | None = None,
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
    if extensions:
        head["extensions"] = extensions
    return b'%b,"payload":%b}' % (encode_json(head)[:-1], payload)


def encode_tail(
    frame_type: str, payload: bytes, *, job_id: str, trace_id: str, timestamp: str, job_seq: int | None
) -> bytes:
    """Write the part of a numbered frame that is the same for every session that follows the job.

    ``job_seq`` is the job's own number (P7.18); ``None`` for an event that is for one session alone.
    """
    extensions = b"" if job_seq is None else b',"extensions":{"%b":%d}' % (_JOB_SEQ_BYTES, job_seq)
    # All of them are our own: they need no escaping.
    return b',"type":"%b","job_id":"%b","trace_id":"%b","timestamp":"%b"%b,"payload":%b}' % (
        frame_type.encode(),
        job_id.encode(),
        trace_id.encode(),
        timestamp.encode(),
        extensions,
        payload,
    )


class EventTails:
    """Writes the tails of one job's events, as :func:`encode_tail` does; what they share is written once.

    Args:
        job_id: The job.
        trace_id: Its trace.
    """

    __slots__ = ("_before",)

    def __init__(self, job_id: str, trace_id: str) -> None:
        whole = encode_tail("job.event", b"", job_id=job_id, trace_id=trace_id, timestamp="", job_seq=None)
        self._before = whole[: whole.index(b'"timestamp":"') + len(b'"timestamp":"')]

    def encode(self, payload: bytes, *, timestamp: str, job_seq: int) -> bytes:
        """Return the tail of one event."""
        return b'%b%b","extensions":{"%b":%d},"payload":%b}' % (
            self._before,
            timestamp.encode(),
            _JOB_SEQ_BYTES,
            job_seq,
            payload,
        )


class EnvelopeSplicer:
    """Puts one session's head before tails: the whole cost of one more follower.

    Args:
        session_id: One that needs no escaping in JSON, as all that we mint are.
    """

    __slots__ = ("_before", "_page", "_session_id", "_stem")

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._stem = event_id_stem(session_id)
        self._page = -1
        self._before = b""

    def splice(self, event_seq: int, tail: bytes) -> bytes:
        """Return the frame ``event_seq`` of the session."""
        page = event_seq >> EVENT_ID_PAGE_BITS
        if page != self._page:
            # So many numbers in a row share all but the end of their ids.
            self._page = page
            beginning = numbered_event_id(self._stem, event_seq)[: -len(EVENT_ID_ENDS[0])]
            self._before = b'{"arcp":"1.1","session_id":"%b","id":"%b' % (
                self._session_id.encode(),
                beginning.encode(),
            )
        return b'%b%b","event_seq":%d%b' % (self._before, EVENT_ID_ENDS[event_seq & _PLACE], event_seq, tail)
