"""The errors of the protocol, as a closed tree of exceptions.

::

    ARCPError                           code, message, retryable, details
    ├── PermissionDeniedError           PERMISSION_DENIED
    │   └── JobEndedError               an emission or a guarded operation after the job's end
    ├── LeaseSubsetViolationError       LEASE_SUBSET_VIOLATION
    ├── JobNotFoundError                JOB_NOT_FOUND
    ├── DuplicateKeyError               DUPLICATE_KEY
    ├── AgentNotAvailableError          AGENT_NOT_AVAILABLE
    ├── AgentVersionNotAvailableError   AGENT_VERSION_NOT_AVAILABLE
    ├── JobCancelledError               CANCELLED
    ├── JobTimeoutError                 TIMEOUT
    ├── ResumeWindowExpiredError        RESUME_WINDOW_EXPIRED
    ├── HeartbeatLostError              HEARTBEAT_LOST
    ├── LeaseExpiredError               LEASE_EXPIRED
    ├── BudgetExhaustedError            BUDGET_EXHAUSTED
    ├── InvalidRequestError             INVALID_REQUEST
    │   ├── MalformedFrameError         a frame that is no envelope
    │   ├── MalformedPayloadError       a payload that is not the message's
    │   └── MessageTooLargeError        a message over the frame limit
    ├── UnauthenticatedError            UNAUTHENTICATED
    └── InternalError                   INTERNAL_ERROR
        ├── ConnectionLostError         the connection ended before the answer came
        └── StoreUnavailableError       what is said or asked for cannot be written down just now

A class stands for a code (spec section 12, P12.1); an :class:`ARCPError` itself carries a code that
this package does not know, for example an agent's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

__all__ = [
    "CORE_CODES",
    "ARCPError",
    "AgentNotAvailableError",
    "AgentVersionNotAvailableError",
    "BudgetExhaustedError",
    "ConnectionLostError",
    "DuplicateKeyError",
    "HeartbeatLostError",
    "InternalError",
    "InvalidRequestError",
    "JobCancelledError",
    "JobEndedError",
    "JobNotFoundError",
    "JobTimeoutError",
    "LeaseExpiredError",
    "LeaseSubsetViolationError",
    "MalformedFrameError",
    "MalformedPayloadError",
    "MessageTooLargeError",
    "PermissionDeniedError",
    "ResumeWindowExpiredError",
    "StoreUnavailableError",
    "UnauthenticatedError",
    "error_class",
    "error_from_wire",
    "sendable_retryable",
    "shown_value",
]


class ARCPError(Exception):
    """An error that the protocol can carry.

    Args:
        message: What was wrong, what was expected and where. Never empty on the wire.
        code: The wire's code; a class of the tree has its own and ignores this.
        retryable: Whether the same request may succeed later; ``None`` takes the code's default
            (P12.1).
        details: A JSON object with more about it, or ``None``.

    An agent raises one to end its job with that code, message, ``retryable`` and details (P7.9). A
    client's call raises the class that the wire's code names, and keeps the wire's ``retryable``.
    """

    default_code: ClassVar[str] = "INTERNAL_ERROR"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.default_code if code is None or type(self) is not ARCPError else code
        self.retryable = self.default_retryable if retryable is None else retryable
        # A copy: two errors made from one dictionary must not share later changes.
        self.details: dict[str, Any] | None = None if details is None else dict(details)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code}: {self.message!r})"


class PermissionDeniedError(ARCPError):
    """The principal or the lease does not allow it."""

    default_code = "PERMISSION_DENIED"


class JobEndedError(PermissionDeniedError):
    """An agent emitted or acted after its job's outcome was published or decided (P7.11)."""


class LeaseSubsetViolationError(ARCPError):
    """A delegation asked for more than its parent's lease holds."""

    default_code = "LEASE_SUBSET_VIOLATION"


class JobNotFoundError(ARCPError):
    """No such job, or none that this principal may know of."""

    default_code = "JOB_NOT_FOUND"


class DuplicateKeyError(ARCPError):
    """An idempotency key was used again with other parameters."""

    default_code = "DUPLICATE_KEY"


class AgentNotAvailableError(ARCPError):
    """No agent of that name."""

    default_code = "AGENT_NOT_AVAILABLE"
    default_retryable = True


class AgentVersionNotAvailableError(ARCPError):
    """The agent is there, the version is not."""

    default_code = "AGENT_VERSION_NOT_AVAILABLE"


class JobCancelledError(ARCPError):
    """The job ended because it was cancelled."""

    default_code = "CANCELLED"


