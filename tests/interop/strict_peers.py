"""What the clients and servers of four implementations insist on, as far as a violation makes them drop a frame,
hang, raise or lose their reader (interop.md, sections 3, 7, 8 and 11).

Each function returns what the peer would object to in a frame; nothing means that it takes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interop.recorded import Frame

__all__ = ["CLIENTS", "SERVERS"]

_ULID = "[0-9A-HJKMNP-TV-Z]{26}"
_PYTHON_ID = re.compile(
    rf"{_ULID}|[a-z]+_{_ULID}|[0-9a-f]{{8}}-[0-9a-f]{{4}}-7[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}"
)
_OUR_ID = re.compile(rf"msg_{_ULID}")
_TRACE_ID = re.compile("(?!0{32})[0-9a-f]{32}")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_OUR_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_EXTENSION = re.compile(r"optional|x-vendor(\.[a-z0-9_-]+){2,}")
_AGENT = re.compile(r"[a-z][a-z0-9._-]*(@[a-zA-Z0-9][a-zA-Z0-9._-]*)?")
_CODES = frozenset(
    {
        "PERMISSION_DENIED",
        "LEASE_SUBSET_VIOLATION",
        "JOB_NOT_FOUND",
        "DUPLICATE_KEY",
        "AGENT_NOT_AVAILABLE",
        "AGENT_VERSION_NOT_AVAILABLE",
        "CANCELLED",
        "TIMEOUT",
        "RESUME_WINDOW_EXPIRED",
        "HEARTBEAT_LOST",
        "LEASE_EXPIRED",
        "BUDGET_EXHAUSTED",
        "INVALID_REQUEST",
        "UNAUTHENTICATED",
        "INTERNAL_ERROR",
    }
)
_NUMBERED = ("job.event", "job.result", "job.error")
_ABSENT = object()


class _Fields:
    """An object of a frame, and what was found wrong with it."""

    def __init__(self, fields: Any, where: str, found: list[str]) -> None:
        self._found = found
        self._where = where
        self.fields: dict[str, Any] = fields if isinstance(fields, dict) else {}
        if not isinstance(fields, dict):
            found.append(f"{where} is no object")

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def __getitem__(self, name: str) -> Any:
        return self.fields.get(name)

    def wrong(self, what: str) -> None:
        self._found.append(f"{self._where}: {what}")

    def need(self, **kinds: Callable[[Any], bool]) -> None:
        """These must be there, and of that kind."""
        for name, kind in kinds.items():
            if not kind(self.fields.get(name, _ABSENT)):
                self.wrong(f"{name} is {self.fields.get(name, 'absent')!r}")

    def allow(self, **kinds: Callable[[Any], bool]) -> None:
        """These may be absent, and must be of that kind where they are there; null is no kind."""
        self.need(**{name: kind for name, kind in kinds.items() if name in self.fields})

    def into(self, name: str) -> _Fields:
        return _Fields(self.fields.get(name), f"{self._where}.{name}", self._found)


def text(value: Any) -> bool:
    return isinstance(value, str)


def some_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def boolean(value: Any) -> bool:
    return isinstance(value, bool)


def obj(value: Any) -> bool:
    return isinstance(value, dict)


def natural(value: Any) -> bool:
    return type(value) is int and value >= 0


def positive(value: Any) -> bool:
    return type(value) is int and value > 0


def number(value: Any) -> bool:
    return type(value) in (int, float)


def anything(value: Any) -> bool:
    return value is not _ABSENT


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def lease(value: Any) -> bool:
    return isinstance(value, dict) and all(texts(patterns) for patterns in value.values())


def matching(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: value in values


def agents(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(kind(entry) for entry in value)


def _nulls(value: Any, path: str) -> Iterator[str]:
    """Find the nulls that stand for something absent; those inside an agent's or user's values are values."""
    if value is None:
        yield path
    elif isinstance(value, dict) and path.rpartition(".")[2] not in (
        "body",
        "result",
        "output",
        "input",
        "details",
    ):
        for name, item in value.items():
            yield from _nulls(item, f"{path}.{name}")


# --- clients: what our runtime sends must please them ---------------------------------------------


def _common(frame: Frame, found: list[str]) -> _Fields:
    """Check what P5.1 to P5.3a say of every frame that we send."""
    top = _Fields(frame, "$", found)
    top.need(
        arcp=one_of("1.1"),
        id=matching(_OUR_ID),
        type=some_text,
        session_id=some_text,
        timestamp=matching(_OUR_TIME),
        payload=obj,
    )
    top.allow(trace_id=matching(_TRACE_ID), job_id=some_text, correlation_id=some_text, extensions=obj)
    if (frame.get("type") in _NUMBERED) is not ("event_seq" in frame):
        top.wrong("event_seq stands on job.event, job.result and job.error, and on nothing else")
    if str(frame.get("type")).startswith("job.") and "job_id" not in frame:
        top.wrong("a job's frame has no job_id")
    # The one null on the top of a payload that peers want (P5.3a).
    wanted = "$.payload.next_cursor" if frame.get("type") == "session.jobs" else None
    found += [f"{path} is null" for path in _nulls(frame, "$") if path != wanted]
    return top.into("payload")


def common(frame: Frame) -> list[str]:
    """What every client may rely on in our runtime's frames (interop.md, section 7)."""
    found: list[str] = []
    payload = _common(frame, found)
    match frame["type"]:
        case "session.welcome":
            payload.need(
                session_id=one_of(frame["session_id"]),
                runtime_name=some_text,
                runtime_version=some_text,
                resume_token=lambda value: some_text(value) and len(value) >= 22,
                resume_window_sec=positive,
                accepted_at=matching(_OUR_TIME),
            )
            payload.into("runtime").need(name=some_text, version=some_text)
            payload.into("capabilities").need(encodings=lambda value: value == ["json"], features=texts)
        case "session.error":
            payload.need(code=lambda value: value in _CODES, message=some_text, retryable=boolean)
            payload.allow(details=lambda value: obj(value) and value)
        case "session.pong":
            payload.need(ping_nonce=text, received_at=matching(_OUR_TIME))
        case "job.accepted":
            payload.need(
                job_id=one_of(frame["job_id"]),
                agent=matching(re.compile(".+@.+")),
                accepted_at=matching(_OUR_TIME),
                trace_id=one_of(frame["trace_id"]),
            )
        case "job.event":
            payload.need(kind=some_text, ts=matching(_OUR_TIME), body=obj)
        case "job.result":
            payload.need(
                final_status=one_of("success"),
                job_id=one_of(frame["job_id"]),
                completed_at=matching(_OUR_TIME),
            )
            if payload["result"] != payload["output"]:
                payload.wrong("result and output differ")
        case "job.error" | "job.cancelled":
            payload.need(job_id=one_of(frame["job_id"]))
    # A child's acceptance answers nobody: one that named a request would be taken for the answer to that.
    is_answer = frame["type"] in ("job.accepted", "job.cancelled") and "parent_job_id" not in payload
    if (
        is_answer
        or frame["type"] in ("session.closed", "session.pong")
        or (frame["type"] == "session.error" and "request_id" in payload)
    ):
        _Fields(frame, "$", found).need(correlation_id=some_text)
    if is_answer or "request_id" in payload:
        payload.need(request_id=some_text, reply_to=one_of(payload["request_id"]))
    if "parent_job_id" in payload and ("request_id" in payload or "correlation_id" in frame):
        payload.wrong("a child's acceptance names a request")
    return found


