"""Permutation importance: how much worse a trained model is on rows whose field is another row's.

Suffixes: as ``embedded``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from embstore.selection.methods.embedded import EmbeddedBatch, Sums, Trained
from embstore.selection.methods.registry import check_setting, register, shares
from embstore.selection.scores import Scores


@dataclass(frozen=True, kw_only=True)
class PermutationSettings:
    """Of ``permutation``.

    Args:
        repeats: permutations of each field of each batch.
        seed: of the permutations.
    """

    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_setting("repeats", self.repeats, least=1)
        check_setting("seed", self.seed, least=0)


@register("permutation", PermutationSettings)
def permutation(source: Trained, settings: PermutationSettings) -> Scores:
    """Increase of the loss when a field's values change places among the rows of a batch.

    Breiman 2001, Random Forests, section 10; Fisher, Rudin & Dominici 2019. A value's is the increase summed
    over the rows that had it (of a list, in equal parts). Below 0 counts as 0.
    """
    sums = source.total(_worse, settings)
    return shares(source.columns.layout, sums.field_F, sums.column_D)


def draws(seed: int, number: int) -> torch.Generator:
    """The random numbers of a batch."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0]))


def _worse(source: Trained, batch: EmbeddedBatch, number: int, settings: PermutationSettings) -> Sums:
    layout, network, generator = source.columns.layout, source.model.network, draws(settings.seed, number)
    sums = Sums(layout)
    base_B = batch.loss_B(network, batch.dense_BC, batch.embedded_BW)
    rows = len(base_B)
    for _ in range(settings.repeats):
        for name, entries in batch.fields.items():
            at, order_B = source.model.table.slices[name], torch.randperm(rows, generator=generator)
            embedded_BW = batch.embedded_BW.clone()
            embedded_BW[:, at] = batch.embedded_BW[order_B, at]
            worse_B = (batch.loss_B(network, batch.dense_BC, embedded_BW) - base_B).double()
            length_B = torch.bincount(entries.row_E, minlength=rows).to(worse_B)
            sums.add(name, worse_B.sum(), entries.column_E, (worse_B / length_B)[entries.row_E])
        worse = []
        for c in range(len(layout.dense)):
            dense_BC = batch.dense_BC.clone()
            dense_BC[:, c] = batch.dense_BC[torch.randperm(rows, generator=generator), c]
            worse.append((batch.loss_B(network, dense_BC, batch.embedded_BW) - base_B).double().sum())
        sums.add_dense(torch.stack(worse) if worse else torch.empty(0))
    return sums
