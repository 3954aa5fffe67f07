"""A session's stream: what its client has still to be told, and what it may ask for again.

Sans-IO. An entry is numbered (job.event, job.result, job.error: ``event_seq`` from 1, without a gap, P8.2),
or a *rider*: a frame without a number that stands before the next one (job.accepted, job.cancelled, replies that
must not overtake a terminal event). Envelopes are spliced when they are taken: until then an entry is a
reference to bytes that all followers of the job share.

::

      floor        acked           told              last_seq
        │            │               │                  │
    gone │  freed by acks, or evicted │ sent, kept for a │ unsent: the lag
         │                            │ resume           │

What was taken stays until it is acknowledged or the window's bounds push it out, oldest first; then the *floor*
rises, and a resume from below it is refused: never a silent gap (P6.10). :meth:`SessionStream.rewind` puts what a
client has not seen back in front of what is unsent.

Of a frame with a secret in it only the rest is kept (:mod:`arcp_trio.wire.withheld`); the secret is filled in each time
it is taken, as long as it may be told.
"""

from __future__ import annotations

from collections import deque

import attrs

from ..wire.envelope import EnvelopeSplicer
from ..wire.withheld import Content, Withheld

__all__ = ["SessionStream", "StreamBounds", "WindowTotal"]


@attrs.frozen(kw_only=True)
class StreamBounds:
    """What bounds a stream; all but the first two are P6.17's thresholds.

    Attributes:
        window_events: Entries that are kept, sent and unsent together.
        window_bytes: Their bytes.
        lag_events: Unsent entries above which the client is told that it lags.
        lag_bytes: Unsent bytes, likewise.
        unacked_events: Sent entries that were not acknowledged, likewise; ``None`` where acks were not negotiated.
    """

    window_events: int
    window_bytes: int
    lag_events: int
    lag_bytes: int
    unacked_events: int | None


@attrs.define
class WindowTotal:
    """The bytes of all windows of a runtime together.

    Attributes:
        limit: How many there may be.
        used: How many there are.
    """

    limit: int
    used: int = 0


_NUMBERED, _KEPT, _PASSING, _PAUSING = range(4)

# Its number, for a rider that of the numbered entry which it stands before; a tail, or a rider's whole frame; what
# it is. A tuple and no class: one is made for every event and every session that follows it.
_Entry = tuple[int, Content, int]


