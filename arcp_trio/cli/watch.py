"""``arcp-trio watch``: follow a job that another session submitted."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import attrs

from ..client.client import Client
from ..client.job_handle import JobHandle
from ..wire.errors import ARCPError
from .connect import Target, open_session
from .errors import CommandError, ExitCode, describe_error, describe_refusal
from .following import Follower
from .interrupts import run_interruptible

__all__ = ["WatchOptions", "watch"]


@attrs.frozen(kw_only=True)
class WatchOptions:
    """What ``watch`` was told.

    Attributes:
        job_id: The job.
        history: Whether to begin with the events that the runtime still has.
        output: Where the result goes; ``None`` for stdout.
        as_json: Whether to print lines of JSON.
        reconnect_seconds: How long a lost connection is tried to get back; 0 for not at all.
    """

    job_id: str
    history: bool
    output: Path | None
    as_json: bool
    reconnect_seconds: float


class _Watch:
    """One run of ``watch``: control-C leaves the job alone."""

    def __init__(self, target: Target, options: WatchOptions) -> None:
        self._target = target
        self._options = options
        self._follower = Follower(target, as_json=options.as_json, reconnect_seconds=options.reconnect_seconds)
        self._job: JobHandle | None = None

    def interrupt(self) -> bool:
        """Take a control-C; say whether that was done, or the whole command is to be cancelled."""
        return self._follower.leave("control-C")

    async def run(self) -> ExitCode:
        """Follow the job to its end."""
        reconnect = self._follower.reconnect
        async with open_session(self._target, name="arcp-trio watch", reconnect=reconnect) as client:
            succeeded = await self._follower.run(partial(self._run_job, client))
            if succeeded is None and self._job is not None and self._job.terminal is None:
                await self._follower.say_left(self._job)
        if succeeded is None:
            return ExitCode.INTERRUPTED
        return ExitCode.OK if succeeded else ExitCode.FAILED

    async def _run_job(self, client: Client) -> bool:
        options, view = self._options, self._follower.view
        try:
            job = self._job = await client.subscribe(options.job_id, history=options.history)
        except ARCPError as exc:
            raise CommandError(f"refused: {describe_refusal(exc, has_token=True)}") from exc
        with view.open():
            await view.began(job)
            ending = await self._follower.follow(client, job)
            # When the job began is not known here.
            await view.ended(job, None, ending.failure if job.status != "success" else None)
            if job.status == "success" and ending.failure is not None:
                # Who comes late to a streamed result has not seen its beginning; the job is none the worse for it.
                await view.note(f"its result cannot be shown: {describe_error(ending.failure)}")
        await self._follower.deliver(job, ending, options.output)
        return job.status == "success" and (ending.failure is None or options.output is None)


async def watch(target: Target, options: WatchOptions) -> ExitCode:
    """Follow a job of the same principal, and give out its result.

    The result goes to stdout or into a file, what is for people to stderr; with ``as_json`` all goes to stdout.

    Args:
        target: The runtime.
        options: Which job, and how to show it.

    Returns:
        ``OK`` where the job succeeded, ``FAILED`` where it did not or its result was to be saved and did not come
        whole, ``INTERRUPTED`` after control-C: the job goes on.

    Raises:
        CommandError: The runtime cannot be reached or refused it, or the session was lost for good.
        BrokenPipeError: Nobody reads stdout any more.

    Cancellation: the session is closed; the job goes on.
    """
    run = _Watch(target, options)
    return await run_interruptible(run.run, run.interrupt)
