from __future__ import annotations

import subprocess
import sys

import pytest
import trio
from cli.processes import SECONDS, check_no_token, environment, run_command

from arcp_trio._version import __version__
from arcp_trio.cli.connect import DEFAULT_URL, Target
from arcp_trio.cli.errors import ExitCode
from arcp_trio.cli.text import age_of, clean, describe_connection, describe_event, describe_progress, short_id, size_of
from arcp_trio.client.job_handle import Event, Skipped
from arcp_trio.client.reconnect import ConnectionState


async def run_python(code: str) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(SECONDS):
        return await trio.run_process(
            [sys.executable, "-c", code], capture_stdout=True, capture_stderr=True, check=False, env=environment()
        )


# --- what is imported -------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["arcp_trio", "arcp_trio.cli"])
async def test_an_import_brings_neither_cyclopts_nor_rich(module: str) -> None:
    done = await run_python(
        f"import sys, {module}; print([name for name in sys.modules if name.partition('.')[0] in ('cyclopts', 'rich')])"
    )
    assert done.stdout.decode().strip() == "[]", done.stderr


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
async def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    done = await run_python(
        f"import sys; sys.modules[{missing!r}] = None; from arcp_trio.cli import main; main(['--help'])"
    )
    assert done.returncode == ExitCode.FAILED
    assert done.stdout == b""
    stderr = done.stderr.decode()
    assert "pip install 'arcp-trio[cli]'" in stderr
    assert missing in stderr
    assert stderr.count("\n") == 1


# --- help, version, usage ---------------------------------------------------------------------------


async def test_version() -> None:
    done = await run_command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.OK, f"{__version__}\n", "")


async def test_help_names_the_commands() -> None:
    for arguments in ([], ["--help"]):
        done = await run_command(*arguments)
        assert done.returncode == ExitCode.OK
        for command in ("demo", "serve", "submit", "watch", "jobs", "cancel", "store"):
            assert f" {command} " in done.stdout


@pytest.mark.requirement("P14.2")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("serve", ["MODULE:AGENTS", "--token", "ARCP_TOKENS", "--anonymous", "--port", "70"]),
        ("submit", ["AGENT [INPUT]", "--token", "ARCP_TOKEN", "ARCP_URL", "--max-runtime-sec", "--output", "130"]),
        ("watch", ["JOB_ID", "--token", "--no-history", "--output", "--reconnect-seconds", "--json", "130"]),
        ("jobs", ["--status", "--agent", "--created-after", "--limit", "--follow", "--interval-seconds", "--json"]),
        ("cancel", ["JOB_ID", "--reason", "7.4", "--json"]),
        ("demo", ["--json"]),
    ],
)
async def test_help_of_a_command(command: str, words: list[str]) -> None:
    # What is set in the environment must not be shown as a default.
    done = await run_command(command, "--help", ARCP_TOKEN="canary", ARCP_TOKENS="canary=me")
    assert done.returncode == ExitCode.OK
    for word in words:
        assert word in done.stdout


