"""``job.open_file``: a file as Trio opens it, if the lease covers both its name and what is really there."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from helpers import Frame, open_raw

import arcp_trio
from arcp_trio.jobs import guarded
from arcp_trio.wire.timestamps import WallClock, format_timestamp

Body = Callable[[arcp_trio.JobContext], Awaitable[Any]]

NOW = 1_800_000_000.0


class Workspace:
    """A directory that leases cover, one that they do not, and what came of a job."""

    def __init__(self, root: Path) -> None:
        self.top = root / "ws"
        self.outside = root / "outside"
        for folder in (self.top, self.outside):
            folder.mkdir()
            (folder / "file").write_text(folder.name)
        self.refusals: list[Frame] = []
        self.terminal: Frame = {}

    def lease(self, *namespaces: str) -> dict[str, list[str]]:
        return {namespace: [f"{self.top}/**"] for namespace in namespaces or ("fs.read", "fs.write")}

    async def run(self, does: Body, lease: Frame | None = None, **options: Any) -> Any:
        """Run an agent's body to its end; return its result."""
        agents = arcp_trio.Agents()

        @agents.register("agent")
        async def agent(job: arcp_trio.JobContext, value: Any) -> Any:
            return await does(job)

        constraints = options.pop("constraints", {})
        async with arcp_trio.open_runtime(agents, **options) as runtime, open_raw(runtime) as client:
            lease = self.lease() if lease is None else lease
            await client.submit("agent", lease_request=lease, **constraints)
            last = await client.receive_until(lambda frame: frame["type"] in ("job.result", "job.error"))
            assert runtime.statistics().bugs == 0
        self.terminal = last["payload"]
        events = [frame["payload"] for frame in client.received if frame["type"] == "job.event"]
        assert {event["kind"] for event in events} <= {"tool_result"}
        self.refusals = [event["body"]["error"] for event in events]
        return self.terminal.get("result")

    def assert_untouched(self) -> None:
        assert [path.name for path in self.outside.iterdir()] == ["file"]
        assert (self.outside / "file").read_text() == "outside"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path.resolve())


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.requirement("P9.4")
async def test_a_file_is_read_and_written_as_trio_does(workspace: Workspace) -> None:
    path = workspace.top / "new"

    async def agent(job: arcp_trio.JobContext) -> list[Any]:
        async with job.open_file(path, "w", encoding="utf-16", newline="\r\n") as file:
            assert file.name == str(path)
            await file.write("é\n")
        async with job.open_file(str(path), "rb", buffering=0) as binary:
            data = await binary.read()
        async with job.open_file(path, encoding="utf-16") as file:
            lines = [line async for line in file]
        async with job.open_file(path, "ab") as binary:
            await binary.write(b"!")
            await binary.flush()
            assert path.read_bytes().endswith(b"!")
        assert file.closed
        assert binary.closed
        return [data.decode("utf-16"), lines]

    assert await workspace.run(agent) == ["é\r\n", ["é\n"]]
    assert workspace.refusals == []


@pytest.mark.requirement("P9.4", "G01", "G02")
@pytest.mark.parametrize("granted", [("fs.read",), ("fs.write",), ("fs.read", "fs.write"), ("tool.call",)])
@pytest.mark.parametrize(
    ("mode", "needs"),
    [
        ("r", "fs.read"),
        ("rb", "fs.read"),
        ("rt", "fs.read"),
        ("w", "fs.write"),
        ("wb", "fs.write"),
        ("a", "fs.write"),
        ("x", "fs.write"),
        ("r+", "fs.read fs.write"),
        ("+br", "fs.read fs.write"),
        ("w+", "fs.read fs.write"),
        ("a+b", "fs.read fs.write"),
        ("xt+", "fs.read fs.write"),
    ],
)
async def test_what_a_mode_needs(workspace: Workspace, mode: str, needs: str, granted: tuple[str, ...]) -> None:
    path = workspace.top / ("new" if "x" in mode else "file")

    async def agent(job: arcp_trio.JobContext) -> str:
        try:
            async with job.open_file(path, mode):
                return "opened"
        except arcp_trio.PermissionDeniedError:
            return "denied"

    allowed = set(needs.split()) <= set(granted)
    assert await workspace.run(agent, workspace.lease(*granted)) == ("opened" if allowed else "denied")
    assert len(workspace.refusals) == (not allowed)
    if not allowed:
        assert not (workspace.top / "new").exists()
        assert (workspace.top / "file").read_text() == "ws"


