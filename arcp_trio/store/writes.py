"""What a runtime writes down: facts, in batches.

A *batch* is what happened in one synchronous step of the runtime, and is there whole or not at all. The facts are
small and frozen; their ``bytes`` are opaque here: whoever wrote them reads them back. They never hold a secret (the
value of a credential, a token): that is the writer's to see to.

Numbers are not free: a job's events count 1, 2, 3, and so do a session's (P7.18, P8.2). A store refuses a
batch whose numbers are not the next ones, so that no retry can skip or repeat one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs

from ..records import LedgerEntry

__all__ = [
    "Batch",
    "EventAppended",
    "HistoryTrimmed",
    "JobAccepted",
    "JobEnded",
    "JobEvicted",
    "JobOwned",
    "KeyClaimed",
    "KeyReleased",
    "LedgerNoted",
    "OutcomeDecided",
    "OwnAppended",
    "RiderAppended",
    "SessionAcknowledged",
    "SessionEnded",
    "SessionFollowed",
    "SessionOpened",
    "SessionUnfollowed",
    "SessionWaiting",
    "SpanAppended",
    "TokensChanged",
    "WindowTrimmed",
    "Write",
]

# About what a fact costs beside its bytes, in memory and in a file.
_OVERHEAD = 128
_NUMBER_OVERHEAD = 32

Numbers: TypeAlias = Sequence[tuple[str, int]]
"""The sessions that get an event, and its ``event_seq`` in each."""


# --- jobs -----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class JobAccepted:
    """A job is there.

    Attributes:
        job_id: Its id; new.
        principal: Who submitted it.
        agent: The resolved agent, ``name@version``.
        trace_id: Its trace.
        created_at_ms: When, in milliseconds since 1970.
        accepted: The payload of its job.accepted without credentials, as JSON: what a repeated submit is
            answered with (P7.4), and what a recovery reads its lease from.
        parent_job_id: The job that delegated it, or ``None``.
    """

    job_id: str
    principal: str
    agent: str
    trace_id: str
    created_at_ms: int
    accepted: bytes
    parent_job_id: str | None = None

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD + len(self.accepted)


@attrs.frozen
class JobOwned:
    """A session may cancel a job (P7.12). Twice is once."""

    job_id: str
    session_id: str
    size = _OVERHEAD


@attrs.frozen(kw_only=True)
class EventAppended:
    """A job said something.

    Attributes:
        job_id: A job that runs.
        job_seq: The job's own number, the next one (P7.18).
        content: What all its followers get, stored once: the tail of the frame.
        feature: The feature without which a session does not get it (P6.4), or ``None``.
        numbers: The sessions that got it, and the number that it has there: the next one of each.
    """

    job_id: str
    job_seq: int
    content: bytes
    feature: str | None = None
    numbers: Numbers = ()

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD + len(self.content) + _NUMBER_OVERHEAD * len(self.numbers)


@attrs.frozen(kw_only=True)
class OutcomeDecided:
    """How a job will end, before anybody sees it: from here on a recovery ends it so. Once for each job.

    Attributes:
        job_id: A job that runs.
        outcome: The outcome.
    """

    job_id: str
    outcome: bytes

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD + len(self.outcome)


@attrs.frozen(kw_only=True)
class JobEnded:
    """A job's terminal event: its content is the outcome that was decided. Once, and nothing of the job after it.

    Its followers let it go: none follows it any more.

    Attributes:
        job_id: A job that runs, and whose outcome was decided.
        job_seq: The terminal event's own number, the next one.
        status: The terminal state, as the wire names it.
        ended_at_ms: When, in milliseconds since 1970.
        numbers: As in :class:`EventAppended`.
    """

    job_id: str
    job_seq: int
    status: str
    ended_at_ms: int
    numbers: Numbers = ()

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD + _NUMBER_OVERHEAD * len(self.numbers)


@attrs.frozen
class HistoryTrimmed:
    """A job's events up to ``floor`` are kept for nobody who comes later. The windows that have them keep them.

    It may be written seldom: until then there is more history than there must be.
    """

    job_id: str
    floor: int
    size = _OVERHEAD


@attrs.frozen
class JobEvicted:
    """A job that has ended is known no more: it goes, with its keys and its history (M02).

    What the windows of sessions still have of it stays until they let it go.
    """

    job_id: str
    size = _OVERHEAD


# --- idempotency keys -----------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class KeyClaimed:
    """An idempotency key stands for a job (P7.4), unless it stands for another: then the batch is refused.

    It may be written in the batch of its job's acceptance, or before it, so that of several runtimes over one store
    only the first goes on to issue credentials. A key whose job was not accepted when the store changes its owner is
    void.

    Attributes:
        principal: Whose key it is (I08).
        key: The key.
        digest: What the submit's parameters are compared by.
        job_id: The job.
    """

    principal: str
    key: str
    digest: bytes
    job_id: str

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD + len(self.key) + len(self.digest)


@attrs.frozen
class KeyReleased:
    """A key stands for nothing any more: its submit was refused (I05). Harmless where there is none."""

    principal: str
    key: str
    size = _OVERHEAD


# --- sessions -------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class SessionOpened:
    """A session is there.

    Attributes:
        session_id: Its id; new.
        principal: Whose it is.
        opened_at_ms: When, in milliseconds since 1970.
        detail: What was negotiated.
    """

    session_id: str
    principal: str
    opened_at_ms: int
    detail: bytes

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD + len(self.detail)


@attrs.frozen
class TokensChanged:
    """Which resume tokens of a session are valid, all of them, by their hashes; committed before a welcome (P6.8)."""

    session_id: str
    hashes: tuple[bytes, ...] = attrs.field(repr=False)
    size = _OVERHEAD


@attrs.frozen(kw_only=True)
class SpanAppended:
    """A session got events of a job that were there before: it joined the job's history (P7.17).

    ``event_seq`` ``first`` to ``last`` are the job's own ``job_first`` and following; its terminal event may be the
    last.

    Attributes:
        session_id: The session.
        first: The session's next number.
        last: The number of the last event, at least ``first``.
        job_id: The job.
        job_first: The first event's own number in the job.
    """

    session_id: str
    first: int
    last: int
    job_id: str
    job_first: int
    size = _OVERHEAD


@attrs.frozen(kw_only=True)
class OwnAppended:
    """A session got a numbered frame that is for it alone.

    Attributes:
        session_id: The session.
        event_seq: Its next number.
        content: The frame's tail.
    """

    session_id: str
    event_seq: int
    content: bytes

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD + len(self.content)


@attrs.frozen(kw_only=True)
class RiderAppended:
    """A frame without a number stands before a session's next number, and a resume sends it again (P6.9).

    Attributes:
        session_id: The session.
        content: The whole frame.
    """

    session_id: str
    content: bytes

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD + len(self.content)


@attrs.frozen
class SessionAcknowledged:
    """A session's client has everything up to ``event_seq``, behind which its window begins. A lower one is nothing."""

    session_id: str
    event_seq: int
    size = _OVERHEAD


