"""What a job has said, for those who come later: bounded by number and bytes, for each job and in all.

Sans-IO. The entries are those that the followers got: a history costs a reference for each, and the bytes once.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .feed import EventEntry

__all__ = ["Histories", "JobHistory"]


class JobHistory:
    """The newest events of one job.

    Attributes:
        first_seq: The job's own number of the oldest event that is here, or of the next one where none is.
        size: How many bytes the events have.
    """

    __slots__ = ("_entries", "_histories", "first_seq", "size")

    def __init__(self, histories: Histories) -> None:
        self._histories = histories
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
        self._entries.append(entry)
        self.size += len(entry.tail)
        self._histories.grown(self, len(entry.tail))

    def drop_oldest(self) -> int:
        """Drop the oldest event; return how many bytes it had."""
        assert self._entries
        entry = self._entries.popleft()
        self.first_seq += 1
        self.size -= len(entry.tail)
        return len(entry.tail)

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


class Histories:
    """The bounds that all histories of a runtime share.

    Args:
        events: How many events one history keeps.
        size: How many bytes.
        total: How many bytes all have together: past it those of ended jobs go, the oldest first, and then the
            oldest events of the history that has grown.
    """

    def __init__(self, *, events: int, size: int, total: int) -> None:
        self._events = events
        self._size = size
        self._total = total
        self._ended: OrderedDict[str, JobHistory] = OrderedDict()
        self.used = 0

    def open(self) -> JobHistory:
        """Return the history of a new job."""
        return JobHistory(self)

    def grown(self, history: JobHistory, size: int) -> None:
        """Keep the bounds after an event of ``size`` bytes was appended."""
        self.used += size
        while len(history) > self._events or (history.size > self._size and len(history)):
            self.used -= history.drop_oldest()
        while self.used > self._total and self._ended:
            _, oldest = self._ended.popitem(last=False)
            self.used -= oldest.clear()
        while self.used > self._total and len(history):
            self.used -= history.drop_oldest()

    def ended(self, job_id: str, history: JobHistory) -> None:
        """Note that a job has ended: its history may go when room is needed."""
        if len(history):
            self._ended[job_id] = history

    def forget(self, job_id: str) -> None:
        """Drop the history of an ended job that is known no more."""
        history = self._ended.pop(job_id, None)
        if history is not None:
            self.used -= history.clear()
