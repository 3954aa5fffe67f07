"""The engine on the library websockets: the names of it that we use, and what is this engine's own.

``WebSocketsTransport`` frames texts by itself and reads the protocol's attributes. If one of the tests of the library
fails after an update, ``arcp_trio/transports/engine_websockets.py`` is to be mended, or the library's version pinned.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from transport_pairs import WatchedStream
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State
from wsproto.utilities import generate_accept_token

from arcp_trio.transports import engine_websockets
from arcp_trio.transports.base import Transport, TransportClosedError
from arcp_trio.transports.engine_websockets import WebSocketsTransport, accept_websocket, connect_websocket

LIMIT = 1000
UPGRADE = (
    b"GET /arcp HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
)
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: " + generate_accept_token(base64.b64encode(bytes(16))) + b"\r\n\r\n"
)


def masked(head: int, data: bytes = b"") -> bytes:
    """Return a frame as a client sends it, with a mask that changes nothing."""
    return bytes((head, 0x80 | len(data), 0, 0, 0, 0)) + data


def text(data: bytes) -> bytes:
    return masked(0x81, data)


class Peer:
    """The other end of a server's transport: bytes, as they are."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._received = bytearray()
        self.ended = False

    async def run(self) -> None:
        """Read all that comes."""
        while data := await self._stream.receive_some():
            self._received += data
        self.ended = True

    async def send(self, *frames: bytes) -> None:
        """Send, and let the server see it."""
        await self._stream.send_all(b"".join(frames))
        await trio.testing.wait_all_tasks_blocked()

    async def receive(self) -> bytes:
        """Return what has come, without waiting for more."""
        await trio.testing.wait_all_tasks_blocked()
        received = bytes(self._received)
        self._received.clear()
        return received


@asynccontextmanager
async def open_server(behind: bytes = b"") -> AsyncGenerator[tuple[WebSocketsTransport, Peer, WatchedStream], None]:
    """Yield a server's transport, the peer that has been upgraded, and the stream below the transport."""
    near, far = trio.testing.memory_stream_pair()
    watched = WatchedStream(near)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await far.send_all(UPGRADE + behind)
            request = await accept_websocket(nursery, watched, receive_bytes=LIMIT, description="peer")
            transport = await request.accept()
            assert isinstance(transport, WebSocketsTransport)
            assert await far.receive_some() == SWITCHING
            watched.writes.clear()
            peer = Peer(far)
            nursery.start_soon(peer.run)
            yield transport, peer, watched
            nursery.cancel_scope.cancel()


