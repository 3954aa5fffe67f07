"""No child outlives its parent: how each way in which a job ends reaches those below it, and in what time (P10.3)."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing
from helpers import RawClient, Script, open_raw, terminals
from jobs.parents import ANY, Family, accepted, end_of, of_kind
from races.families import check_family

import arcp_trio
from arcp_trio.jobs.actor import JobActor
from arcp_trio.jobs.children import Children
from arcp_trio.jobs.lifecycle import FinalStatus, LeaseExpired, Outcome, ParentStopping, Phase, TornDown
from arcp_trio.wire.timestamps import WallClock, format_timestamp


class Chain(Script):
    """``chain`` delegates to itself as often as its input says, and waits for what is below it; the last one waits.

    With ``stubborn`` none of them stops before the gate opens.
    """

    def __init__(self, *, stubborn: bool = False) -> None:
        super().__init__()

        @self.agents.register("chain")
        async def chain(job: arcp_trio.JobContext, deeper: int) -> int:
            self.entered += 1
            try:
                child = await job.delegate("chain", deeper - 1, lease_request=ANY) if deeper else None
                if child is not None and not stubborn:
                    return 1 + await child.result()  # type: ignore[operator]
                with trio.CancelScope(shield=stubborn):
                    await self.gate.wait()
                return 0
            finally:
                self.left += 1


def actor_of(runtime: arcp_trio.Runtime, job_id: str) -> JobActor:
    actor = runtime._directory.find(job_id)
    assert isinstance(actor, JobActor)
    return actor


async def settle_family(client: RawClient, runtime: arcp_trio.Runtime) -> dict[str, str]:
    await client.settle()
    return check_family(client.received, runtime, "")


@pytest.mark.requirement("P10.3", "P7.13")
@pytest.mark.parametrize("grace", [30.0, 2.0])
@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_cancel_of_nine_generations_stays_within_the_grace(
    grace: float, stubborn: bool, autojump_clock: trio.testing.MockClock
) -> None:
    script = Chain(stubborn=stubborn)
    limits = arcp_trio.Limits(cancel_grace_seconds=grace)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("chain", 8, lease_request=ANY)
        await client.settle()
        assert runtime.statistics().jobs_running == 9
        began = trio.current_time()
        await client.request("job.cancel", {"job_id": job_id})
        await end_of(client, job_id)
        took = trio.current_time() - began
        assert took <= grace
        ended = await settle_family(client, runtime)
        assert list(ended.values()) == ["cancelled"] * 9
        # From below upwards, the last to come is the first to go.
        assert list(ended) == [frame["job_id"] for frame in reversed(accepted(client.received))]
        if stubborn:
            # Nobody was cut short of what those above could leave him.
            assert took == grace
            assert len(runtime.statistics().disowned_agents) == 9
            assert terminals(client.received)[0]["payload"]["message"] == "parent stopped"
        else:
            assert (took, script.left) == (0, 9)
        script.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (script.left, runtime.statistics().disowned_agents) == (9, ())
        await trio.sleep(2 * grace)
        assert await client.settle() == []


@pytest.mark.requirement("P10.3")
async def test_each_generation_has_less_time_and_some(autojump_clock: trio.testing.MockClock) -> None:
    """What a parent keeps is a second of a long time, and a part of a short one."""
    cause = Outcome(final_status=FinalStatus.CANCELLED, code="CANCELLED")
    told: list[float] = []

    class Listening:
        def stop_with_parent(self, message: ParentStopping) -> None:
            told.append(message.until - trio.current_time())

    children = Children()
    children._children[Listening()] = None  # type: ignore[index, assignment]
    for left in (30.0, 8.0, 4.0, 0.8, 0.0, -5.0):
        now = trio.current_time()
        children.stop(now + left, cause)
    assert told == pytest.approx([29.0, 7.0, 3.5, 0.7, 0.0, -5.0])


@pytest.mark.requirement("P10.3", "P7.8")
async def test_a_hundred_children_end_before_their_parent(autojump_clock: trio.testing.MockClock) -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        children = [await job.delegate(("sleep", "gate", "stubborn")[n % 3], n) for n in range(100)]
        await children[0].result()

    family = Family(body)
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        await client.settle()
        assert (runtime.statistics().jobs_running, len(actor_of(runtime, job_id).children)) == (101, 100)
        await client.request("job.cancel", {"job_id": job_id})
        await end_of(client, job_id)
        ended = await settle_family(client, runtime)
        assert list(ended.values()) == ["cancelled"] * 101
        assert list(ended)[-1] == job_id
        family.gate.set()


@pytest.mark.requirement("P10.3", "P7.9")
async def test_a_parent_that_fails_stops_its_children_first(autojump_clock: trio.testing.MockClock) -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        for name in ("sleep", "stubborn"):
            await job.delegate(name)
        await trio.sleep(1)
        raise arcp_trio.ARCPError("no more paper", code="x-printer")

    family = Family(body)
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        began = trio.current_time()
        job_id = await client.submit("parent", lease_request=ANY)
        frame = await end_of(client, job_id)
        assert frame["payload"]["code"] == "x-printer"
        # It has no grace of its own any more: theirs is what any job has, but for its part.
        assert trio.current_time() - began == 1 + 29
        assert sorted((await settle_family(client, runtime)).values()) == ["cancelled", "cancelled", "error"]
        family.gate.set()


@pytest.mark.requirement("P10.3", "P9.6")
async def test_what_an_expired_lease_stops_has_expired_too(autojump_clock: trio.testing.MockClock) -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        await job.delegate("sleep")
        await job.delegate("stubborn", expires_at=later)
        await trio.sleep_forever()

    family = Family(body)
    clock = WallClock(lambda: 1_800_000_000 + trio.current_time())
    async with arcp_trio.open_runtime(family.agents, clock=clock) as runtime, open_raw(runtime) as client:
        later = format_timestamp(clock.seconds() + 60)
        began = trio.current_time()
        job_id = await client.submit("parent", lease_request=ANY, lease_constraints={"expires_at": later})
        await end_of(client, job_id)
        assert trio.current_time() - began <= 61
        await settle_family(client, runtime)
        codes = [(frame["payload"]["code"], frame["payload"]["final_status"]) for frame in terminals(client.received)]
        assert codes == [("LEASE_EXPIRED", "error")] * 3
        family.gate.set()


@pytest.mark.requirement("P10.3", "P9.6")
async def test_a_parents_expiry_reaches_a_child_that_has_none_of_its_own_yet() -> None:
    """The messages come in any order; whoever hears of the parent's first says the same."""

    async def body(job: arcp_trio.JobContext) -> None:
        await job.delegate("sleep")
        await trio.sleep_forever()

    family = Family(body)
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        await client.settle()
        outcome = Outcome(final_status=FinalStatus.ERROR, code="LEASE_EXPIRED", message="the lease expired")
        actor_of(runtime, job_id)._mailbox.post(LeaseExpired(trio.current_time() + 1, outcome))
        await end_of(client, job_id)
        child, _ = terminals(client.received)
        assert (child["payload"]["code"], child["payload"]["message"]) == (
            "LEASE_EXPIRED",
            "parent stopped: its lease expired",
        )


