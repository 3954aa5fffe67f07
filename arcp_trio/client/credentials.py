"""Credentials as runtimes write them, read into ours; and frames of which the value is taken out (P9.11).

A value has one home in a client, the job's handle, which drops it at the job's end. So it is taken out of everything
else that a program gets to see: the acceptance, the events, the listings.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

from ..authority.credentials import Credential, Secret
from ..wire.errors import InvalidRequestError
from ..wire.jsontext import JSONValue

__all__ = ["SCHEMES", "read_credentials", "read_rotation", "without_value"]

logger = logging.getLogger("arcp_trio.client")

SCHEMES = frozenset({"bearer"})
"""What this client can present; others are skipped, as section 9.8.1 has it."""

# How runtimes name the two (interop.md, section 3.19), and where they put them.
_NAMES = (("id", "value"), ("credential_id", "credential_value"))
_PLACES = ("details", "fields")


def read_credentials(wire: Iterable[Mapping[str, JSONValue]]) -> dict[str, Credential]:
    """Return the credentials of an acceptance by their ids; those that cannot be presented are skipped."""
    found: dict[str, Credential] = {}
    for each in wire:
        try:
            credential = Credential.from_wire(each)
        except InvalidRequestError as exc:
            logger.warning("skipped a credential: %s", exc.message)
            continue
        if credential.scheme in SCHEMES:
            found[credential.id] = credential
        else:
            logger.info("skipped credential %.64r: its scheme is not known here", credential.id)
    return found


def _places(body: Mapping[str, JSONValue]) -> Iterator[Mapping[str, JSONValue]]:
    yield body
    for name in _PLACES:
        place = body.get(name)
        if isinstance(place, dict):
            yield place


def read_rotation(body: Mapping[str, JSONValue]) -> tuple[str, Secret | None]:
    """Return which credential a ``credential_rotated`` names, empty for none, and its new value, if it has one."""
    message = body.get("message")
    credential_id = message if isinstance(message, str) else ""
    value: Secret | None = None
    for place in _places(body):
        for id_name, value_name in _NAMES:
            named, text = place.get(id_name), place.get(value_name)
            if isinstance(named, str) and named:
                credential_id = named
            if isinstance(text, str) and text:
                value = Secret(text)
    return credential_id, value


def without_value(body: Mapping[str, JSONValue]) -> dict[str, JSONValue]:
    """Return the body of a ``credential_rotated`` without the value, wherever it stands."""
    hidden = {value_name for _, value_name in _NAMES}
    shown = {name: value for name, value in body.items() if name not in hidden}
    for name in _PLACES:
        place = shown.get(name)
        if isinstance(place, dict):
            shown[name] = {key: value for key, value in place.items() if key not in hidden}
    return shown
