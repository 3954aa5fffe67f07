"""Ids and timestamps: their form, their order, and whose they are."""

from __future__ import annotations

import re
import time
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arcp_trio.wire.ids import IdFactory, event_id_stem, numbered_event_id
from arcp_trio.wire.timestamps import WallClock, format_timestamp

ULID = r"[0-7][0-9A-HJKMNP-TV-Z]{25}"
PREFIXES = {
    "message": "msg_",
    "session": "sess_",
    "job": "job_",
    "result": "res_",
    "call": "call_",
}

pytestmark = pytest.mark.requirement("P5.3")


def factory(times: list[int] | int, seed: int = 0) -> IdFactory:
    clock = iter(times) if isinstance(times, list) else iter(lambda: times, None)
    return IdFactory(now_ms=lambda: next(clock), random_bits=Random(seed).getrandbits)


@pytest.mark.parametrize("method", sorted(PREFIXES))
def test_what_is_minted_has_the_form_that_all_peers_take(method: str) -> None:
    minted = getattr(IdFactory(), method)()
    assert re.fullmatch(PREFIXES[method] + ULID, minted)
    # The Python client's own check (interop.md, section 2).
    assert re.fullmatch(r"[a-z]+_[0-9A-HJKMNP-TV-Z]{26}", minted)


def test_an_id_holds_the_time() -> None:
    # The example of the ULID specification: 1469918176385 is 01ARYZ6S41.
    assert factory(1469918176385).ulid().startswith("01ARYZ6S41")


@given(st.lists(st.integers(0, 2**48 - 1), min_size=2, max_size=40), st.integers(0, 2**32))
@example([5, 5, 5], 0)
@example([9, 8, 7, 10, 3], 0)
@settings(deadline=None, print_blob=True)
def test_ids_only_grow_whatever_the_clock_does(times: list[int], seed: int) -> None:
    ids = factory(times, seed)
    minted = [ids.ulid() for _ in times]
    assert minted == sorted(set(minted))
    assert all(re.fullmatch(ULID, each) for each in minted)


def test_the_random_part_counts_up_within_a_millisecond_and_cannot_overflow() -> None:
    ids = IdFactory(now_ms=lambda: 7, random_bits=lambda bits: 2**bits - 1)
    first, second = ids.ulid(), ids.ulid()
    assert first[:10] == second[:10]
    assert first[10:] == "FZZZZZZZZZZZZZZZ"
    assert second[10:] == "G000000000000000"


def test_the_clock_may_step_back_by_years() -> None:
    ids = factory([1_700_000_000_000, 1_000_000_000_000, 1_700_000_000_001])
    first, second, third = ids.job(), ids.message(), ids.session()
    assert first.partition("_")[2] < second.partition("_")[2] < third.partition("_")[2]


def test_ids_are_not_guessable_from_one_factory_to_the_next() -> None:
    assert len({IdFactory(now_ms=lambda: 7).ulid() for _ in range(50)}) == 50


@pytest.mark.requirement("P5.8")
@pytest.mark.parametrize("bits", [0, 1, 2**128 - 1])
def test_a_trace_id_is_32_hex_digits_and_never_zero(bits: int) -> None:
    trace_id = IdFactory(random_bits=lambda _: bits).trace()
    assert re.fullmatch("[0-9a-f]{32}", trace_id)
    assert trace_id.strip("0")


def test_an_event_id_is_a_function_of_session_and_number() -> None:
    session_id = IdFactory().session()
    stem = event_id_stem(session_id)
    assert numbered_event_id(stem, 5) == numbered_event_id(event_id_stem(str(session_id)), 5)
    for number in (1, 2, 1023, 1024, 2**31, 2**50 - 1):
        assert re.fullmatch("msg_" + ULID, numbered_event_id(stem, number))


@given(st.lists(st.integers(1, 2**50 - 1), min_size=2, max_size=50, unique=True))
@settings(deadline=None, print_blob=True)
def test_event_ids_sort_like_their_numbers(numbers: list[int]) -> None:
    stem = event_id_stem("sess_01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert [numbered_event_id(stem, each) for each in sorted(numbers)] == sorted(
        numbered_event_id(stem, each) for each in numbers
    )


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**32), st.integers(2, 60), st.integers(1, 2**40))
@settings(deadline=None, print_blob=True)
def test_events_of_sessions_of_one_millisecond_have_ids_of_their_own(
    now: int, seed: int, sessions: int, number: int
) -> None:
    ids = factory(now, seed)
    stems = [event_id_stem(ids.session()) for _ in range(sessions)]
    minted = {numbered_event_id(stem, number + step) for stem in stems for step in range(5)}
    assert len(minted) == 5 * sessions
    # Nor are they those of the messages beside them.
    assert minted.isdisjoint(ids.message() for _ in range(5))


@pytest.mark.parametrize("session_id", ["x", "", "ses_0192a0b1-aaaa-7bbb-8ccc-ddddeeeeffff", "sess_" + "é" * 26])
def test_a_session_id_of_another_form_has_a_stem_too(session_id: str) -> None:
    assert re.fullmatch("msg_.{26}", numbered_event_id(event_id_stem(session_id), 1))


# --- timestamps ---------------------------------------------------------------------------------------


@pytest.mark.requirement("L27")
@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (0.0009, "1970-01-01T00:00:00.000Z"),
        (0.999, "1970-01-01T00:00:00.999Z"),
        (1778701333, "2026-05-13T19:42:13.000Z"),
        (1778701333.25, "2026-05-13T19:42:13.250Z"),
        (951782400, "2000-02-29T00:00:00.000Z"),
        (4102444799.999, "2099-12-31T23:59:59.999Z"),
    ],
)
def test_a_timestamp(seconds: float, text: str) -> None:
    assert format_timestamp(seconds) == text
    assert WallClock(lambda: seconds).timestamp() == text


@given(st.lists(st.integers(0, 4 * 10**12), min_size=1, max_size=20))
@example([1000, 999, 1000, 1999, 2000])
@settings(deadline=None, print_blob=True)
def test_the_clock_forgets_the_second_that_it_kept(milliseconds: list[int]) -> None:
    """Forwards, backwards, within a second: always as a clock that keeps nothing would say."""
    now: dict[str, Any] = {}
    clock = WallClock(lambda: now["seconds"])
    for each in milliseconds:
        now["seconds"] = each / 1000
        assert clock.timestamp() == format_timestamp(each / 1000)
        assert clock.seconds() == each / 1000
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", clock.timestamp())


def test_the_zone_of_the_machine_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        assert format_timestamp(0) == "1970-01-01T00:00:00.000Z"
    finally:
        monkeypatch.undo()
        time.tzset()
