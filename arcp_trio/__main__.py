"""``python -m arcp_trio`` is the command ``arcp-trio``."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
