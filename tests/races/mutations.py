"""Ways to break the runtime that look harmless in its code, each as a patch: what explores schedules must find them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from arcp_trio.jobs import lifecycle
from arcp_trio.jobs.actor import JobActor
from arcp_trio.jobs.feed import EventEntry, Follower, JobFeed, TerminalEntry
from arcp_trio.jobs.index import JobIndex
from arcp_trio.jobs.lifecycle import AgentEnded, Cancel, Cell, Decides, Effect, Phase
from arcp_trio.sessions.session import Session
from arcp_trio.sessions.stream import SessionStream

if TYPE_CHECKING:
    import pytest

__all__ = ["MUTATIONS", "Mutation"]

Patch = Callable[["pytest.MonkeyPatch"], None]


@attrs.frozen
class Mutation:
    """One of them.

    Attributes:
        patch: Makes it.
        among: The causes of which singles, pairs and triples are explored.
        breaks: The invariants of which one must say so.
    """

    patch: Patch
    among: tuple[str, ...]
    breaks: frozenset[str]


def _later(actor: JobActor, act: Callable[[], None]) -> None:
    """Do something behind an await."""

    async def do() -> None:
        await trio.lowlevel.checkpoint()
        act()

    actor.services.spawn_agent(do, "later")


def acknowledge_every_cancel(patch: pytest.MonkeyPatch) -> None:
    """The table has no guard: a cancel is acknowledged whatever was decided before it."""
    for phase in (Phase.STOPPING, Phase.ENDING, Phase.ENDED):
        patch.setitem(lifecycle.TABLE, (Cancel, phase), Cell(effects=(Effect.ACKNOWLEDGE,)))  # type: ignore[misc]


def decide_again(patch: pytest.MonkeyPatch) -> None:
    """A cancel that comes while the agent stops decides the outcome once more."""
    cell = Cell(Phase.STOPPING, (Effect.ACKNOWLEDGE,), Decides.MESSAGE)
    patch.setitem(lifecycle.TABLE, (Cancel, Phase.STOPPING), cell)  # type: ignore[misc]


def tear_down_again(patch: pytest.MonkeyPatch) -> None:
    """A cancel of a job that is ending tears it down once more."""
    cell = Cell(effects=(Effect.TEAR_DOWN, Effect.REFUSE))
    patch.setitem(lifecycle.TABLE, (Cancel, Phase.ENDING), cell)  # type: ignore[misc]


def publish_twice(patch: pytest.MonkeyPatch) -> None:
    """The terminal event goes out again when an agent ends that its job has not waited for."""
    publish, run_agent = JobFeed.publish_terminal, JobActor._run_agent
    followers: dict[JobFeed, list[Follower]] = {}

    def publish_terminal(feed: JobFeed, *args: Any, **options: Any) -> TerminalEntry:
        followers[feed] = list(feed._followers)
        return publish(feed, *args, **options)

    async def run(actor: JobActor) -> None:
        await run_agent(actor)
        if actor.feed.terminal is not None:
            for follower in followers[actor.feed]:
                follower.append(actor.feed.terminal, actor.feed)

    patch.setattr(JobFeed, "publish_terminal", publish_terminal)
    patch.setattr(JobActor, "_run_agent", run)


def acknowledge_what_was_checked_before_an_await(patch: pytest.MonkeyPatch) -> None:
    """A check, an await, a write: the job runs, so the cancel is acknowledged, and then posted."""

    def request_cancel(actor: JobActor, request: Any) -> None:
        if actor.state.phase is not Phase.RUNNING:
            actor._refuse(request)
            return

        def acknowledge() -> None:
            request.acknowledge()
            actor._mailbox.post_cancel(Cancel(trio.current_time() + 3, actor._cancelled_outcome(request)))

        _later(actor, acknowledge)

    patch.setattr(JobActor, "request_cancel", request_cancel)


def acknowledge_late(patch: pytest.MonkeyPatch) -> None:
    """The ack of a cancel waits for something, and the terminal event does not wait for it."""
    acknowledge = JobActor._acknowledge

    def later(actor: JobActor, message: Any) -> None:
        _later(actor, lambda: acknowledge(actor, message))

    patch.setitem(JobActor._EFFECTS, Effect.ACKNOWLEDGE, later)  # type: ignore[misc]


def emit_what_was_checked_before_an_await(patch: pytest.MonkeyPatch) -> None:
    """A check, an await, a write: the job runs, so its event is appended, to those who followed it then."""
    append = JobFeed.append_event

    def append_event(actor: JobActor, kind: str, body: bytes, feature: str | None) -> None:
        followers = list(actor.feed._followers)
        seen: list[EventEntry] = []

        class Catcher:
            def append(self, entry: EventEntry, feed: JobFeed) -> None:
                seen.append(entry)

        if actor.state.phase not in (Phase.RUNNING, Phase.STOPPING):
            return
        with patch.context() as inner:
            inner.setattr(actor.feed, "_followers", {Catcher(): None})
            inner.setattr(JobFeed, "append_event", append)
            actor._append(kind, body, feature)

        def write() -> None:
            for follower in followers:
                follower.append(seen[0], actor.feed)

        _later(actor, write)

    patch.setattr(JobActor, "append_event", append_event)


def leave_the_timers(patch: pytest.MonkeyPatch) -> None:
    """A job that ends leaves its deadlines where they are."""
    release = JobActor._release

    def keep(actor: JobActor) -> None:
        actor._deadline = actor._grace = actor._expiry = None
        release(actor)

    patch.setattr(JobActor, "_release", keep)


def forget_who_waits(patch: pytest.MonkeyPatch) -> None:
    """Those whose cancel changed nothing are not told when the job has ended."""
    retire = JobActor._retire

    def forget(actor: JobActor, *args: Any) -> None:
        actor._waiting_cancels = []
        retire(actor, *args)

    patch.setattr(JobActor, "_retire", forget)


class _Everybody(set[str]):
    def __contains__(self, session_id: object) -> bool:
        return True


def let_everybody_cancel(patch: pytest.MonkeyPatch) -> None:
    """Whose job it is, is not asked."""
    make = JobActor.__init__

    def init(actor: JobActor, *args: Any) -> None:
        make(actor, *args)
        actor.owners = _Everybody(actor.owners)

    patch.setattr(JobActor, "__init__", init)


def follow_late(patch: pytest.MonkeyPatch) -> None:
    """Between a subscription's history and the first event that it hears lies an await."""
    follow = Session.follow

    def later(session: Session, actor: JobActor) -> None:
        def do() -> None:
            if not actor.feed.closed:
                follow(session, actor)

        if session.session_id in actor.owners:
            follow(session, actor)
        else:
            _later(actor, do)

    patch.setattr(Session, "follow", later)


