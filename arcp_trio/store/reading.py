"""The half of the SQLite store that reads: synchronous, over connections of its own that cannot write.

A reader sees the file as it was when its statement began, whatever is written meanwhile, and holds up nobody. Pages are
bounded, so no reader keeps the write-ahead log from being emptied for long.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from heapq import merge
from pathlib import Path
from typing import Any

from ..limits import Limits
from ..records import LedgerEntry, LedgerState
from .cipher import Cipher
from .database import connect
from .errors import StoreCorruptError
from .plan import MAX_SEQ
from .schema import event_key
from .stored import (
    Cursor,
    EntryKind,
    History,
    HistoryEvent,
    Page,
    StoredJob,
    StoredKey,
    StoredSession,
    WindowEntry,
)

__all__ = ["Reader"]

_JOB = """
SELECT number, job_id, principal, agent, trace_id, created_at_ms, accepted, parent_job_id,
    (SELECT group_concat(session_id, ' ') FROM owners WHERE job = number),
    (SELECT content FROM outcomes WHERE job = number AND ?),
    max(last_seq, coalesce((SELECT max(id) FROM events WHERE id BETWEEN number * ? AND number * ? + ?), 0) & ?),
    floor, status, ended_at_ms
FROM jobs
"""
_NUMBER = (event_key(1, 0), event_key(1, 0), MAX_SEQ, MAX_SEQ)
_SESSION = """
SELECT number, session_id, principal, opened_at_ms, detail, tokens, acked, floor, waiting_since_ms,
    max(
        floor,
        coalesce((SELECT last FROM spans WHERE session = number ORDER BY first DESC LIMIT 1), 0),
        coalesce((SELECT max(event_seq) FROM own WHERE session = number), 0)
    ),
    (SELECT group_concat(job_id, ' ') FROM follows JOIN jobs ON jobs.number = job WHERE session = sessions.number)
