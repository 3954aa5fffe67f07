"""The payloads of session.* messages (section 6 of the specification).

Required fields are those without which the message means nothing; what only some implementations
send is optional here, so that theirs can be read (T21). Forms that are spelt otherwise are brought
into these shapes by :mod:`arcp_trio.wire.forms` first.
"""

from __future__ import annotations

import attrs

from .jsontext import JSONValue

__all__ = [
    "CREDENTIALS_FEATURE",
    "FEATURES",
    "REPLIES_FEATURE",
    "AgentInventory",
    "Auth",
    "ClientCapabilities",
    "Peer",
    "Replayed",
    "ResumeRequest",
    "RuntimeCapabilities",
    "SessionAck",
    "SessionBye",
    "SessionClose",
    "SessionClosed",
    "SessionError",
    "SessionHello",
    "SessionJobs",
    "SessionJobsEntry",
    "SessionListJobs",
    "SessionListJobsFilter",
    "SessionPing",
    "SessionPong",
    "SessionRejected",
    "SessionResume",
    "SessionWelcome",
]

REPLIES_FEATURE = "x-arcp-trio.replies"
"""Our own feature: a late cancel is answered by ``x-arcp-trio.reply`` instead of silence (P7.14), and the end
of a resume's replay is marked by ``x-arcp-trio.replayed``."""

CREDENTIALS_FEATURE = "provisioned_credentials"

FEATURES = frozenset(
    {
        "heartbeat",
        "ack",
        "list_jobs",
        "subscribe",
        "lease_expires_at",
        "cost.budget",
        "model.use",
        CREDENTIALS_FEATURE,
        "progress",
        "result_chunk",
        "agent_versions",
        REPLIES_FEATURE,
    }
)
"""Every feature that this package knows (P6.5); a runtime offers those that it implements."""


@attrs.frozen(kw_only=True)
class Peer:
    """Who speaks: the ``client`` of a hello, the ``runtime`` of a welcome."""

    name: str = "unknown"
    version: str | None = None
    kind: str | None = None


@attrs.frozen(kw_only=True)
class Auth:
    """The credentials of a hello; the token is a secret and stays out of the repr."""

    token: str | None = attrs.field(default=None, repr=False)
    scheme: str = "bearer"


@attrs.frozen(kw_only=True)
class ResumeRequest:
    """Which session to take up again, and from where (P6.7)."""

    resume_token: str = attrs.field(repr=False)
    last_event_seq: int
    session_id: str | None = None


@attrs.frozen(kw_only=True)
class ClientCapabilities:
    """What a client offers."""

    encodings: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class SessionHello:
    """The first message of a client (P6.1)."""

    client: Peer = Peer()
    auth: Auth | None = None
    capabilities: ClientCapabilities = ClientCapabilities()
    resume: ResumeRequest | None = None
    client_name: str | None = None
    client_version: str | None = None


@attrs.frozen(kw_only=True)
class AgentInventory:
    """One agent of a welcome: its versions are always present in ours (P6.6)."""

    name: str
    versions: tuple[str, ...]
    default: str | None = None


@attrs.frozen(kw_only=True)
class RuntimeCapabilities:
    """What a runtime offers; ``features`` is the effective set (P6.4)."""

    encodings: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    agents: tuple[AgentInventory, ...] | None = None


@attrs.frozen(kw_only=True)
class SessionWelcome:
    """The answer to a hello that was accepted (P6.6)."""

    runtime: Peer = Peer()
    runtime_name: str | None = None
    runtime_version: str | None = None
    session_id: str | None = None
    resume_token: str | None = attrs.field(default=None, repr=False)
    resume_window_sec: int | float | None = None
    heartbeat_interval_sec: int | float | None = None
    accepted_at: str | None = None
    capabilities: RuntimeCapabilities = RuntimeCapabilities()


@attrs.frozen(kw_only=True)
class SessionError:
    """A refusal of one request, or the reason why a connection ends (P12.2)."""

    code: str
    message: str = ""
    retryable: bool | None = None
    request_id: str | None = None
    reply_to: str | None = None
    job_id: str | None = None
    details: dict[str, JSONValue] | None = None


@attrs.frozen(kw_only=True)
class SessionResume:
    """Resume as a first message of its own (P6.7)."""

    resume_token: str = attrs.field(repr=False)
    last_event_seq: int
    session_id: str | None = None
    auth: Auth | None = None


@attrs.frozen(kw_only=True)
class Replayed:
    """``x-arcp-trio.replayed``: all that waited when a session was resumed has been sent; what is live follows."""

    request_id: str
    reply_to: str | None = None


@attrs.frozen(kw_only=True)
class SessionPing:
    """A sign of life that asks for one (P6.13)."""

    nonce: str
    sent_at: str | None = None


@attrs.frozen(kw_only=True)
class SessionPong:
    """The answer to a ping; ``received_at`` is never looked at, some peers send year one."""

    ping_nonce: str
    received_at: str | None = None


@attrs.frozen(kw_only=True)
class SessionAck:
    """How far a client has read (P6.15)."""

    last_processed_seq: int


@attrs.frozen(kw_only=True)
class SessionListJobsFilter:
    """Which jobs to list (P6.19)."""

    status: tuple[str, ...] | None = None
    agent: str | None = None
    created_after: str | None = None


@attrs.frozen(kw_only=True)
class SessionListJobs:
    """Ask for a page of the jobs that the principal may see (P6.19)."""

    filter: SessionListJobsFilter | None = None
    limit: int | None = None
    cursor: str | None = None


@attrs.frozen(kw_only=True)
class SessionJobsEntry:
    """One job of a page (P6.20)."""

    job_id: str
    agent: str
    status: str
    lease: dict[str, JSONValue] | None = None
    lease_constraints: dict[str, JSONValue] | None = None
    budget: dict[str, JSONValue] | None = None
    parent_job_id: str | None = None
    created_at: str | None = None
    submitted_at: str | None = None
    accepted_at: str | None = None
    trace_id: str | None = None
    last_event_seq: int | None = None
    credentials: tuple[dict[str, JSONValue], ...] | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class SessionJobs:
    """A page of jobs."""

    jobs: tuple[SessionJobsEntry, ...]
    request_id: str | None = None
    reply_to: str | None = None
    next_cursor: str | None = None


@attrs.frozen(kw_only=True)
class SessionClose:
    """Ask to end the connection; jobs go on (P6.21)."""

    reason: str | None = None


@attrs.frozen(kw_only=True)
class SessionClosed:
    """The answer to a close."""

    reason: str | None = None


@attrs.frozen(kw_only=True)
class SessionBye:
    """The close of v1.0: no answer is expected."""

    reason: str | None = None


@attrs.frozen(kw_only=True)
class SessionRejected:
    """What a peer of an older protocol understands as no (P5.2)."""

    code: str
    message: str
