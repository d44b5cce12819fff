"""Alias tables give each entry the share that its weight has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embstore.node2vec.alias import alias_rows

WEIGHTS = {
    "even": np.ones(7),
    "one": np.array([3.0]),
    "halves": np.array([1.0, 1.0, 2.0, 4.0]),
    "great and small": np.array([1e-30, 1e30, 1.0, 1e-30, 1e30]),
    "one great": np.concatenate([np.full(1000, 1e-30), [1e30]]),
    "one small": np.concatenate([np.ones(1000), [1e-30]]),
    "denormal": np.array([1e-45, 2e-45, 1e-44]),
    "greatest": np.full(50, 3e38),
    "zeros": np.array([0.0, 2.0, 0.0, 1.0]),
    "Zipf": 1 / np.arange(1.0, 5000.0),
}


def shares(keep: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What the draws of one row come to, in float64."""
    out = keep.astype(np.float64)
    np.add.at(out, other, 1 - keep.astype(np.float64))
    return out / len(keep)


def check(weight: np.ndarray, keep: np.ndarray, other: np.ndarray) -> None:
    assert ((keep >= 0) & (keep <= 1)).all()
    assert ((other >= 0) & (other < len(weight))).all()
    weight = weight.astype(np.float64)
    found, expected = shares(keep, other), weight / weight.sum()
    # An entry gets its own keep, and the rest of those that it is the other of: each rounded to float32.
    terms = 1 + np.bincount(other, minlength=len(weight))
    assert (np.abs(found - expected) <= terms * 2.0**-25 / len(weight) + 1e-12 * expected).all()
    assert not found[weight == 0].any()


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shares_are_the_weights(name: str, dtype: type) -> None:
    weight = WEIGHTS[name].astype(dtype)
    check(weight, *alias_rows(np.array([0, len(weight)]), weight))


def test_small_shares_are_right_relative_to_themselves() -> None:
    weight = np.array([1e-20, 1.0, 1e-10, 3.0])
    keep, other = alias_rows(np.array([0, 4]), weight)
    np.testing.assert_allclose(shares(keep, other), weight / weight.sum(), rtol=2.0**-22)


def test_weights_too_small_for_float32_are_never_drawn_and_take_nothing_from_others() -> None:
    keep, other = alias_rows(np.array([0, 3]), np.array([1e-30, 1e30, 1e30]))
    assert keep[0] == 0
    assert shares(keep, other).tolist() == [0, 0.5, 0.5]


def test_each_row_is_as_if_alone() -> None:
    rows = [*WEIGHTS.values(), np.empty(0)]
    indptr = np.cumsum([0, *map(len, rows)])
    keep, other = alias_rows(indptr, np.concatenate(rows))
    for begin, end, row in zip(indptr[:-1], indptr[1:], rows, strict=True):
        alone = alias_rows(np.array([0, len(row)]), row)
        assert np.array_equal(keep[begin:end], alone[0])
        assert np.array_equal(other[begin:end], alone[1])


@given(st.lists(st.floats(2.0**-100, 2.0**100, width=32), min_size=1, max_size=200))
def test_shares_of_any_weights(weights: list[float]) -> None:
    weight = np.array(weights, dtype=np.float32)
    check(weight, *alias_rows(np.array([0, len(weight)]), weight))
