"""The engine of a plain install: WebSocket on trio-websocket, see :mod:`arcp_trio.transports.engines`.

The library's own ``send_message`` writes one message at a time, which is 3 to 6 times slower than
writing what is ready together (baselines.md, 2), and its ``get_message`` hands over one message at a time.
It has no public way to do either for many; the private names that this takes stand in
:class:`_Engine` and nowhere else, and ``tests/transports/test_websocket_engine.py`` says what broke when the
library changes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import trio
import trio_websocket
from trio_websocket import ConnectionClosed, WebSocketConnection
from wsproto.events import TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from .base import CloseCode, Transport, TransportClosedError
from .upgrade import Refused, UpgradeHead

__all__ = ["RECEIVE_QUEUE", "WebSocketTransport", "accept_websocket", "connect_websocket"]

logger = logging.getLogger("arcp_trio.transports")

_T = TypeVar("_T")

RECEIVE_QUEUE = 32
"""Messages that the library queues before its reader waits for ours, which never stops draining."""

_RECEIVE_BUFFER = 64 * 1024


class _Engine:
    """The private names of trio-websocket 0.12 that are used, and all of them."""

    __slots__ = ("_connection",)

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection

    async def send_texts(self, frames: Sequence[bytes]) -> None:
        """Write text messages with one write, under the lock that the library's pongs respect."""
        connection = self._connection
        encode = connection._wsproto.send  # noqa: SLF001
        async with connection._stream_lock:  # noqa: SLF001
            data = b"".join([encode(TextMessage(data=frame.decode())) for frame in frames])
            await connection._stream.send_all(data)  # noqa: SLF001

    def receive_nowait(self) -> str | bytes:
        """Return a message that is queued already; raises trio.WouldBlock if none is."""
        return self._connection._recv_channel.receive_nowait()  # noqa: SLF001

    def stop_receiving(self) -> None:
        """Drop what is queued and what comes: the library's reader waits for ours no more."""
        self._connection._recv_channel.close()  # noqa: SLF001

    async def close_stream(self) -> None:
        """Close the stream below, with no closing handshake and no further byte."""
        with trio.CancelScope(shield=True):
            # Shielded: it never blocks, and a cleanup in a cancelled scope goes on behind it.
            await trio.aclose_forcefully(self._connection._stream)  # noqa: SLF001


