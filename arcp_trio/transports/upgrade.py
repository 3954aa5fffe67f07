"""The HTTP upgrade that a WebSocket begins with, on wsproto's state machine.

trio-websocket has the same one inside: whichever engine serves, a request gets the same answer, byte for byte.
"""

from __future__ import annotations

import re

import attrs
import trio
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, Event, RejectConnection, RejectData, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

from .base import CloseCode, TransportClosedError

__all__ = ["Refused", "UpgradeHead", "UpgradeRequest", "ask_for_upgrade", "read_upgrade"]

_READ_BYTES = 4096
_MAX_BODY_BYTES = 16 * 1024
"""What is read of a refusal: one short line of it is shown."""
_HEAD_END = re.compile(rb"\n\r?\n")
_LONGEST_HEAD_END = 3


@attrs.frozen
class UpgradeHead:
    """What a request for an upgrade says, as far as anybody asks.

    Attributes:
        target: The path, with its query.
        host: The Host header.
        origin: The Origin header, which browsers send.
    """

    target: str
    host: str | None
    origin: str | None

    @classmethod
    def of(cls, request: Request) -> UpgradeHead:
        """Read it from wsproto's event, which has the Host header apart from the others."""
        headers = {name.lower(): value for name, value in request.extra_headers}
        origin = headers.get(b"origin")
        return cls(request.target, request.host or None, None if origin is None else origin.decode("latin-1"))


@attrs.frozen
class Refused:
    """A server's answer to a request for an upgrade that is none.

    Attributes:
        status: Its HTTP status.
        body: What it says, as far as it was read.
    """

    status: int
    body: bytes


async def _read_event(stream: trio.abc.Stream, handshake: H11Handshake) -> tuple[Event | None, bytes]:
    """Read the head of a message; return what it is, and what was read behind it; no event where the peer has gone.

    The bytes behind it are WebSocket's already, where it is an upgrade: the handshake must not swallow them.

    Raises:
        RemoteProtocolError: It is no such head.
        UnicodeError: Its Host header is no name.
    """
    tail = b""
    while True:
        try:
            data = bytes(await stream.receive_some(_READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return None, b""
        if not data:
            return None, b""
        while data:
            end = _HEAD_END.search(tail + data)
            cut = len(data) if end is None else end.end() - len(tail)
            handshake.receive_data(data[:cut])
            tail = (tail + data[:cut])[1 - _LONGEST_HEAD_END :]
            data = data[cut:]
            for event in handshake.events():
                return event, data


async def _send(stream: trio.abc.Stream, data: bytes) -> None:
    try:
        await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        raise TransportClosedError(CloseCode.ABNORMAL, "the connection ended before its upgrade") from exc


class UpgradeRequest:
    """A request for an upgrade on a stream, that waits for its answer.

    Attributes:
        head: What it asks for.
        early: What the peer has sent behind it, without waiting for the answer.
    """

    def __init__(self, stream: trio.abc.Stream, handshake: H11Handshake, head: UpgradeHead, early: bytes) -> None:
        self.head = head
        self.early = early
        self._stream = stream
        self._handshake = handshake

    async def accept(self) -> None:
        """Answer with 101.

        Raises:
            TransportClosedError: The peer has gone.

        Cancellation: the stream can only be closed.
        """
        await _send(self._stream, self._handshake.send(AcceptConnection()))

    async def reject(self, status: int, reason: str) -> None:
        """Answer with another status; the stream is the caller's to close. Else as :meth:`accept`."""
        body = reason.encode()
        headers = [(b"Content-length", b"%d" % len(body))]
        answer = self._handshake.send(RejectConnection(status_code=status, headers=headers, has_body=True))
        await _send(self._stream, answer + self._handshake.send(RejectData(data=body)))


async def read_upgrade(stream: trio.abc.Stream) -> UpgradeRequest:
    """Read a request for an upgrade; what is none is answered with its HTTP status.

    Raises:
        TransportClosedError: The peer has gone, or it was none.

    Cancellation: the stream is to be closed by the caller.
    """
    handshake = H11Handshake(ConnectionType.SERVER)
    answer = early = b""
    try:
        event, early = await _read_event(stream, handshake)
        why = "the connection ended before its upgrade"
    except RemoteProtocolError as exc:
        event, why = None, f"no request for an upgrade: {exc}"
        if exc.event_hint is not None:
            answer = handshake.send(exc.event_hint)
    except UnicodeError as exc:
        event, why = None, f"no request for an upgrade: its Host header is no name: {exc}"
    if event is None:
        await _send(stream, answer)
        raise TransportClosedError(CloseCode.ABNORMAL, why)
    assert isinstance(event, Request)
    return UpgradeRequest(stream, handshake, UpgradeHead.of(event), early)


async def ask_for_upgrade(stream: trio.abc.Stream, host: str, resource: str) -> bytes | Refused | None:
    """Ask a server for an upgrade.

    Args:
        stream: The connection.
        host: What the Host header says.
        resource: The path, with its query.

    Returns:
        What the server has sent behind its 101; its refusal; or ``None`` where it hung up or its answer is neither.

    Cancellation: the stream is to be closed by the caller.
    """
    handshake = H11Handshake(ConnectionType.CLIENT)
    try:
        await _send(stream, handshake.send(Request(host=host, target=resource)))
        event, rest = await _read_event(stream, handshake)
    except (TransportClosedError, RemoteProtocolError):
        await trio.lowlevel.checkpoint()
        return None
    if isinstance(event, RejectConnection):
        body = await _read_body(stream, handshake, rest) if event.has_body else b""
        return Refused(event.status_code, body)
    return None if event is None else rest


async def _read_body(stream: trio.abc.Stream, handshake: H11Handshake, data: bytes) -> bytes:
    """Read what a refusal says, to its end or as much as is wanted."""
    body = b""
    try:
        while len(body) < _MAX_BODY_BYTES:
            for event in handshake.events():
                assert isinstance(event, RejectData)
                body += event.data
                if event.body_finished:
                    return body
            # An empty part is the end of the stream, and of a body that has no other.
            handshake.receive_data(data or bytes(await stream.receive_some(_READ_BYTES)))
            data = b""
    except (RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
        await trio.lowlevel.checkpoint()
    return body
