"""A pair of connected transports in one process.

The frames are the bytes that would go over a network, and a bounded buffer stands between the two ends:
a reader that sleeps is felt by the writer, as over a socket. So nothing passes here that the wire would
refuse (P4.3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from .base import CloseCode, TransportClosedError

__all__ = ["MemoryTransport", "open_memory_pair"]

_BUFFER_BYTES = 256 * 1024


class _Pipe:
    """One direction."""

    __slots__ = ("changed", "close", "frames", "max_frame", "size")

    def __init__(self, max_frame: int) -> None:
        self.frames: deque[bytes] = deque()
        self.size = 0
        self.max_frame = max_frame
        self.close: tuple[int, str] | None = None
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class MemoryTransport:
    """One end of a pair; see :class:`~arcp_trio.transports.base.Transport`."""

    private = True

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    @property
    def description(self) -> str:
        """Where it leads."""
        return "memory"

    async def receive(self) -> Sequence[bytes | str]:
        """Return the frames that have arrived."""
        await trio.lowlevel.checkpoint_if_cancelled()
        pipe = self._incoming
        while not pipe.frames:
            if pipe.close is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
                raise TransportClosedError(*pipe.close)
            await pipe.changed.wait()
        frames = list(pipe.frames)
        pipe.frames.clear()
        pipe.size = 0
        pipe.wake()
        if any(len(frame) > pipe.max_frame for frame in frames):
            self._close(CloseCode.TOO_LARGE, f"a frame is larger than {pipe.max_frame} bytes")
            raise TransportClosedError(CloseCode.TOO_LARGE, "too large a frame")
        await trio.lowlevel.cancel_shielded_checkpoint()
        return frames

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write frames; waits while the other end's buffer is full."""
        await trio.lowlevel.checkpoint_if_cancelled()
        pipe = self._outgoing
        for frame in frames:
            while pipe.size >= _BUFFER_BYTES and pipe.close is None:
                # The reader may sleep: it has not heard of the frames before this one yet.
                pipe.wake()
                await pipe.changed.wait()
            if pipe.close is not None:
                await trio.lowlevel.cancel_shielded_checkpoint()
                raise TransportClosedError(*pipe.close)
            pipe.frames.append(frame)
            pipe.size += len(frame)
        pipe.wake()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _close(self, code: int, reason: str) -> None:
        for pipe in (self._outgoing, self._incoming):
            if pipe.close is None:
                pipe.close = (code, reason)
            pipe.wake()

    async def aclose(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close both directions; the other end still reads what was sent."""
        self._close(code, reason)
        await trio.lowlevel.checkpoint()

    async def abort(self) -> None:
        """Close at once; what the other end has not read is lost."""
        if self._outgoing.close is None:
            # After a polite close the other end still reads what was sent before it.
            self._outgoing.frames.clear()
            self._outgoing.size = 0
        self._close(CloseCode.ABNORMAL, "the connection was aborted")
        await trio.lowlevel.cancel_shielded_checkpoint()


def open_memory_pair(
    *, receive_bytes: tuple[int, int] = (16 * 1024 * 1024, 64 * 1024 * 1024)
) -> tuple[MemoryTransport, MemoryTransport]:
    """Return two connected transports.

    Args:
        receive_bytes: The largest frame that the first and that the second end reads; a larger one
            closes the pair with 1009.
    """
    first, second = _Pipe(receive_bytes[0]), _Pipe(receive_bytes[1])
    return MemoryTransport(first, second), MemoryTransport(second, first)
