"""How the client commands reach a runtime, and what they say where they cannot."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import attrs

from ..client.client import Client
from ..client.opening import open_client
from ..client.process import open_process_client
from ..client.reconnect import Reconnect
from ..limits import ClientLimits
from ..transports.engines import EngineName
from ..wire.errors import ARCPError
from .errors import CommandError, ExitCode, describe_refusal
from .text import clean

__all__ = ["CLIENT_LIMITS", "DEFAULT_URL", "Target", "open_session", "read_command"]

DEFAULT_URL = "ws://127.0.0.1:7777/arcp"

CLIENT_LIMITS = ClientLimits(close_seconds=0.5, exit_seconds=5.0, terminate_seconds=1.0)
"""Who presses control-C twice does not wait longer for a runtime that does not answer a goodbye, or does not end."""

_NO_TOKEN = "anonymous"  # noqa: S105  # no secret: what is sent where the user has none


@attrs.frozen(kw_only=True)
class Target:
    """Where a command goes, and with what.

    Attributes:
        url: The runtime's address.
        token: The user's token; ``None`` where he gave none, which a gateway for everybody accepts.
        command: What starts the runtime, to speak over its stdin and stdout; ``None`` connects to ``url``.
        allow_plaintext: Whether the token may go to another machine unencrypted.
        engine: Which library carries the frames of ``url``.
    """

    url: str
    token: str | None = attrs.field(default=None, repr=False)
    command: tuple[str, ...] | None = attrs.field(default=None, repr=False)
    allow_plaintext: bool = False
    engine: EngineName = "auto"

    @property
    def is_shared(self) -> bool:
        """Whether the runtime, and with it a job, goes on without this command."""
        return self.command is None

    def hint(self, *words: str) -> str:
        """Return another command for the same runtime, to be typed in the same shell; it holds no token."""
        line = ["arcp-trio", *words]
        if self.url not in (DEFAULT_URL, os.environ.get("ARCP_URL")):
            line += ["--url", self.url]
        if self.allow_plaintext:
            line.append("--allow-plaintext")
        if self.engine != "auto":
            line += ["--engine", self.engine]
        return clean(shlex.join(line))


def read_command(text: str) -> tuple[str, ...]:
    """Return the program and its arguments, as a shell would read them.

    Raises:
        CommandError: There is none, or a quote is not closed. The message holds nothing of it: there may be a secret.
    """
    try:
        command = tuple(shlex.split(text))
    except ValueError as exc:
        raise CommandError(f"--command: {exc}", ExitCode.USAGE) from None
    if not command:
        raise CommandError("--command: expected a program and its arguments, got nothing", ExitCode.USAGE)
    return command


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname)
        secret = parts.username is not None or parts.password is not None
        _ = parts.port
    except ValueError as exc:
        raise CommandError(f"--url: {exc}", ExitCode.USAGE) from None
    if secret:
        # Not shown: it holds what must not be printed.
        raise CommandError("--url: a token does not belong into the URL: use ARCP_TOKEN", ExitCode.USAGE)
    if not usable:
        raise CommandError(f"--url: expected ws://HOST:PORT/arcp or wss://…, got {clean(url)!r}", ExitCode.USAGE)


@asynccontextmanager
async def open_session(
    target: Target, *, name: str, reconnect: Reconnect | None = None
) -> AsyncGenerator[Client, None]:
    """Open a session with the runtime that the user named.

    Args:
        target: Where, and with what token.
        name: How the client names itself.
        reconnect: How a connection that is lost is got back; ``None``: not at all, and so it is with a runtime that
            was started.

    Raises:
        CommandError: It cannot be opened; the message says why.

    Whatever the body raises leaves as it is.

    Cancellation: the session is closed politely within half a second; a runtime that was started has five more to end.
    """
    token = target.token or _NO_TOKEN
    if target.command is not None:
        opening = open_process_client(target.command, token=token, name=name, limits=CLIENT_LIMITS)
    else:
        _check_url(target.url)
        opening = open_client(
            target.url,
            token=token,
            name=name,
            limits=CLIENT_LIMITS,
            reconnect=reconnect,
            allow_plaintext=target.allow_plaintext,
            engine=target.engine,
        )
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(opening)
        except ARCPError as exc:
            raise CommandError(describe_refusal(exc, has_token=target.token is not None)) from exc
        except ImportError as exc:
            raise CommandError(f"--engine: {exc}", ExitCode.USAGE) from exc
        except ValueError as exc:
            message = str(exc).replace("say allow_plaintext=True", "say --allow-plaintext")
            raise CommandError(f"--url: {clean(message)}", ExitCode.USAGE) from exc
        yield client
