"""What the clients of four implementations really send (F850 to F892), against our runtime."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from helpers import ALL_FEATURES, Frame, RawClient, open_raw, terminals
from interop.recorded import Record, between, number, records

import arcp_trio
from arcp_trio.runtime import OFFERED_FEATURES
from arcp_trio.wire.dialects import detect_dialect
from arcp_trio.wire.envelope import decode_envelope, encode_json

HELLOS = {"python-1.1.3": 850, "typescript-0bf5caf": 859, "go-1a78320": 869, "ruby-b30000e": 882}
DIALECT_OF = {
    "python-1.1.3": "python",
    "typescript-0bf5caf": "typescript",
    "go-1a78320": "spec",
    "ruby-b30000e": "ruby",
}
SENT_BY_CLIENTS = between(850, 892)


def make_agents() -> arcp_trio.Agents:
    agents = arcp_trio.Agents()

    @agents.register("echo")
    async def echo(job: arcp_trio.JobContext, value: Any) -> Any:
        return value

    @agents.register("chunks")
    async def chunks(job: arcp_trio.JobContext, value: Any) -> None:
        async with job.stream_result() as out:
            await out.write("hello ")
            await out.write("world")

    @agents.register("slow")
    async def slow(job: arcp_trio.JobContext, value: Any) -> None:
        await job.progress(0, 100)
        await trio.sleep_forever()

    @agents.register("ver", version="1.0.0")
    async def ver(job: arcp_trio.JobContext, value: Any) -> Any:
        return value

    return agents


def groups() -> list[list[Record]]:
    """Return what each client sent in one session, its hello apart."""
    found: dict[tuple[str, str | None], list[Record]] = {}
    for record in SENT_BY_CLIENTS:
        if record.type != "session.hello":
            found.setdefault((record.sdk, record.frame.get("session_id")), []).append(record)
    return list(found.values())


def name_of(records_: list[Record]) -> str:
    return f"{DIALECT_OF[records_[0].sdk]}-F{records_[0].n}"


@asynccontextmanager
async def welcomed(sdk: str) -> AsyncGenerator[RawClient, None]:
    """Open a session with the recorded hello of that implementation's client."""
    hello = number(HELLOS[sdk]).frame
    with trio.fail_after(30):
        async with (
            arcp_trio.open_runtime(make_agents()) as runtime,
            open_raw(runtime, hello=hello) as client,
        ):
            yield client
            assert runtime.statistics().bugs == 0


async def still_answers(client: RawClient) -> None:
    """Show that the session lives."""
    await client.request("session.ping", {"nonce": "still there?"})
    pong = await client.receive_until("session.pong")
    assert pong["payload"]["ping_nonce"] == "still there?"


def check_answer_to(request: Frame, answer: Frame) -> None:
    """Every answer names its request in all the places where some client looks (P5.3a)."""
    assert answer["correlation_id"] == request["id"]
    assert answer["payload"]["request_id"] == request["id"]
    assert answer["payload"]["reply_to"] == request["id"]


async def check_refused(client: RawClient, request: Frame, code: str, dialect: str) -> None:
    answer = await client.receive()
    assert answer["payload"]["code"] == code, answer
    assert answer["payload"]["message"]
    assert answer["payload"].get("details", {}) is not None
    if dialect == "typescript" and request["type"] == "job.submit":
        # That client fails all its jobs on a session.error: its refusals are jobs that failed at once.
        assert answer["type"] == "job.error"
        assert answer["job_id"] == answer["payload"]["job_id"]
        assert answer["event_seq"] >= 1
        assert answer["payload"]["final_status"] == "error"
        assert answer["payload"]["request_id"] == request["id"]
    else:
        assert answer["type"] == "session.error"
        assert "event_seq" not in answer
        check_answer_to(request, answer)


