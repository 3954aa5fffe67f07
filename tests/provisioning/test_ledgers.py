"""What a ledger does, whichever it is."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio
from helpers import Script, open_raw
from provisioning.fakes import FakeProvisioner, KeptLedger

import arcp_trio
from arcp_trio import CredentialLedger, LedgerEntry, LedgerState
from arcp_trio.store.memory import MemoryLedger
from arcp_trio.store.sqlite import open_sqlite_store


def entry(number: int, state: LedgerState = LedgerState.ISSUED, at: int | None = None) -> LedgerEntry:
    return LedgerEntry(
        entry_id=f"cred_{number}",
        job_id=f"job_{number}",
        principal="me",
        state=state,
        handle=None if state is LedgerState.INTENDED else f"h-{number}",
        noted_at_ms=number if at is None else at,
    )


@pytest.fixture(params=[MemoryLedger, KeptLedger])
def ledger(request: pytest.FixtureRequest) -> CredentialLedger:
    made: CredentialLedger = request.param()
    return made


@pytest.mark.requirement("P9.10")
async def test_what_is_not_revoked_is_outstanding_oldest_first(ledger: CredentialLedger) -> None:
    assert await ledger.outstanding() == []
    newest, failed, intended = entry(3), entry(1, LedgerState.FAILED), entry(2, LedgerState.INTENDED)
    await ledger.put([newest, failed])
    await ledger.put([intended, entry(4, LedgerState.REVOKED)])
    assert await ledger.outstanding() == [failed, intended, newest]


@pytest.mark.requirement("P9.10")
async def test_a_put_replaces_by_id(ledger: CredentialLedger) -> None:
    first = entry(1)
    await ledger.put([first])
    again = attrs.evolve(first, attempts=3, problem="503")
    await ledger.put([again])
    assert await ledger.outstanding() == [again]
    await ledger.put([attrs.evolve(again, state=LedgerState.REVOKED), entry(2)])
    assert await ledger.outstanding() == [entry(2)]


async def test_a_cancelled_put_of_memory_has_not_happened() -> None:
    ledger = MemoryLedger()
    with trio.CancelScope() as scope:
        scope.cancel()
        await ledger.put([entry(1)])
    assert await ledger.outstanding() == []


def test_memory_says_what_it_is() -> None:
    assert MemoryLedger().durable is False


@pytest.mark.requirement("P9.10", "C10", "C11")
async def test_a_file_is_a_ledger_that_outlives_its_runtime(tmp_path: Path, script: Script) -> None:
    """What one runtime left behind, the next one revokes, before it takes a job; what ends here is revoked here."""
    provisioner = FakeProvisioner()
    path = tmp_path / "ledger.db"
    async with open_sqlite_store(path) as store:
        await store.put([entry(1), entry(2, LedgerState.INTENDED)])
    provisioner.live["h-1"] = "job_1"
    async with (
        open_sqlite_store(path) as store,
        arcp_trio.open_runtime(script.agents, provisioner=provisioner, ledger=store) as runtime,
        open_raw(runtime) as client,
    ):
        await client.submit("echo", 1)
        assert provisioner.calls[:2] == [("revoke", "h-1"), ("revoke_job", "job_2")] or provisioner.calls[:2] == [
            ("revoke_job", "job_2"),
            ("revoke", "h-1"),
        ]
        (accepted,) = [frame for frame in client.received if frame["type"] == "job.accepted"]
        assert len(accepted["payload"]["credentials"]) == 1
        await client.receive_until("job.result")
        assert provisioner.live == {}
        with trio.fail_after(30):
            # What was left behind is noted as revoked on its own time, beside the jobs.
            while await store.outstanding():
                pass
    # Never the value: it is in no byte of the file.
    assert provisioner.values
    assert not [value for value in provisioner.values.values() if value.encode() in path.read_bytes()]
