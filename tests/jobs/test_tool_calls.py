"""``job.tool_call``: one result for each call, whatever its body does and wherever it is cancelled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import trio
from jobs.guarded_runs import EVERYTHING, SlowThrottle, run, steps

import arcp_trio
from arcp_trio.wire.timestamps import WallClock, format_timestamp

if TYPE_CHECKING:
    from helpers import Frame

NOW = 1_800_000_000.0


@pytest.mark.requirement("P9.4", "P8.1", "G01")
async def test_a_call_of_a_tool_is_told_with_its_result() -> None:
    async def agent(job: arcp_trio.JobContext) -> None:
        async with job.tool_call("search", {"q": [1]}) as call:
            assert call.result is None
            call.result = {"hits": 0}
            assert call.result == {"hits": 0}
        async with job.tool_call("search", call_id="c2"):
            pass
        assert "search" in repr(call)

    ended = await run(agent)
    (_, first), (_, second), third, fourth = ended.events
    assert first == {"tool": "search", "args": {"q": [1]}, "call_id": first["call_id"]}
    assert re.fullmatch("call_[0-9A-Z]{26}", first["call_id"])
    assert second == {"call_id": first["call_id"], "result": {"hits": 0}}
    assert third == ("tool_call", {"tool": "search", "args": {}, "call_id": "c2"})
    assert fourth == ("tool_result", {"call_id": "c2", "result": None})


@pytest.mark.requirement("P9.4")
async def test_calls_at_once_are_told_apart() -> None:
    async def agent(job: arcp_trio.JobContext) -> None:
        async def search(number: int) -> None:
            async with job.tool_call("search", number) as call:
                for _ in range(10 - number):
                    await trio.lowlevel.checkpoint()
                call.result = number

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(search, number)

    ended = await run(agent)
    args = {call["call_id"]: call["args"] for call in ended.calls}
    assert len(args) == 10
    assert {result["call_id"]: result["result"] for result in ended.results} == args
    assert [result["result"] for result in ended.results] != [call["args"] for call in ended.calls]


@pytest.mark.requirement("P8.1", "P4.4")
@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        ({1, 2}, arcp_trio.InvalidRequestError, "set"),
        (float("nan"), arcp_trio.InvalidRequestError, "NaN"),
        ({1: 2}, arcp_trio.InvalidRequestError, "str"),
        ("\ud800", arcp_trio.InvalidRequestError, "surrogates"),
        ("x" * 1_000_000, arcp_trio.MessageTooLargeError, "1000000"),
    ],
)
async def test_a_result_that_cannot_be_sent(value: Any, code: type[arcp_trio.ARCPError], message: str) -> None:
    """The tool has run, so its call is told, as failed; and the agent hears why."""

    async def agent(job: arcp_trio.JobContext) -> str:
        with pytest.raises(code, match=f"result of tool 'search' cannot be sent.*{message}"):
            async with job.tool_call("search", call_id="c") as call:
                call.result = value
        return "it went on"

    ended = await run(agent)
    assert [kind for kind, _ in ended.events] == ["tool_call", "tool_result"]
    (error,) = ended.errors
    assert (error["code"], error["retryable"]) == ("INVALID_REQUEST", False)
    assert message in error["message"]
    assert ended.terminal["result"] == "it went on"


@pytest.mark.requirement("P8.1", "P4.4")
@pytest.mark.parametrize(
    "call",
    [
        lambda job: job.tool_call("search", {1, 2}),
        lambda job: job.tool_call("search", float("nan")),
        lambda job: job.tool_call("search", "x" * 1_000_000),
        lambda job: job.tool_call("search", call_id=""),
        lambda job: job.tool_call("search", call_id="c" * 257),
        lambda job: job.tool_call("search", call_id=5),
        lambda job: job.tool_call(None),
    ],
)
async def test_a_bad_call_is_no_call(call: Callable[[arcp_trio.JobContext], Any]) -> None:
    async def agent(job: arcp_trio.JobContext) -> None:
        with pytest.raises(arcp_trio.InvalidRequestError):
            async with call(job):
                raise AssertionError("the body ran")

    ended = await run(agent)
    assert ended.events == []


async def test_a_call_is_made_once_and_its_result_set_inside() -> None:
    async def agent(job: arcp_trio.JobContext) -> None:
        call = job.tool_call("search")
        with pytest.raises(arcp_trio.InvalidRequestError, match="in the body"):
            call.result = 1
        async with call:
            pass
        with pytest.raises(arcp_trio.InvalidRequestError, match="in the body"):
            call.result = 2
        with pytest.raises(arcp_trio.InvalidRequestError, match="once"):
            async with call:
                raise AssertionError("the body ran")

    ended = await run(agent)
    assert [kind for kind, _ in ended.events] == ["tool_call", "tool_result"]


class UpstreamError(Exception):
    """What an HTTP client raises for a status."""

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code


FAILURES: list[tuple[BaseException, str, bool, str]] = [
    (arcp_trio.JobTimeoutError("slow"), "TIMEOUT", True, "slow"),
    (arcp_trio.PermissionDeniedError("no", details={"a": 1}), "PERMISSION_DENIED", False, "no"),
    (arcp_trio.ARCPError("mine", code="X_MINE", retryable=True), "X_MINE", True, "mine"),
    (arcp_trio.BudgetExhaustedError("spent", retryable=True), "BUDGET_EXHAUSTED", False, "spent"),
    (arcp_trio.InternalError("broken", retryable=False), "INTERNAL_ERROR", True, "broken"),
    (ExceptionGroup("g", [arcp_trio.JobTimeoutError("slow")]), "TIMEOUT", True, "slow"),
    (arcp_trio.ARCPError("odd", code="\ud800"), "'\\ud800'", False, "odd"),
    (arcp_trio.ARCPError("", code=""), "INTERNAL_ERROR", True, "INTERNAL_ERROR"),
    (ValueError("a secret at /home/user"), "INTERNAL_ERROR", True, "the tool failed; .* under reference [0-9A-Z]{8}"),
    (SystemExit("a secret"), "INTERNAL_ERROR", True, "the tool failed; .*"),
    (
        ExceptionGroup("a secret", [ValueError("a secret"), arcp_trio.JobTimeoutError("t")]),
        "INTERNAL_ERROR",
        True,
        "the tool failed; .*",
    ),
    (UpstreamError("a secret: Payment Required", 402), "BUDGET_EXHAUSTED", False, "an upstream service .*"),
    (UpstreamError("your budget is spent", 429), "BUDGET_EXHAUSTED", False, "an upstream service .*"),
    (ExceptionGroup("g", [UpstreamError("x", 402)]), "BUDGET_EXHAUSTED", False, "an upstream service .*"),
    (UpstreamError("a secret: slow down", 429), "INTERNAL_ERROR", True, "the tool failed; .*"),
]


@pytest.mark.requirement("P9.4", "P9.9", "P12.1", "P7.9", "L24", "B16")
@pytest.mark.parametrize(("error", "code", "retryable", "message"), FAILURES)
async def test_a_tool_that_fails(
    error: BaseException, code: str, retryable: bool, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client hears of it once for the call, and once for the job; the agent gets what was raised, as it was."""
    raised: list[BaseException] = []

    async def agent(job: arcp_trio.JobContext) -> None:
        try:
            async with job.tool_call("search", call_id="c") as call:
                call.result = "not returned"
                raise error
        except BaseException as exc:
            raised.append(exc)
            raise

    ended = await run(agent)
    assert raised == [error]
    (result,) = ended.results
    assert result == {
        "call_id": "c",
        "error": {"code": code, "message": result["error"]["message"], "retryable": retryable},
    }
    assert re.fullmatch(message, result["error"]["message"])
    assert "secret" not in str(ended.events) + str(ended.terminal)
    assert (ended.terminal["code"], ended.terminal["retryable"]) == (code, retryable)
    assert (ended.terminal["final_status"]) == "error"
    if "under reference" in result["error"]["message"]:
        reference = result["error"]["message"].rpartition(" ")[2]
        (record,) = [entry for entry in caplog.records if "tool call c" in entry.getMessage()]
        assert reference in record.getMessage()
        assert record.exc_info is not None
        assert repr(record.exc_info[1]) == repr(error)


