"""What two lists of patterns both cover, as patterns: a request within a ceiling (P6.2).

It is exact or it is less: a pattern that covered more than both would give away what nobody granted, and one that
covers less is only a smaller lease, which job.accepted shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import attrs

from .patterns import FRESH, Glob, Matcher, Pattern, TooMuchWorkError, Work
from .targets import Segment

__all__ = ["intersect"]

# Two patterns have one common part nearly always; more than a few are made up.
_MOST = 16

# Characters that two globs may share between what one begins and the other ends with; further ones are left out.
_LONGEST_OVERLAP = 64

# What it costs to write a pattern and read it again, in steps of an automaton.
_STEPS_TO_WRITE = 20

Row = tuple[Segment, ...]


def intersect(asked: Sequence[Pattern], allowed: Sequence[Pattern], limit: int) -> list[Pattern]:
    """Return patterns that cover only what both lists cover, all of one namespace.

    A pattern of one list that lies within one of the other stands as it is. Of two that overlap stands what both
    cover, where patterns can say it: neither has a ``**`` but at its end, and no two segments that overlap have several
    ``*`` in one. All else is left out, as is what takes too long to be compared.

    Args:
        asked: The one list; what stands of it comes first, in its order.
        allowed: The other.
        limit: How many patterns are returned at most.
    """
    found: dict[str, Pattern] = {}
    work = Work()
    try:
        partly_asked = _move_contained(asked, Matcher(allowed), found, work)
        partly_allowed = _move_contained(allowed, Matcher(asked), found, work)
        for one, other in product(partly_asked, partly_allowed):
            if len(found) >= limit:
                break
            work.spend(1)
            for row in _common_rows(one, other):
                work.spend(_STEPS_TO_WRITE)
                pattern = _written(one.pattern, row)
                if pattern is not None:
                    found.setdefault(pattern.text, pattern)
    except TooMuchWorkError:
        pass
    return list(found.values())[:limit]


@attrs.frozen
class _Parts:
    """A pattern whose only ``**``, if it has one, stands at its end.

    Attributes:
        pattern: The pattern.
        head: What stands before.
        tail: The separator of the ``**``; ``None`` where there is none.
        version: The version of an agent; ``None`` where none is named.
    """

    pattern: Pattern
    head: Row
    tail: str | None
    version: str | None


def _move_contained(
    patterns: Sequence[Pattern], others: Matcher, found: dict[str, Pattern], work: Work
) -> list[_Parts]:
    """Add the patterns that the others contain to what was found; return those of the rest that can be divided."""
    rest: list[_Parts] = []
    for pattern in patterns:
        if others.contains(pattern, work):
            found.setdefault(pattern.text, pattern)
            continue
        row, version = pattern.segments, None
        if row and row[-1][0] == "@":
            row, version = row[:-1], row[-1][1]
        head, tail = (row[:-1], row[-1][0]) if row and row[-1][1] == "**" else (row, None)
        if all(text != "**" for _, text in head):
            rest.append(_Parts(pattern, head, tail, version))
    return rest


def _common_rows(one: _Parts, other: _Parts) -> list[Row]:
    """Return the rows of segments that stand for what two patterns stand for both; none where they cannot say it."""
    if len(one.head) > len(other.head):
        one, other = other, one
    columns: list[list[Segment]] = []
    for (separator, text), (other_separator, other_text) in zip(one.head, other.head, strict=False):
        texts = _common_texts(text, other_text) if separator == other_separator else []
        if not texts:
            return []
        columns.append([(separator, each) for each in texts])
    further = other.head[len(one.head) :]
    if further and further[0][0] != one.tail:
        return []
    columns += [[segment] for segment in further]
    if other.tail is not None and (further or one.tail == other.tail):
        columns.append([(other.tail, "**")])
    named = [version for version in (one.version, other.version) if version is not None]
    if named:
        columns.append([("@", text) for text in _common_texts(named[0], named[-1])])
    if sum(len(column) - 1 for column in columns) > _MOST:
        return []
    rows = list(product(*columns))
    return rows if len(rows) <= _MOST else []


def _common_texts(one: str, other: str) -> list[str]:
    """Return the segments that stand for what two segments stand for both; none where they cannot say it."""
    if "*" in one and "*" in other:
        return _common_globs(one, other)
    literal, pattern = (other, one) if "*" in one else (one, other)
    return [literal] if _stands_for(pattern, literal) else []


def _common_globs(one: str, other: str) -> list[str]:
    """Return the same of two segments that have a ``*`` each."""
    ends = [(glob[: glob.index("*")], glob[glob.rindex("*") + 1 :]) for glob in (one, other)]
    start, end = max((first for first, _ in ends), key=len), max((last for _, last in ends), key=len)
    if not all(start.startswith(first) and end.endswith(last) for first, last in ends):
        return []
    if _stands_for(one, other):
        return [other]
    if _stands_for(other, one):
        return [one]
    if one.count("*") > 1 or other.count("*") > 1:
        return []
    # "ab*" and "*bc" have not only "ab*bc" in common but "abc" too.
    longest = min(len(start), len(end), _LONGEST_OVERLAP)
    overlaps = (start + end[size:] for size in range(1, longest + 1) if start.endswith(end[:size]))
    return [f"{start}*{end}", *(text for text in overlaps if _stands_for(one, text) and _stands_for(other, text))]


def _written(like: Pattern, row: Row) -> Pattern | None:
    """Return the pattern that a row is; ``None`` where none is written so: what it would stand for is no target."""
    try:
        pattern = Pattern.read(like.namespace, like.syntax.write_pattern(row))
    except ValueError:
        return None
    return pattern if pattern.segments == row else None


def _stands_for(pattern: str, text: str) -> bool:
    """Say whether a segment stands for all that another one stands for."""
    if pattern == "*":
        return bool(text)
    return Glob(pattern).matches(text.replace("*", FRESH)) if "*" in pattern else pattern == text
