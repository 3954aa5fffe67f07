"""A client whose connection is cut at random byte positions, again and again: it gets everything once and in order.

``--cuts`` says how often (``pytest tests/faults --cuts 1000``) and ``--cuts-seed`` where. What a cut meets, a half
upgrade, a lost welcome, a torn event, depends on the machine's timing too: a seed repeats the faults, not the run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from faults.chaos_proxy import ChaosProxy, Direction, Ending, Fault, open_chaos_proxy
from faults.cut_client import CutClient
from helpers import TOKEN

import arcp_trio

pytestmark = pytest.mark.usefixtures("engine")

JOBS = 50
# What one job may say ahead of its reader. With none, nothing would be on its way when a cut comes; with many, most
# of what passes would be replays.
AHEAD = 3
# Within the first of each pair a cut hits the upgrade and the handshake, within the second mostly what comes behind.
REACH = {Direction.UP: (1_200, 4_000), Direction.DOWN: (1_500, 16_000)}


@attrs.define
class Cuts:
    """What happens to one connection after the other.

    Attributes:
        total: How many are cut; those behind them are left alone.
        random: Where everything comes from.
        silences: How often a connection falls silent, for each hundred that are closed or reset.
        first: Where the first connection is cut, on the way down; ``None``: anywhere, as the others.
        struck: How many were cut so far.
        on_silence: Called when a connection falls silent, for a client that has no heartbeats to find out.
    """

    total: int
    random: random.Random
    silences: int = 12
    first: int | None = None
    struck: int = 0
    on_silence: Callable[[], None] = lambda: None
    _begun: int = 0

    def next_fault(self) -> Fault:
        """Return what the next connection has to suffer."""
        if self._begun == self.total:
            return Fault()
        self._begun += 1
        if self._begun == 1 and self.first is not None:
            return Fault(ending=Ending.CLOSE, position=self.first)
        draw = self.random
        direction = draw.choice(list(Direction))
        limit = draw.choice(REACH[direction])
        return Fault(
            ending=draw.choices([Ending.CLOSE, Ending.RESET, Ending.SILENCE], [50, 50, self.silences])[0],
            direction=direction,
            position=draw.randrange(limit),
            # Single bytes are slow: they go to connections that do not get far.
            largest_piece=draw.choice([65_536, 1_000, 1 if limit == REACH[direction][0] else 100]),
            delayed_at=draw.randrange(limit),
            delay_turns=draw.randrange(20),
        )

    def on_strike(self, fault: Fault) -> None:
        """Count a cut."""
        self.struck += 1
        if fault.ending is Ending.SILENCE:
            self.on_silence()


class Counting:
    """Jobs that count: each says its next number when one of those before was read, and ends among the cuts.

    They wait for :attr:`begin`.
    """

    def __init__(self, cuts: Cuts) -> None:
        self.agents = arcp_trio.Agents()
        self.begin = trio.Event()
        self.ahead = {f"msg_submit_{number}": trio.Semaphore(AHEAD) for number in range(JOBS)}
        self.inputs = {
            request_id: [request_id, (number + 1) * cuts.total // JOBS] for number, request_id in enumerate(self.ahead)
        }

        @self.agents.register("count")
        async def count(job: arcp_trio.JobContext, value: tuple[str, int]) -> int:
            request_id, until = value
            said = 0
            await self.begin.wait()
            while cuts.struck < until:
                await self.ahead[request_id].acquire()
                await job.log("info", str(said))
                said += 1
            return said


@pytest.fixture
def cuts(pytestconfig: pytest.Config) -> Cuts:
    option = pytestconfig.option
    # Captured, and shown when the test fails.
    print(f"--cuts {option.cuts} --cuts-seed {option.cuts_seed}")
    return Cuts(total=option.cuts, random=random.Random(option.cuts_seed))


@asynccontextmanager
async def open_cut_gateway(
    counting: Counting, cuts: Cuts, limits: arcp_trio.Limits | None = None
) -> AsyncGenerator[tuple[arcp_trio.Runtime, ChaosProxy], None]:
    """Serve the jobs that count, behind a proxy that cuts."""
    tokens = arcp_trio.StaticTokens({TOKEN: "me"})
    async with arcp_trio.open_runtime(counting.agents, verifier=tokens, limits=limits) as runtime:
        async with trio.open_nursery() as nursery:
            listening = await nursery.start(arcp_trio.serve_websocket, runtime, "127.0.0.1", 0)
            with trio.fail_after(110):
                async with open_chaos_proxy(listening.port, cuts.next_fault, on_strike=cuts.on_strike) as proxy:
                    yield runtime, proxy
            nursery.cancel_scope.cancel()


@pytest.mark.requirement("P6.8", "P6.9", "P6.11", "P5.7", "P7.2", "P7.8", "P8.2", "S16", "S17")
async def test_the_runtime_sends_everything_once_and_in_order(cuts: Cuts) -> None:
    counting = Counting(cuts)
    counting.begin.set()
    submits = {request_id: {"agent": "count", "input": value} for request_id, value in counting.inputs.items()}
    async with open_cut_gateway(counting, cuts) as (runtime, proxy):
        client = CutClient(proxy.url, submits, counting.ahead)
        cuts.on_silence = client.give_up_connection
        await client.run()
        statistics = runtime.statistics()
    print(dict(client.happened), f"{client.last_seq} events")
    # The cuts have met what they were made for: sessions that go on, and welcomes that were lost on the way.
    assert cuts.struck == cuts.total
    assert client.happened["resumed"] > cuts.total / 3
    assert client.happened["upgraded"] - client.happened["resumed"] > cuts.total / 20
    assert len(client.jobs) == len(client.terminals) == JOBS
    for job_id, terminals in client.terminals.items():
        (terminal,) = terminals
        assert terminal["type"] == "job.result", terminal
        assert client.lines[job_id] == [str(number) for number in range(terminal["payload"]["result"])]
    assert statistics.jobs_accepted == statistics.terminals_published == JOBS
    # Its own, until the last ack; those whose first welcome was lost went with their connections.
    assert statistics.sessions + statistics.sessions_waiting <= 1
    assert statistics.bugs == 0


@pytest.mark.requirement("P6.7", "P6.9", "P6.14", "P7.8", "P8.2", "P8.3", "S16", "S17")
async def test_a_client_gets_everything_once_and_in_order(cuts: Cuts) -> None:
    """The same, by the client that a user has: nobody who waits for a job learns that there was a cut."""
    counting = Counting(cuts)
    results: list[int] = []
    phases: Counter[str] = Counter()
    # Silence is found out in real time, by heartbeats or by a handshake that takes too long.
    cuts.silences = 1
    limits = arcp_trio.Limits(heartbeat_seconds=0.1)
    # Acks come so often that the way up is worth a cut, too.
    bounds = arcp_trio.ClientLimits(connect_seconds=1, ack_seconds=0.002)
    # The jobs are submitted first: a submit that a cut meets fails, since it may have arrived. They take half of this.
    cuts.first = 40_000
    reconnect = arcp_trio.Reconnect(
        first_delay_seconds=0.001,
        max_delay_seconds=0.005,
        on_change=lambda state: phases.update([state.phase]),
    )

    async def read(job: arcp_trio.JobHandle, ahead: trio.Semaphore) -> None:
        lines: list[str] = []
        async for event in job.events():
            assert isinstance(event, arcp_trio.Event), event
            lines.append(str(event.body["message"]))
            ahead.release()
        result = await job.result()
        assert isinstance(result, int)
        assert lines == [str(number) for number in range(result)]
        results.append(result)

    async with open_cut_gateway(counting, cuts, limits) as (runtime, proxy):
        async with arcp_trio.open_client(proxy.url, token=TOKEN, reconnect=reconnect, limits=bounds) as client:
            async with trio.open_nursery() as nursery:
                for request_id, ahead in counting.ahead.items():
                    job = await client.submit("count", counting.inputs[request_id])
                    nursery.start_soon(read, job, ahead)
                assert proxy.struck == 0
                counting.begin.set()
        statistics = runtime.statistics()
    print(dict(phases), f"{sum(results)} events")
    assert cuts.struck == cuts.total
    assert phases["resumed"] > cuts.total / 3
    assert len(results) == JOBS
    assert statistics.jobs_accepted == statistics.terminals_published == JOBS
    assert statistics.bugs == 0
