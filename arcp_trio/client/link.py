"""One connection of a client: its handshake, its reader, its writer and its heartbeat.

One task reads and never stops: it hands each frame over synchronously. One task writes. How the connection ended is
kept, once; whoever runs it decides what comes next.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import attrs
import trio

from ..limits import ClientLimits
from ..timers import Timers
from ..transports.base import CloseCode, Transport, TransportClosedError
from ..transports.heartbeat import Heartbeat
from ..transports.writer import FrameWriter
from ..wire.codec import read_message
from ..wire.envelope import Envelope, decode_envelope
from ..wire.errors import ARCPError, MalformedFrameError
from ..wire.session_messages import SessionError
from .matching import error_of
from .requests import Outgoing

__all__ = ["Link", "LinkEnd", "exchange_hello"]

logger = logging.getLogger("arcp_trio.client")

_LAST_WORDS_SECONDS = 0.5
"""How long a connection that is given up may take to say why; the session does not wait longer for the next one."""


@attrs.frozen(kw_only=True)
class LinkEnd:
    """How a connection ended.

    Attributes:
        code: The close code; the one that we close with, where the end is ours.
        reason: What happened, for people.
        last_words: A frame that is still sent before we close.
        retry: Whether another connection may help; ``None`` lets the code decide.
    """

    code: int
    reason: str
    last_words: bytes | None = None
    retry: bool | None = None


async def exchange_hello(
    transport: Transport, hello: bytes, limits: ClientLimits
) -> tuple[Envelope, list[bytes | str]]:
    """Send a hello and wait for the welcome.

    Returns:
        The welcome, and what came with it: what some runtimes replay before it (D21), and what stood behind it.

    Raises:
        ARCPError: The runtime refused the hello.
        TransportClosedError: The connection ended.

    Cancellation: the transport can only be aborted.
    """
    await transport.send([hello])
    early: list[bytes | str] = []
    while True:
        frames = await transport.receive()
        for index, frame in enumerate(frames):
            envelope: Envelope | None = None
            # What is no envelope is left to the reader, which ignores and counts it (P5.4).
            with suppress(MalformedFrameError):
                envelope = decode_envelope(frame, strict=False)
            if envelope is not None and envelope.type == "session.welcome":
                return envelope, [*early, *frames[index + 1 :]]
            if envelope is not None and envelope.type in ("session.error", "session.rejected", "job.error"):
                raise error_of(read_message(envelope, SessionError))
            if len(early) < limits.early_frames:
                early.append(frame)


class Link:
    """A connection after its handshake.

    Args:
        transport: What carries it; aborted at the end of :meth:`run`.
        limits: The client's bounds.
        timers: Who calls at the heartbeat's deadlines.
        receive: Takes each frame. Synchronous; raises TransportClosedError to give the connection up.

    Attributes:
        end: How it ended; ``None`` before.
        said: The error that the runtime gave as the reason why it would close.
        goodbye: Whether the runtime said goodbye.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        limits: ClientLimits,
        timers: Timers,
        receive: Callable[[bytes | str], None],
    ) -> None:
        self.transport = transport
        self._limits = limits
        self._timers = timers
        self._receive = receive
        self._outbox: deque[Outgoing] = deque()
        self._writer = FrameWriter(
            transport,
            self,
            batch_bytes=limits.write_batch_bytes,
            write_seconds=limits.write_seconds,
            written=self._on_written,
        )
        self._writing = False
        self._written_all = trio.Event()
        self._heartbeat: Heartbeat | None = None
        self._ended = trio.Event()
        self.end: LinkEnd | None = None
        self.said: ARCPError | None = None
        self.goodbye = False

    # --- sending ------------------------------------------------------------------------------------

    def send(self, outgoing: Outgoing) -> None:
        """Give a frame to the writer. Synchronous; never fails."""
        if self.end is None:
            self._outbox.append(outgoing)
            self._writer.wake()

    def answer_ping(self, pong: bytes) -> None:
        """Send a pong, unless pings come faster than the runtime reads our answers: it does not need more."""
        if len(self._outbox) < self._limits.requests:
            self.send(Outgoing(pong))

    def take(self, limit: int) -> list[bytes]:
        """Hand frames to the writer."""
        frames: list[bytes] = []
        size = 0
        while self._outbox and size < limit:
            outgoing = self._outbox.popleft()
            outgoing.taken = True
            frames.append(outgoing.frame)
            size += len(outgoing.frame)
        self._writing = bool(frames)
        return frames

    def _on_written(self) -> None:
        self._writing = False
        if self._heartbeat is not None:
            self._heartbeat.sent()

    async def flush(self) -> None:
        """Wait until everything is written, or the connection has ended; nothing can be sent afterwards.

        Cancellation: a checkpoint.
        """
        self._writer.finish()
        await self._written_all.wait()

    # --- its life -----------------------------------------------------------------------------------

    def watch(self, interval: float, *, ping: Callable[[], bytes], lost: Callable[[], LinkEnd]) -> None:
        """Watch the runtime's signs of life (P6.13, P6.14).

        Args:
            interval: Seconds.
            ping: Makes a ping.
            lost: Says how the connection ends when there are none.
        """
        self._heartbeat = Heartbeat(
            self._timers,
            interval,
            ping=lambda: self.send(Outgoing(ping())),
            lost=lambda: self.give_up(lost()),
        )

    def give_up(self, end: LinkEnd) -> None:
        """End the connection, if nothing has ended it before. Synchronous; :meth:`run` returns soon."""
        if self.end is None:
            self.end = end
            self._ended.set()
            if self._heartbeat is not None:
                self._heartbeat.stop()

    async def wait_ended(self) -> None:
        """Wait until the connection has ended.

        Cancellation: a checkpoint.
        """
        await self._ended.wait()

    @trio.lowlevel.enable_ki_protection
    async def run(self, frames: Sequence[bytes | str]) -> None:
        """Read and write until the connection has ended, then close it.

        Args:
            frames: What came with the welcome.

        Cancellation: the connection is aborted.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, name="arcp client writer")
                nursery.start_soon(self._read, frames, name="arcp client reader")
                if self._heartbeat is not None:
                    self._heartbeat.start()
                await self._ended.wait()
                await self._say_why()
                nursery.cancel_scope.cancel(reason="the connection has ended")
        finally:
            self.give_up(LinkEnd(code=CloseCode.NORMAL, reason="the client was closed", retry=False))
            self._written_all.set()
            await self.transport.abort()  # noqa: ASYNC102  # never blocks

    async def _say_why(self) -> None:
        """Close with a reason where the end is ours: between two frames, or not at all (P6.14)."""
        assert self.end is not None
        if self.end.last_words is None or self._writing:
            return
        with trio.move_on_after(_LAST_WORDS_SECONDS):
            self._outbox.clear()
            self._outbox.append(Outgoing(self.end.last_words))
            await self.flush()
            await self.transport.aclose(self.end.code, self.end.reason)

    @trio.lowlevel.enable_ki_protection
    async def _write(self) -> None:
        try:
            await self._writer.run()
        except TransportClosedError as exc:
            # What came before the end is still read: the reader sees the end itself, soon.
            self._written_all.set()
            with trio.move_on_after(self._limits.close_seconds):
                await self._ended.wait()
            self.give_up(LinkEnd(code=exc.code, reason=str(exc)))
        finally:
            self._written_all.set()

    @trio.lowlevel.enable_ki_protection
    async def _read(self, frames: Sequence[bytes | str]) -> None:
        try:
            while True:
                if self._heartbeat is not None:
                    self._heartbeat.received()
                for frame in frames:
                    self._receive(frame)
                    if self.end is not None:
                        # What stands behind a gap, or came for another connection meanwhile, is sent again.
                        return
                frames = await self.transport.receive()
        except TransportClosedError as exc:
            self.give_up(LinkEnd(code=exc.code, reason=str(exc)))
        except Exception as exc:
            # A bug in here ends the session and says so; it does not leave as a group from the user's block.
            logger.exception("a bug in the reader of %s", self.transport.description)
            self.give_up(
                LinkEnd(code=CloseCode.INTERNAL, reason=f"the client failed: {type(exc).__name__}", retry=False)
            )
