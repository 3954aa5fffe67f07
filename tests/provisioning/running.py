"""Runtimes that issue credentials, for tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio
from helpers import Frame, RawClient, Script, terminals
from provisioning.fakes import FakeProvisioner, KeptLedger

import arcp_trio

__all__ = ["LEASE", "Bench", "credentials_of", "end_of", "open_bench", "rotations"]

LEASE = {"model.use": ["tier-fast/*"], "cost.budget": ["USD:5.00"]}


class Bench:
    """A runtime, its upstream and its ledger, which outlive it.

    Its agent ``rotate`` gives the first credential another value, as often as its input says, and waits for the gate.

    Attributes:
        seen: The credentials that agents had, in order.
        unrevocable: What operators were told of.
        refused: What agents were refused, for those that take note of it.
    """

    def __init__(self, count: int = 1) -> None:
        self.provisioner = FakeProvisioner(count)
        self.ledger = KeptLedger()
        self.script = Script()
        self.seen: list[tuple[arcp_trio.Credential, ...]] = []
        self.unrevocable: list[arcp_trio.LedgerEntry] = []
        self.refused: list[arcp_trio.ARCPError] = []

        @self.script.agents.register("rotate")
        async def rotate(job: arcp_trio.JobContext, times: Any) -> int:
            self.seen.append(job.credentials)
            for _ in range(times):
                await job.rotate_credential(job.credentials[0].id)
                self.seen.append(job.credentials)
            await self.script.gate.wait()
            return len(self.seen)

    @asynccontextmanager
    async def open(self, **limits: Any) -> AsyncGenerator[arcp_trio.Runtime, None]:
        options = {
            name: limits.pop(name)
            for name in ("open_models", "clock", "observation", "tracer_provider")
            if name in limits
        }
        async with arcp_trio.open_runtime(
            self.script.agents,
            provisioner=self.provisioner,
            ledger=self.ledger,
            on_unrevocable=self.unrevocable.append,
            limits=arcp_trio.Limits(**limits),
            **options,
        ) as runtime:
            yield runtime

    @property
    def is_clean(self) -> bool:
        """Whether nothing is live, each was revoked once, and the ledger says so."""
        states = self.ledger.states()
        return (
            not self.provisioner.live
            and set(self.provisioner.revoked.values()) <= {1}
            and self.provisioner.revoked.keys() == self.provisioner.values.keys()
            and set(states) <= {arcp_trio.LedgerState.REVOKED}
        )


@asynccontextmanager
async def open_bench(count: int = 1, **limits: Any) -> AsyncGenerator[tuple[Bench, arcp_trio.Runtime], None]:
    bench = Bench(count)
    async with bench.open(**limits) as runtime:
        yield bench, runtime


def credentials_of(frame: Frame) -> list[Frame]:
    """Return the credentials that a frame shows."""
    found: list[Frame] = frame["payload"].get("credentials", [])
    return found


def rotations(frames: list[Frame]) -> list[Frame]:
    """Return the events among ``frames`` that tell of a rotation."""
    return [
        frame
        for frame in frames
        if frame["type"] == "job.event" and frame["payload"]["body"].get("phase") == "credential_rotated"
    ]


async def end_of(client: RawClient, job_id: str) -> Frame:
    """Return a job's terminal event."""
    found = terminals(client.received, job_id)
    if found:
        return found[0]
    with trio.fail_after(100_000):
        return await client.receive_until(lambda frame: bool(terminals([frame], job_id)))
