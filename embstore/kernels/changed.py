"""Rows of a table that lie elsewhere: each is found by one probe, however many changes came one after the other.

    row  ──hash──>  row | where its numbers lie     24 to 64 bytes for each changed row

Suffixes: N rows asked for, R rows of a change, K places of the hash table, D dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.hashing import compiled, splitmix64_scalar
from embstore.kernels import rows


class ChangedRows:
    """The last change of every row that has changed.

    Args:
        changes: the oldest first: row numbers, int64 ``[R]``, and their numbers ``[R, D]``, which stay where they are.
        num_rows: of the table.

    ``row_K`` has the rows, -1 where a place is free, ``address_K`` where their numbers lie.
    """

    def __init__(self, changes: Sequence[tuple[NDArray[np.int64], Tensor]], num_rows: int) -> None:
        self._changes = changes
        self.row_bytes = changes[0][1].shape[1] * changes[0][1].element_size()
        most = min(sum(len(index_R) for index_R, _ in changes), num_rows)
        places = 1 << max(1, (2 * most - 1).bit_length())
        self.row_K, self.address_K = np.full(places, -1, dtype=np.int64), np.empty(places, dtype=np.uint64)
        for index_R, rows_RD in reversed(changes):
            address = np.uint64(rows_RD.data_ptr())
            _insert(index_R, address, np.uint64(self.row_bytes), self.row_K, self.address_K)

    @staticmethod
    def serves(dim: int, dtype: torch.dtype) -> bool:
        """Whether rows of these can be copied word by word."""
        return dim * dtype.itemsize % 4 == 0

    def put(self, rows_N: Tensor, into_ND: Tensor) -> None:
        """Those of some rows that have changed, each to its place; ``into_ND`` is contiguous."""
        into = np.uint64(into_ND.data_ptr())
        _put(rows_N.numpy(), self.row_K, self.address_K, np.uint64(self.row_bytes), into)


@compiled(forceinline=True)
def find_row(row, row_K):  # type: ignore[no-untyped-def]
    """The place of a row; -1 where it has not changed."""
    mask = np.int64(len(row_K) - 1)
    place = np.int64(splitmix64_scalar(np.uint64(row))) & mask
    while row_K[place] >= 0 and row_K[place] != row:
        place = (place + 1) & mask
    return place if row_K[place] >= 0 else np.int64(-1)


@compiled(nogil=True)
def _insert(index_R, address, row_bytes, row_K, address_K):  # type: ignore[no-untyped-def]
    """Put rows into the hash table that are not there yet."""
    mask = np.int64(len(row_K) - 1)
    for r in range(len(index_R)):
        place = np.int64(splitmix64_scalar(np.uint64(index_R[r]))) & mask
        while row_K[place] >= 0 and row_K[place] != index_R[r]:
            place = (place + 1) & mask
        if row_K[place] < 0:
            row_K[place] = index_R[r]
            address_K[place] = address + np.uint64(r) * row_bytes


@compiled(nogil=True)
def _put(row_N, row_K, address_K, row_bytes, into):  # type: ignore[no-untyped-def]
    words = np.int64(row_bytes) // 4
    for n in range(len(row_N)):
        place = find_row(row_N[n], row_K)
        if place >= 0:
            rows.copy(into + np.uint64(n) * row_bytes, address_K[place], words)
