"""Runs a Trio program under schedules that Trio itself hardly ever takes, each of which can be replayed.

Theory of operation. In each turn of its loop Trio runs every task that can run, in an order that it shuffles. So a task
falls behind another by one turn at most, and a race that needs two (a check, an await, a write) is never seen, however
often the program runs. Here the shuffle also holds tasks back: it leaves some of them for a later turn, by a
generator with a seed. Trio promises no order among tasks that can run, so whatever breaks is broken. A task that is
held can run all the while: no clock jumps ahead of it, and nobody takes it for blocked.

A schedule can also interrupt the program: when a chosen task has come to its n-th checkpoint, a cancel scope of the
program is cancelled. :meth:`Explorer.sweep` tries each n in turn.

This touches names that Trio keeps to itself; :func:`missing_names` says which of them are gone.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import trio
import trio.testing
from trio._core import _run as trio_run

__all__ = ["Explorer", "Recorder", "Schedule", "ScheduleFailedError", "missing_names", "run_schedule"]

_FORM = re.compile(r"(?:(?P<case>[^/]*)/)?(?P<seed>\d+):(?P<hold>0(?:\.\d+)?)(?::(?P<task>[^@]+)@(?P<checkpoint>\d+))?")
_FLAG = "_ALLOW_DETERMINISTIC_SCHEDULING"


@attrs.frozen
class Schedule:
    """One way to run a program. As text, ``[CASE/]SEED:HOLD[:TASK@CHECKPOINT]``, it fits in a command line.

    Attributes:
        seed: Decides everything.
        hold: How likely a task that can run is held back in a turn, from 0, never, up to but not including 1.
        case: What the program is to do, in its own words; without a slash.
        task: A part of the name of the task whose checkpoints are counted; ``None`` for a run that nobody interrupts.
        checkpoint: At which of them the program's scope is cancelled, from 1.
    """

    seed: int
    hold: float = 0.6
    case: str = ""
    task: str | None = None
    checkpoint: int = 0

    def __str__(self) -> str:
        case = f"{self.case}/" if self.case else ""
        interruption = f":{self.task}@{self.checkpoint}" if self.task is not None else ""
        return f"{case}{self.seed}:{self.hold}{interruption}"

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read what ``str`` wrote.

        Raises:
            ValueError: It is no schedule.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(f"expected [CASE/]SEED:HOLD[:TASK@CHECKPOINT], got {text!r}")
        return cls(
            int(match["seed"]), float(match["hold"]), match["case"] or "", match["task"], int(match["checkpoint"] or 0)
        )


class ScheduleFailedError(AssertionError):
    """A schedule under which the program failed; its text is the line that replays it."""

    def __init__(self, schedule: Schedule, command: str) -> None:
        super().__init__(f"{command} --schedule '{schedule}'")
        self.schedule = schedule


class _HoldingRandom(random.Random):
    """Stands in for Trio's generator: what it shuffles it also thins out."""

    hold = 0.0

    def shuffle(self, batch: Any) -> None:
        super().shuffle(batch)
        if not self.hold or not batch:
            return
        held = [self.random() < self.hold for _ in batch]
        if all(held):
            # A turn in which nobody runs changes nothing and costs a turn.
            held[self.randrange(len(held))] = False
        queue = trio_run.GLOBAL_RUN_CONTEXT.runner.runq
        queue.extend(task for task, is_held in zip(batch, held, strict=True) if is_held)
        batch[:] = [task for task, is_held in zip(batch, held, strict=True) if not is_held]


def missing_names() -> list[str]:
    """Say which of the names of Trio's that this stands on are gone. To be called inside a run."""
    missing = [f"trio._core._run.{name}" for name in (_FLAG, "_r", "GLOBAL_RUN_CONTEXT") if not hasattr(trio_run, name)]
    if not missing:
        context = trio_run.GLOBAL_RUN_CONTEXT
        missing += [f"runner.{name}" for name in ("runq",) if not hasattr(getattr(context, "runner", None), name)]
        if not hasattr(trio.lowlevel.current_task(), "_counter"):
            missing.append("Task._counter")
    return missing


@contextmanager
def _scheduling(schedule: Schedule) -> Iterator[None]:
    chance = _HoldingRandom(schedule.seed)
    chance.hold = schedule.hold
    kept: tuple[Any, Any] = trio_run._r, getattr(trio_run, _FLAG)
    trio_run._r = chance
    setattr(trio_run, _FLAG, True)
    try:
        yield
    finally:
        trio_run._r = kept[0]
        setattr(trio_run, _FLAG, kept[1])


class Recorder(trio.abc.Instrument):
    """Records which tasks ran, by their names, step by step.

    Attributes:
        steps: Their names.
    """

    def __init__(self) -> None:
        self.steps: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps.append(task.name)


class _Interruption(trio.abc.Instrument):
    """Cancels a scope when a task has come to a checkpoint.

    Behind its step, so that the task is cancelled at this very checkpoint and not at the next one.
    """

    def __init__(self, task: str, checkpoint: int, scope: trio.CancelScope) -> None:
        self._task = task
        self._left = checkpoint
        self._scope = scope

    @property
    def is_over(self) -> bool:
        """Whether the task has come that far."""
        return not self._left

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._task in task.name and self._left:
            self._left -= 1
            if not self._left:
                self._scope.cancel(reason="the schedule says so")


Program = Callable[[Schedule, trio.CancelScope], Awaitable[None]]


def run_schedule(program: Program, schedule: Schedule, *instruments: trio.abc.Instrument) -> bool:
    """Run a program under a schedule, on a mock clock that jumps whenever nothing can run.

    Args:
        program: Is given the schedule, and the scope that it interrupts, which is the program's to enter.
        schedule: The schedule.
        instruments: Look on.

    Returns:
        Whether it interrupted the program.
    """
    scope = trio.CancelScope()
    interruption = None
    if schedule.task is not None:
        interruption = _Interruption(schedule.task, schedule.checkpoint, scope)
        instruments = (*instruments, interruption)
    with _scheduling(schedule):
        trio.run(program, schedule, scope, clock=trio.testing.MockClock(autojump_threshold=0), instruments=instruments)
    return interruption is not None and interruption.is_over


@attrs.frozen
class Explorer:
    """Runs schedule after schedule, up to the first that fails.

    Attributes:
        command: The command line that runs what it explores; the line that replays a schedule begins with it.
        only: The one schedule to run, instead of those that are asked for.
    """

    command: str
    only: Schedule | None = None

    def explore(self, program: Program, schedules: Iterable[Schedule]) -> int:
        """Run schedules; return how many.

        Raises:
            ScheduleFailedError: One failed, of what caused it.
        """
        ran = 0
        for schedule in [self.only] if self.only is not None else schedules:
            self._run(program, schedule)
            ran += 1
        return ran

    def sweep(self, program: Program, task: str, schedule: Schedule) -> int:
        """Interrupt a program at each checkpoint of a task in turn; return how many there are.

        Args:
            program: Enters the scope that it is given.
            task: A part of the task's name.
            schedule: The rest of the schedules.

        Raises:
            ScheduleFailedError: As :meth:`explore`.
        """
        if self.only is not None:
            self._run(program, self.only)
            return 1
        for checkpoint in itertools.count(1):
            if not self._run(program, attrs.evolve(schedule, task=task, checkpoint=checkpoint)):
                return checkpoint - 1
        raise AssertionError

    def _run(self, program: Program, schedule: Schedule) -> bool:
        try:
            return run_schedule(program, schedule)
        except Exception as exc:
            raise ScheduleFailedError(schedule, self.command) from exc
