"""Encrypts what a store keeps (P14.3). It needs the extra "encryption".

Theory of operation. One key of 32 bytes, the user's. Each opening of a store draws a random salt, derives a key of its
own (HKDF-SHA256) and counts its nonces from 1: no nonce is ever used twice under one key, whatever crashes, without
anything that has to be remembered. A sealed text is ``version, salt, count, AES-256-GCM of the text``; what it belongs
to (the kind of row, its ids and numbers) is authenticated with it, so no row can be put in the place of another.

Encrypted is what was said: payloads, results, what was negotiated, the handles of credentials. Ids, names of
principals and agents, idempotency keys, times and sizes are not: a store has to find by them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from .errors import StoreCorruptError, StoreError, StoreKeyError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["KEY_BYTES", "Cipher", "NoCipher", "make_cipher"]

KEY_BYTES = 32
"""The length of a key."""
_VERSION = b"\x01"
_SALT_BYTES = 16
_COUNT_BYTES = 12
_HEAD = len(_VERSION) + _SALT_BYTES + _COUNT_BYTES
_CANARY = b"arcp-trio store"
_CANARY_PLACE = "canary"
# Derived keys that are kept: one for each opening of the store that has left something in it.
_OPENINGS = 64


class Cipher(Protocol):
    """Seals and opens what is stored."""

    def seal(self, text: bytes, *place: str | int) -> bytes:
        """Return ``text`` as it is stored at a place: a kind of row, and which one. In one thread at a time."""
        ...

    def open(self, sealed: bytes, *place: str | int) -> bytes:
        """Return what was sealed for that place. From any thread.

        Raises:
            StoreCorruptError: It was not: the row is damaged, or of somewhere else.
        """
        ...


class NoCipher:
    """Stores everything as it is."""

    def seal(self, text: bytes, *place: str | int) -> bytes:  # noqa: ARG002  # as a Cipher
        """Return the text."""
        return text

    def open(self, sealed: bytes, *place: str | int) -> bytes:  # noqa: ARG002  # as a Cipher
        """Return the text."""
        return sealed


class _KeyCipher:
    def __init__(self, key: bytes) -> None:
        # Imported here: most stores have no key, and the extra may not be there.
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

        def derive(salt: bytes) -> AESGCM:
            return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, b"arcp-trio store").derive(key))

        self._derive: Callable[[bytes], AESGCM] = lru_cache(_OPENINGS)(derive)
        self._invalid = InvalidTag
        self._salt = secrets.token_bytes(_SALT_BYTES)
        self._count = 0

    def __repr__(self) -> str:
        return "<a key>"

    def seal(self, text: bytes, *place: str | int) -> bytes:
        self._count += 1
        nonce = self._count.to_bytes(_COUNT_BYTES, "big")
        sealed = self._derive(self._salt).encrypt(nonce, text, repr(place).encode())
        return b"".join((_VERSION, self._salt, nonce, sealed))

    def open(self, sealed: bytes, *place: str | int) -> bytes:
        salt, nonce = sealed[1 : 1 + _SALT_BYTES], sealed[1 + _SALT_BYTES : _HEAD]
        where = " ".join(map(str, place))
        if sealed[:1] != _VERSION or len(nonce) != _COUNT_BYTES:
            raise StoreCorruptError(f"what is stored for {where} was not sealed")
        try:
            return self._derive(salt).decrypt(nonce, sealed[_HEAD:], repr(place).encode())
        except self._invalid:
            raise StoreCorruptError(f"what is stored for {where} was not sealed for it with this key") from None


def make_cipher(key: bytes | None, canary: bytes | None, path: object, *, new: bool) -> tuple[Cipher, bytes | None]:
    """Return what a store is read and written with, and its canary, by which the next opening knows its key.

    Args:
        key: The user's key, or ``None``.
        canary: The store's, or ``None`` where it is not encrypted.
        path: The store, for messages.
        new: Whether there is nothing in it yet.

    Raises:
        StoreKeyError: The key and the store do not belong together.
        StoreError: The extra "encryption" is not installed.
    """
    if key is None:
        if canary is not None:
            raise StoreKeyError(f"{path} is encrypted: it needs its key")
        return NoCipher(), None
    if len(key) != KEY_BYTES:
        raise StoreKeyError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    if canary is None and not new:
        # To go on with the key would leave what is there readable, and its owner in the belief that it is not.
        raise StoreKeyError(f"{path} is not encrypted: a key is for a new store")
    try:
        cipher = _KeyCipher(key)
    except ModuleNotFoundError as exc:
        raise StoreError(f"an encrypted store needs {exc.name}: pip install 'arcp-trio[encryption]'") from exc
    if canary is None:
        return cipher, cipher.seal(_CANARY, _CANARY_PLACE)
    try:
        cipher.open(canary, _CANARY_PLACE)
    except StoreCorruptError:
        raise StoreKeyError(f"{path} is encrypted with another key") from None
    return cipher, canary