async def receive_nothing(transport: Transport) -> None:
    """Have a receive wait, and cancel it."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.receive)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def read(transport: Transport) -> tuple[list[bytes | str], TransportClosedError]:
    """Receive to the end."""
    frames: list[bytes | str] = []
    with trio.fail_after(30):
        while True:
            try:
                frames += await transport.receive()
            except TransportClosedError as exc:
                return frames, exc


# --- the library --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 255, 256, 65_535, 65_536, 70_000])
def test_our_frames_are_the_librarys(size: int) -> None:
    protocol = Protocol(Side.SERVER)
    protocol.send_text(b"x" * size)
    ours = engine_websockets._frame_texts([b"x" * size, b"{}"])
    assert ours == b"".join(protocol.data_to_send()) + b"\x81\x02{}"
    assert ours.startswith(Frame(Opcode.TEXT, b"x" * size).serialize(mask=False))


@pytest.mark.parametrize("side", list(Side))
def test_a_protocol_begins_open_and_gives_one_item_for_each_frame(side: Side) -> None:
    protocol = Protocol(side, max_size=LIMIT)
    assert protocol.state is State.OPEN
    other = Protocol(Side.CLIENT if side is Side.SERVER else Side.SERVER)
    for number in range(3):
        other.send_text(b"%d" % number)
        other.send_ping(b"%d" % number)
    sent = other.data_to_send()
    assert len(sent) == 6
    protocol.receive_data(b"".join(sent))
    frames = protocol.events_received()
    assert [(type(frame), frame.opcode, bytes(frame.data)) for frame in frames if isinstance(frame, Frame)] == [
        (Frame, opcode, b"%d" % number) for number in range(3) for opcode in (Opcode.TEXT, Opcode.PING)
    ]
    pongs = protocol.data_to_send()
    assert [pong[:1] for pong in pongs] == [engine_websockets._PONG_HEAD] * 3
    assert (protocol.close_rcvd, protocol.close_sent) == (None, None)
    protocol.fail(1007, "why")
    assert protocol.close_sent is not None
    assert (protocol.close_sent.code, protocol.close_sent.reason) == (1007, "why")
    # A server's protocol wants the stream half-closed, with an item that is empty.
    assert [bool(data) for data in protocol.data_to_send()] == [True, False][: 2 if side is Side.SERVER else 1]


def test_a_close_is_answered_and_kept() -> None:
    protocol = Protocol(Side.CLIENT)
    protocol.receive_data(b"\x88\x05\x0f\xa1bye")
    assert protocol.close_rcvd is not None
    assert (protocol.close_rcvd.code, protocol.close_rcvd.reason) == (4001, "bye")
    (answer,) = protocol.data_to_send()
    assert answer[0] == 0x88
    assert protocol.close_sent is not None


@pytest.mark.requirement("P4.4")
def test_what_is_too_large_is_refused_by_its_head_alone() -> None:
    protocol = Protocol(Side.SERVER, max_size=LIMIT)
    protocol.receive_data(b"\x81\xfe" + (LIMIT + 1).to_bytes(2, "big"))
    assert protocol.close_sent is not None
    assert protocol.close_sent.code == 1009


# --- reading ------------------------------------------------------------------------------------------


@pytest.mark.requirement("P4.1")
async def test_messages_that_came_together_are_returned_together() -> None:
    async with open_server() as (transport, peer, _):
        await peer.send(*(text(b"%d" % number) for number in range(100)))
        assert list(await transport.receive()) == [str(number) for number in range(100)]


@pytest.mark.requirement("P4.1", "T04")
async def test_bytes_that_come_one_by_one() -> None:
    near, far = trio.testing.memory_stream_pair()
    frames: list[bytes | str] = []
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            request = await accept_websocket(nursery, near, receive_bytes=LIMIT, description="peer")
            transport = await request.accept()
            while len(frames) < 2:
                frames.extend(await transport.receive())

        with trio.fail_after(30):
            nursery.start_soon(serve)
            for byte in UPGRADE + text(b"{}") + text("é".encode()):
                await far.send_all(bytes((byte,)))
                await trio.lowlevel.checkpoint()
            while len(frames) < 2:
                await trio.lowlevel.checkpoint()
    assert frames == ["{}", "é"]


async def test_what_a_client_sends_behind_its_upgrade_is_read() -> None:
    """It should wait for the answer. Where it does not, nothing of it is lost."""
    async with open_server(text(b"{}") + text(b"[]")[:3]) as (transport, peer, _):
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.receive()
        assert list(await transport.receive()) == ["{}"]
        await peer.send(text(b"[]")[3:])
        assert list(await transport.receive()) == ["[]"]


@pytest.mark.parametrize("cut", [1, 2, 60, len(SWITCHING) - 2, len(SWITCHING) - 1, len(SWITCHING), len(SWITCHING) + 3])
async def test_what_a_server_sends_behind_its_101_is_read(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is cut into packets."""
    monkeypatch.setattr("wsproto.handshake.generate_nonce", lambda: base64.b64encode(bytes(16)))
    near, far = trio.testing.memory_stream_pair()
    sent = SWITCHING + b"\x81\x02{}\x81\x02[]"
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                while not (await far.receive_some()).endswith(b"\r\n\r\n"):
                    pass
                await far.send_all(sent[:cut])
                await trio.testing.wait_all_tasks_blocked()
                await far.send_all(sent[cut:])

            nursery.start_soon(serve)
            options = {"receive_bytes": LIMIT, "description": "peer"}
            transport = await connect_websocket(nursery, near, "localhost", "/arcp", **options)  # type: ignore[arg-type]
            assert isinstance(transport, WebSocketsTransport)
            frames: list[bytes | str] = []
            while len(frames) < 2:
                frames += await transport.receive()
            assert frames == ["{}", "[]"]


@pytest.mark.requirement("P4.1", "P4.4")
async def test_fragments_are_joined_and_empty_ones_take_no_room() -> None:
    async with open_server() as (transport, peer, _):
        await peer.send(masked(0x01, b'{"\xc3'), masked(0x89, b"between"), *[masked(0x00)] * 500, masked(0x00, b"\xa9"))
        await receive_nothing(transport)
        assert transport._message == b'{"\xc3\xa9'
        await peer.send(*[masked(0x00)] * 500, masked(0x80, b'":1}'), text(b"[]"))
        assert list(await transport.receive()) == ['{"é":1}', "[]"]
        assert transport._message is None
        await peer.send(masked(0x01), masked(0x80))
        assert list(await transport.receive()) == [""]


