"""What the gateway allows off loopback, what holds a shutdown up and what does not, what a connection leaves behind."""

from __future__ import annotations

import errno
import json
import os
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket
import trustme
from helpers import TOKEN, Script, make_hello

import arcp_trio

pytestmark = pytest.mark.usefixtures("engine")

TOKENS = arcp_trio.StaticTokens({TOKEN: "me"})
UPGRADE = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


@asynccontextmanager
async def open_gateway(
    script: Script, *, limits: arcp_trio.Limits | None = None, host: str = "127.0.0.1", **options: Any
) -> AsyncGenerator[tuple[arcp_trio.Runtime, arcp_trio.Listening], None]:
    """Yield a runtime and where it listens; on leaving it shuts down, under the test's own deadline."""
    with trio.fail_after(30):
        async with (
            trio.open_nursery() as nursery,
            arcp_trio.open_runtime(script.agents, limits=limits, verifier=TOKENS) as runtime,
        ):
            serve = partial(arcp_trio.serve_websocket, runtime, host, 0, **options)
            yield runtime, await nursery.start(serve)


async def upgrade(stream: trio.SocketStream, path: str = "/arcp", headers: dict[str, str] | None = None) -> int:
    """Ask for an upgrade by hand; return the HTTP status."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**UPGRADE, **(headers or {})}.items())
    await stream.send_all(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
    answer = await stream.receive_some(4096)
    return int(answer.split()[1])


async def status_of(port: int, headers: dict[str, str], path: str = "/arcp") -> int:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        return await upgrade(stream, path, headers)


async def works(listening: arcp_trio.Listening, **options: Any) -> None:
    async with arcp_trio.open_client(listening.url, token=TOKEN, **options) as client:
        assert await (await client.submit("echo", "works")).result() == "works"


# --- who may connect ----------------------------------------------------------------------------------


@pytest.mark.requirement("P14.1", "T08", "T09")
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "arcp.example:7777"}, 101),
        ({"Host": "ARCP.example"}, 101),
        ({"Host": "localhost"}, 421),
        ({"Host": "arcp.example.evil"}, 421),
        ({"Host": "arcp.example", "Origin": "https://arcp.example"}, 403),
        ({"Host": "arcp.example", "Origin": "http://localhost"}, 403),
        ({"Host": "arcp.example", "Origin": "null"}, 403),
    ],
)
async def test_off_loopback_no_page_may_connect_that_is_not_listed(
    script: Script, headers: dict[str, str], status: int
) -> None:
    options = {"host": "0.0.0.0", "allow_plaintext": True, "allowed_hosts": ["Arcp.Example"]}
    async with open_gateway(script, **options) as (_, listening):
        assert await status_of(listening.port, headers) == status


@pytest.mark.requirement("P14.1", "T09")
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 101),
        ("https://127.0.0.1", 101),
        ("http://[::1]:8080", 101),
        ("https://arcp.example", 403),
        ("file://", 403),
        ("http://[", 403),
    ],
)
async def test_on_loopback_the_pages_of_this_machine_may(script: Script, origin: str, status: int) -> None:
    """Also where other names than those of loopback lead here."""
    async with open_gateway(script, allowed_hosts=["arcp.example"]) as (_, listening):
        assert await status_of(listening.port, {"Host": "arcp.example", "Origin": origin}) == status


@pytest.mark.requirement("P14.1")
async def test_off_loopback_any_host_leads_here_without_a_list(script: Script) -> None:
    async with open_gateway(script, host="0.0.0.0", allow_plaintext=True) as (_, listening):
        assert listening.url == f"ws://0.0.0.0:{listening.port}/arcp"
        assert await status_of(listening.port, {"Host": "whatever.example"}) == 101
        assert await status_of(listening.port, {"Host": "localhost", "Origin": "http://localhost"}) == 403


@pytest.mark.requirement("P4.1")
@pytest.mark.parametrize(
    ("path", "asked", "status"),
    [("/", "/", 101), ("/a/b", "/a/b/", 101), ("/a/b/", "/a/b", 101), ("/a/b", "/arcp", 404), ("/a", "/A", 404)],
)
async def test_another_path(script: Script, path: str, asked: str, status: int) -> None:
    async with open_gateway(script, path=path) as (_, listening):
        assert listening.url.endswith(path)
        assert await status_of(listening.port, {}, asked) == status


@pytest.mark.requirement("T08")
async def test_ipv6_loopback(script: Script) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        # A machine without one: then it cannot be served, and is told so.
        async with arcp_trio.open_runtime(script.agents, verifier=TOKENS) as runtime:
            with pytest.raises(OSError):  # noqa: PT011  # which one is the system's own business
                await arcp_trio.serve_websocket(runtime, "::1", 0)
        return
    async with open_gateway(script, host="::1") as (_, listening):
        assert listening.url == f"ws://[::1]:{listening.port}/arcp"
        await works(listening)


@pytest.mark.requirement("P14.1")
async def test_a_client_does_not_even_connect_where_its_token_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[str] = []

    async def connect(host: str, *_: Any, **__: Any) -> None:
        await trio.lowlevel.checkpoint()
        connected.append(host)
        raise OSError("not in a test")

    monkeypatch.setattr(trio, "open_tcp_stream", connect)
    for url in ("ws://192.0.2.1/arcp", "ws://[2001:db8::1]/arcp", "ws://localhost.evil/arcp", "ws://127.1.evil/"):
        with pytest.raises(ValueError, match="unencrypted"):
            async with arcp_trio.open_client(url, token=TOKEN):
                raise AssertionError
    assert connected == []
    for options in ({"url": "ws://192.0.2.1/arcp", "allow_plaintext": True}, {"url": "wss://192.0.2.1/arcp"}):
        with pytest.raises(arcp_trio.ConnectionLostError, match="not in a test"):
            async with arcp_trio.open_client(**options, token=TOKEN):  # type: ignore[arg-type]
                raise AssertionError
    assert connected == ["192.0.2.1", "192.0.2.1"]


async def test_a_port_that_is_taken(script: Script) -> None:
    async with open_gateway(script) as (runtime, listening), trio.open_nursery() as nursery:
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            await nursery.start(arcp_trio.serve_websocket, runtime, "127.0.0.1", listening.port)
        await works(listening)


@pytest.mark.requirement("P4.1")
async def test_tls_with_whom_it_is_not_for(script: Script) -> None:
    """A client without TLS, one that trusts another authority, one that says nothing: the listener goes on."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    bounds = arcp_trio.Limits(hello_seconds=2)
    async with open_gateway(script, ssl_context=server, limits=bounds) as (runtime, listening):
        silent = await trio.open_tcp_stream("127.0.0.1", listening.port)
        for url, why in ((listening.url, "certificate"), (listening.url.replace("wss", "ws"), "hung up")):
            # At once, and not when the client's time to connect is over.
            with trio.fail_after(30), pytest.raises(arcp_trio.ConnectionLostError, match=why):
                async with arcp_trio.open_client(url, token=TOKEN):
                    raise AssertionError
        await works(listening, ssl_context=trusting)
        assert await silent.receive_some() == b""
        await silent.aclose()
        await wait_for_no_connection(runtime)


