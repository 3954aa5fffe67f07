"""``--engine``: who serves and who connects with which library."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
from cli.processes import SECONDS, TOKEN, environment, open_server, run_command
from transport_pairs import ENGINES

from arcp_trio.cli.connect import Target
from arcp_trio.cli.errors import ExitCode


@pytest.mark.requirement("P4.1")
@pytest.mark.parametrize(("server", "client"), [ENGINES, ENGINES[::-1]])
async def test_each_talks_to_the_other(tmp_path: Path, server: str, client: str) -> None:
    async with open_server(tmp_path, "--engine", server) as served:
        arguments = ("submit", "echo", '"works"', "--engine", client, "--url", served.url)
        done = await run_command(*arguments, ARCP_TOKEN=TOKEN)
        assert (done.returncode, done.stdout) == (ExitCode.OK, '"works"\n')


@pytest.mark.parametrize(
    "command", [["jobs"], ["serve", "arcp_trio.cli.demo_agents:agents", "--port=0", "--anonymous"]]
)
async def test_one_that_is_not_installed(command: list[str]) -> None:
    code = (
        "import sys; from arcp_trio.transports import engines; engines._websockets_version = lambda: None; "
        "from arcp_trio.cli import main; main(sys.argv[1:])"
    )
    with trio.fail_after(SECONDS):
        done = await trio.run_process(
            [sys.executable, "-c", code, *command, "--engine", "websockets"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(),
        )
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, b"")
    said = done.stderr.decode()
    assert said.startswith("arcp-trio: --engine: ")
    assert "install arcp-trio[fast]" in said
    assert said.count("\n") == 1


async def test_one_that_there_is_none_of() -> None:
    done = await run_command("jobs", "--engine", "picows")
    assert done.returncode == ExitCode.USAGE
    assert "picows" in done.stderr
    assert "trio-websocket" in done.stderr


async def test_over_stdio_there_is_none() -> None:
    done = await run_command("serve", "arcp_trio.cli.demo_agents:agents", "--stdio", "--engine", "auto")
    assert done.returncode == ExitCode.USAGE
    assert "--engine is for a port" in done.stderr


def test_a_hint_names_the_one_that_was_asked_for() -> None:
    assert "--engine" not in Target(url="ws://h/").hint("jobs")
    assert Target(url="ws://h/", engine="trio-websocket").hint("jobs").endswith("--engine trio-websocket")
