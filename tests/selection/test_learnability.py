"""The estimate and its gradient against the matrix of all pairs of rows, in float64: its own, differences, autograd."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from embstore.errors import ConfigError
from embstore.selection.batches import SparseBatch
from embstore.selection.learnability import COEFFICIENTS, Weights, batch_gradient, binary_loss, coefficients


def _dense(batch: SparseBatch, weights: Weights) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns less their means, and labels."""
    counts = np.zeros((len(batch), len(weights.weight_D)))
    for row in range(len(batch)):
        np.add.at(counts[row], batch.indices_E[batch.indptr_N[row] : batch.indptr_N[row + 1]], 1.0)
    dense = np.nan_to_num((batch.dense_NC - weights.dense_mean_C) / weights.dense_scale_C)
    x = np.concatenate([counts - weights.mean_D, dense], axis=1)
    y = (batch.labels_N.astype(np.float64) - weights.label_mean) / weights.label_scale
    return torch.from_numpy(x), torch.from_numpy(y)


def _brute(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, c: tuple[float, ...]) -> torch.Tensor:
    rows = len(y)
    triangle = torch.triu((x * weight) @ x.T, diagonal=1)
    z, right = torch.zeros((), dtype=torch.float64), y
    for k, factor in enumerate(c, start=1):
        right = triangle @ right
        if rows > k:
            z = z + factor / comb(rows, k + 1) * (y @ right)
    return z


def _case(
    seed: int, *, rows: int, columns: int, dense: int, per_row: int, order: int, one_class: bool
) -> tuple[SparseBatch, Weights]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, per_row + 1, rows)
    batch = SparseBatch(
        indptr_N=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        indices_E=(columns * rng.random(lengths.sum()) ** 2).astype(np.int32),  # repeats within a row, too
        labels_N=np.full(rows, seed % 2, np.float32) if one_class else rng.integers(0, 2, rows).astype(np.float32),
        dense_NC=np.where(rng.random((rows, dense)) < 0.1, np.nan, rng.normal(size=(rows, dense))).astype(np.float32),
    )
    weight_D, mean_D = rng.random(columns), rng.random(columns) * rng.integers(0, 2, columns)
    return batch, Weights(
        weight_D=weight_D,
        mean_D=mean_D,
        shift=float(weight_D @ mean_D**2),
        dense_weight_C=rng.random(dense),
        dense_mean_C=rng.normal(size=dense),
        dense_scale_C=0.5 + rng.random(dense),
        label_mean=0.3,
        label_scale=0.5,
        coefficients=coefficients(order),
    )


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "rows": st.integers(1, 40),
        "columns": st.integers(1, 60),
        "dense": st.integers(0, 3),
        "per_row": st.integers(0, 6),
        "order": st.integers(1, 12),
        "one_class": st.booleans(),
    }
)


@given(CASES)
@settings(max_examples=200, deadline=None)
def test_the_estimate_and_its_gradient_are_those_of_the_matrix_of_pairs(case: dict[str, int]) -> None:
    batch, weights = _case(**case)  # type: ignore[arg-type]
    found = batch_gradient(batch, weights)
    x, y = _dense(batch, weights)
    weight = torch.from_numpy(np.concatenate([weights.weight_D, weights.dense_weight_C])).requires_grad_()
    z = _brute(x, y, weight, weights.coefficients)
    # Terms of both signs cancel: what rounding may do is measured by the sum of their sizes.
    size = float(_brute(x.abs(), y.abs(), weight.detach().abs(), tuple(np.abs(weights.coefficients))))
    assert abs(found.learnability - z.item()) <= 1e-8 * abs(z.item()) + 1e-13 * size
    ours = np.concatenate([found.by_column(weights.mean_D), found.dense_C])
    if z.requires_grad:
        z.backward()
        assert weight.grad is not None
        np.testing.assert_allclose(ours, weight.grad.numpy(), rtol=1e-8, atol=1e-11 * max(size, 1e-300))
    else:  # one row: nothing to compare it with
        assert len(batch) == 1
        assert found.learnability == 0
        assert not ours.any()


@pytest.mark.parametrize("order", [1, 4, 12])
def test_the_gradient_is_what_differences_say(order: int) -> None:
    batch, weights = _case(7, rows=300, columns=50, dense=2, per_row=8, order=order, one_class=False)
    found = batch_gradient(batch, weights)
    ours = np.concatenate([found.by_column(weights.mean_D), found.dense_C])

    def at(weight: NDArray[np.float64]) -> float:
        sparse, dense = weight[:50], weight[50:]
        moved = replace(weights, weight_D=sparse, dense_weight_C=dense, shift=float(sparse @ weights.mean_D**2))
        return batch_gradient(batch, moved).learnability

    base, step = np.concatenate([weights.weight_D, weights.dense_weight_C]), 1e-4
    eye = np.eye(len(base)) * step
    # Five points: exact for polynomials of the fourth degree, and z is one of the order's degree in each weight.
    by_differences = [
        (8 * (at(base + e) - at(base - e)) - (at(base + 2 * e) - at(base - 2 * e))) / (12 * step) for e in eye
    ]
    np.testing.assert_allclose(ours, by_differences, rtol=1e-6, atol=1e-7 * np.abs(ours).max())


