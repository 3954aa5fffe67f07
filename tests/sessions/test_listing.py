"""session.list_jobs on the wire: filters, pages, cursors, and who sees what."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Frame, RawClient, Script, connect_raw, make_hello, open_raw, terminals

import arcp_trio
from arcp_trio.wire.timestamps import WallClock

Payload = dict[str, Any]


async def ask(client: RawClient, payload: Payload | None = None) -> Frame:
    """Ask for a listing; return its answer, whatever it is."""
    request_id = await client.request("session.list_jobs", payload)
    return await client.receive_until(
        lambda frame: frame.get("correlation_id") == request_id and not frame["type"].startswith("job.")
    )


async def page(client: RawClient, payload: Payload | None = None) -> Payload:
    answer = await ask(client, payload)
    assert answer["type"] == "session.jobs", answer
    return dict(answer["payload"])


async def listed(client: RawClient, **payload: Any) -> list[str]:
    """List to the end, page by page; return the ids."""
    found: list[str] = []
    cursor: Payload = {}
    while True:
        part = await page(client, {**payload, **cursor})
        found += [entry["job_id"] for entry in part["jobs"]]
        assert "next_cursor" in part
        if part["next_cursor"] is None:
            return found
        assert part["jobs"], "an empty page that goes on"
        assert len(part["next_cursor"]) <= 512
        cursor = {"cursor": part["next_cursor"]}


async def refusal(client: RawClient, payload: Payload) -> str:
    """Ask for a listing that is refused as INVALID_REQUEST; return why."""
    answer = await ask(client, payload)
    assert answer["type"] == "session.error", answer
    assert answer["payload"]["code"] == "INVALID_REQUEST"
    assert answer["payload"]["request_id"] == answer["payload"]["reply_to"] == answer["correlation_id"]
    return str(answer["payload"]["message"])


class SetClock(WallClock):
    """A time of day that a test sets."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        super().__init__(lambda: self.now)


# --- entries ------------------------------------------------------------------------------------------


@pytest.mark.requirement("P6.19", "P6.20", "P7.18", "P10", "P5.3a")
async def test_the_entry_of_a_running_job(script: Script) -> None:
    lease = {"fs.read": ["/a/**", "/b"], "tool.call": ["x.*"]}
    async with arcp_trio.open_runtime(script.agents, clock=SetClock()) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("gate", lease_request=lease)
        accepted = client.received[-1]
        await client.settle()
        answer = await ask(client, {"filter": {"agent": "gate"}})
        (entry,) = answer["payload"]["jobs"]
        assert entry == {
            "job_id": job_id,
            "agent": "gate@1.0.0",
            "status": "running",
            "lease": lease,
            "parent_job_id": None,
            "created_at": "2023-11-14T22:13:20.000Z",
            "submitted_at": "2023-11-14T22:13:20.000Z",
            "accepted_at": accepted["payload"]["accepted_at"],
            "trace_id": accepted["trace_id"],
            "last_event_seq": 1,
        }
        assert answer["payload"] == {
            "request_id": answer["correlation_id"],
            "reply_to": answer["correlation_id"],
            "jobs": [entry],
            "next_cursor": None,
        }
        assert "event_seq" not in answer


@pytest.mark.requirement("P6.20", "P7.18", "P10")
async def test_the_number_of_an_entry_is_the_jobs_newest(script: Script) -> None:
    """Whatever the numbers of the session that asks: it may follow nothing."""
    go_on: trio.MemorySendChannel[int]
    go_on, steps = trio.open_memory_channel[int](0)

    @script.agents.register("steps")
    async def walk(job: arcp_trio.JobContext, value: Any) -> None:
        async for step in steps:
            await job.log("info", str(step))

    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime) as client,
        open_raw(runtime) as other,
    ):
        await client.submit("echo", 1)
        await client.receive_until("job.result")
        job_id = await client.submit("steps")
        for step in range(4):
            for each in (client, other):
                assert (await page(each))["jobs"][1]["last_event_seq"] == step
            await go_on.send(step)
            event = await client.receive_until("job.event")
            assert event["extensions"]["x-vendor.arcp-trio.job_seq"] == step + 1
        await go_on.aclose()
        await client.receive_until("job.result")
        entry = (await page(other))["jobs"][1]
        assert (entry["job_id"], entry["status"], entry["last_event_seq"]) == (job_id, "success", 5)


