"""The provisioned credentials of a runtime: issuing, rotating and revoking, put together for whoever uses them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from ..authority.credentials import Credential, Provisioner
from ..limits import Limits
from ..records import LedgerEntry
from ..store.base import CredentialLedger
from ..timers import Timers
from ..wire.errors import InternalError, InvalidRequestError, JobEndedError
from ..wire.ids import IdFactory
from ..wire.timestamps import WallClock
from .credentials import JobCredentials
from .issuer import Issuer
from .revoker import Revocation, Revoker

if TYPE_CHECKING:
    from .actor import JobActor
    from .spec import JobSpec

__all__ = ["Provisioning"]


class Provisioning:
    """What a runtime with a provisioner has.

    Args:
        provisioner: Who can issue and revoke.
        ledger: Where it is written down.
        limits: The bounds.
        timers: Who calls when the next attempt to revoke is due.
        ids: Mints the credentials' ids.
        clock: The time of day.
        spawn: Starts a task in the actors' nursery.
        open_models: Whether a lease that does not name ``model.use`` allows every model (P9.8).
        on_unrevocable: Told of each credential that was given up.

    Attributes:
        issuer: Issues them.
        revoker: Revokes them; its :meth:`~Revoker.run` is a service of the runtime.
    """

    def __init__(
        self,
        provisioner: Provisioner,
        ledger: CredentialLedger,
        *,
        limits: Limits,
        timers: Timers,
        ids: IdFactory,
        clock: WallClock,
        spawn: Callable[[Callable[[], Awaitable[None]], str], None],
        open_models: bool,
        on_unrevocable: Callable[[LedgerEntry], None] | None,
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._spawn = spawn
        self._until = float("inf")
        self.revoker = Revoker(provisioner, ledger, limits=limits, timers=timers, on_unrevocable=on_unrevocable)
        self.issuer = Issuer(
            provisioner,
            ledger,
            self.revoker,
            limits=limits,
            ids=ids,
            clock=clock,
            spawn=spawn,
            open_models=open_models,
        )

    async def recover(self, entries: Sequence[LedgerEntry]) -> None:
        """Revoke what earlier runs have left, before the first job is accepted (C10); within a deadline.

        Cancellation: it goes on.
        """
        self.revoker.recover(entries)
        await self.revoker.wait_recovered()

    async def issue_in_time(self, spec: JobSpec, failed: Callable[[Revocation], None]) -> JobSpec:
        """Issue the credentials of a child, within ``Limits.submit_seconds``; see :meth:`Issuer.issue_for`.

        Raises:
            InternalError: There are none; retryable.
        """
        seconds = self._limits.submit_seconds
        with trio.move_on_after(seconds):
            return await self.issuer.issue_for(spec, failed)
        raise InternalError(
            f"the child's credentials were not issued within {seconds:g} seconds",
            details={"limit": "submit_seconds", "value": seconds},
        )

    async def rotate(self, job: JobActor, credential_id: str) -> Credential:
        """Give a credential of a job another value (P9.10); see :meth:`JobContext.rotate_credential`."""
        credentials = job.credentials
        if credentials is None:
            await trio.lowlevel.checkpoint()
            raise InvalidRequestError("credential_id: the job has no credentials")
        if job.stop_requested:
            await trio.lowlevel.checkpoint()
            raise JobEndedError("the job is ending: its credentials are not rotated any more")

        def announce() -> None:
            credentials.announce(credential_id, trace_id=job.feed.trace_id, timestamp=self._clock.timestamp())

        return await self.issuer.rotate(
            credentials,
            credential_id,
            budget=job.authority.budget.applicable(),
            trace_headers=job.trace.headers(),
            announce=announce,
        )

    # --- the ends of jobs, and of the runtime ---------------------------------------------------------

    def when_revoked(
        self, credentials: JobCredentials, until: float | None, then: Callable[[], None]
    ) -> trio.CancelScope:
        """Call ``then`` once the credentials of a job that ends are revoked, or its deadline has passed.

        Args:
            credentials: The job's; closed.
            until: What bounds its tear-down from above, on Trio's clock.
            then: Synchronous.

        Returns:
            Around the wait, a task of its own: its deadline may be shortened.
        """
        bounds = [trio.current_time() + self._limits.revocation_seconds, self._until]
        scope = trio.CancelScope(deadline=min(bounds if until is None else [*bounds, until]))

        @trio.lowlevel.enable_ki_protection
        async def wait() -> None:
            try:
                with scope:
                    await credentials.wait_revoked()
            finally:
                then()

        self._spawn(wait, f"revocation of {credentials.request.job_id}")
        return scope

    def bound(self, until: float) -> None:
        """Have no job's end wait for a revocation past ``until``: the runtime shuts down."""
        self._until = until
