"""Every pair and triple of what can happen to a job, under thousands of schedules: the invariants hold.

``pytest tests/races/test_scenarios.py --schedules 100000`` is the full run; a failure prints the line that replays it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from races.causes import CAUSES, cases, schedules
from races.invariants import check
from races.schedules import Explorer, Recorder, Schedule, run_schedule
from races.world import run_world

if TYPE_CHECKING:
    from helpers import Frame
    from races.world import World


@pytest.mark.requirement("P7.8", "P7.10", "P7.13", "P7.14", "P6.9", "L01", "L02", "L05", "L06", "Z10", "Z13")
def test_every_pair_and_triple_of_causes_under_many_schedules(explorer: Explorer, numbers: range) -> None:
    ran = explorer.explore(partial(run_world, causes=CAUSES, check=check), schedules(numbers, cases()))
    assert ran == len(numbers)


@pytest.mark.parametrize(
    ("case", "statuses"),
    [
        ("returns+cancel", {"success", "cancelled"}),
        ("returns+raises", {"success", "error"}),
        ("cancel+deadline", {"cancelled", "timed_out"}),
        ("deadline+expiry", {"timed_out", "error"}),
        ("returns+shutdown", {"success", "error"}),
        ("cancel+delegate", {"success", "cancelled"}),
    ],
)
def test_each_of_the_causes_wins_under_some_schedules(case: str, statuses: set[str]) -> None:
    """Where one cause always came first, nothing would be raced."""
    seen: set[str] = set()
    children: set[str] = set()

    def look(world: World) -> None:
        seen.add(world.statuses[world.job_id])
        children.update(world.statuses[child] for child in world.children)

    for schedule in schedules(range(1, 61), [case]):
        run_schedule(partial(run_world, causes=CAUSES, check=look), schedule)
    assert seen == statuses
    assert children == (statuses if "delegate" in case else set())


def test_a_real_race_replays_step_by_step() -> None:
    """The ids of the messages, the times and who ran when: all of it follows from the schedule."""
    schedule = Schedule(7, 0.6, "cancel+delegate+resume")
    told: list[list[Frame]] = [[], []]
    recorders = [Recorder(), Recorder()]
    for frames, recorder in zip(told, recorders, strict=True):

        def keep(world: World, frames: list[Frame] = frames) -> None:
            frames.extend(frame for each in world.participants for frame in each.told)

        run_schedule(partial(run_world, causes=CAUSES, check=keep), schedule, recorder)
    assert recorders[0].steps == recorders[1].steps
    assert len(recorders[0].steps) > 100

    def without_secrets(frames: list[Frame]) -> list[Frame]:
        return [frame for frame in frames if frame["type"] != "session.welcome"]

    assert without_secrets(told[0]) == without_secrets(told[1])
