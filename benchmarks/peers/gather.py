"""The machine's own limit of a lookup: copy rows whose numbers are known already, on all cores.

Made of what embstore's kernel is made of (torch's own threads, copies in vectors, rows prefetched ``ahead`` places
before they are copied; 0: not at all), without hash and layout, beside ``torch.index_select``. The fastest is the
limit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embstore import threads
from embstore.hashing import compiled
from embstore.kernels import rows
from embstore.kernels.native import claim, prefetch_row, run_in_team

CHUNK = 4096  # rows a thread takes at a time

Gather = Callable[[Tensor, Tensor, Tensor], None]


@compiled(forceinline=True)
def _copy_rows(dim, table, rows_T, out, ahead, counter):  # type: ignore[no-untyped-def]
    row_bytes = np.uint64(4 * dim)
    while True:
        start = claim(counter) * CHUNK
        stop = min(start + CHUNK, len(rows_T))
        if start >= stop:
            return
        for t in range(start, min(start + ahead, stop)):
            prefetch_row(table, rows_T[t], 4 * dim)
        for t in range(start, stop):
            if 0 < ahead < stop - t:
                prefetch_row(table, rows_T[t + ahead], 4 * dim)
            rows.copy(out + np.uint64(t) * row_bytes, table + np.uint64(rows_T[t]) * row_bytes, dim)


@cache
def _pass(dim: int) -> Any:
    @compiled(nogil=True)
    def copy_rows(team, threads, failed, args):  # type: ignore[no-untyped-def]
        run_in_team(team, threads, failed, _copy_rows, dim, args)

    return copy_rows


def gather(dim: int, ahead: int) -> Gather:
    """A gather ``(table_ND, rows_T, out_TD)`` into memory that is there, with torch's number of threads."""
    run = _pass(dim)

    def into(table_ND: Tensor, rows_T: Tensor, out_TD: Tensor) -> None:
        counter = np.zeros(2, dtype=np.int64)
        args = np.uint64(table_ND.data_ptr()), rows_T.numpy(), np.uint64(out_TD.data_ptr()), ahead, counter
        run(np.uint64(threads.team()), torch.get_num_threads(), np.uint64(counter.ctypes.data + 8), args)

    return into


def contenders(dim: int) -> dict[str, Gather]:
    """By name, all that may be the fastest on some machine."""

    def index_select(table_ND: Tensor, rows_T: Tensor, out_TD: Tensor) -> None:
        torch.index_select(table_ND, 0, rows_T, out=out_TD)

    ours = {f"gather: prefetched {ahead} ahead": gather(dim, ahead) for ahead in (0, 16, 64)}
    return {"gather: torch.index_select": index_select, **ours}
