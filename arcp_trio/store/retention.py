"""Deletes what a store no longer has to keep, a little with each transaction.

Theory of operation. An event is kept while the history of its job wants it, or the window of a session has it. Both
end by a number that rises (a *floor*), or at once (the job is evicted, the session has ended): the transaction in
which that happens writes the number and deletes nothing. What is behind it is deleted later, at most
``Limits.store_slice_rows`` rows and ``store_slice_bytes`` in a transaction: with the next commit where there is one,
so that it costs no sync of its own; else alone. How far that has come is in the file, and a store that is opened again
goes on there.

With nothing to delete nothing runs. Space that gets free is used again, and given back where it is much.
"""

from __future__ import annotations

import sqlite3
from itertools import islice

import attrs

from ..limits import Limits
from .plan import MAX_SEQ, Planner
from .schema import event_key

__all__ = ["Sweeper", "Swept"]

# A window that rises does so four times a second: it is worth a look when so many entries are behind it.
_WORTH = 256
# One page costs about what a row does.
_VACUUM_PAGES = 128
_FREE_SHARE = 4


@attrs.define
class Swept:
    """What a slice has done; true once its transaction is durable.

    Attributes:
        floors: Up to which number the spans of which session were deleted.
        sessions_done: The sessions with nothing more to delete.
        jobs_done: The jobs, likewise.
        jobs_found: Jobs to look at: a window has let them go.
        sessions_found: Sessions to look at: what they have let go is in the way of a job that was evicted.
        deleted: Whether any row was deleted.
        vacuumed: Whether space was looked for, and there is no more to give back.
    """

    floors: dict[int, int] = attrs.field(factory=dict)
    sessions_done: list[int] = attrs.field(factory=list)
    jobs_done: list[int] = attrs.field(factory=list)
    jobs_found: set[int] = attrs.field(factory=set)
    sessions_found: set[int] = attrs.field(factory=set)
    deleted: bool = False
    vacuumed: bool = False


