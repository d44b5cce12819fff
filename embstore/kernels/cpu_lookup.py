"""The compiled lookup: tokens -> rows -> pooled output, and the hits sorted coarsely for the update.

A *hit* is one token under one lookup: it reads one row, and in the backward pass adds to one row's gradient. Hits are
numbered as the output is laid out, whatever the number of threads:

    hit     | batch row 0: lookup 0, lookup 1 (a list: 3 hits), ... | batch row 1: ...
    chunk   some batch rows, one thread's at a time

Per chunk, first the rows of all hits are found, lookup by lookup; then they are read in order, each prefetched some
hits before, so that the memory's latency is paid once and not per row.

For the update, the hits of each chunk are sorted by *part*, the upper bits of the row, so that all hits of a row lie in
one part of each chunk (``entries``: local row << 32 | slot, where slot = batch row * lookups + lookup).

Suffixes: L lookups, F features, B batch rows, N tokens, T hits, C chunks, P parts.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.hashing import compiled, row_scalar
from embstore.kernels import rows
from embstore.kernels.known import rank_tokens
from embstore.kernels.native import claim, keep_alive, prefetch_row, run_in_team, widen

_U1, _U32 = np.uint64(1), np.uint64(32)


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
def _hash_tokens(token_N, salt, size, row_N):  # type: ignore[no-untyped-def]
    """A loop of its own, over plain arrays, is vectorised."""
    for n in range(len(token_N)):
        row_N[n] = row_scalar(np.uint64(token_N[n]), salt, np.uint64(size))


@compiled(nogil=True)
def _find_rows(plan, index, batch, start, stop, first, rows_T):  # type: ignore[no-untyped-def]
    """Write the table rows of a chunk's hits to ``rows_T``, from ``first`` on."""
    # Arrays are taken out of their tuples before loops: numba counts a reference each time one is taken.
    offsets, offsets_at_F, feature_L = batch.offsets, batch.offsets_at_F, plan.feature_L
    lookups, lists = len(feature_L), len(offsets) > 0
    next_B = np.empty(stop - start if lists else 0, dtype=np.int64)  # each batch row's next hit
    if lists:
        hit = first
        for b in range(stop - start):
            next_B[b] = hit
            for feature in feature_L:
                at = offsets_at_F[feature]
                hit += 1 if at < 0 else offsets[at + start + b + 1] - offsets[at + start + b]
    row_N = np.empty(stop - start, dtype=np.uint64)
    for lookup in range(lookups):
        feature = feature_L[lookup]
        at = offsets_at_F[feature]
        begin, end = (start, stop) if at < 0 else (offsets[at + start], offsets[at + stop])
        if end - begin > len(row_N):
            row_N = np.empty(end - begin, dtype=np.uint64)
        token_N = batch.values_N[batch.start_F[feature] + begin : batch.start_F[feature] + end]
        if plan.exact_L[lookup]:
            rank_tokens(token_N, index, feature, plan.size_L[lookup] - 1, row_N)
        else:
            _hash_tokens(token_N, plan.salt_L[lookup], plan.size_L[lookup], row_N)
        base, n = plan.base_L[lookup], 0
        if not lists:
            hit = first + lookup
            for b in range(stop - start):
                rows_T[hit] = base + np.int64(row_N[b])
                hit += lookups
            continue
        for b in range(stop - start):
            length = 1 if at < 0 else offsets[at + start + b + 1] - offsets[at + start + b]
            hit = next_B[b]
            for t in range(hit, hit + length):
                rows_T[t] = base + np.int64(row_N[n])
                n += 1
            next_B[b] = hit + length