@pytest.mark.requirement("P6.19", "P6.20", "P7.7", "L14", "L26")
async def test_the_statuses_are_those_of_the_events(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    """Whatever way a job ended, its entry keeps lease, trace and creation, and is found by its status."""
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        lease = {"lease_request": {"fs.read": ["/a"]}}
        job_ids = {
            "success": await client.submit("echo", 1, **lease),
            "error": await client.submit("fail", **lease),
            "cancelled": await client.submit("sleep", **lease),
            "timed_out": await client.submit("sleep", max_runtime_sec=1, **lease),
        }
        before = {entry["job_id"]: entry for entry in (await page(client))["jobs"]}
        await client.request("job.cancel", {"job_id": job_ids["cancelled"]})
        while len(terminals(client.received)) < 4:
            await client.receive()
        ended = {frame["job_id"]: frame["payload"]["final_status"] for frame in terminals(client.received)}
        for status, job_id in job_ids.items():
            assert ended[job_id] == status
            (entry,) = (await page(client, {"filter": {"status": [status]}}))["jobs"]
            for name in ("job_id", "agent", "lease", "parent_job_id", "created_at", "submitted_at", "trace_id"):
                assert entry[name] == before[job_id][name]
            assert entry["status"] == status
        assert await listed(client, filter={"status": ["pending", "running"]}) == []
        assert await listed(client) == await listed(client, filter={"status": list(job_ids)}) == list(job_ids.values())


@pytest.mark.requirement("P6.19", "P7.7", "P7.15")
async def test_pending_is_listed_until_the_actors_first_step(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        started = client.make("job.submit", {"agent": "sleep"})
        stopped = client.make("job.submit", {"agent": "stubborn"})
        asked = [
            client.make("session.list_jobs", {"filter": {"status": [status]}}) for status in ("pending", "running")
        ]
        # In one read: the runtime comes to the questions before any actor has run.
        await client.send(started, stopped, *asked)
        frames = await client.settle()
        pending, running = (frame["payload"]["jobs"] for frame in frames if frame["type"] == "session.jobs")
        assert [(entry["agent"], entry["status"]) for entry in pending] == [
            ("sleep@1.0.0", "pending"),
            ("stubborn@1.0.0", "pending"),
        ]
        assert running == []
        assert await listed(client, filter={"status": ["pending"]}) == []
        assert len(await listed(client, filter={"status": ["running"]})) == 2
        # Told to stop, and not yet stopped: it runs.
        await client.request("job.cancel", {"job_id": pending[1]["job_id"]})
        await client.receive_until("job.cancelled")
        assert pending[1]["job_id"] in await listed(client, filter={"status": ["running"]})
        script.gate.set()
        await client.receive_until("job.error")
        assert await listed(client, filter={"status": ["cancelled"]}) == [pending[1]["job_id"]]
        assert len(runtime._directory.index) == 2


# --- filters and limits -------------------------------------------------------------------------------


@pytest.mark.requirement("P6.19", "P06")
async def test_created_after_is_exclusive(script: Script) -> None:
    clock = SetClock()
    async with arcp_trio.open_runtime(script.agents, clock=clock) as runtime, open_raw(runtime) as client:
        early = await client.submit("echo", 1)
        clock.now += 0.5
        late = await client.submit("echo", 2)
        for bound, expected in (
            ("2023-11-14T22:13:19.999Z", [early, late]),
            ("2023-11-14T22:13:20Z", [late]),
            ("2023-11-14T22:13:20.499999999Z", [late]),
            ("2023-11-14T22:13:20.5Z", []),
            ("0001-01-01T00:00:00Z", [early, late]),
            ("9999-12-31T23:59:59.999Z", []),
        ):
            assert await listed(client, filter={"created_after": bound}) == expected, bound
            assert await listed(client, filter={"created_after": bound}, limit=1) == expected, bound
        for bad in (
            "",
            "yesterday",
            "1700000000",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-11-14T22:13:20+00:00",
            "2023-11-14 22:13:20Z",
            "2023-11-14t22:13:20z",
            "2023-02-30T00:00:00Z",
            "2023-11-14T24:00:00Z",
            "2023-11-14T22:13:20.Z",
            "\uff12\uff10\uff12\uff13-11-14T22:13:20Z",
            " 2023-11-14T22:13:20Z",
            "x" * 5000,
        ):
            why = await refusal(client, {"filter": {"created_after": bad}})
            assert why.startswith("$.payload.filter.created_after: expected a time in UTC")
            assert len(why) < 300


@pytest.mark.requirement("P6.19")
async def test_an_agent_is_all_its_versions_or_one(script: Script) -> None:
    @script.agents.register("echo", version="2.0.0")
    async def echo(job: arcp_trio.JobContext, value: Any) -> None: ...

    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        old, new = await client.submit("echo@1.0.0", 1), await client.submit("echo", 1)
        sleeping = await client.submit("sleep")
        for agent, expected in (
            ("echo", [old, new]),
            ("echo@1.0.0", [old]),
            ("echo@2.0.0", [new]),
            ("echo@3", []),
            ("ech", []),
            ("sleep", [sleeping]),
            ("nobody", []),
        ):
            assert await listed(client, filter={"agent": agent}) == expected
        for bad in ("", "Echo", "echo@", "@1.0.0", "echo@1@2", "echo 1", "x" * 5000):
            why = await refusal(client, {"filter": {"agent": bad}})
            assert why.startswith("$.payload.filter.agent:")
        # Without the feature of versions too: it is the form in which every entry names its agent.
        async with open_raw(runtime, hello=make_hello(features=["list_jobs"])) as plain:
            assert await listed(plain, filter={"agent": "echo@2.0.0"}) == [new]


@pytest.mark.requirement("P6.19", "P5.5", "P5.6", "P06", "P09")
@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"limit": 0}, "$.payload.limit: expected an integer from 1 to 1000, got 0"),
        ({"limit": -1}, "$.payload.limit"),
        ({"limit": 1001}, "$.payload.limit"),
        ({"limit": 2**63 - 1}, "$.payload.limit"),
        ({"limit": 2**64}, "$.payload.limit"),
        ({"limit": 1.0}, "$.payload.limit"),
        ({"limit": "10"}, "$.payload.limit"),
        ({"limit": True}, "$.payload.limit"),
        ({"filter": []}, "$.payload.filter"),
        ({"filter": {"status": "running"}}, "$.payload.filter.status"),
        ({"filter": {"status": ["running", "succeeded"]}}, "$.payload.filter.status[1]: expected one of pending,"),
        ({"filter": {"status": ["Running"]}}, "$.payload.filter.status[0]"),
        ({"filter": {"status": ["x" * 5000]}}, "$.payload.filter.status[0]"),
        ({"filter": {"status": [None]}}, "$.payload.filter.status[0]"),
        ({"filter": {"agent": 1}}, "$.payload.filter.agent"),
        ({"filter": {"created_after": 1700000000}}, "$.payload.filter.created_after"),
        ({"cursor": 1}, "$.payload.cursor"),
    ],
)
async def test_what_is_not_valid_is_named(script: Script, payload: Payload, path: str) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("echo", 1)
        why = await refusal(client, payload)
        assert why.startswith(path)
        assert len(why) < 500
        assert await listed(client) == [job_id]


