"""How many different rows a batch touches, when row r (from 1) is drawn with probability p_r ~ r^-exponent.

Exponent 0 is uniform. Of ``draws`` independent draws, row r is among them with probability 1 - (1 - p_r)^draws, and the
expected number of different rows is the sum of that over rows. The 65,536 most popular are summed up one by one; the
sum over the others is taken as an integral from half a row before to half a row behind (midpoint rule: its error is of
the order of the summand's second derivative, which is next to nothing there). So ten billion rows take as long as a
hundred thousand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

_EXACT = 1 << 16
_PANELS, _NODES = 48, 16


def expected_unique(rows: int, draws: float, exponent: float = 0.0, *, beyond: int = 0) -> float:
    """Expected number of different rows among ``draws`` draws.

    Args:
        rows: of the table, 1 or more.
        draws: row lookups; a mean may be a fraction.
        exponent: of Zipf's law, 0 or more.
        beyond: leave the so many most popular rows out (those a cache holds).

    Returns:
        At most ``rows - beyond`` and at most ``draws``.

    >>> round(expected_unique(100, 10), 3)
    9.562
    >>> expected_unique(10_000_000_000, 1e6) > 999_900
    True
    """
    if draws <= 0 or beyond >= rows:
        return 0.0
    if exponent == 0:  # every term of the sum is the same
        with np.errstate(divide="ignore"):
            return min(float((rows - beyond) * -np.expm1(draws * np.log1p(-1 / np.float64(rows)))), float(draws))
    total = _mass(rows, exponent)

    def touched(row: Numbers) -> Numbers:
        with np.errstate(divide="ignore"):  # the only row of a table: log1p(-1)
            return -np.expm1(draws * np.log1p(-np.minimum(row**-exponent / total, 1)))

    return min(_sum(touched, beyond, rows), float(draws))


def popular_share(rows: int, exponent: float, popular: int) -> float:
    """Probability that a draw is one of the ``popular`` most popular rows.

    >>> popular_share(1000, 0.0, 250)
    0.25
    """
    if popular >= rows:
        return 1.0
    if exponent == 0:
        return max(popular, 0) / rows
    return 1 - _sum(lambda row: row**-exponent, max(popular, 0), rows) / _mass(rows, exponent)


@lru_cache(maxsize=64)
def _mass(rows: int, exponent: float) -> float:
    return _sum(lambda row: row**-exponent, 0, rows)


def _sum(term: Callable[[Numbers], Numbers], start: int, stop: int) -> float:
    """Sum of ``term(r)`` over r = start + 1 ... stop."""
    middle = min(stop, max(start, _EXACT))
    head = float(term(np.arange(start + 1, middle + 1, dtype=np.float64)).sum())
    return head if middle == stop else head + _integral(term, middle + 0.5, stop + 0.5)


def _integral(term: Callable[[Numbers], Numbers], low: float, high: float) -> float:
    """Gauss-Legendre in log r, where powers of r and what is made of them are smooth."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    edges = np.linspace(np.log(low), np.log(high), _PANELS + 1)
    half = np.diff(edges)[:, None] / 2
    row = np.exp(edges[:-1, None] + half * (nodes + 1))
    return float((term(row) * row * weights * half).sum())
