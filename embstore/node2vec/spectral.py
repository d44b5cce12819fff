"""A start for skip-gram: a factorisation of the co-occurrence that few paths from each edge show.

    row of a    its edges, exactly, and where paths that go on from them by chance end
    entry       log p(b within so many hops of a) - log p(b) - log shift, where that is above 0
    factors     vectors_N . contexts_N = entries, by a randomised SVD of ``dim`` ranks

What skip-gram with negative sampling learns is such a matrix (Levy & Goldberg 2014; of walks: Qiu et al. 2018, NetMF,
equation 11). All of it is dense; so longer hops are sampled (Qiu et al. 2019, NetSMF) and what the shift leaves below 0
is pruned. ProNE (Zhang et al. 2019) takes the edges alone and smooths the factors afterwards. Here the shift falls on
sampled entries, too: it drops most that were seen by chance. Time and memory grow with the edges.

A node's paths depend on (seed, node) alone, and rows are summed in order: the same bits for any number of threads.

Suffixes: N nodes, E entries of the graph, F entries of the matrix, D numbers of a vector, K columns of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, GraphError
from embstore.hashing import compiled, mulhi64_scalar, splitmix64_scalar
from embstore.node2vec.graph import Graph
from embstore.node2vec.walks import alias_rows
from embstore.threads import share

_LENGTH = 0.7  # mean length of the factors' rows: longer ones saturate the sigmoids, shorter ones are forgotten
_OVERSAMPLING = 10  # columns of the sketch above dim
_PIECE = 65536  # rows whose products are taken at once
_ROUNDING = 1e-11  # of the greatest square: smaller ones are float32's rounding
_ROWS = 256  # claimed by a thread at once
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_U11 = np.uint64(11)
_UNIT = 2.0**-53


@dataclass(frozen=True, kw_only=True)
class SpectralSettings:
    """How to make the matrix and its factors.

    Args:
        hops: the longest path; a path of r hops counts (hops + 1 - r) / hops, as a window of words does. 1 takes the
            edges alone and samples nothing.
        paths: that go on from each edge.
        least: from each node at least, so that nodes of few edges have more from each.
        shift: entries whose ratio p(b | a) / p(b) is not above it are pruned; it is the negatives of skip-gram.
        iterations: of the subspace, each two products with the matrix.
        seed: of paths and sketch.
    """

    hops: int = 2
    paths: int = 2
    least: int = 128
    shift: float = 5.0
    iterations: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("hops", 1), ("paths", 1), ("least", 0), ("iterations", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"spectral.{name}", expected=f"{low} or more", found=str(getattr(self, name)))
        if not 0 < self.shift < np.inf:
            raise ConfigError("spectral.shift", expected="above 0", found=str(self.shift))
        if not 0 <= self.seed < 2**63:
            raise ConfigError("spectral.seed", expected="0 to 2^63 - 1", found=str(self.seed))


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """Compressed rows of float32, square."""

    indptr_N: NDArray[np.int64]
    indices_F: NDArray[np.int32]
    values_F: NDArray[np.float32]

    def times(self, dense_NK: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.float32]:
        """The product with a dense matrix, ``[N, K]``."""
        out_NK = np.empty_like(dense_NK)

        def work(begin: int, end: int) -> None:
            _times(self.indptr_N, self.indices_F, self.values_F, dense_NK, out_NK, begin, end)

        _by_rows(work, len(out_NK), threads)
        return out_NK

    def transposed(self) -> Matrix:
        indptr_N = np.zeros_like(self.indptr_N)
        np.cumsum(np.bincount(self.indices_F, minlength=len(indptr_N) - 1), out=indptr_N[1:])
        indices_F, values_F = np.empty_like(self.indices_F), np.empty_like(self.values_F)
        _transpose(self.indptr_N, self.indices_F, self.values_F, indptr_N[:-1].copy(), indices_F, values_F)
        return Matrix(indptr_N=indptr_N, indices_F=indices_F, values_F=values_F)


def spectral_vectors(
    graph: Graph, dim: int, settings: SpectralSettings | None = None, *, threads: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors to start skip-gram from.

    Args:
        graph: with at least one edge.
        dim: numbers of a vector.
        settings: how.
        threads: more change no bit.

    Returns:
        Vectors and contexts, float32 ``[N, dim]`` each: rows of mean length 0.7 (of those that are not 0), columns by
        falling singular value, each with the sign that makes the sum of its vectors' cubes positive. Nodes that no
        entry of the matrix tells of are 0, and so are columns beyond the matrix's rank.

    Raises:
        GraphError: a graph without edges.
        ConfigError: a ``dim`` below 1.

    >>> ring = Graph.of_edges(np.arange(50), (np.arange(50) + 1) % 50)
    >>> vectors, contexts = spectral_vectors(ring, 8)
    >>> near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[25]
    >>> vectors.shape, bool(near > far)
    ((50, 8), True)
    """
    settings = settings or SpectralSettings()
    if dim < 1:
        raise ConfigError("dim", expected="1 or more", found=str(dim))
    matrix = co_occurrence(graph, settings, threads=threads)
    left_ND, singular_D, right_ND = factors(
        matrix, dim, iterations=settings.iterations, seed=settings.seed, threads=threads
    )
    root_D = np.sqrt(singular_D)
    return _scaled(left_ND * root_D), _scaled(right_ND * root_D)


