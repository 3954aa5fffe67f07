"""Ten thousand frames of every kind of nonsense: the runtime does not crash, does not lie and does not leak."""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import Any

import pytest
import trio
import trio.testing
from fuzz.live import assert_nothing_left, error_of
from helpers import Frame, RawClient, Script, exchanged, make_hello, open_raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wire.schema_check import problems_of_runtime_frame

import arcp_trio
from arcp_trio.transports.base import TransportClosedError

BATCH = 50
EXAMPLES = 240

# --- what is sent ---------------------------------------------------------------------------------------

odd_scalars = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1,
        1.0,
        1.5,
        -0.0,
        2**31,
        2**53 + 1,
        2**63 - 1,
        2**63,
        -(2**63) - 1,
        10**40,
        10**400,
        float("nan"),
        float("inf"),
        1e308,
        "",
        "x",
        "\ud800",
        "\x00",
        "\u2028",
        "é",
        "😀",
        '"',
        "\\",
        "x" * 300,
        "1.1",
        "2.0",
        "bearer",
        "null",
        "job_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ]
)
names = st.sampled_from(
    [
        "arcp",
        "id",
        "type",
        "payload",
        "session_id",
        "job_id",
        "event_seq",
        "trace_id",
        "extensions",
        "agent",
        "input",
        "nonce",
        "reason",
        "lease_request",
        "lease_constraints",
        "expires_at",
        "capabilities",
        "max_runtime_sec",
        "idempotency_key",
        "token",
        "",
        "fs.read",
        "é",
        'a"b',
        "__proto__",
    ]
)
json_values = st.recursive(
    odd_scalars | st.text(max_size=5) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)

TEMPLATES: list[tuple[str, Frame]] = [
    ("session.ping", {"nonce": "n", "sent_at": "2026-01-01T00:00:00.000Z"}),
    ("session.pong", {"ping_nonce": "n"}),
    ("session.ack", {"last_processed_seq": 1}),
    ("session.hello", make_hello()["payload"]),
    ("session.resume", {"session_id": "s", "resume_token": "t", "last_event_seq": 1}),
    ("session.list_jobs", {"filter": {"status": ["running"], "agent": "echo"}, "limit": 10, "cursor": "c"}),
    ("session.close", {"reason": "done"}),
    ("session.error", {"code": "INTERNAL_ERROR", "message": "m", "retryable": True}),
    ("job.submit", {"agent": "echo", "input": {"a": [1]}}),
    (
        "job.submit",
        {
            "agent": "echo@1.0.0",
            "input": 1,
            "lease_request": {"fs.read": ["/a/**"], "capabilities": ["x.y"]},
            "lease_constraints": {"expires_at": "2099-01-01T00:00:00.000Z"},
            "idempotency_key": "k",
            "max_runtime_sec": 60,
        },
    ),
    ("job.submit", {"agent": "sleep", "max_runtime_sec": 5.5}),
    ("job.submit", {"agent": "fail"}),
    ("job.submit", {"agent": "chatter", "input": 3}),
    ("job.cancel", {"job_id": "job_01ARZ3NDEKTSV4RRFFQ69G5FAV", "reason": "r"}),
    ("job.cancel", {"job_id": "LAST"}),
    ("job.subscribe", {"job_id": "LAST", "history": True, "from_event_seq": 0}),
    ("job.unsubscribe", {"job_id": "LAST"}),
    ("job.event", {"kind": "log", "ts": "2026-01-01T00:00:00.000Z", "body": {"level": "info", "message": "m"}}),
    ("x-vendor.acme.thing", {"a": 1}),
]


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every field and element."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found.append((*path, key))
        found += paths_of(item, (*path, key))
    return found


