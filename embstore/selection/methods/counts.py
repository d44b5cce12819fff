"""What counting says of fields and values: how often, how much they move the label rate, how much they tell of it.

    batches ──Counts.add──> Counts ──merge──> Counts ──> random, frequency, lift, mutual_information

A value twice in a row's list counts once here. Suffixes: F fields, C dense columns, D sparse columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embstore.hashing import compiled
from embstore.selection.batches import Layout, SparseBatch
from embstore.selection.methods.registry import Rows, check_both_classes, check_setting, register, shares
from embstore.selection.scores import Scores

_EXACT = 1000


class Counts:
    """Rows and positive rows of each column, of any part of a log, and of the whole when parts are merged."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.rows = self.positives = 0
        self.rows_D, self.positives_D = np.zeros(layout.sparse, np.int64), np.zeros(layout.sparse, np.int64)
        self.rows_F = np.zeros(len(layout.names), np.int64)  # with at least one value
        # Of each dense column: rows that have it, positive ones among them, sum, sum of squares, sum over positives.
        self.dense_5C = np.zeros((5, len(layout.dense)))

    @classmethod
    def of(cls, rows: Rows) -> Counts:
        """Of all rows.

        Raises:
            DataError: none, of other columns, or with labels of one class.
        """
        counts = cls(rows.layout)
        for batch in rows.batches:
            counts.add(batch)
        check_both_classes(counts.rows, counts.positives)
        return counts

    def add(self, batch: SparseBatch) -> None:
        """Count a batch.

        Raises:
            DataError: its columns are not those of the layout, or its labels not 0 or 1.
        """
        self.layout.check(batch)
        seen_D = np.full(self.layout.sparse, -1, np.int32)
        seen_F = np.full(len(self.layout.names), -1, np.int32)
        field_D = self.layout.field_of_column()
        positive_N = batch.labels_N > 0
        _count(
            batch.indptr_N, batch.indices_E, positive_N, field_D, seen_D, seen_F,
            self.rows_D, self.positives_D, self.rows_F,
        )  # fmt: skip
        self.rows += len(batch)
        self.positives += int(positive_N.sum())
        here_NC = ~np.isnan(batch.dense_NC)
        x_NC, y_N1 = np.where(here_NC, batch.dense_NC, 0).astype(np.float64), positive_N[:, None]
        sums = (here_NC, here_NC & y_N1, x_NC, x_NC**2, x_NC * y_N1)
        self.dense_5C += np.stack([of_NC.sum(axis=0) for of_NC in sums])

    def merge(self, other: Counts) -> None:
        """Count what another has counted."""
        self.rows += other.rows
        self.positives += other.positives
        for name in ("rows_D", "positives_D", "rows_F", "dense_5C"):
            getattr(self, name).__iadd__(getattr(other, name))

    def correlation_C(self) -> NDArray[np.float64]:
        """Of each dense column with the label; 0 for a constant one."""
        rows_C, positives_C, sum_C, square_C, product_C = self.dense_5C
        with np.errstate(divide="ignore", invalid="ignore"):
            covariance_C = product_C - sum_C * positives_C / rows_C
            variance_C = square_C - sum_C**2 / rows_C
            label_C = positives_C - positives_C**2 / rows_C
            varies_C = (variance_C > 1e-12 * square_C) & (label_C > 0)
            return np.where(varies_C, covariance_C / np.sqrt(variance_C * label_C), 0.0)


@dataclass(frozen=True, kw_only=True)
class RandomSettings:
    """Of ``random``.

    Args:
        seed: of the scores.
    """

    seed: int = 0


@register("random", RandomSettings)
def random(source: Rows, settings: RandomSettings) -> Scores:
    """Uniform numbers: what any method must beat. The rows are not read."""
    rng, layout = np.random.default_rng(settings.seed), source.layout
    return shares(layout, rng.random(len(layout.fields)), rng.random(layout.columns))


@dataclass(frozen=True, kw_only=True)
class FrequencySettings:
    """``frequency`` has none."""