class SessionStream:
    """Numbers what is appended, hands it out oldest first, and keeps it for a resume.

    Args:
        session_id: Whose stream it is.
        bounds: What it may keep.
        total: What all streams of the runtime keep together.

    Attributes:
        last_seq: The newest number; 0 before the first.
        told: The newest number that was handed out to the present connection.
        acked: The newest number that the client has acknowledged.
        floor: The newest number that is gone: a resume has to name it or a later one.
        unsent_events: How many entries were appended and not taken: the lag, in entries.
        unsent_bytes: How many bytes they have: the lag, in bytes.
        paused: Whether nothing is handed out, because a pause has to follow a rider; who takes sets it back.
    """

    __slots__ = (
        "_bounds",
        "_calm_bytes",
        "_calm_events",
        "_lag_told",
        "_replay_bytes",
        "_replay_events",
        "_sent",
        "_sent_bytes",
        "_sent_events",
        "_splice",
        "_total",
        "_unacked_told",
        "_unsent",
        "acked",
        "floor",
        "last_seq",
        "paused",
        "told",
        "unsent_bytes",
        "unsent_events",
    )

    def __init__(self, session_id: str, bounds: StreamBounds, total: WindowTotal) -> None:
        self._bounds = bounds
        self._total = total
        self._splice = EnvelopeSplicer(session_id).splice
        # As much unsent as neither a lag begins with nor a connection ends by.
        self._calm_events = min(bounds.lag_events, bounds.window_events // 2)
        self._calm_bytes = min(bounds.lag_bytes, bounds.window_bytes // 2)
        self._sent: deque[_Entry] = deque()
        self._sent_events = 0
        self._sent_bytes = 0
        self._unsent: deque[_Entry] = deque()
        # How much of what is unsent was so when the connection came: a replay is no lag of its reader, and
        # one that is longer than a lag may be would else close each connection that asks for it.
        self._replay_events = 0
        self._replay_bytes = 0
        self._lag_told = self._unacked_told = False
        self.paused = False
        self.last_seq = 0
        self.told = 0
        self.acked = 0
        self.floor = 0
        self.unsent_events = 0
        self.unsent_bytes = 0

    @property
    def kept_events(self) -> int:
        """How many numbered entries there are, sent or not."""
        return self._sent_events + (self.last_seq - self.told)

    @property
    def kept_bytes(self) -> int:
        """How many bytes all entries have."""
        return self._sent_bytes + self.unsent_bytes

    @property
    def lag_events(self) -> int:
        """How many entries came since the connection did and were not taken."""
        return self.unsent_events - self._replay_events

    @property
    def lag_bytes(self) -> int:
        """How many bytes they have."""
        return self.unsent_bytes - self._replay_bytes

    # --- what comes in ------------------------------------------------------------------------------

    def append(self, tail: Content) -> int:
        """Give the next number to a frame whose shared part is ``tail``; return the number."""
        self.last_seq += 1
        self._push(self.last_seq, tail, _NUMBERED)
        return self.last_seq

    def append_calmly(self, tail: Content) -> bool:
        """Append as :meth:`append` does, where none of the bounds asks for anything to be said or closed by that.

        What :meth:`begins_to_lag`, :meth:`append` and :meth:`shed` come to nearly always, at a fraction of their cost:
        it is asked for every event and every session that follows it. Lags and overflows are told from what is unsent
        in all, with the replay of a new connection in it, so it may say no where they do not.

        Returns:
            Whether it was appended. If not, nothing has changed.
        """
        size = len(tail)
        events = self.unsent_events + 1
        unsent = self.unsent_bytes + size
        total = self._total
        bounds = self._bounds
        if (
            events > self._calm_events
            or unsent > self._calm_bytes
            or total.used + size > total.limit
            or (
                bounds.unacked_events is not None
                and self.told - self.acked >= bounds.unacked_events
                and not self._unacked_told
            )
        ):
            return False
        self.last_seq = seq = self.last_seq + 1
        self._unsent.append((seq, tail, _NUMBERED))
        self.unsent_events = events
        self.unsent_bytes = unsent
        total.used += size
        if self._sent_events + events > bounds.window_events or self._sent_bytes + unsent > bounds.window_bytes:
            self.shed()
        return True

    def append_rider(self, frame: Content, *, keep: bool, pause: bool = False) -> None:
        """Append a whole frame that has no number.

        Args:
            frame: The frame.
            keep: Whether a resume sends it again (P6.9). One that is kept goes with the numbered entry behind
                it, so each must be followed by one sooner or later: nothing else bounds them.
            pause: Whether nothing follows it until :attr:`paused` is set back; not for one that is kept.
        """
        self._push(self.last_seq + 1, frame, _KEPT if keep else _PAUSING if pause else _PASSING)

    def _push(self, seq: int, content: Content, kind: int) -> None:
        self._unsent.append((seq, content, kind))
        self.unsent_events += 1
        self.unsent_bytes += len(content)
        self._total.used += len(content)

    # --- what goes out ------------------------------------------------------------------------------

    def take(self, limit: int) -> list[bytes]:
        """Take the oldest frames: no more once ``limit`` bytes are reached, and nothing while :attr:`paused`."""
        frames: list[bytes] = []
        size = 0
        unsent, sent, splice = self._unsent, self._sent, self._splice
        while unsent and size < limit and not self.paused:
            entry = unsent.popleft()
            seq, content, kind = entry
            length = len(content)
            self.unsent_events -= 1
            self.unsent_bytes -= length
            if self._replay_events:
                self._replay_events -= 1
                self._replay_bytes -= length
            if isinstance(content, Withheld):
                content = content.write()
            if kind == _NUMBERED:
                sent.append(entry)
                self._sent_bytes += length
                self._sent_events += 1
                self.told = seq
                content = splice(seq, content)
            elif kind == _KEPT:
                sent.append(entry)
                self._sent_bytes += length
            else:
                self._total.used -= length
                self.paused = kind == _PAUSING
            frames.append(content)
            size += len(content)
        self._look_at_lag()
        return frames

    def acknowledge(self, event_seq: int) -> bool:
        """Free what the client has read, up to ``event_seq``; say whether that was new and had been sent (P6.15)."""
        if not self.acked < event_seq <= self.told:
            return False
        self.acked = event_seq
        while self._sent and self._sent[0][0] <= event_seq:
            self._drop_oldest()
        self._look_at_lag()
        return True

    def _drop_oldest(self) -> bool:
        """Drop the oldest entry that was sent; say whether it was numbered."""
        seq, content, kind = self._sent.popleft()
        self._sent_bytes -= len(content)
        self._total.used -= len(content)
        if kind == _NUMBERED:
            self._sent_events -= 1
            self.floor = seq
        return kind == _NUMBERED

    # --- bounds -------------------------------------------------------------------------------------

    def shed(self) -> str | None:
        """Evict what was sent, oldest first, until the window is within its bounds.

        Returns:
            The name of the bound that is crossed all the same, by what is unsent: half of a window is for that, so
            that the other half is time to resume (P6.18). ``None`` where all is well.
        """
        bounds = self._bounds
        while self._sent_events and (self.kept_events > bounds.window_events or self.kept_bytes > bounds.window_bytes):
            self._evict_oldest()
        if self.lag_events * 2 > bounds.window_events:
            return "window_events"
        if self.lag_bytes * 2 > bounds.window_bytes:
            return "window_bytes"
        if self._total.used > self._total.limit:
            return "windows_bytes"
        return None

    def evict(self) -> bool:
        """Evict the older half of what was sent, for the others' sake; say whether there was anything."""
        evicted = self._sent_events > 0
        for _ in range((self._sent_events + 1) // 2):
            self._evict_oldest()
        return evicted

    def _evict_oldest(self) -> None:
        """Evict the oldest numbered entry; riders at the end stand before a number that is still to come."""
        # A rider goes with the event behind it: else that would be replayed without it.
        while not self._drop_oldest():
            pass

    @property
    def overflows(self) -> bool:
        """Whether what is unsent alone is past the whole window: nobody can resume any more without a gap."""
        return (
            self.last_seq - self.told > self._bounds.window_events
            or self.unsent_bytes > self._bounds.window_bytes
            or self._total.used > self._total.limit
        )

    @property
    def lags(self) -> bool:
        """Whether so much is unsent that the client is told, and its own agents wait."""
        bounds = self._bounds
        # Without the replay first: it is asked before every event, and then nearly always that is enough.
        if self.unsent_events <= bounds.lag_events and self.unsent_bytes <= bounds.lag_bytes:
            return False
        return self.lag_events > bounds.lag_events or self.lag_bytes > bounds.lag_bytes

    @property
    def is_drained(self) -> bool:
        """Whether no more than half of what is a lag is unsent."""
        return self.lag_events * 2 <= self._bounds.lag_events and self.lag_bytes * 2 <= self._bounds.lag_bytes

    @property
    def _unacked(self) -> int:
        """How many sent entries the client has not acknowledged; 0 where acks were not negotiated."""
        return 0 if self._bounds.unacked_events is None else self.told - self.acked

    def _look_at_lag(self) -> None:
        """End an episode of lag once half of its threshold is left: the next one is told again."""
        if self._lag_told and self.is_drained:
            self._lag_told = False
        if self._unacked_told and self._unacked * 2 <= (self._bounds.unacked_events or 0):
            self._unacked_told = False

    def begins_to_lag(self, size: int) -> bool:
        """Say whether one more entry of ``size`` bytes crosses a threshold, once in an episode of lag (P6.17).

        It is asked before that entry is appended, and the notice goes before it: behind it there may be nothing
        any more that a notice could stand before. What is unsent and what is not acknowledged are told apart: who
        never acknowledges is told so once, and still hears when he does not read.
        """
        bounds = self._bounds
        lags = not self._lag_told and (self.lag_events >= bounds.lag_events or self.lag_bytes + size > bounds.lag_bytes)
        unacked = (
            not self._unacked_told and bounds.unacked_events is not None and self._unacked >= bounds.unacked_events
        )
        self._lag_told = self._lag_told or lags
        self._unacked_told = self._unacked_told or unacked
        return lags or unacked

    # --- resume -------------------------------------------------------------------------------------

    def can_resume_from(self, last_event_seq: int) -> bool:
        """Say whether everything after ``last_event_seq`` is still here, and that number exists (P6.10)."""
        return self.floor <= last_event_seq <= self.last_seq

    def rewind(self, last_event_seq: int) -> None:
        """Put what was sent and comes after ``last_event_seq`` back in front of what is unsent.

        All that is unsent then is the new connection's replay.
        """
        while self._sent and self._sent[-1][0] > last_event_seq:
            entry = self._sent.pop()
            self._unsent.appendleft(entry)
            length = len(entry[1])
            self._sent_bytes -= length
            self._sent_events -= entry[2] == _NUMBERED
            self.unsent_events += 1
            self.unsent_bytes += length
        # A client may have more than the connection before was told: a resume from further back was cut short.
        while self._unsent and self._unsent[0][0] <= last_event_seq:
            entry = self._unsent.popleft()
            length = len(entry[1])
            self.unsent_events -= 1
            self.unsent_bytes -= length
            if entry[2] >= _PASSING:
                self._total.used -= length
            else:
                self._sent.append(entry)
                self._sent_bytes += length
                self._sent_events += entry[2] == _NUMBERED
        self.told = last_event_seq
        self._replay_events = self.unsent_events
        self._replay_bytes = self.unsent_bytes
        self._lag_told = self._unacked_told = False
        self.paused = False

    def clear(self) -> None:
        """Drop everything: nobody will take it."""
        self._total.used -= self.kept_bytes
        self._sent.clear()
        self._unsent.clear()
        self._sent_events = self._sent_bytes = 0
        self.unsent_events = self.unsent_bytes = 0
        self._replay_events = self._replay_bytes = 0
        self.floor = self.told = self.last_seq
