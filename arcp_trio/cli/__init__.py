"""The command ``arcp-trio``: the way in, before anything that may not be installed is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]

# What the extra "cli" installs.
_EXTRA = frozenset({"cyclopts", "rich"})


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command ``arcp-trio`` and leave the process with its exit code.

    Args:
        arguments: What stands behind the command's name; ``None`` takes the process's own.

    Raises:
        SystemExit: Always, with the exit code (:class:`arcp_trio.cli.errors.ExitCode`).
    """
    try:
        from .application import run  # noqa: PLC0415  # cyclopts and rich are optional
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _EXTRA:
            raise
        print(  # noqa: T201
            f"arcp-trio: the command line needs {exc.name}: pip install 'arcp-trio[cli]'", file=sys.stderr
        )
        sys.exit(1)
    except KeyboardInterrupt:
        # Control-C while half a second of imports runs is no reason for a traceback.
        sys.exit(130)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))
