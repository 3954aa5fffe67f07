"""The engine of the extra ``fast``: WebSocket on the library websockets, see :mod:`arcp_trio.transports.engines`.

Theory of operation. The library's :class:`~websockets.protocol.Protocol` has no I/O: bytes go in, frames and bytes come
out. Around it stands this shell, and no task: :meth:`WebSocketsTransport.receive` reads the socket itself, and
:meth:`~WebSocketsTransport.aclose` does when nobody receives. What the protocol wants to say by itself, a pong or the
answer to a close, goes out under the lock that our own writes hold, behind the frames that are under way; where none
are, in a short-lived task of the connection's nursery, because whoever reads must never wait for a peer that does not.

Text that a server sends is framed here: two or four bytes and the text as it is, where the library takes six times as
long. Everything else is the library's to frame, mask, check and answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import trio
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from .base import CloseCode, Transport, TransportClosedError
from .upgrade import Refused, UpgradeHead, UpgradeRequest, ask_for_upgrade, read_upgrade

__all__ = ["WebSocketsTransport", "accept_websocket", "connect_websocket"]

_RECEIVE_BUFFER = 64 * 1024
_CONTROL_SECONDS = 60.0
"""How long a pong or the answer to a close may make no progress; past it the connection is broken."""
_MAX_REASON_BYTES = 123
"""A control frame has at most 125 bytes, and the code takes two."""
_INVALID_TEXT = 1007
_NEVER_SENT = frozenset({1005, CloseCode.ABNORMAL, 1015})
"""Codes that RFC 6455 keeps for what was not sent."""

_TEXT, _CONTINUATION, _BINARY = Opcode.TEXT, Opcode.CONT, Opcode.BINARY
_PONG_HEAD = b"\x8a"

_LENGTH_IN_2, _LENGTH_IN_8 = 126, 127
_TWO_BYTES = 1 << 16
_SHORT_HEADS = tuple(bytes((0x81, size)) for size in range(_LENGTH_IN_2))
_HEAD_2, _HEAD_8 = bytes((0x81, _LENGTH_IN_2)), bytes((0x81, _LENGTH_IN_8))

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter


class _Discreet(_Adapter):
    """The library's logger, without what it says at DEBUG: whole frames, with the token in the first (P14.2)."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # logging's name
        """Say whether a level is logged."""
        return level >= logging.WARNING and super().isEnabledFor(level)


_LIBRARY_LOGGER = _Discreet(logging.getLogger("arcp_trio.transports"), {})


def _frame_texts(frames: Sequence[bytes]) -> bytes:
    """Return unmasked frames of text, as a server sends them."""
    parts: list[bytes] = []
    for frame in frames:
        size = len(frame)
        if size < _LENGTH_IN_2:
            parts.append(_SHORT_HEADS[size])
        elif size < _TWO_BYTES:
            parts.append(_HEAD_2 + size.to_bytes(2, "big"))
        else:
            parts.append(_HEAD_8 + size.to_bytes(8, "big"))
        parts.append(frame)
    return b"".join(parts)


