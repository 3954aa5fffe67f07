"""How ``submit`` and ``watch`` show a job while it runs: as JSON, as plain lines, or live on a terminal."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import trio

from ..client.budget import read_amount
from ..client.events import Event, Skipped
from ..client.job_handle import JobHandle
from ..client.reconnect import ConnectionState
from ..wire.errors import ARCPError
from ..wire.events import BACK_PRESSURE
from ..wire.jsontext import encode_json
from .bars import STATUS_STYLES, JobBars, styled_status
from .errors import describe_error
from .terminal import LineWriter, Output, make_console
from .text import child_name, clean, describe_connection, describe_event, describe_quantity

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["JSONView", "JobView", "LiveView", "PlainView", "Throttle", "make_view"]

_PROGRESS_SECONDS = 1.0
_LABEL_WIDTH = 11
# The first says what broke the connection, the second why there is no other.
_ATTEMPTS_IN_FULL = 2
# More would push what is said off the screen.
_CHILD_BARS = 8


class JobView(Protocol):
    """Shows one job. Showing may wait for a slow reader of the output, and is cancellable."""

    def open(self) -> AbstractContextManager[object]:
        """Return what the view is on within."""
        ...

    async def began(self, job: JobHandle) -> None:
        """Show that the job was accepted, or is watched from now on."""

    async def event(self, event: Event | Skipped, child: JobHandle | None = None) -> None:
        """Show an event of the job, or of a job of its family that was delegated."""

    async def child_ended(self, child: JobHandle, failure: ARCPError | None) -> None:
        """Show how a delegated job ended, but not its result."""

    async def connection(self, state: ConnectionState) -> None:
        """Show that the connection was lost, or came back."""

    async def note(self, line: str, *, label: str = "-") -> None:
        """Show what the command itself has to say; ``label`` says in a word what about."""

    def paused(self) -> AbstractAsyncContextManager[None]:
        """Return what leaves the terminal to a question, with all written that was shown before it.

        Within it nothing may be shown.
        """
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is shown, in the background, until cancelled."""

    async def flush(self) -> None:
        """Wait until all that was shown is written."""

    async def ended(self, job: JobHandle, seconds: float | None, failure: ARCPError | None) -> None:
        """Show how the job ended, but not its result; ``seconds`` after it was accepted, if that is known."""


def _describe_beginning(job: JobHandle) -> tuple[str, str, str | None]:
    """Return a label and a line about a job that is shown from now on, and a line about what is missing of it."""
    name = f"{clean(job.agent)} as {clean(job.job_id)}"
    there = job.subscribed
    if there is None:
        return "accepted", name, None
    missing = None
    if there.truncated_before is not None:
        missing = f"its events before number {there.truncated_before:,} are kept no longer"
    # As it was said: the handle's own may be of later events, which are shown below.
    amounts = ((currency, read_amount(value, currency)) for currency, value in (there.budget or {}).items())
    left = ", ".join(describe_quantity(amount, currency) for currency, amount in amounts if amount is not None)
    return "watching", f"{name}, {clean(there.current_status)}{f', {left} left' if left else ''}", missing


def _describe_ending(job: JobHandle, failure: ARCPError | None, seconds: float | None = None) -> str:
    reason = "" if failure is None else f": {describe_error(failure)}"
    duration = "" if seconds is None else f" after {seconds:.1f} s"
    return f"{clean(job.status)}{duration}{reason}"


class Throttle:
    """Lets one line a second through: a terminal's bars can show each progress event, a log file must not."""

    def __init__(self) -> None:
        self._next = -float("inf")

    def is_due(self) -> bool:
        """Say whether a line may be shown now; if so, the next one in a second."""
        now = trio.current_time()
        if now < self._next:
            return False
        self._next = now + _PROGRESS_SECONDS
        return True


class Notices:
    """Lets the first notice through that the session lags.

    Where an agent is faster than its client that comes and goes many times a second, and asks nothing of the user.
    """

    def __init__(self) -> None:
        self._told = False

    def is_repeated(self, event: Event | Skipped) -> bool:
        """Say whether an event is such a notice, and not the first."""
        if isinstance(event, Skipped) or event.kind != "status" or event.body.get("phase") != BACK_PRESSURE:
            return False
        told, self._told = self._told, True
        return told


