"""Provisioned credentials between us and the reference implementation, both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from provisioning.fakes import CANARY, ENDPOINT
from provisioning.running import Bench

import arcp_trio

if TYPE_CHECKING:
    from interop.peer import ReferencePeer

TOKEN = "secret"
LEASE = {"model.use": ["tier-fast/*"], "cost.budget": ["USD:5.00"]}


@pytest.mark.requirement("P9.10", "D50", "P5.3a")
async def test_its_client_takes_what_we_provision(reference_peer: ReferencePeer) -> None:
    bench = Bench(count=2)

    @bench.script.agents.register("rotating")
    async def rotating(job: arcp_trio.JobContext, value: Any) -> str:
        await job.status("started")
        await job.rotate_credential(job.credentials[0].id)
        return "rotated"

    async with (
        arcp_trio.open_runtime(
            bench.script.agents,
            verifier=arcp_trio.StaticTokens({TOKEN: "me"}),
            provisioner=bench.provisioner,
            ledger=bench.ledger,
        ) as runtime,
        trio.open_nursery() as nursery,
    ):

        async def serve(*, task_status: trio.TaskStatus[arcp_trio.Listening]) -> None:
            await arcp_trio.serve_websocket(runtime, "127.0.0.1", 0, private_loopback=True, task_status=task_status)

        listening: arcp_trio.Listening = await nursery.start(serve)
        accepted, rotated, outcome, listed, closed = await reference_peer.run(
            "peer_client.py", listening.url, "credentials"
        )
        nursery.cancel_scope.cancel()
    values = list(bench.provisioner.values.values())
    assert "provisioned_credentials" in accepted["features"]
    first, second = accepted["credentials"]
    assert [first["value"], second["value"]] == values[:2]
    assert first["endpoint"] == ENDPOINT
    assert first["constraints"]["cost.budget"] == ["USD:5.00"]
    assert first["constraints"]["model.use"] == ["tier-fast/*"]
    (body,) = rotated["rotations"]
    assert (body["id"], body["value"]) == (first["id"], values[2])
    assert outcome["result"] == "rotated"
    assert listed == {"listed": 1}
    assert closed == {"closed": True}
    assert bench.is_clean


@pytest.mark.requirement("P9.11", "D50")
async def test_our_client_takes_what_it_provisions(reference_peer: ReferencePeer) -> None:
    with trio.fail_after(60):
        async with (
            reference_peer.open_server("credentials") as server,
            arcp_trio.open_client(server.url, token=TOKEN) as client,
        ):
            handle = await client.submit("rotating", lease_request=LEASE)
            (credential,) = handle.credentials
            # It may have been rotated by now: the handle shows the newest.
            assert credential.value.reveal() in (f"test-token-{handle.job_id}", "test-token-rotated")
            assert credential.headers_for("https://gateway.example.test/v1/chat")
            with pytest.raises(arcp_trio.PermissionDeniedError):
                credential.present("https://gateway.example/v1")
            seen: list[Any] = []
            async for event in handle.events():
                assert isinstance(event, arcp_trio.Event)
                seen.append(event.body.get("phase"))
                if seen[-1] == "rotated":
                    break
            assert "credential_rotated" in seen
            (rotated,) = handle.credentials
            assert (rotated.id, rotated.value.reveal()) == (credential.id, "test-token-rotated")
            await handle.cancel()
            await handle.wait_ended()
            assert handle.credentials == ()
    assert CANARY not in repr(handle)
