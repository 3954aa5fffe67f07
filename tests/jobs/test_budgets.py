"""A job's budget at work: what is charged, held, refused and said, event by event (P9.7, P9.4)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, RawClient, connect_raw, exchanged, make_hello, open_raw, terminals

import arcp_trio
from arcp_trio.wire.errors import BudgetExhaustedError

Body = Callable[[arcp_trio.JobContext], Awaitable[Any]]
REMAINING = "cost.budget.remaining"


def agents_of(*bodies: Body) -> arcp_trio.Agents:
    """Return agents that are named ``agent``, ``agent2`` and so on."""
    agents = arcp_trio.Agents()
    for number, body in enumerate(bodies, start=1):

        async def agent(job: arcp_trio.JobContext, value: Any, body: Body = body) -> Any:
            return await body(job)

        agents.register("agent" if number == 1 else f"agent{number}")(agent)
    return agents


def leased(*amounts: str) -> Frame:
    grants: Frame = {"tool.call": ["*"]}
    return {"lease_request": grants | {"cost.budget": list(amounts)} if amounts else grants}


async def run(body: Body, *amounts: str, hello: Frame | None = None) -> list[Frame]:
    """Run one agent with a budget; return its job's numbered frames."""
    async with arcp_trio.open_runtime(agents_of(body)) as runtime, open_raw(runtime, hello=hello) as client:
        job_id = await client.submit("agent", **leased(*amounts))
        await client.receive_until(lambda frame: frame["type"] in ("job.result", "job.error"))
        assert runtime.statistics().bugs == 0
    return [frame for frame in client.received if "event_seq" in frame and frame["job_id"] == job_id]


def said(frames: list[Frame]) -> list[Any]:
    """Return what the events say, in short: metrics with their values, refusals with their codes."""
    short: list[Any] = []
    for frame in frames:
        if frame["type"] != "job.event":
            short.append(frame["payload"].get("code") or frame["payload"].get("result"))
            continue
        body = frame["payload"]["body"]
        match frame["payload"]["kind"]:
            case "metric":
                short.append((body["name"], body["value"], body.get("unit")))
            case "tool_result":
                short.append(body["error"]["code"])
            case _:
                short.append(body["message"])
    return short


def left(value: float, unit: str = "USD") -> tuple[str, float, str]:
    return (REMAINING, value, unit)


# --- reported costs -------------------------------------------------------------------------------


@pytest.mark.requirement("P9.4", "P9.7", "P8.6", "B01", "B08")
async def test_the_metric_that_exhausts_a_budget_is_delivered_and_the_next_operation_is_refused() -> None:
    async def body(job: arcp_trio.JobContext) -> str:
        assert await job.authorize("tool.call", "search") == "search"
        await job.metric("cost.inference", 1.00, "USD")
        with pytest.raises(BudgetExhaustedError, match="USD"):
            await job.authorize("tool.call", "search")
        # The agent may go on, with what costs nothing.
        await job.log("info", "summing up")
        return "done"

    frames = await run(body, "USD:1.00")
    assert said(frames) == [
        ("cost.inference", 1.0, "USD"),
        left(0),
        "BUDGET_EXHAUSTED",
        "summing up",
        "done",
    ]
    error = frames[2]["payload"]["body"]["error"]
    assert error["retryable"] is False


@pytest.mark.requirement("P9.7", "B08", "E04")
async def test_uncaught_it_is_the_jobs_error() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        await job.metric("cost.inference", 2, "USD")
        await job.authorize("tool.call", "search")

    frames = await run(body, "USD:1.00")
    assert said(frames) == [("cost.inference", 2, "USD"), left(-1), "BUDGET_EXHAUSTED", "BUDGET_EXHAUSTED"]
    assert frames[-1]["payload"]["retryable"] is False
    assert frames[-1]["payload"]["final_status"] == "error"


