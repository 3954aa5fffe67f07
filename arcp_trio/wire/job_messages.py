"""The payloads of job.* messages (section 7), and our own reply to a late cancel."""

from __future__ import annotations

import attrs

from .jsontext import JSONValue

__all__ = [
    "JobAccepted",
    "JobCancel",
    "JobCancelled",
    "JobError",
    "JobEvent",
    "JobResult",
    "JobSubmit",
    "JobSubscribe",
    "JobSubscribed",
    "JobUnsubscribe",
    "LeaseConstraints",
    "Reply",
]


@attrs.frozen(kw_only=True)
class LeaseConstraints:
    """What bounds a whole lease (section 9.5).

    ``max_budget`` is one peer's own: amounts as in ``cost.budget``, which the budget may not exceed (B13).
    """

    expires_at: str | None = None
    max_budget: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class JobSubmit:
    """Ask for a job (P7.1). ``input`` is any JSON value; absent is null (P7.3)."""

    agent: str
    input: JSONValue = None
    lease_request: dict[str, tuple[str, ...]] | None = None
    lease_constraints: LeaseConstraints | None = None
    idempotency_key: str | None = None
    max_runtime_sec: int | float | None = None


@attrs.frozen(kw_only=True)
class JobAccepted:
    """A job exists; precedes everything else of it (P7.2)."""

    job_id: str
    agent: str | None = None
    lease: dict[str, JSONValue] | None = None
    lease_constraints: LeaseConstraints | None = None
    budget: dict[str, JSONValue] | None = None
    credentials: tuple[dict[str, JSONValue], ...] | None = attrs.field(default=None, repr=False)
    accepted_at: str | None = None
    trace_id: str | None = None
    parent_job_id: str | None = None
    delegate_id: str | None = None
    request_id: str | None = None
    reply_to: str | None = None


@attrs.frozen(kw_only=True)
class JobCancel:
    """Ask for a job's end; the id may stand on the envelope instead (P7.12)."""

    job_id: str | None = None
    reason: str | None = None


@attrs.frozen(kw_only=True)
class JobCancelled:
    """A cancel was taken and decides the job's outcome; its terminal event follows (P7.13)."""

    job_id: str | None = None
    reason: str | None = None
    request_id: str | None = None
    reply_to: str | None = None


@attrs.frozen(kw_only=True)
class JobEvent:
    """One event; the body's shape follows from the kind (P8.1, :mod:`arcp_trio.wire.events`)."""

    kind: str
    body: dict[str, JSONValue]
    ts: str | None = None


@attrs.frozen(kw_only=True)
class JobResult:
    """The terminal event of a job that succeeded (P7.8): inline, or a reference to its chunks."""

    final_status: str = "success"
    job_id: str | None = None
    result: JSONValue = None
    output: JSONValue = None
    result_id: str | None = None
    result_size: int | None = None
    content_type: str | None = None
    truncated: bool | None = None
    summary: str | None = None
    completed_at: str | None = None


@attrs.frozen(kw_only=True)
class JobError:
    """The terminal event of a job that did not succeed (P7.8)."""

    code: str
    message: str = ""
    retryable: bool | None = None
    final_status: str = "error"
    job_id: str | None = None
    request_id: str | None = None
    reply_to: str | None = None
    details: dict[str, JSONValue] | None = None
    completed_at: str | None = None


@attrs.frozen(kw_only=True)
class JobSubscribe:
    """Ask to follow a job (P7.17); the id may stand on the envelope instead."""

    job_id: str | None = None
    history: bool | None = None
    from_event_seq: int | None = None


@attrs.frozen(kw_only=True)
class JobSubscribed:
    """The answer: the job's authority descriptor (P7.17)."""

    job_id: str
    current_status: str
    agent: str | None = None
    lease: dict[str, JSONValue] | None = None
    lease_constraints: LeaseConstraints | None = None
    budget: dict[str, JSONValue] | None = None
    credentials: tuple[dict[str, JSONValue], ...] | None = attrs.field(default=None, repr=False)
    parent_job_id: str | None = None
    trace_id: str | None = None
    subscribed_from: int | None = None
    replayed: bool | None = None
    truncated_before: int | None = None
    request_id: str | None = None
    reply_to: str | None = None


@attrs.frozen(kw_only=True)
class JobUnsubscribe:
    """Stop following a job (P7.20)."""

    job_id: str | None = None


@attrs.frozen(kw_only=True)
class Reply:
    """``x-arcp-trio.reply``: what became of a cancel that changed nothing (P7.14)."""

    request_id: str
    applied: bool
    job_id: str
    job_status: str
    reply_to: str | None = None
