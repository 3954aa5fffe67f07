"""W3C trace context: what is taken, what is dropped, and what goes out (P5.8)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arcp_trio.wire.envelope import decode_envelope, encode_envelope
from arcp_trio.wire.tracecontext import TRACECONTEXT_EXTENSION, TraceContext

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER = "0af7651916cd43dd8448eb211c80319c"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.requirement("P5.8", "P11.1")
@pytest.mark.parametrize(
    ("traceparent", "flags"),
    [
        (PARENT, 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        # Sampled, and a trace id that is random; what the other bits promise nobody knows.
        (f"00-{TRACE}-{SPAN}-ff", 3),
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what the future will be", 1),
    ],
)
def test_a_traceparent_is_read(traceparent: str, flags: int) -> None:
    found = TraceContext.parse(traceparent)
    assert found == TraceContext(trace_id=TRACE, span_id=SPAN, flags=flags)
    assert found.traceparent == f"00-{TRACE}-{SPAN}-{flags:02x}"
    assert found.headers() == {"traceparent": found.traceparent}


@pytest.mark.requirement("P5.8")
@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        None,
        7,
        [PARENT],
        TRACE,
        PARENT.upper(),
        f" {PARENT}",
        f"{PARENT}\n",
        f"{PARENT}-",
        f"{PARENT}-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 500}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN[:-1]}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"0-{TRACE}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{'٣' * 32}-{SPAN}-01",
    ],
)
def test_what_is_no_traceparent_is_dropped(traceparent: Any) -> None:
    assert TraceContext.parse(traceparent) is None
    assert TraceContext.read({"traceparent": traceparent, "tracestate": "a=b"}) is None


@pytest.mark.requirement("P5.8")
@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("congo=t61rcWkgMzE", "congo=t61rcWkgMzE"),
        ("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        (" a=1 ,\tb=2,, ,c=3", "a=1,b=2,c=3"),
        ("fw529a3039@dt=FfAAAA", "fw529a3039@dt=FfAAAA"),
        ("0tenant/x*y_z-1@v=a b", "0tenant/x*y_z-1@v=a b"),
        (f"{'k' * 256}=v", f"{'k' * 256}=v"),
        (f"k={'v' * 256}", f"k={'v' * 256}"),
        ("", ""),
        (",", ""),
        # One bad member spoils the whole.
        ("a=1,B=2", ""),
        ("a=1,b", ""),
        ("a=1,=2", ""),
        ("a=1,b=", ""),
        ("a=1,b=x=y", ""),
        ("a=1,b=é", ""),
        ("a=1,b=2\n", ""),
        ("1a=1", ""),
        ("a=1,b=2,a=3", ""),
        (f"{'k' * 257}=v", ""),
        (f"k={'v' * 257}", ""),
        (f"{'t' * 242}@v=1", ""),
        (",".join(f"k{number}=v" for number in range(32)), ",".join(f"k{number}=v" for number in range(32))),
        (",".join(f"k{number}=v" for number in range(33)), ""),
        (f"a={'v' * 250},b={'v' * 250},c=12", f"a={'v' * 250},b={'v' * 250},c=12"),
        (f"a={'v' * 250},b={'v' * 250},c=12345", ""),
        (7, ""),
        (None, ""),
        (["a=1"], ""),
    ],
)
def test_a_tracestate_is_taken_or_dropped_and_the_parent_stands(given: Any, read: str) -> None:
    found = TraceContext.parse(PARENT, given)
    assert found is not None
    assert (found.trace_id, found.span_id, found.tracestate) == (TRACE, SPAN, read)
    assert found.headers() == {"traceparent": PARENT} | ({"tracestate": read} if read else {})
    assert "tracestate" not in repr(found)


@pytest.mark.requirement("P5.8")
@given(st.one_of(st.text(), st.none(), st.integers(), st.dictionaries(st.text(), st.text())), st.text())
@example(PARENT, ",".join("a=1" for _ in range(200)))
@settings(deadline=None, print_blob=True, max_examples=200)
def test_nothing_that_a_peer_can_send_raises_and_what_goes_out_can_be_read(parent: Any, state: str) -> None:
    TraceContext.parse(parent, state)
    TraceContext.read({"traceparent": parent, "tracestate": state})
    assert TraceContext.read(parent) is None
    found = TraceContext.parse(PARENT, state)
    assert found is not None
    assert TraceContext.read(found.headers()) == found


@pytest.mark.requirement("P5.8")
@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 3))
@settings(deadline=None, print_blob=True, max_examples=100)
def test_a_context_survives_its_headers(trace_id: int, span_id: int, flags: int) -> None:
    context = TraceContext(trace_id=f"{trace_id:032x}", span_id=f"{span_id:016x}", flags=flags, tracestate="a=1")
    assert TraceContext.read(context.headers()) == context


# --- on an envelope -------------------------------------------------------------------------------


def envelope_with(**fields: Any) -> Any:
    return decode_envelope(json.dumps({"arcp": "1.1", "id": "m", "type": "t", "payload": {}, **fields}))


def carrying(traceparent: str, **more: Any) -> dict[str, Any]:
    return {TRACECONTEXT_EXTENSION: {"traceparent": traceparent, **more}}


@pytest.mark.requirement("P5.8", "T23")
@pytest.mark.parametrize(
    ("trace_id", "extensions", "read"),
    [
        (TRACE, carrying(PARENT, tracestate="a=1"), (TRACE, SPAN, "a=1")),
        # The envelope's trace counts where they differ: an operation of another trace is none of this one.
        (OTHER, carrying(PARENT), None),
        # In the extension alone, as some implementations send it.
        (None, carrying(PARENT), (TRACE, SPAN, "")),
        ("not a trace", carrying(PARENT), (TRACE, SPAN, "")),
        # A traceparent in the id's place, as section 11 can be read.
        (PARENT, None, (TRACE, SPAN, "")),
        (PARENT.upper(), None, (TRACE, SPAN, "")),
        (PARENT, {"x-vendor.a.b": 1}, (TRACE, SPAN, "")),
        (PARENT, carrying(f"00-{TRACE}-{SPAN[::-1]}-01", tracestate="a=1"), (TRACE, SPAN[::-1], "a=1")),
        (PARENT, carrying(f"00-{OTHER}-{SPAN[::-1]}-01"), (TRACE, SPAN, "")),
        (PARENT, {TRACECONTEXT_EXTENSION: "malformed"}, (TRACE, SPAN, "")),
        (f"ff-{TRACE}-{SPAN}-01", None, None),
        (TRACE, None, None),
        (TRACE.upper(), None, None),
        (TRACE, {TRACECONTEXT_EXTENSION: PARENT}, None),
        (TRACE, {TRACECONTEXT_EXTENSION: [PARENT]}, None),
        (TRACE, "no object", None),
        (TRACE, carrying("malformed"), None),
        (None, None, None),
    ],
)
def test_which_operation_an_envelope_names(
    trace_id: str | None, extensions: Any, read: tuple[str, str, str] | None
) -> None:
    found = envelope_with(trace_id=trace_id, extensions=extensions).trace_context
    assert (found and (found.trace_id, found.span_id, found.tracestate)) == read


@pytest.mark.requirement("P5.8")
def test_a_traceparent_that_moves_is_bounded_and_leaves_the_other_extensions_alone() -> None:
    read = envelope_with(trace_id=PARENT, extensions={"x-vendor.a.b": 1})
    assert read.extensions == {"x-vendor.a.b": 1, TRACECONTEXT_EXTENSION: {"traceparent": PARENT}}
    long = envelope_with(trace_id=f"cc-{TRACE}-{SPAN}-01-{'x' * 500}")
    assert (long.trace_id, long.extensions) == (None, {})


@pytest.mark.requirement("T23", "P5.8")
def test_the_extensions_of_a_frame_are_the_callers() -> None:
    given: dict[str, Any] = {TRACECONTEXT_EXTENSION: {"traceparent": PARENT}, "x-vendor.a.b": [1]}
    before = json.dumps(given)
    text = encode_envelope("t", b"{}", message_id="m", timestamp="now", trace_id=TRACE, extensions=given)
    assert json.loads(text)["extensions"] == given
    read = decode_envelope(text)
    assert read.trace_context is not None
    read.trace_context.headers()["traceparent"] = "changed"
    assert json.dumps(given) == json.dumps(read.extensions) == before
    assert "extensions" not in json.loads(encode_envelope("t", b"{}", message_id="m", timestamp="now", extensions={}))
