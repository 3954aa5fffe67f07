"""What can happen to a job, each as one function of the world that it happens in.

A further one is a function here and its line in :data:`CAUSES`: every pair and triple with it is explored from then on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import trio
from provisioning.fakes import taking
from races.schedules import Schedule
from races.world import DEADLINE_AFTER, EXPIRES_AFTER, GRACE, Cause, World

import arcp_trio

__all__ = ["CAUSES", "cases", "schedules"]

HOLDS = (0.6, 0.3, 0.8)


async def returns(world: World) -> None:
    """The agent returns."""
    world.order("return")


async def raises(world: World) -> None:
    """The agent raises."""
    world.finals.add("error")
    world.order("raise")


async def cancel(world: World) -> None:
    """The owner cancels."""
    world.finals.add("cancelled")
    await world.owner.ask("job.cancel", {"job_id": world.job_id})


async def second_cancel(world: World) -> None:
    """The owner cancels twice, without waiting for an answer."""
    await cancel(world)
    await cancel(world)


async def cancel_by_another(world: World) -> None:
    """Another session of the same principal cancels: it may not."""
    await world.other.ask("job.cancel", {"job_id": world.job_id})


async def deadline(world: World) -> None:
    """The job has run for as long as it may."""
    world.finals.add("timed_out")
    world.jump_to(DEADLINE_AFTER)


async def expiry(world: World) -> None:
    """The job's lease expires."""
    world.finals.add("error")
    world.jump_to(EXPIRES_AFTER + 0.5)


async def grace(world: World) -> None:
    """The agent is stubborn, and as much time passes as it has to stop."""
    world.jump_to(trio.current_time() + GRACE)


async def shutdown(world: World) -> None:
    """The runtime shuts down."""
    world.finals.add("error")
    world.was_shut_down = True
    await world.runtime.aclose()


async def connection_loss(world: World) -> None:
    """The owner's connection breaks."""
    await world.owner.drop()


async def resume(world: World) -> None:
    """The owner comes back on another connection, whether its first one is still there or not."""
    await world.owner.connect()


async def subscribe(world: World) -> None:
    """A third session comes and follows the job, with or without its history."""
    assert world.late is not None
    await world.late.connect()
    if world.late.is_connected:
        history = world.chance.choice([True, False])
        await world.late.ask("job.subscribe", {"job_id": world.job_id, "history": history})


async def unsubscribe(world: World) -> None:
    """The other session follows the job no more."""
    world.left = True
    await world.other.ask("job.unsubscribe", {"job_id": world.job_id})


async def delegate(world: World) -> None:
    """The agent delegates a part of its work, to a child that goes on until it is let go or stopped."""
    world.order("delegate")


async def rotate(world: World) -> None:
    """The job's credential gets another value."""
    # Refused where the job is ending, and where the runtime has shut down.
    with suppress(arcp_trio.ARCPError):
        await world.runtime.rotate_credential(world.job_id, world.credential_ids[0])


async def revoke(world: World) -> None:
    """From now on what revokes a credential takes its time: the tear-down waits, and all else can happen meanwhile."""
    assert world.provisioner is not None
    world.provisioner.before["revoke"] = taking(world.chance.choice([0.5, 2]))


CAUSES: Mapping[str, Cause] = {
    cause.__name__: cause
    for cause in (
        returns,
        raises,
        cancel,
        second_cancel,
        cancel_by_another,
        deadline,
        expiry,
        grace,
        shutdown,
        connection_loss,
        resume,
        subscribe,
        unsubscribe,
        delegate,
        rotate,
        revoke,
    )
}


def cases(names: Sequence[str] = tuple(CAUSES)) -> list[str]:
    """Return each cause alone, every pair and every triple."""
    return ["+".join(case) for length in (1, 2, 3) for case in itertools.combinations(names, length)]


def schedules(numbers: range, among: Sequence[str]) -> Iterator[Schedule]:
    """Return a schedule for each of these seeds; those that follow one another go through the cases in turn."""
    for number in numbers:
        rounds, at = divmod(number, len(among))
        yield Schedule(number, HOLDS[rounds % len(HOLDS)], among[at])
