"""What we send satisfies the strictest peers: every frame of a rich conversation, under each dialect."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from helpers import ALL_FEATURES, Frame, RawClient, make_hello, open_raw
from interop.recorded import records
from interop.scripted import open_scripted
from interop.strict_peers import CLIENTS, SERVERS
from playing import open_played

import arcp_trio
from arcp_trio.wire.dialects import DIALECTS

if TYPE_CHECKING:
    from interop.peer import ReferencePeer

DIALECT_OF_CLIENT = {"python": "python", "typescript": "typescript", "go": "spec", "ruby": "ruby"}
CONVERSATION_SECONDS = 120
ANY_TRACE = "0af7651916cd43dd8448eb211c80319c"
LARGE = {"rows": ["text"] * 150_000}


@asynccontextmanager
async def within_limits() -> AsyncGenerator[None, None]:
    """A conversation that waits for an answer that never comes fails its test."""
    with trio.fail_after(CONVERSATION_SECONDS):
        yield


def is_refusal(frame: Frame) -> bool:
    """Say whether a frame refuses a request: one dialect does it by job.error."""
    return "code" in frame["payload"]


class Agents(arcp_trio.Agents):
    """Agents that make a runtime say all that it can say."""

    def __init__(self) -> None:
        super().__init__()

        @self.register("echo")
        async def echo(job: arcp_trio.JobContext, value: Any) -> Any:
            return value

        @self.register("everything", version="2.0.0")
        async def everything(job: arcp_trio.JobContext, value: Any) -> Any:
            for level in ("debug", "info", "warn", "error"):
                await job.log(level, "a line")
            await job.log("info", "with fields", {"k": None})
            await job.thought("hmm")
            await job.status("working")
            await job.status("working", "on it")
            await job.metric("tokens", 3)
            await job.metric("cost.search", 0.25, "USD", {"model": "m"})
            async with job.tool_call("search") as call:
                call.result = {"hits": [1, None]}
            with suppress(arcp_trio.JobTimeoutError):
                async with job.tool_call("search", {"q": "x"}):
                    raise arcp_trio.JobTimeoutError("slow")
            with suppress(arcp_trio.PermissionDeniedError):
                await job.authorize("tool.call", "forbidden")
            await job.artifact_ref("s3://bucket/key", "text/plain")
            await job.artifact_ref("s3://bucket/key", "text/plain", byte_size=0, sha256="00")
            await job.progress(1)
            await job.progress(1.0, 2.0, "files", "half")
            await job.emit("x-vendor.acme.kind", {"anything": None})
            return {"nested": [None, {"a": None}]}

        @self.register("text")
        async def text(job: arcp_trio.JobContext, value: Any) -> None:
            async with job.stream_result(content_type="text/plain") as out:
                await out.write("𝄞" * 200_000)

        @self.register("bytes")
        async def binary(job: arcp_trio.JobContext, value: Any) -> None:
            async with job.stream_result() as out:
                await out.write(bytes(700_000))

        @self.register("large")
        async def large(job: arcp_trio.JobContext, value: Any) -> Any:
            return LARGE

        @self.register("raise")
        async def raise_(job: arcp_trio.JobContext, value: Any) -> Any:
            if value is None:
                raise ValueError("a secret")
            raise arcp_trio.ARCPError(**value)

        @self.register("lease_expired")
        async def lease_expired(job: arcp_trio.JobContext, value: Any) -> Any:
            raise arcp_trio.LeaseExpiredError("over", retryable=True)

        @self.register("internal")
        async def internal(job: arcp_trio.JobContext, value: Any) -> Any:
            raise arcp_trio.InternalError("broken", retryable=False)

        @self.register("boss")
        async def boss(job: arcp_trio.JobContext, value: Any) -> Any:
            # One after the other: every conversation has the same order.
            child = await job.delegate("everything", {"a": None}, lease_request={"tool.call": ["search"]})
            result = await child.result()
            with pytest.raises(arcp_trio.PermissionDeniedError):
                await job.delegate("sleep")
            await (await job.delegate("echo")).result()
            return result

        @self.register("sleep")
        async def sleep(job: arcp_trio.JobContext, value: Any) -> None:
            await job.status("sleeping")
            await trio.sleep_forever()


async def submit(client: RawClient, agent: str, value: Any = None, **payload: Any) -> Frame:
    """Submit a job and read to its end."""
    request_id = await client.request("job.submit", {"agent": agent, "input": value, **payload}, trace_id=ANY_TRACE)
    accepted = await client.receive_until("job.accepted")
    assert accepted["payload"]["request_id"] == request_id
    job_id = accepted["job_id"]
    return await client.receive_until(
        lambda frame: frame["type"] in ("job.result", "job.error") and frame["job_id"] == job_id
    )


async def ask_for_refusals(client: RawClient, job_of_another: str) -> None:
    """Make every mistake; none of them may cost the session."""
    for frame_type, payload in (
        ("job.submit", {"agent": "nosuch"}),
        ("job.submit", {"agent": "echo@9"}),
        ("job.submit", {"agent": "BAD NAME!"}),
        ("job.submit", {}),
        ("job.submit", {"agent": 7}),
        ("job.submit", {"agent": "echo", "max_runtime_sec": -1}),
        ("job.submit", {"agent": "echo", "lease_request": {"tool.call": []}}),
        ("job.submit", {"agent": "echo", "lease_request": {"UPPER": ["x"]}}),
        ("job.cancel", {}),
        ("job.cancel", {"job_id": "job_none"}),
        ("job.cancel", {"job_id": job_of_another}),
        ("session.nonsense", {}),
        ("job.nonsense", {}),
        ("session.ping", {}),
        ("session.hello", {}),
        ("session.resume", {}),
    ):
        await client.request(frame_type, payload)
        answer = await client.receive_until(is_refusal)
        assert answer["payload"]["code"] in arcp_trio.wire.errors.CORE_CODES
        # A good one in between: eight bad ones in a row close the connection (P5.5).
        await client.request("session.ping", {"nonce": "n"})
        await client.receive_until("session.pong")
    for text in ("no JSON", "[]", "{}", '{"id":"msg_x","type":"session.ping"}', '{"arcp":"1.1","id":""}'):
        await client.send_text(text)
        await client.receive_until(is_refusal)
        await client.request("session.ping", {"nonce": "n"})
        await client.receive_until("session.pong")
    await client.send(client.make("session.ping", {"nonce": "n"}, session_id="sess_another"))
    await client.receive_until(is_refusal)
    # An id that was used for something else.
    await client.send(client.make("session.ping", {"nonce": "first"}, id="msg_twice"))
    await client.receive_until("session.pong")
    await client.send(client.make("session.ping", {"nonce": "second"}, id="msg_twice"))
    await client.receive_until(is_refusal)


async def converse(dialect: str, *, features: list[str]) -> list[Frame]:
    """Return every frame of a conversation in which the runtime says all that it can."""
    async with (
        within_limits(),
        arcp_trio.open_runtime(Agents()) as runtime,
        open_raw(runtime, compat=dialect, hello=make_hello(features=features)) as client,
        open_raw(runtime) as another,
    ):
        lease = {"tool.call": ["search"]}
        assert (await submit(client, "everything", lease_request=lease))["type"] == "job.result"
        for value in ({"a": None}, None, "", False, [], 0, "text"):
            await submit(client, "echo", value)
        await submit(client, "echo", 1, lease_request={"tool.call": ["a.*"]}, max_runtime_sec=5)
        lease = {"agent.delegate": ["everything", "echo"], "tool.call": ["search"]}
        assert (await submit(client, "boss", lease_request=lease))["type"] == "job.result"
        for agent in ("text", "bytes", "large"):
            assert (await submit(client, agent))["type"] == "job.result"
        for value in (
            None,
            {"message": "plain", "code": "X_VENDOR"},
            {"message": "with details", "code": "X_VENDOR", "details": {"k": None}},
            {"message": "", "code": "TIMEOUT", "details": {}},
        ):
            assert (await submit(client, "raise", value))["type"] == "job.error"
        await submit(client, "lease_expired")
        await submit(client, "internal")
        # Timed out, cancelled while it runs, cancelled before it started, cancelled too late.
        assert (await submit(client, "sleep", max_runtime_sec=0.5))["payload"]["code"] == "TIMEOUT"
        job_id = await client.submit("sleep")
        await client.receive_until("job.event")
        for reason in ({}, {"reason": "again"}):
            await client.request("job.cancel", {"job_id": job_id, **reason}, job_id=job_id)
        await client.receive_until("job.error")
        await client.request("job.cancel", {"job_id": job_id, "reason": "late"}, job_id=job_id)
        await client.settle()
        job_of_another = await another.submit("sleep")
        await ask_for_refusals(client, job_of_another)
        # Every job of above, in pages; the last one has no cursor.
        await client.request("session.list_jobs", {"limit": 2})
        for page in await client.settle():
            if page["type"] == "session.jobs":
                await client.request("session.list_jobs", {"cursor": page["payload"]["next_cursor"]})
        await client.request("session.close", {"reason": "done"})
        await client.receive_close()
        assert runtime.statistics().bugs == 0
        return client.received


async def refused_handshakes() -> list[Frame]:
    """Return what clients are told that get no session."""
    frames = []
    async with within_limits(), arcp_trio.open_runtime(Agents()) as runtime:
        hello = make_hello()
        for change in (
            {"arcp": "2.0"},
            {"type": "job.submit"},
            {
                "type": "session.resume",
                "payload": {"auth": {"token": "t"}, "resume_token": "x", "last_event_seq": 0},
            },
            {"session_id": "sess_mine", "payload": {}},
            {"payload": {"auth": {"token": ""}}},
            {"payload": {"auth": {"token": "t"}, "capabilities": {"encodings": ["cbor"]}}},
            {"payload": {**hello["payload"], "resume_token": "x", "last_event_seq": 0}},
        ):
            async with open_raw(runtime, shake_hands=False) as client:
                await client.send({**hello, **change})
                frames.append(await client.receive())
                await client.receive_close()
    return frames


@pytest.mark.requirement("P4.4", "P5.1", "P5.2", "P5.3", "P5.3a", "P5.8", "P6.6", "P7.2", "P7.8", "P7.9")
@pytest.mark.requirement("P7.13", "P8.2", "P12.1", "P12.2", "X1", "X2", "X3", "X4", "X13", "X16", "D1", "D2")
@pytest.mark.requirement("D4", "D5", "D8", "D9", "D10", "D12", "D14", "D17", "D30", "D36", "D37", "D38", "D39")
@pytest.mark.requirement("P6.20", "D42", "D47", "D49", "D51", "D52", "D54", "L05", "S01", "E04", "T20")
@pytest.mark.parametrize("features", [ALL_FEATURES, []], ids=["all-features", "no-features"])
@pytest.mark.parametrize("peer", DIALECT_OF_CLIENT)
async def test_all_that_the_runtime_says_pleases_the_client(
    autojump_clock: trio.testing.MockClock, peer: str, features: list[str]
) -> None:
    frames = await converse(DIALECT_OF_CLIENT[peer], features=features)
    objections: list[str] = []
    for frame in frames:
        for name in ("common", peer):
            if name == "go" and frame["type"] == "session.error" and "request_id" not in frame["payload"]:
                # What cannot be read has no id that could be echoed.
                assert "correlation_id" not in frame
                continue
            if name == "ruby" and frame["type"] == "session.error" and "reply_to" not in frame["payload"]:
                continue
            objections += [f"{name}: {frame['type']} {what}" for what in CLIENTS[name](frame)]
        # A streamed result that a session without chunks gets whole may be larger (P6.4).
        if features or frame["type"] != "job.result":
            assert len(json.dumps(frame, ensure_ascii=False).encode()) <= 1_000_000
    assert objections == []
    # It was a rich conversation.
    types = Counter(frame["type"] for frame in frames)
    expected = {"session.welcome", "session.error", "session.pong", "session.closed", "job.accepted"}
    expected |= {"job.event", "job.result", "job.error", "job.cancelled"}
    if features:
        expected |= {"x-arcp-trio.reply", "session.jobs"}
    assert set(types) == expected
    kinds = {frame["payload"]["kind"] for frame in frames if frame["type"] == "job.event"}
    optional = {"progress", "result_chunk"} if features else set()
    assert kinds == optional | {
        "log",
        "thought",
        "status",
        "metric",
        "tool_call",
        "tool_result",
        "artifact_ref",
        "delegate",
        "x-vendor.acme.kind",
    }
    # Numbers without a gap, whatever was left out for want of a feature; accepted before the job's events.
    numbers = [frame["event_seq"] for frame in frames if "event_seq" in frame]
    assert numbers == list(range(1, len(numbers) + 1))
    accepted = set()
    for frame in frames:
        if frame["type"] == "job.accepted":
            accepted.add(frame["job_id"])
        elif frame["type"] in ("job.event", "job.result"):
            assert frame["job_id"] in accepted


@pytest.mark.requirement("P6.1", "D3", "D4")
async def test_a_refused_handshake_pleases_every_client() -> None:
    frames = await refused_handshakes()
    assert {frame["type"] for frame in frames} == {"session.error"}
    assert [frame["payload"]["code"] for frame in frames] == [
        "INVALID_REQUEST",
        "UNAUTHENTICATED",
        "RESUME_WINDOW_EXPIRED",
        "UNAUTHENTICATED",
        "UNAUTHENTICATED",
        "INVALID_REQUEST",
        "RESUME_WINDOW_EXPIRED",
    ]
    for frame in frames:
        for name, validate in CLIENTS.items():
            assert validate(frame) == [], name
    # The id that the client proposed itself.
    assert frames[3]["session_id"] == "sess_mine"


@pytest.mark.requirement("P6.4", "P7.14")
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_our_own_types_are_sent_only_if_negotiated(autojump_clock: trio.testing.MockClock, dialect: str) -> None:
    without = [feature for feature in ALL_FEATURES if feature != "x-arcp-trio.replies"]
    frames = await converse(dialect, features=without)
    assert not [frame for frame in frames if frame["type"].startswith("x-")]
    frames = await converse(dialect, features=ALL_FEATURES)
    replies = [frame for frame in frames if frame["type"].startswith("x-")]
    # To the second cancel of a job that is stopping, and to the late one.
    assert [frame["payload"]["applied"] for frame in replies] == [False, False]
    assert [frame["payload"]["job_status"] for frame in replies] == ["cancelled", "cancelled"]


@pytest.mark.requirement("X1", "X2", "X3", "X4")
async def test_dialects_depart_from_the_specification_only_where_they_may(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def outline(frames: list[Frame]) -> list[tuple[Any, ...]]:
        # What X1 to X4 allow to differ is left out.
        kept = [frame for frame in frames if "code" not in frame["payload"]]
        return [(frame["type"], sorted(set(frame["payload"]) - {"lease", "budget"})) for frame in kept]

    conversations = {name: await converse(name, features=ALL_FEATURES) for name in DIALECTS}
    spec = outline(conversations["spec"])
    for name, frames in conversations.items():
        assert outline(frames) == spec, name
    statuses = {
        name: {frame["payload"]["final_status"] for frame in frames if frame["type"] == "job.error"}
        for name, frames in conversations.items()
        if name != "java"  # whose refusals are job.errors too
    }
    assert statuses.pop("python") == {"error"}
    assert all(found == {"error", "cancelled", "timed_out"} for found in statuses.values())


@pytest.mark.requirement("P5.3a", "X1", "X2", "D37", "T21")
async def test_the_reference_models_read_all_that_the_runtime_says(reference_peer: ReferencePeer) -> None:
    frames = [
        *await converse("python", features=ALL_FEATURES),
        *await converse("python", features=[]),
        *await refused_handshakes(),
    ]
    lines = "\n".join(json.dumps(frame) for frame in frames)
    objections = await reference_peer.run("peer_models.py", stdin=lines.encode())
    assert len(objections) == len(frames)
    assert [what for what in objections if what is not None] == []


# --- the validators themselves can fail -----------------------------------------------------------


async def objections_to(peer: str, dialect: str) -> set[str]:
    frames = await converse(dialect, features=ALL_FEATURES)
    return {f"{frame['type']} {what}" for frame in frames for what in CLIENTS[peer](frame)}


@pytest.mark.requirement("X2", "X3")
async def test_without_its_dialect_a_client_would_object(autojump_clock: trio.testing.MockClock) -> None:
    assert await objections_to("python", "spec") == {
        "job.error $.payload: final_status is 'cancelled'",
        "job.error $.payload: final_status is 'timed_out'",
    }
    assert "job.accepted $.payload.lease: id is 'absent'" in await objections_to("ruby", "spec")
    objections = await objections_to("typescript", "spec")
    assert objections == {"job.error $.payload: code is 'X_VENDOR'"}


@pytest.mark.requirement("T21")
def test_the_validators_see_why_the_implementations_do_not_understand_each_other() -> None:
    def objections(sdk: str, peer: str, frame_type: str) -> set[str]:
        return {
            what
            for record in records()
            if record.sdk == sdk and record.type == frame_type and not record.from_client
            for what in CLIENTS[peer](record.frame)
        }

    # The matrix of interop.md, section 0.1.
    assert "$.payload: session_id is 'absent'" in objections("typescript-0bf5caf", "python", "session.welcome")
    assert "$.payload: accepted_at is 'absent'" in objections("go-1a78320", "python", "session.welcome")
    assert objections("go-1a78320", "typescript", "session.welcome")
    assert objections("python-1.1.3", "typescript", "session.error")
    assert objections("python-1.1.3", "typescript", "job.result")
    assert objections("typescript-0bf5caf", "go", "job.result") == {"$.payload: output is 'absent'"}
    assert objections("python-1.1.3", "go", "session.error") >= {"$.payload: request_id is 'absent'"}
    assert objections("ruby-b30000e", "go", "job.event") == {"$.payload: ts is 'absent'"}
    assert objections("go-1a78320", "ruby", "job.accepted") >= {"$.payload: reply_to is 'absent'"}
    # And each takes what its own server sends.
    for sdk, peer in (
        ("python-1.1.3", "python"),
        ("typescript-0bf5caf", "typescript"),
        ("go-1a78320", "go"),
        ("ruby-b30000e", "ruby"),
    ):
        for frame_type in ("session.welcome", "job.accepted", "job.event", "job.result", "job.error"):
            assert objections(sdk, peer, frame_type) == set(), (sdk, frame_type)


async def test_the_reference_models_object_to_the_frames_of_others(reference_peer: ReferencePeer) -> None:
    frames = [record.frame for record in records() if record.type == "session.welcome" and record.sdk != "python-1.1.3"]
    lines = "\n".join(json.dumps(frame) for frame in frames)
    assert None not in await reference_peer.run("peer_models.py", stdin=lines.encode())


# --- our client -----------------------------------------------------------------------------------


def welcome_of(sdk: str) -> Frame:
    return next(record.frame for record in records() if record.sdk == sdk and record.type == "session.welcome")


async def frames_of_our_client() -> list[Frame]:
    """Return all that our client can say."""
    welcome = welcome_of("python-1.1.3")

    async with within_limits(), open_scripted(welcome) as (client, fake):

        async def ask(*arguments: Any, **more: Any) -> None:
            await client.submit(*arguments, **more)

        async def accept(number: int) -> None:
            frame = await fake.receive("job.submit")
            job_id = f"job_{number}"
            payload = {"job_id": job_id, "agent": "echo", "request_id": frame["id"]}
            await fake.send(
                {"arcp": "1.1", "id": f"m{number}", "type": "job.accepted", "job_id": job_id, "payload": payload}
            )

        questions: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            (("echo",), {}),
            (("echo", None), {"lease_request": {}}),
            (("echo", {"a": None}), {"trace_id": ANY_TRACE}),
            (
                ("echo@1.0.0", [1, None]),
                {
                    "lease_request": {"tool.call": ["a.*"], "cost.budget": ["USD:5"]},
                    "expires_at": "2099-01-01T00:00:00Z",
                    "idempotency_key": "k",
                    "max_runtime_sec": 60,
                },
            ),
        ]
        for index, (arguments, more) in enumerate(questions):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda arguments=arguments, more=more: ask(*arguments, **more))
                await accept(index)
        handle = client._session.jobs["job_0"]
        for reason in ("enough", ""):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handle.cancel, reason)
                await fake.receive("job.cancel")
                await fake.send(
                    {
                        "arcp": "1.1",
                        "id": "m",
                        "type": "job.cancelled",
                        "job_id": "job_0",
                        "payload": {"job_id": "job_0"},
                    }
                )
        await fake.send({"arcp": "1.1", "id": "m", "type": "session.ping", "payload": {"nonce": "n"}})
        await fake.receive("session.pong")

        async def follow(**more: Any) -> None:
            await (await client.subscribe("job_9", **more)).unsubscribe()

        async def list_two_pages(**more: Any) -> None:
            pages = client.list_jobs(**more)
            await anext(pages)
            await anext(pages)

        for more in ({}, {"history": True, "from_event_seq": 0}):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(follow, **more))
                await fake.receive("job.subscribe")
                payload = {"job_id": "job_9", "current_status": "running", "agent": "a"}
                await fake.send({"arcp": "1.1", "id": "m", "type": "job.subscribed", "payload": payload})
                await fake.receive("job.unsubscribe")
        for more in ({}, {"status": "running", "agent": "a@1", "created_after": "2026-01-01T00:00:00Z", "limit": 7}):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(list_two_pages, **more))
                for cursor in ("c", None):
                    request = await fake.receive("session.list_jobs")
                    payload = {"request_id": request["id"], "jobs": [], "next_cursor": cursor}
                    await fake.send({"arcp": "1.1", "id": "m", "type": "session.jobs", "payload": payload})
        body = {"kind": "log", "body": {"level": "info", "message": "m"}}
        await fake.send(
            {"arcp": "1.1", "id": "m", "type": "job.event", "job_id": "job_0", "event_seq": 1, "payload": body}
        )
        await fake.receive("session.ack")
        await fake.receive("session.ping")
    frames = fake.received
    own = {"session_id": "sess_01M85872QJASGPG41Y64AGHR0E"}
    async with open_played(features=list(client.features), welcome=own) as (played, first, _):
        await first.drop()
        frames.append(await (await played.next()).welcome("rt_2"))
    return frames


@pytest.mark.requirement("P5.2", "P5.3", "P5.3a", "P5.8", "P6.21", "D2", "D3", "D6", "D7", "D13", "D25", "D27")
@pytest.mark.requirement("D28", "D40", "D54", "X8", "K07")
async def test_all_that_our_client_says_pleases_every_server(autojump_clock: trio.testing.MockClock) -> None:
    frames = await frames_of_our_client()
    types = Counter(frame["type"] for frame in frames)
    assert types == {
        "session.hello": 2,
        "job.submit": 4,
        "job.cancel": 2,
        "job.subscribe": 2,
        "job.unsubscribe": 2,
        "session.list_jobs": 4,
        "session.pong": 1,
        "session.ack": 1,
        "session.ping": 1,
        "session.close": 1,
    }
    for frame in frames:
        for name, validate in SERVERS.items():
            assert validate(frame) == [], (name, frame)
    # No id and no trace is used twice: some servers drop what they have seen (D2), others match by trace.
    assert len({frame["id"] for frame in frames}) == len(frames)
    traces = [frame["trace_id"] for frame in frames if frame["type"] == "job.submit"]
    assert len(set(traces)) == len(traces)
    assert traces[2] == ANY_TRACE
    # Its own proposal on hello, the runtime's from then on.
    proposed, *others, resumed = [frame["session_id"] for frame in frames]
    assert resumed == "sess_01M85872QJASGPG41Y64AGHR0E"
    assert set(others) == {welcome_of("python-1.1.3")["session_id"]}
    assert proposed not in others


@pytest.mark.requirement("P5.3a")
async def test_the_reference_models_read_all_that_our_client_says(reference_peer: ReferencePeer) -> None:
    frames = await frames_of_our_client()
    lines = "\n".join(json.dumps(frame) for frame in frames)
    objections = await reference_peer.run("peer_models.py", "server", stdin=lines.encode())
    assert objections == [None] * len(frames)


@pytest.mark.requirement("D3", "D25", "D28", "D40")
def test_the_validators_of_servers_object_to_the_clients_of_others() -> None:
    sent = {record.n: record.frame for record in records() if 850 <= record.n <= 892}
    assert SERVERS["python"](sent[882])  # Ruby's hello has no client object
    assert SERVERS["typescript"](sent[882])
    assert SERVERS["ruby"](sent[850])  # Python's hello has no session_id
    assert SERVERS["ruby"](sent[865])  # TypeScript's cancel has no job_id in its payload
    assert SERVERS["python"](sent[862])  # TypeScript's bye has no reason
    for number, server in ((850, "python"), (859, "typescript"), (869, "go"), (882, "ruby"), (892, "ruby")):
        assert SERVERS[server](sent[number]) == []
