"""The L2 penalty on the whole table, exact, yet paid only for the rows a batch touches.

A penalty ``l2/2 · |table|²`` pulls every row toward zero at every step. A fused sparse optimizer sees touched rows
only, and sweeping the table at each step would cost more than training. But between two touches a row's step size
``a = lr_t / (sqrt(v) + eps)`` changes with the schedule ``lr_t`` alone, since ``v`` waits for the next gradient. So
with decay written as ``w *= exp(-l2 · a)`` (a gradient step on the penalty, to first order, that can't overshoot
zero), the steps missed since the last touch are one factor,

    w *= exp(-l2 · (S_now - S_row) / (sqrt(v) + eps)),        S = sum of the learning rates of all steps so far,

applied just before the row is read: the result is that of sweeping the whole table after each step's update.
Between two touches rows in memory are stale; ``Table.settle`` brings all of them up to date (before evaluation,
before publishing).

The decay follows the optimizer's own step size, as the gradient of a penalty in the loss would (unlike the
decoupled decay of AdamW). Rarely seen rows have small ``v``, so they are pulled hardest: what a CTR table needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from embstore.kernels.optimizer import TableOptimizer, round_stochastically, step_sizes

SETTLE_ROWS = 1 << 16  # rows brought up to date together, so that settling needs little memory


def catch_up(
    weight_ND: Tensor,
    sums: Tensor | None,
    paid_N: Tensor,
    owed: float,
    optimizer: TableOptimizer,
    rows_R: Tensor,
    *,
    rounding_seed: int,
    first_row: int = 0,
) -> None:
    """Apply to ``rows_R`` (distinct) the decay of the steps since they were last brought up to date, in place.

    Args:
        weight_ND: the table.
        sums: the optimizer's ``sum``, or ``None`` when it keeps none.
        paid_N: float64 ``[rows]``: the sum of learning rates up to which each row has decayed.
        owed: that sum now.
        rounding_seed: of the stochastic rounding of narrow dtypes, in which a small decay would else be lost.
        first_row: as for ``update_rows``.
    """
    due = (owed - paid_N[rows_R])[:, None]
    rate = step_sizes(optimizer, 1.0, None if sums is None else sums[rows_R])
    factor = torch.exp(-optimizer.l2 * due * rate)
    decayed = (weight_ND[rows_R].double() * factor).float()
    weight_ND[rows_R] = round_stochastically(decayed, weight_ND.dtype, rows_R + first_row, rounding_seed)
    paid_N[rows_R] = owed
