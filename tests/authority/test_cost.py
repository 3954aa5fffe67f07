"""What a check costs: work is counted, not timed; no input makes it long, and nothing makes it longer with time."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import pytest

from arcp_trio.authority import patterns, targets
from arcp_trio.authority.lease import MAX_LEASE_CHARACTERS, MAX_PATTERNS, Lease, LeaseCeiling
from arcp_trio.authority.patterns import WORK_LIMIT, Glob, Matcher, Pattern, Work
from arcp_trio.authority.targets import parse_url_fully, parse_url_strictly
from arcp_trio.wire.errors import InvalidRequestError

TEN_KILOBYTES = 10_000


def work(does: Callable[[], Any]) -> int:
    """Return how many lines of Python a call runs; what one of them costs inside of the interpreter is linear."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        does()
    finally:
        sys.settrace(before)
    return count


def lease_of(namespace: str, texts: Sequence[str]) -> Lease:
    return Lease.read({namespace: texts}, None, now_ms=0)


@pytest.mark.requirement("P9.2", "G10")
def test_each_pattern_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(cls: type[Any], name: str) -> None:
        original = getattr(cls, name)

        def count(*args: Any) -> Any:
            calls[f"{cls.__name__}.{name}"] += 1
            return original(*args)

        monkeypatch.setattr(cls, name, staticmethod(count) if name == "read" else count)

    counted(Pattern, "read")
    counted(patterns._Automaton, "add")
    counted(Glob, "__init__")
    lease = Lease.read({"fs.read": [f"/ws/{n}/*.txt" for n in range(50)], "tool.call": ["a.*", "b"]}, None, now_ms=0)
    parent = Lease.read(lease.grants, None, now_ms=0)
    for number in range(10_000):
        lease.covers("fs.read", f"/ws/{number % 50}/{number}.txt")
        lease.covers("tool.call", f"a.{number}")
        if number % 100 == 0:
            assert lease.excess_over(parent) is None
            assert lease.inherit(parent).covers("tool.call", "b")
    # Of both leases each pattern; of the one that is asked those that are no single target, and their one glob.
    assert calls == {"Pattern.read": 104, "_Automaton.add": 51, "Glob.__init__": 1}


@pytest.mark.requirement("P9.2", "G10")
def test_a_check_costs_the_same_whatever_was_checked_before() -> None:
    lease = Lease.read(
        {
            "fs.read": [f"/ws/project{n}/**/*.txt" for n in range(100)],
            "net.fetch": [f"https://*.host{n}.example/api/**" for n in range(100)],
        },
        None,
        now_ms=0,
    )
    checks = [("fs.read", "/ws/project99/a/b.txt", True), ("fs.read", "/ws/other/b", False)]
    checks += [("net.fetch", "https://a.host99.example/api/b", True), ("net.fetch", "https://evil.example/", False)]

    def check() -> None:
        for namespace, target, expected in checks:
            assert lease.covers(namespace, target) is expected

    check()
    first = work(check)
    tracemalloc.start()
    try:
        for number in range(3_000):
            lease.covers("fs.read", f"/ws/project{number % 100}/{number}/a.txt")
            lease.covers("net.fetch", f"https://a.host{number % 100}.example/api/{number}")
            if number == 100:
                gc.collect()
                kept, _ = tracemalloc.get_traced_memory()
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert work(check) == first
    assert grown - kept < TEN_KILOBYTES


@pytest.mark.requirement("P9.2")
def test_a_check_does_not_grow_with_the_patterns_that_begin_otherwise() -> None:
    """A hundred patterns cost what one costs, but for the globs of the segments that are reached."""

    def costs(count: int) -> int:
        lease = lease_of("fs.read", [f"/ws/project{n}/src/**" for n in range(count)])
        lease.covers("fs.read", "/")
        return work(lambda: lease.covers("fs.read", "/ws/project0/src/a/b/c"))

    assert costs(100) == costs(1)


