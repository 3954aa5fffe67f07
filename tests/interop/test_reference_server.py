"""Our client against the reference implementation's server, over a real WebSocket."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

import arcp_trio

if TYPE_CHECKING:
    from interop.peer import ReferencePeer, ReferenceServer

pytestmark = [pytest.mark.requirement("T21"), pytest.mark.usefixtures("engine")]


@attrs.define
class Played:
    """A session with the server, and after the block what the server says of it."""

    client: arcp_trio.Client
    server: ReferenceServer
    received: tuple[str, ...] = ()
    sent: tuple[str, ...] = ()


@asynccontextmanager
async def play(peer: ReferencePeer, *, limits: arcp_trio.ClientLimits | None = None) -> AsyncGenerator[Played, None]:
    with trio.fail_after(30):
        async with peer.open_server() as server:
            async with arcp_trio.open_client(server.url, token="secret", limits=limits) as client:
                played = Played(client, server)
                yield played
            line = await server.next_line()
            played.received, played.sent = tuple(line["received"]), tuple(line["sent"])


@pytest.mark.requirement("P6.2", "P6.6", "P6.21", "X8", "D11", "D25", "T14", "T19")
async def test_handshake_and_a_polite_close(reference_peer: ReferencePeer) -> None:
    async with play(reference_peer) as played:
        client = played.client
        assert client.welcome.session_id == client.session_id
        assert client.session_id.startswith("sess_")
        assert client.welcome.runtime.name == "reference"
        # What both have: the peer knows nothing of our own feature.
        assert client.features == {
            "ack",
            "agent_versions",
            "cost.budget",
            "heartbeat",
            "lease_expires_at",
            "list_jobs",
            "progress",
            "result_chunk",
            "subscribe",
        }
        assert client.welcome.capabilities.agents is not None
        versions = {agent.name: agent.versions for agent in client.welcome.capabilities.agents}
        assert versions["versioned"] == ("1.0.0", "2.0.0")
        assert versions["echo"] == ()
    # The peer knows only the verb of v1.0 and answers the other with an error, which nobody sees.
    assert played.received == ("session.hello", "session.close", "session.bye")
    assert played.sent == ("session.welcome", "session.error")
    assert played.server.complaints == ""


@pytest.mark.requirement("P6.1", "T18")
async def test_a_wrong_token_raises(reference_peer: ReferencePeer) -> None:
    with trio.fail_after(30):
        async with reference_peer.open_server() as server:
            with pytest.raises(arcp_trio.UnauthenticatedError, match="invalid bearer token"):
                async with arcp_trio.open_client(server.url, token="another"):
                    pytest.fail("the token was accepted")


@pytest.mark.requirement("P7.1", "P7.8", "P8.1", "D28", "D31", "D35", "D36", "D49")
async def test_events_and_results(reference_peer: ReferencePeer) -> None:
    async with play(reference_peer) as played:
        job = await played.client.submit("everything")
        assert job.agent == "everything"
        events = [event async for event in job.events()]
        assert [event.kind for event in events if isinstance(event, arcp_trio.Event)] == [
            "log",
            "thought",
            "status",
            "metric",
            "tool_call",
            "tool_result",
            "progress",
        ]
        for number, event in enumerate(events, 1):
            assert isinstance(event, arcp_trio.Event)
            assert event.event_seq == number
            assert event.ts is not None
            event.parse()
        assert await job.result() == {"done": True}
        assert job.status == "success"
        for value in ({"a": [1, None]}, "text", 7, [], False, ""):
            job = await played.client.submit("echo", value)
            assert await job.result() == value
        job = await played.client.submit("nothing")
        assert await job.result() is None
        # An input that the caller left out is sent as an empty object: one peer insists on one.
        job = await played.client.submit("echo")
        assert await job.result() == {}


@pytest.mark.requirement("P8.5", "D47", "X12")
async def test_streamed_results(reference_peer: ReferencePeer) -> None:
    async with play(reference_peer) as played:
        job = await played.client.submit("text")
        assert await job.result() == "grüß dich, 𝄞"
        assert isinstance(job.terminal, arcp_trio.client.job_handle.JobResult)
        assert job.terminal.summary == "a greeting"
        # The peer ends a base64 stream with an empty chunk of another encoding: it stays bytes.
        job = await played.client.submit("binary")
        assert await job.result() == b"\x00\x01" + bytes(range(256)) * 100


@pytest.mark.requirement("P7.9", "P12.1", "D17", "E04")
async def test_agents_that_raise(reference_peer: ReferencePeer) -> None:
    async with play(reference_peer) as played:
        job = await played.client.submit("boom")
        with pytest.raises(arcp_trio.InternalError, match="kaboom") as internal:
            await job.result()
        assert internal.value.retryable is True
        job = await played.client.submit("denied")
        with pytest.raises(arcp_trio.PermissionDeniedError, match="not for you") as denied:
            await job.result()
        assert denied.value.retryable is False
        assert job.status == "error"


@pytest.mark.requirement("P12.2", "D14", "D15", "D16", "E01", "K02")
async def test_refused_submits_fail_alone(reference_peer: ReferencePeer) -> None:
    async with play(reference_peer) as played:
        client = played.client
        running = await client.submit("slow")
        with pytest.raises(arcp_trio.AgentNotAvailableError, match="nosuch"):
            await client.submit("nosuch")
        with pytest.raises(arcp_trio.AgentVersionNotAvailableError):
            await client.submit("versioned@9")
        with pytest.raises(arcp_trio.InvalidRequestError, match="weird"):
            await client.submit("echo", lease_request={"weird.ns": ["x"]})
        # What the peer's validation refuses comes as INTERNAL_ERROR, retryable.
        with pytest.raises(arcp_trio.InternalError, match="max_runtime_sec") as refused:
            await client.submit("echo", max_runtime_sec=0)
        assert refused.value.retryable is True
        # None of these errors names the request that it answers, and none has hurt the job beside.
        assert running.status == "running"
        job = await client.submit("versioned@1.0.0")
        assert (job.agent, await job.result()) == ("versioned@1.0.0", "one")
        job = await client.submit("versioned")
        assert (job.agent, await job.result()) == ("versioned@2.0.0", "two")
        outcome = await running.cancel()
        assert outcome.applied


@pytest.mark.requirement("P6.4", "D29", "D41")
async def test_leases_and_keys(reference_peer: ReferencePeer) -> None:
    async with play(reference_peer) as played:
        client = played.client
        # The peer writes budgets as strings.
        job = await client.submit(
            "echo",
            1,
            lease_request={"tool.call": ["*"], "cost.budget": ["USD:5.00"]},
            expires_at="2099-01-01T00:00:00Z",
            idempotency_key="k1",
        )
        assert job.accepted is not None
        assert job.accepted.budget == {"USD": "USD:5.00"}
        assert job.accepted.lease == {"tool.call": ["*"], "cost.budget": ["USD:5.00"]}
        assert await job.result() == 1
        # The peer answers a repetition with the acceptance and the terminal event.
        again = await client.submit(
            "echo",
            1,
            lease_request={"tool.call": ["*"], "cost.budget": ["USD:5.00"]},
            expires_at="2099-01-01T00:00:00Z",
            idempotency_key="k1",
        )
        assert again.job_id == job.job_id
        assert await again.result() == 1
        with pytest.raises(arcp_trio.DuplicateKeyError):
            await client.submit("echo", 2, idempotency_key="k1")


@pytest.mark.requirement("P7.13", "D38", "D39", "D40", "K07")
async def test_cancel(reference_peer: ReferencePeer) -> None:
    async with play(reference_peer) as played:
        job = await played.client.submit("slow")
        async for event in job.events():
            assert isinstance(event, arcp_trio.Event)
            assert event.body == {"phase": "started"}
            break
        # The peer acknowledges nothing and ends the job with job.result.
        outcome = await job.cancel("enough")
        assert outcome == arcp_trio.CancelOutcome(applied=True, status="cancelled")
        with pytest.raises(arcp_trio.JobCancelledError):
            await job.result()
        assert job.status == "cancelled"
    assert "job.cancelled" not in played.sent


@pytest.mark.requirement("P7.14", "L04")
async def test_a_late_cancel_returns_at_once(reference_peer: ReferencePeer) -> None:
    async with play(reference_peer) as played:
        client = played.client
        job = await client.submit("echo", 1)
        assert await job.result() == 1
        assert await job.cancel() == arcp_trio.CancelOutcome(applied=False, status="success")
        running = await client.submit("slow")
        assert (await running.cancel()).applied
        await running.wait_ended()
        assert await running.cancel() == arcp_trio.CancelOutcome(applied=False, status="cancelled")
        # By its id, for a job that nobody knows: the peer answers, without saying what.
        with pytest.raises(arcp_trio.JobNotFoundError):
            await client.cancel_job("job_01ARZ3NDEKTSV4RRFFQ69G5FAV")
        job = await client.submit("echo", 2)
        assert await job.result() == 2
    # The late ones were not even sent: the peer answers those with silence.
    assert played.received.count("job.cancel") == 2


@pytest.mark.requirement("P7.14", "K02")
async def test_a_cancel_that_the_peer_never_answers_is_bounded(reference_peer: ReferencePeer) -> None:
    async with play(reference_peer, limits=arcp_trio.ClientLimits(cancel_seconds=0.2)) as played:
        client = played.client
        job = await client.submit("echo", 1)
        assert await job.result() == 1
        # A job that ended and whose handle was dropped: the peer is silent.
        with pytest.raises(arcp_trio.InternalError, match="did not answer"):
            await client.cancel_job(job.job_id)
        job = await client.submit("echo", 2)
        assert await job.result() == 2


@pytest.mark.requirement("P7.10", "D38", "L13")
async def test_a_job_that_runs_too_long(reference_peer: ReferencePeer) -> None:
    async with play(reference_peer) as played:
        job = await played.client.submit("slow", max_runtime_sec=1)
        with pytest.raises(arcp_trio.JobTimeoutError):
            await job.result()
        assert job.status == "timed_out"


@pytest.mark.requirement("D31", "P8.2")
async def test_many_at_once(reference_peer: ReferencePeer) -> None:
    async with play(reference_peer) as played:
        results: dict[int, object] = {}

        async def one(number: int) -> None:
            job = await played.client.submit("echo", number)
            results[number] = await job.result()

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)
        assert results == {number: number for number in range(50)}


@pytest.mark.requirement("K02", "P6.21")
async def test_a_server_that_goes_away(reference_peer: ReferencePeer) -> None:
    with trio.fail_after(30):
        async with reference_peer.open_server() as server:
            async with arcp_trio.open_client(server.url, token="secret", reconnect=None) as client:
                job = await client.submit("slow")
                await server.stop()
                with pytest.raises(arcp_trio.ConnectionLostError):
                    await job.result()
                with pytest.raises(arcp_trio.ConnectionLostError):
                    await client.submit("echo")
