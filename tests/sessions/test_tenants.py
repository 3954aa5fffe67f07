"""Everything that one principal can send, aimed at another's sessions and jobs, reveals and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers import ALL_FEATURES, Frame, RawClient, Script, connect_raw, make_hello
from sessions.resuming import drop, refused, resume, resume_hello, sequence

import arcp_trio
from arcp_trio.sessions.auth import Principal

CANARY = "canary-6b1f"


def attacks(victim: RawClient, job_ids: list[str]) -> list[tuple[str, Frame, Frame]]:
    """Return what a session can be asked for with another's ids: type, payload and fields of the envelope."""
    found: list[tuple[str, Frame, Frame]] = []
    for job_id in job_ids:
        for frame_type in ("job.cancel", "job.subscribe", "job.unsubscribe"):
            for payload in ({"job_id": job_id}, {"job_id": job_id, "history": True, "from_event_seq": 0}):
                found += [(frame_type, payload, {}), (frame_type, {}, {"job_id": job_id})]
        # What only a runtime says.
        for frame_type in ("job.event", "job.result", "job.error", "job.accepted", "job.cancelled"):
            payload = {"job_id": job_id, "code": "CANCELLED", "kind": "log", "body": {}, "final_status": "cancelled"}
            found.append((frame_type, payload, {"job_id": job_id, "event_seq": 1}))
    found += [
        ("session.list_jobs", {}, {}),
        ("session.list_jobs", {"filter": {"status": ["running", "success"]}, "limit": 1000}, {}),
        ("session.list_jobs", {"filter": {"agent": "gate"}}, {}),
        ("session.ack", {"last_processed_seq": 1}, {}),
    ]
    # The same under the other's name, in which also a close and a ping are somebody else's.
    stolen = {"session_id": victim.session_id}
    found += [(frame_type, payload, {**fields, **stolen}) for frame_type, payload, fields in found]
    found += [(frame_type, {"nonce": "n"}, stolen) for frame_type in ("session.ping", "session.close", "session.bye")]
    return found


@pytest.mark.requirement("P5.1", "P7.12", "P7.19", "P6.10", "Q01", "Q02", "L17", "L19", "C07")
@pytest.mark.parametrize("attacker", ["other", "ME", "me ", " ", "anonymous"])
async def test_one_principal_against_another(attacker: str, caplog: pytest.LogCaptureFixture) -> None:
    script = Script()

    @script.agents.register("secretive")
    async def secretive(job: arcp_trio.JobContext, value: Any) -> Any:
        await job.log("info", CANARY)
        await script.gate.wait()
        return CANARY

    access: dict[str, Any] = {"principal": attacker}
    if attacker == "anonymous":
        access = {"principal": None, "verifier": arcp_trio.AnonymousAccess()}
    async with arcp_trio.open_runtime(script.agents) as runtime:
        victim = await connect_raw(runtime)
        running = await victim.submit("secretive", CANARY)
        ended = await victim.submit("echo", CANARY)
        waiting = await connect_raw(runtime)
        await waiting.submit("gate", CANARY)
        await waiting.settle()
        await drop(waiting)
        await victim.settle()
        before = len(victim.received)
        statistics = runtime.statistics()

        for frame_type, payload, fields in attacks(victim, [running, ended, "job_unknown"]):
            thief = await connect_raw(runtime, **access)
            await thief.request(frame_type, payload, **fields)
            await thief.settle()
            # Its own welcome and refusals: not a word of the other's, and nothing that a job says.
            heard = json.dumps(thief.received)
            assert CANARY not in heard
            assert sequence(thief.received) == []
            assert all(frame["type"].startswith("session.") for frame in thief.received), thief.received
            for frame in thief.received:
                assert frame["payload"].get("jobs", []) == []
            await thief.transport.abort()
        for client in (victim, waiting):
            for last in (0, 1, 10**6):
                answer = await refused(runtime, resume_hello(client, last, resume_token="guessed"), **access)
                assert answer["payload"]["code"] == "RESUME_WINDOW_EXPIRED"
                answer = await refused(runtime, resume_hello(client, last), **access)
                assert answer["payload"]["code"] == "RESUME_WINDOW_EXPIRED"

        # Nothing has come to the owner, and all of it is as it was.
        assert await victim.settle() == []
        assert len(victim.received) == before
        after = runtime.statistics()
        assert (after.jobs_running, after.jobs_accepted, after.sessions, after.sessions_waiting, after.bugs) == (
            statistics.jobs_running,
            statistics.jobs_accepted,
            statistics.sessions,
            statistics.sessions_waiting,
            0,
        )
        script.gate.set()
        await victim.receive_until("job.result")
        back = await resume(runtime, waiting, 0)
        frames = await back.settle()
        assert sequence(frames) == [1, 2]
    assert CANARY not in caplog.text


@pytest.mark.requirement("Q02", "P6.1")
async def test_nobody_has_an_empty_name(script: Script) -> None:
    class Careless:
        async def verify(self, token: str) -> Principal:
            return Principal(name="")

    with pytest.raises(ValueError, match="principal"):
        Principal(name="")
    async with arcp_trio.open_runtime(script.agents) as runtime:
        client = await connect_raw(runtime, principal=None, verifier=Careless(), shake_hands=False)
        await client.send(make_hello())
        assert (await client.receive())["payload"]["code"] == "INTERNAL_ERROR"


@pytest.mark.requirement("Q02", "P6.1")
async def test_anonymous_principals_know_nothing_of_each_other(script: Script) -> None:
    access = arcp_trio.AnonymousAccess()
    async with arcp_trio.open_runtime(script.agents) as runtime:
        hello = make_hello(features=ALL_FEATURES)
        first = await connect_raw(runtime, principal=None, verifier=access, hello=hello)
        second = await connect_raw(runtime, principal=None, verifier=access, hello=hello)
        job_id = await first.submit("gate")
        for frame_type in ("job.subscribe", "job.cancel"):
            await second.request(frame_type, {"job_id": job_id})
        answers = [frame["payload"]["code"] for frame in await second.settle()]
        assert answers == ["JOB_NOT_FOUND"] * 2
        assert runtime.statistics().jobs_running == 1
