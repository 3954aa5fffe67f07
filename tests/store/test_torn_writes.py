"""The machine dies in the middle of a write: what is there is a beginning of what was appended, in whole batches."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import trio
from store.kit import DURABLE, PointHooks, accepted, dump, ended, event, open_store, opened, read_window, write

from arcp_trio.store.base import Store
from arcp_trio.store.writes import Batch, SessionAcknowledged, Write

BATCHES = 40


def batch(number: int) -> tuple[Write, ...]:
    """Return a batch that can be told from a part of it: a job, three events, its end, all in one session."""
    job_id, seq = f"job_{number:02}", 4 * number
    events = [event(job_id, n, ("sess_1", seq + n), content=random.Random(number).randbytes(700)) for n in (1, 2, 3)]
    acknowledged = SessionAcknowledged("sess_1", max(0, seq - 20))
    return accepted(job_id), *events, *ended(job_id, 4, ("sess_1", seq + 4)), acknowledged


async def whole_batches(store: Store) -> int:
    """Return how many batches are there; each is whole, and they are the first."""
    found = await dump(store)
    number = len(found["ended"])
    assert [job.job_id for job in found["ended"]] == [f"job_{each:02}" for each in range(number)]
    assert found["running"] == []
    assert all(len(history.events) == 3 for history in found["histories"].values())
    (session,) = found["sessions"]
    assert session.last_seq == 4 * number
    assert session.acked == max(0, 4 * (number - 1) - 20)
    assert [each.event_seq for each in await read_window(store, "sess_1")] == [
        *range(session.acked + 1, 4 * number + 1)
    ]
    return number


@pytest.mark.parametrize("kind", DURABLE)
async def test_a_log_that_is_cut_off_anywhere_has_whole_batches(kind: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    committed: list[tuple[int, int]] = []
    async with open_store(kind, tmp_path) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, opened())
        for number in range(BATCHES):
            await write(store, epoch, *batch(number))
            committed.append(((tmp_path / "store.db-wal").stat().st_size, number + 1))
        # As a machine that dies leaves it.
        shutil.copytree(tmp_path, image)
    log = (image / "store.db-wal").read_bytes()
    assert committed[0][0] < committed[-1][0] == len(log)
    dice = random.Random(7)
    first = next(size for size, number in committed if number == 1)
    for _ in range(25):
        cut = dice.randrange(first, len(log) + 1)
        kept = bytearray(log[:cut])
        if dice.random() < 0.5:
            # A disk writes in sectors, and the last of them may be anything.
            torn = dice.randrange(1, 600)
            kept[-torn:] = dice.randbytes(torn)
            cut -= torn
        (image / "store.db-wal").write_bytes(kept)
        shutil.copy(tmp_path / "store.db.lock", image)
        (image / "store.db-shm").unlink(missing_ok=True)
        before = (image / "store.db").read_bytes()
        async with open_store(kind, image) as store:
            number = await whole_batches(store)
            # Whatever was durable before the cut is there.
            assert number >= max((there for size, there in committed if size <= cut), default=0)
            # And it goes on from there.
            epoch = await store.take_ownership()
            await write(store, epoch, *batch(number))
            assert await whole_batches(store) == number + 1
        (image / "store.db").write_bytes(before)


@pytest.mark.requirement("Z14")
@pytest.mark.parametrize("point", ["begun", "written", "swept", "committed", "told"])
async def test_a_death_at_any_point_of_a_commit_leaves_whole_batches(tmp_path: Path, point: str) -> None:
    """The image of the files at that very moment, for each commit."""
    images: list[tuple[Path, int]] = []
    told = 0

    def take_image() -> None:
        image = tmp_path / f"{len(images)}"
        shutil.copytree(directory, image)
        images.append((image, told))

    directory = tmp_path / "store"
    directory.mkdir()
    hooks = PointHooks()
    async with open_store("sqlite", directory, hooks=hooks) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, opened())
        hooks.actions[point] = take_image
        for number in range(8):
            store.append(Batch(batch(number), epoch))
            if number % 3 == 2:
                await store.flush()
                told = number + 1
        await store.flush()
        hooks.actions.clear()
    assert images
    for image, known in images:
        async with open_store("sqlite", image) as store:
            number = await whole_batches(store)
            # Nothing that was told is missing; what nobody was told may be there.
            assert known <= number <= 8
    await trio.lowlevel.checkpoint()
