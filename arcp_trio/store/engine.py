"""The half of the SQLite store that writes: synchronous, in one thread at a time, without Trio.

Theory of operation. :meth:`Engine.commit` makes one transaction of many batches. What they come to is planned while the
transaction is open (:mod:`arcp_trio.store.plan`), written with few statements, and remembered only when it is durable:
what fails leaves nothing, in the file or here, and the same batches can be tried again.

Few statements, because each step of one lets go of the interpreter's lock, and beside a busy loop getting it back takes
a turn of that loop: with a step for each row a commit of 1,000 events takes 25 times as long.

With the batches goes the number of the newest, the *position*. Where it is not known whether a commit that failed was
one all the same, a retry finds its batches there and writes nothing twice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from ..limits import Limits
from ..records import LedgerState
from .base import Ticket
from .database import Database
from .errors import BatchRefusedError, ConflictError, FencedError, StoreCorruptError
from .faults import Hooks, Trouble, TroubleError, trouble_of
from .files import file_bytes, wal_path
from .plan import MAX_SEQ, JobMark, Planner, SessionMark
from .retention import Sweeper, Swept
from .schema import MAX_NUMBER, event_key
from .stored import StoredKey

__all__ = ["Engine"]

# How many rows one statement inserts; what is left over goes with the next smaller one.
_ROWS = (256, 64, 16, 4, 1)

# Where no event is left of a job, its column has the number: it is written with every floor.
_RUNNING = """
SELECT number, job_id, floor,
    max(last_seq, coalesce((SELECT max(id) FROM events WHERE id BETWEEN number * ? AND number * ? + ?), 0) & ?),
    EXISTS (SELECT 1 FROM outcomes WHERE job = number)
FROM jobs WHERE status IS NULL
"""
_ENDED = """
SELECT number, job_id, last_seq, floor, status, ended_at_ms, evicted FROM jobs WHERE job_id = ?
"""
_SESSIONS = """
SELECT number, session_id, acked, floor, waiting_since_ms,
    coalesce((SELECT max(event_seq) FROM own WHERE session = number), 0)
