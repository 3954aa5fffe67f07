"""The private names of trio-websocket and wsproto that arcp_trio uses: what broke, when the library changes.

All of them stand in ``arcp_trio/transports/engine_trio_websocket.py``, in ``_Engine`` and ``_Upgrade``. If a test here
fails after an update, that file is the one to mend, or the library's version the one to pin.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import trio_websocket
from transport_pairs import WatchedStream
from wsproto.events import TextMessage

from arcp_trio.transports.base import Transport, TransportClosedError
from arcp_trio.transports.engine_trio_websocket import WebSocketTransport, accept_websocket
from arcp_trio.transports.upgrade import UpgradeHead


@asynccontextmanager
async def open_engine() -> AsyncGenerator[
    tuple[WebSocketTransport, trio_websocket.WebSocketConnection, WatchedStream, UpgradeHead], None
]:
    """Yield the server's transport, the client's connection, the stream below the server, and what it was asked for."""
    left, right = trio.testing.memory_stream_pair()
    watched = WatchedStream(left)
    async with trio.open_nursery() as nursery:
        asked: list[UpgradeHead] = []
        accepted: list[Transport] = []

        async def accept() -> None:
            request = await accept_websocket(nursery, watched, receive_bytes=10**6, description="server")
            asked.append(request.head)
            accepted.append(await request.accept())

        nursery.start_soon(accept)
        client = await trio_websocket.wrap_client_stream(
            nursery, right, "example.org:7777", "/arcp?x=1", extra_headers=[(b"Origin", b"https://example.org")]
        )
        await trio.testing.wait_all_tasks_blocked()
        (transport,) = accepted
        assert isinstance(transport, WebSocketTransport)
        yield transport, client, watched, asked[0]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["_wsproto", "_stream", "_stream_lock", "_recv_channel"])
async def test_the_names_are_there(name: str) -> None:
    async with open_engine() as (server, client, _, _):
        for connection in (server._connection, client):
            assert hasattr(connection, name), f"trio-websocket's connection has no {name} any more"


async def test_the_protocol_gives_the_bytes_of_one_whole_frame() -> None:
    async with open_engine() as (server, _, watched, _):
        data = server._connection._wsproto.send(TextMessage(data="{}"))
        assert data == b"\x81\x02{}", "wsproto frames a text message otherwise, or compresses it"
        assert watched.writes[-1] != data, "encoding a frame writes it"


async def test_what_is_ready_is_written_with_one_write() -> None:
    async with open_engine() as (server, client, watched, _):
        before = len(watched.writes)
        frames = [f'{{"n":{number}}}' for number in range(64)]
        await server.send([frame.encode() for frame in frames])
        assert len(watched.writes) - before == 1
        assert [await client.get_message() for _ in frames] == frames


async def test_a_pong_waits_for_the_lock_that_a_write_holds() -> None:
    """The library's reader answers pings by itself: its bytes must not come between ours."""
    async with open_engine() as (server, client, watched, _):
        watched.gate = trio.Event()
        before = len(watched.writes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send, [b"{}", b"[]"])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(client.ping, b"ping")
            await trio.testing.wait_all_tasks_blocked()
            assert len(watched.writes) - before == 1, "a pong was written while a write was under way"
            watched.gate.set()
            # The library's own reader waits for ours before it looks at the pong.
            assert [await client.get_message() for _ in range(2)] == ["{}", "[]"]
        assert len(watched.writes) - before == 2


async def test_messages_that_are_queued_come_together() -> None:
    async with open_engine() as (server, client, _, _):
        for number in range(5):
            await client.send_message(f'{{"n":{number}}}')
        await trio.testing.wait_all_tasks_blocked()
        frames = await server.receive()
        assert list(frames) == [f'{{"n":{number}}}' for number in range(5)]


async def test_what_an_upgrade_asks_for() -> None:
    async with open_engine() as (_, _, _, head):
        assert head == UpgradeHead("/arcp?x=1", "example.org:7777", "https://example.org")


@pytest.mark.requirement("Z02")
async def test_a_ping_is_answered_while_nobody_reads() -> None:
    async with open_engine() as (_, client, _, _):
        for number in range(10):
            await client.send_message(f'{{"n":{number}}}')
        with trio.fail_after(30):
            await client.ping(b"alive")


@pytest.mark.requirement("P4.1", "T10")
async def test_a_binary_message_closes_with_1003_behind_what_came_before_it() -> None:
    async with open_engine() as (server, client, _, _):
        await client.send_message("{}")
        await client.send_message(b"binary")
        await trio.testing.wait_all_tasks_blocked()
        assert list(await server.receive()) == ["{}"]
        with pytest.raises(TransportClosedError) as caught:
            await server.receive()
        assert caught.value.code == 1003
        # The answers to what came before may go out first; then whoever owns the transport closes it.
        await server.send([b"[]"])
        assert await client.get_message() == "[]"
        await server.aclose(1000)
        with pytest.raises(trio_websocket.ConnectionClosed):
            await client.get_message()
        assert client.closed is not None
        assert client.closed.code == 1003


@pytest.mark.requirement("P4.5", "K05")
async def test_a_send_that_a_close_overtakes_does_not_cut_the_close_short() -> None:
    """The library encodes a close at once and then waits for the lock, behind our frames that wait to be encoded."""
    with trio.fail_after(30):
        async with open_engine() as (server, client, watched, _), trio.open_nursery() as nursery:
            watched.gate = trio.Event()

            async def send() -> None:
                with pytest.raises(TransportClosedError):
                    await server.send([b"{}"])

            # The pong holds the lock, the frames wait for it, and the close has been decided.
            for step in (lambda: client.ping(b"1"), send, lambda: server.aclose(4001, "too slow")):
                nursery.start_soon(step)
                await trio.testing.wait_all_tasks_blocked()
            watched.gate.set()
            with pytest.raises(trio_websocket.ConnectionClosed):
                await client.get_message()
            assert client.closed is not None
            assert (client.closed.code, client.closed.reason) == (4001, "too slow")