def test_a_larger_batch_to_eight_digits() -> None:
    batch, weights = _case(3, rows=1500, columns=400, dense=2, per_row=30, order=6, one_class=False)
    found = batch_gradient(batch, weights)
    x, y = _dense(batch, weights)
    weight = torch.from_numpy(np.concatenate([weights.weight_D, weights.dense_weight_C])).requires_grad_()
    z = _brute(x, y, weight, weights.coefficients)
    z.backward()
    assert weight.grad is not None
    assert found.learnability == pytest.approx(z.item(), rel=1e-8)
    ours = np.concatenate([found.by_column(weights.mean_D), found.dense_C])
    np.testing.assert_allclose(ours, weight.grad.numpy(), rtol=1e-8, atol=1e-8 * np.abs(ours).mean())


def test_a_column_that_is_constant_adds_nothing() -> None:
    batch, weights = _case(5, rows=60, columns=20, dense=0, per_row=4, order=4, one_class=False)
    everywhere = SparseBatch(
        indptr_N=batch.indptr_N + np.arange(61),
        indices_E=np.insert(batch.indices_E, batch.indptr_N[:-1], 20).astype(np.int32),
        labels_N=batch.labels_N,
        dense_NC=batch.dense_NC,
    )
    wider = replace(weights, weight_D=np.append(weights.weight_D, 0.7), mean_D=np.append(weights.mean_D, 1.0))
    wider = replace(wider, shift=float(wider.weight_D @ wider.mean_D**2))
    narrow, wide = batch_gradient(batch, weights), batch_gradient(everywhere, wider)
    assert wide.learnability == pytest.approx(narrow.learnability, rel=1e-9)
    assert abs(wide.by_column(wider.mean_D)[20]) < 1e-9 * np.abs(wide.gradient_U).max()


def test_the_estimate_is_right_on_average_where_rows_are_fewer_than_columns() -> None:
    """The point of it: 40 % of the variance explained by 300 columns, seen in batches of 100 rows."""
    rng, columns, rows = np.random.default_rng(11), 300, 100
    beta = rng.normal(size=columns)
    beta *= np.sqrt(0.4) / np.linalg.norm(beta)
    none = np.zeros(0)
    found = []
    for _ in range(400):
        x = rng.normal(size=(rows, columns))
        y = x @ beta + rng.normal(size=rows) * np.sqrt(0.6)
        batch = SparseBatch(
            indptr_N=np.zeros(rows + 1, np.int64),
            indices_E=np.zeros(0, np.int32),
            labels_N=y.astype(np.float32),
            dense_NC=x.astype(np.float32),
        )
        weights = Weights(
            weight_D=none,
            mean_D=none,
            shift=0.0,
            dense_weight_C=np.ones(columns),
            dense_mean_C=np.zeros(columns),
            dense_scale_C=np.ones(columns),
            label_mean=0.0,
            label_scale=1.0,
            coefficients=(1.0,),  # isotropic: the first term alone is it
        )
        found.append(batch_gradient(batch, weights).learnability)
    assert np.mean(found) == pytest.approx(0.4, abs=4 * np.std(found) / np.sqrt(len(found)))
    assert np.std(found) / np.sqrt(len(found)) < 0.02


def test_the_loss_and_its_slope() -> None:
    for z in (0.01, 0.25, 0.9):
        loss, slope = binary_loss(z)
        assert loss == pytest.approx((1 - np.sqrt(z)) / 2)
        assert slope == pytest.approx((binary_loss(z + 1e-6)[0] - binary_loss(z - 1e-6)[0]) / 2e-6, rel=1e-5)
    assert binary_loss(-3.0) == (0.5, binary_loss(1e-4)[1])
    assert binary_loss(4.0) == (0.0, -0.25)


@pytest.mark.parametrize("order", range(1, 13))
def test_coefficients_are_the_smallest_within_twice_the_best_error(order: int) -> None:
    """By linear programmes over a grid: the best error, then the least weighted sum within twice that."""
    x = ((1 - np.cos(np.linspace(0, np.pi, 1501))) / 2)[1:]
    powers = np.stack([x ** (k + 2) for k in range(order)], axis=1)
    ones = np.ones((len(x), 1))
    chebyshev = x[:, None] ** 2 * np.polynomial.chebyshev.chebvander(2 * x - 1, order - 1)  # the same span
    both = np.block([[chebyshev, -ones], [-chebyshev, -ones]])
    best = linprog([0.0] * order + [1.0], both, np.concatenate([x, -x]), bounds=(None, None), method="highs")
    ours = np.array(COEFFICIENTS[order])
    worst = np.abs(x - powers @ ours).max()
    assert worst == pytest.approx(2 * best.fun, rel=1e-3)
    cost = 2.0 ** np.arange(order)
    both = np.block([[powers, -powers], [-powers, powers]])
    bound = np.concatenate([x + worst, worst - x])
    least = linprog(np.concatenate([cost, cost]), both, bound, bounds=(0, None), method="highs")
    assert cost @ np.abs(ours) == pytest.approx(least.fun, rel=1e-3)


def test_orders_there_are_none_of() -> None:
    for order in (0, 13):
        with pytest.raises(ConfigError, match="1 to 12"):
            coefficients(order)
