from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from cli.network import open_network
from cli.processes import TOKEN, Gate, Server, open_command, open_server, open_terminal, run_command

import arcp_trio
from arcp_trio.cli.errors import CommandError, ExitCode
from arcp_trio.cli.job_table import JobTable, read_time
from arcp_trio.cli.jobs import JobsOptions, read_created_after


async def submit(server: Server, agent: str, value: Any = None) -> str:
    """Submit a job from a session of its own, wait for its end, and return its id."""
    async with arcp_trio.open_client(server.url, token=TOKEN) as client:
        job = await client.submit(agent, value)
        with trio.fail_after(30):
            await job.wait_ended()
        return job.job_id


def ids_of(stdout: str) -> list[str]:
    return [json.loads(line)["job_id"] for line in stdout.splitlines()]


# --- a list -----------------------------------------------------------------------------------------


@pytest.mark.requirement("P6.19", "P6.20")
async def test_a_table_of_jobs(tmp_path: Path, gate: Gate) -> None:
    async with open_server(tmp_path) as server, arcp_trio.open_client(server.url, token=TOKEN) as client:
        done = await run_command("jobs", **server.variables())
        assert (done.returncode, done.stdout, done.stderr) == (ExitCode.OK, "", "there are no such jobs\n")

        echoed, failed = await submit(server, "echo", 1), await submit(server, "fail")
        job = await client.submit("gated", gate.path)
        done = await run_command("jobs", **server.variables())
        assert (done.returncode, done.stderr) == (ExitCode.OK, "")
        lines = [line.split() for line in done.stdout.splitlines()]
        assert lines[0] == ["ID", "AGENT", "STATUS", "CREATED", "EVENTS", "PARENT"]
        assert [line[:3] for line in lines[1:]] == [
            [echoed, "echo@1.0.0", "success"],
            [failed, "fail@1.0.0", "error"],
            [job.job_id, "gated@1.0.0", "running"],
        ]
        # A log line and the end; the end.
        assert [line[4] for line in lines[1:3]] == ["2", "1"]
        done = await run_command("jobs", "--json", **server.variables())
        entry = json.loads(done.stdout.splitlines()[0])
        assert (entry["type"], entry["agent"], entry["last_event_seq"]) == ("job", "echo@1.0.0", 2)
        assert ids_of(done.stdout) == [echoed, failed, job.job_id]

        # Another principal has none of these.
        done = await run_command("jobs", ARCP_URL=server.url, ARCP_TOKEN="other")
        assert done.stdout == ""


@pytest.mark.requirement("P6.19")
async def test_filters(tmp_path: Path, gate: Gate) -> None:
    async with open_server(tmp_path) as server, arcp_trio.open_client(server.url, token=TOKEN) as client:
        first, failed, last = (await submit(server, "echo"), await submit(server, "fail"), await submit(server, "echo"))
        running = (await client.submit("gated", gate.path)).job_id

        async def listed(*arguments: str) -> list[str]:
            done = await run_command("jobs", "--json", *arguments, **server.variables())
            assert done.returncode == ExitCode.OK, done.stderr
            return ids_of(done.stdout)

        assert await listed("--status", "error", "--status", "running") == [failed, running]
        assert await listed("--agent", "echo", "--status=success") == [first, last]
        assert await listed("--created-after", "1h") == [first, failed, last, running]
        assert await listed("--created-after", "2999-01-01T00:00:00Z") == []
        # The newest, whatever the protocol's order.
        assert await listed("--limit", "2") == [last, running]
        done = await run_command("jobs", "--limit", "1", **server.variables())
        assert done.stderr == "the newest 1 of 4 jobs; --limit shows more\n"


