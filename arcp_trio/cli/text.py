"""Text that is safe and short enough to print: what comes over the wire may hold anything."""

from __future__ import annotations

from decimal import Decimal

from ..client.events import Event, Skipped
from ..client.reconnect import ConnectionState
from ..transports.base import CloseCode, TransportClosedError
from ..wire.jsontext import JSONValue, encode_json

__all__ = [
    "age_of",
    "child_name",
    "clean",
    "count_of",
    "describe_connection",
    "describe_event",
    "describe_progress",
    "describe_quantity",
    "short_id",
    "size_of",
]

_SHORT_ID = 8
_BINARY_KIB = 1024
_LONGEST_AMOUNT = 14
_BROKEN = str(TransportClosedError(CloseCode.ABNORMAL))
MAX_LINE = 2_000
"""Characters of one value that are shown; what is longer is cut, with an ellipsis."""


def clean(text: str) -> str:
    """Return ``text`` in one line, without anything that a terminal obeys.

    Control characters, escapes and marks that reorder text are shown as Python would write them: a peer must
    not be able to move the cursor or to forge a line of ours.
    """
    if len(text) > MAX_LINE:
        text = text[: MAX_LINE - 1] + "…"
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _compact(value: JSONValue) -> str:
    if isinstance(value, str):
        return clean(value)
    try:
        return clean(encode_json(value).decode())
    except ValueError:
        return clean(repr(value))


def _number(value: JSONValue | Decimal) -> str:
    if isinstance(value, Decimal):
        # As it was written, 1.50 say, unless nobody would read it to its end.
        written = f"{value:,f}"
        return written if len(written) <= _LONGEST_AMOUNT else f"{value:,.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{int(value):,}" if value.is_integer() and abs(value) < 1e15 else f"{value:,.6g}"  # noqa: PLR2004
    return _compact(value)


def count_of(number: int, noun: str) -> str:
    """Return ``1 event``, ``1,024 events``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size_of(size: int) -> str:
    """Return a number of bytes for people: ``512 B``, ``9.8 MiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < _BINARY_KIB:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= _BINARY_KIB
    return f"{value:,.1f} GiB"


def age_of(seconds: float) -> str:
    """Return a time span for people, in its largest unit: ``59s``, ``12m``, ``3h``, ``5d``."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    # A clock that is behind the runtime's sees jobs of the future.
    return f"{max(0, int(seconds))}s"


def short_id(job_id: str) -> str:
    """Return the end of an id: ids of one moment differ only there."""
    job_id = clean(job_id)
    return job_id if len(job_id) <= _SHORT_ID else f"…{job_id[-_SHORT_ID:]}"


def child_name(agent: str, job_id: str) -> str:
    """Return what stands before the lines of a delegated job: its agent and the end of its id, ``writer …1A2B3C4D``."""
    return f"{clean(agent.partition('@')[0])} {short_id(job_id)}"


def describe_progress(body: dict[str, JSONValue]) -> str:
    """Return ``12/400 files`` for the body of a progress event; without a total ``12 files``."""
    amount = _number(body.get("current", 0))
    if body.get("total") is not None:
        amount = f"{amount}/{_number(body['total'])}"
    units = body.get("units")
    return f"{amount} {_compact(units)}" if units else amount


def describe_quantity(value: JSONValue | Decimal, unit: JSONValue = None) -> str:
    """Return a number with its unit: ``1,024 files``, ``0.25 USD``."""
    return f"{_number(value)} {_compact(unit)}" if unit else _number(value)


def describe_connection(state: ConnectionState) -> str | None:
    """Return what is worth saying about a connection, in one line; ``None`` where nothing is.

    A loss is told with the first attempt to repair it, which follows at once, and what gives the session up
    is told by the error of whatever waits.
    """
    if state.phase == "retrying":
        # The code says no more than that: there was no goodbye.
        reason = state.reason.removeprefix(_BROKEN).removeprefix(": ") or "it broke off"
        return f"lost: {clean(reason)}; retrying in {state.delay_seconds:.1f} s (attempt {state.attempt})"
    if state.phase == "reopened":
        # The client does so where nothing can have been missed: nobody waited for an event.
        return "back, with a new session"
    return "back: nothing was missed" if state.phase == "resumed" else None


def describe_event(event: Event | Skipped) -> tuple[str, str]:
    """Return an event for people: a label of a few characters, and a line.

    Args:
        event: As the client gave it; a body of another shape than its kind has is shown as it is.
    """
    if isinstance(event, Skipped):
        return "skipped", f"{count_of(event.count, 'event')}: they came faster than they could be shown"
    body = event.body
    match event.kind:
        case "log":
            line = _compact(body.get("message", ""))
            fields = body.get("fields")
            return _compact(body.get("level", "log")), f"{line} {_compact(fields)}" if fields else line
        case "thought":
            return "thought", _compact(body.get("text", ""))
        case "status":
            message = body.get("message")
            phase = _compact(body.get("phase", ""))
            return "status", f"{phase}: {_compact(message)}" if message else phase
        case "metric":
            amount = describe_quantity(body.get("value"), body.get("unit"))
            return "metric", f"{_compact(body.get('name', ''))} = {amount}"
        case "progress":
            message = body.get("message")
            amount = describe_progress(body)
            return "progress", f"{amount}: {_compact(message)}" if message else amount
        case "tool_call":
            return "tool call", f"{_compact(body.get('tool', ''))} {_compact(body.get('args'))}"
        case "tool_result":
            error = body.get("error")
            return "tool result", f"failed: {_compact(error)}" if error else _compact(body.get("result"))
        case "delegate":
            child = body.get("child_job_id")
            name = _compact(body.get("agent", ""))
            child_id = f" as {short_id(child)}" if isinstance(child, str) else ""
            value = "" if body.get("input") is None else f" {_compact(body['input'])}"
            return "delegate", f"{name}{child_id}{value}"
        case "artifact_ref":
            details = [_compact(body.get("content_type", ""))]
            if isinstance(body.get("byte_size"), int):
                details.append(size_of(body["byte_size"]))
            return "artifact", f"{_compact(body.get('uri', ''))} ({', '.join(details)})"
    return clean(event.kind)[:24], _compact(body)
