"""Which engine is taken, and what is imported for it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import trio

import arcp_trio
from arcp_trio.transports import engine_trio_websocket, engine_websockets, engines
from arcp_trio.transports.engines import find_engine
from arcp_trio.transports.websocket import open_websocket


def test_auto_takes_the_faster_one_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_engine() is find_engine("auto") is find_engine("websockets") is engine_websockets
    assert find_engine("trio-websocket") is engine_trio_websocket
    for found, taken in ((None, engine_trio_websocket), (14, engine_trio_websocket), (15, engine_websockets)):
        monkeypatch.setattr(engines, "_websockets_version", lambda found=found: found)
        assert find_engine("auto") is taken
        assert find_engine("trio-websocket") is engine_trio_websocket


@pytest.mark.parametrize(("found", "says"), [(None, "it is not installed"), (14, "version 14 is installed")])
async def test_one_that_is_not_installed(found: int | None, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is opened or connected."""
    monkeypatch.setattr(engines, "_websockets_version", lambda: found)
    with pytest.raises(ImportError, match=rf"websockets, version 15 or later, and {says}: install arcp-trio\[fast\]"):
        find_engine("websockets")
    verifier = arcp_trio.AnonymousAccess()
    async with arcp_trio.open_runtime(arcp_trio.Agents(), verifier=verifier) as runtime:
        with pytest.raises(ImportError, match=says):
            await arcp_trio.serve_websocket(runtime, "127.0.0.1", 0, engine="websockets")
    with pytest.raises(ImportError, match=says):
        async with arcp_trio.open_client("ws://127.0.0.1:1/arcp", token="token", engine="websockets"):
            raise AssertionError


async def test_one_that_there_is_none_of() -> None:
    options: Any = {"engine": "picows"}
    expected = "engine: expected 'auto', 'trio-websocket' or 'websockets', got 'picows'"
    with pytest.raises(ValueError, match=expected):
        find_engine("picows")
    verifier = arcp_trio.AnonymousAccess()
    async with arcp_trio.open_runtime(arcp_trio.Agents(), verifier=verifier) as runtime:
        with pytest.raises(ValueError, match=expected):
            await arcp_trio.serve_websocket(runtime, "127.0.0.1", 0, **options)
    with pytest.raises(ValueError, match=expected):
        async with arcp_trio.open_client("ws://127.0.0.1:1/arcp", token="token", **options):
            raise AssertionError
    with pytest.raises(ValueError, match=expected):
        async with open_websocket("ws://127.0.0.1:1/", receive_bytes=1, connect_seconds=1, close_seconds=1, **options):
            raise AssertionError


PROGRAM = """
import sys
from functools import partial
sys.modules[sys.argv[1]] = None
import trio
import arcp_trio
from arcp_trio.transports import engines
if sys.argv[1] == "websockets":
    engines._websockets_version = lambda: None

agents = arcp_trio.Agents()

@agents.register("echo")
async def echo(job, value):
    return value

async def main():
    tokens = arcp_trio.StaticTokens({"token": "me"})
    async with arcp_trio.open_runtime(agents, verifier=tokens) as runtime, trio.open_nursery() as nursery:
        serve = partial(arcp_trio.serve_websocket, runtime, "127.0.0.1", 0, engine=sys.argv[2])
        listening = await nursery.start(serve)
        async with arcp_trio.open_client(listening.url, token="token", engine=sys.argv[2]) as client:
            print(await (await client.submit("echo", "works")).result())
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.requirement("D04")
@pytest.mark.parametrize(
    ("missing", "engine"),
    [
        ("websockets", "auto"),
        ("websockets", "trio-websocket"),
        ("trio_websocket", "auto"),
        ("trio_websocket", "websockets"),
    ],
)
async def test_each_does_without_the_other(missing: str, engine: str) -> None:
    with trio.fail_after(30):
        done = await trio.run_process(
            [sys.executable, "-W", "error", "-c", PROGRAM, missing, engine], capture_stdout=True, capture_stderr=True
        )
    assert (done.stdout, done.stderr) == (b"works\n", b"")
