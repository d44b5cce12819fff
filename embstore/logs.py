"""Parquet logs -> a stream of batches, in bounded memory, that can be resumed at any row.

The order of an epoch is a pure function of (log, seed, epoch): row groups are permuted, their rows run together
into one stream, and each consecutive *window* of the stream is permuted. So a ``Cursor`` needs only the epoch and
the number of rows taken, any rank can compute its share of every batch, and nothing of the shuffle has to be saved.

    stream   | row group 7 | row group 2 | row group 5 | ...      permuted by (seed, epoch)
    windows  |   window 0    |   window 1    | ...                permuted by (seed, epoch, window)
    batches  | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | ...                rank r of w takes the r-th part of each

Two threads run ahead: one decodes and encodes the next window, one gathers batches. About three windows are in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.batch import Batch
from embstore.column_types import kind_of, tokens_of, value_type
from embstore.encoding import Rows, check_types, encode
from embstore.errors import DataError, LogError, SchemaError, nearest
from embstore.parquet_files import find, named, reading
from embstore.prefetch import Prefetch
from embstore.schema import Schema

DECODE_ROWS = 32_768  # rows decoded at a time


@dataclass(frozen=True)
class Cursor:
    """Where a stream stands: ``row`` rows of ``epoch`` have been taken, of the log with this fingerprint.

    ``file``, ``row_group`` and ``group_row`` say where in the log the next window starts (for people).
    """

    epoch: int = 0
    row: int = 0
    fingerprint: str = ""
    file: str = ""
    row_group: int = 0
    group_row: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, for a checkpoint."""
        return asdict(self)


@dataclass(frozen=True)
class Piece:
    """A row group: the unit of reading."""

    path: str
    row_group: int
    rows: int
    sizes: tuple[int, ...]  # compressed bytes of each column


