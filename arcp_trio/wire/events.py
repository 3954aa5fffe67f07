"""The bodies of job.event, by kind (section 8.2), and the checks that an emission passes.

A body is built and checked when an agent emits it (P8.1): a bad one raises there, before it has
taken a number. What is received is not checked again: an unknown kind or body is the consumer's
(P5.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import attrs

from .errors import InvalidRequestError, MessageTooLargeError, shown_value
from .jsontext import JSONValue, encode_json

__all__ = [
    "BACK_PRESSURE",
    "CREDENTIAL_ROTATED",
    "ENCODED_KINDS",
    "EVENT_BODIES",
    "ArtifactRef",
    "Delegate",
    "Log",
    "Metric",
    "Progress",
    "ResultChunk",
    "Status",
    "Thought",
    "ToolCall",
    "ToolError",
    "ToolResult",
    "check_metric",
    "check_phase",
    "check_progress",
    "check_vendor_kind",
    "encode_body",
    "is_cost",
]

LOG_LEVELS = ("trace", "debug", "info", "warn", "warning", "error", "critical", "fatal")
BACK_PRESSURE = "back_pressure"
CREDENTIAL_ROTATED = "credential_rotated"
RUNTIME_PHASES = frozenset({BACK_PRESSURE, CREDENTIAL_ROTATED})
RUNTIME_METRIC = "cost.budget.remaining"
# What stands around a body in its frame, generously.
_FRAME_OVERHEAD = 1024


@attrs.frozen(kw_only=True)
class Log:
    """``log``: a line for people."""

    level: str
    message: str
    fields: dict[str, JSONValue] | None = None


@attrs.frozen(kw_only=True)
class Thought:
    """``thought``: what the agent thinks."""

    text: str


@attrs.frozen(kw_only=True)
class ToolCall:
    """``tool_call``: a tool is about to be called."""

    tool: str
    args: JSONValue
    call_id: str


@attrs.frozen(kw_only=True)
class ToolError:
    """The error of a tool_result."""

    code: str
    message: str
    retryable: bool


@attrs.frozen(kw_only=True)
class ToolResult:
    """``tool_result``: what a call returned: a result or an error."""

    call_id: str
    result: JSONValue = None
    error: ToolError | None = None


@attrs.frozen(kw_only=True)
class Status:
    """``status``: a phase that the agent has entered."""

    phase: str
    message: str | None = None


@attrs.frozen(kw_only=True)
class Metric:
    """``metric``: a measured number; labels go out under both names in use (D49)."""

    name: str
    value: int | float
    unit: str | None = None
    dimensions: dict[str, JSONValue] | None = None
    dims: dict[str, JSONValue] | None = None


@attrs.frozen(kw_only=True)
class ArtifactRef:
    """``artifact_ref``: where something that the agent made can be found."""

    uri: str
    content_type: str
    byte_size: int | None = None
    sha256: str | None = None


@attrs.frozen(kw_only=True)
class Delegate:
    """``delegate``: a part of the work goes to another agent (section 10)."""

    agent: str | None = None
    delegate_id: str | None = None
    child_job_id: str | None = None
    input: JSONValue = None
    lease_request: dict[str, JSONValue] | None = None
    lease_constraints: dict[str, JSONValue] | None = None


@attrs.frozen(kw_only=True)
class Progress:
    """``progress``: how far the work is; without a total it has no known end (P8.4)."""

    current: int | float
    total: int | float | None = None
    units: str | None = None
    message: str | None = None


@attrs.frozen(kw_only=True)
class ResultChunk:
    """``result_chunk``: a piece of a streamed result (P8.5)."""

    result_id: str
    chunk_seq: int
    data: str
    encoding: str
    more: bool


EVENT_BODIES: Mapping[str, type[Any]] = {
    "log": Log,
    "thought": Thought,
    "tool_call": ToolCall,
    "tool_result": ToolResult,
    "status": Status,
    "metric": Metric,
    "artifact_ref": ArtifactRef,
    "delegate": Delegate,
    "progress": Progress,
    "result_chunk": ResultChunk,
}
"""The ten kinds of section 8.2."""
ENCODED_KINDS: Mapping[str, bytes] = {kind: encode_json(kind) for kind in EVENT_BODIES}
"""The same as JSON: encoding one anew was a tenth of the cost of an event."""


def _is_finite(value: float | Decimal) -> bool:
    if isinstance(value, Decimal):
        # As a number on the wire it is read as a double.
        return value.is_finite() and math.isfinite(float(value))
    # An int is; and it may be larger than a double.
    return isinstance(value, int) or math.isfinite(value)


def _check_number(value: object, path: str, *, minimum: float | None = None) -> None:
    # bool is an int to Python and nobody else (P5.6).
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not _is_finite(value):
        raise InvalidRequestError(f"$.body.{path}: expected a finite number, got {shown_value(value)}")
    if minimum is not None and value < minimum:
        raise InvalidRequestError(f"$.body.{path}: expected at least {minimum:g}, got {shown_value(value)}")


def check_progress(current: float, total: float | None) -> None:
    """Check the numbers of a progress event (P8.4).

    Raises:
        InvalidRequestError: ``current`` is negative or not finite, or greater than ``total``.
    """
    _check_number(current, "current", minimum=0)
    if total is not None:
        _check_number(total, "total", minimum=0)
        if current > total:
            raise InvalidRequestError(
                f"$.body.current: {shown_value(current)} is greater than total, {shown_value(total)}"
            )


def is_cost(name: str) -> bool:
    """Say whether a metric of that name is a cost: one that tells of a budget is none (section 9.6)."""
    return name.startswith("cost.") and not f"{name}.".startswith("cost.budget.")


def check_metric(name: str, value: float | Decimal) -> None:
    """Check a metric event of an agent.

    Raises:
        InvalidRequestError: The value is not a finite number, a cost is negative (section 9.6), or the
            name is the runtime's own (P8.6).
    """
    if name == RUNTIME_METRIC:
        raise InvalidRequestError(f"$.body.name: {RUNTIME_METRIC} is emitted by the runtime alone")
    _check_number(value, "value", minimum=0 if name.startswith("cost.") else None)


def check_phase(phase: str) -> None:
    """Check a status event of an agent.

    Raises:
        InvalidRequestError: The phase is empty or the runtime's own (P8.6).
    """
    if not phase:
        raise InvalidRequestError("$.body.phase: expected a string that is not empty")
    if phase in RUNTIME_PHASES:
        raise InvalidRequestError(f"$.body.phase: {phase!r} is emitted by the runtime alone")


def check_vendor_kind(kind: str) -> None:
    """Check the kind of an agent's own event: ``x-…`` (P8.1).

    Raises:
        InvalidRequestError: It does not begin with ``x-``.
    """
    if not kind.startswith("x-") or kind == "x-":
        raise InvalidRequestError(f"$.kind: a vendor's kind begins with 'x-', got {kind!r}")


def encode_body(body: Mapping[str, JSONValue], send_bytes: int) -> bytes:
    """Return a body as JSON that fits its frame.

    Args:
        body: A JSON object.
        send_bytes: The largest frame that is sent, in bytes.

    Raises:
        InvalidRequestError: It is not JSON (P8.1).
        MessageTooLargeError: It is too large (P4.4).
    """
    try:
        encoded = encode_json(body, within=2)
    except ValueError as exc:
        raise InvalidRequestError(f"$.body: {exc}") from None
    if len(encoded) + _FRAME_OVERHEAD > send_bytes:
        raise MessageTooLargeError(f"$.body: {len(encoded)} bytes; a frame has at most {send_bytes}")
    return encoded
