"""Malformed and unwanted frames in a session that lives: each is answered, and nothing else happens (P5.5)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from fuzz.live import assert_alive, assert_nothing_left, error_of, ping
from helpers import ALL_FEATURES, RawClient, Script, make_hello, open_raw

import arcp_trio
from arcp_trio.limits import Limits


def submit(**payload: Any) -> str:
    return json.dumps({"arcp": "1.1", "id": "m", "type": "job.submit", "payload": {"agent": "echo", **payload}})


def frame(frame_type: str, payload: Any, **fields: Any) -> str:
    return json.dumps({"arcp": "1.1", "id": "m", "type": frame_type, "payload": payload, **fields})


DEEP = "[" * 65 + "]" * 65

MALFORMED: list[tuple[bytes | str, str, str | None]] = [
    # Not JSON.
    ("", "$:", None),
    ("hello", "$:", None),
    ('{"arcp":"1.1","id":"m","type":"session.ping","payl', "$:", None),
    (ping("m") + "}", "$:", None),
    (b"\xff\xfe\x00", "$:", None),
    (b"\x00", "$:", None),
    (ping("m").replace('"m"', "NaN"), "$:", None),
    (submit(input=float("nan")), "$:", None),
    (submit(input=float("-inf")), "$:", None),
    (submit(input=0).replace("0", "1e999"), "$:", None),
    (submit(input="\ud800"), "$:", None),
    (submit(input={"\udc00": 1}), "$:", None),
    (b'{"arcp":"1.1","id":"m","type":"session.ping","payload":{"nonce":"\xed\xa0\x80"}}', "$:", None),
    (submit(input=0).replace("0", DEEP), "$:", None),
    (submit(input=0).replace("0", "[" * 5000 + "]" * 5000), "$:", None),
    # Not an object.
    ("[]", "$:", None),
    ("null", "$:", None),
    ('"session.ping"', "$:", None),
    ("42", "$:", None),
    # A required field that is missing, of another type, or there twice.
    ("{}", "$.id:", None),
    (ping("m", id=...), "$.id:", None),
    (ping("m", id=7), "$.id:", None),
    (ping("m", id=""), "$.id:", None),
    (ping("m", id="m" * 257), "$.id:", None),
    (ping("m", type=...), "$.type:", "m"),
    (ping("m", type=None), "$.type:", "m"),
    (ping("m", arcp=...), "$.arcp:", "m"),
    (ping("m", arcp=1.1), "$.arcp:", "m"),
    (ping("m", payload=...), "$.payload:", "m"),
    (ping("m", payload="{}"), "$.payload:", "m"),
    (ping("m").replace('"id": "m"', '"id": "m", "id": "m"'), "$.id:", "m"),
    (ping("m").replace('"type"', '"type": "session.pong", "type"'), "$.type:", "m"),
    (ping("m").replace('"nonce"', '"nonce": "x", "nonce"'), "$.payload.nonce:", "m"),
    (ping("m").replace('"nonce"', r'"nonce": "x", "\u006eonce"'), "$.payload.nonce:", "m"),
    (submit().replace('"agent"', '"agent": "sleep", "agent"'), "$.payload.agent:", "m"),
    (ping("m", session_id=5), "$.session_id:", "m"),
    (ping("m", session_id=""), "$.session_id:", "m"),
    (ping("m", job_id=[]), "$.job_id:", "m"),
    (ping("m", event_seq="1"), "$.event_seq:", "m"),
    (ping("m", event_seq=1.5), "$.event_seq:", "m"),
    (ping("m", event_seq=-1), "$.event_seq:", "m"),
    (ping("m", event_seq=2**64), "$.event_seq:", "m"),
    # The same in a payload.
    (frame("session.ping", {}), "$.payload.nonce:", "m"),
    (frame("session.ping", {"nonce": 5}), "$.payload.nonce:", "m"),
    (frame("session.ping", {"nonce": "n", "sent_at": 5}), "$.payload.sent_at:", "m"),
    (frame("session.ping", {"nonce": "n" * 257}), "$.payload.nonce:", "m"),
    (frame("session.close", {"reason": 5}), "$.payload.reason:", "m"),
    (frame("session.bye", {"reason": []}), "$.payload.reason:", "m"),
    (frame("job.submit", {}), "$.payload.agent:", "m"),
    (submit(agent=None), "$.payload.agent:", "m"),
    (submit(agent=7), "$.payload.agent:", "m"),
    (submit(agent=""), "$.payload.agent:", "m"),
    (submit(agent="Echo"), "$.payload.agent:", "m"),
    (submit(agent="echo@"), "$.payload.agent:", "m"),
    (submit(agent="@1.0.0"), "$.payload.agent:", "m"),
    (submit(agent="echo@1@2"), "$.payload.agent:", "m"),
    (submit(agent="e" * 1000), "$.payload.agent:", "m"),
    (submit(max_runtime_sec="5"), "$.payload.max_runtime_sec:", "m"),
    (submit(max_runtime_sec=True), "$.payload.max_runtime_sec:", "m"),
    (submit(max_runtime_sec=0), "$.payload.max_runtime_sec:", "m"),
    (submit(max_runtime_sec=-1.5), "$.payload.max_runtime_sec:", "m"),
    (submit(idempotency_key=5), "$.payload.idempotency_key:", "m"),
    (submit(lease_request=[]), "$.payload.lease_request:", "m"),
    (submit(lease_request={"fs.read": "/a"}), '$.payload.lease_request."fs.read":', "m"),
    (submit(lease_request={"fs.read": [1]}), '$.payload.lease_request."fs.read"[0]:', "m"),
    (submit(lease_request={"fs.read": ["/a", None]}), '$.payload.lease_request."fs.read"[1]:', "m"),
    (submit(lease_request={"fs.read": []}), '$.payload.lease_request."fs.read":', "m"),
    (submit(lease_request={"fs.read": [""]}), '$.payload.lease_request."fs.read"[0]:', "m"),
    (submit(lease_request={"fs.read": ["/a", "/b\n"]}), '$.payload.lease_request."fs.read"[1]:', "m"),
    (submit(lease_request={"": ["/a"]}), "$.payload.lease_request:", "m"),
    (submit(lease_request={"FS": ["/a"]}), "$.payload.lease_request:", "m"),
    (submit(lease_constraints=5), "$.payload.lease_constraints:", "m"),
    (submit(lease_constraints={"expires_at": 5}), "$.payload.lease_constraints.expires_at:", "m"),
    (frame("job.cancel", {}), "$.payload.job_id:", "m"),
    (frame("job.cancel", {"job_id": 5}), "$.payload.job_id:", "m"),
    (frame("job.cancel", {"job_id": "j", "reason": 5}), "$.payload.reason:", "m"),
]


@pytest.mark.requirement("P5.5", "P5.6", "P7.1", "P12.2", "T01", "L11", "G22")
@pytest.mark.parametrize(("text", "path", "request_id"), MALFORMED, ids=[f"{n}" for n in range(len(MALFORMED))])
async def test_what_is_malformed_is_answered_and_disturbs_nothing(
    script: Script, text: bytes | str, path: str, request_id: str | None
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        async with open_raw(runtime) as client:
            job_id = await client.submit("gate")
            await client.receive_until("job.event")
            await client.send_text(text)
            (answer,) = await client.settle()
            assert error_of(answer) == ("INVALID_REQUEST", request_id)
            assert answer["payload"]["message"].startswith(path)
            assert answer["payload"]["retryable"] is False
            assert answer.get("correlation_id") == request_id
            assert runtime.statistics().jobs_accepted == 1
            assert runtime.statistics().timers == 0
            # The session and what ran beside it go on.
            await assert_alive(client)
            script.gate.set()
            result = await client.receive_until("job.result")
            assert (result["job_id"], result["payload"]["result"]) == (job_id, "through")
        await trio.testing.wait_all_tasks_blocked()
        assert_nothing_left(runtime)


@pytest.mark.requirement("P5.5", "T01")
async def test_a_malformed_frame_between_two_good_ones_of_one_read(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.send_text(ping("a"), "nonsense", submit(input=1), "[]", ping("b"))
        frames = await client.settle()
        kinds = sorted(each["type"] for each in frames)
        assert kinds == [
            "job.accepted",
            "job.result",
            "session.error",
            "session.error",
            "session.pong",
            "session.pong",
        ]
        await assert_alive(client)


@pytest.mark.requirement("P5.5")
async def test_several_wrong_fields_are_named_in_one_answer(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.send_text(submit(agent=5, idempotency_key=6, lease_request={"a.b": [7]}))
        (answer,) = await client.settle()
        for path in ("$.payload.agent:", "$.payload.idempotency_key:", '$.payload.lease_request."a.b"[0]:'):
            assert path in answer["payload"]["message"]


@pytest.mark.requirement("P5.5", "T01", "P4.5")
async def test_eight_malformed_frames_in_a_row_close_the_connection(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        async with open_raw(runtime) as client:
            for _ in range(3):
                await client.send_text(*["nonsense"] * 7)
                assert [error_of(each)[0] for each in await client.settle()] == ["INVALID_REQUEST"] * 7
                # One good frame, and the count begins anew.
                await client.send_text(ping("good"))
                client._numbers += 1
                await assert_alive(client)
            job_id = await client.submit("sleep")
            # What follows the eighth in the same read is not looked at.
            await client.send_text(*["nonsense"] * 8, submit(input="never"))
            closed = await client.receive_close()
            assert closed.code == 1008
            assert [each["type"] for each in client.received[-8:]] == ["session.error"] * 8
            assert "in a row" in closed.reason
        await trio.testing.wait_all_tasks_blocked()
        # It was the connection's fault and not the job's.
        assert runtime.statistics().jobs_running == 1
        assert runtime.statistics().sessions == 0
        assert job_id in str(runtime._directory.actors())
        assert script.left == 0


@pytest.mark.requirement("P5.5")
@pytest.mark.parametrize("limit", [1, 3])
async def test_the_limit_is_a_limit(script: Script, limit: int) -> None:
    limits = Limits(malformed_in_a_row=limit)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        await client.send_text(*["nonsense"] * limit)
        assert (await client.receive_close()).code == 1008
        assert len(client.received) == 1 + limit


@pytest.mark.requirement("P5.5", "P12.1", "L25")
async def test_a_bug_in_a_handler_ends_its_request_alone(
    script: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        with monkeypatch.context() as patched:

            def broken(*_: object) -> None:
                raise ZeroDivisionError("a secret at /home/user")

            patched.setattr(runtime._directory, "check_room", broken)
            for _ in range(10):
                await client.request("job.submit", {"agent": "echo"})
            answers = await client.settle()
        assert [error_of(each)[0] for each in answers] == ["INTERNAL_ERROR"] * 10
        assert all(each["payload"]["retryable"] for each in answers)
        assert "secret" not in str(answers)
        assert "a secret" in caplog.text
        await assert_alive(client)


# --- unknown and unwanted -----------------------------------------------------------------------------


@pytest.mark.requirement("P5.4", "T02")
async def test_what_is_unknown_is_ignored_or_refused(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        for frame_type in ("x-vendor.acme.thing", "thing", "artifact.put", "x-arcp-trio.reply", "Session.Ping", "jobs"):
            await client.request(frame_type, {"anything": [1]})
        assert await client.settle() == []
        for frame_type in (
            "session.unknown",
            "job.unknown",
            "session.",
            "job.",
            # What only a runtime says.
            "session.welcome",
            "session.closed",
            "session.jobs",
            "session.rejected",
            "job.accepted",
            "job.event",
            "job.result",
            "job.cancelled",
            "job.subscribed",
        ):
            request_id = await client.request(frame_type, {})
            (answer,) = await client.settle()
            assert error_of(answer) == ("INVALID_REQUEST", request_id)
            assert answer["payload"]["message"].startswith("$.type:")
            await assert_alive(client)


@pytest.mark.requirement("P5.4")
async def test_an_error_is_never_answered_with_an_error(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        for frame_type in ("session.error", "job.error"):
            for payload in ({"code": "INTERNAL_ERROR", "message": "m"}, {}, {"code": 5}):
                await client.request(frame_type, payload)
                await client.request(frame_type, payload, session_id="sess_other", job_id="job_none")
        await client.request("session.pong", {"ping_nonce": 5})
        assert await client.settle() == []
        await assert_alive(client)


@pytest.mark.requirement("P5.4", "T02")
async def test_unknown_fields_are_ignored(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.request(
            "job.submit",
            {"agent": "echo", "input": 1, "unknown": {"a": None}},
            unknown=[1],
            extensions={"x-vendor.a.b": 1},
            timestamp=5,
            correlation_id=7,
        )
        assert (await client.receive_until("job.result"))["payload"]["result"] == 1
        await client.request("session.ping", {"nonce": "n"}, extensions="none", trace_id={"no": "trace"})
        await client.receive_until("session.pong")


@pytest.mark.requirement("P6.4", "Q14")
@pytest.mark.parametrize(
    ("frame_type", "payload", "feature"),
    [
        ("session.list_jobs", {}, "list_jobs"),
        ("session.list_jobs", {"limit": "wrong"}, "list_jobs"),
        ("job.subscribe", {"job_id": "j"}, "subscribe"),
        ("job.unsubscribe", {"job_id": "j"}, "subscribe"),
        ("job.submit", {"agent": "echo@1.0.0"}, "agent_versions"),
        ("job.submit", {"agent": "echo", "lease_request": {"cost.budget": ["USD:1"]}}, "cost.budget"),
        ("job.submit", {"agent": "echo", "lease_request": {"model.use": ["m"]}}, "model.use"),
        (
            "job.submit",
            {"agent": "echo", "lease_constraints": {"expires_at": "2099-01-01T00:00:00Z"}},
            "lease_expires_at",
        ),
    ],
)
async def test_what_was_not_negotiated_is_refused(script: Script, frame_type: str, payload: Any, feature: str) -> None:
    features = [each for each in ALL_FEATURES if each != feature]
    for offered in ([], features):
        async with (
            arcp_trio.open_runtime(script.agents) as runtime,
            open_raw(runtime, hello=make_hello(features=offered)) as client,
        ):
            request_id = await client.request(frame_type, payload)
            (answer,) = await client.settle()
            assert error_of(answer) == ("INVALID_REQUEST", request_id)
            assert repr(feature) in answer["payload"]["message"]
            assert runtime.statistics().jobs_accepted == 0
            await assert_alive(client)


@pytest.mark.requirement("P6.4", "T19", "T20")
@pytest.mark.parametrize(
    ("offered", "effective"),
    [
        ([], []),
        (["progress"], ["progress"]),
        (["unheard-of", "progress", "progress"], ["progress"]),
        (["unheard-of"], []),
    ],
)
async def test_features_are_the_intersection(script: Script, offered: list[str], effective: list[str]) -> None:
    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime, hello=make_hello(features=offered)) as client,
    ):
        capabilities = client.received[0]["payload"]["capabilities"]
        assert capabilities["features"] == effective
        assert capabilities["encodings"] == ["json"]


@pytest.mark.requirement("P6.4", "Q14")
async def test_an_ack_is_ignored_and_a_ping_answered_all_the_same(script: Script) -> None:
    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime, hello=make_hello(features=[])) as client,
    ):
        for payload in ({"last_processed_seq": 5}, {"last_processed_seq": -1}):
            await client.request("session.ack", payload)
        assert await client.settle() == []
        await assert_alive(client)


@pytest.mark.requirement("P6.4", "Q14")
async def test_events_of_a_feature_that_was_not_negotiated_take_no_number(script: Script) -> None:
    @script.agents.register("walker")
    async def walker(job: arcp_trio.JobContext, value: Any) -> str:
        await job.progress(1, 2)
        await job.log("info", "half way")
        await job.progress(2, 2)
        return "there"

    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime, hello=make_hello(features=[])) as plain,
        open_raw(runtime) as full,
    ):
        for client, kinds in ((plain, ["log"]), (full, ["progress", "log", "progress"])):
            await client.submit("walker")
            await client.receive_until("job.result")
            numbered = [each for each in client.received if "event_seq" in each]
            assert [each["payload"]["kind"] for each in numbered[:-1]] == kinds
            assert [each["event_seq"] for each in numbered] == list(range(1, len(kinds) + 2))


@pytest.mark.requirement("P5.1")
async def test_the_session_of_another_is_refused_and_none_is_ours(script: Script) -> None:
    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime) as client,
        open_raw(runtime) as other,
    ):
        await client.request("session.ping", {"nonce": "own"}, session_id=client.session_id)
        await client.request("session.ping", {"nonce": "null"}, session_id=None)
        without = client.make("session.ping", {"nonce": "none"})
        del without["session_id"]
        await client.send(without)
        assert [each["payload"]["ping_nonce"] for each in await client.settle()] == ["own", "null", "none"]
        for foreign in (other.session_id, "sess_unknown", str(client.session_id).lower()):
            request_id = await client.request("job.submit", {"agent": "echo"}, session_id=foreign)
            (answer,) = await client.settle()
            assert error_of(answer) == ("INVALID_REQUEST", request_id)
            assert answer["payload"]["message"].startswith("$.session_id:")
            # The answer is for whom it is sent to.
            assert answer["session_id"] == client.session_id
        assert runtime.statistics().jobs_accepted == 0
        assert await other.settle() == []
        await assert_alive(client)


@pytest.mark.requirement("P5.2")
@pytest.mark.parametrize("arcp", ["1", "1.0", "1.2", "1.99"])
async def test_minor_versions_are_accepted_and_answered_in_ours(script: Script, arcp: str) -> None:
    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime, hello={**make_hello(), "arcp": arcp}) as client,
    ):
        await client.request("session.ping", {"nonce": "n"}, arcp=arcp)
        await client.receive_until("session.pong")
        assert {each["arcp"] for each in client.received} == {"1.1"}


@pytest.mark.requirement("P5.2", "T01")
@pytest.mark.parametrize("arcp", ["2", "2.0", "0.9", "11", "1.x", "", "one"])
async def test_another_version_closes_the_connection(script: Script, arcp: str) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        bad = client.make("job.submit", {"agent": "echo"}, arcp=arcp)
        await client.send(bad, client.make("job.submit", {"agent": "echo"}))
        closed = await client.receive_close()
        assert closed.code == 1008
        assert error_of(client.received[-1]) == ("INVALID_REQUEST", bad["id"])
        assert client.received[-1]["payload"]["message"].startswith("$.arcp:")
        assert runtime.statistics().jobs_accepted == 0


# --- what is too large --------------------------------------------------------------------------------


@pytest.mark.requirement("P4.4")
async def test_what_comes_back_is_never_larger_than_a_frame_may_be(script: Script) -> None:
    """A client's own text is echoed in pongs, acknowledgements and acceptances: it is bounded there."""
    megabytes = "x" * 2_000_000
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        await client.send(
            client.make("session.ping", {"nonce": megabytes}),
            client.make("job.submit", {"agent": "echo", "lease_request": {"fs.read": [megabytes]}}),
            client.make("job.submit", {"agent": megabytes}),
            client.make("job.submit", {"agent": "echo", "lease_request": {megabytes: ["a"]}}),
            client.make("job.cancel", {"job_id": megabytes}),
            client.make(megabytes, {}),
            client.make("session." + megabytes, {}),
            client.make("job.cancel", {"job_id": job_id, "reason": megabytes}),
        )
        assert (await client.receive_until("job.error"))["job_id"] == job_id
        codes = [error_of(each)[0] for each in client.received if each["type"] == "session.error"]
        assert codes == ["INVALID_REQUEST"] * 4 + ["JOB_NOT_FOUND", "INVALID_REQUEST"]
        assert [len(json.dumps(each)) for each in client.received if len(json.dumps(each)) > 10_000] == []
        (cancelled,) = [each for each in client.received if each["type"] == "job.cancelled"]
        assert megabytes.startswith(cancelled["payload"]["reason"])
        await assert_alive(client)
        # Closing, too.
        await client.request("session.close", {"reason": megabytes})
        assert (await client.receive_close()).code == 1000
        assert len(json.dumps(client.received[-1])) < 10_000


