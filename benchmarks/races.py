"""What a cancel around a job's end does: ``python -m benchmarks.races --target arcp-trio|reference|URL --jobs N``.

Black box, over WebSocket, against any ARCP runtime. A job ends by itself after a while; cancels are sent at offsets
spread around that moment, one job after the other, in five ways: one; two at once; one from the session that submitted
the job and one from another; one, a broken connection, a resume and a second one; and one only when the job has ended.
The submitter and two subscribers follow the job to its end, and afterwards the submitter cancels once more and all list
their jobs. What nobody may ever be told is counted (:mod:`benchmarks.verdicts`).

The runtime of a URL needs an agent that takes a number of seconds as its input, sleeps for as long and returns:
``--agent`` is its name; ``--token`` is who the sessions are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import trio

from benchmarks.processes import ROOT, open_process, reference_python
from benchmarks.race_session import RaceSession
from benchmarks.verdicts import KINDS, UNANSWERED, final_status, judge, told_of

WAYS = ("one", "two", "two sessions", "drop and resume", "late")
NAP_SECONDS = 0.06
SPREAD_SECONDS = 0.02
# A terminal event that comes twice comes soon.
QUIET_SECONDS = 0.05
END_SECONDS = 3.0
RACERS = 3
CALIBRATIONS = 8
BINS = 12
_WIDTH = 40


@attrs.frozen
class Race:
    """What came of one job.

    Attributes:
        way: How it was cancelled.
        offset_ms: When, counted from the moment at which it was expected to end.
        outcome: Its final status, as its submitter was told first; ``none``, if it was not told any.
        wrong: What nobody may be told, by kind; each kind counts once for a job.
    """

    way: str
    offset_ms: float
    outcome: str
    wrong: tuple[str, ...]


class Racer:
    """Three sessions that race one job after the other.

    Args:
        open_session: Makes a session.
        agent: The agent that naps.
    """

    def __init__(self, url: str, token: str, agent: str, nursery: trio.Nursery) -> None:
        self._agent = agent
        self._owner, *self._others = (RaceSession(url, token, nursery) for _ in range(3))
        self._asked: list[tuple[RaceSession, str]] = []
        self._owner_is_lost = False

    async def open(self) -> None:
        """Connect.

        Raises:
            RuntimeError: It is not let in.
        """
        for session in (self._owner, *self._others):
            if not await session.connect():
                raise RuntimeError(f"not welcomed: {session.told}")

    async def close(self) -> None:
        """Hang up."""
        for session in (self._owner, *self._others):
            await session.drop()

    async def _submit(self) -> str:
        accepted = await self._owner.ask("job.submit", {"agent": self._agent, "input": NAP_SECONDS})
        if accepted is None or accepted["type"] != "job.accepted":
            raise RuntimeError(f"the job was not accepted: {accepted}")
        return str(accepted["payload"]["job_id"])

    async def calibrate(self) -> float:
        """Return how long after its acceptance a job's end is told, in seconds."""
        seconds = []
        for _ in range(CALIBRATIONS):
            job_id = await self._submit()
            started = trio.current_time()
            await self._owner.wait(lambda job_id=job_id: self._has_ended(self._owner, job_id))  # type: ignore[misc]
            seconds.append(trio.current_time() - started)
        return statistics.median(seconds)

    @staticmethod
    def _has_ended(session: RaceSession, job_id: str) -> bool:
        return any(frame.get("job_id") == job_id and final_status(frame) for frame in session.told)

    async def race(self, way: str, offset: float, expected: float) -> Race:
        """Run one job and cancel it ``offset`` seconds from when it is ``expected`` to end; judge what was told."""
        sessions = {"owner": self._owner, "first": self._others[0], "second": self._others[1]}
        for session in sessions.values():
            session.told.clear()
        self._asked, self._owner_is_lost = [], False
        job_id = await self._submit()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for other in self._others:
                nursery.start_soon(other.ask, "job.subscribe", {"job_id": job_id, "history": True})
        if way == "late":
            await self._owner.wait(lambda: self._has_ended(self._owner, job_id), END_SECONDS)
        await trio.sleep_until(max(started + expected + offset, trio.current_time()))
        await self._cancel(way, job_id)
        async with trio.open_nursery() as nursery:
            for session in sessions.values():
                nursery.start_soon(session.wait, lambda at=session: self._has_ended(at, job_id), END_SECONDS)
        await trio.sleep(QUIET_SECONDS)
        if not self._owner_is_lost:
            await self._post(self._owner, "job.cancel", {"job_id": job_id, "reason": "too late"})
        # What answers in order has answered all else by the time that it answers this.
        async with trio.open_nursery() as nursery:
            for session in sessions.values():
                nursery.start_soon(session.ask, "session.list_jobs", {})
        await trio.sleep(QUIET_SECONDS)
        unanswered = [message_id for session, message_id in self._asked if session.answer_to(message_id) is None]
        # An error that answers a request is no end of the job.
        views = {
            name: [frame for frame in session.told if told_of(frame, job_id)] for name, session in sessions.items()
        }
        must = frozenset(views) - ({"owner"} if self._owner_is_lost else frozenset())
        wrong = {kind for kind, _ in judge(job_id, views, must)} | ({UNANSWERED} if unanswered else set())
        outcome = next((status for frame in views["owner"] if (status := final_status(frame))), "none")
        return Race(way, offset * 1e3, outcome, tuple(kind for kind in KINDS if kind in wrong))

    async def _post(self, session: RaceSession, frame_type: str, payload: dict[str, Any]) -> None:
        """Ask for something that has to be answered by the time that all is over."""
        self._asked.append((session, await session.send(frame_type, payload)))

    async def _cancel(self, way: str, job_id: str) -> None:
        payload = {"job_id": job_id, "reason": "raced"}
        async with trio.open_nursery() as nursery:
            if way == "drop and resume":
                # What is asked on a connection that breaks may stay unanswered.
                await self._owner.send("job.cancel", payload)
                await self._owner.drop()
                if not await self._owner.connect():
                    self._owner_is_lost = True
                    return
            nursery.start_soon(self._post, self._owner, "job.cancel", payload)
            if way == "two":
                nursery.start_soon(self._post, self._owner, "job.cancel", payload)
            elif way == "two sessions":
                nursery.start_soon(self._post, self._others[0], "job.cancel", payload)


