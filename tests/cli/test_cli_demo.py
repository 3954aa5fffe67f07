from __future__ import annotations

import json
import re
from collections.abc import Sequence

import attrs
import pytest
from cli.processes import open_command, run_command

from arcp_trio.cli import demo as demo_module
from arcp_trio.cli import demo_agents
from arcp_trio.cli.demo import LATE_CANCELS
from arcp_trio.cli.demo_report import Row, Totals, find_problems
from arcp_trio.cli.demo_wire import WireCounter
from arcp_trio.cli.errors import CommandError, ExitCode
from arcp_trio.transports.base import CloseCode

LAST_LINE = re.compile(r"demo: jobs=(\d+) terminal_events=(\d+) duplicates=(\d+) late_cancels=(\d+) ignored=(\d+)")


def read_last_line(stdout: str) -> tuple[int, ...]:
    match = LAST_LINE.fullmatch(stdout.splitlines()[-1])
    assert match, stdout
    assert stdout.endswith("\n")
    return tuple(map(int, match.groups()))


@pytest.mark.requirement("P7.8", "P7.14")
async def test_the_demo_on_real_files() -> None:
    done = await run_command("demo")
    assert done.returncode == ExitCode.OK, done.stdout
    assert done.stderr == ""
    assert read_last_line(done.stdout) == (7, 7, 0, 7 * LATE_CANCELS, 7 * LATE_CANCELS)
    assert "\x1b" not in done.stdout
    table = done.stdout[done.stdout.index("agent  ") :]
    for agent, status in [("count", "success"), ("fail", "error"), ("endless", "timed_out"), ("hash", "cancelled")]:
        assert re.search(rf"^{agent}@1\.0\.0 .* {status} .* 25/25 ", table, re.MULTILINE), table


@pytest.mark.requirement("P7.8", "P7.8a", "P7.14", "P8.5")
async def test_the_demo_as_json() -> None:
    done = await run_command("demo", "--json")
    assert done.returncode == ExitCode.OK, done.stdout
    *lines, _ = done.stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert read_last_line(done.stdout)[0] == len(rows)
    assert [(row["agent"], row["status"]) for row in rows] == [
        ("count@1.0.0", "success"),
        ("hash@1.0.0", "success"),
        ("search@1.0.0", "success"),
        ("bundle@1.0.0", "success"),
        ("fail@1.0.0", "error"),
        ("endless@1.0.0", "timed_out"),
        ("hash@1.0.0", "cancelled"),
    ]
    assert all((row["terminal_events"], row["after_end"], row["fault"]) == (1, 0, None) for row in rows)
    assert len({row["job_id"] for row in rows}) == len(rows)
    # Its work is what the agents really did.
    assert str(len(demo_agents.sources())) in rows[1]["summary"]
    assert "no_such_module" not in rows[4]["summary"]


async def test_control_c_ends_the_demo() -> None:
    async with open_command("demo") as command:
        await command.until("endless       accepted")
        command.interrupt()
        assert await command.ended() == ExitCode.INTERRUPTED
    assert command.stderr == ""


# --- what it would not let pass ---------------------------------------------------------------------

GOOD = Row(
    agent="count@1.0.0",
    job_id="job_1",
    expected="success",
    status="success",
    events=10,
    terminal_events=1,
    after_end=0,
    late_cancels=25,
    ignored=25,
    seconds=1.0,
    summary="all is well",
)


def test_a_good_demo_has_no_problems() -> None:
    assert find_problems([GOOD, GOOD]) == []
    line = Totals.of([GOOD, GOOD]).line
    assert line == "demo: jobs=2 terminal_events=2 duplicates=0 late_cancels=50 ignored=50"


@pytest.mark.parametrize(
    ("change", "problem", "line"),
    [
        ({"terminal_events": 2}, "2 terminal events", "terminal_events=3 duplicates=1 late_cancels=50 ignored=50"),
        ({"terminal_events": 0}, "0 terminal events", "terminal_events=1 duplicates=0 late_cancels=50 ignored=50"),
        ({"ignored": 24}, "24 of 25 late", "terminal_events=2 duplicates=0 late_cancels=50 ignored=49"),
        ({"status": "cancelled"}, "ended as cancelled, expected success", "ignored=50"),
        ({"after_end": 1}, "1 frames after its terminal", "ignored=50"),
        ({"fault": "other bytes"}, "other bytes", "ignored=50"),
    ],
)
def test_what_differs_is_a_problem(change: dict[str, object], problem: str, line: str) -> None:
    rows = [GOOD, attrs.evolve(GOOD, **change)]
    assert len(find_problems(rows)) == 1
    assert problem in find_problems(rows)[0]
    assert Totals.of(rows).line.endswith(line)


@pytest.mark.parametrize(("terminals", "code"), [(1, ExitCode.OK), (2, ExitCode.FAILED)])
async def test_the_exit_code_is_1_where_the_numbers_differ(
    terminals: int, code: ExitCode, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def run(view: object) -> list[Row]:
        return [GOOD, attrs.evolve(GOOD, job_id="job_2", terminal_events=terminals)]

    monkeypatch.setattr(demo_module, "_run", run)
    assert await demo_module.demo(as_json=False) is code
    said = capfd.readouterr()
    assert read_last_line(said.out) == (2, 1 + terminals, terminals - 1, 50, 50)
    assert ("2 terminal events" in said.err) == (code is ExitCode.FAILED)


async def test_a_platform_without_safe_files_has_no_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "CAN_OPEN", False)
    with pytest.raises(CommandError, match="this platform"):
        await demo_module.demo(as_json=True)


class _Recorded:
    """A transport that gives what it was given, one batch at a time."""

    def __init__(self, *batches: Sequence[str]) -> None:
        self._batches = list(batches)
        self.calls: list[object] = []

    @property
    def description(self) -> str:
        return "recorded"

    async def receive(self) -> Sequence[bytes | str]:
        return self._batches.pop(0)

    async def send(self, frames: Sequence[bytes]) -> None:
        self.calls.append(("send", list(frames)))

    async def aclose(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        self.calls.append(("aclose", code, reason))

    async def abort(self) -> None:
        self.calls.append("abort")


def frame(kind: str, job_id: str | None = None) -> str:
    return json.dumps({"type": kind, "payload": {}} | ({} if job_id is None else {"job_id": job_id}))


@pytest.mark.requirement("P7.8")
async def test_the_wire_counter_counts_what_a_client_would_hide() -> None:
    first = [frame("session.welcome"), frame("job.accepted", "a"), frame("job.event", "a"), frame("job.event", "b")]
    second = [frame("job.result", "a"), frame("job.error", "a"), frame("job.event", "a"), frame("job.error", "b")]
    recorded = _Recorded(first, second)
    wire = WireCounter(recorded)
    assert await wire.receive() == first
    assert await wire.receive() == second
    assert wire.events == {"a": 2, "b": 1}
    assert wire.terminals == {"a": 2, "b": 1}
    assert wire.after_end == {"a": 2}
    await wire.send([b"x"])
    await wire.aclose(1001, "bye")
    await wire.abort()
    assert recorded.calls == [("send", [b"x"]), ("aclose", 1001, "bye"), "abort"]
    assert wire.description == "recorded"
