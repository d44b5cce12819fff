"""``embstore publish``, ``versions``, ``promote``, ``rollback`` and ``lookup``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from embstore.store import Store, VersionInfo

store_option = click.option(
    "--store", "root", default="store", show_default=True, type=click.Path(path_type=Path), help="The store."
)
_alias = click.option("--alias", default="production", show_default=True, help="The alias that moves.")
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(
    epilog="""\b
Example:
  embstore publish runs/first --store store
"""
)
@click.argument("run", type=click.Path(path_type=Path))
@store_option
@click.option("--parent", help="Version (id, prefix, alias or tag) it was trained on from.")
@as_json_option
def publish(run: Path, root: Path, parent: str | None, as_json: bool) -> None:
    """Publish the trained table, schema and model of RUN as an immutable version.

    The version appears in the store all at once or, after a crash, not at all. Its manifest holds the sha256 of
    every file and where the version came from.
    """
    from embstore.cli.console import bytes_bar, out
    from embstore.models import build
    from embstore.run import Run
    from embstore.store import Store

    trained = Run.open(run, build)
    bundle, parent = trained.bundle(), parent or trained.parent(root)
    with bytes_bar() as progress:
        version = Store(root).publish(bundle, parent=parent, progress=progress)
    if as_json:
        values = {"version": version.id, "parent": version.parent, "digest": version.digest}
        click.echo(json.dumps({**values, "folder": str(version.folder)}))
    else:
        out.print(f"published {version.id} in {version.folder}", highlight=False)


@click.command(
    epilog="""\b
Example:
  embstore versions --store store
"""
)
@store_option
@as_json_option
def versions(root: Path, as_json: bool) -> None:
    """List the versions in a store, the newest first; a damaged one is shown as such."""
    from embstore.cli.console import out, plain_table
    from embstore.store import Store

    store = Store(root)
    rows = [_row(store, info) for info in reversed(store.versions())]
    if as_json:
        click.echo(json.dumps(rows))
        return
    shown = [
        {
            **row,
            "aliases": " ".join(row["aliases"]),
            "tags": " ".join(row["tags"]),
            "table": "damaged" if row["damaged"] else row["table"],
            "auc": "" if row["auc"] is None else f"{row['auc']:.5f}",
        }
        for row in rows
    ]
    columns = ("version", "created", "aliases", "tags", "parent", "table", "model", "auc")
    table = plain_table(columns, ([row[name] or "" for name in columns] for row in shown))
    out.print(table if rows else f"no versions in {root}")
    for row in rows:
        if row["damaged"]:
            out.print(f"damaged: {row['damaged']}", markup=False, highlight=False)


def _row(store: Store, info: VersionInfo) -> dict[str, Any]:
    """What ``versions`` shows of one; of a damaged version, what the log knows."""
    from embstore.errors import StoreError

    row = {
        "version": info.id,
        "created": info.created,
        "aliases": list(info.aliases),
        "tags": list(info.tags),
        "parent": info.parent,
        **dict.fromkeys(("table", "model", "auc", "damaged")),
    }
    try:
        manifest = store.open(info.id).manifest
    except StoreError as error:
        return {**row, "damaged": str(error)}
    table = f"{manifest['table']['rows']:,} x {manifest['table']['dim']} {manifest['table']['dtype']}"
    metrics = manifest["metrics"].get("test") or manifest["metrics"].get("valid") or {}
    return {**row, "table": table, "model": manifest["model"]["name"], "auc": metrics.get("auc")}


@click.command(
    epilog="""\b
Examples:
  embstore promote latest --store store
  embstore promote 20261124T034420Z --store store --alias canary
"""
)
@click.argument("version")
@store_option
@_alias
@as_json_option
def promote(version: str, root: Path, alias: str, as_json: bool) -> None:
    """Let an alias mean VERSION (an id, a unique prefix of one, an alias or a tag) from now on.

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
@store_option
@_alias
@as_json_option
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
@store_option
@click.option(
    "--version", "ref", default="latest", show_default=True, help="Version id, unique prefix of one, alias or tag."
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
