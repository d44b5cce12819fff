"""Compressed rows from edges in any order, in linear time: sorted by target, then by source, each by counting.

    edges in their order ──by target──> columns ──by source──> rows, ascending, the same edge's entries side by side

Both passes keep the order of what is equal, so an edge's weights are added up in the order of the list, and those of an
undirected edge alike in the rows of both its ends. Suffixes: N nodes, E edges, then entries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embstore.hashing import compiled

_NONE = np.empty(0, np.float64)


def rows_of(
    source_E: NDArray[np.int32],
    target_E: NDArray[np.int32],
    weight_E: NDArray[np.float64] | None,
    num_nodes: int,
    *,
    directed: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64] | None]:
    """``indptr``, ``indices`` and summed weights; of edges without weights each once."""
    weighted = weight_E is not None
    given_E = _NONE if weight_E is None else weight_E
    column_N, row_N = np.zeros(num_nodes + 1, np.int64), np.zeros(num_nodes + 1, np.int64)
    _count(source_E, target_E, directed, column_N, row_N)
    size = int(row_N[-1])
    at_E, moved_E = np.empty(size, np.int32), np.empty(size if weighted else 0, np.float64)
    _by_target(source_E, target_E, given_E, directed, column_N[:-1].copy(), at_E, moved_E)
    indices_E, sums_E = np.empty(size, np.int32), np.empty(size if weighted else 0, np.float64)
    _by_source(column_N, at_E, moved_E, row_N[:-1].copy(), indices_E, sums_E)
    del at_E, moved_E
    left = _merge(row_N, indices_E, sums_E)
    if left < size:
        indices_E, sums_E = indices_E[:left].copy(), sums_E[:left].copy()
    return row_N, indices_E, sums_E if weighted else None


def are_rows(indptr_N: NDArray[np.int64], indices_E: NDArray[np.int32]) -> bool:
    """Whether each row's entries ascend and are distinct."""
    rising_E = indices_E[1:] > indices_E[:-1]
    begins_N = indptr_N[1:-1]
    rising_E[begins_N[(begins_N > 0) & (begins_N < len(indices_E))] - 1] = True
    return bool(rising_E.all())


def are_symmetric(
    indptr_N: NDArray[np.int64], indices_E: NDArray[np.int32], weights_E: NDArray[np.float32] | None
) -> bool:
    """Whether a matrix of rows as above is its transposed."""
    given_E = np.empty(0, np.float32) if weights_E is None else weights_E
    return bool(_symmetric(indptr_N, indices_E, given_E, indptr_N[:-1].copy()))


@compiled(nogil=True)
def _count(source_E, target_E, directed, column_N, row_N):  # type: ignore[no-untyped-def]
    for e in range(len(source_E)):
        u, v = source_E[e], target_E[e]
        row_N[u + 1] += 1
        column_N[v + 1] += 1
        if not directed and u != v:
            row_N[v + 1] += 1
            column_N[u + 1] += 1
    for n in range(1, len(row_N)):
        row_N[n] += row_N[n - 1]
        column_N[n] += column_N[n - 1]


@compiled(nogil=True)
def _by_target(source_E, target_E, weight_E, directed, next_N, at_E, moved_E):  # type: ignore[no-untyped-def]
    weighted = len(moved_E) > 0
    for e in range(len(source_E)):
        u, v = source_E[e], target_E[e]
        place = next_N[v]
        next_N[v] += 1
        at_E[place] = u
        if weighted:
            moved_E[place] = weight_E[e]
        if not directed and u != v:
            place = next_N[u]
            next_N[u] += 1
            at_E[place] = v
            if weighted:
                moved_E[place] = weight_E[e]


@compiled(nogil=True)
def _by_source(column_N, at_E, moved_E, next_N, indices_E, sums_E):  # type: ignore[no-untyped-def]
    weighted = len(moved_E) > 0
    for v in range(len(column_N) - 1):
        for e in range(column_N[v], column_N[v + 1]):
            u = at_E[e]
            place = next_N[u]
            next_N[u] += 1
            indices_E[place] = v
            if weighted:
                sums_E[place] = moved_E[e]


@compiled(nogil=True)
def _merge(row_N, indices_E, sums_E):  # type: ignore[no-untyped-def]
    """In place; returns how many entries are left."""
    weighted = len(sums_E) > 0
    left, begin = 0, 0
    for n in range(len(row_N) - 1):
        first = left
        for e in range(begin, row_N[n + 1]):
            if left > first and indices_E[left - 1] == indices_E[e]:
                if weighted:
                    sums_E[left - 1] += sums_E[e]
            else:
                indices_E[left] = indices_E[e]
                if weighted:
                    sums_E[left] = sums_E[e]
                left += 1
        begin = row_N[n + 1]
        row_N[n + 1] = left
    return left


@compiled(nogil=True)
def _symmetric(indptr_N, indices_E, weight_E, next_N):  # type: ignore[no-untyped-def]
    """Rows are gone through in order, so each row meets its entries in order when they are looked for from others."""
    weighted = len(weight_E) > 0
    for u in range(len(indptr_N) - 1):
        for e in range(indptr_N[u], indptr_N[u + 1]):
            v = indices_E[e]
            other = next_N[v]
            if other >= indptr_N[v + 1] or indices_E[other] != u or (weighted and weight_E[other] != weight_E[e]):
                return False
            next_N[v] += 1
    return True
