"""Raw Arrow columns -> uint64 tokens, zero-copy and in parallel (hash spec 1, ``docs/hash-spec.md``).

    integers, booleans     splitmix64 of the int64 bits
    text, binary           xxh64 of the bytes, seed 0
    dictionary             its dictionary is hashed once, then gathered
    missing                MISSING_TOKEN
    list                   [a b], [], null, [null]  ->  values [a b MISSING MISSING], offsets [0 2 2 3 4]

Kernels read Arrow's buffers in place and release the GIL. They share one form: ``kernel(..., index, out, start, stop)``
fills ``out[start:stop]`` with the tokens of elements ``index[start:stop]`` (-1: missing), or of ``start`` to ``stop``
when the index is empty, and returns the byte length of the longest value. ``validity`` is Arrow's bitmap (empty: no
nulls), read from bit ``shift`` on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embstore.errors import DataError, SchemaError
from embstore.hashing import MISSING_TOKEN, compiled, splitmix64, splitmix64_scalar, xxh64, xxh64_at, xxh64_padded_at
from embstore.threads import pool, usable_cores

MAX_BYTES = 65_536  # a longer text or binary value is no category
BLOCK = 32_768  # elements given to one thread at a time; less is done by the caller, without the pool

Part = tuple[pa.Array, NDArray[np.int64] | None]  # a flat array, and which of its elements; None: all
Kernel = Callable[[int, int], int]

_MISSING = np.uint64(MISSING_TOKEN)
_SEED, _PADDING = np.uint64(0), np.uint64(24)
_NO_BYTES: NDArray[np.uint8] = np.frombuffer(b"\0", dtype=np.uint8)[:0]
_NO_INDEX = np.empty(0, dtype=np.int64)
_BYTES = {pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()}


@dataclass(frozen=True)
class Tokens:
    """The tokens of one column.

    Args:
        values: uint64, row by row.
        offsets: for list columns, int64 ``[rows + 1]`` from 0: row r has ``values[offsets[r]:offsets[r + 1]]``.
            ``None``: one value a row.
    """

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64] | None


def token(value: bool | int | str | bytes | None) -> int:
    """The token of one value, as ``tokenize`` gives it.

    Raises:
        SchemaError: a type that is never categorical (a float, a date).
        DataError: an integer beyond 64 bits, or text that is not Unicode (a lone surrogate).
    """
    if value is None:
        return MISSING_TOKEN
    if isinstance(value, bool | int | np.integer | np.bool_):
        number = int(value)
        if not -(1 << 63) <= number < 1 << 64:
            raise DataError(f"value {number}", expected="an integer of 64 bits", do="give larger ones as text")
        return int(splitmix64(np.array([number & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))[0])
    if isinstance(value, str):
        try:
            return xxh64(value.encode())
        except UnicodeEncodeError as error:
            raise DataError(f"value {value!r}", expected="valid Unicode", found=error.reason) from error
    if isinstance(value, bytes):
        return xxh64(value)
    raise SchemaError(
        f"value {value!r} can't be a feature",
        expected="None, a boolean, an integer, text or bytes",
        found=type(value).__name__,
        do="cast it to an integer or to text",
    )


def tokenize(
    column: pa.ChunkedArray | pa.Array, *, name: str, max_length: int | None = None, max_bytes: int = MAX_BYTES
) -> Tokens:
    """The tokens of a column.

    Args:
        column: integers, booleans, text, binary, or lists or dictionaries of these; any chunks and slices.
        name: the feature's name, for messages.
        max_length: keep the first ``max_length`` values of each list.
        max_bytes: a longer text or binary value is an error, not a category.

    Returns:
        One token a row, or for lists one token a value with offsets. A null list is one missing value, an empty list is
        none, a null in a list is a missing value.

    Raises:
        SchemaError: the column's type is never categorical; the message says what to declare instead.
        DataError: a value is longer than ``max_bytes``.
    """
    check_type(column.type, name)
    chunks = [_plain(chunk) for chunk in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])]
    if not _is_list(_storage_type(column.type)):
        return Tokens(_hash([(chunk, None) for chunk in chunks], None, name, max_bytes), None)
    offsets = np.zeros(len(column) + 1, dtype=np.int64)
    parts, row = [], 0
    for chunk in chunks:
        parts.append(_elements(chunk, max_length, offsets[row : row + len(chunk) + 1]))
        row += len(chunk)
    return Tokens(_hash(parts, offsets, name, max_bytes), offsets)


def check_type(kind: pa.DataType, name: str) -> None:
    """Raise ``SchemaError`` unless a column of this type can be a feature."""
    element = _storage_type(kind)
    nested = _is_list(element)
    if nested:
        element = _storage_type(element.value_type)
    if pa.types.is_dictionary(element):
        element = _storage_type(element.value_type)
    types = pa.types
    if types.is_integer(element) or types.is_boolean(element) or types.is_null(element) or _is_bytes(element):
        return
    if types.is_floating(element) or types.is_decimal(element):
        do = f"{'' if nested else 'declare it under dense, or '}cast it to integers or text when the log is written"
    elif types.is_timestamp(element) or types.is_date(element) or types.is_time(element):
        do = f"declare what to take from it, e.g. {{name: hour, column: {name}, transform: hour}}"
    else:
        do = "write what it holds as columns of these types, lists at most one level deep"
    raise SchemaError(
        f"column {name!r} can't be a feature",
        expected="integers, booleans, text or binary, or lists of these",
        found=str(kind),
        do=do,
    )


def _hash(parts: Sequence[Part], offsets: NDArray[np.int64] | None, name: str, max_bytes: int) -> NDArray[np.uint64]:
    """The tokens of all parts, one after the other; ``offsets`` say which row a value is of."""
    sizes = [len(values) if index is None else len(index) for values, index in parts]
    out = np.empty(sum(sizes), dtype=np.uint64)
    work: list[tuple[Kernel, int]] = []
    dictionaries: dict[tuple[int, ...], tuple[NDArray[np.uint64], int]] = {}
    at = 0
    for (values, index), size in zip(parts, sizes, strict=True):
        if size:
            work.append((_kernel(values, index, out[at : at + size], len(out), dictionaries), size))
        at += size
    if _run(work) > max_bytes:
        _raise_if_too_long(parts, offsets, name, max_bytes)
    return out


def _run(work: Sequence[tuple[Kernel, int]]) -> int:
    """Run kernels over their whole sizes, on all cores when that pays; the greatest result."""
    total = sum(size for _, size in work)
    if total <= BLOCK or usable_cores() == 1:
        return max((kernel(0, size) for kernel, size in work), default=0)
    block = max(BLOCK, total // (8 * usable_cores()))
    pieces = [(kernel, at, min(at + block, size)) for kernel, size in work for at in range(0, size, block)]
    return max(pool().map(lambda piece: piece[0](piece[1], piece[2]), pieces))


def _kernel(
    values: pa.Array,
    index: NDArray[np.int64] | None,
    out: NDArray[np.uint64],
    total: int,
    dictionaries: dict[tuple[int, ...], tuple[NDArray[np.uint64], int]],
) -> Kernel:
    """The work of filling ``out``; dictionaries of the column (of ``total`` values) are hashed here, once each."""
    values = _plain(values)
    kind = values.type
    if pa.types.is_null(kind):
        out.fill(_MISSING)
        return lambda start, stop: 0
    validity, shift = _validity(values)
    chosen = _NO_INDEX if index is None else index
    if pa.types.is_dictionary(kind):
        dictionary = values.dictionary
        key = (len(dictionary), dictionary.offset, *(b.address for b in dictionary.buffers() if b is not None))
        if key not in dictionaries:
            if len(dictionary) > 2 * total:  # a slice that uses little of its dictionary
                return _kernel(_plain(dictionary).take(values.indices), index, out, total, dictionaries)
            tokens = np.empty(len(dictionary), dtype=np.uint64)
            kernel = _kernel(dictionary, None, tokens, total, dictionaries)
            dictionaries[key] = tokens, _run([(kernel, len(tokens))])
        tokens, longest = dictionaries[key]
        codes = _numbers(values.indices)
        return lambda start, stop: max(longest, _gather(tokens, codes, validity, shift, chosen, out, start, stop))
    if _is_bytes(kind):
        data, bounds = _view(values.buffers()[-1], np.uint8), _bounds(values)
        return lambda start, stop: _strings(data, bounds, validity, shift, chosen, out, start, stop)
    numbers = _numbers(values)
    return lambda start, stop: _integers(numbers, validity, shift, chosen, out, start, stop)


def _elements(chunk: pa.Array, max_length: int | None, offsets: NDArray[np.int64]) -> Part:
    """A list chunk's values in order; fills ``offsets`` ``[rows + 1]`` from their first entry on."""
    bounds = _bounds(chunk)
    lengths = np.diff(bounds)
    if chunk.null_count == 0 and (max_length is None or lengths.max(initial=0) <= max_length):
        offsets[1:] = offsets[0] + (bounds[1:] - bounds[0])
        return chunk.values.slice(int(bounds[0]), int(bounds[-1] - bounds[0])), None
    missing = chunk.is_null().to_numpy(zero_copy_only=False)
    if max_length is not None:
        lengths = np.minimum(lengths, max_length)
    lengths[missing] = 1
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    offsets[1:] = offsets[0] + starts + lengths
    index = np.arange(lengths.sum(dtype=np.int64)) + np.repeat(bounds[:-1] - starts, lengths)
    index[starts[missing]] = -1
    return chunk.values, index