async def check_submit(client: RawClient, request: Frame, dialect: str) -> str | None:
    """Check the answer to a submit, and how the job ends; return the id of one that runs."""
    agent = request["payload"]["agent"]
    lease = request["payload"].get("lease_request") or {}
    if agent == "nosuch":
        await check_refused(client, request, "AGENT_NOT_AVAILABLE", dialect)
        return None
    if "cost.budget" in lease and "cost.budget" not in OFFERED_FEATURES:
        await check_refused(client, request, "INVALID_REQUEST", dialect)
        return None
    accepted = await client.receive()
    assert accepted["type"] == "job.accepted", accepted
    check_answer_to(request, accepted)
    payload = accepted["payload"]
    job_id = payload["job_id"]
    assert accepted["job_id"] == job_id
    assert payload["agent"] == f"{agent}@1.0.0"
    assert ("lease" in payload) is (dialect != "ruby")
    if agent == "slow":
        event = await client.receive()
        assert event["payload"]["kind"] == "progress"
        return str(job_id)
    if agent == "chunks":
        pieces = [await client.receive() for _ in range(3)]
        assert "".join(piece["payload"]["body"]["data"] for piece in pieces) == "hello world"
        assert [piece["payload"]["body"]["more"] for piece in pieces] == [True, True, False]
    result = await client.receive()
    assert result["type"] == "job.result", result
    assert result["payload"]["final_status"] == "success"
    assert result["payload"].get("result") == (None if agent == "chunks" else request["payload"].get("input"))
    return None


async def check_cancelled(client: RawClient, request: Frame, job_id: str, dialect: str) -> None:
    cancelled = await client.receive()
    assert cancelled["type"] == "job.cancelled", cancelled
    assert "event_seq" not in cancelled
    assert cancelled["payload"]["job_id"] == cancelled["job_id"] == job_id
    assert cancelled["payload"]["reason"] == request["payload"]["reason"]
    check_answer_to(request, cancelled)
    error = await client.receive()
    assert error["type"] == "job.error", error
    assert error["payload"]["code"] == "CANCELLED"
    # That client takes job.error with final_status "error" alone, and hangs on another (X2).
    assert error["payload"]["final_status"] == ("error" if dialect == "python" else "cancelled")


async def check_listed(client: RawClient, request: Frame) -> None:
    """Check the answer to a listing: all that was submitted, in a form that every client reads (P6.20)."""
    jobs = await client.receive()
    assert jobs["type"] == "session.jobs", jobs
    check_answer_to(request, jobs)
    submitted = [frame["job_id"] for frame in client.received if frame["type"] == "job.accepted"]
    assert [entry["job_id"] for entry in jobs["payload"]["jobs"]] == submitted
    assert jobs["payload"]["next_cursor"] is None
    for entry in jobs["payload"]["jobs"]:
        assert entry["created_at"] == entry["submitted_at"] == entry["accepted_at"]
        assert entry["parent_job_id"] is None
        assert entry["lease"] is not None
        assert entry["last_event_seq"] >= 0
        ended = [frame["payload"]["final_status"] for frame in terminals(client.received, entry["job_id"])]
        # Not so with the client that takes no other final_status than "error" (X2).
        assert entry["status"] in (*ended, "cancelled") if ended else entry["status"] == "running"


async def check_subscribed(client: RawClient, request: Frame, job_id: str) -> None:
    subscribed = await client.receive()
    assert subscribed["type"] == "job.subscribed", subscribed
    assert "event_seq" not in subscribed
    assert subscribed["payload"]["job_id"] == subscribed["job_id"] == job_id
    check_answer_to(request, subscribed)
    payload = subscribed["payload"]
    # What the strictest of their readers want (interop.md, section 3.17).
    assert payload["current_status"] in ("running", "cancelled")
    assert (payload["lease"], payload["parent_job_id"]) == ({}, None)
    assert type(payload["subscribed_from"]) is int
    if payload["current_status"] == "running":
        # It is the session's own job: its events come anyway.
        assert payload["replayed"] is False
        return
    # It has ended: its history where that was asked for, and its end.
    assert payload["replayed"] is bool(request["payload"].get("history"))
    if payload["replayed"]:
        assert (await client.receive())["payload"]["kind"] == "progress"
    assert (await client.receive())["payload"]["code"] == "CANCELLED"


