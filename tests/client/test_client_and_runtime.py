"""A client and a runtime of ours, and a network between them that breaks."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from playing import Call, read

import arcp_trio
from arcp_trio.transports.base import TransportClosedError
from arcp_trio.transports.memory import MemoryTransport, open_memory_pair

if TYPE_CHECKING:
    from helpers import Script

QUICK = arcp_trio.Reconnect(first_delay_seconds=0.01, max_delay_seconds=0.1, deadline_seconds=1000)


class Wire:
    """A client's end that breaks after so many frames, in either direction, or swallows them all."""

    def __init__(self, inner: MemoryTransport, lives: int) -> None:
        self._inner = inner
        self._left = lives
        self.silent = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def _spend(self, frames: Sequence[Any]) -> Sequence[Any]:
        kept = frames[: max(self._left, 0)]
        self._left -= len(frames)
        if not kept and frames:
            await self._inner.abort()
            raise TransportClosedError(1006, "cut")
        return kept

    async def receive(self) -> Sequence[bytes | str]:
        while True:
            frames = await self._inner.receive()
            if not self.silent:
                return await self._spend(frames)

    async def send(self, frames: Sequence[bytes]) -> None:
        if self.silent:
            await trio.lowlevel.checkpoint()
        else:
            await self._inner.send(await self._spend(frames))


class Network:
    """Connects clients with a runtime, for ``lives()`` frames each time."""

    def __init__(self, runtime: arcp_trio.Runtime, lives: Any = lambda: 10**9) -> None:
        self._runtime = runtime
        self.lives = lives
        self.opened = 0
        self.wire: Wire | None = None

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Any, None]:
        await trio.lowlevel.checkpoint()
        theirs, ours = open_memory_pair()
        self.opened += 1
        serve = partial(self._runtime.serve_transport, theirs, principal="me")
        self._runtime.spawn_connection(serve, "network")
        self.wire = Wire(ours, self.lives() if self.opened > 1 else 10**9)
        try:
            yield self.wire
        finally:
            await ours.abort()

    @asynccontextmanager
    async def open_client(self, **options: Any) -> AsyncGenerator[arcp_trio.Client, None]:
        options = {"reconnect": QUICK, **options}
        async with (
            self.connect() as transport,
            arcp_trio.open_client_over(transport, token="t", connect=self.connect, **options) as client,
        ):
            yield client

    async def cut(self) -> None:
        assert self.wire is not None
        await self.wire._inner.abort()


def make_agents() -> arcp_trio.Agents:
    agents = arcp_trio.Agents()

    @agents.register("count")
    async def count(job: arcp_trio.JobContext, value: Any) -> Any:
        for number in range(value):
            await job.log("info", str(number))
            await trio.sleep(0.02)
        return value

    @agents.register("stream")
    async def stream(job: arcp_trio.JobContext, value: Any) -> None:
        async with job.stream_result() as out:
            for number in range(value):
                await out.write(f"{number},")
                await trio.sleep(0.02)

    return agents