# --- shutting down ------------------------------------------------------------------------------------


@pytest.mark.requirement("T11", "T16", "L22", "P4.5")
@pytest.mark.parametrize("after", ["nothing", "half an upgrade", "an upgrade", "half a hello", "a hello"])
async def test_who_has_said_little_does_not_hold_a_shutdown_up(script: Script, after: str) -> None:
    """All deadlines are longer than the test's own."""
    limits = arcp_trio.Limits(hello_seconds=60, shutdown_seconds=60, close_seconds=60)
    peer = trio.socket.socket()
    async with open_gateway(script, limits=limits) as (runtime, listening):
        await peer.connect(("127.0.0.1", listening.port))
        stream = trio.SocketStream(peer)
        if after == "half an upgrade":
            await stream.send_all(b"GET /arcp HTTP/1.1\r\nHost:")
        elif after != "nothing":
            assert await upgrade(stream) == 101
            if after != "an upgrade":
                text = json.dumps(make_hello()).encode()
                if after == "half a hello":
                    text = text[:150]
                # A frame of text with a mask of zeros; half a hello is not its last fragment.
                head = b"\x81" if after == "a hello" else b"\x01"
                await stream.send_all(head + b"\xfe" + len(text).to_bytes(2, "big") + bytes(4) + text)
                if after == "a hello":
                    assert b"session.welcome" in await stream.receive_some(65536)
        await trio.testing.wait_all_tasks_blocked(0.01)

        async def echo_close() -> None:
            # The peer's own close frame, masked: sent with what it takes to be read at once.
            received = b""
            while b"\x03\xe9" not in received:
                part = await stream.receive_some(65536)
                if not part:
                    break
                received += part
            rest.append(received)
            with suppress(OSError, trio.BrokenResourceError):
                await stream.send_all(b"\x88\x82" + bytes(4) + b"\x03\xe9")
            await stream.aclose()

        rest: list[bytes] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo_close)
            await runtime.aclose()
        if "hello" in after or after == "an upgrade":
            assert b"\x03\xe9" in rest[0], "it is closed with 1001"
    peer.close()


