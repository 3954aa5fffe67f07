"""What a store gives back: frozen values, as they were when they were read."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Generic, TypeAlias, TypeVar

import attrs

__all__ = [
    "Cursor",
    "EntryKind",
    "History",
    "HistoryEvent",
    "Page",
    "StoreStatistics",
    "StoredJob",
    "StoredKey",
    "StoredSession",
    "WindowEntry",
]

Cursor: TypeAlias = tuple[Any, ...]
"""Where a page ended; opaque, valid for the store that gave it."""

_T = TypeVar("_T")


@attrs.frozen
class Page(Generic[_T]):
    """A part of what there is.

    Attributes:
        items: The part; empty only where there is nothing.
        next: What to ask for the next part with; ``None`` after the last.
    """

    items: Sequence[_T]
    next: Cursor | None


@attrs.frozen(kw_only=True)
class StoredJob:
    """A job.

    Attributes:
        job_id: Its id.
        principal: Who submitted it.
        agent: The resolved agent, ``name@version``.
        trace_id: Its trace.
        created_at_ms: When it was accepted, in milliseconds since 1970.
        accepted: As :class:`~arcp_trio.store.writes.JobAccepted` has it.
        parent_job_id: The job that delegated it, or ``None``.
        owners: The sessions that may cancel it, in the order of their ids.
        last_seq: The number of its newest event; of the terminal event, where it has ended.
        history_floor: The newest number that is kept for nobody who comes later.
        outcome: How it ends, where it runs and that was decided; how it ended, where that was asked for.
        status: The terminal state; ``None`` where it runs.
        ended_at_ms: When it ended; ``None`` where it runs.
    """

    job_id: str
    principal: str
    agent: str
    trace_id: str
    created_at_ms: int
    accepted: bytes
    parent_job_id: str | None
    owners: tuple[str, ...]
    last_seq: int
    history_floor: int
    outcome: bytes | None
    status: str | None
    ended_at_ms: int | None


@attrs.frozen(kw_only=True)
class StoredSession:
    """A session that has not ended.

    Attributes:
        session_id: Its id.
        principal: Whose it is.
        opened_at_ms: When it was opened, in milliseconds since 1970.
        detail: What was negotiated.
        token_hashes: The hashes of the resume tokens that are valid, oldest first.
        last_seq: Its newest number.
        acked: The newest that its client has acknowledged.
        floor: The newest that is gone: the window is what comes after it.
        waiting_since_ms: Since when it has no connection; ``None`` where it had one.
        follows: The jobs that it follows, in the order of their ids; they run.
    """

    session_id: str
    principal: str
    opened_at_ms: int
    detail: bytes
    token_hashes: tuple[bytes, ...] = attrs.field(repr=False)
    last_seq: int
    acked: int
    floor: int
    waiting_since_ms: int | None
    follows: tuple[str, ...]


@attrs.frozen(kw_only=True)
class StoredKey:
    """An idempotency key; as :class:`~arcp_trio.store.writes.KeyClaimed` has it."""

    principal: str
    key: str
    digest: bytes
    job_id: str


@attrs.frozen(kw_only=True)
class HistoryEvent:
    """An event of a job.

    Attributes:
        job_seq: The job's own number.
        content: The tail of the frame.
        feature: The feature without which a session does not get it, or ``None``.
    """

    job_seq: int
    content: bytes
    feature: str | None


@attrs.frozen(kw_only=True)
class History:
    """A part of what a job has said.

    Attributes:
        events: The events, oldest first; the terminal event is not among them.
        first_seq: The number of the oldest that is kept, or of the next one where none is (P7.18,
            ``truncated_before``).
        more: Whether at least one more follows.
    """

    events: tuple[HistoryEvent, ...]
    first_seq: int
    more: bool


class EntryKind(Enum):
    """What an entry of a window is."""

    EVENT = "event"
    TERMINAL = "terminal"
    OWN = "own"
    RIDER = "rider"


@attrs.frozen(kw_only=True)
class WindowEntry:
    """An entry of a session's window, in the order in which its client gets them.

    Attributes:
        kind: What it is.
        event_seq: Its number; for a rider that of the numbered entry which it stands before.
        content: The frame's tail; for a terminal event the job's outcome, of which each session gets its own form; for
            a rider the whole frame.
        job_id: The job, for an event and a terminal event.
        job_seq: The job's own number, likewise.
        trace_id: The job's trace, for a terminal event.
        ended_at_ms: When the job ended, likewise.
    """

    kind: EntryKind
    event_seq: int
    content: bytes
    job_id: str | None = None
    job_seq: int | None = None
    trace_id: str | None = None
    ended_at_ms: int | None = None


@attrs.frozen(kw_only=True)
class StoreStatistics:
    """A snapshot of a store.

    Attributes:
        batches_committed: Batches that are durable, since it was opened.
        commits: Transactions: each has all that waited.
        batches_waiting: Batches that are not durable yet.
        bytes_waiting: About how many bytes they have.
        retries: Transactions that failed and were tried again.
        problem: Why it cannot write; ``None`` where it can.
        file_bytes: The size of the file.
        wal_bytes: The size of its write-ahead log.
    """

    batches_committed: int = 0
    commits: int = 0
    batches_waiting: int = 0
    bytes_waiting: int = 0
    retries: int = 0
    problem: str | None = None
    file_bytes: int = 0
    wal_bytes: int = 0
