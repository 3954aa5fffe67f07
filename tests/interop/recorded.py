"""The recorded frames (README.md) and how they are found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import attrs

Frame = dict[str, Any]


@attrs.frozen
class Record:
    """One recorded frame."""

    n: int
    sdk: str
    scenario: str
    conn: str
    dir: str
    frame: Frame

    @property
    def from_client(self) -> bool:
        return self.dir == "C>S"

    @property
    def type(self) -> str:
        return str(self.frame.get("type"))


@cache
def records() -> Sequence[Record]:
    """Return all that were recorded, in order."""
    with Path(__file__).with_name("frames.jsonl").open(encoding="utf-8") as lines:
        return [Record(**json.loads(line)) for line in lines]


def between(first: int, last: int, *, conn: str | None = None) -> Sequence[Record]:
    """Return the records from number ``first`` to ``last``, of one connection or of all."""
    return [record for record in records() if first <= record.n <= last and conn in (None, record.conn)]


def number(n: int) -> Record:
    """Return the record of that number."""
    (record,) = between(n, n)
    return record
