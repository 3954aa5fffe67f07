"""What a store's file looks like, and how one of an earlier version becomes one of this.

Jobs and sessions have *numbers* of the file's own, so that what there are many of is small: a job's events have as
their key its number and theirs in one integer, which keeps those of a job together and makes a range of them one range
of the table; a run of a session's numbers is one row of ``spans``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from .errors import StoreFormatError
from .plan import MAX_SEQ

__all__ = ["MAX_NUMBER", "VERSION", "event_key", "prepare", "schema_version"]

_APPLICATION_ID = 0x41524350  # "ARCP"
_SEQ_BITS = MAX_SEQ.bit_length()
MAX_NUMBER = 2 ** (63 - _SEQ_BITS) - 1
"""The largest number of a job. Those of jobs that have gone are given again."""
# Upserts, window functions, one table's quick_check, enough variables for 256 rows in a statement.
_OLDEST_SQLITE = (3, 33, 0)

_FIRST = """
CREATE TABLE ownership (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,     -- whose writes are taken
    position INTEGER NOT NULL,  -- the newest batch of that epoch which is here
    canary BLOB                 -- sealed with the key, where there is one
);
INSERT INTO ownership VALUES (1, 0, 0, NULL);
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    principal TEXT NOT NULL,
    agent TEXT NOT NULL,
    trace_id TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    parent_job_id TEXT,
    accepted BLOB NOT NULL,
    last_seq INTEGER NOT NULL DEFAULT 0,  -- of one that runs, at least: its events say it
    floor INTEGER NOT NULL DEFAULT 0,
    status TEXT,                          -- NULL while it runs
    ended_at_ms INTEGER,
    evicted INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_running ON jobs (number) WHERE status IS NULL;
CREATE INDEX jobs_ended ON jobs (ended_at_ms, number) WHERE status IS NOT NULL AND evicted = 0;
CREATE TABLE owners (job INTEGER, session_id TEXT, PRIMARY KEY (job, session_id)) WITHOUT ROWID;
CREATE TABLE outcomes (job INTEGER PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,  -- the job's number, then the event's
    feature TEXT,
    content BLOB NOT NULL
);
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY,
    session_id TEXT NOT NULL UNIQUE,
    principal TEXT NOT NULL,
    opened_at_ms INTEGER NOT NULL,
    detail BLOB NOT NULL,
    tokens TEXT NOT NULL DEFAULT '',  -- the hashes in hexadecimal, with blanks between
    acked INTEGER NOT NULL DEFAULT 0,
    floor INTEGER NOT NULL DEFAULT 0,
    waiting_since_ms INTEGER,
    ended INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE spans (
    session INTEGER,
    first INTEGER,
    last INTEGER NOT NULL,
    job INTEGER NOT NULL,
    job_first INTEGER NOT NULL,
    PRIMARY KEY (session, first)
) WITHOUT ROWID;
CREATE INDEX spans_of_job ON spans (job, job_first);
CREATE TABLE own (
    session INTEGER, event_seq INTEGER, content BLOB NOT NULL, PRIMARY KEY (session, event_seq)
) WITHOUT ROWID;
CREATE TABLE riders (
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    event_seq INTEGER NOT NULL,  -- of the entry behind it
    content BLOB NOT NULL
);
CREATE INDEX riders_of_session ON riders (session, event_seq, id);
CREATE TABLE follows (session INTEGER, job INTEGER, PRIMARY KEY (session, job)) WITHOUT ROWID;
CREATE INDEX follows_job ON follows (job);
CREATE TABLE keys (
    principal TEXT, key TEXT, digest BLOB NOT NULL, job_id TEXT NOT NULL, PRIMARY KEY (principal, key)
) WITHOUT ROWID;
CREATE INDEX keys_of_job ON keys (job_id);
CREATE TABLE ledger (
    entry_id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL,
    principal TEXT NOT NULL,
    state TEXT NOT NULL,
    handle BLOB,
    attempts INTEGER NOT NULL,
    problem TEXT NOT NULL,
    noted_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
"""

# How far the deletion of what is no longer kept has come: it goes on behind that, and finds its work without a scan.
_SECOND = """
ALTER TABLE jobs ADD COLUMN purged INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN swept INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_to_purge ON jobs (number) WHERE evicted = 1 OR floor > purged;
CREATE INDEX sessions_to_sweep ON sessions (number) WHERE ended = 1 OR floor > swept;
"""

_STEPS = (_FIRST, _SECOND)
VERSION = len(_STEPS)
"""The version of the schema; a file has its own in ``user_version``."""


def event_key(job: int, job_seq: int) -> int:
    """Return the key of an event: in the order of jobs, and of a job's events."""
    return job << _SEQ_BITS | job_seq


def schema_version(db: sqlite3.Connection, path: Path) -> int:
    """Return the version of a file's schema; 0 for an empty file.

    Raises:
        StoreFormatError: It is not a store, or of a later version; or this SQLite is too old.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        oldest = ".".join(map(str, _OLDEST_SQLITE))
        raise StoreFormatError(f"a store needs SQLite {oldest} or newer; this is {sqlite3.sqlite_version}")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != _APPLICATION_ID and (tables or version or application):
        raise StoreFormatError(f"{path} is a database of something else, not a store of arcp-trio")
    if version > VERSION:
        raise StoreFormatError(
            f"{path} was written by a later version of arcp-trio: its schema is {version}, this version knows {VERSION}"
        )
    return int(version)


def prepare(db: sqlite3.Connection, version: int, migrated: Callable[[], None]) -> None:
    """Bring a file from a version of the schema to this one, a new one too: each step is there whole or not at all.

    Args:
        db: Connected for writing, not in a transaction; where this raises it is to be closed, which takes a step back.
        version: The file's.
        migrated: Is told of each step before it is committed.
    """
    for number, step in enumerate(_STEPS[version:], start=version + 1):
        db.execute("BEGIN IMMEDIATE")
        for statement in step.split(";\n"):
            if statement.strip():
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {number}")
        migrated()
        db.execute("COMMIT")
