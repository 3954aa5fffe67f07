"""How every transport ends: closes and aborts from either side, at once, under load; over the pairs of the contract."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import transport_pairs as pairs
import trio
import trio.testing

from arcp_trio.transports.base import Transport, TransportClosedError

pytestmark = pytest.mark.requirement("P4.1", "P4.2", "P4.3")

LARGE = b'{"x":"' + b"x" * 100_000 + b'"}'


@pytest.fixture(params=list(pairs.PAIRS))
def open_pair(request: pytest.FixtureRequest) -> Any:
    return pairs.PAIRS[request.param]


async def read_to_the_end(transport: Transport) -> tuple[list[str], TransportClosedError]:
    frames: list[str] = []
    with trio.fail_after(30):
        while True:
            try:
                received = await transport.receive()
            except TransportClosedError as exc:
                return frames, exc
            frames += [frame if isinstance(frame, str) else frame.decode() for frame in received]


async def expect_closed(function: Callable[..., Awaitable[object]], *args: Any) -> None:
    with pytest.raises(TransportClosedError):
        await function(*args)


async def fill(transport: Transport) -> None:
    """Send until the other end, which does not read, stops it."""
    while True:
        await transport.send([LARGE] * 5)


@pytest.mark.parametrize("text", ["", "0", '"\\u0000"', "\x7f", '"\U0001f600\U00010348é漢"', " " * 5000])
async def test_any_text_passes(open_pair: Any, text: str) -> None:
    async with open_pair() as (left, right), trio.open_nursery() as nursery:
        texts = ["[]", text, "{}"]
        if not pairs.takes(open_pair, text):
            with pytest.raises(ValueError, match="not blank"):
                await left.send([text.encode()])
            texts.remove(text)
        await left.send([text.encode() for text in texts])
        nursery.start_soon(left.aclose)
        frames, _ = await read_to_the_end(right)
        assert frames == texts


async def test_both_directions_at_once(open_pair: Any) -> None:
    """Each end sends more than all the buffers between them hold: neither may wait for the other's reader."""
    async with open_pair() as (left, right):
        received: dict[str, int] = {"left": 0, "right": 0}

        async def send(transport: Transport) -> None:
            for _ in range(30):
                await transport.send([LARGE] * 10)

        async def receive(name: str, transport: Transport) -> None:
            while received[name] < 300:
                received[name] += len(await transport.receive())

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for name, transport in (("left", left), ("right", right)):
                    nursery.start_soon(send, transport)
                    nursery.start_soon(receive, name, transport)
        assert received == {"left": 300, "right": 300}


@pytest.mark.requirement("P4.5", "K05")
async def test_a_close_in_the_middle_of_everything(open_pair: Any) -> None:
    """A receive, a send and a close in three tasks: what was sent is read, in order, then the code."""
    for after in range(0, 40, 4):
        async with open_pair() as (left, right), trio.open_nursery() as nursery:
            sent = 0
            read: list[str] = []

            async def send(transport: Transport = left) -> None:
                nonlocal sent
                with pytest.raises(TransportClosedError):
                    while True:
                        await transport.send([b'{"n":%d}' % sent, b'{"n":%d}' % (sent + 1)])
                        sent += 2

            async def flood(transport: Transport = right) -> None:
                with pytest.raises(TransportClosedError):
                    while True:
                        await transport.send([b"{}"] * 3)

            async def close(turns: int = after, transport: Transport = left) -> None:
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                await transport.aclose(4001, "enough")

            nursery.start_soon(send)
            nursery.start_soon(flood)
            nursery.start_soon(read_to_the_end, left)
            nursery.start_soon(close)
            read, closed = await read_to_the_end(right)
            assert pairs.says(closed, 4001, "enough")
            assert read == [f'{{"n":{number}}}' for number in range(len(read))]
            # What send() has returned for was read; the send that raised may have come through or not.
            assert len(read) in (sent, sent + 2)


async def test_a_receive_ends_when_its_own_end_closes(open_pair: Any) -> None:
    for end in ("aclose", "abort"):
        async with open_pair() as (left, right), trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed, left.receive)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(30):
                nursery.start_soon(read_to_the_end, right)
                await getattr(left, end)()


async def test_a_blocked_send_ends_when_its_own_end_aborts(open_pair: Any) -> None:
    async with open_pair() as (left, right):
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_closed, fill, left)
                await trio.testing.wait_all_tasks_blocked(0.01)
                await left.abort()
        frames, closed = await read_to_the_end(right)
        assert set(frames) <= {LARGE.decode()}
        assert closed.code == 1006


