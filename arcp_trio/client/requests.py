"""What a client has asked and not been told yet."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from ..wire.errors import ARCPError

if TYPE_CHECKING:
    from .job_handle import JobHandle

__all__ = ["Outgoing", "Request", "Slot"]

T = TypeVar("T")


class Slot(Generic[T]):
    """Where an answer is put. Putting is synchronous and tolerates a caller who has left."""

    __slots__ = ("_error", "_event", "_value")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._value: T | None = None
        self._error: ARCPError | None = None

    @property
    def is_set(self) -> bool:
        """Whether the answer is there."""
        return self._event.is_set()

    @property
    def failed(self) -> bool:
        """Whether the answer is an error."""
        return self._error is not None

    def put(self, value: T) -> None:
        """Answer; the first answer counts."""
        if not self._event.is_set():
            self._value = value
            self._event.set()

    def fail(self, error: ARCPError) -> None:
        """Answer with an error, likewise."""
        if not self._event.is_set():
            self._error = error
            self._event.set()

    async def wait(self) -> T:
        """Return the answer, or raise the error that it is."""
        await self._event.wait()
        if self._error is not None:
            # One error may fail many calls: raised twice, an exception grows a traceback of both.
            raise copy(self._error)
        assert self._value is not None
        return self._value


class Outgoing:
    """A frame on its way out.

    Attributes:
        frame: Its bytes.
        taken: Whether a writer has taken it: from then on the runtime may have received it.
    """

    __slots__ = ("frame", "taken")

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.taken = False


class Request(Generic[T]):
    """A request whose answer is awaited, perhaps over several connections.

    Args:
        encode: Makes the frame from a message id.
        request_id: The first one.
        slot: Where the answer goes.
        handle: The job's handle; ``None`` for a listing.
        repeatable: Whether asking again does nothing twice: all but a submit without a key.
    """

    __slots__ = ("_encode", "handle", "link", "outgoing", "repeatable", "request_id", "slot", "waiters")

    def __init__(
        self,
        encode: Callable[[str], bytes],
        request_id: str,
        slot: Slot[T],
        *,
        handle: JobHandle | None = None,
        repeatable: bool = True,
    ) -> None:
        self._encode = encode
        self.request_id = request_id
        self.outgoing = Outgoing(encode(request_id))
        self.slot = slot
        self.handle = handle
        self.repeatable = repeatable
        # The connection that it was last given to; compared by identity.
        self.link: Any = None
        # How many calls share the answer.
        self.waiters = 0

    def may_have_arrived(self) -> bool:
        """Whether a runtime may have received it."""
        return self.outgoing.taken

    def renew(self, request_id: str) -> None:
        """Take another id: some runtimes silently drop a message whose id they have seen (D2)."""
        self.request_id = request_id
        self.outgoing = Outgoing(self._encode(request_id))
