"""A server on a port, a connection behind each WebSocket upgrade (P4.1, P14.1); or on stdin and stdout (P4.2)."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import attrs
import trio

from .runtime import Runtime
from .sessions.auth import Principal, Verifier
from .transports.base import CloseCode, Transport, TransportClosedError
from .transports.engines import Engine, EngineName, find_engine
from .transports.upgrade import UpgradeHead
from .wire.dialects import find_dialect

__all__ = ["Listening", "serve_stdio", "serve_websocket"]

logger = logging.getLogger("arcp_trio.gateway")

_MAX_PORT = 65_535
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@attrs.frozen
class Listening:
    """Where a gateway listens.

    Attributes:
        url: Its address for clients, ``ws://HOST:PORT/arcp``.
        port: The port, also when it was picked.
    """

    url: str
    port: int


def _is_loopback(host: str) -> bool:
    if host in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _socket_below(stream: trio.abc.Stream) -> trio.SocketStream | None:
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return stream if isinstance(stream, trio.SocketStream) else None


def _keep_alive(stream: trio.abc.Stream) -> None:
    """Have the kernel find out that a peer is gone which negotiated no heartbeats: nobody else would."""
    below = _socket_below(stream)
    if below is not None:
        with suppress(OSError):
            below.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _peer_name(stream: trio.abc.Stream) -> str:
    """Return where a connection comes from, as logs show it: ``127.0.0.1:51520``."""
    below = _socket_below(stream)
    # A peer that has gone already has no name any more.
    with suppress(OSError):
        if below is not None:
            host, port, *_ = below.socket.getpeername()
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "somewhere"


def _host_name(value: str) -> str | None:
    """Return the host of a Host header or an Origin, without its port; ``None`` if it is neither."""
    if value.count(":") > 1 and "[" not in value and "//" not in value:
        # An IPv6 address without its brackets, as trio-websocket's client writes it, with or without a port.
        for address in (value.rpartition(":")[0], value):
            with suppress(ValueError):
                return str(ipaddress.ip_address(address))
        return None
    try:
        return urlsplit(value if "//" in value else f"//{value}").hostname
    except ValueError:
        return None


@attrs.frozen(kw_only=True)
class _Gateway:
    """One listener's rules for upgrades."""

    runtime: Runtime
    verifier: Verifier
    path: str
    hosts: Collection[str] | None
    origins: Collection[str] | None
    loopback: bool
    private: bool
    compat: str | None
    engine: Engine

    @trio.lowlevel.enable_ki_protection
    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one TCP connection, in a task of the runtime: nothing that it raises may leave."""
        _keep_alive(stream)
        try:
            await self._serve(stream)
        except* (TransportClosedError, OSError) as group:
            logger.debug("a connection broke before its handshake: %r", group.exceptions)
        except* Exception:
            logger.exception("a connection failed")
        except* KeyboardInterrupt as group:
            # In a library's reader task, which is not protected: it is the program's all the same.
            self.runtime.fail(KeyboardInterrupt())
            logger.debug("interrupted in a connection: %r", group)
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            transport: Transport | None = None
            with trio.move_on_after(self.runtime.limits.hello_seconds):
                transport = await self._upgrade(nursery, stream)
            if transport is not None:
                await self.runtime.serve_transport(transport, verifier=self.verifier, compat=self.compat)
            # An engine's task may wait for a peer that never answers a close.
            nursery.cancel_scope.cancel(reason="the connection is closed")

    async def _upgrade(self, nursery: trio.Nursery, stream: trio.abc.Stream) -> Transport | None:
        """Answer the upgrade request; ``None`` if it was refused."""
        peer = _peer_name(stream)
        request = await self.engine.accept_websocket(
            nursery,
            stream,
            receive_bytes=self.runtime.limits.receive_bytes,
            description=peer,
            private=self.private,
        )
        refusal = self._refusal(request.head)
        if refusal is None:
            return await request.accept()
        status, reason = refusal
        logger.info("refused an upgrade from %s: %s", peer, reason)
        await request.reject(status, reason)
        return None

    def _refusal(self, asked: UpgradeHead) -> tuple[int, str] | None:
        """Say why an upgrade is refused, with its HTTP status; ``None`` lets it pass."""
        path = asked.target.partition("?")[0]
        if path.rstrip("/") != self.path.rstrip("/"):
            return 404, f"ARCP is at {self.path}"
        if self.hosts is not None and (asked.host is None or _host_name(asked.host) not in self.hosts):
            # A name that points here and is not ours: DNS rebinding.
            return 421, "this host is not served here"
        if asked.origin is not None and not self._origin_allowed(asked.origin):
            return 403, "this origin is not allowed"
        if self.runtime.at_connection_limit:
            return 503, "too many connections, or shutting down"
        return None

    def _origin_allowed(self, origin: str) -> bool:
        if self.origins is not None:
            return origin in self.origins
        # Without a list: pages of this machine, for a gateway that only this machine reaches.
        return self.loopback and _is_loopback(_host_name(origin) or "")


async def serve_websocket(
    runtime: Runtime,
    host: str,
    port: int,
    *,
    verifier: Verifier | None = None,
    path: str = "/arcp",
    ssl_context: ssl.SSLContext | None = None,
    allow_plaintext: bool = False,
    private_loopback: bool = False,
    allowed_hosts: Collection[str] | None = None,
    allowed_origins: Collection[str] | None = None,
    compat: str | None = None,
    engine: EngineName = "auto",
    task_status: trio.TaskStatus[Listening] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a runtime to WebSocket clients, until cancelled or until the runtime shuts down.

    Args:
        runtime: What is served.
        host: The address or name to listen on.
        port: The port; 0 picks a free one, see :class:`Listening`.
        verifier: Who decides on tokens; ``None`` takes the runtime's. For everybody, say
            :class:`~arcp_trio.sessions.auth.AnonymousAccess`.
        path: Where ARCP is, beginning with a slash; served with and without one at its end (P4.1).
        ssl_context: For ``wss://``.
        allow_plaintext: Whether ``ws://`` may be served off loopback, for example behind a proxy that does TLS.
        private_loopback: Whether ``ws://`` on loopback may carry provisioned credentials, as ``wss://`` may (P9.10):
            a program of this machine that may capture its traffic could read them.
        allowed_hosts: The names that a Host header may have; ``None``: loopback names on loopback, any elsewhere.
        allowed_origins: The origins of browser pages that may connect (``https://example.org``); ``None``: those of
            loopback names on loopback, none elsewhere. Clients that are no browsers send none and are not concerned.
        compat: The name of a dialect for all connections (:data:`arcp_trio.wire.dialects.DIALECTS`); ``None`` detects
            it for each.
        engine: Which library carries the frames: ``trio-websocket``, ``websockets`` (of the extra ``fast``), or
            ``auto``, which takes websockets where it is installed. What the gateway does is the same with either.
        task_status: ``await nursery.start(serve_websocket, …)`` returns a :class:`Listening` once the port is open.

    Raises:
        ValueError: There is no verifier, no such port, dialect or engine, or ``path`` begins with no slash; or it is
            neither loopback nor TLS, and ``allow_plaintext`` was not said.
        ImportError: The engine is not installed.
        OSError: The port cannot be opened.

    Cancellation: the listener is closed; connections that stand go on, until they close or the runtime does.
    """
    verifier = verifier or runtime.verifier
    if verifier is None:
        raise ValueError("a gateway needs a verifier; for anonymous access say AnonymousAccess()")
    if compat is not None:
        # Here, and not with each connection, which nobody would serve.
        find_dialect(compat)
    if not 0 <= port <= _MAX_PORT:
        # The resolver would take its last 16 bits.
        raise ValueError(f"port: expected a number between 0 and {_MAX_PORT}, got {port}")
    if not path.startswith("/"):
        raise ValueError(f"path: expected one that begins with /, got {path!r}")
    loopback = _is_loopback(host)
    if not loopback and ssl_context is None and not allow_plaintext:
        raise ValueError(
            f"tokens would cross the network unencrypted on {host}: give an ssl_context, or say allow_plaintext=True"
        )
    if allowed_hosts is None and loopback:
        allowed_hosts = _LOOPBACK_NAMES | {host}
    gateway = _Gateway(
        runtime=runtime,
        verifier=verifier,
        path=path,
        # A browser writes names in lower case, and so does _host_name.
        hosts=None if allowed_hosts is None else frozenset(name.lower() for name in allowed_hosts),
        origins=allowed_origins,
        loopback=loopback,
        private=ssl_context is not None or (loopback and private_loopback),
        compat=compat,
        engine=find_engine(engine),
    )
    with trio.CancelScope() as scope:
        runtime.add_listener(scope)
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
            bound: int = listeners[0].socket.getsockname()[1]
            wrapped = [
                listener if ssl_context is None else trio.SSLListener(listener, ssl_context, https_compatible=True)
                for listener in listeners
            ]

            scheme = "ws" if ssl_context is None else "wss"
            shown = f"[{host}]" if ":" in host else host
            task_status.started(Listening(f"{scheme}://{shown}:{bound}{path}", bound))
            # The connections' tasks belong to the runtime and outlive this listener.
            await runtime.accept_connections(gateway.serve_stream, wrapped)
        finally:
            runtime.remove_listener(scope)


