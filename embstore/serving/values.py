"""Raw values of a feature, as callers have them -> its tokens.

    in process    lists, Arrow                     what ``Version.lookup`` takes
    protocol      user          BYTES or INT64     a value a row, [rows] or [rows, 1]
                  tags          [rows, k], or [values] with
                  tags.lengths  INT32 or INT64     [rows]; -1: the list itself is missing
                  user.missing  BOOL               as the values; those that are true are missing (JSON: null)

Tokens are the same, bit for bit, whichever way the values came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore import transforms
from embstore.column_types import stored_type
from embstore.encoding import column_of
from embstore.errors import DataError, RequestError, SchemaError
from embstore.hashing import MISSING_TOKEN, compiled, splitmix64, xxh64_at, xxh64_padded_at
from embstore.schema import Feature
from embstore.serving.protocol import BYTES, NUMBERS, Tensor
from embstore.store.values import check_values, element_type
from embstore.tokens import Tokens, token, tokenize

LENGTHS, MISSING = ".lengths", ".missing"
MAX_VALUE_BYTES = 65_536  # as ``tokenize`` has it

_INTEGERS = tuple(name for name, kind in NUMBERS.items() if kind.kind in "iub")
_SEED, _PADDING, _FOUR = np.uint64(0), np.uint64(24), np.uint64(4)
_MAX = np.int64(MAX_VALUE_BYTES)


def tokens_of(values: Any, feature: Feature, trained_on: str | None) -> Tokens:
    """Tokens of values in process.

    Args:
        values: as ``Version.lookup`` takes them.
        trained_on: the log's column type as a manifest has it, or ``None`` where it isn't known.

    Raises:
        SchemaError: values of another type than the feature was trained on.
        DataError: a value that has no token.
    """
    column = column_of(values, feature.name)
    kind = column.type
    while hasattr(kind, "value_type"):  # what is in lists and dictionaries
        kind = kind.value_type
    if not pa.types.is_null(kind):
        check_values(stored_type(kind), feature, trained_on)
    if feature.transform is not None:
        column = transforms.apply_or_keep(column, feature.transform, name=feature.name)
    return tokenize(column, name=feature.name, max_length=feature.max_length, max_bytes=MAX_VALUE_BYTES)


def tensor_tokens(tensors: Mapping[str, Tensor], feature: Feature, trained_on: str | None) -> Tokens:
    """Tokens of the protocol's tensors of a feature.

    Args:
        tensors: has the feature's own, and may have those that go with it.
        trained_on: as for ``tokens_of``.

    Raises:
        RequestError: tensors that don't fit together, or damaged ones.
        SchemaError: values of another type than the feature was trained on.
        DataError: a value that has no token.
    """
    tensor, missing_N = _split(tensors[feature.name], tensors.get(feature.name + MISSING))
    _check_datatype(tensor, feature, trained_on)
    token_N = _text_tokens(tensor) if tensor.datatype == BYTES else _integer_tokens(tensor, feature, missing_N)
    if missing_N is not None:
        token_N[missing_N] = MISSING_TOKEN
    lengths, count = tensors.get(feature.name + LENGTHS), len(token_N)
    if lengths is not None:
        return _listed(token_N, _offsets(lengths, count), lengths.numbers() < 0, feature)
    rows = tensor.shape[0] if tensor.shape else 1  # ``check_size`` has bounded them
    if "list" not in (trained_on or "") and count == rows:
        return Tokens(token_N, None)
    width = count // max(rows, 1)
    return _listed(token_N, np.arange(rows + 1, dtype=np.int64) * width, None, feature)


def _split(tensor: Tensor, missing: Tensor | None) -> tuple[Tensor, NDArray[np.bool_] | None]:
    """A tensor with something in place of what is missing, and which values are; ``None``: none."""
    count = tensor.count()
    if missing is not None:
        if missing.datatype != "BOOL" or missing.count() != count:
            found = f"{missing.datatype} of {missing.count():,}"
            raise missing.wrong("values", f"BOOL, {count:,} as the values", found)
        return tensor, missing.numbers()
    if isinstance(tensor.data, list) and None in tensor.data:
        filler: Any = b"" if tensor.datatype == BYTES else 0
        filled = [filler if value is None else value for value in tensor.data]
        missing_N = np.array([value is None for value in tensor.data])
        return Tensor(tensor.name, tensor.datatype, tensor.shape, filled), missing_N
    return tensor, None


def _integer_tokens(tensor: Tensor, feature: Feature, missing_N: NDArray[np.bool_] | None) -> NDArray[np.uint64]:
    numbers = tensor.numbers()
    if feature.transform is not None:
        present = numbers if missing_N is None else numbers[~missing_N]
        if len(present):
            transforms.check_results(int(present.min()), int(present.max()), feature.transform, name=feature.name)
    return splitmix64(numbers.astype(np.int64).view(np.uint64))


def _text_tokens(tensor: Tensor) -> NDArray[np.uint64]:
    if isinstance(tensor.data, bytes | memoryview):
        return byte_tokens(tensor)
    texts = tensor.texts()
    for value in texts:
        if not isinstance(value, str | bytes):
            raise tensor.wrong("data", "text or null", type(value).__name__)
        if len(value) > MAX_VALUE_BYTES:
            raise _too_long(tensor, len(value))
    return np.array([token(value) for value in texts], dtype=np.uint64)


def byte_tokens(tensor: Tensor) -> NDArray[np.uint64]:
    """Tokens of a raw ``BYTES`` tensor, without making objects of its values.

    Raises:
        RequestError: lengths that lead beyond its data or leave some over.
        DataError: a value that is too long.
    """
    count, data = tensor.count(), np.frombuffer(tensor.data, dtype=np.uint8)  # type: ignore[arg-type]
    if len(data) < 4 * count:
        raise tensor.wrong("data", f"{count:,} values, each with its length", f"{len(data):,} bytes")
    token_N = np.empty(count, dtype=np.uint64)
    done, at = _byte_tokens(data, token_N)
    if done == count and at == len(data):
        return token_N
    if done == count:
        raise tensor.wrong("data", f"{at:,} bytes in {count:,} values", f"{len(data):,}")
    length = int(data[at : at + 4].view("<u4")[0]) if at + 4 <= len(data) else None
    if length is not None and length > MAX_VALUE_BYTES and at + 4 + length <= len(data):
        raise _too_long(tensor, length)
    found = "its end" if length is None else f"a length of {length:,} with {len(data) - at - 4:,} bytes left"
    raise tensor.wrong("data", f"value {done:,} of {count:,}", found)


def _too_long(tensor: Tensor, length: int) -> DataError:
    return DataError(
        f"tensor {tensor.name!r}", expected=f"values of at most {MAX_VALUE_BYTES:,} bytes", found=f"{length:,}"
    )


@compiled(nogil=True)
def _byte_tokens(data, token_N):  # type: ignore[no-untyped-def]
    """How many values were read, and where the next one would start."""
    base, end = np.uint64(data.ctypes.data), np.uint64(len(data))
    at = np.uint64(0)
    for n in range(len(token_N)):
        if at + _FOUR > end:
            return n, np.int64(at)
        length = np.uint64(0)
        for i in range(4):
            length |= np.uint64(data[np.int64(at) + i]) << np.uint64(8 * i)
        start = at + _FOUR
        if np.int64(length) > _MAX or length > end - start:
            return n, np.int64(at)
        if start + length + _PADDING <= end:
            token_N[n] = xxh64_padded_at(base + start, length, _SEED)
        else:
            token_N[n] = xxh64_at(base + start, length, _SEED)
        at = start + length
    return len(token_N), np.int64(at)


def _check_datatype(tensor: Tensor, feature: Feature, trained_on: str | None) -> None:
    """Values of another type than the feature was trained on hash to other rows."""
    if tensor.datatype != BYTES and tensor.datatype not in _INTEGERS:
        expected = "BYTES or INT64"
        raise SchemaError(f"tensor {tensor.name!r} can't be a feature", expected=expected, found=tensor.datatype)
    kind = "int64" if feature.transform is not None else element_type(trained_on or "")
    if not kind or kind == "null":
        return
    integers = kind.startswith(("int", "uint", "bool"))
    if integers != (tensor.datatype != BYTES):
        expected = f"{'INT64' if integers else 'BYTES'}, as it was trained on {feature.transform or trained_on}"
        do = "cast them: other types hash to other rows"
        raise SchemaError(f"tensor {tensor.name!r}", expected=expected, found=tensor.datatype, do=do)


def _offsets(lengths: Tensor, count: int) -> NDArray[np.int64]:
    """Where each list starts in the values, ``[rows + 1]``."""
    if lengths.datatype not in ("INT32", "INT64"):
        raise lengths.wrong("datatype", "INT32 or INT64", lengths.datatype)
    length_B = lengths.numbers().astype(np.int64)
    if len(length_B) and (length_B.min() < -1 or length_B.max() > count):
        raise lengths.wrong("lengths", f"-1 to {count:,}", f"{length_B.min():,} to {length_B.max():,}")
    offsets = np.concatenate([[0], np.cumsum(np.maximum(length_B, 0))])
    if offsets[-1] != count:
        raise lengths.wrong("lengths", f"a sum of {count:,}, as there are values", f"{offsets[-1]:,}")
    return offsets


def _listed(
    token_N: NDArray[np.uint64], offsets: NDArray[np.int64], missing_B: NDArray[np.bool_] | None, feature: Feature
) -> Tokens:
    """Lists cut to the feature's length; a missing list is one missing value."""
    lengths = np.diff(offsets)
    longest = feature.max_length
    cut = longest is not None and bool((lengths > longest).any())
    if not cut and (missing_B is None or not missing_B.any()):
        return Tokens(token_N, offsets)
    starts = offsets[:-1]
    if longest is not None:
        lengths = np.minimum(lengths, longest)
    if missing_B is not None:
        lengths = np.where(missing_B, 1, lengths)
    ends = np.cumsum(lengths)
    index = np.arange(int(ends[-1])) + np.repeat(starts - (ends - lengths), lengths)
    taken = token_N.take(index, mode="clip") if len(token_N) else np.empty(len(index), dtype=np.uint64)
    if missing_B is not None:
        taken[(ends - lengths)[missing_B]] = MISSING_TOKEN
    return Tokens(taken, np.concatenate([[0], ends]))


def check_alike(rows: Mapping[str, int]) -> int:
    """The number of rows that all of some inputs have.

    Raises:
        RequestError: several.
    """
    if len(set(rows.values())) != 1:
        found = ", ".join(f"{name!r} of {count:,}" for name, count in rows.items()) or "none"
        raise RequestError("inputs", expected="as many rows in each", found=found)
    return next(iter(rows.values()))
