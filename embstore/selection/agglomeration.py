"""Ward's agglomeration: points become one cluster, two clusters at a time, each time those that it costs least.

    points    0   1       10  11      13
    merges    0-1 at 0.5   10-11 at 0.5   11-13 at 4.2   ...     cost: by how much the sum of squares within grows
    cut       the cheapest merges of several sets of points, so many that the wanted number of clusters is left

Ward 1963, "Hierarchical Grouping to Optimize an Objective Function", by chains of nearest neighbours (Murtagh 1983, "A
Survey of Recent Advances in Hierarchical Clustering Algorithms"): O(N^2) distances and O(N) memory for the merges that
always taking the cheapest would come to. Points that are more than a cell are halved across their principal direction
until they are not; each cell is agglomerated alone, then what the cells came to. Threads take cells, and decide no bit.

Suffixes: S sets, N points, D dimensions, C cells, M merges.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, DataError
from embstore.hashing import compiled
from embstore.threads import usable_cores

CELL = 4096
_LARGEST = 1e100  # its squares, and products of such weights, are finite
_AHEAD = 256  # points whose distances are added up side by side


@dataclass(frozen=True, kw_only=True, eq=False)
class Merges:
    """How points became one cluster: the cheapest merge first, and those that made its clusters before it.

    Args:
        points: how many there are; one merge fewer.
        pair_M2: int64, a point of either cluster.
        cost_M: float64, ascending.
    """

    points: int
    pair_M2: NDArray[np.int64]
    cost_M: NDArray[np.float64]

    def clusters(self, merges: int) -> NDArray[np.int64]:
        """The cluster of each point after the first ``merges``, numbered by their first points; int64 ``[N]``."""
        cluster_N = np.empty(self.points, np.int64)
        _number(self.pair_M2[:merges], cluster_N)
        return cluster_N


def agglomerate(
    points_ND: NDArray[np.float64],
    weights_N: NDArray[np.float64] | None = None,
    *,
    cell: int = CELL,
    threads: int | None = None,
) -> Merges:
    """All merges of some points.

    Args:
        points_ND: float64, of one dimension or more.
        weights_N: float64, above 0; 1 each when not given.
        cell: points that are agglomerated together at most; of more the merges are nearly the cheapest.
        threads: all cores by default.

    Raises:
        DataError: no points, numbers that are not finite or beyond 1e100, weights that are not above 0.
        ConfigError: cells of less than two points.

    >>> merges = agglomerate(np.array([[0.0], [10.0], [1.0], [11.0]]))
    >>> merges.cost_M.tolist()
    [0.5, 0.5, 100.0]
    >>> merges.clusters(2).tolist()
    [0, 1, 0, 1]
    """
    if cell < 2:
        raise ConfigError("agglomeration: cell", expected="2 points or more", found=f"{cell}")
    at_ND, size = np.ascontiguousarray(points_ND, np.float64), len(points_ND)
    weight_N = np.ones(size) if weights_N is None else np.ascontiguousarray(weights_N, np.float64)
    if at_ND.ndim != 2 or not at_ND.size or not (np.abs(at_ND) < _LARGEST).all():
        raise DataError("points", expected=f"one or more, of numbers below {_LARGEST:g}", found="none, or others")
    if weight_N.shape != (size,) or not ((weight_N > 0) & (weight_N < _LARGEST)).all():
        raise DataError("weights of points", expected=f"one above 0 and below {_LARGEST:g} for each", found="others")
    point_N, least_N = np.arange(size), np.zeros(size)
    pairs, costs = [np.empty((0, 2), np.int64)], [np.empty(0)]
    with ThreadPoolExecutor(threads or usable_cores()) as by:
        while len(point_N) > 1:
            cells = _cells(at_ND, weight_N, cell)
            done = list(by.map(_agglomerated, ((at_ND[of], weight_N[of], least_N[of]) for of in cells)))
            for of, (pair_M2, cost_M, *_) in zip(cells, done, strict=True):
                pairs.append(point_N[of[pair_M2]])
                costs.append(cost_M)
            point_N = point_N[[of[0] for of in cells]]
            at_ND, weight_N, least_N = (np.array(part) for part in list(zip(*done, strict=True))[2:])
    pair_M2, cost_M = np.concatenate(pairs), np.concatenate(costs)
    order_M = np.argsort(cost_M, kind="stable")
    return Merges(points=size, pair_M2=pair_M2[order_M], cost_M=cost_M[order_M])


def cut(
    sets: Sequence[Merges], rows: int, *, rows_of_cluster: Sequence[int] | None = None, at_least: int = 1
) -> list[int]:
    """How many merges of each set to take, so that their clusters have so many rows in all, or as few as there can be.

    The cheapest for the rows they save are taken, of equal ones those of the first set.

    Args:
        sets: of points.
        rows: wanted; fewer where a merge saves several.
        rows_of_cluster: of each set's; 1 when not given.
        at_least: so many clusters of a set are left, as far as it has points.

    >>> one, other = (agglomerate(np.array(of)[:, None]) for of in ([0.0, 1.0, 9.0], [0.0, 2.0]))
    >>> cut([one, other], 3)
    [1, 1]
    """
    saved = [1] * len(sets) if rows_of_cluster is None else list(rows_of_cluster)
    open_S = [max(of.points - max(at_least, 1), 0) for of in sets]
    set_M = np.repeat(np.arange(len(sets)), open_S)
    prices = [of.cost_M[:many] / row for of, many, row in zip(sets, open_S, saved, strict=True)]
    price_M = np.concatenate([np.empty(0), *prices])
    order_M = np.argsort(price_M, kind="stable")
    there = sum(of.points * row for of, row in zip(sets, saved, strict=True))
    left_M = there - np.cumsum(np.array(saved, np.int64)[set_M[order_M]])
    taken = 0 if there <= rows else int((left_M > rows).sum()) + 1
    return np.bincount(set_M[order_M[:taken]], minlength=len(sets)).tolist()


def _cells(at_ND: NDArray[np.float64], weight_N: NDArray[np.float64], most: int) -> list[NDArray[np.int64]]:
    """Which points are in each; of a cell ascending."""
    cells, open_ones = [], [np.arange(len(at_ND))]
    while open_ones:
        of = open_ones.pop()
        if len(of) <= most:
            cells.append(of)
            continue
        part_ND = at_ND[of]
        mean_D, covariance_DD = np.zeros(at_ND.shape[1]), np.zeros((at_ND.shape[1],) * 2)
        _moments(part_ND, weight_N[of], mean_D, covariance_DD)
        along_D = np.linalg.eigh(covariance_DD)[1][:, -1]
        place_N = np.empty(len(part_ND))
        _project(part_ND, mean_D, along_D, place_N)
        order = np.argsort(place_N, kind="stable")
        open_ones += [np.sort(of[order[len(of) // 2 :]]), np.sort(of[order[: len(of) // 2]])]
    return cells


def _agglomerated(
    cell: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], float, float]:
    """A cell's merges and their costs; its mean, its weight, and what no later merge costs less than."""
    at_ND, weight_N, least_N = cell
    size, dimensions = at_ND.shape
    mean_D, pair_M2, cost_M = np.zeros(dimensions), np.empty((size - 1, 2), np.int64), np.empty(size - 1)
    weight = _mean(at_ND, weight_N, mean_D)
    _merge(np.array(at_ND.T, order="C"), weight_N.copy(), least_N.copy(), pair_M2, cost_M)
    return pair_M2, cost_M, mean_D, weight, float(max(cost_M.max(initial=0.0), least_N.max()))


