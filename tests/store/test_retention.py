"""What is no longer kept goes: in slices, beside the commits, to the last byte; and with nothing to do nothing runs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from store.kit import PointHooks, accepted, claim, dump, ended, event, opened, read_window, settle, span, write

from arcp_trio.limits import Limits
from arcp_trio.store.sqlite import SqliteStore, open_sqlite_store
from arcp_trio.store.writes import (
    Batch,
    HistoryTrimmed,
    JobEvicted,
    JobOwned,
    OwnAppended,
    RiderAppended,
    SessionAcknowledged,
    SessionEnded,
    SessionFollowed,
)

TABLES = ("jobs", "owners", "outcomes", "events", "sessions", "spans", "own", "riders", "follows", "keys", "ledger")
KIB = 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def count(path: Path, table: str = "events") -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


async def emit(store: SqliteStore, epoch: int, job_id: str, first: int, last: int, *, size: int = 20) -> None:
    """Append events, in batches of a hundred."""
    for start in range(first, last + 1, 100):
        numbers = range(start, min(start + 100, last + 1))
        await write(store, epoch, *[event(job_id, number, content=b"x" * size) for number in numbers])


class Slices:
    """Counts how many rows each transaction deletes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.deleted: list[int] = []

    def __call__(self) -> None:
        # In the writer's thread, in its transaction: what it has deleted is not visible yet, but has been before.
        self.deleted.append(count(self.path))


@pytest.mark.requirement("M01", "M02")
async def test_what_is_evicted_goes_in_slices_of_so_many_rows(path: Path) -> None:
    slices = Slices(path)
    limits = Limits(store_slice_rows=100)
    async with open_sqlite_store(path, limits=limits, hooks=PointHooks(committed=slices)) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())
        await emit(store, epoch, "job_1", 1, 1_000)
        await write(store, epoch, *ended("job_1", 1_001))
        slices.deleted.clear()
        await write(store, epoch, JobEvicted("job_1"))
        assert count(path) >= 900
        await settle(store)
        steps = [1_000, *slices.deleted]
        assert all(0 <= before - after <= 100 for before, after in pairwise(steps))
        assert {table: count(path, table) for table in TABLES} == dict.fromkeys(TABLES, 0)


@pytest.mark.requirement("M02")
async def test_a_slice_is_so_many_rows_whatever_they_are_of(path: Path) -> None:
    slices = Slices(path)
    limits = Limits(store_slice_rows=100)
    async with open_sqlite_store(path, limits=limits, hooks=PointHooks(committed=slices)) as store:
        epoch = await store.take_ownership()
        jobs = [f"job_{number}" for number in range(8)]
        for job_id in jobs:
            await write(store, epoch, accepted(job_id))
            await emit(store, epoch, job_id, 1, 70)
            await write(store, epoch, *ended(job_id, 71))
        slices.deleted.clear()
        await write(store, epoch, *map(JobEvicted, jobs))
        await settle(store)
        steps = [560, *slices.deleted]
        assert all(0 <= before - after <= 100 for before, after in pairwise(steps))
        assert steps[-1] == 0


async def test_a_slice_is_bounded_by_its_bytes_too(path: Path) -> None:
    slices = Slices(path)
    limits = Limits(store_slice_bytes=250 * KIB)
    async with open_sqlite_store(path, limits=limits, hooks=PointHooks(committed=slices)) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted(), *[event("job_1", n, content=b"x" * 100 * KIB) for n in range(1, 11)])
        await write(store, epoch, event("job_1", 11, content=b"x" * 400 * KIB), event("job_1", 12))
        slices.deleted.clear()
        await write(store, epoch, HistoryTrimmed("job_1", 12))
        await settle(store)
        steps = [12, *slices.deleted]
        # Up to the event that reaches them, three of a hundred; one that is larger alone goes as a whole.
        assert all(before - after <= 3 for before, after in pairwise(steps))
        assert count(path) == 0


