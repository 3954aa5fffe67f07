"""The runtime: wires the floors together and owns every task.

Theory of operation. Four nurseries, one inside the other, live in one task that is shielded from the
caller of :func:`open_runtime`: services (timers, the pacer), connections, actors, agents. Leaving the
``async with``, by whatever way, runs :func:`arcp_trio.shutdown.shut_down`; agents are stopped through their own
scopes and by nothing else, so every job still gets its terminal event. Only when all phases are over
does the shielded task end.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from ._version import __version__
from .authority.credentials import Credential, Provisioner
from .authority.translation import Translator
from .jobs.actor import JobActor
from .jobs.admission import Admissions
from .jobs.agents import Agents
from .jobs.directory import JobDirectory
from .jobs.pacer import Pacer
from .jobs.provisioning import Provisioning
from .jobs.spec import JobCounters, JobServices, JobSpec
from .limits import Limits
from .records import LedgerEntry
from .sessions.auth import Principal, TrustedPrincipal, Verifier
from .sessions.connection import Connection
from .sessions.directory import SessionDirectory
from .sessions.listing import JobListing
from .sessions.observation import ObservationPolicy
from .sessions.services import SessionServices
from .sessions.session import SessionParts
from .sessions.stream import WindowTotal
from .shutdown import shut_down
from .statistics import RuntimeStatistics
from .store.base import CredentialLedger
from .timers import Timers
from .tracing import find_spans
from .transports.base import CloseCode, Transport
from .wire.dialects import find_dialect
from .wire.errors import ConnectionLostError, InternalError, InvalidRequestError, JobEndedError, JobNotFoundError
from .wire.ids import IdFactory
from .wire.session_messages import CREDENTIALS_FEATURE, REPLIES_FEATURE, Peer
from .wire.timestamps import WallClock

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from .client.client import Client
    from .limits import ClientLimits
    from .spans import Spans

__all__ = ["Runtime", "open_runtime"]

logger = logging.getLogger("arcp_trio.runtime")

OFFERED_FEATURES = frozenset(
    {
        "heartbeat",
        "ack",
        "list_jobs",
        "subscribe",
        "lease_expires_at",
        "cost.budget",
        "model.use",
        "progress",
        "result_chunk",
        "agent_versions",
        REPLIES_FEATURE,
    }
)
"""What this runtime implements of :data:`arcp_trio.wire.session_messages.FEATURES` (P6.5)."""


class Runtime:
    """A runtime that is open. Made by :func:`open_runtime`."""

    def __init__(
        self,
        agents: Agents,
        *,
        limits: Limits,
        verifier: Verifier | None,
        observation: ObservationPolicy,
        open_models: bool,
        provisioner: Provisioner | None,
        ledger: CredentialLedger | None,
        on_unrevocable: Callable[[LedgerEntry], None] | None,
        translators: Sequence[Translator],
        name: str,
        ids: IdFactory,
        clock: WallClock,
        spans: Spans | None,
    ) -> None:
        self._limits = limits
        self._verifier = verifier
        self._ids = ids
        self._timers = Timers()
        self._pacer = Pacer(limits.slice_seconds)
        self._counters = JobCounters()
        self._directory = JobDirectory(limits, self._timers)
        self._sessions = SessionDirectory(limits)
        self._closing = False
        self._leave = trio.Event()
        self._shut_down = trio.Event()
        self._finished = trio.Event()
        self._body = trio.CancelScope()
        self._failure: BaseException | None = None
        self._listeners: dict[trio.CancelScope, None] = {}
        self._connections: dict[Connection, None] = {}
        self._no_connections = trio.Event()
        self._no_connections.set()
        self._disowned: dict[JobActor, None] = {}
        # Tasks start from here, not from the request that asks for them: a connection's context
        # variables must not live on in a job.
        self._context = contextvars.copy_context()
        self._admissions = Admissions(limits, self._directory, self._spawn_actor)
        self._provisioning: Provisioning | None = None
        features = OFFERED_FEATURES
        if provisioner is not None and ledger is not None:
            features |= {CREDENTIALS_FEATURE}
            self._provisioning = Provisioning(
                provisioner,
                ledger,
                limits=limits,
                timers=self._timers,
                ids=ids,
                clock=clock,
                spawn=self._spawn_actor,
                open_models=open_models,
                on_unrevocable=on_unrevocable,
            )
        self._job_services = JobServices(
            limits=limits,
            ids=ids,
            clock=clock,
            timers=self._timers,
            pacer=self._pacer,
            agents=agents,
            directory=self._directory,
            counters=self._counters,
            spans=spans,
            spawn=self._spawn_actor,
            spawn_agent=self._spawn_agent,
            start_job=self._start_job,
            interrupted=self.fail,
            disowned=self._note_disowned,
            open_models=open_models,
            provisioning=self._provisioning,
            translators=tuple(translators),
        )
        self._session_services = SessionServices(
            limits=limits,
            ids=ids,
            clock=clock,
            agents=agents,
            jobs=self._directory,
            sessions=self._sessions,
            listing=JobListing(self._directory, limits, observation),
            counters=self._counters,
            timers=self._timers,
            open_models=open_models,
            observation=observation,
            session_parts=SessionParts(
                limits=limits,
                ids=ids,
                clock=clock,
                timers=self._timers,
                spans=spans,
                total=WindowTotal(limits.windows_bytes),
                relieve=self._sessions.relieve,
                attached=self._sessions.note_attached,
                detached=self._sessions.note_waiting,
                ended=self._sessions.remove,
            ),
            features=features,
            admissions=self._admissions,
            provisioning=self._provisioning,
            runtime=Peer(name=name, version=__version__, kind="arcp-trio"),
            start_job=self._start_job,
            is_closing=lambda: self._closing,
        )

    # --- for users ----------------------------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        """The bounds it keeps."""
        return self._limits

    @property
    def verifier(self) -> Verifier | None:
        """Who decides on the tokens of a gateway that is given no verifier of its own."""
        return self._verifier

    def statistics(self) -> RuntimeStatistics:
        """Return a snapshot."""
        counters, provisioning = self._counters, self._provisioning
        return RuntimeStatistics(
            jobs_running=self._directory.running,
            jobs_retained=self._directory.retained,
            submits_waiting=self._directory.waiting,
            jobs_accepted=counters.accepted,
            terminals_published=counters.published,
            tear_downs=counters.torn_down,
            cancels_acknowledged=counters.cancels_acknowledged,
            cancels_refused=counters.cancels_refused,
            events_encoded=counters.encodings,
            bugs=counters.bugs,
            credentials_live=0 if provisioning is None else provisioning.issuer.live,
            credentials_issued=0 if provisioning is None else provisioning.issuer.issued,
            credentials_revoked=0 if provisioning is None else provisioning.revoker.counters.revoked,
            credentials_unrevoked=len(self.unrevoked_credentials()),
            credentials_failed=0 if provisioning is None else provisioning.revoker.counters.failed,
            sessions=len(self._sessions) - self._sessions.waiting,
            sessions_waiting=self._sessions.waiting,
            connections=len(self._connections),
            timers=len(self._timers),
            disowned_agents=tuple(f"{actor.agent.resolved} of {actor.job_id}" for actor in self._disowned),
        )

    def unrevoked_credentials(self) -> tuple[LedgerEntry, ...]:
        """Return which credentials are to be revoked and may still be good, oldest first (P9.10).

        Most are revoked a moment later. What was given up (``LedgerState.FAILED``) stays until the next start, which
        tries again; an operator can revoke it at the upstream, by its handle.
        """
        return () if self._provisioning is None else self._provisioning.revoker.unrevoked

    async def rotate_credential(self, job_id: str, credential_id: str) -> Credential:
        """Give a credential of a running job another value, and revoke the prior one (P9.10).

        The new value is written down first; then the job's agent and its submitting session get it.

        Args:
            job_id: The job.
            credential_id: Which of its credentials.

        Returns:
            The credential with its new value.

        Raises:
            JobNotFoundError: There is no such job.
            JobEndedError: It has ended, or is ending.
            InvalidRequestError: It has no such credential.
            InternalError: There is no new value, and the prior one stays good.

        Cancellation: the rotation goes on.
        """
        job = self._directory.find(job_id)
        if isinstance(job, JobActor) and self._provisioning is not None:
            return await self._provisioning.rotate(job, credential_id)
        await trio.lowlevel.checkpoint()
        if job is None:
            raise JobNotFoundError("job_id: no such job")
        if isinstance(job, JobActor):
            raise InvalidRequestError("credential_id: the job has no credentials")
        raise JobEndedError("the job has ended: its credentials were revoked")

    if TYPE_CHECKING:
        # Bound in arcp_trio/__init__.py, from arcp_trio/embedded.py: this floor does not know the client.
        def open_session(
            self,
            *,
            principal: str | Principal,
            name: str = "embedded",
            limits: ClientLimits | None = None,
        ) -> AbstractAsyncContextManager[Client]:
            """Open a session in this process; see :func:`arcp_trio.embedded.open_session`."""
            ...

    async def serve_transport(
        self,
        transport: Transport,
        *,
        verifier: Verifier | None = None,
        principal: str | Principal | None = None,
        compat: str | None = None,
    ) -> None:
        """Serve one connection over a transport of any kind, until it ends.

        Args:
            transport: Connected; closed when this returns.
            verifier: Who decides on its token; ``None`` takes the runtime's.
            principal: Instead of a verifier: whose connection it is, whatever token it shows.
            compat: The name of a dialect (:data:`arcp_trio.wire.dialects.DIALECTS`); ``None`` detects it.

        Raises:
            ValueError: There is no verifier and no principal, or no such dialect.

        Cancellation: the transport is closed at once; the jobs of its session go on.
        """
        if principal is not None:
            who = Principal(name=principal) if isinstance(principal, str) else principal
            verifier = TrustedPrincipal(who)
        verifier = verifier or self._verifier
        if verifier is None:
            raise ValueError("a connection needs a verifier or a principal")
        dialect = None if compat is None else find_dialect(compat)
        connection = Connection(transport, services=self._session_services, verifier=verifier, compat=dialect)
        self._connections[connection] = None
        if self._no_connections.is_set():
            self._no_connections = trio.Event()
        try:
            await connection.run()
        finally:
            del self._connections[connection]
            if not self._connections:
                self._no_connections.set()

    async def aclose(self) -> None:
        """Shut down in phases (:func:`arcp_trio.shutdown.shut_down`) and return when all terminal events are out.

        Leaving :func:`open_runtime` calls it. Idempotent; a second caller waits for the first. Agents that
        refuse to stop may still run: :meth:`statistics` names them.

        Cancellation: not cancellable; bounded by ``Limits.shutdown_seconds``.
        """
        self._closing = True
        self._leave.set()
        with trio.CancelScope(shield=True):
            await self._shut_down.wait()

    # --- for the gateway ----------------------------------------------------------------------------

    @property
    def at_connection_limit(self) -> bool:
        """Whether a further connection must be refused."""
        return self._closing or len(self._connections) >= self._limits.connections

    def spawn_connection(self, function: Callable[[], Awaitable[None]], name: str) -> None:
        """Start a connection's task among the runtime's: it outlives its listener.

        Raises:
            ConnectionLostError: The runtime has shut down.
        """
        if self._shut_down.is_set():
            # The nursery is cancelled, or gone.
            raise ConnectionLostError("the runtime has shut down")
        self._spawn(self._connection_nursery, function, name)

    async def accept_connections(
        self,
        handler: Callable[[trio.abc.Stream], Awaitable[None]],
        listeners: Sequence[trio.SocketListener | trio.SSLListener[trio.SocketStream]],
    ) -> None:
        """Accept streams until cancelled; each handler is a task of the runtime, and must not raise."""
        await trio.serve_listeners(handler, list(listeners), handler_nursery=self._connection_nursery)

    def fail(self, exc: BaseException) -> None:
        """End the runtime because of ``exc``, which leaves :func:`open_runtime` when all is shut down."""
        if self._failure is None:
            self._failure = exc
        self._body.cancel(reason="the runtime was interrupted")

    def add_listener(self, scope: trio.CancelScope) -> None:
        """Have a listener's scope cancelled in the first phase of a shutdown."""
        self._listeners[scope] = None
        if self._closing:
            scope.cancel(reason="the runtime is shutting down")

    def remove_listener(self, scope: trio.CancelScope) -> None:
        """Forget a listener that has ended."""
        self._listeners.pop(scope, None)

    # --- phases of a shutdown -----------------------------------------------------------------------

    def stop_listening(self) -> None:
        """Close the listeners, and refuse the submits that wait."""
        for scope in self._listeners:
            scope.cancel(reason="the runtime is shutting down")
        self._admissions.close()

    async def wait_jobs_ended(self) -> None:
        """Wait until no job runs."""
        await self._directory.wait_idle()

    def close_jobs(self, until: float) -> None:
        """Tell every job that the runtime closes."""
        for actor in self._directory.actors():
            actor.close(until)

    def bound_revocations(self, until: float) -> None:
        """Have no job's end wait for the revocation of its credentials past ``until``."""
        if self._provisioning is not None:
            self._provisioning.bound(until)

    def stop_revoking(self) -> None:
        """Leave what is not revoked yet to the next start, which finds it in the ledger."""
        if self._provisioning is not None:
            self._provisioning.revoker.close()

    def close_connections(self) -> None:
        """Let every connection flush and say goodbye."""
        for connection in list(self._connections):
            connection.close(CloseCode.GOING_AWAY, "the runtime is shutting down")

    async def wait_connections_closed(self) -> None:
        """Wait until no connection is open."""
        await self._no_connections.wait()

    def cancel_connections(self) -> None:
        """Cut the connections that are left."""
        self._connection_nursery.cancel_scope.cancel(reason="the runtime has shut down")

    # --- jobs ---------------------------------------------------------------------------------------

    def _start_job(self, spec: JobSpec, accept: Callable[[JobActor], None]) -> JobActor:
        """Make a job and start its actor. No checkpoint: ``accept`` runs before the actor's first step."""
        if self._closing:
            raise InternalError("the runtime is shutting down")
        actor = JobActor(spec.job_id or self._ids.job(), spec, self._job_services)
        self._directory.add(actor)
        self._counters.accepted += 1
        accept(actor)
        self._spawn_actor(actor.run, f"actor of {actor.job_id}")
        return actor

    def _spawn_actor(self, function: Callable[[], Awaitable[None]], name: str) -> None:
        self._spawn(self._actor_nursery, function, name)

    def _spawn_agent(self, function: Callable[[], Awaitable[None]], name: str) -> None:
        self._spawn(self._agent_nursery, function, name)

    def _spawn(self, nursery: trio.Nursery, function: Callable[[], Awaitable[None]], name: str) -> None:
        """Start a task: every one of the runtime's starts here, from the runtime's own context."""
        start: Callable[..., None] = nursery.start_soon
        self._context.run(start, _run_protected, function, name=name)

    def _note_disowned(self, actor: JobActor, disowned: bool) -> None:  # noqa: FBT001  # a callback
        if disowned:
            self._disowned[actor] = None
            logger.warning(
                "job %s: agent %s did not stop within its grace; it goes on alone",
                actor.job_id,
                actor.agent.resolved,
            )
        elif self._disowned.pop(actor, actor) is None:
            logger.info("job %s: its disowned agent has ended", actor.job_id)

    # --- tasks --------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _run_service(self, service: Callable[[], Awaitable[None]]) -> None:
        """Run the timers, the pacer or the revoker: a bug in one ends the runtime, loudly."""
        try:
            await service()
        except Exception as exc:
            logger.critical("a service of the runtime failed", exc_info=True)
            self.fail(exc)

    @trio.lowlevel.enable_ki_protection
    async def _supervise(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Hold the nurseries, shielded from whoever opened the runtime."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as services:
                services.start_soon(self._run_service, self._timers.run, name="arcp timers")
                services.start_soon(self._run_service, self._pacer.run, name="arcp pacer")
                if self._provisioning is not None:
                    services.start_soon(self._run_service, self._provisioning.revoker.run, name="arcp revoker")
                async with (
                    trio.open_nursery() as self._connection_nursery,
                    trio.open_nursery() as self._actor_nursery,
                    trio.open_nursery() as self._agent_nursery,
                ):
                    task_status.started()
                    # The phases run in this task and not in the one that leaves: control-C is delivered to
                    # a program's main task wherever it waits, and must not cut a shutdown in half.
                    await self._leave.wait()
                    try:
                        await shut_down(self, self._limits)
                    finally:
                        self._sessions.end_spans()
                        self._shut_down.set()
                    await self._finished.wait()
                    names = self.statistics().disowned_agents
                    if names:
                        logger.error("the runtime cannot be left until these agents end: %s", "; ".join(names))
                services.cancel_scope.cancel(reason="the runtime has shut down")

    def _begin_leaving(self) -> None:
        """Let the task that holds the nurseries shut down and end."""
        self._closing = True
        self._leave.set()
        self._finished.set()


@trio.lowlevel.enable_ki_protection
async def _run_protected(function: Callable[[], Awaitable[None]]) -> None:
    """Run a task of the runtime: control-C is for the program's own code, and for that of its agents."""
    await function()


@asynccontextmanager
async def open_runtime(
    agents: Agents,
    *,
    limits: Limits | None = None,
    verifier: Verifier | None = None,
    observation: ObservationPolicy | None = None,
    open_models: bool = False,
    provisioner: Provisioner | None = None,
    ledger: CredentialLedger | None = None,
    on_unrevocable: Callable[[LedgerEntry], None] | None = None,
    translators: Sequence[Translator] = (),
    name: str = "arcp-trio",
    ids: IdFactory | None = None,
    clock: WallClock | None = None,
    tracer_provider: TracerProvider | None = None,
) -> AsyncGenerator[Runtime, None]:
    """Open a runtime, as an asynchronous context manager.

    All its tasks live inside. On leaving, by whatever way, it shuts down in phases within
    ``limits.shutdown_seconds``: every job that was accepted gets its one terminal event.

    Args:
        agents: What it runs.
        limits: Its bounds; ``None`` for the defaults.
        verifier: Who decides on tokens; may be ``None`` for embedded use, a gateway then needs its own.
        observation: Who may observe whose jobs; ``None`` keeps principals apart (P7.19).
        open_models: Whether a lease that does not name ``model.use`` allows every model; else it allows none (P9.8).
        provisioner: Who issues credentials for jobs (section 9.8); ``None``: nobody, and the feature is not offered.
        ledger: Where it is written down which credentials must be revoked; for a provisioner, and durable (P9.10).
        on_unrevocable: Told of each credential that could not be revoked and was given up. Synchronous and short; what
            it raises is logged. :meth:`Runtime.unrevoked_credentials` shows the same.
        translators: Functions that say what an exception of an agent or a tool is in terms of the protocol: each
            returns an ARCPError or ``None``. They are asked in this order, before the one that recognises budget
            errors of upstream services (402; 429 with a text or code about a budget), which become BUDGET_EXHAUSTED.
        name: How it names itself in a welcome.
        ids: Where ids come from; tests give their own.
        clock: The time of day; tests give their own.
        tracer_provider: Where the spans of its sessions, jobs and guarded operations go (P11.1); ``None`` for the
            global one, where OpenTelemetry is installed. It stays the caller's, to flush and to shut down.

    Yields:
        The runtime, which serves and runs jobs from now on.

    Raises:
        ValueError: There is a provisioner and no durable ledger, or a ledger and no provisioner.
        KeyboardInterrupt: Control-C reached an agent; raised after the shutdown.

    With a provisioner it revokes first what earlier runs have left in the ledger; that takes at most
    ``limits.revocation_seconds``, and goes on behind it. What reading the ledger raises leaves as it is.

    Whatever the body raises leaves as it is, not in a group.

    Cancellation: from outside, it shuts down as above, and then the cancellation goes on. An agent that refuses to
    end (a thread, a shield) keeps the block from being left; its name is logged, and its job has ended.
    """
    if (provisioner is None) != (ledger is None) or (ledger is not None and not ledger.durable):
        # A credential that nobody remembers cannot be revoked (section 14).
        raise ValueError("a provisioner needs a durable ledger, and a ledger a provisioner")
    outstanding = [] if ledger is None else await ledger.outstanding()
    runtime = Runtime(
        agents,
        limits=limits or Limits(),
        verifier=verifier,
        observation=observation or ObservationPolicy(),
        open_models=open_models,
        provisioner=provisioner,
        ledger=ledger,
        on_unrevocable=on_unrevocable,
        translators=translators,
        name=name,
        ids=ids or IdFactory(),
        clock=clock or WallClock(),
        spans=find_spans(tracer_provider),
    )
    body_error: BaseException | None = None
    try:
        async with trio.open_nursery() as host:
            # Shielded, for an instant: a start that is cancelled waits for its task, which waits to be told to leave.
            with trio.CancelScope(shield=True):
                await host.start(runtime._supervise, name="arcp runtime")  # noqa: SLF001
            try:
                with runtime._body:  # noqa: SLF001
                    if runtime._provisioning is not None:  # noqa: SLF001
                        await runtime._provisioning.recover(outstanding)  # noqa: SLF001
                    yield runtime
            except BaseException as exc:  # noqa: BLE001, ASYNC103  # raised below, outside of the nursery that would wrap it
                body_error = exc
            runtime._begin_leaving()  # noqa: SLF001
    except BaseExceptionGroup as group:
        # Control-C while the nursery waited for the shutdown, which went on to its end.
        interrupts, rest = group.split(KeyboardInterrupt)
        if rest is not None:
            raise
        assert interrupts is not None
        runtime.fail(KeyboardInterrupt())
    if runtime._failure is not None:  # noqa: SLF001
        raise runtime._failure from body_error  # noqa: SLF001
    if body_error is not None:
        raise body_error