@pytest.mark.requirement("P9.7", "B04")
async def test_the_values_on_the_wire_are_exact() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        for _ in range(10):
            await job.metric("cost.call", 0.1, "USD")
        with pytest.raises(BudgetExhaustedError):
            await job.authorize("tool.call", "search")
        await job.metric("cost.call", Decimal("0.0234"), "USD")
        await job.metric("cost.call", Decimal("1e-40"), "USD", {"model": "m", "tokens": 2**70})

    before = len(exchanged)
    await run(body, "USD:1.00")
    frames = [json.loads(text, parse_float=str, parse_int=str) for _, text in exchanged[before:]]
    bodies = [frame["payload"]["body"] for frame in frames if frame["type"] == "job.event"]
    values = [body["value"] for body in bodies if body.get("name") == REMAINING]
    assert values == [
        *("0.90", "0.80", "0.70", "0.60", "0.50", "0.40", "0.30", "0.20", "0.10", "0"),
        "-0.0234",
        "-0.0234" + "0" * 35 + "1",
    ]
    assert [body["value"] for body in bodies if body.get("name") == "cost.call"][-2:] == ["0.0234", "1E-40"]


@pytest.mark.requirement("P9.7", "P8.1", "B02")
@pytest.mark.parametrize("value", [-5, -0.0, float("nan"), float("inf"), True, "1", None, Decimal(-1), 1e15, 1e-60])
async def test_a_cost_that_is_none_raises_and_changes_nothing(value: Any) -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        async with job.reserve({"USD": "0.25"}) as held:
            for report in (job.metric, held.charge):
                with pytest.raises(arcp_trio.InvalidRequestError, match=r"\$\.body\.value"):
                    await report("cost.x", value, "USD")
        assert job.budget == {"USD": Decimal(1)}

    assert said(await run(body, "USD:1.00")) == [None]

    # Without a budget too: what an agent may say does not depend on who pays.
    async def unbudgeted(job: arcp_trio.JobContext) -> None:
        with pytest.raises(arcp_trio.InvalidRequestError, match=r"\$\.body\.value"):
            await job.metric("cost.x", value, "USD")

    assert said(await run(unbudgeted)) == [None]


@pytest.mark.requirement("P9.7", "B05", "B06")
async def test_an_overrun_is_charged_and_a_cent_is_enough() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        with pytest.raises(BudgetExhaustedError):
            async with job.reserve({"USD": "1.50"}):
                pytest.fail("it is not there")
        assert job.budget == {"USD": Decimal(1)}
        await job.metric("cost.x", 0.99, "USD")
        await job.authorize("tool.call", "last")
        await job.metric("cost.x", 0.51, "USD")
        assert job.budget == {"USD": Decimal("-0.50")}
        with pytest.raises(BudgetExhaustedError):
            await job.authorize("tool.call", "another")

    assert said(await run(body, "USD:1.00")) == [
        "BUDGET_EXHAUSTED",
        ("cost.x", 0.99, "USD"),
        left(0.01),
        ("cost.x", 0.51, "USD"),
        left(-0.5),
        "BUDGET_EXHAUSTED",
        None,
    ]


@pytest.mark.requirement("P9.7", "P8.6", "B09")
async def test_a_gauge_is_never_charged() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        for value in (0.5, None):
            with pytest.raises(arcp_trio.InvalidRequestError):
                await job.metric(REMAINING, value, "USD")  # type: ignore[arg-type]
        with pytest.raises(arcp_trio.InvalidRequestError):
            await job.metric("cost.budget.limit", None, "USD")  # type: ignore[arg-type]
        await job.metric("cost.budget.limit", 0.5, "USD")
        await job.metric("cost.budget", 0.5, "USD")
        await job.metric("costly", 0.5, "USD")
        assert job.budget == {"USD": Decimal(1)}

    assert said(await run(body, "USD:1.00")) == [
        ("cost.budget.limit", 0.5, "USD"),
        ("cost.budget", 0.5, "USD"),
        ("costly", 0.5, "USD"),
        None,
    ]


