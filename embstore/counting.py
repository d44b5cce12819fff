"""The distinct values of a log's features, counted exactly in one pass, by one process or by ranks that share it.

value   string, int64, ...   one type a feature, no nulls; for a list column, what its lists hold; for a
                             transformed timestamp, what the transform gives
count   int64                how often
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from embstore import transforms
from embstore.column_types import stored_type
from embstore.distributed import ALONE, Group
from embstore.errors import SchemaError
from embstore.logs import ParquetLog
from embstore.schema import Feature, Schema

VALUE, COUNT = "value", "count"
_MERGE_ROWS = 1 << 20  # counted rows that may wait before they are merged


def vocabulary_of(
    log: ParquetLog,
    schema: Schema,
    *,
    progress: Callable[[int], object] | None = None,
    group: Group = ALONE,
) -> dict[str, pa.Table]:
    """The distinct values of each feature in a log and how often each occurs, exactly, in one pass.

    Missing values are left out; of a list, the values a lookup takes (``max_length``) are counted. Memory is that of
    the distinct values (Arrow: their bytes and 16 more each) about three times over, and of a million rows of each
    feature waiting to be merged; it doesn't depend on the log's length.

    Args:
        log: where to read; its schema is not used.
        schema: whose features are wanted.
        progress: called with the number of rows after each chunk read.
        group: whose ranks count a part of the log each; rank 0 has the values of the whole, the others none.

    Returns:
        ``{feature: table of value and count (int64)}``, sorted by value.

    Raises:
        LogError, SchemaError: as ``ParquetLog``; or files of the log whose integer types have no common one.
    """
    only = replace(schema, dense=(), label=None, weight=None, group=None)
    log = ParquetLog(log.source, only, labelled=False)

    def count() -> dict[str, pa.Table]:
        counts = {feature.name: _Counts(feature.name) for feature in schema.features}
        for table, _ in log.tables_from(pieces=log.pieces[group.rank :: group.world]):
            for feature in schema.features:
                counts[feature.name].add(_single_values(table.column(feature.source), feature))
            if progress is not None:
                progress(table.num_rows)
        for feature in schema.features:
            if not counts[feature.name].waiting and counts[feature.name].merged is None:  # more ranks than row groups
                empty = log.types.empty_table().column(feature.source)
                counts[feature.name].add(_single_values(empty, feature))
        return {name: count.table() for name, count in counts.items()}

    found = group.together(count)
    if group.alone:
        return found
    parts = {name: _collected(table, group) for name, table in found.items()}
    return {name: _joined(name, tables) for name, tables in parts.items()} if group.first else {}


def _collected(table: pa.Table, group: Group) -> list[pa.Table]:
    """The tables of all ranks, on rank 0."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    sent = torch.from_numpy(np.frombuffer(sink.getvalue(), np.uint8).copy())
    found = group.collect(sent)
    return [pa.ipc.open_stream(pa.py_buffer(of.numpy())).read_all() for of in found] if group.first else []


def _joined(feature: str, parts: Sequence[pa.Table]) -> pa.Table:
    """One of several; the type of one without values decides nothing."""
    counts = _Counts(feature)
    counts.waiting = [part for part in parts if part.num_rows] or list(parts[:1])
    return counts.table()


class _Counts:
    """Distinct values with counts; new ones wait until merging them pays."""

    def __init__(self, feature: str) -> None:
        self.feature = feature
        self.merged: pa.Table | None = None
        self.waiting: list[pa.Table] = []
        self.rows = 0

    def add(self, values: pa.Array | pa.ChunkedArray) -> None:
        counted = pc.value_counts(values)
        self.waiting.append(pa.table({VALUE: counted.field("values"), COUNT: counted.field("counts")}))
        self.rows += len(counted)
        if self.rows > max(_MERGE_ROWS, 0 if self.merged is None else self.merged.num_rows):
            self._merge()

    def table(self) -> pa.Table:
        return self._merge().sort_by(VALUE)

    def _merge(self) -> pa.Table:
        parts = ([] if self.merged is None else [self.merged]) + self.waiting
        kind = _common({part.schema.field(VALUE).type for part in parts})
        try:
            whole = pa.concat_tables([part.set_column(0, VALUE, part.column(VALUE).cast(kind)) for part in parts])
        except pa.ArrowInvalid as error:
            found = str(error)
            raise SchemaError(f"values of {self.feature!r}", expected="integers of one type", found=found) from error
        codes = whole.column(VALUE).combine_chunks().dictionary_encode()
        counts = np.zeros(len(codes.dictionary), dtype=np.int64)
        np.add.at(counts, codes.indices.to_numpy(), whole.column(COUNT).to_numpy())
        self.merged = pa.table({VALUE: codes.dictionary, COUNT: counts})
        self.waiting, self.rows = [], 0
        return self.merged


def _single_values(column: pa.ChunkedArray, feature: Feature) -> pa.ChunkedArray:
    """What the feature's lookups see of a column, missing values left out, flat and without dictionaries."""
    if feature.transform is not None:
        column = transforms.apply(column, feature.transform, name=feature.name)
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.cast(column.type.storage_type)
    if pa.types.is_nested(column.type):
        if feature.max_length is not None:
            column = pc.list_slice(column, 0, feature.max_length, return_fixed_size_list=False)
        column = pc.list_flatten(column)
    kind = stored_type(column.type)
    # Offsets of 32 bits would end at 2 GiB of distinct text.
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(kind, kind)
    return column.cast(wide).drop_null()


def _common(kinds: set[pa.DataType]) -> pa.DataType:
    """One type for what the files of a log hold, which agree on more than the width of integers."""
    if len(kinds) == 1:
        return next(iter(kinds))
    if all(pa.types.is_unsigned_integer(kind) for kind in kinds):
        return pa.uint64()
    return pa.int64()
