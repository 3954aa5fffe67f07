"""The demo's agents: real work on real files, the sources of Python's standard library and nothing else.

``arcp-trio demo`` runs them. So does ``arcp-trio serve arcp_trio.cli.demo_agents:agents --token t=me``: what a client
may ask of them is bounded, and no input leads to another file. They read what their job's lease allows, ``fs.read`` of
the library's folder, and nothing else.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import trio

from ..jobs.agents import Agents
from ..jobs.context import JobContext
from ..wire.errors import InvalidRequestError

__all__ = ["agents", "lease", "library_root", "sources"]

agents = Agents()

_PACKAGES = (
    "asyncio",
    "concurrent",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
)
_FILES_PER_EVENT = 20
_MAX_PASSES = 10_000
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}")


def library_root() -> Path:
    """Return the folder of the standard library, by its real path."""
    return Path(sysconfig.get_paths()["stdlib"]).resolve()


def lease() -> dict[str, list[str]]:
    """Return what a job needs of a lease to read the library."""
    return {"fs.read": [f"{library_root()}/**"]}


@cache
def sources() -> tuple[Path, ...]:
    """Return the source files that the agents work on, in order: those that are UTF-8 text, as nearly all are.

    Without links: a distribution may have its own files elsewhere, where the lease does not reach.
    """
    root = library_root()
    paths = [*root.glob("*.py")]
    for package in _PACKAGES:
        paths += [path for path in (root / package).rglob("*.py") if "test" not in path.parts]
    return tuple(path for path in sorted(paths) if path.resolve() == path and _is_text(path))


def _is_text(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _name(path: Path) -> str:
    return path.relative_to(library_root()).as_posix()


async def _read(job: JobContext, path: Path) -> str:
    """Read a file as it is, below the job's lease."""
    # Without newline="" universal newlines would change the bytes.
    async with job.open_file(path, encoding="utf-8", newline="") as file:
        return await file.read()


def _option(value: Any, name: str, default: int, largest: int) -> int:
    """Return a whole number from a job's input."""
    number = value.get(name, default) if isinstance(value, dict) else default
    if type(number) is not int or not 1 <= number <= largest:
        raise InvalidRequestError(f"input.{name}: expected a whole number between 1 and {largest}, got {number!r:.40}")
    return number


@agents.register("count")
async def count(job: JobContext, _: Any) -> dict[str, int]:
    """Count files, lines and words."""
    paths = await trio.to_thread.run_sync(sources)
    lines = words = 0
    for number, path in enumerate(paths, 1):
        text = await _read(job, path)
        lines += text.count("\n")
        words += len(text.split())
        await job.progress(number, len(paths), "files")
    await job.metric("words_per_line", round(words / max(lines, 1), 3))
    return {"files": len(paths), "lines": lines, "words": words}


@agents.register("hash")
async def hash_files(job: JobContext, value: Any) -> dict[str, str]:
    """Hash each file, in a thread; ``{"passes": N}`` does it again and again.

    No cancellation reaches a thread: it looks at ``job.cancel_requested`` between two files.
    """
    passes = _option(value, "passes", 1, _MAX_PASSES)
    paths = await trio.to_thread.run_sync(sources)
    for path in paths:
        # Once, before the thread begins: a thread that opens files by itself has to ask by itself.
        await job.authorize("fs.read", str(path))
    total = passes * len(paths)

    def work() -> dict[str, str]:
        digests: dict[str, str] = {}
        for done in range(total):
            if job.cancel_requested:
                return digests
            path = paths[done % len(paths)]
            digests[_name(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            if done % _FILES_PER_EVENT == 0:
                trio.from_thread.run(job.progress, done, total, "files")
        return digests

    digests = await trio.to_thread.run_sync(work)
    await job.progress(total, total, "files")
    return digests


async def _find(job: JobContext, path: Path, pattern: re.Pattern[str]) -> list[tuple[int, str]]:
    """Return the lines that match, with their numbers."""
    lines = (await _read(job, path)).splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if pattern.search(line)]


def _search_pattern(value: Any) -> re.Pattern[str]:
    word = value.get("word", "class") if isinstance(value, dict) else "class"
    if not isinstance(word, str) or not _WORD.fullmatch(word):
        # Not any expression: a hostile one would hold up the process for hours.
        raise InvalidRequestError(f"input.word: expected one word, got {word!r:.40}")
    return re.compile(rf"^\s*{word}\b")


@agents.register("search")
async def search(job: JobContext, value: Any) -> dict[str, int]:
    """Search the lines that begin with a word (``{"word": "class"}``), and show each N-th (``{"every": N}``)."""
    pattern = _search_pattern(value)
    every = _option(value, "every", 400, 1_000_000)
    paths = await trio.to_thread.run_sync(sources)
    matches = files = 0
    for number, path in enumerate(paths, 1):
        found = await _find(job, path, pattern)
        files += bool(found)
        for line_number, line in found:
            matches += 1
            if matches % every == 0:
                await job.log("info", f"{_name(path)}:{line_number}: {line[:60]}")
        if number % _FILES_PER_EVENT == 0 or number == len(paths):
            await job.progress(number, len(paths), "files")
    return {"matches": matches, "files": files}


@agents.register("bundle")
async def bundle(job: JobContext, _: Any) -> None:
    """Stream the text of all files as one large result, file by file."""
    paths = await trio.to_thread.run_sync(sources)
    async with job.stream_result(content_type="text/x-python; charset=utf-8") as out:
        for number, path in enumerate(paths, 1):
            await out.write(await _read(job, path))
            if number % _FILES_PER_EVENT == 0 or number == len(paths):
                await job.progress(number, len(paths), "files")


@agents.register("fail")
async def fail(job: JobContext, _: Any) -> None:
    """Open a file that does not exist: its client hears of an INTERNAL_ERROR, and the runtime's log has the rest."""
    missing = library_root() / "no_such_module.py"
    await job.status("reading", missing.name)
    await _read(job, missing)


@agents.register("endless")
async def endless(job: JobContext, value: Any) -> None:
    """Search over and over, until it is stopped."""
    pattern = _search_pattern(value)
    paths = await trio.to_thread.run_sync(sources)
    searched = 0
    while True:
        for path in paths:
            await _find(job, path, pattern)
            searched += 1
            if searched % _FILES_PER_EVENT == 0:
                await job.progress(searched, units="files")
