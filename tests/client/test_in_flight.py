"""What was asked when a connection broke: answered behind the next one, or failed; never forgotten or done twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from playing import OTHERS, OURS, Call, Connection, Stuck, open_played, start_job

import arcp_trio

if TYPE_CHECKING:
    from helpers import Frame

REPEATABLE = ["cancel", "subscribe", "list", "submit with a key"]
TYPES = {
    "cancel": "job.cancel",
    "subscribe": "job.subscribe",
    "list": "session.list_jobs",
    "submit with a key": "job.submit",
    "submit": "job.submit",
}


def ask(nursery: trio.Nursery, client: arcp_trio.Client, job: arcp_trio.JobHandle, kind: str) -> Call:
    if kind == "cancel":
        return Call(nursery, job.cancel)
    if kind == "subscribe":
        return Call(nursery, client.subscribe, "job_9")
    if kind == "list":
        return Call(nursery, anext, client.list_jobs())
    return Call(nursery, client.submit, "b", idempotency_key="k" if "key" in kind else None)


async def answer(connection: Connection, kind: str, request: Frame) -> None:
    names: Frame = {"request_id": request["id"]}
    if kind == "cancel":
        await connection.say("job.cancelled", {"job_id": "job_1", **names}, job_id="job_1")
    elif kind == "subscribe":
        await connection.say("job.subscribed", {"job_id": "job_9", "current_status": "running", **names})
    elif kind == "list":
        await connection.say("session.jobs", {"jobs": [], "next_cursor": None, **names})
    else:
        await connection.accept(request, "job_2")


def without_time(frame: Frame) -> Frame:
    return {name: value for name, value in frame.items() if name != "timestamp"}


@pytest.mark.requirement("K02", "P5.7", "P6.9")
@pytest.mark.parametrize("kind", REPEATABLE)
async def test_what_changes_nothing_twice_is_asked_again(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        call = ask(nursery, client, job, kind)
        request = await first.expect(TYPES[kind])
        connection = first
        for number in range(2, 4):
            await connection.drop()
            connection = await played.next()
            await connection.welcome(f"rt_{number}")
            # The very same frame: a runtime that remembers messages sees that it is a retransmission.
            assert await connection.expect(TYPES[kind]) == request
        await connection.replayed()
        assert not call.done
        await answer(connection, kind, request)
        assert call.error is None
        assert call.done
        # An answer that comes again, from the replay, is nobody's.
        await answer(connection, kind, request)
        await connection.nothing_came()


@pytest.mark.requirement("K02", "D2")
@pytest.mark.parametrize("kind", REPEATABLE)
async def test_other_runtimes_are_asked_again_with_a_new_id(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    """Some drop a message whose id they have seen, and say nothing."""
    async with open_played(features=OTHERS) as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        call = ask(nursery, client, job, kind)
        request = await first.expect(TYPES[kind])
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2")
        again = await second.expect(TYPES[kind])
        assert again["id"] != request["id"]
        assert without_time({**again, "id": request["id"]}) == without_time(request)
        await answer(second, kind, again)
        assert call.error is None
        assert call.done


@pytest.mark.requirement("P6.9", "P7.4")
async def test_a_submit_without_a_key_is_answered_by_the_replay(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        call = Call(nursery, client.submit, "b")
        request = await first.expect("job.submit")
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2")
        await second.nothing_came()
        await second.accept(request, "job_2")
        await second.result(1, "late", "job_2")
        await second.replayed()
        assert await call.value.result() == "late"


@pytest.mark.requirement("K02", "P6.9")
async def test_a_submit_without_a_key_fails_once_the_replay_is_over(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        lost = Call(nursery, client.submit, "b")
        await first.expect("job.submit")
        await first.drop()
        # Asked without a connection: it is sent with the next one, and that one's replay does not end it.
        waiting = Call(nursery, client.submit, "c")
        second = await played.next()
        await second.welcome("rt_2")
        request = await second.expect("job.submit")
        assert request["payload"]["agent"] == "c"
        assert not lost.done
        # This one breaks too, before its replay is over.
        await second.drop()
        third = await played.next()
        await third.welcome("rt_3")
        await third.nothing_came()
        assert not lost.done
        await third.accept(request, "job_c")
        assert waiting.value.job_id == "job_c"
        await third.replayed()
        assert isinstance(lost.error, arcp_trio.ConnectionLostError)
        assert "the job may run" in str(lost.error)
        # The session goes on.
        job = await start_job(nursery, client, third, "job_d")
        await third.result(1, job_id="job_d")
        assert await job.result() == "done"
        # The acceptance of what has failed is nobody's.
        await third.accept({"id": "msg_late"}, "job_late")
        assert "job_late" not in client._session.jobs


@pytest.mark.requirement("K02")
async def test_elsewhere_a_submit_without_a_key_fails_with_its_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_played(features=OTHERS) as (played, first, client), trio.open_nursery() as nursery:
        call = Call(nursery, client.submit, "b")
        await first.expect("job.submit")
        waiting = Call(nursery, client.submit, "c")
        await trio.testing.wait_all_tasks_blocked()
        played.is_down = True
        await first.drop()
        assert isinstance(call.error, arcp_trio.ConnectionLostError)
        assert "the job may run" in str(call.error)
        played.is_down = False
        second = await played.next()
        await second.welcome("rt_2")
        await second.accept(await second.expect("job.submit"), "job_c")
        assert waiting.value.job_id == "job_c"


@pytest.mark.requirement("K02")
@pytest.mark.parametrize("features", [OURS, OTHERS], ids=["ours", "others"])
async def test_what_no_writer_took_was_never_sent(features: list[str], autojump_clock: trio.testing.MockClock) -> None:
    """A submit without a key that stood behind a stuck write is simply sent with the next connection."""
    async with open_played(features=features) as (played, first, client), trio.open_nursery() as nursery:
        # Shows that it correlates, so that submits need not wait for each other.
        await start_job(nursery, client, first, "job_0")
        link = client._session.link
        assert link is not None
        link._writer._transport = Stuck(link.transport)
        taken = Call(nursery, client.submit, "taken")
        await trio.testing.wait_all_tasks_blocked()
        behind = Call(nursery, client.submit, "behind")
        await trio.testing.wait_all_tasks_blocked()
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2")
        request = await second.expect("job.submit")
        assert request["payload"]["agent"] == "behind"
        await second.replayed()
        assert isinstance(taken.error, arcp_trio.ConnectionLostError)
        await second.accept(request)
        assert behind.value.job_id == "job_1"


@pytest.mark.requirement("K02")
@pytest.mark.parametrize("features", [OURS, OTHERS], ids=["ours", "others"])
@pytest.mark.parametrize("kind", [*REPEATABLE, "submit"])
async def test_whoever_leaves_while_there_is_no_connection_leaves_nothing(
    kind: str, features: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    async with open_played(features=features) as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        played.is_down = True
        await first.drop()
        call = ask(nursery, client, job, kind)
        await trio.testing.wait_all_tasks_blocked()
        call.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert list(client._session.pending) == []
        assert list(client._session.jobs) == ["job_1"]
        played.is_down = False
        second = await played.next()
        await second.welcome("rt_2")
        # What was taken back before it was sent is not sent; a subscription, for good measure, is taken back twice.
        frames = [frame["type"] for frame in await second.raw.settle()]
        assert frames in ([], ["job.unsubscribe"] if kind == "subscribe" else [])


@pytest.mark.requirement("K02", "D40")
async def test_a_cancel_that_is_never_answered_is_bounded_by_time_with_a_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        played.is_down = True
        await first.drop()
        call = Call(nursery, job.cancel)
        await trio.sleep(60)
        assert not call.done
        played.is_down = False
        second = await played.next()
        await second.welcome("rt_2")
        await trio.sleep(100)
        assert isinstance(call.error, arcp_trio.InternalError)
        assert "did not answer the cancel" in str(call.error)
        # Another job's acknowledgement answers nobody.
        await second.expect("job.cancel")


@pytest.mark.requirement("P7.13", "P6.9")
async def test_an_acknowledgement_that_comes_again_answers_no_other_cancel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        one = Call(nursery, job.cancel)
        request = await first.expect("job.cancel")
        acknowledged: Frame = {"job_id": "job_1", "request_id": request["id"]}
        await first.say("job.cancelled", acknowledged, job_id="job_1", correlation_id=request["id"])
        assert one.value.applied
        two = Call(nursery, job.cancel)
        request = await first.expect("job.cancel")
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2")
        await second.say("job.cancelled", acknowledged, job_id="job_1", correlation_id=acknowledged["request_id"])
        assert not two.done
        payload = {"request_id": request["id"], "applied": False, "job_id": "job_1", "job_status": "running"}
        await second.say("x-arcp-trio.reply", payload)
        assert two.value == arcp_trio.CancelOutcome(applied=False, status="running")
