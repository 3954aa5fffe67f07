"""The README's examples run, and are as short as they claim."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def example(name: str) -> str:
    match = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert match, name
    return match[1]


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.requirement("D02")
def test_the_embedded_example() -> None:
    lines = run(example("embedded")).splitlines()
    assert lines[0] == "progress {'current': 1, 'total': 5, 'units': 'steps'}"
    assert lines[-1] == "{'counted': 5}"
    assert len(lines) == 6


@pytest.mark.requirement("D02")
def test_the_client_and_server_example() -> None:
    definitions = example("embedded").partition("async def main")[0]
    # A port that is free stands in for the one that the example names.
    served = example("server").replace("7777, verifier", "0, verifier").replace('"ws://127.0.0.1:7777/arcp"', "url")
    program = f"""{definitions}
{served}
async def main():
    global url
    async with arcp_trio.open_runtime(agents) as runtime, trio.open_nursery() as nursery:
        url = (await nursery.start(serve, runtime)).url
        await use()
        nursery.cancel_scope.cancel()
trio.run(main)
"""
    assert run(program).splitlines() == [
        "CancelOutcome(applied=True, status='cancelled')",
        "CANCELLED cancelled",
        "CancelOutcome(applied=False, status='cancelled')",
    ]


@pytest.mark.requirement("D02", "P4.2")
def test_the_stdio_example(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(example("embedded").partition("async def main")[0])
    served = example("stdio").replace('"arcp-trio"', 'sys.executable, "-m", "arcp_trio"')
    program = f"import os, sys, trio, arcp_trio\nos.chdir({str(tmp_path)!r})\n{served}\ntrio.run(main)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "{'counted': 3}\n")


@pytest.mark.requirement("D02")
def test_the_example_of_who_watches() -> None:
    definitions = example("embedded").partition("async def main")[0]
    program = f"""{definitions}
{example("watch")}
async def main():
    verifier = arcp_trio.StaticTokens({{"s3cret": "me"}})
    async with arcp_trio.open_runtime(agents, verifier=verifier) as runtime, trio.open_nursery() as nursery:
        listening = await nursery.start(arcp_trio.serve_websocket, runtime, "127.0.0.1", 0)
        async with runtime.open_session(principal="me") as client:
            await client.submit("count", 30)
            await watch(listening.url)
        nursery.cancel_scope.cancel()
trio.run(main)
"""
    lines = run(program).splitlines()
    assert lines[0] == "progress {'current': 1, 'total': 30, 'units': 'steps'}"
    assert lines[-1] == "success {'counted': 30}"
    assert len(lines) == 31


@pytest.mark.parametrize("name", ["embedded", "server", "watch", "stdio"])
def test_an_example_has_at_most_twenty_lines(name: str) -> None:
    assert len([line for line in example(name).splitlines() if line.strip()]) <= 20
