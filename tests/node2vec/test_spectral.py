"""The spectral prior against dense matrices of the same definition."""

import numpy as np
import pytest

from embstore.errors import ConfigError, GraphError
from embstore.node2vec.graph import Graph
from embstore.node2vec.spectral import Matrix, SpectralSettings, co_occurrence, factors, spectral_vectors


def random_graph(seed=0, nodes=60, edges=240, **kw):
    generator = np.random.default_rng(seed)
    weight = generator.random(edges) + 0.1 if kw.pop("weighted", False) else None
    return Graph.of_edges(*generator.integers(0, nodes, (2, edges)), weight, num_nodes=nodes, **kw)


def dense(matrix):
    count = len(matrix.indptr_N) - 1
    out = np.zeros((count, count))
    out[np.repeat(np.arange(count), np.diff(matrix.indptr_N)), matrix.indices_F] = matrix.values_F
    return out


def transitions(graph):
    out = np.zeros((graph.num_nodes, graph.num_nodes))
    out[graph.sources(), graph.indices_E] = 1 if graph.weights_E is None else graph.weights_E
    return out / np.maximum(out.sum(axis=1, keepdims=True), 1e-300), out.sum(axis=1)


def exact(graph, hops, shift):
    """All paths instead of some: what ``co_occurrence`` estimates."""
    step, strength = transitions(graph)
    sums, power = np.zeros_like(step), np.eye(len(step))
    for hop in range(1, hops + 1):
        power = power @ step
        part = power * (hops + 1 - hop) / (hops * (hops + 1) / 2)
        if hop > 1:
            np.fill_diagonal(part, 0)
        sums += part
    mass = strength @ sums
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.maximum(np.log(sums / (mass / mass.sum()) / shift), 0), neginf=0, posinf=0)


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_hop_is_the_matrix_of_the_edges(weighted, directed):
    graph = random_graph(weighted=weighted, directed=directed)
    found = dense(co_occurrence(graph, SpectralSettings(hops=1, shift=2.0)))
    np.testing.assert_allclose(found, exact(graph, 1, 2.0), atol=2e-6)


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_many_paths_come_to_the_matrix_of_all_paths(weighted, directed):
    graph = random_graph(weighted=weighted, directed=directed)
    # Two and three hops are all entries here; a return to the start in the midst of a path doesn't end it.
    settings = SpectralSettings(hops=3, paths=1000, least=0, shift=0.5)
    found, right = dense(co_occurrence(graph, settings)), exact(graph, 3, 0.5)
    likely = right > 1.0
    assert likely.sum() > 100
    assert abs((found - right)[likely].mean()) < 0.02
    assert np.sqrt(((found - right)[likely] ** 2).mean()) < 0.2


def test_entries_are_no_more_than_edges_and_paths():
    graph = random_graph(nodes=500, edges=5000)
    matrix = co_occurrence(graph, SpectralSettings(hops=2, paths=1, least=0, shift=1e-3))
    assert len(graph.indices_E) <= len(matrix.indices_F) <= 2 * len(graph.indices_E)
    for n in range(graph.num_nodes):
        assert (np.diff(matrix.indices_F[matrix.indptr_N[n] : matrix.indptr_N[n + 1]]) > 0).all()


