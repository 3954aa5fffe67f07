"""One frame on each line, over any two byte streams (P4.2)."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import suppress

import trio

from .base import CloseCode, TransportClosedError

__all__ = ["LineTransport"]

logger = logging.getLogger("arcp_trio.transports")

_READ_BYTES = 64 * 1024
"""What a pipe holds: one read takes all of it."""

_OBJECT = re.compile(rb"\s*\{")


class LineTransport:
    r"""Frames over two streams of bytes, each one a line; see :class:`~arcp_trio.transports.base.Transport`.

    Written is ``\n`` behind each frame. Read are ``\r\n`` too, and blank lines, which say nothing. What a line holds is
    not looked at: text that is no UTF-8 is the decoder's to refuse, and to answer.

    A pipe has neither close codes nor a closing handshake. :meth:`aclose` ends both directions between two frames;
    the other end reads what was sent, and then a clean end (1000), or an abnormal one (1006) in the middle of a line.
    When the other end has said all, or too long a line (1009), sending still works: it may want to know.

    Args:
        incoming: Where frames come from.
        outgoing: Where they go.
        receive_bytes: The longest line that is read, without its end; no more of a longer one is ever held.
        description: Where it leads, for logs.
        skips_text: Whether lines that cannot be a frame, because no JSON object begins there, are dropped with a
            line in the debug log: what else the process at the other end prints is no fault of its runtime.
    """

    # Pipes lead from one process of this machine to another, and nowhere else.
    private = True

    def __init__(
        self,
        incoming: trio.abc.ReceiveStream,
        outgoing: trio.abc.SendStream,
        *,
        receive_bytes: int,
        description: str,
        skips_text: bool = False,
    ) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._receive_bytes = receive_bytes
        self._description = description
        self._skips_text = skips_text
        self._rest = bytearray()
        self._end: tuple[int, str] | None = None
        self._closing: tuple[int, str] | None = None
        # Held for a whole write: a close comes between two frames.
        self._writing = trio.Lock()

    @property
    def description(self) -> str:
        """Where it leads."""
        return self._description

    # --- reading ------------------------------------------------------------------------------------

    async def receive(self) -> Sequence[bytes | str]:
        """Return the lines that have arrived; the half of one waits here for its end."""
        while self._end is None and self._closing is None:
            try:
                data = await self._incoming.receive_some(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                self._end = self._closing or (CloseCode.ABNORMAL, f"it cannot be read: {exc.__cause__ or exc}")
                break
            # No checkpoint from here on: what was read is kept or returned.
            if not data:
                self._end = self._end_of_stream()
                break
            lines = self._take_lines(data)
            if lines:
                return lines
        await trio.lowlevel.checkpoint()
        code, reason = self._end or self._closing or (CloseCode.ABNORMAL, "")
        raise TransportClosedError(code, reason, can_send=self._closing is None)

    def _end_of_stream(self) -> tuple[int, str]:
        if not self._rest or self._rest.isspace():
            return CloseCode.NORMAL, "the other end has closed it"
        # Perhaps a whole frame, perhaps half of one: only its line's end would tell.
        self._rest = bytearray()
        return CloseCode.ABNORMAL, "it ended in the middle of a line"

    def _take_lines(self, data: bytes | bytearray) -> list[bytes]:
        """Return the frames that ``data`` completes."""
        *ended, rest = data.split(b"\n")
        frames: list[bytes] = []
        for ending in ended:
            line = (bytes(self._rest) + ending if self._rest else bytes(ending)).removesuffix(b"\r")
            self._rest.clear()
            if len(line) > self._receive_bytes:
                self._refuse_line()
                return frames
            if not line or line.isspace():
                continue
            if self._skips_text and not _OBJECT.match(line):
                self._note_text(line)
                continue
            frames.append(line)
        self._rest += rest
        if len(self._rest) - self._rest.endswith(b"\r") > self._receive_bytes:
            self._refuse_line()
        return frames

    def _note_text(self, line: bytes) -> None:
        """Log a line that is dropped; not what it says: nobody knows what a process prints."""
        if b'"arcp"' in line:
            # A print without its line end, most likely. Or a log of frames: so what follows is not taken for one.
            logger.warning("%s: a frame behind other text on its line was lost", self._description)
        else:
            logger.debug("%s: ignored a line of %d bytes that is no frame", self._description, len(line))

    def _refuse_line(self) -> None:
        self._rest = bytearray()
        self._end = (CloseCode.TOO_LARGE, f"a line is longer than {self._receive_bytes} bytes")

    # --- writing ------------------------------------------------------------------------------------

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write frames as lines, with one write.

        Raises:
            ValueError: A frame is no line: it is empty or blank, or holds a line break. Nothing was written.
            TransportClosedError: As every transport.
        """
        data = b"\n".join([*frames, b""])
        if data.count(b"\n") != len(frames) or b"\r" in data or any(not frame or frame.isspace() for frame in frames):
            # Some peers take a blank line for the end, and a break inside of a frame would make two halves of it.
            raise ValueError("expected frames that are not blank and hold no line break")
        async with self._writing:
            if self._closing is None:
                try:
                    await self._outgoing.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                    broken = CloseCode.ABNORMAL, f"it cannot be written: {exc.__cause__ or exc}"
                    raise TransportClosedError(*(self._closing or broken)) from exc
                return
        raise TransportClosedError(*self._closing)

    # --- ending -------------------------------------------------------------------------------------

    async def aclose(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close both directions when the write that goes on, if any, is done; the code stays on this side."""
        if self._closing is None:
            self._closing = (code, reason)
        try:
            async with self._writing:
                with suppress(trio.BrokenResourceError):
                    await self._outgoing.aclose()
                await self._incoming.aclose()
        except trio.Cancelled:
            await self.abort()  # noqa: ASYNC102  # never blocks
            raise

    async def abort(self) -> None:
        """Close both directions at once, perhaps in the middle of a line."""
        if self._closing is None:
            self._closing = (CloseCode.ABNORMAL, "the connection was aborted")
        with trio.CancelScope(shield=True):
            # Shielded: it never blocks, and a cleanup in a cancelled scope goes on behind it.
            await trio.aclose_forcefully(self._outgoing)
            await trio.aclose_forcefully(self._incoming)
