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
    runtime ──post─────────┤                        ├─▶ children (post)
    parent  ──post─────────┘                        └─▶ directory (record)

The agent runs in a task of its own, in another nursery, so that an agent that refuses to stop holds
neither its actor nor the terminal event: after its grace it is disowned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar, Protocol

import attrs
import trio

from ..audit import audit
from ..authority.budget import Budget, parse_budget
from ..authority.lease import Lease
from ..records import JobRecord
from ..timers import Timer
from ..wire.errors import (
    JobCancelledError,
    JobEndedError,
    JobTimeoutError,
    LeaseExpiredError,
)
from ..wire.events import ENCODED_KINDS, RUNTIME_METRIC
from ..wire.jsontext import encode_json, exact_number
from .agent_task import internal_error, run_agent
from .authority import JobAuthority
from .children import Children
from .context import JobContext
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
    LeaseExpired,
    Message,
    Outcome,
    ParentStopping,
    Phase,
    RuntimeClosing,
    Start,
    State,
    TornDown,
    apply,
)
from .mailbox import Mailbox
from .spec import JobServices, JobSpec
from .trace import JobTrace

__all__ = ["CancelRequest", "JobActor"]

logger = logging.getLogger("arcp_trio.jobs")

# What a record keeps beside its terminal event and its lease, and its place in the index, about.
_RECORD_OVERHEAD = 1_500
# What a text costs beside its characters, about.
_TEXT_OVERHEAD = 64
# What a currency and a decimal cost together, about.
_COUNTER_SIZE = 200


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


def _size_of(lease: Lease) -> int:
    """Return about how many bytes a lease keeps."""
    grants = lease.grants.items()
    return sum(_TEXT_OVERHEAD + len(text) for namespace, patterns in grants for text in (namespace, *patterns))


_BUDGET_FEATURE = "cost.budget"
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
_EXPIRED = partial(
    Outcome,
    final_status=FinalStatus.ERROR,
    code=LeaseExpiredError.default_code,
)
_CLOSING = internal_error("the runtime is shutting down")


