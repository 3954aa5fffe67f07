"""The jobs that a principal may see, page by page (P6.19)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection

import attrs
import trio

from ..wire.session_messages import SessionJobs, SessionJobsEntry, SessionListJobs, SessionListJobsFilter

__all__ = ["JobPages", "make_filter"]


def make_filter(
    status: str | Collection[str] | None, agent: str | None, created_after: str | None
) -> SessionListJobsFilter | None:
    """Return the filter of a listing; ``None`` for one that filters nothing: some peers refuse an empty one."""
    if status is None and agent is None and created_after is None:
        return None
    if isinstance(status, str):
        status = (status,)
    return SessionListJobsFilter(
        status=None if status is None else tuple(status), agent=agent, created_after=created_after
    )


class JobPages(AsyncIterator["tuple[SessionJobsEntry, ...]"]):
    """Iterates over the pages of a listing, each a tuple of entries; made by :meth:`Client.list_jobs`.

    A page is asked for when it is wanted, one at a time. One task may iterate.
    """

    def __init__(self, ask: Callable[[SessionListJobs], Awaitable[SessionJobs]], first: SessionListJobs) -> None:
        self._ask = ask
        self._next: SessionListJobs | None = first
        self._filter = first.filter
        self._busy = False

    def __aiter__(self) -> JobPages:
        """Return itself."""
        return self

    async def __anext__(self) -> tuple[SessionJobsEntry, ...]:
        """Return the next page.

        Raises:
            ARCPError: The runtime refused it: the class that the code names. The same page may be asked for again.
            trio.BusyResourceError: Another task iterates.

        Cancellation: the page may be asked for again.
        """
        if self._next is None:
            await trio.lowlevel.checkpoint()
            raise StopAsyncIteration
        if self._busy:
            raise trio.BusyResourceError("another task iterates over these pages")
        self._busy = True
        try:
            page = await self._ask(self._next)
        finally:
            self._busy = False
        # Some runtimes leave the cursor out on the last page, some say null.
        self._next = None if page.next_cursor is None else attrs.evolve(self._next, cursor=page.next_cursor)
        return tuple(self._complete(entry) for entry in page.jobs if self._matches(entry))

    def _matches(self, entry: SessionJobsEntry) -> bool:
        """Say whether an entry is what was asked for: runtimes disagree on what a bare name matches (X18)."""
        wanted = self._filter
        return wanted is None or wanted.agent in (None, entry.agent, entry.agent.partition("@")[0])

    @staticmethod
    def _complete(entry: SessionJobsEntry) -> SessionJobsEntry:
        """Fill in the time of creation from whichever field has it (D23)."""
        if entry.created_at is not None:
            return entry
        return attrs.evolve(entry, created_at=entry.submitted_at or entry.accepted_at)
