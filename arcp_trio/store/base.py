"""What the runtime asks of what keeps its records.

Theory of operation. What happens in one synchronous step of the runtime is one :class:`~arcp_trio.store.writes.Batch`.
:meth:`Store.append` takes it at once, without a checkpoint; it becomes durable later, in the order of all batches, and
then it is *told*: its ``then`` is called, and whoever awaits :meth:`Store.committed` goes on. So a runtime appends, and
lets out what has happened (a frame, an acknowledgement, a welcome) from ``then``: what is visible is durable. A batch
that cannot be written is tried again unchanged for as long as it takes, with everything behind it.

Every batch has its writer's *epoch*. :meth:`Store.take_ownership` begins a new one and fences off whoever wrote
before, so that of two runtimes that believe to own the same jobs only one can write. Nothing here needs more of a
store than transactions in one order, a comparison of that epoch in each, and one unique key: a database server can
keep it too.

A store that is not durable holds what a runtime has in its own memory anyway. A runtime asks :attr:`Store.durable`
once, and writes nothing but the ledger to one that is not: embedded use without a file pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import trio

from ..records import LedgerEntry
from ..wire.errors import StoreUnavailableError
from .errors import BatchRefusedError
from .stored import Cursor, History, Page, StoredJob, StoredKey, StoredSession, StoreStatistics, WindowEntry
from .writes import Batch

__all__ = ["CredentialLedger", "Store", "Then", "Ticket"]


class CredentialLedger(Protocol):
    """Which credentials were issued and must be revoked: what a restart finds of the runs before it (P9.10).

    One runtime writes it at a time.
    """

    @property
    def durable(self) -> bool:
        """Whether it survives the process: without that no credential is issued."""
        ...

    async def put(self, entries: Sequence[LedgerEntry]) -> None:
        """Insert entries, or replace those of the same ``entry_id``; they are durable when it returns.

        Args:
            entries: Together or not at all; at least one.

        What it raises is logged by its class alone; the entries may be there or not.

        Cancellation: the entries may be there or not.
        """

    async def outstanding(self) -> list[LedgerEntry]:
        """Return all entries but those that are REVOKED, oldest first.

        Cancellation: nothing has changed.
        """
        ...


Then: TypeAlias = Callable[["Ticket"], None]
"""Is told that a batch is durable, or was refused. Synchronous, never fails. What it appends goes behind the rest."""


class Ticket:
    """A batch that was taken. Its ``number`` counts the batches of a store in their order, from 1.

    Attributes:
        batch: The batch.
        size: About how many bytes it takes.
        settled: Whether it is durable, or was refused.
        refusal: Why it was refused; ``None`` where it was not.
    """

    __slots__ = ("_event", "_lost", "_then", "batch", "number", "refusal", "settled", "size")

    def __init__(self, number: int, batch: Batch, size: int, then: Then | None) -> None:
        self.number = number
        self.batch = batch
        self.size = size
        self.settled = False
        self.refusal: BatchRefusedError | None = None
        self._lost: StoreUnavailableError | None = None
        self._then = then
        # Made by the first who waits: most batches are only told.
        self._event: trio.Event | None = None

    def __repr__(self) -> str:
        state = "waiting" if not self.settled else "committed" if self.refusal is None else "refused"
        return f"<Ticket {self.number} {state}>"

    def settle(self, refusal: BatchRefusedError | None) -> None:
        """Note what became of the batch, and tell. Once, by the store."""
        self.settled = True
        self.refusal = refusal
        then, self._then = self._then, None
        if then is not None:
            then(self)
        if self._event is not None:
            self._event.set()

    def abandon(self, error: StoreUnavailableError) -> None:
        """Note that the store ends before the batch is durable: who waits gets the error, and nobody is told."""
        self._lost = error
        self._then = None
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Wait until the batch is durable. :meth:`Store.committed` says what it raises."""
        if not self.settled and self._lost is None:
            if self._event is None:
                self._event = trio.Event()
            await self._event.wait()
        else:
            await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        if self._lost is not None:
            raise self._lost