class JSONView:
    """One line of JSON for each event, on stdout; the last line, with the result, is the command's."""

    def __init__(self) -> None:
        self._output = LineWriter(1)

    def open(self) -> AbstractContextManager[object]:
        """Do nothing: lines need no beginning."""
        return nullcontext()

    async def began(self, job: JobHandle) -> None:
        """Show nothing of a job that was accepted: each line names it. Of one that is watched: how it stands."""
        there = job.subscribed
        if there is None:
            return
        line: dict[str, Any] = {"type": "watching", "job_id": job.job_id, "agent": job.agent}
        line |= {"status": there.current_status, "budget": there.budget, "parent_job_id": there.parent_job_id}
        line |= {"trace_id": there.trace_id, "truncated_before": there.truncated_before}
        await self._output.print(encode_json(line).decode())

    async def event(self, event: Event | Skipped, child: JobHandle | None = None) -> None:
        """Print an event: of whichever job, it names it."""
        line: dict[str, Any]
        if isinstance(event, Skipped):
            line = {"type": "skipped", "count": event.count}
            if child is not None:
                line["job_id"] = child.job_id
        else:
            line = {"type": "event", "job_id": event.job_id, "kind": event.kind}
            line |= {"event_seq": event.event_seq, "ts": event.ts, "body": event.body}
        await self._output.print(encode_json(line).decode())

    async def child_ended(self, child: JobHandle, failure: ARCPError | None) -> None:
        """Print a line: the last line of all is that of the job itself."""
        line: dict[str, Any] = {"type": "child_ended", "job_id": child.job_id, "agent": child.agent}
        line |= {"parent_job_id": child.parent_job_id, "status": child.status}
        if failure is not None:
            line["error"] = {"code": failure.code, "message": failure.message, "retryable": failure.retryable}
        await self._output.print(encode_json(line).decode())

    async def connection(self, state: ConnectionState) -> None:
        """Print each change of the connection."""
        line: dict[str, Any] = {"type": "connection", "state": state.phase, "reason": state.reason}
        if state.phase == "retrying":
            line |= {"attempt": state.attempt, "delay_seconds": round(state.delay_seconds, 3)}
        await self._output.print(encode_json(line).decode())

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """Write all lines before the question."""
        await self.flush()
        yield

    async def note(self, line: str, *, label: str = "-") -> None:
        """Print on stderr what is no JSON."""
        await Output(2).print(line if label == "-" else f"{label}: {line}")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC128
        """Write the lines; the output says that it has started."""
        await self._output.run(task_status=task_status)

    async def flush(self) -> None:
        """Wait until the lines are written."""
        await self._output.flush()

    async def ended(self, job: JobHandle, seconds: float | None, failure: ARCPError | None) -> None:
        """Show nothing: the line of the terminal event says it."""


class PlainView:
    """Plain lines on stderr, for logs and pipes."""

    def __init__(self) -> None:
        self._output = LineWriter(2)
        self._throttle = Throttle()
        self._notices = Notices()

    def open(self) -> AbstractContextManager[object]:
        """Do nothing: lines need no beginning."""
        return nullcontext()

    async def _print(self, label: str, line: str, child: JobHandle | None = None) -> None:
        whose = "" if child is None else f"[{child_name(child.agent, child.job_id)}] "
        await self._output.print(f"{label:<{_LABEL_WIDTH}} {whose}{line}".rstrip())

    async def began(self, job: JobHandle) -> None:
        """Print the job's id."""
        label, line, missing = _describe_beginning(job)
        await self._print(label, line)
        if missing:
            await self._print("-", missing)

    async def event(self, event: Event | Skipped, child: JobHandle | None = None) -> None:
        """Print an event; of progress one line a second."""
        if isinstance(event, Event) and event.kind == "progress" and not self._throttle.is_due():
            return
        if self._notices.is_repeated(event):
            return
        await self._print(*describe_event(event), child)

    async def child_ended(self, child: JobHandle, failure: ARCPError | None) -> None:
        """Print how a delegated job ended."""
        await self._print("ended", _describe_ending(child, failure), child)

    async def connection(self, state: ConnectionState) -> None:
        """Print what is worth saying about the connection."""
        line = describe_connection(state)
        if line is not None:
            await self._print("connection", line)

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """Write all lines before the question."""
        await self.flush()
        yield

    async def note(self, line: str, *, label: str = "-") -> None:
        """Print what the command has to say."""
        await self._print(label, line)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:  # noqa: ASYNC128
        """Write the lines; the output says that it has started."""
        await self._output.run(task_status=task_status)

    async def flush(self) -> None:
        """Wait until the lines are written."""
        await self._output.flush()

    async def ended(self, job: JobHandle, seconds: float | None, failure: ARCPError | None) -> None:
        """Print how the job ended."""
        await self._print("ended", _describe_ending(job, failure, seconds))


