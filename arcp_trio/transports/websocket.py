"""WebSocket on trio-websocket, as a :class:`~arcp_trio.transports.base.Transport`.

The library's own ``send_message`` writes one message at a time, which is 3 to 6 times slower than
writing what is ready together (baselines.md, 2), and its ``get_message`` hands over one message at a time.
It has no public way to do either for many; the private names that this takes stand in
:class:`_Engine` and nowhere else, and ``tests/transports/test_websocket_engine.py`` says what broke when the
library changes.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

import trio
import trio_websocket
from trio_websocket import ConnectionClosed, WebSocketConnection
from wsproto.events import TextMessage
from wsproto.utilities import LocalProtocolError

from .base import CloseCode, TransportClosedError

__all__ = ["RECEIVE_QUEUE", "WebSocketTransport", "accept_websocket", "open_websocket", "upgrade_host"]

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
        await trio.aclose_forcefully(self._connection._stream)  # noqa: SLF001


class WebSocketTransport:
    """A WebSocket connection after its handshake; see :class:`~arcp_trio.transports.base.Transport`."""

    def __init__(self, connection: WebSocketConnection, description: str) -> None:
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
        return TransportClosedError(CloseCode.UNSUPPORTED_DATA, "ARCP frames are text")

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
        try:
            # A reason has at most 123 bytes in a close frame: wsproto cuts it, between characters.
            await self._connection.aclose(code, reason)
        except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError, LocalProtocolError):
            await self.abort()
        except trio.Cancelled:
            await self.abort()  # noqa: ASYNC102  # never blocks
            raise
        await trio.lowlevel.checkpoint()

    def stop_receiving(self) -> None:
        """Drop what is queued and what comes. Nobody may receive any more."""
        self._engine.stop_receiving()

    async def abort(self) -> None:
        """Close the stream below at once."""
        await self._engine.close_stream()


async def accept_websocket(
    nursery: trio.Nursery, stream: trio.abc.Stream, *, receive_bytes: int
) -> trio_websocket.WebSocketRequest:
    """Read the upgrade request of a new connection.

    Args:
        nursery: Where the library's reader task lives; it ends with the connection.
        stream: The connection, after TLS if there is any.
        receive_bytes: The largest message that is read; a larger one closes with 1009 (P4.4).

    Cancellation: the stream is to be closed by the caller.
    """
    return await trio_websocket.wrap_server_stream(
        nursery,
        stream,
        message_queue_size=RECEIVE_QUEUE,
        max_message_size=receive_bytes,
        receive_buffer_size=_RECEIVE_BUFFER,
    )


def upgrade_host(request: trio_websocket.WebSocketRequest) -> str | None:
    """Return the Host header of an upgrade request.

    wsproto takes it out of the headers, and the library shows those alone: one more private name.
    """
    return request._event.host or None  # noqa: SLF001


def _root_cause(exc: BaseException) -> str:
    """Say what is behind the library's error, which often says nothing itself."""
    while isinstance(exc, BaseExceptionGroup) or exc.__cause__ is not None:
        exc = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc.__cause__ or exc
    return str(exc) or type(exc).__name__


def _without_secrets(url: str) -> str:
    """Return a URL as logs may show it: without userinfo and query, where some proxies take a key (P14.2)."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@asynccontextmanager
async def open_websocket(
    url: str,
    *,
    receive_bytes: int,
    connect_seconds: float,
    close_seconds: float,
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncGenerator[WebSocketTransport, None]:
    """Open a connection to ``url`` (``ws://`` or ``wss://``); it is closed on leaving.

    Args:
        url: The runtime's address.
        receive_bytes: The largest message that is read.
        connect_seconds: How long connecting and the upgrade may take.
        close_seconds: How long the closing handshake may take.
        ssl_context: For ``wss://``; ``None`` verifies the server against the system's authorities.

    Raises:
        TransportClosedError: It could not be opened; the reason says why.
        ValueError: The URL is not one.
    """
    opened = False
    body_error: BaseException | None = None
    try:
        # The library's context manager and not its connect function: a refusal is raised in the
        # library's reader task, and only the former brings it to the caller, alone.
        async with trio_websocket.open_websocket_url(
            url,
            ssl_context,
            message_queue_size=RECEIVE_QUEUE,
            max_message_size=receive_bytes,
            receive_buffer_size=_RECEIVE_BUFFER,
            connect_timeout=connect_seconds,
            disconnect_timeout=close_seconds,
        ) as connection:
            opened = True
            transport = WebSocketTransport(connection, _without_secrets(url))
            try:
                yield transport
            except BaseException as exc:
                body_error = exc
                raise
            finally:
                transport.stop_receiving()
                # Here and not by the library: where its reader fails meanwhile, it would raise the Cancelled of
                # its own nursery, which belongs to no scope outside.
                with trio.move_on_after(close_seconds):
                    await transport.aclose()  # noqa: ASYNC102  # cancelled, it closes at once
                # The library leaves the stream open where the peer, or a limit, has closed, and waits for the peer.
                await transport.abort()  # noqa: ASYNC102  # never blocks
    except trio_websocket.ConnectionRejected as exc:
        raise TransportClosedError(
            CloseCode.POLICY, f"{_without_secrets(url)} refused the upgrade with HTTP status {exc.status_code}"
        ) from exc
    except LocalProtocolError:
        # The peer's ping came behind our close, and the library's reader failed to answer it.
        if body_error is not None and not isinstance(body_error, trio.Cancelled):
            raise body_error from None
    except (trio_websocket.HandshakeError, ConnectionClosed, OSError) as exc:
        if opened:
            # Ours were translated where they arose: this is the caller's.
            raise
        raise TransportClosedError(
            CloseCode.ABNORMAL, f"cannot connect to {_without_secrets(url)}: {_root_cause(exc)}"
        ) from exc
