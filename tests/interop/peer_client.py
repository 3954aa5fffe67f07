"""Runs in the reference implementation's environment: its client, against the server at a URL.

``python peer_client.py URL SCENARIO`` writes what the client saw as JSON lines. The agents are those of
``test_reference_client.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from arcp import ARCPError, ClientInfo, LeaseConstraints, WebSocketTransport
from arcp._version import PROVISIONED_CREDENTIAL_FEATURES, V1_1_FEATURES
from arcp.client import ARCPClient, JobHandle

TOKEN = "secret"
WAIT_SECONDS = 10
"""For each single wait: what takes longer hangs, and is reported so."""


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def outcome_of(awaitable: Awaitable[Any]) -> dict[str, Any]:
    """Wait for a handle's end (or a submit) and describe it."""

    async def wait() -> Any:
        return await awaitable

    try:
        payload = await asyncio.wait_for(wait(), WAIT_SECONDS)
    except ARCPError as exc:
        return {
            "raised": type(exc).__name__,
            "code": exc.code,
            "message": exc.message,
            "retryable": exc.retryable,
            "details": exc.details,
        }
    except TimeoutError:
        return {"raised": "hang"}
    except Exception as exc:  # noqa: BLE001  # whatever it is, the test wants to see it
        return {"raised": type(exc).__name__, "message": str(exc)}
    if isinstance(payload, JobHandle):
        return {"accepted": payload.agent_ref}
    return {"final_status": payload.final_status, "result": payload.result, "size": payload.result_size}


async def events_of(handle: JobHandle) -> list[dict[str, Any]]:
    async with asyncio.timeout(WAIT_SECONDS):
        return [event async for event in handle.events()]


async def first_event(handle: JobHandle) -> dict[str, Any]:
    async with asyncio.timeout(WAIT_SECONDS):
        return await anext(handle.events())


async def handshake(client: ARCPClient) -> None:
    welcome = client.welcome
    assert welcome is not None
    say(
        session_id=client.session_id,
        features=sorted(client.negotiated_features),
        runtime=welcome.runtime.model_dump(mode="json"),
        agents=[agent.model_dump(mode="json") for agent in welcome.capabilities.agents],
        resume_token=welcome.resume_token,
    )


async def events(client: ARCPClient) -> None:
    handle = await client.submit(
        agent="everything",
        trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
        lease_request={"tool.call": ["search"]},
    )
    say(accepted=handle.accepted.model_dump(mode="json"))
    for event in await events_of(handle):
        say(**event)
    say(**await outcome_of(handle.done))


async def results(client: ARCPClient) -> None:
    for value in ({"answer": 42, "nested": [1, {"deep": None}]}, "text", None, 7, [], False, ""):
        handle = await client.submit(agent="echo", input=value)
        say(**await outcome_of(handle.done))


async def chunks(client: ARCPClient) -> None:
    for agent in ("text", "bytes", "large", "empty"):
        handle = await client.submit(agent=agent)
        async with asyncio.timeout(WAIT_SECONDS):
            data = await handle.collect_chunks()
        say(sha256=hashlib.sha256(data).hexdigest(), length=len(data), **await outcome_of(handle.done))


async def failures(client: ARCPClient) -> None:
    for agent in ("boom", "denied", "vendor"):
        handle = await client.submit(agent=agent)
        say(**await outcome_of(handle.done))


async def refusals(client: ARCPClient) -> None:
    say(**await outcome_of(client.submit(agent="nosuch")))
    say(**await outcome_of(client.submit(agent="versioned@9")))
    say(**await outcome_of(client.submit(agent="echo", idempotency_key="k")))
    say(
        **await outcome_of(
            client.submit(agent="echo", lease_constraints=LeaseConstraints(expires_at="2001-01-01T00:00:00Z"))
        )
    )
    leased = await client.submit(
        agent="echo",
        input=2,
        lease_request={"cost.budget": ["USD:1"]},
        lease_constraints=LeaseConstraints(expires_at="2099-01-01T00:00:00Z"),
    )
    say(**await outcome_of(leased.done))
    say(**await outcome_of(client.submit(agent="echo", input=1, lease_request={"tool.call": ["a.*"]})))
    handle = await client.submit(agent="echo", input="still here")
    say(**await outcome_of(handle.done))


async def refusal_beside_a_job(client: ARCPClient) -> None:
    running = await client.submit(agent="until_opened")
    await first_event(running)
    say(**await outcome_of(client.submit(agent="nosuch")))
    say(**await outcome_of(running.done))
    opener = await client.submit(agent="open", input=running.job_id)
    say(**await outcome_of(opener.done))


