"""What a transport is: frames in, frames out, a close with a code.

A transport knows nothing of envelopes. Every implementation passes ``tests/transports/test_contract.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["CloseCode", "Transport", "TransportClosedError"]


class CloseCode:
    """Why a connection was closed (P4.5); the codes of RFC 6455, and ours from 4000."""

    NORMAL = 1000
    GOING_AWAY = 1001
    UNSUPPORTED_DATA = 1003
    ABNORMAL = 1006
    POLICY = 1008
    TOO_LARGE = 1009
    INTERNAL = 1011
    TRY_LATER = 1013
    REPLACED = 4000
    TOO_SLOW = 4001
    HEARTBEAT_LOST = 4002


class TransportClosedError(Exception):
    """The transport is closed: everything that was received has been read.

    Args:
        code: The close code; 1006 where the connection broke without one.
        reason: The text that came with it, or what broke.
        can_send: Whether only reading is over: frames can still be sent, and the close, with this code, is left to
            whoever reads.
    """

    def __init__(self, code: int, reason: str = "", *, can_send: bool = False) -> None:
        super().__init__(f"closed with code {code}{': ' + reason if reason else ''}")
        self.code = code
        self.reason = reason
        self.can_send = can_send


class Transport(Protocol):
    """A connection that carries frames, each one JSON text.

    One task receives, one sends; closing may come from any.
    """

    @property
    def description(self) -> str:
        """Where it leads, for logs; no secret."""
        ...

    @property
    def private(self) -> bool:
        """Whether nobody on the way can read it: within this machine's memory and pipes, or encrypted (P9.10)."""
        ...

    async def receive(self) -> Sequence[bytes | str]:
        """Return the frames that have arrived, in order, at least one.

        Raises:
            TransportClosedError: The connection has ended and all frames were returned.

        Cancellation: nothing is lost; what arrived is returned by the next call.
        """
        ...

    async def send(self, frames: Sequence[bytes]) -> None:
        """Write frames, in order, with as few writes as the transport can.

        Raises:
            TransportClosedError: The connection has ended; how much was sent is unknown.

        Cancellation: how much was sent is unknown, perhaps half of a frame; nothing but :meth:`abort` may follow.
        """

    async def aclose(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close politely, between two frames. Idempotent; returns when the peer has answered or is gone.

        Cancellation: the connection is closed without waiting for the peer.
        """

    async def abort(self) -> None:
        """Close at once, with no further byte. Idempotent; never blocks."""