@pytest.mark.requirement("P4.5", "T10")
@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ([text(b"\xff")], 1007),
        ([masked(0x01, b"\xc3"), masked(0x80, b"(")], 1007),
        ([masked(0x01, b"x" * 100), masked(0x00, b"x" * 100)] + [masked(0x00, b"x" * 100)] * 9, 1009),
        ([b"\x81\x02{}"], 1002),
        ([masked(0xC1, b"{}")], 1002),
        ([masked(0x83, b"{}")], 1002),
        ([masked(0x80, b"{}")], 1002),
        ([masked(0x01, b"{}"), text(b"{}")], 1002),
        ([masked(0x09)], 1002),
        ([masked(0x88, b"\x03")], 1002),
        ([masked(0x88, b"\x03\xee")], 1002),
    ],
    ids=lambda value: "",
)
async def test_what_breaks_the_protocol_is_told_so_behind_what_came_before(bad: list[bytes], code: int) -> None:
    """And the connection is closed: a peer in the middle of a long frame does not wait for us to read it."""
    async with open_server() as (transport, peer, _):
        await peer.send(text(b"{}"), *bad, text(b"[]"))
        frames, closed = await read(transport)
        assert frames == ["{}"]
        assert closed.code == code
        assert not closed.can_send
        answer = await peer.receive()
        assert answer[0] == 0x88
        assert int.from_bytes(answer[2:4], "big") == code
        assert answer[4:].decode() == closed.reason
        assert peer.ended


@pytest.mark.requirement("P4.1", "P4.5", "T10")
async def test_a_binary_message_closes_with_1003_behind_what_came_before_it() -> None:
    async with open_server() as (transport, peer, _), trio.open_nursery() as nursery:
        await peer.send(text(b"{}"), masked(0x02, b"bin"), masked(0x80, b"\xff"), text(b"[]"))
        assert list(await transport.receive()) == ["{}"]
        for _ in range(2):
            with pytest.raises(TransportClosedError) as caught:
                await transport.receive()
            assert (caught.value.code, caught.value.can_send) == (1003, True)
        # The answers to what came before may go out first; then whoever owns the transport closes it.
        await transport.send([b"[1]"])
        nursery.start_soon(transport.aclose)
        received = await peer.receive()
        assert received.startswith(b"\x81\x03[1]\x88")
        assert b"\x03\xebARCP frames are text" in received
        await peer.send(text(b"\xff"), masked(0x88, b"\x03\xeb"))
    assert (await read(transport))[1].code == 1003


# --- answers ------------------------------------------------------------------------------------------


@pytest.mark.requirement("Z02")
async def test_pings_are_answered_between_frames_and_of_many_that_wait_the_newest() -> None:
    async with open_server() as (transport, peer, watched), trio.open_nursery() as nursery:
        nursery.start_soon(read, transport)
        await peer.send(masked(0x89, b"1"))
        assert await peer.receive() == b"\x8a\x011"
        watched.writes.clear()
        watched.gate = trio.Event()
        nursery.start_soon(transport.send, [b"{}", b"[]"])
        await trio.testing.wait_all_tasks_blocked()
        for number in range(100):
            await peer.send(masked(0x89, b"%d" % number))
        assert watched.writes == [b"\x81\x02{}\x81\x02[]"], "a pong was written while a write was under way"
        nursery.start_soon(transport.send, [b"1"])
        await trio.testing.wait_all_tasks_blocked()
        watched.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert watched.writes[1:] == [b"\x8a\x0299", b"\x81\x011"]
        nursery.cancel_scope.cancel()


@pytest.mark.requirement("Z02", "K05")
async def test_reading_goes_on_while_an_answer_cannot_be_written() -> None:
    async with open_server() as (transport, peer, watched):
        watched.gate = trio.Event()
        for number in range(10):
            await peer.send(masked(0x89, b"%d" % number), text(b"%d" % number))
            assert list(await transport.receive()) == [str(number)]
        await trio.testing.wait_all_tasks_blocked()
        assert watched.writes == [b"\x8a\x010"]
        # A close is believed when the answer to it is out: who is told of it may abort.
        await peer.send(text(b"{}"), masked(0x88, b"\x03\xe8"))
        assert list(await transport.receive()) == ["{}"]
        await receive_nothing(transport)
        with pytest.raises(TransportClosedError):
            await transport.send([b"[]"])
        watched.gate.set()
        assert (await read(transport))[1].code == 1000
        assert await peer.receive() == b"\x8a\x010\x8a\x019\x88\x02\x03\xe8"


