"""job.accepted: what a session is told of a job of its own, submitted or delegated (P7.2, P10.1)."""

from __future__ import annotations

from ..authority.budget import to_numbers
from ..jobs.actor import JobActor
from ..jobs.feed import Shape
from ..wire.job_messages import JobAccepted, LeaseConstraints

__all__ = ["describe_accepted"]


def describe_accepted(actor: JobActor, shape: Shape, *, request_id: str | None = None) -> JobAccepted:
    """Return the acceptance of a job.

    Args:
        actor: The job.
        shape: What the session's peer takes.
        request_id: The submit that it answers; ``None`` for a job that was delegated.
    """
    lease, grants = actor.lease, actor.lease.grants.items()
    return JobAccepted(
        job_id=actor.job_id,
        agent=actor.agent.resolved,
        lease={name: list(patterns) for name, patterns in grants} if shape.dialect.lease_in_accepted else None,
        lease_constraints=LeaseConstraints(expires_at=lease.expires_at) if lease.expires_at else None,
        # What it began with, whenever this is sent (I03).
        budget=to_numbers(actor.authority.budget.limits) if shape.takes_budgets else None,
        accepted_at=actor.created_at,
        trace_id=actor.feed.trace_id,
        parent_job_id=actor.parent_job_id,
        delegate_id=actor.delegate_id or None,
        request_id=request_id,
        reply_to=request_id,
    )
