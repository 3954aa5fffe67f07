"""Fixtures, and the record of which requirement each test shows."""

from __future__ import annotations

import pytest
from helpers import Script


@pytest.fixture
def script() -> Script:
    return Script()
