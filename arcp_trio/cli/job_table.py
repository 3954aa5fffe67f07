"""A list of jobs as a table: for people at a terminal, or as plain columns in a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime

from rich.text import Text

from ..wire.jsontext import encode_json
from ..wire.session_messages import SessionJobsEntry as JobEntry
from .bars import STATUS_STYLES
from .text import age_of, clean, short_id

__all__ = ["JobTable", "describe_entry", "read_time"]

_GAP = "  "
_ROOM = 14
_WIDEST = 40
"""A column is no wider: the names come over the wire. A longer one stands out of it."""


def read_time(text: str | None) -> datetime | None:
    """Return the moment that a time on the wire names; ``None`` for none, or one that is not read."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def describe_entry(entry: JobEntry) -> str:
    """Return the line of JSON for a job."""
    line = {
        "type": "job",
        "job_id": entry.job_id,
        "agent": entry.agent,
        "status": entry.status,
        "created_at": entry.created_at,
        "parent_job_id": entry.parent_job_id,
        "last_event_seq": entry.last_event_seq,
        "trace_id": entry.trace_id,
        "lease": entry.lease,
        "lease_constraints": entry.lease_constraints,
        "budget": entry.budget,
    }
    return encode_json({name: value for name, value in line.items() if value is not None}).decode()


class JobTable:
    """Columns that are as wide as the jobs it was made with need them.

    Args:
        entries: The jobs; later ones may be wider, and stand out then.
        ages: Whether a job's age is shown, for who reads the table now, rather than when it was created.
        grows: Whether rows of other jobs will follow: there is room for their agents, within 80 columns.
    """

    def __init__(self, entries: Iterable[JobEntry], *, ages: bool, grows: bool = False) -> None:
        self._ages = ages
        self._now = time.time()
        self._widths = [30, _ROOM if grows else 5, 9, 3 if ages else 24, 6, 0]
        for entry in entries:
            lengths = (min(len(cell), _WIDEST) for cell in self._cells(entry))
            self._widths = [max(pair) for pair in zip(self._widths, lengths, strict=True)]

    def _cells(self, entry: JobEntry) -> tuple[str, ...]:
        when = clean(entry.created_at or "-")
        created = read_time(entry.created_at)
        if self._ages and created is not None:
            when = age_of(self._now - created.timestamp())
        events = "-" if entry.last_event_seq is None else str(entry.last_event_seq)
        parent = entry.parent_job_id
        if parent is not None:
            parent = short_id(parent) if self._ages else clean(parent)
        return clean(entry.job_id), clean(entry.agent), clean(entry.status), when, events, parent or ""

    def _line(self, cells: tuple[str, ...]) -> list[str]:
        aligned = [cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)]
        # Numbers stand below numbers.
        for column in (3, 4) if self._ages else (4,):
            aligned[column] = cells[column].rjust(self._widths[column])
        return aligned

    def header(self) -> Text:
        """Return the names of the columns."""
        names = ("ID", "AGENT", "STATUS", "AGE" if self._ages else "CREATED", "EVENTS", "PARENT")
        return Text(_GAP.join(self._line(names)).rstrip(), style="bold")

    def row(self, entry: JobEntry) -> Text:
        """Return a job's line."""
        self._now = time.time()
        cells = self._line(self._cells(entry))
        text = Text()
        for column, cell in enumerate(cells):
            text.append(_GAP if column else "")
            text.append(cell, style=STATUS_STYLES.get(entry.status, "cyan") if column == 2 else "")  # noqa: PLR2004
        text.rstrip()
        return text
