"""Link prediction against brute force on small graphs, networkx, and answers known by construction."""

from __future__ import annotations

import math
import re
import sys
from itertools import combinations

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from embstore.errors import ConfigError, GraphError
from embstore.node2vec import links
from embstore.node2vec.graph import Graph
from embstore.node2vec.links import (
    BASELINES,
    OPERATORS,
    LinkSplit,
    baseline_auc,
    neighbour_scores,
    operator_auc,
    split_links,
)
from embstore.node2vec.logistic import Logistic


def random_graph(num_nodes: int, edges: int, seed: int, *, weighted: bool = False) -> Graph:
    generator = np.random.default_rng(seed)
    pairs = np.array(list(combinations(range(num_nodes), 2)))
    pairs = pairs[generator.choice(len(pairs), edges, replace=False)]
    weight = generator.integers(1, 9, edges) if weighted else None
    return Graph.of_edges(*pairs.T, weight, num_nodes=num_nodes)


def edge_set(graph: Graph) -> set[tuple[int, int]]:
    return {(int(u), int(v)) for u, v in zip(graph.sources(), graph.indices_E, strict=True) if u <= v}


def pair_set(pairs_M2: np.ndarray) -> set[tuple[int, int]]:
    return {(int(u), int(v)) for u, v in pairs_M2}


def as_networkx(graph: Graph) -> nx.Graph:
    judge = nx.Graph()
    judge.add_nodes_from(range(graph.num_nodes))
    judge.add_edges_from(edge_set(graph))
    return judge


@given(st.integers(4, 14), st.floats(0.1, 0.9), st.floats(0.05, 0.6), st.integers(0, 2**32))
def test_split(num_nodes: int, density: float, share: float, seed: int) -> None:
    most = num_nodes * (num_nodes - 1) // 2
    graph = random_graph(num_nodes, max(1, round(density * most)), seed)
    count, whole = round(share * graph.num_edges), as_networkx(graph)
    components = nx.number_connected_components(whole)
    can_go = graph.num_edges - (num_nodes - components)
    if not 0 < count <= can_go or most - graph.num_edges <= count:
        with pytest.raises(GraphError, match="a graph to predict links of"):
            split_links(graph, share, seed=seed)
        return
    split = split_links(graph, share, seed=seed)
    residual, tested = edge_set(split.residual), pair_set(split.test_edges)
    assert len(tested) == len(split.test_edges) == len(split.test_others) == count
    assert not residual & tested
    assert residual | tested == edge_set(graph)
    assert pair_set(split.train_edges) == residual
    assert nx.number_connected_components(as_networkx(split.residual)) == components
    others = [*map(tuple, split.test_others.tolist()), *map(tuple, split.train_others.tolist())]
    assert len(set(others)) == len(others)
    assert all(u < v for u, v in others)
    assert not set(others) & edge_set(graph)
    assert len(split.train_others) == min(len(residual), most - graph.num_edges - count)


