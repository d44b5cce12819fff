"""``embstore select``: which fields and values of a log say something of its label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from embstore.cli.store import as_json_option

_SHOWN = 20


@click.command(
    epilog="""\b
Examples:
  embstore select logs/ --label click --vocabulary vocabulary --to scores
  embstore select logs/ --schema schema.yaml --vocabulary vocabulary --set level=values --set order=4 --to scores
  embstore select logs/ --schema schema.yaml --vocabulary vocabulary --method mutual_information --to information
  embstore select --config selection.yaml --workers 8
"""
)
@click.argument("logs", nargs=-1)
@click.option("--config", type=click.Path(path_type=Path), help="YAML of the settings; options go before it.")
@click.option("--schema", help="YAML of what the columns mean; inferred without.")
@click.option("--label", help="The 0/1 column; needed without a schema.")
@click.option("--feature", "features", multiple=True, help="Only this one; again for more.")
@click.option("--vocabulary", help="Folder of the values that are judged; other features are hashed.")
@click.option("--method", help="How they are judged.  [default: feature_gradients]")
@click.option("--set", "options", multiple=True, metavar="KEY=VALUE", help="A setting of the method, e.g. order=2.")
@click.option("--to", "output", help="Folder to make.")
@click.option("--workers", type=click.IntRange(min=1), help="By so many tasks of a Ray cluster (RAY_ADDRESS, or here).")
@as_json_option
def select(
    logs: tuple[str, ...],
    config: Path | None,
    options: tuple[str, ...],
    workers: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Score the fields and the values of LOGS: Parquet files, folders, globs or URIs.

    The folder holds the scores (fields.parquet, columns.parquet) and what they come from (manifest.json). They are the
    same bytes on any number of --workers.
    """
    from contextlib import redirect_stdout
    from sys import stderr

    from embstore.cli.console import out, plain_table, progress
    from embstore.cli.train import override
    from embstore.config import load_yaml, parse
    from embstore.pipelines import selection as job

    data: dict[str, Any] = {} if config is None else load_yaml(config)
    given["features"] = list(given["features"]) or None
    if logs:
        given["log"] = logs[0] if len(logs) == 1 else list(logs)
    data |= {name: value for name, value in given.items() if value is not None}
    for option in options:
        override(data, f"options.{option}")
    settings = parse(job.SelectionSettings, data)
    with redirect_stdout(stderr):  # what Ray says of lost workers
        manifest = job.select(settings, workers=workers, progress=progress)
    if as_json:
        click.echo(json.dumps({"folder": settings.output, **manifest}))
        return
    best = sorted(manifest["fields"], key=lambda one: -one["score"])
    rows = [[one["name"], f"{one['columns']:,}", f"{one['score']:.4f}"] for one in best[:_SHOWN]]
    out.print(plain_table(["field", "columns", "score"], rows, numbers=True))
    if len(best) > _SHOWN:
        out.print(f"and {len(best) - _SHOWN:,} more", highlight=False, markup=False)
    out.print(f"wrote {settings.output}", highlight=False, markup=False)
