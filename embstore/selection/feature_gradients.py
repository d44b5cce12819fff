"""Feature Gradients: a score for each field and each of its values, found by gradients of a label's learnability.

    batches ──batch_gradient──> gradients ──mean──> FeatureGradients.step (Adam) ──weights──> batches ── ...
              map: pure, anywhere                    reduce

Minimised is (1 - sqrt(z(s))) / 2 + penalty x mean(s), where z estimates how much of the label's variance a linear model
of the columns weighted by s explains (``embstore.selection.learnability``), s = sigmoid(2 x), x from 0 on (Sheth & Fusi
2020; arXiv 1908.10382). A field's columns may share one s, have one each, or both: s of a column is then the product,
and the penalty half of each.

Other than there:

- z is averaged over the batches of a step before its root is taken, not the loss after: the root's slope at a z that
  noise made small would give that batch the largest weight.
- Labels are standardised, not -1 and 1: with 3 % of clicks, z is eight times as far from its noise.
- The penalty of fields is their mean: a field does not pay for how many values it has.
- The loss is multiplied by the number of scores before Adam sees it, whose epsilon would else be larger than gradients
  of a million scores.

Suffixes: F fields (dense columns are the last), P scores, D sparse columns, A all columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, DataError
from embstore.hashing import compiled
from embstore.selection.batches import Layout, SparseBatch
from embstore.selection.learnability import BatchGradient, Weights, batch_gradient, binary_loss, coefficients
from embstore.selection.scores import Scores
from embstore.selection.standardization import Standardization, Statistics
from embstore.threads import share

LEVELS = ("fields", "values", "both")
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_BATCHES_PER_STEP = 8
SAMPLE = 16  # batches in which the largest eigenvalue is looked for
FEW_STEPS = 12  # fewer than this, but more than one, rank values badly: see ``FeatureGradientsSettings.per_step``


@dataclass(frozen=True, kw_only=True)
class FeatureGradientsSettings:
    """How to search.

    Args:
        order: of the estimate, 1 to 12.
        penalty: on the mean of the scores.
        level: what has a score: ``"fields"``, ``"values"`` or ``"both"``.
        start: x of every score before the first step.
        learning_rate: of Adam.
        epochs: passes over the batches.
        batches_per_step: averaged before each step; by default 8, and what ``per_step`` says for a short log.
        rare: values that come less often than this in a batch count for less, see ``standardization``.
        threads: that take a batch each.
        seed: of the start of the power iteration.
    """

    order: int = 2
    penalty: float = 0.1
    level: str = "both"
    start: float = 0.0
    learning_rate: float = 0.1
    epochs: int = 1
    batches_per_step: int | None = None
    rare: float = 1.0
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        coefficients(self.order)
        if self.level not in LEVELS:
            raise ConfigError("selection.level", expected=" or ".join(LEVELS), found=repr(self.level))
        for name in ("epochs", "batches_per_step", "threads"):
            if (given := getattr(self, name)) is not None and given < 1:
                raise ConfigError(f"selection.{name}", expected="1 or more", found=str(given))
        for name in ("penalty", "learning_rate"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"selection.{name}", expected="0 or more", found=str(getattr(self, name)))
        if not 0 < self.rare < np.inf:
            raise ConfigError("selection.rare", expected="above 0", found=str(self.rare))
        if not abs(self.start) < np.inf:
            raise ConfigError("selection.start", expected="a number", found=str(self.start))

    def per_step(self, batches: int) -> int:
        """How many of a log's batches are averaged before each step.

        Adam divides a gradient by its size. The first step keeps the gradients' order, by its epsilon alone; in the
        next ones what counts is how steady each is, and few large means are all as steady as can be. So a log too
        short for ``FEW_STEPS`` steps makes one, and a longer one at least that many, of fewer batches.

        >>> [FeatureGradientsSettings().per_step(batches) for batches in (6, 12, 48, 96, 1000)]
        [6, 1, 4, 8, 8]
        """
        if self.batches_per_step is not None:
            return self.batches_per_step
        if self.epochs == 1 and batches < FEW_STEPS:
            return max(1, batches)
        return max(1, min(_BATCHES_PER_STEP, batches * self.epochs // FEW_STEPS))


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step found.

    Args:
        loss: with the penalty, before the step.
        learnability: mean z of its batches.
        rows: of its batches.
    """

    loss: float
    learnability: float
    rows: int