async def test_a_terminal_gets_ages_and_colours(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        job_id = await submit(server, "fail")
        async with open_terminal("jobs", COLUMNS="100", **server.variables()) as terminal:
            assert await terminal.ended() == ExitCode.OK
    assert "AGE" in terminal.shown
    assert "CREATED" not in terminal.shown
    assert job_id in terminal.shown
    assert "\x1b[31merror" in terminal.shown


async def test_a_job_is_one_line_of_a_narrow_terminal(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        job_id = await submit(server, "echo")
        async with open_terminal("jobs", COLUMNS="45", **server.variables()) as terminal:
            assert await terminal.ended() == ExitCode.OK
    lines = terminal.text.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"{job_id}  echo@1.0.0")
    assert max(map(len, lines)) <= 45


async def test_what_is_refused(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        done = await run_command("jobs", "--agent", "No Name", **server.variables())
        assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
        assert done.stderr.startswith("arcp-trio: refused: INVALID_REQUEST: $.payload.filter.agent: ")
    for arguments in (
        ("--status", "done"),
        ("--limit", "0"),
        ("--interval-seconds", "0"),
        ("--created-after", "yesterday"),
        ("--reconnect-seconds", "-1"),
    ):
        done = await run_command("jobs", *arguments)
        assert done.returncode == ExitCode.USAGE
        assert done.stderr.startswith(f"arcp-trio: {arguments[0]}: expected ")
        assert done.stderr.count("\n") == 1


# --- follow mode ------------------------------------------------------------------------------------


@pytest.mark.requirement("P6.19", "P7.17")
async def test_jobs_appear_and_end(tmp_path: Path, gate: Gate) -> None:
    async with open_server(tmp_path) as server, arcp_trio.open_client(server.url, token=TOKEN) as client:
        before = await client.submit("gated", gate.path)
        arguments = ("jobs", "--follow", "--json", "--interval-seconds", "0.5")
        async with open_command(*arguments, **server.variables()) as command:
            await command.until(before.job_id)
            # One that is over before it can be seen, and one that goes on.
            short = await submit(server, "echo")
            await command.until(short)
            later = await client.submit("gated", gate.path)
            await command.until(later.job_id)
            gate.open()
            while command.stdout.count('"success"') < 3:
                await command.changed.wait()
            command.interrupt()
            assert await command.ended() == ExitCode.INTERRUPTED
    assert command.stderr == ""
    lines = [(line["job_id"], line["status"]) for line in map(json.loads, command.stdout.splitlines())]
    assert lines[:3] == [(before.job_id, "running"), (short, "success"), (later.job_id, "running")]
    # Each end is told once.
    assert sorted(lines[3:]) == sorted([(before.job_id, "success"), (later.job_id, "success")])


async def test_jobs_are_followed_over_a_network_that_was_cut(tmp_path: Path, gate: Gate) -> None:
    async with open_server(tmp_path) as server, open_network(server.port) as network:
        async with arcp_trio.open_client(server.url, token=TOKEN) as client:
            job = await client.submit("gated", gate.path)
            arguments = ("jobs", "--follow", "--interval-seconds", "0.5", "--url", network.url)
            async with open_command(*arguments, ARCP_TOKEN=TOKEN) as command:
                await command.until(job.job_id)
                # Known to be subscribed to: it was asked for before anything that is listed behind it.
                await command.until(await submit(server, "echo"))
                network.cut()
                await command.until("retrying")
                gate.open()
                await job.wait_ended()
                await network.refused.wait()
                network.mend()
                while command.stdout.count("  success  ") < 2:
                    await command.changed.wait()
                await command.until("connection  back")
                command.interrupt()
                assert await command.ended() == ExitCode.INTERRUPTED


async def test_a_runtime_that_is_lost_ends_it(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        arguments = ("jobs", "--follow", "--reconnect-seconds", "0")
        async with open_command(*arguments, **server.variables()) as command:
            await command.until("no jobs")
            server.command.process.kill()
            assert await command.ended() == ExitCode.FAILED
            await command.until("the connection has ended")
    assert command.stderr.count("arcp-trio: ") == 1


# --- parts ------------------------------------------------------------------------------------------


def options(**changes: Any) -> JobsOptions:
    given: dict[str, Any] = {
        "statuses": (),
        "agent": None,
        "created_after": None,
        "limit": 1,
        "as_json": False,
        "follow": False,
        "interval_seconds": 2.0,
        "reconnect_seconds": 0.0,
    }
    return JobsOptions(**(given | changes))


def test_options_that_cannot_be_meant() -> None:
    for name, value in (("statuses", ("nope",)), ("limit", 10_001), ("interval_seconds", float("nan"))):
        with pytest.raises(CommandError) as caught:
            options(**{name: value})
        assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", "2026-05-13T11:58:30.000Z"),
        ("15m", "2026-05-13T11:45:00.000Z"),
        ("2h", "2026-05-13T10:00:00.000Z"),
        ("7d", "2026-05-06T12:00:00.000Z"),
        ("2026-05-13T19:42:13Z", "2026-05-13T19:42:13.000Z"),
        ("2026-05-13T21:42:13.500+02:00", "2026-05-13T19:42:13.500Z"),
    ],
)
def test_times_of_the_command_line(text: str, expected: str) -> None:
    assert read_created_after(text, datetime(2026, 5, 13, 12, tzinfo=UTC)) == expected


@pytest.mark.parametrize("text", ["", "5", "5 m", "-5m", "2026-05-13T19:42:13", "999999d", "tomorrow\x1b"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(CommandError, match="--created-after: expected an age") as caught:
        read_created_after(text, datetime(2026, 5, 13, 12, tzinfo=UTC))
    assert "\x1b" not in caught.value.message


def test_a_table_of_what_other_runtimes_say() -> None:
    hostile = arcp_trio.JobEntry(job_id="job\x1b[2J", agent="x" * 100, status="odd\n", created_at="once")
    child = arcp_trio.JobEntry(
        job_id="job_2", agent="a@1", status="running", parent_job_id="job_01M87VBHAJAE6HHGVXNAR80J96"
    )
    for ages in (True, False):
        table = JobTable([hostile, child], ages=ages)
        header, first, second = table.header().plain, table.row(hostile).plain, table.row(child).plain
        assert "\x1b" not in first
        assert "\n" not in first
        assert header.index("STATUS") == second.index("running")
        assert second.endswith("…NAR80J96" if ages else "job_01M87VBHAJAE6HHGVXNAR80J96")
    assert read_time("once") is None
    assert read_time("2026-05-13T19:42:13") == datetime(2026, 5, 13, 19, 42, 13, tzinfo=UTC)


def test_a_table_that_begins_without_jobs_has_room_for_those_that_come() -> None:
    entry = arcp_trio.JobEntry(job_id=f"job_{'1' * 26}", agent="count@1.0.0", status="running")
    table = JobTable((), ages=True, grows=True)
    row, header = table.row(entry).plain, table.header().plain
    assert header.index("STATUS") == row.index("running")
    # Within 80 columns.
    assert len(header) < 80
