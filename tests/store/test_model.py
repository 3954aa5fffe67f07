"""Whatever happens to jobs and sessions in whatever order: a store gives back exactly what a list would.

The model keeps every event of every session in a list, numbers by position, and knows of no spans, floors of files,
transactions or slices. After each run the file is opened again, and compared once more.
"""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import attrs
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from store.kit import KINDS, accepted, dump, ended, event, open_store, opened, settle, span

from arcp_trio.limits import Limits
from arcp_trio.store import retention
from arcp_trio.store.base import Store
from arcp_trio.store.plan import MAX_SEQ
from arcp_trio.store.sqlite import SqliteStore
from arcp_trio.store.stored import EntryKind
from arcp_trio.store.writes import (
    Batch,
    HistoryTrimmed,
    JobEvicted,
    OwnAppended,
    RiderAppended,
    SessionAcknowledged,
    SessionEnded,
    SessionFollowed,
    SessionUnfollowed,
    WindowTrimmed,
    Write,
)

# Small, so that what is deleted goes in many slices, and a page ends everywhere.
LIMITS = Limits(store_free_bytes=0, store_slice_rows=5, store_slice_bytes=64, store_commit_bytes=1_000)

OPS = (
    *["emit"] * 24,
    *["follow", "join", "acknowledge", "commit"] * 3,
    *["open job", "open session", "end job"] * 2,
    *["unfollow", "own", "rider", "trim window", "trim history", "evict", "end session"],
)
Op = tuple[str, int, int]


@attrs.define
class ModelJob:
    contents: list[bytes] = attrs.field(factory=list)
    floor: int = 0
    ended: bool = False
    evicted: bool = False
    followers: dict[str, None] = attrs.field(factory=dict)


@attrs.define
class ModelSession:
    # Each as a store gives it back: kind, content, job, its number there; by position.
    numbered: list[tuple[EntryKind, bytes, str | None, int | None]] = attrs.field(factory=list)
    riders: list[tuple[int, bytes]] = attrs.field(factory=list)
    acked: int = 0
    floor: int = 0

    def window(self) -> list[tuple[Any, ...]]:
        entries = [
            (event_seq, 1, *entry) for event_seq, entry in enumerate(self.numbered, start=1) if event_seq > self.floor
        ]
        entries += [
            (event_seq, 0, EntryKind.RIDER, content, None, None)
            for event_seq, content in self.riders
            if event_seq > self.floor
        ]
        return [(event_seq, *entry) for event_seq, _, *entry in sorted(entries, key=lambda entry: entry[:2])]


