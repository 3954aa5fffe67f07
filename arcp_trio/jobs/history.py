"""What a job has said, for those who come later: bounded by number and bytes, for each job and in all.

Sans-IO. The entries are those that the followers got: a history costs a reference for each, and the bytes once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .feed import EventEntry

__all__ = ["Histories", "JobHistory"]

# What is made free when the histories of all are full: one in so many of their bytes.
_RELIEF = 16


class JobHistory:
    """The newest events of one job.

    Attributes:
        first_seq: The job's own number of the oldest event that is here, or of the next one where none is.
        size: How many bytes the events have.
    """

    __slots__ = ("_entries", "_histories", "_kept", "first_seq", "size")

    def __init__(self, histories: Histories, kept: _Kept) -> None:
        self._histories = histories
        self._kept = kept
        # Made with the first event: many jobs have none.
        self._entries: deque[EventEntry] | None = None
        self.first_seq = 1
        self.size = 0

    def __len__(self) -> int:
        return len(self._entries or ())

    def append(self, entry: EventEntry) -> None:
        """Keep the job's next event."""
        if self._entries is None:
            self._entries = deque()
        size = len(entry.tail)
        self._entries.append(entry)
        self.size += size
        self._histories.grown(self, self._kept, size)

    def is_over(self, events: int, size: int) -> bool:
        """Say whether it has more events, or more bytes of them, than that."""
        entries = self._entries
        return entries is not None and (len(entries) > events or (self.size > size and len(entries) > 0))

    def end(self) -> None:
        """Note that the job has ended. Called once."""
        self._histories.ended(self, self._kept)

    def forget(self) -> None:
        """Drop everything: the job has ended and is known no more."""
        self._histories.forget(self, self._kept)

    def drop_oldest(self) -> int:
        """Drop the oldest event; return how many bytes it had."""
        assert self._entries
        size = len(self._entries.popleft().tail)
        self.first_seq += 1
        self.size -= size
        return size

    def clear(self) -> int:
        """Drop everything; return how many bytes that was."""
        size = self.size
        self.first_seq += len(self)
        self._entries = None
        self.size = 0
        return size

    def after(self, job_seq: int) -> list[EventEntry]:
        """Return the events with a number greater than ``job_seq`` that are here, in order."""
        entries = self._entries or ()
        skip = max(0, job_seq + 1 - self.first_seq)
        return list(entries)[skip:]


class _Kept:
    """The histories of one principal's jobs, and their bytes."""

    __slots__ = ("ended", "principal", "running", "used")

    def __init__(self, principal: str) -> None:
        self.principal = principal
        self.running: dict[JobHistory, None] = {}
        # Those of jobs that have ended, the oldest first.
        self.ended: OrderedDict[JobHistory, None] = OrderedDict()
        self.used = 0


class Histories:
    """The bounds that all histories of a runtime share.

    Args:
        events: How many events one history keeps.
        size: How many bytes.
        total: How many bytes all have together: past it those of the principal that has most go, first of its ended
            jobs, the oldest first, then the older half of its longest, until one in sixteen of the bytes is free.
    """

    def __init__(self, *, events: int, size: int, total: int) -> None:
        self._events = events
        self._size = size
        self._total = total
        self._of: dict[str, _Kept] = {}
        self.used = 0

    def open(self, principal: str) -> JobHistory:
        """Return the history of a new job of that principal."""
        kept = self._of.get(principal)
        if kept is None:
            kept = self._of[principal] = _Kept(principal)
        history = JobHistory(self, kept)
        kept.running[history] = None
        return history

    def grown(self, history: JobHistory, kept: _Kept, size: int) -> None:
        """Keep the bounds after an event of ``size`` bytes was appended."""
        while history.is_over(self._events, self._size):
            size -= history.drop_oldest()
        kept.used += size
        self.used += size
        if self.used > self._total:
            self._relieve()

    def _relieve(self) -> None:
        # More than is needed: looking at all principals is not to be done for every event.
        target = self._total - self._total // _RELIEF
        # Negative, so that the first of the heap has most.
        used = [(-kept.used, principal) for principal, kept in self._of.items() if kept.used]
        heapify(used)
        while used and self.used > target:
            size, principal = heappop(used)
            kept = self._of[principal]
            if kept.ended:
                oldest, _ = kept.ended.popitem(last=False)
                freed = oldest.clear()
            else:
                largest = max(kept.running, key=_size_of)
                freed = sum(largest.drop_oldest() for _ in range((len(largest) + 1) // 2))
            self._note_freed(kept, freed)
            if size + freed < 0:
                heappush(used, (size + freed, principal))

    def _note_freed(self, kept: _Kept, size: int) -> None:
        kept.used -= size
        self.used -= size
        if not kept.running and not kept.ended:
            del self._of[kept.principal]

    def ended(self, history: JobHistory, kept: _Kept) -> None:
        """Note that a job has ended: its history goes before those of the jobs that run."""
        del kept.running[history]
        if len(history):
            kept.ended[history] = None
        self._note_freed(kept, 0)

    def forget(self, history: JobHistory, kept: _Kept) -> None:
        """Drop the history of an ended job that is known no more."""
        if history in kept.ended:
            del kept.ended[history]
            self._note_freed(kept, history.clear())


def _size_of(history: JobHistory) -> int:
    return history.size
