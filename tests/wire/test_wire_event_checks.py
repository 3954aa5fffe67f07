"""What an agent may emit: checked before it takes a number (P8.1)."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest

from arcp_trio.wire import events
from arcp_trio.wire.errors import InvalidRequestError
from arcp_trio.wire.jsontext import encode_json

pytestmark = pytest.mark.requirement("P8.1")


def refusal(function: Any, *args: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        function(*args)
    return caught.value.message


def test_there_are_ten_kinds() -> None:
    assert set(events.EVENT_BODIES) == {
        "log",
        "thought",
        "tool_call",
        "tool_result",
        "status",
        "metric",
        "artifact_ref",
        "delegate",
        "progress",
        "result_chunk",
    }


@pytest.mark.requirement("P8.4", "X14")
@pytest.mark.parametrize(
    ("current", "total"), [(0, None), (0, 0), (0.5, 1), (3, 3), (10**40, None), (1, 10**40), (0.0, None)]
)
def test_progress(current: Any, total: Any) -> None:
    events.check_progress(current, total)


@pytest.mark.requirement("P8.4", "X14")
@pytest.mark.parametrize(
    ("current", "total", "path"),
    [
        (-1, None, "$.body.current"),
        (-0.001, 5, "$.body.current"),
        (2, 1, "$.body.current"),
        (math.nan, None, "$.body.current"),
        (math.inf, None, "$.body.current"),
        (True, None, "$.body.current"),
        ("1", None, "$.body.current"),
        (None, None, "$.body.current"),
        (1, math.nan, "$.body.total"),
        (1, math.inf, "$.body.total"),
        (0, -1, "$.body.total"),
        (0, True, "$.body.total"),
        (0, "9", "$.body.total"),
    ],
)
def test_no_progress(current: Any, total: Any, path: str) -> None:
    assert refusal(events.check_progress, current, total).startswith(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", -5),
        ("cost.x", 0),
        ("cost.x", 0.5),
        ("m", 10**40),
        ("m", 10**400),
        ("cost.x", Decimal("0.0234")),
        ("m", Decimal("-1E+300")),
    ],
)
def test_a_metric(name: str, value: Any) -> None:
    events.check_metric(name, value)


@pytest.mark.requirement("P8.6")
@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("cost.x", -1, "$.body.value"),
        ("cost.x", -0.01, "$.body.value"),
        ("tokens", math.nan, "$.body.value"),
        ("tokens", -math.inf, "$.body.value"),
        ("tokens", True, "$.body.value"),
        ("tokens", "1", "$.body.value"),
        ("tokens", None, "$.body.value"),
        ("tokens", Decimal("NaN"), "$.body.value"),
        ("tokens", Decimal("sNaN"), "$.body.value"),
        ("tokens", Decimal("1E+999999"), "$.body.value"),
        ("cost.x", Decimal("-0.01"), "$.body.value"),
        ("cost.budget.remaining", 1, "$.body.name"),
    ],
)
def test_no_metric(name: str, value: Any, path: str) -> None:
    assert refusal(events.check_metric, name, value).startswith(path)


def test_a_huge_integer_is_not_written_out_to_be_refused() -> None:
    for name, value in (("cost.x", -(10**5000)), ("cost.x", -(2**200))):
        message = refusal(events.check_metric, name, value)
        assert message == f"$.body.value: expected at least 0, got an integer of {value.bit_length()} bits"


@pytest.mark.requirement("P9.7", "B09")
def test_what_is_a_cost() -> None:
    for name in ("cost.x", "cost.inference.input", "cost.budgets", "cost."):
        assert events.is_cost(name)
    for name in ("cost", "costs.x", "tokens", "cost.budget", "cost.budget.remaining", "cost.budget.x"):
        assert not events.is_cost(name)


@pytest.mark.requirement("P8.6")
def test_a_phase() -> None:
    events.check_phase("reading")
    for phase in ("", "back_pressure", "credential_rotated"):
        assert refusal(events.check_phase, phase).startswith("$.body.phase")


def test_a_kind_of_the_agents_own() -> None:
    for kind in ("x-a", "x-vendor.thing"):
        events.check_vendor_kind(kind)
    for kind in ("", "x", "x-", "log", "X-A", "vendor.x", " x-a"):
        assert refusal(events.check_vendor_kind, kind).startswith("$.kind")


def test_the_kinds_are_encoded_as_they_would_be_anew() -> None:
    assert {kind: encode_json(kind) for kind in events.EVENT_BODIES} == events.ENCODED_KINDS
