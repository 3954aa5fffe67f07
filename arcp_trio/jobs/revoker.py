"""Revokes credentials, for as long as it takes: a service of the runtime (P9.10).

Theory of operation. What must be revoked is a :class:`Revocation`, and stands in the ledger from before it existed. A
few tasks at a time ask the provisioner, each call under a deadline. What fails waits for its next attempt as one entry
of the runtime's timers, so a thousand credentials of an upstream that is down cost no task. Nothing here is waited for
by an actor's loop: a job's end waits for :attr:`Revocation.done`, in a task of its own, and not longer than its
deadline; what is still to be done then goes on here, and after a restart from the ledger.

One revocation for each entry: whoever asks for one that is under way gets that one (C03).
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import attrs
import trio

from ..audit import audit
from ..authority.credentials import Provisioner, ProvisioningError
from ..limits import Limits
from ..records import LedgerEntry, LedgerState
from ..store.base import CredentialLedger
from ..timers import Timer, Timers

__all__ = ["ProvisionerFailedError", "Revocation", "Revoker", "ask_provisioner"]

logger = logging.getLogger("arcp_trio.credentials")

T = TypeVar("T")


class ProvisionerFailedError(Exception):
    """A provisioner's call has failed.

    Attributes:
        problem: What may be said of it, to operators.
        permanent: Whether trying again is of no use.
    """

    def __init__(self, problem: str, *, permanent: bool) -> None:
        super().__init__(problem)
        self.problem = problem
        self.permanent = permanent


async def ask_provisioner(call: Callable[[], Awaitable[T]]) -> T:
    """Call a provisioner; of what it raises only that is passed on which cannot hold a secret.

    Raises:
        ProvisionerFailedError: Whatever it raised. That itself is neither its cause nor its context, so that no
            traceback shows it.
    """
    try:
        return await call()
    except trio.Cancelled:
        raise
    except ProvisioningError as exc:
        problem, permanent = str(exc), exc.permanent
    except BaseExceptionGroup as group:
        cancelled, _ = group.split(trio.Cancelled)
        if cancelled is not None:
            raise cancelled from None
        problem, permanent = type(group.exceptions[0]).__name__, False
    except BaseException as exc:  # noqa: BLE001  # whatever it is, it must not end the runtime
        problem, permanent = type(exc).__name__, False
    raise ProvisionerFailedError(problem, permanent=permanent)


class Revocation:
    """A credential that is to be revoked, or all that a job may have.

    Attributes:
        entry: Its entry in the ledger, as it was put last.
        settles: Other entries that are settled with it.
        dead: Whether the upstream has revoked it.
        done: Set when nobody needs to wait any longer: it is dead, or was given up.
    """

    __slots__ = ("_timer", "dead", "done", "entry", "puts", "settles")

    def __init__(self, entry: LedgerEntry, settles: Sequence[LedgerEntry]) -> None:
        self.entry = entry
        self.settles = tuple(settles)
        self.dead = False
        self.done = trio.Event()
        self.puts = 0
        self._timer: Timer | None = None

    def __repr__(self) -> str:
        return f"<Revocation {self.entry.entry_id} of {self.entry.job_id}, {self.entry.state.value}>"

    def wait_for(self, timer: Timer | None) -> None:
        """Have a timer for the next attempt, the only one."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer


@attrs.define
class RevokerCounters:
    """What has happened, counted.

    Attributes:
        revoked: Credentials that the upstream has revoked.
        failed: Credentials that were given up.
    """

    revoked: int = 0
    failed: int = 0


