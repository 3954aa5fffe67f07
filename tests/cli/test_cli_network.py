"""A network that breaks below a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.network import open_network
from cli.processes import TOKEN, Gate, open_command, open_server, open_terminal

from arcp_trio.cli.errors import ExitCode


@pytest.mark.requirement("P6.9", "P8.3")
async def test_submit_gets_to_the_end_over_a_network_that_was_cut(tmp_path: Path, gate: Gate) -> None:
    async with open_server(tmp_path) as server, open_network(server.port) as network:
        arguments = ("submit", "gated", json.dumps(gate.path), "--json", "--url", network.url)
        async with open_command(*arguments, ARCP_TOKEN=TOKEN) as command:
            await command.until('"before"')
            network.cut()
            await command.until('"retrying"')
            # The job goes on, and says more than a hundred things that nobody hears.
            gate.open()
            await network.refused.wait()
            network.mend()
            assert await command.ended() == ExitCode.OK
            await command.until('"terminal"')
    lines = [json.loads(line) for line in command.stdout.splitlines()]
    events = [line for line in lines if line["type"] == "event"]
    # Every event, once, in order.
    assert [event["event_seq"] for event in events] == list(range(1, 104))
    said = [event["body"]["message"] for event in events if event["kind"] == "log"]
    assert said == ["before", *(f"after {step}" for step in range(100))]
    assert (lines[-1]["type"], lines[-1]["status"], lines[-1]["result"]) == ("terminal", "success", "opened")

    states = [line for line in lines if line["type"] == "connection"]
    assert [states[0]["state"], states[1]["state"], states[-1]["state"]] == ["lost", "retrying", "resumed"]
    attempts = [state["attempt"] for state in states if state["state"] == "retrying"]
    assert attempts == list(range(1, len(attempts) + 1))
    assert len(attempts) >= 2
    assert all(state["delay_seconds"] > 0 for state in states if state["state"] == "retrying")
    # Nothing of it is for people.
    assert command.stderr == ""


async def test_lines_tell_of_the_connection(tmp_path: Path, gate: Gate) -> None:
    async with open_server(tmp_path) as server, open_network(server.port) as network:
        arguments = ("submit", "gated", json.dumps(gate.path), "--url", network.url)
        async with open_command(*arguments, ARCP_TOKEN=TOKEN) as command:
            await command.until("before")
            network.cut()
            await network.refused.wait()
            network.mend()
            await command.until("connection  back: nothing was missed")
            gate.open()
            assert await command.ended() == ExitCode.OK
            await command.until("opened")
    assert "connection  lost: it broke off; retrying in 0.1 s (attempt 1)" in command.stderr
    assert "connection  lost: cannot connect to " in command.stderr
    assert command.stdout == '"opened"\n'


async def test_a_terminal_shows_the_connection_on_the_bar(tmp_path: Path, gate: Gate) -> None:
    async with open_server(tmp_path) as server, open_network(server.port) as network:
        arguments = ("submit", "gated", json.dumps(gate.path), "--url", network.url)
        async with open_terminal(*arguments, ARCP_TOKEN=TOKEN, COLUMNS="120") as terminal:
            await terminal.until("before")
            network.cut()
            await terminal.until("offline, attempt 3 in ")
            network.mend()
            await terminal.until("back: nothing was missed")
            gate.open()
            assert await terminal.ended() == ExitCode.OK
    assert "retrying in 0.1 s (attempt 1)" in terminal.text
    # On the bar alone.
    assert "(attempt 3)" not in terminal.text
    assert "3/3 steps" in terminal.text
    assert "✓ success" in terminal.text


async def test_control_c_while_the_network_is_away(tmp_path: Path) -> None:
    async with open_server(tmp_path) as server, open_network(server.port) as network:
        async with open_command("watch", "x", "--url", network.url, ARCP_TOKEN=TOKEN) as command:
            assert await command.ended() == ExitCode.FAILED
        async with open_command("submit", "gate", "--url", network.url, ARCP_TOKEN=TOKEN) as command:
            await command.until("waiting")
            network.cut()
            await command.until("retrying")
            command.interrupt()
            # It is asked for behind the next connection.
            await command.until("cancelling the job")
            network.mend()
            assert await command.ended() == ExitCode.INTERRUPTED
            await command.until("CANCELLED")
        assert "cancelled after" in command.stderr
