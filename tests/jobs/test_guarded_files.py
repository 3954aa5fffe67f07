"""Files below a lease: what is opened is what was allowed, also where somebody swaps what stands in the path."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from arcp_trio.jobs import guarded_files
from arcp_trio.jobs.guarded_files import open_checked
from arcp_trio.wire.errors import PermissionDeniedError

READ = os.O_RDONLY
WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
UPDATE = os.O_RDWR
ALL = {"r": READ, "w": WRITE, "a": APPEND, "x": CREATE, "r+": UPDATE}

INSIDE, SECRET = "inside", "secret"


def open_descriptors() -> list[str]:
    return [path.name for path in Path("/proc/self/fd").iterdir()]


class Tree:
    """A directory that the lease covers, one beside it that it does not, and what was asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.outside = root / "outside"
        self.workspace = root / "ws"
        for top, text in ((self.workspace, INSIDE), (self.outside, SECRET)):
            (top / "dir" / "sub").mkdir(parents=True)
            (top / "dir" / "sub" / "file").write_text(text)
        self.path = self.workspace / "dir" / "sub" / "file"

    def check(self, path: str) -> None:
        self.asked.append(path)
        if not path.startswith(f"{self.workspace}/"):
            raise PermissionDeniedError(path)

    def open(self, path: Path | str, flags: int) -> str:
        """Open, write a little if that is wanted, and return what is in the file."""
        before = open_descriptors()
        try:
            descriptor = open_checked(str(path), flags, self.check)
            try:
                assert not os.get_inheritable(descriptor)
                if flags != READ:
                    os.write(descriptor, b"+")
                return Path(f"/proc/self/fd/{descriptor}").read_text()
            finally:
                os.close(descriptor)
        finally:
            assert open_descriptors() == before

    def assert_untouched(self) -> None:
        """Nothing outside was written, cut, made or removed."""
        found = {path.relative_to(self.outside).as_posix() for path in self.outside.rglob("*")}
        assert found <= {"dir", "dir/sub", "dir/sub/file"}, found
        assert (self.outside / "dir" / "sub" / "file").read_text() == SECRET


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path.resolve())


