"""A session's stream against a simple model: whatever happens, a follower sees 1, 2, 3, … or a clear refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arcp_trio.sessions.stream import SessionStream, StreamBounds, WindowTotal

SESSION = "sess_01M85F391K8FD3QA6M9FPWSM41"


def make(total: int = 10**9, **bounds: Any) -> SessionStream:
    wanted = {
        "window_events": 100,
        "window_bytes": 10**6,
        "lag_events": 20,
        "lag_bytes": 10**5,
        "unacked_events": None,
        **bounds,
    }
    return SessionStream(SESSION, StreamBounds(**wanted), WindowTotal(total))


def tail(size: int = 0) -> bytes:
    return b',"payload":{"x":"%b"}}' % (b"x" * size)


def numbers(frames: list[bytes]) -> list[int | None]:
    return [json.loads(frame).get("event_seq") for frame in frames]


class StreamMachine(RuleBasedStateMachine):
    """A stream and its client: what the client has, in order, is all that the model knows."""

    @initialize(
        events=st.integers(4, 40), size=st.integers(200, 4000), total=st.integers(500, 8000), acks=st.booleans()
    )
    def begin(self, events: int, size: int, total: int, acks: bool) -> None:
        self.bounds = StreamBounds(
            window_events=events,
            window_bytes=size,
            lag_events=max(1, events // 4),
            lag_bytes=max(1, size // 4),
            unacked_events=events // 2 if acks else None,
        )
        self.total = WindowTotal(total)
        self.stream = SessionStream(SESSION, self.bounds, self.total)
        self.emitted = 0
        self.riders = 0
        # What the wire carries and the client has: riders by their own number, events by theirs.
        self.wire: list[bytes] = []
        self.seen = 0
        self.seen_riders: set[int] = set()
        # After which event each kept rider stands, and which of them is not freed for sure.
        self.places: dict[int, int] = {}
        self.connected = True

    @rule(size=st.integers(0, 300))
    def emit(self, size: int) -> None:
        self.emitted += 1
        assert self.stream.append(tail(size)) == self.emitted
        crossed = self.stream.shed()
        if crossed is not None:
            # The connection is closed; what is unsent waits. Past the whole window nobody can resume.
            self.connected = False
            self.wire.clear()

    @precondition(lambda self: self.emitted < 10_000)
    @rule(size=st.integers(1, 100), keep=st.booleans())
    def ride(self, size: int, keep: bool) -> None:
        self.riders += 1
        if keep:
            self.places[self.riders] = self.emitted
        self.stream.append_rider(json.dumps({"rider": self.riders, "x": "x" * size}).encode(), keep=keep)

    @precondition(lambda self: self.connected)
    @rule(limit=st.integers(1, 1500))
    def write(self, limit: int) -> None:
        waits = self.stream.unsent_events > 0
        frames = self.stream.take(limit)
        assert bool(frames) == waits
        self.wire += frames

    @precondition(lambda self: self.connected)
    @rule(count=st.integers(1, 10))
    def read(self, count: int) -> None:
        for frame in self.wire[:count]:
            content = json.loads(frame)
            if "rider" in content:
                self.seen_riders.add(content["rider"])
            else:
                # In order, without a gap, without a repeat.
                assert content["event_seq"] == self.seen + 1
                self.seen += 1
                for rider, place in self.places.items():
                    # What stands before an event comes before it, after every resume.
                    assert place >= self.seen or rider in self.seen_riders
        del self.wire[:count]

    @rule(back=st.integers(-3, 5))
    def acknowledge(self, back: int) -> None:
        seq = self.seen - back
        valid = self.stream.acked < seq <= self.stream.told
        assert self.stream.acknowledge(seq) == valid
        if valid and seq > self.seen:
            # The client lied: it has said that it read this, and gets none of it again.
            self.seen = seq
            self.seen_riders.update(self.places)
            self.wire = [frame for frame in self.wire if json.loads(frame).get("event_seq", seq + 1) > seq]

    @rule()
    def drop(self) -> None:
        self.connected = False
        self.wire.clear()

    @rule(back=st.integers(0, 3))
    def resume(self, back: int) -> None:
        """From what the client has, or from a little before it."""
        last = max(0, self.seen - back)
        if not self.stream.can_resume_from(last):
            assert self.stream.floor > last or last > self.emitted
            return
        # Nothing that was promised is missing.
        assert self.stream.kept_events >= 0
        self.stream.rewind(last)
        self.connected = True
        self.wire.clear()
        self.seen = last
        self.seen_riders -= {rider for rider, place in self.places.items() if place >= last}

    @rule(last=st.integers(-5, 60))
    def ask_for_what_is_not_there(self, last: int) -> None:
        beyond = self.emitted + 1 + abs(last)
        assert not self.stream.can_resume_from(beyond)
        if self.stream.floor:
            assert not self.stream.can_resume_from(self.stream.floor - 1)

    @invariant()
    def bounds_hold(self) -> None:
        if not hasattr(self, "stream"):
            return
        stream = self.stream
        assert 0 <= stream.acked <= stream.floor <= stream.last_seq == self.emitted
        assert stream.acked <= stream.told <= stream.last_seq
        assert self.total.used == stream.kept_bytes >= 0
        assert stream.lag_events >= 0
        assert stream.lag_bytes >= 0
        assert len(stream._sent) + len(stream._unsent) >= stream.kept_events
        assert stream.kept_bytes == sum(len(entry[1]) for entry in (*stream._sent, *stream._unsent))
        assert stream.unsent_events == len(stream._unsent)

    def teardown(self) -> None:
        if hasattr(self, "stream"):
            self.stream.clear()
            assert self.total.used == 0


TestStream = pytest.mark.requirement("P6.9", "P6.15", "P6.16", "P8.2", "S02", "S11", "S12", "S13", "S17")(
    StreamMachine.TestCase
)
TestStream.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)


@pytest.mark.requirement("P6.9", "S15")
def test_what_is_sent_again_is_the_same_byte_for_byte() -> None:
    stream = make()
    stream.append_rider(b'{"accepted":1}', keep=True)
    for size in range(5):
        stream.append(tail(size))
    first = stream.take(10**6)
    for _ in range(3):
        stream.rewind(0)
        assert stream.take(10**6) == first
    stream.rewind(3)
    assert stream.take(10**6) == first[4:]
    assert (stream.last_seq, stream.kept_events) == (5, 5)


@pytest.mark.requirement("P6.9")
def test_only_riders_that_are_kept_are_sent_again() -> None:
    stream = make()
    stream.append_rider(b'{"accepted":1}', keep=True)
    stream.append_rider(b'{"reply":1}', keep=False)
    stream.append(tail())
    stream.append_rider(b'{"cancelled":1}', keep=True)
    assert len(stream.take(10**6)) == 4
    stream.rewind(0)
    again = stream.take(10**6)
    assert (again[0], numbers(again[1:2]), again[2]) == (b'{"accepted":1}', [1], b'{"cancelled":1}')
    # One that stands behind all events is sent again to a client that has them all.
    stream.rewind(1)
    assert stream.take(10**6) == [b'{"cancelled":1}']


@pytest.mark.requirement("P6.16", "P6.18", "S12")
def test_what_was_sent_is_evicted_and_a_resume_from_before_it_is_refused() -> None:
    stream = make(window_events=10)
    for _ in range(25):
        stream.append(tail())
        stream.take(10**6)
        # A missing ack alone closes nothing.
        assert stream.shed() is None
    assert (stream.floor, stream.kept_events) == (15, 10)
    assert [stream.can_resume_from(last) for last in (14, 15, 25, 26)] == [False, True, True, False]
    stream.rewind(15)
    assert numbers(stream.take(10**6)) == list(range(16, 26))


@pytest.mark.requirement("P6.9", "P7.2", "S12")
def test_a_rider_is_evicted_with_the_event_that_it_stands_before() -> None:
    stream = make(window_bytes=200)
    stream.append_rider(b'{"accepted":1}', keep=True)
    stream.append(tail(100))
    stream.take(10**6)
    # Without the rider alone there would be room: but then the event could be replayed without its acceptance.
    stream.append(tail(50))
    assert stream.shed() is None
    assert (stream.floor, stream.can_resume_from(0)) == (1, False)
    assert stream.kept_bytes == len(tail(50))


@pytest.mark.requirement("P6.18")
def test_a_replay_longer_than_a_lag_may_be_closes_nothing() -> None:
    stream = make(window_events=10)
    for _ in range(10):
        stream.append(tail())
        stream.take(10**6)
    stream.rewind(0)
    for _ in range(5):
        stream.append(tail())
        assert stream.shed() is None
    stream.append(tail())
    assert stream.shed() == "window_events"


@pytest.mark.requirement("P6.15")
def test_acks_that_free_nothing() -> None:
    stream = make()
    for _ in range(5):
        stream.append(tail())
    assert not stream.acknowledge(1)
    stream.take(10**6)
    assert stream.acknowledge(3)
    assert [stream.acknowledge(seq) for seq in (3, 2, 0, -1, 6, 2**63 - 1)] == [False] * 6
    assert (stream.floor, stream.kept_events) == (3, 2)


@pytest.mark.requirement("P6.17", "H11")
def test_each_episode_of_lag_is_told_once() -> None:
    stream = make(lag_events=10, lag_bytes=10**6)
    told = 0
    for _ in range(3):
        for _ in range(30):
            told += stream.begins_to_lag(50)
            stream.append(tail())
        while stream.unsent_events:
            stream.take(100)
    assert told == 3
    # Half is not enough: it goes on.
    for _ in range(11):
        told += stream.begins_to_lag(50)
        stream.append(tail())
    while stream.unsent_events > 6:
        stream.take(1)
    for _ in range(20):
        told += stream.begins_to_lag(50)
        stream.append(tail())
    assert told == 4


@pytest.mark.requirement("P6.17")
def test_missing_acks_are_a_lag_too_where_they_were_negotiated() -> None:
    for unacked, wanted in ((10, 1), (None, 0)):
        stream = make(unacked_events=unacked)
        told = 0
        for _ in range(30):
            told += stream.begins_to_lag(50)
            stream.append(tail())
            stream.take(10**6)
        assert told == wanted
        if unacked:
            assert stream.acknowledge(27)
            for _ in range(10):
                told += stream.begins_to_lag(50)
                stream.append(tail())
                stream.take(10**6)
            assert told == 2


@pytest.mark.requirement("P6.17", "H11")
def test_who_never_acknowledges_still_hears_that_he_does_not_read() -> None:
    stream = make(unacked_events=10, lag_events=5)
    told = 0
    for _ in range(20):
        told += stream.begins_to_lag(50)
        stream.append(tail())
        stream.take(10**6)
    assert told == 1
    for _ in range(3):
        for _ in range(8):
            told += stream.begins_to_lag(50)
            stream.append(tail())
        while stream.unsent_events:
            stream.take(10**6)
    assert told == 4


def test_the_bytes_of_all_windows_together() -> None:
    total = WindowTotal(1000)
    bounds = StreamBounds(window_events=100, window_bytes=10**6, lag_events=50, lag_bytes=10**6, unacked_events=None)
    first, second = SessionStream(SESSION, bounds, total), SessionStream(SESSION[:-1] + "2", bounds, total)
    for _ in range(10):
        first.append(tail(60))
        first.take(10**6)
        assert first.shed() is None
    second.append(tail(300))
    # It has nothing that it could shed: what is unsent is too much.
    assert second.shed() == "windows_bytes"
    assert second.overflows
    # Who has most gives way, by halves, with what was sent.
    assert first.evict()
    assert (first.floor, first.shed(), second.shed()) == (5, None, None)
    assert [first.evict() for _ in range(4)] == [True, True, True, False]
    assert not second.evict()
    first.clear()
    second.clear()
    assert total.used == 0


@pytest.mark.requirement("P6.9", "P6.10")
def test_what_a_client_says_that_it_has_is_not_sent_again_though_this_stream_has_not_sent_it() -> None:
    """A resume from before it was cut short: the next one is from where the client really is."""
    stream = make()
    for _ in range(10):
        stream.append(tail())
    stream.take(10**6)
    stream.rewind(2)
    assert len(stream.take(1)) == 1
    stream.append_rider(b'{"reply":1}', keep=False)
    stream.rewind(8)
    assert (stream.told, stream.kept_events, stream.unsent_events) == (8, 10, 3)
    assert numbers(stream.take(10**6)) == [9, 10, None]
    assert stream.acknowledge(8)
    assert (stream.floor, stream.kept_events) == (8, 2)
    stream.rewind(8)
    assert numbers(stream.take(10**6)) == [9, 10]


@pytest.mark.requirement("P6.17", "P6.18", "P8.2")
@given(st.data())
@settings(deadline=None, max_examples=200)
def test_the_short_way_to_append_is_the_long_one(data: st.DataObject) -> None:
    """A stream that goes it where it can, beside one that never does: neither ever differs from the other."""
    draw = data.draw
    bounds = {
        "window_events": draw(st.integers(2, 30)),
        "window_bytes": draw(st.integers(100, 3000)),
        "lag_events": draw(st.integers(1, 20)),
        "lag_bytes": draw(st.integers(50, 2000)),
        "unacked_events": draw(st.none() | st.integers(1, 20)),
    }
    total = draw(st.integers(200, 4000))
    short, long = make(total, **bounds), make(total, **bounds)
    goes_short = 0

    def append_long(stream: SessionStream, content: bytes) -> tuple[bool, str | None]:
        told = stream.begins_to_lag(len(content))
        if told:
            stream.append(tail(7))
        stream.append(content)
        return told, stream.shed()

    for _ in range(draw(st.integers(1, 60))):
        step = draw(st.sampled_from(["append"] * 5 + ["take", "acknowledge", "ride", "rewind"]))
        if step == "append":
            content = tail(draw(st.integers(0, 200)))
            if short.append_calmly(content):
                goes_short += 1
                assert append_long(long, content) == (False, None)
            else:
                assert append_long(short, content) == append_long(long, content)
        elif step == "take":
            limit = draw(st.integers(1, 2000))
            assert short.take(limit) == long.take(limit)
        elif step == "ride":
            keep = draw(st.booleans())
            for stream in (short, long):
                stream.append_rider(b"{}", keep=keep)
        else:
            number = draw(st.integers(0, short.last_seq))
            for stream in (short, long):
                if step == "acknowledge":
                    stream.acknowledge(number)
                elif stream.can_resume_from(number):
                    stream.rewind(number)
        assert state_of(short) == state_of(long)
    event("the short way was gone" if goes_short else "it never was")


def state_of(stream: SessionStream) -> dict[str, Any]:
    """Return all that a stream is, but for what it splices with."""
    names = [name for name in SessionStream.__slots__ if name not in ("_splice", "_total")]
    return {name: getattr(stream, name) for name in names} | {"total": stream._total.used}


def test_the_short_way_is_the_common_one() -> None:
    stream = make(window_events=50, lag_events=20)
    for number in range(1, 200):
        assert stream.append_calmly(tail())
        assert numbers(stream.take(10_000)) == [number]
    # The window's bound on what was sent is kept all the same.
    assert (stream.kept_events, stream.floor) == (50, 149)
