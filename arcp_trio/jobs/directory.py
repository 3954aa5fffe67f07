"""Which jobs there are: the actors that run, and the records of those that ended, with their bounds."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import TYPE_CHECKING

import attrs
import trio

from ..limits import Limits
from ..records import JobRecord
from ..timers import Timer, Timers
from ..wire.errors import InternalError
from ..wire.timestamps import parse_timestamp
from .history import Histories
from .index import JobIndex

if TYPE_CHECKING:
    from .actor import JobActor

__all__ = ["JobDirectory"]


@attrs.define
class _Retained:
    """What is retained of one principal's jobs: their ids, the oldest first, and the bytes of their records."""

    job_ids: deque[str] = attrs.field(factory=deque)
    size: int = 0


class JobDirectory:
    """Finds a job by its id. Every change is synchronous.

    Records go by age, oldest first: one deadline serves the oldest. They go by number and bytes too, and then one of
    the principal with the oldest or of the one with the newest goes, whoever has more: so nobody's jobs, however
    many, push out those of another who has few.

    Attributes:
        index: Where each of the jobs stands in a listing: it holds exactly those that :meth:`find` finds.
        histories: The bounds of what is kept of the jobs' events.
    """

    def __init__(self, limits: Limits, timers: Timers) -> None:
        self._limits = limits
        self._timers = timers
        self.index = JobIndex()
        self._actors: dict[str, JobActor] = {}
        # The oldest first.
        self._records: OrderedDict[str, JobRecord] = OrderedDict()
        self._retained: dict[str, _Retained] = {}
        self._record_bytes = 0
        self._running: Counter[str] = Counter()
        # Submits that wait to be jobs: they count in the caps, and nowhere else.
        self._waiting: Counter[str] = Counter()
        self._waiting_in_all = 0
        # A whole history fits into half of what may be unsent in a session: it alone makes nobody too slow.
        self.histories = Histories(
            events=min(limits.history_events, limits.window_events // 4),
            size=min(limits.history_bytes, limits.window_bytes // 4),
            total=limits.histories_bytes,
        )
        self._retention: Timer | None = None
        self._idle = trio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """How many jobs have not ended."""
        return len(self._actors)

    @property
    def waiting(self) -> int:
        """How many submits wait to be jobs."""
        return self._waiting_in_all

    @property
    def retained(self) -> int:
        """How many records there are."""
        return len(self._records)

    @property
    def retained_bytes(self) -> int:
        """About how many bytes the records keep."""
        return self._record_bytes

    def actors(self) -> list[JobActor]:
        """Return the jobs that have not ended, oldest first."""
        return list(self._actors.values())

    def find(self, job_id: str) -> JobActor | JobRecord | None:
        """Return the job, whether it runs or has ended; ``None`` if it is not known (any more)."""
        return self._actors.get(job_id) or self._records.get(job_id)

    def check_room(self, principal: str) -> None:
        """Check the caps on running jobs (P6.3).

        Raises:
            InternalError: A cap is reached; retryable, ``details`` names the limit.
        """
        for limit, count, cap in (
            (
                "jobs_per_principal",
                self._running[principal] + self._waiting[principal],
                self._limits.jobs_per_principal,
            ),
            ("jobs", len(self._actors) + self.waiting, self._limits.jobs),
        ):
            if count >= cap:
                raise InternalError(
                    f"{count} jobs are running, the limit {limit}", details={"limit": limit, "value": cap}
                )

    def reserve(self, principal: str) -> None:
        """Count a submit that waits to be a job; there is room for it."""
        self._waiting[principal] += 1
        self._waiting_in_all += 1
        if self._idle.is_set():
            self._idle = trio.Event()

    def release(self, principal: str) -> None:
        """Count it no more: it becomes a job now, or is refused."""
        self._waiting_in_all -= 1
        self._waiting[principal] -= 1
        if not self._waiting[principal]:
            del self._waiting[principal]
        self._note_idle()

    def add(self, actor: JobActor) -> None:
        """Add a job that was accepted."""
        self._actors[actor.job_id] = actor
        self._running[actor.principal] += 1
        self.index.add(
            actor.job_id,
            principal=actor.principal,
            agent=actor.agent.resolved,
            status=actor.status,
            created_at=parse_timestamp(actor.created_at),
        )
        if self._idle.is_set():
            self._idle = trio.Event()

    def note_status(self, actor: JobActor) -> None:
        """Take note that a job's status has changed, from pending to running."""
        self.index.move(actor.job_id, actor.status)

    def finish(self, record: JobRecord) -> None:
        """Swap a job's actor for its record: from here on it reads as ended."""
        del self._actors[record.job_id]
        self._running[record.principal] -= 1
        if not self._running[record.principal]:
            del self._running[record.principal]
        self._records[record.job_id] = record
        self.index.move(record.job_id, record.status)
        theirs = self._retained.setdefault(record.principal, _Retained())
        theirs.job_ids.append(record.job_id)
        theirs.size += record.size
        self._record_bytes += record.size
        record.feed.history.end()
        while len(self._records) > self._limits.retention_records:
            others = self._retained[self._oldest.principal]
            self._evict(others if len(others.job_ids) >= len(theirs.job_ids) else theirs)
        while self._record_bytes > self._limits.retention_bytes and len(self._records) > 1:
            others = self._retained[self._oldest.principal]
            # Not the newest itself, however large.
            self._evict(others if others.size >= theirs.size or len(theirs.job_ids) == 1 else theirs)
        self._arm()
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._actors and not self._waiting_in_all:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no job runs, and no submit waits to be one. A checkpoint; cancelling it changes nothing."""
        await self._idle.wait()

    @property
    def _oldest(self) -> JobRecord:
        return next(iter(self._records.values()))

    def _evict(self, theirs: _Retained) -> None:
        """Forget a principal's oldest record."""
        record = self._records.pop(theirs.job_ids.popleft())
        theirs.size -= record.size
        if not theirs.job_ids:
            del self._retained[record.principal]
        self._record_bytes -= record.size
        self.index.remove(record.job_id)
        record.feed.history.forget()

    def _arm(self) -> None:
        if self._retention is None and self._records:
            until = self._oldest.ended_at + self._limits.retention_seconds
            self._retention = self._timers.call_at(until, self._expire)

    def _expire(self) -> None:
        self._retention = None
        now = trio.current_time()
        while self._records and self._oldest.ended_at + self._limits.retention_seconds <= now:
            # The oldest of all is the oldest of its principal.
            self._evict(self._retained[self._oldest.principal])
        self._arm()
