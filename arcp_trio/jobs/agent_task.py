"""How an agent's function is run, and how each way in which it can end becomes one message."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio

from ..wire.errors import ARCPError, InternalError
from ..wire.jsontext import encode_json
from .agents import AgentFunction
from .context import JobContext
from .feed import ResultPayload
from .lifecycle import AgentEnded, End, FinalStatus, Outcome

__all__ = ["internal_error", "run_agent"]

logger = logging.getLogger("arcp_trio.jobs")

_MAX_MESSAGE = 16 * 1024
_MAX_DETAILS = 256 * 1024


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


def _the_error(exc: BaseException) -> ARCPError | None:
    """Return the ARCPError that ``exc`` is: itself, or a group whose leaves have all one code."""
    if isinstance(exc, ARCPError):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        leaves = [_the_error(leaf) for leaf in exc.exceptions]
        first = leaves[0]
        if first is not None and all(leaf is not None and leaf.code == first.code for leaf in leaves):
            return first
    return None


def _sendable_details(error: ARCPError, context: JobContext) -> dict[str, Any] | None:
    if error.details is None:
        return None
    try:
        if len(encode_json(error.details, within=2)) <= _MAX_DETAILS:
            return error.details
        problem = "are too large"
    except ValueError as exc:
        problem = f"are not JSON: {exc}"
    logger.warning("job %s: the details of %s %s; not sent", context.job_id, error.code, problem)
    return None


def _outcome(exc: BaseException, context: JobContext) -> Outcome:
    error = _the_error(exc)
    if error is None:
        # The traceback stays here; the client gets what finds it (P7.9).
        reference = context.job_id[-8:]
        logger.error("job %s: agent %s failed, reference %s", context.job_id, context.agent, reference, exc_info=exc)
        return internal_error(
            f"the agent failed; the runtime's log has more under reference {reference}",
            details={"reference": reference},
        )
    try:
        message = error.message.encode().decode()[:_MAX_MESSAGE]
    except UnicodeEncodeError:
        message = ascii(error.message)[:_MAX_MESSAGE]
    return Outcome(
        final_status=FinalStatus.ERROR,
        code=error.code,
        message=message or error.code,
        retryable=error.retryable,
        details=_sendable_details(error, context),
    )


async def run_agent(
    function: AgentFunction,
    context: JobContext,
    value: Any,
    scope: trio.CancelScope,
    interrupted: Callable[[BaseException], None],
) -> AgentEnded:
    """Run an agent behind its own scope and say how it ended.

    Args:
        function: The agent.
        context: Its view of the job.
        value: The job's input.
        scope: What stops it; only its actor cancels it.
        interrupted: Is told of a KeyboardInterrupt, which is the program's and not the agent's.

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
        return AgentEnded(End.RAISED, _outcome(rest, context))
    except BaseException as exc:  # noqa: BLE001
        # SystemExit and asyncio's CancelledError among them: an agent cannot end the runtime by raising.
        return AgentEnded(End.RAISED, _outcome(exc, context))
    if result is None:
        return _STOPPED
    return AgentEnded(End.RETURNED, Outcome(final_status=FinalStatus.SUCCESS, result=result))
