"""Versions whose every row is a known function of the row and the version's number, so that any answer can be checked.

Version 0 is whole; version k is a delta of k - 1 that changes each row r with r % 100 == k % 100. A row's numbers are
integers below 2**23, which float32 holds exactly: those of ``base`` plus 2**16 times the version that changed it last.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

EVERY = 100
_STEP = 65_536


def base(rows: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
    """Version 0's numbers of rows, ``[*rows.shape, dim]``; the first two tell which row it is."""
    numbers = (rows[..., None] * 31 + np.arange(dim) * 7) % _STEP
    numbers[..., 0], numbers[..., 1] = rows % _STEP, rows // _STEP
    return numbers.astype(np.float32)


def rows_of(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    """Which rows these numbers of version 0 are."""
    return vectors[..., 0].astype(np.int64) + _STEP * vectors[..., 1].astype(np.int64)


def added(rows: NDArray[np.int64], number: int) -> NDArray[np.float32]:
    """What version ``number`` has more than version 0 in every number of a row."""
    last = number - (number - rows) % EVERY
    return (_STEP * np.maximum(last, 0)).astype(np.float32)


def changed(rows: int, number: int) -> NDArray[np.int64]:
    """The rows, of so many, that version ``number`` changes."""
    return np.arange(number % EVERY, rows, EVERY)


class Numbered:
    """What answers must be.

    Args:
        path: file of the versions, ``ID NUMBER`` a line; one is there before the version can be asked for.
        base_QND: of version 0, by request.
    """

    def __init__(self, path: Path, base_QND: NDArray[np.float32]) -> None:
        self.path, self.base_QND = path, base_QND
        self.rows_QN = rows_of(base_QND)
        self._numbers: dict[str, int] = {}

    def holds(self, request: int, vectors: NDArray[np.float32], version: str) -> bool:
        """Whether an answer is, bit by bit, that of the version it names."""
        if version not in self._numbers:
            lines = self.path.read_text().splitlines()
            self._numbers = {of: int(number) for of, number in (line.split() for line in lines)}
        if version not in self._numbers:
            return False
        more = added(self.rows_QN[request], self._numbers[version])
        return np.array_equal(vectors, self.base_QND[request] + more[:, None])