@pytest.mark.requirement("P5.5", "P7.9")
async def test_what_an_agent_says_is_never_nested_deeper_than_can_be_read(script: Script) -> None:
    """The frame counts and not the value: our own client refuses what nests deeper than 64."""

    def nested(depth: int) -> Any:
        value: Any = "core"
        for _ in range(depth):
            value = [value]
        return value

    refused: list[BaseException] = []

    @script.agents.register("deep")
    async def deep(job: arcp_trio.JobContext, depth: int) -> Any:
        async def call_tool() -> None:
            async with job.tool_call("t") as call:
                call.result = nested(5000)

        # Around it: the frame, its payload, the body.
        await job.emit("x-deep", {"value": nested(61)})
        for emission in (
            job.emit("x-deep", {"value": nested(62)}),
            job.log("info", "m", {"value": nested(61)}),
            call_tool(),
        ):
            try:
                await emission
            except arcp_trio.InvalidRequestError as exc:
                refused.append(exc)
        return nested(depth)

    async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
        lease = {"tool.call": ["t"]}
        assert await (await client.submit("deep", 62, lease_request=lease)).result() == nested(62)
        assert len(refused) == 3
        for depth in (63, 64, 65, 5000):
            with pytest.raises(arcp_trio.InternalError, match="not JSON"):
                await (await client.submit("deep", depth, lease_request=lease)).result()
        script.error = arcp_trio.ARCPError("m", code="X", details={"deep": nested(62)})
        with pytest.raises(arcp_trio.ARCPError) as caught:
            await (await client.submit("fail")).result()
        assert (caught.value.code, caught.value.details) == ("X", None)
        assert await (await client.submit("echo", nested(62))).result() == nested(62)
        for depth in (63, 200, 5000):
            with pytest.raises(arcp_trio.InvalidRequestError, match=r"job\.submit"):
                await client.submit("echo", nested(depth))


