"""What one client can do to others: ``python -m benchmarks.isolation [--json]``, from the project's directory.

1. One subscriber that never reads, among 100 that do: what the others lose, what it costs the gateway in memory, and
   whether the agent is held up. Runs with and without it are interleaved.
2. One session that floods, 20,000 events at a time: how long another session's events that are due meanwhile take to
   reach its client, from when the agent said them, and from when they were due, which has the delay of the agent itself
   in it; the same beside nobody, and with the reference implementation as the server.

Gateway and clients are processes of their own. The figures of one run are comparable with each other alone: look at
the ratios, and at how long the gateway was without a processor, which is what else the machine did. It takes about ten
minutes, and Linux, whose ``/proc`` says what a process uses.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.gateway_process import LIMITS
from benchmarks.processes import ROOT, open_process, reference_python

FAN_OUT_ROUNDS = 5
LATENCY_ROUNDS = 3
READERS = 100
# Above half of a session's window, which closes a connection, and below the whole, which ends a session.
EVENTS = 6_000
LINE_BYTES = 2_000
FLOOD_EVENTS = 20_000
TICKS = 2_000
TICKS_PER_SECOND = 200
MIB = 1024 * 1024

Figures = dict[str, float]


def _clients(role: str, port: int, *numbers: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "benchmarks.clients", role, str(port), *map(str, numbers))


def fan_out(*, sleepers: int) -> Figures:
    """Measure one fan-out, with a gateway of its own."""
    with open_process(sys.executable, "-m", "benchmarks.gateway_process") as gateway:
        port = gateway.next_line()["port"]
        with open_process(*_clients("fan_out", port, READERS, sleepers, EVENTS, LINE_BYTES)) as clients:
            clients.next_line()
            memory, cpu, waited = gateway.memory("VmRSS"), gateway.cpu_seconds, gateway.waited_seconds
            clients.go_on()
            done = clients.next_line()
            memory, cpu = gateway.memory("VmHWM") - memory, gateway.cpu_seconds - cpu
            waited = gateway.waited_seconds - waited
            gateway.stop()
            said = gateway.next_line()
    return {
        "deliveries_per_second": done["frames"] / done["seconds"],
        "gateway_cpu_us_per_delivery": cpu / done["frames"] * 1e6,
        "agent_seconds": done["agent_seconds"],
        "memory_growth_bytes": memory,
        "closed_as_too_slow": said["sessions_waiting"],
        "gateway_without_processor_percent": 100 * waited / done["seconds"],
    }


def latency(server: tuple[str, ...], *, flooding: bool) -> Figures:
    """Measure how late a session's events come, while another one floods or beside none."""
    with ExitStack() as stack:
        gateway = stack.enter_context(open_process(*server))
        port = gateway.next_line()["port"]
        flooder = stack.enter_context(open_process(*_clients("flood", port, FLOOD_EVENTS))) if flooding else None
        ticker = stack.enter_context(open_process(*_clients("tick", port, TICKS, TICKS_PER_SECOND)))
        started, waited = time.monotonic(), gateway.waited_seconds
        ticks = ticker.next_line()["ticks"]
        share = (gateway.waited_seconds - waited) / (time.monotonic() - started)
        floods = [(0.0, math.inf)]
        if flooder is not None:
            flooder.go_on()
            floods = flooder.next_line()["floods"]
    measured = [tick for tick in ticks if any(start <= tick[0] < end for start, end in floods)]
    since_said = sorted(came - said for _, said, came in measured)
    since_due = sorted(came - due for due, _, came in measured)
    count = len(measured)
    figures = {
        "p50_ms": since_said[count // 2] * 1e3,
        "p99_ms": since_said[count * 99 // 100] * 1e3,
        "since_due_p50_ms": since_due[count // 2] * 1e3,
        "since_due_p99_ms": since_due[count * 99 // 100] * 1e3,
        "events_measured": count,
        "gateway_without_processor_percent": 100 * share,
    }
    if flooding:
        figures["flood_seconds"] = statistics.median(end - start for start, end in floods)
    return figures


def interleave(rounds: int, cases: dict[str, Callable[[], Figures]]) -> dict[str, list[Figures]]:
    """Run each case once in each round."""
    runs: dict[str, list[Figures]] = {name: [] for name in cases}
    for number in range(rounds):
        for name, case in cases.items():
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            runs[name].append(case())
    return runs


def median(runs: list[Figures], figure: str) -> float:
    """Return the median of a figure over the runs of a case."""
    return statistics.median(run[figure] for run in runs)


def print_table(runs: dict[str, list[Figures]]) -> None:
    """Print the median of each figure for each case, and the smallest and largest behind it."""
    for name, each in runs.items():
        print(f"\n{name}")
        for figure in each[0]:
            values = [run[figure] for run in each]
            print(f"  {figure:<34} {median(each, figure):>14,.2f}   ({min(values):,.2f} to {max(values):,.2f})")


def main() -> None:
    """Run everything and print what came of it."""
    ours = (sys.executable, "-m", "benchmarks.gateway_process")
    reference = (reference_python(), "-I", str(ROOT / "benchmarks" / "reference_process.py"))
    without, with_one = f"{READERS} subscribers", f"{READERS} subscribers and one that never reads"
    fan_outs = interleave(FAN_OUT_ROUNDS, {without: lambda: fan_out(sleepers=0), with_one: lambda: fan_out(sleepers=1)})
    quiet, flooded, compared = "beside nobody", "beside a flood", "beside a flood, reference implementation"
    latencies = interleave(
        LATENCY_ROUNDS,
        {
            quiet: lambda: latency(ours, flooding=False),
            flooded: lambda: latency(ours, flooding=True),
            compared: lambda: latency(reference, flooding=True),
        },
    )

    def ratios(figure: str) -> list[float]:
        # Of the two runs of one round: what else the machine does changes from round to round.
        return sorted(b[figure] / a[figure] for a, b in zip(fan_outs[without], fan_outs[with_one], strict=True))

    growth = median(fan_outs[with_one], "memory_growth_bytes") - median(fan_outs[without], "memory_growth_bytes")
    summary: dict[str, Any] = {
        "throughput_ratio": statistics.median(ratios("deliveries_per_second")),
        "throughput_ratio_least": ratios("deliveries_per_second")[0],
        "throughput_ratio_most": ratios("deliveries_per_second")[-1],
        "cpu_ratio": statistics.median(ratios("gateway_cpu_us_per_delivery")),
        "agent_ratio": statistics.median(ratios("agent_seconds")),
        "memory_of_the_sleeper_mib": growth / MIB,
        "window_mib": LIMITS.window_bytes / MIB,
        "p99_ms": median(latencies[flooded], "p99_ms"),
        "since_due_p99_ms": median(latencies[flooded], "since_due_p99_ms"),
        "since_due_p99_reference_ratio": median(latencies[compared], "since_due_p99_ms")
        / median(latencies[flooded], "since_due_p99_ms"),
    }
    if "--json" in sys.argv[1:]:
        print(json.dumps({"summary": summary, "fan_out": fan_outs, "latency": latencies}, indent=2))
        return
    print_table(fan_outs | latencies)
    print("\nsummary")
    for name, value in summary.items():
        print(f"  {name:<34} {value:>14,.2f}")


if __name__ == "__main__":
    main()
