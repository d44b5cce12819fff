"""Counts, lift and mutual information against sklearn and counting in Python; the lasso against sklearn's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.special import xlogy
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score

from embstore.errors import DataError
from embstore.selection import Layout, SparseBatch
from embstore.selection.methods import Counts, Rows, lasso_weights, score
from embstore.selection.methods.counts import by_chance
from embstore.selection.methods.lasso import LassoSettings

LAYOUT = Layout(names=("one", "many"), bounds_F=np.array([0, 4, 9]), dense=("d", "constant"))


def _batches(seed: int, count: int = 3, rows: int = 300) -> list[SparseBatch]:
    """One value of the first field, none to four of the second, some of them twice."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(count):
        one, dense = rng.integers(0, 4, rows), rng.normal(size=(rows, 2)).astype(np.float32)
        dense[:, 1] = 3.0
        dense[rng.random(rows) < 0.1, 0] = np.nan
        lists = [rng.integers(4, 8, rng.integers(0, 5)) for _ in range(rows)]  # never column 8
        logit = (
            np.array([-1.0, 0, 1, 0])[one] + np.array([(of == 5).any() for of in lists]) + np.nan_to_num(dense[:, 0])
        )
        entries = [np.concatenate([[first], more]) for first, more in zip(one, lists, strict=True)]
        out.append(
            SparseBatch(
                indptr_N=np.concatenate([[0], np.cumsum([len(of) for of in entries])]),
                indices_E=np.concatenate(entries).astype(np.int32),
                labels_N=(rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32),
                dense_NC=dense,
            )
        )
    return out


def _rows(batches: list[SparseBatch]) -> list[tuple[set[int], int]]:
    return [
        (set(batch.indices_E[start:stop].tolist()), int(label))
        for batch in batches
        for (start, stop), label in zip(pairwise(batch.indptr_N), batch.labels_N, strict=True)
    ]


