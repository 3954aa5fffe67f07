"""Patterns as the requirement says it, tried out one possibility after the other: what the matcher is held against.

Nothing of it is shared with the package: texts are cut here once more, and a target is covered if any way of taking
its segments fits. It is slow, and that is its virtue.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import product

from hypothesis import strategies as st

from arcp_trio.authority.lease import Lease
from arcp_trio.wire.errors import InvalidRequestError

Cut = tuple[tuple[str, str], ...]

SEPARATORS = {"fs.read": "/", "net.fetch": "/", "model.use": "/", "tool.call": "./:", "agent.delegate": "./:"}


def lease_of(namespace: str, *patterns: str) -> Lease:
    return Lease.read({namespace: patterns}, None, now_ms=0)


def is_within(namespace: str, pattern: str, *others: str) -> bool:
    return lease_of(namespace, pattern).excess_over(lease_of(namespace, *others)) is None


def cut(namespace: str, text: str) -> Cut:
    """Return the segments of a canonical text, each with the separator before it."""
    if namespace == "fs.read":
        return tuple(("/", part) for part in text.split("/") if part)
    name, at, version = text.partition("@") if namespace == "agent.delegate" else (text, "", "")
    parts = re.split(f"([{SEPARATORS[namespace]}])", name)
    segments = tuple(zip(["", *parts[1::2]], parts[::2], strict=True))
    return (*segments, ("@", version)) if at else segments


def covers(namespace: str, pattern: str, target: str) -> bool:
    """Say whether a canonical pattern covers a canonical target."""
    if namespace == "agent.delegate" and "@" not in pattern:
        target = target.partition("@")[0]
    return _fits(cut(namespace, pattern), cut(namespace, target))


def _fits(pattern: Cut, target: Cut) -> bool:
    if not pattern:
        return not target
    (separator, text), *rest = pattern
    if text == "**":
        return any(
            _fits(tuple(rest), target[count:])
            for count in range(len(target) + 1)
            if count == 0 or _may_follow(separator, target[0][0])
            if all(each != "@" for each, _ in target[:count])
        )
    return (
        bool(target)
        and _may_follow(separator, target[0][0])
        and stands_for(text, target[0][1])
        and _fits(tuple(rest), target[1:])
    )


def _may_follow(expected: str, found: str) -> bool:
    # What a "**" before it took nothing of comes first, where there is no separator.
    return expected == found or (found == "" and expected != "@")


def stands_for(pattern: str, text: str) -> bool:
    """Say whether a segment of a pattern stands for a segment of a target."""
    if pattern == "*":
        return text != ""
    if "*" not in pattern:
        return pattern == text
    first, _, rest = pattern.partition("*")
    if not text.startswith(first):
        return False
    remaining = text[len(first) :]
    return any(_rest_stands_for(rest, remaining[skipped:]) for skipped in range(len(remaining) + 1))


def _rest_stands_for(pattern: str, text: str) -> bool:
    return stands_for(pattern, text) if pattern != "*" else True


def rows(namespace: str, texts: Sequence[str], separators: str, most: int) -> Iterator[str]:
    """Yield all texts of up to so many segments."""
    first = {"fs.read": "/", "net.fetch": "https://h/"}.get(namespace, "")
    for count in range(1, most + 1):
        for row in product(texts, repeat=count):
            for between in product(separators, repeat=count - 1):
                yield first + row[0] + "".join(a + b for a, b in zip(between, row[1:], strict=True))


def readable(namespace: str, text: str) -> Lease | None:
    """Return the lease of a pattern, or ``None`` if it is none."""
    try:
        return lease_of(namespace, text)
    except InvalidRequestError:
        return None


ALPHABETS = {"fs.read": "ab/", "model.use": "ab/", "tool.call": "a.:", "agent.delegate": "a.@"}


def strings(alphabet: str, most: int) -> list[str]:
    return ["".join(letters) for count in range(1, most + 1) for letters in product(alphabet, repeat=count)]


def any_pattern(namespace: str) -> st.SearchStrategy[str]:
    """Any text over the alphabet and the asterisk that is a pattern."""
    text = st.text(ALPHABETS[namespace] + "*", min_size=1, max_size=7)
    if namespace == "fs.read":
        text = text.map("/".__add__)
    return text.filter(lambda each: readable(namespace, each) is not None)
