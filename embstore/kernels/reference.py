"""The table in plain torch: every device, dtype and optimizer; the kernel others are compared with.

Shape suffixes: B rows of the batch, T table rows of all lookups, R distinct ones, D dim, W output width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from embstore.kernels.kernel import Table, TwoPassKernel
from embstore.kernels.optimizer import update_rows
from embstore.kernels.plan import Lookup, Request


class ReferenceKernel(TwoPassKernel):
    """Gather, pool, and in the backward pass coalesce and update. Deterministic on CPU."""

    name = "reference"

    def forward(self, request: Request, table: Table) -> Tensor:
        return pooled(request, table.weight_ND.__getitem__)

    def update(self, request: Request, table: Table, grad_BW: Tensor, saved: Any) -> None:
        table.touch(request)
        dim = request.plan.dim
        grads = []
        for i, (lookup, rows, offsets) in enumerate(request.parts):
            grad_BD = grad_BW[:, i * dim : (i + 1) * dim]
            if offsets is not None:
                scale = _scales(lookup, offsets)
                grad_BD = grad_BD[_owners(offsets, len(rows))]
                grad_BD = grad_BD if scale is None else grad_BD * scale
            grads.append(grad_BD)
        if not len(request.rows_T):
            return
        rows_R, inverse_T = torch.unique(request.rows_T, return_inverse=True)
        grad_RD = torch.zeros(len(rows_R), dim, device=grad_BW.device).index_add_(
            0, inverse_T, torch.cat(grads).float()
        )
        update_rows(
            table.weight_ND,
            table.state,
            table.optimizer,
            table.learning_rate,
            table.step,
            rows_R,
            grad_RD,
            rounding_seed=table.rounding_seed + 2 * table.step,
            first_row=table.first_row,
        )


def pooled(request: Request, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """The output of a request, float32 ``[B, W]``, from ``gather``: int64 rows ``[T]`` -> their vectors ``[T, D]``."""
    dim = request.plan.dim
    out_BW = torch.empty(request.tokens.rows, request.plan.width, device=request.tokens.values_N.device)
    for i, (lookup, rows, offsets) in enumerate(request.parts):
        pooled_BD = out_BW[:, i * dim : (i + 1) * dim]
        values_TD = gather(rows)
        if offsets is None:
            pooled_BD.copy_(values_TD)
            continue
        scale = _scales(lookup, offsets)
        # As double, so that the sum of a list is the same whatever kernel or batch it is in, to a rounding.
        values_TD = values_TD.double() if scale is None else values_TD.double() * scale
        sums = torch.zeros(pooled_BD.shape, dtype=torch.float64, device=out_BW.device)
        pooled_BD.copy_(sums.index_add_(0, _owners(offsets, len(rows)), values_TD))
    return out_BW


def _owners(offsets: Tensor, count: int) -> Tensor:
    """The batch row of each value of a list feature."""
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=count)


def _scales(lookup: Lookup, offsets: Tensor) -> Tensor | None:
    """1 / length for each value of an averaged list ``[T, 1]``; ``None`` for sums."""
    if not lookup.mean:
        return None
    lengths = offsets.diff()
    return (1.0 / lengths.float()).repeat_interleave(lengths)[:, None]
