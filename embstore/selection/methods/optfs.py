"""OptFS: a gate for each value, learnt with the model and made harder step by step (Lyu et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from embstore.ctr import CtrModel
from embstore.selection.batches import Layout
from embstore.selection.methods.gates import Search, ValueGates, train
from embstore.selection.methods.registry import check_setting, register, shares
from embstore.selection.scores import Scores


@dataclass(frozen=True, kw_only=True)
class OptFsSettings:
    """Of ``optfs``.

    Args:
        start: of the gates' parameters, before the sigmoid.
        temperature: what they are multiplied by at the last step; 1 at the first.
        penalty: on the sum of the gates.
        learning_rate: of the gates.
    """

    start: float = 0.5
    temperature: float = 200.0
    penalty: float = 1e-7
    learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        check_setting("temperature", self.temperature, least=1)
        check_setting("penalty", self.penalty, least=0)
        check_setting("learning_rate", self.learning_rate, least=0, above=True)
        check_setting("start", self.start, least=-np.inf, above=True)


class _Gates(ValueGates):
    def __init__(self, model: CtrModel, layout: Layout, settings: OptFsSettings) -> None:
        super().__init__(model, layout)
        self.x_A = nn.Parameter(torch.full((layout.columns,), settings.start))
        self.scale = 1 / float(torch.sigmoid(torch.tensor(settings.start)))
        self.settings, self.temperature = settings, 1.0

    def gate_A(self) -> Tensor:
        return torch.sigmoid(self.x_A * self.temperature) * self.scale

    def penalty(self) -> Tensor:
        return self.settings.penalty * torch.sigmoid(self.x_A * self.temperature).sum()

    def on_step(self, done: float) -> None:
        self.temperature = self.settings.temperature**done


@register("optfs", OptFsSettings)
def optfs(source: Search, settings: OptFsSettings) -> Scores:
    """sigmoid(x) of each value's gate, 0 for values not seen; a field's is the mean over its rows' values.

    Lyu et al. 2023, Optimizing Feature Set for Click-Through Rate Prediction (arXiv 2301.10909): g = sigmoid(x tau) /
    sigmoid(x_0), tau = gamma^(t / T), loss + penalty |g|_1. Here t counts steps, not epochs, and gates keep their order
    by x, not by whether x > 0. Training again without the rest, from weights set back, is left to who selects.
    """
    layout = source.columns.layout
    gates = train(source, lambda model: _Gates(model, layout, settings), learning_rate=settings.learning_rate)
    assert isinstance(gates, _Gates)
    open_A = torch.sigmoid(gates.x_A.detach().double()).cpu().numpy()
    rows_A = gates.rows_A
    rows_A[layout.sparse :] = 1
    open_A[rows_A == 0] = 0.0
    bounds_F = layout.all_bounds_F[:-1]
    field_F = np.add.reduceat(open_A * rows_A, bounds_F) / np.maximum(np.add.reduceat(rows_A, bounds_F), 1)
    return shares(layout, field_F, open_A)
