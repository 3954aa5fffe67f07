"""A bug in an actor ends its job, truthfully and once, and nothing else."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Script, open_raw
from jobs.ends import causes_of_an_end, last_of

import arcp_trio
from arcp_trio.jobs.lifecycle import (
    Cancel,
    LeaseExpired,
    TornDown,
)


@pytest.mark.requirement("L25")
async def test_a_bug_in_an_actor_ends_its_job_and_no_other(
    script: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from arcp_trio.jobs import actor as module

    original = module.apply

    def broken(state: Any, message: Any) -> Any:
        if type(message).__name__ == "Start" and broken_once:
            broken_once.clear()
            raise RuntimeError("a bug")
        return original(state, message)

    broken_once = [True]
    monkeypatch.setattr(module, "apply", broken)
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", 1)
        assert (await last_of(client, job_id))["payload"]["code"] == "INTERNAL_ERROR"
        job_id = await client.submit("echo", 2)
        assert (await last_of(client, job_id))["payload"]["result"] == 2
        assert runtime.statistics().bugs == 1
    assert any(record.levelno == logging.ERROR and "a bug" in record.getMessage() for record in caplog.records)


@pytest.mark.requirement("P7.8", "L25")
@pytest.mark.parametrize(
    ("agent", "when"),
    [
        ("sleep", "at the cancel"),
        ("stubborn", "at the cancel"),
        ("stubborn", "behind the decision"),
        ("sleep", "behind the tear-down"),
    ],
)
async def test_a_bug_in_an_actor_while_its_agent_runs(
    script: Script, agent: str, when: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """The agent is stopped, nothing stays behind, who waits is answered, and what was decided stands."""
    from arcp_trio.jobs import actor as module

    original = module.apply

    def broken(state: Any, message: Any) -> Any:
        if type(message) is {"at the cancel": Cancel, "behind the decision": LeaseExpired}.get(when, TornDown):
            raise RuntimeError("a bug")
        return original(state, message)

    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit(agent, max_runtime_sec=1000)
        await trio.testing.wait_all_tasks_blocked()
        (actor,) = runtime._directory.actors()
        monkeypatch.setattr(module, "apply", broken)
        await client.send(client.make("job.cancel", {"job_id": job_id}), client.make("job.cancel", {"job_id": job_id}))
        if when == "behind the decision":
            await client.receive_until("job.cancelled")
            actor._mailbox.post(causes_of_an_end(trio.current_time())["lease"])
        payload = (await last_of(client, job_id))["payload"]
        assert payload["code"] == ("INTERNAL_ERROR" if when == "at the cancel" else "CANCELLED")
        assert client.received[-1]["type"] == "x-arcp-trio.reply"
        assert client.received[-1]["payload"]["job_status"] == payload["final_status"]
        statistics = runtime.statistics()
        # The record's retention is the only deadline that is left.
        assert (statistics.jobs_running, statistics.tear_downs, statistics.bugs, statistics.timers) == (0, 1, 1, 1)
        assert len(statistics.disowned_agents) == (agent == "stubborn")
        script.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (script.left, runtime.statistics().disowned_agents) == (1, ())
        await trio.sleep(2000)
        assert await client.settle() == []


@pytest.mark.requirement("L25")
async def test_a_bug_while_the_terminal_event_is_handed_out(
    script: Script, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """It is not handed out again, and the job is over for all who ask and wait."""
    from arcp_trio.jobs.feed import TerminalEntry
    from arcp_trio.sessions.session import Session

    original = Session.append

    def broken(self: Session, entry: Any, feed: Any) -> None:
        original(self, entry, feed)
        assert not isinstance(entry, TerminalEntry), "a bug"

    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("gate")
        monkeypatch.setattr(Session, "append", broken)
        script.gate.set()
        assert (await last_of(client, job_id))["type"] == "job.result"
        statistics = runtime.statistics()
        assert (statistics.jobs_running, statistics.terminals_published, statistics.tear_downs) == (0, 1, 1)
        assert statistics.bugs == 1
        await client.request("job.cancel", {"job_id": job_id})
        assert (await client.receive())["payload"]["job_status"] == "success"


@pytest.mark.requirement("P7.14", "L25")
async def test_a_cancel_that_lies_behind_a_bug_is_answered(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    from arcp_trio.jobs import actor as module

    original = module.apply

    def broken(state: Any, message: Any) -> Any:
        if type(message) is LeaseExpired:
            raise RuntimeError("a bug")
        return original(state, message)

    answers: list[str] = []

    class Request:
        reason = None

        def acknowledge(self) -> None:
            raise AssertionError

        def refuse(self, job_status: str) -> None:
            answers.append(job_status)

    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        await client.settle()
        (actor,) = runtime._directory.actors()
        monkeypatch.setattr(module, "apply", broken)
        actor._mailbox.post(causes_of_an_end(0)["lease"])
        actor.request_cancel(Request())
        await last_of(client, job_id)
        assert answers == ["error"]


@pytest.mark.requirement("P7.8", "L25")
async def test_an_actor_that_is_cancelled_still_ends_its_job(script: Script) -> None:
    """Nothing in the runtime does that; were it done, the terminal event would go out all the same."""
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        await client.settle()
        runtime._actor_nursery.cancel_scope.cancel()
        assert (await last_of(client, job_id))["payload"]["code"] == "INTERNAL_ERROR"
        assert (runtime.statistics().terminals_published, runtime.statistics().tear_downs) == (1, 1)
    assert script.left == 1
