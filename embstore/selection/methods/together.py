"""Leave many out: what each value is worth where others are left out as well, and all of them share a vector.

    round 0    a value is replaced by the mean of its field           scores ──> the rest is dropped
    round r    dropped values are replaced by their field's shared vector, the mean of theirs; then one value at a time
               is dropped too, or put back                            scores ──> the rest is dropped

A pruned vocabulary gives what it drops one vector, which learns what those values have in common: that is no field's
mean. Where most rows of a rare item are negatives, an item costs nothing there that is dear beside the mean.

Suffixes: as ``embedded``; P pairs of a row and a column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.errors import ConfigError
from embstore.selection.methods.embedded import EmbeddedBatch, Entries, Replacements, Sums, Trained, vectors
from embstore.selection.methods.left_out import LeaveOneOutSettings, leave_one_out, loss_of_copies, pairs
from embstore.selection.methods.registry import check_setting, register, shares
from embstore.selection.scores import Scores


@dataclass(frozen=True, kw_only=True)
class LeaveOutTogetherSettings:
    """Of ``leave_out_together``.

    Args:
        keep: share of the values that are kept in the end, 0 to 1; scores are for it.
        rounds: after the first.
    """

    keep: float = 0.5
    rounds: int = 3

    def __post_init__(self) -> None:
        check_setting("rounds", self.rounds, least=1)
        if not 0 < self.keep < 1:
            raise ConfigError("selection.keep", expected="above 0, below 1", found=str(self.keep))


@register("leave_out_together", LeaveOutTogetherSettings)
def leave_out_together(source: Trained, settings: LeaveOutTogetherSettings) -> Scores:
    """Increase of the loss when a value joins those that are dropped, or less of it when it leaves them.

    Scores of fields are ``leave_one_out``'s; dense columns are left as they are.
    """
    alone = leave_one_out(source, LeaveOneOutSettings())
    worth_D = alone.log_column_D
    for _ in range(settings.rounds):
        dropped_D, shared_W = _dropped(source, worth_D, settings.keep)
        worth_D = source.total(_worth, dropped_D, shared_W).column_D
    found = shares(source.columns.layout, alone.field_F, worth_D)
    sparse = source.columns.layout.sparse
    found.log_column_D[sparse:] = alone.log_column_D[sparse:]
    return found


def _dropped(source: Trained, worth_D: NDArray[np.float64], keep: float) -> tuple[NDArray[np.bool_], Tensor]:
    """All values of a log but the best, and each field's mean vector of these; of all of its values where none is."""
    layout, table = source.columns.layout, source.model.table
    seen_D = source.total(_seen).column_D
    values_D = np.flatnonzero(seen_D[: layout.sparse])
    order = values_D[np.argsort(-worth_D[values_D], kind="stable")]
    dropped_D = np.zeros(layout.columns, np.bool_)
    dropped_D[order[round(keep * len(order)) :]] = True
    shared_W = Replacements.of(source, "mean").value_W.double()
    sum_W, rows = torch.zeros_like(shared_W), dict.fromkeys(layout.names, 0)
    for added in source.each(_sums_of_dropped, dropped_D):
        for name, (sum_of_field, count) in added.items():
            sum_W[table.slices[name]] += sum_of_field
            rows[name] += count
    for name, count in rows.items():
        if count:
            shared_W[table.slices[name]] = sum_W[table.slices[name]] / count
    return dropped_D, shared_W.float()


def _seen(source: Trained, batch: EmbeddedBatch, number: int) -> Sums:
    sums = Sums(source.columns.layout)
    for name, entries in batch.fields.items():
        sums.add(name, 0.0, entries.column_E, torch.ones(len(entries.column_E)))
    return sums


def _sums_of_dropped(
    source: Trained, batch: EmbeddedBatch, number: int, dropped_D: NDArray[np.bool_]
) -> dict[str, tuple[Tensor, int]]:
    """By field the sum of the vectors of dropped entries, and how many these are."""
    out = {}
    for name, entries in batch.fields.items():
        out_E = torch.from_numpy(dropped_D[entries.column_E])
        sum_W = vectors(source.model.table, batch, entries)[out_E].double().sum(dim=0)
        out[name] = sum_W, int(out_E.sum())
    return out


def _worth(source: Trained, batch: EmbeddedBatch, number: int, dropped_D: NDArray[np.bool_], shared_W: Tensor) -> Sums:
    """What each value is worth beside these."""
    table, sums = source.model.table, Sums(source.columns.layout)
    to_shared = {
        name: entries.share_E.to(shared_W)[:, None] * (shared_W[table.slices[name]] - vectors(table, batch, entries))
        for name, entries in batch.fields.items()
    }
    pruned = _pruned(source, batch, to_shared, dropped_D)
    base_B = pruned.loss_B(source.model.network, pruned.dense_BC, pruned.embedded_BW)
    for name, entries in batch.fields.items():
        at = table.slices[name]
        row_P, column_P, pair_E = _pairs_of(entries)
        sign_P = torch.from_numpy(np.where(dropped_D[column_P], -1.0, 1.0)).to(base_B)
        difference_PW = torch.zeros(len(row_P), to_shared[name].shape[1], device=base_B.device)
        difference_PW.index_add_(0, torch.from_numpy(pair_E).to(base_B.device), to_shared[name])
        difference_PW *= sign_P[:, None]
        losses = [
            loss_of_copies(
                source, pruned, row_P[start : start + source.rows], difference_PW[start : start + source.rows], at
            )
            for start in range(0, len(row_P), source.rows)
        ]
        if losses:
            sums.add(name, 0.0, column_P, sign_P * (torch.cat(losses) - base_B[torch.from_numpy(row_P)]))
    return sums


def _pruned(
    source: Trained, batch: EmbeddedBatch, to_shared: Mapping[str, Tensor], dropped_D: NDArray[np.bool_]
) -> EmbeddedBatch:
    embedded_BW = batch.embedded_BW.clone()
    for name, entries in batch.fields.items():
        out_E = torch.from_numpy(dropped_D[entries.column_E])
        embedded_BW[:, source.model.table.slices[name]].index_add_(
            0, entries.row_E[out_E].to(embedded_BW.device), to_shared[name][out_E]
        )
    return replace(batch, embedded_BW=embedded_BW)


def _pairs_of(entries: Entries) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    if entries.single:
        return entries.row_E.numpy(), entries.column_E, np.arange(len(entries.column_E))
    return pairs(entries)
