"""No money is lost and none is made, whatever happens to a tree of budgets in whatever order."""

from __future__ import annotations

import decimal
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from arcp_trio.authority.budget import Budget, Reservation
from arcp_trio.wire.errors import BudgetExhaustedError, JobEndedError, LeaseSubsetViolationError

CURRENCIES = ("USD", "EUR")
some_amount = st.decimals(min_value=0, max_value=5, places=2) | st.sampled_from([Decimal(0), Decimal("1e-40")])
some_amounts = st.dictionaries(st.sampled_from(CURRENCIES), some_amount)


def total(parts: Any) -> Decimal:
    with decimal.localcontext(prec=100):
        return sum(parts, Decimal(0))


class Money(RuleBasedStateMachine):
    """Delegates, charges, reserves, releases and settles in any order, beside a ledger that only adds up."""

    budgets = Bundle("budgets")
    reservations = Bundle("reservations")

    @initialize(target=budgets, limits=some_amounts)
    def submit(self, limits: Mapping[str, Decimal]) -> Budget:
        self.root = Budget(limits)
        self.open = [self.root]
        self.claims: list[tuple[Budget, Reservation]] = []
        self.charged = dict.fromkeys(CURRENCIES, Decimal(0))
        return self.root

    def owner(self, budget: Budget, currency: str) -> Budget | None:
        """Find by walking up whose counter a currency goes to."""
        while currency not in budget.limits:
            if budget.parent is None:
                return None
            budget = budget.parent
        return budget

    def free(self, budget: Budget, currency: str) -> Decimal | None:
        """Work out what can still be claimed, from the limits, the children, the claims and what was spent."""
        owner = self.owner(budget, currency)
        if owner is None:
            return None
        given = [
            child.limits[currency]
            for child in self.open
            if child.parent is not None and currency in child.limits and self.owner(child.parent, currency) is owner
        ]
        claimed = [
            claim.left().get(currency, Decimal(0))
            for claimant, claim in self.claims
            if self.owner(claimant, currency) is owner
        ]
        return total([owner.limits[currency], -owner.spent()[currency], *(-each for each in given + claimed)])

    def allowed(self, budget: Budget, wanted: Mapping[str, Decimal]) -> bool:
        free = {currency: self.free(budget, currency) for currency in wanted}
        return all(left is not None and wanted[currency] <= left for currency, left in free.items())

    @rule(target=budgets, parent=budgets, limits=some_amounts)
    def delegate(self, parent: Budget, limits: Mapping[str, Decimal]) -> Any:
        expected: tuple[type[Exception], ...] = ()
        if parent not in self.open:
            expected = (JobEndedError,)
        elif not self.allowed(parent, limits):
            expected = (LeaseSubsetViolationError,)
        try:
            child = parent.delegate(limits)
        except expected:
            return multiple()
        assert not expected
        self.open.append(child)
        return child

    @rule(budget=budgets, currency=st.sampled_from(CURRENCIES), amount=some_amount)
    def charge(self, budget: Budget, currency: str, amount: Decimal) -> None:
        self.charge_by(budget, budget.charge, currency, amount)

    @rule(claim=reservations, currency=st.sampled_from(CURRENCIES), amount=some_amount)
    def charge_within(self, claim: tuple[Budget, Reservation], currency: str, amount: Decimal) -> None:
        before = claim[1].left()
        self.charge_by(claim[0], claim[1].charge, currency, amount)
        if claim[0] in self.open and currency in before:
            assert claim[1].left()[currency] == max(total([before[currency], -amount]), Decimal(0))

    def charge_by(
        self, budget: Budget, charge: Callable[[str, Decimal], Budget | None], currency: str, amount: Decimal
    ) -> None:
        if budget not in self.open:
            with pytest.raises(JobEndedError):
                charge(currency, amount)
            return
        owner = self.owner(budget, currency)
        assert charge(currency, amount) is owner is budget.counter_for(currency)
        if owner is not None:
            self.charged[currency] = total([self.charged[currency], amount])

    @rule(target=reservations, budget=budgets, wanted=some_amounts)
    def reserve(self, budget: Budget, wanted: Mapping[str, Decimal]) -> Any:
        anything = any(self.owner(budget, currency) for currency in CURRENCIES)
        expected: tuple[type[Exception], ...] = ()
        if budget not in self.open:
            expected = (JobEndedError,)
        elif anything and not self.allowed(budget, wanted):
            expected = (BudgetExhaustedError,)
        try:
            claim = budget.reserve(wanted)
        except expected:
            return multiple()
        assert not expected
        assert claim.left() == (dict(wanted) if anything else {})
        self.claims.append((budget, claim))
        return budget, claim

    @rule(claim=consumes(reservations))
    def release(self, claim: tuple[Budget, Reservation]) -> None:
        claim[1].release()
        self.claims = [(budget, each) for budget, each in self.claims if each is not claim[1]]

    @rule(budget=budgets)
    def settle(self, budget: Budget) -> None:
        budget.settle()
        over = {budget}
        for each in self.open:
            if each.parent in over:
                over.add(each)
        self.open = [each for each in self.open if each not in over]
        self.claims = [(claimant, claim) for claimant, claim in self.claims if claimant not in over]

    @invariant()
    def every_counter_adds_up(self) -> None:
        for budget in self.open:
            for currency, limit in budget.limits.items():
                assert limit == total([budget.remaining()[currency], budget.held()[currency], budget.spent()[currency]])
                given = [
                    child.limits[currency]
                    for child in self.open
                    if child.parent is not None
                    and currency in child.limits
                    and self.owner(child.parent, currency) is budget
                ]
                assert budget.held()[currency] == total(given)

    @invariant()
    def nothing_is_lost_and_nothing_made(self) -> None:
        if self.root not in self.open:
            # A root that has ended has been told of everything.
            assert self.root.spent() == {currency: self.charged[currency] for currency in self.root.limits}
            return
        for currency, limit in self.root.limits.items():
            there = [budget for budget in self.open if currency in budget.limits]
            spent = total(budget.spent()[currency] for budget in there)
            assert spent == self.charged[currency]
            assert limit == total([spent, *(budget.remaining()[currency] for budget in there)])

    @invariant()
    def what_is_exhausted_is_what_applies(self) -> None:
        for budget in self.open:
            owners = {currency: self.owner(budget, currency) for currency in CURRENCIES}
            counters = {currency: owner.remaining()[currency] for currency, owner in owners.items() if owner}
            assert budget.applicable() == counters
            empty = {currency for currency, amount in counters.items() if amount <= 0}
            assert budget.exhausted() in (empty or {None})


TestMoney = pytest.mark.requirement("P9.7", "P10.2", "B14", "B15")(Money.TestCase)
TestMoney.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
