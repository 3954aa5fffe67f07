"""What the tests of bad input share: that a session still works, and that nothing is left when it has gone."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

from helpers import Frame, RawClient  # noqa: TC002  # read in one place, not in two
from wire.schema_check import problems_of_runtime_frame

import arcp_trio

_numbers = count(1)


async def assert_alive(client: RawClient) -> None:
    """A ping is answered, and a submit runs to its end: whatever was sent before has disturbed nothing."""
    number = next(_numbers)
    nonce, value = f"nonce {number}", {"echo": number}
    await client.request("session.ping", {"nonce": nonce}, id=f"msg_alive_{number}a")
    await client.receive_until(lambda frame: frame["payload"].get("ping_nonce") == nonce)
    await client.request("job.submit", {"agent": "echo", "input": value}, id=f"msg_alive_{number}b")
    await client.receive_until(lambda frame: frame["type"] == "job.result" and frame["payload"].get("result") == value)
    assert_valid(client)


def assert_valid(client: RawClient) -> None:
    """All that the runtime has said obeys the schema."""
    for frame in client.received:
        assert problems_of_runtime_frame(frame) == [], frame


def assert_nothing_left(runtime: arcp_trio.Runtime) -> None:
    statistics = runtime.statistics()
    assert statistics.sessions == 0
    assert statistics.connections == 0
    assert statistics.jobs_running == 0
    assert statistics.bugs == 0
    assert statistics.disowned_agents == ()
    assert statistics.terminals_published == statistics.tear_downs == statistics.jobs_accepted


def error_of(frame: Frame) -> tuple[str, str | None]:
    """Return the code of a session.error, and whose request it answers."""
    assert frame["type"] == "session.error", frame
    return frame["payload"]["code"], frame["payload"].get("request_id")


def ping(message_id: str, **fields: Any) -> str:
    frame = {"arcp": "1.1", "id": message_id, "type": "session.ping", "payload": {"nonce": message_id}, **fields}
    return json.dumps({name: value for name, value in frame.items() if value is not ...})