def python_client(frame: Frame) -> list[str]:
    """The Python client: an exception in its reader fails every handle, and later calls hang."""
    found: list[str] = []
    top = _Fields(frame, "$", found)
    top.need(arcp=one_of("1.1"), id=matching(_PYTHON_ID), type=text)
    top.allow(trace_id=matching(_TRACE_ID), event_seq=positive, session_id=text, job_id=text, payload=obj)
    payload = top.into("payload")
    match frame["type"]:
        case "session.welcome":
            payload.need(session_id=text, resume_token=text, accepted_at=text)
            payload.into("runtime").need(name=text, version=text)
            payload.allow(resume_window_sec=natural, heartbeat_interval_sec=positive)
            payload.into("capabilities").allow(
                encodings=texts,
                features=texts,
                agents=lambda value: (
                    agents(text)(value) or agents(lambda entry: obj(entry) and text(entry["name"]))(value)
                ),
            )
        case "session.error":
            payload.need(code=text, message=text)
            payload.allow(retryable=boolean)
        case "session.ping":
            payload.need(nonce=text, sent_at=text)
        case "job.accepted":
            # A budget as numbers kills it (X1).
            payload.need(job_id=text, agent=text, accepted_at=text)
            if "parent_job_id" not in payload:
                payload.need(request_id=text)
            payload.allow(lease=lease, budget=lambda value: obj(value) and all(map(text, value.values())))
        case "job.event":
            # A frame without the id on the envelope is ignored; a body that is no object raises.
            top.need(job_id=text)
            payload.need(kind=text, body=obj)
        case "job.result":
            top.need(job_id=text)
            payload.need(final_status=one_of("success", "cancelled", "timed_out"), completed_at=text)
            payload.allow(result_id=text, result_size=natural, summary=text)
        case "job.error":
            # Another final_status than "error" hangs its handle (X2).
            top.need(job_id=text)
            payload.need(code=text, message=text, completed_at=text)
            payload.allow(final_status=one_of("error"), retryable=boolean, details=obj)
    return found