def test_products_and_transposition():
    matrix = co_occurrence(random_graph(directed=True), SpectralSettings(shift=1.0))
    x = np.random.default_rng(1).standard_normal((60, 7)).astype(np.float32)
    np.testing.assert_allclose(matrix.times(x, threads=2), dense(matrix) @ x, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(dense(matrix.transposed()), dense(matrix).T)


@pytest.mark.parametrize("directed", [False, True])
def test_factors_are_those_of_a_dense_decomposition(directed):
    matrix = co_occurrence(random_graph(directed=directed), SpectralSettings(hops=1, shift=1.0))
    left, singular, right = factors(matrix, 12, iterations=30)
    u, s, vt = np.linalg.svd(dense(matrix))
    np.testing.assert_allclose(singular, s[:12], rtol=1e-4)
    best = (u[:, :12] * s[:12]) @ vt[:12]
    np.testing.assert_allclose((left * singular) @ right.T, best, atol=2e-3)
    np.testing.assert_allclose(left.T @ left, np.eye(12), atol=1e-5)
    np.testing.assert_allclose(right.T @ right, np.eye(12), atol=1e-5)


def test_few_iterations_lose_little():
    matrix = co_occurrence(random_graph(nodes=400, edges=3000), SpectralSettings())
    _, singular, _ = factors(matrix, 16)
    best = np.linalg.svd(dense(matrix), compute_uv=False)[:16]
    assert (singular <= best * 1.0001).all()
    assert (singular > 0.9 * best).all()


def test_a_dim_above_the_rank_leaves_zeros():
    graph = Graph.of_edges(np.array([0, 1, 2]), np.array([1, 2, 3]), num_nodes=6)
    vectors, contexts = spectral_vectors(graph, 16, SpectralSettings(shift=0.5))
    assert vectors.shape == contexts.shape == (6, 16)
    assert vectors.dtype == contexts.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert not vectors[:, 6:].any()
    assert not contexts[:, 6:].any()
    assert not vectors[4:].any()  # nodes without edges
    assert vectors[:4].any(axis=1).all()


def test_nothing_above_the_shift_is_zeros():
    pair = Graph.of_edges(np.array([0]), np.array([1]))
    vectors, contexts = spectral_vectors(pair, 4, SpectralSettings(hops=1, shift=100.0))
    assert not vectors.any()
    assert not contexts.any()


def test_the_same_bits_for_any_number_of_threads_and_a_seed():
    graph = random_graph(nodes=1500, edges=9000, weighted=True)
    one = spectral_vectors(graph, 8)
    for threads in (1, 2, 3):
        for a, b in zip(one, spectral_vectors(graph, 8, threads=threads), strict=True):
            np.testing.assert_array_equal(a, b)
    other = spectral_vectors(graph, 8, SpectralSettings(seed=1))[0]
    assert (other != one[0]).any()
    # Of another seed are other paths and another sketch, yet the first factor points the same way.
    assert (other[:, 0] * one[0][:, 0]).sum() > 0
    assert ((one[0].astype(np.float64) ** 3).sum(axis=0) >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(one[0], axis=1)[graph.degrees() > 0].mean(), 0.7, rtol=0.02)


def test_communities_are_apart():
    generator = np.random.default_rng(3)
    source, target = generator.integers(0, 400, (2, 8000))
    inside = (source % 4 == target % 4) | (generator.random(8000) < 0.1)
    graph = Graph.of_edges(source[inside], target[inside], num_nodes=400)
    vectors = spectral_vectors(graph, 8)[0]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = np.argsort(-(vectors @ vectors.T), axis=1)[:, 1:11]
    assert (near % 4 == np.arange(400)[:, None] % 4).mean() > 0.95


def test_what_cannot_be():
    with pytest.raises(GraphError, match="at least one edge"):
        spectral_vectors(Graph.of_edges(np.empty(0, np.int64), np.empty(0, np.int64), num_nodes=3), 4)
    with pytest.raises(ConfigError, match="dim"):
        spectral_vectors(random_graph(), 0)
    for wrong in ({"hops": 0}, {"paths": 0}, {"least": -1}, {"iterations": -1}, {"shift": 0.0}, {"seed": -1}):
        with pytest.raises(ConfigError, match=f"spectral.{next(iter(wrong))}"):
            SpectralSettings(**wrong)


def test_factors_of_an_empty_matrix():
    empty = Matrix(indptr_N=np.zeros(4, np.int64), indices_F=np.empty(0, np.int32), values_F=np.empty(0, np.float32))
    left, singular, right = factors(empty, 2)
    assert left.shape == right.shape == (3, 2)
    assert not singular.any()
