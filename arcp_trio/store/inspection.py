"""Looks at a store's file from outside: what is in it, whether it is sound, all of it as JSON. Synchronous.

Nothing is written, not even beside the file, where nobody has the store open: it may be a copy on a medium that cannot
be written (M10). A store that a runtime has open can be looked at all the same.
"""

from __future__ import annotations

import sqlite3
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import attrs

from ..limits import Limits
from ..wire.jsontext import JSONValue, decode_json
from ..wire.timestamps import format_timestamp
from .cipher import make_cipher
from .database import check_structure, connect, opening_error
from .errors import StoreCorruptError, StoreFormatError
from .files import StoreLock, file_bytes, reading_lock, wal_path
from .reading import Reader
from .schema import VERSION, schema_version
from .stored import Cursor, EntryKind, Page, StoredJob

__all__ = ["StoreReport", "export_store", "inspect_store", "vacuum_store"]

_T = TypeVar("_T")

_COUNTS = {
    "jobs_running": "SELECT count(*) FROM jobs WHERE status IS NULL",
    "jobs_ended": "SELECT count(*) FROM jobs WHERE status IS NOT NULL AND evicted = 0",
    "jobs_evicted": "SELECT count(*) FROM jobs WHERE evicted = 1",
    "events": "SELECT count(*) FROM events",
    "sessions": "SELECT count(*) FROM sessions WHERE ended = 0",
    "spans": "SELECT count(*) FROM spans",
    "idempotency_keys": "SELECT count(*) FROM keys",
    "credentials_outstanding": "SELECT count(*) FROM ledger",
    "credentials_failed": "SELECT count(*) FROM ledger WHERE state = 'failed'",
}
_PAGE = 1_000
_MOST_PROBLEMS = 100


@attrs.frozen(kw_only=True)
class StoreReport:
    """What a file is and has.

    Attributes:
        path: The file.
        schema: The version of its schema.
        encrypted: Whether its contents are.
        in_use: Whether a process has it open.
        file_bytes: Its size.
        wal_bytes: That of its write-ahead log.
        free_bytes: Space in it that is free.
        counts: How many there are of what; empty where something is wrong.
        checked: How far it was checked: ``all``, ``structure``, or ``part`` of the structure.
        problems: What is wrong with it; empty where nothing was found.
    """

    path: str
    schema: int
    encrypted: bool
    in_use: bool
    file_bytes: int
    wal_bytes: int
    free_bytes: int
    counts: Mapping[str, int]
    checked: str
    problems: tuple[str, ...]


@contextmanager
def _looking(path: Path) -> Iterator[tuple[sqlite3.Connection, str, bool, int]]:
    """Yield a connection, its mode, whether nobody can write meanwhile, and the version of the schema."""
    if not path.is_file():
        raise StoreFormatError(f"{path}: there is no such file")
    with reading_lock(path) as alone:
        # What a process that has died left in its log must be read from there, and SQLite shares its index of it.
        mode = "ro&immutable=1" if alone and not file_bytes(wal_path(path)) else "ro"
        try:
            with closing(connect(path, mode)) as db:
                version = schema_version(db, path)
                if not version:
                    raise StoreFormatError(f"{path} is empty")
                yield db, mode, alone, version
        except sqlite3.Error as exc:
            error = opening_error(exc, path)
            if error is None:
                raise
            raise error from exc


def inspect_store(path: Path, *, full: bool = False, limits: Limits | None = None) -> StoreReport:
    """Return what a store's file is and has.

    Args:
        path: The file.
        full: Whether to check all of it, for as long as that takes: each row, and each index against its table. Else
            its structure is checked for as long as at an opening.
        limits: How long that is.

    Raises:
        StoreError: It is no store, or cannot be read. That it is damaged is a finding and no error, if it can be
            opened.
    """
    seconds = (limits or Limits()).store_check_seconds
    with _looking(path) as (db, _, alone, version):
        checked, problems = "all", []
        try:
            if full:
                found = [str(row[0]) for row in db.execute(f"PRAGMA integrity_check({_MOST_PROBLEMS})")]
                problems += [] if found == ["ok"] else found
            else:
                checked = "structure" if check_structure(db, path, seconds) else "part"
        except (StoreCorruptError, sqlite3.DatabaseError) as exc:
            # Some damage is an error of the check itself.
            if isinstance(exc, sqlite3.Error) and not isinstance(opening_error(exc, path), StoreCorruptError):
                raise
            problems.append(str(exc))
        counts = {} if problems else _count(db)
        (canary,) = db.execute("SELECT canary FROM ownership").fetchone()
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        return StoreReport(
            path=str(path),
            schema=version,
            encrypted=canary is not None,
            in_use=not alone,
            file_bytes=file_bytes(path),
            wal_bytes=file_bytes(wal_path(path)),
            free_bytes=free * page_bytes,
            counts=counts,
            checked=checked,
            problems=tuple(problems),
        )


def _count(db: sqlite3.Connection) -> dict[str, int]:
    return {name: int(db.execute(statement).fetchone()[0]) for name, statement in _COUNTS.items()}


