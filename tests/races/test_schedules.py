"""The explorer of schedules itself: it finds a race that Trio does not, says so in one line, and replays it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from races import planted, schedules
from races.schedules import Explorer, Recorder, Schedule, ScheduleFailedError, missing_names, run_schedule

ROOT = Path(__file__).parent.parent.parent
SEEDS = range(1, 301)


def explorer_of() -> Explorer:
    return Explorer("pytest 'here'")


def find_planted() -> Schedule:
    with pytest.raises(ScheduleFailedError) as caught:
        explorer_of().explore(planted.spend_carelessly, (Schedule(seed) for seed in SEEDS))
    return caught.value.schedule


async def test_trio_still_has_the_names_that_the_explorer_stands_on() -> None:
    assert missing_names() == []


@pytest.mark.parametrize("name", ["_r", "_ALLOW_DETERMINISTIC_SCHEDULING", "GLOBAL_RUN_CONTEXT"])
async def test_a_name_that_is_gone_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(schedules.trio_run, name)
        assert missing_names() == [f"trio._core._run.{name}"]


def test_trio_asks_for_the_shuffle_and_runs_what_is_left_of_the_batch() -> None:
    """Names may stay and mean something else: what the explorer does must show in the order of the steps."""
    orders = set()
    for seed in range(20):
        recorder = Recorder()
        run_schedule(planted.spend_in_one_step, Schedule(seed), recorder)
        orders.add(tuple(recorder.steps))
    assert len(orders) > 10
    plain = Recorder()
    run_schedule(planted.spend_in_one_step, Schedule(1, 0.0), plain)
    assert sorted(plain.steps) == sorted(orders.pop())


def test_trio_is_left_as_it_was() -> None:
    kept = schedules.trio_run._r, schedules.trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    find_planted()
    assert (schedules.trio_run._r, schedules.trio_run._ALLOW_DETERMINISTIC_SCHEDULING) == kept


@pytest.mark.requirement("L02")
def test_a_planted_race_is_found_within_a_few_seeds() -> None:
    assert find_planted().seed <= 100


def test_trios_own_shuffling_does_not_find_it() -> None:
    """Neither as it is nor, with nobody held back, with a seed."""
    assert explorer_of().explore(planted.spend_carelessly, (Schedule(seed, 0.0) for seed in SEEDS)) == len(SEEDS)
    for seed in SEEDS:
        trio.run(planted.spend_carelessly, Schedule(seed), trio.CancelScope())


def test_without_the_race_nothing_is_found() -> None:
    assert explorer_of().explore(planted.spend_in_one_step, (Schedule(seed) for seed in SEEDS)) == len(SEEDS)


def test_a_schedule_replays_step_by_step() -> None:
    found = find_planted()
    runs = [Recorder(), Recorder()]
    for recorder in runs:
        with pytest.raises(AssertionError, match="spent twice"):
            run_schedule(planted.spend_carelessly, found, recorder)
    assert runs[0].steps == runs[1].steps
    assert "second spender" in runs[0].steps


def test_a_sweep_interrupts_at_each_checkpoint_of_a_task() -> None:
    with pytest.raises(ScheduleFailedError) as caught:
        explorer_of().sweep(planted.spend_by_turns, "taker", Schedule(1, 0.0))
    assert str(caught.value) == "pytest 'here' --schedule '1:0.0:taker@2'"
    assert str(caught.value.__cause__).startswith("taken, and never returned")
    # A task's end is no checkpoint that could be interrupted, but it is a step.
    assert explorer_of().sweep(planted.spend_in_one_step, "first spender", Schedule(1, 0.0)) == 2


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(1),
        Schedule(7, 0.0),
        Schedule(12, 0.85, "cancel+deadline"),
        Schedule(3, 0.3, "cancel", "actor of job", 17),
    ],
)
def test_a_schedule_is_read_as_it_is_written(schedule: Schedule) -> None:
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize("text", ["", "1", "1:1", "1:-0.5", "a:0.5", "1:0.5:task", "1:0.5:task@x", "1:0.5 "])
def test_what_is_no_schedule_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="SEED:HOLD"):
        Schedule.parse(text)


def test_the_line_that_is_printed_replays_the_schedule(tmp_path: Path) -> None:
    """As a user would: a run of pytest that fails, and the line that it printed."""
    test = tmp_path / "test_careless.py"
    test.write_text(
        "from races.conftest import explorer\n"
        "from races import planted\n"
        "from races.schedules import Schedule\n"
        "def test_spending(explorer):\n"
        "    ran = explorer.explore(planted.spend_carelessly, map(Schedule, range(1, 301)))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}

    def run(*arguments: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        return [
            line[line.index("pytest '") :]
            for line in done.stdout.splitlines()
            if line.startswith("E ") and "--schedule " in line
        ][-1:]

    (line,) = run(test.name)
    assert str(find_planted()) in line
    command, *arguments = shlex.split(line)
    assert command == "pytest"
    assert run(*arguments) == [line]
