"""What an agent can say, how it looks on the wire, and what is refused before it takes a number."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, make_hello, open_raw

import arcp_trio
from arcp_trio.jobs.results import ResultStream
from arcp_trio.wire.codec import structure_body
from arcp_trio.wire.events import EVENT_BODIES

Body = Callable[[arcp_trio.JobContext], Awaitable[Any]]


async def run(body: Body, *, hello: Frame | None = None, limits: arcp_trio.Limits | None = None) -> list[Frame]:
    """Run one agent; return its job's numbered frames."""
    agents = arcp_trio.Agents()

    @agents.register("agent")
    async def agent(job: arcp_trio.JobContext, value: Any) -> Any:
        return await body(job)

    async with arcp_trio.open_runtime(agents, limits=limits) as runtime, open_raw(runtime, hello=hello) as client:
        await client.submit("agent")
        await client.receive_until(lambda frame: frame["type"] in ("job.result", "job.error"))
        assert runtime.statistics().bugs == 0
    return [frame for frame in client.received if "event_seq" in frame]


EMISSIONS: list[tuple[Body, str, dict[str, Any]]] = [
    (lambda job: job.log("info", "line"), "log", {"level": "info", "message": "line"}),
    (
        lambda job: job.log("warn", "é\n", {"k": 1}),
        "log",
        {"level": "warn", "message": "é\n", "fields": {"k": 1}},
    ),
    (lambda job: job.thought("hm"), "thought", {"text": "hm"}),
    (lambda job: job.status("working"), "status", {"phase": "working"}),
    (lambda job: job.status("working", "on it"), "status", {"phase": "working", "message": "on it"}),
    (lambda job: job.metric("x", -1.5), "metric", {"name": "x", "value": -1.5}),
    (
        lambda job: job.metric("cost.x", 0.25, "USD", {"model": "m"}),
        "metric",
        {"name": "cost.x", "value": 0.25, "unit": "USD", "dimensions": {"model": "m"}, "dims": {"model": "m"}},
    ),
    (lambda job: job.progress(0), "progress", {"current": 0}),
    (
        lambda job: job.progress(1, 2, "files", "half"),
        "progress",
        {"current": 1, "total": 2, "units": "files", "message": "half"},
    ),
    (
        lambda job: job.artifact_ref("s3://x", "text/plain", byte_size=3, sha256="00"),
        "artifact_ref",
        {"uri": "s3://x", "content_type": "text/plain", "byte_size": 3, "sha256": "00"},
    ),
    (lambda job: job.emit("x-acme.thing", {"a": [None]}), "x-acme.thing", {"a": [None]}),
]


@pytest.mark.requirement("P8.1", "P8.2", "P5.1", "P7.18", "D49")
@pytest.mark.parametrize(("emission", "kind", "body"), EMISSIONS)
async def test_an_event_on_the_wire(emission: Body, kind: str, body: dict[str, Any]) -> None:
    event, terminal = await run(emission)
    assert event["type"] == "job.event"
    assert event["event_seq"] == 1
    assert event["extensions"] == {"x-vendor.arcp-trio.job_seq": 1}
    assert event["payload"] == {"kind": kind, "ts": event["timestamp"], "body": body}
    if kind in EVENT_BODIES:
        structure_body(EVENT_BODIES[kind], body, "$.body")
    assert terminal["event_seq"] == 2


REFUSED: list[Body] = [
    lambda job: job.log("loud", "x"),
    lambda job: job.log("info", 5),  # type: ignore[arg-type]
    lambda job: job.log("info", "\ud800"),
    lambda job: job.log("info", "x", {"k": {1}}),
    lambda job: job.log("info", "x", [1]),  # type: ignore[arg-type]
    lambda job: job.thought(None),  # type: ignore[arg-type]
    lambda job: job.status(""),
    lambda job: job.status("back_pressure"),
    lambda job: job.status("credential_rotated"),
    lambda job: job.metric("cost.budget.remaining", 1),
    lambda job: job.metric("cost.x", -5),
    lambda job: job.metric("x", float("nan")),
    lambda job: job.metric("x", True),
    lambda job: job.metric("x", "1"),  # type: ignore[arg-type]
    lambda job: job.progress(-1),
    lambda job: job.progress(float("inf")),
    lambda job: job.progress(3, 2),
    lambda job: job.progress(1, float("nan")),
    lambda job: job.progress(True),
    lambda job: job.progress("1"),  # type: ignore[arg-type]
    lambda job: job.artifact_ref("u", "t", byte_size=-1),
    lambda job: job.emit("log", {}),
    lambda job: job.emit("x-", {}),
    lambda job: job.emit("x-" + "y" * 300, {}),
    lambda job: job.emit("x-y", 5),  # type: ignore[arg-type]
    lambda job: job.emit("x-y", {1: 2}),  # type: ignore[dict-item]
]


