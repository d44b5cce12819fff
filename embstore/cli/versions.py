"""``embstore versions``: what is in a store."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import click

from embstore.cli.store import WHEN_DAMAGED, as_json_option, store_option


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
    from embstore.store.listing import SPLITS, listing

    rows = listing(Store(root))[::-1]
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        out.print(f"no versions in {root}", markup=False, highlight=False)
        return
    ids = [row["version"] for row in rows]
    columns = ("version", "names", "parent", "table", "bytes", *(f"{split} auc" for split in SPLITS))
    made = [", ".join(made_from(row["lineage"] or {})) for row in rows]
    told = any(made)  # a column that all leave empty would only take room
    cells = ([*_cells(row, ids), *([of] if told else [])] for row, of in zip(rows, made, strict=True))
    out.print(plain_table((*columns, "made from") if told else columns, cells))
    damaged = [row for row in rows if row["damaged"]]
    for row in damaged:
        out.print(f"{row['version']} damaged: {row['damaged']}", markup=False, highlight=False)
    if damaged:
        out.print(WHEN_DAMAGED, markup=False, highlight=False)


def _cells(row: dict[str, Any], ids: Collection[str]) -> list[str]:
    from rich.filesize import decimal

    from embstore.store.bundle import NO_NETWORK
    from embstore.store.listing import SPLITS

    parent, delta, auc = row["parent"] or "", row["delta"], row["auc"] or {}
    table = "damaged" if row["damaged"] else row["table"]
    if row["model"] == NO_NETWORK:
        table += ", vectors alone" if row["node2vec"] is None else ", node2vec"
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


def made_from(lineage: Mapping[str, Any]) -> list[str]:
    """The jobs that a version's lineage names, in a few words.

    >>> made_from({"vocabulary": {"built": {"logs": [{}, {}]}}, "selection": {}, "node2vec": None})
    ['vocabulary of 2 logs', 'selection']
    """
    out = []
    if (vocabulary := lineage.get("vocabulary")) is not None:
        logs = len((vocabulary.get("built") or {}).get("logs") or ())
        out.append("vocabulary" + (f" of {logs:,} log{'s' * (logs > 1)}" if logs else ""))
    return out + [name for name in ("selection", "node2vec") if lineage.get(name) is not None]


def short(version: str, ids: Collection[str]) -> str:
    """The time in an id, if that is enough to tell it from the others; else the whole id.

    >>> short("20261124T034420Z-1f0c2a9b", ["20261124T034420Z-1f0c2a9b", "20261124T034421Z-77ab01cd"])
    '20261124T034420Z'
    >>> short("20261124T034420Z-1f0c2a9b", ["20261124T034420Z-1f0c2a9b", "20261124T034420Z-77ab01cd"])
    '20261124T034420Z-1f0c2a9b'
    """
    time = version.partition("-")[0]
    return version if any(other != version and other.startswith(time) for other in ids) else time
