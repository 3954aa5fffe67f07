"""Runs in the reference implementation's environment: its runtime, or its client, over stdio.

``python peer_stdio.py`` serves on stdin and stdout until its client has left. ``python peer_stdio.py COMMAND …``
starts that runtime, and writes what its client saw as JSON lines.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

from arcp import ClientInfo, RuntimeInfo, StdioTransport
from arcp.client import ARCPClient
from arcp.runtime import ARCPRuntime, JobContext, StaticBearerVerifier


async def echo(value: Any, context: JobContext) -> Any:
    await context.log("info", "echoing")
    return value


async def slow(value: Any, context: JobContext) -> None:
    await context.status("started")
    await asyncio.sleep(3600)


async def serve() -> None:
    runtime = ARCPRuntime(
        runtime=RuntimeInfo(name="reference", version="1.1.3"), bearer=StaticBearerVerifier({"stdio": "me"})
    )
    runtime.register_agent("echo", echo)
    runtime.register_agent("slow", slow)
    await runtime.accept(await StdioTransport.from_std_streams())
    await runtime.close()


async def play(command: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    client = ARCPClient(client=ClientInfo(name="reference", version="1.1.3"), token="anything")
    async with asyncio.timeout(20):
        await client.connect(await StdioTransport.from_process_pipes(process))
        for agent, value in (("echo", {"é": [1, None, "漢"]}), ("steps", 3)):
            job = await client.submit(agent=agent, input=value)
            events = [event["kind"] async for event in job.events()]
            print(json.dumps({"events": events, "result": (await job.done).result}))
        # Its reader takes no line of more than 64 KiB.
        job = await client.submit(agent="large", input=None)
        print(json.dumps({"assembled": len(await job.collect_chunks())}))
        await client.close()
        print(json.dumps({"status": await process.wait()}))


if len(sys.argv) > 1:
    asyncio.run(play(sys.argv[1:]))
else:
    asyncio.run(serve())
