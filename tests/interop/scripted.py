"""A runtime that plays the server's side of a recorded conversation to a real client of ours.

The client sends its own frames: in what the server is recorded to have answered, the ids and traces of the
recorded requests are replaced by those of the client's. Requests that our client does not make (a listing, for
example) are left out; what the server answered to them is sent all the same.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs
import trio
import trio.testing

import arcp_trio
from arcp_trio.transports.base import TransportClosedError
from arcp_trio.transports.memory import MemoryTransport, open_memory_pair

if TYPE_CHECKING:
    from interop.recorded import Frame, Record


class FakeRuntime:
    """The server's end of a connection."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self._ready: list[Frame] = []
        self._replaced: dict[str, str] = {}
        self.received: list[Frame] = []

    def replace(self, recorded: str | None, actual: str | None) -> None:
        """From now on send ``actual`` where ``recorded`` stood."""
        if recorded is not None and actual is not None:
            self._replaced[recorded] = actual

    async def receive(self, wanted: str) -> Frame:
        """Return the client's next frame, which must be of that type; acks and pings may come before it."""
        while True:
            while not self._ready:
                texts = await self._transport.receive()
                self._ready += [json.loads(text) for text in texts]
            frame = self._ready.pop(0)
            self.received.append(frame)
            if frame["type"] == wanted:
                return frame
            assert frame["type"] in ("session.ack", "session.ping"), frame

    async def send(self, *frames: Frame) -> None:
        texts = [json.dumps(frame) for frame in frames]
        for recorded, actual in self._replaced.items():
            texts = [text.replace(f'"{recorded}"', f'"{actual}"') for text in texts]
        await self._transport.send([text.encode() for text in texts])

    async def close(self, code: int = 1000) -> None:
        await self._transport.aclose(code)

    async def abort(self) -> None:
        await self._transport.abort()


@asynccontextmanager
async def open_scripted(
    welcome: Frame,
    *,
    close: Callable[[FakeRuntime], Any] | None = None,
    limits: arcp_trio.ClientLimits | None = None,
) -> AsyncGenerator[tuple[arcp_trio.Client, FakeRuntime], None]:
    """Open a client of ours whose runtime is played by the test.

    Args:
        welcome: What its hello is answered with.
        close: Plays the server's side of the client's goodbye; ``None`` closes the transport at once.
        limits: The client's bounds.
    """
    theirs, ours = open_memory_pair()
    fake = FakeRuntime(theirs)

    async def answer_hello() -> None:
        await fake.receive("session.hello")
        await fake.send(welcome)

    async def answer_close() -> None:
        with suppress(TransportClosedError):
            await fake.receive("session.close")
            if close is None:
                await fake.close()
            else:
                await close(fake)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_hello)
        async with arcp_trio.open_client_over(ours, token="tok", limits=limits) as client:
            yield client, fake
            nursery.start_soon(answer_close)


@attrs.define
class Submitted:
    """What became of a submit: the call's outcome, and the job's."""

    record: Record
    handle: arcp_trio.JobHandle | None = None
    refusal: arcp_trio.ARCPError | None = None
    events: list[arcp_trio.Event] = attrs.field(factory=list)
    result: Any = None
    failure: arcp_trio.ARCPError | None = None


@attrs.define
class Played:
    """A conversation that was played."""

    submits: dict[int, Submitted] = attrs.field(factory=dict)
    cancels: dict[int, arcp_trio.CancelOutcome | arcp_trio.ARCPError] = attrs.field(factory=dict)
    received: list[Frame] = attrs.field(factory=list)


