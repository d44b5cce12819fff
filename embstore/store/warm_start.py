"""Rows set from vectors that someone else made: ``{value: vector}`` Parquet into a table.

    value   vector               row of lookup 0   row of lookup 1
    ann     [a0 a1 | a2 a3]      17                90                 row 17 = (a0 a1 + 3 * (b2 b3)) / 4
    bob     [b0 b1 | b2 b3]      4                 17                 row 90 = a2 a3      row 4 = b0 b1

for weights of 1 and 3. Shape suffixes: V values, W numbers of a vector, X numbers of all vectors, C contributions (a
value to a row), G rows set, D dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numba
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import torch
from numpy.typing import NDArray

from embstore.errors import DataError, SchemaError, nearest
from embstore.store.values import open_dataset, reading, scan
from embstore.tokens import tokenize

if TYPE_CHECKING:
    from embstore.embeddings.unified import UnifiedEmbedding

_BLOCK_ROWS = 16_384  # vectors read, and rows of the table written, at a time


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What ``import_vectors`` did.

    Args:
        values: in the file.
        rows: of the table that were set.
        changed: of these, rows whose numbers are others than before.
        shared: values that share at least one of their rows with another value.
        unknown: values an exact feature doesn't know, which were skipped.
    """

    values: int
    rows: int
    changed: int
    shared: int
    unknown: int


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueVectors:
    """Vectors by value, checked: each value once, every number finite.

    Args:
        values: of one type, none missing.
        tokens_V: of the values, int64 bits.
        vectors_VW: float32.
        weights_V: float64, above 0: how much each counts in the mean of a row that several share.
    """

    values: pa.ChunkedArray
    tokens_V: NDArray[np.int64]
    vectors_VW: NDArray[np.float32]
    weights_V: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.tokens_V)

    @classmethod
    def read(
        cls,
        vectors: str | Path | pa.Table,
        *,
        value_column: str = "value",
        vector_column: str = "vector",
        weight_column: str | None = None,
        widths: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> ValueVectors:
        """From Parquet (a file or a folder of them) or an Arrow table.

        Args:
            widths: which a vector may have; any, but all the same, when not given.
            dtype: in which its numbers must be finite.

        Raises:
            SchemaError, DataError, LogError: as ``import_vectors``.
        """
        source = _open(vectors, [value_column, vector_column] + ([weight_column] if weight_column is not None else []))
        with _reading(vectors):
            found = source.to_table(columns=[value_column] if weight_column is None else [value_column, weight_column])
        value = found.column(value_column)
        if not len(value):
            nothing = np.empty((0, 0), np.float32)
            return cls(values=value, tokens_V=np.empty(0, np.int64), vectors_VW=nothing, weights_V=np.empty(0))
        if pa.types.is_nested(value.type):
            raise SchemaError(f"column {value_column!r}", expected="single values", found=str(value.type))
        _refuse_nulls(value, value_column)
        tokens_V = tokenize(value, name=value_column).values.view(np.int64)
        _refuse_duplicates(value, tokens_V, value_column)
        weights_V = _weights(found, weight_column)
        with _reading(vectors):
            vectors_VW = _vectors(source, vector_column, found.num_rows, widths, dtype)
        return cls(values=value, tokens_V=tokens_V, vectors_VW=vectors_VW, weights_V=weights_V)


@torch.no_grad()
def import_vectors(
    table: UnifiedEmbedding,
    feature: str,
    vectors: str | Path | pa.Table,
    *,
    value_column: str = "value",
    vector_column: str = "vector",
    weight_column: str | None = None,
) -> WarmStart:
    """Set the rows of values whose vectors are known, e.g. from an export, word vectors or node2vec.

    A row that several values hash to becomes their weighted mean, taken in float64 and rounded once; the order of the
    file doesn't matter, and a row of one value is that value's numbers exactly (in a float32 table). All other rows
    and the optimizer's state stay. Nothing is changed when an error is raised. All vectors are in memory:
    4 bytes a number, and about 100 for each lookup of a value.

    Args:
        feature: whose lookups find the values. For a transformed timestamp the values are what the transform gives.
        vectors: a Parquet file, a folder of them, or an Arrow table: distinct values, and for each a list of dim
            floats (given to every lookup) or of lookups * dim (split among them).
        value_column, vector_column: where they are.
        weight_column: positive numbers, e.g. counts; without it all values weigh alike.

    Raises:
        SchemaError: no such feature or column, or values or vectors of a type that can't be theirs.
        DataError: vectors of another width or with numbers that are not finite (in the table's dtype), a missing
            value, vector or weight, a weight that is not positive, or a value twice.
        LogError: Parquet that can't be read.
    """
    widths = (table.dim, table.feature(feature).lookups * table.dim)
    given = ValueVectors.read(
        vectors,
        value_column=value_column,
        vector_column=vector_column,
        weight_column=weight_column,
        widths=widths,
        dtype=table.dtype,
    )
    return set_rows(table, {feature: given})


@torch.no_grad()
def set_rows(table: UnifiedEmbedding, given: Mapping[str, ValueVectors]) -> WarmStart:
    """Set the rows of the values of some features at once: a row that values of several hit is the mean of them all.

    Values that the table prunes are left out, and count as unknown. Of a table whose rows are shared out, those that
    are here are set, and counted.

    Args:
        given: by feature; vectors of dim numbers, or of lookups * dim.
    """
    tokens, rows, values, starts, weights = [], [], [], [], []
    flat = [of.vectors_VW.reshape(-1) for of in given.values()]
    flat_X = flat[0] if len(flat) == 1 else np.concatenate([np.empty(0, np.float32), *flat])
    first = begin = known = 0  # value and number of the feature
    for feature, of in given.items():
        spec, plan, width = table.feature(feature), table.plan.only(feature), of.vectors_VW.shape[1]
        index_V = np.arange(len(of))
        if spec.exact:
            index_V = np.flatnonzero(np.isin(of.tokens_V, table.exact_tokens()[feature].cpu().numpy()))
        if table.pruned is not None:  # whose rows are those of other values
            token_V = of.tokens_V[index_V]
            index_V = index_V[table.pruned.of_feature(feature, token_V) == token_V]
        for number, lookup in enumerate(plan.lookups):
            rows.append(plan.rows_of(lookup, torch.from_numpy(of.tokens_V[index_V])).numpy())
            tokens.append(of.tokens_V[index_V])
            values.append(first + index_V)
            # A vector of dim numbers is read from its start by every lookup, a longer one in parts.
            starts.append(begin + index_V * width + (number * table.dim if width > table.dim else 0))
            weights.append(of.weights_V[index_V])
        first, begin, known = first + len(of), begin + of.vectors_VW.size, known + len(index_V)
    if not known:
        return WarmStart(values=first, rows=0, changed=0, shared=0, unknown=first)
    row_C, token_C, value_C, start_C, weight_C = map(np.concatenate, (rows, tokens, values, starts, weights))
    # Sorted by token too, so that sums don't depend on the order of the file.
    order = np.lexsort((token_C, row_C))
    order = order[(row_C[order] >= table.shard.start) & (row_C[order] < table.shard.stop)]
    row_C, value_C, start_C, weight_C = row_C[order], value_C[order], start_C[order], weight_C[order]
    row_G, first_G = np.unique(row_C, return_index=True)
    bounds_G = np.append(first_G, len(row_C))

    table.settle()  # what rows owe is for steps before these numbers
    changed = 0
    for start in range(0, len(row_G), _BLOCK_ROWS):
        block = row_G[start : start + _BLOCK_ROWS]
        means = np.empty((len(block), table.dim))
        _average(flat_X, weight_C, start_C, bounds_G[start : start + len(block) + 1], means)
        rows_G = torch.from_numpy(block - table.shard.start).to(table.weight.device)
        new_GD = torch.from_numpy(means).to(table.weight)
        changed += int((table.weight.index_select(0, rows_G) != new_GD).any(dim=1).sum())
        table.weight.index_copy_(0, rows_G, new_GD)
    return WarmStart(
        values=first, rows=len(row_G), changed=changed, shared=_sharing(row_C, value_C), unknown=first - known
    )


def _open(vectors: str | Path | pa.Table, columns: list[str]) -> ds.Dataset:
    """Where they are, with each of these columns once."""
    source = ds.dataset(vectors) if isinstance(vectors, pa.Table) else open_dataset(vectors, "vectors")
    names = source.schema.names
    for name in columns:
        if names.count(name) != 1:
            found = f"{names.count(name) or 'none'} of that name"
            raise SchemaError(f"vectors: column {name!r}", expected="one", found=found, do=nearest(name, names))
    return source


def _reading(vectors: str | Path | pa.Table) -> reading:
    return reading("vectors" if isinstance(vectors, pa.Table) else f"vectors {vectors}")


def _refuse_nulls(column: pa.Array | pa.ChunkedArray, name: str, first_row: int = 0) -> None:
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(f"column {name!r}, row {first_row + row:,}", expected="no missing values", found="one")


def _refuse_duplicates(value: pa.ChunkedArray, tokens_V: NDArray[np.int64], name: str) -> None:
    order = np.argsort(tokens_V, kind="stable")
    for place in np.flatnonzero(tokens_V[order][1:] == tokens_V[order][:-1]):
        first, second = int(order[place]), int(order[place + 1])
        if value[first].as_py() == value[second].as_py():  # else two values whose hashes are the same in all 64 bits
            found = f"{value[first].as_py()!r} in rows {first:,} and {second:,}"
            raise DataError(f"column {name!r}", expected="each value once", found=found, do="merge its vectors")


def _vectors(
    source: ds.Dataset, name: str, count: int, widths: tuple[int, int] | None, dtype: torch.dtype
) -> NDArray[np.float32]:
    """The vectors, float32 ``[V, W]``, checked."""
    kind = source.schema.field(name).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise SchemaError(f"column {name!r}", expected="lists of floats", found=str(kind))
    vector_VW = np.empty((0, 0), dtype=np.float32)
    row, width, allowed = 0, -1, False
    for batch in scan(source, {name: ds.field(name)}, _BLOCK_ROWS):
        for start in range(0, batch.num_rows, _BLOCK_ROWS):
            part = batch.column(name).slice(start, _BLOCK_ROWS)
            _refuse_nulls(part, name, row)
            lengths = pc.list_value_length(part).to_numpy(zero_copy_only=False)
            if width < 0:
                width = int(lengths[0])
                allowed = width > 0 if widths is None else width in widths
                if allowed:
                    vector_VW = np.empty((count, width), dtype=np.float32)
            wrong = np.flatnonzero((lengths != width) | (not allowed))
            if len(wrong):
                other = "1 or more" if widths is None else " or ".join(map(str, sorted(set(widths))))
                expected = f"{width}, as in row 0" if allowed else other
                found = str(lengths[wrong[0]])
                raise DataError(
                    f"column {name!r}, row {row + wrong[0]:,}", expected=f"a vector of {expected}", found=found
                )
            with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, and is refused below
                numbers = part.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
            # A missing number is NaN by now.
            usable = torch.tensor(numbers).to(dtype).isfinite().view(-1, width).all(dim=1).numpy()
            if not usable.all():
                bad = int(np.flatnonzero(~usable)[0])
                raise _not_finite(part[bad].as_py(), dtype, f"column {name!r}, row {row + bad:,}")
            vector_VW[row : row + len(part)] = numbers.reshape(-1, width)
            row += len(part)
    return vector_VW


def _not_finite(vector: list[float | None], dtype: torch.dtype, where: str) -> DataError:
    """The error for a vector's first number that is missing or not finite in this dtype."""
    numbers = torch.tensor([float("nan") if number is None else number for number in vector], dtype=torch.float32)
    place = int((~numbers.to(dtype).isfinite()).nonzero()[0])
    expected = f"finite numbers of {str(dtype).removeprefix('torch.')}"
    return DataError(f"{where}, number {place} of {len(vector)}", expected=expected, found=str(vector[place]))


def _weights(found: pa.Table, name: str | None) -> NDArray[np.float64]:
    if name is None:
        return np.ones(found.num_rows)
    column = found.column(name)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise SchemaError(f"column {name!r}", expected="numbers", found=str(column.type))
    _refuse_nulls(column, name)
    weight_V = column.to_numpy().astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(weight_V) & (weight_V > 0)))
    if len(wrong):
        found_number = str(column[int(wrong[0])].as_py())
        raise DataError(f"column {name!r}, row {wrong[0]:,}", expected="a finite number above 0", found=found_number)
    return weight_V


