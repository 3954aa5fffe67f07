"""Runs in the reference implementation's environment: reads frames with its own models.

Takes frames as JSON lines from stdin; says for each what the implementation's client (or server, with
``server`` as the argument) would object to, or null.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from arcp import Envelope, SessionWelcomePayload
from arcp._messages import execution, session
from pydantic import BaseModel, ValidationError

READ_BY_CLIENTS: dict[str, type[BaseModel]] = {
    "session.welcome": SessionWelcomePayload,
    "session.error": session.SessionErrorPayload,
    "session.ping": session.SessionPingPayload,
    "session.pong": session.SessionPongPayload,
    "session.jobs": session.SessionJobsPayload,
    "job.accepted": execution.JobAcceptedPayload,
    "job.event": execution.JobEventPayload,
    "job.result": execution.JobResultPayload,
    "job.error": execution.JobErrorPayload,
    "job.subscribed": execution.JobSubscribedPayload,
}
READ_BY_SERVERS: dict[str, type[BaseModel]] = {
    "session.hello": session.SessionHelloPayload,
    "session.pong": session.SessionPongPayload,
    "session.bye": session.SessionByePayload,
    "job.submit": execution.JobSubmitPayload,
    "job.cancel": execution.JobCancelPayload,
}


def objection(frame: dict[str, Any], models: dict[str, type[BaseModel]]) -> str | None:
    try:
        envelope = Envelope.from_wire(frame)
        model = models.get(envelope.type)
        if model is not None:
            model.model_validate(envelope.payload)
    except ValidationError as exc:
        return str(exc)
    return None


def main() -> None:
    models = READ_BY_SERVERS if sys.argv[1:] == ["server"] else READ_BY_CLIENTS
    for line in sys.stdin:
        print(json.dumps(objection(json.loads(line), models)))


main()
