"""What is WebSocket's alone: closes beside pongs, sockets that are left behind, what logs may show."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest
import trio
import trio.testing
from transport_pairs import socket_below

from arcp_trio.transports.base import TransportClosedError
from arcp_trio.transports.websocket import _upgrade_target, open_websocket

pytestmark = pytest.mark.usefixtures("engine")

CLOSE_1001 = b"\x88\x02\x03\xe9"


@asynccontextmanager
async def open_by_hand(after: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncGenerator[str, None]:
    """A server that answers the upgrade by hand, then does what it is told, and never closes; yields its address."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve() -> None:
        while True:
            nursery.start_soon(answer, await listener.accept())

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request:
                request += await stream.receive_some()
            lines = dict(line.split(": ", 1) for line in request.decode().split("\r\n")[1:] if line)
            key = {name.lower(): value for name, value in lines.items()}["sec-websocket-key"]
            accept = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            await stream.send_all(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: %b\r\n\r\n" % base64.b64encode(accept)
            )
            await after(stream)
            await trio.sleep_forever()

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/arcp"
        nursery.cancel_scope.cancel()


async def say_nothing(_: trio.SocketStream) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.requirement("Z12", "T15")
async def test_a_server_that_closes_and_keeps_its_socket_open() -> None:
    """Leaving does not wait for it, and leaves no socket behind."""

    async def close(stream: trio.SocketStream) -> None:
        await stream.send_all(CLOSE_1001)

    with trio.fail_after(30):
        async with (
            open_by_hand(close) as url,
            open_websocket(url, receive_bytes=1000, connect_seconds=60, close_seconds=60) as transport,
        ):
            with pytest.raises(TransportClosedError) as caught:
                await transport.receive()
            assert caught.value.code == 1001
            socket = socket_below(transport).socket
        assert socket.fileno() == -1


@pytest.mark.requirement("Z12", "K05")
async def test_a_ping_that_comes_behind_our_close_is_not_the_callers(caplog: pytest.LogCaptureFixture) -> None:
    """The library's reader raises wsproto's error where it should be silent."""

    async def ping(stream: trio.SocketStream) -> None:
        while (await stream.receive_some())[0] != 0x88:
            pass
        await stream.send_all(b"\x89\x00" + CLOSE_1001)

    left = 0
    with trio.fail_after(30):
        async with open_by_hand(ping) as url:
            async with open_websocket(url, receive_bytes=1000, connect_seconds=60, close_seconds=0.05):
                pass
            left += 1
            async with open_websocket(url, receive_bytes=1000, connect_seconds=60, close_seconds=0.05) as transport:
                with trio.move_on_after(0.05):
                    await transport.aclose()
            left += 1
            with pytest.raises(KeyError, match="the body's"):
                await leave_by_an_error(url)
            left += 1
    # A stray Cancelled would have ended the block above without a word.
    assert left == 3
    assert "a bug" not in caplog.text


async def leave_by_an_error(url: str, scope: trio.CancelScope | None = None) -> None:
    async with open_websocket(url, receive_bytes=1000, connect_seconds=60, close_seconds=0.05):
        if scope is not None:
            scope.cancel()
        raise KeyError("the body's")


@pytest.mark.requirement("Z02", "Z03")
@pytest.mark.parametrize("end", ["abort", "aclose", "leave"])
async def test_leaving_with_a_full_queue(end: str) -> None:
    """The library's reader waits for ours, which never comes: it must not keep the block from being left."""

    async def flood(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"\x81\x02{}" * 1000)

    async with open_by_hand(flood) as url:
        with trio.fail_after(30):
            async with open_websocket(url, receive_bytes=1000, connect_seconds=60, close_seconds=0.05) as transport:
                await trio.testing.wait_all_tasks_blocked(0.01)
                if end != "leave":
                    with trio.move_on_after(0.01):
                        await getattr(transport, end)()
                socket = socket_below(transport).socket
        assert socket.fileno() == -1


@pytest.mark.requirement("Z12")
async def test_a_server_that_never_answers_a_close_is_left_at_the_deadline() -> None:
    async with open_by_hand(say_nothing) as url:
        with trio.fail_after(30):
            async with open_websocket(url, receive_bytes=1000, connect_seconds=60, close_seconds=0.05) as transport:
                socket = socket_below(transport).socket
        assert socket.fileno() == -1


@pytest.mark.requirement("Z12")
async def test_who_is_cancelled_does_not_wait_for_the_close() -> None:
    with trio.fail_after(30):
        async with open_by_hand(say_nothing) as url:
            with trio.CancelScope() as scope:
                async with open_websocket(url, receive_bytes=1000, connect_seconds=60, close_seconds=60):
                    scope.cancel()
                    await trio.sleep_forever()
            assert scope.cancelled_caught


async def test_an_error_in_a_cancelled_scope_is_not_lost() -> None:
    raised = False
    async with open_by_hand(say_nothing) as url:
        with trio.fail_after(30), trio.CancelScope() as scope:
            group = ExceptionGroup("the body's", [ValueError("1")])
            with pytest.raises(ExceptionGroup) as caught:
                async with open_websocket(url, receive_bytes=1000, connect_seconds=60, close_seconds=0.05):
                    raise group
            assert caught.value is group
            with pytest.raises(KeyError, match="the body's"):
                await leave_by_an_error(url, scope)
            raised = True
    assert raised


