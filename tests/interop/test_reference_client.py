"""The reference implementation's client against our gateway, over a real WebSocket."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio

import arcp_trio

if TYPE_CHECKING:
    from interop.peer import ReferencePeer

pytestmark = pytest.mark.usefixtures("engine")

TOKEN = "secret"
TEXT = "grüß dich, 𝄞 " * 80_000
BINARY = bytes(range(256)) * 4_000
LARGE = {"rows": ["a row of text"] * 100_000}


class Gateway:
    """A runtime on a port, and the agents that ``peer_client.py`` expects."""

    def __init__(self) -> None:
        self.agents = arcp_trio.Agents()
        self.opened: dict[str, trio.Event] = {}
        self.returned: list[str] = []
        self.url = ""
        self.runtime: arcp_trio.Runtime
        register = self.agents.register

        @register("echo")
        async def echo(job: arcp_trio.JobContext, value: Any) -> Any:
            return value

        @register("everything")
        async def everything(job: arcp_trio.JobContext, value: Any) -> Any:
            await job.log("info", "a line", {"k": 1})
            await job.thought("hmm")
            await job.status("working", "on it")
            await job.metric("tokens", 3, "1", {"model": "m"})
            async with job.tool_call("search", {"q": "x"}, call_id="c1") as call:
                call.result = {"ok": True}
            with suppress(arcp_trio.JobTimeoutError):
                async with job.tool_call("search", {"q": "y"}, call_id="c2"):
                    raise arcp_trio.JobTimeoutError("slow")
            with suppress(arcp_trio.PermissionDeniedError):
                async with job.tool_call("rm", call_id="c3"):
                    raise AssertionError("no lease covers it")
            await job.artifact_ref("s3://bucket/key", "text/plain", byte_size=3, sha256="00")
            await job.progress(1, 2, "files", "half")
            await job.emit("x-vendor.acme.kind", {"anything": [1, None]})
            return {"done": True}

        @register("text")
        async def text(job: arcp_trio.JobContext, value: Any) -> None:
            async with job.stream_result() as out:
                await out.write(TEXT)

        @register("bytes")
        async def binary(job: arcp_trio.JobContext, value: Any) -> None:
            async with job.stream_result() as out:
                await out.write(BINARY)
                await out.write(b"")

        @register("empty")
        async def empty(job: arcp_trio.JobContext, value: Any) -> None:
            async with job.stream_result():
                pass

        @register("large")
        async def large(job: arcp_trio.JobContext, value: Any) -> Any:
            return LARGE

        @register("boom")
        async def boom(job: arcp_trio.JobContext, value: Any) -> Any:
            raise ValueError("a secret in /home/user/file")

        @register("denied")
        async def denied(job: arcp_trio.JobContext, value: Any) -> Any:
            raise arcp_trio.PermissionDeniedError("not for you", details={"path": "/x"})

        @register("vendor")
        async def vendor(job: arcp_trio.JobContext, value: Any) -> Any:
            raise arcp_trio.ARCPError("my own", code="X_ACME_BROKEN", details={"part": 7})

        @register("sleep")
        async def sleep(job: arcp_trio.JobContext, value: Any) -> None:
            await job.status("sleeping")
            await trio.sleep_forever()

        @register("polite")
        async def polite(job: arcp_trio.JobContext, value: Any) -> str:
            await job.status("working")
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                return "swallowed"
            return "never"

        @register("until_opened")
        async def until_opened(job: arcp_trio.JobContext, value: Any) -> str:
            self.opened[job.job_id] = trio.Event()
            await job.status("waiting")
            await self.opened[job.job_id].wait()
            self.returned.append(job.job_id)
            return "opened"

        @register("open")
        async def open_(job: arcp_trio.JobContext, value: Any) -> str:
            self.opened[value].set()
            return value

        @register("boss")
        async def boss(job: arcp_trio.JobContext, value: Any) -> Any:
            first = await job.delegate("echo", "of the child")
            with pytest.raises(arcp_trio.PermissionDeniedError):
                await (await job.delegate("denied")).result()
            return [value, await first.result()]

        @register("chatty")
        async def chatty(job: arcp_trio.JobContext, value: Any) -> Any:
            for line in range(10):
                await job.log("info", f"{value}:{line}")
                await trio.lowlevel.checkpoint()
            return value

        for version in ("1.0.0", "2.0.0", "10.0.0"):
            self._register_version(version)

    def _register_version(self, version: str) -> None:
        @self.agents.register("versioned", version=version)
        async def versioned(job: arcp_trio.JobContext, value: Any) -> str:
            return version


@asynccontextmanager
async def open_gateway() -> AsyncGenerator[Gateway, None]:
    gateway = Gateway()
    verifier = arcp_trio.StaticTokens({TOKEN: "me"})
    async with (
        arcp_trio.open_runtime(gateway.agents, verifier=verifier, name="ours") as runtime,
        trio.open_nursery() as nursery,
    ):
        gateway.runtime = runtime
        listening: arcp_trio.Listening = await nursery.start(arcp_trio.serve_websocket, runtime, "127.0.0.1", 0)
        gateway.url = listening.url
        yield gateway
        assert runtime.statistics().bugs == 0
        nursery.cancel_scope.cancel()


async def play(peer: ReferencePeer, scenario: str) -> list[Any]:
    """Play a scenario on a gateway of its own; return what the peer said before it closed well."""
    async with open_gateway() as gateway:
        said = await peer.run("peer_client.py", gateway.url, scenario)
    assert said.pop() == {"closed": True}
    return said


@pytest.mark.requirement("P6.1", "P6.2", "P6.4", "P6.6", "D5", "D8", "D9", "T19", "T20")
async def test_it_shakes_hands(reference_peer: ReferencePeer) -> None:
    (welcome,) = await play(reference_peer, "handshake")
    assert welcome["session_id"].startswith("sess_")
    # What both have: the peer knows nothing of our own feature.
    assert set(welcome["features"]) >= {"agent_versions", "progress", "result_chunk"}
    assert "x-arcp-trio.replies" not in welcome["features"]
    assert welcome["runtime"]["name"] == "ours"
    assert len(welcome["resume_token"]) >= 22
    agents = {agent["name"]: agent for agent in welcome["agents"]}
    assert agents["versioned"] == {
        "name": "versioned",
        "versions": ["1.0.0", "2.0.0", "10.0.0"],
        "default": "10.0.0",
    }
    assert agents["echo"]["versions"] == ["1.0.0"]


@pytest.mark.requirement("P6.1", "T18")
async def test_a_wrong_token_is_refused_with_a_reason(reference_peer: ReferencePeer) -> None:
    (refusal,) = await play_refused(reference_peer)
    assert refusal["raised"] == "UnauthenticatedError"
    assert refusal["code"] == "UNAUTHENTICATED"


async def play_refused(peer: ReferencePeer) -> list[Any]:
    async with open_gateway() as gateway:
        said = await peer.run("peer_client.py", gateway.url, "bad_token")
        assert gateway.runtime.statistics().sessions == 0
    return said


@pytest.mark.requirement("P7.1", "P7.2", "P8.1", "P11.1", "D13", "D35", "D49")
async def test_events_of_every_kind_arrive_in_order(reference_peer: ReferencePeer) -> None:
    first, *events, last = await play(reference_peer, "events")
    accepted = first["accepted"]
    assert accepted["agent"] == "everything@1.0.0"
    assert accepted["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert all(event["ts"].endswith("Z") for event in events)
    assert [(event["kind"], event["body"]) for event in events] == [
        ("log", {"level": "info", "message": "a line", "fields": {"k": 1}}),
        ("thought", {"text": "hmm"}),
        ("status", {"phase": "working", "message": "on it"}),
        (
            "metric",
            {"name": "tokens", "value": 3, "unit": "1", "dimensions": {"model": "m"}, "dims": {"model": "m"}},
        ),
        ("tool_call", {"tool": "search", "args": {"q": "x"}, "call_id": "c1"}),
        ("tool_result", {"call_id": "c1", "result": {"ok": True}}),
        ("tool_call", {"tool": "search", "args": {"q": "y"}, "call_id": "c2"}),
        ("tool_result", {"call_id": "c2", "error": {"code": "TIMEOUT", "message": "slow", "retryable": True}}),
        (
            "tool_result",
            {
                "call_id": "c3",
                "error": {
                    "code": "PERMISSION_DENIED",
                    "message": "the lease does not allow tool.call of 'rm'",
                    "retryable": False,
                },
            },
        ),
        (
            "artifact_ref",
            {"uri": "s3://bucket/key", "content_type": "text/plain", "byte_size": 3, "sha256": "00"},
        ),
        ("progress", {"current": 1, "total": 2, "units": "files", "message": "half"}),
        ("x-vendor.acme.kind", {"anything": [1, None]}),
    ]
    assert last == {"final_status": "success", "result": {"done": True}, "size": None}


@pytest.mark.requirement("P7.8", "D36", "D37", "X16")
async def test_inline_results_of_every_type(reference_peer: ReferencePeer) -> None:
    said = await play(reference_peer, "results")
    assert [line["final_status"] for line in said] == ["success"] * 7
    values = [{"answer": 42, "nested": [1, {"deep": None}]}, "text", None, 7, [], False, ""]
    assert [line["result"] for line in said] == values
    assert all(line["size"] is None for line in said)


@pytest.mark.requirement("P4.4", "P8.5", "D47", "D52")
async def test_the_peer_assembles_streamed_results(reference_peer: ReferencePeer) -> None:
    said = await play(reference_peer, "chunks")
    wholes = [TEXT.encode(), BINARY, json.dumps(LARGE, separators=(",", ":")).encode(), b""]
    for line, whole in zip(said, wholes, strict=True):
        assert line == {
            "sha256": hashlib.sha256(whole).hexdigest(),
            "length": len(whole),
            "final_status": "success",
            "result": None,
            "size": len(whole),
        }
    # Larger than the peer's own limit of 1 MiB for a message: they came in pieces.
    assert len(wholes[0]) > 2**20
    assert len(base64.b64encode(wholes[1])) > 2**20
    assert len(wholes[2]) > 2**20


@pytest.mark.requirement("P7.8a", "P7.9", "P12.1", "L24", "E04", "E05")
async def test_agents_that_raise(reference_peer: ReferencePeer) -> None:
    boom, denied, vendor = await play(reference_peer, "failures")
    assert (boom["raised"], boom["code"], boom["retryable"]) == ("InternalError", "INTERNAL_ERROR", True)
    assert "secret" not in json.dumps(boom)
    assert denied == {
        "raised": "PermissionDeniedError",
        "code": "PERMISSION_DENIED",
        "message": "not for you",
        "retryable": False,
        "details": {"path": "/x"},
    }
    # A code outside the fifteen goes out as INTERNAL_ERROR to a peer that knows no other.
    assert (vendor["raised"], vendor["code"]) == ("InternalError", "INTERNAL_ERROR")
    assert vendor["details"] == {"part": 7, "code": "X_ACME_BROKEN"}
    assert vendor["message"] == "my own"


@pytest.mark.requirement("P6.4", "P7.1", "P7.16", "P12.2", "E01", "K02", "Q14")
async def test_refused_submits_fail_alone(reference_peer: ReferencePeer) -> None:
    async with open_gateway() as gateway:
        said = await reference_peer.run("peer_client.py", gateway.url, "refusals")
        jobs = gateway.runtime.statistics().jobs_accepted
    nosuch, version, key, expiry, bounded, leased, last, closed = said
    assert nosuch["raised"] == "AgentNotAvailableError"
    assert nosuch["retryable"] is True
    assert version["raised"] == "AgentVersionNotAvailableError"
    assert version["details"] == {"available": ["1.0.0", "2.0.0", "10.0.0"]}
    # Keys are not in this runtime yet: refused by name, not ignored.
    for line, field in ((key, "idempotency_key"), (expiry, "expires_at")):
        assert line["raised"] == "InvalidRequestError", line
        assert field in line["message"]
    assert bounded["result"] == 2
    assert leased == {"accepted": "echo@1.0.0"}
    assert last["result"] == "still here"
    assert closed == {"closed": True}
    assert jobs == 3


@pytest.mark.requirement("P12.2", "D15", "X4", "E01")
async def test_a_refusal_beside_a_running_job(reference_peer: ReferencePeer) -> None:
    async with open_gateway() as gateway:
        said = await reference_peer.run("peer_client.py", gateway.url, "refusal_beside_a_job")
        refusal, running, opener, closed = said
        assert refusal["raised"] == "AgentNotAvailableError"
        # The peer fails every handle that it holds on any session.error. It understands no other
        # refusal, so nothing that we could send spares them (X4)…
        assert running["raised"] == "AgentNotAvailableError"
        # … but the job itself ran on here, to its end, and the session lives.
        assert opener["final_status"] == "success"
        assert closed == {"closed": True}
        assert gateway.returned == [opener["result"]]


@pytest.mark.requirement("P7.16", "E06")
async def test_versions(reference_peer: ReferencePeer) -> None:
    said = await play(reference_peer, "versions")
    assert [(line["agent"], line["result"]) for line in said] == [
        ("versioned@1.0.0", "1.0.0"),
        ("versioned@2.0.0", "2.0.0"),
        ("versioned@10.0.0", "10.0.0"),
        ("versioned@10.0.0", "10.0.0"),
    ]


@pytest.mark.requirement("P7.10", "X2", "D38", "L13")
async def test_a_job_that_runs_too_long(reference_peer: ReferencePeer) -> None:
    (line,) = await play(reference_peer, "timeout")
    assert (line["raised"], line["code"], line["retryable"]) == ("TimeoutError", "TIMEOUT", True)


@pytest.mark.requirement("P7.13", "P7.15", "X2", "D38", "D40", "L05", "Z10")
async def test_a_cancelled_job_ends_as_cancelled_and_not_in_a_hang(reference_peer: ReferencePeer) -> None:
    said = await play(reference_peer, "cancel")
    assert [(line["raised"], line.get("code")) for line in said] == [("CancelledError", "CANCELLED")] * 3
    assert "enough" in said[0]["message"]


@pytest.mark.requirement("P7.14", "L01", "L04")
async def test_a_late_cancel_is_answered_by_silence(reference_peer: ReferencePeer) -> None:
    async with open_gateway() as gateway:
        said = await reference_peer.run("peer_client.py", gateway.url, "late_cancel")
        statistics = gateway.runtime.statistics()
    first, second, opener, running, closed = said
    assert first["result"] == 1
    assert second["result"] == 2
    assert opener["final_status"] == "success"
    # An answer that is a session.error would have failed this one: see the refusal beside a job.
    assert running["result"] == "opened"
    assert closed == {"closed": True}
    assert statistics.cancels_refused == 2
    assert statistics.terminals_published == statistics.jobs_accepted == 4


@pytest.mark.requirement("P8.2", "D31", "S02", "S03")
async def test_many_jobs_one_after_another_and_at_once(reference_peer: ReferencePeer) -> None:
    first, *rest, last = await play(reference_peer, "many")
    assert first["answers"] == list(range(40))
    for number, line in enumerate(rest):
        assert line["lines"] == [f"{number}:{index}" for index in range(10)]
        assert line["result"] == number
    # 40 results, then 40 jobs of ten lines and a result: numbered from 1, without a gap.
    assert last == {"latest_event_seq": 40 + 40 * 11}


@pytest.mark.requirement("P10.1", "D48", "X15")
async def test_children_are_taken_for_no_job_of_its_own(reference_peer: ReferencePeer) -> None:
    before, boss, after = await play(reference_peer, "family")
    assert (before["result"], after["result"]) == ("echo", "echo")
    assert boss["agent"] == "boss@1.0.0"
    assert boss["result"] == ["boss", "of the child"]
    assert boss["kinds"] == ["delegate", "delegate"]


@pytest.mark.requirement("P6.21", "X8", "L20", "L21", "T14", "T15")
async def test_a_close_leaves_the_jobs_running(reference_peer: ReferencePeer) -> None:
    async with open_gateway() as gateway:
        handle, closed = await reference_peer.run("peer_client.py", gateway.url, "close")
        # The peer fails its open handles itself.
        assert handle["raised"] == "TransportClosed"
        assert closed == {"closed": True}
        job_id = handle["job_id"]
        with trio.fail_after(30):
            while gateway.runtime.statistics().connections:
                await trio.lowlevel.checkpoint()
        assert gateway.runtime.statistics().sessions == 0
        assert gateway.runtime.statistics().jobs_running == 1
        gateway.opened[job_id].set()
        with trio.fail_after(30):
            while gateway.runtime.statistics().jobs_running:
                await trio.lowlevel.checkpoint()
        assert gateway.returned == [job_id]
