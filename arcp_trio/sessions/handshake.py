"""From the first frame to a session, or to a refusal that the peer can read (P6.1 to P6.6)."""

from __future__ import annotations

import logging
import secrets

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
    Auth,
    RuntimeCapabilities,
    SessionHello,
    SessionRejected,
    SessionWelcome,
)
from .auth import Principal, Verifier
from .replies import Replies
from .services import SessionServices
from .session import Session

__all__ = ["HandshakeRefusedError", "Welcomed", "handshake"]

logger = logging.getLogger("arcp_trio.sessions")

# No session outlives its connection yet: the shortest window that the wire can say.
_RESUME_WINDOW_SECONDS = 1


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


@attrs.frozen
class Welcomed:
    """A new session and the frame that says so."""

    session: Session
    replies: Replies
    frame: bytes


async def handshake(
    first: bytes | str, *, services: SessionServices, verifier: Verifier, compat: Dialect | None
) -> Welcomed:
    """Make a session of a connection's first frame.

    Args:
        first: The frame.
        services: The runtime's parts.
        verifier: Decides who the token stands for; may be slow, the caller bounds it.
        compat: A dialect chosen by name; ``None`` detects it.

    Raises:
        HandshakeRefusedError: No session; it has what to tell the peer.

    Cancellation: only the verifier waits; no session was made.
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
        hello, auth = _read_hello(envelope)
        principal = await _verify(auth, verifier)
        # No checkpoint from here on: the caps are checked and the session is added in one step.
        session = _open_session(hello, envelope, principal, services, compat)
    except ARCPError as exc:
        raise _refusal(replies, exc, envelope.id) from None
    replies = Replies(session.session_id, services.ids, services.clock)
    return Welcomed(
        session,
        replies,
        replies.frame("session.welcome", _welcome(session, services), request_id=envelope.id),
    )


def _refusal(replies: Replies, error: ARCPError, request_id: str | None) -> HandshakeRefusedError:
    code = CloseCode.POLICY
    if isinstance(error, InternalError):
        # A cap names its limit; what is left is a verifier that failed, or a shutdown.
        code = CloseCode.TRY_LATER if error.details else CloseCode.INTERNAL
    return HandshakeRefusedError(replies.error(error, request_id=request_id), code, error.message)


def _read_hello(envelope: Envelope) -> tuple[SessionHello, Auth]:
    if not speaks_our_version(envelope.arcp):
        raise InvalidRequestError(f"$.arcp: expected '1' or '1.n', got {envelope.arcp[:20]!r}")
    if envelope.type == "session.resume":
        raise ResumeWindowExpiredError("the session cannot be resumed")
    if envelope.type != "session.hello":
        raise UnauthenticatedError(f"$.type: expected session.hello first, got {envelope.type[:50]!r}")
    hello = read_message(envelope, SessionHello)
    encodings = hello.capabilities.encodings
    if encodings is not None and "json" not in encodings:
        raise InvalidRequestError("$.payload.capabilities.encodings: this runtime speaks 'json' alone")
    auth = hello.auth
    if auth is None or not auth.token:
        raise UnauthenticatedError("$.payload.auth.token: required, but missing or empty")
    if auth.scheme != "bearer":
        raise UnauthenticatedError("$.payload.auth.scheme: expected 'bearer'")
    return hello, auth


async def _verify(auth: Auth, verifier: Verifier) -> Principal:
    assert auth.token is not None
    try:
        principal = await verifier.verify(auth.token)
    except Exception as exc:
        logger.exception("the verifier failed")
        raise InternalError("the token could not be verified") from exc
    if principal is None:
        raise UnauthenticatedError("the token was refused")
    return principal


def _open_session(
    hello: SessionHello,
    envelope: Envelope,
    principal: Principal,
    services: SessionServices,
    compat: Dialect | None,
) -> Session:
    if services.is_closing():
        raise InternalError("the runtime is shutting down")
    if hello.resume is not None:
        # The same answer whatever the token is worth (P6.10).
        raise ResumeWindowExpiredError("the session cannot be resumed")
    services.sessions.check_room(principal.name)
    offered = frozenset(hello.capabilities.features or ())
    session = Session(
        services.ids.session(),
        principal=principal,
        shape=Shape(compat or detect_dialect(envelope) or SPEC, offered & services.features),
        inventory=services.agents.inventory(principal.agents),
        limits=services.limits,
        closed=services.sessions.remove,
    )
    services.sessions.add(session)
    return session


def _welcome(session: Session, services: SessionServices) -> SessionWelcome:
    return SessionWelcome(
        runtime=services.runtime,
        runtime_name=services.runtime.name,
        runtime_version=services.runtime.version,
        session_id=session.session_id,
        resume_token=secrets.token_urlsafe(32),
        resume_window_sec=_RESUME_WINDOW_SECONDS,
        accepted_at=services.clock.timestamp(),
        capabilities=RuntimeCapabilities(
            encodings=("json",),
            features=tuple(sorted(session.shape.features)),
            agents=session.inventory.entries,
        ),
    )
