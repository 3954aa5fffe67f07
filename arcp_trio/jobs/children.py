"""The jobs that a job has delegated: what its agent holds of each, and how all of them end before it does (P10.3).

Theory of operation. All actors are equals in one nursery: that no child outlives its parent is kept by the parent's
lifecycle. An agent that returns has not ended before its children have; on leaving ``running`` in any other way the
parent tells them to stop, with less time than it has itself; and its tear-down is over only when the last one has
published its terminal event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from ..wire.errors import InternalError, JobCancelledError, LeaseExpiredError, error_from_wire, sendable_retryable
from ..wire.jsontext import JSONValue, decode_json
from .lifecycle import FinalStatus, Outcome, ParentStopping

if TYPE_CHECKING:
    from .actor import JobActor

__all__ = ["Child", "Children"]

# What a parent keeps of its own time for what it has to do when its children have ended: a second, or a part of what
# there is where that is shorter, so that some is left for each generation.
_MARGIN_SECONDS = 1.0
_MARGIN_SHARE = 1 / 8

_STOPPED = Outcome(final_status=FinalStatus.CANCELLED, code=JobCancelledError.default_code, message="parent stopped")
_EXPIRED = Outcome(
    final_status=FinalStatus.ERROR, code=LeaseExpiredError.default_code, message="parent stopped: its lease expired"
)


class _AgentsCancel:
    """A cancel by the agent that delegated the job: it waits for no answer."""

    __slots__ = ("_reason",)

    def __init__(self, reason: str | None) -> None:
        self._reason = reason

    @property
    def reason(self) -> str | None:
        """Why, as the agent said."""
        return self._reason

    def acknowledge(self) -> None:
        """Say nothing: no client has asked (P7.13)."""

    def refuse(self, job_status: str) -> None:
        """Say nothing: the child's end is the answer."""


@final
class Child:
    """A job that an agent has delegated; made by :meth:`JobContext.delegate`.

    The child runs whether or not anybody waits for it, and its parent does not end before it has ended.
    """

    __slots__ = ("_actor", "_agent", "_ended", "_inline_bytes", "_job_id", "_outcome")

    def __init__(self, actor: JobActor) -> None:
        self._job_id = actor.job_id
        self._agent = actor.agent.resolved
        self._inline_bytes = actor.services.limits.inline_result_bytes
        self._actor: JobActor | None = actor
        self._outcome: Outcome | None = None
        self._ended = trio.Event()

    def __repr__(self) -> str:
        return f"<Child {self._job_id} {self._agent} {self.status}>"

    @property
    def job_id(self) -> str:
        """Its id."""
        return self._job_id

    @property
    def agent(self) -> str:
        """The resolved agent, ``name@version``."""
        return self._agent

    @property
    def status(self) -> str:
        """``pending``, ``running``, or one of the four terminal states (P7.7)."""
        if self._actor is not None:
            return self._actor.status
        assert self._outcome is not None
        return self._outcome.final_status.value

    async def wait_ended(self) -> None:
        """Wait until the child has ended, however it did.

        Cancellation: a checkpoint; the child goes on, unless its parent is being stopped.
        """
        await self._ended.wait()

    async def result(self) -> JSONValue:
        """Wait for the child's end and return its result.

        A child that fails raises here, and nowhere else: an agent that catches the error goes on (P10.4).

        Returns:
            The JSON value that the child's agent returned, anew for each call; a streamed result as one value: text,
            or what its text says where its content type is ``application/json``; bytes as text in base64.

        Raises:
            ARCPError: The child did not succeed: the class that its code names, with its message, ``retryable`` and
                details. :class:`JobCancelledError` after :meth:`cancel`.
            InternalError: Its streamed result is larger than ``Limits.inline_result_bytes``; not retryable.

        Cancellation: a checkpoint; nothing is lost, it may be called again, and from several tasks.
        """
        await self._ended.wait()
        outcome = self._outcome
        assert outcome is not None
        if outcome.final_status is not FinalStatus.SUCCESS:
            retryable = sendable_retryable(outcome.code, outcome.retryable)
            raise error_from_wire(outcome.code, outcome.message, retryable=retryable, details=outcome.details)
        payload = outcome.result
        encoded = payload.inline if payload.result_id is None else payload.assembled
        if encoded is not None:
            return decode_json(encoded)
        if payload.result_id is not None:
            raise InternalError(
                f"the result of {self._job_id} has {payload.result_size} bytes, above the limit inline_result_bytes",
                retryable=False,
                details={"limit": "inline_result_bytes", "value": self._inline_bytes},
            )
        return None

    def cancel(self, reason: str | None = None) -> None:
        """Ask for the child's end: it ends as ``cancelled``, when its agent has stopped or its grace is over (P7.13).

        It changes nothing where the child's outcome is decided already; :meth:`result` and :attr:`status` tell.
        Clients get no job.cancelled for it, for they have not asked, and no other sign than the child's terminal
        event.

        Args:
            reason: Why; stands in the child's terminal event.
        """
        if self._actor is not None:
            self._actor.request_cancel(_AgentsCancel(reason))

    def _end(self, outcome: Outcome) -> None:
        """Take the outcome, which has just been published."""
        self._outcome = outcome
        self._actor = None
        self._ended.set()


class Children:
    """The children of one job that have not ended. Owned by that job's actor; all but one method are synchronous."""

    __slots__ = ("_children",)

    def __init__(self) -> None:
        self._children: dict[JobActor, Child] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._children)

    def add(self, actor: JobActor) -> Child:
        """Add a child that was started; return what the agent gets of it."""
        child = self._children[actor] = Child(actor)
        return child

    def remove(self, actor: JobActor, outcome: Outcome) -> None:
        """Take note that a child has published its outcome, and tell who waits for it."""
        self._children.pop(actor)._end(outcome)  # noqa: SLF001  # of this module

    def stop(self, until: float, cause: Outcome) -> None:
        """Tell all to stop, or to be quicker about it.

        Args:
            until: When the parent's own time ends, on Trio's clock: theirs ends sooner, and that of their children
                sooner still.
            cause: How the parent ends: what its lease's expiry stops has expired too.
        """
        left = max(0.0, until - trio.current_time())
        until -= min(_MARGIN_SECONDS, left * _MARGIN_SHARE)
        outcome = _EXPIRED if cause.code == LeaseExpiredError.default_code else _STOPPED
        for actor in self._children:
            actor.stop_with_parent(ParentStopping(until, outcome))

    def end_by_force(self) -> None:
        """End all of them now: their parent has no actor any more that could wait for them."""
        for actor in list(self._children):
            actor.end_by_force()

    async def wait_ended(self) -> None:
        """Wait until none is left. A checkpoint only where there is one; cancelling it changes nothing."""
        while self._children:
            await next(iter(self._children.values())).wait_ended()