def _sharing(row_C: NDArray[np.int64], value_C: NDArray[np.int64]) -> int:
    """Values with another value in one of their rows; the contributions to a row are neighbours, by value."""
    meet = np.flatnonzero((row_C[1:] == row_C[:-1]) & (value_C[1:] != value_C[:-1]))
    # A third value of a row lies beside one of the two.
    return len(np.unique(np.concatenate([value_C[meet], value_C[meet + 1]])))


@numba.njit(nogil=True, cache=True)
def _average(
    flat_X: NDArray[np.float32],
    weight_C: NDArray[np.float64],
    start_C: NDArray[np.int64],
    bounds_G: NDArray[np.int64],
    out_GD: NDArray[np.float64],
) -> None:  # pragma: no cover - compiled
    """The weighted mean of each row's contributions, one after the other."""
    for g in range(len(out_GD)):
        out_GD[g] = -0.0  # which keeps the sign of a zero added to it
        # Weights relative to the row's greatest: nothing overflows, and a value alone is left as it is.
        greatest = 0.0
        for c in range(bounds_G[g], bounds_G[g + 1]):
            greatest = max(greatest, weight_C[c])
        total = 0.0
        for c in range(bounds_G[g], bounds_G[g + 1]):
            weight = weight_C[c] / greatest
            total += weight
            for d in range(out_GD.shape[1]):
                out_GD[g, d] += weight * flat_X[start_C[c] + d]
        for d in range(out_GD.shape[1]):
            out_GD[g, d] /= total
