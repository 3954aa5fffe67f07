"""When a client tries again after its connection broke, how long it waits, and how it shows that.

What ended a connection decides (P4.5):

=================================  ==========  ======================================================
close code, or what came before    tried again  because
=================================  ==========  ======================================================
1001 going away                    yes         a restarted gateway, or another one, may know the session
1005, 1006 no code, broken         yes         a network
1011 internal, 1012, 1013, 1014    yes         the other side says that it is not our fault
4001 too slow, 4002 heartbeat lost yes         the session is kept for exactly this
any other code                     yes         a code that we do not know is a broken connection
1000, session.bye, session.closed  no          a goodbye
1002, 1003, 1007, 1008, 1009, 1010 no          the same again would be refused again
4000 replaced                      no          somebody has taken the session over: two would fight for it
UNAUTHENTICATED                    no          before the close: the token is no longer good
RESUME_WINDOW_EXPIRED              no          before the close: there is nothing to resume
=================================  ==========  ======================================================
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

import attrs

from ..transports.base import CloseCode
from ..wire.errors import ARCPError

__all__ = ["ConnectionState", "Reconnect", "worth_a_retry"]

_FINAL_CODES = frozenset(
    {
        CloseCode.NORMAL,
        1002,
        CloseCode.UNSUPPORTED_DATA,
        1007,
        CloseCode.POLICY,
        CloseCode.TOO_LARGE,
        1010,
        CloseCode.REPLACED,
    }
)


def worth_a_retry(code: int) -> bool:
    """Say whether a connection that was closed with ``code`` is worth another."""
    return code not in _FINAL_CODES


@attrs.frozen(kw_only=True)
class ConnectionState:
    """How a client is connected.

    Attributes:
        phase: ``connected``; ``lost``: the connection broke; ``retrying``: another one will be tried; ``resumed``: the
            session goes on over a new one; ``reopened``: the runtime had let it go, and as no job was followed here a
            new session stands in for it; ``given_up``: it does not, and everything that waits has failed;
            ``closed``: the client was left.
        reason: What broke the connection, or the last attempt; empty where nothing did.
        attempt: Which attempt comes next, from 1; 0 outside of ``retrying``.
        delay_seconds: How long it waits before that attempt.
        error: What calls raise; with ``given_up`` and ``closed`` alone.
    """

    phase: Literal["connected", "lost", "retrying", "resumed", "reopened", "given_up", "closed"]
    reason: str = ""
    attempt: int = 0
    delay_seconds: float = 0.0
    error: ARCPError | None = None


def _positive(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{attribute.name}: expected a finite number above 0, got {value!r}")


@attrs.frozen(kw_only=True)
class Reconnect:
    """How a client gets its session back after its connection broke.

    A session that the runtime does not resume is given up if a job of it is followed here: events are missing. Else a
    new one takes its place; runtimes keep no session in which nothing happens (P6.12).

    It waits before each attempt, each time ``factor`` as long, up to a maximum. A connection over which something came
    begins again with the first delay; one that breaks before anything did is another failed attempt.

    Raises ValueError for a number that is out of its range: it names the field.

    Attributes:
        first_delay_seconds: The first delay, before its random part is taken.
        factor: How much longer each is than the one before; at least 1.
        max_delay_seconds: The longest delay.
        jitter: The share of a delay that is random, from 0 to 1: clients that lost one gateway must not come back all
            at once.
        deadline_seconds: How long after the loss the session is given up; the runtime's ``resume_window_sec`` where
            that is shorter.
        random: Where the random part comes from: a number from 0 to 1.
        on_change: Called with each :class:`ConnectionState`, synchronously, by the client's own task: it must be short;
            what it raises is logged.
    """

    first_delay_seconds: float = attrs.field(default=0.1, validator=_positive)
    factor: float = attrs.field(default=2.0)
    max_delay_seconds: float = attrs.field(default=30.0, validator=_positive)
    jitter: float = attrs.field(default=0.5)
    deadline_seconds: float = attrs.field(default=600.0, validator=_positive)
    random: Callable[[], float] = random.random
    on_change: Callable[[ConnectionState], None] | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse what would not back off."""
        if not 1 <= self.factor < float("inf"):
            raise ValueError(f"factor: expected a number from 1, got {self.factor!r}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter: expected a number from 0 to 1, got {self.jitter!r}")

    def delay(self, attempt: int) -> float:
        """Return how long to wait before an attempt, in seconds.

        Args:
            attempt: Which one, from 1.
        """
        delay = self.first_delay_seconds
        for _ in range(attempt - 1):
            delay *= self.factor
            if delay >= self.max_delay_seconds:
                break
        delay = min(delay, self.max_delay_seconds)
        return delay * (1 - self.jitter) + delay * self.jitter * self.random()
