"""Vectors of nodes that joined after training, without retraining; all others keep theirs to the bit.

    1. mean     a new node gets the weighted mean of its neighbours that have a vector; then those that only know
                nodes of the first round, and so on; all are lengthened to the mean length of old ones
    2. steps    skip-gram on walks from the new nodes, of which only rows of new nodes are moved

Means are shorter than what they are of, and a model of old vectors takes short ones for those of nodes that little is
known of: so the first step keeps a mean's direction alone. The second is what training would have done to it, had all
others been at rest; so it costs walks of new nodes only, and old vectors, which models were trained on, stay valid.

One thread trains, and all that is drawn depends on (seed, epoch, node, round): the same bits each time. Suffixes: N
nodes, E entries, W walks, L nodes of a walk, D numbers of a vector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embstore.errors import GraphError
from embstore.hashing import compiled, mulhi64_scalar, splitmix64_scalar
from embstore.node2vec.alias import alias_rows, drawn_by
from embstore.node2vec.graph import Graph
from embstore.node2vec.skipgram import SkipGramSettings, check_finite
from embstore.node2vec.walks import Walker, WalkSettings

_CHUNK = 16384  # walks at once
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WALK = np.uint64(0xD1B54A32D192ED03)


def mean_vectors(graph: Graph, vectors_ND: NDArray[np.float32], known_N: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A copy in which nodes that are not known have the weighted mean of their neighbours.

    Neighbours by arcs count in both directions. Nodes that no path links to a known one get zeros.

    Args:
        graph: of old and new nodes.
        vectors_ND: float32 ``[N, D]``; what it has for new nodes is not read.
        known_N: bool ``[N]``, whether a node has a vector.

    Raises:
        GraphError: arrays of another length than the graph has nodes.

    >>> path = Graph.of_edges(np.array([0, 1, 2]), np.array([1, 2, 3]))
    >>> mean_vectors(path, np.float32([[1], [0], [3], [0]]), np.array([True, False, True, False])).ravel().tolist()
    [1.0, 2.0, 3.0, 3.0]
    """
    _check(graph, vectors_ND, known_N)
    out_ND = np.where(known_N[:, None], vectors_ND, np.float32(0))
    both = _both_ways(graph)
    weight_E = np.empty(0, np.float32) if both.weights_E is None else both.weights_E
    round_N = np.where(known_N, 0, -1).astype(np.int32)  # in which it got its vector
    this = 1
    while _means(both.indptr_N, both.indices_E, weight_E, out_ND, round_N, this):
        this += 1
    return out_ND


