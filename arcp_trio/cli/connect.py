"""How the client commands reach a runtime, and what they say where they cannot."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import attrs

from ..client.client import Client
from ..client.opening import open_client
from ..limits import ClientLimits
from ..wire.errors import ARCPError
from .errors import CommandError, ExitCode, describe_refusal
from .text import clean

__all__ = ["CLIENT_LIMITS", "Target", "open_session"]

CLIENT_LIMITS = ClientLimits(close_seconds=0.5)
"""Who presses control-C twice does not wait longer for a runtime that does not answer a goodbye."""

_NO_TOKEN = "anonymous"  # noqa: S105  # no secret: what is sent where the user has none


@attrs.frozen(kw_only=True)
class Target:
    """Where a command goes, and with what.

    Attributes:
        url: The runtime's address.
        token: The user's token; ``None`` where he gave none, which a gateway for everybody accepts.
        allow_plaintext: Whether the token may go to another machine unencrypted.
    """

    url: str
    token: str | None = attrs.field(default=None, repr=False)
    allow_plaintext: bool = False


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
async def open_session(target: Target, *, name: str) -> AsyncGenerator[Client, None]:
    """Open a session with the runtime that the user named.

    Args:
        target: Where, and with what token.
        name: How the client names itself.

    Raises:
        CommandError: It cannot be opened; the message says why.

    Whatever the body raises leaves as it is.

    Cancellation: the session is closed politely within half a second.
    """
    _check_url(target.url)
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(
                open_client(
                    target.url,
                    token=target.token or _NO_TOKEN,
                    name=name,
                    limits=CLIENT_LIMITS,
                    # A command says that its runtime is lost, rather than wait for it in silence.
                    reconnect=None,
                    allow_plaintext=target.allow_plaintext,
                )
            )
        except ARCPError as exc:
            raise CommandError(describe_refusal(exc, has_token=target.token is not None)) from exc
        except ValueError as exc:
            message = str(exc).replace("say allow_plaintext=True", "say --allow-plaintext")
            raise CommandError(f"--url: {clean(message)}", ExitCode.USAGE) from exc
        yield client
