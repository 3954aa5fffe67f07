"""Who is there: verifiers turn a token into a principal (P6.1, P6.2)."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from typing import Protocol

import attrs

from ..authority.lease import LeaseCeiling

__all__ = ["AnonymousAccess", "Principal", "StaticTokens", "TrustedPrincipal", "Verifier"]


def _not_empty(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not value:
        raise ValueError(f"{attribute.name}: expected the name of a principal, got an empty one")


@attrs.frozen(kw_only=True)
class Principal:
    """Who a session belongs to.

    Attributes:
        name: What jobs and records are kept under, not empty; two sessions of one name are one principal.
        agents: The names of the agents that it may use; ``None`` for all.
        ceiling: The most that a lease of its jobs may hold, whatever they ask for; ``None`` for no such bound.
        anonymous: Whether the name was made up for one connection. Whoever resumes the session of such a principal
            has another name by then: its resume token alone says that it is the same client.

    Raises:
        ValueError: The name is empty: whoever has none would be one principal with all others that have none.
    """

    name: str = attrs.field(validator=_not_empty)
    agents: frozenset[str] | None = None
    ceiling: LeaseCeiling | None = None
    anonymous: bool = False


class Verifier(Protocol):
    """Decides who a token stands for."""

    async def verify(self, token: str) -> Principal | None:
        """Return the token's principal, or ``None`` for one that stands for nobody.

        Args:
            token: As the client showed it; never empty.

        May be slow: the hello deadline bounds it. An exception that it raises is logged and answered with
        INTERNAL_ERROR, retryable.
        """
        ...


class StaticTokens:
    """A fixed set of tokens.

    Args:
        tokens: Each token, not empty, and its principal: a name, or a :class:`Principal`.

    Raises:
        ValueError: A token or a name is empty.
    """

    def __init__(self, tokens: Mapping[str, str | Principal]) -> None:
        self._tokens: list[tuple[bytes, Principal]] = []
        for token, who in tokens.items():
            principal = Principal(name=who) if isinstance(who, str) else who
            if not token:
                raise ValueError("a token must not be empty")
            self._tokens.append((token.encode(), principal))

    def __repr__(self) -> str:
        return f"<StaticTokens of {len(self._tokens)}>"

    async def verify(self, token: str) -> Principal | None:  # a verifier may await; this one has no need
        """Return the token's principal; compares in constant time, with every token."""
        given = token.encode("utf-8", "surrogatepass")
        found: Principal | None = None
        for known, principal in self._tokens:
            # No early end: how long this takes says nothing about which token was nearly right.
            if hmac.compare_digest(given, known):
                found = principal
        return found


class AnonymousAccess:
    """Lets everybody in, each connection as a principal of its own.

    A runtime on a port has no other way to do without a verifier: who wants it asks for it by this name.
    """

    async def verify(self, token: str) -> Principal | None:  # noqa: ARG002  # as above
        """Return a principal that no other session has: a random name, which a second listener does not give again."""
        return Principal(name=f"anonymous-{secrets.token_hex(8)}", anonymous=True)


class TrustedPrincipal:
    """For a session opened in the process itself: whoever can call that needs no token.

    Args:
        principal: Who the session belongs to.
    """

    def __init__(self, principal: Principal) -> None:
        self._principal = principal

    async def verify(self, token: str) -> Principal | None:  # noqa: ARG002  # as above
        """Return the principal."""
        return self._principal
