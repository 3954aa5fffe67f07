"""Signs of life on a mock clock: when a peer is asked, and when it is given up."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from arcp_trio.timers import Timers
from arcp_trio.transports.heartbeat import Heartbeat

INTERVAL = 10.0


class Watched:
    """A heartbeat whose calls are noted with their time; ``answers`` says what a ping brings at once."""

    def __init__(self, timers: Timers, *, answers: bool, writes: bool = True) -> None:
        self.pings: list[float] = []
        self.losses: list[float] = []
        self._answers = answers
        self._writes = writes
        self._began = trio.current_time()
        self.heart = Heartbeat(timers, INTERVAL, ping=self._ping, lost=self._lost)

    def _ping(self) -> None:
        self.pings.append(trio.current_time() - self._began)
        if self._writes:
            self.heart.sent()
        if self._answers:
            self.heart.received()

    def _lost(self) -> None:
        self.losses.append(trio.current_time() - self._began)


@asynccontextmanager
async def open_timers() -> AsyncGenerator[Timers, None]:
    async with trio.open_nursery() as nursery:
        timers = Timers()
        nursery.start_soon(timers.run)
        yield timers
        nursery.cancel_scope.cancel()


@pytest.mark.requirement("P6.13", "H07")
async def test_a_silent_connection_is_asked_once_an_interval(autojump_clock: trio.testing.MockClock) -> None:
    async with open_timers() as timers:
        watched = Watched(timers, answers=True)
        watched.heart.start()
        await trio.sleep(45)
        watched.heart.stop()
        await trio.sleep(100)
    assert watched.pings == [10, 20, 30, 40]
    assert watched.losses == []


@pytest.mark.requirement("P6.14", "H04")
async def test_two_silent_intervals_are_the_end_and_said_once(autojump_clock: trio.testing.MockClock) -> None:
    async with open_timers() as timers:
        watched = Watched(timers, answers=False)
        watched.heart.start()
        await trio.sleep(100)
        assert len(timers) == 0
    assert watched.pings == [10]
    assert watched.losses == [20]


@pytest.mark.requirement("P6.14", "H09")
async def test_a_ping_that_is_never_written_changes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with open_timers() as timers:
        watched = Watched(timers, answers=False, writes=False)
        watched.heart.start()
        await trio.sleep(100)
    assert (watched.pings, watched.losses) == ([10], [20])


@pytest.mark.requirement("P6.13", "H02")
@pytest.mark.parametrize("direction", ["received", "sent"])
async def test_each_direction_is_measured_apart(direction: str, autojump_clock: trio.testing.MockClock) -> None:
    """Some peers only ever answer pings: what we receive does not make it unnecessary to say something."""
    async with open_timers() as timers:
        watched = Watched(timers, answers=False)
        watched.heart.start()
        for _ in range(19):
            await trio.sleep(INTERVAL / 2)
            getattr(watched.heart, direction)()
    if direction == "received":
        assert watched.losses == []
        assert watched.pings == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    else:
        assert (watched.pings, watched.losses) == ([10], [20])


@pytest.mark.requirement("P6.13")
async def test_a_connection_that_speaks_both_ways_is_not_asked(autojump_clock: trio.testing.MockClock) -> None:
    async with open_timers() as timers:
        watched = Watched(timers, answers=False)
        watched.heart.start()
        for _ in range(1000):
            watched.heart.received()
            watched.heart.sent()
            # A frame costs a look at the clock: no deadline moves for it.
            assert len(timers) == 1
            await trio.sleep(INTERVAL / 4)
        watched.heart.stop()
        watched.heart.stop()
        assert len(timers) == 0
    assert (watched.pings, watched.losses) == ([], [])


async def test_one_that_was_never_started_can_be_stopped() -> None:
    timers = Timers()
    Watched(timers, answers=False).heart.stop()
    assert len(timers) == 0