def co_occurrence(graph: Graph, settings: SpectralSettings, *, threads: int = 1) -> Matrix:
    """The pruned matrix of log ratios; rows ascend."""
    if not len(graph.indices_E):
        found = f"{graph.num_nodes:,} nodes and no edge"
        raise GraphError("a graph to take vectors of", expected="at least one edge", found=found)
    each_N = _paths_of_an_edge(graph, settings)
    room_N = np.zeros(graph.num_nodes + 1, dtype=np.int64)
    np.cumsum(graph.degrees() * (1 + each_N * (settings.hops - 1)), out=room_N[1:])
    keep_E, other_E = np.empty(0, np.float32), np.empty(0, np.int32)
    weight_E = np.empty(0, np.float32) if graph.weights_E is None else graph.weights_E
    if graph.weights_E is not None:
        keep_E, other_E = alias_rows(graph)
    strength_N = graph.strengths()
    indices_F, values_F = np.empty(room_N[-1], dtype=np.int32), np.empty(room_N[-1], dtype=np.float32)
    count_N = np.zeros(graph.num_nodes, dtype=np.int64)

    def sample(begin: int, end: int) -> None:
        _sample(
            *(graph.indptr_N, graph.indices_E, weight_E, strength_N, keep_E, other_E, each_N, settings.hops),
            *(np.uint64(settings.seed), room_N, indices_F, values_F, count_N, begin, end),
        )

    _by_rows(sample, graph.num_nodes, threads)
    mass_N = np.zeros(graph.num_nodes)
    _masses(room_N, indices_F, values_F, count_N, strength_N, mass_N)
    indptr_N = np.zeros(graph.num_nodes + 1, dtype=np.int64)
    _prune(room_N, indices_F, values_F, count_N, mass_N / mass_N.sum() * settings.shift, indptr_N)
    kept = int(indptr_N[-1])
    return Matrix(indptr_N=indptr_N, indices_F=indices_F[:kept], values_F=values_F[:kept])