class ParquetLog:
    """A Parquet log: a file, a folder (searched below), a glob, a URI such as ``s3://bucket/logs``, or a list of these.

    Opening reads the footers only, and checks every file against the schema.

    Args:
        source: where the log is.
        schema: what its columns mean.
        labelled: whether label, weight and group are read (``False`` to score logs that have none).
        compare_all: whether files must agree on every column of the first one, not only on those of the schema.
        also: columns that are read besides.

    ``types`` is the Arrow schema of its first file.

    Raises:
        LogError: nothing there, no rows, a file that is no Parquet or is cut short, files with different schemas.
        SchemaError: a column is missing or has a type its role can't take.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str | Path],
        schema: Schema,
        *,
        labelled: bool = True,
        compare_all: bool = False,
        also: Sequence[str] = (),
    ) -> None:
        self.source, self.schema, self.labelled = source, schema, labelled
        self.filesystem, self.paths = find(source)
        extra = () if labelled else tuple(n for n in (schema.label, schema.weight, schema.group) if n)
        inputs = {f.source for f in schema.features} | {d.source for d in schema.dense}
        self.columns = [name for name in schema.columns if name in inputs or name not in extra]
        self.columns += [name for name in also if name not in self.columns]
        self.types, self.pieces = self._open(compare_all)
        self.rows = sum(piece.rows for piece in self.pieces)
        if self.rows == 0:
            raise LogError(
                f"log {named(source)}", expected="at least one row", found=f"{len(self.paths)} file(s) without rows"
            )

    def _open(self, compare_all: bool) -> tuple[pa.Schema, list[Piece]]:
        pieces: list[Piece] = []
        first: pa.Schema | None = None
        for path in self.paths:
            with reading(path), pq.ParquetFile(path, filesystem=self.filesystem) as file:
                metadata, columns = file.metadata, file.schema_arrow
            if first is None:
                first = columns
                check_types(columns, self.schema, labelled=self.labelled)
                for name in self.columns:
                    if name not in columns.names:
                        raise SchemaError(f"column {name!r} is not in the log", do=nearest(name, columns.names))
            else:
                self._check_same(first, columns, path, first.names if compare_all else self.columns)
            pieces += [
                Piece(path, group, metadata.row_group(group).num_rows, _sizes(metadata.row_group(group)))
                for group in range(metadata.num_row_groups)
                if metadata.row_group(group).num_rows
            ]
        assert first is not None  # there is a path
        return first, pieces

    def _check_same(self, first: pa.Schema, columns: pa.Schema, path: str, names: Sequence[str]) -> None:
        for name in names:
            if columns.names.count(name) != 1:
                raise LogError(
                    f"files of the log have different columns: {path} has {columns.names.count(name) or 'no'} {name!r}",
                    expected=f"the columns of {self.paths[0]}",
                    found=", ".join(columns.names),
                    do="move files of another schema out of the folder",
                )
            if kind_of(columns.field(name).type) != kind_of(first.field(name).type):
                raise LogError(
                    f"files of the log disagree on column {name!r}",
                    expected=f"{first.field(name).type} as in {self.paths[0]}",
                    found=f"{columns.field(name).type} in {path}",
                    do="rewrite one of them, or move it out of the folder",
                )

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the files' names and of their row groups' rows and sizes: a cursor is only good for its own log."""
        local = isinstance(self.filesystem, pafs.LocalFileSystem)
        paths = {path: os.path.abspath(path) if local else path for path in self.paths}
        root = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
        digest = hashlib.sha256()
        for piece in self.pieces:
            name = os.path.relpath(paths[piece.path], root or ".")
            digest.update(f"{name}\0{piece.row_group}\0{piece.rows}\0{piece.sizes}\n".encode())
        return digest.hexdigest()[:16]

    def value_types(self) -> dict[str, str]:
        """By feature, the Arrow type of its column in the first file, dictionaries taken off: what its values are."""
        return {
            feature.name: str(value_type(self.types.field(feature.source).type)) for feature in self.schema.features
        }

    def batch_count(self, batch_size: int) -> int:
        """Batches of an epoch (of all ranks together): the steps it takes."""
        return len(_Order(self, batch_size, 0, 0).batch_bounds) - 1

    def batches(
        self,
        batch_size: int,
        *,
        cursor: Cursor | None = None,
        epochs: int | None = 1,
        shuffle_window: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 4,
    ) -> Generator[Batch, None, None]:
        """Stream batches from a cursor on; each carries the cursor of what follows it.

        A last batch smaller than half a batch is joined to the one before it, so no step sees a handful of rows.

        Args:
            batch_size: rows of a batch over all ranks.
            cursor: where to go on; the start when ``None``.
            epochs: stop after this epoch number (counted from the first epoch, not from the cursor); ``None``: never.
            shuffle_window: rows shuffled together; 0 reads in order. Rounded up to whole batches.
            seed: of the shuffle.
            rank, world_size: this process takes part ``rank`` of each batch.
            prefetch: batches made ahead.

        Raises:
            LogError: the cursor is of another log, or a file changed or broke while it was read.
            DataError, SchemaError: a row can't be used.
        """
        cursor = cursor or Cursor()
        if cursor.fingerprint not in ("", self.fingerprint):
            raise LogError(
                f"log {named(self.source)} is not the one this run was reading",
                expected=f"fingerprint {cursor.fingerprint}",
                found=self.fingerprint,
                do="restore the log, or start a fresh run",
            )
        order = _Order(self, batch_size, shuffle_window, seed)
        windows = Prefetch(order.windows(cursor, epochs), depth=1, name="embstore-windows")
        batches = Prefetch(order.cut(windows, rank, world_size), depth=prefetch, name="embstore-batches")
        try:
            yield from batches
        finally:
            # The outer thread may be waiting for a window: stop the windows first.
            windows.close()
            batches.close()

    def windows(self, batch_size: int, *, shuffle_window: int) -> list[tuple[int, int]]:
        """Of each window of an epoch its first row, and how many batches it makes."""
        order = _Order(self, batch_size, shuffle_window, 0)
        at = np.searchsorted(order.batch_bounds, order.window_bounds)
        return list(zip(order.window_bounds[:-1], np.diff(at).tolist(), strict=True))

    def rows_and_orders(
        self, batch_size: int, *, start: int = 0, shuffle_window: int, seed: int = 0
    ) -> Iterator[tuple[Rows, list[NDArray[np.int64]]]]:
        """The first epoch's windows as they are read, without threads, and which rows of each make its batches.

        Whoever makes something of rows makes it once, in the log's order, and takes batches of that.

        Args:
            start: the first window's first row, as ``windows`` says.
            batch_size, shuffle_window, seed: as for ``batches``.
        """
        order = _Order(self, batch_size, shuffle_window, seed)
        for cursor, taken, rows in order.windows(Cursor(row=start, fingerprint=self.fingerprint), 1):
            yield rows, order.batches(cursor, taken, rows.size)

    def rows_from(self, start: int = 0, pieces: Sequence[Piece] | None = None) -> Iterator[Rows]:
        """Encoded rows in chunks, from row ``start`` of the run of ``pieces`` (the log's own order by default)."""
        for table, origin in self.tables_from(start, pieces):
            try:
                yield encode(table, self.schema, labelled=self.labelled, origin=origin)
            except (DataError, SchemaError) as error:
                if origin in str(error):
                    raise
                raise type(error)(
                    f"{origin}: {error.what}", expected=error.expected, found=error.found, do=error.do
                ) from error

    def tables_from(
        self, start: int = 0, pieces: Iterable[Piece] | None = None, *, dictionaries: Sequence[str] = ()
    ) -> Iterator[tuple[pa.Table, str]]:
        """Arrow rows as ``rows_from``, each chunk with the place it came from (for messages).

        Args:
            dictionaries: columns of text, by their paths in the files, that are given as dictionaries.
        """
        coded = list(dictionaries) or None
        for piece in self.pieces if pieces is None else pieces:
            if start >= piece.rows:
                start -= piece.rows
                continue
            position = 0
            with (
                reading(piece.path),
                pq.ParquetFile(piece.path, filesystem=self.filesystem, read_dictionary=coded) as file,
            ):
                chunks = file.iter_batches(batch_size=DECODE_ROWS, row_groups=[piece.row_group], columns=self.columns)
                for chunk in chunks:
                    skip = min(max(start - position, 0), chunk.num_rows)
                    position += chunk.num_rows
                    if skip < chunk.num_rows:
                        table = pa.Table.from_batches([chunk.slice(skip)])
                        yield (
                            table,
                            f"{piece.path}, row group {piece.row_group}, from row {position - table.num_rows:,}",
                        )
            if position != piece.rows:
                raise LogError(
                    f"{piece.path} changed while it was read", expected=f"{piece.rows} rows", found=str(position)
                )
            start = 0


