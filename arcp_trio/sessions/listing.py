"""session.list_jobs: a page of the jobs that a principal may see (P6.19, P6.20). Reading changes nothing.

Theory of operation. A cursor is the place of the last job that was listed (:data:`arcp_trio.jobs.index.Key`), not a
count and not that job, so it needs neither to be kept here nor the job to be there still. It is signed together with
the principal and the filter: in anybody else's hand, or with another filter, it is as bad as a made-up one.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from hashlib import blake2b

import attrs

from ..audit import audit
from ..authority.budget import to_numbers
from ..jobs.actor import JobActor
from ..jobs.directory import JobDirectory
from ..jobs.index import JobFilter, Key
from ..jobs.lifecycle import FinalStatus
from ..limits import Limits
from ..wire.codec import encode_payload
from ..wire.errors import ARCPError, InvalidRequestError
from ..wire.jsontext import encode_json
from ..wire.session_messages import SessionJobs, SessionJobsEntry, SessionListJobs, SessionListJobsFilter
from ..wire.timestamps import parse_timestamp
from .auth import Principal
from .observation import ObservationPolicy, Visibility

__all__ = ["JobListing"]

_DEFAULT_LIMIT = 100
_MAX_LIMIT = 1_000
_STATUSES = ("pending", "running", *(status.value for status in FinalStatus))
_AGENT = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}(@[a-zA-Z0-9.+_-]{1,128})?")
_SIGNATURE_BYTES = 16

# What a frame of ours has beside its jobs and the id of the request that it answers: its cursor has a hundred
# characters, its other ids fewer.
_FRAME_BYTES = 1_024
# The id of the request stands in a reply as often: request_id, reply_to, correlation_id.
_REQUEST_IDS = 3


class JobListing:
    """Answers the listings of one runtime's sessions.

    Args:
        jobs: The runtime's jobs.
        limits: Its bounds: a page is cut to ``send_bytes`` (P4.4).
        observation: Whose jobs a principal may see beside its own.

    The key that signs the cursors is this object's own: none survives the runtime.
    """

    def __init__(self, jobs: JobDirectory, limits: Limits, observation: ObservationPolicy) -> None:
        self._jobs = jobs
        self._limits = limits
        self._observation = observation
        self._secret = secrets.token_bytes(32)

    def answer(
        self,
        request: SessionListJobs,
        *,
        request_id: str,
        principal: Principal,
        session_id: str,
        with_budgets: bool,
        with_credentials: bool,
    ) -> SessionJobs:
        """Return the page that was asked for; the audit log gets a line on it, whatever comes of it.

        Args:
            request: As it was received.
            request_id: The id of the message that it came in.
            principal: Who asks: the jobs are those that it may see, and the cursor is good for it alone.
            session_id: Where it asks from, for the log.
            with_budgets: Whether what is left of each job's budget is shown.
            with_credentials: Whether the credentials of the jobs that this session has submitted are (P6.20).

        Raises:
            InvalidRequestError: A limit, a filter or a cursor that is not valid, named by its path.
        """
        outcome = "failed"
        try:
            confidant = session_id if with_credentials else None
            page = self._page(request, request_id, principal, with_budgets=with_budgets, confidant=confidant)
            outcome = f"granted, {len(page.jobs)} jobs"
        except ARCPError as exc:
            outcome = f"refused, {exc.code}"
            raise
        finally:
            # No cursor, and nothing longer than what could be valid: a log is not the client's to fill.
            place = "first" if request.cursor is None else "further"
            audit(
                outcome,
                "list",
                principal=principal.name,
                session_id=session_id,
                detail=f"filter {_describe_filter(request.filter):.500}, limit {request.limit!r}, {place} page",
            )
        return page

    def _page(
        self,
        request: SessionListJobs,
        request_id: str,
        principal: Principal,
        *,
        with_budgets: bool,
        confidant: str | None,
    ) -> SessionJobs:
        limit = _DEFAULT_LIMIT if request.limit is None else request.limit
        if not 1 <= limit <= _MAX_LIMIT:
            raise InvalidRequestError(f"$.payload.limit: expected an integer from 1 to {_MAX_LIMIT}, got {limit}")
        wanted = _read_filter(request.filter)
        after = None if request.cursor is None else self._read_cursor(request.cursor, principal, wanted)
        policy = self._observation

        def visible(owner: str, agent: str) -> bool:
            return owner == principal.name or policy.visibility(principal, owner, agent) is Visibility.OBSERVABLE

        principals = {principal.name, *policy.observable(principal)}
        page = self._jobs.index.page(principals, wanted, limit=limit, after=after, visible=visible)
        entries: list[SessionJobsEntry] = []
        room = self._limits.send_bytes - _FRAME_BYTES - _REQUEST_IDS * len(encode_json(request_id))
        for key in page.keys:
            entry = self._entry(key, with_budget=with_budgets, confidant=confidant)
            # The comma behind it counts too.
            room -= len(encode_payload(entry)) + 1
            if room < 0 and entries:
                # One alone always fits: a lease may take half of a frame.
                break
            entries.append(entry)
        is_last = len(entries) == len(page.keys) and not page.more
        return SessionJobs(
            request_id=request_id,
            reply_to=request_id,
            jobs=tuple(entries),
            next_cursor=None if is_last else self._make_cursor(page.keys[len(entries) - 1], principal, wanted),
        )

    def _entry(self, key: Key, *, with_budget: bool, confidant: str | None) -> SessionJobsEntry:
        job = self._jobs.find(key[1])
        assert job is not None, "the index holds what the directory finds"
        credentials = job.credentials if isinstance(job, JobActor) and confidant in job.owners else None
        return SessionJobsEntry(
            job_id=job.job_id,
            agent=job.agent.resolved if isinstance(job, JobActor) else job.agent,
            status=job.status,
            lease={namespace: list(patterns) for namespace, patterns in job.lease.grants.items()},
            lease_constraints={"expires_at": job.lease.expires_at} if job.lease.expires_at is not None else None,
            budget=to_numbers(job.budget) if with_budget else None,
            # One instant under the three names that peers read (P6.20).
            parent_job_id=job.parent_job_id,
            created_at=job.created_at,
            submitted_at=job.created_at,
            accepted_at=job.created_at,
            trace_id=job.feed.trace_id,
            last_event_seq=job.feed.job_seq,
            credentials=None if credentials is None else credentials.to_wire() or None,
        )

    # --- cursors ------------------------------------------------------------------------------------

    def _make_cursor(self, key: Key, principal: Principal, wanted: JobFilter) -> str:
        created_at, job_id = key
        signed = encode_json(
            [
                principal.name,
                None if wanted.statuses is None else sorted(wanted.statuses),
                wanted.agent,
                wanted.created_after,
                created_at,
                job_id,
            ]
        )
        signature = blake2b(signed, key=self._secret, digest_size=_SIGNATURE_BYTES).digest()
        return base64.urlsafe_b64encode(signature + f"{created_at}:{job_id}".encode()).decode()

    def _read_cursor(self, cursor: str, principal: Principal, wanted: JobFilter) -> Key:
        """Return the place that a cursor holds.

        Raises:
            InvalidRequestError: It was not made here, or for another principal or filter: one answer for all.
        """
        try:
            place = base64.b64decode(cursor, altchars=b"-_", validate=True)[_SIGNATURE_BYTES:].decode()
            created_at, _, job_id = place.partition(":")
            key = int(created_at), job_id
            # Made again and compared whole: what is not spelt as ours is refused with what is not signed.
            if hmac.compare_digest(cursor, self._make_cursor(key, principal, wanted)):
                return key
        except ValueError:
            pass
        raise InvalidRequestError(
            "$.payload.cursor: expected the next_cursor of a page of the same filter; begin again without one"
        )


def _describe_filter(given: SessionListJobsFilter | None) -> str:
    """Return a filter for the log: what it names, or ``none``."""
    named = {} if given is None else attrs.asdict(given, filter=lambda _, value: value is not None)
    return " ".join(f"{name}={value!r}" for name, value in named.items()) or "none"


def _read_filter(given: SessionListJobsFilter | None) -> JobFilter:
    """Check a filter; no status at all names none, and leaves the status open.

    Raises:
        InvalidRequestError: The first thing that is wrong with it, named by its path.
    """
    if given is None:
        return JobFilter()
    for position, status in enumerate(given.status or ()):
        if status not in _STATUSES:
            raise InvalidRequestError(
                f"$.payload.filter.status[{position}]: expected one of {', '.join(_STATUSES)}, got {status[:50]!r}"
            )
    if given.agent is not None and not _AGENT.fullmatch(given.agent):
        raise InvalidRequestError("$.payload.filter.agent: expected 'name' or 'name@version', the name in lower case")
    created_after: int | None = None
    if given.created_after is not None:
        try:
            created_after = parse_timestamp(given.created_after)
        except ValueError:
            raise InvalidRequestError(
                "$.payload.filter.created_after: expected a time in UTC like 2026-05-13T19:42:13.000Z, "
                f"got {given.created_after[:50]!r}"
            ) from None
    return JobFilter(
        statuses=frozenset(given.status) if given.status else None,
        agent=given.agent,
        created_after=created_after,
    )
