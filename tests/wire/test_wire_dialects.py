"""Dialects: who gets one, and that one signal alone is not enough (interop.md, section 10)."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from arcp_trio.wire.dialects import DIALECTS, SPEC, detect_dialect
from arcp_trio.wire.envelope import Envelope

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
UUID7 = "0192a0b1-aaaa-7bbb-8ccc-ddddeeeeffff"
CLIENT = {"client": {"name": "c", "version": "1"}}
FLAT = {"client_name": "c"}
NO_AGENTS = {"capabilities": {"encodings": ["json"], "agents": []}}

pytestmark = pytest.mark.requirement("P5.3a")


def dialect_of(payload: dict[str, Any], message_id: str = "x", **fields: Any) -> str:
    return detect_dialect(Envelope(type="session.hello", id=message_id, payload=payload, **fields)).name


@pytest.mark.parametrize(
    ("dialect", "payload", "message_id", "fields"),
    [
        ("python", {**CLIENT, **NO_AGENTS}, ULID, {}),
        ("typescript", CLIENT, f"msg_{ULID}", {}),
        ("ruby", FLAT, UUID7, {"session_id": f"ses_{UUID7}"}),
        ("java", {**CLIENT, "resume_token": "t", "last_event_seq": 0}, "m-1", {}),
    ],
)
def test_both_signals_choose_a_dialect(
    dialect: str, payload: dict[str, Any], message_id: str, fields: dict[str, Any]
) -> None:
    assert dialect_of(payload, message_id, **fields) == dialect


@pytest.mark.parametrize(
    ("payload", "message_id", "fields"),
    [
        # Python: an empty list of agents, and a bare ULID.
        ({**CLIENT, **NO_AGENTS}, f"msg_{ULID}", {}),
        ({**CLIENT, **NO_AGENTS}, UUID7, {}),
        (CLIENT, ULID, {}),
        ({**CLIENT, "capabilities": {"agents": ["a"]}}, ULID, {}),
        ({**CLIENT, **NO_AGENTS}, ULID.lower(), {}),
        # TypeScript: msg_ULID, no session_id, and no timestamp, which C# has.
        (CLIENT, f"msg_{ULID}", {"session_id": f"sess_{ULID}"}),
        (CLIENT, f"msg_{ULID}", {"timestamp": "2026-01-01T00:00:00Z"}),
        (CLIENT, "msg_1", {}),
        (CLIENT, f"msg_{ULID}0", {}),
        ({}, f"msg_{ULID}", {}),
        # Ruby: a flat name, and a session_id of its own.
        (FLAT, UUID7, {}),
        (FLAT, UUID7, {"session_id": f"sess_{ULID}"}),
        ({**CLIENT}, UUID7, {"session_id": f"ses_{UUID7}"}),
        # Java: a flat token.
        ({**CLIENT, "resume_token": "t"}, "m", {"session_id": "s"}),
        ({**CLIENT, "resume_token": "t"}, "m", {"timestamp": "T"}),
        ({**CLIENT, "resume_token": "t", "resume": {}}, "m", {}),
        ({"resume_token": "t"}, "m", {}),
        # Go: nothing of all that.
        (CLIENT, UUID7, {}),
        # Ours: both names.
        ({**CLIENT, **FLAT}, f"msg_{ULID}", {}),
        ({**CLIENT, **FLAT, **NO_AGENTS}, ULID, {}),
        ({**CLIENT, **FLAT, "resume_token": "t"}, f"msg_{ULID}", {}),
        ({**CLIENT, **FLAT}, f"msg_{ULID}", {"session_id": f"ses_{UUID7}"}),
        # Nothing at all, and what is of no shape.
        ({}, "m", {}),
        ({"capabilities": []}, ULID, {}),
        ({"capabilities": None, "client": None}, "m", {}),
    ],
)
def test_less_than_both_signals_is_the_specification(
    payload: dict[str, Any], message_id: str, fields: dict[str, Any]
) -> None:
    assert dialect_of(payload, message_id, **fields) == "spec"


def test_a_dialect_departs_in_its_own_ways_only() -> None:
    plain = attrs.asdict(SPEC)
    departures = {
        name: {key: value for key, value in attrs.asdict(dialect).items() if value != plain[key] and key != "name"}
        for name, dialect in DIALECTS.items()
    }
    assert departures == {
        "spec": {},
        "python": {
            "budget_as_numbers": False,
            "outcome_in_final_status": False,
            "core_codes_only": True,
            "seconds_after_subscribed": 0.02,
        },
        "typescript": {"submit_refused_by_job_error": True, "core_codes_only": True},
        "ruby": {"lease_in_accepted": False},
        "java": {"refusals_echo_request_id": True},
    }
    assert all(name == dialect.name for name, dialect in DIALECTS.items())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        SPEC.name = "other"  # type: ignore[misc]
