"""Vectors as they come, and as they are kept to be searched. N vectors, D numbers each, B of them at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore.errors import ConfigError, DataError
from embstore.serving.scores import Metric

_LONGEST = 1e18  # products of two such vectors stay far inside float32
_PIECE_NUMBERS = 1 << 22


def floats(numbers: Any, what: str) -> NDArray[Any]:
    """As a matrix of floats that scores can be made of."""
    try:
        array = np.asarray(numbers)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor that NumPy has no dtype for, or on a GPU
        raise ConfigError(what, expected="a matrix of floats in memory", found=str(error)) from error
    if array.ndim != 2 or array.dtype.kind != "f" or array.itemsize > 8 or not array.shape[1]:
        found = f"{array.dtype} {list(array.shape)}"
        raise ConfigError(what, expected="float16, float32 or float64, a row for each", found=found)
    for start, stop in _blocks(array):
        with np.errstate(over="ignore", invalid="ignore"):
            norm_B = np.sqrt(np.einsum("bd,bd->b", *[array[start:stop].astype(np.float64)] * 2))
        wrong = np.flatnonzero(~(norm_B <= _LONGEST))
        if len(wrong):
            found = f"one of length {norm_B[wrong[0]]:g}"
            raise DataError(f"{what}, row {start + wrong[0]:,}", expected=f"length {_LONGEST:g} at most", found=found)
    return array


def as_kept(vectors_ND: NDArray[Any], metric: Metric) -> NDArray[np.float32]:
    """Float32, contiguous, without -0; for cosine of length 1 or 0."""
    kept_ND = np.empty(vectors_ND.shape, dtype=np.float32)
    for start, stop in _blocks(vectors_ND):
        block_BD = vectors_ND[start:stop]
        kept_ND[start:stop] = normalized(block_BD) if metric == "cosine" else block_BD
    kept_ND += np.float32(0)
    return kept_ND


def normalized(vectors_BD: NDArray[Any]) -> NDArray[np.float64]:
    """Of length 1; zero vectors, which have no direction, stay. The greatest number first, lest squares vanish."""
    double_BD: NDArray[np.float64] = vectors_BD.astype(np.float64)
    double_BD /= _or_1(np.abs(double_BD).max(axis=1))
    double_BD /= _or_1(np.sqrt(np.square(double_BD).sum(axis=1)))
    return double_BD


def distinct(vectors_ND: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors without repetition, by first position, and which of them each was."""
    count, width = vectors_ND.shape
    rows = pa.Array.from_buffers(pa.binary(4 * width), count, [None, pa.py_buffer(vectors_ND)])
    codes = rows.dictionary_encode()
    group_N = codes.indices.to_numpy().astype(np.int64)
    if len(codes.dictionary) == count:
        return vectors_ND, group_N
    return vectors_ND[np.unique(group_N, return_index=True)[1]], group_N


def _or_1(scale_B: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(scale_B > 0, scale_B, 1)[:, None]


def _blocks(matrix: NDArray[Any]) -> list[tuple[int, int]]:
    """Rows a piece at a time, so that copies as double stay small."""
    step = max(1, _PIECE_NUMBERS // max(1, matrix.shape[1]))
    return [(start, min(start + step, len(matrix))) for start in range(0, len(matrix), step)]