FROM sessions WHERE ended = 0
"""
_LAST_SPAN = "SELECT first, last, job, job_first FROM spans WHERE session = ? ORDER BY first DESC LIMIT 1"


@lru_cache(256)
def _insertion(into: str, width: int, rows: int, tail: str) -> str:
    """Return the statement that inserts so many rows of so many values."""
    row = f"({', '.join('?' * width)})"
    return f"{into} VALUES {', '.join([row] * rows)} {tail}"


class _BatchRefused(Exception):  # noqa: N818  # how a plan is left, and no error of anybody's
    def __init__(self, number: int, refusal: BatchRefusedError) -> None:
        super().__init__()
        self.number = number
        self.refusal = refusal


class Engine:
    """Writes batches into a file. All methods but the properties belong into one thread at a time.

    Args:
        database: The file, open for writing.
        limits: What bounds a slice of what is deleted.
        hooks: Is told of the crash points.

    Attributes:
        has_work: Whether there is something to delete, for a transaction without batches.
        wal_bytes: The size of the write-ahead log after the newest commit.
    """

    def __init__(self, database: Database, limits: Limits, hooks: Hooks | None = None) -> None:
        self._database = database
        self._db = database.db
        self._seal = database.cipher.seal
        self._wal = wal_path(database.path)
        self._limits = limits
        self._hooks = hooks
        self._sweeper = Sweeper(self._db, limits)
        self._running: dict[str, JobMark] = {}
        self._sessions: dict[str, SessionMark] = {}
        self._session_ids: dict[int, str] = {}
        self._last_job = self._last_session = 0
        # Whether what is remembered may not be what the file has.
        self._doubtful = False
        # Of the batches that are being committed, those that were refused.
        self._refused: dict[int, BatchRefusedError] = {}
        self.wal_bytes = 0
        self._load()
        self.has_work = self._sweeper.has_work
        self._reach("opened")

    def _reach(self, point: str) -> None:
        if self._hooks is not None:
            self._hooks.reach(point)

    def _load(self) -> None:
        """Read the marks of what goes on."""
        db = self._db
        self._running = {
            job_id: JobMark(job_id=job_id, number=number, last_seq=last_seq, floor=floor, decided=bool(decided))
            for number, job_id, floor, last_seq, decided in db.execute(
                _RUNNING, (event_key(1, 0), event_key(1, 0), MAX_SEQ, MAX_SEQ)
            )
        }
        self._sessions = {}
        for number, session_id, acked, floor, waiting_since_ms, last_own in db.execute(_SESSIONS).fetchall():
            first, last, job, job_first = db.execute(_LAST_SPAN, (number,)).fetchone() or (0, 0, 0, 0)
            last_seq = max(floor, last, last_own)
            self._sessions[session_id] = SessionMark(
                session_id=session_id,
                number=number,
                last_seq=last_seq,
                acked=acked,
                floor=floor,
                waiting_since_ms=waiting_since_ms,
                span=(first, job, job_first) if 0 < last == last_seq else None,
            )
        self._session_ids = {mark.number: session_id for session_id, mark in self._sessions.items()}
        (self._last_job,) = db.execute("SELECT coalesce(max(number), 0) FROM jobs").fetchone()
        (self._last_session,) = db.execute("SELECT coalesce(max(number), 0) FROM sessions").fetchone()
        self._sweeper.load()
        self._doubtful = False

    # --- what a plan asks for -----------------------------------------------------------------------

    def find_job(self, job_id: str) -> JobMark | None:
        """Return a job's mark; for a plan."""
        mark = self._running.get(job_id)
        if mark is not None:
            return mark
        row = self._db.execute(_ENDED, (job_id,)).fetchone()
        if row is None:
            return None
        number, job_id, last_seq, floor, status, ended_at_ms, evicted = row
        return JobMark(
            job_id=job_id,
            number=number,
            last_seq=last_seq,
            floor=floor,
            decided=True,
            status=status,
            ended_at_ms=ended_at_ms,
            evicted=bool(evicted),
        )

    def find_session(self, session_id: str) -> SessionMark | None:
        """Return a session's mark; for a plan."""
        return self._sessions.get(session_id)

    def find_key(self, principal: str, key: str) -> StoredKey | None:
        """Return what a key stands for; for a plan."""
        row = self._db.execute(
            "SELECT digest, job_id FROM keys WHERE principal = ? AND key = ?", (principal, key)
        ).fetchone()
        if row is None:
            return None
        digest, job_id = row
        digest = self._database.cipher.open(digest, "key", principal, key)
        return StoredKey(principal=principal, key=key, digest=digest, job_id=job_id)

    def new_job_number(self) -> int:
        """Return a number that no job has; for a plan."""
        number = self._last_job + 1
        if number > MAX_NUMBER:
            # Once around, after 134 million jobs: those of jobs that have gone are free.
            (number,) = self._db.execute(
                "SELECT min(number) + 1 FROM (SELECT 0 AS number UNION ALL SELECT number FROM jobs) AS taken"
                " WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.number = taken.number + 1)"
            ).fetchone()
        else:
            self._last_job = number
        return int(number)

    def new_session_number(self) -> int:
        """Return a number that no session has; for a plan."""
        self._last_session += 1
        return self._last_session

    # --- writing ------------------------------------------------------------------------------------

    def take_ownership(self) -> int:
        """Begin an epoch and return it; drop keys without a job.

        Raises:
            TroubleError: It cannot be written just now.
            StoreCorruptError: The file is damaged.
        """
        try:
            self._begin()
            self._db.execute("UPDATE ownership SET epoch = epoch + 1, position = 0")
            self._db.execute("DELETE FROM keys WHERE job_id NOT IN (SELECT job_id FROM jobs)")
            (epoch,) = self._db.execute("SELECT epoch FROM ownership").fetchone()
            self._db.execute("COMMIT")
        except Exception as exc:
            self._give_up()
            self._raise_trouble(exc)
            raise
        return int(epoch)

    def commit(self, group: Sequence[Ticket]) -> dict[int, BatchRefusedError]:
        """Write batches in one transaction, and with it a slice of what is to be deleted.

        Args:
            group: The oldest that wait, in order. After a :exc:`TroubleError` the same ones come again, first.

        Returns:
            Those that were refused, by their numbers. All others are durable.

        Raises:
            TroubleError: Nothing was written, or it is not known whether it was; trying again sorts it out.
            StoreCorruptError: The file is damaged.
        """
        while True:
            try:
                self._transact([ticket for ticket in group if ticket.number not in self._refused])
            except _BatchRefused as exc:
                # What it did to the plan cannot be told apart: another plan, without it.
                self._refused[exc.number] = exc.refusal
            except Exception as exc:
                self._raise_trouble(exc)
                if len(group) == 1 and _is_content(exc):
                    self._refused[group[0].number] = ConflictError(f"it cannot be written: {exc}")
                elif group and _is_content(exc):
                    # One of them is not as it should be, which a plan has not seen: the others must not suffer.
                    self._commit_each(group)
                    break
                else:
                    raise
            else:
                break
        self.has_work = self._sweeper.has_work
        self.wal_bytes = file_bytes(self._wal)
        refused, self._refused = self._refused, {}
        return refused

    def _commit_each(self, group: Sequence[Ticket]) -> None:
        for ticket in group:
            if ticket.number not in self._refused:
                refused, self._refused = self._refused, {}
                try:
                    refused |= self.commit([ticket])
                finally:
                    self._refused = refused

    def _raise_trouble(self, error: Exception) -> None:
        """Raise what follows from an error that is not of the batches' own."""
        if isinstance(error, (TroubleError, StoreCorruptError)):
            raise error
        trouble = trouble_of(error)
        if trouble is None or trouble[0] is Trouble.CONTENT:
            return
        if trouble[0] is Trouble.DAMAGE:
            raise StoreCorruptError(f"{self._database.path} is damaged: {error}") from error
        raise TroubleError(trouble[1]) from error

    def _begin(self) -> None:
        if self._db.in_transaction:
            # A rollback has failed as well.
            self._db.execute("ROLLBACK")
        self._db.execute("BEGIN IMMEDIATE")

    def _give_up(self) -> None:
        with suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _transact(self, tickets: Sequence[Ticket]) -> None:
        try:
            self._begin()
            self._reach("begun")
            if self._doubtful:
                self._load()
            plan = self._plan(tickets)
            if plan is not None:
                self._write(plan)
            self._reach("written")
            swept = self._sweeper.sweep() if self._sweeper.has_work else None
            self._reach("swept")
            self._doubtful = True
            self._db.execute("COMMIT")
            self._reach("committed")
        except BaseException:
            self._give_up()
            raise
        self._keep(plan, swept)
        self._doubtful = False

    def _plan(self, tickets: Sequence[Ticket]) -> Planner | None:
        """Plan what is not there yet of the batches that this epoch may write; ``None`` for none."""
        if not tickets:
            return None
        epoch, position = self._db.execute("SELECT epoch, position FROM ownership").fetchone()
        plan: Planner | None = None
        for ticket in tickets:
            batch = ticket.batch
            if batch.epoch != epoch or not epoch:
                self._refused[ticket.number] = FencedError(f"epoch {batch.epoch} is over: this is {epoch}")
            elif ticket.number > position:
                plan = plan or Planner(self)
                try:
                    plan.add(batch.writes)
                except BatchRefusedError as exc:
                    raise _BatchRefused(ticket.number, exc) from None
        if plan is not None:
            plan.finish()
            self._db.execute("UPDATE ownership SET position = ?", (tickets[-1].number,))
        return plan

    def _insert(self, into: str, width: int, values: list[Any], tail: str = "") -> None:
        """Insert rows, given one behind the other, with as few statements as there are sizes for."""
        start = 0
        for rows in _ROWS:
            size = rows * width
            while len(values) - start >= size:
                self._db.execute(_insertion(into, width, rows, tail), values[start : start + size])
                start += size

    def _write(self, plan: Planner) -> None:
        seal, values = self._seal, list[Any]()
        for number, job in plan.accepted:
            values += (number, job.job_id, job.principal, job.agent, job.trace_id, job.created_at_ms)
            values += (job.parent_job_id, seal(job.accepted, "accepted", job.job_id))
        into = "INSERT INTO jobs (number, job_id, principal, agent, trace_id, created_at_ms, parent_job_id, accepted)"
        self._insert(into, 8, values)
        self._insert("INSERT OR IGNORE INTO owners", 2, [value for owner in plan.owners for value in owner])
        values = []
        for mark, job_seq, feature, content in plan.events:
            values += (event_key(mark.number, job_seq), feature, seal(content, "event", mark.job_id, job_seq))
        self._insert("INSERT INTO events", 3, values)
        values = []
        for mark, outcome in plan.outcomes:
            values += (mark.number, seal(outcome, "outcome", mark.job_id))
        self._insert("INSERT INTO outcomes", 2, values)
        self._write_sessions(plan)
        self._write_changes(plan)

    def _write_sessions(self, plan: Planner) -> None:
        seal, values = self._seal, list[Any]()
        for number, session in plan.opened:
            values += (number, session.session_id, session.principal, session.opened_at_ms)
            values.append(seal(session.detail, "detail", session.session_id))
        into = "INSERT INTO sessions (number, session_id, principal, opened_at_ms, detail)"
        self._insert(into, 5, values)
        tail = "ON CONFLICT (session, first) DO UPDATE SET last = excluded.last"
        self._insert("INSERT INTO spans", 5, [value for span in plan.spans for value in span], tail)
        values = []
        for mark, event_seq, content in plan.own:
            values += (mark.number, event_seq, seal(content, "own", mark.session_id, event_seq))
        self._insert("INSERT INTO own", 3, values)
        values = []
        for mark, event_seq, content in plan.riders:
            values += (mark.number, event_seq, seal(content, "rider", mark.session_id, event_seq))
        self._insert("INSERT INTO riders (session, event_seq, content)", 3, values)
        followed = [number for place, follows in plan.follows.items() if follows for number in place]
        self._insert("INSERT OR IGNORE INTO follows", 2, followed)
        for place, follows in plan.follows.items():
            if not follows:
                self._db.execute("DELETE FROM follows WHERE session = ? AND job = ?", place)

    def _write_changes(self, plan: Planner) -> None:
        execute = self._db.execute
        for job in plan.jobs.values():
            if job.changed:
                execute(
                    "UPDATE jobs SET last_seq = ?, floor = ?, status = ?, ended_at_ms = ?, evicted = ?"
                    " WHERE number = ?",
                    (job.last_seq, job.floor, job.status, job.ended_at_ms, job.evicted, job.number),
                )
                if job.status is not None:
                    execute("DELETE FROM follows WHERE job = ?", (job.number,))
                if job.evicted:
                    execute("DELETE FROM keys WHERE job_id = ?", (job.job_id,))
        for session in plan.sessions.values():
            if session.changed:
                execute(
                    "UPDATE sessions SET acked = ?, floor = ?, waiting_since_ms = ?, ended = ? WHERE number = ?",
                    (session.acked, session.floor, session.waiting_since_ms, session.ended, session.number),
                )
            if session.tokens is not None:
                tokens = " ".join(token.hex() for token in session.tokens)
                execute("UPDATE sessions SET tokens = ? WHERE number = ?", (tokens, session.number))
        for place, key in plan.keys.items():
            if key is None:
                execute("DELETE FROM keys WHERE principal = ? AND key = ?", place)
            else:
                digest = self._seal(key.digest, "key", *place)
                execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?)", (*place, digest, key.job_id))
        for entry in plan.ledger.values():
            if entry.state is LedgerState.REVOKED:
                execute("DELETE FROM ledger WHERE entry_id = ?", (entry.entry_id,))
            else:
                handle = None if entry.handle is None else self._seal(entry.handle.encode(), "handle", entry.entry_id)
                execute(
                    "INSERT OR REPLACE INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        entry.entry_id,
                        entry.job_id,
                        entry.principal,
                        entry.state.value,
                        handle,
                        entry.attempts,
                        entry.problem,
                        entry.noted_at_ms,
                    ),
                )

    def _keep(self, plan: Planner | None, swept: Swept | None) -> None:
        """Remember what is durable now."""
        if plan is not None:
            for job in plan.jobs.values():
                if job.status is None:
                    self._running[job.job_id] = job
                else:
                    self._running.pop(job.job_id, None)
            for session in plan.sessions.values():
                if session.ended:
                    self._sessions.pop(session.session_id, None)
                    self._session_ids.pop(session.number, None)
                else:
                    self._sessions[session.session_id] = session
                    self._session_ids[session.number] = session.session_id
            self._sweeper.note(plan)
        if swept is not None:
            for number, floor in swept.floors.items():
                session_id = self._session_ids.get(number)
                if session_id is not None:
                    _cut(self._sessions[session_id], floor)
            self._sweeper.keep(swept)

    def empty_wal(self) -> None:
        """Bring what is in the write-ahead log into the file and cut it off, unless a reader is in the way."""
        with suppress(sqlite3.Error):
            # Whoever reads is soon done, and the next commit tries again: the writer does not wait for it.
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._db.execute("PRAGMA busy_timeout = 1000")
        self.wal_bytes = file_bytes(self._wal)

    def close(self) -> None:
        """Close the file, with an empty log. Nothing else may be called any more."""
        self._give_up()
        self.empty_wal()
        try:
            self._reach("closing")
        finally:
            self._database.close()


def _is_content(error: Exception) -> bool:
    trouble = trouble_of(error)
    return trouble is not None and trouble[0] is Trouble.CONTENT


def _cut(session: SessionMark, floor: int) -> None:
    """Let the run that a session's next number may go on with begin behind what was deleted."""
    if session.span is not None and session.span[0] <= floor:
        first, job, job_first = session.span
        gone = floor + 1 - first
        session.span = (floor + 1, job, job_first + gone) if floor < session.last_seq else None
