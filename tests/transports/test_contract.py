"""What every transport keeps: one suite, run over each pair of tests/transport_pairs.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import transport_pairs as pairs
import trio
import trio.testing

from arcp_trio.transports.base import Transport, TransportClosedError

pytestmark = pytest.mark.requirement("P4.1", "P4.2", "P4.3")


@pytest.fixture(params=list(pairs.PAIRS))
def open_pair(request: pytest.FixtureRequest) -> Any:
    return pairs.PAIRS[request.param]


def text_of(frame: bytes | str) -> str:
    return frame if isinstance(frame, str) else frame.decode()


async def receive(transport: Transport, count: int) -> list[str]:
    """Receive at least ``count`` frames."""
    frames: list[str] = []
    with trio.fail_after(30):
        while len(frames) < count:
            frames += [text_of(frame) for frame in await transport.receive()]
    return frames


async def receive_close(transport: Transport) -> tuple[list[str], TransportClosedError]:
    """Receive to the end; return the frames and how it closed."""
    frames: list[str] = []
    with trio.fail_after(30):
        while True:
            try:
                frames += [text_of(frame) for frame in await transport.receive()]
            except TransportClosedError as exc:
                return frames, exc


async def test_frames_arrive_in_order_and_as_they_were(open_pair: Any) -> None:
    texts = ["{}", '{"é":"\U0001f600"}', '{"a":"' + "x" * 1_000_000 + '"}', *(f'{{"n":{n}}}' for n in range(2000))]
    async with open_pair() as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(left.send, [text.encode() for text in texts])
        assert await receive(right, len(texts)) == texts
        nursery.start_soon(right.send, [b'{"back":1}'])
        assert await receive(left, 1) == ['{"back":1}']


async def test_a_batch_of_frames_and_many_sends_are_alike(open_pair: Any) -> None:
    async with open_pair() as (left, right), trio.open_nursery() as nursery:

        async def send_all() -> None:
            for start in range(0, 300, 3):
                await left.send([f'{{"n":{n}}}'.encode() for n in range(start, start + 3)])

        nursery.start_soon(send_all)
        assert await receive(right, 300) == [f'{{"n":{n}}}' for n in range(300)]


async def test_a_cancelled_receive_loses_nothing(open_pair: Any) -> None:
    async with open_pair() as (left, right):
        got: list[str] = []

        async def cancel(scope: trio.CancelScope, turns: int) -> None:
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        for number in range(120):
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    # Cancelled before, while and after frames come: a receive takes a few turns.
                    nursery.start_soon(left.send, [f'{{"n":{number}}}'.encode()])
                    if number % 3 == 0:
                        scope.cancel()
                    else:
                        nursery.start_soon(cancel, scope, number % 10)
                    got += [text_of(frame) for frame in await right.receive()]
        if len(got) < 120:
            got += await receive(right, 120 - len(got))
        assert got == [f'{{"n":{number}}}' for number in range(120)]


@pytest.mark.requirement("P4.5", "Z04", "T14")
async def test_what_was_sent_is_read_before_the_close(open_pair: Any) -> None:
    async with open_pair() as (left, right), trio.open_nursery() as nursery:
        await left.send([b'{"n":1}', b'{"n":2}'])
        nursery.start_soon(left.aclose, 4001, "too slow")
        frames, closed = await receive_close(right)
        assert frames == ['{"n":1}', '{"n":2}']
        assert pairs.says(closed, 4001, "too slow")


async def test_closed_is_closed(open_pair: Any) -> None:
    async with open_pair() as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(left.aclose)
        await receive_close(right)
        await right.aclose(1011, "not the first word")
        for transport in (left, right):
            await transport.aclose()
            for _ in range(2):
                with pytest.raises(TransportClosedError):
                    await transport.send([b"{}"])
                with pytest.raises(TransportClosedError):
                    await transport.receive()
            await transport.abort()
            await transport.abort()
            await transport.aclose()


async def test_both_ends_may_close_at_once(open_pair: Any) -> None:
    async with open_pair() as (left, right):
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(left.aclose, 1000, "left")
                nursery.start_soon(right.aclose, 1001, "right")


@pytest.mark.requirement("P4.5")
async def test_an_abort_is_an_abnormal_end(open_pair: Any) -> None:
    async with open_pair() as (left, right), trio.open_nursery() as nursery:

        async def abort() -> None:
            await trio.testing.wait_all_tasks_blocked()
            await left.abort()

        nursery.start_soon(abort)
        frames, closed = await receive_close(right)
        assert frames == []
        assert pairs.says(closed, 1006)
        with pytest.raises(TransportClosedError):
            await left.receive()


@pytest.mark.requirement("P4.4", "T03")
async def test_a_frame_over_the_limit_closes(open_pair: Any) -> None:
    async with open_pair() as (left, right), trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(TransportClosedError):
                await left.send([b'"' + b"x" * pairs.LIMIT + b'"'])
                while True:
                    await left.send([b"{}"])
                    await trio.lowlevel.checkpoint()

        nursery.start_soon(send)
        _, closed = await receive_close(right)
        assert closed.code == 1009
        if closed.can_send:
            # Where no close code tells the peer, whoever reads may want to, and closes then.
            await right.aclose(closed.code, closed.reason)
        _, closed = await receive_close(left)
        assert pairs.says(closed, 1006) or closed.code == 1009


async def test_a_frame_at_the_limit_passes(open_pair: Any) -> None:
    async with open_pair() as (left, right), trio.open_nursery() as nursery:
        text = '"' + "x" * (pairs.LIMIT - 2) + '"'
        nursery.start_soon(left.send, [text.encode()])
        assert await receive(right, 1) == [text]


@pytest.mark.requirement("H09")
async def test_after_a_cancelled_send_only_an_abort_follows_and_no_half_frame_is_read(open_pair: Any) -> None:
    """The peer sees whole frames, then a broken connection."""
    frame = b'{"x":"' + b"x" * 100_000 + b'"}'
    async with open_pair() as (left, right):
        with trio.move_on_after(0.2) as scope:
            while True:
                # Nobody reads: this blocks in the middle of a frame.
                await left.send([frame] * 10)
        assert scope.cancelled_caught
        await left.abort()
        frames, closed = await receive_close(right)
        assert set(frames) <= {frame.decode()}
        assert closed.code == 1006


async def test_sending_waits_for_a_peer_that_does_not_read(open_pair: Any) -> None:
    """And goes on when it does: what is between the two is bounded."""
    frame = b'{"x":"' + b"x" * 100_000 + b'"}'
    sent = 0
    async with open_pair() as (left, right), trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal sent
            for _ in range(1000):
                await left.send([frame])
                sent += 1

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent < 1000
        await receive(right, 1000)


async def test_every_operation_is_a_checkpoint(open_pair: Any) -> None:
    async with open_pair() as (left, right):
        operations: list[Callable[[], Awaitable[object]]] = [
            lambda: left.send([b"{}"]),
            right.receive,
            lambda: left.send([]),
        ]
        for operation in operations:
            with trio.testing.assert_checkpoints():
                await operation()
        async with trio.open_nursery() as nursery:

            async def close() -> None:
                with trio.testing.assert_checkpoints():
                    await left.aclose()

            nursery.start_soon(close)
            await receive_close(right)
        for transport in (left, right):
            with trio.testing.assert_checkpoints(), pytest.raises(TransportClosedError):
                await transport.receive()
            with trio.testing.assert_checkpoints(), pytest.raises(TransportClosedError):
                await transport.send([b"{}"])
            with trio.testing.assert_checkpoints():
                await transport.aclose()


async def test_a_description_for_logs(open_pair: Any) -> None:
    async with open_pair() as (left, right):
        assert left.description
        assert right.description
