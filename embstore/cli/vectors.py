"""``embstore export`` and ``import``: a version's vectors for others to read, and rows set from vectors of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embstore.cli.store import LocalPath, as_json_option, store_option, version_option

if TYPE_CHECKING:
    from embstore.store import Version
    from embstore.store.warm_start import WarmStart


@click.command(
    epilog="""\b
Examples:
  embstore export --store store --version production --log logs/train --to vectors
  embstore export --store store --values vocab.parquet --feature item_id --to items
  embstore export --store store --values items.txt --feature item_id --to items        a value a line
  embstore export --store store --values vectors --to newer --version latest     the same values once more
  embstore export --store store --version production --vocabulary --to vectors
  embstore export --store store --format safetensors --to table.safetensors
"""
)
@store_option
@version_option
@click.option("--to", "target", required=True, type=LocalPath(), help="Folder (or file) to make.")
@click.option("--values", type=click.Path(path_type=Path), help="Parquet, or .txt, of the values to export.")
@click.option("--log", help="Export the values in this log: a Parquet file, folder, glob or URI.")
@click.option("--vocabulary", is_flag=True, help="Export the values that the version's vocabulary keeps.")
@click.option("--feature", "features", multiple=True, help="Export this feature only; may be repeated.")
@click.option(
    "--format",
    "kind",
    default="parquet",
    show_default=True,
    type=click.Choice(["parquet", "safetensors"]),
    help="Vectors by value, or the table as it is.",
)
@as_json_option
def export(
    root: str,
    ref: str,
    target: Path,
    values: Path | None,
    log: str | None,
    vocabulary: bool,
    features: tuple[str, ...],
    kind: str,
    as_json: bool,
) -> None:
    """Write a version's vectors for others to read.

    A table holds rows, not values: say whose vectors are wanted, with --values, --log or --vocabulary. Parquet gets a
    folder feature=NAME for each feature; safetensors gets all rows in one file and needs no values. docs/export.md says
    what is in them and how Spark, DuckDB, Lance and Feast read it.
    """
    from embstore.cli.console import out, progress
    from embstore.errors import ConfigError
    from embstore.store import Store, export_parquet, export_safetensors
    from embstore.store.export import refuse_existing

    sources = (values is not None, log is not None, vocabulary)
    if kind == "safetensors" and (any(sources) or features):
        do = "take --values, --log, --vocabulary and --feature away"
        raise ConfigError("--format safetensors", expected="nothing but a version", found="values or features", do=do)
    if kind == "parquet" and sum(sources) != 1:
        expected = "--values, --log or --vocabulary, whose values to export"
        raise ConfigError("export", expected=expected, found="several" if any(sources) else "none")
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
    from embstore.counting import vocabulary_of
    from embstore.logs import ParquetLog
    from embstore.store.export import chosen_values

    if values is not None:
        return chosen_values(version, values, features or None)
    if log is None:
        from embstore.errors import StoreError

        if version.vocabulary is None:
            raise StoreError(f"version {version.id}", expected="a vocabulary", found="none", do="name a --log instead")
        kept = {name: of.table(dropped=False) for name, of in version.vocabulary.items()}
        return chosen_values(version, kept, features or None)
    wanted = tuple(version.schema.feature(name) for name in dict.fromkeys(features)) or version.schema.features
    source = ParquetLog(log, replace(version.schema, features=wanted, dense=()), labelled=False)
    with progress("count", source.rows) as bar:
        counted = vocabulary_of(source, source.schema, progress=bar.advance)
    return chosen_values(version, counted)


@click.command(
    "import",
    epilog="""\b
Examples:
  embstore import titles.parquet --feature item_id --store store
  embstore import vectors --feature item_id --store store --weight-column count        vectors: an export
  embstore import titles.parquet --feature item_id --store store --version production --delta
