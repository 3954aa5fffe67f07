"""A race that is easily written: a check, an await, and a write that no longer holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from races.schedules import Schedule

__all__ = ["spend_by_turns", "spend_carelessly", "spend_in_one_step"]

_LATE = 3


class _Purse:
    def __init__(self) -> None:
        self.left = 1

    async def spend_carelessly(self) -> None:
        if self.left >= 1:
            await trio.lowlevel.checkpoint()
            self.left -= 1

    async def spend_in_one_step(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.left >= 1:
            self.left -= 1


async def _late(spend: Callable[[], Awaitable[None]]) -> None:
    # So late that it sees the other's write, unless that one is held back for longer than Trio ever does.
    for _ in range(_LATE):
        await trio.lowlevel.checkpoint()
    await spend()


async def spend_carelessly(schedule: Schedule, scope: trio.CancelScope) -> None:
    """Two spend what is there for one: under most schedules only one of them sees it."""
    purse = _Purse()
    with scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(purse.spend_carelessly, name="first spender")
            nursery.start_soon(_late, purse.spend_carelessly, name="second spender")
    assert purse.left >= 0, "spent twice"


async def spend_in_one_step(schedule: Schedule, scope: trio.CancelScope) -> None:
    """The same without the race."""
    purse = _Purse()
    with scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(purse.spend_in_one_step, name="first spender")
            nursery.start_soon(_late, purse.spend_in_one_step, name="second spender")
    assert purse.left == 0 or scope.cancel_called, "spent twice, or not at all"


async def spend_by_turns(schedule: Schedule, scope: trio.CancelScope) -> None:
    """What is taken comes back, unless who has it is interrupted at the second of its three checkpoints."""
    held = 0

    async def take_and_return() -> None:
        nonlocal held
        with scope:
            await trio.lowlevel.checkpoint()
            held += 1
            await trio.lowlevel.checkpoint()
            held -= 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_and_return, name="taker")
    assert held == 0, "taken, and never returned"