def _typescript_error(payload: _Fields) -> None:
    payload.need(code=lambda value: value in _CODES, message=some_text, retryable=boolean)
    payload.allow(details=obj)
    if payload["code"] == "INTERNAL_ERROR" and payload["retryable"] is not True:
        payload.wrong("INTERNAL_ERROR is always retryable")
    if payload["code"] in ("LEASE_EXPIRED", "BUDGET_EXHAUSTED") and payload["retryable"] is not False:
        payload.wrong(f"{payload['code']} is never retryable")


def typescript_client(frame: Frame) -> list[str]:
    """The TypeScript client: drops a frame and waits for ever."""
    found: list[str] = []
    top = _Fields(frame, "$", found)
    top.need(arcp=one_of("1.1"), id=some_text, type=some_text, payload=obj)
    top.allow(job_id=text, trace_id=matching(_TRACE_ID), event_seq=natural, extensions=obj)
    if frame["type"] != "session.welcome":
        top.need(session_id=some_text)
    found += [f"extension {key!r}" for key in frame.get("extensions", {}) if not _EXTENSION.fullmatch(key)]
    payload = top.into("payload")
    match frame["type"]:
        case "session.welcome":
            top.need(session_id=some_text)
            payload.into("runtime").need(name=some_text, version=some_text)
            payload.need(resume_token=some_text, resume_window_sec=positive, capabilities=obj)
            payload.allow(heartbeat_interval_sec=positive)
            payload.into("capabilities").allow(
                encodings=texts,
                features=texts,
                agents=agents(
                    lambda entry: (
                        obj(entry)
                        and some_text(entry.get("name"))
                        and texts(entry.get("versions"))
                        and text(entry.get("default", ""))
                    )
                ),
            )
        case "session.error":
            _typescript_error(payload)
        case "session.ping":
            payload.need(nonce=some_text, sent_at=some_text)
        case "session.jobs":
            payload.need(
                request_id=some_text,
                jobs=agents(
                    lambda entry: (
                        obj(entry)
                        and lease(entry.get("lease"))
                        and some_text(entry.get("created_at"))
                        and natural(entry.get("last_event_seq"))
                    )
                ),
                next_cursor=lambda value: value is None or text(value),
            )
        case "job.accepted":
            payload.need(job_id=some_text, lease=lease, accepted_at=some_text)
            payload.allow(
                agent=some_text,
                budget=lambda value: obj(value) and all(map(number, value.values())),
                trace_id=text,
                parent_job_id=text,
                delegate_id=text,
            )
        case "job.event":
            top.need(job_id=text)
            payload.need(kind=some_text, ts=some_text, body=anything)
            if payload["kind"] == "result_chunk":
                payload.into("body").need(
                    result_id=some_text,
                    chunk_seq=natural,
                    data=text,
                    encoding=one_of("utf8", "base64"),
                    more=boolean,
                )
        case "job.result":
            top.need(job_id=text)
            payload.need(final_status=one_of("success"))
            payload.allow(result_id=some_text, result_size=natural, summary=text)
            if "result" in payload and "result_id" in payload:
                payload.wrong("result and result_id")
        case "job.error":
            top.need(job_id=text)
            payload.need(final_status=one_of("error", "cancelled", "timed_out"))
            _typescript_error(payload)
        case "job.cancelled":
            payload.allow(reason=text)
        case "job.subscribed":
            payload.need(replayed=boolean, subscribed_from=natural, lease=lease)
    return found


