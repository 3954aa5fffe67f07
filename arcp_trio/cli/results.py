"""What becomes of a job's result: to stdout, into a file, or into the last line of JSON."""

from __future__ import annotations

import os
from base64 import b64encode
from pathlib import Path
from typing import Any

import trio
from rich.json import JSON

from ..client.job_handle import JobHandle
from ..client.results import ResultFile
from ..wire.errors import ARCPError
from ..wire.job_messages import JobResult
from ..wire.jsontext import JSONValue, encode_json
from .errors import CommandError, ExitCode
from .terminal import Output, make_console
from .text import clean, size_of

__all__ = ["check_output", "describe_terminal", "print_result", "save_result"]

_COPY_BYTES = 256 * 1024


def check_output(path: Path) -> None:
    """See, before the job runs, whether its result can be written there.

    Raises:
        CommandError: It is a folder, or lies in none, or in one that cannot be written to.
    """
    parent = path.parent
    if path.is_dir():
        raise CommandError(f"--output: {clean(str(path))} is a folder", ExitCode.USAGE)
    if not parent.is_dir():
        raise CommandError(f"--output: there is no folder {clean(str(parent))}", ExitCode.USAGE)
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise CommandError(f"--output: {clean(str(path))} cannot be written", ExitCode.USAGE)


def _is_streamed(job: JobHandle) -> bool:
    """Say whether the result is what the agent streamed, rather than a JSON value that it returned."""
    terminal = job.terminal
    return (
        isinstance(terminal, JobResult)
        and terminal.result_id is not None
        and terminal.content_type != "application/json"
    )


def _as_bytes(job: JobHandle, result: JSONValue | bytes) -> bytes:
    if isinstance(result, bytes):
        return result
    if isinstance(result, str) and _is_streamed(job):
        return result.encode()
    return encode_json(result) + b"\n"


def _save(job: JobHandle, result: JSONValue | bytes | ResultFile, path: Path) -> int:
    if isinstance(result, ResultFile):
        result.save(path)
        return result.size
    data = _as_bytes(job, result)
    path.write_bytes(data)
    return len(data)


async def save_result(job: JobHandle, result: JSONValue | bytes | ResultFile, path: Path) -> int:
    """Write a result into a file and return its size: text and bytes as they are, another value as JSON.

    Raises:
        CommandError: It cannot be written.

    Cancellation: not before it is written.
    """
    try:
        return await trio.to_thread.run_sync(_save, job, result, path)
    except OSError as exc:
        raise CommandError(f"--output: {clean(str(path))}: {exc.strerror or exc}") from exc


async def print_result(job: JobHandle, result: JSONValue | bytes | ResultFile) -> None:
    """Print a result on stdout: text and bytes as they are, another value as JSON.

    On a terminal JSON is indented and coloured. Into a pipe it is one line.

    Raises:
        CommandError: It is bytes, and stdout is a terminal.
        BrokenPipeError: Nobody reads stdout any more.

    Cancellation: how much was printed is unknown.
    """
    output = Output(1)
    console = make_console()
    is_text = result.text if isinstance(result, ResultFile) else not isinstance(result, bytes)
    if console.is_terminal and not is_text:
        size = result.size if isinstance(result, ResultFile) else len(_as_bytes(job, result))
        raise CommandError(
            f"the result is {size_of(size)} of bytes, not shown on a terminal: "
            "send stdout to a file, or submit again with --output FILE"
        )
    if isinstance(result, ResultFile):
        async with await trio.open_file(result.path, "rb") as file:
            while data := await file.read(_COPY_BYTES):
                await output.write(data)
    elif console.is_terminal and not _is_streamed(job):
        await trio.lowlevel.checkpoint()
        console.print(JSON(encode_json(result).decode(), ensure_ascii=False), soft_wrap=True)
    else:
        data = _as_bytes(job, result)
        await output.write(data)
        if console.is_terminal and not data.endswith(b"\n"):
            await output.write(b"\n")


def describe_terminal(
    job: JobHandle,
    failure: ARCPError | None,
    result: JSONValue | bytes | ResultFile,
    saved: tuple[Path, int] | None,
) -> str:
    """Return the last line of ``submit --json``.

    Args:
        job: It has ended.
        failure: Why it did not succeed.
        result: What it returned. Bytes are written in base64.
        saved: Where the result was saved, and its size: it does not stand in the line then.
    """
    line: dict[str, Any] = {"type": "terminal", "job_id": job.job_id, "agent": job.agent, "status": job.status}
    if failure is not None:
        line["error"] = {
            "code": failure.code,
            "message": failure.message,
            "retryable": failure.retryable,
            "details": failure.details,
        }
    elif saved is not None:
        line |= {"output": os.fspath(saved[0]), "size": saved[1]}
    elif isinstance(result, ResultFile):
        # Its file goes with the client, and a line of many megabytes serves nobody.
        line |= {"size": result.size, "omitted": "too large for a line: submit with --output FILE"}
    elif isinstance(result, bytes):
        line["result_base64"] = b64encode(result).decode("ascii")
    else:
        line["result"] = result
    return encode_json(line).decode()
