"""The fifteen errors, their classes, and what is retryable."""
# what a parametrised test is given has names where it is given

from __future__ import annotations

import pickle
from typing import Any

import pytest

from arcp_trio.wire import errors
from arcp_trio.wire.errors import (
    CORE_CODES,
    ARCPError,
    ConnectionLostError,
    InternalError,
    InvalidRequestError,
    JobEndedError,
    MalformedFrameError,
    MessageTooLargeError,
    PermissionDeniedError,
    error_class,
    error_from_wire,
    sendable_retryable,
)

FIFTEEN = {
    "PERMISSION_DENIED": "PermissionDeniedError",
    "LEASE_SUBSET_VIOLATION": "LeaseSubsetViolationError",
    "JOB_NOT_FOUND": "JobNotFoundError",
    "DUPLICATE_KEY": "DuplicateKeyError",
    "AGENT_NOT_AVAILABLE": "AgentNotAvailableError",
    "AGENT_VERSION_NOT_AVAILABLE": "AgentVersionNotAvailableError",
    "CANCELLED": "JobCancelledError",
    "TIMEOUT": "JobTimeoutError",
    "RESUME_WINDOW_EXPIRED": "ResumeWindowExpiredError",
    "HEARTBEAT_LOST": "HeartbeatLostError",
    "LEASE_EXPIRED": "LeaseExpiredError",
    "BUDGET_EXHAUSTED": "BudgetExhaustedError",
    "INVALID_REQUEST": "InvalidRequestError",
    "UNAUTHENTICATED": "UnauthenticatedError",
    "INTERNAL_ERROR": "InternalError",
}
RETRYABLE = {"INTERNAL_ERROR", "TIMEOUT", "HEARTBEAT_LOST", "AGENT_NOT_AVAILABLE"}
CLASSES = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]

pytestmark = pytest.mark.requirement("P12.1")


@pytest.mark.requirement("E03")
def test_there_are_fifteen_codes() -> None:
    assert set(FIFTEEN) == CORE_CODES
    assert len(CORE_CODES) == 15


@pytest.mark.requirement("E03")
@pytest.mark.parametrize("code", sorted(FIFTEEN))
def test_a_code_and_its_class(code: str) -> None:
    cls = error_class(code)
    assert cls.__name__ == FIFTEEN[code]
    error = cls("why")
    assert (error.code, error.message, str(error), error.details) == (code, "why", "why", None)
    assert error.retryable is (code in RETRYABLE)
    # A class is a code: another one cannot be slipped in.
    assert cls("why", code="CANCELLED").code == code


def test_the_tree() -> None:
    assert all(issubclass(cls, ARCPError) for cls in CLASSES)
    assert issubclass(JobEndedError, PermissionDeniedError)
    assert issubclass(MalformedFrameError, InvalidRequestError)
    assert issubclass(MessageTooLargeError, InvalidRequestError)
    assert issubclass(ConnectionLostError, InternalError)
    # The picture in the module's docstring names each, and its code.
    for cls in CLASSES:
        assert cls.__name__ in (errors.__doc__ or "")
        assert cls.default_code in CORE_CODES
        assert cls.default_code in (errors.__doc__ or "")
        assert cls.__doc__
    assert JobEndedError("x").code == "PERMISSION_DENIED"
    assert MalformedFrameError("x", request_id="r").request_id == "r"
    assert ConnectionLostError("x").retryable


@pytest.mark.requirement("E04")
@pytest.mark.parametrize("code", [*sorted(FIFTEEN), "X_VENDOR"])
@pytest.mark.parametrize("retryable", [True, False])
def test_the_flag_of_the_wire_is_kept(code: str, retryable: bool) -> None:
    assert error_from_wire(code, "why", retryable=retryable).retryable is retryable


@pytest.mark.requirement("E04", "T21")
@pytest.mark.parametrize("code", [*sorted(FIFTEEN), "X_VENDOR"])
def test_a_missing_flag_is_the_codes_own(code: str) -> None:
    assert error_from_wire(code, "why", retryable=None).retryable is (code in RETRYABLE)


@pytest.mark.requirement("E04")
@pytest.mark.parametrize("code", [*sorted(FIFTEEN), "X_VENDOR"])
@pytest.mark.parametrize("retryable", [True, False])
def test_the_flag_that_may_be_sent(code: str, retryable: bool) -> None:
    forced = {"LEASE_EXPIRED": False, "BUDGET_EXHAUSTED": False, "INTERNAL_ERROR": True}
    assert sendable_retryable(code, retryable) is forced.get(code, retryable)


@pytest.mark.parametrize("code", ["X_VENDOR_THING", "RATE_LIMITED", "", "internal_error", "Ö"])
def test_an_unknown_code_is_kept(code: str) -> None:
    error = error_from_wire(code, "why", retryable=True, details={"a": 1})
    assert type(error) is ARCPError
    assert (error.code, error.retryable, error.details) == (code, True, {"a": 1})


@pytest.mark.requirement("D51")
def test_the_other_spelling_of_an_internal_error() -> None:
    error = error_from_wire("INTERNAL", "why", retryable=None)
    assert type(error) is InternalError
    assert error.code == "INTERNAL_ERROR"


def test_an_agents_own_code() -> None:
    error = ARCPError("why", code="X_AGENT", retryable=True, details={"a": [1]})
    assert (error.code, error.retryable, error.details) == ("X_AGENT", True, {"a": [1]})
    plain = ARCPError("why")
    assert (plain.code, plain.retryable) == ("INTERNAL_ERROR", False)


@pytest.mark.requirement("E07")
def test_details_are_nobody_elses() -> None:
    given = {"limit": "jobs"}
    first = InternalError("a", details=given)
    second = error_from_wire("INTERNAL_ERROR", "b", retryable=None, details=given)
    assert first.details is not None
    first.details["more"] = 1
    given["changed"] = "later"
    assert second.details == {"limit": "jobs"}
    assert first.details == {"limit": "jobs", "more": 1}


@pytest.mark.requirement("E07")
def test_making_an_error_changes_no_class() -> None:
    before = [dict(vars(cls)) for cls in CLASSES]
    for cls in CLASSES:
        cls("why", retryable=True, details={"a": 1}) if cls is not MalformedFrameError else cls("why")
    assert [dict(vars(cls)) for cls in CLASSES] == before


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_repr_says_what_and_why(cls: Any) -> None:
    error = cls("no such 'job'")
    assert repr(error) == f"{cls.__name__}({error.code}: \"no such 'job'\")"


def test_an_error_can_be_raised_again_and_counted_among_others() -> None:
    group = ExceptionGroup("several", [InvalidRequestError("a"), InternalError("b")])
    matched, rest = group.split(InvalidRequestError)
    assert matched is not None
    assert rest is not None
    assert [type(each) for each in rest.exceptions] == [InternalError]
    assert str(pickle.loads(pickle.dumps(InvalidRequestError("a")))) == "a"
