"""A part of a job's work goes to another agent: what is checked, and how the child comes into being (section 10).

Theory of operation. Everything from the first check to the child's place in the directory is one synchronous step
(:meth:`Delegation.start`), so what was checked still holds when the child is there, and nobody sees a part of it. What
is refused leaves nothing behind: no job, no held budget, no event of a child, no credential.

A child whose parent has credentials gets its own, and they have to be waited for (:meth:`Delegation.provision`). Its
budget is held from the first check on; what may have changed by then is checked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..audit import audit
from ..authority.budget import parse_budget
from ..authority.lease import Lease
from ..limits import Limits
from ..wire.errors import (
    ARCPError,
    InternalError,
    InvalidRequestError,
    JobEndedError,
    LeaseSubsetViolationError,
    MessageTooLargeError,
    PermissionDeniedError,
)
from ..wire.jsontext import JSONValue, decode_json, encode_json
from .agents import Agent
from .children import Child
from .lifecycle import Phase
from .spec import JobSpec, check_lease_size, check_max_runtime

if TYPE_CHECKING:
    from .actor import JobActor

__all__ = ["Delegation"]

_PATH = "$.body"
_NAMESPACE = "agent.delegate"
_BUDGET = "cost.budget"
# What stands around the event in its frame, and the names in its body, generously.
_FRAME_OVERHEAD = 2048


def _read_grants(given: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]]:
    """Return a lease request as it goes over the wire; what its patterns say is not looked at here.

    Raises:
        InvalidRequestError: It is no mapping from strings to sequences of strings.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidRequestError(f"{_PATH}.lease_request: expected a mapping, got {type(given).__name__}")
    grants: dict[str, list[str]] = {}
    for namespace, patterns in given.items():
        path = f'{_PATH}.lease_request."{namespace!s:.100}"'
        # A string is a sequence of strings too: of its characters, "*" and "/" among them.
        if type(namespace) is not str or isinstance(patterns, str) or not isinstance(patterns, Sequence):
            raise InvalidRequestError(f"{path}: expected a list of patterns, got {type(patterns).__name__}")
        if any(type(pattern) is not str for pattern in patterns):
            raise InvalidRequestError(f"{path}: expected strings")
        grants[namespace] = list(patterns)
    return grants