@pytest.mark.requirement("P9.7", "B10")
async def test_a_currency_without_a_budget() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        await job.metric("cost.x", 100, "EUR")
        await job.metric("cost.x", 100, "usd")
        await job.metric("cost.x", 100)
        await job.authorize("tool.call", "search")
        with pytest.raises(BudgetExhaustedError, match="EUR"):
            async with job.reserve({"EUR": 1}):
                pytest.fail("nobody has granted it")

    emitted = [("cost.x", 100, "EUR"), ("cost.x", 100, "usd"), ("cost.x", 100, None)]
    assert said(await run(body, "USD:1.00")) == [*emitted, "BUDGET_EXHAUSTED", None]


@pytest.mark.requirement("P9.7", "B10")
async def test_without_a_budget_there_is_nothing_to_refuse() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        assert job.budget == {}
        async with job.reserve({"USD": 1_000_000}) as held:
            assert held.left == {}
            await held.charge("cost.x", 5, "USD")
            await job.authorize("tool.call", "search")

    assert said(await run(body)) == [("cost.x", 5, "USD"), None]


@pytest.mark.requirement("P9.7", "P9.4", "B07")
async def test_a_budget_of_zero() -> None:
    """The job starts: what it may do that costs nothing is not ours to guess. Its first operation is refused."""

    async def body(job: arcp_trio.JobContext) -> None:
        assert job.budget == {"USD": 0, "EUR": 5}
        with pytest.raises(BudgetExhaustedError):
            await job.authorize("tool.call", "search")
        await job.metric("cost.x", 0, "USD")

    assert said(await run(body, "USD:0.00", "EUR:5")) == ["BUDGET_EXHAUSTED", ("cost.x", 0, "USD"), None]


@pytest.mark.requirement("P9.7")
async def test_a_counter_that_has_not_changed_is_not_told() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        await job.metric("cost.x", 0, "USD")
        await job.metric("cost.x", 1, "EUR")
        await job.metric("tokens", 5, "USD")
        async with job.reserve({"USD": 1, "EUR": 1}):
            pass

    assert said(await run(body, "USD:1.00", "EUR:2")) == [
        ("cost.x", 0, "USD"),
        ("cost.x", 1, "EUR"),
        left(1, "EUR"),
        ("tokens", 5, "USD"),
        None,
    ]


@pytest.mark.requirement("P9.7")
async def test_an_amount_and_its_counter_are_one_step() -> None:
    """What other tasks of the agent say, and a cancellation, come before both or after both."""

    async def body(job: arcp_trio.JobContext) -> None:
        async def spend() -> None:
            for _ in range(20):
                await job.metric("cost.x", 0.01, "USD")
                await trio.lowlevel.checkpoint()

        async def talk() -> None:
            for _ in range(40):
                await job.log("info", "talk")
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(spend)
            nursery.start_soon(talk)
        with trio.CancelScope() as scope:
            scope.cancel()
            await job.metric("cost.x", 0.01, "USD")
        assert job.budget == {"USD": Decimal("0.20")}

    whole = said(await run(body, "USD:1.00"))
    costs = [index for index, each in enumerate(whole) if each == ("cost.x", 0.01, "USD")]
    assert len(costs) == 80
    assert [whole[index + 1] for index in costs] == [left(round(1 - number / 100, 2)) for number in range(1, 81)]


# --- reservations ---------------------------------------------------------------------------------


@pytest.mark.requirement("P9.7", "B14")
async def test_a_hundred_tasks_and_money_for_fifty() -> None:
    won = 0

    async def body(job: arcp_trio.JobContext) -> None:
        async def spend() -> None:
            nonlocal won
            try:
                async with job.reserve({"USD": "0.01"}) as held:
                    await trio.lowlevel.checkpoint()
                    await job.authorize("tool.call", "search")
                    await held.charge("cost.x", 0.01, "USD")
                    won += 1
                    await trio.sleep_forever()
            except BudgetExhaustedError:
                pass

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(spend)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert job.budget == {"USD": 0}

    whole = said(await run(body, "USD:0.50"))
    assert won == 50
    assert whole.count("BUDGET_EXHAUSTED") == 50
    counters = [value for name, value, _ in (each for each in whole if isinstance(each, tuple)) if name == REMAINING]
    assert counters == [round(0.5 - number / 100, 2) for number in range(1, 51)]


