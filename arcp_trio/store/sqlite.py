"""A store in a file of SQLite: what is committed survives the process, and with ``synchronous="full"`` a power failure.

Theory of operation. :meth:`SqliteStore.append` puts a batch into a queue. One task, the writer, takes what waits, up
to ``Limits.store_commit_bytes``, and has it committed in a thread (:mod:`arcp_trio.store.engine`); meanwhile the next
batches gather, so that a busy store syncs once for hundreds of them, and an idle one at once for each (*group
commit*). Back in the loop the batches are told, in order.

::

    append ──▶ queue ──▶ writer ──▶ thread: one transaction ──▶ then, in order
               (bounded)    ▲                   │
                            └── back-off ◀── a disk that is full, or fails

What cannot be committed stays at the head of the queue and is tried again, and the problem is in the log and in
:attr:`SqliteStore.problem`. Reads have connections and threads of their own.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TypeVar

import trio

from ..limits import Limits
from ..records import LedgerEntry
from ..wire.errors import StoreUnavailableError
from .base import Then, Ticket
from .database import open_database, opening_error, wal_reset_warning
from .engine import Engine
from .errors import BatchRefusedError, StoreCorruptError
from .faults import Hooks, Trouble, TroubleError, trouble_of
from .files import file_bytes, wal_path
from .reading import Reader
from .stored import Cursor, History, Page, StoredJob, StoredKey, StoredSession, StoreStatistics, WindowEntry
from .writes import Batch, LedgerNoted

__all__ = ["SqliteStore", "open_sqlite_store"]

logger = logging.getLogger("arcp_trio.store")

_T = TypeVar("_T")


class SqliteStore:
    """A store in a file, made by :func:`open_sqlite_store`; :class:`arcp_trio.store.base.Store` says what it does."""

    def __init__(
        self, engine: Engine, path: Path, read: Callable[[], Reader], limits: Limits, hooks: Hooks | None
    ) -> None:
        self._engine = engine
        self._path = path
        self._limits = limits
        self._hooks = hooks
        self._epoch = 0
        self._owning = trio.Lock()
        self._queue: deque[Ticket] = deque()
        self._number = 0
        self._waiting_bytes = 0
        self._wake = trio.Event()
        self._room = trio.Event()
        self._leave = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        self._problem: str | None = None
        self._problem_since = 0.0
        self._failure: Exception | None = None
        self._committed = self._commits = self._retries = 0
        # One thread writes at a time, and what it writes is in one order.
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(limits.store_readers)
        self._open_reader = read
        # Those that no thread uses; threads take them and put them back.
        self._readers: list[Reader] = []

    def __repr__(self) -> str:
        return f"<SqliteStore {self._path}>"

    @property
    def durable(self) -> bool:
        """Whether it survives the process: it does."""
        return True

    @property
    def problem(self) -> str | None:
        """Why it cannot write just now, in a few words; ``None`` where it can."""
        return self._problem

    @property
    def has_room(self) -> bool:
        """Whether less than ``Limits.store_uncommitted_bytes`` wait."""
        return self._waiting_bytes < self._limits.store_uncommitted_bytes

    def statistics(self) -> StoreStatistics:
        """Return a snapshot."""
        return StoreStatistics(
            batches_committed=self._committed,
            commits=self._commits,
            batches_waiting=len(self._queue),
            bytes_waiting=self._waiting_bytes,
            retries=self._retries,
            problem=self._problem,
            file_bytes=file_bytes(self._path),
            wal_bytes=file_bytes(wal_path(self._path)),
        )

    # --- writing ------------------------------------------------------------------------------------

    def append(self, batch: Batch, then: Then | None = None) -> Ticket:
        """Take a batch behind all before it; see :meth:`arcp_trio.store.base.Store.append`."""
        limit = self._limits.store_uncommitted_bytes
        if batch.essential:
            limit += self._limits.store_reserve_bytes
        if self._waiting_bytes >= limit or self._is_over:
            raise self._unavailable()
        self._number += 1
        ticket = Ticket(self._number, batch, batch.size, then)
        self._queue.append(ticket)
        self._waiting_bytes += ticket.size
        self._wake.set()
        if self._hooks is not None:
            self._hooks.reach("appended")
        return ticket

    @property
    def _is_over(self) -> bool:
        """Whether nothing will be written any more."""
        return self._failure is not None or self._leave.is_set()

    def _unavailable(self) -> StoreUnavailableError:
        if self._is_over:
            return StoreUnavailableError("the store is closed")
        if self._problem is not None:
            return StoreUnavailableError(f"the store cannot be written just now: {self._problem}")
        limit = self._limits.store_uncommitted_bytes
        return StoreUnavailableError(
            "more waits to be written than the limit store_uncommitted_bytes",
            details={"limit": "store_uncommitted_bytes", "value": limit},
        )

    async def committed(self, ticket: Ticket) -> None:
        """Wait until a batch is durable; see :meth:`arcp_trio.store.base.Store.committed`."""
        await ticket.wait()

    def check_available(self) -> None:
        """Refuse new work; see :meth:`arcp_trio.store.base.Store.check_available`."""
        if self._problem is not None or not self.has_room or self._is_over:
            raise self._unavailable()

    async def wait_for_room(self) -> None:
        """Wait until there is room; see :meth:`arcp_trio.store.base.Store.wait_for_room`."""
        if self.has_room:
            await trio.lowlevel.checkpoint()
        with trio.CancelScope(deadline=trio.current_time() + self._limits.store_wait_seconds):
            while not self.has_room and not self._is_over:
                await self._room.wait()
        if not self.has_room or self._is_over:
            raise self._unavailable()

    async def flush(self) -> None:
        """Wait until all that was appended is durable; see :meth:`arcp_trio.store.base.Store.flush`."""
        if self._queue:
            with suppress(BatchRefusedError):
                await self._queue[-1].wait()
        else:
            await trio.lowlevel.checkpoint()

    async def put(self, entries: Sequence[LedgerEntry]) -> None:
        """Insert or replace entries of the ledger; see :meth:`arcp_trio.store.base.CredentialLedger.put`.

        Raises:
            StoreUnavailableError: Too much waits, or the store is closed.
            FencedError: Another owner has taken the store over.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        async with self._owning:
            if not self._epoch:
                # Who uses the ledger alone takes nobody's jobs over. But batches are counted from 1 in each epoch: in
                # that of the run before they would be taken for its own, and not be written again.
                await self.take_ownership()
        batch = Batch(tuple(LedgerNoted(entry) for entry in entries), self._epoch, essential=True)
        await self.committed(self.append(batch))

    async def take_ownership(self) -> int:
        """Begin an epoch; see :meth:`arcp_trio.store.base.Store.take_ownership`."""
        if self._is_over:
            raise self._unavailable()
        try:
            self._epoch = await trio.to_thread.run_sync(self._engine.take_ownership, limiter=self._writing)
        except TroubleError as exc:
            raise StoreUnavailableError(f"the store cannot be written just now: {exc.problem}") from exc
        return self._epoch

    # --- the writer ---------------------------------------------------------------------------------

    async def _write(self) -> None:
        """Commit what is appended, until the store is left and all of it is durable."""
        delay = self._limits.store_retry_min_seconds
        while True:
            # Replaced before the queue is read, so that no batch is missed between the two.
            self._wake = trio.Event()
            if not self._queue:
                if self._leave.is_set():
                    return
                if not self._engine.has_work:
                    await self._wake.wait()
                    continue
            group = self._next_group()
            try:
                # Cancelled only by a close that has waited for long enough; a thread that hangs is left alone then.
                refused = await trio.to_thread.run_sync(
                    self._engine.commit, group, limiter=self._writing, abandon_on_cancel=True
                )
            except TroubleError as exc:
                self._note_problem(exc.problem)
                await trio.sleep(delay)
                delay = min(2 * delay, self._limits.store_retry_max_seconds)
                continue
            delay = self._limits.store_retry_min_seconds
            self._note_success()
            self._settle(group, refused)
            if self._engine.wal_bytes > self._limits.store_wal_bytes:
                await trio.to_thread.run_sync(self._engine.empty_wal, limiter=self._writing, abandon_on_cancel=True)

    def _next_group(self) -> list[Ticket]:
        """Return what the next transaction takes; it stays in the queue until it is durable."""
        group: list[Ticket] = []
        size = 0
        for ticket in self._queue:
            if group and size + ticket.size > self._limits.store_commit_bytes:
                break
            group.append(ticket)
            size += ticket.size
        return group

    def _settle(self, group: Sequence[Ticket], refused: Mapping[int, BatchRefusedError]) -> None:
        self._commits += 1
        self._committed += len(group) - len(refused)
        for ticket in group:
            self._queue.popleft()
            self._waiting_bytes -= ticket.size
            ticket.settle(refused.get(ticket.number))
        if self._hooks is not None:
            self._hooks.reach("told")
        if self.has_room:
            self._let_in()

    def _let_in(self) -> None:
        self._room.set()
        self._room = trio.Event()

    def _note_problem(self, problem: str) -> None:
        self._retries += 1
        if self._problem is None:
            self._problem_since = trio.current_time()
        if self._problem != problem:
            logger.error("store %s: it cannot be written: %s; trying again", self._path, problem)
        self._problem = problem

    def _note_success(self) -> None:
        if self._problem is not None:
            seconds = trio.current_time() - self._problem_since
            logger.warning("store %s: it can be written again, after %.1f seconds", self._path, seconds)
            self._problem = None

    @trio.lowlevel.enable_ki_protection
    async def _run(self, body: trio.CancelScope) -> None:
        """Write, until the store is left or fails; then close the file. The one task of a store."""
        with self._scope:
            try:
                await self._write()
            except Exception as exc:
                logger.critical("store %s: it has failed", self._path, exc_info=True)
                self._failure = exc
                self._give_up()
                body.cancel(reason="the store has failed")
                # Who is inside may still read.
                await self._leave.wait()
        self._give_up()
        await self._close()

    def _give_up(self) -> None:
        """Tell whoever waits that nothing will be written any more."""
        if self._queue:
            logger.error("store %s: %d batches were not written", self._path, len(self._queue))
        for ticket in self._queue:
            ticket.abandon(StoreUnavailableError("the store was closed before this was written"))
        self._queue.clear()
        self._waiting_bytes = 0
        self._let_in()

    def _begin_leaving(self) -> None:
        """Let what waits be written within ``Limits.store_close_seconds``, and nothing more come."""
        self._leave.set()
        self._wake.set()
        self._scope.deadline = trio.current_time() + self._limits.store_close_seconds

    async def _close(self) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._limits.store_close_seconds) as scope:
            await trio.to_thread.run_sync(self._close_files, limiter=self._writing, abandon_on_cancel=True)
        if scope.cancelled_caught:
            logger.error("store %s: a thread hangs in it; it stays locked until the process ends", self._path)

    def _close_files(self) -> None:
        while self._readers:
            self._readers.pop().close()
        self._engine.close()

    # --- reading ------------------------------------------------------------------------------------

    async def _read(self, method: Callable[[Reader], _T]) -> _T:
        if self._leave.is_set():
            raise self._unavailable()
        try:
            return await trio.to_thread.run_sync(self._read_in_thread, method, limiter=self._reading)
        except (sqlite3.Error, OSError, MemoryError) as exc:
            kind, problem = trouble_of(exc) or (None, "")
            if kind is Trouble.DAMAGE:
                raise StoreCorruptError(f"{self._path} is damaged: {exc}") from exc
            if kind is None:
                raise
            raise StoreUnavailableError(f"the store cannot be read just now: {problem}") from exc

    def _read_in_thread(self, method: Callable[[Reader], _T]) -> _T:
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = self._open_reader()
        try:
            result = method(reader)
        except BaseException:
            # In whatever state that has left it.
            reader.close()
            raise
        if self._leave.is_set():
            reader.close()
        else:
            self._readers.append(reader)
        return result

    async def running_jobs(self) -> list[StoredJob]:
        """Return the jobs that have not ended; see :meth:`arcp_trio.store.base.Store.running_jobs`."""
        return await self._read(Reader.running_jobs)

    async def ended_jobs(self, after: Cursor | None, limit: int, *, outcomes: bool = False) -> Page[StoredJob]:
        """Return jobs that have ended; see :meth:`arcp_trio.store.base.Store.ended_jobs`."""
        return await self._read(lambda reader: reader.ended_jobs(after, limit, outcomes=outcomes))

    async def outcome(self, job_id: str) -> bytes | None:
        """Return how a job ends or ended; see :meth:`arcp_trio.store.base.Store.outcome`."""
        return await self._read(lambda reader: reader.outcome(job_id))

    async def history(self, job_id: str, after: int, limit: int) -> History | None:
        """Return what a job has said; see :meth:`arcp_trio.store.base.Store.history`."""
        return await self._read(lambda reader: reader.history(job_id, after, limit))

    async def sessions(self, after: Cursor | None, limit: int) -> Page[StoredSession]:
        """Return the sessions; see :meth:`arcp_trio.store.base.Store.sessions`."""
        return await self._read(lambda reader: reader.sessions(after, limit))

    async def window(self, session_id: str, after: int, limit: int) -> list[WindowEntry]:
        """Return what a client may ask for again; see :meth:`arcp_trio.store.base.Store.window`."""
        return await self._read(lambda reader: reader.window(session_id, after, limit))

    async def keys(self, after: Cursor | None, limit: int) -> Page[StoredKey]:
        """Return the idempotency keys; see :meth:`arcp_trio.store.base.Store.keys`."""
        return await self._read(lambda reader: reader.keys(after, limit))

    async def outstanding(self) -> list[LedgerEntry]:
        """Return what was not revoked; see :meth:`arcp_trio.store.base.CredentialLedger.outstanding`."""
        return await self._read(Reader.outstanding)


