"""The proxy itself: where it cuts, and what each end sees of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from faults.chaos_proxy import ChaosProxy, Direction, Ending, Fault, open_chaos_proxy

Handler = Callable[[trio.SocketStream], Awaitable[None]]


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


@asynccontextmanager
async def open_behind_proxy(handler: Handler, *faults: Fault) -> AsyncGenerator[ChaosProxy, None]:
    """Serve every connection with ``handler``, behind a proxy whose connections have these faults, in turn."""
    waiting = list(faults)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, handler, 0)
            port = listeners[0].socket.getsockname()[1]
            async with open_chaos_proxy(port, lambda: waiting.pop(0)) as proxy:
                yield proxy
            nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send_all(chunk)
        await stream.send_eof()


class Recorder:
    """A server that keeps what it reads, and how the connection ended."""

    def __init__(self) -> None:
        self.read = bytearray()
        self.chunks: list[bytes] = []
        self.ended = trio.Event()
        self.broken = False

    async def __call__(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                async for chunk in stream:
                    self.read += chunk
                    self.chunks.append(bytes(chunk))
            except trio.BrokenResourceError:
                self.broken = True
        self.ended.set()


DATA = bytes(range(256)) * 40


async def test_without_a_fault_everything_passes_and_each_end_of_a_stream_alone() -> None:
    async with open_behind_proxy(echo, Fault()) as proxy:
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(DATA)
                await stream.send_eof()

            nursery.start_soon(send)
            assert await read_all(stream) == DATA
        assert (proxy.connections, proxy.struck) == (1, 0)
        assert proxy.passed == {Direction.UP: len(DATA), Direction.DOWN: len(DATA)}


@pytest.mark.parametrize("position", [0, 1, 255, 5000])
async def test_a_cut_on_the_way_up_lets_exactly_so_many_bytes_pass(position: int) -> None:
    recorder = Recorder()
    fault = Fault(ending=Ending.CLOSE, direction=Direction.UP, position=position)
    async with open_behind_proxy(recorder, fault) as proxy:
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            if position:
                await stream.send_all(DATA)
            await recorder.ended.wait()
            # The rest was on its way: where it was not read, a close is a reset.
            try:
                assert await stream.receive_some() == b""
            except trio.BrokenResourceError:
                assert position
        assert recorder.read == DATA[:position]
        assert proxy.struck == 1


@pytest.mark.parametrize("position", [0, 1, 255, 5000])
async def test_a_cut_on_the_way_down_lets_exactly_so_many_bytes_pass(position: int) -> None:
    async def send(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(DATA)

    fault = Fault(ending=Ending.CLOSE, direction=Direction.DOWN, position=position)
    async with open_behind_proxy(send, fault) as proxy:
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            assert await read_all(stream) == DATA[:position]
        assert proxy.struck == 1


async def test_a_reset_is_one_at_both_ends() -> None:
    recorder = Recorder()
    fault = Fault(ending=Ending.RESET, direction=Direction.UP, position=10)
    async with open_behind_proxy(recorder, fault) as proxy:
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            await stream.send_all(DATA[:20])
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await recorder.ended.wait()
        assert recorder.broken


async def test_a_silent_connection_stands_and_nothing_passes() -> None:
    recorder = Recorder()
    fault = Fault(ending=Ending.SILENCE, direction=Direction.UP, position=10)
    async with open_behind_proxy(recorder, fault) as proxy:
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            await stream.send_all(DATA)
            with trio.move_on_after(0.05) as scope:
                await stream.receive_some()
            assert scope.cancelled_caught
        # The client has hung up, and the server is not told.
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not recorder.ended.is_set()
        assert recorder.read == DATA[:10]


async def test_silent_connections_are_forgotten_in_the_end() -> None:
    ended = 0
    four = trio.Event()

    async def wait(stream: trio.SocketStream) -> None:
        nonlocal ended
        async with stream:
            await read_all(stream)
        ended += 1
        if ended == 4:
            four.set()

    silence = Fault(ending=Ending.SILENCE, position=0)
    async with open_behind_proxy(wait, *[silence] * 20) as proxy:
        streams = [await trio.open_tcp_stream("127.0.0.1", proxy.port) for _ in range(20)]
        await four.wait()
        assert proxy.struck == 20
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert ended == 4
        for stream in streams:
            await stream.aclose()


async def test_one_byte_at_a_time() -> None:
    async with open_behind_proxy(echo, Fault(largest_piece=1)) as proxy:
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            await stream.send_all(DATA[:300])
            await stream.send_eof()
            assert await read_all(stream) == DATA[:300]


async def test_a_delay_holds_the_rest_back() -> None:
    recorder = Recorder()
    fault = Fault(direction=Direction.UP, delayed_at=100, delay_turns=20)
    async with open_behind_proxy(recorder, fault) as proxy:
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            await stream.send_all(DATA[:300])
            await stream.send_eof()
            await recorder.ended.wait()
    assert recorder.chunks == [DATA[:100], DATA[100:300]]


async def test_nothing_is_left_behind_when_it_is_closed_among_connections() -> None:
    recorder = Recorder()
    async with open_behind_proxy(recorder, Fault()) as proxy:
        stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
        await stream.send_all(b"1")
        await trio.testing.wait_all_tasks_blocked(0.02)
    with trio.fail_after(30):
        async with stream:
            assert await stream.receive_some() == b""
    assert recorder.read == b"1"
