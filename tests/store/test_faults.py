"""A disk that is full, fails, or lies about a commit: what is told is durable, nothing is lost, nothing comes twice."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from store.kit import (
    SECONDS,
    PointHooks,
    accepted,
    claim,
    ended,
    event,
    open_store,
    opened,
    read_window,
    sqlite_error,
    write,
)

from arcp_trio.limits import Limits
from arcp_trio.store.base import Ticket
from arcp_trio.store.engine import Engine
from arcp_trio.store.errors import ConflictError, StoreCorruptError, StoreError, StoreLockedError
from arcp_trio.store.faults import Trouble, trouble_of
from arcp_trio.store.files import StoreLock
from arcp_trio.store.reading import Reader
from arcp_trio.store.sqlite import SqliteStore, open_sqlite_store
from arcp_trio.store.writes import Batch, OutcomeDecided
from arcp_trio.wire.errors import StoreUnavailableError

# As often as the processor can: no test waits for time.
AT_ONCE = Limits(store_retry_min_seconds=0)
MIB = 1024 * 1024


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


class Gate:
    """Holds up the thread that writes, until it is let go."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.waits = trio.Event()

    def __call__(self) -> None:
        trio.from_thread.run_sync(self.waits.set)
        assert self.open.wait(SECONDS)


# --- what is tried again ----------------------------------------------------------------------------

PASSING: list[tuple[str, Callable[[], Exception]]] = [
    ("the disk is full", lambda: sqlite_error(sqlite3.SQLITE_FULL)),
    ("the disk fails", lambda: sqlite_error(sqlite3.SQLITE_IOERR_FSYNC)),
    ("the disk fails", lambda: sqlite_error(sqlite3.SQLITE_IOERR_WRITE)),
    ("another program has the file locked", lambda: sqlite_error(sqlite3.SQLITE_BUSY)),
    ("the file cannot be written", lambda: sqlite_error(sqlite3.SQLITE_READONLY)),
    ("the file cannot be opened", lambda: sqlite_error(sqlite3.SQLITE_CANTOPEN)),
    ("there is no memory", MemoryError),
    ("No space left on device", lambda: OSError(28, "No space left on device")),
]


@pytest.mark.requirement("S06", "I11")
@pytest.mark.parametrize("point", ["begun", "written", "swept", "committed"])
@pytest.mark.parametrize(("problem", "error"), PASSING, ids=[f"{n}" for n in range(len(PASSING))])
async def test_what_fails_is_tried_again_unchanged(
    path: Path, point: str, problem: str, error: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """At "committed" the commit was one, and its answer was lost: then nothing is written again."""
    left = 3
    told: list[int] = []
    seen: list[str | None] = []
    store: SqliteStore

    def fail() -> None:
        nonlocal left
        if left and store._queue:
            left -= 1
            trio.from_thread.run_sync(lambda: seen.append(store.problem))
            assert told == []
            raise error()

    hooks = PointHooks(**{point: fail})
    async with open_sqlite_store(path, limits=AT_ONCE, hooks=hooks) as store:
        epoch = await store.take_ownership()
        batches = [
            (opened(), accepted(), claim("key", "job_1")),
            (event("job_1", 1, ("sess_1", 1)),),
            (event("job_1", 7),),
            (event("job_1", 2, ("sess_1", 2)), event("job_1", 3, ("sess_1", 3))),
            ended("job_1", 4, ("sess_1", 4)),
        ]
        tickets = [store.append(Batch(writes, epoch), lambda ticket: told.append(ticket.number)) for writes in batches]
        with trio.fail_after(SECONDS):
            await store.flush()
        assert told == [ticket.number for ticket in tickets]
        assert [type(ticket.refusal) for ticket in tickets] == [type(None)] * 2 + [ConflictError] + [type(None)] * 2
        assert [each.job_seq for each in await read_window(store, "sess_1")] == [1, 2, 3, 4]
        # What comes now goes on where it was.
        await write(store, epoch, accepted("job_2"), event("job_2", 1, ("sess_1", 5)))
        assert store.statistics().retries == 3
        assert store.problem is None
    assert seen == [None, problem, problem]
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    # Once for an episode, and once for its end.
    assert sum(f"it cannot be written: {problem}; trying again" in message for message in messages) == 1
    assert sum("it can be written again" in message for message in messages) == 1
    async with open_sqlite_store(path) as store:
        assert [each.job_seq for each in await read_window(store, "sess_1")] == [1, 2, 3, 4, 1]
        assert [key.job_id for key in (await store.keys(None, 9)).items] == ["job_1"]


async def test_the_disk_is_asked_less_and_less_often(path: Path, mock_clock: trio.testing.MockClock) -> None:
    mock_clock.autojump_threshold = 0
    times: list[float] = []

    def fail() -> None:
        times.append(mock_clock.current_time())
        # Seven times until it can be written, and then twice.
        if len(times) not in (7, 10):
            raise sqlite_error(sqlite3.SQLITE_FULL)

    limits = Limits(store_retry_min_seconds=0.5, store_retry_max_seconds=3)
    hooks = PointHooks()
    async with open_sqlite_store(path, limits=limits, hooks=hooks) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())
        hooks.actions["written"] = fail
        await write(store, epoch, event("job_1", 1))
        assert len(times) == 7
        await write(store, epoch, event("job_1", 2))
    pauses = [after - before for before, after in pairwise(times)][:9]
    assert pauses == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0, 0.0, 0.5, 1.0]


