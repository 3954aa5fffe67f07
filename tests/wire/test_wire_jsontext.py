"""JSON text: what is JSON and what is not, in both directions."""
# what a parametrised test is given has names where it is given

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
from collections import OrderedDict, namedtuple
from decimal import Decimal
from enum import IntEnum
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arcp_trio.wire.jsontext import MAX_DEPTH, decode_json, encode_json, exact_number, is_as_encoded

pytestmark = pytest.mark.requirement("P5.5", "P5.6")

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=5)
    ),
    max_leaves=20,
)


def nested(depth: int, leaf: Any = 1) -> Any:
    """Return lists and objects in turn, ``depth`` deep."""
    value = leaf
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def same(one: Any, other: Any) -> bool:
    """Compare exactly: 1 is neither 1.0 nor true."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@given(values)
@example({"a": [2**64, -(2**63) - 1, 10**300, 1.5, -0.0]})
@example([2**63 - 1, 2**63, 2**64 - 1, -(2**63)])
@settings(deadline=None, print_blob=True)
def test_a_value_survives_exactly(value: Any) -> None:
    text = encode_json(value)
    assert same(decode_json(text), value)
    assert same(decode_json(text.decode()), value)


@given(values)
@settings(deadline=None, print_blob=True)
def test_both_libraries_agree(value: Any) -> None:
    """The quick way (orjson) and the way for integers of more than 64 bits (the standard library) say the same."""
    text = encode_json(value)
    assert same(json.loads(text), value)
    assert same(json.loads(encode_json([value, 2**70]))[0], value)
    try:
        quick = orjson.dumps(value)
    except orjson.JSONEncodeError:
        return
    assert text == quick
    assert same(decode_json(f"[{text.decode()},{2**70}]")[0], value)


@given(values, st.booleans(), st.sampled_from([None, 2]))
@settings(deadline=None, print_blob=True)
def test_what_the_standard_library_writes_is_read_alike(value: Any, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert same(decode_json(text), value)
    assert same(decode_json(text.encode()), value)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(deadline=None, print_blob=True)
def test_any_bytes_are_a_value_or_a_value_error(text: bytes) -> None:
    try:
        value = decode_json(text)
    except ValueError:
        return
    assert same(json.loads(text), value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "NaN",
        "Infinity",
        "-Infinity",
        "[NaN]",
        "1e999",
        "-1e999",
        "1" * 400,
        "1" * 5000,
        "01",
        "+1",
        ".5",
        "1.",
        "0x1",
        "{",
        '{"a":1,}',
        "[1,]",
        "{a:1}",
        "'a'",
        '{"a":1} x',
        "nul",
        "True",
        '"a\nb"',
        '"\\x41"',
        r'"\ud800"',
        r'"\udc00\ud800"',
        r'{"\ud83d":1}',
        "\ufeff1",
        "[1] [2]",
        "/**/1",
    ],
)
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_json(text)
    with pytest.raises(ValueError, match=r"."):
        decode_json(text.encode())


@pytest.mark.parametrize("text", [b"\xff", b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xf8\x88\x80\x80\x80"', '"\ud800"'])
def test_text_that_is_no_unicode(text: bytes | str) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_json(text)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert decode_json(r'"\ud83d\ude00"') == "😀"
    assert encode_json("😀") == '"😀"'.encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("around", [lambda x: x, lambda x: [x], lambda x: {"a": (1, [x])}, lambda x: [2**70, x]])
def test_nan_and_infinities_are_not_written(value: float, around: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode_json(around(value))


def test_a_null_beside_numbers_is_no_nan() -> None:
    assert encode_json([None, 1.5, "null"]) == b'[null,1.5,"null"]'


@pytest.mark.parametrize("value", ["\ud800", ["a\udfff"], {"\ud800": 1}, {"a": "\ud800", "b": 2**70}])
def test_lone_surrogates_are_not_written(value: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode_json(value)


@pytest.mark.parametrize("leaf", [1, 2**70, None, "x"])
def test_nesting_of_64_is_read_and_written_and_65_is_not(leaf: Any) -> None:
    assert MAX_DEPTH == 64
    deepest = nested(64, leaf)
    assert decode_json(encode_json(deepest)) == deepest
    for depth in (65, 66, 200, 300, 2000):
        value = nested(depth, leaf)
        with pytest.raises(ValueError, match=r"."):
            encode_json(value)
    for depth in (65, 66, 200, 1024, 1025, 50_000):
        with pytest.raises(ValueError, match=r"."):
            decode_json('{"k":' * depth + "1" + "}" * depth)
        with pytest.raises(ValueError, match=r"."):
            decode_json(b"[" * depth + b"]" * depth)


def test_wide_is_not_deep() -> None:
    wide = [[[number]] for number in range(1000)]
    assert decode_json(encode_json(wide)) == wide
    assert decode_json(encode_json("[{" * 1000)) == "[{" * 1000
    tuples = ((1, (2,)),) * 100
    assert decode_json(encode_json(tuples)) == [[1, [2]]] * 100


@pytest.mark.parametrize(
    "number", [2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**100, -(10**300), 12345678901234567890123]
)
def test_integers_of_any_size_survive(number: int) -> None:
    assert encode_json(number) == str(number).encode()
    assert same(decode_json(str(number)), number)
    assert same(decode_json(encode_json({"deep": [1, {"in": number}]})), {"deep": [1, {"in": number}]})


def test_an_integer_beyond_a_double_is_refused_both_ways() -> None:
    with pytest.raises(ValueError, match=r"."):
        encode_json(10**309)
    with pytest.raises(ValueError, match=r"."):
        decode_json(str(10**309))


def test_digits_in_a_string_or_a_fraction_are_no_integer() -> None:
    assert decode_json('{"a": "12345678901234567890", "b": 0.12345678901234567890}') == {
        "a": "12345678901234567890",
        "b": 0.12345678901234567890,
    }


def test_tuples_are_arrays_beside_whatever() -> None:
    assert encode_json((1, ("a", ()))) == b'[1,["a",[]]]'
    # The slow way, for an integer of more than 64 bits, takes the same.
    assert encode_json({"a": (1, (2**70,))}) == b'{"a":[1,[1180591620717411303424]]}'


@dataclasses.dataclass
class Data:
    x: int = 1


@attrs.frozen
class Attrs:
    x: int = 1


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Mapping(dict):  # type: ignore[type-arg]
    pass


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")  # noqa: PYI024


@pytest.mark.parametrize(
    "value",
    [
        Data(),
        Attrs(),
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        dt.date(2026, 1, 1),
        dt.time(1),
        Text("a"),
        Number(1),
        Mapping(a=1),
        OrderedDict(a=1),
        Point(1, 2),
        Decimal(1),
        b"bytes",
        bytearray(b"a"),
        {1, 2},
        frozenset(),
        1j,
        object(),
        int,
        range(3),
        iter([]),
        {1: 2},
        {None: 1},
        {True: 1},
        {1.5: 1},
        {("a",): 1},
        {b"a": 1},
        {Text("a"): 1},
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else repr(value),
)
@pytest.mark.parametrize("beside", [None, 2**70])
def test_what_is_not_json_is_not_written(value: Any, beside: Any) -> None:
    """Also beside an integer of more than 64 bits, where it is written in another way."""
    with pytest.raises(ValueError, match=r"."):
        encode_json({"beside": beside, "value": value})
    with pytest.raises(ValueError, match=r"."):
        encode_json([value, beside])


def test_a_value_that_contains_itself() -> None:
    for first in (1, 2**70):
        value: list[Any] = [first]
        value.append(value)
        with pytest.raises(ValueError, match=r"."):
            encode_json(value)


def test_the_text_is_compact() -> None:
    assert encode_json({"a": [1, 2.0], "é": None}) == '{"a":[1,2.0],"é":null}'.encode()
    assert encode_json({"a": [1, 2**70], "é": None}) == '{"a":[1,1180591620717411303424],"é":null}'.encode()


@pytest.mark.requirement("P9.7", "B04")
@pytest.mark.parametrize("beside", [None, 2**70])
@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("0.0234", "0.0234"),
        ("-0.50", "-0.50"),
        ("5.00", "5"),
        ("0.00", "0"),
        ("-0", "0"),
        ("-3", "-3"),
        ("1E+3", "1000"),
        ("1E-40", "1E-40"),
        ("999999999999999.9999999999999999999999999999999999999999", None),
        ("999999999999999999", "999999999999999999"),
        ("1E+300", "1E+300"),
        ("1E-999999", "1E-999999"),
    ],
)
def test_a_decimal_is_written_exactly(number: str, text: str | None, beside: Any) -> None:
    written = encode_json({"value": exact_number(Decimal(number)), "beside": beside})
    assert written.startswith(f'{{"value":{text or number},'.encode())
    assert json.loads(written, parse_float=Decimal)["value"] == Decimal(number)
    decode_json(written)


@pytest.mark.requirement("P5.6")
def test_an_integer_as_long_as_nobody_writes_one() -> None:
    for number in (10**400, 10**5000):
        with pytest.raises(ValueError, match=r"."):
            encode_json([number])


@given(values)
@settings(deadline=None)
def test_what_we_write_is_as_it_is_encoded(value: Any) -> None:
    text = encode_json(value)
    try:
        assert orjson.dumps(value) == text
        assert is_as_encoded(text, decode_json(text))
    except orjson.JSONEncodeError:
        # An integer of more than 64 bits: nothing is said of it.
        assert not is_as_encoded(text, decode_json(text))
    assert not is_as_encoded(b" " + text, decode_json(text))


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}',
        '{"a":1,"b":{"c":[],"c":[]}}',
        '{"a":1, "b":2}',
        '{"\\u0061":1}',
        '{"a":1.0e0}',
        '{"a":100000000000000000000}',
        '{"a":"\\/"}',
    ],
)
def test_what_others_write_is_not(text: str) -> None:
    assert not is_as_encoded(text.encode(), decode_json(text))


@pytest.mark.parametrize("number", [10**18, 10**19, -(10**19), 2**63, 2**64, 10**40])
@pytest.mark.parametrize(
    "around", ["{}", "[{}]", '{{"a":{}}}', '{{"a": {}}}', "[0,{}]", "[0,\n{}]", '["{}x",{}]', "\t{}"]
)
def test_an_integer_of_any_size_is_read_wherever_it_stands(number: int, around: str) -> None:
    """Also beside text with as many digits, and where nothing stands before it."""
    text = around.replace("{}", str(number)).replace("{{", "{").replace("}}", "}")
    assert decode_json(text) == decode_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", ['"' + "7" * 40 + '"', '{"id":"sess_' + "1" * 26 + '"}', "[1.2345678901234567890123]"])
def test_other_runs_of_digits_are_no_integers(text: str) -> None:
    assert decode_json(text) == json.loads(text)