@pytest.mark.requirement("P6.19", "P09", "D54")
async def test_limits_that_are_valid(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        jobs = [await client.submit("echo", number) for number in range(102)]
        assert [entry["job_id"] for entry in (await page(client))["jobs"]] == jobs[:100]
        # What some peers write for "all of them", and for "as you like".
        for payload in ({"limit": 1000}, {"limit": 102, "filter": None, "cursor": None}):
            assert [entry["job_id"] for entry in (await page(client, payload))["jobs"]] == jobs
        for empty in ({"filter": {}}, {"filter": {"status": []}}, {"filter": {"status": None, "agent": None}}):
            assert await listed(client, **empty) == jobs
        assert await listed(client, limit=1) == jobs


# --- pages and cursors --------------------------------------------------------------------------------


@pytest.mark.requirement("P6.19", "P03", "P11")
async def test_the_last_page_has_no_cursor(script: Script) -> None:
    """Five jobs of one instant; pages that just fit, and an empty listing."""
    async with arcp_trio.open_runtime(script.agents, clock=SetClock()) as runtime, open_raw(runtime) as client:
        answer = await page(client)
        assert (answer["jobs"], answer["next_cursor"]) == ([], None)
        jobs = [await client.submit("echo", number) for number in range(5)]
        for limit in (1, 2, 3, 4, 5, 6):
            assert await listed(client, limit=limit) == jobs
            first = await page(client, {"limit": limit})
            assert (first["next_cursor"] is None) is (limit >= 5)


@pytest.mark.requirement("P6.19", "P01", "M02")
async def test_a_listing_goes_on_whatever_happens_between_its_pages(
    script: Script, autojump_clock: trio.testing.MockClock
) -> None:
    """The job that the cursor names is evicted, others end and come: nothing is skipped or repeated."""
    limits = arcp_trio.Limits(retention_records=2)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        running = [await client.submit("sleep") for _ in range(3)]
        first = await page(client, {"limit": 2})
        assert [entry["job_id"] for entry in first["jobs"]] == running[:2]
        await client.request("job.cancel", {"job_id": running[1]})
        await client.receive_until("job.error")
        newer = [await client.submit("echo", number) for number in range(4)]
        await client.settle()
        assert runtime._directory.find(running[1]) is None
        second = await page(client, {"limit": 2, "cursor": first["next_cursor"]})
        assert [entry["job_id"] for entry in second["jobs"]] == [running[2], newer[2]]
        # Another limit is no other listing; a cursor may be used again.
        for limit in (1, 7):
            assert await listed(client, limit=limit, cursor=first["next_cursor"]) == [running[2], *newer[2:]]
        # All that it names has gone: the end, and no error.
        await client.request("job.cancel", {"job_id": running[2]})
        await client.receive_until("job.error")
        await trio.sleep(limits.retention_seconds + 1)
        last = await page(client, {"cursor": second["next_cursor"]})
        assert (last["jobs"], last["next_cursor"]) == ([], None)
        assert (len(runtime._directory.index), runtime._directory.index.buckets) == (1, 1)


@pytest.mark.requirement("P6.19", "P05", "Q02")
async def test_a_cursor_is_good_for_its_principal_and_filter_alone(script: Script) -> None:
    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime) as client,
        open_raw(runtime) as same,
        open_raw(runtime, principal="you") as other,
        arcp_trio.open_runtime(script.agents) as restarted,
        open_raw(restarted) as after_restart,
    ):
        jobs = [await client.submit("echo", number) for number in range(3)]
        for number in range(3):
            await other.submit("echo", number)
        cursor = (await page(client, {"limit": 1, "filter": {"agent": "echo"}}))["next_cursor"]
        assert await listed(same, filter={"agent": "echo"}, cursor=cursor) == jobs[1:]
        # The same filter, in other words.
        assert await listed(same, filter={"agent": "echo", "status": []}, cursor=cursor) == jobs[1:]
        refusals = set()
        for each, payload in (
            (other, {"filter": {"agent": "echo"}}),
            (after_restart, {"filter": {"agent": "echo"}}),
            (client, {}),
            (client, {"filter": {"agent": "echo@1.0.0"}}),
            (client, {"filter": {"agent": "echo", "status": ["success"]}}),
            (client, {"filter": {"agent": "echo", "created_after": "2000-01-01T00:00:00Z"}}),
        ):
            refusals.add(await refusal(each, {**payload, "cursor": cursor}))
        # One answer for all: it tells nobody whose it is, nor what of it is wrong.
        assert len(refusals) == 1
        assert refusals.pop().startswith("$.payload.cursor:")


