"""``embstore schema`` and ``embstore dataset``: what is in a log, and logs from public data sets."""

from __future__ import annotations

import json
from pathlib import Path

import click

from embstore.cli.store import LocalPath, as_json_option


@click.command(
    epilog="""\b
Examples:
  embstore schema logs/ --label click
  embstore schema 's3://bucket/logs/2025-01-*/*.parquet' --label click --group user_id > schema.yaml
"""
)
@click.argument("logs", nargs=-1, required=True)
@click.option("--label", required=True, help="The 0/1 column to predict.")
@click.option("--group", help="Column over whose values GAUC is averaged, usually the user.")
@click.option("--weight", help="Column of sample weights.")
@click.option("--output", type=LocalPath(), help="Write here instead of to the terminal.")
@as_json_option
def schema(
    logs: tuple[str, ...], label: str, group: str | None, weight: str | None, output: Path | None, as_json: bool
) -> None:
    """Say what each column of LOGS is, and why.

    LOGS are Parquet: files, folders, globs or URIs. The result is YAML, with the reasons, or JSON, without; edit it and
    give it to ``embstore train``: move a column between features (looked up in the table) and dense (numbers for the
    model), give a feature more lookups or an exact block, or take it out.
    """
    from embstore.cli.console import warn
    from embstore.errors import ConfigError
    from embstore.schema import Schema

    inferred = Schema.infer(list(logs), label=label, group=group, weight=weight, warn=warn)
    text = json.dumps(inferred.to_dict()) + "\n" if as_json else inferred.to_yaml()
    if output is None:
        click.echo(text, nl=False)
    else:
        try:
            output.write_text(text)
        except OSError as error:
            raise ConfigError(
                f"--output {output}", expected="a file that can be written", found=str(error.strerror)
            ) from error
        click.echo(f"wrote {output}")


@click.command(
    epilog="""\b
Examples:
  embstore dataset movielens-1m --from ~/Downloads/ml-1m --to data/movielens-1m
  embstore dataset criteo --from ~/Downloads/criteo --to data/criteo
"""
)
@click.argument("name")
@click.option(
    "--from", "source", required=True, type=click.Path(path_type=Path), help="Folder of the official raw files."
)
@click.option("--to", "target", required=True, type=LocalPath(), help="Folder to make.")
@as_json_option
def dataset(name: str, source: Path, target: Path, as_json: bool) -> None:
    """Turn the raw files of data set NAME into Parquet logs and a schema.

    NAME is criteo, avazu, movielens-100k, movielens-1m, movielens-latest or frappe. TARGET gets train/, valid/ and
    test/, split as the papers do (docs/datasets.md has the rules), schema.yaml and dataset.json.
    """
    from embstore import datasets
    from embstore.cli.console import out, progress

    with progress(f"convert {name}", None) as bar:
        result = datasets.convert(name, source, target, progress=bar.advance)
    if as_json:
        click.echo(json.dumps({"name": name, "target": str(target), "rows": dict(result.rows)}))
        return
    counts = ", ".join(f"{split} {rows:,}" for split, rows in result.rows.items())
    out.print(f"{name}: {counts} rows in {target}")
