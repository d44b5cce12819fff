"""``embstore export``: a version's vectors as Parquet or safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from embstore.store import Version


@click.command(
    epilog="""\b
Examples:
  embstore export --store store --version production --log logs/train --to vectors
  embstore export --store store --values vocab.parquet --feature item_id --to items
  embstore export --store store --values vectors --to newer --version latest     the same values once more
  embstore export --store store --format safetensors --to table.safetensors
"""
)
@click.option("--store", "root", default="store", show_default=True, type=click.Path(path_type=Path), help="The store.")
@click.option(
    "--version", "ref", default="latest", show_default=True, help="Version id, unique prefix of one, or alias."
)
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), help="Folder (or file) to make.")
@click.option("--values", type=click.Path(path_type=Path), help="Parquet of the values to export.")
@click.option("--log", help="Export the values in this log: a Parquet file, folder, glob or URI.")
@click.option("--feature", "features", multiple=True, help="Export this feature only; may be repeated.")
@click.option(
    "--format",
    "kind",
    default="parquet",
    show_default=True,
    type=click.Choice(["parquet", "safetensors"]),
    help="Vectors by value, or the table as it is.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(
    root: Path,
    ref: str,
    target: Path,
    values: Path | None,
    log: str | None,
    features: tuple[str, ...],
    kind: str,
    as_json: bool,
) -> None:
    """Write a version's vectors for others to read.

    A table holds rows, not values: say whose vectors are wanted, with --values or --log. Parquet gets a folder
    feature=NAME for each feature; safetensors gets all rows in one file and needs no values. docs/export.md says what
    is in them and how Spark, DuckDB, Lance and Feast read it.
    """
    from embstore.cli.console import out, progress
    from embstore.errors import ConfigError
    from embstore.store import Store, export_parquet, export_safetensors
    from embstore.store.export import refuse_existing

    if kind == "safetensors" and (values is not None or log is not None or features):
        do = "take --values, --log and --feature away"
        raise ConfigError("--format safetensors", expected="nothing but a version", found="values or features", do=do)
    if kind == "parquet" and (values is None) == (log is None):
        found = "neither" if log is None else "both"
        raise ConfigError("export", expected="--values or --log, whose values to export", found=found)
    refuse_existing(target)  # before a long log is counted
    version = Store(root).open(ref)
    result: dict[str, Any] = {"version": version.id, "target": str(target), "format": kind}
    if kind == "safetensors":
        with progress("export", version.table.num_rows) as bar:
            export_safetensors(version, target, progress=bar.advance)
        result["rows"] = version.table.num_rows
    else:
        chosen = _values(version, values, log, features)
        with progress("export", sum(column.rows() for column in chosen.values())) as bar:
            result["features"] = export_parquet(version, chosen, target, progress=bar.advance)
    if as_json:
        click.echo(json.dumps(result))
        return
    counts = result.get("features", {"rows": result.get("rows")})
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    out.print(f"exported {version.id} to {target}: {shown}", highlight=False, markup=False)


def _values(version: Version, values: Path | None, log: str | None, features: tuple[str, ...]) -> dict[str, Any]:
    """The values to export, by feature."""
    from dataclasses import replace

    from embstore.cli.console import progress
    from embstore.logs import ParquetLog
    from embstore.store.export import chosen_values
    from embstore.store.values import vocabulary_of

    if values is not None:
        return chosen_values(version, values, features or None)
    wanted = tuple(version.schema.feature(name) for name in dict.fromkeys(features)) or version.schema.features
    source = ParquetLog(log or "", replace(version.schema, features=wanted, dense=()), labelled=False)
    with progress("count", source.rows) as bar:
        counted = vocabulary_of(source, source.schema, progress=bar.advance)
    return chosen_values(version, counted)