class WebSocketsTransport:
    """A WebSocket connection after its upgrade; see :class:`~arcp_trio.transports.base.Transport`.

    Args:
        nursery: Where answers are written from that nobody waits for; it outlives the transport.
        stream: The connection.
        side: Which end this is.
        early: What was read behind the upgrade.
        receive_bytes: The largest message that is read.
        description: Where it leads.
        private: Whether it is encrypted, or leads nowhere where it could be read.
    """

    __slots__ = (
        "_answering",
        "_binary",
        "_closing",
        "_description",
        "_early",
        "_end",
        "_handing_over",
        "_is_server",
        "_last_word",
        "_message",
        "_nursery",
        "_over",
        "_pong",
        "_protocol",
        "_reading",
        "_said_close",
        "_stream",
        "_torn",
        "_writing",
        "private",
    )

    def __init__(
        self,
        nursery: trio.Nursery,
        stream: trio.abc.Stream,
        side: Side,
        *,
        early: bytes,
        receive_bytes: int,
        description: str,
        private: bool = False,
    ) -> None:
        self.private = private
        self._nursery = nursery
        self._stream = stream
        self._description = description
        self._early = early
        self._is_server = side is Side.SERVER
        self._protocol = Protocol(side, max_size=receive_bytes, logger=_LIBRARY_LOGGER)
        # The text of a message of which not all fragments have come.
        self._message: bytearray | None = None
        self._binary = False
        # How the peer, or what it sent, has ended the connection.
        self._end: tuple[int, str] | None = None
        # How we end it, and whether the peer was told.
        self._closing: tuple[int, str] | None = None
        self._said_close = False
        # Set when nothing is to be read any more, and our last word is out or cannot be.
        self._over = trio.Event()
        # Whether somebody reads; and who wants to when he leaves.
        self._reading = False
        self._handing_over: trio.Event | None = None
        # Held for a whole write.
        self._writing = trio.StrictFIFOLock()
        # A write was not done to its end: half a frame may be out, and nothing may follow.
        self._torn = False
        # What the protocol wants to say. Of pongs only the newest waits (RFC 6455, 5.5.3), however many pings come.
        self._pong = b""
        self._last_word = b""
        self._answering = False

    @property
    def description(self) -> str:
        """Where it leads."""
        return self._description

    def _closed(self) -> TransportClosedError:
        return TransportClosedError(*(self._end or self._closing or (CloseCode.ABNORMAL, "")))

    # --- reading ------------------------------------------------------------------------------------

    async def receive(self) -> Sequence[bytes | str]:
        """Return the messages that have arrived; after a binary one, :meth:`aclose` closes with 1003 (P4.1)."""
        while self._end is None and self._closing is None:
            if self._binary:
                # Not closed here: the answers to what came before it may still be on their way.
                await trio.lowlevel.checkpoint()
                raise TransportClosedError(CloseCode.UNSUPPORTED_DATA, "ARCP frames are text", can_send=True)
            frames = await self._read()
            if frames:
                return frames
        if self._end is not None:
            # Who is told of the end aborts: the peer has to hear our last word before.
            await self._over.wait()
        else:
            await trio.lowlevel.checkpoint()
        raise self._closed()

    async def _read(self) -> list[str]:
        """Read once, and return the messages that this completes; none any more while we close.

        No checkpoint behind the read: a cancellation loses nothing.
        """
        self._reading = True
        try:
            if self._early:
                await trio.lowlevel.checkpoint()
                data: bytes | bytearray = self._early
                self._early = b""
            else:
                data = await self._stream.receive_some(_RECEIVE_BUFFER)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        finally:
            self._reading = False
            if self._handing_over is not None:
                self._handing_over.set()
                self._handing_over = None
        if not data:
            self._note_gone()
            return []
        self._protocol.receive_data(data)
        # The protocol begins behind the upgrade: all it receives are frames.
        texts = self._take_texts(cast("list[Frame]", self._protocol.events_received()))
        self._see_to_answers()
        return texts

    def _take_texts(self, frames: list[Frame]) -> list[str]:
        texts: list[str] = []
        if self._closing is not None or self._binary:
            return texts
        for frame in frames:
            if frame.opcode is _TEXT or frame.opcode is _CONTINUATION:
                data = frame.data
                if not frame.fin or self._message is not None:
                    if self._message is None:
                        self._message = bytearray()
                    # Joined as they come: empty ones, of which a peer may send any number, take no room.
                    self._message += data
                    if not frame.fin:
                        continue
                    data, self._message = self._message, None
                try:
                    texts.append(str(data, "utf-8"))
                except UnicodeDecodeError as exc:
                    self._protocol.fail(_INVALID_TEXT, f"{exc.reason} at position {exc.start}")
                    break
            elif frame.opcode is _BINARY:
                # What came before it is still good.
                self._binary = True
                break
        return texts

    def _see_to_answers(self) -> None:
        """Take what the protocol wants to say to what it has read, and the end if that was one."""
        protocol = self._protocol
        for data in protocol.data_to_send():
            # An empty one would half-close the stream: whoever owns the transport closes it.
            if data[:1] == _PONG_HEAD:
                # Behind our close stands nothing: some take a pong there for an error.
                self._pong = data if self._closing is None else b""
            elif data:
                self._last_word = data
        # The peer's close, or the one with which the protocol has given the peer up.
        close = protocol.close_rcvd or (None if self._said_close else protocol.close_sent)
        if close is not None and self._end is None:
            self._end = int(close.code), close.reason
            if not self._last_word:
                self._over.set()
        if (self._pong or self._last_word) and not self._answering:
            self._answering = True
            self._nursery.start_soon(self._write_answers, name="websocket answers")

    def _note_gone(self) -> None:
        """Take note that nothing comes any more, and nothing goes."""
        if self._end is None:
            self._end = CloseCode.ABNORMAL, ""
        self._over.set()

    # --- writing ------------------------------------------------------------------------------------

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write frames as text messages, with one write."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._end is not None or self._closing is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise self._closed()
        try:
            # A task switch less than acquire() where nobody holds it.
            self._writing.acquire_nowait()
        except trio.WouldBlock:
            await self._writing.acquire()
        try:
            if self._end is not None or self._said_close:
                # A close went before these frames.
                raise self._closed()
            await self._write(self._frame(frames))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            # Not aborted: what the peer has said before it went may still be read.
            raise self._closed() from exc
        finally:
            self._writing.release()

    def _frame(self, frames: Sequence[bytes]) -> bytes:
        if self._is_server:
            return _frame_texts(frames)
        for frame in frames:
            self._protocol.send_text(frame)
        return b"".join(self._protocol.data_to_send())

    async def _write(self, data: bytes) -> None:
        """Write, behind what waits to be answered. The lock is held.

        Raises:
            trio.BrokenResourceError: The peer has gone, or half a frame went before.
            trio.ClosedResourceError: The transport was aborted.
        """
        if self._torn:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("half a frame may have been sent")
        if self._pong or self._last_word:
            data = self._pong + data + self._last_word
        is_last = bool(self._last_word)
        self._pong = self._last_word = b""
        self._torn = True
        await self._stream.send_all(data)
        self._torn = False
        if is_last:
            if self._protocol.close_rcvd is None:
                # Given up, in the middle of what it sends, perhaps: it must not wait for us to read on.
                await self._stream.aclose()
            self._over.set()

    @trio.lowlevel.enable_ki_protection
    async def _write_answers(self) -> None:
        """Write what the protocol wants to say."""
        try:
            while self._pong or self._last_word:
                async with self._writing:
                    with trio.move_on_after(_CONTROL_SECONDS) as scope:
                        await self._write(b"")
                if scope.cancelled_caught:
                    await self.abort()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # Whoever reads finds it out; whoever waits for the last word waits no more.
            self._pong = self._last_word = b""
        finally:
            self._answering = False
            if self._end is not None:
                self._over.set()

    # --- ending -------------------------------------------------------------------------------------

    async def aclose(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close with the closing handshake."""
        if self._binary:
            code, reason = CloseCode.UNSUPPORTED_DATA, "ARCP frames are text"
        try:
            if self._closing is None:
                self._closing = code, reason
                await self._say_close(code, reason)
            await self._wait_over()
            await self._stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.abort()
        except trio.Cancelled:
            await self.abort()  # noqa: ASYNC102  # never blocks
            raise
        await trio.lowlevel.checkpoint()

    async def _say_close(self, code: int, reason: str) -> None:
        """Send a close frame, unless the peer was first: then the answer to its own is on the way."""
        if code in _NEVER_SENT:
            code = CloseCode.NORMAL
        async with self._writing:
            if self._end is None:
                self._said_close = True
                self._protocol.send_close(code, reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore"))
                await self._write(b"".join(self._protocol.data_to_send()))

    async def _wait_over(self) -> None:
        """Wait for the peer's close or its end; read for it, unless somebody does."""
        while self._end is None:
            if self._reading:
                self._handing_over = self._handing_over or trio.Event()
                await self._handing_over.wait()
            else:
                await self._read()
        await self._over.wait()

    async def abort(self) -> None:
        """Close the stream below at once."""
        self._torn = True
        self._note_gone()
        with trio.CancelScope(shield=True):
            # Shielded: it never blocks, and a cleanup in a cancelled scope goes on behind it.
            await trio.aclose_forcefully(self._stream)


class _Upgrade:
    """A request that waits for its answer; see :class:`~arcp_trio.transports.engines.Upgrade`."""

    def __init__(self, request: UpgradeRequest, nursery: trio.Nursery, stream: trio.abc.Stream, **options: Any) -> None:
        self._request = request
        self.head: UpgradeHead = request.head
        self.reject = request.reject
        self._make = partial(WebSocketsTransport, nursery, stream, Side.SERVER, early=request.early, **options)

    async def accept(self) -> Transport:
        """Answer with 101."""
        await self._request.accept()
        return self._make()


async def accept_websocket(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    *,
    receive_bytes: int,
    description: str,
    private: bool = False,
) -> _Upgrade:
    """Read an upgrade request; see :class:`~arcp_trio.transports.engines.Engine`."""
    request = await read_upgrade(stream)
    return _Upgrade(request, nursery, stream, receive_bytes=receive_bytes, description=description, private=private)


async def connect_websocket(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    host: str,
    resource: str,
    *,
    receive_bytes: int,
    description: str,
    private: bool = False,
) -> Transport | Refused | None:
    """Ask for an upgrade; see :class:`~arcp_trio.transports.engines.Engine`."""
    early = await ask_for_upgrade(stream, host, resource)
    if not isinstance(early, bytes):
        return early
    return WebSocketsTransport(
        nursery,
        stream,
        Side.CLIENT,
        early=early,
        receive_bytes=receive_bytes,
        description=description,
        private=private,
    )
