"""Propagation against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from embstore.errors import ConfigError, GraphError
from embstore.node2vec import Graph
from embstore.node2vec.propagation import propagated


def _random(*, weighted: bool, directed: bool) -> tuple[Graph, np.ndarray]:
    rng = np.random.default_rng(3)
    source, target = rng.integers(0, 40, (2, 150))
    weight = rng.random(150) + 0.1 if weighted else None
    graph = Graph.of_edges(source, target, weight, num_nodes=43, directed=directed)
    dense = np.zeros((43, 43))
    dense[graph.sources(), graph.indices_E] = 1.0 if graph.weights_E is None else graph.weights_E
    return graph, dense


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("part", [0.25, 1.0])
def test_it_is_a_product_with_the_rows_means(weighted: bool, directed: bool, part: float) -> None:
    graph, dense = _random(weighted=weighted, directed=directed)
    vectors = np.random.default_rng(4).standard_normal((43, 7)).astype(np.float32)
    rows = dense.sum(axis=1, keepdims=True)
    mixed = np.where(rows > 0, (1 - part) * vectors + part * dense @ vectors / np.maximum(rows, 1e-9), vectors)
    mixed *= np.linalg.norm(vectors, axis=1).mean() / np.linalg.norm(mixed, axis=1).mean()
    found = propagated(graph, vectors, part)
    np.testing.assert_allclose(found, mixed, atol=2e-6)
    np.testing.assert_array_equal(propagated(graph, vectors, part, threads=2), found)


def test_none_of_it_changes_nothing() -> None:
    graph, _ = _random(weighted=False, directed=False)
    vectors = np.ones((43, 3), dtype=np.float32)
    np.testing.assert_array_equal(propagated(graph, vectors, 0.0), vectors)


def test_threads_share_many_nodes() -> None:
    ring = Graph.of_edges(np.arange(5000), (np.arange(5000) + 1) % 5000)
    vectors = np.random.default_rng(1).random((5000, 16), dtype=np.float32)
    np.testing.assert_array_equal(propagated(ring, vectors, 0.5, threads=2), propagated(ring, vectors, 0.5))


def test_wrong_arguments_are_refused() -> None:
    graph, _ = _random(weighted=False, directed=False)
    with pytest.raises(ConfigError, match=r"from 0 to 1; found 1\.5"):
        propagated(graph, np.ones((43, 3), dtype=np.float32), 1.5)
    with pytest.raises(GraphError, match=r"43 nodes; found an array \[42, 3\]"):
        propagated(graph, np.ones((42, 3), dtype=np.float32), 0.5)
