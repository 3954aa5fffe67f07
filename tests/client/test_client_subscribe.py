"""Following a job that another session submitted (P7.17 to P7.20), from the client's side."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from playing import OTHERS, OURS, Call, Connection, open_played, read, start_job

import arcp_trio

if TYPE_CHECKING:
    from helpers import Frame

SUBSCRIBED = {
    "job_id": "job_9",
    "current_status": "running",
    "agent": "a@1",
    "lease": {},
    "parent_job_id": None,
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "subscribed_from": 4,
    "replayed": True,
}


async def follow(nursery: trio.Nursery, client: arcp_trio.Client, connection: Connection) -> arcp_trio.JobHandle:
    call = Call(nursery, client.subscribe, "job_9")
    request = await connection.expect("job.subscribe")
    await connection.say("job.subscribed", {**SUBSCRIBED, "request_id": request["id"]}, job_id="job_9")
    assert isinstance(call.value, arcp_trio.JobHandle), call.error
    return call.value


@pytest.mark.requirement("P7.17", "Q05", "Q08", "Q09")
async def test_the_request_and_the_handle(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        call = Call(nursery, client.subscribe, "job_9", history=True, from_event_seq=2)
        request = await first.expect("job.subscribe")
        assert request["payload"] == {"job_id": "job_9", "history": True, "from_event_seq": 2}
        assert request["job_id"] == "job_9"
        # The answer precedes the replay; a job that is not running may end at once.
        await first.say("job.subscribed", {**SUBSCRIBED, "request_id": request["id"]}, job_id="job_9")
        handle = call.value
        assert (handle.job_id, handle.agent, handle.status) == ("job_9", "a@1", "running")
        assert handle.accepted is None
        assert handle.subscribed.subscribed_from == 4
        assert handle.is_subscription
        texts: list[Any] = []
        reader = Call(nursery, read, handle.events(), texts)
        await first.log(1, "job_9", "of old")
        await first.log(2, "job_9", "live")
        assert not reader.done
        await first.result(3, {"a": 1}, "job_9")
        assert reader.done
        assert texts == ["of old", "live"]
        assert await handle.result() == {"a": 1}
        await handle.unsubscribe()
        await first.nothing_came()
        assert client._session.jobs == {}


@pytest.mark.requirement("P7.20")
async def test_one_handle_for_one_job(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        own = await start_job(nursery, client, first)
        assert await client.subscribe("job_1") is own
        # Harmless for a job of one's own.
        await own.unsubscribe()
        assert not own.is_subscription
        handle = await follow(nursery, client, first)
        assert await client.subscribe("job_9") is handle
        await first.nothing_came()
        # A submit that turns out to be the same job gets it too, and may cancel it from then on.
        submit = Call(nursery, client.submit, "a", idempotency_key="k")
        await first.accept(await first.expect("job.submit"), "job_9")
        assert submit.value is handle
        assert not handle.is_subscription


@pytest.mark.requirement("P7.20", "K03")
@pytest.mark.parametrize("first_one", ["is answered", "is refused", "leaves"])
async def test_two_calls_at_once(first_one: str, autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        one = Call(nursery, client.subscribe, "job_9")
        request = await first.expect("job.subscribe")
        two = Call(nursery, client.subscribe, "job_9")
        await trio.testing.wait_all_tasks_blocked()
        await first.nothing_came()
        if first_one == "is answered":
            await first.say("job.subscribed", {**SUBSCRIBED, "request_id": request["id"]})
            assert one.value is two.value is client._session.jobs["job_9"]
            return
        if first_one == "is refused":
            await first.say("session.error", {"code": "JOB_NOT_FOUND", "message": "no", "request_id": request["id"]})
            assert isinstance(one.error, arcp_trio.JobNotFoundError)
        else:
            one.scope.cancel()
            assert (await first.expect("job.unsubscribe"))["payload"] == {"job_id": "job_9"}
        # The other asks for itself.
        request = await first.expect("job.subscribe")
        await first.say("job.subscribed", {**SUBSCRIBED, "request_id": request["id"]})
        assert two.value.job_id == "job_9"


@pytest.mark.requirement("P6.4", "Q14")
async def test_what_was_not_negotiated_is_refused_here(autojump_clock: trio.testing.MockClock) -> None:
    features = [feature for feature in OURS if feature not in ("subscribe", "list_jobs")]
    async with open_played(features=features) as (_, first, client):
        with pytest.raises(arcp_trio.InvalidRequestError, match="has not negotiated 'subscribe'"):
            await client.subscribe("job_9")
        with pytest.raises(arcp_trio.InvalidRequestError, match="has not negotiated 'list_jobs'"):
            client.list_jobs()
        await first.nothing_came()


@pytest.mark.requirement("K07")
async def test_an_empty_id_is_refused_here(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client):
        with pytest.raises(arcp_trio.InvalidRequestError, match="job_id"):
            await client.subscribe("")
        await first.nothing_came()


# --- refusals, in each form -------------------------------------------------------------------------


@pytest.mark.requirement("K03", "P7.19", "D14", "D45", "D15")
@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "JOB_NOT_FOUND"])
@pytest.mark.parametrize("form", ["request_id", "reply_to", "correlation_id", "session.error", "job.error"])
async def test_a_refusal_in_any_form_refuses_the_subscription_alone(
    form: str, code: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_played(features=OTHERS) as (_, first, client), trio.open_nursery() as nursery:
        own = await start_job(nursery, client, first)
        # Behind a shield: nobody could cancel it.
        with trio.CancelScope(shield=True):
            call = Call(nursery, client.subscribe, "job_9")
            request = await first.expect("job.subscribe")
            payload: Frame = {"code": code, "message": "no", "final_status": "error"}
            fields: Frame = {}
            if form in ("request_id", "reply_to"):
                payload[form] = request["id"]
            elif form == "correlation_id":
                fields[form] = request["id"]
            if form == "job.error":
                await first.say("job.error", payload, job_id="job_9")
            else:
                await first.say("session.error", payload, **fields)
        assert isinstance(call.error, arcp_trio.ARCPError)
        assert (call.error.code, call.error.message) == (code, "no")
        assert own.status == "running"
        assert list(client._session.jobs) == ["job_1"]
        await first.nothing_came()


@pytest.mark.requirement("K02")
async def test_a_runtime_that_does_not_answer_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played(features=OTHERS) as (_, first, client), trio.open_nursery() as nursery:
        call = Call(nursery, client.subscribe, "job_9")
        await first.expect("job.subscribe")
        await trio.sleep(31)
        assert isinstance(call.error, arcp_trio.InternalError)
        assert "did not answer the subscription to job_9" in str(call.error)
        await first.expect("job.unsubscribe")
        assert client._session.jobs == {}


@pytest.mark.requirement("D43", "D44")
async def test_a_replay_before_the_answer_is_taken(autojump_clock: trio.testing.MockClock) -> None:
    """Three implementations answer behind their replay; one counts what it replayed."""
    async with open_played(features=OTHERS) as (_, first, client), trio.open_nursery() as nursery:
        call = Call(nursery, client.subscribe, "job_9", history=True)
        await first.expect("job.subscribe")
        await first.log(17, "job_9", "of old")
        await first.result(18, "early", "job_9")
        # No id of the request, a null lease, a count.
        answer = {"job_id": "job_9", "current_status": "success", "lease": None, "replayed": 2}
        await first.say("job.subscribed", answer)
        handle = call.value
        assert handle.subscribed.replayed is True
        assert [event.body["message"] async for event in handle.events()] == ["of old"]
        assert await handle.result() == "early"


# --- leaving ----------------------------------------------------------------------------------------


@pytest.mark.requirement("P7.20", "Q10", "Z13")
async def test_unsubscribe(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        handle = await follow(nursery, client, first)
        texts: list[Any] = []
        await first.log(1, "job_9")
        ended = Call(nursery, handle.wait_ended)
        await handle.unsubscribe()
        request = await first.expect("job.unsubscribe")
        assert (request["payload"], request["job_id"]) == ({"job_id": "job_9"}, "job_9")
        # What had come is still read; what comes now is nobody's.
        await first.log(2, "job_9")
        await read(handle.events(), texts)
        assert texts == ["1"]
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(ended.error, arcp_trio.InvalidRequestError)
        with pytest.raises(arcp_trio.InvalidRequestError, match="unsubscribed"):
            await handle.result()
        await handle.unsubscribe()
        await first.nothing_came()
        # A new subscription has a new handle.
        assert await follow(nursery, client, first) is not handle


@pytest.mark.requirement("P7.20", "P6.9", "Q10")
async def test_an_unsubscribe_survives_the_loss_of_its_connection(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        handle = await follow(nursery, client, first)
        await first.drop()
        # Without a connection: it goes with the next one.
        await handle.unsubscribe()
        second = await played.next()
        await second.welcome("rt_2")
        await second.expect("job.unsubscribe")
        await second.drop()
        # Lost with that one, perhaps: what still comes of the job shows it.
        third = await played.next()
        await third.welcome("rt_3")
        await third.nothing_came()
        await third.log(1, "job_9")
        await third.expect("job.unsubscribe")
        await third.log(2, "job_9")
        await third.nothing_came()


@pytest.mark.requirement("P7.20", "P6.9")
async def test_a_new_subscription_takes_an_unsubscribe_back(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        handle = await follow(nursery, client, first)
        await first.drop()
        await handle.unsubscribe()
        call = Call(nursery, client.subscribe, "job_9")
        second = await played.next()
        await second.welcome("rt_2")
        # The other way round, the job would be followed no more.
        request = await second.expect("job.subscribe")
        await second.say("job.subscribed", {**SUBSCRIBED, "request_id": request["id"]})
        await second.log(1, "job_9")
        await second.nothing_came()
        assert [event.body["message"] for event in [await anext(call.value.events())]] == ["1"]


@pytest.mark.requirement("K03", "Q10")
async def test_a_caller_who_leaves_as_the_answer_comes_follows_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        call = Call(nursery, client.subscribe, "job_9")
        request = await first.expect("job.subscribe")
        (pending,) = client._session.pending.subscribes.values()
        assert pending.request_id == request["id"]
        # Both in one turn of the loop: the caller learns of neither before the other.
        call.scope.cancel()
        first_answer = first.raw.make("job.subscribed", {**SUBSCRIBED, "request_id": request["id"]})
        client._session.receive(json.dumps(first_answer))
        await trio.testing.wait_all_tasks_blocked()
        assert client._session.jobs == {}
        await first.expect("job.unsubscribe")


@pytest.mark.requirement("K03")
async def test_two_calls_that_wait_for_their_turn_make_one_request(autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.ClientLimits(requests=1, close_seconds=0.01)
    async with open_played(limits=limits) as (_, first, client), trio.open_nursery() as nursery:
        submit = Call(nursery, client.submit, "a")
        request = await first.expect("job.submit")
        calls = [Call(nursery, client.subscribe, "job_9") for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        await first.accept(request)
        assert submit.done
        request = await first.expect("job.subscribe")
        await first.say("job.subscribed", {**SUBSCRIBED, "request_id": request["id"]})
        assert calls[0].value is calls[1].value
        assert calls[0].value.job_id == "job_9"
        await first.nothing_came()


@pytest.mark.requirement("P7.20")
async def test_unsubscribing_from_many_is_remembered_within_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.ClientLimits(requests=5, close_seconds=0.01)
    async with open_played(limits=limits) as (_, first, client), trio.open_nursery() as nursery:
        for _ in range(20):
            handle = await follow(nursery, client, first)
            handle.job_id = f"job_{_}"
            client._session.jobs = {handle.job_id: handle}
            await handle.unsubscribe()
            await first.expect("job.unsubscribe")
        assert len(client._session._unsubscribed) == 5


# --- over several connections -----------------------------------------------------------------------


@pytest.mark.requirement("P6.9", "S23")
async def test_a_subscription_continues_across_a_resume(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (played, first, client), trio.open_nursery() as nursery:
        handle = await follow(nursery, client, first)
        await first.log(1, "job_9")
        await first.drop()
        second = await played.next()
        await second.welcome("rt_2")
        await second.nothing_came()
        await second.log(2, "job_9")
        await second.result(3, "done", "job_9")
        assert [event.body["message"] async for event in handle.events()] == ["1", "2"]  # type: ignore[union-attr]


# --- streamed results -------------------------------------------------------------------------------


def chunk(seq: int, data: str, *, more: bool = True) -> Frame:
    body = {"result_id": "res_1", "chunk_seq": seq, "data": data, "encoding": "utf8", "more": more}
    return {"kind": "result_chunk", "body": body}


END = {"final_status": "success", "result_id": "res_1", "result_size": 4}


@pytest.mark.requirement("P8.5", "X10")
async def test_a_result_whose_chunks_came_before_the_subscription(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        handle = await follow(nursery, client, first)
        await first.say("job.event", chunk(1, "cd", more=False), job_id="job_9", event_seq=1)
        await first.say("job.result", END, job_id="job_9", event_seq=2)
        with pytest.raises(arcp_trio.InternalError, match=r"before the subscription.*came is number 1"):
            await handle.result()
        assert handle.status == "success"
        # None came at all.
        handle = await follow(nursery, client, first)
        await first.say("job.result", END, job_id="job_9", event_seq=3)
        with pytest.raises(arcp_trio.InternalError, match=r"before the subscription.*none came"):
            await handle.result()
        # With all of them it is a result as any other.
        handle = await follow(nursery, client, first)
        await first.say("job.event", chunk(0, "ab"), job_id="job_9", event_seq=4)
        await first.say("job.event", chunk(1, "cd", more=False), job_id="job_9", event_seq=5)
        await first.say("job.result", END, job_id="job_9", event_seq=6)
        assert await handle.result() == "abcd"
