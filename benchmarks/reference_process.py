"""Runs in the reference implementation's environment: its server with the agents that are measured.

It serves until stdin is closed, and writes ``{"port"}`` once it listens.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from arcp import RuntimeInfo, serve_websocket
from arcp.runtime import ARCPRuntime, JobContext, StaticBearerVerifier


async def flood(events: int, context: JobContext) -> None:
    """Say so many lines as fast as can be."""
    for number in range(events):
        await context.log("info", f"line {number}")


async def tick(value: list[int], context: JobContext) -> None:
    """Say at a steady pace when this line was due, and when it is said."""
    events, hertz = value
    start = time.monotonic() + 0.1
    for number in range(events):
        due = start + number / hertz
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await context.log("info", f"{due} {time.monotonic()}")


async def nap(seconds: float, context: JobContext) -> str:
    """Say something, sleep, say something again, and end."""
    await context.log("info", "asleep")
    await asyncio.sleep(seconds)
    await context.log("info", "awake")
    return "rested"


async def main() -> None:
    """Serve until stdin is closed."""
    runtime = ARCPRuntime(
        runtime=RuntimeInfo(name="reference", version="1.1.3"), bearer=StaticBearerVerifier({"secret": "me"})
    )
    runtime.register_agent("flood", flood)
    runtime.register_agent("tick", tick)
    runtime.register_agent("nap", nap)

    async def serve(transport: Any) -> None:
        await runtime.accept(transport)

    server = await serve_websocket(serve, host="127.0.0.1", port=0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()
    await server.wait_closed()
    await runtime.close()


asyncio.run(main())