def check_alike(logs: Mapping[str, ParquetLog]) -> None:
    """Refuse logs in which a feature's values are of other types: ``7`` and ``"7"`` are two values, with two vectors.

    Args:
        logs: by name, ``"train"`` and so on; all are compared with the first.

    Raises:
        SchemaError: naming the column, and its type in both.
    """
    (first, reference), *others = logs.items()
    for column in dict.fromkeys(feature.source for feature in reference.schema.features):
        expected = reference.types.field(column).type
        for name, log in others:
            found = log.types.field(column).type
            ours, theirs = tokens_of(expected), tokens_of(found)
            if ours != theirs and not ("null" in ours or "null" in theirs):  # a column without values has no type
                raise SchemaError(
                    f"column {column!r} of the {name} log",
                    expected=f"{expected} as in the {first} log ({named(reference.source)})",
                    found=f"{found} in {log.paths[0]}",
                    do="write the column alike in both: values of another type are other values",
                )


class _Order:
    """The order of an epoch: which rows make window w and batch b."""

    def __init__(self, log: ParquetLog, batch_size: int, shuffle_window: int, seed: int) -> None:
        self.log, self.seed, self.shuffled = log, seed, shuffle_window > 0
        starts = list(range(0, log.rows, batch_size))
        if len(starts) > 1 and log.rows - starts[-1] < batch_size / 2:
            starts.pop()
        self.batch_bounds = [*starts, log.rows]
        # Unshuffled logs are cut in windows too: a window is what is decoded ahead.
        per_window = max(1, -(-(shuffle_window or DECODE_ROWS) // batch_size))
        self.window_bounds = [*self.batch_bounds[:-1:per_window], log.rows]

    def pieces(self, epoch: int) -> list[Piece]:
        if not self.shuffled:
            return self.log.pieces
        permuted = _generator(self.seed, epoch).permutation(len(self.log.pieces))
        return [self.log.pieces[i] for i in permuted]

    def windows(self, cursor: Cursor, epochs: int | None) -> Iterator[tuple[Cursor, int, Rows]]:
        """(cursor at the start, rows already taken of it, rows) of each window not yet all taken."""
        last = itertools.count(cursor.epoch) if epochs is None else range(cursor.epoch, epochs)
        row = cursor.row
        for epoch in last:
            first = int(np.searchsorted(self.window_bounds, row, side="right")) - 1
            if row < self.log.rows:
                yield from self._epoch_windows(epoch, first, row)
            row = 0

    def _epoch_windows(self, epoch: int, first: int, row: int) -> Iterator[tuple[Cursor, int, Rows]]:
        pieces = self.pieces(epoch)
        chunks = self.log.rows_from(self.window_bounds[first], pieces)
        rest: Rows | None = None
        for start, stop in itertools.pairwise(self.window_bounds[first:]):
            parts, size = ([rest], rest.size) if rest is not None else ([], 0)
            while size < stop - start:
                chunk = next(chunks)
                parts.append(chunk)
                size += chunk.size
            window = Rows.concatenate(parts)
            rest = window.slice(stop - start, size) if size > stop - start else None
            window = window.slice(0, stop - start)
            yield self._place(Cursor(epoch, start, self.log.fingerprint), pieces), max(row - start, 0), window

    def _place(self, cursor: Cursor, pieces: Sequence[Piece]) -> Cursor:
        left = cursor.row
        for piece in pieces:
            if left < piece.rows:
                return replace(cursor, file=os.path.basename(piece.path), row_group=piece.row_group, group_row=left)
            left -= piece.rows
        return cursor

    def cut(self, windows: Iterator[tuple[Cursor, int, Rows]], rank: int, world_size: int) -> Iterator[Batch]:
        for cursor, taken, window in windows:
            row = cursor.row + taken
            for order in self.batches(cursor, taken, window.size):
                size = len(order)
                row += size
                mine = order[size * rank // world_size : size * (rank + 1) // world_size]
                after = replace(cursor, row=row)
                if after.row == self.log.rows:
                    after = Cursor(epoch=cursor.epoch + 1, row=0, fingerprint=cursor.fingerprint)
                whole = None if world_size == 1 else size
                yield replace(window.batch(mine), cursor=after, whole=whole)

    def batches(self, cursor: Cursor, taken: int, size: int) -> list[NDArray[np.int64]]:
        """Of a window's rows from ``taken`` on, those of each batch."""
        order = self._permutation(cursor, size)
        bounds = [b - cursor.row for b in self.batch_bounds if taken <= b - cursor.row <= size]
        return [order[start:stop] for start, stop in itertools.pairwise(bounds)]

    def _permutation(self, cursor: Cursor, size: int) -> NDArray[np.int64]:
        if not self.shuffled:
            return np.arange(size)
        return _generator(self.seed, cursor.epoch, 1 + cursor.row).permutation(size)


def _sizes(group: pq.RowGroupMetaData) -> tuple[int, ...]:
    return tuple(group.column(number).total_compressed_size for number in range(group.num_columns))


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
