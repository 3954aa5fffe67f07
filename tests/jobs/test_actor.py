"""One job at a time, from its acceptance to its record, seen from the wire."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Script, open_raw
from jobs.ends import last_of

import arcp_trio
from arcp_trio.wire.ids import IdFactory
from arcp_trio.wire.timestamps import WallClock


@pytest.mark.requirement("P7.2", "P7.7", "P7.8", "P8.2", "S01")
async def test_success_on_the_wire(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        request_id = await client.request("job.submit", {"agent": "gate", "input": None}, trace_id="ab" * 16)
        accepted = await client.receive()
        job_id = accepted["payload"]["job_id"]
        assert accepted["type"] == "job.accepted"
        assert accepted["job_id"] == job_id
        assert accepted["correlation_id"] == accepted["payload"]["request_id"] == request_id
        assert accepted["payload"]["reply_to"] == request_id
        assert accepted["payload"]["agent"] == "gate@1.0.0"
        assert accepted["trace_id"] == accepted["payload"]["trace_id"] == "ab" * 16
        assert "event_seq" not in accepted
        event = await client.receive()
        assert (event["type"], event["event_seq"], event["payload"]["kind"]) == ("job.event", 1, "log")
        script.gate.set()
        result = await last_of(client, job_id)
        assert (result["type"], result["event_seq"]) == ("job.result", 2)
        payload = result["payload"]
        assert payload["final_status"] == "success"
        assert payload["result"] == payload["output"] == "through"
        assert payload["job_id"] == job_id
        assert {frame["trace_id"] for frame in (accepted, event, result)} == {"ab" * 16}


@pytest.mark.requirement("P7.8")
async def test_null_result_has_neither_name(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", None)
        payload = (await last_of(client, job_id))["payload"]
        assert not {"result", "output", "result_id"} & payload.keys()


@pytest.mark.requirement("L27")
async def test_terminal_times_are_the_injected_clocks(script: Script) -> None:
    clock = WallClock(lambda: 1_700_000_000.5)
    async with arcp_trio.open_runtime(script.agents, clock=clock) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", 1)
        frame = await last_of(client, job_id)
        assert frame["payload"]["completed_at"] == frame["timestamp"] == "2023-11-14T22:13:20.500Z"


@pytest.mark.requirement("P7.13", "L05")
async def test_cancel_is_acknowledged_and_then_ends_the_job(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        await trio.testing.wait_all_tasks_blocked()
        request_id = await client.request("job.cancel", {"reason": "enough"}, job_id=job_id)
        ack = await client.receive()
        assert ack["type"] == "job.cancelled"
        assert "event_seq" not in ack
        assert ack["payload"] == {
            "job_id": job_id,
            "reason": "enough",
            "request_id": request_id,
            "reply_to": request_id,
        }
        error = await last_of(client, job_id)
        assert error["payload"]["code"] == "CANCELLED"
        assert error["payload"]["final_status"] == "cancelled"
        assert "enough" in error["payload"]["message"]
        assert (runtime.statistics().cancels_acknowledged, runtime.statistics().cancels_refused) == (1, 0)
    assert (script.entered, script.left) == (1, 1)


class ForeseenIds(IdFactory):
    """Jobs get ids that a test knows before it submits."""

    def job(self) -> str:
        return "job_" + "0" * 26


@pytest.mark.requirement("P7.15")
@pytest.mark.parametrize("together", [True, False])
async def test_a_cancel_before_the_agents_first_step(script: Script, together: bool) -> None:
    """Accepted, cancelled and CANCELLED; in one read with its submit, the agent's body is not even entered."""
    job_id = ForeseenIds().job()
    async with (
        arcp_trio.open_runtime(script.agents, ids=ForeseenIds()) as runtime,
        open_raw(runtime) as client,
    ):
        submit = client.make("job.submit", {"agent": "sleep"})
        cancel = client.make("job.cancel", {"job_id": job_id})
        if together:
            await client.send(submit, cancel)
        else:
            await client.send(submit)
            await client.receive_until("job.accepted")
            await client.send(cancel)
        error = await last_of(client, job_id)
        assert error["payload"]["code"] == "CANCELLED"
        types = [frame["type"] for frame in client.received if frame.get("job_id") == job_id]
        assert types == ["job.accepted", "job.cancelled", "job.error"]
    assert script.entered == (0 if together else 1)


