"""A session that races: raw frames over WebSocket, to a runtime of any kind, with all that it asked and was told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import trio
import trio_websocket

from arcp_trio.wire.ids import IdFactory

__all__ = ["RaceSession"]

Frame = dict[str, Any]
_FEATURES = ["ack", "list_jobs", "subscribe", "x-arcp-trio.replies"]
_ANSWER_SECONDS = 3.0
_IDS = IdFactory()


class RaceSession:
    """One session, over one connection after the other.

    Args:
        url: Where the runtime listens.
        token: Who it is.
        nursery: Where its readers run.

    Attributes:
        told: All frames that came, over all its connections, in their order.
    """

    def __init__(self, url: str, token: str, nursery: trio.Nursery) -> None:
        self.told: list[Frame] = []
        self._url = url
        self._token = token
        self._nursery = nursery
        self._socket: trio_websocket.WebSocketConnection | None = None
        # Some read no hello without an id; the runtime's own, once it has said it.
        self._session_id = _IDS.session()
        self._resume_token: str | None = None
        self._changed = trio.Event()

    async def connect(self) -> bool:
        """Open the session, or resume it behind what it was told; return whether it was welcomed."""
        payload: Frame = {
            "client": {"name": "races", "version": "1"},
            "auth": {"scheme": "bearer", "token": self._token},
            "capabilities": {"encodings": ["json"], "features": _FEATURES},
        }
        if self._resume_token is not None:
            payload["resume"] = {
                "session_id": self._session_id,
                "resume_token": self._resume_token,
                "last_event_seq": max((frame.get("event_seq") or 0 for frame in self.told), default=0),
            }
        socket = await trio_websocket.connect_websocket_url(self._nursery, self._url, max_message_size=2**24)
        self._socket = socket
        before = len(self.told)
        self._nursery.start_soon(self._read, socket)
        await self.send("session.hello", payload)
        answered = await self.wait(
            lambda: any(frame["type"] in ("session.welcome", "session.error") for frame in self.told[before:])
        )
        welcomes = [frame for frame in self.told[before:] if frame["type"] == "session.welcome"]
        if not answered or not welcomes:
            return False
        self._session_id = welcomes[0]["session_id"]
        self._resume_token = welcomes[0]["payload"].get("resume_token")
        return True

    async def _read(self, socket: trio_websocket.WebSocketConnection) -> None:
        try:
            while True:
                frame = json.loads(await socket.get_message())
                if socket is not self._socket:
                    return
                self.told.append(frame)
                self._wake()
        except trio_websocket.ConnectionClosed:
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def drop(self) -> None:
        """Break the connection without a word."""
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket._stream.aclose()  # noqa: SLF001  # its own close says goodbye, and waits for the answer

    async def send(self, frame_type: str, payload: Frame) -> str:
        """Send a frame, if there is a connection; return its id."""
        message_id = _IDS.message()
        frame = {
            "arcp": "1.1",
            "id": message_id,
            "type": frame_type,
            "session_id": self._session_id,
            "payload": payload,
        }
        if "job_id" in payload:
            frame["job_id"] = payload["job_id"]
        if self._socket is not None:
            try:
                await self._socket.send_message(json.dumps(frame))
            except trio_websocket.ConnectionClosed:
                self._wake()
        return message_id

    async def wait(self, is_so: Callable[[], bool], seconds: float = _ANSWER_SECONDS) -> bool:
        """Wait until something is so, as far as it depends on what was told; return whether it is."""
        with trio.move_on_after(seconds):
            while not is_so():
                await self._changed.wait()
        return is_so()

    def answer_to(self, message_id: str) -> Frame | None:
        """Return what answers a request, if anything has."""
        for frame in reversed(self.told):
            payload = frame.get("payload") or {}
            if message_id in (frame.get("correlation_id"), payload.get("request_id"), payload.get("reply_to")):
                return frame
        return None

    async def ask(self, frame_type: str, payload: Frame) -> Frame | None:
        """Send a request and return its answer; ``None`` if none comes."""
        message_id = await self.send(frame_type, payload)
        await self.wait(lambda: self.answer_to(message_id) is not None)
        return self.answer_to(message_id)
