"""A delegation that is refused: said on the wire, raised in the agent, and nothing else is left of it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, open_raw
from jobs.parents import ANY, Family, accepted, end_of, numbers, of_kind, run_parent

import arcp_trio
from arcp_trio.wire.timestamps import WallClock, format_timestamp


async def refused(
    lease: Frame | None,
    error: type[arcp_trio.ARCPError],
    *arguments: Any,
    submit: Frame | None = None,
    options: Frame | None = None,
    **keywords: Any,
) -> tuple[Frame, arcp_trio.ARCPError]:
    """Delegate what has to be refused; return what was told, and what was raised. Nothing may be left of it."""
    raised: list[arcp_trio.ARCPError] = []

    async def body(job: arcp_trio.JobContext) -> str:
        before = dict(job._actor.authority.budget.remaining())
        with pytest.raises(error) as caught:
            await job.delegate(*arguments, **keywords)
        raised.append(caught.value)
        assert type(caught.value) is error
        assert len(job._actor.children) == 0
        assert job._actor.authority.budget.remaining() == before
        assert set(job._actor.authority.budget.held().values()) <= {0}
        return "it went on"

    frames, runtime, _ = await run_parent(body, lease, submit=submit, **(options or {}))
    assert frames[-1]["payload"].get("result") == "it went on", frames[-1]
    assert runtime.statistics().jobs_accepted == 1
    assert of_kind(frames, "delegate") == []
    assert len(accepted(frames)) == 1
    (told,) = of_kind(frames, "tool_result")
    (cause,) = raised
    assert told["call_id"].startswith("del_")
    assert told["error"] == {"code": cause.code, "message": cause.message, "retryable": cause.retryable}
    return told["error"], cause


@pytest.mark.requirement("P9.4", "P10.1")
@pytest.mark.parametrize(
    ("lease", "agent"),
    [
        ({}, "echo"),
        ({"tool.call": ["*"]}, "echo"),
        ({"agent.delegate": ["gate"]}, "echo"),
        ({"agent.delegate": ["echo@2.0.0"]}, "echo"),
        ({"agent.delegate": ["echo@2.0.0"]}, "echo@1.0.0"),
        # Who may not is not told whether there is such an agent.
        ({"agent.delegate": ["gate"]}, "nobody"),
    ],
)
async def test_what_the_lease_does_not_grant_is_refused(lease: Frame, agent: str) -> None:
    told, _ = await refused(lease, arcp_trio.PermissionDeniedError, agent)
    assert told["code"] == "PERMISSION_DENIED"


@pytest.mark.requirement("P9.2", "P10.1")
@pytest.mark.parametrize("pattern", ["echo", "e*", "*", "echo@1.0.0", "echo@*"])
@pytest.mark.parametrize("agent", ["echo", "echo@1.0.0"])
async def test_a_pattern_is_of_names_unless_it_has_a_version(pattern: str, agent: str) -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        return await (await job.delegate(agent, "granted")).result()

    frames, _, _ = await run_parent(body, {"agent.delegate": [pattern]})
    assert frames[-1]["payload"].get("result") == "granted"


@pytest.mark.requirement("P7.16", "P9.4")
async def test_an_agent_that_is_not_there() -> None:
    told, _ = await refused(None, arcp_trio.AgentNotAvailableError, "nobody")
    assert (told["code"], told["retryable"]) == ("AGENT_NOT_AVAILABLE", True)
    told, cause = await refused(None, arcp_trio.AgentVersionNotAvailableError, "echo@9")
    assert cause.details == {"available": ["1.0.0"]}
    told, _ = await refused(None, arcp_trio.InvalidRequestError, "Echo")
    assert told["message"].startswith("$.body.agent: ")


@pytest.mark.requirement("P6.2", "P7.16")
async def test_an_agent_that_the_principal_may_not_use_is_not_there() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        with pytest.raises(arcp_trio.AgentNotAvailableError):
            await job.delegate("echo")
        # Nor for whom it delegates to.
        await (await job.delegate("parent2", lease_request=ANY)).result()

    family = Family(body)

    @family.agents.register("parent2")
    async def parent2(job: arcp_trio.JobContext, value: Any) -> None:
        with pytest.raises(arcp_trio.AgentNotAvailableError):
            await job.delegate("echo")

    principal = arcp_trio.Principal(name="me", agents=frozenset({"parent", "parent2"}))
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime, principal=principal) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        frame = await end_of(client, job_id)
        assert frame["type"] == "job.result", frame
        assert runtime.statistics().jobs_accepted == 2


@pytest.mark.requirement("P9.5", "P10.2", "G18")
@pytest.mark.parametrize(
    "more",
    [
        {"lease_request": {"fs.read": ["/**"]}},
        {"lease_request": {"fs.read": ["/data/**", "/etc/passwd"]}},
        {"lease_request": {"fs.write": ["/data/a"]}},
        {"lease_request": {"cost.budget": ["USD:1.01"]}},
        {"lease_request": {"cost.budget": ["EUR:0.01"]}},
        {"lease_request": {"model.use": ["tier/*"]}},
    ],
)
async def test_a_child_has_no_more_than_its_parent(more: Frame) -> None:
    lease = {**ANY, "fs.read": ["/data/**"], "cost.budget": ["USD:1.00"]}
    told, _ = await refused(lease, arcp_trio.LeaseSubsetViolationError, "echo", **more)
    assert (told["code"], told["retryable"]) == ("LEASE_SUBSET_VIOLATION", False)


@pytest.mark.requirement("P10.2", "G18")
async def test_a_child_does_not_live_longer_than_its_parent() -> None:
    soon, later = (format_timestamp(WallClock().seconds() + seconds) for seconds in (600, 601))
    submit = {"lease_constraints": {"expires_at": soon}}
    told, _ = await refused(None, arcp_trio.LeaseSubsetViolationError, "echo", expires_at=later, submit=submit)
    assert told["code"] == "LEASE_SUBSET_VIOLATION"

    async def body(job: arcp_trio.JobContext) -> None:
        for given in (soon, None):
            await (await job.delegate("echo", expires_at=given)).result()

    frames, _, _ = await run_parent(body, submit=submit)
    constraints = [frame["payload"]["lease_constraints"] for frame in accepted(frames)]
    # Who names none inherits it; what was asked for is told as it was asked.
    assert constraints == [{"expires_at": soon}] * 3
    asked = [body.get("lease_constraints") for body in of_kind(frames, "delegate")]
    assert asked == [{"expires_at": soon}, None]


@pytest.mark.requirement("P9.5", "P9.6")
@pytest.mark.parametrize(
    "bad",
    [
        {"lease_request": {"fs.read": ["relative"]}},
        {"lease_request": {"fs.read": []}},
        {"lease_request": {"cost.budget": ["USD"]}},
        {"expires_at": "tomorrow"},
        {"expires_at": "2001-01-01T00:00:00Z"},
    ],
)
async def test_a_lease_that_is_none_is_refused(bad: Frame) -> None:
    lease = {**ANY, "fs.read": ["/**"], "cost.budget": ["USD:1"]}
    told, _ = await refused(lease, arcp_trio.InvalidRequestError, "echo", **bad)
    assert told["message"].startswith("$.body.lease_")


@pytest.mark.requirement("P8.1", "P7.3", "P4.4")
@pytest.mark.parametrize(
    ("arguments", "keywords", "says"),
    [
        ((3,), {}, r"\$\.body\.agent: expected a string, got int"),
        (("echo", object()), {}, r"\$\.body: "),
        (("echo", float("nan")), {}, r"\$\.body: "),
        (("echo", "\ud800"), {}, r"\$\.body: "),
        (("echo", "x" * 1_000_000), {}, "a frame has at most 1000000"),
        (("echo",), {"lease_request": ["fs.read"]}, "lease_request: expected a mapping, got list"),
        (("echo",), {"lease_request": {"fs.read": "/**"}}, 'lease_request."fs.read": expected a list of patterns'),
        (("echo",), {"lease_request": {"fs.read": [1]}}, 'lease_request."fs.read": expected strings'),
        (("echo",), {"lease_request": {1: ["/**"]}}, "expected a list of patterns"),
        (("echo",), {"expires_at": 5}, r"\$\.body\.expires_at: expected a string, got int"),
        (("echo",), {"max_runtime_sec": 0}, "max_runtime_sec: expected a positive number, got 0"),
        (("echo",), {"max_runtime_sec": True}, "max_runtime_sec: expected a positive number"),
        (("echo",), {"max_runtime_sec": float("nan")}, "max_runtime_sec: expected a positive number"),
        (("echo",), {"max_runtime_sec": "1"}, "max_runtime_sec: expected a positive number"),
    ],
)
async def test_an_argument_of_another_kind_is_the_agents_own_fault(arguments: Any, keywords: Any, says: str) -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        with pytest.raises(arcp_trio.InvalidRequestError, match=says):
            await job.delegate(*arguments, **keywords)

    frames, runtime, _ = await run_parent(body)
    assert (frames[-1]["type"], numbers(frames)) == ("job.result", [1])
    assert runtime.statistics().jobs_accepted == 1


def chain(family: Family) -> None:
    """Register ``chain``, which delegates to itself as often as its input says and returns how often that was."""

    @family.agents.register("chain")
    async def link(job: arcp_trio.JobContext, deeper: int) -> Any:
        if not deeper:
            await job.log("info", "the last one")
            await family.gate.wait()
            return 0
        return 1 + await (await job.delegate("chain", deeper - 1, lease_request=ANY)).result()  # type: ignore[operator]


@pytest.mark.requirement("P10.3", "P14.4", "G20")
@pytest.mark.parametrize(("generations", "status"), [(8, "success"), (9, "error")])
async def test_eight_generations_and_no_more(generations: int, status: str) -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        child = await job.delegate("chain", generations - 1, lease_request=ANY)
        return 1 + await child.result()  # type: ignore[operator]

    family = Family(body)
    chain(family)
    family.gate.set()
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        payload = (await end_of(client, job_id))["payload"]
        assert payload["final_status"] == status
        assert runtime.statistics().jobs_accepted == 9
        if status == "success":
            assert payload["result"] == 8
        else:
            assert payload["code"] == "PERMISSION_DENIED"
            assert payload["details"] == {"limit": "delegation_depth", "value": 8}
            (told,) = of_kind(client.received, "tool_result")
            assert told["error"]["code"] == "PERMISSION_DENIED"


@pytest.mark.requirement("P6.3")
@pytest.mark.parametrize(("limit", "value"), [("children", 2), ("jobs_per_principal", 3), ("jobs", 3)])
async def test_a_cap_is_a_refusal_that_may_pass(limit: str, value: int) -> None:
    async def body(job: arcp_trio.JobContext) -> str:
        first = await job.delegate("sleep")
        await job.delegate("gate")
        with pytest.raises(arcp_trio.InternalError) as caught:
            await job.delegate("echo")
        assert caught.value.retryable
        assert caught.value.details == {"limit": limit, "value": value}
        first.cancel()
        await first.wait_ended()
        family.gate.set()
        return str(await (await job.delegate("echo", "room again")).result())

    family = Family(body)
    limits = arcp_trio.Limits(**{limit: value})  # type: ignore[arg-type]
    async with arcp_trio.open_runtime(family.agents, limits=limits) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        frame = await end_of(client, job_id)
        assert frame["payload"].get("result") == "room again", frame


@pytest.mark.requirement("P10.3", "P7.11", "G20")
async def test_who_is_being_stopped_or_has_ended_delegates_nothing(autojump_clock: trio.testing.MockClock) -> None:
    raised: list[str] = []

    async def body(job: arcp_trio.JobContext) -> None:
        with trio.CancelScope(shield=True):
            for gate in (stopping, ended):
                await gate.wait()
                with pytest.raises(arcp_trio.wire.errors.JobEndedError) as caught:
                    await job.delegate("echo")
                raised.append(caught.value.message)

    stopping, ended = trio.Event(), trio.Event()
    family = Family(body)
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        await client.request("job.cancel", {"job_id": job_id})
        await client.receive_until("job.cancelled")
        stopping.set()
        frame = await end_of(client, job_id)
        assert frame["payload"]["final_status"] == "cancelled"
        ended.set()
        await client.settle()
        assert raised == [
            "the job is ending: it can delegate nothing any more",
            "the job has ended: nothing can be emitted any more",
        ]
        assert runtime.statistics().jobs_accepted == 1
        (told,) = of_kind(client.received, "tool_result")
        assert told["error"]["code"] == "PERMISSION_DENIED"


@pytest.mark.requirement("P9.4", "P9.6", "G20")
async def test_an_expired_lease_delegates_nothing() -> None:
    now = [1_800_000_000.0]
    expires_at = format_timestamp(now[0] + 600)

    async def body(job: arcp_trio.JobContext) -> None:
        now[0] += 3600
        with pytest.raises(arcp_trio.LeaseExpiredError):
            await job.delegate("echo", expires_at=None)

    frames, runtime, _ = await run_parent(
        body, submit={"lease_constraints": {"expires_at": expires_at}}, clock=WallClock(lambda: now[0])
    )
    assert frames[-1]["payload"]["code"] == "LEASE_EXPIRED"
    assert runtime.statistics().jobs_accepted == 1


@pytest.mark.requirement("P9.4", "P10.2", "B15")
async def test_a_used_up_budget_delegates_nothing() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        with pytest.raises(arcp_trio.BudgetExhaustedError):
            await job.delegate("echo")

    frames, _, _ = await run_parent(body, {**ANY, "cost.budget": ["USD:0"]})
    (told,) = of_kind(frames, "tool_result")
    assert (told["error"]["code"], told["error"]["retryable"]) == ("BUDGET_EXHAUSTED", False)


async def test_a_delegation_while_the_runtime_shuts_down_is_refused() -> None:
    told: list[arcp_trio.ARCPError] = []

    async def body(job: arcp_trio.JobContext) -> None:
        await family.gate.wait()
        with pytest.raises(arcp_trio.InternalError) as caught:
            await job.delegate("echo", lease_request={"cost.budget": ["USD:1"]})
        told.append(caught.value)
        # What was held for the child is back.
        assert job._actor.authority.budget.held() == {"USD": 0}

    family = Family(body)
    limits = arcp_trio.Limits(drain_seconds=5)
    async with arcp_trio.open_runtime(family.agents, limits=limits) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request={**ANY, "cost.budget": ["USD:1"]})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.aclose)
            await trio.testing.wait_all_tasks_blocked()
            family.gate.set()
            frame = await end_of(client, job_id)
        assert frame["type"] == "job.result"
    assert [(error.code, error.retryable) for error in told] == [("INTERNAL_ERROR", True)]
