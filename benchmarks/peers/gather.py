"""The machine's own limit of a lookup: copy rows whose numbers are known already, with both threads.

Numba loops of three kinds, split over threads that don't hold the interpreter's lock:

    plain       row by row
    ahead       the row ``distance`` places on is prefetched while this one is copied
    batches     all rows of a small batch are prefetched, then copied
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

LINE = 64  # bytes of a cache line

Gather = Callable[[Tensor, Tensor, Tensor], None]


@intrinsic
def _prefetch(typingctx, address):  # type: ignore[no-untyped-def]
    """Ask for the cache line at an address: read, keep in all levels."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        int32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, int32, int32, int32])
        )
        where = builder.inttoptr(args[0], pointer)
        builder.call(prefetch, [where, int32(0), int32(3), int32(1)])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@cache
def _loop(kind: str, dim: int, distance: int) -> Any:
    """``loop(table_ND, rows_T, out_TD, start, stop)`` compiled for one dim."""
    lines = -(-dim * 4 // LINE)
    width = np.uint64(dim * 4)

    @numba.njit(inline="always")
    def fetch(base, row):  # type: ignore[no-untyped-def]
        for line in range(lines):
            _prefetch(base + np.uint64(row) * width + np.uint64(line * LINE))

    @numba.njit(inline="always")
    def copy(table_ND, rows_T, out_TD, i):  # type: ignore[no-untyped-def]
        row = rows_T[i]
        for d in range(dim):
            out_TD[i, d] = table_ND[row, d]

    def plain(table_ND, rows_T, out_TD, start, stop):  # type: ignore[no-untyped-def]
        for i in range(start, stop):
            copy(table_ND, rows_T, out_TD, i)

    def ahead(table_ND, rows_T, out_TD, start, stop):  # type: ignore[no-untyped-def]
        base = np.uint64(table_ND.ctypes.data)
        for i in range(start, min(start + distance, stop)):
            fetch(base, rows_T[i])
        for i in range(start, stop - distance):
            fetch(base, rows_T[i + distance])
            copy(table_ND, rows_T, out_TD, i)
        for i in range(max(start, stop - distance), stop):
            copy(table_ND, rows_T, out_TD, i)

    def batches(table_ND, rows_T, out_TD, start, stop):  # type: ignore[no-untyped-def]
        base = np.uint64(table_ND.ctypes.data)
        for first in range(start, stop, distance):
            last = min(first + distance, stop)
            for i in range(first, last):
                fetch(base, rows_T[i])
            for i in range(first, last):
                copy(table_ND, rows_T, out_TD, i)

    python = {"plain": plain, "ahead": ahead, "batches": batches}[kind]
    row_array = types.Array(types.int64, 1, "C")
    float_array = types.Array(types.float32, 2, "C")
    signature = types.void(float_array, row_array, float_array, types.int64, types.int64)
    return numba.njit(signature, nogil=True, error_model="numpy")(python)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gather")


def gather(kind: str, dim: int, distance: int = 0) -> Gather:
    """A gather ``(table_ND, rows_T, out_TD)`` into memory that is there, with torch's number of threads."""
    loop = _loop(kind, dim, distance)
    threads = torch.get_num_threads()

    def run(table_ND: Tensor, rows_T: Tensor, out_TD: Tensor) -> None:
        arrays = table_ND.numpy(), rows_T.numpy(), out_TD.numpy()
        bounds = [len(rows_T) * i // threads for i in range(threads + 1)]
        # The caller takes the last part itself.
        rest = [_pool(threads).submit(loop, *arrays, bounds[i], bounds[i + 1]) for i in range(threads - 1)]
        loop(*arrays, bounds[-2], bounds[-1])
        for part in rest:
            part.result()

    return run


def contenders(dim: int) -> dict[str, Gather]:
    """By name, all that may be the fastest on some machine."""

    def index_select(table_ND: Tensor, rows_T: Tensor, out_TD: Tensor) -> None:
        torch.index_select(table_ND, 0, rows_T, out=out_TD)

    return {
        "gather: torch.index_select": index_select,
        "gather: numba": gather("plain", dim),
        **{f"gather: numba, prefetch {n} ahead": gather("ahead", dim, n) for n in (16, 32, 64)},
        **{f"gather: numba, prefetched batches of {n}": gather("batches", dim, n) for n in (64,)},
    }
