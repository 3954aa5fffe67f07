"""What every store does, whatever it keeps things in."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from store.kit import (
    DURABLE,
    KINDS,
    accepted,
    claim,
    dump,
    ended,
    entry,
    event,
    open_store,
    opened,
    read_window,
    span,
    write,
)

from arcp_trio.limits import Limits
from arcp_trio.records import LedgerState
from arcp_trio.store.base import CredentialLedger, Store, Ticket
from arcp_trio.store.errors import ConflictError, FencedError, KeyTakenError
from arcp_trio.store.memory import MemoryStore
from arcp_trio.store.plan import MAX_SEQ
from arcp_trio.store.sqlite import SqliteStore
from arcp_trio.store.stored import EntryKind, StoredJob, StoredKey, StoredSession, WindowEntry
from arcp_trio.store.writes import (
    Batch,
    EventAppended,
    HistoryTrimmed,
    JobEnded,
    JobEvicted,
    JobOwned,
    KeyReleased,
    LedgerNoted,
    OutcomeDecided,
    OwnAppended,
    RiderAppended,
    SessionAcknowledged,
    SessionEnded,
    SessionFollowed,
    SessionUnfollowed,
    SessionWaiting,
    TokensChanged,
    WindowTrimmed,
    Write,
)

Opened = tuple[Store, int]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store(kind: str, tmp_path: Path) -> AsyncGenerator[Store, None]:
    async with open_store(kind, tmp_path) as store:
        yield store


@pytest.fixture
async def epoch(store: Store) -> int:
    return await store.take_ownership()


def test_both_stores_are_called_alike() -> None:
    """The protocol is what a runtime knows; a method that it has, and a store has otherwise, would be another."""
    members = {
        name: member
        for cls in (CredentialLedger, Store)
        for name, member in vars(cls).items()
        if not name.startswith("_")
    }
    assert len(members) > 15
    for cls in (MemoryStore, SqliteStore):
        for name, member in members.items():
            found = inspect.getattr_static(cls, name)
            assert type(found) is type(member), name
            if inspect.isfunction(member):
                assert inspect.signature(found) == inspect.signature(member), name
                assert inspect.iscoroutinefunction(found) == inspect.iscoroutinefunction(member), name


# --- what is written is read ------------------------------------------------------------------------


@pytest.mark.requirement("P14.3")
async def test_a_store_is_empty_at_first(store: Store, epoch: int) -> None:
    assert await dump(store) == {
        "running": [],
        "ended": [],
        "sessions": [],
        "keys": [],
        "outcomes": {},
        "histories": {},
        "windows": {},
        "ledger": [],
    }
    assert await store.outcome("job_1") is None
    assert await store.history("job_1", 0, 10) is None
    assert await store.window("sess_1", 0, 10) == []


async def test_a_job_that_runs(store: Store, epoch: int) -> None:
    await write(store, epoch, accepted(parent_job_id="job_0"), JobOwned("job_1", "sess_2"), JobOwned("job_1", "sess_1"))
    await write(store, epoch, event("job_1", 1), JobOwned("job_1", "sess_1"))
    running = StoredJob(
        job_id="job_1",
        principal="me",
        agent="count@1.0.0",
        trace_id="trace of job_1",
        created_at_ms=1_000,
        accepted=b'{"job_id":"job_1"}',
        parent_job_id="job_0",
        owners=("sess_1", "sess_2"),
        last_seq=1,
        history_floor=0,
        outcome=None,
        status=None,
        ended_at_ms=None,
    )
    assert await store.running_jobs() == [running]
    # What was decided and is not visible yet: a recovery ends the job so.
    await write(store, epoch, OutcomeDecided(job_id="job_1", outcome=b"cancelled"))
    (job,) = await store.running_jobs()
    assert job.outcome == b"cancelled"
    assert await store.outcome("job_1") == b"cancelled"
    assert (await store.ended_jobs(None, 10)).items == []


async def test_a_job_that_has_ended(store: Store, epoch: int) -> None:
    await write(store, epoch, accepted(), event("job_1", 1), *ended("job_1", 2, at_ms=5_000))
    (job,) = (await store.ended_jobs(None, 10)).items
    assert (job.status, job.ended_at_ms, job.last_seq, job.outcome) == ("success", 5_000, 2, None)
    assert await store.outcome("job_1") == b"outcome of job_1"
    assert await store.running_jobs() == []
    history = await store.history("job_1", 0, 10)
    assert history is not None
    # The terminal event is not among them.
    assert [each.job_seq for each in history.events] == [1]


@pytest.mark.requirement("Q05", "P7.18")
async def test_a_history_begins_behind_what_is_asked_for(store: Store, epoch: int) -> None:
    events = [EventAppended(job_id="job_1", job_seq=n, content=b"%d" % n, feature="progress") for n in range(1, 6)]
    await write(store, epoch, accepted(), *events)
    history = await store.history("job_1", 2, 2)
    assert history is not None
    assert [(each.job_seq, each.content, each.feature) for each in history.events] == [
        (3, b"3", "progress"),
        (4, b"4", "progress"),
    ]
    assert (history.first_seq, history.more) == (1, True)
    history = await store.history("job_1", 4, 2)
    assert history is not None
    assert ([each.job_seq for each in history.events], history.more) == ([5], False)
    await write(store, epoch, HistoryTrimmed("job_1", 3), HistoryTrimmed("job_1", 2))
    history = await store.history("job_1", 0, 10)
    assert history is not None
    assert ([each.job_seq for each in history.events], history.first_seq) == ([4, 5], 4)


async def test_a_session(store: Store, epoch: int) -> None:
    await write(store, epoch, opened(), TokensChanged("sess_1", (b"\x00 one", b"two")), accepted(), accepted("job_2"))
    await write(store, epoch, SessionFollowed("sess_1", "job_1"), SessionFollowed("sess_1", "job_2"))
    await write(store, epoch, SessionFollowed("sess_1", "job_1"), SessionWaiting("sess_1", 7_000))
    session = StoredSession(
        session_id="sess_1",
        principal="me",
        opened_at_ms=2_000,
        detail=b'{"features":[]}',
        token_hashes=(b"\x00 one", b"two"),
        last_seq=0,
        acked=0,
        floor=0,
        waiting_since_ms=7_000,
        follows=("job_1", "job_2"),
    )
    assert (await store.sessions(None, 10)).items == [session]
    await write(store, epoch, SessionUnfollowed("sess_1", "job_1"), SessionUnfollowed("sess_1", "job_9"))
    await write(store, epoch, TokensChanged("sess_1", (b"three",)), SessionWaiting("sess_1", None))
    # Nobody follows what has ended.
    await write(store, epoch, *ended("job_2", 1))
    (session,) = (await store.sessions(None, 10)).items
    assert (session.token_hashes, session.waiting_since_ms, session.follows) == ((b"three",), None, ())
    assert "three" not in repr(session)
    assert b"three".hex() not in repr(session)


@pytest.mark.requirement("P6.9", "P8.2", "S02", "S15")
async def test_a_window_is_what_a_client_gets_again(store: Store, epoch: int) -> None:
    await write(store, epoch, opened(), accepted(), accepted("job_2"))
    await write(store, epoch, RiderAppended(session_id="sess_1", content=b"accepted 1"))
    await write(store, epoch, RiderAppended(session_id="sess_1", content=b"accepted 2"))
    await write(store, epoch, event("job_1", 1, ("sess_1", 1)))
    await write(store, epoch, event("job_2", 1, ("sess_1", 2)), event("job_1", 2, ("sess_1", 3)))
    await write(store, epoch, OwnAppended(session_id="sess_1", event_seq=4, content=b"you lag"))
    await write(store, epoch, RiderAppended(session_id="sess_1", content=b"cancelled"))
    await write(store, epoch, *ended("job_1", 3, ("sess_1", 5), at_ms=8_000))
    await write(store, epoch, RiderAppended(session_id="sess_1", content=b"subscribed"))
    expected = [
        WindowEntry(kind=EntryKind.RIDER, event_seq=1, content=b"accepted 1"),
        WindowEntry(kind=EntryKind.RIDER, event_seq=1, content=b"accepted 2"),
        WindowEntry(kind=EntryKind.EVENT, event_seq=1, content=b"event 1 of job_1", job_id="job_1", job_seq=1),
        WindowEntry(kind=EntryKind.EVENT, event_seq=2, content=b"event 1 of job_2", job_id="job_2", job_seq=1),
        WindowEntry(kind=EntryKind.EVENT, event_seq=3, content=b"event 2 of job_1", job_id="job_1", job_seq=2),
        WindowEntry(kind=EntryKind.OWN, event_seq=4, content=b"you lag"),
        WindowEntry(kind=EntryKind.RIDER, event_seq=5, content=b"cancelled"),
        WindowEntry(
            kind=EntryKind.TERMINAL,
            event_seq=5,
            content=b"outcome of job_1",
            job_id="job_1",
            job_seq=3,
            trace_id="trace of job_1",
            ended_at_ms=8_000,
        ),
        WindowEntry(kind=EntryKind.RIDER, event_seq=6, content=b"subscribed"),
    ]
    for limit in (1, 2, 3, 100):
        assert await read_window(store, "sess_1", limit=limit) == expected
        assert await read_window(store, "sess_1", after=2, limit=limit) == expected[4:]
    assert [each.kind for each in await store.window("sess_1", 0, 1)] == [EntryKind.RIDER] * 2 + [EntryKind.EVENT]
    # Asked again, it is what it was.
    assert await read_window(store, "sess_1") == expected


@pytest.mark.requirement("P6.15", "P6.16", "P6.18", "S12")
async def test_a_window_begins_behind_what_was_acknowledged_or_trimmed(store: Store, epoch: int) -> None:
    await write(store, epoch, opened(), accepted(), RiderAppended(session_id="sess_1", content=b"accepted"))
    await write(store, epoch, *[event("job_1", n, ("sess_1", n)) for n in range(1, 7)])
    await write(store, epoch, SessionAcknowledged("sess_1", 3))
    assert [each.event_seq for each in await read_window(store, "sess_1")] == [4, 5, 6]
    await write(store, epoch, SessionAcknowledged("sess_1", 2), WindowTrimmed("sess_1", 1))
    (session,) = (await store.sessions(None, 10)).items
    assert (session.acked, session.floor, session.last_seq) == (3, 3, 6)
    await write(store, epoch, WindowTrimmed("sess_1", 5))
    (session,) = (await store.sessions(None, 10)).items
    assert (session.acked, session.floor, session.last_seq) == (3, 5, 6)
    assert [each.event_seq for each in await read_window(store, "sess_1")] == [6]
    # A window that is empty goes on where it was.
    await write(store, epoch, SessionAcknowledged("sess_1", 6))
    assert await read_window(store, "sess_1") == []
    await write(store, epoch, event("job_1", 7, ("sess_1", 7)))
    assert [(each.event_seq, each.content) for each in await read_window(store, "sess_1")] == [(7, b"event 7 of job_1")]


@pytest.mark.requirement("P7.17", "P7.20", "S17")
async def test_a_session_that_joins_late_has_the_same_events(store: Store, epoch: int) -> None:
    await write(store, epoch, opened(), opened("sess_2"), accepted())
    await write(store, epoch, *[event("job_1", n, ("sess_1", n)) for n in range(1, 6)])
    await write(store, epoch, span("sess_2", 1, 3, "job_1", 3), event("job_1", 6, ("sess_1", 6), ("sess_2", 4)))
    await write(store, epoch, *ended("job_1", 7, ("sess_2", 5)))
    await write(store, epoch, opened("sess_3"), span("sess_3", 1, 7, "job_1", 1))
    contents = [each.content for each in await read_window(store, "sess_3")]
    assert contents == [*[b"event %d of job_1" % n for n in range(1, 7)], b"outcome of job_1"]
    assert [each.content for each in await read_window(store, "sess_2")] == contents[2:]
    assert [each.content for each in await read_window(store, "sess_1")] == contents[:6]


@pytest.mark.requirement("M02", "P7.14")
async def test_a_job_is_evicted_with_all_that_is_its_own(store: Store, epoch: int) -> None:
    await write(store, epoch, opened(), accepted(), claim("key", "job_1"), JobOwned("job_1", "sess_1"))
    await write(store, epoch, event("job_1", 1, ("sess_1", 1)), *ended("job_1", 2, ("sess_1", 2)))
    await write(store, epoch, JobEvicted("job_1"))
    found = await dump(store)
    assert found["ended"] == found["keys"] == []
    assert await store.history("job_1", 0, 10) is None
    assert await store.outcome("job_1") is None
    # But for what a client may still ask for again (P6.16).
    assert [each.content for each in found["windows"]["sess_1"]] == [b"event 1 of job_1", b"outcome of job_1"]


@pytest.mark.requirement("P6.12", "P6.16", "Q10")
async def test_a_session_ends_with_its_tokens_and_its_window(store: Store, epoch: int) -> None:
    await write(store, epoch, opened(), opened("sess_2"), accepted(), SessionFollowed("sess_1", "job_1"))
    await write(store, epoch, event("job_1", 1, ("sess_1", 1)), TokensChanged("sess_1", (b"one",)))
    await write(store, epoch, SessionEnded("sess_1"))
    assert [session.session_id for session in (await store.sessions(None, 10)).items] == ["sess_2"]
    assert await store.window("sess_1", 0, 10) == []
    # The job goes on, and its history is its own.
    await write(store, epoch, event("job_1", 2))
    history = await store.history("job_1", 0, 10)
    assert history is not None
    assert len(history.events) == 2


@pytest.mark.requirement("C09", "C10")
async def test_the_ledger_has_what_must_be_revoked(store: Store, epoch: int, kind: str) -> None:
    assert store.durable is (kind in DURABLE)
    await store.put([entry("cred_2", LedgerState.INTENDED, 2), entry("cred_1", noted_at_ms=1)])
    assert await store.outstanding() == [entry("cred_1", noted_at_ms=1), entry("cred_2", LedgerState.INTENDED, 2)]
    failed = entry("cred_2", LedgerState.FAILED, 3)
    await store.put([failed, entry("cred_1", LedgerState.REVOKED, 4)])
    assert await store.outstanding() == [failed]
    # In a batch of other facts too: what was issued stands there with the job that it is for.
    await write(
        store, epoch, accepted(), LedgerNoted(entry("cred_3")), LedgerNoted(entry("cred_2", LedgerState.REVOKED))
    )
    assert await store.outstanding() == [entry("cred_3")]


# --- pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_pages_have_everything_once(store: Store, epoch: int, limit: int) -> None:
    names = [f"job_{number}" for number in range(7)]
    for number, job_id in enumerate(names):
        # Equal times, and in another order than that of their acceptance.
        await write(store, epoch, accepted(job_id), claim(f"key {number}", job_id, principal=f"{number % 2}"))
        await write(store, epoch, opened(f"sess_{number}"), *ended(job_id, 1, at_ms=100 - number // 2))
    found = await dump(store, limit)
    assert [job.job_id for job in found["ended"]] == ["job_6", "job_4", "job_5", "job_2", "job_3", "job_0", "job_1"]
    assert [session.session_id for session in found["sessions"]] == [f"sess_{number}" for number in range(7)]
    assert [(key.principal, key.key) for key in found["keys"]] == sorted(
        (f"{number % 2}", f"key {number}") for number in range(7)
    )
    assert found["keys"][0] == StoredKey(principal="0", key="key 0", digest=b"digest of job_0", job_id="job_0")


async def test_a_page_is_bounded_by_its_bytes(kind: str, tmp_path: Path) -> None:
    async with open_store(kind, tmp_path, limits=Limits(store_page_bytes=1_000)) as store:
        epoch = await store.take_ownership()
        large = [event("job_1", n, ("sess_1", n), content=b"x" * 400) for n in range(1, 6)]
        await write(store, epoch, opened(), accepted(), *large, event("job_1", 6, ("sess_1", 6), content=b"x" * 5_000))
        history = await store.history("job_1", 0, 100)
        assert history is not None
        assert (len(history.events), history.more) == (2, True)
        assert len(await store.window("sess_1", 0, 100)) == 2
        # One that is larger than a page comes all the same.
        history = await store.history("job_1", 5, 100)
        assert history is not None
        assert (len(history.events), history.more) == (1, False)
        assert len(await store.window("sess_1", 5, 100)) == 1
        assert len(await read_window(store, "sess_1")) == 6
        for number in range(2, 6):
            outcome = OutcomeDecided(job_id=f"job_{number}", outcome=b"x" * 400)
            end = JobEnded(job_id=f"job_{number}", job_seq=1, status="error", ended_at_ms=number)
            await write(store, epoch, accepted(f"job_{number}"), outcome, end)
        found, cursor = [], None
        for size in (2, 2):
            page = await store.ended_jobs(cursor, 100, outcomes=True)
            assert [len(job.outcome or b"") for job in page.items] == [400] * size
            found += page.items
            cursor = page.next
        assert cursor is None
        assert [job.job_id for job in found] == ["job_2", "job_3", "job_4", "job_5"]
        assert [job.outcome for job in (await store.ended_jobs(None, 100)).items] == [None] * 4


# --- batches ----------------------------------------------------------------------------------------


@pytest.mark.requirement("S06")
async def test_batches_are_told_in_their_order_and_when_they_are_durable(store: Store, epoch: int) -> None:
    told: list[int] = []

    def tell(ticket: Ticket) -> None:
        assert ticket.settled
        told.append(ticket.number)
        if ticket.number == tickets_before + 3:
            later.append(store.append(Batch((accepted("job_9"),), epoch), tell))

    later: list[Ticket] = []
    first = store.append(Batch((accepted("job_0"),), epoch))
    await store.committed(first)
    tickets_before = first.number
    tickets = [store.append(Batch((accepted(f"job_{number}"),), epoch), tell) for number in range(1, 6)]
    assert store.durable or told
    assert not store.durable or not told
    await store.flush()
    while not later or not later[0].settled:
        await store.flush()
    if store.durable:
        assert told == [ticket.number for ticket in (*tickets, *later)]
    assert sorted(told) == [*range(tickets_before + 1, tickets_before + 7)]
    assert len(await store.running_jobs()) == 7


@pytest.mark.requirement("S03")
async def test_who_awaits_many_batches_is_woken_once_for_each(store: Store, epoch: int) -> None:
    await write(store, epoch, accepted())
    committed: list[int] = []

    async def emit(job_seq: int) -> None:
        ticket = store.append(Batch((event("job_1", job_seq),), epoch))
        await store.committed(ticket)
        committed.append(job_seq)

    async with trio.open_nursery() as nursery:
        for number in range(1, 101):
            nursery.start_soon(emit, number)
            # So that they append in this order; Trio starts them in any.
            await trio.testing.wait_all_tasks_blocked()
    assert sorted(committed) == [*range(1, 101)]
    (job,) = await store.running_jobs()
    assert job.last_seq == 100


CONFLICTS: list[tuple[str, Callable[[], tuple[Write, ...]]]] = [
    ("there is a job job_1 already", lambda: (accepted(),)),
    ("there is a session sess_1 already", lambda: (opened(),)),
    ("there is no job job_9", lambda: (event("job_9", 1),)),
    ("event 2 cannot follow 2", lambda: (event("job_1", 2),)),
    ("event 4 cannot follow 2", lambda: (event("job_1", 4),)),
    ("number 2 cannot follow 2", lambda: (event("job_1", 3, ("sess_1", 2)),)),
    ("number 4 cannot follow 2", lambda: (event("job_1", 3, ("sess_1", 4)),)),
    ("there is no session sess_9", lambda: (event("job_1", 3, ("sess_9", 1)),)),
    ("job_2 has ended", lambda: (event("job_2", 2),)),
    ("job_2 has ended", lambda: ended("job_2", 2)),
    ("job_2 has ended", lambda: (SessionFollowed("sess_1", "job_2"),)),
    ("there is no job job_3", lambda: (span("sess_1", 3, 3, "job_3", 1),)),
    ("job_1 runs", lambda: (JobEvicted("job_1"),)),
    ("the outcome of job_4 was decided before", lambda: (OutcomeDecided(job_id="job_4", outcome=b""),)),
    (
        "the outcome of job_1 was not decided",
        lambda: (JobEnded(job_id="job_1", job_seq=3, status="error", ended_at_ms=1),),
    ),
    ("floor 3 is beyond 2", lambda: (HistoryTrimmed("job_1", 3),)),
    ("floor 3 is beyond 2", lambda: (SessionAcknowledged("sess_1", 3),)),
    ("floor 3 is beyond 2", lambda: (WindowTrimmed("sess_1", 3),)),
    ("numbers 2 to 2 cannot follow 2", lambda: (span("sess_1", 2, 2, "job_1", 1),)),
    ("numbers 3 to 2 cannot follow 2", lambda: (span("sess_1", 3, 2, "job_1", 1),)),
    ("of events 2 to 3 it has those from 1 to 2", lambda: (span("sess_1", 3, 4, "job_1", 2),)),
    ("of events 0 to 0 it has those from 1 to 2", lambda: (span("sess_1", 3, 3, "job_1", 0),)),
    ("number 4 cannot follow 2", lambda: (OwnAppended(session_id="sess_1", event_seq=4, content=b""),)),
    ("sess_2 has ended", lambda: (SessionEnded("sess_2"), SessionWaiting("sess_2", 1))),
    ("there is no session sess_9", lambda: (RiderAppended(session_id="sess_9", content=b""),)),
    ("session sess_2: number 1", lambda: (SessionEnded("sess_2"), event("job_1", 3, ("sess_2", 1)))),
]


@pytest.mark.requirement("P8.2", "P7.8")
@pytest.mark.parametrize(("message", "writes"), CONFLICTS, ids=[f"{n}" for n in range(len(CONFLICTS))])
async def test_what_contradicts_what_is_there_is_refused_whole(
    store: Store, epoch: int, message: str, writes: Callable[[], tuple[Write, ...]]
) -> None:
    await write(store, epoch, accepted(), opened(), event("job_1", 1, ("sess_1", 1)), event("job_1", 2, ("sess_1", 2)))
    await write(store, epoch, accepted("job_2"), accepted("job_3"), accepted("job_4"), opened("sess_2"))
    await write(store, epoch, *ended("job_2", 1), *ended("job_3", 1))
    await write(store, epoch, JobEvicted("job_3"), OutcomeDecided(job_id="job_4", outcome=b"first"))
    before = await dump(store)
    told: list[Ticket] = []
    around = [
        store.append(Batch((accepted("job_5"), event("job_5", 1)), epoch), told.append),
        # Facts that are well, before and behind those that are not.
        store.append(
            Batch((event("job_5", 2), claim("key", "job_5"), *writes(), accepted("job_6")), epoch), told.append
        ),
        store.append(Batch((event("job_5", 2), accepted("job_7")), epoch), told.append),
    ]
    await store.committed(around[0])
    with pytest.raises(ConflictError, match=message):
        await store.committed(around[1])
    await store.committed(around[2])
    assert told == around
    assert [ticket.refusal is None for ticket in around] == [True, False, True]
    after = await dump(store)
    assert [job.job_id for job in after["running"]] == ["job_1", "job_4", "job_5", "job_7"]
    assert after["running"][2].last_seq == 2
    assert {name: after[name] for name in ("ended", "sessions", "keys", "windows")} == {
        name: before[name] for name in ("ended", "sessions", "keys", "windows")
    }


async def test_numbers_have_an_end(store: Store, epoch: int) -> None:
    """Their keys are made of them: one that is too large would be another's."""
    await write(store, epoch, accepted(), opened())
    with pytest.raises(ConflictError):
        await write(store, epoch, event("job_1", MAX_SEQ + 1))


