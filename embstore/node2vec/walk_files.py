"""Walks in a folder of Parquet: for others to read, or to train on again without making them.

    walks/part-0.parquet    number: int64, walk: list<int32>    numbers of nodes; a walk that ended is shorter

The file's metadata says of how many nodes and walks it is, and how long they are at most.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.errors import ConfigError, LogError
from embstore.node2vec.corpus import CHUNK_BYTES, Corpus, WalkSource
from embstore.node2vec.walks import NO_NODE, check_walks
from embstore.store.export import appearing
from embstore.store.files import fsync_file, fsync_folder
from embstore.store.values import reading

_FILE = "part-0.parquet"
_OPTIONS = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
_KEYS = ("num_nodes", "num_walks", "length")


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
        chunk_bytes: of walks in memory at once, and of a row group before it is compressed.
        threads: that make walks.
        progress: called with the number of walks after each chunk.

    Raises:
        StoreError: the folder exists, or can't be written.
    """
    says = {f"embstore.{key}": str(getattr(source, key)) for key in _KEYS}
    fields = [pa.field("number", pa.int64(), nullable=False)]
    fields += [pa.field("walk", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False)]
    schema = pa.schema(fields, metadata=says)
    with appearing(Path(folder)) as temporary:
        temporary.mkdir()
        with (temporary / _FILE).open("xb") as file:
            with pq.ParquetWriter(file, schema, **_OPTIONS) as writer:
                for first, walks_WL in Corpus(source, chunk_bytes=chunk_bytes).chunks(threads):
                    there_WL = walks_WL != NO_NODE
                    ends = np.concatenate([[0], np.cumsum(there_WL.sum(axis=1))]).astype(np.int32)
                    column = pa.ListArray.from_arrays(pa.array(ends), pa.array(walks_WL[there_WL]), type=fields[1].type)
                    number = pa.array(np.arange(first, first + len(walks_WL)))
                    writer.write_table(pa.table([number, column], schema=schema), row_group_size=len(walks_WL))
                    if progress is not None:
                        progress(len(walks_WL))
            fsync_file(file)
        fsync_folder(temporary)


class WalkFiles:
    """Walks that ``write_walks`` wrote: a source, as a ``Walker`` is.

    Raises:
        LogError: nothing there, or no such file, or it is cut short.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / _FILE
        self._what = f"walks {self.path}"
        with reading(self._what):
            metadata = pq.read_metadata(self.path)
            says, schema = metadata.metadata or {}, metadata.schema.to_arrow_schema()
        try:
            numbers = [int(says[f"embstore.{key}".encode()]) for key in _KEYS]
        except (KeyError, ValueError) as error:
            raise LogError(self._what, expected="walks that embstore wrote", found="other Parquet") from error
        self.num_nodes, self.num_walks, self.length = numbers
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        kind = str(schema.field("walk").type) if "walk" in schema.names else "no column 'walk'"
        if not kind.startswith("list<") or schema.field("walk").type.value_type != pa.int32():
            raise LogError(self._what, expected="a column 'walk' of lists of int32", found=kind)
        self._bounds = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        if self._bounds[-1] != self.num_walks or self.length < 1:
            raise LogError(self._what, expected=f"{self.num_walks:,} walks", found=f"{self._bounds[-1]:,}")

    def walks(self, begin: int, end: int, *, threads: int = 1) -> NDArray[np.int32]:
        """Walks ``begin`` to ``end``, int32 ``[W, length]``; the row groups that they are in are read.

        Raises:
            LogError: the file can't be read, or a walk in it is longer than it says.
            GraphError: numbers that are no nodes.
        """
        if not 0 <= begin <= end <= self.num_walks:
            raise ConfigError("walks", expected=f"numbers from 0 to {self.num_walks:,}", found=f"{begin:,} to {end:,}")
        out_WL = np.full((end - begin, self.length), NO_NODE, dtype=np.int32)
        if begin == end:
            return out_WL
        first = int(np.searchsorted(self._bounds, begin, side="right")) - 1
        last = int(np.searchsorted(self._bounds, end, side="left"))
        with reading(self._what), pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            table = file.read_row_groups(list(range(first, last)), columns=["walk"], use_threads=threads > 1)
        if _has_nulls(table):
            raise LogError(self._what, expected="numbers of nodes", found="nulls")
        column = table.column("walk").slice(begin - int(self._bounds[first]), end - begin).combine_chunks()
        lengths = np.diff(column.offsets.to_numpy())
        if lengths.max() > self.length:
            raise LogError(self._what, expected=f"walks of {self.length} nodes", found=f"one of {lengths.max():,}")
        out_WL[np.arange(self.length) < lengths[:, None]] = column.flatten().to_numpy()
        check_walks(out_WL, self.num_nodes)
        return out_WL


def _has_nulls(table: pa.Table) -> bool:
    column = table.column("walk")
    return bool(column.null_count or any(chunk.values.null_count for chunk in column.chunks))
