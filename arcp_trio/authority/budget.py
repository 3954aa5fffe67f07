"""What a job may cost: exact counters, in a tree that neither loses nor makes money (P9.7, P10.2).

Theory of operation. A job has one counter for each currency of its ``cost.budget``. For every counter, always::

    limit == remaining + held + spent

``spent`` is what was reported, ``held`` is what its running children were given of it, and ``remaining`` is the counter
of the specification: what the wire shows, and what stops guarded operations at zero or below. A reservation is not
spent yet and leaves ``remaining`` as it is: it is a claim upon it, ahead of a call. What can still be reserved or given
to a child is what remains without the claims.

A cost that was reported is real: it is charged, also where it takes a counter below zero (B05). A currency that a job
has no counter for is its nearest ancestor's; where none has it, it is not charged at all.

All of it is synchronous: between a decision and what follows from it there is no checkpoint (P9.7), so concurrent
reservations never overdraw.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation

import attrs

from ..wire.errors import (
    BudgetExhaustedError,
    InvalidRequestError,
    JobEndedError,
    LeaseSubsetViolationError,
    shown_value,
)
from ..wire.jsontext import JSONValue, exact_number

__all__ = [
    "MAX_CURRENCIES",
    "MAX_PLACES",
    "MAX_WHOLE_DIGITS",
    "Amount",
    "Budget",
    "Reservation",
    "parse_budget",
    "to_amount",
    "to_numbers",
]

Amount = Decimal | float | str
"""What stands for an amount of money (an int is one too): see :func:`to_amount`."""

MAX_WHOLE_DIGITS = 15
"""How many digits an amount may have before its point: a double, in which peers read it, still tells units apart."""

MAX_PLACES = 40
"""How many digits it may have behind its point: what floats leave of a difference of small prices has some 35."""

MAX_CURRENCIES = 32
"""How many currencies one budget may have: all of them are looked at before each guarded operation."""

_DECIMAL = re.compile(rf"[0-9]{{1,{MAX_WHOLE_DIGITS}}}(\.[0-9]{{1,{MAX_PLACES}}})?")
_AMOUNT = re.compile(rf"(?P<currency>[A-Za-z][A-Za-z0-9._-]{{0,31}}):(?P<decimal>{_DECIMAL.pattern})")
_LARGEST = 10**MAX_WHOLE_DIGITS
# Room for 10**40 charges of the largest amount: a sum that had to be rounded would be a bug, and raises.
_EXACT = Context(prec=100, traps=[Inexact, InvalidOperation])
_ZERO = Decimal(0)


def to_amount(value: object, path: str) -> Decimal:
    """Return a number as an exact amount.

    Args:
        value: A Decimal or an int as it is, a float as Python and JSON write it (0.1 is 0.1), a str as in a budget
            (``"0.25"``); from 0 to below 10**15, with at most 40 digits behind the point.
        path: Where it stands, for the error.

    Raises:
        InvalidRequestError: It is another type (a bool is), NaN, an infinity, negative (also a negative zero, B02), or
            has more digits.
    """
    amount: Decimal | None = None
    if isinstance(value, str):
        if _DECIMAL.fullmatch(value):
            amount = Decimal(value)
    elif isinstance(value, Decimal):
        amount = value
    elif isinstance(value, float):
        # Its shortest text is its JSON text. The class may be one of numpy's, which has another repr.
        amount = Decimal(float.__repr__(value))
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST:
        # Within bounds first: making a Decimal of a huge int costs the square of its digits.
        amount = Decimal(value)
    if amount is None or not amount.is_finite() or amount.is_signed():
        raise InvalidRequestError(f"{path}: expected an amount that is not negative, got {shown_value(value)}")
    if not amount:
        return _ZERO
    # By the exponents alone: an amount of 1E+999999999 must not be written out to be refused.
    exponent = amount.as_tuple().exponent
    assert isinstance(exponent, int)
    if amount.adjusted() >= MAX_WHOLE_DIGITS or exponent < -MAX_PLACES:
        raise InvalidRequestError(
            f"{path}: expected at most {MAX_WHOLE_DIGITS} digits before the point and {MAX_PLACES} behind it, "
            f"got {shown_value(value)}"
        )
    return amount


def parse_budget(patterns: Sequence[str], path: str) -> dict[str, Decimal]:
    """Return the amounts of a ``cost.budget`` by currency.

    Args:
        patterns: Amount strings, ``currency:decimal``: a currency begins with a letter and has at most 32 letters,
            digits, ``.``, ``_`` or ``-``; it is case-sensitive. Zero is valid, and exhausted from the start.
        path: Where they stand, for the error.

    Raises:
        InvalidRequestError: One is malformed, a currency comes twice, or there are more than 32 (B12).
    """
    limits: dict[str, Decimal] = {}
    for index, pattern in enumerate(patterns):
        found = _AMOUNT.fullmatch(pattern)
        if found is None:
            raise InvalidRequestError(
                f"{path}[{index}]: expected an amount as in 'USD:5.00', with at most {MAX_WHOLE_DIGITS} digits before "
                f"the point and {MAX_PLACES} behind it, got {pattern!r:.60}"
            )
        currency = found["currency"]
        if currency in limits:
            raise InvalidRequestError(f"{path}[{index}]: expected one amount for each currency, got {currency} twice")
        if len(limits) == MAX_CURRENCIES:
            raise InvalidRequestError(f"{path}: expected at most {MAX_CURRENCIES} currencies")
        limits[currency] = Decimal(found["decimal"])
    return limits


def to_numbers(amounts: Mapping[str, Decimal]) -> dict[str, JSONValue] | None:
    """Return amounts as the wire shows a budget, as numbers (X1); ``None`` for no amounts at all."""
    return {currency: exact_number(amount) for currency, amount in amounts.items()} or None


@attrs.define(eq=False)
class _Counter:
    """One currency of one budget.

    Attributes:
        owner: Whose it is.
        limit: What there was at first.
        spent: What was charged, also by children that have ended.
        held: What the children that run were given of it.
        reserved: What reservations claim of what remains.
    """

    owner: Budget
    limit: Decimal
    spent: Decimal = _ZERO
    held: Decimal = _ZERO
    reserved: Decimal = _ZERO

    @property
    def remaining(self) -> Decimal:
        return _EXACT.subtract(self.limit, _EXACT.add(self.held, self.spent))

    @property
    def free(self) -> Decimal:
        return _EXACT.subtract(self.remaining, self.reserved)

    def spend(self, amount: Decimal) -> None:
        self.spent = _EXACT.add(self.spent, amount)

    def hold(self, amount: Decimal) -> None:
        self.held = _EXACT.add(self.held, amount)

    def give_back(self, amount: Decimal) -> None:
        self.held = _EXACT.subtract(self.held, amount)

    def claim(self, amount: Decimal) -> None:
        self.reserved = _EXACT.add(self.reserved, amount)

    def unclaim(self, amount: Decimal) -> None:
        self.reserved = _EXACT.subtract(self.reserved, amount)


class Budget:
    """The counters of one job; a child's are held from its parent's.

    Args:
        limits: An amount by currency; empty for a job without a budget of its own.
        parent: The budget of the job that delegates, or ``None`` for a job that was submitted.

    Raises:
        LeaseSubsetViolationError: As :meth:`delegate`.
        InvalidRequestError: An amount is none (:func:`to_amount`).
        JobEndedError: The parent has ended.

    Attributes:
        limits: This job's own counters as they began. Read-only by convention.
        parent: The budget of the job that delegated this one, or ``None``.
    """

    __slots__ = ("_applicable", "_children", "_own", "_reservations", "_settled", "_sources", "limits", "parent")

    def __init__(self, limits: Mapping[str, Amount] | None = None, parent: Budget | None = None) -> None:
        self.limits: Mapping[str, Decimal] = _to_amounts(limits or {})
        self.parent = parent
        self._own = {currency: _Counter(self, limit) for currency, limit in self.limits.items()}
        # Which counters there are never changes: nobody has to walk up to the ancestors for one.
        self._applicable = dict(self._own)
        self._sources: dict[str, _Counter] = {}
        # Of both what is open: each is an entry of a job's or an agent's own, and leaves with it.
        self._children: set[Budget] = set()
        self._reservations: set[Reservation] = set()
        self._settled = False
        if parent is not None:
            self._sources = parent._hold(self.limits)  # noqa: SLF001  # its own class
            self._applicable = parent._applicable | self._own  # noqa: SLF001
            parent._children.add(self)  # noqa: SLF001

    def __repr__(self) -> str:
        counters = ", ".join(f"{currency} {amount:f}" for currency, amount in self.remaining().items())
        return f"<Budget {counters or 'without counters'}{', settled' if self._settled else ''}>"

    # --- what can be read -------------------------------------------------------------------------

    def remaining(self) -> dict[str, Decimal]:
        """Return the counters of the job's own currencies; they may be below zero."""
        return {currency: counter.remaining for currency, counter in self._own.items()}

    def spent(self) -> dict[str, Decimal]:
        """Return what was charged to the job's own counters, also by children that have ended."""
        return {currency: counter.spent for currency, counter in self._own.items()}

    def held(self) -> dict[str, Decimal]:
        """Return what the children that run were given of the job's own counters."""
        return {currency: counter.held for currency, counter in self._own.items()}

    def applicable(self) -> dict[str, Decimal]:
        """Return the counters of every currency that the job can be charged in: its own and its ancestors'."""
        return {currency: counter.remaining for currency, counter in self._applicable.items()}

    def counter_for(self, currency: str) -> Budget | None:
        """Return the budget whose counter the job's costs in ``currency`` go to: its own or its nearest ancestor's."""
        counter = self._applicable.get(currency)
        return None if counter is None else counter.owner

    def exhausted(self) -> str | None:
        """Return a currency whose counter is at zero or below, or ``None`` (P9.4).

        An ancestor's counter counts where the job has none of its own: one that is empty because all of it was held
        for this job stops the ancestor, not the job.
        """
        return next((currency for currency, counter in self._applicable.items() if counter.remaining <= 0), None)

    # --- what changes it --------------------------------------------------------------------------

    def charge(self, currency: str, amount: Amount) -> Budget | None:
        """Charge a cost that was incurred; the counter may go below zero (B05).

        Returns:
            The budget that was charged, or ``None`` where neither the job nor an ancestor has the currency (P9.7).

        Raises:
            InvalidRequestError: The amount is none (:func:`to_amount`); nothing is charged.
            JobEndedError: The budget is settled; likewise.
        """
        amount = to_amount(amount, currency)
        self._check_open()
        counter = self._applicable.get(currency)
        if counter is None:
            return None
        counter.spend(amount)
        return counter.owner

    def reserve(self, amounts: Mapping[str, Amount]) -> Reservation:
        """Claim amounts ahead of a call: all of them or none.

        Without any budget, its own or an ancestor's, there is nothing to claim and nothing to refuse (B10).

        Raises:
            BudgetExhaustedError: More than is free, or a budget exists and lacks the currency (B10); nothing is
                claimed.
            InvalidRequestError: An amount is none (:func:`to_amount`); likewise.
            JobEndedError: The budget is settled; likewise.
        """
        wanted = _to_amounts(amounts)
        self._check_open()
        claims: dict[str, tuple[_Counter, Decimal]] = {}
        for currency, amount in wanted.items() if self._applicable else ():
            counter = self._applicable.get(currency)
            if counter is None:
                raise BudgetExhaustedError(f"no budget in {currency:.40}, only in {', '.join(self._applicable)}")
            if amount > counter.free:
                raise BudgetExhaustedError(f"{amount:f} {currency} is more than the {counter.free:f} that is free")
            claims[currency] = counter, amount
        # No checkpoint since the first look: what was free still is.
        reservation = Reservation(self, claims, self._reservations.discard)
        self._reservations.add(reservation)
        return reservation

    def delegate(self, limits: Mapping[str, Amount]) -> Budget:
        """Make the budget of a child: what it may spend is held from the counters that apply here (P10.2).

        Args:
            limits: The child's own counters. For a currency that it has none for it is charged where this job is.

        Raises:
            LeaseSubsetViolationError: More than is free, or a currency that neither this job nor an ancestor has;
                nothing is held.
            InvalidRequestError: An amount is none (:func:`to_amount`); likewise.
            JobEndedError: The budget is settled; likewise.
        """
        return Budget(limits, self)

    def settle(self) -> None:
        """End: what was spent is charged to where the budget came from, an overdraft too; the rest returns there.

        Children that have not settled are settled first, and reservations are released. What remained can still be
        read; a second time does nothing.
        """
        if self._settled:
            return
        for child in list(self._children):
            child.settle()
        for reservation in list(self._reservations):
            reservation.release()
        self._settled = True
        for currency, source in self._sources.items():
            source.give_back(self.limits[currency])
            source.spend(self._own[currency].spent)
        if self.parent is not None:
            self.parent._children.discard(self)  # noqa: SLF001  # its own class

    def _check_open(self) -> None:
        if self._settled:
            raise JobEndedError("the job has ended: nothing can be charged to it any more")

    def _hold(self, limits: Mapping[str, Decimal]) -> dict[str, _Counter]:
        """Hold what a child is given, all of it or nothing; return from which counters."""
        self._check_open()
        sources: dict[str, _Counter] = {}
        for currency, limit in limits.items():
            counter = self._applicable.get(currency)
            if counter is None:
                raise LeaseSubsetViolationError(f"cost.budget: the delegating job has no budget in {currency:.40}")
            if limit > counter.free:
                raise LeaseSubsetViolationError(
                    f"cost.budget: {limit:f} {currency} is more than the {counter.free:f} that the delegating job has"
                )
            sources[currency] = counter
        for currency, counter in sources.items():
            counter.hold(limits[currency])
        return sources


