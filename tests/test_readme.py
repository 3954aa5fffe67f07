"""What the README and the change log say is so: the examples run, the table cannot flatter, the names are real."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from requirements import REQUIREMENTS, conformance_table

import arcp_trio
from arcp_trio.wire.dialects import DIALECTS, SPEC

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


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


@pytest.mark.requirement("D02", "P9.7")
def test_the_example_of_what_a_job_may_cost() -> None:
    definitions = example("embedded").partition("async def main")[0]
    program = f"""{definitions}
{example("budget")}
async def main():
    async with arcp_trio.open_runtime(agents) as runtime, runtime.open_session(principal="me") as client:
        await spend(client)
trio.run(main)
"""
    assert run(program) == "['ants', 'bees', 'moths'] 0.005\n"


@pytest.mark.requirement("D02", "P9.4")
def test_the_example_of_what_a_job_may_do(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("Ants are many.")
    definitions = example("embedded").partition("async def main")[0]
    program = f"""{definitions}
{example("guarded")}
from pathlib import Path
async def main():
    async with arcp_trio.open_runtime(agents) as runtime, runtime.open_session(principal="me") as client:
        await ask(client, Path({str(text)!r}))
trio.run(main)
"""
    assert run(program) == "Ants are … by tier-fast/small\nPERMISSION_DENIED\n"


@pytest.mark.requirement("D02", "P10.1")
def test_the_example_of_delegation() -> None:
    definitions = example("embedded").partition("async def main")[0]
    program = f"""{definitions}
{example("delegation")}
async def main():
    async with arcp_trio.open_runtime(agents) as runtime, runtime.open_session(principal="me") as client:
        await delegate(client)
trio.run(main)
"""
    assert run(program) == "['Ants', 'Bees'] ['success', 'success']\n"


@pytest.mark.parametrize("name", ["embedded", "server", "watch", "stdio", "budget", "guarded", "delegation"])
def test_an_example_has_at_most_twenty_lines(name: str) -> None:
    assert len([line for line in example(name).splitlines() if line.strip()]) <= 20


@pytest.mark.requirement("D01")
def test_a_row_says_yes_only_if_it_was_shown_and_nothing_of_it_failed() -> None:
    whole = next(number for number, (_, missing) in REQUIREMENTS.items() if not missing)
    partly = next(number for number, (_, missing) in REQUIREMENTS.items() if missing)

    def answers(shown: set[str], failed: set[str]) -> dict[str, str]:
        rows = (line.strip("| ").split(" | ") for line in conformance_table(shown, failed).splitlines()[2:])
        return {number: answer for number, _, answer in rows}

    nothing = answers(set(), set())
    assert nothing.keys() == REQUIREMENTS.keys()
    assert set(nothing.values()) == {"not yet"}
    shown = answers({whole, partly}, set())
    assert {number for number, answer in shown.items() if answer == "yes"} == {whole}
    assert shown[partly].startswith("partly: ")
    assert set(answers({whole, partly}, {whole, partly}).values()) == {"not yet"}


def test_the_dialects_are_named_as_they_are() -> None:
    names = {"python": "Python", "typescript": "TypeScript", "ruby": "Ruby", "java": "Java"}
    assert names.keys() == DIALECTS.keys() - {SPEC.name}
    for text in (README, CHANGELOG):
        (sentence,) = re.findall(r"[Dd]ialects? for the ([\w, ]+) clients", " ".join(text.split()))
        assert set(re.findall(r"[A-Z]\w+", sentence)) == set(names.values())


@pytest.mark.requirement("D03")
def test_what_the_readme_names_exists() -> None:
    """Every name of ours in the text, every command and every option."""
    text = README
    for name in re.findall(r"`arcp_trio\.(\w+)`", text):
        assert hasattr(arcp_trio, name), name
    for name in re.findall(r"`(arcp_trio/[\w/]+\.py)`", text):
        assert (ROOT / name).is_file(), name
    commands = set(re.findall(r"arcp-trio (\w+)", text))
    assert commands == {"demo", "serve", "submit", "watch", "jobs", "store"}
    for command in sorted(commands):
        helped = subprocess.run(
            [sys.executable, "-m", "arcp_trio", command, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "COLUMNS": "200"},
        ).stdout
        used = {
            option
            for line in re.findall(rf"arcp-trio {command}[^`\n]*", text)
            for option in re.findall(r"--[\w-]+", line)
        }
        assert used <= set(re.findall(r"--[\w-]+", helped)), command


@pytest.mark.requirement("D04")
def test_what_is_imported_is_what_is_required() -> None:
    """A plain install has all that the package imports, the extras all that the command line and the engine do."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        # The API of OpenTelemetry is a part of a package of that name.
        found = {re.split(r"[\[<>=]", requirement)[0].replace("-", "_") for requirement in requirements}
        return {name.removesuffix("_api") for name in found}

    optional = project["optional-dependencies"]
    plain, cli = names(project["dependencies"]), names(optional["cli"])
    # What the other extras bring is imported where it is used, and only there (tests/test_floors.py).
    extras = set().union(*(names(optional[extra]) for extra in optional if extra not in ("cli", "test", "lint")))
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for path in (ROOT / "arcp_trio").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found = {(node.module or "").partition(".")[0]}
            else:
                continue
            used["cli" in path.relative_to(ROOT).parts] |= found - sys.stdlib_module_names - {"arcp_trio", "__future__"}
    # What one of ours brings along and names in its own interface.
    assert used[False] <= plain | extras | {"orjson"}, used[False] - plain
    assert extras <= used[False]
    assert used[True] <= plain | cli
    assert plain - used[False] - used[True] == set()
    assert cli <= used[True]
