"""Multi-label classification of nodes by their vectors, as the papers of DeepWalk and node2vec judge them.

One-vs-rest logistic regression is fitted on a random share of the labelled nodes and scored on the others:

    macro_f1, micro_f1                       of each node as many labels are predicted, the best scored, as it has: its
                                             number of labels is taken as known (the papers' protocol)
    macro_f1_threshold, micro_f1_threshold   labels of a probability of 0.5 or more
    macro_auroc                              the mean over labels that some test nodes have and some don't

Macro-F1 is the mean over all labels, where one that no test node has and none is given counts 0, as in scikit-learn.
Nodes without any label are left out.

Suffixes: N nodes, D numbers of a vector, K labels.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, GraphError
from embstore.node2vec.logistic import Logistic, scikit_learn

METRICS = ("macro_f1", "micro_f1", "macro_f1_threshold", "micro_f1_threshold", "macro_auroc")
_SPLIT, _FOLDS = 0, 1  # streams of random numbers


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """How to judge.

    Args:
        train_share: of the labelled nodes.
        C: inverse of the L2 penalty's weight; of several, that of the best Macro-F1 in cross-validation within the
            training part, for all labels.
        folds: of that.
        seeds: one split each.
    """

    train_share: float = 0.5
    C: tuple[float, ...] = (1.0,)
    folds: int = 3
    seeds: tuple[int, ...] = tuple(range(10))

    def __post_init__(self) -> None:
        for name, wrong, expected in (
            ("train_share", not 0 < self.train_share < 1, "a number between 0 and 1"),
            ("C", not self.C or not all(0 < c < np.inf for c in self.C), "numbers above 0, one or more"),
            ("folds", self.folds < 2, "2 or more"),
            ("seeds", not self.seeds or not all(0 <= seed < 2**63 for seed in self.seeds), "numbers of 0 or more"),
        ):
            if wrong:
                raise ConfigError(f"classification.{name}", expected=expected, found=str(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class ClassificationScores:
    """What was found.

    Args:
        values: of each of ``METRICS``, one for each seed.
        C: chosen for each seed.
    """

    values: Mapping[str, tuple[float, ...]]
    C: tuple[float, ...]

    def mean(self, metric: str) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values[metric])

    def deviation(self, metric: str) -> float:
        """Standard deviation over the seeds (of a sample); NaN of one."""
        return statistics.stdev(self.values[metric]) if len(self.values[metric]) > 1 else float("nan")


def classify(
    vectors_ND: NDArray[np.floating], labels_NK: Any, settings: ClassificationSettings | None = None
) -> ClassificationScores:
    """How well vectors tell labels of nodes that were not seen with theirs.

    Args:
        vectors_ND: finite, as they are: scale them beforehand if need be.
        labels_NK: bool, dense or a scipy sparse matrix or array.
        settings: how; the papers' when not given.

    Raises:
        GraphError: labels that don't go with the vectors, or of fewer nodes than a split needs.
        ConfigError: scikit-learn is not installed.

    >>> vectors_ND = np.random.default_rng(0).standard_normal((200, 8))
    >>> scores = classify(vectors_ND, vectors_ND[:, :3] > 0, ClassificationSettings(seeds=(0, 1)))
    >>> scores.mean("macro_auroc") > 0.99, len(scores.values["macro_f1"])
    (True, 2)
    """
    settings = settings or ClassificationSettings()
    vectors_ND, labels_NK = _checked(vectors_ND, labels_NK)
    values: dict[str, list[float]] = {metric: [] for metric in METRICS}
    chosen = []
    for seed in settings.seeds:
        train, test = split_nodes(len(vectors_ND), settings.train_share, seed)
        C = settings.C[0]
        if len(settings.C) > 1:
            C = _best(vectors_ND[train], labels_NK[train], settings, seed)
        model = Logistic.fit(vectors_ND[train], labels_NK[train], C)
        for metric, value in label_metrics(labels_NK[test], model.scores(vectors_ND[test])).items():
            values[metric].append(value)
        chosen.append(C)
    return ClassificationScores(values={metric: tuple(of) for metric, of in values.items()}, C=tuple(chosen))


def split_nodes(count: int, train_share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the nodes to train on and of the others, in random order.

    Raises:
        GraphError: a part would have none.
    """
    size = round(train_share * count)
    if not 0 < size < count:
        raise GraphError("labelled nodes", expected="enough for both parts of a split", found=f"{count:,}")
    order = _generator(seed, _SPLIT).permutation(count)
    return order[:size], order[size:]


