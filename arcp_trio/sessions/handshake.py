"""From the first frame to a session, new or resumed, or to a refusal that the peer can read (P6.1 to P6.11)."""

from __future__ import annotations

import logging

import attrs

from ..jobs.feed import Shape
from ..transports.base import CloseCode
from ..wire.codec import read_message
from ..wire.dialects import SPEC, Dialect, detect_dialect
from ..wire.envelope import Envelope, decode_envelope, speaks_our_version
from ..wire.errors import (
    ARCPError,
    InternalError,
    InvalidRequestError,
    MalformedFrameError,
    ResumeWindowExpiredError,
    UnauthenticatedError,
)
from ..wire.session_messages import (
    CREDENTIALS_FEATURE,
    REPLIES_FEATURE,
    Auth,
    Replayed,
    ResumeRequest,
    RuntimeCapabilities,
    SessionHello,
    SessionRejected,
    SessionResume,
    SessionWelcome,
)
from .auth import Principal, Verifier
from .replies import Replies
from .services import SessionServices
from .session import Session, SessionConnection
from .tokens import session_of_token

__all__ = ["HandshakeRefusedError", "Welcomed", "handshake"]

logger = logging.getLogger("arcp_trio.sessions")


class HandshakeRefusedError(Exception):
    """The first frame does not lead to a session.

    Args:
        frame: What the peer is told.
        code: The close code that follows.
        reason: Why, for the log and the close frame.
    """

    def __init__(self, frame: bytes, code: int, reason: str) -> None:
        super().__init__(reason)
        self.frame = frame
        self.code = code
        self.reason = reason


@attrs.frozen(kw_only=True)
class Welcomed:
    """A session and the frame that welcomes its client.

    Attributes:
        session: The session.
        replies: Makes its frames.
        frame: The welcome.
        token: The resume token that the welcome has; the first message on this connection confirms it.
    """

    session: Session
    replies: Replies
    frame: bytes
    token: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class _Opening:
    """What a first frame asks for.

    Attributes:
        token: The bearer token.
        offered: The features; ``None`` where the frame cannot say any.
        resume: Which session to resume, or ``None`` for a new one.
    """

    token: str = attrs.field(repr=False)
    offered: frozenset[str] | None
    resume: ResumeRequest | None


async def handshake(
    first: bytes | str,
    connection: SessionConnection,
    *,
    services: SessionServices,
    verifier: Verifier,
    compat: Dialect | None,
) -> Welcomed:
    """Make a session of a connection's first frame, or resume one, and attach the connection to it.

    Args:
        first: The frame.
        connection: What the session gets.
        services: The runtime's parts.
        verifier: Decides who the token stands for; may be slow, the caller bounds it.
        compat: A dialect chosen by name; ``None`` detects it.

    Raises:
        HandshakeRefusedError: No session; it has what to tell the peer.

    Cancellation: only the verifier waits; no session was made or touched.
    """
    proposed = services.ids.session()
    replies = Replies(proposed, services.ids, services.clock)
    try:
        envelope = decode_envelope(first)
    except MalformedFrameError as exc:
        raise _refusal(replies, exc, exc.request_id) from None
    if envelope.session_id is not None:
        # Some peers take a frame only with the id that they proposed themselves (D4).
        replies = Replies(envelope.session_id, services.ids, services.clock)
    if envelope.type == "session.open":
        rejection = SessionRejected(
            code="UNIMPLEMENTED", message="this runtime speaks ARCP 1.1: the first message is session.hello"
        )
        frame = replies.frame("session.rejected", rejection, request_id=envelope.id)
        raise HandshakeRefusedError(frame, CloseCode.NORMAL, "an older protocol: session.open")
    try:
        opening = _read_opening(envelope)
        principal = await _verify(opening.token, verifier)
        # No checkpoint from here on: what is checked holds until the connection is attached.
        if services.is_closing():
            raise InternalError("the runtime is shutting down")
        if opening.resume is None:
            session = _open_session(opening, envelope, principal, services, compat, private=connection.private)
        else:
            session = _find_session(opening, opening.resume, principal, services, private=connection.private)
    except ARCPError as exc:
        raise _refusal(replies, exc, envelope.id) from None
    replies = Replies(session.session_id, services.ids, services.clock)
    token = session.tokens.issue(session.session_id)
    frame = replies.frame("session.welcome", _welcome(session, services, token), request_id=envelope.id)
    if opening.resume is None:
        session.attach(connection)
    else:
        session.attach(connection, resume_from=opening.resume.last_event_seq)
        if REPLIES_FEATURE in session.shape.features:
            marker = Replayed(request_id=envelope.id, reply_to=envelope.id)
            replayed = replies.frame("x-arcp-trio.replayed", marker, request_id=envelope.id)
            # Behind the answers of submits that still wait: what has no answer by then gets none.
            session.submits.mark(lambda: session.ride(replayed))
    return Welcomed(session=session, replies=replies, frame=frame, token=token)


def _refusal(replies: Replies, error: ARCPError, request_id: str | None) -> HandshakeRefusedError:
    code = CloseCode.POLICY
    if isinstance(error, InternalError):
        # A cap names its limit; what is left is a verifier that failed, or a shutdown.
        code = CloseCode.TRY_LATER if error.details else CloseCode.INTERNAL
    return HandshakeRefusedError(replies.error(error, request_id=request_id), code, error.message)