@register("frequency", FrequencySettings)
def frequency(source: Rows, settings: FrequencySettings) -> Scores:
    """Rows that have the value; of a field, rows that have any."""
    counts = Counts.of(source)
    dense_C = counts.dense_5C[0]
    return shares(
        source.layout, np.concatenate([counts.rows_F, dense_C]), np.concatenate([counts.rows_D, dense_C])
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LiftSettings:
    """Of ``lift``.

    Args:
        smoothing: rows at the log's own label rate that are added to those of each value.
    """

    smoothing: float = 100.0

    def __post_init__(self) -> None:
        check_setting("smoothing", self.smoothing, least=0, above=True)


@register("lift", LiftSettings)
def lift(source: Rows, settings: LiftSettings) -> Scores:
    """|log(smoothed label rate of a value / label rate of the log)|; a field's is the mean over its rows' values.

    The smoothed rate is the mean of a beta prior with the log's rate and ``smoothing`` rows (Micci-Barreca 2001, A
    Preprocessing Scheme for High-Cardinality Categorical Attributes, lambda(n) = n / (n + smoothing)). A dense
    column's is that of a line through its rates one mean deviation of a normal column away, in place of bins.
    """
    counts = Counts.of(source)
    rate, strength = counts.positives / counts.rows, settings.smoothing
    smoothed_D = (counts.positives_D + strength * rate) / (counts.rows_D + strength)
    lift_D = np.abs(np.log(smoothed_D / rate))
    bounds_F = source.layout.bounds_F[:-1]
    rows_F = np.add.reduceat(counts.rows_D, bounds_F) if len(bounds_F) else np.empty(0)
    total_F = np.add.reduceat(lift_D * counts.rows_D, bounds_F) if len(bounds_F) else np.empty(0)
    step = np.sqrt(2 / np.pi) * np.sqrt((1 - rate) / rate)
    dense_C = np.log1p(np.abs(counts.correlation_C()) * step)
    return shares(
        source.layout, np.concatenate([total_F / np.maximum(rows_F, 1), dense_C]), np.concatenate([lift_D, dense_C])
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MutualInformationSettings:
    """Of ``mutual_information``.

    Args:
        correction: take off what values that say nothing would seem to say.
    """

    correction: bool = True


@register("mutual_information", MutualInformationSettings)
def mutual_information(source: Rows, settings: MutualInformationSettings) -> Scores:
    """Of the label and whether a row has the value; of a field, of the label and which value a row has.

    Both are I = sum p(x, y) log(p(x, y) / p(x) p(y)) at the observed shares, and with ``correction`` less what it would
    be on average if the label didn't depend on the value (Vinh, Epps & Bailey 2010, with binomial in place of
    hypergeometric counts). Of a list, each value is an observation of its own. A dense column's is that of two normal
    variables, -log(1 - correlation^2) / 2.
    """
    counts, layout = Counts.of(source), source.layout
    has_D, positive_D = counts.rows_D, counts.positives_D
    rows, positives = counts.rows, counts.positives
    value_D = sum(
        (
            _term(cell_D, of_D, of_label, rows)
            for cell_D, of_D, of_label in (
                (positive_D, has_D, positives),
                (has_D - positive_D, has_D, rows - positives),
                (positives - positive_D, rows - has_D, positives),
                (rows - positives - has_D + positive_D, rows - has_D, rows - positives),
            )
        ),
        np.zeros(layout.sparse),
    )
    field_D = layout.field_of_column()[: layout.sparse]
    all_F, positive_F = (
        np.bincount(field_D, weights=of_D, minlength=len(layout.names)) for of_D in (has_D, positive_D)
    )
    of_field_D = _term(positive_D, has_D, positive_F[field_D], all_F[field_D])
    of_field_D += _term(has_D - positive_D, has_D, (all_F - positive_F)[field_D], all_F[field_D])
    field_F = np.bincount(field_D, weights=of_field_D, minlength=len(layout.names)).astype(np.float64)
    correlation_C = counts.correlation_C()
    dense_C = -0.5 * np.log1p(-np.minimum(correlation_C**2, 1 - 1e-12))
    if settings.correction:
        share_D, of_field_D = has_D / rows, has_D / np.maximum(all_F, 1)[field_D]
        by_chance_D = by_chance(has_D, positives / rows)
        value_D -= (by_chance_D * (1 - share_D) + 0.5 * share_D) / rows
        by_chance_F = np.bincount(field_D, weights=by_chance_D * (1 - of_field_D), minlength=len(layout.names))
        field_F = field_F - by_chance_F / np.maximum(all_F, 1)
        dense_C -= (correlation_C != 0) / (2 * rows)
    return shares(layout, np.concatenate([field_F, dense_C]), np.concatenate([value_D, dense_C]))


def by_chance(rows_D: NDArray[np.int64], rate: float) -> NDArray[np.float64]:
    """Mean of n KL(k / n, rate), in nats, of n rows of which k are positive by chance; 0 for none.

    Summed over k up to ``_EXACT`` rows; from there on 1/2 and the next term of its expansion (Harris 1975).
    """
    log_p, log_q = np.log(rate), np.log1p(-rate)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, _EXACT + 1)))])
    mean_n = np.zeros(_EXACT + 1)
    for n in np.unique(rows_D[(rows_D > 0) & (rows_D <= _EXACT)]):
        k = np.arange(n + 1)
        chance = np.exp(factorial[n] - factorial[k] - factorial[n - k] + k * log_p + (n - k) * log_q)
        with np.errstate(divide="ignore", invalid="ignore"):
            positive = np.where(k > 0, k * (np.log(k / n) - log_p), 0.0)
            negative = np.where(k < n, (n - k) * (np.log1p(-k / n) - log_q), 0.0)
        mean_n[n] = chance @ (positive + negative)
    many_D = 0.5 + (1 / rate + 1 / (1 - rate) - 1) / (12 * np.maximum(rows_D, 1))
    return np.where(rows_D <= _EXACT, mean_n[np.minimum(rows_D, _EXACT)], many_D)


def _term(cell: NDArray, of: NDArray, of_label: NDArray | int, total: NDArray | int) -> NDArray[np.float64]:
    """cell / total * log(cell * total / (of * of_label)), 0 where the cell is empty."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share = cell / total
        return np.where(cell > 0, share * np.log(share / (of / total) / (of_label / total)), 0.0)


@compiled(nogil=True)
def _count(indptr_N, indices_E, positive_N, field_D, seen_D, seen_F, rows_D, positives_D, rows_F):  # type: ignore[no-untyped-def]
    for n in range(len(positive_N)):
        for e in range(indptr_N[n], indptr_N[n + 1]):
            column = indices_E[e]
            if seen_D[column] != n:
                seen_D[column] = n
                rows_D[column] += 1
                positives_D[column] += positive_N[n]
                field = field_D[column]
                if seen_F[field] != n:
                    seen_F[field] = n
                    rows_F[field] += 1
