"""Rows as a selection sees them: for each the numbers of its columns, without values, and dense columns beside.

    row  user  tags            indptr   0     3     5 ...
    0    ann   [new, hot]      indices  0 4 6 1 6 ...         ann, new, hot; bob, hot
    1    bob   [hot]

    Layout    names ("user", "tags"), bounds 0 4 9: user has columns 0 to 3, tags 4 to 8

A value twice in a list counts twice. Suffixes: N rows, E entries, F fields, C dense columns, D sparse columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, DataError
from embstore.hashing import compiled


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseBatch:
    """Some rows.

    Args:
        indptr_N: int64 ``[N + 1]``, where each row's entries begin.
        indices_E: int32, columns.
        labels_N: float32, 0 or 1.
        dense_NC: float32, NaN where missing.
    """

    indptr_N: NDArray[np.int64]
    indices_E: NDArray[np.int32]
    labels_N: NDArray[np.float32]
    dense_NC: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, index_N: NDArray[np.int64]) -> SparseBatch:
        """Some of its rows, in this order."""
        if self._width is not None:
            indices_E = self.indices_E.reshape(len(self), self._width).take(index_N, axis=0).reshape(-1)
            indptr_N = np.arange(len(index_N) + 1, dtype=np.int64) * self._width
        else:
            indptr_N = np.concatenate([[0], np.cumsum(np.diff(self.indptr_N)[index_N])])
            indices_E = np.empty(indptr_N[-1], np.int32)
            _take(self.indptr_N, self.indices_E, index_N, indices_E)
        return SparseBatch(
            indptr_N=indptr_N, indices_E=indices_E, labels_N=self.labels_N[index_N], dense_NC=self.dense_NC[index_N]
        )

    @cached_property
    def _width(self) -> int | None:
        """Entries of every row, if they have as many."""
        widths = np.diff(self.indptr_N)
        return int(widths[0]) if len(widths) and (widths == widths[0]).all() else None

    @classmethod
    def of(
        cls, codes_NF: NDArray[np.integer], labels_N: NDArray[np.generic], dense_NC: NDArray[np.generic] | None = None
    ) -> SparseBatch:
        """Of rows with one column for each field, integers ``[N, F]``."""
        rows, fields = codes_NF.shape
        none_NC = np.empty((rows, 0), np.float32)
        return cls(
            indptr_N=np.arange(rows + 1, dtype=np.int64) * fields,
            indices_E=np.ascontiguousarray(codes_NF, dtype=np.int32).reshape(-1),
            labels_N=labels_N.astype(np.float32),
            dense_NC=none_NC if dense_NC is None else dense_NC.astype(np.float32),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """What the columns are: those of each field in a run, then one for each dense column, a field of its own.

    Args:
        names: of the fields with sparse columns.
        bounds_F: int64 ``[F + 1]``, where the columns of each begin.
        dense: names of the dense columns.

    Raises:
        ConfigError: bounds that are none, or a name twice.
    """

    names: tuple[str, ...]
    bounds_F: NDArray[np.int64]
    dense: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bounds = self.bounds_F
        if len(bounds) != len(self.names) + 1 or bounds[0] != 0 or (np.diff(bounds) < 1).any() or bounds[-1] >= 2**31:
            found = f"{len(self.names):,} fields, bounds {bounds.tolist()[:8]}"
            raise ConfigError("columns of fields", expected="at least one for each, below 2^31", found=found)
        if len(set(self.fields)) < len(self.fields):
            raise ConfigError("fields", expected="a name each", found=", ".join(self.fields))
        if not self.fields:
            raise ConfigError("fields", expected="at least one", found="none")

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields, dense ones last."""
        return (*self.names, *self.dense)

    @property
    def sparse(self) -> int:
        """Sparse columns D."""
        return int(self.bounds_F[-1])

    @property
    def columns(self) -> int:
        """All columns, D + C."""
        return self.sparse + len(self.dense)

    @property
    def all_bounds_F(self) -> NDArray[np.int64]:
        """Where the columns of each of all fields begin."""
        return np.concatenate([self.bounds_F, self.sparse + 1 + np.arange(len(self.dense), dtype=np.int64)])

    def field_of_column(self) -> NDArray[np.int32]:
        """The field of each column, int32 ``[D + C]``."""
        return np.repeat(np.arange(len(self.fields), dtype=np.int32), np.diff(self.all_bounds_F))

    def check(self, batch: SparseBatch) -> None:
        """Refuse a batch of other columns.

        Raises:
            DataError: naming what doesn't fit.
        """
        rows, entries = len(batch), batch.indices_E
        if len(batch.indptr_N) != rows + 1 or batch.indptr_N[0] != 0 or batch.indptr_N[-1] != len(entries):
            raise DataError("batch", expected=f"bounds of {rows:,} rows", found=f"{len(batch.indptr_N):,} numbers")
        if (np.diff(batch.indptr_N) < 0).any():
            raise DataError("batch", expected="bounds that ascend", found="others")
        if len(entries) and not (int(entries.min()) >= 0 and int(entries.max()) < self.sparse):
            found = f"{entries.min():,} to {entries.max():,}"
            raise DataError("columns of a batch", expected=f"0 to {self.sparse - 1:,}", found=found)
        if batch.dense_NC.shape != (rows, len(self.dense)):
            found = str(batch.dense_NC.shape)
            raise DataError("dense columns of a batch", expected=f"({rows}, {len(self.dense)})", found=found)
        if not ((batch.labels_N == 0) | (batch.labels_N == 1)).all():
            raise DataError("labels of a batch", expected="0 or 1", found="others")


@compiled(nogil=True)
def _take(indptr_N, indices_E, index_N, out_E):  # type: ignore[no-untyped-def]
    place = 0
    for n in index_N:
        for e in range(indptr_N[n], indptr_N[n + 1]):
            out_E[place] = indices_E[e]
            place += 1
