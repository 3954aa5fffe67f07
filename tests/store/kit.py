"""What the tests of stores share: facts with little to say, stores of each kind, and all that can be read of one."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from arcp_trio.limits import Limits
from arcp_trio.records import LedgerEntry, LedgerState
from arcp_trio.store.base import Store
from arcp_trio.store.memory import MemoryStore
from arcp_trio.store.sqlite import SqliteStore, open_sqlite_store
from arcp_trio.store.stored import WindowEntry
from arcp_trio.store.writes import (
    Batch,
    EventAppended,
    JobAccepted,
    JobEnded,
    KeyClaimed,
    OutcomeDecided,
    SessionOpened,
    SpanAppended,
    Write,
)

KEY = bytes(range(32))
KINDS = ("memory", "sqlite", "encrypted")
DURABLE = ("sqlite", "encrypted")
SECONDS = 30


@asynccontextmanager
async def open_store(
    kind: str, directory: Path, *, limits: Limits | None = None, hooks: Any = None
) -> AsyncGenerator[Store, None]:
    """Open a store of that kind, the same file for each opening in one directory."""
    if kind == "memory":
        yield MemoryStore(limits)
        return
    key = KEY if kind == "encrypted" else None
    with trio.fail_after(SECONDS):
        async with open_sqlite_store(directory / "store.db", key=key, limits=limits, hooks=hooks) as store:
            yield store


def accepted(job_id: str = "job_1", principal: str = "me", **fields: Any) -> JobAccepted:
    return JobAccepted(
        job_id=job_id,
        principal=principal,
        agent="count@1.0.0",
        trace_id=f"trace of {job_id}",
        created_at_ms=1_000,
        accepted=b'{"job_id":"%b"}' % job_id.encode(),
        **fields,
    )


def opened(session_id: str = "sess_1", principal: str = "me") -> SessionOpened:
    return SessionOpened(session_id=session_id, principal=principal, opened_at_ms=2_000, detail=b'{"features":[]}')


def event(job_id: str, job_seq: int, *numbers: tuple[str, int], content: bytes | None = None) -> EventAppended:
    return EventAppended(
        job_id=job_id,
        job_seq=job_seq,
        content=b"event %d of %b" % (job_seq, job_id.encode()) if content is None else content,
        numbers=numbers,
    )


def ended(job_id: str, job_seq: int, *numbers: tuple[str, int], at_ms: int = 9_000) -> tuple[Write, Write]:
    """Return the decision and the terminal event."""
    outcome = OutcomeDecided(job_id=job_id, outcome=b"outcome of %b" % job_id.encode())
    terminal = JobEnded(job_id=job_id, job_seq=job_seq, status="success", ended_at_ms=at_ms, numbers=numbers)
    return outcome, terminal


def span(session_id: str, first: int, last: int, job_id: str, job_first: int) -> SpanAppended:
    return SpanAppended(session_id=session_id, first=first, last=last, job_id=job_id, job_first=job_first)


def claim(key: str, job_id: str, principal: str = "me") -> KeyClaimed:
    return KeyClaimed(principal=principal, key=key, digest=b"digest of %b" % job_id.encode(), job_id=job_id)


def entry(entry_id: str, state: LedgerState = LedgerState.ISSUED, noted_at_ms: int = 1) -> LedgerEntry:
    return LedgerEntry(
        entry_id=entry_id,
        job_id="job_1",
        principal="me",
        state=state,
        handle=None if state is LedgerState.INTENDED else f"handle of {entry_id}",
        noted_at_ms=noted_at_ms,
    )


async def write(store: Store, epoch: int, *writes: Write) -> None:
    """Append one batch, and wait until it is durable."""
    await store.committed(store.append(Batch(writes, epoch)))


async def read_window(store: Store, session_id: str, after: int = 0, limit: int = 100) -> list[WindowEntry]:
    """Read a window to its end, page by page."""
    entries: list[WindowEntry] = []
    while True:
        page = await store.window(session_id, after, limit)
        entries += page
        if not page or page[-1].kind.value == "rider":
            return entries
        after = page[-1].event_seq


async def dump(store: Store, limit: int = 100) -> dict[str, Any]:
    """Return all that can be read of a store."""
    found: dict[str, Any] = {"running": await store.running_jobs(), "ended": [], "sessions": [], "keys": []}
    for name, method in (("ended", store.ended_jobs), ("sessions", store.sessions), ("keys", store.keys)):
        cursor = None
        while True:
            page = await method(cursor, limit)  # type: ignore[operator]
            found[name] += page.items
            cursor = page.next
            if cursor is None:
                break
    jobs = [job.job_id for job in (*found["running"], *found["ended"])]
    found["outcomes"] = {job_id: await store.outcome(job_id) for job_id in jobs}
    found["histories"] = {job_id: await store.history(job_id, 0, 10_000) for job_id in jobs}
    found["windows"] = {
        session.session_id: await read_window(store, session.session_id, limit=limit) for session in found["sessions"]
    }
    found["ledger"] = await store.outstanding()
    return found


def sqlite_error(code: int, text: str = "said by the test") -> sqlite3.OperationalError:
    """Return the error that SQLite raises with that code."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


class PointHooks:
    """Does at each point what a test has told it, in the thread that reaches it."""

    def __init__(self, **actions: Callable[[], None]) -> None:
        self.actions = actions
        self.reached: list[str] = []

    def reach(self, point: str) -> None:
        self.reached.append(point)
        action = self.actions.get(point)
        if action is not None:
            action()


async def settle(store: SqliteStore) -> None:
    """Wait until a store has deleted all that it has to, and sleeps."""
    with trio.fail_after(SECONDS):
        # Each commit brings a slice; what is appended behind the last of them has nothing left to do.
        while store._engine.has_work:
            await store.flush()
            await trio.to_thread.run_sync(int)
