"""Who may cancel, and what a cancel that may not is told (P7.12)."""
# what a parametrised test is given has names where it is given

from __future__ import annotations

from typing import Any

import pytest
from fuzz.live import assert_alive, error_of
from helpers import Frame, RawClient, Script, open_raw

import arcp_trio

pytestmark = pytest.mark.requirement("P7.12")


async def cancel(client: RawClient, payload: Any, **fields: Any) -> Frame:
    """Send a cancel that is refused; return the answer, without what differs from one to the next."""
    request_id = await client.request("job.cancel", payload, **fields)
    (answer,) = await client.settle()
    assert answer["payload"]["request_id"] == answer["payload"]["reply_to"] == answer["correlation_id"] == request_id
    dropped = ("id", "timestamp", "correlation_id", "request_id", "reply_to")
    payload = {name: value for name, value in answer["payload"].items() if name not in dropped}
    return {**{name: value for name, value in answer.items() if name not in dropped}, "payload": payload}


async def end(client: RawClient, agent: str, script: Script) -> str:
    """Run a job to its end; return its id."""
    job_id = await client.submit(agent)
    await client.receive_until(lambda frame: frame["type"] in ("job.result", "job.error"))
    return job_id


@pytest.mark.requirement("P7.19", "L17", "L19", "E03")
async def test_another_principals_job_is_one_that_does_not_exist(script: Script) -> None:
    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime, principal="me") as owner,
        open_raw(runtime, principal="you") as other,
    ):
        running = await owner.submit("sleep")
        ended = await end(owner, "echo", script)
        before = runtime.statistics()
        for envelope_too in (False, True):
            answers = []
            for job_id in (running, ended, "job_01ARZ3NDEKTSV4RRFFQ69G5FAV", "nonsense"):
                fields = {"job_id": job_id} if envelope_too else {}
                answer = await cancel(other, {"job_id": job_id}, **fields)
                assert error_of(answer)[0] == "JOB_NOT_FOUND"
                answers.append(str(answer).replace(job_id, "?"))
            # Letter for letter the same: nothing tells that there is such a job.
            assert len(set(answers)) == 1
        assert runtime.statistics() == before
        assert await owner.settle() == []
        await assert_alive(other)
        await assert_alive(owner)


@pytest.mark.requirement("P7.14", "L18", "E03")
async def test_another_session_of_the_same_principal_may_not(script: Script) -> None:
    """Neither while the job runs nor when it has ended: the owner is looked at before the phase."""
    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime) as owner,
        open_raw(runtime) as sibling,
    ):
        running = await owner.submit("sleep")
        ended = await end(owner, "echo", script)
        script.error = ValueError("broken")
        failed = await end(owner, "fail", script)
        before = runtime.statistics()
        for job_id in (running, ended, failed):
            answer = await cancel(sibling, {"job_id": job_id}, job_id=job_id)
            assert error_of(answer)[0] == "PERMISSION_DENIED"
            assert (answer["job_id"], answer["payload"]["job_id"]) == (job_id, job_id)
        assert runtime.statistics() == before
        assert await owner.settle() == []
        # The owner may, of course.
        await owner.request("job.cancel", {"job_id": running})
        assert (await owner.receive_until("job.error"))["payload"]["code"] == "CANCELLED"
        # And of what has ended nothing is left to cancel, which an owner is told in other words.
        await owner.request("job.cancel", {"job_id": ended})
        (reply,) = await owner.settle()
        assert (reply["type"], reply["payload"]["applied"]) == ("x-arcp-trio.reply", False)
        answer = await cancel(sibling, {"job_id": running})
        assert error_of(answer)[0] == "PERMISSION_DENIED"


@pytest.mark.requirement("L19")
@pytest.mark.parametrize(
    ("payload", "fields", "path"),
    [
        ({}, {}, "$.payload.job_id:"),
        ({"reason": "because"}, {}, "$.payload.job_id:"),
        ({"job_id": None}, {}, "$.payload.job_id:"),
        ({"job_id": None}, {"job_id": None}, "$.payload.job_id:"),
        ({"job_id": 5}, {}, "$.payload.job_id:"),
        ({"job_id": ["j"]}, {}, "$.payload.job_id:"),
        ({"job_id": True}, {}, "$.payload.job_id:"),
        ({}, {"job_id": 5}, "$.job_id:"),
        ({}, {"job_id": ""}, "$.job_id:"),
    ],
)
async def test_a_malformed_cancel_is_no_cancel(script: Script, payload: Any, fields: Any, path: str) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.submit("sleep")
        answer = await cancel(client, payload, **fields)
        assert error_of(answer)[0] == "INVALID_REQUEST"
        assert answer["payload"]["message"].startswith(path)
        assert runtime.statistics().jobs_running == 1
        assert runtime.statistics().cancels_acknowledged == 0
        await assert_alive(client)


@pytest.mark.requirement("L19")
@pytest.mark.parametrize("reason", [5, [], {}, True])
async def test_a_reason_that_is_none_cancels_nothing(script: Script, reason: Any) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        answer = await cancel(client, {"job_id": job_id, "reason": reason}, job_id=job_id)
        assert error_of(answer)[0] == "INVALID_REQUEST"
        assert answer["payload"]["message"].startswith("$.payload.reason:")
        assert (answer["job_id"], answer["payload"]["job_id"]) == (job_id, job_id)
        assert runtime.statistics().jobs_running == 1


@pytest.mark.requirement("P7.13", "D40")
@pytest.mark.parametrize(
    ("in_payload", "on_envelope", "reason"),
    [
        (True, False, None),
        (False, True, None),
        (True, True, "enough"),
        (False, True, "enough"),
        (True, False, ""),
    ],
)
async def test_the_job_is_named_on_the_envelope_or_in_the_payload(
    script: Script, in_payload: bool, on_envelope: bool, reason: str | None
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        payload: Frame = {"job_id": job_id} if in_payload else {}
        if reason is not None:
            payload["reason"] = reason
        request_id = await client.request("job.cancel", payload, **({"job_id": job_id} if on_envelope else {}))
        terminal = await client.receive_until("job.error")
        acknowledged, _ = [each for each in client.received if each["type"] in ("job.cancelled", "job.error")]
        assert acknowledged["type"] == "job.cancelled"
        assert acknowledged["payload"]["request_id"] == acknowledged["payload"]["reply_to"] == request_id
        assert acknowledged["payload"]["job_id"] == acknowledged["job_id"] == job_id
        assert acknowledged["payload"]["reason"] == (reason or "cancelled")
        assert "event_seq" not in acknowledged
        assert (terminal["payload"]["code"], terminal["payload"]["final_status"]) == ("CANCELLED", "cancelled")
        assert terminal["payload"]["message"].endswith(reason or "the job was cancelled")


async def test_where_two_jobs_are_named_the_payload_counts(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        first, second = [await client.submit("sleep") for _ in range(2)]
        await client.request("job.cancel", {"job_id": second}, job_id=first)
        assert (await client.receive_until("job.error"))["job_id"] == second
        assert runtime.statistics().jobs_running == 1
