"""W3C trace context: the operation that a message belongs to, in the trace of whoever asked for it (section 11).

The trace id stands on the envelope, where every peer reads it; the rest, which operation of the trace and what its
vendors say, travels in an extension (P5.8). Whatever of it is malformed is dropped: who is watched badly works as well.
"""

from __future__ import annotations

import re

import attrs

from .jsontext import JSONValue

__all__ = ["SAMPLED", "TRACECONTEXT_EXTENSION", "TraceContext", "read_trace_id"]

TRACECONTEXT_EXTENSION = "x-vendor.opentelemetry.tracecontext"
"""Where an envelope carries an object of ``traceparent`` and ``tracestate``."""

SAMPLED = 1
"""The flag that says that the operation is recorded."""

# The flags of version 00: sampled, and that the trace id is random. Of others nobody knows what they promise.
_KNOWN_FLAGS = 3
# Longer ones of a future version may be dropped; those of version 00 have 55.
_MAX_TRACEPARENT = 512
# What everybody should pass on at least (W3C Trace Context, 3.3.1.5).
_MAX_TRACESTATE = 512
_MAX_MEMBERS = 32

_TRACE_ID = re.compile("[0-9a-f]{32}")
_TRACEPARENT = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER = re.compile(
    r"([a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


def read_trace_id(value: JSONValue) -> str | None:
    """Take the trace id from 32 hex digits or a traceparent, in letters of any case; drop all else (P5.8)."""
    if not isinstance(value, str) or len(value) > _MAX_TRACEPARENT:
        return None
    text = value.lower()
    match = _TRACEPARENT.fullmatch(text)
    trace_id = match[2] if match else text
    return trace_id if _TRACE_ID.fullmatch(trace_id) and trace_id.strip("0") else None


def _read_tracestate(value: JSONValue) -> str:
    """Return a tracestate as it goes on; empty where it is malformed or too long."""
    if not isinstance(value, str) or len(value) > _MAX_TRACESTATE:
        return ""
    members = [member for part in value.split(",") if (member := part.strip(" \t"))]
    keys = {match[1] for member in members if (match := _MEMBER.fullmatch(member))}
    # One that is malformed spoils the whole, and so does a key that stands twice.
    return ",".join(members) if len(members) == len(keys) <= _MAX_MEMBERS else ""


@attrs.frozen(kw_only=True)
class TraceContext:
    """An operation in a trace: what others name as the parent of theirs.

    Attributes:
        trace_id: The trace: 32 lower-case hex digits, not all 0.
        span_id: The operation: 16 of them, not all 0.
        flags: Those of version 00: :data:`SAMPLED` and 2, that the trace id is random.
        tracestate: What vendors keep in it, as the header is written; nothing of ours.
        is_remote: Whether the operation is another process's.
    """

    trace_id: str
    span_id: str
    flags: int = SAMPLED
    tracestate: str = attrs.field(default="", repr=False)
    is_remote: bool = attrs.field(default=True, eq=False)

    @classmethod
    def parse(cls, traceparent: JSONValue, tracestate: JSONValue = None) -> TraceContext | None:
        """Read the two headers; ``None`` where ``traceparent`` is none. A bad ``tracestate`` is left out.

        Args:
            traceparent: In lower case, as the standard wants it; of a version after 00 what 00 knows is taken.
            tracestate: At most 512 characters and 32 members.
        """
        if not isinstance(traceparent, str) or len(traceparent) > _MAX_TRACEPARENT:
            return None
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
            return None
        return cls(
            trace_id=trace_id,
            span_id=span_id,
            flags=int(flags, 16) & _KNOWN_FLAGS,
            tracestate=_read_tracestate(tracestate),
        )

    @classmethod
    def read(cls, carrier: JSONValue) -> TraceContext | None:
        """Read an envelope's extension; ``None`` where it names no operation."""
        if not isinstance(carrier, dict):
            return None
        return cls.parse(carrier.get("traceparent"), carrier.get("tracestate"))

    @property
    def traceparent(self) -> str:
        """The header that names the operation."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def headers(self) -> dict[str, str]:
        """Return the headers of a request that belongs to the operation; also what an extension carries."""
        if self.tracestate:
            return {"traceparent": self.traceparent, "tracestate": self.tracestate}
        return {"traceparent": self.traceparent}