@pytest.mark.requirement("P6.4", "P7.9")
@pytest.mark.parametrize(
    ("text", "result"),
    [
        ('{"a": [1,\n 2]}', {"a": [1, 2]}),
        ("not json", "not json"),
        ('{"half":', '{"half":'),
        ('{"a":NaN}', '{"a":NaN}'),
        ('1}, "extra": {"a":1', '1}, "extra": {"a":1'),
        ("[" * 63 + "]" * 63, "[" * 63 + "]" * 63),
        ("", ""),
    ],
)
async def test_a_stream_that_is_put_together_cannot_break_its_frame(script: Script, text: str, result: Any) -> None:
    """An agent may call its text JSON and be wrong: a session that takes no chunks gets it as text."""

    @script.agents.register("writer")
    async def writer(job: arcp_trio.JobContext, value: str) -> None:
        async with job.stream_result(content_type="application/json") as out:
            await out.write(value)

    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime, hello=make_hello(features=[])) as client,
    ):
        await client.submit("writer", text)
        frame = await client.receive_until("job.result")
        assert frame["payload"]["result"] == frame["payload"]["output"] == result
        assert "extra" not in frame["payload"]
        await assert_alive(client)


# --- the end ------------------------------------------------------------------------------------------


@pytest.mark.requirement("P6.21", "T12", "T14", "P4.5")
@pytest.mark.parametrize("frame_type", ["session.close", "session.bye"])
async def test_what_follows_a_close_in_the_same_read_is_not_executed(script: Script, frame_type: str) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        async with open_raw(runtime) as client:
            await client.send(
                client.make("session.ping", {"nonce": "before"}),
                client.make(frame_type, {"reason": "done"}),
                client.make(frame_type, {}),
                client.make("job.submit", {"agent": "echo"}),
                client.make("session.ping", {"nonce": "after"}),
                make_hello(message_id="again"),
            )
            await client.send_text("nonsense")
            assert (await client.receive_close()).code == 1000
            after = [each["type"] for each in client.received[1:]]
            assert after == ["session.pong", *(["session.closed"] if frame_type == "session.close" else [])]
            if frame_type == "session.close":
                assert client.received[-1]["payload"] == {"reason": "done"}
        await trio.testing.wait_all_tasks_blocked()
        assert script.entered == 0
        assert_nothing_left(runtime)


@pytest.mark.requirement("P6.21", "L20")
async def test_jobs_go_on_when_their_session_is_closed(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        await client.submit("gate")
        await client.receive_until("job.event")
        await client.request("session.close")
        await client.receive_close()
        assert runtime.statistics().jobs_running == 1
        script.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert_nothing_left(runtime)
        (record,) = runtime._directory._records.values()
        assert record.status == "success"


async def test_helpers_can_tell_a_dead_session(script: Script) -> None:
    """The check that everything here ends with can fail."""
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        with pytest.raises(AssertionError):
            assert_nothing_left(runtime)
        await client.request("session.close")
        await client.receive_close()
        with pytest.raises(Exception, match="closed with code 1000"):
            await assert_alive(RawClient(client.transport))
