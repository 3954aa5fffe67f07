"""The numbers of a session's events as its client sees them: what is missing, what came twice (P8.2, P8.3).

Not every runtime numbers as the specification says (interop.md, section 3.18): some count for each job or each
subscription, one leaves terminal events without a number, one sends concurrent jobs slightly out of order. So the rule
is:

- A runtime that negotiated ``x-arcp-trio.replies`` is held to 1, 2, 3, … from its first number on.
- One that is known to number otherwise is never held to anything, nor is one once its numbers were anything but
  1, 2, 3, …, or once a job was subscribed to there.
- Another is held to it from the moment that two of its jobs have shared one unbroken count from 1.

Of a runtime that is not held to its numbers no frame is dropped and none is missed; a resume names the highest number
up to which all had come.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum, auto

from ..wire.jsontext import JSONValue

__all__ = ["Sequence", "Verdict", "numbers_otherwise"]

# Numbers ahead of a hole that are remembered, of a runtime that is not held to its order.
_AHEAD = 1024

_BARE_ULID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")


class Verdict(Enum):
    """What a number says about its frame."""

    NEXT = auto()
    """It is to be looked at."""
    REPEATED = auto()
    """It was here before."""
    GAP = auto()
    """Others should have come before it."""


def numbers_otherwise(welcome: Mapping[str, JSONValue]) -> bool:
    """Say whether a welcome's payload is of one of the three implementations that number otherwise (interop.md, 10)."""
    token = welcome.get("resume_token")
    if "runtime_name" in welcome:
        return "runtime" not in welcome
    if isinstance(token, str) and (token.startswith("rtk_") or _BARE_ULID.fullmatch(token)):
        return True
    capabilities = welcome.get("capabilities")
    agents = capabilities.get("agents") if isinstance(capabilities, dict) else None
    return isinstance(agents, list) and any(isinstance(agent, dict) and "bare" in agent for agent in agents)


class Sequence:
    """Follows the numbers of one session.

    Attributes:
        last: The number up to which everything has come; what a resume asks to be continued from.
        missing: The number that was missing at the gap that was found last.
    """

    def __init__(self) -> None:
        self.last = 0
        self.missing = 0
        self._held = False
        self._watched = True
        self._first_job: str | None = None
        self._ahead: set[int] = set()

    def hold(self) -> None:
        """Hold the runtime to its numbers from now on."""
        self._held = True

    def let_go(self) -> None:
        """Never hold it to them."""
        self._held = self._watched = False

    def take(self, number: int, job_id: str | None) -> Verdict:
        """Take the number of a frame that has come, with its job."""
        if number == self.last + 1:
            self._advance(number)
            self._watch(job_id)
            return Verdict.NEXT
        if self._held:
            if number <= self.last:
                return Verdict.REPEATED
            self.missing = self.last + 1
            return Verdict.GAP
        self._watched = False
        if number > self.last and len(self._ahead) < _AHEAD:
            self._ahead.add(number)
        return Verdict.NEXT

    def _advance(self, number: int) -> None:
        self.last = number
        while self._ahead and self.last + 1 in self._ahead:
            self.last += 1
            self._ahead.discard(self.last)

    def _watch(self, job_id: str | None) -> None:
        if self._held or not self._watched or job_id is None:
            return
        if self._first_job is None:
            self._first_job = job_id
        elif job_id != self._first_job:
            self._held = True
