"""Issues and rotates credentials so that none is ever live without standing in the ledger (P9.10).

Theory of operation. Intent first: before the provisioner is asked, the ledger has an entry that says that something may
be issued for this job. Then the provisioner is asked, what it returned is held against the lease, and written down, and
only then does it leave this module. Whatever goes wrong between, a deadline, a shutdown, a crash of the process, there
is an entry that leads to a revocation: of a credential by its handle, or of all that the job may have.
"""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from decimal import Decimal
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

import attrs
import trio

from ..audit import audit
from ..authority.budget import Budget, parse_budget
from ..authority.credentials import Credential, CredentialRequest, IssuedCredential, Provisioner, find_excess
from ..limits import Limits
from ..records import LedgerEntry, LedgerState
from ..store.base import CredentialLedger
from ..wire.errors import ARCPError, InternalError, InvalidRequestError, JobEndedError
from ..wire.ids import IdFactory
from ..wire.timestamps import WallClock
from ..wire.tracecontext import TraceContext
from .credentials import HeldCredential, JobCredentials, Rotation
from .revoker import ProvisionerFailedError, Revocation, Revoker, ask_provisioner

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["Issuer"]

logger = logging.getLogger("arcp_trio.credentials")

T = TypeVar("T")


class _Fingerprints:
    """Which texts were seen before, the newest ``limit`` of them; it does not hold the texts."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._key = secrets.token_bytes(32)
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def _of(self, text: str) -> bytes:
        return blake2b(text.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()

    def knows(self, text: str) -> bool:
        return self._of(text) in self._seen

    def remember(self, *texts: str) -> None:
        self._seen.update((self._of(text), None) for text in texts)
        while len(self._seen) > self._limit:
            self._seen.popitem(last=False)


class Issuer:
    """Issues and rotates the credentials of a runtime's jobs.

    Args:
        provisioner: Who can issue.
        ledger: Where it is written down first.
        revoker: Who revokes what must not be, or no longer.
        limits: The bounds.
        ids: Mints the credentials' ids.
        clock: The time of day.
        spawn: Starts a task of the runtime: a rotation does not end with who asked for it.
        open_models: Whether a lease that does not name ``model.use`` allows every model (P9.8).

    Attributes:
        live: How many credentials running jobs have.
        issued: How many were issued, rotations included.
    """

    def __init__(
        self,
        provisioner: Provisioner,
        ledger: CredentialLedger,
        revoker: Revoker,
        *,
        limits: Limits,
        ids: IdFactory,
        clock: WallClock,
        spawn: Callable[[Callable[[], Awaitable[None]], str], None],
        open_models: bool,
    ) -> None:
        self._provisioner = provisioner
        self._ledger = ledger
        self._revoker = revoker
        self._limits = limits
        self._ids = ids
        self._clock = clock
        self._spawn = spawn
        self._open_models = open_models
        self._known = _Fingerprints(2 * limits.remembered_credentials)
        self.live = 0
        self.issued = 0

    # --- for a job that is to be accepted -----------------------------------------------------------

    async def issue(
        self, request: CredentialRequest, failed: Callable[[Revocation], None] | None = None
    ) -> JobCredentials | None:
        """Issue the credentials of a job, and write them down.

        Args:
            request: The job and what its lease leaves of it.
            failed: Told of the revocation of what there may be, where it fails. Synchronous.

        Returns:
            The credentials; ``None`` for a job that needs none.

        Raises:
            InternalError: There are none, and whatever there may be is being revoked; retryable. It says nothing of
                what the provisioner said.

        Cancellation: likewise.
        """
        if self._revoker.is_full:
            limit = self._limits.unrevoked_credentials
            raise InternalError(
                "too many credentials of ended jobs are not revoked: no more are issued",
                details={"limit": "unrevoked_credentials", "value": limit},
            )
        intent = self._entry(request, LedgerState.INTENDED, None)
        held: list[HeldCredential] = []
        done = False
        try:
            await self._put(intent)
            issued = await self._ask(request.job_id, partial(self._issue, request))
            problem = self._find_problem(issued, request)
            if problem is not None:
                raise self._refused(request.job_id, f"what the provisioner returned was refused: {problem}")
            held = [self._hold(each, request) for each in issued]
            await self._put(*(each.entry for each in held), attrs.evolve(intent, state=LedgerState.REVOKED))
            done = True
        finally:
            if not done:
                # By the job, not by handles: what has not come back has none that is known here.
                revocation = self._revoker.revoke(intent, [each.entry for each in held])
                if failed is not None:
                    failed(revocation)
        if not held:
            return None
        self.live += len(held)
        for each in held:
            self._audit("issued", request, each.credential)
        return JobCredentials(request, held, self._revoker, self._note_closed)

    async def _issue(self, request: CredentialRequest) -> tuple[IssuedCredential, ...]:
        # What is no sequence fails like any other answer that is none.
        return tuple(await self._provisioner.issue(request))

    async def issue_for(self, spec: JobSpec, failed: Callable[[Revocation], None] | None = None) -> JobSpec:
        """Issue the credentials of a job that passed validation; return it with them, and with its id.

        Args:
            spec: The job.
            failed: As :meth:`issue`.

        Raises:
            InternalError: As :meth:`issue`.

        Cancellation: likewise.
        """
        lease = spec.lease
        budget = spec.budget
        if budget is None:
            budget = Budget(parse_budget(lease.grants.get("cost.budget", ()), '$.payload.lease_request."cost.budget"'))
        # The job's span comes only when the job does: until then the trace is that of whoever asks.
        trace = spec.trace or TraceContext(trace_id=self._ids.trace(), span_id=self._ids.span())
        open_models = self._open_models if spec.parent is None else spec.parent.authority.open_models
        request = CredentialRequest(
            job_id=spec.job_id or self._ids.job(),
            principal=spec.principal,
            agent=spec.agent.resolved,
            lease=lease.grants,
            budget=budget.applicable(),
            models=lease.grants.get("model.use", None if open_models else ()),
            expires_at=lease.expires_at,
            trace_id=trace.trace_id,
            trace_headers=trace.headers(),
        )
        credentials = await self.issue(request, failed)
        return attrs.evolve(spec, job_id=request.job_id, trace=trace, budget=budget, credentials=credentials)

    def _note_closed(self, count: int) -> None:
        self.live -= count

    # --- for a job that runs ------------------------------------------------------------------------

    async def rotate(
        self,
        credentials: JobCredentials,
        credential_id: str,
        *,
        budget: Mapping[str, Decimal],
        trace_headers: Mapping[str, str],
        announce: Callable[[], None],
    ) -> Credential:
        """Give a credential of a running job another value, and revoke the prior one (C04, C05).

        Two callers at once share one rotation.

        Args:
            credentials: The job's.
            credential_id: Which of them.
            budget: What is left to spend.
            trace_headers: What makes the provisioner's request a part of the job's trace.
            announce: Tells who has the value, when the new one is in its place. Synchronous.

        Returns:
            The credential with its new value.

        Raises:
            InvalidRequestError: The job has no such credential.
            JobEndedError: The job has ended, perhaps meanwhile.
            InternalError: There is no new value, and the prior one stays; retryable.

        Cancellation: the rotation goes on.
        """
        held = credentials.find(credential_id)
        if held is None:
            await trio.lowlevel.checkpoint()
            if credentials.is_closed:
                raise JobEndedError("the job has ended: its credentials are being revoked")
            raise InvalidRequestError(f"credential_id: the job has no credential {credential_id!r:.80}")
        rotation = held.rotation
        if rotation is None:
            rotation = credentials.begin(held)
            request = attrs.evolve(credentials.request, budget=budget, trace_headers=trace_headers)
            run = partial(self._run_rotation, credentials, held, rotation, request, announce)
            self._spawn(run, f"rotation of {credential_id}")
        await rotation.done.wait()
        if rotation.credential is None:
            # A new exception for each who waits: one that is raised twice grows a traceback of both.
            raise copy(rotation.error) if rotation.error else JobEndedError("the job has ended meanwhile")
        return rotation.credential

    @trio.lowlevel.enable_ki_protection
    async def _run_rotation(
        self,
        credentials: JobCredentials,
        held: HeldCredential,
        rotation: Rotation,
        request: CredentialRequest,
        announce: Callable[[], None],
    ) -> None:
        seconds = self._limits.submit_seconds
        rotation.error = InternalError(f"the credential was not rotated within {seconds:g} seconds")
        try:
            with rotation.scope, trio.move_on_after(seconds):
                entry, renewed = await self._renew(credentials, held, request)
                # No checkpoint between here and the end: it is written down, and now it is the one that is shown.
                if credentials.is_closed:
                    credentials.retire(self._revoker.revoke(entry))
                    return
                prior, held.entry, held.credential = held.entry, entry, renewed
                rotation.credential = renewed
                announce()
                self._audit("rotated", request, renewed)
                if prior.handle == entry.handle:
                    self._revoker.settle(prior)
                else:
                    credentials.retire(self._revoker.revoke(prior))
        except ARCPError as exc:
            rotation.error = exc
        except Exception:
            # What it has left is revoked with the job, or is being.
            logger.exception("job %s: a bug in a rotation", request.job_id)
            rotation.error = InternalError("the runtime failed to rotate the credential")
        finally:
            if credentials.is_closed:
                rotation.error = None
            credentials.end(held, rotation)

    async def _renew(
        self, credentials: JobCredentials, held: HeldCredential, request: CredentialRequest
    ) -> tuple[LedgerEntry, Credential]:
        """Have another value issued and written down.

        Raises:
            InternalError: There is none; what there may be is being revoked, or will be with the job.
        """
        intent = self._entry(request, LedgerState.INTENDED, None)
        handle = held.entry.handle
        assert handle is not None, "what was issued has one"
        renewed: HeldCredential | None = None
        refused: str | None = None
        done = False
        try:
            await self._put(intent)
            issued = await self._ask(request.job_id, partial(self._provisioner.rotate, handle, request))
            problem = self._find_problem((issued,), request, replaced=handle)
            if problem is not None:
                refused = self._revocable(issued, handle)
                raise self._refused(request.job_id, f"what a rotation returned was refused: {problem}")
            renewed = self._hold(issued, request)
            await self._put(renewed.entry, attrs.evolve(intent, state=LedgerState.REVOKED))
            done = True
            return renewed.entry, attrs.evolve(renewed.credential, id=held.credential.id)
        finally:
            if not done:
                if renewed is not None and renewed.entry.handle != handle:
                    credentials.retire(self._revoker.revoke(renewed.entry, [intent]))
                elif refused is not None:
                    entry = self._entry(request, LedgerState.ISSUED, refused)
                    credentials.retire(self._revoker.revoke(entry, [intent]))
                else:
                    # Its other credentials are in use: what this one may have left is revoked with them.
                    credentials.doubt(intent)

    # --- how it is done -----------------------------------------------------------------------------

    def _entry(self, request: CredentialRequest, state: LedgerState, handle: str | None) -> LedgerEntry:
        return LedgerEntry(
            entry_id=self._ids.credential(),
            job_id=request.job_id,
            principal=request.principal,
            state=state,
            handle=handle,
            noted_at_ms=int(self._clock.seconds() * 1000),
        )

    @staticmethod
    def _audit(decision: str, request: CredentialRequest, credential: Credential) -> None:
        detail = f"{credential.id} at {credential.endpoint:.200}"
        audit(decision, "credential", principal=request.principal, job_id=request.job_id, detail=detail)

    def _hold(self, issued: IssuedCredential, request: CredentialRequest) -> HeldCredential:
        entry = self._entry(request, LedgerState.ISSUED, issued.handle)
        self._known.remember(issued.value.reveal(), issued.handle)
        self.issued += 1
        credential = Credential(
            id=entry.entry_id,
            scheme=issued.scheme,
            value=issued.value,
            endpoint=issued.endpoint,
            profile=issued.profile,
            constraints=issued.constraints.to_wire(),
        )
        return HeldCredential(credential, entry)

    def _find_problem(
        self, issued: Sequence[IssuedCredential], request: CredentialRequest, *, replaced: str | None = None
    ) -> str | None:
        """Say why something may not be handed out; the answer holds no secret."""
        limits = self._limits
        if len(issued) > limits.credentials:
            return f"{len(issued)} credentials, the limit credentials is {limits.credentials}"
        seen: set[str] = set()
        # With a lease, which may take half of it, they go out in one frame (P4.4).
        max_bytes = min(limits.credential_bytes, limits.send_bytes // 4 // max(1, len(issued)))
        for each in issued:
            excess = find_excess(each, request, max_bytes=max_bytes)
            if excess is not None:
                return excess.replace(each.value.reveal(), "…") if isinstance(each, IssuedCredential) else excess
            value, handle = each.value.reveal(), each.handle
            if value in seen or self._known.knows(value):
                return "value: was issued before, and each is for one job alone"
            if handle in seen or (handle != replaced and self._known.knows(handle)):
                return "handle: was issued before, and revoking it would revoke another"
            seen |= {value, handle}
        return None

    def _revocable(self, issued: object, replaced: str) -> str | None:
        """Return the handle of what a rotation returned and was refused, if it names that and nothing else."""
        if not isinstance(issued, IssuedCredential) or not isinstance(issued.handle, str):
            return None
        names_it = issued.handle not in ("", replaced) and not self._known.knows(issued.handle)
        return issued.handle if names_it and issued.value.reveal() not in issued.handle else None

    async def _ask(self, job_id: str, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await ask_provisioner(call)
        except ProvisionerFailedError as exc:
            problem = exc.problem
        raise self._refused(job_id, f"the provisioner failed: {problem}")

    @staticmethod
    def _refused(job_id: str, problem: str) -> InternalError:
        """Tell the operators what has happened, and the client that it has."""
        logger.error("job %s: no credentials: %.1000s", job_id, problem)
        return InternalError("the credentials of the job could not be issued")

    async def _put(self, *entries: LedgerEntry) -> None:
        try:
            await self._ledger.put(entries)
            return
        except Exception as exc:  # noqa: BLE001  # by its class alone: the ledger is the user's too
            problem = type(exc).__name__
        logger.error("job %s: the ledger failed: %s", entries[0].job_id, problem)
        raise InternalError("the credentials of the job could not be written down")
