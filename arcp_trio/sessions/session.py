"""A session: who it belongs to, what was negotiated, what it follows, and its stream.

A session is not its connection (:mod:`arcp_trio.sessions.connection`): jobs and feeds know the session
alone, so a connection that breaks takes no job with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from ..jobs.actor import JobActor
from ..jobs.agents import Inventory
from ..jobs.feed import Entry, JobFeed, Shape
from ..limits import Limits
from .auth import Principal
from .stream import SessionStream

__all__ = ["Session", "SessionConnection"]


class SessionConnection(Protocol):
    """What a session asks of its connection. Synchronous; never fails."""

    def wake(self) -> None:
        """The stream has something to send."""

    def too_slow(self, limit: str) -> None:
        """More is unsent than ``limit`` allows: this connection has to end (P6.18)."""


class Session:
    """One session.

    It is a follower of the jobs that it submitted, and what their agents wait for when it lags.
    All methods but :meth:`wait_for_room` are synchronous and never fail.

    Attributes:
        session_id: Its id.
        principal: Who it belongs to.
        shape: What was negotiated: dialect and features.
        inventory: The agents as its welcome advertised them.
        stream: What it has still to be told.
    """

    def __init__(
        self,
        session_id: str,
        *,
        principal: Principal,
        shape: Shape,
        inventory: Inventory,
        limits: Limits,
        closed: Callable[[Session], None],
    ) -> None:
        self.session_id = session_id
        self.principal = principal
        self.shape = shape
        self.inventory = inventory
        self.stream = SessionStream(session_id)
        self._limits = limits
        self._closed = closed
        self._connection: SessionConnection | None = None
        self._followed: dict[JobFeed, JobActor] = {}
        self._open = True
        self._room = trio.Event()
        self._throttle_until: float | None = None

    def __repr__(self) -> str:
        return f"<Session {self.session_id} of {self.principal.name!r}>"

    @property
    def followed(self) -> int:
        """How many jobs it follows."""
        return len(self._followed)

    def attach(self, connection: SessionConnection) -> None:
        """Take a connection."""
        self._connection = connection

    def close(self) -> None:
        """End the session: its jobs go on, without it. Twice is once."""
        if not self._open:
            return
        self._open = False
        self._connection = None
        for feed, actor in self._followed.items():
            feed.unfollow(self)
            if actor.throttle is self:
                actor.throttle = None
        self._followed.clear()
        self.stream.clear()
        self._room.set()
        self._closed(self)

    def follow(self, actor: JobActor) -> None:
        """Follow a job from now on."""
        self._followed[actor.feed] = actor
        actor.feed.follow(self)

    def ride(self, frame: bytes) -> None:
        """Append a frame without a number, in its place among the events."""
        if self._open:
            self.stream.append_rider(frame)
            self._appended()

    # --- as a follower ----------------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        """Number an entry, unless it needs a feature that was not negotiated (P6.4)."""
        if self._open and (entry.feature is None or entry.feature in self.shape.features):
            self.stream.append(entry.tail_for(self.shape))
            self._appended()

    def job_ended(self, feed: JobFeed) -> None:
        """Let a job go whose terminal event was appended."""
        self._followed.pop(feed, None)

    def _appended(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if self.stream.unsent_events > self._limits.unsent_events:
            connection.too_slow("unsent_events")
        elif self.stream.unsent_bytes > self._limits.unsent_bytes:
            connection.too_slow("unsent_bytes")
        else:
            connection.wake()

    # --- as what its agents wait for --------------------------------------------------------------

    def take(self, limit: int) -> list[bytes]:
        """Take frames for the connection; wakes the agents that wait, once the lag has fell by half."""
        frames = self.stream.take(limit)
        if (
            self._throttle_until is not None
            and self.stream.unsent_events * 2 <= self._limits.throttle_events
            and self.stream.unsent_bytes * 2 <= self._limits.throttle_bytes
        ):
            # The episode is over: the next one has its whole time again.
            self._throttle_until = None
            self._room.set()
            self._room = trio.Event()
        return frames

    def lags(self) -> bool:
        """Say whether this session's agents should wait for it."""
        if self._connection is None or not (
            self.stream.unsent_events > self._limits.throttle_events
            or self.stream.unsent_bytes > self._limits.throttle_bytes
        ):
            return False
        return self._throttle_until is None or trio.current_time() < self._throttle_until

    async def wait_for_room(self) -> None:
        """Wait until it lags no more, at most ``Limits.throttle_seconds`` in one episode of lag."""
        if self._throttle_until is None:
            self._throttle_until = trio.current_time() + self._limits.throttle_seconds
        with trio.CancelScope(deadline=self._throttle_until):
            await self._room.wait()
