"""Control-C while a client command runs: the command hears of it before it is stopped."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import trio

from .errors import ExitCode

__all__ = ["run_beside", "run_interruptible"]

T = TypeVar("T")


async def run_beside(body: Callable[[], Awaitable[T]], *beside: Callable[[], Awaitable[object]]) -> T:
    """Run ``body`` and return what it returns, with other tasks that run until then and no longer.

    What the body raises leaves as it is, not in a group; what another task raises leaves in one.

    Cancellation: all are cancelled.
    """
    result: list[T] = []
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        for task in beside:
            nursery.start_soon(task)
        try:
            result.append(await body())
        except Exception as exc:  # noqa: BLE001  # raised below, outside of the nursery that would wrap it
            failure = exc
        nursery.cancel_scope.cancel(reason="the command has ended")
    if failure is not None:
        raise failure
    return result[0]


async def run_interruptible(
    body: Callable[[], Awaitable[ExitCode]], on_interrupt: Callable[[], bool] = lambda: False
) -> ExitCode:
    """Run ``body`` and return its exit code, or ``INTERRUPTED`` if control-C stopped it.

    Args:
        body: The command.
        on_interrupt: Is called at each control-C; says whether the body deals with it. If not, the body is
            cancelled.

    Whatever the body raises leaves as it is, not in a group.

    Cancellation: the body is cancelled.
    """
    with trio.open_signal_receiver(signal.SIGINT) as signals, trio.CancelScope() as scope:

        async def watch(signals: AsyncIterator[int] = signals) -> None:
            async for _ in signals:
                if not on_interrupt():
                    scope.cancel(reason="control-C")

        return await run_beside(body, watch)
    return ExitCode.INTERRUPTED
