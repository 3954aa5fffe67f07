"""What a client keeps while its connections come and go: its jobs, what it has asked, how far it has read.

Theory of operation. A call registers what it waits for before its request is sent, so an answer cannot come too
early. While there is no connection, requests wait for the next one. After a resume the runtime sends again what was
missed, acceptances and acknowledgements included; requests that change nothing twice are asked again, and a submit
without a key is answered by that replay or, once it is over, fails: it may have been carried out.

Everything in here is synchronous: it happens between two checkpoints of whoever calls it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import attrs
import trio

from ..limits import ClientLimits
from ..timers import Timers
from ..transports.base import CloseCode, TransportClosedError
from ..wire.codec import encode_payload, read_message
from ..wire.envelope import Envelope, decode_envelope, encode_envelope
from ..wire.errors import (
    ARCPError,
    ConnectionLostError,
    InvalidRequestError,
    MalformedFrameError,
    MessageTooLargeError,
    ResumeWindowExpiredError,
)
from ..wire.ids import IdFactory
from ..wire.job_messages import (
    JobAccepted,
    JobCancelled,
    JobError,
    JobEvent,
    JobResult,
    JobSubscribed,
    JobUnsubscribe,
    Reply,
)
from ..wire.jsontext import JSONValue
from ..wire.session_messages import (
    CREDENTIALS_FEATURE,
    REPLIES_FEATURE,
    ResumeRequest,
    SessionAck,
    SessionError,
    SessionJobs,
    SessionPing,
    SessionPong,
    SessionWelcome,
)
from ..wire.timestamps import WallClock
from .acks import Acks
from .job_handle import CancelOutcome, JobHandle
from .link import Link, LinkEnd
from .matching import EarlyFrames, Pending, error_of
from .requests import Outgoing, Request
from .sequence import Sequence, Verdict, numbers_otherwise

__all__ = ["ClientSession"]

logger = logging.getLogger("arcp_trio.client")

T = TypeVar("T")
Described = TypeVar("Described", JobAccepted, JobSubscribed)

# A session.error that answers nothing and has one of these ends the connection (P12.2).
_FATAL_CODES = frozenset({"UNAUTHENTICATED", "HEARTBEAT_LOST", "RESUME_WINDOW_EXPIRED"})


@attrs.define
class _Unsubscribe:
    """A job.unsubscribe, which no runtime answers: what still comes of the job shows that it was lost."""

    outgoing: Outgoing
    link: Link | None


class ClientSession:
    """A session from the client's side.

    Attributes:
        session_id: Its id.
        features: What was negotiated.
        welcome: The last welcome.
        jobs: The handles of jobs that have not ended.
        pending: What was asked and not answered.
        early: Frames of jobs that are not known yet.
        sequence: How far the events were taken.
        link: The connection; ``None`` while there is none.
        lost: Why nothing will come any more; ``None`` while something may.
        result_files: The files of results that were too large for memory: deleted on closing, where nobody has
            moved them.
    """

    def __init__(
        self, *, limits: ClientLimits, ids: IdFactory, clock: WallClock, timers: Timers, offered: frozenset[str]
    ) -> None:
        self.limits = limits
        self.ids = ids
        self._clock = clock
        self._timers = timers
        self._offered = offered
        self.session_id = ids.session()
        self.features: frozenset[str] = frozenset()
        self.welcome = SessionWelcome()
        # Kept as a message whose repr hides the token.
        self._resume: ResumeRequest | None = None
        self.jobs: dict[str, JobHandle] = {}
        self.pending = Pending(limits)
        self.early = EarlyFrames(limits)
        self.sequence = Sequence()
        self.link: Link | None = None
        self.lost: ARCPError | None = None
        self.result_files: list[Path] = []
        self.closed_answer = trio.Event()
        self._acks: Acks | None = None
        self._unsubscribed: OrderedDict[str, _Unsubscribe] = OrderedDict()
        self._malformed = 0

    @property
    def replies(self) -> bool:
        """Whether the runtime answers everything, and remembers messages: it is one of ours."""
        return REPLIES_FEATURE in self.features

    # --- connections --------------------------------------------------------------------------------

    def welcomed(self, envelope: Envelope) -> None:
        """Take the welcome of a new session."""
        self._take_welcome(read_message(envelope, SessionWelcome))
        self.session_id = self.welcome.session_id or self.session_id
        # Some runtimes name all that they have: what counts is what both have (D11).
        self.features = self._offered & frozenset(self.welcome.capabilities.features or ())
        self.pending.correlates = self.replies
        # The one implementation whose events come before its accepts names itself this way alone (D8, D32).
        self.pending.accepts_late = "runtime_name" in envelope.payload and "runtime" not in envelope.payload
        if self.replies:
            self.sequence.hold()
        elif numbers_otherwise(envelope.payload):
            self.sequence.let_go()
        for request in list(self.pending):
            # Asked before it was known which session stands in for the last one: a frame names its session.
            self.pending.renew(request, self.ids.message())
        if "ack" in self.features:
            self._acks = Acks(
                self._timers, self.limits.ack_seconds, last=lambda: self.sequence.last, send=self._send_ack
            )

    def resumed(self, envelope: Envelope) -> None:
        """Take the welcome of a resume.

        Raises:
            ResumeWindowExpiredError: The runtime opened another session instead.
        """
        welcome = read_message(envelope, SessionWelcome)
        if welcome.session_id not in (None, self.session_id):
            raise ResumeWindowExpiredError("the runtime opened another session instead of resuming this one")
        self._take_welcome(welcome)
        if self._acks is not None:
            self._acks.resumed()

    @property
    def holds_nothing(self) -> bool:
        """Whether no job is followed here, so that nothing is missed if the session is not resumed."""
        joining = {request.handle for request in self.pending.subscribes.values()}
        return all(handle in joining for handle in self.jobs.values())

    def forget(self) -> None:
        """Go on with a new session, which the next welcome names; what can be asked twice is asked there."""
        self.session_id = self.ids.session()
        self.sequence = Sequence()
        self._resume = None
        self._acks = None
        self._unsubscribed.clear()
        self._fail_unanswered(None)

    def _take_welcome(self, welcome: SessionWelcome) -> None:
        self.welcome = welcome
        if welcome.resume_token:
            # One implementation does not rotate its tokens.
            self._resume = ResumeRequest(resume_token=welcome.resume_token, last_event_seq=0)

    def resume_request(self) -> ResumeRequest | None:
        """Return what asks for the session behind what was taken; ``None`` where the runtime does not resume."""
        if self._resume is None:
            return None
        return attrs.evolve(self._resume, session_id=self.session_id, last_event_seq=self.sequence.last)

    def attach(self, link: Link) -> None:
        """Use a connection: watch it, and ask again what was not answered."""
        self.link = link
        interval = self.welcome.heartbeat_interval_sec
        if "heartbeat" in self.features and interval is not None:
            bounds = (self.limits.heartbeat_min_seconds, self.limits.heartbeat_max_seconds)
            seconds = min(max(float(interval), bounds[0]), bounds[1])
            link.watch(seconds, ping=self._make_ping, lost=self._heartbeat_lost)
        for request in list(self.pending):
            if request.slot.is_set or not (request.repeatable or not request.may_have_arrived()):
                continue
            if request.may_have_arrived() and not self.replies:
                self.pending.renew(request, self.ids.message())
            self._give(request, link)
        for unsubscribe in self._unsubscribed.values():
            if not unsubscribe.outgoing.taken:
                unsubscribe.link = link
                link.send(unsubscribe.outgoing)

    def detach(self) -> None:
        """Take note that the connection has ended."""
        self.link = None
        if self._acks is not None:
            self._acks.stop()
        if not self.replies:
            # Nothing will say whether it arrived.
            self._fail_unanswered(None)

    def _fail_unanswered(self, link: Link | None) -> None:
        """Fail what may have arrived over another connection and must not be asked again."""
        error = ConnectionLostError("the connection was lost before the answer; the job may run")
        for request in list(self.pending):
            if not request.repeatable and request.link is not link and request.may_have_arrived():
                self.pending.fail(request, error)

    def lose(self, error: ARCPError) -> None:
        """Fail everything that waits: nothing more will come."""
        if self.lost is not None:
            return
        self.lost = error
        self.link = None
        for request in list(self.pending):
            self.pending.fail(request, error)
        for handle in self.jobs.values():
            handle._lose(error)  # noqa: SLF001
            handle._discard()  # noqa: SLF001
        self.jobs.clear()
        self.closed_answer.set()

    # --- sending ------------------------------------------------------------------------------------

    def timestamp(self) -> str:
        """Return the time of day, as the wire writes it."""
        return self._clock.timestamp()

    def encode(
        self,
        frame_type: str,
        message: object,
        message_id: str,
        *,
        job_id: str | None = None,
        trace_id: str | None = None,
        extensions: Mapping[str, JSONValue] | None = None,
    ) -> bytes:
        """Write a frame.

        Raises:
            InvalidRequestError: Something in it is not JSON.
            MessageTooLargeError: It is larger than a frame may be.
        """
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
            extensions=extensions,
        )
        if len(frame) > self.limits.send_bytes:
            raise MessageTooLargeError(
                f"{frame_type}: {len(frame)} bytes; a frame has at most {self.limits.send_bytes}"
            )
        return frame

    def ask(self, request: Request[Any]) -> None:
        """Send a request, now or with the next connection.

        Raises:
            ARCPError: There will be none.
        """
        if self.lost is not None:
            raise copy(self.lost)
        if self.link is not None:
            self._give(request, self.link)

    @staticmethod
    def _give(request: Request[Any], link: Link) -> None:
        request.link = link
        link.send(request.outgoing)

    def say(self, frame_type: str, message: object) -> None:
        """Send what is answered by nobody, if there is a connection."""
        if self.link is not None:
            self.link.send(Outgoing(self.encode(frame_type, message, self.ids.message())))

    def drop(self, handle: JobHandle) -> None:
        """Route nothing to a handle any more."""
        if self.jobs.get(handle.job_id) is handle:
            del self.jobs[handle.job_id]

    def unsubscribe(self, handle: JobHandle) -> None:
        """Follow a job no more."""
        self.drop(handle)
        if self.lost is not None:
            return
        message = JobUnsubscribe(job_id=handle.job_id)
        frame = self.encode("job.unsubscribe", message, self.ids.message(), job_id=handle.job_id)
        unsubscribe = self._unsubscribed[handle.job_id] = _Unsubscribe(Outgoing(frame), self.link)
        if self.link is not None:
            self.link.send(unsubscribe.outgoing)
        while len(self._unsubscribed) > self.limits.requests:
            self._unsubscribed.popitem(last=False)

    def follow(self, handle: JobHandle) -> None:
        """Route the frames of a job to a handle before its subscription is answered: some send them first (D43)."""
        self._unsubscribed.pop(handle.job_id, None)
        self.jobs[handle.job_id] = handle
        if not self.replies:
            # Several runtimes number what is subscribed to by another count.
            self.sequence.let_go()

    def acknowledge_all(self) -> None:
        """Send the last ack, if one is due."""
        if self._acks is not None:
            self._acks.flush()

    def _send_ack(self, number: int) -> None:
        self.say("session.ack", SessionAck(last_processed_seq=number))

    def _make_ping(self) -> bytes:
        ping = SessionPing(nonce=self.ids.ulid(), sent_at=self._clock.timestamp())
        return self.encode("session.ping", ping, self.ids.message())

    def _heartbeat_lost(self) -> LinkEnd:
        reason = "the runtime was silent for two heartbeat intervals"
        error = SessionError(code="HEARTBEAT_LOST", message=reason, retryable=True)
        frame = self.encode("session.error", error, self.ids.message())
        return LinkEnd(code=CloseCode.HEARTBEAT_LOST, reason=reason, last_words=frame)

    # --- receiving ----------------------------------------------------------------------------------

    def receive(self, text: bytes | str) -> None:
        """Take a frame.

        Raises:
            TransportClosedError: Too many in a row were no envelopes.
        """
        try:
            envelope = decode_envelope(text, strict=False)
            if envelope.event_seq is None or self._in_order(envelope, envelope.event_seq):
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
                if self._malformed >= self.limits.malformed_in_a_row:
                    raise TransportClosedError(
                        CloseCode.POLICY, f"{self._malformed} frames in a row were no envelopes"
                    ) from None

    def _in_order(self, envelope: Envelope, number: int) -> bool:
        """Take a number; say whether its frame is to be looked at (P8.3)."""
        handle = self.jobs.get(envelope.job_id or "")
        if handle is not None and handle.is_subscription and not self.replies:
            # Of another count, or of another session's.
            return True
        verdict = self.sequence.take(number, envelope.job_id)
        if verdict is Verdict.NEXT:
            if self._acks is not None:
                self._acks.taken()
            return True
        if verdict is Verdict.REPEATED:
            logger.debug("dropped event %d, which had come before", number)
        elif self.link is not None:
            reason = f"event {self.sequence.missing} is missing: event {number} came where it was expected"
            logger.warning("%s of session %s", reason, self.session_id)
            self.link.give_up(LinkEnd(code=CloseCode.ABNORMAL, reason=reason))
        return False

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
        if self.pending.refuse_by_id(envelope, error):
            return
        handle = self.jobs.get(error.job_id or "")
        if self.pending.refuse_by_job(envelope, error, handle):
            return
        if handle is not None:
            self._end(handle, error)
        elif not self._is_unsubscribed(error.job_id or "") and self.pending.submits:
            self.early.keep(error.job_id or "", envelope, size)

    def _end(self, handle: JobHandle, terminal: JobResult | JobError) -> None:
        handle._end(terminal)  # noqa: SLF001
        self.jobs.pop(handle.job_id, None)
        path = handle._kept_file()  # noqa: SLF001
        if path is not None:
            self.result_files.append(path)
        if not self.replies:
            # Ours answers each cancel, behind the terminal event.
            self.pending.answer_cancels_of(handle)

    def _handle_of(self, envelope: Envelope, size: int) -> JobHandle | None:
        job_id = envelope.job_id or envelope.payload.get("job_id")
        if not isinstance(job_id, str):
            return None
        handle = self.jobs.get(job_id)
        if handle is None and not self._is_unsubscribed(job_id) and self.pending.submits:
            self.early.keep(job_id, envelope, size)
        return handle

    def _is_unsubscribed(self, job_id: str) -> bool:
        """Say whether a job is followed no more; ask for that again where the request was lost with its connection."""
        unsubscribe = self._unsubscribed.get(job_id)
        if unsubscribe is None:
            return False
        if self.link is not None and unsubscribe.link is not self.link:
            unsubscribe.link = self.link
            message = JobUnsubscribe(job_id=job_id)
            unsubscribe.outgoing = Outgoing(self.encode("job.unsubscribe", message, self.ids.message(), job_id=job_id))
            self.link.send(unsubscribe.outgoing)
        return True

    def _on_accepted(self, envelope: Envelope, _: int) -> None:
        accepted = self._with_credentials(read_message(envelope, JobAccepted))
        request = self.pending.take_submit(accepted, envelope)
        known = self.jobs.get(accepted.job_id)
        if request is None:
            self._adopt(accepted, known)
            return
        if known is not None:
            # The same job again, for a repeated submit or one that is subscribed to: all calls get the one handle.
            if known.accepted is None:
                known._accept(accepted)  # noqa: SLF001
            else:
                known._take_credentials(accepted)  # noqa: SLF001
            request.slot.put(known)
            return
        handle = request.handle
        assert handle is not None
        handle._accept(accepted)  # noqa: SLF001
        request.slot.put(handle)
        self._route(handle)
        if not self.pending.submits:
            self.early.clear()

    def _adopt(self, accepted: JobAccepted, known: JobHandle | None) -> None:
        """Take an acceptance that nobody waits for: of a job that one of ours has delegated (P10.1), or of none."""
        parent = self.jobs.get(accepted.parent_job_id or "")
        child = None if parent is None else parent._adopt(accepted, known)  # noqa: SLF001
        if child is None:
            logger.debug("ignored the acceptance of %.64r: no submit waits for it", accepted.job_id)
        elif known is None:
            self._route(child)

    def _route(self, handle: JobHandle) -> None:
        """Give a job's frames to its handle from now on, those first that came before its acceptance."""
        self.jobs[handle.job_id] = handle
        self._unsubscribed.pop(handle.job_id, None)
        for frame, size in self.early.take(handle.job_id):
            self._HANDLERS[frame.type](self, frame, size)

    def _on_cancelled(self, envelope: Envelope, _: int) -> None:
        self.pending.acknowledge_cancel(read_message(envelope, JobCancelled), envelope)

    def _on_reply(self, envelope: Envelope, _: int) -> None:
        reply = read_message(envelope, Reply)
        request = self.pending.cancels.get(reply.request_id)
        if request is not None:
            request.slot.put(CancelOutcome(applied=reply.applied, status=reply.job_status))

    def _on_subscribed(self, envelope: Envelope, _: int) -> None:
        subscribed = self._with_credentials(read_message(envelope, JobSubscribed))
        request = self.pending.subscribe_of(subscribed, envelope)
        if request is not None and request.handle is not None:
            request.handle._join(subscribed)  # noqa: SLF001
            request.slot.put(subscribed)

    def _with_credentials(self, message: Described) -> Described:
        """Return a message with its credentials only where they were negotiated (P6.4)."""
        if message.credentials is None or CREDENTIALS_FEATURE in self.features:
            return message
        return attrs.evolve(message, credentials=None)

    def _on_jobs(self, envelope: Envelope, _: int) -> None:
        page = read_message(envelope, SessionJobs)
        # The handles have them, and drop them at the jobs' ends.
        jobs = tuple(attrs.evolve(entry, credentials=None) for entry in page.jobs)
        self.pending.answer_listing(attrs.evolve(page, jobs=jobs), envelope)

    def _on_replayed(self, _: Envelope, __: int) -> None:
        # Whatever of the connections before this one has no answer by now gets none.
        self._fail_unanswered(self.link)

    def _on_session_error(self, envelope: Envelope, _: int) -> None:
        error = read_message(envelope, SessionError)
        if self.pending.refuse_by_id(envelope, error):
            return
        if error.code in _FATAL_CODES:
            self._note(error)
            return
        names_nothing = error.request_id is None and error.reply_to is None
        if names_nothing and self.pending.refuse_by_elimination(error):
            return
        if not any(True for _ in self.pending):
            # The answer of a runtime that knows no session.close, or to a caller who has left; only a
            # fault that names no request can be the reason why the runtime will close.
            if names_nothing and error.code == "INTERNAL_ERROR":
                self._note(error)
            self.closed_answer.set()
        logger.info("the runtime reports %s: %s", error.code, error.message)

    def _note(self, error: SessionError) -> None:
        if self.link is not None:
            self.link.said = error_of(error)

    def _on_ping(self, envelope: Envelope, _: int) -> None:
        ping = read_message(envelope, SessionPing)
        pong = SessionPong(ping_nonce=ping.nonce, received_at=self._clock.timestamp())
        if self.link is not None:
            self.link.answer_ping(self.encode("session.pong", pong, self.ids.message()))

    def _on_pong(self, _: Envelope, __: int) -> None:
        """Nothing is left to do: that something came is all that it says."""

    def _on_closed(self, _: Envelope, __: int) -> None:
        if self.link is not None:
            self.link.goodbye = True
        self.closed_answer.set()

    _HANDLERS: ClassVar[Mapping[str, Callable[[Any, Envelope, int], None]]] = {
        "job.event": _on_event,
        "job.result": _on_result,
        "job.error": _on_job_error,
        "job.accepted": _on_accepted,
        "job.cancelled": _on_cancelled,
        "job.subscribed": _on_subscribed,
        "x-arcp-trio.reply": _on_reply,
        "x-arcp-trio.replayed": _on_replayed,
        "session.jobs": _on_jobs,
        "session.error": _on_session_error,
        "session.ping": _on_ping,
        "session.pong": _on_pong,
        "session.closed": _on_closed,
        "session.bye": _on_closed,
    }