class Model:
    """Says what is written for an operation, and what there must be then."""

    def __init__(self) -> None:
        self.jobs: dict[str, ModelJob] = {}
        self.sessions: dict[str, ModelSession] = {}
        self.opened = 0

    def apply(self, op: Op) -> tuple[Write, ...]:
        """Return the facts of an operation; none where it cannot be."""
        name, first, second = op
        if name == "open job":
            job_id = f"job_{len(self.jobs)}"
            self.jobs[job_id] = ModelJob()
            return (accepted(job_id),)
        if name == "open session":
            session_id = f"sess_{self.opened}"
            self.opened += 1
            self.sessions[session_id] = ModelSession()
            return (opened(session_id),)
        method = getattr(self, "_" + name.replace(" ", "_"))
        writes: tuple[Write, ...] = method(first, second)
        return writes

    def _pick_job(self, index: int, **wanted: bool) -> tuple[str, ModelJob] | None:
        jobs = [
            (job_id, job)
            for job_id, job in self.jobs.items()
            if not job.evicted and all(getattr(job, name) is value for name, value in wanted.items())
        ]
        return jobs[index % len(jobs)] if jobs else None

    def _pick_session(self, index: int) -> tuple[str, ModelSession] | None:
        sessions = list(self.sessions.items())
        return sessions[index % len(sessions)] if sessions else None

    def _tell(self, job: ModelJob, job_id: str, kind: EntryKind, content: bytes) -> list[tuple[str, int]]:
        numbers = []
        for session_id in job.followers:
            numbered = self.sessions[session_id].numbered
            numbered.append((kind, content, job_id, len(job.contents)))
            numbers.append((session_id, len(numbered)))
        return numbers

    def _emit(self, first: int, second: int) -> tuple[Write, ...]:
        picked = self._pick_job(first, ended=False)
        if picked is None:
            return ()
        job_id, job = picked
        content = b"%d" % second * (second % 40)
        job.contents.append(content)
        numbers = self._tell(job, job_id, EntryKind.EVENT, content)
        return (event(job_id, len(job.contents), *numbers, content=content),)

    def _end_job(self, first: int, second: int) -> tuple[Write, ...]:
        picked = self._pick_job(first, ended=False)
        if picked is None:
            return ()
        job_id, job = picked
        job.ended = True
        content = f"outcome of {job_id}".encode()
        job.contents.append(content)
        numbers = self._tell(job, job_id, EntryKind.TERMINAL, content)
        job.followers.clear()
        return ended(job_id, len(job.contents), *numbers)

    def _evict(self, first: int, second: int) -> tuple[Write, ...]:
        picked = self._pick_job(first, ended=True)
        if picked is None:
            return ()
        picked[1].evicted = True
        return (JobEvicted(picked[0]),)

    def _trim_history(self, first: int, second: int) -> tuple[Write, ...]:
        picked = self._pick_job(first)
        if picked is None:
            return ()
        job_id, job = picked
        floor = second % (len(job.contents) + 1)
        job.floor = max(job.floor, floor)
        return (HistoryTrimmed(job_id, floor),)

    def _follow(self, first: int, second: int) -> tuple[Write, ...]:
        job, session = self._pick_job(first, ended=False), self._pick_session(second)
        if job is None or session is None:
            return ()
        job[1].followers[session[0]] = None
        return (SessionFollowed(session[0], job[0]),)

    def _unfollow(self, first: int, second: int) -> tuple[Write, ...]:
        job, session = self._pick_job(first), self._pick_session(second)
        if job is None or session is None:
            return ()
        job[1].followers.pop(session[0], None)
        return (SessionUnfollowed(session[0], job[0]),)

    def _join(self, first: int, second: int) -> tuple[Write, ...]:
        job, session = self._pick_job(first), self._pick_session(second)
        if job is None or session is None or len(job[1].contents) == job[1].floor:
            return ()
        job_first = job[1].floor + 1 + second % (len(job[1].contents) - job[1].floor)
        numbered = session[1].numbered
        before = len(numbered)
        for job_seq in range(job_first, len(job[1].contents) + 1):
            terminal = job[1].ended and job_seq == len(job[1].contents)
            kind = EntryKind.TERMINAL if terminal else EntryKind.EVENT
            numbered.append((kind, job[1].contents[job_seq - 1], job[0], job_seq))
        return (span(session[0], before + 1, len(numbered), job[0], job_first),)

    def _own(self, first: int, second: int) -> tuple[Write, ...]:
        picked = self._pick_session(first)
        if picked is None:
            return ()
        content = b"own %d" % second
        picked[1].numbered.append((EntryKind.OWN, content, None, None))
        return (OwnAppended(session_id=picked[0], event_seq=len(picked[1].numbered), content=content),)

    def _rider(self, first: int, second: int) -> tuple[Write, ...]:
        picked = self._pick_session(first)
        if picked is None:
            return ()
        content = b"rider %d" % second
        picked[1].riders.append((len(picked[1].numbered) + 1, content))
        return (RiderAppended(session_id=picked[0], content=content),)

    def _acknowledge(self, first: int, second: int) -> tuple[Write, ...]:
        picked = self._pick_session(first)
        if picked is None:
            return ()
        session_id, session = picked
        acked = second % (len(session.numbered) + 1)
        session.acked = max(session.acked, acked)
        session.floor = max(session.floor, acked)
        return (SessionAcknowledged(session_id, acked),)

    def _trim_window(self, first: int, second: int) -> tuple[Write, ...]:
        picked = self._pick_session(first)
        if picked is None:
            return ()
        floor = second % (len(picked[1].numbered) + 1)
        picked[1].floor = max(picked[1].floor, floor)
        return (WindowTrimmed(picked[0], floor),)

    def _end_session(self, first: int, second: int) -> tuple[Write, ...]:
        picked = self._pick_session(first)
        if picked is None:
            return ()
        del self.sessions[picked[0]]
        for job in self.jobs.values():
            job.followers.pop(picked[0], None)
        return (SessionEnded(picked[0]),)

    def compare_rows(self, path: Path) -> None:
        """Hold what is in the file against what must be: nothing that nobody can read is kept."""
        wanted = {
            (job_id, job_seq)
            for job_id, job in self.jobs.items()
            if not job.evicted
            for job_seq in range(job.floor + 1, len(job.contents) + 1 - job.ended)
        }
        windows = [entry for session in self.sessions.values() for entry in session.numbered[session.floor :]]
        # Of what a window has of a job all that is behind it is kept too: it would be there if nothing was trimmed.
        for job_id, job in self.jobs.items():
            first = min((seq for _, _, of_job, seq in windows if of_job == job_id and seq), default=MAX_SEQ)
            wanted |= {(job_id, job_seq) for job_seq in range(first, len(job.contents) + 1 - job.ended)}
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            found = db.execute("SELECT job_id, events.id - (number << 36) FROM events JOIN jobs ON number = id >> 36")
            assert set(found) == wanted
            counts = [
                db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("sessions", "riders", "own")
            ]
            assert counts == [
                len(self.sessions),
                sum(event_seq > session.floor for session in self.sessions.values() for event_seq, _ in session.riders),
                sum(kind is EntryKind.OWN for kind, *_ in windows),
            ]
            known = {job_id for job_id, job in self.jobs.items() if not job.evicted}
            known |= {of_job for _, _, of_job, _ in windows if of_job is not None}
            assert {job_id for (job_id,) in db.execute("SELECT job_id FROM jobs")} == known
            assert (
                db.execute("PRAGMA freelist_count").fetchone()[0] * 4 <= db.execute("PRAGMA page_count").fetchone()[0]
            )

    def compare(self, found: dict[str, Any]) -> None:
        """Hold what was read against what there must be."""
        jobs = {job_id: job for job_id, job in self.jobs.items() if not job.evicted}
        assert {job.job_id for job in found["running"]} == {job_id for job_id, job in jobs.items() if not job.ended}
        assert {job.job_id for job in found["ended"]} == {job_id for job_id, job in jobs.items() if job.ended}
        for stored in (*found["running"], *found["ended"]):
            job = jobs[stored.job_id]
            assert (stored.last_seq, stored.history_floor) == (len(job.contents), job.floor)
            history = found["histories"][stored.job_id]
            events = job.contents[: len(job.contents) - job.ended]
            assert [each.content for each in history.events] == events[job.floor :]
            assert [each.job_seq for each in history.events] == [*range(job.floor + 1, len(events) + 1)]
            assert history.first_seq == job.floor + 1
        assert {session.session_id for session in found["sessions"]} == self.sessions.keys()
        for stored in found["sessions"]:
            session = self.sessions[stored.session_id]
            assert (stored.last_seq, stored.acked, stored.floor) == (
                len(session.numbered),
                session.acked,
                session.floor,
            )
            assert set(stored.follows) == {
                job_id for job_id, job in self.jobs.items() if stored.session_id in job.followers
            }
            window = found["windows"][stored.session_id]
            assert [
                (each.event_seq, each.kind, each.content, each.job_id, each.job_seq) for each in window
            ] == session.window()


