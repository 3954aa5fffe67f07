"""A client that starts its runtime: real processes, each bounded, and what is left of them."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import arcp_trio

pytestmark = pytest.mark.requirement("P4.2")

LIMITS = arcp_trio.ClientLimits(close_seconds=0.5)
HASTY = arcp_trio.ClientLimits(close_seconds=0.2, exit_seconds=0.2, terminate_seconds=0.2)

RUNTIME = """
import os, signal, subprocess, sys
import trio, arcp_trio
agents = arcp_trio.Agents()

@agents.register("count")
async def count(job, value):
    for number in range(value):
        print("stray", number)
        await job.progress(number + 1, value, "steps")
    return {"counted": value}

@agents.register("echo")
async def echo(job, value):
    subprocess.run(["echo", "a child that inherits stdout"])
    return value

@agents.register("gate")
async def gate(job, value):
    await job.log("info", "waiting")
    await trio.sleep_forever()

@agents.register("die")
async def die(job, value):
    if value == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(value)

async def main():
    async with arcp_trio.open_stdio() as transport, arcp_trio.open_runtime(agents) as runtime:
        await arcp_trio.serve_stdio(runtime, transport, principal="me")
"""
RUN = "\ntrio.run(main)\n"

# As a runtime in another language would look that prints what it likes.
CHATTY = """
for number in range(20):
    print("starting", number, flush=True)
os.write(1, b'\\n[1, 2]\\n"text"\\r\\n\\xff\\xfe\\n')
real = os.dup(1)
""" + RUNTIME.replace(
    "async def echo(job, value):", "async def echo(job, value):\n    os.write(real, b'between\\n' * 50)"
)

# It hears neither the end of its stdin nor a signal, and has a child of its own.
STUBBORN = (
    """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.DEVNULL)
