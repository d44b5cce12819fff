"""A vocabulary as a folder: what each feature's values are, and where it comes from.

    vocabulary/
      manifest.json                        format, settings, lineage, what each file must be
      feature=user_id/part-0.parquet       value, count, clicks, first_seen, last_seen, kept; ascending by value

The folder appears whole or not at all. Its Parquet files are a function of the rows counted alone, so that yesterday's
vocabulary and today's log make the files that both days' logs would.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.admission import Admission, Judge
from embstore.aggregates import CLICKS, COUNT, FIRST, LAST, VALUE, Kinds
from embstore.errors import LaterVersionError, LogError, SchemaError
from embstore.feature_values import KEPT
from embstore.merging import TABLE_ROWS, Partial, write_tables
from embstore.schema import Feature
from embstore.store.export import appearing, escaped
from embstore.store.files import fsync_file, fsync_folder, sha256_file, write_small
from embstore.store.values import FEATURE

FORMAT = 1
MANIFEST = "manifest.json"
_TIMES = {
    str(kind): kind
    for kind in (
        *(pa.timestamp(unit, zone) for unit in ("ms", "us", "ns") for zone in (None, "UTC")),
        *(pa.date32(), pa.int64()),
    )
}


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What a vocabulary was counted from.

    Args:
        logs: of each day's log ``{"source", "fingerprint", "rows"}``, the oldest first.
        label, time: columns, or ``None``.
        time_type: of first and last seen.
        latest: the greatest time of all rows, in the type's units.
        features: their entries in the schema.
        parent: the sha256 of the manifest of the vocabulary it goes on from.
    """

    logs: tuple[dict[str, Any], ...]
    label: str | None = None
    time: str | None = None
    time_type: str | None = None
    latest: int | None = None
    features: tuple[dict[str, Any], ...] = ()
    parent: str | None = None


