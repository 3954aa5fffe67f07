"""Submits that wait: each session's answers in their order, the caps, the deadline, the shutdown."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from arcp_trio.jobs.admission import Admissions, Line
from arcp_trio.jobs.directory import JobDirectory
from arcp_trio.limits import Limits
from arcp_trio.timers import Timers
from arcp_trio.wire.errors import ARCPError, InternalError, InvalidRequestError


def make_line() -> Line:
    return Line(lambda: None, lambda: None)


class Desk:
    """Admits submits whose ends the test decides."""

    def __init__(self, nursery: trio.Nursery, limits: Limits) -> None:
        self.directory = JobDirectory(limits, Timers())
        self.admissions = Admissions(limits, self.directory, lambda run, name: nursery.start_soon(run))
        self.line = make_line()
        self.said: list[Any] = []

    def admit(self, name: str, prepare: Callable[[], Awaitable[Any]], *, line: Line | None = None) -> None:
        self.admissions.admit(
            self.line if line is None else line,
            "me",
            prepare=prepare,
            accept=lambda value: self.said.append((name, value)),
            refuse=lambda error: self.said.append((name, error)),
        )

    def queue(self, name: str, principal: str | None = "me") -> None:
        self.admissions.queue(
            self.line,
            partial(self.said.append, name),
            lambda error: self.said.append((name, error)),
            principal=principal,
        )


@asynccontextmanager
async def open_desk(**limits: Any) -> AsyncGenerator[Desk, None]:
    async with trio.open_nursery() as nursery:
        yield Desk(nursery, Limits(**limits))
        nursery.cancel_scope.cancel()


def after(event: trio.Event, value: Any) -> Callable[[], Awaitable[Any]]:
    async def wait() -> Any:
        await event.wait()
        if isinstance(value, BaseException):
            raise value
        return value

    return wait


@pytest.mark.requirement("P7.6")
async def test_answers_keep_the_order_of_the_submits() -> None:
    first, second = trio.Event(), trio.Event()
    async with open_desk() as desk:
        desk.admit("a", after(first, 1))
        desk.admit("b", after(second, 2))
        desk.queue("c")
        desk.queue("refusal", principal=None)
        assert (len(desk.line), desk.directory.waiting) == (4, 3)
        second.set()
        await trio.testing.wait_all_tasks_blocked()
        assert desk.said == []
        first.set()
        await trio.testing.wait_all_tasks_blocked()
        assert desk.said == [("a", 1), ("b", 2), "c", "refusal"]
        assert (len(desk.line), desk.directory.waiting) == (0, 0)


async def test_another_sessions_line_does_not_wait() -> None:
    async with open_desk() as desk:
        desk.admit("slow", trio.sleep_forever)
        other = make_line()
        desk.admit("quick", after(trio.Event(), 0), line=other)
        desk.admit("quicker", partial(trio.sleep, 0), line=make_line())
        await trio.testing.wait_all_tasks_blocked()
        assert desk.said == [("quicker", None)]


@pytest.mark.requirement("P7.6", "L12")
async def test_one_that_is_too_late_is_refused_and_lets_the_next_pass(autojump_clock: trio.testing.MockClock) -> None:
    async with open_desk(submit_seconds=7) as desk:
        desk.admit("a", trio.sleep_forever)
        desk.queue("b")
        await trio.sleep(6.9)
        assert desk.said == []
        await trio.sleep(0.2)
        (name, error), behind = desk.said
        assert (name, behind) == ("a", "b")
        assert isinstance(error, InternalError)
        assert error.retryable
        assert error.details == {"limit": "submit_seconds", "value": 7}
        assert desk.directory.waiting == 0


async def test_what_fails_refuses_its_own_submit(caplog: pytest.LogCaptureFixture) -> None:
    go = trio.Event()
    go.set()
    async with open_desk() as desk:
        desk.admit("a", after(go, InvalidRequestError("no")))
        desk.admit("b", after(go, ValueError("a bug")))
        desk.admit("c", after(go, 3))
        await trio.testing.wait_all_tasks_blocked()
    (_, refused), (_, bug), accepted = desk.said
    assert isinstance(refused, InvalidRequestError)
    assert isinstance(bug, InternalError)
    assert "a bug in what a submit waits for" in caplog.text
    assert "a bug" not in bug.message
    assert accepted == ("c", 3)


async def test_an_answer_that_fails_is_a_refusal(caplog: pytest.LogCaptureFixture) -> None:
    def fail(error: Exception, _: object = None) -> None:
        raise error

    said: list[ARCPError] = []
    async with open_desk() as desk:
        admit = partial(desk.admissions.admit, desk.line, "me", prepare=partial(trio.sleep, 0), refuse=said.append)
        admit(accept=partial(fail, InternalError("closing")))
        admit(accept=partial(fail, ValueError("a bug")))
        await trio.testing.wait_all_tasks_blocked()
        assert [error.message for error in said] == ["closing", "the runtime failed to handle the request"]
        assert desk.directory.waiting == 0
    assert "a bug in the answer to a submit" in caplog.text


async def test_a_line_is_bounded() -> None:
    async with open_desk(waiting_submits=2) as desk:
        desk.admit("a", trio.sleep_forever)
        desk.queue("b")
        for refused in (partial(desk.admit, "c", trio.sleep_forever), partial(desk.queue, "c")):
            with pytest.raises(InternalError) as caught:
                refused()
            assert caught.value.retryable
            assert caught.value.details == {"limit": "waiting_submits", "value": 2}
        assert desk.directory.waiting == 2


@pytest.mark.requirement("P6.3")
async def test_what_waits_counts_in_the_caps() -> None:
    async with open_desk(jobs_per_principal=2) as desk:
        go = trio.Event()
        desk.admit("a", after(go, 1))
        desk.directory.check_room("me")
        desk.queue("b")
        with pytest.raises(InternalError, match="jobs_per_principal"):
            desk.directory.check_room("me")
        desk.directory.check_room("you")
        go.set()
        await trio.testing.wait_all_tasks_blocked()
        desk.directory.check_room("me")


@pytest.mark.requirement("P6.3")
async def test_what_waits_counts_in_the_cap_on_all() -> None:
    async with open_desk(jobs=2) as desk:
        desk.admit("a", trio.sleep_forever)
        desk.queue("b")
        with pytest.raises(InternalError) as caught:
            desk.directory.check_room("you")
        assert caught.value.details == {"limit": "jobs", "value": 2}


async def test_a_shutdown_refuses_what_waits() -> None:
    async with open_desk() as desk:
        desk.admit("a", trio.sleep_forever)
        desk.admit("b", trio.sleep_forever)
        desk.admissions.close()
        await trio.testing.wait_all_tasks_blocked()
        assert [(name, error.message) for name, error in desk.said] == [
            ("a", "the runtime is shutting down"),
            ("b", "the runtime is shutting down"),
        ]


async def test_a_mark_stands_behind_what_waits_and_only_the_newest() -> None:
    go = trio.Event()
    async with open_desk(waiting_submits=2) as desk:
        desk.line.mark(partial(desk.said.append, "at once"))
        assert desk.said == ["at once"]
        desk.admit("a", after(go, 1))
        desk.line.mark(partial(desk.said.append, "old"))
        desk.line.mark(partial(desk.said.append, "new"))
        # It takes no submit's place.
        desk.queue("b")
        assert len(desk.line) == 2
        go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert desk.said == ["at once", ("a", 1), "new", "b"]
        assert len(desk.line) == 0
