"""Keeps a session connected: runs one connection after the other until the client is left or the session given up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

import trio

from .._version import __version__
from ..timers import Timers
from ..transports.base import Transport, TransportClosedError
from ..wire.codec import encode_payload
from ..wire.envelope import Envelope, encode_envelope
from ..wire.errors import ARCPError, ConnectionLostError, ResumeWindowExpiredError
from ..wire.jsontext import decode_json, encode_json
from ..wire.session_messages import Auth, ClientCapabilities, Peer, ResumeRequest, SessionHello
from .link import Link, exchange_hello
from .reconnect import ConnectionState, Reconnect, worth_a_retry
from .session import ClientSession

__all__ = ["Connector"]

logger = logging.getLogger("arcp_trio.client")

# How often a runtime may refuse a resume before it is believed: some know the session as lost only once they have
# noticed that its old connection is gone (interop.md, section 3.4). Ours takes the old one over.
_REFUSALS = 3
# So the implementations say that there is nothing to resume (D19); after the others' two, the session is gone.
_NOT_RESUMABLE = frozenset({"RESUME_WINDOW_EXPIRED", "PERMISSION_DENIED", "UNAUTHENTICATED"})
_GONE = frozenset({"RESUME_WINDOW_EXPIRED", "PERMISSION_DENIED"})
# Said before a close, these leave nothing to try again.
_FINAL_ERRORS = frozenset({"RESUME_WINDOW_EXPIRED", "UNAUTHENTICATED"})


class _GivenUpError(Exception):
    """The session is lost."""

    def __init__(self, error: ARCPError) -> None:
        super().__init__(error.message)
        self.error = error


class Connector:
    """Owns the connections of one client, one at a time.

    Args:
        session: What outlives them.
        timers: Who calls at deadlines.
        auth: The token.
        name: How the client names itself.
        features: What it offers.
        connect: Opens another transport; ``None`` where that cannot be.
        reconnect: How to try again; ``None`` for never.

    Attributes:
        state: How the client is connected.
    """

    def __init__(
        self,
        session: ClientSession,
        timers: Timers,
        *,
        auth: Auth,
        name: str,
        features: Sequence[str],
        connect: Callable[[], AbstractAsyncContextManager[Transport]] | None,
        reconnect: Reconnect | None,
    ) -> None:
        self.state = ConnectionState(phase="connected")
        self._session = session
        self._timers = timers
        self._auth = auth
        self._name = name
        self._features = tuple(features)
        self._connect = connect
        self._reconnect = reconnect
        self._closing = False

    # --- opening ------------------------------------------------------------------------------------

    async def open(self, transport: Transport) -> tuple[Link, Sequence[bytes | str]]:
        """Open the session over its first transport.

        Raises:
            ARCPError: The runtime refused it.
            ConnectionLostError: The connection ended before the welcome, or none came in time.

        Cancellation: the transport can only be aborted.
        """
        welcome, early = await self._shake_hands(transport, self._make_hello(None))
        self._session.welcomed(welcome)
        return self._link(transport), early

    async def _shake_hands(self, transport: Transport, hello: bytes) -> tuple[Envelope, Sequence[bytes | str]]:
        limits = self._session.limits
        answer: tuple[Envelope, Sequence[bytes | str]] | None = None
        try:
            with trio.move_on_after(limits.connect_seconds):
                answer = await exchange_hello(transport, hello, limits)
        except TransportClosedError as exc:
            raise ConnectionLostError(f"no welcome: {exc}") from exc
        if answer is None:
            raise ConnectionLostError(f"no welcome within {limits.connect_seconds:g} seconds")
        return answer

    def _make_hello(self, resume: ResumeRequest | None) -> bytes:
        hello = SessionHello(
            client=Peer(name=self._name, version=__version__, kind="arcp-trio"),
            client_name=self._name,
            client_version=__version__,
            auth=self._auth,
            capabilities=ClientCapabilities(encodings=("json",), features=self._features),
            resume=resume,
        )
        session = self._session
        hello_id = session.ids.message()
        if resume is None:
            return session.encode("session.hello", hello, hello_id)
        payload = decode_json(encode_payload(hello))
        assert isinstance(payload, dict)
        # Every place where one of the implementations looks for it (D18).
        fields = payload["resume"]
        assert isinstance(fields, dict)
        fields["token"] = payload["resume_token"] = resume.resume_token
        payload["last_event_seq"] = resume.last_event_seq
        return encode_envelope(
            "session.hello",
            encode_json(payload),
            message_id=hello_id,
            timestamp=session.timestamp(),
            session_id=session.session_id,
        )

    def _link(self, transport: Transport) -> Link:
        session = self._session
        link = Link(transport, limits=session.limits, timers=self._timers, receive=session.receive)
        session.attach(link)
        return link

    # --- keeping ------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def keep_connected(self, link: Link, frames: Sequence[bytes | str]) -> None:
        """Keep the session connected until it is given up or closed.

        Args:
            link: The first connection.
            frames: What came with its welcome.

        Cancellation: everything that waits fails: the client was closed.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._timers.run, name="arcp client timers")
                error = await self._keep(link, frames)
                nursery.cancel_scope.cancel(reason="the session has ended")
            if error is not None:
                self._session.lose(error)
                self._show(ConnectionState(phase="given_up", reason=error.message, error=error))
        finally:
            if self._session.lost is None:
                error = ConnectionLostError("the client was closed")
                self._session.lose(error)
                self.state = ConnectionState(phase="closed", error=error)

    async def _keep(self, link: Link, frames: Sequence[bytes | str]) -> ARCPError | None:
        """Run connections until one's end is the session's; return why, or ``None`` if the client was left."""
        self._show(self.state)
        await link.run(frames)
        attempts = 0
        while not self._closing:
            assert link.end is not None
            self._show(ConnectionState(phase="lost", reason=link.end.reason))
            error = self._final_error(link)
            if error is not None:
                return error
            self._session.detach()
            try:
                link, attempts = await self._run_next(link.end.reason, attempts)
            except _GivenUpError as exc:
                return exc.error
        return None

    def close(self) -> None:
        """Take note that the client is being left: an end of the connection is no loss any more."""
        self._closing = True

    def _final_error(self, link: Link) -> ARCPError | None:
        """Return what a connection's end means for the session; ``None`` where another one may help."""
        end = link.end
        assert end is not None
        error = link.said or ConnectionLostError(f"the connection has ended: {end.reason}")
        if self._connect is None or self._reconnect is None or self._session.resume_request() is None:
            return error
        if link.goodbye or error.code in _FINAL_ERRORS:
            return error
        retry = worth_a_retry(end.code) if end.retry is None else end.retry
        return None if retry else error

    async def _run_next(self, reason: str, attempts: int) -> tuple[Link, int]:
        """Resume the session over another connection and run that to its end.

        Returns:
            That connection, and how many attempts have failed in a row.

        Raises:
            _GivenUpError: There will be none.
        """
        policy, connect = self._reconnect, self._connect
        assert policy is not None
        assert connect is not None
        window = self._session.welcome.resume_window_sec
        patience = min(policy.deadline_seconds, window if window is not None and window > 0 else float("inf"))
        deadline = trio.current_time() + patience
        refusals = 0
        while True:
            attempts += 1
            delay = policy.delay(attempts)
            if trio.current_time() + delay >= deadline:
                message = f"the session was not resumed within {patience:g} seconds: {reason}"
                raise _GivenUpError(ConnectionLostError(message))
            self._show(ConnectionState(phase="retrying", reason=reason, attempt=attempts, delay_seconds=delay))
            await trio.sleep(delay)
            taken = self._session.sequence.last
            link: Link | None = None
            resumes = self._session.resume_request() is not None
            began = trio.current_time()
            with trio.CancelScope(deadline=deadline) as scope:
                try:
                    async with connect() as transport:
                        link, frames = await self._take_up(transport)
                        scope.deadline = float("inf")
                        self._show(ConnectionState(phase="resumed" if resumes else "reopened"))
                        await link.run(frames)
                except (TransportClosedError, OSError, ConnectionLostError) as exc:
                    reason = str(exc) or type(exc).__name__
                except ARCPError as exc:
                    refusals += 1
                    reason = f"{exc.code}: {exc.message}"
                    self._judge_refusal(exc, refusals)
                except Exception as exc:
                    logger.exception("a bug while connecting")
                    raise _GivenUpError(ConnectionLostError(f"the client failed: {type(exc).__name__}")) from None
            if link is not None:
                lived = trio.current_time() - began
                progress = self._session.sequence.last > taken or lived >= policy.max_delay_seconds
                return link, 0 if progress else attempts

    async def _take_up(self, transport: Transport) -> tuple[Link, Sequence[bytes | str]]:
        """Resume the session over a transport, or open a new one if it was forgotten.

        Raises:
            ARCPError: The runtime refused it.
            ConnectionLostError: The connection ended before the welcome, or none came in time.
        """
        session = self._session
        resume = session.resume_request()
        try:
            welcome, frames = await self._shake_hands(transport, self._make_hello(resume))
            if resume is None:
                session.welcomed(welcome)
            else:
                session.resumed(welcome)
        except BaseException:
            await transport.abort()  # noqa: ASYNC102, ASYNC120  # never blocks
            raise
        return self._link(transport), frames

    def _judge_refusal(self, error: ARCPError, refusals: int) -> None:
        """Give the session up unless another attempt may be answered otherwise."""
        if error.code in _GONE and self._session.resume_request() is not None and self._session.holds_nothing:
            # A runtime keeps no session in which nothing happens (P6.12): a new one is as good.
            self._session.forget()
            return
        if error.code in _NOT_RESUMABLE:
            expired = error.code == "RESUME_WINDOW_EXPIRED"
            if expired and not self._session.replies and refusals < _REFUSALS:
                return
            message = f"the runtime did not resume the session: {error.code}: {error.message}"
            raise _GivenUpError(ResumeWindowExpiredError(message)) from None
        if not error.retryable:
            raise _GivenUpError(error) from None

    def _show(self, state: ConnectionState) -> None:
        self.state = state
        logger.debug("%s is %s %s", self._session.session_id, state.phase, state.reason)
        if self._reconnect is not None and self._reconnect.on_change is not None:
            try:
                self._reconnect.on_change(state)
            except Exception:
                logger.exception("on_change failed")