@compiled(forceinline=True)
def _pool_chunk(plan, batch, start, stop, hit, after, rows_T, table, ahead, out):  # type: ignore[no-untyped-def]
    """Read a chunk's rows, which are those of hits ``hit`` to ``after``, and write its output to address ``out``."""
    offsets, offsets_at_F, feature_L, mean_L = batch.offsets, batch.offsets_at_F, plan.feature_L, plan.mean_L
    lookups, dim, row_bytes, narrow = len(mean_L), table.dim, table.row_bytes, table.narrow
    sums_D, wide_D = np.zeros(dim, dtype=np.float64), np.empty(dim, dtype=np.float32)
    sums, wide = np.uint64(sums_D.ctypes.data), np.uint64(wide_D.ctypes.data)
    to = out + np.uint64(start) * np.uint64(4 * lookups * dim)
    for t in range(hit, min(hit + ahead, after)):
        prefetch_row(table.weight, rows_T[t], row_bytes)
    for b in range(start, stop):
        for lookup in range(lookups):
            at = offsets_at_F[feature_L[lookup]]
            if at < 0:
                if hit + ahead < after:
                    prefetch_row(table.weight, rows_T[hit + ahead], row_bytes)
                row = table.weight + np.uint64(rows_T[hit]) * np.uint64(row_bytes)
                hit += 1
                if narrow:
                    widen(to, row, table.half, dim)
                else:
                    rows.copy(to, row, dim)
            else:
                length = offsets[at + b + 1] - offsets[at + b]
                # As double, so that the sum of a list is the same in every kernel and batch, to a rounding.
                scale = np.float64(np.float32(1) / np.float32(length)) if mean_L[lookup] and length else 1.0
                if narrow:
                    for d in range(dim):
                        sums_D[d] = 0.0
                for t in range(hit, hit + length):
                    if t + ahead < after:
                        prefetch_row(table.weight, rows_T[t + ahead], row_bytes)
                    if narrow:
                        row = table.weight + np.uint64(rows_T[t]) * np.uint64(row_bytes)
                        widen(wide, row, table.half, dim)
                        rows.add_wide(sums, wide, scale, dim)
                if narrow:
                    rows.round_wide(to, sums, dim)
                else:
                    place = np.uint64(rows_T.ctypes.data) + np.uint64(8 * hit)
                    rows.sum_rows(to, table.weight, row_bytes, place, length, scale, dim)
                hit += length
            to += np.uint64(4 * dim)
    keep_alive(sums_D, wide_D)


@compiled(nogil=True)
def _sort_chunk(plan, batch, chunk, start, stop, first, last, rows_T, hits):  # type: ignore[no-untyped-def]
    """Sort a chunk's hits by part, stably, into ``hits``."""
    offsets, offsets_at_F, feature_L, mean_L = batch.offsets, batch.offsets_at_F, plan.feature_L, plan.mean_L
    entries_T, scale_T, bounds_P, shift = hits.entries_T, hits.scale_T, hits.bounds_CP[chunk], hits.shift
    parts, lookups, scaled = len(bounds_P) - 1, len(mean_L), len(scale_T) > 0
    next_P = np.zeros(parts + 1, dtype=np.int64)
    for t in range(first, last):
        next_P[(rows_T[t] >> shift) + 1] += 1
    next_P[0] = first
    for p in range(parts):
        next_P[p + 1] += next_P[p]
    bounds_P[:] = next_P
    local = (np.int64(1) << shift) - 1
    if len(offsets) == 0:  # hits are slots
        for t in range(first, last):
            row = rows_T[t]
            to = next_P[row >> shift]
            next_P[row >> shift] = to + 1
            entries_T[to] = (np.uint64(row & local) << _U32) | np.uint64(t)
        return
    slot, hit = np.uint64(start * lookups), first
    for b in range(start, stop):
        for lookup in range(lookups):
            at = offsets_at_F[feature_L[lookup]]
            length = 1 if at < 0 else offsets[at + b + 1] - offsets[at + b]
            for _ in range(length):
                row = rows_T[hit]
                to = next_P[row >> shift]
                next_P[row >> shift] = to + 1
                entries_T[to] = (np.uint64(row & local) << _U32) | slot
                if scaled:
                    scale_T[to] = np.float32(1) / np.float32(length) if mean_L[lookup] and at >= 0 else np.float32(1)
                hit += 1
            slot += _U1


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
        _find_rows(plan, index, batch, start, stop, first, rows_T)
        _sort_chunk(plan, batch, chunk, start, stop, first, last, rows_T, hits)


@compiled(forceinline=True)
def _pool(dim, plan, index, batch, table, ahead, rows_T, known, hits, sort, out, counter):  # type: ignore[no-untyped-def]
    memory = of_dim(table, dim)
    while True:
        chunk, start, stop = _claim_chunk(batch, hits, counter)
        if start >= stop:
            return
        first, last = first_hit(plan, batch, start), first_hit(plan, batch, stop)
        if not known:
            _find_rows(plan, index, batch, start, stop, first, rows_T)
        _pool_chunk(plan, batch, start, stop, first, last, rows_T, memory, ahead, out)
        if sort:
            _sort_chunk(plan, batch, chunk, start, stop, first, last, rows_T, hits)


@compiled(forceinline=True)
def of_dim(table, dim):  # type: ignore[no-untyped-def]
    """A float32 table with its dim spelled out, unless 0: where that is a constant, loops over rows are unrolled."""
    if dim == 0:
        return table
    return Memory(table.weight, dim, 4 * dim, False, False, table.one, table.one_width, table.two, table.two_width)


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

    Its args: plan, index, batch; table, the ``Memory``; by how many hits a row is prefetched before it is read; rows_T
    int64, filled, and whether it is already; hits, and whether to sort them for the update; address of the output,
    float32 ``[B, W]``; the counter the threads share.
    """

    @compiled(nogil=True)
    def pool(team, threads, failed, args):  # type: ignore[no-untyped-def]
        run_in_team(team, threads, failed, _pool, dim, args)

    return pool
