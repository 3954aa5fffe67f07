"""How a session is opened and left: over any transport, and over a WebSocket."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

import trio

from ..limits import ClientLimits
from ..timers import Timers
from ..transports.base import Transport, TransportClosedError
from ..transports.engines import EngineName
from ..transports.websocket import open_websocket
from ..wire.errors import ConnectionLostError
from ..wire.ids import IdFactory
from ..wire.session_messages import Auth
from ..wire.timestamps import WallClock
from .client import OFFERED_FEATURES, Client
from .connecting import Connector
from .reconnect import Reconnect
from .session import ClientSession

__all__ = ["open_client", "open_client_over"]

DEFAULT_RECONNECT = Reconnect()


@asynccontextmanager
async def open_client_over(
    transport: Transport,
    *,
    token: str,
    name: str = "arcp-trio",
    limits: ClientLimits | None = None,
    connect: Callable[[], AbstractAsyncContextManager[Transport]] | None = None,
    reconnect: Reconnect | None = DEFAULT_RECONNECT,
    features: Sequence[str] = OFFERED_FEATURES,
    ids: IdFactory | None = None,
    clock: WallClock | None = None,
) -> AsyncGenerator[Client, None]:
    """Open a session over a transport that is connected; both are closed on leaving.

    Args:
        transport: Of any kind.
        token: The bearer token.
        name: How the client names itself.
        limits: Its bounds; ``None`` for the defaults.
        connect: Opens another transport to the same runtime, and closes it, when this one has broken; raises
            TransportClosedError or OSError where that fails. ``None``: the session ends with its first connection.
        reconnect: How it is tried; ``None``: not at all.
        features: What the client offers; all that it implements, if nothing else is said (P6.4).
        ids: Where ids come from; tests give their own.
        clock: The time of day; tests give their own.

    Yields:
        The session, once the runtime has let it in.

    Raises:
        UnauthenticatedError: The runtime refused the token.
        ARCPError: The runtime refused the session for another reason.
        ConnectionLostError: The connection ended before the welcome, or no welcome came in time.

    Whatever the body raises leaves as it is, not in a group. Jobs of the session go on after it.

    Cancellation: the session is closed politely within ``ClientLimits.close_seconds``; while it has no connection, at
    once.
    """
    limits = limits or ClientLimits()
    timers = Timers()
    session = ClientSession(
        limits=limits,
        ids=ids or IdFactory(),
        clock=clock or WallClock(),
        timers=timers,
        offered=frozenset(features),
    )
    connector = Connector(
        session,
        timers,
        auth=Auth(token=token),
        name=name,
        features=features,
        connect=connect,
        reconnect=reconnect,
    )
    client = Client(session, connector)
    try:
        link, frames = await connector.open(transport)
        body_error: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connector.keep_connected, link, frames, name="arcp client connections")
            try:
                yield client
            except BaseException as exc:  # noqa: BLE001, ASYNC103  # raised below, outside of the nursery
                body_error = exc
            try:
                await client._say_goodbye()  # noqa: SLF001
            except KeyboardInterrupt as exc:
                body_error = exc
            # Shielded, so that what a caller's scope cancels meanwhile does not take the place of the body's error.
            nursery.cancel_scope.shield = True
            nursery.cancel_scope.cancel(reason="the client is closed")
        if body_error is not None:
            raise body_error
    finally:
        for path in session.result_files:
            path.unlink(missing_ok=True)
        await transport.abort()  # noqa: ASYNC102  # never blocks


def _check_plaintext(url: str) -> None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "ws" or host in ("", "localhost"):
        # Encrypted; or no URL of a WebSocket, which opening it refuses with a better word.
        return
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    raise ValueError(
        f"the token would cross the network unencrypted to {host}: use wss://, or say allow_plaintext=True"
    )


@asynccontextmanager
async def open_client(
    url: str,
    *,
    token: str,
    name: str = "arcp-trio",
    limits: ClientLimits | None = None,
    reconnect: Reconnect | None = DEFAULT_RECONNECT,
    ssl_context: ssl.SSLContext | None = None,
    allow_plaintext: bool = False,
    engine: EngineName = "auto",
) -> AsyncGenerator[Client, None]:
    """Open a session with the runtime at ``url``, as an asynchronous context manager.

    The first connection is tried once; when it breaks later, the client connects again and resumes its session
    (P6.7): :mod:`arcp_trio.client.reconnect` says when.

    Args:
        url: ``ws://HOST:PORT/arcp`` or ``wss://…``.
        token: The bearer token; any but an empty one where the gateway lets everybody in.
        name: How the client names itself.
        limits: Its bounds; ``None`` for the defaults.
        reconnect: How it connects again; ``None``: not at all, the session ends with its first connection.
        ssl_context: For ``wss://``; ``None`` verifies against the system's authorities.
        allow_plaintext: Whether the token may go over ``ws://`` to another machine (P14.1).
        engine: Which library carries the frames: ``trio-websocket``, ``websockets`` (of the extra ``fast``), or
            ``auto``, which takes websockets where it is installed.

    Yields:
        The session, once the runtime has let it in.

    Raises:
        ValueError: The URL is not one, or is ``ws://`` to another machine and ``allow_plaintext`` was not said; or
            there is no such engine.
        ImportError: The engine is not installed.
        ConnectionLostError: The runtime cannot be reached, or the connection ended before the welcome.
        UnauthenticatedError: The runtime refused the token.
        ARCPError: The runtime refused the session for another reason.

    Cancellation: as :func:`open_client_over`.
    """
    if not allow_plaintext:
        _check_plaintext(url)
    bounds = limits or ClientLimits()
    connect = partial(
        open_websocket,
        url,
        receive_bytes=bounds.receive_bytes,
        connect_seconds=bounds.connect_seconds,
        close_seconds=bounds.close_seconds,
        ssl_context=ssl_context,
        engine=engine,
    )
    try:
        async with (
            connect() as transport,
            open_client_over(
                transport, token=token, name=name, limits=bounds, connect=connect, reconnect=reconnect
            ) as client,
        ):
            yield client
    except TransportClosedError as exc:
        raise ConnectionLostError(exc.reason or str(exc)) from exc
