"""What goes wrong with a store, as two closed trees.

::

    StoreError                 it cannot be opened, or can never go on: for who runs it, no client hears of it
    ├── StoreLockedError       another process has it
    ├── StoreFormatError       it is no store of ours, or one of a later version
    ├── StoreKeyError          it is encrypted and there is no key or another one, or there is one and it is not
    └── StoreCorruptError      what is there is damaged

    BatchRefusedError          one batch was not taken, will never be, and nothing of it was
    ├── FencedError            another owner has taken the store over
    ├── KeyTakenError          its idempotency key stands for another job
    └── ConflictError          it contradicts what is there: a bug of whoever wrote it

A store that cannot write just now raises :class:`~arcp_trio.wire.errors.StoreUnavailableError`, which clients and
agents hear: it is INTERNAL_ERROR, retryable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .stored import StoredKey

__all__ = [
    "BatchRefusedError",
    "ConflictError",
    "FencedError",
    "KeyTakenError",
    "StoreCorruptError",
    "StoreError",
    "StoreFormatError",
    "StoreKeyError",
    "StoreLockedError",
]


class StoreError(Exception):
    """A store cannot be opened, or can never go on. The message names the file and what to do."""


class StoreLockedError(StoreError):
    """Another process, or another part of this one, has the store open; the message has its process id."""


class StoreFormatError(StoreError):
    """The file is not a store, or was written by a later version."""


class StoreKeyError(StoreError):
    """The key and the file do not belong together."""


class StoreCorruptError(StoreError):
    """The file is damaged."""


class BatchRefusedError(Exception):
    """A batch was not taken. Nothing of it was, and it is not tried again."""


class FencedError(BatchRefusedError):
    """The batch has an old epoch: another owner has taken the store over, and this one must stop."""


class KeyTakenError(BatchRefusedError):
    """The idempotency key stands for another job already (P7.6).

    Args:
        existing: What it stands for.
    """

    def __init__(self, existing: StoredKey) -> None:
        super().__init__(f"the idempotency key stands for {existing.job_id}")
        self.existing = existing


class ConflictError(BatchRefusedError):
    """The batch contradicts what the store has: a number that is not the next, a second outcome, an unknown job."""