@compiled(nogil=True)
def _mean(at_ND, weight_N, mean_D):  # type: ignore[no-untyped-def]
    total = 0.0
    for n in range(len(at_ND)):
        total += weight_N[n]
        for d in range(len(mean_D)):
            mean_D[d] += weight_N[n] * at_ND[n, d]
    for d in range(len(mean_D)):
        mean_D[d] /= total
    return total


@compiled(nogil=True)
def _moments(at_ND, weight_N, mean_D, covariance_DD):  # type: ignore[no-untyped-def]
    """Sums in the points' order: those of a matrix product hang on its threads."""
    _mean(at_ND, weight_N, mean_D)
    for n in range(len(at_ND)):
        for d in range(len(mean_D)):
            off = weight_N[n] * (at_ND[n, d] - mean_D[d])
            for e in range(d + 1):
                covariance_DD[d, e] += off * (at_ND[n, e] - mean_D[e])  # eigh reads the lower half


@compiled(nogil=True)
def _project(at_ND, mean_D, along_D, place_N):  # type: ignore[no-untyped-def]
    """How far each point is along a direction; not a product of a matrix, for the same reason."""
    for n in range(len(at_ND)):
        total = 0.0
        for d in range(len(mean_D)):
            total += (at_ND[n, d] - mean_D[d]) * along_D[d]
        place_N[n] = total


