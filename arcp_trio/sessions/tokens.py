"""Resume tokens: issued, rotated, confirmed and compared (P6.8). Sans-IO.

A token is the session's id, a dot and 256 random bits: some clients show the token alone, and it has to lead to its
session without being a key of a map itself. Only hashes are kept.
"""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256

__all__ = ["ResumeTokens", "session_of_token"]

# A welcome that is lost on the way costs its token: so many may be lost in a row.
_UNCONFIRMED = 4
_SECRET_BYTES = 32


def session_of_token(token: str) -> str:
    """Return the id of the session that a token claims to belong to."""
    return token.rpartition(".")[0]


def _hash(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


class ResumeTokens:
    """The tokens of one session: the one that its client holds for certain, and those that were issued since."""

    __slots__ = ("_hashes",)

    def __init__(self) -> None:
        self._hashes: list[bytes] = []

    def issue(self, session_id: str) -> str:
        """Return a new token. Those before it stay valid until :meth:`confirm`: its welcome may get lost."""
        token = f"{session_id}.{secrets.token_urlsafe(_SECRET_BYTES)}"
        self._hashes.append(_hash(token))
        if len(self._hashes) > _UNCONFIRMED:
            # Not the first: it may be the only one that the client has.
            del self._hashes[1]
        return token

    def matches(self, token: str) -> bool:
        """Say whether a token is valid; how long that takes tells nothing. Changes nothing (P6.10)."""
        return self._find(token) is not None

    def _find(self, token: str) -> int | None:
        given = _hash(token)
        found = None
        for index, known in enumerate(self._hashes):
            if hmac.compare_digest(given, known):
                found = index
        return found

    def confirm(self, token: str) -> None:
        """Drop those that were issued before a token which its client is known to hold.

        It has shown it, or has sent a message on the connection of its welcome. Those that were issued since stay: the
        message may come from a connection that another one has just replaced.
        """
        index = self._find(token)
        if index is not None:
            del self._hashes[:index]
