"""Opening and leaving a runtime: every way out gives every job its terminal event, and nothing stays behind."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Script, connect_raw, open_raw, terminals

import arcp_trio
from arcp_trio.shutdown import shut_down
from arcp_trio.transports.base import TransportClosedError


@pytest.mark.requirement("L22", "Z07", "Z12")
async def test_the_caller_is_cancelled_from_outside(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    """Jobs end as INTERNAL_ERROR, retryable, and not as cancelled; whoever listens hears it, then 1001."""
    heard: list[str] = []
    async with trio.open_nursery() as nursery:

        async def watch(client: Any) -> None:
            error = await client.receive_until("job.error")
            heard.append(error["payload"]["code"])
            assert error["payload"]["retryable"] is True
            assert error["payload"]["final_status"] == "error"
            heard.append(str((await client.receive_close()).code))

        with trio.CancelScope() as scope:
            async with arcp_trio.open_runtime(script.agents) as runtime:
                client = await connect_raw(runtime)
                await client.submit("sleep")
                await client.settle()
                nursery.start_soon(watch, client)
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
    assert heard == ["INTERNAL_ERROR", "1001"]
    assert (script.entered, script.left) == (1, 1)


@pytest.mark.parametrize("error", [ValueError("body"), ExceptionGroup("group", [KeyError("k")]), SystemExit(3)])
async def test_what_the_body_raises_leaves_as_it_is(script: Script, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
            await client.submit("sleep")
            raise error
    assert caught.value is error


@pytest.mark.requirement("L22", "Z12")
@pytest.mark.parametrize("agent", ["sleep", "stubborn", "gate"])
async def test_leaving_ends_every_job_within_the_deadline(
    script: Script, agent: str, autojump_clock: trio.testing.MockClock
) -> None:
    limits = arcp_trio.Limits(shutdown_seconds=8)
    async with trio.open_nursery() as nursery:

        async def open_gate_late() -> None:
            await trio.sleep(1000)
            script.gate.set()

        nursery.start_soon(open_gate_late)
        async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
            client = await connect_raw(runtime)
            job_ids = [await client.submit(agent) for _ in range(5)]
            await client.settle()
            left_at = trio.current_time()
            await runtime.aclose()
            assert trio.current_time() - left_at <= 8
            statistics = runtime.statistics()
            assert (statistics.jobs_running, statistics.terminals_published, statistics.tear_downs) == (0, 5, 5)
            assert len(statistics.disowned_agents) == (5 if agent == "stubborn" else 0)
            await client.settle()
            for job_id in job_ids:
                assert len(terminals(client.received, job_id)) == 1
            # A second and a third close wait for nothing new.
            await runtime.aclose()
        # An agent that refuses to end holds the block, and nothing else does.
        assert (trio.current_time() - left_at > 900) == (agent == "stubborn")


@pytest.mark.requirement("L22")
async def test_two_closes_at_once(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
        await client.submit("sleep")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.aclose)
            nursery.start_soon(runtime.aclose)
        assert runtime.statistics().terminals_published == 1


async def test_a_runtime_that_has_shut_down_says_so(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        await runtime.aclose()
        with pytest.raises(arcp_trio.ConnectionLostError, match="the runtime has shut down"):
            async with runtime.open_session(principal="me"):
                raise AssertionError
    with pytest.raises(arcp_trio.ConnectionLostError, match="the runtime has shut down"):
        async with runtime.open_session(principal="me"):
            raise AssertionError


async def test_a_close_goes_on_whoever_is_cancelled(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
        await client.submit("sleep")
        finished = False
        with trio.CancelScope() as scope:
            scope.cancel()
            await runtime.aclose()
            finished = True
        assert finished
        assert (runtime.statistics().jobs_running, runtime.statistics().terminals_published) == (0, 1)


class StuckTarget:
    """A runtime of which nothing ever ends, as a shutdown sees it."""

    def __init__(self) -> None:
        self.done: list[tuple[float, str]] = []

    def _note(self, what: str) -> None:
        self.done.append((trio.current_time(), what))

    def stop_listening(self) -> None:
        self._note("stop listening")

    def close_jobs(self, until: float) -> None:
        self._note(f"close jobs until {until:g}")

    def bound_revocations(self, until: float) -> None:
        self._note(f"bound revocations to {until:g}")

    def stop_revoking(self) -> None:
        self._note("stop revoking")

    def close_connections(self) -> None:
        self._note("close connections")

    def cancel_connections(self) -> None:
        self._note("cancel connections")

    async def wait_jobs_ended(self) -> None:
        await trio.sleep_forever()

    async def wait_connections_closed(self) -> None:
        await trio.sleep_forever()


@pytest.mark.requirement("L22", "Z12")
async def test_the_phases_share_one_deadline_whatever_never_ends(autojump_clock: trio.testing.MockClock) -> None:
    target = StuckTarget()
    with trio.CancelScope() as scope:
        # A shutdown is what a cancelled runtime does: no cancellation from outside stops it.
        scope.cancel()
        await shut_down(target, arcp_trio.Limits(drain_seconds=4, shutdown_seconds=14))
    assert target.done == [
        (0, "stop listening"),
        (4, "bound revocations to 12.5"),
        (4, "close jobs until 11"),
        (14, "stop revoking"),
        (14, "cancel connections"),
    ]


class EndingTarget(StuckTarget):
    """One whose jobs end."""

    async def wait_jobs_ended(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.requirement("C13")
async def test_nothing_is_revoked_once_all_jobs_have_ended(autojump_clock: trio.testing.MockClock) -> None:
    """What is left stands in the ledger, and a goodbye takes its time."""
    target = EndingTarget()
    await shut_down(target, arcp_trio.Limits(shutdown_seconds=10))
    assert [(at, what) for at, what in target.done if what.startswith(("stop r", "close c"))] == [
        (0, "stop revoking"),
        (0, "close connections"),
        (10, "stop revoking"),
    ]


async def test_the_drain_lets_jobs_end_by_themselves(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.Limits(drain_seconds=5, shutdown_seconds=10)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        async with trio.open_nursery() as nursery, runtime.open_session(principal="me") as client:
            job = await client.submit("gate")
            nursery.start_soon(runtime.aclose)
            await trio.sleep(3)
            script.gate.set()
            assert await job.result() == "through"


@pytest.mark.requirement("T16")
async def test_a_closing_runtime_takes_nothing_new(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.Limits(drain_seconds=5, shutdown_seconds=10)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, trio.open_nursery() as nursery:
        async with open_raw(runtime) as client:
            await client.submit("gate")
            nursery.start_soon(runtime.aclose)
            await trio.sleep(1)
            await client.request("job.submit", {"agent": "echo"})
            refusal = await client.receive_until("session.error")
            assert (refusal["payload"]["code"], refusal["payload"]["retryable"]) == ("INTERNAL_ERROR", True)
            with pytest.raises(arcp_trio.InternalError):
                async with runtime.open_session(principal="me"):
                    raise AssertionError
            script.gate.set()


@pytest.mark.requirement("Z12")
async def test_a_client_that_never_reads_does_not_hold_the_shutdown(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    limits = arcp_trio.Limits(shutdown_seconds=6, throttle_seconds=1, window_bytes=100 * 1024 * 1024)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        client = await connect_raw(runtime)
        await client.submit("flood", 4000)
        await trio.sleep(2)
        started = trio.current_time()
    assert trio.current_time() - started <= 6


@pytest.mark.requirement("M05")
async def test_ten_thousand_jobs_leave_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    """No task, no timer, no follower, no growth but the records, which are bounded."""
    agents = arcp_trio.Agents()

    @agents.register("quick")
    async def quick(job: arcp_trio.JobContext, value: Any) -> Any:
        await job.log("info", "one")
        if value % 3 == 1:
            raise arcp_trio.PermissionDeniedError("a third fails")
        if value % 3 == 2:
            await trio.sleep_forever()
        return value

    limits = arcp_trio.Limits(retention_records=500, jobs_per_principal=5000)
    async with (
        arcp_trio.open_runtime(agents, limits=limits) as runtime,
        runtime.open_session(principal="me") as client,
    ):

        async def run(numbers: range) -> None:
            for number in numbers:
                job = await client.submit("quick", number, max_runtime_sec=3600)
                if number % 3 == 2:
                    await job.cancel()
                await job.wait_ended()

        async def batch(start: int, count: int) -> None:
            async with trio.open_nursery() as nursery:
                for offset in range(50):
                    nursery.start_soon(run, range(start + offset, start + count, 50))

        def objects() -> dict[str, int]:
            gc.collect()
            counted: dict[str, int] = {}
            for item in gc.get_objects():
                name = type(item).__name__
                if name in (
                    "JobActor",
                    "JobContext",
                    "JobFeed",
                    "JobHandle",
                    "CancelScope",
                    "Task",
                    "Timer",
                    "Mailbox",
                ):
                    counted[name] = counted.get(name, 0) + 1
            return counted

        await batch(0, 1000)
        await trio.testing.wait_all_tasks_blocked()
        before, tasks_before = objects(), trio.lowlevel.current_statistics().tasks_living
        await batch(1000, 9000)
        await trio.testing.wait_all_tasks_blocked()
        statistics = runtime.statistics()
        assert statistics.jobs_accepted == statistics.terminals_published == statistics.tear_downs == 10_000
        assert (statistics.jobs_running, statistics.jobs_retained, statistics.bugs) == (0, 500, 0)
        assert statistics.timers <= 1
        assert trio.lowlevel.current_statistics().tasks_living == tasks_before
        after = objects()
        assert {name: after[name] - before.get(name, 0) for name in after if after[name] > before.get(name, 0)} == {}
        await trio.sleep(limits.retention_seconds + 1)
        assert (runtime.statistics().jobs_retained, runtime.statistics().timers) == (0, 0)
        assert not runtime._directory._running


@pytest.mark.requirement("P5.3a", "L06")
async def test_one_event_is_encoded_once_however_many_follow(script: Script) -> None:
    """And a terminal event once more for each dialect that wants it otherwise."""
    from arcp_trio.jobs import feed as feed_module
    from arcp_trio.jobs.actor import JobActor

    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        async with open_raw(runtime, compat="python") as python, open_raw(runtime, compat="ruby") as ruby:
            # Two more followers, by hand: subscriptions will do the same.
            tails: list[bytes] = []
            errors: list[Any] = []
            original, encode, encoder = feed_module.encode_tail, feed_module.encode_payload, feed_module.EventTails

            class CountedTails(encoder):  # type: ignore[misc, valid-type]
                def encode(self, *args: Any, **options: Any) -> bytes:
                    tails.append(super().encode(*args, **options))
                    return tails[-1]

            feed_module.EventTails = CountedTails  # type: ignore[misc]
            feed_module.encode_tail = lambda *args, **kw: tails.append(original(*args, **kw)) or tails[-1]  # type: ignore[func-returns-value]
            feed_module.encode_payload = lambda message: errors.append(message) or encode(message)  # type: ignore[func-returns-value]
            try:
                submit = await client.request("job.submit", {"agent": "gate"})
                job_id = (await client.receive_until("job.accepted"))["job_id"]
                assert submit
                actor = runtime._directory.find(job_id)
                assert isinstance(actor, JobActor)
                for session in list(runtime._sessions._sessions.values())[1:]:
                    session.follow(actor)
                await client.settle()
                assert len(tails) == runtime.statistics().events_encoded == 1
                await client.request("job.cancel", {"job_id": job_id})
                frames = [await each.receive_until("job.error") for each in (client, python, ruby)]
            finally:
                feed_module.encode_tail, feed_module.encode_payload = original, encode
                feed_module.EventTails = encoder  # type: ignore[misc]
            assert [frame["payload"]["final_status"] for frame in frames] == ["cancelled", "error", "cancelled"]
            # One event, and one terminal in two forms for three followers of three dialects.
            assert (len(tails), len(errors)) == (3, 2)
            for each in (python, ruby):
                numbers = [frame["event_seq"] for frame in each.received if "event_seq" in frame]
                assert numbers == list(range(1, len(numbers) + 1))


async def test_two_hundred_flooding_agents_beside_a_quiet_one() -> None:
    """A quiet agent's event leaves after a bounded number of the others', and not after all of them."""
    agents = arcp_trio.Agents()
    emitted = 0
    mark = 0
    stop = False
    gate = trio.Event()
    # In a turn each flood emits at least once, and all together one slice: 250. A submit, its acceptance, its start,
    # its event and its result take about ten turns of the loop.
    bound = 30 * 250

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, value: Any) -> None:
        nonlocal emitted, stop
        await gate.wait()
        while not stop:
            await job.log("info", "flood")
            emitted += 1
            # Looked at here: floods that never yield would never let the test look.
            stop = stop or emitted - mark > bound

    @agents.register("quiet")
    async def quiet(job: arcp_trio.JobContext, value: Any) -> None:
        await job.log("info", "quiet")

    # Nothing but the pacer holds the floods back.
    huge = 10**9
    limits = arcp_trio.Limits(
        jobs_per_principal=300, lag_events=huge, lag_bytes=huge, window_events=huge, window_bytes=huge
    )
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime:
        # A clock that moves by the work done: 20 us for each look, so a slice is 50 emissions.
        ticks = iter(range(10**9))
        runtime._pacer._clock = lambda: next(ticks) * 20e-6
        async with (
            runtime.open_session(principal="noise") as noise,
            runtime.open_session(principal="quiet") as listener,
        ):
            for _ in range(200):
                await noise.submit("flood")
            gate.set()
            for _ in range(20):
                mark = emitted
                await (await listener.submit("quiet")).result()
                assert not stop, "the floods held the loop"
            stop = True
    assert emitted > 1000


def interrupt_at(wanted: int, files: tuple[str, ...]) -> tuple[Callable[..., Any], list[int]]:
    """A trace function that presses control-C at the n-th line that runs in one of the files."""
    count = [0]

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            count[0] += 1
            if count[0] == wanted:
                signal.raise_signal(signal.SIGINT)
        return trace

    return trace, count


FILES = (
    "jobs/actor.py",
    "jobs/mailbox.py",
    "jobs/feed.py",
    "jobs/directory.py",
    "jobs/agent_task.py",
    "jobs/context.py",
    "jobs/pacer.py",
    "sessions/session.py",
    "sessions/stream.py",
    "sessions/requests.py",
)


async def interrupted_program(seen: list[arcp_trio.Runtime]) -> None:
    script = Script()
    async with arcp_trio.open_runtime(script.agents, limits=arcp_trio.Limits(cancel_grace_seconds=1)) as runtime:
        seen.append(runtime)
        async with runtime.open_session(principal="me") as client:
            waiting = await client.submit("gate")
            done = await client.submit("echo", 1)
            sleeping = await client.submit("sleep", max_runtime_sec=5)
            await done.result()
            await waiting.cancel()
            await waiting.cancel()
            await done.cancel()
            await sleeping.wait_ended()


@pytest.mark.requirement("E05", "Z07")
@pytest.mark.parametrize(
    ("files", "runs"),
    [
        (FILES, 120),
        (("jobs/actor.py",), 10_000),
        (("jobs/feed.py", "sessions/stream.py"), 10_000),
        (("jobs/mailbox.py", "jobs/directory.py"), 10_000),
    ],
)
def test_control_c_at_any_line_of_the_actor(files: tuple[str, ...], runs: int) -> None:
    """Wherever it comes, every job that was accepted has one terminal event and one tear-down."""

    def run(wanted: int) -> tuple[bool, int, arcp_trio.RuntimeStatistics | None]:
        seen: list[arcp_trio.Runtime] = []
        trace, count = interrupt_at(wanted, files)
        interrupted = False
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            trio.run(
                partial(interrupted_program, seen),
                clock=trio.testing.MockClock(autojump_threshold=0),
            )
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(before)
        return interrupted, count[0], seen[0].statistics() if seen else None

    interrupted, lines, statistics = run(0)
    assert not interrupted
    assert lines > 50
    assert statistics is not None
    assert statistics.terminals_published == 3
    for wanted in range(1, lines, max(1, lines // runs)):
        interrupted, ran, statistics = run(wanted)
        # Tasks run in random order, so one run may end a few lines earlier than another.
        assert interrupted or ran < wanted, wanted
        if statistics is None:
            # So early that the runtime was not open yet.
            continue
        assert statistics.terminals_published == statistics.tear_downs == statistics.jobs_accepted, wanted
        assert (statistics.jobs_running, statistics.bugs, statistics.sessions) == (0, 0, 0), wanted


@pytest.mark.requirement("E05")
def test_control_c_in_an_agents_own_code() -> None:
    """It goes through the runtime to the program, after every job has its terminal event."""
    agents = arcp_trio.Agents()
    heard: list[str] = []
    kept: list[arcp_trio.Runtime] = []

    @agents.register("interrupted")
    async def interrupted(job: arcp_trio.JobContext, value: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    @agents.register("sleep")
    async def sleep(job: arcp_trio.JobContext, value: Any) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        async with arcp_trio.open_runtime(agents) as runtime:
            kept.append(runtime)
            async with open_raw(runtime) as client:
                first = await client.submit("sleep")
                try:
                    second = await client.submit("interrupted")
                    await client.receive_close()
                finally:
                    with trio.CancelScope(shield=True):
                        await client.settle()
                    heard.extend(frame["job_id"] for frame in terminals(client.received))
                    assert {first, second} >= set(heard)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    statistics = kept[0].statistics()
    assert (statistics.terminals_published, statistics.tear_downs, statistics.bugs) == (2, 2, 0)


async def test_a_bug_in_a_timer_ends_the_runtime_loudly(
    script: Script, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("a bug in a timer")

    with pytest.raises(RuntimeError, match="a bug in a timer"):
        async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
            await client.submit("sleep")
            runtime._timers.call_at(trio.current_time() + 1, broken)
            await trio.sleep_forever()
    assert "a service of the runtime failed" in caplog.text
    assert runtime.statistics().terminals_published == 1


def test_limits_refuse_what_bounds_nothing() -> None:
    for value in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="hello_seconds"):
            arcp_trio.Limits(hello_seconds=value)


async def test_serve_transport_needs_somebody_to_trust(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        from arcp_trio.transports.memory import open_memory_pair

        with pytest.raises(ValueError, match="verifier"):
            await runtime.serve_transport(open_memory_pair()[0])
        with pytest.raises(ValueError, match="compat"):
            await runtime.serve_transport(open_memory_pair()[0], principal="me", compat="klingon")


async def test_a_transport_closed_error_is_no_base_of_ours() -> None:
    assert not issubclass(TransportClosedError, arcp_trio.ARCPError)
