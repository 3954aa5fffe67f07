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
from decimal import Decimal
from typing import Any

import orjson

__all__ = ["MAX_DEPTH", "JSONValue", "decode_json", "encode_json", "exact_number", "is_as_encoded"]

JSONValue = Any
"""Any JSON value: ``None``, a bool, int, float or str, a list or a str-keyed dict of such."""

MAX_DEPTH = 64
"""How deep arrays and objects may be nested (P5.5)."""

_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
_MAX_WHOLE_DIGITS = 18
# Digits behind what a number can stand behind: ids have long runs of digits, too.
_LONG_INTEGER = re.compile(rb"(?:\A|[\[:,\s-])\d{19}")
# The expression alone took thrice as long as parsing: a text without such a run is found out by two scans.
_ALL_DIGITS_ALIKE = bytes.maketrans(b"123456789", b"000000000")
_NINETEEN_DIGITS = b"0" * 19


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
        encoded = orjson.dumps(_plain(value), option=_OPTIONS)
        # What we would not read, we do not send: integers past the range of a double.
        decode_json(encoded)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc
    return encoded


def _plain(value: JSONValue) -> JSONValue:
    """Return ``value`` with every integer of more than 64 bits written out, which orjson takes as it is."""
    kind = type(value)
    if kind is dict:
        return {key: _plain(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_plain(item) for item in value]
    if kind is int and not -(2**63) <= value < 2**64:
        return orjson.Fragment(str(value))
    return value


def exact_number(value: Decimal) -> JSONValue:
    """Return what :func:`encode_json` writes as exactly this number, never by way of a float: ``5``, ``0.0234``.

    Args:
        value: A finite decimal, as large as a double can be.
    """
    if value.adjusted() < _MAX_WHOLE_DIGITS and value == value.to_integral_value():
        # One peer decodes whole numbers into integers, and refuses 5.00 (interop.md, section 3.12).
        return int(value)
    return orjson.Fragment(str(value))


def is_as_encoded(text: bytes, value: JSONValue) -> bool:
    """Say whether a text is, byte for byte, what would be written for the value that was read from it.

    Then no name stands twice in an object of it. Most peers write so; of other texts it says nothing.
    """
    try:
        return orjson.dumps(value) == text
    except orjson.JSONEncodeError:
        # An integer of more than 64 bits.
        return False


def decode_json(text: bytes | str) -> JSONValue:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is not JSON (NaN, infinities and lone surrogates are not), or is nested
            deeper than ``MAX_DEPTH``.
    """
    value = orjson.loads(text)
    raw = text.encode() if isinstance(text, str) else text
    openings = raw.count(b"[") + raw.count(b"{")
    if openings > MAX_DEPTH and _too_deep(value):
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if _NINETEEN_DIGITS in raw.translate(_ALL_DIGITS_ALIKE) and _LONG_INTEGER.search(raw) is not None:
        # Inputs and results pass through as they are (P5.6): only the standard library keeps an
        # integer of any size.
        return json.loads(text)
    return value
