"""The reference implementation, in an environment and processes of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from interop.peer import ReferencePeer

PACKAGE = "agentruntimecontrolprotocol==1.1.3"
_INSTALL_SECONDS = 600


@pytest.fixture(scope="session")
def reference_peer(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> ReferencePeer:
    """Install the reference implementation, once: a second run finds it in pytest's cache."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # A run may go without a cache (-p no:cacheprovider), and then keeps nothing.
    cache = getattr(pytestconfig, "cache", None)
    kept = tmp_path_factory.mktemp("reference-peer") if cache is None else cache.mkdir("reference-peer")
    home = kept / f"{PACKAGE}-{version}"
    python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    # Written last: without it the environment is half made, or of a Python that is gone.
    complete = home / "complete"
    if not (complete.exists() and python.exists()):
        shutil.rmtree(home, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(home))
        _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE)
        complete.touch()
    return ReferencePeer(python=python, scripts=Path(__file__).parent)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