@pytest.mark.requirement("P9.9", "B16")
async def test_a_runtimes_own_translators_come_first() -> None:
    asked: list[type[BaseException]] = []

    def no_opinion(error: BaseException) -> arcp_trio.ARCPError | None:
        asked.append(type(error))
        return None

    def mine(error: BaseException) -> arcp_trio.ARCPError | None:
        return arcp_trio.BudgetExhaustedError("our ledger says so") if isinstance(error, KeyError) else None

    async def in_a_tool(job: arcp_trio.JobContext) -> None:
        async with job.tool_call("search"):
            raise KeyError("no-money")

    async def in_the_agent(job: arcp_trio.JobContext) -> None:
        raise KeyError("no-money")

    ended = await run(in_a_tool, translators=[no_opinion, mine])
    assert [error["message"] for error in ended.errors] == ["our ledger says so"]
    assert (ended.terminal["code"], ended.terminal["retryable"]) == ("BUDGET_EXHAUSTED", False)
    ended = await run(in_the_agent, translators=iter([mine]))
    assert (ended.terminal["code"], ended.terminal["message"]) == ("BUDGET_EXHAUSTED", "our ledger says so")
    assert asked == [KeyError, KeyError]
    # A refusal and an agent's own error are ours already.
    ended = await run(lambda job: job.use_model("m"), {}, translators=[no_opinion])
    assert len(asked) == 2


