"""What a listing costs, and what it may cost others."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio
import trio.testing
from helpers import Script, open_raw

import arcp_trio
from arcp_trio.authority.lease import Lease
from arcp_trio.jobs.directory import JobDirectory
from arcp_trio.jobs.feed import JobFeed
from arcp_trio.records import JobRecord
from arcp_trio.sessions.listing import JobListing
from arcp_trio.timers import Timers
from arcp_trio.wire.session_messages import SessionListJobs


class FakeActor:
    """A job of a directory, as far as it is indexed; it never runs."""

    class agent:  # noqa: N801  # an attribute
        resolved = "echo@1.0.0"

    principal = "me"
    status = "running"
    created_at = "2026-01-01T00:00:00.000Z"

    def __init__(self, number: int) -> None:
        self.job_id = f"job_{number:08}"

    def record(self, directory: JobDirectory) -> JobRecord:
        return JobRecord(
            job_id=self.job_id,
            agent="echo@1.0.0",
            principal="me",
            owners=frozenset(),
            status="success",
            created_at=self.created_at,
            completed_at=self.created_at,
            parent_job_id=None,
            lease=Lease.EMPTY,
            budget={},
            feed=JobFeed(self.job_id, "0" * 31 + "1", directory.histories.open(self.principal)),
            ended_at=0.0,
            size=100,
        )


@pytest.mark.requirement("P6.19", "P08")
async def test_a_page_makes_no_more_entries_than_it_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = arcp_trio.Limits()
    directory = JobDirectory(limits, Timers())
    for number in range(100_000):
        actor: Any = FakeActor(number)
        directory.add(actor)
        directory.finish(actor.record(directory))
    looked_up: list[str] = []
    find = directory.find

    def counting(job_id: str) -> Any:
        looked_up.append(job_id)
        return find(job_id)

    monkeypatch.setattr(directory, "find", counting)
    listing = JobListing(directory, limits, arcp_trio.ObservationPolicy())
    cursor = None
    for start in (0, 10, 20):
        answer = listing.answer(
            SessionListJobs(limit=10, cursor=cursor),
            request_id="msg_1",
            principal=arcp_trio.Principal(name="me"),
            session_id="sess_1",
            with_budgets=True,
            with_credentials=True,
        )
        cursor = answer.next_cursor
        expected = [f"job_{number:08}" for number in range(start, start + 10)]
        assert [entry.job_id for entry in answer.jobs] == looked_up == expected
        looked_up.clear()


@pytest.mark.requirement("P6.3", "P6.19", "H16")
async def test_pages_that_nobody_reads_are_bounded(
    script: Script, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asks for large pages and reads none is closed; meanwhile others have their turns."""
    caplog.set_level(logging.INFO, "arcp_trio.audit")
    limits = arcp_trio.Limits(reply_bytes=500_000)
    async with (
        arcp_trio.open_runtime(script.agents, limits=limits) as runtime,
        open_raw(runtime) as client,
        open_raw(runtime) as other,
    ):
        for number in range(200):
            await client.submit("echo", number)
        # Read all together, and answered one after the other: each page has more than one write may take.
        await client.send(*(client.make("session.list_jobs", {"limit": 200}) for _ in range(200)))
        await other.request("session.ping", {"nonce": "n"})
        await other.receive_until("session.pong")
        assert len([record for record in caplog.records if record.name == "arcp_trio.audit"]) < 10
        await trio.testing.wait_all_tasks_blocked()
        closed = await client.receive_close()
        assert (closed.code, closed.reason) == (1008, "more requests than answers were read: limit reply_bytes")
        # Whoever reads what it asks for may ask for any number.
        for _ in range(20):
            await other.request("session.list_jobs", {"limit": 200})
            assert len((await other.receive_until("session.jobs"))["payload"]["jobs"]) == 200
