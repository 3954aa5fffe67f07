from __future__ import annotations

import io
import re
from decimal import Decimal

import pytest
from rich.console import Console
from rich.text import Text

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
        bars.show_budget(bar, {"USD": Decimal(5)})
        for number in range(10):
            # More currencies than there is room for.
            bars.show_budget(bar, {f"C{number}": Decimal(number)})
        bars.show_budget(bar, {"USD": Decimal("0.25")})
        bars.show(bar, metric(0.25, "USD"))
    assert "0.25 USD, 0 C0, 1 C1, 2 C2 left" in written.getvalue()
    assert "C3" not in written.getvalue()
    assert "cost.budget" not in written.getvalue()


@pytest.mark.parametrize(
    ("left", "shown"),
    [
        ("5.00", "▰▰▰▰▰ 5.00 of 5.00 USD left"),
        ("4.5", "▰▰▰▰▰ 4.5 of 5.00 USD left"),
        ("4", "▰▰▰▰▱ 4 of 5.00 USD left"),
        ("1e-13", "▰▱▱▱▱ 1e-13 of 5.00 USD left"),
        ("0.10", "▰▱▱▱▱ 0.10 of 5.00 USD left"),
        ("0", "▱▱▱▱▱ 0 of 5.00 USD left"),
        ("-0.5", "▱▱▱▱▱ -0.5 of 5.00 USD left"),
        ("7", "▰▰▰▰▰ 7 of 5.00 USD left"),
    ],
)
def test_where_the_limit_is_known_there_is_a_gauge(left: str, shown: str) -> None:
    console, written = screen(120)
    with JobBars(console) as bars:
        bar = bars.add("spender")
        bars.show_budget(bar, {"USD": Decimal(3)}, {"USD": Decimal("5.00"), "EUR": Decimal(0)})
        bars.show_budget(bar, {"USD": Decimal(left)})
        with bars.paused():
            assert f" {shown}" in written.getvalue()
        bars.show_budget(bar, {"EUR": Decimal(0)})
    assert "▱▱▱▱▱ 0 of 0 EUR left" in written.getvalue()


def test_a_gauge_without_unicode() -> None:
    written = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    console = Console(file=written, width=120, force_terminal=True, color_system=None, highlight=False)
    with JobBars(console) as bars:
        bars.show_budget(bars.add("spender"), {"USD": Decimal(2)}, {"USD": Decimal(5)})
        bars.print_last(Text("over"))
    assert "##--- 2 of 5 USD left" in written.buffer.getvalue().decode("latin-1")


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