class Revoker:
    """The revocations of a runtime.

    All methods but :meth:`run` and :meth:`wait_recovered` are synchronous and never fail.

    Args:
        provisioner: Who can revoke.
        ledger: Where it is written down.
        limits: The bounds.
        timers: Who calls when the next attempt is due.
        on_unrevocable: Told of each entry that was given up; synchronous and short, what it raises is logged.
        jitter: A random number from 0 to 1, for the delays.
    """

    def __init__(
        self,
        provisioner: Provisioner,
        ledger: CredentialLedger,
        *,
        limits: Limits,
        timers: Timers,
        on_unrevocable: Callable[[LedgerEntry], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._provisioner = provisioner
        self._ledger = ledger
        self._limits = limits
        self._timers = timers
        self._on_unrevocable = on_unrevocable
        self._jitter = jitter
        self.counters = RevokerCounters()
        # By entry: what is not dead, and what is and could not be written down yet.
        self._open: dict[str, Revocation] = {}
        self._ready: deque[Revocation] = deque()
        self._running = 0
        self._changed = trio.Event()
        self._closed = False

    @property
    def is_full(self) -> bool:
        """Whether so much is unrevoked that nothing more may be issued."""
        return len(self._open) >= self._limits.unrevoked_credentials

    @property
    def unrevoked(self) -> tuple[LedgerEntry, ...]:
        """What is to be revoked and is not known to be, oldest first; what was given up is FAILED."""
        return tuple(each.entry for each in self._open.values() if not each.dead)

    def revoke(self, entry: LedgerEntry, settles: Sequence[LedgerEntry] = ()) -> Revocation:
        """Revoke what an entry stands for; one that is under way is not begun again.

        Args:
            entry: As the ledger has it: with a handle that credential, without one whatever its job has.
            settles: What else is settled with it.
        """
        revocation = self._open.get(entry.entry_id)
        if revocation is None:
            revocation = self._open[entry.entry_id] = Revocation(entry, settles)
            self._make_ready(revocation)
        return revocation

    def settle(self, entry: LedgerEntry) -> None:
        """Write down that there is nothing to revoke for an entry; when it was put, if it was, is not known."""
        self.revoke(entry).dead = True

    def recover(self, entries: Sequence[LedgerEntry]) -> None:
        """Revoke what the runs before this one have left: their jobs are over (C10, C11)."""
        for entry in entries:
            # What was given up gets its attempts again: a restart is an operator's doing.
            state = LedgerState.INTENDED if entry.handle is None else LedgerState.ISSUED
            self.revoke(attrs.evolve(entry, state=state, attempts=0))
        if entries:
            logger.warning("%d credentials of an earlier run are being revoked", len(entries))

    async def wait_recovered(self) -> None:
        """Wait for the first attempts, for ``Limits.revocation_seconds`` at most: then jobs may be accepted.

        Cancellation: a checkpoint.
        """
        with trio.move_on_after(self._limits.revocation_seconds):
            for revocation in list(self._open.values()):
                await revocation.done.wait()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop at once: what is left stands in the ledger (C13)."""
        self._closed = True
        for revocation in self._open.values():
            revocation.wait_for(None)
        self._changed.set()

    # --- the service --------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Revoke until :meth:`close` or cancelled."""
        async with trio.open_nursery() as nursery:
            while not self._closed:
                # Replaced before it is looked at what is ready, so that nothing is overlooked.
                self._changed = trio.Event()
                while self._ready and self._running < self._limits.revocations:
                    self._running += 1
                    revocation = self._ready.popleft()
                    nursery.start_soon(self._attempt, revocation, name=f"revocation of {revocation.entry.entry_id}")
                await self._changed.wait()
            nursery.cancel_scope.cancel(reason="the revoker was closed")

    def _make_ready(self, revocation: Revocation) -> None:
        revocation.wait_for(None)
        self._ready.append(revocation)
        self._changed.set()

    @trio.lowlevel.enable_ki_protection
    async def _attempt(self, revocation: Revocation) -> None:
        try:
            if not revocation.dead:
                await self._revoke(revocation)
            if revocation.dead:
                await self._write_down(revocation)
                # Behind the first try to write it down: a clean shutdown leaves nothing to be revoked twice.
                revocation.done.set()
        finally:
            self._running -= 1
            self._changed.set()

    async def _revoke(self, revocation: Revocation) -> None:
        """Ask the provisioner once."""
        entry = revocation.entry
        if entry.handle is None:
            call = partial(self._provisioner.revoke_job, entry.job_id)
        else:
            call = partial(self._provisioner.revoke, entry.handle)
        seconds = self._limits.revocation_seconds
        problem, permanent = f"no answer within {seconds:g} seconds", False
        with trio.move_on_after(seconds):
            try:
                await ask_provisioner(call)
                # No checkpoint since it returned: what is dead is known to be.
                revocation.dead = True
            except ProvisionerFailedError as exc:
                problem, permanent = exc.problem, exc.permanent
        if revocation.dead:
            self.counters.revoked += 1
            what = entry.entry_id if entry.handle is not None else "whatever there was of the job"
            audit("revoked", "credential", principal=entry.principal, job_id=entry.job_id, detail=what)
            return
        attempts = entry.attempts + 1
        gives_up = permanent or attempts >= self._limits.revocation_attempts
        state = LedgerState.FAILED if gives_up else entry.state
        revocation.entry = attrs.evolve(entry, state=state, attempts=attempts, problem=problem[:1_000])
        logger.log(
            logging.WARNING if attempts == 1 else logging.INFO,
            "job %s: credential %s was not revoked, attempt %d: %s",
            entry.job_id,
            entry.entry_id,
            attempts,
            revocation.entry.problem,
        )
        if gives_up:
            self._give_up(revocation)
        # Where this is not written down, it still stands there as one that has to be revoked. The next attempt comes
        # behind it: its own entry must not be overtaken by this one.
        await self._put([revocation.entry])
        if not gives_up:
            self._try_later(revocation, attempts)

    def _give_up(self, revocation: Revocation) -> None:
        entry = revocation.entry
        self.counters.failed += 1
        revocation.done.set()
        logger.error(
            "job %s: credential %s, handle %r, cannot be revoked: %s; it may still be good",
            entry.job_id,
            entry.entry_id,
            entry.handle,
            entry.problem,
        )
        if self._on_unrevocable is not None:
            try:
                self._on_unrevocable(entry)
            except Exception:
                logger.exception("on_unrevocable failed")

    def _try_later(self, revocation: Revocation, attempt: int) -> None:
        limits = self._limits
        # As an exponent it may be as large as the attempts: 2**1024 is no float.
        delay = min(limits.revocation_delay_seconds * 2 ** min(attempt - 1, 60), limits.revocation_max_delay_seconds)
        delay *= 1 - self._jitter() / 2
        if not self._closed:
            due = trio.current_time() + delay
            revocation.wait_for(self._timers.call_at(due, partial(self._make_ready, revocation)))

    async def _write_down(self, revocation: Revocation) -> None:
        """Settle its entries; until that is done they are revoked again by each start, which harms nobody."""
        entries = [attrs.evolve(entry, state=LedgerState.REVOKED) for entry in (revocation.entry, *revocation.settles)]
        if await self._put(entries):
            del self._open[revocation.entry.entry_id]
        else:
            revocation.puts += 1
            self._try_later(revocation, revocation.puts)

    async def _put(self, entries: Sequence[LedgerEntry]) -> bool:
        try:
            await self._ledger.put(entries)
            return True
        except Exception as exc:  # noqa: BLE001  # by its class alone: the ledger is the user's too
            problem = type(exc).__name__
        logger.error("the ledger failed to note %s: %s", entries[0].entry_id, problem)
        return False
