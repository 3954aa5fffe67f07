"""The search for secrets that are given away finds them."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from canary import CanaryHandler, check_frames
from helpers import TOKEN

RESUME = "sess_" + "0" * 26 + "." + "x" * 22
VALUE = "sk-canary-1"


def sent(frame_type: str, payload: dict[str, Any], session_id: str = "s1") -> tuple[str, str]:
    frame = {"type": frame_type, "session_id": session_id, "job_id": payload.get("job_id"), "payload": payload}
    return "S>C", json.dumps(frame)


ROTATED = {"job_id": "j", "kind": "status", "body": {"phase": "credential_rotated", "value": VALUE}}
ACCEPTED = sent("job.accepted", {"job_id": "j", "credentials": [{"value": VALUE}]})


@pytest.mark.requirement("P14.2", "C07")
@pytest.mark.parametrize("secret", [TOKEN, RESUME, VALUE])
def test_a_secret_in_a_log_is_found(secret: str) -> None:
    handler = CanaryHandler()
    logger = logging.getLogger(f"tests.canary.{len(secret)}")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    logger.debug("nothing to see")
    assert handler.found == []
    logger.debug("it is %s", secret)
    logger.info("elsewhere", extra={"arcp_detail": secret})
    try:
        raise ValueError(secret)
    except ValueError:
        logger.exception("it failed")
    assert len({line.rpartition(":")[2] for line in handler.found}) == 3
    assert not [line for line in handler.found if secret in line]


@pytest.mark.requirement("P14.2", "C07", "Q16")
@pytest.mark.parametrize(
    "frame",
    [
        sent("session.error", {"message": f"wrong token {TOKEN}"}),
        sent("job.event", {"job_id": "j", "kind": "log", "body": {"message": RESUME}}),
        sent("session.pong", {"nonce": VALUE}),
        sent("job.event", {"job_id": "j", "kind": "log", "body": {"message": VALUE}}),
        sent(
            "job.event",
            {"job_id": "j", "kind": "status", "body": {"phase": "credential_rotated", "value": VALUE}},
            "s2",
        ),
        sent("job.subscribed", {"job_id": "j", "credentials": [{"value": VALUE}]}, "s2"),
        sent("session.jobs", {"jobs": [{"job_id": "j", "credentials": [{"value": VALUE}]}]}, "s2"),
    ],
)
def test_a_secret_in_a_frame_for_somebody_else_is_found(frame: tuple[str, str]) -> None:
    assert list(check_frames([ACCEPTED])) == []
    assert len(list(check_frames([ACCEPTED, frame]))) == 1


@pytest.mark.requirement("P9.10", "P6.8")
def test_a_secret_for_who_has_it_is_none() -> None:
    frames = [
        ACCEPTED,
        sent("session.welcome", {"resume_token": RESUME}),
        sent("job.event", ROTATED),
        sent("job.subscribed", {"job_id": "j", "credentials": [{"value": VALUE}]}),
        sent("session.jobs", {"jobs": [{"job_id": "j", "credentials": [{"value": VALUE}]}]}),
    ]
    assert list(check_frames(frames)) == []
