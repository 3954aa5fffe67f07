"""The revoker: every entry once, with retries, under deadlines, and nothing lost where it stops."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from provisioning.fakes import CANARY, FakeProvisioner, KeptLedger, deaf, failing, waiting

from arcp_trio.authority.credentials import ProvisioningError
from arcp_trio.jobs.revoker import ProvisionerFailedError, Revoker, ask_provisioner
from arcp_trio.limits import Limits
from arcp_trio.records import LedgerEntry, LedgerState
from arcp_trio.timers import Timers


def entry(number: int = 1, **changes: Any) -> LedgerEntry:
    made = LedgerEntry(
        entry_id=f"cred_{number}",
        job_id=f"job_{number}",
        principal="me",
        state=LedgerState.ISSUED,
        handle=f"h-{number}",
        noted_at_ms=number,
    )
    return attrs.evolve(made, **changes)


class Shop:
    """A revoker and what is around it."""

    def __init__(self, *entries: LedgerEntry, told: Callable[[LedgerEntry], None] | None = None, **limits: Any) -> None:
        self.limits = Limits(**{"revocation_delay_seconds": 1, "revocation_max_delay_seconds": 8, **limits})
        self.provisioner = FakeProvisioner()
        self.ledger = KeptLedger(*entries)
        self.timers = Timers()
        self.told: list[LedgerEntry] = []
        self.revoker = Revoker(
            self.provisioner,
            self.ledger,
            limits=self.limits,
            timers=self.timers,
            on_unrevocable=told or self.told.append,
            jitter=lambda: 0.0,
        )

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Revoker, None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.timers.run)
            nursery.start_soon(self.revoker.run)
            yield self.revoker
            nursery.cancel_scope.cancel()


@pytest.mark.requirement("P9.10", "C03")
async def test_what_is_revoked_twice_is_revoked_once() -> None:
    shop = Shop()
    gate = trio.Event()
    shop.provisioner.before["revoke"] = waiting(gate)
    async with shop.open() as revoker:
        first = revoker.revoke(entry())
        await trio.testing.wait_all_tasks_blocked()
        assert revoker.revoke(entry()) is first
        assert revoker.unrevoked == (entry(),)
        gate.set()
        await first.done.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert revoker.unrevoked == ()
    assert shop.provisioner.revoked == {"h-1": 1}
    assert shop.ledger.entries["cred_1"].state is LedgerState.REVOKED
    assert revoker.counters.revoked == 1


@pytest.mark.requirement("P9.10", "C11")
async def test_an_intent_is_revoked_by_its_job_and_settles_what_goes_with_it() -> None:
    shop = Shop()
    async with shop.open() as revoker:
        intent = entry(state=LedgerState.INTENDED, handle=None)
        revocation = revoker.revoke(intent, [entry(2, job_id="job_1")])
        await revocation.done.wait()
        await trio.testing.wait_all_tasks_blocked()
    assert shop.provisioner.calls == [("revoke_job", "job_1")]
    assert {each.entry_id: each.state for each in shop.ledger.notes} == {
        "cred_1": LedgerState.REVOKED,
        "cred_2": LedgerState.REVOKED,
    }


async def test_what_needs_no_revocation_is_only_written_down() -> None:
    shop = Shop()
    async with shop.open() as revoker:
        revoker.settle(entry())
        assert revoker.unrevoked == ()
        await trio.testing.wait_all_tasks_blocked()
    assert shop.provisioner.calls == []
    assert shop.ledger.entries["cred_1"].state is LedgerState.REVOKED


@pytest.mark.requirement("P9.10", "C13")
async def test_what_fails_is_tried_again_ever_later_on_the_clock_of_trio(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop()
    at: list[float] = []

    async def fail(handle: str) -> None:
        at.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if len(at) < 7:
            raise ProvisioningError("the upstream answered 503")

    shop.provisioner.before["revoke"] = fail
    async with shop.open() as revoker:
        began = trio.current_time()
        await revoker.revoke(entry()).done.wait()
    assert [moment - began for moment in at] == pytest.approx([0, 1, 3, 7, 15, 23, 31])
    notes = [(note.state, note.attempts, note.problem) for note in shop.ledger.notes]
    assert notes[:2] == [
        (LedgerState.ISSUED, 1, "the upstream answered 503"),
        (LedgerState.ISSUED, 2, "the upstream answered 503"),
    ]
    assert notes[-1][0] is LedgerState.REVOKED
    # The first failure is a warning; those behind it are no news.
    levels = [record.levelno for record in caplog.records if "was not revoked" in record.getMessage()]
    assert levels[0] == logging.WARNING


async def test_the_delays_are_partly_random(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop()
    shop.revoker._jitter = lambda: 1.0
    shop.provisioner.before["revoke"] = failing(ProvisioningError("no"), times=2)
    async with shop.open() as revoker:
        began = trio.current_time()
        await revoker.revoke(entry()).done.wait()
        assert trio.current_time() - began == pytest.approx(0.5 + 1)


@pytest.mark.requirement("P9.10", "C09")
async def test_what_cannot_be_revoked_is_shown(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(revocation_attempts=3)
    shop.provisioner.before["revoke"] = failing(ProvisioningError("the upstream answered 500"))
    async with shop.open() as revoker:
        await revoker.revoke(entry()).done.wait()
        await trio.sleep(10_000)
        assert len(shop.provisioner.calls) == 3
        (shown,) = revoker.unrevoked
        assert shop.told == [shown]
        assert shop.ledger.entries["cred_1"] == shown
        assert (shown.state, shown.attempts) == (LedgerState.FAILED, 3)
        assert shown.problem == "the upstream answered 500"
        assert (revoker.counters.revoked, revoker.counters.failed) == (0, 1)
        assert len(shop.timers) == 0
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "handle 'h-1', cannot be revoked" in record.getMessage()


@pytest.mark.requirement("C09")
async def test_what_is_refused_for_good_is_given_up_at_once() -> None:
    shop = Shop()
    shop.provisioner.before["revoke"] = failing(ProvisioningError("403", permanent=True))
    async with shop.open() as revoker:
        await revoker.revoke(entry()).done.wait()
        await trio.testing.wait_all_tasks_blocked()
    assert len(shop.provisioner.calls) == 1
    assert [note.state for note in shop.ledger.notes] == [LedgerState.FAILED]


async def test_a_hook_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def told(_: LedgerEntry) -> None:
        raise ValueError("a bug of the operator's")

    shop = Shop(told=told)
    shop.provisioner.before["revoke"] = failing(ProvisioningError("403", permanent=True))
    async with shop.open() as revoker:
        await revoker.revoke(entry()).done.wait()
        shop.provisioner.before.clear()
        await revoker.revoke(entry(2)).done.wait()
    assert "on_unrevocable failed" in caplog.text
    assert shop.provisioner.revoked == {"h-2": 1}


@pytest.mark.requirement("P9.10", "C13")
async def test_a_call_that_hangs_is_cut_and_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop(revocation_seconds=5)
    hangs = [trio.Event(), trio.Event()]

    async def hang(handle: str) -> None:
        if hangs:
            await hangs.pop().wait()

    shop.provisioner.before["revoke"] = hang
    async with shop.open() as revoker:
        began = trio.current_time()
        await revoker.revoke(entry()).done.wait()
        assert trio.current_time() - began == pytest.approx(5 + 1 + 5 + 2)
    assert shop.ledger.notes[0].problem == "no answer within 5 seconds"


async def test_only_so_many_calls_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop(revocations=3)
    gate = trio.Event()
    shop.provisioner.before["revoke"] = waiting(gate)
    async with shop.open() as revoker:
        revocations = [revoker.revoke(entry(number)) for number in range(20)]
        await trio.testing.wait_all_tasks_blocked()
        assert len(shop.provisioner.calls) == 3
        gate.set()
        for revocation in revocations:
            await revocation.done.wait()
    assert sum(shop.provisioner.revoked.values()) == 20


@pytest.mark.requirement("P9.10")
async def test_a_thousand_that_wait_are_no_task_and_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop(unrevoked_credentials=1_000, revocation_max_delay_seconds=300)
    shop.provisioner.before["revoke"] = failing(ProvisioningError("503"))
    async with shop.open() as revoker:
        for number in range(999):
            revoker.revoke(entry(number))
        assert not revoker.is_full
        revoker.revoke(entry(1_000))
        assert revoker.is_full
        await trio.sleep(0.5)
        assert len(shop.timers) == 1_000
        assert trio.lowlevel.current_statistics().tasks_living < 20


# --- starting and stopping --------------------------------------------------------------------------


@pytest.mark.requirement("P9.10", "C10", "C11")
async def test_what_an_earlier_run_has_left_is_revoked() -> None:
    left = [
        entry(1),
        entry(2, state=LedgerState.INTENDED, handle=None),
        entry(3, state=LedgerState.FAILED, attempts=100, problem="503"),
        entry(4, state=LedgerState.FAILED, handle=None, attempts=100),
    ]
    shop = Shop(*left)
    async with shop.open() as revoker:
        revoker.recover(await shop.ledger.outstanding())
        await revoker.wait_recovered()
        assert sorted(shop.provisioner.calls) == [
            ("revoke", "h-1"),
            ("revoke", "h-3"),
            ("revoke_job", "job_2"),
            ("revoke_job", "job_4"),
        ]
    assert shop.ledger.states() == {LedgerState.REVOKED: 4}


@pytest.mark.requirement("C10")
async def test_a_start_waits_for_an_upstream_that_hangs_only_so_long(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop(entry(), revocation_seconds=5)
    gate = trio.Event()
    shop.provisioner.before["revoke"] = waiting(gate)
    async with shop.open() as revoker:
        began = trio.current_time()
        revoker.recover(await shop.ledger.outstanding())
        await revoker.wait_recovered()
        assert trio.current_time() - began == pytest.approx(5)
        gate.set()
        await revoker.revoke(entry()).done.wait()
    assert shop.provisioner.revoked == {"h-1": 1}


@pytest.mark.requirement("C13")
@pytest.mark.parametrize("when", ["in a call", "in a delay", "in the ledger"])
async def test_a_stop_is_at_once_and_leaves_the_entry(when: str, autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop()

    async def hang(_: Any) -> None:
        await trio.sleep_forever()

    if when == "in a call":
        shop.provisioner.before["revoke"] = hang
    elif when == "in a delay":
        shop.provisioner.before["revoke"] = failing(ProvisioningError("503"))
    else:
        shop.ledger.before_put = hang
    await shop.ledger.outstanding()
    shop.ledger.entries["cred_1"] = entry()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.timers.run)
        async with trio.open_nursery() as service:
            service.start_soon(shop.revoker.run)
            revocation = shop.revoker.revoke(entry())
            await trio.sleep(0.1)
            calls, at = len(shop.provisioner.calls), trio.current_time()
            shop.revoker.close()
        assert trio.current_time() == at
        assert len(shop.timers) == 0
        await trio.sleep(1_000)
        nursery.cancel_scope.cancel()
    assert len(shop.provisioner.calls) == calls == 1
    assert revocation.done.is_set() is False
    assert shop.ledger.entries["cred_1"].state is LedgerState.ISSUED


@pytest.mark.requirement("C13")
async def test_a_stop_while_the_ledger_takes_no_cancellation(autojump_clock: trio.testing.MockClock) -> None:
    shop = Shop()
    shop.provisioner.before["revoke"] = failing(ProvisioningError("503"))
    shop.ledger.after_put = deaf(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.timers.run)
        async with trio.open_nursery() as service:
            service.start_soon(shop.revoker.run)
            shop.revoker.revoke(entry())
            await trio.sleep(1)
            shop.revoker.close()
        assert len(shop.timers) == 0
        nursery.cancel_scope.cancel()
    assert len(shop.provisioner.calls) == 1


@pytest.mark.requirement("P9.10")
async def test_a_ledger_that_fails_is_asked_again_and_nothing_is_revoked_twice(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop()
    left = 3

    async def fail(entries: Sequence[LedgerEntry]) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(f"no space for {CANARY}")

    shop.ledger.before_put = fail
    async with shop.open() as revoker:
        revocation = revoker.revoke(entry())
        await revocation.done.wait()
        # Who waits for the revocation does not wait for the disk.
        assert trio.current_time() == 0
        assert revoker.unrevoked == ()
        await trio.sleep(100)
    assert shop.provisioner.revoked == {"h-1": 1}
    assert shop.ledger.entries["cred_1"].state is LedgerState.REVOKED
    assert "the ledger failed to note cred_1: OSError" in caplog.text
    assert CANARY not in caplog.text


# --- what a provisioner raises ------------------------------------------------------------------------


class _OwnError(BaseException):
    pass


@pytest.mark.requirement("C07", "P14.2")
@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ProvisioningError("the upstream answered 500"), "the upstream answered 500"),
        (ValueError(f"key {CANARY}"), "ValueError"),
        (ExceptionGroup(CANARY, [KeyError(CANARY), OSError()]), "KeyError"),
        (SystemExit(CANARY), "SystemExit"),
        (_OwnError(CANARY), "_OwnError"),
        (BaseExceptionGroup(CANARY, [_OwnError(CANARY)]), "_OwnError"),
    ],
)
async def test_of_what_a_provisioner_raises_only_the_class_is_said(error: BaseException, problem: str) -> None:
    async def call() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    with pytest.raises(ProvisionerFailedError) as caught:
        await ask_provisioner(call)
    assert caught.value.problem == problem
    assert not caught.value.permanent
    # No traceback can show what is in none.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_a_cancelled_call_is_cancelled() -> None:
    async def grouped() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError(CANARY)

    for call in (trio.sleep_forever, grouped):
        with trio.CancelScope() as scope:
            scope.cancel()
            await ask_provisioner(call)
        assert scope.cancelled_caught
