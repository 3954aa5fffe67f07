"""A session with a runtime, over any transport: what a program calls.

What the calls wait for is kept by :mod:`arcp_trio.client.session`; the connections come and go in
:mod:`arcp_trio.client.connecting`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import trio

from ..tracing import active_context
from ..transports.base import CloseCode
from ..wire.errors import InternalError, InvalidRequestError
from ..wire.job_messages import JobCancel, JobSubmit, JobSubscribe, JobSubscribed, LeaseConstraints
from ..wire.jsontext import JSONValue
from ..wire.session_messages import (
    CREDENTIALS_FEATURE,
    REPLIES_FEATURE,
    SessionBye,
    SessionClose,
    SessionJobs,
    SessionListJobs,
    SessionWelcome,
)
from ..wire.tracecontext import TRACECONTEXT_EXTENSION, TraceContext
from .connecting import Connector
from .job_handle import CancelOutcome, JobHandle
from .listing import JobPages, make_filter
from .reconnect import ConnectionState
from .requests import Request, Slot
from .session import ClientSession

__all__ = ["OFFERED_FEATURES", "Client"]

logger = logging.getLogger("arcp_trio.client")

T = TypeVar("T")

OFFERED_FEATURES = (
    "heartbeat",
    "ack",
    "list_jobs",
    "subscribe",
    "lease_expires_at",
    "cost.budget",
    "model.use",
    CREDENTIALS_FEATURE,
    "progress",
    "result_chunk",
    "agent_versions",
    REPLIES_FEATURE,
)
"""What this client implements of :data:`arcp_trio.wire.session_messages.FEATURES`."""

_MAX_RUNTIME_WARNING = 24 * 86400
_TRACE_ID = re.compile(r"[0-9a-f]{32}")


def _check_submit(lease_request: Mapping[str, Sequence[str]] | None, trace_id: str | None) -> None:
    """Refuse what would be sent as something else than was meant."""
    for namespace, patterns in (lease_request or {}).items():
        if isinstance(patterns, str):
            # A sequence of strings too: of its characters, "*" and "/" among them.
            raise InvalidRequestError(f"lease_request.{namespace}: expected a list of patterns, got a string")
    if trace_id is not None and not (_TRACE_ID.fullmatch(trace_id) and trace_id.strip("0")):
        # Runtimes drop such a one, and give the job another (P5.8).
        raise InvalidRequestError(f"trace_id: expected 32 lower-case hex digits, not all 0, got {trace_id[:50]!r}")


class Client:
    """A session; made by what :mod:`arcp_trio.client.opening` has, or by ``runtime.open_session``.

    It goes on while its connections come and go, where it can connect again (:class:`~arcp_trio.Reconnect`). A call
    that is made meanwhile waits for the next connection. What was asked when a connection broke is answered
    behind the next one or fails; a submit is sent again only with its idempotency key.
    """

    def __init__(self, session: ClientSession, connector: Connector) -> None:
        self._session = session
        self._connector = connector
        self._limits = session.limits
        self._slots = trio.Semaphore(session.limits.requests)
        self._one_at_a_time = trio.Lock()
        # The jobs that are being subscribed to: a second call waits for the first.
        self._joining: dict[str, trio.Event] = {}

    def __repr__(self) -> str:
        link = self._session.link
        where = "nowhere" if link is None else link.transport.description
        return f"<Client {self.session_id} {self.state.phase}, {where}>"

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._session.session_id

    @property
    def features(self) -> frozenset[str]:
        """What was negotiated."""
        return self._session.features

    @property
    def welcome(self) -> SessionWelcome:
        """The runtime's whole welcome; the last one, after a resume."""
        return self._session.welcome

    @property
    def state(self) -> ConnectionState:
        """How the client is connected."""
        return self._connector.state

    # --- jobs ---------------------------------------------------------------------------------------

    async def submit(
        self,
        agent: str,
        input: JSONValue = None,  # noqa: A002  # the protocol's name
        *,
        lease_request: Mapping[str, Sequence[str]] | None = None,
        expires_at: str | None = None,
        idempotency_key: str | None = None,
        max_runtime_sec: float | None = None,
        trace_id: str | None = None,
    ) -> JobHandle:
        """Submit a job and return its handle once the runtime has accepted it (P7.1).

        Args:
            agent: ``name`` or ``name@version``.
            input: Any JSON value; ``None`` is sent as ``{}``, as some runtimes insist on an input (D28).
            lease_request: Namespaces, each with a list of its patterns (section 9).
            expires_at: The lease's end, RFC 3339 in UTC.
            idempotency_key: Makes a repetition find the same job, on runtimes that keep keys; with one the
                request survives the loss of its connection.
            max_runtime_sec: Seconds after which the job ends as timed out.
            trace_id: 32 lower-case hex digits, not all 0 (P5.8); ``None`` takes that of the active span of
                OpenTelemetry, which becomes the job's parent, and mints one where there is none.

        Raises:
            ARCPError: The runtime refused it: the class that the code names.
            InvalidRequestError: The input is not JSON, or an argument has not the form above.
            MessageTooLargeError: The request is larger than a frame may be.
            ConnectionLostError: The connection was lost before the answer, and without a key the request is not
                repeated; or the session was lost. The job may run.
            ResumeWindowExpiredError: The session was lost, because the runtime did not resume it.

        Cancellation: the request may have been sent, and the job may run without a handle.
        """
        _check_submit(lease_request, trace_id)
        submit = JobSubmit(
            agent=agent,
            # One peer insists on an input (D28).
            input={} if input is None else input,
            lease_request={name: tuple(patterns) for name, patterns in lease_request.items()}
            if lease_request
            else None,
            lease_constraints=LeaseConstraints(expires_at=expires_at) if expires_at else None,
            idempotency_key=idempotency_key,
            max_runtime_sec=max_runtime_sec,
        )
        if max_runtime_sec is not None and max_runtime_sec > _MAX_RUNTIME_WARNING:
            logger.warning("max_runtime_sec is over 24 days: some runtimes end such a job at once (D55)")
        session = self._session
        active = self._active_trace(trace_id)
        handle = JobHandle(self, self._limits, active.trace_id if active else trace_id or session.ids.trace())
        slot: Slot[JobHandle] = Slot()
        request = self._request(
            "job.submit",
            submit,
            slot,
            handle=handle,
            trace_id=handle.trace_id,
            extensions={TRACECONTEXT_EXTENSION: active.headers()} if active else None,
            repeatable=idempotency_key is not None,
        )
        async with self._slots, self._turn():
            session.pending.submits[request.request_id] = request
            try:
                session.ask(request)
                return await slot.wait()
            finally:
                session.pending.submits.pop(request.request_id, None)
                if not slot.is_set:
                    session.pending.left.append(handle.trace_id)

    def _active_trace(self, trace_id: str | None) -> TraceContext | None:
        """Return the operation in which a submit is made, if its trace is the one that was asked for."""
        active = active_context()
        if active is None or trace_id not in (None, active.trace_id):
            return None
        pending = self._session.pending
        if trace_id is None and not pending.correlates and active.trace_id in pending.left:
            # The acceptance of the submit before could be taken for this one's: only the trace tells them apart.
            return None
        return active

    async def _cancel(self, handle: JobHandle, reason: str) -> CancelOutcome:
        if handle.terminal is not None and not self._session.replies:
            # Such a runtime answers a late cancel with silence, or with an error for another job.
            await trio.lowlevel.checkpoint()
            return CancelOutcome(applied=False, status=handle.status)
        return await self.cancel_job(handle.job_id, reason, handle)

    async def cancel_job(
        self, job_id: str, reason: str = "cancelled by the client", handle: JobHandle | None = None
    ) -> CancelOutcome:
        """Ask for the end of a job by its id; see :meth:`JobHandle.cancel`.

        A runtime lets only the session that submitted a job cancel it (spec 7.4), so this serves those that
        are laxer, and jobs of this session whose handle was dropped.

        Args:
            job_id: The job.
            reason: Why.
            handle: The job's handle, if there is one: its end is an answer too.

        Raises:
            PermissionDeniedError: This session may not cancel the job.
            JobNotFoundError: The runtime does not know the job, or not for this principal.
            InvalidRequestError: ``job_id`` is empty.
            InternalError: The runtime answered nothing within ``ClientLimits.cancel_seconds``.
            ConnectionLostError: The session was lost before the answer.
            ResumeWindowExpiredError: So it was, because the runtime did not resume it.

        Cancellation: the request may have been sent.
        """
        if not job_id:
            raise InvalidRequestError("job_id: expected the id of a job, got an empty string")
        session = self._session
        handle = handle or session.jobs.get(job_id) or JobHandle(self, self._limits, "")
        handle.job_id = handle.job_id or job_id
        slot: Slot[CancelOutcome] = Slot()
        # One peer wants the id on the envelope, another in the payload, and a reason that is not empty (D40).
        message = JobCancel(job_id=job_id, reason=reason or "cancelled by the client")
        request = self._request(
            "job.cancel", message, slot, handle=handle, job_id=job_id, trace_id=handle.trace_id or None
        )
        async with self._slots:
            session.pending.cancels[request.request_id] = request
            try:
                session.ask(request)
                return await self._answer(request, f"the cancel of {job_id}", self._limits.cancel_seconds)
            finally:
                session.pending.cancels.pop(request.request_id, None)

    async def subscribe(self, job_id: str, *, history: bool = False, from_event_seq: int | None = None) -> JobHandle:
        """Follow a job that another session submitted, of the same principal unless the runtime allows more (P7.17).

        The handle's :meth:`~JobHandle.events` begin with the first event after the subscription, or after
        ``from_event_seq``, and end with the job or :meth:`~JobHandle.unsubscribe`. A job that has ended ends at once.
        A streamed result is one only with its first chunk; else :meth:`~JobHandle.result` raises InternalError.
        For a job that this client already follows, the handle is returned and nothing is asked.

        Args:
            job_id: The job.
            history: Whether to begin with the events that the runtime still has. Where they do not reach back so far,
                ``handle.subscribed.truncated_before`` says from which on they do.
            from_event_seq: With ``history``: only those after this one, by the job's own count (P7.18); ``None`` for
                all.

        Raises:
            JobNotFoundError: The runtime does not know the job, or not for this principal.
            PermissionDeniedError: This principal may not follow it.
            InvalidRequestError: The runtime did not negotiate ``subscribe``, or ``job_id`` is empty.
            InternalError: The runtime answered nothing within ``ClientLimits.answer_seconds``.
            ConnectionLostError: The session was lost before the answer.
            ResumeWindowExpiredError: So it was, because the runtime did not resume it.

        Cancellation: the job is not followed.
        """
        self._check_negotiated("subscribe")
        if not job_id:
            raise InvalidRequestError("job_id: expected the id of a job, got an empty string")
        session = self._session
        while (joining := self._joining.get(job_id)) is not None:
            await joining.wait()
        if job_id in session.jobs:
            await trio.lowlevel.checkpoint()
            return session.jobs[job_id]
        self._joining[job_id] = trio.Event()
        try:
            return await self._join(JobSubscribe(job_id=job_id, history=history, from_event_seq=from_event_seq))
        finally:
            self._joining.pop(job_id).set()

    async def _join(self, message: JobSubscribe) -> JobHandle:
        session = self._session
        assert message.job_id is not None
        handle = JobHandle(self, self._limits, "")
        handle._start_to_join(message.job_id)  # noqa: SLF001
        slot: Slot[JobSubscribed] = Slot()
        request = self._request("job.subscribe", message, slot, handle=handle, job_id=message.job_id)
        joined = False
        async with self._slots, self._turn():
            session.pending.subscribes[request.request_id] = request
            session.follow(handle)
            try:
                session.ask(request)
                await self._answer(request, f"the subscription to {message.job_id}", self._limits.answer_seconds)
                joined = True
            finally:
                session.pending.subscribes.pop(request.request_id, None)
                # Where its acceptance has come it is a child of a job of ours, and followed whatever is answered.
                if slot.failed and handle.is_subscription:
                    session.drop(handle)
                elif not joined and handle.is_subscription:
                    # Nobody will read what the runtime may send from now on.
                    session.unsubscribe(handle)
        return handle

    def list_jobs(
        self,
        *,
        status: str | Collection[str] | None = None,
        agent: str | None = None,
        created_after: str | None = None,
        limit: int | None = None,
    ) -> JobPages:
        """Iterate over the jobs that this principal may see, oldest first, page by page (P6.19).

        ``async for page in client.list_jobs(status="running")``: each page is a tuple of :class:`~arcp_trio.JobEntry`;
        the next one is asked for when it is wanted. A page may be empty.

        Args:
            status: Only those in this state, or in one of these: ``pending``, ``running``, ``success``, ``error``,
                ``cancelled``, ``timed_out``; ``None`` and an empty collection leave it open.
            agent: Only those of this agent: ``name`` for all its versions, or ``name@version``.
            created_after: Only those created later, RFC 3339 in UTC.
            limit: How many a page has at most; ``None`` leaves it to the runtime.

        Raises:
            InvalidRequestError: The runtime did not negotiate ``list_jobs``; while iterating: it refuses an argument.
            InternalError: While iterating: it answered nothing within ``ClientLimits.answer_seconds``.
            ConnectionLostError: While iterating: the session was lost before the answer.
            ResumeWindowExpiredError: While iterating: so it was, because the runtime did not resume it.

        Cancellation: of an iteration: the same page is asked for by the next one.
        """
        self._check_negotiated("list_jobs")
        return JobPages(self._list, SessionListJobs(filter=make_filter(status, agent, created_after), limit=limit))

    async def _list(self, message: SessionListJobs) -> SessionJobs:
        session = self._session
        slot: Slot[SessionJobs] = Slot()
        request = self._request("session.list_jobs", message, slot)
        async with self._slots, self._turn():
            session.pending.listings[request.request_id] = request
            try:
                session.ask(request)
                return await self._answer(request, "the listing", self._limits.answer_seconds)
            finally:
                session.pending.listings.pop(request.request_id, None)

    # --- requests -----------------------------------------------------------------------------------

    def _check_negotiated(self, feature: str) -> None:
        if feature not in self.features:
            raise InvalidRequestError(f"this runtime has not negotiated {feature!r}: it cannot be asked for that")

    def _request(
        self,
        frame_type: str,
        message: object,
        slot: Slot[T],
        *,
        handle: JobHandle | None = None,
        repeatable: bool = True,
        job_id: str | None = None,
        trace_id: str | None = None,
        extensions: Mapping[str, JSONValue] | None = None,
    ) -> Request[T]:
        encode: Callable[[str], bytes] = partial(
            self._session.encode, frame_type, message, job_id=job_id, trace_id=trace_id, extensions=extensions
        )
        return Request(encode, self._session.ids.message(), slot, handle=handle, repeatable=repeatable)

    def _turn(self) -> Any:
        """Wait for each other until the runtime has shown that its refusals name what they refuse (D31)."""
        return nullcontext() if self._session.pending.correlates else self._one_at_a_time

    async def _answer(self, request: Request[T], what: str, seconds: float) -> T:
        """Wait for an answer, which some runtimes do not give: for a bounded time with one connection."""
        while True:
            link = request.link
            with trio.move_on_after(seconds):
                return await request.slot.wait()
            if link is not None and link is self._session.link:
                raise InternalError(f"the runtime did not answer {what}")

    def _unsubscribe(self, handle: JobHandle) -> None:
        self._session.unsubscribe(handle)

    # --- closing ------------------------------------------------------------------------------------

    async def _say_goodbye(self) -> None:
        """Close politely: the specification's verb, then the one that others know (X8)."""
        session = self._session
        self._connector.close()
        link = session.link
        if link is None:
            # Nobody to say it to: the session waits for its window, its jobs go on.
            return
        with trio.move_on_after(self._limits.close_seconds, shield=True):
            session.acknowledge_all()
            session.closed_answer = trio.Event()
            session.say("session.close", SessionClose(reason="client.close"))
            with trio.move_on_after(self._limits.close_seconds / 2):
                await session.closed_answer.wait()
            session.say("session.bye", SessionBye(reason="client.close"))
            # A close would overtake what is not written yet.
            await link.flush()
            await link.transport.aclose(CloseCode.NORMAL, "client.close")
