"""``arcp-trio demo``: a gateway, a client and real jobs in one process, with a real WebSocket between them.

Theory of operation. The runtime and the client share the process and nothing else: what the client knows came over
the wire, and a transport below it counts there. Jobs run at once; when all have ended, each is cancelled
many times more, at once. Then the rows are compared with what must be so, by :mod:`arcp_trio.cli.demo_report`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._version import __version__
from ..client.client import Client
from ..client.job_handle import CancelOutcome, JobHandle
from ..client.opening import open_client_over
from ..client.results import ResultFile
from ..gateway import Listening, serve_websocket
from ..jobs.guarded_files import CAN_OPEN
from ..limits import Limits
from ..runtime import open_runtime
from ..sessions.auth import StaticTokens
from ..transports.base import TransportClosedError
from ..transports.websocket import open_websocket
from ..wire.errors import ARCPError
from ..wire.jsontext import JSONValue, encode_json
from .connect import CLIENT_LIMITS
from .demo_agents import agents, lease, library_root, sources
from .demo_report import Row, Totals, find_problems, make_table
from .demo_views import DemoView, LinesDemoView, LiveDemoView, QuietDemoView
from .demo_wire import WireCounter
from .errors import CommandError, ExitCode, describe_error, leaves
from .interrupts import run_interruptible
from .terminal import Output, complain, make_console
from .text import count_of, size_of

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["LATE_CANCELS", "demo"]

LATE_CANCELS = 25
"""Cancels that each job gets after its end, all at once."""

_TIMEOUT_SECONDS = 2.0
_CANCEL_AFTER_SECONDS = 1.0


@attrs.frozen(kw_only=True)
class _Truth:
    """What the demo finds out about the files by itself, to compare the jobs' results with."""

    files: int
    size: int
    sha256: str
    digests: dict[str, str]


@attrs.frozen(kw_only=True)
class _Plan:
    """One job of the demo: what is submitted, and what must come of it.

    Attributes:
        name: What the demo calls it.
        agent: The agent.
        input: Its input.
        expected: The terminal state that it must have.
        max_runtime_sec: Its time limit.
        cancel_midway: Whether it is cancelled in the middle of its work.
        check: Compares its result with the truth; returns a summary, and what is wrong or ``None``.
    """

    name: str
    agent: str
    input: JSONValue = None
    expected: str = "success"
    max_runtime_sec: float | None = None
    cancel_midway: bool = False
    check: Callable[[Any, _Truth], tuple[str, str | None]] | None = None


@attrs.define
class _Ended:
    """A job that has ended, and what is still to be done to it."""

    plan: _Plan
    job: JobHandle
    seconds: float
    summary: str
    fault: str | None
    sent: int = 0
    ignored: int = 0


def _find_truth() -> _Truth:
    root = library_root()
    whole = hashlib.sha256()
    digests: dict[str, str] = {}
    size = 0
    for path in sources():
        data = path.read_bytes()
        size += len(data)
        whole.update(data)
        digests[path.relative_to(root).as_posix()] = hashlib.sha256(data).hexdigest()
    return _Truth(files=len(digests), size=size, sha256=whole.hexdigest(), digests=digests)


def _check_count(result: Any, truth: _Truth) -> tuple[str, str | None]:
    summary = f"{count_of(result['lines'], 'line')}, {count_of(result['words'], 'word')}"
    return summary, None if result["files"] == truth.files else f"counted {result['files']} of {truth.files} files"


def _check_hash(result: Any, truth: _Truth) -> tuple[str, str | None]:
    fault = None if result == truth.digests else "its digests are not those of the files"
    return f"{truth.files} digests, as computed here", fault


def _check_search(result: Any, _: _Truth) -> tuple[str, str | None]:
    summary = f"{result['matches']:,} matches in {result['files']} files"
    return summary, None if result["matches"] else "it found nothing"


