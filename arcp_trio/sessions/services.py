"""What the runtime gives to every connection and session."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from ..jobs.actor import JobActor
from ..jobs.admission import Admissions
from ..jobs.agents import Agents
from ..jobs.directory import JobDirectory
from ..jobs.provisioning import Provisioning
from ..jobs.spec import JobCounters, JobSpec
from ..limits import Limits
from ..timers import Timers
from ..wire.ids import IdFactory
from ..wire.session_messages import Peer
from ..wire.timestamps import WallClock
from .directory import SessionDirectory
from .listing import JobListing
from .observation import ObservationPolicy
from .session import SessionParts

__all__ = ["SessionServices"]


@attrs.frozen(kw_only=True)
class SessionServices:
    """The parts of a runtime that its sessions use.

    Attributes:
        listing: Answers session.list_jobs.
        features: What this runtime implements (P6.5).
        open_models: Whether a lease that does not name ``model.use`` allows every model (P9.8).
        observation: Who may observe whose jobs (P7.19).
        session_parts: What its sessions share.
        runtime: How it names itself.
        admissions: The submits that wait.
        provisioning: Issues credentials; ``None`` where none are.
        start_job: Makes a job of a validated submit and starts its actor; returns before the actor's
            first step. Raises InternalError while the runtime closes.
        is_closing: Whether the runtime shuts down.
    """

    limits: Limits
    ids: IdFactory
    clock: WallClock
    agents: Agents
    jobs: JobDirectory
    sessions: SessionDirectory
    listing: JobListing
    counters: JobCounters
    timers: Timers
    open_models: bool
    observation: ObservationPolicy
    session_parts: SessionParts
    features: frozenset[str]
    runtime: Peer
    admissions: Admissions
    provisioning: Provisioning | None
    start_job: Callable[[JobSpec, Callable[[JobActor], None]], JobActor]
    is_closing: Callable[[], bool]