HOSTILE: dict[str, tuple[str, Callable[[int], list[str]], Callable[[int], str]]] = {
    # What makes matchers that go back take exponential time: the last piece fails.
    "stars": ("tool.call", lambda size: ["a*" * (size // 2) + "b"], lambda size: "a" * size),
    "stars of one segment": ("fs.read", lambda size: ["/" + "*a" * (size // 2) + "b"], lambda size: "/" + "a" * size),
    "double stars": ("fs.read", lambda size: ["/**/a" * (size // 5) + "/b"], lambda size: "/a" * (size // 2)),
    "double stars of globs": ("fs.read", lambda size: ["/**/a*" * (size // 6) + "/b"], lambda size: "/a" * (size // 2)),
    "names": ("tool.call", lambda size: ["**.a.*" * (size // 6)], lambda size: "a." * (size // 2) + "a"),
    "many": ("fs.read", lambda size: [f"/**/{n}*/b" for n in range(size // 8)], lambda size: "/1" * (size // 2)),
    "one piece": ("tool.call", lambda size: ["*" + "a" * (size // 2) + "b*"], lambda size: "a" * size),
    "hosts": (
        "net.fetch",
        lambda size: ["https://" + "*.a" * (size // 3) + "/**"],
        lambda size: "https://" + "a." * (size // 2) + "a/",
    ),
    "encodings": (
        "net.fetch",
        lambda size: ["https://a.com/" + "%41" * (size // 3)],
        lambda s: "https://a.com/" + "%41" * (s // 3),
    ),
    "dots": ("fs.read", lambda size: ["/" + "." * size], lambda size: "/a/.." * (size // 5)),
    "slashes": ("fs.read", lambda size: ["/" * size], lambda size: "/" * size),
    "colons": ("net.fetch", lambda size: ["https://" + ":" * size], lambda size: "https://" + ":@" * (size // 2)),
    "labels": (
        "net.fetch",
        lambda size: ["https://" + "xn--" * (size // 4)],
        lambda size: "https://" + "\xe9." * (size // 2),
    ),
}


@pytest.fixture(params=["ada-url", "strict"])
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = parse_url_fully if request.param == "ada-url" else parse_url_strictly
    monkeypatch.setattr(targets, "url_parser", lambda: chosen)


@pytest.mark.requirement("P9.2", "P9.3")
@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_no_input_of_ten_kilobytes_is_long_work(name: str) -> None:
    """Whatever is in the lease and in the target: refused, or read and asked in some thousands of lines of Python."""
    namespace, make_patterns, make_target = HOSTILE[name]

    def ask(pattern_size: int, target_size: int) -> None:
        try:
            lease = lease_of(namespace, make_patterns(pattern_size))
        except InvalidRequestError:
            lease = lease_of(namespace, {"fs.read": ["/**"], "net.fetch": ["https://**"]}.get(namespace, ["**"]))
        assert lease.covers(namespace, make_target(target_size)) in (True, False)

    for pattern_size in (100, 400, 2_000, TEN_KILOBYTES):
        for target_size in (100, 1_000, 4_000, TEN_KILOBYTES):
            assert work(lambda p=pattern_size, t=target_size: ask(p, t)) < 100_000, (pattern_size, target_size)


@pytest.mark.requirement("P9.2")
def test_matching_is_linear_in_the_target() -> None:
    """As much work for each segment, and for each piece of a glob, however many there are."""
    lease = lease_of("fs.read", ["/**/a*/**/*b/**/c"])

    def costs(count: int) -> int:
        target = "/ab" * count
        lease.covers("fs.read", target)
        return work(lambda: lease.covers("fs.read", target))

    few, some, many = costs(20), costs(60), costs(100)
    assert many - some == pytest.approx(some - few, rel=0.1)

    glob = Glob("a*" * 500 + "b")
    assert work(lambda: glob.matches("a" * 900)) < 2_500


class Counted(str):
    """A text that counts what is looked for in it."""

    __slots__ = ("looked_at",)

    def __init__(self, text: str) -> None:
        self.looked_at = 0

    def find(self, piece: Any, start: Any = None, end: Any = None) -> int:
        found = super().find(piece, start, end)
        self.looked_at += (end if found < 0 else found + len(piece)) - start
        return found


@pytest.mark.requirement("P9.2")
@pytest.mark.parametrize(
    "pattern", ["a*" * 500 + "b", "*ab" * 300 + "*", "*" + "a*" * 400 + "ca", "*aa" * 300 + "*b*a"]
)
def test_no_character_of_a_target_is_looked_at_twice(pattern: str) -> None:
    """Nothing is tried again: what a piece has taken, or passed over, is behind it."""
    for text in ("a" * 2_000, "ab" * 1_000, "aab" * 600 + "a"):
        counted = Counted(text)
        Glob(pattern).matches(counted)
        assert counted.looked_at <= len(text)


# --- containment ------------------------------------------------------------------------------------


def hostile_lists() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield pairs of lists of a hundred patterns or more, most of a kilobyte each, that are hard to compare."""
    hundred = range(100)
    yield "loops", ["/**/a" * 62 + f"/{n}" for n in hundred], ["/**/*" * 60 + f"/{n}*" for n in hundred]
    yield "gaps", ["/**/a/*" * 40 + f"/{n}" for n in hundred], ["/**/a/**/*" * 25 + f"/*{n}" for n in hundred]
    yield "globs", ["/**/a*b" * 60 + f"/{n}" for n in hundred], ["/**/*a*b*" * 60 + f"/{n}*" for n in hundred]
    yield "long globs", ["/" + "a*" * 500 + f"{n}" for n in hundred], ["/" + "*a" * 500 + f"*{n}" for n in hundred]
    yield "many", [f"/**/a*/x/{n}" for n in range(256)], [f"/**/*{n}" for n in range(256)]
    yield "prefixes", ["/a" * 120 + f"/*{n}/b" for n in range(256)], ["/a" * 120 + f"/{n}*/b" for n in range(256)]
    yield "near", ["/**/a/a" * 30 + f"/**/b{n}" for n in hundred], ["/**/a/*/a" * 20 + f"/**/b{n}*" for n in hundred]


HOSTILE_LISTS = {name: (children, parents) for name, children, parents in hostile_lists()}


@pytest.mark.requirement("P9.5", "P6.2")
@pytest.mark.parametrize("name", sorted(HOSTILE_LISTS))
def test_lists_that_are_hard_to_compare_are_given_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred patterns of a kilobyte each, against as many: bounded work, and an answer that gives nothing away."""
    child, parent = (lease_of("fs.read", texts) for texts in HOSTILE_LISTS[name])
    ceiling = LeaseCeiling(grants=parent.grants)
    # What is compiled is compiled before: it is the same for a check.
    child.covers("fs.read", "/"), parent.covers("fs.read", "/")
    steps: Counter[str] = Counter()

    def counted(cls: type[Any], method: str) -> None:
        original = getattr(cls, method)

        def count(*args: Any) -> Any:
            steps[method] += 1
            return original(*args)

        monkeypatch.setattr(cls, method, count)

    counted(patterns._Automaton, "step")
    counted(Glob, "matches")
    excess = child.excess_over(parent)
    assert 0 < steps["step"] <= WORK_LIMIT
    assert steps["matches"] <= WORK_LIMIT * 16
    assert excess is None or excess.startswith(("fs.read: the patterns are too intricate", "fs.read: '/"))
    steps.clear()
    left = child.within(ceiling, now_ms=0)
    assert 0 < steps["step"] <= WORK_LIMIT
    assert steps["matches"] <= WORK_LIMIT * 16
    assert len(left.grants.get("fs.read", ())) <= MAX_PATTERNS
    # The same list lies within itself, however intricate: that is seen by its text.
    assert child.excess_over(child) is None


@pytest.mark.requirement("P9.5")
def test_what_was_followed_already_is_counted_too() -> None:
    """Names have several separators, so many sets of states: to compare them with each other is work as well."""
    child, parent = (lease_of("tool.call", [f"**.{each}" + f".**:{each}" * 30]) for each in "a*")
    parent.covers("tool.call", "a")
    assert work(lambda: child.excess_over(parent)) < 600_000


@pytest.mark.requirement("P9.5")
def test_what_is_given_up_is_refused() -> None:
    """It would be within: but only those are let through of which it is known."""
    children, parents = HOSTILE_LISTS["loops"]
    intricate = "fs.read: the patterns are too intricate to be compared"
    assert lease_of("fs.read", children).excess_over(lease_of("fs.read", parents)) == intricate
    assert lease_of("fs.read", children[:1]).excess_over(lease_of("fs.read", parents[:1])) is None


@pytest.mark.requirement("P9.5")
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 32])
def test_the_work_of_one_comparison_is_a_polynomial(count: int) -> None:
    """Of patterns that are nothing but ``**`` and globs: twice as long is four times the work."""
    for child, parent in (("/**/a", "/**/*"), ("/**/a*/b", "/**/*/*"), ("/**/a/*", "/**/*/**")):
        budget = Work()
        matcher = Matcher([Pattern.read("fs.read", parent * count)])
        assert matcher.contains(Pattern.read("fs.read", child * count), budget)
        assert WORK_LIMIT - budget.left <= 20 * count + 10 * count**2


@pytest.mark.requirement("P9.5")
def test_ordinary_leases_are_far_from_the_limit() -> None:
    """A hundred patterns in a hundred others, as people write them."""
    child = lease_of("net.fetch", [f"https://*.host{n}.example/api/v1/**" for n in range(100)])
    parent = [Pattern.read("net.fetch", f"https://*.host{n}.example/api/**") for n in range(100)]
    budget, matcher = Work(), Matcher(parent)
    for text in child.grants["net.fetch"]:
        assert matcher.contains(Pattern.read("net.fetch", text), budget)
    assert WORK_LIMIT - budget.left < WORK_LIMIT // 2


@pytest.mark.requirement("P9.1")
def test_a_lease_that_is_too_large_is_not_read() -> None:
    """Millions of patterns in one frame: counted, and refused before any is looked at."""
    few, many = ({f"x.y{n}": ["a*"] * 100 for n in range(count)} for count in (11, 2_000))

    def refuse(grants: dict[str, list[str]]) -> None:
        with pytest.raises(InvalidRequestError, match="in all"):
            Lease.read(grants, None, now_ms=0)

    refuse(few)
    # A line for each text: nothing is cut or compiled.
    assert work(lambda: refuse(many)) < 2_000 * 100 * 3
    assert work(lambda: refuse({"x.y": ["a" * (MAX_LEASE_CHARACTERS + 1)]})) < 1_000