@pytest.mark.requirement("M01")
async def test_it_costs_no_commit_of_its_own_while_there_are_others(path: Path) -> None:
    async with open_sqlite_store(path, limits=Limits(store_slice_rows=10)) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted(), accepted("job_2"))
        await emit(store, epoch, "job_1", 1, 500)
        await settle(store)
        before, left = store.statistics().commits, count(path)
        tickets = [store.append(Batch((HistoryTrimmed("job_1", 500),), epoch))]
        for number in range(1, 21):
            tickets.append(store.append(Batch((event("job_2", number),), epoch)))
            await store.committed(tickets[-1])
        commits = store.statistics().commits - before
        deleted = left + 20 - count(path)
        assert deleted >= 10 * (commits - 1) - 10
        await settle(store)
        assert count(path) == 20


@pytest.mark.requirement("M01")
async def test_with_nothing_to_do_nothing_runs(path: Path) -> None:
    hooks = PointHooks()
    async with open_sqlite_store(path, hooks=hooks) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())
        await emit(store, epoch, "job_1", 1, 500)
        await write(store, epoch, *ended("job_1", 501), JobEvicted("job_1"))
        await settle(store)
        await trio.testing.wait_all_tasks_blocked()
        hooks.reached.clear()
        commits = store.statistics().commits
        # Nothing is due, ever: no timer stands, and the writer sleeps.
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        assert trio.lowlevel.current_statistics().tasks_runnable == 0
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert (hooks.reached, store.statistics().commits) == ([], commits)


@pytest.mark.requirement("M01", "P6.16")
async def test_what_was_left_goes_on_when_the_store_is_opened_again(path: Path) -> None:
    limits = Limits(store_slice_rows=10)
    async with open_sqlite_store(path, limits=limits) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, opened(), accepted(), accepted("job_2"))
        await write(store, epoch, *[event("job_1", n, ("sess_1", n)) for n in range(1, 301)])
        await emit(store, epoch, "job_2", 1, 300)
        # Left at once: nothing of what is told here is done before it is closed, but for a slice or two.
        for fact in (SessionAcknowledged("sess_1", 290), HistoryTrimmed("job_1", 295), HistoryTrimmed("job_2", 300)):
            store.append(Batch((fact,), epoch))
    assert count(path) > 500
    async with open_sqlite_store(path, limits=limits) as store:
        await settle(store)
        # Of one the window has the last ten, of the other nobody has anything.
        assert count(path) == 10
        assert [each.event_seq for each in await read_window(store, "sess_1")] == [*range(291, 301)]
        running = {job.job_id: job.last_seq for job in await store.running_jobs()}
        assert running == {"job_1": 300, "job_2": 300}
        epoch = await store.take_ownership()
        await write(store, epoch, event("job_2", 301), event("job_1", 301, ("sess_1", 301)))
    # How far it has come is in the file: the next opening finds nothing to do, but for what a window is in the way of.
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT floor, swept FROM sessions").fetchall() == [(290, 290)]
        assert db.execute("SELECT floor, purged FROM jobs").fetchall() == [(295, 290), (300, 300)]
    async with open_sqlite_store(path, limits=limits) as store:
        assert [each.event_seq for each in await read_window(store, "sess_1")] == [*range(291, 302)]


