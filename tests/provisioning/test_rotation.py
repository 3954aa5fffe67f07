"""Another value in the place of one: written down, told to the submitter alone, and the prior one revoked."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, connect_raw, open_raw
from provisioning.fakes import CANARY, deaf, failing, waiting
from provisioning.running import LEASE, Bench, credentials_of, end_of, open_bench, rotations
from sessions.resuming import drop, resume, sequence

import arcp_trio
from arcp_trio import CredentialConstraints, JobEndedError, LedgerEntry, LedgerState


def body_of(frame: Frame) -> Frame:
    body: Frame = frame["payload"]["body"]
    return body


@pytest.mark.requirement("P9.10", "C04")
async def test_a_rotation_is_written_down_told_and_then_the_prior_value_is_revoked() -> None:
    bench = Bench()
    steps: list[str] = []

    async def note_put(entries: Sequence[LedgerEntry]) -> None:
        steps.append("put " + " ".join(entry.state.value for entry in entries))

    async def note_revoke(handle: str) -> None:
        # It was told by then: else this waits for ever.
        await client.receive_until("job.event")
        steps.append("revoke")

    async with bench.open() as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep", lease_request=LEASE)
        (first,) = credentials_of(client.received[-1])
        ((handle, value),) = bench.provisioner.values.items()
        bench.ledger.before_put = note_put
        bench.provisioner.before["revoke"] = note_revoke
        rotated = await runtime.rotate_credential(job_id, first["id"])
        await trio.testing.wait_all_tasks_blocked()
        assert steps == ["put intended", "put issued revoked", "revoke", "put revoked"]
        bench.provisioner.before.clear()
        (told,) = rotations(client.received)
        (other,) = bench.provisioner.live
        fresh = bench.provisioner.values[other]
        assert fresh != value
        assert told["job_id"] == job_id
        assert told["payload"]["kind"] == "status"
        assert body_of(told) == {
            "phase": "credential_rotated",
            "message": first["id"],
            "id": first["id"],
            "value": fresh,
            "details": {"id": first["id"], "value": fresh},
        }
        # For this session alone: not in the job's own count.
        assert told["event_seq"] == 1
        assert "extensions" not in told
        assert rotated.to_wire() == {**first, "value": fresh}
        assert bench.provisioner.revoked == {handle: 1}
        await client.request("job.cancel", {"job_id": job_id})
        await end_of(client, job_id)
    assert bench.is_clean
    assert bench.provisioner.revoked == {handle: 1, other: 1}


@pytest.mark.requirement("C05", "P9.10")
async def test_a_rotation_leaves_the_others_as_they_are() -> None:
    async with open_bench(count=3) as (bench, runtime), open_raw(runtime) as client:
        job_id = await client.submit("rotate", 2)
        before = credentials_of(client.received[-1])
        await client.settle()
        after = [credential.to_wire() for credential in bench.seen[-1]]
        assert [each["id"] for each in after] == [each["id"] for each in before]
        assert after[1:] == before[1:]
        assert after[0]["value"] != before[0]["value"]
        outstanding = {entry.handle for entry in await bench.ledger.outstanding()}
        assert outstanding == set(bench.provisioner.live)
        assert len(outstanding) == 3
        bench.script.gate.set()
        await end_of(client, job_id)
        assert bench.is_clean
        assert len(bench.provisioner.revoked) == 5
        assert runtime.statistics().credentials_issued == 5


@pytest.mark.requirement("P9.10", "P9.11")
async def test_a_provisioner_is_told_what_is_left(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()

    @bench.script.agents.register("spend")
    async def spend(job: arcp_trio.JobContext, value: Any) -> None:
        job._actor.authority.budget.charge("USD", Decimal("1.25"))
        await job.rotate_credential(job.credentials[0].id)

    async with bench.open() as runtime, open_raw(runtime) as client:
        await end_of(client, await client.submit("spend", lease_request=LEASE))
        first, second = bench.provisioner.requests
        assert (first.budget, second.budget) == ({"USD": Decimal("5.00")}, {"USD": Decimal("3.75")})
        assert first.job_id == second.job_id


# --- who is told ----------------------------------------------------------------------------------


@pytest.mark.requirement("P9.10", "C07", "Q16", "P8.2")
async def test_subscribers_are_told_nothing() -> None:
    async with open_bench() as (_, runtime), open_raw(runtime) as client, open_raw(runtime) as watcher:
        job_id = await client.submit("sleep")
        credential_id = credentials_of(client.received[-1])[0]["id"]
        await watcher.request("job.subscribe", {"job_id": job_id, "history": True})
        await watcher.settle()
        await runtime.rotate_credential(job_id, credential_id)
        await client.request("job.cancel", {"job_id": job_id})
        frames = await watcher.settle()
        assert rotations(frames) == []
        assert sequence(frames) == [1]
        assert len(rotations(await client.settle())) == 1
        # Nor who comes later.
        late = await connect_raw(runtime)
        await late.request("job.subscribe", {"job_id": job_id, "history": True})
        assert rotations(await late.settle()) == []
        for session in (watcher, late):
            assert CANARY not in str(session.received)


@pytest.mark.requirement("P9.10", "P6.9", "P8.2")
async def test_a_replay_has_the_present_value_while_the_job_runs_and_none_behind_it() -> None:
    async with open_bench() as (bench, runtime):
        client = await connect_raw(runtime)
        job_id = await client.submit("rotate", 2)
        await client.settle()
        assert [body_of(frame)["value"] for frame in rotations(client.received)] == list(
            bench.provisioner.values.values()
        )[1:]
        (handle,) = bench.provisioner.live
        await drop(client)
        again = await resume(runtime, client, 0)
        frames = await again.settle()
        assert sequence(frames) == [1, 2]
        (accepted,) = [frame for frame in frames if frame["type"] == "job.accepted"]
        shown = {credentials_of(accepted)[0]["value"], *(body_of(frame)["value"] for frame in rotations(frames))}
        assert shown == {bench.provisioner.values[handle]}, "what is dead is shown to nobody"
        bench.script.gate.set()
        await end_of(again, job_id)
        await drop(again)
        last = await resume(runtime, again, 0)
        frames = await last.settle()
        assert sequence(frames) == [1, 2, 3]
        assert CANARY not in str(frames)
        assert [frame["type"] for frame in frames][:1] == ["job.accepted"]
        assert "credentials" not in frames[0]["payload"]
        (first, _) = rotations(frames)
        assert set(body_of(first)) == {"phase", "message", "id"}


@pytest.mark.requirement("P9.10")
async def test_a_session_that_is_away_hears_of_it_when_it_is_back() -> None:
    async with open_bench() as (_, runtime):
        client = await connect_raw(runtime)
        job_id = await client.submit("sleep")
        credential_id = credentials_of(client.received[-1])[0]["id"]
        await drop(client)
        rotated = await runtime.rotate_credential(job_id, credential_id)
        again = await resume(runtime, client, 0)
        (told,) = rotations(await again.settle())
        assert body_of(told)["value"] == rotated.value.reveal()


@pytest.mark.requirement("P6.20", "P7.17")
async def test_a_listing_and_a_subscription_of_the_submitter_show_the_present_value() -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client, open_raw(runtime) as other:
        job_id = await client.submit("rotate", 1)
        await client.settle()
        (handle,) = bench.provisioner.live
        value = bench.provisioner.values[handle]
        for session, sees in ((client, True), (other, False)):
            await session.request("session.list_jobs", {})
            (page,) = await session.settle()
            (entry,) = page["payload"]["jobs"]
            assert ("credentials" in entry) is sees
            await session.request("job.subscribe", {"job_id": job_id})
            subscribed = next(frame for frame in await session.settle() if frame["type"] == "job.subscribed")
            assert ("credentials" in subscribed["payload"]) is sees
            if sees:
                shown = {entry["credentials"][0]["value"], credentials_of(subscribed)[0]["value"]}
                assert shown == {value}
        assert CANARY not in str(other.received)
        bench.script.gate.set()
        await end_of(client, job_id)
        await client.request("session.list_jobs", {})
        await client.request("job.subscribe", {"job_id": job_id})
        assert CANARY not in str(await client.settle())


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.requirement("P9.10", "C04", "C07")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_rotation_that_fails_leaves_the_prior_value_good(
    when: str, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        (shown,) = credentials_of(client.received[-1])
        ((handle, value),) = bench.provisioner.values.items()
        getattr(bench.provisioner, when)["rotate"] = failing(ValueError(f"{CANARY}secret"))
        with pytest.raises(arcp_trio.InternalError) as caught:
            await runtime.rotate_credential(job_id, shown["id"])
        assert CANARY not in str(caught.value)
        assert caught.value.__cause__ is None
        assert rotations(await client.settle()) == []
        assert handle in bench.provisioner.live
        # What may have been minted beside it is known to the ledger, and is revoked with the job.
        assert bench.ledger.states()[LedgerState.INTENDED] == 1
        # The next one is as good as if nothing had been.
        getattr(bench.provisioner, when).clear()
        assert (await runtime.rotate_credential(job_id, shown["id"])).value.reveal() != value
        await client.request("job.cancel", {"job_id": job_id})
        await end_of(client, job_id)
        assert bench.provisioner.live == {}
        assert set(bench.ledger.states()) == {LedgerState.REVOKED}
    assert CANARY not in caplog.text


@pytest.mark.requirement("P9.10", "P7.6")
async def test_a_rotation_that_hangs_is_cut(autojump_clock: trio.testing.MockClock) -> None:
    async with open_bench(submit_seconds=30) as (bench, runtime), open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        credential_id = credentials_of(client.received[-1])[0]["id"]
        bench.provisioner.after["rotate"] = waiting(trio.Event())
        began = trio.current_time()
        with pytest.raises(arcp_trio.InternalError, match="not rotated within 30 seconds"):
            await runtime.rotate_credential(job_id, credential_id)
        assert trio.current_time() - began == pytest.approx(30)
        await client.request("job.cancel", {"job_id": job_id})
        await end_of(client, job_id)
        assert bench.provisioner.live == {}


@pytest.mark.requirement("C14", "P9.11")
@pytest.mark.parametrize(
    "changes",
    [
        {"constraints": CredentialConstraints(budget=("USD:50",))},
        {"constraints": CredentialConstraints(expires_at="2199-01-01T00:00:00Z")},
        {"endpoint": "nowhere"},
    ],
    ids=["budget", "expiry", "endpoint"],
)
async def test_what_a_rotation_makes_wider_is_refused_and_revoked_at_once(changes: dict[str, Any]) -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        constraints = {"expires_at": "2099-01-01T00:00:00Z"}
        job_id = await client.submit("sleep", lease_request=LEASE, lease_constraints=constraints)
        credential_id = credentials_of(client.received[-1])[0]["id"]
        (handle,) = bench.provisioner.live
        bench.provisioner.changes = changes
        with pytest.raises(arcp_trio.InternalError):
            await runtime.rotate_credential(job_id, credential_id)
        await trio.testing.wait_all_tasks_blocked()
        assert list(bench.provisioner.live) == [handle]
        assert len(bench.provisioner.calls_of("revoke")) == 1
        await client.request("job.cancel", {"job_id": job_id})
        await end_of(client, job_id)
        assert bench.is_clean


@pytest.mark.parametrize("which", ["value", "handle"])
async def test_a_rotation_returns_nothing_that_was_there_before(which: str) -> None:
    async with open_bench(count=2) as (bench, runtime), open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        first, _ = credentials_of(client.received[-1])
        other = list(bench.provisioner.values)[1]
        value = bench.provisioner.values[other]
        bench.provisioner.changes = {"value": value} if which == "value" else {"handle": other}
        with pytest.raises(arcp_trio.InternalError):
            await runtime.rotate_credential(job_id, first["id"])
        await trio.testing.wait_all_tasks_blocked()
        assert other in bench.provisioner.live, "the job's other credential is as good as before"


@pytest.mark.requirement("C04")
async def test_an_upstream_that_replaces_in_place() -> None:
    """It returns the same handle: revoking the prior value by it would kill the one that was just rotated in."""
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        (shown,) = credentials_of(client.received[-1])
        (handle,) = bench.provisioner.live
        bench.provisioner.changes = {"handle": handle}
        rotated = await runtime.rotate_credential(job_id, shown["id"])
        assert rotated.value.reveal() != shown["value"]
        await trio.testing.wait_all_tasks_blocked()
        assert bench.provisioner.calls_of("revoke") == []
        assert handle in bench.provisioner.live
        (outstanding,) = await bench.ledger.outstanding()
        assert outstanding.handle == handle
        await client.request("job.cancel", {"job_id": job_id})
        await end_of(client, job_id)
        assert bench.provisioner.calls_of("revoke") == [handle]


async def test_what_cannot_be_rotated() -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        with pytest.raises(arcp_trio.JobNotFoundError):
            await runtime.rotate_credential("job_1", "cred_1")
        job_id = await client.submit("stubborn")
        (shown,) = credentials_of(client.received[-1])
        with pytest.raises(arcp_trio.InvalidRequestError, match="no credential 'cred_1'"):
            await runtime.rotate_credential(job_id, "cred_1")
        await client.request("job.cancel", {"job_id": job_id})
        await client.settle()
        with pytest.raises(JobEndedError):
            await runtime.rotate_credential(job_id, shown["id"])
        bench.script.gate.set()
        await end_of(client, job_id)
        with pytest.raises(JobEndedError):
            await runtime.rotate_credential(job_id, shown["id"])
        assert bench.provisioner.calls_of("rotate") == []
    script = Bench().script
    async with arcp_trio.open_runtime(script.agents) as plain, open_raw(plain) as client:
        job_id = await client.submit("sleep")
        with pytest.raises(arcp_trio.InvalidRequestError, match="the job has no credentials"):
            await plain.rotate_credential(job_id, "cred_1")


# --- at once --------------------------------------------------------------------------------------


@pytest.mark.requirement("C04", "C03")
async def test_two_at_once_are_one() -> None:
    gate = trio.Event()
    async with open_bench() as (bench, runtime), open_raw(runtime) as client, trio.open_nursery() as nursery:
        job_id = await client.submit("sleep")
        credential_id = credentials_of(client.received[-1])[0]["id"]
        bench.provisioner.before["rotate"] = waiting(gate)
        rotated: list[arcp_trio.Credential] = []

        async def rotate() -> None:
            rotated.append(await runtime.rotate_credential(job_id, credential_id))

        for _ in range(3):
            nursery.start_soon(rotate)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(rotated) == 3
        assert len({credential.value for credential in rotated}) == 1
        assert len(bench.provisioner.calls_of("rotate")) == 1
        assert len(rotations(await client.settle())) == 1


@pytest.mark.requirement("P9.10")
async def test_who_asked_for_a_rotation_may_leave() -> None:
    gate = trio.Event()
    async with open_bench() as (bench, runtime), open_raw(runtime) as client, trio.open_nursery() as nursery:
        job_id = await client.submit("sleep")
        credential_id = credentials_of(client.received[-1])[0]["id"]
        bench.provisioner.before["rotate"] = waiting(gate)
        nursery.start_soon(runtime.rotate_credential, job_id, credential_id)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        await client.settle()
        gate.set()
        assert len(rotations(await client.settle())) == 1
        assert len(bench.provisioner.live) == 1


@pytest.mark.requirement("C01", "C03", "P9.10")
@pytest.mark.parametrize("what", ["upstream", "ledger"])
async def test_an_end_waits_for_a_rotation_that_takes_no_cancellation(
    what: str, autojump_clock: trio.testing.MockClock
) -> None:
    """What it brings, late, is revoked before the end is visible, and told to nobody."""
    async with open_bench() as (bench, runtime), open_raw(runtime) as client, trio.open_nursery() as nursery:
        job_id = await client.submit("sleep")
        credential_id = credentials_of(client.received[-1])[0]["id"]
        if what == "upstream":
            bench.provisioner.after["rotate"] = deaf(2)
        else:
            bench.ledger.after_put = deaf(2)

        async def rotate() -> None:
            with pytest.raises(JobEndedError):
                await runtime.rotate_credential(job_id, credential_id)

        nursery.start_soon(rotate)
        await trio.sleep(1 if what == "upstream" else 3)
        assert len(bench.provisioner.live) == 2
        await client.request("job.cancel", {"job_id": job_id})
        await end_of(client, job_id)
        assert bench.provisioner.live == {}
        assert rotations(client.received) == []
        assert runtime.statistics().credentials_live == 0
        bench.ledger.after_put = None
        await trio.sleep(10)
        assert set(bench.ledger.states()) == {LedgerState.REVOKED}


@pytest.mark.requirement("C03", "P9.10")
async def test_rotating_for_days_keeps_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_bench() as (bench, runtime), open_raw(runtime) as client:
        job_id = await client.submit("rotate", 200)
        await client.settle()
        actor = runtime._directory.find(job_id)
        assert isinstance(actor, arcp_trio.jobs.actor.JobActor)
        assert actor.credentials is not None
        assert len(actor.credentials._retired) <= 2
        assert len(bench.provisioner.live) == 1
        assert len(await bench.ledger.outstanding()) == 1
        bench.script.gate.set()
        await end_of(client, job_id)
    assert bench.is_clean
