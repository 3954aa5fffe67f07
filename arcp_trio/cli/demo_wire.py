"""A transport that counts what the demo's client reads from the wire, below the client and without its help."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from ..transports.base import CloseCode, Transport

__all__ = ["WireCounter"]

_TERMINALS = frozenset({"job.result", "job.error"})


class WireCounter:
    """Delegates to another transport, and counts job frames as they are read.

    Args:
        transport: What really carries the frames.

    Attributes:
        events: The job.event frames of each job.
        terminals: The job.result and job.error frames of each job: there must be one.
        after_end: The numbered frames of each job that came after its first terminal: there must be none.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.events: Counter[str] = Counter()
        self.terminals: Counter[str] = Counter()
        self.after_end: Counter[str] = Counter()

    @property
    def description(self) -> str:
        """Where it leads."""
        return self._transport.description

    @property
    def private(self) -> bool:
        """Whether nobody on the way can read it."""
        return self._transport.private

    def _count(self, frame: bytes | str) -> None:
        # The standard library's decoder, not the package's: what is shown to be right takes no part in it.
        envelope = json.loads(frame)
        kind, job_id = envelope.get("type"), envelope.get("job_id")
        if job_id is None or (kind != "job.event" and kind not in _TERMINALS):
            return
        if self.terminals[job_id]:
            self.after_end[job_id] += 1
        counter = self.events if kind == "job.event" else self.terminals
        counter[job_id] += 1

    async def receive(self) -> Sequence[bytes | str]:
        """Return the frames that have arrived, counted.

        Raises:
            TransportClosedError: The connection has ended.

        Cancellation: nothing is lost.
        """
        frames = await self._transport.receive()
        for frame in frames:
            self._count(frame)
        return frames

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write frames.

        Raises:
            TransportClosedError: The connection has ended.

        Cancellation: how much was sent is unknown.
        """
        await self._transport.send(frames)

    async def aclose(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close politely.

        Cancellation: the connection is closed without waiting for the peer.
        """
        await self._transport.aclose(code, reason)

    async def abort(self) -> None:
        """Close at once; never blocks."""
        await self._transport.abort()
