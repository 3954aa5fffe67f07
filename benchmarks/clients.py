"""The clients of a benchmark, in a process of their own: ``python -m benchmarks.clients ROLE PORT …``.

They write JSON lines; each line of stdin lets them take the next step.
"""

from __future__ import annotations

import json
import selectors
import sys
import threading
import time
from typing import Any

from benchmarks.raw_client import ClosedError, RawClient

_END = b'"type":"job.result"'
_FAILED = b'"type":"job.error"'
_PAUSE_SECONDS = 0.2


def say(**fields: Any) -> None:
    """Tell the benchmark."""
    print(json.dumps(fields), flush=True)


def fan_out(port: int, readers: int, sleepers: int, events: int, size: int) -> None:
    """One job, many subscribers that read and some that never do: how long until all who read have all of it."""
    owner = RawClient(port)
    job_id = owner.submit("flood_when_begun", [events, size])
    clients = [owner]
    for _ in range(readers):
        clients.append(RawClient(port))
        clients[-1].send("job.subscribe", {"job_id": job_id})
        clients[-1].receive_until("job.subscribed")
    asleep = [RawClient(port, receive_buffer=4096) for _ in range(sleepers)]
    for client in asleep:
        client.send("job.subscribe", {"job_id": job_id})
        client.receive_until("job.subscribed")
    say(ready=True)
    sys.stdin.readline()

    started = time.monotonic()
    # Not by the owner, whose own answers would stand between its job's events.
    beginner = RawClient(port)
    beginner.send("job.submit", {"agent": "begin", "input": None})
    frames_read = bytes_read = 0
    agent_seconds = None
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        waiting = len(clients)
        while waiting:
            for key, _ in selector.select():
                client = key.data
                frames = client.receive()
                frames_read += len(frames)
                bytes_read += sum(map(len, frames))
                client.acknowledge(frames[-1:])
                if frames and any(mark in frames[-1] for mark in (_END, _FAILED)):
                    selector.unregister(client.socket)
                    waiting -= 1
                    end = json.loads(frames[-1])
                    # All of it has come: the job's own numbers say so.
                    number = end["extensions"]["x-vendor.arcp-trio.job_seq"]
                    if (end["type"], number) != ("job.result", events + 1):
                        raise ClosedError(f"not the end that was expected: {end}")
                    agent_seconds = end["payload"]["result"]
    seconds = time.monotonic() - started
    say(seconds=seconds, frames=frames_read, bytes=bytes_read, agent_seconds=agent_seconds)
    sys.stdin.readline()


def flood(port: int, events: int) -> None:
    """Submit jobs of so many events, with a pause after each, and read all they say: from when to when?"""
    client = RawClient(port)
    over = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.readline()
        over.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    floods: list[tuple[float, float]] = []
    while not over.is_set():
        client.send("job.submit", {"agent": "flood", "input": events})
        started = time.monotonic()
        ended = False
        while not ended:
            frames = client.receive()
            client.acknowledge(frames[-1:])
            ended = bool(frames) and _END in frames[-1]
        floods.append((started, time.monotonic()))
        # What the flood has held up comes now: without a pause some servers would never get to it.
        over.wait(_PAUSE_SECONDS)
    say(floods=floods)


def tick(port: int, events: int, hertz: int) -> None:
    """Submit a job that speaks at a steady pace: due, said and come when?"""
    client = RawClient(port)
    client.send("job.submit", {"agent": "tick", "input": [events, hertz]})
    ticks: list[tuple[float, float, float]] = []
    while True:
        frames = client.receive()
        now = time.monotonic()
        for text in frames:
            frame = json.loads(text)
            if frame["type"] == "job.event":
                due, said = map(float, frame["payload"]["body"]["message"].split())
                ticks.append((due, said, now))
            elif frame["type"] == "job.result":
                say(ticks=ticks)
                return
            elif frame["type"] != "job.accepted":
                raise ClosedError(f"not expected: {frame}")


ROLES = {"fan_out": fan_out, "flood": flood, "tick": tick}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*map(int, sys.argv[2:]))
