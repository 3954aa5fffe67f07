"""Opening a store's file: who may, what it must be, and what becomes of one of an earlier version."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from store.kit import SECONDS, PointHooks, accepted, dump, event, open_store, opened, read_window, sqlite_error, write

from arcp_trio.limits import Limits
from arcp_trio.store import database, engine, schema
from arcp_trio.store.database import check_structure, connect, wal_reset_warning
from arcp_trio.store.errors import StoreCorruptError, StoreError, StoreFormatError, StoreLockedError
from arcp_trio.store.faults import CRASH_POINTS
from arcp_trio.store.files import create_file
from arcp_trio.store.sqlite import SqliteStore, open_sqlite_store
from arcp_trio.store.writes import HistoryTrimmed

FIRST_SCHEMA = (Path(__file__).parent / "schema_v1.sql").read_text()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.requirement("P14.3")
async def test_its_files_are_their_owners_alone(path: Path) -> None:
    mask = os.umask(0)
    try:
        async with open_sqlite_store(path) as store:
            await write(store, await store.take_ownership(), accepted())
            names = [each.name for each in path.parent.iterdir()]
            assert sorted(names) == ["store.db", "store.db-shm", "store.db-wal", "store.db.lock"]
            assert {mode_of(each) for each in path.parent.iterdir()} == {0o600}
    finally:
        os.umask(mask)
    assert sorted(each.name for each in path.parent.iterdir()) == ["store.db", "store.db.lock"]


@pytest.mark.requirement("P14.3")
async def test_a_file_that_was_copied_back_is_taken_from_the_others(path: Path) -> None:
    async with open_sqlite_store(path):
        pass
    path.chmod(0o644)
    async with open_sqlite_store(path) as store:
        await write(store, await store.take_ownership(), accepted())
        assert {mode_of(each) for each in path.parent.iterdir()} == {0o600}


def test_a_file_is_its_owners_alone_from_the_first_moment(path: Path) -> None:
    mask = os.umask(0)
    try:
        assert create_file(path)
        assert mode_of(path) == 0o600
        assert not create_file(path)
    finally:
        os.umask(mask)


@pytest.mark.parametrize("name", ["with space", "ünïcode", "question?mark=1#", "per%20cent"])
async def test_a_path_may_have_any_name(tmp_path: Path, name: str) -> None:
    async with open_sqlite_store(str(tmp_path / name)) as store:
        await write(store, await store.take_ownership(), accepted())
    assert (tmp_path / name).is_file()


async def test_a_path_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"missing/store.db"):
        async with open_sqlite_store(tmp_path / "missing" / "store.db"):
            pass
    with pytest.raises(StoreFormatError, match="is not a file"):
        async with open_sqlite_store(tmp_path):
            pass
    with pytest.raises(ValueError, match="synchronous: expected one of full"):
        async with open_sqlite_store(tmp_path / "store.db", synchronous="off"):
            pass


async def test_a_commit_waits_for_the_disk(path: Path) -> None:
    for synchronous, level in (("full", 2), ("extra", 3), ("normal", 1)):
        async with open_sqlite_store(path, synchronous=synchronous) as store:
            assert store._engine._db.execute("PRAGMA synchronous").fetchone() == (level,)
    async with open_sqlite_store(path) as store:
        for pragma, value in (("synchronous", 2), ("journal_mode", "wal"), ("auto_vacuum", 2), ("secure_delete", 1)):
            assert store._engine._db.execute(f"PRAGMA {pragma}").fetchone() == (value,)


# --- one process ------------------------------------------------------------------------------------

_OTHER = """
import os, sys, trio
from arcp_trio.store.sqlite import open_sqlite_store
from arcp_trio.store.writes import Batch, SessionOpened

async def main():
    async with open_sqlite_store(sys.argv[1]) as store:
        epoch = await store.take_ownership()
        opened = SessionOpened(session_id="sess_1", principal="me", opened_at_ms=1, detail=b"")
        await store.committed(store.append(Batch((opened,), epoch)))
        os.write(1, b"ready\\n")
        await trio.sleep_forever()

