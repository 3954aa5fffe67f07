"""A session with a runtime that the client starts itself, as a child process (P4.2)."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import IO

from ..limits import ClientLimits
from ..transports.base import TransportClosedError
from ..transports.process import open_process_transport
from ..wire.errors import ConnectionLostError
from .client import Client
from .opening import open_client_over

__all__ = ["open_process_client"]


@asynccontextmanager
async def open_process_client(
    command: Sequence[str | os.PathLike[str]],
    *,
    token: str = "stdio",  # noqa: S107  # no secret: whoever starts a runtime is its principal
    name: str = "arcp-trio",
    limits: ClientLimits | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    stderr: int | IO[bytes] | IO[str] | None = None,
) -> AsyncGenerator[Client, None]:
    """Start a runtime and open a session with it over its stdin and stdout, as an asynchronous context manager.

    Lines on its stdout that are no JSON object are ignored, and counted in no limit: they are what its agents print.
    When it dies, calls raise ConnectionLostError, which says how. Its jobs end with it.

    On leaving, the session is closed politely, then the runtime's stdin; it has ``ClientLimits.exit_seconds`` to end
    by itself, then gets SIGTERM, and SIGKILL after ``ClientLimits.terminate_seconds`` more, with the whole process
    group that it was given. It is never left running, nor as a zombie.

    Args:
        command: The program and its arguments, for example ``["arcp-trio", "serve", "myagents:agents", "--stdio"]``. No
            shell reads them. They are in no log and no error, but for the program's name; process lists show them.
        token: The bearer token, for a runtime that asks for one.
        name: How the client names itself.
        limits: Its bounds; ``None`` for the defaults.
        cwd: The runtime's working directory; ``None`` for this process's.
        env: Its whole environment; ``None`` for this process's.
        stderr: Where its stderr goes: a file, ``subprocess.DEVNULL``; ``None`` for this process's.

    Yields:
        The session, once the runtime has let it in.

    Raises:
        TypeError: ``command`` is one string.
        ValueError: ``command`` is empty, or ``stderr`` is ``subprocess.PIPE``.
        ConnectionLostError: The process cannot be started, or ended before the welcome.
        UnauthenticatedError: The runtime refused the token.
        ARCPError: The runtime refused the session for another reason.
        NotImplementedError: On Windows.

    Whatever the body raises leaves as it is, not in a group.

    Cancellation: the session is closed politely within ``ClientLimits.close_seconds``, and the process ended as above.
    """
    bounds = limits or ClientLimits()
    try:
        async with (
            open_process_transport(
                command,
                receive_bytes=bounds.receive_bytes,
                exit_seconds=bounds.exit_seconds,
                terminate_seconds=bounds.terminate_seconds,
                status_seconds=bounds.close_seconds,
                cwd=cwd,
                env=env,
                stderr=stderr,
            ) as transport,
            open_client_over(transport, token=token, name=name, limits=bounds) as client,
        ):
            yield client
    except TransportClosedError as exc:
        raise ConnectionLostError(exc.reason or str(exc)) from exc