class Reservation:
    """A claim upon counters, ahead of a call; :meth:`Budget.reserve` makes it.

    What is charged within it uses it up first; :meth:`release` gives the rest back.
    """

    __slots__ = ("_budget", "_claims", "_forget")

    def __init__(
        self, budget: Budget, claims: dict[str, tuple[_Counter, Decimal]], forget: Callable[[Reservation], None]
    ) -> None:
        self._budget = budget
        self._claims = claims
        self._forget = forget
        for counter, amount in claims.values():
            counter.claim(amount)

    def __repr__(self) -> str:
        left = ", ".join(f"{currency} {amount:f}" for currency, amount in self.left().items())
        return f"<Reservation {left or 'of nothing'}>"

    def left(self) -> dict[str, Decimal]:
        """Return what it still claims, by currency."""
        return {currency: amount for currency, (_, amount) in self._claims.items()}

    def charge(self, currency: str, amount: Amount) -> Budget | None:
        """Charge a cost that was incurred, out of the claim as far as that goes; otherwise as :meth:`Budget.charge`."""
        amount = to_amount(amount, currency)
        charged = self._budget.charge(currency, amount)
        if currency in self._claims:
            counter, left = self._claims[currency]
            used = min(left, amount)
            counter.unclaim(used)
            self._claims[currency] = counter, _EXACT.subtract(left, used)
        return charged

    def release(self) -> None:
        """Give back what was not charged; a second time does nothing."""
        for counter, left in self._claims.values():
            counter.unclaim(left)
        self._claims.clear()
        self._forget(self)


def _to_amounts(amounts: Mapping[str, Amount]) -> dict[str, Decimal]:
    return {currency: to_amount(amount, currency) for currency, amount in amounts.items()}
