"""A message that comes twice is handled once (P5.7)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio.testing
from fuzz.live import assert_alive, error_of, ping
from helpers import Script, open_raw

import arcp_trio
from arcp_trio.limits import Limits

pytestmark = pytest.mark.requirement("P5.7")


def submit(message_id: str, agent: str = "echo", **payload: Any) -> str:
    return json.dumps(
        {"arcp": "1.1", "id": message_id, "type": "job.submit", "payload": {"agent": agent, "input": 1, **payload}}
    )


async def test_a_submit_that_comes_again_is_not_executed_again(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.send_text(submit("a", "gate"))
        accepted = await client.receive_until("job.accepted")
        for times in (1, 2):
            await client.send_text(*[submit("a", "gate")] * times)
            again = [each for each in await client.settle() if each["type"] != "job.event"]
            # The same reply: byte for byte, with its id and its time.
            assert again == [accepted] * times
        script.gate.set()
        await client.receive_until("job.result")
        await client.send_text(submit("a", "gate"))
        assert await client.settle() == [accepted]
        assert (script.entered, runtime.statistics().jobs_accepted) == (1, 1)
        await assert_alive(client)


async def test_two_of_one_read(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.send_text(submit("a"), submit("a"), submit("b"), submit("a"))
        frames = await client.settle()
        accepted = [each["payload"]["request_id"] for each in frames if each["type"] == "job.accepted"]
        assert sorted(accepted) == ["a", "a", "a", "b"]
        assert runtime.statistics().jobs_accepted == 2


async def test_a_cancel_that_comes_again(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        cancel = client.make("job.cancel", {"job_id": job_id}, id="c")
        await client.send(cancel, cancel)
        await client.receive_until("job.error")
        await client.send(cancel)
        await client.settle()
        replies = [each for each in client.received if each["payload"].get("request_id") == "c"]
        assert {each["type"] for each in replies} == {"job.cancelled"}
        assert all(each == replies[0] for each in replies)
        statistics = runtime.statistics()
        assert (statistics.cancels_acknowledged, statistics.cancels_refused) == (1, 0)


async def test_a_refusal_is_said_again(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.send_text(submit("a", "nobody"))
        (refused,) = await client.settle()
        assert error_of(refused) == ("AGENT_NOT_AVAILABLE", "a")

        # Also after the agent has come: it is still the same message.
        @script.agents.register("nobody")
        async def nobody(job: arcp_trio.JobContext, value: Any) -> None:
            await trio.lowlevel.checkpoint()

        await client.send_text(submit("a", "nobody"))
        assert await client.settle() == [refused]
        await client.send_text(submit("b", "nobody"))
        # This session was told of no such agent; it is there all the same.
        assert (await client.receive())["type"] == "job.accepted"


async def test_the_same_id_for_another_message_is_refused(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.send_text(submit("a"))
        await client.receive_until("job.result")
        accepted = client.received[1]
        for other in (submit("a", input=2), submit("a", "sleep"), ping("a"), submit("a") + " "):
            await client.send_text(other)
            (answer,) = await client.settle()
            assert error_of(answer) == ("INVALID_REQUEST", "a")
            assert answer["payload"]["message"].startswith("$.id:")
            await assert_alive(client)
        assert script.entered == 1 + 4
        # The first one's reply is not forgotten for it.
        await client.send_text(submit("a"))
        assert await client.settle() == [accepted]


async def test_what_was_refused_before_it_was_looked_at_takes_no_id(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        for bad in (
            {"arcp": "1.1", "id": "a", "type": "job.submit"},
            {"arcp": "1.1", "id": "a", "type": "job.unknown", "payload": {}},
            {"arcp": "1.1", "id": "a", "type": "job.submit", "payload": {"agent": "echo"}, "session_id": "other"},
        ):
            await client.send(bad)
            (answer,) = await client.settle()
            assert error_of(answer) == ("INVALID_REQUEST", "a")
        await client.send_text(submit("a"))
        accepted = await client.receive_until("job.accepted")
        # And an unreadable one with the same id, after it, does not change what is held.
        await client.send({"arcp": "1.1", "id": "a", "type": "job.submit"})
        assert error_of(await client.receive_until("session.error")) == ("INVALID_REQUEST", "a")
        await client.send_text(submit("a"))
        assert await client.settle() == [accepted]
        assert runtime.statistics().jobs_accepted == 1


@pytest.mark.requirement("M03")
@pytest.mark.parametrize("remembered", [1, 3])
async def test_only_so_many_are_remembered(script: Script, remembered: int) -> None:
    limits = Limits(remembered_messages=remembered)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        await client.send_text(submit("a"))
        await client.settle()
        await client.send_text(*[ping(f"p{number}") for number in range(remembered - 1)], submit("a"))
        await client.settle()
        assert runtime.statistics().jobs_accepted == 1
        await client.send_text(*[ping(f"q{number}") for number in range(remembered)], submit("a"))
        await client.settle()
        assert runtime.statistics().jobs_accepted == 2


@pytest.mark.requirement("M03")
async def test_a_million_ids_take_no_room(script: Script) -> None:
    """Twenty thousand, to be honest: what is kept is the last 1,024."""
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        (connection,) = runtime._connections
        for start in range(0, 20_000, 500):
            await client.send_text(*[ping(f"p{number}") for number in range(start, start + 500)])
            await client.settle()
        assert len(connection._session.retransmissions._messages) == 1024
        await assert_alive(client)


async def test_a_session_remembers_for_itself(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as one, open_raw(runtime) as other:
        for client in (one, other):
            await client.send_text(submit("a"))
            await client.receive_until("job.result")
        assert runtime.statistics().jobs_accepted == 2


async def test_what_asks_for_nothing_may_have_any_id(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.request("x-vendor.a", {"n": 1}, id="a")
        await client.request("x-vendor.a", {"n": 2}, id="a")
        await client.request("session.error", {"code": "TIMEOUT"}, id="a")
        assert await client.settle() == []
        await assert_alive(client)