def new_vectors(
    graph: Graph,
    vectors_ND: NDArray[np.float32],
    contexts_ND: NDArray[np.float32],
    known_N: NDArray[np.bool_],
    walks: WalkSettings,
    how: SkipGramSettings,
    *,
    threads: int = 1,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Copies of vectors and contexts with rows for the new nodes.

    Args:
        graph: of old and new nodes, with all edges known now.
        vectors_ND, contexts_ND: float32 ``[N, D]`` of a ``SkipGram``, in this graph's numbers; what they have for new
            nodes is not read.
        known_N: bool ``[N]``, whether a node is an old one.
        walks: from each new node, ``num_walks``. What is farther from it than the window teaches it nothing, so
            ``window + 1`` nodes are enough.
        how: window, negatives, rates, epochs, power and seed are used; nothing is left out by ``subsample``.
        threads: that walk.

    Raises:
        GraphError: a graph without edges, or arrays of another length than it has nodes.
        ConfigError: rows of new nodes have left float32's range.
    """
    _check(graph, vectors_ND, known_N)
    _check(graph, contexts_ND, known_N)
    in_ND, out_ND = _start(graph, vectors_ND, known_N), _start(graph, contexts_ND, known_N)
    walker = Walker(graph, walks)
    start_W = np.tile(np.flatnonzero(~known_N).astype(np.int32), walks.num_walks)
    if not len(start_W):
        return in_ND, out_ND
    round_W = np.repeat(np.arange(walks.num_walks), len(start_W) // walks.num_walks)
    weight_N = _both_ways(graph).strengths()
    some_N = weight_N > 0  # no walk comes to the others, whatever the power
    weight_N[some_N] **= how.power
    keep_N, other_N = alias_rows(np.array([0, len(weight_N)]), weight_N)
    slope = (how.last_learning_rate - how.learning_rate) / (how.epochs * len(start_W))
    for epoch in range(how.epochs):
        seed = np.uint64((how.seed + epoch * 0x9E3779B97F4A7C15) % 2**64)
        for first in range(0, len(start_W), _CHUNK):
            part = slice(first, first + _CHUNK)
            walks_WL = walker.walks_from(start_W[part], round_W[part], threads=threads)
            rate = how.learning_rate + slope * (epoch * len(start_W) + first)
            _steps(
                *(walks_WL, first, rate, slope, in_ND, out_ND, known_N, keep_N, other_N),
                *(how.window, how.negatives, seed),
            )
    check_finite(how, in_ND[~known_N], out_ND[~known_N])
    return in_ND, out_ND


def _start(graph: Graph, rows_ND: NDArray[np.float32], known_N: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The means, lengthened by one factor to the mean length of old rows; those that are 0 apart."""
    out_ND = mean_vectors(graph, rows_ND, known_N)
    length_N = np.linalg.norm(out_ND, axis=1)
    old_N, new_N = known_N & (length_N > 0), ~known_N & (length_N > 0)
    if old_N.any() and new_N.any():
        out_ND[~known_N] *= length_N[old_N].mean() / length_N[new_N].mean()
    return out_ND


def _check(graph: Graph, rows_ND: NDArray[np.float32], known_N: NDArray[np.bool_]) -> None:
    if rows_ND.ndim != 2 or rows_ND.dtype != np.float32 or len(rows_ND) != graph.num_nodes:
        expected = f"float32 rows of {graph.num_nodes:,} nodes"
        raise GraphError("vectors of nodes", expected=expected, found=f"{rows_ND.dtype} {list(rows_ND.shape)}")
    if known_N.shape != (graph.num_nodes,) or known_N.dtype != np.bool_:
        expected = f"a truth for each of {graph.num_nodes:,} nodes"
        raise GraphError("known nodes", expected=expected, found=f"{known_N.dtype} {list(known_N.shape)}")


def _both_ways(graph: Graph) -> Graph:
    if not graph.directed:
        return graph
    weights_E = np.ones(len(graph.indices_E), np.float32) if graph.weights_E is None else graph.weights_E
    return Graph.of_edges(graph.sources(), graph.indices_E, weights_E, num_nodes=graph.num_nodes)


@compiled(nogil=True)
def _means(indptr_N, indices_E, weight_E, out_ND, round_N, this):  # type: ignore[no-untyped-def]
    """Give nodes without a vector that know some of an earlier round their mean; how many."""
    given = 0
    sums = np.empty(out_ND.shape[1], np.float64)
    for n in range(len(round_N)):
        if round_N[n] >= 0:
            continue
        total = 0.0
        sums[:] = 0.0
        for e in range(indptr_N[n], indptr_N[n + 1]):
            other = indices_E[e]
            if 0 <= round_N[other] < this:
                weight = np.float64(weight_E[e]) if len(weight_E) > 0 else 1.0
                total += weight
                for d in range(len(sums)):
                    sums[d] += weight * out_ND[other, d]
        if total > 0.0:
            for d in range(len(sums)):
                out_ND[n, d] = sums[d] / total
            round_N[n] = this
            given += 1
    return given


@compiled(fastmath={"contract", "reassoc"})
def _rate(x, y, label, step):  # type: ignore[no-untyped-def]
    """How far to move x along y, and y along x."""
    z = np.float32(0.0)
    for d in range(len(x)):
        z += x[d] * y[d]
    return np.float32(step * (label - 1.0 / (1.0 + np.exp(-np.float64(z)))))


@compiled(nogil=True)
def _steps(  # type: ignore[no-untyped-def]
    walks_WL, first, rate, slope, in_ND, out_ND, known_N, keep_N, other_N, window, negatives, seed
):
    """As skip-gram's windows, but rows of known nodes are only read."""
    outputs, move = np.empty(negatives + 1, np.int32), np.empty(in_ND.shape[1], np.float32)
    count_N = np.uint64(len(keep_N))
    for w in range(len(walks_WL)):
        step = rate + slope * w
        state = splitmix64_scalar(splitmix64_scalar(seed) + np.uint64(first + w) * _WALK)
        length = 0
        while length < walks_WL.shape[1] and walks_WL[w, length] >= 0:
            length += 1
        for place in range(length):
            state += _GOLDEN
            span = np.int64(mulhi64_scalar(splitmix64_scalar(state), np.uint64(window))) + 1
            begin, end = max(place - int(span), 0), min(place + int(span) + 1, length)
            centre = walks_WL[w, place]
            anew = not known_N[centre]
            for other in range(begin, end):
                anew = anew or not known_N[walks_WL[w, other]]
            if not anew:
                continue
            outputs[0] = centre
            found = 1
            for _ in range(negatives):
                state += _GOLDEN
                node = drawn_by(splitmix64_scalar(state), count_N, keep_N, other_N)
                new = True
                for before in range(found):
                    new = new and outputs[before] != node
                if new:
                    outputs[found] = node
                    found += 1
            for other in range(begin, end):
                node = walks_WL[w, other]
                if other == place:
                    continue
                x = in_ND[node]
                move[:] = 0.0
                for o in range(found):
                    if known_N[node] and known_N[outputs[o]]:
                        continue
                    y = out_ND[outputs[o]]
                    error = _rate(x, y, 1.0 if o == 0 else 0.0, step)
                    for d in range(len(x)):
                        move[d] += error * y[d]
                    if not known_N[outputs[o]]:
                        for d in range(len(x)):
                            y[d] += error * x[d]
                if not known_N[node]:
                    for d in range(len(x)):
                        x[d] += move[d]
