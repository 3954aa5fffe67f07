"""The gateway: which upgrades pass, what a port survives, how it closes."""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import socket
import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket
import trustme
from helpers import TOKEN, Script, make_hello
from transport_pairs import socket_below

import arcp_trio
from arcp_trio.transports.engines import EngineName, find_engine

pytestmark = pytest.mark.usefixtures("engine")

TOKENS = arcp_trio.StaticTokens({TOKEN: "me", "other": "you"})


@asynccontextmanager
async def open_gateway(
    script: Script, *, limits: arcp_trio.Limits | None = None, host: str = "127.0.0.1", **options: Any
) -> AsyncGenerator[tuple[arcp_trio.Runtime, arcp_trio.Listening, trio.CancelScope], None]:
    """Yield a runtime, where it listens, and the scope of the listener."""
    async with (
        arcp_trio.open_runtime(script.agents, limits=limits, verifier=TOKENS) as runtime,
        trio.open_nursery() as nursery,
    ):
        scope = trio.CancelScope()

        async def serve(task_status: trio.TaskStatus[arcp_trio.Listening]) -> None:
            with scope:
                await arcp_trio.serve_websocket(runtime, host, 0, task_status=task_status, **options)

        with trio.fail_after(30):
            yield runtime, await nursery.start(serve), scope
        scope.cancel()


async def status_of_upgrade(port: int, path: str = "/arcp", headers: dict[str, str] | None = None) -> int:
    """Ask for an upgrade by hand; return the HTTP status."""
    lines = {
        "Host": f"127.0.0.1:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        **(headers or {}),
    }
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        head = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await stream.send_all((head + "\r\n").encode())
        answer = await stream.receive_some(4096)
    return int(answer.split()[1])