def write_vocabulary(
    target: Path,
    tables: Mapping[str, Callable[[], Iterator[pa.Table]]],
    kinds: Mapping[str, Kinds],
    lineage: Lineage,
    admission: Admission,
    *,
    scratch: Path | None = None,
    threads: int = 1,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Write a new folder of sorted tables, and which of their values are kept; its manifest.

    Args:
        target: a folder that doesn't exist yet.
        tables: by feature what gives its sorted tables, once.
        kinds: of its values.
        scratch: a folder to keep tables in until it is known which values are kept; in memory without.
        threads: that write a feature each.
        progress: called with 1 after each feature.

    Raises:
        StoreError: ``target`` exists, or can't be written.
        ConfigError, SchemaError: as ``Judge`` and the tables.
    """
    kind = None if lineage.time_type is None else _TIMES[lineage.time_type]
    files, features = {}, {}

    def write(number: int, name: str, temporary: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
        judge = Judge(name, admission, kind, lineage.latest)
        path = f"{FEATURE}={escaped(name)}/part-0.parquet"
        (temporary / path).parent.mkdir()
        aside = scratch and scratch / f"sorted-{number}.arrow"
        with _kept_aside(tables[name](), judge, aside) as again:
            found = _write(temporary / path, judge.judged(again), lineage, kind)
        fsync_folder((temporary / path).parent)
        return path, sha256_file(temporary / path)._asdict(), {**found, "types": kinds[name].to_metadata()}

    with appearing(target) as temporary:
        temporary.mkdir()
        with ThreadPoolExecutor(threads, thread_name_prefix="embstore-writing") as pool:
            futures = [pool.submit(write, number, name, temporary) for number, name in enumerate(tables)]
            try:
                for future in as_completed(futures):
                    future.result()
                    if progress is not None:
                        progress(1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for name, future in zip(tables, futures, strict=True):
            path, files[path], features[name] = future.result()
        manifest = {
            "format": FORMAT,
            "admission": asdict(admission),
            "lineage": asdict(lineage),
            "features": features,
            "files": files,
        }
        text = json.dumps(manifest, indent=1)
        write_small(temporary / MANIFEST, text.encode() + b"\n")
        fsync_folder(temporary)
    said: dict[str, Any] = json.loads(text)
    return said


@contextmanager
def _kept_aside(tables: Iterator[pa.Table], judge: Judge, path: Path | None) -> Iterator[Iterator[pa.Table]]:
    """The tables, which the judge has seen if it must."""

    def seen() -> Iterator[pa.Table]:
        for table in tables:
            judge.see(table)
            yield table

    if not judge.patient:
        yield tables
        return
    if path is None:
        yield iter(list(seen()))
        return
    write_tables(path, seen())

    def again() -> Iterator[pa.Table]:
        with pa.OSFile(str(path)) as source:
            file, waiting, rows = pa.ipc.open_file(source), [], 0
            for number in range(file.num_record_batches):
                waiting.append(file.get_batch(number))
                rows += waiting[-1].num_rows
                if rows >= TABLE_ROWS:  # batches fill tables exactly
                    yield pa.Table.from_batches(waiting).combine_chunks()
                    waiting, rows = [], 0
            if waiting:
                yield pa.Table.from_batches(waiting).combine_chunks()

    yield again()
    path.unlink()


def _write(
    path: Path,
    judged: Iterator[tuple[pa.Table, NDArray[np.bool_]]],
    lineage: Lineage,
    kind: pa.DataType | None,
) -> dict[str, int]:
    """Write a feature's file; how many values there are, how many are kept, how often they were seen."""
    said = {"values": 0, "kept": 0, "count": 0}
    writer: pq.ParquetWriter | None = None
    with path.open("xb") as file:
        for table, kept in judged:
            out = _typed(table, lineage, kind).append_column(KEPT, pa.array(kept))
            if writer is None:
                writer = pq.ParquetWriter(file, out.schema, compression="zstd", store_schema=False, **_encodings(out))
            writer.write_table(out, row_group_size=TABLE_ROWS)
            said["values"] += len(kept)
            said["kept"] += int(kept.sum())
            said["count"] += int(table.column(COUNT).to_numpy().sum())
        assert writer is not None
        writer.close()
        fsync_file(file)
    return said


def _encodings(table: pa.Table) -> dict[str, Any]:
    """How Parquet holds the columns: differences where values are sorted or all of a kind, dictionaries of counts."""
    found = {}
    for name in (VALUE, FIRST, LAST):
        if name in table.column_names:
            kind = table.schema.field(name).type
            if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
                found[name] = "DELTA_BYTE_ARRAY"
            elif not pa.types.is_boolean(kind) and not pa.types.is_null(kind):
                found[name] = "DELTA_BINARY_PACKED"
    return {
        "column_encoding": found,
        "use_dictionary": [name for name in (COUNT, CLICKS) if name in table.column_names],
    }


def _typed(table: pa.Table, lineage: Lineage, kind: pa.DataType | None) -> pa.Table:
    """As a file holds them: integers of 64 bits, times as times; no columns that nothing is known of."""
    values = table.column(VALUE)
    if pa.types.is_integer(values.type) and values.type != pa.uint64():
        values = values.cast(pa.int64())
    columns = {VALUE: values, COUNT: table.column(COUNT)}
    if lineage.label is not None:
        columns[CLICKS] = table.column(CLICKS)
    if kind is not None:
        for name in (FIRST, LAST):
            times = table.column(name)
            columns[name] = (times.cast(pa.int32()) if pa.types.is_date(kind) else times).cast(kind)
    return pa.table(columns)


@dataclass(frozen=True, kw_only=True)
class VocabularyFolder:
    """What a folder's manifest says."""

    path: Path
    manifest: dict[str, Any]
    digest: str

    @classmethod
    def open(cls, path: str | Path) -> VocabularyFolder:
        """Read the manifest.

        Raises:
            LogError: there is none, or it can't be read.
            LaterVersionError: a later embstore wrote it.
        """
        path = Path(path)
        expected = "a folder that `embstore vocab` wrote"
        try:
            data = (path / MANIFEST).read_bytes()
            manifest = json.loads(data)
            number = manifest["format"]
            Lineage(**manifest["lineage"])
            _ = manifest["files"], manifest["features"]
        except OSError as error:
            raise LogError(f"vocabulary {path}", expected=expected, found=error.strerror or str(error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise LogError(f"vocabulary {path}: {MANIFEST}", expected=expected, found=str(error)) from error
        if number != FORMAT:
            found = f"format {number}"
            raise LaterVersionError(
                f"vocabulary {path}", expected=f"format {FORMAT}", found=found, do="update embstore"
            )
        return cls(path=path, manifest=manifest, digest=hashlib.sha256(data).hexdigest())

    @property
    def lineage(self) -> Lineage:
        """What it was counted from."""
        said = dict(self.manifest["lineage"])
        return Lineage(**said | {"logs": tuple(said["logs"]), "features": tuple(said["features"])})

    def check(self, features: Sequence[Feature], *, label: str | None, time: str | None, time_type: str | None) -> None:
        """Refuse to go on from it with other features, or with other columns to sum up.

        Raises:
            SchemaError: naming what differs.
        """
        ours = {"label": label, "time": time, "time_type": time_type}
        for what, value in ours.items():
            was = getattr(self.lineage, what)
            if was != value:
                given, made = ("none" if of is None else repr(of) for of in (value, was))
                do = ""
                if what != "time_type":
                    do = f"leave --{what} out" if was is None else f"give --{what} {was}"
                    do += ", or count from scratch"
                raise SchemaError(f"{what} of vocabulary {self.path}", expected=given, found=made, do=do)
        told = [told_of(feature) for feature in features]
        if list(self.lineage.features) != told:
            names = [entry["name"] for entry in self.lineage.features]
            found = ", ".join(names) if names != [entry["name"] for entry in told] else "others of the same names"
            do = "count from scratch, or with the schema it was counted with"
            expected = f"the features {', '.join(entry['name'] for entry in told)}"
            raise SchemaError(f"vocabulary {self.path}", expected=expected, found=found, do=do)

    def partial(self, feature: str, scratch: Path | None = None) -> Partial:
        """What it knows of a feature, to be merged; as a run where there is a folder for one.

        Raises:
            LogError: its file is not what the manifest says.
        """
        kinds = Kinds.from_metadata(self.manifest["features"][feature]["types"])
        name = f"{FEATURE}={escaped(feature)}/part-0.parquet"
        path, said = self.path / name, self.manifest["files"].get(name)
        found = sha256_file(path)._asdict()
        if found != said:
            do = "restore it, or count from scratch"
            raise LogError(
                f"{path} was changed", expected=f"sha256 {said and said['sha256']}", found=found["sha256"], do=do
            )
        if scratch is None:
            return Partial(kinds, table=pa.concat_tables(list(_read(path))).combine_chunks())
        write_tables(scratch, _read(path))
        return Partial(kinds, run=scratch)


def told_of(feature: Feature) -> dict[str, Any]:
    """Of a feature what decides which values it has."""
    return {
        "name": feature.name,
        "column": feature.source,
        "transform": feature.transform,
        "length": feature.max_length,
    }


def _read(path: Path) -> Iterator[pa.Table]:
    """Its rows as a summary gives them."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(TABLE_ROWS):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            values = columns[VALUE]
            wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(values.type, values.type)
            nothing = pa.nulls(len(values), pa.int64())
            times = {name: _integers(columns[name]) if name in columns else nothing for name in (FIRST, LAST)}
            clicks = columns.get(CLICKS, pa.repeat(pa.scalar(0, pa.int64()), len(values)))
            yield pa.table({VALUE: values.cast(wide), COUNT: columns[COUNT], CLICKS: clicks, **times})
        if file.metadata.num_rows == 0:
            kind = file.schema_arrow.field(VALUE).type
            wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(kind, kind)
            empty = {name: pa.array([], pa.int64()) for name in (COUNT, CLICKS, FIRST, LAST)}
            yield pa.table({VALUE: pa.array([], wide), **empty})


def _integers(times: pa.Array) -> pa.Array:
    return (times.cast(pa.int32()) if pa.types.is_date(times.type) else times).cast(pa.int64())
