"""WebSocket on trio-websocket, as a :class:`~arcp_trio.transports.base.Transport`.

The library's own ``send_message`` writes one message at a time, which is 3 to 6 times slower than
writing what is ready together (baselines.md, 2), and its ``get_message`` hands over one message at a time.
It has no public way to do either for many; the private names that this takes stand in
:class:`_Engine` and nowhere else, and ``tests/transports/test_websocket_engine.py`` says what broke when the
library changes.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit, urlunsplit

import trio
import trio_websocket
from trio_websocket import ConnectionClosed, WebSocketConnection
from wsproto.events import TextMessage
from wsproto.utilities import LocalProtocolError

from .base import CloseCode, TransportClosedError

__all__ = ["RECEIVE_QUEUE", "WebSocketTransport", "accept_websocket", "open_websocket", "upgrade_host"]

logger = logging.getLogger("arcp_trio.transports")

_T = TypeVar("_T")

RECEIVE_QUEUE = 32
"""Messages that the library queues before its reader waits for ours, which never stops draining."""

_RECEIVE_BUFFER = 64 * 1024
_REFUSAL_CHARACTERS = 200


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
        except (trio_websocket.ConnectionRejected, LocalProtocolError) as exc:
            self.error = exc
        except Exception as exc:
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


async def accept_websocket(
    nursery: trio.Nursery, stream: trio.abc.Stream, *, receive_bytes: int
) -> trio_websocket.WebSocketRequest:
    """Read the upgrade request of a new connection.

    Args:
        nursery: Where the library's reader task lives; it ends with the connection.
        stream: The connection, after TLS if there is any.
        receive_bytes: The largest message that is read; a larger one closes with 1009 (P4.4).

    Raises:
        TransportClosedError: The peer has gone, or what it sent is no HTTP.

    Cancellation: the stream is to be closed by the caller.
    """
    wrap = trio_websocket.wrap_server_stream
    request = await _Reader(nursery).shake_hands(wrap, stream, max_message_size=receive_bytes)
    if request is None:
        raise TransportClosedError(CloseCode.ABNORMAL, "the connection ended before its upgrade")
    return request


def upgrade_host(request: trio_websocket.WebSocketRequest) -> str | None:
    """Return the Host header of an upgrade request.

    wsproto takes it out of the headers, and the library shows those alone: one more private name.
    """
    return request._event.host or None  # noqa: SLF001


def _root_cause(exc: BaseException) -> str:
    """Say what is behind an error of connecting, which often says nothing itself."""
    while isinstance(exc, BaseExceptionGroup) or exc.__cause__ is not None:
        exc = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc.__cause__ or exc
    if isinstance(exc, ConnectionError) and exc.errno is not None:
        # Trio's own text names the address again.
        return os.strerror(exc.errno)
    return str(exc) or type(exc).__name__


def _without_secrets(url: str) -> str:
    """Return a URL as logs may show it: without userinfo and query, where some proxies take a key (P14.2)."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _upgrade_target(parts: SplitResult) -> tuple[str, int, str]:
    """Return the Host header, the port and the resource that an upgrade asks for."""
    default_port = 80 if parts.scheme == "ws" else 443
    port = parts.port or default_port
    hostname = parts.hostname or ""
    # The library's own way to connect leaves an IPv6 address without its brackets, and a socket open when it fails.
    host = f"[{hostname}]" if ":" in hostname else hostname
    if port != default_port:
        host = f"{host}:{port}"
    return host, port, urlunsplit(("", "", parts.path or "/", parts.query, ""))


async def _open_stream(parts: SplitResult, port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
    assert parts.hostname is not None
    stream = await trio.open_tcp_stream(parts.hostname, port)
    if parts.scheme == "ws":
        return stream
    context = context or ssl.create_default_context()
    secure = trio.SSLStream(stream, context, server_hostname=parts.hostname, https_compatible=True)
    try:
        # Here, and not with the first bytes: what is wrong with a certificate is known and said at once.
        await secure.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)  # noqa: ASYNC102, ASYNC120  # never blocks
        raise
    return secure


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
        connect_seconds: How long connecting and the upgrade may take together.
        close_seconds: How long the closing handshake may take.
        ssl_context: For ``wss://``; ``None`` verifies the server against the system's authorities.

    Raises:
        TransportClosedError: It could not be opened; the reason says why.
        ValueError: The URL is not one.

    Whatever the body raises leaves as it is, not in a group.

    Cancellation: the connection is closed at once; cancelled while it is being left, within ``close_seconds``.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError("a WebSocket's URL is ws://HOST… or wss://HOST…")
    host, port, resource = _upgrade_target(parts)
    shown = _without_secrets(url)
    stream: trio.abc.Stream | None = None
    connecting = trio.CancelScope(deadline=trio.current_time() + connect_seconds)
    try:
        with connecting:
            stream = await _open_stream(parts, port, ssl_context)
    except (OSError, trio.BrokenResourceError) as exc:
        raise TransportClosedError(CloseCode.ABNORMAL, f"cannot connect to {shown}: {_root_cause(exc)}") from exc
    if stream is None:
        raise TransportClosedError(
            CloseCode.ABNORMAL, f"cannot connect to {shown}: nothing within {connect_seconds:g} seconds"
        )
    connection: WebSocketConnection | None = None
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            reader = _Reader(nursery)
            with trio.CancelScope(deadline=connecting.deadline):
                wrap = trio_websocket.wrap_client_stream
                connection = await reader.shake_hands(wrap, stream, host, resource, max_message_size=receive_bytes)
            if connection is not None:
                transport = WebSocketTransport(connection, shown)
                try:
                    yield transport
                except BaseException as exc:  # noqa: BLE001, ASYNC103  # raised below, outside of the nursery
                    body_error = exc
                transport.stop_receiving()
                if not isinstance(body_error, trio.Cancelled):
                    with trio.move_on_after(close_seconds, shield=True):
                        await transport.aclose()
                await transport.abort()
            # Shielded, so that what a caller's scope cancels meanwhile does not take the place of the body's error.
            nursery.cancel_scope.shield = True
            nursery.cancel_scope.cancel(reason="the connection is closed")
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
    if connection is None:
        raise _refused(shown, reader.error, connect_seconds, timed_out=trio.current_time() >= connecting.deadline)
    if body_error is not None:
        raise body_error


def _refused(shown: str, error: Exception | None, connect_seconds: float, *, timed_out: bool) -> TransportClosedError:
    """Say why there is no connection after an upgrade was asked for."""
    if isinstance(error, trio_websocket.ConnectionRejected):
        # Our gateways say why, in one line; of a page that some proxy writes its first line is enough.
        first, _, _ = (error.body or b"").decode(errors="replace").strip().partition("\n")
        why = "".join(character if character.isprintable() else " " for character in first[:_REFUSAL_CHARACTERS])
        return TransportClosedError(
            CloseCode.POLICY,
            f"{shown} refused the upgrade with HTTP status {error.status_code}{why and ': '}{why}",
        )
    why = f"no answer to the upgrade within {connect_seconds:g} seconds" if timed_out else "it hung up on the upgrade"
    return TransportClosedError(CloseCode.ABNORMAL, f"cannot connect to {shown}: {why}")
