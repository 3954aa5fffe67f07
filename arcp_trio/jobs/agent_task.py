"""How an agent's function is run, and how each way in which it can end becomes one message."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import trio

from ..authority.translation import Translator
from ..wire.errors import InternalError
from .agents import AgentFunction
from .context import JobContext
from .failures import failure_of
from .feed import ResultPayload
from .lifecycle import AgentEnded, End, FinalStatus, Outcome

__all__ = ["internal_error", "run_agent"]

logger = logging.getLogger("arcp_trio.jobs")


def internal_error(message: str, *, details: dict[str, Any] | None = None) -> Outcome:
    """Return the outcome for a fault: error, INTERNAL_ERROR, retryable."""
    return Outcome(
        final_status=FinalStatus.ERROR,
        code=InternalError.default_code,
        message=message,
        retryable=True,
        details=details,
    )


_STOPPED = AgentEnded(End.STOPPED, internal_error("the agent was stopped"))


@trio.lowlevel.disable_ki_protection
async def _call(function: AgentFunction, context: JobContext, value: Any) -> Any:
    # Control-C reaches the agent's own code, and only that.
    return await function(context, value)


def _outcome(exc: BaseException, context: JobContext, translators: Sequence[Translator]) -> Outcome:
    failure = failure_of(exc, "the agent", f"agent {context.agent}", job_id=context.job_id, translators=translators)
    return Outcome(
        final_status=FinalStatus.ERROR,
        code=failure.code,
        message=failure.message,
        retryable=failure.retryable,
        details=failure.details,
    )


async def run_agent(
    function: AgentFunction,
    context: JobContext,
    value: Any,
    scope: trio.CancelScope,
    interrupted: Callable[[BaseException], None],
    *,
    translators: Sequence[Translator],
) -> AgentEnded:
    """Run an agent behind its own scope and say how it ended.

    Args:
        function: The agent.
        context: Its view of the job.
        value: The job's input.
        scope: What stops it; only its actor cancels it.
        interrupted: Is told of a KeyboardInterrupt, which is the program's and not the agent's.
        translators: Say what its libraries' errors are in terms of the protocol (P9.9).

    Raises:
        trio.Cancelled: The runtime itself is being cancelled, from outside the scope.
    """
    result: ResultPayload | None = None
    try:
        with scope:
            # A cancel that came before the first step: the agent's body is not entered (P7.15).
            await trio.lowlevel.checkpoint_if_cancelled()
            returned = await _call(function, context, value)
            result = await context.finish_result(returned)
    except trio.Cancelled:
        raise
    except KeyboardInterrupt as exc:
        interrupted(exc)
        return AgentEnded(End.RAISED, internal_error("the runtime was interrupted"))
    except BaseExceptionGroup as group:
        interrupts, rest = group.split(KeyboardInterrupt)
        if interrupts is not None:
            interrupted(KeyboardInterrupt())
            return AgentEnded(End.RAISED, internal_error("the runtime was interrupted"))
        # Leaves that are Cancelled say only that siblings were stopped.
        cancelled, rest = group.split(trio.Cancelled)
        if rest is None:
            raise
        if cancelled is not None and not scope.cancel_called:
            logger.debug("job %s: the agent's group held Cancelled beside its errors", context.job_id)
        return AgentEnded(End.RAISED, _outcome(rest, context, translators))
    except BaseException as exc:  # noqa: BLE001
        # SystemExit and asyncio's CancelledError among them: an agent cannot end the runtime by raising.
        return AgentEnded(End.RAISED, _outcome(exc, context, translators))
    if result is None:
        return _STOPPED
    return AgentEnded(End.RETURNED, Outcome(final_status=FinalStatus.SUCCESS, result=result))
