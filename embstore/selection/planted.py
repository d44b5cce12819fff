"""Rows in which some fields, and some values of others, are known to matter and nothing else does.

    field        columns          matters
    signal_0 ..  Zipf values      every value has an effect of its own on the logit, N(0, ``field_effect``)
    mixed_0 ..   Zipf values      ``planted_values`` of its frequent values have an effect of +-``value_effect``
    noise_0 ..   Zipf values      nothing

Values of all fields are drawn from Zipf laws, independent of each other. Batch i depends on (settings, i) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from embstore.selection.batches import Layout, SparseBatch

_WORLD, _ROWS = range(2)


@dataclass(frozen=True, kw_only=True)
class PlantedBatches:
    """Batches of such rows; iterate as often as you like.

    Args:
        batches, rows: how many, and rows of each.
        columns: of all fields together; they have sizes from 10 on, each larger than the last by the same factor.
        signal_fields, mixed_fields, noise_fields: how many of each; sizes are dealt in turn.
        planted_values: in each mixed field, among its ``planted_among`` most frequent.
        planted_among: of these the values are drawn.
        field_effect: standard deviation of a signal field's effects on the logit.
        value_effect: of a planted value.
        exponent: of the Zipf laws.
        bias: of the logit.
        seed: of everything.
    """

    batches: int
    rows: int = 4096
    columns: int = 10_000
    signal_fields: int = 4
    mixed_fields: int = 4
    noise_fields: int = 16
    planted_values: int = 2
    planted_among: int = 10
    field_effect: float = 0.6
    value_effect: float = 1.0
    exponent: float = 1.0
    bias: float = -2.0
    seed: int = 0

    @cached_property
    def layout(self) -> Layout:
        """Their columns."""
        kinds = (("signal", self.signal_fields), ("mixed", self.mixed_fields), ("noise", self.noise_fields))
        names = [f"{kind}_{number}" for kind, count in kinds for number in range(count)]
        growth = np.linspace(0, np.log(self.columns / 10), len(names))
        low, high = 0.0, 1.0
        for _ in range(60):  # sizes 10 x growth^share: the share at which they sum to what is asked for
            middle = (low + high) / 2
            low, high = (middle, high) if 10 * np.exp(middle * growth).sum() < self.columns else (low, middle)
        sizes = np.floor(10 * np.exp(low * growth)).astype(np.int64)
        sizes[-1] += self.columns - sizes.sum()
        order = self._rng(_WORLD, 0).permutation(len(names))
        return Layout(names=tuple(names), bounds_F=np.concatenate([[0], np.cumsum(sizes[order])]))

    @cached_property
    def effect_D(self) -> NDArray[np.float64]:
        """Of each column on the logit, less its field's mean."""
        layout, rng = self.layout, self._rng(_WORLD, 1)
        effect_D = np.zeros(layout.sparse)
        for name, start, stop in zip(layout.names, layout.bounds_F[:-1], layout.bounds_F[1:], strict=True):
            size = stop - start
            if name.startswith("signal"):
                effect_D[start:stop] = rng.normal(size=size) * self.field_effect
            elif name.startswith("mixed"):
                chosen = rng.choice(min(self.planted_among, size), self.planted_values, replace=False)
                effect_D[start + chosen] = self.value_effect * rng.choice([-1.0, 1.0], self.planted_values)
        return effect_D

    @cached_property
    def planted_columns(self) -> NDArray[np.int64]:
        """The planted values of the mixed fields."""
        first = self.layout.bounds_F[self.signal_fields]
        return first + np.flatnonzero(self.effect_D[first:])

    @property
    def planted_fields(self) -> set[str]:
        """Fields that matter."""
        return {name for name in self.layout.names if not name.startswith("noise")}

    def __iter__(self) -> Iterator[SparseBatch]:
        return (self.batch(number) for number in range(self.batches))

    def batch(self, number: int) -> SparseBatch:
        """One of them."""
        rng, layout = self._rng(_ROWS, number), self.layout
        codes_NF = np.empty((self.rows, len(layout.names)), np.int32)
        for f, start in enumerate(layout.bounds_F[:-1]):
            codes_NF[:, f] = start + np.searchsorted(self._laws[f], rng.random(self.rows))
        logit_N = self.bias + self.effect_D[codes_NF].sum(axis=1)
        return SparseBatch.of(codes_NF, rng.random(self.rows) < 1 / (1 + np.exp(-logit_N)))

    @cached_property
    def _laws(self) -> list[NDArray[np.float64]]:
        laws = []
        for size in np.diff(self.layout.bounds_F):
            law = np.cumsum(1.0 / np.arange(1, size + 1) ** self.exponent)
            laws.append(law[:-1] / law[-1])
        return laws

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, *key))))
