"""What the tests of a job's end share."""

from __future__ import annotations

from typing import Any

from helpers import Frame, RawClient, terminals

from arcp_trio.jobs.lifecycle import (
    Cancel,
    DeadlinePassed,
    FinalStatus,
    LeaseExpired,
    Outcome,
    ParentStopping,
    RuntimeClosing,
)


async def last_of(client: RawClient, job_id: str) -> Frame:
    """Read to the job's terminal event, let all come to rest, and show that it is the last word."""
    frame = await client.receive_until(lambda frame: frame["type"] in ("job.result", "job.error"))
    assert frame["job_id"] == job_id
    await client.settle()
    assert terminals(client.received, job_id) == [frame]
    after = client.received[client.received.index(frame) + 1 :]
    assert [late for late in after if late["type"] == "job.event"] == []
    return frame


def causes_of_an_end(until: float) -> dict[str, Any]:
    """Return what stops a job, each with an outcome of its own, as its sender posts it."""
    kinds = {
        "cancel": (Cancel, FinalStatus.CANCELLED),
        "deadline": (DeadlinePassed, FinalStatus.TIMED_OUT),
        "lease": (LeaseExpired, FinalStatus.ERROR),
        "parent": (ParentStopping, FinalStatus.CANCELLED),
        "closing": (RuntimeClosing, FinalStatus.ERROR),
    }
    return {
        name: kind(until, Outcome(final_status=status, code="INTERNAL_ERROR", message=name))
        for name, (kind, status) in kinds.items()
    }
