"""The command line: ``embstore COMMAND``. The commands are put together in ``embstore.cli.commands``."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["cli", "main"]


def main() -> None:
    """Entry point; Ctrl-C at any time, while the commands are imported too, is one line and exit code 130."""
    try:
        from embstore.cli.commands import run

        code = run()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


def __getattr__(name: str) -> Any:
    if name == "cli":
        from embstore.cli.commands import cli

        return cli
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
