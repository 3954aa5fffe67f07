"""The credentials of one job while it runs: the one home of their values (P9.10).

Everything that shows a value asks here each time it does: the job's agent, the submitting session's listing, and the
frames of its stream, which are kept without it (:mod:`arcp_trio.wire.withheld`). So closing this, the first thing that
a job's tear-down does, is what makes all of them forget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import attrs
import trio

from ..authority.credentials import Credential, CredentialRequest
from ..records import LedgerEntry
from ..wire.codec import encode_payload
from ..wire.envelope import encode_tail
from ..wire.errors import ARCPError
from ..wire.events import CREDENTIAL_ROTATED, Status
from ..wire.jsontext import JSONValue, encode_json
from ..wire.withheld import Content, Withheld
from .revoker import Revocation, Revoker

__all__ = ["Confidant", "HeldCredential", "JobCredentials", "Rotation"]

# Behind the place of a secret in a frame: the ends of the payload and of the frame; in an event of the body too.
_ENDS_OF_PAYLOAD = 2
_ENDS_OF_BODY = 3


class Confidant(Protocol):
    """A session that was told the values: the submitter's. Synchronous; never fails."""

    def append_own(self, tail: Content) -> None:
        """Number a frame that is for this session alone."""


@attrs.define(eq=False)
class Rotation:
    """A rotation that is under way.

    Attributes:
        scope: What the end of the job cancels.
        done: Set when it is over.
        credential: What it led to.
        error: Why it led to nothing.
    """

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    done: trio.Event = attrs.field(factory=trio.Event)
    credential: Credential | None = None
    error: ARCPError | None = None


@attrs.define(eq=False)
class HeldCredential:
    """One credential of a job.

    Attributes:
        credential: As it is shown.
        entry: What the ledger has of its present value.
        rotation: The one that is under way.
    """

    credential: Credential
    entry: LedgerEntry
    rotation: Rotation | None = None


class JobCredentials:
    """The credentials of one job.

    All methods but :meth:`wait_revoked` are synchronous and never fail.

    Args:
        request: What they were issued for.
        held: The credentials.
        revoker: Who revokes them.
        closed: Told once that they are no longer live, with how many they were.

    Attributes:
        request: What they were issued for.
        is_closed: Whether the job's tear-down has begun: no value is told any more.
    """

    __slots__ = (
        "_closed",
        "_confidants",
        "_doubts",
        "_held",
        "_retired",
        "_revoker",
        "_rotations",
        "is_closed",
        "request",
    )

    def __init__(
        self,
        request: CredentialRequest,
        held: Iterable[HeldCredential],
        revoker: Revoker,
        closed: Callable[[int], None],
    ) -> None:
        self.request = request
        self.is_closed = False
        self._held = {each.credential.id: each for each in held}
        self._revoker = revoker
        self._closed = closed
        self._confidants: dict[Confidant, None] = {}
        self._retired: list[Revocation] = []
        self._doubts: list[LedgerEntry] = []
        self._rotations: list[Rotation] = []

    def __repr__(self) -> str:
        return f"<JobCredentials of {self.request.job_id}: {', '.join(self._held) or 'none'}>"

    # --- what shows them ----------------------------------------------------------------------------

    @property
    def current(self) -> tuple[Credential, ...]:
        """The credentials with their present values; none once the job's tear-down has begun."""
        return tuple(each.credential for each in self._held.values())

    def find(self, credential_id: str) -> HeldCredential | None:
        """Return a credential that is held."""
        return self._held.get(credential_id)

    def to_wire(self) -> tuple[dict[str, JSONValue], ...]:
        """Return what job.accepted shows of them, values included."""
        return tuple(each.to_wire() for each in self.current)

    def put_into(self, frame: bytes) -> Withheld:
        """Return a frame whose payload gets ``credentials``, as long as they are live, each time it is written."""
        return Withheld(frame, _ENDS_OF_PAYLOAD, self._field)

    def _field(self) -> bytes:
        return b',"credentials":%b' % encode_json(self.to_wire()) if self._held else b""

    def confide(self, confidant: Confidant) -> None:
        """Tell a session of each rotation from now on: it has the values."""
        self._confidants[confidant] = None

    def announce(self, credential_id: str, *, trace_id: str, timestamp: str) -> None:
        """Tell those who have the values that one was rotated: in their streams alone, without the job's number."""
        body = encode_payload(Status(phase=CREDENTIAL_ROTATED, message=credential_id))
        tail = encode_tail(
            "job.event",
            b'{"kind":"status","ts":"%b","body":%b,"id":%b}}'
            % (timestamp.encode(), body[:-1], encode_json(credential_id)),
            job_id=self.request.job_id,
            trace_id=trace_id,
            timestamp=timestamp,
            job_seq=None,
        )
        withheld = Withheld(tail, _ENDS_OF_BODY, lambda: self._rotated_fields(credential_id))
        for confidant in list(self._confidants):
            confidant.append_own(withheld)

    def _rotated_fields(self, credential_id: str) -> bytes:
        held = self._held.get(credential_id)
        if held is None:
            return b""
        # In all the places where a client may look for it (interop.md, 3.19).
        value = held.credential.value.reveal()
        return b',"value":%b,"details":%b' % (encode_json(value), encode_json({"id": credential_id, "value": value}))

    # --- rotations ----------------------------------------------------------------------------------

    def begin(self, held: HeldCredential) -> Rotation:
        """Begin a rotation."""
        rotation = held.rotation = Rotation()
        self._rotations.append(rotation)
        # Those that are over need no more waiting for: a job may rotate for days.
        self._retired = [each for each in self._retired if not each.done.is_set()]
        return rotation

    def end(self, held: HeldCredential, rotation: Rotation) -> None:
        """Take note that a rotation is over, and tell who waits for it."""
        held.rotation = None
        self._rotations.remove(rotation)
        rotation.done.set()

    def retire(self, revocation: Revocation) -> None:
        """Have the job's end wait for a revocation too."""
        self._retired.append(revocation)

    def doubt(self, intent: LedgerEntry) -> None:
        """Take note that more may have been issued than is known: at the job's end all of it is revoked."""
        if self.is_closed:
            self.retire(self._revoker.revoke(intent))
        else:
            self._doubts.append(intent)

    # --- the end ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Forget every value and begin to revoke. Twice is once."""
        if self.is_closed:
            return
        self.is_closed = True
        held, self._held = self._held, {}
        self._confidants.clear()
        self._closed(len(held))
        for rotation in self._rotations:
            rotation.scope.cancel(reason="the job has ended")
        for each in held.values():
            self.retire(self._revoker.revoke(each.entry))
        for intent in self._doubts:
            self.retire(self._revoker.revoke(intent))

    def abandon(self, heir: Callable[[Revocation], None]) -> None:
        """Close what no job will have; ``heir`` is told of each revocation, to wait for it."""
        self.close()
        for revocation in self._retired:
            heir(revocation)

    async def wait_revoked(self) -> None:
        """Wait until all that was issued is revoked, or given up; the caller sets a deadline.

        Cancellation: the revocations go on.
        """
        # A rotation that was cut short adds what it knows of to what has to be waited for.
        for rotation in list(self._rotations):
            await rotation.done.wait()
        for revocation in self._retired:
            await revocation.done.wait()
        await trio.lowlevel.checkpoint()
