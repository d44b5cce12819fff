"""Arrow rows -> encoded rows: tokens, dense values, labels, checked.

``Rows`` holds some rows of a log after encoding. A shuffle window is a ``Rows``; a batch is a ``take`` from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore import transforms
from embstore.batch import Batch, FeatureTokens
from embstore.errors import DataError, SchemaError, nearest
from embstore.hashing import compiled
from embstore.schema import Feature, Schema
from embstore.tokens import Tokens, tokenize


@dataclass(frozen=True)
class Rows:
    """Encoded rows in memory.

    Args:
        size: number of rows B.
        features: tokens by feature; list features have offsets ``[B + 1]``.
        dense_BD: float32 ``[B, D]``, NaN where missing.
        label_B, weight_B: float32 ``[B]`` or ``None``.
        group_B: int64 ``[B]`` group tokens or ``None``.
    """

    size: int
    features: Mapping[str, Tokens]
    dense_BD: NDArray[np.float32]
    label_B: NDArray[np.float32] | None
    weight_B: NDArray[np.float32] | None
    group_B: NDArray[np.int64] | None

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """Rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        return cls(
            size=sum(part.size for part in parts),
            features={name: _concatenate_tokens([part.features[name] for part in parts]) for name in first.features},
            dense_BD=np.concatenate([part.dense_BD for part in parts]),
            label_B=_join([part.label_B for part in parts]),
            weight_B=_join([part.weight_B for part in parts]),
            group_B=_join([part.group_B for part in parts]),
        )

    def slice(self, start: int, stop: int) -> Rows:
        """Rows ``start`` to ``stop`` (views)."""
        return Rows(
            size=stop - start,
            features={name: _slice_tokens(tokens, start, stop) for name, tokens in self.features.items()},
            dense_BD=self.dense_BD[start:stop],
            label_B=None if self.label_B is None else self.label_B[start:stop],
            weight_B=None if self.weight_B is None else self.weight_B[start:stop],
            group_B=None if self.group_B is None else self.group_B[start:stop],
        )

    def batch(self, index_B: NDArray[np.int64] | None = None) -> Batch:
        """The rows at ``index_B`` (all, in order, when ``None``) as a ``Batch`` of new tensors."""
        if index_B is None:
            index_B = np.arange(self.size)
        columns: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, tokens in self.features.items():
            values = tokens.values.view(np.int64)
            if tokens.offsets is None:
                columns[name] = torch.from_numpy(values[index_B]), None
            else:
                taken, offsets = _take_lists(values, tokens.offsets, index_B)
                columns[name] = torch.from_numpy(taken), torch.from_numpy(offsets)
        return Batch(
            tokens=FeatureTokens.concatenate(columns, len(index_B)),
            dense_BD=torch.from_numpy(self.dense_BD[index_B]),
            label_B=_tensor(self.label_B, index_B),
            weight_B=_tensor(self.weight_B, index_B),
            group_B=_tensor(self.group_B, index_B),
        )


def encode(table: pa.Table | pa.RecordBatch, schema: Schema, *, labelled: bool = True, origin: str = "") -> Rows:
    """Encode Arrow rows under a schema.

    Args:
        table: has every column the schema reads (label, weight and group only when ``labelled``).
        labelled: also read label, weight and group.
        origin: where the rows come from, for messages, e.g. a file name.

    Raises:
        SchemaError: a column is missing or has a type its role can't take.
        DataError: a label that is missing, NaN or not 0/1; a negative or missing weight; a value too long.
    """
    features = {feature.name: encode_feature(table, feature) for feature in schema.features}
    dense = np.empty((table.num_rows, len(schema.dense)), dtype=np.float32)
    for d, column in enumerate(schema.dense):
        dense[:, d] = dense_numbers(_column(table, column.source), column.source)
    label = weight = group = None
    if labelled and schema.label is not None:
        label = labels(table, schema.label, origin)
    if labelled and schema.weight is not None:
        weight = _weight(_column(table, schema.weight), schema.weight, origin)
    if labelled and schema.group is not None:
        group = _group(_column(table, schema.group), schema.group)
    return Rows(table.num_rows, features, dense, label, weight, group)


def encode_feature(table: pa.Table | pa.RecordBatch, feature: Feature) -> Tokens:
    """One feature's tokens."""
    column = _column(table, feature.source)
    if feature.transform is not None:
        column = transforms.apply(column, feature.transform, name=feature.name)
    return tokenize(column, name=feature.name, max_length=feature.max_length)


def labels(table: pa.Table | pa.RecordBatch, name: str, origin: str = "") -> NDArray[np.float32]:
    """A column of labels, each 0 or 1.

    Raises:
        SchemaError: there is none of that name, or of another type.
        DataError: another value, or a missing one.
    """
    return _label(_column(table, name), name, origin)


def dense_numbers(column: pa.Array | pa.ChunkedArray, source: str) -> NDArray[np.float32]:
    """A dense column's numbers, NaN where missing.

    Raises:
        SchemaError: a type that is no number.
    """
    do = "declare it under features, or leave it out"
    return _numbers(column, f"column {source!r} is used as a number", do)


def column_of(values: Any, name: str) -> pa.Array | pa.ChunkedArray:
    """Values as an Arrow column, which they may be already.

    Raises:
        SchemaError: text instead of a list of it, or values of several types.
    """
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values
    if isinstance(values, (str, bytes)):
        raise SchemaError(f"column {name!r}", expected="a list of values", found=repr(values))
    try:
        return pa.array(list(values))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError) as error:
        raise SchemaError(f"column {name!r}", expected="values of one type", found=str(error)) from error


