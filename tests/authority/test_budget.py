"""Budgets as values: exact amounts, charges, reservations, and a tree of them that loses and makes no money."""

from __future__ import annotations

import decimal
import enum
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcp_trio.authority.budget import MAX_CURRENCIES, Budget, Reservation, parse_budget, to_amount
from arcp_trio.wire.errors import (
    BudgetExhaustedError,
    InvalidRequestError,
    JobEndedError,
    LeaseSubsetViolationError,
)

PATH = '$.payload.lease_request."cost.budget"'


def usd(text: str, **others: str) -> Budget:
    return Budget({"USD": Decimal(text)} | {currency: Decimal(amount) for currency, amount in others.items()})


def amounts(**texts: str) -> dict[str, Decimal]:
    return {currency: Decimal(text) for currency, text in texts.items()}


# --- the grammar ----------------------------------------------------------------------------------


@pytest.mark.requirement("P9.7")
def test_a_budget_is_read_exactly() -> None:
    patterns = ["USD:5.00", "usd:0.1", "credits:1000", "x.Y_z-9:0", "C" * 32 + ":007.5"]
    expected = {"USD": "5.00", "usd": "0.1", "credits": "1000", "x.Y_z-9": "0", "C" * 32: "7.5"}
    limits = parse_budget(patterns, PATH)
    assert {currency: str(amount) for currency, amount in limits.items()} == expected
    longest = "9" * 15 + "." + "0" * 39 + "1"
    assert parse_budget(["U:" + longest], PATH) == {"U": Decimal(longest)}


MALFORMED = [
    "USD",
    "USD:",
    "USD:-1",
    "USD:-0",
    "USD:+1",
    "USD:1,0",
    "USD:NaN",
    "USD:Infinity",
    "USD:1e3",
    "USD:1_000",
    "USD:.5",
    "USD:5.",
    "USD:1.0.0",
    "USD: 5",
    "USD:5 ",
    "USD:5\n",
    "USD :5",
    "USD:\u0665",
    "USD:5:5",
    ":5",
    "",
    ":",
    "5:USD",
    "1USD:5",
    "-USD:5",
    "U SD:5",
    "ÜSD:5",
    "C" * 33 + ":5",
    "USD:" + "1" * 16,
    "USD:1." + "1" * 41,
    "USD:" + "9" * 100_000,
]


