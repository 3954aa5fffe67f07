"""How the demo shows its jobs while they run: live bars on a terminal, lines in a pipe, nothing for JSON."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from ..client.events import Event, Skipped
from .bars import JobBars
from .text import describe_event
from .views import Throttle

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["DemoView", "LinesDemoView", "LiveDemoView", "QuietDemoView"]


class DemoView(Protocol):
    """Shows several jobs at once."""

    def open(self) -> AbstractContextManager[object]:
        """Return what the view is on within."""
        ...

    def say(self, line: str) -> None:
        """Print a line about the demo as a whole."""

    def start(self, name: str) -> None:
        """Show that a job was accepted."""

    def event(self, name: str, event: Event | Skipped) -> None:
        """Show an event of a job."""

    def end(self, name: str, status: str, summary: str) -> None:
        """Show how a job ended."""

    def count(self, name: str, completed: int, total: int, noun: str) -> None:
        """Show how far the demo itself is with something."""


class LiveDemoView:
    """Bars, one for each job.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = JobBars(console)
        self._tasks: dict[str, TaskID] = {}

    def open(self) -> AbstractContextManager[object]:
        """Return the live display."""
        return self._bars

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(line, style="bold", soft_wrap=True)

    def start(self, name: str) -> None:
        """Draw a bar."""
        self._tasks[name] = self._bars.add(name)

    def event(self, name: str, event: Event | Skipped) -> None:
        """Move a bar, or print a line above all."""
        self._bars.show(self._tasks[name], event, name=name)

    def end(self, name: str, status: str, summary: str) -> None:  # noqa: ARG002  # the table has it
        """Let a bar stand still, in its colour."""
        self._bars.end(self._tasks[name], status)

    def count(self, name: str, completed: int, total: int, noun: str) -> None:
        """Move a bar of the demo itself."""
        if name not in self._tasks:
            self.start(name)
        self._bars.count(self._tasks[name], completed, total, noun)
        if completed == total:
            self._bars.end(self._tasks[name], "success")


class LinesDemoView:
    """Plain lines; of progress one a second for each job.

    Args:
        console: stdout, where it is no terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._throttles: dict[str, Throttle] = {}

    def open(self) -> AbstractContextManager[object]:
        """Do nothing: lines need no beginning."""
        return nullcontext()

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line)

    def start(self, name: str) -> None:
        """Print that a job was accepted."""
        self._print(name, "accepted", "")

    def event(self, name: str, event: Event | Skipped) -> None:
        """Print an event."""
        if isinstance(event, Event) and event.kind == "progress" and not self._is_due(name):
            return
        self._print(name, *describe_event(event))

    def end(self, name: str, status: str, summary: str) -> None:
        """Print how a job ended."""
        self._print(name, "ended", f"{status}: {summary}")

    def count(self, name: str, completed: int, total: int, noun: str) -> None:
        """Print how far something is, once a second and at its end."""
        if completed == total or self._is_due(name):
            self._print(name, "progress", f"{completed}/{total} {noun}")

    def _is_due(self, name: str) -> bool:
        return self._throttles.setdefault(name, Throttle()).is_due()

    def _print(self, name: str, label: str, line: str) -> None:
        self._console.print(f"{name:<13} {label:<11} {line}".rstrip())


class QuietDemoView:
    """Shows nothing: stdout is for JSON."""

    def open(self) -> AbstractContextManager[object]:
        """Do nothing."""
        return nullcontext()

    def say(self, line: str) -> None:
        """Do nothing."""

    def start(self, name: str) -> None:
        """Do nothing."""

    def event(self, name: str, event: Event | Skipped) -> None:
        """Do nothing."""

    def end(self, name: str, status: str, summary: str) -> None:
        """Do nothing."""

    def count(self, name: str, completed: int, total: int, noun: str) -> None:
        """Do nothing."""
