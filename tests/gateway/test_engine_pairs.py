"""A gateway and a client on each pair of engines: what one sends the other understands, with TLS and without."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from transport_pairs import ENGINES, make_contexts

import arcp_trio

if TYPE_CHECKING:
    from helpers import Script

    from arcp_trio.transports.engines import EngineName

CASES = [(*pair, tls) for pair in itertools.product(ENGINES, ENGINES) for tls in (False, True)]


@pytest.mark.requirement("P4.1", "P6.7", "P6.9", "P8.2", "P8.5")
@pytest.mark.parametrize(("server", "client", "tls"), CASES)
async def test_everything_over_a_pair(server: EngineName, client: EngineName, tls: bool, script: Script) -> None:
    @script.agents.register("talk")
    async def talk(job: arcp_trio.JobContext, value: int) -> str:
        for number in range(value):
            await job.log("info", f"{number} é \U0001f600")
        return "x" * 300_000

    server_context, client_context = make_contexts() if tls else (None, None)
    tokens = arcp_trio.StaticTokens({"token": "me"})
    phases: list[str] = []
    reconnect = arcp_trio.Reconnect(first_delay_seconds=0.001, on_change=lambda state: phases.append(state.phase))
    options: Any = {"ssl_context": client_context, "engine": client, "reconnect": reconnect}
    with trio.fail_after(60):
        async with (
            arcp_trio.open_runtime(script.agents, verifier=tokens) as runtime,
            trio.open_nursery() as nursery,
        ):
            serve = partial(
                arcp_trio.serve_websocket, runtime, "127.0.0.1", 0, ssl_context=server_context, engine=server
            )
            listening = await nursery.start(serve)
            async with arcp_trio.open_client(listening.url, token="token", **options) as session:
                assert session._session.link.transport.private is tls
                assert [connection.private for connection in runtime._connections] == [tls]
                assert await (await session.submit("echo", {"text": "é" * 50_000})).result() == {"text": "é" * 50_000}
                job = await session.submit("talk", 1_000)
                lines = [event.body["message"] async for event in job.events() if isinstance(event, arcp_trio.Event)]
                assert lines == [f"{number} é \U0001f600" for number in range(1_000)]
                assert await job.result() == "x" * 300_000
                waiting = await session.submit("gate")
                # Cut off, it comes back by the same way, and misses nothing.
                await session._session.link.transport.abort()
                script.gate.set()
                assert await waiting.result() == "through"
                assert phases[-1] == "resumed"
                sleeping = await session.submit("sleep")
                assert (await sleeping.cancel()).applied
            statistics = runtime.statistics()
            assert (statistics.jobs_accepted, statistics.terminals_published, statistics.bugs) == (4, 4, 0)
            while runtime.statistics().connections:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