@pytest.mark.requirement("P10.3", "P9.6")
@pytest.mark.parametrize("phase", [Phase.STOPPING, Phase.ENDING])
async def test_a_parent_that_has_less_time_passes_that_on(phase: Phase, autojump_clock: trio.testing.MockClock) -> None:
    """While a cancel's grace runs its own parent has less: the stubborn below are waited for no longer than it is."""

    async def body(job: arcp_trio.JobContext) -> None:
        await job.delegate("stubborn")
        with trio.CancelScope(shield=phase is Phase.STOPPING):
            await family.gate.wait()

    family = Family(body)
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        await client.settle()
        actor = actor_of(runtime, job_id)
        await client.request("job.cancel", {"job_id": job_id})
        await client.settle()
        assert actor.state.phase is phase
        began = trio.current_time()
        actor.stop_with_parent(ParentStopping(began + 8, Outcome(final_status=FinalStatus.CANCELLED)))
        await end_of(client, job_id)
        child, _ = terminals(client.received)
        # Its child had all that it could be left; it waits itself to the last where its agent is stubborn too.
        assert trio.current_time() - began == (8.0 if phase is Phase.STOPPING else 7.0)
        assert child["job_id"] != job_id
        family.gate.set()


@pytest.mark.requirement("P10.3", "P7.15")
async def test_a_child_that_has_not_begun_never_enters_its_agent() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        # It begins a slice of the loop's time, which lasts.
        await job.log("info", "about to")
        await trio.testing.wait_all_tasks_blocked()
        child = await job.delegate("echo")
        assert child.status == "pending"
        # What this agent's end does in its turn, before the child's actor had one.
        job._actor.children.stop(trio.current_time() + 5, Outcome(final_status=FinalStatus.ERROR))
        raise arcp_trio.ARCPError("at once", code="x-at-once")

    family = Family(body)
    # No turn of the loop lies between the delegation and the failure.
    limits = arcp_trio.Limits(slice_seconds=100)
    async with arcp_trio.open_runtime(family.agents, limits=limits) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        await end_of(client, job_id)
        ended = await settle_family(client, runtime)
        assert (list(ended.values()), family.entered) == (["cancelled", "error"], 0)


