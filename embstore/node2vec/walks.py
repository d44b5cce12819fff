"""Random walks of second order (Grover & Leskovec 2016): the next node depends on this one and the one before.

    t ── v ── x        x is drawn among v's neighbours with probability ~ alpha(t, x) * weight(v, x)
    alpha(t, x) = 1/p where x is t (back), 1 where t has x as a neighbour, too (near), 1/q elsewhere (on)

A neighbour is drawn by weight (Vose's alias tables, one entry an edge) and kept with probability alpha / max(1, 1/q):
no table of pairs of edges is ever made. What goes back is drawn apart where 1/p is the greatest, and where nothing was
kept for long, all alphas are computed and one is drawn outright; so no p and q make a step slow, and none changes the
law. Where a directed graph has no arc back, a walk goes on without it; "near" asks for an arc from t to x, as the
paper's distance from t does and PecanPy (the authors' code asks for one from x to t).

node2vec+ (Liu, Hirn & Krishnan 2023) looks at weights, too. An edge is weak at a node when its weight is below that
node's mean weight plus gamma standard deviations (of its own row; 0 if that is negative), which is c(node) here:

    alpha(t, x) = 1/p                           where x is t
                  1                             where t-x is an edge that isn't weak at x
                  min(1, 1/q)                   elsewhere, where v-x is weak at v
                  1/q + (1 - 1/q) w(t, x)/c(x)  elsewhere; w is 0 where there is no edge

These are PecanPy's probabilities for sparse graphs but for one case: it has no mean for a node without arcs, which here
has none that are weak. Without weights no edge is weak, and all is node2vec.

Walk ``number`` of ``num_walks * N`` starts at the node that round ``number // N`` has in place ``number % N``; its
random numbers are a function of (seed, node, round) alone. So walks are the same for any division of the work.

Suffixes: N nodes, E entries, W walks, L nodes of a walk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, GraphError
from embstore.hashing import compiled, mulhi64_scalar, splitmix64_scalar
from embstore.node2vec.alias import alias_rows
from embstore.node2vec.graph import Graph, row_sums
from embstore.threads import share

NO_NODE = -1  # after the end of a walk that couldn't go on
_TRIALS = 64  # neighbours drawn in vain before all alphas are computed
_CHUNK = 256  # walks claimed by a thread at once

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND = np.uint64(0xD1B54A32D192ED03)  # apart from the counter's stride
_U11 = np.uint64(11)
_UNIT = 2.0**-53


@dataclass(frozen=True, kw_only=True)
class WalkSettings:
    """How to walk.

    Args:
        p: return parameter: the greater, the rarer a walk goes back.
        q: in-out parameter: above 1 walks stay near, below 1 they go away.
        length: nodes of a walk, its start included.
        num_walks: from each node.
        plus: node2vec+ (Liu, Hirn & Krishnan 2023): a neighbour by a weak edge counts as partly away.
        gamma: of node2vec+: an edge is weak below its node's mean weight plus so many standard deviations.
        seed: of all that is drawn.
    """

    p: float = 1.0
    q: float = 1.0
    length: int = 80
    num_walks: int = 10
    plus: bool = False
    gamma: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("p", "q"):
            if not 1e-9 <= getattr(self, name) <= 1e9:
                raise ConfigError(f"walks.{name}", expected="a number from 1e-9 to 1e9", found=str(getattr(self, name)))
        if self.length < 1:
            raise ConfigError("walks.length", expected="1 or more", found=str(self.length))
        if self.num_walks < 1:
            raise ConfigError("walks.num_walks", expected="1 or more", found=str(self.num_walks))
        if not np.isfinite(self.gamma):
            raise ConfigError("walks.gamma", expected="a finite number", found=str(self.gamma))
        if not 0 <= self.seed < 2**63:
            raise ConfigError("walks.seed", expected="0 to 2^63 - 1", found=str(self.seed))


class Walker:
    """Walks on a graph.

    Args:
        graph: with at least one edge.
        settings: how.

    Raises:
        GraphError: a graph without edges.

    >>> ring = Graph.of_edges(np.arange(5), (np.arange(5) + 1) % 5)
    >>> walker = Walker(ring, WalkSettings(p=4.0, length=6, num_walks=2))
    >>> walker.num_walks, walker.walks(0, 10).shape
    (10, (10, 6))
    >>> bool((walker.walks(3, 5) == walker.walks(0, 10)[3:5]).all())
    True
    """

    def __init__(self, graph: Graph, settings: WalkSettings) -> None:
        if not len(graph.indices_E):
            found = f"{graph.num_nodes:,} nodes and no edge"
            raise GraphError("a graph to walk on", expected="at least one edge", found=found)
        _check_arrays(graph)
        self.graph, self.settings = graph, settings
        self._last_order = -1, np.empty(0, dtype=np.int32)  # replaced as one: threads may ask at the same time

    def __getstate__(self) -> dict[str, Any]:
        """Pickled with its tables, where they were made: workers read them where they lie, as they do the graph."""
        return {name: value for name, value in self.__dict__.items() if name != "_arguments"}

    @property
    def num_nodes(self) -> int:
        """Of the graph."""
        return self.graph.num_nodes

    @property
    def length(self) -> int:
        """Nodes of a walk at most."""
        return self.settings.length

    @property
    def num_walks(self) -> int:
        """Of all nodes and rounds; those of nodes without neighbours have one node."""
        return self.settings.num_walks * self.graph.num_nodes

    def starts(self, begin: int, end: int) -> NDArray[np.int32]:
        """The first nodes of walks ``begin`` to ``end``."""
        number = np.arange(begin, end)
        out = np.empty(len(number), dtype=np.int32)
        for walk_round in np.unique(number // self.graph.num_nodes):
            these = number // self.graph.num_nodes == walk_round
            out[these] = self._order(int(walk_round))[number[these] % self.graph.num_nodes]
        return out

    def walks(self, begin: int, end: int, *, threads: int = 1) -> NDArray[np.int32]:
        """Walks ``begin`` to ``end``, int32 ``[W, length]``; ``NO_NODE`` after the end of one that couldn't go on."""
        if not 0 <= begin <= end <= self.num_walks:
            raise ConfigError("walks", expected=f"numbers from 0 to {self.num_walks:,}", found=f"{begin:,} to {end:,}")
        return self.walks_from(self.starts(begin, end), np.arange(begin, end) // self.graph.num_nodes, threads=threads)

    def walks_from(
        self, start_W: NDArray[np.int32], round_W: NDArray[np.int64], *, threads: int = 1
    ) -> NDArray[np.int32]:
        """A walk from each of these nodes, in these rounds; shaped as ``walks``.

        Raises:
            GraphError: nodes that there aren't, or another number of rounds.
        """
        if not (
            start_W.ndim == 1 and start_W.shape == round_W.shape and start_W.dtype.kind == round_W.dtype.kind == "i"
        ):
            found = ", ".join(f"{of.dtype} {list(of.shape)}" for of in (start_W, round_W))
            raise GraphError("starts and rounds of walks", expected="integers, as many of both", found=found)
        least, greatest = int(start_W.min(initial=0)), int(start_W.max(initial=0))
        if least < 0 or greatest >= self.num_nodes:
            found = str(least if least < 0 else greatest)
            raise GraphError("starts of walks", expected=f"nodes below {self.num_nodes:,}", found=found)
        start_W = np.ascontiguousarray(start_W, dtype=np.int32)
        round_W = np.ascontiguousarray(round_W, dtype=np.int64)
        out_WL = np.empty((len(start_W), self.settings.length), dtype=np.int32)
        arguments = self._arguments
        firsts = iter(range(0, len(start_W), _CHUNK))  # of which each thread takes the next

        def work() -> None:
            for first in firsts:
                part = slice(first, first + _CHUNK)
                _walk(out_WL[part], start_W[part], round_W[part], *arguments)

        share(work, min(threads, -(-len(start_W) // _CHUNK)))
        return out_WL

    def chunks(self, size: int, *, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """Bounds of at most ``size`` walks each, from ``begin`` to ``end``."""
        end = self.num_walks if end is None else end
        for first in range(begin, end, size):
            yield first, min(first + size, end)

    def _order(self, walk_round: int) -> NDArray[np.int32]:
        known, order_N = self._last_order
        if known != walk_round:
            generator = np.random.Generator(np.random.Philox(key=[self.settings.seed, walk_round]))
            order_N = generator.permutation(self.graph.num_nodes).astype(np.int32)
            self._last_order = walk_round, order_N
        return order_N

    @cached_property
    def _tables(self) -> tuple[NDArray[Any], ...]:
        """Of a graph with weights: its alias tables, strengths, and below what an edge is weak."""
        graph = self.graph
        keep_E = weak_N = np.empty(0, dtype=np.float32)
        if graph.weights_E is None:
            return keep_E, np.empty(0, dtype=np.int32), np.empty(0), weak_N
        if self.settings.plus:
            weak_N = _weak_below(graph, self.settings.gamma)
        return *alias_rows(graph.indptr_N, graph.weights_E), graph.strengths(), weak_N

    @cached_property
    def _arguments(self) -> tuple[Any, ...]:
        graph, how = self.graph, self.settings
        weight_E = np.empty(0, dtype=np.float32) if graph.weights_E is None else graph.weights_E
        arrays: list[NDArray[Any]] = [graph.indptr_N, graph.indices_E, weight_E, *self._tables]
        return *[_frozen(array) for array in arrays], 1.0 / how.p, 1.0 / how.q, graph.directed, np.uint64(how.seed)


def check_walks(walks_WL: NDArray[np.int32], num_nodes: int) -> None:
    """Refuse what would make native code read beside its arrays.

    Raises:
        GraphError: no int32 ``[W, L]``, or numbers that are no nodes.
    """
    if not isinstance(walks_WL, np.ndarray) or walks_WL.dtype != np.int32 or walks_WL.ndim != 2:
        kind = f"{walks_WL.dtype} {list(walks_WL.shape)}" if isinstance(walks_WL, np.ndarray) else type(walks_WL)
        raise GraphError("walks", expected="int32 [walks, nodes of each]", found=str(kind))
    greatest, least = int(walks_WL.max(initial=NO_NODE)), int(walks_WL.min(initial=NO_NODE))
    if greatest >= num_nodes or least < NO_NODE:
        expected = f"nodes below {num_nodes:,}, and {NO_NODE} after a walk's end"
        raise GraphError("walks", expected=expected, found=str(greatest if greatest >= num_nodes else least))


def _check_arrays(graph: Graph) -> None:
    indptr_N, indices_E, weights_E = graph.indptr_N, graph.indices_E, graph.weights_E
    kinds = [indptr_N.dtype == np.int64, indices_E.dtype == np.int32]
    kinds += [weights_E is None or (weights_E.dtype == np.float32 and weights_E.shape == indices_E.shape)]
    if not all(kinds):
        found = ", ".join(f"{a.dtype} {list(a.shape)}" for a in (indptr_N, indices_E, weights_E) if a is not None)
        raise GraphError("a graph's arrays", expected="int64 [N + 1], int32 [E], float32 [E] or none", found=found)
    if indptr_N[0] != 0 or indptr_N[-1] != len(indices_E) or (indptr_N[1:] < indptr_N[:-1]).any():
        expected = f"bounds that ascend from 0 to {len(indices_E):,}"
        raise GraphError("a graph's indptr", expected=expected, found="others")
    if indices_E.min() < 0 or indices_E.max() >= graph.num_nodes:
        found = f"{indices_E.min():,} to {indices_E.max():,}"
        raise GraphError("a graph's indices", expected=f"nodes below {graph.num_nodes:,}", found=found)
    if weights_E is not None and not (weights_E.min() > 0 and weights_E.max() < np.inf):
        found = f"{weights_E.min()} to {weights_E.max()}"
        raise GraphError("a graph's weights", expected="finite numbers above 0", found=found)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Read-only, as arrays mapped or shared by processes are: the same code is compiled for all."""
    array = np.asarray(array).view()
    array.flags.writeable = False
    return array


def _weak_below(graph: Graph, gamma: float) -> NDArray[np.float32]:
    """The weight below which an edge is weak at a node, ``[N]``: c in the above."""
    assert graph.weights_E is not None
    count_N = np.maximum(graph.degrees(), 1)
    mean_N = graph.strengths() / count_N
    deviation_E = (graph.weights_E - mean_N[graph.sources()]) ** 2
    deviation_N = np.sqrt(row_sums(graph.indptr_N, deviation_E) / count_N)
    return np.maximum(mean_N + gamma * deviation_N, 0).astype(np.float32)


@compiled(forceinline=True)
def _place(indptr_N, indices_E, node, wanted):  # type: ignore[no-untyped-def]
    """The entry of ``wanted`` in a node's row, or -1."""
    low, high = indptr_N[node], indptr_N[node + 1]
    end = high
    while low < high:
        middle = (low + high) >> 1
        if indices_E[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < end and indices_E[low] == wanted else -1


@compiled(forceinline=True)
def _unit(bits):  # type: ignore[no-untyped-def]
    return (bits >> _U11) * _UNIT


@compiled(forceinline=True)
def _alpha(indptr_N, indices_E, weight_E, weak_N, t, v_weight, v_weak, x, back, on, undirected):  # type: ignore[no-untyped-def]
    """Of node ``x`` after ``t``; the edge between v and x has this weight, and is weak at v below ``v_weak``."""
    if x == t:
        return back
    if undirected and indptr_N[x + 1] - indptr_N[x] < indptr_N[t + 1] - indptr_N[t]:
        place = _place(indptr_N, indices_E, x, t)
    else:
        place = _place(indptr_N, indices_E, t, x)
    if len(weak_N) == 0:
        return on if place < 0 else 1.0
    near = 0.0 if place < 0 else np.float64(weight_E[place])
    if near >= weak_N[x] and place >= 0:
        return 1.0
    if v_weight < v_weak:
        return min(1.0, on)
    return on + (1.0 - on) * near / weak_N[x] if weak_N[x] > 0.0 else on


@compiled(nogil=True)
def _walk(  # type: ignore[no-untyped-def]
    out_WL,
    start_W,
    round_W,
    indptr_N,
    indices_E,
    weight_E,
    keep_E,
    other_E,
    strength_N,
    weak_N,
    back,
    on,
    directed,
    seed,
):
    weighted, plus, undirected = len(weight_E) > 0, len(weak_N) > 0, not directed
    first_order = back == 1.0 and on == 1.0
    most = max(1.0, on)  # greatest alpha but for going back, of which the rest is drawn apart
    rest = max(back - most, 0.0)
    sure = min(min(1.0, on), back)  # least alpha: kept without a look
    for w in range(len(start_W)):
        v = np.int64(start_W[w])
        t = np.int64(-1)
        state = splitmix64_scalar(splitmix64_scalar(seed) ^ np.uint64(v)) + np.uint64(round_W[w]) * _ROUND
        state = splitmix64_scalar(state)
        out_WL[w, 0] = v
        length = 1
        while length < out_WL.shape[1]:
            begin = indptr_N[v]
            degree = indptr_N[v + 1] - begin
            if degree == 0:
                break
            entry = np.int64(-1)
            plain = first_order or t < 0
            extra = 0.0  # share of draws that are the rest of going back
            if not plain and rest > 0.0:
                place = _place(indptr_N, indices_E, v, t)
                if place >= 0:
                    total, weight = np.float64(degree), 1.0
                    if weighted:
                        total, weight = strength_N[v], np.float64(weight_E[place])
                    extra = weight * rest / (weight * rest + total * most)
            for _ in range(_TRIALS):
                state += _GOLDEN
                chosen = begin + np.int64(mulhi64_scalar(splitmix64_scalar(state), np.uint64(degree)))
                if weighted:
                    state += _GOLDEN
                    if _unit(splitmix64_scalar(state)) >= keep_E[chosen]:
                        chosen = begin + other_E[chosen]
                if plain:
                    entry = chosen
                    break
                state += _GOLDEN
                u = _unit(splitmix64_scalar(state))
                if u < extra:
                    entry = place
                    break
                if extra > 0.0:
                    state += _GOLDEN
                    u = _unit(splitmix64_scalar(state))
                u *= most
                if u < sure:
                    entry = chosen
                    break
                x = np.int64(indices_E[chosen])
                v_weight = np.float64(weight_E[chosen]) if plus else 0.0
                v_weak = np.float64(weak_N[v]) if plus else 0.0
                a = _alpha(indptr_N, indices_E, weight_E, weak_N, t, v_weight, v_weak, x, back, on, undirected)
                if u < a:
                    entry = chosen
                    break
            if entry < 0:
                entry = _outright(indptr_N, indices_E, weight_E, weak_N, t, v, back, on, undirected, state + _GOLDEN)
                state += _GOLDEN
            t = v
            v = np.int64(indices_E[entry])
            out_WL[w, length] = v
            length += 1
        for rest_of_it in range(length, out_WL.shape[1]):
            out_WL[w, rest_of_it] = NO_NODE


@compiled()
def _outright(indptr_N, indices_E, weight_E, weak_N, t, v, back, on, undirected, state):  # type: ignore[no-untyped-def]
    """An entry of v's row, of all whose probabilities are computed."""
    weighted, plus = len(weight_E) > 0, len(weak_N) > 0
    v_weak = np.float64(weak_N[v]) if plus else 0.0
    u = 0.0
    for again in range(2):  # first the sum, then the place in it
        total = 0.0
        for e in range(indptr_N[v], indptr_N[v + 1]):
            weight = np.float64(weight_E[e]) if weighted else 1.0
            x = np.int64(indices_E[e])
            total += weight * _alpha(indptr_N, indices_E, weight_E, weak_N, t, weight, v_weak, x, back, on, undirected)
            if again == 1 and u < total:
                return e
        u = _unit(splitmix64_scalar(state)) * total
    return indptr_N[v + 1] - 1
