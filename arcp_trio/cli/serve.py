"""``arcp-trio serve``: a runtime with the user's agents, on a WebSocket port or over stdio, until a signal."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

import attrs
import trio

from ..gateway import Listening, serve_stdio, serve_websocket
from ..jobs.agents import Agents
from ..limits import Limits
from ..runtime import Runtime, open_runtime
from ..sessions.auth import AnonymousAccess, StaticTokens, Verifier
from ..transports.engines import EngineName
from ..transports.stdio import open_stdio
from .errors import CommandError, ExitCode
from .text import clean

__all__ = ["ServeOptions", "load_agents", "make_verifier", "serve", "serve_on_stdio"]

logger = logging.getLogger("arcp_trio.cli")

_STDIO_CHUNK_BYTES = 40 * 1024
"""In base64 a line of less than 60 KB: one implementation reads no more than 64 KiB of one (interop.md, section 1)."""


@attrs.frozen(kw_only=True)
class ServeOptions:
    """What ``serve`` was told.

    Attributes:
        host: Where to listen.
        port: The port; 0 picks a free one.
        allow_plaintext: Whether tokens may cross a network unencrypted.
        shutdown_seconds: How long a shutdown may take.
        engine: Which library carries the frames.
    """

    host: str
    port: int
    allow_plaintext: bool
    shutdown_seconds: float
    engine: EngineName = "auto"


def load_agents(reference: str) -> Agents:
    """Import ``MODULE:AGENTS`` and return the registry that it names.

    Args:
        reference: The module may lie in the current directory.

    Raises:
        CommandError: It has another form, cannot be imported, or is no :class:`~arcp_trio.jobs.agents.Agents`.
    """
    module_name, colon, path = reference.partition(":")
    if not colon or not module_name or not path:
        raise CommandError(
            f"expected MODULE:AGENTS, for example myagents:agents, got {clean(reference)!r}", ExitCode.USAGE
        )
    here = str(Path.cwd())
    if here not in sys.path:
        # A console script's path begins with its own folder, not with the current one.
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        wanted = module_name if exc.name and f"{module_name}.".startswith(f"{exc.name}.") else None
        if wanted is None:
            raise _import_failed(module_name, exc) from exc
        raise CommandError(
            f"no module is named {clean(module_name)!r}, neither installed nor in {here}", ExitCode.USAGE
        ) from exc
    except Exception as exc:
        raise _import_failed(module_name, exc) from exc
    for name in path.split("."):
        if not hasattr(found, name):
            raise CommandError(f"{clean(module_name)} has no {clean(path)!r}", ExitCode.USAGE)
        found = getattr(found, name)
    if not isinstance(found, Agents):
        raise CommandError(f"{clean(reference)} is no arcp_trio.Agents, but {type(found).__name__}", ExitCode.USAGE)
    return found


def _import_failed(module_name: str, exc: Exception) -> CommandError:
    """Say in one line what went wrong in the user's module, and where."""
    frames = traceback.extract_tb(exc.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(exc, SyntaxError):
        where = f" ({exc.filename}, line {exc.lineno})"
    text = exc.msg if isinstance(exc, SyntaxError) else str(exc)
    return CommandError(clean(f"cannot import {module_name}: {type(exc).__name__}: {text}{where}"))


def make_verifier(tokens: Sequence[str], environment: Mapping[str, str], *, anonymous: bool) -> Verifier:
    """Return who decides on tokens.

    Args:
        tokens: ``TOKEN=PRINCIPAL``, from the command line.
        environment: Its ``ARCP_TOKENS`` holds more of them, with commas between.
        anonymous: Whether everybody is let in.

    Raises:
        CommandError: One has another form, or there is none, or both were asked for. No message holds a token.
    """
    entries = [*tokens, *filter(None, environment.get("ARCP_TOKENS", "").split(","))]
    if anonymous:
        if tokens:
            raise CommandError("--anonymous lets everybody in: it does not go with --token", ExitCode.USAGE)
        return AnonymousAccess()
    if not entries:
        raise CommandError(
            "nobody could connect: give --token TOKEN=PRINCIPAL or ARCP_TOKENS, or say --anonymous to let everybody in",
            ExitCode.USAGE,
        )
    known: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        # Tokens in base64 end with "=", principals do not.
        token, equals, principal = entry.strip().rpartition("=")
        if not equals or not token or not principal.strip():
            raise CommandError(f"token {number}: expected TOKEN=PRINCIPAL", ExitCode.USAGE)
        if known.setdefault(token, principal.strip()) != principal.strip():
            raise CommandError(f"token {number}: the same token for two principals", ExitCode.USAGE)
    return StaticTokens(known)


async def serve(agents: Agents, verifier: Verifier, options: ServeOptions) -> ExitCode:
    """Serve on a port until SIGINT or SIGTERM, then shut down in phases.

    The first line on stdout is ``listening on URL``. Where an agent refuses to stop, the process ends here, with
    ``ABANDONED``: leaving the runtime would wait for that agent, perhaps for ever.

    Args:
        agents: What is served.
        verifier: Who decides on tokens.
        options: Where, and with what bounds.

    Returns:
        ``OK``: every job has its terminal event, and no agent is left.

    Raises:
        CommandError: The port cannot be opened, or the engine is not installed.

    Cancellation: shuts down likewise.
    """

    async def start(runtime: Runtime, nursery: trio.Nursery, _: trio.Event) -> None:
        await _listen(runtime, nursery, agents, options)

    return await _serve(agents, verifier, Limits(shutdown_seconds=options.shutdown_seconds), start)


async def serve_on_stdio(reference: str, principal: str, shutdown_seconds: float) -> ExitCode:
    """Serve whoever started this process, over stdin and stdout, until stdin ends or a signal; else as :func:`serve`.

    Args:
        reference: The agents, for :func:`load_agents`: what their module prints must not go to stdout.
        principal: Whose session it is.
        shutdown_seconds: How long a shutdown may take.

    Raises:
        CommandError: There are no such agents, or stdin or stdout cannot be used.

    Cancellation: as :func:`serve`.
    """
    limits = Limits(shutdown_seconds=shutdown_seconds, chunk_bytes=_STDIO_CHUNK_BYTES)
    async with AsyncExitStack() as stack:
        # Behind all else: what the interpreter's end still prints is no frame either.
        stack.callback(_silence_stdout)
        try:
            transport = await stack.enter_async_context(open_stdio(receive_bytes=limits.receive_bytes))
        except (OSError, NotImplementedError) as exc:
            raise CommandError(f"--stdio: {exc}", ExitCode.USAGE) from exc

        async def wait_ended(runtime: Runtime, stop: trio.Event) -> None:
            await serve_stdio(runtime, transport, principal=principal)
            stop.set()

        async def start(runtime: Runtime, nursery: trio.Nursery, stop: trio.Event) -> None:
            nursery.start_soon(wait_ended, runtime, stop, name="arcp stdio")
            await trio.lowlevel.checkpoint()

        agents = load_agents(reference)
        logger.info("serving on stdin and stdout, for %s; agents: %s", principal, _names(agents))
        return await _serve(agents, None, limits, start)


def _silence_stdout() -> None:
    with suppress(OSError):
        os.dup2(2, 1)


_Start = Callable[[Runtime, trio.Nursery, trio.Event], Awaitable[None]]


async def _serve(agents: Agents, verifier: Verifier | None, limits: Limits, start: _Start) -> ExitCode:
    """Run a runtime, and what ``start`` starts with it, until a signal or until that sets the event."""
    # What the receiver puts back when it is left: a signal that comes after the shutdown has nothing left to
    # stop, and must neither kill the process nor raise.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_runtime(agents, limits=limits, verifier=verifier) as runtime:
            failure: Exception | None = None
            async with trio.open_nursery() as nursery:
                stop = trio.Event()
                nursery.start_soon(_watch, signals, stop, limits.shutdown_seconds)
                try:
                    await start(runtime, nursery, stop)
                    await stop.wait()
                except CommandError as exc:
                    failure = exc
                finally:
                    # Not cancellable, and bounded. All terminal events are out when it returns.
                    await runtime.aclose()
                    disowned = runtime.statistics().disowned_agents
                    if disowned:
                        _abandon(disowned)
                    nursery.cancel_scope.cancel(reason="shut down")
            if failure is not None:
                raise failure
    logger.info("shut down")
    return ExitCode.OK


async def _listen(runtime: Runtime, nursery: trio.Nursery, agents: Agents, options: ServeOptions) -> None:
    """Open the port, and say so on stdout."""
    listener = partial(
        serve_websocket,
        runtime,
        options.host,
        options.port,
        allow_plaintext=options.allow_plaintext,
        engine=options.engine,
    )
    try:
        listening: Listening = await nursery.start(listener, name="arcp gateway")
    except OSError as exc:
        raise CommandError(f"cannot listen on {options.host}:{options.port}: {exc.strerror or exc}") from exc
    except ImportError as exc:
        raise CommandError(f"--engine: {exc}", ExitCode.USAGE) from exc
    except ValueError as exc:
        message = str(exc).replace(
            "give an ssl_context, or say allow_plaintext=True",
            "put it behind a proxy that does TLS, and say --allow-plaintext",
        )
        raise CommandError(message, ExitCode.USAGE) from exc
    sys.stdout.write(f"listening on {listening.url}\n")
    sys.stdout.flush()
    logger.info("agents: %s", _names(agents))


def _names(agents: Agents) -> str:
    return ", ".join(f"{entry.name}@{entry.default}" for entry in agents.inventory().entries) or "none"


async def _watch(signals: AsyncIterator[int], stop: trio.Event, shutdown_seconds: float) -> None:
    async for number in signals:
        if stop.is_set():
            logger.info("%s: already shutting down", signal.Signals(number).name)
        else:
            logger.info("shutting down, within %g seconds", shutdown_seconds)
        stop.set()


def _abandon(disowned: Sequence[str]) -> NoReturn:
    """End the process although agents still run: a thread or a shield could keep it for ever."""
    for name in disowned:
        logger.error("agent %s did not stop: abandoned", name)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(ExitCode.ABANDONED)
