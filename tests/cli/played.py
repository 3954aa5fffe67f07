"""A runtime that says what a test wants, for what ours does not say."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

Answer = Callable[[dict[str, Any]], list[dict[str, Any]]]
FEATURES = ["subscribe", "list_jobs", "x-arcp-trio.replies"]


@asynccontextmanager
async def open_played_runtime(
    answers: Mapping[str, Answer], features: list[str] = FEATURES
) -> AsyncGenerator[str, None]:
    """Open a runtime that answers frames of a type with what a function returns for each; yields its URL."""

    async def serve(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        sent = 0

        async def send(frame: dict[str, Any]) -> None:
            nonlocal sent
            sent += 1
            whole = {"arcp": "1.1", "id": f"msg_{sent}", "session_id": "sess_1", **frame}
            await websocket.send_message(json.dumps(whole))

        try:
            while True:
                frame = json.loads(await websocket.get_message())
                match frame["type"]:
                    case "session.hello":
                        await send({"type": "session.welcome", "payload": {"capabilities": {"features": features}}})
                    case "session.close":
                        await send({"type": "session.closed", "payload": {}})
                    case kind if kind in answers:
                        for answer in answers[kind](frame):
                            await send(answer)
        except ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, ssl_context=None))
        yield f"ws://127.0.0.1:{server.port}/arcp"
        nursery.cancel_scope.cancel()