"""
    + RUNTIME
)


def python(program: str) -> list[str]:
    return [sys.executable, "-W", "error", "-c", "import os\n" + program + RUN]


@asynccontextmanager
async def open_client(
    program: str = RUNTIME, *, limits: arcp_trio.ClientLimits = LIMITS, **options: Any
) -> AsyncGenerator[arcp_trio.Client, None]:
    with trio.fail_after(60):
        async with arcp_trio.open_process_client(python(program), limits=limits, **options) as client:
            yield client


def process_of(client: arcp_trio.Client) -> int:
    found = re.search(r"process (\d+)", repr(client))
    assert found
    return int(found[1])


def assert_gone(pid: int) -> None:
    """It neither runs nor is a zombie: there is no such child, or, for -1, none at all."""
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


# --- its life ---------------------------------------------------------------------------------------


@pytest.mark.requirement("T06")
async def test_a_runtime_in_a_child_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    descriptors = open_descriptors()
    with (tmp_path / "stderr").open("wb") as stderr:
        async with open_client(stderr=stderr) as client:
            pid = process_of(client)
            job = await client.submit("count", 100)
            events = [event async for event in job.events()]
            assert [event.body["current"] for event in events if isinstance(event, arcp_trio.Event)] == list(
                range(1, 101)
            )
            assert await job.result() == {"counted": 100}
            # A line of nearly a megabyte in, and as much in chunks out.
            text = "x" * 900_000
            assert await (await client.submit("echo", text)).result() == text
            waiting = await client.submit("gate")
            async for _ in waiting.events():
                break
            assert await waiting.cancel() == arcp_trio.CancelOutcome(applied=True, status="cancelled")
            with pytest.raises(arcp_trio.JobCancelledError):
                await waiting.result()
    assert_gone(pid)
    assert open_descriptors() == descriptors
    shown = (tmp_path / "stderr").read_text()
    assert "stray 99\n" in shown
    assert "a child that inherits stdout\n" in shown
    # It has ended by itself, with exit status 0.
    assert caplog.text == ""


async def test_jobs_at_once_and_one_that_still_runs_when_the_client_leaves() -> None:
    async with open_client(stderr=subprocess.DEVNULL) as client:
        results: list[Any] = []

        async def submit(number: int) -> None:
            results.append(await (await client.submit("echo", number)).result())

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(submit, number)
        assert sorted(results) == list(range(20))
        await client.submit("gate")
        pid = process_of(client)
    assert_gone(pid)


async def test_text_on_its_stdout_disturbs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="arcp_trio")
    async with open_client(CHATTY) as client:
        for number in range(3):
            assert await (await client.submit("echo", number)).result() == number
    ignored = [record for record in caplog.records if "that is no frame" in record.getMessage()]
    assert len(ignored) >= 20 + 3 + 3 * 50
    assert {record.levelno for record in ignored} == {logging.DEBUG}
    assert "between" not in caplog.text


async def test_what_it_says_when_it_ends_does_not_kill_it(caplog: pytest.LogCaptureFixture) -> None:
    """More than a pipe holds, when nobody has a use for it any more."""
    program = RUNTIME + "    signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n    os.write(1, b'x' * 1_000_000)\n"
    async with open_client(program):
        pass
    assert caplog.text == ""


# --- its end ----------------------------------------------------------------------------------------


@pytest.mark.requirement("K02")
@pytest.mark.parametrize(
    ("how", "status"), [("SIGKILL", "was killed by SIGKILL"), (3, "ended with exit status 3")], ids=["killed", "exit"]
)
async def test_a_runtime_that_dies_says_how(how: object, status: str) -> None:
    async with open_client() as client:
        pid = process_of(client)
        waiting = await client.submit("gate")
        with pytest.raises(arcp_trio.ConnectionLostError, match=rf"process {pid}\) {status}"):
            await (await client.submit("die", how)).result()
        for call in (waiting.result, waiting.cancel, lambda: client.submit("echo")):
            with pytest.raises(arcp_trio.ConnectionLostError, match=status):
                await call()
    assert_gone(pid)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise SystemExit(7)", "no welcome: .*ended with exit status 7"),
        (
            "import sys; sys.stdin.readline(); print('no'); raise SystemExit(0)",
            "no welcome: .*ended with exit status 0",
        ),
        ("print('{' + 'x' * 2_000_000)", "longer than 1000000 bytes"),
        ("os.close(1); import time; time.sleep(600)", r"no welcome: .*\(process \d+\) closed its pipes"),
        ("print('{}\\n' * 2); import time; time.sleep(600)", "no welcome within 0.5 seconds"),
    ],
    ids=["exits", "exits after the hello", "one endless line", "closes stdout", "says nothing"],
)
async def test_a_program_that_is_no_runtime(program: str, message: str) -> None:
    connect_seconds = 0.5 if "within 0.5" in message else 30
    limits = attrs.evolve(HASTY, receive_bytes=1_000_000, connect_seconds=connect_seconds)
    with pytest.raises(arcp_trio.ConnectionLostError, match=message):
        async with open_client(program + "\n", limits=limits):
            pass


@pytest.mark.requirement("P14.2")
async def test_what_cannot_be_started(tmp_path: Path) -> None:
    file = tmp_path / "no-program"
    file.write_text("")
    commands: list[tuple[list[Any], Path | None, str]] = [
        (
            [tmp_path / "nothing", "canary"],
            None,
            f"cannot start nothing: {tmp_path}/nothing: No such file or directory",
        ),
        ([file, "canary"], None, f"cannot start no-program: {file}: Permission denied"),
        ([sys.executable, "canary"], tmp_path / "gone", f"{tmp_path}/gone: No such file or directory"),
    ]
    for command, cwd, message in commands:
        with pytest.raises(arcp_trio.ConnectionLostError, match=re.escape(message)) as caught:
            async with arcp_trio.open_process_client(command, cwd=cwd):
                pass
        assert "canary" not in str(caught.value)
        assert caught.value.__cause__ is not None
        assert "canary" not in repr(caught.value.__cause__)


@pytest.mark.parametrize(
    ("command", "options", "error", "message"),
    [
        ("arcp-trio serve", {}, TypeError, "command: expected a list"),
        (Path("arcp-trio"), {}, TypeError, "command: expected a list"),
        ([], {}, ValueError, "command: expected a program"),
        (["arcp-trio"], {"stderr": subprocess.PIPE}, ValueError, "stderr: expected a file"),
    ],
)
async def test_arguments_that_are_none(
    command: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        async with arcp_trio.open_process_client(command, **options):
            pass


@pytest.mark.requirement("P14.2")
async def test_neither_the_command_nor_the_environment_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    program = RUNTIME.replace("async def main", "assert sys.argv[1:] == ['--key=canary']\nasync def main")
    command = [*python(program), "--key=canary"]
    env = {**os.environ, "SECRET": "canary"}
    with trio.fail_after(60):
        with pytest.raises(arcp_trio.ConnectionLostError) as caught:
            async with arcp_trio.open_process_client(command, env=env, token="canary", limits=LIMITS) as client:
                shown = repr(client)
                await (await client.submit("die", 9)).result()
    assert Path(sys.executable).name in shown
    assert "canary" not in shown + str(caught.value) + repr(caught.value.__cause__) + caplog.text
    assert "ended with exit status 9" in caplog.text


@pytest.mark.parametrize("leaves_by", ["the end", "an error", "a cancellation"])
async def test_a_process_that_will_not_end_is_killed_with_its_children(
    leaves_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    program = (
        STUBBORN + "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n    while True: signal.pause()\n"
    )
    pid = 0
    # Whoever lives holds its stderr open.
    alive, stderr = os.pipe()
    with trio.CancelScope() as scope, suppress(KeyError):
        async with open_client(program, limits=HASTY, stderr=stderr) as client:
            pid = process_of(client)
            os.close(stderr)
            if leaves_by == "an error":
                raise KeyError
            if leaves_by == "a cancellation":
                scope.cancel()
                await trio.sleep_forever()
    assert scope.cancelled_caught == (leaves_by == "a cancellation")
    assert_gone(pid)
    with trio.fail_after(30):
        async with trio.lowlevel.FdStream(alive) as stream:
            assert await stream.receive_some() == b""
    messages = [record.getMessage() for record in caplog.records if "did not end" in record.getMessage()]
    assert [message.rpartition(": ")[2] for message in messages] == ["SIGTERM", "SIGKILL"]
    assert "was killed by SIGKILL" in caplog.text


async def test_a_process_that_heeds_sigterm_is_not_killed(caplog: pytest.LogCaptureFixture) -> None:
    program = RUNTIME + "    signal.pause()\n"
    async with open_client(program, limits=HASTY) as client:
        pid = process_of(client)
    assert_gone(pid)
    assert "SIGKILL" not in caplog.text
    assert "was killed by SIGTERM" in caplog.text


async def test_a_cancellation_while_it_starts_leaves_no_process() -> None:
    """At any moment: before the process, before the welcome, after it."""
    descriptors = open_descriptors()
    for turns in (0, 1, 2, 5, 10, 20, 50):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def cancel(turns: int = turns, scope: trio.CancelScope = scope) -> None:
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                nursery.start_soon(cancel)
                async with open_client(limits=HASTY):
                    await trio.sleep_forever()
        assert scope.cancelled_caught
        assert_gone(-1)
    assert open_descriptors() == descriptors


async def test_what_the_body_raises_leaves_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_client():
            raise KeyError("mine")