""",
)
@click.argument("vectors")
@click.option("--feature", required=True, help="Whose values these are.")
@store_option
@version_option
@click.option("--parent", help="What the new version comes from, if not --version: an id, prefix, alias or tag.")
@click.option("--value-column", default="value", show_default=True, help="Column of the values, each once.")
@click.option("--vector-column", default="vector", show_default=True, help="Column of the vectors, lists of floats.")
@click.option("--weight-column", help="Column of weights, e.g. count, for values that share a row.")
@click.option(
    "--delta", is_flag=True, help="Publish only the rows that changed, as a delta of --version; none: nothing."
)
@as_json_option
def import_(
    vectors: str,
    feature: str,
    root: str,
    ref: str,
    parent: str | None,
    value_column: str,
    vector_column: str,
    weight_column: str | None,
    delta: bool,
    as_json: bool,
) -> None:
    """Publish a version again with the rows of some values set to VECTORS: a warm start.

    VECTORS is Parquet, a file, folder or URI, of a feature's values and a vector for each: of dim numbers, which every
    lookup gets, or of lookups * dim. Values that hash to the same row get their mean. All other rows, the network and
    the optimizers' state stay; metrics are left out, as nobody has measured this table. Train on from the new version
    with embstore train --from.
    """
    from embstore.cli.console import bytes_bar
    from embstore.embeddings.unified import UnifiedEmbedding
    from embstore.errors import DataError
    from embstore.kernels import TableOptimizer
    from embstore.store import Change, Store, import_vectors
    from embstore.warm_start import vectors_of_feature

    store = Store(root)
    version = store.open(ref)
    source = vectors_of_feature(vectors, feature)
    _check_values(version, feature, source, value_column)
    # Plain SGD has no state, so nothing as long as the table is allocated; what is published is the version's own.
    table = UnifiedEmbedding.restore(version.table, optimizer=TableOptimizer(name="sgd"), pruned=version.pruned)
    done = import_vectors(
        table,
        feature,
        source,
        value_column=value_column,
        vector_column=vector_column,
        weight_column=weight_column,
    )
    if not done.rows:
        found = f"none of its {done.values:,}" if done.values else "no values"
        raise DataError(f"vectors {vectors}", expected=f"values that {feature!r} has rows for", found=found)
    new = None
    if done.changed or not delta:
        with bytes_bar() as progress:
            new = store.publish(
                _with_rows(version, table, source, done, feature),
                parent=parent or version.id,
                encoding=None if delta else version.table.encoding,
                change=Change(base=version) if delta else None,
                progress=progress,
            )
    _show_imported(new, version, feature, done, root, as_json)


def _show_imported(
    new: Version | None, version: Version, feature: str, done: WarmStart, root: str, as_json: bool
) -> None:
    """What was imported into a version, and as which; ``None`` where nothing was published."""
    from embstore.cli.console import out

    taken = done.values - done.unknown
    if as_json:
        said = {"version": new and new.id, "of": version.id, "parent": new and new.parent, "feature": feature}
        counts = {"values": done.values, "taken": taken, "rows": done.rows, "changed": done.changed}
        click.echo(json.dumps({**said, **counts, "shared": done.shared, "unknown": done.unknown}))
        return
    shown = f"nothing changed from {version.id}, not published" if new is None else f"published {new.id} in {root}"
    out.print(shown, markup=False, highlight=False)
    out.print(f"{feature}: {taken:,} values in {done.rows:,} rows", markup=False, highlight=False)
    if done.shared:
        out.print(f"{done.shared:,} values share a row with another: it is their mean", highlight=False)
    if done.unknown:
        out.print(
            f"{done.unknown:,} values are unknown to the exact feature, or pruned, and were skipped", highlight=False
        )


def _check_values(version: Version, feature: str, source: str, column: str) -> None:
    """Refuse values of another type than the feature was trained on: they would hash to other rows."""
    from embstore.column_types import stored_type
    from embstore.store.values import check_values, open_dataset

    spec = version.schema.feature(feature, of=f"version {version.id}")
    types = open_dataset(source, "vectors").schema
    if types.names.count(column) == 1:  # else import_vectors says what there is
        check_values(stored_type(types.field(column).type), spec, version.manifest["columns"].get(feature))


def _with_rows(version: Version, table: Any, source: str, done: WarmStart, feature: str) -> Any:
    """The version's bundle with another table, and word of where its rows are from."""
    from dataclasses import asdict, replace

    from embstore.store import new_space
    from embstore.store.values import open_dataset

    bundle = version.bundle()
    before, metadata = bundle.lineage["vocabulary"], open_dataset(source, "vectors").schema.metadata or {}
    imported = {"feature": feature, "vectors": source, "of": version.id, **asdict(done)}
    vocabulary = {**(before if isinstance(before, dict) else {}), "imported": imported}
    # Vectors from elsewhere can't be compared with the version's, unless they say that they can.
    same = metadata.get(b"embstore.space", b"").decode() == version.space
    lineage = {**bundle.lineage, "vocabulary": vocabulary, "space": version.space if same else new_space()}
    return replace(bundle, table=table, metrics={}, lineage=lineage)
