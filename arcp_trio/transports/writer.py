"""The one task that writes to a transport: takes what is ready and writes it together."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Protocol

import trio

from .base import CloseCode, Transport, TransportClosedError

__all__ = ["FrameSource", "FrameWriter"]


class FrameSource(Protocol):
    """Where a writer's frames come from."""

    def take(self, limit: int) -> list[bytes]:
        """Take the frames that are ready, about ``limit`` bytes of them; none when nothing is."""
        ...


class FrameWriter:
    """Writes what a source has ready; nobody else writes to that transport.

    One write for all that is ready: a write for each frame would cost 15 us of Trio and kernel for each,
    64 frames in one cost 0.5 us each (baselines.md, 2).

    Args:
        transport: Where to.
        source: Where from.
        batch_bytes: What one write takes at most, so that no session holds the loop.
        write_seconds: How long one write may take; past it the transport is aborted.
        written: Called after each write.
    """

    __slots__ = ("_batch_bytes", "_finishing", "_parked", "_source", "_transport", "_write_seconds", "_written")

    def __init__(
        self,
        transport: Transport,
        source: FrameSource,
        *,
        batch_bytes: int,
        write_seconds: float,
        written: Callable[[], None] | None = None,
    ) -> None:
        self._transport = transport
        self._source = source
        self._batch_bytes = batch_bytes
        self._write_seconds = write_seconds
        self._written = written
        self._parked: trio.lowlevel.Task | None = None
        self._finishing = False

    def wake(self) -> None:
        """Say that the source has something. Synchronous; never fails."""
        if self._parked is not None:
            trio.lowlevel.reschedule(self._parked)
            self._parked = None

    def finish(self) -> None:
        """Let :meth:`run` return once the source is empty."""
        self._finishing = True
        self.wake()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Write until :meth:`finish` was called and the source is empty.

        Raises:
            TransportClosedError: The transport has ended, or was aborted because a write made no progress.

        Cancellation: a write in progress leaves half a frame behind, so the transport is aborted.
        """

        def unpark(_: object) -> trio.lowlevel.Abort:
            self._parked = None
            return trio.lowlevel.Abort.SUCCEEDED

        # One for all writes, with a deadline while one goes on: a scope for each would cost as much as a write.
        with trio.CancelScope() as scope:
            while True:
                frames = self._source.take(self._batch_bytes)
                if frames:
                    scope.deadline = trio.current_time() + self._write_seconds
                    await self._write(frames)
                    scope.deadline = inf
                    if self._written is not None:
                        self._written()
                elif self._finishing:
                    return
                else:
                    self._parked = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(unpark)
        # Nobody but the deadline cancels it.
        raise TransportClosedError(CloseCode.ABNORMAL, f"a write made no progress for {self._write_seconds:g} seconds")

    async def _write(self, frames: list[bytes]) -> None:
        try:
            await self._transport.send(frames)
        except trio.Cancelled:
            await self._transport.abort()  # noqa: ASYNC102  # never blocks
            raise
