"""What a job is made from, and what the runtime gives to each."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from ..authority.budget import Budget
from ..authority.lease import Lease
from ..authority.translation import Translator
from ..limits import Limits
from ..timers import Timers
from ..wire.errors import InvalidRequestError
from ..wire.ids import IdFactory
from ..wire.jsontext import encode_json
from ..wire.timestamps import WallClock
from ..wire.tracecontext import TraceContext
from .agents import Agent, Agents
from .directory import JobDirectory
from .pacer import Pacer

if TYPE_CHECKING:
    from ..spans import Spans
    from .actor import JobActor
    from .credentials import JobCredentials
    from .provisioning import Provisioning

__all__ = ["JobCounters", "JobServices", "JobSpec", "check_lease_size", "check_max_runtime"]


@attrs.define
class JobCounters:
    """What has happened to the jobs of a runtime, counted.

    Attributes:
        accepted: Jobs that were accepted.
        published: Terminal events: never more than ``accepted``.
        torn_down: Tear-downs: never more than ``accepted``.
        cancels_acknowledged: Cancels that decided an outcome.
        cancels_refused: Cancels that changed nothing.
        bugs: Messages that cannot come in their phase, and actors that failed: always zero.
        encodings: Payloads of events that were encoded: one for each event, however many follow it.
    """

    accepted: int = 0
    published: int = 0
    torn_down: int = 0
    cancels_acknowledged: int = 0
    cancels_refused: int = 0
    bugs: int = 0
    encodings: int = 0


@attrs.frozen(kw_only=True)
class JobServices:
    """What the runtime gives to every job.

    Attributes:
        spans: Starts the jobs' spans; ``None`` where there is no OpenTelemetry.
        spawn: Starts a task in the actors' nursery, from the runtime's own context.
        spawn_agent: Starts a task in the agents' nursery, likewise.
        start_job: Makes a job and its actor; its second argument is called with it before anything else can happen to
            it. Raises InternalError while the runtime closes. No checkpoint.
        interrupted: Is told of a KeyboardInterrupt in an agent.
        open_models: Whether a lease that does not name ``model.use`` allows every model (P9.8).
        provisioning: Issues, rotates and revokes credentials; ``None`` where there are none.
        translators: Say what the errors of agents' libraries are in terms of the protocol (P9.9).
        disowned: Is told of an agent that did not stop within its grace, and again when it has ended.
    """

    limits: Limits
    ids: IdFactory
    clock: WallClock
    timers: Timers
    pacer: Pacer
    agents: Agents
    directory: JobDirectory
    counters: JobCounters
    spans: Spans | None
    spawn: Callable[[Callable[[], Awaitable[None]], str], None]
    spawn_agent: Callable[[Callable[[], Awaitable[None]], str], None]
    start_job: Callable[[JobSpec, Callable[[JobActor], None]], JobActor]
    interrupted: Callable[[BaseException], None]
    disowned: Callable[[JobActor, bool], None]
    open_models: bool
    provisioning: Provisioning | None
    translators: Sequence[Translator]


@attrs.frozen(kw_only=True)
class JobSpec:
    """What was asked for, after validation.

    Attributes:
        agent: The resolved agent.
        input: A JSON value.
        principal: Who asked.
        owner: The id of the session that asked; for a delegated job the session of its parent.
        trace: The operation that asked for it; ``None`` where nobody named a trace.
        allowed_agents: The names of the agents that the principal may use; ``None`` for all.
        max_runtime_sec: Seconds from ``running`` to a TIMEOUT, or ``None``.
        lease: What it may do.
        budget: What it may cost; ``None`` makes counters of its own, as the lease says.
        parent: The job that has delegated it, or ``None``.
        delegate_id: The delegation's id; empty where there is none.
        job_id: Its id, where something was made for it before it is; ``None`` mints one.
        credentials: What was issued for it, or ``None``.
    """

    agent: Agent
    input: Any
    principal: str
    owner: str
    trace: TraceContext | None
    allowed_agents: frozenset[str] | None = None
    max_runtime_sec: float | None = None
    lease: Lease = Lease.EMPTY
    budget: Budget | None = None
    parent: JobActor | None = None
    delegate_id: str = ""
    job_id: str | None = None
    credentials: JobCredentials | None = None


def check_max_runtime(seconds: float | None, path: str) -> None:
    """Check a ``max_runtime_sec`` (P7.3).

    Args:
        seconds: What was given; ``None`` for none.
        path: Where it stands, for the error.

    Raises:
        InvalidRequestError: It is no positive number.
    """
    if seconds is None:
        return
    # A boolean is an int to Python and nobody else (P5.6).
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not (is_number and 0 < seconds < math.inf):
        raise InvalidRequestError(f"{path}: expected a positive number, got {seconds!r:.50}")


def check_lease_size(lease: Lease, limits: Limits, path: str) -> None:
    """Check that a lease can be told: it stands in job.accepted and in listings, which are frames of ours (P4.4).

    Raises:
        InvalidRequestError: It takes more than half of a frame.
    """
    if lease.grants and len(encode_json(lease.grants)) * 2 > limits.send_bytes:
        raise InvalidRequestError(f"{path}: too large to be granted")
