"""What a runtime must never tell of a job, whoever listens: judged by the frames alone, of any implementation.

A view is what one follower was told of one job, in the order in which it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["KINDS", "TERMINAL_STATUSES", "final_status", "judge", "told_of"]

Frame = Mapping[str, Any]

DOUBLE = "double terminals"
FLIP = "status flips"
ACK = "acks without CANCELLED"
AFTER = "events after the terminal"
MISSING = "missing terminals"
DISAGREE = "followers that disagree"
UNANSWERED = "answers that never came"
KINDS = (DOUBLE, FLIP, ACK, AFTER, MISSING, DISAGREE, UNANSWERED)
"""What can be wrong. All but the last are :func:`judge`'s; who has asked knows what was not answered."""

TERMINAL_STATUSES = frozenset({"success", "error", "cancelled", "timed_out"})
_TERMINALS = frozenset({"job.result", "job.error"})
# What a session is told alone: that it lags (P6.18), and the value of its job's credential (P9.10).
_OF_ONE_SESSION = frozenset({"back_pressure", "credential_rotated"})


def told_of(frame: Frame, job_id: str) -> bool:
    """Say whether a frame tells something of a job."""
    if frame.get("job_id") == job_id:
        return True
    payload = frame.get("payload") or {}
    if frame["type"] == "session.jobs":
        return any(entry["job_id"] == job_id for entry in payload["jobs"])
    return bool(payload.get("job_id") == job_id)


def final_status(frame: Frame) -> str | None:
    """Return the final status that a terminal event says; ``None`` for every other frame."""
    if frame["type"] not in _TERMINALS:
        return None
    return str(frame["payload"].get("final_status") or ("success" if frame["type"] == "job.result" else "error"))


def _status(frame: Frame, job_id: str) -> str | None:
    """Return the status of a job that a frame of any type says."""
    payload = frame["payload"]
    match frame["type"]:
        case "job.subscribed":
            return payload.get("current_status")
        case "x-arcp-trio.reply":
            return payload.get("job_status")
        case "session.jobs":
            return next(entry["status"] for entry in payload["jobs"] if entry["job_id"] == job_id)
        case _:
            return final_status(frame)


def _happened(view: Sequence[Frame]) -> list[tuple[Any, ...]]:
    """Return what a view says has happened, without what is each follower's own: ids, numbers, what it lags by."""
    happened: list[tuple[Any, ...]] = []
    for frame in view:
        payload = frame["payload"]
        if frame["type"] in _TERMINALS:
            happened.append((frame["type"], final_status(frame), payload.get("code"), payload.get("result")))
        elif frame["type"] == "job.event" and payload.get("body", {}).get("phase") not in _OF_ONE_SESSION:
            happened.append((payload["kind"], payload.get("body")))
    return happened


def _is_stretch(part: Sequence[Any], whole: Sequence[Any]) -> bool:
    """Say whether ``part`` stands in ``whole`` with nothing between: a follower may come late and leave early."""
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def judge(job_id: str, views: Mapping[str, Sequence[Frame]], to_the_end: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with what was told of a job: of which kind it is, and who was told.

    Args:
        job_id: The job.
        views: By the follower's name.
        to_the_end: The followers that must have been told how it ended.
    """
    said: set[str] = set()
    for name, view in views.items():
        ends = [number for number, frame in enumerate(view) if final_status(frame) is not None]
        if len(ends) > 1:
            yield DOUBLE, name
        if not ends and name in to_the_end:
            yield MISSING, name
        if any(frame["type"] == "job.event" for frame in (view[ends[0] :] if ends else ())):
            yield AFTER, name
        for number, frame in enumerate(view):
            if frame["type"] == "job.cancelled":
                behind = [final_status(view[end]) for end in ends if end > number]
                # Who left before the end was not told; nothing contradicts the ack then.
                if behind != ["cancelled"] and (ends or name in to_the_end):
                    yield ACK, name
        has_ended = False
        for frame in view:
            status = _status(frame, job_id)
            if status in TERMINAL_STATUSES:
                has_ended = True
                said.add(status)
            elif status is not None and has_ended:
                yield FLIP, f"{name}: {status} once it had ended"
    if len(said) > 1:
        yield FLIP, " and ".join(sorted(said))
    happened = {name: _happened(view) for name, view in views.items()}
    longest = max(happened.values(), key=len, default=[])
    for name, part in happened.items():
        if not _is_stretch(part, longest):
            yield DISAGREE, name
