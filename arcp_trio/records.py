"""What is kept of what has ended: frozen values, bounded in number, age and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from .jobs.feed import JobFeed

__all__ = ["JobRecord"]


@attrs.frozen(kw_only=True, eq=False, weakref_slot=False)
class JobRecord:
    """A job that has ended.

    Attributes:
        job_id: The job.
        agent: The resolved agent, ``name@version``.
        principal: Who submitted it.
        owners: The ids of the sessions that may cancel it (P7.12).
        status: One of the four terminal states, as the wire names it.
        created_at: When it was accepted, as the wire writes it.
        completed_at: When it ended, likewise.
        lease: What it may do.
        expires_at: When that ends, or ``None``.
        feed: Its terminal event, and of its events what is still kept for who comes later.
        ended_at: When it ended, on the runtime's monotonic clock.
        size: About how many bytes this record keeps, its history aside, which has bounds of its own.
    """

    job_id: str
    agent: str
    principal: str
    owners: frozenset[str]
    status: str
    created_at: str
    completed_at: str
    lease: Mapping[str, tuple[str, ...]]
    expires_at: str | None
    feed: JobFeed
    ended_at: float
    size: int