@pytest.mark.parametrize("after", ["at once", "later"])
async def test_a_cancelled_wait_takes_nothing_back(store: Store, epoch: int, after: str) -> None:
    with trio.CancelScope() as scope:
        ticket = store.append(Batch((accepted(),), epoch))
        if after == "later":
            await store.committed(ticket)
        scope.cancel()
        await store.committed(ticket)
    assert scope.cancelled_caught
    await store.flush()
    assert [job.job_id for job in await store.running_jobs()] == ["job_1"]


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.take_ownership(),
        lambda store: store.flush(),
        lambda store: store.wait_for_room(),
        lambda store: store.running_jobs(),
        lambda store: store.ended_jobs(None, 1),
        lambda store: store.outcome("job_1"),
        lambda store: store.history("job_1", 0, 1),
        lambda store: store.sessions(None, 1),
        lambda store: store.window("sess_1", 0, 1),
        lambda store: store.keys(None, 1),
        lambda store: store.outstanding(),
        lambda store: store.put([entry("cred_1")]),
    ],
)
async def test_every_wait_is_a_checkpoint(store: Store, epoch: int, call: Callable[[Store], Any]) -> None:
    with trio.testing.assert_checkpoints():
        await call(store)
    with trio.CancelScope() as scope:
        scope.cancel()
        await call(store)
    assert scope.cancelled_caught


