"""``arcp-trio serve --stdio``, as a client starts it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cli.processes import AGENTS, SECONDS, environment, run_command
from helpers import make_hello

import arcp_trio
from arcp_trio.cli.errors import ExitCode

pytestmark = pytest.mark.requirement("P4.2")

NOISY = """
import atexit, os
print("printed while it is imported")
atexit.register(print, "printed at the end")

@agents.register("noisy")
async def noisy(job, value):
    print("printed")
    os.system("echo from a child")
    return value

@agents.register("endless")
async def endless(job, value):
    while True:
        await job.log("info", "x" * 10_000)

@agents.register("whose")
async def whose(job, value):
    return job.principal
"""


@asynccontextmanager
async def open_served(folder: Path, *arguments: str, **options: Any) -> AsyncGenerator[arcp_trio.Client, None]:
    (folder / "myagents.py").write_text(AGENTS + NOISY)
    command = [sys.executable, "-m", "arcp_trio", "serve", "myagents:agents", "--stdio", *arguments]
    with (folder / "stderr").open("wb") as stderr, trio.fail_after(SECONDS):
        async with arcp_trio.open_process_client(
            command, cwd=folder, env=environment(), stderr=stderr, **options
        ) as client:
            yield client


@pytest.mark.requirement("T06")
async def test_a_client_starts_it_and_it_ends_with_its_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_served(tmp_path) as client:
        assert await (await client.submit("noisy", {"n": 1})).result() == {"n": 1}
        job = await client.submit("gate")
        async for _ in job.events():
            break
        assert (await job.cancel()).applied
        await client.submit("gate")
    # Not a word of how it ended: exit status 0.
    assert caplog.text == ""
    shown = (tmp_path / "stderr").read_text()
    for text in ("printed while it is imported", "for stdio; agents: binary@1.0.0", "printed", "from a child"):
        assert text in shown
    assert shown.endswith("info: shut down\nprinted at the end\n")
    assert "Traceback" not in shown


async def test_nothing_but_the_protocol_is_on_its_stdout(tmp_path: Path) -> None:
    """Up to its last byte; and the end of stdin ends it, with exit status 0."""
    (tmp_path / "myagents.py").write_text(AGENTS + NOISY)
    payload = {"agent": "noisy", "input": 5}
    frames = [make_hello(), {"arcp": "1.1", "id": "msg_1", "type": "job.submit", "payload": payload}]
    stdin = b"".join(json.dumps(frame).encode() + b"\n" for frame in frames)
    done = await run_command("serve", "myagents:agents", "--stdio", cwd=tmp_path, stdin=stdin)
    types = [json.loads(line)["type"] for line in done.stdout.splitlines()]
    assert types[:2] == ["session.welcome", "job.accepted"]
    assert types[2] in ("job.result", "job.error")
    assert len(types) == 3
    assert done.returncode == ExitCode.OK


@pytest.mark.requirement("P7.8")
async def test_a_client_that_dies_ends_it_although_nobody_reads_any_more(tmp_path: Path) -> None:
    (tmp_path / "myagents.py").write_text(AGENTS + NOISY)
    frames = [make_hello(), {"arcp": "1.1", "id": "msg_1", "type": "job.submit", "payload": {"agent": "endless"}}]
    with (tmp_path / "stderr").open("wb") as stderr, trio.fail_after(SECONDS):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "arcp_trio", "serve", "myagents:agents", "--stdio"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=tmp_path,
            env=environment(),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(b"".join(json.dumps(frame).encode() + b"\n" for frame in frames))
        received = b""
        while b"job.event" not in received:
            received += await process.stdout.receive_some()
        # It is in the middle of a write, most likely.
        await process.stdout.aclose()
        await process.stdin.aclose()
        assert await process.wait() == ExitCode.OK
    assert "Traceback" not in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_running_jobs_and_then_the_process(tmp_path: Path, number: signal.Signals) -> None:
    async with open_served(tmp_path) as client:
        job = await client.submit("gate")
        async for _ in job.events():
            break
        pid = int(repr(client).partition("process ")[2].partition(")")[0])
        os.kill(pid, number)
        with pytest.raises(arcp_trio.InternalError, match="shut"):
            await job.result()
        with pytest.raises(arcp_trio.ConnectionLostError, match="ended with exit status 0"):
            await client.submit("echo")


async def test_an_agent_that_is_stuck_in_a_thread_is_abandoned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_served(tmp_path, "--shutdown-seconds", "0.5") as client:
        job = await client.submit("stuck")
        async for _ in job.events():
            break
    assert "ended with exit status 70" in caplog.text
    assert f"agent stuck@1.0.0 of {job.job_id} did not stop: abandoned" in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize(("arguments", "name"), [((), "stdio"), (("--principal", "me"), "me")])
async def test_whose_session_it_is(tmp_path: Path, arguments: tuple[str, ...], name: str) -> None:
    async with open_served(tmp_path, *arguments, token="anything") as client:
        assert await (await client.submit("whose")).result() == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stdio", "--host", "127.0.0.1"), "--host is for a port"),
        (("--stdio", "--port", "7777"), "--port is for a port"),
        (("--stdio", "--token", "canary=me"), "--token is for a port"),
        (("--stdio", "--anonymous"), "--anonymous is for a port"),
        (("--stdio", "--allow-plaintext"), "--allow-plaintext is for a port"),
        (("--stdio", "--principal", " "), "--principal: expected a name"),
        (("--anonymous", "--principal", "me"), "--principal is for --stdio"),
        (("--stdio", "--shutdown-seconds", "-1"), "--shutdown-seconds: expected 0 or more"),
    ],
)
async def test_what_does_not_go_with_stdio(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "myagents.py").write_text(AGENTS)
    done = await run_command("serve", "myagents:agents", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


async def test_agents_that_are_not_there(tmp_path: Path) -> None:
    done = await run_command("serve", "no_such_module:agents", "--stdio", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert "no module is named 'no_such_module'" in done.stderr


async def test_one_pipe_for_stdout_and_stderr(tmp_path: Path) -> None:
    (tmp_path / "myagents.py").write_text(AGENTS)
    with trio.fail_after(SECONDS):
        done = await trio.run_process(
            [sys.executable, "-m", "arcp_trio", "serve", "myagents:agents", "--stdio"],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
            cwd=tmp_path,
            env=environment(),
        )
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == b"arcp-trio: --stdio: stdout and stderr are one: the log would stand between the frames\n"


# --- a client command that starts it ----------------------------------------------------------------


async def submit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "myagents.py").write_text(AGENTS + NOISY)
    serve = shlex.join([sys.executable, "-m", "arcp_trio", "serve", "myagents:agents", "--stdio"])
    return await run_command("submit", *arguments, "--command", serve, cwd=folder)


async def test_submit_starts_the_runtime(tmp_path: Path) -> None:
    done = await submit(tmp_path, "noisy", '{"n": [1, "two"]}')
    assert (done.returncode, json.loads(done.stdout)) == (ExitCode.OK, {"n": [1, "two"]})
    assert "from a child" in done.stderr
    done = await submit(tmp_path, "nobody")
    assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
    assert "AGENT_NOT_AVAILABLE" in done.stderr


@pytest.mark.requirement("P14.2")
@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("", ExitCode.USAGE, "--command: expected a program"),
        ("program 'canary", ExitCode.USAGE, "--command: No closing quotation"),
        ("/no/such/program canary", ExitCode.FAILED, "cannot start program: /no/such/program: No such file"),
        ("sh -c 'exit 3 # canary'", ExitCode.FAILED, "ended with exit status 3"),
    ],
)
async def test_a_command_that_starts_no_runtime(tmp_path: Path, command: str, code: ExitCode, message: str) -> None:
    done = await run_command("submit", "echo", "--command", command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
