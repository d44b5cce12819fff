"""DLRM: dot products of every pair of feature vectors, the dense columns being one of the vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embstore.errors import ConfigError

from .layers import FeatureVectors, MlpSettings, check_count, checked_widths, linear, mlp
from .registry import register


@dataclass(frozen=True, kw_only=True)
class DlrmSettings:
    """Two ReLU MLPs, without batch norm or dropout, as published.

    Args:
        bottom: hidden widths of the MLP over the dense columns; a last layer of the interaction's width follows.
        top: hidden widths of the MLP over the dot products; the head follows.
        interaction_dim: width of the vectors that are multiplied; the features' smallest width when ``None``. Features
            of another width are projected to it, see ``FeatureVectors`` (the paper has one width only).

    Raises:
        ConfigError: a value out of its range.
    """

    bottom: tuple[int, ...] = (512, 256)
    top: tuple[int, ...] = (512, 256)
    interaction_dim: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bottom", checked_widths("bottom", self.bottom))
        object.__setattr__(self, "top", checked_widths("top", self.top))
        if self.interaction_dim is not None:
            check_count("interaction_dim", self.interaction_dim)


@register("dlrm")
class Dlrm(nn.Module):
    """DLRM; ``forward(dense_BD, embedded_BW) -> logits_B``.

    The top MLP sees [bottom output, dot products of all pairs]; without dense columns there is no bottom, and it sees
    the dot products.

    Raises:
        ConfigError: fewer than two vectors (features, and one for the dense columns), so no pair.

    Source: Naumov et al. 2019, Deep Learning Recommendation Model for Personalization and Recommendation Systems,
    section 2; pairs in the order of its public code (row-wise lower triangle, dense first).
    """

    settings_class = DlrmSettings
    pairs: Tensor  # [F * (F - 1) / 2], where the lower triangle lies in a flattened [F, F]

    def __init__(self, settings: DlrmSettings, *, dense_width: int, widths: Sequence[int]) -> None:
        super().__init__()
        vectors = len(widths) + (dense_width > 0)
        if vectors < 2:
            raise ConfigError(
                "model 'dlrm'",
                expected="two features, or one and dense columns, to multiply",
                found=f"{len(widths)} features and {dense_width} dense columns",
                do="use the model 'dnn'",
            )
        self.vectors = FeatureVectors(widths, settings.interaction_dim)
        self.bottom = None
        if dense_width:
            self.bottom = mlp(dense_width, _relu(*settings.bottom, self.vectors.dim))
        row, column = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("pairs", row * vectors + column, persistent=False)
        top_width = vectors * (vectors - 1) // 2 + (self.vectors.dim if dense_width else 0)
        self.top = mlp(top_width, _relu(*settings.top))
        self.head = linear((top_width, *settings.top)[-1], 1)

    def forward(self, dense_BD: Tensor, embedded_BW: Tensor) -> Tensor:
        vectors_BFK = self.vectors(embedded_BW)
        if self.bottom is not None:
            bottom_BK = self.bottom(dense_BD)
            vectors_BFK = torch.cat([bottom_BK[:, None], vectors_BFK], dim=1)
        dots_BFF = vectors_BFK @ vectors_BFK.transpose(1, 2)
        out_BX = dots_BFF.flatten(1).index_select(1, self.pairs)  # 3 times as fast as indexing by two axes
        if self.bottom is not None:
            out_BX = torch.cat([bottom_BK, out_BX], dim=1)
        return self.head(self.top(out_BX)).squeeze(1)


def _relu(*hidden: int) -> MlpSettings:
    return MlpSettings(hidden=hidden, batch_norm=False)