class FeatureGradients:
    """A search that goes on: weights for the next batches, and steps by their gradients.

    Args:
        layout: the columns.
        standardization: of their log.
        settings: how.
    """

    def __init__(self, layout: Layout, standardization: Standardization, settings: FeatureGradientsSettings) -> None:
        self.layout, self.standardization, self.settings = layout, standardization, settings
        sparse_D = 1 / (standardization.variance_D * standardization.spectral)
        dense_C = np.full(len(layout.dense), 1 / standardization.spectral)
        self._per_score_A = np.concatenate([sparse_D, dense_C])
        self._field_A = layout.field_of_column()
        self._fields = _Adam(len(layout.fields) if settings.level != "values" else 0, settings.start)
        self._values = _Adam(layout.columns if settings.level != "fields" else 0, settings.start)

    def _scores_A(self) -> NDArray[np.float64]:
        """s of each column."""
        field_F, value_A = self._fields.score_P, self._values.score_P
        if not len(value_A):
            return field_F[self._field_A]
        return value_A * field_F[self._field_A] if len(field_F) else value_A

    def weights(self) -> Weights:
        """Where the next batches' gradients are taken."""
        by, sparse = self.standardization, self.layout.sparse
        weight_A = self._scores_A() * self._per_score_A
        return Weights(
            weight_D=weight_A[:sparse],
            mean_D=by.mean_D,
            shift=float(weight_A[:sparse] @ by.mean_D**2),
            dense_weight_C=weight_A[sparse:],
            dense_mean_C=by.dense_mean_C,
            dense_scale_C=by.dense_scale_C,
            label_mean=by.label_mean,
            label_scale=by.label_scale,
            coefficients=coefficients(self.settings.order),
        )

    def step(self, gradients: Iterable[BatchGradient]) -> Step:
        """One step of Adam by the mean of some batches' gradients, each by its rows; in the order given, to the bit."""
        sparse = self.layout.sparse
        slope_A = np.zeros(self.layout.columns)
        rows, z, common = 0, 0.0, 0.0
        for one in gradients:
            rows += one.rows
            z += one.rows * one.learnability
            common += one.rows * one.common
            slope_A[one.columns_U] += one.rows * one.gradient_U
            slope_A[sparse:] += one.rows * one.dense_C
        slope_A[:sparse] += common * self.standardization.mean_D**2
        z /= rows
        loss, by_z = binary_loss(z)
        slope_A *= self._per_score_A * (by_z / rows)
        how, both = self.settings, self.settings.level == "both"
        penalty = how.penalty / (2 if both else 1)
        bounds_F = self.layout.all_bounds_F[:-1]
        by_value_A = slope_A * self._fields.score_P[self._field_A] if both else slope_A
        if len(self._fields):
            slope_F = np.add.reduceat(slope_A * self._values.score_P if both else slope_A, bounds_F)
            loss += penalty * self._fields.step(slope_F, penalty, how.learning_rate)
        if len(self._values):
            loss += penalty * self._values.step(by_value_A, penalty, how.learning_rate)
        return Step(loss=loss, learnability=z, rows=rows)

    def scores(self) -> Scores:
        """What was found so far.

        Where only values have scores, a field's is the mean of its values', each by how many rows have it.
        """
        log_F, log_A = self._fields.logarithms(), self._values.logarithms()
        if not len(log_A):
            log_A = log_F[self._field_A]
        elif len(log_F):
            log_A = log_A + log_F[self._field_A]
        else:
            share_A = np.concatenate([self.standardization.mean_D, np.ones(len(self.layout.dense))])
            bounds_F = self.layout.all_bounds_F[:-1]
            whole_F = np.add.reduceat(share_A, bounds_F)
            with np.errstate(divide="ignore", invalid="ignore"):
                mean_F = np.add.reduceat(np.exp(log_A) * share_A, bounds_F) / whole_F
                log_F = np.where(whole_F > 0, np.log(mean_F), -np.inf)
        return Scores(layout=self.layout, log_field_F=log_F, log_column_D=log_A)


