"""The reference implementation over stdio: our client starts its runtime, and its client starts ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import arcp_trio

if TYPE_CHECKING:
    from interop.peer import ReferencePeer

pytestmark = pytest.mark.requirement("P4.2", "P5.3a", "D52")

AGENTS = """
import arcp_trio

agents = arcp_trio.Agents()


@agents.register("echo")
async def echo(job, value):
    print("stray")
    await job.log("info", "echoing")
    return value


@agents.register("steps")
async def steps(job, value):
    for step in range(value):
        await job.progress(step + 1, value, "steps")
    return value


@agents.register("large")
async def large(job, value):
    async with job.stream_result() as out:
        await out.write(bytes(range(256)) * 2_000)
"""


async def test_our_client_starts_its_runtime(reference_peer: ReferencePeer, caplog: pytest.LogCaptureFixture) -> None:
    command = [str(reference_peer.python), "-I", str(reference_peer.scripts / "peer_stdio.py")]
    with trio.fail_after(60):
        # Its log says that it knows no session.close, as over a WebSocket.
        async with arcp_trio.open_process_client(command, stderr=subprocess.DEVNULL) as client:
            assert client.welcome.runtime.name == "reference"
            # Its reader takes 64 KiB on a line.
            for value in ({"é": [1, None, "漢"]}, "x" * 60_000, "\n\r"):
                job = await client.submit("echo", value)
                events = [event async for event in job.events()]
                assert [event.kind for event in events if isinstance(event, arcp_trio.Event)] == ["log"]
                assert await job.result() == value
            job = await client.submit("slow")
            async for _ in job.events():
                break
            assert (await job.cancel()).applied
    # It has ended by itself when the session was closed, with exit status 0.
    assert "process" not in caplog.text


async def test_its_client_starts_our_runtime(reference_peer: ReferencePeer, tmp_path: Path) -> None:
    (tmp_path / "myagents.py").write_text(AGENTS)
    program = f"import os, sys; os.chdir({str(tmp_path)!r}); from arcp_trio.cli import main; sys.exit(main())"
    serve = [sys.executable, "-c", program, "serve", "myagents:agents", "--stdio"]
    lines = await reference_peer.run("peer_stdio.py", *serve)
    assert lines == [
        {"events": ["log"], "result": {"é": [1, None, "漢"]}},
        {"events": ["progress"] * 3, "result": 3},
        {"assembled": 512_000},
        {"status": 0},
    ]
