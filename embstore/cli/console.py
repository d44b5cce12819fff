"""Where the commands print: results to stdout, bars and errors to stderr."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

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


def plain_table(columns: Sequence[str], rows: Iterable[Iterable[str]], *, numbers: bool = False) -> Table:
    """A table without lines, its cells as they are, brackets too; ``numbers`` are in all columns but the first."""
    table = Table(box=None, header_style="bold")
    for place, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if numbers and place else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


@contextmanager
def bytes_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for bytes on their way; nothing where there is no terminal."""
    columns = (TextColumn("{task.description:>8}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as display:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = display.add_task(what)
            display.update(tasks[what], completed=done, total=total)

        yield show


def _number(value: Any) -> str:
    if value is None or not math.isfinite(value):
        return "n/a (one class)"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) > 1 else f"{value:.5f}"
