"""What holds of every job, whatever happened to it and in whatever order: the one list of it.

Each invariant is a function that yields what it finds wrong, in words; :data:`INVARIANTS` has them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from races.world import Residue, World

from benchmarks.verdicts import final_status, judge, told_of

if TYPE_CHECKING:
    from helpers import Frame
    from races.participants import Participant

__all__ = ["INVARIANTS", "broken", "check"]

_ANSWERS = {
    "job.submit": {"job.accepted"},
    "job.cancel": {"job.cancelled", "x-arcp-trio.reply", "session.error"},
    "job.subscribe": {"job.subscribed"},
    "session.list_jobs": {"session.jobs"},
}
_JOB_SEQ = "x-vendor.arcp-trio.job_seq"


def _jobs(world: World) -> tuple[str, ...]:
    return (world.job_id, *world.children)


def _view(participant: Participant, job_id: str) -> list[Frame]:
    return [frame for frame in participant.told if told_of(frame, job_id)]


def _hears_the_end(world: World, participant: Participant) -> bool:
    """Say whether a participant must have been told how the job ended."""
    if participant is world.owner:
        # A runtime that shuts down cannot be come back to.
        return not (world.was_shut_down and {"connection_loss", "resume"} & set(world.causes))
    if participant is world.other and world.left:
        return False
    return any(frame["type"] == "job.subscribed" for frame in participant.told)


def one_end_that_all_agree_on(world: World) -> Iterator[str]:
    """One terminal event for each job, nothing of it behind that, an ack before CANCELLED alone, for all the same."""
    for job_id in _jobs(world):
        views = {each.name: _view(each, job_id) for each in world.participants}
        owner_only = job_id != world.job_id
        must = {
            each.name
            for each in world.participants
            if _hears_the_end(world, each) and (each is world.owner or not owner_only)
        }
        for kind, who in judge(job_id, views, frozenset(must)):
            yield f"{kind}: {job_id}, {who}"


def one_status_everywhere(world: World) -> Iterator[str]:
    """The record, the terminal event, the listing, the descriptor and every answer to a late cancel say the same."""
    for job_id in _jobs(world):
        status = world.statuses.get(job_id)
        if status is None:
            yield f"{job_id} has no record"
            continue
        for each in world.participants:
            for frame in _view(each, job_id):
                payload = frame["payload"]
                told = final_status(frame)
                if frame["type"] == "x-arcp-trio.reply":
                    told = payload["job_status"]
                elif frame["type"] == "job.subscribed" and payload["current_status"] not in ("pending", "running"):
                    told = payload["current_status"]
                elif frame["type"] == "session.jobs":
                    told = next(entry["status"] for entry in payload["jobs"] if entry["job_id"] == job_id)
                    told = None if told in ("pending", "running") else told
                if told not in (None, status):
                    yield f"{each.name} was told {told} by {frame['type']}, the record of {job_id} says {status}"
    if not world.was_shut_down:
        for each in (world.owner, world.other):
            pages = [frame for frame in each.told if frame["type"] == "session.jobs"]
            ends = {entry["job_id"]: entry["status"] for entry in pages[-1]["payload"]["jobs"]} if pages else {}
            if ends != world.statuses:
                yield f"the last listing of {each.name} says {ends}, the records {world.statuses}"


def a_status_that_something_brought_about(world: World) -> Iterator[str]:
    """No job ends by what nobody did."""
    status = world.statuses.get(world.job_id)
    if status is not None and status not in world.finals:
        yield f"{status}, where only {sorted(world.finals)} can be"


def only_the_owner_cancels(world: World) -> Iterator[str]:
    """A cancel by another is refused, and what is acknowledged to the owner is all that the runtime counts."""
    for request_id, (frame, _) in world.other.asked.items():
        if frame["type"] == "job.cancel":
            answer = world.other.answer_to(request_id)
            if answer is not None and answer["payload"].get("code") != "PERMISSION_DENIED":
                yield f"the other's cancel was answered by {answer['type']}"
    acks = {frame["correlation_id"] for frame in world.owner.told if frame["type"] == "job.cancelled"}
    assert world.statistics is not None
    counted = world.statistics.cancels_acknowledged
    if len(acks) > counted or counted > 1 or counted != (world.statuses.get(world.job_id) == "cancelled"):
        yield f"{len(acks)} acks were read, {counted} sent, of a job that ended {world.statuses.get(world.job_id)}"


def torn_down_once(world: World) -> Iterator[str]:
    """Accepted, torn down and published: as many times as there are jobs. No bug was counted."""
    statistics = world.statistics
    assert statistics is not None
    counts = (statistics.jobs_accepted, statistics.tear_downs, statistics.terminals_published)
    if counts != (len(_jobs(world)),) * 3:
        yield f"{len(_jobs(world))} jobs: accepted, torn down and published are {counts}"
    if statistics.bugs:
        yield f"{statistics.bugs} bugs"
    if statistics.jobs_running:
        yield f"{statistics.jobs_running} jobs run"


def numbers_without_gap_or_repeat(world: World) -> Iterator[str]:
    """Each session's numbers count from 1, over all its connections; each job's own numbers have no gap either."""
    for each in world.participants:
        numbers = [frame["event_seq"] for frame in each.told if "event_seq" in frame]
        if numbers != list(range(1, len(numbers) + 1)):
            yield f"{each.name}: {numbers}"
        for job_id in _jobs(world):
            own = [
                frame["extensions"][_JOB_SEQ]
                for frame in each.told
                if frame.get("job_id") == job_id and _JOB_SEQ in frame.get("extensions", {})
            ]
            first = own[0] if own else 1
            if own != list(range(first, first + len(own))):
                yield f"{each.name}, of {job_id}: {own}"
            if own and first != 1 and each is not world.late:
                yield f"{each.name}, of {job_id}: the first is {first}"


def every_caller_answered(world: World) -> Iterator[str]:
    """Whoever asks is answered once, unless the connection that he asked on ends first."""
    for each in world.participants:
        # A resume may send an answer again, and then it is the same frame.
        frames = {frame["id"]: frame for frame in each.told if frame.get("correlation_id") in each.asked}
        answers = Counter(frame["correlation_id"] for frame in frames.values())
        for request_id, (frame, connection) in each.asked.items():
            kinds = _ANSWERS.get(frame["type"])
            answer = each.answer_to(request_id)
            if kinds is None:
                if answer is not None:
                    yield f"{each.name}: {frame['type']} was answered by {answer['type']}"
            elif answer is None:
                if connection not in each.excused:
                    yield f"{each.name}: {frame['type']} {request_id} was not answered"
            elif answers[request_id] > 1:
                yield f"{each.name}: {frame['type']} {request_id} was answered {answers[request_id]} times"
            elif answer["type"] not in kinds:
                yield f"{each.name}: {frame['type']} was answered by {answer['type']}: {answer['payload']}"


def nobody_outlives_his_parent(world: World) -> Iterator[str]:
    """In the order in which the owner is told, every child has ended before its parent has."""
    ended: set[str] = set()
    for frame in world.owner.told:
        if final_status(frame) is None:
            continue
        ended.add(frame["job_id"])
        running = [child for child in world.children if child not in ended]
        if frame["job_id"] == world.job_id and running:
            yield f"{world.job_id} has ended, {running} have not"


def no_credential_outlives_its_job(world: World) -> Iterator[str]:
    """Whatever was issued is revoked and good no more, values of rotations too, or a closed runtime has noted it."""
    provisioner = world.provisioner
    if provisioner is None:
        return
    noted = world.runtime.unrevoked_credentials()
    jobs = {entry.job_id for entry in noted} if world.was_shut_down else set()
    if not set(provisioner.live.values()) <= jobs:
        yield f"{len(provisioner.live)} credentials are still good"
    if provisioner.revoked.keys() | provisioner.live.keys() != provisioner.values.keys():
        yield f"of {len(provisioner.values)} credentials {len(provisioner.revoked)} were revoked"


def nothing_is_left(world: World) -> Iterator[str]:
    """No timer of a job that has ended; and when every window has passed no session, record, connection or task."""
    left, statistics = world.residue, world.statistics
    assert left is not None
    assert statistics is not None
    # One for the retention of the records, one for each session that waits for its client.
    if statistics.timers > 1 + statistics.sessions_waiting:
        yield f"{statistics.timers} timers stand for jobs that have ended"
    if world.was_shut_down:
        # Its sessions and records go with the runtime, which is closed.
        if left.connections or left.tasks:
            yield f"{left}"
    elif left != Residue(0, 0, 0, 0, ()):
        yield f"{left}"


INVARIANTS: tuple[Callable[[World], Iterator[str]], ...] = (
    one_end_that_all_agree_on,
    one_status_everywhere,
    a_status_that_something_brought_about,
    only_the_owner_cancels,
    torn_down_once,
    numbers_without_gap_or_repeat,
    every_caller_answered,
    nobody_outlives_his_parent,
    no_credential_outlives_its_job,
    nothing_is_left,
)


def broken(world: World) -> dict[str, list[str]]:
    """Return what is wrong, by the invariant that says so."""
    found = {invariant.__name__: list(invariant(world)) for invariant in INVARIANTS}
    return {name: wrong for name, wrong in found.items() if wrong}


def check(world: World) -> None:
    """Check all of them.

    Raises:
        AssertionError: What is wrong, all of it.
    """
    wrong = broken(world)
    assert not wrong, "; ".join(f"{name}: {', '.join(texts)}" for name, texts in wrong.items())
