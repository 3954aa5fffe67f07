from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cli.played import open_played_runtime
from cli.processes import TOKEN, Gate, Server, open_command, open_server, open_terminal, run_command

import arcp_trio
from arcp_trio.cli.errors import ExitCode


@asynccontextmanager
async def open_job(folder: Path, agent: str, value: object = None) -> AsyncGenerator[tuple[Server, str], None]:
    """Open a server with a job that some other session has submitted."""
    async with open_server(folder) as server, arcp_trio.open_client(server.url, token=TOKEN) as client:
        job = await client.submit(agent, value)  # type: ignore[arg-type]
        yield server, job.job_id


@pytest.mark.requirement("P7.17", "P7.20")
async def test_a_job_is_watched_to_its_end(tmp_path: Path, gate: Gate) -> None:
    async with (
        open_job(tmp_path, "gated", gate.path) as (server, job_id),
        open_command("watch", job_id, **server.variables()) as command,
    ):
        # What was before, then what comes.
        await command.until("before")
        gate.open()
        assert await command.ended() == ExitCode.OK
        await command.until("opened")
    lines = command.stderr.splitlines()
    assert lines[0] == f"watching    gated@1.0.0 as {job_id}, running"
    assert lines[1:3] == ["progress    1/3 steps", "info        before"]
    assert "info        after 99" in lines
    assert lines[-1] == "ended       success"
    assert command.stdout == '"opened"\n'


async def test_each_line_of_json(tmp_path: Path, gate: Gate) -> None:
    gate.open()
    async with open_job(tmp_path, "gated", gate.path) as (server, job_id):
        done = await run_command("watch", job_id, "--json", **server.variables())
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (lines[0]["type"], lines[0]["job_id"], lines[0]["agent"]) == ("watching", job_id, "gated@1.0.0")
    assert [line["event_seq"] for line in lines[1:-1]] == list(range(1, 104))
    assert lines[-1] == {
        "type": "terminal",
        "job_id": job_id,
        "agent": "gated@1.0.0",
        "status": "success",
        "result": "opened",
    }
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")


async def test_a_job_that_has_ended_shows_its_history_and_its_end(tmp_path: Path) -> None:
    async with open_job(tmp_path, "fail") as (server, failed):
        async with arcp_trio.open_client(server.url, token=TOKEN) as client:
            job = await client.submit("echo", [1])
            await job.wait_ended()
        done = await run_command("watch", job.job_id, **server.variables())
        assert (done.returncode, done.stdout) == (ExitCode.OK, "[1]\n")
        labels = [line.split()[0] for line in done.stderr.splitlines()]
        assert labels == ["watching", "info", "ended"]

        done = await run_command("watch", job.job_id, "--no-history", **server.variables())
        assert (done.returncode, done.stdout) == (ExitCode.OK, "[1]\n")
        assert [line.split()[0] for line in done.stderr.splitlines()] == ["watching", "ended"]

        target = tmp_path / "result"
        done = await run_command("watch", job.job_id, "--output", str(target), **server.variables())
        assert (done.returncode, done.stdout, target.read_text()) == (ExitCode.OK, "", "[1]\n")

        done = await run_command("watch", failed, **server.variables())
        assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
        assert "ended       error: INTERNAL_ERROR: " in done.stderr


@pytest.mark.requirement("P7.19")
async def test_a_job_that_is_not_ones_own(tmp_path: Path) -> None:
    async with open_job(tmp_path, "gate") as (server, job_id):
        for unseen, token in ((job_id, "other"), ("job_nobody", TOKEN)):
            done = await run_command("watch", unseen, ARCP_URL=server.url, ARCP_TOKEN=token)
            assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
            assert done.stderr.startswith("arcp-trio: refused: JOB_NOT_FOUND: ")
            assert done.stderr.count("\n") == 1


async def test_control_c_leaves_the_job_alone(tmp_path: Path, gate: Gate) -> None:
    async with open_job(tmp_path, "gated", gate.path) as (server, job_id):
        for arguments in ((), ("--json",)):
            async with open_command("watch", job_id, *arguments, **server.variables()) as command:
                await command.until("before")
                command.interrupt()
                assert await command.ended() == ExitCode.INTERRUPTED
                await command.until("detached")
            assert f"the job goes on: arcp-trio watch {job_id}" in command.stderr
            assert "ended" not in command.stderr
        gate.open()
        done = await run_command("watch", job_id, **server.variables())
        assert (done.returncode, done.stdout) == (ExitCode.OK, '"opened"\n')


