from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli.played import open_played_runtime
from cli.processes import TOKEN, open_server, run_command

import arcp_trio
from arcp_trio.cli.cancel import describe_outcome, describe_refused_cancel
from arcp_trio.cli.errors import ExitCode


def lax(answer: dict[str, Any]) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    """Return how a runtime answers that lets every session cancel every job: each cancel with ``answer``."""

    def reply(frame: dict[str, Any]) -> list[dict[str, Any]]:
        payload = {**answer, "request_id": frame["id"], "job_id": frame["payload"]["job_id"]}
        return [{"type": payload.pop("type"), "payload": payload}]

    return reply


@pytest.mark.requirement("P7.12")
async def test_another_session_than_the_submitters(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server, arcp_trio.open_client(server.url, token=TOKEN) as client:
        job = await client.submit("gate")
        done = await run_command("cancel", job.job_id, **server.variables())
        assert done.returncode == ExitCode.FAILED
        assert done.stdout == ""
        assert done.stderr.startswith("arcp-trio: refused: PERMISSION_DENIED: ")
        assert "section 7.4" in done.stderr
        assert "control-C" in done.stderr
        assert done.stderr.count("\n") == 1

        done = await run_command("cancel", job.job_id, "--json", **server.variables())
        assert done.returncode == ExitCode.FAILED
        answer = json.loads(done.stdout)
        assert (answer["job_id"], answer["applied"]) == (job.job_id, False)
        assert answer["error"]["code"] == "PERMISSION_DENIED"
        assert job.status == "running"

        done = await run_command("cancel", "job_nobody", **server.variables())
        assert done.returncode == ExitCode.FAILED
        assert "JOB_NOT_FOUND" in done.stderr


async def test_a_cancel_that_is_applied() -> None:
    async with open_played_runtime({"job.cancel": lax({"type": "job.cancelled"})}) as url:
        done = await run_command("cancel", "job_1", "--url", url)
        assert (done.returncode, done.stdout, done.stderr) == (ExitCode.OK, "cancelled job_1\n", "")
        done = await run_command("cancel", "job_1", "--url", url, "--json")
        assert json.loads(done.stdout) == {"job_id": "job_1", "applied": True, "status": "cancelled"}


@pytest.mark.requirement("P7.14")
async def test_a_cancel_that_is_too_late() -> None:
    answer = {"type": "x-arcp-trio.reply", "applied": False, "job_status": "success"}
    async with open_played_runtime({"job.cancel": lax(answer)}) as url:
        done = await run_command("cancel", "job_1", "--url", url)
        assert (done.returncode, done.stderr) == (ExitCode.FAILED, "")
        assert done.stdout == "too late: job_1 had ended as success\n"
        done = await run_command("cancel", "job_1", "--url", url, "--json")
        assert json.loads(done.stdout) == {"job_id": "job_1", "applied": False, "status": "success"}


def test_what_is_said_of_outcomes() -> None:
    outcome = arcp_trio.CancelOutcome
    assert describe_outcome("job_1", outcome(applied=True, status="cancelled")) == "cancelled job_1"
    assert describe_outcome("job_1", outcome(applied=False, status="error")) == "too late: job_1 had ended as error"
    assert "already ending" in describe_outcome("job_1", outcome(applied=False, status="running"))
    # Both come from the wire, or from a command line that was pasted.
    shown = describe_outcome("job\x1b[2J", outcome(applied=False, status="x\ny"))
    assert shown == "too late: job\\x1b[2J had ended as x\\ny"


def test_what_is_said_of_refusals() -> None:
    denied = describe_refused_cancel(arcp_trio.PermissionDeniedError("no"))
    assert denied.startswith("refused: PERMISSION_DENIED: no; ")
    assert "section 7.4" in denied
    assert describe_refused_cancel(arcp_trio.JobNotFoundError("gone")) == "refused: JOB_NOT_FOUND: gone"
    assert "unknown" in describe_refused_cancel(arcp_trio.ConnectionLostError("the connection has ended"))
