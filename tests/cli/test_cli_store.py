from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from cli.processes import SECONDS, run_command
from store.kit import KEY, accepted, claim, ended, entry, event, opened, write

from arcp_trio.cli.application import run
from arcp_trio.cli.errors import CommandError, ExitCode
from arcp_trio.cli.store import KEY_VARIABLE, read_store_key
from arcp_trio.records import LedgerState
from arcp_trio.store import inspection
from arcp_trio.store.sqlite import SqliteStore, open_sqlite_store
from arcp_trio.store.writes import (
    EventAppended,
    HistoryTrimmed,
    JobEvicted,
    JobOwned,
    LedgerNoted,
    OwnAppended,
    RiderAppended,
    SessionFollowed,
    TokensChanged,
)

TAIL = b',"type":"job.event","job_id":"job_1","payload":{"kind":"log"}}'
TOKEN_HASH = hashlib.sha256(b"token").digest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


async def fill(path: Path, key: bytes | None = None) -> None:
    async with open_sqlite_store(path, key=key) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, opened(), TokensChanged("sess_1", (TOKEN_HASH,)), accepted(), claim("key", "job_1"))
        await write(store, epoch, SessionFollowed("sess_1", "job_1"), JobOwned("job_1", "sess_1"))
        await write(store, epoch, RiderAppended(session_id="sess_1", content=b'{"type":"job.accepted"}'))
        said = EventAppended(job_id="job_1", job_seq=1, content=TAIL, feature="progress", numbers=(("sess_1", 1),))
        await write(store, epoch, said, OwnAppended(session_id="sess_1", event_seq=2, content=b"\xff\x00"))
        await write(store, epoch, accepted("job_2"), event("job_2", 1, ("sess_1", 3)), *ended("job_2", 2))
        await write(store, epoch, LedgerNoted(entry("cred_1")), LedgerNoted(entry("cred_2", LedgerState.FAILED, 2)))


