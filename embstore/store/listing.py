"""What is in a store, version by version, as ``embstore versions`` and a server's page show it."""

from __future__ import annotations

from typing import Any

from embstore.errors import CorruptVersionError, LaterVersionError
from embstore.store.registry import Store, VersionInfo

SPLITS = ("valid", "test")


def listing(store: Store) -> list[dict[str, Any]]:
    """A row for each version, the oldest first; of what lies damaged, what the log knows and ``damaged``, why.

    Manifests are read and the lengths of files compared; what is in the files is ``Store.verify``'s to read.

    Raises:
        StoreError: there is no such store.
    """
    return _marked([_row(store, info) for info in store.versions()])


def bytes_of(manifest: dict[str, Any]) -> int:
    """Of all the files its manifest names; of a delta, its own."""
    return sum(file["bytes"] for file in manifest["files"].values())


def _row(store: Store, info: VersionInfo) -> dict[str, Any]:
    """What ``versions`` shows of one; of a damaged version, what the log knows."""
    row = {
        "version": info.id,
        "created": info.created,
        "aliases": list(info.aliases),
        "tags": list(info.tags),
        "parent": info.parent,
        **dict.fromkeys(("table", "delta", "bytes", "model", "node2vec", "lineage", "auc", "damaged")),
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
        "node2vec": manifest["lineage"]["node2vec"],
        "lineage": manifest["lineage"],
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
