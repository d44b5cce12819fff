"""How columns are standardised without ever being dense: their means and scales, and the largest of all directions.

    column j of a row     (B_j - mean_j) / scale_j         B_j: how often the row has it, mostly 0 or 1
    scale_j^2             the variance, but at least ``rare`` / rows of a batch

A value that comes once in ten batches never meets itself in one: it can say nothing there, and at unit variance would
add as much noise as any other. The floor leaves its products as small as they are informative. The whole is divided by
the square root of the largest eigenvalue of the columns' covariance, as ``learnability.COEFFICIENTS`` are for 0 to 1.

Sheth & Fusi standardise alike (their code: means and deviations of a sample, its largest singular value), without a
floor. A sample's largest eigenvalue is far too large where columns outnumber rows (Marchenko & Pastur 1967), so here
the direction is found in one half of some batches, and measured in the other.

Suffixes: N rows of a batch, E entries, D sparse columns, C dense columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embstore.errors import DataError
from embstore.hashing import compiled
from embstore.selection.batches import Layout, SparseBatch
from embstore.selection.learnability import standardised

_ROUNDS, _MEASURED = 24, 3  # of the power iteration; every third is measured


class Statistics:
    """Sums over rows: of any part of a log, and of the whole when parts are merged."""

    def __init__(self, layout: Layout) -> None:
        dense = len(layout.dense)
        self.layout = layout
        self.batches = self.rows = self.positives = 0
        self.count_D, self.square_D = np.zeros(layout.sparse, np.int64), np.zeros(layout.sparse, np.int64)
        self.dense_rows_C = np.zeros(dense, np.int64)
        self.dense_sum_C, self.dense_square_C = np.zeros(dense), np.zeros(dense)

    def add(self, batch: SparseBatch) -> None:
        """Count a batch.

        Raises:
            DataError: its columns are not those of the layout, or its labels not 0 or 1.
        """
        self.layout.check(batch)
        seen_D = np.zeros(self.layout.sparse, np.int32)
        _count(batch.indptr_N, batch.indices_E, seen_D, self.count_D, self.square_D)
        self.batches += 1
        self.rows += len(batch)
        self.positives += int(batch.labels_N.sum())
        dense_NC = batch.dense_NC.astype(np.float64)
        self.dense_rows_C += (~np.isnan(dense_NC)).sum(axis=0)
        self.dense_sum_C += np.nansum(dense_NC, axis=0)
        self.dense_square_C += np.nansum(dense_NC**2, axis=0)

    def merge(self, other: Statistics) -> None:
        """Count what another has counted."""
        self.batches += other.batches
        self.rows += other.rows
        self.positives += other.positives
        for name in ("count_D", "square_D", "dense_rows_C", "dense_sum_C", "dense_square_C"):
            getattr(self, name).__iadd__(getattr(other, name))


@dataclass(frozen=True, kw_only=True, eq=False)
class Standardization:
    """Means and scales.

    Args:
        mean_D, variance_D: float64, of sparse columns; the variance with its floor.
        dense_mean_C, dense_scale_C: float64.
        label_mean, label_scale: of labels.
        spectral: largest eigenvalue of the standardised columns' covariance.
    """

    mean_D: NDArray[np.float64]
    variance_D: NDArray[np.float64]
    dense_mean_C: NDArray[np.float64]
    dense_scale_C: NDArray[np.float64]
    label_mean: float
    label_scale: float
    spectral: float

    @classmethod
    def of(
        cls, statistics: Statistics, sample: Sequence[SparseBatch], *, rare: float = 1.0, seed: int = 0
    ) -> Standardization:
        """Of a log's sums and some of its batches.

        Args:
            sample: where the largest eigenvalue is looked for; two at least, or it comes out too large.
            rare: variances are at least those of values that come this often in a batch of the sample's; above 0.
            seed: of the power iteration's start.

        Raises:
            DataError: no rows, or labels of one class.
        """
        rows, positives = statistics.rows, statistics.positives
        if not 0 < positives < rows:
            found = f"{positives:,} of {rows:,} rows positive"
            raise DataError("labels to select features by", expected="rows of both classes", found=found)
        mean_D = statistics.count_D / rows
        batch_rows = np.mean([len(batch) for batch in sample])
        dense_rows_C = np.maximum(statistics.dense_rows_C, 1)
        dense_mean_C = statistics.dense_sum_C / dense_rows_C
        dense_variance_C = statistics.dense_square_C / dense_rows_C - dense_mean_C**2
        level = positives / rows
        variance_D = statistics.square_D / rows - mean_D**2
        floored_D = np.maximum(variance_D, rare / batch_rows)
        plain = cls(
            mean_D=mean_D,
            variance_D=floored_D,
            dense_mean_C=dense_mean_C,
            dense_scale_C=np.sqrt(np.where(dense_variance_C > 1e-12 * dense_mean_C**2, dense_variance_C, 1.0)),
            label_mean=level,
            label_scale=float(np.sqrt(level * (1 - level))),
            spectral=1.0,
        )
        # No less than any column's own variance, whatever the directions found.
        own = max((variance_D / floored_D).max(initial=0.0), float((dense_rows_C > 1).any()), 1e-12)
        return replace(plain, spectral=max(own, plain._largest(sample, seed)))

    def _largest(self, sample: Sequence[SparseBatch], seed: int) -> float:
        """Largest eigenvalue of the covariance; of directions found in half of the batches, in the other half."""
        rng = np.random.default_rng(seed)
        direction = rng.normal(size=len(self.mean_D) + len(self.dense_mean_C))
        finding, measuring = sample[::2], sample[1::2] or sample
        found = 0.0
        for number in range(1, _ROUNDS + 1):
            direction, _ = self._gram(finding, direction)
            length = np.linalg.norm(direction)
            if not length > 0:
                break
            direction /= length
            if number % _MEASURED == 0:
                found = max(found, self._gram(measuring, direction)[1])
        return found

    def _gram(
        self, batches: Sequence[SparseBatch], direction: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        """X' X direction, and direction' X' X direction, over the number of rows."""
        sparse, inverse_D = len(self.mean_D), 1 / np.sqrt(self.variance_D)
        scaled_D, dense_C = direction[:sparse] * inverse_D, direction[sparse:]
        offset = float(scaled_D @ self.mean_D)
        out_D, out_C = np.zeros(sparse), np.zeros(len(dense_C))
        total = squares = 0.0
        for batch in batches:
            x_NC = standardised(batch.dense_NC, self.dense_mean_C, self.dense_scale_C)
            along_N = x_NC @ dense_C - offset
            _gram(batch.indptr_N, batch.indices_E, scaled_D, along_N, out_D)
            out_C += along_N @ x_NC
            total += float(along_N.sum())
            squares += float(along_N @ along_N)
        rows = sum(len(batch) for batch in batches)
        return np.concatenate([(out_D - self.mean_D * total) * inverse_D, out_C]) / rows, squares / rows


@compiled(nogil=True)
def _count(indptr_N, indices_E, seen_D, count_D, square_D):  # type: ignore[no-untyped-def]
    for p in range(len(indptr_N) - 1):
        for e in range(indptr_N[p], indptr_N[p + 1]):
            column, before = indices_E[e], 0
            if seen_D[column] == p + 1:
                for other in range(indptr_N[p], e):
                    before += indices_E[other] == column
            seen_D[column] = p + 1
            count_D[column] += 1
            square_D[column] += 2 * before + 1  # (n + 1)^2 - n^2


@compiled(nogil=True)
def _gram(indptr_N, indices_E, scaled_D, along_N, out_D):  # type: ignore[no-untyped-def]
    """Adds the rows' products with a direction to ``along_N``, and the columns' with those to ``out_D``."""
    for p in range(len(indptr_N) - 1):
        along = along_N[p]
        for e in range(indptr_N[p], indptr_N[p + 1]):
            along += scaled_D[indices_E[e]]
        along_N[p] = along
        for e in range(indptr_N[p], indptr_N[p + 1]):
            out_D[indices_E[e]] += along