class JobActor:
    """One job that has not ended. Made by the runtime, which runs :meth:`run` in its actors' nursery.

    Attributes:
        state: Where the job stands; written by the actor's own task alone, unless its parent's has failed.
        authority: What the job may do.
        credentials: What was issued for it, or ``None``.
        feed: Who follows it.
        owner: The session that has asked for it, or for the one at the top of its family.
        owners: The sessions that may cancel it (P7.12): those of its parent, if it has one, now and later.
        parent: The job that has delegated it, which does not end before it does (P10.3).
        root: The job at the top of its family: itself, where nobody has delegated it.
        depth: How many generations are above it.
        delegate_id: The delegation's id; empty where there is none.
        children: The jobs that it has delegated and that have not ended.
        throttle: Of a root the submitting session while it has a connection: the agents of the whole family wait for
            it, for a bounded time.
        stop_requested: Whether the agent was told to stop.
        trace: Its place in its trace.
    """

    __slots__ = (
        "_agent_over",
        "_context",
        "_deadline",
        "_expiry",
        "_grace",
        "_lease_has_expired",
        "_mailbox",
        "_revoking",
        "_scope",
        "_waiting_cancels",
        "agent",
        "allowed_agents",
        "authority",
        "children",
        "created_at",
        "credentials",
        "delegate_id",
        "depth",
        "feed",
        "input",
        "job_id",
        "max_runtime_sec",
        "owner",
        "owners",
        "parent",
        "principal",
        "root",
        "services",
        "state",
        "stop_requested",
        "throttle",
        "trace",
    )

    def __init__(self, job_id: str, spec: JobSpec, services: JobServices) -> None:
        self.job_id = job_id
        self.services = services
        self.agent = spec.agent
        self.input = spec.input
        self.principal = spec.principal
        parent = self.parent = spec.parent
        self.root: JobActor = self if parent is None else parent.root
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.delegate_id = spec.delegate_id
        self.owner = spec.owner
        self.owners: set[str] = {spec.owner} if parent is None else parent.owners
        self.allowed_agents = spec.allowed_agents
        self.children = Children()
        self.authority: JobAuthority = JobAuthority(
            spec.lease,
            spec.budget or Budget(parse_budget(spec.lease.grants.get("cost.budget", ()), "cost.budget")),
            clock=services.clock,
            # Where a parent may not use every model, its children may not either, whatever the default (P10.2).
            open_models=services.open_models if spec.parent is None else spec.parent.authority.open_models,
            expired=self._lease_expired,
        )
        self.credentials = spec.credentials
        self.max_runtime_sec = spec.max_runtime_sec
        self.created_at = services.clock.timestamp()
        self.state: State = PENDING
        self.trace = JobTrace(job_id, spec, self.authority, services)
        self.feed = JobFeed(job_id, self.trace.context.trace_id, services.directory.histories.open(spec.principal))
        self.throttle: Throttle | None = None
        self.stop_requested = False
        self._mailbox = Mailbox()
        self._context: JobContext | None = None
        self._scope: trio.CancelScope | None = None
        self._agent_over = True
        self._deadline: Timer | None = None
        self._grace: Timer | None = None
        self._expiry: Timer | None = None
        self._lease_has_expired = False
        # Around the wait for the revocation of its credentials: none where there is nothing to wait for.
        self._revoking: trio.CancelScope | None = None
        self._waiting_cancels: list[CancelRequest] = []

    def __repr__(self) -> str:
        return f"<JobActor {self.job_id} {self.agent.resolved} {self.state.phase.value}>"

    @property
    def parent_job_id(self) -> str | None:
        """The id of the job that has delegated it, if one has."""
        return None if self.parent is None else self.parent.job_id

    @property
    def lease(self) -> Lease:
        """What the job may do."""
        return self.authority.lease

    @property
    def budget(self) -> Mapping[str, Decimal]:
        """What is left of the job's own budget, by currency."""
        return self.authority.budget.remaining()

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

    def stop_with_parent(self, message: ParentStopping) -> None:
        """Post that the parent is being stopped, or has less time than it had (P10.3)."""
        self._mailbox.post(message)

    def child_ended(self, child: JobActor, outcome: Outcome) -> None:
        """Take note that a child has published its outcome: the last thing that it does."""
        self.children.remove(child, outcome)
        if self.state.phase is Phase.ENDING:
            self._finish_tear_down()

    @trio.lowlevel.enable_ki_protection
    def append_event(self, kind: str, body: bytes, feature: str | None) -> None:
        """Append an event of the agent to every follower. No checkpoint; the agent's context calls it.

        Raises:
            JobEndedError: The outcome is decided and the agent's time is over (P7.11).
        """
        if self.state.phase not in (Phase.RUNNING, Phase.STOPPING):
            raise JobEndedError("the job has ended: nothing can be emitted any more")
        self._append(kind, body, feature)

    @trio.lowlevel.enable_ki_protection
    def append_cost(self, body: bytes, charge: Callable[[], object]) -> None:
        """Append a metric of the agent's and charge what it reports, in one step: no checkpoint inside (P9.7).

        What has changed is told behind it, in the feed of the job whose counter it is: this one, or an ancestor
        where this one has none of the currency. There the gauge stays true for who follows that job, and nobody sees a
        gauge of a budget that the job which he follows does not have.

        Raises:
            JobEndedError: As :meth:`append_event`; nothing is charged.
        """
        self.append_event("metric", body, None)
        charge()
        self.report_budget()

    def report_budget(self) -> None:
        """Append ``cost.budget.remaining`` of each counter that has changed, of this job and its ancestors (P9.7).

        To be called in the same step as whatever has changed them. A counter that has not is not told.
        """
        actor: JobActor | None = self
        while actor is not None:
            for currency, amount in actor.authority.take_changes().items():
                if not actor.feed.closed:
                    body = {"name": RUNTIME_METRIC, "value": exact_number(amount), "unit": currency}
                    actor._append("metric", encode_json(body), _BUDGET_FEATURE)  # noqa: SLF001  # its own class
            actor = actor.parent

    def _append(self, kind: str, body: bytes, feature: str | None) -> None:
        services = self.services
        timestamp = services.clock.timestamp()
        services.counters.encodings += 1
        payload = b'{"kind":%b,"ts":"%b","body":%b}' % (
            ENCODED_KINDS.get(kind) or encode_json(kind),
            timestamp.encode(),
            body,
        )
        self.feed.append_event(payload, timestamp=timestamp, feature=feature)

    # --- the actor --------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Process messages until the job has ended. The only task that writes ``state``.

        A bug in here ends this job and no other: it is logged and counted, and if nothing was
        published, INTERNAL_ERROR is.
        """
        try:
            self._watch_expiry()
            # What was posted before the first step decides before the agent could start (P7.15, L08).
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
                self.end_by_force()
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
        self.trace.activate()
        value, self.input = self.input, None
        try:
            ended = await run_agent(
                self.agent.function,
                self._context,
                value,
                self._scope,
                self.services.interrupted,
                translators=self.services.translators,
            )
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

    def _watch_expiry(self) -> None:
        if self.authority.has_expired:
            self._lease_expired()
        elif self.lease.expires_at is not None:
            self._expiry = self.services.timers.call_at(self.authority.deadline, self._lease_expired)

    def _lease_expired(self) -> None:
        """Post that the lease has expired, once: its timer or a check that was sooner says so (P9.6)."""
        if self._lease_has_expired:
            return
        self._lease_has_expired = True
        expires_at = self.lease.expires_at
        audit("expired", "lease", principal=self.principal, job_id=self.job_id, detail=f"expires_at {expires_at}")
        until = trio.current_time() + self.services.limits.expiry_grace_seconds
        self._mailbox.post(LeaseExpired(until, _EXPIRED(message=f"the lease expired at {expires_at}")))

    def _acknowledge(self, message: Message) -> None:
        assert type(message) is Cancel
        self.services.counters.cancels_acknowledged += 1
        if message.request is not None:
            message.request.acknowledge()

    def _stop_agent(self, message: Message) -> None:
        assert self._scope is not None
        self.stop_requested = True
        self._scope.cancel(reason=f"{type(message).__name__} of {self.job_id}")

    def _stop_children(self, _: Message) -> None:
        assert self.state.outcome is not None
        until = self.state.until
        if until is None:
            # The agent has ended by itself: nothing bounds the children's time but what is usual.
            until = trio.current_time() + self.services.limits.cancel_grace_seconds
        self.children.stop(until, self.state.outcome)

    def _tighten(self, message: Message) -> None:
        self._set_grace(message)
        self._stop_children(message)

    def _set_grace(self, _: Message) -> None:
        if self._grace is not None:
            self._grace.cancel()
        if self.state.phase is Phase.STOPPING and self.state.until is not None:
            self._grace = self.services.timers.call_at(self.state.until, self._grace_elapsed)
        elif self._revoking is not None and self.state.until is not None:
            self._revoking.deadline = min(self._revoking.deadline, self.state.until)

    def _grace_elapsed(self) -> None:
        self._mailbox.post(GraceElapsed())

    def _disown_agent(self, _: Message) -> None:
        # It may have ended while the message was on its way: then there is nobody to wait for.
        if not self._agent_over:
            self.services.disowned(self, True)

    def _tear_down(self, _: Message) -> None:
        self._release()
        if self.credentials is not None and self.services.provisioning is not None:
            self._revoking = self.services.provisioning.when_revoked(
                self.credentials, self.state.until, self._note_revoked
            )
        self._finish_tear_down()

    def _finish_tear_down(self) -> None:
        """Say that all is dealt with, unless children or revocations are left: the end of the last calls this again."""
        if not self.children and self._revoking is None:
            self._settle()
            self._mailbox.post(TornDown())

    def _note_revoked(self) -> None:
        self._revoking = None
        self._finish_tear_down()

    def _release(self) -> None:
        """Release what the job holds. Between the decision and the publication, once."""
        self.services.counters.torn_down += 1
        self.authority.release()
        if self.credentials is not None:
            self.credentials.close()
        for timer in (self._deadline, self._grace, self._expiry):
            if timer is not None:
                timer.cancel()
        self._deadline = self._grace = self._expiry = None

    def _settle(self) -> None:
        """Return what is left of a child's budget to its parent (P10.2), once nothing can be charged to it any more.

        That is when its own children have ended: until then what they spend may be charged to it.
        """
        self.authority.budget.settle()
        if self.parent is not None:
            # Before the terminal event is visible: who sees it sees its parent's budget as it is from now on.
            self.parent.report_budget()

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
        self.trace.end(outcome)
        budget = self.budget
        self.services.directory.finish(
            JobRecord(
                job_id=self.job_id,
                agent=self.agent.resolved,
                principal=self.principal,
                owners=frozenset(self.owners),
                status=outcome.final_status.value,
                created_at=self.created_at,
                completed_at=timestamp,
                parent_job_id=self.parent_job_id,
                lease=self.lease.at_rest(),
                budget=budget,
                feed=self.feed,
                ended_at=trio.current_time(),
                size=_RECORD_OVERHEAD + _size_of(self.lease) + _COUNTER_SIZE * len(budget) + terminal.size,
            )
        )
        waiting, self._waiting_cancels = self._waiting_cancels, []
        for request in waiting:
            request.refuse(outcome.final_status.value)
        if self.parent is not None:
            self.parent.child_ended(self, outcome)

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

    def end_by_force(self) -> None:
        """End a job whose actor or whose parent's failed or was cancelled: the terminal event goes out all the same."""
        if self._scope is not None:
            self._scope.cancel(reason="its actor failed")
        # No child outlives its parent, however that ends: theirs are the first terminal events.
        self.children.end_by_force()
        if self.state.phase not in (Phase.ENDING, Phase.ENDED):
            self._release()
        if not self._agent_over:
            # It gets no grace: there is no actor to wait for it.
            self.services.disowned(self, True)
        self._settle()
        outcome = self.state.outcome or internal_error("the runtime failed to run the job")
        self.state = State(Phase.ENDED, outcome)
        # Where this is its parent's doing, the actor's own task finds that it has nothing left to do.
        self._mailbox.wake()
        if not self.feed.closed:
            self._publish(TornDown())
        else:
            # Publishing itself has failed: not again, but who waits for the job's end must not wait for ever.
            self._retire(outcome, self.services.clock.timestamp())

    _EFFECTS: ClassVar[Mapping[Effect, Callable[[Any, Message], None]]] = {
        Effect.START_AGENT: _start_agent,
        Effect.ACKNOWLEDGE: _acknowledge,
        Effect.STOP_AGENT: _stop_agent,
        Effect.STOP_CHILDREN: _stop_children,
        Effect.SET_GRACE: _set_grace,
        Effect.TIGHTEN: _tighten,
        Effect.DISOWN_AGENT: _disown_agent,
        Effect.TEAR_DOWN: _tear_down,
        Effect.PUBLISH: _publish,
        Effect.REFUSE: _refuse_message,
        Effect.REPORT_BUG: _report_bug,
    }
