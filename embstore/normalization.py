"""Dense columns, standardised by what the training has seen of them so far.

Shape suffixes: B rows, D dense columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embstore.distributed import ALONE, Group
from embstore.errors import SchemaError
from embstore.schema import Dense

CLIP = 10.0
# A column whose deviation is below this share of its mean is constant: the rest is rounding of the mean.
CONSTANT = 1e-13


class StreamingNormalizer(nn.Module):
    """Scales each dense column, then subtracts its running mean and divides by its running standard deviation.

    The statistics are float64 buffers and all there is in ``state_dict``; there is nothing to train. Missing values
    (NaN or infinite) are left out of the statistics and come out as 0, the mean. So do constant columns, and every
    value before the first ``update``. Results are clipped to [-10, 10].

    In training, call ``update`` and then ``forward`` on each batch.

    Args:
        columns: the schema's dense columns; ``scale`` decides between sign(x) * log(1 + |x|) and x.
        group: processes that update together, each with rows of its own; all have the same statistics, bit for bit.

    Source: Chan, Golub and LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances,
    section 2.
    """

    count: Tensor  # [D], values seen
    mean: Tensor  # [D], of the scaled values
    m2: Tensor  # [D], sum of squared deviations from the mean
    log: Tensor  # [D], whether the scale is "log"

    def __init__(self, columns: Sequence[Dense], group: Group = ALONE) -> None:
        super().__init__()
        self._group = group
        self.names = tuple(column.name for column in columns)
        # Shape and scales belong to the schema, which is stored beside the state.
        self.register_buffer(
            "log", torch.tensor([column.scale == "log" for column in columns]).bool(), persistent=False
        )
        for name in ("count", "mean", "m2"):
            self.register_buffer(name, torch.zeros(len(self.names), dtype=torch.float64))

    @torch.no_grad()
    def update(self, dense_BD: Tensor) -> None:
        """Take rows, of all ranks, into the statistics.

        Args:
            dense_BD: ``[B, D]`` float32 or float64, NaN where missing; B may be 0.

        Raises:
            SchemaError: another number of columns.
        """
        for moments_3D in self._group.gather(self.moments(dense_BD)) if self.names else ():
            self.merge(moments_3D)

    @torch.no_grad()
    def moments(self, dense_BD: Tensor) -> Tensor:
        """Statistics of these rows alone.

        Returns:
            ``[3, D]`` float64: count, mean, and sum of squared deviations of the scaled values that are not missing.

        Raises:
            SchemaError: another number of columns.
        """
        scaled_BD, present_BD = self._scaled(dense_BD)
        count_D = present_BD.sum(dim=0).double()
        mean_D = scaled_BD.sum(dim=0) / count_D.clamp(min=1)
        m2_D = ((scaled_BD - mean_D) * present_BD).square().sum(dim=0)
        return torch.stack([count_D, mean_D, m2_D])

    @torch.no_grad()
    def merge(self, moments_3D: Tensor) -> None:
        """Take the ``moments`` of other rows into the statistics."""
        count_D, mean_D, m2_D = moments_3D.to(self.count.device)
        total_D = self.count + count_D
        share_D = count_D / total_D.clamp(min=1)
        delta_D = mean_D - self.mean
        self.m2 += m2_D + delta_D.square() * self.count * share_D
        self.mean += delta_D * share_D
        self.count.copy_(total_D)

    def forward(self, dense_BD: Tensor) -> Tensor:
        """Standardised columns, ``[B, D]`` float32, finite.

        Raises:
            SchemaError: another number of columns.
        """
        scaled_BD, present_BD = self._scaled(dense_BD)
        deviation_D = (self.m2 / self.count.clamp(min=1)).sqrt()
        varies_D = deviation_D > CONSTANT * self.mean.abs()
        standard_BD = (scaled_BD - self.mean) / deviation_D.where(varies_D, 1.0)
        return standard_BD.clamp(-CLIP, CLIP).where(present_BD & varies_D, 0.0).float()

    def extra_repr(self) -> str:
        return ", ".join(self.names)

    def _scaled(self, dense_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled float64 values, 0 where missing, and which are present."""
        if dense_BD.ndim != 2 or dense_BD.shape[1] != len(self.names):
            raise SchemaError(
                "dense columns",
                expected=f"[rows, {len(self.names)}] for {', '.join(self.names) or 'no columns'}",
                found=str(list(dense_BD.shape)),
            )
        present_BD = dense_BD.isfinite()
        x_BD = dense_BD.double().where(present_BD, 0.0)
        return (x_BD.sign() * x_BD.abs().log1p()).where(self.log, x_BD), present_BD