def command(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = run(["store", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert TOKEN_HASH.hex() not in out + err
    return code, out, err


def state_of(directory: Path) -> Sequence[Any]:
    """Return all that a look could change."""
    return [
        (each.name, each.read_bytes(), each.stat().st_mtime_ns, each.stat().st_mode)
        for each in sorted(directory.iterdir())
    ]


# --- inspect ----------------------------------------------------------------------------------------


def test_inspect_shows_what_a_file_is_and_has(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trio.run(fill, path)
    code, out, err = command(capsys, "inspect", path)
    assert (code, err) == (ExitCode.OK, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == str(path)
    for line in (
        "schema 2, not encrypted, not in use",
        "log 0 B",
        "jobs 1 running, 1 ended",
        "events 2",
        "sessions 1, with 2 spans of events",
        "keys 1",
        "credentials 2 to be revoked, 1 could not be revoked",
        "checked its structure: sound",
    ):
        assert line in lines
    code, out, _ = command(capsys, "inspect", path, "--full", "--json")
    report = json.loads(out)
    assert code == ExitCode.OK
    assert (report["schema"], report["checked"], report["sound"], report["problems"]) == (2, "all", True, [])
    assert report["file_bytes"] == path.stat().st_size
    assert report["counts"] == {
        "jobs_running": 1,
        "jobs_ended": 1,
        "jobs_evicted": 0,
        "events": 2,
        "sessions": 1,
        "spans": 2,
        "idempotency_keys": 1,
        "credentials_outstanding": 2,
        "credentials_failed": 1,
    }


@pytest.mark.requirement("P14.3")
def test_inspect_says_whether_a_file_is_encrypted_and_needs_no_key(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trio.run(fill, path, KEY)
    code, out, _ = command(capsys, "inspect", path)
    assert code == ExitCode.OK
    assert "schema       2, encrypted, not in use" in out
    assert "2 to be revoked" in out


@pytest.mark.requirement("M10")
@pytest.mark.parametrize("read_only", [False, True])
def test_a_look_changes_nothing(path: Path, capsys: pytest.CaptureFixture[str], *, read_only: bool) -> None:
    trio.run(fill, path)
    if read_only:
        path.chmod(0o400)
        path.with_name("store.db.lock").chmod(0o400)
        path.parent.chmod(0o500)
    try:
        before = state_of(path.parent)
        for arguments in (["inspect", path], ["inspect", path, "--full"], ["export", path]):
            assert command(capsys, *arguments)[0] == ExitCode.OK
        assert state_of(path.parent) == before
    finally:
        path.parent.chmod(0o700)


@pytest.mark.requirement("M10")
def test_a_copy_can_be_looked_at(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trio.run(fill, path)
    copy = tmp_path / "copies" / "copy.db"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    before = state_of(copy.parent)
    assert command(capsys, "inspect", copy)[0] == ExitCode.OK
    assert state_of(copy.parent) == before


async def test_a_store_in_use_can_be_looked_at_and_not_be_vacuumed(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await fill(path)
    async with open_sqlite_store(path) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, accepted("job_3"))
        _, out, _ = await trio.to_thread.run_sync(command, capsys, "inspect", path)
        assert "not encrypted, in use" in out
        assert "2 running" in out
        _, out, _ = await trio.to_thread.run_sync(command, capsys, "export", path)
        assert '"job_id":"job_3"' in out
        code, _, err = await trio.to_thread.run_sync(command, capsys, "vacuum", path)
        assert code == ExitCode.FAILED
        assert f"store.db is in use by process {os.getpid()}" in err
        await write(store, epoch, event("job_3", 1))


def test_what_a_process_that_died_has_left_is_read_too(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = path.parent / "image"
    image.mkdir()

    async def die(path: Path) -> None:
        async with open_sqlite_store(path) as store:
            epoch = await store.take_ownership()
            await write(store, epoch, accepted())
            for each in list(path.parent.iterdir()):
                if each.is_file() and not each.name.endswith("-shm"):
                    (image / each.name).write_bytes(each.read_bytes())

    trio.run(die, path)
    before = {each: each.read_bytes() for each in image.iterdir()}
    assert "1 running" in command(capsys, "inspect", image / "store.db")[1]
    assert {each: each.read_bytes() for each in before} == before


def damage(path: Path, table: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4096 : (page - 1) * 4096 + 100] = bytes(100)
    path.write_bytes(content)


def test_inspect_finds_damage(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trio.run(fill, path)
    damage(path, "jobs")
    code, out, _ = command(capsys, "inspect", path)
    assert code == ExitCode.FAILED
    assert ": damaged" in out
    assert "events" not in out
    code, out, _ = command(capsys, "inspect", path, "--full", "--json")
    report = json.loads(out)
    assert (code, report["sound"], report["counts"]) == (ExitCode.FAILED, False, {})
    assert report["problems"]
    # What is damaged stays as it is: somebody may want to save what can be saved.
    before = path.read_bytes()
    code, _, err = command(capsys, "vacuum", path)
    assert code == ExitCode.FAILED
    assert "store.db is damaged" in err
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["inspect", "vacuum", "export"])
def test_what_is_no_store(path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, err = command(capsys, name, path)
    assert (code, out) == (ExitCode.FAILED, "")
    assert err == f"arcp-trio: {path}: there is no such file\n"
    path.touch()
    assert "store.db is empty" in command(capsys, name, path)[2]
    path.write_text("notes\n" * 1_000)
    assert "store.db is not a store" in command(capsys, name, path)[2]
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE notes (text TEXT)")
    code, _, err = command(capsys, name, path)
    assert code == ExitCode.FAILED
    assert "is a database of something else" in err


def test_only_a_full_check_finds_an_index_that_is_not_its_table(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trio.run(fill, path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA writable_schema = ON")
        other = "CREATE INDEX spans_of_job ON spans (job_first, job)"
        db.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'spans_of_job'", (other,))
        db.commit()
    assert command(capsys, "inspect", path)[0] == ExitCode.OK
    code, out, _ = command(capsys, "inspect", path, "--full")
    assert code == ExitCode.FAILED
    assert "checked      all of it: damaged" in out
    assert "spans_of_job" in out
    # Writing it anew would hide that.
    before = path.read_bytes()
    code, _, err = command(capsys, "vacuum", path)
    assert code == ExitCode.FAILED
    assert "store.db is damaged" in err
    assert path.read_bytes() == before


# --- vacuum -----------------------------------------------------------------------------------------


def test_vacuum_gives_space_back(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def waste() -> None:
        async with open_sqlite_store(path) as store:
            epoch = await store.take_ownership()
            large = [event("job_1", n, content=os.urandom(10_000)) for n in range(1, 201)]
            await write(store, epoch, accepted(), *large, HistoryTrimmed("job_1", 190))
            await write(store, epoch, accepted("job_2"), *ended("job_2", 1), JobEvicted("job_2"))
            await free(store)

    async def free(store: SqliteStore) -> None:
        with trio.fail_after(SECONDS):
            while store._engine.has_work:
                await trio.to_thread.run_sync(int)

    trio.run(waste)
    code, out, _ = command(capsys, "vacuum", path, "--json")
    sizes = json.loads(out)
    assert code == ExitCode.OK
    assert sizes["bytes_before"] > 1_500_000
    assert sizes["bytes_after"] < 300_000
    assert path.stat().st_size == sizes["bytes_after"]
    code, out, _ = command(capsys, "vacuum", path)
    assert "before" in out
    # It is the same store.
    lines = [json.loads(line) for line in command(capsys, "export", path)[1].splitlines()]
    assert [line["job_seq"] for line in lines if line["record"] == "event"] == [*range(191, 201)]


# --- export -----------------------------------------------------------------------------------------


@pytest.mark.requirement("P14.2")
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_export_gives_everything_but_secrets(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, key: bytes | None
) -> None:
    trio.run(fill, path, key)
    if key is not None:
        monkeypatch.setenv(KEY_VARIABLE, key.hex())
    monkeypatch.setattr(inspection, "_PAGE", 1)
    code, out, err = command(capsys, "export", path)
    assert (code, err) == (ExitCode.OK, "")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["record"] for record in records] == [
        "store",
        "job",
        "event",
        "job",
        "event",
        "session",
        *["entry"] * 4,
        "key",
        "credential",
        "credential",
    ]
    assert records[0] == {"record": "store", "schema": 2}
    assert records[1] == {
        "record": "job",
        "job_id": "job_1",
        "principal": "me",
        "agent": "count@1.0.0",
        "trace_id": "trace of job_1",
        "parent_job_id": None,
        "created_at": "1970-01-01T00:00:01.000Z",
        "owners": ["sess_1"],
        "last_seq": 1,
        "status": "running",
        "ended_at": None,
        "accepted": {"job_id": "job_1"},
        "outcome": None,
    }
    assert records[2] == {
        "record": "event",
        "job_id": "job_1",
        "job_seq": 1,
        "feature": "progress",
        "frame": {"type": "job.event", "job_id": "job_1", "payload": {"kind": "log"}},
    }
    assert records[3]["status"] == "success"
    assert records[3]["ended_at"] == "1970-01-01T00:00:09.000Z"
    assert records[5]["follows"] == ["job_1"]
    assert "tokens" not in records[5]
    assert [(record["event_seq"], record["kind"]) for record in records[6:10]] == [
        (1, "rider"),
        (1, "event"),
        (2, "own"),
        (3, "event"),
    ]
    assert records[6]["frame"] == {"type": "job.accepted"}
    assert (records[7]["job_id"], records[7]["job_seq"]) == ("job_1", 1)
    assert records[8]["frame"] == {"base64": "/wA="}
    assert records[10] == {"record": "key", "principal": "me", "key": "key", "job_id": "job_1"}
    assert (records[11]["entry_id"], records[11]["state"]) == ("cred_1", "issued")


async def test_an_export_is_of_one_moment(path: Path) -> None:
    await fill(path)
    async with open_sqlite_store(path) as store:
        epoch = await store.take_ownership()
        records = inspection.export_store(path)
        found = [next(records), next(records)]
        await write(
            store, epoch, event("job_1", 2, ("sess_1", 4)), accepted("job_3"), *ended("job_3", 1), claim("x", "job_3")
        )
        found += records
    assert found[1]["job_id"] == "job_1"
    assert [record["job_seq"] for record in found if record["record"] == "event"] == [1, 1]
    assert [record["key"] for record in found if record["record"] == "key"] == ["key"]
    assert not [record for record in found if record.get("job_id") == "job_3"]


@pytest.mark.requirement("P14.3")
def test_export_of_an_encrypted_store_needs_its_key(
    path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trio.run(fill, path, KEY)
    key_file = tmp_path / "key"
    code, out, err = command(capsys, "export", path)
    assert (code, out) == (ExitCode.FAILED, "")
    assert "is encrypted: it needs its key" in err
    key_file.write_text(bytes(32).hex())
    assert "is encrypted with another key" in command(capsys, "export", path, "--key-file", key_file)[2]
    key_file.write_text(KEY.hex() + "\n")
    code, out, _ = command(capsys, "export", path, "--key-file", key_file)
    assert code == ExitCode.OK
    assert '"kind":"log"' in out


def test_export_of_an_earlier_version(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trio.run(fill, path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 1")
    code, _, err = command(capsys, "export", path)
    assert code == ExitCode.FAILED
    assert "has schema 1, and this arcp-trio exports 2" in err


@pytest.mark.requirement("P14.2")
def test_a_key_that_is_none(tmp_path: Path) -> None:
    secret = "canary" * 10
    key_file = tmp_path / "key"
    for text in ("", secret, "0" * 63, "0" * 66, "g" * 64):
        key_file.write_text(text)
        with pytest.raises(CommandError, match="expected 64 hexadecimal digits") as caught:
            read_store_key(key_file, {})
        assert "canary" not in caught.value.message
        assert caught.value.exit_code == ExitCode.USAGE
    with pytest.raises(CommandError, match=rf"{KEY_VARIABLE}: expected 64") as caught:
        read_store_key(None, {KEY_VARIABLE: secret})
    assert "canary" not in caught.value.message
    with pytest.raises(CommandError, match="No such file"):
        read_store_key(tmp_path / "none", {})
    assert read_store_key(None, {}) is None
    assert read_store_key(None, {KEY_VARIABLE: KEY.hex()}) == KEY


async def test_as_a_process(path: Path) -> None:
    await fill(path)
    done = await run_command("store", "inspect", str(path))
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    assert "1 running, 1 ended" in done.stdout
    done = await run_command("store", "--help")
    for name in ("inspect", "vacuum", "export"):
        assert f" {name} " in done.stdout
    done = await run_command("store", "inspect")
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.count("\n") == 1