FROM sessions WHERE ended = 0 AND number > ? ORDER BY number LIMIT ?
"""
# A span's events, and the terminal event that may be its last.
_SPANS = """
SELECT first, last, job, job_first, job_id, trace_id, status, last_seq, ended_at_ms
FROM spans JOIN jobs ON number = job WHERE session = ? AND last > ? ORDER BY first
"""


class Reader:
    """Reads a store. One thread at a time.

    Args:
        path: The file.
        cipher: What it is read with.
        limits: What bounds a page.
        mode: As :func:`~arcp_trio.store.database.connect` takes it.
    """

    def __init__(self, path: Path, cipher: Cipher, limits: Limits, mode: str = "ro") -> None:
        self._db = connect(path, mode)
        self._open = cipher.open
        self._page_bytes = limits.store_page_bytes

    @property
    def db(self) -> sqlite3.Connection:
        """The connection."""
        return self._db

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    # --- jobs ---------------------------------------------------------------------------------------

    def _job(self, row: tuple[Any, ...]) -> StoredJob:
        (_, job_id, principal, agent, trace_id, created_at_ms, accepted, parent_job_id, *rest) = row
        owners, outcome, last_seq, floor, status, ended_at_ms = rest
        return StoredJob(
            job_id=job_id,
            principal=principal,
            agent=agent,
            trace_id=trace_id,
            created_at_ms=created_at_ms,
            accepted=self._open(accepted, "accepted", job_id),
            parent_job_id=parent_job_id,
            owners=_words(owners),
            last_seq=last_seq,
            history_floor=floor,
            outcome=None if outcome is None else self._open(outcome, "outcome", job_id),
            status=status,
            ended_at_ms=ended_at_ms,
        )

    def running_jobs(self) -> list[StoredJob]:
        """Return the jobs that have not ended."""
        return [
            self._job(row) for row in self._db.execute(f"{_JOB} WHERE status IS NULL ORDER BY job_id", (1, *_NUMBER))
        ]

    def ended_jobs(self, after: Cursor | None, limit: int, *, outcomes: bool = False) -> Page[StoredJob]:
        """Return a page of those that have."""
        rows = self._db.execute(
            f"{_JOB} WHERE status IS NOT NULL AND evicted = 0 AND (ended_at_ms, number) > (?, ?)"
            " ORDER BY ended_at_ms, number LIMIT ?",
            (outcomes, *_NUMBER, *(after or (-1, 0)), limit + 1),
        )
        jobs: list[StoredJob] = []
        last: Cursor | None = None
        size = 0
        for row in rows:
            job = self._job(row)
            size += len(job.outcome or b"")
            if len(jobs) == limit or (jobs and size > self._page_bytes):
                return Page(jobs, last)
            jobs.append(job)
            last = job.ended_at_ms, row[0]
        return Page(jobs, None)

    def outcome(self, job_id: str) -> bytes | None:
        """Return a job's outcome."""
        row = self._db.execute(
            "SELECT content FROM outcomes JOIN jobs ON job = number WHERE job_id = ? AND evicted = 0", (job_id,)
        ).fetchone()
        return None if row is None else self._open(row[0], "outcome", job_id)

    def history(self, job_id: str, after: int, limit: int) -> History | None:
        """Return a page of what a job has said."""
        row = self._db.execute("SELECT number, floor FROM jobs WHERE job_id = ? AND evicted = 0", (job_id,)).fetchone()
        if row is None:
            return None
        number, floor = row
        events: list[HistoryEvent] = []
        size, more = 0, False
        rows = self._db.execute(
            "SELECT id, feature, content FROM events WHERE id > ? AND id <= ? ORDER BY id LIMIT ?",
            (event_key(number, max(after, floor)), event_key(number, MAX_SEQ), limit + 1),
        )
        for key, feature, content in rows:
            job_seq = key - event_key(number, 0)
            text = self._open(content, "event", job_id, job_seq)
            size += len(text)
            if len(events) == limit or (events and size > self._page_bytes):
                more = True
                break
            events.append(HistoryEvent(job_seq=job_seq, content=text, feature=feature))
        return History(events=tuple(events), first_seq=floor + 1, more=more)

    # --- sessions -----------------------------------------------------------------------------------

    def sessions(self, after: Cursor | None, limit: int) -> Page[StoredSession]:
        """Return a page of the sessions."""
        rows = self._db.execute(_SESSION, (after[0] if after else 0, limit + 1)).fetchall()
        items = [
            StoredSession(
                session_id=session_id,
                principal=principal,
                opened_at_ms=opened_at_ms,
                detail=self._open(detail, "detail", session_id),
                token_hashes=tuple(map(bytes.fromhex, tokens.split())),
                last_seq=last_seq,
                acked=acked,
                floor=floor,
                waiting_since_ms=waiting_since_ms,
                follows=_words(follows),
            )
            for (
                _,
                session_id,
                principal,
                opened_at_ms,
                detail,
                tokens,
                acked,
                floor,
                waiting_since_ms,
                last_seq,
                follows,
            ) in rows[:limit]
        ]
        return Page(items, (rows[limit - 1][0], 0) if len(rows) > limit else None)

    def window(self, session_id: str, after: int, limit: int) -> list[WindowEntry]:
        """Return a page of a session's window."""
        # One state of the file for all statements: a span must not lose its events between two of them. Not a
        # transaction of its own: whoever reads everything has one around it.
        self._db.execute("SAVEPOINT page")
        try:
            return self._window(session_id, after, limit)
        finally:
            self._db.execute("RELEASE page")

    def _window(self, session_id: str, after: int, limit: int) -> list[WindowEntry]:
        row = self._db.execute(
            "SELECT number, floor FROM sessions WHERE session_id = ? AND ended = 0", (session_id,)
        ).fetchone()
        if row is None:
            return []
        number, floor = row
        after = max(after, floor)
        page: list[WindowEntry] = []
        size, upto = 0, MAX_SEQ + 1
        numbered = merge(
            self._spanned(number, after), self._own(session_id, number, after), key=lambda entry: entry.event_seq
        )
        for entry in numbered:
            size += len(entry.content)
            if len(page) == limit or (page and size > self._page_bytes):
                upto = page[-1].event_seq
                break
            page.append(entry)
        riders = [
            WindowEntry(
                kind=EntryKind.RIDER,
                event_seq=event_seq,
                content=self._open(content, "rider", session_id, event_seq),
            )
            for event_seq, content in self._db.execute(
                "SELECT event_seq, content FROM riders WHERE session = ? AND event_seq > ? AND event_seq <= ?"
                " ORDER BY event_seq, id",
                (number, after, upto),
            )
        ]
        # Of equal numbers a rider goes first: that is what it is.
        return list(merge(riders, page, key=lambda entry: entry.event_seq))

    def _own(self, session_id: str, number: int, after: int) -> Iterator[WindowEntry]:
        for event_seq, content in self._db.execute(
            "SELECT event_seq, content FROM own WHERE session = ? AND event_seq > ? ORDER BY event_seq", (number, after)
        ):
            text = self._open(content, "own", session_id, event_seq)
            yield WindowEntry(kind=EntryKind.OWN, event_seq=event_seq, content=text)

    def _spanned(self, number: int, after: int) -> Iterator[WindowEntry]:
        """Yield the events of a session that are a job's."""
        for first, last, *job in self._db.execute(_SPANS, (number, after)):
            number, job_first, job_id, trace_id, status, last_seq, ended_at_ms = job
            job_seq, offset = job_first + max(after + 1, first) - first, first - job_first
            job_last = last - offset
            terminal = status is not None and job_last == last_seq
            for key, content in self._db.execute(
                "SELECT id, content FROM events WHERE id BETWEEN ? AND ? ORDER BY id",
                (event_key(number, job_seq), event_key(number, job_last)),
            ):
                _check_present(key == event_key(number, job_seq), job_id, job_seq)
                yield WindowEntry(
                    kind=EntryKind.EVENT,
                    event_seq=job_seq + offset,
                    content=self._open(content, "event", job_id, job_seq),
                    job_id=job_id,
                    job_seq=job_seq,
                )
                job_seq += 1
            _check_present(job_seq == job_last + (not terminal), job_id, job_seq)
            if terminal:
                yield WindowEntry(
                    kind=EntryKind.TERMINAL,
                    event_seq=last,
                    content=self._outcome_of(number, job_id),
                    job_id=job_id,
                    job_seq=job_last,
                    trace_id=trace_id,
                    ended_at_ms=ended_at_ms,
                )

    def _outcome_of(self, number: int, job_id: str) -> bytes:
        row = self._db.execute("SELECT content FROM outcomes WHERE job = ?", (number,)).fetchone()
        _check_present(row is not None, job_id, 0)
        return self._open(row[0], "outcome", job_id)

    # --- keys and credentials -----------------------------------------------------------------------

    def keys(self, after: Cursor | None, limit: int) -> Page[StoredKey]:
        """Return a page of the idempotency keys."""
        rows = self._db.execute(
            "SELECT principal, key, digest, job_id FROM keys WHERE (principal, key) > (?, ?)"
            " ORDER BY principal, key LIMIT ?",
            (*(after or ("", "")), limit + 1),
        ).fetchall()
        items = [
            StoredKey(principal=principal, key=key, digest=self._open(digest, "key", principal, key), job_id=job_id)
            for principal, key, digest, job_id in rows[:limit]
        ]
        return Page(items, rows[limit - 1][:2] if len(rows) > limit else None)

    def outstanding(self) -> list[LedgerEntry]:
        """Return the entries of the credential ledger: what was revoked is not kept."""
        return [
            LedgerEntry(
                entry_id=entry_id,
                job_id=job_id,
                principal=principal,
                state=LedgerState(state),
                handle=None if handle is None else self._open(handle, "handle", entry_id).decode(),
                attempts=attempts,
                problem=problem,
                noted_at_ms=noted_at_ms,
            )
            for entry_id, job_id, principal, state, handle, attempts, problem, noted_at_ms in self._db.execute(
                "SELECT entry_id, job_id, principal, state, handle, attempts, problem, noted_at_ms FROM ledger"
                " ORDER BY noted_at_ms, entry_id"
            )
        ]


def _words(text: str | None) -> tuple[str, ...]:
    # Ids have no blanks; in which order they are joined is not said.
    return tuple(sorted((text or "").split()))


def _check_present(there: bool, job_id: str, job_seq: int) -> None:  # noqa: FBT001  # its only subject
    if not there:
        raise StoreCorruptError(f"event {job_seq} of {job_id} is not there, and a session has it")
