"""Dialects: how what we send is narrowed for a peer that cannot take what the specification says.

A dialect departs from the specification only in the ways X1 to X4 of interop.md, section 9, and a
wrong guess still yields frames that it allows. It is chosen from the first frame of a connection,
by at least two signals, or by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from .envelope import Envelope

__all__ = ["DIALECTS", "SPEC", "Dialect", "detect_dialect"]


@attrs.frozen(kw_only=True)
class Dialect:
    """What one family of clients can take.

    Attributes:
        name: How it is chosen by hand (``compat=``).
        budget_as_numbers: Whether it takes a ``budget``, which is written as numbers (X1).
        outcome_in_final_status: Whether job.error may say ``cancelled`` or ``timed_out``; else it says
            ``error`` and the code alone tells (X2).
        lease_in_accepted: Whether job.accepted may carry ``lease`` as a map (X3).
        submit_refused_by_job_error: Whether a submit is refused with a job.error of a fresh job (X4).
        refusals_echo_request_id: Whether every refusal is a job.error whose envelope has the request's
            own id (X4).
        core_codes_only: Whether a code outside the fifteen makes it drop the frame (P7.9).
        seconds_after_subscribed: How long nothing may follow a job.subscribed: what comes in the same read is lost
            to it (D46). No departure from the specification.
    """

    name: str
    budget_as_numbers: bool = True
    outcome_in_final_status: bool = True
    lease_in_accepted: bool = True
    submit_refused_by_job_error: bool = False
    refusals_echo_request_id: bool = False
    core_codes_only: bool = False
    seconds_after_subscribed: float = 0.0


SPEC = Dialect(name="spec")

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        SPEC,
        Dialect(
            name="python",
            budget_as_numbers=False,
            outcome_in_final_status=False,
            core_codes_only=True,
            seconds_after_subscribed=0.02,
        ),
        Dialect(name="typescript", submit_refused_by_job_error=True, core_codes_only=True),
        Dialect(name="ruby", lease_in_accepted=False),
        Dialect(name="java", refusals_echo_request_id=True),
    )
}
"""Every dialect by its name."""

_ULID = r"[0-9A-HJKMNP-TV-Z]{26}"
_BARE_ULID = re.compile(_ULID)
_MESSAGE_ULID = re.compile("msg_" + _ULID)


def find_dialect(name: str) -> Dialect:
    """Return the dialect of that name.

    Raises:
        ValueError: There is none.
    """
    if name not in DIALECTS:
        raise ValueError(f"compat: expected one of {', '.join(DIALECTS)}, got {name!r}")
    return DIALECTS[name]


def detect_dialect(hello: Envelope) -> Dialect:
    """Return the dialect of the client that sent this first frame.

    The signals are those of interop.md, section 10; a client that shows none of them, or that names itself in
    both ways as ours does, gets what the specification says.
    """
    payload = hello.payload
    if "client_name" in payload and "client" in payload:
        return SPEC
    capabilities = payload.get("capabilities")
    agents = capabilities.get("agents") if isinstance(capabilities, dict) else None
    if agents == [] and _BARE_ULID.fullmatch(hello.id):
        return DIALECTS["python"]
    if "client_name" in payload and (hello.session_id or "").startswith("ses_"):
        return DIALECTS["ruby"]
    if "client" in payload and hello.session_id is None and hello.timestamp is None:
        if "resume_token" in payload and "resume" not in payload:
            return DIALECTS["java"]
        if agents is None and _MESSAGE_ULID.fullmatch(hello.id):
            return DIALECTS["typescript"]
    return SPEC