async def test_a_blocked_send_ends_when_the_other_end_aborts(open_pair: Any) -> None:
    async with open_pair() as (left, right):
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_closed, fill, left)
                await trio.testing.wait_all_tasks_blocked(0.01)
                await right.abort()
        await expect_closed(left.receive)
        await expect_closed(right.send, [b"{}"])


async def test_a_close_that_gets_no_answer_is_cancelled(open_pair: Any) -> None:
    """The other end neither reads nor answers: cancelled, the close leaves a broken connection and no half frame."""
    async with open_pair() as (left, right):
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_closed, fill, left)
                await trio.testing.wait_all_tasks_blocked(0.01)
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as closing:
                        closing.start_soon(left.aclose, 1001, "bye")
                        await trio.testing.wait_all_tasks_blocked(0.01)
                        scope.cancel()
        await expect_closed(left.send, [b"{}"])
        frames, closed = await read_to_the_end(right)
        assert set(frames) <= {LARGE.decode()}
        assert closed.code in (1001, 1006)


@pytest.mark.requirement("P4.5")
@pytest.mark.parametrize("reason", ["x" * 500, "é" * 100, "a" + "漢" * 60, "\U0001f600" * 40])
async def test_a_long_reason_is_cut_between_characters(open_pair: Any, reason: str) -> None:
    async with open_pair() as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(left.aclose, 4001, reason)
        _, closed = await read_to_the_end(right)
        assert pairs.says(closed, 4001)
        if closed.code == 4001:
            assert reason.startswith(closed.reason)
            assert len(closed.reason.encode()) > 100


async def test_the_first_of_several_closes_counts(open_pair: Any) -> None:
    async with open_pair() as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(left.aclose, 4001, "first")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(left.aclose, 1011, "second")
        _, closed = await read_to_the_end(right)
        assert pairs.says(closed, 4001, "first")
        with trio.fail_after(30):
            await right.aclose(1000, "third")
            await left.aclose(1000, "fourth")


@pytest.mark.requirement("Z04")
async def test_an_abort_behind_a_close_takes_nothing_back(open_pair: Any) -> None:
    # All of it fits in between: a pipe holds 64 KiB.
    middle = LARGE[:40_000] + b'"}'
    async with open_pair() as (left, right):

        async def end() -> None:
            await left.send([b"{}", middle, b"[]"])
            with trio.move_on_after(0.05):
                # Not longer: where the other end has to answer it may not have been read yet.
                await left.aclose(1001, "bye")
            await left.abort()

        await end()
        frames, closed = await read_to_the_end(right)
        assert frames == ["{}", middle.decode(), "[]"]
        assert pairs.says(closed, 1001, "bye")


@pytest.mark.parametrize("first", ["aclose", "abort"])
async def test_after_an_end_everything_is_harmless_and_a_checkpoint(open_pair: Any, first: str) -> None:
    async with open_pair() as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(read_to_the_end, right)
        with trio.fail_after(30):
            await getattr(left, first)()
            for _ in range(2):
                for transport in (left, right):
                    # Part of every cleanup, so no checkpoint: it is done, whatever was cancelled.
                    await transport.abort()
                    with trio.testing.assert_checkpoints():
                        await expect_closed(transport.send, [b"{}"])
                    with trio.testing.assert_checkpoints():
                        await expect_closed(transport.receive)
                    with trio.testing.assert_checkpoints():
                        await transport.aclose(1011, "late")


@pytest.mark.parametrize("operation", ["receive", "send", "aclose"])
async def test_every_operation_can_be_cancelled_at_its_start(open_pair: Any, operation: str) -> None:
    async with open_pair() as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(read_to_the_end, right)
        with trio.CancelScope() as scope:
            scope.cancel()
            await getattr(left, operation)(*([[b"{}"]] if operation == "send" else []))
        assert scope.cancelled_caught
        await left.abort()


async def test_an_abort_is_done_even_where_everything_is_cancelled(open_pair: Any) -> None:
    async with open_pair() as (left, right):
        with trio.CancelScope() as scope:
            scope.cancel()
            await left.abort()
            # It does not raise, so that what a cleanup does behind it is done too.
            aborted = True
        assert aborted
        _, closed = await read_to_the_end(right)
        assert pairs.says(closed, 1006)
