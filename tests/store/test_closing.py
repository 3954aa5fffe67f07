"""How a store is left: by its end, an error, a cancellation, control-C; with a disk that fails, or hangs."""

from __future__ import annotations

import logging
import signal
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from store.kit import (
    SECONDS,
    PointHooks,
    accepted,
    dump,
    ended,
    entry,
    event,
    open_store,
    opened,
    read_window,
    sqlite_error,
    write,
)

from arcp_trio.limits import Limits
from arcp_trio.store.base import Store, Ticket
from arcp_trio.store.errors import StoreLockedError
from arcp_trio.store.reading import Reader
from arcp_trio.store.sqlite import open_sqlite_store
from arcp_trio.store.writes import Batch
from arcp_trio.wire.errors import StoreUnavailableError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


async def test_a_store_that_was_left_takes_and_gives_nothing(path: Path) -> None:
    async with open_sqlite_store(path) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())
        assert repr(store) == f"<SqliteStore {path}>"
    for call in (
        lambda: store.append(Batch((event("job_1", 1),), epoch)),
        store.check_available,
    ):
        with pytest.raises(StoreUnavailableError, match="the store is closed"):
            call()
    calls: list[Callable[[], Awaitable[object]]] = [
        store.running_jobs,
        store.take_ownership,
        store.wait_for_room,
        lambda: store.put([entry("cred_1")]),
    ]
    for wait in calls:
        with pytest.raises(StoreUnavailableError, match="the store is closed"):
            await wait()
    await store.flush()


async def test_a_cancellation_from_outside_closes_it_with_all_that_was_appended(path: Path) -> None:
    told: list[Ticket] = []
    with trio.CancelScope() as scope:
        async with open_sqlite_store(path) as store:
            epoch = await store.take_ownership()
            for number in range(100):
                store.append(Batch((accepted(f"job_{number:02}"),), epoch), told.append)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert len(told) == 100
    async with open_sqlite_store(path) as store:
        assert len(await store.running_jobs()) == 100


