"""Means, scales and the largest eigenvalue, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from embstore.errors import DataError
from embstore.selection import Layout, SparseBatch, Standardization, Statistics


def _batches(
    seed: int, count: int, rows: int, sizes: list[int], alike: float = 0.0
) -> tuple[Layout, list[SparseBatch]]:
    """Zipf codes; with ``alike``, that share of rows has all fields follow the first one."""
    rng, bounds = np.random.default_rng(seed), np.concatenate([[0], np.cumsum(sizes)])
    layout, batches = Layout(names=tuple(f"f{i}" for i in range(len(sizes))), bounds_F=bounds, dense=("d",)), []
    for _ in range(count):
        codes = np.stack([np.minimum((size * rng.random(rows) ** 3), size - 1) for size in sizes], axis=1).astype(int)
        same = rng.random(rows) < alike
        codes[same] = np.minimum(codes[same][:, :1], np.array(sizes) - 1)
        dense = np.where(rng.random((rows, 1)) < 0.2, np.nan, 3 + 2 * rng.normal(size=(rows, 1)))
        batches.append(SparseBatch.of(codes + bounds[:-1], rng.random(rows) < 0.3, dense))
    return layout, batches


def _dense(batches: list[SparseBatch], columns: int) -> NDArray[np.float64]:
    counts = np.zeros((sum(map(len, batches)), columns))
    start = 0
    for batch in batches:
        rows = np.repeat(np.arange(len(batch)), np.diff(batch.indptr_N))
        np.add.at(counts, (start + rows, batch.indices_E), 1)
        start += len(batch)
    return counts


def _statistics(layout: Layout, batches: list[SparseBatch]) -> Statistics:
    statistics = Statistics(layout)
    for batch in batches:
        statistics.add(batch)
    return statistics


def test_means_and_scales() -> None:
    layout, batches = _batches(1, 5, 200, [7, 30, 400])
    # A list field: values twice in a row, rows without any, a column in all rows and one in none.
    rng = np.random.default_rng(2)
    lists = [
        SparseBatch(
            indptr_N=np.array([0, 3, 4, 6, 7]),
            indices_E=np.array([0, 3, 3, 0, 1, 0, 0], np.int32),
            labels_N=np.array([0, 1, 0, 0], np.float32),
            dense_NC=rng.normal(size=(4, 1)).astype(np.float32),
        )
        for _ in range(3)
    ]
    for where, of in ((layout, batches), (Layout(names=("l",), bounds_F=np.array([0, 5]), dense=("d",)), lists)):
        found = Standardization.of(_statistics(where, of), of, rare=1e-12)
        counts = _dense(of, where.sparse)
        np.testing.assert_allclose(found.mean_D, counts.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(found.variance_D, counts.var(axis=0), rtol=1e-9, atol=1e-12)
        numbers = np.concatenate([batch.dense_NC[:, 0] for batch in of]).astype(float)
        np.testing.assert_allclose(found.dense_mean_C, np.nanmean(numbers), rtol=1e-9)
        np.testing.assert_allclose(found.dense_scale_C, np.nanstd(numbers), rtol=1e-9)
        level = np.concatenate([batch.labels_N for batch in of]).astype(float)
        assert (found.label_mean, found.label_scale) == pytest.approx((level.mean(), level.std()))


def test_parts_of_a_log_are_merged_to_the_whole() -> None:
    layout, batches = _batches(3, 6, 100, [7, 30])
    whole, first, second = (_statistics(layout, part) for part in (batches, batches[:2], batches[2:]))
    first.merge(second)
    for name, value in vars(whole).items():
        if name != "layout":
            np.testing.assert_allclose(vars(first)[name], value, rtol=1e-12, err_msg=name)


def test_rare_values_have_a_floor() -> None:
    layout, batches = _batches(4, 4, 500, [2000])
    found = Standardization.of(_statistics(layout, batches), batches, rare=2.0)
    assert found.variance_D.min() == pytest.approx(2.0 / 500)
    common = _dense(batches, 2000).var(axis=0) > 2.0 / 500
    assert common.any()
    assert (found.variance_D[common] > 2.0 / 500).all()


@pytest.mark.parametrize("alike", [0.0, 0.7])
def test_the_largest_eigenvalue(alike: float) -> None:
    layout, batches = _batches(5, 16, 2000, [10, 20, 40], alike)
    found = Standardization.of(_statistics(layout, batches), batches, rare=0.5)
    numbers = np.concatenate([batch.dense_NC[:, 0] for batch in batches])
    dense = np.nan_to_num((numbers - found.dense_mean_C) / found.dense_scale_C)
    x = np.concatenate([(_dense(batches, 70) - found.mean_D) / np.sqrt(found.variance_D), dense[:, None]], axis=1)
    largest = np.linalg.eigvalsh(x.T @ x / len(x))[-1]
    assert largest > (2 if alike else 1)
    assert found.spectral == pytest.approx(largest, rel=0.07)


def test_the_largest_eigenvalue_is_not_that_of_a_sample_with_more_columns_than_rows() -> None:
    layout, batches = _batches(6, 8, 100, [1000] * 4)
    found = Standardization.of(_statistics(layout, batches), batches, rare=0.1)
    x = (_dense(batches[:1], layout.sparse) - found.mean_D) / np.sqrt(found.variance_D)
    assert np.linalg.svd(x, compute_uv=False)[0] ** 2 / len(x) > 4
    assert 1 <= found.spectral < 2


def test_labels_of_one_class_say_nothing() -> None:
    layout, batches = _batches(7, 2, 50, [5])
    alike = [
        SparseBatch(indptr_N=b.indptr_N, indices_E=b.indices_E, labels_N=np.ones_like(b.labels_N), dense_NC=b.dense_NC)
        for b in batches
    ]
    with pytest.raises(DataError, match="both classes"):
        Standardization.of(_statistics(layout, alike), alike)