@pytest.mark.requirement("P9.7", "P9.4")
async def test_a_reservation_is_refused_on_the_wire_and_in_the_agent() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        async with job.reserve({"USD": 0.75, "EUR": Decimal(1)}) as held:
            assert held.left == {"USD": Decimal("0.75"), "EUR": 1}
            assert job.budget == {"USD": 1, "EUR": 2}
            for amounts in ({"USD": "0.26"}, {"EUR": 1, "USD": 1}, {"EUR": "1.01"}):
                with pytest.raises(BudgetExhaustedError):
                    async with job.reserve(amounts):
                        pytest.fail("it is held already")
            # None of it was held by the halves of what was refused.
            async with job.reserve({"EUR": 1, "USD": 0.25}):
                pass
            await held.charge("cost.x", 0.5, "USD", {"model": "m"})
            assert held.left == {"USD": Decimal("0.25"), "EUR": 1}
            await held.charge("cost.x", 0.375, "USD")
            assert held.left == {"USD": 0, "EUR": 1}
        assert held.left == {}
        async with job.reserve({"USD": 0.125, "EUR": 2}):
            pass

    frames = await run(body, "USD:1", "EUR:2")
    refused = ["BUDGET_EXHAUSTED"] * 3
    assert said(frames) == [
        *refused,
        ("cost.x", 0.5, "USD"),
        left(0.5),
        ("cost.x", 0.375, "USD"),
        left(0.125),
        None,
    ]
    call_ids = {frame["payload"]["body"]["call_id"] for frame in frames[:3]}
    assert len(call_ids) == 3
    assert frames[3]["payload"]["body"]["dims"] == {"model": "m"}


@pytest.mark.requirement("P9.7")
async def test_what_is_held_is_given_back_however_the_block_is_left() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        with pytest.raises(KeyError):
            async with job.reserve({"USD": 1}):
                raise KeyError
        with trio.move_on_after(5) as scope:
            async with job.reserve({"USD": 1}):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            async with job.reserve({"USD": 1}):
                pytest.fail("it was cancelled before")
        # An exception is not lost to a cancellation that has come meanwhile.
        with trio.CancelScope() as scope:
            with pytest.raises(KeyError):
                async with job.reserve({"USD": 1}):
                    scope.cancel()
                    raise KeyError
        async with job.reserve({"USD": 1}) as held:
            pass
        with pytest.raises(arcp_trio.InvalidRequestError, match="within its block"):
            await job.reserve({"USD": 1}).charge("cost.x", 1, "USD")
        with pytest.raises(arcp_trio.InvalidRequestError, match="entered once"):
            async with held:
                pytest.fail("it was entered before")
        with pytest.raises(arcp_trio.InvalidRequestError, match="a cost"):
            async with job.reserve({"USD": 1}) as held:
                await held.charge("tokens", 1, "USD")
        for wrong in ({"USD": -1}, {"USD": float("nan")}, {"USD": "1,0"}, {"USD": True}):
            with pytest.raises(arcp_trio.InvalidRequestError, match="USD: expected an amount"):
                async with job.reserve(wrong):
                    pytest.fail("it is no amount")

    assert said(await run(body, "USD:1")) == [None]


@pytest.mark.requirement("P7.11", "P9.7")
async def test_after_the_end_nothing_is_held_and_nothing_charged(autojump_clock: trio.testing.MockClock) -> None:
    gate = trio.Event()
    raised: list[Any] = []

    async def body(job: arcp_trio.JobContext) -> None:
        async def late(call: Callable[[], Awaitable[Any]]) -> None:
            try:
                await call()
            except arcp_trio.JobEndedError as exc:
                raised.append(exc)

        async with job.reserve({"USD": 1}) as held:
            with trio.CancelScope(shield=True):
                await gate.wait()
                await late(lambda: job.metric("cost.x", 1, "USD"))
                await late(lambda: held.charge("cost.x", 1, "USD"))
                await late(job.reserve({"USD": 1}).__aenter__)
                raised.append(held.left)
                raised.append(job.budget)

    async with arcp_trio.open_runtime(agents_of(body)) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("agent", **leased("USD:1"))
        await trio.testing.wait_all_tasks_blocked()
        await client.request("job.cancel", {"job_id": job_id})
        await client.receive_until("job.error")
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert [type(each) for each in raised[:3]] == [arcp_trio.JobEndedError] * 3
        assert raised[3:] == [{}, {"USD": 1}]
        assert [frame["type"] for frame in await client.settle()] == []


