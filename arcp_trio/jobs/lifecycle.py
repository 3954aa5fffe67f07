"""The life of a job: a table, and one pure function that applies it.

Theory of operation. A job is in one of five phases. Everything that can happen to it is a message;
:data:`TABLE` says for each phase and message which phase follows, with which outcome and which
effects. :func:`apply` looks the cell up and returns the next state and the effects, in order; the
actor (:mod:`arcp_trio.jobs.actor`) carries them out. Whoever reads the table beside the
specification sees every transition that exists: there is no other.

Three words are kept apart. An outcome is *decided* on entering ``stopping`` or ``ending``, and from
then on nothing in the table changes it. It is *visible* when it was published, on entering ``ended``.
With a store it is published when it is *durable*.

This module does not import Trio, knows no clock, and :func:`apply` never raises: a message that
cannot come in a phase leaves the state and is counted by the actor as a bug.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import attrs

__all__ = [
    "EFFECTS",
    "PENDING",
    "TABLE",
    "AgentEnded",
    "Cancel",
    "Cell",
    "DeadlinePassed",
    "Decides",
    "Effect",
    "End",
    "FinalStatus",
    "GraceElapsed",
    "LeaseExpired",
    "Message",
    "Outcome",
    "ParentStopping",
    "Phase",
    "RuntimeClosing",
    "Start",
    "State",
    "TornDown",
    "apply",
    "render_table",
]


class Phase(Enum):
    """Where a job stands. ``stopping`` and ``ending`` read ``running`` on the wire."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDING = "ending"
    ENDED = "ended"


class FinalStatus(Enum):
    """The four terminal states of the protocol (P7.7)."""

    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


@attrs.frozen(kw_only=True, eq=False)
class Outcome:
    """How a job ends. ``final_status`` follows the cause, never the code (P7.8a).

    Attributes:
        final_status: One of the four terminal states.
        code: The error's code; empty for success.
        message: The error's message for the client; empty for success.
        retryable: The error's flag.
        details: The error's details, or ``None``.
        result: For success, what the agent returned, as its wrapper has encoded it; opaque here.
    """

    final_status: FinalStatus
    code: str = ""
    message: str = ""
    retryable: bool = False
    details: Mapping[str, Any] | None = None
    result: Any = None


# --- messages -------------------------------------------------------------------------------------


class End(Enum):
    """How an agent's task ended."""

    RETURNED = "returned"
    RAISED = "raised"
    STOPPED = "stopped"


@attrs.frozen
class Start:
    """The actor's own: its mailbox was empty, so the agent may start."""


@attrs.frozen(eq=False)
class AgentEnded:
    """The agent's task is over; its scope has closed.

    An agent that returns has ended only when its children have: its task waits for them, within the scope (P10.3).
    Until then the job runs, and whatever stops a running job stops this one. One that raises does not wait: its
    children are told to stop.

    Attributes:
        end: Whether it returned, raised, or was stopped by its scope.
        outcome: What that means if nothing was decided before; a stopped agent brings INTERNAL_ERROR, for
            only a decision stops an agent.
    """

    end: End
    outcome: Outcome


@attrs.frozen(eq=False)
class Cancel:
    """The owner wants the job to end.

    Attributes:
        until: When the agent's grace ends.
        outcome: CANCELLED.
        request: What the actor answers through; opaque here.
    """

    until: float
    outcome: Outcome
    request: Any = None


@attrs.frozen(eq=False)
class DeadlinePassed:
    """``max_runtime_sec`` has passed (P7.10)."""

    until: float
    outcome: Outcome


@attrs.frozen(eq=False)
class LeaseExpired:
    """The lease's ``expires_at`` has passed (P9.6)."""

    until: float
    outcome: Outcome


@attrs.frozen(eq=False)
class ParentStopping:
    """The job that delegated this one is being stopped (P10.3)."""

    until: float
    outcome: Outcome


@attrs.frozen(eq=False)
class RuntimeClosing:
    """The runtime shuts down."""

    until: float
    outcome: Outcome


@attrs.frozen
class GraceElapsed:
    """The agent was told to stop and has not."""


