"""What batches come to: checked against what a store has, and gathered for one transaction. Sans-IO.

Theory of operation. A store keeps a *mark* for each job and session: the newest number, and little more. A
:class:`Planner` goes through the facts of a transaction, holds each against a copy of those marks, and gathers what is
to be written: rows to insert, and of what changes many times only the last. An event costs a row; the numbers that it
has in sessions cost nothing while they go on side by side with the job's own: such a run is a *span*, and only its end
changes.

A batch that contradicts the marks is refused, and then the planner is of no use any more: the store makes another one
without that batch. The marks themselves change only when the transaction is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

import attrs

from ..records import LedgerEntry
from .errors import ConflictError, KeyTakenError
from .stored import StoredKey
from .writes import (
    EventAppended,
    HistoryTrimmed,
    JobAccepted,
    JobEnded,
    JobEvicted,
    JobOwned,
    KeyClaimed,
    KeyReleased,
    LedgerNoted,
    Numbers,
    OutcomeDecided,
    OwnAppended,
    RiderAppended,
    SessionAcknowledged,
    SessionEnded,
    SessionFollowed,
    SessionOpened,
    SessionUnfollowed,
    SessionWaiting,
    SpanAppended,
    TokensChanged,
    WindowTrimmed,
    Write,
)

__all__ = ["MAX_SEQ", "Existing", "JobMark", "OpenSpan", "Planner", "SessionMark", "SpanRow"]

MAX_SEQ = 2**36 - 1
"""The largest number of an event or an entry: a month at 30,000 a second."""


@attrs.define(kw_only=True)
class JobMark:
    """How a job stands.

    Attributes:
        number: What the store calls it.
        last_seq: The number of its newest event.
        floor: The newest that is kept for nobody who comes later.
        decided: Whether its outcome was decided.
        status: The terminal state, or ``None``.
        ended_at_ms: When it ended, or ``None``.
        evicted: Whether it is known no more.
        changed: Whether more than ``last_seq`` was changed by a plan.
    """

    job_id: str
    number: int
    last_seq: int = 0
    floor: int = 0
    decided: bool = False
    status: str | None = None
    ended_at_ms: int | None = None
    evicted: bool = False
    changed: bool = False

    def copy(self) -> JobMark:
        """Return one like it, of which nothing has changed."""
        return JobMark(
            job_id=self.job_id,
            number=self.number,
            last_seq=self.last_seq,
            floor=self.floor,
            decided=self.decided,
            status=self.status,
            ended_at_ms=self.ended_at_ms,
            evicted=self.evicted,
        )


OpenSpan = tuple[int, int, int]
"""The run that a session's next number may go on with: ``(first, number of the job, job_first)``."""

SpanRow = tuple[int, int, int, int, int]
"""``(session, first, last, job, job_first)``, the first and the fourth as the store calls them."""


@attrs.define(kw_only=True)
class SessionMark:
    """How a session stands.

    Attributes:
        number: What the store calls it.
        last_seq: Its newest number.
        acked: The newest that its client has acknowledged.
        floor: The newest that is gone.
        waiting_since_ms: Since when it has no connection, or ``None``.
        tokens: The hashes of its tokens, where a plan changed them.
        ended: Whether it is no more.
        span: The run that its newest number is of, or ``None``.
        grown: Whether a plan has added to that run.
        changed: Whether more than ``last_seq`` and ``span`` was changed by a plan.
    """

    session_id: str
    number: int
    last_seq: int = 0
    acked: int = 0
    floor: int = 0
    waiting_since_ms: int | None = None
    tokens: tuple[bytes, ...] | None = attrs.field(default=None, repr=False)
    ended: bool = False
    span: OpenSpan | None = None
    grown: bool = False
    changed: bool = False

    def copy(self) -> SessionMark:
        """Return one like it, of which nothing has changed."""
        return SessionMark(
            session_id=self.session_id,
            number=self.number,
            last_seq=self.last_seq,
            acked=self.acked,
            floor=self.floor,
            waiting_since_ms=self.waiting_since_ms,
            ended=self.ended,
            span=self.span,
        )


