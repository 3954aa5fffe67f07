"""``arcp-trio submit``: submit a job, show it live, and give out its result."""

from __future__ import annotations

import sys
from pathlib import Path

import attrs
import trio

from ..client.client import Client
from ..client.job_handle import JobHandle
from ..client.results import ResultFile
from ..wire.errors import AgentNotAvailableError, ARCPError, ConnectionLostError
from ..wire.jsontext import JSONValue, decode_json
from .cancel import describe_outcome, describe_refused_cancel
from .connect import CLIENT_LIMITS, Target, open_session
from .errors import CommandError, ExitCode, describe_error, describe_refusal
from .interrupts import run_interruptible
from .results import check_output, describe_terminal, print_result, save_result
from .terminal import Output
from .text import clean, size_of
from .views import JobView, make_view

__all__ = ["SubmitOptions", "read_input", "submit"]


@attrs.frozen(kw_only=True)
class SubmitOptions:
    """What ``submit`` was told.

    Attributes:
        agent: ``name`` or ``name@version``.
        input: Any JSON value.
        max_runtime_sec: Seconds after which the job ends as timed out.
        output: Where the result goes; ``None`` for stdout.
        as_json: Whether to print lines of JSON.
    """

    agent: str
    input: JSONValue
    max_runtime_sec: float | None
    output: Path | None
    as_json: bool


def read_input(text: str) -> JSONValue:
    """Return the job's input from the command line, or from stdin for ``-``.

    Raises:
        CommandError: It is not JSON, or larger than a frame may be.
    """
    if text.startswith("--"):
        # The parser lets INPUT begin with a hyphen, for the sake of "-" and of negative numbers.
        raise CommandError(f"unknown option: {clean(text.partition('=')[0])}", ExitCode.USAGE)
    data: str | bytes = text
    where = "INPUT"
    if text == "-":
        where = "INPUT on stdin"
        limit = CLIENT_LIMITS.send_bytes
        data = sys.stdin.buffer.read(limit + 1)
        if len(data) > limit:
            raise CommandError(f"{where}: larger than {limit:,} bytes", ExitCode.USAGE)
    try:
        return decode_json(data)
    except ValueError as exc:
        hint = ""
        if text != "-" and text.strip() and not text.lstrip().startswith(("{", "[", '"')):
            hint = "; a string needs its quotes: '\"text\"'"
        raise CommandError(f"{where} is not JSON: {clean(str(exc))}{hint}", ExitCode.USAGE) from None


class _Submission:
    """One run of ``submit``: control-C first cancels the job, then leaves."""

    def __init__(self, target: Target, options: SubmitOptions) -> None:
        self._target = target
        self._options = options
        self._view: JobView = make_view(as_json=options.as_json)
        self._can_cancel = False
        self._interrupted = trio.Event()
        # Inside the session, whose tasks must live to say goodbye: cancelled with them, it waits in vain.
        self._session_scope: trio.CancelScope | None = None

    def interrupt(self) -> bool:
        """Take a control-C; say whether that was done, or the whole command is to be cancelled."""
        scope = self._session_scope
        if scope is None or scope.cancel_called:
            return False
        if self._can_cancel and not self._interrupted.is_set():
            self._interrupted.set()
        else:
            scope.cancel(reason="control-C")
        return True

    async def run(self) -> ExitCode:
        """Submit the job and see it through."""
        succeeded = False
        async with open_session(self._target, name="arcp-trio submit") as client:
            with trio.CancelScope() as self._session_scope:
                succeeded = await self._run_job(client)
        if self._interrupted.is_set() or self._session_scope.cancelled_caught:
            return ExitCode.INTERRUPTED
        return ExitCode.OK if succeeded else ExitCode.FAILED

    async def _run_job(self, client: Client) -> bool:
        # From here on the job may exist: control-C must not leave it behind.
        self._can_cancel = True
        job = await self._submit(client)
        with self._view.open():
            started = trio.current_time()
            await self._view.accepted(job)
            failure, result = await self._follow(job)
            self._can_cancel = False
            await self._view.ended(job, trio.current_time() - started, failure)
        await self._deliver(job, failure, result)
        return failure is None

    async def _submit(self, client: Client) -> JobHandle:
        options = self._options
        try:
            return await client.submit(options.agent, options.input, max_runtime_sec=options.max_runtime_sec)
        except AgentNotAvailableError as exc:
            names = [entry.name for entry in client.welcome.capabilities.agents or ()]
            there = f"; there are: {clean(', '.join(names))}" if names else ""
            raise CommandError(f"refused: {describe_error(exc)}{there}") from exc
        except ARCPError as exc:
            raise CommandError(f"refused: {describe_refusal(exc, has_token=True)}") from exc

    async def _follow(self, job: JobHandle) -> tuple[ARCPError | None, JSONValue | bytes | ResultFile]:
        """Show the events; return how the job ended."""
        lost: ConnectionLostError | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(self._view.run)
            nursery.start_soon(self._cancel_when_interrupted, job)
            try:
                async for event in job.events():
                    await self._view.event(event)
            except ConnectionLostError as exc:
                lost = exc
            # Before its task is cancelled: a write that is left half done would mix with the next one.
            await self._view.flush()
            nursery.cancel_scope.cancel(reason="the job has ended")
        if lost is not None:
            raise CommandError(f"{clean(lost.message)}; {clean(job.job_id)} may still run") from lost
        try:
            return None, await job.result()
        except ARCPError as exc:
            return exc, None

    async def _cancel_when_interrupted(self, job: JobHandle) -> None:
        await self._interrupted.wait()
        await self._view.note("cancelling the job; control-C again leaves at once")
        try:
            outcome = await job.cancel("control-C at the terminal that submitted it")
        except ARCPError as exc:
            await self._view.note(describe_refused_cancel(exc))
        else:
            if not outcome.applied:
                await self._view.note(describe_outcome(job.job_id, outcome))

    async def _deliver(self, job: JobHandle, failure: ARCPError | None, result: JSONValue | bytes | ResultFile) -> None:
        options = self._options
        saved: tuple[Path, int] | None = None
        if failure is None and options.output is not None:
            saved = options.output, await save_result(job, result, options.output)
        if options.as_json:
            await Output(1).print(describe_terminal(job, failure, result, saved))
        elif failure is None and saved is None:
            await print_result(job, result)
        elif saved is not None:
            await Output(2).print(f"saved {size_of(saved[1])} in {clean(str(saved[0]))}")


async def submit(target: Target, options: SubmitOptions) -> ExitCode:
    """Submit a job, show its events, and give out its result.

    The result goes to stdout or into a file, what is for people to stderr; with ``as_json`` all goes to stdout.

    Args:
        target: The runtime.
        options: What to submit and how to show it.

    Returns:
        ``OK`` where the job succeeded, ``FAILED`` where it did not, ``INTERRUPTED`` after control-C.

    Raises:
        CommandError: The runtime cannot be reached, refused the job or was lost.
        BrokenPipeError: Nobody reads stdout any more.

    Cancellation: the session is closed; the job goes on.
    """
    if options.output is not None:
        check_output(options.output)
    submission = _Submission(target, options)
    return await run_interruptible(submission.run, submission.interrupt)
