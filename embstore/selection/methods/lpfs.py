"""LPFS: a gate for each field that is next to 0 or 1, by a smoothed count of those that are not 0 (Guo et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embstore.ctr import CtrModel
from embstore.errors import ConfigError
from embstore.selection.batches import Layout
from embstore.selection.methods.gates import FieldGates, Search, train
from embstore.selection.methods.registry import check_setting, register, shares
from embstore.selection.scores import Scores


@dataclass(frozen=True, kw_only=True)
class LpfsSettings:
    """Of ``lpfs``.

    Args:
        penalty: on the sum of |x|; a step takes learning rate times this off each.
        learning_rate: of the gates.
        first, last: epsilon at the first step and the last; between them it falls by the same factor each step.
    """

    penalty: float = 1e-2
    learning_rate: float = 1e-3
    first: float = 0.1
    last: float = 1e-5

    def __post_init__(self) -> None:
        check_setting("penalty", self.penalty, least=0)
        for name in ("learning_rate", "first", "last"):
            check_setting(name, getattr(self, name), least=0, above=True)
        if self.last > self.first:
            raise ConfigError("selection.last", expected=f"at most first, {self.first}", found=str(self.last))


class _Gates(FieldGates):
    def __init__(self, model: CtrModel, layout: Layout, settings: LpfsSettings) -> None:
        super().__init__(model, layout)
        self.x_F = nn.Parameter(torch.ones(len(layout.fields)))
        self.settings, self.epsilon = settings, settings.first

    def gate_F(self) -> Tensor:
        square_F = self.x_F**2
        return square_F / (square_F + self.epsilon)

    def on_step(self, done: float) -> None:
        how = self.settings
        self.epsilon = how.first * (how.last / how.first) ** done

    @torch.no_grad()
    def on_stepped(self, rate: float) -> None:
        self.x_F.copy_(self.x_F.sign() * (self.x_F.abs() - rate * self.settings.penalty).clamp(min=0))


@register("lpfs", LpfsSettings)
def lpfs(source: Search, settings: LpfsSettings) -> Scores:
    """|x| of each field's gate x^2 / (x^2 + epsilon); its columns' are its own.

    Guo et al. 2022, LPFS (arXiv 2206.00267): a proximal step for |x|_1 after each gradient step, epsilon falling from
    0.1. The gradient steps are Adam's here; LPFS++ is not made.
    """
    layout = source.columns.layout
    gates = train(source, lambda model: _Gates(model, layout, settings), learning_rate=settings.learning_rate)
    assert isinstance(gates, _Gates)
    return shares(layout, gates.x_F.detach().double().abs().cpu().numpy())
