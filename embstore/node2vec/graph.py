"""A graph as compressed sparse rows: each node's neighbours in order, their weights, and what the nodes are.

    edges a-b 2.0, a-c 1.0        indptr     0     2  3  4       of a, b, c
                                  indices    1  2  0  0          sorted in each row
                                  weights    2. 1. 2. 1.         None where all are 1

An undirected edge is in the rows of both its ends; a self-loop once, in its node's. Suffixes: N nodes, E entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore.errors import GraphError
from embstore.node2vec.rows import are_rows, are_symmetric, rows_of

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
        source, target = np.asarray(source), np.asarray(target)
        greatest = max(_greatest(source, "source"), _greatest(target, "target"))
        if len(source) != len(target):
            raise GraphError(
                "edges", expected=f"as many targets as sources ({len(source):,})", found=f"{len(target):,}"
            )
        if num_nodes is None:
            num_nodes = greatest + 1 if nodes is None else sum(map(len, nodes.values()))
        if greatest >= num_nodes or num_nodes > MAX_NODES:
            found = f"{max(greatest, num_nodes - 1):,}"
            raise GraphError("edges", expected=f"nodes below {min(num_nodes, MAX_NODES):,}", found=found)
        source, target = source.astype(np.int32, copy=False), target.astype(np.int32, copy=False)
        counted = None if weight is None else _weights(np.asarray(weight), len(source))
        if counted is not None and not (some := counted > 0).all():
            source, target, counted = source[some], target[some], counted[some]
        indptr_N, indices_E, total = rows_of(source, target, counted, num_nodes, directed=directed)
        weights_E = None if total is None else _narrow(total)
        return cls(indptr_N=indptr_N, indices_E=indices_E, weights_E=weights_E, directed=directed, nodes=nodes)

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
        indptr, indices = np.asarray(indptr), np.asarray(indices)
        _greatest(indptr, "indptr")
        greatest = _greatest(indices, "indices")
        if not len(indptr) or indptr[0] != 0 or indptr[-1] != len(indices) or (indptr[1:] < indptr[:-1]).any():
            expected = f"bounds that ascend from 0 to {len(indices):,}"
            raise GraphError("indptr", expected=expected, found=f"{len(indptr):,} numbers that don't")
        count = len(indptr) - 1
        if greatest >= count or count > MAX_NODES:
            raise GraphError("indices", expected=f"nodes below {min(count, MAX_NODES):,}", found=f"{greatest:,}")
        indptr, indices = indptr.astype(np.int64, copy=False), indices.astype(np.int32, copy=False)
        counted = None if weights is None else _weights(np.asarray(weights), len(indices))
        if are_rows(indptr, indices) and (counted is None or (counted > 0).all()):
            weights_E = None if counted is None else _narrow(counted)
            graph = cls(indptr_N=indptr, indices_E=indices, weights_E=weights_E, directed=directed, nodes=nodes)
        else:
            source = np.repeat(np.arange(count, dtype=np.int32), np.diff(indptr))
            entries = cls.of_edges(source, indices, counted, num_nodes=count, directed=True)
            graph = replace(entries, directed=directed, nodes=nodes)
        if not directed and not are_symmetric(graph.indptr_N, graph.indices_E, graph.weights_E):
            do = "say directed, or add the transposed matrix"
            raise GraphError("an undirected graph", expected="a symmetric matrix", found="one that is not", do=do)
        return graph


def _greatest(array: NDArray[Any], name: str) -> int:
    """Of whole numbers of 0 or more; -1 of none."""
    if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):
        raise GraphError(name, expected="integers, one after the other", found=f"{array.dtype} {list(array.shape)}")
    if not len(array):
        return -1
    if array.min() < 0:
        raise GraphError(name, expected="numbers of 0 or more", found=str(array.min()))
    return int(array.max())


def _weights(weight: NDArray[Any], count: int) -> NDArray[np.float64]:
    if weight.shape != (count,) or weight.dtype.kind not in "iufb":
        found = f"{weight.dtype} {list(weight.shape)}"
        raise GraphError("edge weights", expected=f"{count:,} numbers, one for each edge", found=found)
    weight = weight.astype(np.float64, copy=False)
    wrong = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if len(wrong):
        found = f"{weight[wrong[0]]} at edge {wrong[0]:,}"
        raise GraphError("edge weights", expected="finite numbers of 0 or more", found=found)
    return weight


def _narrow(weight_E: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """As a graph has them: None where all are 1."""
    if (weight_E == 1).all():
        return None
    with np.errstate(over="ignore", under="ignore"):
        narrow_E = weight_E.astype(np.float32)
    if not (np.isfinite(narrow_E).all() and (narrow_E > 0).all()):
        raise GraphError("edge weights", expected="numbers that float32 holds", found="greater or smaller ones")
    return narrow_E
