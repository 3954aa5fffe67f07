"""The jobs that a job delegates, shown with it: ``submit`` and ``watch`` follow the whole family."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ..client.client import Client
from ..client.events import Event, Skipped
from ..client.job_handle import JobHandle
from ..client.matching import error_of
from ..wire.errors import ARCPError
from ..wire.job_messages import JobError
from .views import JobView

if TYPE_CHECKING:
    import trio

__all__ = ["Family"]


class Family:
    """Shows the children of one job, and theirs, each in a task of its own.

    Args:
        client: Whose jobs they are.
        view: What they are shown with.
        resumed: Waits while nothing may be shown.
        nursery: Where the tasks run: each ends with its job, or with the session.
    """

    def __init__(
        self, client: Client, view: JobView, resumed: Callable[[], Awaitable[None]], nursery: trio.Nursery
    ) -> None:
        self._client = client
        self._view = view
        self._resumed = resumed
        self._nursery = nursery

    def heed(self, parent: JobHandle, event: Event | Skipped) -> None:
        """Look at an event of a job: one that tells of a child begins to show it."""
        if isinstance(event, Event) and event.kind == "delegate":
            child_job_id = event.body.get("child_job_id")
            if isinstance(child_job_id, str) and child_job_id:
                self._nursery.start_soon(self._show, parent, child_job_id)

    async def _show(self, parent: JobHandle, child_job_id: str) -> None:
        try:
            child = await self._find(parent, child_job_id)
            async for event in child.events():
                await self._resumed()
                await self._view.event(event, child)
                self.heed(child, event)
        except ARCPError:
            # It is hidden, or there is none (some runtimes tell of children that they do not run); or the session was
            # lost, which the parent's end will say.
            return
        terminal = child.terminal
        await self._resumed()
        await self._view.child_ended(child, error_of(terminal) if isinstance(terminal, JobError) else None)

    async def _find(self, parent: JobHandle, child_job_id: str) -> JobHandle:
        known = (child for child in parent.children if child.job_id == child_job_id)
        return next(known, None) or await self._client.subscribe(child_job_id, history=True)
