"""The engines that carry WebSocket, and which of them is taken.

A plain install has one, on trio-websocket. The extra ``arcp-trio[fast]`` brings another, on the protocol of the
library websockets, whose frames cost a fraction. What both promise is the same: it stands here, and
``tests/transports`` holds both to it. An engine is a module with the functions of :class:`Engine`.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal, Protocol

from .base import Transport
from .upgrade import Refused, UpgradeHead

if TYPE_CHECKING:
    import trio

__all__ = ["Engine", "EngineName", "Upgrade", "find_engine"]

EngineName = Literal["auto", "trio-websocket", "websockets"]
"""Which engine: ``auto`` takes websockets where the extra ``fast`` is installed."""

_OLDEST_WEBSOCKETS = 15


class Upgrade(Protocol):
    """A client's request for an upgrade, which waits for its answer."""

    @property
    def head(self) -> UpgradeHead:
        """What it asks for."""
        ...

    async def accept(self) -> Transport:
        """Answer with 101; the frames follow.

        Raises:
            TransportClosedError: The peer has gone.

        Cancellation: the stream can only be closed.
        """
        ...

    async def reject(self, status: int, reason: str) -> None:
        """Answer with another status, and why in a line; the stream is the caller's to close.

        Raises:
            TransportClosedError: The peer has gone.

        Cancellation: the stream can only be closed.
        """


class Engine(Protocol):
    """What an engine does."""

    async def accept_websocket(
        self,
        nursery: trio.Nursery,
        stream: trio.abc.Stream,
        *,
        receive_bytes: int,
        description: str,
        private: bool = False,
    ) -> Upgrade:
        """Read the upgrade request of a new connection. What is none is answered with its HTTP status.

        Args:
            nursery: Where the engine's tasks live, if it has any; it ends with the connection.
            stream: The connection, after TLS if there is any.
            receive_bytes: The largest message that is read; a larger one closes with 1009 (P4.4).
            description: Where the connection leads, for logs.
            private: Whether it is encrypted, or leads nowhere where it could be read.

        Raises:
            TransportClosedError: The peer has gone, or what it sent is no upgrade request.

        Cancellation: the stream is to be closed by the caller.
        """
        ...

    async def connect_websocket(
        self,
        nursery: trio.Nursery,
        stream: trio.abc.Stream,
        host: str,
        resource: str,
        *,
        receive_bytes: int,
        description: str,
        private: bool = False,
    ) -> Transport | Refused | None:
        """Ask a server for an upgrade.

        Args:
            nursery: As above.
            stream: As above.
            host: What the Host header says.
            resource: The path, with its query.
            receive_bytes: As above.
            description: As above.
            private: As above.

        Returns:
            The connection; or the server's refusal; or ``None`` where it hung up, or its answer is no upgrade's.

        Cancellation: as above.
        """
        ...


def _websockets_version() -> int | None:
    """Return the major version of the library websockets; ``None`` where it is not installed."""
    try:
        return int(version("websockets").partition(".")[0])
    except PackageNotFoundError:
        return None


def find_engine(name: str = "auto") -> Engine:
    """Return an engine; a library is imported here and not before.

    Args:
        name: An :data:`EngineName`.

    Raises:
        ValueError: There is no such engine.
        ImportError: It is not installed.
    """
    if name not in ("auto", "trio-websocket", "websockets"):
        raise ValueError(f"engine: expected 'auto', 'trio-websocket' or 'websockets', got {name!r}")
    if name != "trio-websocket":
        found = _websockets_version()
        if found is not None and found >= _OLDEST_WEBSOCKETS:
            from . import engine_websockets  # noqa: PLC0415  # the extra "fast"

            return engine_websockets
        if name == "websockets":
            problem = "it is not installed" if found is None else f"version {found} is installed"
            raise ImportError(
                f"engine 'websockets' needs the library websockets, version {_OLDEST_WEBSOCKETS} or later, and "
                f"{problem}: install arcp-trio[fast]"
            )
    from . import engine_trio_websocket  # noqa: PLC0415  # who has the other engine does not pay for this one

    return engine_trio_websocket
