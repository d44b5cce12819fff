"""What leaving a field or value out would change of the loss, to first order: one pass with gradients, no retraining.

    g_BW       gradient of each row's loss by its vectors
    sfs        |sum over a batch's rows of g . e|              e: the vectors, as if a mask of 1 were on them
    shark      sum over rows of |g . (mean - e)|               as if they were replaced

A value's is the same with the sums over its entries alone. Suffixes: as ``embedded``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from embstore.selection.methods.embedded import EmbeddedBatch, Replacements, Sums, Trained, vectors
from embstore.selection.methods.registry import register, shares
from embstore.selection.scores import Scores


def gradients(network: nn.Module, batch: EmbeddedBatch) -> tuple[Tensor, Tensor]:
    """Of each row's loss by its own vectors, ``[B, W]``, and dense columns, ``[B, C]``; the network is in eval mode."""
    embedded_BW = batch.embedded_BW.detach().requires_grad_()
    dense_BC = batch.dense_BC.detach().requires_grad_()
    with torch.enable_grad():
        loss = batch.loss_B(network, dense_BC, embedded_BW).sum()
        g_BW, g_BC = torch.autograd.grad(loss, [embedded_BW, dense_BC], allow_unused=True)
    return (
        torch.zeros_like(embedded_BW) if g_BW is None else g_BW,
        torch.zeros_like(dense_BC) if g_BC is None else g_BC,
    )


@dataclass(frozen=True, kw_only=True)
class SfsSettings:
    """``sfs`` has none."""


@register("sfs", SfsSettings)
def sfs(source: Trained, settings: SfsSettings) -> Scores:
    """|d loss / d mask| at a mask of 1 on each field (on each value), of each batch's loss; the mean over batches.

    Wang et al. 2023, Single-shot Feature Selection for Multi-task Recommendations, for one task; the absolute value is
    taken batch by batch, as in ERASE (Jia et al. 2024).
    """
    sums = source.total(_along)
    return shares(source.columns.layout, sums.field_F, sums.column_D)


def _along(source: Trained, batch: EmbeddedBatch, number: int) -> Sums:
    table, sums = source.model.table, Sums(source.columns.layout)
    g_BW, g_BC = gradients(source.model.network, batch)
    for name, entries in batch.fields.items():
        at = table.slices[name]
        along_B = (g_BW[:, at] * batch.embedded_BW[:, at]).sum(dim=1)
        along_E = (g_BW[entries.row_E, at] * vectors(table, batch, entries)).sum(dim=1) * entries.share_E.to(g_BW)
        sums.add(name, along_B.double().sum(), entries.column_E, along_E)
    sums.add_dense((g_BC * batch.dense_BC).double().sum(dim=0))
    sums.field_F, sums.column_D = np.abs(sums.field_F), np.abs(sums.column_D)
    return sums


@dataclass(frozen=True, kw_only=True)
class SharkSettings:
    """Of ``shark``.

    Args:
        replacement: of a value: ``"mean"`` of its field's, or its field's ``"pruned"`` token.
        signed: add changes with their signs, and take sums below 0 for 0.
    """

    replacement: str = "mean"
    signed: bool = False


@register("shark", SharkSettings)
def shark(source: Trained, settings: SharkSettings) -> Scores:
    """First-order change of the loss when a field's vector becomes its mean over the rows, or a value's does.

    Zhang et al. 2023, SHARK (arXiv 2308.09395), F-Permutation: the Taylor expansion of the loss of rows whose field is
    drawn anew, and the draw replaced by its expectation. Each row's change is taken absolutely, as in ERASE (Jia et al.
    2024): with their signs those of a value's rows cancel where training has converged, whatever the value is worth.
    """
    by = Replacements.of(source, settings.replacement)
    sums = source.total(_change, by, settings.signed)
    return shares(source.columns.layout, sums.field_F, sums.column_D)


def _change(source: Trained, batch: EmbeddedBatch, number: int, by: Replacements, signed: bool) -> Sums:
    table, sums = source.model.table, Sums(source.columns.layout)

    def change(g: Tensor, difference: Tensor) -> Tensor:
        along = (g * difference).sum(dim=1)
        return along if signed else along.abs()

    g_BW, g_BC = gradients(source.model.network, batch)
    for name, entries in batch.fields.items():
        at = table.slices[name]
        of_B = change(g_BW[:, at], by.field_W[at] - batch.embedded_BW[:, at])
        share_E1 = entries.share_E.to(g_BW)[:, None]
        of_E = change(g_BW[entries.row_E, at], share_E1 * (by.value_W[at] - vectors(table, batch, entries)))
        sums.add(name, of_B.double().sum(), entries.column_E, of_E)
    along_BC = g_BC * (by.dense_C - batch.dense_BC)
    sums.add_dense((along_BC if signed else along_BC.abs()).double().sum(dim=0))
    return sums
