"""Walks obey the law of node2vec, and are the same however they are made.

The judge counts what follows each pair (t, v) in many walks and compares it with probabilities computed one by one
from a dictionary of weights. Suffixes: W walks, L nodes of a walk.
"""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2

from embstore.errors import ConfigError, GraphError
from embstore.node2vec import Graph, Walker, WalkSettings
from embstore.node2vec.walks import NO_NODE, check_walks

UNLIKELY = 1e-6  # chance that a right law is refused
Weights = dict[int, dict[int, float]]


def drawn_graph(nodes: int, edges: int, *, directed: bool, weighted: bool, seed: int) -> Graph:
    """Random edges, loops among them."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.2, 5, edges).astype(np.float32) if weighted else None
    ends = rng.integers(0, nodes, (2, edges))
    return Graph.of_edges(*ends, weight, num_nodes=nodes, directed=directed)


def hub(*, weighted: bool) -> Graph:
    """A node that all have as a neighbour, itself included, and a ring of the others."""
    leaves = np.arange(1, 41)
    source = np.concatenate([np.zeros(41, np.int64), leaves])
    target = np.concatenate([[0], leaves, np.roll(leaves, 1)])
    weight = np.linspace(0.1, 3, len(source)) if weighted else None
    return Graph.of_edges(source, target, weight)


GRAPHS = {
    "tail": Graph.of_edges(np.array([0, 0, 1, 2, 3]), np.array([1, 2, 2, 3, 4])),
    "loops": drawn_graph(8, 20, directed=False, weighted=False, seed=1),
    "weighted": drawn_graph(8, 20, directed=False, weighted=True, seed=2),
    "arcs": drawn_graph(9, 30, directed=True, weighted=False, seed=3),
    "weighted arcs": drawn_graph(9, 30, directed=True, weighted=True, seed=4),
    "hub": hub(weighted=False),
    "weighted hub": hub(weighted=True),
    "extremes": Graph.of_edges(
        np.array([0, 0, 1, 2, 3, 3, 4, 5]),
        np.array([1, 2, 2, 3, 4, 5, 5, 6]),
        np.array([1e30, 1e30, 1e30, 2e-30, 1e-30, 1e-30, 2e-30, 1e-30]),
    ),
}
PQ = [
    (1, 1),
    (0.25, 4),
    (4, 0.25),
    (0.25, 0.25),
    (4, 4),
    (1e-6, 1),
    (1e6, 1),
    (1, 1e-6),
    (1, 1e6),
    (1e6, 1e6),
    (1e-6, 1e6),
]
PQ += [(1e6, 1e-6), (0.5, 1e-6), (1e-6, 1e-6), (1, 0.5), (3, 1)]


def weights_of(graph: Graph) -> Weights:
    out: Weights = {n: {} for n in range(graph.num_nodes)}
    for n in out:
        for e in range(graph.indptr_N[n], graph.indptr_N[n + 1]):
            out[n][int(graph.indices_E[e])] = 1.0 if graph.weights_E is None else float(graph.weights_E[e])
    return out


def law(weights: Weights, how: WalkSettings, t: int, v: int) -> dict[int, float]:
    """The probability of each node after ``t`` and ``v``; of a first step where t is none."""
    out = {}
    for x, weight in weights[v].items():
        if t == NO_NODE:
            alpha = 1.0
        elif x == t:
            alpha = 1 / how.p
        elif how.plus:
            alpha = plus_alpha(weights, how, t, v, x)
        else:
            alpha = 1.0 if x in weights[t] else 1 / how.q
        out[x] = alpha * weight
    total = sum(out.values())
    return {x: value / total for x, value in out.items()}


def plus_alpha(weights: Weights, how: WalkSettings, t: int, v: int, x: int) -> float:
    def threshold(node: int) -> np.float32:
        row = np.array(list(weights[node].values()) or [0.0])
        return np.float32(max(row.mean() + how.gamma * row.std(), 0))

    if x in weights[t] and weights[t][x] >= threshold(x):
        return 1.0
    if weights[v][x] < threshold(v):
        return min(1.0, 1 / how.q)
    near = weights[t][x] / float(threshold(x)) if x in weights[t] else 0.0
    return 1 / how.q + (1 - 1 / how.q) * near


def likelihood(graph: Graph, how: WalkSettings, walks_WL: NDArray[np.int32], *, first: bool = False) -> float:
    """The chance that the walks' steps differ so much from the law, or more (chi-square of all rows together)."""
    if first:
        triples = np.column_stack([np.full(len(walks_WL), NO_NODE), walks_WL[:, :2]])
    else:
        triples = np.lib.stride_tricks.sliding_window_view(walks_WL, 3, axis=1).reshape(-1, 3)
    triples = triples[(triples[:, 1] >= 0) & (triples[:, 2] >= 0)].astype(np.int64)
    weights, nodes = weights_of(graph), graph.num_nodes
    codes, times = np.unique((triples[:, 0] * nodes + triples[:, 1]) * nodes + triples[:, 2], return_counts=True)
    pairs: dict[tuple[int, int], dict[int, int]] = {}
    for code, count in zip(codes.tolist(), times.tolist(), strict=True):
        pairs.setdefault(divmod(code // nodes, nodes), {})[code % nodes] = count
    statistic = freedom = 0.0
    for (t, v), counts in pairs.items():
        total, of_law = sum(counts.values()), law(weights, how, t, v)
        assert counts.keys() <= of_law.keys(), "a step that is no edge"
        cells: list[tuple[float, float]] = []
        rest_expected = rest_found = 0.0
        for x, probability in of_law.items():
            if probability * total >= 10:
                cells.append((probability * total, counts.get(x, 0)))
            else:
                rest_expected, rest_found = rest_expected + probability * total, rest_found + counts.get(x, 0)
        if rest_expected >= 10:
            cells.append((rest_expected, rest_found))
        else:  # too few for the law of chi-square, yet not more than can be
            assert rest_found <= rest_expected + 10 * np.sqrt(rest_expected) + 10
        if len(cells) > 1:
            scale = sum(found for _, found in cells) / sum(expected for expected, _ in cells)
            statistic += sum((found - scale * expected) ** 2 / (scale * expected) for expected, found in cells)
            freedom += len(cells) - 1
    return float(chi2.sf(statistic, freedom)) if freedom else 1.0


def walked(graph: Graph, how: WalkSettings, count: int = 12_000) -> NDArray[np.int32]:
    how = replace(how, num_walks=-(-count // graph.num_nodes), length=10)
    walker = Walker(graph, how)
    return walker.walks(0, walker.num_walks)


@pytest.mark.parametrize(("p", "q"), PQ)
@pytest.mark.parametrize("name", GRAPHS)
def test_steps_obey_the_law(name: str, p: float, q: float) -> None:
    how = WalkSettings(p=p, q=q, seed=7)
    walks_WL = walked(GRAPHS[name], how)
    assert likelihood(GRAPHS[name], how, walks_WL) > UNLIKELY
    assert likelihood(GRAPHS[name], how, walks_WL, first=True) > UNLIKELY


@pytest.mark.parametrize("gamma", [0.0, 1.0, -10.0])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (0.25, 4), (4, 0.25), (1e-6, 1e6), (1e6, 1e-6), (1e6, 1e6)])
@pytest.mark.parametrize("name", ["weighted", "weighted arcs", "weighted hub", "extremes"])
def test_steps_obey_the_law_of_node2vec_plus(name: str, p: float, q: float, gamma: float) -> None:
    how = WalkSettings(p=p, q=q, plus=True, gamma=gamma, seed=8)
    assert likelihood(GRAPHS[name], how, walked(GRAPHS[name], how)) > UNLIKELY


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("weighted", {"p": 0.25, "q": 4}, {"p": 0.28, "q": 4}),
        ("loops", {"p": 4, "q": 0.25}, {"p": 4, "q": 0.28}),
        ("weighted arcs", {"q": 0.25}, {}),
        ("weighted hub", {"q": 0.25, "plus": True}, {"q": 0.25}),
        ("weighted hub", {"q": 0.25, "plus": True}, {"q": 0.25, "plus": True, "gamma": 0.5}),
    ],
)
def test_the_judge_refuses_a_wrong_law(name: str, right: dict[str, Any], wrong: dict[str, Any]) -> None:
    walks_WL = walked(GRAPHS[name], WalkSettings(**right), 40_000)
    assert likelihood(GRAPHS[name], WalkSettings(**right), walks_WL) > UNLIKELY
    assert likelihood(GRAPHS[name], WalkSettings(**wrong), walks_WL) < UNLIKELY


