"""What a job may do: its lease at each operation, in which order it is checked, and its end."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from helpers import TOKEN, Frame, Script, connect_raw, open_raw, terminals

import arcp_trio
from arcp_trio.wire.timestamps import WallClock, format_timestamp

NOW = 1_800_000_000.0


class SetClock:
    """A time of day that goes with the mock clock, and that somebody sets."""

    def __init__(self) -> None:
        self.step = 0.0

    def __call__(self) -> float:
        return NOW + trio.current_time() + self.step

    def after(self, seconds: float) -> str:
        return format_timestamp(self() + seconds)


def agent_that(does: Callable[[arcp_trio.JobContext], Awaitable[Any]]) -> arcp_trio.Agents:
    agents = arcp_trio.Agents()

    @agents.register("agent")
    async def agent(job: arcp_trio.JobContext, value: Any) -> Any:
        return await does(job)

    return agents


async def outcome_of(
    does: Callable[[arcp_trio.JobContext], Awaitable[Any]], lease: Frame | None = None, **options: Any
) -> list[Frame]:
    """Run an agent's body in a job with that lease; return all frames of the job."""
    async with arcp_trio.open_runtime(agent_that(does), **options) as runtime, open_raw(runtime) as client:
        await client.submit("agent", lease_request=lease or {})
        await client.receive_until(lambda frame: frame["type"] in ("job.result", "job.error"))
        return client.received


def refusals(frames: list[Frame]) -> list[Frame]:
    bodies = [frame["payload"].get("body", {}) for frame in frames if frame["type"] == "job.event"]
    return [body["error"] for body in bodies if body.get("error")]


OPERATIONS = [
    ("tool.call", "search"),
    ("fs.read", "/data/a"),
    ("fs.write", "/data/a"),
    ("net.fetch", "https://example.com/"),
    ("agent.delegate", "helper"),
    ("model.use", "tier-fast/small"),
    ("x.own", "thing"),
]


@pytest.mark.requirement("P9.4", "P9.8", "G01", "G02")
@pytest.mark.parametrize(("namespace", "target"), OPERATIONS)
async def test_what_no_grant_covers_is_refused_on_the_wire_and_raised(namespace: str, target: str) -> None:
    granted = {name: [other] for name, other in OPERATIONS if name != namespace}
    for lease in ({}, granted):

        async def does(job: arcp_trio.JobContext) -> str:
            with pytest.raises(arcp_trio.PermissionDeniedError, match=namespace):
                await job.authorize(namespace, target)
            return "it went on"

        frames = await outcome_of(does, lease)
        (refusal,) = refusals(frames)
        assert (refusal["code"], refusal["retryable"]) == ("PERMISSION_DENIED", False)
        assert frames[-1]["payload"]["result"] == "it went on"


@pytest.mark.requirement("P9.4", "P9.8")
@pytest.mark.parametrize(("namespace", "target"), OPERATIONS)
async def test_what_a_grant_covers_is_allowed(namespace: str, target: str) -> None:
    frames = await outcome_of(lambda job: job.authorize(namespace, target), {namespace: [target]})
    assert frames[-1]["payload"]["result"] == target
    assert refusals(frames) == []


@pytest.mark.requirement("P9.3", "P9.4")
async def test_an_operation_is_given_the_canonical_target() -> None:
    frames = await outcome_of(lambda job: job.authorize("fs.read", "/data/x/.././//a/"), {"fs.read": ["/data/*"]})
    assert frames[-1]["payload"]["result"] == "/data/a"


@pytest.mark.requirement("P9.4", "P7.8a")
async def test_a_refusal_that_nobody_catches_is_the_jobs_error() -> None:
    frames = await outcome_of(lambda job: job.authorize("tool.call", "rm"))
    payload = frames[-1]["payload"]
    assert (payload["code"], payload["final_status"]) == ("PERMISSION_DENIED", "error")


@pytest.mark.requirement("P9.8")
async def test_models_are_open_only_by_configuration_and_only_where_no_lease_names_them() -> None:
    def does(job: arcp_trio.JobContext) -> Awaitable[str]:
        return job.authorize("model.use", "some/model")

    assert (await outcome_of(does))[-1]["payload"]["code"] == "PERMISSION_DENIED"
    assert (await outcome_of(does, open_models=True))[-1]["payload"]["result"] == "some/model"
    named = await outcome_of(does, {"model.use": ["other/*"]}, open_models=True)
    assert named[-1]["payload"]["code"] == "PERMISSION_DENIED"