@attrs.frozen
class TornDown:
    """Children, credentials, lease and budget are dealt with; the outcome may become visible."""


Message = (
    Start
    | AgentEnded
    | Cancel
    | DeadlinePassed
    | LeaseExpired
    | ParentStopping
    | RuntimeClosing
    | GraceElapsed
    | TornDown
)


# --- states and effects ---------------------------------------------------------------------------


@attrs.frozen(eq=False)
class State:
    """A job's state.

    Attributes:
        phase: Where it stands.
        outcome: What was decided; ``None`` before a decision.
        until: When the current grace (``stopping``) or tear-down (``ending``) must be over, on the runtime's
            monotonic clock; ``None`` where nothing bounds it.
    """

    phase: Phase
    outcome: Outcome | None = None
    until: float | None = None


PENDING = State(Phase.PENDING)


class Effect(Enum):
    """What the actor does, in the order in which :func:`apply` returns it.

    What tightens does so for the agent's grace and for the children. A tear-down ends only when they have.
    """

    START_AGENT = "start agent"
    ACKNOWLEDGE = "ack"
    STOP_AGENT = "stop agent"
    STOP_CHILDREN = "stop children"
    SET_GRACE = "grace"
    DISOWN_AGENT = "disown agent"
    TEAR_DOWN = "tear down"
    TIGHTEN = "tighten"
    PUBLISH = "publish"
    REFUSE = "refused"
    REPORT_BUG = "bug"


EFFECTS = frozenset(Effect)


class Decides(Enum):
    """Where the next state's outcome comes from."""

    MESSAGE = "the message's"
    STATE = "the one that was decided"


@attrs.frozen
class Cell:
    """One cell of the table.

    Attributes:
        to: The next phase; ``None`` leaves the state.
        effects: What the actor does.
        decides: Where the outcome comes from, for a cell that goes somewhere with one.
        tightens: Whether the message's ``until`` shortens the state's.
    """

    to: Phase | None = None
    effects: tuple[Effect, ...] = ()
    decides: Decides | None = None
    tightens: bool = False


_NOTHING = Cell()
_IMPOSSIBLE = Cell(effects=(Effect.REPORT_BUG,))
_REFUSED = Cell(effects=(Effect.REFUSE,))
_TIGHTEN = Cell(effects=(Effect.TIGHTEN,), tightens=True)
_STOP = Cell(Phase.STOPPING, (Effect.STOP_AGENT, Effect.STOP_CHILDREN, Effect.SET_GRACE), Decides.MESSAGE)
_END = Cell(Phase.ENDING, (Effect.TEAR_DOWN,), Decides.MESSAGE)
_END_BOUNDED = attrs.evolve(_END, tightens=True)

_P, _R, _S, _E, _D = Phase

