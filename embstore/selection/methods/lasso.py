"""L1-penalised logistic regression of the label on all columns, by accelerated proximal gradients.

    minimise  mean_n log(1 + exp(-y_n (x_n w + b)))  +  penalty |w|_1          y_n: 1 or -1; b is not penalised

Steps differ by column. For a matrix X of any sign, |X|'|X| is at most the diagonal of |X|'|X| 1 (both as quadratic
forms; De Pierro 1995), and the loss curves at most 1/4 of it: so 4 / (mean of |x_nj| sum_k |x_nk|) is a safe step for
column j, whose size doesn't shrink with how rare the column is. In these units it is FISTA (Beck & Teboulle 2009, eqs.
4.1 to 4.3), restarted where its momentum points uphill (O'Donoghue & Candes 2015, their gradient scheme).

Suffixes: N rows of a batch, E entries, C dense columns, D sparse columns, A all columns and the intercept, last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError
from embstore.hashing import compiled
from embstore.selection.batches import Layout, SparseBatch
from embstore.selection.learnability import standardised
from embstore.selection.methods.counts import Counts
from embstore.selection.methods.registry import Rows, check_setting, register, shares
from embstore.selection.scores import Scores


@dataclass(frozen=True, kw_only=True)
class LassoSettings:
    """Of ``lasso``.

    Args:
        penalty: as a share of the least one at which all weights are 0; above 0, at most 1.
        steps: at most.
        tolerance: stop when no weight's optimality condition is off by more than this share of the penalty.
    """

    penalty: float = 0.03
    steps: int = 300
    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        for name in ("penalty", "tolerance"):
            check_setting(name, getattr(self, name), least=0, above=True)
        check_setting("steps", self.steps, least=1)
        if self.penalty > 1:
            raise ConfigError("selection.penalty", expected="at most 1", found=str(self.penalty))


@register("lasso", LassoSettings)
def lasso(source: Rows, settings: LassoSettings) -> Scores:
    """|weight| of a column; of a field, the deviation over the log's rows of what its columns add to the logit.

    Tibshirani 1996, with the logistic loss. The batches are held in memory. The deviation is that of a field with one
    value a row, and of a list as if its values were rows.
    """
    batches = list(source.batches)
    counts = Counts.of(Rows(batches=batches, layout=source.layout))
    weight_A, _ = lasso_weights(batches, counts, settings)
    sparse, bounds_F = source.layout.sparse, source.layout.bounds_F[:-1]
    weight_D, share_D = weight_A[:sparse], counts.rows_D / counts.rows
    spread_F = np.empty(0)
    if len(bounds_F):
        mean_F = np.add.reduceat(share_D * weight_D, bounds_F)
        spread_F = np.sqrt(np.maximum(np.add.reduceat(share_D * weight_D**2, bounds_F) - mean_F**2, 0))
    dense_C = np.abs(weight_A[sparse:-1])
    return shares(source.layout, np.concatenate([spread_F, dense_C]), np.abs(weight_A[:-1]))


def lasso_weights(
    batches: list[SparseBatch], counts: Counts, settings: LassoSettings
) -> tuple[NDArray[np.float64], float]:
    """Weights of all columns (dense ones standardised) and the intercept, last; and the penalty.

    Args:
        batches: all rows.
        counts: of them.
        settings: how.
    """
    problem = _Problem(counts)
    rate = counts.positives / counts.rows
    weight_A = np.zeros(counts.layout.columns + 1)
    weight_A[-1] = np.log(rate / (1 - rate))
    gradient_A, curvature_A = problem.gradient(batches, weight_A, curvature=True)
    penalty = settings.penalty * float(np.abs(gradient_A[:-1]).max())
    penalty_A = np.full(len(weight_A), penalty)
    penalty_A[-1] = 0.0
    step_A = np.divide(1.0, curvature_A, out=np.zeros_like(curvature_A), where=curvature_A > 0)
    ahead_A, momentum = weight_A, 1.0
    for _ in range(settings.steps):
        gradient_A, _ = problem.gradient(batches, ahead_A)
        to_A = ahead_A - step_A * gradient_A
        new_A = np.sign(to_A) * np.maximum(np.abs(to_A) - step_A * penalty_A, 0)
        off_A = curvature_A * (new_A - ahead_A)  # 0 where the optimality condition holds
        uphill = off_A @ (new_A - weight_A) < 0
        next_momentum = 1.0 if uphill else (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead_A = new_A if uphill else new_A + (momentum - 1) / next_momentum * (new_A - weight_A)
        weight_A, momentum = new_A, next_momentum
        if np.abs(off_A).max() <= settings.tolerance * penalty:
            break
    return weight_A, penalty


class _Problem:
    """The loss of rows, by its gradient."""

    def __init__(self, counts: Counts) -> None:
        rows_C, _, sum_C, square_C, _ = counts.dense_5C
        self.layout: Layout = counts.layout
        self.rows = counts.rows
        self.mean_C = sum_C / np.maximum(rows_C, 1)
        variance_C = square_C / np.maximum(rows_C, 1) - self.mean_C**2
        self.scale_C = np.sqrt(np.where(variance_C > 1e-12 * self.mean_C**2, variance_C, 1.0))

    def gradient(
        self, batches: list[SparseBatch], weight_A: NDArray[np.float64], *, curvature: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Gradient, and where asked for the bound of the curvature, of the mean loss."""
        sparse = self.layout.sparse
        weight_D, weight_C, intercept = weight_A[:sparse], weight_A[sparse:-1], weight_A[-1]
        gradient_A, curvature_A = np.zeros(len(weight_A)), np.zeros(len(weight_A))
        for batch in batches:
            x_NC = standardised(batch.dense_NC, self.mean_C, self.scale_C)
            logit_N = x_NC @ weight_C + intercept
            _add_weights(batch.indptr_N, batch.indices_E, weight_D, logit_N)
            error_N = 1 / (1 + np.exp(-logit_N)) - batch.labels_N
            self._add(batch, x_NC, error_N, gradient_A)
            if curvature:
                x_NC = np.abs(x_NC)
                self._add(batch, x_NC, 0.25 * (np.diff(batch.indptr_N) + x_NC.sum(axis=1) + 1), curvature_A)
        return gradient_A / self.rows, curvature_A / self.rows

    def _add(
        self, batch: SparseBatch, x_NC: NDArray[np.floating], of_N: NDArray[np.floating], out_A: NDArray[np.float64]
    ) -> None:
        """Add X' of_N."""
        sparse = self.layout.sparse
        _add_rows(batch.indptr_N, batch.indices_E, of_N.astype(np.float64), out_A[:sparse])
        out_A[sparse:-1] += of_N @ x_NC
        out_A[-1] += of_N.sum()


@compiled(nogil=True)
def _add_weights(indptr_N, indices_E, weight_D, logit_N):  # type: ignore[no-untyped-def]
    for n in range(len(logit_N)):
        for e in range(indptr_N[n], indptr_N[n + 1]):
            logit_N[n] += weight_D[indices_E[e]]


@compiled(nogil=True)
def _add_rows(indptr_N, indices_E, of_N, out_D):  # type: ignore[no-untyped-def]
    for n in range(len(of_N)):
        for e in range(indptr_N[n], indptr_N[n + 1]):
            out_D[indices_E[e]] += of_N[n]
