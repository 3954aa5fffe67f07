"""A child whose parent has credentials gets its own: within its lease, and not live behind either of them."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, RawClient, connect_raw, make_hello, open_raw, terminals
from provisioning.fakes import CANARY, FakeProvisioner, deaf, failing, waiting
from provisioning.running import Bench, credentials_of, end_of, rotations

import arcp_trio
from arcp_trio import CredentialConstraints, JobContext, LedgerState

PARENT = {
    "model.use": ["tier-fast/*"],
    "cost.budget": ["USD:5.00"],
    "agent.delegate": ["*"],
}
CHILD = {"model.use": ["tier-fast/small"], "cost.budget": ["USD:2.00"]}


def make_bench(lease: Any = None, agent: str = "rotate", **options: Any) -> Bench:
    """Return one with an agent that delegates, catches what it is refused, and waits for its gate."""
    bench = Bench()

    @bench.script.agents.register("parent")
    async def parent(job: JobContext, value: Any) -> str:
        try:
            child = await job.delegate(agent, 0, lease_request=CHILD if lease is None else lease, **options)
        except arcp_trio.ARCPError as exc:
            bench.refused.append(exc)
            await bench.script.gate.wait()
            return exc.code
        await child.wait_ended()
        await bench.script.gate.wait()
        return child.status

    return bench


def accepted(frames: list[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame["type"] == "job.accepted"]


async def start(client: RawClient) -> tuple[str, Frame]:
    """Submit a parent; return its id, and the acceptance of its child."""
    parent = await client.submit("parent", lease_request=PARENT)
    return parent, await client.receive_until("job.accepted")


@pytest.mark.requirement("P9.11", "P9.10", "P10.1", "P10.2")
async def test_a_child_gets_its_own_within_its_lease() -> None:
    bench = make_bench()
    async with bench.open() as runtime, open_raw(runtime) as client:
        parent, child = await start(client)
        child_id = child["payload"]["job_id"]
        mine, theirs = (frame["payload"]["credentials"][0] for frame in accepted(client.received))
        assert mine["value"] != theirs["value"]
        assert theirs["constraints"]["cost.budget"] == ["USD:2.00"]
        assert theirs["constraints"]["model.use"] == ["tier-fast/small"]
        first, second = bench.provisioner.requests
        assert (first.job_id, second.job_id) == (parent, child_id)
        assert second.budget == {"USD": Decimal("2.00")}
        assert second.trace_id == child["trace_id"]
        await client.settle()
        ((held,),) = bench.seen
        assert held.to_wire() == theirs
        assert len(bench.provisioner.live) == 2
        # A rotation of the child's is told where its acceptance was.
        await runtime.rotate_credential(child_id, theirs["id"])
        (told,) = rotations(await client.settle())
        assert told["job_id"] == child_id
        bench.script.gate.set()
        await end_of(client, child_id)
        await end_of(client, parent)
        assert bench.is_clean
        assert len(bench.provisioner.revoked) == 3


@pytest.mark.requirement("P9.11", "C14")
async def test_what_is_within_the_parents_lease_alone_is_refused() -> None:
    bench = make_bench()
    async with bench.open() as runtime, open_raw(runtime) as client:
        issued = 0

        async def widen(job_id: str) -> None:
            nonlocal issued
            issued += 1
            if issued == 2:
                bench.provisioner.changes = {"constraints": CredentialConstraints(budget=("USD:4.00",))}

        bench.provisioner.before["issue"] = widen
        parent = await client.submit("parent", lease_request=PARENT)
        refusal = await client.receive_until(lambda frame: frame["payload"].get("kind") == "tool_result")
        assert refusal["payload"]["body"]["error"]["code"] == "INTERNAL_ERROR"
        await trio.testing.wait_all_tasks_blocked()
        # Nothing is left of it: no job, no held money, no live credential.
        assert runtime.statistics().jobs_accepted == 1
        assert len(bench.provisioner.live) == 1
        actor = runtime._directory.find(parent)
        assert actor is not None
        assert actor.budget == {"USD": Decimal("5.00")}
        bench.script.gate.set()
        assert (await end_of(client, parent))["payload"]["result"] == "INTERNAL_ERROR"
        assert set(bench.ledger.states()) == {LedgerState.REVOKED}


@pytest.mark.requirement("P10.3", "P9.10", "C01")
@pytest.mark.parametrize("cause", ["cancel", "timeout", "shutdown"])
async def test_no_credential_of_a_child_outlives_its_parent(cause: str, autojump_clock: trio.testing.MockClock) -> None:
    bench = make_bench()

    async def take_a_second(handle: str) -> None:
        await trio.sleep(1)

    bench.provisioner.before["revoke"] = take_a_second
    async with bench.open(shutdown_seconds=30) as runtime:
        client = await connect_raw(runtime)
        parent = await client.submit("parent", lease_request=PARENT, max_runtime_sec=10)
        child = await client.receive_until("job.accepted")
        await client.settle()
        async with trio.open_nursery() as nursery:
            if cause == "cancel":
                await client.request("job.cancel", {"job_id": parent})
            elif cause == "shutdown":
                nursery.start_soon(runtime.aclose)
            await end_of(client, child["payload"]["job_id"])
            await end_of(client, parent)
            assert bench.provisioner.live == {}
        ends = [frame["job_id"] for frame in terminals(client.received)]
        assert ends == [child["payload"]["job_id"], parent]
    assert bench.is_clean


Trouble = Callable[[FakeProvisioner], None]


def refuse(provisioner: FakeProvisioner) -> None:
    provisioner.after["issue"] = failing(ValueError(f"{CANARY}secret"))


def hang(provisioner: FakeProvisioner) -> None:
    provisioner.after["issue"] = waiting(trio.Event())


@pytest.mark.requirement("L12", "P10.2", "C11")
@pytest.mark.parametrize("trouble", [refuse, hang])
async def test_a_delegation_whose_issue_fails_leaves_nothing(
    trouble: Trouble, autojump_clock: trio.testing.MockClock
) -> None:
    bench = make_bench()
    async with bench.open(submit_seconds=30) as runtime, open_raw(runtime) as client:
        parent = await client.submit("parent", lease_request=PARENT)
        # The parent has its own: its agent's first step comes behind its acceptance.
        trouble(bench.provisioner)
        await trio.sleep(60)
        (error,) = bench.refused
        assert isinstance(error, arcp_trio.InternalError)
        assert CANARY not in error.message
        assert len(bench.provisioner.live) == 1
        assert runtime.statistics().jobs_accepted == 1
        assert runtime.statistics().credentials_live == 1
        actor = runtime._directory.find(parent)
        assert actor is not None
        assert actor.budget == {"USD": Decimal("5.00")}
        bench.script.gate.set()
        await end_of(client, parent)
        assert bench.provisioner.live == {}


@pytest.mark.requirement("P10.3", "C01", "C11")
@pytest.mark.parametrize("how", ["at once", "deaf"])
async def test_a_parent_that_is_stopped_while_its_childs_are_issued(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    """What was minted for a child that never was is revoked before the parent's end is visible."""
    bench = make_bench()

    async def take_a_second(subject: str) -> None:
        await trio.sleep(1)
        assert not terminals(client.received)

    async def take_two(subject: str) -> None:
        # Longer than what the parent has of its own: its end waits for this too.
        await trio.sleep(2)
        assert not terminals(client.received)

    async with bench.open() as runtime, open_raw(runtime) as client:
        parent = await client.submit("parent", lease_request=PARENT)
        bench.provisioner.after["issue"] = deaf(3) if how == "deaf" else waiting(trio.Event())
        bench.provisioner.before["revoke"] = take_a_second
        bench.provisioner.before["revoke_job"] = take_two
        await trio.sleep(1)
        assert len(bench.provisioner.live) == 2
        await client.request("job.cancel", {"job_id": parent})
        await end_of(client, parent)
        assert bench.provisioner.live == {}
        assert len(accepted(client.received)) == 1
        assert runtime.statistics().jobs_accepted == 1
        assert set(bench.ledger.states()) == {LedgerState.REVOKED}


