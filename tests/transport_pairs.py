"""Connected pairs of every transport, for the contract's suite: a new engine is one more entry."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache, partial
from typing import Any

import trio
import trustme

from arcp_trio.transports.base import CloseCode, Transport, TransportClosedError
from arcp_trio.transports.engines import EngineName, find_engine
from arcp_trio.transports.lines import LineTransport
from arcp_trio.transports.memory import open_memory_pair
from arcp_trio.transports.websocket import open_websocket

LIMIT = 2 * 1024 * 1024
"""The largest frame that either end of a pair reads."""

OpenPair = Callable[[], AbstractAsyncContextManager[tuple[Transport, Transport]]]


@asynccontextmanager
async def memory() -> AsyncGenerator[tuple[Transport, Transport], None]:
    yield open_memory_pair(receive_bytes=(LIMIT, LIMIT))


ENGINES: tuple[EngineName, ...] = ("trio-websocket", "websockets")


@asynccontextmanager
async def websocket(
    server: EngineName, client: EngineName, *, tls: bool = False
) -> AsyncGenerator[tuple[Transport, Transport], None]:
    """Over a real socket on loopback; the client first."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    ready = trio.Event()
    done = trio.Event()
    accepted: list[Transport] = []
    server_context, client_context = make_contexts() if tls else (None, None)

    async def serve() -> None:
        stream: trio.abc.Stream = await listener.accept()
        if server_context is not None:
            stream = trio.SSLStream(stream, server_context, server_side=True, https_compatible=True)
        async with trio.open_nursery() as connection:
            accept = find_engine(server).accept_websocket
            request = await accept(connection, stream, receive_bytes=LIMIT, description="server")
            accepted.append(await request.accept())
            ready.set()
            await done.wait()
            await accepted[0].abort()
            connection.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with open_websocket(
            f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/arcp",
            receive_bytes=LIMIT,
            connect_seconds=10,
            close_seconds=1,
            ssl_context=client_context,
            engine=client,
        ) as transport:
            await ready.wait()
            try:
                yield transport, accepted[0]
            finally:
                with trio.CancelScope(shield=True):
                    await transport.abort()
                    done.set()
        with trio.CancelScope(shield=True):
            await listener.aclose()


@asynccontextmanager
async def swapped(open_pair: OpenPair) -> AsyncGenerator[tuple[Transport, Transport], None]:
    """The other end first."""
    async with open_pair() as (first, second):
        yield second, first


@cache
def make_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's and a client's, who trusts it."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@asynccontextmanager
async def lines() -> AsyncGenerator[tuple[Transport, Transport], None]:
    """Over two real pipes."""
    there, back = os.pipe(), os.pipe()
    ends = [
        LineTransport(
            trio.lowlevel.FdStream(read_from),
            trio.lowlevel.FdStream(write_to),
            receive_bytes=LIMIT,
            description="pipes",
        )
        for read_from, write_to in ((back[0], there[1]), (there[0], back[1]))
    ]
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            await end.abort()


PAIRS: dict[str, OpenPair] = {"memory": memory, "lines": lines}
for _server in ENGINES:
    for _client in ENGINES:
        _pair = partial(websocket, _server, _client)
        _name = f"{_client} to {_server}"
        PAIRS |= {_name: _pair, f"{_name}, server first": partial(swapped, _pair)}
_secure = partial(websocket, "websockets", "websockets", tls=True)
PAIRS |= {"websockets, TLS": _secure, "websockets, TLS, server first": partial(swapped, _secure)}


class WatchedStream(trio.abc.Stream):
    """A stream that keeps what is written to it, and holds writes back while :attr:`gate` is not set."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.writes: list[bytes] = []
        self.gate = trio.Event()
        self.gate.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))
        await self.gate.wait()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


def socket_below(transport: Any) -> trio.SocketStream:
    """Return the socket that carries a WebSocket without TLS."""
    stream = transport._stream if hasattr(transport, "_stream") else transport._connection._stream
    assert isinstance(stream, trio.SocketStream)
    return stream


def says(closed: TransportClosedError, code: int, reason: str = "") -> bool:
    """Say whether a transport has heard that the other end closed with a code: a pipe only hears that it ended.

    An abort between two frames is such an end too; in the middle of one it is abnormal everywhere.
    """
    if "the other end has closed it" in closed.reason:
        return closed.code == CloseCode.NORMAL
    return closed.code == code and reason in ("", closed.reason)


def takes(open_pair: OpenPair, text: str) -> bool:
    """Say whether a text can be a frame: a line that is blank cannot."""
    return open_pair is not lines or bool(text.strip())