@pytest.mark.requirement("P8.1", "P8.4", "P8.6", "X14", "B02")
@pytest.mark.parametrize("emission", REFUSED)
async def test_a_bad_body_raises_in_the_agent_and_takes_no_number(emission: Body) -> None:
    async def body(job: arcp_trio.JobContext) -> str:
        with pytest.raises(arcp_trio.InvalidRequestError, match=r"\$\.(body|kind)"):
            await emission(job)
        await job.log("info", "after")
        return "done"

    event, terminal = await run(body)
    assert (event["event_seq"], event["payload"]["body"]["message"]) == (1, "after")
    assert terminal["payload"]["result"] == "done"


@pytest.mark.requirement("P4.4")
async def test_an_event_that_is_too_large_raises_in_the_agent() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        with pytest.raises(arcp_trio.MessageTooLargeError, match="1000000"):
            await job.log("info", "x" * 1_000_000)
        await job.log("info", "x" * 900_000)

    event, _ = await run(body)
    assert event["event_seq"] == 1


async def test_what_a_context_tells_of_its_job() -> None:
    seen: dict[str, Any] = {}
    agents = arcp_trio.Agents()

    @agents.register("agent", version="2.0.0")
    async def agent(job: arcp_trio.JobContext, value: Any) -> None:
        seen.update(
            job_id=job.job_id,
            agent=job.agent,
            principal=job.principal,
            trace=job.trace_id,
            lease=dict(job.lease.grants),
            cancel=job.cancel_requested,
            shown=repr(job),
        )

    async with arcp_trio.open_runtime(agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("agent", lease_request={"fs.read": ["/a/**"]})
        await client.receive_until("job.result")
        accepted = client.received[1]
    assert seen == {
        "job_id": job_id,
        "agent": "agent@2.0.0",
        "principal": "me",
        "trace": accepted["trace_id"],
        "lease": {"fs.read": ("/a/**",)},
        "cancel": False,
        "shown": f"<JobContext {job_id} agent@2.0.0>",
    }
    assert accepted["payload"]["lease"] == {"fs.read": ["/a/**"]}


def chunks_of(frames: list[Frame]) -> list[dict[str, Any]]:
    return [frame["payload"]["body"] for frame in frames if frame.get("payload", {}).get("kind") == "result_chunk"]


def assemble(chunks: list[dict[str, Any]]) -> bytes:
    assert [chunk["chunk_seq"] for chunk in chunks] == list(range(len(chunks)))
    assert [chunk["more"] for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert len({chunk["result_id"] for chunk in chunks}) == 1
    assert len({chunk["encoding"] for chunk in chunks}) == 1
    return b"".join(
        chunk["data"].encode() if chunk["encoding"] == "utf8" else b64decode(chunk["data"]) for chunk in chunks
    )


PIECES: list[list[Any]] = [
    [],
    [""],
    ["hello ", "world"],
    ["é" * 700_000],
    ["\x01" * 700_000],
    ["a", "\U0001f600" * 400_000, "b"],
    [b""],
    [b"hello ", b"world \x00\xff"],
    [bytes(range(256)) * 5000],
    [bytearray(b"buffer"), memoryview(b"-view-")[1:5]],
    [memoryview(b"v.i.e.w.")[::2], memoryview(b"backwards")[::-1], memoryview(bytes(range(12))).cast("B", (3, 4))],
]


@pytest.mark.requirement("P8.5", "P4.4", "D47", "X03", "X08", "X09")
@pytest.mark.parametrize("pieces", PIECES, ids=range(len(PIECES)))
async def test_a_streamed_result(pieces: list[Any]) -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        async with job.stream_result() as out:
            for piece in pieces:
                await out.write(piece)
        await out.aclose()
        assert out.ended
        with pytest.raises(arcp_trio.InvalidRequestError):
            await out.write("more")

    frames = await run(body)
    chunks = chunks_of(frames)
    expected = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces)
    assert assemble(chunks) == expected
    terminal = frames[-1]
    assert terminal["payload"]["result_id"] == chunks[0]["result_id"]
    assert terminal["payload"]["result_size"] == len(expected)
    assert not {"result", "output"} & terminal["payload"].keys()
    assert max(len(json.dumps(frame, ensure_ascii=False).encode()) for frame in frames) < 1_000_000
    assert max(len(assemble([{**chunk, "chunk_seq": 0, "more": False}])) for chunk in chunks) <= 512 * 1024


@pytest.mark.requirement("X08")
async def test_a_buffer_may_be_changed_after_it_was_written() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        buffer = bytearray(b"first")
        async with job.stream_result() as out:
            await out.write(buffer)
            buffer[:] = b"later"

    assert assemble(chunks_of(await run(body))) == b"first"


async def test_a_stream_that_is_not_ended_is_ended_by_the_runtime() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        await job.stream_result().write("text")

    frames = await run(body)
    assert assemble(chunks_of(frames)) == b"text"
    assert frames[-1]["type"] == "job.result"


@pytest.mark.requirement("X02", "X03", "P8.5")
@pytest.mark.parametrize("how", ["returns too", "swallows an exception", "raises", "mixes", "two streams"])
async def test_a_stream_that_went_wrong_is_no_success(how: str) -> None:
    async def body(job: arcp_trio.JobContext) -> Any:
        if how == "two streams":
            job.stream_result()
            job.stream_result()
        if how == "swallows an exception":
            try:
                async with job.stream_result() as out:
                    await out.write("half")
                    raise ValueError("in the middle")
            except ValueError:
                return None
        async with job.stream_result() as out:
            await out.write("text")
            if how == "raises":
                raise arcp_trio.PermissionDeniedError("no")
            if how == "mixes":
                await out.write(b"bytes")
        return "inline"

    frames = await run(body)
    assert frames[-1]["type"] == "job.error"
    # A job that ends in an error sends no last chunk, but where the stream had ended well before.
    expected_last = {"returns too": [False], "raises": [], "mixes": [], "two streams": [], "swallows an exception": []}
    assert [chunk["more"] for chunk in chunks_of(frames) if not chunk["more"]] == expected_last[how]


@pytest.mark.requirement("X04", "P8.5")
async def test_the_total_of_a_stream_is_bounded() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        async with job.stream_result() as out:
            await out.write(b"x" * 1000)
            with pytest.raises(arcp_trio.InternalError, match="1500"):
                await out.write(b"x" * 501)

    frames = await run(body, limits=arcp_trio.Limits(result_bytes=1500))
    assert frames[-1]["payload"]["code"] == "INTERNAL_ERROR"


@pytest.mark.requirement("X01")
async def test_many_tasks_may_write_to_one_stream(autojump_clock: trio.testing.MockClock) -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        async with job.stream_result() as out, trio.open_nursery() as nursery:

            async def write(letter: str) -> None:
                for _ in range(50):
                    await out.write(letter)
                    await trio.lowlevel.checkpoint()

            for letter in "abcdefgh":
                nursery.start_soon(write, letter)

    text = assemble(chunks_of(await run(body)))
    assert sorted(text) == sorted(b"abcdefgh" * 50)


@pytest.mark.requirement("P4.4")
async def test_a_large_json_result_goes_out_as_its_text_in_chunks() -> None:
    value = {"rows": ["é" * 1000] * 1500}

    async def body(job: arcp_trio.JobContext) -> Any:
        return value

    frames = await run(body)
    terminal = frames[-1]["payload"]
    assert terminal["content_type"] == "application/json"
    assert json.loads(assemble(chunks_of(frames))) == value
    assert terminal["result_size"] == len(assemble(chunks_of(frames)))


@pytest.mark.requirement("P6.4")
@pytest.mark.parametrize("what", ["text", "json", "bytes", "too large"])
async def test_a_session_without_chunks_gets_the_result_inline(what: str) -> None:
    value = {"rows": ["x" * 1000] * 1500}

    async def body(job: arcp_trio.JobContext) -> Any:
        if what == "json":
            return value
        async with job.stream_result() as out:
            await out.write(b"by" if what == "bytes" else "te")
            await out.write(b"tes" if what == "bytes" else "xt")
        return None

    limits = arcp_trio.Limits(inline_result_bytes=3) if what == "too large" else None
    frames = await run(body, hello=make_hello(features=["progress"]), limits=limits)
    # No number was taken by what was not sent.
    assert [frame["event_seq"] for frame in frames] == [1]
    payload = frames[0]["payload"]
    if what == "too large":
        assert payload["truncated"] is True
        assert payload["result_size"] == 4
    else:
        expected = {"text": "text", "json": value, "bytes": "Ynl0ZXM="}[what]
        assert payload["result"] == payload["output"] == expected
        assert "result_id" not in payload


@pytest.mark.requirement("P6.4")
async def test_progress_takes_no_number_where_it_was_not_negotiated() -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        await job.progress(1)
        await job.log("info", "line")
        await job.progress(2)

    frames = await run(body, hello=make_hello(features=[]))
    assert [(frame["event_seq"], frame["payload"].get("kind")) for frame in frames] == [(1, "log"), (2, None)]
    # The job's own numbering counts them all.
    assert [frame["extensions"]["x-vendor.arcp-trio.job_seq"] for frame in frames] == [2, 4]


@pytest.mark.requirement("P8.2", "S03")
async def test_many_tasks_may_emit(autojump_clock: trio.testing.MockClock) -> None:
    async def body(job: arcp_trio.JobContext) -> None:
        async with trio.open_nursery() as nursery:

            async def emit(name: str) -> None:
                for number in range(200):
                    await job.log("info", f"{name} {number}")
                    if number % 7 == 0:
                        await trio.lowlevel.checkpoint()

            for name in "abcdefgh":
                nursery.start_soon(emit, name)

    frames = await run(body)
    assert [frame["event_seq"] for frame in frames] == list(range(1, 1602))
    for name in "abcdefgh":
        mine = [
            frame["payload"]["body"]["message"]
            for frame in frames[:-1]
            if frame["payload"]["body"]["message"][0] == name
        ]
        assert mine == [f"{name} {number}" for number in range(200)]


async def test_every_emission_is_a_checkpoint(autojump_clock: trio.testing.MockClock) -> None:
    """A cancelled agent emits nothing more: each method raises Cancelled before it appends."""
    raised: list[str] = []

    async def body(job: arcp_trio.JobContext) -> None:
        out = job.stream_result()
        with trio.CancelScope() as scope:
            scope.cancel()
            for emission, kind, _ in EMISSIONS:
                try:
                    await emission(job)
                except trio.Cancelled:
                    raised.append(kind)
            for emit in (lambda: out.write("x"), out.aclose):
                try:
                    await emit()
                except trio.Cancelled:
                    raised.append("chunk")
        await out.write("whole")

    frames = await run(body)
    assert len(raised) == len(EMISSIONS) + 2
    assert [frame["payload"].get("kind") for frame in frames] == ["result_chunk", "result_chunk", None]
    assert assemble(chunks_of(frames)) == b"whole"


@pytest.mark.requirement("P8.5", "X01", "X09")
async def test_who_waits_to_write_while_another_ends_the_stream_is_refused() -> None:
    """A writer that found the stream open, and then had to wait for its turn, writes nothing behind its end."""
    chunks: list[dict[str, Any]] = []
    gate = trio.Event()
    refused: list[str] = []

    async def emit(encoded: bytes) -> None:
        await gate.wait()
        chunks.append(json.loads(encoded))

    out = ResultStream(emit, result_id="res_1", limits=arcp_trio.Limits(), content_type=None, keep=lambda: False)

    async def write_late() -> None:
        with pytest.raises(arcp_trio.InvalidRequestError, match="has ended") as caught:
            await out.write("late")
        refused.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        for task in (partial(out.write, "first"), out.aclose, write_late):
            nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert len(refused) == 1
    assert [(chunk["chunk_seq"], chunk["data"], chunk["more"]) for chunk in chunks] == [
        (0, "first", True),
        (1, "", False),
    ]


@pytest.mark.requirement("P8.5", "X01")
async def test_a_chunk_that_did_not_go_out_leaves_its_number_free() -> None:
    """An agent that was cancelled while it waited for room may go on writing: the reader sees no gap."""
    chunks: list[dict[str, Any]] = []
    room = trio.Event()

    async def emit(encoded: bytes) -> None:
        await room.wait()
        chunks.append(json.loads(encoded))

    out = ResultStream(emit, result_id="res_1", limits=arcp_trio.Limits(), content_type=None, keep=lambda: False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(out.write, "did not go out")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    room.set()
    await out.write("went out")
    await out.aclose()
    assert [(chunk["chunk_seq"], chunk["data"]) for chunk in chunks] == [(0, "went out"), (1, "")]
    assert out.size == len("went out")