async def test_a_store_that_can_write_says_so(store: Store, epoch: int) -> None:
    store.check_available()
    assert store.has_room
    assert store.problem is None
    ticket = store.append(Batch((accepted(),), epoch))
    await store.committed(ticket)
    await store.committed(ticket)
    assert "committed" in repr(ticket)
    statistics = store.statistics()
    assert (statistics.batches_committed, statistics.batches_waiting, statistics.problem) == (1, 0, None)


# --- owners and keys --------------------------------------------------------------------------------


async def test_an_older_epoch_is_fenced_off(store: Store) -> None:
    first = await store.take_ownership()
    await write(store, first, accepted())
    second = await store.take_ownership()
    assert second > first
    for epoch in (first, first - 1, second + 1):
        ticket = store.append(Batch((event("job_1", 1),), epoch))
        with pytest.raises(FencedError, match=f"epoch {epoch} is over"):
            await store.committed(ticket)
        assert "refused" in repr(ticket)
    await write(store, second, event("job_1", 1))
    (job,) = await store.running_jobs()
    assert job.last_seq == 1


async def test_nothing_is_written_before_the_store_is_owned(kind: str, tmp_path: Path) -> None:
    async with open_store(kind, tmp_path) as store:
        for epoch in (-1, 0, 1):
            with pytest.raises(FencedError):
                await write(store, epoch, accepted())
        assert await store.running_jobs() == []