def _read_opening(envelope: Envelope) -> _Opening:
    if not speaks_our_version(envelope.arcp):
        raise InvalidRequestError(f"$.arcp: expected '1' or '1.n', got {envelope.arcp[:20]!r}")
    offered: frozenset[str] | None = None
    if envelope.type == "session.resume":
        # It has no capabilities: the session's are fixed anyway (P6.9).
        asked = read_message(envelope, SessionResume)
        auth = asked.auth
        resume: ResumeRequest | None = ResumeRequest(
            resume_token=asked.resume_token, last_event_seq=asked.last_event_seq, session_id=asked.session_id
        )
    elif envelope.type == "session.hello":
        hello = read_message(envelope, SessionHello)
        encodings = hello.capabilities.encodings
        if encodings is not None and "json" not in encodings:
            raise InvalidRequestError("$.payload.capabilities.encodings: this runtime speaks 'json' alone")
        auth, resume = hello.auth, hello.resume
        offered = frozenset(hello.capabilities.features or ())
    else:
        raise UnauthenticatedError(f"$.type: expected session.hello first, got {envelope.type[:50]!r}")
    if resume is not None and resume.last_event_seq < 0:
        raise InvalidRequestError("$.payload.resume.last_event_seq: expected an integer from 0, got a negative one")
    return _Opening(token=_bearer_token(auth), offered=offered, resume=resume)


def _bearer_token(auth: Auth | None) -> str:
    if auth is None or not auth.token:
        raise UnauthenticatedError("$.payload.auth.token: required, but missing or empty")
    if auth.scheme != "bearer":
        raise UnauthenticatedError("$.payload.auth.scheme: expected 'bearer'")
    return auth.token


async def _verify(token: str, verifier: Verifier) -> Principal:
    try:
        principal = await verifier.verify(token)
    except Exception as exc:
        logger.exception("the verifier failed")
        raise InternalError("the token could not be verified") from exc
    if principal is None:
        raise UnauthenticatedError("the token was refused")
    return principal


def _open_session(
    opening: _Opening,
    envelope: Envelope,
    principal: Principal,
    services: SessionServices,
    compat: Dialect | None,
    *,
    private: bool,
) -> Session:
    features = (opening.offered or frozenset()) & services.features
    if principal.anonymous or not private:
        # Not to whom nobody knows, nor where others could read them (P9.10).
        features -= {CREDENTIALS_FEATURE}
    services.sessions.make_room(principal.name)
    session = Session(
        services.ids.session(),
        principal=principal,
        shape=Shape(compat or detect_dialect(envelope) or SPEC, features),
        inventory=services.agents.inventory(principal.agents),
        parts=services.session_parts,
        trace=envelope.trace_context,
    )
    services.sessions.add(session)
    return session


def _find_session(
    opening: _Opening, resume: ResumeRequest, principal: Principal, services: SessionServices, *, private: bool
) -> Session:
    """Return the session that a resume names, if it may and can be resumed from there.

    Raises:
        ResumeWindowExpiredError: It may or can not: one answer for all reasons, so that nobody learns which, and
            nothing was changed, so that it costs the owner nothing (P6.10).
        InvalidRequestError: It may, and the hello or this connection has fewer features than the session (P6.9).
    """
    token = resume.resume_token
    session = services.sessions.find(session_of_token(token))
    if (
        session is None
        or resume.session_id not in (None, session.session_id)
        or not _is_same(principal, session.principal)
        or not session.tokens.matches(token)
        or not session.stream.can_resume_from(resume.last_event_seq)
    ):
        raise ResumeWindowExpiredError("the session cannot be resumed")
    if opening.offered is not None and not session.shape.features <= opening.offered:
        missing = ", ".join(sorted(session.shape.features - opening.offered))
        raise InvalidRequestError(
            f"$.payload.capabilities.features: a session's features are fixed, and this hello lacks {missing}"
        )
    if CREDENTIALS_FEATURE in session.shape.features and not private:
        raise InvalidRequestError("this session may show credentials: it is resumed over an encrypted connection alone")
    session.tokens.confirm(token)
    # What it may do is what its present token says; an anonymous one keeps its first name.
    session.principal = attrs.evolve(principal, name=session.principal.name)
    return session


def _is_same(principal: Principal, owner: Principal) -> bool:
    """Say whether a resume is its owner's: by name, or among the nameless by the token alone (P6.8)."""
    return principal.name == owner.name or (principal.anonymous and owner.anonymous)


def _welcome(session: Session, services: SessionServices, token: str) -> SessionWelcome:
    limits = services.limits
    return SessionWelcome(
        runtime=services.runtime,
        runtime_name=services.runtime.name,
        runtime_version=services.runtime.version,
        session_id=session.session_id,
        resume_token=token,
        # Whole seconds, for peers that read nothing else; never more than there is.
        resume_window_sec=int(limits.resume_seconds),
        heartbeat_interval_sec=_whole(limits.heartbeat_seconds) if "heartbeat" in session.shape.features else None,
        accepted_at=services.clock.timestamp(),
        capabilities=RuntimeCapabilities(
            encodings=("json",),
            features=tuple(sorted(session.shape.features)),
            agents=session.inventory.entries,
        ),
    )


def _whole(seconds: float) -> float:
    """Write 30.0 as 30: some peers read an integer."""
    return int(seconds) if seconds == int(seconds) else seconds