async def test_a_window_that_rises_is_looked_at_now_and_then(path: Path) -> None:
    """Acks come four times a second from each client: a look at each of them would cost more than they free."""
    async with open_sqlite_store(path) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, opened(), accepted(), accepted("job_2"))
        numbers = range(1, 301)
        # Two jobs by turns: each number is a span of its own.
        for number in numbers:
            store.append(Batch((event(f"job_{1 + number % 2}", (number + 1) // 2, ("sess_1", number)),), epoch))
        await store.flush()
        for acked in range(10, 251, 10):
            await write(store, epoch, SessionAcknowledged("sess_1", acked))
        await settle(store)
        assert count(path, "spans") == 300
        await write(store, epoch, SessionAcknowledged("sess_1", 260))
        await settle(store)
        assert count(path, "spans") == 40
        assert [each.event_seq for each in await read_window(store, "sess_1")] == [*range(261, 301)]


async def test_a_window_is_looked_at_when_it_is_in_the_way(path: Path) -> None:
    """What a session has let go, and was not worth a look, keeps nothing of a job that was evicted (P14.3)."""
    async with open_sqlite_store(path) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, opened(), accepted(), *[event("job_1", n, ("sess_1", n)) for n in range(1, 11)])
        await write(store, epoch, *ended("job_1", 11, ("sess_1", 11)), SessionAcknowledged("sess_1", 10))
        await write(store, epoch, JobEvicted("job_1"))
        await settle(store)
        assert (count(path), count(path, "spans"), count(path, "jobs")) == (0, 1, 1)
        assert [each.content for each in await read_window(store, "sess_1")] == [b"outcome of job_1"]
        await write(store, epoch, SessionEnded("sess_1"))
        await settle(store)
        assert {table: count(path, table) for table in TABLES} == dict.fromkeys(TABLES, 0)


@pytest.mark.requirement("P6.16", "M02", "Q10")
async def test_nothing_is_left_of_what_has_gone(path: Path) -> None:
    async with open_sqlite_store(path) as store:
        epoch = await store.take_ownership()
        for number in range(20):
            job_id, session_id = f"job_{number}", f"sess_{number}"
            await write(store, epoch, opened(session_id), accepted(job_id), JobOwned(job_id, session_id))
            await write(store, epoch, SessionFollowed(session_id, job_id), claim(f"key {number}", job_id))
            await write(store, epoch, RiderAppended(session_id=session_id, content=b"rider"), event(job_id, 1))
            await write(store, epoch, span(session_id, 1, 1, job_id, 1), *ended(job_id, 2, (session_id, 2)))
            await write(store, epoch, OwnAppended(session_id=session_id, event_seq=3, content=b"own"))
            await write(store, epoch, RiderAppended(session_id=session_id, content=b"at the end"))
        for number in range(20):
            # In either order.
            facts = (JobEvicted(f"job_{number}"), SessionEnded(f"sess_{number}"))
            await write(store, epoch, *(facts if number % 2 else facts[::-1]))
        await settle(store)
        assert {table: count(path, table) for table in TABLES} == dict.fromkeys(TABLES, 0)
        assert not any((await dump(store)).values())


@pytest.mark.requirement("M01")
async def test_much_space_that_is_free_is_given_back(path: Path) -> None:
    for free, shrinks in ((64 * KIB, True), (100 * KIB * KIB, False)):
        path.unlink(missing_ok=True)
        async with open_sqlite_store(path, limits=Limits(store_free_bytes=free)) as store:
            epoch = await store.take_ownership()
            await write(store, epoch, accepted(), *[event("job_1", n, content=b"x" * 10 * KIB) for n in range(1, 301)])
            await write(store, epoch, HistoryTrimmed("job_1", 300))
            await settle(store)
        assert (path.stat().st_size < 500 * KIB) is shrinks


@pytest.mark.requirement("P14.3")
async def test_what_is_purged_is_gone_from_the_file(path: Path) -> None:
    secret = b"the secret of job 1 " * 4
    async with open_sqlite_store(path) as store:
        epoch = await store.take_ownership()
        events = [event("job_1", n, content=secret + b"%d" % n) for n in range(1, 101)]
        await write(store, epoch, accepted(), *events, accepted("job_2"), event("job_2", 1))
        await write(store, epoch, *ended("job_1", 101))
    assert secret in path.read_bytes()
    async with open_sqlite_store(path) as store:
        await write(store, await store.take_ownership(), JobEvicted("job_1"))
        await settle(store)
    assert secret not in path.read_bytes()
    assert b"event 1 of job_2" in path.read_bytes()
