"""A job's feed: what the job says, encoded once, handed to every follower as the same bytes.

A follower is a session's stream. It adds its own number and head (:class:`~arcp_trio.wire.envelope.EnvelopeSplicer`);
the rest of the frame, the *tail*, is shared. Only a terminal event has more than one tail, made lazily,
one for each way in which the followers' dialects and features want it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Protocol

import attrs

from ..wire.codec import encode_payload
from ..wire.dialects import Dialect
from ..wire.envelope import EventTails, encode_tail
from ..wire.errors import CORE_CODES, sendable_retryable
from ..wire.job_messages import JobError
from ..wire.jsontext import encode_json
from .history import JobHistory
from .lifecycle import FinalStatus, Outcome

if TYPE_CHECKING:
    from .actor import JobActor

__all__ = ["Entry", "EventEntry", "Follower", "JobFeed", "ResultPayload", "Shape", "TerminalEntry"]


@attrs.frozen
class Shape:
    """In which form a follower takes what a job says.

    Attributes:
        dialect: What its peer can take.
        features: What was negotiated with it (P6.4).
    """

    dialect: Dialect
    features: frozenset[str]

    @property
    def takes_chunks(self) -> bool:
        """Whether a streamed result goes out as chunks."""
        return "result_chunk" in self.features

    @property
    def takes_budgets(self) -> bool:
        """Whether a job's budget is shown, as numbers (X1)."""
        return "cost.budget" in self.features and self.dialect.budget_as_numbers


class Entry(Protocol):
    """A numbered frame without its number."""

    @property
    def feature(self) -> str | None:
        """The feature without which a session does not get it, nor a number for it (P6.4)."""
        ...

    def tail_for(self, shape: Shape) -> bytes:
        """Return the shared part of the frame."""
        ...


class Follower(Protocol):
    """Who follows a job: a session's stream. All methods are synchronous and never fail."""

    @property
    def shape(self) -> Shape:
        """The form that it takes."""
        ...

    def append(self, entry: Entry, feed: JobFeed) -> None:
        """Number the entry of that feed and keep it for the connection."""

    def job_ended(self, feed: JobFeed) -> None:
        """The terminal entry was appended; nothing of this feed follows."""

    def child_started(self, child: JobActor) -> None:
        """A job that it follows has delegated another, whose delegation it was told and which has not begun."""


class Throttle(Protocol):
    """The submitting session, as its jobs' agents feel it."""

    def lags(self) -> bool:
        """Say whether so much is unsent that its own agents should wait."""
        ...

    async def wait_for_room(self) -> None:
        """Wait until it lags no more, or for as long as one episode of lag allows."""


class EventEntry:
    """A job.event."""

    __slots__ = ("feature", "tail")

    def __init__(self, tail: bytes, feature: str | None) -> None:
        self.tail = tail
        self.feature = feature

    def tail_for(self, shape: Shape) -> bytes:  # noqa: ARG002  # an event has one form for all
        """Return the one tail."""
        return self.tail


@attrs.frozen(kw_only=True, eq=False)
class ResultPayload:
    """What an agent returned, encoded.

    Attributes:
        inline: The value as JSON; ``None`` for null, or where the result was streamed.
        result_id: The id of the streamed result.
        result_size: Its decoded size in bytes.
        content_type: ``application/json`` where the chunks are the text of a JSON value (P4.4).
        assembled: The streamed result as one JSON value, for a session that takes no chunks;
            ``None`` where there is none such, or where it was too large (P6.4).
    """

    inline: bytes | None = None
    result_id: str | None = None
    result_size: int | None = None
    content_type: str | None = None
    assembled: bytes | None = None


def _encode_result(result: ResultPayload, job_id: str, completed_at: str, *, takes_chunks: bool) -> bytes:
    head = b'{"final_status":"success","job_id":"%b"' % job_id.encode()
    end = b',"completed_at":"%b"}' % completed_at.encode()
    inline = result.inline
    reference = b""
    if result.result_id is not None:
        inline = None if takes_chunks else result.assembled
        if inline is None:
            reference = b',"result_id":"%b","result_size":%d' % (
                result.result_id.encode(),
                result.result_size or 0,
            )
            if result.content_type is not None:
                reference += b',"content_type":"%b"' % result.content_type.encode()
            if not takes_chunks:
                reference += b',"truncated":true'
    if inline is not None:
        # Under both names that are read (P7.8).
        return b'%b,"result":%b,"output":%b%b' % (head, inline, inline, end)
    return head + reference + end