async def test_a_rollback_that_fails_is_made_up_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = 2

    def fail() -> None:
        nonlocal left
        if left:
            left -= 1
            raise sqlite_error(sqlite3.SQLITE_IOERR)

    monkeypatch.setattr(Engine, "_give_up", lambda self: None)
    hooks = PointHooks()
    async with open_sqlite_store(path, limits=AT_ONCE, hooks=hooks) as store:
        epoch = await store.take_ownership()
        hooks.actions["written"] = fail
        await write(store, epoch, accepted())
        assert store.statistics().retries == 2
        assert len(await store.running_jobs()) == 1


async def test_nobody_else_is_kept_out_between_two_attempts(path: Path, mock_clock: trio.testing.MockClock) -> None:
    hooks = PointHooks()
    async with open_sqlite_store(path, hooks=hooks) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())

        def fail() -> None:
            hooks.actions.clear()
            raise sqlite_error(sqlite3.SQLITE_FULL)

        hooks.actions["written"] = fail
        ticket = store.append(Batch((event("job_1", 1),), epoch))
        while store.problem is None:
            await trio.to_thread.run_sync(int)
        other = sqlite3.connect(path, isolation_level=None, timeout=0)
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        other.close()
        mock_clock.jump(1)
        await store.committed(ticket)


@pytest.mark.requirement("S06")
async def test_a_full_disk_is_told_and_then_forgotten(path: Path) -> None:
    """SQLite's own error, from a file that may not grow."""
    limits = Limits(store_retry_min_seconds=0, store_uncommitted_bytes=20_000, store_reserve_bytes=20_000)
    async with open_sqlite_store(path, limits=limits) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, opened(), accepted(), accepted("job_2"))
        db = store._engine._db
        (pages,) = await trio.to_thread.run_sync(lambda: db.execute("PRAGMA page_count").fetchone())
        await trio.to_thread.run_sync(db.execute, f"PRAGMA max_page_count = {pages + 1}")
        told: list[Ticket] = []
        sent = 0
        with trio.fail_after(SECONDS):
            while store.problem is None or store.has_room:
                if store.has_room:
                    sent += 1
                    said = event("job_1", sent, ("sess_1", sent), content=b"x" * 3_000)
                    store.append(Batch((said,), epoch), told.append)
                await trio.to_thread.run_sync(int)
        assert len(told) < sent
        with pytest.raises(StoreUnavailableError) as caught:
            store.append(Batch((event("job_1", sent + 1),), epoch))
        # Clients and agents hear of it, and may try again (P12.1); they learn nothing of the machine.
        assert (caught.value.code, caught.value.retryable) == ("INTERNAL_ERROR", True)
        with pytest.raises(StoreUnavailableError, match="cannot be written just now: the disk is full") as caught:
            store.check_available()
        assert str(path.parent) not in str(caught.value)
        assert store.statistics().problem == "the disk is full"
        # The end of a job has a reserve of its own, and that is bounded too.
        end = store.append(Batch(ended("job_2", 1), epoch, essential=True), told.append)
        with pytest.raises(StoreUnavailableError):
            store.append(Batch((event("job_1", sent + 1),), epoch))
        with pytest.raises(StoreUnavailableError):
            for number in range(10, 1_000):
                decided = OutcomeDecided(job_id=f"job_{number}", outcome=b"x" * 1_000)
                store.append(Batch((accepted(f"job_{number}"), decided), epoch, essential=True))
        # What was committed can be read meanwhile.
        assert len(await store.running_jobs()) == 2
        await trio.to_thread.run_sync(db.execute, "PRAGMA max_page_count = 1000000")
        with trio.fail_after(SECONDS):
            await store.committed(end)
            await store.flush()
        store.check_available()
        assert [each.event_seq for each in await read_window(store, "sess_1")] == [*range(1, sent + 1)]
        assert [ticket.number for ticket in told] == sorted(ticket.number for ticket in told)
        assert len(told) == sent + 1
        assert len(await store.running_jobs()) > 10


