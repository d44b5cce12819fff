"""The compiled update: the gradient of each hit row over all its hits, then one step of the optimizer in place.

Parts (``cpu_lookup``) are worked on one at a time: a part's rows of the table and their state fit the cache, and no
other thread touches them. Within a part, a small hash table gives each row a number in the order of its first hit;
gradients are summed hit after hit in the fixed order of hits, so the result doesn't depend on the number of threads.

Suffixes: D dim, E entries of a part, R distinct rows of a part.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from embstore.hashing import compiled
from embstore.kernels import rows
from embstore.kernels.cpu_lookup import of_dim
from embstore.kernels.native import claim, keep_alive, narrow, prefetch_row, prefetch_row_to_write, run_in_team, widen

AHEAD_BYTES = 1 << 12  # on their way to the cache: of gradients while one is added, of rows while one is updated

ROWWISE_ADAGRAD, ADAGRAD, ADAM, SGD = 0, 1, 2, 3
KINDS = 4

_U1, _U32, _LOW = np.uint64(1), np.uint64(32), np.uint64(0xFFFFFFFF)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Step(NamedTuple):
    """One step's settings; float32 as the reference computes with them.

    Args:
        learning_rate, eps: of the optimizer.
        add1, keep2, add2: Adam's 1 - beta1, beta2, 1 - beta2.
        unbias1, unbias2: Adam's 1 - beta^step.
        seed: of the stochastic rounding (``native.mixed_seed``).
    """

    learning_rate: np.float32
    eps: np.float32
    add1: np.float32
    keep2: np.float32
    add2: np.float32
    unbias1: np.float32
    unbias2: np.float32
    seed: int


class Penalty(NamedTuple):
    """What rows owe (``embstore.kernels.penalty``).

    Args:
        kind: of the optimizer, which gives the step size.
        l2: the penalty's factor.
        owed: the sum of learning rates up to now.
        eps: of the optimizer.
        seed: of the stochastic rounding.
    """

    kind: int
    l2: float
    owed: float
    eps: np.float32
    seed: int


@compiled(forceinline=True)
def _at(address, row, bytes_a_row):  # type: ignore[no-untyped-def]
    return address + np.uint64(row) * np.uint64(bytes_a_row)


@compiled(forceinline=True)
def _prefetch(table, row):  # type: ignore[no-untyped-def]
    """A row and its state. State of one number a row is read at first: many rows of a part share its lines."""
    prefetch_row_to_write(table.weight, row, table.row_bytes)
    if table.one_width == 1:
        prefetch_row(table.one, row, 4)
    elif table.one_width:
        prefetch_row_to_write(table.one, row, 4 * table.one_width)
    if table.two_width:
        prefetch_row_to_write(table.two, row, 4 * table.two_width)


@compiled(forceinline=True)
def _open_row(table, row, scratch):  # type: ignore[no-untyped-def]
    """Where row ``row`` can be worked on as float32: where it lies, or a wide copy at ``scratch``."""
    address = _at(table.weight, row, table.row_bytes)
    if table.narrow:
        widen(scratch, address, table.half, table.dim)
        return scratch
    return address


@compiled(forceinline=True)
def _close_row(table, row, scratch, seed):  # type: ignore[no-untyped-def]
    """Round what ``_open_row`` made wide back into the table."""
    if table.narrow:
        to = _at(table.weight, row, table.row_bytes)
        for d in range(table.dim):
            value = rows.get(scratch, d)
            rows.put_bits(to, d, narrow(value, table.half, (table.first + row) * table.dim + d, seed))


@compiled(forceinline=True)
def _update_row(table, kind, step, row, grad, scratch):  # type: ignore[no-untyped-def]
    dim = table.dim
    weight, one = _open_row(table, row, scratch), _at(table.one, row, 4 * table.one_width)
    if kind == ROWWISE_ADAGRAD:
        total = rows.get(one, 0) + rows.sum_of_squares(grad, dim) / np.float32(dim)
        rows.put(one, 0, total)
        rows.add_scaled(weight, grad, -(step.learning_rate / (np.sqrt(total) + step.eps)), dim)
    elif kind == ADAGRAD:
        rows.adagrad(weight, one, grad, step.learning_rate, step.eps, dim)
    elif kind == ADAM:
        two = _at(table.two, row, 4 * table.two_width)
        bias1, bias2 = step.unbias1, step.unbias2
        rows.adam(
            weight, one, two, grad, step.learning_rate, step.eps, step.add1, step.keep2, step.add2, bias1, bias2, dim
        )
    else:
        rows.add_scaled(weight, grad, -step.learning_rate, dim)
    _close_row(table, row, scratch, step.seed)
    if table.touched:
        rows.put_byte(table.touched, row, 1)


@compiled(nogil=True)
def _largest_part(bounds_CP):  # type: ignore[no-untyped-def]
    size_P = np.zeros(bounds_CP.shape[1] - 1, dtype=np.int64)
    for c in range(bounds_CP.shape[0]):
        for p in range(len(size_P)):
            size_P[p] += bounds_CP[c, p + 1] - bounds_CP[c, p]
    return size_P.max()


@compiled(nogil=True)
def _gather_part(hits, part, entries_E, scale_E):  # type: ignore[no-untyped-def]
    """A part's entries of all chunks, one after the other, and how many they are."""
    entries_T, scale_T, bounds_CP, scaled = hits.entries_T, hits.scale_T, hits.bounds_CP, len(scale_E) > 0
    count = 0
    for chunk in range(bounds_CP.shape[0]):
        for t in range(bounds_CP[chunk, part], bounds_CP[chunk, part + 1]):
            entries_E[count] = entries_T[t]
            if scaled:
                scale_E[count] = scale_T[t]
            count += 1
    return count


