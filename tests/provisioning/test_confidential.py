"""A value is where it belongs, while its job runs, and nowhere else."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from helpers import RawClient, connect_raw, make_hello, open_raw
from provisioning.fakes import CANARY, failing
from provisioning.memory_search import canaries, everything
from provisioning.running import Bench, credentials_of, open_bench

import arcp_trio
from arcp_trio import ProvisioningError
from arcp_trio.sessions.observation import ObservationPolicy
from arcp_trio.transports.memory import open_memory_pair


@pytest.mark.requirement("C07", "P14.2", "P9.10")
async def test_behind_the_end_no_value_is_left_in_the_process() -> None:
    """Not in the window, a rider, a listing that is held, a record, nor in what a task has in its hands."""
    async with open_bench(count=2) as (bench, runtime):
        theirs, ours = open_memory_pair()
        runtime.spawn_connection(partial(runtime.serve_transport, theirs, principal="me"), "raw client")
        # One whose frames no other test looks at: they are kept for that.
        client = RawClient(ours, plays_server=True)
        await client.send(make_hello())
        client.session_id = (await client.receive())["session_id"]
        job_id = await client.submit("rotate", 2)
        await client.request("session.list_jobs", {})
        await client.request("job.subscribe", {"job_id": job_id})
        await client.settle()
        # Written backwards, so that this test itself is no place where one is found.
        hidden = [value[::-1] for value in bench.provisioner.values.values()]
        assert len(hidden) == 4
        live = [bench.provisioner.values[handle][::-1] for handle in bench.provisioner.live]
        forget(bench, client)
        for each in live:
            assert canaries(everything(), each[::-1]) != [], "while the job runs they are found"
        bench.script.gate.set()
        await client.receive_until("job.result")
        await client.settle()
        forget(bench, client)
        for each in hidden:
            assert canaries(everything(), each[::-1]) == []
        assert runtime.statistics().jobs_retained == 1


def forget(bench: Bench, client: RawClient) -> None:
    """Drop what the upstream and the client have."""
    bench.seen.clear()
    bench.provisioner.values.clear()
    client.received.clear()
    client._exchanged.clear()


class OpenHouse(ObservationPolicy):
    """Lets everybody observe everything."""

    def observable(self, principal: arcp_trio.Principal) -> tuple[str, ...]:
        return ("me", "you")


@pytest.mark.requirement("C07", "C08", "Q16", "P6.20", "P7.17", "P14.2")
@pytest.mark.parametrize("principal", ["me", "you"])
async def test_nobody_else_sees_a_value(principal: str) -> None:
    async with open_bench(observation=OpenHouse()) as (bench, runtime):
        client, spy = await connect_raw(runtime), await connect_raw(runtime, principal=principal)
        job_id = await client.submit("rotate", 1)
        await client.settle()
        for frame_type, payload in (
            ("session.list_jobs", {}),
            ("session.list_jobs", {"filter": {"status": ["running"]}}),
            ("job.subscribe", {"job_id": job_id, "history": True}),
            ("job.subscribe", {"job_id": job_id}),
            ("job.cancel", {"job_id": job_id}),
        ):
            await spy.request(frame_type, payload)
            await spy.settle()
        bench.script.gate.set()
        await spy.receive_until("job.result")
        kinds = {frame["type"] for frame in spy.received}
        assert kinds >= {"session.jobs", "job.subscribed", "session.error", "job.result"}
        text = str(spy.received)
        assert CANARY not in text
        assert "credential" not in text.replace("provisioned_credentials", "")


@pytest.mark.requirement("C07", "P14.2")
async def test_no_value_is_in_a_log_a_repr_or_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bench = Bench(count=2)
    shown: list[str] = []

    @bench.script.agents.register("careless")
    async def careless(job: arcp_trio.JobContext, value: Any) -> None:
        credentials = job.credentials
        shown.extend((repr(job), repr(credentials), repr(job._actor), repr(job._actor.credentials), f"{credentials}"))
        await job.log("info", repr(credentials), {"credentials": str(credentials)})
        raise RuntimeError(credentials, job)

    bench.provisioner.before["revoke"] = failing(ProvisioningError("503"), times=1)
    async with bench.open() as runtime, open_raw(runtime) as client:
        await client.submit("careless")
        assert len(credentials_of(client.received[-1])) == 2
        held = client.received.pop()
        with trio.fail_after(60):
            await client.receive_until("job.error")
        shown += [repr(runtime.unrevoked_credentials()), repr(runtime.statistics()), str(client.received)]
        assert held
    shown += [repr(bench.provisioner.requests), repr(bench.ledger.notes)]
    assert CANARY not in "".join(shown)
    assert "failed, reference" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.requirement("C07", "P14.2")
async def test_no_value_is_in_a_message_of_the_wire_as_an_object() -> None:
    """Messages are logged by whoever debugs; those of a client hold what the runtime has sent."""
    async with open_bench() as (bench, runtime), runtime.open_session(principal="me") as client:
        handle = await client.submit("rotate", 1)
        shown = [repr(handle), repr(handle.accepted), repr(client), repr(handle.credentials)]
        async for event in handle.events():
            shown.append(repr(event))
            bench.script.gate.set()
        shown.extend([repr(page) async for page in client.list_jobs()])
        assert len(shown) == 6
        assert CANARY not in "".join(shown)
