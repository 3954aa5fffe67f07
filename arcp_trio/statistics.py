"""What a runtime says of itself, as a snapshot."""

from __future__ import annotations

import attrs

__all__ = ["RuntimeStatistics"]


@attrs.frozen(kw_only=True)
class RuntimeStatistics:
    """A snapshot of a runtime.

    Attributes:
        jobs_running: Jobs that have not ended.
        jobs_retained: Records of jobs that have ended.
        submits_waiting: Submits that wait to be accepted, for their credentials or behind one that does.
        jobs_accepted: Jobs accepted so far.
        terminals_published: Terminal events published so far: for each job exactly one.
        tear_downs: Tear-downs so far: for each job exactly one.
        cancels_acknowledged: Cancels that decided a job's outcome.
        cancels_refused: Cancels that changed nothing.
        events_encoded: Event payloads encoded: one for each event, however many follow it.
        bugs: Messages that cannot come in their phase, and actors that failed. Always zero.
        credentials_live: Provisioned credentials of jobs that have not ended.
        credentials_issued: Those issued so far, rotations included.
        credentials_revoked: Revocations so far that the upstream has confirmed.
        credentials_unrevoked: What is to be revoked and is not yet: :meth:`Runtime.unrevoked_credentials` says which.
        credentials_failed: Of those the ones that were given up.
        sessions: Sessions that have a connection.
        sessions_waiting: Sessions that have lost theirs and wait for their clients.
        connections: Connections that are open.
        timers: Deadlines that stand.
        disowned_agents: The agents that did not stop within their grace and still run.
    """

    jobs_running: int
    jobs_retained: int
    submits_waiting: int
    jobs_accepted: int
    terminals_published: int
    tear_downs: int
    cancels_acknowledged: int
    cancels_refused: int
    events_encoded: int
    bugs: int
    credentials_live: int
    credentials_issued: int
    credentials_revoked: int
    credentials_unrevoked: int
    credentials_failed: int
    sessions: int
    sessions_waiting: int
    connections: int
    timers: int
    disowned_agents: tuple[str, ...]
