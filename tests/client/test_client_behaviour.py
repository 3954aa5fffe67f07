"""The client's handles, bounds and ends; nothing here waits for ever."""

from __future__ import annotations

import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from helpers import RawClient, Script

import arcp_trio
from arcp_trio.client.results import ResultAssembler
from arcp_trio.transports.base import TransportClosedError
from arcp_trio.transports.memory import open_memory_pair
from arcp_trio.wire.events import ResultChunk
from arcp_trio.wire.job_messages import JobResult

LIMITS = arcp_trio.ClientLimits(events=10, event_bytes=100_000)


@pytest.mark.requirement("K08", "X12")
async def test_a_handle_that_nobody_reads_is_bounded(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        async with runtime.open_session(principal="me", limits=LIMITS) as client:
            job = await client.submit("flood", 5000)
            assert await job.result() == 5000
            assert len(job._tail) == 10
            items = [item async for item in job.events()]
    assert items[0] == arcp_trio.Skipped(4990)
    assert [item.body["message"] for item in items[1:]] == [f"line {n}" for n in range(4990, 5000)]  # type: ignore[union-attr]


@pytest.mark.requirement("K08")
async def test_a_handle_is_bounded_by_bytes_too() -> None:
    agents = arcp_trio.Agents()

    @agents.register("large")
    async def large(job: arcp_trio.JobContext, value: Any) -> None:
        for _ in range(9):
            await job.log("info", "x" * 40_000)

    async with arcp_trio.open_runtime(agents) as runtime:
        async with runtime.open_session(principal="me", limits=LIMITS) as client:
            job = await client.submit("large")
            await job.result()
            assert [type(item).__name__ async for item in job.events()] == ["Skipped", "Event", "Event"]


async def test_events_end_with_the_job_and_may_be_read_again(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
        job = await client.submit("gate")
        async for event in job.events():
            assert isinstance(event, arcp_trio.Event)
            assert (event.kind, event.event_seq, event.job_seq) == ("log", 1, 1)
            assert event.parse().message == "waiting"
            script.gate.set()
        assert [item async for item in job.events()] == []
        assert (job.status, repr(job)) == ("success", f"<JobHandle {job.job_id} gate@1.0.0 success>")


async def test_two_readers_of_one_handle(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
        job = await client.submit("sleep")

        async def read() -> None:
            async for _ in job.events():
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await read()
            nursery.cancel_scope.cancel()


async def test_a_failure_is_a_new_exception_for_each_caller(script: Script) -> None:
    script.error = arcp_trio.PermissionDeniedError("no", details={"a": 1})
    async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
        job = await client.submit("fail")
        raised: list[BaseException] = []

        async def wait() -> None:
            with pytest.raises(arcp_trio.PermissionDeniedError) as caught:
                await job.result()
            raised.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
        assert len({id(error) for error in raised}) == 3
        assert {(str(error), error.details["a"]) for error in raised} == {("no", 1)}  # type: ignore[attr-defined]


def result_files() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("arcp-result-*"))


@pytest.mark.requirement("P8.5", "X11")
async def test_a_large_result_comes_as_a_file(tmp_path: Path) -> None:
    agents = arcp_trio.Agents()
    data = bytes(range(256)) * 4000

    @agents.register("large")
    async def large(job: arcp_trio.JobContext, value: Any) -> None:
        async with job.stream_result() as out:
            await out.write(data)

    limits = arcp_trio.ClientLimits(result_memory_bytes=100_000)
    before = result_files()
    async with arcp_trio.open_runtime(agents) as runtime:
        async with runtime.open_session(principal="me", limits=limits) as client:
            kept, left = [await (await client.submit("large")).result() for _ in range(2)]
            assert isinstance(kept, arcp_trio.ResultFile)
            assert isinstance(left, arcp_trio.ResultFile)
            assert (left.path.read_bytes(), left.size, left.text) == (data, len(data), False)
            kept.save(tmp_path / "result")
    assert (tmp_path / "result").read_bytes() == data
    assert result_files() == before


def chunk(seq: int, data: str, *, more: bool = True, encoding: str = "utf8", result_id: str = "res_1") -> ResultChunk:
    return ResultChunk(result_id=result_id, chunk_seq=seq, data=data, encoding=encoding, more=more)


@pytest.mark.requirement("X10", "X11", "P8.5")
@pytest.mark.parametrize(
    ("chunks", "terminal", "outcome"),
    [
        ([chunk(0, "a"), chunk(1, "b", more=False)], {"result_size": 2}, "ab"),
        ([chunk(0, "a"), chunk(0, "a"), chunk(1, "b", more=False)], {}, "ab"),
        ([chunk(0, "a"), chunk(1, "b")], {"result_size": 2}, "ab"),
        ([chunk(0, "", more=False)], {"result_size": 0}, ""),
        ([chunk(0, b64encode(b"\xff").decode(), encoding="base64", more=False)], {}, b"\xff"),
        (
            [chunk(0, b64encode(b"\xff").decode(), encoding="base64"), chunk(1, "", more=False)],
            {"result_size": 1},
            b"\xff",
        ),
        ([chunk(0, '{"a":1}', more=False)], {"content_type": "application/json"}, {"a": 1}),
        ([chunk(1, "b")], {}, "1 came where 0"),
        ([chunk(0, "a"), chunk(2, "b")], {}, "2 came where 1"),
        ([chunk(0, "a"), chunk(0, "b")], {}, "came twice"),
        ([chunk(0, "a", more=False), chunk(1, "b")], {}, "after the last"),
        ([chunk(0, "a"), chunk(1, "b", result_id="res_2")], {}, "another result_id"),
        ([chunk(0, "a", encoding="rot13")], {}, "unknown encoding"),
        ([chunk(0, "%%%", encoding="base64")], {}, "not base64"),
        ([chunk(0, "x" * 1001)], {}, "larger than 1000"),
        ([chunk(n, "x" * 900) for n in range(3)], {}, "larger than 2000"),
        ([chunk(0, "a")], {}, "last chunk is missing"),
        ([chunk(0, "a", more=False)], {"result_size": 2}, "1 of 2 bytes"),
        ([chunk(0, "a", more=False)], {"result_id": "res_9"}, "names another"),
        ([chunk(0, "{", more=False)], {"content_type": "application/json"}, "cannot be read"),
        ([], {"truncated": True, "result_size": 10**9}, "too large"),
    ],
)
def test_the_assembler(chunks: list[ResultChunk], terminal: dict[str, Any], outcome: Any) -> None:
    assembler = ResultAssembler(arcp_trio.ClientLimits(chunk_bytes=1000, result_bytes=2000))
    for each in chunks:
        assembler.add(each)
    ending = JobResult(**{"result_id": "res_1", **terminal})
    ok = not isinstance(outcome, str) or outcome in ("ab", "")
    if ok:
        assert assembler.finish(ending) == outcome
    else:
        with pytest.raises(arcp_trio.InternalError, match=outcome) as caught:
            assembler.finish(ending)
        assert not caught.value.retryable


class Server:
    """The other end, by hand."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw

    async def welcome(self) -> None:
        await self.raw.receive()
        await self.raw.send(
            {
                "arcp": "1.1",
                "id": "w",
                "type": "session.welcome",
                "session_id": "sess_1",
                "payload": {"capabilities": {"features": ["x-arcp-trio.replies"]}},
            }
        )

    async def say(self, frame_type: str, payload: dict[str, Any], **fields: Any) -> None:
        await self.raw.send(self.raw.make(frame_type, payload, session_id="sess_1", **fields))

    async def accept(self) -> None:
        submit = await self.raw.receive_until("job.submit")
        await self.say("job.accepted", {"job_id": "job_1", "request_id": submit["id"]}, job_id="job_1")


async def with_server(use: Any, play: Any, **limits: Any) -> None:
    """Run a client against a server that is played by hand."""
    theirs, ours = open_memory_pair()
    server = Server(RawClient(theirs, plays_server=True))
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await server.welcome()
            await play(server)

        nursery.start_soon(serve)
        bounds = arcp_trio.ClientLimits(**limits)
        async with arcp_trio.open_client_over(ours, token="secret-token", limits=bounds) as client:
            await use(client)
        nursery.cancel_scope.cancel()


@pytest.mark.requirement("K02")
async def test_everything_that_waits_fails_when_the_connection_breaks(autojump_clock: trio.testing.MockClock) -> None:
    async def play(server: Server) -> None:
        await server.accept()
        await trio.testing.wait_all_tasks_blocked()
        await server.raw.transport.abort()

    async def use(client: arcp_trio.Client) -> None:
        failed: list[str] = []
        job = await client.submit("a")

        async def expect(name: str, call: Any) -> None:
            with pytest.raises(arcp_trio.ConnectionLostError):
                await call()
            failed.append(name)

        async def iterate() -> None:
            async for _ in job.events():
                pass

        async with trio.open_nursery() as nursery:
            for name, call in (
                ("submit", lambda: client.submit("b")),
                ("cancel", job.cancel),
                ("result", job.result),
                ("ended", job.wait_ended),
                ("events", iterate),
            ):
                nursery.start_soon(expect, name, call)
        assert sorted(failed) == ["cancel", "ended", "events", "result", "submit"]
        await expect("after", lambda: client.submit("c"))

    await with_server(use, play)


@pytest.mark.requirement("Z04")
async def test_a_terminal_event_before_the_close_is_not_lost() -> None:
    async def play(server: Server) -> None:
        await server.accept()
        await server.say("job.result", {"result": 1, "final_status": "success"}, job_id="job_1", event_seq=1)
        await server.raw.transport.aclose(1001, "gone")

    async def use(client: arcp_trio.Client) -> None:
        job = await client.submit("a")
        await trio.testing.wait_all_tasks_blocked()
        assert await job.result() == 1

    await with_server(use, play)


@pytest.mark.requirement("Z12")
async def test_a_server_that_never_answers_a_close(autojump_clock: trio.testing.MockClock) -> None:
    async def play(server: Server) -> None:
        await trio.sleep_forever()

    async def use(client: arcp_trio.Client) -> None:
        use.started = trio.current_time()  # type: ignore[attr-defined]

    await with_server(use, play, close_seconds=2)
    assert trio.current_time() - use.started <= 2  # type: ignore[attr-defined]


@pytest.mark.requirement("P5.4", "T02")
async def test_what_a_client_does_not_know_does_not_disturb_it(caplog: pytest.LogCaptureFixture) -> None:
    async def play(server: Server) -> None:
        submit = await server.raw.receive_until("job.submit")
        await server.raw.send_text("not json", "[]", '{"id":5}')
        await server.say("session.surprise", {})
        await server.say("x-acme.thing", {})
        await server.say("job.event", {"kind": "log"}, job_id="job_9", event_seq=1)
        await server.say("job.accepted", {"job_id": 5})
        await server.say("session.ping", {"nonce": "n1"})
        pong = await server.raw.receive_until("session.pong")
        assert pong["payload"]["ping_nonce"] == "n1"
        await server.say("job.accepted", {"job_id": "job_1", "request_id": submit["id"]}, job_id="job_1")
        await server.say("job.event", {"kind": "x-new", "body": {"a": 1}}, job_id="job_1", event_seq=2)
        await server.say("job.result", {"output": "fine"}, job_id="job_1", event_seq=3)
        await server.say("job.error", {"code": "CANCELLED", "message": "late"}, job_id="job_1", event_seq=4)

    async def use(client: arcp_trio.Client) -> None:
        job = await client.submit("a")
        events = [event async for event in job.events()]
        assert [(event.kind, event.body) for event in events] == [("x-new", {"a": 1})]  # type: ignore[union-attr]
        assert await job.result() == "fine"
        await trio.testing.wait_all_tasks_blocked()
        # The first terminal event counts; what comes for a job that has ended is nobody's.
        assert job.status == "success"

    await with_server(use, play)


async def test_a_server_that_sends_nothing_but_nonsense_is_given_up() -> None:
    async def play(server: Server) -> None:
        await server.raw.send_text(*["nonsense"] * 8)

    async def use(client: arcp_trio.Client) -> None:
        with pytest.raises(arcp_trio.ConnectionLostError, match="no envelopes"):
            await client.submit("a")

    await with_server(use, play)


@pytest.mark.requirement("P4.4", "P5.6")
async def test_requests_that_cannot_be_sent_fail_locally(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, runtime.open_session(principal="me") as client:
        with pytest.raises(arcp_trio.MessageTooLargeError):
            await client.submit("echo", "x" * 1_000_000)
        for value in (float("nan"), {1, 2}, {1: 2}, "\ud800"):
            with pytest.raises(arcp_trio.InvalidRequestError):
                await client.submit("echo", value)
        with pytest.raises(arcp_trio.InvalidRequestError, match=r"lease_request.fs.read: expected a list of patterns"):
            await client.submit("echo", 1, lease_request={"fs.read": "/tmp/*"})
        for trace_id in ("", "k", "0" * 32, "A" * 32, "a" * 33):
            with pytest.raises(arcp_trio.InvalidRequestError, match=r"trace_id: expected 32 lower-case hex digits"):
                await client.submit("echo", 1, trace_id=trace_id)
        assert await (await client.submit("echo", 1)).result() == 1


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        ({"requests": 0}, "requests"),
        ({"events": -1}, "events"),
        ({"cancel_seconds": float("inf")}, "cancel_seconds"),
        ({"ack_seconds": float("nan")}, "ack_seconds"),
        ({"heartbeat_min_seconds": 0}, "heartbeat_min_seconds"),
        ({"heartbeat_max_seconds": 0.5}, "heartbeat_min_seconds"),
    ],
)
def test_bounds_under_which_nothing_works_are_refused(bounds: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named}: expected"):
        arcp_trio.ClientLimits(**bounds)  # type: ignore[arg-type]


@pytest.mark.requirement("P14.2", "C07")
async def test_a_token_is_in_no_repr(caplog: pytest.LogCaptureFixture) -> None:
    async def play(server: Server) -> None:
        shown.append(str(server.raw.received))
        await trio.sleep_forever()

    shown: list[str] = []

    async def use(client: arcp_trio.Client) -> None:
        for item in (client, client.welcome, client.__dict__, arcp_trio.StaticTokens({"secret-token": "me"})):
            assert "secret-token" not in repr(item)

    caplog.set_level(0)
    await with_server(use, play)
    assert "secret-token" in shown[0]
    assert "secret-token" not in caplog.text


@pytest.mark.requirement("P12.2")
@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "INTERNAL_ERROR"])
async def test_a_refused_session(code: str) -> None:
    theirs, ours = open_memory_pair()
    server = RawClient(theirs, plays_server=True)

    async def refuse() -> None:
        hello = await server.receive()
        await server.send(
            {
                "arcp": "1.1",
                "id": "e",
                "type": "session.error",
                "payload": {"code": code, "message": "m", "request_id": hello["id"]},
            }
        )
        await theirs.aclose(1008)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        with pytest.raises(arcp_trio.ARCPError) as caught:
            async with arcp_trio.open_client_over(ours, token="t"):
                raise AssertionError
    assert caught.value.code == code


async def test_no_welcome(autojump_clock: trio.testing.MockClock) -> None:
    _, ours = open_memory_pair()
    with pytest.raises(arcp_trio.ConnectionLostError, match="30 seconds"):
        async with arcp_trio.open_client_over(ours, token="t"):
            raise AssertionError
    theirs, ours = open_memory_pair()
    await theirs.aclose(1001, "no")
    with pytest.raises(arcp_trio.ConnectionLostError, match="1001"):
        async with arcp_trio.open_client_over(ours, token="t"):
            raise AssertionError


@pytest.mark.parametrize("error", [KeyError("k"), ExceptionGroup("g", [ValueError("v")]), SystemExit(1)])
async def test_what_the_body_raises_leaves_as_it_is(script: Script, error: BaseException) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        with pytest.raises(type(error)) as caught:
            async with runtime.open_session(principal="me"):
                raise error
        assert caught.value is error
        with trio.CancelScope() as scope:
            async with runtime.open_session(principal="me"):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught


@pytest.mark.requirement("P4.3", "T22")
async def test_in_memory_too_nothing_but_text_passes() -> None:
    """What the two ends hold is never one object, and what JSON cannot carry does not pass."""
    agents = arcp_trio.Agents()
    seen: list[Any] = []

    @agents.register("keep")
    async def keep(job: arcp_trio.JobContext, value: Any) -> Any:
        seen.append(value)
        value["list"].append("the agent's")
        return value

    value: dict[str, Any] = {"list": [1], "tuple": (1, 2)}
    async with arcp_trio.open_runtime(agents) as runtime, runtime.open_session(principal="me") as client:
        job = await client.submit("keep", value)
        value["list"].append("the caller's")
        result = await job.result()
        seen[0]["list"].append("too late")
        assert result == {"list": [1, "the agent's"], "tuple": [1, 2]}
        for odd in (object(), {1: 2}, float("nan"), b"bytes"):
            with pytest.raises(arcp_trio.InvalidRequestError):
                await client.submit("keep", odd)
        assert runtime.statistics().jobs_accepted == 1


@pytest.mark.requirement("Z03")
async def test_leaving_with_unread_frames(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        async with runtime.open_session(principal="me") as client:
            await client.submit("flood", 2000)
            left = trio.current_time()
        assert trio.current_time() - left < 1


def test_a_closed_transport_is_not_ours_to_raise() -> None:
    assert not issubclass(TransportClosedError, arcp_trio.ARCPError)
