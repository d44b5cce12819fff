"""The compiled lookup: tokens -> rows -> pooled output, and the hits sorted coarsely for the update.

A *hit* is one token under one lookup: it reads one row, and in the backward pass adds to one row's gradient. Hits are
numbered by chunk, whatever the number of threads, and within a chunk as the tokens lie:

    chunk   some batch rows, one thread's at a time
    hit     | chunk 0: lookup 0 of all its batch rows, lookup 1 (lists: several hits a row), ... | chunk 1: ...

Per chunk, first the rows of all hits are found; then they are read, each prefetched some hits before, so that the
memory's latency is paid once and not per row.

For the update, the hits of each chunk are sorted by *part*, the upper bits of the row, so that all hits of a row lie in
one part of each chunk (``entries``: local row << 32 | slot, where slot = batch row * lookups + lookup).

Suffixes: L lookups, F features, B batch rows, N tokens, T hits, H hits of a chunk, C chunks, P parts.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.hashing import compiled, fill_rows
from embstore.kernels import rows
from embstore.kernels.known import rank_tokens
from embstore.kernels.native import claim, keep_alive, prefetch_row, run_in_team, widen

_U32 = np.uint64(32)


class Input(NamedTuple):
    """A batch's tokens.

    Args:
        values_N: int64 tokens, feature by feature.
        start_F: int64, where each feature's tokens start in ``values_N``.
        offsets: int64, the offsets of all list features, one after the other; empty when there are none.
        offsets_at_F: int64, where each feature's offsets start in ``offsets``; -1 for one value a row.
        rows: B.
    """

    values_N: NDArray[np.int64]
    start_F: NDArray[np.int64]
    offsets: NDArray[np.int64]
    offsets_at_F: NDArray[np.int64]
    rows: int


class Hits(NamedTuple):
    """What the update needs to know of the lookups.

    Args:
        entries_T: uint64, chunk by chunk, within a chunk by part.
        scale_T: float32, what each entry's gradient is multiplied by; empty when all are 1.
        bounds_CP: int64 ``[C, P + 1]``: chunk c's entries of part p are ``bounds[c, p]`` to ``bounds[c, p + 1]``.
        shift: a row's part is ``row >> shift``.
        chunk_rows: batch rows of a chunk.
    """

    entries_T: NDArray[np.uint64]
    scale_T: NDArray[np.float32]
    bounds_CP: NDArray[np.int64]
    shift: int
    chunk_rows: int


class Memory(NamedTuple):
    """Where the table lies, as numbers: addresses are uint64, and whoever gives them keeps the tensors alive.

    Args:
        weight: address of the rows, float32 or ``narrow``.
        dim: D.
        row_bytes: of a row.
        narrow: 16 bits a number: float16 where ``half``, else bfloat16.
        one, two: addresses of the optimizer's tensors, float32.
        one_width, two_width: their numbers a row; 0 where it has none.
        touched: address of a byte a row, set to 1 when it is updated; 0 for none.
        first: number of its first row, of which stochastic rounding makes its random numbers.
    """

    weight: np.uint64
    dim: int
    row_bytes: int
    narrow: bool
    half: bool
    one: np.uint64
    one_width: int
    two: np.uint64
    two_width: int
    touched: np.uint64
    first: int


@compiled(forceinline=True)
def first_hit(plan, batch, b):  # type: ignore[no-untyped-def]
    """The number of hits before batch row ``b``."""
    offsets, offsets_at_F = batch.offsets, batch.offsets_at_F
    if len(offsets) == 0:
        return b * len(plan.feature_L)
    total = np.int64(0)
    for feature in plan.feature_L:
        at = offsets_at_F[feature]
        total += b if at < 0 else offsets[at + b]
    return total


@compiled(nogil=True)
def _find_rows(plan, index, batch, start, stop, row_H):  # type: ignore[no-untyped-def]
    """The table rows of a chunk's hits."""
    # Arrays are taken out of their tuples before loops: numba counts a reference each time one is taken.
    offsets, offsets_at_F, feature_L = batch.offsets, batch.offsets_at_F, plan.feature_L
    hit = 0
    for lookup in range(len(feature_L)):
        feature, base, size = feature_L[lookup], plan.base_L[lookup], plan.size_L[lookup]
        at = offsets_at_F[feature]
        begin, end = (start, stop) if at < 0 else (offsets[at + start], offsets[at + stop])
        token_N = batch.values_N[batch.start_F[feature] + begin : batch.start_F[feature] + end]
        row_N = row_H[hit : hit + end - begin]
        if plan.given_L[lookup]:
            for n in range(len(token_N)):
                row_N[n] = base + token_N[n]
        elif plan.exact_L[lookup]:
            rank_tokens(token_N, index, feature, size - 1, base, row_N)
        else:
            fill_rows(token_N, plan.salt_L[lookup], np.uint64(size), base, row_N)
        hit += end - begin


