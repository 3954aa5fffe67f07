"""Bad input over a real WebSocket: the same answers, and the closing codes of RFC 6455."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio_websocket
from fuzz.live import assert_nothing_left, error_of, ping
from helpers import TOKEN, Frame, Script, exchanged, make_hello

import arcp_trio
from arcp_trio.limits import Limits

pytestmark = pytest.mark.usefixtures("engine")

TOKENS = arcp_trio.StaticTokens({TOKEN: "me"})


class Peer:
    """A client of the library's own, that knows nothing of ours."""

    def __init__(self, socket: trio_websocket.WebSocketConnection) -> None:
        self.socket = socket

    async def send(self, *messages: str | bytes | Frame) -> None:
        for message in messages:
            await self.socket.send_message(json.dumps(message) if isinstance(message, dict) else message)

    async def receive(self) -> Frame:
        text = await self.socket.get_message()
        exchanged.append(("S>C", text))
        frame: Frame = json.loads(text)
        return frame

    async def shake_hands(self) -> None:
        await self.send(make_hello())
        assert (await self.receive())["type"] == "session.welcome"

    async def assert_alive(self, name: str) -> None:
        await self.send(ping(name))
        assert (await self.receive())["payload"]["ping_nonce"] == name

    async def close_code(self) -> int:
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:
            while True:
                await self.receive()
        assert caught.value.reason is not None
        return int(caught.value.reason.code)


Connect = Callable[[], Awaitable[Peer]]


@asynccontextmanager
async def open_gateway(script: Script, **limits: Any) -> AsyncGenerator[tuple[arcp_trio.Runtime, Connect]]:
    peers: list[Peer] = []
    with trio.fail_after(30):
        async with (
            trio.open_nursery() as nursery,
            arcp_trio.open_runtime(script.agents, limits=Limits(**limits), verifier=TOKENS) as runtime,
        ):
            listening = await nursery.start(arcp_trio.serve_websocket, runtime, "127.0.0.1", 0)

            async def connect() -> Peer:
                socket = await trio_websocket.connect_websocket_url(nursery, listening.url)
                peers.append(Peer(socket))
                return peers[-1]

            try:
                yield runtime, connect
            finally:
                for peer in peers:
                    # The library leaves this to a task of its own, which is cancelled below.
                    await trio.aclose_forcefully(peer.socket._stream)
            await runtime._no_connections.wait()
            assert_nothing_left(runtime)
            nursery.cancel_scope.cancel()


@pytest.mark.requirement("P5.5", "T01")
async def test_malformed_frames(script: Script) -> None:
    async with open_gateway(script) as (_, connect):
        peer = await connect()
        await peer.shake_hands()
        texts = (
            ("nonsense", "$:", None),
            ("", "$:", None),
            ("[]", "$:", None),
            ("é\u2028😀\x00", "$:", None),
            (r'"\ud800"', "$:", None),
            (ping("m", payload={}), "$.payload.nonce:", "m"),
            (ping("m", id=...), "$.id:", None),
        )
        for number, (text, path, request_id) in enumerate(texts):
            await peer.send(text)
            answer = await peer.receive()
            assert error_of(answer) == ("INVALID_REQUEST", request_id)
            assert answer["payload"]["message"].startswith(path)
            await peer.assert_alive(f"after {number}")


@pytest.mark.requirement("P5.5", "P4.5", "T01")
async def test_eight_in_a_row(script: Script) -> None:
    async with open_gateway(script) as (_, connect):
        peer = await connect()
        await peer.shake_hands()
        await peer.send(*["nonsense"] * 7)
        for _ in range(7):
            assert error_of(await peer.receive())[0] == "INVALID_REQUEST"
        await peer.assert_alive("seven")
        await peer.send(*["nonsense"] * 8)
        assert await peer.close_code() == 1008


