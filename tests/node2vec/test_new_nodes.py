"""Vectors of nodes that came later: means by hand, old rows to the bit, communities known by construction."""

import numpy as np
import pytest

from embstore.errors import GraphError
from embstore.node2vec.graph import Graph
from embstore.node2vec.new_nodes import mean_vectors, new_vectors
from embstore.node2vec.skipgram import SkipGram, SkipGramSettings
from embstore.node2vec.walks import Walker, WalkSettings

NODES, GROUPS = 240, 4


def planted(seed=0, edges=4000):
    generator = np.random.default_rng(seed)
    source, target = generator.integers(0, NODES, (2, edges))
    inside = (source % GROUPS == target % GROUPS) | (generator.random(edges) < 0.1)
    return source[inside], target[inside]


def trained(graph, dim=16):
    walker = Walker(graph, WalkSettings(length=20, num_walks=10))
    walks = walker.walks(0, walker.num_walks)
    visits = np.bincount(walks[walks >= 0], minlength=graph.num_nodes)
    model = SkipGram(visits, len(walks), SkipGramSettings(dim=dim, window=5, epochs=3, subsample=0))
    for epoch in range(3):
        model.train(walks, 0, epoch=epoch)
    return model.vectors.copy(), model.contexts.copy()


@pytest.fixture(scope="module")
def grown():
    """A graph, what was learnt without a tenth of its nodes, and which were known."""
    source, target = planted()
    known = np.random.default_rng(1).random(NODES) > 0.1
    both = known[source] & known[target]
    vectors, contexts = trained(Graph.of_edges(source[both], target[both], num_nodes=NODES))
    return Graph.of_edges(source, target, num_nodes=NODES), vectors, contexts, known


