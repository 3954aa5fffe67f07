"""What a session's frames ask for, and the answer to each.

Every handler is synchronous: it reads, decides and writes between two checkpoints, so two frames of one
connection, or of two, never see each other half done. A wrong request is answered with what is wrong
with it and changes nothing (P5.5); an error is never answered with an error (P5.4).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol

import attrs

from ..audit import audit
from ..authority.lease import Lease
from ..jobs.actor import JobActor
from ..jobs.credentials import JobCredentials
from ..jobs.spec import JobSpec, check_lease_size, check_max_runtime
from ..records import JobRecord
from ..transports.base import CloseCode
from ..wire.codec import read_message
from ..wire.envelope import Envelope, decode_envelope, encode_tail, speaks_our_version
from ..wire.errors import (
    ARCPError,
    InternalError,
    InvalidRequestError,
    JobNotFoundError,
    MalformedFrameError,
    MalformedPayloadError,
    PermissionDeniedError,
)
from ..wire.job_messages import (
    JobCancel,
    JobCancelled,
    JobSubmit,
    JobSubscribe,
    JobSubscribed,
    JobUnsubscribe,
    LeaseConstraints,
    Reply,
)
from ..wire.session_messages import (
    CREDENTIALS_FEATURE,
    REPLIES_FEATURE,
    SessionAck,
    SessionBye,
    SessionClose,
    SessionClosed,
    SessionListJobs,
    SessionPing,
    SessionPong,
)
from ..wire.tracecontext import TraceContext
from ..wire.withheld import Content
from .acceptance import describe_accepted
from .observation import Visibility
from .replies import Replies
from .retransmissions import Answer
from .services import SessionServices
from .session import Session
from .submission import Submission
from .subscriptions import subscribe, unsubscribe

__all__ = ["RequestConnection", "RequestHandler"]

logger = logging.getLogger("arcp_trio.sessions")

_MAX_KEY = 256
_MAX_REASON = 1_000

# Messages that only a runtime sends: from a client they ask for nothing.
_ERRORS = frozenset({"session.error", "job.error"})
_FEATURE_OF_TYPE = {
    "session.list_jobs": "list_jobs",
    "job.subscribe": "subscribe",
    "job.unsubscribe": "subscribe",
}
# Asked twice, they change nothing the second time: they are answered anew where their answer is not held.
_REPEATABLE = frozenset({"session.list_jobs", "session.ping", "job.subscribe", "job.unsubscribe"})
_FEATURE_OF_NAMESPACE = {"cost.budget": "cost.budget", "model.use": "model.use"}


class RequestConnection(Protocol):
    """What the handlers ask of the connection. Synchronous; never fails."""

    def reply(self, frame: bytes) -> None:
        """Send a frame ahead of the events."""

    def close(self, code: int, reason: str, last: bytes | None = None) -> None:
        """End the connection: flush, send ``last``, close. What was read and not handled is dropped."""


class _CancelReply:
    """Answers one job.cancel; tolerates a session that has left."""

    __slots__ = ("_handler", "_job_id", "_reason", "_request_id", "_trace_id")

    def __init__(
        self, handler: RequestHandler, request_id: str, job_id: str, trace_id: str, reason: str | None
    ) -> None:
        self._handler = handler
        self._request_id = request_id
        self._job_id = job_id
        self._trace_id = trace_id
        # It may wait for the job's end, and be as long as a frame: no more is kept than is sent.
        self._reason = reason[:_MAX_REASON] if reason else None

    @property
    def reason(self) -> str | None:
        """Why, as the client said."""
        return self._reason

    def acknowledge(self) -> None:
        """Send job.cancelled, in its place before the terminal event (P7.13)."""
        self._handler.ride(
            "job.cancelled",
            JobCancelled(
                job_id=self._job_id,
                reason=self._reason or "cancelled",
                request_id=self._request_id,
                reply_to=self._request_id,
            ),
            request_id=self._request_id,
            job_id=self._job_id,
            trace_id=self._trace_id,
            keep=True,
        )

    def refuse(self, job_status: str) -> None:
        """Say that nothing changed, to a client that understands it; silence to others (P7.14)."""
        if REPLIES_FEATURE in self._handler.session.shape.features:
            self._handler.ride(
                "x-arcp-trio.reply",
                Reply(
                    request_id=self._request_id,
                    reply_to=self._request_id,
                    applied=False,
                    job_id=self._job_id,
                    job_status=job_status,
                ),
                request_id=self._request_id,
                job_id=self._job_id,
                trace_id=self._trace_id,
            )


class RequestHandler:
    """Handles the frames of one connection, for its session.

    Attributes:
        session: The session.
    """

    def __init__(
        self,
        session: Session,
        connection: RequestConnection,
        replies: Replies,
        services: SessionServices,
    ) -> None:
        self.session = session
        self._connection = connection
        self._replies = replies
        self._services = services
        self._malformed = 0

    def ride(
        self,
        frame_type: str,
        message: object,
        *,
        request_id: str,
        job_id: str,
        trace_id: str,
        keep: bool = False,
        pause: bool = False,
        credentials: JobCredentials | None = None,
    ) -> None:
        """Answer in the stream, so that the answer keeps its place among the job's events.

        ``credentials`` stand in it while they are live; it is kept without them.
        """
        frame = self._replies.frame(frame_type, message, request_id=request_id, job_id=job_id, trace_id=trace_id)
        content: Content = frame if credentials is None else credentials.put_into(frame)
        self.session.retransmissions.hold(request_id, content, Answer.RIDER)
        self.session.ride(content, keep=keep, pause=pause)

    def _reply(self, frame: bytes, request_id: str | None) -> None:
        if request_id is not None:
            self.session.retransmissions.hold(request_id, frame, Answer.REPLY)
        self._connection.reply(frame)

    def handle(self, text: bytes | str) -> bool:
        """Handle one frame. Return whether what follows in the same read may be handled too."""
        envelope: Envelope | None = None
        remembered = False
        try:
            envelope = decode_envelope(text)
            handler = self._handler_of(envelope)
            if handler is None or self._answer_again(envelope, text):
                self._malformed = 0
                return True
            remembered = True
            more = handler(self, envelope)
        except ARCPError as exc:
            return self._refuse(exc, envelope, hold=remembered)
        except Exception:
            # A bug in a handler ends its request, not the session (L25).
            logger.exception("session %s: a bug in a request", self.session.session_id)
            return self._refuse(InternalError("the runtime failed to handle the request"), envelope, hold=remembered)
        self._malformed = 0
        return more

    def _handler_of(self, envelope: Envelope) -> Callable[[RequestHandler, Envelope], bool] | None:
        """Return what handles a frame; ``None`` for one that asks for nothing."""
        frame_type = envelope.type
        if not speaks_our_version(envelope.arcp):
            self._connection.close(CloseCode.POLICY, "another version of the protocol")
            raise InvalidRequestError(f"$.arcp: expected '1' or '1.n', got {envelope.arcp[:20]!r}")
        if frame_type in _ERRORS:
            return None
        if envelope.session_id not in (None, self.session.session_id) and frame_type != "session.hello":
            raise InvalidRequestError("$.session_id: not this connection's session")
        feature = _FEATURE_OF_TYPE.get(frame_type)
        if feature is not None and feature not in self.session.shape.features:
            raise InvalidRequestError(f"$.type: {frame_type} needs the feature {feature!r}, not negotiated")
        handler = self._HANDLERS.get(frame_type)
        if handler is not None:
            return handler
        if frame_type.startswith(("session.", "job.")):
            raise InvalidRequestError(f"$.type: {frame_type[:50]!r} is not a request that a client makes")
        return None

    def _answer_again(self, envelope: Envelope, text: bytes | str) -> bool:
        """Recognise a message that was handled already; send its answer again while it is held (P5.7)."""
        known = self.session.retransmissions.recognise(envelope.id, text)
        if known is None:
            return False
        answer, way = known
        if answer is None:
            # What changes nothing may be done again; the answer to all else is in the stream, or still to come.
            return envelope.type not in _REPEATABLE
        if isinstance(answer, bytes) and way is Answer.REPLY:
            self._connection.reply(answer)
        else:
            self.session.ride(answer)
        return True

    def _refuse(self, error: ARCPError, envelope: Envelope | None, *, hold: bool) -> bool:
        """Answer with an error; it is held for a retransmission only where this message is the one remembered."""
        request_id = envelope.id if envelope is not None else None
        if isinstance(error, MalformedFrameError) and request_id is None:
            request_id = error.request_id
        # What is well formed and not allowed, or not negotiated, closes nothing (P5.4).
        malformed = isinstance(error, (MalformedFrameError, MalformedPayloadError))
        self._malformed = self._malformed + 1 if malformed else 0
        is_submit = envelope is not None and envelope.type == "job.submit"
        if envelope is not None and is_submit and self._refuse_behind(error, envelope, hold=hold):
            pass
        elif envelope is not None and is_submit and self.session.shape.dialect.submit_refused_by_job_error:
            self._refuse_by_job_error(error, envelope)
        else:
            job_id = envelope.job_id if envelope is not None else None
            trace_id = envelope.trace_id if envelope is not None else None
            frame = self._refusal(error, request_id, job_id, trace_id)
            self._reply(frame, request_id if hold else None)
        if self._malformed >= self._services.limits.malformed_in_a_row:
            self._connection.close(CloseCode.POLICY, f"{self._malformed} frames in a row that are not valid")
            return False
        return True

    def _refusal(self, error: ARCPError, request_id: str | None, job_id: str | None, trace_id: str | None) -> bytes:
        if self.session.shape.dialect.refusals_echo_request_id and request_id is not None:
            return self._replies.error_with_request_id(error, request_id)
        return self._replies.error(error, request_id=request_id, job_id=job_id, trace_id=trace_id)

    def _refuse_behind(self, error: ARCPError, envelope: Envelope, *, hold: bool) -> bool:
        """Refuse a submit behind those before it that wait; say whether any do, and there is room to."""
        if not len(self.session.submits):
            return False
        refuse = partial(self._refuse_in_stream, envelope, hold=hold)
        try:
            self._services.admissions.queue(self.session.submits, partial(refuse, error), refuse, principal=None)
        except InternalError:
            return False
        return True

    def _refuse_in_stream(self, envelope: Envelope, error: ARCPError, *, hold: bool = True) -> None:
        """Refuse a submit in its place in the stream: the connection that it came over may have gone."""
        if self.session.shape.dialect.submit_refused_by_job_error:
            self._refuse_by_job_error(error, envelope)
            return
        frame = self._refusal(error, envelope.id, envelope.job_id, envelope.trace_id)
        if hold:
            self.session.retransmissions.hold(envelope.id, frame, Answer.RIDER)
        self.session.ride(frame)

    def _refuse_by_job_error(self, error: ARCPError, envelope: Envelope) -> None:
        """Refuse a submit as a job that failed at once, so that the peer's other jobs live (X4)."""
        job_id = self._services.ids.job()
        tail = encode_tail(
            "job.error",
            self._replies.refused_job(error, job_id, envelope.id),
            job_id=job_id,
            trace_id=envelope.trace_id or self._services.ids.trace(),
            timestamp=self._services.clock.timestamp(),
            job_seq=1,
        )
        self.session.append_own(tail)

    # --- job.submit -------------------------------------------------------------------------------

    def _submit(self, envelope: Envelope) -> bool:
        spec = self._validate(read_message(envelope, JobSubmit), envelope)
        Submission(
            session=self.session,
            services=self._services,
            spec=spec,
            answer=partial(self._accept, envelope.id),
            refuse=partial(self._refuse_in_stream, envelope),
        ).begin()
        return True

    def _accept(self, request_id: str, actor: JobActor) -> None:
        self.ride(
            "job.accepted",
            describe_accepted(actor, self.session.shape, request_id=request_id),
            request_id=request_id,
            job_id=actor.job_id,
            trace_id=actor.feed.trace_id,
            keep=True,
            credentials=actor.credentials,
        )

    def _validate(self, submit: JobSubmit, envelope: Envelope) -> JobSpec:
        """Check all of a submit before anything exists (P7.1).

        Raises:
            ARCPError: What is wrong with it.
        """
        session, services = self.session, self._services
        features = session.shape.features
        if "@" in submit.agent and "agent_versions" not in features:
            raise InvalidRequestError("$.payload.agent: name@version needs the feature 'agent_versions'")
        agent = services.agents.resolve(submit.agent, session.inventory.defaults, session.principal.agents)
        lease = self._read_lease(submit)
        check_max_runtime(submit.max_runtime_sec, "$.payload.max_runtime_sec")
        if submit.idempotency_key is not None:
            raise InvalidRequestError(
                "$.payload.idempotency_key: this runtime keeps no keys: a job with one could run twice"
            )
        services.jobs.check_room(session.principal.name)
        return JobSpec(
            agent=agent,
            input=submit.input,
            principal=session.principal.name,
            owner=session.session_id,
            trace=self._trace_of(envelope),
            allowed_agents=session.principal.agents,
            max_runtime_sec=submit.max_runtime_sec,
            lease=lease,
        )

    def _trace_of(self, envelope: Envelope) -> TraceContext | None:
        """Return the operation that asks for a job; ``None`` where the client named no trace."""
        named = envelope.trace_context
        if named is not None or envelope.trace_id is None:
            return named
        # A trace without an operation of it is all that many clients send. As if it were recorded: by default others
        # record nothing beneath a parent that is not.
        return TraceContext(trace_id=envelope.trace_id, span_id=self._services.ids.span())

    def _read_lease(self, submit: JobSubmit) -> Lease:
        """Read the lease that was asked for, and reduce it to what the principal may have (P6.2, P7.2).

        Raises:
            InvalidRequestError: It is not valid, needs what was not negotiated, or is too large.
        """
        asked = submit.lease_request or {}
        features, services = self.session.shape.features, self._services
        for namespace in asked:
            feature = _FEATURE_OF_NAMESPACE.get(namespace)
            if feature is not None and feature not in features:
                raise InvalidRequestError(
                    f'$.payload.lease_request."{namespace}": needs the feature {feature!r}, not negotiated'
                )
        constraints = submit.lease_constraints or LeaseConstraints()
        if constraints.expires_at is not None and "lease_expires_at" not in features:
            raise InvalidRequestError(
                "$.payload.lease_constraints.expires_at: needs the feature 'lease_expires_at', not negotiated"
            )
        if constraints.max_budget is not None and "cost.budget" not in features:
            raise InvalidRequestError(
                "$.payload.lease_constraints.max_budget: needs the feature 'cost.budget', not negotiated"
            )
        now_ms = int(services.clock.seconds() * 1000)
        lease = Lease.read(asked, constraints.expires_at, now_ms=now_ms, max_budget=constraints.max_budget)
        ceiling = self.session.principal.ceiling
        if ceiling is not None:
            lease = lease.within(ceiling, now_ms=now_ms, open_models=services.open_models)
        check_lease_size(lease, services.limits, "$.payload.lease_request")
        return lease

    # --- job.cancel -------------------------------------------------------------------------------

    def _cancel(self, envelope: Envelope) -> bool:
        cancel = read_message(envelope, JobCancel)
        job = self._find_visible(cancel.job_id, "cancel")
        # The owner is checked before the phase (P7.12): to all others a late cancel is a cancel.
        if self.session.session_id not in job.owners:
            self._audit("denied", "cancel", job)
            raise PermissionDeniedError("only the session that submitted a job may cancel it")
        reply = _CancelReply(self, envelope.id, job.job_id, job.feed.trace_id, cancel.reason)
        if isinstance(job, JobActor):
            job.request_cancel(reply)
        else:
            self._services.counters.cancels_refused += 1
            reply.refuse(job.status)
        return True

    # --- job.subscribe and job.unsubscribe ----------------------------------------------------------

    def _find_visible(self, job_id: str | None, action: str) -> JobActor | JobRecord:
        """Return a job that this session's principal may observe.

        Raises:
            InvalidRequestError: No id was given.
            JobNotFoundError: There is no such job; or it is another principal's and the policy keeps it hidden: one
                answer for both, since that there is such a job is nobody's business (P7.19).
            PermissionDeniedError: The policy lets the principal know of it, and no more.
        """
        if job_id is None:
            raise InvalidRequestError("$.payload.job_id: required, here or on the envelope")
        job = self._services.jobs.find(job_id)
        principal = self.session.principal
        visibility = Visibility.HIDDEN
        if job is not None:
            if job.principal == principal.name:
                return job
            agent = job.agent.resolved if isinstance(job, JobActor) else job.agent
            visibility = self._services.observation.visibility(principal, job.principal, agent)
            if visibility is Visibility.OBSERVABLE:
                return job
        self._audit("denied", action, job, job_id)
        if visibility is Visibility.KNOWN:
            raise PermissionDeniedError("this principal may not observe the job")
        raise JobNotFoundError("$.payload.job_id: no such job")

    def _audit(self, decision: str, action: str, job: JobActor | JobRecord | None, job_id: str = "") -> None:
        audit(
            decision,
            action,
            principal=self.session.principal.name,
            session_id=self.session.session_id,
            job_id=job.job_id if job is not None else job_id,
            owner=job.principal if job is not None else "",
        )

    def _subscribe(self, envelope: Envelope) -> bool:
        request = read_message(envelope, JobSubscribe)
        job = self._find_visible(request.job_id, "subscribe")

        def answer(subscribed: JobSubscribed) -> None:
            self.ride(
                "job.subscribed",
                attrs.evolve(subscribed, request_id=envelope.id, reply_to=envelope.id),
                request_id=envelope.id,
                job_id=job.job_id,
                trace_id=job.feed.trace_id,
                pause=True,
                credentials=self._credentials_of(job),
            )

        subscribe(self.session, job, request, answer, limit=self._services.limits.subscriptions)
        self._audit("granted", "subscribe", job)
        return True

    def _credentials_of(self, job: JobActor | JobRecord) -> JobCredentials | None:
        """Return the credentials of a job if this session has submitted it, and may see them (P7.17)."""
        if not isinstance(job, JobActor) or self.session.session_id not in job.owners:
            return None
        return job.credentials if CREDENTIALS_FEATURE in self.session.shape.features else None

    def _unsubscribe(self, envelope: Envelope) -> bool:
        request = read_message(envelope, JobUnsubscribe)
        if request.job_id is None:
            raise InvalidRequestError("$.payload.job_id: required, here or on the envelope")
        # No answer, whatever there is to leave (P7.20).
        unsubscribe(self.session, self._services.jobs.find(request.job_id))
        return True

    # --- session.* --------------------------------------------------------------------------------

    def _list_jobs(self, envelope: Envelope) -> bool:
        page = self._services.listing.answer(
            read_message(envelope, SessionListJobs),
            request_id=envelope.id,
            principal=self.session.principal,
            session_id=self.session.session_id,
            with_budgets=self.session.shape.takes_budgets,
            with_credentials=CREDENTIALS_FEATURE in self.session.shape.features,
        )
        # One with values in it is not held: it is made anew where it is asked for again.
        tells = any(entry.credentials is not None for entry in page.jobs)
        self._reply(self._replies.frame("session.jobs", page, request_id=envelope.id), None if tells else envelope.id)
        return True

    def _ping(self, envelope: Envelope) -> bool:
        ping = read_message(envelope, SessionPing)
        if len(ping.nonce) > _MAX_KEY:
            # It comes back in the pong, and a frame of ours has its limit (P4.4).
            raise InvalidRequestError(f"$.payload.nonce: expected at most {_MAX_KEY} characters")
        pong = SessionPong(ping_nonce=ping.nonce, received_at=self._services.clock.timestamp())
        self._reply(self._replies.frame("session.pong", pong, request_id=envelope.id), None)
        return True

    def _ack(self, envelope: Envelope) -> bool:
        ack = read_message(envelope, SessionAck)
        # Advisory: one that was not negotiated, is older than the last or ahead of what was sent frees nothing.
        if "ack" in self.session.shape.features and not self.session.stream.acknowledge(ack.last_processed_seq):
            logger.debug("session %s: ignored an ack of %d", self.session.session_id, ack.last_processed_seq)
        return True

    def _close(self, envelope: Envelope) -> bool:
        reason = read_message(envelope, SessionClose).reason
        closed = SessionClosed(reason=reason[:_MAX_KEY] if reason else None)
        frame = self._replies.frame("session.closed", closed, request_id=envelope.id)
        self._connection.close(CloseCode.NORMAL, "session.close", frame)
        return False

    def _bye(self, envelope: Envelope) -> bool:
        read_message(envelope, SessionBye)
        self._connection.close(CloseCode.NORMAL, "session.bye")
        return False

    def _second_hello(self, envelope: Envelope) -> bool:
        raise InvalidRequestError(f"$.type: {envelope.type} is the first message of a connection, only")

    def _ignore(self, envelope: Envelope) -> bool:  # noqa: ARG002  # one of the handlers
        return True

    _HANDLERS: ClassVar[Mapping[str, Callable[[Any, Envelope], bool]]] = {
        "job.submit": _submit,
        "job.cancel": _cancel,
        "job.subscribe": _subscribe,
        "job.unsubscribe": _unsubscribe,
        "session.list_jobs": _list_jobs,
        "session.ping": _ping,
        "session.pong": _ignore,
        "session.ack": _ack,
        "session.close": _close,
        "session.bye": _bye,
        "session.hello": _second_hello,
        "session.resume": _second_hello,
    }