async def test_in_one_go_batches_of_two_epochs(store: Store) -> None:
    old = await store.take_ownership()
    new = await store.take_ownership()
    tickets = [store.append(Batch((accepted(f"job_{number}"),), old if number % 2 else new)) for number in range(6)]
    await store.flush()
    assert [type(ticket.refusal) for ticket in tickets] == [type(None), FencedError] * 3
    assert [job.job_id for job in await store.running_jobs()] == ["job_0", "job_2", "job_4"]


@pytest.mark.requirement("P7.6", "I04")
async def test_of_many_that_want_one_key_one_gets_it(store: Store, epoch: int) -> None:
    won: list[str] = []
    lost: list[StoredKey] = []

    async def submit(job_id: str) -> None:
        try:
            await write(store, epoch, claim("key", job_id), accepted(job_id))
        except KeyTakenError as exc:
            lost.append(exc.existing)
        else:
            won.append(job_id)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(submit, f"job_{number}")
    (winner,) = won
    assert [job.job_id for job in await store.running_jobs()] == [winner]
    assert len(lost) == 49
    assert {key.job_id for key in lost} == {winner}
    assert (await store.keys(None, 10)).items == [
        StoredKey(principal="me", key="key", digest=b"digest of " + winner.encode(), job_id=winner)
    ]


