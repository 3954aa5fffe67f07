"""An upstream as a process of its own: mints keys, enforces what it confirms, and can be told to fail, hang or lie.

``python gateway_process.py ADMIN_TOKEN`` prints its port and serves HTTP on loopback until its stdin ends. Keys begin
with ``sk-canary-``: whatever shows that prefix where it should not has let one slip.

=======================================  ====================================================================
``POST   /admin/keys``                   mints ``count`` keys for a ``job``: ``budget``, ``models``, ``expires_at``
``POST   /admin/keys/HANDLE/rotate``     mints another one with the rest of its budget
``DELETE /admin/keys/HANDLE``            revokes one
``DELETE /admin/jobs/JOB``               revokes all of a job
``GET    /admin/state``                  what there is, what was asked; no key
``POST   /admin/mood``                   how ``issue``, ``revoke``, ``revoke_job`` or ``rotate`` goes wrong from now on
``POST   /v1/chat``                      spends ``cost`` of ``currency`` on ``model``, with a key
=======================================  ====================================================================
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from datetime import datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MOODS = {
    "fine",
    "fail",  # nothing is done, 500
    "fail_after",  # it is done, 500
    "hang",  # nothing is done, and no answer
    "hang_after",  # it is done, and no answer
    "leak",  # it is done, 500, and the key stands in the error's text
    "refuse",  # nothing is done, 403: trying again is of no use
    "same_key",  # the newest key again
    "wider",  # more is confirmed than was asked for
    "lie",  # nothing is done, and it says that it was
}


class Upstream:
    """What the gateway knows; every method holds the lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.keys: dict[str, dict[str, Any]] = {}
        self.moods: dict[str, str] = {}
        self.asked: list[list[str]] = []
        self.released = threading.Event()

    def mood(self, what: str, subject: str) -> str:
        with self.lock:
            self.asked.append([what, subject])
            return self.moods.get(what, "fine")

    def set_mood(self, moods: dict[str, str]) -> None:
        assert set(moods.values()) <= MOODS, moods
        with self.lock:
            self.moods = moods
            # What hangs goes on, late: its caller has gone.
            self.released.set()
            self.released = threading.Event()

    def mint(self, job: str, asked: dict[str, Any], mood: str) -> dict[str, Any]:
        with self.lock:
            handle = f"h-{secrets.token_hex(6)}"
            key = f"sk-canary-{secrets.token_hex(16)}"
            if mood == "same_key" and self.keys:
                key = next(reversed(self.keys.values()))["key"]
            left = {currency: Decimal(amount) for currency, amount in asked["budget"].items()}
            minted = {
                "handle": handle,
                "key": key,
                "job": job,
                "left": left,
                "models": asked["models"],
                "expires_at": asked["expires_at"],
                "live": True,
                "revocations": 0,
            }
            self.keys[handle] = minted
            confirmed = {name: asked[name] for name in ("budget", "models", "expires_at")}
            if mood == "wider":
                confirmed["budget"] = {currency: str(amount * 10) for currency, amount in left.items()}
            return {"handle": handle, "key": key, "confirmed": confirmed}

    def rotate(self, handle: str, mood: str) -> dict[str, Any] | None:
        with self.lock:
            prior = self.keys.get(handle)
        if prior is None or not prior["live"]:
            return None
        left = {currency: str(amount) for currency, amount in prior["left"].items()}
        asked = {"budget": left, "models": prior["models"], "expires_at": prior["expires_at"]}
        return self.mint(prior["job"], asked, mood)

    def revoke(self, handle: str | None, job: str | None) -> None:
        with self.lock:
            for key in self.keys.values():
                if key["handle"] == handle or key["job"] == job:
                    key["revocations"] += 1
                    key["live"] = False

    def spend(self, value: str, model: str, currency: str, cost: Decimal) -> tuple[int, str]:
        with self.lock:
            key = next((key for key in self.keys.values() if key["key"] == value and key["live"]), None)
            if key is None:
                return 401, "unknown or revoked"
            if key["expires_at"] is not None:
                expires_at = datetime.fromisoformat(key["expires_at"])
                if time.time() >= expires_at.timestamp():
                    return 401, "expired"
            if key["models"] is not None and not any(_allows(pattern, model) for pattern in key["models"]):
                return 403, "this model is not allowed"
            left = key["left"].get(currency)
            if left is not None and cost > left:
                return 402, "the budget is used up"
            if left is not None:
                key["left"][currency] = left - cost
            return 200, "ok"

    def state(self) -> dict[str, Any]:
        with self.lock:
            return {
                "keys": [
                    {
                        "handle": key["handle"],
                        "job": key["job"],
                        "live": key["live"],
                        "revocations": key["revocations"],
                        "left": {currency: str(amount) for currency, amount in key["left"].items()},
                        "models": key["models"],
                        "expires_at": key["expires_at"],
                    }
                    for key in self.keys.values()
                ],
                "asked": self.asked,
            }


