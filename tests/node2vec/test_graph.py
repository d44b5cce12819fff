"""Compressed rows: judged by dictionaries; what is no graph is refused."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embstore.errors import GraphError
from embstore.node2vec.graph import Graph

EDGES = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from([0.0, 0.25, 0.1, 1.0, 3.0])))


def entries(graph: Graph) -> dict[tuple[int, int], float]:
    weights = np.ones(len(graph.indices_E)) if graph.weights_E is None else graph.weights_E
    ends = zip(graph.sources().tolist(), graph.indices_E.tolist(), strict=True)
    return dict(zip(ends, weights.tolist(), strict=True))


def columns(edges: list[tuple[int, int, float]]) -> tuple[Any, Any, Any]:
    of = np.array(edges, dtype=np.float64).reshape(-1, 3)
    return of[:, 0].astype(np.int64), of[:, 1].astype(np.int16), of[:, 2]


@given(edges=EDGES, directed=st.booleans(), weighted=st.booleans())
def test_a_graph_is_what_a_dictionary_says(edges: list[tuple[int, int, float]], directed: bool, weighted: bool) -> None:
    expected: dict[tuple[int, int], float] = defaultdict(float)
    for u, v, weight in edges:
        for key in {(u, v)} if directed else {(u, v), (v, u)}:
            expected[key] = expected[key] + weight if weighted else 1.0
    source, target, weight = columns(edges)
    graph = Graph.of_edges(source, target, weight if weighted else None, num_nodes=9, directed=directed)
    assert entries(graph) == {key: float(np.float32(w)) for key, w in expected.items() if w > 0}
    degrees = [sum(w > 0 for (u, _), w in expected.items() if u == node) for node in range(9)]
    assert graph.degrees().tolist() == degrees
    there = {key if directed else tuple(sorted(key)) for key, w in expected.items() if w > 0}
    assert graph.num_edges == len(there)
    strength = [sum(w for (u, _), w in entries(graph).items() if u == node) for node in range(9)]
    assert np.allclose(graph.strengths(), strength)
    for node in range(9):
        assert graph.neighbours(node).tolist() == sorted(v for (u, v), w in expected.items() if u == node and w > 0)


@given(edges=EDGES, directed=st.booleans(), seed=st.integers(0, 2**32))
def test_rows_in_any_order_are_the_same_graph(edges: list[tuple[int, int, float]], directed: bool, seed: int) -> None:
    source, target, weight = columns(edges)
    graph = Graph.of_edges(source, target, weight, num_nodes=9, directed=directed)
    same = Graph.of_csr(graph.indptr_N, graph.indices_E, graph.weights_E, directed=directed)
    assert entries(same) == entries(graph)
    order = np.lexsort((np.random.default_rng(seed).random(len(graph.indices_E)), graph.sources()))
    mixed = None if graph.weights_E is None else graph.weights_E[order]
    assert entries(Graph.of_csr(graph.indptr_N, graph.indices_E[order], mixed, directed=directed)) == entries(graph)
    if directed and any(entries(graph).get(key[::-1]) != weight for key, weight in entries(graph).items()):
        with pytest.raises(GraphError, match="symmetric"):
            Graph.of_csr(graph.indptr_N, graph.indices_E, graph.weights_E)


def test_weights_of_one_are_none_and_a_loop_is_once() -> None:
    graph = Graph.of_edges(np.array([0, 1, 1]), np.array([1, 1, 0]), np.array([0.5, 1.0, 0.5]))
    assert graph.weights_E is None
    assert graph.num_edges == 2
    assert entries(graph) == {(0, 1): 1.0, (1, 0): 1.0, (1, 1): 1.0}


def test_sums_are_the_same_at_both_ends() -> None:
    draw = np.random.default_rng(0)
    ends = draw.integers(0, 20, (2, 5_000))
    graph = Graph.of_edges(*ends, draw.random(5_000))
    found = entries(graph)
    assert all(found[key] == found[key[::-1]] for key in found)


def test_the_greatest_node_there_can_be() -> None:
    with pytest.raises(GraphError, match="below 2,147,483,647"):
        Graph.of_edges(np.array([0]), np.array([2**31 - 1]))
    with pytest.raises(GraphError, match="below 2,147,483,647; found 18,446,744,073,709,551,615"):
        Graph.of_edges(np.array([0], np.uint64), np.array([2**64 - 1], np.uint64))


def test_no_edges() -> None:
    empty = np.empty(0, np.int64)
    assert Graph.of_edges(empty, empty).num_nodes == 0
    assert Graph.of_edges([], [], [], num_nodes=3).degrees().tolist() == [0, 0, 0]
    assert Graph.of_csr(np.array([0]), empty).num_edges == 0


def test_arrays_that_are_right_are_not_copied() -> None:
    graph = Graph.of_edges(np.array([0, 1]), np.array([1, 2]))
    same = Graph.of_csr(graph.indptr_N, graph.indices_E)
    assert same.indices_E is graph.indices_E
    assert same.indptr_N is graph.indptr_N


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([0.5], [1]), "source; expected integers"),
        (([[0]], [1]), "source; expected integers"),
        (([0], [-1]), "target; expected numbers of 0 or more; found -1"),
        (([0, 1], [1]), "as many targets as sources"),
        (([0], [1], [1.0, 2.0]), "1 numbers, one for each edge"),
        (([0], [1], ["x"]), "1 numbers, one for each edge"),
        (([0, 0], [1, 1], [1.0, -2.0]), "-2.0 at edge 1"),
        (([0], [1], [np.nan]), "nan at edge 0"),
        (([0], [1], [1e39]), "float32"),
        (([0], [1], [1e-60]), "float32"),
    ],
)
def test_edges_that_are_none(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(GraphError, match=text):
        Graph.of_edges(*map(np.array, arguments))


def test_nodes_say_how_many_there_are() -> None:
    nodes = {"user": pa.array(["a"]), "item": pa.array([1, 2])}
    graph = Graph.of_edges(np.array([0]), np.array([1]), nodes=nodes)
    assert graph.num_nodes == 3
    assert graph.parts() == {"user": range(0, 1), "item": range(1, 3)}
    with pytest.raises(GraphError, match="below 3; found 3"):
        Graph.of_edges(np.array([0]), np.array([3]), nodes=nodes)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([], []), "indptr"),
        (([1, 1], []), "bounds that ascend from 0 to 0"),
        (([0, 2, 1], [0]), "bounds that ascend from 0 to 1"),
        (([0, 1], [5]), "indices; expected nodes below 1; found 5"),
        (([0, 1], [-1]), "indices; expected numbers of 0 or more"),
        (([0, 1, 1], [1]), "a symmetric matrix"),
        (([0, 1, 2], [1, 0], [1.0, 2.0]), "a symmetric matrix"),
        (([0, 1, 2], [1, 0], [1.0, -1.0]), "-1.0 at edge 1"),
        (([0, 1, 2], [1, 0], [1e39, 1e39]), "float32"),
    ],
)
def test_rows_that_are_none(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(GraphError, match=text):
        Graph.of_csr(*map(np.array, arguments))
