"""A client's WebSocket, over whichever engine: connecting, the upgrade, leaving, and what is said where that fails."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import SplitResult, urlsplit, urlunsplit

import trio

from .base import CloseCode, Transport, TransportClosedError
from .engines import EngineName, find_engine
from .upgrade import Refused

__all__ = ["open_websocket"]

_REFUSAL_CHARACTERS = 200


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
    engine: EngineName = "auto",
) -> AsyncGenerator[Transport, None]:
    """Open a connection to ``url`` (``ws://`` or ``wss://``); it is closed on leaving.

    Args:
        url: The runtime's address.
        receive_bytes: The largest message that is read.
        connect_seconds: How long connecting and the upgrade may take together.
        close_seconds: How long the closing handshake may take.
        ssl_context: For ``wss://``; ``None`` verifies the server against the system's authorities.
        engine: Which engine carries it; ``auto`` takes websockets where it is installed.

    Raises:
        TransportClosedError: It could not be opened; the reason says why.
        ValueError: The URL is not one, or there is no such engine.
        ImportError: The engine is not installed.

    Whatever the body raises leaves as it is, not in a group.

    Cancellation: the connection is closed at once; cancelled while it is being left, within ``close_seconds``.
    """
    connect_websocket = find_engine(engine).connect_websocket
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
    answer: Transport | Refused | None = None
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope(deadline=connecting.deadline):
                answer = await connect_websocket(
                    nursery,
                    stream,
                    host,
                    resource,
                    receive_bytes=receive_bytes,
                    description=shown,
                    private=parts.scheme == "wss",
                )
            if answer is not None and not isinstance(answer, Refused):
                transport = answer
                try:
                    yield transport
                except BaseException as exc:  # noqa: BLE001, ASYNC103  # raised below, outside of the nursery
                    body_error = exc
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
    if isinstance(answer, Refused):
        raise _refused(shown, answer)
    if answer is None:
        why = "it hung up on the upgrade"
        if trio.current_time() >= connecting.deadline:
            why = f"no answer to the upgrade within {connect_seconds:g} seconds"
        raise TransportClosedError(CloseCode.ABNORMAL, f"cannot connect to {shown}: {why}")
    if body_error is not None:
        raise body_error


def _refused(shown: str, answer: Refused) -> TransportClosedError:
    """Say what a server has said instead of accepting an upgrade."""
    # Our gateways say why, in one line; of a page that some proxy writes its first line is enough.
    first, _, _ = answer.body.decode(errors="replace").strip().partition("\n")
    why = "".join(character if character.isprintable() else " " for character in first[:_REFUSAL_CHARACTERS])
    return TransportClosedError(
        CloseCode.POLICY, f"{shown} refused the upgrade with HTTP status {answer.status}{why and ': '}{why}"
    )
