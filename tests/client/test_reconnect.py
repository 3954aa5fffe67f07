"""A client connects again: when it tries, how long it waits, what it shows, when it gives up (P4.5, P6.7)."""

from __future__ import annotations

import random
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from playing import OTHERS, STEADY, Call, open_played, start_job

import arcp_trio
from arcp_trio.client.reconnect import worth_a_retry
from arcp_trio.transports.memory import MemoryTransport

FINAL = [1000, 1002, 1003, 1007, 1008, 1009, 1010, 4000]
PASSING = [1001, 1005, 1006, 1011, 1012, 1013, 1014, 3000, 4001, 4002, 4999]


class Shown:
    """A hook that keeps what it is shown, with its time."""

    def __init__(self) -> None:
        self.states: list[arcp_trio.ConnectionState] = []
        self.times: list[float] = []

    def __call__(self, state: arcp_trio.ConnectionState) -> None:
        self.states.append(state)
        self.times.append(trio.current_time())

    @property
    def phases(self) -> list[str]:
        return [state.phase for state in self.states]


def shown_by(shown: Any, **changes: Any) -> arcp_trio.Reconnect:
    return attrs.evolve(STEADY, on_change=shown, **changes)


# --- the policy -------------------------------------------------------------------------------------


def test_delays_grow_to_their_maximum() -> None:
    policy = arcp_trio.Reconnect(first_delay_seconds=0.5, factor=3, max_delay_seconds=10, jitter=0)
    assert [policy.delay(attempt) for attempt in range(1, 6)] == [0.5, 1.5, 4.5, 10, 10]
    # Ten thousand attempts later no number has become too large.
    assert policy.delay(10_000) == 10


def test_jitter_takes_its_share_from_the_random_numbers() -> None:
    seeded = random.Random(5)
    expected = [seeded.random() for _ in range(3)]
    full = arcp_trio.Reconnect(first_delay_seconds=8, factor=1, jitter=1, random=random.Random(5).random)
    assert [full.delay(1) for _ in range(3)] == [pytest.approx(8 * number) for number in expected]
    equal = arcp_trio.Reconnect(first_delay_seconds=8, factor=1, jitter=0.5, random=random.Random(5).random)
    assert [equal.delay(1) for _ in range(3)] == [pytest.approx(4 + 4 * number) for number in expected]


def test_delays_are_never_nothing_by_default() -> None:
    policy = arcp_trio.Reconnect(random=lambda: 0.0)
    assert policy.delay(1) == 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"first_delay_seconds": 0},
        {"first_delay_seconds": float("nan")},
        {"factor": 0.5},
        {"factor": float("inf")},
        {"max_delay_seconds": -1},
        {"jitter": 1.5},
        {"jitter": -0.1},
        {"deadline_seconds": 0},
        {"deadline_seconds": float("inf")},
    ],
)
def test_a_policy_that_would_not_back_off_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        arcp_trio.Reconnect(**wrong)  # type: ignore[arg-type]


def test_the_table_of_close_codes() -> None:
    assert [code for code in FINAL if worth_a_retry(code)] == []
    assert [code for code in PASSING if not worth_a_retry(code)] == []


# --- attempts ---------------------------------------------------------------------------------------


@pytest.mark.requirement("P6.7")
async def test_attempts_back_off_and_the_hook_shows_them(autojump_clock: trio.testing.MockClock) -> None:
    shown = Shown()
    async with open_played(reconnect=shown_by(shown)) as (played, first, client):
        assert client.state.phase == "connected"
        began = trio.current_time()
        played.is_down = True
        await first.drop()
        await trio.sleep(10)
        assert client.state.phase == "retrying"
        played.is_down = False
        second = await played.next()
        await second.welcome("rt_2")
        await trio.testing.wait_all_tasks_blocked()
        assert client.state == arcp_trio.ConnectionState(phase="resumed")
    assert [at - began for at in played.down] == [1, 3, 7]
    assert shown.phases == ["connected", "lost", "retrying", "retrying", "retrying", "retrying", "resumed"]
    assert [(state.attempt, state.delay_seconds) for state in shown.states[2:6]] == [(1, 1), (2, 2), (3, 4), (4, 8)]
    assert [at - began for at in shown.times] == [0, 0, 0, 1, 3, 7, 15]
    assert "1006" in shown.states[1].reason
    assert "nobody listens" in shown.states[3].reason
    assert client.state.phase == "closed"


