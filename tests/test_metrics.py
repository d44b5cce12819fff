"""Metrics against brute force over pairs, scikit-learn, and numbers worked out by hand."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from embstore.errors import DataError
from embstore.metrics import (
    Evaluation,
    auc,
    calibration_ratio,
    expected_calibration_error,
    gauc,
    logloss,
    normalized_entropy,
)

# Few values, so that ties are common; quarters, so that weights sum without rounding.
rows = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(-4, 4).map(float), st.integers(0, 8).map(lambda w: w / 4), st.integers(0, 3)
    ),
    max_size=40,
)


def columns(rows: list[tuple]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(column, dtype=float) for column in zip(*rows, strict=True)) or (np.empty(0),) * 4


def pairwise_auc(labels: np.ndarray, scores: np.ndarray, weight: np.ndarray) -> float:
    """The definition, in rational numbers."""
    right = every = Fraction(0)
    for y, s, w in zip(labels, scores, weight, strict=True):
        for other_y, other_s, other_w in zip(labels, scores, weight, strict=True):
            if y == 1 and other_y == 0:
                both = Fraction(w) * Fraction(other_w)
                every += both
                right += both * (Fraction(1, 2) if s == other_s else int(s > other_s))
    return float(right / every) if every else math.nan


def generated(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=n).astype(np.float32).round(2)
    labels = rng.random(n) < 1 / (1 + np.exp(-logits))
    return labels.astype(np.float32), logits, rng.random(n).astype(np.float32), rng.integers(0, n // 10 + 1, n)


@given(rows)
def test_auc_is_the_share_of_pairs_ranked_rightly(rows):
    labels, scores, weight, _ = columns(rows)
    np.testing.assert_allclose(auc(labels, scores), pairwise_auc(labels, scores, np.ones(len(rows))), rtol=1e-15)
    np.testing.assert_allclose(auc(labels, scores, weight), pairwise_auc(labels, scores, weight), rtol=1e-15)


def test_auc_equals_scikit_learn():
    labels, logits, weight, _ = generated(50_000)
    assert auc(labels, logits) == pytest.approx(roc_auc_score(labels, logits), rel=1e-13)
    expected = roc_auc_score(labels, logits, sample_weight=weight.astype(np.float64))
    assert auc(labels, logits, weight) == pytest.approx(expected, rel=1e-12)


def test_auc_tells_scores_apart_that_differ_in_their_last_bit():
    high = np.float32(3)
    assert auc([0, 1], np.array([np.nextafter(high, np.float32(0)), high], np.float32)) == 1.0
    assert auc([1, 0], [5.0, 5.0]) == 0.5


@given(rows)
def test_gauc_averages_the_auc_within_groups(rows):
    labels, scores, weight, groups = columns(rows)
    for w in (np.ones(len(rows)), weight):
        parts = [(pairwise_auc(labels[m], scores[m], w[m]), w[m].sum()) for m in (groups == g for g in range(4))]
        defined = [(value, impressions) for value, impressions in parts if not math.isnan(value)]
        total = sum(impressions for _, impressions in defined)
        expected = sum(value * impressions for value, impressions in defined) / total if defined else math.nan
        np.testing.assert_allclose(gauc(labels, scores, groups, w), expected, rtol=1e-14)


def test_gauc_leaves_out_groups_of_one_class():
    # Group 7 has AUC 1 over 2 rows, group 8 has 1/2 over 3 rows, group 9 has positives only.
    groups = [7, 7, 8, 8, 8, 9, 9]
    labels = [1, 0, 1, 0, 0, 1, 1]
    scores = [2.0, 1.0, 3.0, 4.0, 2.0, -9.0, -8.0]
    assert gauc(labels, scores, groups) == pytest.approx((2 * 1 + 3 * 0.5) / 5)
    assert math.isnan(gauc([1, 1], [0.1, 0.2], [1, 1]))


def test_gauc_of_one_group_is_auc():
    labels, logits, weight, _ = generated(1000)
    assert gauc(labels, logits, np.full(1000, -3), weight) == pytest.approx(auc(labels, logits, weight), rel=1e-12)


def test_logloss_equals_scikit_learn():
    labels, logits, weight, _ = generated(10_000)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert logloss(labels, logits) == pytest.approx(log_loss(labels, p), rel=1e-12)
    weighted = log_loss(labels, p, sample_weight=weight.astype(np.float64))
    assert logloss(labels, logits, weight) == pytest.approx(weighted, rel=1e-12)


def test_logloss_keeps_what_a_probability_would_round_away():
    assert logloss([1], [60.0]) == pytest.approx(math.exp(-60), rel=1e-15)
    assert logloss([0], [-700.0]) == pytest.approx(math.exp(-700), rel=1e-13)
    assert logloss([0, 1], [1000.0, -3000.0]) == 2000.0


def test_normalized_entropy_by_hand():
    # Always predicting the rate 1/4 is 1; a coin toss costs log 2.
    base = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert normalized_entropy([1, 0, 0, 0], [math.log(1 / 3)] * 4) == pytest.approx(1.0, rel=1e-15)
    assert normalized_entropy([1, 0, 0, 0], [0.0] * 4) == pytest.approx(math.log(2) / base, rel=1e-15)
    assert normalized_entropy([1, 0], [0.0, 0.0], [1, 3]) == pytest.approx(math.log(2) / base, rel=1e-15)


def test_calibration_ratio_by_hand():
    assert calibration_ratio([1, 0, 0, 0], [0.0] * 4) == 2.0
    assert calibration_ratio([1, 0], [0.0, math.log(3)], [1, 2]) == pytest.approx(0.5 + 2 * 0.75)
    assert math.isnan(calibration_ratio([0, 0], [1.0, 2.0]))


def test_expected_calibration_error_over_bins_of_equal_mass():
    labels, logits, _, _ = generated(1000)
    logits = logits + np.linspace(0, 1e-3, 1000, dtype=np.float32)  # no ties: bins of exactly 50 rows
    order = np.argsort(logits)
    p = (1 / (1 + np.exp(-logits.astype(np.float64))))[order].reshape(20, 50)
    rate = labels.astype(np.float64)[order].reshape(20, 50).mean(axis=1)
    expected = np.abs(p.mean(axis=1) - rate).mean()
    assert len(np.unique(logits)) == 1000
    assert expected_calibration_error(labels, logits) == pytest.approx(expected, rel=1e-12)


def test_expected_calibration_error_keeps_ties_together():
    # Half of the rows share a logit. Two bins: that block and the rest.
    labels, logits = [0, 0, 1, 1, 1, 1, 1, 0], [-1.0] * 4 + [1.0, 1.5, 2.0, 2.5]
    p = 1 / (1 + np.exp(-np.array(logits)))
    expected = 0.5 * abs(p[:4].mean() - 0.5) + 0.5 * abs(p[4:].mean() - 0.75)
    assert expected_calibration_error(labels, logits, bins=2) == pytest.approx(expected)


@given(rows.filter(len), st.randoms(use_true_random=False))
def test_no_metric_depends_on_the_order_of_rows(rows, random):
    shuffled = random.sample(rows, len(rows))
    results = []
    for labels, logits, _, groups in map(columns, (rows, shuffled)):
        evaluation = Evaluation()
        evaluation.update(logits, labels, None, groups)
        results.append(evaluation.result())
    np.testing.assert_equal(*results)


@given(rows.filter(len), st.lists(st.integers(0, 40), max_size=5), st.booleans())
def test_how_rows_are_cut_into_updates_changes_nothing(rows, cuts, weighted):
    labels, logits, weight, groups = columns(rows)
    weights = weight if weighted else None
    whole, parts, merged = Evaluation(), Evaluation(), Evaluation()
    whole.update(logits, labels, weights, groups)
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    for start, stop in pairwise(bounds):
        piece = [None if c is None else torch.from_numpy(c[start:stop]) for c in (logits, labels, weights, groups)]
        parts.update(*piece)
        other = Evaluation()
        other.update(*piece)
        merged.merge(Evaluation.from_arrays(other.state_arrays()))
    np.testing.assert_equal(parts.result(), whole.result())
    np.testing.assert_equal(merged.result(), whole.result())
    assert len(parts) == len(merged) == len(rows)


def test_evaluation_gives_what_the_functions_give():
    labels, logits, weight, groups = generated(2000)
    evaluation = Evaluation()
    evaluation.update(torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(weight), groups)
    assert evaluation.result() == {
        "auc": auc(labels, logits, weight),
        "gauc": gauc(labels, logits, groups, weight),
        "logloss": logloss(labels, logits, weight),
        "normalized_entropy": normalized_entropy(labels, logits, weight),
        "calibration_ratio": calibration_ratio(labels, logits, weight),
        "ece": expected_calibration_error(labels, logits, weight),
        "rows": 2000.0,
        "positives_rate": pytest.approx(np.average(labels, weights=weight.astype(np.float64)), rel=1e-12),
    }


def test_evaluation_keeps_compact_copies():
    logits, labels = torch.tensor([0.5, -0.5], dtype=torch.bfloat16, requires_grad=True), np.array([True, False])
    evaluation = Evaluation()
    evaluation.update(logits, labels)
    labels[:] = False
    arrays = evaluation.state_arrays()
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "logits": "float32",
        "labels": "uint8",
        "weights": "float32",
        "groups": "int64",
    }
    assert arrays["labels"].tolist() == [1, 0]
    assert [len(arrays[name]) for name in ("logits", "weights", "groups")] == [2, 0, 0]


def test_rows_without_a_weight_weigh_one():
    evaluation = Evaluation()
    evaluation.update([1.0, 2.0], [0, 1], [0.5, 0.25])
    evaluation.update([3.0], [0])
    assert evaluation.state_arrays()["weights"].tolist() == [0.5, 0.25, 1.0]
    assert evaluation.result()["auc"] == auc([0, 1, 0], [1.0, 2.0, 3.0], [0.5, 0.25, 1.0])


def test_metrics_of_no_rows_are_nan():
    evaluation = Evaluation()
    evaluation.update(torch.empty(0), torch.empty(0))
    result = evaluation.result()
    assert result.pop("rows") == 0
    assert all(math.isnan(value) for value in result.values())
    assert math.isnan(gauc([], [], []))
    assert len(Evaluation.from_arrays(evaluation.state_arrays())) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_logits_that_are_not_finite_mean_divergence(bad):
    evaluation = Evaluation()
    with pytest.raises(DataError, match=r"training diverged: 1 of 3 logits.*lower the learning rate"):
        evaluation.update(np.array([0.0, bad, 1.0]), [0, 1, 1])
    assert len(evaluation) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 2], [0.1, 0.2]), "labels.*expected 0 or 1.*2"),
        (([0, math.nan], [0.1, 0.2]), "labels.*expected 0 or 1.*nan"),
        (([0, 1], [0.1, math.nan]), "scores.*finite.*nan"),
        (([0, 1], [0.1, 0.2], [1, -1]), "weight.*0 or more.*-1"),
        (([0, 1], [0.1, 0.2], [1, math.inf]), "weight.*finite.*inf"),
        (([0, 1, 1], [0.1, 0.2]), "labels.*2 rows.*3"),
        (([0, 1], [0.1, 0.2], [1.0]), "weight.*2 rows.*1"),
        (([[0], [1]], [[0.1], [0.2]]), "scores.*one dimension"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(DataError, match=message):
        auc(*arguments)


def test_groups_for_some_rows_only_are_refused():
    evaluation = Evaluation()
    evaluation.update([0.5], [1], None, [3])
    with pytest.raises(DataError, match="groups"):
        evaluation.update([0.5], [1])
    evaluation.update([], [])  # no rows, no groups to miss
    assert len(evaluation) == 1
