"""The two engines beside each other, and beside bare sockets: ``python -m benchmarks.engines [--rounds N] [--json]``.

1. A job of 20,000 events, to one raw client and to our own.
2. A job of 500 events, to 100 followers and who has submitted it.
3. Jobs that return their input, one at a time and 100 at once.

Each is run on trio-websocket, on websockets, and on bare sockets that carry the same number of bytes in frames, or in
requests and answers, of the same sizes: no protocol on Trio can do better. Servers and clients are processes of their
own, a new pair for each run, and the subjects take turns. The figures of one run are comparable with each other alone:
look at the ratios, each of two runs of the same round. It takes about a minute, and Linux, whose ``/proc`` says what a
process uses.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from benchmarks.processes import open_process

ENGINES = ("trio-websocket", "websockets")
BARE = "bare sockets"
EVENTS = 20_000
FOLLOWERS = 100
FOLLOWED_EVENTS = 500
JOBS = 500
JOBS_AT_ONCE = 100

Figures = dict[str, float]


def _run(server: tuple[str, ...], role: tuple[str, ...], *numbers: object) -> tuple[Figures, dict[str, Any]]:
    """Measure one client with a server of its own; return the figures, and what the client said."""
    with open_process(sys.executable, "-m", *server) as gateway:
        port = gateway.next_line()["port"]
        with open_process(sys.executable, "-m", *role, str(port), *map(str, numbers)) as client:
            cpu = gateway.cpu_seconds
            done = client.next_line()
            if "ready" in done:
                # Who has many sessions to open first.
                cpu = gateway.cpu_seconds
                client.go_on()
                done = client.next_line()
            cpu = gateway.cpu_seconds - cpu
            frames = done["frames"]
    return {"per_second": frames / done["seconds"], "server_cpu_us": cpu / frames * 1e6}, done


class Case:
    """One kind of work, on every subject.

    Args:
        name: What is counted.
        role: The module and the role of the gateway's client.
        numbers: What it is told.
        bare: The role of the bare server's client, and what it is told when it is known what a gateway's client has
            read; ``None`` where there is none.
    """

    def __init__(
        self,
        name: str,
        role: tuple[str, ...],
        *numbers: int,
        bare: Callable[[dict[str, Any]], tuple[object, ...]] | None = None,
        tells_engine: bool = False,
    ) -> None:
        self.name = name
        self.runs: dict[str, list[Figures]] = {}
        self._role = role
        self._numbers = numbers
        self._bare = bare
        self._tells_engine = tells_engine

    def run(self, order: int) -> None:
        """Run one round; every second one the other way round."""
        said: dict[str, Any] = {}
        for engine in ENGINES[:: 1 if order % 2 == 0 else -1]:
            numbers = (*self._numbers, engine) if self._tells_engine else self._numbers
            figures, said = _run(("benchmarks.gateway_process", engine), self._role, *numbers)
            self.runs.setdefault(engine, []).append(figures)
        if self._bare is not None:
            role, *numbers = self._bare(said)
            client = ("benchmarks.engine_clients", str(role))
            self.runs.setdefault(BARE, []).append(_run(("benchmarks.bare_process",), client, *numbers)[0])

    def ratios(self, figure: str, one: str, other: str) -> list[float]:
        """Return how often ``other`` goes into ``one``, round by round, in order."""
        pairs = zip(self.runs[one], self.runs[other], strict=True)
        return sorted(a[figure] / b[figure] for a, b in pairs)


def _stream_of(frames: int, connections: int) -> Callable[[dict[str, Any]], tuple[object, ...]]:
    """Have a bare server send as many frames as a gateway's client has read, to each of so many connections."""
    return lambda said: ("bare_stream", frames, said["bytes"] // said["frames"] + 4, connections)


def _jobs_of(at_once: int) -> Callable[[dict[str, Any]], tuple[object, ...]]:
    return lambda said: ("bare_jobs", JOBS, at_once, said["asked"], said["bytes"] // said["frames"] + 4)


def make_cases() -> list[Case]:
    """Return what is measured."""
    clients = "benchmarks.engine_clients"
    return [
        Case("events to one raw client", (clients, "stream"), EVENTS, bare=_stream_of(EVENTS, 1)),
        Case("events to our own client", (clients, "own_stream"), EVENTS, tells_engine=True),
        Case(
            f"deliveries to {FOLLOWERS} followers",
            ("benchmarks.clients", "fan_out"),
            FOLLOWERS,
            0,
            FOLLOWED_EVENTS,
            20,
            bare=_stream_of(FOLLOWED_EVENTS, FOLLOWERS + 1),
        ),
        Case("jobs, one at a time", (clients, "jobs"), JOBS, 1, bare=_jobs_of(1)),
        Case(f"jobs, {JOBS_AT_ONCE} at once", (clients, "jobs"), JOBS * 4, JOBS_AT_ONCE, bare=_jobs_of(JOBS_AT_ONCE)),
    ]


def print_table(cases: list[Case]) -> None:
    """Print medians and ranges, and the ratios, as Markdown."""
    print("| work | subject | per second | (range) | server CPU, us | (range) |")
    print("|---|---|---|---|---|---|")
    for case in cases:
        for subject, runs in case.runs.items():
            cells = [case.name, subject]
            for figure, digits in (("per_second", 0), ("server_cpu_us", 2)):
                values = [run[figure] for run in runs]
                cells.append(f"{statistics.median(values):,.{digits}f}")
                cells.append(f"{min(values):,.{digits}f} to {max(values):,.{digits}f}")
            print(f"| {' | '.join(cells)} |")
    fast, plain = ENGINES[1], ENGINES[0]
    print("\n| work | websockets / trio-websocket | the same, CPU | websockets / bare sockets |\n|---|---|---|---|")
    for case in cases:
        cells = [_shown(case.ratios("per_second", fast, plain)), _shown(case.ratios("server_cpu_us", fast, plain))]
        cells.append(_shown(case.ratios("per_second", fast, BARE)) if BARE in case.runs else "")
        print(f"| {case.name} | {' | '.join(cells)} |")


def _shown(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def main() -> None:
    """Run everything and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cases = make_cases()
    for number in range(options.rounds):
        for case in cases:
            print(f"round {number + 1} of {options.rounds}: {case.name}", file=sys.stderr)
            case.run(number)
    versions = {name: version(name) for name in ("trio", "trio-websocket", "websockets")}
    if options.json:
        print(json.dumps({"versions": versions, "runs": {case.name: case.runs for case in cases}}, indent=2))
        return
    print_table(cases)
    print(f"\nPython {platform.python_version()}, {', '.join(f'{name} {each}' for name, each in versions.items())}")


if __name__ == "__main__":
    main()
