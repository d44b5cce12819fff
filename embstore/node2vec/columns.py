"""Columns of a log as nodes, times and weights; a missing value is none of these.

    ["b" null] ["a"] []      flat: values "b" "a" of rows 0 1      numbers among "a" "b" "c": 1 0

A node's value is an int64 (booleans are 0 and 1), an uint64, a text or bytes, whatever width or dictionary it is stored
in. Suffixes: R rows, V values, E entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embstore.errors import DataError, GraphError, SchemaError
from embstore.hashing import compiled
from embstore.node2vec.graph_settings import SECOND
from embstore.tokens import MAX_BYTES, check_type

_NO_BYTES: NDArray[np.uint8] = np.frombuffer(b"\0", np.uint8)[:0]  # not writable, as Arrow's


def flat(column: pa.ChunkedArray, name: str) -> tuple[pa.Array, NDArray[np.int64]]:
    """The values of a column that are there, of lists their elements, and the row of each.

    Raises:
        SchemaError: a type that is never categorical.
        DataError: a value longer than those of a feature may be.
    """
    check_type(column.type, name)
    plain = _plain(column)
    if _is_list(plain.type):
        row_V = pc.list_parent_indices(plain).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        values = pc.list_flatten(plain)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
    else:
        row_V, values = np.arange(len(plain), dtype=np.int64), plain
    if values.null_count:
        row_V = row_V[pc.is_valid(values).to_numpy(zero_copy_only=False)]
        values = values.drop_null()
    values = values.cast(value_type(values.type))
    if not pa.types.is_integer(values.type) and len(values):
        longest = pc.max(pc.binary_length(values)).as_py()
        if longest > MAX_BYTES:
            raise DataError(f"column {name!r}", expected=f"values of at most {MAX_BYTES:,} bytes", found=f"{longest:,}")
    return values, row_V


def value_type(kind: pa.DataType) -> pa.DataType:
    """Of a node whose column's values are of this type."""
    if pa.types.is_uint64(kind):
        return pa.uint64()
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return pa.int64()
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return pa.large_string() if text or pa.types.is_null(kind) else pa.large_binary()


def ordered(values: pa.Array) -> pa.Array:
    """Distinct values, ascending; text by its bytes."""
    distinct = values.unique()
    if pa.types.is_integer(distinct.type):
        return pa.array(np.sort(distinct.to_numpy()))
    return distinct.take(pc.array_sort_indices(distinct))


def joined(parts: list[pa.Array], name: str) -> pa.Array:
    """Distinct values of several parts, ascending.

    Raises:
        SchemaError: integers that have no common type.
    """
    parts = [part for part in parts if len(part)] or parts[:1]
    kinds = {part.type for part in parts}
    kind = next(iter(kinds)) if len(kinds) == 1 else pa.int64()
    return ordered(pa.concat_arrays([as_type(part, kind, name) for part in parts]))


