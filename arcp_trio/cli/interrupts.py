"""Control-C while a client command runs: the command hears of it before it is stopped."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from .errors import ExitCode

__all__ = ["run_interruptible"]


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
    code = ExitCode.INTERRUPTED
    failure: Exception | None = None

    async def watch(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for _ in signals:
            if not on_interrupt():
                scope.cancel(reason="control-C")

    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, signals, nursery.cancel_scope)
            try:
                code = await body()
            except Exception as exc:  # noqa: BLE001  # raised below, outside of the nursery that would wrap it
                failure = exc
            nursery.cancel_scope.cancel(reason="the command has ended")
    if failure is not None:
        raise failure
    return code
