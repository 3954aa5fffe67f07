"""What users may rely on: the names, and that each says what it does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

import arcp_trio
from arcp_trio.wire.errors import CORE_CODES, ARCPError

PUBLIC = {
    "ARCPError",
    "AgentNotAvailableError",
    "AgentVersionNotAvailableError",
    "Agents",
    "AnonymousAccess",
    "BudgetExhaustedError",
    "CancelOutcome",
    "Child",
    "Client",
    "ClientLimits",
    "ConnectionLostError",
    "ConnectionState",
    "Credential",
    "CredentialConstraints",
    "CredentialLedger",
    "CredentialRequest",
    "DuplicateKeyError",
    "Event",
    "HeartbeatLostError",
    "InternalError",
    "InvalidRequestError",
    "IssuedCredential",
    "JobCancelledError",
    "JobContext",
    "JobEndedError",
    "JobEntry",
    "JobHandle",
    "JobNotFoundError",
    "JobPages",
    "JobTimeoutError",
    "Lease",
    "LeaseCeiling",
    "LeaseExpiredError",
    "LeaseSubsetViolationError",
    "LedgerEntry",
    "LedgerState",
    "Limits",
    "Listening",
    "MessageTooLargeError",
    "ObservationPolicy",
    "PermissionDeniedError",
    "Principal",
    "Provisioner",
    "ProvisioningError",
    "Reconnect",
    "ResultFile",
    "ResumeWindowExpiredError",
    "Runtime",
    "RuntimeStatistics",
    "Secret",
    "Skipped",
    "StaticTokens",
    "UnauthenticatedError",
    "Verifier",
    "Visibility",
    "open_client",
    "open_client_over",
    "open_process_client",
    "open_runtime",
    "open_stdio",
    "serve_stdio",
    "serve_websocket",
}
"""A change here is a change for users: it belongs into the change log."""

# Methods that other parts of the package call and users have no need of: they say what they do, in a line.
BETWEEN_FLOORS = {
    "Agents.inventory",
    "Agents.resolve",
    "AnonymousAccess.verify",
    "JobContext.finish_result",
    "Runtime.accept_connections",
    "Runtime.add_listener",
    "Runtime.bound_revocations",
    "Runtime.close_jobs",
    "Runtime.fail",
    "Runtime.remove_listener",
    "Runtime.spawn_connection",
    "Runtime.wait_connections_closed",
    "Runtime.wait_jobs_ended",
    "StaticTokens.verify",
}

# Parts of the house, which importing the package makes attributes of it; their names are no promise.
PARTS = {"audit", "client", "embedded", "gateway", "jobs", "limits", "records", "runtime", "sessions", "shutdown"}
PARTS |= {"timers", "transports", "wire", "cli", "authority", "store", "testing", "tracing", "spans", "conformance"}
PARTS |= {"statistics"}


def exported() -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(arcp_trio).items()
        if not name.startswith("_") and not (inspect.ismodule(value) and name in PARTS) and name != "annotations"
    }


def test_the_public_names() -> None:
    assert set(exported()) == PUBLIC
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", arcp_trio.__version__)


def test_every_code_has_a_public_class() -> None:
    classes = [value for value in exported().values() if isinstance(value, type) and issubclass(value, ARCPError)]
    assert {cls.default_code for cls in classes} == CORE_CODES


def test_the_map_names_every_floor() -> None:
    text = arcp_trio.__doc__ or ""
    for part in (
        "cli",
        "gateway",
        "embedded",
        "runtime",
        "sessions",
        "client",
        "jobs",
        "transports",
        "store",
        "timers",
    ):
        assert f"``{part}``" in text
    for part in ("records", "limits", "authority", "wire"):
        assert f"``{part}``" in text


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_everything_has_a_docstring_of_its_own(name: str) -> None:
    value = getattr(arcp_trio, name)
    doc = vars(value).get("__doc__") if isinstance(value, type) else value.__doc__
    assert doc
    first = doc.strip().splitlines()[0]
    assert first.rstrip("`").endswith((".", ":", "``")), first
    assert first[0].isupper() or first[0] == "`"


def callables_of(name: str, value: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Return the functions and public methods behind a public name, written by us."""
    if inspect.isfunction(value):
        yield name, inspect.unwrap(value)
        return
    if not isinstance(value, type) or issubclass(value, BaseException):
        return
    for cls in value.__mro__:
        if not cls.__module__.startswith("arcp_trio"):
            continue
        for method_name, method in vars(cls).items():
            if method_name.startswith("_"):
                continue
            function = method.__func__ if isinstance(method, (classmethod, staticmethod)) else method
            function = function.fget if isinstance(function, property) else function
            if inspect.isfunction(function):
                yield f"{name}.{method_name}", inspect.unwrap(function)


CALLABLES = sorted(
    {label: function for name in PUBLIC for label, function in callables_of(name, getattr(arcp_trio, name))}.items()
)


def parameters_of(function: Callable[..., Any]) -> list[str]:
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in ("self", "cls") and not parameter.name.startswith("_")
    ]


@pytest.mark.parametrize(("label", "function"), CALLABLES, ids=[label for label, _ in CALLABLES])
def test_every_function_says_what_it_does_and_takes(label: str, function: Callable[..., Any]) -> None:
    doc = inspect.getdoc(function)
    assert doc, f"{label} has no docstring"
    if label not in BETWEEN_FLOORS:
        for parameter in parameters_of(function):
            assert "\nArgs:\n" in doc, f"{label} does not say what it takes"
            assert re.search(rf"(?m)^ +{re.escape(parameter)}: \S", doc), f"{label} does not say what {parameter} is"


def test_what_is_between_the_floors_is_there() -> None:
    """An exemption of something that has gone would cover what comes in its place."""
    assert {label for label, _ in CALLABLES} >= BETWEEN_FLOORS


def test_every_bound_says_what_it_is() -> None:
    for cls in (arcp_trio.Limits, arcp_trio.ClientLimits, arcp_trio.RuntimeStatistics):
        doc = cls.__doc__ or ""
        for field in attrs.fields(cls):
            assert re.search(rf"(?m)^\s+{field.name}: \S", doc), f"{cls.__name__}.{field.name}"


def test_what_the_runtime_binds_is_a_method_for_users_too() -> None:
    """``open_session`` is bound from outside, so that the runtime needs not know the client."""
    assert inspect.getdoc(arcp_trio.Runtime.open_session)
    assert "open_session" in dict(vars(arcp_trio.Runtime))


def test_async_functions_say_what_a_cancellation_does() -> None:
    """A public method without a sentence about cancellation is unfinished (style.md, 28)."""
    silent = [
        label
        for label, function in CALLABLES
        if inspect.iscoroutinefunction(function)
        and not re.search(r"(?i)cancel|checkpoint", inspect.getdoc(function) or "")
        # The contract of all emissions stands in the class; that of verifiers in their protocol.
        and not label.startswith("JobContext.")
        and not label.endswith(".verify")
        and label not in BETWEEN_FLOORS
    ]
    assert silent == []
    assert "cancelled" in (arcp_trio.JobContext.__doc__ or "")
