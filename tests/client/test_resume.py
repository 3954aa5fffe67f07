"""A session goes on over another connection: what the client says, and what becomes of what it gets (P6.7 to P6.9)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing
from playing import OTHERS, Call, open_played, read, start_job

import arcp_trio


@pytest.mark.requirement("P6.7", "P6.8", "D18")
async def test_the_hello_of_a_resume(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        await first.log(1)
        await first.log(2)
        await first.drop()
        second = await played.next()
        hello = await second.welcome("rt_2")
        payload = hello["payload"]
        assert hello["session_id"] == client.session_id == "sess_1"
        assert payload["auth"] == {"scheme": "bearer", "token": "secret-token"}
        # Every spelling that some implementation looks for.
        assert payload["resume"] == {
            "session_id": "sess_1",
            "resume_token": "rt_1",
            "token": "rt_1",
            "last_event_seq": 2,
        }
        assert (payload["resume_token"], payload["last_event_seq"]) == ("rt_1", 2)
        # Features are fixed for a session's life: a hello that offers fewer would be refused.
        assert payload["capabilities"] == first.hello["payload"]["capabilities"]
        assert "resume" not in first.hello["payload"]
        await second.log(3)
        await second.drop()
        # Tokens rotate: each one that came is good for the next time.
        third = await played.next()
        hello = await third.welcome("rt_3")
        assert hello["payload"]["resume"]["resume_token"] == "rt_2"
        assert hello["payload"]["resume"]["last_event_seq"] == 3
        assert hello["id"] not in (first.hello["id"], second.hello["id"])
        await third.drop()
        # A welcome that says no token leaves the last one good: one implementation never rotates.
        fourth = await played.next()
        await fourth.welcome("rt_4", resume_token=None)
        await fourth.drop()
        fifth = await played.next()
        assert (await fifth.welcome("rt_5"))["payload"]["resume"]["resume_token"] == "rt_3"


@pytest.mark.requirement("P6.8")
async def test_a_welcome_that_was_lost_is_asked_for_with_the_same_token(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await first.drop()
        lost = await played.next()
        await lost.raw.receive_until("session.hello")
        await lost.drop()
        third = await played.next()
        hello = await third.welcome("rt_3")
        assert hello["payload"]["resume"]["resume_token"] == "rt_1"
        await third.result(1)
        assert await job.result() == "done"


@pytest.mark.requirement("P6.9", "P8.2", "P8.3", "S16", "S17")
async def test_events_go_on_without_a_gap_or_a_repeat(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        other = await start_job(nursery, client, first, "job_2")
        texts: list[Any] = []
        nursery.start_soon(read, job.events(), texts)
        for number in range(1, 4):
            await first.log(number)
        # The runtime had sent these; they are lost with the connection.
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2")
        # One that repeats what the client has, with its riders in their places, is harmless.
        await second.accept({"id": "msg_of_old"}, "job_1")
        for number in range(2, 6):
            await second.log(number)
        await second.log(6, "job_2", "of another")
        await second.replayed()
        await second.log(7)
        await second.result(8)
        await second.result(8, "a second end")
        await second.result(9, "other", "job_2")
        assert await job.result() == "done"
        assert await other.result() == "other"
        await trio.testing.wait_all_tasks_blocked()
        assert texts == ["1", "2", "3", "4", "5", "7"]
        assert client.session_id == "sess_1"
        assert client.state.phase == "resumed"


@pytest.mark.requirement("D21")
async def test_what_is_replayed_before_the_welcome_is_taken(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(features=OTHERS) as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await first.log(1)
        await first.drop()
        second = await played.next()
        await second.raw.receive_until("session.hello")
        await second.log(2)
        await second.result(3)
        await second.welcome("rt_2", hello=False)
        assert await job.result() == "done"


# --- refusals ---------------------------------------------------------------------------------------


async def refuse(connection: Any, code: str, **more: Any) -> None:
    hello = await connection.raw.receive_until("session.hello")
    await connection.say(
        "session.error", {"code": code, "message": "no", "retryable": False, "request_id": hello["id"], **more}
    )
    await connection.drop(1008)


@pytest.mark.requirement("P6.10", "D19", "K02")
@pytest.mark.parametrize("code", ["RESUME_WINDOW_EXPIRED", "PERMISSION_DENIED", "UNAUTHENTICATED"])
async def test_a_refused_resume_fails_everything_that_waits(code: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await first.log(1)
        texts: list[Any] = []
        calls = [
            Call(nursery, read, job.events(), texts),
            Call(nursery, job.result),
            Call(nursery, job.wait_ended),
            Call(nursery, job.cancel),
            Call(nursery, client.submit, "b"),
            Call(nursery, client.submit, "b", idempotency_key="k"),
            Call(nursery, client.subscribe, "job_9"),
            Call(nursery, anext, client.list_jobs()),
        ]
        await first.drop()
        await refuse(await played.next(), code)
        await trio.sleep(20)
        for call in calls:
            assert isinstance(call.error, arcp_trio.ResumeWindowExpiredError), call.error
            assert code in str(call.error)
        # What had come is still read.
        assert texts == ["1"]
        assert client.state.phase == "given_up"
        assert isinstance(client.state.error, arcp_trio.ResumeWindowExpiredError)
        with pytest.raises(arcp_trio.ResumeWindowExpiredError):
            await client.submit("b")
        assert not client._session.jobs
        assert not list(client._session.pending)


@pytest.mark.requirement("D19")
async def test_some_runtimes_are_asked_three_times(autojump_clock: trio.testing.MockClock) -> None:
    """They know a session as lost only once they have noticed that its connection is gone."""
    async with open_played(features=OTHERS) as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await first.drop()
        for _ in range(2):
            await refuse(await played.next(), "RESUME_WINDOW_EXPIRED")
        fourth = await played.next()
        await fourth.welcome("rt_2")
        await fourth.drop()
        for _ in range(3):
            assert not job._ended.is_set()
            await refuse(await played.next(), "RESUME_WINDOW_EXPIRED")
        with pytest.raises(arcp_trio.ResumeWindowExpiredError):
            await job.result()


@pytest.mark.requirement("D19")
async def test_a_doubtful_token_is_not_tried_twice(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(features=OTHERS) as (played, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        await first.drop()
        await refuse(await played.next(), "PERMISSION_DENIED")
        assert client.state.phase == "given_up"


@pytest.mark.requirement("P6.3", "P6.2")
async def test_a_refusal_for_now_is_a_failed_attempt(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client):
        await first.drop()
        await refuse(await played.next(), "INTERNAL_ERROR", retryable=True)
        assert client.state.phase == "retrying"
        assert "INTERNAL_ERROR: no" in client.state.reason
        await refuse(await played.next(), "INVALID_REQUEST")
        with pytest.raises(arcp_trio.InvalidRequestError, match="no"):
            await client.submit("b")


@pytest.mark.requirement("P6.9")
async def test_a_runtime_that_opens_another_session_has_not_resumed(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2", session_id="sess_other")
        with pytest.raises(arcp_trio.ResumeWindowExpiredError, match="another session"):
            await client.submit("b")
        await second.raw.receive_close()


@pytest.mark.requirement("P14.2", "C07")
async def test_no_token_is_in_a_log_or_a_repr(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    async with open_played(welcome={}) as (played, first, client), trio.open_nursery() as nursery:
        await start_job(nursery, client, first)
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2")
        await trio.testing.wait_all_tasks_blocked()
        await second.drop()
        await refuse(await played.next(), "RESUME_WINDOW_EXPIRED")
        shown = [repr(item) for item in (client, client.welcome, client.state, client.__dict__)]
        shown += [repr(vars(item)) for item in (client._connector, client._session)]
    text = caplog.text + json.dumps(shown)
    for secret in ("secret-token", "rt_1", "rt_2"):
        assert secret not in text


# --- sessions of which nothing is missed ------------------------------------------------------------


@pytest.mark.requirement("P6.12", "K02")
@pytest.mark.parametrize("code", ["RESUME_WINDOW_EXPIRED", "PERMISSION_DENIED"])
async def test_an_idle_session_that_is_gone_is_replaced(code: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        job = await start_job(nursery, client, first)
        await first.result(1)
        plain = Call(nursery, client.submit, "plain")
        await first.expect("job.submit")
        listing = Call(nursery, anext, client.list_jobs())
        old = await first.expect("session.list_jobs")
        subscribe = Call(nursery, client.subscribe, "job_9")
        await first.expect("job.subscribe")
        await first.drop()
        await refuse(await played.next(), code)
        # It may have been carried out; the rest is asked again, in the name of the new session.
        assert isinstance(plain.error, arcp_trio.ConnectionLostError)
        third = await played.next()
        third.raw.session_id = "sess_2"
        hello = await third.welcome("rt_2", session_id="sess_2")
        assert "resume" not in hello["payload"]
        assert hello["session_id"] != "sess_1"
        assert (client.session_id, client.state.phase) == ("sess_2", "reopened")
        again = await third.expect("job.subscribe")
        assert again["session_id"] == "sess_2"
        payload = {"job_id": "job_9", "current_status": "running", "request_id": again["id"]}
        await third.say("job.subscribed", payload)
        assert subscribe.value.job_id == "job_9"
        again = await third.expect("session.list_jobs")
        assert again["id"] != old["id"]
        await third.say("session.jobs", {"request_id": again["id"], "jobs": []})
        assert listing.value == ()
        # It has numbers of its own, and is resumed as any other.
        await third.log(1, "job_9")
        await third.drop()
        fourth = await played.next()
        resume = (await fourth.welcome("rt_3", session_id="sess_2"))["payload"]["resume"]
        assert resume == {"session_id": "sess_2", "resume_token": "rt_2", "token": "rt_2", "last_event_seq": 1}
        assert await job.result() == "done"


@pytest.mark.requirement("P6.1", "K02")
async def test_a_session_that_is_refused_anew_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client):
        await first.drop()
        await refuse(await played.next(), "RESUME_WINDOW_EXPIRED")
        await refuse(await played.next(), "PERMISSION_DENIED")
        assert client.state.phase == "given_up"
