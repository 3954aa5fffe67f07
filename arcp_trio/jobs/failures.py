"""What an exception of an agent's code is to everybody else: an error of the protocol, and nothing more (P7.9)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import attrs

from ..authority.translation import Translator, translate
from ..wire.envelope import MAX_ID_LENGTH
from ..wire.errors import ARCPError, InternalError, sendable_retryable
from ..wire.jsontext import encode_json

__all__ = ["Failure", "failure_of"]

logger = logging.getLogger("arcp_trio.jobs")

_MAX_MESSAGE = 16 * 1024
_MAX_DETAILS = 256 * 1024


@attrs.frozen(kw_only=True, eq=False)
class Failure:
    """An error that fits its frame.

    Attributes:
        code: The error's code, never empty.
        message: For the client, never empty.
        retryable: As it may be sent with that code (P12.1).
        details: A JSON object, or ``None``.
    """

    code: str
    message: str
    retryable: bool
    details: dict[str, Any] | None = None


def _find_error(exc: BaseException, translators: Sequence[Translator]) -> ARCPError | None:
    """Return the ARCPError that ``exc`` is, or stands for: itself, or a group whose leaves have all one code."""
    if isinstance(exc, ARCPError):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        leaves = [_find_error(leaf, translators) for leaf in exc.exceptions]
        first = leaves[0]
        if first is not None and all(leaf is not None and leaf.code == first.code for leaf in leaves):
            return first
        return None
    return translate(exc, translators)


def _sendable_details(error: ARCPError, job_id: str) -> dict[str, Any] | None:
    if error.details is None:
        return None
    try:
        if len(encode_json(error.details, within=2)) <= _MAX_DETAILS:
            return error.details
        problem = "are too large"
    except ValueError as exc:
        problem = f"are not JSON: {exc}"
    logger.warning("job %s: the details of %s %s; not sent", job_id, error.code, problem)
    return None


def _sendable_text(text: object, limit: int) -> str:
    if not isinstance(text, str):
        return ""
    try:
        return text.encode().decode()[:limit]
    except UnicodeEncodeError:
        return ascii(text)[:limit]


def failure_of(exc: BaseException, what: str, name: str, *, job_id: str, translators: Sequence[Translator]) -> Failure:
    """Return what may be told of an agent's exception; of one that is no ARCPError the rest goes to the log.

    Args:
        exc: What was raised, without ``Cancelled`` and ``KeyboardInterrupt``, which are nobody's failure.
        what: What failed, for the message: "the agent".
        name: The same by its name, for the log.
        job_id: The job, of which the reference between message and log is made.
        translators: The user's, for what libraries raise (P9.9).
    """
    error = _find_error(exc, translators)
    if error is None:
        # The traceback stays here; the client gets what finds it (P7.9).
        reference = job_id[-8:]
        logger.error("job %s: %s failed, reference %s", job_id, name, reference, exc_info=exc)
        return Failure(
            code=InternalError.default_code,
            message=f"{what} failed; the runtime's log has more under reference {reference}",
            retryable=True,
            details={"reference": reference},
        )
    code = _sendable_text(error.code, MAX_ID_LENGTH) or InternalError.default_code
    return Failure(
        code=code,
        message=_sendable_text(error.message, _MAX_MESSAGE) or code,
        retryable=sendable_retryable(code, bool(error.retryable)),
        details=_sendable_details(error, job_id),
    )
