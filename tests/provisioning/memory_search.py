"""Looks for a secret in memory."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator

__all__ = ["canaries", "everything", "reachable"]


def reachable(*start: object) -> Iterator[object]:
    """Yield all that can be reached from some objects."""
    seen = {id(each) for each in start}
    waiting = list(start)
    while waiting:
        each = waiting.pop()
        yield each
        for referent in gc.get_referents(each):
            if id(referent) not in seen:
                seen.add(id(referent))
                waiting.append(referent)


def everything() -> Iterator[object]:
    """Yield all that this process has: also the locals of its coroutines, and what waits in its buffers."""
    gc.collect()
    return reachable(*gc.get_objects())


def canaries(objects: Iterable[object], secret: str) -> list[str]:
    """Return those of some objects that hold a secret, as text or bytes; the argument itself is none of them."""
    encoded = secret.encode()

    def holds_it(each: object) -> bool:
        if isinstance(each, str):
            return each is not secret and secret in each
        return isinstance(each, (bytes, bytearray)) and each is not encoded and encoded in each

    return [repr(each)[:300] for each in objects if holds_it(each)]
