"""The table, its one function, and every sequence of up to six messages."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

import pytest

from arcp_trio.jobs import lifecycle
from arcp_trio.jobs.lifecycle import (
    PENDING,
    TABLE,
    AgentEnded,
    Cancel,
    DeadlinePassed,
    Effect,
    End,
    FinalStatus,
    GraceElapsed,
    LeaseExpired,
    Message,
    Outcome,
    ParentStopping,
    Phase,
    RuntimeClosing,
    Start,
    State,
    TornDown,
    apply,
    render_table,
)

SUCCESS = Outcome(final_status=FinalStatus.SUCCESS)
FAILURE = Outcome(final_status=FinalStatus.ERROR, code="INTERNAL_ERROR")
STOPPED = Outcome(final_status=FinalStatus.ERROR, code="INTERNAL_ERROR")
CANCELLED = Outcome(final_status=FinalStatus.CANCELLED, code="CANCELLED")
TIMED_OUT = Outcome(final_status=FinalStatus.TIMED_OUT, code="TIMEOUT")
EXPIRED = Outcome(final_status=FinalStatus.ERROR, code="LEASE_EXPIRED")
PARENT = Outcome(final_status=FinalStatus.CANCELLED, code="CANCELLED")
CLOSING = Outcome(final_status=FinalStatus.ERROR, code="INTERNAL_ERROR", retryable=True)

MESSAGES: tuple[Message, ...] = (
    Start(),
    AgentEnded(End.RETURNED, SUCCESS),
    AgentEnded(End.RAISED, FAILURE),
    AgentEnded(End.STOPPED, STOPPED),
    Cancel(30.0, CANCELLED),
    DeadlinePassed(30.0, TIMED_OUT),
    LeaseExpired(1.0, EXPIRED),
    ParentStopping(20.0, PARENT),
    RuntimeClosing(10.0, CLOSING),
    GraceElapsed(),
    TornDown(),
)

DECIDED = (Phase.STOPPING, Phase.ENDING, Phase.ENDED)


def check_step(history: tuple[Message, ...], state: State, after: State, effects: tuple[Effect, ...]) -> None:
    """The invariants of design.md that one step can break."""
    message = history[-1]
    # An outcome that is decided never changes, and an ended job never moves.
    if state.phase in DECIDED:
        assert after.outcome is state.outcome, history
    if state.phase is Phase.ENDED:
        assert after is state, history
        assert set(effects) <= {Effect.REFUSE, Effect.REPORT_BUG}, history
    # Phases are only ever passed forwards.
    order = list(Phase)
    assert order.index(after.phase) >= order.index(state.phase), history
    # A decision has an outcome, and nothing before it has one.
    assert (after.outcome is not None) == (after.phase in DECIDED), history
    # Publishing is entering ended; tearing down is entering ending: neither happens otherwise.
    assert (Effect.PUBLISH in effects) == (after.phase is Phase.ENDED is not state.phase), history
    assert (Effect.TEAR_DOWN in effects) == (after.phase is Phase.ENDING is not state.phase), history
    assert (Effect.STOP_AGENT in effects) == (after.phase is Phase.STOPPING is not state.phase), history
    # Children are told where a decision is made while there can be some: on leaving running, whatever the way.
    assert (Effect.STOP_CHILDREN in effects) == (state.phase is Phase.RUNNING is not after.phase), history
    # Before anything is torn down: what is torn down ends only when they have.
    if Effect.STOP_CHILDREN in effects and Effect.TEAR_DOWN in effects:
        assert effects.index(Effect.STOP_CHILDREN) < effects.index(Effect.TEAR_DOWN), history
    assert (Effect.START_AGENT in effects) == (after.phase is Phase.RUNNING is not state.phase), history
    # An ack is an effect only of entering an outcome cancelled, by a cancel.
    if Effect.ACKNOWLEDGE in effects:
        assert type(message) is Cancel, history
        assert state.phase not in DECIDED, history
        assert after.outcome is CANCELLED, history
    # A cancel is acknowledged or refused, and a refused one changes nothing.
    if type(message) is Cancel:
        assert (Effect.ACKNOWLEDGE in effects) != (Effect.REFUSE in effects), history
        if Effect.REFUSE in effects:
            assert after is state, history
            assert effects == (Effect.REFUSE,), history
    else:
        assert Effect.REFUSE not in effects, history
    # An agent is disowned only when its grace is over, and a grace that runs can only become shorter.
    assert Effect.DISOWN_AGENT not in effects or type(message) is GraceElapsed, history
    if state.phase is after.phase and state.until is not None:
        assert after.until is not None, history
        assert after.until <= state.until, history


def walk(
    history: tuple[Message, ...], state: State, counts: dict[Effect, int], depth: int
) -> Iterator[tuple[tuple[Message, ...], State, dict[Effect, int]]]:
    yield history, state, counts
    if depth == 0:
        return
    for message in MESSAGES:
        after, effects = apply(state, message)
        longer = (*history, message)
        check_step(longer, state, after, effects)
        more = dict(counts)
        for effect in effects:
            more[effect] = more.get(effect, 0) + 1
        yield from walk(longer, after, more, depth - 1)


def check_history(history: tuple[Message, ...], state: State, counts: dict[Effect, int]) -> None:
    """The invariants of design.md that only a whole sequence can break."""
    assert counts.get(Effect.PUBLISH, 0) == (state.phase is Phase.ENDED), history
    assert counts.get(Effect.TEAR_DOWN, 0) == (state.phase in (Phase.ENDING, Phase.ENDED)), history
    for once in (Effect.START_AGENT, Effect.STOP_AGENT, Effect.STOP_CHILDREN, Effect.ACKNOWLEDGE, Effect.DISOWN_AGENT):
        assert counts.get(once, 0) <= 1, history
    # No job that has run comes to its tear-down without having told its children (P10.3).
    if state.phase in (Phase.ENDING, Phase.ENDED):
        assert counts.get(Effect.STOP_CHILDREN, 0) == counts.get(Effect.START_AGENT, 0), history
    if counts.get(Effect.ACKNOWLEDGE):
        assert state.outcome is CANCELLED, history


def standing(state: State, counts: dict[Effect, int]) -> tuple[object, ...]:
    """What decides everything that can still happen: sequences that lead to the same have the same future."""
    return state.phase, id(state.outcome), state.until, frozenset(counts.items())


@pytest.mark.requirement("P7.8", "P7.14", "L01", "Z10")
def test_every_sequence_of_six_messages() -> None:
    """All 1,948,717 of them; those that have come to the same standing go on as one, and are counted."""
    standings: dict[tuple[object, ...], tuple[tuple[Message, ...], State, dict[Effect, int], int]]
    standings = {standing(PENDING, {}): ((), PENDING, {}, 1)}
    sequences = 0
    for _ in range(7):
        following: dict[tuple[object, ...], tuple[tuple[Message, ...], State, dict[Effect, int], int]] = {}
        for history, state, counts, number in standings.values():
            check_history(history, state, counts)
            sequences += number
            for message in MESSAGES:
                after, effects = apply(state, message)
                longer = (*history, message)
                check_step(longer, state, after, effects)
                more = dict(counts)
                for effect in effects:
                    more[effect] = more.get(effect, 0) + 1
                first, _, _, before = following.get(standing(after, more), (longer, after, more, 0))
                following[standing(after, more)] = (first, after, more, before + number)
        standings = following
    assert sequences == sum(len(MESSAGES) ** length for length in range(7)) == 1_948_717


@pytest.mark.requirement("P7.8", "P7.13")
def test_whatever_happened_a_job_that_winds_up_publishes_once() -> None:
    """Exactly one publish on each sequence that ends the agent (or its grace, or never starts it) and tears down."""
    seen: set[tuple[Phase, FinalStatus | None]] = set()
    for history, state, counts in walk((), PENDING, {}, 4):
        check_history(history, state, counts)
        seen.add((state.phase, state.outcome.final_status if state.outcome else None))
        publishes = counts.get(Effect.PUBLISH, 0)
        for wind_up in (
            (Start(), AgentEnded(End.RETURNED, SUCCESS), TornDown()),
            (Start(), RuntimeClosing(0.0, CLOSING), GraceElapsed(), TornDown()),
        ):
            last, total = state, publishes
            for message in wind_up:
                last, effects = apply(last, message)
                total += effects.count(Effect.PUBLISH)
            assert (last.phase, total) == (Phase.ENDED, 1), (history, wind_up)
    assert {status for phase, status in seen if phase is Phase.ENDED} == set(FinalStatus)


# The table of design.md once more, by hand: (next phase or None, effects), in the order of Phase.
NOTHING = (None, ())
BUG = (None, (Effect.REPORT_BUG,))
REFUSED = (None, (Effect.REFUSE,))
TIGHTEN = (None, (Effect.TIGHTEN,))
STOP = (Phase.STOPPING, (Effect.STOP_AGENT, Effect.STOP_CHILDREN, Effect.SET_GRACE))
END = (Phase.ENDING, (Effect.TEAR_DOWN,))
EXPECTED = {
    Start: [(Phase.RUNNING, (Effect.START_AGENT,)), BUG, BUG, NOTHING, NOTHING],
    AgentEnded: [BUG, (Phase.ENDING, (Effect.STOP_CHILDREN, Effect.TEAR_DOWN)), END, NOTHING, NOTHING],
    Cancel: [
        (Phase.ENDING, (Effect.ACKNOWLEDGE, Effect.TEAR_DOWN)),
        (Phase.STOPPING, (Effect.ACKNOWLEDGE, Effect.STOP_AGENT, Effect.STOP_CHILDREN, Effect.SET_GRACE)),
        REFUSED,
        REFUSED,
        REFUSED,
    ],
    DeadlinePassed: [BUG, STOP, NOTHING, NOTHING, NOTHING],
    LeaseExpired: [END, STOP, TIGHTEN, NOTHING, NOTHING],
    ParentStopping: [END, STOP, TIGHTEN, TIGHTEN, NOTHING],
    RuntimeClosing: [END, STOP, TIGHTEN, TIGHTEN, NOTHING],
    GraceElapsed: [BUG, BUG, (Phase.ENDING, (Effect.DISOWN_AGENT, Effect.TEAR_DOWN)), NOTHING, NOTHING],
    TornDown: [BUG, BUG, BUG, (Phase.ENDED, (Effect.PUBLISH,)), NOTHING],
}


def test_the_table_is_the_one_that_was_designed() -> None:
    actual = {
        message: [(TABLE[message, phase].to, TABLE[message, phase].effects) for phase in Phase] for message in EXPECTED
    }
    assert actual == EXPECTED
    assert len(TABLE) == len(EXPECTED) * len(Phase)


@pytest.mark.requirement("P7.8a", "P7.10", "L13", "G17")
@pytest.mark.parametrize(
    ("message", "status"),
    [
        (MESSAGES[1], "success"),
        (MESSAGES[2], "error"),
        (MESSAGES[4], "cancelled"),
        (MESSAGES[5], "timed_out"),
        (MESSAGES[6], "error"),
        (MESSAGES[7], "cancelled"),
        (MESSAGES[8], "error"),
    ],
)
def test_the_first_cause_decides(message: Message, status: str) -> None:
    running, _ = apply(PENDING, Start())
    decided, _ = apply(running, message)
    for later in MESSAGES:
        state, _ = apply(decided, later)
        assert state.outcome is not None
        assert state.outcome.final_status.value == status


def test_a_shutdown_shortens_a_grace_and_never_lengthens_it() -> None:
    running, _ = apply(PENDING, Start())
    stopping, _ = apply(running, Cancel(30.0, CANCELLED))
    shorter, effects = apply(stopping, RuntimeClosing(10.0, CLOSING))
    assert (shorter.until, effects) == (10.0, (Effect.TIGHTEN,))
    same, _ = apply(shorter, RuntimeClosing(20.0, CLOSING))
    assert same.until == 10.0
    ending, _ = apply(shorter, AgentEnded(End.STOPPED, STOPPED))
    assert ending.until is None
    # A grace bounds an agent, and a job that never started has none.
    for message in (Cancel(30.0, CANCELLED), LeaseExpired(1.0, EXPIRED)):
        assert apply(PENDING, message)[0].until is None
    # What stops a job from above bounds its tear-down too, whenever it comes; what expires does not.
    for above in (RuntimeClosing(10.0, CLOSING), ParentStopping(10.0, PARENT)):
        assert apply(PENDING, above)[0].until == 10.0
        assert apply(stopping, above)[0].until == 10.0
        bounded, _ = apply(ending, above)
        assert (bounded.until, bounded.outcome) == (10.0, CANCELLED)
    assert apply(stopping, LeaseExpired(1.0, EXPIRED))[0].until == 1.0
    assert apply(ending, LeaseExpired(1.0, EXPIRED))[0] is ending
    assert apply(stopping, DeadlinePassed(1.0, TIMED_OUT))[0] is stopping


def test_the_drawing_has_every_cell() -> None:
    drawn = render_table().splitlines()
    assert len(drawn) == 2 + len(EXPECTED)
    assert all(line.count("|") == len(Phase) + 2 for line in drawn)
    assert (
        "| Cancel | → ending(cancelled); ack; tear down "
        "| → stopping(cancelled); ack; stop agent; stop children; grace |" in drawn[4]
    )


def test_the_module_is_pure() -> None:
    tree = ast.parse(inspect.getsource(lifecycle))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names} | {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert imported == {"__future__", "collections.abc", "enum", "typing", "attrs"}
