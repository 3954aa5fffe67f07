"""Patterns: what one says of a segment, and what the patterns of a namespace cover together (P9.2, P9.5).

Theory of operation. A pattern is a row of segments. ``*`` stands for a run of characters inside one, ``**`` for any
number of them; all else stands for itself. The patterns of a namespace are one automaton over segments, whose set of
states is the bits of an integer: a check reads the target once, whatever is in the patterns, and there is nothing to
go back to.

Containment reads the smaller pattern in place of a target. A ``*`` in it becomes a character that no pattern can have
(a NUL): whatever matches that, matches any run of characters there, since only a ``*`` can have matched it; and what
does not match it leaves out at least this run. So it is decided, not estimated, segment by segment. A ``**`` in it
becomes every number of such segments, and of empty ones where there are any: the states that are reached after each
are followed, a set of states that contains one that was followed already can refuse nothing more, and in the end there
are no others. Patterns that are made to have many such sets are given up at a limit, and what is given up is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import product

import attrs

from .targets import MAX_PATTERN, ROOTED, Segment, Syntax, Target, syntax_of

__all__ = ["FRESH", "WORK_LIMIT", "Glob", "Matcher", "Pattern", "TooMuchWorkError", "Work"]

FRESH = "\0"
"""Stands for what a ``*`` matched: no pattern and no target has it."""

WORK_LIMIT = 20_000
"""Steps of an automaton that one comparison of leases may take: some hundredths of a second."""

# Past it the next pattern begins another automaton: each text has a number of as many bits as there are states.
_STATES = 1_024

# To match a glob, or to compare two sets of states, costs so much less than a step.
_PER_STEP = 16


class TooMuchWorkError(Exception):
    """A comparison of patterns would take too long to be decided."""


class Work:
    """Counts the steps of a comparison, and ends it at a limit.

    Args:
        limit: How many there may be.
    """

    __slots__ = ("left",)

    def __init__(self, limit: int = WORK_LIMIT) -> None:
        self.left = limit

    def spend(self, steps: int) -> None:
        """Count steps.

        Raises:
            TooMuchWorkError: There were too many.
        """
        self.left -= steps
        if self.left < 0:
            raise TooMuchWorkError


class Glob:
    """A segment with a ``*`` beside other characters: its pieces, found one behind the other.

    The leftmost place is always the best for a piece, since what follows has the more room: so nothing is tried twice.

    Args:
        text: The segment.
    """

    __slots__ = ("_first", "_last", "_least", "_middle")

    def __init__(self, text: str) -> None:
        self._first, *middle, self._last = text.split("*")
        self._middle = tuple(middle)
        self._least = len(text) - text.count("*")

    def matches(self, text: str) -> bool:
        """Say whether the whole text is one that the segment stands for."""
        if len(text) < self._least or not text.startswith(self._first) or not text.endswith(self._last):
            return False
        at, end = len(self._first), len(text) - len(self._last)
        for piece in self._middle:
            at = text.find(piece, at, end)
            if at < 0:
                return False
            at += len(piece)
        return True


class _Kind(Enum):
    """What a state reads."""

    ONE = "one"
    """A segment."""
    ENTER = "enter"
    """The first segment of a ``**``, if there is one."""
    LOOP = "loop"
    """A further one, as long as there are."""
    VERSION = "version"
    """The version of an agent whose pattern names none, if there is one."""


@attrs.frozen
class Pattern:
    """A pattern in its canonical form.

    Attributes:
        namespace: Its namespace.
        text: As the wire shows it.
        segments: The text, cut.
    """

    namespace: str
    text: str
    segments: tuple[Segment, ...] = attrs.field(eq=False, repr=False)

    @classmethod
    def read(cls, namespace: str, text: str) -> Pattern:
        """Return a text's pattern.

        Raises:
            ValueError: It is none.
        """
        syntax = syntax_of(namespace)
        segments = syntax.pattern(text)
        canonical = syntax.write_pattern(segments)
        if len(canonical) > MAX_PATTERN:
            raise ValueError(f"expected at most {MAX_PATTERN} characters, encoded")
        return cls(namespace, canonical, segments)

    @property
    def syntax(self) -> Syntax:
        """How it is written."""
        return syntax_of(self.namespace)

    @property
    def any_version(self) -> bool:
        """Whether it is of agents and names no version: then it covers each (P9.2)."""
        return self.namespace == "agent.delegate" and self.segments[-1][0] != "@"

    @property
    def literal(self) -> bool:
        """Whether it covers one target alone."""
        return "*" not in self.text and not self.any_version

    def states(self) -> list[tuple[_Kind, str, str]]:
        """Return what is read one behind the other: the kind, the separator, the text."""
        states: list[tuple[_Kind, str, str]] = []
        for separator, text in self.segments:
            if text == "**":
                states += [(_Kind.ENTER, separator, ""), (_Kind.LOOP, "", "")]
            else:
                states.append((_Kind.ONE, separator, text))
        if self.any_version:
            states.append((_Kind.VERSION, "@", ""))
        return states


class _Automaton:
    """Some patterns, as one automaton; a set of states is an integer."""

    def __init__(self) -> None:
        self.size = 0
        self.starts: list[tuple[int, int]] = []  # of each pattern: its first state, its last ones
        self._initial = 0
        self._final = 0
        self._texts: dict[str, int] = {}
        self._globs: dict[str, tuple[Glob, int]] = {}
        self._separators: dict[str, int] = {"": 0}
        self._stars = self._any = self._wild = self._loops = self._enters = 0

    def add(self, pattern: Pattern) -> None:
        """Add a pattern."""
        start = bit = 1 << self.size
        final = 0
        for kind, separator, text in pattern.states():
            if kind is _Kind.LOOP:
                self._loops |= bit
            else:
                self._separators[separator] = self._separators.get(separator, 0) | bit
                if separator not in ("", "@"):
                    # Behind a "**" that took nothing it may be the first.
                    self._separators[""] |= bit
                if kind is _Kind.ONE:
                    self._add_text(text, bit)
                else:
                    self._any |= bit
                    if kind is _Kind.ENTER:
                        self._enters |= bit
                    else:
                        final = bit
            bit <<= 1
            self.size += 1
        final |= bit
        self.size += 1
        self._initial |= start
        self._final |= final
        self.starts.append((start, final))

    def _add_text(self, text: str, bit: int) -> None:
        if text == "*":
            self._stars |= bit
        elif "*" in text:
            glob, bits = self._globs.get(text) or (Glob(text), 0)
            self._globs[text] = glob, bits | bit
            self._wild |= bit
        else:
            self._texts[text] = self._texts.get(text, 0) | bit

    def step(self, states: int, segment: Segment) -> int:
        """Return the states behind a segment."""
        separator, text = segment
        hit = self._any | self._texts.get(text, 0)
        if text:
            hit |= self._stars
        if states & self._wild:
            for glob, bits in self._globs.values():
                if states & bits and glob.matches(text):
                    hit |= bits
        following = (states & hit & self._separators.get(separator, 0)) << 1
        return self.spread(following | states & self._loops)

    def spread(self, states: int) -> int:
        """Add the states that are reached without reading. No ``**`` stands beside another: once is enough."""
        states |= (states & self._loops) << 1
        return states | (states & self._enters) << 2

    def cost(self, states: int) -> int:
        """Return what a step from these states costs, in steps."""
        return 1 + (len(self._globs) // _PER_STEP if states & self._wild else 0)

    def read(self, segments: Iterable[Segment], work: Work | None = None) -> int:
        """Return the last states of the patterns that cover all of it."""
        states = self.spread(self._initial)
        for segment in segments:
            if work is not None:
                work.spend(self.cost(states))
            states = self.step(states, segment)
            if not states:
                return 0
        return states & self._final


class Matcher:
    """The patterns of a namespace, compiled.

    Args:
        patterns: The patterns, all of one namespace.

    Attributes:
        patterns: The argument.
    """

    __slots__ = ("_compiled", "_literals", "_texts", "patterns")

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.patterns = tuple(patterns)
        self._texts = frozenset(pattern.text for pattern in patterns)
        self._literals = frozenset(pattern.text for pattern in patterns if pattern.literal)
        self._compiled: list[_Automaton] | None = None

    @property
    def _automata(self) -> list[_Automaton]:
        """The patterns that are more than one target, compiled when first they are asked."""
        if self._compiled is None:
            self._compiled = []
            for pattern in self.patterns:
                if not pattern.literal:
                    if not self._compiled or self._compiled[-1].size > _STATES:
                        self._compiled.append(_Automaton())
                    self._compiled[-1].add(pattern)
        return self._compiled

    def covers(self, target: Target) -> bool:
        """Say whether one of the patterns covers a target of the same namespace."""
        if target.key in self._literals:
            return True
        return any(automaton.read(target.segments) for automaton in self._automata)

    def contains(self, pattern: Pattern, work: Work) -> bool:
        """Say whether one of the patterns covers all that another pattern of the namespace covers.

        Args:
            pattern: The other one.
            work: Where the steps are counted.

        Raises:
            TooMuchWorkError: It cannot be decided in time.
        """
        if pattern.text in self._texts:
            return True
        words = [word for word in (_word(pattern, 0), _word(pattern, 2)) if word is not None]
        for automaton in self._automata:
            final = -1
            for word in words:
                # Cheap, and leaves few: whoever does not cover these two does not cover all.
                final = final and final & automaton.read(word, work)
            if final and any(
                last & final and _covers_all(automaton, start, last, pattern, work) for start, last in automaton.starts
            ):
                return True
        return False


def _fresh(text: str) -> str:
    return text.replace("*", FRESH)


def _word(pattern: Pattern, count: int) -> tuple[Segment, ...] | None:
    """Return a row of segments that a pattern covers, with so many for each ``**``; ``None`` if it is no target."""
    word: list[Segment] = []
    for separator, text in pattern.segments:
        if text == "**":
            further = pattern.syntax.separators[0]
            word += [(separator if number == 0 else further, FRESH) for number in range(count)]
        else:
            word.append((separator, _fresh(text)))
    if pattern.namespace not in ROOTED:
        if not word or word[0][0] == "@":
            return None
        word[0] = "", word[0][1]
    return tuple(word)


def _covers_all(automaton: _Automaton, start: int, last: int, pattern: Pattern, work: Work) -> bool:
    """Say whether the pattern of ``automaton`` between two states covers all that another one covers."""
    states = pattern.states()
    seen: dict[tuple[int, bool], list[int]] = {}
    # Names begin without a separator; of an empty row there is no name, so nothing that could be left uncovered.
    pending = [(0, automaton.spread(start), pattern.namespace in ROOTED)]
    while pending:
        at, reached, begun = pending.pop()
        known = seen.setdefault((at, begun), [])
        work.spend(len(known) // _PER_STEP)
        if any(each & reached == each for each in known):
            # Fewer states were followed from here, to the end: more can cover only more.
            continue
        known.append(reached)
        kind = states[at][0] if at < len(states) else None
        if kind in (None, _Kind.VERSION) and begun and not reached & last:
            return False
        if kind is None:
            continue
        if kind is _Kind.ENTER:
            pending.append((at + 2, reached, begun))
        elif kind is _Kind.LOOP:
            pending.append((at + 1, reached, begun))
        following = at if kind is _Kind.LOOP else at + 1
        for segment in _segments_read(pattern, states[at], begun=begun):
            work.spend(automaton.cost(reached))
            after = automaton.step(reached, segment)
            if not after:
                return False
            pending.append((following, after, True))
    return True


def _segments_read(pattern: Pattern, state: tuple[_Kind, str, str], *, begun: bool) -> Iterable[Segment]:
    """Return what stands for all the segments that a state of a pattern reads."""
    kind, separator, text = state
    if kind is _Kind.ONE:
        texts: tuple[str, ...] = (_fresh(text),)
    elif kind is _Kind.VERSION or pattern.namespace in ROOTED:
        texts = (FRESH,)
    else:
        # A "**" takes empty segments too, where there are any: what a "*" alone, which needs a character, does not.
        texts = (FRESH, "")
    if kind is _Kind.LOOP:
        return product(pattern.syntax.separators, texts)
    if begun:
        return product((separator,), texts)
    # What comes first has none before it, and no version comes first.
    return product(("",), texts) if separator != "@" else ()
