"""Expected rows, against draws and sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planned import probabilities

from embstore.planning import (
    expected_unique,
    popular_share,
)


@pytest.mark.parametrize(
    ("rows", "draws", "exponent"),
    [(1, 5, 1.0), (50, 30, 0.0), (1000, 500, 1.05), (1000, 5000, 0.7), (200_000, 3000, 1.2)],
)
def test_unique_rows_and_what_a_cache_misses_are_those_of_draws(rows: int, draws: int, exponent: float) -> None:
    rng = np.random.default_rng(0)
    cached = rows // 10
    seen, missed, hits = [], [], []
    for _ in range(200):
        drawn = rng.choice(rows, size=draws, p=probabilities(rows, exponent))
        unique = np.unique(drawn)
        seen.append(len(unique))
        missed.append((unique >= cached).sum())
        hits.append((drawn < cached).mean())
    for found, expected in (
        (seen, expected_unique(rows, draws, exponent)),
        (missed, expected_unique(rows, draws, exponent, beyond=cached)),
        (hits, popular_share(rows, exponent, cached)),
    ):
        assert abs(np.mean(found) - expected) <= 4 * np.std(found) / np.sqrt(len(found)) + 1e-9


@pytest.mark.parametrize("exponent", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("beyond", [0, 1000, 100_000])
def test_the_integral_is_the_sum_over_all_rows(exponent: float, beyond: int) -> None:
    rows, draws = 2_000_000, 300_000
    p = probabilities(rows, exponent)
    assert expected_unique(rows, draws, exponent, beyond=beyond) == pytest.approx(
        (1 - (1 - p[beyond:]) ** draws).sum(), rel=1e-6
    )
    assert popular_share(rows, exponent, beyond) == pytest.approx(p[:beyond].sum(), rel=1e-6)


@given(
    rows=st.integers(1, 10**11),
    more=st.integers(0, 10**11),
    draws=st.floats(1, 1e9),
    exponent=st.floats(0, 2.5),
    beyond=st.integers(0, 10**6),
)
def test_unique_rows_grow_with_rows_and_draws(rows: int, more: int, draws: float, exponent: float, beyond: int) -> None:
    found = expected_unique(rows, draws, exponent)
    assert 0 < found <= min(rows, draws) * (1 + 1e-9)
    assert expected_unique(rows, 2 * draws, exponent) >= found * (1 - 1e-6)
    assert expected_unique(rows + more, draws, exponent) >= found * (1 - 1e-6)
    assert expected_unique(rows, draws, exponent, beyond=beyond) <= found * (1 + 1e-6)
    assert 0 <= popular_share(rows, exponent, beyond) <= 1