@st.composite
def mutated_frames(draw: st.DrawFn) -> str:
    """Return a valid frame, and what mischief has done to it; ``ID`` and ``LAST`` are filled in as it is sent."""
    frame_type, payload = draw(st.sampled_from(TEMPLATES))
    frame: Frame = {"arcp": "1.1", "id": "ID", "type": frame_type, "payload": payload}
    frame = json.loads(json.dumps(frame))
    for _ in range(draw(st.integers(0, 3))):
        paths = paths_of(frame)
        if not paths:
            break
        *way, last = draw(st.sampled_from(paths))
        place: Any = frame
        for step in way:
            place = place[step]
        match draw(st.integers(0, 3)):
            case 0:
                del place[last]
            case 1 | 2:
                place[last] = draw(json_values)
            case _ if isinstance(place, dict):
                place[draw(names)] = draw(json_values)
    text = json.dumps(frame, ensure_ascii=draw(st.booleans()))
    match draw(st.integers(0, 11)):
        case 0:
            text = text[: draw(st.integers(0, len(text)))]
        case 1:
            # A field twice.
            name = draw(st.sampled_from(["id", "type", "payload", "agent", "nonce", "job_id"]))
            text = text.replace(f'"{name}":', f'"{name}": null, "{name}":', 1)
        case 2:
            depth = draw(st.sampled_from([60, 63, 64, 65, 200, 2000]))
            text = text.replace("1", "[" * depth + "]" * depth, 1)
        case 3:
            at = draw(st.integers(0, len(text)))
            text = (
                text[:at]
                + draw(st.sampled_from(['"', "{", "}", "[", "]", ",", ":", "\\", "\x00", "0", "-"]))
                + text[at:]
            )
        case 4:
            text = text.replace("1", draw(st.sampled_from(["1e999", "9" * 400, "1.0", "-1", "1E400", "0x1", "01"])), 1)
    return text


random_json = json_values.map(lambda value: json.dumps(value, ensure_ascii=False))
random_bytes = st.binary(max_size=40)
good_ping = st.just("PING")
good_submit = st.just("SUBMIT")
frames = st.one_of(
    mutated_frames(), mutated_frames(), mutated_frames(), random_json, random_bytes, good_ping, good_ping, good_submit
)


# --- who sends it ---------------------------------------------------------------------------------------


class Attacker:
    """Sends one frame after the other; opens a new session when the runtime has closed the old one."""

    def __init__(self, runtime: arcp_trio.Runtime, counted: Counter[str]) -> None:
        self.runtime = runtime
        self.counted = counted
        self.numbers = 0
        self.last_job = "job_none"

    async def run(self, batch: list[str | bytes]) -> None:
        waiting = list(batch)
        while waiting:
            async with open_raw(self.runtime) as client:
                await self.speak(client, waiting)
                for frame in client.received:
                    self.counted[frame["type"]] += 1
                    assert problems_of_runtime_frame(frame) == [], frame
                    # Nothing that was sent can be the runtime's fault.
                    assert frame["type"] != "session.error" or frame["payload"]["code"] != "INTERNAL_ERROR", frame
                numbers = [frame["event_seq"] for frame in client.received if "event_seq" in frame]
                assert numbers == list(range(1, len(numbers) + 1))

    async def speak(self, client: RawClient, waiting: list[str | bytes]) -> None:
        while waiting:
            text = waiting.pop(0)
            self.counted["sent"] += 1
            expected = None
            if text in ("PING", "SUBMIT"):
                expected = f"good_{self.next()}"
                text = self.good(client, str(text), expected)
            elif isinstance(text, str):
                text = text.replace('"ID"', f'"id_{self.next()}"').replace("LAST", self.last_job)
            try:
                await client.send_text(text)
                await self.hear(client, expected)
            except TransportClosedError as exc:
                self.judge_close(client, exc)
                return
        try:
            # After all that, and without eight in a row: the session lives.
            expected = f"good_{self.next()}"
            await client.send_text(self.good(client, "PING", expected))
            await self.hear(client, expected)
        except TransportClosedError as exc:
            self.judge_close(client, exc)

    def next(self) -> int:
        self.numbers += 1
        return self.numbers

    @staticmethod
    def good(client: RawClient, kind: str, message_id: str) -> str:
        payload: Frame = {"nonce": message_id} if kind == "PING" else {"agent": "echo", "input": message_id}
        frame_type = "session.ping" if kind == "PING" else "job.submit"
        return json.dumps({"arcp": "1.1", "id": message_id, "type": frame_type, "payload": payload})

    async def hear(self, client: RawClient, expected: str | None) -> None:
        """Read what the runtime has to say; a good request has its good answer."""
        if expected is not None:
            frame = await client.receive_until(lambda frame: frame.get("correlation_id") == expected)
            assert frame["type"] in ("session.pong", "job.accepted")
            self.last_job = frame["payload"].get("job_id", self.last_job)
        await client.settle()
        if client.transport._incoming.close is not None and not client.transport._incoming.frames:
            raise TransportClosedError(*client.transport._incoming.close)

    def judge_close(self, client: RawClient, closed: TransportClosedError) -> None:
        """Say why the runtime may have closed: there are three reasons, and no other."""
        self.counted[f"closed {closed.code}"] += 1
        last = client.received[-1]
        if closed.code == 1000:
            # A mutated session.close is still one; it is answered.
            assert last["type"] == "session.closed" or "bye" in closed.reason
        elif "another version" in closed.reason:
            assert closed.code == 1008
            assert error_of(last)[0] == "INVALID_REQUEST"
            assert last["payload"]["message"].startswith("$.arcp")
        else:
            assert closed.code == 1008
            errors = [frame for frame in client.received if frame["type"] == "session.error"]
            assert len(errors) >= 8
            assert [error_of(frame)[0] for frame in errors[-8:]] == ["INVALID_REQUEST"] * 8