@pytest.mark.requirement("P9.3", "P9.4", "G04")
@pytest.mark.parametrize(
    "spelling",
    [
        "{top}/../outside/file",
        "{top}/./../outside/file",
        "{top}//..//outside/file",
        "{top}/x/../../outside/file",
        "/..{top}/../outside/file",
        "{top}/%2e%2e/outside/file",
        "{top}/..\\outside\\file",
        "{top}\\..\\outside\\file",
        "{top}/file\0.txt",
        "{top}/file\n",
        "{top}/\udcff",
        "{top}",
        "C:\\file",
        "C:/file",
        "file",
        "./file",
        "~/file",
        "",
        "file://{top}/file",
    ],
)
async def test_no_spelling_leads_out(workspace: Workspace, spelling: str) -> None:
    path = spelling.format(top=workspace.top)

    async def agent(job: arcp_trio.JobContext) -> str:
        async with job.open_file(path, "w") as file:
            await file.write("written")
        return "opened"

    assert await workspace.run(agent) is None
    if path.endswith(("%2e%2e/outside/file", str(workspace.top))):
        # A name like any other, and the directory itself: not out, and not there to be opened.
        assert (workspace.terminal["code"], workspace.refusals) == ("INTERNAL_ERROR", [])
    else:
        assert workspace.terminal["code"] == "PERMISSION_DENIED"
        assert [refusal["code"] for refusal in workspace.refusals] == ["PERMISSION_DENIED"]
    workspace.assert_untouched()


@pytest.mark.requirement("P9.3")
async def test_a_path_is_opened_in_its_canonical_form(workspace: Workspace) -> None:
    async def agent(job: arcp_trio.JobContext) -> str:
        async with job.open_file(f"{workspace.outside}/.././/ws//x/../file") as file:
            assert file.name == str(workspace.top / "file")
            return await file.read()

    assert await workspace.run(agent) == "ws"


@pytest.mark.requirement("P9.3", "P9.4", "G01")
@pytest.mark.parametrize("mode", ["r", "w", "a", "x", "r+"])
async def test_a_link_out_of_the_lease_is_a_refusal(workspace: Workspace, mode: str) -> None:
    (workspace.top / "link").symlink_to(workspace.outside)
    path = workspace.top / "link" / ("new" if mode == "x" else "file")

    namespace = "write" if mode in "wax" else "read"

    async def agent(job: arcp_trio.JobContext) -> str:
        with pytest.raises(arcp_trio.PermissionDeniedError, match=f"leads to where .* not allow fs.{namespace}"):
            async with job.open_file(path, mode):
                raise AssertionError("it was opened")
        return "it went on"

    assert await workspace.run(agent) == "it went on"
    (refusal,) = workspace.refusals
    assert (refusal["code"], refusal["retryable"]) == ("PERMISSION_DENIED", False)
    assert str(path) in refusal["message"]
    assert "outside" not in refusal["message"]
    workspace.assert_untouched()


@pytest.mark.requirement("P9.3")
async def test_a_link_is_followed_where_the_lease_covers_both(workspace: Workspace) -> None:
    (workspace.top / "link").symlink_to(workspace.outside)
    lease = {"fs.read": [f"{workspace.top}/**", f"{workspace.outside}/file"]}

    async def agent(job: arcp_trio.JobContext) -> str:
        async with job.open_file(workspace.top / "link" / "file") as file:
            return await file.read()

    assert await workspace.run(agent, lease) == "outside"
    # What the link's name is not covered by, its end cannot make up for.
    assert await workspace.run(agent, {"fs.read": [f"{workspace.outside}/**"]}) is None
    assert workspace.terminal["code"] == "PERMISSION_DENIED"


@pytest.mark.requirement("P9.3", "P9.4")
async def test_a_link_to_what_may_be_read_alone_is_not_written_to(workspace: Workspace) -> None:
    (workspace.top / "link").symlink_to(workspace.outside / "file")
    lease = workspace.lease()
    lease["fs.read"].append(f"{workspace.outside}/**")

    async def agent(job: arcp_trio.JobContext) -> str:
        async with job.open_file(workspace.top / "link") as file:
            text = await file.read()
        for mode in ("w", "r+", "w+"):
            with pytest.raises(arcp_trio.PermissionDeniedError, match=r"fs\.write"):
                async with job.open_file(workspace.top / "link", mode):
                    raise AssertionError("it was opened")
        return text

    assert await workspace.run(agent, lease) == "outside"
    workspace.assert_untouched()


@pytest.mark.requirement("P9.3", "P9.4")
async def test_what_is_no_file_is_a_refusal(workspace: Workspace) -> None:
    os.mkfifo(workspace.top / "fifo")

    async def agent(job: arcp_trio.JobContext) -> str:
        with pytest.raises(arcp_trio.PermissionDeniedError, match="not a regular file"):
            async with job.open_file(workspace.top / "fifo"):
                raise AssertionError("it was opened")
        return "it went on"

    assert await workspace.run(agent) == "it went on"
    assert len(workspace.refusals) == 1


