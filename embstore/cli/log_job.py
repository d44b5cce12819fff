"""The options that commands over a log have in common, and what they say of a job's settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from embstore.cli.store import as_json_option

Command = TypeVar("Command", bound=Callable[..., Any])

_BEFORE: tuple[Callable[[Any], Any], ...] = (
    click.argument("logs", nargs=-1),
    click.option("--config", type=click.Path(path_type=Path), help="YAML of the settings; options go before it."),
    click.option("--schema", help="YAML of what the columns mean; inferred without."),
    click.option("--label", help="The 0/1 column; needed without a schema."),
    click.option("--feature", "features", multiple=True, help="Only this one; again for more."),
)
_AFTER: tuple[Callable[[Any], Any], ...] = (
    click.option("--to", "output", help="Folder to make."),
    click.option(
        "--workers", type=click.IntRange(min=1), help="By so many tasks of a Ray cluster (RAY_ADDRESS, or here)."
    ),
    as_json_option,
)


def log_job_options(*own: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """A decorator: LOGS and the options of every job, a command's own ones between."""

    def decorate(command: Command) -> Command:
        for option in reversed((*_BEFORE, *own, *_AFTER)):
            command = option(command)
        return command

    return decorate


def log_job_settings(config: Path | None, logs: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a job as plain values: those of its file, and before them what options say."""
    from embstore.config import load_yaml

    data: dict[str, Any] = {} if config is None else load_yaml(config)
    given = {**given, "features": list(given["features"]) or None}
    if logs:
        given["log"] = logs[0] if len(logs) == 1 else list(logs)
    return data | {name: value for name, value in given.items() if value is not None}
