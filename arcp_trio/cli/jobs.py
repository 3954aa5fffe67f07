"""``arcp-trio jobs``: the jobs that the user may see, as a table, and how they go on."""

from __future__ import annotations

import math
import re
from collections import OrderedDict, deque
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from ..client.client import Client
from ..wire.errors import ARCPError
from ..wire.session_messages import SessionJobsEntry as JobEntry
from ..wire.timestamps import format_timestamp
from .connect import Target, open_session
from .errors import CommandError, ExitCode, describe_lost, describe_refusal
from .interrupts import run_beside, run_interruptible
from .job_table import JobTable, describe_entry, read_time
from .network import ConnectionNews
from .terminal import LineWriter, Output, make_console
from .text import clean, count_of
from .views import JSONView, PlainView

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rich.text import Text

__all__ = ["MAX_JOBS", "JobsOptions", "jobs", "read_created_after"]

MAX_JOBS = 10_000
"""The most that one table holds, and that ``--follow`` knows again."""
_PAGE = 1_000
_FOLLOWED = 200
"""Jobs that are subscribed to at once: our runtime allows a session 256. The others wait for a place."""
_WAITING = 1_000
"""Jobs that wait for one; past it they are listed, and their end is not shown."""
_OVERLAP = timedelta(seconds=5)
"""How far back each further listing begins: times are of milliseconds, and a runtime's clock may be set back a bit."""
_MIN_INTERVAL_SECONDS = 0.5
_LIVE = frozenset({"pending", "running"})
_STATUSES = ("pending", "running", "success", "error", "cancelled", "timed_out")
_AGE = re.compile(r"(\d{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@attrs.frozen(kw_only=True)
class JobsOptions:
    """What ``jobs`` was told.

    Attributes:
        statuses: Only jobs in one of these states; empty for all.
        agent: Only jobs of this agent.
        created_after: Only jobs created later, RFC 3339 in UTC.
        limit: How many are shown, the newest.
        as_json: Whether to print lines of JSON.
        follow: Whether to go on showing what changes.
        interval_seconds: With ``follow``: how often new jobs are looked for.
        reconnect_seconds: With ``follow``: how long a lost connection is tried to get back; 0 for not at all.
    """

    statuses: tuple[str, ...]
    agent: str | None
    created_after: str | None
    limit: int
    as_json: bool
    follow: bool
    interval_seconds: float
    reconnect_seconds: float

    def __attrs_post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            CommandError: It names the option.
        """
        for status in self.statuses:
            if status not in _STATUSES:
                raise CommandError(
                    f"--status: expected one of {', '.join(_STATUSES)}, got {clean(status)!r}", ExitCode.USAGE
                )
        if not 1 <= self.limit <= MAX_JOBS:
            raise CommandError(f"--limit: expected a number from 1 to {MAX_JOBS}, got {self.limit}", ExitCode.USAGE)
        if not _MIN_INTERVAL_SECONDS <= self.interval_seconds < math.inf:
            raise CommandError(
                f"--interval-seconds: expected {_MIN_INTERVAL_SECONDS} or more, got {self.interval_seconds:g}",
                ExitCode.USAGE,
            )


def read_created_after(text: str, now: datetime) -> str:
    """Return a time of the command line as the wire writes it: an age like ``15m``, or a time with its offset.

    Args:
        text: ``90s``, ``15m``, ``2h``, ``7d``, ``2026-05-13T19:42:13Z``, ``2026-05-13T21:42+02:00``.
        now: What an age is subtracted from.

    Raises:
        CommandError: It is neither.
    """
    age = _AGE.fullmatch(text)
    moment: datetime | None = None
    with suppress(ValueError, OverflowError):
        moment = (
            datetime.fromisoformat(text) if age is None else now - timedelta(seconds=int(age[1]) * _SECONDS[age[2]])
        )
    # Without an offset: whose midnight is meant is not ours to guess.
    if moment is None or moment.tzinfo is None:
        raise CommandError(
            "--created-after: expected an age like 90s, 15m, 2h or 7d, or a time with its offset like "
            f"2026-05-13T19:42:13Z, got {clean(text)!r}",
            ExitCode.USAGE,
        )
    return format_timestamp(moment.timestamp())


class _Listing:
    """One run of ``jobs``."""

    def __init__(self, target: Target, options: JobsOptions) -> None:
        self._target = target
        self._options = options
        self._news = ConnectionNews(options.reconnect_seconds if options.follow else 0)
        self._console = make_console()
        self._live = self._console.is_terminal and not options.as_json
        self._output = LineWriter(1)
        self._notes = JSONView() if options.as_json else PlainView()
        self._table = JobTable((), ages=self._live)
        self._known: OrderedDict[str, None] = OrderedDict()
        self._newest: datetime | None = None
        self._to_follow, self._followed = trio.open_memory_channel[JobEntry](_WAITING)
        self._left_out = self._said_left_out = False

    async def run(self) -> ExitCode:
        """List the jobs, and follow them."""
        async with open_session(self._target, name="arcp-trio jobs", reconnect=self._news.reconnect) as client:
            beside: list[Callable[[], Awaitable[object]]] = [
                self._output.run,
                partial(self._news.run, self._notes.connection),
            ]
            if self._options.follow:
                if "subscribe" not in client.features:
                    raise CommandError("--follow: this runtime lets nobody subscribe to jobs")
                beside.append(partial(self._follow, client))
            await run_beside(partial(self._list, client), *beside)
        return ExitCode.OK

    async def _list(self, client: Client) -> None:
        try:
            await self._list_first(client)
            while self._options.follow:
                # The protocol pushes nothing about jobs that are not subscribed to, so new ones can only be
                # looked for. What becomes of those that are known is not: they are subscribed to.
                await trio.sleep(self._options.interval_seconds)
                await self._list_new(client)
        except ARCPError as exc:
            lost = client.state.error is not None
            reason = describe_lost(exc) if lost else f"refused: {describe_refusal(exc, has_token=True)}"
            raise CommandError(reason) from exc
        finally:
            # What was listed before an error is still worth a look.
            with trio.move_on_after(1, shield=True):
                await self._output.flush()

    async def _list_first(self, client: Client) -> None:
        options = self._options
        # The protocol lists the oldest first; who cuts a list wants its other end.
        newest: deque[JobEntry] = deque(maxlen=options.limit)
        count = 0
        pages = client.list_jobs(
            status=options.statuses or None,
            agent=options.agent,
            created_after=options.created_after,
            limit=min(options.limit, _PAGE),
        )
        async for page in pages:
            newest.extend(page)
            count += len(page)
        self._table = JobTable(newest, ages=self._live, grows=options.follow)
        if not options.as_json and (newest or options.follow):
            await self._print_text(self._table.header())
        for entry in newest:
            await self._show(entry)
        for entry in newest:
            # Only now: the end of one would else stand in the middle of the table.
            self._remember(entry)
        await self._output.flush()
        if count > len(newest):
            await Output(2).print(f"the newest {len(newest):,} of {count_of(count, 'job')}; --limit shows more")
        elif not count and not options.as_json:
            await Output(2).print("no jobs" if options.follow else "there are no such jobs")

    async def _list_new(self, client: Client) -> None:
        options = self._options
        since = options.created_after
        if self._newest is not None:
            begin = format_timestamp((self._newest - _OVERLAP).timestamp())
            # Both are written alike, in UTC: they compare as they are.
            since = begin if since is None else max(since, begin)
        pages = client.list_jobs(status=options.statuses or None, agent=options.agent, created_after=since, limit=_PAGE)
        async for page in pages:
            for entry in page:
                if entry.job_id not in self._known:
                    await self._show(entry)
                    self._remember(entry)
        if self._left_out and not self._said_left_out:
            self._said_left_out = True
            await self._notes.note("more jobs run than can be followed: of some the end will not be shown")

    def _remember(self, entry: JobEntry) -> None:
        """Take note of a job, and have it followed if there is something to come."""
        self._known[entry.job_id] = None
        if len(self._known) > MAX_JOBS:
            self._known.popitem(last=False)
        created = read_time(entry.created_at)
        if created is not None and (self._newest is None or created > self._newest):
            self._newest = created
        if self._options.follow and entry.status in _LIVE:
            try:
                self._to_follow.send_nowait(entry)
            except trio.WouldBlock:
                self._left_out = True

    async def _follow(self, client: Client) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(_FOLLOWED):
                nursery.start_soon(self._follow_jobs, client)

    async def _follow_jobs(self, client: Client) -> None:
        async for entry in self._followed:
            try:
                job = await client.subscribe(entry.job_id)
                status = job.subscribed.current_status if job.subscribed is not None else entry.status
                if status in _LIVE and status != entry.status:
                    await self._show(attrs.evolve(entry, status=status, last_event_seq=None))
                await job.wait_ended()
            except ARCPError:
                # The runtime has forgotten it, or lets nobody follow it. A session that is lost ends the listing too.
                continue
            # How many events it had is in no frame of its end.
            await self._show(attrs.evolve(entry, status=job.status, last_event_seq=None))

    async def _show(self, entry: JobEntry) -> None:
        if self._options.as_json:
            await self._output.print(describe_entry(entry))
        else:
            await self._print_text(self._table.row(entry))

    async def _print_text(self, text: Text) -> None:
        if self._live:
            await trio.lowlevel.checkpoint()
            # A line for each job, however narrow the terminal is.
            self._console.print(text, no_wrap=True, overflow="ellipsis", crop=True)
        else:
            await self._output.print(text.plain)


async def jobs(target: Target, options: JobsOptions) -> ExitCode:
    """Print the jobs of the user's principal on stdout, oldest first.

    With ``follow`` each new job, and each change of one, is another line, until control-C. There is no push for
    listings in the protocol: new jobs are looked for at the stated interval; those that are known are subscribed to.

    Args:
        target: The runtime.
        options: Which jobs, and how to show them.

    Returns:
        ``OK``; ``INTERRUPTED`` after control-C.

    Raises:
        CommandError: The runtime cannot be reached or refused the listing, or the session was lost for good.
        BrokenPipeError: Nobody reads stdout any more.

    Cancellation: the session is closed.
    """
    return await run_interruptible(_Listing(target, options).run)
