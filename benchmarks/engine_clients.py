"""The clients of ``benchmarks.engines``, in a process of their own: ``python -m benchmarks.engine_clients ROLE …``.

Those of a gateway say how many bytes each frame, or each job, had: a bare server is then asked for the same.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from typing import TYPE_CHECKING

import trio

import arcp_trio
from benchmarks.clients import say
from benchmarks.raw_client import FrameReader, RawClient

if TYPE_CHECKING:
    from arcp_trio.transports.engines import EngineName

_END = b'"type":"job.result"'


def stream(port: int, events: int) -> None:
    """One job that says so much, to who has submitted it."""
    client = RawClient(port)
    started = time.monotonic()
    client.send("job.submit", {"agent": "flood", "input": events})
    frames_read = bytes_read = 0
    frames: list[bytes] = []
    while not (frames and _END in frames[-1]):
        frames = client.receive()
        frames_read += len(frames)
        bytes_read += sum(map(len, frames))
        client.acknowledge(frames[-1:])
    say(seconds=time.monotonic() - started, frames=frames_read, bytes=bytes_read)
    sys.stdin.readline()


def jobs(port: int, count: int, at_once: int) -> None:
    """Jobs that return their input, so many of them at once."""
    client = RawClient(port)
    started = time.monotonic()
    for _ in range(at_once):
        asked = client.send("job.submit", {"agent": "echo", "input": None})
    sent, ended, bytes_read = at_once, 0, 0
    while ended < count:
        frames = client.receive()
        bytes_read += sum(map(len, frames))
        client.acknowledge(frames[-1:])
        for frame in frames:
            if _END not in frame:
                continue
            ended += 1
            if sent < count:
                client.send("job.submit", {"agent": "echo", "input": None})
                sent += 1
    say(seconds=time.monotonic() - started, frames=count, bytes=bytes_read, asked=asked)
    sys.stdin.readline()


def own_stream(port: int, events: int, engine: EngineName) -> None:
    """One job that says so much, to our own client."""

    async def main() -> None:
        url = f"ws://127.0.0.1:{port}/arcp"
        async with arcp_trio.open_client(url, token="secret", engine=engine) as client:
            started = time.monotonic()
            job = await client.submit("flood", events)
            count = 0
            async for _ in job.events():
                count += 1
            await job.result()
            say(seconds=time.monotonic() - started, frames=count + 2, bytes=0)

    trio.run(main)
    sys.stdin.readline()


def bare_stream(port: int, frames: int, size: int, connections: int) -> None:
    """The same frames from bare sockets."""
    readers: list[FrameReader] = []
    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", port))
        readers.append(FrameReader(connection))
    started = time.monotonic()
    with selectors.DefaultSelector() as selector:
        left = dict.fromkeys(readers, frames)
        for reader in readers:
            selector.register(reader.socket, selectors.EVENT_READ, reader)
            reader.socket.sendall(json.dumps({"do": "stream", "frames": frames, "size": size}).encode() + b"\n")
        while left:
            for key, _ in selector.select():
                left[key.data] -= len(key.data.receive())
                if not left[key.data]:
                    del left[key.data]
                    selector.unregister(key.data.socket)
    say(seconds=time.monotonic() - started, frames=frames * connections)
    sys.stdin.readline()


def bare_jobs(port: int, count: int, at_once: int, asked: int, answered: int) -> None:
    """As many requests and answers of the same sizes, over a bare socket."""
    reader = FrameReader(socket.create_connection(("127.0.0.1", port)))
    reader.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader.socket.sendall(json.dumps({"do": "answer", "asked": asked, "answered": answered}).encode() + b"\n")
    started = time.monotonic()
    for _ in range(at_once):
        reader.socket.sendall(b"x" * asked)
    sent, ended = at_once, 0
    while ended < count:
        for _ in reader.receive():
            ended += 1
            if sent < count:
                reader.socket.sendall(b"x" * asked)
                sent += 1
    say(seconds=time.monotonic() - started, frames=count)
    sys.stdin.readline()


ROLES = {"stream": stream, "jobs": jobs, "own_stream": own_stream, "bare_stream": bare_stream, "bare_jobs": bare_jobs}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*(int(each) if each.isdigit() else each for each in sys.argv[2:]))  # type: ignore[operator]
