"""The distinct rows among a batch's hits, and where each hit's row is among them.

Suffixes: T hits, U distinct rows, S shards.
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


@compiled(nogil=True)
def _put_in_order(distinct_U, number_T, block, next_S, place_U, sorted_U):  # type: ignore[no-untyped-def]
    """Order the rows by their block, stably, and number them again; ``next_S`` are zeros, two more than blocks."""
    for u in range(len(distinct_U)):
        place_U[u] = np.uint64(distinct_U[u]) // block
        next_S[place_U[u] + 2] += 1
    for s in range(2, len(next_S)):
        next_S[s] += next_S[s - 1]
    for u in range(len(distinct_U)):
        shard = place_U[u] + 1
        place_U[u] = next_S[shard]
        sorted_U[place_U[u]] = distinct_U[u]
        next_S[shard] += 1
    for t in range(len(number_T)):
        number_T[t] = place_U[number_T[t]]


def distinct(rows_T: Tensor, block: int, blocks: int) -> tuple[Tensor, Tensor]:
    """The distinct rows, each once, and the place of each hit's row among them.

    Args:
        rows_T: int64, less than ``block * blocks``.
        block: rows of a shard: rows of the same one are neighbours.
        blocks: shards.

    Returns:
        int64 ``[U]``, shard by shard, within one on CPU in the order of their first hits, elsewhere ascending; int64
        ``[T]``.

    >>> distinct(torch.tensor([7, 3, 7, 5]), block=6, blocks=2)
    (tensor([3, 5, 7]), tensor([2, 0, 2, 1]))
    """
    if rows_T.device.type != "cpu":
        return torch.unique(rows_T, return_inverse=True)
    size = 2
    while size < 2 * len(rows_T):
        size *= 2
    distinct_U, number_T = np.empty(len(rows_T), dtype=np.int64), np.empty(len(rows_T), dtype=np.int64)
    count = _number(rows_T.contiguous().numpy(), np.full(size, -1, dtype=np.int64), distinct_U, number_T)
    sorted_U, place_U = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    next_S = np.zeros(blocks + 2, dtype=np.int64)
    _put_in_order(distinct_U[:count], number_T, np.uint64(block), next_S, place_U, sorted_U)
    return torch.from_numpy(sorted_U), torch.from_numpy(number_T)
