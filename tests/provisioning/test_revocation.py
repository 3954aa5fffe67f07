"""However a job ends, its credentials are revoked: before that is visible, within the deadline, or after a restart."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from helpers import Frame, RawClient, connect_raw, open_raw, terminals
from provisioning.fakes import FakeProvisioner, KeptLedger, failing, waiting
from provisioning.running import Bench, end_of, open_bench

import arcp_trio
from arcp_trio import LedgerEntry, LedgerState, ProvisioningError
from arcp_trio.wire.timestamps import WallClock, format_timestamp

EPOCH = 1_000_000_000


def mocked_clock() -> WallClock:
    return WallClock(lambda: EPOCH + trio.current_time())


class Ending:
    """One way for a job to end."""

    def __init__(
        self,
        name: str,
        agent: str,
        code: str | None,
        end: Callable[[Bench, arcp_trio.Runtime, RawClient, str], Awaitable[None]],
        **payload: Any,
    ) -> None:
        self.name = name
        self.agent = agent
        self.code = code
        self.end = end
        self.payload = payload

    async def submit(self, client: RawClient) -> str:
        payload = dict(self.payload)
        if payload.pop("expires", False):
            payload["lease_constraints"] = {"expires_at": format_timestamp(EPOCH + trio.current_time() + 3)}
        return await client.submit(self.agent, **payload)


async def _open_gate(bench: Bench, runtime: arcp_trio.Runtime, client: RawClient, job_id: str) -> None:
    bench.script.gate.set()
    await trio.lowlevel.checkpoint()


async def _cancel(bench: Bench, runtime: arcp_trio.Runtime, client: RawClient, job_id: str) -> None:
    await client.request("job.cancel", {"job_id": job_id})


async def _wait_three_seconds(bench: Bench, runtime: arcp_trio.Runtime, client: RawClient, job_id: str) -> None:
    await trio.sleep(3)


async def _fail(bench: Bench, runtime: arcp_trio.Runtime, client: RawClient, job_id: str) -> None:
    # Its agent has raised by now.
    await trio.lowlevel.checkpoint()


ENDINGS = [
    Ending("success", "gate", None, _open_gate),
    Ending("stream", "stream", None, _open_gate),
    Ending("failure", "fail", "INTERNAL_ERROR", _fail),
    Ending("not JSON", "unsendable", "INTERNAL_ERROR", _fail),
    Ending("cancel", "sleep", "CANCELLED", _cancel),
    Ending("timeout", "sleep", "TIMEOUT", _wait_three_seconds, max_runtime_sec=3),
    Ending("expiry", "sleep", "LEASE_EXPIRED", _wait_three_seconds, expires=True),
    Ending("stubborn cancel", "stubborn", "CANCELLED", _cancel),
]
every_ending = pytest.mark.parametrize("ending", ENDINGS, ids=[ending.name for ending in ENDINGS])


def make_bench(count: int = 2) -> Bench:
    bench = Bench(count)

    @bench.script.agents.register("stream")
    async def stream(job: arcp_trio.JobContext, value: Any) -> None:
        async with job.stream_result() as out:
            await out.write("a piece")
            await bench.script.gate.wait()

    @bench.script.agents.register("unsendable")
    async def unsendable(job: arcp_trio.JobContext, value: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return object()

    return bench


def outcome(frame: Frame) -> str | None:
    code: str | None = frame["payload"].get("code")
    return code


@pytest.mark.requirement("P9.10", "C01")
@every_ending
async def test_no_end_is_visible_before_the_revocation(ending: Ending, autojump_clock: trio.testing.MockClock) -> None:
    bench = make_bench()
    clock = mocked_clock()
    async with bench.open(clock=clock, revocation_seconds=5, cancel_grace_seconds=1) as runtime:
        client, watcher = await connect_raw(runtime), await connect_raw(runtime)
        live_at_the_end: list[int] = []

        async def take_two_seconds(handle: str) -> None:
            await trio.sleep(2)
            assert not terminals(client.received)
            assert not terminals(watcher.received)
            assert runtime.statistics().terminals_published == 0

        bench.provisioner.before["revoke"] = take_two_seconds
        async with trio.open_nursery() as nursery:
            job_id = await ending.submit(client)
            await watcher.request("job.subscribe", {"job_id": job_id})
            nursery.start_soon(ending.end, bench, runtime, client, job_id)
            for each in (client, watcher):
                end = await end_of(each, job_id)
                live_at_the_end.append(len(bench.provisioner.live))
                assert outcome(end) == ending.code
        assert live_at_the_end == [0, 0]
        assert bench.is_clean
        assert runtime.statistics().credentials_live == 0
        bench.script.gate.set()


@pytest.mark.requirement("P9.10", "C01", "P14.4")
@every_ending
async def test_no_end_waits_longer_than_the_deadline(ending: Ending, autojump_clock: trio.testing.MockClock) -> None:
    bench = make_bench()
    gate, asked = trio.Event(), trio.Event()

    async def hang(handle: str) -> None:
        asked.set()
        await gate.wait()

    bench.provisioner.before["revoke"] = hang
    async with bench.open(clock=mocked_clock(), cancel_grace_seconds=1) as runtime:
        client = await connect_raw(runtime)
        job_id = await ending.submit(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ending.end, bench, runtime, client, job_id)
            await asked.wait()
            began = trio.current_time()
            end = await end_of(client, job_id)
        assert outcome(end) == ending.code
        assert trio.current_time() - began == pytest.approx(arcp_trio.Limits().revocation_seconds)
        # It was durably queued before the end was visible, and goes on behind it.
        assert {entry.state for entry in runtime.unrevoked_credentials()} == {LedgerState.ISSUED}
        assert runtime.statistics().credentials_unrevoked == 2
        gate.set()
        await trio.sleep(100)
        assert bench.is_clean
        assert runtime.unrevoked_credentials() == ()
        bench.script.gate.set()


@pytest.mark.requirement("P9.10", "C01")
@every_ending
async def test_an_upstream_that_fails_first_is_asked_again(
    ending: Ending, autojump_clock: trio.testing.MockClock
) -> None:
    bench = make_bench()
    bench.provisioner.before["revoke"] = failing(ProvisioningError("503"), times=3)
    async with bench.open(clock=mocked_clock(), cancel_grace_seconds=1) as runtime:
        client = await connect_raw(runtime)
        job_id = await ending.submit(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ending.end, bench, runtime, client, job_id)
            assert outcome(await end_of(client, job_id)) == ending.code
        assert bench.is_clean
        assert len(bench.provisioner.calls_of("revoke")) == 5
        bench.script.gate.set()


@pytest.mark.requirement("C03", "P7.14", "L01")
async def test_late_cancels_revoke_nothing_again(autojump_clock: trio.testing.MockClock) -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        job_id = await client.submit("sleep", max_runtime_sec=1)
        await trio.sleep(0.9999999)
        for _ in range(3):
            await client.request("job.cancel", {"job_id": job_id})
        await end_of(client, job_id)
        for _ in range(3):
            await client.request("job.cancel", {"job_id": job_id})
        await client.settle()
        assert len(bench.provisioner.calls_of("revoke")) == 1
        assert runtime.statistics().tear_downs == 1


@pytest.mark.requirement("P9.10")
async def test_a_slow_revocation_holds_up_no_other_job(autojump_clock: trio.testing.MockClock) -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        first = await client.submit("echo", 1)
        await end_of(client, first)
        gate = trio.Event()
        bench.provisioner.before["revoke"] = waiting(gate)
        second = await client.submit("echo", 2)
        await client.settle()
        # Its mailbox is still read: a cancel is answered behind the end, a listing says that it runs.
        await client.request("job.cancel", {"job_id": second})
        await client.request("session.list_jobs", {"filter": {"status": ["running"]}})
        (page,) = await client.settle()
        assert [entry["job_id"] for entry in page["payload"]["jobs"]] == [second]
        third = await client.submit("echo", 3)
        bench.provisioner.before.clear()
        gate.set()
        await end_of(client, third)
        assert (await end_of(client, second))["type"] == "job.result"
        assert trio.current_time() < 1


@pytest.mark.requirement("P9.10", "C09")
async def test_what_cannot_be_revoked_is_shown_to_operators(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    bench.provisioner.before["revoke"] = failing(ProvisioningError("the upstream answered 403", permanent=True))
    async with bench.open() as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo")
        await end_of(client, job_id)
        # There is nothing to wait for.
        assert trio.current_time() == 0
        await trio.testing.wait_all_tasks_blocked()
        (shown,) = runtime.unrevoked_credentials()
        assert bench.unrevocable == [shown]
        assert (shown.job_id, shown.principal, shown.state) == (job_id, "me", LedgerState.FAILED)
        assert shown.handle in bench.provisioner.live
        statistics = runtime.statistics()
        assert (statistics.credentials_unrevoked, statistics.credentials_failed) == (1, 1)
        assert statistics.credentials_live == 0
    assert bench.ledger.states()[LedgerState.FAILED] == 1
    assert "cannot be revoked" in caplog.text
    # The next start tries again.
    bench.provisioner.before.clear()
    async with bench.open() as runtime:
        assert runtime.unrevoked_credentials() == ()
    assert bench.is_clean


# --- restarts -------------------------------------------------------------------------------------


@pytest.mark.requirement("C10", "C11", "P9.10")
async def test_a_start_revokes_first_and_accepts_then() -> None:
    provisioner, ledger = FakeProvisioner(), KeptLedger()
    script = Bench().script
    orphan = LedgerEntry(
        entry_id="cred_1",
        job_id="job_1",
        principal="me",
        state=LedgerState.ISSUED,
        handle="h-1",
        noted_at_ms=1,
    )
    lost = attrs.evolve(orphan, entry_id="cred_2", job_id="job_2", state=LedgerState.INTENDED, handle=None)
    provisioner.live = {"h-1": "job_1", "h-lost": "job_2", "h-others": "job_3"}
    await ledger.put([orphan, lost])
    async with arcp_trio.open_runtime(script.agents, provisioner=provisioner, ledger=ledger) as runtime:
        assert sorted(provisioner.calls) == [("revoke", "h-1"), ("revoke_job", "job_2")]
        assert list(provisioner.live) == ["h-others"]
        async with open_raw(runtime) as client:
            await client.submit("echo")
        assert provisioner.calls[2][0] == "issue"
    assert set(ledger.states()) == {LedgerState.REVOKED}


@pytest.mark.requirement("C10")
async def test_a_start_with_an_upstream_that_is_down(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    bench.provisioner.live = {"h-1": "job_1"}
    entry = LedgerEntry(
        entry_id="cred_1", job_id="job_1", principal="me", state=LedgerState.ISSUED, handle="h-1", noted_at_ms=1
    )
    await bench.ledger.put([entry])
    bench.provisioner.before["revoke"] = waiting(trio.Event())
    began = trio.current_time()
    async with bench.open(revocation_seconds=5) as runtime, open_raw(runtime) as client:
        assert trio.current_time() - began == pytest.approx(5)
        bench.provisioner.before.clear()
        await client.submit("echo")
        await trio.sleep(100)
        assert bench.provisioner.revoked["h-1"] == 1
        assert runtime.unrevoked_credentials() == ()


async def test_a_start_whose_ledger_cannot_be_read() -> None:
    bench = Bench()

    async def fail() -> list[LedgerEntry]:
        raise OSError("the disk")

    bench.ledger.outstanding = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the disk"):
        async with bench.open():
            raise AssertionError


@pytest.mark.requirement("C10")
async def test_a_start_that_is_cancelled_while_it_revokes(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    entry = LedgerEntry(
        entry_id="cred_1", job_id="job_1", principal="me", state=LedgerState.ISSUED, handle="h-1", noted_at_ms=1
    )
    await bench.ledger.put([entry])
    bench.provisioner.before["revoke"] = waiting(trio.Event())
    with trio.move_on_after(1) as scope:
        async with bench.open():
            raise AssertionError
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(1)
    assert len(await bench.ledger.outstanding()) == 1


CRASHES = ["put the intent", "issue", "put the credential", "revoke", "put that it is revoked"]


@pytest.mark.requirement("C10", "C11", "P9.10")
@pytest.mark.parametrize("at", CRASHES)
async def test_a_crash_leaves_nothing_that_is_not_found(at: str, autojump_clock: trio.testing.MockClock) -> None:
    """The process stops for ever at one point: what the disk and the upstream have then is all that a restart has."""
    bench = Bench()
    states: list[dict[str, LedgerEntry]] = []
    stop = trio.Event()

    async def crash(_: object) -> None:
        states.append(dict(bench.ledger.entries))
        stop.set()
        await trio.sleep_forever()

    puts = 0

    async def count(entries: Sequence[LedgerEntry]) -> None:
        nonlocal puts
        puts += 1
        if puts == {"put the intent": 1, "put the credential": 2, "put that it is revoked": 3}.get(at):
            await crash(entries)

    bench.ledger.before_put = count
    if at in ("issue", "revoke"):
        bench.provisioner.after[at] = crash
    dead = FakeProvisioner()
    async with bench.open(submit_seconds=10_000, revocation_seconds=1_000) as runtime, open_raw(runtime) as client:
        await client.request("job.submit", {"agent": "echo", "input": 1})
        await stop.wait()
        # A copy of what is there at that moment; what this run does later is not looked at.
        dead.live = dict(bench.provisioner.live)
        disk = KeptLedger(*states[0].values())
        bench.ledger.before_put = None
        bench.provisioner.after.clear()
    async with arcp_trio.open_runtime(bench.script.agents, provisioner=dead, ledger=disk) as runtime:
        assert dead.live == {}
        assert await disk.outstanding() == []
        assert runtime.unrevoked_credentials() == ()


# --- shutdowns ------------------------------------------------------------------------------------


@pytest.mark.requirement("P9.10", "C01", "L22")
async def test_a_shutdown_revokes_what_its_jobs_have(autojump_clock: trio.testing.MockClock) -> None:
    bench = make_bench()

    async def take_a_second(handle: str) -> None:
        await trio.sleep(1)
        assert not terminals(client.received)

    bench.provisioner.before["revoke"] = take_a_second
    async with bench.open(shutdown_seconds=10) as runtime:
        client = await connect_raw(runtime)
        for _ in range(3):
            await client.submit("sleep")
        began = trio.current_time()
        await runtime.aclose()
        assert trio.current_time() - began < 2
        await client.receive_close()
        assert len(terminals(client.received)) == 3
    assert bench.is_clean
    assert len(bench.provisioner.revoked) == 6


@pytest.mark.requirement("C13", "P9.10", "Z12")
@pytest.mark.parametrize("trouble", ["hangs", "fails"])
@pytest.mark.parametrize("agent", ["sleep", "stubborn"])
async def test_a_shutdown_leaves_the_rest_to_the_ledger(
    trouble: str, agent: str, autojump_clock: trio.testing.MockClock
) -> None:
    bench = Bench()
    hangs = waiting(trio.Event())
    bench.provisioner.before["revoke"] = hangs if trouble == "hangs" else failing(ProvisioningError("503"))
    async with bench.open(shutdown_seconds=10) as runtime:
        client = await connect_raw(runtime)
        job_id = await client.submit(agent)
        await client.settle()
        began = trio.current_time()
        await runtime.aclose()
        # It had its share of the deadline, and the client still heard of its end.
        assert trio.current_time() - began <= 8.5
        await client.receive_close()
        assert len(terminals(client.received, job_id)) == 1
        calls = len(bench.provisioner.calls)
        await trio.sleep(1_000)
        assert len(bench.provisioner.calls) == calls
        bench.script.gate.set()
    (left,) = await bench.ledger.outstanding()
    assert (left.job_id, left.state) == (job_id, LedgerState.ISSUED)
    assert left.handle in bench.provisioner.live
    bench.provisioner.before.clear()
    async with bench.open():
        assert bench.is_clean


@pytest.mark.requirement("C13")
async def test_a_shutdown_during_a_delay_is_at_once(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    bench.provisioner.before["revoke"] = failing(ProvisioningError("503"))
    async with bench.open() as runtime, open_raw(runtime) as client:
        await end_of(client, await client.submit("echo"))
        began = trio.current_time()
        await runtime.aclose()
        assert trio.current_time() == began
    assert len(await bench.ledger.outstanding()) == 1


@pytest.mark.requirement("P9.10")
async def test_a_shutdown_that_finds_a_revocation_under_way_shortens_its_wait(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bench = Bench()
    bench.provisioner.before["revoke"] = waiting(trio.Event())
    async with bench.open(shutdown_seconds=2, revocation_seconds=1_000) as runtime:
        client = await connect_raw(runtime)
        job_id = await client.submit("echo")
        await client.settle()
        began = trio.current_time()
        await runtime.aclose()
        assert trio.current_time() - began < 2
        await client.receive_close()
        # It had returned: what it is was decided long ago.
        assert [frame["type"] for frame in terminals(client.received, job_id)] == ["job.result"]
    assert len(await bench.ledger.outstanding()) == 1
