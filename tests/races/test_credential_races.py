"""Every end of a job at every moment of a rotation, with an upstream in every mood: one revocation for each credential.

Each run starts a job with two credentials and a rotation of the first that has come some way, lets one or two causes
end the job, and holds what follows against the same invariants: one terminal event; when it is visible nothing of the
job is live, or its deadline has passed; each handle was revoked by one call that did it; behind a restart the ledger is
settled.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import pytest
import trio
import trio.testing
from helpers import RawClient, connect_raw, terminals
from provisioning.fakes import failing, taking
from provisioning.running import Bench, credentials_of, rotations

import arcp_trio
from arcp_trio import LedgerEntry, LedgerState, ProvisioningError
from arcp_trio.jobs.actor import JobActor
from arcp_trio.transports.base import TransportClosedError
from arcp_trio.wire.timestamps import WallClock, format_timestamp

EPOCH = 1_000_000_000
CAUSES = ("cancel", "timeout", "expiry", "failure", "success", "shutdown")
MOODS = ("well", "slow", "fails first", "hangs")
STAGES = ("no rotation", "asked", "minted", "being written down", "done")
GAPS = ("nothing", "one turn", "a rest")

REVOCATION = 5.0
GRACE = 1.0
SHUTDOWN = 20.0


class Race:
    """One run."""

    def __init__(self, causes: Sequence[str], gap: str, mood: str, stage: str) -> None:
        self.label = (causes, gap, mood, stage)
        self.causes = causes
        self.gap = gap
        self.mood = mood
        self.stage = stage
        self.bench = Bench(count=2)
        self.error = trio.Event()
        self.stuck = trio.Event()
        self.reached = trio.Event()

        @self.bench.script.agents.register("either")
        async def either(job: arcp_trio.JobContext, value: object) -> str:
            async with trio.open_nursery() as nursery:

                async def fail() -> None:
                    await self.error.wait()
                    raise ValueError("as it was told")

                nursery.start_soon(fail)
                await self.bench.script.gate.wait()
                nursery.cancel_scope.cancel()
            return "done"

    def set_the_scene(self) -> None:
        """Have the rotation stop where it is to be met, and the upstream revoke as it is to."""
        provisioner, ledger = self.bench.provisioner, self.bench.ledger

        async def stop(_: object) -> None:
            self.reached.set()
            await self.stuck.wait()

        async def stop_at_its_entry(entries: Sequence[LedgerEntry]) -> None:
            if entries[0].state is LedgerState.ISSUED and len(entries) == 2 and not self.reached.is_set():
                await stop(entries)

        if self.stage == "asked":
            provisioner.before["rotate"] = stop
        elif self.stage == "minted":
            provisioner.after["rotate"] = stop
        elif self.stage == "being written down":
            ledger.before_put = stop_at_its_entry
        if self.mood == "slow":
            provisioner.before["revoke"] = provisioner.before["revoke_job"] = taking(1)
        elif self.mood == "fails first":
            for method in ("revoke", "revoke_job"):
                provisioner.before[method] = failing(ProvisioningError("503"), times=1)
        elif self.mood == "hangs":
            provisioner.before["revoke"] = provisioner.before["revoke_job"] = taking(float("inf"))

    async def run(self) -> None:
        clock = WallClock(lambda: EPOCH + trio.current_time())
        limits = {"revocation_seconds": REVOCATION, "cancel_grace_seconds": GRACE, "shutdown_seconds": SHUTDOWN}
        async with self.bench.open(clock=clock, **limits) as runtime, trio.open_nursery() as nursery:
            client = await connect_raw(runtime)
            expires_at = format_timestamp(EPOCH + trio.current_time() + 1_000)
            job_id = await client.submit("either", lease_constraints={"expires_at": expires_at}, max_runtime_sec=900)
            shown = credentials_of(client.received[-1])
            self.set_the_scene()
            if self.stage != "no rotation":
                nursery.start_soon(self.rotate, runtime, job_id, shown[0]["id"])
                if self.stage != "done":
                    await self.reached.wait()
            await client.settle()
            await self.end(runtime, client, job_id, nursery)
            await self.check_end(runtime, client, job_id)
            self.stuck.set()
            nursery.cancel_scope.deadline = trio.current_time() + 1_000
            if self.mood == "hangs":
                self.bench.provisioner.before.clear()
            await trio.sleep(500)
            nursery.cancel_scope.cancel()
        self.bench.provisioner.before.clear()
        async with self.bench.open() as runtime:
            self.check_all(runtime)

    @staticmethod
    async def rotate(runtime: arcp_trio.Runtime, job_id: str, credential_id: str) -> None:
        with suppress(arcp_trio.ARCPError):
            await runtime.rotate_credential(job_id, credential_id)

    async def end(self, runtime: arcp_trio.Runtime, client: RawClient, job_id: str, nursery: trio.Nursery) -> None:
        actor = runtime._directory.find(job_id)
        assert isinstance(actor, JobActor)

        async def cancel() -> None:
            with suppress(TransportClosedError):
                await client.request("job.cancel", {"job_id": job_id})

        async def timeout() -> None:
            # What the timer's callback does, without waiting for it.
            if actor._deadline is not None:
                actor._deadline.cancel()
                actor._deadline_passed()

        async def expiry() -> None:
            actor._lease_expired()

        async def failure() -> None:
            self.error.set()

        async def success() -> None:
            self.bench.script.gate.set()

        async def shutdown() -> None:
            nursery.start_soon(runtime.aclose)

        acts: dict[str, Callable[[], Awaitable[None]]] = {
            "cancel": cancel,
            "timeout": timeout,
            "expiry": expiry,
            "failure": failure,
            "success": success,
            "shutdown": shutdown,
        }
        for cause in self.causes:
            await acts[cause]()
            if self.gap == "one turn":
                await trio.lowlevel.checkpoint()
            elif self.gap == "a rest":
                await trio.testing.wait_all_tasks_blocked()

    async def check_end(self, runtime: arcp_trio.Runtime, client: RawClient, job_id: str) -> None:
        began = trio.current_time()
        with suppress(TransportClosedError), trio.fail_after(1_000):
            await client.receive_until(lambda frame: bool(terminals([frame], job_id)))
        took = trio.current_time() - began
        assert len(terminals(client.received, job_id)) == 1, self.label
        if self.mood == "hangs":
            assert took <= REVOCATION + GRACE, self.label
        else:
            assert self.bench.provisioner.live == {}, self.label
            assert took < REVOCATION + GRACE, self.label
        assert runtime.statistics().credentials_live == 0, self.label
        # A rotation that had not come to its end is told to nobody.
        assert len(rotations(client.received)) == (self.stage == "done"), self.label
        await client.settle()
        assert len(terminals(client.received, job_id)) == 1, self.label

    def check_all(self, runtime: arcp_trio.Runtime) -> None:
        provisioner = self.bench.provisioner
        assert provisioner.live == {}, self.label
        assert runtime.unrevoked_credentials() == (), self.label
        assert set(self.bench.ledger.states()) == {LedgerState.REVOKED}, self.label
        # Those that were known by their handles: one call each that did it, though others may have failed.
        calls = Counter(provisioner.calls_of("revoke"))
        known = {entry.handle for entry in self.bench.ledger.entries.values() if entry.handle is not None}
        assert set(calls) == known, self.label
        if self.mood in ("well", "slow"):
            assert set(calls.values()) == {1}, (self.label, calls)
        assert len(provisioner.calls_of("revoke_job")) <= (3 if self.mood != "well" else 1), self.label


@pytest.mark.requirement("C01", "C03", "C04", "P9.10")
@pytest.mark.parametrize("mood", MOODS)
@pytest.mark.parametrize("cause", CAUSES)
async def test_an_end_at_every_stage_of_a_rotation(
    cause: str, mood: str, autojump_clock: trio.testing.MockClock
) -> None:
    for stage in STAGES:
        await Race((cause,), "nothing", mood, stage).run()


@pytest.mark.requirement("C01", "C03", "L02", "P9.10")
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("first", CAUSES)
async def test_two_causes_revoke_once(first: str, gap: str, autojump_clock: trio.testing.MockClock) -> None:
    for second, (mood, stage) in itertools.product(CAUSES, (("slow", "minted"), ("well", "no rotation"))):
        if second != first:
            await Race((first, second), gap, mood, stage).run()
