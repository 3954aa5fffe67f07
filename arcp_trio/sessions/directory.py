"""Which sessions there are, the caps on them (P6.3), and those that wait for their clients."""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush

from ..limits import Limits
from ..wire.errors import InternalError
from .session import Session
from .stream import WindowTotal

__all__ = ["SessionDirectory"]

# What is made free when the windows of all are full: one in so many of their bytes.
_RELIEF = 16


class SessionDirectory:
    """Finds sessions and counts them. Every change is synchronous."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sessions: dict[str, Session] = {}
        self._of_principal: Counter[str] = Counter()
        # Those without a connection, the one that waits longest first.
        self._waiting: dict[Session, None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def waiting(self) -> int:
        """How many have no connection."""
        return len(self._waiting)

    def find(self, session_id: str) -> Session | None:
        """Return the session of that id; ``None`` if there is none (any more)."""
        return self._sessions.get(session_id)

    def make_room(self, principal: str) -> None:
        """Keep the cap on a principal's sessions, before it gets one more.

        A session that waits for a client who may never come back does not stand in the way of one who is there: the
        one that waits longest ends.

        Raises:
            InternalError: All of them have connections; retryable, ``details`` names the limit.
        """
        cap = self._limits.sessions_per_principal
        if self._of_principal[principal] < cap:
            return
        oldest = next((session for session in self._waiting if session.principal.name == principal), None)
        if oldest is None:
            raise InternalError(
                f"{cap} sessions of this principal are open, the limit sessions_per_principal",
                details={"limit": "sessions_per_principal", "value": cap},
            )
        oldest.close()

    def relieve(self, total: WindowTotal) -> None:
        """Make room for all windows: the largest of the principal that has most gives way, until a part is free.

        So nobody's windows, however many, push out those of another who has less. Free is more than what is needed:
        looking at all sessions costs a moment, and is not to be done for every event.
        """
        sessions: dict[str, list[Session]] = {}
        for session in self._sessions.values():
            sessions.setdefault(session.principal.name, []).append(session)
        # Negative, so that the first of the heap has most.
        used = [(-sum(each.stream.kept_bytes for each in theirs), name) for name, theirs in sessions.items()]
        heapify(used)
        while used and total.used > total.limit - total.limit // _RELIEF:
            size, name = heappop(used)
            largest = max(sessions[name], key=lambda session: session.stream.kept_bytes)
            size += largest.stream.kept_bytes
            largest.give_way()
            size -= largest.stream.kept_bytes
            if size < 0:
                heappush(used, (size, name))

    def add(self, session: Session) -> None:
        """Add a session that was welcomed."""
        self._sessions[session.session_id] = session
        self._of_principal[session.principal.name] += 1

    def note_waiting(self, session: Session) -> None:
        """Note that a session has lost its connection; past the cap on such ones the oldest of them ends."""
        self._waiting[session] = None
        if len(self._waiting) > self._limits.sessions_waiting:
            next(iter(self._waiting)).close()

    def note_attached(self, session: Session) -> None:
        """Note that a session has a connection."""
        self._waiting.pop(session, None)

    def end_spans(self) -> None:
        """End the spans of those that are left when the runtime shuts down; the sessions wait as they did."""
        for session in self._sessions.values():
            session.end_span()

    def remove(self, session: Session) -> None:
        """Remove a session that has ended."""
        self._waiting.pop(session, None)
        if self._sessions.pop(session.session_id, None) is not None:
            self._of_principal[session.principal.name] -= 1
            if not self._of_principal[session.principal.name]:
                del self._of_principal[session.principal.name]