def _check_bundle(result: Any, truth: _Truth) -> tuple[str, str | None]:
    data = result.path.read_bytes() if isinstance(result, ResultFile) else str(result).encode()
    digest = hashlib.sha256(data).hexdigest()
    if (len(data), digest) != (truth.size, truth.sha256):
        return size_of(len(data)), f"{len(data)} bytes with sha256 {digest[:12]}…, expected {truth.size} bytes"
    return f"{size_of(len(data))}, sha256 {digest[:8]}… as computed here", None


_PLANS = (
    _Plan(name="count", agent="count", check=_check_count),
    _Plan(name="hash", agent="hash", check=_check_hash),
    _Plan(name="search", agent="search", input={"word": "class", "every": 400}, check=_check_search),
    _Plan(name="bundle", agent="bundle", check=_check_bundle),
    _Plan(name="fail", agent="fail", expected="error"),
    _Plan(name="endless", agent="endless", expected="timed_out", max_runtime_sec=_TIMEOUT_SECONDS),
    # More passes than the fastest machine makes before it is cancelled.
    _Plan(name="cancelled", agent="hash", input={"passes": 1_000}, expected="cancelled", cancel_midway=True),
)


class _Demo:
    """One run."""

    def __init__(self, client: Client, wire: WireCounter, view: DemoView, truth: _Truth) -> None:
        self._client = client
        self._wire = wire
        self._view = view
        self._truth = truth
        self._ended: dict[str, _Ended] = {}
        self._answered = 0

    async def run(self) -> list[Row]:
        """Run all jobs, then cancel them too late; return the rows, in the order of the plans."""
        async with trio.open_nursery() as nursery:
            for plan in _PLANS:
                # One after the other until it is accepted, so that the bars stand in this order.
                await nursery.start(self._run_job, plan, name=f"demo: {plan.name}")
        async with trio.open_nursery() as nursery:
            for ended in self._ended.values():
                for _ in range(LATE_CANCELS):
                    nursery.start_soon(self._cancel_late, ended)
        return [self._row(self._ended[plan.name]) for plan in _PLANS]

    async def _run_job(self, plan: _Plan, *, task_status: trio.TaskStatus[None]) -> None:
        job = await self._client.submit(
            plan.agent, plan.input, lease_request=lease(), max_runtime_sec=plan.max_runtime_sec
        )
        started = trio.current_time()
        self._view.start(plan.name)
        task_status.started()
        async with trio.open_nursery() as nursery:
            if plan.cancel_midway:
                nursery.start_soon(self._cancel_midway, job)
            async for event in job.events():
                self._view.event(plan.name, event)
                # Ready events come without a turn of the loop, and the others want to be drawn too.
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel(reason="the job has ended")
        seconds = trio.current_time() - started
        fault: str | None = None
        try:
            result = await job.result()
        except ARCPError as exc:
            summary = describe_error(exc)
        else:
            summary = "succeeded"
            if plan.check is not None:
                # Hashing megabytes would hold up the other jobs' events.
                summary, fault = await trio.to_thread.run_sync(plan.check, result, self._truth)
        self._view.end(plan.name, job.status, fault or summary)
        self._ended[plan.name] = _Ended(plan=plan, job=job, seconds=seconds, summary=summary, fault=fault)

    async def _cancel_midway(self, job: JobHandle) -> None:
        await trio.sleep(_CANCEL_AFTER_SECONDS)
        await job.cancel("the demo wants it so")

    async def _cancel_late(self, ended: _Ended) -> None:
        ended.sent += 1
        try:
            outcome = await ended.job.cancel("too late")
        except ARCPError as exc:
            ended.fault = f"a late cancel was answered with {describe_error(exc)}"
        else:
            ended.ignored += outcome == CancelOutcome(applied=False, status=ended.job.status)
        self._answered += 1
        self._view.count("late cancels", self._answered, LATE_CANCELS * len(_PLANS), "answered")

    def _row(self, ended: _Ended) -> Row:
        job_id = ended.job.job_id
        return Row(
            agent=ended.job.agent,
            job_id=job_id,
            expected=ended.plan.expected,
            status=ended.job.status,
            events=self._wire.events[job_id],
            terminal_events=self._wire.terminals[job_id],
            after_end=self._wire.after_end[job_id],
            late_cancels=ended.sent,
            ignored=ended.ignored,
            seconds=round(ended.seconds, 3),
            summary=ended.summary,
            fault=ended.fault,
        )


