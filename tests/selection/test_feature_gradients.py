"""The search against torch's autograd and Adam on dense matrices; planted fields and values are found."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch

from embstore.errors import ConfigError, DataError
from embstore.selection import (
    FeatureGradients,
    FeatureGradientsSettings,
    Layout,
    SparseBatch,
    Standardization,
    Statistics,
    fit,
)
from embstore.selection.feature_gradients import LEVELS, Step, gradients
from embstore.selection.learnability import COEFFICIENTS
from embstore.selection.planted import PlantedBatches


def _small(seed: int, count: int, sizes: tuple[int, ...] = (3, 8, 5)) -> tuple[Layout, list[SparseBatch]]:
    rng, bounds = np.random.default_rng(seed), np.concatenate([[0], np.cumsum(sizes)])
    layout, batches = Layout(names=tuple(f"f{i}" for i in range(len(sizes))), bounds_F=bounds, dense=("d", "e")), []
    for number in range(count):
        rows = 200 + 7 * number  # batches of several sizes
        codes = (np.array(sizes) * rng.random((rows, len(sizes))) ** 2).astype(int)
        batches.append(
            SparseBatch.of(
                codes + bounds[:-1], rng.random(rows) < np.where(codes[:, 0] > 0, 0.75, 0.3), rng.normal(size=(rows, 2))
            )
        )
    return layout, batches


def _standardization(layout: Layout, batches: list[SparseBatch]) -> Standardization:
    statistics = Statistics(layout)
    for batch in batches:
        statistics.add(batch)
    return Standardization.of(statistics, batches)


def test_batches_of_a_step() -> None:
    plain = FeatureGradientsSettings()
    assert [plain.per_step(batches) for batches in (1, 11, 12, 23, 24, 95, 96, 10_000)] == [1, 11, 1, 1, 2, 7, 8, 8]
    assert FeatureGradientsSettings(epochs=3).per_step(6) == 1
    assert FeatureGradientsSettings(batches_per_step=5).per_step(6) == 5


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("order", [1, 2, 4])
def test_steps_are_those_of_torch(level: str, order: int) -> None:
    layout, batches = _small(1, 6)
    by = _standardization(layout, batches)
    settings = FeatureGradientsSettings(level=level, order=order, penalty=0.3, learning_rate=0.05)
    search = FeatureGradients(layout, by, settings)
    field = torch.from_numpy(layout.field_of_column().astype(np.int64))
    x_F = torch.zeros(len(layout.fields), dtype=torch.float64, requires_grad=True)
    x_A = torch.zeros(layout.columns, dtype=torch.float64, requires_grad=True)
    free = [x for x, without in ((x_F, "values"), (x_A, "fields")) if level != without]
    # The loss of each group of scores is multiplied by their number, see the module.
    adams = [torch.optim.Adam([x], lr=0.05) for x in free]
    for at in (0, 3, 0, 3, 0):
        group = batches[at : at + 3]
        step = search.step(gradients(group, search.weights(), 1))
        s_F, s_A = torch.sigmoid(2 * x_F), torch.sigmoid(2 * x_A)
        s = {"fields": s_F[field], "values": s_A, "both": s_F[field] * s_A}[level]
        z = torch.zeros((), dtype=torch.float64)
        for batch in group:
            rows = np.zeros((len(batch), layout.sparse))
            np.add.at(rows, (np.repeat(np.arange(len(batch)), 3), batch.indices_E), 1.0)
            dense = (batch.dense_NC - by.dense_mean_C) / by.dense_scale_C
            x = torch.from_numpy(np.concatenate([(rows - by.mean_D) / np.sqrt(by.variance_D), dense], axis=1))
            x = x / np.sqrt(by.spectral)
            right = y = torch.from_numpy((batch.labels_N.astype(float) - by.label_mean) / by.label_scale)
            triangle = torch.triu((x * s) @ x.T, diagonal=1)
            for k, c in enumerate(COEFFICIENTS[order], start=1):
                right = triangle @ right
                z = z + len(batch) * c / comb(len(batch), k + 1) * (y @ right)
        z = z / sum(map(len, group))
        penalty = 0.3 * torch.stack([torch.sigmoid(2 * x).mean() for x in free]).mean()
        assert 1e-3 < z.item() < 1
        loss = 0.5 * (1 - z.sqrt()) + penalty
        assert step.learnability == pytest.approx(z.item(), rel=1e-9)
        assert step.loss == pytest.approx(loss.item(), rel=1e-9)
        slopes = torch.autograd.grad(loss, free)
        for x, slope, adam in zip(free, slopes, adams, strict=True):
            x.grad = slope * len(x)
            adam.step()
    scores = search.scores()
    if level != "values":
        np.testing.assert_allclose(scores.field_F, torch.sigmoid(2 * x_F).detach().numpy(), rtol=1e-7)
    with torch.no_grad():
        s_F, s_A = torch.sigmoid(2 * x_F), torch.sigmoid(2 * x_A)
        s = {"fields": s_F[field], "values": s_A, "both": s_F[field] * s_A}[level]
    np.testing.assert_allclose(scores.column_D, s.numpy(), rtol=1e-7)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    planted = PlantedBatches(batches=6, rows=500, columns=2000)
    one, two = (fit(planted, planted.layout, FeatureGradientsSettings(threads=threads)) for threads in (1, 2))
    assert np.array_equal(one.log_column_D, two.log_column_D)
    assert np.array_equal(one.log_field_F, two.log_field_F)


def test_progress_and_statistics_that_are_given() -> None:
    planted = PlantedBatches(batches=5, rows=300, columns=1000)
    statistics = Statistics(planted.layout)
    for batch in planted:
        statistics.add(batch)
    steps: list[Step] = []
    settings = FeatureGradientsSettings(epochs=2, batches_per_step=2)
    given = fit(planted, planted.layout, settings, statistics=statistics, progress=steps.append)
    assert [step.rows for step in steps] == [600, 600, 300] * 2
    assert np.array_equal(given.log_column_D, fit(planted, planted.layout, settings).log_column_D)


def test_a_field_s_score_is_the_mean_of_its_rows_where_only_values_have_one() -> None:
    layout, batches = _small(4, 5)
    scores = fit(batches, layout, FeatureGradientsSettings(level="values"))
    codes = np.concatenate([batch.indices_E.reshape(-1, 3) for batch in batches])
    np.testing.assert_allclose(scores.field_F[:3], scores.column_D[codes].mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(scores.field_F[3:], scores.column_D[-2:], rtol=1e-9)


def _found(planted: PlantedBatches, settings: FeatureGradientsSettings) -> tuple[float, float]:
    """Precision at the number planted: of fields; of values, among those and all that have no effect."""
    scores = fit(planted, planted.layout, settings)
    fields = set(scores.top_fields(len(planted.planted_fields))) & planted.planted_fields
    values = planted.planted_columns
    judged_D = planted.effect_D == 0
    judged_D[values] = True
    ranked = scores.top_columns(planted.layout.columns)
    best = [column for column in ranked if judged_D[column]][: len(values)]
    return len(fields) / len(planted.planted_fields), len(set(best) & set(values.tolist())) / len(values)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_fields_and_values_are_found(seed: int) -> None:
    planted = PlantedBatches(batches=96, rows=2048, columns=5000, seed=seed)
    assert _found(planted, FeatureGradientsSettings(level="both", batches_per_step=2))[0] == 1.0
    assert _found(planted, FeatureGradientsSettings(level="values", batches_per_step=2))[1] == 1.0


@pytest.mark.slow
def test_planted_fields_and_values_are_found_among_a_million_columns() -> None:
    planted = PlantedBatches(batches=128, rows=8192, columns=1_000_000, noise_fields=24)
    assert _found(planted, FeatureGradientsSettings(level="both"))[0] == 1.0
    assert _found(planted, FeatureGradientsSettings(level="values"))[1] == 1.0


def test_what_another_column_says_already_is_worth_less_from_the_second_order_on() -> None:
    """Twins of one signal beside another one, a little weaker, that stands alone."""
    rng, batches = np.random.default_rng(8), []
    layout = Layout(names=("a", "twin", "alone", "noise"), bounds_F=np.array([0, 2, 4, 6, 8]))
    for _ in range(100):
        a, alone, noise = rng.integers(0, 2, (3, 4000))
        labels = rng.random(4000) < 1 / (1 + np.exp(-(1.5 * a + 1.45 * alone - 1.5)))
        batches.append(SparseBatch.of(np.stack([a, a + 2, alone + 4, noise + 6], axis=1), labels))
    slopes = {}
    for order in (1, 2):
        search = FeatureGradients(
            layout, _standardization(layout, batches), FeatureGradientsSettings(order=order, level="fields")
        )
        found = gradients(batches, search.weights(), 1)
        by_column = np.mean([one.by_column(search.standardization.mean_D) for one in found], axis=0)
        slopes[order] = np.add.reduceat(by_column / search.standardization.variance_D, layout.bounds_F[:-1])
    assert slopes[1][0] == pytest.approx(slopes[1][1])
    assert slopes[1][0] > slopes[1][2] > 10 * abs(slopes[1][3])  # each by itself
    assert slopes[2][2] > slopes[2][0] > 10 * abs(slopes[2][3])  # the twins share what they say


def test_what_can_not_be_searched() -> None:
    layout, batches = _small(2, 2)
    with pytest.raises(DataError, match="at least one"):
        fit([], layout, FeatureGradientsSettings(), statistics=Statistics(layout))
    alike = [
        SparseBatch(indptr_N=b.indptr_N, indices_E=b.indices_E, labels_N=np.ones_like(b.labels_N), dense_NC=b.dense_NC)
        for b in batches
    ]
    with pytest.raises(DataError, match="both classes"):
        fit(alike, layout, FeatureGradientsSettings())
    for wrong in (
        {"order": 13},
        {"level": "rows"},
        {"epochs": 0},
        {"penalty": -1.0},
        {"learning_rate": float("nan")},
        {"rare": 0},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            replace(FeatureGradientsSettings(), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("batches", "steps"), [(6, 1), (10, 1), (24, 12)])
def test_short_logs(batches: int, steps: int) -> None:
    """The case: two or three steps of eight batches each put values without effect before planted ones."""
    planted, seen = PlantedBatches(batches=batches, columns=5_000), list[Step]()
    fit(planted, planted.layout, FeatureGradientsSettings(), progress=seen.append)
    assert len(seen) == steps
    assert _found(planted, FeatureGradientsSettings(level="both"))[0] == 1.0
    assert _found(planted, FeatureGradientsSettings(level="values"))[1] == 1.0
    if batches > 8:
        assert _found(planted, FeatureGradientsSettings(level="values", batches_per_step=8))[1] < 0.5
