"""Provisioned credentials (section 9.8): what a job is given for an upstream, and who issues and revokes it.

Theory of operation. A :class:`Provisioner` is written by whoever runs the upstream. It is asked for the credentials of
a job and returns :class:`IssuedCredential` objects, each with a *handle*: the reference with which it can be revoked.
The runtime holds what came back against the job's lease (:func:`find_excess`), writes the handles down, and hands out
:class:`Credential` objects: what the wire shows, with a value that is a :class:`Secret` and is presented to its own
endpoint alone.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn, Protocol

import attrs

from ..wire.errors import ARCPError, InvalidRequestError, PermissionDeniedError
from ..wire.jsontext import JSONValue, encode_json
from ..wire.timestamps import parse_timestamp
from .budget import parse_budget
from .lease import Lease

__all__ = [
    "Credential",
    "CredentialConstraints",
    "CredentialRequest",
    "IssuedCredential",
    "Provisioner",
    "ProvisioningError",
    "Secret",
    "find_excess",
]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


class Secret:
    """A text that no repr, log line, copy on disk or message of an exception shows.

    Args:
        value: The text, not empty.

    Two secrets compare in constant time; a secret is equal to no plain text. It cannot be pickled. What its copies show
    is up to whoever calls :meth:`reveal`.

    Raises:
        TypeError: It is no text.
        ValueError: It is empty.
    """

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"a secret is a text, got {type(value).__name__}")
        if not value:
            raise ValueError("a secret must not be empty")
        self.__value = value

    def reveal(self) -> str:
        """Return the text."""
        return self.__value

    def __repr__(self) -> str:
        return "<Secret>"

    def __format__(self, format_spec: str) -> str:
        # An f-string with a width must not get at the text either.
        return format(repr(self), format_spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        mine, theirs = (each.reveal().encode("utf-8", "surrogatepass") for each in (self, other))
        return hmac.compare_digest(mine, theirs)

    def __hash__(self) -> int:
        return hash((Secret, self.__value))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled: it would be on a disk or on a wire by then")


def _to_secret(value: str | Secret) -> Secret:
    return value if isinstance(value, Secret) else Secret(value)


class ProvisioningError(Exception):
    """What a provisioner raises when the upstream does not do what it was asked for.

    Args:
        message: For operators: it is logged and stands in the ledger, so it must hold no secret. No client sees it. Of
            any other exception the class alone is noted, because its text may hold one.
        permanent: Whether trying again is of no use.
    """

    def __init__(self, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


@attrs.frozen(kw_only=True)
class CredentialConstraints:
    """What the upstream has confirmed to enforce on a credential (section 9.8.3); ``None`` for what it does not.

    Attributes:
        budget: Amounts as in a lease: ``("USD:5.00",)``.
        models: Patterns of the models, as in a lease.
        expires_at: When the credential dies by itself, RFC 3339 in UTC.
    """

    budget: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    expires_at: str | None = None

    def to_wire(self) -> dict[str, JSONValue]:
        """Return the form of section 9.8.1; the models under the other name that is read too (interop.md, 3.19)."""
        wire: dict[str, JSONValue] = {}
        if self.budget is not None:
            wire["cost.budget"] = list(self.budget)
        if self.models is not None:
            wire["model.use"] = wire["allowed_models"] = list(self.models)
        if self.expires_at is not None:
            wire["expires_at"] = self.expires_at
        return wire


@attrs.frozen(kw_only=True)
class CredentialRequest:
    """What credentials are for: the job, and what its lease leaves of it when they are issued.

    Attributes:
        job_id: The one job; :meth:`Provisioner.revoke_job` names it.
        principal: Whose job it is.
        agent: The resolved agent, ``name@version``.
        lease: The grants: namespaces to patterns.
        budget: What is left to spend, by currency; a currency that is not here has no limit.
        models: The patterns of the models; empty for none, ``None`` for any.
        expires_at: When the lease ends, RFC 3339 in UTC; ``None`` if it does not by itself.
        trace_id: The job's trace, 32 hex digits.
        trace_headers: What makes a request to the upstream a part of it (P11.1): ``traceparent``, and ``tracestate``
            where there is one.
    """

    job_id: str
    principal: str
    agent: str
    lease: Mapping[str, tuple[str, ...]]
    budget: Mapping[str, Decimal]
    models: tuple[str, ...] | None
    expires_at: str | None
    trace_id: str
    trace_headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class IssuedCredential:
    """A credential as a provisioner returns it.

    Attributes:
        handle: The reference with which it is revoked; it is written down, so the value must be no part of it.
        value: The credential itself, a text or a :class:`Secret`; of this job alone.
        endpoint: The base URL at which it is good.
        scheme: How it is presented; ``bearer`` is the one that the specification defines.
        profile: Which API the endpoint speaks: ``openai``, ``anthropic``, ``generic``; ``None`` says nothing.
        constraints: What the upstream has confirmed.
    """

    handle: str
    value: Secret = attrs.field(converter=_to_secret)
    endpoint: str
    scheme: str = "bearer"
    profile: str | None = None
    constraints: CredentialConstraints = CredentialConstraints()


class Provisioner(Protocol):
    """Issues and revokes credentials at an upstream, for :func:`arcp_trio.open_runtime`.

    Its methods run in tasks of the runtime, several at a time, and must be cancellable: a deadline bounds each call. A
    call that was cancelled or that raised may have done its work all the same, and is followed by another that revokes.
    What is no :class:`ProvisioningError` counts as a failure that may pass.
    """

    async def issue(self, request: CredentialRequest) -> Sequence[IssuedCredential]:
        """Mint the credentials of a job; an empty sequence for a job that needs none.

        Each must be for this job alone, live no longer than the lease, and allow no more than it (P9.11).

        Args:
            request: The job, and what its lease leaves of it.

        Raises:
            ProvisioningError: There are none. The submit is refused, and :meth:`revoke_job` called.

        Cancellation: likewise.
        """
        ...

    async def revoke(self, handle: str) -> None:
        """Revoke one credential, so that its value is good for nothing when this returns.

        Idempotent: a credential that is revoked already, or that the upstream does not know, is revoked.

        Args:
            handle: As :meth:`issue` or :meth:`rotate` returned it, perhaps to an earlier run of the program.

        Raises:
            ProvisioningError: It may still be good. Unless ``permanent`` it is tried again.

        Cancellation: as one that raised.
        """

    async def revoke_job(self, job_id: str) -> None:
        """Revoke whatever was issued for a job, whether or not :meth:`issue` has returned.

        For what nobody has a handle of: the process ended, or the call failed, between minting and writing down.
        Idempotent; raises as :meth:`revoke`.

        Args:
            job_id: As :meth:`issue` was given it, perhaps by an earlier run of the program.

        Cancellation: as one that raised.
        """

    async def rotate(self, handle: str, request: CredentialRequest) -> IssuedCredential:
        """Mint a new value in the place of one credential of a running job.

        The prior value must stay good: it is revoked, by its handle, when the new one is written down. An upstream that
        can only replace it returns the same handle, and nothing is revoked.

        Args:
            handle: The credential's.
            request: The job, and what its lease leaves of it now.

        Raises:
            ProvisioningError: There is none; the job goes on with the prior value.

        Cancellation: as one that raised.
        """
        ...


@attrs.frozen(kw_only=True)
class Credential:
    """A credential of a running job, as its submitter and its agent hold it.

    Attributes:
        id: Stable within the job; a rotation keeps it.
        scheme: How it is presented: ``bearer``.
        value: The credential itself.
        endpoint: The base URL at which it is good, and to which alone it may be presented.
        profile: Which API the endpoint speaks, where that is said.
        constraints: What the upstream enforces, as the wire says it; what is not here may be enforced elsewhere.
    """

    id: str
    scheme: str
    value: Secret
    endpoint: str
    profile: str | None = None
    constraints: Mapping[str, JSONValue] = attrs.field(factory=dict)

    def present(self, url: str) -> str:
        """Return the value, to be presented at a URL.

        Args:
            url: Where the request goes: of the same origin as the endpoint, and its path below the endpoint's,
                segment by segment. Each hop of a redirect is another URL.

        Raises:
            PermissionDeniedError: It is another endpoint's, or no URL that can be told apart from one.
        """
        if not _lies_below(self.endpoint, url):
            raise PermissionDeniedError(f"credential {self.id:.64} is for {self.endpoint:.200} alone")
        return self.value.reveal()

    def headers_for(self, url: str) -> dict[str, str]:
        """Return the headers that authorize a request to a URL.

        Args:
            url: As for :meth:`present`.

        Raises:
            PermissionDeniedError: As :meth:`present`.
            InvalidRequestError: The scheme is not ``bearer``, or the value fits into no header.
        """
        value = self.present(url)
        if self.scheme != "bearer" or not _HEADER_VALUE.fullmatch(value):
            raise InvalidRequestError(f"credential {self.id:.64}: not a bearer token; see present()")
        return {"Authorization": f"Bearer {value}"}

    def to_wire(self) -> dict[str, JSONValue]:
        """Return the form of section 9.8.1, with the value in it."""
        wire: dict[str, JSONValue] = {
            "id": self.id,
            "scheme": self.scheme,
            "value": self.value.reveal(),
            "endpoint": self.endpoint,
        }
        if self.profile is not None:
            wire["profile"] = self.profile
        if self.constraints:
            wire["constraints"] = dict(self.constraints)
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, JSONValue]) -> Credential:
        """Read the form of section 9.8.1.

        Args:
            wire: One of ``credentials`` in job.accepted.

        Raises:
            InvalidRequestError: A required field is missing or not a text; says which, and nothing of the value.
        """
        texts: dict[str, str] = {}
        for name in ("id", "scheme", "value", "endpoint"):
            text = wire.get(name)
            if not isinstance(text, str) or not text:
                raise InvalidRequestError(f"$.payload.credentials: expected a text in {name}")
            texts[name] = text
        profile, constraints = wire.get("profile"), wire.get("constraints")
        return cls(
            id=texts["id"],
            scheme=texts["scheme"],
            value=Secret(texts["value"]),
            endpoint=texts["endpoint"],
            profile=profile if isinstance(profile, str) else None,
            constraints=constraints if isinstance(constraints, dict) else {},
        )


def _lies_below(endpoint: str, url: str) -> bool:
    """Say whether a URL has an endpoint's origin and a path below its path.

    Asked of a lease, so that there is one reading of URLs: what it cannot make canonical lies nowhere.
    """
    try:
        return _lease_of(endpoint).covers("net.fetch", url)
    except InvalidRequestError:
        return False


def _lease_of(endpoint: str) -> Lease:
    if "*" in endpoint or "?" in endpoint or "#" in endpoint:
        raise InvalidRequestError("endpoint: expected a URL without '*', query and fragment")
    return Lease.read({"net.fetch": (f"{endpoint.rstrip('/')}/**",)}, None, now_ms=0)


def find_excess(issued: object, request: CredentialRequest, *, max_bytes: int) -> str | None:
    """Say what is wrong with a credential that a provisioner returned; ``None`` for one that may be handed out (P9.11).

    A credential that allows more, or lives longer, than its job's lease is refused (C14). The answer holds no secret.

    Args:
        issued: What came back.
        request: What it is for.
        max_bytes: The largest form on the wire.
    """
    if not isinstance(issued, IssuedCredential):
        return f"expected an IssuedCredential, got {type(issued).__name__}"
    value = issued.value.reveal()
    texts = {"handle": issued.handle, "value": value, "endpoint": issued.endpoint, "scheme": issued.scheme}
    for name, text in texts.items():
        if not isinstance(text, str) or not text or _CONTROL.search(text):
            return f"{name}: expected a text without control characters"
    if value in issued.handle:
        return "handle: the value is in it, and it would be written down"
    credential = Credential(id="", scheme=issued.scheme, value=issued.value, endpoint=issued.endpoint)
    try:
        size = len(encode_json({**credential.to_wire(), **issued.constraints.to_wire(), "profile": issued.profile}))
        _lease_of(issued.endpoint)
    except (ValueError, ARCPError):
        return "expected texts and an http or https endpoint"
    if size > max_bytes:
        return f"{size} bytes, and the most is {max_bytes}: see credential_bytes"
    return _excess_of(issued.constraints, request)


def _excess_of(confirmed: CredentialConstraints, request: CredentialRequest) -> str | None:
    """Say in which way confirmed constraints are wider than the lease."""
    if confirmed.expires_at is not None:
        try:
            expires_at = parse_timestamp(confirmed.expires_at)
        except ValueError:
            return "expires_at: expected a time in UTC like 2026-05-13T19:42:13.000Z"
        if request.expires_at is not None and expires_at > parse_timestamp(request.expires_at):
            return f"expires_at: {confirmed.expires_at} is later than the lease's {request.expires_at}"
    try:
        budget = parse_budget(confirmed.budget or (), "cost.budget")
        models = Lease.read({"model.use": confirmed.models} if confirmed.models else {}, None, now_ms=0)
    except ARCPError as exc:
        return exc.message
    for currency, amount in budget.items():
        # A job without any budget may spend; one with a budget may spend in its currencies alone.
        if request.budget and amount > max(request.budget.get(currency, Decimal(0)), Decimal(0)):
            return f"cost.budget: {currency}:{amount} is more than the lease leaves"
    if request.models is not None:
        return models.excess_over(Lease({"model.use": request.models}))
    return None
