"""A provisioner for an upstream that mints keys over HTTP: an example, and what the tests use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import h11
import trio

from arcp_trio import CredentialConstraints, CredentialRequest, IssuedCredential, ProvisioningError

_CHUNK = 65_536


class GatewayProvisioner:
    """Mints a key for each job, with the job's lease in it, and revokes it.

    Args:
        url: The upstream, ``http://HOST:PORT``.
        admin: The token with which keys are minted and revoked.
        count: How many keys a job gets.
    """

    def __init__(self, url: str, admin: str, *, count: int = 1) -> None:
        self._url = url
        self._admin = admin
        self._count = count

    def __repr__(self) -> str:
        return f"<GatewayProvisioner {self._url}>"

    async def issue(self, request: CredentialRequest) -> Sequence[IssuedCredential]:
        """Mint the keys of a job."""
        answer = await self._ask(
            "POST",
            "/admin/keys",
            {
                "job": request.job_id,
                "count": self._count,
                "budget": {currency: str(amount) for currency, amount in request.budget.items()},
                "models": None if request.models is None else list(request.models),
                "expires_at": request.expires_at,
            },
            request.trace_headers,
        )
        return [self._read(key) for key in answer["keys"]]

    async def rotate(self, handle: str, request: CredentialRequest) -> IssuedCredential:
        """Mint another key in the place of one."""
        path = f"/admin/keys/{quote(handle, safe='')}/rotate"
        answer = await self._ask("POST", path, None, request.trace_headers)
        return self._read(answer["keys"][0])

    async def revoke(self, handle: str) -> None:
        """Revoke a key."""
        await self._ask("DELETE", f"/admin/keys/{quote(handle, safe='')}")

    async def revoke_job(self, job_id: str) -> None:
        """Revoke the keys of a job."""
        await self._ask("DELETE", f"/admin/jobs/{quote(job_id, safe='')}")

    def _read(self, key: dict[str, Any]) -> IssuedCredential:
        confirmed = key["confirmed"]
        return IssuedCredential(
            handle=key["handle"],
            value=key["key"],
            endpoint=f"{self._url}/v1",
            profile="openai",
            constraints=CredentialConstraints(
                budget=tuple(f"{currency}:{amount}" for currency, amount in confirmed["budget"].items()) or None,
                models=None if confirmed["models"] is None else tuple(confirmed["models"]),
                expires_at=confirmed["expires_at"],
            ),
        )

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, trace: Mapping[str, str] | None = None
    ) -> Any:
        """Ask the upstream; of an answer that is an error only the status is said: its text may hold a key."""
        headers = {"Authorization": f"Bearer {self._admin}", **(trace or {})}
        status, answer = await request(method, self._url + path, body, headers=headers)
        if status == 404 and method == "DELETE":
            return answer
        if not 200 <= status < 300:
            # What the upstream will refuse again is not worth trying again.
            raise ProvisioningError(f"the upstream answered {method} with {status}", permanent=status in (401, 403))
        return answer


async def request(
    method: str, url: str, body: dict[str, Any] | None = None, *, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Make one HTTP/1.1 request; return its status and the JSON of its answer.

    Raises:
        ProvisioningError: The upstream could not be reached, or did not speak HTTP.

    Cancellation: the request may have been carried out.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    content = b"" if body is None else json.dumps(body).encode()
    fields = {"Host": parts.netloc, "Content-Length": str(len(content)), "Connection": "close", **(headers or {})}
    connection = h11.Connection(h11.CLIENT)
    try:
        async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream:
            for event in (
                h11.Request(method=method, target=parts.path, headers=list(fields.items())),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                await stream.send_all(connection.send(event) or b"")
            status, text = 0, b""
            while True:
                received = connection.next_event()
                if received is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some(_CHUNK))
                elif isinstance(received, h11.Response):
                    status = received.status_code
                elif isinstance(received, h11.Data):
                    text += received.data
                elif isinstance(received, h11.EndOfMessage):
                    return status, json.loads(text or b"null")
                else:
                    break
    except (OSError, trio.BrokenResourceError, h11.ProtocolError) as exc:
        raise ProvisioningError(f"the upstream failed: {type(exc).__name__}") from None
    raise ProvisioningError("the upstream closed the connection")
