"""Alias tables: draws by weight in the time of two memory reads (Walker 1977; Vose 1991 makes them in linear time).

    weights  6  1  1      keep   1.   .375  .375      a place is drawn evenly, then kept with this probability;
                          other  0    0     0         if not, it's the other's

Suffixes: N rows, E entries of all rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.hashing import compiled, mulhi64_scalar

_LOW24, _UNIT24 = np.uint64(0xFFFFFF), np.float32(2.0**-24)


def alias_rows(
    indptr_N: NDArray[np.int64], weight_E: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The tables of the rows of a matrix.

    ``keep`` is rounded to float32: an entry's probability is right to 2^-24, but one whose share of its row is below
    some 1e-45 of an even one is never drawn.

    Args:
        indptr_N: int64 ``[N + 1]``, where each row begins.
        weight_E: finite, 0 or more, their sum above 0 in each row that isn't empty.

    Returns:
        How likely each entry keeps a draw, float32 ``[E]`` in [0, 1], and who has it otherwise, int32 ``[E]``, places
        within the row.

    >>> alias_rows(np.array([0, 3]), np.array([6.0, 1.0, 1.0]))
    (array([1.   , 0.375, 0.375], dtype=float32), array([0, 0, 0], dtype=int32))
    """
    keep_E = np.empty(len(weight_E), dtype=np.float32)
    other_E = np.empty(len(weight_E), dtype=np.int32)
    _fill(indptr_N, weight_E, keep_E, other_E)
    return keep_E, other_E


@compiled(forceinline=True)
def drawn_by(bits, count, keep, other):  # type: ignore[no-untyped-def]
    """The number that 64 random bits draw from the table of one row of ``count`` (uint64) entries."""
    number = np.int32(mulhi64_scalar(bits, count))
    return number if np.float32(bits & _LOW24) * _UNIT24 < keep[number] else other[number]


@compiled(nogil=True)
def _fill(indptr_N, weight_E, keep_E, other_E):  # type: ignore[no-untyped-def]
    widest = 0
    for n in range(len(indptr_N) - 1):
        widest = max(widest, indptr_N[n + 1] - indptr_N[n])
    scaled, small, large = np.empty(widest), np.empty(widest, np.int32), np.empty(widest, np.int32)
    for n in range(len(indptr_N) - 1):
        begin, degree = indptr_N[n], indptr_N[n + 1] - indptr_N[n]
        total = 0.0
        for e in range(degree):
            total += weight_E[begin + e]
        smalls = larges = 0
        for e in range(degree):
            scaled[e] = weight_E[begin + e] / total * degree
            if scaled[e] < 1.0:
                small[smalls] = e
                smalls += 1
            else:
                large[larges] = e
                larges += 1
        while smalls > 0 and larges > 0:
            smalls -= 1
            low, high = small[smalls], large[larges - 1]
            keep_E[begin + low], other_E[begin + low] = scaled[low], high
            scaled[high] -= 1.0 - scaled[low]
            if scaled[high] < 1.0:
                larges -= 1
                small[smalls] = high
                smalls += 1
        for e in range(smalls):  # what rounding has left: each is 1 but for it
            keep_E[begin + small[e]], other_E[begin + small[e]] = 1.0, small[e]
        for e in range(larges):
            keep_E[begin + large[e]], other_E[begin + large[e]] = 1.0, large[e]