@pytest.mark.requirement("P7.4", "I08")
async def test_a_key_is_its_principals_own(store: Store, epoch: int) -> None:
    await write(store, epoch, accepted(), claim("key", "job_1"))
    await write(store, epoch, accepted("job_2", "you"), claim("key", "job_2", "you"))
    # The same again is the same.
    await write(store, epoch, claim("key", "job_1"))
    assert [key.job_id for key in (await store.keys(None, 10)).items] == ["job_1", "job_2"]


@pytest.mark.requirement("P7.6", "I05", "I09")
async def test_a_key_can_be_had_again_when_it_stands_for_nothing(store: Store, epoch: int) -> None:
    await write(store, epoch, claim("key", "job_1"))
    with pytest.raises(KeyTakenError, match="stands for job_1") as caught:
        await write(store, epoch, claim("key", "job_2"))
    assert caught.value.existing.digest == b"digest of job_1"
    # A submit that was refused.
    await write(store, epoch, KeyReleased("me", "key"), KeyReleased("me", "other"))
    await write(store, epoch, claim("key", "job_2"), accepted("job_2"), *ended("job_2", 1))
    # A job that is known no more: in the same batch, or in another of the same commit.
    tickets = [
        store.append(Batch((JobEvicted("job_2"),), epoch)),
        store.append(Batch((claim("key", "job_3"), accepted("job_3"), *ended("job_3", 1)), epoch)),
        store.append(Batch((JobEvicted("job_3"), claim("key", "job_4"), accepted("job_4")), epoch)),
    ]
    for ticket in tickets:
        await store.committed(ticket)
    assert [key.job_id for key in (await store.keys(None, 10)).items] == ["job_4"]


