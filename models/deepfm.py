"""DeepFM: a factorization machine and an MLP over the same embeddings, summed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embstore.errors import ConfigError

from .layers import FeatureVectors, MlpSettings, check_count, concatenate, linear, mlp
from .registry import register


@dataclass(frozen=True, kw_only=True)
class DeepFmSettings(MlpSettings):
    """The FM's width and the hidden layers of ``MlpSettings``; ``hidden=()`` leaves the FM alone.

    Args:
        interaction_dim: width of the vectors the FM multiplies; the features' smallest width when ``None``. Features of
            another width are projected to it, see ``FeatureVectors``.

    Raises:
        ConfigError: a value out of its range.
    """

    interaction_dim: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interaction_dim is not None:
            check_count("interaction_dim", self.interaction_dim)


@register("deepfm")
class DeepFm(nn.Module):
    """DeepFM; ``forward(dense_BD, embedded_BW) -> logits_B``.

    logit = first order + sum over pairs of <v_i, v_j> + MLP([dense, embedded]), where v_i is a feature's vector, or a
    dense column's value times a learned vector.

    Deviation: the paper gives each feature value a first-order weight of its own, kept in a second table of width 1.
    Here the weight is a linear map of the value's embedding (one map per feature), so the table stays the only one.

    Raises:
        ConfigError: no features.

    Source: Guo et al. 2017, DeepFM: A Factorization-Machine based Neural Network for CTR Prediction, eq. 1 to 4; the
    pair sum as Rendle 2010, Factorization Machines, lemma 3.1.
    """

    settings_class = DeepFmSettings

    def __init__(self, settings: DeepFmSettings, *, dense_width: int, widths: Sequence[int]) -> None:
        super().__init__()
        if not widths:
            raise ConfigError("model 'deepfm'", expected="at least one feature", found="none", do="use the model 'dnn'")
        width = dense_width + sum(widths)
        self.first_order = linear(width, 1)
        self.vectors = FeatureVectors(widths, settings.interaction_dim)
        self.dense_vectors = nn.Parameter(torch.empty(dense_width, self.vectors.dim)) if dense_width else None  # [D, K]
        if self.dense_vectors is not None:
            nn.init.xavier_normal_(self.dense_vectors)
        self.deep = None
        if settings.hidden:
            # No bias in the last layer: the first-order term has the one bias of the sum.
            self.deep = nn.Sequential(mlp(width, settings), linear(settings.hidden[-1], 1, bias=False))

    def forward(self, dense_BD: Tensor, embedded_BW: Tensor) -> Tensor:
        input_BX = concatenate(dense_BD, embedded_BW)
        logits_B = self.first_order(input_BX).squeeze(1) + self._pairs(dense_BD, embedded_BW)
        if self.deep is not None:
            logits_B = logits_B + self.deep(input_BX).squeeze(1)
        return logits_B

    def _pairs(self, dense_BD: Tensor, embedded_BW: Tensor) -> Tensor:
        """Sum of <v_i, v_j> over pairs = (|sum of v|^2 - sum of |v|^2) / 2."""
        vectors_BFK = self.vectors(embedded_BW)
        sum_BK, squares_B = vectors_BFK.sum(dim=1), vectors_BFK.square().sum(dim=(1, 2))
        if self.dense_vectors is not None:
            sum_BK = sum_BK + dense_BD @ self.dense_vectors
            squares_B = squares_B + dense_BD.square() @ self.dense_vectors.square().sum(dim=1)
        return 0.5 * (sum_BK.square().sum(dim=1) - squares_B)