class JobTimeoutError(ARCPError):
    """The job ran longer than its ``max_runtime_sec``."""

    default_code = "TIMEOUT"
    default_retryable = True


class ResumeWindowExpiredError(ARCPError):
    """The session cannot be resumed from there."""

    default_code = "RESUME_WINDOW_EXPIRED"


class HeartbeatLostError(ARCPError):
    """The peer was silent for two heartbeat intervals."""

    default_code = "HEARTBEAT_LOST"
    default_retryable = True


class LeaseExpiredError(ARCPError):
    """The lease's ``expires_at`` has passed."""

    default_code = "LEASE_EXPIRED"


class BudgetExhaustedError(ARCPError):
    """A budget counter is at zero or below."""

    default_code = "BUDGET_EXHAUSTED"


class InvalidRequestError(ARCPError):
    """A message that breaks the protocol; the message names the field and what was expected."""

    default_code = "INVALID_REQUEST"


class MalformedFrameError(InvalidRequestError):
    """A frame that is not an ARCP envelope.

    Args:
        message: What was wrong, with the path of the field (``$.payload.agent``).
        request_id: The frame's ``id`` where it could be read, so that the answer can name it (P5.5).
    """

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class MalformedPayloadError(InvalidRequestError):
    """A payload with missing or wrong fields: every one is named by its path (P5.5)."""


class MessageTooLargeError(InvalidRequestError):
    """A message that would be larger than a frame may be (P4.4)."""


class UnauthenticatedError(ARCPError):
    """A missing, empty or refused token."""

    default_code = "UNAUTHENTICATED"


class InternalError(ARCPError):
    """A fault of the runtime or of an agent."""

    default_code = "INTERNAL_ERROR"
    default_retryable = True


class ConnectionLostError(InternalError):
    """The connection ended before the answer came; whether the request was carried out is unknown."""


class StoreUnavailableError(InternalError):
    """The runtime's store cannot write or read just now: nothing was done, and the same may succeed later.

    An agent gets it from an emission, a client for a submit.
    """


_CLASSES: dict[str, type[ARCPError]] = {
    cls.default_code: cls
    for cls in (
        PermissionDeniedError,
        LeaseSubsetViolationError,
        JobNotFoundError,
        DuplicateKeyError,
        AgentNotAvailableError,
        AgentVersionNotAvailableError,
        JobCancelledError,
        JobTimeoutError,
        ResumeWindowExpiredError,
        HeartbeatLostError,
        LeaseExpiredError,
        BudgetExhaustedError,
        InvalidRequestError,
        UnauthenticatedError,
        InternalError,
    )
}

CORE_CODES: frozenset[str] = frozenset(_CLASSES)
"""The fifteen codes of spec section 12; some peers refuse a frame that has another."""

# One implementation writes its internal errors so (interop.md, section 3.20).
_ALIASES = {"INTERNAL": "INTERNAL_ERROR"}

# P12.1: these are forced on our wire whatever was raised.
_NEVER_RETRYABLE = frozenset({"LEASE_EXPIRED", "BUDGET_EXHAUSTED"})
_ALWAYS_RETRYABLE = frozenset({"INTERNAL_ERROR"})
_LONG_BITS = 128


def error_class(code: str) -> type[ARCPError]:
    """Return the class of the tree that stands for ``code``; :class:`ARCPError` for an unknown one."""
    return _CLASSES.get(_ALIASES.get(code, code), ARCPError)


def error_from_wire(
    code: str, message: str, *, retryable: bool | None, details: Mapping[str, Any] | None = None
) -> ARCPError:
    """Make the exception for an error payload, keeping the wire's ``retryable`` (P12.1).

    Args:
        code: The payload's code; an unknown one is kept as it is.
        message: The payload's message.
        retryable: The payload's flag, or ``None`` where the peer sent none.
        details: The payload's details, or ``None``.
    """
    return error_class(code)(message, code=code, retryable=retryable, details=details)


def sendable_retryable(code: str, retryable: bool) -> bool:  # noqa: FBT001  # its only subject
    """Return the ``retryable`` that may be sent with ``code`` (P12.1)."""
    if code in _NEVER_RETRYABLE:
        return False
    return retryable or code in _ALWAYS_RETRYABLE


def shown_value(value: object) -> str:
    """Return a value for an error message: at most 60 characters, and no huge integer is written out for them."""
    if isinstance(value, int) and value.bit_length() > _LONG_BITS:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.60}"