trio.run(main)
"""


async def test_a_second_process_is_refused(path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                partial(
                    trio.run_process,
                    [sys.executable, "-c", _OTHER, str(path)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    check=False,
                )
            )
            assert await process.stdout.receive_some() == b"ready\n"
            with pytest.raises(StoreLockedError, match=rf"store.db is in use by process {process.pid}:"):
                async with open_sqlite_store(path):
                    pass
            # It dies with what it has open: the lock goes with it, and what it has committed stays.
            process.send_signal(signal.SIGKILL)
        async with open_sqlite_store(path) as store:
            assert [session.session_id for session in (await store.sessions(None, 10)).items] == ["sess_1"]


async def test_a_second_opening_in_one_process_is_refused(path: Path) -> None:
    # Of a process that had a longer number.
    path.with_name("store.db.lock").write_text("99999999999999\n")
    async with open_sqlite_store(path):
        with pytest.raises(StoreLockedError, match=f"in use by process {os.getpid()}:"):
            async with open_sqlite_store(path):
                pass
    async with open_sqlite_store(path):
        pass


# --- what is no store -------------------------------------------------------------------------------


async def refused(path: Path, error: type[StoreError], message: str, **options: Any) -> None:
    """Open what cannot be: it is said why, and nothing was changed or is locked."""
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(error, match=message):
            async with open_sqlite_store(path, **options):
                pass
    assert path.read_bytes() == before


async def test_other_files_are_not_touched(path: Path) -> None:
    path.write_text("these are my notes\n" * 100)
    await refused(path, StoreFormatError, "store.db is not a store")
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE notes (text TEXT)")
    await refused(path, StoreFormatError, "is a database of something else")


async def test_a_later_version_is_not_touched(path: Path) -> None:
    async with open_sqlite_store(path):
        pass
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    await refused(path, StoreFormatError, "written by a later version of arcp-trio: its schema is 99")


async def test_an_old_sqlite_is_not_enough(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_OLDEST_SQLITE", (99, 0, 0))
    with pytest.raises(StoreFormatError, match=r"needs SQLite 99.0.0 or newer"):
        async with open_sqlite_store(path):
            pass


async def test_a_file_system_without_shared_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite keeps its old journal there, and says so."""

    class NoWal(sqlite3.Connection):
        def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
            return super().execute(sql.replace("journal_mode = WAL", "journal_mode = DELETE"), *arguments)

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: real(*args, factory=NoWal, **options))
    with pytest.raises(StoreFormatError, match="its file system cannot share memory"):
        async with open_sqlite_store(path):
            pass


@pytest.mark.parametrize("point", ["created", "migrated", "opened"])
async def test_an_opening_that_fails_can_be_tried_again(path: Path, point: str) -> None:
    def fail() -> None:
        raise sqlite_error(sqlite3.SQLITE_FULL)

    # A file is made once.
    for _ in range(1 if point == "created" else 2):
        with pytest.raises(StoreError, match=r"store.db: the store cannot be opened: the disk is full"):
            async with open_sqlite_store(path, hooks=PointHooks(**{point: fail})):
                pass
    async with open_sqlite_store(path) as store:
        await write(store, await store.take_ownership(), accepted())


