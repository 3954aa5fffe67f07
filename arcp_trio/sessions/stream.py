"""A session's stream: what its connection has still to be told, in order and numbered.

Sans-IO. An entry is numbered (job.event, job.result, job.error: ``event_seq`` from 1, without a gap, P8.2),
or a *rider*: a frame without a number that stands before the next one (job.accepted, job.cancelled, replies that
must not overtake a terminal event). Envelopes are spliced when they are taken: until then an entry is a
reference to bytes that all followers of the job share.
"""

from __future__ import annotations

from collections import deque

from ..wire.envelope import splice_envelope
from ..wire.ids import event_id_stem, numbered_event_id

__all__ = ["SessionStream"]

_RIDER = 0


class SessionStream:
    """Numbers what is appended and hands it out, oldest first.

    Args:
        session_id: Whose stream it is.

    Attributes:
        last_seq: The newest number; 0 before the first.
        unsent_events: How many entries were appended and not taken: the lag, in entries.
        unsent_bytes: How many bytes they have: the lag, in bytes.
    """

    __slots__ = ("_entries", "_session_id", "_stem", "last_seq", "unsent_bytes", "unsent_events")

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._stem = event_id_stem(session_id)
        self._entries: deque[tuple[int, bytes]] = deque()
        self.last_seq = 0
        self.unsent_events = 0
        self.unsent_bytes = 0

    def append(self, tail: bytes) -> int:
        """Give the next number to a frame whose shared part is ``tail``; return the number."""
        self.last_seq += 1
        self._push(self.last_seq, tail)
        return self.last_seq

    def append_rider(self, frame: bytes) -> None:
        """Append a whole frame that has no number."""
        self._push(_RIDER, frame)

    def _push(self, event_seq: int, content: bytes) -> None:
        self._entries.append((event_seq, content))
        self.unsent_events += 1
        self.unsent_bytes += len(content)

    def take(self, limit: int) -> list[bytes]:
        """Take the oldest frames: at least one if there is one, and no more once ``limit`` bytes are reached."""
        frames: list[bytes] = []
        size = 0
        while self._entries and size < limit:
            event_seq, content = self._entries.popleft()
            self.unsent_bytes -= len(content)
            self.unsent_events -= 1
            if event_seq != _RIDER:
                message_id = numbered_event_id(self._stem, event_seq)
                content = splice_envelope(self._session_id, message_id, event_seq, content)
            frames.append(content)
            size += len(content)
        return frames

    def clear(self) -> None:
        """Drop what was not taken: nobody will take it."""
        self._entries.clear()
        self.unsent_events = self.unsent_bytes = 0
