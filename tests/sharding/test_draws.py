"""What ranks draw, rank by rank in one process: what one process draws for the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from embstore.distributed import ALONE, Group
from embstore.sharding.draws import WholeBatchDraws, whole_batch_draws

LAYERS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": nn.Dropout(0.3),
    "dropout of all": nn.Dropout(1.0),
    "no dropout": nn.Dropout(0.0),
    "evaluated": nn.Dropout(0.3).eval(),
    "in place": lambda x: nn.Dropout(0.3, inplace=True)(x * 1),
    "by keyword": lambda x: functional.dropout(input=x, p=0.3),
    "without a layer": lambda x: torch.dropout(x, 0.3, True),
    "alpha": nn.AlphaDropout(0.3),
    "alpha in place": lambda x: nn.AlphaDropout(0.3, inplace=True)(x * 1),
    "feature alpha": lambda x: nn.FeatureAlphaDropout(0.3)(x[:, :, None, None]).flatten(1),
    "1d": lambda x: nn.Dropout1d(0.3)(x.unflatten(1, (4, 5))).flatten(1),
    "2d": lambda x: nn.Dropout2d(0.3)(x[:, :, None, None]).flatten(1),
    "3d": lambda x: nn.Dropout3d(0.3)(x[:, :, None, None, None]).flatten(1),
    "gumbel": lambda x: functional.gumbel_softmax(x, hard=True),
    "noise": lambda x: x + torch.randn_like(x) + torch.rand_like(x),
    "bernoulli": lambda x: x * torch.bernoulli(x.sigmoid()),
    "by feature": lambda x: nn.Dropout(0.3)(x.reshape(-1, 5)).reshape(x.shape),
    "strided": lambda x: nn.Dropout(0.3)(x.unflatten(1, (4, 5)).transpose(1, 2)).flatten(1),
    "of no row": lambda x: x * nn.Dropout(0.3)(torch.ones(1, 20)),
    "two layers": nn.Sequential(nn.Dropout(0.3), nn.GELU(), nn.Dropout(0.5)),
    "recomputed": lambda x: checkpoint(lambda of: nn.Dropout(0.3)(of).square(), x, use_reentrant=False),
}


def _run(layer: Callable[[Tensor], Tensor], x: Tensor, rows: range | None) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(7)
    with nullcontext() if rows is None else WholeBatchDraws(rows, 11):
        out = layer(x)
        torch.autograd.backward(get_gradient_edge((out * torch.linspace(-1, 1, 20)).sum()))
    assert x.grad is not None
    return out.detach(), x.grad


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_it_draws_as_one_process(name: str, world: int) -> None:
    x = torch.randn(11, 20, generator=torch.Generator().manual_seed(3))
    expected = _run(LAYERS[name], x, None)
    for rank in range(world):
        rows = Group(rank, world).share(11)
        for whole, part in zip(expected, _run(LAYERS[name], x[rows.start : rows.stop], rows), strict=True):
            assert torch.equal(part, whole[rows.start : rows.stop])


def test_masks_are_of_all_rows() -> None:
    """Each rank has other masks than the others."""
    masks = [_run(nn.Dropout(0.5), torch.ones(3, 20), range(first, first + 3))[0] for first in (0, 3, 6)]
    assert not any(torch.equal(masks[a], masks[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_rank_without_rows() -> None:
    for layer in (nn.Dropout(0.3), nn.AlphaDropout(0.3)):
        assert _run(layer, torch.ones(0, 20), range(4, 4))[0].shape == (0, 20)


def test_a_process_alone_draws_as_ever() -> None:
    assert not isinstance(whole_batch_draws(None, ALONE), WholeBatchDraws)
