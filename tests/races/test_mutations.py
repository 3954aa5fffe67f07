"""The list of invariants bites: each way to break the runtime is found within a bounded number of schedules."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import pytest
from races.causes import CAUSES, cases, schedules
from races.invariants import INVARIANTS, broken, check
from races.mutations import MUTATIONS, Mutation
from races.schedules import Explorer, Schedule, ScheduleFailedError, run_schedule
from races.world import run_world

if TYPE_CHECKING:
    from races.world import World

SCHEDULES = range(1, 401)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What is broken says so in the log too."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def explore(among: tuple[str, ...]) -> tuple[Schedule, dict[str, list[str]]] | None:
    """Return the first schedule that breaks an invariant, and which."""
    found: dict[str, list[str]] = {}

    def look(world: World) -> None:
        found.update(broken(world))
        check(world)

    try:
        Explorer("pytest").explore(partial(run_world, causes=CAUSES, check=look), schedules(SCHEDULES, cases(among)))
    except ScheduleFailedError as exc:
        return exc.schedule, found
    return None


@pytest.mark.requirement("L01", "L02", "L05", "L06", "L09", "L17")
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_runtime_that_is_broken_in_this_way_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation: Mutation = MUTATIONS[name]
    with monkeypatch.context() as patch:
        mutation.patch(patch)
        found = explore(mutation.among)
        assert found is not None
        schedule, wrong = found
        assert mutation.breaks & wrong.keys(), wrong
        # The same again: what was found is no accident of this run.
        again: dict[str, list[str]] = {}
        run_schedule(partial(run_world, causes=CAUSES, check=lambda world: again.update(broken(world))), schedule)
        assert again == wrong
    # And it is the mutation that is found.
    run_schedule(partial(run_world, causes=CAUSES, check=check), schedule)


def test_the_mutations_break_invariants_that_there_are() -> None:
    assert frozenset().union(*(mutation.breaks for mutation in MUTATIONS.values())) <= {
        invariant.__name__ for invariant in INVARIANTS
    }
