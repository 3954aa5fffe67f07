"""Heartbeats from the client's side: asked, answered, lost (P6.13, P6.14)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from playing import OURS, STEADY, Broken, Stuck, open_played, start_job

import arcp_trio
from arcp_trio.transports.base import TransportClosedError

if TYPE_CHECKING:
    from helpers import Frame

EVERY_TEN = {"heartbeat_interval_sec": 10}


def pings(frames: list[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame["type"] == "session.ping"]


@pytest.mark.requirement("P6.13", "H06")
async def test_a_silent_runtime_is_asked_and_an_answer_is_life(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(welcome=EVERY_TEN) as (_, first, client):
        nonces = []
        for _ in range(5):
            await trio.sleep(10)
            (ping,) = pings(await first.raw.settle())
            assert "event_seq" not in ping
            assert ping["session_id"] == client.session_id
            assert ping["payload"]["sent_at"].endswith("Z")
            nonces.append(ping["payload"]["nonce"])
            await first.say(
                "session.pong", {"ping_nonce": ping["payload"]["nonce"], "received_at": "0001-01-01T00:00:00Z"}
            )
        assert len(set(nonces)) == 5
        assert client.state.phase == "connected"


@pytest.mark.requirement("P6.13", "H02")
async def test_any_message_is_life(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(welcome=EVERY_TEN) as (_, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        for number in range(1, 30):
            await trio.sleep(7)
            await first.log(number)
        # It has answered no ping, and lives; what the client must say meanwhile, its acks say.
        assert client.state.phase == "connected"
        await trio.sleep(19)
        assert client.state.phase == "connected"
        await trio.sleep(1.1)
        assert client.state.phase == "retrying"


@pytest.mark.requirement("P6.13")
async def test_a_ping_is_answered_at_once_also_where_heartbeats_were_not_negotiated(
    autojump_clock: trio.testing.MockClock,
) -> None:
    features = [feature for feature in OURS if feature != "heartbeat"]
    async with open_played(features=features) as (_, first, client):
        await first.say("session.ping", {"nonce": "n"})
        pong = await first.raw.receive_until("session.pong")
        assert pong["payload"]["ping_nonce"] == "n"
        await trio.sleep(5000)
        assert client.state.phase == "connected"
        await first.nothing_came()


@pytest.mark.requirement("P6.14", "H03", "H04")
async def test_two_silent_intervals_cost_the_connection_and_nothing_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    states: list[tuple[str, float]] = []

    def show(state: arcp_trio.ConnectionState) -> None:
        states.append((state.phase, trio.current_time() - began))

    began = trio.current_time()
    policy = arcp_trio.Reconnect(first_delay_seconds=1, jitter=0, on_change=show)
    async with open_played(welcome=EVERY_TEN, reconnect=policy) as (played, first, client):
        async with trio.open_nursery() as nursery:
            job = await start_job(nursery, client, first)
            second = await played.next()
            frames: list[Frame] = []
            with pytest.raises(TransportClosedError) as closed:
                while True:
                    frames.append(await first.raw.receive())
            # It says why before it goes.
            assert frames[-1]["type"] == "session.error"
            assert frames[-1]["payload"]["code"] == "HEARTBEAT_LOST"
            assert closed.value.code == 4002
            assert (await second.welcome("rt_2"))["payload"]["resume"]["resume_token"] == "rt_1"
            await second.result(1)
            assert await job.result() == "done"
    assert states == [("connected", 0), ("lost", 20), ("retrying", 20), ("resumed", 21)]


@pytest.mark.requirement("P6.14", "H09")
async def test_a_stuck_write_does_not_delay_the_loss(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(welcome=EVERY_TEN) as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        began = trio.current_time()
        link = client._session.link
        assert link is not None
        link._writer._transport = Stuck(link.transport)
        nursery.start_soon(client.cancel_job, "job_other")
        second = await played.next()
        # Ours alone is stuck: nothing half-sent is followed by anything.
        assert trio.current_time() - began == 20 + STEADY.first_delay_seconds
        assert (await first.raw.receive_close()).code == 1006
        await second.welcome("rt_2")
        cancel = await second.expect("job.cancel")
        await second.say("job.cancelled", {"job_id": "job_other", "request_id": cancel["id"]})
        await second.result(1)
        assert await job.result() == "done"


@pytest.mark.requirement("H07", "D12")
@pytest.mark.parametrize(
    ("said", "expected"),
    [(0, 1), (0.2, 1), (-1, 1), (-1e300, 1), (1.5, 1.5), (30, 30), (1e300, 3600), (2**62, 3600), (None, None)],
)
async def test_intervals_are_kept_within_bounds(
    said: float | None, expected: float | None, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_played(welcome={"heartbeat_interval_sec": said}) as (_, first, client):
        began = trio.current_time()
        if expected is None:
            await trio.sleep(10_000 - 10)
            await first.nothing_came()
        else:
            await first.raw.receive_until("session.ping")
            assert trio.current_time() - began == pytest.approx(expected)
        assert client.state.phase == "connected"


@pytest.mark.requirement("P6.14")
async def test_a_resumed_connection_is_watched_by_what_its_own_welcome_says(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_played(welcome=EVERY_TEN) as (played, first, client):
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2", heartbeat_interval_sec=50)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await second.raw.receive_until("session.ping")
        assert trio.current_time() - began == 50
        assert client.state.phase == "resumed"


@pytest.mark.requirement("Z04", "K02")
async def test_what_came_before_a_write_failed_is_still_read(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(reconnect=None) as (_, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        link = client._session.link
        assert link is not None
        link._writer._transport = Broken(link.transport)
        nursery.start_soon(client.submit, "b", None)
        await trio.testing.wait_all_tasks_blocked()
        await first.result(1)
        assert await job.result() == "done"
        nursery.cancel_scope.cancel()


async def test_a_connection_leaves_no_timer_behind(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(welcome=EVERY_TEN) as (played, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        await first.log(1)
        # The heartbeat's and the ack's.
        assert len(client._connector._timers) == 2
        played.is_down = True
        await first.drop()
        assert len(client._connector._timers) == 0


async def test_a_session_in_the_process_has_no_heartbeat(script: Any, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
        assert "heartbeat" not in client.features
        await trio.sleep(10_000)
        assert await (await client.submit("echo", 1)).result() == 1