def end_before_the_children(patch: pytest.MonkeyPatch) -> None:
    """A tear-down does not wait for the children."""

    def finish(actor: JobActor) -> None:
        actor._settle()
        actor._mailbox.post(lifecycle.TornDown())

    patch.setattr(JobActor, "_finish_tear_down", finish)


def resume_one_too_early(patch: pytest.MonkeyPatch) -> None:
    """A resume sends again the last event that its client has seen."""
    rewind = SessionStream.rewind
    patch.setattr(SessionStream, "rewind", lambda stream, after: rewind(stream, max(after - 1, stream.floor)))


def list_what_was(patch: pytest.MonkeyPatch) -> None:
    """A listing is not told how a job has ended, if it was cancelled."""
    move = JobIndex.move

    def keep(index: JobIndex, job_id: str, status: str) -> None:
        if status != "cancelled":
            move(index, job_id, status)

    patch.setattr(JobIndex, "move", keep)


def believe_the_agent(patch: pytest.MonkeyPatch) -> None:
    """An agent that returns while it is stopped has succeeded after all."""
    cell = Cell(Phase.ENDING, (Effect.TEAR_DOWN,), Decides.MESSAGE)
    patch.setitem(lifecycle.TABLE, (AgentEnded, Phase.STOPPING), cell)  # type: ignore[misc]


def _mutation(patch: Patch, among: str, *breaks: str) -> Mutation:
    return Mutation(patch, tuple(among.split()), frozenset(breaks))


_END = "one_end_that_all_agree_on"
_OWNER = "only_the_owner_cancels"
_ALL = (
    _mutation(acknowledge_every_cancel, "returns raises cancel second_cancel deadline", _END, _OWNER),
    _mutation(decide_again, "cancel second_cancel returns grace", _OWNER),
    _mutation(tear_down_again, "raises cancel delegate", "torn_down_once"),
    _mutation(publish_twice, "cancel grace deadline", _END),
    _mutation(acknowledge_what_was_checked_before_an_await, "returns cancel deadline", _END, _OWNER),
    _mutation(acknowledge_late, "cancel returns", _END),
    _mutation(emit_what_was_checked_before_an_await, "returns cancel raises", _END),
    _mutation(leave_the_timers, "returns deadline cancel", "nothing_is_left"),
    _mutation(forget_who_waits, "cancel second_cancel returns", "every_caller_answered"),
    _mutation(let_everybody_cancel, "cancel_by_another returns", _OWNER),
    _mutation(follow_late, "subscribe returns", "numbers_without_gap_or_repeat", _END),
    _mutation(end_before_the_children, "cancel delegate raises", "nobody_outlives_his_parent"),
    _mutation(resume_one_too_early, "resume connection_loss", "numbers_without_gap_or_repeat"),
    _mutation(list_what_was, "cancel returns", "one_status_everywhere"),
    _mutation(believe_the_agent, "cancel returns grace", _END, _OWNER),
)
MUTATIONS: Mapping[str, Mutation] = {mutation.patch.__name__: mutation for mutation in _ALL}
