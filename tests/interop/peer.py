"""How tests run the reference implementation: its client and its server, each in a process of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import attrs
import trio

PEER_SECONDS = 30
"""How long a whole script, or one line of a server, may take: a peer that hangs fails its test."""


@attrs.frozen
class ReferencePeer:
    """Where the reference implementation is installed."""

    python: Path
    scripts: Path

    def _command(self, script: str, *arguments: str) -> list[str]:
        # -I: nothing of this project's environment gets into the peer's.
        return [str(self.python), "-I", str(self.scripts / script), *arguments]

    async def run(self, script: str, *arguments: str, stdin: bytes = b"") -> list[Any]:
        """Run a script to its end; return the JSON lines that it wrote."""
        with trio.fail_after(PEER_SECONDS):
            done = await trio.run_process(
                self._command(script, *arguments),
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr.decode()
        return [json.loads(line) for line in done.stdout.splitlines()]

    @asynccontextmanager
    async def open_server(self, *arguments: str) -> AsyncGenerator[ReferenceServer, None]:
        """Run the reference server; it ends with the block, and must end well."""
        process = await trio.lowlevel.open_process(
            self._command("peer_server.py", *arguments), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        assert process.stdin is not None
        assert process.stderr is not None
        server = ReferenceServer(process)
        try:
            hello = await server.next_line()
            server.url = f"ws://127.0.0.1:{hello['port']}/arcp"
            yield server
            await server.stop()
            with trio.fail_after(PEER_SECONDS):
                errors = b"".join([chunk async for chunk in process.stderr])
                assert await process.wait() == 0, errors.decode()
            server.complaints = errors.decode()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdin.aclose()
                await process.stderr.aclose()
                assert process.stdout is not None
                await process.stdout.aclose()


class ReferenceServer:
    """A reference server that runs.

    Attributes:
        url: Its address.
        complaints: What it wrote to stderr, once it has ended.
    """

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.url = ""
        self.complaints = ""
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._unread = b""

    async def stop(self) -> None:
        """Let it end: it closes its connections."""
        await self._stdin.aclose()

    async def next_line(self) -> Any:
        """Return the next JSON line that it writes: one for each connection that has ended."""
        with trio.fail_after(PEER_SECONDS):
            while b"\n" not in self._unread:
                chunk = await self._stdout.receive_some()
                assert chunk, "the reference server has ended"
                self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)
