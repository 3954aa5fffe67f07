"""The index of jobs: what a page holds, whatever happens between two of them, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import sortedcontainers
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from arcp_trio.jobs.index import JobFilter, JobIndex, Key

PRINCIPALS = ("me", "you", "anonymous-1")
AGENTS = ("a@1", "a@2", "a-b@1", "b@1")
ENDED = ("success", "error", "cancelled", "timed_out")
STATUSES = ("pending", "running", *ENDED)


def listed(index: JobIndex, wanted: JobFilter | None = None, *, limit: int = 3, principals: Any = ("me",)) -> list[str]:
    """List page by page to the end; return the ids."""
    found: list[str] = []
    after: Key | None = None
    while True:
        page = index.page(principals, wanted or JobFilter(), limit=limit, after=after)
        found += [job_id for _, job_id in page.keys]
        if not page.more:
            return found
        assert len(page.keys) == limit
        after = page.keys[-1]


def filled(*jobs: tuple[str, str, str, str, int]) -> JobIndex:
    index = JobIndex()
    for job_id, principal, agent, status, created_at in jobs:
        index.add(job_id, principal=principal, agent=agent, status=status, created_at=created_at)
    return index


@pytest.mark.requirement("P6.19")
def test_the_order_is_creation_and_then_the_id() -> None:
    index = filled(
        ("j3", "me", "a@1", "running", 20),
        ("j9", "me", "a@1", "success", 10),
        ("j1", "me", "b@1", "pending", 30),
        ("j2", "me", "a@2", "running", 20),
    )
    assert listed(index) == ["j9", "j2", "j3", "j1"]


@pytest.mark.requirement("P6.19", "P03")
@pytest.mark.parametrize("limit", [1, 2, 4, 5, 6])
def test_jobs_of_one_instant_are_told_apart(limit: int) -> None:
    index = filled(*((f"j{number}", "me", AGENTS[number % 4], "running", 7) for number in range(5)))
    assert listed(index, limit=limit) == ["j0", "j1", "j2", "j3", "j4"]


@pytest.mark.requirement("P6.19", "P06", "L14")
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (JobFilter(), "1 2 3 4 5"),
        (JobFilter(statuses=frozenset({"running"})), "1 4"),
        (JobFilter(statuses=frozenset({"success", "timed_out"})), "2 3"),
        (JobFilter(statuses=frozenset()), ""),
        (JobFilter(agent="a"), "1 2 3"),
        (JobFilter(agent="a@2"), "2"),
        (JobFilter(agent="a@"), ""),
        (JobFilter(agent="a-b"), "4"),
        (JobFilter(agent="nobody"), ""),
        (JobFilter(created_after=9), "1 2 3 4 5"),
        (JobFilter(created_after=10), "3 4 5"),
        (JobFilter(created_after=99), ""),
        (JobFilter(statuses=frozenset({"running", "success"}), agent="a", created_after=5), "1 2"),
    ],
)
def test_what_a_filter_admits(wanted: JobFilter, expected: str) -> None:
    index = filled(
        ("1", "me", "a@1", "running", 10),
        ("2", "me", "a@2", "success", 10),
        ("3", "me", "a@1", "timed_out", 11),
        ("4", "me", "a-b@1", "running", 12),
        ("5", "me", "b@1", "pending", 13),
        ("6", "you", "a@1", "running", 10),
    )
    for limit in (1, 2, 100):
        assert listed(index, wanted, limit=limit) == expected.split()


@pytest.mark.requirement("P6.19", "P7.19", "Q02")
def test_only_the_named_principals_are_listed() -> None:
    index = filled(
        ("1", "me", "a@1", "running", 1), ("2", "you", "a@1", "running", 2), ("3", "you", "b@1", "running", 3)
    )
    assert listed(index) == ["1"]
    assert listed(index, principals=()) == []
    assert listed(index, principals=("",)) == []
    assert listed(index, principals=("nobody",)) == []
    # Twice is once.
    assert listed(index, principals=["you", "me", "me"]) == ["1", "2", "3"]
    seen = index.page(
        ("me", "you"), JobFilter(), limit=9, visible=lambda owner, agent: (owner, agent) != ("you", "a@1")
    )
    assert [job_id for _, job_id in seen.keys] == ["1", "3"]


@pytest.mark.requirement("P6.19", "P11")
@pytest.mark.parametrize(("jobs", "limit", "more"), [(0, 1, False), (4, 5, False), (5, 5, False), (6, 5, True)])
def test_more_is_said_only_of_what_is_there(jobs: int, limit: int, more: bool) -> None:
    index = filled(*((f"j{number}", "me", AGENTS[number % 3], "running", number) for number in range(jobs)))
    page = index.page(("me",), JobFilter(), limit=limit)
    assert (len(page.keys), page.more) == (min(jobs, limit), more)


@pytest.mark.requirement("P6.19", "P01")
def test_a_page_goes_on_behind_a_job_that_is_gone() -> None:
    index = filled(*((f"j{number}", "me", "a@1", "success", number) for number in range(6)))
    first = index.page(("me",), JobFilter(), limit=2)
    for job_id in ("j0", "j1", "j2"):
        index.remove(job_id)
    second = index.page(("me",), JobFilter(), limit=2, after=first.keys[-1])
    assert [job_id for _, job_id in second.keys] == ["j3", "j4"]


@pytest.mark.requirement("M02")
def test_nothing_stays_of_what_was_removed() -> None:
    index = JobIndex()
    for number in range(100):
        index.add(str(number), principal=f"p{number}", agent="a@1", status="pending", created_at=number)
        index.move(str(number), "running")
        index.move(str(number), "running")
        assert index.buckets == len(index) == number + 1
    for number in range(100):
        index.remove(str(number))
    assert (index.buckets, len(index), index._buckets, index._places) == (0, 0, {}, {})


def test_a_job_that_is_not_there() -> None:
    index = filled(("1", "me", "a@1", "running", 1))
    with pytest.raises(KeyError):
        index.move("2", "running")
    with pytest.raises(KeyError):
        index.remove("2")
    assert listed(index) == ["1"]


class Listing(RuleBasedStateMachine):
    """Jobs come, move, end and go while several listings are under way; a list of dictionaries is the model."""

    running = Bundle("running")
    pagers = Bundle("pagers")

    def __init__(self) -> None:
        super().__init__()
        self.index = JobIndex()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.ended: list[str] = []
        self.under_way: list[dict[str, Any]] = []
        self.numbers = 0

    def matching(self, pager: dict[str, Any]) -> list[str]:
        """What a listing that begins now and is done at once would hold."""
        wanted: JobFilter = pager["wanted"]
        return [
            job_id
            for _, job_id in sorted((job["created_at"], job_id) for job_id, job in self.jobs.items())
            for job in [self.jobs[job_id]]
            if job["principal"] in pager["principals"]
            and (wanted.statuses is None or job["status"] in wanted.statuses)
            and (wanted.agent is None or wanted.agent in (job["agent"], job["agent"].split("@")[0]))
            and (wanted.created_after is None or job["created_at"] > wanted.created_after)
        ]

    @rule(
        target=running,
        principal=st.sampled_from(PRINCIPALS),
        agent=st.sampled_from(AGENTS),
        created_at=st.integers(0, 6),
        rank=st.integers(0, 9),
    )
    def add(self, principal: str, agent: str, created_at: int, rank: int) -> str:
        # Not in the order of their ids, nor of time: the wall clock may have been set back.
        self.numbers += 1
        job_id = f"job_{rank}_{self.numbers}"
        job = {"principal": principal, "agent": agent, "status": "pending", "created_at": created_at}
        self.jobs[job_id] = job
        self.index.add(job_id, **job)
        return job_id

    def move(self, job_id: str, status: str) -> None:
        self.jobs[job_id]["status"] = status
        self.index.move(job_id, status)
        # A job that has left a listing's filter, or come into it, was not there throughout.
        self.note_change(job_id)

    def note_change(self, job_id: str) -> None:
        for pager in self.under_way:
            pager["throughout"] &= set(self.matching(pager))

    @rule(job_id=running)
    def start(self, job_id: str) -> None:
        self.move(job_id, "running")

    @rule(job_id=consumes(running), status=st.sampled_from(ENDED))
    def finish(self, job_id: str, status: str) -> None:
        self.move(job_id, status)
        self.ended.append(job_id)

    @precondition(lambda self: self.ended)
    @rule()
    def evict(self) -> None:
        job_id = self.ended.pop(0)
        del self.jobs[job_id]
        self.index.remove(job_id)
        self.note_change(job_id)

    @rule(
        target=pagers,
        principals=st.sets(st.sampled_from(PRINCIPALS), min_size=1),
        statuses=st.none() | st.frozensets(st.sampled_from(STATUSES), min_size=1),
        agent=st.none() | st.sampled_from([*AGENTS, "a", "b", "c"]),
        created_after=st.none() | st.integers(0, 6),
        limit=st.integers(1, 4),
    )
    def begin(self, principals: set[str], limit: int, **properties: Any) -> dict[str, Any]:
        pager = {
            "principals": principals,
            "wanted": JobFilter(**properties),
            "limit": limit,
            "after": None,
            "seen": [],
        }
        pager["throughout"] = set(self.matching(pager))
        self.under_way.append(pager)
        return pager

    @rule(pager=pagers)
    def turn_page(self, pager: dict[str, Any]) -> None:
        if not any(other is pager for other in self.under_way):
            return
        page = self.index.page(pager["principals"], pager["wanted"], limit=pager["limit"], after=pager["after"])
        after = pager["after"]
        rest = [job_id for job_id in self.matching(pager) if after is None or self.place(job_id) > after]
        assert [job_id for _, job_id in page.keys] == rest[: pager["limit"]]
        assert page.more == (len(rest) > pager["limit"])
        pager["seen"] += [job_id for _, job_id in page.keys]
        if page.more:
            pager["after"] = page.keys[-1]
            return
        self.under_way = [other for other in self.under_way if other is not pager]
        assert len(pager["seen"]) == len(set(pager["seen"])), "a job was listed twice"
        assert pager["throughout"] <= set(pager["seen"]), "a job that was there throughout was skipped"

    def place(self, job_id: str) -> Key:
        return self.jobs[job_id]["created_at"], job_id

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        assert len(self.index) == len(self.jobs)
        properties = {(job["principal"], job["status"], job["agent"]) for job in self.jobs.values()}
        assert self.index.buckets == len(properties)


TestListing = pytest.mark.requirement("P6.19", "P01", "P03", "P11", "L26")(Listing.TestCase)
TestListing.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)


class CountingId(str):
    """An id that counts how often it is looked at."""

    __slots__ = ()
    looks = 0

    def __eq__(self, other: object) -> bool:
        CountingId.looks += 1
        return str.__eq__(self, other)  # type: ignore[arg-type]

    def __lt__(self, other: str) -> bool:
        CountingId.looks += 1
        return str.__lt__(self, other)

    __hash__ = str.__hash__


@pytest.mark.requirement("P6.19", "P08")
def test_what_is_not_listed_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among 100,000 jobs, a page touches limit + 1 keys and one for each bucket that matches."""
    handed_out = 0
    irange = sortedcontainers.SortedList.irange

    def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal handed_out
        for key in irange(self, *arguments, **options):
            handed_out += 1
            yield key

    monkeypatch.setattr(sortedcontainers.SortedList, "irange", counting)
    costs: dict[int, list[tuple[int, int]]] = {}
    for jobs in (1_000, 100_000):
        index = JobIndex()
        for number in range(jobs):
            index.add(
                # Of one instant, so that every comparison comes down to the ids.
                CountingId(f"job_{number:08}"),
                principal="me",
                agent=AGENTS[number % 4],
                status=STATUSES[number % 6],
                created_at=7,
            )
        middle = (7, CountingId(f"job_{jobs // 2:08}"))
        costs[jobs] = []
        for wanted, buckets in (
            (JobFilter(), 12),
            (JobFilter(agent="b"), 3),
            (JobFilter(agent="a@1", statuses=frozenset({"pending"})), 1),
        ):
            assert index.buckets == 12
            for after in (None, middle):
                handed_out = CountingId.looks = 0
                page = index.page(("me",), wanted, limit=10, after=after)
                assert (len(page.keys), page.more) == (10, True)
                assert handed_out <= 10 + buckets
                costs[jobs].append((handed_out, CountingId.looks))
    for (few, few_looks), (many, many_looks) in zip(costs[1_000], costs[100_000], strict=True):
        assert many == few
        # A hundred times the jobs: some seven steps more of a bisection, for each bucket; two looks for each step.
        assert many_looks <= few_looks + 12 * 7 * 2 * 2
