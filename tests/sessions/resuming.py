"""What the tests of resumes and subscriptions share: raw clients that come back."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing
from helpers import Frame, RawClient, connect_raw, make_hello

import arcp_trio


def resume_hello(client: RawClient, last_event_seq: Any, /, **changes: Any) -> Frame:
    """Return the hello that takes up the session of a client whose welcome was received."""
    hello = make_hello(message_id=f"msg_resume_{len(client.received)}")
    hello["payload"]["resume"] = {
        "session_id": client.session_id,
        "resume_token": token_of(client),
        "last_event_seq": last_event_seq,
    } | changes
    return hello


def token_of(client: RawClient) -> str:
    welcomes = [frame for frame in client.received if frame["type"] == "session.welcome"]
    return str(welcomes[-1]["payload"]["resume_token"])


def sequence(frames: list[Frame]) -> list[int]:
    return [frame["event_seq"] for frame in frames if "event_seq" in frame]


def lines(frames: list[Frame]) -> list[str]:
    return [
        frame["payload"]["body"]["message"]
        for frame in frames
        if frame["type"] == "job.event" and frame["payload"]["kind"] == "log"
    ]


async def drop(client: RawClient) -> None:
    """Break a connection, and let the runtime notice."""
    await client.transport.abort()
    await trio.testing.wait_all_tasks_blocked()


async def resume(
    runtime: arcp_trio.Runtime, client: RawClient, last_event_seq: int, *, principal: str = "me", **changes: Any
) -> RawClient:
    """Take up a session on a new connection; the welcome is the first that it has received."""
    hello = resume_hello(client, last_event_seq, **changes)
    resumed = await connect_raw(runtime, hello=hello, principal=principal)
    assert resumed.session_id == client.session_id
    resumed._numbers = client._numbers
    return resumed


async def refused(runtime: arcp_trio.Runtime, hello: Frame, **options: Any) -> Frame:
    """Send a first frame that leads to no session; return the answer."""
    client = await connect_raw(runtime, shake_hands=False, **options)
    await client.send(hello)
    answer = await client.receive()
    closed = await client.receive_close()
    assert closed.code == 1008
    # Before any welcome, and nothing else.
    assert [frame["type"] for frame in client.received] == ["session.error"]
    return answer
