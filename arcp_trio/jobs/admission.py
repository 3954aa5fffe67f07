"""Submits that wait for something before their jobs exist, and the order of each session's answers.

Theory of operation. A submit that passed validation belongs to the runtime (P7.6): what it waits for runs in a task of
the runtime, under a deadline, and a connection that breaks meanwhile does not end it. Until it is answered it counts as
a job in the caps. Several peers match answers to submits by order alone, so each session has a :class:`Line`: what came
behind a submit that waits is answered behind it, refusals too. What it waited for is done in parallel; only the answers
wait for one another.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import attrs
import trio

from ..limits import Limits
from ..wire.errors import ARCPError, InternalError
from .directory import JobDirectory

__all__ = ["Admissions", "Line"]

logger = logging.getLogger("arcp_trio.jobs")

T = TypeVar("T")


@attrs.define(eq=False)
class _Waiting:
    """A submit that waits, or an answer that stands behind one.

    Attributes:
        refuse: Answers with an error.
        answer: Answers, once it is ready; may raise an ARCPError instead.
        principal: Whose cap it counts in; ``None`` for what will be no job.
        scope: Around what it waits for.
    """

    refuse: Callable[[ARCPError], None]
    answer: Callable[[], None] | None = None
    principal: str | None = None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


class Line:
    """The submits of one session that wait, oldest first.

    Args:
        begins: Told of each that begins to wait. Synchronous.
        answered: Told of each that was answered, behind its answer. Synchronous.

    Attributes:
        entries: What waits.
    """

    __slots__ = ("_mark", "answered", "begins", "entries")

    def __init__(self, begins: Callable[[], None], answered: Callable[[], None]) -> None:
        self.begins = begins
        self.answered = answered
        self.entries: deque[_Waiting] = deque()
        self._mark: _Waiting | None = None

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self.entries) - (self._mark in self.entries)

    def mark(self, answer: Callable[[], None]) -> None:
        """Say something behind all that waits now, or at once if nothing does; only the newest such is said."""
        if self._mark is not None and self._mark in self.entries:
            self.entries.remove(self._mark)
        self._mark = None
        if self.entries:
            self._mark = _Waiting(_nobody, answer)
            self.entries.append(self._mark)
        else:
            answer()


def _nobody(_: ARCPError) -> None:
    """Refuse what nobody has asked for."""


class Admissions:
    """The submits of a runtime that wait.

    Args:
        limits: The bounds.
        directory: Where those count that will be jobs.
        spawn: Starts a task of the runtime.
    """

    def __init__(
        self,
        limits: Limits,
        directory: JobDirectory,
        spawn: Callable[[Callable[[], Awaitable[None]], str], None],
    ) -> None:
        self._limits = limits
        self._directory = directory
        self._spawn = spawn
        # Those that wait for something of their own.
        self._preparing: dict[_Waiting, None] = {}

    def admit(
        self,
        line: Line,
        principal: str,
        *,
        prepare: Callable[[], Awaitable[T]],
        accept: Callable[[T], None],
        refuse: Callable[[ARCPError], None],
    ) -> None:
        """Let a submit wait for what ``prepare`` returns.

        Args:
            line: Its session's.
            principal: Whose job it will be; there is room for it (:meth:`JobDirectory.check_room`).
            prepare: Makes what the job needs. What it raises refuses the submit; it is cancelled at the deadline.
            accept: Makes the job and answers, in its turn. Synchronous; it may raise an ARCPError, and has then undone
                what ``prepare`` has made.
            refuse: Answers with an error, in its turn. Synchronous; never fails.

        Raises:
            InternalError: Too many submits of this session wait already; retryable.
        """
        entry = self._enqueue(line, _Waiting(refuse, principal=principal))
        self._preparing[entry] = None
        self._spawn(partial(self._prepare, line, entry, prepare, accept), "a submit that waits")

    def queue(
        self, line: Line, answer: Callable[[], None], refuse: Callable[[ARCPError], None], *, principal: str | None
    ) -> None:
        """Answer behind what waits; for a submit that waits for nothing of its own.

        Args:
            line: Its session's; something waits in it.
            answer: Makes the job and answers, or refuses. Synchronous; may raise an ARCPError.
            refuse: Answers with an error. Synchronous; never fails.
            principal: Whose job it will be; ``None`` for a refusal.

        Raises:
            InternalError: As :meth:`admit`.
        """
        self._enqueue(line, _Waiting(refuse, answer, principal))

    def _enqueue(self, line: Line, entry: _Waiting) -> _Waiting:
        limit = self._limits.waiting_submits
        if len(line) >= limit:
            raise InternalError(
                f"{len(line)} submits of this session wait, the limit waiting_submits",
                details={"limit": "waiting_submits", "value": limit},
            )
        line.entries.append(entry)
        line.begins()
        if entry.principal is not None:
            self._directory.reserve(entry.principal)
        return entry

    def close(self) -> None:
        """Refuse all that waits: the runtime shuts down."""
        for entry in self._preparing:
            entry.scope.cancel(reason="the runtime is shutting down")

    @trio.lowlevel.enable_ki_protection
    async def _prepare(
        self, line: Line, entry: _Waiting, prepare: Callable[[], Awaitable[T]], accept: Callable[[T], None]
    ) -> None:
        error: ARCPError | None = None
        try:
            with entry.scope, trio.move_on_after(self._limits.submit_seconds):
                entry.answer = partial(accept, await prepare())
        except ARCPError as exc:
            error = exc
        except Exception:
            logger.exception("a bug in what a submit waits for")
            error = InternalError("the runtime failed to handle the request")
        del self._preparing[entry]
        if entry.answer is None:
            entry.answer = partial(entry.refuse, error or self._too_late(entry))
        self._advance(line)

    def _too_late(self, entry: _Waiting) -> InternalError:
        if entry.scope.cancel_called:
            return InternalError("the runtime is shutting down")
        limit = self._limits.submit_seconds
        return InternalError(
            f"the submit was not ready within {limit:g} seconds", details={"limit": "submit_seconds", "value": limit}
        )

    @trio.lowlevel.enable_ki_protection
    def _advance(self, line: Line) -> None:
        """Answer what is ready at the head of a line. No checkpoint inside."""
        while line.entries and (answer := line.entries[0].answer) is not None:
            entry = line.entries.popleft()
            try:
                answer()
            except ARCPError as exc:
                entry.refuse(exc)
            except Exception:
                logger.exception("a bug in the answer to a submit")
                entry.refuse(InternalError("the runtime failed to handle the request"))
            # Behind the answer: whoever waits until nothing runs must not find that between the submit and its job.
            if entry.principal is not None:
                self._directory.release(entry.principal)
            if entry.refuse is not _nobody:
                line.answered()
