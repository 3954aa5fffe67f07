"""A job as an actor: a task that owns the job's state, its mailbox and its agent's cancel scope.

Theory of operation. Whatever can end the job is a message in the mailbox. The actor takes one at a time,
asks :func:`arcp_trio.jobs.lifecycle.apply` what follows, and carries out the effects; there is no other
writer of ``state``, and no await between a message and its effects. So at most one message decides the
outcome, and the terminal event is published by the one effect that leads into ``ended``, out of which
nothing leads.

::

    request ──post_cancel──┐                        ┌─▶ feed ─▶ followers
    timers  ──post─────────┼─▶ mailbox ─▶ actor ────┤
    agent   ──post─────────┤    (one at a time)     ├─▶ scope.cancel() ─▶ agent
    runtime ──post─────────┘                        └─▶ directory (record)

The agent runs in a task of its own, in another nursery, so that an agent that refuses to stop holds
neither its actor nor the terminal event: after its grace it is disowned.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol

import attrs
import trio

from ..limits import Limits
from ..records import JobRecord
from ..timers import Timer, Timers
from ..wire.errors import JobCancelledError, JobEndedError, JobTimeoutError
from ..wire.ids import IdFactory
from ..wire.jsontext import encode_json
from ..wire.timestamps import WallClock
from .agent_task import internal_error, run_agent
from .agents import Agent
from .context import JobContext
from .directory import JobDirectory
from .feed import JobFeed, Throttle
from .lifecycle import (
    PENDING,
    AgentEnded,
    Cancel,
    DeadlinePassed,
    Effect,
    End,
    FinalStatus,
    GraceElapsed,
    Message,
    Outcome,
    Phase,
    RuntimeClosing,
    Start,
    State,
    TornDown,
    apply,
)
from .mailbox import Mailbox
from .pacer import Pacer

__all__ = ["CancelRequest", "JobActor", "JobCounters", "JobServices", "JobSpec"]

logger = logging.getLogger("arcp_trio.jobs")

# What a record keeps beside its terminal event and its lease, and its place in the index, about.
_RECORD_OVERHEAD = 1_500
# What a text costs beside its characters, about.
_TEXT_OVERHEAD = 64


class CancelRequest(Protocol):
    """A cancel that waits for its answer. Both methods are synchronous and tolerate a caller who has left."""

    @property
    def reason(self) -> str | None:
        """Why, as the caller said."""
        ...

    def acknowledge(self) -> None:
        """The cancel decides the job's outcome: nothing but CANCELLED can follow."""

    def refuse(self, job_status: str) -> None:
        """The cancel changed nothing; the job reads ``job_status``."""


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
        spawn_agent: Starts a task in the agents' nursery, from the runtime's own context.
        interrupted: Is told of a KeyboardInterrupt in an agent.
        disowned: Is told of an agent that did not stop within its grace, and again when it has ended.
    """

    limits: Limits
    ids: IdFactory
    clock: WallClock
    timers: Timers
    pacer: Pacer
    directory: JobDirectory
    counters: JobCounters
    spawn_agent: Callable[[Callable[[], Awaitable[None]], str], None]
    interrupted: Callable[[BaseException], None]
    disowned: Callable[[JobActor, bool], None]


@attrs.frozen(kw_only=True)
class JobSpec:
    """What was asked for, after validation.

    Attributes:
        agent: The resolved agent.
        input: A JSON value.
        principal: Who asked.
        owner: The id of the session that asked.
        trace_id: 32 hex digits.
        max_runtime_sec: Seconds from ``running`` to a TIMEOUT, or ``None``.
        lease: What was asked for.
        expires_at: The lease's end, or ``None``.
    """

    agent: Agent
    input: Any
    principal: str
    owner: str
    trace_id: str
    max_runtime_sec: float | None = None
    lease: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    expires_at: str | None = None


def _size_of(lease: Mapping[str, tuple[str, ...]]) -> int:
    """Return about how many bytes a lease keeps."""
    return sum(_TEXT_OVERHEAD + len(text) for namespace, patterns in lease.items() for text in (namespace, *patterns))


_CANCELLED = Outcome(
    final_status=FinalStatus.CANCELLED,
    code=JobCancelledError.default_code,
    message="the job was cancelled",
)
_TIMED_OUT = partial(
    Outcome,
    final_status=FinalStatus.TIMED_OUT,
    code=JobTimeoutError.default_code,
    retryable=JobTimeoutError.default_retryable,
)
_CLOSING = internal_error("the runtime is shutting down")


class JobActor:
    """One job that has not ended. Made by the runtime, which runs :meth:`run` in its actors' nursery.

    Attributes:
        state: Where the job stands; written by the actor's own task alone.
        feed: Who follows it.
        owners: The sessions that may cancel it (P7.12).
        throttle: The submitting session while it has a connection: its agents wait for it, for a bounded time.
        stop_requested: Whether the agent was told to stop.
    """

    __slots__ = (
        "_agent_over",
        "_context",
        "_deadline",
        "_grace",
        "_mailbox",
        "_scope",
        "_waiting_cancels",
        "agent",
        "created_at",
        "expires_at",
        "feed",
        "input",
        "job_id",
        "lease",
        "max_runtime_sec",
        "owners",
        "principal",
        "services",
        "state",
        "stop_requested",
        "throttle",
    )

    def __init__(self, job_id: str, spec: JobSpec, services: JobServices) -> None:
        self.job_id = job_id
        self.services = services
        self.agent = spec.agent
        self.input = spec.input
        self.principal = spec.principal
        self.owners = {spec.owner}
        self.lease = spec.lease
        self.expires_at = spec.expires_at
        self.max_runtime_sec = spec.max_runtime_sec
        self.created_at = services.clock.timestamp()
        self.state: State = PENDING
        self.feed = JobFeed(job_id, spec.trace_id, services.directory.histories.open(spec.principal))
        self.throttle: Throttle | None = None
        self.stop_requested = False
        self._mailbox = Mailbox()
        self._context: JobContext | None = None
        self._scope: trio.CancelScope | None = None
        self._agent_over = True
        self._deadline: Timer | None = None
        self._grace: Timer | None = None
        self._waiting_cancels: list[CancelRequest] = []

    def __repr__(self) -> str:
        return f"<JobActor {self.job_id} {self.agent.resolved} {self.state.phase.value}>"

    @property
    def status(self) -> str:
        """The job's status as the wire names it (P7.7): it shows the terminal only once it is published."""
        phase = self.state.phase
        if phase is Phase.PENDING:
            return "pending"
        if phase is Phase.ENDED:
            assert self.state.outcome is not None
            return self.state.outcome.final_status.value
        return "running"

    # --- what others call -------------------------------------------------------------------------

    def request_cancel(self, request: CancelRequest) -> None:
        """Post a cancel of the job's owner; the answer comes through ``request``.

        One cancel waits in the mailbox, a further one is refused at the door. Where the outcome is decided already, it
        is answered behind the terminal event if that is not yet visible (P7.14).
        """
        until = trio.current_time() + self.services.limits.cancel_grace_seconds
        if not self._mailbox.post_cancel(Cancel(until, self._cancelled_outcome(request), request)):
            self._refuse(request)

    @staticmethod
    def _cancelled_outcome(request: CancelRequest) -> Outcome:
        if not request.reason:
            return _CANCELLED
        return attrs.evolve(_CANCELLED, message=f"the job was cancelled: {request.reason[:1000]}")

    def close(self, until: float) -> None:
        """Post that the runtime shuts down: the agent has until ``until`` (on Trio's clock) to stop."""
        self._mailbox.post(RuntimeClosing(until, _CLOSING))

    @trio.lowlevel.enable_ki_protection
    def append_event(self, kind: str, body: bytes, feature: str | None) -> None:
        """Append an event of the agent to every follower. No checkpoint; the agent's context calls it.

        Raises:
            JobEndedError: The outcome is decided and the agent's time is over (P7.11).
        """
        if self.state.phase not in (Phase.RUNNING, Phase.STOPPING):
            raise JobEndedError("the job has ended: nothing can be emitted any more")
        services = self.services
        timestamp = services.clock.timestamp()
        services.counters.encodings += 1
        payload = b'{"kind":%b,"ts":"%b","body":%b}' % (encode_json(kind), timestamp.encode(), body)
        self.feed.append_event(payload, timestamp=timestamp, feature=feature)

    # --- the actor --------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Process messages until the job has ended. The only task that writes ``state``.

        A bug in here ends this job and no other: it is logged and counted, and if nothing was
        published, INTERNAL_ERROR is.
        """
        try:
            # What was posted before the first step decides before the agent could start (P7.15).
            self._drain()
            self._process(Start())
            while self.state.phase is not Phase.ENDED:
                await self._mailbox.wait()
                self._drain()
        except Exception:
            logger.exception("job %s: a bug in its actor", self.job_id)
            self.services.counters.bugs += 1
        finally:
            if self.services.directory.find(self.job_id) is self:
                self._end_by_force()
            self._drain()

    def _drain(self) -> None:
        while (message := self._mailbox.take()) is not None:
            self._process(message)

    def _process(self, message: Message) -> None:
        """Everything that happens to the job passes here: decide, then do. No checkpoint inside."""
        was_pending = self.state.phase is Phase.PENDING
        self.state, effects = apply(self.state, message)
        if was_pending and self.state.phase is not Phase.PENDING:
            self.services.directory.note_status(self)
        for effect in effects:
            self._EFFECTS[effect](self, message)

    def _start_agent(self, _: Message) -> None:
        self._scope = trio.CancelScope()
        self._context = JobContext(self)
        if self.max_runtime_sec is not None:
            self._deadline = self.services.timers.call_at(
                trio.current_time() + self.max_runtime_sec, self._deadline_passed
            )
        self.services.spawn_agent(self._run_agent, f"agent {self.agent.resolved} of {self.job_id}")
        self._agent_over = False

    @trio.lowlevel.enable_ki_protection
    async def _run_agent(self) -> None:
        """Run the agent in its own task; however it ends, the actor is told once."""
        assert self._scope is not None
        assert self._context is not None
        ended = AgentEnded(End.STOPPED, _CLOSING)
        value, self.input = self.input, None
        try:
            ended = await run_agent(self.agent.function, self._context, value, self._scope, self.services.interrupted)
        finally:
            self._agent_over = True
            if self.state.phase in (Phase.ENDING, Phase.ENDED):
                self.services.disowned(self, False)
            # The scope has closed: from here on nothing can stop the agent, it has ended.
            self._mailbox.post(ended)

    def _deadline_passed(self) -> None:
        seconds = self.max_runtime_sec or 0
        outcome = _TIMED_OUT(message=f"the job ran longer than its max_runtime_sec, {seconds:g}")
        until = trio.current_time() + self.services.limits.cancel_grace_seconds
        self._mailbox.post(DeadlinePassed(until, outcome))

    def _acknowledge(self, message: Message) -> None:
        assert type(message) is Cancel
        self.services.counters.cancels_acknowledged += 1
        if message.request is not None:
            message.request.acknowledge()

    def _stop_agent(self, message: Message) -> None:
        assert self._scope is not None
        self.stop_requested = True
        self._scope.cancel(reason=f"{type(message).__name__} of {self.job_id}")

    def _set_grace(self, _: Message) -> None:
        if self._grace is not None:
            self._grace.cancel()
        if self.state.phase is Phase.STOPPING and self.state.until is not None:
            self._grace = self.services.timers.call_at(self.state.until, self._grace_elapsed)

    def _grace_elapsed(self) -> None:
        self._mailbox.post(GraceElapsed())

    def _disown_agent(self, _: Message) -> None:
        # It may have ended while the message was on its way: then there is nobody to wait for.
        if not self._agent_over:
            self.services.disowned(self, True)

    def _tear_down(self, _: Message) -> None:
        self._release()
        self._mailbox.post(TornDown())

    def _release(self) -> None:
        """Release what the job holds. Between the decision and the publication, once."""
        self.services.counters.torn_down += 1
        for timer in (self._deadline, self._grace):
            if timer is not None:
                timer.cancel()
        self._deadline = self._grace = None

    def _publish(self, _: Message) -> None:
        """Make the outcome visible: to every follower, to the directory, to whoever waits. One step."""
        services = self.services
        outcome = self.state.outcome
        assert outcome is not None
        services.counters.published += 1
        timestamp = services.clock.timestamp()
        self.feed.publish_terminal(outcome, timestamp=timestamp)
        self._retire(outcome, timestamp)

    def _retire(self, outcome: Outcome, timestamp: str) -> None:
        """Leave a record in the place of the actor, and answer who has waited for that."""
        terminal = self.feed.terminal
        assert terminal is not None
        self.services.directory.finish(
            JobRecord(
                job_id=self.job_id,
                agent=self.agent.resolved,
                principal=self.principal,
                owners=frozenset(self.owners),
                status=outcome.final_status.value,
                created_at=self.created_at,
                completed_at=timestamp,
                lease=self.lease,
                expires_at=self.expires_at,
                feed=self.feed,
                ended_at=trio.current_time(),
                size=_RECORD_OVERHEAD + _size_of(self.lease) + terminal.size,
            )
        )
        waiting, self._waiting_cancels = self._waiting_cancels, []
        for request in waiting:
            request.refuse(outcome.final_status.value)

    def _refuse_message(self, message: Message) -> None:
        assert type(message) is Cancel
        if message.request is not None:
            self._refuse(message.request)

    def _refuse(self, request: CancelRequest) -> None:
        """Answer a cancel that changes nothing; behind the terminal event, if that is still to come."""
        self.services.counters.cancels_refused += 1
        waits = self.state.phase is not Phase.ENDED
        if waits and len(self._waiting_cancels) < self.services.limits.waiting_cancels:
            self._waiting_cancels.append(request)
        else:
            request.refuse(self.status)

    def _report_bug(self, message: Message) -> None:
        self.services.counters.bugs += 1
        logger.error("job %s: %s cannot come in %s", self.job_id, type(message).__name__, self.state.phase.value)

    def _end_by_force(self) -> None:
        """End a job whose actor failed or was cancelled: the terminal event goes out all the same."""
        if self._scope is not None:
            self._scope.cancel(reason="its actor failed")
        if self.state.phase not in (Phase.ENDING, Phase.ENDED):
            self._release()
        if not self._agent_over:
            # It gets no grace: there is no actor to wait for it.
            self.services.disowned(self, True)
        outcome = self.state.outcome or internal_error("the runtime failed to run the job")
        self.state = State(Phase.ENDED, outcome)
        if not self.feed.closed:
            self._publish(TornDown())
        else:
            # Publishing itself has failed: not again, but who waits for the job's end must not wait for ever.
            self._retire(outcome, self.services.clock.timestamp())

    _EFFECTS: ClassVar[Mapping[Effect, Callable[[Any, Message], None]]] = {
        Effect.START_AGENT: _start_agent,
        Effect.ACKNOWLEDGE: _acknowledge,
        Effect.STOP_AGENT: _stop_agent,
        Effect.SET_GRACE: _set_grace,
        Effect.TIGHTEN: _set_grace,
        Effect.DISOWN_AGENT: _disown_agent,
        Effect.TEAR_DOWN: _tear_down,
        Effect.PUBLISH: _publish,
        Effect.REFUSE: _refuse_message,
        Effect.REPORT_BUG: _report_bug,
    }