def encode_values(values: Any, feature: Feature) -> FeatureTokens:
    """One feature's tokens of raw values, or of what its transform gives; see ``UnifiedEmbedding.lookup``."""
    column = column_of(values, feature.name)
    if feature.transform is not None:
        column = transforms.apply_or_keep(column, feature.transform, name=feature.name)
    tokens = _tensors(tokenize(column, name=feature.name, max_length=feature.max_length))
    return FeatureTokens.concatenate({feature.name: tokens}, len(column))


def encode_columns(columns: Mapping[str, Any], features: Sequence[Feature] | None = None) -> FeatureTokens:
    """Raw values, a column for each name, as tokens; see ``FeatureTokens.from_columns``."""
    arrays = {name: column_of(values, name) for name, values in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name!r} of {length:,}" for name, length in lengths.items())
        raise DataError("columns", expected="as many values in each", found=found)
    table = pa.table(arrays)
    if features is None:
        features = [Feature(name=name) for name in columns]
    encoded = {feature.name: _tensors(encode_feature(table, feature)) for feature in features}
    return FeatureTokens.concatenate(encoded, table.num_rows)


def check_types(columns: pa.Schema, schema: Schema, *, labelled: bool = True) -> None:
    """Encode no rows of these columns: raises what ``encode`` would for missing columns and wrong types."""
    encode(columns.empty_table(), schema, labelled=labelled)


def _column(table: pa.Table | pa.RecordBatch, name: str) -> pa.ChunkedArray:
    if table.schema.names.count(name) > 1:
        raise SchemaError(f"column {name!r}", expected="one of that name", found=f"{table.schema.names.count(name)}")
    if name not in table.schema.names:
        raise SchemaError(f"column {name!r} is not in the log", do=nearest(name, table.schema.names))
    return table.column(name)


def _numbers(
    column: pa.ChunkedArray, what: str, do: str, expected: str = "integers, floats, decimals or booleans"
) -> NDArray[np.float32]:
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan, dtype=np.float32)
    if (
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
    ):
        numbers = (
            column.cast(pa.float64(), safe=False)
            if not pa.types.is_boolean(kind)
            else column.cast(pa.int8()).cast(pa.float64())
        )
        values = numbers.to_numpy(zero_copy_only=False) if isinstance(numbers, pa.Array) else numbers.to_numpy()
        return values.astype(np.float32)
    raise SchemaError(what, expected=expected, found=str(kind), do=do)


def _label(column: pa.ChunkedArray, name: str, origin: str) -> NDArray[np.float32]:
    do = "make the label binary when the log is written"
    label = _numbers(column, f"label {name!r}", do, expected="a column of 0 and 1 (integers, floats or booleans)")
    wrong = np.flatnonzero(~((label == 0) | (label == 1)))
    if len(wrong):
        row = int(wrong[0])
        found = "a missing value" if column[row].as_py() is None else repr(column[row].as_py())
        raise DataError(
            f"label {name!r}{_at(origin, row)}",
            expected="0 or 1",
            found=f"{found} ({len(wrong)} such of {len(label)} rows read)",
            do=f"drop these rows or {do}",
        )
    return label


def _weight(column: pa.ChunkedArray, name: str, origin: str) -> NDArray[np.float32]:
    weight = _numbers(column, f"weight {name!r}", "write weights as numbers, or declare none")
    wrong = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"weight {name!r}{_at(origin, row)}", expected="a finite number, 0 or more", found=repr(column[row].as_py())
        )
    return weight


def _group(column: pa.ChunkedArray, name: str) -> NDArray[np.int64]:
    group = tokenize(column, name=name)
    if group.offsets is not None:
        raise SchemaError(f"group {name!r}", expected="one value a row", found="a list column")
    return group.values.view(np.int64)


def _at(origin: str, row: int) -> str:
    return f" in {origin}, row {row:,}" if origin else f", row {row:,}"


def _join(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None


def _concatenate_tokens(parts: Sequence[Tokens]) -> Tokens:
    values = np.concatenate([part.values for part in parts])
    if parts[0].offsets is None:
        return Tokens(values, None)
    offsets, end = [np.zeros(1, dtype=np.int64)], 0
    for part in parts:
        assert part.offsets is not None
        offsets.append(part.offsets[1:] + end)
        end += int(part.offsets[-1])
    return Tokens(values, np.concatenate(offsets))


def _slice_tokens(tokens: Tokens, start: int, stop: int) -> Tokens:
    if tokens.offsets is None:
        return Tokens(tokens.values[start:stop], None)
    bounds = tokens.offsets[start : stop + 1]
    return Tokens(tokens.values[bounds[0] : bounds[-1]], bounds - bounds[0])


def _tensors(tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    offsets = None if tokens.offsets is None else torch.from_numpy(tokens.offsets)
    return torch.from_numpy(tokens.values.view(np.int64)), offsets


def _tensor(values: np.ndarray | None, index_B: NDArray[np.int64]) -> Tensor | None:
    return None if values is None else torch.from_numpy(values[index_B])


@compiled(nogil=True)
def _take_lists(
    values: NDArray[np.int64], offsets: NDArray[np.int64], index_B: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # pragma: no cover - compiled
    taken_offsets = np.zeros(len(index_B) + 1, dtype=np.int64)
    for b in range(len(index_B)):
        taken_offsets[b + 1] = taken_offsets[b] + offsets[index_B[b] + 1] - offsets[index_B[b]]
    taken = np.empty(taken_offsets[-1], dtype=np.int64)
    for b in range(len(index_B)):
        start = offsets[index_B[b]]
        for n in range(taken_offsets[b + 1] - taken_offsets[b]):
            taken[taken_offsets[b] + n] = values[start + n]
    return taken, taken_offsets
