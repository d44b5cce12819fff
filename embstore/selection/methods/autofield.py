"""AutoField: keep or drop each field, decided by a controller that learns from validation rows (Wang et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embstore.ctr import CtrModel
from embstore.selection.batches import Layout
from embstore.selection.methods.gates import FieldGates, Search, train
from embstore.selection.methods.registry import check_setting, register, shares
from embstore.selection.scores import Scores


@dataclass(frozen=True, kw_only=True)
class AutoFieldSettings:
    """Of ``autofield``.

    Args:
        every: the controller takes a step after so many of the model's.
        learning_rate: of the controller.
        cooling: what the temperature falls by at each step, from 1 to 0.01.
    """

    every: int = 10
    learning_rate: float = 1e-3
    cooling: float = 5e-5

    def __post_init__(self) -> None:
        check_setting("every", self.every, least=1)
        check_setting("learning_rate", self.learning_rate, least=0, above=True)
        check_setting("cooling", self.cooling, least=0)


class _Gates(FieldGates):
    def __init__(self, model: CtrModel, layout: Layout, search: Search, settings: AutoFieldSettings) -> None:
        super().__init__(model, layout)
        self.choice_F2 = nn.Parameter(torch.full((len(layout.fields), 2), 0.5))  # drop, keep
        self.temperature, self.cooling = 1.0, settings.cooling * search.steps
        self.generator = torch.Generator().manual_seed(search.seed)

    def gate_F(self) -> Tensor:
        uniform_F2 = torch.rand(self.choice_F2.shape, generator=self.generator).clamp(min=1e-7, max=1 - 1e-7)
        gumbel_F2 = -torch.log(-torch.log(uniform_F2)).to(self.choice_F2)
        log_F2 = self.choice_F2.log_softmax(dim=1)
        return ((log_F2 + gumbel_F2) / self.temperature).softmax(dim=1)[:, 1]

    def on_step(self, done: float) -> None:
        self.temperature = max(0.01, 1 - self.cooling * done)


@register("autofield", AutoFieldSettings)
def autofield(source: Search, settings: AutoFieldSettings) -> Scores:
    """Probability that a field is kept; its columns' are its own.

    Wang et al. 2022, AutoField (arXiv 2204.09078): Gumbel-softmax of keep and drop at temperature max(0.01, 1 - 0.00005
    t); the model learns from training batches, the controller from validation batches, in turn, to first order as in
    DARTS.
    """
    layout = source.columns.layout
    gates = train(
        source,
        lambda model: _Gates(model, layout, source, settings),
        learning_rate=settings.learning_rate,
        alternate=settings.every,
    )
    assert isinstance(gates, _Gates)
    return shares(layout, gates.choice_F2.detach().double().softmax(dim=1)[:, 1].cpu().numpy())
