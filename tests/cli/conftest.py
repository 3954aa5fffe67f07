from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.processes import Gate


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    path = tmp_path / "gate"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    yield Gate(str(path), descriptor)
    os.close(descriptor)
