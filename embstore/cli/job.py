"""What the commands have in common that do a job by a YAML file, in a folder where the same command goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from embstore.cli.store import LocalPath, as_json_option
from embstore.cli.train import override
from embstore.errors import Interrupted

Command = TypeVar("Command", bound=Callable[..., Any])


def job_options(*, example: str, folder: str, output: str, fresh: str) -> Callable[[Command], Command]:
    """CONFIG, ``--set``, ``--output``, ``--fresh`` and ``--json``, besides the command's own options.

    Args:
        example: of a setting, ``collisions=0.05``.
        folder: what ``--output`` is.
        output: its default.
        fresh: what ``--fresh`` does.
    """

    def decorate(of: Command) -> Any:
        @wraps(of)
        def command(*args: Any, fresh: bool, **given: Any) -> Any:
            try:
                return of(*args, fresh=fresh, **given)
            except KeyboardInterrupt:
                same = "the same command without --fresh" if fresh else "the same command"
                raise Interrupted(f"stopped; {same} goes on behind what was done") from None

        for option in (
            as_json_option,
            click.option("--fresh", is_flag=True, help=fresh),
            click.option("--output", type=LocalPath(), help=f"{folder}  [default: {output}]"),
            click.option(
                *("--set", "settings"),
                multiple=True,
                metavar="KEY=VALUE",
                help=f"Override one setting, e.g. {example}.",
            ),
            click.argument("config", type=click.Path(path_type=Path)),
        ):
            command = option(command)
        return command

    return decorate


def read_settings(config: Path, settings: tuple[str, ...], **given: Any) -> dict[str, Any]:
    """Those of the file, then those of ``--set``, then those that are given.

    Raises:
        ConfigError: the file can't be read, or a setting is not ``KEY=VALUE``.
    """
    from embstore.config import load_yaml

    data = load_yaml(config)
    for setting in settings:
        override(data, setting)
    return data | {name: value for name, value in given.items() if value is not None}