async def test_a_bug_in_an_opening_is_not_called_something_else(path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    for point in ("migrated", "opened"):
        path.unlink(missing_ok=True)
        with pytest.raises(ZeroDivisionError):
            async with open_sqlite_store(path, hooks=PointHooks(**{point: fail})):
                pass
    async with open_sqlite_store(path):
        pass


async def test_a_cancelled_opening_leaves_nothing_open(path: Path) -> None:
    with trio.CancelScope() as scope:
        hooks = PointHooks(opened=lambda: trio.from_thread.run_sync(scope.cancel))
        async with open_sqlite_store(path, hooks=hooks) as store:
            await store.take_ownership()
    assert scope.cancelled_caught
    async with open_sqlite_store(path):
        pass


# --- damage -----------------------------------------------------------------------------------------


async def fill(path: Path, jobs: int = 20) -> None:
    async with open_sqlite_store(path) as store:
        epoch = await store.take_ownership()
        for number in range(jobs):
            job_id = f"job_{number}"
            events = [event(job_id, seq, content=os.urandom(500)) for seq in range(1, 21)]
            await write(store, epoch, accepted(job_id), opened(f"sess_{number}"), *events)


async def test_a_damaged_file_is_found_out(path: Path) -> None:
    await fill(path)
    whole = path.read_bytes()
    for page in range(1, len(whole) // 4096, 7):
        damaged = bytearray(whole)
        damaged[page * 4096 : page * 4096 + 200] = os.urandom(200)
        path.write_bytes(damaged)
        try:
            async with open_sqlite_store(path) as store:
                await dump(store)
        except StoreCorruptError as exc:
            assert str(path) in str(exc)  # noqa: PT017
        except StoreFormatError:
            assert page == 0
        else:
            # A page that nothing uses.
            continue


async def test_a_damaged_table_is_found_when_the_file_is_opened(path: Path) -> None:
    await fill(path)
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs'").fetchone()
    damaged = bytearray(path.read_bytes())
    damaged[(page - 1) * 4096 : (page - 1) * 4096 + 100] = bytes(100)
    path.write_bytes(damaged)
    await refused(path, StoreCorruptError, "store.db is damaged: ")


async def test_the_check_ends_when_its_time_is_over(path: Path) -> None:
    await fill(path, 200)
    ticks = iter(range(1_000_000))
    with closing(connect(path, "ro")) as db:
        assert check_structure(db, path, 10_000_000, lambda: next(ticks)) is True
        assert next(ticks) > 2
        assert check_structure(db, path, 2, lambda: next(ticks)) is False
        # What was interrupted can go on.
        assert check_structure(db, path, 10_000_000, lambda: next(ticks)) is True
    async with open_sqlite_store(path, limits=Limits(store_check_seconds=0)) as store:
        assert len(await store.running_jobs()) == 200


# --- versions ---------------------------------------------------------------------------------------


def make_first_version(path: Path) -> None:
    """Make a store as the first version did, with something in it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(FIRST_SCHEMA)
        db.execute("PRAGMA application_id = 1095910224")
        db.execute("PRAGMA user_version = 1")
        db.execute("UPDATE ownership SET epoch = 5, position = 3")
        for number, status in ((1, None), (2, "success")):
            db.execute(
                "INSERT INTO jobs VALUES (?, ?, 'me', 'count@1.0.0', 'trace', 1000, NULL, x'7b7d', ?, ?, ?, ?, 0)",
                (number, f"job_{number}", 3 if status else 0, 1 if status else 0, status, 9000 if status else None),
            )
        events = [(number << 36 | seq, b"event %d" % seq) for number in (1, 2) for seq in (1, 2)]
        db.executemany("INSERT INTO events VALUES (?, NULL, ?)", events)
        db.execute("INSERT INTO outcomes VALUES (2, 'fine')")
        db.execute("INSERT INTO sessions VALUES (1, 'sess_1', 'me', 2000, x'7b7d', 'aabb cc', 1, 1, NULL, 0)")
        db.execute("INSERT INTO spans VALUES (1, 1, 2, 1, 1)")
        db.execute("INSERT INTO keys VALUES ('me', 'key', x'00', 'job_1')")


async def check_first_version(path: Path) -> None:
    async with open_store("sqlite", path.parent) as store:
        assert isinstance(store, SqliteStore)
        assert store._engine._db.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        found = await dump(store)
        assert [(job.job_id, job.last_seq) for job in (*found["running"], *found["ended"])] == [
            ("job_1", 2),
            ("job_2", 3),
        ]
        (session,) = found["sessions"]
        assert (session.last_seq, session.acked, session.token_hashes) == (2, 1, (b"\xaa\xbb", b"\xcc"))
        assert [each.content for each in await read_window(store, "sess_1")] == [b"event 2"]
        assert [key.job_id for key in found["keys"]] == ["job_1"]
        assert await store.take_ownership() == 6
        # What its successor deletes, it had kept.
        epoch = await store.take_ownership()
        await write(store, epoch, event("job_1", 3, ("sess_1", 3)), HistoryTrimmed("job_2", 2))
        assert [each.job_seq for each in await read_window(store, "sess_1")] == [2, 3]


async def test_a_store_of_the_first_version_goes_on(path: Path) -> None:
    make_first_version(path)
    await check_first_version(path)


async def test_a_migration_is_whole_or_not_at_all(path: Path) -> None:
    make_first_version(path)

    def fail() -> None:
        raise sqlite_error(sqlite3.SQLITE_IOERR)

    with pytest.raises(StoreError, match="the disk fails"):
        async with open_sqlite_store(path, hooks=PointHooks(migrated=fail)):
            pass
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        columns = [row[1] for row in db.execute("PRAGMA table_info(jobs)")]
        assert "purged" not in columns
    await check_first_version(path)


async def test_a_new_store_and_one_that_was_migrated_are_alike(path: Path) -> None:
    """Each step is also how a new file is made: there is no second description that could differ."""
    make_first_version(path)
    other = path.with_name("other.db")
    found = []
    for each in (path, other):
        async with open_sqlite_store(each):
            pass
        with closing(sqlite3.connect(each)) as db:
            found.append({row[0]: row[1:] for row in db.execute("SELECT name, type, tbl_name FROM sqlite_master")})
            found[-1]["columns"] = {
                table: db.execute(f"PRAGMA table_info({table})").fetchall()
                for table in [name for name, row in found[-1].items() if row[0] == "table"]
            }
    assert found[0] == found[1]


def test_the_versions_of_sqlite_that_need_a_warning() -> None:
    # dependencies.md, section 3.
    for version in ((3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 45, 0), (3, 50, 6), (3, 51, 0), (3, 51, 2)):
        text = wal_reset_warning(version)
        assert text is not None
        assert ".".join(map(str, version)) in text
    for version in ((3, 6, 23), (3, 44, 6), (3, 44, 9), (3, 50, 7), (3, 50, 12), (3, 51, 3), (3, 52, 0), (4, 0, 0)):
        assert wal_reset_warning(version) is None


async def test_the_warning_is_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for version, warned in (((3, 40, 1), True), ((3, 51, 3), False)):
        caplog.clear()
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        async with open_sqlite_store(path):
            pass
        assert any("can damage a store" in record.getMessage() for record in caplog.records) is warned


# --- points and numbers -----------------------------------------------------------------------------


async def test_every_crash_point_is_reached_in_its_order(path: Path) -> None:
    hooks = PointHooks()
    async with open_sqlite_store(path, hooks=hooks) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted())
    ordered = list(dict.fromkeys(hooks.reached))
    # The first transaction has no batch: it looks for what is to be deleted, and may be over before one is appended.
    assert sorted(ordered) == sorted(CRASH_POINTS)
    at = hooks.reached.index("appended")
    behind = [point for point in hooks.reached[at:] if point != "appended"]
    assert behind[-6:] == ["begun", "written", "swept", "committed", "told", "closing"]


async def test_the_numbers_of_jobs_are_used_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_NUMBER", 3)
    async with open_sqlite_store(path) as store:
        epoch = await store.take_ownership()
        for number in range(3):
            await write(store, epoch, accepted(f"job_{number}"))
        db = store._engine._db
        await trio.to_thread.run_sync(db.execute, "DELETE FROM jobs WHERE number = 2")
        await write(store, epoch, accepted("job_3"))
        assert await trio.to_thread.run_sync(
            lambda: db.execute("SELECT job_id, number FROM jobs ORDER BY number").fetchall()
        ) == [("job_0", 1), ("job_3", 2), ("job_2", 3)]
    assert database.opening_error(ZeroDivisionError(), path) is None