async def replay(client: RawClient, record: Record, running: str | None, dialect: str) -> str | None:
    """Send a recorded frame as this session's, check the answer; return the id of a job that runs on."""
    request = copy.deepcopy(record.frame)
    if "session_id" in request:
        # Two Go frames have none: it is the connection's (P5.1).
        request["session_id"] = client.session_id
    if record.type in ("job.cancel", "job.subscribe") and running is not None:
        for holder in (request, request["payload"]):
            if "job_id" in holder:
                holder["job_id"] = running
    await client.send(request)
    if record.type == "job.submit":
        return await check_submit(client, request, dialect)
    if record.type == "job.cancel":
        assert running is not None
        await check_cancelled(client, request, running, dialect)
        return None
    if record.type == "session.list_jobs":
        await check_listed(client, request)
        return running
    if record.type == "job.subscribe":
        if running is None:
            await check_refused(client, request, "JOB_NOT_FOUND", dialect)
        else:
            await check_subscribed(client, request, running)
        return running
    if record.type == "session.close":
        closed = await client.receive()
        assert closed["type"] == "session.closed"
        assert closed["payload"]["reason"] == request["payload"]["reason"]
    assert record.type in ("session.close", "session.bye")
    end = await client.receive_close()
    assert end.code == 1000
    return running


@pytest.mark.requirement("T01", "T02")
def test_every_recorded_frame_of_a_client_is_replayed_here() -> None:
    replayed = Counter(record.n for group in groups() for record in group)
    assert replayed + Counter(HELLOS.values()) == Counter(range(850, 893))


@pytest.mark.requirement("P5.3a", "X1", "X2", "X3", "X4")
@pytest.mark.parametrize("sdk", HELLOS)
def test_the_dialect_of_each_client_is_recognised(sdk: str) -> None:
    text = encode_json(number(HELLOS[sdk]).frame)
    assert detect_dialect(decode_envelope(text)).name == DIALECT_OF[sdk]


@pytest.mark.requirement("P5.3a", "D3", "D6", "D7")
def test_other_recorded_hellos_are_not_taken_for_somebody_else() -> None:
    for record in records():
        if record.type != "session.hello" or record.n >= 850:
            continue
        # Before 850 the only real client is the Python one, which was called "cap"; the others were written by
        # hand, and of them one after Ruby's manner.
        name = record.frame["payload"].get("client", {}).get("name")
        expected = "python" if name == "cap" else "ruby" if record.conn == "rubyhello" else "spec"
        assert detect_dialect(decode_envelope(encode_json(record.frame))).name == expected, record.n


@pytest.mark.requirement("P6.2", "P6.4", "P6.6", "D3", "D5", "D6", "D7", "D8", "D10", "D12", "T19", "T20")
@pytest.mark.parametrize("sdk", HELLOS)
async def test_each_hello_is_welcomed(sdk: str) -> None:
    async with welcomed(sdk) as client:
        welcome = client.received[0]
        payload = welcome["payload"]
        assert welcome["session_id"] == payload["session_id"] == client.session_id
        offered = set(number(HELLOS[sdk]).frame["payload"]["capabilities"]["features"])
        assert set(payload["capabilities"]["features"]) == offered & OFFERED_FEATURES
        assert payload.get("heartbeat_interval_sec") == (30 if "heartbeat" in offered else None)
        assert payload["capabilities"]["encodings"] == ["json"]
        assert [agent["name"] for agent in payload["capabilities"]["agents"]] == [
            "chunks",
            "echo",
            "slow",
            "ver",
        ]
        await still_answers(client)


