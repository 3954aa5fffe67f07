"""Leases: what a job may do, and until when; and the ceilings of principals (P9.1 to P9.6, P6.2).

A lease is a value. It is read once, from a request or from an agent that delegates: whatever is wrong in it is said
then, and all of its patterns are canonical from there on. Asking it is synchronous, costs the same however often it was
asked, and remembers nothing of what was asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import ClassVar

import attrs

from ..wire.errors import InvalidRequestError, PermissionDeniedError
from ..wire.timestamps import format_timestamp, parse_timestamp
from .budget import parse_budget
from .intersection import intersect
from .patterns import Matcher, Pattern, TooMuchWorkError, Work
from .targets import Target, syntax_of

__all__ = ["MAX_LEASE_CHARACTERS", "MAX_LEASE_PATTERNS", "MAX_PATTERNS", "Lease", "LeaseCeiling"]

MAX_PATTERNS = 256
"""Patterns of one namespace: each may have to be looked at in a check."""

MAX_LEASE_PATTERNS = 1_024
"""Patterns of a lease."""

MAX_LEASE_CHARACTERS = 131_072
"""Characters of its namespaces and patterns together: it is kept with its job, and sent with it."""

BUDGET = "cost.budget"
MODELS = "model.use"

_End = tuple[str | None, int | None]
"""When a lease ends, as the wire writes it and in milliseconds since 1970."""

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)*")
_MAX_NAMESPACE = 128
_MIN_LIFETIME = 0.001
_MAX_LIFETIME = 100 * 366 * 86_400.0


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class Lease:
    """What a job may do, and until when.

    Two leases are equal that have the same grants, in the same order, and the same end.

    Attributes:
        grants: Canonical patterns by namespace, as the wire shows them; those of ``cost.budget`` are amounts. Read-only
            by convention. An absent namespace grants nothing; so does one with no pattern, which nobody can ask for:
            it says of ``model.use`` that there is no model, also where leases that do not name it have all.
        expires_at: When it ends, as the wire writes it; ``None`` for never.
        expires_at_ms: The same in milliseconds since 1970.
    """

    grants: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    expires_at: str | None = None
    expires_at_ms: int | None = None
    _matchers: dict[str, Matcher] = attrs.field(factory=dict, init=False)

    EMPTY: ClassVar[Lease]
    """The lease that allows nothing and does not end."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Lease):
            return NotImplemented
        return self.grants == other.grants and self.expires_at == other.expires_at

    def __hash__(self) -> int:
        return hash((frozenset(self.grants.items()), self.expires_at))

    def __repr__(self) -> str:
        counts = ", ".join(f"{namespace}: {len(patterns)}" for namespace, patterns in self.grants.items())
        return f"<Lease of {counts or 'nothing'}{f', until {self.expires_at}' if self.expires_at else ''}>"

    @classmethod
    def read(
        cls,
        grants: Mapping[str, Sequence[str]],
        expires_at: str | None,
        *,
        now_ms: int,
        max_budget: Sequence[str] | None = None,
        path: str = "$.payload",
    ) -> Lease:
        """Return the lease that a request writes so (P9.1, P9.2, P9.3, P9.6, P9.7).

        Args:
            grants: Patterns by namespace, as written: dot-separated lower-case names, each with at least one pattern.
            expires_at: RFC 3339 in UTC with ``Z``, in the future; ``None`` for no end.
            now_ms: The time of day, in milliseconds since 1970.
            max_budget: The most that the budget may be, amounts as in ``cost.budget``; it is the budget in the
                currencies that the grants do not name. ``None`` for no such bound.
            path: Where the lease stands, for errors: the path of what has ``lease_request`` and ``lease_constraints``.

        Raises:
            InvalidRequestError: A namespace, a pattern, an amount or the time is not of that form, the time has come,
                the budget is above ``max_budget``, or there are too many patterns. It names the path.
        """
        request = f"{path}.lease_request"
        _check_size(grants, request)
        patterns = {namespace: _read_grant(namespace, texts, request) for namespace, texts in grants.items()}
        canonical = {namespace: tuple(each.text for each in read) for namespace, read in patterns.items()}
        if BUDGET in grants or max_budget is not None:
            canonical[BUDGET] = _read_budget(grants.get(BUDGET, ()), max_budget or (), path)
        ends = None
        if expires_at is not None:
            ends = _read_end(expires_at, now_ms, f"{path}.lease_constraints.expires_at")
        lease = cls(canonical, expires_at, ends)
        lease._matchers.update((namespace, Matcher(read)) for namespace, read in patterns.items() if read)
        return lease

    def canonical(self, namespace: str, target: str) -> str:
        """Return the one form of a target: a path without ``..``, a URL as it is fetched, a name (P9.3).

        It does not depend on the lease, and is its own canonical form. What is allowed is this: use it, not what it
        was made from.

        Args:
            namespace: What is to be done with it: ``fs.read``, ``tool.call``.
            target: The target, as somebody wrote it.

        Raises:
            PermissionDeniedError: It has none: others might read it differently.
        """
        return _canonical(namespace, target).text

    def covers(self, namespace: str, target: str) -> bool:
        """Say whether a grant covers a target (P9.2). Neither the lease's end nor its budget are looked at.

        Args:
            namespace: What is to be done with it.
            target: The target, in any form; ``False`` for one without a canonical form.
        """
        matcher = self._matcher(namespace)
        if matcher is None:
            return False
        try:
            return matcher.covers(syntax_of(namespace).target(target))
        except ValueError:
            return False

    def excess_over(self, parent: Lease, *, open_models: bool = False) -> str | None:
        """Say what of this lease is not in another one: ``None`` if it is contained (P9.5).

        Each pattern has to lie within one of the other's. ``cost.budget`` is not compared: what remains of it decides.

        Args:
            parent: The other one.
            open_models: Whether a lease that does not name ``model.use`` has every model (P9.8).

        Returns:
            What to say, for one pattern or the end; also where containment cannot be decided.
        """
        if parent.expires_at_ms is not None and (
            self.expires_at_ms is None or self.expires_at_ms > parent.expires_at_ms
        ):
            return f"expires_at: {self.expires_at or 'never'} is later than {parent.expires_at}"
        work = Work()
        for namespace, texts in self.grants.items():
            if namespace == BUDGET or (namespace == MODELS and open_models and MODELS not in parent.grants):
                continue
            own, other = self._matcher(namespace), parent._matcher(namespace)  # its own class
            if texts and other is None:
                return f"{namespace}: not granted"
            for pattern in own.patterns if own is not None else ():
                try:
                    contained = other is not None and other.contains(pattern, work)
                except TooMuchWorkError:
                    return f"{namespace}: the patterns are too intricate to be compared"
                if not contained:
                    return f"{namespace}: {pattern.text[:200]!r} is not within a pattern that is granted"
        return None

    def inherit(self, parent: Lease, *, open_models: bool = True) -> Lease:
        """Return the lease that a child has by this one under its parent's (P10.2).

        Without an end of its own it ends as the parent's does; without ``model.use`` it has no model, whatever the
        default, if the parent's names them. The rest is as it was, and compared by :meth:`excess_over`.

        Args:
            parent: The parent's lease.
            open_models: Whether a lease that does not name ``model.use`` has every model (P9.8): if not, this one need
                not say that it has none.
        """
        grants = dict(self.grants)
        if open_models and MODELS in parent.grants:
            grants.setdefault(MODELS, ())
        ends = (parent.expires_at, parent.expires_at_ms) if self.expires_at is None else self._ends
        return self._having(grants, ends)

    def within(self, ceiling: LeaseCeiling, *, now_ms: int, open_models: bool = False) -> Lease:
        """Return what of this lease is within a principal's ceiling: never more than either (P6.2, P7.2).

        A pattern within the ceiling stays, a pattern of the ceiling within what was asked stands in its place, and
        of two that overlap what both cover, or nothing where patterns cannot say that. The smaller amount of each
        currency, and the earlier end, hold also where nothing was asked.

        Args:
            ceiling: The ceiling.
            now_ms: The time of day, in milliseconds since 1970.
            open_models: Whether a lease that does not name ``model.use`` has every model (P9.8): then the ceiling's
                hold where none was asked for.
        """
        grants = dict(self.grants)
        allowed = ceiling.lease
        if allowed is not None:
            for namespace in self.grants:
                if namespace == BUDGET or (namespace == MODELS and open_models and MODELS not in allowed.grants):
                    continue
                asked, other = self._matcher(namespace), allowed._matcher(namespace)  # noqa: SLF001  # as above
                both = [] if asked is None or other is None else intersect(asked.patterns, other.patterns, MAX_PATTERNS)
                grants[namespace] = tuple(pattern.text for pattern in both)
            if open_models and MODELS not in grants and MODELS in allowed.grants:
                grants[MODELS] = allowed.grants[MODELS]
        if ceiling.budget:
            grants[BUDGET] = _smaller(self.grants.get(BUDGET, ()), ceiling.budget)
        # A namespace of which nothing is left is gone; only of the models absence may say the contrary.
        kept = {name: texts for name, texts in grants.items() if texts or (name == MODELS and open_models)}
        return self._having(kept, _earlier(self._ends, _last_end(ceiling, now_ms)))

    def at_rest(self) -> Lease:
        """Return an equal lease without what was compiled of it: for what is kept and not asked any more."""
        return Lease(self.grants, self.expires_at, self.expires_at_ms)

    @property
    def _ends(self) -> _End:
        return self.expires_at, self.expires_at_ms

    def _having(self, grants: dict[str, tuple[str, ...]], ends: _End) -> Lease:
        """Return a lease of canonical grants; what was compiled of this one is not compiled again."""
        lease = Lease(grants, *ends)
        lease._matchers.update(  # as above
            (namespace, matcher)
            for namespace, matcher in self._matchers.items()
            if grants.get(namespace) == self.grants[namespace]
        )
        return lease

    def _matcher(self, namespace: str) -> Matcher | None:
        """Return the patterns of a namespace, compiled once; ``None`` where it grants nothing."""
        matcher = self._matchers.get(namespace)
        if matcher is None:
            texts = self.grants.get(namespace)
            if not texts or namespace == BUDGET:
                return None
            matcher = self._matchers[namespace] = Matcher([Pattern.read(namespace, text) for text in texts])
        return matcher


