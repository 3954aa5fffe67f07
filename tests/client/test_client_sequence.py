"""Gaps, duplicates and acks: how far a client has read, and what it says about that (P6.15, P8.2, P8.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from interop.recorded import records
from playing import OTHERS, STEADY, Call, Connection, open_played, read, start_job

import arcp_trio
from arcp_trio.client.sequence import Sequence, Verdict, numbers_otherwise

if TYPE_CHECKING:
    from helpers import Frame

# --- the rule ---------------------------------------------------------------------------------------


def take(sequence: Sequence, *numbers: tuple[str, int] | int) -> list[str]:
    pairs = [number if isinstance(number, tuple) else ("job_1", number) for number in numbers]
    return [sequence.take(number, job_id).name for job_id, number in pairs]


@pytest.mark.requirement("P8.3", "S24")
def test_a_runtime_that_is_held_to_its_numbers() -> None:
    sequence = Sequence()
    sequence.hold()
    assert take(sequence, 1, 2, 2, 1, 3) == ["NEXT", "NEXT", "REPEATED", "REPEATED", "NEXT"]
    assert take(sequence, 5) == ["GAP"]
    assert (sequence.last, sequence.missing) == (3, 4)
    assert take(sequence, 4, 5, 0) == ["NEXT", "NEXT", "REPEATED"]
    fresh = Sequence()
    fresh.hold()
    assert take(fresh, 2) == ["GAP"]
    assert (fresh.last, fresh.missing) == (0, 1)


@pytest.mark.requirement("P8.3", "S02")
def test_another_is_held_to_them_once_two_jobs_have_shared_them() -> None:
    sequence = Sequence()
    assert take(sequence, 1, 2, 3) == ["NEXT"] * 3
    assert take(sequence, ("job_2", 4), 5) == ["NEXT"] * 2
    assert take(sequence, ("job_2", 7)) == ["GAP"]
    assert take(sequence, ("job_2", 5)) == ["REPEATED"]


@pytest.mark.requirement("S02")
@pytest.mark.parametrize(
    "numbers",
    [
        # A count for each job.
        [("job_1", 1), ("job_1", 2), ("job_2", 1), ("job_1", 3), ("job_2", 2), ("job_3", 1)],
        # One job proves nothing: its count may be its own.
        [("job_1", 1), ("job_1", 2), ("job_1", 4), ("job_2", 9)],
        # Numbers that do not begin at 1.
        [("job_1", 0), ("job_1", 1), ("job_2", 2), ("job_1", 7)],
        # Slightly out of order.
        [("job_1", 1), ("job_1", 3), ("job_2", 2), ("job_1", 4)],
    ],
)
def test_numbers_of_another_kind_never_alarm(numbers: list[tuple[str, int]]) -> None:
    assert set(take(Sequence(), *numbers)) == {"NEXT"}


def test_what_is_let_go_is_never_held() -> None:
    sequence = Sequence()
    sequence.let_go()
    assert take(sequence, 1, ("job_2", 2), 3, 9, 4, 4) == ["NEXT"] * 6
    # A resume names the number up to which all had come.
    assert sequence.last == 4
    assert take(sequence, 6, 8, 7, 5) == ["NEXT"] * 4
    assert sequence.last == 9


def test_what_is_remembered_of_a_disorder_is_bounded() -> None:
    sequence = Sequence()
    for number in range(2, 10_000):
        assert sequence.take(number, "job_1") is Verdict.NEXT
    assert len(sequence._ahead) == 1024


@pytest.mark.requirement("P8.3", "D43")
def test_the_runtimes_that_number_otherwise_are_known_by_their_welcomes() -> None:
    welcomes = [record for record in records() if record.type == "session.welcome"]
    assert len(welcomes) > 10
    for record in welcomes:
        otherwise = numbers_otherwise(record.frame["payload"])
        assert otherwise is (not record.sdk.startswith("typescript")), record.n
    ours: Frame = {"runtime": {"name": "x"}, "runtime_name": "x", "resume_token": "rtk_x"}
    assert not numbers_otherwise(ours)
    assert numbers_otherwise({"capabilities": {"agents": [{"name": "a", "bare": True}]}})
    assert not numbers_otherwise({"capabilities": {"agents": ["a"]}, "resume_token": 5})
    assert not numbers_otherwise({})


@pytest.mark.requirement("P8.3", "S02", "D42")
@pytest.mark.parametrize("conn", sorted({(record.sdk, record.conn) for record in records() if not record.from_client}))
def test_no_recorded_server_gives_a_false_alarm(conn: tuple[str, str]) -> None:
    """Each recorded connection to its end: a session of its own, judged as our client would."""
    sequence = Sequence()
    for record in records():
        if (record.sdk, record.conn) != conn or record.from_client:
            continue
        if record.type == "session.welcome":
            sequence = Sequence()
            if numbers_otherwise(record.frame["payload"]):
                sequence.let_go()
        elif record.type == "job.subscribed":
            sequence.let_go()
        elif record.frame.get("event_seq") is not None:
            verdict = sequence.take(record.frame["event_seq"], record.frame.get("job_id"))
            assert verdict is Verdict.NEXT, record


# --- on the wire ------------------------------------------------------------------------------------


@pytest.mark.requirement("P8.3", "S24")
async def test_a_gap_breaks_the_connection_and_the_session_is_resumed_before_it(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        texts: list[Any] = []
        nursery.start_soon(read, job.events(), texts)
        for number in range(1, 7):
            await first.log(number)
        await first.log(8)
        assert "event 7 is missing" in caplog.text
        assert "event 7 is missing" in client.state.reason
        await first.raw.receive_close()
        second = await played.next()
        hello = await second.welcome("rt_2")
        assert hello["payload"]["resume"]["last_event_seq"] == 6
        for number in (7, 8):
            await second.log(number)
        await second.result(9)
        assert await job.result() == "done"
        await trio.testing.wait_all_tasks_blocked()
        assert texts == [str(number) for number in range(1, 9)]


@pytest.mark.requirement("P8.3", "S24")
async def test_what_stands_behind_a_gap_is_not_looked_at(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)

        def log(number: int) -> Frame:
            body = {"kind": "log", "body": {"level": "info", "message": str(number)}}
            return first.raw.make("job.event", body, job_id="job_1", event_seq=number)

        # All in one write.
        await first.raw.send(log(1), log(3), log(2), log(4))
        second = await played.next()
        assert (await second.welcome("rt_2"))["payload"]["last_event_seq"] == 1
        await second.result(2)
        assert await job.result() == "done"
        assert [event.body["message"] async for event in job.events()] == ["1"]  # type: ignore[union-attr]


@pytest.mark.requirement("P8.3", "S24", "K02")
async def test_a_gap_that_cannot_be_resumed_names_what_is_missing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(reconnect=None) as (_, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await first.log(1)
        await first.result(3)
        with pytest.raises(arcp_trio.ConnectionLostError, match="event 2 is missing"):
            await job.result()


@pytest.mark.requirement("P8.3", "D39", "D42")
async def test_a_gap_of_another_runtime_is_no_failure(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(features=OTHERS) as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        for number in (1, 2, 5, 5, 3):
            await first.log(number)
        # A terminal event without a number.
        await first.say("job.result", {"final_status": "success", "result": 1}, job_id="job_1")
        assert await job.result() == 1
        texts = [event.body["message"] async for event in job.events()]  # type: ignore[union-attr]
        assert texts == ["1", "2", "5", "5", "3"]
        await first.drop()
        second = await played.next()
        assert (await second.welcome("rt_2"))["payload"]["last_event_seq"] == 3


@pytest.mark.requirement("S04", "D43")
async def test_a_subscription_elsewhere_does_not_count(autojump_clock: trio.testing.MockClock) -> None:
    """Some number what is subscribed to by another session's count, or by one of its own."""
    async with open_played(features=OTHERS) as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await first.log(1)
        nursery.start_soon(client.subscribe, "job_9")
        await first.expect("job.subscribe")
        await first.log(40, "job_9")
        await first.say("job.subscribed", {"job_id": "job_9", "current_status": "running"})
        await first.log(41, "job_9")
        await first.log(2)
        await first.drop()
        second = await played.next()
        assert (await second.welcome("rt_2"))["payload"]["last_event_seq"] == 2
        await second.result(3)
        assert await job.result() == "done"


