"""What many tests share: a client that speaks raw frames, agents that are told what to do, waiting."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import trio
import trio.testing

import arcp_trio
from arcp_trio.transports.base import TransportClosedError
from arcp_trio.transports.memory import MemoryTransport, open_memory_pair

ALL_FEATURES = [
    "heartbeat",
    "ack",
    "list_jobs",
    "subscribe",
    "lease_expires_at",
    "cost.budget",
    "model.use",
    "provisioned_credentials",
    "progress",
    "result_chunk",
    "agent_versions",
    "x-arcp-trio.replies",
]

# A raw client answers no pings: what needs heartbeats asks for them.
QUIET_FEATURES = [feature for feature in ALL_FEATURES if feature != "heartbeat"]

Frame = dict[str, Any]

TOKEN = "canary-bearer-5f1d"
"""What the clients of tests show: found in no log at the end of a run (tests/canary.py)."""

exchanged: list[tuple[str, bytes | str]] = []
"""Every frame that a RawClient sent ("C>S") or received ("S>C"), for the schema test of the session."""


def make_hello(*, token: str = TOKEN, features: list[str] | None = None, message_id: str = "msg_hello") -> Frame:
    return {
        "arcp": "1.1",
        "id": message_id,
        "type": "session.hello",
        "payload": {
            "client": {"name": "raw", "version": "1"},
            "client_name": "raw",
            "auth": {"scheme": "bearer", "token": token},
            "capabilities": {
                "encodings": ["json"],
                "features": list(QUIET_FEATURES if features is None else features),
            },
        },
    }


class RawClient:
    """One end of a connection, frame by frame: what it sends is exactly what is given."""

    def __init__(self, transport: MemoryTransport, *, plays_server: bool = False) -> None:
        self.transport = transport
        # What it receives as a server is no runtime's.
        self._exchanged: list[tuple[str, bytes | str]] = [] if plays_server else exchanged
        self.session_id: str | None = None
        self.received: list[Frame] = []
        self._ready: list[Frame] = []
        self._numbers = 0

    async def send_text(self, *texts: bytes | str) -> None:
        frames = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]
        await self.transport.send(frames)

    async def send(self, *frames: Frame) -> None:
        texts = [json.dumps(frame) for frame in frames]
        self._exchanged.extend(("C>S", text) for text in texts)
        await self.send_text(*texts)

    def make(self, frame_type: str, payload: Frame | None = None, **fields: Any) -> Frame:
        self._numbers += 1
        frame: Frame = {
            "arcp": "1.1",
            "id": f"msg_{self._numbers}",
            "type": frame_type,
            "payload": payload or {},
        }
        if self.session_id is not None:
            frame["session_id"] = self.session_id
        frame.update(fields)
        return frame

    async def request(self, frame_type: str, payload: Frame | None = None, **fields: Any) -> str:
        """Send a request; return its id."""
        frame = self.make(frame_type, payload, **fields)
        await self.send(frame)
        return str(frame["id"])

    async def receive(self) -> Frame:
        """Return the next frame."""
        while not self._ready:
            texts = await self.transport.receive()
            self._exchanged.extend(("S>C", text) for text in texts)
            self._ready += [json.loads(text) for text in texts]
        frame = self._ready.pop(0)
        self.received.append(frame)
        return frame

    async def receive_until(self, wanted: str | Callable[[Frame], bool]) -> Frame:
        """Return the next frame of that type, or for which that is true; the others stay in ``received``."""
        while True:
            frame = await self.receive()
            if frame["type"] == wanted if isinstance(wanted, str) else wanted(frame):
                return frame

    async def settle(self) -> list[Frame]:
        """Let the runtime come to rest; return what it has sent until then, also before a close."""
        frames: list[Frame] = []

        async def read() -> None:
            with suppress(TransportClosedError):
                while True:
                    frames.append(await self.receive())

        # A task of its own, cancelled only once nothing moves: a deadline of zero would read nothing at all.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return frames

    async def receive_close(self) -> TransportClosedError:
        """Read to the end of the connection; return how it was closed."""
        try:
            while True:
                await self.receive()
        except TransportClosedError as exc:
            return exc

    async def submit(self, agent: str, value: Any = None, **payload: Any) -> str:
        """Submit a job; return its id once it was accepted."""
        request_id = await self.request("job.submit", {"agent": agent, "input": value, **payload})
        frame = await self.receive_until(
            lambda frame: (
                frame["type"] in ("job.accepted", "session.error") and frame["payload"].get("request_id") == request_id
            )
        )
        assert frame["type"] == "job.accepted", frame
        return str(frame["payload"]["job_id"])


def terminals(frames: list[Frame], job_id: str | None = None) -> list[Frame]:
    """Return the terminal events among ``frames``, of one job or of all."""
    return [
        frame
        for frame in frames
        if frame["type"] in ("job.result", "job.error") and job_id in (None, frame.get("job_id"))
    ]


async def connect_raw(
    runtime: arcp_trio.Runtime,
    *,
    principal: str | None = "me",
    verifier: arcp_trio.Verifier | None = None,
    hello: Frame | None = None,
    shake_hands: bool = True,
    compat: str | None = None,
) -> RawClient:
    """Connect to a runtime over memory; nothing needs to be closed."""
    theirs, ours = open_memory_pair()
    client = RawClient(ours)
    serve = partial(runtime.serve_transport, theirs, principal=principal, verifier=verifier, compat=compat)
    runtime.spawn_connection(serve, "raw client")
    if shake_hands:
        await client.send(hello or make_hello())
        welcome = await client.receive()
        assert welcome["type"] == "session.welcome", welcome
        client.session_id = welcome["session_id"]
    return client


@asynccontextmanager
async def open_raw(runtime: arcp_trio.Runtime, **options: Any) -> AsyncGenerator[RawClient, None]:
    """Connect as :func:`connect_raw` does, and drop the connection on leaving."""
    client = await connect_raw(runtime, **options)
    try:
        yield client
    finally:
        with trio.CancelScope(shield=True):
            await client.transport.abort()


class Script:
    """Agents for tests; what they wait for is opened by the test.

    ``echo`` returns its input; ``gate`` emits one line, then waits for :attr:`gate`, then returns "through";
    ``sleep`` sleeps for ever; ``stubborn`` waits for :attr:`gate` behind a shield, whoever cancels it; ``fail`` raises
    :attr:`error`; ``flood`` emits as many lines as its input says.
    """

    def __init__(self) -> None:
        self.agents = arcp_trio.Agents()
        self.gate = trio.Event()
        self.error: BaseException = ValueError("a secret at /home/user/file")
        self.entered = 0
        self.left = 0

        @self.agents.register("echo", version="1.0.0")
        async def echo(job: arcp_trio.JobContext, value: Any) -> Any:
            self.entered += 1
            return value

        @self.agents.register("gate")
        async def gate(job: arcp_trio.JobContext, value: Any) -> Any:
            self.entered += 1
            try:
                await job.log("info", "waiting")
                await self.gate.wait()
                return "through"
            finally:
                self.left += 1

        @self.agents.register("sleep")
        async def sleep(job: arcp_trio.JobContext, value: Any) -> Any:
            self.entered += 1
            try:
                await trio.sleep_forever()
            finally:
                self.left += 1

        @self.agents.register("stubborn")
        async def stubborn(job: arcp_trio.JobContext, value: Any) -> Any:
            self.entered += 1
            with trio.CancelScope(shield=True):
                await self.gate.wait()
            self.left += 1
            return "too late"

        @self.agents.register("fail")
        async def fail(job: arcp_trio.JobContext, value: Any) -> Any:
            raise self.error

        @self.agents.register("flood")
        async def flood(job: arcp_trio.JobContext, value: Any) -> Any:
            for number in range(value):
                await job.log("info", f"line {number}")
            return value