def test_plus_is_node2vec_where_weights_say_nothing() -> None:
    plain, same = GRAPHS["loops"], GRAPHS["loops"]
    how = WalkSettings(p=0.5, q=3, seed=1)
    assert np.array_equal(walked(plain, how), walked(same, replace(how, plus=True)))
    equal = replace(plain, weights_E=np.full(len(plain.indices_E), 0.1, np.float32))
    assert np.array_equal(walked(equal, how), walked(equal, replace(how, plus=True)))


FIVE = (np.array([0, 0, 1, 2, 3]), np.array([1, 2, 2, 3, 4]))
FIVE_WEIGHTS = np.array([1.0, 3.0, 2.0, 0.5, 1.0])
ARCS = (np.array([0, 1, 2, 3, 4, 0, 2]), np.array([1, 2, 3, 4, 0, 2, 0]))
ARC_WEIGHTS = np.array([1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 2.0])
PINNED: dict[str, tuple[Graph, dict[str, Any], list[list[int]]]] = {
    "first order": (
        Graph.of_edges(*FIVE),
        {},
        [
            [0, 1, 0, 2, 1, 0, 2, 1],
            [1, 0, 2, 1, 0, 2, 3, 2],
            [2, 3, 2, 0, 1, 0, 2, 0],
            [3, 2, 0, 1, 0, 1, 2, 0],
            [4, 3, 2, 1, 2, 3, 4, 3],
        ],
    ),
    "second order": (
        Graph.of_edges(*FIVE),
        {"p": 0.25, "q": 4.0},
        [
            [0, 1, 0, 1, 0, 1, 0, 2],
            [1, 0, 1, 0, 1, 0, 1, 0],
            [2, 3, 2, 3, 2, 3, 2, 3],
            [3, 2, 3, 2, 3, 2, 3, 2],
            [4, 3, 4, 3, 4, 3, 4, 3],
        ],
    ),
    "weighted": (
        Graph.of_edges(*FIVE, FIVE_WEIGHTS),
        {"p": 2.0, "q": 0.5},
        [
            [0, 1, 2, 0, 1, 2, 3, 4],
            [1, 0, 2, 0, 2, 0, 1, 0],
            [2, 1, 0, 2, 1, 0, 2, 0],
            [3, 2, 1, 0, 2, 1, 0, 2],
            [4, 3, 4, 3, 2, 0, 2, 0],
        ],
    ),
    "weighted, first order": (
        Graph.of_edges(*FIVE, FIVE_WEIGHTS),
        {},
        [
            [0, 1, 2, 0, 1, 0, 1, 2],
            [1, 0, 2, 1, 0, 1, 2, 0],
            [2, 1, 0, 2, 0, 1, 2, 0],
            [3, 2, 1, 2, 0, 1, 0, 1],
            [4, 3, 4, 3, 4, 3, 2, 3],
        ],
    ),
    "plus": (
        Graph.of_edges(*FIVE, FIVE_WEIGHTS),
        {"p": 2.0, "q": 0.5, "plus": True},
        [
            [0, 1, 2, 0, 1, 2, 0, 2],
            [1, 0, 2, 0, 2, 0, 1, 0],
            [2, 1, 0, 2, 1, 0, 2, 1],
            [3, 2, 1, 0, 2, 1, 0, 2],
            [4, 3, 4, 3, 4, 3, 2, 0],
        ],
    ),
    "plus with gamma": (
        Graph.of_edges(*FIVE, FIVE_WEIGHTS),
        {"p": 0.5, "q": 4.0, "plus": True, "gamma": 1.0},
        [
            [0, 1, 2, 1, 0, 2, 0, 2],
            [1, 0, 2, 0, 1, 2, 1, 2],
            [2, 1, 2, 1, 2, 1, 2, 1],
            [3, 2, 0, 2, 0, 2, 0, 2],
            [4, 3, 4, 3, 4, 3, 4, 3],
        ],
    ),
    "arcs": (
        Graph.of_edges(*ARCS, directed=True),
        {"p": 0.5, "q": 2.0},
        [
            [0, 1, 2, 0, 2, 0, 2, 0],
            [1, 2, 3, 4, 0, 2, 0, 2],
            [2, 3, 4, 0, 2, 0, 1, 2],
            [3, 4, 0, 1, 2, 0, 1, 2],
            [4, 0, 1, 2, 0, 1, 2, 3],
        ],
    ),
    "weighted arcs": (
        Graph.of_edges(*ARCS, ARC_WEIGHTS, directed=True),
        {"p": 0.5, "q": 2.0},
        [
            [0, 1, 2, 0, 1, 2, 3, 4],
            [1, 2, 0, 2, 0, 2, 0, 2],
            [2, 3, 4, 0, 2, 3, 4, 0],
            [3, 4, 0, 2, 0, 2, 0, 1],
            [4, 0, 2, 0, 2, 0, 2, 0],
        ],
    ),
    "outright": (
        Graph.of_edges(*FIVE),
        {"p": 1000000.0, "q": 1000000.0},
        [
            [0, 1, 2, 0, 1, 2, 0, 1],
            [1, 0, 2, 1, 0, 2, 1, 0],
            [2, 3, 4, 3, 4, 3, 4, 3],
            [3, 2, 0, 1, 2, 0, 1, 2],
            [4, 3, 2, 1, 0, 2, 1, 0],
        ],
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_walks_stay_what_they_were(name: str) -> None:
    graph, settings, expected = PINNED[name]
    walker = Walker(graph, WalkSettings(length=8, num_walks=1, seed=42, **settings))
    walks_WL = walker.walks(0, 5)
    assert walks_WL[np.argsort(walks_WL[:, 0])].tolist() == expected


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    nodes = draw(st.integers(1, 12))
    edges = draw(st.lists(st.tuples(*[st.integers(0, nodes - 1)] * 2), min_size=1, max_size=40))
    weights = st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=len(edges), max_size=len(edges))
    weight = draw(st.none() | weights)
    source, target = np.array(edges).T
    weighted = None if weight is None else np.array(weight)
    return Graph.of_edges(source, target, weighted, num_nodes=nodes, directed=draw(st.booleans()))


EXPONENTS = st.sampled_from([1.0, 0.25, 4.0, 1e-9, 1e9])


@trials(max_examples=60)
@given(
    graphs(),
    st.builds(
        WalkSettings,
        p=EXPONENTS,
        q=EXPONENTS,
        plus=st.booleans(),
        length=st.integers(1, 9),
        num_walks=st.integers(1, 3),
        seed=st.integers(0, 2**63 - 1),
    ),
    st.data(),
)
def test_any_walk_follows_edges_and_is_the_same_for_any_division(
    graph: Graph, how: WalkSettings, data: st.DataObject
) -> None:
    walker = Walker(graph, how)
    walks_WL = walker.walks(0, walker.num_walks)
    assert walks_WL.dtype == np.int32
    assert walks_WL.shape == (how.num_walks * graph.num_nodes, how.length)
    for turn in walks_WL.reshape(how.num_walks, graph.num_nodes, how.length):
        assert sorted(turn[:, 0]) == list(range(graph.num_nodes))
    for walk in walks_WL.tolist():
        for v, x in pairwise(walk):
            if v == NO_NODE:
                assert x == NO_NODE
            elif x == NO_NODE:
                assert not len(graph.neighbours(v))
            else:
                assert x in graph.neighbours(v)
    assert np.array_equal(walker.starts(0, walker.num_walks), walks_WL[:, 0])
    cut = data.draw(st.integers(0, walker.num_walks))
    again = Walker(pickle.loads(pickle.dumps(graph)), how)
    parts = [again.walks(cut, walker.num_walks, threads=2), again.walks(0, cut)]
    assert np.array_equal(np.concatenate(parts[::-1]), walks_WL)


def test_threads_and_chunks_make_the_same_walks() -> None:
    walker = Walker(hub(weighted=True), WalkSettings(p=0.25, q=4, num_walks=100, length=20))
    whole = walker.walks(0, walker.num_walks)
    for threads in (2, 5):
        assert np.array_equal(walker.walks(0, walker.num_walks, threads=threads), whole)
    parts = [walker.walks(*bounds) for bounds in walker.chunks(333)]
    assert np.array_equal(np.concatenate(parts), whole)
    with ThreadPoolExecutor(4) as pool:  # rounds asked for at the same time, in any order
        bounds = list(walker.chunks(50)) * 3
        for (begin, end), part in zip(bounds, pool.map(lambda b: walker.walks(*b), bounds), strict=True):
            assert np.array_equal(part, whole[begin:end])


def test_a_walker_is_pickled_with_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each: tasks of a cluster would otherwise make them again for each piece."""
    walker = Walker(hub(weighted=True), WalkSettings(num_walks=3, plus=True))
    whole = walker.walks(0, 100)
    held: list[pickle.PickleBuffer] = []
    kept = pickle.dumps(walker, protocol=5, buffer_callback=held.append)
    tables = sum(array.nbytes for array in walker._tables)
    assert sum(buffer.raw().nbytes for buffer in held) == walker.graph.nbytes + tables + 4 * walker.num_nodes
    again = pickle.loads(kept, buffers=[bytes(buffer.raw()) for buffer in held])
    monkeypatch.setattr("embstore.node2vec.walks.alias_rows", None)
    assert np.array_equal(again.walks(0, 100), whole)


def test_starts_that_are_no_nodes() -> None:
    walker = Walker(hub(weighted=False), WalkSettings(length=3))
    count = walker.num_nodes
    for start, rounds, text in (
        ([0, count], [0, 0], f"expected nodes below {count}; found {count}"),
        ([-1], [0], "found -1"),
        ([2**32], [0], f"found {2**32}"),
        ([0], [0, 1], "as many of both"),
        ([0.5], [0], "integers"),
    ):
        with pytest.raises(GraphError, match=text):
            walker.walks_from(np.array(start), np.array(rounds))
    assert walker.walks_from(np.array([1, 1]), np.array([0, 1])).shape == (2, 3)


def test_arrays_that_are_read_only_or_mapped_make_the_same_walks(tmp_path: Any) -> None:
    graph = hub(weighted=True)
    mapped = {}
    for name in ("indptr_N", "indices_E", "weights_E"):
        np.save(tmp_path / f"{name}.npy", getattr(graph, name))
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    how = WalkSettings(p=0.5, q=2, plus=True, num_walks=2)
    assert np.array_equal(Walker(replace(graph, **mapped), how).walks(0, 80), Walker(graph, how).walks(0, 80))


def test_walks_end_where_no_arc_leads_on() -> None:
    path = Graph.of_edges(np.array([0, 1]), np.array([1, 2]), num_nodes=4, directed=True)
    walks_WL = Walker(path, WalkSettings(p=2, length=4, num_walks=1)).walks(0, 4)
    ends = walks_WL[np.argsort(walks_WL[:, 0])].tolist()
    assert ends == [[0, 1, 2, -1], [1, 2, -1, -1], [2, -1, -1, -1], [3, -1, -1, -1]]


def test_walks_of_one_node() -> None:
    walker = Walker(GRAPHS["tail"], WalkSettings(length=1, num_walks=2))
    walks_WL = walker.walks(0, 10)
    assert walks_WL.shape == (10, 1)
    assert sorted(walks_WL[:5, 0]) == sorted(walks_WL[5:, 0]) == list(range(5))
    assert walker.walks(3, 3).shape == (0, 1)


def test_a_loop_alone_is_walked() -> None:
    loop = Graph.of_edges(np.array([0]), np.array([0]))
    assert Walker(loop, WalkSettings(p=3, q=0.1, length=5, num_walks=1)).walks(0, 1).tolist() == [[0] * 5]


def complete(nodes: int) -> Graph:
    source, target = np.triu_indices(nodes, 1)
    return Graph.of_edges(source, target)


def even(counts: NDArray[np.int64]) -> float:
    """The chance of counts so uneven, or more."""
    expected = counts.sum() / counts.size
    assert expected >= 10
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), counts.size - 1))


def offsets(walks_WL: NDArray[np.int32], nodes: int) -> NDArray[np.int64]:
    """First steps of a complete graph as numbers below ``nodes - 1``, by start."""
    ordered = walks_WL[np.argsort(walks_WL[:, 0])]
    return (ordered[:, 1] - ordered[:, 0] - 1) % nodes


def test_walks_of_other_rounds_nodes_and_seeds_are_independent() -> None:
    nodes, rounds = 8, 6000
    graph = complete(nodes)

    def pairs(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
        return even(np.bincount((one * (nodes - 1) + other).ravel(), minlength=(nodes - 1) ** 2))

    walker = Walker(graph, WalkSettings(length=2, num_walks=rounds))
    step_RN = np.array([offsets(walker.walks(r * nodes, (r + 1) * nodes), nodes) for r in range(rounds)])
    assert pairs(step_RN[:-1], step_RN[1:]) > UNLIKELY
    assert pairs(step_RN[:, :-1], step_RN[:, 1:]) > UNLIKELY
    seeds = [WalkSettings(length=2, num_walks=1, seed=seed) for seed in range(4000)]
    step_SN = np.array([offsets(Walker(graph, how).walks(0, nodes), nodes) for how in seeds])
    assert pairs(step_SN[:-1], step_SN[1:]) > UNLIKELY
    assert pairs(step_SN[:, :-1], step_SN[:, 1:]) > UNLIKELY
    assert pairs(step_SN, step_RN[: len(step_SN)]) > UNLIKELY
    start_RN = walker.starts(0, walker.num_walks).reshape(rounds, nodes)
    place = np.arange(nodes)
    assert even(np.bincount((start_RN * nodes + place).ravel(), minlength=nodes**2)) > UNLIKELY


def test_steps_of_a_walk_are_independent() -> None:
    nodes = 8
    walks_WL = Walker(complete(nodes), WalkSettings(length=200, num_walks=50)).walks(0, 50 * nodes)
    step = (walks_WL[:, 1:] - walks_WL[:, :-1] - 1) % nodes
    for lag in (1, 2, 3, 7):
        codes = step[:, :-lag] * (nodes - 1) + step[:, lag:]
        assert even(np.bincount(codes.ravel(), minlength=(nodes - 1) ** 2)) > UNLIKELY


def test_other_seeds_are_other_walks() -> None:
    graph = complete(8)
    one, other = (Walker(graph, WalkSettings(seed=seed, num_walks=1)).walks(0, 8) for seed in (1, 2))
    assert not np.array_equal(one[np.argsort(one[:, 0])], other[np.argsort(other[:, 0])])


@pytest.mark.parametrize("name", ["p", "q"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-10, 1e10])
def test_parameters_that_are_no_parameters(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"walks\.{name}; expected a number from 1e-9 to 1e9; found"):
        WalkSettings(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("length", 0), ("num_walks", 0), ("gamma", float("nan")), ("gamma", float("inf")), ("seed", -1), ("seed", 2**63)],
)
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"walks\.{name}"):
        WalkSettings(**{name: value})


def test_numbers_of_walks_that_there_are_not() -> None:
    walker = Walker(GRAPHS["tail"], WalkSettings(num_walks=2))
    for bounds in ((-1, 2), (3, 2), (0, 11)):
        with pytest.raises(ConfigError, match="numbers from 0 to 10"):
            walker.walks(*bounds)


def test_a_graph_without_edges() -> None:
    with pytest.raises(GraphError, match="at least one edge; found 3 nodes"):
        Walker(Graph.of_edges(np.empty(0, int), np.empty(0, int), num_nodes=3), WalkSettings())


@pytest.mark.parametrize(
    "wrong",
    [
        {"indices_E": np.array([1, 5], np.int32)},
        {"indices_E": np.array([1, -1], np.int32)},
        {"indices_E": np.array([1, 0], np.int64)},
        {"indptr_N": np.array([0, 9, 2])},
        {"indptr_N": np.array([0, 1, 3])},
        {"indptr_N": np.array([0, 1, 2], np.int32)},
        {"weights_E": np.array([1.0], np.float32)},
        {"weights_E": np.array([1.0, np.nan], np.float32)},
        {"weights_E": np.array([1.0, 0.0], np.float32)},
    ],
)
def test_arrays_that_are_no_graph(wrong: dict[str, Any]) -> None:
    graph = Graph(indptr_N=np.array([0, 1, 2]), indices_E=np.array([1, 0], np.int32))
    Walker(graph, WalkSettings())
    with pytest.raises(GraphError, match="a graph's"):
        Walker(replace(graph, **wrong), WalkSettings())


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 2)), np.zeros((2, 2), np.int64), np.zeros(3, np.int32), [[0, 1]], np.full((1, 1), 3, np.int32)],
)
def test_arrays_that_are_no_walks(wrong: Any) -> None:
    with pytest.raises(GraphError, match="walks; expected"):
        check_walks(wrong, 3)
    check_walks(np.array([[0, 2, -1]], np.int32), 3)
    check_walks(np.empty((0, 4), np.int32), 3)
