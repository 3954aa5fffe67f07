"""Who takes part in a race: a session that outlives its connections, with all that it asked and was told."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial

import trio
from helpers import Frame, make_hello

import arcp_trio
from arcp_trio.transports.base import TransportClosedError
from arcp_trio.transports.memory import MemoryTransport, open_memory_pair

__all__ = ["Participant"]


class Participant:
    """One session of a client.

    Attributes:
        name: Its name.
        principal: Whose it is.
        told: What it was told, over all its connections.
        asked: Its requests by their ids, and on which of its connections it sent them.
        lost: The connections that have ended, counted from 1.
        excused: Those that ended before it left: what was asked on them may stay unanswered.
        connection: The present connection's number.
        refused: Whether it wanted to come back and could not.
    """

    def __init__(self, name: str, runtime: arcp_trio.Runtime, nursery: trio.Nursery, principal: str = "me") -> None:
        self.name = name
        self.principal = principal
        self.told: list[Frame] = []
        self.asked: dict[str, tuple[Frame, int]] = {}
        self.lost: set[int] = set()
        self.excused: frozenset[int] = frozenset()
        self.connection = 0
        self.refused = False
        self._runtime = runtime
        self._nursery = nursery
        self._transport: MemoryTransport | None = None
        self._session_id = ""
        self._token = ""
        self._changed = trio.Event()
        self._numbers = 0
        self._welcomed = 0

    def __repr__(self) -> str:
        return f"<Participant {self.name}>"

    async def connect(self) -> None:
        """Open a session, or come back to it on a new connection behind what it was told.

        From here on nothing is read from the connection before, which may still be there.
        """
        self.lost.add(self.connection)
        theirs, ours = open_memory_pair()
        self.connection += 1
        hello = make_hello(message_id=f"{self.name}_hello_{self.connection}")
        if self._session_id:
            hello["payload"]["resume"] = {
                "session_id": self._session_id,
                "resume_token": self._token,
                "last_event_seq": max((frame.get("event_seq", 0) for frame in self.told), default=0),
            }
        serve = partial(self._runtime.serve_transport, theirs, principal=self.principal)
        try:
            self._runtime.spawn_connection(serve, f"connection of {self.name}")
        except arcp_trio.ConnectionLostError:
            # It has shut down.
            self.lost.add(self.connection)
            self.refused = True
            return
        self._transport = ours
        with suppress(TransportClosedError):
            await ours.send([json.dumps(hello).encode()])
        self._nursery.start_soon(self._read, ours, self.connection, name=f"reader of {self.name}")
        number = self.connection
        while self._welcomed < number and number not in self.lost:
            await self._changed.wait()
        self.refused = self._welcomed < number

    async def _read(self, transport: MemoryTransport, number: int) -> None:
        try:
            while True:
                frames = [json.loads(text) for text in await transport.receive()]
                if number != self.connection:
                    return
                for frame in frames:
                    self._take(frame)
        except TransportClosedError:
            self.lost.add(number)
            self._wake()

    def _take(self, frame: Frame) -> None:
        if frame["type"] == "session.welcome":
            self._session_id = frame["session_id"]
            self._token = frame["payload"]["resume_token"]
            self._welcomed = self.connection
        self.told.append(frame)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @property
    def is_connected(self) -> bool:
        """Whether its connection is there, as far as it knows."""
        return self.connection not in self.lost

    async def drop(self) -> None:
        """Break the connection; what was not read from it is lost."""
        self.lost.add(self.connection)
        self._wake()
        if self._transport is not None:
            await self._transport.abort()

    async def leave(self) -> None:
        """Break the connection, if it is there, when all is over."""
        self.excused = frozenset(self.lost)
        await self.drop()

    async def ask(self, frame_type: str, payload: Frame) -> str:
        """Send a request; return its id. It is no error if the connection has ended.

        Not before the welcome: who speaks is taken to have read it, and to hold its token (P6.8).
        """
        while self._welcomed < self.connection and self.is_connected:
            await self._changed.wait()
        self._numbers += 1
        request_id = f"{self.name}_{self._numbers}"
        frame = {
            "arcp": "1.1",
            "id": request_id,
            "type": frame_type,
            "session_id": self._session_id,
            "payload": payload,
        }
        self.asked[request_id] = (frame, self.connection)
        assert self._transport is not None
        with suppress(TransportClosedError):
            await self._transport.send([json.dumps(frame).encode()])
        return request_id

    def answer_to(self, request_id: str) -> Frame | None:
        """Return what answers a request of this participant's, if anything has."""
        for frame in self.told:
            if request_id in (frame.get("correlation_id"), frame["payload"].get("request_id")):
                return frame
        return None

    async def answered(self, request_id: str) -> Frame | None:
        """Wait for the answer to a request; ``None`` if its connection ends first."""
        number = self.asked[request_id][1]
        while (answer := self.answer_to(request_id)) is None and number not in self.lost:
            await self._changed.wait()
        return answer
