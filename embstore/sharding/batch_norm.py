"""Batch norm over the rows of all ranks: each normalises its part of a batch as one process would the whole.

Shape suffixes: B rows of this rank, N rows and positions of them, X numbers (channels), W ranks; ... positions, if any.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from embstore.distributed import Group
from embstore.errors import ConfigError


class _Sum(torch.autograd.Function):
    """The sum over all ranks; each one's result depends on what all gave, so gradients are summed, too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.group.sum(grads[0].clone()), None


class GroupBatchNorm(nn.Module):
    """A ``BatchNorm1d``, ``2d`` or ``3d`` with the statistics of all ranks' rows; it keeps its parameters and buffers.

    (torch's own ``SyncBatchNorm`` is for GPUs only.) One number in a channel has no variance: the running one is taken.

    Raises:
        ConfigError: it has no weights, keeps no running statistics, or is lazy.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, of: _BatchNorm, group: Group) -> None:
        super().__init__()
        if not (of.affine and of.track_running_stats) or isinstance(of, LazyModuleMixin):
            expected = "affine, with running statistics, of a known width"
            raise ConfigError("batch norm in a network trained by ranks", expected=expected, found=str(of))
        self._group, self.eps, self.momentum = group, of.eps, of.momentum
        for name, parameter in of.named_parameters():
            self.register_parameter(name, parameter)
        for name, buffer in of.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, scaled and moved, ``[B, X, ...]``; B may be 0."""
        x_NX = x.movedim(1, -1).reshape(-1, len(self.weight))
        mean_X, var_X = self.running_mean, self.running_var
        if self.training:
            moments_W3X = self._moments(x_NX)
            count_W, mean_WX, squares_WX = moments_W3X[:, 0, :1], moments_W3X[:, 1], moments_W3X[:, 2]
            count = float(count_W.detach().sum())
            if count > 1:
                mean_X = (count_W * mean_WX).sum(dim=0) / count
                squares_X = (squares_WX + count_W * (mean_WX - mean_X).square()).sum(dim=0)
                var_X = squares_X / count
                with torch.no_grad():
                    self.num_batches_tracked += 1
                    share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                    self.running_mean.lerp_(mean_X, share)
                    self.running_var.lerp_(squares_X / (count - 1), share)
        out_NX = (x_NX - mean_X) * (self.weight * (var_X + self.eps).rsqrt()) + self.bias
        return out_NX.view(x.movedim(1, -1).shape).movedim(-1, 1)

    def _moments(self, x_NX: Tensor) -> Tensor:
        """Count, mean and sum of squared deviations of each rank, by rank."""
        count, group = len(x_NX), self._group
        mean_X = x_NX.sum(dim=0) / max(count, 1)
        own_3X = torch.stack([torch.full_like(mean_X, count), mean_X, (x_NX - mean_X).square().sum(dim=0)])
        others = torch.zeros(1, dtype=own_3X.dtype, device=own_3X.device).expand_as(own_3X)
        parts = [own_3X if rank == group.rank else others for rank in range(group.world)]
        moments_W3X: Tensor = _Sum.apply(torch.stack(parts), group)
        return moments_W3X


def share_batch_norm(network: nn.Module, group: Group) -> nn.Module:
    """The network, its batch norms over all ranks' rows; itself when there are no other ranks."""
    return network if group.alone else _shared(network, group, {})


def _shared(module: nn.Module, group: Group, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """A module may be in several places, and is the same one in all of them afterwards."""
    if module not in done:
        if isinstance(module, _BatchNorm):
            done[module] = GroupBatchNorm(module, group)
        else:
            done[module] = module
            for name, child in module._modules.items():
                if child is not None:
                    setattr(module, name, _shared(child, group, done))
    return done[module]
