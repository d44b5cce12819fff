"""``embstore publish``, ``versions``, ``promote``, ``rollback`` and ``lookup``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from embstore.store.registry import VersionInfo

_store = click.option(
    "--store", "root", default="store", show_default=True, type=click.Path(path_type=Path), help="The store."
)
_alias = click.option("--alias", default="production", show_default=True, help="The alias that moves.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(
    epilog="""\b
Example:
  embstore publish runs/first --store store
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@_store
@click.option("--parent", help="Version (id, prefix or alias) it was trained on from.")
def publish(run: Path, root: Path, parent: str | None) -> None:
    """Publish the trained table, schema and model of RUN as an immutable version.

    The version appears in the store all at once or, after a crash, not at all. Its manifest holds the sha256 of
    every file and where the version came from.
    """
    from embstore.cli.console import out
    from embstore.models import build
    from embstore.run import Run
    from embstore.store import Store

    version = Store(root).publish(Run.open(run, build).bundle(), parent=parent)
    out.print(f"published {version.id} in {version.folder}", highlight=False)


@click.command(
    epilog="""\b
Example:
  embstore versions --store store
"""
)
@_store
@_json
def versions(root: Path, as_json: bool) -> None:
    """List the versions in a store, the newest first."""
    from rich.table import Table

    from embstore.cli.console import out
    from embstore.store import Store

    store = Store(root)
    rows = []
    for info in reversed(store.versions()):
        manifest = store.open(info.id).manifest
        metrics = manifest["metrics"].get("test") or manifest["metrics"].get("valid") or {}
        rows.append(
            {
                "version": info.id,
                "created": info.created,
                "aliases": list(info.aliases),
                "table": f"{manifest['table']['rows']:,} x {manifest['table']['dim']} {manifest['table']['dtype']}",
                "model": manifest["model"]["name"],
                "auc": metrics.get("auc"),
            }
        )
    if as_json:
        click.echo(json.dumps(rows))
        return
    table = Table(box=None, header_style="bold")
    for name in ("version", "created", "aliases", "table", "model", "auc"):
        table.add_column(name)
    for row in rows:
        auc = "" if row["auc"] is None else f"{row['auc']:.5f}"
        table.add_row(row["version"], row["created"], " ".join(row["aliases"]), row["table"], row["model"], auc)
    out.print(table if rows else f"no versions in {root}")


@click.command(
    epilog="""\b
Examples:
  embstore promote latest --store store
  embstore promote 20261124T034420Z --store store --alias canary
"""
)
@click.argument("version")
@_store
@_alias
@_json
def promote(version: str, root: Path, alias: str, as_json: bool) -> None:
    """Let an alias mean VERSION (an id, a unique prefix of one, or an alias) from now on.

    A reader that asks for the alias gets VERSION's table, schema and model together.
    """
    from embstore.store import Store

    _show_move(Store(root).promote(version, alias), alias, as_json)


@click.command(
    epilog="""\b
Example:
  embstore rollback --store store
"""
)
@_store
@_alias
@_json
def rollback(root: Path, alias: str, as_json: bool) -> None:
    """Let an alias mean what it meant before; a second rollback undoes the first."""
    from embstore.store import Store

    _show_move(Store(root).rollback(alias), alias, as_json)


def _show_move(info: VersionInfo, alias: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"alias": alias, "version": info.id, "aliases": list(info.aliases)}))
    else:
        click.echo(f"{alias} is {info.id}")


@click.command(
    epilog="""\b
Examples:
  embstore lookup --store store user_id u17 u42
  embstore lookup --store store --version production item_id 4711 --json
  embstore lookup --store store delta -- -5 7                         negative numbers after --
  embstore lookup --store store timestamp_hour 2026-01-31T18:30       a timestamp, not the hour taken from it
"""
)
@click.argument("feature")
@click.argument("values", nargs=-1, required=True)
@_store
@click.option(
    "--version", "ref", default="latest", show_default=True, help="Version id, unique prefix of one, or alias."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, all numbers.")
def lookup(feature: str, values: tuple[str, ...], root: Path, ref: str, as_json: bool) -> None:
    """Print the vectors of raw VALUES of FEATURE, straight from the version's files.

    VALUES are written as in the log's column: text, digits, true or false; for a feature taken from a timestamp, a
    timestamp in the column's own time zone. For a list feature each VALUE is a list of one. A hashed feature has a
    vector for any value: one that training never saw can't be told from one it saw. Every answer names the immutable
    version it came from.
    """
    from rich.table import Table

    from embstore.cli.console import out
    from embstore.embeddings.unified import UnifiedEmbedding
    from embstore.store import Store

    version = Store(root).open(ref)
    table = UnifiedEmbedding.restore(version.table)
    vectors = table.lookup(feature, _typed(values, version.manifest["columns"].get(feature, "string"), feature))
    if as_json:
        click.echo(
            json.dumps({"version": version.id, "feature": feature, "values": values, "vectors": vectors.tolist()})
        )
        return
    shown = Table(title=f"{feature} in {version.id}", title_justify="left", box=None, header_style="bold")
    shown.add_column("value")
    shown.add_column(f"vector of {vectors.shape[1]}")
    for value, vector in zip(values, vectors.tolist(), strict=True):
        numbers = " ".join(f"{number:+.4f}" for number in vector[:8])
        shown.add_row(value, numbers + (" …" if len(vector) > 8 else ""))
    out.print(shown)


def _typed(values: tuple[str, ...], kind: str, feature: str) -> Any:
    """The values as the log's column has them: an Arrow array, lists of one for list columns."""
    import pyarrow as pa

    from embstore.errors import SchemaError

    element = re.sub(r"^.*list<[^:]*: |>.*$", "", kind)
    target = pa.string()
    if re.fullmatch("u?int(8|16|32|64)|bool", element):
        target = pa.type_for_alias(element)
    elif element.startswith(("timestamp", "date")):
        target = pa.timestamp("us")
    for value in values:
        try:
            pa.scalar(value).cast(target)
        except pa.ArrowInvalid as error:
            article = "an" if element.startswith("int") else "a"
            do = "write it as 2026-01-31T18:30:00" if pa.types.is_timestamp(target) else ""
            raise SchemaError(f"feature {feature!r}: value {value!r} is not {article} {element}", do=do) from error
    array = pa.array(values).cast(target)
    is_list = element != kind
    return pa.ListArray.from_arrays(pa.array(range(len(array) + 1), pa.int32()), array) if is_list else array
