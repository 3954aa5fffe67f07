"""What a command does about a connection that breaks: it tries to get it back, and says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from ..client.reconnect import ConnectionState, Reconnect

__all__ = ["ConnectionNews"]

_MAX_DELAY_SECONDS = 10.0
"""Somebody is waiting: a network that is back is found sooner than a program in the background would."""
_KEPT = 64
"""States that wait to be shown, while the reader of the output pauses; past it the oldest are not shown."""


class ConnectionNews:
    """Collects the states of a command's connection, and hands them to whoever shows them.

    Args:
        seconds: How long a lost connection is tried to get back; 0 for not at all.

    Attributes:
        reconnect: What the client is to be opened with.
    """

    def __init__(self, seconds: float) -> None:
        self.reconnect: Reconnect | None = None
        if seconds > 0:
            self.reconnect = Reconnect(
                deadline_seconds=seconds, max_delay_seconds=_MAX_DELAY_SECONDS, on_change=self._take
            )
        self._states: deque[ConnectionState] = deque(maxlen=_KEPT)
        self._changed = trio.Event()

    def _take(self, state: ConnectionState) -> None:
        if state.phase != "connected":
            self._states.append(state)
            self._changed.set()

    async def run(self, show: Callable[[ConnectionState], Awaitable[None]]) -> None:
        """Show what happens, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            await self.flush(show)

    async def flush(self, show: Callable[[ConnectionState], Awaitable[None]]) -> None:
        """Show what has happened."""
        while self._states:
            await show(self._states.popleft())