async def race_all(url: str, token: str, agent: str, jobs: int) -> list[Race]:
    """Race so many jobs; return what came of each."""
    races: list[Race] = []
    numbers = iter(range(jobs))

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            racer = Racer(url, token, agent, nursery)
            await racer.open()
            expected = await racer.calibrate()
            for number in numbers:
                # Every way goes through every offset.
                turn, way = divmod(number, len(WAYS))
                turns = max(1, (jobs - 1) // len(WAYS))
                offset = SPREAD_SECONDS * (2 * min(1.0, turn / turns) - 1)
                races.append(await racer.race(WAYS[way], offset, expected))
            await racer.close()
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(min(RACERS, jobs)):
            nursery.start_soon(run)
    return races


@contextmanager
def serving(target: str) -> Iterator[str]:
    """Start what is to be raced, unless it is a URL; return where it listens."""
    if "://" in target:
        yield target
        return
    command = {
        "arcp-trio": lambda: (sys.executable, "-m", "benchmarks.gateway_process"),
        "reference": lambda: (reference_python(), "-I", str(ROOT / "benchmarks" / "reference_process.py")),
    }[target]()
    with open_process(*command) as process:
        yield f"ws://127.0.0.1:{process.next_line()['port']}/arcp"


def table(races: list[Race]) -> str:
    """Return how many jobs of each way were told what they must not be told."""
    rows = [
        ("", *WAYS, "all"),
        ("jobs", *(str(sum(race.way == way for race in races)) for way in WAYS), str(len(races))),
    ]
    for kind in KINDS:
        counts = Counter(race.way for race in races if kind in race.wrong)
        rows.append((kind, *(str(counts[way]) for way in WAYS), str(sum(counts.values()))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def _mark(race: Race) -> str:
    mark = {"cancelled": "c", "success": "s"}.get(race.outcome, "o")
    return mark.upper() if race.wrong else mark


def plot(races: list[Race]) -> str:
    """Draw what came of the jobs, by the offset of their cancel."""
    timed = [race for race in races if race.way != "late"]
    spread = SPREAD_SECONDS * 1e3
    bins: list[list[Race]] = [[] for _ in range(BINS)]
    for race in timed:
        bins[min(BINS - 1, int((race.offset_ms + spread) / (2 * spread) * BINS))].append(race)
    most = max(map(len, bins), default=1) or 1
    lines = ["cancel sent at (ms from the expected end): c cancelled, s success, o other; capitals: something is wrong"]
    for number, each in enumerate(bins):
        marks = "".join(sorted(_mark(race) for race in each))
        scaled = marks if most <= _WIDTH else marks[:: -(-most // _WIDTH)]
        lines.append(f"{-spread + (number + 0.5) * 2 * spread / BINS:+6.1f}  {scaled}")
    return "\n".join(lines)


def main() -> None:
    """Race, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.races", description="Races cancels against job ends.")
    parser.add_argument("--target", default="arcp-trio", help="arcp-trio, reference, or a ws:// or wss:// URL")
    parser.add_argument("--jobs", type=int, default=300, help="how many jobs are raced")
    parser.add_argument("--agent", default="nap", help="the agent of a URL's runtime that sleeps and returns")
    parser.add_argument("--token", default="secret", help="the bearer token for a URL's runtime")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead")
    options = parser.parse_args()
    if "://" not in options.target and options.target not in ("arcp-trio", "reference"):
        parser.error(f"--target: expected arcp-trio, reference or a URL, got {options.target!r}")
    if options.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {options.jobs}")
    with serving(options.target) as url:
        races = trio.run(race_all, url, options.token, options.agent, options.jobs)
    races.sort(key=lambda race: race.offset_ms)
    if options.json:
        counts = Counter(kind for race in races for kind in race.wrong)
        wrong = {kind: counts[kind] for kind in KINDS}
        said = {"target": options.target, "jobs": len(races), "wrong": wrong, "races": list(map(attrs.asdict, races))}
        print(json.dumps(said, indent=2))
        return
    print(f"{options.target}: {len(races)} jobs\n\n{table(races)}\n\n{plot(races)}")


if __name__ == "__main__":
    main()
