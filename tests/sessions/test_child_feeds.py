"""A child's feed joins the session of its family: whole, in its place, and never beside a submit that waits (P10.1).

Several peers take an acceptance that they have not asked for as the answer to their own submit (interop.md, section
3.16). Today every submit is answered as it is read; here one is held open as one that waits will be.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, RawClient, open_raw, terminals
from jobs.parents import ANY, Family, accepted, numbers

import arcp_trio
from arcp_trio.sessions.session import Session


class Told(Family):
    """A parent that delegates what the test tells it to."""

    def __init__(self) -> None:
        super().__init__(self._work)
        self.orders: list[tuple[str, Any]] = []
        self.more = trio.Event()
        self.over = False

        @self.agents.register("lines")
        async def lines(job: arcp_trio.JobContext, count: int) -> None:
            for number in range(count):
                await job.log("info", f"line {number}")
                await job.progress(number)
            await self.gate.wait()

    async def _work(self, job: arcp_trio.JobContext) -> None:
        while not self.over:
            await self.more.wait()
            self.more = trio.Event()
            orders, self.orders = self.orders, []
            for agent, value in orders:
                await job.delegate(agent, value)

    async def order(self, *orders: tuple[str, Any]) -> None:
        self.orders += orders
        self.more.set()
        await trio.testing.wait_all_tasks_blocked()

    async def end(self) -> None:
        self.over = True
        await self.order()


@asynccontextmanager
async def open_told(**limits: Any) -> AsyncGenerator[tuple[Told, arcp_trio.Runtime, RawClient, Session, str]]:
    """Open a runtime with a session whose job waits for orders."""
    family = Told()
    bounds = arcp_trio.Limits(**limits)
    async with arcp_trio.open_runtime(family.agents, limits=bounds) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("parent", lease_request=ANY)
        await client.settle()
        (session,) = runtime._sessions._sessions.values()
        yield family, runtime, client, session, job_id


def messages(frames: list[Frame], job_id: str) -> list[str]:
    """Return what a job has logged."""
    events = [frame["payload"] for frame in frames if frame["type"] == "job.event" and frame["job_id"] == job_id]
    return [event["body"]["message"] for event in events if event["kind"] == "log"]


def child_of(frames: list[Frame], number: int = 0) -> str:
    """Return the id of a child, by the delegations that were told of."""
    events = [frame["payload"] for frame in frames if frame["type"] == "job.event"]
    return str([event["body"]["child_job_id"] for event in events if event["kind"] == "delegate"][number])


@pytest.mark.requirement("P10.1", "P7.2")
async def test_a_child_waits_for_the_submits_that_are_outstanding_and_then_comes_whole() -> None:
    async with open_told() as (family, _, client, session, job_id):
        session.submit_begins()
        session.submit_begins()
        assert session.submits_outstanding == 2
        await family.order(("lines", 3))
        frames = await client.settle()
        # Its parent's event is its parent's: that is not held back.
        assert [frame["job_id"] for frame in frames] == [job_id]
        child_id = child_of(frames)
        session.submit_answered()
        assert await client.settle() == []
        session.submit_answered()
        frames = await client.settle()
        assert [frame["type"] for frame in frames] == ["job.accepted"] + ["job.event"] * 6
        assert {frame["job_id"] for frame in frames} == {child_id}
        assert messages(frames, child_id) == ["line 0", "line 1", "line 2"]
        family.gate.set()
        await family.end()
        assert [frame["job_id"] for frame in terminals(await client.settle())] == [child_id, job_id]
        assert numbers(client.received) == list(range(1, 10))


@pytest.mark.requirement("P10.1", "P7.2", "P7.8")
async def test_a_child_that_has_ended_meanwhile_comes_with_its_end() -> None:
    async with open_told() as (family, runtime, client, session, job_id):
        session.submit_begins()
        family.gate.set()
        await family.order(("lines", 2), ("echo", "done"))
        await client.settle()
        assert runtime.statistics().jobs_running == 1
        first, second = (child_of(client.received, number) for number in (0, 1))
        session.submit_answered()
        frames = await client.settle()
        assert [frame["job_id"] for frame in accepted(frames)] == [first, second]
        ends = terminals(frames)
        assert [frame["job_id"] for frame in ends] == [first, second]
        assert ends[1]["payload"]["result"] == "done"
        # Each in its order, and nothing twice.
        for child_id in (first, second):
            kinds = [frame["type"] for frame in frames if frame["job_id"] == child_id]
            assert (kinds[0], kinds[-1], kinds.count("job.accepted")) == ("job.accepted", "job.result", 1)
        await family.end()
        assert [frame["job_id"] for frame in terminals(await client.settle())] == [job_id]


@pytest.mark.requirement("P10.1")
async def test_a_real_submit_between_is_answered_before_any_child_is_told_of() -> None:
    async with open_told() as (family, _, client, session, _):
        session.submit_begins()
        await family.order(("echo", 1))
        answered = await client.submit("echo", "mine")
        session.submit_answered()
        await client.settle()
        own = [frame["job_id"] for frame in accepted(client.received)]
        assert own[1:] == [answered, child_of(client.received)]
        await family.end()


@pytest.mark.requirement("P10.1", "P7.12", "P7.13")
async def test_a_child_that_is_not_told_of_yet_can_be_cancelled_all_the_same() -> None:
    """Its parent's event has told its id."""
    async with open_told() as (family, _, client, session, _):
        session.submit_begins()
        await family.order(("sleep", None))
        await client.settle()
        child_id = child_of(client.received)
        await client.request("job.cancel", {"job_id": child_id})
        assert [frame["type"] for frame in await client.settle()] == ["job.cancelled"]
        session.submit_answered()
        assert [frame["type"] for frame in await client.settle()] == ["job.accepted", "job.error"]
        await family.end()