@attrs.frozen
class WindowTrimmed:
    """A session's window begins behind ``floor``, acknowledged or not (P6.18). A lower one changes nothing.

    It may be written seldom: until then a recovery finds more than there must be.
    """

    session_id: str
    floor: int
    size = _OVERHEAD


@attrs.frozen
class SessionFollowed:
    """A session follows a job that runs: a recovery brings it the terminal event. Twice is once."""

    session_id: str
    job_id: str
    size = _OVERHEAD


@attrs.frozen
class SessionUnfollowed:
    """A session follows a job no more; harmless where it does not."""

    session_id: str
    job_id: str
    size = _OVERHEAD


@attrs.frozen
class SessionWaiting:
    """A session has no connection since ``since_ms`` (milliseconds since 1970), or has one: ``None`` (P6.12)."""

    session_id: str
    since_ms: int | None
    size = _OVERHEAD


@attrs.frozen
class SessionEnded:
    """A session is no more: its tokens at once, then its window."""

    session_id: str
    size = _OVERHEAD


# --- credentials ----------------------------------------------------------------------------------


@attrs.frozen
class LedgerNoted:
    """An entry of the credential ledger: inserted, or in place of the one with its id (P9.10)."""

    entry: LedgerEntry

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _OVERHEAD + len(self.entry.handle or "") + len(self.entry.problem)


Write: TypeAlias = (
    JobAccepted
    | JobOwned
    | EventAppended
    | OutcomeDecided
    | JobEnded
    | HistoryTrimmed
    | JobEvicted
    | KeyClaimed
    | KeyReleased
    | SessionOpened
    | TokensChanged
    | SpanAppended
    | OwnAppended
    | RiderAppended
    | SessionAcknowledged
    | WindowTrimmed
    | SessionFollowed
    | SessionUnfollowed
    | SessionWaiting
    | SessionEnded
    | LedgerNoted
)


@attrs.frozen
class Batch:
    """What happened in one synchronous step.

    Attributes:
        writes: The facts, in the order in which they happened.
        epoch: The writer's (:meth:`~arcp_trio.store.base.Store.take_ownership`): a later one fences this batch off.
        essential: Whether it may use the reserve where too much is uncommitted: outcomes, terminal events, and what
            makes room.
    """

    writes: tuple[Write, ...]
    epoch: int
    essential: bool = False

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        size = 0
        for write in self.writes:
            size += write.size
        return size
