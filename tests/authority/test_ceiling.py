"""What of a lease is within a principal's ceiling: never more than either (P6.2, P7.2)."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from authority.reference import ALPHABETS, SEPARATORS, any_pattern, lease_of, rows, strings
from hypothesis import given, settings
from hypothesis import strategies as st

import arcp_trio
from arcp_trio.authority.lease import MAX_PATTERNS, Lease, LeaseCeiling
from arcp_trio.authority.patterns import Pattern
from arcp_trio.wire.timestamps import parse_timestamp

NOW = parse_timestamp("2026-05-13T19:42:13.123Z")


def within(grants: Any, ceiling: Any, **options: Any) -> Any:
    lease = Lease.read(grants, None, now_ms=NOW)
    return lease.within(LeaseCeiling(grants=ceiling), now_ms=NOW, **options).grants


TABLE: list[tuple[str, list[str], list[str], list[str]]] = [
    # What is within the ceiling stays; what the ceiling has of it stands in the place of what is not.
    ("fs.read", ["/ws/a"], ["/ws/**"], ["/ws/a"]),
    ("fs.read", ["/**"], ["/ws/**", "/tmp/*"], ["/ws/**", "/tmp/*"]),
    ("fs.read", ["/**", "/ws/a"], ["/ws/**"], ["/ws/a", "/ws/**"]),
    ("fs.read", ["/etc/**"], ["/ws/**"], []),
    # Of what overlaps, what both cover.
    ("fs.read", ["/ws/*/public/**"], ["/ws/me/**"], ["/ws/me/public/**"]),
    ("fs.read", ["/ws/me/**"], ["/ws/*/public/**"], ["/ws/me/public/**"]),
    ("fs.read", ["/ws/*/a"], ["/ws/b/*"], ["/ws/b/a"]),
    ("fs.read", ["/a*"], ["/*b"], ["/a*b"]),
    ("fs.read", ["/ab*"], ["/*bc"], ["/ab*bc", "/abc"]),
    ("fs.read", ["/aa*"], ["/*aa"], ["/aa*aa", "/aaa", "/aa"]),
    ("fs.read", ["/aba*a"], ["/a*ba"], ["/aba*ba"]),  # and not "/aba", which is too short for the first
    ("fs.read", ["/a*/**"], ["/*b/*/**"], ["/a*b/*/**"]),
    ("fs.read", ["/*/x/**"], ["/a/**"], ["/a/x/**"]),
    ("fs.read", ["/*/**"], ["/a/**"], ["/a/**"]),
    ("fs.read", ["/a*/*"], ["/*b/**"], ["/a*b/*"]),
    ("fs.read", ["/.*"], ["/*."], ["/.*."]),  # and "/.", which is no path
    # Where patterns cannot say it, nothing.
    ("fs.read", ["/**/a"], ["/b/**"], []),
    ("fs.read", ["/a*b*c"], ["/*d*"], []),
    ("tool.call", ["fs.*", "net:*"], ["*.read", "net.*"], ["fs.read"]),
    ("tool.call", ["a.**"], ["a:**"], ["a"]),
    ("tool.call", ["**"], ["a:**"], ["a:**"]),
    ("model.use", ["tier-fast/*"], ["*/small"], ["tier-fast/small"]),
    ("agent.delegate", ["helper"], ["helper@1.*"], ["helper@1.*"]),
    ("agent.delegate", ["help*"], ["*er@1.*"], ["help*er@1.*"]),
    ("agent.delegate", ["a*@1.*"], ["*b@*.2"], ["a*b@1.*.2", "a*b@1.2"]),
    ("agent.delegate", ["a*@1"], ["*b@2"], []),
    ("agent.delegate", ["a*"], ["*b"], ["a*b"]),
    ("net.fetch", ["https://**"], ["https://*.good.com/**"], ["https://*.good.com/**"]),
    ("net.fetch", ["https://*/api/**"], ["https://good.com/**"], ["https://good.com/api/**"]),
    ("net.fetch", ["https://*:*/api"], ["https://good.com/**"], ["https://good.com/api"]),
    ("net.fetch", ["https://*/api"], ["https://good.com:8443/**"], []),
    ("net.fetch", ["http://1*/a"], ["http://*1/*"], ["http://1*1/a"]),  # and "http://1/a", which is another host
]


@pytest.mark.requirement("P6.2", "P7.2")
@pytest.mark.parametrize(("namespace", "asked", "ceiling", "expected"), TABLE)
def test_what_of_some_patterns_is_within_others(
    namespace: str, asked: list[str], ceiling: list[str], expected: list[str]
) -> None:
    grants = within({namespace: asked}, {namespace: ceiling})
    assert grants == ({namespace: tuple(expected)} if expected else {})


@pytest.mark.requirement("P6.2")
def test_a_ceiling_bounds_each_namespace() -> None:
    asked = {"fs.read": ["/a"], "fs.write": ["/a"], "tool.call": ["a"], "cost.budget": ["USD:1"]}
    assert within(asked, {"fs.read": ["/**"], "fs.write": [], "x.own": ["a"]}) == {
        "fs.read": ("/a",),
        "cost.budget": ("USD:1",),
    }
    assert within(asked, {}) == {"cost.budget": ("USD:1",)}
    assert within(asked, None) == Lease.read(asked, None, now_ms=NOW).grants
    assert within({}, {"fs.read": ["/**"]}) == {}


@pytest.mark.requirement("P6.2", "P9.8")
def test_a_ceiling_bounds_the_models_of_a_job_that_has_all_unless_it_names_some() -> None:
    ceiling = {"model.use": ["tier-fast/*"]}
    assert within({}, ceiling, open_models=True) == {"model.use": ("tier-fast/*",)}
    assert within({"model.use": ["tier-fast/a", "b"]}, ceiling, open_models=True) == {"model.use": ("tier-fast/a",)}
    assert within({"model.use": ["b"]}, {}, open_models=True) == {"model.use": ("b",)}
    # Absent would be all of them: nothing is left, and it says so.
    assert within({"model.use": ["b"]}, ceiling, open_models=True) == {"model.use": ()}
    # Where absent is none, nobody is given what he did not ask for.
    assert within({}, ceiling) == {}
    assert within({"model.use": ["b"]}, ceiling) == {}
    assert within({"model.use": ["b"]}, {}) == {}


@pytest.mark.requirement("P6.2", "P9.7")
@pytest.mark.parametrize(
    ("asked", "ceiling", "expected"),
    [
        ([], ["USD:5"], ("USD:5",)),
        (["USD:9"], ["USD:5.00"], ("USD:5.00",)),
        (["USD:1.50"], ["USD:5"], ("USD:1.50",)),
        (["USD:5.0"], ["USD:5"], ("USD:5.0",)),
        (["EUR:9"], ["USD:5"], ("EUR:9", "USD:5")),
        (["usd:9"], ["USD:5"], ("usd:9", "USD:5")),
        (["USD:9", "EUR:0"], ["EUR:1", "USD:0.01"], ("USD:0.01", "EUR:0")),
        (["USD:9"], [], ("USD:9",)),
    ],
)
def test_the_smaller_amount_of_each_currency_holds(
    asked: list[str], ceiling: list[str], expected: tuple[str, ...]
) -> None:
    lease = Lease.read({"cost.budget": asked} if asked else {}, None, now_ms=NOW)
    assert lease.within(LeaseCeiling(budget=ceiling), now_ms=NOW).grants["cost.budget"] == expected


@pytest.mark.requirement("P6.2", "P9.6")
@pytest.mark.parametrize(
    ("asked", "seconds", "expected"),
    [
        (None, None, None),
        (None, 60, "2026-05-13T19:43:13.123Z"),
        (None, 0.001, "2026-05-13T19:42:13.124Z"),
        ("2026-05-13T19:43:13.124Z", 60, "2026-05-13T19:43:13.123Z"),
        ("2026-05-13T19:43:13.123000Z", 60, "2026-05-13T19:43:13.123000Z"),
        ("2026-05-13T19:43:13Z", 60, "2026-05-13T19:43:13Z"),
        ("2099-01-01T00:00:00Z", None, "2099-01-01T00:00:00Z"),
    ],
)
def test_the_earlier_end_holds(asked: str | None, seconds: float | None, expected: str | None) -> None:
    lease = Lease.read({}, asked, now_ms=NOW).within(LeaseCeiling(lifetime_seconds=seconds), now_ms=NOW)
    assert lease.expires_at == expected
    assert lease.expires_at_ms == (None if expected is None else parse_timestamp(expected))


@pytest.mark.requirement("P6.2")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grants": {"fs.read": ["a"]}}, '"fs.read"[0]: expected an absolute path'),
        ({"grants": {"FS": ["a"]}}, "a namespace"),
        ({"grants": {"fs.read": "/a"}}, '"fs.read": expected a list'),
        ({"grants": {"cost.budget": ["USD:1"]}}, "given as budget"),
        ({"budget": ["USD"]}, "budget[0]: expected an amount"),
        ({"budget": ["USD:1", "USD:2"]}, "budget[1]"),
        ({"lifetime_seconds": 0}, "lifetime_seconds"),
        ({"lifetime_seconds": 0.0009}, "lifetime_seconds"),
        ({"lifetime_seconds": 1e12}, "lifetime_seconds"),
        ({"lifetime_seconds": -1}, "lifetime_seconds"),
        ({"lifetime_seconds": float("nan")}, "lifetime_seconds"),
        ({"lifetime_seconds": float("inf")}, "lifetime_seconds"),
    ],
)
def test_a_mistake_in_a_ceiling_is_found_by_who_makes_it(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # what it says is compared
        LeaseCeiling(**options)
    assert said in str(caught.value)


def test_a_ceiling_is_a_value() -> None:
    one = LeaseCeiling(grants={"fs.read": ["/a/"]}, budget=["USD:1"], lifetime_seconds=5)
    other = arcp_trio.LeaseCeiling(grants={"fs.read": ("/a",)}, budget=("USD:1",), lifetime_seconds=5)
    assert (one, hash(one)) == (other, hash(other))
    assert one != LeaseCeiling(grants={"fs.read": ["/b"]}, budget=["USD:1"], lifetime_seconds=5)
    assert LeaseCeiling() != LeaseCeiling(grants={})


# --- never wider than either --------------------------------------------------------------------------


@pytest.mark.requirement("P6.2", "P7.2")
@pytest.mark.parametrize("namespace", sorted(ALPHABETS))
@settings(deadline=None, max_examples=40, print_blob=True)
@given(data=st.data())
def test_what_is_left_is_within_both(namespace: str, data: st.DataObject) -> None:
    """Of every string over a small alphabet, and as patterns: no target that one of the two does not cover."""
    drawn = [data.draw(st.lists(any_pattern(namespace), min_size=1, max_size=4)) for _ in range(2)]
    asked, ceiling = (lease_of(namespace, *patterns) for patterns in drawn)
    left = asked.within(LeaseCeiling(grants={namespace: drawn[1]}), now_ms=0)
    assert left.excess_over(asked) is None
    assert left.excess_over(ceiling) is None
    root = "/" if namespace == "fs.read" else ""
    for text in strings(ALPHABETS[namespace], 6):
        if left.covers(namespace, root + text):
            assert asked.covers(namespace, root + text), (drawn, text)
            assert ceiling.covers(namespace, root + text), (drawn, text)
    # What is left is a lease that can be asked for, and nothing goes of it a second time.
    if left.grants:
        assert Lease.read(left.grants, None, now_ms=0) == left
        assert left.within(LeaseCeiling(grants={namespace: drawn[1]}), now_ms=0) == left


@pytest.mark.requirement("P6.2")
@pytest.mark.parametrize("namespace", ["fs.read", "tool.call", "model.use"])
def test_what_is_left_is_all_that_both_cover_where_patterns_can_say_it(namespace: str) -> None:
    """Each pattern with each, of one or two segments, with ``**`` at most at the end: nothing is lost."""
    words, texts = ["a", "ab", "*", "a*", "*b"], ["a", "ab", "b", "c", "aab"]
    if namespace == "tool.call":
        words, texts = ["a", "*", "a*"], ["a", "ab", "c"]
    patterns = [
        pattern
        for pattern in rows(namespace, [*words, "**"], SEPARATORS[namespace][:2], 2)
        if "**" not in pattern[:-2] and not pattern.startswith("**")
    ]
    targets = list(rows(namespace, texts, SEPARATORS[namespace], 3))

    def covered(lease: Lease) -> set[str]:
        return {target for target in targets if lease.covers(namespace, target)}

    leases = {pattern: lease_of(namespace, pattern) for pattern in patterns}
    everything = {pattern: covered(lease) for pattern, lease in leases.items()}
    for one, other in product(patterns, repeat=2):
        left = leases[one].within(LeaseCeiling(grants={namespace: [other]}), now_ms=0)
        assert covered(left) == everything[one] & everything[other], (one, other)


@pytest.mark.requirement("P6.2")
def test_what_is_left_has_a_bound_too() -> None:
    asked = [f"/{letter}{number}*" for letter in "ab" for number in range(100)]
    ceiling = [f"/*{number}" for number in range(200)]
    left = within({"fs.read": asked}, {"fs.read": ceiling})
    assert len(left["fs.read"]) == MAX_PATTERNS


@pytest.mark.requirement("P6.2")
def test_no_more_is_written_than_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty thousand pairs that overlap: the rest is not looked at once there are as many as a lease may have."""
    lease = lease_of("fs.read", *(f"/{number}a*" for number in range(200)))
    ceiling = LeaseCeiling(grants={"fs.read": [f"/*b{number}" for number in range(200)]})
    written: list[tuple[str, str]] = []
    read = Pattern.read

    def count(namespace: str, text: str) -> Pattern:
        written.append((namespace, text))
        return read(namespace, text)

    monkeypatch.setattr(Pattern, "read", count)
    assert len(lease.within(ceiling, now_ms=0).grants["fs.read"]) == len(written) == MAX_PATTERNS