Lease.EMPTY = Lease()


def _to_tuple(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(texts)


@attrs.frozen(kw_only=True)
class LeaseCeiling:
    """The most that a lease of a principal's jobs may hold, whatever they ask for (P6.2).

    A job's lease is what it asked for, as far as it is in here: see :meth:`Lease.within`.

    Attributes:
        grants: Patterns by namespace, written as in a lease; a namespace that is absent, or has no pattern, is not
            granted. ``None`` bounds none. A ``cost.budget`` is given by ``budget``.
        budget: Amounts as in ``cost.budget``, one for each currency: no job has more, and each has them. Empty for no
            such bound.
        lifetime_seconds: The longest time from a job's submission to the end of its lease, in seconds; ``None`` for
            no such bound.

    Raises:
        ValueError: A pattern or an amount is malformed, or the lifetime is not from a millisecond to a hundred years.
    """

    grants: Mapping[str, Sequence[str]] | None = attrs.field(default=None, eq=False)
    budget: Sequence[str] = attrs.field(default=(), converter=_to_tuple)
    lifetime_seconds: float | None = None
    lease: Lease | None = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        """Read the grants, so that a mistake is found by who made it."""
        lease = None
        try:
            parse_budget(self.budget, "budget")
            if self.grants is not None:
                if BUDGET in self.grants:
                    raise ValueError(f"grants: the amounts of {BUDGET!r} are given as budget")
                some = {namespace: texts for namespace, texts in self.grants.items() if texts}
                lease = Lease.read(some, None, now_ms=0, path="grants")
        except InvalidRequestError as exc:
            raise ValueError(exc.message.removeprefix("grants.lease_request.")) from exc
        seconds = self.lifetime_seconds
        if seconds is not None and not _MIN_LIFETIME <= seconds <= _MAX_LIFETIME:
            raise ValueError(f"lifetime_seconds: expected a millisecond to a hundred years, got {seconds!r}")
        object.__setattr__(self, "lease", lease)


def _last_end(ceiling: LeaseCeiling, now_ms: int) -> _End:
    """Return the latest end of a lease that is granted now."""
    if ceiling.lifetime_seconds is None:
        return None, None
    # The half keeps what a division leaves from being cut off.
    text = format_timestamp((now_ms + int(ceiling.lifetime_seconds * 1000) + 0.5) / 1000)
    return text, parse_timestamp(text)


def _canonical(namespace: str, target: str) -> Target:
    if namespace == BUDGET:
        raise PermissionDeniedError(f"{BUDGET}: nothing is done with a budget")
    try:
        return syntax_of(namespace).target(target)
    except ValueError as exc:
        # The target is not repeated: a URL may have a secret in it.
        raise PermissionDeniedError(f"{namespace}: the target has no canonical form: {exc}") from None


def _check_size(grants: Mapping[str, Sequence[str]], path: str) -> None:
    """Refuse what is too much before any of it is looked at: a frame may have millions of patterns.

    Raises:
        InvalidRequestError: There are too many patterns or characters.
    """
    texts = [text for texts in grants.values() for text in texts]
    if len(texts) > MAX_LEASE_PATTERNS or sum(map(len, [*grants, *texts])) > MAX_LEASE_CHARACTERS:
        raise InvalidRequestError(
            f"{path}: expected at most {MAX_LEASE_PATTERNS} patterns, and {MAX_LEASE_CHARACTERS} characters in all"
        )


def _read_grant(namespace: str, texts: Sequence[str], path: str) -> list[Pattern]:
    """Read one grant; the amounts of a budget are no patterns.

    Raises:
        InvalidRequestError: The namespace is not a name, or its patterns are not.
    """
    if not _NAMESPACE.fullmatch(namespace) or len(namespace) > _MAX_NAMESPACE:
        raise InvalidRequestError(
            f"{path}: a namespace is dot-separated lower-case names of at most {_MAX_NAMESPACE} characters, "
            f"got {namespace[:50]!r}"
        )
    path = f'{path}."{namespace}"'
    if isinstance(texts, str):
        # A text is a sequence of texts too: "/data" would be five patterns.
        raise InvalidRequestError(f"{path}: expected a list of patterns, got a text")
    if not 0 < len(texts) <= MAX_PATTERNS:
        raise InvalidRequestError(f"{path}: expected 1 to {MAX_PATTERNS} patterns, got {len(texts)}")
    patterns: dict[str, Pattern] = {}
    for index, text in enumerate(texts if namespace != BUDGET else ()):
        try:
            pattern = Pattern.read(namespace, text)
        except ValueError as exc:
            raise InvalidRequestError(f"{path}[{index}]: {exc}") from None
        patterns.setdefault(pattern.text, pattern)
    return list(patterns.values())


def _read_budget(amounts: Sequence[str], most: Sequence[str], path: str) -> tuple[str, ...]:
    """Check a budget, and that it is within ``max_budget`` (B13).

    Raises:
        InvalidRequestError: An amount is malformed, or above.
    """
    request = f'{path}.lease_request."{BUDGET}"'
    bounds = parse_budget(most, f"{path}.lease_constraints.max_budget")
    for currency, amount in parse_budget(amounts, request).items():
        if amount > bounds.get(currency, amount):
            raise InvalidRequestError(f"{request}: {currency}:{amount} is above max_budget, {bounds[currency]}")
    return _smaller(amounts, most)


def _read_end(text: str, now_ms: int, path: str) -> int:
    """Return when a lease ends.

    Raises:
        InvalidRequestError: It is no time in UTC, or not in the future (P9.6).
    """
    try:
        ends = parse_timestamp(text)
    except ValueError:
        raise InvalidRequestError(
            f"{path}: expected a time in UTC like 2026-05-13T19:42:13.000Z, got {text[:50]!r}"
        ) from None
    if ends <= now_ms:
        raise InvalidRequestError(f"{path}: {text[:50]} is not in the future")
    return ends


def _smaller(amounts: Sequence[str], bounds: Sequence[str]) -> tuple[str, ...]:
    """Return, of two valid budgets, the smaller amount of each currency: a budget only ever takes away."""
    smallest: dict[str, tuple[Decimal, str]] = {}
    for text in (*amounts, *bounds):
        ((currency, amount),) = parse_budget([text], BUDGET).items()
        if currency not in smallest or amount < smallest[currency][0]:
            smallest[currency] = amount, text
    return tuple(text for _, text in smallest.values())


def _earlier(one: _End, other: _End) -> _End:
    if one[1] is None or other[1] is None:
        return other if one[1] is None else one
    return min(one, other, key=lambda end: end[1] or 0)