def _raise_if_too_long(parts: Sequence[Part], offsets: NDArray[np.int64] | None, name: str, max_bytes: int) -> None:
    """Name the first value that is too long; returns when only unused values of a dictionary are, or cut-off ones."""
    at = 0
    for values, index in parts:
        values = _plain(values)
        if pa.types.is_dictionary(values.type):
            values = _plain(values.dictionary).take(values.indices)
        lengths = pc.binary_length(values).fill_null(0).to_numpy()
        if index is not None:
            lengths = np.where(index < 0, 0, lengths[index])
        too_long = np.flatnonzero(lengths > max_bytes)
        if len(too_long):
            position = at + int(too_long[0])
            row = position if offsets is None else int(np.searchsorted(offsets, position, side="right")) - 1
            raise DataError(
                f"column {name!r}, row {row:,}",
                expected=f"a value of at most {max_bytes:,} bytes",
                found=f"{int(lengths[too_long[0]]):,} bytes",
                do="leave the column out if it is free text, or shorten its values when the log is written",
            )
        at += len(lengths)


def _storage_type(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _plain(values: pa.Array) -> pa.Array:
    """Extension types as what they store; booleans and views in the layout the kernels read."""
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.storage
    if pa.types.is_boolean(values.type):
        return values.cast(pa.uint8())
    if pa.types.is_string_view(values.type) or pa.types.is_binary_view(values.type):
        return values.cast(pa.large_binary())
    return values


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return kind in _BYTES or pa.types.is_fixed_size_binary(kind)


def _view(buffer: pa.Buffer | None, dtype: Any, start: int = 0, count: int = -1) -> NDArray[Any]:
    """A buffer as a read-only array (one type of array for the kernels, whoever owns the memory)."""
    if buffer is None or buffer.size == 0:
        return _NO_BYTES.view(dtype)
    view = np.frombuffer(buffer, dtype=dtype, offset=start * np.dtype(dtype).itemsize, count=count)
    view.flags.writeable = False
    return view


def _numbers(values: pa.Array) -> NDArray[Any]:
    return _view(values.buffers()[1], values.type.to_pandas_dtype(), values.offset, len(values))


def _bounds(values: pa.Array) -> NDArray[Any]:
    """Where each value starts in the data or child array, and the last one's end: ``[len + 1]``."""
    kind = values.type
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_fixed_size_list(kind):
        width = kind.byte_width if pa.types.is_fixed_size_binary(kind) else kind.list_size
        return np.arange(values.offset, values.offset + len(values) + 1, dtype=np.int64) * width
    if len(values) == 0:
        return np.zeros(1, dtype=np.int64)  # Arrow allows an empty offsets buffer then
    dtype = np.int64 if str(kind).startswith("large_") else np.int32
    return _view(values.buffers()[1], dtype, values.offset, len(values) + 1)


def _validity(values: pa.Array) -> tuple[NDArray[np.uint8], int]:
    if values.null_count == 0:
        return _NO_BYTES, 0
    return _view(values.buffers()[0], np.uint8), values.offset


@compiled(forceinline=True)
def _valid(validity, bit):  # type: ignore[no-untyped-def]
    return len(validity) == 0 or (validity[bit >> 3] >> (bit & 7)) & 1 != 0


@compiled(nogil=True)
def _integers(numbers, validity, shift, index, out, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        at = i if len(index) == 0 else index[i]
        out[i] = splitmix64_scalar(np.int64(numbers[at])) if at >= 0 and _valid(validity, at + shift) else _MISSING
    return 0


@compiled(nogil=True)
def _gather(tokens, codes, validity, shift, index, out, start, stop):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        at = i if len(index) == 0 else index[i]
        out[i] = tokens[codes[at]] if at >= 0 and _valid(validity, at + shift) else _MISSING
    return 0


@compiled(nogil=True)
def _strings(data, bounds, validity, shift, index, out, start, stop):  # type: ignore[no-untyped-def]
    base = np.uint64(data.ctypes.data)
    readable = np.uint64(len(data))
    longest = np.int64(0)
    for i in range(start, stop):
        at = i if len(index) == 0 else index[i]
        if at < 0 or not _valid(validity, at + shift):
            out[i] = _MISSING
            continue
        begin, end = np.uint64(bounds[at]), np.uint64(bounds[at + 1])
        longest = max(longest, np.int64(end - begin))
        if end + _PADDING <= readable:
            out[i] = xxh64_padded_at(base + begin, end - begin, _SEED)
        else:
            out[i] = xxh64_at(base + begin, end - begin, _SEED)
    return longest
