"""A session: who it belongs to, what was negotiated, what it follows, its stream, and who may resume it.

A session outlives its connections (:mod:`arcp_trio.sessions.connection`): jobs and feeds know the session
alone, so a connection that breaks takes no job with it. Without one it waits for its client, for
``Limits.resume_seconds``, if there is anything to come back for (P6.12).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from ..jobs.actor import JobActor
from ..jobs.admission import Line
from ..jobs.agents import Inventory
from ..jobs.feed import Entry, JobFeed, Shape
from ..limits import Limits
from ..timers import Timer, Timers
from ..wire.codec import encode_payload
from ..wire.envelope import encode_tail
from ..wire.errors import InternalError
from ..wire.events import BACK_PRESSURE, Status
from ..wire.ids import IdFactory
from ..wire.session_messages import CREDENTIALS_FEATURE
from ..wire.timestamps import WallClock
from ..wire.tracecontext import TraceContext
from ..wire.withheld import Content
from .acceptance import describe_accepted
from .auth import Principal
from .replies import Replies
from .retransmissions import Retransmissions
from .stream import SessionStream, StreamBounds, WindowTotal
from .tokens import ResumeTokens

if TYPE_CHECKING:
    from ..spans import Spans

__all__ = ["Session", "SessionConnection", "SessionParts"]


class SessionConnection(Protocol):
    """What a session asks of its connection. Synchronous; never fails."""

    @property
    def private(self) -> bool:
        """Whether nobody on the way can read it."""
        ...

    def wake(self) -> None:
        """The stream has something to send."""

    def too_slow(self, limit: str, resumable_from: int) -> None:
        """More is unsent than ``limit`` allows: this connection has to end (P6.18)."""

    def replaced(self) -> None:
        """Another connection has taken the session over: this one gets nothing more (P6.11)."""


@attrs.frozen(kw_only=True)
class SessionParts:
    """What all sessions of a runtime share.

    Attributes:
        ids: Where the ids of their frames come from.
        spans: Starts their spans; ``None`` where there is no OpenTelemetry.
        total: The bytes of all their windows.
        relieve: Makes room in it, at the cost of those who have most of it.
        attached: Is told of a session that has a connection from now on.
        detached: Is told of a session that waits for its client from now on.
        ended: Is told of a session that is no more.
    """

    limits: Limits
    ids: IdFactory
    clock: WallClock
    timers: Timers
    spans: Spans | None
    total: WindowTotal
    relieve: Callable[[WindowTotal], None]
    attached: Callable[[Session], None]
    detached: Callable[[Session], None]
    ended: Callable[[Session], None]


@attrs.frozen(eq=False)
class _Waiting:
    """A subscription that waits for room."""

    feed: JobFeed
    do: Callable[[bool], None]


@attrs.define(eq=False)
class _Joining:
    """A delegated job whose feed is still to join."""

    child: JobActor
    # For its history, behind the submits that it had to wait for.
    waits_for_room: bool = False


class Session:
    """One session.

    It is a follower of the jobs that it submitted or subscribed to, and what the agents of the former wait for when
    it lags. All methods but :meth:`wait_for_room` are synchronous and never fail.

    Attributes:
        session_id: Its id.
        principal: Who it belongs to, as its present connection's token says.
        shape: What was negotiated: dialect and features, for the session's whole life (P6.9).
        inventory: The agents as its first welcome advertised them.
        stream: What its client has still to be told, and may ask for again.
        tokens: Who may resume it.
        retransmissions: What it was asked lately (P5.7).
        submits: Its submits that wait to be accepted, in their order.
    """

    def __init__(
        self,
        session_id: str,
        *,
        principal: Principal,
        shape: Shape,
        inventory: Inventory,
        parts: SessionParts,
        trace: TraceContext | None = None,
    ) -> None:
        limits = parts.limits
        self.session_id = session_id
        self.principal = principal
        self.shape = shape
        self.inventory = inventory
        bounds = StreamBounds(
            window_events=limits.window_events,
            window_bytes=limits.window_bytes,
            lag_events=limits.lag_events,
            lag_bytes=limits.lag_bytes,
            unacked_events=limits.unacked_events if "ack" in shape.features else None,
        )
        self.stream = SessionStream(session_id, bounds, parts.total)
        self.tokens = ResumeTokens()
        self.retransmissions = Retransmissions(limits.remembered_messages, limits.remembered_bytes)
        self.submits = Line(self.submit_begins, self.submit_answered)
        self._parts = parts
        self._limits = limits
        self._connection: SessionConnection | None = None
        self._followed: dict[JobFeed, JobActor] = {}
        # Subscriptions that wait until their histories have room, oldest first.
        self._waiting: deque[_Waiting] = deque()
        # Delegated jobs of its own that it was not told of yet, oldest first.
        self._joining: dict[JobFeed, _Joining] = {}
        self._submits = 0
        self._open = True
        self._window: Timer | None = None
        self._pause: Timer | None = None
        self._room = trio.Event()
        self._throttle_until: float | None = None
        self._span = None if parts.spans is None else parts.spans.start_session(session_id, trace)

    def __repr__(self) -> str:
        return f"<Session {self.session_id} of {self.principal.name!r}>"

    @property
    def followed(self) -> int:
        """How many jobs it follows."""
        return len(self._followed)

    @property
    def waiting(self) -> int:
        """How many subscriptions wait until there is room for their histories."""
        return len(self._waiting)

    @property
    def is_connected(self) -> bool:
        """Whether it has a connection."""
        return self._connection is not None

    # --- its connections ----------------------------------------------------------------------------

    def is_connected_by(self, connection: SessionConnection) -> bool:
        """Say whether ``connection`` is the one that it has."""
        return self._connection is connection

    def attach(self, connection: SessionConnection, *, resume_from: int | None = None) -> None:
        """Take a connection; a takeover, if there is one (P6.11).

        One step: from here on the old one gets nothing, and the new one all after ``resume_from``.
        """
        old, self._connection = self._connection, connection
        if self._window is not None:
            self._window.cancel()
            self._window = None
        # The old one's, if there is one: the new one has its own.
        self.end_pause()
        if resume_from is not None:
            self.stream.rewind(resume_from)
        self._parts.attached(self)
        if old is not None:
            old.replaced()

    def detach(self, connection: SessionConnection) -> None:
        """Lose that connection, and wait for the client, if there is anything to come back for (P6.12)."""
        if self._connection is not connection:
            # Another one has taken over.
            return
        self._connection = None
        self.end_pause()
        self._end_throttling()
        if not (self._followed or self._waiting or self._joining or self._submits or self.stream.kept_events):
            self.close()
            return
        self._window = self._parts.timers.call_at(trio.current_time() + self._limits.resume_seconds, self.close)
        self._parts.detached(self)

    def close(self) -> None:
        """End the session: its jobs go on, without it. Twice is once."""
        if not self._open:
            return
        self._open = False
        self._connection = None
        if self._window is not None:
            self._window.cancel()
            self._window = None
        for feed, actor in self._followed.items():
            feed.unfollow(self)
            if actor.throttle is self:
                actor.throttle = None
        self._followed.clear()
        self._waiting.clear()
        self._joining.clear()
        self.end_pause()
        self.stream.clear()
        self._end_throttling()
        self.end_span()
        self._parts.ended(self)

    def end_span(self) -> None:
        """Say that the session is over, or that its runtime is. Twice is once."""
        if self._span is not None:
            self._span.end()

    def give_way(self) -> None:
        """Make room for others: what was sent goes first, by halves, then the connection, then the session."""
        if self.stream.evict():
            return
        connection = self._connection
        if connection is None:
            self.close()
        else:
            connection.too_slow("windows_bytes", self.stream.floor)
            # One that says goodbye already hears nothing.
            self.detach(connection)

    # --- what it follows ----------------------------------------------------------------------------

    def follow(self, actor: JobActor) -> None:
        """Follow a job from now on; not once this session has ended, perhaps by what came just before."""
        if not self._open:
            return
        self._followed[actor.feed] = actor
        actor.feed.follow(self)

    def follows(self, actor: JobActor) -> bool:
        """Say whether it follows a job."""
        return actor.feed in self._followed

    def unfollow(self, feed: JobFeed) -> None:
        """Follow a job no more, nor when there is room; harmless if it does not."""
        if self._followed.pop(feed, None) is not None:
            feed.unfollow(self)
        for waiting in [each for each in self._waiting if each.feed is feed]:
            self._waiting.remove(waiting)
            waiting.do(False)

    def when_room(self, feed: JobFeed, do: Callable[[bool], None]) -> None:
        """Join a job once its history fits in the stream beside what is unsent: now, if it does.

        Args:
            feed: The job's.
            do: Called once, with whether the session still wants to join. Synchronous; never fails.

        Raises:
            InternalError: Too many wait already, the limit waiting_subscribes.
        """
        has_to_wait = bool(self._waiting) or not self._has_room(feed)
        if has_to_wait and len(self._waiting) >= self._limits.waiting_subscribes:
            raise InternalError(
                "more subscriptions wait for their histories than the limit waiting_subscribes",
                details={"limit": "waiting_subscribes", "value": self._limits.waiting_subscribes},
            )
        self._do_when_room(feed, do)

    def _do_when_room(self, feed: JobFeed, do: Callable[[bool], None]) -> None:
        if not self._waiting and self._has_room(feed):
            do(True)
        else:
            self._waiting.append(_Waiting(feed, do))

    def _has_room(self, feed: JobFeed) -> bool:
        # As the history is now: it may have grown while its subscription waited. One of its largest size goes when
        # nothing else is unsent.
        stream, history = self.stream, feed.history
        return stream.unsent_events == 0 or (
            (stream.unsent_events + len(history)) * 4 <= self._limits.window_events
            and (stream.unsent_bytes + history.size) * 4 <= self._limits.window_bytes
        )

    # --- what the jobs that it submitted delegate -----------------------------------------------------

    @property
    def submits_outstanding(self) -> int:
        """How many submits wait for their answers."""
        return self._submits

    def submit_begins(self) -> None:
        """Take note of a submit that will be answered later: until then it is told of no child.

        Several peers take an acceptance that they have not asked for as the answer to their own submit (interop.md,
        section 3.16).
        """
        self._submits += 1

    def submit_answered(self) -> None:
        """Take note that the answer to a submit is in the stream, or with the connection; children may join now."""
        self._submits -= 1
        if self._submits:
            return
        for joining in list(self._joining.values()):
            if not joining.waits_for_room:
                joining.waits_for_room = True
                self._do_when_room(joining.child.feed, partial(self._join_child, joining.child.feed))

    def child_started(self, child: JobActor) -> None:
        """Follow a child of a job that this session submitted: its whole feed joins, behind its acceptance (P10.1).

        At once, or when no submit is outstanding any more; then its history comes first, as far as that reaches back.
        Who has only subscribed to the parent is no owner of either.
        """
        if self.session_id not in child.owners:
            return
        waits = self._submits > 0 and len(self._joining) < self._limits.waiting_children
        self._joining[child.feed] = _Joining(child)
        if not waits:
            self._join_child(child.feed)

    def drop_joining(self, feed: JobFeed) -> None:
        """Let a subscription take the place of a child's joining: its client knows the job and has asked for it."""
        if self._joining.pop(feed, None) is not None:
            self._waiting = deque(each for each in self._waiting if each.feed is not feed)

    def _join_child(self, feed: JobFeed, joins: bool = True) -> None:  # noqa: FBT001, FBT002  # as one that waited for room
        joining = self._joining.pop(feed, None)
        if joining is None or not joins:
            return
        child = joining.child
        replies = Replies(self.session_id, self._parts.ids, self._parts.clock)
        accepted = describe_accepted(child, self.shape)
        frame = replies.frame("job.accepted", accepted, job_id=child.job_id, trace_id=feed.trace_id)
        content: Content = frame
        if child.credentials is not None and CREDENTIALS_FEATURE in self.shape.features:
            child.credentials.confide(self)
            content = child.credentials.put_into(frame)
        # Its terminal event comes behind it, now or later.
        self.ride(content, keep=True)
        for entry in feed.history.after(0):
            self.append(entry, feed)
        if feed.terminal is None:
            self.follow(child)
        else:
            self.append(feed.terminal, feed)
            feed.terminal.forget_tails()

    # --- as a follower ------------------------------------------------------------------------------

    def ride(self, frame: Content, *, keep: bool = False, pause: bool = False) -> None:
        """Append a frame without a number, in its place among the events.

        Args:
            frame: The frame.
            keep: Whether a resume sends it again: job.accepted and job.cancelled, behind which a terminal event comes.
            pause: Whether what follows it waits for a moment, if the peer's dialect needs that.
        """
        if self._open:
            pause = pause and self.shape.dialect.seconds_after_subscribed > 0
            self.stream.append_rider(frame, keep=keep, pause=pause)
            self._appended()

    def append(self, entry: Entry, feed: JobFeed) -> None:
        """Number an entry, unless it needs a feature that was not negotiated (P6.4)."""
        if not self._open or (entry.feature is not None and entry.feature not in self.shape.features):
            return
        tail = entry.tail_for(self.shape)
        if self.stream.append_calmly(tail):
            if self._connection is not None:
                self._connection.wake()
            return
        if self._connection is not None and not feed.closed and self.stream.begins_to_lag(len(tail)):
            self.stream.append(self._lag_notice(feed))
        self.stream.append(tail)
        self._appended()

    def append_own(self, tail: Content) -> None:
        """Number a frame that is for this session alone."""
        if self._open:
            self.stream.append(tail)
            self._appended()

    def job_ended(self, feed: JobFeed) -> None:
        """Let a job go whose terminal event was appended."""
        self._followed.pop(feed, None)

    def _lag_notice(self, feed: JobFeed) -> bytes:
        """Return the tail of the event that says that this session lags: for it alone, so without the job's number."""
        timestamp = self._parts.clock.timestamp()
        stream = self.stream
        unacked = stream.told - stream.acked
        message = f"{stream.lag_events} events wait to be read, {unacked} to be acknowledged"
        status = Status(phase=BACK_PRESSURE, message=message)
        body = encode_payload(status)
        return encode_tail(
            "job.event",
            b'{"kind":"status","ts":"%b","body":%b}' % (timestamp.encode(), body),
            job_id=feed.job_id,
            trace_id=feed.trace_id,
            timestamp=timestamp,
            job_seq=None,
        )

    def _appended(self) -> None:
        crossed = self.stream.shed()
        if crossed == "windows_bytes":
            self._parts.relieve(self._parts.total)
            crossed = self.stream.shed()
        connection = self._connection
        if connection is None:
            if crossed is not None and self.stream.overflows:
                # Whatever its client has seen, there would be a gap: nobody can resume it any more.
                self.close()
        elif crossed is not None:
            connection.too_slow(crossed, self.stream.floor)
        else:
            connection.wake()

    # --- as what its agents wait for ----------------------------------------------------------------

    def take(self, limit: int) -> list[bytes]:
        """Take frames for the connection; then what waited for room is done."""
        frames = self.stream.take(limit)
        if self.stream.paused and self._pause is None:
            seconds = self.shape.dialect.seconds_after_subscribed
            self._pause = self._parts.timers.call_at(trio.current_time() + seconds, self.end_pause)
        if self._throttle_until is not None and self.stream.is_drained:
            # The episode is over: the next one has its whole time again.
            self._throttle_until = None
            self._end_throttling()
        while self._waiting and self._has_room(self._waiting[0].feed):
            self._waiting.popleft().do(True)
        return frames

    def end_pause(self) -> None:
        """Hand out again what waits behind a pause; harmless where there is none."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self.stream.paused = False
        if self._connection is not None:
            self._connection.wake()

    def _end_throttling(self) -> None:
        self._room.set()
        self._room = trio.Event()

    def lags(self) -> bool:
        """Say whether this session's agents should wait for it."""
        if self._connection is None or not self.stream.lags:
            return False
        return self._throttle_until is None or trio.current_time() < self._throttle_until

    async def wait_for_room(self) -> None:
        """Wait until it lags no more, at most ``Limits.throttle_seconds`` in one episode of lag."""
        if self._throttle_until is None:
            self._throttle_until = trio.current_time() + self._limits.throttle_seconds
        with trio.CancelScope(deadline=self._throttle_until):
            await self._room.wait()