def _go_lease(value: Any) -> bool:
    return value is None or lease(value)


def go_client(frame: Frame) -> list[str]:
    """The Go client: ignores what it cannot decode, and waits for its deadline."""
    found: list[str] = []
    top = _Fields(frame, "$", found)
    top.need(id=some_text, type=some_text)
    top.allow(event_seq=natural, session_id=text, job_id=text, trace_id=text, extensions=obj)
    payload = top.into("payload")
    match frame["type"]:
        case "session.welcome":
            top.need(session_id=some_text)
            payload.allow(runtime=obj, resume_token=text, resume_window_sec=natural, heartbeat_interval_sec=natural)
            payload.into("capabilities").allow(encodings=texts, features=texts, agents=agents(obj))
        case "session.error":
            # Without the request's id nobody is told.
            payload.need(code=text, retryable=boolean, request_id=some_text)
            payload.allow(details=obj)
        case "session.ping":
            payload.need(sent_at=matching(_RFC_3339))
        case "job.accepted":
            payload.need(job_id=some_text)
            payload.allow(
                lease=_go_lease,
                accepted_at=matching(_RFC_3339),
                budget=lambda value: obj(value) and all(map(number, value.values())),
            )
        case "job.event":
            top.need(job_id=some_text)
            payload.need(kind=text, ts=matching(_RFC_3339))
            body = payload.into("body")
            match payload["kind"]:
                case "progress":
                    # Unsigned integers: 1.0 is none.
                    body.need(current=natural)
                    body.allow(total=natural)
                case "result_chunk":
                    body.need(result_id=some_text, chunk_seq=natural, encoding=one_of("utf8", "base64"))
                case "metric":
                    body.need(value=number)
                    body.allow(dimensions=lambda value: all(map(text, value.values())))
        case "job.result":
            top.need(job_id=some_text)
            # It reads no other field, and takes any final_status for a success.
            payload.need(final_status=one_of("success"))
            if "result" in payload:
                payload.need(output=anything)
            payload.allow(result_size=natural)
        case "job.error":
            top.need(job_id=some_text)
            payload.need(code=text, retryable=boolean)
            payload.allow(details=obj, message=text)
        case "job.subscribed":
            payload.need(replayed=boolean)
    return found