@pytest.mark.requirement("P10.3", "P7.13")
async def test_a_disowned_agents_children_are_stopped_and_it_gets_no_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    refused: list[str] = []

    async def body(job: arcp_trio.JobContext) -> None:
        await job.delegate("sleep")
        await job.delegate("stubborn")
        with trio.CancelScope(shield=True):
            await family.gate.wait()
            with pytest.raises(arcp_trio.wire.errors.JobEndedError) as caught:
                await job.delegate("echo")
        refused.append(caught.value.code)

    family = Family(body)
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        await client.request("job.cancel", {"job_id": job_id})
        await end_of(client, job_id)
        assert list((await settle_family(client, runtime)).values()) == ["cancelled"] * 3
        assert len(runtime.statistics().disowned_agents) == 2
        family.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (refused, runtime.statistics().disowned_agents) == (["PERMISSION_DENIED"], ())
        assert runtime.statistics().jobs_accepted == 3


@pytest.mark.requirement("P10.3", "T16", "Z12")
@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_shutdown_reaches_all_generations_within_its_deadline(
    stubborn: bool, autojump_clock: trio.testing.MockClock
) -> None:
    script = Chain(stubborn=stubborn)
    limits = arcp_trio.Limits(shutdown_seconds=10)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        for _ in range(3):
            await client.submit("chain", 8, lease_request=ANY)
        await client.settle()
        assert runtime.statistics().jobs_running == 27
        began = trio.current_time()
        await runtime.aclose()
        assert trio.current_time() - began <= (10 if stubborn else 0)
        ended = await settle_family(client, runtime)
        assert list(ended.values()) == ["error"] * 27
        codes = {(frame["payload"]["code"], frame["payload"]["retryable"]) for frame in terminals(client.received)}
        assert codes == {("INTERNAL_ERROR", True)}
        script.gate.set()


@pytest.mark.requirement("P10.3", "P6.12")
async def test_a_family_goes_on_without_its_session_and_is_throttled_by_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        child = await job.delegate("gate")
        await family.gate.wait()
        return [await child.result(), await (await job.delegate("flood", 3_000)).result()]

    family = Family(body)
    limits = arcp_trio.Limits(window_events=100, lag_events=10, resume_seconds=1)
    async with arcp_trio.open_runtime(family.agents, limits=limits) as runtime:
        async with open_raw(runtime) as client:
            job_id = await client.submit("parent", lease_request=ANY)
            await client.settle()
            root = actor_of(runtime, job_id)
            assert root.throttle is not None
        await trio.sleep(2)
        assert (root.throttle, runtime.statistics().sessions_waiting) == (None, 0)
        began = trio.current_time()
        family.gate.set()
        await runtime.wait_jobs_ended()
        assert trio.current_time() == began
        assert runtime.statistics().terminals_published == 3


@pytest.mark.requirement("P6.17")
async def test_an_agent_that_delegates_waits_for_its_session_too(autojump_clock: trio.testing.MockClock) -> None:
    """Its children say nothing but how they end, and nobody waits before that: through them it would flood."""
    waited: list[float] = []

    async def body(job: arcp_trio.JobContext) -> None:
        for _ in range(1_000):
            before = trio.current_time()
            child = await job.delegate("echo", "x" * 1_000)
            waited.append(trio.current_time() - before)
            await child.wait_ended()

    family = Family(body)
    limits = arcp_trio.Limits(lag_events=200, throttle_seconds=5)
    async with arcp_trio.open_runtime(family.agents, limits=limits) as runtime, open_raw(runtime) as client:
        await client.submit("parent", lease_request=ANY)
        await runtime.wait_jobs_ended()
        assert [seconds for seconds in waited if seconds] == [pytest.approx(5)]


@pytest.mark.requirement("P6.17")
async def test_a_childs_agent_waits_for_the_session_of_the_family(autojump_clock: trio.testing.MockClock) -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        return await (await job.delegate("wordy", 3_000)).result()

    family = Family(body)
    waited: list[float] = []

    @family.agents.register("wordy")
    async def wordy(job: arcp_trio.JobContext, count: int) -> None:
        for _ in range(count):
            before = trio.current_time()
            await job.log("info", "x" * 1_000)
            waited.append(trio.current_time() - before)

    limits = arcp_trio.Limits(lag_events=200, throttle_seconds=5, window_events=10_000)
    async with arcp_trio.open_runtime(family.agents, limits=limits) as runtime, open_raw(runtime) as client:
        # Nobody reads: one episode of lag is waited for, and then no more.
        await client.submit("parent", lease_request=ANY)
        await runtime.wait_jobs_ended()
        assert [seconds for seconds in waited if seconds] == [pytest.approx(5)]