@pytest.mark.requirement("Z12", "H09")
@pytest.mark.parametrize("frame", [masked(0x89), masked(0x88, b"\x03\xe8"), b"\xff\xff"])
async def test_an_answer_that_makes_no_progress_is_given_up(
    frame: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    near, far = trio.testing.memory_stream_pair()
    watched = WatchedStream(near)
    async with trio.open_nursery() as nursery:
        options = {"early": b"", "receive_bytes": LIMIT, "description": "peer"}
        transport = WebSocketsTransport(nursery, watched, Side.SERVER, **options)  # type: ignore[arg-type]
        watched.gate = trio.Event()
        await far.send_all(frame)
        started = trio.current_time()
        with pytest.raises(TransportClosedError):
            await transport.receive()
        assert trio.current_time() - started == pytest.approx(60)
        with pytest.raises(TransportClosedError):
            await transport.send([b"{}"])
        with pytest.raises(trio.BrokenResourceError):
            await far.send_all(b"x")


@pytest.mark.requirement("H09")
async def test_nothing_is_written_behind_half_a_frame() -> None:
    async with open_server() as (transport, peer, watched), trio.open_nursery() as nursery:
        watched.gate = trio.Event()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as sending:
                sending.start_soon(transport.send, [b"{}"])
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        watched.gate.set()
        nursery.start_soon(read, transport)
        await peer.send(masked(0x89), text(b"{}"))
        for _ in range(2):
            with trio.testing.assert_checkpoints(), pytest.raises(TransportClosedError):
                await transport.send([b"[]"])
        await transport.aclose(4001, "a close either")
        assert watched.writes == [b"\x81\x02{}"]


# --- ending -------------------------------------------------------------------------------------------


@pytest.mark.requirement("P4.5", "K05")
async def test_a_close_waits_for_the_frames_that_go_before_it_and_the_first_counts() -> None:
    async with open_server() as (transport, peer, watched), trio.open_nursery() as nursery:
        watched.gate = trio.Event()
        for step in (
            lambda: transport.send([b"1"]),
            lambda: transport.send([b"2"]),
            lambda: transport.aclose(4001, "too slow"),
            lambda: transport.aclose(1011, "too late"),
        ):
            nursery.start_soon(step)
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TransportClosedError):
            await transport.send([b"3"])
        await peer.send(masked(0x89))
        watched.gate.set()
        assert await peer.receive() == b"\x81\x011\x81\x012\x88\x0a\x0f\xa1too slow"
        await peer.send(masked(0x88, b"\x0f\xa1too slow"))


@pytest.mark.requirement("P4.5", "K05")
@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_close_reads_for_the_answer_when_nobody_else_does(cancelled: bool) -> None:
    """Who receives reads for it until something comes, or he is cancelled; then the close does."""
    async with open_server() as (transport, peer, _), trio.open_nursery() as nursery:
        receiving = trio.CancelScope()
        caught: list[TransportClosedError] = []

        async def receive() -> None:
            with receiving:
                caught.append((await read(transport))[1])

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(transport.aclose, 4001)
        await trio.testing.wait_all_tasks_blocked()
        if cancelled:
            receiving.cancel()
        else:
            await peer.send(text(b"{}"))
        await peer.send(text(b"[]"), masked(0x88, b"\x0f\xa1"))
        assert await peer.receive() == b"\x88\x02\x0f\xa1"
        assert [exc.code for exc in caught] == ([] if cancelled else [4001])
        assert peer.ended


@pytest.mark.parametrize(("code", "sent"), [(1006, 1000), (1005, 1000), (1015, 1000), (1013, 1013), (4002, 4002)])
async def test_a_code_that_is_never_sent_is_none(code: int, sent: int) -> None:
    async with open_server() as (transport, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(transport.aclose, code)
        assert await peer.receive() == b"\x88\x02" + sent.to_bytes(2, "big")
        await peer.send(masked(0x88, sent.to_bytes(2, "big")))


@pytest.mark.requirement("P14.2", "C07")
async def test_frames_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The library would, at DEBUG: a hello has the token."""
    caplog.set_level(logging.DEBUG)
    async with open_server() as (transport, peer, _), trio.open_nursery() as nursery:
        await peer.send(text(b"hunter2"))
        assert list(await transport.receive()) == ["hunter2"]
        await transport.send([b"hunter2"])
        nursery.start_soon(transport.aclose)
        await peer.send(masked(0x88, b"\x03\xe8"))
    assert "hunter2" not in caplog.text
    assert [record for record in caplog.records if record.name.startswith("websockets")] == []
