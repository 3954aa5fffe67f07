"""The command line: which commands and options there are, and what a process ends with."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import trio
from cyclopts import App, CycloptsError, Parameter
from cyclopts.exceptions import UnknownOptionError, UnusedCliTokensError

from .._version import __version__
from ..transports.engines import EngineName
from .cancel import cancel as run_cancel
from .connect import DEFAULT_URL, Target, read_command
from .demo import demo as run_demo
from .errors import CommandError, ExitCode
from .interrupts import run_interruptible
from .jobs import JobsOptions, read_created_after
from .jobs import jobs as run_jobs
from .results import check_output
from .serve import ServeOptions, load_agents, make_verifier
from .serve import serve as run_serve
from .serve import serve_on_stdio as run_serve_on_stdio
from .submit import SubmitOptions, read_input, read_lease
from .submit import submit as run_submit
from .terminal import complain, log_to_stderr
from .text import clean
from .watch import WatchOptions
from .watch import watch as run_watch

__all__ = ["app", "run"]

app = App(
    name="arcp-trio",
    version=__version__,
    help="Run agents, and talk to runtimes, over the Agent Runtime Control Protocol (ARCP v1.1).",
    help_epilogue="New here? Run: arcp-trio demo",
)

_Url = Annotated[str, Parameter(name="--url", env_var="ARCP_URL")]
_Token = Annotated[str | None, Parameter(name="--token", env_var="ARCP_TOKEN")]
_Flag = Parameter(negative="", show_default=False)
_Engine = Annotated[EngineName, Parameter(name="--engine")]
_AsJson = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]

_Output = Annotated[Path | None, Parameter(name="--output")]
_ReconnectSeconds = Annotated[float, Parameter(name="--reconnect-seconds")]

_RECONNECT_SECONDS = 600.0
_DEFAULT_PORT = 7777
_LARGEST_PORT = 65_535
# An option with its value, as the parser's messages quote it, up to the end of their sentence.
_SECRET = re.compile(r"(--?[A-Za-z][\w-]*)=.*?(?=\.(?: Did you mean|$)|$)")


@app.command(sort_key=2, usage="Usage: arcp-trio serve MODULE:AGENTS [OPTIONS]", help_epilogue="")
def serve(
    agents: Annotated[str, Parameter(name="MODULE:AGENTS")],
    /,
    *,
    host: str | None = None,
    port: int | None = None,
    token: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    anonymous: Annotated[bool, _Flag] = False,
    allow_plaintext: Annotated[bool, _Flag] = False,
    engine: Annotated[EngineName | None, Parameter(name="--engine")] = None,
    stdio: Annotated[bool, _Flag] = False,
    principal: str | None = None,
    shutdown_seconds: float = 10.0,
    verbose: Annotated[bool, _Flag] = False,
) -> ExitCode:
    """Serve your agents on a WebSocket port, or over stdin and stdout.

    The first line on stdout is "listening on URL"; the log goes to stderr. SIGINT (control-C) and SIGTERM shut down
    in phases: every running job ends with its terminal event before the connections are closed. The exit code is 0
    then, and 70 where an agent refused to stop and had to be abandoned.

    With --stdio nothing but the protocol is on stdout, one message a line, whatever the agents print: that goes to
    stderr. The end of stdin shuts down as a signal does.

    Args:
        agents: An arcp_trio.Agents in a module that is installed or lies in the current directory, for example
            myagents:agents.
        host: The address to listen on; 127.0.0.1 if it is not given.
        port: The port, 7777 if it is not given; 0 picks a free one.
        token: TOKEN=PRINCIPAL: who shows TOKEN is PRINCIPAL. May be given several times. Command lines show in
            process lists: the environment variable ARCP_TOKENS takes the same, with commas between.
        anonymous: Let everybody in, without tokens.
        allow_plaintext: Serve other machines without encryption, for example behind a proxy that does TLS.
        engine: The library that carries the frames; if it is not given, websockets where arcp-trio[fast] is installed.
        stdio: Serve the program that starts this one, over stdin and stdout. It needs no token.
        principal: With --stdio: who that program is; "stdio" if it is not given.
        shutdown_seconds: How long a shutdown may take.
        verbose: Log more.
    """
    log_to_stderr(logging.DEBUG if verbose else logging.INFO, server=True)
    if not 0 <= shutdown_seconds < math.inf:
        raise CommandError(f"--shutdown-seconds: expected 0 or more, got {shutdown_seconds:g}", ExitCode.USAGE)
    if stdio:
        of_ports = {
            "--host": host is not None,
            "--port": port is not None,
            "--token": token,
            "--anonymous": anonymous,
            "--allow-plaintext": allow_plaintext,
            "--engine": engine is not None,
        }
        for option, given in of_ports.items():
            if given:
                raise CommandError(f"{option} is for a port: it does not go with --stdio", ExitCode.USAGE)
        if principal is not None and not principal.strip():
            raise CommandError("--principal: expected a name, got nothing", ExitCode.USAGE)
        return trio.run(run_serve_on_stdio, agents, principal or "stdio", shutdown_seconds)
    if principal is not None:
        raise CommandError("--principal is for --stdio: on a port, tokens say who is who", ExitCode.USAGE)
    host = "127.0.0.1" if host is None else host
    port = _DEFAULT_PORT if port is None else port
    if not 0 <= port <= _LARGEST_PORT:
        raise CommandError(f"--port: expected a number between 0 and {_LARGEST_PORT}, got {port}", ExitCode.USAGE)
    verifier = make_verifier(token, os.environ, anonymous=anonymous)
    options = ServeOptions(
        host=host,
        port=port,
        allow_plaintext=allow_plaintext,
        shutdown_seconds=shutdown_seconds,
        engine=engine or "auto",
    )
    return trio.run(run_serve, load_agents(agents), verifier, options)


@app.command(sort_key=3, usage="Usage: arcp-trio submit AGENT [INPUT] [OPTIONS]", help_epilogue="")
def submit(
    agent: str,
    input: Annotated[str, Parameter(allow_leading_hyphen=True)] = "null",  # noqa: A002  # the protocol's name
    /,
    *,
    url: _Url = DEFAULT_URL,
    token: _Token = None,
    command: str | None = None,
    lease: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    budget: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    max_runtime_sec: float | None = None,
    output: _Output = None,
    reconnect_seconds: _ReconnectSeconds = _RECONNECT_SECONDS,
    json: _AsJson = False,
    allow_plaintext: Annotated[bool, _Flag] = False,
    engine: _Engine = "auto",
) -> ExitCode:
    """Submit a job, follow it live, and print its result.

    The result goes to stdout, everything else to stderr. A connection that is lost is got back, and no event is missed.
    Control-C asks whether to cancel the job: yes cancels it and shows how it ended; no, or no answer, leaves it
    running ("arcp-trio watch" shows it again). Where nobody can be asked (stdin or stderr is no terminal, or with
    --json), or with --command, it cancels. A second control-C leaves at once. The exit code is 0 where the job
    succeeded, 1 where it did not or was refused, or the session was lost, 2 for a wrong command line, 130 after
    control-C.

    Args:
        agent: The agent: NAME or NAME@VERSION.
        input: The job's input, as JSON; "-" reads it from stdin.
        url: Where the runtime is.
        token: Your token. Command lines show in process lists: better set ARCP_TOKEN.
        command: Start the runtime with this, and speak over its stdin and stdout, in place of --url. It ends with the
            job. For example "arcp-trio serve myagents:agents --stdio".
        lease: NAMESPACE=PATTERN: what the job may do, for example "tool.call=search.*". May be given several times.
        budget: What the job may cost, for example USD:5.00; a bar shows what is left. One for each currency.
        max_runtime_sec: End the job as timed out after so many seconds.
        output: Write the result into this file.
        reconnect_seconds: How long a lost connection is tried to get back; 0 for not at all.
        json: Print a line of JSON for each event, one where the connection is lost or comes back, and one for how the
            job ended, on stdout.
        allow_plaintext: Send the token to another machine without encryption.
        engine: The library that carries the frames; auto takes websockets where arcp-trio[fast] is installed.
    """
    log_to_stderr(logging.WARNING)
    options = SubmitOptions(
        agent=agent,
        input=read_input(input),
        lease_request=read_lease(lease, budget),
        max_runtime_sec=max_runtime_sec,
        output=output,
        as_json=json,
        reconnect_seconds=_check_reconnect(reconnect_seconds),
    )
    if output is not None:
        check_output(output)
    target = Target(
        url=url,
        token=token,
        command=None if command is None else read_command(command),
        allow_plaintext=allow_plaintext,
        engine=engine,
    )
    return trio.run(run_submit, target, options)


@app.command(sort_key=4, usage="Usage: arcp-trio watch JOB_ID [OPTIONS]", help_epilogue="")
def watch(
    job_id: str,
    /,
    *,
    url: _Url = DEFAULT_URL,
    token: _Token = None,
    no_history: Annotated[bool, _Flag] = False,
    output: _Output = None,
    reconnect_seconds: _ReconnectSeconds = _RECONNECT_SECONDS,
    json: _AsJson = False,
    allow_plaintext: Annotated[bool, _Flag] = False,
    engine: _Engine = "auto",
) -> ExitCode:
    """Follow a job that was submitted elsewhere, live, and print its result.

    Begins with the events that the runtime still has; a job that has ended shows them and its end. Control-C leaves:
    the job goes on. The result goes to stdout, everything else to stderr. The exit code is 0 where the job succeeded, 1
    where it did not or was refused, or the session was lost, 2 for a wrong command line, 130 after control-C.

    Args:
        job_id: The job's id, as "arcp-trio jobs" shows it.
        url: Where the runtime is.
        token: Your token. Command lines show in process lists: better set ARCP_TOKEN.
        no_history: Begin with what happens from now on. Of a result that was streamed in part the rest is no result.
        output: Write the result into this file.
        reconnect_seconds: How long a lost connection is tried to get back; 0 for not at all.
        json: Print a line of JSON for how the job stands, for each event, where the connection is lost or comes back,
            and for how the job ended, on stdout.
        allow_plaintext: Send the token to another machine without encryption.
        engine: The library that carries the frames; auto takes websockets where arcp-trio[fast] is installed.
    """
    log_to_stderr(logging.WARNING)
    options = WatchOptions(
        job_id=job_id,
        history=not no_history,
        output=output,
        as_json=json,
        reconnect_seconds=_check_reconnect(reconnect_seconds),
    )
    if output is not None:
        check_output(output)
    return trio.run(run_watch, Target(url=url, token=token, allow_plaintext=allow_plaintext, engine=engine), options)


@app.command(sort_key=5, usage="Usage: arcp-trio jobs [OPTIONS]", help_epilogue="")
def jobs(
    *,
    url: _Url = DEFAULT_URL,
    token: _Token = None,
    status: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    agent: str | None = None,
    created_after: str | None = None,
    limit: int = 1_000,
    follow: Annotated[bool, _Flag] = False,
    interval_seconds: float = 2.0,
    reconnect_seconds: _ReconnectSeconds = _RECONNECT_SECONDS,
    json: _AsJson = False,
    allow_plaintext: Annotated[bool, _Flag] = False,
    engine: _Engine = "auto",
) -> ExitCode:
    """List your jobs, oldest first.

    Those that run, and those that have ended and are remembered. EVENTS counts what a job has sent. With --follow each
    new job, and each change of one, is another line, until control-C; the exit code is 130 then, 1 where the runtime
    refused or was lost, 2 for a wrong command line.

    Args:
        url: Where the runtime is.
        token: Your token. Command lines show in process lists: better set ARCP_TOKEN.
        status: Only jobs in this state: pending, running, success, error, cancelled or timed_out. May be given several
            times.
        agent: Only jobs of this agent: NAME, or NAME@VERSION.
        created_after: Only jobs created later: an age like 90s, 15m, 2h or 7d, or a time like 2026-05-13T19:42:13Z.
        limit: Show only the newest so many.
        follow: Go on showing what changes.
        interval_seconds: How often --follow looks for new jobs, which the protocol does not announce. The end of one
            that is shown is announced, and shown at once.
        reconnect_seconds: How long --follow tries to get a lost connection back; 0 for not at all.
        json: Print a line of JSON for each job.
        allow_plaintext: Send the token to another machine without encryption.
        engine: The library that carries the frames; auto takes websockets where arcp-trio[fast] is installed.
    """
    log_to_stderr(logging.WARNING)
    options = JobsOptions(
        statuses=status,
        agent=agent,
        created_after=None if created_after is None else read_created_after(created_after, datetime.now(UTC)),
        limit=limit,
        as_json=json,
        follow=follow,
        interval_seconds=interval_seconds,
        reconnect_seconds=_check_reconnect(reconnect_seconds),
    )
    return trio.run(run_jobs, Target(url=url, token=token, allow_plaintext=allow_plaintext, engine=engine), options)


@app.command(sort_key=6, usage="Usage: arcp-trio cancel JOB_ID [OPTIONS]", help_epilogue="")
def cancel(
    job_id: str,
    /,
    *,
    url: _Url = DEFAULT_URL,
    token: _Token = None,
    reason: str = "cancelled on the command line",
    json: _AsJson = False,
    allow_plaintext: Annotated[bool, _Flag] = False,
    engine: _Engine = "auto",
) -> ExitCode:
    """Ask for the end of a job, and say what became of that.

    Most runtimes, ours among them, let only the session that submitted a job cancel it (ARCP v1.1, section 7.4):
    press control-C in the "arcp-trio submit" that started it. The exit code is 0 where the job was cancelled.

    Args:
        job_id: The job's id.
        url: Where the runtime is.
        token: Your token. Command lines show in process lists: better set ARCP_TOKEN.
        reason: Why; the runtime keeps it with the job.
        json: Print one line of JSON on stdout.
        allow_plaintext: Send the token to another machine without encryption.
        engine: The library that carries the frames; auto takes websockets where arcp-trio[fast] is installed.
    """
    log_to_stderr(logging.WARNING)
    target = Target(url=url, token=token, allow_plaintext=allow_plaintext, engine=engine)
    return trio.run(run_interruptible, partial(run_cancel, target, job_id, reason=reason, as_json=json))


store = App(
    name="store", help="Look at a store's file, tidy it up, take out what is in it.", help_epilogue="", sort_key=7
)
app.command(store)

_StorePath = Annotated[Path, Parameter(name="PATH")]


@store.command(sort_key=1, usage="Usage: arcp-trio store inspect PATH [OPTIONS]", help_epilogue="")
def inspect(path: _StorePath, /, *, full: Annotated[bool, _Flag] = False, json: _AsJson = False) -> ExitCode:
    """Show what a store's file is and has: sizes, schema, how many of what, and whether it is sound.

    Nothing is written. A store that a runtime has open can be looked at too. The exit code is 1 where something is
    wrong with the file.

    Args:
        path: The file.
        full: Check all of it: each row, and each index against its table. Else its structure, for a moment.
        json: Print one line of JSON.
    """
    from . import store as commands  # noqa: PLC0415  # SQLite is for these alone

    return commands.inspect(path, full=full, as_json=json)


@store.command(sort_key=2, usage="Usage: arcp-trio store vacuum PATH [OPTIONS]", help_epilogue="")
def vacuum(path: _StorePath, /, *, json: _AsJson = False) -> ExitCode:
    """Write a store's file anew, without the space that is free in it.

    All of it is checked first; one that is damaged is left as it is. It must not be in use, and needs as much space
    again on its disk meanwhile.

    Args:
        path: The file.
        json: Print one line of JSON.
    """
    from . import store as commands  # noqa: PLC0415  # as above

    return commands.vacuum(path, as_json=json)


@store.command(sort_key=3, usage="Usage: arcp-trio store export PATH [OPTIONS]", help_epilogue="")
def export(path: _StorePath, /, *, key_file: Annotated[Path | None, Parameter(name="--key-file")] = None) -> ExitCode:
    """Print all that is in a store, as it is at one moment: a line of JSON for each job, event, session and key.

    Nothing is written. A store that a runtime has open can be exported too. Resume tokens are not in it, nor the
    values of credentials, which are never stored.

    Args:
        path: The file.
        key_file: A file with the key of an encrypted store: 64 hexadecimal digits. The environment variable
            ARCP_STORE_KEY has the same.
    """
    from . import store as commands  # noqa: PLC0415  # as above

    return commands.export(path, key_file=key_file)


@app.command(sort_key=1, help_epilogue="")
def demo(*, json: _AsJson = False) -> ExitCode:
    """See it work: real jobs on real files, over a real WebSocket, in a few seconds.

    Starts a gateway on a free port of this machine and, as its client, runs agents on the sources of Python's standard
    library: they count, hash, search, stream megabytes, fail, time out and are cancelled. At the end each finished job
    is cancelled again, many times at once: not one of these cancels may change anything. The exit code is 0 if every
    job ended exactly once, and as it should.

    Args:
        json: Print the table as lines of JSON.
    """
    log_to_stderr(logging.CRITICAL)
    return trio.run(partial(run_demo, as_json=json))


def _check_reconnect(seconds: float) -> float:
    if not 0 <= seconds < math.inf:
        raise CommandError(f"--reconnect-seconds: expected 0 or more, got {seconds:g}", ExitCode.USAGE)
    return seconds


def _usage_message(error: CycloptsError) -> str:
    """Return what is wrong with the command line, in one line without the values of options: one may be a token."""
    if isinstance(error, UnusedCliTokensError):
        return "there are more arguments than this command takes"
    text = " ".join(str(error).split())
    if isinstance(error, UnknownOptionError):
        text = _SECRET.sub(r"\1", text)
    return clean(text.removesuffix("."))


def _run_command(arguments: Sequence[str]) -> int:
    try:
        command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as exc:
        chain = [name for name in exc.command_chain or () if name]
        complain(f"{_usage_message(exc)} (see: {' '.join(['arcp-trio', *chain, '--help'])})")
        return ExitCode.USAGE
    try:
        code = command(*bound.args, **bound.kwargs)
    except CommandError as exc:
        complain(exc.message)
        return exc.exit_code
    # The commands for help and version return nothing.
    return code if isinstance(code, int) else ExitCode.OK


def run(arguments: Sequence[str]) -> int:
    """Run a command and return the process's exit code.

    Args:
        arguments: What stands behind ``arcp-trio``.
    """
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's encoding lacks is shown escaped, and never an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code: int = ExitCode.FAILED
    try:
        code = _run_command(arguments)
        sys.stdout.flush()
    except* KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except* BrokenPipeError:
        # Whoever read our output has enough, like "head". The interpreter would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
