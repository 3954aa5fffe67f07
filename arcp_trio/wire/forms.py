"""The forms in which the implementations in use write the same message, brought into one shape.

Each function takes an envelope and returns a payload as :mod:`arcp_trio.wire.codec` expects it; the
received payload is never changed. What is wrong in a payload passes through untouched: saying so,
with its path, is the converter's part. The forms are listed in interop.md, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .envelope import Envelope
from .jsontext import JSONValue

__all__ = ["READERS"]

Payload = dict[str, JSONValue]

# A capability that is only named, and not bounded: all of its namespace. Paths and URLs have no pattern ``*``.
_EVERYTHING: Mapping[str, list[JSONValue]] = {
    "fs.read": ["/**"],
    "fs.write": ["/**"],
    "net.fetch": ["http://*/**", "https://*/**"],
}


def _read_hello(envelope: Envelope) -> Payload:
    """Take a client's name and a resume wherever they stand (D6, D18)."""
    payload = dict(envelope.payload)
    if payload.get("client") is None:
        payload["client"] = {
            "name": payload.get("client_name") or "unknown",
            "version": payload.get("client_version"),
        }
    if payload.get("capabilities") is None:
        payload.pop("capabilities", None)
    resume = payload.get("resume")
    if resume is None and payload.get("resume_token") is not None:
        resume = {"resume_token": payload["resume_token"], "last_event_seq": payload.get("last_event_seq", 0)}
    payload["resume"] = _with_resume_token(resume)
    return payload


def _with_resume_token(resume: JSONValue) -> JSONValue:
    if isinstance(resume, dict) and "resume_token" not in resume and "token" in resume:
        return {**resume, "resume_token": resume["token"]}
    return resume


def _read_resume(envelope: Envelope) -> Payload:
    """Take a resume's fields at the top or in an object of their own, as in a hello (D18)."""
    payload = dict(envelope.payload)
    resume = payload.pop("resume", None)
    if isinstance(resume, dict):
        payload = {**resume, **payload}
    return {"last_event_seq": 0, **_with_resume_token(payload)}


def _read_submit(envelope: Envelope) -> Payload:
    """Translate a list of capabilities, an ``expires_at`` inside the lease (D27), and one amount for a list of them."""
    payload = dict(envelope.payload)
    lease = payload.get("lease_request")
    if isinstance(lease, dict) and ("capabilities" in lease or isinstance(lease.get("expires_at"), str)):
        lease = dict(lease)
        names = lease.pop("capabilities", None)
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            for name in names:
                lease.setdefault(name, _EVERYTHING.get(name, ["*"]))
        elif names is not None:
            lease["capabilities"] = names
        if isinstance(lease.get("expires_at"), str):
            expires_at = lease.pop("expires_at")
            constraints = payload.get("lease_constraints")
            if constraints is None:
                payload["lease_constraints"] = {"expires_at": expires_at}
            elif isinstance(constraints, dict) and constraints.get("expires_at") is None:
                payload["lease_constraints"] = {**constraints, "expires_at": expires_at}
        payload["lease_request"] = lease
    constraints = payload.get("lease_constraints")
    if isinstance(constraints, dict) and isinstance(constraints.get("max_budget"), str):
        payload["lease_constraints"] = {**constraints, "max_budget": [constraints["max_budget"]]}
    return payload


def _with_job_id(envelope: Envelope) -> Payload:
    """Take the job's id from the envelope where the payload has none (D40)."""
    payload = dict(envelope.payload)
    if payload.get("job_id") is None and envelope.job_id is not None:
        payload["job_id"] = envelope.job_id
    return payload


def _read_welcome(envelope: Envelope) -> Payload:
    """Take identity, session and agents as each runtime writes them (D5, D8, D10)."""
    payload = dict(envelope.payload)
    if payload.get("runtime") is None:
        payload["runtime"] = {
            "name": payload.get("runtime_name") or "unknown",
            "version": payload.get("runtime_version"),
        }
    if payload.get("session_id") is None:
        payload["session_id"] = envelope.session_id
    capabilities = payload.get("capabilities")
    if capabilities is None:
        payload.pop("capabilities", None)
    elif isinstance(capabilities, dict) and isinstance(capabilities.get("agents"), list):
        agents = [
            {"name": agent, "versions": []}
            if isinstance(agent, str)
            else {"versions": [], **{key: value for key, value in agent.items() if value is not None}}
            if isinstance(agent, dict)
            else agent
            for agent in capabilities["agents"]
        ]
        payload["capabilities"] = {**capabilities, "agents": agents}
    return payload


def _read_result(envelope: Envelope) -> Payload:
    """Take the value from whichever of the three names has it (D36)."""
    payload = _with_job_id(envelope)
    if payload.get("result") is None:
        for name in ("output", "value"):
            if payload.get(name) is not None:
                payload["result"] = payload[name]
                break
    return payload


def _read_error(envelope: Envelope) -> Payload:
    """Drop details that are no object: one peer writes a string there."""
    payload = dict(envelope.payload)
    if not isinstance(payload.get("details"), dict):
        payload.pop("details", None)
    return payload


def _read_job_error(envelope: Envelope) -> Payload:
    payload = _read_error(envelope)
    if payload.get("job_id") is None:
        payload["job_id"] = envelope.job_id
    return payload


def _read_event(envelope: Envelope) -> Payload:
    """Take a time that is no string as absent; the reader's own time stands in (D35)."""
    payload = dict(envelope.payload)
    if not isinstance(payload.get("ts"), str):
        payload.pop("ts", None)
    return payload


def _read_subscribed(envelope: Envelope) -> Payload:
    """Take a count of replayed events for a yes (D44)."""
    payload = _with_job_id(envelope)
    if type(payload.get("replayed")) is int:
        payload["replayed"] = bool(payload["replayed"])
    return payload


READERS: Mapping[str, Callable[[Envelope], Payload]] = {
    "session.hello": _read_hello,
    "session.resume": _read_resume,
    "session.welcome": _read_welcome,
    "session.error": _read_error,
    "job.submit": _read_submit,
    "job.accepted": _with_job_id,
    "job.cancel": _with_job_id,
    "job.cancelled": _with_job_id,
    "job.event": _read_event,
    "job.result": _read_result,
    "job.error": _read_job_error,
    "job.subscribe": _with_job_id,
    "job.subscribed": _read_subscribed,
    "job.unsubscribe": _with_job_id,
}
"""The reader of each message that is written in more than one form."""
