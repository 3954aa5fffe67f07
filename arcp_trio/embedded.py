"""A session in the process itself: the same client, over a transport in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

from .client.client import OFFERED_FEATURES, Client
from .client.opening import open_client_over
from .limits import ClientLimits
from .runtime import Runtime
from .sessions.auth import Principal
from .transports.memory import open_memory_pair

__all__ = ["open_session"]


@asynccontextmanager
async def open_session(
    runtime: Runtime,
    *,
    principal: str | Principal,
    name: str = "embedded",
    limits: ClientLimits | None = None,
) -> AsyncGenerator[Client, None]:
    """Open a session with a runtime of this process: ``async with runtime.open_session(principal="me") as client``.

    It obeys the same rules as one over a network: frames are encoded and decoded, buffers are bounded.

    Args:
        runtime: An open runtime.
        principal: Whose session it is; whoever can call this needs no token.
        name: How the client names itself.
        limits: The client's bounds; ``None`` for the defaults.

    Yields:
        The session, once the runtime has let it in.

    Raises:
        ARCPError: The runtime refused the session, for a cap or because it shuts down.
        ConnectionLostError: It has shut down.

    Cancellation: as :func:`~arcp_trio.client.opening.open_client_over`.
    """
    bounds = limits or ClientLimits()
    theirs, ours = open_memory_pair(receive_bytes=(runtime.limits.receive_bytes, bounds.receive_bytes))
    serve = partial(runtime.serve_transport, theirs, principal=principal)
    runtime.spawn_connection(serve, f"embedded session of {principal}")
    async with open_client_over(
        ours,
        token="embedded",  # noqa: S106
        name=name,
        limits=bounds,
        reconnect=None,
        # A connection inside of a process cannot half-die.
        features=[feature for feature in OFFERED_FEATURES if feature != "heartbeat"],
    ) as client:
        yield client