@pytest.mark.requirement("P7.6", "I05")
async def test_a_key_without_a_job_is_void_for_the_next_owner(store: Store, epoch: int) -> None:
    """Its submit was given up between the claim and the acceptance, when its runtime died."""
    await write(store, epoch, claim("kept", "job_1"), accepted())
    await write(store, epoch, claim("void", "job_2"))
    assert len((await store.keys(None, 10)).items) == 2
    await store.take_ownership()
    assert [key.key for key in (await store.keys(None, 10)).items] == ["kept"]


# --- what is durable --------------------------------------------------------------------------------


@pytest.mark.requirement("P6.9", "P7.4", "Z14")
@pytest.mark.parametrize("kind", DURABLE)
async def test_a_store_that_is_opened_again_has_everything(kind: str, tmp_path: Path) -> None:
    async with open_store(kind, tmp_path) as store:
        epoch = await store.take_ownership()
        await write(store, epoch, opened(), opened("sess_2"), accepted(), accepted("job_2"), accepted("job_3"))
        await write(store, epoch, SessionFollowed("sess_1", "job_1"), TokensChanged("sess_1", (b"one", b"two")))
        await write(store, epoch, RiderAppended(session_id="sess_1", content=b"accepted"), claim("key", "job_1"))
        await write(store, epoch, *[event("job_1", n, ("sess_1", n)) for n in range(1, 6)])
        await write(store, epoch, OutcomeDecided(job_id="job_1", outcome=b"cancelled"), JobOwned("job_1", "sess_1"))
        await write(store, epoch, *ended("job_2", 1, ("sess_1", 6)), LedgerNoted(entry("cred_1")))
        await write(store, epoch, SessionAcknowledged("sess_1", 2), SessionWaiting("sess_1", 3_000))
        await write(store, epoch, *ended("job_3", 1), JobEvicted("job_3"), SessionEnded("sess_2"))
        await write(store, epoch, OwnAppended(session_id="sess_1", event_seq=7, content=b"own"), accepted("job_4"))
        before = await dump(store)
    async with open_store(kind, tmp_path) as store:
        assert await dump(store) == before
        # And goes on where it was.
        assert await store.take_ownership() > epoch
        with pytest.raises(FencedError):
            await write(store, epoch, event("job_1", 6, ("sess_1", 8)))
        epoch = await store.take_ownership()
        await write(store, epoch, event("job_1", 6, ("sess_1", 8)), event("job_4", 1, ("sess_1", 9)))
        assert [each.event_seq for each in await read_window(store, "sess_1")] == [3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("kind", DURABLE)
async def test_what_was_appended_last_is_written_when_a_store_is_left(kind: str, tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with open_store(kind, tmp_path) as store:
            epoch = await store.take_ownership()
            store.append(Batch((accepted(),), epoch))
            raise KeyError
    async with open_store(kind, tmp_path) as store:
        assert [job.job_id for job in await store.running_jobs()] == ["job_1"]
