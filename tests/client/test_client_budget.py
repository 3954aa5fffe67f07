"""What a handle knows of its job's budget, whatever a runtime writes (P9.7, X1, D29)."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import trio
import trio.testing
from playing import Call, Connection, open_played

import arcp_trio
from arcp_trio.client.budget import JobBudget, read_amount


@pytest.mark.requirement("P9.7", "X1", "D29")
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, "5"),
        (0.1, "0.1"),
        (4.58, "4.58"),
        (-4.0, "-4.0"),
        ("USD:5.00", "5.00"),
        ("5.00", "5.00"),
        ("USD:-0.50", "-0.50"),
        (10**39, "1" + "0" * 39),
        ("EUR:5.00", None),
        ("USD:", None),
        ("", None),
        ("USD:1e3", None),
        ("USD:NaN", None),
        ("1" * 41, None),
        ("9" * 1_000_000, None),
        (10**40, None),
        (-(10**5000), None),
        (1e300, None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        (None, None),
        ({"USD": 5}, None),
        ([5], None),
    ],
    ids=[f"{n}" for n in range(24)],
)
def test_an_amount_in_every_form(value: Any, expected: str | None) -> None:
    amount = read_amount(value, "USD")
    assert (None if amount is None else str(amount)) == expected


@pytest.mark.requirement("P9.7", "P5.4")
@pytest.mark.parametrize("malformed", [None, 5, "USD:5", [], ["USD:5"], {"": 5}, {"C" * 33: 5}, {"EUR": {}}])
def test_what_is_malformed_is_as_if_it_had_not_come(malformed: Any) -> None:
    budget = JobBudget(4)
    budget.accept({"cost.budget": ["USD:5", 7, None, "EUR", ":5", "GBP:-x"]}, malformed)
    budget.accept(malformed, malformed)
    budget.accept({"cost.budget": malformed if malformed != ["USD:5"] else 5}, None)
    budget.join(malformed, malformed)
    for unit in (malformed, "USD"):
        budget.receive(
            "metric", {"name": "cost.budget.remaining", "value": malformed if unit == "USD" else 1, "unit": unit}
        )
    budget.receive("metric", {"name": "cost.budget.remaining"})
    budget.receive("metric", {"name": malformed, "value": 1, "unit": "USD"})
    budget.receive("log", {"name": "cost.budget.remaining", "value": 1, "unit": "USD"})
    expected = {"USD": Decimal(5)}
    if malformed == "USD:5":
        # As a value it is one of the forms in use.
        assert budget.remaining.pop("USD:5") == 1
    assert (budget.limits, budget.remaining) == (expected, expected)


def test_the_currencies_are_bounded() -> None:
    budget = JobBudget(3)
    budget.join(None, {f"c{number}": number for number in range(100)})
    assert list(budget.remaining) == ["c0", "c1", "c2"]
    for number in range(100):
        budget.receive("metric", {"name": "cost.budget.remaining", "value": 0, "unit": f"c{number}"})
    assert budget.remaining == {"c0": 0, "c1": 0, "c2": 0}


async def remaining(connection: Connection, number: int, value: Any, unit: str = "USD", **fields: Any) -> None:
    body = {"name": "cost.budget.remaining", "value": value, "unit": unit}
    payload = {"kind": "metric", "body": body}
    await connection.say("job.event", payload, job_id="job_1", event_seq=number, **fields)


@pytest.mark.requirement("P9.7", "P10.2")
@pytest.mark.parametrize(
    "accepted",
    [
        {"lease": {"cost.budget": ["USD:5.00"]}, "budget": {"USD": 5.0}},
        {"lease": {"cost.budget": ["USD:5.00"]}, "budget": {"USD": "USD:5.00"}},
        # One implementation is sent no budget: the lease says the same.
        {"lease": {"cost.budget": ["USD:5.00"], "id": "lse_1"}},
        {"budget": {"USD": 5}},
    ],
)
async def test_the_latest_counters_of_a_submitted_job(
    accepted: dict[str, Any], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        call = Call(nursery, client.submit, "a", lease_request={"cost.budget": ["USD:5.00"]})
        submit = await first.expect("job.submit")
        payload = {"job_id": "job_1", "agent": "a@1", "request_id": submit["id"], **accepted}
        await first.say("job.accepted", payload, job_id="job_1")
        job = call.value
        assert job.budget == job.budget_limits == {"USD": Decimal(5)}
        before = job.budget
        await remaining(first, 1, 0.1)
        # Nobody has read the event yet.
        assert job.budget == before == {"USD": Decimal("0.1")}
        await remaining(first, 2, "USD:-0.25")
        await remaining(first, 3, "much")
        await remaining(first, 4, 7, "EUR")
        assert job.budget == {"USD": Decimal("-0.25"), "EUR": 7}
        assert job.budget_limits == {"USD": Decimal(5)}
        with pytest.raises(TypeError):
            job.budget["USD"] = Decimal(100)
        await first.result(5)
        kinds = [event.kind async for event in job.events() if isinstance(event, arcp_trio.Event)]
        assert kinds == ["metric"] * 4
        assert job.budget["USD"] == Decimal("-0.25")


@pytest.mark.requirement("P7.17", "P7.18", "P9.7", "Q16")
async def test_a_replay_does_not_turn_the_counters_back(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        call = Call(nursery, client.subscribe, "job_1", history=True)
        request = await first.expect("job.subscribe")
        subscribed = {
            "job_id": "job_1",
            "request_id": request["id"],
            "current_status": "running",
            "agent": "a@1",
            "lease": {"cost.budget": ["USD:5.00"]},
            "budget": {"USD": 0.25},
            "subscribed_from": 2,
        }
        await first.say("job.subscribed", subscribed, job_id="job_1")
        job = call.value
        assert (job.budget, job.budget_limits) == ({"USD": Decimal("0.25")}, {"USD": Decimal(5)})
        for number, (value, expected) in enumerate([(3, "0.25"), (0.25, "0.25"), (0.125, "0.125")], start=1):
            await remaining(first, number, value, extensions={"x-vendor.arcp-trio.job_seq": number})
            assert job.budget == {"USD": Decimal(expected)}
        # Submitted as well: what it began with is not what is left of it.
        again = Call(nursery, client.submit, "a", idempotency_key="k")
        submit = await first.expect("job.submit")
        accepted = {"job_id": "job_1", "agent": "a@1", "request_id": submit["id"], "budget": {"USD": 5}}
        await first.say("job.accepted", accepted, job_id="job_1")
        assert again.value is job
        assert job.budget == {"USD": Decimal("0.125")}


async def test_a_job_without_a_budget(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        call = Call(nursery, client.submit, "a")
        await first.accept(await first.expect("job.submit"))
        assert call.value.budget == call.value.budget_limits == {}