@given(st.integers(5, 12), st.integers(0, 2**32))
def test_edges_go_as_if_taken_one_by_one(num_nodes: int, seed: int) -> None:
    graph = random_graph(num_nodes, min(2 * num_nodes, num_nodes * (num_nodes - 1) // 2 - num_nodes // 2 - 2), seed)
    edges = sorted(edge_set(graph))
    order = np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(len(edges))
    judge, gone = as_networkx(graph), []
    for place in order:
        u, v = edges[place]
        judge.remove_edge(u, v)
        if nx.has_path(judge, u, v):
            gone.append((u, v))
        else:
            judge.add_edge(u, v)
    split = split_links(graph, 0.25, seed=seed)
    count = round(0.25 * len(edges))
    assert [tuple(pair) for pair in split.test_edges.tolist()] == gone[:count]


def test_split_is_a_function_of_the_seed() -> None:
    graph = random_graph(30, 120, 0)
    one, again, other = split_links(graph, seed=4), split_links(graph, seed=4), split_links(graph, seed=5)
    for name in ("train_edges", "train_others", "test_edges", "test_others"):
        assert np.array_equal(getattr(one, name), getattr(again, name))
        assert not np.array_equal(getattr(one, name), getattr(other, name))


def test_pairs_without_an_edge_are_equally_likely() -> None:
    graph = random_graph(7, 9, 2)  # 12 pairs without an edge, of which 2 are drawn for the test
    times = dict.fromkeys(set(combinations(range(7), 2)) - edge_set(graph), 0)
    rounds = 3000
    for seed in range(rounds):
        for pair in pair_set(split_links(graph, 0.2, seed=seed).test_others):
            times[pair] += 1
    expected = rounds * 2 / len(times)
    deviation = math.sqrt(expected * (1 - 2 / len(times)))
    assert all(abs(count - expected) < 4.5 * deviation for count in times.values())


def of_features(**sizes: int) -> dict[str, pa.Array]:
    return {name: pa.array(np.arange(size)) for name, size in sizes.items()}


def linked(edges: set[tuple[int, int]], nodes: dict[str, pa.Array]) -> Graph:
    return Graph.of_edges(*np.array(sorted(edges)).T, num_nodes=sum(map(len, nodes.values())), nodes=nodes)


def split_or_why_not(graph: Graph, share: float, seed: int) -> LinkSplit | str:
    try:
        return split_links(graph, share, seed=seed)
    except GraphError as error:
        return str(error)


@given(st.integers(2, 7), st.integers(0, 3), st.integers(2, 7), st.floats(0.2, 0.8), st.integers(0, 2**32))
def test_pairs_without_an_edge_are_of_the_features_that_edges_are_of(
    users: int, others: int, items: int, density: float, seed: int
) -> None:
    """Users have edges with items, and items with items; others, between the two in number, have none."""
    nodes = of_features(user=users, other=others, item=items)
    first = users + others
    most = {(u, v) for v in range(first, first + items) for u in (*range(users), *range(first, v))}
    drawn = np.random.default_rng(seed).random(len(most)) < density
    edges = {pair for pair, there in zip(sorted(most), drawn, strict=True) if there}

    def kinds(pairs: set[tuple[int, int]]) -> list[int]:
        return [sum((u < users) == of_user for u, _ in pairs) for of_user in (True, False)]

    free = kinds(most - edges)
    split = split_or_why_not(linked(edges, nodes), 0.3, seed) if edges else "edges to remove: none"
    if isinstance(split, str):
        short = re.search(r"more than (\d+) pairs of (user|item) and item without an edge; found (\d+)", split)
        assert short or "edges to remove" in split
        assert not short or int(short[1]) >= int(short[3]) == free[short[2] == "item"]
        return
    test, train = pair_set(split.test_others), pair_set(split.train_others)
    assert test | train <= most - edges
    assert not test & train
    assert (len(test), len(train)) == (len(split.test_others), len(split.train_others))
    assert kinds(test) == kinds(pair_set(split.test_edges))
    kept = kinds(pair_set(split.train_edges))
    assert kinds(train) == [min(*of) for of in zip(kept, np.subtract(free, kinds(test)), strict=True)]


def test_users_and_items_are_equally_likely() -> None:
    nodes = of_features(user=3, item=5)
    edges = {(0, 3), (0, 4), (1, 4), (1, 3), (2, 5), (2, 6), (2, 7), (1, 5)}  # 7 pairs without, 1 for the test
    graph, rounds = linked(edges, nodes), 2000
    times = dict.fromkeys({(u, v) for u in range(3) for v in range(3, 8)} - edges, 0)
    for seed in range(rounds):
        (pair,) = pair_set(split_links(graph, 0.1, seed=seed).test_others)
        times[pair] += 1
    deviation = math.sqrt(rounds / 7 * (6 / 7))
    assert all(abs(count - rounds / 7) < 4.5 * deviation for count in times.values())


def test_vectors_that_only_tell_users_from_items_predict_nothing() -> None:
    drawn = np.random.default_rng(0).random((30, 40)) < 0.3
    users, items = np.nonzero(drawn)
    nodes = of_features(user=30, item=40)
    split = split_links(Graph.of_edges(users, items + 30, num_nodes=70, nodes=nodes), 0.4)
    vectors_ND = np.repeat([[1.0, -1.0], [-1.0, 1.0]], [30, 40], axis=0)
    assert operator_auc(vectors_ND, split) == 0.5
    assert set(baseline_auc(split)) == {"preferential_attachment"}
    whole = split_links(Graph.of_edges(users, items + 30, num_nodes=70), 0.4)
    assert operator_auc(vectors_ND, whole) > 0.6
    assert set(baseline_auc(whole)) == set(BASELINES)


def test_weights_loops_and_lonely_nodes_stay() -> None:
    graph = random_graph(20, 60, 1, weighted=True)
    loops = np.array([0, 3])
    source, target = np.concatenate([graph.sources(), loops]), np.concatenate([graph.indices_E, loops])
    upper = source <= target
    weight = np.concatenate([graph.weights_E, [2.0, 7.0]])[upper]
    graph = Graph.of_edges(source[upper], target[upper], weight, num_nodes=23)
    split = split_links(graph, 0.4)
    assert len(split.test_edges) == 24  # of 60: loops don't count
    assert split.residual.num_nodes == 23
    weights = {(u, v): w for u, v, w in zip(graph.sources(), graph.indices_E, graph.weights_E, strict=True)}
    left = split.residual
    assert {(0, 0), (3, 3)} <= edge_set(left)
    assert len(left.indices_E) == len(graph.indices_E) - 2 * 24
    for u, v, w in zip(left.sources(), left.indices_E, left.weights_E, strict=True):
        assert weights[u, v] == w


@pytest.mark.parametrize("num_nodes", [12, 25])
def test_baselines_against_networkx(num_nodes: int) -> None:
    graph = random_graph(num_nodes, 3 * num_nodes, 5)
    pairs = list(combinations(range(num_nodes), 2))
    judge = as_networkx(graph)
    found = neighbour_scores(graph, np.array(pairs))
    expected = {
        "common_neighbours": [len(list(nx.common_neighbors(judge, u, v))) for u, v in pairs],
        "jaccard": [score for _, _, score in nx.jaccard_coefficient(judge, pairs)],
        "adamic_adar": [score for _, _, score in nx.adamic_adar_index(judge, pairs)],
        "preferential_attachment": [score for _, _, score in nx.preferential_attachment(judge, pairs)],
    }
    assert tuple(found) == BASELINES
    for name in BASELINES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)


def test_loops_and_weights_count_for_no_baseline() -> None:
    plain = Graph.of_edges(np.array([0, 1, 0]), np.array([1, 2, 3]), num_nodes=5)
    other = Graph.of_edges(np.array([0, 1, 0, 1, 4]), np.array([1, 2, 3, 1, 4]), np.array([5, 2, 3, 1, 1]))
    pairs_M2 = np.array(list(combinations(range(5), 2)))
    for name, scores_M in neighbour_scores(plain, pairs_M2).items():
        assert np.array_equal(scores_M, neighbour_scores(other, pairs_M2)[name])


def test_many_pairs_are_scored_as_few() -> None:
    graph = random_graph(40, 200, 3)
    pairs_M2 = np.random.default_rng(0).integers(0, 40, (9000, 2))
    whole = neighbour_scores(graph, pairs_M2)
    for name, scores_M in neighbour_scores(graph, pairs_M2[4090:4100]).items():
        assert np.array_equal(scores_M, whole[name][4090:4100])


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_against_scikit_learn(operator: str) -> None:
    split = split_links(random_graph(40, 250, 7), seed=1)
    vectors_ND = np.random.default_rng(2).standard_normal((40, 5)).astype(np.float32)
    table = {
        "average": lambda u, v: (u + v) / 2,
        "hadamard": lambda u, v: u * v,
        "weighted_l1": lambda u, v: abs(u - v),
        "weighted_l2": lambda u, v: abs(u - v) ** 2,
    }

    def rows(pairs_M2: np.ndarray) -> list[np.ndarray]:
        return [table[operator](vectors_ND[u].astype(float), vectors_ND[v].astype(float)) for u, v in pairs_M2]

    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000))
    judge.fit(
        rows(split.train_edges) + rows(split.train_others), [1] * len(split.train_edges) + [0] * len(split.train_others)
    )
    scores = judge.decision_function(rows(split.test_edges) + rows(split.test_others))
    expected = roc_auc_score([1] * len(split.test_edges) + [0] * len(split.test_others), scores)
    assert operator_auc(vectors_ND, split, operator, C=0.5) == pytest.approx(expected, abs=1e-4)


