"""The gateway's process, as a test holds it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from provisioning.gateway_provisioner import GatewayProvisioner, request

import arcp_trio

__all__ = ["Upstream", "open_upstream"]

PROGRAM = Path(__file__).parent / "gateway_process.py"
ADMIN = "an-admin-token"


@attrs.frozen
class Upstream:
    """The process.

    Attributes:
        url: Where it is.
    """

    url: str

    def provisioner(self, *, count: int = 1) -> GatewayProvisioner:
        return GatewayProvisioner(self.url, ADMIN, count=count)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        status, answer = await request(method, self.url + path, body, headers={"Authorization": f"Bearer {ADMIN}"})
        assert status == 200, (status, answer)
        return answer

    async def be(self, **moods: str) -> None:
        """Have calls go wrong from now on, each in its way; those that are not named go well."""
        await self._ask("POST", "/admin/mood", moods)

    async def keys(self) -> list[dict[str, Any]]:
        keys: list[dict[str, Any]] = (await self._ask("GET", "/admin/state"))["keys"]
        return keys

    async def live(self) -> list[dict[str, Any]]:
        return [key for key in await self.keys() if key["live"]]

    async def asked(self) -> list[str]:
        return [what for what, _ in (await self._ask("GET", "/admin/state"))["asked"]]


async def chat(
    credential: arcp_trio.Credential, *, model: str = "tier-fast/small", cost: str = "1.00", url: str | None = None
) -> int:
    """Spend something with a credential, as an agent would; return the HTTP status."""
    url = url or f"{credential.endpoint}/chat"
    status, _ = await request("POST", url, {"model": model, "cost": cost}, headers=credential.headers_for(url))
    return status


@asynccontextmanager
async def open_upstream() -> AsyncGenerator[Upstream, None]:
    process = await trio.lowlevel.open_process(
        [sys.executable, str(PROGRAM), ADMIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = b""
        while not said.endswith(b"\n"):
            said += await process.stdout.receive_some(100)
        yield Upstream(f"http://127.0.0.1:{int(said)}")
    finally:
        # It ends with its stdin; what is left of it after that is a bug of the test.
        with trio.CancelScope(shield=True), trio.move_on_after(10):
            await process.stdin.aclose()
            await process.wait()
        if process.returncode is None:
            process.kill()
        await process.stdout.aclose()
