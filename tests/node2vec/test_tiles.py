"""Tiles compute what their docstring says, in float64 to within float32's rounding. B inputs, O outputs, D numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from embstore.node2vec.tiles import LANES, OUTPUTS, STRIDE, errors, update


@njit
def call(xs, ys, inputs, width, label, rate, error, which):  # type: ignore[no-untyped-def]
    addresses = np.uint64(xs.ctypes.data), np.uint64(ys.ctypes.data)
    if which & 1:
        at = np.uint64(label.ctypes.data), np.uint64(rate.ctypes.data), np.uint64(error.ctypes.data)
        errors(addresses[0], addresses[1], inputs, width, at[0], at[1], at[2])
    if which & 2:
        update(addresses[0], addresses[1], inputs, width, np.uint64(error.ctypes.data))


def lanes(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Repeated for each input of a vector."""
    return np.tile(np.concatenate([values, np.zeros(STRIDE - OUTPUTS)]), LANES // STRIDE).astype(np.float32)


class Tile:
    """Rows at any address, and what is told of them."""

    def __init__(self, inputs: int, width: int, outputs: int, *, shift: int, scale: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.memory = np.zeros((inputs + outputs + 2) * width + 64, np.float32)
        self.x = self._rows(inputs, width, shift)
        self.y = self._rows(outputs, width, shift + inputs * width)
        self.nobody = self._rows(1, width, shift + (inputs + outputs) * width)
        self.x[:], self.y[:] = rng.normal(0, scale, self.x.shape), rng.normal(0, scale, self.y.shape)
        rows = [self.x[b].ctypes.data for b in range(inputs)]
        self.xs = np.array(rows + [self.nobody.ctypes.data] * (inputs % 2), np.uint64)
        at = [row.ctypes.data for row in self.y] + [self.nobody.ctypes.data] * (OUTPUTS - outputs)
        self.ys = np.array(at, np.uint64)
        self.rate, self.label = np.zeros(OUTPUTS), np.zeros(OUTPUTS)
        self.rate[:outputs] = rng.uniform(0.01, 0.5, outputs)
        self.label[0] = 1
        self.error = np.full((inputs + 2, STRIDE), np.nan, np.float32)

    def _rows(self, count: int, width: int, start: int) -> NDArray[np.float32]:
        return self.memory[start : start + count * width].reshape(count, width)

    def call(self, which: int) -> None:
        inputs, width = self.x.shape
        call(self.xs, self.ys, inputs, width, lanes(self.label), lanes(self.rate), self.error, which)


SHAPES = [(inputs, width, outputs) for inputs in (1, 2, 3, 8, 19) for width in (1, 2, 8) for outputs in (1, 2, OUTPUTS)]


@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("shift", [0, 1, 7])
@pytest.mark.parametrize(("inputs", "width", "outputs"), SHAPES)
def test_errors_and_updates(inputs: int, width: int, outputs: int, shift: int, scale: float) -> None:
    tile = Tile(inputs, width * LANES, outputs, shift=shift, scale=scale, seed=inputs * 100 + width)
    x_BD, y_OD = tile.x.astype(np.float64), tile.y.astype(np.float64)
    e_BO = tile.rate[:outputs] * (tile.label[:outputs] - 1 / (1 + np.exp(-x_BD @ y_OD.T)))
    tile.call(1)
    assert np.array_equal(tile.x, x_BD)
    assert np.array_equal(tile.y, y_OD)
    np.testing.assert_allclose(tile.error[:inputs, :outputs], e_BO, rtol=2e-5, atol=3e-6)
    assert not tile.error[:inputs, outputs:].any()
    e_BO = tile.error[:inputs, :outputs].astype(np.float64)
    tile.call(2)
    np.testing.assert_allclose(tile.x, x_BD + e_BO @ y_OD, rtol=1e-6, atol=1e-6 * scale * outputs)
    np.testing.assert_allclose(tile.y, y_OD + e_BO.T @ x_BD, rtol=1e-6, atol=1e-6 * scale * inputs)
    assert not tile.nobody.any()
    assert not tile.memory[:shift].any()
    assert not tile.memory[shift + (inputs + outputs + 1) * width * LANES :].any()


def test_the_sigmoid_over_its_range() -> None:
    tile = Tile(2, LANES, 1, shift=0, scale=0, seed=0)
    tile.rate[0], tile.label[0] = 1, 0
    tile.y[0, 0] = 1
    for z in [*np.linspace(-20, 20, 401), -1e30, 1e30, -np.inf, np.inf, -80.0, 80.0]:
        tile.x[:, 0] = z
        tile.call(1)
        with np.errstate(over="ignore"):
            expected = 1 / (1 + np.exp(-z))
        assert abs(-tile.error[0, 0] - expected) < 4e-6, z
        assert tile.error[1, 0] == tile.error[0, 0]


def test_errors_of_numbers_that_are_none_are_finite() -> None:
    tile = Tile(2, LANES, 1, shift=0, scale=1, seed=0)
    tile.x[:] = np.nan
    tile.call(1)
    assert np.isfinite(tile.error[:2]).all()


def test_an_input_that_is_there_twice_is_moved_twice() -> None:
    tile: Any = Tile(3, LANES, 2, shift=0, scale=0.5, seed=5)
    tile.xs[2] = tile.xs[0]
    x_BD, y_OD = tile.x.astype(np.float64), tile.y.astype(np.float64)
    tile.call(1)
    assert np.array_equal(tile.error[2], tile.error[0])
    e_BO = tile.error[:3, :2].astype(np.float64)
    tile.call(2)
    once = x_BD[0] + e_BO[0] @ y_OD
    np.testing.assert_allclose(tile.x[0], once + e_BO[2] @ y_OD, rtol=1e-6)
    seen = np.stack([x_BD[0], x_BD[1], once])  # the second time it is read again
    np.testing.assert_allclose(tile.y, y_OD + e_BO.T @ seen, rtol=1e-5, atol=1e-7)
