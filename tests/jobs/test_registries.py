"""Agents and their versions, the directory of jobs, the feed, the timers, the mailbox and the pacer."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from helpers import TOKEN, Script, make_hello, open_raw

import arcp_trio
from arcp_trio.jobs.agents import Agents
from arcp_trio.jobs.feed import Entry, JobFeed, Shape
from arcp_trio.jobs.history import Histories
from arcp_trio.jobs.lifecycle import Cancel, FinalStatus, Outcome, Start
from arcp_trio.jobs.mailbox import Mailbox
from arcp_trio.jobs.pacer import Pacer
from arcp_trio.timers import Timers
from arcp_trio.wire.dialects import SPEC


async def nothing(job: arcp_trio.JobContext, value: Any) -> None:
    pass


@pytest.mark.requirement("P7.16", "E06")
@pytest.mark.parametrize(
    ("versions", "highest"),
    [
        (["9", "10"], "10"),
        (["1.9.0", "1.10.0", "1.2.0"], "1.10.0"),
        (["2.0.0-rc1", "2.0.0", "1.0.0"], "2.0.0"),
        (["1.0.0"], "1.0.0"),
    ],
)
def test_the_highest_version_is_the_default(versions: list[str], highest: str) -> None:
    for order in (versions, versions[::-1]):
        agents = Agents()
        for version in order:
            agents.register("a", version=version)(nothing)
        assert agents.inventory().defaults == {"a": highest}
        assert agents.resolve("a", {}).version == highest


@pytest.mark.requirement("P7.16", "P6.6")
def test_a_chosen_default_wins_and_is_advertised() -> None:
    agents = Agents()
    agents.register("a", version="1.0.0", default=True)(nothing)
    agents.register("a", version="2.0.0")(nothing)
    agents.register("b")(nothing)
    entries = agents.inventory().entries
    assert [(entry.name, entry.versions, entry.default) for entry in entries] == [
        ("a", ("1.0.0", "2.0.0"), "1.0.0"),
        ("b", ("1.0.0",), "1.0.0"),
    ]
    assert agents.resolve("a", {}).resolved == "a@1.0.0"
    assert agents.resolve("a", {"a": "2.0.0"}).resolved == "a@2.0.0"


def test_what_cannot_be_registered() -> None:
    agents = Agents()
    agents.register("a", default=True)(nothing)
    for name, version in (("A", "1"), ("", "1"), ("a b", "1"), ("-a", "1"), ("b", ""), ("b", "1 0"), ("b", "é")):
        with pytest.raises(ValueError, match="expected"):
            agents.register(name, version=version)
    with pytest.raises(TypeError, match=r'@agents.register\("name"\)'):
        agents.register(nothing)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="registered already"):
        agents.register("a")(nothing)
    with pytest.raises(ValueError, match="default"):
        agents.register("a", version="2", default=True)(nothing)


@pytest.mark.requirement("P7.16", "E03")
async def test_resolution_on_the_wire(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        for agent, code in (
            ("nobody", "AGENT_NOT_AVAILABLE"),
            ("nobody@1.0.0", "AGENT_NOT_AVAILABLE"),
            ("echo@9", "AGENT_VERSION_NOT_AVAILABLE"),
            ("Echo", "INVALID_REQUEST"),
            ("echo@", "INVALID_REQUEST"),
            ("x" * 10_000, "INVALID_REQUEST"),
        ):
            await client.request("job.submit", {"agent": agent})
            answer = await client.receive_until("session.error")
            assert answer["payload"]["code"] == code
            assert len(answer["payload"]["message"]) < 500
            if code == "AGENT_VERSION_NOT_AVAILABLE":
                assert answer["payload"]["details"] == {"available": ["1.0.0"]}
        await client.submit("echo@1.0.0", 1)
        assert client.received[-1]["payload"]["agent"] == "echo@1.0.0"


@pytest.mark.requirement("P6.4", "Q14")
async def test_a_version_needs_its_feature(script: Script) -> None:
    hello = make_hello(features=["progress"])
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime, hello=hello) as client:
        await client.request("job.submit", {"agent": "echo@1.0.0"})
        assert (await client.receive())["payload"]["code"] == "INVALID_REQUEST"


@pytest.mark.requirement("P7.16", "P6.2")
async def test_a_forbidden_agent_is_not_there(script: Script) -> None:
    verifier = arcp_trio.StaticTokens(
        {TOKEN: arcp_trio.Principal(name="me", agents=frozenset({"echo"})), "other": "you"}
    )
    async with (
        arcp_trio.open_runtime(script.agents, verifier=verifier) as runtime,
        open_raw(runtime, principal=None) as client,
        open_raw(runtime, principal=None, hello=make_hello(token="other")) as other,
    ):
        agents = client.received[0]["payload"]["capabilities"]["agents"]
        assert [agent["name"] for agent in agents] == ["echo"]
        assert len(other.received[0]["payload"]["capabilities"]["agents"]) > 1
        await client.request("job.submit", {"agent": "sleep"})
        assert (await client.receive())["payload"]["code"] == "AGENT_NOT_AVAILABLE"
        await client.submit("echo", 1)


@pytest.mark.requirement("P7.16", "M08")
async def test_a_bare_name_means_what_the_sessions_welcome_said(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as early:
        script.agents.register("echo", version="2.0.0")(nothing)
        async with open_raw(runtime) as late:
            await early.submit("echo", 1)
            await late.submit("echo", 1)
            assert early.received[-1]["payload"]["agent"] == "echo@1.0.0"
            assert late.received[-1]["payload"]["agent"] == "echo@2.0.0"


@pytest.mark.requirement("M02")
async def test_records_are_bounded_by_age_and_number(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.Limits(retention_seconds=100, retention_records=3)
    async with (
        arcp_trio.open_runtime(script.agents, limits=limits) as runtime,
        runtime.open_session(principal="me") as client,
    ):
        jobs = []
        for number in range(5):
            job = await client.submit("echo", number)
            await job.result()
            jobs.append(job)
            await trio.sleep(10)
        assert runtime.statistics().jobs_retained == 3
        for job in jobs[:2]:
            with pytest.raises(arcp_trio.JobNotFoundError):
                await job.cancel()
        assert (await jobs[2].cancel()).status == "success"
        await trio.sleep(71)
        assert runtime.statistics().jobs_retained == 2
        await trio.sleep(20)
        assert (runtime.statistics().jobs_retained, runtime.statistics().timers) == (0, 0)
        assert runtime._directory.retained_bytes == 0


@pytest.mark.requirement("M02")
async def test_records_are_bounded_by_bytes(script: Script) -> None:
    limits = arcp_trio.Limits(retention_bytes=2500)
    async with (
        arcp_trio.open_runtime(script.agents, limits=limits) as runtime,
        runtime.open_session(principal="me") as client,
    ):
        for number in range(20):
            await (await client.submit("echo", number)).result()
        assert 1 <= runtime.statistics().jobs_retained < 20
        assert runtime._directory.retained_bytes <= 2500


async def test_timers_run_in_order_at_their_time(autojump_clock: trio.testing.MockClock) -> None:
    timers = Timers()
    ran: list[tuple[str, float]] = []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        start = trio.current_time()
        for name, delay in (("c", 30), ("a", 10), ("b", 20), ("again", 10)):
            timers.call_at(start + delay, lambda name=name: ran.append((name, trio.current_time() - start)))
        dropped = timers.call_at(start + 15, lambda: ran.append(("dropped", 0)))
        dropped.cancel()
        dropped.cancel()
        await trio.sleep(12)
        timers.call_at(trio.current_time() - 1, lambda: ran.append(("late", trio.current_time() - start)))
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert ran == [("a", 10), ("again", 10), ("late", 12), ("b", 20), ("c", 30)]
    assert len(timers) == 0


async def test_cancelled_timers_do_not_pile_up(autojump_clock: trio.testing.MockClock) -> None:
    timers = Timers()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        kept = timers.call_at(trio.current_time() + 10_000, lambda: None)
        for _ in range(10_000):
            timers.call_at(trio.current_time() + 3600, lambda: None).cancel()
        assert len(timers) == 1
        assert len(timers._heap) < 200
        kept.cancel()
        nursery.cancel_scope.cancel()


async def test_a_timer_callback_may_cancel_and_set_timers(autojump_clock: trio.testing.MockClock) -> None:
    timers = Timers()
    ran: list[str] = []

    def first() -> None:
        second.cancel()
        timers.call_at(trio.current_time() + 5, lambda: ran.append("third"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        now = trio.current_time()
        timers.call_at(now + 10, first)
        second = timers.call_at(now + 10, lambda: ran.append("second"))
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert ran == ["third"]


CANCEL = Cancel(1.0, Outcome(final_status=FinalStatus.CANCELLED))


async def test_of_cancels_only_one_waits_in_a_mailbox() -> None:
    mailbox = Mailbox()
    assert mailbox.post_cancel(CANCEL)
    assert not mailbox.post_cancel(CANCEL)
    mailbox.post(Start())
    assert len(mailbox) == 2
    assert mailbox.take() is CANCEL
    assert mailbox.post_cancel(CANCEL)
    assert isinstance(mailbox.take(), Start)
    assert mailbox.take() is CANCEL
    assert mailbox.take() is None


async def test_a_mailbox_wakes_its_reader_and_survives_its_cancellation() -> None:
    mailbox = Mailbox()
    with trio.testing.assert_checkpoints():
        mailbox.post(Start())
        await mailbox.wait()
    assert mailbox.take() is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mailbox.wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    # Nobody reads: posting wakes nobody who has left.
    mailbox.post(Start())
    assert len(mailbox) == 1


async def test_a_slice_begins_anew_once_in_a_turn() -> None:
    now = 0.0
    pacer = Pacer(1.0, clock=lambda: now)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pacer.run)
        await trio.testing.wait_all_tasks_blocked()
        assert pacer.slice_is_over()
        async with trio.open_nursery() as agents:
            for _ in range(20):
                agents.start_soon(pacer.yield_turn)
        await trio.testing.wait_all_tasks_blocked()
        # Twenty asked, one slice was given.
        assert pacer.slice_end == 1.0
        assert not pacer.slice_is_over()
        now = 1.0
        assert pacer.slice_is_over()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("rest_of_turn", "slice_seconds"), [(0.0, 1.0), (0.9, 1.0), (3.0, 3.0), (100.0, 8.0)])
async def test_a_slice_is_as_long_as_the_rest_of_a_turn_within_a_bound(
    rest_of_turn: float, slice_seconds: float
) -> None:
    """As long as this thread has worked from the first agent's yielding to the pacer's turn."""
    worked = iter([5.0, 5.0 + rest_of_turn])
    pacer = Pacer(1.0, clock=lambda: 100.0, work_clock=lambda: next(worked))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pacer.run)
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as agents:
            for _ in range(3):
                agents.start_soon(pacer.yield_turn)
        await trio.testing.wait_all_tasks_blocked()
        assert pacer.slice_end == 100.0 + slice_seconds
        nursery.cancel_scope.cancel()


class Listener:
    """A follower that writes down what it is told."""

    shape = Shape(SPEC, frozenset())

    def __init__(self) -> None:
        self.told: list[str] = []

    def append(self, entry: Entry, feed: JobFeed) -> None:
        self.told.append(type(entry).__name__)

    def job_ended(self, feed: JobFeed) -> None:
        self.told.append("ended")

    def child_started(self, child: object) -> None:
        self.told.append("child")


@pytest.mark.requirement("P7.8", "L01", "L06")
def test_a_feed_publishes_once_and_lets_its_followers_go() -> None:
    feed = JobFeed("job_1", "ab" * 16, Histories(events=10, size=1000, total=1000).open("me"))
    first, second, left = Listener(), Listener(), Listener()
    for follower in (first, second, left, first):
        feed.follow(follower)
    feed.unfollow(left)
    feed.append_event(b"{}", timestamp="t", feature=None)
    outcome = Outcome(final_status=FinalStatus.CANCELLED, code="CANCELLED")
    feed.publish_terminal(outcome, timestamp="t")
    assert first.told == second.told == ["EventEntry", "TerminalEntry", "ended"]
    assert left.told == []
    assert (feed.closed, feed.followers, feed.job_seq) == (True, 0, 2)
    with pytest.raises(AssertionError, match="a second terminal event"):
        feed.publish_terminal(outcome, timestamp="t")
    with pytest.raises(AssertionError, match="after the terminal event"):
        feed.append_event(b"{}", timestamp="t", feature=None)
    # Whoever comes too late is told nothing by any of that.
    assert first.told[3:] == []


@pytest.mark.requirement("P6.18", "L06")
def test_a_follower_that_leaves_while_it_is_told_disturbs_no_other() -> None:
    """One that has become too slow closes at once, in the middle of the handing out."""
    feed = JobFeed("job_1", "ab" * 16, Histories(events=10, size=1000, total=1000).open("me"))

    class Leaver(Listener):
        def append(self, entry: Entry, feed: JobFeed) -> None:
            super().append(entry, feed)
            feed.unfollow(self)

    listeners = [Listener(), Leaver(), Listener()]
    for follower in listeners:
        feed.follow(follower)
    for _ in range(2):
        feed.append_event(b"{}", timestamp="t", feature=None)
    assert [len(listener.told) for listener in listeners] == [2, 1, 2]
