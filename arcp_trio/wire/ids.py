"""Where every id of the wire comes from: one factory, injected, so that tests can foresee them.

Ids are a prefix and a ULID (P5.3): 26 characters of Crockford's alphabet, 48 bits of milliseconds
and 80 bits of randomness, monotonic within a factory.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from hashlib import blake2b

__all__ = ["EVENT_ID_ENDS", "EVENT_ID_PAGE_BITS", "IdFactory", "event_id_stem", "numbered_event_id"]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Two characters (ten bits) a look-up: a ULID is 13 look-ups instead of 26 shifts.
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
EVENT_ID_PAGE_BITS = 10
EVENT_ID_ENDS = tuple(pair.encode() for pair in _PAIRS)
"""What the ids of numbered frames end with, by the low :data:`EVENT_ID_PAGE_BITS` bits of their numbers."""

_RANDOM_BITS = 80
_ULID_LENGTH = 26


def _encode(value: int, pairs: int) -> str:
    """Encode the low ``10 * pairs`` bits of ``value``."""
    return "".join([_PAIRS[(value >> shift) & 1023] for shift in range(10 * (pairs - 1), -1, -10)])


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class IdFactory:
    """Mints ids; one for each runtime or client.

    Args:
        now_ms: The wall clock, in milliseconds since 1970; tests give their own.
        random_bits: Returns that many random bits; tests give a seeded one.

    Two ids of one millisecond differ by one, so ids sort in the order in which they were minted,
    also when the wall clock steps back.
    """

    __slots__ = ("_before", "_last_ms", "_now_ms", "_page", "_random", "_random_bits")

    def __init__(
        self,
        *,
        now_ms: Callable[[], int] = _wall_clock_ms,
        random_bits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self._now_ms = now_ms
        self._random_bits = random_bits
        self._last_ms = -1
        self._random = 0
        # What all ids of this millisecond have in front of their last pair, as long as counting up does not reach it.
        self._page = -1
        self._before = ""

    def ulid(self) -> str:
        """Return a new ULID, greater than all before it from this factory."""
        now = self._now_ms()
        if now > self._last_ms:
            self._last_ms = now
            # The top bit stays free, so that counting up cannot overflow into the time.
            self._random = self._random_bits(_RANDOM_BITS - 1)
            self._page = -1
        else:
            self._random += 1
        page = self._random >> 10
        if page != self._page:
            self._page = page
            self._before = _encode(self._last_ms, 5) + _encode(page, 7)
        return self._before + _PAIRS[self._random & 1023]

    def message(self) -> str:
        """Return an envelope's id."""
        return "msg_" + self.ulid()

    def session(self) -> str:
        """Return a session's id."""
        return "sess_" + self.ulid()

    def job(self) -> str:
        """Return a job's id."""
        return "job_" + self.ulid()

    def result(self) -> str:
        """Return the id of a streamed result."""
        return "res_" + self.ulid()

    def call(self) -> str:
        """Return the id of a tool call."""
        return "call_" + self.ulid()

    def credential(self) -> str:
        """Return the id of a provisioned credential."""
        return "cred_" + self.ulid()

    def delegation(self) -> str:
        """Return the id of a delegation."""
        return "del_" + self.ulid()

    def trace(self) -> str:
        """Return a W3C trace id: 32 lower-case hex digits, not all zero (P5.8)."""
        return f"{self._random_bits(128) or 1:032x}"

    def span(self) -> str:
        """Return the id of an operation in a trace: 16 lower-case hex digits, not all zero."""
        return f"{self._random_bits(64) or 1:016x}"


def event_id_stem(session_id: str) -> str:
    """Return what the ids of all numbered frames of a session begin with.

    An event's id is a function of its session and its ``event_seq``, so that a replayed frame is
    the first one byte for byte. The stem is the time of the session's ULID and 30 bits of a hash of
    the whole session id: two sessions of one millisecond differ only in their last bits.
    """
    ulid = session_id.rpartition("_")[2]
    time_part = ulid[:10] if len(ulid) == _ULID_LENGTH else "0000000000"
    digest = int.from_bytes(blake2b(session_id.encode(), digest_size=4).digest(), "big")
    return "msg_" + time_part + _encode(digest, 3)


def numbered_event_id(stem: str, event_seq: int) -> str:
    """Return the id of the frame ``event_seq`` (less than 2**50) of the session with that stem."""
    return stem + _encode(event_seq, 5)