def vacuum_store(path: Path) -> tuple[int, int]:
    """Write a store's file anew, without the space that is free in it; return its size before and after.

    It needs as much space again while it does. A file that is damaged is left as it is.

    Args:
        path: The file; nobody has it open.

    Raises:
        StoreError: It is in use, no store, damaged, or cannot be written.
    """
    if not path.is_file():
        raise StoreFormatError(f"{path}: there is no such file")
    lock = StoreLock.acquire(path)
    try:
        with closing(connect(path, "rw")) as db:
            if not schema_version(db, path):
                raise StoreFormatError(f"{path} is empty")
            # Or the copy of it, as large as itself, would be made in memory.
            db.execute("PRAGMA temp_store = DEFAULT")
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(1)")]
            if found != ["ok"]:
                raise StoreCorruptError(f"{path} is damaged: {found[0]}")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            before = file_bytes(path)
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return before, file_bytes(path)
    except sqlite3.Error as exc:
        error = opening_error(exc, path)
        if error is None:
            raise
        raise error from exc
    finally:
        lock.release()


# --- export -----------------------------------------------------------------------------------------


def export_store(path: Path, key: bytes | None = None) -> Iterator[dict[str, JSONValue]]:
    """Yield all that is in a store as JSON objects, as it is at one moment; ``record`` says what each is.

    What was stored as JSON is there as JSON, and other bytes as ``{"base64": ...}``. Resume tokens are not in it, nor
    are their hashes; secrets never were.

    Args:
        path: The file.
        key: Its key, if it is encrypted.

    Raises:
        StoreError: It is no store, of an earlier version, damaged, or its key is another.
    """
    with _looking(path) as (db, mode, _, version):
        if version != VERSION:
            raise StoreFormatError(
                f"{path} has schema {version}, and this arcp-trio exports {VERSION}: serve it once, and it has that"
            )
        (canary,) = db.execute("SELECT canary FROM ownership").fetchone()
        cipher, _ = make_cipher(key, canary, path, new=False)
        with closing(Reader(path, cipher, Limits(), mode)) as reader:
            reader.db.execute("BEGIN")
            yield {"record": "store", "schema": version}
            for job in reader.running_jobs():
                yield from _export_job(reader, job)
            for job in _all(partial(reader.ended_jobs, outcomes=True)):
                yield from _export_job(reader, job)
            yield from _export_sessions(reader)
            for each in _all(reader.keys):
                yield {"record": "key", "principal": each.principal, "key": each.key, "job_id": each.job_id}
            for entry in reader.outstanding():
                fields = attrs.asdict(entry)
                yield {"record": "credential", **fields, "state": entry.state.value}


def _all(method: Callable[[Cursor | None, int], Page[_T]]) -> Iterator[_T]:
    cursor: Cursor | None = None
    while True:
        page = method(cursor, _PAGE)
        yield from page.items
        if page.next is None:
            return
        cursor = page.next


def _export_job(reader: Reader, job: StoredJob) -> Iterator[dict[str, JSONValue]]:
    yield {
        "record": "job",
        "job_id": job.job_id,
        "principal": job.principal,
        "agent": job.agent,
        "trace_id": job.trace_id,
        "parent_job_id": job.parent_job_id,
        "created_at": _time(job.created_at_ms),
        "owners": list(job.owners),
        "last_seq": job.last_seq,
        "status": job.status or "running",
        "ended_at": _time(job.ended_at_ms),
        "accepted": _content(job.accepted),
        "outcome": None if job.outcome is None else _content(job.outcome),
    }
    after, more = 0, True
    while more:
        history = reader.history(job.job_id, after, _PAGE)
        assert history is not None
        for event in history.events:
            after = event.job_seq
            yield {
                "record": "event",
                "job_id": job.job_id,
                "job_seq": event.job_seq,
                "feature": event.feature,
                "frame": _content(event.content),
            }
        more = history.more


def _export_sessions(reader: Reader) -> Iterator[dict[str, JSONValue]]:
    for session in _all(reader.sessions):
        yield {
            "record": "session",
            "session_id": session.session_id,
            "principal": session.principal,
            "opened_at": _time(session.opened_at_ms),
            "detail": _content(session.detail),
            "last_seq": session.last_seq,
            "acked": session.acked,
            "floor": session.floor,
            "waiting_since": _time(session.waiting_since_ms),
            "follows": list(session.follows),
        }
        after = session.floor
        while page := reader.window(session.session_id, after, _PAGE):
            for entry in page:
                line: dict[str, JSONValue] = {
                    "record": "entry",
                    "session_id": session.session_id,
                    "event_seq": entry.event_seq,
                    "kind": entry.kind.value,
                }
                if entry.job_id is not None:
                    # Its content stands with the job.
                    line |= {"job_id": entry.job_id, "job_seq": entry.job_seq}
                else:
                    line["frame"] = _content(entry.content)
                yield line
            if page[-1].kind is EntryKind.RIDER:
                break
            after = page[-1].event_seq


def _time(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else format_timestamp(milliseconds / 1000)


def _content(content: bytes) -> JSONValue:
    """Return what bytes say, where that is JSON: a value, or the tail of a frame, which begins in its middle."""
    try:
        return decode_json(b"{" + content[1:] if content[:1] == b"," else content)
    except ValueError:
        return {"base64": b64encode(content).decode()}