def as_type(values: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    """The same values in the type that the whole log has.

    Raises:
        SchemaError: they have none in it.
    """
    if values.type == kind:
        return values
    try:
        return values.cast(kind)
    except pa.ArrowException as error:
        found = str(error).split("\n")[0]
        raise SchemaError(f"values of column {name!r}", expected=f"one type, {kind}", found=found) from error


def numbers(values: pa.Array, among: pa.Array) -> NDArray[np.int32]:
    """The place of each value among the distinct ones, which are ascending, ``[V]``.

    Raises:
        GraphError: one that is not among them.
    """
    codes = values.dictionary_encode()
    distinct = codes.dictionary
    place = np.empty(len(distinct), dtype=np.int32)
    if pa.types.is_integer(among.type):
        wanted, sorted_V = distinct.to_numpy(), among.to_numpy()
        place[:] = np.searchsorted(sorted_V, wanted)
        found = place < len(sorted_V)
        found[found] = sorted_V[place[found]] == wanted[found]
        place[~found] = -1
    else:
        _places(*text_of(distinct), *text_of(among), place)
    if (place < 0).any():
        value = distinct[int(np.flatnonzero(place < 0)[0])].as_py()
        expected, do = "the values that the log had when it was first read", "leave the log alone while it is read"
        raise GraphError("the values of nodes", expected=expected, found=repr(value), do=do)
    return place[codes.indices.to_numpy()]


def times(column: pa.ChunkedArray, name: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Microseconds of each row since 1970, ``[R]``, and which rows have a time.

    Raises:
        SchemaError: neither timestamps, dates nor integers (seconds).
        DataError: one that is too far away.
    """
    plain = _plain(column)
    kind = plain.type
    try:
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            micros = plain.cast(pa.timestamp("us", kind.tz if pa.types.is_timestamp(kind) else None), safe=False)
            micros = micros.cast(pa.int64())
            if (pa.types.is_timestamp(kind) and kind.unit == "s") or pa.types.is_date(kind):
                plain.cast(pa.timestamp("us", kind.tz if pa.types.is_timestamp(kind) else None))  # whether it fits
        elif pa.types.is_integer(kind):
            micros = pc.multiply_checked(plain.cast(pa.int64()), SECOND)
        elif pa.types.is_null(kind):
            micros = pa.nulls(len(plain), pa.int64())
        else:
            do = "cast it when the log is written"
            raise SchemaError(
                f"time column {name!r}", expected="timestamps, dates or whole seconds", found=str(kind), do=do
            )
    except pa.ArrowException as error:
        found = str(error).split("\n")[0]
        raise DataError(
            f"time column {name!r}", expected="times that 64 bits of microseconds hold", found=found
        ) from error
    return micros.fill_null(0).to_numpy(zero_copy_only=False), pc.is_valid(plain).to_numpy(zero_copy_only=False)


def weights(column: pa.ChunkedArray, name: str, first_row: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The weight of each row, ``[R]``, and which rows have one above 0.

    Raises:
        SchemaError: not a column of numbers.
        GraphError: negative or not finite, with its row.
    """
    plain = _plain(column)
    kind = plain.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (numeric or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise SchemaError(f"weight column {name!r}", expected="numbers", found=str(kind))
    plain = plain.cast(pa.uint8()) if pa.types.is_boolean(kind) else plain
    weight_R = plain.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(~(np.isfinite(weight_R) & (weight_R >= 0)))
    if len(wrong):
        found = f"{weight_R[wrong[0]]} in row {first_row + wrong[0]:,}"
        raise GraphError(f"weight column {name!r}", expected="finite numbers of 0 or more", found=found)
    return weight_R, weight_R > 0


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array, without extension types, dictionaries and lists of fixed size; text with wide offsets."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(column.cast(kind.storage_type))
    if pa.types.is_fixed_size_list(kind):
        return _plain(column.cast(pa.large_list(kind.value_type)))
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if not (_is_list(kind) or pa.types.is_null(kind)) and (pa.types.is_string(kind) or pa.types.is_binary(kind)):
        column = column.cast(value_type(kind))
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def text_of(values: pa.Array) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Offsets int64 ``[V + 1]`` and bytes of large text or binary."""
    _, offsets, data = values.buffers()
    if not len(values):
        return np.frombuffer(bytes(8), np.int64), _NO_BYTES
    offset_V = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    return offset_V, np.frombuffer(data, np.uint8) if data is not None and data.size else _NO_BYTES


@compiled(nogil=True)
def _places(wanted_V, wanted_bytes, sorted_V, sorted_bytes, place_V):  # type: ignore[no-untyped-def]
    """Binary search of each wanted text; -1 where it is not there."""
    for v in range(len(place_V)):
        start, length = wanted_V[v], wanted_V[v + 1] - wanted_V[v]
        low, high = 0, len(sorted_V) - 1
        place_V[v] = -1
        while low < high:
            middle = (low + high) >> 1
            other, size = sorted_V[middle], sorted_V[middle + 1] - sorted_V[middle]
            order = 0
            for i in range(min(length, size)):
                a, b = wanted_bytes[start + i], sorted_bytes[other + i]
                if a != b:
                    order = -1 if a < b else 1
                    break
            if order == 0:
                order = length - size
            if order == 0:
                place_V[v] = middle
                break
            if order < 0:
                high = middle
            else:
                low = middle + 1