async def test_a_terminal_shows_a_bar_and_detaches(tmp_path: Path, gate: Gate) -> None:
    async with open_job(tmp_path, "gated", gate.path) as (server, job_id):
        async with open_terminal("watch", job_id, COLUMNS="120", **server.variables()) as terminal:
            await terminal.until("1/3 steps")
            await terminal.press("\x03")
            assert await terminal.ended() == ExitCode.INTERRUPTED
        assert "cancel the job?" not in terminal.text
        assert f"arcp-trio watch {job_id}" in terminal.text


async def test_a_result_that_began_before_it_was_watched(tmp_path: Path, gate: Gate) -> None:
    """Of a streamed result the chunks before the subscription are missing: that is no failure of the job."""
    async with open_job(tmp_path, "slow_text", gate.path) as (server, job_id):
        async with open_command("watch", job_id, "--no-history", **server.variables()) as command:
            await command.until("watching")
            gate.open()
            assert await command.ended() == ExitCode.OK
            await command.until("its result cannot be shown: ")
        assert command.stdout == ""
        assert "ended       success" in command.stderr
        # With its history it is whole.
        done = await run_command("watch", job_id, **server.variables())
        assert (done.returncode, done.stdout) == (ExitCode.OK, "first second")


def _budgeted(frame: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is said of a job that has a budget, and spends of it."""
    job_id = frame["payload"]["job_id"]
    subscribed = {
        "job_id": job_id,
        "request_id": frame["id"],
        "current_status": "running",
        "agent": "spender@1.0.0",
        "lease": {"cost.budget": ["USD:10.00", "nothing"]},
        "budget": {"USD": 5, "EUR": "1.50", "GBP": "much"},
        "truncated_before": 7,
    }
    answers: list[dict[str, Any]] = [{"type": "job.subscribed", "payload": subscribed}]
    for number, left in enumerate((4.5, 0.25), start=1):
        metric = {"name": "cost.budget.remaining", "value": left, "unit": "USD"}
        event = {"kind": "metric", "ts": "2026-05-13T19:42:13.000Z", "body": metric}
        answers.append({"type": "job.event", "job_id": job_id, "event_seq": number, "payload": event})
    result = {"job_id": job_id, "final_status": "success", "result": None}
    return [*answers, {"type": "job.result", "job_id": job_id, "event_seq": 3, "payload": result}]


async def test_what_is_left_of_a_budget() -> None:
    async with open_played_runtime({"job.subscribe": _budgeted}) as url:
        done = await run_command("watch", "job_1", "--url", url)
        assert done.returncode == ExitCode.OK, done.stderr
        assert done.stderr.splitlines() == [
            "watching    spender@1.0.0 as job_1, running, 5 USD, 1.50 EUR left",
            "-           its events before number 7 are kept no longer",
            "metric      cost.budget.remaining = 4.5 USD",
            "metric      cost.budget.remaining = 0.25 USD",
            "ended       success",
        ]
        done = await run_command("watch", "job_1", "--json", "--url", url)
        watching = json.loads(done.stdout.splitlines()[0])
        assert (watching["budget"], watching["truncated_before"]) == ({"USD": 5, "EUR": "1.50", "GBP": "much"}, 7)

        async with open_terminal("watch", "job_1", "--url", url, COLUMNS="120") as terminal:
            assert await terminal.ended() == ExitCode.OK
    # On the bar, not a line for each expense.
    assert "▰▱▱▱▱ 0.25 of 10.00 USD, 1.50 EUR left" in terminal.text
    assert "cost.budget.remaining" not in terminal.text


async def test_a_runtime_without_subscriptions() -> None:
    async with open_played_runtime({}, features=["list_jobs"]) as url:
        for arguments in (("watch", "job_1"), ("jobs", "--follow")):
            done = await run_command(*arguments, "--url", url)
            assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
            assert done.stderr.count("\n") == 1
            assert "subscribe" in done.stderr