class LiveView:
    """A live progress bar on a terminal, log lines above it.

    Args:
        console: On stderr.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = JobBars(console)
        self._bar: TaskID | None = None
        self._job: JobHandle | None = None
        # Of delegated jobs that run: those that there is room for.
        self._child_bars: dict[str, TaskID] = {}
        self._notices = Notices()

    def open(self) -> AbstractContextManager[object]:
        """Return the live display."""
        return self._bars

    async def began(self, job: JobHandle) -> None:
        """Print the job's id and draw its bar."""
        await trio.lowlevel.checkpoint()
        label, line, missing = _describe_beginning(job)
        self._bars.print(label, line)
        if missing:
            self._bars.print("-", missing)
        self._bar, self._job = self._bars.add(job.agent.partition("@")[0]), job
        self._bars.show_budget(self._bar, job.budget, job.budget_limits)

    def _show(
        self, bar: TaskID | None, event: Event | Skipped, job: JobHandle | None, *, name: str | None = None
    ) -> None:
        self._bars.show(bar, event, name=name)
        if bar is not None and job is not None and isinstance(event, Event) and event.kind == "metric":
            # The latest that is known: of a history older counters come first.
            self._bars.show_budget(bar, job.budget)

    def _show_child(self, event: Event | Skipped, child: JobHandle) -> None:
        """Draw a bar for a job that was delegated, while few have one; its lines bear its name."""
        name = child_name(child.agent, child.job_id)
        bar = self._child_bars.get(child.job_id)
        if bar is None and len(self._child_bars) < _CHILD_BARS:
            bar = self._child_bars[child.job_id] = self._bars.add(name)
            self._bars.show_budget(bar, child.budget, child.budget_limits)
        self._show(bar, event, child, name=name)

    async def event(self, event: Event | Skipped, child: JobHandle | None = None) -> None:
        """Show an event."""
        # Nothing is drawn behind a checkpoint: a question may be on the terminal by then.
        if self._bar is not None and not self._notices.is_repeated(event):
            if child is not None:
                self._show_child(event, child)
            else:
                self._show(self._bar, event, self._job)
        # Ready events come without a turn of the loop; drawing them must leave one to the connection.
        await trio.lowlevel.checkpoint()

    async def child_ended(self, child: JobHandle, failure: ARCPError | None) -> None:
        """Take a delegated job's bar away, and print how it ended."""
        bar = self._child_bars.pop(child.job_id, None)
        if bar is not None:
            self._bars.remove(bar)
        self._bars.print("ended", _describe_ending(child, failure), name=child_name(child.agent, child.job_id))
        await trio.lowlevel.checkpoint()

    async def connection(self, state: ConnectionState) -> None:
        """Print what is worth saying about the connection."""
        line = describe_connection(state)
        if line is not None:
            if self._bar is not None:
                offline = f"offline, attempt {state.attempt} in {state.delay_seconds:.1f} s"
                self._bars.show_alert(self._bar, offline if state.phase == "retrying" else "")
            # A network that is away for minutes would else push all that the job has said off the screen.
            if self._bar is None or state.attempt <= _ATTEMPTS_IN_FULL:
                self._bars.print("connection", line)
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """Take the bar off the terminal."""
        await trio.lowlevel.checkpoint()
        with self._bars.paused():
            yield

    async def note(self, line: str, *, label: str = "-") -> None:
        """Print what the command has to say."""
        self._bars.print(label, line, soft_wrap=True)
        await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do nothing: the display has a thread of its own."""
        task_status.started()
        await trio.lowlevel.checkpoint()

    async def flush(self) -> None:
        """Do nothing: what is shown is drawn."""
        await trio.lowlevel.checkpoint()

    async def ended(self, job: JobHandle, seconds: float | None, failure: ARCPError | None) -> None:
        """Fill the bar, and say below it how the job ended."""
        await trio.lowlevel.checkpoint()
        if self._bar is not None:
            self._bars.end(self._bar, job.status)
        text = styled_status(self._console, job.status)
        if seconds is not None:
            text.append(f" after {seconds:.1f} s", style="default dim")
        if failure is not None:
            text.append(f"  {describe_error(failure)}", style=STATUS_STYLES.get(job.status, "red"))
        self._bars.print_last(text)


def make_view(*, as_json: bool) -> JobView:
    """Return the view that fits: JSON if it was asked for, live on a terminal, else plain lines."""
    if as_json:
        return JSONView()
    console = make_console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console)
    return PlainView()
