"""Shows one job to its end, across breaks of the connection: what ``submit`` and ``watch`` have in common."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio

from ..client.client import Client
from ..client.job_handle import JobHandle
from ..client.reconnect import ConnectionState, Reconnect
from ..client.results import ResultFile
from ..wire.errors import ARCPError
from ..wire.jsontext import JSONValue
from .connect import Target
from .errors import CommandError, describe_lost
from .family import Family
from .interrupts import run_beside
from .network import ConnectionNews
from .results import describe_terminal, print_result, save_result
from .terminal import Output
from .text import clean, size_of
from .views import JobView, make_view

__all__ = ["Ending", "Follower"]

_LEAVE_SECONDS = 0.5


@attrs.frozen(kw_only=True)
class Ending:
    """How a job ended, and what came of it.

    Attributes:
        failure: Why there is no result; of a job that succeeded, because it did not come whole.
        result: What the job returned.
    """

    failure: ARCPError | None
    result: JSONValue | bytes | ResultFile = None


class Follower:
    """Shows one job.

    Args:
        target: The runtime.
        as_json: Whether to print lines of JSON.
        reconnect_seconds: How long a lost connection is tried to get back; 0 for not at all.

    Attributes:
        view: What the job is shown with.
    """

    def __init__(self, target: Target, *, as_json: bool, reconnect_seconds: float) -> None:
        self.view: JobView = make_view(as_json=as_json)
        self._target = target
        self._as_json = as_json
        self._news = ConnectionNews(reconnect_seconds)
        self._resumed: trio.Event | None = None
        # Inside the session, whose tasks must live to say goodbye: cancelled with them, it waits in vain.
        self._scope: trio.CancelScope | None = None

    @property
    def reconnect(self) -> Reconnect | None:
        """What the session is to be opened with."""
        return self._news.reconnect

    async def run(self, body: Callable[[], Awaitable[bool]]) -> bool | None:
        """Run ``body`` within a session, while what it shows is written.

        Returns:
            What it returned; ``None`` after :meth:`leave`, when what was shown before is written, as far as it can
            be within half a second.

        Cancellation: the body is cancelled.
        """

        async def attend() -> bool | None:
            outcome: bool | None = None
            failure: CommandError | None = None
            with trio.CancelScope() as self._scope:
                try:
                    outcome = await body()
                except CommandError as exc:
                    failure = exc
            if outcome is None:
                # What was shown before tells how it came to that.
                await self._flush()
            if failure is not None:
                raise failure
            return outcome

        return await run_beside(attend, self.view.run, partial(self._news.run, self._show_connection))

    def leave(self, reason: str) -> bool:
        """Stop the body of :meth:`run`; say whether there was one that ran."""
        if self._scope is None or self._scope.cancel_called:
            return False
        self._scope.cancel(reason=reason)
        return True

    async def _flush(self) -> None:
        with trio.move_on_after(_LEAVE_SECONDS):
            await self._news.flush(self.view.connection)
            await self.view.flush()

    async def say_left(self, job: JobHandle, *, cancels: bool = False) -> None:
        """Show the last line about a job that was left: that it goes on, and how to see it again.

        Args:
            job: It has not ended, as far as is known.
            cancels: Whether it is being cancelled.
        """
        if not self._target.is_shared:
            line = "the job ends with the runtime that was started for it"
        else:
            what = "the job is being cancelled" if cancels else "the job goes on"
            line = f"{what}: {self._target.hint('watch', clean(job.job_id))}"
        with trio.move_on_after(_LEAVE_SECONDS):
            await self.view.note(line, label="detached")
            await self.view.flush()

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """Show nothing within this block: the terminal belongs to a question. What comes meanwhile waits."""
        resumed = self._resumed = trio.Event()
        try:
            async with self.view.paused():
                yield
        finally:
            self._resumed = None
            resumed.set()

    async def _wait_resumed(self) -> None:
        while self._resumed is not None:
            await self._resumed.wait()

    async def _show_connection(self, state: ConnectionState) -> None:
        await self._wait_resumed()
        await self.view.connection(state)

    async def follow(self, client: Client, job: JobHandle) -> Ending:
        """Show the job's events, and those of the jobs that it delegates, up to its end.

        Args:
            client: Whose job it is.
            job: The job.

        Raises:
            CommandError: The session was lost before the end.
        """
        lost: ARCPError | None = None
        async with trio.open_nursery() as nursery:
            family = Family(client, self.view, self._wait_resumed, nursery)
            try:
                async for event in job.events():
                    await self._wait_resumed()
                    await self.view.event(event)
                    family.heed(job, event)
            except ARCPError as exc:
                lost = exc
            # No child outlives its parent: what they still have to say is here already.
            nursery.cancel_scope.deadline = trio.current_time() + _LEAVE_SECONDS
        await self._wait_resumed()
        await self._news.flush(self.view.connection)
        # Before its task is cancelled: a write that is left half done would mix with the next one.
        await self.view.flush()
        if lost is not None:
            again = f": {self._target.hint('watch', clean(job.job_id))}" if self._target.is_shared else ""
            raise CommandError(f"{describe_lost(lost)}; {clean(job.job_id)} may still run{again}") from lost
        try:
            return Ending(failure=None, result=await job.result())
        except ARCPError as exc:
            return Ending(failure=exc)

    async def deliver(self, job: JobHandle, ending: Ending, output: Path | None) -> None:
        """Give out the result of a job, or in JSON how it ended.

        Args:
            job: It has ended.
            ending: How.
            output: The file that the result goes to; ``None`` for stdout.

        Raises:
            CommandError: It cannot be written or shown.
            BrokenPipeError: Nobody reads stdout any more.
        """
        await self.view.flush()
        saved: tuple[Path, int] | None = None
        if ending.failure is None and output is not None:
            saved = output, await save_result(job, ending.result, output)
        if self._as_json:
            await Output(1).print(describe_terminal(job, ending.failure, ending.result, saved))
        elif ending.failure is None and saved is None:
            await print_result(job, ending.result)
        elif saved is not None:
            await Output(2).print(f"saved {size_of(saved[1])} in {clean(str(saved[0]))}")