class TerminalEntry:
    """The terminal event of a job: the only one that it will ever have.

    Args:
        outcome: How the job ended.
        job_id: The job.
        trace_id: Its trace.
        timestamp: When it ended, as the wire writes it.
        job_seq: Its number in the job's own counting.
    """

    __slots__ = ("_job_id", "_job_seq", "_outcome", "_tails", "_timestamp", "_trace_id")

    feature = None

    def __init__(self, outcome: Outcome, *, job_id: str, trace_id: str, timestamp: str, job_seq: int) -> None:
        self._outcome = outcome
        self._job_id = job_id
        self._trace_id = trace_id
        self._timestamp = timestamp
        self._job_seq = job_seq
        self._tails: dict[Hashable, bytes] = {}

    def tail_for(self, shape: Shape) -> bytes:
        """Return the tail in the form that ``shape`` wants, made when it is first wanted."""
        result = self._outcome.result
        key: Hashable
        if self._outcome.final_status is FinalStatus.SUCCESS:
            key = shape.takes_chunks or result.result_id is None
        else:
            key = (shape.dialect.outcome_in_final_status, shape.dialect.core_codes_only)
        tail = self._tails.get(key)
        if tail is None:
            if self._outcome.final_status is FinalStatus.SUCCESS:
                frame_type = "job.result"
                payload = _encode_result(result, self._job_id, self._timestamp, takes_chunks=shape.takes_chunks)
            else:
                frame_type = "job.error"
                payload = encode_payload(self._error(shape.dialect))
            tail = self._tails[key] = encode_tail(
                frame_type,
                payload,
                job_id=self._job_id,
                trace_id=self._trace_id,
                timestamp=self._timestamp,
                job_seq=self._job_seq,
            )
        return tail

    @property
    def size(self) -> int:
        """About how many bytes its outcome keeps."""
        outcome = self._outcome
        result = outcome.result
        size = len(outcome.message) + len(outcome.code)
        if outcome.details:
            size += len(encode_json(dict(outcome.details)))
        if result is not None:
            size += len(result.inline or b"") + len(result.assembled or b"")
        return size

    def forget_tails(self) -> None:
        """Drop the tails that were made: the followers have them, and who comes later is rare."""
        self._tails.clear()

    def forget_assembled(self) -> None:
        """Drop the whole of a streamed result: no follower needed it, only the job's parent (P6.4)."""
        if self._outcome.result is not None:
            self._outcome = attrs.evolve(self._outcome, result=attrs.evolve(self._outcome.result, assembled=None))

    def _error(self, dialect: Dialect) -> JobError:
        outcome = self._outcome
        code = outcome.code
        details = dict(outcome.details) if outcome.details else None
        if dialect.core_codes_only and code not in CORE_CODES:
            # An agent's own code, for a peer that drops a frame with one (P7.9).
            details = {**(details or {}), "code": code}
            code = "INTERNAL_ERROR"
        final_status = outcome.final_status if dialect.outcome_in_final_status else FinalStatus.ERROR
        return JobError(
            code=code,
            message=outcome.message,
            retryable=sendable_retryable(code, outcome.retryable),
            final_status=final_status.value,
            job_id=self._job_id,
            details=details,
            completed_at=self._timestamp,
        )


class JobFeed:
    """Who follows a job, and the job's own numbering. Owned by the job's actor.

    Attributes:
        job_id: The job.
        job_seq: The number of its newest event (P7.18).
        history: Its events, for those who come later.
        terminal: Its terminal event, once that was published: nothing is appended after it.
    """

    __slots__ = ("_followers", "_tails", "history", "job_id", "job_seq", "terminal", "trace_id")

    def __init__(self, job_id: str, trace_id: str, history: JobHistory) -> None:
        self.job_id = job_id
        self.trace_id = trace_id
        self.history = history
        self.job_seq = 0
        self.terminal: TerminalEntry | None = None
        # Made with the first event: many jobs have none.
        self._tails: EventTails | None = None
        # A dictionary for its order: followers get an event in the order in which they came.
        self._followers: dict[Follower, None] = {}

    def follow(self, follower: Follower) -> None:
        """Add a follower: it gets everything from now on. Twice is once."""
        assert not self.closed, "nothing comes after the terminal event"
        self._followers[follower] = None

    def unfollow(self, follower: Follower) -> None:
        """Remove a follower; harmless if it is none."""
        self._followers.pop(follower, None)

    @property
    def closed(self) -> bool:
        """Whether the terminal event was published."""
        return self.terminal is not None

    @property
    def followers(self) -> int:
        """How many follow."""
        return len(self._followers)

    def any_without_chunks(self) -> bool:
        """Say whether a follower must have a streamed result assembled (P6.4)."""
        return any(not follower.shape.takes_chunks for follower in self._followers)

    def append_event(self, payload: bytes, *, timestamp: str, feature: str | None) -> None:
        """Append a job.event to every follower. The actor has checked that the agent may still speak."""
        assert not self.closed, "an event after the terminal event"
        self.job_seq += 1
        if self._tails is None:
            self._tails = EventTails(self.job_id, self.trace_id)
        entry = EventEntry(self._tails.encode(payload, timestamp=timestamp, job_seq=self.job_seq), feature)
        self.history.append(entry)
        # A copy: a follower that this makes too slow leaves at once.
        for follower in list(self._followers):
            follower.append(entry, self)

    def tell_child_started(self, child: JobActor) -> None:
        """Tell every follower of a child, before its first event."""
        for follower in list(self._followers):
            follower.child_started(child)

    def publish_terminal(self, outcome: Outcome, *, timestamp: str) -> TerminalEntry:
        """Append the terminal event to every follower, and let them go. Called once."""
        assert not self.closed, "a second terminal event"
        self.job_seq += 1
        entry = self.terminal = TerminalEntry(
            outcome,
            job_id=self.job_id,
            trace_id=self.trace_id,
            timestamp=timestamp,
            job_seq=self.job_seq,
        )
        wanted_whole = self.any_without_chunks()
        followers, self._followers = self._followers, {}
        self._tails = None
        for follower in followers:
            follower.append(entry, self)
            follower.job_ended(self)
        entry.forget_tails()
        if not wanted_whole:
            entry.forget_assembled()
        return entry
