"""Skip-gram is what a few lines of numpy in float64 make of the same draws; many threads learn as much as one.

Suffixes: N nodes, W walks, L nodes of a walk, D numbers of a vector.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from numpy.typing import NDArray

from embstore.errors import ConfigError, GraphError
from embstore.node2vec import Graph, SkipGram, SkipGramSettings, Walker, WalkSettings
from embstore.node2vec.alias import alias_rows
from embstore.node2vec.skipgram import draw_vectors
from embstore.node2vec.tiles import OUTPUTS

ALL = 2**64 - 1
GOLDEN, WALK = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03


def mixed(x: int) -> int:
    z = (x + GOLDEN) & ALL
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ALL
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ALL
    return z ^ (z >> 31)


class Draws:
    """The random numbers of a walk in an epoch."""

    def __init__(self, seed: int, epoch: int, number: int) -> None:
        self.state = mixed((mixed((seed + epoch * GOLDEN) & ALL) + number * WALK) & ALL)

    def bits(self) -> int:
        self.state = (self.state + GOLDEN) & ALL
        return mixed(self.state)


class Judge:
    """Skip-gram in float64."""

    def __init__(self, trained: SkipGram, visits_N: NDArray[np.int64]) -> None:
        self.how, self.num_walks = trained.settings, trained.num_walks
        self.vectors, self.contexts = trained.vectors.astype(np.float64), trained.contexts.astype(np.float64)
        weight = np.array([float(v) ** self.how.power if v else 0.0 for v in visits_N])
        self.keep, self.other = alias_rows(np.array([0, len(weight)]), weight)
        share = visits_N / visits_N.sum()
        self.kept = np.ones(len(share), np.float32)
        if self.how.subsample:
            seen = share > 0
            ratio = self.how.subsample / share[seen]
            self.kept[seen] = np.minimum(np.sqrt(ratio) + ratio, 1)
        self.repeated = self.refused = 0

    def train(self, walks_WL: NDArray[np.int32], first: int = 0, epoch: int = 0) -> float:
        loss = counted = 0.0
        for number, walk in enumerate(walks_WL.tolist(), first):
            draws = Draws(self.how.seed, epoch, number)
            share = (epoch * self.num_walks + number) / (self.num_walks * self.how.epochs)
            rate = self.how.learning_rate + (self.how.last_learning_rate - self.how.learning_rate) * share
            walk = walk[: walk.index(-1)] if -1 in walk else walk
            nodes = [n for n in walk if self.kept[n] >= 1 or (draws.bits() >> 11) * 2.0**-53 < self.kept[n]]
            for place, centre in enumerate(nodes):
                span = (draws.bits() * self.how.window >> 64) + 1
                inputs = nodes[max(place - span, 0) : place] + nodes[place + 1 : place + span + 1]
                if inputs:
                    self.repeated += len(set(inputs)) < len(inputs)
                    outputs = [centre, *self.negatives(draws, centre)]
                    here = self.window(inputs, outputs, rate)
                    if draws.bits() % 32 == 0 and rate > 0:
                        loss, counted = loss + here, counted + len(inputs)
        return loss / counted if counted else float("nan")

    def negatives(self, draws: Draws, centre: int) -> list[int]:
        out: list[int] = []
        for _ in range(self.how.negatives):
            bits = draws.bits()
            node = bits * len(self.keep) >> 64
            if (bits & 0xFFFFFF) * 2.0**-24 >= self.keep[node]:
                node = int(self.other[node])
            if node == centre or node in out:
                self.refused += 1
            else:
                out.append(node)
        return out

    def window(self, inputs: list[int], outputs: list[int], rate: float) -> float:
        loss = 0.0
        for start in range(0, len(outputs), OUTPUTS):
            tile = outputs[start : start + OUTPUTS]
            label = np.array([start + o == 0 for o in range(len(tile))], float)
            sigmoid = 1 / (1 + np.exp(-self.vectors[inputs] @ self.contexts[tile].T))
            error = rate * (label - sigmoid)
            loss -= np.log(1 - np.abs(label - sigmoid)).sum()
            moved = self.contexts[tile].copy()
            for of_input, node in zip(error, inputs, strict=True):
                moved += np.outer(of_input, self.vectors[node])
                self.vectors[node] += of_input @ self.contexts[tile]
            self.contexts[tile] = moved
        return loss


def visits_of(walks_WL: NDArray[np.int32], nodes: int) -> NDArray[np.int64]:
    return np.bincount(walks_WL[walks_WL >= 0], minlength=nodes)


def walks_on(graph: Graph, *, length: int = 12, num_walks: int = 3, seed: int = 0) -> NDArray[np.int32]:
    walker = Walker(graph, WalkSettings(length=length, num_walks=num_walks, seed=seed))
    return walker.walks(0, walker.num_walks)


def ring(nodes: int, *, directed: bool = False) -> Graph:
    """A ring with chords; of arcs one that ends, so that walks do."""
    n = np.arange(nodes)
    source = np.concatenate([n[:-1], n[:-3]])
    target = np.concatenate([n[1:], n[3:]])
    return Graph.of_edges(source, target, num_nodes=nodes, directed=directed)


def started(walks_WL: NDArray[np.int32], nodes: int, how: SkipGramSettings) -> tuple[SkipGram, Judge]:
    """Both from the same vectors, great enough for errors to differ."""
    rng = np.random.default_rng(3)
    vectors, contexts = (rng.normal(0, 0.5, (nodes, how.dim)).astype(np.float32) for _ in range(2))
    visits_N = visits_of(walks_WL, nodes)
    trained = SkipGram(visits_N, len(walks_WL), how, vectors=vectors, contexts=contexts)
    return trained, Judge(trained, visits_N)


def compare(trained: SkipGram, judge: Judge) -> None:
    scale = np.abs(judge.vectors).max()
    np.testing.assert_allclose(trained.vectors, judge.vectors, rtol=1e-4, atol=3e-5 * scale)
    np.testing.assert_allclose(trained.contexts, judge.contexts, rtol=1e-4, atol=3e-5 * scale)


SETTINGS = [
    {},
    {"dim": 1},
    {"dim": 7, "window": 1, "negatives": 1},
    {"dim": 8},
    {"dim": 17, "window": 40, "learning_rate": 0.05},
    {"dim": 33, "negatives": OUTPUTS - 1},
    {"dim": 16, "negatives": OUTPUTS},
    {"dim": 20, "negatives": 2 * OUTPUTS},
    {"dim": 24, "negatives": 40},
    {"subsample": 0.01},
    {"subsample": 0.002, "window": 2},
    {"power": 0.0},
    {"power": -0.5},
    {"learning_rate": 0.0, "last_learning_rate": 0.3},
    {"seed": 2**63 - 1},
]


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("changed", SETTINGS, ids=str)
def test_vectors_are_the_judges(changed: dict[str, Any], directed: bool) -> None:
    default: dict[str, Any] = {"dim": 12, "window": 4, "learning_rate": 0.2, "subsample": 0, "epochs": 2, "seed": 5}
    nodes, how = 20, SkipGramSettings(**default | changed)
    walks_WL = walks_on(ring(nodes, directed=directed))
    trained, judge = started(walks_WL, nodes, how)
    before = trained.vectors.copy()
    for epoch in range(2):
        loss, expected = trained.train(walks_WL, 0, epoch=epoch), judge.train(walks_WL, epoch=epoch)
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
    compare(trained, judge)
    assert np.abs(trained.vectors - before).max() > 1e-2
    assert not trained._vectors[:, how.dim :].any()
    assert not trained._contexts[:, how.dim :].any()
    assert judge.refused > 0
    assert directed or how.window == 1 or judge.repeated > 0


def test_few_nodes_are_often_their_own_negatives() -> None:
    walks_WL = walks_on(Graph.of_edges(np.array([0, 0]), np.array([1, 2])), num_walks=10)
    trained, judge = started(walks_WL, 3, SkipGramSettings(dim=5, window=3, subsample=0, learning_rate=0.1))
    trained.train(walks_WL, 0)
    judge.train(walks_WL)
    compare(trained, judge)
    assert judge.refused > 2 * len(walks_WL)


def test_one_node() -> None:
    walks_WL = np.zeros((20, 6), np.int32)
    trained, judge = started(walks_WL, 1, SkipGramSettings(dim=4, subsample=0))
    assert trained.train(walks_WL, 0) > 0
    judge.train(walks_WL)
    compare(trained, judge)


def test_walks_of_one_node_teach_nothing() -> None:
    walks_WL = np.array([[0], [1]], np.int32)
    trained = SkipGram(np.ones(2, np.int64), 2, SkipGramSettings(dim=4))
    before = trained.vectors.copy()
    assert np.isnan(trained.train(walks_WL, 0))
    assert np.isnan(trained.train(np.full((2, 5), -1, np.int32), 0))
    assert np.isnan(trained.train(np.empty((0, 5), np.int32), 2))
    assert np.array_equal(trained.vectors, before)


def test_nodes_without_visits_are_trained_but_no_negatives() -> None:
    walks_WL = walks_on(ring(20))
    visits_N = visits_of(walks_WL, 20)
    visits_N[4] = 0
    trained = SkipGram(visits_N, len(walks_WL), SkipGramSettings(dim=6, subsample=0, learning_rate=0.2))
    judge = Judge(trained, visits_N)
    trained.train(walks_WL, 0)
    judge.train(walks_WL)
    compare(trained, judge)


@trials(max_examples=15)
@given(st.lists(st.integers(0, 300), max_size=6), st.integers(0, 2**63 - 1))
def test_any_division_gives_the_same_bits(cuts: list[int], seed: int) -> None:
    walks_WL = walks_on(ring(30), num_walks=10)
    visits_N = visits_of(walks_WL, 30)
    how = SkipGramSettings(dim=9, window=3, epochs=2, subsample=0.02, seed=seed)
    whole, parts = (SkipGram(visits_N, len(walks_WL), how) for _ in range(2))
    bounds = sorted({0, *cuts, len(walks_WL)})
    for epoch in range(2):
        whole.train(walks_WL, 0, epoch=epoch)
        for begin, end in pairwise(bounds):
            parts.train(walks_WL[begin:end], begin, epoch=epoch)
    assert np.array_equal(whole.vectors, parts.vectors)
    assert np.array_equal(whole.contexts, parts.contexts)


def test_walks_in_any_memory_give_the_same_bits() -> None:
    walks_WL = walks_on(ring(30), num_walks=10)
    visits_N, how = visits_of(walks_WL, 30), SkipGramSettings(dim=9)
    fixed = walks_WL.copy()
    fixed.flags.writeable = False
    wide = np.zeros((len(walks_WL), 24), np.int32)
    wide[:, ::2] = walks_WL
    made = []
    for walks in (walks_WL, fixed, wide[:, ::2], np.asfortranarray(walks_WL)):
        trained = SkipGram(visits_N, len(walks_WL), how)
        trained.train(walks, 0)
        made.append(trained.vectors)
    assert all(np.array_equal(made[0], other) for other in made[1:])


def test_epochs_and_seeds_draw_anew() -> None:
    walks_WL = walks_on(ring(30))
    visits_N = visits_of(walks_WL, 30)
    made = []
    for how, epoch in [
        (SkipGramSettings(dim=8, epochs=2, learning_rate=0.1, last_learning_rate=0.1, seed=seed), epoch)
        for seed in (1, 2)
        for epoch in (0, 1)
    ]:
        trained = SkipGram(visits_N, len(walks_WL), how, vectors=np.full((30, 8), 0.1, np.float32))
        trained.train(walks_WL, 0, epoch=epoch)
        made.append(trained.vectors)
    assert all(not np.allclose(a, b) for i, a in enumerate(made) for b in made[:i])


def test_the_learning_rate_is_linear_from_first_to_last() -> None:
    # Of one window whose sigmoids are all 1/2 a step is its rate times vectors that are known.
    walks_WL = np.array([[0, 1]] * 4, np.int32)
    how = SkipGramSettings(dim=1, window=1, subsample=0, epochs=3, learning_rate=0.5, last_learning_rate=0.2)
    for number in range(12):
        zeros, ones = np.zeros((2, 1), np.float32), np.ones((2, 1), np.float32)
        trained = SkipGram(np.array([1, 1]), 4, how, vectors=zeros, contexts=ones)
        epoch, first = divmod(number, 4)
        trained.train(walks_WL[:1], first, epoch=epoch)
        judge_rate = 0.5 + (0.2 - 0.5) * number / 12
        # Node 1 moves by the centre 0 (first window), less by 1 itself where that is drawn.
        moved = float(trained.vectors[1, 0])
        assert min(abs(moved - judge_rate / 2), abs(moved)) < 1e-6


def partition(nodes: int, parts: int, seed: int) -> tuple[Graph, NDArray[np.int64]]:
    """Edges within parts are ten times as likely as between; a tenth of them is kept from the graph."""
    rng = np.random.default_rng(seed)
    source, target = np.triu_indices(nodes, 1)
    near = source % parts == target % parts
    there = rng.random(len(source)) < np.where(near, 0.3, 0.03)
    kept = there & (rng.random(len(source)) < 0.9)
    hidden = there & ~kept
    none = rng.choice(np.flatnonzero(~there), hidden.sum(), replace=False)
    chosen = np.concatenate([np.flatnonzero(hidden), none])
    pairs = np.column_stack([source[chosen], target[chosen]])
    return Graph.of_edges(source[kept], target[kept], num_nodes=nodes), pairs


def link_auc(vectors: NDArray[np.float32], pairs: NDArray[np.int64]) -> float:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    score = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)
    rank = np.argsort(np.argsort(score)) + 1
    half = len(pairs) // 2
    return float((rank[:half].sum() - half * (half + 1) / 2) / half**2)


def test_many_threads_learn_as_much_as_one() -> None:
    graph, pairs = partition(300, 6, seed=1)
    walker = Walker(graph, WalkSettings(length=20, num_walks=10, q=2))
    walks_WL = walker.walks(0, walker.num_walks)
    visits_N = visits_of(walks_WL, 300)
    auc: dict[int, list[float]] = {1: [], 4: []}
    losses: dict[int, list[float]] = {1: [], 4: []}
    for threads in auc:
        for seed in (1, 2):
            how = SkipGramSettings(dim=16, window=4, epochs=5, subsample=0, learning_rate=0.05, seed=seed)
            trained = SkipGram(visits_N, walker.num_walks, how)
            losses[threads] = [trained.train(walks_WL, 0, epoch=e, threads=threads) for e in range(5)]
            trained.check()
            auc[threads].append(link_auc(trained.vectors, pairs))
    assert min(auc[1]) > 0.68  # of six parts, most pairs that are no edge lie apart
    assert abs(np.mean(auc[1]) - np.mean(auc[4])) < 0.03
    for of_epochs in losses.values():
        assert of_epochs[-1] < of_epochs[0] - 0.05
    # By threads it differs from run to run, and the last epochs' losses by less than that.
    assert sorted(losses[1], reverse=True) == losses[1]


def test_training_goes_on_from_vectors() -> None:
    walks_WL = walks_on(ring(20))
    visits_N, how = visits_of(walks_WL, 20), SkipGramSettings(dim=10, epochs=2)
    whole = SkipGram(visits_N, len(walks_WL), how)
    whole.train(walks_WL, 0)
    later = SkipGram(visits_N, len(walks_WL), how, vectors=whole.vectors, contexts=whole.contexts)
    for one in (whole, later):
        one.train(walks_WL, 0, epoch=1)
    assert np.array_equal(whole.vectors, later.vectors)
    assert np.array_equal(whole.contexts, later.contexts)


def test_first_vectors_are_small_and_of_the_seed() -> None:
    one, same, other = (SkipGram(np.ones(50, int), 1, SkipGramSettings(dim=10, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.vectors, same.vectors)
    assert not np.array_equal(one.vectors, other.vectors)
    assert np.abs(one.vectors).max() <= 0.05
    assert len(np.unique(one.vectors)) > 400
    assert not one.contexts.any()
    drawn_ND = np.empty((50, 10), np.float32)
    draw_vectors(drawn_ND, seed=1)
    assert np.array_equal(drawn_ND, one.vectors)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_learning_rate_that_is_too_great_is_an_error(threads: int) -> None:
    walks_WL = walks_on(ring(20), num_walks=50)
    how = SkipGramSettings(dim=16, window=5, epochs=50, learning_rate=1, last_learning_rate=1, subsample=0)
    trained = SkipGram(visits_of(walks_WL, 20), len(walks_WL), how)

    def train() -> None:
        for epoch in range(50):
            trained.train(walks_WL, 0, epoch=epoch, threads=threads)

    with pytest.raises(ConfigError, match=r"skip_gram\.learning_rate; expected vectors that stay finite at 1"):
        train()


def test_vectors_that_leave_their_range_are_an_error() -> None:
    walks_WL = walks_on(ring(20))
    great = np.full((20, 4), 1e38, np.float32)
    how = SkipGramSettings(dim=4, learning_rate=1, last_learning_rate=1, subsample=0)
    trained = SkipGram(visits_of(walks_WL, 20), len(walks_WL), how, vectors=great, contexts=-great)
    trained.check()
    with pytest.raises(ConfigError, match=r"skip_gram\.learning_rate; expected vectors that stay finite at 1"):
        trained.train(walks_WL, 0)
    with pytest.raises(ConfigError, match="lower it"):
        trained.check()


@pytest.mark.parametrize(
    "walks",
    [
        np.zeros((3, 4), np.int64),
        np.zeros((3, 4), np.float32),
        np.zeros(4, np.int32),
        [[0, 1]],
        np.full((1, 4), 20, np.int32),
        np.full((1, 4), 2**31 - 1, np.int32),
        np.full((1, 4), -2, np.int32),
    ],
)
def test_walks_that_are_none(walks: Any) -> None:
    trained = SkipGram(np.ones(20, np.int64), 3, SkipGramSettings(dim=4))
    with pytest.raises(GraphError, match="walks; expected"):
        trained.train(walks, 0)


@pytest.mark.parametrize(("first", "epoch"), [(-1, 0), (2, 0), (0, 1), (0, -1)])
def test_walks_beyond_the_epoch(first: int, epoch: int) -> None:
    trained = SkipGram(np.ones(20, np.int64), 3, SkipGramSettings(dim=4))
    with pytest.raises(ConfigError, match="numbers from 0 to 3, epochs below 1"):
        trained.train(np.zeros((2, 4), np.int32), first, epoch=epoch)


@pytest.mark.parametrize("name", ["vectors", "contexts"])
@pytest.mark.parametrize(
    "given",
    [
        np.zeros((3, 5), np.float32),
        np.zeros((2, 4), np.float32),
        np.zeros(4, np.float32),
        np.zeros((3, 1), np.float32),
        np.zeros((3, 4), np.int32),
        np.full((3, 4), np.nan, np.float32),
        np.full((3, 4), np.inf, np.float32),
    ],
)
def test_vectors_of_another_shape(name: str, given: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} to start from"):
        SkipGram(np.ones(3, np.int64), 3, SkipGramSettings(dim=4), **{name: given})


@pytest.mark.parametrize(
    "visits", [np.zeros(3, int), np.empty(0, int), np.array([1, -1]), np.ones(3), np.ones((2, 2), int)]
)
def test_visits_that_are_none(visits: Any) -> None:
    with pytest.raises(GraphError, match="visits"):
        SkipGram(visits, 3, SkipGramSettings(dim=4))


def test_no_walks() -> None:
    with pytest.raises(ConfigError, match="walks of an epoch; expected 1 or more; found 0"):
        SkipGram(np.ones(3, np.int64), 0, SkipGramSettings())


WRONG = {name: [0, -3] for name in ("dim", "window", "negatives", "epochs")}
WRONG |= {name: [-0.1, 1.1, float("nan"), float("inf")] for name in ("learning_rate", "last_learning_rate")}
WRONG |= {"subsample": [-1, float("nan"), float("inf")], "power": [3, float("nan")], "seed": [-1, 2**63]}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_settings_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"skip_gram\.{name}; expected"):
        replace(SkipGramSettings(), **{name: value})
