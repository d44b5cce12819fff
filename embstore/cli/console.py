"""Where the commands print: results to stdout, bars and errors to stderr."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from embstore.progress import ConsoleProgress

# Piped output has no width to fit: tables keep their lines whole.
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True, soft_wrap=True)
progress = ConsoleProgress(errors)


def warn(text: str) -> None:
    """A warning, to stderr."""
    errors.print(f"warning: {text}", markup=False, highlight=False)


def show_notes(result: Mapping[str, Any]) -> None:
    """The warnings and hints of a finished run, to stderr."""
    for note in result["notes"]:
        errors.print(note, markup=False, highlight=False)


def metrics_table(title: str, columns: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Metrics in rows, one column for each log; those that need rows of both labels are undefined for one class."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    rows = dict.fromkeys(key for values in columns.values() for key in values)
    for key in rows:
        table.add_row(key, *(_number(values[key]) if key in values else "" for values in columns.values()))
    return table


def _number(value: Any) -> str:
    if value is None or not math.isfinite(value):
        return "n/a (one class)"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.5f}"