def spoilt(cursor: str) -> Iterator[str]:
    """Yield cursors that were never made, from one that was."""
    yield from ("", "x", "=", "c", "0", "null", "é", "\x00", "." * 512, "A" * 512, "A" * 513, "A" * 100_000)
    yield from (cursor[:-1], cursor[1:], cursor + "A", cursor + "=", cursor + "\n", cursor.swapcase(), cursor * 2)
    for position in range(len(cursor)):
        yield cursor[:position] + ("B" if cursor[position] == "A" else "A") + cursor[position + 1 :]
    decoded = base64.urlsafe_b64decode(cursor)
    for place in (b"0:job_0", b"0", b":", b"-1:", b"9" * 300 + b":j", b"\xff:", decoded[16:].replace(b":", b":X")):
        yield base64.urlsafe_b64encode(decoded[:16] + place).decode()


@pytest.mark.requirement("P6.19", "P05")
async def test_a_cursor_that_was_not_made_here(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        jobs = [await client.submit("echo", number) for number in range(2)]
        cursor = (await page(client, {"limit": 1}))["next_cursor"]
        for bad in spoilt(cursor):
            why = await refusal(client, {"cursor": bad})
            assert why.startswith("$.payload.cursor:")
            assert len(why) < 200
        assert await listed(client, cursor=cursor) == jobs[1:]


def lease_of(size: int) -> Payload:
    """Return a lease whose patterns are about so many bytes together, in as many as it takes: each has its limit."""
    sizes = [min(3_900, size - start) for start in range(0, size, 3_900)]
    return {"fs.read": [f"/{number}{'é' * ((each - 5) // 2)}" for number, each in enumerate(sizes)]} if size else {}


@pytest.mark.requirement("P4.4", "P6.19")
@pytest.mark.parametrize("request_id", ["plain", "\x00" * 250, 'é"' * 125], ids=["plain", "escaped", "mixed"])
async def test_a_page_is_cut_to_what_a_frame_may_be(script: Script, request_id: str) -> None:
    """Whatever takes its room: leases, and the id of the request, which stands in the answer three times."""
    limits = arcp_trio.Limits(send_bytes=20_000)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        sizes_asked = (7_500, 7_500, 9_900, 4_000, 9_500, 9_500, 9_500, 0, 0)
        jobs = [await client.submit("sleep", lease_request=lease_of(size)) for size in sizes_asked]
        await client.settle()
        found, sizes = [], []
        payload: Payload = {}
        while payload.get("cursor", "") is not None:
            await client.request("session.list_jobs", payload, id=f"{len(sizes)}{request_id}")
            (text,) = await client.transport.receive()
            sizes.append(len(text))
            answer = json.loads(text)["payload"]
            found += [entry["job_id"] for entry in answer["jobs"]]
            payload = {"cursor": answer["next_cursor"]}
        assert found == jobs
        assert max(sizes) <= 20_000
        # No fuller than they may be, and no emptier than they must: four pages hold what there is.
        assert 4 <= len(sizes) <= 6


@pytest.mark.requirement("M02")
async def test_the_lease_of_an_ended_job_counts_among_what_is_kept(script: Script) -> None:
    limits = arcp_trio.Limits(retention_bytes=250_000)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        jobs = [await client.submit("echo", 1, lease_request=lease_of(200_000)) for _ in range(4)]
        await client.settle()
        assert await listed(client) == jobs[2:]
        assert 200_000 < runtime._directory.retained_bytes <= 250_000


# --- who sees what ------------------------------------------------------------------------------------


@pytest.mark.requirement("P6.1", "P6.19", "P7.19", "Q02")
async def test_anonymous_principals_see_nothing_of_each_other(script: Script) -> None:
    async with (
        arcp_trio.open_runtime(script.agents, verifier=arcp_trio.AnonymousAccess()) as runtime,
        open_raw(runtime, principal=None) as first,
        open_raw(runtime, principal=None) as second,
        open_raw(runtime, principal=" ") as nobody,
        open_raw(runtime, principal="me") as me,
    ):
        jobs = {}
        for client in (first, second, nobody, me):
            jobs[client] = [await client.submit("sleep"), await client.submit("echo", 1)]
        for client, own in jobs.items():
            assert await listed(client) == own
            assert await listed(client, filter={"status": ["running"]}) == own[:1]
            assert await listed(client, limit=1) == own


@pytest.mark.requirement("P6.19", "P7.19", "Q02")
async def test_all_sessions_of_a_principal_see_the_same(script: Script) -> None:
    async with arcp_trio.open_runtime(script.agents) as runtime:
        gone = await connect_raw(runtime)
        job_id = await gone.submit("sleep")
        await gone.transport.abort()
        async with open_raw(runtime) as client, open_raw(runtime, principal="you") as other:
            assert await listed(client) == [job_id]
            assert await listed(other) == []


@pytest.mark.requirement("P6.4", "Q14")
@pytest.mark.parametrize("payload", [{}, {"limit": 0}, {"limit": "x"}])
async def test_a_listing_that_was_not_negotiated(script: Script, payload: Payload) -> None:
    hello = make_hello(features=["progress"])
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime, hello=hello) as client:
        assert "not negotiated" in await refusal(client, payload)
        await client.submit("echo", 1)


