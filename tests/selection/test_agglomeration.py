"""Agglomeration against scipy's for equal weights, and against always taking the cheapest pair for others."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from embstore.errors import ConfigError, DataError
from embstore.selection.agglomeration import Merges, agglomerate, cut

Floats = NDArray[np.float64]


def _points(size: int, dimensions: int = 3, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(size, dimensions))


def _numbered(cluster_N: NDArray[np.generic]) -> list[int]:
    """By their first points."""
    seen: dict[object, int] = {}
    return [seen.setdefault(of, len(seen)) for of in cluster_N.tolist()]


def _greedy(points_ND: Floats, weights_N: Floats) -> tuple[list[float], list[list[int]]]:
    """Costs, and the clusters after each merge."""
    there = {n: [n] for n in range(len(points_ND))}

    def price(one: int, other: int) -> float:
        (w, x), (v, y) = (
            (weights_N[of].sum(), np.average(points_ND[of], axis=0, weights=weights_N[of]))
            for of in (there[one], there[other])
        )
        return float(w * v / (w + v) * ((x - y) ** 2).sum())

    costs, clusters = [], []
    while len(there) > 1:
        cost, one, other = min((price(*pair), *pair) for pair in combinations(sorted(there), 2))
        there[one] += there.pop(other)
        costs.append(cost)
        cluster_N = np.empty(len(points_ND), np.int64)
        for name, of in there.items():
            cluster_N[of] = name
        clusters.append(_numbered(cluster_N))
    return costs, clusters


def _same(one: Merges, other: Merges) -> bool:
    return np.array_equal(one.pair_M2, other.pair_M2) and np.array_equal(one.cost_M, other.cost_M)


@pytest.mark.parametrize(("size", "dimensions"), [(2, 1), (40, 2), (700, 3), (1500, 16)])
def test_equal_weights_as_scipy(size: int, dimensions: int) -> None:
    """Whose distance d is sqrt(2 cost)."""
    points_ND = _points(size, dimensions)
    merges, theirs = agglomerate(points_ND), linkage(points_ND, method="ward")
    np.testing.assert_allclose(merges.cost_M, theirs[:, 2] ** 2 / 2, rtol=1e-9)
    for clusters in {1, 2, size // 3, size // 2, size - 1} - {0}:
        found = _numbered(fcluster(theirs, clusters, criterion="maxclust"))
        assert merges.clusters(size - clusters).tolist() == found


@pytest.mark.parametrize("seed", range(4))
def test_weights_as_always_taking_the_cheapest(seed: int) -> None:
    points_ND, weights_N = _points(30, 2, seed), np.random.default_rng(seed).uniform(0.1, 20, 30)
    merges = agglomerate(points_ND, weights_N)
    costs, clusters = _greedy(points_ND, weights_N)
    np.testing.assert_allclose(merges.cost_M, costs, rtol=1e-9)
    for number, of in enumerate(clusters):
        assert merges.clusters(number + 1).tolist() == of


def test_whole_weights_are_so_many_points() -> None:
    points_ND, weights_N = _points(60, 3), np.random.default_rng(1).integers(1, 4, 60)
    merges, repeated = agglomerate(points_ND, weights_N), agglomerate(np.repeat(points_ND, weights_N, axis=0))
    extra = int(weights_N.sum()) - 60
    assert not repeated.cost_M[:extra].any()
    np.testing.assert_allclose(merges.cost_M, repeated.cost_M[extra:], rtol=1e-9)


@pytest.mark.parametrize("cell", [2, 7, 4096])
def test_points_that_are_there_again_come_together_first(cell: int) -> None:
    distinct_ND = np.random.default_rng(2).integers(0, 3, (500, 2)).astype(float)
    merges = agglomerate(distinct_ND, cell=cell)
    kinds = _numbered(np.unique(distinct_ND, axis=0, return_inverse=True)[1].reshape(-1))
    assert max(kinds) == 8
    if cell == 4096:
        assert not merges.cost_M[:491].any()
        assert merges.cost_M[491] == pytest.approx(merges.cost_M[491:].min())
        assert merges.clusters(491).tolist() == kinds
        np.testing.assert_allclose(merges.cost_M, linkage(distinct_ND, "ward")[:, 2] ** 2 / 2, atol=1e-9)
    assert (np.diff(merges.cost_M) >= 0).all()


def _within(points_ND: Floats, cluster_N: NDArray[np.int64]) -> float:
    """The sum of squares."""
    size_C = np.bincount(cluster_N)
    mean_CD = np.stack([np.bincount(cluster_N, weights=of) for of in points_ND.T], axis=1) / size_C[:, None]
    return float(((points_ND - mean_CD[cluster_N]) ** 2).sum())


@pytest.mark.parametrize("cell", [2, 3, 64, 4096])
def test_all_become_one_and_any_number_before(cell: int) -> None:
    """In cells, too; the threads decide nothing."""
    points_ND = _points(1000, 4)
    merges = agglomerate(points_ND, cell=cell, threads=1)
    assert _same(merges, agglomerate(points_ND, cell=cell, threads=3))
    for taken in (0, 1, 400, 998, 999):
        cluster_N = merges.clusters(taken)
        assert sorted(set(cluster_N.tolist())) == list(range(1000 - taken))
        assert _numbered(cluster_N) == cluster_N.tolist()
    assert _within(points_ND, merges.clusters(999)) == pytest.approx(((points_ND - points_ND.mean(0)) ** 2).sum())


def test_the_costs_are_what_the_sum_of_squares_grows_by() -> None:
    points_ND = _points(600, 4)
    merges = agglomerate(points_ND)
    for taken in (1, 100, 300, 599):
        assert merges.cost_M[:taken].sum() == pytest.approx(_within(points_ND, merges.clusters(taken)))


def test_cells_cost_little_more() -> None:
    points_ND = _points(4000, 8)
    whole, cells = (_within(points_ND, agglomerate(points_ND, cell=of).clusters(2000)) for of in (4000, 500))
    assert whole < cells < 1.5 * whole


def test_a_cut_takes_the_cheapest_of_all_sets() -> None:
    sets = [agglomerate(_points(size, 2, size)) for size in (1, 30, 50, 2)]
    for rows in (4, 5, 40, 82, 83, 1000):
        taken = cut(sets, rows)
        assert sum(of.points - many for of, many in zip(sets, taken, strict=True)) == min(rows, 83)
        costs = [(of.cost_M[:many], of.cost_M[many:]) for of, many in zip(sets, taken, strict=True)]
        took, left = (np.concatenate(of) for of in zip(*costs, strict=True))
        assert took.max(initial=0.0) <= left.min(initial=np.inf)
    assert cut(sets, 0) == [0, 29, 49, 1]
    assert cut(sets, 0, at_least=3) == [0, 27, 47, 0]
    assert cut([], 3) == []


def test_rows_that_a_merge_saves_count() -> None:
    """A cluster of the second set has three rows: its merge saves them all, and is as cheap at three times the cost."""
    one, other = agglomerate(np.array([[0.0], [2.0], [5.0]])), agglomerate(np.array([[0.0], [3.0], [30.0]]))
    assert (one.cost_M[0], other.cost_M[0]) == (2.0, 4.5)
    assert cut([one, other], 11, rows_of_cluster=[1, 3]) == [0, 1]
    assert cut([one, other], 9, rows_of_cluster=[1, 3]) == [0, 1]
    assert cut([one, other], 8, rows_of_cluster=[1, 3]) == [1, 1]
    assert cut([one, one], 5) == [1, 0]  # of equal ones the first set's


def test_what_can_not_be_agglomerated_is_refused() -> None:
    for points_ND in (
        np.empty((0, 3)),
        np.empty((3, 0)),
        np.ones(3),
        np.array([[1.0], [np.nan]]),
        np.array([[1.0], [1e200]]),
    ):
        with pytest.raises(DataError, match="points"):
            agglomerate(points_ND)
    for weights_N in (np.ones(2), np.array([1.0, 0.0, 1.0]), np.array([1.0, np.inf, 1.0])):
        with pytest.raises(DataError, match="weights"):
            agglomerate(_points(3), weights_N)
    with pytest.raises(ConfigError, match="cell"):
        agglomerate(_points(3), cell=1)
