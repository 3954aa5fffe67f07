"""Connected pairs of every transport, for the contract's suite: a new engine is one more entry."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from arcp_trio.transports.base import CloseCode, Transport, TransportClosedError
from arcp_trio.transports.lines import LineTransport
from arcp_trio.transports.memory import open_memory_pair
from arcp_trio.transports.websocket import WebSocketTransport, accept_websocket, open_websocket

LIMIT = 2 * 1024 * 1024
"""The largest frame that either end of a pair reads."""

OpenPair = Callable[[], AbstractAsyncContextManager[tuple[Transport, Transport]]]


@asynccontextmanager
async def memory() -> AsyncGenerator[tuple[Transport, Transport], None]:
    yield open_memory_pair(receive_bytes=(LIMIT, LIMIT))


@asynccontextmanager
async def websocket() -> AsyncGenerator[tuple[Transport, Transport], None]:
    """Over a real socket on loopback; the client first."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    ready = trio.Event()
    done = trio.Event()
    server: list[Transport] = []

    async def serve() -> None:
        stream = await listener.accept()
        async with trio.open_nursery() as connection:
            request = await accept_websocket(connection, stream, receive_bytes=LIMIT)
            server.append(WebSocketTransport(await request.accept(), "server"))
            ready.set()
            await done.wait()
            await server[0].abort()
            connection.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with open_websocket(
            f"ws://127.0.0.1:{port}/arcp", receive_bytes=LIMIT, connect_seconds=10, close_seconds=1
        ) as client:
            await ready.wait()
            try:
                yield client, server[0]
            finally:
                with trio.CancelScope(shield=True):
                    await client.abort()
                    done.set()
        with trio.CancelScope(shield=True):
            await listener.aclose()


@asynccontextmanager
async def websocket_swapped() -> AsyncGenerator[tuple[Transport, Transport], None]:
    """The server first."""
    async with websocket() as (client, server):
        yield server, client


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


PAIRS: dict[str, OpenPair] = {
    "memory": memory,
    "websocket": websocket,
    "websocket, server first": websocket_swapped,
    "lines": lines,
}


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
