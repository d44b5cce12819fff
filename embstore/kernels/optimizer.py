"""The table's optimizer: its settings, the state it keeps beside the rows, and one update of distinct rows.

A row hit by many features (or twice by one) in a batch is updated once, with the sum of its gradients, as FBGEMM's
table-batched embedding does. The formulas are FBGEMM's, so that kernels can be exchanged under a run:

    sgd               w -= lr g
    adagrad           v += g²              w -= lr g / (sqrt(v) + eps)           v: one number per weight
    rowwise_adagrad   v += mean(g²)        w -= lr g / (sqrt(v) + eps)           v: one number per row
    adam              m, v moments of g    w -= lr m̂ / (sqrt(v̂) + eps)           touched rows only ("lazy" Adam)

``l2`` adds the penalty ``l2/2 · |table|²``, which acts on *every* row at *every* step, touched or not. See
``penalty.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from embstore.errors import ConfigError

OPTIMIZERS = ("rowwise_adagrad", "adagrad", "adam", "sgd")


@dataclass(frozen=True, kw_only=True)
class TableOptimizer:
    """Settings of the optimizer that is fused into the table's backward pass.

    Args:
        name: ``rowwise_adagrad`` (Gupta et al. 2014; FBGEMM's default for tables), ``adagrad``, ``adam`` or ``sgd``.
        learning_rate: at the start; a schedule may change it between steps.
        eps: added to the root of the second moment.
        beta1, beta2: of Adam.
        l2: strength of the penalty on the whole table; 0 is none.
    """

    name: Literal["rowwise_adagrad", "adagrad", "adam", "sgd"] = "rowwise_adagrad"
    learning_rate: float = 0.02
    eps: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999
    l2: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ConfigError("table optimizer", expected=" or ".join(OPTIMIZERS), found=repr(self.name))
        if not 0 < self.eps < 1:
            raise ConfigError("table optimizer: eps", expected="more than 0, less than 1", found=str(self.eps))
        for setting in ("learning_rate", "l2"):
            if not 0 <= getattr(self, setting) < float("inf"):
                raise ConfigError(
                    f"table optimizer: {setting}", expected="0 or more", found=str(getattr(self, setting))
                )
        for setting in ("beta1", "beta2"):
            if not 0 <= getattr(self, setting) < 1:
                raise ConfigError(f"table optimizer: {setting}", expected="0 to 1", found=str(getattr(self, setting)))

    def state(self, num_rows: int, dim: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """Fresh state: ``sum`` float32 ``[rows]`` or ``[rows, dim]``; Adam: ``exp_avg``, ``exp_avg_sq``."""
        kinds: dict[str, dict[str, tuple[int, ...]]] = {
            "rowwise_adagrad": {"sum": (num_rows,)},
            "adagrad": {"sum": (num_rows, dim)},
            "adam": {"exp_avg": (num_rows, dim), "exp_avg_sq": (num_rows, dim)},
            "sgd": {},
        }
        return {name: torch.zeros(shape, device=device) for name, shape in kinds[self.name].items()}


def step_sizes(optimizer: TableOptimizer, learning_rate: float, sums: Tensor | None) -> Tensor | float:
    """What a gradient is multiplied by, for rows whose ``sum`` is given: ``[n, 1]`` or ``[n, dim]``, or one number.

    Adam has no such number without its first moment; like AdamW's decoupled decay it takes the learning rate.
    """
    if sums is None or optimizer.name in ("sgd", "adam"):
        return learning_rate
    if sums.dim() == 1:
        sums = sums[:, None]
    return learning_rate / (sums.sqrt() + optimizer.eps)


def update_rows(
    weight_ND: Tensor,
    state: dict[str, Tensor],
    optimizer: TableOptimizer,
    learning_rate: float,
    step: int,
    rows_R: Tensor,
    grad_RD: Tensor,
    rounding_seed: int = 0,
    first_row: int = 0,
) -> None:
    """Update distinct rows in place.

    Args:
        weight_ND: float32, float16 or bfloat16; the last two are rounded stochastically, so that small steps add up.
        state: as ``TableOptimizer.state`` made it.
        step: number of this update, from 1 (Adam's bias correction).
        rows_R: int64, distinct.
        grad_RD: float32, summed over all hits of a row.
        rounding_seed: of this step's stochastic rounding.
        first_row: number of ``weight_ND``'s first row in the whole table.
    """
    if optimizer.name == "adam":
        exp_avg = state["exp_avg"][rows_R].lerp_(grad_RD, 1 - optimizer.beta1)
        exp_avg_sq = (
            state["exp_avg_sq"][rows_R].mul_(optimizer.beta2).addcmul_(grad_RD, grad_RD, value=1 - optimizer.beta2)
        )
        state["exp_avg"][rows_R], state["exp_avg_sq"][rows_R] = exp_avg, exp_avg_sq
        unbiased = exp_avg / (1 - optimizer.beta1**step)
        change = learning_rate * unbiased / ((exp_avg_sq / (1 - optimizer.beta2**step)).sqrt_() + optimizer.eps)
    elif optimizer.name == "sgd":
        change = learning_rate * grad_RD
    else:
        squares = grad_RD.square()
        sums = state["sum"][rows_R] + (squares.mean(dim=1) if optimizer.name == "rowwise_adagrad" else squares)
        state["sum"][rows_R] = sums
        change = grad_RD * step_sizes(optimizer, learning_rate, sums)
    new = weight_ND[rows_R].float() - change
    weight_ND[rows_R] = round_stochastically(new, weight_ND.dtype, rows_R + first_row, rounding_seed)


def round_stochastically(values_RD: Tensor, dtype: torch.dtype, rows_R: Tensor, seed: int) -> Tensor:
    """Round float32 to ``dtype`` up or down at random, so that the expected value is the value (Gupta et al. 2015).

    The random number of a weight depends on ``(seed, row, column)`` alone, never on the order of the work.
    """
    if dtype == torch.float32:
        return values_RD
    nearest = values_RD.to(dtype)
    error = values_RD - nearest.float()
    toward = torch.where(error > 0, torch.inf, -torch.inf).to(dtype)
    other = torch.nextafter(nearest, toward)
    gap = (other.float() - nearest.float()).abs()
    columns = torch.arange(values_RD.shape[1], device=values_RD.device)
    uniform = _uniform(rows_R[:, None] * values_RD.shape[1] + columns, seed)
    # A value at the end of the range has no finite neighbour beyond it: it stays.
    return torch.where((uniform * gap < error.abs()) & other.isfinite(), other, nearest)


def _uniform(counter: Tensor, seed: int) -> Tensor:
    """Numbers in [0, 1) from int64 counters: 24 bits of a 31-bit integer hash (two rounds of xorshift-multiply)."""
    x = (counter ^ (counter >> 31) ^ ((seed * 0x9E3779B1) & 0x7FFFFFFF)) & 0x7FFFFFFF
    for factor in (0x7FEB352D, 0x046CA68B):
        x = ((x ^ (x >> 15)) * factor) & 0x7FFFFFFF
    return ((x ^ (x >> 16)) & 0xFFFFFF).float() / 2**24
