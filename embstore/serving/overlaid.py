"""The rows of a version of deltas, each found by one probe however long the chain.

``Overlays`` finds rows for whoever opens a version, and costs nothing before it is asked. A server asks all the time:
here the last change of every row that has changed lies in one hash table, made when the version is loaded.

    row  ──hash──>  row | where its numbers lie     24 to 64 bytes for each changed row

Suffixes: N rows asked for, R rows of a delta, K places of the hash table, D dim.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from embstore.hashing import compiled, splitmix64_scalar
from embstore.kernels import rows
from embstore.store.table import VersionTable

_FREE = np.int64(-1)


class Overlaid:
    """A table with its changes at hand.

    Args:
        table: of a version; all its buckets are checked.
    """

    def __init__(self, table: VersionTable) -> None:
        self._table, self._row_bytes = table, table.dim * table.dtype.itemsize
        overlays = table.overlays
        changes = [overlays[delta] for delta in reversed(range(len(overlays)))]  # the newest change of a row first
        most = min(sum(len(of.index_R) for of in changes), table.num_rows)
        places = 1 << max(1, (2 * most - 1).bit_length())
        self._row_K, self._address_K = np.full(places, _FREE), np.empty(places, dtype=np.uint64)
        for of in changes:
            address = np.uint64(of.rows_RD.data_ptr())
            _insert(of.index_R.numpy(), address, np.uint64(self._row_bytes), self._row_K, self._address_K)

    @staticmethod
    def serves(table: VersionTable) -> bool:
        """Whether its rows are changed, and can be copied word by word."""
        return len(table.overlays) > 0 and table.dim * table.dtype.itemsize % 4 == 0

    def gather(self, rows_N: Tensor) -> Tensor:
        """``VersionTable.gather``."""
        rows_ND = self._table.stored(rows_N)
        into = np.uint64(rows_ND.data_ptr())
        _lay(rows_N.numpy(), self._row_K, self._address_K, np.uint64(self._row_bytes), into)
        return rows_ND


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
def _lay(row_N, row_K, address_K, row_bytes, into):  # type: ignore[no-untyped-def]
    """Copy those of the rows asked for that have changed to their places."""
    mask, words = np.int64(len(row_K) - 1), np.int64(row_bytes) // 4
    for n in range(len(row_N)):
        place = np.int64(splitmix64_scalar(np.uint64(row_N[n]))) & mask
        while row_K[place] >= 0 and row_K[place] != row_N[n]:
            place = (place + 1) & mask
        if row_K[place] >= 0:
            rows.copy(into + np.uint64(n) * row_bytes, address_K[place], words)