@compiled(forceinline=True)
def _update(variant, hits, memory, step, grad, counter):  # type: ignore[no-untyped-def]
    kind, table = variant % KINDS, of_dim(memory, variant // KINDS)
    parts, dim, row_bytes = hits.bounds_CP.shape[1] - 1, table.dim, 4 * table.dim
    largest, ahead = _largest_part(hits.bounds_CP), max(AHEAD_BYTES // row_bytes, 8)
    distinct = min(largest, np.int64(1) << hits.shift)
    bits = 1
    while (1 << bits) < 2 * distinct:
        bits += 1
    down, mask, scaled = np.uint64(64 - bits), np.uint64((1 << bits) - 1), len(hits.scale_T) > 0
    places = np.full(1 << bits, -1, dtype=np.int32)
    entries_E = np.empty(largest, dtype=np.uint64)
    scale_E = np.empty(largest if scaled else 0, dtype=np.float32)
    used_R, rows_R = np.empty(distinct, dtype=np.uint64), np.empty(distinct, dtype=np.uint64)
    sums_RD, scratch_D = np.empty(distinct * dim, dtype=np.float32), np.empty(dim, dtype=np.float32)
    sums, scratch = np.uint64(sums_RD.ctypes.data), np.uint64(scratch_D.ctypes.data)
    while True:
        part = claim(counter)
        if part >= parts:
            return
        entries, count, base = _gather_part(hits, part, entries_E, scale_E), 0, part << hits.shift
        for e in range(min(ahead, entries)):
            prefetch_row(grad, entries_E[e] & _LOW, row_bytes)
        for e in range(entries):
            if e + ahead < entries:
                prefetch_row(grad, entries_E[e + ahead] & _LOW, row_bytes)
            local, from_ = entries_E[e] >> _U32, _at(grad, entries_E[e] & _LOW, row_bytes)
            place = (local * _MULTIPLIER) >> down
            while places[place] >= 0 and rows_R[np.uint64(places[place])] != local:
                place = (place + _U1) & mask
            number = places[place]
            scale = scale_E[e] if scaled else np.float32(1)
            if number < 0:
                places[place] = count
                used_R[count], rows_R[count] = place, local
                rows.copy_scaled(_at(sums, count, row_bytes), from_, scale, dim)
                count += 1
            else:
                rows.add_scaled(_at(sums, number, row_bytes), from_, scale, dim)
        for r in range(min(ahead, count)):
            _prefetch(table, base + np.int64(rows_R[r]))
        for r in range(count):
            if r + ahead < count:
                _prefetch(table, base + np.int64(rows_R[r + ahead]))
            places[used_R[r]] = -1
            _update_row(table, kind, step, base + np.int64(rows_R[r]), _at(sums, r, row_bytes), scratch)
        keep_alive(sums_RD, scratch_D)


@cache
def update_of(kind: int, dim: int) -> Any:
    """The pass that updates every hit row once, for an optimizer and float32 rows of a dim, or any (0).

    As ``pool_of``; args: hits, as the lookup left them; table, the ``Memory``; the ``Step``; address of the output's
    gradient by slot, float32 ``[B * L, D]``; the counter the threads share.
    """
    variant = dim * KINDS + kind

    @compiled(nogil=True)
    def update(team, threads, failed, args):  # type: ignore[no-untyped-def]
        run_in_team(team, threads, failed, _update, variant, args)

    return update


@compiled(forceinline=True)
def _pay_row(table, penalty, paid, row, scratch):  # type: ignore[no-untyped-def]
    due = penalty.owed - rows.get_wide(paid, row)
    rows.put_wide(paid, row, penalty.owed)
    weight, one = _open_row(table, row, scratch), _at(table.one, row, 4 * table.one_width)
    factor = np.exp(-penalty.l2 * due)
    if penalty.kind == ROWWISE_ADAGRAD:
        rate = np.float32(1) / (np.sqrt(rows.get(one, 0)) + penalty.eps)
        factor = np.exp(-penalty.l2 * due * np.float64(rate))
    for d in range(table.dim):
        if penalty.kind == ADAGRAD:
            rate = np.float32(1) / (np.sqrt(rows.get(one, d)) + penalty.eps)
            factor = np.exp(-penalty.l2 * due * np.float64(rate))
        rows.put(weight, d, np.float32(np.float64(rows.get(weight, d)) * factor))
    _close_row(table, row, scratch, penalty.seed)


@compiled(nogil=True)
def _pay(_, hits, table, penalty, paid, counter):  # type: ignore[no-untyped-def]
    entries_T, bounds_CP = hits.entries_T, hits.bounds_CP
    chunks, parts = bounds_CP.shape[0], bounds_CP.shape[1] - 1
    scratch_D = np.empty(table.dim, dtype=np.float32)
    scratch = np.uint64(scratch_D.ctypes.data)
    while True:
        part = claim(counter)
        if part >= parts:
            return
        base = part << hits.shift
        for chunk in range(chunks):
            first, last = bounds_CP[chunk, part], bounds_CP[chunk, part + 1]
            for t in range(first, last):
                row = base + np.int64(entries_T[t] >> _U32)
                prefetch_row(paid, row, 8)
                _prefetch(table, row)
            for t in range(first, last):
                row = base + np.int64(entries_T[t] >> _U32)
                if rows.get_wide(paid, row) < penalty.owed:
                    _pay_row(table, penalty, paid, row, scratch)
        keep_alive(scratch_D, scratch_D)


@compiled(nogil=True)
def pay(team, threads, failed, args):  # type: ignore[no-untyped-def]
    """The pass that lets every hit row pay what it owes.

    Args:
        team, threads, failed: as ``native.run_in_team`` takes them.
        args: hits; table, the ``Memory``; the ``Penalty``; address of the sums up to which each row has paid, float64;
            the counter the threads share.
    """
    run_in_team(team, threads, failed, _pay, 0, args)