@pytest.mark.requirement("P7.15", "L08")
async def test_a_job_cancelled_while_pending_never_enters_its_agent(script: Script) -> None:
    from arcp_trio.jobs.lifecycle import Phase

    async with arcp_trio.open_runtime(script.agents) as runtime:
        spec_actor = []
        original = runtime._start_job

        def start_and_cancel(spec: Any, accept: Any) -> Any:
            actor = original(spec, accept)
            assert actor.state.phase is Phase.PENDING

            class Request:
                reason = None

                def acknowledge(self) -> None:
                    spec_actor.append("acknowledged")

                def refuse(self, job_status: str) -> None:
                    spec_actor.append(f"refused {job_status}")

            actor.request_cancel(Request())
            actor.request_cancel(Request())
            return actor

        object.__setattr__(runtime._session_services, "start_job", start_and_cancel)
        agents_started: list[str] = []
        object.__setattr__(runtime._job_services, "spawn_agent", lambda function, name: agents_started.append(name))
        async with open_raw(runtime) as client:
            job_id = await client.submit("sleep")
            assert (await last_of(client, job_id))["payload"]["code"] == "CANCELLED"
        assert spec_actor == ["acknowledged", "refused cancelled"]
        assert agents_started == []
        assert runtime.statistics().bugs == 0
    assert script.entered == 0


@pytest.mark.requirement("P7.14", "L01", "L04")
async def test_the_seed_of_this_project(script: Script) -> None:
    """Complete a job; cancel it: the status stays success, nothing is emitted, nothing is torn down twice."""
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", 1)
        await last_of(client, job_id)
        before = runtime.statistics()
        for _ in range(3):
            request_id = await client.request("job.cancel", {"job_id": job_id})
            reply = await client.receive()
            assert reply["type"] == "x-arcp-trio.reply"
            assert reply["payload"] == {
                "request_id": request_id,
                "reply_to": request_id,
                "applied": False,
                "job_id": job_id,
                "job_status": "success",
            }
            assert "event_seq" not in reply
        assert await client.settle() == []
        after = runtime.statistics()
        assert after.cancels_refused == before.cancels_refused + 3
        assert (after.terminals_published, after.tear_downs, after.cancels_acknowledged) == (1, 1, 0)
        # The session's numbering has no hole: the next event has the next number.
        other = await client.submit("echo", 2)
        assert (await last_of(client, other))["event_seq"] == 2


@pytest.mark.requirement("P7.7", "L14")
@pytest.mark.parametrize("status", ["success", "error", "cancelled", "timed_out"])
async def test_a_terminal_state_has_one_name_wherever_it_is_told(
    script: Script, status: str, autojump_clock: trio.testing.MockClock
) -> None:
    """In the event, in the answer to a late cancel, in the record and in the client's handle."""
    agent = {"success": "echo", "error": "fail"}.get(status, "sleep")
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit(agent, max_runtime_sec=5)
        if status == "cancelled":
            await client.request("job.cancel", {"job_id": job_id})
        assert (await last_of(client, job_id))["payload"]["final_status"] == status
        await client.request("job.cancel", {"job_id": job_id})
        assert (await client.receive_until("x-arcp-trio.reply"))["payload"]["job_status"] == status
        record = runtime._directory.find(job_id)
        assert record is not None
        assert record.status == status
        async with runtime.open_session(principal="me") as embedded:
            job = await embedded.submit(agent, max_runtime_sec=5)
            if status == "cancelled":
                await job.cancel()
            await job.wait_ended()
            assert job.status == status


@pytest.mark.requirement("P7.14")
async def test_a_late_cancel_is_silent_to_a_client_that_knows_no_replies(script: Script) -> None:
    from helpers import make_hello

    hello = make_hello(features=["progress"])
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime, hello=hello) as client:
        job_id = await client.submit("echo", 1)
        await last_of(client, job_id)
        await client.request("job.cancel", {"job_id": job_id})
        assert await client.settle() == []