@pytest.mark.requirement("P5.1", "P5.3a", "P6.21", "P7.2", "P7.13", "P12.2", "T01", "T02", "L05", "Q14")
@pytest.mark.requirement("P6.19", "P6.20")
@pytest.mark.parametrize("group", groups(), ids=name_of)
async def test_what_a_client_sends_is_understood(group: list[Record]) -> None:
    dialect = DIALECT_OF[group[0].sdk]
    async with welcomed(group[0].sdk) as client:
        running: str | None = None
        if group[0].type == "job.cancel":
            # Ruby's was recorded apart: it cancels the job of a submit that looks like its others.
            running = await replay(client, number(884), None, dialect)
        for record in group:
            running = await replay(client, record, running, dialect)
        if record.type not in ("session.close", "session.bye"):
            await still_answers(client)


@pytest.mark.requirement("P5.1", "P8.2", "S01", "S02")
@pytest.mark.parametrize("sdk", HELLOS)
async def test_all_that_a_client_sends_in_one_session(sdk: str) -> None:
    dialect = DIALECT_OF[sdk]
    async with welcomed(sdk) as client:
        running: str | None = None
        for record in SENT_BY_CLIENTS:
            if record.sdk == sdk and record.type not in ("session.hello", "session.close", "session.bye"):
                running = await replay(client, record, running, dialect) or running
        await still_answers(client)
        numbers = [frame["event_seq"] for frame in client.received if "event_seq" in frame]
        assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.requirement("X4", "D14", "D34")
async def test_java_gets_its_refusals_as_an_echo_of_the_request() -> None:
    runtime = arcp_trio.open_runtime(make_agents())
    with trio.fail_after(30):
        async with runtime as opened, open_raw(opened, compat="java") as client:
            for frame_type, payload in (
                ("job.submit", {"agent": "nosuch"}),
                ("job.cancel", {"job_id": "job_none"}),
                ("session.nonsense", {}),
            ):
                request_id = await client.request(frame_type, payload)
                answer = await client.receive()
                assert (answer["type"], answer["id"]) == ("job.error", request_id)
                assert "job_id" not in answer
            await still_answers(client)


@pytest.mark.requirement("P5.2", "X17")
async def test_an_older_protocol_gets_an_answer_that_it_can_read() -> None:
    opening = {
        "arcp": "1.0",
        "id": "msg_1",
        "type": "session.open",
        "timestamp": "2026-01-01T00:00:00Z",
        "payload": {"auth": {"scheme": "bearer", "token": "t"}, "client": {"kind": "rs", "version": "1"}},
    }
    with trio.fail_after(30):
        async with (
            arcp_trio.open_runtime(make_agents()) as runtime,
            open_raw(runtime, shake_hands=False) as client,
        ):
            await client.send(opening)
            answer = await client.receive()
            assert answer["type"] == "session.rejected"
            assert answer["correlation_id"] == "msg_1"
            assert answer["timestamp"].endswith("Z")
            assert answer["id"].startswith("msg_")
            assert answer["payload"]["code"] == "UNIMPLEMENTED"
            assert (await client.receive_close()).code == 1000


@pytest.mark.requirement("P7.14")
@pytest.mark.parametrize("sdk", HELLOS)
async def test_only_who_negotiated_it_gets_our_own_reply(sdk: str) -> None:
    async with welcomed(sdk) as client:
        job_id = await client.submit("echo", 1)
        await client.receive_until("job.result")
        await client.request("job.cancel", {"job_id": job_id, "reason": "late"}, job_id=job_id)
        assert await client.settle() == []
        await still_answers(client)
    with trio.fail_after(30):
        async with arcp_trio.open_runtime(make_agents()) as runtime:
            for features, answered in ((ALL_FEATURES, 1), (["progress"], 0)):
                hello = copy.deepcopy(number(HELLOS[sdk]).frame)
                hello["payload"]["capabilities"]["features"] = features
                async with open_raw(runtime, hello=hello) as client:
                    job_id = await client.submit("echo", 1)
                    await client.receive_until("job.result")
                    await client.request("job.cancel", {"job_id": job_id}, job_id=job_id)
                    replies = await client.settle()
                    assert [frame["type"] for frame in replies] == ["x-arcp-trio.reply"] * answered
