"""Bare Trio sockets that carry the bytes of a gateway, and do nothing for them: ``python -m benchmarks.bare_process``.

The limit: no protocol on Trio can do better. A client's first line, in JSON, says what it wants: so many frames of
such a size as fast as can be, or so many bytes for each request of so many. It serves until stdin is closed.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import trio

BATCH_BYTES = 64 * 1024
"""What a gateway writes at once, at most (``Limits.write_batch_bytes``)."""
_READ_BYTES = 64 * 1024


def frame_of(size: int) -> bytes:
    """Return a WebSocket frame of text, of so many bytes in all, unmasked."""
    if size < 128:  # noqa: PLR2004  # RFC 6455
        return bytes((0x81, size - 2)) + b"x" * (size - 2)
    return b"\x81\x7e" + (size - 4).to_bytes(2, "big") + b"x" * (size - 4)


async def stream(connection: trio.SocketStream, frames: int, size: int) -> None:
    """Send frames; joined anew for each write, as whoever has frames must."""
    frame = frame_of(size)
    at_once = max(1, BATCH_BYTES // size)
    while frames:
        batch = min(frames, at_once)
        await connection.send_all(b"".join([frame] * batch))
        frames -= batch


async def answer(connection: trio.SocketStream, asked: int, answered: int) -> None:
    """Answer requests, together those that came together."""
    frame = frame_of(answered)
    rest = 0
    while data := await connection.receive_some(_READ_BYTES):
        requests, rest = divmod(rest + len(data), asked)
        if requests:
            await connection.send_all(frame * requests)


async def serve(connection: trio.SocketStream) -> None:
    """Serve one client."""
    async with connection:
        line = b""
        while not line.endswith(b"\n"):
            line += await connection.receive_some(1)
        wanted = json.loads(line)
        await {"stream": stream, "answer": answer}[wanted.pop("do")](connection, **wanted)


async def main() -> None:
    """Serve until stdin is closed."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        print(json.dumps({"port": listeners[0].socket.getsockname()[1]}), flush=True)
        # A thread of its own: the process's stdin may be of any kind.
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
