"""What the servers of four implementations really sent (F1 to F849), to our client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio
from interop.recorded import Record, between, number, records
from interop.scripted import FakeRuntime, Played, Player, Submitted, open_scripted, read_to_the_end

import arcp_trio
from arcp_trio.transports.memory import open_memory_pair
from arcp_trio.wire.codec import MESSAGES, read_message
from arcp_trio.wire.envelope import Envelope, decode_envelope
from arcp_trio.wire.errors import error_class
from arcp_trio.wire.job_messages import JobError, JobEvent, JobResult
from arcp_trio.wire.session_messages import SessionError, SessionWelcome

FROM_SERVERS = [record for record in records() if not record.from_client]


# --- each frame by itself -------------------------------------------------------------------------


def read(record: Record) -> tuple[Envelope, Any]:
    envelope = decode_envelope(json.dumps(record.frame), strict=False)
    return envelope, read_message(envelope, MESSAGES[envelope.type])


@pytest.mark.requirement("P5.4", "T01", "T02", "T21", "D1", "D2", "D5", "D8", "D10", "D17", "D24", "D44")
def test_every_frame_of_a_server_can_be_read() -> None:
    types = set()
    for record in FROM_SERVERS:
        envelope, message = read(record)
        types.add(envelope.type)
        payload = record.frame["payload"]
        assert envelope.job_id == record.frame.get("job_id"), record.n
        assert envelope.event_seq == record.frame.get("event_seq"), record.n
        if isinstance(message, JobEvent):
            assert (message.kind, message.body) == (payload["kind"], payload["body"]), record.n
            assert message.ts == payload.get("ts")
        elif isinstance(message, JobResult):
            assert message.final_status == payload["final_status"]
            assert message.result == payload.get("result", payload.get("output")), record.n
        elif isinstance(message, (JobError, SessionError)):
            assert (message.code, message.message) == (payload["code"], payload["message"]), record.n
            assert message.retryable is payload["retryable"]
        elif isinstance(message, SessionWelcome):
            assert message.session_id == record.frame["session_id"]
            assert message.runtime.name in ("py-rt", "go-rt", "ts-rt", "arcp-runtime")
    assert types == {
        "session.welcome",
        "session.error",
        "session.ping",
        "session.pong",
        "session.jobs",
        "session.closed",
        "job.accepted",
        "job.event",
        "job.result",
        "job.error",
        "job.cancelled",
        "job.subscribed",
    }


@pytest.mark.requirement("P8.1", "D35", "D48", "D49")
def test_every_body_of_an_event_has_the_shape_of_its_kind() -> None:
    kinds = set()
    for record in FROM_SERVERS:
        if record.type == "job.event":
            payload = record.frame["payload"]
            event = arcp_trio.Event(job_id="job", kind=payload["kind"], body=payload["body"])
            assert type(event.parse()).__name__.lower() == payload["kind"].replace("_", ""), record.n
            kinds.add(payload["kind"])
    assert len(kinds) == 10


# --- whole conversations --------------------------------------------------------------------------


@attrs.frozen
class Ok:
    """The job succeeds."""

    value: Any
    kinds: str = ""


@attrs.frozen
class Fails:
    """The job ends with an error."""

    error: type[arcp_trio.ARCPError]
    status: str = "error"
    message: str = ""
    kinds: str = ""


@attrs.frozen
class Refused:
    """There is no job: the call raises."""

    error: type[arcp_trio.ARCPError]
    message: str = ""


@attrs.frozen
class Lost:
    """The job is accepted, and nothing says how it ended before the connection does."""

    kinds: str = ""


LATE = arcp_trio.CancelOutcome(applied=False, status="cancelled")
APPLIED = arcp_trio.CancelOutcome(applied=True, status="cancelled")

_GO_ECHO = "log metric artifact_ref progress tool_call tool_result"
_TS_ECHO = "status log metric metric artifact_ref progress tool_call tool_result"
_RB_ECHO = "log metric progress tool_result"
_PY_ECHO = "log status thought progress tool_call tool_result metric"


@attrs.frozen
class Conversation:
    """A recorded session and what our client makes of it.

    Attributes:
        name: The test's name.
        records: The session, its hello first.
        submits: For each recorded submit, by its number.
        cancels: For each recorded cancel: the outcome, or the class that the call raises.
        close: The recorded answer to a close; ``None`` if the connection ended before one.
    """

    name: str
    records: Sequence[Record]
    submits: dict[int, Ok | Fails | Refused | Lost]
    cancels: dict[int, arcp_trio.CancelOutcome | type[arcp_trio.ARCPError]] = attrs.field(factory=dict)
    close: int | None = None


CONVERSATIONS = [
    Conversation(
        "go",
        between(269, 376, conn="A"),
        {
            271: Ok({"echo": {"m": 1}}, "log metric metric artifact_ref progress tool_call tool_result"),
            281: Lost(),  # the same key again: only the acceptance is repeated
            283: Refused(arcp_trio.DuplicateKeyError),
            285: Fails(arcp_trio.InternalError, message="kaboom"),
            288: Ok("hello world"),
            294: Ok(1),
            297: Refused(arcp_trio.AgentNotAvailableError, "agent nosuch"),
            299: Refused(arcp_trio.AgentVersionNotAvailableError),
            301: Refused(arcp_trio.InvalidRequestError, "agent name"),
            303: Ok({"echo": 1}, _GO_ECHO),
            312: Refused(arcp_trio.InvalidRequestError, "expires_at"),
            314: Ok({"echo": 1}, _GO_ECHO),
            336: Fails(arcp_trio.JobCancelledError, "cancelled", "user asked", " ".join(["progress"] * 6)),
            365: Fails(arcp_trio.JobTimeoutError, "timed_out", "max_runtime", " ".join(["progress"] * 9)),
        },
        {323: arcp_trio.JobNotFoundError, 356: APPLIED, 360: LATE},
        close=378,
    ),
    Conversation(
        "typescript",
        between(425, 527, conn="A"),
        {
            427: Ok({"echo": {"m": 1}}, _TS_ECHO),
            438: Lost(),
            440: Refused(arcp_trio.DuplicateKeyError),  # reported on the job that has the key
            442: Fails(arcp_trio.InternalError, message="kaboom", kinds="status"),
            446: Fails(arcp_trio.InvalidRequestError, kinds="status"),
            452: Ok(1, "status"),
            456: Refused(arcp_trio.AgentNotAvailableError, "nosuch"),  # job.error of a job that never was
            458: Refused(arcp_trio.AgentVersionNotAvailableError),  # session.error that names nothing
            460: Refused(arcp_trio.InvalidRequestError, "agent name"),
            462: Refused(arcp_trio.InvalidRequestError, "weird"),
            464: Refused(arcp_trio.InvalidRequestError, "expires_at"),
            466: Refused(arcp_trio.InvalidRequestError, "Invalid envelope"),
            481: Fails(arcp_trio.JobCancelledError, "cancelled", "user asked", "status" + " progress" * 7),
            514: Fails(arcp_trio.JobTimeoutError, "timed_out", "max_runtime", "status" + " progress" * 10),
        },
        {468: arcp_trio.JobNotFoundError, 505: APPLIED, 509: LATE},
        close=529,
    ),
    Conversation(
        "ruby",
        between(564, 669, conn="A"),
        {
            566: Ok({"echo": {"m": 1}}, _RB_ECHO),  # events and result before the acceptance
            573: Lost(),
            575: Refused(arcp_trio.DuplicateKeyError),
            577: Fails(arcp_trio.InternalError, message="kaboom"),
            580: Ok("hello world"),
            585: Ok(1),
            588: Refused(arcp_trio.AgentNotAvailableError, "nosuch"),
            590: Refused(arcp_trio.AgentVersionNotAvailableError),
            592: Refused(arcp_trio.AgentNotAvailableError, "BAD NAME"),
            594: Ok({"echo": 1}, _RB_ECHO),
            601: Refused(arcp_trio.InvalidRequestError, "expires_at"),
            603: Ok({"echo": 1}, "log metric progress tool_call tool_result"),
            # Another session of the principal cancels it.
            624: Fails(arcp_trio.JobCancelledError, "cancelled", "other session", " ".join(["progress"] * 7)),
            656: Fails(arcp_trio.JobTimeoutError, "timed_out", "max_runtime", " ".join(["progress"] * 10)),
        },
        {611: arcp_trio.JobNotFoundError, 649: LATE, 650: LATE},
        close=671,
    ),
    Conversation(
        "python",
        between(715, 811, conn="A"),
        {
            717: Ok({"echo": {"m": 1}}, "log progress"),
            722: Ok({"echo": {"m": 1}}),  # the same key again: here the terminal event is repeated too
            725: Refused(arcp_trio.DuplicateKeyError),
            727: Fails(arcp_trio.InternalError, message="kaboom"),
            730: Ok("hello world"),
            736: Refused(arcp_trio.AgentNotAvailableError, "ver"),
            738: Refused(arcp_trio.AgentNotAvailableError, "nosuch"),
            740: Refused(arcp_trio.AgentNotAvailableError, "ver"),
            742: Refused(arcp_trio.InternalError, "invalid agent name"),
            744: Refused(arcp_trio.InvalidRequestError, "weird"),
            746: Refused(arcp_trio.InvalidRequestError, "expires_at"),
            748: Refused(arcp_trio.InternalError, "max_runtime_sec"),
            # Another session of the principal cancels it; the end is a job.result.
            763: Fails(arcp_trio.JobCancelledError, "cancelled", kinds=" ".join(["progress"] * 7)),
            799: Fails(arcp_trio.JobTimeoutError, "timed_out", kinds=" ".join(["progress"] * 10)),
        },
        {750: arcp_trio.JobNotFoundError, 786: LATE, 787: LATE},
        close=813,
    ),
    Conversation(
        "python-full",
        between(1, 47),
        {
            3: Ok({"echoed": {"m": 1}}, _PY_ECHO + " metric"),
            15: Ok(b"hello world\x00\x01"),  # text, text, base64, and an empty text to end it
            23: Ok({"echoed": None}, _PY_ECHO),
            33: Ok(None, "delegate"),
            37: Ok({"echoed": {"m": 1}}),
        },
        close=813,
    ),
    Conversation(
        "python-terminals",
        between(50, 90),
        {
            52: Fails(arcp_trio.InternalError, message="kaboom"),
            56: Fails(arcp_trio.PermissionDeniedError, message="not permitted by lease"),
            60: Fails(arcp_trio.BudgetExhaustedError, message="exhausted", kinds="metric metric"),
            66: Fails(arcp_trio.JobTimeoutError, "timed_out", kinds=" ".join(["progress"] * 10)),
            82: Fails(arcp_trio.JobCancelledError, "cancelled", kinds=" ".join(["progress"] * 3)),
        },
        {87: APPLIED, 90: LATE},
        close=813,
    ),
    Conversation(
        "python-refuses-an-agent",
        between(93, 96),
        {95: Refused(arcp_trio.AgentNotAvailableError, "nosuch")},
        close=813,
    ),
    Conversation(
        "python-refuses-a-version",
        between(100, 103),
        {102: Refused(arcp_trio.AgentVersionNotAvailableError)},
        close=813,
    ),
    Conversation("python-refuses-a-key", between(107, 110), {109: Refused(arcp_trio.DuplicateKeyError)}, close=813),
    Conversation(
        "python-refuses-a-namespace",
        between(114, 117),
        {116: Refused(arcp_trio.InvalidRequestError, "weird")},
        close=813,
    ),
    Conversation(
        "python-refuses-an-expiry",
        between(121, 124),
        {123: Refused(arcp_trio.InvalidRequestError, "expires_at")},
        close=813,
    ),
    Conversation(
        "python-observed",
        between(186, 235, conn="A"),
        {192: Fails(arcp_trio.JobCancelledError, "cancelled", kinds=" ".join(["progress"] * 13))},
        close=813,
    ),
    Conversation("go-drops", between(382, 389), {384: Lost(" ".join(["progress"] * 4))}),
    Conversation("typescript-drops", between(533, 542), {535: Lost("status" + " progress" * 5)}),
    Conversation("ruby-drops", between(677, 685), {679: Lost(" ".join(["progress"] * 5))}),
    Conversation("python-drops", between(817, 825), {819: Lost(" ".join(["progress"] * 5))}),
    Conversation("python-drops-its-own", between(242, 250), {244: Lost(" ".join(["progress"] * 5))}),
]


def check_events(submitted: Submitted, kinds: str, *, number_them: bool) -> None:
    handle = submitted.handle
    assert handle is not None
    assert [event.kind for event in submitted.events] == kinds.split(), submitted.record.n
    assert all(event.job_id == handle.job_id for event in submitted.events)
    if number_them:
        numbers = [event.event_seq for event in submitted.events if event.event_seq is not None]
        assert numbers == sorted(set(numbers))
        assert len(numbers) == len(submitted.events)


def check_submit(submitted: Submitted, expected: Ok | Fails | Refused | Lost) -> None:
    where = f"F{submitted.record.n}"
    if isinstance(expected, Refused):
        assert submitted.handle is None, where
        assert type(submitted.refusal) is expected.error, (where, submitted.refusal)
        assert expected.message in submitted.refusal.message
        return
    assert submitted.refusal is None, (where, submitted.refusal)
    check_events(submitted, expected.kinds, number_them=True)
    assert submitted.handle is not None
    if isinstance(expected, Ok):
        assert submitted.failure is None, (where, submitted.failure)
        assert submitted.result == expected.value, where
        assert type(submitted.result) is type(expected.value), where
        assert submitted.handle.status == "success"
    elif isinstance(expected, Fails):
        assert type(submitted.failure) is expected.error, (where, submitted.failure)
        assert expected.message in submitted.failure.message
        assert submitted.handle.status == expected.status
    else:
        assert type(submitted.failure) is arcp_trio.ConnectionLostError, where
        assert submitted.handle.status == "running"


async def play(conversation: Conversation, *, in_bursts: bool) -> Played:
    hello, welcome, *rest = conversation.records
    assert (hello.type, welcome.type) == ("session.hello", "session.welcome")

    async def answer_close(fake: FakeRuntime) -> None:
        assert conversation.close is not None
        answer = number(conversation.close)
        await fake.send(answer.frame)
        if answer.type == "session.ping":
            # One server ignores a close; its heartbeat is answered all the same.
            await fake.receive("session.pong")
        if answer.type != "session.closed":
            await fake.receive("session.bye")
        await fake.close()

    with trio.fail_after(60):
        async with open_scripted(welcome.frame, close=answer_close) as (client, fake):
            assert client.session_id == welcome.frame["session_id"]
            player = Player(client, fake, rest, in_bursts=in_bursts)
            await player.play()
            if conversation.close is None:
                await fake.abort()
        for submitted in player.played.submits.values():
            if submitted.handle is not None and submitted.handle.terminal is None:
                await read_to_the_end(submitted)
    return player.played


@pytest.mark.requirement("P6.21", "P7.2", "P7.8", "P7.13", "P7.14", "P12.1", "P12.2", "X8")
@pytest.mark.requirement("D14", "D15", "D16", "D29", "D30", "D31", "D32", "D33", "D34", "D35", "D36", "D37")
@pytest.mark.requirement("D38", "D39", "D40", "D41", "D42", "D47", "E01", "E04", "K02", "T21", "L04")
@pytest.mark.parametrize("in_bursts", [False, True], ids=["one-by-one", "in-bursts"])
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=[conversation.name for conversation in CONVERSATIONS])
async def test_a_recorded_conversation(
    autojump_clock: trio.testing.MockClock, conversation: Conversation, in_bursts: bool
) -> None:
    played = await play(conversation, in_bursts=in_bursts)
    recorded = [record.n for record in conversation.records if record.type == "job.submit"]
    assert list(played.submits) == recorded == list(conversation.submits)
    for n, submitted in played.submits.items():
        check_submit(submitted, conversation.submits[n])
    assert played.cancels.keys() == conversation.cancels.keys()
    for n, outcome in played.cancels.items():
        expected = conversation.cancels[n]
        assert outcome == expected or type(outcome) is expected, (n, outcome)
    # What our client sent, and nothing else: a late cancel is not sent to a server that would not answer.
    sent = [frame["type"] for frame in played.received]
    assert sent.count("job.cancel") == sum(outcome != LATE for outcome in played.cancels.values())
    assert set(sent) <= {
        "session.hello",
        "job.submit",
        "job.cancel",
        "session.pong",
        "session.ack",
        "session.close",
        "session.bye",
    }
    if conversation.close is not None:
        polite = ["session.close"] if conversation.close == 378 else ["session.close", "session.bye"]
        assert [name for name in sent if name in ("session.close", "session.bye")] == polite


OTHERS = [
    between(186, 241, conn="B"),
    between(186, 241, conn="X"),
    between(252, 262),
    between(334, 364, conn="B"),
    between(391, 409),
    between(479, 513, conn="B"),
    between(544, 552),
    between(622, 675, conn="B"),
    between(687, 698),
    between(761, 798, conn="B"),
    between(827, 833),
]


@pytest.mark.requirement("P5.4", "D20", "D43", "D45", "Z13")
@pytest.mark.parametrize("conversation", OTHERS, ids=lambda records_: f"F{records_[0].n}")
async def test_jobs_of_others_disturb_nothing(
    autojump_clock: trio.testing.MockClock, conversation: Sequence[Record]
) -> None:
    """Subscriptions and resumed sessions that our client has not asked for: it ignores their frames."""
    _, welcome, *rest = conversation
    rest = [record for record in rest if record.type != "job.cancel"]
    with trio.fail_after(60):
        async with open_scripted(welcome.frame) as (client, fake):
            player = Player(client, fake, rest, in_bursts=False)
            await player.play()
            assert not player.played.submits
            # It still takes its own.
            await fake.send({**number(46).frame, "session_id": client.session_id})
            await fake.receive("session.pong")
            assert not client._session.jobs
            assert not client._session.early.frames
            assert client._session.early.count == 0


def refused_hellos() -> list[Record]:
    found = []
    for hello, answer in zip(records(), records()[1:], strict=False):
        if hello.type == "session.hello" and answer.type == "session.error" and hello.conn == answer.conn:
            found.append(answer)
    return found


@pytest.mark.requirement("P6.1", "D4", "D17", "D19", "K02")
@pytest.mark.parametrize("refusal", refused_hellos(), ids=lambda record: f"F{record.n}")
async def test_a_refused_handshake_raises_what_it_says(refusal: Record) -> None:
    theirs, ours = open_memory_pair()
    fake = FakeRuntime(theirs)

    async def refuse() -> None:
        await fake.receive("session.hello")
        await fake.send(refusal.frame)
        await fake.close()

    payload = refusal.frame["payload"]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            with pytest.raises(error_class(payload["code"])) as caught:
                async with arcp_trio.open_client_over(ours, token="tok"):
                    pytest.fail("welcomed")
    assert type(caught.value) is not arcp_trio.ARCPError
    assert caught.value.message == payload["message"]
    assert caught.value.retryable is payload["retryable"]


@pytest.mark.requirement("P6.1")
def test_all_servers_have_refused_a_handshake() -> None:
    assert len({record.sdk for record in refused_hellos()}) == 4
