"""What a kernel is: the table's forward (rows -> pooled output) and its backward fused with the optimizer's update.

A kernel keeps nothing that it can't make again from plan and table; the table's tensors are in a ``Table``, so kernels
can be exchanged under a run. Any number of threads may look up at once; one trains.

Shape suffixes: B rows of the batch, W output width, N table rows, D dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.kernels import penalty
from embstore.kernels.optimizer import TableOptimizer
from embstore.kernels.plan import Request


@dataclass
class Table:
    """The tensors of a table and where its training stands.

    Args:
        weight_ND: float32, float16 or bfloat16, rows of hashed sub-tables first, then exact blocks.
        state: the optimizer's tensors by name.
        optimizer: its settings.
        learning_rate: of the next step.
        progress: float64 ``[2]``, updated in place: updates done; the sum of their learning rates (what the penalty is
            owed).
        paid_N: float64, the sum each row has decayed for; ``None`` without a penalty.
        rounding_seed: of the stochastic rounding.
        touched_N: uint8, set to 1 for every row that an update has changed; ``None`` when nobody asks.
        first_row: number of its first row in the whole table, of which it may be a shard; the random numbers of
            stochastic rounding are those of the row there.
        places: what kernels have found out about the tensors, kept from call to call by whoever makes the tables.
    """

    weight_ND: Tensor
    state: dict[str, Tensor]
    optimizer: TableOptimizer
    learning_rate: float
    progress: NDArray[np.float64]
    paid_N: Tensor | None = None
    rounding_seed: int = 0
    touched_N: Tensor | None = None
    first_row: int = 0
    # Autograd runs a backward only toward something that asks for a gradient.
    trigger: Tensor = field(default_factory=lambda: torch.zeros(0, requires_grad=True))
    places: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Updates done."""
        return int(self.progress[0])

    def pay(self, request: Request) -> None:
        """Rows about to be read pay the penalty they owe for the steps done."""
        if self.paid_N is not None:
            self.settle_rows(request.rows_T.unique())

    def settle(self, start: int = 0, stop: int | None = None) -> None:
        """Bring rows ``start`` to ``stop`` (all) up to date with the penalty, as a sweep at every step would have."""
        if self.paid_N is None:
            return
        stop = len(self.weight_ND) if stop is None else stop
        for first in range(start, stop, penalty.SETTLE_ROWS):
            last = min(first + penalty.SETTLE_ROWS, stop)
            self.settle_rows(torch.arange(first, last, device=self.weight_ND.device))

    def touch(self, request: Request) -> None:
        """Mark the rows of a request as changed."""
        if self.touched_N is not None:
            self.touched_N[request.rows_T] = 1

    def end_step(self) -> None:
        """Count an update, whose learning rate every row owes from now on."""
        self.progress[0] += 1
        self.progress[1] += self.learning_rate

    def settle_rows(self, rows_R: Tensor) -> None:
        """The same for some rows, distinct, int64."""
        if self.paid_N is None:
            return
        # Rows that owe nothing aren't written: a mapped table stays where it lies.
        rows_R = rows_R[self.paid_N[rows_R] < float(self.progress[1])]
        if not len(rows_R):
            return
        penalty.catch_up(
            self.weight_ND,
            self.state.get("sum"),
            self.paid_N,
            float(self.progress[1]),
            self.optimizer,
            rows_R,
            rounding_seed=self.rounding_seed + 2 * self.step + 1,
            first_row=self.first_row,
        )


class Kernel(ABC):
    """Lookup and update of a table. Subclasses are picked by name, see ``embstore.kernels.choose``."""

    name: ClassVar[str]

    @abstractmethod
    def forward(self, request: Request, table: Table) -> Tensor:
        """Pooled rows, float32 ``[B, W]``, without a gradient."""

    @abstractmethod
    def train(self, request: Request, table: Table) -> Tensor:
        """The same with a gradient, after the hit rows paid their penalty: its backward updates the table."""


class TwoPassKernel(Kernel):
    """A kernel made of two functions, forward and update; autograd calls the second with the output's gradient."""

    def train(self, request: Request, table: Table) -> Tensor:
        return _LookupThenUpdate.apply(table.trigger, self, request, table)

    def begin(self, request: Request, table: Table) -> tuple[Tensor, Any]:
        """A step's forward pass, after the hit rows paid their penalty: the output, and what ``update`` is given."""
        table.pay(request)
        return self.forward(request, table), None

    @abstractmethod
    def update(self, request: Request, table: Table, grad_BW: Tensor, saved: Any) -> None:
        """Add the gradient of each row over all its hits and update each hit row once, in place."""


class _LookupThenUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trigger: Tensor, kernel: TwoPassKernel, request: Request, table: Table) -> Tensor:
        out_BW, saved = kernel.begin(request, table)
        ctx.call = kernel, request, table, saved
        return out_BW

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        kernel, request, table, saved = ctx.call
        table.end_step()
        with torch.no_grad():
            kernel.update(request, table, grads[0], saved)
        return None, None, None, None