@pytest.mark.requirement("P6.9", "P8.2", "P8.3", "S16", "S17", "S02")
@pytest.mark.parametrize("seed", range(5))
async def test_every_event_arrives_once_and_in_order_however_often_it_breaks(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    rng = random.Random(seed)
    async with arcp_trio.open_runtime(make_agents()) as runtime:
        network = Network(runtime, lambda: rng.randrange(1, 40))
        async with network.open_client() as client:
            texts: list[list[Any]] = [[] for _ in range(10)]
            jobs: list[arcp_trio.JobHandle] = []
            async with trio.open_nursery() as nursery:
                for into in texts:
                    jobs.append(await client.submit("count", 100))
                    nursery.start_soon(read, jobs[-1].events(), into)
                stream = await client.submit("stream", 100)
                await network.cut()
            assert texts == [[str(number) for number in range(100)]] * 10
            assert [await job.result() for job in jobs] == [100] * 10
            assert await stream.result() == "".join(f"{number}," for number in range(100))
            assert runtime.statistics().sessions == 1
        assert network.opened > 20
        assert len({job.job_id for job in jobs}) == 10


@pytest.mark.requirement("P6.9", "K02")
@pytest.mark.parametrize("lives", range(1, 16))
async def test_no_submit_hangs_wherever_it_breaks(
    lives: int, script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    """The connection breaks after so many frames; a submit is answered behind the next one, or says that it is not."""
    async with arcp_trio.open_runtime(script.agents) as runtime:
        network = Network(runtime, iter([lives, *[10**9] * 100]).__next__)
        async with network.open_client() as client, trio.open_nursery() as nursery:
            await network.cut()
            calls = [Call(nursery, client.submit, "gate") for _ in range(3)]
            await trio.sleep(1)
            accepted = [call.value for call in calls if call.error is None]
            for call in calls:
                assert call.done
                assert call.error is None or isinstance(call.error, arcp_trio.ConnectionLostError)
            assert len(accepted) <= script.entered <= 3
            assert client.state.phase in ("resumed", "reopened")
            assert client._session.jobs.keys() == {job.job_id for job in accepted}
            await (await client.submit("echo", 1)).result()
            script.gate.set()
            assert [await job.result() for job in accepted] == ["through"] * len(accepted)


@pytest.mark.requirement("P7.13", "P6.9", "K02")
async def test_a_cancel_is_acknowledged_across_a_break(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        network = Network(runtime)
        async with network.open_client() as client, trio.open_nursery() as nursery:
            job = await client.submit("sleep")
            assert network.wire is not None
            network.wire.silent = True
            call = Call(nursery, job.cancel)
            await trio.testing.wait_all_tasks_blocked()
            await network.cut()
            await trio.sleep(1)
            assert call.value == arcp_trio.CancelOutcome(applied=True, status="cancelled")


@pytest.mark.requirement("P6.13", "P6.14", "H03", "H05", "P6.11")
@pytest.mark.parametrize("side", ["client", "both"])
async def test_a_network_that_swallows_everything_is_noticed(side: str, autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.Limits(heartbeat_seconds=5)
    states: list[str] = []
    policy = arcp_trio.Reconnect(first_delay_seconds=1, jitter=0, on_change=lambda state: states.append(state.phase))
    async with arcp_trio.open_runtime(make_agents(), limits=limits) as runtime:
        network = Network(runtime)
        async with network.open_client(reconnect=policy) as client:
            job = await client.submit("count", 2000)
            await trio.sleep(15)
            assert states == ["connected"]
            assert network.wire is not None
            network.wire.silent = True
            if side == "both":
                # The runtime notices first, and says so to nobody.
                await trio.sleep(9.9)
            assert await job.result() == 2000
            events = [event async for event in job.events()]
        assert states == ["connected", "lost", "retrying", "resumed"]
        assert isinstance(events[0], arcp_trio.Skipped)
        assert events[0].count + len(events) - 1 == 2000


@pytest.mark.requirement("P6.10", "P6.12", "K02")
async def test_a_session_whose_window_has_ended(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.Limits(resume_seconds=5)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        network = Network(runtime)
        # It tries just before the window's end, and again after it.
        policy = arcp_trio.Reconnect(first_delay_seconds=4.9, factor=1, max_delay_seconds=4.9, jitter=0)
        async with network.open_client(reconnect=policy) as client:
            job = await client.submit("sleep")
            lives = iter([0, 10**9])
            network.lives = lives.__next__
            await network.cut()
            with pytest.raises(arcp_trio.ConnectionLostError, match="not resumed within 5 seconds"):
                await job.result()


@pytest.mark.requirement("P6.10", "P6.11", "S22")
async def test_a_session_that_somebody_else_has_taken_over(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        network = Network(runtime)
        async with network.open_client() as client:
            job = await client.submit("sleep")
            thief = Network(runtime)
            async with thief.connect() as transport:
                await transport.send([client._connector._make_hello(client._session.resume_request())])
                # Two would fight for it: the one that is replaced gives in.
                with pytest.raises(arcp_trio.ConnectionLostError, match="4000"):
                    await job.result()
            assert network.opened == 1


@pytest.mark.requirement("P7.17", "P7.18", "P7.20", "S23", "Q09")
async def test_a_subscription_is_followed_through_breaks(autojump_clock: trio.testing.MockClock) -> None:
    rng = random.Random(7)
    async with arcp_trio.open_runtime(make_agents()) as runtime, runtime.open_session(principal="me") as owner:
        job = await owner.submit("count", 200)
        await trio.sleep(1)
        network = Network(runtime, lambda: rng.randrange(3, 40))
        async with network.open_client() as client, trio.open_nursery() as nursery:
            await network.cut()
            handle = await client.subscribe(job.job_id, history=True)
            assert handle.subscribed is not None
            assert handle.subscribed.replayed is True
            texts: list[Any] = []
            nursery.start_soon(read, handle.events(), texts)
            late = await client.subscribe(job.job_id)
            assert late is handle
            assert await handle.result() == 200
            await trio.testing.wait_all_tasks_blocked()
            assert texts == [str(number) for number in range(200)]
            # A job that has ended ends at once, with its history or without.
            ended = await client.subscribe(job.job_id)
            assert await ended.result() == 200
            with pytest.raises(arcp_trio.JobNotFoundError):
                await client.subscribe("job_of_nobody")
        assert network.opened > 3


@pytest.mark.requirement("P7.20", "Q10")
async def test_an_unsubscribed_job_sends_nothing_more(autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(make_agents()) as runtime, runtime.open_session(principal="me") as owner:
        job = await owner.submit("count", 100)
        async with Network(runtime).open_client() as client:
            handle = await client.subscribe(job.job_id)
            await trio.sleep(0.5)
            await handle.unsubscribe()
            await trio.testing.wait_all_tasks_blocked()
            taken = client._session.sequence.last
            assert taken > 10
            await job.result()
            await trio.testing.wait_all_tasks_blocked()
            assert client._session.sequence.last == taken


@pytest.mark.requirement("P6.15", "P6.16", "H15")
async def test_what_was_acked_is_freed(autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(make_agents()) as runtime:
        async with Network(runtime).open_client() as client:
            job = await client.submit("count", 100)
            await job.result()
            await trio.sleep(1)
            (session,) = runtime._sessions._sessions.values()
            assert session.stream.acked == 101


@pytest.mark.requirement("P6.19", "P6.20", "K02")
@pytest.mark.parametrize("lives", range(2, 8))
async def test_a_listing_goes_on_through_a_break(
    lives: int, script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        network = Network(runtime, iter([lives, *[10**9] * 100]).__next__)
        async with network.open_client() as client:
            running = [await client.submit("sleep") for _ in range(3)]
            ended = [await client.submit("echo", number) for number in range(4)]
            for job in ended:
                await job.result()
            await network.cut()
            pages = [page async for page in client.list_jobs(limit=2)]
            assert [job.job_id for page in pages for job in page] == [job.job_id for job in running + ended]
            assert max(len(page) for page in pages) == 2
            (page,) = [page async for page in client.list_jobs(status="running", agent="sleep")]
            assert [(job.job_id, job.agent, job.status) for job in page] == [
                (job.job_id, "sleep@1.0.0", "running") for job in running
            ]
            with pytest.raises(arcp_trio.InvalidRequestError, match="limit"):
                await anext(client.list_jobs(limit=100_000))
        assert network.opened == 3
