"""What lies within what: decided on patterns, and held against what they cover."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product

import pytest
from authority.reference import ALPHABETS, SEPARATORS, any_pattern, is_within, lease_of, readable, rows, strings
from hypothesis import given, settings
from hypothesis import strategies as st

from arcp_trio.authority import patterns
from arcp_trio.authority.lease import Lease
from arcp_trio.wire.errors import InvalidRequestError

TABLE: list[tuple[str, str, str, bool]] = [
    ("fs.read", "/data/**", "/data/*", False),
    ("fs.read", "/data/*", "/data/**", True),
    ("fs.read", "/data", "/data/**", True),
    ("fs.read", "/data/*/**", "/data/**", True),
    ("fs.read", "/data/**", "/data/*/**", False),
    ("fs.read", "/data/a*", "/data/*", True),
    ("fs.read", "/data/*", "/data/a*", False),
    ("fs.read", "/data/a*b", "/data/a*b*", True),
    ("fs.read", "/data/a*b*", "/data/a*b", False),
    ("fs.read", "/data/a*c*b", "/data/a*b", True),
    ("fs.read", "/data/*/x", "/data/**/x", True),
    ("fs.read", "/**/*/*", "/**/*", True),
    ("fs.read", "/**/*", "/**/*/*", False),
    ("fs.read", "/**/a/*/**", "/**/a/**/*", True),
    ("fs.read", "/**/a/**/*", "/**/a/*/**", True),
    ("fs.read", "/**/a/**/b", "/**/b", True),
    ("fs.read", "/**/b", "/**/a/**/b", False),
    ("fs.read", "/data/../etc", "/etc", False),  # no pattern at all
    ("tool.call", "fs.*", "*", False),
    ("tool.call", "fs.*", "**", True),
    ("tool.call", "fs.*", "fs.**", True),
    ("tool.call", "fs:*", "fs.**", False),
    ("tool.call", "fs.**", "**", True),
    ("tool.call", "**.read", "**", True),
    ("tool.call", "**", "**.**", True),
    ("model.use", "**", "*/**", False),  # "/x" begins with an empty segment
    ("model.use", "*/**/a/a", "**/*/a/a", False),  # "x//a/a" has one
    ("model.use", "*/**/a/a", "*/**/a/a", True),
    ("fs.read", "/*/**/a", "/**/*/a", True),  # in a path there is none
    ("model.use", "a/**", "a/*", False),
    ("net.fetch", "https://a.com/x/**", "https://a.com/**/*", False),  # it has "/x/" too
    ("model.use", "a/*", "a*", False),
    ("agent.delegate", "helper@1.0", "helper", True),
    ("agent.delegate", "helper@1.*", "helper@*", True),
    ("agent.delegate", "helper", "helper@*", False),
    ("agent.delegate", "helper", "helper@**", True),
    ("agent.delegate", "helper", "*", True),
    ("agent.delegate", "helper@1", "help*@1*", True),
    ("net.fetch", "https://a.example.com/x", "https://*.example.com/**", True),
    ("net.fetch", "https://a.example.com:8443/x", "https://*.example.com/**", False),
    ("net.fetch", "https://a.example.com:8443/x", "https://*.example.com:*/**", True),
    ("net.fetch", "https://*/x", "https://*.com/**", False),
    ("net.fetch", "http://a.com/", "https://a.com/", False),
    ("net.fetch", "https://A.com:443/%7Ex/", "https://a.com/~x/", True),
]


@pytest.mark.requirement("P9.5", "G06")
@pytest.mark.parametrize(("namespace", "child", "parent", "expected"), TABLE)
def test_what_lies_within_what(namespace: str, child: str, parent: str, expected: bool) -> None:
    if ".." in child:
        with pytest.raises(InvalidRequestError):
            lease_of(namespace, child)
        return
    assert is_within(namespace, child, parent) is expected
    assert is_within(namespace, child, child)
    # One of several is enough, and it is one pattern that has to do.
    others = {"fs.read": "/no/**", "net.fetch": "https://no.example/**"}.get(namespace, "no")
    assert is_within(namespace, child, others, parent, others) is expected


@pytest.mark.requirement("P9.5")
def test_two_patterns_do_not_make_one() -> None:
    """Together they cover it; P9.5 asks for one that does."""
    assert not is_within("fs.read", "/a/**", "/a", "/a/*/**")


@pytest.mark.requirement("P9.5")
def test_each_pattern_of_each_namespace_is_held_against_the_parents() -> None:
    parent = Lease.read({"fs.read": ["/data/**"], "tool.call": ["a.*"], "cost.budget": ["USD:1"]}, None, now_ms=0)
    assert parent.excess_over(parent) is None
    assert Lease.EMPTY.excess_over(parent) is None
    assert Lease.EMPTY.excess_over(Lease.EMPTY) is None
    for grants, said in (
        ({"fs.read": ["/data/a", "/etc/b"]}, "fs.read: '/etc/b' is not within"),
        ({"fs.read": ["/data/a"], "tool.call": ["b.c"]}, "tool.call: 'b.c' is not within"),
        ({"fs.write": ["/data/a"]}, "fs.write: not granted"),
        ({"x.own": ["a"]}, "x.own: not granted"),
    ):
        excess = Lease.read(grants, None, now_ms=0).excess_over(parent)
        assert excess is not None
        assert excess.startswith(said)
    # What remains of the budget decides of it, not what the lease says.
    assert Lease.read({"cost.budget": ["USD:99", "EUR:1"]}, None, now_ms=0).excess_over(parent) is None


@pytest.mark.requirement("P9.5", "P9.8")
def test_models_are_within_a_parent_that_has_all() -> None:
    child = lease_of("model.use", "a/*")
    assert child.excess_over(Lease.EMPTY) == "model.use: not granted"
    assert child.excess_over(Lease.EMPTY, open_models=True) is None
    assert child.excess_over(lease_of("model.use", "b/*"), open_models=True) is not None
    nothing = Lease.EMPTY.inherit(lease_of("model.use", "a/*"))
    assert nothing.excess_over(Lease.EMPTY) is None
    assert child.excess_over(nothing, open_models=True) == "model.use: not granted"


# --- held against what is covered -------------------------------------------------------------------

GRAMMARS = {
    # Of these segments every distinction shows in the texts beside them: a text for each set of them that it fits.
    "paths": ("fs.read", "/", ["a", "*", "**", "a*"], ["a", "ab", "c"], 6),
    "globs": ("fs.read", "/", ["a*", "*b", "a*b", "ab", "*", "**"], ["ab", "ac", "cb", "acb", "a", "b", "c"], 4),
    "names": ("tool.call", ".:", ["a", "*", "**"], ["a", "c", ""], 4),
    "models": ("model.use", "/", ["a", "*", "**", ""], ["a", "c", "c:d.e", ""], 5),
    "agents": ("agent.delegate", ".@", ["a", "*", "**"], ["a", "c", ""], 4),
    "URLs": ("net.fetch", "/", ["a", "*", "**", ""], ["a", "c", ""], 5),
}


def canonical_patterns(namespace: str, texts: Sequence[str], separators: str, most: int) -> list[str]:
    found: set[str] = set()
    for text in rows(namespace, texts, separators, most):
        lease = readable(namespace, text)
        if lease is not None:
            found.update(lease.grants[namespace])
    return sorted(found)


@pytest.mark.requirement("P9.5", "G06")
@pytest.mark.parametrize(
    ("grammar", "shortcut"), [*((each, True) for each in sorted(GRAMMARS)), ("agents", False), ("paths", False)]
)
def test_containment_is_exact_on_every_pair_of_a_grammar(
    grammar: str, shortcut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All patterns of up to three segments, each with each: within if and only if all that it covers is covered.

    Neither a pair that is wrongly within, nor one that is wrongly refused; and the shortcut that sorts out most
    candidates by two of their words decides nothing.
    """
    if not shortcut:
        monkeypatch.setattr(patterns, "_word", lambda pattern, count: None)
    namespace, separators, texts, words, most = GRAMMARS[grammar]
    length = 2 if grammar == "globs" else 3
    every = canonical_patterns(namespace, texts, separators, length)
    further = "@" if namespace == "agent.delegate" else ""
    targets = [
        *(["/"] if namespace == "fs.read" else []),
        *(each for each in rows(namespace, words, SEPARATORS[namespace] + further, most) if each.count("@") < 2),
    ]
    covered: dict[str, int] = {}
    for pattern in every:
        lease = lease_of(namespace, pattern)
        covered[pattern] = sum(1 << number for number, each in enumerate(targets) if lease.covers(namespace, each))
    leases = {pattern: lease_of(namespace, pattern) for pattern in every}
    wrong = [
        (child, parent)
        for child, parent in product(every, repeat=2)
        if (leases[child].excess_over(leases[parent]) is None) is not (covered[child] & ~covered[parent] == 0)
    ]
    assert wrong == []
    within = sum(covered[child] & ~covered[parent] == 0 for child, parent in product(every, repeat=2))
    assert 30 < len(every) < within < len(every) ** 2 // 2


