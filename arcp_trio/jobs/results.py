"""How an agent's result gets out: inline, or as a stream of chunks (P8.5)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import trio

from ..limits import Limits
from ..wire.errors import InternalError, InvalidRequestError
from ..wire.jsontext import JSONValue, decode_json, encode_json
from .feed import ResultPayload

__all__ = ["ResultStream", "fits_inline"]

# What stands around the data of a chunk in its frame, generously.
_FRAME_OVERHEAD = 4096


def fits_inline(encoded: bytes, send_bytes: int) -> bool:
    """Say whether a value fits a job.result, where it stands under two names (P4.4)."""
    return 2 * len(encoded) + _FRAME_OVERHEAD <= send_bytes


class ResultStream:
    """A result that is written piece by piece; an asynchronous context manager.

    Made by :meth:`JobContext.stream_result`. What is written is sent as it comes, in chunks of at most
    ``Limits.chunk_bytes``. All pieces are text, or all are bytes. Left without an exception, the stream ends; left
    by one, it stays open, and the job cannot succeed any more.
    """

    def __init__(
        self,
        emit: Callable[[bytes], Awaitable[None]],
        *,
        result_id: str,
        limits: Limits,
        content_type: str | None,
        keep: Callable[[], bool],
    ) -> None:
        self._emit = emit
        self._limits = limits
        self._content_type = content_type
        self._keep = keep
        self._kept: list[bytes] | None = []
        self._encoding: str | None = None
        self._lock = trio.Lock()
        self._next_seq = 0
        self._size = 0
        self._ended = False
        self.result_id = result_id
        self.broken = False

    @property
    def size(self) -> int:
        """How many bytes were written, decoded."""
        return self._size

    @property
    def ended(self) -> bool:
        """Whether the last chunk is out."""
        return self._ended

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is None:
            await self.aclose()
        elif not self._ended:
            # A job that ends in an error sends no last chunk; one that swallows it must not look whole.
            self.broken = True

    async def write(self, data: str | bytes | bytearray | memoryview) -> None:
        """Send a piece of the result, of any size.

        Args:
            data: Text, or bytes as they are now: a buffer may be changed afterwards.

        Raises:
            InvalidRequestError: The stream has ended, or text and bytes are mixed.
            InternalError: The result is larger than ``Limits.result_bytes``.
            JobEndedError: The job has ended.

        Cancellation: a checkpoint. Cancelled between two chunks of a large piece, the first ones are out.
        """
        encoding = "utf8" if isinstance(data, str) else "base64"
        self._check_open()
        if self._encoding not in (None, encoding):
            raise InvalidRequestError("a result is text or bytes, not both")
        self._encoding = encoding
        if isinstance(data, str):
            await self._write_text(data)
        else:
            view = memoryview(data)
            # A view with gaps cannot be cast: what it shows is copied.
            view = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
            step = self._limits.chunk_bytes
            # At least one round, so that an empty write is a checkpoint too.
            for start in range(0, max(len(view), 1), step):
                piece = bytes(view[start : start + step])
                await self._send(piece, b64encode(piece).decode("ascii"))

    async def _write_text(self, text: str) -> None:
        """Cut text between characters, by its size in UTF-8 and by what escaping makes of it."""
        step = self._limits.chunk_bytes // 4
        for start in range(0, max(len(text), 1), step):
            pieces = [text[start : start + step]]
            while pieces:
                piece = pieces.pop()
                try:
                    decoded = piece.encode()
                except UnicodeEncodeError as exc:
                    raise InvalidRequestError(f"a result's text cannot be written as UTF-8: {exc}") from None
                if len(encode_json(piece)) + _FRAME_OVERHEAD > self._limits.send_bytes:
                    # A control character becomes six: halves in order, the first on top.
                    middle = len(piece) // 2
                    pieces += [piece[middle:], piece[:middle]]
                else:
                    await self._send(decoded, piece)

    async def _send(self, decoded: bytes, data: str) -> None:
        # Two tasks may write to one stream: a chunk's number and its place in the feed are one step.
        async with self._lock:
            self._check_open()
            if self._size + len(decoded) > self._limits.result_bytes:
                self.broken = True
                raise InternalError(f"the result is larger than {self._limits.result_bytes} bytes")
            await self._emit(self._chunk(data, more=True))
            # Cancelled or refused, the chunk is not out, and its number is still free.
            self._next_seq += 1
            self._size += len(decoded)
            self._remember(decoded)

    def _check_open(self) -> None:
        if self._ended or self.broken:
            raise InvalidRequestError("the result stream has ended")

    def _remember(self, decoded: bytes) -> None:
        """Keep the pieces while a follower takes no chunks and the whole may still go inline."""
        if self._kept is not None:
            if self._size > self._limits.inline_result_bytes or not self._keep():
                self._kept = None
            else:
                self._kept.append(decoded)

    def _chunk(self, data: str, *, more: bool) -> bytes:
        return encode_json(
            {
                "result_id": self.result_id,
                "chunk_seq": self._next_seq,
                "data": data,
                "encoding": self._encoding or "utf8",
                "more": more,
            }
        )

    async def aclose(self) -> None:
        """End the stream: an empty chunk with ``more: false``. Twice is once; a checkpoint."""
        async with self._lock:
            if not self._ended and not self.broken:
                await self._emit(self._chunk("", more=False))
                self._ended = True

    def payload(self) -> ResultPayload:
        """Return what job.result says of this stream."""
        assembled: bytes | None = None
        if self._kept is not None:
            joined = b"".join(self._kept)
            value: JSONValue = b64encode(joined).decode("ascii") if self._encoding == "base64" else joined.decode()
            if self._content_type == "application/json":
                # Read and written again: an agent's text that is no JSON, or has line breaks, would break the frame.
                with suppress(ValueError):
                    assembled = encode_json(decode_json(joined), within=2)
            if assembled is None:
                assembled = encode_json(value)
        return ResultPayload(
            result_id=self.result_id,
            result_size=self._size,
            content_type=self._content_type,
            assembled=assembled,
        )