@pytest.mark.requirement("P6.1", "P4.5", "T12")
@pytest.mark.parametrize(
    ("first", "code"),
    [
        ("nonsense", "INVALID_REQUEST"),
        (ping("m"), "UNAUTHENTICATED"),
        (make_hello(token="wrong"), "UNAUTHENTICATED"),
        (make_hello(token=""), "UNAUTHENTICATED"),
        ({**make_hello(), "arcp": "2.0"}, "INVALID_REQUEST"),
    ],
)
async def test_the_first_frame(script: Script, first: str | Frame, code: str) -> None:
    async with open_gateway(script) as (_, connect):
        peer = await connect()
        await peer.send(first)
        assert error_of(await peer.receive())[0] == code
        assert await peer.close_code() == 1008


@pytest.mark.requirement("P6.1", "T11")
async def test_who_says_nothing(script: Script) -> None:
    async with open_gateway(script, hello_seconds=0.02) as (_, connect):
        peer = await connect()
        assert error_of(await peer.receive())[0] == "UNAUTHENTICATED"
        assert await peer.close_code() == 1008


@pytest.mark.requirement("P4.1", "P4.5", "T10")
@pytest.mark.parametrize("first", ["hello", "binary"])
async def test_binary_frames_are_closed_with_1003(script: Script, first: str) -> None:
    async with open_gateway(script) as (_, connect):
        # Many times: the answer and the close once were in a race, which the close won one time in ten.
        for _ in range(30):
            peer = await connect()
            if first == "hello":
                await peer.shake_hands()
                # What came before it is still answered.
                await peer.send(ping("before"), json.dumps(make_hello()).encode(), ping("after"))
                assert (await peer.receive())["payload"]["ping_nonce"] == "before"
            else:
                await peer.send(json.dumps(make_hello()).encode())
            assert await peer.close_code() == 1003
        assert script.entered == 0


@pytest.mark.requirement("P4.4", "P4.5")
@pytest.mark.parametrize("shaken", [True, False])
async def test_a_frame_over_the_limit_is_closed_with_1009(script: Script, shaken: bool) -> None:
    async with open_gateway(script, receive_bytes=4096) as (_, connect):
        peer = await connect()
        if shaken:
            await peer.shake_hands()
            await peer.send(ping("fits").ljust(4096))
            assert (await peer.receive())["payload"]["ping_nonce"] == "fits"
        await peer.send(ping("too large").ljust(4097))
        assert await peer.close_code() == 1009


@pytest.mark.requirement("P5.2")
async def test_an_older_protocol(script: Script) -> None:
    async with open_gateway(script) as (_, connect):
        peer = await connect()
        await peer.send({"arcp": "1.0", "id": "m", "type": "session.open", "payload": {}})
        assert (await peer.receive())["type"] == "session.rejected"
        assert await peer.close_code() == 1000


@pytest.mark.requirement("P6.21", "P4.5", "T14")
async def test_close_and_what_comes_behind_it(script: Script) -> None:
    async with open_gateway(script) as (runtime, connect):
        peer = await connect()
        await peer.shake_hands()
        close = {"arcp": "1.1", "id": "c", "type": "session.close", "payload": {"reason": "done"}}
        late = {"arcp": "1.1", "id": "s", "type": "job.submit", "payload": {"agent": "echo"}}
        await peer.send(close, late)
        answer = await peer.receive()
        assert (answer["type"], answer["payload"]) == ("session.closed", {"reason": "done"})
        assert await peer.close_code() == 1000
        assert runtime.statistics().jobs_accepted == 0


@pytest.mark.requirement("P6.3", "P4.5", "H16")
async def test_too_many_sessions(script: Script) -> None:
    async with open_gateway(script, sessions_per_principal=1) as (_, connect):
        first = await connect()
        await first.shake_hands()
        second = await connect()
        await second.send(make_hello())
        answer = await second.receive()
        assert error_of(answer)[0] == "INTERNAL_ERROR"
        assert answer["payload"]["details"]["limit"] == "sessions_per_principal"
        assert await second.close_code() == 1013
        await first.assert_alive("first")