@pytest.mark.requirement("P9.5", "G06")
@pytest.mark.parametrize("namespace", sorted(ALPHABETS))
@settings(deadline=None, max_examples=30, print_blob=True)
@given(data=st.data())
def test_every_string_of_a_pattern_within_is_covered(namespace: str, data: st.DataObject) -> None:
    """Any patterns over a small alphabet, each with each, and every string over it up to a length."""
    drawn = data.draw(st.lists(any_pattern(namespace), min_size=2, max_size=6))
    leases = [lease_of(namespace, pattern) for pattern in drawn]
    root = "/" if namespace == "fs.read" else ""
    targets = [root + text for text in strings(ALPHABETS[namespace], 6)]
    covered = [{target for target in targets if lease.covers(namespace, target)} for lease in leases]
    for child, parent in product(range(len(drawn)), repeat=2):
        if leases[child].excess_over(leases[parent]) is None:
            assert covered[child] <= covered[parent], (drawn[child], drawn[parent])


def some_patterns(namespace: str, texts: Sequence[str], separators: str) -> st.SearchStrategy[str]:
    def write(parts: list[tuple[str, str]]) -> str:
        row = "".join(separator + text for separator, text in parts)
        return row if namespace == "fs.read" else row[1:]

    pairs = st.tuples(st.sampled_from(separators), st.sampled_from(texts))
    return st.lists(pairs, min_size=1, max_size=7).map(write).filter(lambda text: bool(readable(namespace, text)))


