"""A block of a column as the kernels that count take it: flat values, and arrays of their bytes or bits."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embstore import transforms
from embstore.column_types import stored_type
from embstore.kernels import aggregate as kernels
from embstore.kernels.aggregate import EVER, NEVER
from embstore.schema import Feature

NONE = np.empty(0, np.int64)

_Number = TypeVar("_Number", bound=np.generic)

_NO_BITS: NDArray[np.uint8] = np.empty(0, np.uint8)
_NARROW = 8  # integers of a range that many times smaller than the block are counted by their places in it
_NARROWEST = 256  # and of one that small


def single_values(values: pa.Array, feature: Feature) -> tuple[pa.Array, NDArray[np.int64]]:
    """What the feature's lookups see of a column: flat values, and the row that each is of (empty: its own).

    Text has offsets of 64 bits, or is a dictionary of such.
    """
    rows = NONE
    if feature.transform is not None:
        values = transforms.apply(values, feature.transform, name=feature.name)
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.cast(values.type.storage_type)
    if pa.types.is_nested(values.type):
        if feature.max_length is not None and (pc.max(pc.list_value_length(values)).as_py() or 0) > feature.max_length:
            values = pc.list_slice(values, 0, feature.max_length, return_fixed_size_list=False)
        rows = pc.list_parent_indices(values).to_numpy().astype(np.int64, copy=False)
        values = pc.list_flatten(values)
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.cast(values.type.storage_type)
    kind = stored_type(values.type)
    # Offsets of 32 bits would end at 2 GiB of distinct text.
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(kind, kind)
    if pa.types.is_fixed_size_binary(kind):
        wide = pa.large_binary()
    if pa.types.is_dictionary(values.type) and is_text(wide) and len(values.dictionary) <= 2 * len(values):
        codes = values.indices.cast(pa.int32())
        return pa.DictionaryArray.from_arrays(codes, values.dictionary.cast(wide)), rows
    return values.cast(wide), rows


def tallied(
    values: pa.Array, rows: NDArray[np.int64], *brought: NDArray[np.int64]
) -> tuple[pa.Array, NDArray[np.int64], tuple[NDArray[np.int64], ...]]:
    """Where values repeat, each of them once, standing for all rows that hold it; else what is given.

    Args:
        values: a dictionary is taken for one whose values repeat, integers for such where their range is narrow.
        rows: which each value is of.
        brought: what the rows bring: count, clicks, first and last.

    Returns:
        values, rows, brought: the same, but of fewer rows, or as they were.
    """
    if pa.types.is_dictionary(values.type):
        distinct, least = values.dictionary, 0
        codes: NDArray[Any] = np.frombuffer(values.indices.buffers()[1], np.int32, len(values), 4 * values.offset)
        validity, shift = validity_of(values.indices)
    elif pa.types.is_integer(values.type) and not len(brought[0]):
        bounds = pc.min_max(values)
        least, most = bounds["min"].as_py(), bounds["max"].as_py()
        if most - least >= max(_NARROWEST, len(values) // _NARROW) or not -(1 << 62) < least <= most < 1 << 62:
            return values, rows, brought
        distinct = pa.array(np.arange(least, most + 1)).cast(values.type)
        codes = numbers_of(values)
        validity, shift = validity_of(values)
    else:
        return values, rows, brought
    _, clicks_R, first_R, last_R = brought
    count, clicks = np.zeros(len(distinct), np.int64), np.zeros(len(distinct) if len(clicks_R) else 0, np.int64)
    timed = len(distinct) if len(first_R) else 0
    first, last = np.full(timed, NEVER, np.int64), np.full(timed, EVER, np.int64)
    given = tuple(map(fixed, (rows, clicks_R, first_R, last_R)))
    kernels.tally(fixed(codes), least, validity, shift, *given, count, clicks, first, last)
    return distinct, NONE, (count, clicks, first, last)


def is_text(kind: pa.DataType) -> bool:
    """Whether the bytes of values tell them apart; of values without a type, too."""
    types = pa.types
    return types.is_large_string(kind) or types.is_large_binary(kind) or types.is_null(kind)


def bytes_of(values: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of texts, and where each begins and the last one ends."""
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, np.int64, len(values) + 1, 8 * values.offset)
    return _bits(data), fixed(bounds)


def numbers_of(values: pa.Array) -> NDArray[np.int64]:
    """The bits of integers or booleans as int64; anything where they are null."""
    kind = values.type
    if pa.types.is_boolean(kind):
        values, kind = values.cast(pa.uint8()), pa.uint8()
    numbers = np.frombuffer(
        values.buffers()[1], kind.to_pandas_dtype(), len(values), values.offset * kind.bit_width // 8
    )
    return fixed(numbers.view(np.int64) if kind.bit_width == 64 else numbers.astype(np.int64))


def validity_of(values: pa.Array | None) -> tuple[NDArray[np.uint8], int]:
    """Arrow's bitmap of what is not null and where it begins; an empty one where nothing is."""
    if values is None or values.null_count == 0:
        return _bits(None), 0
    return _bits(values.buffers()[0]), values.offset


def fixed(array: NDArray[_Number]) -> NDArray[_Number]:
    """One type of array for the kernels, whoever owns the memory: one that they can't write to."""
    view = array.view()
    view.flags.writeable = False
    return view


def _bits(buffer: pa.Buffer | None) -> NDArray[np.uint8]:
    return fixed(np.frombuffer(buffer, np.uint8) if buffer is not None and buffer.size else _NO_BITS)