@pytest.fixture(params=["as it is", "with F_GETPATH", "bare"])
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the platforms differ in."""
    name: str = request.param
    readlink = os.readlink
    if name != "as it is":
        monkeypatch.setattr(guarded_files, "_DIRECTORY", guarded_files._DIRECTORY & ~os.O_PATH)
    if name == "with F_GETPATH":

        def fake_fcntl(descriptor: int, command: int, argument: Any = 0) -> bytes:
            assert (command, len(argument)) == (50, 1024)
            return os.fsencode(readlink(f"/proc/self/fd/{descriptor}")).ljust(1024, b"\0")

        monkeypatch.setattr(fcntl, "fcntl", fake_fcntl)
        monkeypatch.setattr(fcntl, "F_GETPATH", 50, raising=False)
    if name == "bare":

        def unmounted(path: Any, *, dir_fd: int | None = None) -> Any:
            if str(path).startswith("/proc/"):
                raise FileNotFoundError(errno.ENOENT, "no /proc", path)
            return readlink(path, dir_fd=dir_fd)

        monkeypatch.setattr(os, "readlink", unmounted)
    return name


@pytest.mark.requirement("P9.3", "G04")
@pytest.mark.parametrize(
    ("mode", "content"), [("r", INSIDE), ("w", "+"), ("a", INSIDE + "+"), ("r+", "+" + INSIDE[1:])]
)
def test_a_file_inside_is_opened_as_open_does(tree: Tree, platform: str, mode: str, content: str) -> None:
    assert tree.open(tree.path, ALL[mode]) == content
    assert set(tree.asked) == {str(tree.path)}


@pytest.mark.requirement("P9.3")
@pytest.mark.parametrize("mode", ["w", "a", "x"])
def test_a_new_file_is_made_as_open_does(tree: Tree, platform: str, mode: str) -> None:
    path = tree.workspace / "new"
    umask = os.umask(0o027)
    try:
        assert tree.open(path, ALL[mode]) == "+"
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(FileExistsError) as caught:
        tree.open(path, CREATE)
    assert caught.value.filename == str(path)


def link(tree: Tree, name: str, target: str | Path) -> Path:
    path = tree.workspace / name
    path.symlink_to(target)
    return path


@pytest.mark.requirement("P9.3", "G04")
@pytest.mark.parametrize(
    ("target", "rest"),
    [
        ("dir", "sub/file"),
        ("./dir/", "sub/file"),
        ("dir/sub/file", ""),
        ("../ws/dir", "sub/file"),
        ("dir/sub/../..//./dir/sub", "file"),
        ("../../../../../../../../../../{ws}", "dir/sub/file"),
        ("{ws}/dir/sub", "file"),
        ("{ws}/dir/sub/file", ""),
        # Out and in again: where it leads is what counts.
        ("../outside/../ws/dir", "sub/file"),
    ],
)
def test_a_link_that_stays_inside_is_followed(tree: Tree, platform: str, target: str, rest: str) -> None:
    path = link(tree, "link", target.format(ws=tree.workspace)) / rest
    assert tree.open(path, READ) == INSIDE
    assert tree.open(path, APPEND) == INSIDE + "+"
    assert set(tree.asked) == {str(tree.path)}


@pytest.mark.requirement("P9.3", "P9.4", "G01", "G04")
@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize(
    ("target", "rest"),
    [
        ("../outside", "dir/sub/file"),
        ("{outside}", "dir/sub/file"),
        ("{outside}/dir/sub/file", ""),
        ("../outside/dir/sub/file", ""),
        ("dir/sub/../../../outside", "dir/sub/file"),
        ("..", "outside/dir/sub/file"),
        ("/", "etc/passwd"),
        # What is not there is made nowhere, and nobody is told that it is not.
        ("../outside", "new"),
        ("{outside}/new", ""),
        ("../outside", "missing/new"),
        ("../outside/dir/sub/file", "below/a/file"),
        ("../outside", ""),
        ("/dev/null", ""),
        ("/proc/self/cwd", "file"),
        ("/proc/self/root", "etc/passwd"),
    ],
)
def test_a_link_out_of_the_lease_is_denied(tree: Tree, platform: str, mode: str, target: str, rest: str) -> None:
    path = link(tree, "link", target.format(outside=tree.outside)) / rest
    if mode == "x" and not rest:
        # The link itself is what is there already.
        with pytest.raises(FileExistsError):
            tree.open(path, CREATE)
    else:
        with pytest.raises(PermissionDeniedError) as caught:
            tree.open(path, ALL[mode])
        assert not caught.value.message.startswith(f"{tree.workspace}/")
    tree.assert_untouched()


@pytest.mark.requirement("P9.3")
def test_a_dangling_link_inside(tree: Tree, platform: str) -> None:
    path = link(tree, "link", "dir/new")
    with pytest.raises(FileNotFoundError) as caught:
        tree.open(path, READ)
    assert caught.value.filename == str(path)
    assert tree.open(path, WRITE) == "+"
    assert (tree.workspace / "dir" / "new").read_text() == "+"


@pytest.mark.requirement("P9.3")
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("missing", errno.ENOENT),
        ("missing/file", errno.ENOENT),
        ("dir", errno.EISDIR),
        ("dir/sub/file/below", errno.ENOTDIR),
        ("loop", errno.ELOOP),
        ("link41", errno.ELOOP),
        ("x" * 300, errno.ENAMETOOLONG),
    ],
)
def test_what_cannot_be_opened_says_why(tree: Tree, platform: str, name: str, error: int) -> None:
    link(tree, "loop", "loop")
    link(tree, "link1", "dir/sub/file")
    for number in range(2, 42):
        link(tree, f"link{number}", f"link{number - 1}")
    with pytest.raises(OSError) as caught:  # noqa: PT011  # its number is looked at
        tree.open(tree.workspace / name, READ)
    assert (caught.value.errno, caught.value.filename) == (error, str(tree.workspace / name))
    assert tree.open(tree.workspace / "link40", READ) == INSIDE


@pytest.mark.requirement("P9.3")
def test_a_root_is_a_directory() -> None:
    for path in ("/", "/tmp/.."):
        with pytest.raises(IsADirectoryError):
            open_checked(path, READ, lambda path: None)


@pytest.mark.requirement("P9.3")
@pytest.mark.parametrize("mode", ["r", "w", "a", "r+"])
@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_what_is_no_file_is_not_opened(tree: Tree, platform: str, mode: str, kind: str) -> None:
    path = tree.workspace / "odd"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            server.bind(str(path))
        else:
            tree.workspace = Path("/dev")
            path = Path("/dev/null")
        with pytest.raises(PermissionDeniedError, match="not a regular file"):
            tree.open(path, ALL[mode])


@pytest.mark.requirement("P9.3")
def test_a_link_that_climbs_from_far_below(tree: Tree) -> None:
    """Each name of it costs a step, and not the whole path again."""
    deep = "/".join(["d"] * 100)
    (tree.workspace / deep).mkdir(parents=True)
    (tree.workspace / deep / "up").symlink_to("../" * 100 + "dir/sub/file")
    assert tree.open(tree.workspace / deep / "up", READ) == INSIDE


@pytest.mark.requirement("P9.3", "G04")
@pytest.mark.parametrize("seed", range(30))
def test_links_lead_where_the_system_says_that_they_lead(tmp_path: Path, seed: int) -> None:
    """Random links, held against the kernel's own walk."""
    rng = random.Random(seed)
    top = tmp_path.resolve()
    folders = [top]
    for _ in range(6):
        folder = rng.choice(folders) / rng.choice("abc")
        folder.mkdir(exist_ok=True)
        folders.append(folder)
    for folder in folders:
        for name in rng.sample("abcdef", 3):
            path = folder / name
            if os.path.lexists(path):
                continue
            if rng.random() < 0.4:
                path.write_text(str(path))
            else:
                steps = [rng.choice(["a", "b", "c", "d", "e", "f", "..", "."]) for _ in range(rng.randint(1, 4))]
                path.symlink_to(rng.choice(["", "", f"{top}/"]) + "/".join(steps))
    opened = failed = 0
    for _ in range(300):
        path_text = "/".join([str(top), *(rng.choice("abcdef") for _ in range(rng.randint(1, 4)))])
        asked: list[str] = []
        try:
            descriptor = open_checked(path_text, READ, asked.append)
        except OSError as exc:
            failed += 1
            with pytest.raises(type(exc)):
                Path(path_text).read_text()
        else:
            opened += 1
            assert os.fstat(descriptor).st_ino == Path(path_text).stat().st_ino
            assert set(asked) == {os.path.realpath(path_text)}
            os.close(descriptor)
    assert opened > 0
    assert failed > 0


