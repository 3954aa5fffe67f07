"""How a runtime shuts down: every phase, in order, in one function, under one deadline."""

from __future__ import annotations

from typing import Protocol

import trio

from .limits import Limits

__all__ = ["ShutdownTarget", "shut_down"]

# Shares of the deadline that remains when their phase begins: agents get most of it, and what is
# left suffices to revoke and to write the terminal events.
_AGENTS_SHARE = 0.7
_REVOCATIONS_SHARE = 0.85


class ShutdownTarget(Protocol):
    """What a shutdown does to a runtime, phase by phase."""

    def stop_listening(self) -> None:
        """Close the listeners; refuse new sessions and submits from now on, and submits that wait."""

    async def wait_jobs_ended(self) -> None:
        """Wait until no job runs."""

    def close_jobs(self, until: float) -> None:
        """Tell every job that the runtime closes; its agent has until ``until``."""

    def bound_revocations(self, until: float) -> None:
        """Have no job's end wait for a revocation past ``until``."""

    def stop_revoking(self) -> None:
        """Revoke nothing more: the ledger has it."""

    def close_connections(self) -> None:
        """Let every connection flush, say goodbye with 1001 and close."""

    async def wait_connections_closed(self) -> None:
        """Wait until no connection is open."""

    def cancel_connections(self) -> None:
        """Cut the connections that are left."""


async def shut_down(target: ShutdownTarget, limits: Limits) -> None:
    """Shut a runtime down within ``limits.shutdown_seconds``.

    Every job that was accepted publishes its terminal event; agents that refuse to stop are disowned and
    go on alone. Not cancellable from outside: it is what a cancelled runtime does.
    """
    deadline = trio.current_time() + limits.shutdown_seconds
    with trio.CancelScope(deadline=deadline, shield=True):
        # 1. Nothing new.
        target.stop_listening()
        # 2. What is nearly done may end by itself.
        if limits.drain_seconds > 0:
            with trio.move_on_after(limits.drain_seconds):
                await target.wait_jobs_ended()
        # 3. The rest is told to stop, and ends by its grace at the latest.
        now = trio.current_time()
        target.bound_revocations(now + (deadline - now) * _REVOCATIONS_SHARE)
        target.close_jobs(now + (deadline - now) * _AGENTS_SHARE)
        await target.wait_jobs_ended()
        # 4. What is not revoked by now is left to the next start (P9.10).
        target.stop_revoking()
        # 5. Whoever listens still hears how his jobs ended, and that it is over.
        target.close_connections()
        await target.wait_connections_closed()
    # 6. The deadline is over, or nobody is left.
    target.stop_revoking()
    target.cancel_connections()