async def _run(view: DemoView) -> list[Row]:
    """Open the gateway and the client, and run the demo between them."""
    truth = await trio.to_thread.run_sync(_find_truth)
    if not CAN_OPEN:
        raise CommandError("the demo's agents open files below a lease, and this platform has no safe way to do that")
    if not truth.files:
        raise CommandError(f"this Python has no sources to work on in {library_root()}")
    token = secrets.token_urlsafe()
    rows: list[Row] = []
    problem: OSError | None = None
    async with (
        open_runtime(agents, limits=Limits(shutdown_seconds=5.0), verifier=StaticTokens({token: "demo"})) as runtime,
        trio.open_nursery() as nursery,
    ):
        try:
            listening: Listening = await nursery.start(serve_websocket, runtime, "127.0.0.1", 0)
        except OSError as exc:
            problem = exc
        else:
            view.say(f"arcp-trio {__version__}: a gateway at {listening.url}")
            view.say(
                f"{len(_PLANS)} jobs on {count_of(truth.files, 'source file')} of Python's library "
                f"({size_of(truth.size)}), over a real WebSocket"
            )
            async with open_websocket(
                listening.url,
                receive_bytes=CLIENT_LIMITS.receive_bytes,
                connect_seconds=CLIENT_LIMITS.connect_seconds,
                close_seconds=CLIENT_LIMITS.close_seconds,
            ) as transport:
                wire = WireCounter(transport)
                async with open_client_over(wire, token=token, name="arcp-trio demo", limits=CLIENT_LIMITS) as client:
                    with view.open():
                        rows = await _Demo(client, wire, view, truth).run()
        nursery.cancel_scope.cancel(reason="the demo is over")
    if problem is not None:
        raise CommandError(f"cannot listen on a port of this machine: {problem}")
    return rows


async def _demonstrate(console: Console, view: DemoView, *, as_json: bool) -> ExitCode:
    """Run the demo, print what came of it, and say whether it is as it must be."""
    rows: list[Row] = []
    broken = ""
    try:
        rows = await _run(view)
    except* ARCPError as group:
        broken = "; ".join(describe_error(exc) for exc in leaves(group) if isinstance(exc, ARCPError))
    except* TransportClosedError as group:
        broken = "; ".join(str(exc) for exc in leaves(group))
    if broken:
        raise CommandError(f"the demo broke off: {broken}")
    if as_json:
        for row in rows:
            await Output(1).print(encode_json(row.as_json()).decode())
    else:
        with console.capture() as capture:
            console.print(make_table(rows, console))
        # Cells are padded, and a pipe has no use for that at the end of a line.
        table = [line.rstrip() for line in capture.get().strip("\n").splitlines()]
        await Output(1).print("\n".join(["", *table, ""]))
    problems = find_problems(rows)
    for problem in problems:
        complain(f"demo: {problem}")
    if not problems and not as_json:
        console.print("Each job ended exactly once, and as it should; no late cancel changed anything.", soft_wrap=True)
    await Output(1).print(Totals.of(rows).line)
    return ExitCode.FAILED if problems else ExitCode.OK


async def demo(*, as_json: bool) -> ExitCode:
    """Run the demo; its last line on stdout has the sums.

    Args:
        as_json: Whether to print the rows as lines of JSON, and nothing else before the last line.

    Returns:
        ``OK`` if every job had exactly one terminal event and the right one, and every late cancel was ignored.

    Raises:
        CommandError: It could not be run to its end.

    Cancellation: all jobs are stopped; takes no longer than a shutdown.
    """
    console = make_console()
    view: DemoView
    if as_json:
        view = QuietDemoView()
    elif console.is_terminal and not console.is_dumb_terminal:
        view = LiveDemoView(console)
    else:
        view = LinesDemoView(console)
    return await run_interruptible(partial(_demonstrate, console, view, as_json=as_json))
