"""Models that are trained with gates on their inputs, and tell by the gates what to keep.

    dense, embedded ──> Gates ──> network ──> logits          a field's vector times its gate, or its value's

The table learns as ever, by its own optimizer; network and gates by an Adam each. Suffixes: B rows of the batch, C
dense columns, W numbers of a row's vectors, F fields, A all columns.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embstore.batch import Batch
from embstore.ctr import CtrModel
from embstore.errors import ConfigError, DataError
from embstore.logs import ParquetLog
from embstore.progress import Progress, no_progress
from embstore.selection.batches import Layout
from embstore.selection.data import Columns
from embstore.selection.methods.embedded import EmbeddedBatch, check_model, embed
from embstore.selection.methods.registry import check_both_classes, check_setting


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """A model to train with gates, and on what.

    Args:
        build: makes a new model; called with torch's default generator seeded.
        train: log to learn from.
        columns: of the log; the fields are features of the model's table, without crosses.
        valid: another log, of which ``autofield`` learns its gates.
        batch_size: rows of a step.
        epochs: passes over ``train``.
        learning_rate: of the network's Adam.
        network_l2: its ``weight_decay``.
        shuffle_window: rows shuffled together.
        seed: of all of it.
        progress: shown here.
    """

    build: Callable[[], CtrModel]
    train: ParquetLog
    columns: Columns
    valid: ParquetLog | None = None
    batch_size: int = 4096
    epochs: int = 1
    learning_rate: float = 1e-3
    network_l2: float = 0.0
    shuffle_window: int = 1_000_000
    seed: int = 0
    progress: Progress = no_progress

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            check_setting(name, getattr(self, name), least=1)
        check_setting("learning_rate", self.learning_rate, least=0, above=True)
        check_setting("network_l2", self.network_l2, least=0)

    @property
    def steps(self) -> int:
        """Of the training."""
        return self.train.batch_count(self.batch_size) * self.epochs


class Gates(nn.Module):
    """What a method learns: ``forward`` gives the network's inputs."""

    @abstractmethod
    def forward(self, batch: EmbeddedBatch) -> tuple[Tensor, Tensor]:
        """Dense columns and vectors, each times its gate."""

    def penalty(self) -> Tensor | float:
        """Added to the loss."""
        return 0.0

    def on_step(self, done: float) -> None:
        """Before a step: which share of the steps is done."""

    def on_stepped(self, rate: float) -> None:
        """After a step of the gates' optimizer at this rate."""


class FieldGates(Gates):
    """One gate for each field, dense columns last.

    Args:
        model: whose inputs.
        layout: whose fields.
    """

    field_W: Tensor

    def __init__(self, model: CtrModel, layout: Layout) -> None:
        super().__init__()
        field_W = np.empty(model.table.width, np.int64)
        for name, at in model.table.slices.items():
            field_W[at] = layout.names.index(name)
        self.register_buffer("field_W", torch.from_numpy(field_W))
        self.dense = len(layout.dense)

    @abstractmethod
    def gate_F(self) -> Tensor:
        """The gates now."""

    def forward(self, batch: EmbeddedBatch) -> tuple[Tensor, Tensor]:
        gate_F = self.gate_F()
        return batch.dense_BC * gate_F[len(gate_F) - self.dense :], batch.embedded_BW * gate_F[self.field_W]


class ValueGates(Gates):
    """One gate for each column. A list's vector is taken times the mean of its values' gates.

    Args:
        model: whose inputs.
        layout: whose columns.
    """

    def __init__(self, model: CtrModel, layout: Layout) -> None:
        super().__init__()
        self.slices, self.layout = model.table.slices, layout
        self.rows_A: NDArray[np.int64] = np.zeros(layout.columns, np.int64)  # how often each was seen

    @abstractmethod
    def gate_A(self) -> Tensor:
        """The gates now."""

    def forward(self, batch: EmbeddedBatch) -> tuple[Tensor, Tensor]:
        gate_A, rows = self.gate_A(), len(batch.label_B)
        gated_BW = torch.empty_like(batch.embedded_BW)
        for name, entries in batch.fields.items():
            np.add.at(self.rows_A, entries.column_E, 1)
            gate_B = gate_E = gate_A[torch.from_numpy(entries.column_E).to(gate_A.device)]
            if not entries.single:
                row_E = entries.row_E.to(gate_A.device)
                length_B = torch.bincount(row_E, minlength=rows).clamp(min=1)
                gate_B = gate_E.new_zeros(rows).index_add(0, row_E, gate_E) / length_B
            gated_BW[:, self.slices[name]] = batch.embedded_BW[:, self.slices[name]] * gate_B[:, None]
        return batch.dense_BC * gate_A[self.layout.sparse :], gated_BW


def train(
    search: Search,
    make: Callable[[CtrModel], Gates],
    *,
    learning_rate: float,
    alternate: int | None = None,
) -> Gates:
    """Train a new model with gates.

    Args:
        search: model and logs.
        make: the gates of a model.
        learning_rate: of the gates.
        alternate: the gates learn from a batch of ``valid`` after every so many steps; ``None``: from each step's own.

    Raises:
        ConfigError: the model doesn't read the columns, or there is no ``valid`` to alternate with.
        DataError: labels of one class, or a loss that is not a number.
    """
    if alternate is not None and search.valid is None:
        raise ConfigError("search", expected="a validation log", found="none", do="give valid= (a run's logs.valid)")
    rows = positives = step = 0
    with (
        torch.random.fork_rng(devices=[]),
        closing(_for_ever(search)) as others,
        search.progress("search", search.train.rows * search.epochs) as bar,
    ):
        torch.manual_seed(search.seed)
        model = search.build()
        check_model(model, search.columns)
        gates = make(model).to(model.table.weight.device)
        weights = torch.optim.Adam(model.network.parameters(), lr=search.learning_rate, weight_decay=search.network_l2)
        of_gates = torch.optim.Adam(gates.parameters(), lr=learning_rate)
        model.train()
        batches = search.train.batches(
            search.batch_size, epochs=search.epochs, shuffle_window=search.shuffle_window, seed=search.seed
        )
        for batch in batches:
            gates.on_step(step / search.steps)
            embedded = embed(model, search.columns, batch, train=True)
            rows += len(batch)
            positives += int(embedded.label_B.sum())
            weights.zero_grad(set_to_none=True)
            of_gates.zero_grad(set_to_none=True)
            loss = _loss(model, gates, embedded)
            if not torch.isfinite(loss):
                raise DataError("training with gates diverged", expected="a finite loss", found=str(float(loss)))
            loss.backward()
            weights.step()
            step += 1
            if alternate is not None and step % alternate == 0:
                other = embed(model, search.columns, next(others))
                of_gates.zero_grad(set_to_none=True)
                torch.autograd.backward(_loss(model, gates, other), inputs=list(gates.parameters()))
            if alternate is None or step % alternate == 0:
                of_gates.step()
                gates.on_stepped(learning_rate)
            bar.advance(len(batch))
    check_both_classes(rows, positives)
    return gates


def _loss(model: CtrModel, gates: Gates, batch: EmbeddedBatch) -> Tensor:
    dense_BC, embedded_BW = gates(batch)
    return batch.loss_B(model.network, dense_BC, embedded_BW).mean() + gates.penalty()


def _for_ever(search: Search) -> Generator[Batch, None, None]:
    if search.valid is not None:
        yield from search.valid.batches(
            search.batch_size, epochs=None, shuffle_window=search.shuffle_window, seed=search.seed
        )
