"""A TCP proxy on loopback that does to connections what networks do: cuts, silences, delays and splits them."""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from enum import Enum

import attrs
import trio

__all__ = ["ChaosProxy", "Direction", "Ending", "Fault", "open_chaos_proxy"]

_CHUNK = 65_536

# Connections that went silent and still stand: past it the oldest is reset, as a router forgets an idle one.
_SILENT = 16


class Direction(Enum):
    """Which way bytes go."""

    UP = "from the client"
    DOWN = "to the client"


class Ending(Enum):
    """What happens to a connection once as many bytes have passed as its fault lets pass."""

    CLOSE = "both ends are closed"
    RESET = "both ends are reset: what was not read yet may be lost"
    SILENCE = "nothing passes any more, and nobody is told"


@attrs.frozen(kw_only=True)
class Fault:
    """What one connection has to suffer. As it stands, nothing.

    Attributes:
        ending: How it ends; ``None``: as its ends want it to.
        direction: Whose bytes are counted.
        position: So many of them pass.
        largest_piece: Bytes that are sent on at once, in both directions; 1 sends each byte alone.
        delayed_at: The position at which the bytes of ``direction`` are split, and the rest of them held back.
        delay_turns: For how many turns of the loop.
    """

    ending: Ending | None = None
    direction: Direction = Direction.DOWN
    position: int = 0
    largest_piece: int = _CHUNK
    delayed_at: int | None = None
    delay_turns: int = 0


class ChaosProxy:
    """A proxy that runs. Made by :func:`open_chaos_proxy`.

    Attributes:
        port: Where it listens.
        connections: How many it has accepted.
        struck: How many of them their faults have ended: cut or silenced.
        passed: The bytes that it has sent on, each way.
    """

    def __init__(
        self,
        listener: trio.SocketListener,
        target: int,
        next_fault: Callable[[], Fault],
        on_strike: Callable[[Fault], None],
    ) -> None:
        self.port: int = listener.socket.getsockname()[1]
        self.connections = 0
        self.struck = 0
        self.passed = dict.fromkeys(Direction, 0)
        self._target = target
        self._next_fault = next_fault
        self._on_strike = on_strike
        self._silent: deque[trio.CancelScope] = deque()

    @property
    def url(self) -> str:
        """The address for a client of the gateway behind it."""
        return f"ws://127.0.0.1:{self.port}/arcp"

    async def serve(self, client: trio.SocketStream) -> None:
        """Serve one connection until it has ended on both sides, or its fault has ended it."""
        self.connections += 1
        fault = self._next_fault()
        with trio.CancelScope() as scope:
            # Opened inside of the scope: whatever ends it, no socket stays behind.
            async with client, await trio.open_tcp_stream("127.0.0.1", self._target) as server:
                async with trio.open_nursery() as nursery:
                    link = _Link(self, fault, scope, (client, server))
                    nursery.start_soon(link.forward, Direction.UP)
                    nursery.start_soon(link.forward, Direction.DOWN)

    def strike(self, fault: Fault, scope: trio.CancelScope, streams: tuple[trio.SocketStream, ...]) -> None:
        """End a connection, or let it fall silent."""
        self.struck += 1
        self._on_strike(fault)
        if fault.ending is Ending.SILENCE:
            self._silent.append(scope)
            if len(self._silent) > _SILENT:
                self._silent.popleft().cancel(reason="a silent connection is forgotten")
            return
        if fault.ending is Ending.RESET:
            for stream in streams:
                # Lingering for no time is what makes a close a reset.
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        scope.cancel(reason="the connection is cut")


class _Link:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: ChaosProxy,
        fault: Fault,
        scope: trio.CancelScope,
        streams: tuple[trio.SocketStream, trio.SocketStream],
    ) -> None:
        self._proxy = proxy
        self._fault = fault
        self._scope = scope
        self._streams = streams
        self._silent = False

    async def forward(self, direction: Direction) -> None:
        """Send on what goes one way, up to its end or the fault."""
        source, sink = self._streams if direction is Direction.UP else reversed(self._streams)
        passed = 0
        try:
            self._strike_at(direction, passed)
            async for chunk in source:
                data = bytes(chunk)
                while data:
                    if self._silent:
                        # Read no more either: the sender's buffers fill as those of a host behind a dead link do.
                        await trio.sleep_forever()
                    piece = data[: self._room(direction, passed)]
                    data = data[len(piece) :]
                    await sink.send_all(piece)
                    passed += len(piece)
                    self._proxy.passed[direction] += len(piece)
                    self._strike_at(direction, passed)
                    await self._delay_at(direction, passed)
            if self._silent:
                await trio.sleep_forever()
            await sink.send_eof()
        except trio.BrokenResourceError:
            # One end was reset: the other is told as much by a close.
            self._scope.cancel(reason="one end has gone")

    def _room(self, direction: Direction, passed: int) -> int:
        """Return how many bytes may go next, at once."""
        fault = self._fault
        room = fault.largest_piece
        if direction is fault.direction:
            stops = [fault.position if fault.ending is not None else None, fault.delayed_at]
            room = min([room, *(stop - passed for stop in stops if stop is not None and stop > passed)])
        return room

    def _strike_at(self, direction: Direction, passed: int) -> None:
        fault = self._fault
        if fault.ending is not None and direction is fault.direction and passed == fault.position:
            self._silent = fault.ending is Ending.SILENCE
            self._proxy.strike(fault, self._scope, self._streams)

    async def _delay_at(self, direction: Direction, passed: int) -> None:
        if direction is self._fault.direction and passed == self._fault.delayed_at:
            for _ in range(self._fault.delay_turns):
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_chaos_proxy(
    port: int,
    next_fault: Callable[[], Fault] = Fault,
    *,
    on_strike: Callable[[Fault], None] = lambda _: None,
) -> AsyncGenerator[ChaosProxy, None]:
    """Open a proxy in front of a port of this machine; all its connections end with the block.

    Args:
        port: Where the gateway listens.
        next_fault: Says what the next connection has to suffer.
        on_strike: Called with each fault that ends a connection; of one that falls silent nobody else would tell.

    Cancellation: all connections are closed at once.
    """
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = ChaosProxy(listener, port, next_fault, on_strike)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, proxy.serve, [listener])
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel(reason="the proxy is closed")