def one_of(pattern: str, namespace: str, randomness: random.Random) -> str:
    """Return a target that a pattern covers, if its wildcards may be anything."""
    out: list[str] = []
    separators = SEPARATORS[namespace]
    pieces = pattern.replace("**", "\1")
    for letter in pieces:
        if letter == "\1":
            count = randomness.choice([0, 1, 2, 3, 9])
            words = [randomness.choice(["a", "b", "ab", "c"]) for _ in range(count)]
            out.append("".join(word + randomness.choice(separators) for word in words[:-1]) + "".join(words[-1:]))
        elif letter == "*":
            out.append(randomness.choice(["", "a", "b", "ab", "ba", "c"]))
        else:
            out.append(letter)
    return "".join(out)


@pytest.mark.requirement("P9.5", "G06")
@pytest.mark.parametrize("namespace", ["fs.read", "tool.call", "model.use", "agent.delegate"])
@settings(deadline=None, max_examples=100, print_blob=True)
@given(data=st.data(), randomness=st.randoms(use_true_random=False))
def test_what_is_within_covers_nothing_else(namespace: str, data: st.DataObject, randomness: random.Random) -> None:
    """Long patterns, made of the same pieces so that some are within: nothing that the child covers is left out."""
    texts = ["a", "b", "*", "**", "**", "a*", "*b", "a*b", "*a*"]
    strategy = some_patterns(namespace, texts, SEPARATORS[namespace][:2])
    child, parent = data.draw(strategy), data.draw(strategy)
    small, large = lease_of(namespace, child), lease_of(namespace, parent)
    if small.excess_over(large) is None:
        for _ in range(60):
            target = one_of(child, namespace, randomness)
            assert large.covers(namespace, target) or not small.covers(namespace, target), target


@pytest.mark.requirement("P9.5", "G06")
@settings(deadline=None, max_examples=100, print_blob=True)
@given(
    parts=st.lists(st.sampled_from(["a", "*", "**", "a*", "*b", "ab"]), min_size=1, max_size=8),
    randomness=st.randoms(use_true_random=False),
)
def test_a_narrower_pattern_is_within(parts: list[str], randomness: random.Random) -> None:
    """No false refusal of what a person would write: a pattern with some of its wildcards filled in."""
    narrower: list[str] = []
    for part in parts:
        if part == "**":
            narrower += randomness.choice([[], ["**"], ["x"], ["*"], ["x", "y*"], ["*", "**"], ["**", "x", "**"]])
        elif "*" in part:
            narrower.append(randomness.choice([part, part.replace("*", "x"), part.replace("*", "x*")]))
        else:
            narrower.append(part)
    child, parent = "/" + "/".join(narrower), "/" + "/".join(parts)
    assert is_within("fs.read", child, parent), (child, parent)