# --- what others see ------------------------------------------------------------------------------


async def spend_half(job: arcp_trio.JobContext) -> None:
    await job.metric("cost.x", 0.5, "USD")
    async with job.reserve({"USD": "0.25"}):
        await trio.sleep_forever()


async def shown(client: RawClient, job_id: str) -> tuple[Any, Any]:
    """Return a job's budget as a subscription and a listing show it."""
    await client.request("job.subscribe", {"job_id": job_id})
    subscribed = await client.receive_until("job.subscribed")
    await client.request("session.list_jobs", {})
    jobs = (await client.receive_until("session.jobs"))["payload"]["jobs"]
    (entry,) = [entry for entry in jobs if entry["job_id"] == job_id]
    return subscribed["payload"].get("budget"), entry.get("budget")


@pytest.mark.requirement("P9.7", "P7.17", "P6.20", "Q16", "X1", "D29")
async def test_where_a_budget_is_shown(autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(agents_of(spend_half)) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("agent", **leased("USD:5.00", "EUR:0.10"))
        (accepted,) = [frame for frame in client.received if frame["type"] == "job.accepted"]
        assert accepted["payload"]["budget"] == {"USD": 5, "EUR": 0.1}
        # Whole numbers are integers (one peer refuses 5.0).
        assert type(accepted["payload"]["budget"]["USD"]) is int
        await client.settle()
        async with open_raw(runtime) as other:
            assert await shown(other, job_id) == ({"USD": 4.5, "EUR": 0.1},) * 2
            await client.request("job.cancel", {"job_id": job_id})
            await other.receive_until("job.error")
        async with open_raw(runtime) as late:
            assert await shown(late, job_id) == ({"USD": 4.5, "EUR": 0.1},) * 2


@pytest.mark.requirement("P9.7", "P6.20")
async def test_a_job_without_a_budget_shows_none(autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(agents_of(spend_half)) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("agent", **leased())
        assert "budget" not in client.received[-1]["payload"]
        assert await shown(client, job_id) == (None, None)


@pytest.mark.requirement("P6.4", "P9.7")
async def test_who_has_not_negotiated_it_sees_none(autojump_clock: trio.testing.MockClock) -> None:
    without = make_hello(features=["subscribe", "list_jobs"])
    async with arcp_trio.open_runtime(agents_of(spend_half)) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("agent", **leased("USD:5.00"))
        async with open_raw(runtime, hello=without) as other:
            await other.request("job.subscribe", {"job_id": job_id, "history": True})
            await other.receive_until("job.subscribed")
            events = [frame["payload"] for frame in await other.settle() if frame["type"] == "job.event"]
            assert [event["body"]["name"] for event in events] == ["cost.x"]
            assert await shown(other, job_id) == (None, None)
            await other.request("job.submit", {"agent": "agent", "input": {}, **leased("USD:1")})
            refused = await other.receive_until("session.error")
            assert refused["payload"]["code"] == "INVALID_REQUEST"
            assert "'cost.budget'" in refused["payload"]["message"]


@pytest.mark.requirement("P5.3a", "X1", "D29")
async def test_a_client_that_numbers_kill_gets_none(autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(agents_of(spend_half)) as runtime:
        async with open_raw(runtime, compat="python") as client:
            job_id = await client.submit("agent", **leased("USD:5.00"))
            (accepted,) = [frame for frame in client.received if frame["type"] == "job.accepted"]
            assert "budget" not in accepted["payload"]
            # It is told of each change all the same.
            frames = await client.settle()
            assert said([frame for frame in frames if "event_seq" in frame]) == [("cost.x", 0.5, "USD"), left(4.5)]
            assert await shown(client, job_id) == (None, None)


# --- what a client can do to one ------------------------------------------------------------------


@pytest.mark.requirement("P9.7", "P7.1", "B12", "G22")
@pytest.mark.parametrize(
    "amounts",
    [["USD"], ["USD:"], ["USD:-1"], ["USD:1,0"], ["USD:NaN"], [":5"], ["USD:1", "USD:1"], [""], [], ["USD:1", "*"]],
)
async def test_a_malformed_budget_is_no_job(amounts: list[str]) -> None:
    async with arcp_trio.open_runtime(agents_of(spend_half)) as runtime, open_raw(runtime) as client:
        request = {"agent": "agent", "input": {}, "lease_request": {"cost.budget": amounts}}
        await client.request("job.submit", request)
        error = (await client.receive())["payload"]
        assert error["code"] == "INVALID_REQUEST"
        assert error["message"].startswith('$.payload.lease_request."cost.budget"')
        assert runtime.statistics().jobs_accepted == 0


@pytest.mark.requirement("P9.7", "P7.1", "B13", "G22")
async def test_the_most_that_a_budget_may_be(autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(agents_of(spend_half)) as runtime, open_raw(runtime) as client:

        async def refusal(**request: Any) -> str:
            await client.request("job.submit", {"agent": "agent", "input": {}, **request})
            error = (await client.receive())["payload"]
            assert error["code"] == "INVALID_REQUEST"
            return str(error["message"])

        most = {"lease_constraints": {"max_budget": ["USD:1"]}}
        assert "above max_budget, 1" in await refusal(**leased("USD:2"), **most)
        assert "max_budget" in await refusal(**leased("USD:1"), lease_constraints={"max_budget": 5})
        assert "cost.budget" in await refusal(lease_request={"cost.budget": []}, **most)
        assert runtime.statistics().jobs_accepted == 0
        # Who asks for none gets that much, and no more.
        for amounts in (("USD:1",), ()):
            await client.submit("agent", **leased(*amounts), **most)
            accepted = next(frame for frame in client.received[::-1] if frame["type"] == "job.accepted")["payload"]
            assert (accepted["lease"]["cost.budget"], accepted["budget"]) == (["USD:1"], {"USD": 1})
        without = make_hello(features=[])
        async with open_raw(runtime, hello=without) as other:
            await other.request("job.submit", {"agent": "agent", "input": {}, **most})
            assert "'cost.budget'" in (await other.receive())["payload"]["message"]


@pytest.mark.requirement("P9.7", "B15", "L17")
async def test_nobody_can_charge_another_ones_job(autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(agents_of(spend_half)) as runtime:
        async with open_raw(runtime) as client, open_raw(runtime, principal="mallory") as other:
            job_id = await client.submit("agent", **leased("USD:5.00"))
            await client.settle()
            body = {"name": "cost.x", "value": 4, "unit": "USD"}
            for sender in (other, client):
                for payload in (
                    {"kind": "metric", "ts": "2026-05-13T19:42:13.000Z", "body": body},
                    {"kind": "metric", "body": {**body, "job_id": job_id}},
                ):
                    await sender.request("job.event", payload, job_id=job_id)
                    refused = (await sender.receive())["payload"]
                    assert refused["code"] == "INVALID_REQUEST"
                    assert "not a request that a client makes" in refused["message"]
            assert await shown(client, job_id) == ({"USD": 4.5},) * 2
            assert terminals(client.received) == []


async def test_two_jobs_have_a_budget_each(autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(agents_of(spend_half)) as runtime:
        client = await connect_raw(runtime)
        first = await client.submit("agent", **leased("USD:5.00"))
        second = await client.submit("agent", **leased("USD:1.00"))
        await client.settle()
        assert await shown(client, first) == ({"USD": 4.5},) * 2
        assert await shown(client, second) == ({"USD": 0.5},) * 2
        await client.transport.abort()