@compiled(forceinline=True)
def _read_chunk(lookups, start, stop, row_H, table, ahead, out):  # type: ignore[no-untyped-def]
    """Read a chunk's rows, one a slot, and write its output to address ``out``, batch row by batch row."""
    count, dim, row_bytes = stop - start, table.dim, table.row_bytes
    before = min(max(1, ahead // max(lookups, 1)), count)  # batch rows by which table rows are prefetched
    for lookup in range(lookups):
        for b in range(before):
            prefetch_row(table.weight, row_H[lookup * count + b], row_bytes)
    to = out + np.uint64(start) * np.uint64(4 * lookups * dim)
    for b in range(count):
        hit = np.uint64(b)
        for _ in range(lookups):
            if b + before < count:
                prefetch_row(table.weight, row_H[hit + np.uint64(before)], row_bytes)
            row = table.weight + np.uint64(row_H[hit]) * np.uint64(row_bytes)
            if table.narrow:
                widen(to, row, table.half, dim)
            else:
                rows.copy(to, row, dim)
            to += np.uint64(4 * dim)
            hit += np.uint64(count)


@compiled(forceinline=True)
def _pool_chunk(plan, batch, start, stop, row_H, table, ahead, out):  # type: ignore[no-untyped-def]
    """The same with lists, summed: lookup by lookup."""
    offsets, offsets_at_F, feature_L, mean_L = batch.offsets, batch.offsets_at_F, plan.feature_L, plan.mean_L
    lookups, dim, row_bytes, narrow = len(mean_L), table.dim, table.row_bytes, table.narrow
    sums_D, wide_D = np.zeros(dim, dtype=np.float64), np.empty(dim, dtype=np.float32)
    sums, wide = np.uint64(sums_D.ctypes.data), np.uint64(wide_D.ctypes.data)
    for t in range(min(ahead, len(row_H))):
        prefetch_row(table.weight, row_H[t], row_bytes)
    hit = 0
    for lookup in range(lookups):
        at, mean = offsets_at_F[feature_L[lookup]], mean_L[lookup]
        for b in range(start, stop):
            to = out + np.uint64(b * lookups + lookup) * np.uint64(4 * dim)
            length = 1 if at < 0 else offsets[at + b + 1] - offsets[at + b]
            for t in range(hit + ahead, min(hit + ahead + length, len(row_H))):
                prefetch_row(table.weight, row_H[t], row_bytes)
            # As double, so that the sum of a list is the same in every kernel and batch, to a rounding.
            scale = np.float64(np.float32(1) / np.float32(length)) if mean and length else 1.0
            if narrow:
                for d in range(dim):
                    sums_D[d] = 0.0
                for t in range(hit, hit + length):
                    row = table.weight + np.uint64(row_H[t]) * np.uint64(row_bytes)
                    widen(wide, row, table.half, dim)
                    rows.add_wide(sums, wide, scale, dim)
                rows.round_wide(to, sums, dim)
            else:
                place = np.uint64(row_H.ctypes.data) + np.uint64(8 * hit)
                rows.sum_rows(to, table.weight, row_bytes, place, length, scale, dim)
            hit += length
    keep_alive(sums_D, wide_D)
    keep_alive(row_H, row_H)


@compiled(nogil=True)
def _sort_chunk(plan, batch, chunk, start, stop, first, row_H, hits):  # type: ignore[no-untyped-def]
    """Sort a chunk's hits, of which the batch's number ``first`` is the first, by part, stably, into ``hits``."""
    offsets, offsets_at_F, feature_L, mean_L = batch.offsets, batch.offsets_at_F, plan.feature_L, plan.mean_L
    entries_T, scale_T, bounds_P, shift = hits.entries_T, hits.scale_T, hits.bounds_CP[chunk], hits.shift
    parts, lookups, scaled = len(bounds_P) - 1, len(mean_L), len(scale_T) > 0
    next_P = np.zeros(parts + 1, dtype=np.int64)
    for row in row_H:
        next_P[np.uint64((row >> shift) + 1)] += 1
    next_P[0] = first
    for p in range(parts):
        next_P[p + 1] += next_P[p]
    bounds_P[:] = next_P
    local, hit, one = (np.int64(1) << shift) - 1, 0, np.float32(1)
    for lookup in range(lookups):
        at, slot = offsets_at_F[feature_L[lookup]], np.uint64(start * lookups + lookup)
        if at < 0:
            for row in row_H[hit : hit + stop - start]:
                to = _next(next_P, row >> shift)
                entries_T[to] = (np.uint64(row & local) << _U32) | slot
                if scaled:
                    scale_T[to] = one
                slot += np.uint64(lookups)
            hit += stop - start
            continue
        for b in range(start, stop):
            length = offsets[at + b + 1] - offsets[at + b]
            for row in row_H[hit : hit + length]:
                to = _next(next_P, row >> shift)
                entries_T[to] = (np.uint64(row & local) << _U32) | slot
                if scaled:
                    scale_T[to] = one / np.float32(length) if mean_L[lookup] else one
            hit += length
            slot += np.uint64(lookups)


@compiled(forceinline=True)
def _next(next_P, part):  # type: ignore[no-untyped-def]
    """The place of a part's next entry, unsigned: an index that can't be negative takes no looking at."""
    to = np.uint64(next_P[np.uint64(part)])
    next_P[np.uint64(part)] = to + np.uint64(1)
    return to


@compiled(forceinline=True)
def _claim_chunk(batch, hits, counter):  # type: ignore[no-untyped-def]
    """The next chunk and its batch rows, from ``start`` to before ``stop``; ``start`` is not less when none is left."""
    chunk = claim(counter)
    return chunk, chunk * hits.chunk_rows, min((chunk + 1) * hits.chunk_rows, batch.rows)


@compiled(nogil=True)
def _find(_, plan, index, batch, rows_T, hits, counter):  # type: ignore[no-untyped-def]
    while True:
        chunk, start, stop = _claim_chunk(batch, hits, counter)
        if start >= stop:
            return
        first, last = first_hit(plan, batch, start), first_hit(plan, batch, stop)
        _find_rows(plan, index, batch, start, stop, rows_T[first:last])
        _sort_chunk(plan, batch, chunk, start, stop, first, rows_T[first:last], hits)


@compiled(forceinline=True)
def _pool(dim, plan, index, batch, table, ahead, known, rows_T, hits, sort, out, counter):  # type: ignore[no-untyped-def]
    memory = of_dim(table, dim)
    found_H = np.empty(0, dtype=np.int64)
    while True:
        chunk, start, stop = _claim_chunk(batch, hits, counter)
        if start >= stop:
            return
        first, last = first_hit(plan, batch, start), first_hit(plan, batch, stop)
        if known:
            row_H = rows_T[first:last]
        else:
            if last - first > len(found_H):
                found_H = np.empty(last - first, dtype=np.int64)
            row_H = found_H[: last - first]
            _find_rows(plan, index, batch, start, stop, row_H)
        if len(batch.offsets) == 0:
            _read_chunk(len(plan.mean_L), start, stop, row_H, memory, ahead, out)
        else:
            _pool_chunk(plan, batch, start, stop, row_H, memory, ahead, out)
        if sort:
            _sort_chunk(plan, batch, chunk, start, stop, first, row_H, hits)


@compiled(forceinline=True)
def of_dim(table, dim):  # type: ignore[no-untyped-def]
    """A float32 table with its dim spelled out, unless 0: where that is a constant, loops over rows are unrolled."""
    if dim == 0:
        return table
    state = table.one, table.one_width, table.two, table.two_width
    return Memory(table.weight, dim, 4 * dim, False, False, *state, table.touched, table.first)


@compiled(nogil=True)
def find(team, threads, failed, args):  # type: ignore[no-untyped-def]
    """The pass that finds the rows of all hits and sorts the hits by part.

    Args:
        team, threads, failed: as ``native.run_in_team`` takes them.
        args: plan, index, batch; rows_T int64, filled; hits, filled; the counter the threads share.
    """
    run_in_team(team, threads, failed, _find, 0, args)


@cache
def pool_of(dim: int) -> Any:
    """The pass that writes the output, compiled for float32 tables of one dim, or for all (0); called as ``find``.

    Its args: plan, index, batch; table, the ``Memory``; by how many hits a row is prefetched before it is read; whether
    the rows are known already, and then all of them, rows_T int64; hits, and whether to sort them for the update;
    address of the output, float32 ``[B, W]``; the counter the threads share.
    """

    @compiled(nogil=True)
    def pool(team, threads, failed, args):  # type: ignore[no-untyped-def]
        run_in_team(team, threads, failed, _pool, dim, args)

    return pool
