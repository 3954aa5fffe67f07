"""What is known of a job's budget: counters as the runtimes in use write them, read as exact decimals (X1, D29)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from ..wire.events import RUNTIME_METRIC
from ..wire.jsontext import JSONValue

__all__ = ["JobBudget", "read_amount"]

# A counter may have been overdrawn; 64 characters are more than any currency needs, and cheap to read.
_AMOUNT = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?")
_WHOLE_DIGITS = 40
_CURRENCY_LENGTH = 32


def read_amount(value: JSONValue, currency: str) -> Decimal | None:
    """Return an amount of a currency: a number, ``"1.50"`` or ``"USD:1.50"``.

    Args:
        value: As it came over the wire.
        currency: What it must be an amount of, where it names one itself.

    Returns:
        The decimal of the number's text (0.1 is 0.1), or ``None`` where it is none: a peer's mistake in a display
        value must not cost the session.
    """
    if isinstance(value, str):
        text = value.removeprefix(f"{currency}:")
        return Decimal(text) if _AMOUNT.fullmatch(text) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # By its bounds first: an integer may be as long as a frame.
    if not -(10**_WHOLE_DIGITS) < value < 10**_WHOLE_DIGITS:
        return None
    return Decimal(repr(value))


class JobBudget:
    """The latest that is known of one job's counters. Never fails: what is malformed is as if it had not come.

    Args:
        currencies: How many are told apart; further ones are ignored.

    Attributes:
        limits: What there was at first, by currency, where the runtime has said it.
        remaining: What is left.
    """

    __slots__ = ("_currencies", "limits", "remaining")

    def __init__(self, currencies: int) -> None:
        self._currencies = currencies
        self.limits: dict[str, Decimal] = {}
        self.remaining: dict[str, Decimal] = {}

    def accept(self, lease: JSONValue, budget: JSONValue) -> None:
        """Take what a job.accepted says: its ``budget``, or, where that has none, the amounts of its lease."""
        first: dict[str, Decimal] = {}
        if isinstance(budget, dict):
            self._take(first, budget.items())
            self._take(self.limits, first.items())
        # The lease says the same as it was written: 0.20 rather than 0.2.
        self._take_limits(lease)
        for currency, limit in self.limits.items():
            # A job that is known already has spent since.
            self.remaining.setdefault(currency, first.get(currency, limit))

    def join(self, lease: JSONValue, budget: JSONValue) -> None:
        """Take what a job.subscribed says: the current counters, and the limits that its lease has."""
        self._take_limits(lease)
        if isinstance(budget, dict):
            self._take(self.remaining, budget.items())

    def receive(self, kind: str, body: dict[str, JSONValue]) -> None:
        """Take an event, if it is a counter's new value."""
        if kind == "metric" and body.get("name") == RUNTIME_METRIC:
            self._take(self.remaining, [(body.get("unit"), body.get("value"))])

    def _take_limits(self, lease: JSONValue) -> None:
        amounts = lease.get("cost.budget") if isinstance(lease, dict) else None
        if isinstance(amounts, (list, tuple)):
            pairs = (amount.partition(":") for amount in amounts if isinstance(amount, str))
            self._take(self.limits, ((currency, text) for currency, _, text in pairs))

    def _take(self, into: dict[str, Decimal], amounts: Iterable[tuple[JSONValue, JSONValue | Decimal]]) -> None:
        for currency, value in amounts:
            if not isinstance(currency, str) or not 0 < len(currency) <= _CURRENCY_LENGTH:
                continue
            amount = value if isinstance(value, Decimal) else read_amount(value, currency)
            if amount is not None and (currency in into or len(into) < self._currencies):
                into[currency] = amount
