"""A job's mailbox: what is posted is processed one at a time by the actor that owns it.

Posting is synchronous and never blocks, fails or loses. The bound is by construction: each internal
message is posted at most once, and of cancels only one waits (:meth:`Mailbox.post_cancel`). A parent that has less
time than it had says so again: once for each of the few causes that each job above it knows.
"""

from __future__ import annotations

from collections import deque

import trio

from .lifecycle import Cancel, Message

__all__ = ["Mailbox"]


class Mailbox:
    """A queue with one reader, its actor."""

    __slots__ = ("_cancel_waits", "_messages", "_reader")

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._reader: trio.lowlevel.Task | None = None
        self._cancel_waits = False

    def __len__(self) -> int:
        return len(self._messages)

    def post(self, message: Message) -> None:
        """Add a message and wake the actor."""
        self._messages.append(message)
        self.wake()

    def wake(self) -> None:
        """Wake the actor, if it waits: also without a message it looks at what its state has become."""
        if self._reader is not None:
            trio.lowlevel.reschedule(self._reader)
            self._reader = None

    def post_cancel(self, message: Cancel) -> bool:
        """Add a cancel, unless one waits already; say whether it was added."""
        if self._cancel_waits:
            return False
        self._cancel_waits = True
        self.post(message)
        return True

    def take(self) -> Message | None:
        """Take the oldest message; ``None`` when there is none."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        if type(message) is Cancel:
            self._cancel_waits = False
        return message

    async def wait(self) -> None:
        """Wait for a message, or :meth:`wake`. Only the actor calls this; cancelling it loses nothing."""
        if self._messages:
            await trio.lowlevel.checkpoint()
            return
        self._reader = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._reader = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
