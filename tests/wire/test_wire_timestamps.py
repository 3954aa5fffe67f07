"""Times on the wire, read and written."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcp_trio.wire.timestamps import WallClock, format_timestamp, parse_timestamp


@pytest.mark.requirement("P6.19")
@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.001Z", 1),
        ("1970-01-01T00:00:00.1Z", 100),
        ("1970-01-01T00:00:00.0019999999999Z", 1),
        ("1969-12-31T23:59:59.999Z", -1),
        ("2024-02-29T23:59:59.120Z", 1_709_251_199_120),
    ],
)
def test_a_time_is_read(text: str, milliseconds: int) -> None:
    assert parse_timestamp(text) == milliseconds


@pytest.mark.parametrize(
    "text",
    ["", "Z", "2023-02-29T00:00:00Z", "2024-13-01T00:00:00Z", "2024-01-01T00:60:00Z", "2024-01-01T00:00:00+00:00"],
)
def test_what_is_no_time_in_utc(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever it says: the caller names the field
        parse_timestamp(text)


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001  # the strategy adds it
def test_what_is_written_reads_as_the_same_instant(moment: datetime) -> None:
    seconds = moment.timestamp()
    for text in (format_timestamp(seconds), WallClock(lambda: seconds).timestamp()):
        assert parse_timestamp(text) == int(seconds * 1000)
