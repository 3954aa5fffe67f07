"""``arcp-trio cancel``: ask for the end of a job, and say what became of that."""

from __future__ import annotations

from typing import Any

from ..client.job_handle import CancelOutcome
from ..wire.errors import ARCPError, ConnectionLostError, PermissionDeniedError
from ..wire.jsontext import encode_json
from .connect import Target, open_session
from .errors import ExitCode, describe_error
from .terminal import Output, complain
from .text import clean

__all__ = ["cancel", "describe_outcome", "describe_refused_cancel"]

_WHO_MAY = "whoever submitted it can, with control-C in the 'arcp-trio submit' that still runs (ARCP v1.1, section 7.4)"


def describe_outcome(job_id: str, outcome: CancelOutcome) -> str:
    """Return what became of a cancel that the runtime answered, in one line."""
    job_id = clean(job_id)
    if outcome.applied:
        return f"cancelled {job_id}"
    if outcome.status == "running":
        return f"not cancelled: something else is already ending {job_id}"
    return f"too late: {job_id} had ended as {clean(outcome.status)}"


def describe_refused_cancel(error: ARCPError) -> str:
    """Return why a runtime refused a cancel, in one line, with what can be done about it."""
    if isinstance(error, ConnectionLostError):
        return f"{clean(error.message)}; whether the job was cancelled is unknown"
    refusal = f"refused: {describe_error(error)}"
    return f"{refusal}; {_WHO_MAY}" if isinstance(error, PermissionDeniedError) else refusal


async def cancel(target: Target, job_id: str, *, reason: str, as_json: bool) -> ExitCode:
    """Cancel a job and print what became of it: an outcome on stdout, a refusal on stderr.

    Args:
        target: The runtime.
        job_id: The job.
        reason: Why; stands in the runtime's acknowledgement.
        as_json: Whether to print one line of JSON, on stdout, whatever became of it.

    Returns:
        ``OK`` if the cancel was applied.

    Raises:
        CommandError: The session could not be opened.

    Cancellation: the request may have been sent.
    """
    answer: dict[str, Any] = {"job_id": job_id, "applied": False}
    outcome: CancelOutcome | None = None
    async with open_session(target, name="arcp-trio cancel") as client:
        try:
            outcome = await client.cancel_job(job_id, reason)
        except ARCPError as exc:
            answer["error"] = {"code": exc.code, "message": exc.message, "retryable": exc.retryable}
            line = describe_refused_cancel(exc)
        else:
            answer.update(applied=outcome.applied, status=outcome.status)
            line = describe_outcome(job_id, outcome)
    if as_json:
        await Output(1).print(encode_json(answer).decode())
    elif outcome is None:
        complain(line)
    else:
        await Output(1).print(line)
    return ExitCode.OK if outcome is not None and outcome.applied else ExitCode.FAILED
