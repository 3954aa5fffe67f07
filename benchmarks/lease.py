"""What it costs to ask a lease: ``python -m benchmarks.lease [--json]``, from the project's directory.

1. One check against leases with 1, 10 and 100 patterns of each kind, covered by the last of them and covered by none.
2. The same check as the first, and after 50,000 others.
3. Whether a lease of 100 patterns lies within another one, and what of it a ceiling leaves.

Medians of rounds that are interleaved; the figures of one run are comparable with each other alone. It takes about
half a minute.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

from arcp_trio import Lease, LeaseCeiling

SIZES = (1, 10, 100)
ROUNDS = 15
CHECKS = 200
OTHERS = 50_000

# Of each kind: the patterns, a target that only the n-th covers, one that none does.
KINDS: dict[str, tuple[str, Callable[[int], str], Callable[[int], str], str]] = {
    "paths": ("fs.read", "/ws/project{}/src/**/*.py".format, "/ws/project{}/src/a/b/c.py".format, "/ws/other/a.py"),
    "suffixes": ("fs.read", "/ws/*/*.type{}".format, "/ws/a/b.type{}".format, "/ws/a/b.other"),
    "URLs": (
        "net.fetch",
        "https://host{}.example.com/api/**".format,
        "https://host{}.example.com/api/v1/things?page=2".format,
        "https://evil.example.net/api/",
    ),
    "hosts": (
        "net.fetch",
        "https://*.host{}.example/**".format,
        "https://a.host{}.example/b".format,
        "https://evil.example/",
    ),
    "names": ("tool.call", "tool{}".format, "tool{}".format, "other"),
    "families": ("tool.call", "server{}.**".format, "server{}.search.fast".format, "other.search.fast"),
}


def lease_of(namespace: str, texts: list[str]) -> Lease:
    """Return a lease that has been asked once, so that it is compiled."""
    lease = Lease.read({namespace: texts}, None, now_ms=0)
    lease.covers(namespace, "/")
    return lease


def microseconds(does: Callable[[], object], calls: int = CHECKS) -> float:
    """Return what one of so many calls takes of a processor, in microseconds: others use the machine too."""
    start = time.process_time()
    for _ in range(calls):
        does()
    return (time.process_time() - start) / calls * 1e6


def checks() -> dict[str, float]:
    """Return the median of each check, in microseconds."""
    cases: dict[str, Callable[[], object]] = {}
    for kind, (namespace, pattern, target, other) in KINDS.items():
        for size in SIZES:
            lease = lease_of(namespace, [pattern(number) for number in range(size)])
            covered = target(size - 1)
            assert lease.covers(namespace, covered)
            assert not lease.covers(namespace, other)
            for name, text in (("covered", covered), ("not covered", other)):
                cases[f"{kind}, {size}, {name}"] = lambda n=namespace, t=text, asked=lease: asked.covers(n, t)
    runs = [{name: microseconds(case) for name, case in cases.items()} for _ in range(ROUNDS)]
    return {name: statistics.median(run[name] for run in runs) for name in cases}


def growth() -> dict[str, float]:
    """Return the first checks and those behind 50,000 others, in microseconds, and their ratio."""
    namespace, pattern, target, _ = KINDS["paths"]
    lease = lease_of(namespace, [pattern(number) for number in range(100)])

    def check() -> None:
        lease.covers(namespace, target(99))

    first = statistics.median(microseconds(check) for _ in range(ROUNDS))
    for number in range(OTHERS):
        lease.covers(namespace, f"/ws/project{number % 100}/src/{number}/a.py")
    last = statistics.median(microseconds(check) for _ in range(ROUNDS))
    return {"first_us": first, f"after_{OTHERS}_us": last, "ratio": last / first}


def comparisons() -> dict[str, float]:
    """Return what it costs to read a lease of 100 patterns, and to compare it with another, in microseconds."""
    child, parent = (
        [f"https://*.host{number}.example/{path}" for number in range(100)] for path in ("api/v1/**", "api/**")
    )
    small, large = lease_of("net.fetch", child), lease_of("net.fetch", parent)
    ceiling = LeaseCeiling(grants={"net.fetch": [f"https://good.*{number}.example/**" for number in range(100)]})
    assert small.excess_over(large) is None
    cases = {
        "read": lambda: Lease.read({"net.fetch": child}, None, now_ms=0),
        "read_and_first_check": lambda: lease_of("net.fetch", child),
        "excess_over": lambda: small.excess_over(large),
        "within": lambda: large.within(ceiling, now_ms=0),
    }
    runs = [{name: microseconds(case, 3) for name, case in cases.items()} for _ in range(ROUNDS)]
    return {f"{name}_us": statistics.median(run[name] for run in runs) for name in cases}


def main() -> None:
    """Run everything and print what came of it."""
    found = {"a check, in microseconds": checks(), "growth": growth(), "100 patterns": comparisons()}
    if "--json" in sys.argv[1:]:
        print(json.dumps(found, indent=2))
        return
    for title, figures in found.items():
        print(f"\n{title}")
        for name, value in figures.items():
            print(f"  {name:<34} {value:>12,.2f}")


if __name__ == "__main__":
    main()
