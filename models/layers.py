"""What the CTR models are built of: MLP, cross layers, per-feature vectors, the FM term.

Linear weights start from Xavier's normal distribution and biases from 0, as in the public DLRM and FuxiCTR code.

Shape suffixes: B rows, D dense columns, W numbers of all embedded features, F features, K numbers of a feature's
vector, X numbers of a layer's input, E experts, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from embstore.errors import ConfigError, nearest

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True, kw_only=True)
class MlpSettings:
    """Hidden layers, each Linear, BatchNorm, activation, Dropout.

    Args:
        hidden: widths of the hidden layers, in order.
        dropout: share of activations dropped in training, in [0, 1).
        batch_norm: normalise before the activation.
        activation: ``relu``, ``gelu``, ``silu`` or ``tanh``.

    Raises:
        ConfigError: a value out of its range.
    """

    hidden: tuple[int, ...] = (400, 400, 400)
    dropout: float = 0.0
    batch_norm: bool = True
    activation: str = "relu"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", checked_widths("hidden", self.hidden))
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ConfigError("dropout", expected="a number from 0 to below 1", found=repr(self.dropout))
        if not isinstance(self.batch_norm, bool):
            raise ConfigError("batch_norm", expected="true or false", found=repr(self.batch_norm))
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {self.activation!r}", do=nearest(str(self.activation), ACTIVATIONS))


def checked_widths(name: str, widths: Sequence[int]) -> tuple[int, ...]:
    """The widths as a tuple (YAML gives lists).

    Raises:
        ConfigError: not a sequence of positive whole numbers.
    """
    if not isinstance(widths, (list, tuple)):
        raise ConfigError(name, expected="a list of widths", found=repr(widths))
    for width in widths:
        check_count(name, width)
    return tuple(widths)


def check_count(name: str, value: int, *, least: int = 1) -> None:
    """Raises ``ConfigError`` unless ``value`` is a whole number, ``least`` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(name, expected=f"a whole number, {least} or more", found=repr(value))


def linear(width_in: int, width_out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer with this module's initial values."""
    layer = nn.Linear(width_in, width_out, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(width_in: int, settings: MlpSettings) -> nn.Sequential:
    """Hidden layers ``[B, width_in] -> [B, hidden[-1]]``; the identity when there are none.

    A linear layer that batch norm follows has no bias: batch norm would subtract it again and adds its own.
    """
    layers: list[nn.Module] = []
    for width in settings.hidden:
        layers.append(linear(width_in, width, bias=not settings.batch_norm))
        if settings.batch_norm:
            layers.append(BatchNorm(width))
        layers.append(ACTIVATIONS[settings.activation]())
        if settings.dropout:
            layers.append(nn.Dropout(settings.dropout))
        width_in = width
    return nn.Sequential(*layers)


def concatenate(dense_BD: Tensor, embedded_BW: Tensor) -> Tensor:
    """``[B, D + W]``: dense columns, then features; no copy where there are no dense columns."""
    return torch.cat([dense_BD, embedded_BW], dim=1) if dense_BD.shape[1] else embedded_BW


def parameter_count(model: nn.Module) -> int:
    """Trainable numbers in a model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class BatchNorm(nn.BatchNorm1d):
    """Batch norm that takes its running statistics for a training batch of one row (of one position, if it has any).

    One row has no variance. A log whose last batch is one row would otherwise stop the training at its end.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() <= self.num_features:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(input)


class FeatureVectors(nn.Module):
    """One vector of the same width for each feature: ``[B, W] -> [B, F, K]``.

    When all features are ``dim`` wide this is a view. Otherwise (features with different numbers of lookups) each
    feature is projected to ``dim`` by a linear map of its own, without bias: an empty list stays zero.

    Args:
        widths: of the embedded features, in order.
        dim: K; the smallest width when ``None``.
    """

    def __init__(self, widths: Sequence[int], dim: int | None) -> None:
        super().__init__()
        self.widths = list(widths)
        self.dim = min(widths) if dim is None else dim
        uneven = any(width != self.dim for width in widths)
        self.projections = nn.ModuleList(linear(width, self.dim, bias=False) for width in widths if uneven)

    def forward(self, embedded_BW: Tensor) -> Tensor:
        if not self.projections:
            return embedded_BW.reshape(-1, len(self.widths), self.dim)
        parts = embedded_BW.split(self.widths, dim=1)
        return torch.stack([project(part) for project, part in zip(self.projections, parts, strict=True)], dim=1)


class CrossLayer(nn.Module):
    """x_{l+1} = x_0 * (W x_l + b) + x_l, with W = U V^T when ``low_rank`` is given.

    Source: Wang et al. 2021, DCN V2, eq. 1 and eq. 2.
    """

    def __init__(self, width: int, low_rank: int | None) -> None:
        super().__init__()
        if low_rank is None:
            self.weight: nn.Module = linear(width, width)
        else:
            self.weight = nn.Sequential(linear(width, low_rank, bias=False), linear(low_rank, width))

    def forward(self, first_BX: Tensor, x_BX: Tensor) -> Tensor:
        return torch.addcmul(x_BX, first_BX, self.weight(x_BX))


class MixtureCrossLayer(nn.Module):
    """A gated mixture of low-rank cross layers.

    x_{l+1} = sum_i G_i(x_l) E_i(x_l) + x_l, with E_i(x) = x_0 * (U_i tanh(C_i tanh(V_i^T x)) + b) and G the softmax of
    a linear map of x_l. As the gates sum to 1, the sum is x_0 * (sum_i G_i U_i h_i + b): one product for all U_i.

    Source: Wang et al. 2021, DCN V2, eq. 3 and eq. 4.
    """

    def __init__(self, width: int, low_rank: int, experts: int) -> None:
        super().__init__()
        self.experts, self.low_rank = experts, low_rank
        self.down = nn.Parameter(torch.empty(experts, low_rank, width))  # V_i^T
        self.core = nn.Parameter(torch.empty(experts, low_rank, low_rank))  # C_i
        self.up = nn.Parameter(torch.empty(experts, width, low_rank))  # U_i
        self.bias = nn.Parameter(torch.zeros(width))  # b
        for weight in (self.down, self.core, self.up):
            for of_expert in weight:
                nn.init.xavier_normal_(of_expert)
        self.gate = linear(width, experts)

    def forward(self, first_BX: Tensor, x_BX: Tensor) -> Tensor:
        h_BER = torch.tanh(x_BX @ self.down.flatten(0, 1).T).unflatten(1, (self.experts, self.low_rank))
        h_BER = torch.tanh(torch.einsum("ber,esr->bes", h_BER, self.core))
        gate_BE = self.gate(x_BX).softmax(dim=1)
        up_YX = self.up.transpose(1, 2).flatten(0, 1)  # Y = E * R
        mixed_BX = torch.addmm(self.bias, (h_BER * gate_BE[:, :, None]).flatten(1), up_YX)
        return torch.addcmul(x_BX, first_BX, mixed_BX)
