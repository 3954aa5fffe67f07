"""What durability costs: ``python -m benchmarks.store [--json]``, from the project's directory.

1. Tasks that append an event each and wait until it is durable: with group commit, with a commit for each event, and
   with the store that keeps everything in memory. The three take turns in one run.
2. One task that appends as fast as it can, as a flooding agent does, and waits at the end; the same three.
3. How long a store takes to open with 1,000,000 events in it, beside an empty one.

The figures of one run are comparable with each other alone: look at the ratios. It takes about a minute, and 400 MB
in the directory for temporary files, which must not be in memory: it is the disk's sync that is measured.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import trio

from arcp_trio.limits import Limits
from arcp_trio.store.base import Store
from arcp_trio.store.memory import MemoryStore
from arcp_trio.store.sqlite import open_sqlite_store
from arcp_trio.store.writes import Batch, EventAppended, JobAccepted, SessionOpened

ROUNDS = 5
TASKS = 64
SECONDS = 1.0
FLOOD_EVENTS = {"group commit": 20_000, "commit for each event": 1_000, "memory": 20_000}
EVENT_BYTES = 300
EVENTS = 1_000_000
EVENTS_OF_A_JOB = 100
SESSIONS = 1_000
# A transaction takes at least one batch, and no more than this: one.
ONE_BY_ONE = Limits(store_commit_bytes=1)
KINDS = tuple(FLOOD_EVENTS)

Figures = dict[str, float]


@asynccontextmanager
async def _open(kind: str, directory: str) -> AsyncGenerator[tuple[Store, int], None]:
    """Open a store of that kind, with a job and a session that follows it."""
    if kind == "memory":
        store: Store = MemoryStore()
        yield store, await _prepare(store)
        return
    limits = ONE_BY_ONE if kind == "commit for each event" else Limits()
    with tempfile.TemporaryDirectory(dir=directory) as name:
        async with open_sqlite_store(Path(name) / "store.db", limits=limits) as store:
            yield store, await _prepare(store)


async def _prepare(store: Store) -> int:
    epoch = await store.take_ownership()
    accepted = JobAccepted(
        job_id="job_1", principal="me", agent="flood@1.0.0", trace_id="0" * 32, created_at_ms=0, accepted=b"{}"
    )
    opened = SessionOpened(session_id="sess_1", principal="me", opened_at_ms=0, detail=b"{}")
    await store.committed(store.append(Batch((accepted, opened), epoch)))
    return epoch


def _event(number: int, epoch: int) -> Batch:
    said = EventAppended(job_id="job_1", job_seq=number, content=b"x" * EVENT_BYTES, numbers=(("sess_1", number),))
    return Batch((said,), epoch)


async def waiting_tasks(kind: str, directory: str) -> float:
    """Return how many events a second become durable, where each of many tasks waits for its own."""
    number = 0
    async with _open(kind, directory) as (store, epoch):
        deadline = time.perf_counter() + SECONDS

        async def emit() -> None:
            nonlocal number
            while time.perf_counter() < deadline:
                number += 1
                await store.committed(store.append(_event(number, epoch)))

        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(emit)
        return number / (time.perf_counter() - started)


async def flood(kind: str, directory: str) -> float:
    """Return how many events a second become durable, where one task appends as many as there is room for."""
    events = FLOOD_EVENTS[kind]
    async with _open(kind, directory) as (store, epoch):
        started = time.perf_counter()
        for number in range(1, events + 1):
            if not store.has_room:
                await store.wait_for_room()
            store.append(_event(number, epoch))
            if number % 100 == 0:
                # An agent lets the writers run once in a slice of a millisecond.
                await trio.lowlevel.checkpoint()
        await store.flush()
        return events / (time.perf_counter() - started)


def fill(path: Path) -> None:
    """Put a million events into a store: those of jobs that have ended, and of one session a window of each."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        count = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT ?)"
        jobs = EVENTS // EVENTS_OF_A_JOB
        db.execute(
            f"{count} INSERT INTO jobs (number, job_id, principal, agent, trace_id, created_at_ms, accepted, last_seq,"
            " status, ended_at_ms) SELECT i, 'job_' || i, 'me', 'flood@1.0.0', hex(randomblob(16)), i,"
            " randomblob(300), ?, CASE i % 100 WHEN 0 THEN NULL ELSE 'success' END, i FROM n",
            (jobs, EVENTS_OF_A_JOB + 1),
        )
        db.execute(f"{count} INSERT INTO outcomes SELECT i, randomblob(100) FROM n WHERE i % 100", (jobs,))
        db.execute(
            f"{count} INSERT INTO events SELECT (((i - 1) / ? + 1) << 36) | ((i - 1) % ? + 1), NULL, randomblob(?)"
            " FROM n",
            (EVENTS, EVENTS_OF_A_JOB, EVENTS_OF_A_JOB, EVENT_BYTES),
        )
        db.execute(
            f"{count} INSERT INTO sessions (number, session_id, principal, opened_at_ms, detail)"
            " SELECT i, 'sess_' || i, 'me', i, randomblob(200) FROM n",
            (SESSIONS,),
        )
        db.execute(f"{count} INSERT INTO spans SELECT i, 1, ?, i, 1 FROM n", (SESSIONS, EVENTS_OF_A_JOB))
        db.execute("COMMIT")


async def opening(path: Path) -> float:
    """Return how many seconds a store takes to open, and to be owned: then a recovery can read."""
    started = time.perf_counter()
    async with open_sqlite_store(path) as store:
        await store.take_ownership()
        return time.perf_counter() - started


def openings(directory: str) -> Figures:
    """Measure the opening of an empty store and of a large one, by turns."""
    with tempfile.TemporaryDirectory(dir=directory) as name:
        empty, large = Path(name) / "empty.db", Path(name) / "large.db"
        for path in (empty, large):
            trio.run(opening, path)
        fill(large)
        times: dict[Path, list[float]] = {empty: [], large: []}
        for _ in range(ROUNDS):
            for path, found in times.items():
                found.append(trio.run(opening, path))
        return {
            "events": EVENTS,
            "file_bytes": large.stat().st_size,
            "empty_seconds": statistics.median(times[empty]),
            "large_seconds": statistics.median(times[large]),
            "large_worst_seconds": max(times[large]),
        }


def throughput(measure: Any, directory: str) -> Figures:
    """Measure the three kinds by turns; return their medians, and their ratios as each round had them."""
    rounds = [{kind: trio.run(measure, kind, directory) for kind in KINDS} for _ in range(ROUNDS)]
    figures = {f"{kind}, events/s": statistics.median(found[kind] for found in rounds) for kind in KINDS}
    for other in KINDS[1:]:
        ratios = [found["group commit"] / found[other] for found in rounds]
        figures[f"group commit to {other}"] = statistics.median(ratios)
    return figures


def main() -> None:
    """Measure and print."""
    directory = tempfile.gettempdir()
    results = {
        f"{TASKS} tasks that wait": throughput(waiting_tasks, directory),
        "one task that floods": throughput(flood, directory),
        "opening": openings(directory),
    }
    if "--json" in sys.argv[1:]:
        print(json.dumps(results, indent=2))
        return
    for title, figures in results.items():
        print(title)
        for name, value in figures.items():
            print(f"  {name:45} {value:>14,.2f}")


if __name__ == "__main__":
    main()