@pytest.mark.requirement("P14.2")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["foo"], 'Unknown command "foo"'),
        (["submit"], "requires an argument"),
        (["submit", "echo", "1", "canary"], "more arguments"),
        (["submit", "--tokn=canary", "echo"], "Unknown option: --tokn"),
        (["submit", "echo", "--tokn=canary"], "unknown option: --tokn"),
        (["submit", "echo", "--token"], "requires an argument"),
        (["submit", "echo", "--max-runtime-sec", "soon"], "--max-runtime-sec"),
        (["submit", "echo", "--reconnect-seconds", "nan"], "--reconnect-seconds: expected 0 or more"),
        (["watch"], "requires an argument"),
        (["watch", "job_1", "--reconnect-seconds=-1"], "--reconnect-seconds: expected 0 or more"),
        (["cancel"], "requires an argument"),
        (["serve"], "requires an argument"),
        (["serve", "a:b", "--token", "canary"], "expected TOKEN=PRINCIPAL"),
        (["demo", "--port", "1"], "Unknown option"),
    ],
    ids=lambda value: " ".join(value).replace("canary", "…") if isinstance(value, list) else "",
)
async def test_a_wrong_command_line(arguments: list[str], message: str) -> None:
    done = await run_command(*arguments)
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == ""
    assert done.stderr.startswith("arcp-trio: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.requirement("P14.2")
def test_a_target_hides_its_token() -> None:
    check_no_token(repr(Target(url="ws://127.0.0.1/arcp", token="canary")))


# --- what is shown of events ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "body", "shown"),
    [
        ("log", {"level": "warn", "message": "hot"}, ("warn", "hot")),
        ("log", {"level": "info", "message": "hot", "fields": {"n": 1}}, ("info", 'hot {"n":1}')),
        ("log", {}, ("log", "")),
        ("thought", {"text": "hm"}, ("thought", "hm")),
        ("status", {"phase": "reading"}, ("status", "reading")),
        ("status", {"phase": "reading", "message": "a file"}, ("status", "reading: a file")),
        ("metric", {"name": "cost.x", "value": 1.25, "unit": "USD"}, ("metric", "cost.x = 1.25 USD")),
        ("metric", {"name": "n", "value": 12345}, ("metric", "n = 12,345")),
        ("metric", {"name": "n", "value": None}, ("metric", "n = null")),
        ("progress", {"current": 1, "total": 2, "units": "files"}, ("progress", "1/2 files")),
        ("progress", {"current": 1.0, "message": "on"}, ("progress", "1: on")),
        ("tool_call", {"tool": "grep", "args": {"a": 1}}, ("tool call", 'grep {"a":1}')),
        ("tool_result", {"result": [1]}, ("tool result", "[1]")),
        ("tool_result", {"error": {"code": "X"}}, ("tool result", 'failed: {"code":"X"}')),
        ("artifact_ref", {"uri": "u", "content_type": "t", "byte_size": 2048}, ("artifact", "u (t, 2.0 KiB)")),
        ("x-mine", {"a": 1}, ("x-mine", '{"a":1}')),
        ("log", {"level": "\x1b[0m", "message": "a\r\u202eb"}, ("\\x1b[0m", "a\\r\\u202eb")),
    ],
)
def test_an_event_for_people(kind: str, body: dict[str, object], shown: tuple[str, str]) -> None:
    assert describe_event(Event(job_id="job_1", kind=kind, body=body)) == shown


def test_events_that_were_skipped() -> None:
    assert describe_event(Skipped(1_200)) == ("skipped", "1,200 events: they came faster than they could be shown")


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        (ConnectionState(phase="connected"), None),
        (ConnectionState(phase="lost", reason="closed with code 1006"), None),
        (
            ConnectionState(phase="retrying", reason="closed with code 1006", attempt=1, delay_seconds=0.08),
            "lost: it broke off; retrying in 0.1 s (attempt 1)",
        ),
        (
            ConnectionState(phase="retrying", reason="closed with code 1006: no\x1broute", attempt=2, delay_seconds=3),
            "lost: no\\x1broute; retrying in 3.0 s (attempt 2)",
        ),
        (
            ConnectionState(phase="retrying", reason="closed with code 1012: restart", attempt=3, delay_seconds=3),
            "lost: closed with code 1012: restart; retrying in 3.0 s (attempt 3)",
        ),
        (ConnectionState(phase="resumed"), "back: nothing was missed"),
        (ConnectionState(phase="reopened"), "back, with a new session"),
        (ConnectionState(phase="given_up", reason="x"), None),
    ],
)
def test_a_connection_for_people(state: ConnectionState, shown: str | None) -> None:
    assert describe_connection(state) == shown


def test_a_command_for_the_same_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCP_URL", raising=False)
    assert Target(url=DEFAULT_URL, token="canary").hint("watch", "job_1") == "arcp-trio watch job_1"
    target = Target(url="wss://far/arcp?a=b", token="canary", allow_plaintext=True)
    assert target.hint("jobs") == "arcp-trio jobs --url 'wss://far/arcp?a=b' --allow-plaintext"
    monkeypatch.setenv("ARCP_URL", target.url)
    assert target.hint("jobs") == "arcp-trio jobs --allow-plaintext"


def test_small_things() -> None:
    assert [age_of(seconds) for seconds in (-5, 0, 59.9, 60, 7_199, 7_200, 86_400 * 3)] == [
        "0s",
        "0s",
        "59s",
        "1m",
        "1h",
        "2h",
        "3d",
    ]
    assert clean("x" * 5_000).endswith("x…")
    assert len(clean("x" * 5_000)) == 2_000
    assert clean("ü ✓ 漢") == "ü ✓ 漢"
    assert [size_of(size) for size in (0, 1023, 1024, 10 * 2**20, 3 * 2**30)] == [
        "0 B",
        "1,023 B",
        "1.0 KiB",
        "10.0 MiB",
        "3.0 GiB",
    ]
    assert short_id("job_01M85GAKC4CMPPCF7TP11BYD8M") == "…P11BYD8M"
    assert short_id("job_1") == "job_1"
    assert describe_progress({}) == "0"
    assert describe_progress({"current": "odd", "total": {}}) == "odd/{}"