# --- somebody swaps what stands in the path -----------------------------------------------------------


class Attack:
    """Calls something before the n-th operation on the file system, and counts them."""

    NAMES = ("open", "stat", "readlink", "fstat", "ftruncate", "close")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], at: int | None) -> None:
        self.operations = 0
        self._busy = False

        def wrap(operation: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if not self._busy:
                    self._busy = True
                    if at is None or self.operations == at:
                        act()
                    self.operations += 1
                    self._busy = False
                return operation(*args, **kwargs)

            return wrapped

        for name in self.NAMES:
            monkeypatch.setattr(os, name, wrap(getattr(os, name)))


def swap_for_link(path: Path, target: Path) -> None:
    path.rename(path.with_name(path.name + ".old"))
    path.symlink_to(target)


def swap_for_fifo(path: Path, target: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swap_for_folder(path: Path, target: Path) -> None:
    path.unlink()
    path.mkdir()


def remove(path: Path, target: Path) -> None:
    path.unlink()


def play(root: Path, swap: Callable[[Tree], None], flags: int, path: str, platform: str) -> Iterator[tuple[int, str]]:
    """Open with one swap before each operation in turn; yield where, and what came of it."""
    step = 0
    while True:
        tree = Tree(root / str(step))
        with pytest.MonkeyPatch.context() as patch:
            attack = Attack(patch, lambda tree=tree: swap(tree), step)  # type: ignore[misc]
            before = len(open_descriptors())
            try:
                descriptor = open_checked(str(tree.root / path), flags, tree.check)
            except (PermissionDeniedError, OSError) as exc:
                outcome = type(exc).__name__
                assert outcome != "BlockingIOError"
            else:
                with os.fdopen(descriptor, "rb" if flags == READ else "r+b" if flags == UPDATE else "wb") as file:
                    outcome = file.read().decode() if flags in (READ, UPDATE) else "opened"
            done = attack.operations <= step
        assert len(open_descriptors()) == before
        yield step, outcome
        assert SECRET not in outcome
        tree.assert_untouched()
        if done:
            return
        step += 1


SWAPS: dict[str, tuple[Callable[[Tree], None], str]] = {
    "the first directory": (
        lambda tree: swap_for_link(tree.workspace, tree.outside),
        "ws/dir/sub/file",
    ),
    "a directory": (lambda tree: swap_for_link(tree.workspace / "dir", tree.outside / "dir"), "ws/dir/sub/file"),
    "the last directory": (
        lambda tree: swap_for_link(tree.workspace / "dir" / "sub", Path("../../outside/dir/sub")),
        "ws/dir/sub/file",
    ),
    "the file": (lambda tree: swap_for_link(tree.path, tree.outside / "dir" / "sub" / "file"), "ws/dir/sub/file"),
    "the file, for what is not there": (lambda tree: swap_for_link(tree.path, tree.outside / "new"), "ws/dir/sub/file"),
    "the file, for a fifo": (lambda tree: swap_for_fifo(tree.path, tree.outside), "ws/dir/sub/file"),
    "the file, for a folder": (lambda tree: swap_for_folder(tree.path, tree.outside), "ws/dir/sub/file"),
    "the file, for nothing": (lambda tree: remove(tree.path, tree.outside), "ws/dir/sub/file"),
    "a new file": (lambda tree: (tree.workspace / "new").symlink_to(tree.outside / "new"), "ws/new"),
    "a new file, by a secret": (
        lambda tree: (tree.workspace / "new").symlink_to(tree.outside / "dir" / "sub" / "file"),
        "ws/new",
    ),
    "a new file, by a fifo": (lambda tree: os.mkfifo(tree.workspace / "new"), "ws/new"),
    "a new file, by another": (lambda tree: (tree.workspace / "new").touch(), "ws/new"),
}


@pytest.mark.requirement("P9.3", "G04")
@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("swapped", SWAPS)
def test_a_swap_at_any_step_leads_nowhere_else(tmp_path: Path, platform: str, swapped: str, mode: str) -> None:
    swap, path = SWAPS[swapped]
    outcomes = [outcome for _, outcome in play(tmp_path.resolve(), swap, ALL[mode], path, platform)]
    # From the first operation to behind the last one.
    assert len(outcomes) > 8
    allowed = {"PermissionDeniedError", "FileNotFoundError", "FileExistsError", "IsADirectoryError"}
    assert set(outcomes) <= allowed | {INSIDE, "", "opened"}


@pytest.mark.requirement("P9.3")
@pytest.mark.parametrize("mode", ALL)
@pytest.mark.parametrize("moved", ["ws/dir", "ws/dir/sub", "ws/dir/sub/file"])
def test_what_is_moved_out_meanwhile_is_not_cut(tmp_path: Path, mode: str, moved: str) -> None:
    """Where the system can say where a descriptor's file is now, also a real directory that was moved is found."""

    def move(tree: Tree) -> None:
        (tree.root / moved).rename(tree.root / "elsewhere")

    outcomes: list[str] = []
    step = 0
    while True:
        tree = Tree(tmp_path.resolve() / str(step))
        with pytest.MonkeyPatch.context() as patch:
            attack = Attack(patch, lambda tree=tree: move(tree), step)  # type: ignore[misc]
            try:
                os.close(open_checked(str(tree.path), ALL[mode], tree.check))
                outcomes.append("opened")
            except (PermissionDeniedError, OSError) as exc:
                outcomes.append(type(exc).__name__)
            done = attack.operations <= step
        if not done and outcomes[-1] != "opened":
            (text,) = [
                path.read_text()
                for path in (tree.root / "elsewhere", *(tree.root / "elsewhere").rglob("*"))
                if path.is_file()
            ]
            assert text == INSIDE
        if done:
            break
        step += 1
    if mode != "x":
        assert "PermissionDeniedError" in outcomes


@pytest.mark.requirement("P9.3")
def test_a_new_file_is_not_made_where_its_directory_went(tree: Tree) -> None:
    def check(path: str) -> None:
        tree.check(path)
        with suppress(FileNotFoundError):
            (tree.workspace / "dir").rename(tree.outside / "moved")

    with pytest.raises(PermissionDeniedError):
        open_checked(str(tree.workspace / "dir" / "new"), WRITE, check)
    assert tree.asked == [str(tree.workspace / "dir" / "new"), str(tree.outside / "moved" / "new")]
    assert [path.name for path in (tree.outside / "moved").iterdir()] == ["sub"]


@pytest.mark.requirement("P9.3")
def test_a_file_that_goes_with_its_directory_is_not_made_anew(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    open_ = os.open

    def take_away(name: Any, *args: Any, **options: Any) -> int:
        if name == "file":
            tree.path.unlink()
            tree.path.parent.rename(tree.outside / "moved")
        return open_(name, *args, **options)

    with monkeypatch.context() as patch, pytest.raises(FileNotFoundError):
        patch.setattr(os, "open", take_away)
        open_checked(str(tree.path), WRITE, tree.check)
    assert list((tree.outside / "moved").iterdir()) == []


@pytest.mark.requirement("P9.3")
def test_a_file_that_is_removed_as_it_is_opened_is_opened(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    look = os.fstat

    def remove_first(descriptor: int) -> os.stat_result:
        tree.path.unlink(missing_ok=True)
        return look(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", remove_first)
        os.close(open_checked(str(tree.path), READ, tree.check))
    # It has no path any more, and none was asked for.
    assert tree.asked == [str(tree.path)]


@pytest.mark.requirement("P9.3")
@pytest.mark.parametrize("mode", ["r", "w"])
def test_who_swaps_faster_than_anybody_looks_gets_an_error(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """A bounded number of rounds, and each asks anew."""
    look, open_ = os.stat, os.open

    def show_file(name: Any, **options: Any) -> os.stat_result:
        if name == "file":
            tree.path.unlink()
            tree.path.write_text(INSIDE)
        return look(name, **options)

    def give_link(name: Any, *args: Any, **options: Any) -> int:
        if name == "file":
            tree.path.unlink()
            tree.path.symlink_to(tree.outside / "dir" / "sub" / "file")
        return open_(name, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", show_file)
        patch.setattr(os, "open", give_link)
        before = len(open_descriptors())
        with pytest.raises(OSError, match="again and again") as caught:
            open_checked(str(tree.path), ALL[mode], tree.check)
        assert len(open_descriptors()) == before
    assert caught.value.errno == errno.EBUSY
    assert tree.asked == [str(tree.path)] * 16
    tree.assert_untouched()
