from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from arcp_trio.cli.bars import JobBars
from arcp_trio.client.events import Event


def screen(width: int) -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, width=width, force_terminal=True, color_system=None, highlight=False), written


def metric(value: float, unit: str) -> Event:
    return Event(job_id="job_1", kind="metric", body={"name": "cost.budget.remaining", "value": value, "unit": unit})


@pytest.mark.parametrize("width", [20, 45, 60, 100])
def test_no_bar_is_so_long_that_control_c_breaks_its_line(width: int) -> None:
    console, written = screen(width)
    with JobBars(console) as bars:
        bar = bars.add("a-name-of-some-length")
        body = {"current": 1, "total": 2, "units": "pages", "message": "m" * 200}
        bars.show(bar, Event(job_id="job_1", kind="progress", body=body))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", shown) if line]
    assert lines
    assert max(map(len, lines)) <= width - 2
    # What is long makes room for the bar, not the other way round.
    assert "1/2" in lines[-1]
    assert ("━" in lines[-1]) == (width >= 40)
    assert ("0:00:0" in lines[-1]) == (width >= 60)


def test_a_pause_takes_the_bars_off_the_screen() -> None:
    console, written = screen(80)
    with JobBars(console) as bars:
        bars.add("counting")
        with bars.paused():
            # What was drawn was erased: up one line, and empty.
            assert written.getvalue().rstrip("\r").endswith(("\x1b[1A\x1b[2K", "\x1b[?25h\r\x1b[1A\x1b[2K"))
            paused = len(written.getvalue())
            bars.add("more")
            assert "more" not in written.getvalue()[paused:]
    assert "more" in written.getvalue()[paused:]


def test_a_budget_stands_on_the_bar() -> None:
    console, written = screen(120)
    with JobBars(console) as bars:
        bar = bars.add("spender")
        bars.show_budget(bar, {"USD": "5 USD"})
        for number in range(10):
            # More currencies than there is room for.
            bars.show(bar, metric(number, f"C{number}"))
        bars.show(bar, metric(0.25, "USD"))
    assert "0.25 USD, 0 C0, 1 C1, 2 C2 left" in written.getvalue()
    assert "C3" not in written.getvalue()


def test_an_alert_stands_in_place_of_what_is_not_known() -> None:
    console, written = screen(120)
    with JobBars(console) as bars:
        bar = bars.add("job")
        bars.show(bar, Event(job_id="job_1", kind="progress", body={"current": 7}))
        bars.show_alert(bar, "offline")
        with bars.paused():
            assert "offline" in written.getvalue()
        bars.show_alert(bar, "")
        with bars.paused():
            shown = written.getvalue()
    assert "7" in shown[shown.rindex("offline") :]