# --- what a listing leaves behind ---------------------------------------------------------------------


@pytest.mark.requirement("L26")
async def test_reading_changes_nothing(script: Script, autojump_clock: trio.testing.MockClock) -> None:
    limits = arcp_trio.Limits(retention_seconds=100)
    async with arcp_trio.open_runtime(script.agents, limits=limits) as runtime, open_raw(runtime) as client:
        jobs = [await client.submit("echo", 1), await client.submit("sleep")]
        await client.settle()
        # A record that is past its time, before the deadline that evicts it was noticed.
        await trio.sleep(99)
        runtime._directory._retention.cancel()  # type: ignore[union-attr]
        await trio.sleep(10)
        before = runtime.statistics()
        answers = []
        for _ in range(2):
            answers.append([await listed(client), await listed(client, filter={"status": ["success"]}, limit=1)])
            assert [runtime._directory.find(job_id) is not None for job_id in jobs] == [True, True]
            assert runtime.statistics() == before
        assert answers[0] == answers[1] == [jobs, jobs[:1]]


@pytest.mark.requirement("P6.19", "P7.19")
async def test_every_listing_is_in_the_audit_log(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "arcp_trio.audit")
    async with (
        arcp_trio.open_runtime(script.agents) as runtime,
        open_raw(runtime, hello=make_hello(token="secret-token")) as client,
    ):
        for number in range(3):
            await client.submit("echo", number)
        answer = await page(client, {"limit": 2, "filter": {"agent": "echo"}})
        cursor = answer["next_cursor"]
        await page(client, {"limit": 2, "filter": {"agent": "echo"}, "cursor": cursor})
        await refusal(client, {"cursor": cursor})
        await refusal(client, {"filter": {"agent": "a\nforged: line" * 1000}})
        session = f"principal 'me', session {client.session_id}"
    lines = [record.getMessage() for record in caplog.records if record.name == "arcp_trio.audit"]
    assert len(lines) == 4
    assert all(session in line and len(line) < 1000 and "\n" not in line for line in lines)
    assert [line.partition(":")[0] for line in lines] == [
        "list granted, 2 jobs",
        "list granted, 1 jobs",
        "list refused, INVALID_REQUEST",
        "list refused, INVALID_REQUEST",
    ]
    assert "agent='echo'" in lines[0]
    assert not [line for line in lines if "secret" in line or cursor in line]


@pytest.mark.requirement("L25")
async def test_a_bug_in_a_listing_ends_that_request_alone(
    script: Script, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    caplog.set_level(logging.INFO, "arcp_trio.audit")
    async with arcp_trio.open_runtime(script.agents) as runtime, open_raw(runtime) as client:
        job_id = await client.submit("sleep")
        with monkeypatch.context() as patch:
            patch.setattr(runtime._directory.index, "page", fail)
            answer = await ask(client)
        assert (answer["type"], answer["payload"]["code"]) == ("session.error", "INTERNAL_ERROR")
        assert "a bug" not in answer["payload"]["message"]
        assert [record.getMessage().partition(":")[0] for record in caplog.records if "audit" in record.name] == [
            "list failed"
        ]
        assert await listed(client) == [job_id]
