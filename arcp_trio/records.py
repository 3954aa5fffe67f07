"""What is kept of what has ended: frozen values, bounded in number, age and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING

import attrs

from .authority.lease import Lease

if TYPE_CHECKING:
    from .jobs.feed import JobFeed

__all__ = ["JobRecord", "LedgerEntry", "LedgerState"]


class LedgerState(Enum):
    """What became of a credential."""

    INTENDED = "intended"
    """It was to be issued: whether it was is not known."""
    ISSUED = "issued"
    REVOKED = "revoked"
    FAILED = "failed"
    """It could not be revoked: an operator has to look at it."""


@attrs.frozen(kw_only=True)
class LedgerEntry:
    """A credential that must be revoked, or has been (P9.10). It holds no secret.

    Attributes:
        entry_id: Ours; an intent has the id of the batch.
        job_id: The one job that it is for.
        principal: Whose job that is.
        state: What became of it.
        handle: What the provisioner needs to revoke it: its reference, never the value; ``None`` for an intent.
        attempts: How often revoking it has failed.
        problem: The last failure, without secrets.
        noted_at_ms: When this was noted: milliseconds since 1970.
    """

    entry_id: str
    job_id: str
    principal: str
    state: LedgerState
    handle: str | None
    attempts: int = 0
    problem: str = ""
    noted_at_ms: int


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
        parent_job_id: The job that has delegated it, or ``None``.
        lease: What it might do.
        budget: What was left of its own budget, by currency.
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
    parent_job_id: str | None
    lease: Lease
    budget: Mapping[str, Decimal]
    feed: JobFeed
    ended_at: float
    size: int