@pytest.mark.requirement("P7.17", "P7.20", "P10.1")
@pytest.mark.parametrize("ended", [False, True])
async def test_a_subscription_takes_the_place_of_what_waits(ended: bool) -> None:
    async with open_told() as (family, _, client, session, _):
        session.submit_begins()
        if ended:
            family.gate.set()
        await family.order(("lines", 2))
        await client.settle()
        child_id = child_of(client.received)
        await client.request("job.subscribe", {"job_id": child_id, "history": True})
        await client.settle()
        session.submit_answered()
        family.gate.set()
        await family.end()
        await client.settle()
        assert messages(client.received, child_id) == ["line 0", "line 1"]
        assert len(terminals(client.received, child_id)) == 1
        kinds = [frame["type"] for frame in client.received if frame.get("job_id") == child_id]
        assert kinds[0] == "job.subscribed"
        assert "job.accepted" not in kinds


@pytest.mark.requirement("P10.1")
async def test_past_the_limit_the_next_one_is_told_of_at_once() -> None:
    async with open_told(waiting_children=2) as (family, _, client, session, _):
        session.submit_begins()
        await family.order(*(("sleep", number) for number in range(4)))
        await client.settle()
        children = [child_of(client.received, number) for number in range(4)]
        assert [frame["job_id"] for frame in accepted(client.received)][1:] == children[2:]
        session.submit_answered()
        await client.settle()
        assert [frame["job_id"] for frame in accepted(client.received)][3:] == children[:2]


@pytest.mark.requirement("P6.18", "P10.1")
async def test_histories_that_have_waited_come_as_there_is_room_and_close_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each has as many events as the history keeps: together more than what may be unsent."""
    async with open_told(window_events=400, history_events=100) as (family, _, client, session, job_id):
        session.submit_begins()
        await family.order(*(("lines", 50) for _ in range(8)))
        await client.settle()
        children = [child_of(client.received, number) for number in range(8)]
        session.submit_answered()
        # No turn for the writer yet: only what has room is unsent.
        assert session.stream.unsent_events <= 200
        waiting = session.waiting
        assert waiting > 0
        # Another submit meanwhile changes nothing.
        session.submit_begins()
        session.submit_answered()
        assert session.waiting == waiting
        frames = await client.settle()
        assert [frame["job_id"] for frame in accepted(frames)] == children
        for child_id in children:
            assert messages(frames, child_id) == [f"line {number}" for number in range(50)]
        assert session.is_connected
        assert session.waiting == 0
        family.gate.set()
        await family.end()
        await client.settle()
        assert {frame["job_id"] for frame in terminals(client.received)} == {*children, job_id}
        assert numbers(client.received) == list(range(1, len(numbers(client.received)) + 1))


@pytest.mark.requirement("P7.17", "P10.1")
async def test_a_subscription_takes_the_place_of_what_waits_for_room() -> None:
    async with open_told(window_events=200, history_events=100) as (family, runtime, client, session, _):
        session.submit_begins()
        await family.order(*(("lines", 30) for _ in range(4)))
        await client.settle()
        child_id = child_of(client.received, 3)
        session.submit_answered()
        child = runtime._directory.find(child_id)
        assert child is not None
        waiting = session.waiting
        session.drop_joining(child.feed)
        session.drop_joining(child.feed)
        assert session.waiting == waiting - 1
        frames = await client.settle()
        assert [frame["job_id"] for frame in accepted(frames)] == [child_of(client.received, n) for n in range(3)]
        family.gate.set()
        await family.end()


@pytest.mark.requirement("P6.12", "P10.1")
async def test_a_session_that_still_has_children_to_tell_of_waits_for_its_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_told(resume_seconds=10) as (family, runtime, client, session, _):
        session.submit_begins()
        family.gate.set()
        await family.order(("echo", 1))
        await family.end()
        await client.settle()
        await client.request("session.ack", {"last_processed_seq": 2})
        await client.settle()
        assert (session.followed, session.stream.kept_events, runtime.statistics().jobs_running) == (0, 0, 0)
        await client.transport.abort()
        await trio.testing.wait_all_tasks_blocked()
        assert runtime.statistics().sessions_waiting == 1
        session.submit_answered()
        assert session.stream.kept_events == 1
        await trio.sleep(20)
        assert runtime.statistics().sessions_waiting == 0
        # What comes too late is nobody's.
        session.submit_begins()
        session.submit_answered()


@pytest.mark.requirement("P10.1", "P6.12")
async def test_a_session_that_has_ended_is_told_of_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_told(resume_seconds=1) as (family, runtime, client, session, _):
        session.submit_begins()
        await family.order(("sleep", None))
        await client.transport.abort()
        await trio.sleep(5)
        assert runtime.statistics().sessions_waiting == 0
        session.submit_answered()
        await family.order(("echo", 1))
        assert (session.followed, session.stream.unsent_events) == (0, 0)
        assert runtime.statistics().jobs_running == 2
