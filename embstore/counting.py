"""The distinct values of a log's features, summed up exactly in one pass, by threads and by ranks that share it.

    log ──row groups──> threads ──> Counting ──> Partial by feature ──merging.py──> sorted tables
                                      └─ more than its room: sorted runs in a folder

A ``Counting`` adds what rows hold to a ``Summary`` of each feature, which all threads share; see
``embstore.aggregates`` for the columns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from embstore.aggregates import CLICKS, COUNT, FIRST, LAST, VALUE, Brought, Kinds, Summary
from embstore.distributed import ALONE, Group
from embstore.encoding import labels
from embstore.errors import SchemaError
from embstore.kernels.aggregate import EVER, NEVER
from embstore.logs import ParquetLog, Piece
from embstore.merging import Partial, merged, write_run
from embstore.schema import Schema
from embstore.threads import usable_cores

__all__ = ["CLICKS", "COUNT", "FIRST", "LAST", "VALUE", "Counted", "Counting", "count", "vocabulary_of"]

_DICTIONARY_BYTES = 4.0  # a value of a column whose files hold dictionaries takes fewer
_TABLES, _MOST_TABLES = 4, 64  # of a feature for each thread, and of a feature
_FULL, _BRIMFUL, _EMPTY = 0.5, 0.7, 0.125  # of the room: values are written, threads wait for that, enough is written


def vocabulary_of(
    log: ParquetLog,
    schema: Schema,
    *,
    progress: Callable[[int], object] | None = None,
    group: Group = ALONE,
) -> dict[str, pa.Table]:
    """The distinct values of each feature in a log and how often each occurs, exactly, in one pass.

    Missing values are left out; of a list, the values a lookup takes (``max_length``) are counted. Memory is that of
    the distinct values, about 200 bytes and their own text twice for each of them; it doesn't depend on the log's
    length or the number of threads.

    Args:
        log: where to read; its schema is not used.
        schema: whose features are wanted.
        progress: called with the number of rows after each chunk read.
        group: whose ranks count a part of the log each; rank 0 has the values of the whole, the others none.

    Returns:
        ``{feature: table of value and count (int64)}``, sorted by value.

    Raises:
        LogError, SchemaError: as ``ParquetLog``; or files of the log whose integer types have no common one.
        DataError: a text that is too long to be a category.
    """
    only = replace(schema, dense=(), label=None, weight=None, group=None)
    log = ParquetLog(log.source, only, labelled=False)

    def partials() -> dict[str, Partial]:
        counted = count(log, pieces=log.pieces[group.rank :: group.world], progress=progress)
        return {
            name: Partial.of(pa.concat_tables(list(merged(name, parts))), *parts)
            for name, parts in counted.parts.items()
        }

    found = group.together(partials)
    parts = {name: [part] if group.alone else _collected(part, group) for name, part in found.items()}
    if not group.first:
        return {}
    tables = {name: pa.concat_tables(list(merged(name, of))) for name, of in parts.items()}
    return {name: table.select([VALUE, COUNT]).combine_chunks() for name, table in tables.items()}


@dataclass(frozen=True)
class Counted:
    """What a log, or a part of it, holds.

    Args:
        parts: of each feature, to be merged.
        latest: the greatest time of all rows.
        rows: read.
    """

    parts: dict[str, list[Partial]]
    latest: int | None
    rows: int


def count(
    log: ParquetLog,
    *,
    time: str | None = None,
    pieces: Sequence[Piece] | None = None,
    threads: int | None = None,
    room: int | None = None,
    folder: Path | None = None,
    progress: Callable[[int], object] | None = None,
) -> Counted:
    """Sum up the features of a log's schema, with its label if it has one.

    Args:
        log: a ``labelled`` one where clicks are wanted; it reads ``time``.
        time: the column of times.
        pieces: of the log; all by default.
        threads: all cores by default; the result is the same.
        room: bytes that the values may take in memory; what is more goes to runs in ``folder``. Without, any number.
        folder: must be there if ``room`` is given.
        progress: called with the number of rows after each chunk read.

    Raises:
        LogError, SchemaError, DataError: as ``ParquetLog``; a label that is not 0 or 1, a text that is too long.
    """
    pieces = log.pieces if pieces is None else pieces
    threads = max(1, min(usable_cores() if threads is None else threads, len(pieces)))
    left, lock, stopped = iter(pieces), threading.Lock(), threading.Event()
    dictionaries = _dictionaries(log)
    counting = Counting(log, time=time, room=room, folder=folder, threads=threads)

    def claimed() -> Iterator[Piece]:
        while not stopped.is_set():
            with lock:
                piece = next(left, None)
            if piece is None:
                return
            yield piece

    def work() -> None:
        try:
            for table, origin in log.tables_from(pieces=claimed(), dictionaries=dictionaries):
                counting.add(table, origin)
                if progress is not None:
                    with lock:
                        progress(table.num_rows)
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(threads, thread_name_prefix="embstore-counting") as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            future.result()
    parts = {feature.name: counting.parts(feature.name) for feature in log.schema.features}
    return Counted(parts, counting.latest, counting.rows)


class Counting:
    """Rows of a log, added up, by several threads; see ``count``."""

    def __init__(
        self,
        log: ParquetLog,
        *,
        time: str | None = None,
        room: int | None = None,
        folder: Path | None = None,
        threads: int = 1,
    ) -> None:
        self.schema, self.labelled, self.time = log.schema, log.labelled, time
        self.room, self.folder = room, folder
        self.latest: int | None = None
        self.rows = 0
        tables = 1 if threads == 1 else min(_MOST_TABLES, 1 << (_TABLES * threads - 1).bit_length())
        self._summaries = {feature.name: Summary(feature.name, tables=tables) for feature in self.schema.features}
        self._runs: dict[str, list[Path]] = {feature.name: [] for feature in self.schema.features}
        self._lock, self._spilling = threading.Lock(), threading.Lock()
        self._taken = 0  # bytes of values that are being written
        empty = log.types.empty_table()  # a part of a log without rows has types, too
        for feature in self.schema.features:
            self._summaries[feature.name].add(empty.column(feature.source), feature, Brought())

    def add(self, table: pa.Table, origin: str) -> None:
        """Add some rows, which come from there."""
        clicks = first = last = np.empty(0, np.int64)
        greatest: int | None = None
        if self.labelled and self.schema.label is not None:
            clicks = labels(table, self.schema.label, origin).astype(np.int64)
        if self.time is not None:
            times = times_of(table.column(self.time), self.time)
            first = last = times.fill_null(NEVER).to_numpy()
            if times.null_count:
                last = times.fill_null(EVER).to_numpy()
            greatest = pc.max(times).as_py()
        brought = Brought(clicks, first, last)
        for feature in self.schema.features:
            self._summaries[feature.name].add(table.column(feature.source), feature, brought)
        with self._lock:
            self.rows += table.num_rows
            if greatest is not None:
                self.latest = greatest if self.latest is None else max(self.latest, greatest)
        if self.room is not None:
            self._keep_to(self.room)

    def parts(self, feature: str) -> list[Partial]:
        """What there is of a feature; the counting is over."""
        summary = self._summaries[feature]
        runs = [Partial(summary.kinds, run=path) for path in self._runs[feature]]
        return [*runs, Partial(summary.kinds, summary=summary)]

    @property
    def _bytes(self) -> int:
        return sum(of.bytes for of in self._summaries.values())

    def _keep_to(self, room: int) -> None:
        """Write the largest features to runs when values take too much; wait for a thread that does where it must."""
        if self._bytes <= room * _FULL:
            return
        # Sorting takes as much again as a half, and growing a table by copying.
        if self._spilling.acquire(blocking=self._bytes + self._taken > room * _BRIMFUL):
            try:
                if self._bytes > room * _FULL:
                    self._spill(room)
            finally:
                self._spilling.release()

    def _spill(self, room: int) -> None:
        assert self.folder is not None
        numbers = {feature.name: number for number, feature in enumerate(self.schema.features)}
        for name, summary in sorted(self._summaries.items(), key=lambda item: -item[1].bytes):
            if self._bytes <= room * _EMPTY:
                break
            if len(summary) == 0:
                continue
            runs = self._runs[name]
            self._taken = summary.bytes
            taken = summary.taken()
            path = self.folder / f"feature-{numbers[name]}-{len(runs)}.arrow"
            write_run(path, taken)
            runs.append(path)
            del taken
            self._taken = 0


def times_of(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """A column of times as int64, in the unit of ``time_type``.

    Raises:
        SchemaError: it holds no times.
    """
    kind = time_type(column.type, name)
    column = column.cast(kind)
    return (column.cast(pa.int32()) if pa.types.is_date(kind) else column).cast(pa.int64())


def time_type(kind: pa.DataType, name: str) -> pa.DataType:
    """The type of first and last seen for a column of times: what Parquet can hold of it.

    Raises:
        SchemaError: it holds no times.
    """
    if pa.types.is_timestamp(kind):
        return pa.timestamp("ms" if kind.unit == "s" else kind.unit, None if kind.tz is None else "UTC")
    if pa.types.is_date(kind):
        return pa.date32()
    if pa.types.is_integer(kind):
        return pa.int64()
    expected = "timestamps, dates or integers"
    raise SchemaError(f"time column {name!r}", expected=expected, found=str(kind), do="name another, or none")


def _collected(part: Partial, group: Group) -> list[Partial]:
    """The partials of all ranks, on rank 0."""
    sink = pa.BufferOutputStream()
    table = part.table
    assert table is not None
    told = table.schema.with_metadata(part.kinds.to_metadata())
    with pa.ipc.new_stream(sink, told) as stream:
        stream.write_table(table.cast(told))
    sent = torch.from_numpy(np.frombuffer(sink.getvalue(), np.uint8).copy())
    found = group.collect(sent)
    if not group.first:
        return []
    tables = [pa.ipc.open_stream(pa.py_buffer(of.numpy())).read_all() for of in found]
    return [Partial(Kinds.from_metadata(table.schema.metadata), table=table) for table in tables]


def _dictionaries(log: ParquetLog) -> list[str]:
    """The paths of columns of text whose values repeat so that their codes, not they, are worth counting."""
    if not log.pieces:
        return []
    piece = log.pieces[0]
    with pq.ParquetFile(piece.path, filesystem=log.filesystem) as file:
        group = file.metadata.row_group(piece.row_group)
        columns = [group.column(number) for number in range(group.num_columns)]
    wanted = {feature.source for feature in log.schema.features}
    return [
        column.path_in_schema
        for column in columns
        if column.path_in_schema.split(".")[0] in wanted
        and column.physical_type == "BYTE_ARRAY"
        and column.total_uncompressed_size < _DICTIONARY_BYTES * column.num_values
    ]
