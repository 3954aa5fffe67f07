"""The floors of the design: imports only point down.

Every import of every module is read from its source, also those inside of functions, and held against the order of
``FLOORS``. Imports for type checkers alone (``if TYPE_CHECKING:``) are free: nothing runs them.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import arcp_trio

PACKAGE = Path(arcp_trio.__file__).parent

FLOORS: list[set[str]] = [
    {"cli", "conformance", "__main__"},
    {"gateway", "embedded"},
    {"runtime", "shutdown"},
    {"sessions", "client"},
    {"jobs"},
    {"store", "transports"},
    {"timers", "tracing", "spans"},
    {"records", "limits", "audit", "statistics"},
    {"authority"},
    {"wire"},
    {"_version"},
]
"""From the top; what stands on one floor may use its own part and every floor below, not its neighbours.

The package itself (``__init__``) is the map above all but the first.
"""

# On one floor, and yet one above the other: what a part may use of its own floor.
NEIGHBOURS: dict[str, set[str]] = {
    "__main__": {"cli"},
    "runtime": {"shutdown"},
    "transports": {"timers"},
    "tracing": {"spans"},
}

# Narrower than their floor: the client is the other end of the wire, and knows no runtime.
# Of what jobs may do it knows the values: a credential guards itself at both ends (P9.11).
ONLY: dict[str, set[str]] = {
    "client": {"client", "wire", "authority", "transports", "timers", "tracing", "limits", "_version"}
}

WITHOUT_TRIO = (
    "wire",
    "authority",
    "jobs.lifecycle",
    "jobs.index",
    "sessions.stream",
    "store.plan",
    "records",
    "limits",
    "spans",
    "tracing",
    "audit",
    "statistics",
    "_version",
)
ABOVE_ONLY = {"cyclopts", "rich"}
# What an extra brings, and the one module that imports it, where and when it is needed.
EXTRAS = {"ada_url": "authority.targets", "opentelemetry": "spans", "websockets": "transports.engine_websockets"}
FOR_TESTS_ONLY = {"pytest", "hypothesis", "jsonschema", "trustme"}


def part_of(module: str) -> str:
    """Return the part of the house that a module (``jobs.actor``) belongs to."""
    return module.partition(".")[0]


def floor_of(part: str) -> int | None:
    return next((number for number, parts in enumerate(FLOORS) if part in parts), None)


class _Imports(ast.NodeVisitor):
    """Collects what a module imports: ``(line, dotted name)``, relative names made absolute."""

    def __init__(self, package: list[str]) -> None:
        self.package = package
        self.found: list[tuple[int, str]] = []

    def visit_If(self, node: ast.If) -> None:
        test = ast.unparse(node.test)
        if test in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(node.lineno, alias.name) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self.package[: len(self.package) - node.level + 1]
            base = ".".join([*above, *([node.module] if node.module else [])])
        # "from . import a" may name a module: both readings are looked at.
        self.found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]

    def visit_Call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func)
        if called in ("importlib.import_module", "import_module", "__import__") and node.args:
            name = node.args[0]
            self.found.append((node.lineno, name.value if isinstance(name, ast.Constant) else "?"))
        self.generic_visit(node)


def imports_of(path: Path, root: Path) -> list[tuple[int, str]]:
    """Return what the module at ``path`` imports when it runs."""
    inside = path.relative_to(root).with_suffix("").parts
    collector = _Imports([root.name, *inside[:-1]])
    collector.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return collector.found


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def violations(root: Path) -> Iterator[str]:
    """Say which imports of a package do not point down."""
    for path in sorted(root.rglob("*.py")):
        module = module_name(path, root)
        for line, name in imports_of(path, root):
            where = f"{path.relative_to(root)}:{line} imports {name}"
            top, _, inner = name.partition(".")
            if top == root.name:
                yield from (f"{where}: {problem}" for problem in _wrong_inside(module, inner, root))
            else:
                yield from (f"{where}: {problem}" for problem in _wrong_outside(module, top))


def _wrong_inside(module: str, imported: str, root: Path) -> Iterator[str]:
    source, target = part_of(module), part_of(imported)
    if not (root / target).exists() and not (root / f"{target}.py").exists():
        # A name of the package itself, as the user sees it: of the first floor's business only.
        if source not in FLOORS[0]:
            yield "the map is for users, import from where it is"
        return
    if source == "__init__":
        if target in FLOORS[0]:
            yield "the map names everything but the programs"
        return
    above, below = floor_of(source), floor_of(target)
    if above is None or below is None:
        yield f"{source if above is None else target} stands on no floor: give it one in FLOORS"
    elif source in ONLY and target not in ONLY[source]:
        yield f"{source} uses {', '.join(sorted(ONLY[source]))} alone"
    elif below < above:
        yield f"{target} is above {source}"
    elif below == above and source != target and target not in NEIGHBOURS.get(source, set()):
        yield f"{target} is beside {source}"


def _wrong_outside(module: str, imported: str) -> Iterator[str]:
    without_trio = any(module == each or module.startswith(each + ".") for each in WITHOUT_TRIO)
    if imported in ("trio", "trio_websocket", "outcome", "sniffio") and without_trio:
        yield "there is no Trio on this floor"
    if imported in ABOVE_ONLY and part_of(module) not in FLOORS[0]:
        yield "the libraries of the command line are for the first floor"
    if module != EXTRAS.get(imported, module):
        yield f"an extra: {EXTRAS[imported]} alone imports it, where it is there"
    if imported in FOR_TESTS_ONLY:
        yield "a library for tests"
    if imported == "asyncio":
        yield "this package is on Trio"
    if imported == "?" and part_of(module) not in FLOORS[0]:
        # A program may be told by its user what to load.
        yield "an import that nobody can read"


def test_imports_only_point_down() -> None:
    found = list(violations(PACKAGE))
    assert not found, "\n".join(found)


def test_every_part_has_its_floor() -> None:
    parts = {part_of(module_name(path, PACKAGE)) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert {part for part in parts if floor_of(part) is None} == set()
    assert len([part for floor in FLOORS for part in floor]) == len({part for floor in FLOORS for part in floor})


def test_what_has_no_trio_is_really_there() -> None:
    """A module that is renamed must not slip out of the rule."""
    modules = {module_name(path, PACKAGE) for path in PACKAGE.rglob("*.py")}
    for each in WITHOUT_TRIO:
        assert each in modules


GOOD = {
    "__init__.py": "from .runtime import Runtime as Runtime\nfrom .client.client import Client\n",
    "cli/__init__.py": "import cyclopts\nimport rich.console\nfrom arcp_trio import Runtime\n",
    "cli/serve.py": "from ..runtime import Runtime\nfrom . import Runtime\n",
    "gateway.py": "import trio\nfrom .runtime import Runtime\nfrom .wire.errors import ARCPError\n",
    "runtime.py": (
        "from typing import TYPE_CHECKING\nfrom . import shutdown\nfrom .sessions import session\n"
        "if TYPE_CHECKING:\n    from .client.client import Client\n    from .gateway import x\n"
    ),
    "shutdown.py": "from .limits import Limits\n",
    "client/__init__.py": "",
    "client/client.py": "import trio\nfrom ..wire.errors import ARCPError\nfrom ..limits import Limits\n",
    "sessions/__init__.py": "",
    "sessions/session.py": "import trio\nfrom ..jobs import actor\nfrom . import stream\nfrom .stream import Stream\n",
    "sessions/stream.py": "from ..wire import errors\n",
    "jobs/__init__.py": "",
    "jobs/actor.py": "import trio\nfrom .lifecycle import apply\nfrom ..limits import Limits\n",
    "jobs/lifecycle.py": "from ..wire import errors\n",
    "limits.py": "import attrs\n",
    "authority/__init__.py": "",
    "authority/lease.py": "from .targets import canonical\nfrom ..wire.errors import ARCPError\n",
    "authority/targets.py": "def f():\n    import ada_url\n",
    "wire/__init__.py": "",
    "wire/errors.py": "import json\nfrom . import codec\n",
    "wire/codec.py": "",
}

PLANTED = [
    ("wire/errors.py", "from ..limits import Limits", "limits is above wire"),
    ("wire/errors.py", "from .. import limits", "limits is above wire"),
    ("wire/errors.py", "import arcp_trio.limits", "limits is above wire"),
    ("wire/errors.py", "from arcp_trio import limits", "limits is above wire"),
    ("wire/errors.py", "import trio", "no Trio"),
    ("wire/errors.py", "import trio.lowlevel as low", "no Trio"),
    ("wire/errors.py", "from trio import sleep", "no Trio"),
    ("wire/__init__.py", "import trio", "no Trio"),
    ("wire/errors.py", "def f():\n    import trio", "no Trio"),
    ("wire/errors.py", "async def f():\n    try:\n        from trio import x\n    except E:\n        pass", "no Trio"),
    ("wire/errors.py", "if x:\n    import trio", "no Trio"),
    ("wire/errors.py", "if not TYPE_CHECKING:\n    import trio", "no Trio"),
    ("wire/errors.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import trio", "no Trio"),
    ("wire/errors.py", "class C:\n    import trio", "no Trio"),
    ("wire/errors.py", "import importlib\nimportlib.import_module('trio')", "no Trio"),
    ("wire/errors.py", "import importlib\nimportlib.import_module(name)", "nobody can read"),
    ("wire/errors.py", "from arcp_trio import Runtime", "the map is for users"),
    ("limits.py", "import trio", "no Trio"),
    ("jobs/lifecycle.py", "import trio", "no Trio"),
    ("authority/lease.py", "import trio", "no Trio"),
    ("authority/lease.py", "from ..limits import Limits", "limits is above authority"),
    ("authority/lease.py", "def f():\n    import ada_url", "an extra: authority.targets alone"),
    ("jobs/actor.py", "import ada_url", "an extra: authority.targets alone"),
    ("wire/errors.py", "from ..authority.lease import Lease", "authority is above wire"),
    ("sessions/stream.py", "from trio.lowlevel import checkpoint", "no Trio"),
    ("jobs/actor.py", "from ..sessions.session import Session", "sessions is above jobs"),
    ("jobs/actor.py", "def f():\n    from ..runtime import Runtime", "runtime is above jobs"),
    ("sessions/session.py", "from ..client.client import Client", "client is beside sessions"),
    ("sessions/session.py", "from ..runtime import Runtime", "runtime is above sessions"),
    ("client/client.py", "from ..jobs.actor import JobActor", "client uses"),
    ("client/client.py", "from ..sessions import stream", "client uses"),
    ("client/client.py", "from ..runtime import Runtime", "client uses"),
    ("runtime.py", "from .gateway import serve", "gateway is above runtime"),
    ("shutdown.py", "from .runtime import Runtime", "runtime is beside shutdown"),
    ("runtime.py", "import rich", "command line"),
    ("gateway.py", "from cyclopts import App", "command line"),
    ("gateway.py", "from .cli import main", "cli is above gateway"),
    ("__init__.py", "from .cli import main", "everything but the programs"),
    ("__init__.py", "import rich", "command line"),
    ("runtime.py", "import pytest", "library for tests"),
    ("jobs/actor.py", "import asyncio", "on Trio"),
    ("jobs/actor.py", "def f():\n    from opentelemetry import trace", "an extra"),
    ("limits.py", "import opentelemetry.trace", "an extra"),
    ("attic.py", "import json\nfrom .limits import Limits", "attic stands on no floor"),
]


def plant(root: Path, files: dict[str, str]) -> Path:
    package = root / "arcp_trio"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


def test_a_good_house_stands(tmp_path: Path) -> None:
    assert list(violations(plant(tmp_path, GOOD))) == []


@pytest.mark.parametrize(("name", "text", "problem"), PLANTED, ids=[f"{n}" for n in range(len(PLANTED))])
def test_a_planted_violation_is_found(tmp_path: Path, name: str, text: str, problem: str) -> None:
    package = plant(tmp_path, {**GOOD, name: GOOD.get(name, "") + text + "\n"})
    (found,) = violations(package)
    assert found.startswith(f"{name}:")
    assert problem in found


def test_importing_the_package_is_cheap() -> None:
    """Whoever writes an agent pays for no command line, no test library, no extra, no engine and no schema."""
    unwanted = [
        *sorted(ABOVE_ONLY | FOR_TESTS_ONLY | set(EXTRAS)),
        "trio_websocket",
        "arcp_trio.wire.schema",
        "arcp_trio.spans",
        "arcp_trio.cli",
        "asyncio",
    ]
    code = f"import arcp_trio, sys; print([name for name in {unwanted} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_wire_and_the_authority_can_be_used_without_trio() -> None:
    """Their own modules, that is: the package around it, which Python imports first, is on Trio."""
    code = (
        "import sys, types, importlib\n"
        "package = types.ModuleType('arcp_trio'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['arcp_trio'] = package\n"
        "for name in sys.argv[2:]: importlib.import_module('arcp_trio.' + name)\n"
        "print([name for name in ('trio', 'asyncio', 'trio_websocket') if name in sys.modules])"
    )
    below = [module_name(path, PACKAGE) for part in ("wire", "authority") for path in (PACKAGE / part).glob("*.py")]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(PACKAGE), *sorted(below), "records", "limits"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"
