from __future__ import annotations

import os
from collections.abc import Iterator

import attrs
import pytest
import trio
import trio.testing

from arcp_trio.cli import asking
from arcp_trio.cli.submit import ANSWER_SECONDS


@attrs.frozen
class Keyboard:
    """The other end of the terminal that is asked at."""

    descriptor: int

    def press(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keyboard]:
    ours, theirs = os.openpty()
    monkeypatch.setattr(asking, "_STDIN", theirs)
    yield Keyboard(ours)
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("keys", "expected"), [(b"y\r", True), (b" YES \r", True), (b"n\r", False), (b"\r", False), (b"\x04", False)]
)
async def test_an_answer(keyboard: Keyboard, capfd: pytest.CaptureFixture[str], keys: bytes, expected: bool) -> None:
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await asking.ask("really? [y/N]", seconds=60))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            shown = ""
            while "really?" not in shown:
                await trio.lowlevel.checkpoint()
                shown += capfd.readouterr().err
            keyboard.press(keys)
    assert answers == [expected]


async def test_silence_is_no(
    keyboard: Keyboard, capfd: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    assert await asking.ask("really? [y/N]", seconds=ANSWER_SECONDS) is False
    assert trio.current_time() - began >= ANSWER_SECONDS
    # The cursor is not left behind the question.
    assert capfd.readouterr().err.startswith("really? [y/N] ")


async def test_half_a_line_is_no_answer(keyboard: Keyboard, autojump_clock: trio.testing.MockClock) -> None:
    keyboard.press(b"y")
    assert await asking.ask("really? [y/N]", seconds=ANSWER_SECONDS) is False


async def test_a_question_that_is_taken_back(keyboard: Keyboard, capfd: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(30), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: asking.ask("really? [y/N]", seconds=60))
            shown = ""
            while "really?" not in shown:
                await trio.lowlevel.checkpoint()
                shown += capfd.readouterr().err
            scope.cancel()
    assert (shown + capfd.readouterr().err).endswith("[y/N] \n")


def test_nobody_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as pipe, os.fdopen(writer, "w"):
        monkeypatch.setattr("sys.stdin", pipe)
        assert asking.can_ask() is False
