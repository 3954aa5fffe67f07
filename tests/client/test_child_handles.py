"""Jobs that a client's jobs delegate: seen, followed and cancelled through the handle of the parent (P10.1)."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from jobs.parents import ANY, Family
from playing import OTHERS, Call, Connection, open_played, read, start_job

import arcp_trio


async def delegate(connection: Connection, number: int, child_id: str, parent_id: str = "job_1") -> None:
    body = {"delegate_id": f"del_{child_id}", "child_job_id": child_id, "agent": "b@1", "input": None}
    await connection.say("job.event", {"kind": "delegate", "body": body}, job_id=parent_id, event_seq=number)


async def accept_child(connection: Connection, child_id: str, parent_id: str = "job_1", **more: Any) -> None:
    payload = {"job_id": child_id, "agent": "b@1", "parent_job_id": parent_id, "delegate_id": f"del_{child_id}", **more}
    await connection.say("job.accepted", payload, job_id=child_id)


@pytest.mark.requirement("P10.1", "P10.4", "P7.12")
async def test_a_family_as_its_client_sees_it() -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        first = await job.delegate("middle", lease_request=ANY)
        second = await job.delegate("sleep")
        with pytest.raises(arcp_trio.JobCancelledError):
            await second.result()
        return await first.result()

    family = Family(body)

    @family.agents.register("middle")
    async def middle(job: arcp_trio.JobContext, value: Any) -> Any:
        await job.log("info", "in the middle")
        return await (await job.delegate("echo", "from below")).result()

    async with arcp_trio.open_runtime(family.agents) as runtime, runtime.open_session(principal="me") as client:
        job = await client.submit("parent", lease_request=ANY)
        seen: list[str] = []
        async for event in job.events():
            assert isinstance(event, arcp_trio.Event)
            seen.append(event.kind)
            child_id = event.body["child_job_id"]
            assert isinstance(child_id, str)
            # Known, or on its way: the same handle.
            child = await client.subscribe(child_id)
            assert child.parent_job_id == job.job_id
            if child.agent == "sleep@1.0.0":
                assert (await child.cancel()).applied
        assert seen == ["delegate", "delegate"]
        assert await job.result() == "from below"
        assert job.parent_job_id is None
        middle_job, sleeper = job.children
        assert [child.agent for child in job.children] == ["middle@1.0.0", "sleep@1.0.0"]
        assert (middle_job.status, sleeper.status) == ("success", "cancelled")
        assert middle_job.accepted is not None
        assert middle_job.accepted.delegate_id is not None
        assert middle_job.trace_id == job.trace_id
        texts = [event.kind async for event in middle_job.events() if isinstance(event, arcp_trio.Event)]
        assert texts == ["log", "delegate"]
        (below,) = middle_job.children
        assert await below.result() == "from below"
        assert below.children == ()


@pytest.mark.requirement("P10.1", "P8.5")
@pytest.mark.parametrize("features", [None, OTHERS])
async def test_a_childs_acceptance_answers_no_submit(
    features: list[str] | None, autojump_clock: trio.testing.MockClock
) -> None:
    options = {} if features is None else {"features": features}
    async with open_played(**options) as (_, first, client), trio.open_nursery() as nursery:  # type: ignore[arg-type]
        job = await start_job(nursery, client, first)
        waiting = Call(nursery, client.submit, "a")
        submit = await first.expect("job.submit")
        await delegate(first, 1, "job_2")
        await accept_child(first, "job_2", trace_id=submit["trace_id"])
        assert not waiting.done
        assert [child.job_id for child in job.children] == ["job_2"]
        await first.accept(submit, "job_3")
        assert waiting.value.job_id == "job_3"
        (child,) = job.children
        texts: list[Any] = []
        reader = Call(nursery, read, child.events(), texts)
        await first.log(2, "job_2", "of the child")
        await first.result(3, "of the child", "job_2")
        assert reader.done
        assert (texts, await child.result()) == (["of the child"], "of the child")
        await first.result(4)
        await first.result(5, job_id="job_3")
        assert await job.result() == "done"


@pytest.mark.requirement("P6.9", "P10.1")
async def test_an_acceptance_that_comes_again_behind_a_resume_is_no_other_child(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await delegate(first, 1, "job_2")
        await accept_child(first, "job_2")
        (child,) = job.children
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2")
        await accept_child(second, "job_2")
        await second.replayed()
        assert job.children == (child,)
        await second.result(2, "of the child", "job_2")
        await second.result(3)
        assert (await child.result(), await job.result()) == ("of the child", "done")


@pytest.mark.requirement("P10.1")
async def test_a_child_that_was_subscribed_to_before_its_acceptance_is_one_handle(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The runtime may hold it back; whether the subscription is granted, refused or given up does not matter then."""
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        calls = {}
        for number, child_id in enumerate(("job_2", "job_3", "job_4"), 1):
            await delegate(first, number, child_id)
            calls[child_id] = Call(nursery, client.subscribe, child_id)
            request = await first.expect("job.subscribe")
            await accept_child(first, child_id)
            if child_id == "job_2":
                there = {"job_id": child_id, "current_status": "running", "agent": "b@1", "request_id": request["id"]}
                await first.say("job.subscribed", there, job_id=child_id)
            elif child_id == "job_3":
                refusal = {"code": "INTERNAL_ERROR", "message": "too many", "request_id": request["id"]}
                await first.say("session.error", refusal)
            else:
                calls[child_id].scope.cancel()
                await trio.testing.wait_all_tasks_blocked()
        assert isinstance(calls["job_3"].error, arcp_trio.InternalError)
        assert calls["job_2"].value is job.children[0]
        for number, child in enumerate(job.children, 4):
            assert not child.is_subscription
            await first.result(number, child.job_id, child.job_id)
            assert await child.result() == child.job_id
        await first.nothing_came()
        await first.result(7)


@pytest.mark.requirement("P10.1", "K08")
async def test_so_many_children_are_kept_and_no_more(autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.ClientLimits(children=2, close_seconds=0.01)
    async with open_played(limits=limits) as (_, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        for child_id in ("job_2", "job_3", "job_4"):
            await accept_child(first, child_id)
        # Two run: the third is not followed, and what it says is dropped.
        assert [child.job_id for child in job.children] == ["job_2", "job_3"]
        await first.log(1, "job_4")
        await first.result(2, job_id="job_4")
        await first.result(3, job_id="job_3")
        # One that has ended gives way.
        await accept_child(first, "job_5")
        assert [child.job_id for child in job.children] == ["job_2", "job_5"]
        for number, child_id in enumerate(("job_2", "job_5"), 4):
            await first.result(number, job_id=child_id)
        await first.result(6)
        assert await job.result() == "done"


@pytest.mark.requirement("P10.1")
async def test_a_child_of_nobody_is_nobodys(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await accept_child(first, "job_2", "job_77")
        # Nor is a job its own child, or another's that was submitted.
        await accept_child(first, "job_1", "job_1")
        other = await start_job(nursery, client, first, "job_3")
        assert other.children == ()
        await first.result(1, job_id="job_2")
        await first.result(2)
        await first.result(3, job_id="job_3")
        assert (await job.result(), await other.result()) == ("done", "done")
        assert all(child is not job for child in job.children)