@pytest.mark.requirement("P9.9")
async def test_a_translator_that_fails_hides_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(error: BaseException) -> arcp_trio.ARCPError | None:
        raise RuntimeError("a bug")

    async def agent(job: arcp_trio.JobContext) -> None:
        async with job.tool_call("search"):
            raise UpstreamError("Payment Required", 402)

    ended = await run(agent, translators=[broken])
    assert [error["code"] for error in ended.errors] == ["BUDGET_EXHAUSTED"]
    assert any("broken" in record.getMessage() for record in caplog.records)


@pytest.mark.requirement("P9.4", "P9.7")
async def test_what_changes_while_a_call_is_announced_counts() -> None:
    """The announcement may wait for a slow client; the body begins only if the call is still allowed then."""

    async def agent(job: arcp_trio.JobContext) -> str:
        actor = job._actor

        class Throttle:
            def lags(self) -> bool:
                return True

            async def wait_for_room(self) -> None:
                await trio.lowlevel.checkpoint()
                actor.authority.budget.charge("USD", Decimal(5))

        actor.throttle = Throttle()
        with pytest.raises(arcp_trio.BudgetExhaustedError):
            async with job.tool_call("search"):
                raise AssertionError("the body ran")
        return "it went on"

    ended = await run(agent, {**EVERYTHING, "cost.budget": ["USD:1"]})
    assert ended.terminal["result"] == "it went on"
    assert len(ended.calls) == 1
    assert [error["code"] for error in ended.errors] == ["BUDGET_EXHAUSTED"]


@pytest.mark.requirement("P9.4", "P9.6", "G15")
async def test_a_refusal_is_told_before_the_expiry_stops_its_agent() -> None:
    step = 0.0

    async def agent(job: arcp_trio.JobContext) -> None:
        nonlocal step
        step = 7200.0
        job._actor.throttle = SlowThrottle()
        async with job.tool_call("search", call_id="c"):
            raise AssertionError("the body ran")

    lease = {"lease_constraints": {"expires_at": format_timestamp(NOW + 3600)}}
    ended = await run(agent, constraints=lease, clock=WallClock(lambda: NOW + step))
    assert ended.calls == []
    assert [(result["call_id"], result["error"]["code"]) for result in ended.results] == [("c", "LEASE_EXPIRED")]
    assert ended.terminal["code"] == "LEASE_EXPIRED"


# --- cancelled anywhere -------------------------------------------------------------------------------