@pytest.mark.requirement("P7.14")
async def test_refused_cancels_of_a_stopping_job_are_answered_behind_its_terminal(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    limits = arcp_trio.Limits(cancel_grace_seconds=3, waiting_cancels=5)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("stubborn")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(8):
            await client.request("job.cancel", {"job_id": job_id})
        error = await last_of(client, job_id)
        position = client.received.index(error)
        replies = [
            (client.received.index(frame) > position, frame["payload"]["job_status"])
            for frame in client.received
            if frame["type"] == "x-arcp-trio.reply"
        ]
        # Seven are refused: two over the bound at once, as running, five behind the terminal event.
        assert sorted(replies) == [(False, "running")] * 2 + [(True, "cancelled")] * 5
        assert [frame["type"] for frame in client.received].count("job.cancelled") == 1
        script.gate.set()


@pytest.mark.requirement("P7.14", "M02")
async def test_after_the_retention_the_job_is_unknown(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.Limits(retention_seconds=100)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", 1)
        await last_of(client, job_id)
        await trio.sleep(99)
        await client.request("job.cancel", {"job_id": job_id})
        assert (await client.receive())["type"] == "x-arcp-trio.reply"
        await trio.sleep(2)
        assert runtime.statistics().jobs_retained == 0
        request_id = await client.request("job.cancel", {"job_id": job_id})
        answer = await client.receive()
        assert (answer["type"], answer["payload"]["code"]) == ("session.error", "JOB_NOT_FOUND")
        assert answer["payload"]["request_id"] == request_id


@pytest.mark.requirement("P7.1", "L11")
async def test_a_refused_submit_leaves_nothing(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        before = runtime.statistics()
        for payload in (
            {"agent": "nobody"},
            {"agent": "echo@9"},
            {"agent": "Upper"},
            {"agent": "echo", "max_runtime_sec": 0},
            {"agent": "echo", "max_runtime_sec": -1},
            {"agent": "echo", "lease_request": {"fs.read": []}},
            {"agent": "echo", "lease_request": {"": ["x"]}},
            {"agent": "echo", "lease_request": {"fs.read": [""]}},
            {"agent": "echo", "lease_request": {"cost.budget": ["USD"]}},
            {"agent": "echo", "lease_constraints": {"expires_at": "2001-01-01T00:00:00Z"}},
            {"agent": "echo", "lease_constraints": {"expires_at": "tomorrow"}},
            {"agent": "echo", "idempotency_key": "k"},
            {"agent": 5},
            {},
        ):
            request_id = await client.request("job.submit", payload)
            answer = await client.receive()
            assert answer["type"] == "session.error", payload
            assert answer["payload"]["request_id"] == answer["payload"]["reply_to"] == request_id
            assert answer["correlation_id"] == request_id
            if answer["payload"]["code"] == "INVALID_REQUEST":
                assert "$.payload" in answer["payload"]["message"]
            # Eight wrong requests in a row would close the connection.
            await client.request("session.ping", {"nonce": "n"})
            assert (await client.receive())["type"] == "session.pong"
        await trio.sleep(1_000_000)
        assert await client.settle() == []
        assert runtime.statistics() == before


@pytest.mark.requirement("P6.3")
async def test_caps_on_running_jobs(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.Limits(jobs_per_principal=2, jobs=3)
    async with (
        arcp_trio.open_runtime(script.agents, limits=limits) as runtime,
        open_raw(runtime, principal="a") as first,
        open_raw(runtime, principal="b") as second,
    ):
        await first.submit("gate")
        await first.submit("gate")
        await first.request("job.submit", {"agent": "echo"})
        refusal = await first.receive_until("session.error")
        assert refusal["payload"]["code"] == "INTERNAL_ERROR"
        assert refusal["payload"]["retryable"] is True
        assert refusal["payload"]["details"] == {"limit": "jobs_per_principal", "value": 2}
        await second.submit("gate")
        await second.request("job.submit", {"agent": "echo"})
        refusal = await second.receive_until("session.error")
        assert refusal["payload"]["details"] == {"limit": "jobs", "value": 3}
        script.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        await first.submit("echo", 1)


@pytest.mark.requirement("L20", "L21", "P6.12", "P6.21", "Z11")
@pytest.mark.parametrize("how", ["close", "bye", "drop"])
async def test_a_job_goes_on_when_its_connection_ends(
    script: Script, how: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        async with open_raw(runtime) as client:
            await client.submit("gate")
            await client.settle()
            if how != "drop":
                await client.request(f"session.{how}")
                assert (await client.receive_close()).code == 1000
                if how == "close":
                    assert client.received[-1]["type"] == "session.closed"
        await trio.testing.wait_all_tasks_blocked()
        statistics = runtime.statistics()
        assert (statistics.sessions, statistics.sessions_waiting, statistics.jobs_running) == (0, 1, 1)
        (actor,) = runtime._directory.actors()
        # The session waits for its client and follows on; past its window it goes, and the job does not.
        assert actor.feed.followers == 1
        assert not actor.throttle.lags()
        await trio.sleep(601)
        assert actor.feed.followers == 0
        assert actor.throttle is None
        assert (runtime.statistics().sessions_waiting, runtime.statistics().jobs_running) == (0, 1)
        script.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (runtime.statistics().jobs_running, runtime.statistics().jobs_retained) == (0, 1)
    assert script.left == 1


async def test_context_variables_of_a_connection_do_not_reach_a_job() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="the runtime's")
    agents = arcp_trio.Agents()

    @agents.register("look")
    async def look(job: arcp_trio.JobContext, value: Any) -> str:
        return variable.get()

    async with arcp_trio.open_runtime(agents) as runtime:
        variable.set("the caller's")
        async with runtime.open_session(principal="me") as client:
            assert await (await client.submit("look")).result() == "the runtime's"


async def test_an_input_is_its_agents_alone(script: Script) -> None:
    """What may be megabytes is not kept for as long as a job runs."""
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.submit("gate", ["a large input"])
        await client.settle()
        (actor,) = runtime._directory.actors()
        assert actor.input is None
        script.gate.set()


@pytest.mark.requirement("P7.3", "P5.6")
async def test_inputs_and_results_pass_through_as_they_are(script: Script) -> None:
    values = [None, True, 0, -1, 2**53 + 1, 2**80, 1.5, "", "é\U0001f600", [], {}, {"": [None, {"a": [1.0]}]}, [[]] * 5]
    async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
        for value in values:
            result = await (await client.submit("echo", value)).result()
            expected = {} if value is None else value
            assert result == expected
            assert type(result) is type(expected)