TABLE: Mapping[tuple[type[Any], Phase], Cell] = {
    (Start, _P): Cell(Phase.RUNNING, (Effect.START_AGENT,)),
    (Start, _R): _IMPOSSIBLE,
    (Start, _S): _IMPOSSIBLE,
    (Start, _E): _NOTHING,  # a pending job was ended by what its actor drained before it started
    (Start, _D): _NOTHING,
    (AgentEnded, _P): _IMPOSSIBLE,
    (AgentEnded, _R): Cell(Phase.ENDING, (Effect.STOP_CHILDREN, Effect.TEAR_DOWN), Decides.MESSAGE),
    (AgentEnded, _S): Cell(Phase.ENDING, (Effect.TEAR_DOWN,), Decides.STATE),
    (AgentEnded, _E): _NOTHING,  # a disowned agent, at last
    (AgentEnded, _D): _NOTHING,
    (Cancel, _P): Cell(Phase.ENDING, (Effect.ACKNOWLEDGE, Effect.TEAR_DOWN), Decides.MESSAGE),
    (Cancel, _R): attrs.evolve(_STOP, effects=(Effect.ACKNOWLEDGE, *_STOP.effects)),
    (Cancel, _S): _REFUSED,
    (Cancel, _E): _REFUSED,
    (Cancel, _D): _REFUSED,
    (DeadlinePassed, _P): _IMPOSSIBLE,  # the deadline counts from running (P7.10)
    (DeadlinePassed, _R): _STOP,
    (DeadlinePassed, _S): _NOTHING,
    (DeadlinePassed, _E): _NOTHING,
    (DeadlinePassed, _D): _NOTHING,
    (LeaseExpired, _P): _END,
    (LeaseExpired, _R): _STOP,
    (LeaseExpired, _S): _TIGHTEN,
    (LeaseExpired, _E): _NOTHING,
    (LeaseExpired, _D): _NOTHING,
    (ParentStopping, _P): _END_BOUNDED,
    (ParentStopping, _R): _STOP,
    (ParentStopping, _S): _TIGHTEN,
    (ParentStopping, _E): _TIGHTEN,
    (ParentStopping, _D): _NOTHING,
    (RuntimeClosing, _P): _END_BOUNDED,
    (RuntimeClosing, _R): _STOP,
    (RuntimeClosing, _S): _TIGHTEN,
    (RuntimeClosing, _E): _TIGHTEN,
    (RuntimeClosing, _D): _NOTHING,
    (GraceElapsed, _P): _IMPOSSIBLE,
    (GraceElapsed, _R): _IMPOSSIBLE,
    (GraceElapsed, _S): Cell(Phase.ENDING, (Effect.DISOWN_AGENT, Effect.TEAR_DOWN), Decides.STATE),
    (GraceElapsed, _E): _NOTHING,  # the agent ended while the message was on its way
    (GraceElapsed, _D): _NOTHING,
    (TornDown, _P): _IMPOSSIBLE,
    (TornDown, _R): _IMPOSSIBLE,
    (TornDown, _S): _IMPOSSIBLE,
    (TornDown, _E): Cell(Phase.ENDED, (Effect.PUBLISH,), Decides.STATE),
    (TornDown, _D): _NOTHING,  # its end was forced while the message was on its way
}
"""Every message in every phase."""

_ROWS = (
    Start,
    AgentEnded,
    Cancel,
    DeadlinePassed,
    LeaseExpired,
    ParentStopping,
    RuntimeClosing,
    GraceElapsed,
    TornDown,
)


def apply(state: State, message: Message) -> tuple[State, tuple[Effect, ...]]:
    """Return the state that follows and what is to be done, in order. Never raises."""
    cell = TABLE[type(message), state.phase]
    until: float | None = getattr(message, "until", None)
    if cell.to is None:
        if not cell.tightens or until is None:
            return state, cell.effects
        shorter = until if state.until is None else min(state.until, until)
        return State(state.phase, state.outcome, shorter), cell.effects
    if cell.decides is Decides.MESSAGE:
        outcome: Outcome | None = getattr(message, "outcome")  # noqa: B009  # only some messages have one
    else:
        outcome = state.outcome
    # A grace bounds the agent, not the tear-down: only what shuts down from above bounds that.
    bounded = cell.to is Phase.STOPPING or cell.tightens
    return State(cell.to, outcome, until if bounded else None), cell.effects


def _render_cell(message: type[Any], cell: Cell) -> str:
    parts = [effect.value for effect in cell.effects]
    if cell.to is not None:
        outcome = ""
        if cell.decides is Decides.MESSAGE:
            outcome = "(success or error)" if message is AgentEnded else f"({_OUTCOMES[message]})"
        elif cell.decides is Decides.STATE:
            outcome = "(as decided)"
        parts.insert(0, f"→ {cell.to.value}{outcome}")
    return "; ".join(parts) or "–"  # noqa: RUF001  # as in the table of the design


_OUTCOMES: Mapping[type[Any], str] = {
    Cancel: "cancelled",
    DeadlinePassed: "timed_out",
    LeaseExpired: "error",
    ParentStopping: "cancelled",
    RuntimeClosing: "error",
}


def render_table() -> str:
    """Draw :data:`TABLE` as Markdown, for the README."""
    lines = [
        "| message | " + " | ".join(phase.value for phase in Phase) + " |",
        "|---" * (len(Phase) + 1) + "|",
    ]
    for message in _ROWS:
        cells = (_render_cell(message, TABLE[message, phase]) for phase in Phase)
        lines.append(f"| {message.__name__} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