@pytest.mark.requirement("P9.4")
async def test_the_budget_itself_is_no_operation() -> None:
    frames = await outcome_of(lambda job: job.authorize("cost.budget", "USD:1"), {"cost.budget": ["USD:1"]})
    assert frames[-1]["payload"]["code"] == "PERMISSION_DENIED"


@pytest.mark.requirement("P9.4")
async def test_the_checks_come_in_their_order(autojump_clock: trio.testing.MockClock) -> None:
    """Expiry before budget before grant: the first that fails is the one that is said."""
    clock = SetClock()
    raised: list[str] = []

    async def does(job: arcp_trio.JobContext) -> None:
        for step in (-7200.0, 0.0):
            clock.step = -step
            with pytest.raises(arcp_trio.ARCPError) as caught:
                await job.authorize("tool.call", "not granted")
            raised.append(caught.value.code)

    agents = agent_that(does)
    async with (
        arcp_trio.open_runtime(agents, clock=WallClock(clock)) as runtime,
        open_raw(runtime) as client,
    ):
        for budget, wanted in (("USD:0", "BUDGET_EXHAUSTED"), ("USD:1", "PERMISSION_DENIED")):
            clock.step = 0.0
            raised.clear()
            constraints = {"expires_at": clock.after(3600)}
            await client.submit("agent", lease_request={"cost.budget": [budget]}, lease_constraints=constraints)
            await client.receive_until("job.error")
            assert raised[0] == "LEASE_EXPIRED"
            clock.step = 0.0

            async def once(job: arcp_trio.JobContext) -> None:
                await job.authorize("tool.call", "not granted")

            frames = await outcome_of(once, {"cost.budget": [budget]})
            assert frames[-1]["payload"]["code"] == wanted


# --- expiry -----------------------------------------------------------------------------------------