@pytest.mark.requirement("P4.5")
@pytest.mark.parametrize("code", PASSING)
async def test_these_codes_are_worth_another_connection(code: int, autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await first.drop(code)
        second = await played.next()
        await second.welcome("rt_2")
        await second.result(1, code)
        assert await job.result() == code


@pytest.mark.requirement("P4.5", "K02")
@pytest.mark.parametrize("code", FINAL)
async def test_these_codes_are_the_end(code: int, autojump_clock: trio.testing.MockClock) -> None:
    shown = Shown()
    async with open_played(reconnect=shown_by(shown)) as (_, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await first.drop(code)
        with pytest.raises(arcp_trio.ConnectionLostError, match=str(code)):
            await job.result()
        with pytest.raises(arcp_trio.ConnectionLostError, match=str(code)):
            await client.submit("b")
        assert client.state.error is not None
    assert shown.phases == ["connected", "lost", "given_up"]


@pytest.mark.requirement("P6.21")
@pytest.mark.parametrize("goodbye", ["session.bye", "session.closed"])
async def test_a_goodbye_is_the_end_whatever_the_code(goodbye: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client):
        await first.say(goodbye, {"reason": "enough"})
        await first.drop(1001)
        assert client.state.phase == "given_up"
        with pytest.raises(arcp_trio.ConnectionLostError):
            await client.submit("b")


@pytest.mark.requirement("P12.2")
@pytest.mark.parametrize(
    ("code", "retried"),
    [("UNAUTHENTICATED", False), ("RESUME_WINDOW_EXPIRED", False), ("HEARTBEAT_LOST", True), ("INTERNAL_ERROR", True)],
)
async def test_an_error_before_the_close_decides_too(
    code: str, retried: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_played() as (played, first, client):
        await first.say("session.error", {"code": code, "message": "why"})
        await first.drop(1011)
        if retried:
            second = await played.next()
            await second.welcome("rt_2")
            await trio.testing.wait_all_tasks_blocked()
            assert client.state.phase == "resumed"
        else:
            assert client.state.phase == "given_up"
            with pytest.raises(arcp_trio.ARCPError, match="why") as caught:
                await client.submit("b")
            assert caught.value.code == code


# --- giving up --------------------------------------------------------------------------------------


@pytest.mark.requirement("K02", "P6.12")
@pytest.mark.parametrize(("deadline", "window", "expected"), [(20, 600, 20), (100, 7, 7), (50, 0, 50), (50, None, 50)])
async def test_the_session_is_given_up_in_time(
    deadline: float, window: float | None, expected: float, autojump_clock: trio.testing.MockClock
) -> None:
    """The runtime keeps the session for its window, and no longer: nor does the client wait longer."""
    shown = Shown()
    policy = shown_by(shown, deadline_seconds=deadline)
    async with (
        open_played(reconnect=policy, welcome={"resume_window_sec": window}) as (played, first, client),
        trio.open_nursery() as nursery,
    ):
        job = await start_job(nursery, client, first)
        began = trio.current_time()
        played.is_down = True
        await first.drop()
        waiting = [Call(nursery, job.result), Call(nursery, client.submit, "b"), Call(nursery, job.wait_ended)]
        waiting += [
            Call(nursery, job.cancel),
            Call(nursery, anext, job.events()),
            Call(nursery, anext, client.list_jobs()),
        ]
        await trio.sleep(expected)
        for call in waiting:
            assert isinstance(call.error, arcp_trio.ConnectionLostError), call.error
            assert f"not resumed within {expected} seconds" in str(call.error)
    assert shown.phases[-1] == "given_up"
    assert shown.times[-1] - began <= expected
    # An exception for each call: one that is raised twice grows a traceback of both.
    assert len({id(call.error) for call in waiting}) == len(waiting)


async def test_a_handshake_that_hangs_does_not_outlast_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.ClientLimits(connect_seconds=1000, close_seconds=0.01)
    async with open_played(limits=limits) as (_, first, client):
        began = trio.current_time()
        await first.drop()
        with pytest.raises(arcp_trio.ConnectionLostError, match="within 100 seconds"):
            await client.submit("b")
        assert trio.current_time() - began <= 100


async def test_a_handshake_that_hangs_is_a_failed_attempt(autojump_clock: trio.testing.MockClock) -> None:
    shown = Shown()
    limits = arcp_trio.ClientLimits(connect_seconds=5, close_seconds=0.01)
    async with open_played(limits=limits, reconnect=shown_by(shown)) as (played, first, _):
        await first.drop()
        silent = await played.next()
        third = await played.next()
        await third.welcome("rt_2")
        await silent.raw.receive_close()
    assert shown.phases == ["connected", "lost", "retrying", "retrying", "resumed"]
    assert "no welcome within 5 seconds" in shown.states[3].reason


async def test_a_transport_whose_handshake_failed_is_only_aborted(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much of the hello was sent is unknown: nothing may follow it."""
    limits = arcp_trio.ClientLimits(connect_seconds=5, close_seconds=0.01)
    async with open_played(limits=limits) as (played, first, _):
        calls: list[str] = []
        for name in ("abort", "aclose"):
            original = getattr(MemoryTransport, name)

            async def note(self: Any, *args: Any, name: str = name, original: Any = original) -> None:
                calls.append(name)
                await original(self, *args)

            monkeypatch.setattr(MemoryTransport, name, note)
        await first.drop()
        await played.next()
        calls.clear()
        await played.next()
        # By us, and by whoever opened it.
        assert calls == ["abort", "abort"]


@pytest.mark.parametrize("how", ["off", "cannot", "no token"])
async def test_a_session_that_cannot_be_resumed_ends_with_its_connection(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_played(
        reconnect=None if how == "off" else STEADY,
        reconnects=how != "cannot",
        welcome={"resume_token": None} if how == "no token" else {},
    ) as (_, first, client):
        await first.drop()
        assert client.state.phase == "given_up"
        with pytest.raises(arcp_trio.ConnectionLostError, match="1006"):
            await client.submit("b")


async def test_a_bug_in_connect_is_said_and_ends_the_session(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_played() as (played, first, client):
        monkeypatch.setattr(played, "_send", None)
        await first.drop()
        with pytest.raises(arcp_trio.ConnectionLostError, match="the client failed: AttributeError"):
            await client.submit("b")
    assert "a bug while connecting" in caplog.text


async def test_connections_that_bring_nothing_are_failed_attempts(autojump_clock: trio.testing.MockClock) -> None:
    """A runtime that resumes and breaks at once is not asked ten times a second for ever."""
    shown = Shown()
    async with open_played(reconnect=shown_by(shown)) as (played, first, client), trio.open_nursery() as nursery:
        connection = first
        await start_job(nursery, client, connection)
        for number in range(2, 5):
            await connection.drop()
            connection = await played.next()
            await connection.welcome(f"rt_{number}")
        assert [state.delay_seconds for state in shown.states if state.phase == "retrying"] == [1, 2, 4]
        await connection.log(1)
        await connection.drop()
        connection = await played.next()
        await connection.welcome("rt_5")
        # Lived long enough: as good as news.
        await trio.sleep(8)
        await connection.drop()
        connection = await played.next()
        await connection.welcome("rt_6")
    assert [state.delay_seconds for state in shown.states if state.phase == "retrying"] == [1, 2, 4, 1, 1]


async def test_a_hook_that_fails_is_logged(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(state: arcp_trio.ConnectionState) -> None:
        raise KeyError(state.phase)

    async with open_played(reconnect=shown_by(fail)) as (played, first, client):
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2")
        await trio.testing.wait_all_tasks_blocked()
        assert client.state.phase == "resumed"
    assert caplog.text.count("on_change failed") == 4


async def test_control_c_does_not_reach_the_clients_own_tasks(autojump_clock: trio.testing.MockClock) -> None:
    protected: list[bool] = []

    def note(_: arcp_trio.ConnectionState) -> None:
        protected.append(trio.lowlevel.currently_ki_protected())

    async with open_played(reconnect=shown_by(note)) as (played, first, _):
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2")
    assert protected == [True] * 4


# --- leaving ----------------------------------------------------------------------------------------


@pytest.mark.requirement("Z12")
@pytest.mark.parametrize("while_", ["waiting", "shaking hands", "connecting"])
async def test_leaving_without_a_connection_takes_no_time(while_: str, autojump_clock: trio.testing.MockClock) -> None:
    entered = trio.Event()
    async with open_played() as (played, first, client):
        if while_ == "connecting":

            async def hang() -> None:
                entered.set()
                await trio.sleep_forever()

            class Hanging:
                __aenter__ = staticmethod(hang)

                async def __aexit__(self, *_: object) -> None:
                    raise AssertionError

            client._connector._connect = Hanging  # type: ignore[assignment]
        await first.drop()
        if while_ == "shaking hands":
            await (await played.next()).raw.receive_until("session.hello")
        elif while_ == "connecting":
            await entered.wait()
        left = trio.current_time()
    assert trio.current_time() == left
    assert client.state.phase == "closed"
    with pytest.raises(arcp_trio.ConnectionLostError, match="the client was closed"):
        await client.submit("b")


@pytest.mark.requirement("Z12")
async def test_a_connection_that_breaks_during_the_goodbye_is_not_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    shown = Shown()
    limits = arcp_trio.ClientLimits(close_seconds=2)
    async with trio.open_nursery() as nursery:
        async with open_played(reconnect=shown_by(shown), limits=limits) as (_, first, _):

            async def break_it() -> None:
                await first.expect("session.close")
                await first.raw.transport.abort()

            nursery.start_soon(break_it)
            left = trio.current_time()
        assert trio.current_time() - left <= 2
    assert shown.phases == ["connected"]


async def test_a_client_over_others_runtimes_reconnects_too(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(features=OTHERS) as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2")
        await second.result(1)
        assert await job.result() == "done"