@pytest.mark.requirement("T16", "L22")
async def test_serving_returns_when_the_runtime_shuts_down(script: Script) -> None:
    """Not cancelled, and each of several listeners."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, arcp_trio.open_runtime(script.agents, verifier=TOKENS) as runtime:
            returned: list[int] = []

            async def serve(number: int, task_status: trio.TaskStatus[arcp_trio.Listening]) -> None:
                await arcp_trio.serve_websocket(runtime, "127.0.0.1", 0, task_status=task_status)
                returned.append(number)

            urls = [await nursery.start(serve, number) for number in range(3)]
            assert len({listening.port for listening in urls}) == 3
            for listening in urls:
                await works(listening)
            await runtime.aclose()
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(returned) == [0, 1, 2]
            for listening in urls:
                with pytest.raises(OSError, match=r"."):
                    await trio.open_tcp_stream("127.0.0.1", listening.port)


@pytest.mark.requirement("T16")
async def test_an_upgrade_during_the_drain_is_refused(script: Script) -> None:
    """One that was accepted before, and asks for its upgrade now; the job that drains gets to its end."""
    limits = arcp_trio.Limits(drain_seconds=60, shutdown_seconds=120)
    async with (
        open_gateway(script, limits=limits) as (runtime, listening),
        arcp_trio.open_client(listening.url, token=TOKEN) as client,
        await trio.open_tcp_stream("127.0.0.1", listening.port) as late,
    ):
        job = await client.submit("gate")
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.aclose)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert await upgrade(late) == 503
            with pytest.raises(arcp_trio.InternalError, match="shutting down"):
                await client.submit("echo")
            script.gate.set()
            assert await job.result() == "through"


@pytest.mark.requirement("L22", "K02")
async def test_a_shutdown_ends_the_clients_jobs_and_then_its_calls(script: Script) -> None:
    async with (
        open_gateway(script) as (runtime, listening),
        # One that reconnects would wait for the gateway to come back.
        arcp_trio.open_client(listening.url, token=TOKEN, reconnect=None) as client,
    ):
        job = await client.submit("sleep")
        await runtime.aclose()
        with pytest.raises(arcp_trio.InternalError, match="shutting down") as caught:
            await job.result()
        assert caught.value.retryable
        assert not isinstance(caught.value, arcp_trio.ConnectionLostError)
        with pytest.raises(arcp_trio.ConnectionLostError, match="1001"):
            await client.submit("echo")


# --- what is left behind ------------------------------------------------------------------------------


async def wait_for_no_connection(runtime: arcp_trio.Runtime) -> None:
    while runtime.statistics().connections or runtime.statistics().sessions:
        await trio.lowlevel.checkpoint()


@pytest.mark.requirement("T11", "T15")
@pytest.mark.parametrize(
    "until",
    ["accept", "half an upgrade", "a refusal", "upgrade", "half a hello", "garbage", "an upgrade and garbage"],
)
async def test_two_hundred_peers_that_go_before_hello_leave_nothing(
    script: Script, until: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, and not at the hello's deadline; without a word in the log."""
    limits = arcp_trio.Limits(hello_seconds=60)
    async with open_gateway(script, limits=limits) as (runtime, listening):

        async def settle() -> tuple[int, int]:
            await wait_for_no_connection(runtime)
            with trio.fail_after(30):
                while (counts := count())[0] > tasks:
                    await trio.testing.wait_all_tasks_blocked(0.05)
            return counts

        def count() -> tuple[int, int]:
            return trio.lowlevel.current_statistics().tasks_living, len(list(Path("/proc/self/fd").iterdir()))

        async def come_and_go() -> None:
            async with await trio.open_tcp_stream("127.0.0.1", listening.port) as stream:
                if until == "half an upgrade":
                    await stream.send_all(b"GET /arcp HTTP/1.1\r\nHost:")
                elif until == "garbage":
                    await stream.send_all(b"\x16\x03\x01\x00\xff\r\n\r\n" * 10)
                elif until == "an upgrade and garbage":
                    lines = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
                    await stream.send_all(f"GET /arcp HTTP/1.1\r\n{lines}\r\n".encode() + b"\xff" * 100)
                elif until == "a refusal":
                    assert await upgrade(stream, "/nowhere") == 404
                elif until != "accept":
                    assert await upgrade(stream) == 101
                    if until == "half a hello":
                        await stream.send_all(b"\x81\xfe\x02\x00" + bytes(4) + b"{")

        tasks = count()[0]
        before = await settle()
        for _ in range(200):
            await come_and_go()
        assert await settle() == before
        await works(listening)
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


