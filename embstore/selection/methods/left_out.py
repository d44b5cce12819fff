"""Leave one out: how much worse a trained model is on the rows that have a value when that value is replaced.

A row has one value of a field, so one pass of the network with that field replaced in all rows says what each of the
field's values is worth: the rows' losses, added up by value. Of a list each distinct value of a row is replaced by
itself, in a copy of the row.

Suffixes: as ``embedded``; P pairs of a row and a column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.selection.methods.embedded import EmbeddedBatch, Entries, Replacements, Sums, Trained, vectors
from embstore.selection.methods.registry import register, shares
from embstore.selection.scores import Scores


@dataclass(frozen=True, kw_only=True)
class LeaveOneOutSettings:
    """Of ``leave_one_out``.

    Args:
        replacement: of a value: ``"mean"`` of its field's, or its field's ``"pruned"`` token.
    """

    replacement: str = "mean"


@register("leave_one_out", LeaveOneOutSettings)
def leave_one_out(source: Trained, settings: LeaveOneOutSettings) -> Scores:
    """Exact increase of the loss, summed over all rows, when a value is replaced wherever it occurs.

    A field's is that of replacing its vector by the mean of its rows'. Below 0 counts as 0.
    """
    by = Replacements.of(source, settings.replacement)
    sums = source.total(_worse, by, settings.replacement == "mean")
    return shares(source.columns.layout, sums.field_F, sums.column_D)


def _worse(source: Trained, batch: EmbeddedBatch, number: int, by: Replacements, alike: bool) -> Sums:
    """What a batch loses; ``alike``: values are replaced by what their field is, where rows have one each."""
    layout, table, network = source.columns.layout, source.model.table, source.model.network
    sums = Sums(layout)
    base_B = batch.loss_B(network, batch.dense_BC, batch.embedded_BW)
    for name, entries in batch.fields.items():
        at = table.slices[name]
        embedded_BW = batch.embedded_BW.clone()
        embedded_BW[:, at] = by.field_W[at]
        worse_B = (batch.loss_B(network, batch.dense_BC, embedded_BW) - base_B).double()
        if entries.single and alike:
            sums.add(name, worse_B.sum(), entries.column_E, worse_B)
            continue
        difference_EW = entries.share_E.to(base_B)[:, None] * (by.value_W[at] - vectors(table, batch, entries))
        row_P, column_P, pair_E = pairs(entries)
        difference_PW = torch.zeros(len(row_P), difference_EW.shape[1], device=base_B.device)
        difference_PW.index_add_(0, torch.from_numpy(pair_E).to(base_B.device), difference_EW)
        losses = [
            loss_of_copies(
                source, batch, row_P[start : start + source.rows], difference_PW[start : start + source.rows], at
            )
            for start in range(0, len(row_P), source.rows)
        ]
        of_P = torch.cat(losses) - base_B[torch.from_numpy(row_P)] if losses else torch.empty(0)
        sums.add(name, worse_B.sum(), column_P, of_P)
    worse = []
    for c in range(len(layout.dense)):
        dense_BC = batch.dense_BC.clone()
        dense_BC[:, c] = by.dense_C[c]
        worse.append((batch.loss_B(network, dense_BC, batch.embedded_BW) - base_B).double().sum())
    sums.add_dense(torch.stack(worse) if worse else torch.empty(0))
    return sums


def pairs(entries: Entries) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of each distinct pair of them, and the pair of each entry."""
    both_E2 = np.stack([entries.row_E.numpy(), entries.column_E], axis=1)
    both_P2, pair_E = np.unique(both_E2, axis=0, return_inverse=True)
    return both_P2[:, 0], both_P2[:, 1], pair_E.reshape(-1)


def loss_of_copies(
    source: Trained, batch: EmbeddedBatch, row_P: NDArray[np.int64], difference_PW: Tensor, at: slice
) -> Tensor:
    """Of copies of rows with a difference to one field's vector."""
    rows = torch.from_numpy(row_P)
    embedded_PW = batch.embedded_BW[rows]
    embedded_PW[:, at] += difference_PW
    copies = EmbeddedBatch(
        dense_BC=batch.dense_BC[rows],
        embedded_BW=embedded_PW,
        label_B=batch.label_B[rows],
        weight_B=batch.weight_B[rows],
        fields={},
    )
    return copies.loss_B(source.model.network, copies.dense_BC, copies.embedded_BW)
