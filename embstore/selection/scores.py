"""What a selection says of fields and of columns, the values of fields: how much of each to keep.

    fields.parquet      field, log_score                      one row a field
    columns.parquet     field (its number), log_score         one row a column, in the layout's order

A score is in 0 to 1. Its logarithm is kept: of scores that round to 1 it still says which is larger.
Suffixes: F fields, D columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.errors import ConfigError, LogError, SchemaError, nearest
from embstore.selection.batches import Layout
from embstore.store.export import appearing
from embstore.store.files import fsync_file, fsync_folder

_FIELD, _LOG, _DENSE = "field", "log_score", "dense"
_FIELDS, COLUMNS = "fields.parquet", "columns.parquet"


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of fields and columns.

    Args:
        layout: whose.
        log_field_F: float64, logarithms of the fields' scores.
        log_column_D: float64, of the columns'.
    """

    layout: Layout
    log_field_F: NDArray[np.float64]
    log_column_D: NDArray[np.float64]

    @property
    def field_F(self) -> NDArray[np.float64]:
        """Scores of fields."""
        return np.exp(self.log_field_F)

    @property
    def column_D(self) -> NDArray[np.float64]:
        """Scores of columns."""
        return np.exp(self.log_column_D)

    def of_field(self, name: str) -> NDArray[np.float64]:
        """Scores of a field's columns.

        Raises:
            SchemaError: no such field.
        """
        if name not in self.layout.fields:
            raise SchemaError(f"no field {name!r}", do=nearest(name, self.layout.fields))
        at, bounds = self.layout.fields.index(name), self.layout.all_bounds_F
        return self.column_D[bounds[at] : bounds[at + 1]]

    def top_fields(self, count: int) -> tuple[str, ...]:
        """Names of the ``count`` best fields, best first; of equals, the one that comes first."""
        return tuple(self.layout.fields[at] for at in _best(self.log_field_F, count))

    def top_columns(self, count: int) -> NDArray[np.int64]:
        """The ``count`` best columns, best first."""
        return _best(self.log_column_D, count)

    def to_parquet(self, folder: str | Path) -> None:
        """Write a new folder of two files; it appears whole or not at all.

        Raises:
            StoreError: ``folder`` exists, or can't be written.
        """
        dense = [name in self.layout.dense for name in self.layout.fields]
        fields = pa.table({_FIELD: self.layout.fields, _DENSE: dense, _LOG: self.log_field_F})
        columns = pa.table({_FIELD: self.layout.field_of_column(), _LOG: self.log_column_D})
        with appearing(Path(folder)) as temporary:
            temporary.mkdir()
            for name, table in ((_FIELDS, fields), (COLUMNS, columns)):
                with (temporary / name).open("xb") as file:
                    pq.write_table(table, file, compression="zstd", store_schema=False)
                    fsync_file(file)
            fsync_folder(temporary)

    @classmethod
    def from_parquet(cls, folder: str | Path) -> Scores:
        """What ``to_parquet`` wrote.

        Raises:
            LogError: nothing there, or it can't be read.
        """
        try:
            fields = pq.read_table(Path(folder) / _FIELDS, columns=[_FIELD, _DENSE, _LOG])
            columns = pq.read_table(Path(folder) / COLUMNS, columns=[_FIELD, _LOG])
        except (OSError, pa.ArrowException) as error:
            found = str(error).split("\n")[0]
            raise LogError(f"scores {folder}", expected=f"{_FIELDS} and {COLUMNS}", found=found) from error
        names, dense = fields.column(_FIELD).to_pylist(), fields.column(_DENSE).to_pylist()
        sizes = np.bincount(columns.column(_FIELD).to_numpy(), minlength=len(names))
        sparse = [name for name, is_dense in zip(names, dense, strict=True) if not is_dense]
        layout = Layout(
            names=tuple(sparse),
            bounds_F=np.concatenate([[0], np.cumsum(sizes[: len(sparse)])]).astype(np.int64),
            dense=tuple(names[len(sparse) :]),
        )
        return cls(
            layout=layout, log_field_F=fields.column(_LOG).to_numpy(), log_column_D=columns.column(_LOG).to_numpy()
        )


def _best(of: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    if not 0 <= count <= len(of):
        raise ConfigError("how many of the best", expected=f"0 to {len(of):,}", found=f"{count:,}")
    return np.argsort(-of, kind="stable")[:count]