def fit(
    batches: Iterable[SparseBatch],
    layout: Layout,
    settings: FeatureGradientsSettings,
    *,
    statistics: Statistics | None = None,
    progress: Callable[[Step], object] | None = None,
) -> Scores:
    """Search in this process.

    Args:
        batches: read through once for each epoch, and before that once for ``statistics`` unless they are given: a
            list, or an object that starts again when it is iterated over. Some thousand rows each (docs/selection.md).
        layout: their columns.
        settings: how.
        statistics: of all batches.
        progress: called after each step.

    Raises:
        DataError: no batches, batches of other columns, or labels of one class.
    """
    if statistics is None:
        statistics = Statistics(layout)
        for batch in batches:
            statistics.add(batch)
    sample = list(islice(batches, SAMPLE))
    if not sample:
        raise DataError("batches to select features by", expected="at least one", found="none")
    standardization = Standardization.of(statistics, sample, rare=settings.rare, seed=settings.seed)
    del sample
    search, per_step = FeatureGradients(layout, standardization, settings), settings.per_step(statistics.batches)
    for _ in range(settings.epochs):
        rest = iter(batches)
        while group := list(islice(rest, per_step)):
            step = search.step(gradients(group, search.weights(), settings.threads))
            if progress is not None:
                progress(step)
    return search.scores()


def few_steps(steps: int) -> str | None:
    """What a person should know of scores that so many steps found, if anything."""
    if steps == 1:
        return "hint: only 1 step: scores rank by what each says by itself, and lie close together; more rows say more"
    if steps < FEW_STEPS:
        do = "leave batches_per_step out, or take more epochs"
        return f"hint: only {steps} steps, by which values are ranked badly; {do}"
    return None


def gradients(batches: Sequence[SparseBatch], weights: Weights, threads: int) -> list[BatchGradient]:
    """The gradient of each batch, in their order, by threads that take a batch each."""
    found: list[BatchGradient | None] = [None] * len(batches)
    numbers = iter(range(len(batches)))

    def work() -> None:
        place_D = np.zeros(len(weights.weight_D), np.int32)
        for number in numbers:
            found[number] = batch_gradient(batches[number], weights, place_D)

    share(work, min(threads, len(batches)))
    return [one for one in found if one is not None]


class _Adam:
    """Some scores s = sigmoid(2 x), found by Adam on x (Kingma & Ba 2015)."""

    def __init__(self, size: int, start: float) -> None:
        self.x_P, self.score_P = np.full(size, start), np.full(size, 0.5 + 0.5 * np.tanh(start))
        self._mean_P, self._square_P = np.zeros(size), np.zeros(size)
        self._steps = 0

    def __len__(self) -> int:
        return len(self.x_P)

    def step(self, slope_P: NDArray[np.float64], penalty: float, rate: float) -> float:
        """One, by the slope of the loss by s and a penalty on their mean, which is returned as it was."""
        self._steps += 1
        mean = float(self.score_P.mean())
        rate, spread = rate / (1 - _BETA1**self._steps), 1 / (1 - _BETA2**self._steps)
        _adam(slope_P, penalty, rate, spread, self.x_P, self.score_P, self._mean_P, self._square_P)
        return mean

    def logarithms(self) -> NDArray[np.float64]:
        """Of the scores."""
        return -np.logaddexp(0.0, -2.0 * self.x_P)


@compiled(nogil=True)
def _adam(slope_P, penalty, rate, spread, x_P, score_P, mean_P, square_P):  # type: ignore[no-untyped-def]
    for i in range(len(slope_P)):
        slope = (slope_P[i] * len(slope_P) + penalty) * (2.0 * score_P[i] * (1.0 - score_P[i]))
        mean_P[i] = _BETA1 * mean_P[i] + (1.0 - _BETA1) * slope
        square_P[i] = _BETA2 * square_P[i] + (1.0 - _BETA2) * slope * slope
        x_P[i] -= rate * mean_P[i] / (np.sqrt(square_P[i] * spread) + _EPSILON)
        score_P[i] = 1.0 / (1.0 + np.exp(-2.0 * x_P[i]))
