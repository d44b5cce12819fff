"""Dropout over the rows of all ranks: each draws for the whole batch, as one process does, and takes what its rows get.

All ranks seed a step alike, so a mask is that of one process, for any number of ranks; drawing it takes each rank the
time it takes one process.

Shape suffixes: B rows of this rank, G rows of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from embstore.distributed import Group

_DRAWING = {
    functional.alpha_dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.feature_alpha_dropout,
    functional.gumbel_softmax,
    torch.bernoulli,
    torch.dropout,
    torch.rand_like,
    torch.randn_like,
}


class WholeBatchDraws(TorchFunctionMode):
    """A context in which layers that draw for each row of the batch draw for the rows of all ranks.

    What is drawn for a tensor that isn't of the batch's rows is drawn as ever, and so is what no function below draws
    (``torch.randn(size)``, the dropout within attention): each rank has the same numbers.

    Backward belongs into it, too, as ``torch.autograd.backward(get_gradient_edge(loss))``: it may compute activations
    again, and ``loss.backward()`` would do so outside, as torch leaves a mode where a tensor is handed over.

    Args:
        rows: this rank's, of the batch.
        whole: rows of the batch.
    """

    def __init__(self, rows: range, whole: int) -> None:
        super().__init__()
        self.rows, self.whole = rows, whole

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and self._is_of_batch(args[0]):
            if func is functional.dropout:
                return self._dropout(*args, **kwargs)
            if func in _DRAWING:
                return self._drawn(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _is_of_batch(self, x: Any) -> bool:
        """Whether it has the same number of rows for each row of the batch (as ``[B * F, K]``), one at least."""
        return isinstance(x, Tensor) and x.dim() > 0 and len(self.rows) > 0 and len(x) % len(self.rows) == 0

    def _whole(self, x: Tensor) -> tuple[Tensor, slice]:
        """A tensor for all ranks' ``x``, and where in it this rank's is. Numbers are drawn in the order of memory."""
        times, order = len(x) // len(self.rows), sorted(range(x.dim()), key=x.stride, reverse=True)
        whole = torch.empty_permuted((times * self.whole, *x.shape[1:]), order, dtype=x.dtype, device=x.device)
        return whole, slice(times * self.rows.start, times * self.rows.stop)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """As torch does it, but for where the mask is from."""
        if not (training and 0 < p < 1):
            return functional.dropout(x, p, training, inplace)
        whole, own = self._whole(x)
        mask = whole.bernoulli_(1 - p)[own].div_(1 - p)
        return x.mul_(mask) if inplace else x * mask

    def _drawn(self, func: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        whole, own = self._whole(x)
        whole.zero_()[own] = x
        out = func(whole, *args, **kwargs)[own]
        return x.copy_(out) if kwargs.get("inplace") else out


def whole_batch_draws(whole: int | None, group: Group) -> AbstractContextManager[object]:
    """For a step on a batch of ``whole`` rows; nothing special for a process that has them all (``None``)."""
    return nullcontext() if whole is None else WholeBatchDraws(group.share(whole), whole)