# --- bugs -------------------------------------------------------------------------------------------


@pytest.mark.requirement("P10.3", "L25")
@pytest.mark.parametrize("broken_in", [ParentStopping, TornDown])
@pytest.mark.parametrize("agent", ["sleep", "stubborn"])
async def test_a_bug_in_a_childs_actor_does_not_hold_its_parent(
    broken_in: type[Any], agent: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    from arcp_trio.jobs import actor as module

    original = module.apply

    def broken(state: Any, message: Any) -> Any:
        if type(message) is broken_in and broken_once:
            broken_once.clear()
            raise RuntimeError("a bug")
        return original(state, message)

    async def body(job: arcp_trio.JobContext) -> None:
        await (await job.delegate(agent)).result()

    broken_once = [True]
    family = Family(body)
    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        await client.settle()
        monkeypatch.setattr(module, "apply", broken)
        await client.request("job.cancel", {"job_id": job_id})
        await end_of(client, job_id)
        child, parent = terminals(client.received)
        assert parent["payload"]["final_status"] == "cancelled"
        assert child["job_id"] != job_id
        statistics = runtime.statistics()
        assert (statistics.terminals_published, statistics.tear_downs, statistics.bugs) == (2, 2, 1)
        family.gate.set()


@pytest.mark.requirement("P10.3", "L25")
@pytest.mark.parametrize("when", ["running", "ending"])
@pytest.mark.parametrize("agent", ["sleep", "stubborn"])
async def test_a_bug_in_a_parents_actor_takes_all_generations_along(
    when: str, agent: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Its end is forced: those below it end before it, at once, and their actors find that nothing is left to do."""
    from arcp_trio.jobs import actor as module

    original = module.apply

    def broken(state: Any, message: Any) -> Any:
        if type(message) is LeaseExpired:
            raise RuntimeError("a bug")
        return original(state, message)

    async def body(job: arcp_trio.JobContext) -> None:
        await (await job.delegate("middle", lease_request=ANY)).result()

    family = Family(body)

    @family.agents.register("middle")
    async def middle(job: arcp_trio.JobContext, value: Any) -> None:
        await job.delegate("stubborn")
        await (await job.delegate(agent)).result()

    async with arcp_trio.open_runtime(family.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request={**ANY, "cost.budget": ["USD:1"]})
        await client.settle()
        actor = actor_of(runtime, job_id)
        if when == "ending":
            await client.request("job.cancel", {"job_id": job_id})
            await client.settle()
            assert actor.state.phase is Phase.ENDING
        monkeypatch.setattr(module, "apply", broken)
        began = trio.current_time()
        actor._mailbox.post(LeaseExpired(0.0, Outcome(final_status=FinalStatus.ERROR)))
        await end_of(client, job_id)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() == began
        await client.settle()
        order = [frame["job_id"] for frame in terminals(client.received)]
        assert order[-1] == job_id
        assert len(order) == len(set(order)) == 4
        assert order[-2] == of_kind(client.received, "delegate", job_id)[0]["child_job_id"]
        statistics = runtime.statistics()
        assert (statistics.jobs_running, statistics.tear_downs, statistics.bugs) == (0, 4, 1)
        # What is left: the retention of the records.
        assert statistics.timers == 1
        assert len(statistics.disowned_agents) == (2 if agent == "stubborn" else 1)
        # Also those of the agents that have not ended yet.
        assert runtime._actor_nursery.child_tasks == frozenset()
        family.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.statistics().disowned_agents == ()
        await trio.sleep(100)
        assert await client.settle() == []


@pytest.mark.requirement("P10.3", "L25")
async def test_actors_that_are_all_cancelled_still_end_their_jobs_in_order(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing in the runtime does that; were it done, each of a family would have its one end, from below upwards."""
    caplog.set_level(logging.WARNING)
    script = Chain()
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.submit("chain", 8, lease_request=ANY)
        await client.settle()
        runtime._actor_nursery.cancel_scope.cancel()
        await client.settle()
        assert list(check_family(client.received, runtime, "").values()) == ["error"] * 9
    assert script.left == 9
