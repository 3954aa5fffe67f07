"""A provisioner and a ledger in the test's own process: they do what they are told, and remember what was asked."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import trio

from arcp_trio import (
    CredentialConstraints,
    CredentialRequest,
    IssuedCredential,
    LedgerEntry,
    LedgerState,
)

CANARY = "sk-canary-"
"""What every value of the tests begins with: it must turn up nowhere but where a value belongs."""

ENDPOINT = "https://gateway.example/v1"

Hook = Callable[[str], Awaitable[None]]


async def nothing(subject: str) -> None:
    await trio.lowlevel.checkpoint()


def failing(error: BaseException | Callable[[], BaseException], times: int = 1_000_000) -> Hook:
    """Return a hook that raises, so many times."""
    left = [times]

    async def fail(subject: str) -> None:
        await trio.lowlevel.checkpoint()
        if left[0] > 0:
            left[0] -= 1
            raise error if isinstance(error, BaseException) else error()

    return fail


def waiting(event: trio.Event) -> Hook:
    """Return a hook that waits."""

    async def wait(subject: str) -> None:
        await event.wait()

    return wait


def taking(seconds: float) -> Hook:
    """Return a hook that takes so long."""

    async def work(subject: str) -> None:
        await trio.sleep(seconds)

    return work


def deaf(seconds: float) -> Hook:
    """Return a hook that takes so long, and no cancellation: like what waits for a thread."""

    async def work(subject: object) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)

    return work


class FakeProvisioner:
    """Mints credentials that are live until they are revoked.

    Attributes:
        count: How many credentials a job gets.
        before: For each method what happens before it does its work; it may wait or raise.
        after: And what happens behind that.
        changes: What each credential is returned with instead of what was asked for.
        calls: What was asked, in order: the method and its subject.
        live: The job of each handle that is good.
        revoked: How often each handle was revoked.
        values: The value of each handle.
        requests: What was asked for.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.before: dict[str, Hook] = {}
        self.after: dict[str, Hook] = {}
        self.changes: dict[str, Any] = {}
        self.calls: list[tuple[str, str]] = []
        self.live: dict[str, str] = {}
        self.revoked: Counter[str] = Counter()
        self.values: dict[str, str] = {}
        self.requests: list[CredentialRequest] = []

    def calls_of(self, method: str) -> list[str]:
        return [subject for name, subject in self.calls if name == method]

    def mint(self, request: CredentialRequest) -> IssuedCredential:
        handle = f"h-{secrets.token_hex(6)}"
        value = CANARY + secrets.token_hex(16)
        self.live[handle] = request.job_id
        self.values[handle] = value
        self.requests.append(request)
        issued = IssuedCredential(
            handle=handle,
            value=value,
            endpoint=ENDPOINT,
            profile="openai",
            constraints=CredentialConstraints(
                budget=tuple(f"{currency}:{amount}" for currency, amount in request.budget.items()) or None,
                models=request.models,
                expires_at=request.expires_at,
            ),
        )
        return attrs.evolve(issued, **self.changes)

    async def issue(self, request: CredentialRequest) -> Sequence[IssuedCredential]:
        self.calls.append(("issue", request.job_id))
        await self.before.get("issue", nothing)(request.job_id)
        issued = [self.mint(request) for _ in range(self.count)]
        await self.after.get("issue", nothing)(request.job_id)
        return issued

    async def rotate(self, handle: str, request: CredentialRequest) -> IssuedCredential:
        self.calls.append(("rotate", handle))
        await self.before.get("rotate", nothing)(handle)
        issued = self.mint(request)
        await self.after.get("rotate", nothing)(handle)
        return issued

    async def revoke(self, handle: str) -> None:
        self.calls.append(("revoke", handle))
        await self.before.get("revoke", nothing)(handle)
        self.revoked[handle] += 1
        self.live.pop(handle, None)
        await self.after.get("revoke", nothing)(handle)

    async def revoke_job(self, job_id: str) -> None:
        self.calls.append(("revoke_job", job_id))
        await self.before.get("revoke_job", nothing)(job_id)
        for handle in [handle for handle, job in self.live.items() if job == job_id]:
            del self.live[handle]
            self.revoked[handle] += 1
        await self.after.get("revoke_job", nothing)(job_id)


class KeptLedger:
    """A ledger that outlives the runtimes which use it, like one on a disk.

    Attributes:
        entries: The present entries, revoked ones too.
        notes: Everything that was put, in order.
        before_put: What happens before a put; it may wait or raise.
        after_put: What happens behind it.
    """

    durable = True

    def __init__(self, *entries: LedgerEntry) -> None:
        self.entries: dict[str, LedgerEntry] = {entry.entry_id: entry for entry in entries}
        self.notes: list[LedgerEntry] = []
        self.before_put: Callable[[Sequence[LedgerEntry]], Awaitable[None]] | None = None
        self.after_put: Callable[[Sequence[LedgerEntry]], Awaitable[None]] | None = None

    async def put(self, entries: Sequence[LedgerEntry]) -> None:
        await trio.lowlevel.checkpoint()
        if self.before_put is not None:
            await self.before_put(entries)
        self.notes += entries
        self.entries.update((entry.entry_id, entry) for entry in entries)
        if self.after_put is not None:
            await self.after_put(entries)

    async def outstanding(self) -> list[LedgerEntry]:
        await trio.lowlevel.checkpoint()
        left = [entry for entry in self.entries.values() if entry.state is not LedgerState.REVOKED]
        return sorted(left, key=lambda entry: entry.noted_at_ms)

    def states(self) -> Counter[LedgerState]:
        return Counter(entry.state for entry in self.entries.values())
