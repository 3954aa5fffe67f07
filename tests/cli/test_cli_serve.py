from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from cli.processes import TOKEN, check_no_token, open_command, open_server, run_command

import arcp_trio
from arcp_trio.cli import demo_agents
from arcp_trio.cli.errors import CommandError, ExitCode
from arcp_trio.cli.serve import load_agents, make_verifier
from arcp_trio.wire.job_messages import JobError

# --- a server and its signals -----------------------------------------------------------------------


@pytest.mark.requirement("P7.8")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_running_jobs_and_then_the_server(tmp_path: Path, number: signal.Signals) -> None:
    async with open_server(tmp_path) as server, arcp_trio.open_client(server.url, token=TOKEN) as client:
        job = await client.submit("gate")
        async for _ in job.events():
            break
        server.command.process.send_signal(number)
        await job.wait_ended()
        assert isinstance(job.terminal, JobError)
        assert (job.terminal.code, job.terminal.final_status) == ("INTERNAL_ERROR", "error")
        assert await server.command.ended() == ExitCode.OK
    assert server.command.stdout == f"listening on {server.url}\n"
    assert "Traceback" not in server.command.stderr


async def test_a_server_at_rest_ends_at_once(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        server.command.process.send_signal(signal.SIGTERM)
        assert await server.command.ended() == ExitCode.OK


@pytest.mark.requirement("P7.8")
async def test_an_agent_that_is_stuck_in_a_thread_is_abandoned(tmp_path: Path) -> None:
    async with (
        open_server(tmp_path, "--shutdown-seconds", "0.5") as server,
        arcp_trio.open_client(server.url, token=TOKEN) as client,
    ):
        job = await client.submit("stuck")
        async for _ in job.events():
            break
        server.command.process.send_signal(signal.SIGTERM)
        await job.wait_ended()
        assert await server.command.ended() == ExitCode.ABANDONED == 70
    assert f"agent stuck@1.0.0 of {job.job_id} did not stop: abandoned" in server.command.stderr


async def test_further_signals_change_nothing(tmp_path: Path) -> None:
    async with (
        open_server(tmp_path, "--shutdown-seconds", "0.5") as server,
        arcp_trio.open_client(server.url, token=TOKEN) as client,
    ):
        job = await client.submit("stuck")
        async for _ in job.events():
            break
        server.command.interrupt()
        await server.command.until("shutting down")
        server.command.interrupt()
        await server.command.until("already shutting down")
        server.command.process.send_signal(signal.SIGTERM)
        assert await server.command.ended() == ExitCode.ABANDONED
    assert "Traceback" not in server.command.stderr


async def test_a_handful_of_signals_at_once_is_one(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        process = server.command.process
        for _ in range(10):
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
        assert await server.command.ended() == ExitCode.OK
    assert "Traceback" not in server.command.stderr


@pytest.mark.requirement("P7.9")
async def test_an_agents_traceback_is_in_the_log_alone(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        done = await server.submit("fail")
        await server.command.until("what only the log may know")
    assert done.returncode == ExitCode.FAILED
    assert "what only the log may know" not in done.stdout + done.stderr


async def test_the_demos_agents_can_be_served(tmp_path: Path) -> None:
    async with open_command(
        "serve", "arcp_trio.cli.demo_agents:agents", "--port", "0", "--anonymous", cwd=tmp_path
    ) as command:
        await command.until("agents: ")
        url = command.stdout.strip().removeprefix("listening on ")
        lease = ("--lease", f"fs.read={demo_agents.library_root()}/**")
        done = await run_command("submit", "count", *lease, "--url", url)
        assert done.returncode == ExitCode.OK
        assert '"files":' in done.stdout
        done = await run_command("submit", "count", "--url", url)
        assert done.returncode == ExitCode.FAILED
        assert "PERMISSION_DENIED" in done.stderr
        # No input of a client leads out of the library, or to an expression that never ends.
        done = await run_command("submit", "search", '{"word": "(a+)+$"}', "--url", url)
        assert done.returncode == ExitCode.FAILED
        assert "INVALID_REQUEST" in done.stderr


# --- what it refuses --------------------------------------------------------------------------------


async def _refuse_to_serve(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "myagents.py").write_text("import arcp_trio\nagents = arcp_trio.Agents()\n")
    done = await run_command("serve", "myagents:agents", *arguments, cwd=tmp_path, **variables)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done


@pytest.mark.requirement("P6.1")
async def test_nobody_to_let_in(tmp_path: Path) -> None:
    done = await _refuse_to_serve(tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert "--anonymous" in done.stderr


@pytest.mark.requirement("P14.1")
async def test_no_tokens_over_a_network_without_encryption(tmp_path: Path) -> None:
    done = await _refuse_to_serve(tmp_path, "--host", "0.0.0.0", "--port", "0", "--anonymous")
    assert done.returncode == ExitCode.USAGE
    assert "--allow-plaintext" in done.stderr


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0]:
        port = listeners[0].socket.getsockname()[1]
        done = await _refuse_to_serve(tmp_path, "--port", str(port), "--anonymous")
    assert done.returncode == ExitCode.FAILED
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.requirement("P14.2")
@pytest.mark.parametrize(
    "entries",
    [["canary"], ["=canary"], ["canary="], ["canary=me", "canary=you"]],
    ids=["no principal", "no token", "empty principal", "two principals"],
)
def test_a_refused_token_is_not_shown(entries: list[str]) -> None:
    with pytest.raises(CommandError) as caught:
        make_verifier(entries, {}, anonymous=False)
    assert caught.value.exit_code == ExitCode.USAGE
    check_no_token(str(caught.value), repr(caught.value))


@pytest.mark.requirement("P6.1")
async def test_tokens_of_the_command_line_and_of_the_environment() -> None:
    verifier = make_verifier(["a==first"], {"ARCP_TOKENS": "b=second, c=third,"}, anonymous=False)
    for token, name in {"a=": "first", "b": "second", "c": "third"}.items():
        principal = await verifier.verify(token)
        assert principal is not None
        assert principal.name == name
    assert await verifier.verify("d") is None


def test_tokens_and_everybody_do_not_go_together() -> None:
    with pytest.raises(CommandError, match="--anonymous"):
        make_verifier(["a=b"], {}, anonymous=True)
    assert isinstance(make_verifier([], {}, anonymous=True), arcp_trio.AnonymousAccess)


@pytest.mark.parametrize("option", ["--port=65536", "--shutdown-seconds=nan", "--shutdown-seconds=-1"])
async def test_an_option_out_of_its_range(tmp_path: Path, option: str) -> None:
    done = await _refuse_to_serve(tmp_path, "--anonymous", option)
    assert done.returncode == ExitCode.USAGE
    assert option.partition("=")[0] in done.stderr


# --- MODULE:AGENTS ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "code", "message"),
    [
        ("arcp_trio", ExitCode.USAGE, "expected MODULE:AGENTS"),
        (":agents", ExitCode.USAGE, "expected MODULE:AGENTS"),
        ("no_such_module_here:agents", ExitCode.USAGE, "no module is named 'no_such_module_here'"),
        ("arcp_trio.no_such_module:agents", ExitCode.USAGE, "no module is named 'arcp_trio.no_such_module'"),
        ("arcp_trio:no_such_name", ExitCode.USAGE, "arcp_trio has no 'no_such_name'"),
        ("arcp_trio:Agents", ExitCode.USAGE, "is no arcp_trio.Agents, but type"),
        ("cli_raises:agents", ExitCode.FAILED, "ZeroDivisionError"),
        ("cli_is_no_python:agents", ExitCode.FAILED, "SyntaxError"),
        ("cli_needs_another:agents", ExitCode.FAILED, "No module named 'no_such_module_there'"),
    ],
)
def test_a_reference_that_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, code: ExitCode, message: str
) -> None:
    (tmp_path / "cli_raises.py").write_text("1 / 0\n")
    (tmp_path / "cli_is_no_python.py").write_text("x = = 1\n")
    (tmp_path / "cli_needs_another.py").write_text("import no_such_module_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path[:])
    with pytest.raises(CommandError, match=message) as caught:
        load_agents(reference)
    assert caught.value.exit_code == code
    assert "\n" not in caught.value.message


def test_a_reference_that_leads_to_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", sys.path[:])
    agents = load_agents("arcp_trio.cli.demo_agents:agents")
    assert [entry.name for entry in agents.inventory().entries] == [
        "bundle",
        "count",
        "endless",
        "fail",
        "hash",
        "search",
    ]
