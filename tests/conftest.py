"""Fixtures, and the record of which requirement each test shows.

A run of the whole suite compares the README's generated parts with what it has seen, and fails if they differ;
``pytest --write-readme`` brings them up to date.
"""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from canary import CanaryHandler, check_frames
from helpers import Script
from requirements import REQUIREMENTS, conformance_table
from transport_pairs import ENGINES
from wire.schema_check import check_exchanged

from arcp_trio.jobs.lifecycle import render_table
from arcp_trio.transports import engines
from arcp_trio.transports.engines import EngineName

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

_shown: set[str] = set()
_failed: set[str] = set()
_canaries = CanaryHandler()
_marks = pytest.StashKey[tuple[str, ...]]()


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EngineName:
    """The engine that ``auto`` takes, at both ends: as if the extra ``fast`` were installed, or not."""
    name: EngineName = request.param
    if name == "trio-websocket":
        monkeypatch.setattr(engines, "_websockets_version", lambda: None)
    return name


@pytest.fixture(autouse=True)
def _no_impossible_message(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test may bring a message where the lifecycle's table says that it cannot come."""
    yield
    # By its phase: ``caplog.records`` is empty by now.
    messages = [record.getMessage() for record in caplog.get_records("call")]
    assert not [message for message in messages if "cannot come in" in message]


@pytest.fixture(autouse=True)
def _no_assertion_is_lost_in_an_agent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a test asserts inside an agent ends that agent's job: it must end the test too."""
    yield
    for record in caplog.get_records("call"):
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, (AssertionError, pytest.fail.Exception)) and "failed, reference" in record.getMessage():
            raise error


def pytest_configure() -> None:
    # Every line, of every level: what a user may turn on must not hold a secret either.
    logging.getLogger().addHandler(_canaries)
    logging.getLogger("arcp_trio").setLevel(logging.DEBUG)
    # A shell starts what runs in its background with SIGINT ignored, and then control-C cannot be shown.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-readme", action="store_true", help="bring the README's generated parts up to date")
    parser.addoption("--cuts", type=int, default=300, help="how often tests/faults cuts a client's connection")
    parser.addoption("--cuts-seed", type=int, default=1, help="where, and how")
    parser.addoption("--schedules", type=int, default=5_000, help="how many schedules tests/races explores")
    parser.addoption("--schedules-seed", type=int, default=1, help="with which seed it begins")
    parser.addoption("--schedule", help="the one schedule to run instead, as a failure has printed it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for mark in item.iter_markers("requirement"):
        for number in mark.args:
            if report.failed:
                _failed.add(number)
            elif report.when == "call" and report.passed:
                _shown.add(number)
    return report


def replace_part(text: str, name: str, content: str) -> str:
    """Return ``text`` with what stands between the two comments of ``name`` replaced."""
    pattern = re.compile(rf"(<!-- {name}:[^>]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    assert pattern.search(text), name
    return pattern.sub(lambda match: f"{match[1]}{content}{match[2]}", text)


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    reporter = config.pluginmanager.getplugin("terminalreporter")
    for secret in [*_canaries.found, *check_frames()]:
        reporter.write_line(f"a secret is given away: {secret}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    whole = (
        config.args == config.getini("testpaths")
        and not config.option.keyword
        and not config.option.markexpr
        and not config.option.collectonly
        and session.testsfailed == 0
        and session.testscollected > 0
    )
    write = config.option.write_readme
    if not whole and not write:
        return
    text = README.read_text()
    wanted = replace_part(text, "lifecycle", render_table())
    wanted = replace_part(wanted, "conformance", conformance_table(_shown, _failed))
    # A requirement has a dot (P6.19); a failure of the same letter (P01) has none.
    unknown = {number for number in _shown if number.startswith("P") and "." in number} - REQUIREMENTS.keys()
    for problem in check_exchanged():
        reporter.write_line(f"a frame of the runtime is not what the schema says: {problem}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if unknown:
        reporter.write_line(f"no such requirement: {', '.join(sorted(unknown))}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if wanted != text:
        if write:
            README.write_text(wanted)
        else:
            reporter.write_line("README.md does not say what the tests have shown: run pytest --write-readme", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
