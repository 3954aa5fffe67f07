"""A job as its submitter holds it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import trio

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
from ..wire.events import EVENT_BODIES, ResultChunk
from ..wire.job_messages import JobAccepted, JobError, JobEvent, JobResult
from ..wire.jsontext import JSONValue
from .results import ResultAssembler, ResultFile

if TYPE_CHECKING:
    from .client import Client

__all__ = ["CancelOutcome", "Event", "JobHandle", "Skipped"]

T = TypeVar("T")


@attrs.frozen(kw_only=True, eq=False)
class Event:
    """A job.event as it was received.

    Attributes:
        job_id: Its job.
        kind: One of the ten kinds of section 8.2, or another (P5.4).
        body: A JSON object.
        ts: When it was emitted, as the runtime wrote it; ``None`` where it wrote none.
        event_seq: Its number in this session.
        job_seq: Its number in the job's own counting, from runtimes that give one.
    """

    job_id: str
    kind: str
    body: dict[str, JSONValue]
    ts: str | None = None
    event_seq: int | None = None
    job_seq: int | None = None

    def parse(self) -> Any:
        """Return the body as the class of its kind (:mod:`arcp_trio.wire.events`), or as it is for another kind.

        Raises:
            InvalidRequestError: It does not have the shape of its kind.
        """
        cls = EVENT_BODIES.get(self.kind)
        return self.body if cls is None else structure_body(cls, self.body, "$.payload.body")


@attrs.frozen
class Skipped:
    """Stands where events were dropped because the handle's reader was too slow.

    Attributes:
        count: How many.
    """

    count: int


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


class _EventIterator(AsyncIterator["Event | Skipped"]):
    """The one reader of a handle's events."""

    def __init__(self, handle: JobHandle) -> None:
        self._handle = handle

    def __aiter__(self) -> _EventIterator:
        return self

    async def __anext__(self) -> Event | Skipped:
        item = await self._handle._next_event()  # noqa: SLF001  # the two classes are one
        if item is None:
            raise StopAsyncIteration
        return item


class JobHandle:
    """A job that this session submitted; made by :meth:`Client.submit`.

    Attributes:
        job_id: The job's id.
        agent: The resolved agent, ``name@version``.
        accepted: The whole job.accepted.
        trace_id: The job's trace.
    """

    def __init__(self, client: Client, limits: ClientLimits, trace_id: str) -> None:
        self._client = client
        self._limits = limits
        self.job_id = ""
        self.agent = ""
        self.accepted: JobAccepted | None = None
        self.trace_id = trace_id
        self._events: deque[tuple[Event, int]] = deque()
        self._event_bytes = 0
        self._skipped = 0
        self._reader: trio.lowlevel.Task | None = None
        self._assembler: ResultAssembler | None = None
        self._ended = trio.Event()
        self._terminal: JobResult | JobError | None = None
        self._lost: ARCPError | None = None
        self._result: JSONValue | bytes | ResultFile = None
        self._failure: ARCPError | None = None

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

    def events(self) -> AsyncIterator[Event | Skipped]:
        """Iterate over the job's events, from the oldest that is kept to its end.

        ``async for event in job.events()`` ends when the job has ended. Result chunks are not among them: they make
        the :meth:`result`. The handle keeps ``ClientLimits.events`` for a slow reader; beyond, the oldest are
        dropped and a :class:`Skipped` stands in their place. One task may read at a time.

        Raises:
            ConnectionLostError: While iterating: the connection ended before the job did.
            trio.BusyResourceError: While iterating: another task reads.

        Cancellation: no event is lost.
        """
        return _EventIterator(self)

    async def wait_ended(self) -> None:
        """Wait until the job has ended, however it did.

        Raises:
            ConnectionLostError: The connection ended before the job did.

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
            InternalError: The streamed result did not come whole.
            ConnectionLostError: The connection ended before the job did.

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
            ConnectionLostError: The connection ended before the answer.

        Cancellation: the request may have been sent.
        """
        return await self._client._cancel(self, reason)  # noqa: SLF001  # the client sends

    # --- what the client calls: synchronous, never failing ------------------------------------------

    def _accept(self, accepted: JobAccepted) -> None:
        self.accepted = accepted
        self.job_id = accepted.job_id
        self.agent = accepted.agent or ""

    def _receive(self, payload: JobEvent, event_seq: int | None, job_seq: int | None, size: int) -> None:
        if self._terminal is not None:
            return
        if payload.kind == "result_chunk":
            self._receive_chunk(payload.body)
            return
        event = Event(
            job_id=self.job_id,
            kind=payload.kind,
            body=payload.body,
            ts=payload.ts,
            event_seq=event_seq,
            job_seq=job_seq,
        )
        self._events.append((event, size))
        self._event_bytes += size
        while len(self._events) > self._limits.events or (
            self._event_bytes > self._limits.event_bytes and len(self._events) > 1
        ):
            _, dropped = self._events.popleft()
            self._event_bytes -= dropped
            self._skipped += 1
        self._wake()

    def _receive_chunk(self, body: dict[str, JSONValue]) -> None:
        if self._assembler is None:
            self._assembler = ResultAssembler(self._limits)
        try:
            self._assembler.add(structure_body(ResultChunk, body, "$.payload.body"))
        except InvalidRequestError as exc:
            self._failure = InternalError(f"a chunk of the result is malformed: {exc.message}", retryable=False)

    def _end(self, terminal: JobResult | JobError) -> None:
        """Take the terminal event; the first one counts."""
        if self._terminal is not None:
            return
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
                    assembler = self._assembler or ResultAssembler(self._limits)
                    self._result = assembler.finish(terminal)
                else:
                    self._result = terminal.result
            except ARCPError as exc:
                self._failure = exc
        self._ended.set()
        self._wake()

    def _lose(self, error: ARCPError) -> None:
        """Take note that nothing more will come."""
        if self._terminal is None and self._lost is None:
            self._lost = error
            self._ended.set()
            self._wake()

    def _kept_file(self) -> Path | None:
        """Return the file that holds the result, if one does; one that holds a broken result is deleted."""
        if isinstance(self._result, ResultFile):
            return self._result.path
        self._discard()
        return None

    def _discard(self) -> None:
        if self._assembler is not None:
            self._assembler.discard()

    def _wake(self) -> None:
        if self._reader is not None:
            trio.lowlevel.reschedule(self._reader)
            self._reader = None

    async def _next_event(self) -> Event | Skipped | None:
        # Ready events cost no turn of the loop each: the buffer is bounded, and so is their number.
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self._skipped:
                skipped, self._skipped = self._skipped, 0
                return Skipped(skipped)
            if self._events:
                event, size = self._events.popleft()
                self._event_bytes -= size
                return event
            if self._terminal is not None:
                return None
            if self._lost is not None:
                raise copy(self._lost)
            if self._reader is not None:
                raise trio.BusyResourceError("another task reads this job's events")
            self._reader = trio.lowlevel.current_task()

            def unpark(_: object) -> trio.lowlevel.Abort:
                self._reader = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(unpark)