class Delegation:
    """What an agent asks for, checked as far as that needs no job.

    Args:
        delegate_id: Its id.
        agent: ``name`` or ``name@version``.
        value: The child's input, any JSON value: the child gets a copy.
        lease_request: What the child may do; ``None`` for nothing.
        expires_at: Until when; ``None`` for as long as its parent.
        max_runtime_sec: After how many seconds it is timed out.
        limits: The runtime's bounds.

    Raises:
        InvalidRequestError: One is of another type, or the input is not JSON.
        MessageTooLargeError: The event that tells of it would be larger than a frame may be (P4.4).
    """

    def __init__(
        self,
        delegate_id: str,
        agent: str,
        value: JSONValue,
        *,
        lease_request: Mapping[str, Sequence[str]] | None,
        expires_at: str | None,
        max_runtime_sec: float | None,
        limits: Limits,
    ) -> None:
        for name, text in (("agent", agent), ("expires_at", "" if expires_at is None else expires_at)):
            if type(text) is not str:
                raise InvalidRequestError(f"{_PATH}.{name}: expected a string, got {type(text).__name__}")
        check_max_runtime(max_runtime_sec, f"{_PATH}.max_runtime_sec")
        self.delegate_id = delegate_id
        self.agent = agent
        self.grants = _read_grants(lease_request)
        self.expires_at = expires_at
        self.max_runtime_sec = max_runtime_sec
        constraints = {} if expires_at is None else {"lease_constraints": {"expires_at": expires_at}}
        try:
            # A copy of its own: what the parent's agent does with its value later is not the child's input (T22).
            self._value = encode_json(value, within=2)
            self._lease = encode_json({"lease_request": self.grants, **constraints}, within=1)
        except ValueError as exc:
            raise InvalidRequestError(f"{_PATH}: {exc}") from None
        size = len(self._value) + len(self._lease) + len(agent) + _FRAME_OVERHEAD
        if size > limits.send_bytes:
            raise MessageTooLargeError(f"{_PATH}: about {size} bytes; a frame has at most {limits.send_bytes}")

    def start(self, parent: JobActor) -> Child:
        """Check the delegation against what its parent may do, and start the child. No checkpoint.

        Raises:
            ARCPError: It is refused; nothing has changed.
        """
        try:
            child = self._start(parent, self._specify(parent))
        except ARCPError as exc:
            self._audit("denied", parent, f"{self.agent[:256]!r}, {exc.code}")
            raise
        self._audit("granted", parent, f"{child.agent} as {child.job_id}")
        return child

    async def provision(self, parent: JobActor) -> Child:
        """As :meth:`start`, for a child that gets credentials of its own (section 9.8.2).

        Raises:
            ARCPError: It is refused; what was issued for it is being revoked.

        Cancellation: likewise; nothing was delegated.
        """
        provisioning, above = parent.services.provisioning, parent.credentials
        assert provisioning is not None
        assert above is not None
        spec: JobSpec | None = None
        started = False
        try:
            spec = self._specify(parent)
            # The parent's end waits for what a failure leaves to be revoked: it must not be live behind it (P10.3).
            spec = await provisioning.issue_in_time(spec, above.retire)
            # What others may have changed meanwhile.
            self._check_running(parent)
            self._check_room(parent)
            child = self._start(parent, spec)
            started = True
            self._audit("granted", parent, f"{child.agent} as {child.job_id}")
            return child
        except ARCPError as exc:
            self._audit("denied", parent, f"{self.agent[:256]!r}, {exc.code}")
            raise
        finally:
            if not started and spec is not None:
                if spec.credentials is not None:
                    spec.credentials.abandon(above.retire)
                if spec.budget is not None:
                    spec.budget.settle()

    @staticmethod
    def _audit(decision: str, parent: JobActor, detail: str) -> None:
        audit(decision, "delegate", principal=parent.principal, job_id=parent.job_id, detail=detail)

    @staticmethod
    def _check_running(parent: JobActor) -> None:
        if parent.state.phase is not Phase.RUNNING:
            # In stopping as well: who is told to stop must not begin anything (P10.3).
            raise JobEndedError("the job is ending: it can delegate nothing any more")

    @staticmethod
    def _check_room(parent: JobActor) -> None:
        services = parent.services
        if len(parent.children) >= services.limits.children:
            raise InternalError(
                f"{len(parent.children)} children of this job are running, the limit children",
                details={"limit": "children", "value": services.limits.children},
            )
        services.directory.check_room(parent.principal)

    def _specify(self, parent: JobActor) -> JobSpec:
        """Check the delegation, and hold the child's budget.

        Raises:
            ARCPError: It is refused; nothing is held.
        """
        self._check_running(parent)
        services = parent.services
        agent = self._resolve(parent)
        if parent.depth >= services.limits.delegation_depth:
            raise PermissionDeniedError(
                f"{parent.depth} generations stand above this job, the limit delegation_depth",
                details={"limit": "delegation_depth", "value": services.limits.delegation_depth},
            )
        lease = self._read_lease(parent)
        self._check_room(parent)
        budget = parent.authority.budget.delegate(
            parse_budget(lease.grants.get(_BUDGET, ()), f'{_PATH}.lease_request."{_BUDGET}"')
        )
        return JobSpec(
            agent=agent,
            input=decode_json(self._value),
            principal=parent.principal,
            owner=parent.owner,
            # The agent's own span, where it has one: the child's stands beneath it.
            trace=parent.trace.here(),
            allowed_agents=parent.allowed_agents,
            max_runtime_sec=self.max_runtime_sec,
            lease=lease,
            budget=budget,
            parent=parent,
            delegate_id=self.delegate_id,
        )

    def _start(self, parent: JobActor, spec: JobSpec) -> Child:
        """Start the child. No checkpoint.

        Raises:
            ARCPError: The runtime closes; nothing has changed, and nothing is held any more.
        """
        children: list[Child] = []

        def accept(actor: JobActor) -> None:
            # In every stream in this order: the delegation, the child's acceptance, its events.
            parent.append_event("delegate", self._body(actor), None)
            children.append(parent.children.add(actor))
            parent.feed.tell_child_started(actor)
            # What is held for the child is a change of what remains.
            parent.report_budget()

        try:
            parent.services.start_job(spec, accept)
        except ARCPError:
            if spec.budget is not None:
                spec.budget.settle()
            raise
        return children[0]

    def _resolve(self, parent: JobActor) -> Agent:
        """Return the agent, if the job may delegate to it: who may not is not told whether there is one."""
        try:
            agent = parent.services.agents.resolve(self.agent, {}, parent.allowed_agents, path=f"{_PATH}.agent")
        except InvalidRequestError:
            raise
        except ARCPError:
            parent.authority.check(_NAMESPACE, self.agent)
            raise
        parent.authority.check(_NAMESPACE, agent.resolved)
        return agent

    def _read_lease(self, parent: JobActor) -> Lease:
        """Return the child's lease: what was asked for, within the parent's, and not longer (P9.5, P10.2).

        Raises:
            InvalidRequestError: It is not valid, or too large.
            LeaseSubsetViolationError: It is more than the parent's.
        """
        services, above = parent.services, parent.authority.lease
        now_ms = int(services.clock.seconds() * 1000)
        lease = Lease.read(self.grants, self.expires_at, now_ms=now_ms, path=_PATH)
        check_lease_size(lease, services.limits, f"{_PATH}.lease_request")
        lease = lease.inherit(above, open_models=services.open_models)
        excess = lease.excess_over(above, open_models=parent.authority.open_models)
        if excess is not None:
            raise LeaseSubsetViolationError(f"the child's lease is not within this job's: {excess}")
        return lease

    def _body(self, child: JobActor) -> bytes:
        """Return the body of the ``delegate`` event: both forms that are read, and no ``lease`` (X15)."""
        return b'{"delegate_id":%b,"child_job_id":%b,"agent":%b,"input":%b,%b' % (
            encode_json(self.delegate_id),
            encode_json(child.job_id),
            encode_json(child.agent.resolved),
            self._value,
            self._lease[1:],
        )
