"""The whole life of credentials over real sockets: a gateway process that mints, enforces, fails, hangs and lies."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from provisioning.fakes import CANARY, KeptLedger
from provisioning.upstream import Upstream, chat, open_upstream

import arcp_trio
from arcp_trio import Credential, LedgerState, Limits, ProvisioningError
from arcp_trio.wire.timestamps import WallClock, format_timestamp

LEASE = {"model.use": ["tier-fast/*"], "cost.budget": ["USD:5.00"]}
TOKENS = arcp_trio.StaticTokens({"a-token": "me"})


class House:
    """A gateway of our own before the upstream, and agents that use what they are given."""

    def __init__(self) -> None:
        self.agents = arcp_trio.Agents()
        self.gate = trio.Event()
        self.ledger = KeptLedger()
        self.used: list[Credential] = []
        self.statuses: list[int] = []

        @self.agents.register("worker")
        async def worker(job: arcp_trio.JobContext, value: Any) -> str:
            self.used += job.credentials
            for cost in value or ():
                self.statuses.append(await chat(job.credentials[0], cost=cost))
            await job.log("info", "working")
            await self.gate.wait()
            return "done"

        @self.agents.register("broken")
        async def broken(job: arcp_trio.JobContext, value: Any) -> None:
            self.used += job.credentials
            raise ValueError(f"a bug, with {job.credentials}")

    @asynccontextmanager
    async def open(
        self, upstream: Upstream, *, count: int = 1, private_loopback: bool = True, **limits: Any
    ) -> AsyncGenerator[tuple[arcp_trio.Runtime, arcp_trio.Client], None]:
        """Open a runtime behind a WebSocket, and a client of it."""
        async with (
            arcp_trio.open_runtime(
                self.agents,
                limits=Limits(**limits),
                verifier=TOKENS,
                provisioner=upstream.provisioner(count=count),
                ledger=self.ledger,
            ) as runtime,
            trio.open_nursery() as nursery,
        ):
            listening = await nursery.start(self._serve(runtime, private_loopback))
            async with arcp_trio.open_client(listening.url, token="a-token", reconnect=None) as client:
                yield runtime, client
            nursery.cancel_scope.cancel()

    @staticmethod
    def _serve(runtime: arcp_trio.Runtime, private_loopback: bool) -> Any:
        async def serve(*, task_status: trio.TaskStatus[arcp_trio.Listening]) -> None:
            await arcp_trio.serve_websocket(
                runtime, "127.0.0.1", 0, private_loopback=private_loopback, task_status=task_status
            )

        return serve


@pytest.fixture
async def upstream() -> AsyncGenerator[Upstream, None]:
    async with open_upstream() as opened:
        yield opened


@pytest.fixture(autouse=True)
async def _in_time() -> AsyncGenerator[None, None]:
    """A process or a socket that hangs must not hang the suite."""
    with trio.fail_after(60):
        yield


async def use(credential: Credential) -> int:
    return await chat(credential, cost="0.01")


@pytest.mark.requirement("P9.10", "P9.11", "C01")
async def test_mint_use_and_revoke(upstream: Upstream) -> None:
    house = House()
    async with house.open(upstream) as (_, client):
        handle = await client.submit("worker", ["1.00"], lease_request=LEASE, expires_at="2099-01-01T00:00:00Z")
        (credential,) = handle.credentials
        assert credential.endpoint == f"{upstream.url}/v1"
        assert await use(credential) == 200
        (key,) = await upstream.live()
        assert (key["job"], key["models"], key["expires_at"]) == (
            handle.job_id,
            ["tier-fast/*"],
            "2099-01-01T00:00:00Z",
        )
        house.gate.set()
        assert await handle.result() == "done"
        assert handle.credentials == ()
        assert await use(credential) == 401
        assert await upstream.live() == []
        (key,) = await upstream.keys()
        assert (key["revocations"], key["left"]) == (1, {"USD": "3.99"})
    assert house.statuses == [200]
    assert house.used == [credential]
    assert set(house.ledger.states()) == {LedgerState.REVOKED}


@pytest.mark.requirement("P9.11", "P9.7", "P9.8")
async def test_the_upstream_enforces_what_the_lease_says(upstream: Upstream) -> None:
    house = House()
    async with house.open(upstream) as (_, client):
        handle = await client.submit("worker", ["2.00", "2.00", "2.00", "1.00"], lease_request=LEASE)
        async for event in handle.events():
            assert isinstance(event, arcp_trio.Event)
            break
        # Used up there, though the agent reported nothing; the last one still fitted.
        assert house.statuses == [200, 200, 402, 200]
        (credential,) = handle.credentials
        assert await chat(credential, model="tier-slow/large", cost="0") == 403
        with pytest.raises(arcp_trio.PermissionDeniedError):
            await chat(credential, url=f"{upstream.url}/admin/state")
        house.gate.set()
        await handle.result()


@pytest.mark.requirement("P9.11", "P9.6")
async def test_the_upstream_knows_when_the_lease_ends(upstream: Upstream) -> None:
    house = House()
    async with house.open(upstream) as (_, client):
        ends = format_timestamp(WallClock().seconds() + 1)
        handle = await client.submit("worker", lease_request=LEASE, expires_at=ends)
        (credential,) = handle.credentials
        with pytest.raises(arcp_trio.LeaseExpiredError):
            await handle.result()
        (key,) = await upstream.keys()
        assert key["expires_at"] == ends
        assert await use(credential) == 401


@pytest.mark.requirement("P9.10", "C01")
@pytest.mark.parametrize("end", ["success", "failure", "cancel", "timeout", "shutdown"])
async def test_no_key_is_good_behind_any_end(upstream: Upstream, end: str) -> None:
    house = House()
    async with house.open(upstream, count=2, shutdown_seconds=30) as (runtime, client):
        agent = "broken" if end == "failure" else "worker"
        seconds = 0.3 if end == "timeout" else None
        handle = await client.submit(agent, lease_request=LEASE, max_runtime_sec=seconds)
        if end == "success":
            house.gate.set()
        elif end == "cancel":
            await handle.cancel()
        async with trio.open_nursery() as nursery:
            if end == "shutdown":
                nursery.start_soon(runtime.aclose)
            await handle.wait_ended()
            # Whoever returns from that holds nothing that could be spent.
            assert await upstream.live() == []
    assert len(house.used) in (0, 2)
    for credential in house.used:
        assert await use(credential) == 401
    assert [key["revocations"] for key in await upstream.keys()] == [1, 1]
    assert set(house.ledger.states()) == {LedgerState.REVOKED}


@pytest.mark.requirement("P9.10", "C04", "C05")
async def test_rotate(upstream: Upstream) -> None:
    house = House()
    async with house.open(upstream, count=2) as (runtime, client):
        handle = await client.submit("worker", ["1.50"], lease_request=LEASE)
        prior, other = handle.credentials
        events = handle.events()
        await anext(events)
        rotated = await runtime.rotate_credential(handle.job_id, prior.id)
        event = await anext(events)
        assert isinstance(event, arcp_trio.Event)
        assert (event.body["phase"], event.body["id"]) == ("credential_rotated", prior.id)
        assert CANARY not in repr(event)
        assert [credential.value for credential in handle.credentials] == [rotated.value, other.value]
        assert rotated.value != prior.value
        assert await use(rotated) == 200
        assert await use(other) == 200
        # Behind the event the prior one is revoked, promptly.
        while len(await upstream.live()) > 2:
            pass
        assert await use(prior) == 401
        assert sorted(key["left"]["USD"] for key in await upstream.live()) == ["3.49", "4.99"]
        house.gate.set()
        await handle.result()
        assert [key["revocations"] for key in await upstream.keys()] == [1, 1, 1]


@pytest.mark.requirement("P9.10", "C12")
async def test_loopback_has_to_be_said(upstream: Upstream) -> None:
    house = House()
    async with house.open(upstream, private_loopback=False) as (_, client):
        assert "provisioned_credentials" not in client.features
        handle = await client.submit("worker", lease_request=LEASE)
        assert handle.credentials == ()
        assert await upstream.keys() == []
        house.gate.set()
        await handle.result()


# --- when the upstream misbehaves -----------------------------------------------------------------


@pytest.mark.requirement("L11", "L12", "C07", "C11", "C14")
@pytest.mark.parametrize("mood", ["fail", "fail_after", "leak", "refuse", "same_key", "wider", "hang", "hang_after"])
async def test_an_issue_that_goes_wrong(upstream: Upstream, mood: str, caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    async with house.open(upstream, count=2, submit_seconds=1.0) as (runtime, client):
        await upstream.be(issue=mood)
        with pytest.raises(arcp_trio.InternalError) as caught:
            await client.submit("worker", lease_request=LEASE)
        assert caught.value.retryable
        assert CANARY not in str(caught.value)
        while runtime.unrevoked_credentials():
            # A round trip is time enough for another look.
            await upstream.asked()
        assert await upstream.live() == []
        assert runtime.statistics().jobs_accepted == 0
        assert [page async for page in client.list_jobs()] == [()]
        await upstream.be()
        handle = await client.submit("worker", lease_request=LEASE)
        assert [await use(credential) for credential in handle.credentials] == [200, 200]
        house.gate.set()
        await handle.result()
        assert await upstream.live() == []
    assert set(house.ledger.states()) == {LedgerState.REVOKED}
    assert CANARY not in caplog.text


@pytest.mark.requirement("C01", "C09", "C10", "C13", "P9.10")
@pytest.mark.parametrize("mood", ["fail", "hang", "refuse"])
async def test_a_revocation_that_goes_wrong_is_made_good_by_a_restart(upstream: Upstream, mood: str) -> None:
    house = House()
    limits = {"revocation_seconds": 0.3, "revocation_delay_seconds": 1000.0, "revocation_max_delay_seconds": 1000.0}
    async with house.open(upstream, **limits) as (runtime, client):
        handle = await client.submit("worker", lease_request=LEASE)
        (credential,) = handle.credentials
        await upstream.be(revoke=mood)
        house.gate.set()
        await handle.result()
        (entry,) = runtime.unrevoked_credentials()
        assert entry.state is (LedgerState.FAILED if mood == "refuse" else LedgerState.ISSUED)
        assert await use(credential) == 200
    assert len(await house.ledger.outstanding()) == 1
    await upstream.be()
    async with house.open(upstream) as (runtime, _):
        assert await use(credential) == 401
        assert runtime.unrevoked_credentials() == ()
    assert set(house.ledger.states()) == {LedgerState.REVOKED}


@pytest.mark.requirement("P9.11")
async def test_an_upstream_that_lies_about_a_revocation_is_bound_by_the_lease(upstream: Upstream) -> None:
    """Nobody can tell from here; what was baked into the key is what is left."""
    house = House()
    async with house.open(upstream) as (runtime, client):
        await upstream.be(revoke="lie")
        ends = format_timestamp(WallClock().seconds() + 2)
        handle = await client.submit("worker", lease_request=LEASE, expires_at=ends)
        (credential,) = handle.credentials
        house.gate.set()
        await handle.result()
        assert runtime.unrevoked_credentials() == ()
        assert await chat(credential, cost="5.01") == 402
        assert await chat(credential, model="tier-slow/large", cost="0") == 403
        while await chat(credential, cost="0") == 200:
            pass
        assert await chat(credential, cost="0") == 401


@pytest.mark.requirement("C04", "C07", "P9.10")
@pytest.mark.parametrize("mood", ["fail", "fail_after", "leak", "same_key", "wider", "hang_after"])
async def test_a_rotation_that_goes_wrong(upstream: Upstream, mood: str) -> None:
    house = House()
    async with house.open(upstream, submit_seconds=1.0) as (runtime, client):
        handle = await client.submit("worker", lease_request=LEASE)
        (credential,) = handle.credentials
        await upstream.be(rotate=mood)
        with pytest.raises(arcp_trio.InternalError) as caught:
            await runtime.rotate_credential(handle.job_id, credential.id)
        assert CANARY not in str(caught.value)
        if mood != "same_key":
            assert await use(credential) == 200
        assert handle.credentials == (credential,)
        house.gate.set()
        await handle.result()
        assert await upstream.live() == []
    assert set(house.ledger.states()) == {LedgerState.REVOKED}


async def test_an_upstream_that_is_not_there() -> None:
    async with open_upstream() as opened:
        pass
    with pytest.raises(ProvisioningError, match="the upstream failed"):
        await opened.provisioner().revoke("h-1")


@pytest.mark.requirement("P9.10")
async def test_revoking_is_idempotent(upstream: Upstream) -> None:
    provisioner = upstream.provisioner()
    for _ in range(2):
        await provisioner.revoke("h-unknown")
        await provisioner.revoke_job("job_unknown")
