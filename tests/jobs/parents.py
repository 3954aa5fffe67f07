"""A parent whose agent does what a test says, and what is looked for among its frames."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from helpers import Frame, RawClient, Script, open_raw, terminals

import arcp_trio

__all__ = ["ANY", "Family", "accepted", "end_of", "numbers", "of_kind", "run_parent"]

ANY = {"agent.delegate": ["*"]}

Body = Callable[[arcp_trio.JobContext], Awaitable[Any]]


class Family(Script):
    """A parent whose body is the test's own, beside the agents of every script to delegate to."""

    def __init__(self, body: Body) -> None:
        super().__init__()

        @self.agents.register("parent")
        async def parent(job: arcp_trio.JobContext, value: Any) -> Any:
            return await body(job)


async def run_parent(body: Body, lease: Frame | None = None, *, submit: Frame | None = None, **options: Any) -> Any:
    """Run a parent with that body to its end; return all frames, and the runtime as it is then."""
    family = Family(body)
    async with arcp_trio.open_runtime(family.agents, **options) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY if lease is None else lease, **(submit or {}))
        await end_of(client, job_id)
        await client.settle()
        assert runtime.statistics().bugs == 0
        return client.received, runtime, job_id


async def end_of(client: RawClient, job_id: str) -> Frame:
    """Read to a job's terminal event."""
    return await client.receive_until(lambda frame: frame in terminals([frame], job_id))


def of_kind(frames: list[Frame], kind: str, job_id: str | None = None) -> list[Frame]:
    """Return the bodies of the events of a kind, of one job or of all."""
    events = [frame for frame in frames if frame["type"] == "job.event" and job_id in (None, frame["job_id"])]
    return [frame["payload"]["body"] for frame in events if frame["payload"]["kind"] == kind]


def accepted(frames: list[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame["type"] == "job.accepted"]


def numbers(frames: list[Frame]) -> list[int]:
    return [frame["event_seq"] for frame in frames if "event_seq" in frame]
