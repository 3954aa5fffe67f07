"""What the views of one job leave out, and how their lines are broken."""

from __future__ import annotations

import io
import re

import pytest
import trio.testing
from rich.console import Console

from arcp_trio.cli.views import LiveView, PlainView
from arcp_trio.client.events import Event


def status(phase: str, message: str) -> Event:
    return Event(job_id="job_1", kind="status", body={"phase": phase, "message": message})


STORM = [
    status("reading", "first"),
    *(status("back_pressure", f"{number} events wait") for number in range(1, 50)),
    status("reading", "second"),
]


@pytest.mark.requirement("P6.17")
async def test_a_session_that_lags_again_and_again_is_told_of_once(capfd: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    for event in STORM:
        await view.event(event)
    assert capfd.readouterr().err.splitlines() == [
        "status      reading: first",
        "status      back_pressure: 1 events wait",
        "status      reading: second",
    ]


@pytest.mark.requirement("P6.17")
async def test_so_it_is_above_a_bar() -> None:
    written = io.StringIO()
    view = LiveView(Console(file=written, width=80, force_terminal=True, color_system=None, highlight=False))
    with view.open():
        view._bar = view._bars.add("job")
        for event in STORM:
            await view.event(event)
    assert re.findall(r"status +(\S+: \S+)", written.getvalue()) == [
        "reading: first",
        "back_pressure: 1",
        "reading: second",
    ]


async def test_a_command_to_be_copied_is_broken_by_nobody() -> None:
    written = io.StringIO()
    view = LiveView(Console(file=written, width=60, force_terminal=True, color_system=None, highlight=False))
    command = f"arcp-trio watch job_{'1' * 26} --url ws://127.0.0.1:7777/arcp"
    with view.open():
        with trio.testing.assert_checkpoints():
            await view.note(f"the job goes on: {command}", label="detached")
    assert command in written.getvalue()
