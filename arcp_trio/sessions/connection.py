"""One transport of a session: its reader, its writer, and how it ends.

The reader never stops draining: it only decodes and calls synchronous handlers
(:mod:`arcp_trio.sessions.requests`). The writer takes the connection's own replies first, then the session's
stream. Whatever ends the connection (a close, a broken transport, a limit, a shutdown) ends up in
:meth:`Connection.close` or in the reader's end, and from there in one place, :meth:`Connection._finish`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import trio

from ..limits import Limits
from ..transports.base import CloseCode, Transport, TransportClosedError
from ..transports.heartbeat import Heartbeat
from ..transports.writer import FrameWriter
from ..wire.dialects import Dialect
from ..wire.errors import HeartbeatLostError, InternalError, InvalidRequestError, UnauthenticatedError
from ..wire.session_messages import SessionPing
from .auth import Verifier
from .handshake import HandshakeRefusedError, Welcomed, handshake
from .replies import Replies
from .requests import RequestHandler
from .services import SessionServices
from .session import Session

__all__ = ["Connection"]

logger = logging.getLogger("arcp_trio.sessions")

# How many frames of one read are handled before others have their turn: a pipe's 64 KiB hold hundreds.
_FRAMES_A_TURN = 32


class Connection:
    """A client's connection, from its first byte to its last.

    Args:
        transport: What it speaks over; closed when :meth:`run` returns.
        services: The runtime's parts.
        verifier: Who the client is.
        compat: A dialect chosen by name; ``None`` detects it.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        services: SessionServices,
        verifier: Verifier,
        compat: Dialect | None = None,
    ) -> None:
        self._transport = transport
        self._services = services
        self._limits: Limits = services.limits
        self._verifier = verifier
        self._compat = compat
        self._session: Session | None = None
        self._replies: Replies | None = None
        self._priority: deque[bytes] = deque()
        self._greeting = trio.CancelScope()
        self._priority_bytes = 0
        self._reading = trio.CancelScope()
        self._goodbye: tuple[int, str] | None = None
        self._last: bytes | None = None
        # How many entries of the stream were there when the goodbye was said: what comes behind them waits.
        self._left = 0
        self._heartbeat: Heartbeat | None = None
        self._writer = FrameWriter(
            transport,
            self,
            batch_bytes=self._limits.write_batch_bytes,
            write_seconds=self._limits.write_seconds,
            written=self._note_written,
        )
        # The session's stream has something to send. Not a method: it is called for every event that one follows.
        self.wake: Callable[[], None] = self._writer.wake

    def __repr__(self) -> str:
        return f"<Connection {self._transport.description} {self._session!r}>"

    @property
    def private(self) -> bool:
        """Whether nobody on the way can read it."""
        return self._transport.private

    # --- what others call: synchronous, never failing -----------------------------------------------

    def reply(self, frame: bytes) -> None:
        """Send a frame ahead of the events."""
        if self._goodbye is not None:
            # Only what was said before the goodbye is still sent, and an error that explains it.
            if self._full_of_replies() is None:
                self._prefer(frame)
            return
        limit = self._full_of_replies()
        if limit is not None:
            self._leave_session()
            self.close(CloseCode.POLICY, f"more requests than answers were read: limit {limit}")
            return
        self._prefer(frame)
        self._writer.wake()

    def _prefer(self, frame: bytes) -> None:
        self._priority.append(frame)
        self._priority_bytes += len(frame)

    def _full_of_replies(self) -> str | None:
        """Return the limit that the replies have reached which wait to be written."""
        if len(self._priority) >= self._limits.replies:
            return "replies"
        return "reply_bytes" if self._priority_bytes >= self._limits.reply_bytes else None

    def too_slow(self, limit: str, resumable_from: int) -> None:
        """End this connection because too much is unsent; the session waits to be resumed (P6.18)."""
        if self._goodbye is None:
            error = InternalError(
                f"the client reads too slowly: more is unsent than half of the limit {limit} allows",
                details={"limit": limit, "resumable_from": resumable_from},
            )
            self._leave_session()
            last = self._replies.error(error) if self._replies is not None else None
            self.close(CloseCode.TOO_SLOW, f"too slow: limit {limit}", last)

    def replaced(self) -> None:
        """End this connection because another one has its session: it gets nothing more (P6.11)."""
        self._priority.clear()
        self._priority_bytes = 0
        self.close(CloseCode.REPLACED, "the session was resumed on another connection")

    def close(self, code: int, reason: str, last: bytes | None = None) -> None:
        """End the connection: send what is ready, then ``last``, then close. The first call counts."""
        if self._goodbye is None:
            self._goodbye = (code, reason)
            self._last = last
            if self._session is not None:
                self._left = self._session.stream.unsent_events
            # Who has not said hello yet is not waited for: a silent peer would hold a shutdown up.
            self._greeting.cancel(reason=f"connection closing: {reason}")
            self._reading.cancel(reason=f"connection closing: {reason}")

    def _leave_session(self) -> None:
        """Take nothing more from the session's stream: what is unsent waits for the next connection."""
        if self._session is not None:
            self._session.detach(self)

    def take(self, limit: int) -> list[bytes]:
        """Hand frames to the writer: replies first, then the stream, then what is said last."""
        frames: list[bytes] = []
        size = 0
        while self._priority and size < limit:
            frames.append(self._priority.popleft())
            size += len(frames[-1])
        self._priority_bytes -= size
        if size < limit and self._session is not None and self._session.is_connected_by(self):
            if self._goodbye is None:
                frames += self._session.take(limit - size)
            else:
                frames += self._take_what_is_left(self._session, limit - size)
        if not frames and self._goodbye is not None and self._last is not None:
            frames.append(self._last)
            self._last = None
        return frames

    def _take_what_is_left(self, session: Session, limit: int) -> list[bytes]:
        """Take from the stream what came before the goodbye: an agent that floods must not put it off for ever."""
        # There is no later that a pause could wait for.
        session.end_pause()
        frames = session.take(limit) if self._left > 0 else []
        self._left -= len(frames)
        if self._left <= 0:
            self._leave_session()
        return frames

    # --- its life -----------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Serve the connection until it ends. Never raises but Cancelled.

        Cancellation: the transport is closed at once; the session's jobs go on.
        """
        try:
            welcomed, backlog = await self._shake_hands()
            if welcomed is None:
                return
            self._session = welcomed.session
            self._replies = welcomed.replies
            # Ahead of the stream: the welcome precedes the replay (P6.9).
            self._prefer(welcomed.frame)
            self._start_heartbeat(welcomed)
            handler = RequestHandler(welcomed.session, self, welcomed.replies, self._services)
            await self._serve(handler, backlog, welcomed.token)
        except TransportClosedError as exc:
            logger.debug("%r: %s", self, exc)
            if exc.can_send:
                with suppress(TransportClosedError), trio.move_on_after(self._limits.close_seconds):
                    await self._transport.send(self._last_words(exc))
                    await self._transport.aclose(exc.code, exc.reason)
        except Exception:
            # A bug in a reader or writer ends its connection, and nothing else.
            logger.exception("%r: a bug in the connection", self)
        finally:
            if self._heartbeat is not None:
                self._heartbeat.stop()
            self._leave_session()
            await self._transport.abort()  # noqa: ASYNC102  # never blocks

    # --- signs of life ------------------------------------------------------------------------------

    def _start_heartbeat(self, welcomed: Welcomed) -> None:
        if "heartbeat" in welcomed.session.shape.features:
            self._heartbeat = Heartbeat(
                self._services.timers, self._limits.heartbeat_seconds, ping=self._ping, lost=self._lost
            )
            self._heartbeat.start()

    def _ping(self) -> None:
        assert self._replies is not None
        services = self._services
        ping = SessionPing(nonce=services.ids.ulid(), sent_at=services.clock.timestamp())
        self.reply(self._replies.frame("session.ping", ping))

    def _lost(self) -> None:
        """End a connection whose peer was silent for two intervals; its session waits, its jobs go on (P6.14)."""
        assert self._replies is not None
        seconds = 2 * self._limits.heartbeat_seconds
        error = HeartbeatLostError(f"nothing was received for {seconds:g} seconds")
        self._leave_session()
        self.close(CloseCode.HEARTBEAT_LOST, "heartbeat lost", self._replies.error(error))

    def _note_written(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.sent()

    async def _shake_hands(self) -> tuple[Welcomed | None, list[bytes | str]]:
        """Return the session, and what was read behind the first frame."""
        with self._greeting:
            self._greeting.deadline = trio.current_time() + self._limits.hello_seconds
            frames = list(await self._transport.receive())
            try:
                welcomed = await handshake(
                    frames[0], self, services=self._services, verifier=self._verifier, compat=self._compat
                )
            except HandshakeRefusedError as exc:
                logger.info("%s: refused: %s", self._transport.description, exc.reason)
                await self._say_no(exc.frame, exc.code, exc.reason)
                return None, []
            return welcomed, frames[1:]
        if self._goodbye is not None:
            with trio.move_on_after(self._limits.close_seconds):
                await self._transport.aclose(*self._goodbye)
            return None, []
        replies = Replies(self._services.ids.session(), self._services.ids, self._services.clock)
        error = UnauthenticatedError(f"no session.hello was verified within {self._limits.hello_seconds:g} seconds")
        await self._say_no(replies.error(error), CloseCode.POLICY, "hello deadline")
        return None, []

    async def _say_no(self, frame: bytes, code: int, reason: str) -> None:
        with trio.move_on_after(self._limits.close_seconds, shield=True):
            await self._transport.send([frame])
            await self._transport.aclose(code, reason)

    async def _serve(self, handler: RequestHandler, backlog: list[bytes | str], token: str) -> None:
        writer_done = trio.Event()
        failures: list[Exception] = []

        @trio.lowlevel.enable_ki_protection
        async def write() -> None:
            try:
                await self._writer.run()
            except Exception as exc:  # noqa: BLE001  # raised below, outside of the nursery that would wrap it
                failures.append(exc)
                self._reading.cancel(reason="the writer has ended")
            finally:
                writer_done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, name=f"writer of {handler.session.session_id}")
            try:
                with self._reading:
                    await self._read(handler, backlog, token)
            except Exception as exc:  # noqa: BLE001  # as above
                # The peer has gone, most likely: there is nobody left to flush to.
                failures.append(exc)
            if self._goodbye is None or failures:
                # Events that come from now on wait for the next connection.
                self._leave_session()
            else:
                await self._finish(writer_done)
            nursery.cancel_scope.cancel(reason="the connection is closed")
        if failures:
            raise failures[0]

    async def _read(self, handler: RequestHandler, frames: list[bytes | str], token: str) -> None:
        is_backlog = True
        while True:
            for count, frame in enumerate(frames, 1):
                # What was read when the connection lost its session is nobody's request.
                if self._goodbye is not None or not handler.handle(frame):
                    return
                if count % _FRAMES_A_TURN == 0 or self._priority_bytes > self._limits.write_batch_bytes:
                    # A large answer took its time to make: others have their turn, and it its write, ahead of the next.
                    await trio.lowlevel.checkpoint()
            try:
                frames = list(await self._transport.receive())
            except TransportClosedError as exc:
                if not exc.can_send:
                    raise
                # Ours to close, behind the answers to what came before it (P4.1).
                self.close(exc.code, exc.reason, *self._last_words(exc))
                return
            if self._heartbeat is not None:
                self._heartbeat.received()
            if is_backlog:
                # Whoever speaks after the welcome has its token (P6.8).
                handler.session.tokens.confirm(token)
                is_backlog = False

    def _last_words(self, end: TransportClosedError) -> list[bytes]:
        """Return the frame that tells the peer what a transport without close codes cannot (P4.4)."""
        if end.code != CloseCode.TOO_LARGE:
            return []
        services = self._services
        replies = self._replies or Replies(services.ids.session(), services.ids, services.clock)
        return [replies.error(InvalidRequestError(end.reason, details={"limit": "receive_bytes"}))]

    async def _finish(self, writer_done: trio.Event) -> None:
        """Flush and close, between whole frames, within one deadline."""
        assert self._goodbye is not None
        code, reason = self._goodbye
        with trio.move_on_after(self._limits.close_seconds):
            self._writer.finish()
            await writer_done.wait()
            await self._transport.aclose(code, reason)