async def play(store: Store, model: Model, ops: list[Op]) -> None:
    epoch = await store.take_ownership()
    for op in ops:
        if op[0] == "commit":
            await store.flush()
        elif writes := model.apply(op):
            store.append(Batch(writes, epoch))
    await store.flush()


async def check(kind: str, first: list[Op], second: list[Op], limit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        model = Model()
        async with open_store(kind, Path(name), limits=LIMITS) as store:
            await play(store, model, first)
            model.compare(await dump(store, limit))
            if isinstance(store, SqliteStore):
                await settle(store)
                model.compare(await dump(store, limit))
                model.compare_rows(Path(name) / "store.db")
            else:
                await play(store, model, second)
                model.compare(await dump(store, limit))
        if kind != "memory":
            async with open_store(kind, Path(name), limits=LIMITS) as store:
                model.compare(await dump(store, limit))
                await play(store, model, second)
                assert isinstance(store, SqliteStore)
                await settle(store)
                model.compare(await dump(store, limit))
                model.compare_rows(Path(name) / "store.db")


def make_ops(random: Random, length: int) -> list[Op]:
    # Two jobs at the beginning that a session follows, so that there is something to be told.
    start: list[Op] = [("open job", 0, 0), ("open session", 0, 0), ("follow", 0, 0), ("open job", 0, 0)]
    return start + [(random.choice(OPS), random.randrange(6), random.randrange(200)) for _ in range(length)]


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6), limit=st.integers(1, 8))
def test_a_store_gives_back_what_a_list_would(kind: str, seed: int, limit: int) -> None:
    random = Random(seed)
    first, second = make_ops(random, 200), make_ops(random, 100)
    # A session is worth a look as soon as anything is behind it.
    with mock.patch.object(retention, "_WORTH", 1):
        trio.run(check, kind, first, second, limit)
