"""The log that a graph is of, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from embstore.column_types import kind_of
from embstore.errors import LogError, SchemaError, nearest
from embstore.node2vec.graph_settings import GraphSettings
from embstore.node2vec.sessions import session_rows
from embstore.node2vec.survey import survey_of
from embstore.parquet_files import find, named, reading

_ROWS = 2**17  # of a table


@dataclass(frozen=True, kw_only=True)
class Block:
    """A row group; ``first_row`` is the number of its first row in the log."""

    path: str
    row_group: int
    first_row: int
    rows: int


class LogBlocks:
    """A log opened for a graph: footers are read, and every file's columns are checked. It can be pickled.

    Raises:
        LogError: nothing there, no rows, a file that is no Parquet or is cut short, files of different types.
        SchemaError: a column is missing or has a type that can't be what it is to be.
    """

    def __init__(self, settings: GraphSettings) -> None:
        assert settings.log is not None
        self.columns = list(settings.columns)
        self.filesystem: pafs.FileSystem
        self.filesystem, paths = find(settings.log)
        self.blocks: list[Block] = []
        self.rows = 0
        first: dict[str, pa.DataType] = {}
        for path in paths:
            with reading(path), pq.ParquetFile(path, filesystem=self.filesystem) as file:
                metadata, types = file.metadata, file.schema_arrow
            found = {name: self._type(types, name, path) for name in self.columns}
            first = first or found
            for name, kind in found.items():
                if kind_of(kind) != kind_of(first[name]):
                    expected, do = f"{first[name]} as in {paths[0]}", "rewrite one of them, or move it out of the log"
                    what = f"files of the log disagree on column {name!r}"
                    raise LogError(what, expected=expected, found=f"{kind} in {path}", do=do)
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                self.blocks.append(Block(path=path, row_group=group, first_row=self.rows, rows=rows))
                self.rows += rows
        if not self.rows:
            found_rows = f"{len(paths)} file(s) without rows"
            raise LogError(f"log {named(settings.log)}", expected="at least one row", found=found_rows)
        empty = pa.schema(list(first.items())).empty_table()
        survey = survey_of(empty, settings)  # both raise where a type can't be
        for number in range(len(settings.sessions)):
            session_rows(empty, number, settings, survey)

    @staticmethod
    def _type(types: pa.Schema, name: str, path: str) -> pa.DataType:
        if types.names.count(name) != 1:
            found = f"{types.names.count(name) or 'none'} of that name"
            do = nearest(name, types.names)
            raise SchemaError(f"column {name!r} of {path}", expected="one column of the log", found=found, do=do)
        return types.field(name).type

    def tables(self, blocks: list[Block] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """The rows of some blocks, or of all, at most 131,072 at a time, each table with the number of its first row.

        Raises:
            LogError: a file changed or broke since it was opened.
        """
        for block in self.blocks if blocks is None else blocks:
            done = 0
            with reading(block.path), pq.ParquetFile(block.path, filesystem=self.filesystem) as file:
                for batch in file.iter_batches(batch_size=_ROWS, row_groups=[block.row_group], columns=self.columns):
                    yield block.first_row + done, pa.Table.from_batches([batch])
                    done += batch.num_rows
            if done != block.rows:
                what = f"{block.path} changed while it was read"
                raise LogError(what, expected=f"{block.rows} rows", found=str(done))