def factors(
    matrix: Matrix, dim: int, *, iterations: int = 3, seed: int = 0, threads: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The greatest singular values with their vectors (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1).

    Returns:
        Left vectors ``[N, dim]``, values ``[dim]``, right vectors ``[N, dim]``; zeros beyond the rank.
    """
    count = len(matrix.indptr_N) - 1
    across = matrix.transposed()
    width = min(dim + _OVERSAMPLING, count)
    generator = np.random.Generator(np.random.Philox(key=[seed, 2**33]))
    base_NK = _orthogonal(matrix.times(generator.standard_normal((count, width), dtype=np.float32), threads=threads))
    for _ in range(iterations):
        base_NK = _orthogonal(across.times(base_NK, threads=threads))
        base_NK = _orthogonal(matrix.times(base_NK, threads=threads))
    base_NK = _orthogonal(base_NK)  # once more: a basis to float32's precision
    small_NK = across.times(base_NK, threads=threads)
    squares_K, turn_KK = _turn(small_NK)
    left_ND, right_ND = np.zeros((2, count, dim), dtype=np.float32)
    singular_D = np.zeros(dim, dtype=np.float32)
    ranks = min(dim, len(squares_K))
    left_ND[:, :ranks] = base_NK @ turn_KK[:, :ranks].astype(np.float32)
    right_ND[:, :ranks] = small_NK @ (turn_KK[:, :ranks] / np.sqrt(squares_K[:ranks])).astype(np.float32)
    singular_D[:ranks] = np.sqrt(squares_K[:ranks])
    sign_D = np.where((left_ND.astype(np.float64) ** 3).sum(axis=0) < 0, np.float32(-1), np.float32(1))
    return left_ND * sign_D, singular_D, right_ND * sign_D


def _paths_of_an_edge(graph: Graph, settings: SpectralSettings) -> NDArray[np.int64]:
    degree_N = np.maximum(graph.degrees(), 1)
    return np.maximum(settings.paths, -(-settings.least // degree_N)) if settings.hops > 1 else np.zeros_like(degree_N)


def _turn(dense_NK: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squares of the singular values, falling, and right singular vectors as columns; none of what rounding made.

    By the columns' products, which of a tall matrix take a tenth of the time of Householder's reflections.
    """
    gram_KK = np.zeros((dense_NK.shape[1],) * 2)
    for start in range(0, len(dense_NK), _PIECE):
        piece = dense_NK[start : start + _PIECE].astype(np.float64)
        gram_KK += piece.T @ piece
    squares_K, turn_KK = np.linalg.eigh(gram_KK)
    some_K = squares_K > max(squares_K[-1], 0) * _ROUNDING
    return squares_K[some_K][::-1], turn_KK[:, some_K][:, ::-1]


def _orthogonal(dense_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    """A basis of what the columns span, in as many columns as that takes."""
    squares_K, turn_KK = _turn(dense_NK)
    return dense_NK @ (turn_KK / np.sqrt(squares_K)).astype(np.float32)


def _scaled(rows_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of mean length 0.7, of those that are not 0."""
    length_N = np.linalg.norm(rows_ND, axis=1)
    some_N = length_N > 0
    return rows_ND * np.float32(_LENGTH / length_N[some_N].mean()) if some_N.any() else rows_ND


def _by_rows(work: Callable[[int, int], Any], count: int, threads: int) -> None:
    """Call ``work`` with the bounds of pieces of all rows."""
    firsts = iter(range(0, count, _ROWS))

    def some() -> None:
        for first in firsts:
            work(first, min(first + _ROWS, count))

    share(some, min(threads, -(-count // _ROWS)))


@compiled(nogil=True)
def _sample(  # type: ignore[no-untyped-def]
    indptr_N,
    indices_E,
    weight_E,
    strength_N,
    keep_E,
    other_E,
    each_N,
    hops,
    seed,
    room_N,
    indices_F,
    values_F,
    count_N,
    begin,
    end,
):
    """Of each node, p(b | a): distinct nodes, ascending, and their probabilities."""
    weighted = len(weight_E) > 0
    weight_of_all = hops * (hops + 1) * 0.5
    widest = 0
    for n in range(begin, end):
        widest = max(widest, room_N[n + 1] - room_N[n])
    found, share_of = np.empty(widest, np.int32), np.empty(widest, np.float64)
    for n in range(begin, end):
        state = splitmix64_scalar(splitmix64_scalar(seed) ^ np.uint64(n))
        seen = 0
        for e in range(indptr_N[n], indptr_N[n + 1]):
            p = (np.float64(weight_E[e]) if weighted else 1.0) / strength_N[n] / weight_of_all
            found[seen], share_of[seen] = indices_E[e], p * hops
            seen += 1
            for _ in range(each_N[n]):
                v = np.int64(indices_E[e])
                for hop in range(2, hops + 1):
                    degree = indptr_N[v + 1] - indptr_N[v]
                    if degree == 0:
                        break
                    state += _GOLDEN
                    chosen = indptr_N[v] + np.int64(mulhi64_scalar(splitmix64_scalar(state), np.uint64(degree)))
                    if weighted:
                        state += _GOLDEN
                        if (splitmix64_scalar(state) >> _U11) * _UNIT >= keep_E[chosen]:
                            chosen = indptr_N[v] + other_E[chosen]
                    v = np.int64(indices_E[chosen])
                    if v != n:  # a node's own context says nothing of others
                        found[seen], share_of[seen] = v, p * (hops + 1 - hop) / each_N[n]
                        seen += 1
        order = np.argsort(found[:seen], kind="mergesort")
        kept = room_N[n] - 1
        last = -1
        for place in order:
            if found[place] != last:
                kept += 1
                last = found[place]
                indices_F[kept], values_F[kept] = last, 0.0
            values_F[kept] += share_of[place]
        count_N[n] = kept + 1 - room_N[n]


@compiled(nogil=True)
def _masses(room_N, indices_F, values_F, count_N, strength_N, mass_N):  # type: ignore[no-untyped-def]
    for n in range(len(count_N)):
        for f in range(room_N[n], room_N[n] + count_N[n]):
            mass_N[indices_F[f]] += strength_N[n] * values_F[f]


@compiled(nogil=True)
def _prune(room_N, indices_F, values_F, count_N, mass_N, indptr_N):  # type: ignore[no-untyped-def]
    """Keep the logarithms that are above 0, moved together in place."""
    kept = 0
    for n in range(len(count_N)):
        for f in range(room_N[n], room_N[n] + count_N[n]):
            ratio = values_F[f] / mass_N[indices_F[f]]
            if ratio > 1.0:
                indices_F[kept], values_F[kept] = indices_F[f], np.log(ratio)
                kept += 1
        indptr_N[n + 1] = kept


@compiled(nogil=True)
def _transpose(indptr_N, indices_F, values_F, next_N, out_indices_F, out_values_F):  # type: ignore[no-untyped-def]
    for n in range(len(indptr_N) - 1):
        for f in range(indptr_N[n], indptr_N[n + 1]):
            place = next_N[indices_F[f]]
            out_indices_F[place], out_values_F[place] = n, values_F[f]
            next_N[indices_F[f]] += 1


@compiled(nogil=True, fastmath={"contract"})
def _times(indptr_N, indices_F, values_F, dense_NK, out_NK, begin, end):  # type: ignore[no-untyped-def]
    for n in range(begin, end):
        out = out_NK[n]
        out[:] = 0.0
        for f in range(indptr_N[n], indptr_N[n + 1]):
            row, value = dense_NK[indices_F[f]], values_F[f]
            for k in range(len(out)):
                out[k] += value * row[k]
