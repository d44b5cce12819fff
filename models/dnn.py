"""DNN: an MLP over the concatenated inputs; the control that other models must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .layers import MlpSettings, concatenate, linear, mlp
from .registry import register


@dataclass(frozen=True, kw_only=True)
class DnnSettings(MlpSettings):
    """The hidden layers, see ``MlpSettings``; without any (``hidden=()``) it is a logistic regression."""


@register("dnn")
class Dnn(nn.Module):
    """MLP on [dense, embedded]; ``forward(dense_BD, embedded_BW) -> logits_B``.

    Source: the deep part of Cheng et al. 2016, Wide & Deep Learning for Recommender Systems, section 3.2.
    """

    settings_class = DnnSettings

    def __init__(self, settings: DnnSettings, *, dense_width: int, widths: Sequence[int]) -> None:
        super().__init__()
        width = dense_width + sum(widths)
        self.deep = mlp(width, settings)
        self.head = linear((width, *settings.hidden)[-1], 1)

    def forward(self, dense_BD: Tensor, embedded_BW: Tensor) -> Tensor:
        return self.head(self.deep(concatenate(dense_BD, embedded_BW))).squeeze(1)
