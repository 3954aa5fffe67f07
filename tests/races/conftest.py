"""The explorer, as a test and its command line want it."""

from __future__ import annotations

import pytest
from races.schedules import Explorer, Schedule

# A part takes some seconds: a test that takes minutes would be taken for one that hangs.
_PART = 500


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Split what a test explores: its argument ``numbers`` is a range of seeds, of ``--schedules`` in all."""
    if "numbers" in metafunc.fixturenames:
        option = metafunc.config.option
        first = option.schedules_seed
        end = first + (1 if option.schedule else option.schedules)
        parts = [range(start, min(start + _PART, end)) for start in range(first, end, _PART)]
        metafunc.parametrize("numbers", parts, ids=[f"{part.start}-{part.stop - 1}" for part in parts])


@pytest.fixture
def explorer(request: pytest.FixtureRequest) -> Explorer:
    """What explores schedules, or runs the one of ``--schedule``."""
    # Without the part: a schedule is the same in each of them.
    name = request.node.nodeid.partition("[")[0]
    text = request.config.option.schedule
    return Explorer(f"pytest '{name}'", Schedule.parse(text) if text else None)
