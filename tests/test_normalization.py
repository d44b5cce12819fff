"""The normalizer against float64 numpy over all rows at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embstore.errors import SchemaError
from embstore.normalization import StreamingNormalizer
from embstore.schema import Dense

COLUMNS = (Dense(name="price"), Dense(name="age", scale="linear"), Dense(name="balance"))


def standardised(rows: np.ndarray, seen: np.ndarray, columns=COLUMNS) -> np.ndarray:
    """``rows`` by the statistics of ``seen``, both float64, column by column."""
    out = np.zeros(rows.shape)
    for d, column in enumerate(columns):

        def scale(x, log=column.scale == "log"):
            return np.sign(x) * np.log1p(np.abs(x)) if log else x

        known = scale(seen[np.isfinite(seen[:, d]), d])
        present = np.isfinite(rows[:, d])
        if len(known) and np.ptp(known) > 0:
            out[present, d] = np.clip((scale(rows[present, d]) - known.mean()) / known.std(), -10, 10)
    return out


def generated(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.lognormal(3, 2, n), rng.normal(40, 12, n), rng.normal(0, 1e4, n)], axis=1)
    rows[rng.random(rows.shape) < 0.2] = np.nan
    return rows.astype(np.float32).astype(np.float64)


def fitted(rows: np.ndarray, batch: int = 64, columns=COLUMNS) -> StreamingNormalizer:
    normalizer = StreamingNormalizer(columns)
    for start in range(0, len(rows), batch):
        normalizer.update(torch.from_numpy(rows[start : start + batch]))
    return normalizer


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_equals_numpy_with_missing_values(batch):
    rows = generated(1000)
    rows[:2] = [[np.inf, -np.inf, np.nan], [0.0, 0.0, -0.0]]
    out = fitted(rows, batch)(torch.from_numpy(rows).float())
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out, standardised(rows, rows), rtol=1e-6, atol=1e-7)
    assert out[0].tolist() == [0, 0, 0]


def test_uses_what_it_has_seen_and_no_more():
    rows = generated(200)
    normalizer = fitted(rows[:100])
    before = {name: buffer.clone() for name, buffer in normalizer.state_dict().items()}
    out = normalizer(torch.from_numpy(rows[100:]))
    np.testing.assert_allclose(out, standardised(rows[100:], rows[:100]), rtol=1e-6, atol=1e-7)
    assert all(torch.equal(before[name], buffer) for name, buffer in normalizer.state_dict().items())


@given(st.lists(st.integers(0, 60), max_size=4), st.permutations(range(5)))
def test_cuts_and_order_of_merging_change_rounding_only(cuts, order):
    rows = generated(60)
    bounds = [0, *sorted([*cuts, *[60] * (4 - len(cuts))]), 60]
    pieces = [torch.from_numpy(rows[bounds[i] : bounds[i + 1]]) for i in range(5)]
    normalizer, whole = StreamingNormalizer(COLUMNS), fitted(rows, 60)
    for i in order:
        normalizer.merge(whole.moments(pieces[i]))
    for name, expected in whole.state_dict().items():
        torch.testing.assert_close(normalizer.state_dict()[name], expected, rtol=1e-13, atol=0)


def test_small_variance_on_a_huge_offset():
    columns = (Dense(name="clock", scale="linear"),)
    rng = np.random.default_rng(0)
    rows = 1e9 + rng.normal(size=(100_000, 1)) * 1e-2
    normalizer = fitted(rows, 4096, columns)
    exact = rows[:, 0] - 1e9  # the subtraction is exact; a mean near 1e9 is kept to 1e-7
    assert float(normalizer.m2 / normalizer.count) == pytest.approx(exact.var(), rel=1e-6)
    np.testing.assert_allclose(normalizer(torch.from_numpy(rows)), standardised(rows, rows, columns), atol=1e-4)


@pytest.mark.parametrize("scale", ["log", "linear"])
@pytest.mark.parametrize("value", [0.0, 0.1, -3e38, 1e9 / 7])
def test_constant_columns_give_zero(scale, value):
    rows = np.full((1000, 1), np.float32(value), np.float64)
    normalizer = fitted(rows, 7, (Dense(name="constant", scale=scale),))
    assert not normalizer(torch.from_numpy(rows).float()).any()


def test_columns_never_seen_give_zero():
    normalizer = StreamingNormalizer(COLUMNS)
    assert normalizer(torch.full((2, 3), 5.0)).tolist() == [[0, 0, 0]] * 2
    normalizer.update(torch.tensor([[math.nan, 1.0, math.nan], [math.nan, 3.0, 2.0]]))
    assert normalizer(torch.full((1, 3), 3.0)).tolist() == [[0, 1, 0]]
    assert normalizer.count.tolist() == [0, 2, 1]


@given(st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=20))
def test_output_is_finite_and_within_ten(rows):
    dense_BD = torch.tensor(rows)
    normalizer = StreamingNormalizer(COLUMNS)
    normalizer.update(dense_BD)
    out = normalizer(dense_BD)
    assert out.isfinite().all()
    assert out.abs().max() <= 10


def test_outliers_are_clipped():
    normalizer = fitted(generated(1000))
    far = torch.tensor([[3e38, 3e38, -3e38]])
    assert normalizer(far).abs().max() == 10


@pytest.mark.parametrize("rows", [0, 3])
def test_no_columns(rows):
    normalizer = StreamingNormalizer(())
    normalizer.update(torch.empty(rows, 0))
    assert normalizer(torch.empty(rows, 0)).shape == (rows, 0)


def test_no_rows_change_nothing():
    normalizer = fitted(generated(100))
    before = {name: buffer.clone() for name, buffer in normalizer.state_dict().items()}
    normalizer.update(torch.empty(0, 3))
    assert all(torch.equal(before[name], buffer) for name, buffer in normalizer.state_dict().items())
    assert normalizer(torch.empty(0, 3)).shape == (0, 3)


def test_state_is_three_float64_buffers_and_returns():
    rows = generated(100)
    normalizer, other = fitted(rows), StreamingNormalizer(COLUMNS)
    state = normalizer.state_dict()
    assert {name: buffer.dtype for name, buffer in state.items()} == dict.fromkeys(
        ("count", "mean", "m2"), torch.float64
    )
    assert not list(normalizer.parameters())
    other.load_state_dict(state)
    assert torch.equal(other(torch.from_numpy(rows)), normalizer(torch.from_numpy(rows)))


def test_another_number_of_columns_is_refused():
    normalizer = StreamingNormalizer(COLUMNS)
    for call in (normalizer, normalizer.update):
        with pytest.raises(SchemaError, match=r"rows, 3\] for price, age, balance; found \[4, 1\]"):
            call(torch.zeros(4, 1))