def groups_of_nearest(vectors, known):
    """The share of the nearest known nodes of new nodes that are of their group."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    old = np.flatnonzero(known)
    near = old[np.argsort(-(unit[~known] @ unit[old].T), axis=1)[:, :10]]
    return (near % GROUPS == np.flatnonzero(~known)[:, None] % GROUPS).mean()


def test_the_mean_is_weighted():
    graph = Graph.of_edges(np.array([0, 1]), np.array([2, 2]), np.array([3.0, 1.0]))
    vectors = np.float32([[4, 0], [0, 8], [9, 9]])
    out = mean_vectors(graph, vectors, np.array([True, True, False]))
    assert out[2].tolist() == [3.0, 2.0]


@pytest.mark.parametrize("power", [-0.5, 0.0, 0.75])
def test_nodes_without_edges_are_no_negatives(power):
    graph = Graph.of_edges(np.arange(5), np.arange(1, 6), num_nodes=8)
    known, rows = np.arange(8) < 4, np.ones((8, 4), np.float32)
    how = SkipGramSettings(dim=4, power=power)
    vectors, contexts = new_vectors(graph, rows, rows, known, WalkSettings(length=5), how)
    assert not contexts[6:].any()
    assert not np.array_equal(vectors[5], vectors[0])


def test_a_chain_of_new_nodes_is_reached_round_by_round():
    chain = Graph.of_edges(np.arange(5), np.arange(1, 6), num_nodes=7)
    vectors = np.zeros((7, 1), np.float32)
    vectors[0], vectors[5] = 2.0, 6.0
    known = np.array([True, False, False, False, False, True, False])
    out = mean_vectors(chain, vectors, known)
    # 1 and 4 in the first round, 2 and 3 of those in the second; 6 knows nobody.
    assert out.ravel().tolist() == [2.0, 2.0, 2.0, 6.0, 6.0, 6.0, 0.0]


def test_arcs_count_in_both_directions():
    graph = Graph.of_edges(np.array([0, 2]), np.array([2, 1]), directed=True)
    out = mean_vectors(graph, np.float32([[1], [5], [0]]), np.array([True, True, False]))
    assert out[2, 0] == 3.0


def test_what_was_there_for_new_nodes_is_not_read(grown):
    graph, vectors, _, known = grown
    broken = np.where(known[:, None], vectors, np.float32(np.nan))
    np.testing.assert_array_equal(mean_vectors(graph, broken, known), mean_vectors(graph, vectors, known))


@pytest.mark.parametrize("directed", [False, True])
def test_old_rows_are_the_same_bits_and_new_ones_moved(grown, directed):
    graph, vectors, contexts, known = grown
    if directed:
        graph = Graph.of_edges(graph.sources(), graph.indices_E, num_nodes=NODES, directed=True)
    before = vectors.tobytes(), contexts.tobytes()
    walks, how = WalkSettings(length=6), SkipGramSettings(dim=16, window=5)
    found = new_vectors(graph, vectors, contexts, known, walks, how)
    for now, old, start in zip(found, (vectors, contexts), (vectors, contexts), strict=True):
        assert now[known].tobytes() == old[known].tobytes()
        assert (now[~known] != mean_vectors(graph, start, known)[~known]).any(axis=1).all()
        assert np.isfinite(now).all()
    assert (vectors.tobytes(), contexts.tobytes()) == before
    for now, again in zip(found, new_vectors(graph, vectors, contexts, known, walks, how, threads=2), strict=True):
        np.testing.assert_array_equal(now, again)


def test_new_nodes_come_to_their_group(grown):
    graph, vectors, contexts, known = grown
    assert groups_of_nearest(vectors, known) < 0.6  # random as training without them left them
    assert groups_of_nearest(mean_vectors(graph, vectors, known), known) > 0.9
    walks, how = WalkSettings(length=6), SkipGramSettings(dim=16, window=5)
    assert groups_of_nearest(new_vectors(graph, vectors, contexts, known, walks, how)[0], known) > 0.9


def test_steps_lower_the_loss_of_new_pairs(grown):
    graph, vectors, contexts, known = grown
    walks = WalkSettings(length=6)
    slow = SkipGramSettings(dim=16, window=5, learning_rate=0.0, last_learning_rate=0.0)
    start = new_vectors(graph, vectors, contexts, known, walks, slow)
    moved = new_vectors(graph, vectors, contexts, known, walks, SkipGramSettings(dim=16, window=5, learning_rate=0.05))
    new = ~known[graph.sources()]
    source, target = graph.sources()[new], graph.indices_E[new]

    def loss(rows):
        return np.log1p(np.exp(-(rows[0][source].astype(np.float64) * rows[1][target]).sum(axis=1))).mean()

    mean = mean_vectors(graph, vectors, known)
    length = np.linalg.norm(start[0], axis=1)
    np.testing.assert_allclose(length[~known].mean(), length[known].mean(), rtol=1e-5)
    scale = length[~known].mean() / np.linalg.norm(mean[~known], axis=1).mean()
    np.testing.assert_allclose(start[0][~known], mean[~known] * scale, rtol=1e-4, atol=1e-6)
    assert loss(moved) < loss(start)


def test_nobody_new_changes_nothing(grown):
    graph, vectors, contexts, _ = grown
    found = new_vectors(graph, vectors, contexts, np.ones(NODES, bool), WalkSettings(), SkipGramSettings(dim=16))
    np.testing.assert_array_equal(found[0], vectors)
    np.testing.assert_array_equal(found[1], contexts)


def test_arrays_of_another_graph_are_refused(grown):
    graph, vectors, _, known = grown
    with pytest.raises(GraphError, match="rows of 240 nodes"):
        mean_vectors(graph, vectors[:-1], known)
    with pytest.raises(GraphError, match="rows of 240 nodes"):
        mean_vectors(graph, vectors.astype(np.float64), known)
    with pytest.raises(GraphError, match="each of 240 nodes"):
        mean_vectors(graph, vectors, known.astype(np.int8))