def _allows(pattern: str, model: str) -> bool:
    """A pattern of this upstream's: a name, or ``tier/*``."""
    return model == pattern or (pattern.endswith("/*") and model.startswith(pattern[:-1]))


class Handler(BaseHTTPRequestHandler):
    upstream: Upstream
    admin: str

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: dict[str, Any] | None = None) -> None:
        text = json.dumps(body or {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def read(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        return json.loads(self.rfile.read(length)) if length else {}

    def bearer(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def hang(self) -> None:
        self.upstream.released.wait()
        self.close_connection = True

    def do_POST(self) -> None:
        body = self.read()
        if self.path == "/v1/chat":
            status, message = self.upstream.spend(
                self.bearer(), body["model"], body.get("currency", "USD"), Decimal(body["cost"])
            )
            self.answer(status, {"message": message})
        elif self.bearer() != self.admin:
            self.answer(401)
        elif self.path == "/admin/mood":
            self.upstream.set_mood(body)
            self.answer(200)
        elif self.path == "/admin/keys":
            self.mint("issue", body["job"], body, lambda mood: self.upstream.mint(body["job"], body, mood))
        elif self.path.endswith("/rotate"):
            handle = self.path.split("/")[-2]
            self.mint("rotate", handle, {}, lambda mood: self.upstream.rotate(handle, mood))
        else:
            self.answer(404)

    def mint(self, what: str, subject: str, body: dict[str, Any], make: Any) -> None:
        mood = self.upstream.mood(what, subject)
        if mood in ("fail", "refuse"):
            self.answer(500 if mood == "fail" else 403, {"message": "no"})
        elif mood == "hang":
            self.hang()
        else:
            minted = [make(mood) for _ in range(body.get("count", 1))]
            if mood == "hang_after":
                self.hang()
            elif mood in ("fail_after", "leak"):
                text = minted[0]["key"] if mood == "leak" else "too late"
                self.answer(500, {"message": f"failed behind {text}"})
            elif None in minted:
                self.answer(404)
            else:
                self.answer(201, {"keys": minted})

    def do_DELETE(self) -> None:
        if self.bearer() != self.admin:
            self.answer(401)
            return
        _, _, kind, subject = self.path.split("/")
        mood = self.upstream.mood("revoke" if kind == "keys" else "revoke_job", subject)
        if mood not in ("fail", "hang", "refuse", "lie"):
            self.upstream.revoke(subject if kind == "keys" else None, subject if kind == "jobs" else None)
        if mood in ("fail", "fail_after"):
            self.answer(500)
        elif mood == "refuse":
            self.answer(403)
        elif mood in ("hang", "hang_after"):
            self.hang()
        else:
            self.answer(200)

    def do_GET(self) -> None:
        if self.bearer() != self.admin:
            self.answer(401)
        else:
            self.answer(200, self.upstream.state())


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A caller that has gone is nothing to print."""


def main() -> None:
    Handler.upstream = Upstream()
    Handler.admin = sys.argv[1]
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