def ruby_client(frame: Frame) -> list[str]:
    """The Ruby client: a KeyError in the caller, or in its reader, after which everything hangs."""
    found: list[str] = []
    top = _Fields(frame, "$", found)
    top.need(arcp=one_of("1.1"), id=anything, type=text, session_id=text)
    top.allow(trace_id=matching(re.compile("[0-9a-f]{32}")), event_seq=lambda value: type(value) is int, payload=obj)
    payload = top.into("payload")
    match frame["type"]:
        case "session.welcome":
            payload.into("capabilities").allow(agents=agents(lambda entry: obj(entry) and "name" in entry))
        case "session.error":
            # Its calls wait for their own id in reply_to, and for nothing else.
            payload.need(code=text, reply_to=some_text)
        case "session.jobs":
            payload.need(jobs=anything, reply_to=some_text)
        case "session.ping":
            payload.need(nonce=anything)
        case "job.accepted":
            payload.need(job_id=anything, agent=anything)
            if "parent_job_id" not in payload:
                # Without it its submit waits for ever; a child's is one that nobody waits for.
                payload.need(reply_to=some_text)
            if "lease" in payload:
                # Even an empty one must have an id of its own (X3).
                payload.into("lease").need(id=anything)
        case "job.event":
            payload.need(kind=anything, body=obj)
            body = payload.into("body")
            needed = {
                "log": "level message",
                "thought": "text",
                "tool_call": "call_id tool",
                "tool_result": "call_id",
                "status": "phase",
                "metric": "name value",
                "progress": "current",
                "result_chunk": "result_id chunk_seq data encoding more",
            }
            body.need(**dict.fromkeys(needed.get(str(payload["kind"]), "").split(), anything))
            if "lease" in body:
                body.into("lease").need(id=anything)
        case "job.result":
            top.need(job_id=text)
            payload.need(job_id=anything, final_status=anything)
        case "job.error":
            top.need(job_id=text)
            payload.need(job_id=anything, final_status=anything, code=anything)
    return found


CLIENTS: dict[str, Callable[[Frame], list[str]]] = {
    "common": common,
    "python": python_client,
    "typescript": typescript_client,
    "go": go_client,
    "ruby": ruby_client,
}


# --- servers: what our client sends must please them ----------------------------------------------


def superset(frame: Frame) -> list[str]:
    """What every server may rely on in our client's frames (interop.md, section 8)."""
    found: list[str] = []
    top = _Fields(frame, "$", found)
    top.need(
        arcp=one_of("1.1"),
        id=matching(_OUR_ID),
        session_id=some_text,
        timestamp=matching(_OUR_TIME),
        payload=obj,
    )
    top.allow(trace_id=matching(_TRACE_ID))
    if "event_seq" in frame:
        top.wrong("a client numbers nothing")
    found += [f"{path} is null" for path in _nulls(frame, "$")]
    payload = top.into("payload")
    match frame["type"]:
        case "session.hello":
            top.need(session_id=matching(re.compile(rf"sess_{_ULID}")))
            payload.into("client").need(name=some_text, version=some_text, kind=some_text)
            payload.need(client_name=some_text, client_version=some_text)
            payload.into("auth").need(scheme=one_of("bearer"), token=some_text)
            payload.into("capabilities").need(encodings=lambda value: value == ["json"], features=texts)
            if "agents" in payload.into("capabilities"):
                # It would look like the Python client.
                payload.wrong("capabilities.agents")
            if "resume" in payload:
                # In each place where one of them looks for it.
                resume = payload.into("resume")
                resume.need(session_id=one_of(frame["session_id"]), last_event_seq=natural)
                resume.need(resume_token=some_text, token=one_of(resume["resume_token"]))
                payload.need(resume_token=one_of(resume["resume_token"]))
                payload.need(last_event_seq=one_of(resume["last_event_seq"]))
        case "job.submit":
            top.need(trace_id=some_text)
            payload.need(agent=matching(_AGENT), input=anything)
            payload.allow(lease_request=lambda value: lease(value) and value != {}, lease_constraints=obj)
        case "job.cancel":
            top.need(job_id=some_text)
            payload.need(job_id=one_of(frame["job_id"]), reason=some_text)
        case "job.subscribe" | "job.unsubscribe":
            top.need(job_id=some_text)
            payload.need(job_id=one_of(frame["job_id"]))
            payload.allow(history=boolean, from_event_seq=natural)
        case "session.list_jobs":
            payload.allow(filter=lambda value: obj(value) and value != {}, limit=positive, cursor=some_text)
        case "session.ack":
            payload.need(last_processed_seq=natural)
        case "session.ping":
            payload.need(nonce=some_text, sent_at=matching(_OUR_TIME))
        case "session.close" | "session.bye":
            payload.need(reason=some_text)
        case "session.pong":
            payload.need(ping_nonce=text, received_at=matching(_OUR_TIME))
        case other:
            top.wrong(f"{other}: not every server knows it")
    return found