def test_so_many_pairs_are_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn by the seed; and test pairs are scored piece by piece as at once."""
    split = split_links(random_graph(60, 600, 7), seed=1)
    vectors_ND = np.random.default_rng(2).standard_normal((60, 5)).astype(np.float32)
    fitted: list[tuple[np.ndarray, np.ndarray]] = []
    fit = Logistic.fit.__func__

    def noting(cls: type[Logistic], vectors_MD: np.ndarray, labels_MK: np.ndarray, C: float) -> Logistic:
        fitted.append((vectors_MD, labels_MK))
        return fit(cls, vectors_MD, labels_MK, C)

    monkeypatch.setattr(Logistic, "fit", classmethod(noting))
    whole = operator_auc(vectors_ND, split)
    assert operator_auc(vectors_ND, split, most_pairs=600) == whole
    found = [operator_auc(vectors_ND, split, most_pairs=50, seed=seed) for seed in (3, 3, 4)]
    assert [len(vectors_MD) for vectors_MD, _ in fitted] == [600, 600, 50, 50, 50]
    assert 10 < fitted[2][1].sum() < 40
    assert np.array_equal(fitted[2][0], fitted[3][0])
    assert not np.array_equal(fitted[3][0], fitted[4][0])
    assert found[0] == found[1]
    monkeypatch.setattr(links, "_AT_ONCE", 7)
    assert operator_auc(vectors_ND, split) == pytest.approx(whole, abs=1e-6)


def communities() -> LinkSplit:
    """Two of 20 nodes each, most pairs within them linked and none between them."""
    pairs = np.array([(u, v) for u, v in combinations(range(40), 2) if u // 20 == v // 20 and (u + v) % 4])
    bridge = np.array([[0, 20]])
    return split_links(Graph.of_edges(*np.concatenate([pairs, bridge]).T), 0.4)


def test_vectors_that_tell_communities_apart() -> None:
    split = communities()
    vectors_ND = np.repeat([[1.0, 1.0], [-1.0, 1.0]], 20, axis=0)
    across = [pair for pair in split.test_others.tolist() if pair[0] // 20 != pair[1] // 20]
    # A pair across is told apart from every edge; one within, from none: a tie counts half.
    expected = (len(across) + 0.5 * (len(split.test_others) - len(across))) / len(split.test_others)
    for operator in ("hadamard", "weighted_l1", "weighted_l2"):
        assert operator_auc(vectors_ND, split, operator) == pytest.approx(expected)
    assert baseline_auc(split)["common_neighbours"] > 0.7


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_links(random_graph(12, 30, 0))
    for name in ("sklearn.metrics", "sklearn.linear_model"):
        monkeypatch.setitem(sys.modules, name, None)
    for judge in (lambda: operator_auc(np.ones((12, 2)), split), lambda: baseline_auc(split)):
        with pytest.raises(ConfigError, match=r"scikit-learn.*pip install 'embstore\[graphs\]'"):
            judge()


def test_what_is_refused() -> None:
    graph = random_graph(12, 30, 0)
    arcs = Graph.of_edges(np.arange(5), (np.arange(5) + 1) % 5, directed=True)
    with pytest.raises(GraphError, match="undirected"):
        split_links(arcs)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            split_links(graph, share)
    tree = Graph.of_edges(np.zeros(9, np.int64), np.arange(1, 10))
    with pytest.raises(GraphError, match="1 to 0 edges to remove"):
        split_links(tree)
    whole = random_graph(8, 28, 0)
    with pytest.raises(GraphError, match="pairs of nodes without an edge; found 0"):
        split_links(whole, 0.2)
    split = split_links(graph)
    with pytest.raises(ConfigError, match="weighted_l1"):
        operator_auc(np.ones((12, 2)), split, "difference")
    with pytest.raises(ConfigError, match="12 nodes"):
        operator_auc(np.ones((11, 2)), split)