class AtStep(trio.abc.Instrument):
    """Does something before the n-th step of a task."""

    def __init__(self, task: trio.lowlevel.Task, step: int, act: Callable[[], None]) -> None:
        self.task, self.step, self.act = task, step, act
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            if self.steps == self.step:
                self.act()
            self.steps += 1


class Request:
    """A cancel of the owner."""

    reason = None

    def acknowledge(self) -> None:
        pass

    def refuse(self, job_status: str) -> None:
        raise AssertionError("the cancel was refused")


async def returns(call: Any) -> None:
    await steps()
    call.result = 1


async def returns_a_set(call: Any) -> None:
    await steps()
    call.result = {1}


async def raises(call: Any) -> None:
    await steps()
    raise arcp_trio.JobTimeoutError("slow")


async def raises_another(call: Any) -> None:
    await steps()
    raise ValueError("v")


async def has_children(call: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(steps)
        nursery.start_soon(steps)
    call.result = 1


async def has_children_that_raise(call: Any) -> None:
    async def child() -> None:
        await steps()
        raise arcp_trio.JobTimeoutError("slow")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        nursery.start_soon(trio.sleep_forever)


async def cleans_up(call: Any) -> None:
    try:
        await steps()
    finally:
        with trio.CancelScope(shield=True):
            await steps()
    call.result = 1


BODIES: dict[str, tuple[Callable[[Any], Awaitable[None]], str]] = {
    "returns": (returns, "result"),
    "returns a set": (returns_a_set, "INVALID_REQUEST"),
    "raises": (raises, "TIMEOUT"),
    "raises another": (raises_another, "INTERNAL_ERROR"),
    "has children": (has_children, "result"),
    "has children that raise": (has_children_that_raise, "TIMEOUT"),
    "cleans up": (cleans_up, "result"),
}


@pytest.mark.requirement("P9.4", "P7.13", "S20")
@pytest.mark.parametrize("how", ["its own scope", "the job"])
@pytest.mark.parametrize("denied", [False, True])
@pytest.mark.parametrize("body", BODIES)
async def test_each_call_has_one_result_wherever_it_is_cancelled(body: str, denied: bool, how: str) -> None:
    function, expected = BODIES[body]
    seen: Counter[str] = Counter()
    step = 0
    while True:
        reached = await play_cancelled_call(function, step, how, {} if denied else EVERYTHING, seen)
        if not reached:
            break
        step += 1
    assert step > 6
    # With nothing cancelled, the outcome is the body's own; and on the way everything else was seen.
    if denied:
        assert seen.keys() == {"nothing", "PERMISSION_DENIED"}
    else:
        assert seen.keys() == {"nothing", expected, "CANCELLED"}


async def play_cancelled_call(
    function: Callable[[Any], Awaitable[None]], step: int, how: str, lease: Frame, seen: Counter[str]
) -> bool:
    """Make one call, cancelled before the given step; say whether it came to that step."""
    instruments: list[AtStep] = []

    async def agent(job: arcp_trio.JobContext) -> None:
        job._actor.throttle = SlowThrottle()
        with trio.CancelScope() as scope:

            def act() -> None:
                if how == "the job":
                    job._actor.request_cancel(Request())
                else:
                    scope.cancel()

            instrument = AtStep(trio.lowlevel.current_task(), step, act)
            instruments.append(instrument)
            trio.lowlevel.add_instrument(instrument)
            try:
                await steps()
                async with job.tool_call("search", call_id="c") as call:
                    await function(call)
            finally:
                trio.lowlevel.remove_instrument(instrument)

    ended = await run(agent, lease, limits=arcp_trio.Limits(slice_seconds=0.0))
    assert len(ended.calls) <= 1
    if ended.calls:
        # Its result follows, and nothing after it.
        assert [kind for kind, _ in ended.events] == ["tool_call", "tool_result"]
    assert len(ended.results) <= 1
    outcome = "nothing"
    for result in ended.results:
        assert result["call_id"] == "c"
        outcome = result["error"]["code"] if "error" in result else "result"
    seen[outcome] += 1
    return instruments[0].steps > step