class Existing(Protocol):
    """What a store has, as a plan asks for it."""

    def find_job(self, job_id: str) -> JobMark | None:
        """Return a job's mark, which the plan copies; ``None`` if there is no such job."""
        ...

    def find_session(self, session_id: str) -> SessionMark | None:
        """Return a session's mark, likewise; ``None`` if there is none, or it has ended."""
        ...

    def find_key(self, principal: str, key: str) -> StoredKey | None:
        """Return what a key stands for."""
        ...

    def new_job_number(self) -> int:
        """Return a number that no job has."""
        ...

    def new_session_number(self) -> int:
        """Return a number that no session has."""
        ...


class Planner:
    """Gathers what the batches of one transaction come to.

    Attributes:
        jobs: The marks of all jobs that they name.
        sessions: The marks of all sessions that they name.
        accepted: New jobs: number, and the fact.
        owners: Who may cancel which job: ``(job, session_id)``.
        events: Rows: ``(mark of the job, job_seq, feature, content)``.
        outcomes: ``(mark of the job, outcome)``.
        opened: New sessions: number, and the fact.
        spans: Rows, in place of those with the same session and ``first``.
        own: ``(mark of the session, event_seq, content)``.
        riders: ``(mark of the session, event_seq of the entry behind it, content)``.
        follows: For ``(session, job)``, as the store calls them, whether it follows.
        keys: For ``(principal, key)`` what it stands for from here on, or ``None``.
        ledger: The entries, by their ids.
    """

    def __init__(self, existing: Existing) -> None:
        self._existing = existing
        self.jobs: dict[str, JobMark] = {}
        self.sessions: dict[str, SessionMark] = {}
        self.accepted: list[tuple[int, JobAccepted]] = []
        self.owners: list[tuple[int, str]] = []
        self.events: list[tuple[JobMark, int, str | None, bytes]] = []
        self.outcomes: list[tuple[JobMark, bytes]] = []
        self.opened: list[tuple[int, SessionOpened]] = []
        self.spans: list[SpanRow] = []
        self.own: list[tuple[SessionMark, int, bytes]] = []
        self.riders: list[tuple[SessionMark, int, bytes]] = []
        self.follows: dict[tuple[int, int], bool] = {}
        self.keys: dict[tuple[str, str], StoredKey | None] = {}
        self.ledger: dict[str, LedgerEntry] = {}

    def add(self, writes: Iterable[Write]) -> None:
        """Add the facts of a batch.

        Raises:
            BatchRefusedError: They contradict what is there; the planner is of no use any more.
        """
        for write in writes:
            self._ADD[type(write)](self, write)

    def finish(self) -> None:
        """Gather the spans that the newest numbers are of. Once, after the last batch."""
        for session in self.sessions.values():
            self._close_span(session)

    # --- marks --------------------------------------------------------------------------------------

    def _job(self, job_id: str) -> JobMark:
        mark = self.jobs.get(job_id) or self._existing.find_job(job_id)
        # One that was evicted may be there for a while, for the windows that have it.
        if mark is None or mark.evicted:
            raise ConflictError(f"there is no job {job_id}")
        if job_id not in self.jobs:
            mark = self.jobs[job_id] = mark.copy()
        return mark

    def _running(self, job_id: str) -> JobMark:
        mark = self._job(job_id)
        if mark.status is not None:
            raise ConflictError(f"job {job_id} has ended")
        return mark

    def _session(self, session_id: str) -> SessionMark:
        mark = self.sessions.get(session_id)
        if mark is None:
            found = self._existing.find_session(session_id)
            if found is None:
                raise ConflictError(f"there is no session {session_id}")
            mark = self.sessions[session_id] = found.copy()
        if mark.ended:
            raise ConflictError(f"session {session_id} has ended")
        return mark

    # --- numbers ------------------------------------------------------------------------------------

    def _count_event(self, job: JobMark, job_seq: int, numbers: Numbers) -> None:
        """Give a job's next event its numbers."""
        if job_seq != job.last_seq + 1 or job_seq > MAX_SEQ:
            raise ConflictError(f"job {job.job_id}: event {job_seq} cannot follow {job.last_seq}")
        job.last_seq = job_seq
        sessions = self.sessions
        for session_id, event_seq in numbers:
            session = sessions.get(session_id) or self._session(session_id)
            if event_seq != session.last_seq + 1 or event_seq > MAX_SEQ or session.ended:
                raise ConflictError(f"session {session_id}: number {event_seq} cannot follow {session.last_seq}")
            session.last_seq = event_seq
            span = session.span
            if span is None or span[1] != job.number or job_seq - span[2] != event_seq - span[0]:
                self._open_span(session, (event_seq, job.number, job_seq), before=event_seq - 1)
            session.grown = True

    def _open_span(self, session: SessionMark, span: OpenSpan | None, *, before: int) -> None:
        self._close_span(session, before)
        session.span = span

    def _close_span(self, session: SessionMark, last: int | None = None) -> None:
        if session.grown and session.span is not None:
            first, job, job_first = session.span
            self.spans.append((session.number, first, session.last_seq if last is None else last, job, job_first))
        session.grown = False

    # --- facts --------------------------------------------------------------------------------------

    def _add_event(self, write: EventAppended) -> None:
        job = self._running(write.job_id)
        self._count_event(job, write.job_seq, write.numbers)
        self.events.append((job, write.job_seq, write.feature, write.content))

    def _add_job(self, write: JobAccepted) -> None:
        if write.job_id in self.jobs or self._existing.find_job(write.job_id) is not None:
            raise ConflictError(f"there is a job {write.job_id} already")
        number = self._existing.new_job_number()
        self.jobs[write.job_id] = JobMark(job_id=write.job_id, number=number)
        self.accepted.append((number, write))

    def _add_owner(self, write: JobOwned) -> None:
        self.owners.append((self._job(write.job_id).number, write.session_id))

    def _add_outcome(self, write: OutcomeDecided) -> None:
        job = self._running(write.job_id)
        if job.decided:
            raise ConflictError(f"the outcome of {write.job_id} was decided before")
        job.decided = True
        self.outcomes.append((job, write.outcome))

    def _end_job(self, write: JobEnded) -> None:
        job = self._running(write.job_id)
        if not job.decided:
            raise ConflictError(f"the outcome of {write.job_id} was not decided")
        self._count_event(job, write.job_seq, write.numbers)
        job.status = write.status
        job.ended_at_ms = write.ended_at_ms
        job.changed = True

    def _trim_history(self, write: HistoryTrimmed) -> None:
        job = self._job(write.job_id)
        if write.floor > job.last_seq:
            raise ConflictError(f"job {write.job_id}: floor {write.floor} is beyond {job.last_seq}")
        if write.floor > job.floor:
            job.floor = write.floor
            job.changed = True

    def _evict_job(self, write: JobEvicted) -> None:
        job = self._job(write.job_id)
        if job.status is None:
            raise ConflictError(f"job {write.job_id} runs: it cannot be evicted")
        job.evicted = job.changed = True

    def _claim_key(self, write: KeyClaimed) -> None:
        place = write.principal, write.key
        taken = self.keys[place] if place in self.keys else self._existing.find_key(*place)
        if taken is not None and taken.job_id != write.job_id and not self._evicts(taken.job_id):
            raise KeyTakenError(taken)
        self.keys[place] = StoredKey(principal=write.principal, key=write.key, digest=write.digest, job_id=write.job_id)

    def _evicts(self, job_id: str) -> bool:
        """Say whether a job, and with it its keys, goes in this very transaction."""
        mark = self.jobs.get(job_id)
        return mark is not None and mark.evicted

    def _release_key(self, write: KeyReleased) -> None:
        self.keys[write.principal, write.key] = None

    def _open_session(self, write: SessionOpened) -> None:
        if write.session_id in self.sessions or self._existing.find_session(write.session_id) is not None:
            raise ConflictError(f"there is a session {write.session_id} already")
        number = self._existing.new_session_number()
        self.sessions[write.session_id] = SessionMark(session_id=write.session_id, number=number)
        self.opened.append((number, write))

    def _change_tokens(self, write: TokensChanged) -> None:
        session = self._session(write.session_id)
        session.tokens = write.hashes
        session.changed = True

    def _add_span(self, write: SpanAppended) -> None:
        session = self._session(write.session_id)
        job = self._job(write.job_id)
        job_last = write.job_first + write.last - write.first
        if write.first != session.last_seq + 1 or not write.first <= write.last <= MAX_SEQ:
            raise ConflictError(
                f"session {write.session_id}: numbers {write.first} to {write.last} cannot follow {session.last_seq}"
            )
        if not job.floor < write.job_first <= job_last <= job.last_seq:
            raise ConflictError(
                f"job {write.job_id}: of events {write.job_first} to {job_last} it has those from {job.floor + 1} to"
                f" {job.last_seq}"
            )
        self._open_span(session, (write.first, job.number, write.job_first), before=session.last_seq)
        session.last_seq = write.last
        session.grown = True

    def _add_own(self, write: OwnAppended) -> None:
        session = self._session(write.session_id)
        if write.event_seq != session.last_seq + 1 or write.event_seq > MAX_SEQ:
            raise ConflictError(
                f"session {write.session_id}: number {write.event_seq} cannot follow {session.last_seq}"
            )
        self._open_span(session, None, before=session.last_seq)
        session.last_seq = write.event_seq
        self.own.append((session, write.event_seq, write.content))

    def _add_rider(self, write: RiderAppended) -> None:
        session = self._session(write.session_id)
        self.riders.append((session, session.last_seq + 1, write.content))

    def _acknowledge(self, write: SessionAcknowledged) -> None:
        session = self._session(write.session_id)
        self._raise_floor(session, write.event_seq)
        if write.event_seq > session.acked:
            session.acked = write.event_seq
            session.changed = True

    def _trim_window(self, write: WindowTrimmed) -> None:
        self._raise_floor(self._session(write.session_id), write.floor)

    @staticmethod
    def _raise_floor(session: SessionMark, floor: int) -> None:
        if floor > session.last_seq:
            raise ConflictError(f"session {session.session_id}: floor {floor} is beyond {session.last_seq}")
        if floor > session.floor:
            session.floor = floor
            session.changed = True

    def _follow(self, write: SessionFollowed) -> None:
        session = self._session(write.session_id)
        self.follows[session.number, self._running(write.job_id).number] = True

    def _unfollow(self, write: SessionUnfollowed) -> None:
        session = self._session(write.session_id)
        job = self.jobs.get(write.job_id) or self._existing.find_job(write.job_id)
        if job is not None:
            self.follows[session.number, job.number] = False

    def _wait(self, write: SessionWaiting) -> None:
        session = self._session(write.session_id)
        session.waiting_since_ms = write.since_ms
        session.changed = True

    def _end_session(self, write: SessionEnded) -> None:
        session = self._session(write.session_id)
        session.tokens = ()
        session.ended = session.changed = True

    def _note(self, write: LedgerNoted) -> None:
        self.ledger[write.entry.entry_id] = write.entry

    _ADD: ClassVar[Mapping[type[Any], Callable[[Any, Any], None]]] = {
        EventAppended: _add_event,
        JobAccepted: _add_job,
        JobOwned: _add_owner,
        OutcomeDecided: _add_outcome,
        JobEnded: _end_job,
        HistoryTrimmed: _trim_history,
        JobEvicted: _evict_job,
        KeyClaimed: _claim_key,
        KeyReleased: _release_key,
        SessionOpened: _open_session,
        TokensChanged: _change_tokens,
        SpanAppended: _add_span,
        OwnAppended: _add_own,
        RiderAppended: _add_rider,
        SessionAcknowledged: _acknowledge,
        WindowTrimmed: _trim_window,
        SessionFollowed: _follow,
        SessionUnfollowed: _unfollow,
        SessionWaiting: _wait,
        SessionEnded: _end_session,
        LedgerNoted: _note,
    }