async def test_another_program_that_locks_the_file_is_waited_for(path: Path) -> None:
    async with open_sqlite_store(path, limits=AT_ONCE) as store:
        epoch = await store.take_ownership()
        await trio.to_thread.run_sync(store._engine._db.execute, "PRAGMA busy_timeout = 0")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        ticket = store.append(Batch((accepted(),), epoch))
        with trio.fail_after(SECONDS):
            while store.problem is None:
                await trio.to_thread.run_sync(int)
            assert store.problem == "another program has the file locked"
            other.execute("ROLLBACK")
            other.close()
            await store.committed(ticket)


async def test_taking_ownership_of_a_store_that_cannot_be_written(path: Path) -> None:
    async with open_sqlite_store(path, limits=AT_ONCE) as store:
        await trio.to_thread.run_sync(store._engine._db.execute, "PRAGMA busy_timeout = 0")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="another program has the file locked"):
            await store.take_ownership()
        other.close()
        await write(store, await store.take_ownership(), accepted())


# --- what is refused, and what ends -----------------------------------------------------------------


async def test_what_cannot_be_written_is_refused_alone(path: Path) -> None:
    """What no plan sees: SQLite refuses it. The batches around it, in the same transaction, must not suffer."""
    gate = Gate()
    hooks = PointHooks()
    async with open_sqlite_store(path, hooks=hooks) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())
        await trio.to_thread.run_sync(store._engine._db.setlimit, sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
        hooks.actions["begun"] = gate
        store.append(Batch((opened(),), epoch))
        with trio.fail_after(SECONDS):
            await gate.waits.wait()
        # All of these wait for one commit.
        large = b"x" * 20_000
        tickets = [
            store.append(Batch((event("job_1", 1),), epoch)),
            store.append(Batch((event("job_1", 2, content=large), accepted("job_2")), epoch)),
            store.append(Batch((event("job_1", 9),), epoch)),
            store.append(Batch((accepted("job_3"), event("job_3", 1)), epoch)),
        ]
        hooks.actions.clear()
        gate.open.set()
        await store.flush()
        assert [type(ticket.refusal) for ticket in tickets] == [type(None), ConflictError, ConflictError, type(None)]
        with pytest.raises(ConflictError, match="it cannot be written"):
            await store.committed(tickets[1])
        assert [(job.job_id, job.last_seq) for job in await store.running_jobs()] == [("job_1", 1), ("job_3", 1)]
        await write(store, epoch, event("job_1", 2))


async def test_of_those_that_are_written_one_by_one_none_is_written_twice(path: Path) -> None:
    """The disk fails between two of them."""
    gate = Gate()
    hooks = PointHooks()
    async with open_sqlite_store(path, limits=AT_ONCE, hooks=hooks) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())
        await trio.to_thread.run_sync(store._engine._db.setlimit, sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
        hooks.actions["begun"] = gate
        store.append(Batch((opened(),), epoch))
        with trio.fail_after(SECONDS):
            await gate.waits.wait()
        tickets = [
            store.append(Batch((accepted("job_2"), event("job_2", 1, content=b"x" * 20_000)), epoch)),
            *[store.append(Batch((event("job_1", number),), epoch)) for number in range(1, 5)],
        ]
        commits = 0

        def fail() -> None:
            nonlocal commits
            commits += 1
            # The gated one is the first; then one by one, and of the next two commits the answer is lost.
            if commits in (2, 3):
                raise sqlite_error(sqlite3.SQLITE_IOERR)

        hooks.actions.clear()
        hooks.actions["committed"] = fail
        gate.open.set()
        with trio.fail_after(SECONDS):
            await store.flush()
        assert [type(ticket.refusal) for ticket in tickets] == [ConflictError, *[type(None)] * 4]
        assert store.statistics().retries == 2
        history = await store.history("job_1", 0, 10)
        assert history is not None
        assert [each.job_seq for each in history.events] == [1, 2, 3, 4]
        await write(store, epoch, event("job_1", 5))


async def end_by(path: Path, error: Exception, caplog: pytest.LogCaptureFixture) -> BaseException:
    """Let a commit end a store; return what leaves it."""

    def fail() -> None:
        raise error

    hooks = PointHooks()
    tickets: list[Ticket] = []
    with pytest.raises((StoreError, ZeroDivisionError)) as caught, trio.fail_after(SECONDS) as bound:
        async with open_sqlite_store(path, hooks=hooks) as store:
            epoch = await store.take_ownership()
            await write(store, epoch, accepted())
            hooks.actions["written"] = fail
            tickets.append(store.append(Batch((event("job_1", 1),), epoch), tickets.append))
            tickets.append(store.append(Batch((event("job_1", 2),), epoch), tickets.append))
            with trio.CancelScope(shield=True):
                with pytest.raises(StoreUnavailableError, match="closed before this was written"):
                    await store.committed(tickets[0])
                with pytest.raises(StoreUnavailableError):
                    await store.committed(tickets[1])
                with pytest.raises(StoreUnavailableError, match="the store is closed"):
                    store.append(Batch((event("job_1", 1),), epoch))
                with pytest.raises(StoreUnavailableError):
                    store.check_available()
                with pytest.raises(StoreUnavailableError):
                    await store.wait_for_room()
                # What was committed before can still be read: to say what is so. And until it is left it is locked.
                for _ in range(3):
                    assert len(await store.running_jobs()) == 1
                with pytest.raises(StoreLockedError):
                    await trio.to_thread.run_sync(StoreLock.acquire, path)
            await trio.sleep_forever()
    # What was inside was cancelled by the store, and nobody was told.
    assert not bound.cancel_called
    assert len(tickets) == 2
    assert any("it has failed" in record.getMessage() for record in caplog.records)
    async with open_sqlite_store(path) as store:
        (job,) = await store.running_jobs()
        assert job.last_seq == 0
    return caught.value


async def test_damage_ends_a_store(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    error = await end_by(path, sqlite_error(sqlite3.SQLITE_CORRUPT, "database disk image is malformed"), caplog)
    assert isinstance(error, StoreCorruptError)
    assert "store.db is damaged: database disk image is malformed" in str(error)


async def test_a_bug_ends_a_store(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And leaves it as what it is."""
    assert isinstance(await end_by(path, ZeroDivisionError(), caplog), ZeroDivisionError)


def test_what_follows_from_an_error() -> None:
    for code, kind in (
        (sqlite3.SQLITE_CORRUPT, Trouble.DAMAGE),
        (sqlite3.SQLITE_CORRUPT_INDEX, Trouble.DAMAGE),
        (sqlite3.SQLITE_NOTADB, Trouble.DAMAGE),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, Trouble.CONTENT),
        (sqlite3.SQLITE_TOOBIG, Trouble.CONTENT),
        (sqlite3.SQLITE_IOERR_SHORT_READ, Trouble.PASSES),
        (sqlite3.SQLITE_PROTOCOL, Trouble.PASSES),
    ):
        found = trouble_of(sqlite_error(code))
        assert found is not None
        assert found[0] is kind
    # A statement that is wrong, and what is no error of a file at all.
    assert trouble_of(sqlite_error(sqlite3.SQLITE_ERROR)) is None
    assert trouble_of(sqlite3.ProgrammingError()) is None
    assert trouble_of(KeyError()) is None
    assert trouble_of(OSError(5, None)) == (Trouble.PASSES, "the operating system refuses")


# --- reading ----------------------------------------------------------------------------------------


@pytest.mark.requirement("S18")
async def test_a_read_that_fails_fails_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = []
    real = Reader.history

    def history(self: Reader, *arguments: object) -> object:
        if errors:
            raise errors.pop()
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Reader, "history", history)
    async with open_sqlite_store(path) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted(), event("job_1", 1))
        errors.append(sqlite_error(sqlite3.SQLITE_IOERR_READ))
        with pytest.raises(StoreUnavailableError, match="cannot be read just now: the disk fails"):
            await store.history("job_1", 0, 1)
        errors.append(sqlite_error(sqlite3.SQLITE_CORRUPT))
        with pytest.raises(StoreCorruptError, match=r"store.db is damaged"):
            await store.history("job_1", 0, 1)
        errors.append(sqlite_error(sqlite3.SQLITE_ERROR))
        with pytest.raises(sqlite3.OperationalError):
            await store.history("job_1", 0, 1)
        assert await store.history("job_1", 0, 1) is not None
        await write(store, epoch, event("job_1", 2))


async def test_an_event_that_is_missing_is_no_shorter_window(path: Path) -> None:
    """A gap would be a silent one (P6.10)."""
    async with open_sqlite_store(path) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, opened(), accepted())
        await write(store, epoch, *[event("job_1", n, ("sess_1", n)) for n in range(1, 5)])
        await write(store, epoch, *ended("job_1", 5, ("sess_1", 5)))
        db = store._engine._db
        for statement, missing in (
            ("DELETE FROM outcomes", 0),
            ("DELETE FROM events WHERE id & 65535 = 4", 4),
            ("DELETE FROM events WHERE id & 65535 = 2", 2),
        ):
            await trio.to_thread.run_sync(db.execute, statement)
            with pytest.raises(StoreCorruptError, match=f"event {missing} of job_1 is not there"):
                await store.window("sess_1", 0, 100)


async def test_no_more_reads_at_once_than_there_may_be(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0
    lock = threading.Lock()
    both = threading.Barrier(3)

    def running_jobs(self: Reader) -> list[object]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        # Three at a time, or a barrier that nobody passes.
        both.wait(SECONDS)
        with lock:
            inside -= 1
        return []

    monkeypatch.setattr(Reader, "running_jobs", running_jobs)
    async with open_sqlite_store(path, limits=Limits(store_readers=3)) as store:
        async with trio.open_nursery() as nursery:
            for _ in range(12):
                nursery.start_soon(store.running_jobs)
        assert most <= 3
        assert len(store._readers) <= 3


async def test_a_reader_sees_whole_batches_beside_a_writer(path: Path) -> None:
    async with open_store("sqlite", path.parent) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, opened(), accepted())
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                while True:
                    entries = await store.window("sess_1", 0, 1_000)
                    # Two events in each batch, and the second is the job's end of a pair.
                    assert len(entries) % 2 == 0
                    assert [each.event_seq for each in entries] == [*range(1, len(entries) + 1)]

            nursery.start_soon(read)
            for number in range(1, 201, 2):
                pair = [event("job_1", each, ("sess_1", each)) for each in (number, number + 1)]
                await write(store, epoch, *pair)
            nursery.cancel_scope.cancel()


# --- group commit and room --------------------------------------------------------------------------


@pytest.mark.requirement("M09", "S06")
async def test_what_waits_is_committed_together_and_holds_up_nobody(path: Path) -> None:
    gate = Gate()
    hooks = PointHooks()
    async with open_sqlite_store(path, hooks=hooks) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())
        before = store.statistics().commits
        hooks.actions["written"] = gate
        told: list[int] = []
        store.append(Batch((event("job_1", 1),), epoch), lambda ticket: told.append(1))
        with trio.fail_after(SECONDS):
            await gate.waits.wait()
        # The disk takes its time. The loop does not wait for it: that is what others do meanwhile.
        for number in range(2, 501):
            store.append(Batch((event("job_1", number),), epoch), lambda ticket, number=number: told.append(number))
            await trio.lowlevel.checkpoint()
        assert told == []
        statistics = store.statistics()
        assert statistics.batches_waiting == 500
        assert statistics.bytes_waiting > 500 * len("event 1 of job_1")
        hooks.actions.clear()
        gate.open.set()
        await store.flush()
        assert told == [*range(1, 501)]
        assert store.statistics().commits == before + 2
        assert store.statistics().bytes_waiting == 0


async def test_one_transaction_takes_no_more_than_it_may(path: Path) -> None:
    gate = Gate()
    hooks = PointHooks()
    async with open_sqlite_store(path, hooks=hooks, limits=Limits(store_commit_bytes=10_000)) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())
        before = store.statistics().commits
        hooks.actions["begun"] = gate
        store.append(Batch((event("job_1", 1),), epoch))
        with trio.fail_after(SECONDS):
            await gate.waits.wait()
        for number in range(2, 12):
            store.append(Batch((event("job_1", number, content=b"x" * 3_000),), epoch))
        # One that is larger goes alone, and whole.
        store.append(Batch((event("job_1", 12, content=b"x" * 30_000),), epoch))
        hooks.actions.clear()
        gate.open.set()
        await store.flush()
        assert store.statistics().commits == before + 1 + 4 + 1


async def test_who_waits_for_room_goes_on_when_there_is_some(path: Path, mock_clock: trio.testing.MockClock) -> None:
    gate = Gate()
    hooks = PointHooks()
    limits = Limits(store_uncommitted_bytes=2_000, store_reserve_bytes=1_000, store_wait_seconds=10)
    async with open_sqlite_store(path, hooks=hooks, limits=limits) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())
        hooks.actions["written"] = gate
        store.append(Batch((event("job_1", 1, content=b"x" * 3_000),), epoch))
        await gate.waits.wait()
        assert not store.has_room
        with pytest.raises(StoreUnavailableError, match="store_uncommitted_bytes") as caught:
            store.append(Batch((event("job_1", 2),), epoch))
        assert caught.value.details == {"limit": "store_uncommitted_bytes", "value": 2_000}
        emitted: list[int] = []
        failed: list[int] = []

        async def emit(number: int) -> None:
            try:
                await store.wait_for_room()
            except StoreUnavailableError:
                failed.append(number)
                return
            emitted.append(number)
            # Each fills all that there is: the next has to wait again.
            store.append(Batch((event("job_1", 1 + len(emitted), content=b"x" * 3_000),), epoch))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(emit, 0)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(9)
            await trio.testing.wait_all_tasks_blocked()
            assert failed == []
            mock_clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
            assert failed == [0]
            for number in range(1, 6):
                nursery.start_soon(emit, number)
            await trio.testing.wait_all_tasks_blocked()
            hooks.actions.clear()
            gate.open.set()
        assert sorted(emitted) == [1, 2, 3, 4, 5]
        await store.flush()
        history = await store.history("job_1", 0, 10)
        assert history is not None
        assert len(history.events) == 6


@pytest.mark.requirement("H13")
async def test_the_log_is_cut_off_when_no_reader_is_in_the_way(path: Path) -> None:
    async with open_sqlite_store(path, limits=Limits(store_wal_bytes=1 * MIB)) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchall()
        for number in range(1, 13):
            await write(store, epoch, event("job_1", number, content=b"x" * MIB))
        # It has to keep what the reader sees.
        assert store.statistics().wal_bytes > 5 * MIB
        reader.execute("ROLLBACK")
        reader.close()
        await write(store, epoch, event("job_1", 13))
        with trio.fail_after(SECONDS):
            while store.statistics().wal_bytes > 1 * MIB:
                await trio.to_thread.run_sync(int)
        assert store.statistics().file_bytes > 12 * MIB