@pytest.mark.requirement("L25")
async def test_a_crash_behind_the_upgrade_is_its_own(
    script: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    crashes: list[Exception] = [RuntimeError("a bug"), ExceptionGroup("bugs", [ValueError("a"), KeyError("b")])]
    async with open_gateway(script) as (runtime, listening):
        original = runtime.serve_transport

        async def serve(*args: Any, **options: Any) -> None:
            if crashes:
                raise crashes.pop()
            await original(*args, **options)

        monkeypatch.setattr(runtime, "serve_transport", serve)
        for _ in range(2):
            with pytest.raises(arcp_trio.ConnectionLostError):
                async with arcp_trio.open_client(listening.url, token=TOKEN):
                    raise AssertionError
        await works(listening)
    assert caplog.text.count("a connection failed") == 2


@pytest.mark.requirement("K05")
async def test_a_ping_behind_the_close_is_no_failure_of_the_connection(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    """The library's reader fails to answer it; the peer still gets its close."""
    async with open_gateway(script, limits=arcp_trio.Limits(close_seconds=0.1)) as (runtime, listening):
        async with await trio.open_tcp_stream("127.0.0.1", listening.port) as stream:
            assert await upgrade(stream) == 101
            # Not a hello: refused with 1008. Then two pings, and no answer to the close.
            await stream.send_all(b"\x81\x82" + bytes(4) + b"{}")
            received = b""
            while b"\x03\xf0" not in received:
                received += await stream.receive_some()
            await stream.send_all((b"\x89\x80" + bytes(4)) * 2)
            with suppress(trio.BrokenResourceError):
                assert await stream.receive_some() == b""
        await wait_for_no_connection(runtime)
        await works(listening)
    assert "a connection failed" not in caplog.text


@pytest.mark.requirement("P6.3", "T11")
async def test_the_limit_counts_who_has_not_said_hello(script: Script) -> None:
    async with open_gateway(script, limits=arcp_trio.Limits(connections=2)) as (runtime, listening):
        async with (
            trio_websocket.open_websocket_url(listening.url) as first,
            trio_websocket.open_websocket_url(listening.url) as second,
        ):
            assert await status_of(listening.port, {}) == 503
            for websocket in (first, second):
                await trio.aclose_forcefully(websocket._stream)
        await wait_for_no_connection(runtime)
        await works(listening)
