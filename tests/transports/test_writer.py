"""The one task that writes to a transport."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from arcp_trio.transports.base import TransportClosedError
from arcp_trio.transports.memory import MemoryTransport, open_memory_pair
from arcp_trio.transports.writer import FrameWriter


class Source:
    def __init__(self) -> None:
        self.ready: list[bytes] = []

    def take(self, limit: int) -> list[bytes]:
        taken, size = 0, 0
        while taken < len(self.ready) and size < limit:
            size += len(self.ready[taken])
            taken += 1
        frames, self.ready = self.ready[:taken], self.ready[taken:]
        return frames


class Recorder(MemoryTransport):
    """A memory transport that remembers what each send was given."""

    def __init__(self, transport: MemoryTransport) -> None:
        super().__init__(transport._incoming, transport._outgoing)
        self.sends: list[list[bytes]] = []
        self.aborted = False

    async def send(self, frames: Sequence[bytes]) -> None:
        self.sends.append(list(frames))
        await super().send(frames)

    async def abort(self) -> None:
        self.aborted = True
        await super().abort()


def make() -> tuple[FrameWriter, Source, Recorder, MemoryTransport]:
    near, far = open_memory_pair()
    recorder, source = Recorder(near), Source()
    return FrameWriter(recorder, source, batch_bytes=1000, write_seconds=60), source, recorder, far


async def test_what_is_ready_goes_out_together_and_no_more_than_a_batch() -> None:
    writer, source, transport, _ = make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        await trio.testing.wait_all_tasks_blocked()
        assert transport.sends == []
        source.ready = [b"x" * 100] * 25
        writer.wake()
        writer.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert [len(frames) for frames in transport.sends] == [10, 10, 5]
        nursery.cancel_scope.cancel()
    assert not transport.aborted


async def test_finish_writes_the_rest_and_returns() -> None:
    writer, source, transport, _ = make()
    source.ready = [b"{}"] * 3
    writer.finish()
    with trio.fail_after(5):
        await writer.run()
    assert transport.sends == [[b"{}"] * 3]
    async with trio.open_nursery() as nursery:
        other, _, _, _ = make()
        nursery.start_soon(other.run)
        await trio.testing.wait_all_tasks_blocked()
        other.finish()


@pytest.mark.requirement("H09")
async def test_a_write_without_progress_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    writer, source, transport, far = make()
    source.ready = [b"x" * 300_000, b"y" * 300_000]
    started = trio.current_time()
    with pytest.raises(TransportClosedError, match="no progress"):
        while True:
            source.ready += [b"x" * 300_000, b"y" * 300_000]
            writer.wake()
            await writer.run()
    assert trio.current_time() - started == pytest.approx(60)
    assert transport.aborted
    with pytest.raises(TransportClosedError) as caught:
        while True:
            await far.receive()
    assert caught.value.code == 1006


async def test_a_write_that_is_cancelled_aborts_the_transport(autojump_clock: trio.testing.MockClock) -> None:
    writer, source, transport, _ = make()
    source.ready = [b"x" * 300_000] * 5
    with trio.move_on_after(1) as scope:
        await writer.run()
    assert scope.cancelled_caught
    assert transport.aborted


async def test_a_writer_that_waits_is_cancelled_without_harm() -> None:
    writer, source, transport, _ = make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not transport.aborted
    source.ready = [b"{}"]
    writer.wake()
    writer.finish()
    await writer.run()
    assert transport.sends == [[b"{}"]]
