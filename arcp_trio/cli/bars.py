"""Live progress bars on a terminal: one for each job, its log lines above them."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as ElapsedColumn
from rich.table import Column
from rich.text import Text

from ..client.events import Event, Skipped
from ..wire.events import RUNTIME_METRIC
from .terminal import symbol
from .text import clean, describe_event, describe_progress, describe_quantity

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = ["STATUS_STYLES", "JobBars", "styled_status"]

STATUS_STYLES = {"success": "green", "error": "red", "cancelled": "yellow", "timed_out": "magenta"}
"""How the four terminal states are coloured (P7.7)."""

_SYMBOLS = {
    "success": ("✓", "+"),
    "error": ("✗", "x"),
    "cancelled": ("■", "-"),
    "timed_out": ("◷", "!"),
}
_LABEL_STYLES = {
    "warn": "yellow",
    "warning": "yellow",
    "error": "red",
    "critical": "bold red",
    "fatal": "bold red",
    "skipped": "yellow",
    "thought": "italic magenta",
    "status": "cyan",
    "metric": "blue",
    "connection": "yellow",
}
_LABEL_WIDTH = 11
_CURRENCIES = 4
_GAUGE_CELLS = 5
_WIDE = 80
_NARROW = 60
_VERY_NARROW = 40
_BAR_WIDTH = 28
_NAME_CELLS = 8
# A symbol, and the gaps around it, the name and the amount.
_STATE_CELLS = 4
_ELAPSED_CELLS = 8
_CONTROL_C = 2


def styled_status(console: Console, status: str) -> Text:
    """Return a terminal state with its symbol, in its colour."""
    wanted, plain = _SYMBOLS.get(status, ("?", "?"))
    return Text(f"{symbol(console, wanted, plain)} {clean(status)}", style=STATUS_STYLES.get(status, ""))


class _StateColumn(SpinnerColumn):
    """A spinner while a job runs, then the symbol of how it ended."""

    def __init__(self, console: Console) -> None:
        super().__init__(symbol(console, "dots", "line"), style="cyan")
        self._console = console

    def render(self, task: Task) -> Text:
        """Render one job's state."""
        status = task.fields["status"]
        if status:
            wanted, plain = _SYMBOLS.get(status, ("?", "?"))
            return Text(symbol(self._console, wanted, plain), style=STATUS_STYLES.get(status, ""))
        rendered = super().render(task)
        return rendered if isinstance(rendered, Text) else Text(str(rendered))


class _AmountColumn(ProgressColumn):
    """How far a job is, in its own units, and what it says about it: as much as there is room for.

    Rich would make room by leaving out the bar.
    """

    def __init__(self, console: Console, others: int) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._console = console
        self._others = others
        self.name_cells = 0

    def render(self, task: Task) -> Text:
        """Render one job's amount."""
        text = Text(task.fields["amount"], style="dim")
        room = self._console.width - self._others - self.name_cells - _CONTROL_C
        text.truncate(max(1, room), overflow="ellipsis")
        return text


class _Narrow:
    """Leaves room at the right for the ``^C`` of a terminal: where it breaks the line, the bars are not found again."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return console.render(self._content, options.update_width(max(1, options.max_width - _CONTROL_C)))


class _NarrowProgress(Progress):
    """Bars that survive control-C."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is drawn."""
        yield _Narrow(self.make_tasks_table(self.tasks))


