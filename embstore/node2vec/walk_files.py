"""Walks in a folder of Parquet: for others to read, or to train on again without making them.

    walks/part-000000000000.parquet    number: int64, walk: list<int32>    nodes' numbers; a walk that ended is shorter
    walks/part-000000013107.parquet    the next ones: a file's name has the number of its first

Each file's metadata says of how many nodes and walks all are, and how long they are at most. Who writes a part needs no
torch: tasks of a cluster do.

Suffixes: W walks, L nodes of a walk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.errors import ConfigError, LogError
from embstore.node2vec.corpus import CHUNK_BYTES, Corpus, WalkSource
from embstore.node2vec.walks import NO_NODE, check_walks
from embstore.parquet_files import reading

_OPTIONS = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
_KEYS = ("num_nodes", "num_walks", "length")
_NUMBER = pa.field("number", pa.int64(), nullable=False)
_WALK = pa.field("walk", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False)


def write_walks(
    source: WalkSource,
    folder: str | Path,
    *,
    chunk_bytes: int = CHUNK_BYTES // 4,
    threads: int = 1,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write all walks to a new folder, which appears whole or not at all.

    Args:
        chunk_bytes: of walks in memory at once, and of a file before it is compressed.
        threads: that make walks.
        progress: called with the number of walks after each chunk.

    Raises:
        StoreError: the folder exists, or can't be written.
    """
    from embstore.store.export import appearing
    from embstore.store.files import fsync_folder

    with appearing(Path(folder)) as temporary:
        temporary.mkdir()
        for first, walks_WL in Corpus(source, chunk_bytes=chunk_bytes).chunks(threads):
            write_part(walks_WL, first, source, temporary)
            if progress is not None:
                progress(len(walks_WL))
        fsync_folder(temporary)


def write_part(walks_WL: NDArray[np.int32], first: int, source: WalkSource, folder: str | Path) -> None:
    """Write a source's walks ``first``, ``first + 1``, ... to a file of their own, which appears whole.

    Its name lasts when the folder is synced; who has written all parts does that.
    """
    says = {f"embstore.{key}": str(getattr(source, key)) for key in _KEYS}
    schema = pa.schema([_NUMBER, _WALK], metadata=says)
    there_WL = walks_WL != NO_NODE
    ends = np.concatenate([[0], np.cumsum(there_WL.sum(axis=1))]).astype(np.int32)
    walk = pa.ListArray.from_arrays(pa.array(ends), pa.array(walks_WL[there_WL]), type=_WALK.type)
    table = pa.table([pa.array(np.arange(first, first + len(walks_WL))), walk], schema=schema)
    path = Path(folder) / f"part-{first:012d}.parquet"
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        pq.write_table(table, file, **_OPTIONS)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class WalkFiles:
    """Walks that ``write_walks`` or a job wrote: a source, as a ``Walker`` is.

    Raises:
        LogError: nothing there, not all of the parts, or one is of other walks or cut short.
    """

    def __init__(self, folder: str | Path) -> None:
        self._what = f"walks {folder}"
        self._paths = sorted(Path(folder).glob("part-*.parquet"))
        if not self._paths:
            raise LogError(self._what, expected="part-*.parquet", found="none")
        says = {}
        rows = []
        for path in self._paths:
            says[path], count = self._said(path)
            rows.append(count)
        if len(set(says.values())) > 1:
            raise LogError(self._what, expected="parts of the same walks", found="parts of several")
        self.num_nodes, self.num_walks, self.length = says[self._paths[0]]
        self._bounds = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        if self._bounds[-1] != self.num_walks or self.length < 1:
            raise LogError(self._what, expected=f"{self.num_walks:,} walks", found=f"{self._bounds[-1]:,}")

    def walks(self, begin: int, end: int, *, threads: int = 1) -> NDArray[np.int32]:
        """Walks ``begin`` to ``end``, int32 ``[W, length]``; the parts that they are in are read.

        Raises:
            LogError: a part can't be read, or has other walks, or longer ones, than it says.
            GraphError: numbers that are no nodes.
        """
        if not 0 <= begin <= end <= self.num_walks:
            raise ConfigError("walks", expected=f"numbers from 0 to {self.num_walks:,}", found=f"{begin:,} to {end:,}")
        out_WL = np.full((end - begin, self.length), NO_NODE, dtype=np.int32)
        if begin == end:
            return out_WL
        first = int(np.searchsorted(self._bounds, begin, side="right")) - 1
        last = int(np.searchsorted(self._bounds, end, side="left"))
        for place in range(first, last):
            start = int(self._bounds[place])
            part = slice(max(begin - start, 0), min(end, int(self._bounds[place + 1])) - start)
            self._read(self._paths[place], start, part, out_WL[start + part.start - begin :], threads)
        check_walks(out_WL, self.num_nodes)
        return out_WL

    def _said(self, path: Path) -> tuple[tuple[int, ...], int]:
        """What a part says of all walks, and how many it has."""
        with reading(str(path)):
            metadata = pq.read_metadata(path)
            says, schema = metadata.metadata or {}, metadata.schema.to_arrow_schema()
        try:
            numbers = tuple(int(says[f"embstore.{key}".encode()]) for key in _KEYS)
        except (KeyError, ValueError) as error:
            raise LogError(str(path), expected="walks that embstore wrote", found="other Parquet") from error
        kind = str(schema.field("walk").type) if "walk" in schema.names else "no column 'walk'"
        if not kind.startswith("list<") or schema.field("walk").type.value_type != pa.int32():
            raise LogError(str(path), expected="a column 'walk' of lists of int32", found=kind)
        return numbers, metadata.num_rows

    def _read(self, path: Path, start: int, part: slice, out_WL: NDArray[np.int32], threads: int) -> None:
        """Rows of a file, whose first is walk ``start``."""
        with reading(str(path)), pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(columns=["number", "walk"], use_threads=threads > 1)
        numbers = table.column("number").to_numpy() if "number" in table.column_names else np.empty(0)
        if not np.array_equal(numbers, np.arange(start, start + table.num_rows)):
            raise LogError(str(path), expected=f"walks from number {start:,} on", found="others")
        column = table.column("walk").slice(part.start, part.stop - part.start).combine_chunks()
        if column.null_count or column.values.null_count:
            raise LogError(str(path), expected="numbers of nodes", found="nulls")
        lengths = np.diff(column.offsets.to_numpy())
        if (longest := lengths.max(initial=0)) > self.length:
            raise LogError(str(path), expected=f"walks of {self.length} nodes", found=f"one of {longest:,}")
        out_WL[: len(lengths)][np.arange(self.length) < lengths[:, None]] = column.flatten().to_numpy()
