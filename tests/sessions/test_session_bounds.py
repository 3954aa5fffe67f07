"""What one session, or one principal, may cost: what is kept for it is bounded, also where nothing counts it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Script, connect_raw, make_hello, open_raw
from sessions.resuming import resume, resume_hello, sequence

import arcp_trio
from arcp_trio.sessions.requests import RequestHandler
from arcp_trio.sessions.retransmissions import Answer, Retransmissions


@pytest.mark.requirement("P7.14")
async def test_a_cancel_that_waits_keeps_no_more_of_its_reason_than_is_sent(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("stubborn")
        for _ in range(4):
            await client.request("job.cancel", {"job_id": job_id, "reason": "x" * 100_000})
        await client.settle()
        (actor,) = runtime._directory.actors()
        assert len(actor._waiting_cancels) == 3
        assert all(len(request.reason or "") <= 1000 for request in actor._waiting_cancels)
        script.gate.set()


@pytest.mark.requirement("P5.7")
def test_the_answers_that_are_held_are_bounded_by_their_bytes() -> None:
    """The ids stay: what was handled is not handled again, only its answer is not there any more."""
    messages = Retransmissions(100, 10_000)
    for number in range(50):
        assert messages.recognise(str(number), b"text") is None
        messages.hold(str(number), bytes(1000), Answer.REPLY)
    held = [messages.recognise(str(number), b"text") for number in range(50)]
    assert held == [(None, Answer.REPLY)] * 40 + [(bytes(1000), Answer.REPLY)] * 10
    # Another answer to the same message takes the place of the first.
    messages.hold("49", bytes(10), Answer.RIDER)
    messages.hold("49", bytes(990), Answer.RIDER)
    assert messages.recognise("40", b"text") == (bytes(1000), Answer.REPLY)
    # Those of messages that are forgotten count no more.
    for number in range(50, 200):
        messages.recognise(str(number), b"text")
    for number in range(190, 200):
        messages.hold(str(number), bytes(1000), Answer.REPLY)
    assert messages.recognise("190", b"text") == (bytes(1000), Answer.REPLY)


@pytest.mark.requirement("P7.20", "P14.4")
async def test_who_subscribes_to_an_ended_job_leaves_nothing_in_its_record(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", "x" * 10_000)
        await client.receive_until("job.result")
        await client.request("job.subscribe", {"job_id": job_id})
        await client.receive_until("job.result")
        record = runtime._directory.find(job_id)
        assert record is not None
        assert record.feed.terminal is not None
        assert not record.feed.terminal._tails


async def test_the_details_of_an_error_count_among_what_is_kept(script: Script) -> None:
    script.error = arcp_trio.InvalidRequestError("no", details={"why": "x" * 10_000})
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.submit("fail")
        await client.receive_until("job.error")
        assert runtime._directory.retained_bytes > 10_000


def talking() -> arcp_trio.Agents:
    agents = arcp_trio.Agents()

    @agents.register("talk")
    async def talk(job: arcp_trio.JobContext, value: Any) -> None:
        for number in range(900):
            await job.log("info", f"{number} " + "x" * 100)
        await trio.sleep_forever()

    return agents


@pytest.mark.requirement("P7.20")
async def test_a_subscription_that_still_waits_can_be_left(autojump_clock: trio.testing.MockClock) -> None:
    """A history waits for room; whoever unsubscribes meanwhile follows nothing when there is some."""
    async with arcp_trio.open_runtime(talking()) as runtime:
        owner = await connect_raw(runtime)
        jobs = [await owner.submit("talk") for _ in range(6)]
        await owner.settle()
        observer = await connect_raw(runtime)
        requests = [observer.make("job.subscribe", {"job_id": job_id, "history": True}) for job_id in jobs]
        last = observer.make("job.unsubscribe", {"job_id": jobs[-1]})
        await observer.send(*requests, last)
        frames = await observer.settle()
        # All six are answered, that one at once.
        answers = [frame["job_id"] for frame in frames if frame["type"] == "job.subscribed"]
        assert sorted(answers) == sorted(jobs)
        assert not [frame for frame in frames if frame["type"] == "job.event" and frame["job_id"] == jobs[-1]]
        assert sequence(frames) == list(range(1, len(sequence(frames)) + 1))
        feeds = {actor.job_id: actor.feed.followers for actor in runtime._directory.actors()}
        assert [feeds[job_id] for job_id in jobs] == [2, 2, 2, 2, 2, 1]


async def test_subscriptions_that_wait_count_among_those_that_may_be(autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(talking(), limits=arcp_trio.Limits(subscriptions=5)) as runtime:
        owner = await connect_raw(runtime)
        jobs = [await owner.submit("talk") for _ in range(8)]
        await owner.settle()
        observer = await connect_raw(runtime)
        requests = [observer.make("job.subscribe", {"job_id": job_id, "history": True}) for job_id in jobs]
        await observer.send(*requests)
        frames = await observer.settle()
        assert [frame["type"] for frame in frames if frame["type"] != "job.event"].count("job.subscribed") == 5


async def test_a_session_that_ends_while_it_joins_a_job_follows_it_not(script: Script) -> None:
    """A history that finds no room in the windows of all ends the session in the middle of the join."""
    limits = arcp_trio.Limits(windows_bytes=4000)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        observer = await connect_raw(runtime)
        owner = await connect_raw(runtime)
        job_id = await owner.submit("gate")
        (session,) = [each for each in runtime._sessions._sessions.values() if each.session_id == observer.session_id]
        session._parts.total.used += 4000
        await observer.request("job.subscribe", {"job_id": job_id})
        await observer.settle()
        assert not session._open
        (actor,) = runtime._directory.actors()
        assert session not in actor.feed._followers
        session._parts.total.used -= 4000


@pytest.mark.requirement("P6.11")
async def test_the_pause_of_a_connection_that_was_replaced_is_not_the_new_ones(
    autojump_clock: trio.testing.MockClock, script: Script
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        owner = await connect_raw(runtime)
        job_id = await owner.submit("gate")
        observer = await connect_raw(runtime, compat="python")
        await observer.request("job.subscribe", {"job_id": job_id, "history": True})
        await observer.receive_until("job.subscribed")
        (session,) = [each for each in runtime._sessions._sessions.values() if each.session_id == observer.session_id]
        assert session._pause is not None
        resumed = await resume(runtime, observer, 0)
        assert session._pause is None
        started = trio.current_time()
        await resumed.receive_until("job.event")
        assert trio.current_time() == started


@pytest.mark.requirement("P14.4")
@pytest.mark.parametrize("frame_type", ["session.ping", "job.subscribe"])
async def test_many_requests_of_one_read_leave_others_their_turn(
    script: Script, monkeypatch: pytest.MonkeyPatch, frame_type: str
) -> None:
    turns = 0
    handled: Counter[int] = Counter()
    handle = RequestHandler.handle

    def counting(handler: RequestHandler, text: bytes | str) -> bool:
        handled[turns] += 1
        return handle(handler, text)

    monkeypatch.setattr(RequestHandler, "handle", counting)
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:

        async def other() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await client.send(*[client.make(frame_type, {"nonce": "n", "job_id": "none"}) for _ in range(500)])
            while handled.total() < 500:
                await client.receive()
            nursery.cancel_scope.cancel()
    # One turn may see the end of a read and the beginning of the next.
    assert max(handled.values()) <= 64


@pytest.mark.requirement("P7.14", "P14.4")
@pytest.mark.parametrize("bound", [{"retention_records": 20}, {"retention_bytes": 100_000}])
async def test_one_principals_ended_jobs_do_not_push_out_anothers(script: Script, bound: dict[str, int]) -> None:
    async with arcp_trio.open_runtime(script.agents, limits=arcp_trio.Limits(**bound)) as runtime:
        client = await connect_raw(runtime)
        mine = []
        for _ in range(3):
            mine.append(await client.submit("echo", "x" * 3000))
            await client.receive_until("job.result")
        busy = await connect_raw(runtime, principal="busy")
        for _ in range(60):
            last = await busy.submit("echo", "x" * 3000)
            await busy.receive_until("job.result")
        directory = runtime._directory
        assert all(directory.find(job_id) is not None for job_id in mine)
        assert directory.find(last) is not None
        assert directory.retained <= limits_of(bound, "retention_records")
        assert directory.retained_bytes <= limits_of(bound, "retention_bytes")
        assert len(directory.index) == directory.retained
        # Who comes anew is not the one who goes: of those two the one who has more is.
        newcomer = await connect_raw(runtime, principal="new")
        newest = await newcomer.submit("echo", "x" * 20_000)
        await newcomer.receive_until("job.result")
        assert directory.find(newest) is not None
        assert directory.retained_bytes <= limits_of(bound, "retention_bytes")


def limits_of(bound: dict[str, int], name: str) -> int:
    return bound.get(name, 10**9)


@pytest.mark.requirement("P7.18", "P14.4")
@pytest.mark.parametrize("agent", ["flood", "hold"])
async def test_one_principals_histories_do_not_push_out_anothers(script: Script, agent: str) -> None:
    """Whether its jobs have ended or still run."""

    @script.agents.register("hold")
    async def hold(job: arcp_trio.JobContext, count: int) -> None:
        for number in range(count):
            await job.log("info", f"line {number}")
        await script.gate.wait()

    limits = arcp_trio.Limits(histories_bytes=100_000)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        histories = runtime._directory.histories
        client = await connect_raw(runtime)
        before = runtime._directory.find(await client.submit("flood", 20))
        await client.settle()
        busy = await connect_raw(runtime, principal="busy")
        theirs = [runtime._directory.find(await busy.submit(agent, 100)) for _ in range(6)]
        await busy.settle()
        after = runtime._directory.find(await client.submit("flood", 20))
        await client.settle()
        assert before is not None
        assert after is not None
        assert [len(job.feed.history) for job in (before, after)] == [20, 20]
        lengths = [len(job.feed.history) for job in theirs if job is not None]
        assert all(length < 100 for length in lengths[:1])
        assert lengths[-1] > 0
        assert 60_000 < histories.used <= 100_000
        assert histories.used == sum(job.feed.history.size for job in (before, after, *theirs) if job is not None)
        script.gate.set()


@pytest.mark.requirement("P6.2", "P6.8")
async def test_a_resume_gives_no_more_than_its_own_token(script: Script) -> None:
    """Two tokens of one principal, of which one may less: its connections may less, whatever session they resume."""
    verifier = arcp_trio.StaticTokens(
        {
            "wide": arcp_trio.Principal(name="p"),
            "narrow": arcp_trio.Principal(name="p", agents=frozenset({"gate"})),
        }
    )
    async with arcp_trio.open_runtime(script.agents) as runtime:
        for token, wanted in (("narrow", "session.error"), ("wide", "job.accepted")):
            client = await connect_raw(runtime, principal=None, verifier=verifier, hello=make_hello(token="wide"))
            await client.submit("echo")
            await client.receive_until("job.result")
            hello = resume_hello(client, 1)
            hello["payload"]["auth"]["token"] = token
            resumed = await connect_raw(runtime, principal=None, verifier=verifier, hello=hello)
            assert resumed.session_id == client.session_id
            await resumed.request("job.submit", {"agent": "echo", "input": 1}, id="again")
            answer = await resumed.receive_until(lambda frame: frame["payload"].get("request_id") == "again")
            assert answer["type"] == wanted