@pytest.mark.requirement("P5.4", "P5.5", "P5.6", "P8.2", "T01", "T02", "L25")
def test_ten_thousand_frames_of_nonsense(caplog: pytest.LogCaptureFixture) -> None:
    # What agents do wrong here is meant; an error that the runtime logs of its own is a bug of ours.
    caplog.set_level(logging.CRITICAL, logger="arcp_trio.jobs")
    caplog.set_level(logging.ERROR, logger="arcp_trio.sessions")
    counted: Counter[str] = Counter()
    mark = len(exchanged)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        print_blob=True,
        # Fifty frames are one example on purpose: opening a runtime for each would be most of the time.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(st.lists(frames, min_size=BATCH, max_size=BATCH))
    def attack(batch: list[str | bytes]) -> None:
        async def main() -> None:
            script = Script()
            script.error = KeyError("an agent's own")

            @script.agents.register("chatter")
            async def chatter(job: arcp_trio.JobContext, value: Any) -> Any:
                await job.log("info", "begins", {"input": value})
                await job.progress(1, 2)
                return [value, {"again": value}]

            before = trio.lowlevel.current_statistics().tasks_living
            async with arcp_trio.open_runtime(script.agents, limits=arcp_trio.Limits(hello_seconds=1)) as runtime:
                opened = trio.lowlevel.current_statistics().tasks_living
                await Attacker(runtime, counted).run(batch)
                await trio.testing.wait_all_tasks_blocked()
                statistics = runtime.statistics()
                assert (statistics.sessions, statistics.connections, statistics.bugs) == (0, 0, 0)
                # Jobs outlive their sessions; each has two tasks, and nothing else is left.
                assert trio.lowlevel.current_statistics().tasks_living == opened + 2 * statistics.jobs_running
                counted["jobs"] += statistics.jobs_accepted
                await runtime.aclose()
                assert_nothing_left(runtime)
            assert trio.lowlevel.current_statistics().tasks_living == before

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=5))
        # Checked already, frame by frame.
        del exchanged[mark:]

    attack()
    assert caplog.records == []
    # If the generators went stale, this would show nothing: all of it has to have happened. Far below what is seen:
    # how often a kind comes is the generator's, and another version of it draws otherwise.
    assert counted["sent"] >= 10_000
    for what, least in {
        "session.pong": 500,
        "session.error": 1000,
        "job.accepted": 300,
        "job.result": 300,
        "job.error": 5,
        "job.event": 5,
        "session.closed": 5,
        "closed 1008": 10,
        "jobs": 300,
    }.items():
        assert counted[what] >= least, (what, counted)