def collect_sockets() -> None:
    """Collect what trio-websocket leaves to the garbage collector: the socket of an upgrade that failed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.mark.requirement("P4.1", "P14.1", "T08", "T09")
@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/arcp", {}, 101),
        ("/arcp/", {}, 101),
        ("/arcp?x=1", {}, 101),
        ("/", {}, 404),
        ("/other", {}, 404),
        ("/arcp/x", {}, 404),
        ("/arcp", {"Host": "localhost:7777"}, 101),
        ("/arcp", {"Host": "[::1]:7777"}, 101),
        ("/arcp", {"Host": "[::1]"}, 101),
        ("/arcp", {"Host": "::1"}, 101),
        ("/arcp", {"Host": "::1:7777"}, 101),
        ("/arcp", {"Host": "::2:7777"}, 421),
        ("/arcp", {"Host": "evil::1"}, 421),
        ("/arcp", {"Host": "localhost.evil"}, 421),
        ("/arcp", {"Host": "127.0.0.1.evil:80"}, 421),
        ("/arcp", {"Host": "evil.com"}, 421),
        ("/arcp", {"Origin": "http://localhost:3000"}, 101),
        ("/arcp", {"Origin": "http://evil.com"}, 403),
        ("/arcp", {"Origin": "http://localhost.evil.com"}, 403),
        ("/arcp", {"Origin": "null"}, 403),
    ],
)
async def test_which_upgrades_pass(script: Script, path: str, headers: dict[str, str], status: int) -> None:
    async with open_gateway(script) as (runtime, listening, _):
        assert await status_of_upgrade(listening.port, path, headers) == status
        assert runtime.statistics().sessions == 0


@pytest.mark.requirement("P14.1")
async def test_lists_of_hosts_and_origins(script: Script) -> None:
    options = {"allowed_hosts": ["arcp.example"], "allowed_origins": ["https://app.example"]}
    async with open_gateway(script, **options) as (_, listening, _):
        ask = partial(status_of_upgrade, listening.port, "/arcp")
        assert await ask({"Host": "arcp.example"}) == 101
        assert await ask({"Host": "localhost"}) == 421
        assert await ask({"Host": "arcp.example", "Origin": "https://app.example"}) == 101
        assert await ask({"Host": "arcp.example", "Origin": "http://localhost"}) == 403


async def test_both_sides_say_why_an_upgrade_was_refused(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "arcp_trio.gateway")
    async with open_gateway(script) as (_, listening, _):
        with pytest.raises(arcp_trio.ConnectionLostError, match=r"HTTP status 404: ARCP is at /arcp$"):
            async with arcp_trio.open_client(f"ws://127.0.0.1:{listening.port}/other", token=TOKEN):
                raise AssertionError
    collect_sockets()
    assert re.search(r"refused an upgrade from 127\.0\.0\.1:\d+: ARCP is at /arcp", caplog.text)


@pytest.mark.requirement("P14.1", "T18")
async def test_what_a_gateway_refuses_to_be(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        with pytest.raises(ValueError, match="verifier"):
            await arcp_trio.serve_websocket(runtime, "127.0.0.1", 0)
        odd: list[dict[str, Any]] = [{"compat": "klingon"}, {"path": "arcp"}, {"port": 99_999}, {"port": -1}]
        for options in odd:
            with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
                await arcp_trio.serve_websocket(runtime, "127.0.0.1", **{"port": 0, "verifier": TOKENS, **options})
        with pytest.raises(ValueError, match="allow_plaintext"):
            await arcp_trio.serve_websocket(runtime, "0.0.0.0", 0, verifier=TOKENS)
        for host in ("127.0.0.1", "localhost"):
            async with trio.open_nursery() as nursery:
                serve = partial(arcp_trio.serve_websocket, runtime, host, 0, verifier=TOKENS)
                assert (await nursery.start(serve)).url.endswith("/arcp")
                nursery.cancel_scope.cancel()


@pytest.mark.requirement("P14.1")
@pytest.mark.parametrize("url", ["ws://192.0.2.1/arcp", "ws://example.org/arcp", "ws://127.0.0.1.example.org/"])
async def test_a_client_sends_no_token_in_the_clear(url: str) -> None:
    with pytest.raises(ValueError, match="unencrypted"):
        async with arcp_trio.open_client(url, token=TOKEN):
            raise AssertionError


@pytest.mark.parametrize("url", ["http://example.org/arcp", "example.org:7777", "", "ws:///arcp"])
async def test_a_client_says_what_a_url_is(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL is ws://HOST"):
        async with arcp_trio.open_client(url, token=TOKEN):
            raise AssertionError


@pytest.mark.requirement("P4.1")
async def test_tls(script: Script) -> None:
    import ssl

    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    async with open_gateway(script, host="localhost", ssl_context=server) as (_, listening, _):
        assert listening.url == f"wss://localhost:{listening.port}/arcp"
        async with arcp_trio.open_client(listening.url, token=TOKEN, ssl_context=client_context) as client:
            assert await (await client.submit("echo", 1)).result() == 1
        with pytest.raises(arcp_trio.ConnectionLostError):
            # The library below notices a handshake that broke only at its own deadline.
            limits = arcp_trio.ClientLimits(connect_seconds=0.5)
            async with arcp_trio.open_client(listening.url, token=TOKEN, limits=limits):
                raise AssertionError
        collect_sockets()


@pytest.mark.requirement("P6.1", "T18")
async def test_anonymous_principals_are_all_different(script: Script) -> None:
    async with open_gateway(script, verifier=arcp_trio.AnonymousAccess()) as (_, listening, _):
        async with (
            arcp_trio.open_client(listening.url, token="x") as first,
            arcp_trio.open_client(listening.url, token="x") as second,
        ):
            job = await first.submit("gate")
            with pytest.raises(arcp_trio.JobNotFoundError):
                await second.cancel_job(job.job_id)
            assert (await job.cancel()).applied


@pytest.mark.requirement("P6.3")
async def test_the_limit_on_connections(script: Script) -> None:
    async with open_gateway(script, limits=arcp_trio.Limits(connections=1)) as (runtime, listening, _):
        async with arcp_trio.open_client(listening.url, token=TOKEN):
            assert await status_of_upgrade(listening.port) == 503
            with pytest.raises(arcp_trio.ConnectionLostError, match="503"):
                async with arcp_trio.open_client(listening.url, token=TOKEN):
                    raise AssertionError
            collect_sockets()
        while runtime.statistics().connections:
            await trio.lowlevel.checkpoint()
        async with arcp_trio.open_client(listening.url, token=TOKEN):
            pass


@pytest.mark.requirement("P6.1", "T11")
@pytest.mark.parametrize("how", ["no upgrade", "half an upgrade", "no hello"])
async def test_a_silent_peer_is_closed_at_the_deadline(script: Script, how: str) -> None:
    async with open_gateway(script, limits=arcp_trio.Limits(hello_seconds=0.2)) as (runtime, listening, _):
        if how == "no hello":
            async with trio_websocket.open_websocket_url(listening.url) as websocket:
                assert "UNAUTHENTICATED" in str(await websocket.get_message())
                with pytest.raises(trio_websocket.ConnectionClosed):
                    await websocket.get_message()
                assert websocket.closed is not None
                assert websocket.closed.code == 1008
                await trio.aclose_forcefully(websocket._stream)
        else:
            stream = await trio.open_tcp_stream("127.0.0.1", listening.port)
            if how == "half an upgrade":
                await stream.send_all(b"GET /arcp HTTP/1.1\r\nHost:")
            with trio.fail_after(30):
                assert await stream.receive_some() == b""
            await stream.aclose()
        while runtime.statistics().connections:
            await trio.lowlevel.checkpoint()
        assert runtime.statistics().sessions == 0


async def test_a_listener_that_is_cancelled_leaves_its_connections_alone(script: Script) -> None:
    async with open_gateway(script) as (_, listening, scope):
        async with arcp_trio.open_client(listening.url, token=TOKEN) as client:
            job = await client.submit("gate")
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(OSError, match=r"."):
                await trio.open_tcp_stream("127.0.0.1", listening.port)
            script.gate.set()
            assert await job.result() == "through"
            assert await (await client.submit("echo", 1)).result() == 1


@pytest.mark.requirement("L22", "T16", "P4.5")
async def test_a_shutdown_as_a_client_sees_it(script: Script) -> None:
    async with open_gateway(script) as (runtime, listening, _):
        async with trio_websocket.open_websocket_url(listening.url) as websocket:
            import json

            await websocket.send_message(json.dumps(make_hello()))
            welcome = json.loads(await websocket.get_message())
            submit = {"arcp": "1.1", "id": "s", "type": "job.submit", "session_id": welcome["session_id"]}
            await websocket.send_message(json.dumps({**submit, "payload": {"agent": "sleep"}}))
            assert json.loads(await websocket.get_message())["type"] == "job.accepted"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runtime.aclose)
                last = json.loads(await websocket.get_message())
                assert (last["type"], last["payload"]["code"]) == ("job.error", "INTERNAL_ERROR")
                with pytest.raises(trio_websocket.ConnectionClosed):
                    await websocket.get_message()
                assert websocket.closed is not None
                assert websocket.closed.code == 1001
                await trio.aclose_forcefully(websocket._stream)
        with pytest.raises(OSError, match=r"."):
            await trio.open_tcp_stream("127.0.0.1", listening.port)


@pytest.mark.requirement("T17")
async def test_an_accept_that_fails_once(
    script: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]
    original = trio.SocketListener.accept

    async def accept(self: trio.SocketListener) -> trio.SocketStream:
        if failures:
            raise failures.pop()
        return await original(self)

    monkeypatch.setattr(trio.SocketListener, "accept", accept)
    async with open_gateway(script) as (_, listening, _), arcp_trio.open_client(listening.url, token=TOKEN) as client:
        assert await (await client.submit("echo", 1)).result() == 1
    assert failures == []


async def test_a_crash_in_a_connection_is_its_own(
    script: Script, engine: EngineName, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = find_engine(engine).accept_websocket
    crashes = [RuntimeError("a bug before the handshake")]

    async def accept(*args: Any, **options: Any) -> Any:
        if crashes:
            raise crashes.pop()
        return await original(*args, **options)

    monkeypatch.setattr(find_engine(engine), "accept_websocket", accept)
    async with open_gateway(script) as (_, listening, _):
        async with await trio.open_tcp_stream("127.0.0.1", listening.port) as stream:
            assert await stream.receive_some() == b""
        async with arcp_trio.open_client(listening.url, token=TOKEN) as client:
            assert await (await client.submit("echo", 1)).result() == 1
    assert "a connection failed" in caplog.text


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.requirement("T15")
async def test_two_hundred_connections_leave_nothing(script: Script) -> None:
    async with open_gateway(script) as (runtime, listening, _):

        async def connect(drop: bool) -> None:
            async with arcp_trio.open_client(listening.url, token=TOKEN) as client:
                await (await client.submit("echo", 1)).result()
                if drop:
                    await client._session.link.transport.abort()

        async def settle() -> tuple[int, int]:
            while runtime.statistics().connections or runtime.statistics().sessions:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.02)
            return trio.lowlevel.current_statistics().tasks_living, open_files()

        for number in range(5):
            await connect(number % 2 == 0)
        before = await settle()
        for number in range(200):
            await connect(number % 2 == 0)
        assert await settle() == before


@pytest.mark.requirement("T11", "T15", "H16")
async def test_the_kernel_looks_after_connections_that_negotiated_no_heartbeats(script: Script) -> None:
    async with (
        open_gateway(script) as (runtime, listening, _),
        arcp_trio.open_client(listening.url, token=TOKEN),
    ):
        (connection,) = runtime._connections
        stream = socket_below(connection._transport)
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