def _shares(of: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.maximum(of, 0) / max(of.max(), 1e-300)


def test_parts_merged_are_the_whole() -> None:
    batches = _batches(1)
    whole, merged, other = (Counts(LAYOUT) for _ in range(3))
    for batch in batches:
        whole.add(batch)
    merged.add(batches[0])
    other.add(batches[1])
    other.add(batches[2])
    merged.merge(other)
    rows = _rows(batches)
    for counts in (whole, merged):
        assert (counts.rows, counts.positives) == (len(rows), sum(label for _, label in rows))
        assert counts.rows_D.tolist() == [sum(c in of for of, _ in rows) for c in range(9)]
        assert counts.positives_D.tolist() == [sum(label for of, label in rows if c in of) for c in range(9)]
        assert counts.rows_F.tolist() == [len(rows), sum(any(c >= 4 for c in of) for of, _ in rows)]
    np.testing.assert_allclose(whole.dense_5C, merged.dense_5C, rtol=1e-12)
    dense, label = (np.concatenate([getattr(b, name) for b in batches]) for name in ("dense_NC", "labels_N"))
    here = ~np.isnan(dense[:, 0])
    expected = np.corrcoef(dense[here, 0].astype(float), label[here])[0, 1]
    assert whole.correlation_C() == pytest.approx([expected, 0.0], rel=1e-6)


def test_frequency_counts_rows() -> None:
    batches = _batches(2)
    scores, rows = score("frequency", Rows(batches=batches, layout=LAYOUT)), _rows(batches)
    dense = sum(int((~np.isnan(batch.dense_NC[:, 0])).sum()) for batch in batches)
    counts = np.array([*(sum(c in of for of, _ in rows) for c in range(9)), dense, len(rows)])
    np.testing.assert_allclose(scores.column_D, _shares(counts))
    assert scores.column_D[8] == 0


def test_lift_is_the_logarithm_of_smoothed_rates() -> None:
    batches, smoothing = _batches(3), 50.0
    scores, rows = score("lift", Rows(batches=batches, layout=LAYOUT), smoothing=smoothing), _rows(batches)
    rate = np.mean([label for _, label in rows])
    lift, count = np.zeros(9), np.zeros(9)
    for c in range(9):
        labels = [label for of, label in rows if c in of]
        count[c] = len(labels)
        lift[c] = abs(np.log((sum(labels) + smoothing * rate) / (len(labels) + smoothing) / rate))
    fields = [np.average(lift[:4], weights=count[:4]), np.average(lift[4:], weights=count[4:])]
    np.testing.assert_allclose(scores.column_D[:9] / scores.column_D[0], lift / lift[0], rtol=1e-9)
    np.testing.assert_allclose(scores.field_F[1] / scores.field_F[0], fields[1] / fields[0], rtol=1e-9)
    assert scores.field_F[3] == 0  # the constant column
    assert scores.field_F[2] > scores.field_F[1]


def _by_chance(labels: list[int], values: list[int]) -> float:
    """The mean mutual information of labels in any order, from sklearn's adjusted one."""
    plain, adjusted = (
        mutual_info_score(labels, values),
        adjusted_mutual_info_score(labels, values, average_method="min"),
    )
    least = min(mutual_info_score(of, of) for of in (labels, values))
    return float((plain - adjusted * least) / (1 - adjusted))


def test_mutual_information_is_sklearn_s() -> None:
    batches = _batches(4)
    source, rows = Rows(batches=batches, layout=LAYOUT), _rows(batches)
    labels = [label for _, label in rows]
    pairs = [(c, label) for of, label in rows for c in of]
    columns = [[int(c in of) for of, _ in rows] for c in range(8)]
    fields = [
        ([c for c, _ in pairs if start <= c < stop], [y for c, y in pairs if start <= c < stop])
        for start, stop in ((0, 4), (4, 9))
    ]
    values = np.array([mutual_info_score(labels, of) for of in columns])
    of_fields = np.array([mutual_info_score(y, of) for of, y in fields])
    plain = score("mutual_information", source, correction=False)
    np.testing.assert_allclose(plain.column_D[:8] / plain.column_D[0], values / values[0], rtol=1e-6)
    np.testing.assert_allclose(plain.field_F[1] / plain.field_F[0], of_fields[1] / of_fields[0], rtol=1e-6)
    assert plain.column_D[8] == 0
    values -= [_by_chance(labels, of) for of in columns]
    of_fields -= [_by_chance(y, of) for of, y in fields]
    corrected = score("mutual_information", source)
    expected = np.maximum(values, 0) / values[0]
    np.testing.assert_allclose(corrected.column_D[:8] / corrected.column_D[0], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(corrected.field_F[1] / corrected.field_F[0], of_fields[1] / of_fields[0], rtol=1e-3)


@pytest.mark.parametrize("rate", [0.03, 0.4])
def test_what_chance_tells(rate: float) -> None:
    counts = np.array([0, 1, 2, 7, 40, 1000, 1001, 5000])
    expected = []
    for n in counts[1:].tolist():
        k = np.arange(n + 1)
        terms = xlogy(k, k / n / rate) + xlogy(n - k, (1 - k / n) / (1 - rate))
        expected.append(binom.pmf(k, n, rate) @ terms)
    np.testing.assert_allclose(by_chance(counts, rate), [0, *expected], rtol=1e-3)


def test_a_large_field_of_noise_tells_less_than_a_signal_once_corrected() -> None:
    rng, rows = np.random.default_rng(7), 20_000
    codes = np.stack([rng.integers(0, 4, rows), 4 + rng.integers(0, 3000, rows)], axis=1)
    labels = rng.random(rows) < np.array([0.2, 0.2, 0.2, 0.35])[codes[:, 0]]
    layout = Layout(names=("signal", "noise"), bounds_F=np.array([0, 4, 3004]))
    source = Rows(batches=[SparseBatch.of(codes, labels)], layout=layout)
    assert score("mutual_information", source, correction=False).top_fields(1) == ("noise",)
    corrected = score("mutual_information", source)
    assert corrected.top_fields(1) == ("signal",)
    assert corrected.field_F[1] < 0.5


@pytest.mark.parametrize("penalty", [0.02, 0.2])
def test_the_lasso_is_sklearn_s(penalty: float) -> None:
    batches = _batches(5)
    counts = Counts.of(Rows(batches=batches, layout=LAYOUT))
    found, weight = lasso_weights(batches, counts, LassoSettings(penalty=penalty, steps=5000, tolerance=1e-7))
    x = np.zeros((counts.rows, 12))
    row = 0
    for batch in batches:
        for start, stop in pairwise(batch.indptr_N):
            np.add.at(x[row], batch.indices_E[start:stop], 1.0)
            row += 1
    dense = np.concatenate([batch.dense_NC for batch in batches]).astype(float)
    with np.errstate(invalid="ignore"):
        x[:, 9:11] = np.nan_to_num((dense - np.nanmean(dense, axis=0)) / np.nanstd(dense, axis=0))
    label = np.concatenate([batch.labels_N for batch in batches])
    model = LogisticRegression(
        l1_ratio=1.0, C=1 / (weight * counts.rows), solver="saga", tol=1e-9, max_iter=20_000, random_state=0
    )
    model.fit(x[:, :11], label)

    def loss(w: np.ndarray, b: float) -> float:  # type: ignore[type-arg]
        margin = (2 * label - 1) * (x[:, :11] @ w + b)
        return float(np.logaddexp(0, -margin).mean() + weight * np.abs(w).sum())

    assert loss(found[:-1], found[-1]) == pytest.approx(loss(model.coef_[0], model.intercept_[0]), rel=1e-9)
    # Two positive and two negative weights of the first field may move against the intercept: the rows' logits don't.
    logits = x[:, :11] @ found[:-1] + found[-1], x[:, :11] @ model.coef_[0] + model.intercept_[0]
    np.testing.assert_allclose(*logits, atol=1e-4)
    assert (np.abs(found[:-1]) > 0).sum() < 9
    assert found[8] == 0
    scores = score("lasso", Rows(batches=batches, layout=LAYOUT), penalty=penalty, steps=5000, tolerance=1e-7)
    np.testing.assert_allclose(scores.column_D, _shares(np.abs(found[:-1])))
    added = x[:, :4] @ found[:4]
    assert scores.field_F[0] / scores.field_F[2] == pytest.approx(added.std() / abs(found[9]), rel=1e-6)


def test_the_least_penalty_at_which_nothing_is_left() -> None:
    batches = _batches(6)
    counts = Counts.of(Rows(batches=batches, layout=LAYOUT))
    assert not lasso_weights(batches, counts, LassoSettings(penalty=1.0))[0][:-1].any()
    assert lasso_weights(batches, counts, LassoSettings(penalty=0.9))[0][:-1].any()


def test_rows_of_other_columns_are_refused() -> None:
    batch = SparseBatch.of(np.array([[0, 12]]), np.array([1]))
    with pytest.raises(DataError, match="columns of a batch"):
        Counts(LAYOUT).add(batch)