@pytest.mark.requirement("S04", "D43")
async def test_a_foreign_number_that_happens_to_fit_does_not_count(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(features=OTHERS) as (played, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        await first.log(1)
        nursery.start_soon(client.subscribe, "job_9")
        await first.expect("job.subscribe")
        await first.say("job.subscribed", {"job_id": "job_9", "current_status": "running"})
        await first.log(2, "job_9")
        await first.drop()
        second = await played.next()
        assert (await second.welcome("rt_2"))["payload"]["last_event_seq"] == 1


@pytest.mark.requirement("S04", "D43")
async def test_what_trails_a_subscription_elsewhere_is_no_gap(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(features=OTHERS) as (_, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        await start_job(nursery, client, first, "job_2")
        await first.log(1)
        await first.log(2, "job_2")
        call = Call(nursery, client.subscribe, "job_9")
        await first.expect("job.subscribe")
        await first.say("job.subscribed", {"job_id": "job_9", "current_status": "running"})
        await call.value.unsubscribe()
        await first.log(40, "job_9")
        assert client.state.phase == "connected"


@pytest.mark.requirement("P8.3", "D43")
async def test_a_runtime_that_is_known_to_number_otherwise(autojump_clock: trio.testing.MockClock) -> None:
    """Two of its jobs have shared a count; by its welcome it is one that may yet send them out of order."""
    async with open_played(features=OTHERS, welcome={"resume_token": "rtk_1"}) as (_, first, client):
        async with trio.open_nursery() as nursery:
            await start_job(nursery, client, first)
            await start_job(nursery, client, first, "job_2")
            for number, job_id in ((1, "job_1"), (2, "job_2"), (4, "job_1"), (3, "job_2")):
                await first.log(number, job_id)
        assert client.state.phase == "connected"


# --- acks -------------------------------------------------------------------------------------------


async def acks_of(connection: Connection) -> list[int]:
    frames = await connection.raw.settle()
    return [frame["payload"]["last_processed_seq"] for frame in frames if frame["type"] == "session.ack"]


@pytest.mark.requirement("P6.15", "H15")
async def test_acks_come_seldom_and_the_tail_is_acked(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        began = trio.current_time()
        for number in range(1, 11):
            await first.log(number)
            await trio.sleep(0.1)
        assert trio.current_time() - began == pytest.approx(1)
        # An ack 250 ms after the first event that was not acked; the last one covers the tail.
        assert await acks_of(first) == [3, 6, 9]
        await trio.sleep(0.25)
        assert await acks_of(first) == [10]
        # Nothing new, nothing said.
        await trio.sleep(20)
        assert await acks_of(first) == []


@pytest.mark.requirement("P6.15", "H15")
async def test_the_last_ack_goes_before_the_close(autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.ClientLimits(close_seconds=1)
    async with open_played(limits=limits) as (_, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        await first.log(1)
        await first.log(2)
    frames = [frame for frame in await first.raw.settle() if frame["type"] != "session.bye"]
    assert [frame["type"] for frame in frames] == ["session.ack", "session.close"]
    assert frames[0]["payload"] == {"last_processed_seq": 2}


@pytest.mark.requirement("P6.15", "H15")
async def test_a_resume_is_an_ack_and_none_goes_lower(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        await first.log(1)
        await first.log(2)
        await first.drop()
        await trio.sleep(0.5)
        second = await played.next()
        await second.welcome("rt_2")
        await trio.sleep(5)
        assert await acks_of(second) == []
        await second.log(2)
        await trio.sleep(5)
        assert await acks_of(second) == []
        await second.log(3)
        await trio.sleep(5)
        assert await acks_of(second) == [3]


@pytest.mark.requirement("P6.15", "H15")
@pytest.mark.parametrize("told_by", ["an ack", "a resume"])
async def test_a_close_says_nothing_that_was_said(told_by: str, autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.ClientLimits(close_seconds=1)
    async with open_played(limits=limits) as (played, first, client), trio.open_nursery() as nursery:
        last = first
        await start_job(nursery, client, first)
        await first.log(1)
        if told_by == "an ack":
            await first.expect("session.ack")
        else:
            await first.drop()
            last = await played.next()
            await last.welcome("rt_2")
            await trio.testing.wait_all_tasks_blocked()
    assert [frame["type"] for frame in await last.raw.settle()] == ["session.close", "session.bye"]


@pytest.mark.requirement("P6.4", "P6.15", "D22")
async def test_no_ack_where_none_was_negotiated(autojump_clock: trio.testing.MockClock) -> None:
    features = [feature for feature in OTHERS if feature != "ack"]
    async with open_played(features=features, reconnect=STEADY) as (_, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        await first.log(1)
        await trio.sleep(5)
        assert await acks_of(first) == []
