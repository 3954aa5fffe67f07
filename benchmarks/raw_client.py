"""A WebSocket client of a few lines on blocking sockets: so cheap that what is measured is the server.

It reads frames without looking into them: one costs about a microsecond.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Iterable
from typing import Any

from arcp_trio.wire.ids import IdFactory

__all__ = ["ClosedError", "FrameReader", "RawClient"]

_READ = 256 * 1024
# What RFC 6455 writes: the end of a message of text, a close, a ping and a pong; the lengths that more bytes follow.
_TEXT, _CLOSE, _PING, _PONG = 0x81, 0x88, 0x89, 0x8A
_LENGTH_IN_2, _LENGTH_IN_8 = 126, 127
_MASKED = 0x80
# A mask of zeros leaves everything as it is.
_MASK = bytes(4)
ACK_SECONDS = 0.25
"""As often as a polite client acknowledges (P6.15)."""


class ClosedError(Exception):
    """The server has closed the connection."""


class FrameReader:
    """Reads the frames of a server, which are not masked. Blocking.

    Args:
        connection: Where from.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._unread = b""

    def _read(self) -> bytes:
        data = self.socket.recv(_READ)
        if not data:
            raise ClosedError("the connection has ended")
        return data

    def receive(self) -> list[bytes]:
        """Read once; return the frames that are complete."""
        data = self._unread + self._read()
        frames: list[bytes] = []
        at, end = 0, len(data)
        while at + 1 < end:
            size, start = data[at + 1], at + 2
            if size == _LENGTH_IN_2:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif size == _LENGTH_IN_8:
                size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if start + size > end:
                break
            if data[at] == _TEXT:
                frames.append(data[start : start + size])
            elif data[at] == _CLOSE:
                raise ClosedError(f"closed with {int.from_bytes(data[start : start + 2], 'big')}")
            elif data[at] == _PING:
                self.socket.sendall(bytes([_PONG, _MASKED | size]) + _MASK + data[start : start + size])
            at = start + size
        self._unread = data[at:]
        return frames


class RawClient(FrameReader):
    """One connection with a session. Blocking.

    Args:
        port: Where the server listens, on loopback.
        receive_buffer: How many bytes the kernel may keep for it; ``None`` leaves that to the kernel.
    """

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        super().__init__(socket.socket())
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ids = IdFactory()
        # The server's own, once it has said it: some read no hello without one.
        self._session_id = self._ids.session()
        self._last_ack = 0.0
        self._upgrade(port)
        welcome = self._hello()
        self._session_id = welcome["session_id"]

    def _upgrade(self, port: int) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /arcp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._unread:
            self._unread += self._read()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        if b" 101 " not in head.partition(b"\r\n")[0]:
            raise ClosedError(head.decode(errors="replace"))

    def _hello(self) -> dict[str, Any]:
        self.send(
            "session.hello",
            {
                "client": {"name": "benchmark", "version": "1"},
                "auth": {"scheme": "bearer", "token": "secret"},
                "capabilities": {"encodings": ["json"], "features": ["ack", "subscribe"]},
            },
        )
        return self.receive_until("session.welcome")

    def send(self, frame_type: str, payload: dict[str, Any]) -> int:
        """Send one frame; return how many bytes it has."""
        frame = {
            "arcp": "1.1",
            "id": self._ids.message(),
            "type": frame_type,
            "session_id": self._session_id,
            "payload": payload,
        }
        # Compact, as most peers write.
        data = json.dumps(frame, separators=(",", ":")).encode()
        # All that is sent here has more than 125 bytes and less than 64 KiB.
        data = bytes([_TEXT, _MASKED | _LENGTH_IN_2]) + len(data).to_bytes(2, "big") + _MASK + data
        self.socket.sendall(data)
        return len(data)

    def receive_until(self, *types: str) -> dict[str, Any]:
        """Read up to the first frame of one of these types; what comes behind it in the same read is dropped."""
        while True:
            for text in self.receive():
                frame: dict[str, Any] = json.loads(text)
                if frame["type"] in types:
                    return frame
                if frame["type"] == "session.error":
                    raise ClosedError(str(frame["payload"]))

    def submit(self, agent: str, value: Any) -> str:
        """Submit a job; return its id."""
        self.send("job.submit", {"agent": agent, "input": value})
        return str(self.receive_until("job.accepted")["payload"]["job_id"])

    def acknowledge(self, frames: Iterable[bytes]) -> None:
        """Acknowledge what was read, now and then."""
        now = time.monotonic()
        if now - self._last_ack < ACK_SECONDS:
            return
        newest = max((seq for frame in frames if (seq := event_seq(frame)) is not None), default=None)
        if newest is not None:
            self._last_ack = now
            self.send("session.ack", {"last_processed_seq": newest})

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


def event_seq(frame: bytes) -> int | None:
    """Return a frame's number; ``None`` where it has none."""
    number = json.loads(frame).get("event_seq")
    return None if number is None else int(number)