def python_server(frame: Frame) -> list[str]:
    found: list[str] = []
    top = _Fields(frame, "$", found)
    top.need(arcp=one_of("1.1"), id=matching(_PYTHON_ID), type=text)
    top.allow(trace_id=matching(_TRACE_ID))
    payload = top.into("payload")
    match frame["type"]:
        case "session.hello":
            payload.into("client").need(name=text, version=text)
            payload.into("auth").need(token=text)
            if "resume" in payload:
                payload.into("resume").need(session_id=text, resume_token=text, last_event_seq=natural)
        case "job.submit":
            payload.need(agent=matching(re.compile(r"[a-zA-Z][a-zA-Z0-9._-]*(@[a-zA-Z0-9][a-zA-Z0-9._-]*)?")))
            payload.allow(
                lease_request=lease,
                idempotency_key=lambda value: some_text(value) and len(value) <= 256,
                max_runtime_sec=lambda value: type(value) is int and 1 <= value <= 86400,
            )
        case "job.cancel":
            top.need(job_id=text)
            payload.need(reason=text)
        case "job.subscribe" | "job.unsubscribe":
            payload.need(job_id=text)
        case "session.list_jobs":
            payload.allow(limit=lambda value: natural(value) and 1 <= value <= 1000)
        case "session.ping":
            payload.need(nonce=text, sent_at=text)
        case "session.bye":
            payload.need(reason=text)
    return found


def typescript_server(frame: Frame) -> list[str]:
    found: list[str] = []
    top = _Fields(frame, "$", found)
    top.need(arcp=one_of("1.1"), id=some_text, type=some_text, payload=obj)
    top.allow(trace_id=matching(_TRACE_ID), session_id=some_text)
    found += [f"{path} is null" for path in _nulls(frame, "$")]
    payload = top.into("payload")
    match frame["type"]:
        case "session.hello":
            payload.into("client").need(name=some_text, version=some_text)
            payload.into("auth").need(scheme=one_of("bearer"), token=text)
        case "job.submit":
            top.need(session_id=some_text)
            payload.need(agent=some_text)
            payload.allow(lease_request=lease, idempotency_key=some_text, max_runtime_sec=positive)
        case "job.cancel":
            top.need(session_id=some_text, job_id=text)
            payload.allow(reason=text)
        case _:
            top.need(session_id=some_text)
    return found


def go_server(frame: Frame) -> list[str]:
    found: list[str] = []
    top = _Fields(frame, "$", found)
    top.need(id=some_text, type=some_text)
    payload = top.into("payload")
    match frame["type"]:
        case "session.hello":
            payload.into("client").allow(name=text, version=text)
            payload.into("capabilities").allow(encodings=texts, features=texts)
        case "job.submit":
            payload.need(agent=matching(re.compile(r"[a-z0-9][a-z0-9._-]*(@[a-zA-Z0-9.+_-]+)?")))
            payload.allow(lease_request=lease, idempotency_key=text, max_runtime_sec=natural)
        case "job.cancel":
            top.need(job_id=some_text)
    return found


def ruby_server(frame: Frame) -> list[str]:
    found: list[str] = []
    top = _Fields(frame, "$", found)
    top.need(arcp=one_of("1.1"), id=anything, type=text, session_id=text)
    top.allow(trace_id=matching(re.compile("[0-9a-f]{32}")))
    payload = top.into("payload")
    match frame["type"]:
        case "session.hello":
            payload.need(auth=obj)
            if "resume" in payload:
                payload.into("resume").need(token=text, last_event_seq=natural)
        case "job.cancel":
            payload.need(job_id=some_text)
    return found


SERVERS: dict[str, Callable[[Frame], list[str]]] = {
    "superset": superset,
    "python": python_server,
    "typescript": typescript_server,
    "go": go_server,
    "ruby": ruby_server,
}
