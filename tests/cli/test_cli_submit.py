from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import pytest
import trio
from cli.processes import (
    SECONDS,
    Gate,
    check_no_token,
    environment,
    open_command,
    open_server,
    open_terminal,
    run_command,
)

from arcp_trio.cli.errors import CommandError, ExitCode
from arcp_trio.cli.results import check_output
from arcp_trio.cli.submit import ANSWER_SECONDS, read_input, read_lease

# --- what comes out ---------------------------------------------------------------------------------


async def test_the_result_goes_to_stdout_and_the_rest_to_stderr(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        done = await server.submit("echo", '{"a": [1, "ü"]}')
    assert done.returncode == ExitCode.OK
    assert done.stdout == '{"a":[1,"ü"]}\n'
    lines = [line.split(maxsplit=1) for line in done.stderr.splitlines()]
    assert [label for label, _ in lines] == ["accepted", "info", "ended"]
    assert lines[1][1] == 'echoing {"size":1}'
    assert lines[2][1].startswith("success after ")


async def test_input_comes_from_stdin(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        done = await server.submit("echo", "-", stdin=b'"from stdin"')
        assert done.stdout == '"from stdin"\n'
        done = await server.submit("echo", "-5")
        assert done.stdout == "-5\n"


async def test_each_line_of_json_is_an_event_and_the_last_one_the_end(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        done = await server.submit("echo", "[1]", "--json")
    event, terminal = map(json.loads, done.stdout.splitlines())
    assert event["type"] == "event"
    assert (event["kind"], event["body"]["message"], event["event_seq"]) == ("log", "echoing", 1)
    assert terminal == {
        "type": "terminal",
        "job_id": event["job_id"],
        "agent": "echo@1.0.0",
        "status": "success",
        "result": [1],
    }
    assert done.stderr == ""
    assert done.returncode == ExitCode.OK


async def test_no_event_is_lost_to_a_reader_that_is_busy(tmp_path: Path) -> None:
    count = 5_000
    async with open_server(tmp_path) as server:
        done = await server.submit("steps", str(count), "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    steps = [line["body"]["current"] for line in lines if line.get("kind") == "progress"]
    assert steps == list(range(1, count + 1))


@pytest.mark.requirement("P7.9")
async def test_a_job_that_fails(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        done = await server.submit("fail")
        assert done.returncode == ExitCode.FAILED
        assert done.stdout == ""
        assert "error after" in done.stderr
        assert "INTERNAL_ERROR: " in done.stderr

        done = await server.submit("fail", "--json")
        assert done.returncode == ExitCode.FAILED
        terminal = json.loads(done.stdout)
        assert (terminal["type"], terminal["status"]) == ("terminal", "error")
        assert terminal["error"]["code"] == "INTERNAL_ERROR"
        assert terminal["error"]["retryable"] is True


@pytest.mark.requirement("P7.10")
async def test_a_job_that_runs_too_long(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        done = await server.submit("gate", "--max-runtime-sec", "0.05")
    assert done.returncode == ExitCode.FAILED
    assert "timed_out after" in done.stderr
    assert "TIMEOUT: " in done.stderr


@pytest.mark.requirement("P9.7", "P9.4", "B01")
async def test_a_job_with_a_budget(tmp_path: Path) -> None:
    asked = ("spender", "9", "--lease", "tool.call=sea*", "--budget", "USD:0.20", "--budget", "EUR:1")
    async with open_server(tmp_path) as server:
        done = await server.submit(*asked)
        assert (done.returncode, done.stdout) == (ExitCode.OK, "2\n"), done.stderr
        lines = [re.sub(" +", " ", line) for line in done.stderr.splitlines()]
        assert lines[1:5] == [
            "metric cost.search = 0.1 USD",
            "metric cost.budget.remaining = 0.1 USD",
            "metric cost.search = 0.1 USD",
            "metric cost.budget.remaining = 0 USD",
        ]
        assert "BUDGET_EXHAUSTED" in lines[5]
        assert lines[6] == "warn out of money"

        done = await server.submit(*asked, "--json")
        bodies = [json.loads(line).get("body", {}) for line in done.stdout.splitlines()]
        assert [body["value"] for body in bodies if body.get("name") == "cost.budget.remaining"] == [0.1, 0]

        async with open_terminal("submit", *asked, COLUMNS="120", **server.variables()) as terminal:
            assert await terminal.ended() == ExitCode.OK
        assert "▱▱▱▱▱ 0 of 0.20 USD, ▰▰▰▰▰ 1 of 1 EUR left" in terminal.text

        # It may do nothing that it was not given.
        done = await server.submit("spender", "9", "--budget", "USD:0.20")
        assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
        assert "PERMISSION_DENIED" in done.stderr
        done = await server.submit("spender", "9", "--budget", "USD")
        assert (done.returncode, done.stdout) == (ExitCode.FAILED, "")
        assert 'refused: INVALID_REQUEST: $.payload.lease_request."cost.budget"[0]' in done.stderr
        done = await server.submit("spender", "9", "--lease", "tool.call")
        assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
        assert "--lease: expected NAMESPACE=PATTERN, got 'tool.call'" in done.stderr


def test_the_lease_that_is_asked_for() -> None:
    assert read_lease((), ()) is None
    lease = read_lease(("a=1", "b=x=y", "a=2", "cost.budget=USD:1"), ("EUR:2",))
    assert lease == {"a": ["1", "2"], "b": ["x=y"], "cost.budget": ["USD:1", "EUR:2"]}
    for wrong in ("", "a", "a=", "=1"):
        with pytest.raises(CommandError, match="NAMESPACE=PATTERN"):
            read_lease((wrong,), ())


@pytest.mark.requirement("P8.5")
async def test_streamed_results(tmp_path: Path) -> None:
    target = tmp_path / "result"
    async with open_server(tmp_path) as server:
        done = await server.submit("text")
        assert done.stdout == "first line\nsecond"

        done = await server.submit("binary", "2", "--output", str(target))
        assert done.stdout == ""
        assert target.read_bytes() == bytes(range(256)) * 4096 * 2

        done = await server.submit("binary", "1", "--json")
        terminal = json.loads(done.stdout.splitlines()[-1])
        assert b64decode(terminal["result_base64"]) == bytes(range(256)) * 4096

        # Past ClientLimits.result_memory_bytes, where it comes as a file.
        done = await server.submit("binary", "17", "--output", str(target), "--json")
        terminal = json.loads(done.stdout.splitlines()[-1])
        assert (terminal["output"], terminal["size"]) == (str(target), 17 * 2**20)
        assert target.read_bytes() == bytes(range(256)) * 4096 * 17

        done = await server.submit("echo", '{"a": 1}', "--output", str(target))
        assert target.read_text() == '{"a":1}\n'


async def test_a_large_result_leaves_no_file_behind(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    async with open_server(tmp_path) as server:
        done = await server.submit("binary", "17", "--json", TMPDIR=str(spool))
    assert json.loads(done.stdout.splitlines()[-1])["size"] == 17 * 2**20
    assert list(spool.iterdir()) == []


@pytest.mark.requirement("P5.4")
async def test_what_an_agent_says_does_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        done = await server.submit("hostile")
    assert "info        \\x1b[2Jgone\\nforged" in done.stderr
    assert "\x1b" not in done.stderr


async def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        reader, writer = os.pipe()
        os.close(reader)
        with trio.fail_after(SECONDS):
            done = await trio.run_process(
                [sys.executable, "-m", "arcp_trio", "submit", "echo", "1"],
                stdout=writer,
                capture_stderr=True,
                check=False,
                env=environment(**server.variables()),
            )
        os.close(writer)
    assert done.returncode == ExitCode.FAILED
    assert b"Traceback" not in done.stderr
    assert b"BrokenPipe" not in done.stderr


# --- a terminal -------------------------------------------------------------------------------------


async def _submit_on_a_terminal(*arguments: str, **variables: str) -> tuple[int, str]:
    async with open_terminal("submit", *arguments, **variables) as terminal:
        return await terminal.ended(), terminal.shown


async def test_a_terminal_gets_a_bar_and_a_readable_result(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        code, shown = await _submit_on_a_terminal("steps", "5", COLUMNS="100", **server.variables())
        assert code == ExitCode.OK
        assert "5/5 steps" in shown
        assert "━" in shown
        assert "✓ success" in shown
        assert "\x1b[32m" in shown
        assert "null" in shown.splitlines()[-1]

        code, shown = await _submit_on_a_terminal("echo", '{"a":1}', NO_COLOR="1", **server.variables())
        # Bold is no colour.
        assert "\x1b[32m" not in shown
        assert '{\r\n  "a": 1\r\n}' in re.sub(r"\x1b\[[0-9;]*m", "", shown)

        code, shown = await _submit_on_a_terminal("steps", "3", COLUMNS="30", **server.variables())
        assert code == ExitCode.OK
        assert "✓ success" in shown


async def test_bytes_are_not_thrown_at_a_terminal(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        code, shown = await _submit_on_a_terminal("binary", "1", **server.variables())
    assert code == ExitCode.FAILED
    assert "--output FILE" in shown
    assert "\x00" not in shown


# --- control-C --------------------------------------------------------------------------------------


@pytest.mark.requirement("P7.13")
async def test_control_c_cancels_the_job(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server, open_command("submit", "gate", **server.variables()) as command:
        await command.until("waiting")
        command.interrupt()
        assert await command.ended() == ExitCode.INTERRUPTED == 130
        await command.until("CANCELLED")
        assert "cancelled after" in command.stderr
        assert command.stdout == ""
    assert "Traceback" not in command.stderr


async def test_control_c_with_json(tmp_path: Path) -> None:
    async with (
        open_server(tmp_path) as server,
        open_command("submit", "gate", "--json", **server.variables()) as command,
    ):
        await command.until("waiting")
        command.interrupt()
        assert await command.ended() == ExitCode.INTERRUPTED
        await command.until('"terminal"')
    terminal = json.loads(command.stdout.splitlines()[-1])
    assert (terminal["status"], terminal["error"]["code"]) == ("cancelled", "CANCELLED")


async def test_the_second_control_c_leaves_at_once(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server, open_command("submit", "stuck", **server.variables()) as command:
        await command.until("waiting")
        command.interrupt()
        await command.until("control-C again leaves at once")
        command.interrupt()
        assert await command.ended() == ExitCode.INTERRUPTED
    assert "ended" not in command.stderr
    assert "Traceback" not in command.stderr


async def test_control_c_while_connecting(tmp_path: Path) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with listeners[0], open_command("submit", "echo", "--url", f"ws://127.0.0.1:{port}/") as command:
        # It has connected, and waits for an answer that never comes.
        stream = await listeners[0].accept()
        await stream.receive_some()
        command.interrupt()
        assert await command.ended() == ExitCode.INTERRUPTED
        await stream.aclose()
    assert command.stderr == ""


# --- control-C at a terminal --------------------------------------------------------------------------

_QUESTION = "cancel the job?"


async def test_control_c_at_a_terminal_asks_and_yes_cancels(tmp_path: Path) -> None:
    async with (
        open_server(tmp_path) as server,
        open_terminal("submit", "gate", COLUMNS="120", **server.variables()) as terminal,
    ):
        await terminal.until("waiting")
        await terminal.press("\x03")
        await terminal.until(_QUESTION)
        assert "cancelling" not in terminal.text
        await terminal.press("y\r")
        assert await terminal.ended() == ExitCode.INTERRUPTED
    assert "cancelling the job" in terminal.text
    assert "cancelled after" in terminal.text
    assert terminal.text.count(_QUESTION) == 1


@pytest.mark.parametrize("answer", ["n\r", "\r", "\x04", "perhaps\r", "\x03"])
async def test_any_other_answer_leaves_the_job_running(tmp_path: Path, gate: Gate, answer: str) -> None:
    """No, nothing, the end of the input, nonsense; a second control-C does not wait for an answer either."""
    async with open_server(tmp_path) as server:
        arguments = ("submit", "gated", json.dumps(gate.path))
        async with open_terminal(*arguments, COLUMNS="120", **server.variables()) as terminal:
            await terminal.until("before")
            await terminal.press("\x03")
            await terminal.until(_QUESTION)
            await terminal.press(answer)
            assert await terminal.ended() == ExitCode.INTERRUPTED
        assert "cancelling" not in terminal.text
        found = re.search(r"the job goes on: (arcp-trio watch (job_\w+))\r\n", terminal.text)
        assert found is not None
        gate.open()
        done = await run_command("watch", found[2], **server.variables())
        assert (done.returncode, done.stdout) == (ExitCode.OK, '"opened"\n')


async def test_what_was_typed_before_the_question_answers_nothing(tmp_path: Path) -> None:
    async with (
        open_server(tmp_path) as server,
        open_terminal("submit", "gate", **server.variables()) as terminal,
    ):
        await terminal.until("waiting")
        await terminal.press("y\r")
        await terminal.press("\x03")
        await terminal.until(_QUESTION)
        await terminal.press("n\r")
        await terminal.until("the job goes on")
        assert await terminal.ended() == ExitCode.INTERRUPTED


async def test_a_job_that_ends_meanwhile_takes_the_question_back(tmp_path: Path, gate: Gate) -> None:
    async with open_server(tmp_path) as server:
        arguments = ("submit", "gated", json.dumps(gate.path))
        async with open_terminal(*arguments, COLUMNS="120", **server.variables()) as terminal:
            await terminal.until("before")
            await terminal.press("\x03")
            await terminal.until(_QUESTION)
            gate.open()
            # Nothing cancelled it, and nobody left it.
            assert await terminal.ended() == ExitCode.OK
    _, _, behind = terminal.text.partition(_QUESTION)
    # What came during the question is shown below it, not into it.
    line, _, below = behind.partition("\r\n")
    assert line == f" If not now, nobody can later. [y/N, no in {ANSWER_SECONDS:g} s] "
    for text in ("after 0", "after 99", "✓ success"):
        assert text in below


async def test_lines_of_json_are_for_programs_which_are_not_asked(tmp_path: Path) -> None:
    async with (
        open_server(tmp_path) as server,
        open_terminal("submit", "gate", "--json", **server.variables()) as terminal,
    ):
        await terminal.until("waiting")
        await terminal.press("\x03")
        assert await terminal.ended() == ExitCode.INTERRUPTED
    assert _QUESTION not in terminal.text
    assert '"CANCELLED"' in terminal.text


# --- what cannot be done ----------------------------------------------------------------------------


async def test_refusals_are_one_line(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        done = await server.submit("nobody")
        assert done.returncode == ExitCode.FAILED
        assert done.stderr.startswith("arcp-trio: refused: AGENT_NOT_AVAILABLE: ")
        assert "there are: binary, boss, echo, fail" in done.stderr
        assert done.stderr.count("\n") == 1

        done = await server.submit("echo", "--max-runtime-sec=-1")
        assert done.returncode == ExitCode.FAILED
        assert done.stderr.startswith("arcp-trio: refused: INVALID_REQUEST: ")


@pytest.mark.requirement("P6.1", "P14.2")
async def test_a_token_that_is_refused_or_missing(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server:
        done = await run_command("submit", "echo", ARCP_URL=server.url, ARCP_TOKEN="canary-that-is-wrong")
        assert done.returncode == ExitCode.FAILED
        assert done.stderr == "arcp-trio: UNAUTHENTICATED: the token was refused (is the token right?)\n"
        done = await run_command("submit", "echo", ARCP_URL=server.url)
        assert "ARCP_TOKEN" in done.stderr


async def test_a_runtime_that_is_lost(tmp_path: Path) -> None:
    async with (
        open_server(tmp_path) as server,
        open_command("submit", "gate", "--reconnect-seconds", "1", **server.variables()) as command,
    ):
        await command.until("waiting")
        server.command.process.kill()
        assert await command.ended() == ExitCode.FAILED
        await command.until("may still run")
    assert "the session was not resumed within 1 seconds" in command.stderr
    assert "Traceback" not in command.stderr


async def test_a_runtime_that_is_lost_and_nobody_tries_again(tmp_path: Path) -> None:
    async with (
        open_server(tmp_path) as server,
        open_command("submit", "gate", "--reconnect-seconds", "0", **server.variables()) as command,
    ):
        await command.until("waiting")
        server.command.process.kill()
        assert await command.ended() == ExitCode.FAILED
        await command.until("may still run")
    assert "retrying" not in command.stderr


async def _cannot_connect(url: str) -> subprocess.CompletedProcess[str]:
    done = await run_command("submit", "echo", "--url", url, "--token", "canary")
    assert done.stdout == ""
    assert done.stderr.startswith("arcp-trio: ")
    assert done.stderr.count("\n") == 1
    return done


async def test_nobody_is_there() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    done = await _cannot_connect(f"ws://127.0.0.1:{port}/arcp")
    assert done.returncode == ExitCode.FAILED
    assert "Connection refused" in done.stderr


@pytest.mark.requirement("P14.1", "P14.2")
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/arcp", "ws:///arcp", "ws://[::1/", "ws://x:99999/", "ws://me:canary@127.0.0.1/"]
)
async def test_a_url_that_is_none(url: str) -> None:
    done = await _cannot_connect(url)
    assert done.returncode == ExitCode.USAGE
    assert "--url: " in done.stderr


@pytest.mark.requirement("P14.1")
async def test_no_token_goes_over_a_network_without_encryption() -> None:
    done = await _cannot_connect("ws://example.invalid/arcp")
    assert done.returncode == ExitCode.USAGE
    assert "--allow-plaintext" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "INPUT is not JSON"),
        ("hello", "a string needs its quotes"),
        ("", "INPUT is not JSON"),
        ("NaN", "INPUT is not JSON"),
        ("--tokn=canary", "unknown option: --tokn$"),
    ],
)
def test_input_that_is_none(text: str, message: str) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        read_input(text)
    assert caught.value.exit_code == ExitCode.USAGE
    check_no_token(caught.value.message)


async def test_input_that_is_too_large_for_a_frame() -> None:
    done = await run_command("submit", "echo", "-", stdin=b'"' + b"x" * 1_000_000 + b'"')
    assert done.returncode == ExitCode.USAGE
    assert "larger than 1,000,000 bytes" in done.stderr


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    check_output(tmp_path / "new")
    for path in (tmp_path, tmp_path / "nowhere" / "file"):
        with pytest.raises(CommandError) as caught:
            check_output(path)
        assert caught.value.exit_code == ExitCode.USAGE
