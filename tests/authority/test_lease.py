"""Leases as values: what can be asked for, what it is read as, and when it ends."""

from __future__ import annotations

from typing import Any

import pytest
from authority.reference import lease_of

import arcp_trio
from arcp_trio.authority.lease import MAX_LEASE_CHARACTERS, MAX_LEASE_PATTERNS, MAX_PATTERNS, Lease
from arcp_trio.authority.targets import MAX_PATTERN, MAX_SEGMENTS
from arcp_trio.wire.errors import InvalidRequestError, PermissionDeniedError
from arcp_trio.wire.jsontext import encode_json
from arcp_trio.wire.timestamps import parse_timestamp

NOW = parse_timestamp("2026-05-13T19:42:13.500Z")


def refusal(grants: Any, expires_at: str | None = None, **options: Any) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        Lease.read(grants, expires_at, now_ms=NOW, **options)
    assert type(caught.value) is InvalidRequestError
    return caught.value.message


# --- grants ---------------------------------------------------------------------------------------

MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"": ["/a"]}, ":"),
    ({"FS.read": ["/a"]}, ":"),
    ({"fs..read": ["/a"]}, ":"),
    ({".fs": ["/a"]}, ":"),
    ({"fs.": ["/a"]}, ":"),
    ({"fs read": ["/a"]}, ":"),
    ({"fs.read\n": ["/a"]}, ":"),
    ({"f\xe9": ["/a"]}, ":"),
    ({"a" * 129: ["a"]}, ":"),
    ({"fs.read": []}, '."fs.read":'),
    ({"fs.read": ()}, '."fs.read":'),
    ({"fs.read": "/a"}, '."fs.read":'),
    ({"cost.budget": []}, '."cost.budget":'),
    ({"fs.read": [""]}, '."fs.read"[0]:'),
    ({"fs.read": ["/a", "/b\n"]}, '."fs.read"[1]:'),
    ({"fs.read": ["/a", "/b\x7f"]}, '."fs.read"[1]:'),
    ({"fs.read": ["/a", "/b\x9b"]}, '."fs.read"[1]:'),
    ({"fs.read": ["/a\0"]}, '."fs.read"[0]:'),
    ({"tool.call": ["\ud800"]}, '."tool.call"[0]:'),
    ({"fs.read": ["a"]}, '."fs.read"[0]:'),
    ({"fs.read": ["*"]}, '."fs.read"[0]:'),
    ({"fs.read": ["**"]}, '."fs.read"[0]:'),
    ({"fs.read": ["./a"]}, '."fs.read"[0]:'),
    ({"fs.read": ["/a/.."]}, '."fs.read"[0]:'),
    ({"fs.read": ["/a/./b"]}, '."fs.read"[0]:'),
    ({"fs.write": ["/a\\b"]}, '."fs.write"[0]:'),
    ({"fs.read": ["/a/**b"]}, '."fs.read"[0]:'),
    ({"fs.read": ["/a/b**"]}, '."fs.read"[0]:'),
    ({"fs.read": ["/a/***"]}, '."fs.read"[0]:'),
    ({"fs.read": ["/a/*.*/**.txt"]}, '."fs.read"[0]:'),
    ({"tool.call": ["a.**b"]}, '."tool.call"[0]:'),
    ({"tool.call": ["a.**:**"]}, '."tool.call"[0]:'),
    ({"tool.call": ["a/../b"]}, '."tool.call"[0]:'),
    ({"model.use": ["tier/.."]}, '."model.use"[0]:'),
    ({"agent.delegate": ["a@1@2"]}, '."agent.delegate"[0]:'),
    ({"agent.delegate": ["a@"]}, '."agent.delegate"[0]:'),
    ({"agent.delegate": ["@1"]}, '."agent.delegate"[0]:'),
    ({"cost.budget": ["USD:1", "USD"]}, '."cost.budget"[1]:'),
    ({"cost.budget": ["USD:1", "USD:2"]}, '."cost.budget"[1]:'),
    ({"fs.read": ["/" + "a" * MAX_PATTERN]}, '."fs.read"[0]:'),
    ({"fs.read": ["/a" * (MAX_SEGMENTS + 1)]}, '."fs.read"[0]:'),
    ({"net.fetch": ["https://a.com/" + "\xe9" * (MAX_PATTERN // 4)]}, '."net.fetch"[0]:'),
    ({"x.y": ["a"] * (MAX_PATTERNS + 1)}, '."x.y":'),
    ({f"x.y{n}": ["a"] * MAX_PATTERNS for n in range(MAX_LEASE_PATTERNS // MAX_PATTERNS + 1)}, ":"),
    ({f"x.y{n}": ["a" * 2000] * 20 for n in range(MAX_LEASE_CHARACTERS // 40_000 + 1)}, ":"),
]


@pytest.mark.requirement("P9.1", "P9.2", "P9.3", "P5.5", "G22", "B12")
@pytest.mark.parametrize(("grants", "path"), MALFORMED)
def test_what_is_no_lease_is_refused_by_its_path(grants: dict[str, Any], path: str) -> None:
    assert refusal(grants).startswith("$.payload.lease_request" + path)
    assert refusal(grants, path="$").startswith("$.lease_request" + path)


@pytest.mark.requirement("P9.1")
def test_the_largest_lease_is_read() -> None:
    largest = {
        "fs.read": ["/" + "a" * (MAX_PATTERN - 1), "/*" * MAX_SEGMENTS],
        "a" * 128: ["a"],
        "x.y": [f"tool{n}" for n in range(MAX_PATTERNS)],
    }
    lease = Lease.read(largest, None, now_ms=NOW)
    assert lease.covers("x.y", f"tool{MAX_PATTERNS - 1}")
    assert lease.covers("fs.read", "/a" * MAX_SEGMENTS)


@pytest.mark.requirement("P9.1", "P9.3")
def test_a_lease_shows_canonical_patterns_each_once_in_the_order_they_were_asked_for() -> None:
    asked = {
        "x.own": ["b", "a", "b"],
        "fs.read": ["/b//c/", "/a/**/**", "/b/c", "/a/**"],
        "net.fetch": ["HTTPS://A.com:443", "https://a.com/"],
        "agent.delegate": ["helper@**", "helper"],
        "tool.call": ["**.**", "a.**.**"],
        "cost.budget": ["USD:5.00", "credits:1000"],
    }
    lease = Lease.read(asked, None, now_ms=NOW)
    assert list(lease.grants.items()) == [
        ("x.own", ("b", "a")),
        ("fs.read", ("/b/c", "/a/**")),
        ("net.fetch", ("https://a.com/",)),
        ("agent.delegate", ("helper",)),
        ("tool.call", ("**", "a.**")),
        ("cost.budget", ("USD:5.00", "credits:1000")),
    ]
    assert Lease.read(lease.grants, None, now_ms=NOW) == lease
    # It goes into job.accepted as it is.
    assert encode_json(lease.grants).startswith(b'{"x.own":["b","a"],"fs.read"')


def test_a_lease_is_a_value() -> None:
    one = Lease.read({"fs.read": ["/a/"]}, "2099-01-01T00:00:00Z", now_ms=NOW)
    other = Lease.read({"fs.read": ["/a"]}, "2099-01-01T00:00:00Z", now_ms=NOW + 1)
    assert one.covers("fs.read", "/a")
    assert (one, hash(one), one.at_rest()) == (other, hash(other), other)
    assert one != Lease.read({"fs.read": ["/a"]}, "2099-01-01T00:00:01Z", now_ms=NOW)
    assert one != lease_of("fs.read", "/a")
    assert one != "a lease"
    assert repr(one) == "<Lease of fs.read: 1, until 2099-01-01T00:00:00Z>"
    assert repr(Lease.EMPTY) == "<Lease of nothing>"
    assert arcp_trio.Lease is Lease
    with pytest.raises(AttributeError):
        one.expires_at = None  # type: ignore[misc]


def test_asking_says_the_same_as_covering() -> None:
    """``canonical`` does not depend on the grants, ``covers`` takes any spelling."""
    lease = lease_of("fs.read", "/ws/**")
    assert lease.canonical("fs.read", "/ws/../etc") == "/etc"
    assert not lease.covers("fs.read", "/ws/../etc")
    assert lease.covers("fs.read", "/etc/../ws/a")
    with pytest.raises(PermissionDeniedError, match="absolute"):
        lease.canonical("fs.read", "ws")
    with pytest.raises(PermissionDeniedError, match="nothing is done with a budget"):
        lease.canonical("cost.budget", "USD:1")


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.requirement("P9.6")
@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2026-05-13T19:42:13.501Z", NOW + 1),
        ("2026-05-13T19:42:14Z", NOW + 500),
        ("2026-05-13T19:42:13.501999999Z", NOW + 1),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ],
)
def test_an_end_in_the_future_is_kept_as_it_was_written(text: str, milliseconds: int) -> None:
    lease = Lease.read({}, text, now_ms=NOW)
    assert (lease.expires_at, lease.expires_at_ms) == (text, milliseconds)
    assert (Lease.EMPTY.expires_at, Lease.EMPTY.expires_at_ms) == (None, None)


@pytest.mark.requirement("P9.6", "G11")
@pytest.mark.parametrize(
    "text",
    ["2026-05-13T19:42:13.500Z", "2026-05-13T19:42:13.5009Z", "2026-05-13T19:42:12.500Z", "1969-12-31T23:59:59Z"],
)
def test_an_end_that_has_come_is_refused(text: str) -> None:
    assert refusal({}, text).startswith(f"$.payload.lease_constraints.expires_at: {text} is not in the future")


@pytest.mark.requirement("P9.6", "G11", "G12")
@pytest.mark.parametrize(
    "text",
    [
        "2099-01-01T00:00:00+02:00",
        "2099-01-01T00:00:00+00:00",
        "2099-01-01T00:00:00-00:00",
        "2099-01-01T00:00:00z",
        "2099-01-01t00:00:00Z",
        "2099-01-01 00:00:00Z",
        "2099-01-01T00:00:00",
        "2099-01-01",
        "2098-12-31T23:59:60Z",
        "2099-01-01T24:00:00Z",
        "2099-02-29T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "+2099-01-01T00:00:00Z",
        "2099-01-01T00:00:00.Z",
        "2099-01-01T00:00:00Z\n",
        " 2099-01-01T00:00:00Z",
        "\uff12099-01-01T00:00:00Z",
        "4070908800",
        "tomorrow",
        "",
    ],
)
def test_an_end_that_is_no_time_in_utc_is_refused(text: str) -> None:
    assert refusal({}, text).startswith("$.payload.lease_constraints.expires_at: expected a time in UTC")


@pytest.mark.requirement("P9.5", "P9.6", "P10.2")
def test_an_end_is_within_one_that_is_not_earlier() -> None:
    def ending(text: str | None) -> Lease:
        return Lease.read({}, text, now_ms=NOW)

    early, late = "2099-01-01T00:00:00Z", "2099-01-01T00:00:00.001Z"
    assert ending(early).excess_over(ending(late)) is None
    assert ending(early).excess_over(ending(early)) is None
    assert ending(early).excess_over(ending(None)) is None
    assert ending(late).excess_over(ending(early)) == f"expires_at: {late} is later than {early}"
    # One that never ends is no part of one that does; a child without an end has its parent's.
    assert ending(None).excess_over(ending(early)) == f"expires_at: never is later than {early}"
    assert ending(None).inherit(ending(early)) == ending(early)
    assert ending(early).inherit(ending(late)) == ending(early)
    assert ending(late).inherit(ending(early)) == ending(late)


@pytest.mark.requirement("P9.8", "P10.2")
def test_a_child_that_names_no_model_has_none_where_its_parent_names_some() -> None:
    parent = lease_of("model.use", "a/*")
    child = lease_of("tool.call", "a")
    assert child.inherit(parent).grants == {"tool.call": ("a",), "model.use": ()}
    assert not child.inherit(parent).covers("model.use", "a/b")
    assert child.inherit(lease_of("fs.read", "/a")) == child
    assert parent.inherit(parent) == parent


# --- the budget -----------------------------------------------------------------------------------


@pytest.mark.requirement("P9.7", "B13")
def test_max_budget_bounds_the_budget() -> None:
    def budget(asked: list[str] | None, most: list[str] | None) -> Any:
        grants = {} if asked is None else {"cost.budget": asked}
        return Lease.read(grants, None, now_ms=NOW, max_budget=most).grants.get("cost.budget")

    assert budget(["USD:1.00"], ["USD:1"]) == ("USD:1.00",)
    assert budget(["USD:0.5"], ["USD:1"]) == ("USD:0.5",)
    assert budget(["EUR:2"], ["USD:1"]) == ("EUR:2", "USD:1")
    assert budget(None, ["USD:1", "credits:5"]) == ("USD:1", "credits:5")
    assert budget(["USD:2"], None) == ("USD:2",)
    assert budget(["USD:2"], []) == ("USD:2",)
    assert budget(None, None) is None

    request, bound = "$.payload.lease_request", "$.payload.lease_constraints.max_budget"
    above = refusal({"cost.budget": ["EUR:9", "USD:1.01"]}, max_budget=["USD:1"])
    assert above == f'{request}."cost.budget": USD:1.01 is above max_budget, 1'
    assert refusal({}, max_budget=["USD:-1"]).startswith(f"{bound}[0]: expected an amount")
    assert refusal({"cost.budget": ["USD:1"]}, max_budget=["USD"]).startswith(f"{bound}[0]:")
