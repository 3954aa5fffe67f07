"""A job that delegates, as ``submit``, ``watch`` and ``jobs`` show it: with the lines of those below it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import trio
from cli.played import open_played_runtime
from cli.processes import TOKEN, Gate, open_command, open_server, open_terminal, run_command

import arcp_trio
from arcp_trio.cli.errors import ExitCode
from arcp_trio.cli.text import describe_event
from arcp_trio.client.events import Event

LEASE = {"agent.delegate": ["gated", "fail"]}
GRANTS = [f"--lease=agent.delegate={name}" for name in LEASE["agent.delegate"]]


def check_lines(lines: list[str]) -> None:
    """Check what was printed of a family, but for its first and its last line."""
    labels = [line.split()[0] for line in lines]
    assert labels[:2] == ["info", "delegate"]
    assert sorted(line.partition(" as ")[0] for line in lines if line.startswith("delegate")) == [
        "delegate    fail@1.0.0",
        "delegate    gated@1.0.0",
    ]
    (failed,) = [line for line in lines if "[fail " in line]
    assert re.fullmatch(r"ended       \[fail ….{8}\] error: INTERNAL_ERROR: .*", failed)
    of_gated = [re.sub(r" ….{8}\]", "]", line) for line in lines if "[gated " in line]
    assert of_gated[:2] == ["progress    [gated] 1/3 steps", "info        [gated] before"]
    assert of_gated[-2:] == ["info        [gated] after 99", "ended       [gated] success"]


@pytest.mark.requirement("P10.1")
async def test_the_lines_of_a_family(tmp_path: Path, gate: Gate) -> None:
    gate.open()
    async with open_server(tmp_path) as server:
        done = await server.submit("boss", json.dumps(gate.path), *GRANTS)
        assert (done.returncode, done.stdout) == (ExitCode.OK, '"opened"\n')
        lines = done.stderr.splitlines()
        check_lines([line for line in lines[1:-1] if "3/3" not in line])
        assert lines[-1].startswith("ended       success after ")
        job_id = lines[0].rpartition(" ")[2]

        # Who comes later sees the same.
        done = await run_command("watch", job_id, **server.variables())
        assert (done.returncode, done.stdout) == (ExitCode.OK, '"opened"\n')
        lines = done.stderr.splitlines()
        check_lines([line for line in lines[1:-1] if "3/3" not in line])
        assert lines[-1] == "ended       success"

        done = await run_command("jobs", **server.variables())
        rows = [line.split() for line in done.stdout.splitlines()]
        assert rows[0][-1] == "PARENT"
        parents = {row[1]: row[-1] for row in rows[1:]}
        assert parents["gated@1.0.0"] == parents["fail@1.0.0"]
        assert job_id.endswith(parents["gated@1.0.0"].lstrip("…"))


@pytest.mark.requirement("P10.1")
async def test_each_line_of_json_names_its_job(tmp_path: Path, gate: Gate) -> None:
    gate.open()
    async with open_server(tmp_path) as server:
        done = await server.submit("boss", json.dumps(gate.path), "--json", *GRANTS)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    terminal = lines[-1]
    assert (terminal["type"], terminal["agent"], terminal["result"]) == ("terminal", "boss@1.0.0", "opened")
    ended = {line["agent"]: line for line in lines if line["type"] == "child_ended"}
    assert {agent: line["status"] for agent, line in ended.items()} == {
        "gated@1.0.0": "success",
        "fail@1.0.0": "error",
    }
    assert ended["fail@1.0.0"]["error"]["code"] == "INTERNAL_ERROR"
    assert {line["parent_job_id"] for line in ended.values()} == {terminal["job_id"]}
    told = [line["body"]["child_job_id"] for line in lines if line.get("kind") == "delegate"]
    assert sorted(told) == sorted(line["job_id"] for line in ended.values())
    spoken = {line["job_id"] for line in lines if line["type"] == "event"}
    assert spoken == {terminal["job_id"], ended["gated@1.0.0"]["job_id"]}
    # Each number of the session once: nothing is shown twice or left out.
    numbers = sorted(line["event_seq"] for line in lines if line["type"] == "event")
    assert len(set(numbers)) == len(numbers) == 106


@pytest.mark.requirement("P10.1")
async def test_a_family_is_watched_while_it_runs(tmp_path: Path, gate: Gate) -> None:
    async with open_server(tmp_path) as server, arcp_trio.open_client(server.url, token=TOKEN) as client:
        job = await client.submit("boss", gate.path, lease_request=LEASE)
        async with open_command("watch", job.job_id, **server.variables()) as command:
            await command.until("] before")
            gate.open()
            assert await command.ended() == ExitCode.OK
        check_lines([line for line in command.stderr.splitlines()[1:-1] if "3/3" not in line])


@pytest.mark.requirement("P10.1")
async def test_a_child_has_a_bar_while_it_runs(tmp_path: Path, gate: Gate) -> None:
    async with open_server(tmp_path) as server:
        variables = server.variables()
        async with open_terminal("submit", "boss", json.dumps(gate.path), *GRANTS, **variables) as terminal:
            await terminal.until("1/3 steps")
            await terminal.until("before")
            gate.open()
            await terminal.until("success after")
            assert await terminal.ended() == ExitCode.OK
        assert re.search(r"gated ….{8} ended +success", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.text))


async def test_a_child_that_no_runtime_knows_is_a_line_and_no_more() -> None:
    """Several implementations tell of delegations that they do not run (interop.md, section 3.16)."""

    def submitted(frame: dict[str, Any]) -> list[dict[str, Any]]:
        accepted = {"job_id": "job_1", "agent": "a@1", "request_id": frame["id"]}
        body = {"child_job_id": "job_2", "agent": "b", "task": "guess"}
        return [
            {"type": "job.accepted", "job_id": "job_1", "payload": accepted, "correlation_id": frame["id"]},
            {"type": "job.event", "job_id": "job_1", "event_seq": 1, "payload": {"kind": "delegate", "body": body}},
            {"type": "job.result", "job_id": "job_1", "event_seq": 2, "payload": {"final_status": "success"}},
        ]

    def refuse(frame: dict[str, Any]) -> list[dict[str, Any]]:
        refusal = {"code": "JOB_NOT_FOUND", "message": "no such job", "request_id": frame["id"]}
        return [{"type": "session.error", "payload": refusal, "correlation_id": frame["id"]}]

    with trio.fail_after(60):
        async with open_played_runtime({"job.submit": submitted, "job.subscribe": refuse}) as url:
            done = await run_command("submit", "a", ARCP_URL=url, ARCP_TOKEN=TOKEN)
    assert (done.returncode, done.stdout) == (ExitCode.OK, "null\n")
    labels = [line.split()[0] for line in done.stderr.splitlines()]
    assert labels == ["accepted", "delegate", "ended"]
    assert "b as job_2" in done.stderr


def test_a_delegation_in_one_line() -> None:
    def line(**body: Any) -> tuple[str, str]:
        return describe_event(Event(job_id="job_1", kind="delegate", body=body))

    assert line(agent="b@1", child_job_id=f"job_{'1' * 18}2345ABCD", input={"n": 1}) == (
        "delegate",
        'b@1 as …2345ABCD {"n":1}',
    )
    assert line(agent="b\x1b[2J", delegate_id="del_1") == ("delegate", "b\\x1b[2J")