class Store(CredentialLedger, Protocol):
    """Keeps jobs, sessions, idempotency keys and the credential ledger.

    What it gives back is what is durable: nothing that waits. Both stores pass ``tests/store/test_contract.py``.
    """

    @property
    def problem(self) -> str | None:
        """Why it cannot write just now, in a few words for operators; ``None`` where it can."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether less than ``Limits.store_uncommitted_bytes`` wait."""
        ...

    async def take_ownership(self) -> int:
        """Begin an epoch, and return it: batches of earlier ones are refused from here on.

        A runtime does it first, then reads what it recovers. What the owner before it had claimed and not used is
        dropped: keys without a job.

        Raises:
            StoreUnavailableError: It cannot be written.

        Cancellation: the epoch may have begun; another call begins another.
        """
        ...

    # --- writing ------------------------------------------------------------------------------------

    def append(self, batch: Batch, then: Then | None = None) -> Ticket:
        """Take a batch behind all before it. No checkpoint.

        Args:
            batch: What happened.
            then: Is called once, when the batch is durable or was refused (``Ticket.refusal``), in the order of the
                batches. A store that is not durable calls it before this returns; one that ends with the batch
                unwritten never does.

        Raises:
            StoreUnavailableError: Too much waits, or the store is closed: nothing was taken. For an essential batch
                there is ``Limits.store_reserve_bytes`` more.
        """
        ...

    async def committed(self, ticket: Ticket) -> None:
        """Wait until a batch is durable.

        Tasks that wait are woken in the order of their batches, and Trio may run those of one commit in any: what has
        to happen in order belongs into ``then``.

        Args:
            ticket: What :meth:`append` returned.

        Raises:
            BatchRefusedError: Nothing of it was written, nor ever will be.
            StoreUnavailableError: The store was closed, or has failed, before it was written.

        Cancellation: the batch is written all the same.
        """

    def check_available(self) -> None:
        """Refuse new work while it could not be written: what a submit asks first. No checkpoint.

        Raises:
            StoreUnavailableError: It cannot write, or too much waits.
        """

    async def wait_for_room(self) -> None:
        """Wait until :attr:`has_room`, for ``Limits.store_wait_seconds`` at most: what an emission does first.

        Between its return and the caller's :meth:`append` there must be no checkpoint.

        Raises:
            StoreUnavailableError: There is none yet.

        Cancellation: nothing has changed.
        """

    async def flush(self) -> None:
        """Wait until all that was appended is durable or refused, and told: what a shutdown waits for.

        Raises:
            StoreUnavailableError: The store was closed, or has failed, before that.

        Cancellation: what waits goes on waiting.
        """

    # --- reading ------------------------------------------------------------------------------------
    # Every one of them raises StoreUnavailableError where the store cannot be read, and StoreCorruptError where it is
    # damaged; a cancellation waits for the page that is being read.

    async def running_jobs(self) -> list[StoredJob]:
        """Return the jobs that have not ended, in the order of their ids."""
        ...

    async def ended_jobs(self, after: Cursor | None, limit: int, *, outcomes: bool = False) -> Page[StoredJob]:
        """Return jobs that have ended and were not evicted, in the order in which they ended.

        Args:
            after: Where the last page ended; ``None`` for the first.
            limit: How many, at least 1.
            outcomes: Whether to return their outcomes too: fewer then, where they have more than
                ``Limits.store_page_bytes``.
        """
        ...

    async def outcome(self, job_id: str) -> bytes | None:
        """Return how a job ends or ended, as :class:`~arcp_trio.store.writes.OutcomeDecided` has it.

        Args:
            job_id: The job.

        Returns:
            ``None`` where none was decided, or there is no such job (any more).
        """
        ...

    async def history(self, job_id: str, after: int, limit: int) -> History | None:
        """Return what a job has said, from the event behind ``after``.

        Args:
            job_id: The job.
            after: The job's own number of an event, or 0.
            limit: How many events, at least 1; fewer where they have more than ``Limits.store_page_bytes``.

        Returns:
            ``None`` where there is no such job (any more).
        """
        ...

    async def sessions(self, after: Cursor | None, limit: int) -> Page[StoredSession]:
        """Return the sessions that have not ended, oldest first; see :meth:`ended_jobs`."""
        ...

    async def window(self, session_id: str, after: int, limit: int) -> list[WindowEntry]:
        """Return what a session's client may ask for again: what comes behind ``event_seq`` ``after`` and the floor.

        Args:
            session_id: The session.
            after: The number of an entry, or 0. A page ends with a numbered entry: go on behind that. One that ends
                with a rider, or is empty, is the last.
            limit: How many numbered entries, at least 1; fewer where they have more than ``Limits.store_page_bytes``.
                Their riders come with them.

        Returns:
            The entries in order; none where there are no more, or no such session (any more).
        """
        ...

    async def keys(self, after: Cursor | None, limit: int) -> Page[StoredKey]:
        """Return the idempotency keys, in the order of principals and keys; see :meth:`ended_jobs`."""
        ...

    def statistics(self) -> StoreStatistics:
        """Return a snapshot."""
        ...
