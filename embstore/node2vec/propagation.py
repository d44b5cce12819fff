"""Vectors smoothed over the graph: each node's with the mean of its neighbours' (a low-pass graph filter of one step;
ProNE, Zhang et al. 2019, ends so with filters of higher order).

Suffixes: N nodes, D numbers of a vector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, GraphError
from embstore.hashing import compiled
from embstore.node2vec.graph import Graph
from embstore.threads import share

_CHUNK = 1024  # nodes claimed by a thread at once


def propagated(graph: Graph, vectors_ND: NDArray[np.float32], part: float, *, threads: int = 1) -> NDArray[np.float32]:
    """``(1 - part) * own + part * weighted mean of the neighbours'``, scaled to the mean length of before.

    Nodes without neighbours keep theirs, but for the scale.

    Args:
        graph: of a directed one, neighbours are those its arcs lead to.
        vectors_ND: float32 ``[N, D]``.
        part: from 0 (nothing changes) to 1.

    Returns:
        float32 ``[N, D]``, the same bits for any number of threads.

    >>> pair = Graph.of_edges(np.array([0]), np.array([1]))
    >>> propagated(pair, np.array([[1.0], [3.0]], dtype=np.float32), 0.25).tolist()
    [[1.5], [2.5]]
    """
    if not 0 <= part <= 1:
        raise ConfigError("propagation", expected="a share from 0 to 1", found=str(part))
    if vectors_ND.ndim != 2 or len(vectors_ND) != graph.num_nodes:
        expected = f"a vector for each of {graph.num_nodes:,} nodes"
        raise GraphError("propagation", expected=expected, found=f"an array {list(vectors_ND.shape)}")
    out_ND = np.array(vectors_ND, dtype=np.float32, order="C")
    if part == 0 or not len(graph.indices_E):
        return out_ND
    weights_E = np.empty(0, np.float32) if graph.weights_E is None else graph.weights_E
    before = _mean_length(out_ND)
    firsts = iter(range(0, graph.num_nodes, _CHUNK))

    def work() -> None:
        for first in firsts:
            last = min(first + _CHUNK, graph.num_nodes)
            _propagate(graph.indptr_N, graph.indices_E, weights_E, vectors_ND, part, first, last, out_ND)

    share(work, min(threads, -(-graph.num_nodes // _CHUNK)))
    after = _mean_length(out_ND)
    if after > 0:
        out_ND *= np.float32(before / after)
    return out_ND


def _mean_length(vectors_ND: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64)).mean())


@compiled(nogil=True, fastmath={"contract", "nsz"})
def _propagate(indptr_N, indices_E, weights_E, vectors_ND, part, first, last, out_ND):  # type: ignore[no-untyped-def]
    weighted, width = len(weights_E) > 0, out_ND.shape[1]
    sum_D = np.empty(width, np.float32)
    for n in range(first, last):
        begin, end = indptr_N[n], indptr_N[n + 1]
        if begin == end:
            continue
        sum_D[:] = 0.0
        total = np.float64(0.0)
        for e in range(begin, end):
            weight = weights_E[e] if weighted else np.float32(1.0)
            total += weight
            neighbour = indices_E[e]
            for d in range(width):
                sum_D[d] += weight * vectors_ND[neighbour, d]
        own, others = np.float32(1.0 - part), np.float32(part / total)
        for d in range(width):
            out_ND[n, d] = own * vectors_ND[n, d] + others * sum_D[d]
