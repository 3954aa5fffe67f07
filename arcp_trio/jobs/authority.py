"""What one job may do: its lease, its budget and its time, asked before each operation (P9.4).

The answer is given in one synchronous step, and from what is true at that moment: nothing is remembered of what was
asked before. Agents ask through :meth:`~arcp_trio.jobs.context.JobContext.authorize` and the guarded operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal

import trio

from ..authority.budget import Amount, Budget, Reservation
from ..authority.lease import Lease
from ..wire.errors import BudgetExhaustedError, JobEndedError, LeaseExpiredError, PermissionDeniedError
from ..wire.timestamps import WallClock

__all__ = ["JobAuthority"]

_MODELS = "model.use"
_BUDGET = "cost.budget"


class JobAuthority:
    """One job's authority. Owned by the job's actor; every method is synchronous.

    Args:
        lease: What it may do, and until when.
        budget: What it may cost.
        clock: The time of day.
        open_models: Whether a lease that does not name ``model.use`` allows every model (P9.8).
        expired: Called, once, where a check finds that the lease has expired before its timer did.

    Attributes:
        lease: The first argument.
        budget: The second.
        open_models: Whether this job may use every model.
        deadline: When the lease expires, on Trio's clock; infinite where it does not.
    """

    __slots__ = ("_clock", "_expired", "_released", "_told", "budget", "deadline", "lease", "open_models")

    def __init__(
        self, lease: Lease, budget: Budget, *, clock: WallClock, open_models: bool, expired: Callable[[], None]
    ) -> None:
        self.lease = lease
        self.budget = budget
        self.open_models = open_models and _MODELS not in lease.grants
        self.deadline = float("inf")
        if lease.expires_at_ms is not None:
            self.deadline = trio.current_time() + lease.expires_at_ms / 1000 - clock.seconds()
        self._clock = clock
        self._expired = expired
        self._released = False
        # The counters as they are known: they begin in job.accepted.
        self._told: Mapping[str, Decimal] = budget.remaining()

    @property
    def has_expired(self) -> bool:
        """Whether the lease has expired: by the monotonic or by the wall clock, whichever passes first (P9.6).

        A machine that sleeps stops the one, somebody who sets the time moves the other.
        """
        expires_at = self.lease.expires_at_ms
        return expires_at is not None and (
            trio.current_time() >= self.deadline or self._clock.seconds() * 1000 >= expires_at
        )

    def release(self) -> None:
        """Allow nothing any more: the job's outcome is decided and its agent's time is over (P7.11)."""
        self._released = True

    def take_changes(self) -> dict[str, Decimal]:
        """Return the job's own counters that have changed since this was last asked, or since it began."""
        remaining = self.budget.remaining()
        changed = {currency: amount for currency, amount in remaining.items() if amount != self._told[currency]}
        self._told = remaining
        return changed

    def reserve(self, amounts: Mapping[str, Amount]) -> Reservation:
        """Hold amounts of the budget ahead of a call (P9.7); the checks come in the order of P9.4.

        Args:
            amounts: An amount by currency.

        Raises:
            JobEndedError: The job has ended.
            LeaseExpiredError: The lease has.
            BudgetExhaustedError: The amounts are not there; none of them is held.
            InvalidRequestError: One is no amount; likewise.
        """
        self._check_time()
        return self.budget.reserve(amounts)

    def check(self, namespace: str, target: str) -> str:
        """Say whether the job may do something now; the checks come in the order of P9.4.

        Args:
            namespace: What kind of operation it is: ``fs.read``, ``tool.call``.
            target: What it is done to: a path, a URL, a name.

        Returns:
            The target in its canonical form: that is what was allowed, and what is to be used.

        Raises:
            JobEndedError: The job has ended.
            LeaseExpiredError: The lease has.
            BudgetExhaustedError: A counter of the budget is used up.
            PermissionDeniedError: No grant covers it.
        """
        self._check_time()
        currency = self.budget.exhausted()
        if currency is not None:
            raise BudgetExhaustedError(f"the budget is used up: {currency}", details={"currency": currency})
        canonical = self.lease.canonical(namespace, target)
        if namespace == _MODELS and self.open_models:
            return canonical
        if namespace == _BUDGET or not self.lease.covers(namespace, canonical):
            raise PermissionDeniedError(
                f"the lease does not allow {namespace} of {canonical[:200]!r}", details={"capability": namespace}
            )
        return canonical

    def _check_time(self) -> None:
        if self._released:
            raise JobEndedError("the job has ended: it may do nothing any more")
        if self.has_expired:
            self._expired()
            raise LeaseExpiredError(f"the lease expired at {self.lease.expires_at}")
