"""Sessions that outlive their connections (P6.7 to P6.12)."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import trio
import trio.testing
from helpers import QUIET_FEATURES, Script, connect_raw, terminals
from sessions.resuming import drop, lines, refused, resume, resume_hello, sequence, token_of

import arcp_trio
from arcp_trio.sessions.tokens import ResumeTokens


class Lines:
    """An agent that emits the lines that a test gives it, and ends when told."""

    def __init__(self) -> None:
        self.agents = arcp_trio.Agents()
        self.send, receive = trio.open_memory_channel[str | None](1000)
        self.outcome: BaseException | None = None

        @self.agents.register("lines")
        async def speak(job: arcp_trio.JobContext, value: Any) -> Any:
            async for line in receive:
                if line is None:
                    break
                await job.log("info", line)
            return "done"

    async def say(self, *lines: str | None) -> None:
        for line in lines:
            self.send.send_nowait(line)
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.requirement("P6.7", "P6.9", "P7.2", "S16", "S17")
async def test_events_before_in_and_after_the_gap_come_once_and_in_order() -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        job_id = await client.submit("lines")
        await script.say("one", "two")
        await client.settle()
        await drop(client)
        await script.say("three", "four")
        resumed = await resume(runtime, client, 1)
        frames = await resumed.settle()
        assert sequence(frames) == [2, 3, 4]
        await script.say("five", None)
        frames += await resumed.settle()
        assert lines(frames) == ["two", "three", "four", "five"]
        assert sequence(frames) == [2, 3, 4, 5, 6]
        assert len(terminals(frames, job_id)) == 1
        # The accepted that its client has seen is not among them; from before it, it is.
        assert not [frame for frame in frames if frame["type"] == "job.accepted"]
        again = await resume(runtime, resumed, 0)
        frames = await again.settle()
        assert frames[0]["type"] == "job.accepted"
        assert frames[0]["payload"]["job_id"] == job_id
        assert sequence(frames) == [1, 2, 3, 4, 5, 6]
        # What marks the end of the replay comes behind all of it.
        assert frames[-1]["type"] == "x-arcp-trio.replayed"


@pytest.mark.requirement("P6.9", "S15")
async def test_a_replay_is_the_same_byte_for_byte(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        await client.request("job.submit", {"agent": "flood", "input": 20})
        first = [frame for frame in await client.settle() if "event_seq" in frame]
        for _ in range(3):
            await drop(client)
            client = await resume(runtime, client, 0)
            assert [frame for frame in await client.settle() if "event_seq" in frame] == first
        (session,) = runtime._sessions._sessions.values()
        assert session.stream.kept_events == 21


@pytest.mark.requirement("P6.9", "S13")
async def test_a_replay_larger_than_any_buffer_while_the_agent_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    """Nine thousand events replayed while more come, past what an unread lag may be."""
    agents = arcp_trio.Agents()
    go_on = trio.Event()

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, value: Any) -> Any:
        for number in range(9000):
            await job.log("info", f"{number} {'x' * 1000}")
        await go_on.wait()
        for number in range(9000, 9900):
            await job.log("info", f"{number} {'x' * 1000}")

    async with arcp_trio.open_runtime(agents) as runtime:
        client = await connect_raw(runtime)
        job_id = await client.submit("flood")
        await drop(client)
        await trio.testing.wait_all_tasks_blocked()
        resumed = await resume(runtime, client, 0)
        go_on.set()
        await resumed.receive_until("job.result")
        numbers = sequence(resumed.received)
        # With a notice or two: eight thousand sent and never acknowledged are a lag too (P6.17).
        assert numbers == list(range(1, len(numbers) + 1))
        assert 9902 <= len(numbers) <= 9903
        assert [int(line.split()[0]) for line in lines(resumed.received)] == list(range(9900))
        assert len(terminals(resumed.received, job_id)) == 1


@pytest.mark.requirement("P6.8", "S07")
async def test_tokens_rotate_and_a_lost_welcome_strands_nobody(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        await client.submit("gate")
        await client.settle()
        first = token_of(client)
        # Three welcomes that never arrive: the token before them is good each time.
        for _ in range(3):
            lost = await connect_raw(runtime, hello=resume_hello(client, 1))
            await drop(lost)
        resumed = await resume(runtime, client, 1)
        second = token_of(resumed)
        assert second != first
        # The first message confirms the new token: from here on the old one is worth nothing.
        await resumed.request("session.ping", {"nonce": "n"})
        await resumed.settle()
        answer = await refused(runtime, resume_hello(client, 1))
        assert answer["payload"]["code"] == "RESUME_WINDOW_EXPIRED"
        # And that has cost the owner nothing.
        await resumed.request("session.ping", {"nonce": "again"})
        assert (await resumed.receive_until("session.pong"))["payload"]["ping_nonce"] == "again"
        await drop(resumed)
        await resume(runtime, resumed, 1)


@pytest.mark.requirement("P6.8", "S08")
def test_tokens_as_values() -> None:
    tokens = ResumeTokens()
    issued = [tokens.issue("sess_1")]
    assert issued[0].startswith("sess_1.")
    # 256 bits of its own.
    assert len(issued[0]) >= len("sess_1.") + 43
    issued += [tokens.issue("sess_1") for _ in range(9)]
    # The one that its client may have for certain, and the newest three.
    assert [tokens.matches(token) for token in issued] == [True] + [False] * 6 + [True] * 3
    tokens.confirm(issued[8])
    assert [tokens.matches(issued[number]) for number in (0, 7, 8, 9)] == [False, False, True, True]
    tokens.confirm("not one of them")
    assert tokens.matches(issued[8])
    tokens.confirm(issued[9])
    assert [tokens.matches(issued[number]) for number in (8, 9)] == [False, True]
    for odd in ("", "x", "ä" * 40, "\ud800", issued[9][:-1], issued[9] + "x"):
        assert not tokens.matches(odd)
    assert not any(token.rpartition(".")[2] in repr(vars_of(tokens)) for token in issued)


@pytest.mark.requirement("P6.8", "P6.11")
async def test_a_message_beside_a_takeover_does_not_cost_the_new_connection_its_token(script: Script) -> None:
    """It confirms the token of its own connection, which is no longer the newest."""
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        await client.submit("gate")
        # In every other round, about, the hello is handled first.
        for _ in range(20):
            await client.settle()
            client = await resume(runtime, client, 1)
            hello = resume_hello(client, 1)
            taker = await connect_raw(runtime, shake_hands=False)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, client.make("session.ack", {"last_processed_seq": 1}))
                nursery.start_soon(taker.send, hello)
            welcome = await taker.receive_until("session.welcome")
            taker.session_id = welcome["session_id"]
            taker._numbers = client._numbers
            client = taker
        assert runtime.statistics().sessions == 1


def vars_of(tokens: ResumeTokens) -> list[Any]:
    return [getattr(tokens, name) for name in ResumeTokens.__slots__]


@pytest.mark.requirement("P6.10", "S09", "S10", "S11", "S12", "S22")
async def test_every_resume_that_fails_fails_alike_and_costs_nothing() -> None:
    script = Lines()
    limits = arcp_trio.Limits(window_events=10)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        client = await connect_raw(runtime)
        job_id = await client.submit("lines")
        for number in range(20):
            await script.say(f"line {number}")
        await client.settle()
        other = await connect_raw(runtime, principal="other")
        await drop(client)
        cases: list[tuple[str, dict[str, Any]]] = [
            ("me", {"resume_token": "never issued"}),
            ("me", {"resume_token": f"{client.session_id}.never-issued"}),
            ("me", {"resume_token": token_of(other)}),
            ("me", {"session_id": other.session_id}),
            ("me", {"session_id": "sess_unknown"}),
            ("other", {}),
            ("other", {"last_event_seq": 21}),
            ("me", {"last_event_seq": 0}),
            ("me", {"last_event_seq": 9}),
            ("me", {"last_event_seq": 21}),
            ("me", {"last_event_seq": 2**63 - 1}),
        ]
        answers = []
        for principal, changes in cases:
            hello = resume_hello(client, 20, **changes)
            answer = await refused(runtime, hello, principal=principal)
            del answer["id"], answer["timestamp"], answer["session_id"]
            answer["payload"] = {
                name: value for name, value in answer["payload"].items() if name not in ("request_id", "reply_to")
            }
            answer.pop("correlation_id")
            answers.append(answer)
        assert all(answer == answers[0] for answer in answers)
        assert answers[0]["payload"]["code"] == "RESUME_WINDOW_EXPIRED"
        for odd in (-1, 2**63, 1.5, True, "1", None):
            answer = await refused(runtime, resume_hello(client, odd))
            assert answer["payload"]["code"] == "INVALID_REQUEST"
            assert "last_event_seq" in answer["payload"]["message"]
        resumed = await resume(runtime, client, 10)
        await script.say("last", None)
        frames = await resumed.settle()
        assert sequence(frames) == list(range(11, 23))
        assert len(terminals(frames, job_id)) == 1


@pytest.mark.requirement("P6.9")
async def test_features_are_fixed_for_a_sessions_life(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        await client.submit("gate")
        await client.settle()
        await drop(client)
        hello = resume_hello(client, 1)
        hello["payload"]["capabilities"]["features"] = ["progress"]
        answer = await refused(runtime, hello)
        assert answer["payload"]["code"] == "INVALID_REQUEST"
        assert "agent_versions" in answer["payload"]["message"]
        # More than it has are no more than it has.
        hello = resume_hello(client, 1)
        hello["payload"]["capabilities"]["features"] += ["heartbeat", "x-new"]
        resumed = await connect_raw(runtime, hello=hello)
        welcome = resumed.received[0]["payload"]
        assert set(welcome["capabilities"]["features"]) < set(QUIET_FEATURES)
        assert "heartbeat_interval_sec" not in welcome


@pytest.mark.requirement("P6.7", "P6.1")
@pytest.mark.parametrize("form", ["message", "nested", "flat", "token", "flat, no id"])
async def test_the_forms_of_a_resume(script: Script, form: str) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        await client.submit("gate")
        await client.settle()
        await drop(client)
        hello = resume_hello(client, 0)
        resume = hello["payload"].pop("resume")
        if form in ("message", "nested"):
            hello["type"] = "session.resume"
            auth = {"auth": hello["payload"]["auth"]}
            hello["payload"] = {**resume, **auth} if form == "message" else {"resume": resume, **auth}
        elif form.startswith("flat"):
            hello["payload"] |= {name: resume[name] for name in ("resume_token", "last_event_seq")}
        else:
            resume["token"] = resume.pop("resume_token")
            hello["payload"]["resume"] = resume
        resumed = await connect_raw(runtime, hello=hello)
        assert resumed.session_id == client.session_id
        assert sequence(await resumed.settle()) == [1]
        # Without a bearer token no form is one.
        await drop(resumed)
        hello["payload"]["auth"] = {"scheme": "bearer", "token": ""}
        assert (await refused(runtime, hello))["payload"]["code"] == "UNAUTHENTICATED"


@pytest.mark.requirement("P6.11", "P4.5", "L16", "P7.12")
async def test_a_takeover_of_a_half_open_connection() -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        old = await connect_raw(runtime)
        job_id = await old.submit("lines")
        await script.say("one")
        await old.settle()
        new = await resume(runtime, old, 1)
        await script.say("two")
        # What the old one still asks for is nobody's request.
        with pytest.raises(arcp_trio.transports.base.TransportClosedError):
            for _ in range(3):
                await old.request("job.cancel", {"job_id": job_id})
                await trio.testing.wait_all_tasks_blocked()
        before = len(old.received)
        assert (await old.receive_close()).code == 4000
        assert old.received[before:] == []
        frames = await new.settle()
        assert lines(frames) == ["two"]
        assert runtime.statistics().sessions == 1
        await new.request("job.cancel", {"job_id": job_id})
        frames = await new.settle()
        assert [frame["type"] for frame in frames] == ["job.cancelled", "job.error"]


@pytest.mark.requirement("P6.11")
async def test_a_takeover_while_the_old_connection_is_stuck_in_a_write(autojump_clock: trio.testing.MockClock) -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        old = await connect_raw(runtime)
        await old.submit("lines")
        for number in range(600):
            await script.say(f"{number} " + "x" * 1000)
        new = await resume(runtime, old, 0)
        await new.receive_until(lambda frame: frame.get("event_seq") == 600)
        assert sequence(new.received) == list(range(1, 601))
        await trio.sleep(10)
        assert runtime.statistics().connections == 1


@pytest.mark.requirement("P6.12", "S21")
async def test_the_window_counts_from_the_loss(autojump_clock: trio.testing.MockClock) -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents, limits=arcp_trio.Limits(resume_seconds=60)) as runtime:
        client = await connect_raw(runtime)
        assert client.received[0]["payload"]["resume_window_sec"] == 60
        await client.submit("lines")
        await trio.sleep(1000)
        await drop(client)
        await trio.sleep(59)
        client = await resume(runtime, client, 0)
        await trio.sleep(1000)
        await drop(client)
        await trio.sleep(61)
        statistics = runtime.statistics()
        assert (statistics.sessions, statistics.sessions_waiting, statistics.jobs_running) == (0, 0, 1)
        assert (await refused(runtime, resume_hello(client, 0)))["payload"]["code"] == "RESUME_WINDOW_EXPIRED"
        # The job goes on to its end, followed by nobody.
        await script.say("unheard", None)
        assert runtime.statistics().jobs_retained == 1


@pytest.mark.requirement("P6.12")
@pytest.mark.parametrize("work", ["nothing", "acked", "not acked"])
async def test_a_session_with_nothing_to_come_back_for_goes_with_its_connection(script: Script, work: str) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        if work != "nothing":
            await client.request("job.submit", {"agent": "echo"})
            await client.settle()
        if work == "acked":
            await client.request("session.ack", {"last_processed_seq": 1})
            await client.settle()
        await drop(client)
        assert runtime.statistics().sessions_waiting == (work == "not acked")


@pytest.mark.requirement("P6.18", "S12", "H13")
async def test_a_session_whose_events_are_too_many_to_wait_for_its_client_ends(script: Script) -> None:
    limits = arcp_trio.Limits(window_events=100)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        client = await connect_raw(runtime)
        await client.submit("gate")
        await client.settle()
        await client.request("job.submit", {"agent": "flood", "input": 10_000})
        # Read before the connection breaks: what is on its way then is lost with it.
        await trio.testing.wait_all_tasks_blocked()
        await drop(client)
        assert (runtime.statistics().sessions_waiting, runtime.statistics().jobs_running) == (0, 1)
        assert (await refused(runtime, resume_hello(client, 1)))["payload"]["code"] == "RESUME_WINDOW_EXPIRED"


@pytest.mark.requirement("P6.18", "H13", "P4.5")
async def test_who_was_too_slow_resumes_and_gets_the_rest(autojump_clock: trio.testing.MockClock) -> None:
    agents = arcp_trio.Agents()

    @agents.register("flood")
    async def flood(job: arcp_trio.JobContext, count: int) -> int:
        for number in range(count):
            await job.log("info", f"{number} " + "x" * 1000)
        return count

    limits = arcp_trio.Limits(lag_events=500, throttle_seconds=1, window_events=4000, close_seconds=30)
    async with arcp_trio.open_runtime(agents, limits=limits) as runtime:
        client = await connect_raw(runtime)
        await client.request("job.submit", {"agent": "flood", "input": 3000})
        await trio.testing.wait_all_tasks_blocked()
        await runtime._directory.wait_idle()
        assert (await client.receive_close()).code == 4001
        seen = sequence(client.received)
        error = client.received[-1]["payload"]
        assert (error["code"], error["retryable"]) == ("INTERNAL_ERROR", True)
        assert error["details"]["resumable_from"] <= seen[-1]
        resumed = await resume(runtime, client, seen[-1])
        await resumed.receive_until("job.result")
        numbers = seen + sequence(resumed.received)
        assert numbers == list(range(1, len(numbers) + 1))
        said = [int(line.split()[0]) for line in lines(client.received + resumed.received)]
        assert said == list(range(3000))


@pytest.mark.requirement("P6.21", "L20")
@pytest.mark.parametrize("verb", ["session.close", "session.bye"])
async def test_a_session_that_was_closed_can_be_resumed(verb: str) -> None:
    script = Lines()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        job_id = await client.submit("lines")
        await client.request(verb)
        assert (await client.receive_close()).code == 1000
        await script.say("while away", None)
        resumed = await resume(runtime, client, 0)
        frames = await resumed.settle()
        assert lines(frames) == ["while away"]
        assert len(terminals(frames, job_id)) == 1


@pytest.mark.requirement("P6.9", "P7.12", "L16")
async def test_a_cancel_that_was_acknowledged_in_the_gap(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        job_id = await client.submit("sleep")
        await client.settle()
        cancel = client.make("job.cancel", {"job_id": job_id})
        await client.send(cancel)
        await trio.testing.wait_all_tasks_blocked()
        await drop(client)
        resumed = await resume(runtime, client, 0)
        frames = await resumed.settle()
        types = [frame["type"] for frame in frames]
        assert types == ["job.accepted", "job.cancelled", "job.error", "x-arcp-trio.replayed"]
        # The same message again is not carried out again.
        await resumed.send(cancel)
        again = await resumed.settle()
        assert [frame["type"] for frame in again] in ([], ["job.cancelled"])
        assert not terminals(again)
        assert runtime.statistics().cancels_acknowledged == 1


@pytest.mark.requirement("P5.7", "P6.9")
async def test_a_submit_that_is_sent_again_after_a_resume_runs_once(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime)
        await client.submit("gate")
        submit = client.make("job.submit", {"agent": "echo", "input": "ä"})
        await client.send(submit)
        await trio.testing.wait_all_tasks_blocked()
        await drop(client)
        resumed = await resume(runtime, client, 0)
        await resumed.settle()
        await resumed.send(submit)
        await resumed.settle()
        assert runtime.statistics().jobs_accepted == 2
        accepted = [frame for frame in resumed.received if frame["type"] == "job.accepted"]
        assert {frame["payload"]["request_id"] for frame in accepted} >= {submit["id"]}


@pytest.mark.requirement("P6.3", "H16")
async def test_who_waits_for_its_client_does_not_stand_in_the_way(script: Script) -> None:
    limits = arcp_trio.Limits(sessions_per_principal=2, sessions_waiting=3)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        for _ in range(5):
            client = await connect_raw(runtime)
            await client.request("job.submit", {"agent": "echo"})
            await client.settle()
            await drop(client)
        assert runtime.statistics().sessions_waiting == 2
        # The newest is still there.
        await drop(await resume(runtime, client, 0))
        for number in range(4):
            other = await connect_raw(runtime, principal=f"other {number}")
            await other.request("job.submit", {"agent": "echo"})
            await other.settle()
            await drop(other)
        assert runtime.statistics().sessions_waiting == 3
        assert (await refused(runtime, resume_hello(client, 0)))["payload"]["code"] == "RESUME_WINDOW_EXPIRED"


@pytest.mark.requirement("P6.1", "P6.8", "Q02")
async def test_an_anonymous_client_resumes_by_its_token_alone(script: Script) -> None:
    access = arcp_trio.AnonymousAccess()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime, principal=None, verifier=access)
        other = await connect_raw(runtime, principal=None, verifier=access)
        await client.submit("gate")
        await client.settle()
        await drop(client)
        stolen = resume_hello(client, 1, resume_token=token_of(other))
        answer = await refused(runtime, stolen, principal=None, verifier=access)
        assert answer["payload"]["code"] == "RESUME_WINDOW_EXPIRED"
        resumed = await connect_raw(runtime, hello=resume_hello(client, 1), principal=None, verifier=access)
        assert resumed.session_id == client.session_id
        # Somebody with a name is not anonymous.
        await drop(resumed)
        answer = await refused(runtime, resume_hello(resumed, 1), principal="me")
        assert answer["payload"]["code"] == "RESUME_WINDOW_EXPIRED"


@pytest.mark.requirement("P6.12", "M03")
async def test_ten_thousand_connections_leave_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    """Connect, work, drop; some resume. After the windows everything is where it was."""
    script = Script()
    limits = arcp_trio.Limits(retention_seconds=1000, sessions_per_principal=20)

    def measure(runtime: arcp_trio.Runtime) -> tuple[int, ...]:
        statistics = runtime.statistics()
        tasks = trio.lowlevel.current_statistics().tasks_living
        return (
            tasks,
            statistics.sessions,
            statistics.sessions_waiting,
            statistics.connections,
            statistics.timers,
            statistics.jobs_retained,
            len(runtime._sessions._sessions),
            len(runtime._sessions._of_principal),
            len(runtime._timers._heap),
            runtime._session_services.session_parts.total.used,
            runtime._directory.histories.used,
        )

    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime:
        before = measure(runtime)

        async def cycle(number: int) -> None:
            client = await connect_raw(runtime, principal=f"principal {number % 7}")
            if number % 3 == 0:
                await client.request("job.submit", {"agent": "echo", "input": number})
                await client.receive_until("job.result")
            if number % 6 == 0:
                await client.transport.abort()
                await trio.testing.wait_all_tasks_blocked()
                client = await resume(runtime, client, 0, principal=f"principal {number % 7}")
            await client.transport.abort()

        for number in range(10_000):
            await cycle(number)
            if number == 1000:
                await trio.sleep(3000)
                gc.collect()
                objects = len(gc.get_objects())
        await trio.sleep(3000)
        assert measure(runtime) == before
        gc.collect()
        # Room for what the interpreter itself keeps; a leak of one object a connection would be 9,000.
        assert len(gc.get_objects()) - objects < 2000
