"""What an agent holds of its job: what it may do with it and, by its base class, say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from io import BufferedReader, BufferedWriter, TextIOWrapper
from typing import Any, Literal, NoReturn, overload

import trio

from ..authority.budget import Reservation
from ..authority.credentials import Credential
from ..authority.lease import Lease
from ..wire.errors import (
    ARCPError,
    BudgetExhaustedError,
    InvalidRequestError,
    JobEndedError,
    LeaseExpiredError,
    sendable_retryable,
)
from ..wire.jsontext import JSONValue
from .children import Child
from .delegation import Delegation
from .emissions import JobEmissions
from .guarded import (
    AllowedFetch,
    GuardedFile,
    ModelUse,
    TextMode,
    ToolCall,
    allow_fetch,
    allow_model,
)
from .reserving import BudgetHold

__all__ = ["JobContext"]


class JobContext(JobEmissions):
    """An agent's view of its job, its first argument.

    Some methods are guarded operations: each asks first whether the job may do it (P9.4), and says what it raises.
    Every other ``async`` method is an emission. All of those share one contract: the body is checked and encoded
    first, so a bad one raises :class:`InvalidRequestError` (or :class:`MessageTooLargeError`) and takes no number
    (P8.1); then the method is a checkpoint, at which the agent may be cancelled and nothing was emitted; then it may
    wait, for a bounded time, if the submitting session reads too slowly; then the event is with every follower.
    After the job has ended they raise :class:`JobEndedError` (P7.11).
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<JobContext {self.job_id} {self.agent}>"

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._actor.job_id

    @property
    def agent(self) -> str:
        """The resolved agent, ``name@version``."""
        return self._actor.agent.resolved

    @property
    def principal(self) -> str:
        """Who submitted the job."""
        return self._actor.principal

    @property
    def parent_job_id(self) -> str | None:
        """The job that has delegated this one; ``None`` for one that was submitted."""
        return self._actor.parent_job_id

    @property
    def trace_id(self) -> str:
        """The job's trace: 32 hex digits (section 11)."""
        return self._actor.feed.trace_id

    def trace_headers(self) -> dict[str, str]:
        """Return the headers that make a request of the agent's own a part of the job's trace (section 11).

        ``traceparent``, and ``tracestate`` where there is one, each time in a new dictionary; with OpenTelemetry those
        of the span in which it is called.
        """
        return self._actor.trace.headers()

    @property
    def lease(self) -> Lease:
        """What the job may do, and until when."""
        return self._actor.lease

    @property
    def cancel_requested(self) -> bool:
        """Whether the agent was told to stop; may be read from any thread.

        For work in threads, which no cancellation reaches: look at it between two steps.
        """
        return self._actor.stop_requested

    # --- authority --------------------------------------------------------------------------------

    async def authorize(self, namespace: str, target: str) -> str:
        """Ask whether the job may do something now, before it is done (P9.4).

        For operations that none of the guarded ones stands for. A refusal is said on the wire, as a tool_result
        with its code; the agent may catch what is raised and go on.

        Args:
            namespace: What kind of operation it is: ``fs.read``, ``net.fetch``, or one of the agent's own.
            target: What it is done to: an absolute path, a URL, a name.

        Returns:
            The target in its canonical form, which is what was allowed: use this one.

        Raises:
            PermissionDeniedError: The lease does not cover it, or the target has no canonical form.
            LeaseExpiredError: The lease has expired; the job is ending.
            BudgetExhaustedError: The budget is used up.
            JobEndedError: The job has ended.

        Cancellation: a checkpoint; nothing was asked.
        """
        return await self._guard(namespace, target)

    def tool_call(self, tool: str, args: JSONValue = None, *, call_id: str | None = None) -> ToolCall:
        """Call a tool: ``async with job.tool_call("search", {"q": q}) as call: call.result = await search(q)``.

        Asks for ``tool.call`` of the tool, emits ``tool_call``, runs the body, and emits one ``tool_result``: with
        what was set as ``call.result``, or with the error that left the body. An ARCPError keeps its code, a budget
        error of an upstream is BUDGET_EXHAUSTED (P9.9), a cancellation CANCELLED; of any other the client hears that
        the tool failed, and the runtime's log has the rest. Whatever left the body leaves as it is.

        Args:
            tool: The tool's name.
            args: What it is called with, any JSON value; ``None`` goes out as an empty object.
            call_id: The call's id, 1 to 256 characters; ``None`` mints one.

        Returns:
            The call; ``call.headers`` makes what the tool does a part of the job's trace.

        Raises:
            ARCPError: On entering, as :meth:`authorize`; the body does not run, and only the refusal was emitted.
            InvalidRequestError: ``args``, or on leaving the result, is not JSON or too large; the latter is the
                call's error too.
            JobEndedError: On leaving: the job ended while the body ran, so nobody hears of the result.

        Cancellation: both ends are checkpoints; on leaving, the result is out before.
        """
        return ToolCall(self._actor, self._guard, self._emit_encoded, tool=tool, args=args, call_id=call_id)

    async def use_model(self, name: str) -> ModelUse:
        """Ask whether the job may use a model, ``model.use`` (P9.8).

        Args:
            name: Its identifier, as the lease's patterns name models.

        Returns:
            The name to use, and headers that make the use a part of the job's trace.

        Raises:
            ARCPError: As :meth:`authorize`.

        Cancellation: a checkpoint; nothing was asked.
        """
        return await allow_model(self._actor, self._guard, name)

    async def fetch_allowed(self, url: str) -> AllowedFetch:
        """Ask whether the job may fetch a URL, ``net.fetch``, with whatever HTTP client the agent has.

        Args:
            url: An absolute http or https URL.

        Returns:
            The canonical URL, which is what to fetch, and headers that make it a part of the job's trace. It allows no
            redirect: fetch without following, and ask its ``redirect(location)`` for each hop.

        Raises:
            ARCPError: As :meth:`authorize`.

        Cancellation: a checkpoint; nothing was asked.
        """
        return await allow_fetch(self._actor, self._guard, url)

    @overload
    def open_file(
        self,
        path: str | os.PathLike[str],
        mode: TextMode = "r",
        *,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> GuardedFile[TextIOWrapper]: ...

    @overload
    def open_file(
        self, path: str | os.PathLike[str], mode: Literal["rb"], *, buffering: int = -1
    ) -> GuardedFile[BufferedReader]: ...

    @overload
    def open_file(
        self, path: str | os.PathLike[str], mode: Literal["wb", "ab", "xb"], *, buffering: int = -1
    ) -> GuardedFile[BufferedWriter]: ...

    @overload
    def open_file(self, path: str | os.PathLike[str], mode: str, **options: Any) -> GuardedFile[Any]: ...

    def open_file(self, path: str | os.PathLike[str], mode: str = "r", **options: Any) -> GuardedFile[Any]:
        """Open a file: ``async with job.open_file("/data/a.txt") as file: text = await file.read()``.

        Asks for ``fs.read`` (mode r), ``fs.write`` (w, a, x) or both (with +): of the path as it is given, and of the
        real path, links followed, of what is opened. Before both are allowed nothing is created, cut or waited for,
        whoever swaps links and directories meanwhile; only regular files are opened. Out of reach are hard links, and
        what is done with a file once it is open.

        Args:
            path: An absolute path.
            mode: As :func:`open` takes it.
            options: ``buffering``, ``encoding``, ``errors`` and ``newline``, as :func:`open` takes them.

        Returns:
            An asynchronous context manager that gives a file as :func:`trio.open_file` does, and closes it.

        Raises:
            ARCPError: On entering, as :meth:`authorize`; PERMISSION_DENIED too where a link leads out of the lease, the
                path leads to a device, a FIFO or a socket, or the platform (Windows) has no way to be sure.
            InvalidRequestError: ``mode`` is none.
            OSError: As :func:`open`, of what the lease covers alone.

        Cancellation: entering is a checkpoint, and nothing stays open; leaving closes the file in any case.
        """
        return GuardedFile(self._actor, self._guard, self._tell_refusal, path, mode, **options)

    async def _guard(self, namespace: str, target: str, *, call_id: str | None = None) -> str:
        """Check one operation; a refusal is emitted under ``call_id``, or one minted for it, and raised."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            canonical = self._actor.authority.check(namespace, target)
        except JobEndedError:
            raise
        except ARCPError as exc:
            refusal = exc
        else:
            await self._yield_if_due()
            return canonical
        return await self._refuse(refusal, call_id)

    async def _refuse(self, refusal: ARCPError, call_id: str | None = None) -> NoReturn:
        """Emit a refusal, then raise it."""
        self._tell_refusal(refusal, call_id)
        # Behind it, as with every event: who asks on and on waits for its slow reader too.
        await self._wait_for_room()
        await self._yield_if_due()
        raise refusal

    def _tell_refusal(self, error: ARCPError, call_id: str | None = None) -> None:
        """Emit a refusal, without a checkpoint: what an expiry refuses is told before the expiry stops the agent."""
        body: dict[str, JSONValue] = {
            "call_id": call_id or self._actor.services.ids.call(),
            "error": {
                "code": error.code,
                "message": error.message,
                "retryable": sendable_retryable(error.code, error.retryable),
            },
        }
        self._actor.append_event("tool_result", self._encode(body), None)

    @property
    def credentials(self) -> tuple[Credential, ...]:
        """What the job was given for upstreams (section 9.8), with the present values; none once its end is decided.

        Take one from here each time it is presented: a rotation changes its value. There are none where the submitting
        client has not negotiated them.
        """
        return () if self._actor.credentials is None else self._actor.credentials.current

    async def rotate_credential(self, credential_id: str) -> Credential:
        """Give a credential another value; the prior one is revoked (P9.10).

        Args:
            credential_id: Which of :attr:`credentials`.

        Returns:
            The credential with its new value, which the submitting session was told of.

        Raises:
            InvalidRequestError: The job has no such credential.
            InternalError: There is no new value, and the prior one stays good.
            JobEndedError: The job is ending.

        Cancellation: the rotation goes on.
        """
        provisioning = self._actor.services.provisioning
        if provisioning is None:
            await trio.lowlevel.checkpoint()
            raise InvalidRequestError("credential_id: the job has no credentials")
        return await provisioning.rotate(self._actor, credential_id)

    @property
    def budget(self) -> Mapping[str, Decimal]:
        """What is left of each currency that the job's costs are charged in, its own or an ancestor's.

        Below zero where more was spent than there was; what is reserved is still there. Empty without a budget.
        """
        return self._actor.authority.budget.applicable()

    def reserve(self, amounts: Mapping[str, Decimal | float | str]) -> BudgetHold:
        """Hold money ahead of a call: ``async with job.reserve({"USD": "0.10"}) as held: await held.charge(…)``.

        Concurrent reservations never take more than there is (P9.7). Entering raises :class:`BudgetExhaustedError`
        where the amounts are not there, all of them, or where there is a budget and it has no such currency; the
        refusal is said on the wire as that of a guarded operation is. Without any budget nothing is held or refused.
        Costs that are reported with :meth:`metric` are charged beside what is held.

        Args:
            amounts: By currency: a Decimal, an int, a float, or a string like ``"0.10"``.
        """
        return BudgetHold(partial(self._claim, amounts), self._report)

    async def _claim(self, amounts: Mapping[str, Decimal | float | str]) -> Reservation:
        await trio.lowlevel.checkpoint_if_cancelled()
        # Before it is held: a cancellation behind that would leave it with nobody to give it back.
        await self._yield_if_due()
        try:
            return self._actor.authority.reserve(amounts)
        except (BudgetExhaustedError, LeaseExpiredError) as exc:
            refusal = exc
        return await self._refuse(refusal)

    # --- delegation -------------------------------------------------------------------------------

    async def delegate(
        self,
        agent: str,
        input: JSONValue = None,  # noqa: A002  # the protocol's name
        *,
        lease_request: Mapping[str, Sequence[str]] | None = None,
        expires_at: str | None = None,
        max_runtime_sec: float | None = None,
    ) -> Child:
        """Give a part of the work to another agent: a job of its own, which this one does not end before (section 10).

        The child belongs to the sessions that this job belongs to: they are told of it, get its events, and may cancel
        it. It has at most what this job has: its lease lies within this one's, what it may cost is held from this
        budget until it ends, and it does not live longer. Where this job has credentials, it gets its own. Nobody has
        to wait for it: an agent that returns has not ended before its children have, and one that fails or is stopped
        takes them along.

        A refusal is said on the wire, as a tool_result of this job under the delegation's id, and raised; the agent may
        catch it and go on. It leaves nothing else behind.

        Args:
            agent: ``name`` or ``name@version``; this job's lease must grant it under ``agent.delegate``, by the bare
                name unless the pattern has an ``@``.
            input: Any JSON value; the child gets a copy.
            lease_request: What the child may do, by namespace, ``cost.budget`` among them; ``None`` for nothing at all.
                Without a budget of its own it is charged to this job's.
            expires_at: When its lease ends, RFC 3339 in UTC; ``None`` for when this job's does.
            max_runtime_sec: Seconds after which it is timed out; ``None`` for no such limit.

        Raises:
            PermissionDeniedError: The lease does not grant the agent; or more than ``Limits.delegation_depth``
                generations, 8 unless it was set, would stand below the job that was submitted: ``details`` names the
                limit then.
            LeaseExpiredError: This job's lease has expired; the job is ending.
            BudgetExhaustedError: This job's budget is used up.
            LeaseSubsetViolationError: The child would have more than this job: a wider pattern, a larger budget than
                remains, a later end.
            AgentNotAvailableError: There is no such agent, or none for this principal.
            AgentVersionNotAvailableError: The agent has no such version.
            InternalError: ``Limits.children`` of this job run already, or as many jobs as there may be; the child's
                credentials could not be issued; or the runtime shuts down. Retryable; ``details`` names a limit.
            InvalidRequestError: An argument is not valid. One of another type, or an input that is not JSON or too
                large for a frame, is the agent's own fault and raised alone.
            JobEndedError: This job is being stopped, or has ended.

        Cancellation: a checkpoint; nothing was delegated.
        """
        actor = self._actor
        delegation = Delegation(
            actor.services.ids.delegation(),
            agent,
            input,
            lease_request=lease_request,
            expires_at=expires_at,
            max_runtime_sec=max_runtime_sec,
            limits=actor.services.limits,
        )
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._wait_for_room()
        try:
            child = delegation.start(actor) if actor.credentials is None else await delegation.provision(actor)
        except ARCPError as exc:
            refusal = exc
        else:
            await self._yield_if_due()
            return child
        return await self._refuse(refusal, delegation.delegate_id)
