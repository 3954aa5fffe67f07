"""Holds the frames that tests exchange against the schema, and a runtime's against what it promises besides.

``helpers.exchanged`` collects what every RawClient sent and received. :func:`check_exchanged` says what is wrong with
the runtime's frames in it; conftest.py calls it when the session finishes, so that no test can receive a frame that
the schema forbids. Frames of clients are not looked at: many tests send what is wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from functools import cache
from typing import Any

import helpers
import orjson
from jsonschema import Draft202012Validator

from arcp_trio.wire.errors import CORE_CODES
from arcp_trio.wire.schema import message_schema

__all__ = ["check_exchanged", "problems_of_runtime_frame", "problems_of_schema", "validator"]

Frame = dict[str, Any]

OUR_ID = re.compile(r"(msg|sess|job|res|cred|del|call)_[0-7][0-9A-HJKMNP-TV-Z]{25}")
"""What we mint (P5.3)."""

# Enough of one shape: the hundred-thousandth line of a flood says nothing new.
_OF_ONE_SHAPE = 500


@cache
def validator() -> Draft202012Validator:
    """Return a validator of the whole schema."""
    schema = message_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@cache
def _validator_of(frame_type: str) -> Draft202012Validator:
    """Return one with the rules of one type alone: it says the same, three times as fast."""
    schema = dict(message_schema())
    schema["allOf"] = [
        rule for rule in schema["allOf"] if rule["if"]["properties"]["type"].get("const") in (None, frame_type)
    ]
    return Draft202012Validator(schema)


def problems_of_schema(frame: Any) -> list[str]:
    """Say what the schema finds wrong in a frame of any peer."""
    frame_type = frame.get("type") if isinstance(frame, dict) else None
    chosen = _validator_of(frame_type) if isinstance(frame_type, str) else validator()
    return [f"{error.json_path}: {error.message}" for error in chosen.iter_errors(frame)]


def problems_of_runtime_frame(frame: Frame) -> list[str]:
    """Say what is wrong with a frame of our runtime: the schema's rules, and those of P5.3, P5.3a and P12.1."""
    # The one departure from P5.1 (X4): a client that knows no session.error gets a job.error with its request's own id.
    echo = frame.get("type") == "job.error" and frame.get("id") == frame.get("correlation_id")
    problems = problems_of_schema({**frame, "event_seq": 1} if echo and "event_seq" not in frame else frame)
    if problems:
        return problems
    payload: Frame = frame["payload"]
    frame_type: str = frame["type"]
    if not echo and not OUR_ID.fullmatch(frame["id"]):
        problems.append(f"$.id: {frame['id']!r} is not of the form that we mint")
    problems += [f"$.{name}: missing" for name in ("session_id", "timestamp") if name not in frame]
    if frame_type.startswith("job.") and not echo and "job_id" not in frame:
        problems.append("$.job_id: missing on a job's frame")
    if "request_id" in payload:
        request_id = payload["request_id"]
        if frame_type != "x-arcp-trio.reply" and payload.get("reply_to") != request_id:
            problems.append("$.payload.reply_to: differs from request_id")
        if "event_seq" not in frame and frame.get("correlation_id") != request_id:
            problems.append("$.correlation_id: differs from request_id")
    if frame_type in ("session.error", "job.error"):
        problems += _problems_of_error(frame_type, payload)
    problems += [f"{path}: an explicit null" for path in _nulls(frame_type, payload)]
    return problems


def _problems_of_error(frame_type: str, payload: Frame) -> list[str]:
    problems = []
    code, retryable = payload["code"], payload.get("retryable")
    if frame_type == "session.error" and code not in CORE_CODES:
        problems.append(f"$.payload.code: {code!r} is none of the fifteen")
    if not payload.get("message"):
        problems.append("$.payload.message: missing or empty")
    if not isinstance(retryable, bool):
        problems.append("$.payload.retryable: missing")
    if (code in ("LEASE_EXPIRED", "BUDGET_EXHAUSTED") and retryable) or (code == "INTERNAL_ERROR" and not retryable):
        problems.append(f"$.payload.retryable: {retryable} with {code}")
    return problems


def _nulls(frame_type: str, payload: Frame) -> Iterable[str]:
    """Find nulls among the payload's own fields: the schema cannot where any JSON value may stand (P5.3a)."""
    kept = {"session.jobs": {"next_cursor"}, "job.subscribed": {"parent_job_id"}}.get(frame_type, set())
    return [f"$.payload.{name}" for name, value in payload.items() if value is None and name not in kept]


def _shape(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((name, _shape(item)) for name, item in value.items())
    if isinstance(value, list):
        return frozenset(map(_shape, value))
    return type(value)


def check_exchanged(exchanged: Iterable[tuple[str, bytes | str]] | None = None) -> list[str]:
    """Say what is wrong with the frames that a runtime sent; nothing, it is to be hoped.

    Args:
        exchanged: Direction and text of each frame; ``None`` for all that this session's tests exchanged.
    """
    problems = []
    seen: Counter[Hashable] = Counter()
    for direction, text in helpers.exchanged if exchanged is None else exchanged:
        if direction != "S>C":
            continue
        frame = orjson.loads(text)
        shape = (frame.get("type"), _shape(frame)) if isinstance(frame, dict) else None
        seen[shape] += 1
        if seen[shape] <= _OF_ONE_SHAPE:
            found = problems_of_runtime_frame(frame) if isinstance(frame, dict) else ["$: no object"]
            if found:
                problems.append(f"{'; '.join(found)} in {str(text)[:500]}")
    return problems
