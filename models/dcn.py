"""DCN-V2: explicit feature crosses of bounded degree beside, or below, an MLP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from embstore.errors import ConfigError

from .layers import CrossLayer, MixtureCrossLayer, MlpSettings, check_count, concatenate, linear, mlp
from .registry import register

STRUCTURES = ("parallel", "stacked")


@dataclass(frozen=True, kw_only=True)
class DcnSettings(MlpSettings):
    """Cross layers and the hidden layers of ``MlpSettings``; ``hidden=()`` leaves the cross network alone.

    Args:
        structure: ``"parallel"``: the head sees the outputs of the cross network and of the MLP side by side;
            ``"stacked"``: the MLP takes the cross network's output.
        cross_layers: how many; l layers give crosses of up to l + 1 features.
        low_rank: write each cross matrix as a product of rank ``low_rank``; a full matrix when ``None``.
        experts: more than 1: each layer is a gated mixture of so many low-rank crosses; needs ``low_rank``.

    Raises:
        ConfigError: a value out of its range.
    """

    structure: str = "parallel"
    cross_layers: int = 3
    low_rank: int | None = None
    experts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.structure not in STRUCTURES:
            raise ConfigError("structure", expected=" or ".join(STRUCTURES), found=repr(self.structure))
        check_count("cross_layers", self.cross_layers)
        check_count("experts", self.experts)
        if self.low_rank is not None:
            check_count("low_rank", self.low_rank)
        elif self.experts > 1:
            raise ConfigError("experts", expected="low_rank with more than one expert", found="low_rank none")


@register("dcn")
class Dcn(nn.Module):
    """DCN-V2; ``forward(dense_BD, embedded_BW) -> logits_B``.

    Source: Wang et al. 2021, DCN V2: Improved Deep & Cross Network, section 3 and figure 1.
    """

    settings_class = DcnSettings

    def __init__(self, settings: DcnSettings, *, dense_width: int, widths: Sequence[int]) -> None:
        super().__init__()
        width = dense_width + sum(widths)
        self.crosses = nn.ModuleList(_cross(width, settings) for _ in range(settings.cross_layers))
        self.deep = mlp(width, settings) if settings.hidden else None
        self.parallel = settings.structure == "parallel"
        deep_width = (width, *settings.hidden)[-1]
        self.head = linear(width + deep_width if self.deep is not None and self.parallel else deep_width, 1)

    def forward(self, dense_BD: Tensor, embedded_BW: Tensor) -> Tensor:
        first_BX = concatenate(dense_BD, embedded_BW)
        crossed_BX = first_BX
        for cross in self.crosses:
            crossed_BX = cross(first_BX, crossed_BX)
        if self.deep is None:
            out_BY = crossed_BX
        elif self.parallel:
            out_BY = torch.cat([crossed_BX, self.deep(first_BX)], dim=1)
        else:
            out_BY = self.deep(crossed_BX)
        return self.head(out_BY).squeeze(1)


def _cross(width: int, settings: DcnSettings) -> nn.Module:
    if settings.low_rank is not None and settings.experts > 1:
        return MixtureCrossLayer(width, settings.low_rank, settings.experts)
    return CrossLayer(width, settings.low_rank)