class Player:
    """Plays the records that follow a welcome."""

    def __init__(
        self,
        client: arcp_trio.Client,
        fake: FakeRuntime,
        records: Sequence[Record],
        *,
        in_bursts: bool,
    ) -> None:
        self._client = client
        self._fake = fake
        self._records = records
        self._in_bursts = in_bursts
        self.played = Played(received=fake.received)

    async def play(self) -> None:
        async with trio.open_nursery() as nursery:
            burst: list[Frame] = []
            for index, record in enumerate(self._records):
                if not record.from_client:
                    burst.append(record.frame)
                    if not self._in_bursts or record.type == "session.ping":
                        await self._send(burst)
                    if record.type == "session.ping":
                        pong = await self._fake.receive("session.pong")
                        assert pong["payload"]["ping_nonce"] == record.frame["payload"]["nonce"]
                    continue
                if record.type in ("job.submit", "job.cancel"):
                    await self._send(burst)
                    if record.type == "job.submit":
                        nursery.start_soon(self._submit, record)
                        await self._take_submit(record, self._records[index + 1 :])
                    else:
                        handle = self._handle_of(record.frame["job_id"])
                        nursery.start_soon(self._cancel, record, handle)
                        if handle is None or handle.terminal is None:
                            await self._take_cancel(record)
            await self._send(burst)
            await trio.testing.wait_all_tasks_blocked()
            # What was never answered must not keep the test: the outcome is missing then.
            nursery.cancel_scope.cancel()
        for submitted in self.played.submits.values():
            if submitted.handle is not None and submitted.handle.terminal is not None:
                await read_to_the_end(submitted)

    async def _send(self, burst: list[Frame]) -> None:
        if burst:
            await self._fake.send(*burst)
            burst.clear()
        await trio.testing.wait_all_tasks_blocked()

    async def _submit(self, record: Record) -> None:
        submitted = self.played.submits[record.n] = Submitted(record)
        payload = record.frame["payload"]
        try:
            submitted.handle = await self._client.submit(
                payload["agent"],
                payload.get("input"),
                lease_request=payload.get("lease_request"),
                expires_at=payload.get("lease_constraints", {}).get("expires_at"),
                idempotency_key=payload.get("idempotency_key"),
                max_runtime_sec=payload.get("max_runtime_sec"),
            )
        except arcp_trio.ARCPError as exc:
            submitted.refusal = exc

    async def _take_submit(self, record: Record, following: Sequence[Record]) -> None:
        """Take the client's submit: it says what the recorded one said."""
        frame = await self._fake.receive("job.submit")
        expected = {"input": {}, **record.frame["payload"]}
        if not expected.get("lease_request"):
            expected.pop("lease_request", None)
        assert frame["payload"] == expected
        self._fake.replace(record.frame["id"], frame["id"])
        self._fake.replace(record.frame.get("trace_id"), frame["trace_id"])
        if "trace_id" not in record.frame:
            # The recorded request had no trace, so the server minted one; ours has, and it would echo it.
            for later in following:
                if later.type == "job.submit":
                    break
                if later.type == "job.accepted":
                    self._fake.replace(later.frame.get("trace_id"), frame["trace_id"])
                    break

    async def _cancel(self, record: Record, handle: arcp_trio.JobHandle | None) -> None:
        reason = record.frame["payload"]["reason"]
        try:
            if handle is None:
                outcome = await self._client.cancel_job(record.frame["job_id"], reason)
            else:
                outcome = await handle.cancel(reason)
            self.played.cancels[record.n] = outcome
        except arcp_trio.ARCPError as exc:
            self.played.cancels[record.n] = exc

    async def _take_cancel(self, record: Record) -> None:
        frame = await self._fake.receive("job.cancel")
        assert frame["job_id"] == frame["payload"]["job_id"] == record.frame["job_id"]
        assert frame["payload"]["reason"] == record.frame["payload"]["reason"]
        self._fake.replace(record.frame["id"], frame["id"])

    def _handle_of(self, job_id: str) -> arcp_trio.JobHandle | None:
        for submitted in reversed(self.played.submits.values()):
            if submitted.handle is not None and submitted.handle.job_id == job_id:
                return submitted.handle
        return None


async def read_to_the_end(submitted: Submitted) -> None:
    """Read all events of a job, and its result."""
    handle = submitted.handle
    assert handle is not None
    try:
        async for event in handle.events():
            assert isinstance(event, arcp_trio.Event)
            submitted.events.append(event)
        submitted.result = await handle.result()
    except arcp_trio.ARCPError as exc:
        submitted.failure = exc