class Sweeper:
    """Knows what is to be deleted, and deletes it in slices. In one thread at a time.

    Args:
        db: Connected for writing.
        limits: What bounds a slice.
    """

    def __init__(self, db: sqlite3.Connection, limits: Limits) -> None:
        self._db = db
        self._limits = limits
        # Dictionaries for their order: what came first goes first.
        self._sessions: dict[int, None] = {}
        self._jobs: dict[int, None] = {}
        self._swept: dict[int, int] = {}
        self._frees = True

    def load(self) -> None:
        """Find what was left to do when the store was closed."""
        self._sessions = dict.fromkeys(
            number for (number,) in self._db.execute("SELECT number FROM sessions WHERE ended = 1 OR floor > swept")
        )
        self._jobs = dict.fromkeys(
            number for (number,) in self._db.execute("SELECT number FROM jobs WHERE evicted = 1 OR floor > purged")
        )

    @property
    def has_work(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._sessions or self._jobs or self._frees)

    def note(self, plan: Planner) -> None:
        """Take note of what a transaction that is durable has let go."""
        for job in plan.jobs.values():
            if job.changed and (job.evicted or job.floor):
                self._jobs[job.number] = None
        for session in plan.sessions.values():
            if session.ended or session.floor - self._swept.get(session.number, 0) >= _WORTH:
                self._sessions[session.number] = None

    # --- a slice ------------------------------------------------------------------------------------

    def sweep(self) -> Swept:
        """Delete a slice, in the transaction that is open. :meth:`keep` follows when it is durable."""
        swept = Swept()
        left = self._limits.store_slice_rows
        for number in list(islice(self._sessions, max(left, 1))):
            left -= self._sweep_session(number, left, swept)
            if left <= 0:
                return swept
        for number in list(islice(self._jobs, left)):
            left -= self._purge_job(number, left, swept)
            if left <= 0:
                return swept
        if self._frees and not self._sessions and not self._jobs:
            swept.vacuumed = self._give_back()
        return swept

    def keep(self, swept: Swept) -> None:
        """Take note that a slice is durable."""
        for number in swept.sessions_done:
            self._sessions.pop(number, None)
        for number in swept.jobs_done:
            self._jobs.pop(number, None)
        for number, floor in swept.floors.items():
            if floor > MAX_SEQ:
                self._swept.pop(number, None)
            else:
                self._swept[number] = floor
        self._jobs.update(dict.fromkeys(swept.jobs_found))
        self._sessions.update(dict.fromkeys(swept.sessions_found))
        self._frees = (self._frees or swept.deleted) and not swept.vacuumed

    def _sweep_session(self, session: int, left: int, swept: Swept) -> int:
        """Delete what is before a session's window; return how many rows that was, and one."""
        db = self._db
        row = db.execute("SELECT floor, ended FROM sessions WHERE number = ?", (session,)).fetchone()
        if row is None:
            swept.sessions_done.append(session)
            return 1
        floor, ended = row
        # Behind the newest entry there may be riders.
        floor = MAX_SEQ + 1 if ended else floor
        rows = self._delete_spans(session, floor, left, swept)
        rows += self._delete_entries("own", "event_seq", session, floor, left - rows)
        rows += self._delete_entries("riders", "id", session, floor, left - rows)
        swept.deleted = swept.deleted or rows > 0
        if rows >= left:
            return rows + 1
        if ended:
            db.execute("DELETE FROM follows WHERE session = ?", (session,))
            db.execute("DELETE FROM sessions WHERE number = ?", (session,))
        else:
            self._trim_span(session, floor, swept)
            db.execute("UPDATE sessions SET swept = ? WHERE number = ?", (floor, session))
        swept.floors[session] = floor
        swept.sessions_done.append(session)
        return rows + 1

    def _delete_spans(self, session: int, floor: int, left: int, swept: Swept) -> int:
        rows, last = self._db.execute(
            "SELECT count(*), max(last) FROM"
            " (SELECT last FROM spans WHERE session = ? AND first <= ? AND last <= ? ORDER BY first LIMIT ?)",
            (session, floor, floor, left),
        ).fetchone()
        if rows:
            swept.jobs_found.update(
                job
                for (job,) in self._db.execute(
                    "SELECT DISTINCT job FROM spans WHERE session = ? AND first <= ?", (session, last)
                )
            )
            self._db.execute("DELETE FROM spans WHERE session = ? AND first <= ?", (session, last))
            swept.floors[session] = last
        return int(rows)

    def _delete_entries(self, table: str, key: str, session: int, floor: int, left: int) -> int:
        if left <= 0:
            return 0
        rows, last = self._db.execute(
            f"SELECT count(*), max({key}) FROM (SELECT {key} FROM {table} WHERE session = ? AND event_seq <= ?"  # noqa: S608
            f" ORDER BY event_seq, {key} LIMIT ?)",
            (session, floor, left),
        ).fetchone()
        if rows:
            self._db.execute(
                f"DELETE FROM {table} WHERE session = ? AND event_seq <= ? AND {key} <= ?",  # noqa: S608
                (session, floor, last),
            )
        return int(rows)

    def _trim_span(self, session: int, floor: int, swept: Swept) -> None:
        """Cut off what is before the window from the span that reaches into it: it holds what it is of."""
        row = self._db.execute(
            "SELECT first, job FROM spans WHERE session = ? AND first <= ? AND last > ?", (session, floor, floor)
        ).fetchone()
        if row is not None:
            first, job = row
            self._db.execute(
                "UPDATE spans SET first = ?, job_first = job_first + ? WHERE session = ? AND first = ?",
                (floor + 1, floor + 1 - first, session, first),
            )
            swept.jobs_found.add(job)

    def _purge_job(self, job: int, left: int, swept: Swept) -> int:
        """Delete what nobody has of a job any more; return how many rows that was, and one."""
        db = self._db
        row = db.execute(
            "SELECT job_id, floor, purged, last_seq, evicted, (SELECT min(job_first) FROM spans WHERE job = number)"
            " FROM jobs WHERE number = ?",
            (job,),
        ).fetchone()
        if row is None:
            swept.jobs_done.append(job)
            return 1
        job_id, floor, purged, last_seq, evicted, wanted = row
        upto = last_seq if evicted else floor
        if wanted is not None:
            upto = min(upto, wanted - 1)
        rows = 0
        if upto > purged:
            # Where the bytes of a slice are reached, behind the first event.
            rows, reached = db.execute(
                "SELECT count(*), max(id) FROM (SELECT id, sum(size) OVER (ORDER BY id) - size AS before FROM"
                " (SELECT id, length(content) AS size FROM events WHERE id > ? AND id <= ? ORDER BY id LIMIT ?))"
                " WHERE before < ?",
                (event_key(job, purged), event_key(job, upto), left, max(1, self._limits.store_slice_bytes)),
            ).fetchone()
            if rows:
                db.execute("DELETE FROM events WHERE id > ? AND id <= ?", (event_key(job, purged), reached))
                swept.deleted = True
                purged = reached - event_key(job, 0)
            if not rows or (evicted and purged == last_seq - 1):
                # The terminal event has no row here.
                purged = upto
            db.execute("UPDATE jobs SET purged = ? WHERE number = ?", (purged, job))
        if purged >= upto:
            swept.jobs_done.append(job)
            if evicted and wanted is None:
                for table in ("outcomes", "owners", "follows"):
                    db.execute(f"DELETE FROM {table} WHERE job = ?", (job,))  # noqa: S608
                db.execute("DELETE FROM keys WHERE job_id = ?", (job_id,))
                db.execute("DELETE FROM jobs WHERE number = ?", (job,))
                swept.deleted = True
            elif evicted:
                swept.sessions_found.update(
                    number
                    for (number,) in db.execute(
                        "SELECT DISTINCT session FROM spans JOIN sessions ON number = session"
                        " WHERE job = ? AND floor > swept",
                        (job,),
                    )
                )
        return int(rows) + 1

    def _give_back(self) -> bool:
        """Give space back, if there is much; say whether there is no more to do."""
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (page_bytes,) = self._db.execute("PRAGMA page_size").fetchone()
        if free * _FREE_SHARE <= pages or free * page_bytes <= self._limits.store_free_bytes:
            return True
        # A row for each page that was given back; none is given back before its row was taken.
        self._db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        return False
