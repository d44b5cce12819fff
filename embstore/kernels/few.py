"""Lookups of few values in a table that doesn't move: one compiled call, and nothing of Python's or torch's beside it.

A server looks some hundred values up at a time, and between requests other work takes the caches: every call on the way
then costs microseconds, and all of them together more than the rows. Here what a call needs of plan and table is
arrays, made once.

Suffixes: F features, N tokens of all features, L lookups, B batch rows, W output width, H hits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.errors import KernelError
from embstore.hashing import compiled, fill_rows
from embstore.kernels import rows as words
from embstore.kernels.changed import ChangedRows, find_row
from embstore.kernels.known import KnownIndex, rank_tokens
from embstore.kernels.native import prefetch_row, widen
from embstore.kernels.plan import LookupPlan

MOST = 1 << 18  # numbers of an output; more are for the kernel and its threads
_NO_ROWS, _NO_ADDRESSES = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
_AHEAD = 64  # table rows that are on their way to the cache while one is read


class FewLookup:
    """A plan's lookups in the rows of a table; any number of threads may call it.

    Args:
        plan: without lists in what it is called with.
        weight_ND: float32, float16 or bfloat16, contiguous, on the host; it stays where it is.
        changed: rows that lie elsewhere, in the same dtype.
    """

    def __init__(self, plan: LookupPlan, weight_ND: Tensor, changed: ChangedRows | None = None) -> None:
        arrays, index = plan.arrays, plan.known_index
        self._weight_ND, self._width, self._features = weight_ND, plan.width, len(plan.names)
        self._lookups = arrays.feature_L, arrays.salt_L, arrays.base_L, arrays.size_L, arrays.exact_L
        self._known = index.token_K, index.rank_K, index.start_F, index.mask_F
        narrow, half = weight_ND.element_size() == 2, weight_ND.dtype == torch.float16
        self._changed = (_NO_ROWS, _NO_ADDRESSES) if changed is None else (changed.row_K, changed.address_K)
        self._table = np.uint64(weight_ND.data_ptr()), plan.dim, narrow, half

    def __call__(self, token_N: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
        """The output, ``[rows, W]``.

        Args:
            token_N: ``rows`` of each of the plan's features, one feature after the other.

        Raises:
            KernelError: another number of tokens.
        """
        if len(token_N) != rows * self._features:
            expected = f"{rows:,} tokens for each of {self._features} features"
            raise KernelError("batch", expected=expected, found=f"{len(token_N):,}", do="give all rows of each")
        if not token_N.flags.writeable:
            token_N = token_N.copy()  # it is compiled for such
        out_BW = np.empty((rows, self._width), dtype=np.float32)
        _read(token_N, rows, *self._lookups, *self._known, *self._changed, *self._table, out_BW)
        return out_BW


@compiled(nogil=True)
def _read(  # type: ignore[no-untyped-def]
    token_N,
    rows,
    feature_L,
    salt_L,
    base_L,
    size_L,
    exact_L,
    token_K,
    rank_K,
    start_F,
    mask_F,
    row_K,
    address_K,
    weight,
    dim,
    narrow,
    half,
    out_BW,
):
    lookups = len(feature_L)
    row_H, row_bytes = np.empty(lookups * rows, dtype=np.int64), dim * (2 if narrow else 4)
    for lookup in range(lookups):
        feature = feature_L[lookup]
        token_B = token_N[feature * rows : (feature + 1) * rows]
        row_B = row_H[lookup * rows : (lookup + 1) * rows]
        if exact_L[lookup]:
            index = KnownIndex(token_K, rank_K, start_F, mask_F)
            rank_tokens(token_B, index, feature, size_L[lookup] - 1, base_L[lookup], row_B)
        else:
            fill_rows(token_B, salt_L[lookup], np.uint64(size_L[lookup]), base_L[lookup], row_B)
    for h in range(min(_AHEAD, len(row_H))):
        prefetch_row(weight, row_H[h], row_bytes)
    out, line = np.uint64(out_BW.ctypes.data), np.uint64(4 * lookups * dim)
    h = 0
    for lookup in range(lookups):
        to = out + np.uint64(4 * lookup * dim)
        for _ in range(rows):
            if h + _AHEAD < len(row_H):
                prefetch_row(weight, row_H[h + _AHEAD], row_bytes)
            place = find_row(row_H[h], row_K) if len(row_K) else -1
            row = address_K[place] if place >= 0 else weight + np.uint64(row_H[h]) * np.uint64(row_bytes)
            if narrow:
                widen(to, row, half, dim)
            else:
                words.copy(to, row, dim)
            to += line
            h += 1