async def test_what_the_system_says_is_the_agents_own_business(workspace: Workspace) -> None:
    async def agent(job: arcp_trio.JobContext) -> str:
        with pytest.raises(FileNotFoundError) as caught:
            async with job.open_file(workspace.top / "missing"):
                raise AssertionError("it was opened")
        assert caught.value.filename == str(workspace.top / "missing")
        with pytest.raises(IsADirectoryError):
            async with job.open_file(workspace.top / "." / "dir"):
                raise AssertionError("it was opened")
        with pytest.raises(ValueError, match="encoding"):
            async with job.open_file(workspace.top / "file", "rb", encoding="utf-8"):
                raise AssertionError("it was opened")
        return "it went on"

    (workspace.top / "dir").mkdir()
    assert await workspace.run(agent) == "it went on"
    assert workspace.refusals == []


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("/a", ""),
        ("/a", "q"),
        ("/a", "rw"),
        ("/a", "rr"),
        ("/a", "rbt"),
        ("/a", "b"),
        ("/a", "+"),
        ("/a", "rU"),
        ("/a", None),
        (b"/a", "r"),
    ],
)
async def test_bad_arguments_are_refused_at_once(workspace: Workspace, path: Any, mode: Any) -> None:
    async def agent(job: arcp_trio.JobContext) -> str:
        with pytest.raises(arcp_trio.InvalidRequestError, match=r"mode|path"):
            job.open_file(path, mode)
        await trio.lowlevel.checkpoint()
        return "it went on"

    assert await workspace.run(agent) == "it went on"
    assert workspace.refusals == []


async def test_a_file_is_opened_once(workspace: Workspace) -> None:
    async def agent(job: arcp_trio.JobContext) -> str:
        opening = job.open_file(workspace.top / "file")
        async with opening:
            with pytest.raises(arcp_trio.InvalidRequestError, match="once"):
                async with opening:
                    raise AssertionError("it was opened twice")
        return "it went on"

    assert await workspace.run(agent) == "it went on"


# --- cancelled, expired, ended meanwhile --------------------------------------------------------------


def interfere(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Let something happen in Trio's thread before and after the file is opened in its own."""
    real = guarded.open_checked

    def opened(*args: Any) -> int:
        trio.from_thread.run_sync(before)
        descriptor = real(*args)
        trio.from_thread.run_sync(after)
        return descriptor

    monkeypatch.setattr(guarded, "open_checked", opened)


def nothing() -> None:
    pass


@pytest.mark.requirement("P9.4", "P7.13")
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_cancellation_leaves_nothing_open(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    entered: list[bool] = []

    async def agent(job: arcp_trio.JobContext) -> str:
        before = descriptors()
        with trio.CancelScope() as scope:
            cancels = (scope.cancel, nothing)
            interfere(monkeypatch, *(cancels if when == "before" else cancels[::-1]))
            async with job.open_file(workspace.top / "new", "w") as file:
                entered.append(True)
                await file.write("never")
        assert scope.cancelled_caught
        assert descriptors() == before
        return "it went on"

    assert await workspace.run(agent) == "it went on"
    # Asked in between, it did nothing; opened already, the body may clean up, and the file is closed behind it.
    assert entered == ([] if when == "before" else [True])
    assert (workspace.top / "new").exists() == (when == "after")


async def test_an_error_of_the_body_is_not_replaced_by_a_cancellation(workspace: Workspace) -> None:
    async def agent(job: arcp_trio.JobContext) -> str:
        with trio.CancelScope() as scope, pytest.raises(ValueError, match="mine"):
            async with job.open_file(workspace.top / "file") as file:
                scope.cancel()
                raise ValueError("mine")
        assert not scope.cancelled_caught
        assert file.closed
        with trio.CancelScope() as scope:
            async with job.open_file(workspace.top / "file") as file:
                scope.cancel()
        assert scope.cancelled_caught
        assert file.closed
        return "it went on"

    assert await workspace.run(agent) == "it went on"


@pytest.mark.requirement("P9.6", "G15")
async def test_a_lease_that_expires_while_a_path_is_walked(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = 0.0

    def pass_time() -> None:
        nonlocal step
        step = 7200.0

    async def agent(job: arcp_trio.JobContext) -> None:
        interfere(monkeypatch, pass_time, nothing)
        async with job.open_file(workspace.top / "new", "w"):
            raise AssertionError("it was opened")

    constraints = {"lease_constraints": {"expires_at": format_timestamp(NOW + 3600)}}
    clock = WallClock(lambda: NOW + step)
    await workspace.run(agent, constraints=constraints, clock=clock)
    assert workspace.terminal["code"] == "LEASE_EXPIRED"
    assert [refusal["code"] for refusal in workspace.refusals] == ["LEASE_EXPIRED"]
    assert not (workspace.top / "new").exists()


@pytest.mark.requirement("P7.11")
async def test_a_job_that_ends_while_a_path_is_walked(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    async def agent(job: arcp_trio.JobContext) -> str:
        interfere(monkeypatch, job._actor.authority.release, nothing)
        with pytest.raises(arcp_trio.JobEndedError):
            async with job.open_file(workspace.top / "new", "w"):
                raise AssertionError("it was opened")
        return "it went on"

    assert await workspace.run(agent) == "it went on"
    assert workspace.refusals == []
    assert not (workspace.top / "new").exists()


async def test_a_platform_that_cannot_keep_a_path_still_opens_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "CAN_OPEN", False)

    async def agent(job: arcp_trio.JobContext) -> None:
        async with job.open_file(workspace.top / "file"):
            raise AssertionError("it was opened")

    await workspace.run(agent)
    assert workspace.terminal["code"] == "PERMISSION_DENIED"
    assert "this platform" in workspace.terminal["message"]
    assert len(workspace.refusals) == 1
