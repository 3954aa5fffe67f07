"""What is kept in memory alone, and ends with the process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import merge
from itertools import count

import attrs
import trio

from ..limits import Limits
from ..records import LedgerEntry, LedgerState
from .base import Then, Ticket
from .errors import BatchRefusedError, FencedError
from .plan import MAX_SEQ, JobMark, Planner, SessionMark, SpanRow
from .stored import (
    Cursor,
    EntryKind,
    History,
    HistoryEvent,
    Page,
    StoredJob,
    StoredKey,
    StoredSession,
    StoreStatistics,
    WindowEntry,
)
from .writes import Batch, JobAccepted, SessionOpened

__all__ = ["MemoryLedger", "MemoryStore"]


class MemoryLedger:
    """A ledger that says what it is: not durable. A runtime with a provisioner refuses it (P9.10).

    It holds what is outstanding, and forgets what was revoked.
    """

    def __init__(self) -> None:
        self._entries: dict[str, LedgerEntry] = {}

    @property
    def durable(self) -> bool:
        """Whether it survives the process: it does not."""
        return False

    async def put(self, entries: Sequence[LedgerEntry]) -> None:
        """Insert or replace entries."""
        await trio.lowlevel.checkpoint_if_cancelled()
        for entry in entries:
            if entry.state is LedgerState.REVOKED:
                self._entries.pop(entry.entry_id, None)
            else:
                self._entries[entry.entry_id] = entry
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def outstanding(self) -> list[LedgerEntry]:
        """Return what was not revoked, oldest first."""
        await trio.lowlevel.checkpoint()
        return sorted(self._entries.values(), key=lambda entry: entry.noted_at_ms)


@attrs.define(eq=False)
class _Job:
    mark: JobMark
    accepted: JobAccepted
    owners: set[str] = attrs.field(factory=set)
    # By their own numbers, oldest first: the feature, and the content.
    events: dict[int, tuple[str | None, bytes]] = attrs.field(factory=dict)
    outcome: bytes | None = None
    # The sessions that have spans of it.
    readers: set[int] = attrs.field(factory=set)


@attrs.define(eq=False)
class _Session:
    mark: SessionMark
    opened: SessionOpened
    tokens: tuple[bytes, ...] = ()
    # In order: ``(first, last, job, job_first)``.
    spans: list[tuple[int, int, int, int]] = attrs.field(factory=list)
    own: dict[int, bytes] = attrs.field(factory=dict)
    riders: list[tuple[int, bytes]] = attrs.field(factory=list)
    follows: set[int] = attrs.field(factory=set)


class MemoryStore(MemoryLedger):
    """Keeps everything in memory. A batch is committed when it is appended.

    A runtime writes no batch to a store that is not durable (:mod:`arcp_trio.store.base`). This one is what such a
    runtime has for a ledger, the measure of what durability costs, and a store for tests that need no file.

    Args:
        limits: What bounds a page.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__()
        self._limits = limits or Limits()
        self._epoch = 0
        self._tickets = count(1)
        self._committed = 0
        self._jobs: dict[int, _Job] = {}
        self._job_numbers: dict[str, int] = {}
        self._sessions: dict[int, _Session] = {}
        self._session_numbers: dict[str, int] = {}
        self._numbers = count(1)
        self._keys: dict[tuple[str, str], StoredKey] = {}

    @property
    def problem(self) -> str | None:
        """Why it cannot write: it can."""
        return None

    @property
    def has_room(self) -> bool:
        """Whether there is room: nothing waits here."""
        return True

    async def take_ownership(self) -> int:
        """Begin an epoch; see :meth:`arcp_trio.store.base.Store.take_ownership`."""
        await trio.lowlevel.checkpoint()
        self._epoch += 1
        for place in [place for place, key in self._keys.items() if key.job_id not in self._job_numbers]:
            del self._keys[place]
        return self._epoch

    # --- writing ------------------------------------------------------------------------------------

    def append(self, batch: Batch, then: Then | None = None) -> Ticket:
        """Take a batch; see :meth:`arcp_trio.store.base.Store.append`."""
        ticket = Ticket(next(self._tickets), batch, 0, then)
        refusal: BatchRefusedError | None = None
        if batch.epoch != self._epoch or not self._epoch:
            refusal = FencedError(f"epoch {batch.epoch} is over: this is {self._epoch}")
        else:
            plan = Planner(self)
            try:
                plan.add(batch.writes)
            except BatchRefusedError as exc:
                refusal = exc
            else:
                plan.finish()
                self._keep(plan)
                self._committed += 1
        ticket.settle(refusal)
        return ticket

    async def committed(self, ticket: Ticket) -> None:
        """Raise what a batch was refused for; see :meth:`arcp_trio.store.base.Store.committed`."""
        await ticket.wait()

    def check_available(self) -> None:
        """Refuse nothing."""

    async def wait_for_room(self) -> None:
        """Return; a checkpoint."""
        await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        """Return; a checkpoint: nothing waits here."""
        await trio.lowlevel.checkpoint()

    def find_job(self, job_id: str) -> JobMark | None:
        """Return a job's mark; for a plan."""
        number = self._job_numbers.get(job_id)
        return None if number is None else self._jobs[number].mark

    def find_session(self, session_id: str) -> SessionMark | None:
        """Return a session's mark; for a plan."""
        number = self._session_numbers.get(session_id)
        return None if number is None else self._sessions[number].mark

    def find_key(self, principal: str, key: str) -> StoredKey | None:
        """Return what a key stands for; for a plan."""
        return self._keys.get((principal, key))

    def new_job_number(self) -> int:
        """Return a number that no job has; for a plan."""
        return next(self._numbers)

    new_session_number = new_job_number

    def _keep(self, plan: Planner) -> None:
        for number, accepted in plan.accepted:
            self._jobs[number] = _Job(plan.jobs[accepted.job_id], accepted)
            self._job_numbers[accepted.job_id] = number
        for number, opened in plan.opened:
            self._sessions[number] = _Session(plan.sessions[opened.session_id], opened)
            self._session_numbers[opened.session_id] = number
        for number, session_id in plan.owners:
            self._jobs[number].owners.add(session_id)
        for mark, job_seq, feature, content in plan.events:
            self._jobs[mark.number].events[job_seq] = feature, content
        for mark, outcome in plan.outcomes:
            self._jobs[mark.number].outcome = outcome
        for row in plan.spans:
            self._keep_span(row)
        for session_mark, event_seq, content in plan.own:
            self._sessions[session_mark.number].own[event_seq] = content
        for session_mark, event_seq, content in plan.riders:
            self._sessions[session_mark.number].riders.append((event_seq, content))
        for (session, job), follows in plan.follows.items():
            (self._sessions[session].follows.add if follows else self._sessions[session].follows.discard)(job)
        evicted = {mark.job_id for mark in plan.jobs.values() if mark.evicted}
        if evicted:
            self._keys = {place: key for place, key in self._keys.items() if key.job_id not in evicted}
        for place, key in plan.keys.items():
            self._keys.pop(place, None)
            if key is not None:
                self._keys[place] = key
        for entry in plan.ledger.values():
            self._entries.pop(entry.entry_id, None)
            if entry.state is not LedgerState.REVOKED:
                self._entries[entry.entry_id] = entry
        self._keep_marks(plan)

    def _keep_span(self, row: SpanRow) -> None:
        number, first, last, job, job_first = row
        spans = self._sessions[number].spans
        if spans and spans[-1][0] == first:
            spans.pop()
        spans.append((first, last, job, job_first))
        self._jobs[job].readers.add(number)

    def _keep_marks(self, plan: Planner) -> None:
        shrunk: set[int] = set()
        for mark in plan.jobs.values():
            self._jobs[mark.number].mark = mark
            if mark.changed:
                shrunk.add(mark.number)
                if mark.status is not None:
                    for session in self._sessions.values():
                        session.follows.discard(mark.number)
        for session_mark in plan.sessions.values():
            kept = self._sessions[session_mark.number]
            kept.mark = session_mark
            if session_mark.tokens is not None:
                kept.tokens = session_mark.tokens
            if session_mark.changed:
                shrunk |= self._trim(kept)
        for number in shrunk:
            self._purge(number)

    # --- what goes ----------------------------------------------------------------------------------

    def _trim(self, session: _Session) -> set[int]:
        """Drop what is before a session's window; return the jobs that it was of."""
        mark = session.mark
        floor = mark.last_seq if mark.ended else mark.floor
        jobs = {span[2] for span in session.spans if span[0] <= floor}
        session.spans = [
            span if first > floor else (floor + 1, last, job, job_first + floor + 1 - first)
            for span in session.spans
            for first, last, job, job_first in (span,)
            if last > floor
        ]
        session.own = {event_seq: content for event_seq, content in session.own.items() if event_seq > floor}
        session.riders = [] if mark.ended else [rider for rider in session.riders if rider[0] > floor]
        kept = {span[2] for span in session.spans}
        for job in jobs - kept:
            self._jobs[job].readers.discard(mark.number)
        if mark.span is not None and mark.span[0] <= floor:
            last_span = session.spans[-1] if session.spans else None
            mark.span = None if last_span is None else (last_span[0], last_span[2], last_span[3])
        if mark.ended:
            del self._sessions[mark.number]
            del self._session_numbers[mark.session_id]
        return jobs

    def _purge(self, number: int) -> None:
        """Drop what nobody has of a job any more: neither a window, nor its history."""
        job = self._jobs[number]
        wanted = min(
            (
                job_first
                for reader in job.readers
                for _, _, of_job, job_first in self._sessions[reader].spans
                if of_job == number
            ),
            default=job.mark.last_seq + 1,
        )
        if not job.mark.evicted:
            wanted = min(wanted, job.mark.floor + 1)
        for job_seq in [job_seq for job_seq in job.events if job_seq < wanted]:
            del job.events[job_seq]
        if job.mark.evicted and not job.readers:
            del self._jobs[number]
            del self._job_numbers[job.mark.job_id]

    # --- reading ------------------------------------------------------------------------------------

    def _known(self, job_id: str) -> _Job | None:
        number = self._job_numbers.get(job_id)
        job = None if number is None else self._jobs[number]
        return None if job is None or job.mark.evicted else job

    @staticmethod
    def _stored(job: _Job, *, outcome: bool = True) -> StoredJob:
        mark, accepted = job.mark, job.accepted
        return StoredJob(
            job_id=mark.job_id,
            principal=accepted.principal,
            agent=accepted.agent,
            trace_id=accepted.trace_id,
            created_at_ms=accepted.created_at_ms,
            accepted=accepted.accepted,
            parent_job_id=accepted.parent_job_id,
            owners=tuple(sorted(job.owners)),
            last_seq=mark.last_seq,
            history_floor=mark.floor,
            outcome=job.outcome if outcome else None,
            status=mark.status,
            ended_at_ms=mark.ended_at_ms,
        )

    async def running_jobs(self) -> list[StoredJob]:
        """Return the jobs that have not ended; see :meth:`arcp_trio.store.base.Store.running_jobs`."""
        await trio.lowlevel.checkpoint()
        jobs = [self._stored(job) for job in self._jobs.values() if job.mark.status is None]
        return sorted(jobs, key=lambda job: job.job_id)

    async def ended_jobs(self, after: Cursor | None, limit: int, *, outcomes: bool = False) -> Page[StoredJob]:
        """Return jobs that have ended; see :meth:`arcp_trio.store.base.Store.ended_jobs`."""
        await trio.lowlevel.checkpoint()
        ended = sorted(
            (job.mark.ended_at_ms or 0, number)
            for number, job in self._jobs.items()
            if job.mark.status is not None and not job.mark.evicted
        )
        places = [place for place in ended if after is None or place > after]
        jobs = [self._jobs[number] for _, number in places]
        size = self._page(limit, (len(job.outcome or b"") if outcomes else 0 for job in jobs))
        items = [self._stored(job, outcome=outcomes) for job in jobs[:size]]
        return Page(items, places[size - 1] if len(places) > size else None)

    async def outcome(self, job_id: str) -> bytes | None:
        """Return how a job ends or ended; see :meth:`arcp_trio.store.base.Store.outcome`."""
        await trio.lowlevel.checkpoint()
        job = self._known(job_id)
        return None if job is None else job.outcome

    async def history(self, job_id: str, after: int, limit: int) -> History | None:
        """Return what a job has said; see :meth:`arcp_trio.store.base.Store.history`."""
        await trio.lowlevel.checkpoint()
        job = self._known(job_id)
        if job is None:
            return None
        floor = job.mark.floor
        behind = [
            HistoryEvent(job_seq=job_seq, content=content, feature=feature)
            for job_seq, (feature, content) in job.events.items()
            if job_seq > max(after, floor)
        ]
        events = behind[: self._page(limit, (len(event.content) for event in behind))]
        return History(events=tuple(events), first_seq=floor + 1, more=len(behind) > len(events))

    def _page(self, limit: int, sizes: Iterable[int]) -> int:
        """Return how many things of those sizes one page has."""
        total = 0
        for number, size in enumerate(sizes):
            if number == limit or (number and total + size > self._limits.store_page_bytes):
                return number
            total += size
        return limit

    async def sessions(self, after: Cursor | None, limit: int) -> Page[StoredSession]:
        """Return the sessions; see :meth:`arcp_trio.store.base.Store.sessions`."""
        await trio.lowlevel.checkpoint()
        numbers = [number for number in sorted(self._sessions) if after is None or (number, 0) > after]
        items = [self._stored_session(self._sessions[number]) for number in numbers[:limit]]
        return Page(items, (numbers[limit - 1], 0) if len(numbers) > limit else None)

    def _stored_session(self, session: _Session) -> StoredSession:
        mark, opened = session.mark, session.opened
        return StoredSession(
            session_id=mark.session_id,
            principal=opened.principal,
            opened_at_ms=opened.opened_at_ms,
            detail=opened.detail,
            token_hashes=session.tokens,
            last_seq=mark.last_seq,
            acked=mark.acked,
            floor=mark.floor,
            waiting_since_ms=mark.waiting_since_ms,
            follows=tuple(sorted(self._jobs[job].mark.job_id for job in session.follows)),
        )

    async def window(self, session_id: str, after: int, limit: int) -> list[WindowEntry]:
        """Return what a client may ask for again; see :meth:`arcp_trio.store.base.Store.window`."""
        await trio.lowlevel.checkpoint()
        number = self._session_numbers.get(session_id)
        if number is None:
            return []
        session = self._sessions[number]
        after = max(after, session.mark.floor)
        numbered = [self._entry(span, event_seq) for span in session.spans for event_seq in _of(span)]
        numbered += [
            WindowEntry(kind=EntryKind.OWN, event_seq=event_seq, content=content)
            for event_seq, content in session.own.items()
        ]
        behind = sorted((entry for entry in numbered if entry.event_seq > after), key=_number_of)
        page = behind[: self._page(limit, (len(entry.content) for entry in behind))]
        upto = page[-1].event_seq if len(page) < len(behind) else MAX_SEQ + 1
        riders = [
            WindowEntry(kind=EntryKind.RIDER, event_seq=event_seq, content=content)
            for event_seq, content in session.riders
            if after < event_seq <= upto
        ]
        # Of equal numbers a rider goes first: that is what it is.
        return list(merge(riders, page, key=_number_of))

    def _entry(self, span: tuple[int, int, int, int], event_seq: int) -> WindowEntry:
        first, _, number, job_first = span
        job = self._jobs[number]
        job_seq = job_first + event_seq - first
        if job.mark.status is not None and job_seq == job.mark.last_seq:
            return WindowEntry(
                kind=EntryKind.TERMINAL,
                event_seq=event_seq,
                content=job.outcome or b"",
                job_id=job.mark.job_id,
                job_seq=job_seq,
                trace_id=job.accepted.trace_id,
                ended_at_ms=job.mark.ended_at_ms,
            )
        return WindowEntry(
            kind=EntryKind.EVENT,
            event_seq=event_seq,
            content=job.events[job_seq][1],
            job_id=job.mark.job_id,
            job_seq=job_seq,
        )

    async def keys(self, after: Cursor | None, limit: int) -> Page[StoredKey]:
        """Return the idempotency keys; see :meth:`arcp_trio.store.base.Store.keys`."""
        await trio.lowlevel.checkpoint()
        places = [place for place in sorted(self._keys) if after is None or place > after]
        return Page([self._keys[place] for place in places[:limit]], places[limit - 1] if len(places) > limit else None)

    def statistics(self) -> StoreStatistics:
        """Return a snapshot."""
        return StoreStatistics(batches_committed=self._committed, commits=self._committed)


def _number_of(entry: WindowEntry) -> int:
    return entry.event_seq


def _of(span: tuple[int, int, int, int]) -> range:
    return range(span[0], span[1] + 1)
