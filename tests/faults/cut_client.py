"""A client that is cut off again and again and resumes by hand: it takes nothing but exactly what it is owed.

It drops no duplicate and heals no gap: what this client accepts is what the runtime has sent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio
from helpers import Frame, make_hello

from arcp_trio.transports.base import Transport, TransportClosedError
from arcp_trio.transports.websocket import open_websocket

__all__ = ["CutClient"]


class CutClient:
    """Submits jobs, reads what they say, and comes back after each cut.

    Args:
        url: The gateway, or what stands in front of it.
        submits: The payloads of the jobs to submit, by the ids of the requests.
        ahead: Released once for each line of the job that its request names, for the agents to go on.

    Attributes:
        jobs: The jobs' ids, by the ids of the requests that asked for them.
        lines: What each job has said in its log, by the job's id.
        job_seqs: The newest number of each job's own counting.
        terminals: The terminal events of each job.
        happened: What the cuts have met, counted.
    """

    def __init__(self, url: str, submits: dict[str, Frame], ahead: dict[str, trio.Semaphore]) -> None:
        self.jobs: dict[str, str] = {}
        self.lines: dict[str, list[str]] = {}
        self.job_seqs: dict[str, int] = {}
        self.terminals: dict[str, list[Frame]] = {}
        self.happened: Counter[str] = Counter()
        self.last_seq = 0
        self._url = url
        self._submits = submits
        self._ahead = ahead
        self._session_id: str | None = None
        self._token = ""
        self._numbers = 0
        self._connection = trio.CancelScope()

    @property
    def done(self) -> bool:
        """Whether every job has ended."""
        return len(self.terminals) == len(self._submits)

    def give_up_connection(self) -> None:
        """Leave the present connection without a word, as a client does that hears nothing for too long."""
        self.happened["given up"] += 1
        self._connection.cancel(reason="nothing is heard")

    async def run(self) -> None:
        """Go on until every job has ended."""
        while not self.done:
            with trio.CancelScope() as self._connection, suppress(TransportClosedError):
                async with open_websocket(
                    self._url, receive_bytes=1_000_000, connect_seconds=30, close_seconds=30
                ) as transport:
                    self.happened["upgraded"] += 1
                    try:
                        await self._talk(transport)
                    finally:
                        # No goodbye: the runtime finds out by itself.
                        await transport.abort()  # noqa: ASYNC102  # never blocks

    async def _talk(self, transport: Transport) -> None:
        hello = make_hello(message_id=self._next_id())
        if self._session_id is not None:
            hello["payload"]["resume"] = {
                "session_id": self._session_id,
                "resume_token": self._token,
                "last_event_seq": self.last_seq,
            }
        await transport.send([json.dumps(hello).encode()])
        welcomed = False
        while not self.done:
            for text in await transport.receive():
                frame = json.loads(text)
                assert (frame["type"] == "session.welcome") is not welcomed, frame
                welcomed = True
                self._read(frame)
            await transport.send(self._requests())

    def _next_id(self) -> str:
        self._numbers += 1
        return f"msg_{self._numbers}"

    def _requests(self) -> Sequence[bytes]:
        """Return an ack, and the submits that were not answered, each the same as before (P5.7)."""
        frames = [
            self._frame("job.submit", request_id, payload)
            for request_id, payload in self._submits.items()
            if request_id not in self.jobs
        ]
        frames.append(self._frame("session.ack", self._next_id(), {"last_processed_seq": self.last_seq}))
        return frames

    def _frame(self, frame_type: str, message_id: str, payload: Any) -> bytes:
        frame = {
            "arcp": "1.1",
            "id": message_id,
            "type": frame_type,
            "session_id": self._session_id,
            "payload": payload,
        }
        return json.dumps(frame).encode()

    def _read(self, frame: Frame) -> None:
        frame_type, payload = frame["type"], frame["payload"]
        if "event_seq" in frame:
            assert frame["event_seq"] == self.last_seq + 1, (self.last_seq, frame)
            self.last_seq += 1
        if frame_type == "session.welcome":
            self._welcomed(payload)
        elif frame_type == "job.accepted":
            job_id = self.jobs.setdefault(payload["request_id"], payload["job_id"])
            assert job_id == payload["job_id"], "one submit made two jobs"
            self.lines.setdefault(job_id, [])
        elif frame_type == "job.event":
            self._read_event(frame)
        elif frame_type in ("job.result", "job.error"):
            assert frame["job_id"] in self.lines, "nothing precedes job.accepted"
            self.terminals.setdefault(frame["job_id"], []).append(frame)
            self._count_job_seq(frame)
        else:
            assert frame_type == "x-arcp-trio.replayed", frame

    def _welcomed(self, payload: Frame) -> None:
        if self._session_id is None:
            self._session_id = payload["session_id"]
        else:
            self.happened["resumed"] += 1
        assert payload["session_id"] == self._session_id
        self._token = payload["resume_token"]

    def _read_event(self, frame: Frame) -> None:
        job_id = frame["job_id"]
        assert job_id in self.lines, "nothing precedes job.accepted"
        assert job_id not in self.terminals, "nothing follows a terminal event"
        if frame["payload"]["kind"] == "status":
            assert frame["payload"]["body"]["phase"] == "back_pressure", frame
            return
        self.lines[job_id].append(frame["payload"]["body"]["message"])
        self._count_job_seq(frame)
        (request_id,) = [request for request, each in self.jobs.items() if each == job_id]
        self._ahead[request_id].release()

    def _count_job_seq(self, frame: Frame) -> None:
        job_seq = frame["extensions"]["x-vendor.arcp-trio.job_seq"]
        assert job_seq == self.job_seqs.get(frame["job_id"], 0) + 1, frame
        self.job_seqs[frame["job_id"]] = job_seq