async def versions(client: ARCPClient) -> None:
    for agent in ("versioned@1.0.0", "versioned@2.0.0", "versioned@10.0.0", "versioned"):
        handle = await client.submit(agent=agent)
        say(agent=handle.agent_ref, **await outcome_of(handle.done))


async def timeout(client: ARCPClient) -> None:
    handle = await client.submit(agent="sleep", max_runtime_sec=1)
    say(**await outcome_of(handle.done))


async def cancel(client: ARCPClient) -> None:
    handle = await client.submit(agent="sleep")
    await first_event(handle)
    await client.cancel_job(handle.job_id, reason="enough")
    say(**await outcome_of(handle.done))
    # Before the job's first event: as soon as there is an id.
    handle = await client.submit(agent="sleep")
    await client.cancel_job(handle.job_id)
    say(**await outcome_of(handle.done))
    # An agent that wants to finish: it was acknowledged, so it is cancelled.
    handle = await client.submit(agent="polite")
    await first_event(handle)
    await client.cancel_job(handle.job_id)
    say(**await outcome_of(handle.done))


async def late_cancel(client: ARCPClient) -> None:
    running = await client.submit(agent="until_opened")
    await first_event(running)
    handle = await client.submit(agent="echo", input=1)
    say(**await outcome_of(handle.done))
    await client.cancel_job(handle.job_id)
    await client.cancel_job(handle.job_id)
    handle = await client.submit(agent="echo", input=2)
    say(**await outcome_of(handle.done))
    opener = await client.submit(agent="open", input=running.job_id)
    say(**await outcome_of(opener.done))
    # A session.error, for the late cancel, would have failed this handle.
    say(**await outcome_of(running.done))


async def many(client: ARCPClient) -> None:
    answers = []
    for number in range(40):
        handle = await client.submit(agent="echo", input=number)
        answers.append((await outcome_of(handle.done))["result"])
    say(answers=answers)

    async def one(number: int) -> Any:
        handle = await client.submit(agent="chatty", input=number)
        seen = await events_of(handle)
        return [event["body"]["message"] for event in seen], await outcome_of(handle.done)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(40)]
    for task in tasks:
        lines, outcome = task.result()
        say(lines=lines, **outcome)
    say(latest_event_seq=client.latest_event_seq)


async def family(client: ARCPClient) -> None:
    """A job with children, for whose acceptances nobody has asked, between two that have none."""
    for agent, lease in (("echo", {}), ("boss", {"agent.delegate": ["echo", "denied"]}), ("echo", {})):
        handle = await client.submit(agent=agent, input=agent, lease_request=lease)
        kinds = [event["kind"] for event in await events_of(handle)]
        say(agent=handle.agent_ref, kinds=kinds, **await outcome_of(handle.done))


async def close(client: ARCPClient) -> None:
    handle = await client.submit(agent="until_opened")
    await first_event(handle)
    await client.close(reason="done")
    say(job_id=handle.job_id, **await outcome_of(handle.done))


async def credentials(client: ARCPClient) -> None:
    lease = {"model.use": ["tier-fast/*"], "cost.budget": ["USD:5.00"]}
    handle = await client.submit(agent="rotating", lease_request=lease)
    shown = [credential.model_dump(by_alias=True) for credential in handle.credentials]
    say(credentials=shown, features=sorted(client.negotiated_features))
    seen = await events_of(handle)
    say(rotations=[event["body"] for event in seen if event["body"].get("phase") == "credential_rotated"])
    say(**await outcome_of(handle.done))
    page = await client.list_jobs()
    say(listed=len(page.jobs))


async def bad_token(_: ARCPClient) -> None:
    raise AssertionError("the token was accepted")


SCENARIOS: dict[str, Callable[[ARCPClient], Awaitable[None]]] = {
    function.__name__: function
    for function in (
        handshake,
        events,
        results,
        chunks,
        failures,
        refusals,
        refusal_beside_a_job,
        versions,
        timeout,
        cancel,
        late_cancel,
        many,
        family,
        close,
        credentials,
        bad_token,
    )
}


async def main(url: str, scenario: str) -> None:
    token = "another" if scenario == "bad_token" else TOKEN
    # By default it does not ask for them.
    features = (*V1_1_FEATURES, *PROVISIONED_CREDENTIAL_FEATURES) if scenario == "credentials" else None
    client = ARCPClient(client=ClientInfo(name="reference", version="1.1.3"), token=token, features=features)
    async with contextlib.aclosing(client):
        transport = await WebSocketTransport.connect(url)
        try:
            await client.connect(transport)
        except ARCPError as exc:
            say(raised=type(exc).__name__, code=exc.code, message=exc.message)
            return
        await SCENARIOS[scenario](client)
    say(closed=True)


asyncio.run(main(*sys.argv[1:]))