@pytest.mark.requirement("P9.6", "P7.8a", "G14", "G15", "G16", "G17")
async def test_a_lease_expires_under_an_agent(
    script: Script, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Constraints alone are enough; the agent is stopped, whatever it returns; one line in the audit log."""
    caplog.set_level(logging.INFO, "arcp_trio.audit")
    clock = SetClock()
    async with (
        arcp_trio.open_runtime(script.agents, clock=WallClock(clock)) as runtime,
        open_raw(runtime) as client,
    ):
        for agent, grace in (("sleep", 0.0), ("stubborn", 1.0)):
            caplog.clear()
            began = trio.current_time()
            expires_at = clock.after(60)
            job_id = await client.submit(agent, lease_constraints={"expires_at": expires_at})
            accepted = client.received[-1]["payload"]
            assert accepted["lease_constraints"] == {"expires_at": expires_at}
            payload = (await client.receive_until("job.error"))["payload"]
            assert trio.current_time() - began == pytest.approx(60 + grace, abs=0.01)
            assert (payload["code"], payload["final_status"]) == ("LEASE_EXPIRED", "error")
            assert payload["retryable"] is False
            lines = [record.getMessage() for record in caplog.records if record.name == "arcp_trio.audit"]
            assert [line for line in lines if job_id in line and line.startswith("lease expired")] == lines
            assert len(lines) == 1
        script.gate.set()
        await client.settle()
        assert len(terminals(client.received)) == 2


@pytest.mark.requirement("P9.6", "G15")
async def test_the_boundary_of_an_expiry(autojump_clock: trio.testing.MockClock) -> None:
    """Just before it an operation is allowed, from that instant on it is not, in the grace neither."""
    clock = SetClock()
    seen: list[tuple[float, str]] = []

    async def does(job: arcp_trio.JobContext) -> str:
        began = trio.current_time()
        with trio.CancelScope(shield=True):
            for at in (9.75, 10.0, 10.5):
                await trio.sleep_until(began + at)
                try:
                    seen.append((at, await job.authorize("tool.call", "search")))
                except arcp_trio.LeaseExpiredError as exc:
                    seen.append((at, exc.code))
        return "a value"

    async with (
        arcp_trio.open_runtime(agent_that(does), clock=WallClock(clock)) as runtime,
        open_raw(runtime) as client,
    ):
        await client.submit(
            "agent", lease_request={"tool.call": ["*"]}, lease_constraints={"expires_at": clock.after(10)}
        )
        payload = (await client.receive_until("job.error"))["payload"]
    assert seen == [(9.75, "search"), (10.0, "LEASE_EXPIRED"), (10.5, "LEASE_EXPIRED")]
    assert payload["code"] == "LEASE_EXPIRED"


@pytest.mark.requirement("P9.6", "G16")
async def test_a_wall_clock_that_is_set_back_lengthens_no_lease(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    clock = SetClock()
    async with (
        arcp_trio.open_runtime(script.agents, clock=WallClock(clock)) as runtime,
        open_raw(runtime) as client,
    ):
        began = trio.current_time()
        await client.submit("sleep", lease_constraints={"expires_at": clock.after(60)})
        clock.step = -3600.0
        payload = (await client.receive_until("job.error"))["payload"]
        assert payload["code"] == "LEASE_EXPIRED"
        assert trio.current_time() - began == pytest.approx(60, abs=0.01)


@pytest.mark.requirement("P9.6", "G16")
async def test_a_wall_clock_that_passes_first_expires_a_lease_at_the_next_operation(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a machine's sleep, which stops the monotonic clock: the check looks at both."""
    caplog.set_level(logging.INFO, "arcp_trio.audit")
    clock = SetClock()

    async def does(job: arcp_trio.JobContext) -> str:
        await job.authorize("tool.call", "search")
        clock.step = 3600.0
        for _ in range(3):
            with pytest.raises(arcp_trio.LeaseExpiredError):
                await job.authorize("tool.call", "search")
        return "whatever it returns"

    async with (
        arcp_trio.open_runtime(agent_that(does), clock=WallClock(clock)) as runtime,
        open_raw(runtime) as client,
    ):
        await client.submit(
            "agent", lease_request={"tool.call": ["*"]}, lease_constraints={"expires_at": clock.after(600)}
        )
        payload = (await client.receive_until("job.error"))["payload"]
        assert (payload["code"], payload["final_status"]) == ("LEASE_EXPIRED", "error")
        assert runtime.statistics().timers == 1  # the record's retention
        await trio.sleep(7_200)
        assert len(terminals(client.received + await client.settle())) == 1
    assert len([record for record in caplog.records if "lease expired" in record.getMessage()]) == 1


@pytest.mark.requirement("L08", "P9.6")
async def test_a_lease_that_lapses_before_the_agent_starts(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    clock = SetClock()
    async with arcp_trio.open_runtime(script.agents, clock=WallClock(clock)) as runtime:
        client = await connect_raw(runtime)
        start = runtime._session_services.start_job

        def late(spec: Any, accept: Any) -> Any:
            actor = start(spec, accept)
            clock.step = 7200.0
            return actor

        object.__setattr__(runtime._session_services, "start_job", late)
        await client.submit("echo", lease_constraints={"expires_at": clock.after(3600)})
        payload = (await client.receive_until("job.error"))["payload"]
        assert (payload["code"], payload["final_status"]) == ("LEASE_EXPIRED", "error")
        assert script.entered == 0


@pytest.mark.requirement("L10")
async def test_a_job_that_returns_leaves_no_watch_over_its_lease(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    clock = SetClock()
    async with (
        arcp_trio.open_runtime(script.agents, clock=WallClock(clock)) as runtime,
        open_raw(runtime) as client,
    ):
        began = trio.current_time()
        await client.submit("echo", lease_constraints={"expires_at": clock.after(3600)})
        await client.receive_until("job.result")
        assert trio.current_time() == began
        assert runtime.statistics().timers == 1  # the record's retention
        assert runtime.statistics().jobs_running == 0
        await trio.sleep(7200)
        assert await client.settle() == []


@pytest.mark.requirement("P7.10", "P9.6")
@pytest.mark.parametrize("first", ["cancel", "expiry"])
async def test_of_a_cancel_and_an_expiry_the_first_decides(
    script: Script, first: str, autojump_clock: trio.testing.MockClock
) -> None:
    clock = SetClock()
    async with (
        arcp_trio.open_runtime(script.agents, clock=WallClock(clock)) as runtime,
        open_raw(runtime) as client,
    ):
        job_id = await client.submit("stubborn", lease_constraints={"expires_at": clock.after(10)})
        await trio.sleep(9.5 if first == "cancel" else 10.5)
        await client.request("job.cancel", {"job_id": job_id, "reason": "r"})
        payload = (await client.receive_until("job.error"))["payload"]
        # An expiry shortens the grace of a cancel that came before it.
        assert trio.current_time() == pytest.approx(11, abs=0.01)
        wanted = ("CANCELLED", "cancelled") if first == "cancel" else ("LEASE_EXPIRED", "error")
        assert (payload["code"], payload["final_status"]) == wanted
        acknowledged = [frame for frame in client.received if frame["type"] == "job.cancelled"]
        assert len(acknowledged) == (first == "cancel")
        script.gate.set()


@pytest.mark.requirement("P7.11", "G20")
async def test_a_job_that_has_ended_may_do_nothing(autojump_clock: trio.testing.MockClock) -> None:
    raised: list[BaseException] = []

    async def does(job: arcp_trio.JobContext) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)
            try:
                await job.authorize("tool.call", "search")
            except arcp_trio.PermissionDeniedError as exc:
                raised.append(exc)

    async with arcp_trio.open_runtime(agent_that(does)) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("agent", lease_request={"tool.call": ["*"]})
        await client.request("job.cancel", {"job_id": job_id, "reason": "r"})
        await client.receive_until("job.error")
        await trio.sleep(100)
        assert await client.settle() == []
    assert [type(exc) for exc in raised] == [arcp_trio.JobEndedError]


@pytest.mark.requirement("P9.4", "P7.13")
async def test_an_agent_that_is_being_stopped_may_still_clean_up(autojump_clock: trio.testing.MockClock) -> None:
    allowed: list[str] = []

    async def does(job: arcp_trio.JobContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                allowed.append(await job.authorize("tool.call", "unlock"))

    async with arcp_trio.open_runtime(agent_that(does)) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("agent", lease_request={"tool.call": ["unlock"]})
        await client.settle()
        await client.request("job.cancel", {"job_id": job_id, "reason": "r"})
        await client.receive_until("job.error")
    assert allowed == ["unlock"]


# --- a principal's ceiling --------------------------------------------------------------------------


@pytest.mark.requirement("P6.2", "P7.2")
async def test_a_principals_ceiling_reduces_what_was_asked_for(script: Script) -> None:
    ceiling = arcp_trio.LeaseCeiling(grants={"fs.read": ["/data/**"], "tool.call": ["*"]})
    verifier = arcp_trio.StaticTokens({TOKEN: arcp_trio.Principal(name="me", ceiling=ceiling)})
    async with (
        arcp_trio.open_runtime(script.agents, verifier=verifier) as runtime,
        open_raw(runtime, principal=None) as client,
    ):
        lease = {"fs.read": ["/data/mine/*", "/etc/**"], "fs.write": ["/data/**"], "tool.call": ["search"]}
        await client.submit("echo", lease_request=lease)
        (accepted,) = [frame for frame in client.received if frame["type"] == "job.accepted"]
        assert accepted["payload"]["lease"] == {"fs.read": ["/data/mine/*"], "tool.call": ["search"]}


@pytest.mark.requirement("P6.2", "P9.4")
async def test_what_a_ceiling_took_away_is_refused_at_the_operation() -> None:
    ceiling = arcp_trio.LeaseCeiling(grants={"tool.call": ["search"]})

    async def does(job: arcp_trio.JobContext) -> str:
        with pytest.raises(arcp_trio.PermissionDeniedError):
            await job.authorize("tool.call", "rm")
        return await job.authorize("tool.call", "search")

    verifier = arcp_trio.StaticTokens({TOKEN: arcp_trio.Principal(name="me", ceiling=ceiling)})
    async with (
        arcp_trio.open_runtime(agent_that(does), verifier=verifier) as runtime,
        open_raw(runtime, principal=None) as client,
    ):
        await client.submit("agent", lease_request={"tool.call": ["*"]})
        assert (await client.receive_until("job.result"))["payload"]["result"] == "search"
