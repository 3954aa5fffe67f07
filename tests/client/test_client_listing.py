"""The pages of a listing, from the client's side (P6.19, P6.20)."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from interop.recorded import number
from playing import OTHERS, Call, open_played

import arcp_trio


def entry(job_id: str, **more: Any) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "agent": "a@1",
        "status": "running",
        "lease": {},
        "parent_job_id": None,
        "created_at": "2026-01-01T00:00:00.000Z",
        "last_event_seq": 3,
        **more,
    }


async def collect(pages: arcp_trio.JobPages, into: list[list[str]]) -> None:
    async for page in pages:
        names = [job.job_id for job in page]
        into.append(names)


@pytest.mark.requirement("P6.19", "P6.20", "P11")
async def test_pages_follow_the_cursor_one_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        pages: list[list[str]] = []
        listing = client.list_jobs(
            status=("running", "pending"), agent="a", created_after="2026-01-01T00:00:00.000Z", limit=2
        )
        call = Call(nursery, collect, listing, pages)
        asked = {
            "filter": {"status": ["running", "pending"], "agent": "a", "created_after": "2026-01-01T00:00:00.000Z"},
            "limit": 2,
        }
        for index, cursor in enumerate(["c1", "c2", None]):
            request = await first.expect("session.list_jobs")
            assert request["payload"] == asked
            await first.nothing_came()
            jobs = [entry(f"job_{index}_{place}") for place in range(2 if cursor else 0)]
            await first.say("session.jobs", {"request_id": request["id"], "jobs": jobs, "next_cursor": cursor})
            asked = {**asked, "cursor": cursor}
        assert call.done
        assert pages == [["job_0_0", "job_0_1"], ["job_1_0", "job_1_1"], []]
        # It is over, and stays so.
        await collect(listing, pages)
        assert len(pages) == 3
        await first.nothing_came()


@pytest.mark.requirement("P6.19")
async def test_a_page_is_asked_for_when_it_is_wanted(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        listing = client.list_jobs(status="running")
        await first.nothing_came()
        left = Call(nursery, anext, listing)
        request = await first.expect("session.list_jobs")
        assert request["payload"] == {"filter": {"status": ["running"]}}
        with pytest.raises(trio.BusyResourceError):
            await anext(listing)
        left.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        # Whoever left can ask again; a late answer to the first is nobody's.
        again = Call(nursery, anext, listing)
        second = await first.expect("session.list_jobs")
        await first.say("session.jobs", {"request_id": request["id"], "jobs": [entry("old")], "next_cursor": None})
        assert not again.done
        await first.say("session.jobs", {"request_id": second["id"], "jobs": [entry("new")], "next_cursor": "c"})
        assert [job.job_id for job in again.value] == ["new"]
        refused = Call(nursery, anext, listing)
        third = await first.expect("session.list_jobs")
        payload = {"code": "INVALID_REQUEST", "message": "$.payload.cursor: no", "request_id": third["id"]}
        await first.say("session.error", payload)
        assert isinstance(refused.error, arcp_trio.InvalidRequestError)


@pytest.mark.requirement("P6.19", "D54")
async def test_nothing_is_said_that_was_not_asked(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        Call(nursery, anext, client.list_jobs())
        assert (await first.expect("session.list_jobs"))["payload"] == {}
        nursery.cancel_scope.cancel()


@pytest.mark.requirement("D23", "D24", "P10")
@pytest.mark.parametrize("n", [643, 780])
async def test_recorded_pages_are_read(n: int, autojump_clock: trio.testing.MockClock) -> None:
    """One server names the request in reply_to alone; one calls the time of creation by another name."""
    payload = dict(number(n).frame["payload"])
    async with open_played(features=OTHERS) as (_, first, client), trio.open_nursery() as nursery:
        call = Call(nursery, anext, client.list_jobs())
        request = await first.expect("session.list_jobs")
        name = "reply_to" if "reply_to" in payload else "request_id"
        await first.say("session.jobs", {**payload, name: request["id"]})
        (job,) = call.value
        assert isinstance(job, arcp_trio.JobEntry)
        assert job.created_at is not None
        assert job.created_at.startswith("2026-11-23T22:")
        assert (job.status, job.agent.partition("@")[0]) == ("running", "slow")


@pytest.mark.requirement("D24")
async def test_a_page_that_names_nothing_answers_the_oldest(autojump_clock: trio.testing.MockClock) -> None:
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        one = Call(nursery, anext, client.list_jobs())
        await first.expect("session.list_jobs")
        two = Call(nursery, anext, client.list_jobs())
        await first.expect("session.list_jobs")
        await first.say("session.jobs", {"jobs": [entry("one")]})
        await first.say("session.jobs", {"jobs": [entry("two")]})
        assert [call.value[0].job_id for call in (one, two)] == ["one", "two"]
        await first.say("session.jobs", {"jobs": []})


@pytest.mark.requirement("D31", "K02")
async def test_requests_wait_for_each_other_where_refusals_name_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_played(features=OTHERS) as (_, first, client), trio.open_nursery() as nursery:
        listing = Call(nursery, anext, client.list_jobs())
        await first.expect("session.list_jobs")
        submit = Call(nursery, client.submit, "a")
        await trio.testing.wait_all_tasks_blocked()
        await first.nothing_came()
        await first.say("session.error", {"code": "INTERNAL_ERROR", "message": "limit"})
        assert isinstance(listing.error, arcp_trio.InternalError)
        assert not submit.done
        await first.accept(await first.expect("job.submit"))
        assert submit.value.job_id == "job_1"


@pytest.mark.requirement("X18")
async def test_an_agent_matches_its_name_or_one_version(autojump_clock: trio.testing.MockClock) -> None:
    """Some runtimes match by prefix: what was not asked for is left out."""
    jobs = [entry(name, agent=name) for name in ("a@1", "a@2", "ab@1", "a")]
    expected = {"a": ["a@1", "a@2", "a"], "a@1": ["a@1"], None: ["a@1", "a@2", "ab@1", "a"]}
    async with open_played() as (_, first, client), trio.open_nursery() as nursery:
        for agent, names in expected.items():
            call = Call(nursery, anext, client.list_jobs(agent=agent))
            request = await first.expect("session.list_jobs")
            await first.say("session.jobs", {"request_id": request["id"], "jobs": jobs, "next_cursor": None})
            assert [job.job_id for job in call.value] == names