def _open(path: Path, key: bytes | None, synchronous: str, limits: Limits, hooks: Hooks | None) -> SqliteStore:
    database = open_database(path, key=key, synchronous=synchronous, limits=limits, hooks=hooks)
    try:
        engine = Engine(database, limits, hooks)
    except Exception as exc:
        database.close()
        error = opening_error(exc, path)
        if error is None:
            raise
        raise error from exc
    return SqliteStore(engine, path, partial(Reader, path, database.cipher, limits), limits, hooks)


@asynccontextmanager
async def open_sqlite_store(
    path: str | PathLike[str],
    *,
    key: bytes | None = None,
    synchronous: str = "full",
    limits: Limits | None = None,
    hooks: Hooks | None = None,
) -> AsyncGenerator[SqliteStore, None]:
    """Open a store in a file, as an asynchronous context manager; make the file if there is none.

    The file and those beside it (``-wal``, ``-shm``, ``.lock``) can be read by their owner alone. One process at a
    time has a store open. On leaving, what was appended is written within ``limits.store_close_seconds``; what is not
    was not told.

    Args:
        path: The file; its directory exists.
        key: 32 bytes that its contents are encrypted with, from the first opening on; ``None`` for none. It needs the
            extra "encryption". With a key that is lost, so is what is stored.
        synchronous: ``full`` survives a power failure. ``normal`` may lose the newest commits in one, and nothing
            when the process alone dies; ``extra`` is as ``full``, for file systems that forget names.
        limits: Its bounds, those whose names begin with ``store_``; ``None`` for the defaults.
        hooks: Is told of the crash points (:mod:`arcp_trio.store.faults`); for tests.

    Yields:
        The store.

    Raises:
        StoreError: It cannot be opened: the class says why. Or it has failed for good while it was open: what is
            inside was cancelled then, and this is raised in the place of what that raised.
        ValueError: There is no such ``synchronous``.
        KeyboardInterrupt: Control-C came while it was being closed; raised when it is.

    Whatever the body raises leaves as it is, not in a group.

    Cancellation: while it is opened, the file is closed again; later, it is closed as above.
    """
    limits = limits or Limits()
    warning = wal_reset_warning(sqlite3.sqlite_version_info)
    if warning is not None:
        logger.warning("%s", warning)
    store = await trio.to_thread.run_sync(_open, Path(path), key, synchronous, limits, hooks)
    body = trio.CancelScope()
    body_error: BaseException | None = None
    interrupted = False
    try:
        async with trio.open_nursery() as host:
            host.start_soon(store._run, body, name="arcp store")  # noqa: SLF001
            try:
                with body:
                    yield store
            except BaseException as exc:  # noqa: BLE001, ASYNC103  # raised below, outside of the nursery that would wrap it
                body_error = exc
            # The task that closes is not the one that leaves: control-C must not cut a close in half.
            store._begin_leaving()  # noqa: SLF001
    except BaseExceptionGroup as group:
        _, rest = group.split(KeyboardInterrupt)
        if rest is not None:
            raise
        interrupted = True
    if store._failure is not None:  # noqa: SLF001
        raise store._failure from body_error  # noqa: SLF001
    if interrupted:
        raise KeyboardInterrupt from body_error
    if body_error is not None:
        raise body_error
