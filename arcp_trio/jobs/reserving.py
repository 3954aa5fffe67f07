"""Money held ahead of a call, as an agent holds it (P9.7)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from types import TracebackType
from typing import Self

import trio

from ..authority.budget import Reservation
from ..wire.errors import InvalidRequestError
from ..wire.jsontext import JSONValue

__all__ = ["BudgetHold"]


class BudgetHold:
    """Amounts that a job has put aside for a call: ``async with job.reserve({"USD": "0.10"}) as held``.

    Within the block they are nobody else's. What the call has really cost is reported with :meth:`charge`; what was
    not charged is free again when the block is left, however it is left.
    """

    __slots__ = ("_claim", "_report", "_reservation")

    def __init__(
        self,
        claim: Callable[[], Awaitable[Reservation]],
        report: Callable[
            [str, float | Decimal, str, Mapping[str, JSONValue] | None, Reservation],
            Awaitable[None],
        ],
    ) -> None:
        self._claim = claim
        self._report = report
        self._reservation: Reservation | None = None

    def __repr__(self) -> str:
        return f"<BudgetHold {self._reservation or 'not entered'}>"

    @property
    def left(self) -> Mapping[str, Decimal]:
        """What is still held, by currency; empty outside of the block, and where the job has no budget."""
        return {} if self._reservation is None else self._reservation.left()

    async def __aenter__(self) -> Self:
        """Hold the amounts, all of them or none.

        Raises:
            BudgetExhaustedError: They are not there. The refusal was emitted as a tool_result (P9.4).
            LeaseExpiredError: The lease has expired; likewise.
            InvalidRequestError: An amount is none, or this was entered before.
            JobEndedError: The job has ended.

        Cancellation: a checkpoint; nothing is held then.
        """
        if self._reservation is not None:
            raise InvalidRequestError("a reservation is entered once: ask for another")
        self._reservation = await self._claim()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Give back what was not charged. Cancellation: it is given back all the same."""
        if self._reservation is not None:
            self._reservation.release()
        # An exception that is on its way must not be replaced by a cancellation.
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def charge(
        self,
        name: str,
        value: float | Decimal,
        unit: str,
        dimensions: Mapping[str, JSONValue] | None = None,
    ) -> None:
        """Emit what the call has cost, as :meth:`JobContext.metric` does, and take it out of what is held.

        A cost is charged as it is: what goes beyond the amount held is charged to what is left beside it.

        Args:
            name: ``cost.…``.
            value: The cost, not negative.
            unit: Its currency.
            dimensions: Labels.

        Raises:
            InvalidRequestError: It is no cost; or this is not, or no longer, entered.
            JobEndedError: The job has ended.

        Cancellation: a checkpoint; nothing was emitted or charged then.
        """
        if self._reservation is None:
            raise InvalidRequestError("a reservation is charged within its block")
        await self._report(name, value, unit, dimensions, self._reservation)
