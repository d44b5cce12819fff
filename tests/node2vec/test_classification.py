"""Node classification against scikit-learn's own one-vs-rest, and answers known by construction."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.multiclass import OneVsRestClassifier

from embstore.errors import ConfigError, GraphError
from embstore.node2vec.classification import (
    METRICS,
    ClassificationSettings,
    classify,
    label_metrics,
    most_likely,
    split_nodes,
)
from embstore.node2vec.logistic import Logistic


def problem(count: int = 300, dim: int = 6, labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    vectors_ND = generator.standard_normal((count, dim))
    scores_NK = vectors_ND @ generator.standard_normal((dim, labels)) + generator.standard_normal((count, labels))
    return vectors_ND, scores_NK > 0.8


def test_fit_is_the_minimum_that_scikit_learn_finds() -> None:
    vectors_ND, labels_NK = problem()
    ours = Logistic.fit(vectors_ND, labels_NK, C=0.3)
    judge = OneVsRestClassifier(LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000)).fit(vectors_ND, labels_NK)
    np.testing.assert_allclose(ours.scores(vectors_ND), judge.decision_function(vectors_ND), atol=1e-5)


def test_label_that_all_or_none_have() -> None:
    vectors_ND, labels_NK = problem()
    labels_NK[:, 0], labels_NK[:, 1] = True, False
    scores_NK = Logistic.fit(vectors_ND, labels_NK).scores(vectors_ND)
    rest_NK = scores_NK[:, 2:]
    assert (scores_NK[:, :1] > rest_NK).all()
    assert (scores_NK[:, 1:2] < rest_NK).all()


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ConfigError, match=r"scikit-learn.*pip install 'embstore\[graphs\]'"):
        label_metrics(np.eye(3, dtype=bool), np.eye(3))


def test_whole_protocol_against_scikit_learn() -> None:
    vectors_ND, labels_NK = problem()
    settings = ClassificationSettings(train_share=0.4, C=(2.0,), seeds=(5,))
    found = classify(vectors_ND, labels_NK, settings)
    some_N = labels_NK.any(axis=1)
    assert not some_N.all()
    vectors_ND, labels_NK = vectors_ND[some_N], labels_NK[some_N]
    train, test = split_nodes(len(vectors_ND), 0.4, 5)
    judge = OneVsRestClassifier(LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000))
    scores_NK = judge.fit(vectors_ND[train], labels_NK[train]).decision_function(vectors_ND[test])
    predicted_NK = np.zeros_like(labels_NK[test])
    for n, scores_K in enumerate(scores_NK):
        predicted_NK[n, np.argsort(-scores_K)[: labels_NK[test][n].sum()]] = True
    expected = {
        "macro_f1": f1_score(labels_NK[test], predicted_NK, average="macro"),
        "micro_f1": f1_score(labels_NK[test], predicted_NK, average="micro"),
        "macro_f1_threshold": f1_score(labels_NK[test], scores_NK > 0, average="macro"),
        "micro_f1_threshold": f1_score(labels_NK[test], scores_NK > 0, average="micro"),
        "macro_auroc": roc_auc_score(labels_NK[test], scores_NK, average="macro"),
    }
    assert {metric: found.mean(metric) for metric in METRICS} == pytest.approx(expected)


def test_micro_f1_of_known_counts_is_the_share_of_labels_found() -> None:
    generator = np.random.default_rng(0)
    labels_NK, scores_NK = generator.random((50, 7)) < 0.3, generator.standard_normal((50, 7))
    predicted_NK = most_likely(scores_NK, labels_NK.sum(axis=1))
    found = label_metrics(labels_NK, scores_NK)["micro_f1"]
    assert found == pytest.approx((labels_NK & predicted_NK).sum() / labels_NK.sum())


@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), min_size=1, max_size=8), st.integers(0, 4), st.data()
)
def test_most_likely_labels(rows: list[list[int]], count: int, data: st.DataObject) -> None:
    scores_NK = np.array(rows, dtype=float)
    chosen_NK = most_likely(scores_NK, np.full(len(rows), count))
    assert (chosen_NK.sum(axis=1) == count).all()
    n = data.draw(st.integers(0, len(rows) - 1))
    best_first = sorted(range(4), key=lambda k: (-scores_NK[n, k], k))
    assert set(np.flatnonzero(chosen_NK[n])) == set(best_first[:count])


@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 2**63 - 1))
def test_split_is_a_partition(count: int, share: float, seed: int) -> None:
    size = round(share * count)
    if not 0 < size < count:
        with pytest.raises(GraphError, match="both parts"):
            split_nodes(count, share, seed)
        return
    train, test = split_nodes(count, share, seed)
    assert len(train) == size
    assert sorted([*train, *test]) == list(range(count))
    assert np.array_equal(train, split_nodes(count, share, seed)[0])


def test_perfect_vectors_and_seeds() -> None:
    labels_NK = np.eye(3, dtype=bool)[np.arange(90) % 3]
    scores = classify(labels_NK * 20.0, labels_NK, ClassificationSettings(seeds=(0, 1, 2)))
    for metric in METRICS:
        assert scores.values[metric] == (1.0, 1.0, 1.0)
        assert scores.deviation(metric) == 0
    assert np.isnan(classify(labels_NK * 20.0, labels_NK, ClassificationSettings(seeds=(0,))).deviation("macro_f1"))


def test_sparse_labels_and_nodes_without_any() -> None:
    vectors_ND, labels_NK = problem()
    settings = ClassificationSettings(seeds=(0,))
    dense = classify(vectors_ND, labels_NK, settings)
    assert classify(vectors_ND, sparse.csr_array(labels_NK), settings) == dense
    assert classify(vectors_ND, sparse.csr_matrix(labels_NK), settings) == dense
    more_ND, none_NK = np.concatenate([vectors_ND, np.ones((20, 6))]), np.zeros((20, 4), dtype=bool)
    assert classify(more_ND, np.concatenate([labels_NK, none_NK]), settings) == dense


def test_penalty_chosen_in_the_training_part() -> None:
    generator = np.random.default_rng(1)
    labels_NK = np.eye(2, dtype=bool)[generator.integers(0, 2, 120)]
    # One number tells the label, thirty are noise; a penalty of 1e6 leaves only the intercepts.
    vectors_ND = np.concatenate([labels_NK[:, :1] * 1.0, generator.standard_normal((120, 30))], axis=1)
    scores = classify(vectors_ND, labels_NK, ClassificationSettings(C=(1e-6, 10.0), seeds=(0, 1)))
    assert scores.C == (10.0, 10.0)
    alone = classify(vectors_ND, labels_NK, ClassificationSettings(C=(10.0,), seeds=(0, 1)))
    assert scores.values == alone.values


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train_share", 0.0),
        ("train_share", 1.0),
        ("C", ()),
        ("C", (0.0,)),
        ("folds", 1),
        ("seeds", ()),
        ("seeds", (-1,)),
    ],
)
def test_wrong_settings(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"classification.{setting}"):
        ClassificationSettings(**{setting: value})


def test_wrong_labels_and_vectors() -> None:
    vectors_ND, labels_NK = problem()
    with pytest.raises(GraphError, match=r"labels; expected bool \[300, labels\]"):
        classify(vectors_ND, labels_NK[:-1])
    with pytest.raises(GraphError, match="found int64"):
        classify(vectors_ND, labels_NK.astype(np.int64))
    with pytest.raises(GraphError, match="finite"):
        classify(np.where(vectors_ND > 3, np.nan, vectors_ND), labels_NK)
    with pytest.raises(GraphError, match="labelled nodes"):
        classify(vectors_ND[:1], np.ones((1, 2), dtype=bool))
