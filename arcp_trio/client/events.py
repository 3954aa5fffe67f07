"""A job's events as its handle keeps them for a reader: a bounded tail (design.md, "The client")."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from copy import copy
from typing import Any

import attrs
import trio

from ..limits import ClientLimits
from ..wire.codec import structure_body
from ..wire.errors import ARCPError
from ..wire.events import EVENT_BODIES
from ..wire.jsontext import JSONValue

__all__ = ["Event", "EventIterator", "EventTail", "Skipped"]


@attrs.frozen(kw_only=True, eq=False)
class Event:
    """A job.event as it was received.

    Attributes:
        job_id: Its job.
        kind: One of the ten kinds of section 8.2, or another (P5.4).
        body: A JSON object.
        ts: When it was emitted, as the runtime wrote it; ``None`` where it wrote none.
        event_seq: Its number in this session.
        job_seq: Its number in the job's own counting, from runtimes that give one.
    """

    job_id: str
    kind: str
    body: dict[str, JSONValue]
    ts: str | None = None
    event_seq: int | None = None
    job_seq: int | None = None

    def parse(self) -> Any:
        """Return the body as the class of its kind (:mod:`arcp_trio.wire.events`), or as it is for another kind.

        Raises:
            InvalidRequestError: It does not have the shape of its kind.
        """
        cls = EVENT_BODIES.get(self.kind)
        return self.body if cls is None else structure_body(cls, self.body, "$.payload.body")


@attrs.frozen
class Skipped:
    """Stands where events were dropped because the handle's reader was too slow.

    Attributes:
        count: How many.
    """

    count: int


class EventTail:
    """The newest events of one job, bounded by count and bytes; past that the oldest are dropped and counted."""

    __slots__ = ("_error", "_events", "_limits", "_over", "_reader", "_size", "_skipped")

    def __init__(self, limits: ClientLimits) -> None:
        self._limits = limits
        self._events: deque[tuple[Event, int]] = deque()
        self._size = 0
        self._skipped = 0
        self._reader: trio.lowlevel.Task | None = None
        self._over = False
        self._error: ARCPError | None = None

    def __len__(self) -> int:
        """Return how many events are kept."""
        return len(self._events)

    def append(self, event: Event, size: int) -> None:
        """Keep an event of ``size`` bytes."""
        self._events.append((event, size))
        self._size += size
        while len(self._events) > self._limits.events or (
            self._size > self._limits.event_bytes and len(self._events) > 1
        ):
            _, dropped = self._events.popleft()
            self._size -= dropped
            self._skipped += 1
        self._wake()

    def finish(self, error: ARCPError | None = None) -> None:
        """Take note that no more will come: the reader's iteration ends, or raises ``error``."""
        if not self._over:
            self._over = True
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None:
            trio.lowlevel.reschedule(self._reader)
            self._reader = None

    async def next(self) -> Event | Skipped | None:
        """Return the next event; ``None`` at the end.

        Raises:
            ARCPError: What :meth:`finish` was given.
            trio.BusyResourceError: Another task reads.

        Cancellation: no event is lost.
        """
        # Ready events cost no turn of the loop each: the buffer is bounded, and so is their number.
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self._skipped:
                skipped, self._skipped = self._skipped, 0
                return Skipped(skipped)
            if self._events:
                event, size = self._events.popleft()
                self._size -= size
                return event
            if self._over:
                if self._error is not None:
                    raise copy(self._error)
                return None
            if self._reader is not None:
                raise trio.BusyResourceError("another task reads this job's events")
            self._reader = trio.lowlevel.current_task()

            def unpark(_: object) -> trio.lowlevel.Abort:
                self._reader = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(unpark)


class EventIterator(AsyncIterator["Event | Skipped"]):
    """The one reader of a handle's events."""

    def __init__(self, tail: EventTail) -> None:
        self._tail = tail

    def __aiter__(self) -> EventIterator:
        return self

    async def __anext__(self) -> Event | Skipped:
        item = await self._tail.next()
        if item is None:
            raise StopAsyncIteration
        return item
