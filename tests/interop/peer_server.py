"""Runs in the reference implementation's environment: its server, until stdin is closed.

``peer_server.py credentials`` has a provisioner too. Writes JSON lines: ``{"port"}`` once it listens, and for each
connection that has ended the types of the messages that it received and sent.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from arcp import PermissionDeniedError, RuntimeInfo, WebSocketTransport, serve_websocket
from arcp.runtime import (
    ARCPRuntime,
    InMemoryCredentialProvisioner,
    InMemoryRevocationLog,
    JobContext,
    StaticBearerVerifier,
)


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def echo(value: Any, context: JobContext) -> Any:
    return value


async def nothing(value: Any, context: JobContext) -> None:
    return None


async def everything(value: Any, context: JobContext) -> Any:
    await context.log("info", "a line", {"k": 1})
    await context.thought("hmm")
    await context.status("working", "on it")
    await context.metric({"name": "tokens", "value": 3, "unit": "1"})
    await context.tool_call({"tool": "search", "args": {"q": "x"}, "call_id": "c1"})
    await context.tool_result({"call_id": "c1", "result": {"ok": True}})
    await context.progress(1, total=2, units="files", message="half")
    return {"done": True}


async def text(value: Any, context: JobContext) -> None:
    stream = context.stream_result()
    for piece in ("grüß ", "dich, ", "𝄞"):
        await stream.write(piece)
    await stream.close(summary="a greeting")


async def binary(value: Any, context: JobContext) -> None:
    stream = context.stream_result()
    await stream.write(b"\x00\x01")
    await stream.write(bytes(range(256)) * 100)
    await stream.close()


async def boom(value: Any, context: JobContext) -> None:
    raise ValueError("kaboom")


async def denied(value: Any, context: JobContext) -> None:
    raise PermissionDeniedError("not for you")


async def slow(value: Any, context: JobContext) -> None:
    await context.status("started")
    await asyncio.sleep(3600)


async def rotating(value: Any, context: JobContext) -> str:
    await context.status("started")
    await context.rotate_credential(context.job.credentials[0].id, "test-token-rotated")
    await context.status("rotated")
    await asyncio.sleep(3600)
    return "done"


async def version_1(value: Any, context: JobContext) -> str:
    return "one"


async def version_2(value: Any, context: JobContext) -> str:
    return "two"


class Recorder:
    """A transport that takes note of what passes."""

    def __init__(self, inner: WebSocketTransport) -> None:
        self._inner = inner
        self.received: list[str] = []
        self.sent: list[str] = []

    async def send(self, envelope: dict[str, Any]) -> None:
        self.sent.append(envelope["type"])
        await self._inner.send(envelope)

    async def recv(self) -> dict[str, Any]:
        envelope = await self._inner.recv()
        self.received.append(envelope["type"])
        return envelope

    async def close(self) -> None:
        await self._inner.close()

    @property
    def is_closed(self) -> bool:
        return self._inner.is_closed

    def write_buffer_size(self) -> int | None:
        return self._inner.write_buffer_size()


async def main() -> None:
    provisioned = "credentials" in sys.argv[1:]
    runtime = ARCPRuntime(
        runtime=RuntimeInfo(name="reference", version="1.1.3"),
        bearer=StaticBearerVerifier({"secret": "me"}),
        heartbeat_interval_sec=1,
        credential_provisioner=InMemoryCredentialProvisioner() if provisioned else None,
        revocation_log=InMemoryRevocationLog() if provisioned else None,
    )
    for name, agent in {
        "echo": echo,
        "nothing": nothing,
        "everything": everything,
        "text": text,
        "binary": binary,
        "boom": boom,
        "denied": denied,
        "slow": slow,
        "rotating": rotating,
    }.items():
        runtime.register_agent(name, agent)
    runtime.register_agent_version("versioned", "1.0.0", version_1)
    runtime.register_agent_version("versioned", "2.0.0", version_2)
    runtime.set_default_agent_version("versioned", "2.0.0")

    async def serve(transport: WebSocketTransport) -> None:
        recorder = Recorder(transport)
        await runtime.accept(recorder)
        say(received=recorder.received, sent=recorder.sent)

    server = await serve_websocket(serve, host="127.0.0.1", port=0)
    say(port=server.sockets[0].getsockname()[1])
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()
    await server.wait_closed()
    await runtime.close()


asyncio.run(main())