@compiled(nogil=True)
def _merge(at_DN, weight_N, least_N, pair_M2, cost_M):  # type: ignore[no-untyped-def]
    """All merges in the order that chains find them; what is given is overwritten.

    A cluster lies in the place of one of its points. Those that are gone are infinitely far; when they are half of all,
    the others move together. ``least_N`` is what each cluster has cost: no merge of it costs less, whatever is rounded.
    Of equally near neighbours that before it in the chain is taken, else the first.
    """
    dimensions, size = at_DN.shape
    point_N = np.arange(size)
    gone_N, chain_N, moved_N = np.zeros(size, np.bool_), np.empty(size + 1, np.int64), np.empty(size, np.int64)
    cost_A = np.empty(_AHEAD)
    chained, merged, first, alive = 0, 0, 0, size
    while merged < len(pair_M2):
        while chained and gone_N[chain_N[chained - 1]]:
            chained -= 1
        if not chained:
            while gone_N[first]:
                first += 1
            chain_N[0], chained = first, 1
        if chained > size:  # only where rounding has made a loop
            chain_N[0], chained = chain_N[chained - 1], 1
        a = chain_N[chained - 1]
        before = chain_N[chained - 2] if chained > 1 else -1
        best, nearest = np.inf, -1
        if before >= 0:
            best, nearest = 0.0, before
            for d in range(dimensions):
                off = at_DN[d, before] - at_DN[d, a]
                best += off * off
            best *= weight_N[a] * weight_N[before] / (weight_N[a] + weight_N[before])
        weight = weight_N[a]
        for start in range(0, size, _AHEAD):
            ahead = min(_AHEAD, size - start)
            cost_A[:ahead] = 0.0
            for d in range(dimensions):
                _add_squares(at_DN[d][start : start + ahead], at_DN[d, a], cost_A)
            _weigh(weight_N[start : start + ahead], weight, cost_A)
            if start <= a < start + ahead:
                cost_A[a - start] = np.inf
            for i in range(ahead):
                if cost_A[i] < best:
                    best, nearest = cost_A[i], start + i
        if nearest != before:
            chain_N[chained] = nearest
            chained += 1
            continue
        cost = max(best, least_N[a], least_N[before])
        pair_M2[merged, 0], pair_M2[merged, 1], cost_M[merged] = point_N[before], point_N[a], cost
        merged += 1
        chained -= 2
        whole = weight_N[a] + weight_N[before]
        for d in range(dimensions):
            at_DN[d, before] = (weight_N[a] * at_DN[d, a] + weight_N[before] * at_DN[d, before]) / whole
            at_DN[d, a] = np.inf
        weight_N[before], least_N[before], gone_N[a] = whole, cost, True
        alive -= 1
        if 2 * alive <= size and size > _AHEAD:
            to = 0
            for n in range(size):
                moved_N[n] = -1 if gone_N[n] else to
                if not gone_N[n]:
                    for d in range(dimensions):
                        at_DN[d, to] = at_DN[d, n]
                    weight_N[to], least_N[to], point_N[to] = weight_N[n], least_N[n], point_N[n]
                    to += 1
            link = 0
            for c in range(chained):
                moved = moved_N[chain_N[c]]
                if moved >= 0 and not (link and chain_N[link - 1] == moved):
                    chain_N[link] = moved
                    link += 1
            gone_N[:to] = False
            size, first, chained = to, 0, link


@compiled(nogil=True)
def _add_squares(at_A, here, cost_A):  # type: ignore[no-untyped-def]
    for i in range(len(at_A)):
        cost_A[i] += (at_A[i] - here) * (at_A[i] - here)


@compiled(nogil=True)
def _weigh(weight_A, weight, cost_A):  # type: ignore[no-untyped-def]
    for i in range(len(weight_A)):
        cost_A[i] *= weight * weight_A[i] / (weight + weight_A[i])


@compiled(nogil=True)
def _number(pair_M2, cluster_N):  # type: ignore[no-untyped-def]
    """Union-find; the root of a cluster is its first point."""
    root_N = np.arange(len(cluster_N))
    for m in range(len(pair_M2)):
        one, other = _root(root_N, pair_M2[m, 0]), _root(root_N, pair_M2[m, 1])
        root_N[max(one, other)] = min(one, other)
    found = 0
    for n in range(len(cluster_N)):
        root = _root(root_N, n)
        if root == n:
            cluster_N[n] = found
            found += 1
        else:
            cluster_N[n] = cluster_N[root]


@compiled(nogil=True)
def _root(root_N, n):  # type: ignore[no-untyped-def]
    while root_N[n] != n:
        root_N[n] = root_N[root_N[n]]
        n = root_N[n]
    return n