class _StaysOpen:
    """A transport that stays open when the other end has said all: it still hears how its jobs end.

    Args:
        transport: The transport.
        ended: Is called when the other end has said all.
    """

    def __init__(self, transport: Transport, ended: Callable[[], None]) -> None:
        self._transport = transport
        self._ended = ended
        self.description = transport.description
        self.private = transport.private
        self.send = transport.send
        self.aclose = transport.aclose
        self.abort = transport.abort

    async def receive(self) -> Sequence[bytes | str]:
        """Return the frames that have arrived; behind the last, wait until this side closes."""
        try:
            return await self._transport.receive()
        except TransportClosedError as exc:
            if exc.code != CloseCode.NORMAL or not exc.can_send:
                raise
        self._ended()
        await trio.sleep_forever()
        raise AssertionError


async def serve_stdio(runtime: Runtime, transport: Transport, *, principal: str | Principal) -> None:
    """Serve a runtime to the one client that has started it, and shut the runtime down when that client ends.

    Where the client only closes its side, running jobs are told to stop, and it is still told how they ended. A
    session that it closes, or a connection that breaks, ends the runtime likewise: nobody else could come.

    Args:
        runtime: What is served. It has shut down when this returns.
        transport: Of :func:`~arcp_trio.transports.stdio.open_stdio`; closed when this returns.
        principal: Whose session it is, whatever token it shows: who can start a process needs none.

    Cancellation: the connection stays, until it closes or the runtime does.
    """
    ended = trio.Event()

    async def serve() -> None:
        try:
            await runtime.serve_transport(_StaysOpen(transport, ended.set), principal=principal)
        finally:
            ended.set()

    # A task of the runtime: its shutdown waits for it, and says goodbye to the client.
    runtime.spawn_connection(serve, "session over stdio")
    await ended.wait()
    logger.info("the client has ended: shutting down, within %g seconds", runtime.limits.shutdown_seconds)
    await runtime.aclose()
