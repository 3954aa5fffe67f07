"""JSON text to values and back, exactly as the protocol wants it, on orjson.

orjson is fast and strict in what it reads. Four things that it lets pass are not: it reads
integers of more than 64 bits as floats, refuses to write them, writes NaN as ``null``, and reads
nesting up to 1,024 (dependencies.md, section 1). Each is caught by a test that costs one scan of the bytes
and looks closer only where the scan says that it could be so.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

__all__ = ["MAX_DEPTH", "JSONValue", "decode_json", "encode_json"]

JSONValue = Any
"""Any JSON value: ``None``, a bool, int, float or str, a list or a str-keyed dict of such."""

MAX_DEPTH = 64
"""How deep arrays and objects may be nested (P5.5)."""

_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
# Digits behind what a number can stand behind: digits alone would be tried at every digit of every id.
_LONG_INTEGER = re.compile(r"[\[:,\s-]\d{19}")
_LONG_INTEGER_BYTES = re.compile(rb"[\[:,\s-]\d{19}")


def _too_deep(value: JSONValue, depth: int = MAX_DEPTH) -> bool:
    """Say whether ``value`` nests more than ``depth`` containers, level by level."""
    level = [value]
    for _ in range(depth):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list, tuple))
        ]
        if not level:
            return False
    return True


def _has_non_finite(value: JSONValue) -> bool:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                return True
        elif isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            pending.extend(item)
    return False


def encode_json(value: JSONValue, *, within: int = 0) -> bytes:
    """Return ``value`` as compact JSON in UTF-8.

    Args:
        value: Any JSON value.
        within: How many arrays and objects will stand around it in its frame.

    Raises:
        ValueError: It is not JSON: another type, a key that is no string, NaN or an infinity, a lone
            surrogate, or its frame would be nested deeper than ``MAX_DEPTH``.
    """
    try:
        text = orjson.dumps(value, option=_OPTIONS)
    except orjson.JSONEncodeError as exc:
        text = _encode_slowly(value, exc)
    # A NaN is written as null: without a null in the text there was none in the value.
    if b"null" in text and _has_non_finite(value):
        raise ValueError("NaN and infinities are not JSON")
    depth = MAX_DEPTH - within
    if text.count(b"[") + text.count(b"{") > depth and _too_deep(value, depth):
        raise ValueError(f"nested deeper than {depth}")
    return text


def _encode_slowly(value: JSONValue, refusal: Exception) -> bytes:
    """Write what orjson refused, if it was only for an integer of more than 64 bits."""
    if "64-bit" not in str(refusal):
        raise ValueError(str(refusal)) from refusal
    try:
        # orjson has seen only what stands before the integer, so the rest is still to be judged.
        text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        encoded = text.encode()
        # What we would not read, we do not send: integers past the range of a double.
        decode_json(encoded)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc
    return encoded


def _plain(value: JSONValue) -> JSONValue:
    """Return ``value`` with lists for tuples; the standard library writes more than orjson does.

    Raises:
        TypeError: Something in it is of another type, or a key is no string.
    """
    kind = type(value)
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise TypeError(f"a key is not a string: {key!r:.50}")
        return {key: _plain(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_plain(item) for item in value]
    if value is None or kind in (bool, int, float, str):
        return value
    raise TypeError(f"not JSON: {kind.__name__}")


def decode_json(text: bytes | str) -> JSONValue:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is not JSON (NaN, infinities and lone surrogates are not), or is nested
            deeper than ``MAX_DEPTH``.
    """
    value = orjson.loads(text)
    if isinstance(text, str):
        openings = text.count("[") + text.count("{")
        has_long_integer = _LONG_INTEGER.search(text) is not None or text[:19].isdecimal()
    else:
        openings = text.count(b"[") + text.count(b"{")
        has_long_integer = _LONG_INTEGER_BYTES.search(text) is not None or text[:19].isdigit()
    if openings > MAX_DEPTH and _too_deep(value):
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if has_long_integer:
        # Inputs and results pass through as they are (P5.6): only the standard library keeps an
        # integer of any size.
        return json.loads(text)
    return value
