"""A session with a runtime, over any transport.

Theory of operation. One task reads and never stops: it decodes, finds whom a frame is for, and hands it
over synchronously. One task writes. A call registers what it waits for before its request is sent, so an
answer cannot come too early. Answers are matched by the request's id wherever a runtime writes it; against
one that writes none, by trace and then by order (interop.md, section 3).
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import trio

from .._version import __version__
from ..limits import ClientLimits
from ..transports.base import CloseCode, Transport, TransportClosedError
from ..transports.writer import FrameWriter
from ..wire.codec import encode_payload, read_message
from ..wire.envelope import Envelope, decode_envelope, encode_envelope
from ..wire.errors import (
    ARCPError,
    ConnectionLostError,
    InternalError,
    InvalidRequestError,
    MalformedFrameError,
    MessageTooLargeError,
    error_from_wire,
)
from ..wire.ids import IdFactory
from ..wire.job_messages import (
    JobAccepted,
    JobCancel,
    JobCancelled,
    JobError,
    JobEvent,
    JobResult,
    JobSubmit,
    LeaseConstraints,
    Reply,
)
from ..wire.jsontext import JSONValue
from ..wire.session_messages import (
    REPLIES_FEATURE,
    Auth,
    ClientCapabilities,
    Peer,
    SessionBye,
    SessionClose,
    SessionError,
    SessionHello,
    SessionPing,
    SessionPong,
    SessionWelcome,
)
from ..wire.timestamps import WallClock
from .job_handle import CancelOutcome, JobHandle

__all__ = ["Client"]

logger = logging.getLogger("arcp_trio.client")

T = TypeVar("T")

OFFERED_FEATURES = (
    "lease_expires_at",
    "cost.budget",
    "model.use",
    "progress",
    "result_chunk",
    "agent_versions",
    REPLIES_FEATURE,
)
"""What this client implements of :data:`arcp_trio.wire.session_messages.FEATURES`."""

_MAX_RUNTIME_WARNING = 24 * 86400
# A session.error that answers nothing and has one of these ends the connection (P12.2).
_FATAL_CODES = frozenset({"UNAUTHENTICATED", "HEARTBEAT_LOST", "RESUME_WINDOW_EXPIRED"})


class _Slot(Generic[T]):
    """Where an answer is put. Putting is synchronous and tolerates a caller who has left."""

    __slots__ = ("_error", "_event", "_value")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._value: T | None = None
        self._error: ARCPError | None = None

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def put(self, value: T) -> None:
        if not self._event.is_set():
            self._value = value
            self._event.set()

    def fail(self, error: ARCPError) -> None:
        if not self._event.is_set():
            self._error = error
            self._event.set()

    async def wait(self) -> T:
        await self._event.wait()
        if self._error is not None:
            # One error may fail many calls: raised twice, an exception grows a traceback of both.
            raise copy(self._error)
        assert self._value is not None
        return self._value


class Client:
    """A session; made by what :mod:`arcp_trio.client.opening` has, or by ``runtime.open_session``.

    Attributes:
        session_id: The session's id.
        features: What was negotiated.
        welcome: The runtime's whole welcome.
    """

    def __init__(self, transport: Transport, *, limits: ClientLimits, ids: IdFactory, clock: WallClock) -> None:
        self._transport = transport
        self._limits = limits
        self._ids = ids
        self._clock = clock
        self.session_id = ids.session()
        self.features: frozenset[str] = frozenset()
        self.welcome = SessionWelcome()
        self._outbox: deque[bytes] = deque()
        self._writer = FrameWriter(
            transport, self, batch_bytes=limits.write_batch_bytes, write_seconds=limits.write_seconds
        )
        self._jobs: dict[str, JobHandle] = {}
        # The files of results that were too large for memory: deleted on closing, where nobody has moved them.
        self._result_files: list[Path] = []
        self._submits: OrderedDict[str, tuple[JobHandle, _Slot[JobHandle]]] = OrderedDict()
        self._cancels: dict[str, tuple[JobHandle, _Slot[CancelOutcome]]] = {}
        self._early: OrderedDict[str, list[tuple[Envelope, int]]] = OrderedDict()
        self._early_frames = 0
        self._slots = trio.Semaphore(limits.requests)
        # Until a runtime has shown that its answers name their request, also those that refuse, one submit at
        # a time (D31).
        self._correlates = False
        # Traces of submits whose callers have left: their answers are nobody's.
        self._left: deque[str] = deque(maxlen=limits.requests)
        self._one_at_a_time = trio.Lock()
        self._accepts_late = False
        self._closed_answer = trio.Event()
        self._written = trio.Event()
        self._lost: ARCPError | None = None
        self._connection_error: ARCPError | None = None
        self._malformed = 0

    def __repr__(self) -> str:
        return f"<Client {self.session_id} {self._transport.description}>"

    # --- for users ----------------------------------------------------------------------------------

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
            input: Any JSON value.
            lease_request: Namespaces and their patterns (section 9).
            expires_at: The lease's end, RFC 3339 in UTC.
            idempotency_key: Makes a repetition find the same job, on runtimes that keep keys.
            max_runtime_sec: Seconds after which the job ends as timed out.
            trace_id: 32 lower-case hex digits; ``None`` mints one.

        Raises:
            ARCPError: The runtime refused it: the class that the code names.
            InvalidRequestError: The input is not JSON.
            MessageTooLargeError: The request is larger than a frame may be.
            ConnectionLostError: The connection ended before the answer; the job may run.

        Cancellation: the request may have been sent, and the job may run without a handle.
        """
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
        handle = JobHandle(self, self._limits, trace_id or self._ids.trace())
        request_id = self._ids.message()
        frame = self._encode("job.submit", submit, request_id, trace_id=handle.trace_id)
        async with self._slots:
            if self._correlates:
                return await self._send_submit(request_id, frame, handle)
            async with self._one_at_a_time:
                return await self._send_submit(request_id, frame, handle)

    async def _send_submit(self, request_id: str, frame: bytes, handle: JobHandle) -> JobHandle:
        slot: _Slot[JobHandle] = _Slot()
        self._submits[request_id] = (handle, slot)
        try:
            self._send(frame)
            return await slot.wait()
        finally:
            self._submits.pop(request_id, None)
            if not slot.is_set:
                self._left.append(handle.trace_id)

    async def _cancel(self, handle: JobHandle, reason: str) -> CancelOutcome:
        if handle.terminal is not None and REPLIES_FEATURE not in self.features:
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
            ConnectionLostError: The connection ended before the answer.

        Cancellation: the request may have been sent.
        """
        if not job_id:
            raise InvalidRequestError("job_id: expected the id of a job, got an empty string")
        handle = handle or self._jobs.get(job_id) or JobHandle(self, self._limits, "")
        slot: _Slot[CancelOutcome] = _Slot()
        request_id = self._ids.message()
        # One peer wants the id on the envelope, another in the payload, and a reason that is not empty (D40).
        frame = self._encode(
            "job.cancel",
            JobCancel(job_id=job_id, reason=reason or "cancelled by the client"),
            request_id,
            job_id=job_id,
        )
        handle.job_id = handle.job_id or job_id
        async with self._slots:
            self._cancels[request_id] = (handle, slot)
            try:
                self._send(frame)
                with trio.move_on_after(self._limits.cancel_seconds):
                    return await slot.wait()
            finally:
                del self._cancels[request_id]
        raise InternalError(f"the runtime did not answer the cancel of {job_id}")

    # --- sending ------------------------------------------------------------------------------------

    def _encode(
        self,
        frame_type: str,
        message: object,
        message_id: str,
        *,
        job_id: str | None = None,
        trace_id: str | None = None,
    ) -> bytes:
        try:
            payload = encode_payload(message)
        except ValueError as exc:
            raise InvalidRequestError(f"{frame_type}: {exc}") from None
        frame = encode_envelope(
            frame_type,
            payload,
            message_id=message_id,
            timestamp=self._clock.timestamp(),
            session_id=self.session_id,
            job_id=job_id,
            trace_id=trace_id,
        )
        if len(frame) > self._limits.send_bytes:
            raise MessageTooLargeError(
                f"{frame_type}: {len(frame)} bytes; a frame has at most {self._limits.send_bytes}"
            )
        return frame

    def _send(self, frame: bytes) -> None:
        if self._lost is not None:
            raise copy(self._lost)
        self._outbox.append(frame)
        self._writer.wake()

    def take(self, limit: int) -> list[bytes]:
        """Hand frames to the writer."""
        frames: list[bytes] = []
        size = 0
        while self._outbox and size < limit:
            frames.append(self._outbox.popleft())
            size += len(frames[-1])
        return frames

    # --- receiving ----------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _read(self, frames: Sequence[bytes | str]) -> None:
        """Read until the connection ends. Nothing in here waits for a consumer."""
        try:
            while True:
                for frame in frames:
                    self._receive(frame)
                frames = await self._transport.receive()
        except TransportClosedError as exc:
            self._lose(self._connection_error or ConnectionLostError(f"the connection has ended: {exc}"))
        except Exception as exc:
            # A bug in here ends the session and says so; it does not leave as a group from the user's block.
            logger.exception("a bug in the reader of %r", self)
            self._lose(ConnectionLostError(f"the client failed: {type(exc).__name__}"))
        finally:
            self._lose(ConnectionLostError("the client was closed"))

    def _lose(self, error: ARCPError) -> None:
        """Fail everything that waits: nothing more will come."""
        if self._lost is not None:
            return
        self._lost = error
        for handle, slot in self._submits.values():
            handle._lose(error)  # noqa: SLF001
            slot.fail(error)
        for _, cancel_slot in self._cancels.values():
            cancel_slot.fail(error)
        for handle in self._jobs.values():
            handle._lose(error)  # noqa: SLF001
            handle._discard()  # noqa: SLF001
        self._jobs.clear()
        self._closed_answer.set()
        self._writer.finish()

    def _receive(self, text: bytes | str) -> None:
        try:
            envelope = decode_envelope(text, strict=False)
            handler = self._HANDLERS.get(envelope.type)
            if handler is None:
                logger.debug("ignored a message of type %.50r", envelope.type)
            else:
                handler(self, envelope, len(text))
            self._malformed = 0
        except InvalidRequestError as exc:
            # What cannot be read concerns nobody that can be found; the session goes on (P5.4).
            logger.warning("ignored a frame: %s", exc.message)
            if isinstance(exc, MalformedFrameError):
                self._malformed += 1
                if self._malformed >= self._limits.malformed_in_a_row:
                    raise TransportClosedError(
                        CloseCode.POLICY, f"{self._malformed} frames in a row were no envelopes"
                    ) from None

    def _on_event(self, envelope: Envelope, size: int) -> None:
        handle = self._handle_of(envelope, size)
        if handle is not None:
            event = read_message(envelope, JobEvent)
            handle._receive(event, envelope.event_seq, envelope.job_seq, size)  # noqa: SLF001

    def _on_result(self, envelope: Envelope, size: int) -> None:
        handle = self._handle_of(envelope, size)
        if handle is not None:
            self._end(handle, read_message(envelope, JobResult))

    def _on_job_error(self, envelope: Envelope, size: int) -> None:
        error = read_message(envelope, JobError)
        if self._refuse_by_id(envelope, error):
            return
        handle = self._jobs.get(error.job_id or "")
        if self._refuse_by_job(envelope, error, handle):
            return
        if handle is not None:
            self._end(handle, error)
        else:
            self._keep_early(error.job_id or "", envelope, size)

    def _end(self, handle: JobHandle, terminal: JobResult | JobError) -> None:
        handle._end(terminal)  # noqa: SLF001
        self._jobs.pop(handle.job_id, None)
        path = handle._kept_file()  # noqa: SLF001
        if path is not None:
            self._result_files.append(path)
        if REPLIES_FEATURE in self.features:
            # The runtime answers each cancel, behind the terminal event.
            return
        for waiting, slot in self._cancels.values():
            if waiting is handle:
                # Some runtimes acknowledge no cancel: how the job ended tells what became of it.
                applied = handle.status == "cancelled"
                slot.put(CancelOutcome(applied=applied, status=handle.status))

    def _handle_of(self, envelope: Envelope, size: int) -> JobHandle | None:
        job_id = envelope.job_id or envelope.payload.get("job_id")
        if not isinstance(job_id, str):
            return None
        handle = self._jobs.get(job_id)
        if handle is None:
            self._keep_early(job_id, envelope, size)
        return handle

    def _keep_early(self, job_id: str, envelope: Envelope, size: int) -> None:
        """Keep a frame of a job that is not accepted yet, if one may still be (D32)."""
        if not self._submits:
            return
        if self._early_frames < self._limits.early_frames:
            self._early.setdefault(job_id, []).append((envelope, size))
            self._early_frames += 1
        elif envelope.type != "job.event" and job_id in self._early:
            # An event can be missed, the end cannot: the job would seem to run for ever.
            self._early[job_id][-1] = (envelope, size)

    def _on_accepted(self, envelope: Envelope, _: int) -> None:
        accepted = read_message(envelope, JobAccepted)
        request_id = self._submit_of(accepted, envelope)
        if request_id is None:
            logger.debug("ignored the acceptance of %.64r: no submit waits for it", accepted.job_id)
            return
        handle, slot = self._submits.pop(request_id)
        if accepted.job_id in self._jobs:
            # The same job again, for a repeated submit: both calls get the one handle.
            slot.put(self._jobs[accepted.job_id])
            return
        handle._accept(accepted)  # noqa: SLF001
        self._jobs[accepted.job_id] = handle
        slot.put(handle)
        early = self._early.pop(accepted.job_id, [])
        self._early_frames -= len(early)
        for frame, size in early:
            self._HANDLERS[frame.type](self, frame, size)
        if not self._submits:
            # Nobody is left for whom the rest could have been early.
            self._early.clear()
            self._early_frames = 0

    def _submit_of(self, accepted: JobAccepted, envelope: Envelope) -> str | None:
        """Find the submit that an acceptance answers: by id, by trace, by order."""
        named = {accepted.request_id, accepted.reply_to, envelope.correlation_id} - {None}
        for request_id in named:
            if request_id in self._submits:
                # One runtime names requests here and not where it refuses them: request_id alone shows nothing.
                self._correlates |= request_id in (accepted.reply_to, envelope.correlation_id)
                return request_id
        trace_id = accepted.trace_id or envelope.trace_id
        if named or accepted.parent_job_id is not None:
            return None
        for request_id, (handle, _) in self._submits.items():
            if trace_id is not None and handle.trace_id == trace_id:
                return request_id
        if trace_id is not None and trace_id in self._left:
            self._left.remove(trace_id)
            return None
        return next(iter(self._submits), None)

    def _on_cancelled(self, envelope: Envelope, _: int) -> None:
        cancelled = read_message(envelope, JobCancelled)
        outcome = CancelOutcome(applied=True, status="cancelled")
        for request_id in (cancelled.request_id, cancelled.reply_to, envelope.correlation_id):
            waiting = self._cancels.get(request_id or "")
            if waiting is not None:
                waiting[1].put(outcome)
                return
        for handle, slot in self._cancels.values():
            if handle.job_id == cancelled.job_id and not slot.is_set:
                slot.put(outcome)
                return

    def _on_reply(self, envelope: Envelope, _: int) -> None:
        reply = read_message(envelope, Reply)
        waiting = self._cancels.get(reply.request_id)
        if waiting is not None:
            waiting[1].put(CancelOutcome(applied=reply.applied, status=reply.job_status))

    # --- refusals -----------------------------------------------------------------------------------

    def _on_session_error(self, envelope: Envelope, _: int) -> None:
        error = read_message(envelope, SessionError)
        if self._refuse_by_id(envelope, error):
            return
        if error.code in _FATAL_CODES:
            self._connection_error = self._exception(error)
            return
        names_nothing = error.request_id is None and error.reply_to is None
        if names_nothing and self._refuse_by_elimination(error):
            return
        if not self._submits and not self._cancels:
            # The answer of a runtime that knows no session.close, or to a caller who has left; only a
            # fault that names no request can be the reason why the runtime will close.
            if names_nothing and error.code == "INTERNAL_ERROR":
                self._connection_error = self._exception(error)
            self._closed_answer.set()
        logger.info("the runtime reports %s: %s", error.code, error.message)

    @staticmethod
    def _exception(error: SessionError | JobError) -> ARCPError:
        return error_from_wire(error.code, error.message, retryable=error.retryable, details=error.details)

    def _refuse_by_id(self, envelope: Envelope, error: SessionError | JobError) -> bool:
        for request_id in (error.request_id, error.reply_to, envelope.correlation_id, envelope.id):
            waiting = self._submits.get(request_id or "") or self._cancels.get(request_id or "")
            if waiting is not None:
                waiting[1].fail(self._exception(error))
                self._correlates = True
                return True
        return False

    def _refuse_by_elimination(self, error: SessionError) -> bool:
        """Find the one request that an error can answer which names none: never a running job (D15)."""
        submits: list[_Slot[Any]] = [slot for _, slot in self._submits.values() if not slot.is_set]
        cancels: list[_Slot[Any]] = [slot for _, slot in self._cancels.values() if not slot.is_set]
        # Our cancels are well formed: what refuses one is that its job is unknown.
        first, second = (cancels, submits) if error.code == "JOB_NOT_FOUND" else (submits, cancels)
        slots = first or second
        if len(slots) != 1:
            return False
        slots[0].fail(self._exception(error))
        return True

    def _refuse_by_job(self, envelope: Envelope, error: JobError, handle: JobHandle | None) -> bool:
        """Recognise a job.error that refuses a request without naming it, as one runtime writes it (X4, D34).

        That runtime leaves the trace out exactly where it refuses; what ends a job has the job's.
        """
        if envelope.trace_id is not None or self._accepts_late:
            return False
        refuses_cancel = error.code in ("JOB_NOT_FOUND", "PERMISSION_DENIED")
        if refuses_cancel and self._refuse_cancel_of(error.job_id or "", error):
            return True
        if handle is not None and error.code != "DUPLICATE_KEY":
            return False
        # The answer to a cancel whose caller has left is no answer to a submit.
        return error.code == "JOB_NOT_FOUND" or self._refuse_oldest_submit(error)

    def _refuse_cancel_of(self, job_id: str, error: JobError) -> bool:
        for handle, slot in self._cancels.values():
            if handle.job_id == job_id and not slot.is_set:
                if handle.terminal is not None:
                    slot.put(CancelOutcome(applied=False, status=handle.status))
                else:
                    slot.fail(self._exception(error))
                return True
        return False

    def _refuse_oldest_submit(self, error: JobError) -> bool:
        for _, slot in self._submits.values():
            if not slot.is_set:
                slot.fail(self._exception(error))
                return True
        return False

    # --- the rest -----------------------------------------------------------------------------------

    def _on_ping(self, envelope: Envelope, _: int) -> None:
        ping = read_message(envelope, SessionPing)
        pong = SessionPong(ping_nonce=ping.nonce, received_at=self._clock.timestamp())
        # Past the bound, pings come faster than the runtime reads our answers: it does not need more.
        if self._lost is None and len(self._outbox) < self._limits.requests:
            self._send(self._encode("session.pong", pong, self._ids.message()))

    def _on_closed(self, _: Envelope, __: int) -> None:
        self._closed_answer.set()

    _HANDLERS: ClassVar[Mapping[str, Callable[[Any, Envelope, int], None]]] = {
        "job.event": _on_event,
        "job.result": _on_result,
        "job.error": _on_job_error,
        "job.accepted": _on_accepted,
        "job.cancelled": _on_cancelled,
        "x-arcp-trio.reply": _on_reply,
        "session.error": _on_session_error,
        "session.ping": _on_ping,
        "session.closed": _on_closed,
        "session.bye": _on_closed,
    }

    # --- opening and closing ------------------------------------------------------------------------

    async def _shake_hands(self, token: str, name: str) -> Sequence[bytes | str]:
        """Send hello, take the welcome; return what came behind it."""
        hello = SessionHello(
            client=Peer(name=name, version=__version__, kind="arcp-trio"),
            client_name=name,
            client_version=__version__,
            auth=Auth(token=token),
            capabilities=ClientCapabilities(encodings=("json",), features=OFFERED_FEATURES),
        )
        await self._transport.send([self._encode("session.hello", hello, self._ids.message())])
        early: list[bytes | str] = []
        while True:
            frames = await self._transport.receive()
            for index, frame in enumerate(frames):
                envelope: Envelope | None = None
                # What is no envelope is left to the reader, which ignores and counts it (P5.4).
                with suppress(MalformedFrameError):
                    envelope = decode_envelope(frame, strict=False)
                if envelope is not None and envelope.type == "session.welcome":
                    self._welcomed(read_message(envelope, SessionWelcome), envelope)
                    return [*early, *frames[index + 1 :]]
                if envelope is not None and envelope.type in ("session.error", "session.rejected", "job.error"):
                    raise self._exception(read_message(envelope, SessionError))
                if len(early) < self._limits.early_frames:
                    early.append(frame)

    def _welcomed(self, welcome: SessionWelcome, envelope: Envelope) -> None:
        self.welcome = welcome
        self.session_id = welcome.session_id or self.session_id
        # Some runtimes name all that they have: what counts is what both have (D11).
        self.features = frozenset(OFFERED_FEATURES) & frozenset(welcome.capabilities.features or ())
        self._correlates = REPLIES_FEATURE in self.features
        # The one implementation whose events come before its accepts names itself this way alone (D8, D32).
        self._accepts_late = "runtime_name" in envelope.payload and "runtime" not in envelope.payload

    async def _say_goodbye(self) -> None:
        """Close politely: the specification's verb, then the one that others know (X8)."""
        with trio.move_on_after(self._limits.close_seconds, shield=True):
            if self._lost is None:
                close = SessionClose(reason="client.close")
                self._closed_answer = trio.Event()
                self._send(self._encode("session.close", close, self._ids.message()))
                with trio.move_on_after(self._limits.close_seconds / 2):
                    await self._closed_answer.wait()
            if self._lost is None:
                bye = SessionBye(reason="client.close")
                self._send(self._encode("session.bye", bye, self._ids.message()))
                self._writer.finish()
                # A close would overtake what is not written yet.
                await self._written.wait()
            await self._transport.aclose(CloseCode.NORMAL, "client.close")
