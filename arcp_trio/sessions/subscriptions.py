"""job.subscribe and job.unsubscribe: a session follows a job that it did not submit (P7.17 to P7.20).

The answer, the history and the first live event are joined in one synchronous step: nothing can come between
them, so nothing is missing and nothing comes twice.
"""

from __future__ import annotations

from collections.abc import Callable

from ..authority.budget import to_numbers
from ..jobs.actor import JobActor
from ..records import JobRecord
from ..wire.errors import InternalError, InvalidRequestError
from ..wire.job_messages import JobSubscribe, JobSubscribed, LeaseConstraints
from .session import Session

__all__ = ["subscribe", "unsubscribe"]


def subscribe(
    session: Session,
    job: JobActor | JobRecord,
    request: JobSubscribe,
    answer: Callable[[JobSubscribed], None],
    *,
    limit: int,
) -> None:
    """Let a session follow a job from now on, behind its history if that was asked for.

    Args:
        session: Who subscribes.
        job: The job; that the session may observe it is the caller's to check.
        request: What was asked for; ``from_event_seq`` counts the job's own events (P7.18).
        answer: Sends job.subscribed, in its place in the stream, before anything else of the job. With a history
            it may be called later: when what is unsent leaves room for it.
        limit: How many jobs a session may follow.

    Raises:
        InvalidRequestError: ``from_event_seq`` is negative.
        InternalError: The session follows too many jobs, or too many subscriptions wait; retryable.
    """
    after = request.from_event_seq or 0
    if after < 0:
        raise InvalidRequestError("$.payload.from_event_seq: expected an integer from 0, got a negative one")
    follows = session.followed + session.waiting
    if isinstance(job, JobActor) and not session.follows(job) and follows >= limit:
        raise InternalError(
            f"this session follows {follows} jobs, the limit subscriptions",
            details={"limit": "subscriptions", "value": limit},
        )
    session.drop_joining(job.feed)
    if request.history and len(job.feed.history):
        session.when_room(job.feed, lambda joins: _join(session, job, after, answer, joins=joins))
    else:
        _join(session, job, after if request.history else None, answer)


def _join(
    session: Session,
    job: JobActor | JobRecord,
    after: int | None,
    answer: Callable[[JobSubscribed], None],
    *,
    joins: bool = True,
) -> None:
    """Answer, replay what came after ``after`` (``None``: nothing) and follow. No checkpoint inside.

    One that was left while it waited, ``joins`` is false, is answered and gets nothing (P7.20).
    """
    feed = job.feed
    # Twice is one subscription: what it gets already is not sent again (P7.20).
    follows = isinstance(job, JobActor) and session.follows(job)
    replays = joins and after is not None and not follows
    entries = feed.history.after(after or 0) if replays else []
    first = feed.history.first_seq
    answer(
        JobSubscribed(
            job_id=feed.job_id,
            current_status=job.status,
            agent=job.agent.resolved if isinstance(job, JobActor) else job.agent,
            lease={name: list(patterns) for name, patterns in job.lease.grants.items()},
            lease_constraints=LeaseConstraints(expires_at=job.lease.expires_at) if job.lease.expires_at else None,
            budget=to_numbers(job.budget) if session.shape.takes_budgets else None,
            parent_job_id=job.parent_job_id,
            trace_id=feed.trace_id,
            subscribed_from=feed.job_seq,
            replayed=replays,
            truncated_before=first if replays and (after or 0) + 1 < first else None,
        )
    )
    if not joins:
        return
    for entry in entries:
        session.append(entry, feed)
    if feed.terminal is not None:
        session.append(feed.terminal, feed)
        # The record's size knows nothing of them.
        feed.terminal.forget_tails()
    elif isinstance(job, JobActor):
        session.follow(job)


def unsubscribe(session: Session, job: JobActor | JobRecord | None) -> None:
    """Follow a job no more. Harmless where it does not; the jobs that a session submitted stay its own (P7.20)."""
    if job is not None and session.session_id not in job.owners:
        session.unfollow(job.feed)
