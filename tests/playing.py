"""A runtime that a test plays by hand, over as many connections as a client opens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
import trio.testing
from helpers import ALL_FEATURES, Frame, RawClient

import arcp_trio
from arcp_trio.transports.base import Transport, TransportClosedError
from arcp_trio.transports.memory import MemoryTransport, open_memory_pair

OURS = [*ALL_FEATURES]
OTHERS = [feature for feature in ALL_FEATURES if not feature.startswith("x-")]

STEADY = arcp_trio.Reconnect(first_delay_seconds=1, max_delay_seconds=8, jitter=0, deadline_seconds=100)


class Connection:
    """The runtime's end of one connection."""

    def __init__(self, played: Played, transport: MemoryTransport) -> None:
        self._played = played
        self.raw = RawClient(transport, plays_server=True)
        self.raw.session_id = "sess_1"
        self.hello: Frame = {}

    async def welcome(self, token: str = "rt_1", *, hello: bool = True, **more: Any) -> Frame:
        """Take the hello and answer it; return it."""
        if hello:
            self.hello = await self.raw.receive_until("session.hello")
        payload = {
            "session_id": "sess_1",
            "resume_token": token,
            "resume_window_sec": 600,
            "runtime": {"name": "played", "version": "1"},
            "capabilities": {"encodings": ["json"], "features": self._played.features},
            **self._played.welcome,
            **more,
        }
        await self.say("session.welcome", payload)
        return self.hello

    async def say(self, frame_type: str, payload: Frame | None = None, **fields: Any) -> None:
        await self.raw.send(self.raw.make(frame_type, payload, **fields))
        await trio.testing.wait_all_tasks_blocked()

    async def expect(self, wanted: str) -> Frame:
        """Return the client's next frame, which must be of that type; signs of life may come before it."""
        while True:
            frame = await self.raw.receive()
            if frame["type"] == wanted:
                return frame
            assert frame["type"] in ("session.ack", "session.ping", "session.pong"), frame

    async def accept(self, submit: Frame, job_id: str = "job_1") -> None:
        payload = {"job_id": job_id, "agent": "a@1", "request_id": submit["id"]}
        await self.say("job.accepted", payload, job_id=job_id, correlation_id=submit["id"])

    async def log(self, number: int, job_id: str = "job_1", text: str | None = None) -> None:
        body = {"level": "info", "message": str(number) if text is None else text}
        await self.say("job.event", {"kind": "log", "body": body}, job_id=job_id, event_seq=number)

    async def result(self, number: int, value: Any = "done", job_id: str = "job_1") -> None:
        payload = {"final_status": "success", "result": value}
        await self.say("job.result", payload, job_id=job_id, event_seq=number)

    async def replayed(self) -> None:
        await self.say("x-arcp-trio.replayed", {"request_id": self.hello["id"]})

    async def nothing_came(self) -> None:
        assert [frame["type"] for frame in await self.raw.settle() if frame["type"] != "session.ack"] == []

    async def drop(self, code: int = 1006) -> None:
        if code == 1006:
            await self.raw.transport.abort()
        else:
            await self.raw.transport.aclose(code, "dropped")
        await trio.testing.wait_all_tasks_blocked()


class Played:
    """The runtime: where its connections come in."""

    def __init__(self, features: Sequence[str], welcome: Frame) -> None:
        self.features = list(features)
        self.welcome = welcome
        self.down: list[float] = []
        self.is_down = False
        self._send, self._receive = trio.open_memory_channel[Connection](10)

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[MemoryTransport, None]:
        if self.is_down:
            self.down.append(trio.current_time())
            await trio.lowlevel.checkpoint()
            raise TransportClosedError(1006, "nobody listens")
        theirs, ours = open_memory_pair()
        self._send.send_nowait(Connection(self, theirs))
        try:
            yield ours
        finally:
            await ours.abort()

    async def next(self) -> Connection:
        """Return the next connection, its hello not yet taken."""
        return await self._receive.receive()


@asynccontextmanager
async def open_played(
    *,
    features: Sequence[str] = OURS,
    welcome: Frame | None = None,
    reconnect: arcp_trio.Reconnect | None = STEADY,
    limits: arcp_trio.ClientLimits | None = None,
    reconnects: bool = True,
) -> AsyncGenerator[tuple[Played, Connection, arcp_trio.Client], None]:
    """Open a client whose runtime is played; nobody answers its goodbye, which is cut short.

    Args:
        features: What the runtime negotiates.
        welcome: What else its welcomes say.
        reconnect: How the client connects again.
        limits: The client's bounds.
        reconnects: Whether it can.
    """
    played = Played(features, welcome or {})
    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery, played.connect() as transport:
            first = await played.next()
            nursery.start_soon(first.welcome)
            async with arcp_trio.open_client_over(
                transport,
                token="secret-token",
                limits=limits or arcp_trio.ClientLimits(close_seconds=0.01),
                connect=played.connect if reconnects else None,
                reconnect=reconnect,
            ) as client:
                yield played, first, client


class Call:
    """A call in a task of its own: what it returned or raised."""

    def __init__(self, nursery: trio.Nursery, call: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run, partial(call, *args, **options))

    async def _run(self, call: Callable[[], Awaitable[Any]]) -> None:
        with self.scope:
            try:
                self.value = await call()
            except Exception as exc:  # noqa: BLE001  # the test looks at it
                self.error = exc
            self.done = True


async def read(events: AsyncIterator[arcp_trio.Event | arcp_trio.Skipped], into: list[Any]) -> None:
    """Read events to their end, the texts of log lines."""
    async for event in events:
        text = event.body["message"] if isinstance(event, arcp_trio.Event) else event
        into.append(text)


async def start_job(
    nursery: trio.Nursery, client: arcp_trio.Client, connection: Connection, job_id: str = "job_1"
) -> arcp_trio.JobHandle:
    """Submit a job and have it accepted."""
    call = Call(nursery, client.submit, "a")
    await connection.accept(await connection.expect("job.submit"), job_id)
    assert isinstance(call.value, arcp_trio.JobHandle)
    return call.value


class Stuck:
    """Stands before a transport and takes no further byte."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def send(self, frames: Sequence[bytes]) -> None:
        await trio.sleep_forever()


class Broken(Stuck):
    """Stands before a transport whose other direction still works."""

    async def send(self, frames: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        raise TransportClosedError(1006, "broken")
