"""Which sessions there are, and the caps on them (P6.3)."""

from __future__ import annotations

from collections import Counter

from ..limits import Limits
from ..wire.errors import InternalError
from .session import Session

__all__ = ["SessionDirectory"]


class SessionDirectory:
    """Finds sessions and counts them. Every change is synchronous."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sessions: dict[str, Session] = {}
        self._of_principal: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._sessions)

    def check_room(self, principal: str) -> None:
        """Check the cap on a principal's sessions.

        Raises:
            InternalError: It is reached; retryable, ``details`` names the limit.
        """
        cap = self._limits.sessions_per_principal
        if self._of_principal[principal] >= cap:
            raise InternalError(
                f"{cap} sessions of this principal are open, the limit sessions_per_principal",
                details={"limit": "sessions_per_principal", "value": cap},
            )

    def add(self, session: Session) -> None:
        """Add a session that was welcomed."""
        self._sessions[session.session_id] = session
        self._of_principal[session.principal.name] += 1

    def remove(self, session: Session) -> None:
        """Remove a session that was closed."""
        if self._sessions.pop(session.session_id, None) is not None:
            self._of_principal[session.principal.name] -= 1
            if not self._of_principal[session.principal.name]:
                del self._of_principal[session.principal.name]
