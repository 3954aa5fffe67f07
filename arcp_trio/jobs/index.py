"""Where every job stands in a listing: by principal, status and agent, in the order of creation. Sans-IO.

Theory of operation. Jobs that a filter cannot tell apart share a *bucket*, a sorted sequence of their keys. A filter
names buckets, never jobs, so a page is a merge of the buckets that match, each entered where the last page ended: its
cost is the number of those buckets and the length of the page, whatever else is known (P6.19).

A place in the order is a key, ``(created_at, job_id)``, and not an offset or a reference to a job: what is
inserted, completed or evicted between two pages can make the next one skip or repeat nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from heapq import merge
from itertools import islice
from typing import Protocol

import attrs
from sortedcontainers import SortedList

__all__ = ["JobFilter", "JobIndex", "Key", "Page"]

Key = tuple[int, str]
"""A job's place in every listing: when it was created, in milliseconds since 1970, and its id."""


class _Keys(Protocol):
    """What is used of a SortedList, which has no types of its own. All but its length is O(log n)."""

    def add(self, value: Key) -> None: ...

    def remove(self, value: Key) -> None: ...

    def irange(self, minimum: Key | None, *, inclusive: tuple[bool, bool]) -> Iterator[Key]: ...

    def __len__(self) -> int: ...


@attrs.frozen(eq=False)
class _Bucket:
    """The jobs that have all this in common."""

    principal: str
    status: str
    agent: str
    keys: _Keys = attrs.field(factory=SortedList)


@attrs.frozen(kw_only=True)
class JobFilter:
    """Which jobs are wanted; ``None`` leaves a property open.

    Attributes:
        statuses: The statuses, as the wire names them.
        agent: An agent's name, for all of its versions, or ``name@version``.
        created_after: Milliseconds since 1970; a job of that very millisecond is not wanted (P6.19).
    """

    statuses: frozenset[str] | None = None
    agent: str | None = None
    created_after: int | None = None

    def _admits(self, bucket: _Bucket) -> bool:
        if self.statuses is not None and bucket.status not in self.statuses:
            return False
        return self.agent is None or self.agent in (bucket.agent, bucket.agent.partition("@")[0])


@attrs.frozen
class Page:
    """A part of a listing.

    Attributes:
        keys: The jobs, oldest first.
        more: Whether at least one job follows the last of them.
    """

    keys: tuple[Key, ...]
    more: bool


class JobIndex:
    """Finds the jobs of some principals, in the order of creation. Reading changes nothing (L26)."""

    def __init__(self) -> None:
        self._buckets: dict[str, dict[tuple[str, str], _Bucket]] = {}
        self._places: dict[str, tuple[_Bucket, Key]] = {}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def buckets(self) -> int:
        """How many buckets there are; none is empty."""
        return sum(map(len, self._buckets.values()))

    def add(self, job_id: str, *, principal: str, agent: str, status: str, created_at: int) -> None:
        """Add a job.

        Args:
            job_id: The job; not in the index yet.
            principal: The name of who submitted it.
            agent: The resolved agent, ``name@version``.
            status: Its status, as the wire names it.
            created_at: Milliseconds since 1970.
        """
        assert job_id not in self._places
        self._put(principal, status, agent, (created_at, job_id))

    def move(self, job_id: str, status: str) -> None:
        """Change a job's status; its place in the order stays.

        Raises:
            KeyError: There is no such job.
        """
        bucket, key = self._places[job_id]
        if bucket.status != status:
            self._take(bucket, key)
            self._put(bucket.principal, status, bucket.agent, key)

    def remove(self, job_id: str) -> None:
        """Forget a job.

        Raises:
            KeyError: There is no such job.
        """
        self._take(*self._places.pop(job_id))

    def page(
        self,
        principals: Collection[str],
        wanted: JobFilter,
        *,
        limit: int,
        after: Key | None = None,
        visible: Callable[[str, str], bool] | None = None,
    ) -> Page:
        """Return the first jobs, oldest first, equal times by id.

        Args:
            principals: The names of those whose jobs are listed.
            wanted: Which of their jobs.
            limit: How many at most.
            after: The last key of the page before, of the same filter; it need not be in the index any more.
            visible: Says of an owner's name and an agent (``name@version``) whether such jobs may be seen; asked
                once for a bucket, not for a job. ``None`` hides nothing.
        """
        if after is None and wanted.created_after is not None:
            # Below every id of the next millisecond: an id is never empty.
            after = (wanted.created_after + 1, "")
        runs = [
            bucket.keys.irange(after, inclusive=(False, True))
            for principal in set(principals)
            for bucket in self._buckets.get(principal, {}).values()
            if wanted._admits(bucket) and (visible is None or visible(principal, bucket.agent))  # noqa: SLF001
        ]
        # One more than is listed, to know whether it is there.
        found = tuple(islice(merge(*runs), limit + 1))
        return Page(found[:limit], len(found) > limit)

    def _put(self, principal: str, status: str, agent: str, key: Key) -> None:
        buckets = self._buckets.setdefault(principal, {})
        bucket = buckets.get((status, agent))
        if bucket is None:
            bucket = buckets[status, agent] = _Bucket(principal, status, agent)
        bucket.keys.add(key)
        self._places[key[1]] = (bucket, key)

    def _take(self, bucket: _Bucket, key: Key) -> None:
        """Take a key out of its bucket; an empty one goes, so that nothing stays of a principal without jobs."""
        bucket.keys.remove(key)
        if not bucket.keys:
            buckets = self._buckets[bucket.principal]
            del buckets[bucket.status, bucket.agent]
            if not buckets:
                del self._buckets[bucket.principal]
