"""What the tests themselves keep: no test waits for real time, none is skipped, none may fail."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Helpers that sleep and are only called where the clock is mocked, or in a process that is to sleep for ever.
UNDER_A_MOCKED_CLOCK = {
    "races/world.py::World",
    "races/test_terminal_races.py::run_race",
    "fuzz/test_first_frame.py::SlowVerifier",
    "interop/peer_server.py::slow",
    "interop/peer_server.py::rotating",
    "provisioning/fakes.py::taking",
    "provisioning/fakes.py::deaf",
    "provisioning/test_revocation.py::_wait_three_seconds",
    "races/test_credential_races.py::Race",
    "interop/peer_stdio.py::slow",
    "client/test_client_and_runtime.py::make_agents",
}


def sleeps(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that let time pass; ``sleep(0)`` is a checkpoint."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            zero = bool(node.args) and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            if called.rpartition(".")[2] in ("sleep", "sleep_until") and "." in called and not zero:
                yield node


def takes_a_mocked_clock(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and any(
        argument.arg in ("autojump_clock", "mock_clock") for argument in node.args.args
    )


@pytest.mark.requirement("D05")
def test_no_test_sleeps_on_a_real_clock() -> None:
    found: set[str] = set()
    used: set[str] = set()
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if not takes_a_mocked_clock(node) and any(sleeps(node)):
                name = f"{path.relative_to(TESTS).as_posix()}::{getattr(node, 'name', node.lineno)}"
                (used if name in UNDER_A_MOCKED_CLOCK else found).add(name)
    assert found == set()
    assert used == UNDER_A_MOCKED_CLOCK


@pytest.mark.requirement("D05")
def test_no_test_is_skipped_or_expected_to_fail() -> None:
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
                assert name not in ("pytest.skip", "pytest.xfail", "pytest.importorskip"), path
                assert not name.startswith(("pytest.mark.skip", "pytest.mark.xfail")), path


def test_a_planted_sleep_is_found() -> None:
    assert not any(sleeps(ast.parse("async def f():\n    await trio.sleep(0)\n    await trio.sleep_forever()")))
    for text in ("trio.sleep(0.1)", "time.sleep(delay)", "await trio.sleep_until(3)", "anyio.sleep(1)"):
        assert any(sleeps(ast.parse(f"async def f():\n    {text}")))