class JobBars:
    """A live display; ``with JobBars(console) as bars``.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        columns: list[ProgressColumn] = [
            _StateColumn(console),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        ]
        others = _STATE_CELLS
        if console.width >= _VERY_NARROW:
            width = _BAR_WIDTH if console.width >= _WIDE else _BAR_WIDTH // 3
            others += width + 1
            columns.append(
                BarColumn(bar_width=width, complete_style="cyan", finished_style="green", pulse_style="cyan")
            )
        if console.width >= _NARROW:
            others += _ELAPSED_CELLS + 1
        self._amounts = _AmountColumn(console, others)
        columns.append(self._amounts)
        if console.width >= _NARROW:
            columns.append(ElapsedColumn(table_column=Column(no_wrap=True)))
        self._progress = _NarrowProgress(*columns, console=console)
        self._last: list[Text] = []

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()
        for text in self._last:
            self._console.print(text, soft_wrap=True)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Take the bars off the terminal, for a question, and draw them again below it."""
        live = self._progress.live
        # What stands on the screen would stay there, above the same bars drawn again.
        live.transient = True
        self._progress.stop()
        live.transient = False
        try:
            yield
        finally:
            self._progress.start()

    def add(self, name: str, *, total: float | None = None) -> TaskID:
        """Add a bar and return it.

        Args:
            name: What stands before it.
            total: How much there is; ``None`` as long as nobody knows.
        """
        shown = Text(clean(name))
        shown.truncate(max(_NAME_CELLS, self._console.width // 4), overflow="ellipsis")
        self._amounts.name_cells = max(self._amounts.name_cells, shown.cell_len)
        return self._progress.add_task(
            shown.plain, total=total, status="", amount="", progress="", left={}, limits={}, alert=""
        )

    def print(self, label: str, line: str, *, name: str | None = None, soft_wrap: bool = False) -> None:
        """Print a line above the bars.

        Args:
            label: What kind of line it is; decides its colour.
            line: Safe to print.
            name: Whose line it is, where there are several jobs.
            soft_wrap: Whether the terminal breaks the line where it is too long: a command in it can be copied then.
        """
        text = Text(f"{name:<8} " if name is not None else "", style="dim", overflow="fold")
        text.append(f"{label:<{_LABEL_WIDTH}} ", style=_LABEL_STYLES.get(label, "dim cyan"))
        text.append(line, style="default not dim")
        self._progress.console.print(text, soft_wrap=soft_wrap)

    def print_last(self, text: Text) -> None:
        """Print a line below the bars, once they stand still."""
        self._last.append(text)

    def show(self, bar: TaskID | None, event: Event | Skipped, *, name: str | None = None) -> None:
        """Show an event: progress on its bar, if it has one, everything else above the bars."""
        if isinstance(event, Skipped):
            self.print(*describe_event(event), name=name)
        elif event.kind == "progress":
            if bar is not None:
                self._show_progress(bar, event)
        elif event.kind != "metric" or event.body.get("name") != RUNTIME_METRIC:
            # What is left of a budget is on its gauge, for it comes with each expense: lines would bury all others.
            self.print(*describe_event(event), name=name)

    def _show_progress(self, bar: TaskID, event: Event) -> None:
        body = event.body
        amount = describe_progress(body)
        if body.get("message"):
            amount = f"{amount}  {clean(str(body['message']))}"
        current, total = body.get("current"), body.get("total")
        self._progress.update(
            bar,
            completed=current if isinstance(current, (int, float)) else None,
            total=total if isinstance(total, (int, float)) else None,
            progress=amount,
        )
        self._show_amount(bar)

    def show_budget(
        self, bar: TaskID, left: Mapping[str, Decimal], limits: Mapping[str, Decimal] | None = None
    ) -> None:
        """Show what is left of a job's budget, as a gauge where it is known of how much.

        Args:
            bar: The job's.
            left: By currency; of the others what was shown last stays. Past four of them further ones are left out.
            limits: What there was at first; ``None`` where it was said before, or is not known.
        """
        fields = self._task(bar).fields
        fields["limits"].update(limits or {})
        shown: dict[str, Decimal] = fields["left"]
        for currency, amount in left.items():
            # The names come over the wire: as many as there is room for.
            if currency in shown or len(shown) < _CURRENCIES:
                shown[currency] = amount
        self._show_amount(bar)

    def _gauge(self, currency: str, left: Decimal, limit: Decimal | None) -> str:
        """Return ``▰▰▱▱▱ 1.42 of 5.00 USD``."""
        if limit is None:
            return describe_quantity(left, currency)
        full, empty = symbol(self._console, "▰", "#"), symbol(self._console, "▱", "-")
        # What is left shows, however little it is; what is not does not.
        cells = min(_GAUGE_CELLS, math.ceil(_GAUGE_CELLS * left / limit)) if left > 0 and limit > 0 else 0
        amount = f"{describe_quantity(left)} of {describe_quantity(limit, currency)}"
        return f"{full * cells}{empty * (_GAUGE_CELLS - cells)} {amount}"

    def show_alert(self, bar: TaskID, text: str) -> None:
        """Show on a bar, in place of how far its job is, why that is not known; ``""`` takes it away."""
        self._task(bar).fields["alert"] = text
        self._show_amount(bar)

    def _show_amount(self, bar: TaskID) -> None:
        fields = self._task(bar).fields
        limits: dict[str, Decimal] = fields["limits"]
        left = ", ".join(
            self._gauge(currency, amount, limits.get(currency)) for currency, amount in fields["left"].items()
        )
        parts = [fields["alert"]] if fields["alert"] else [fields["progress"], f"{left} left" if left else ""]
        self._progress.update(bar, amount="  ".join(part for part in parts if part))

    def _task(self, bar: TaskID) -> Task:
        return next(task for task in self._progress.tasks if task.id == bar)

    def count(self, bar: TaskID, completed: int, total: int, noun: str) -> None:
        """Show a number that the command counts itself."""
        self._progress.update(bar, completed=completed, total=total, amount=f"{completed}/{total} {noun}")

    def remove(self, bar: TaskID) -> None:
        """Take a bar away: its job has ended, and others are shown."""
        self._progress.remove_task(bar)

    def end(self, bar: TaskID, status: str) -> None:
        """Show how a job ended: a full bar for a success, else what was reached."""
        task = self._task(bar)
        if status == "success":
            total = task.total or 1
            self._progress.update(bar, total=total, completed=total, status=status)
        else:
            # A bar without a total would go on pulsing; it knows of no part that was done.
            completed = 0 if task.total is None else task.completed
            self._progress.update(bar, total=task.total or 1, completed=completed, status=status)
        self._progress.stop_task(bar)
