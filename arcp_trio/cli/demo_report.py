"""What the demo found: a row for each job, the sums, and whether they are what they must be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from .bars import styled_status
from .text import short_id

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Row", "Totals", "find_problems", "make_table"]

_NARROW = 140
_VERY_NARROW = 72


@attrs.frozen(kw_only=True)
class Row:
    """One job of the demo.

    Attributes:
        agent: Its agent, resolved.
        job_id: Its id.
        expected: The terminal state that it must have.
        status: The one that it has.
        events: Its job.event frames, counted from the wire.
        terminal_events: Its terminal events, counted from the wire.
        after_end: Its frames behind the first terminal event, counted from the wire.
        late_cancels: Cancels that were sent after its end.
        ignored: Those that the runtime answered with "not applied" and the right status.
        seconds: How long it took.
        summary: Its result, or its error.
        fault: What is wrong with its result; ``None`` if nothing is.
    """

    agent: str
    job_id: str
    expected: str
    status: str
    events: int
    terminal_events: int
    after_end: int
    late_cancels: int
    ignored: int
    seconds: float
    summary: str
    fault: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the row for ``--json``."""
        return attrs.asdict(self)


@attrs.frozen(kw_only=True)
class Totals:
    """The sums of the demo.

    Attributes:
        jobs: Jobs that were accepted.
        terminal_events: Terminal events that came over the wire.
        duplicates: Those beside the first one of their job.
        late_cancels: Cancels that were sent after their job's end.
        ignored: Those that changed nothing and were answered so.
    """

    jobs: int
    terminal_events: int
    duplicates: int
    late_cancels: int
    ignored: int

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Totals:
        """Return the sums of ``rows``."""
        return cls(
            jobs=len(rows),
            terminal_events=sum(row.terminal_events for row in rows),
            duplicates=sum(max(row.terminal_events - 1, 0) for row in rows),
            late_cancels=sum(row.late_cancels for row in rows),
            ignored=sum(row.ignored for row in rows),
        )

    @property
    def line(self) -> str:
        """The demo's last line."""
        return (
            f"demo: jobs={self.jobs} terminal_events={self.terminal_events} duplicates={self.duplicates} "
            f"late_cancels={self.late_cancels} ignored={self.ignored}"
        )


def find_problems(rows: Sequence[Row]) -> list[str]:
    """Return what is not as it must be, one line each; an empty list is a demo that has succeeded."""
    problems: list[str] = []
    for row in rows:
        name = f"{row.agent} {short_id(row.job_id)}"
        if row.status != row.expected:
            problems.append(f"{name}: ended as {row.status}, expected {row.expected}: {row.summary}")
        if row.terminal_events != 1:
            problems.append(f"{name}: {row.terminal_events} terminal events, expected exactly one")
        if row.after_end:
            problems.append(f"{name}: {row.after_end} frames after its terminal event, expected none")
        if row.ignored != row.late_cancels:
            problems.append(f"{name}: {row.ignored} of {row.late_cancels} late cancels were ignored")
        if row.fault is not None:
            problems.append(f"{name}: {row.fault}")
    return problems


def make_table(rows: Sequence[Row], console: Console) -> RenderableType:
    """Return the table of all jobs, with as many columns as the console is wide; else the results stand below it."""
    pretty = console.is_terminal
    narrow, very_narrow = console.width < _NARROW, console.width < _VERY_NARROW
    frame = None
    if pretty:
        frame = box.SIMPLE if narrow else box.ROUNDED
    table = Table(box=frame, header_style="bold" if pretty else "", border_style="dim", pad_edge=pretty and not narrow)
    table.add_column("agent", no_wrap=True)
    if not very_narrow:
        table.add_column("job", no_wrap=True, style="dim")
    table.add_column("status", no_wrap=True)
    if not narrow:
        table.add_column("seconds", justify="right", no_wrap=True)
    if not very_narrow:
        table.add_column("events", justify="right", no_wrap=True)
    table.add_column("ends" if narrow else "terminal events", justify="right", no_wrap=True)
    table.add_column("late" if narrow else "late cancels ignored", justify="right", no_wrap=True)
    if not very_narrow:
        table.add_column("result", overflow="fold")
    for row in rows:
        once = row.terminal_events == 1 and not row.after_end
        ignored = row.ignored == row.late_cancels
        cells: list[str | Text] = [row.agent.partition("@")[0] if narrow else row.agent]
        if not very_narrow:
            cells.append(short_id(row.job_id))
        cells.append(styled_status(console, row.status) if pretty else row.status)
        if not narrow:
            cells.append(f"{row.seconds:.2f}")
        if not very_narrow:
            cells.append(f"{row.events:,}")
        cells += [
            Text(str(row.terminal_events), style="green" if once else "bold red"),
            Text(f"{row.ignored}/{row.late_cancels}", style="green" if ignored else "bold red"),
        ]
        if not very_narrow:
            cells.append(_result(row))
        table.add_row(*cells)
    if not very_narrow:
        return table
    results = [Text.assemble(f"{row.agent.partition('@')[0]}: ", _result(row)) for row in rows]
    return Group(table, *results)


def _result(row: Row) -> Text:
    return Text(row.fault or row.summary, style="bold red" if row.fault else "")