async def test_a_read_that_outlives_its_store_closes_what_it_has(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, goes_on = trio.Event(), threading.Event()

    def running_jobs(reader: Reader) -> list[object]:
        trio.from_thread.run_sync(reads.set)
        assert goes_on.wait(SECONDS)
        return []

    monkeypatch.setattr(Reader, "running_jobs", running_jobs)
    async with trio.open_nursery() as nursery:
        async with open_sqlite_store(path) as store:
            nursery.start_soon(store.running_jobs)
            await reads.wait()
        goes_on.set()
    assert store._readers == []
    assert sorted(each.name for each in path.parent.iterdir()) == ["store.db", "store.db.lock"]


def test_control_c_while_it_closes_does_not_cut_that_short(path: Path) -> None:
    hooks = PointHooks()

    async def main() -> None:
        async with open_sqlite_store(path, hooks=hooks) as store:
            epoch = await store.take_ownership()
            store.append(Batch((accepted(),), epoch))
            # In the thread; Python's handler runs in the main one, wherever that is.
            hooks.actions["written"] = lambda: signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert hooks.reached[-1] == "closing"
    trio.run(check_running, path, 1)


async def check_running(path: Path, number: int) -> None:
    async with open_sqlite_store(path) as store:
        assert len(await store.running_jobs()) == number


async def test_a_disk_that_fails_to_the_end_holds_nobody_for_ever(
    path: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise sqlite_error(sqlite3.SQLITE_IOERR)

    hooks = PointHooks()
    told: list[Ticket] = []
    lost: list[str] = []

    async def wait(store: Store, ticket: Ticket) -> None:
        try:
            await store.committed(ticket)
        except StoreUnavailableError as exc:
            lost.append(str(exc))

    async def pass_time() -> None:
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(7)

    async with trio.open_nursery() as nursery:
        with pytest.raises(KeyError):
            async with open_sqlite_store(path, hooks=hooks, limits=Limits(store_close_seconds=7)) as store:
                epoch = await store.take_ownership()
                await write(store, epoch, accepted())
                hooks.actions["written"] = fail
                tickets = [store.append(Batch((event("job_1", number),), epoch), told.append) for number in (1, 2)]
                for ticket in tickets:
                    nursery.start_soon(wait, store, ticket)
                await trio.testing.wait_all_tasks_blocked()
                before = trio.current_time()
                nursery.start_soon(pass_time)
                raise KeyError
    assert trio.current_time() - before == pytest.approx(7)
    # Nobody was told that it is durable, so nobody said so.
    assert told == []
    assert lost == ["the store was closed before this was written"] * 2
    assert any("2 batches were not written" in record.getMessage() for record in caplog.records)
    async with open_sqlite_store(path) as store:
        (job,) = await store.running_jobs()
        assert job.last_seq == 0


async def test_a_thread_that_hangs_is_left_alone(
    path: Path, mock_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    mock_clock.autojump_threshold = 0
    hangs = threading.Event()
    hooks = PointHooks(written=lambda: None if not armed else hangs.wait(SECONDS) and None)
    armed = False
    try:
        async with open_sqlite_store(path, hooks=hooks, limits=Limits(store_close_seconds=7)) as store:
            epoch = await store.take_ownership()
            await write(store, epoch, accepted())
            armed = True
            ticket = store.append(Batch((event("job_1", 1),), epoch))
            before = trio.current_time()
        # Its share for the last commits, and its share for the file.
        assert trio.current_time() - before == pytest.approx(14)
        assert any(
            record.levelno == logging.ERROR and "a thread hangs in it" in record.getMessage()
            for record in caplog.records
        )
        with pytest.raises(StoreUnavailableError):
            await store.committed(ticket)
        # Whatever it is doing there: nobody else may write meanwhile.
        with pytest.raises(StoreLockedError):
            async with open_sqlite_store(path):
                pass
    finally:
        hangs.set()


async def test_an_error_in_what_is_told_ends_the_store(path: Path) -> None:
    """That never fails: if it does, that is a bug, and what else was told of the same commit cannot be relied on."""

    def tell(ticket: Ticket) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), trio.fail_after(SECONDS):
        async with open_sqlite_store(path) as store:
            epoch = await store.take_ownership()
            store.append(Batch((accepted(),), epoch), tell)
            await trio.sleep_forever()
    async with open_sqlite_store(path) as store:
        assert len(await store.running_jobs()) == 1


# --- cancelled at every point -----------------------------------------------------------------------


class CancelAt(trio.abc.Instrument):
    """Cancels a scope when its task is about to run for the k-th time."""

    def __init__(self, scope: trio.CancelScope, task: trio.lowlevel.Task, number: int) -> None:
        self._scope = scope
        self._task = task
        self._left = number

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def live(store: Store, log: list[str]) -> None:
    """Do a bit of everything; note what is known to be durable."""
    epoch = await store.take_ownership()
    await write(store, epoch, opened(), accepted(), event("job_1", 1, ("sess_1", 1)))
    log.append("accepted")
    await store.put([entry("cred_1"), entry("cred_2")])
    log.append("ledger")
    await store.window("sess_1", 0, 10)
    await store.wait_for_room()
    await write(store, epoch, event("job_1", 2, ("sess_1", 2)), event("job_1", 3, ("sess_1", 3)))
    log.append("events")
    await write(store, epoch, *ended("job_1", 4, ("sess_1", 4)))
    log.append("ended")
    await store.flush()


@pytest.mark.requirement("S06")
async def test_wherever_it_is_cancelled_nothing_is_half_there(tmp_path: Path) -> None:
    """What was known to be durable is there, and of each batch all or nothing (style.md, 4)."""
    number, finished = 0, False
    while not finished:
        number += 1
        directory = tmp_path / f"{number}"
        directory.mkdir()
        log: list[str] = []
        with trio.CancelScope() as scope:
            instrument = CancelAt(scope, trio.lowlevel.current_task(), number)
            trio.lowlevel.add_instrument(instrument)
            try:
                async with open_store("sqlite", directory) as store:
                    await live(store, log)
                    finished = True
            finally:
                trio.lowlevel.remove_instrument(instrument)
        async with open_store("sqlite", directory) as store:
            found = await dump(store)
            stages = {
                "accepted": bool(found["running"] or found["ended"]),
                "ledger": bool(found["ledger"]),
                "events": any(job.last_seq >= 3 for job in (*found["running"], *found["ended"])),
                "ended": bool(found["ended"]),
            }
            # In order, so what is there is a part of it from the beginning.
            assert sorted(stages.values(), reverse=True) == list(stages.values())
            assert all(stages[name] for name in log)
            assert sum(stages.values()) - len(log) <= 1
            assert len(found["ledger"]) in (0, 2)
            if found["sessions"]:
                assert len(await read_window(store, "sess_1")) in (1, 3, 4)
    assert number > 8