@pytest.mark.requirement("P9.7", "B12", "G22")
@pytest.mark.parametrize("pattern", MALFORMED, ids=[f"{n}" for n in range(len(MALFORMED))])
def test_a_malformed_budget_is_refused_where_it_stands(pattern: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_budget(["EUR:1", pattern], PATH)
    assert caught.value.message.startswith(f"{PATH}[1]: expected an amount as in 'USD:5.00'")
    assert len(caught.value.message) < 300


@pytest.mark.requirement("P9.7", "B12")
def test_a_currency_comes_once() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_budget(["USD:1", "EUR:1", "USD:1"], PATH)
    assert caught.value.message == f"{PATH}[2]: expected one amount for each currency, got USD twice"


@pytest.mark.requirement("P9.7")
def test_the_currencies_are_bounded() -> None:
    patterns = [f"c{number}:1" for number in range(MAX_CURRENCIES)]
    assert len(parse_budget(patterns, PATH)) == MAX_CURRENCIES
    with pytest.raises(InvalidRequestError, match="at most 32 currencies"):
        parse_budget([*patterns, "one-more:1"], PATH)


# --- amounts --------------------------------------------------------------------------------------


class Foreign(float):
    """A float whose repr is not its JSON text, as numpy's is."""

    def __repr__(self) -> str:
        return f"np.float64({float(self)!r})"


class Cents(enum.IntEnum):
    TWO = 2


AMOUNTS: list[tuple[Any, str]] = [
    (0.1, "0.1"),
    (0.0234, "0.0234"),
    (0.1 + 0.2, "0.30000000000000004"),
    (1e-07, "1E-7"),
    (0.1 + 0.2 - 0.3, "5.551115123125783E-17"),
    (5.0, "5.0"),
    (Foreign(0.1), "0.1"),
    (0.0, "0"),
    (0, "0"),
    (7, "7"),
    (Cents.TWO, "2"),
    (10**15 - 1, "9" * 15),
    (Decimal("0.10"), "0.10"),
    (Decimal("1E+3"), "1E+3"),
    (Decimal("0E-999999"), "0"),
    ("2.50", "2.50"),
]


@pytest.mark.requirement("P9.7", "B04")
@pytest.mark.parametrize(("value", "expected"), AMOUNTS)
def test_a_number_becomes_the_decimal_of_its_text(value: object, expected: str) -> None:
    assert str(to_amount(value, "$")) == expected


REFUSED: list[Any] = [
    -5,
    -5.0,
    -0.0,
    -1e-300,
    Decimal(-1),
    Decimal("-0"),
    float("nan"),
    float("inf"),
    float("-inf"),
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
    True,
    False,
    None,
    "",
    "-1",
    "1e3",
    "NaN",
    b"1",
    1j,
    [1],
    -(10**400),
    10**15,
    10**400,
    10**100_000,
    1e15,
    1e300,
    5e-324,
    Decimal("1E+999999"),
    Decimal("1E-999999"),
    Decimal("1e-41"),
    "9" * 1_000_000,
]


@pytest.mark.requirement("P9.7", "B02")
@pytest.mark.parametrize("value", REFUSED, ids=[f"{n}" for n in range(len(REFUSED))])
def test_what_is_no_amount_raises_and_changes_nothing(value: Any) -> None:
    budget = usd("1.00")
    held = budget.reserve(amounts(USD="0.25"))
    attempts: list[Callable[[], object]] = [
        lambda: budget.charge("USD", value),
        lambda: held.charge("USD", value),
        lambda: budget.reserve({"USD": value}),
        lambda: budget.delegate({"USD": value}),
        lambda: Budget({"USD": value}),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidRequestError) as caught:
            attempt()
        assert caught.value.message.startswith("USD: expected a")
        assert len(caught.value.message) < 200
    assert (budget.remaining(), budget.spent(), held.left()) == (
        amounts(USD="1.00"),
        amounts(USD="0"),
        amounts(USD="0.25"),
    )


@pytest.mark.requirement("P9.7", "B04")
def test_sums_are_exact_whatever_the_context_of_the_caller() -> None:
    budget = Budget({"USD": Decimal("999999999999999.9")})
    with decimal.localcontext() as context:
        context.prec = 3
        context.traps[decimal.Inexact] = False
        for _ in range(1000):
            budget.charge("USD", Decimal("1e-40"))
        assert budget.reserve({"USD": Decimal("1e-40")}).left() == {"USD": Decimal("1e-40")}
    assert str(budget.remaining()["USD"]) == "999999999999999.8" + "9" * 36 + "000"


@pytest.mark.requirement("P9.7", "B04")
@given(st.floats(min_value=1e-20, max_value=1e14))
def test_a_float_is_what_its_text_says(value: float) -> None:
    assert to_amount(value, "$") == Decimal(repr(value))
    assert float(to_amount(value, "$")) == value


# --- charges --------------------------------------------------------------------------------------


@pytest.mark.requirement("P9.7", "B04")
def test_ten_dimes_are_a_dollar() -> None:
    budget = usd("1.00")
    for _ in range(10):
        assert budget.exhausted() is None
        assert budget.charge("USD", to_amount(0.1, "$")) is budget
    assert budget.remaining() == {"USD": 0}
    assert budget.exhausted() == "USD"
    with pytest.raises(BudgetExhaustedError):
        budget.reserve(amounts(USD="0.10"))


@pytest.mark.requirement("P9.7", "P9.4", "B05", "B01")
def test_an_incurred_cost_goes_below_zero_and_a_reservation_does_not() -> None:
    budget = usd("1.00")
    with pytest.raises(BudgetExhaustedError) as caught:
        budget.reserve(amounts(USD="1.50"))
    assert caught.value.message == "1.50 USD is more than the 1.00 that is free"
    assert budget.remaining() == amounts(USD="1.00")
    assert budget.exhausted() is None
    budget.charge("USD", Decimal("1.50"))
    assert budget.remaining() == amounts(USD="-0.50")
    assert budget.exhausted() == "USD"


@pytest.mark.requirement("P9.4", "P9.7", "B06")
@pytest.mark.parametrize(("spent", "exhausted"), [("0.99", None), ("1.00", "USD"), ("1.01", "USD"), ("1", "USD")])
def test_the_last_cent_can_be_spent_and_zero_cannot(spent: str, exhausted: str | None) -> None:
    budget = usd("1.00")
    budget.charge("USD", Decimal(spent))
    assert budget.exhausted() == exhausted


@pytest.mark.requirement("P9.7", "B07")
def test_a_budget_of_zero_is_exhausted_from_the_start() -> None:
    budget = usd("0.00", EUR="5")
    assert budget.exhausted() == "USD"
    assert budget.reserve(amounts(EUR="5", USD="0")).left() == amounts(EUR="5", USD="0")


@pytest.mark.requirement("P9.7")
def test_currencies_are_apart() -> None:
    budget = usd("1", usd="2", EUR="3")
    budget.charge("usd", Decimal(2))
    assert budget.remaining() == amounts(USD="1", usd="0", EUR="3")
    assert budget.exhausted() == "usd"


@pytest.mark.requirement("P9.7", "B10")
def test_a_currency_without_a_budget() -> None:
    budget = usd("1")
    assert budget.charge("EUR", Decimal(100)) is None
    assert budget.remaining() == amounts(USD="1")
    for wanted in (amounts(EUR="0.01"), amounts(USD="0.5", EUR="0.01"), amounts(EUR="0")):
        with pytest.raises(BudgetExhaustedError, match="no budget in EUR, only in USD"):
            budget.reserve(wanted)
    # Nothing was held by the half of it that was there.
    budget.reserve(amounts(USD="1"))


@pytest.mark.requirement("P9.7", "B10")
def test_without_any_budget_all_is_allowed() -> None:
    for budget in (Budget(), Budget().delegate({})):
        assert (budget.exhausted(), budget.counter_for("USD"), budget.applicable()) == (None, None, {})
        with pytest.raises(LeaseSubsetViolationError):
            budget.delegate(amounts(USD="1"))
        reservation = budget.reserve(amounts(USD="1000"))
        assert reservation.left() == {}
        assert reservation.charge("USD", Decimal(5000)) is None
        reservation.release()


# --- reservations ---------------------------------------------------------------------------------


@pytest.mark.requirement("P9.7", "B14")
def test_reservations_never_claim_more_than_there_is() -> None:
    budget = usd("0.50")
    won: list[Reservation] = []
    for _ in range(100):
        try:
            won.append(budget.reserve(amounts(USD="0.01")))
        except BudgetExhaustedError:
            assert len(won) == 50
    assert len(won) == 50
    # A claim is not spent: what is claimed can be spent in guarded operations.
    assert (budget.remaining(), budget.exhausted()) == (amounts(USD="0.50"), None)
    for reservation in won:
        reservation.charge("USD", Decimal("0.01"))
    assert (budget.remaining(), budget.exhausted()) == (amounts(USD="0"), "USD")


@pytest.mark.requirement("P9.7")
def test_what_is_charged_within_a_reservation_uses_it_up() -> None:
    budget = usd("1.00", EUR="1")
    held = budget.reserve(amounts(USD="0.60", EUR="1"))
    assert held.charge("USD", Decimal("0.20")) is budget
    assert held.left() == amounts(USD="0.40", EUR="1")
    assert budget.remaining() == amounts(USD="0.80", EUR="1")
    # More than is left of it: the rest is charged all the same.
    held.charge("USD", Decimal("0.50"))
    assert held.left() == amounts(USD="0", EUR="1")
    assert budget.remaining() == amounts(USD="0.30", EUR="1")
    assert held.charge("GBP", Decimal(1)) is None
    held.release()
    held.release()
    assert held.left() == {}
    budget.reserve(amounts(USD="0.30", EUR="1"))
    # Outside of it a cost is a cost.
    held.charge("USD", Decimal("0.10"))
    assert budget.remaining() == amounts(USD="0.20", EUR="1")


@pytest.mark.requirement("P9.7", "P10.2")
def test_claims_and_children_share_what_there_is() -> None:
    budget = usd("1.00")
    held = budget.reserve(amounts(USD="0.40"))
    with pytest.raises(LeaseSubsetViolationError, match=r"0\.61 USD is more than the 0\.60 that"):
        budget.delegate(amounts(USD="0.61"))
    child = budget.delegate(amounts(USD="0.60"))
    assert (budget.remaining(), budget.held()) == (amounts(USD="0.40"), amounts(USD="0.60"))
    with pytest.raises(BudgetExhaustedError):
        budget.reserve(amounts(USD="0.01"))
    held.release()
    assert budget.reserve(amounts(USD="0.40")).left() == amounts(USD="0.40")
    assert child.remaining() == amounts(USD="0.60")


# --- the tree -------------------------------------------------------------------------------------


@pytest.mark.requirement("P10.2", "G18")
def test_siblings_never_overdraw_their_parent() -> None:
    parent = usd("5.00")
    parent.charge("USD", Decimal("3.00"))
    with pytest.raises(LeaseSubsetViolationError):
        parent.delegate(amounts(USD="2.01"))
    first = parent.delegate(amounts(USD="1.50"))
    with pytest.raises(LeaseSubsetViolationError):
        parent.delegate(amounts(USD="0.51"))
    second = parent.delegate(amounts(USD="0.50"))
    # All of it is held: that stops the parent and not its children.
    assert (parent.exhausted(), first.exhausted(), second.exhausted()) == ("USD", None, None)
    with pytest.raises(LeaseSubsetViolationError):
        parent.delegate(amounts(USD="0.01"))
    first.charge("USD", Decimal("0.20"))
    first.settle()
    assert parent.remaining() == amounts(USD="1.30")
    second.settle()
    assert (parent.remaining(), parent.spent(), parent.held()) == (
        amounts(USD="1.80"),
        amounts(USD="3.20"),
        amounts(USD="0"),
    )


@pytest.mark.requirement("P10.2", "G18")
def test_a_child_gets_no_currency_that_its_parent_lacks() -> None:
    parent = usd("1")
    with pytest.raises(LeaseSubsetViolationError, match="no budget in EUR"):
        parent.delegate(amounts(USD="1", EUR="0"))
    assert parent.remaining() == amounts(USD="1")


@pytest.mark.requirement("P10.2", "B15")
def test_a_child_without_a_currency_is_charged_where_its_parent_is() -> None:
    root = usd("2", EUR="1")
    child = root.delegate(amounts(EUR="1"))
    grandchild = child.delegate({})
    assert (child.counter_for("USD"), grandchild.counter_for("EUR")) == (root, child)
    assert grandchild.applicable() == amounts(USD="2", EUR="1")
    assert grandchild.remaining() == {}
    assert grandchild.charge("USD", Decimal("0.50")) is root
    assert root.remaining() == amounts(USD="1.50", EUR="0")
    # What it has no counter for can be given on all the same: it is held where it is charged.
    fourth = grandchild.delegate(amounts(USD="1.00"))
    assert root.held() == amounts(USD="1.00", EUR="1")
    assert fourth.charge("USD", Decimal("0.25")) is fourth
    # It stops with the counter that it is charged to.
    root.charge("USD", Decimal("0.50"))
    assert (child.exhausted(), grandchild.exhausted(), fourth.exhausted()) == ("USD", "USD", None)
    child.settle()
    assert (root.remaining(), root.spent()) == (amounts(USD="0.75", EUR="1"), amounts(USD="1.25", EUR="0"))


@pytest.mark.requirement("P10.2", "B15")
def test_a_childs_overdraft_is_its_parents() -> None:
    root = usd("5")
    child = root.delegate(amounts(USD="2"))
    grandchild = child.delegate(amounts(USD="1"))
    grandchild.charge("USD", Decimal(4))
    assert (grandchild.remaining(), child.remaining(), root.remaining()) == (
        amounts(USD="-3"),
        amounts(USD="1"),
        amounts(USD="3"),
    )
    grandchild.settle()
    assert (child.remaining(), child.exhausted()) == (amounts(USD="-2"), "USD")
    child.settle()
    assert (root.remaining(), root.spent()) == (amounts(USD="1"), amounts(USD="4"))


@pytest.mark.requirement("P10.2")
def test_what_is_settled_is_over() -> None:
    root = usd("5")
    child = root.delegate(amounts(USD="2"))
    grandchild = child.delegate({})
    claim = grandchild.reserve(amounts(USD="2"))
    child.charge("USD", Decimal("0.5"))
    child.settle()
    child.settle()
    grandchild.settle()
    assert root.remaining() == amounts(USD="4.5")
    assert claim.left() == {}
    # What was left when it ended can still be told.
    assert child.remaining() == amounts(USD="1.5")
    attempts: list[Callable[[], object]] = [
        lambda: child.charge("USD", Decimal(1)),
        lambda: grandchild.charge("USD", Decimal(1)),
        lambda: claim.charge("USD", Decimal(1)),
        lambda: child.reserve(amounts(USD="1")),
        lambda: child.delegate(amounts(USD="1")),
        lambda: grandchild.delegate({}),
    ]
    for attempt in attempts:
        with pytest.raises(JobEndedError):
            attempt()
    claim.release()
    assert (root.remaining(), root.held()) == (amounts(USD="4.5"), amounts(USD="0"))
    assert root.reserve(amounts(USD="4.5")).left() == amounts(USD="4.5")


def test_how_they_read() -> None:
    budget = usd("1.50", EUR="2")
    assert repr(budget) == "<Budget USD 1.50, EUR 2>"
    assert repr(budget.reserve(amounts(USD="1"))) == "<Reservation USD 1>"
    assert repr(Budget()) == "<Budget without counters>"
    assert repr(Budget().reserve({})) == "<Reservation of nothing>"
    budget.settle()
    assert repr(budget) == "<Budget USD 1.50, EUR 2, settled>"
