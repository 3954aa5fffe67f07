"""``arcp-trio store``: look at a store's file, tidy it up, take out what is in it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

from ..store.cipher import KEY_BYTES
from ..store.errors import StoreError
from ..store.inspection import StoreReport, export_store, inspect_store, vacuum_store
from ..wire.jsontext import encode_json
from .errors import CommandError, ExitCode
from .text import clean, size_of

__all__ = ["KEY_VARIABLE", "export", "inspect", "read_store_key", "vacuum"]

KEY_VARIABLE = "ARCP_STORE_KEY"
"""The environment variable that has a store's key, in hexadecimal."""
_HEXADECIMAL = re.compile(rf"[0-9A-Fa-f]{{{2 * KEY_BYTES}}}")
_LARGEST_KEY_FILE = 1_024


def read_store_key(key_file: Path | None, environment: Mapping[str, str]) -> bytes | None:
    """Return the key of a store, from a file or the environment.

    Args:
        key_file: A file with 64 hexadecimal digits; ``None`` takes :data:`KEY_VARIABLE`.
        environment: The process's.

    Returns:
        The 32 bytes; ``None`` where neither is given.

    Raises:
        CommandError: There is something else. What it is, is not said.
    """
    if key_file is None:
        where, text = KEY_VARIABLE, environment.get(KEY_VARIABLE, "")
        if not text:
            return None
    else:
        where = f"--key-file {clean(str(key_file))}"
        try:
            with key_file.open("rb") as file:
                text = file.read(_LARGEST_KEY_FILE).decode("ascii", "replace")
        except OSError as exc:
            raise CommandError(f"{where}: {exc.strerror}", ExitCode.USAGE) from exc
    if not _HEXADECIMAL.fullmatch(text.strip()):
        raise CommandError(f"{where}: expected {2 * KEY_BYTES} hexadecimal digits", ExitCode.USAGE)
    return bytes.fromhex(text.strip())


def inspect(path: Path, *, full: bool, as_json: bool) -> ExitCode:
    """Print what a store's file is and has.

    Args:
        path: The file.
        full: Whether to check all of it.
        as_json: Whether to print one line of JSON.

    Returns:
        ``FAILED`` if something is wrong with it.

    Raises:
        CommandError: It is no store, or cannot be read.
    """
    try:
        report = inspect_store(path, full=full)
    except StoreError as exc:
        raise CommandError(clean(str(exc))) from exc
    if as_json:
        _print(encode_json(attrs.asdict(report) | {"sound": not report.problems}).decode())
    else:
        for line in _describe(report):
            _print(line)
    return ExitCode.FAILED if report.problems else ExitCode.OK


def _describe(report: StoreReport) -> list[str]:
    use = "in use" if report.in_use else "not in use"
    lines = [
        clean(report.path),
        f"  schema       {report.schema}, {'encrypted' if report.encrypted else 'not encrypted'}, {use}",
        f"  size         {size_of(report.file_bytes)}, {size_of(report.free_bytes)} of it free",
        f"  log          {size_of(report.wal_bytes)}",
    ]
    if report.counts:
        count = report.counts
        evicted = f", {count['jobs_evicted']:,} evicted" if count["jobs_evicted"] else ""
        failed = f", {count['credentials_failed']:,} could not be revoked" if count["credentials_failed"] else ""
        lines += [
            f"  jobs         {count['jobs_running']:,} running, {count['jobs_ended']:,} ended{evicted}",
            f"  events       {count['events']:,}",
            f"  sessions     {count['sessions']:,}, with {count['spans']:,} spans of events",
            f"  keys         {count['idempotency_keys']:,}",
            f"  credentials  {count['credentials_outstanding']:,} to be revoked{failed}",
        ]
    extent = {
        "all": "all of it",
        "structure": "its structure",
        "part": "a part of its structure (--full checks all of it)",
    }[report.checked]
    lines.append(f"  checked      {extent}: {'damaged' if report.problems else 'sound'}")
    return lines + [f"    {clean(problem)}" for problem in report.problems]


def vacuum(path: Path, *, as_json: bool) -> ExitCode:
    """Write a store's file anew, without the space that is free in it.

    Args:
        path: The file.
        as_json: Whether to print one line of JSON.

    Raises:
        CommandError: It is in use, no store, damaged, or cannot be written.
    """
    try:
        before, after = vacuum_store(path)
    except StoreError as exc:
        raise CommandError(clean(str(exc))) from exc
    if as_json:
        _print(encode_json({"path": str(path), "bytes_before": before, "bytes_after": after}).decode())
    else:
        _print(f"{clean(str(path))}: {size_of(before)} before, {size_of(after)} now")
    return ExitCode.OK


def export(path: Path, *, key_file: Path | None) -> ExitCode:
    """Print all that is in a store, as lines of JSON.

    Args:
        path: The file.
        key_file: Where its key is; ``None`` takes it from the environment, if there is one.

    Raises:
        CommandError: It is no store, damaged, or its key is another.
        BrokenPipeError: Nobody reads any more.
    """
    key = read_store_key(key_file, os.environ)
    try:
        for record in export_store(path, key):
            _print(encode_json(record).decode())
    except StoreError as exc:
        raise CommandError(clean(str(exc))) from exc
    return ExitCode.OK


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
