"""``arcp-trio submit``: submit a job, show it live, and give out its result."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from ..client.client import Client
from ..client.job_handle import JobHandle
from ..wire.errors import AgentNotAvailableError, ARCPError, ConnectionLostError, ResumeWindowExpiredError
from ..wire.jsontext import JSONValue, decode_json
from .asking import ask, can_ask
from .cancel import describe_outcome, describe_refused_cancel
from .connect import CLIENT_LIMITS, Target, open_session
from .errors import CommandError, ExitCode, describe_error, describe_lost, describe_refusal
from .following import Follower
from .interrupts import run_beside, run_interruptible
from .results import check_output
from .text import clean

__all__ = ["ANSWER_SECONDS", "SubmitOptions", "read_input", "read_lease", "submit"]

ANSWER_SECONDS = 15.0
"""How long control-C's question waits for an answer."""
# Section 7.4: who leaves gives the cancel away, and should know that before answering.
_QUESTION = f"cancel the job? If not now, nobody can later. [y/N, no in {ANSWER_SECONDS:g} s]"


@attrs.frozen(kw_only=True)
class SubmitOptions:
    """What ``submit`` was told.

    Attributes:
        agent: ``name`` or ``name@version``.
        input: Any JSON value.
        lease_request: Namespaces, each with its patterns; ``None`` asks for nothing.
        max_runtime_sec: Seconds after which the job ends as timed out.
        output: Where the result goes; ``None`` for stdout.
        as_json: Whether to print lines of JSON.
        reconnect_seconds: How long a lost connection is tried to get back; 0 for not at all.
    """

    agent: str
    input: JSONValue
    lease_request: Mapping[str, Sequence[str]] | None
    max_runtime_sec: float | None
    output: Path | None
    as_json: bool
    reconnect_seconds: float


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


def read_lease(grants: Sequence[str], budget: Sequence[str]) -> dict[str, list[str]] | None:
    """Return the lease to ask for; whether the runtime can read it is the runtime's to say.

    Args:
        grants: ``NAMESPACE=PATTERN`` each.
        budget: Amounts.

    Raises:
        CommandError: A grant has not that form.
    """
    lease: dict[str, list[str]] = {}
    for grant in grants:
        namespace, equals, pattern = grant.partition("=")
        if not (namespace and equals and pattern):
            raise CommandError(f"--lease: expected NAMESPACE=PATTERN, got {clean(grant)!r}", ExitCode.USAGE)
        lease.setdefault(namespace, []).append(pattern)
    if budget:
        lease.setdefault("cost.budget", []).extend(budget)
    return lease or None


class _Submission:
    """One run of ``submit``: control-C first asks about the job, or cancels it if nobody can be asked, then leaves."""

    def __init__(self, target: Target, options: SubmitOptions) -> None:
        self._target = target
        self._options = options
        self._follower = Follower(target, as_json=options.as_json, reconnect_seconds=options.reconnect_seconds)
        self._view = self._follower.view
        self._job: JobHandle | None = None
        self._may_exist = False
        self._interrupted = trio.Event()
        self._cancels = False

    def interrupt(self) -> bool:
        """Take a control-C; say whether that was done, or the whole command is to be cancelled."""
        if self._may_exist and not self._interrupted.is_set():
            self._interrupted.set()
            return True
        return self._follower.leave("control-C")

    async def run(self) -> ExitCode:
        """Submit the job and see it through."""
        reconnect = self._follower.reconnect
        async with open_session(self._target, name="arcp-trio submit", reconnect=reconnect) as client:
            succeeded = await self._follower.run(partial(self._run_job, client))
            if succeeded is None and self._job is not None and self._job.terminal is None:
                await self._follower.say_left(self._job, cancels=self._cancels)
        if succeeded is None or self._cancels:
            return ExitCode.INTERRUPTED
        return ExitCode.OK if succeeded else ExitCode.FAILED

    async def _run_job(self, client: Client) -> bool:
        # From here on the job may exist: control-C must not leave it behind unasked.
        self._may_exist = True
        job = self._job = await self._submit(client)
        with self._view.open():
            started = trio.current_time()
            await self._view.began(job)
            ending = await run_beside(partial(self._follower.follow, client, job), partial(self._heed_interrupt, job))
            self._may_exist = False
            await self._view.ended(job, trio.current_time() - started, ending.failure)
        await self._follower.deliver(job, ending, self._options.output)
        return ending.failure is None

    async def _submit(self, client: Client) -> JobHandle:
        options = self._options
        try:
            return await client.submit(
                options.agent,
                options.input,
                lease_request=options.lease_request,
                max_runtime_sec=options.max_runtime_sec,
            )
        except AgentNotAvailableError as exc:
            names = [entry.name for entry in client.welcome.capabilities.agents or ()]
            there = f"; there are: {clean(', '.join(names))}" if names else ""
            raise CommandError(f"refused: {describe_error(exc)}{there}") from exc
        except (ConnectionLostError, ResumeWindowExpiredError) as exc:
            see = f"; see: {self._target.hint('jobs')}" if self._target.is_shared else ""
            raise CommandError(f"{describe_lost(exc)}{see}") from exc
        except ARCPError as exc:
            raise CommandError(f"refused: {describe_refusal(exc, has_token=True)}") from exc

    async def _heed_interrupt(self, job: JobHandle) -> None:
        await self._interrupted.wait()
        # With --json a program reads along, and what it started is expected to end with it. So it is with a runtime.
        if self._target.is_shared and not self._options.as_json and can_ask():
            answer = await self._ask(job)
            if answer is None:
                return
            if not answer:
                self._follower.leave("detached")
                return
        self._cancels = True
        await self._view.note("cancelling the job; control-C again leaves at once")
        try:
            outcome = await job.cancel("control-C at the terminal that submitted it")
        except ARCPError as exc:
            await self._view.note(describe_refused_cancel(exc))
        else:
            if not outcome.applied:
                await self._view.note(describe_outcome(job.job_id, outcome))

    async def _ask(self, job: JobHandle) -> bool | None:
        """Ask whether to cancel the job; ``None`` where it ended before there was an answer."""
        answer: bool | None = None

        async def withdraw() -> None:
            with suppress(ARCPError):
                await job.wait_ended()
            nursery.cancel_scope.cancel(reason="the job has ended")

        async with self._follower.paused(), trio.open_nursery() as nursery:
            nursery.start_soon(withdraw)
            answer = await ask(_QUESTION, seconds=ANSWER_SECONDS)
            nursery.cancel_scope.cancel(reason="answered")
        return answer


async def submit(target: Target, options: SubmitOptions) -> ExitCode:
    """Submit a job, show its events, and give out its result.

    The result goes to stdout or into a file, what is for people to stderr; with ``as_json`` all goes to stdout.

    Args:
        target: The runtime.
        options: What to submit and how to show it.

    Returns:
        ``OK`` where the job succeeded, ``FAILED`` where it did not, ``INTERRUPTED`` after a control-C that cancelled
        the job or left it.

    Raises:
        CommandError: The runtime cannot be reached or refused the job, or the session was lost for good.
        BrokenPipeError: Nobody reads stdout any more.

    Cancellation: the session is closed; the job goes on.
    """
    if options.output is not None:
        check_output(options.output)
    submission = _Submission(target, options)
    return await run_interruptible(submission.run, submission.interrupt)