def label_metrics(labels_NK: NDArray[np.bool_], scores_NK: NDArray[np.floating]) -> dict[str, float]:
    """Each of ``METRICS`` of log-odds; ``macro_auroc`` is NaN where each label has one class only.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    metrics = scikit_learn("metrics")
    known_NK = most_likely(scores_NK, labels_NK.sum(axis=1))
    found = {}
    for suffix, predicted_NK in (("", known_NK), ("_threshold", scores_NK >= 0)):
        for average in ("macro", "micro"):
            found[f"{average}_f1{suffix}"] = float(
                metrics.f1_score(labels_NK, predicted_NK, average=average, zero_division=0)
            )
    both_K = labels_NK.any(axis=0) & ~labels_NK.all(axis=0)
    area = float("nan")
    if both_K.any():
        area = float(np.mean([metrics.roc_auc_score(labels_NK[:, k], scores_NK[:, k]) for k in np.flatnonzero(both_K)]))
    return found | {"macro_auroc": area}


def most_likely(scores_NK: NDArray[np.floating], counts_N: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Of each node the so many labels of the highest scores; of equal ones the first."""
    rank_NK = np.empty(scores_NK.shape, dtype=np.int64)
    order_NK = np.argsort(-scores_NK, axis=1, kind="stable")
    np.put_along_axis(rank_NK, order_NK, np.arange(scores_NK.shape[1])[None, :], axis=1)
    return rank_NK < np.asarray(counts_N)[:, None]


def _best(
    vectors_ND: NDArray[np.floating], labels_NK: NDArray[np.bool_], settings: ClassificationSettings, seed: int
) -> float:
    count = len(vectors_ND)
    if count < settings.folds:
        raise GraphError(
            "labelled nodes to train on", expected=f"one or more a fold, {settings.folds}", found=f"{count}"
        )
    fold_N = _generator(seed, _FOLDS).permutation(count) % settings.folds
    means = []
    for C in settings.C:
        found = []
        for fold in range(settings.folds):
            out_N = fold_N == fold
            scores_NK = Logistic.fit(vectors_ND[~out_N], labels_NK[~out_N], C).scores(vectors_ND[out_N])
            found.append(label_metrics(labels_NK[out_N], scores_NK)["macro_f1"])
        means.append(statistics.fmean(found))
    return settings.C[int(np.argmax(means))]


def _checked(vectors_ND: NDArray[np.floating], labels_NK: Any) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Vectors and labels of the nodes that have a label."""
    if hasattr(labels_NK, "toarray"):
        labels_NK = labels_NK.toarray()
    labels_NK = np.asarray(labels_NK)
    if labels_NK.ndim != 2 or labels_NK.dtype != bool or len(labels_NK) != len(vectors_ND):
        found = f"{labels_NK.dtype} {list(labels_NK.shape)}"
        raise GraphError("labels", expected=f"bool [{len(vectors_ND):,}, labels], a row a vector", found=found)
    if vectors_ND.ndim != 2 or not np.isfinite(vectors_ND).all():
        raise GraphError("vectors", expected="finite numbers [N, dim]", found=f"others, {list(vectors_ND.shape)}")
    some_N = labels_NK.any(axis=1)
    return vectors_ND[some_N], labels_NK[some_N]


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, stream]))
