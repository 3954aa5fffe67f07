"""The gateway that is measured, in a process of its own: ``python -m benchmarks.gateway_process [ENGINE]``.

It serves until stdin is closed. It writes JSON lines: ``{"port"}`` once it listens, its statistics at the end.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

import arcp_trio

if TYPE_CHECKING:
    from arcp_trio.transports.engines import EngineName

LIMITS = arcp_trio.Limits(sessions_per_principal=256)
agents = arcp_trio.Agents()
begun = trio.Event()


@agents.register("begin")
async def begin(job: arcp_trio.JobContext, value: Any) -> None:  # noqa: ARG001  # an agent's arguments
    """Let the jobs begin that wait for it."""
    begun.set()


@agents.register("echo")
async def echo(job: arcp_trio.JobContext, value: Any) -> Any:  # noqa: ARG001  # as above
    """Return the input."""
    return value


@agents.register("flood_when_begun")
async def flood_when_begun(job: arcp_trio.JobContext, value: list[int]) -> float:
    """Say so many lines of such a size as fast as can be; return how many seconds that took."""
    events, size = value
    line = "x" * size
    await begun.wait()
    started = time.monotonic()
    for _ in range(events):
        await job.log("info", line)
    return time.monotonic() - started


@agents.register("flood")
async def flood(job: arcp_trio.JobContext, events: int) -> None:
    """Say so many lines as fast as can be."""
    for number in range(events):
        await job.log("info", f"line {number}")


@agents.register("tick")
async def tick(job: arcp_trio.JobContext, value: list[int]) -> None:
    """Say at a steady pace when this line was due, and when it is said."""
    events, hertz = value
    start = time.monotonic() + 0.1
    for number in range(events):
        due = start + number / hertz
        await trio.sleep(max(0.0, due - time.monotonic()))
        await job.log("info", f"{due} {time.monotonic()}")


@agents.register("nap")
async def nap(job: arcp_trio.JobContext, seconds: float) -> str:
    """Say something, sleep, say something again, and end."""
    await job.log("info", "asleep")
    await trio.sleep(seconds)
    await job.log("info", "awake")
    return "rested"


async def main(engine: EngineName = "auto") -> None:
    """Serve until stdin is closed."""
    tokens = arcp_trio.StaticTokens({"secret": "me"})
    async with (
        arcp_trio.open_runtime(agents, verifier=tokens, limits=LIMITS) as runtime,
        trio.open_nursery() as nursery,
    ):
        listening = await nursery.start(partial(arcp_trio.serve_websocket, runtime, "127.0.0.1", 0, engine=engine))
        print(json.dumps({"port": listening.port}), flush=True)
        # A thread of its own: the process's stdin may be of any kind.
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        print(json.dumps(attrs.asdict(runtime.statistics())), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:2])
