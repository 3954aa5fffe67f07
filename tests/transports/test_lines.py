"""What is alone of transports that write lines: how bytes become lines, bounds, ends; over streams in memory."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count

import pytest
import trio
import trio.testing
from helpers import RawClient, Script, make_hello
from hypothesis import given
from hypothesis import strategies as st

import arcp_trio
from arcp_trio.transports.base import TransportClosedError
from arcp_trio.transports.lines import LineTransport

pytestmark = pytest.mark.requirement("P4.2")

MIB = 1024 * 1024


def open_lines(
    *, receive_bytes: int = 1000, skips_text: bool = False
) -> tuple[trio.testing.MemorySendStream, LineTransport, trio.testing.MemoryReceiveStream]:
    """Return a transport, between what writes to it and what reads from it."""
    far_send, incoming = trio.testing.memory_stream_one_way_pair()
    outgoing, far_receive = trio.testing.memory_stream_one_way_pair()
    transport = LineTransport(
        incoming, outgoing, receive_bytes=receive_bytes, description="lines", skips_text=skips_text
    )
    return far_send, transport, far_receive


async def read_all(transport: LineTransport) -> tuple[list[bytes | str], TransportClosedError]:
    frames: list[bytes | str] = []
    with trio.fail_after(20):
        while True:
            try:
                frames += await transport.receive()
            except TransportClosedError as exc:
                return frames, exc


async def read_bytes(data: bytes, *, receive_bytes: int = 1000) -> tuple[list[bytes | str], int]:
    far, transport, _ = open_lines(receive_bytes=receive_bytes)
    await far.send_all(data)
    await far.aclose()
    frames, closed = await read_all(transport)
    return frames, closed.code


# --- bytes to lines ---------------------------------------------------------------------------------


async def test_all_lines_that_have_arrived_are_returned_together() -> None:
    far, transport, _ = open_lines()
    await far.send_all(b"".join(b'{"n":%d}\n' % number for number in range(1000)) + b'{"half"')
    assert await transport.receive() == [b'{"n":%d}' % number for number in range(1000)]
    await far.send_all(b":1}\n")
    assert await transport.receive() == [b'{"half":1}']


@pytest.mark.parametrize(
    ("data", "frames"),
    [
        (b'{"a":1}\r\n{"b":2}\n', [b'{"a":1}', b'{"b":2}']),
        (b'\n\r\n  \t\n{"a":1}\n\n\n{"b":2}\n\n', [b'{"a":1}', b'{"b":2}']),
        (b' {"a":"\xc3\xa9"} \n', [b' {"a":"\xc3\xa9"} ']),
        (b"\xff\xfe\n{}\n", [b"\xff\xfe", b"{}"]),
        ('{"a":"\u2028\x0b\x0c\x85"}\n'.encode(), ['{"a":"\u2028\x0b\x0c\x85"}'.encode()]),
    ],
    ids=["CRLF", "blank lines", "spaces around", "no UTF-8", "only a line feed ends a line"],
)
async def test_what_a_line_is(data: bytes, frames: list[bytes]) -> None:
    assert await read_bytes(data) == (frames, 1000)


@given(st.lists(st.binary(max_size=6) | st.sampled_from([b"\n", b"\r\n", b"{}\n", b"\xe6\xbc", b"\xa2"]), max_size=20))
async def test_where_reads_end_does_not_matter(chunks: list[bytes]) -> None:
    """Whatever the kernel cuts the bytes into, in characters and in line ends too, the lines are the same."""
    data = b"".join(chunks)
    *lines, rest = (line.removesuffix(b"\r") for line in data.split(b"\n"))
    expected = [line for line in lines if line.strip()], 1006 if rest.strip() else 1000

    async def feed(far: trio.testing.MemorySendStream) -> None:
        for chunk in filter(None, chunks):
            await far.send_all(chunk)
            await trio.testing.wait_all_tasks_blocked()
        await far.aclose()

    far, transport, _ = open_lines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, far)
        frames, closed = await read_all(transport)
    assert (frames, closed.code) == expected
    assert await read_bytes(data) == expected


@pytest.mark.requirement("T04")
async def test_a_cancelled_receive_keeps_the_half_of_a_line_and_a_close_ends_one() -> None:
    far, transport, _ = open_lines()
    for piece in (b'{"text":"\xe6', b"\xbc", b'\xa2"'):
        await far.send_all(piece)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(transport.receive)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
    await far.send_all(b"}\n")
    assert await transport.receive() == ['{"text":"漢"}'.encode()]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_all, transport)
        await trio.testing.wait_all_tasks_blocked()
        await transport.aclose()


# --- bounds -----------------------------------------------------------------------------------------


class Endless(trio.abc.ReceiveStream):
    """A line that never ends."""

    def __init__(self) -> None:
        self.given = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        assert max_bytes is not None
        self.given += max_bytes
        return b"x" * max_bytes

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.requirement("P4.4", "T03")
async def test_of_a_line_that_is_too_long_no_more_is_read_than_shows_it() -> None:
    endless = Endless()
    outgoing, _ = trio.testing.memory_stream_one_way_pair()
    transport = LineTransport(endless, outgoing, receive_bytes=MIB, description="lines")
    for _ in range(3):
        with pytest.raises(TransportClosedError, match="longer than 1048576 bytes") as caught:
            await transport.receive()
        assert (caught.value.code, caught.value.can_send) == (1009, True)
    assert MIB < endless.given <= MIB + 64 * 1024
    assert len(transport._rest) == 0


@pytest.mark.requirement("P4.4", "T03")
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
async def test_a_line_of_a_mebibyte_arrives_whole_and_one_byte_more_does_not(end: bytes) -> None:
    line = b'{"x":"' + b"x" * (MIB - 8) + b'"}'
    assert await read_bytes(b"{}\n" + line + end + b"[]\n", receive_bytes=MIB) == ([b"{}", line, b"[]"], 1000)
    assert await read_bytes(b"{}\n" + line + b" " + end + b"[]\n", receive_bytes=MIB) == ([b"{}"], 1009)
    # It is told as soon as it shows, not at the line's end.
    far, transport, _ = open_lines(receive_bytes=10)
    await far.send_all(b"{}\n" + b"x" * 10 + b"\r")
    assert await transport.receive() == [b"{}"]
    await far.send_all(b"\r")
    _, closed = await read_all(transport)
    assert closed.code == 1009


@asynccontextmanager
async def open_raw(script: Script) -> AsyncGenerator[RawClient, None]:
    """A raw client of a runtime, line by line."""
    there, their_side = trio.testing.memory_stream_one_way_pair()
    answers, here = trio.testing.memory_stream_one_way_pair()
    theirs = LineTransport(their_side, answers, receive_bytes=1000, description="server")
    ours = LineTransport(here, there, receive_bytes=MIB, description="client")
    async with arcp_trio.open_runtime(script.agents) as runtime, trio.open_nursery() as nursery:

        async def serve() -> None:
            await runtime.serve_transport(theirs, principal="me")

        nursery.start_soon(serve)
        yield RawClient(ours)
        await ours.abort()


async def shake_hands(raw: RawClient) -> None:
    await raw.send(make_hello())
    assert (await raw.receive())["type"] == "session.welcome"


@pytest.mark.requirement("P4.4", "T03")
@pytest.mark.parametrize("has_session", [True, False])
async def test_the_peer_is_told_that_its_line_was_too_long(script: Script, has_session: bool) -> None:
    """Behind the answers to what came before it."""
    with trio.fail_after(20):
        async with open_raw(script) as raw:
            if has_session:
                await shake_hands(raw)
                await raw.send(raw.make("session.ping", {"nonce": "before"}))
            await raw.send_text(b"x" * 2000)
            await raw.receive_until(lambda frame: frame["type"] == "session.error")
            payload = raw.received[-1]["payload"]
            assert (payload["code"], payload["details"]) == ("INVALID_REQUEST", {"limit": "receive_bytes"})
            assert payload["message"] == "a line is longer than 1000 bytes"
            types = [frame["type"] for frame in raw.received]
            assert types == (["session.welcome", "session.pong", "session.error"] if has_session else ["session.error"])
            with pytest.raises(TransportClosedError):
                await raw.receive()


@pytest.mark.requirement("P5.5", "T01")
async def test_a_line_that_is_no_frame_is_answered_and_the_next_one_works(script: Script) -> None:
    with trio.fail_after(20):
        async with open_raw(script) as raw:
            await shake_hands(raw)
            for number, text in zip(count(), (b"stray text", b'{"id":"\xff\xfe"}', b'{"half":'), strict=False):
                await raw.send_text(text)
                await raw.receive_until(lambda frame: frame["type"] == "session.error")
                assert raw.received[-1]["payload"]["code"] == "INVALID_REQUEST"
                await raw.send(raw.make("session.ping", {"nonce": f"n{number}"}))
                await raw.receive_until(lambda frame: frame["type"] == "session.pong")


@pytest.mark.requirement("P14.2")
async def test_text_that_cannot_be_a_frame_is_dropped_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="arcp_trio")
    far, transport, _ = open_lines(skips_text=True)
    await far.send_all(b'canary 1\n{"a":1}\n"canary"\n[canary]\n\xff{}\n  {"b":2}\n')
    assert await transport.receive() == [b'{"a":1}', b'  {"b":2}']
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 4
    assert messages[0] == "lines: ignored a line of 8 bytes that is no frame"
    await far.send_all(b'canary {"arcp":"1.1"}\n{}\n')
    assert await transport.receive() == [b"{}"]
    assert caplog.records[-1].levelno == logging.WARNING
    assert caplog.records[-1].getMessage() == "lines: a frame behind other text on its line was lost"
    assert "canary" not in caplog.text


# --- writing and ending -----------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [b"", b" ", b'{"a":\n1}', b'{"a":\r1}', b"{}\r", b"{}\n"])
async def test_what_is_no_line_is_refused_and_nothing_of_its_batch_is_written(frame: bytes) -> None:
    _, transport, far = open_lines()
    with pytest.raises(ValueError, match="line break"):
        await transport.send([b'{"before":1}', frame])
    await transport.send([b'{"after":1}'])
    assert await far.receive_some() == b'{"after":1}\n'


async def test_many_frames_are_one_write() -> None:
    class Recorder(trio.abc.SendStream):
        def __init__(self) -> None:
            self.writes: list[bytes] = []

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            await trio.lowlevel.checkpoint()
            self.writes.append(bytes(data))

        async def wait_send_all_might_not_block(self) -> None:
            await trio.lowlevel.checkpoint()

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    _, incoming = trio.testing.memory_stream_one_way_pair()
    recorder = Recorder()
    transport = LineTransport(incoming, recorder, receive_bytes=1000, description="lines")
    await transport.send([b'{"n":%d}' % number for number in range(64)])
    assert recorder.writes == [b"".join(b'{"n":%d}\n' % number for number in range(64))]


async def test_when_the_other_end_has_said_all_it_can_still_be_answered() -> None:
    far_send, transport, far_receive = open_lines()
    await far_send.send_all(b"{}\n")
    await far_send.aclose()
    frames, closed = await read_all(transport)
    assert (frames, closed.code, closed.can_send) == ([b"{}"], 1000, True)
    await transport.send([b"[]"])
    assert await far_receive.receive_some() == b"[]\n"
    await transport.aclose(1001, "bye")
    _, closed = await read_all(transport)
    assert (closed.code, closed.can_send) == (1000, False)
    with pytest.raises(TransportClosedError, match="code 1001: bye"):
        await transport.send([b"[]"])


async def test_what_was_said_before_the_other_end_broke_is_still_read() -> None:
    """A peer that refuses us and leaves: our write fails, and its reason is in the pipe."""
    far_send, transport, far_receive = open_lines()
    await far_send.send_all(b'{"why":1}\n')
    await far_receive.aclose()
    with pytest.raises(TransportClosedError, match="cannot be written"):
        await transport.send([b"{}"])
    assert await transport.receive() == [b'{"why":1}']
