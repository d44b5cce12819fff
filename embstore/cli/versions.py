"""``embstore versions``: what is in a store."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import click

from embstore.cli.store import WHEN_DAMAGED, as_json_option, bytes_of, store_option

if TYPE_CHECKING:
    from embstore.store import Store, VersionInfo

SPLITS = ("valid", "test")


@click.command(
    epilog="""\b
Examples:
  embstore versions --store store
  embstore versions --store s3://bucket/models --json
"""
)
@store_option
@as_json_option
def versions(root: str, as_json: bool) -> None:
    """List the versions in a store, the newest first; one whose manifest is damaged or that lacks files says so, and
    so does a delta of such a one. What is in the files is only read by verify.

    An id begins with the time of publishing, UTC. The table of a delta is given as the rows it changes of another
    version, its bytes as those of its own files. What an alias or tag means is among the names.
    """
    from embstore.cli.console import out, plain_table
    from embstore.store import Store

    store = Store(root)
    rows = _marked([_row(store, info) for info in store.versions()])[::-1]
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        out.print(f"no versions in {root}", markup=False, highlight=False)
        return
    ids = [row["version"] for row in rows]
    columns = ("version", "names", "parent", "table", "bytes", *(f"{split} auc" for split in SPLITS))
    out.print(plain_table(columns, (_cells(row, ids) for row in rows)))
    damaged = [row for row in rows if row["damaged"]]
    for row in damaged:
        out.print(f"{row['version']} damaged: {row['damaged']}", markup=False, highlight=False)
    if damaged:
        out.print(WHEN_DAMAGED, markup=False, highlight=False)


def _row(store: Store, info: VersionInfo) -> dict[str, Any]:
    """What ``versions`` shows of one; of a damaged version, what the log knows."""
    from embstore.errors import CorruptVersionError, LaterVersionError

    row = {
        "version": info.id,
        "created": info.created,
        "aliases": list(info.aliases),
        "tags": list(info.tags),
        "parent": info.parent,
        **dict.fromkeys(("table", "delta", "bytes", "model", "auc", "damaged")),
    }
    try:
        manifest = store.manifest(info.id)
    except (CorruptVersionError, LaterVersionError) as error:  # a disk or network that fails is no damage
        return {**row, "damaged": str(error)}
    delta = manifest.get("delta")
    metrics = {split: manifest["metrics"].get(split) for split in SPLITS}
    return {
        **row,
        "table": f"{manifest['table']['rows']:,} x {manifest['table']['dim']} {manifest['table']['dtype']}",
        "delta": None if delta is None else {key: delta[key] for key in ("base", "rows", "depth")},
        "bytes": bytes_of(manifest),
        "model": manifest["model"]["name"],
        "auc": {split: of.get("auc") if isinstance(of, dict) else None for split, of in metrics.items()},
    }


def _marked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, oldest first; those of deltas whose base is damaged or not there say so."""
    seen: dict[str, dict[str, Any]] = {}
    for row in rows:
        base = None if row["delta"] is None else row["delta"]["base"]
        if base is not None and base not in seen:
            row["damaged"] = f"a delta of {base}, which is not in the store"
        elif base is not None and seen[base]["damaged"]:
            row["damaged"] = f"a delta of {base}, which is damaged"
        seen[row["version"]] = row
    return rows


def _cells(row: dict[str, Any], ids: Collection[str]) -> list[str]:
    from rich.filesize import decimal

    parent, delta, auc = row["parent"] or "", row["delta"], row["auc"] or {}
    table = "damaged" if row["damaged"] else row["table"]
    if delta is not None and not row["damaged"]:
        base = "parent" if delta["base"] == parent else short(delta["base"], ids)
        table = f"{base} + {delta['rows']:,} rows"
    return [
        row["version"],
        " ".join((*row["aliases"], *row["tags"])),
        short(parent, ids),
        table,
        "" if row["bytes"] is None else decimal(row["bytes"]),
        *("" if auc.get(split) is None else f"{auc[split]:.5f}" for split in SPLITS),
    ]


def short(version: str, ids: Collection[str]) -> str:
    """The time in an id, if that is enough to tell it from the others; else the whole id.

    >>> short("20261124T034420Z-1f0c2a9b", ["20261124T034420Z-1f0c2a9b", "20261124T034421Z-77ab01cd"])
    '20261124T034420Z'
    >>> short("20261124T034420Z-1f0c2a9b", ["20261124T034420Z-1f0c2a9b", "20261124T034420Z-77ab01cd"])
    '20261124T034420Z-1f0c2a9b'
    """
    time = version.partition("-")[0]
    return version if any(other != version and other.startswith(time) for other in ids) else time