@pytest.mark.requirement("P4.1", "K02")
@pytest.mark.parametrize("answer", ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 500 no\r\n\r\n"])
async def test_who_hangs_up_on_the_upgrade_is_noticed_at_once(answer: str) -> None:
    """The library would wait until its deadline."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve() -> None:
        async with await listener.accept() as stream:
            await stream.receive_some()
            await stream.send_all(answer.encode())

    with trio.fail_after(30):
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/arcp"
            with pytest.raises(TransportClosedError, match=r"hung up|500"):
                async with open_websocket(url, receive_bytes=1000, connect_seconds=60, close_seconds=60):
                    raise AssertionError


@pytest.mark.requirement("P4.1", "K02")
async def test_who_does_not_answer_the_upgrade_is_given_up() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/arcp"
        with trio.fail_after(30), pytest.raises(TransportClosedError, match=r"no answer to the upgrade within 0\.05 s"):
            async with open_websocket(url, receive_bytes=1000, connect_seconds=0.05, close_seconds=60):
                raise AssertionError


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("ws://127.0.0.1:{}/arcp", "GET /arcp HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n"),
        ("ws://127.0.0.1:{}", "GET / HTTP/1.1\r\n"),
        ("ws://127.0.0.1:{}/a%20b?c=d&e#f", "GET /a%20b?c=d&e HTTP/1.1\r\n"),
        ("ws://me:secret@127.0.0.1:{}/", "Host: 127.0.0.1:{}\r\n"),
    ],
)
async def test_what_an_upgrade_asks_for(url: str, sent: str) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    asked: list[str] = []

    async def serve() -> None:
        async with await listener.accept() as stream:
            asked.append(bytes(await stream.receive_some()).decode())

    with trio.fail_after(30):
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with pytest.raises(TransportClosedError):
                async with open_websocket(url.format(port), receive_bytes=1, connect_seconds=5, close_seconds=5):
                    raise AssertionError
    assert sent.format(port) in asked[0]
    assert "secret" not in asked[0]


def test_an_upgrade_asks_for_an_ipv6_address_in_brackets() -> None:
    # Not over a socket: not every machine has an IPv6 loopback.
    assert _upgrade_target(urlsplit("ws://[::1]:7777/arcp")) == ("[::1]:7777", 7777, "/arcp")
    assert _upgrade_target(urlsplit("wss://[::1]/arcp")) == ("[::1]", 443, "/arcp")


@pytest.mark.parametrize(
    "url", ["http://localhost/", "localhost:80", "ws://", "ws:///arcp", "ws://localhost:99999/", ""]
)
async def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        async with open_websocket(url, receive_bytes=1, connect_seconds=5, close_seconds=5):
            raise AssertionError


async def test_what_a_refusal_says_is_one_short_line_that_is_safe_to_print() -> None:
    body = b"no \x1b[2J\xff" + b"x" * 1000 + b"\nsecond line"

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 403 no\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/arcp"

    async def serve() -> None:
        async with await listener.accept() as stream:
            await stream.receive_some()
            await refuse(stream)

    with trio.fail_after(30):
        async with listener, trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with pytest.raises(TransportClosedError) as caught:
                async with open_websocket(url, receive_bytes=1000, connect_seconds=5, close_seconds=5):
                    raise AssertionError
    said = caught.value.reason.partition("HTTP status 403: ")[2]
    assert said.startswith("no  [2J\ufffdxxx")
    assert len(said) == 200


async def test_a_port_that_nobody_listens_on() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/arcp"
    await listener.aclose()
    with pytest.raises(TransportClosedError, match=f"cannot connect to {url}: {os.strerror(errno.ECONNREFUSED)}$"):
        async with open_websocket(url, receive_bytes=1000, connect_seconds=5, close_seconds=5):
            raise AssertionError


@pytest.mark.requirement("P14.2", "C07")
async def test_the_secrets_of_a_url_are_not_shown() -> None:
    async with open_by_hand(say_nothing) as url:
        secret = url.replace("ws://", "ws://me:hunter2@") + "?key=hunter2"
        options = {"receive_bytes": 1000, "connect_seconds": 5, "close_seconds": 0.01}
        async with open_websocket(secret, **options) as transport:  # type: ignore[arg-type]
            assert transport.description == url
    with pytest.raises(TransportClosedError, match="cannot connect to ws://127") as caught:
        async with open_websocket(secret, **options):  # type: ignore[arg-type]
            raise AssertionError
    assert "hunter2" not in f"{caught.value} {caught.value.reason}"


@pytest.mark.requirement("P4.4")
async def test_a_message_in_fragments_is_one_frame_and_bounded_as_a_whole() -> None:
    async def send(stream: trio.SocketStream) -> None:
        # Text without FIN, two continuations, the last with FIN; then one that never ends.
        await stream.send_all(b'\x01\x01{\x00\x03"a"\x80\x03:1}')
        await stream.send_all(b"\x01\x7e\x02\x00" + b"x" * 512 + b"\x00\x7e\x02\x00" + b"x" * 512)

    async with (
        open_by_hand(send) as url,
        open_websocket(url, receive_bytes=1000, connect_seconds=5, close_seconds=0.05) as transport,
    ):
        with trio.fail_after(30):
            assert list(await transport.receive()) == ['{"a":1}']
            with pytest.raises(TransportClosedError) as caught:
                await transport.receive()
        assert caught.value.code == 1009


@pytest.mark.requirement("P4.4")
async def test_bytes_that_are_no_websocket_break_the_connection() -> None:
    async def send(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 what\r\n\r\n" * 10)

    async with (
        open_by_hand(send) as url,
        open_websocket(url, receive_bytes=1000, connect_seconds=5, close_seconds=0.05) as transport,
    ):
        with trio.fail_after(30), pytest.raises(TransportClosedError):
            while True:
                await transport.receive()
