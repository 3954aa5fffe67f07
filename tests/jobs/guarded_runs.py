"""What the tests of guarded operations share: a job that runs to its end, one operation of each kind, slow readers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import Frame, open_raw

import arcp_trio

Body = Callable[[arcp_trio.JobContext], Awaitable[Any]]

EVERYTHING = {
    "tool.call": ["*"],
    "model.use": ["**"],
    "net.fetch": ["https://example.com/**"],
    "fs.read": ["/**"],
    "fs.write": ["/**"],
}


def agents_that(does: Body) -> arcp_trio.Agents:
    agents = arcp_trio.Agents()

    @agents.register("agent")
    async def agent(job: arcp_trio.JobContext, value: Any) -> Any:
        return await does(job)

    return agents


class Run:
    """One job, and what it said."""

    def __init__(self, frames: list[Frame]) -> None:
        self.accepted = next(frame for frame in frames if frame["type"] == "job.accepted")
        payloads = [frame["payload"] for frame in frames if frame["type"] == "job.event"]
        self.events = [(payload["kind"], payload["body"]) for payload in payloads]
        self.results = [body for kind, body in self.events if kind == "tool_result"]
        self.calls = [body for kind, body in self.events if kind == "tool_call"]
        self.terminal = next((frame["payload"] for frame in frames if frame["type"] in ("job.result", "job.error")), {})

    @property
    def errors(self) -> list[Frame]:
        return [body["error"] for body in self.results if "error" in body]


async def run(does: Body, lease: Frame | None = None, **options: Any) -> Run:
    """Run an agent's body in a job with that lease, to its end."""
    lease = EVERYTHING if lease is None else lease
    constraints = options.pop("constraints", {})
    async with arcp_trio.open_runtime(agents_that(does), **options) as runtime, open_raw(runtime) as client:
        await client.submit("agent", lease_request=lease, **constraints)
        await client.receive_until(lambda frame: frame["type"] in ("job.result", "job.error"))
        assert runtime.statistics().bugs == 0
        return Run(client.received)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory by its real path, which is what a lease has to cover."""
    return tmp_path.resolve()


def note(path: Path, text: str) -> None:
    path.write_text(text)


async def call_tool(job: arcp_trio.JobContext, path: Path) -> None:
    async with job.tool_call("write"):
        note(path, "the tool ran")


async def write_file(job: arcp_trio.JobContext, path: Path) -> None:
    async with job.open_file(path, "w") as file:
        await file.write("it was written")


async def read_file(job: arcp_trio.JobContext, path: Path) -> None:
    note(path, "")
    async with job.open_file(path) as file:
        await file.read()
        note(path, "it was read")


async def fetch(job: arcp_trio.JobContext, path: Path) -> None:
    await job.fetch_allowed("https://example.com/")
    note(path, "it was fetched")


async def use_model(job: arcp_trio.JobContext, path: Path) -> None:
    await job.use_model("tier-fast/small")
    note(path, "it was used")


OPERATIONS: dict[str, tuple[Callable[[arcp_trio.JobContext, Path], Awaitable[None]], str]] = {
    "tool": (call_tool, "tool.call"),
    "write": (write_file, "fs.write"),
    "read": (read_file, "fs.read"),
    "fetch": (fetch, "net.fetch"),
    "model": (use_model, "model.use"),
}


async def steps() -> None:
    """Take as many steps as the actor needs to hear of a cancel, whatever order the loop takes them in."""
    for _ in range(4):
        await trio.lowlevel.checkpoint()


class SlowThrottle:
    """A submitting session that lags all the time."""

    def lags(self) -> bool:
        return True

    async def wait_for_room(self) -> None:
        await steps()
