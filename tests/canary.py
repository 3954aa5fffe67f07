"""Secrets that a run of the tests gives away: looked for in every line of a log and in every frame of a raw client.

The tokens of the tests and the values of their credentials are canaries; resume tokens have a form of their own. None
of them may stand in a log, in an exception's traceback, or in a frame that is not for who has it (P14.2, C07).
conftest.py installs :class:`CanaryHandler` for the whole run, and asks for what was found at its end.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Iterable, Iterator

import helpers

__all__ = ["CanaryHandler", "check_frames"]

SECRET = re.compile(
    r"canary-bearer-[0-9a-z]+"  # a token
    r"|sk-canary-[0-9A-Za-z_-]+"  # the value of a credential
    r"|sess_[0-9A-Z]{26}\.[0-9A-Za-z_-]{20,}"  # a resume token
)

# The only frames of a runtime that carry a secret, and what they carry.
_RESUME_TOKENS = {"session.welcome"}
_CREDENTIALS = {"job.accepted", "job.event", "job.subscribed", "session.jobs"}


def secrets_in(text: str) -> list[str]:
    return [found[:9] for found in SECRET.findall(text)]


class CanaryHandler(logging.Handler):
    """Reads every record of a run, whatever the test's own handlers do with it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage() + repr(record.__dict__)
        if record.exc_info and record.exc_info[1] is not None:
            text += "".join(traceback.format_exception(record.exc_info[1]))
        for secret in secrets_in(text):
            self.found.append(f"{record.name} logs {secret}…: {record.msg!r:.80}")


def check_frames(frames: Iterable[tuple[str, bytes | str]] | None = None) -> Iterator[str]:
    """Say which frames of the runtime give a secret to who does not have it.

    Args:
        frames: As ``helpers.exchanged`` has them, which is the default.
    """
    owners: dict[str, set[str]] = {}
    for direction, text in helpers.exchanged if frames is None else frames:
        if direction != "S>C":
            continue
        line = text if isinstance(text, str) else text.decode("utf-8", "replace")
        if '"job.accepted"' in line:
            accepted = json.loads(line)
            owners.setdefault(accepted["payload"]["job_id"], set()).add(accepted["session_id"])
        found = secrets_in(line)
        if found:
            yield from _judge(json.loads(line), found, owners)


def _judge(frame: helpers.Frame, found: list[str], owners: dict[str, set[str]]) -> Iterator[str]:
    payload = frame["payload"]
    for secret in found:
        if secret.startswith("canary-bearer"):
            yield f"{frame['type']} repeats a token"
        elif secret.startswith("sess_"):
            if frame["type"] not in _RESUME_TOKENS:
                yield f"{frame['type']} has a resume token"
        elif frame["type"] not in _CREDENTIALS:
            yield f"{frame['type']} has a credential"
        elif frame["type"] == "job.event" and payload["body"].get("phase") != "credential_rotated":
            yield "an event that is no rotation has a credential"
        elif frame["type"] == "session.jobs":
            shown = [job for job in payload["jobs"] if secrets_in(json.dumps(job))]
            if any(frame["session_id"] not in owners.get(job["job_id"], ()) for job in shown):
                yield "a listing shows a credential to who did not submit its job"
        elif frame["session_id"] not in owners.get(payload.get("job_id") or frame.get("job_id"), ()):
            yield f"{frame['type']} shows a credential to who did not submit its job"