class WebSocketTransport:
    """A WebSocket connection after its handshake; see :class:`~arcp_trio.transports.base.Transport`.

    Args:
        connection: The library's.
        description: Where it leads.
        private: Whether it is encrypted, or leads nowhere where it could be read.
    """

    def __init__(self, connection: WebSocketConnection, description: str, *, private: bool = False) -> None:
        self.private = private
        self._connection = connection
        self._engine = _Engine(connection)
        self._description = description
        self._binary = False

    @property
    def description(self) -> str:
        """Where it leads."""
        return self._description

    def _closed(self) -> TransportClosedError:
        reason = self._connection.closed
        if reason is None:
            return TransportClosedError(CloseCode.ABNORMAL)
        return TransportClosedError(reason.code, reason.reason or "")

    async def receive(self) -> Sequence[bytes | str]:
        """Return the messages that have arrived; after a binary one, :meth:`aclose` closes with 1003 (P4.1)."""
        if self._binary:
            raise await self._refuse_binary()
        try:
            messages: list[bytes | str] = [await self._connection.get_message()]
            with suppress(trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                while len(messages) < RECEIVE_QUEUE:
                    messages.append(self._engine.receive_nowait())
        except ConnectionClosed:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise self._closed() from None
        for index, message in enumerate(messages):
            if not isinstance(message, str):
                # What came before it is still good.
                self._binary = True
                del messages[index:]
                break
        if not messages:
            raise await self._refuse_binary()
        return messages

    async def _refuse_binary(self) -> TransportClosedError:
        # Not closed here: the answers to what came before it may still be on their way.
        await trio.lowlevel.checkpoint()
        return TransportClosedError(CloseCode.UNSUPPORTED_DATA, "ARCP frames are text", can_send=True)

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write frames as text messages, with one write."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._connection.closed is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise self._closed()
        try:
            await self._engine.send_texts(frames)
        except LocalProtocolError as exc:
            # A close went before these frames: it is under way, and must not be cut short.
            raise self._closed() from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            closed = self._closed()
            await self.abort()  # noqa: ASYNC120  # never blocks
            raise closed from exc

    async def aclose(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close with the closing handshake."""
        if self._binary:
            code, reason = CloseCode.UNSUPPORTED_DATA, "ARCP frames are text"
        # What is queued and what comes is nobody's any more, and must not keep the peer's answer from being read.
        self._engine.stop_receiving()
        try:
            # A reason has at most 123 bytes in a close frame: wsproto cuts it, between characters.
            await self._connection.aclose(code, reason)
        except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError, LocalProtocolError):
            await self.abort()
        except trio.Cancelled:
            await self.abort()  # noqa: ASYNC102  # never blocks
            raise
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """Close the stream below at once."""
        await self._engine.close_stream()


class _Reader:
    """Stands in for the nursery in which the library starts its reader task.

    Two things go wrong in the library's own: an error of the reader cancels whoever uses the connection (a ping behind
    our close is one), and a handshake waits for ever when the reader has ended, because the peer has gone.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._handshake = trio.CancelScope()
        self.error: Exception | None = None

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        """Start the reader; all that the library asks of a nursery."""
        self._nursery.start_soon(self._run, reader, name="websocket reader")

    @trio.lowlevel.enable_ki_protection
    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except (trio_websocket.ConnectionRejected, LocalProtocolError, UnicodeError) as exc:
            # UnicodeError: a Host header that is no name, which wsproto decodes without a net.
            self.error = exc
        except Exception as exc:
            # To a server's answer that is no upgrade's, the library has an answer, which a client cannot give.
            if not isinstance(exc.__context__, RemoteProtocolError):
                logger.exception("a bug in the reader of a websocket")
            self.error = exc
        finally:
            self._handshake.cancel(reason="the peer has gone")

    async def shake_hands(self, wrap: Callable[..., Awaitable[_T]], *args: Any, **options: Any) -> _T | None:
        """Return what ``wrap(nursery, …)`` returns; ``None`` if the reader ends before it does."""
        with self._handshake:
            return await wrap(
                self,
                *args,
                message_queue_size=RECEIVE_QUEUE,
                receive_buffer_size=_RECEIVE_BUFFER,
                **options,
            )
        return None


class _Upgrade:
    """A request that waits for its answer; see :class:`~arcp_trio.transports.engines.Upgrade`."""

    def __init__(self, request: trio_websocket.WebSocketRequest, description: str, *, private: bool) -> None:
        self._request = request
        self._description = description
        self._private = private
        # One more private name: the library shows all headers but the Host.
        self.head = UpgradeHead.of(request._event)  # noqa: SLF001

    async def accept(self) -> Transport:
        """Answer with 101."""
        try:
            connection = await self._request.accept()
        except ConnectionClosed as exc:
            raise _gone() from exc
        return WebSocketTransport(connection, self._description, private=self._private)

    async def reject(self, status: int, reason: str) -> None:
        """Answer with another status."""
        try:
            await self._request.reject(status, body=reason.encode())
        except ConnectionClosed as exc:
            raise _gone() from exc


def _gone() -> TransportClosedError:
    return TransportClosedError(CloseCode.ABNORMAL, "the connection ended before its upgrade")


async def accept_websocket(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    *,
    receive_bytes: int,
    description: str,
    private: bool = False,
) -> _Upgrade:
    """Read an upgrade request; see :class:`~arcp_trio.transports.engines.Engine`."""
    wrap = trio_websocket.wrap_server_stream
    request = await _Reader(nursery).shake_hands(wrap, stream, max_message_size=receive_bytes)
    if request is None:
        raise _gone()
    return _Upgrade(request, description, private=private)


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
    reader = _Reader(nursery)
    wrap = trio_websocket.wrap_client_stream
    connection = await reader.shake_hands(wrap, stream, host, resource, max_message_size=receive_bytes)
    if connection is not None:
        return WebSocketTransport(connection, description, private=private)
    if isinstance(reader.error, trio_websocket.ConnectionRejected):
        return Refused(reader.error.status_code, reader.error.body or b"")
    return None
