"""The private names of trio-websocket and wsproto that arcp_trio uses: what broke, when the library changes.

All of them stand in ``arcp_trio/transports/websocket.py``, in ``_Engine`` and ``upgrade_host``. If a test here fails
after an update, that file is the one to mend, or the library's version the one to pin.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import trio_websocket
from wsproto.events import TextMessage

from arcp_trio.transports.websocket import WebSocketTransport, accept_websocket, upgrade_host


class CountingStream(trio.abc.Stream):
    """A stream that counts what is written to it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.writes: list[bytes] = []
        self.gate: trio.Event | None = None

    async def send_all(self, data: bytes) -> None:
        self.writes.append(bytes(data))
        if self.gate is not None:
            await self.gate.wait()
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def open_engine() -> AsyncGenerator[
    tuple[trio_websocket.WebSocketConnection, trio_websocket.WebSocketConnection, CountingStream, str | None], None
]:
    """Yield the server's and the client's connection, the stream below the server's, and the Host it was asked for."""
    left, right = trio.testing.memory_stream_pair()
    counting = CountingStream(left)
    async with trio.open_nursery() as nursery:
        asked: list[str | None] = []
        accepted: list[trio_websocket.WebSocketConnection] = []

        async def accept() -> None:
            request = await accept_websocket(nursery, counting, receive_bytes=10**6)
            asked.append(upgrade_host(request))
            accepted.append(await request.accept())

        nursery.start_soon(accept)
        client = await trio_websocket.wrap_client_stream(nursery, right, "example.org:7777", "/arcp")
        await trio.testing.wait_all_tasks_blocked()
        yield accepted[0], client, counting, asked[0]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["_wsproto", "_stream", "_stream_lock", "_recv_channel"])
async def test_the_names_are_there(name: str) -> None:
    async with open_engine() as (server, client, _, _):
        for connection in (server, client):
            assert hasattr(connection, name), f"trio-websocket's connection has no {name} any more"


async def test_the_protocol_gives_the_bytes_of_one_whole_frame() -> None:
    async with open_engine() as (server, _, counting, _):
        data = server._wsproto.send(TextMessage(data="{}"))
        assert data == b"\x81\x02{}", "wsproto frames a text message otherwise, or compresses it"
        assert counting.writes[-1] != data, "encoding a frame writes it"


async def test_what_is_ready_is_written_with_one_write() -> None:
    async with open_engine() as (server, client, counting, _):
        before = len(counting.writes)
        frames = [f'{{"n":{number}}}' for number in range(64)]
        await WebSocketTransport(server, "server").send([frame.encode() for frame in frames])
        assert len(counting.writes) - before == 1
        assert [await client.get_message() for _ in frames] == frames


async def test_a_pong_waits_for_the_lock_that_a_write_holds() -> None:
    """The library's reader answers pings by itself: its bytes must not come between ours."""
    async with open_engine() as (server, client, counting, _):
        transport = WebSocketTransport(server, "server")
        counting.gate = trio.Event()
        before = len(counting.writes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send, [b"{}", b"[]"])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(client.ping, b"ping")
            await trio.testing.wait_all_tasks_blocked()
            assert len(counting.writes) - before == 1, "a pong was written while a write was under way"
            counting.gate.set()
            # The library's own reader waits for ours before it looks at the pong.
            assert [await client.get_message() for _ in range(2)] == ["{}", "[]"]
        assert len(counting.writes) - before == 2


async def test_messages_that_are_queued_come_together() -> None:
    async with open_engine() as (server, client, _, _):
        for number in range(5):
            await client.send_message(f'{{"n":{number}}}')
        await trio.testing.wait_all_tasks_blocked()
        frames = await WebSocketTransport(server, "server").receive()
        assert list(frames) == [f'{{"n":{number}}}' for number in range(5)]


async def test_the_host_of_an_upgrade() -> None:
    async with open_engine() as (_, _, _, host):
        assert host == "example.org:7777"


@pytest.mark.requirement("Z02")
async def test_a_ping_is_answered_while_nobody_reads() -> None:
    async with open_engine() as (_, client, _, _):
        for number in range(10):
            await client.send_message(f'{{"n":{number}}}')
        with trio.fail_after(30):
            await client.ping(b"alive")


@pytest.mark.requirement("P4.1", "T10")
async def test_a_binary_message_closes_with_1003_behind_what_came_before_it() -> None:
    from arcp_trio.transports.base import TransportClosedError

    async with open_engine() as (server, client, _, _):
        transport = WebSocketTransport(server, "server")
        await client.send_message("{}")
        await client.send_message(b"binary")
        await trio.testing.wait_all_tasks_blocked()
        assert list(await transport.receive()) == ["{}"]
        with pytest.raises(TransportClosedError) as caught:
            await transport.receive()
        assert caught.value.code == 1003
        # The answers to what came before may go out first; then whoever owns the transport closes it.
        await transport.send([b"[]"])
        assert await client.get_message() == "[]"
        await transport.aclose(1000)
        with pytest.raises(trio_websocket.ConnectionClosed):
            await client.get_message()
        assert client.closed is not None
        assert client.closed.code == 1003
