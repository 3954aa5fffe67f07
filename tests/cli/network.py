"""A network between a command and its runtime, to be cut and mended."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import attrs
import trio


@attrs.define
class Network:
    """A TCP proxy on loopback.

    Attributes:
        url: The runtime's address behind it.
        refused: Is set whenever somebody tries to connect while it is cut.
    """

    url: str
    refused: trio.Event = attrs.field(factory=trio.Event)
    _target: int = 0
    _is_cut: bool = False
    _connections: set[trio.CancelScope] = attrs.field(factory=set)

    def cut(self) -> None:
        """Break all connections, without a goodbye, and let nobody in."""
        self._is_cut = True
        self.refused = trio.Event()
        for scope in self._connections:
            scope.cancel()

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    async def _carry(self, near: trio.SocketStream) -> None:
        if self._is_cut:
            self.refused.set()
            await trio.aclose_forcefully(near)
            return
        far = await trio.open_tcp_stream("127.0.0.1", self._target)
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, near, far, scope)
                nursery.start_soon(self._copy, far, near, scope)
        self._connections.remove(scope)
        for stream in (near, far):
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    @staticmethod
    async def _copy(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        scope.cancel()


@asynccontextmanager
async def open_network(port: int) -> AsyncGenerator[Network, None]:
    """Open a network to a port of this machine."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        network = Network(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}/arcp", target=port)
        nursery.start_soon(trio.serve_listeners, network._carry, listeners)
        yield network
        nursery.cancel_scope.cancel()
