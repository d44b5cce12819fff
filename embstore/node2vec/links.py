"""Link prediction by vectors (Grover & Leskovec 2016, section 4.4), and by neighbours that pairs have in common.

    graph ──split──> residual graph ──walks, skip-gram──> vectors
                     train pairs: the residual graph's edges, and as many pairs without one
                     test pairs:  the edges taken out, and as many pairs without one

Vectors and baselines see the residual graph alone. Pairs without an edge are without one in the whole graph; all are
distinct, those for training and for the test apart. So no test pair, of either kind, is seen in training.

Where nodes are values of several features, pairs without an edge are of the features that edges are of, as many of
each: a user and an item where all edges are such, and never two users, whom any vectors tell from a user and an item.

Suffixes: N nodes, E edges, M pairs, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, GraphError
from embstore.node2vec.graph import Graph
from embstore.node2vec.logistic import Logistic, scikit_learn

_AT_ONCE = 4096  # pairs whose rows are multiplied together
_MOST_PAIRS = 200_000  # to fit on

OPERATORS: dict[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]] = {  # table 1
    "average": lambda u_MD, v_MD: (u_MD + v_MD) / 2,
    "hadamard": lambda u_MD, v_MD: u_MD * v_MD,
    "weighted_l1": lambda u_MD, v_MD: np.abs(u_MD - v_MD),
    "weighted_l2": lambda u_MD, v_MD: (u_MD - v_MD) ** 2,
}
BASELINES = ("common_neighbours", "jaccard", "adamic_adar", "preferential_attachment")  # table 3


@dataclass(frozen=True, kw_only=True, eq=False)
class LinkSplit:
    """A graph without some of its edges, and pairs of nodes that did or did not have one: int64 ``[M, 2]``.

    Args:
        residual: what is left, of as many components as the graph was.
        train_edges, train_others: pairs to fit on, as many of both where the graph has so many.
        test_edges, test_others: pairs to be told apart, as many of both.
    """

    residual: Graph
    train_edges: NDArray[np.int64]
    train_others: NDArray[np.int64]
    test_edges: NDArray[np.int64]
    test_others: NDArray[np.int64]


def split_links(graph: Graph, share: float = 0.5, *, seed: int = 0) -> LinkSplit:
    """Take a share of the edges out, so that what is left connects all that was connected.

    The result is that of taking edges in random order, each unless it is the last path between its ends, until there
    are enough; it is found by one spanning forest. Loops stay, and count for nothing.

    Raises:
        ConfigError: a share not between 0 and 1, or scipy is not installed.
        GraphError: a directed graph, or one with too few edges that can go, or too few pairs without an edge of the
            features that one of those that go is of.

    >>> ring = Graph.of_edges(np.arange(10), (np.arange(10) + 1) % 10)
    >>> split = split_links(ring, share=0.1)
    >>> split.residual.num_edges, split.test_edges.shape, split.train_others.shape
    (9, (1, 2), (9, 2))
    """
    if not 0 < share < 1:
        raise ConfigError("share of edges to remove", expected="a number between 0 and 1", found=str(share))
    if graph.directed:
        raise GraphError("a graph to predict links of", expected="an undirected one", found="a directed one")
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    source_E = graph.sources().astype(np.int64)
    target_E = graph.indices_E.astype(np.int64)
    upper = np.flatnonzero(source_E < target_E)
    edges_E2 = np.stack([source_E[upper], target_E[upper]], axis=1)
    count = round(share * len(edges_E2))
    order_E = generator.permutation(len(edges_E2))
    loose = order_E[~_in_forest(edges_E2[order_E], graph.num_nodes)]
    if not 0 < count <= len(loose):
        do = "take a smaller share" if count else "take a greater one"
        expected = f"1 to {len(loose):,} edges to remove: as many as leave connected what is"
        raise GraphError("a graph to predict links of", expected=expected, found=f"{count:,}", do=do)
    gone_E = np.zeros(len(edges_E2), dtype=bool)
    gone_E[loose[:count]] = True
    kept_E = ~gone_E
    test_others, train_others = _without_edge(edges_E2, kept_E, graph.parts(), generator)
    return LinkSplit(
        residual=_residual(graph, edges_E2, upper, kept_E),
        train_edges=edges_E2[kept_E],
        train_others=train_others,
        test_edges=edges_E2[loose[:count]],
        test_others=test_others,
    )


def operator_auc(
    vectors_ND: NDArray[np.floating],
    split: LinkSplit,
    operator: str = "hadamard",
    *,
    C: float = 1.0,
    most_pairs: int = _MOST_PAIRS,
    seed: int = 0,
) -> float:
    """AUC of test pairs by logistic regression on the vectors of pairs, each number scaled to deviation 1 in training.

    Memory is that of the pairs that are fitted on, ``8 * D`` bytes each, and a few times as much.

    Args:
        vectors_ND: of the residual graph's nodes.
        operator: of ``OPERATORS``.
        C: inverse of the L2 penalty's weight.
        most_pairs: of training that are fitted on, drawn at random where there are more.
        seed: of that draw.

    Raises:
        ConfigError: an operator that is none, other vectors, or scikit-learn is not installed.
    """
    if operator not in OPERATORS:
        raise ConfigError("operator on two vectors", expected=", ".join(OPERATORS), found=operator)
    if vectors_ND.ndim != 2 or len(vectors_ND) != split.residual.num_nodes:
        expected = f"a vector for each of {split.residual.num_nodes:,} nodes"
        raise ConfigError("vectors", expected=expected, found=str(list(vectors_ND.shape)))

    def features(pairs_M2: NDArray[np.int64]) -> NDArray[np.float64]:
        u_MD, v_MD = (vectors_ND[end_M].astype(np.float64) for end_M in pairs_M2.T)
        return OPERATORS[operator](u_MD, v_MD)

    train_M2 = np.concatenate([split.train_edges, split.train_others])
    label_M = _labels(split.train_edges, split.train_others)
    if len(train_M2) > most_pairs:
        generator = np.random.Generator(np.random.Philox(key=[seed, 1]))
        drawn_M = generator.choice(len(train_M2), most_pairs, replace=False)
        train_M2, label_M = train_M2[drawn_M], label_M[drawn_M]
    train_MD = features(train_M2)
    mean_D, deviation_D = train_MD.mean(axis=0), train_MD.std(axis=0)
    deviation_D[deviation_D == 0] = 1.0
    train_MD -= mean_D
    train_MD /= deviation_D
    model = Logistic.fit(train_MD, label_M[:, None], C)
    del train_MD
    test_M2 = np.concatenate([split.test_edges, split.test_others])
    scores_M = np.empty(len(test_M2))
    for start in range(0, len(test_M2), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        scores_M[part] = model.scores((features(test_M2[part]) - mean_D) / deviation_D)[:, 0]
    return _auc(split, scores_M)


def baseline_auc(split: LinkSplit) -> dict[str, float]:
    """AUC of test pairs by each of ``BASELINES``, computed on the residual graph.

    Those that count neighbours in common are left out where no test pair has any: a user's are items and an item's are
    users.

    Raises:
        ConfigError: scipy or scikit-learn is not installed.
    """
    scores = neighbour_scores(split.residual, np.concatenate([split.test_edges, split.test_others]))
    return {name: _auc(split, scores_M) for name, scores_M in scores.items() if scores_M.any()}


def neighbour_scores(graph: Graph, pairs_M2: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Each of ``BASELINES`` for pairs of nodes, float64 ``[M]``; loops and weights count for nothing.

    Raises:
        ConfigError: scipy is not installed.
    """
    sparse = _sparse()
    apart = graph.sources() != graph.indices_E
    shape = (graph.num_nodes, graph.num_nodes)
    ends = (graph.sources()[apart], graph.indices_E[apart])
    near_NN = sparse.csr_array((np.ones(len(ends[0])), ends), shape=shape)
    degree_N = np.diff(near_NN.indptr).astype(np.float64)
    # Only nodes of two neighbours or more are common neighbours.
    rare_NN = near_NN @ sparse.diags_array(1 / np.log(np.maximum(degree_N, 2)))
    common_M, rare_M = np.empty(len(pairs_M2)), np.empty(len(pairs_M2))
    for start in range(0, len(pairs_M2), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        u_near, v = near_NN[pairs_M2[part, 0]], pairs_M2[part, 1]
        common_M[part] = u_near.multiply(near_NN[v]).sum(axis=1)
        rare_M[part] = u_near.multiply(rare_NN[v]).sum(axis=1)
    u_M, v_M = degree_N[pairs_M2[:, 0]], degree_N[pairs_M2[:, 1]]
    jaccard_M = common_M / np.maximum(u_M + v_M - common_M, 1)
    return dict(zip(BASELINES, (common_M, jaccard_M, rare_M, u_M * v_M), strict=True))


def _in_forest(edges_E2: NDArray[np.int64], num_nodes: int) -> NDArray[np.bool_]:
    """Edges that stay when all others are taken out in turn; those of a spanning forest, the last ones preferred."""
    sparse = _sparse()
    from scipy.sparse.csgraph import minimum_spanning_tree  # type: ignore[import-untyped]

    cost_E = np.arange(len(edges_E2), 0, -1, dtype=np.float64)
    matrix = sparse.csr_array((cost_E, edges_E2.T), shape=(num_nodes, num_nodes))
    forest = minimum_spanning_tree(matrix)
    in_E = np.zeros(len(edges_E2), dtype=bool)
    in_E[len(edges_E2) - forest.data.astype(np.int64)] = True
    return in_E


def _without_edge(
    edges_E2: NDArray[np.int64], kept_E: NDArray[np.bool_], parts: Mapping[str, range], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct pairs of two nodes that have no edge: for the test, and for training.

    Of any two features, or within one, as many as edges that go, and as many as edges that stay if there are.
    """
    names, ranges = list(parts), list(parts.values())
    feature_E2 = np.searchsorted([part.start for part in ranges], edges_E2, side="right") - 1
    kind_E = feature_E2 @ np.array([len(parts), 1])
    test, train = [], []
    for kind in np.unique(kind_E):
        u, v = divmod(int(kind), len(parts))
        of_it = kind_E == kind
        needed = int((of_it & ~kept_E).sum())
        block = _Within(ranges[u]) if u == v else _Between(ranges[u], ranges[v])
        number_E = np.sort(block.numbers(edges_E2[of_it]))
        count = block.pairs - len(number_E)
        if needed and count < needed + 1:
            what = "nodes" if len(parts) == 1 else f"{names[u]} and {names[v]}"
            raise GraphError(
                "a graph to predict links of",
                expected=f"more than {needed:,} pairs of {what} without an edge",
                found=f"{count:,}",
                do="take a smaller share of edges, or a sparser graph",
            )
        # A pair of rank r among those without an edge comes after as many with one as have a number, less their own
        # rank, of at most r.
        rank_M = generator.choice(count, size=min(int(of_it.sum()), count), replace=False)
        number_M = rank_M + np.searchsorted(number_E - np.arange(len(number_E)), rank_M, side="right")
        pairs_M2 = block.of_numbers(number_M)
        test.append(pairs_M2[:needed])
        train.append(pairs_M2[needed:])
    return np.concatenate(test), np.concatenate(train)


class _Within:
    """Pairs (u, v), u < v, of one feature's nodes, numbered row by row."""

    def __init__(self, part: range) -> None:
        self.first, self.pairs = part.start, len(part) * (len(part) - 1) // 2
        self._before_N = np.concatenate([[0], np.cumsum(np.arange(len(part) - 1, 0, -1, dtype=np.int64))])

    def numbers(self, pairs_M2: NDArray[np.int64]) -> NDArray[np.int64]:
        u_M, v_M = (pairs_M2 - self.first).T
        return np.asarray(self._before_N[u_M] + v_M - u_M - 1)

    def of_numbers(self, number_M: NDArray[np.int64]) -> NDArray[np.int64]:
        u_M = np.searchsorted(self._before_N, number_M, side="right") - 1
        return np.stack([u_M, number_M - self._before_N[u_M] + u_M + 1], axis=1) + self.first


class _Between:
    """Pairs of a node of one feature and one of another, numbered row by row."""

    def __init__(self, one: range, other: range) -> None:
        self.first, self.pairs, self._row = np.array([one.start, other.start]), len(one) * len(other), len(other)

    def numbers(self, pairs_M2: NDArray[np.int64]) -> NDArray[np.int64]:
        u_M, v_M = (pairs_M2 - self.first).T
        return np.asarray(u_M * self._row + v_M)

    def of_numbers(self, number_M: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack(np.divmod(number_M, self._row), axis=1) + self.first


def _residual(graph: Graph, edges_E2: NDArray[np.int64], upper: NDArray[np.int64], kept_E: NDArray[np.bool_]) -> Graph:
    loops = np.flatnonzero(graph.sources() == graph.indices_E)
    weight = None
    if graph.weights_E is not None:
        weight = np.concatenate([graph.weights_E[upper[kept_E]], graph.weights_E[loops]])
    ends_E2 = np.concatenate([edges_E2[kept_E], np.repeat(graph.indices_E[loops, None], 2, axis=1)])
    return Graph.of_edges(ends_E2[:, 0], ends_E2[:, 1], weight, num_nodes=graph.num_nodes, nodes=graph.nodes)


def _labels(edges: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.arange(len(edges) + len(others)) < len(edges)


def _auc(split: LinkSplit, scores_M: NDArray[np.float64]) -> float:
    return float(scikit_learn("metrics").roc_auc_score(_labels(split.test_edges, split.test_others), scores_M))


def _sparse() -> Any:
    try:
        from scipy import sparse  # type: ignore[import-untyped]
    except ImportError as error:
        do = "pip install 'embstore[graphs]'"
        raise ConfigError("link prediction", expected="scipy", found=str(error), do=do) from error
    return sparse
