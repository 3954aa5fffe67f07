"""A job as a client holds it: one that it submitted, or one that it follows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from copy import copy
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs
import trio

from ..authority.credentials import Credential
from ..limits import ClientLimits
from ..wire.codec import structure_body
from ..wire.errors import (
    ARCPError,
    InternalError,
    InvalidRequestError,
    JobCancelledError,
    JobTimeoutError,
    error_from_wire,
)
from ..wire.events import CREDENTIAL_ROTATED, ResultChunk
from ..wire.job_messages import JobAccepted, JobError, JobEvent, JobResult, JobSubscribed
from ..wire.jsontext import JSONValue
from ..wire.tracecontext import read_trace_id
from .budget import JobBudget
from .credentials import read_credentials, read_rotation, without_value
from .events import Event, EventIterator, EventTail, Skipped
from .results import ResultAssembler, ResultFile

if TYPE_CHECKING:
    from .client import Client

__all__ = ["CancelOutcome", "JobHandle"]


@attrs.frozen
class CancelOutcome:
    """What became of a cancel.

    Attributes:
        applied: Whether it decided the job's outcome.
        status: The job's final status: ``cancelled`` if it was applied, else how the job has ended;
            ``running`` where another cause is already ending it.
    """

    applied: bool
    status: str


class JobHandle:
    """A job that this session submitted or follows, or that one of its own has delegated (:attr:`children`).

    Made by :meth:`Client.submit` and :meth:`Client.subscribe`.

    It outlives the connections of its client: events go on after a resume, none missing and none twice.

    Attributes:
        job_id: The job's id.
        agent: The resolved agent, ``name@version``.
        accepted: The whole job.accepted, but for its :attr:`credentials`; ``None`` for a job that another session
            submitted.
        subscribed: The whole job.subscribed, the job's authority descriptor (P7.17), but for its credentials; ``None``
            for a job that this session submitted.
        trace_id: The job's trace.
    """

    def __init__(self, client: Client, limits: ClientLimits, trace_id: str) -> None:
        self._client = client
        self._limits = limits
        self.job_id = ""
        self.agent = ""
        self.accepted: JobAccepted | None = None
        self.subscribed: JobSubscribed | None = None
        self.trace_id = trace_id
        self._joins = False
        self._children: dict[str, JobHandle] = {}
        self._tail = EventTail(limits)
        self._budget = JobBudget(limits.currencies)
        self._assembler: ResultAssembler | None = None
        self._ended = trio.Event()
        self._terminal: JobResult | JobError | None = None
        self._lost: ARCPError | None = None
        self._result: JSONValue | bytes | ResultFile = None
        self._failure: ARCPError | None = None
        self._credentials: dict[str, Credential] = {}

    def __repr__(self) -> str:
        return f"<JobHandle {self.job_id} {self.agent} {self.status}>"

    @property
    def status(self) -> str:
        """``running`` until the terminal event has come, then one of the four terminal states (P7.7)."""
        terminal = self._terminal
        return "running" if terminal is None else terminal.final_status

    @property
    def terminal(self) -> JobResult | JobError | None:
        """The terminal event; ``None`` before it has come."""
        return self._terminal

    @property
    def credentials(self) -> tuple[Credential, ...]:
        """What the job was given for upstreams, with the present values; none after the job's end (P9.11).

        A rotation changes a value in its place: take the credential from here each time it is presented. Those of
        schemes that this client cannot present are left out.
        """
        return tuple(self._credentials.values())

    @property
    def is_subscription(self) -> bool:
        """Whether this session follows a job that it did not submit."""
        return self._joins and self.accepted is None

    @property
    def parent_job_id(self) -> str | None:
        """The job that has delegated this one; ``None`` for one that was submitted."""
        known = self.accepted or self.subscribed
        return known.parent_job_id if known is not None else None

    @property
    def children(self) -> tuple[JobHandle, ...]:
        """The jobs that this one has delegated, oldest first: they are this session's too, and may be cancelled.

        One is here from its acceptance on, which follows the ``delegate`` event of this job that names it; also when it
        has ended, as long as ``ClientLimits.children`` allows. The children of a job that another session submitted are
        not followed with it: :meth:`Client.subscribe` follows the ``child_job_id`` of that event.
        """
        return tuple(self._children.values())

    @property
    def budget(self) -> Mapping[str, Decimal]:
        """What is left of the job's budget, by currency: the latest that the runtime has said (P9.7).

        From job.accepted or job.subscribed, then from each ``cost.budget.remaining`` as it arrives, whether or not its
        event was read. Negative where more was spent than there was; empty where nothing is known.
        """
        return MappingProxyType(self._budget.remaining)

    @property
    def budget_limits(self) -> Mapping[str, Decimal]:
        """What the job's budget was at first, by currency, as its lease or job.accepted says; empty if neither does."""
        return MappingProxyType(self._budget.limits)

    def events(self) -> AsyncIterator[Event | Skipped]:
        """Iterate over the job's events, from the oldest that is kept to its end.

        ``async for event in job.events()`` ends when the job has ended. Result chunks are not among them: they make
        the :meth:`result`. The handle keeps ``ClientLimits.events`` for a slow reader; beyond, the oldest are
        dropped and a :class:`Skipped` stands in their place. One task may read at a time.

        Raises:
            ConnectionLostError: While iterating: the session was lost before the job ended.
            ResumeWindowExpiredError: While iterating: so it was, because the runtime did not resume it.
            trio.BusyResourceError: While iterating: another task reads.

        Cancellation: no event is lost.
        """
        return EventIterator(self._tail)

    async def wait_ended(self) -> None:
        """Wait until the job has ended, however it did.

        Raises:
            ConnectionLostError: The session was lost before the job ended.
            ResumeWindowExpiredError: So it was, because the runtime did not resume it.
            InvalidRequestError: The job was unsubscribed from before it ended.

        Cancellation: a checkpoint; the job goes on.
        """
        await self._ended.wait()
        if self._terminal is None:
            assert self._lost is not None
            raise copy(self._lost)

    async def result(self) -> JSONValue | bytes | ResultFile:
        """Wait for the job's end and return its result.

        Returns:
            The JSON value that the agent returned; for a streamed result its text or bytes, or a
            :class:`~arcp_trio.client.results.ResultFile` where it is larger than ``ClientLimits.result_memory_bytes``.

        Raises:
            ARCPError: The job did not succeed: the class that its code names.
            InternalError: The streamed result did not come whole; of a job that was subscribed to while it streamed
                its result, because the chunks before that are missing (``history=True`` may give them).
            ConnectionLostError: The session was lost before the job ended.
            ResumeWindowExpiredError: So it was, because the runtime did not resume it.
            InvalidRequestError: The job was unsubscribed from before it ended.

        Cancellation: nothing is lost; it may be called again, and from several tasks.
        """
        await self.wait_ended()
        if self._failure is not None:
            # A new exception for each caller: one that is raised twice grows a traceback of both.
            raise copy(self._failure)
        return self._result

    async def cancel(self, reason: str = "cancelled by the client") -> CancelOutcome:
        """Ask for the job's end and say what became of it.

        Returns as soon as that is decided: a job that is being cancelled may take until its grace is over to
        end; :meth:`result` waits for that.

        Args:
            reason: Why; stands in the runtime's acknowledgement and error.

        Raises:
            PermissionDeniedError: This session may not cancel the job.
            JobNotFoundError: The runtime does not know the job (any more).
            InternalError: The runtime answered nothing within ``ClientLimits.cancel_seconds``.
            ConnectionLostError: The session was lost before the answer.
            ResumeWindowExpiredError: So it was, because the runtime did not resume it.

        Cancellation: the request may have been sent.
        """
        return await self._client._cancel(self, reason)  # noqa: SLF001  # the client sends

    async def unsubscribe(self) -> None:
        """Follow the job no more: :meth:`events` ends behind what is kept. The job goes on (P7.20).

        No runtime answers it: it is sent with the next connection where there is none now. It does nothing the second
        time, after the job's end, or for a job that this session submitted.

        Cancellation: a checkpoint, after the request was handed over.
        """
        if self.is_subscription and not self._ended.is_set():
            self._client._unsubscribe(self)  # noqa: SLF001  # the client sends
            self._leave()
        await trio.lowlevel.checkpoint()

    # --- what the client calls: synchronous, never failing ------------------------------------------

    def _accept(self, accepted: JobAccepted) -> None:
        self._take_credentials(accepted)
        self.accepted = attrs.evolve(accepted, credentials=None)
        self.job_id = accepted.job_id
        self.agent = accepted.agent or ""
        self._budget.accept(accepted.lease, accepted.budget)

    def _adopt(self, accepted: JobAccepted, known: JobHandle | None) -> JobHandle | None:
        """Take a child that was accepted; return its handle, or ``None`` for one that is not followed.

        It is not where it comes again, behind a resume, or where too many run.
        """
        if accepted.job_id in self._children or (known is not None and known.accepted is not None):
            return None
        if len(self._children) >= self._limits.children:
            ended = next((job_id for job_id, child in self._children.items() if child.terminal is not None), None)
            if ended is None:
                return None
            del self._children[ended]
        child = known or JobHandle(self._client, self._limits, accepted.trace_id or self.trace_id)
        child._accept(accepted)  # noqa: SLF001  # of this class
        self._children[child.job_id] = child
        return child

    def _start_to_join(self, job_id: str) -> None:
        self.job_id = job_id
        self._joins = True

    def _join(self, subscribed: JobSubscribed) -> None:
        self._take_credentials(subscribed)
        self.subscribed = attrs.evolve(subscribed, credentials=None)
        self.agent = subscribed.agent or ""
        # It goes out again with a cancel, and one peer drops a frame with a bad one.
        self.trace_id = read_trace_id(subscribed.trace_id) or ""
        self._budget.join(subscribed.lease, subscribed.budget)

    def _take_credentials(self, message: JobAccepted | JobSubscribed) -> None:
        if message.credentials is not None and not self._ended.is_set():
            self._credentials = read_credentials(message.credentials)

    def _rotate(self, body: dict[str, JSONValue]) -> dict[str, JSONValue]:
        """Take the new value of a credential; return what the program gets to see of it."""
        credential_id, value = read_rotation(body)
        credential = self._credentials.get(credential_id)
        if credential is not None and value is not None:
            self._credentials[credential_id] = attrs.evolve(credential, value=value)
        elif credential is not None:
            # Some runtimes do not say it; what it was is revoked.
            del self._credentials[credential_id]
        return without_value(body)

    def _leave(self) -> None:
        self._credentials.clear()
        self._lost = InvalidRequestError(f"{self.job_id} was unsubscribed from: its end is not known")
        self._discard()
        self._ended.set()
        self._tail.finish()

    def _receive(self, payload: JobEvent, event_seq: int | None, job_seq: int | None, size: int) -> None:
        if payload.kind == "result_chunk":
            self._receive_chunk(payload.body)
            return
        body = payload.body
        if payload.kind == "status" and body.get("phase") == CREDENTIAL_ROTATED:
            body = self._rotate(body)
        if not self._is_history(job_seq):
            self._budget.receive(payload.kind, payload.body)
        event = Event(
            job_id=self.job_id,
            kind=payload.kind,
            body=body,
            ts=payload.ts,
            event_seq=event_seq,
            job_seq=job_seq,
        )
        self._tail.append(event, size)

    def _is_history(self, job_seq: int | None) -> bool:
        """Say whether an event is of before the subscription: what came of it stands in job.subscribed (P7.18)."""
        joined_at = None if self.subscribed is None else self.subscribed.subscribed_from
        return job_seq is not None and joined_at is not None and job_seq <= joined_at

    def _receive_chunk(self, body: dict[str, JSONValue]) -> None:
        if self._assembler is None:
            self._assembler = ResultAssembler(self._limits, joined_late=self.is_subscription)
        try:
            self._assembler.add(structure_body(ResultChunk, body, "$.payload.body"))
        except InvalidRequestError as exc:
            self._failure = InternalError(f"a chunk of the result is malformed: {exc.message}", retryable=False)

    def _end(self, terminal: JobResult | JobError) -> None:
        """Take the terminal event; the first one counts."""
        if self._ended.is_set():
            return
        self._credentials.clear()
        self._terminal = terminal
        if isinstance(terminal, JobError):
            self._failure = error_from_wire(
                terminal.code, terminal.message, retryable=terminal.retryable, details=terminal.details
            )
        elif terminal.final_status == "cancelled":
            # One implementation ends cancelled and timed-out jobs with job.result (D38).
            self._failure = JobCancelledError("the job was cancelled")
        elif terminal.final_status == "timed_out":
            self._failure = JobTimeoutError("the job ran longer than its max_runtime_sec")
        elif self._failure is None:
            try:
                if self._assembler is not None or terminal.result_id is not None:
                    assembler = self._assembler or ResultAssembler(self._limits, joined_late=self.is_subscription)
                    self._result = assembler.finish(terminal)
                else:
                    self._result = terminal.result
            except ARCPError as exc:
                self._failure = exc
        self._ended.set()
        self._tail.finish()

    def _lose(self, error: ARCPError) -> None:
        """Take note that nothing more will come."""
        if not self._ended.is_set():
            # What becomes of the job is not known any more, and a value is kept no longer than that (section 9.8.2).
            self._credentials.clear()
            self._lost = error
            self._ended.set()
            self._tail.finish(error)

    def _kept_file(self) -> Path | None:
        """Return the file that holds the result, if one does; one that holds a broken result is deleted."""
        if isinstance(self._result, ResultFile):
            return self._result.path
        self._discard()
        return None

    def _discard(self) -> None:
        if self._assembler is not None:
            self._assembler.discard()
