"""What a gateway answers to a request for an upgrade, byte for byte, whichever engine serves."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

import arcp_trio

if TYPE_CHECKING:
    from helpers import Script

pytestmark = [pytest.mark.usefixtures("engine"), pytest.mark.requirement("P4.1", "P14.1")]

UPGRADE = {
    "Host": "localhost",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}
SWITCHING = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)
BAD_REQUEST = "HTTP/1.1 400 \r\ncontent-length: 0\r\n\r\n"
WRONG_VERSION = "HTTP/1.1 {} \r\nSec-WebSocket-Version: 13\r\ncontent-length: 0\r\n\r\n"


def request(first: str = "GET /arcp HTTP/1.1", **changes: str | None) -> str:
    headers = UPGRADE | {name.replace("_", "-"): value for name, value in changes.items()}
    return f"{first}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value) + "\r\n"


def refusal(status: int, why: str) -> str:
    return f"HTTP/1.1 {status} \r\nContent-length: {len(why)}\r\n\r\n{why}"


async def ask(port: int, data: bytes, *, piece: int) -> str:
    """Send a request in pieces; return all that comes back to its end, or up to the end of a 101."""
    answer = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            # Who is refused before he has said all may find the connection reset.
            with suppress(trio.BrokenResourceError):
                for start in range(0, len(data), piece):
                    await stream.send_all(data[start : start + piece])

        nursery.start_soon(send)
        with suppress(trio.BrokenResourceError):
            while part := await stream.receive_some():
                answer += part
                if answer.endswith(b"\r\n\r\n") and b" 101 " in answer:
                    break
        nursery.cancel_scope.cancel()
    return answer.decode()


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (request(), SWITCHING),
        (request("GET /arcp?x=1 HTTP/1.1"), SWITCHING),
        (request("GET /arcp HTTP/1.0"), SWITCHING),
        (request(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits"), SWITCHING),
        (request(Sec_WebSocket_Protocol="arcp, other"), SWITCHING),
        (request(Connection="keep-alive, Upgrade"), SWITCHING),
        (request().replace("\r\n", "\n"), SWITCHING),
        (request("GET /other HTTP/1.1"), refusal(404, "ARCP is at /arcp")),
        (request(Host="evil.example"), refusal(421, "this host is not served here")),
        (request(Origin="http://evil.example"), refusal(403, "this origin is not allowed")),
        (request(Sec_WebSocket_Version="8"), WRONG_VERSION.format(426)),
        (request(Sec_WebSocket_Version=None), WRONG_VERSION.format(400)),
        (request(Sec_WebSocket_Key=None), BAD_REQUEST),
        (request(Upgrade=None), BAD_REQUEST),
        (request(Connection=None), BAD_REQUEST),
        (request(Host=None), BAD_REQUEST),
        (request("POST /arcp HTTP/1.1"), BAD_REQUEST),
        (request("HEAD /arcp HTTP/1.1"), BAD_REQUEST),
        (request("GET /arcp HTTP/3"), BAD_REQUEST),
        ("GET /arcp HTTP/1.1\r\nHost: localhost\r\n\r\n", BAD_REQUEST),
        ("\x16\x03\x01\r\n\r\n", BAD_REQUEST),
        (request(X_Long="x" * 100_000), BAD_REQUEST),
        # No name in any encoding: closed without a word.
        (request(Host="\u00ff\u00fe"), ""),
    ],
    ids=lambda value: "",
)
@pytest.mark.parametrize("piece", [1, 4_000])
async def test_an_answer(script: Script, asked: str, answer: str, piece: int, caplog: pytest.LogCaptureFixture) -> None:
    tokens = arcp_trio.StaticTokens({"token": "me"})
    with trio.fail_after(30):
        async with arcp_trio.open_runtime(script.agents, verifier=tokens) as runtime, trio.open_nursery() as nursery:
            listening = await nursery.start(arcp_trio.serve_websocket, runtime, "127.0.0.1", 0)
            assert await ask(listening.port, asked.encode("latin-1"), piece=piece) == answer
            nursery.cancel_scope.cancel()
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_a_gateway_that_is_full(script: Script) -> None:
    limits = arcp_trio.Limits(connections=0)
    tokens = arcp_trio.StaticTokens({"token": "me"})
    serve = partial(arcp_trio.serve_websocket, host="127.0.0.1", port=0)
    with trio.fail_after(30):
        async with (
            arcp_trio.open_runtime(script.agents, verifier=tokens, limits=limits) as runtime,
            trio.open_nursery() as nursery,
        ):
            listening = await nursery.start(partial(serve, runtime))
            answer = await ask(listening.port, request().encode(), piece=1_000)
            assert answer == refusal(503, "too many connections, or shutting down")
            nursery.cancel_scope.cancel()
