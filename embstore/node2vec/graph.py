"""A graph as compressed sparse rows: each node's neighbours in order, their weights, and what the nodes are.

    edges a-b 2.0, a-c 1.0        indptr     0     2  3  4       of a, b, c
                                  indices    1  2  0  0          sorted in each row
                                  weights    2. 1. 2. 1.         None where all are 1

An undirected edge is in the rows of both its ends; a self-loop once, in its node's. Suffixes: N nodes, E entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore.errors import GraphError

MAX_NODES = 2**31 - 1
NODE = "node"  # the feature whose values nodes are, where none is named


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A graph that does not change.

    Args:
        indptr_N: int64 ``[N + 1]``, where each node's row begins.
        indices_E: int32, neighbours, ascending and distinct in each row; of a directed graph those its arcs lead to.
        weights_E: float32, above 0; None where all are 1.
        directed: whether an entry is an arc; else both ends have it.
        nodes: by feature, the values that are nodes, whose numbers run through all of them in order:
            ``{"user": [u1, u2], "item": [i1]}`` are nodes 0, 1 and 2. None where nodes are just numbers.
    """

    indptr_N: NDArray[np.int64]
    indices_E: NDArray[np.int32]
    weights_E: NDArray[np.float32] | None = None
    directed: bool = False
    nodes: Mapping[str, pa.Array] | None = None

    @property
    def num_nodes(self) -> int:
        return len(self.indptr_N) - 1

    @property
    def num_edges(self) -> int:
        """Edges, each once; arcs of a directed graph."""
        if self.directed:
            return len(self.indices_E)
        loops = int((self.sources() == self.indices_E).sum())
        return (len(self.indices_E) + loops) // 2

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in (self.indptr_N, self.indices_E, self.weights_E) if array is not None)

    def degrees(self) -> NDArray[np.int64]:
        """Neighbours of each node, ``[N]``; of a directed graph those its arcs lead to."""
        return np.diff(self.indptr_N)

    def strengths(self) -> NDArray[np.float64]:
        """The sum of each node's weights, ``[N]``."""
        if self.weights_E is None:
            return self.degrees().astype(np.float64)
        sums_E = np.concatenate([[0.0], np.cumsum(self.weights_E, dtype=np.float64)])
        return sums_E[self.indptr_N[1:]] - sums_E[self.indptr_N[:-1]]

    def sources(self) -> NDArray[np.int32]:
        """Whose row each entry is in, ``[E]``."""
        return np.repeat(np.arange(self.num_nodes, dtype=np.int32), self.degrees())

    def neighbours(self, node: int) -> NDArray[np.int32]:
        """Of one node, ascending."""
        return self.indices_E[self.indptr_N[node] : self.indptr_N[node + 1]]

    def parts(self) -> dict[str, range]:
        """The numbers of each feature's nodes; of ``node`` when nodes are just numbers."""
        if self.nodes is None:
            return {NODE: range(self.num_nodes)}
        ends = np.cumsum([len(values) for values in self.nodes.values()]).tolist()
        return {name: range(end - len(of), end) for (name, of), end in zip(self.nodes.items(), ends, strict=True)}

    @classmethod
    def of_edges(
        cls,
        source: NDArray[Any],
        target: NDArray[Any],
        weight: NDArray[Any] | None = None,
        *,
        num_nodes: int | None = None,
        directed: bool = False,
        nodes: Mapping[str, pa.Array] | None = None,
    ) -> Graph:
        """A graph of edges between numbered nodes, in any order.

        The weights of an edge that is there several times are added up; without weights it is there once. Of an
        undirected graph ``a-b`` and ``b-a`` are the same edge. Edges of weight 0 are left out.

        Args:
            source, target: integers in ``[0, num_nodes)``.
            weight: finite, 0 or more.
            num_nodes: one more than the greatest number when not given; nodes without edges have empty rows.
            nodes: what they are.

        Raises:
            GraphError: other numbers, or weights that are negative or not finite.
        """
        source, target = _numbers(source, "source"), _numbers(target, "target")
        if len(source) != len(target):
            raise GraphError(
                "edges", expected=f"as many targets as sources ({len(source):,})", found=f"{len(target):,}"
            )
        greatest = int(max(source.max(initial=-1), target.max(initial=-1)))
        if num_nodes is None:
            num_nodes = greatest + 1 if nodes is None else sum(map(len, nodes.values()))
        if greatest >= num_nodes or num_nodes > MAX_NODES:
            raise GraphError("edges", expected=f"nodes below {min(num_nodes, MAX_NODES):,}", found=f"{greatest:,}")
        counted = None if weight is None else _weights(np.asarray(weight), len(source))
        if counted is not None and not (some := counted > 0).all():
            source, target, counted = source[some], target[some], counted[some]
        if not directed:
            low, high = np.minimum(source, target), np.maximum(source, target)
            key, total = _merged(low * num_nodes + high, counted)
            low, high = key // num_nodes, key % num_nodes
            apart = low != high
            source, target = np.concatenate([low, high[apart]]), np.concatenate([high, low[apart]])
            counted = total if total is None else np.concatenate([total, total[apart]])
            key = source * num_nodes + target
            order = np.argsort(key, kind="stable")
            key, total = key[order], counted if counted is None else counted[order]
        else:
            key, total = _merged(source * num_nodes + target, counted)
        indptr_N = np.searchsorted(key, np.arange(num_nodes + 1, dtype=np.int64) * num_nodes)
        weights_E: NDArray[np.float32] | None = None
        if total is not None and not (total == 1).all():
            with np.errstate(over="ignore", under="ignore"):
                weights_E = total.astype(np.float32)
            if not (np.isfinite(weights_E).all() and (weights_E > 0).all()):
                raise GraphError("edge weights", expected="numbers that float32 holds", found="greater or smaller ones")
        return cls(
            indptr_N=indptr_N.astype(np.int64),
            indices_E=(key % num_nodes if num_nodes else key).astype(np.int32),
            weights_E=weights_E,
            directed=directed,
            nodes=nodes,
        )

    @classmethod
    def of_csr(
        cls,
        indptr: NDArray[Any],
        indices: NDArray[Any],
        weights: NDArray[Any] | None = None,
        *,
        directed: bool = False,
        nodes: Mapping[str, pa.Array] | None = None,
    ) -> Graph:
        """A graph of a matrix's compressed rows, e.g. scipy's; rows are sorted and entries merged where they must be.

        Raises:
            GraphError: arrays that are no square matrix's, weights as ``of_edges``, or an undirected graph whose
                matrix isn't symmetric.
        """
        indptr, indices = _numbers(indptr, "indptr"), _numbers(indices, "indices")
        if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
            expected = f"bounds that ascend from 0 to {len(indices):,}"
            raise GraphError("indptr", expected=expected, found=f"{len(indptr):,} numbers that don't")
        source = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        graph = cls.of_edges(source, indices, weights, num_nodes=len(indptr) - 1, directed=True, nodes=nodes)
        if directed:
            return graph
        forth, back = graph.sources().astype(np.int64), graph.indices_E.astype(np.int64)
        order = np.argsort(back * graph.num_nodes + forth, kind="stable")
        same = np.array_equal(forth, back[order]) and np.array_equal(back, forth[order])
        if same and graph.weights_E is not None:
            same = np.array_equal(graph.weights_E, graph.weights_E[order])
        if not same:
            do = "say directed, or add the transposed matrix"
            raise GraphError("an undirected graph", expected="a symmetric matrix", found="one that is not", do=do)
        return cls(indptr_N=graph.indptr_N, indices_E=graph.indices_E, weights_E=graph.weights_E, nodes=nodes)


def _numbers(array: NDArray[Any], name: str) -> NDArray[np.int64]:
    array = np.asarray(array)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):
        raise GraphError(name, expected="integers, one after the other", found=f"{array.dtype} {list(array.shape)}")
    if len(array) and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        raise GraphError(name, expected="numbers of 0 or more", found=str(array.min()))
    return array.astype(np.int64, copy=False)


def _weights(weight: NDArray[Any], count: int) -> NDArray[np.float64]:
    if weight.shape != (count,) or weight.dtype.kind not in "iufb":
        found = f"{weight.dtype} {list(weight.shape)}"
        raise GraphError("edge weights", expected=f"{count:,} numbers, one for each edge", found=found)
    weight = weight.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if len(wrong):
        found = f"{weight[wrong[0]]} at edge {wrong[0]:,}"
        raise GraphError("edge weights", expected="finite numbers of 0 or more", found=found)
    return weight


def _merged(
    key: NDArray[np.int64], weight: NDArray[np.float64] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """Distinct keys, ascending, and their sums, each taken in the order of the list."""
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.empty(0, np.int64)
    if weight is None or not len(first):
        return key[first], weight
    return key[first], np.add.reduceat(weight[order], first)
