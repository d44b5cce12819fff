"""The distinct rows among a batch's hits, and where each hit's row is among them.

Suffixes: T hits, U distinct rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from embstore.hashing import compiled

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@compiled(nogil=True)
def _number(rows_T, places, distinct_U, number_T):  # type: ignore[no-untyped-def]
    """Number the rows in the order of their first hits; how many there are. ``places`` is an empty hash table."""
    bits = 0
    while (1 << bits) < len(places):
        bits += 1
    down, mask, count = np.uint64(64 - bits), np.uint64(len(places) - 1), 0
    for t in range(len(rows_T)):
        row = rows_T[t]
        place = (np.uint64(row) * _MULTIPLIER) >> down
        while places[place] >= 0 and distinct_U[places[place]] != row:
            place = (place + np.uint64(1)) & mask
        if places[place] < 0:
            places[place] = count
            distinct_U[count] = row
            count += 1
        number_T[t] = places[place]
    return count


def distinct(rows_T: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows, each once, and the place of each hit's row among them.

    Args:
        rows_T: int64.

    Returns:
        int64 ``[U]``, on CPU in the order of their first hits, elsewhere ascending; int64 ``[T]``.

    >>> distinct(torch.tensor([7, 3, 7]))
    (tensor([7, 3]), tensor([0, 1, 0]))
    """
    if rows_T.device.type != "cpu":
        return torch.unique(rows_T, return_inverse=True)
    size = 2
    while size < 2 * len(rows_T):
        size *= 2
    distinct_U, number_T = np.empty(len(rows_T), dtype=np.int64), np.empty(len(rows_T), dtype=np.int64)
    count = _number(rows_T.contiguous().numpy(), np.full(size, -1, dtype=np.int64), distinct_U, number_T)
    return torch.from_numpy(distinct_U[:count]), torch.from_numpy(number_T)