@pytest.mark.requirement("P10.3", "P6.3")
async def test_what_others_change_meanwhile_is_looked_at_again(autojump_clock: trio.testing.MockClock) -> None:
    bench = make_bench()
    async with bench.open(jobs_per_principal=2) as runtime, open_raw(runtime) as client:
        parent = await client.submit("parent", lease_request=PARENT)
        gate = trio.Event()
        bench.provisioner.after["issue"] = waiting(gate)
        await client.settle()
        bench.provisioner.after.clear()
        await client.submit("sleep")
        gate.set()
        await client.settle()
        (error,) = bench.refused
        assert error.details["limit"] == "jobs_per_principal"
        await trio.testing.wait_all_tasks_blocked()
        assert len(bench.provisioner.live) == 2
        assert len(bench.provisioner.calls_of("revoke")) == 1
        actor = runtime._directory.find(parent)
        assert actor is not None
        assert actor.budget == {"USD": Decimal("5.00")}


@pytest.mark.requirement("P6.4", "C12")
async def test_a_child_of_a_job_without_gets_none() -> None:
    bench = make_bench()
    features = ["cost.budget", "model.use"]
    async with bench.open() as runtime, open_raw(runtime, hello=make_hello(features=features)) as client:
        await start(client)
        assert bench.provisioner.calls == []
        assert all("credentials" not in frame["payload"] for frame in accepted(client.received))


@pytest.mark.requirement("P9.11", "P10.1")
async def test_our_client_has_them_at_the_childs_handle() -> None:
    bench = make_bench()
    async with bench.open() as runtime, runtime.open_session(principal="me") as client:
        parent = await client.submit("parent", lease_request=PARENT)
        await trio.testing.wait_all_tasks_blocked()
        (child,) = parent.children
        (credential,) = child.credentials
        assert credential.value in {arcp_trio.Secret(value) for value in bench.provisioner.values.values()}
        assert credential != parent.credentials[0]
        assert child.accepted is not None
        assert child.accepted.credentials is None
        bench.script.gate.set()
        await parent.result()
        assert child.credentials == parent.credentials == ()


@pytest.mark.requirement("P9.10", "P6.9")
async def test_subscribers_of_a_family_see_none() -> None:
    bench = make_bench()
    async with bench.open() as runtime, open_raw(runtime) as client, open_raw(runtime) as watcher:
        parent, child = await start(client)
        for job_id in (parent, child["payload"]["job_id"]):
            await watcher.request("job.subscribe", {"job_id": job_id, "history": True})
        await watcher.request("session.list_jobs", {})
        frames = await watcher.settle()
        assert len([frame for frame in frames if frame["type"] == "job.subscribed"]) == 2
        assert CANARY not in str(watcher.received)
        assert credentials_of(child)
