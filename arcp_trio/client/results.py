"""A streamed result put together again: in memory up to a limit, in a file beyond (P8.5)."""

from __future__ import annotations

import os
import shutil
import tempfile
from base64 import b64decode
from collections import deque
from pathlib import Path

from ..limits import ClientLimits
from ..wire.errors import ARCPError, InternalError
from ..wire.events import ResultChunk
from ..wire.job_messages import JobResult
from ..wire.jsontext import JSONValue, decode_json

__all__ = ["ResultAssembler", "ResultFile"]

# Chunks that are remembered to recognise a repetition: a stream of small ones must not cost memory without end.
_REMEMBERED = 1024
_JOINED_LATE = "its first chunks are missing: they came before the subscription, or the runtime keeps them no longer"


class ResultFile:
    """A result that was too large for memory, in a temporary file.

    The file is deleted when its client closes, unless :meth:`save` has moved it away.

    Attributes:
        path: Where it is.
        size: How many bytes it has.
        text: Whether they are text in UTF-8, rather than bytes.
    """

    def __init__(self, path: Path, size: int, *, text: bool) -> None:
        self.path = path
        self.size = size
        self.text = text

    def __repr__(self) -> str:
        return f"<ResultFile {self.size} bytes at {self.path}>"

    def save(self, target: str | os.PathLike[str]) -> Path:
        """Move the file and return where it is now. Blocks while the disk works.

        It stays readable by its owner alone, as temporary files are.

        Args:
            target: Where to: a path, or a directory that is there.

        Raises:
            OSError: It cannot be moved there, or is gone: the client has closed.
        """
        self.path = Path(shutil.move(self.path, target))
        return self.path


class ResultAssembler:
    """Takes the chunks of one job and gives its result.

    A violation is remembered and raised by :meth:`finish`: the reader of a connection must not fail for one job.

    Args:
        limits: The client's bounds.
        joined_late: Whether the job was subscribed to, so that its first chunks may have gone before.
    """

    def __init__(self, limits: ClientLimits, *, joined_late: bool = False) -> None:
        self._limits = limits
        self._joined_late = joined_late
        self._result_id: str | None = None
        self._next_seq = 0
        self._hashes: deque[int] = deque(maxlen=_REMEMBERED)
        self._buffer = bytearray()
        self._size = 0
        self._encoding: str | None = None
        self._final = False
        self._file: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._path: Path | None = None
        self._violation: str | None = None

    @property
    def size(self) -> int:
        """How many bytes have come, decoded."""
        return self._size

    def add(self, chunk: ResultChunk) -> None:
        """Take a chunk. Synchronous; past the memory limit it writes to a temporary file."""
        if self._violation is not None:
            return
        try:
            self._violation = self._add(chunk)
        except OSError as exc:
            self._violation = f"its temporary file cannot be written: {exc.strerror or exc}"
        if self._violation is not None:
            # Nobody will get what came so far.
            self._buffer.clear()
            self.discard()

    def _add(self, chunk: ResultChunk) -> str | None:
        if self._result_id not in (None, chunk.result_id):
            return f"chunk {chunk.chunk_seq} has another result_id"
        self._result_id = chunk.result_id
        try:
            if chunk.encoding == "utf8":
                data = chunk.data.encode()
            elif chunk.encoding == "base64":
                data = b64decode(chunk.data, validate=True)
            else:
                return f"chunk {chunk.chunk_seq} has the unknown encoding {chunk.encoding[:20]!r}"
        except ValueError:
            return f"chunk {chunk.chunk_seq} is not {chunk.encoding}"
        if len(data) > self._limits.chunk_bytes:
            return f"chunk {chunk.chunk_seq} is larger than {self._limits.chunk_bytes} bytes"
        if 0 <= chunk.chunk_seq < self._next_seq:
            age = self._next_seq - chunk.chunk_seq
            if age > len(self._hashes):
                return f"chunk {chunk.chunk_seq} came again, {age} chunks later"
            # A repetition is harmless if it is one.
            same = self._hashes[-age] == hash(data)
            return None if same else f"chunk {chunk.chunk_seq} came twice, with other bytes"
        if chunk.chunk_seq != self._next_seq:
            if self._joined_late and not self._next_seq:
                return f"{_JOINED_LATE}; the first that came is number {chunk.chunk_seq}"
            return f"chunk {chunk.chunk_seq} came where {self._next_seq} was expected"
        if self._final:
            return f"chunk {chunk.chunk_seq} came after the last one"
        if self._size + len(data) > self._limits.result_bytes:
            return f"the result is larger than {self._limits.result_bytes} bytes"
        self._hashes.append(hash(data))
        self._next_seq += 1
        self._final = not chunk.more
        if data:
            self._encoding = "base64" if chunk.encoding == "base64" else self._encoding or "utf8"
            self._size += len(data)
            self._store(data)
        return None

    def _store(self, data: bytes) -> None:
        if self._file is None:
            self._buffer += data
            if self._size <= self._limits.result_memory_bytes:
                return
            # Unbuffered writes to the page cache: short enough for the reader's task, and a full disk is
            # noticed here and not by closing.
            self._file = tempfile.NamedTemporaryFile(prefix="arcp-result-", delete=False, buffering=0)  # noqa: SIM115
            self._path = Path(self._file.name)
            data, self._buffer = bytes(self._buffer), bytearray()
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def finish(self, terminal: JobResult) -> JSONValue | bytes | ResultFile:
        """Return the result that ``terminal`` refers to.

        Raises:
            InternalError: A chunk is missing, came out of order or broke a limit; the message names it.
        """
        if self._violation is not None:
            raise self._broken(self._violation)
        if terminal.truncated and not self._next_seq:
            raise self._broken("the runtime did not send it: too large for a session without result_chunk")
        if self._joined_late and not self._next_seq:
            raise self._broken(f"{_JOINED_LATE}; none came")
        if self._result_id is not None and terminal.result_id != self._result_id:
            raise self._broken("the terminal event names another result_id")
        if terminal.result_size is None:
            if not self._final:
                raise self._broken("the last chunk is missing")
        elif terminal.result_size != self._size:
            raise self._broken(f"{self._size} of {terminal.result_size} bytes came")
        if self._file is not None and self._path is not None:
            self._file.close()
            return ResultFile(self._path, self._size, text=self._encoding == "utf8")
        data = bytes(self._buffer)
        if self._encoding == "base64":
            return data
        # Only the joined bytes: a peer may cut a character in two (interop.md, section 3.13).
        try:
            text = data.decode()
            return decode_json(text) if terminal.content_type == "application/json" else text
        except ValueError as exc:
            raise self._broken(f"its text cannot be read: {exc}") from None

    @staticmethod
    def _broken(why: str) -> ARCPError:
        return InternalError(f"the streamed result is broken: {why}", retryable=False)

    def discard(self) -> None:
        """Delete the temporary file, if there is one and nobody has moved it."""
        if self._file is not None and self._path is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)
