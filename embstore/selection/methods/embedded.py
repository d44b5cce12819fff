"""A trained model's inputs, row by row: what its network is given, and which value of which field gave it.

    row   tags      embedded            entries of tags: row, column, share of the row's vector
    0     [a b]     v_a + v_b           0 a 1,  0 b 1,  1 a 1                   pooling: sum
    1     [a]       v_a                 0 a 1/2,  0 b 1/2,  1 a 1               pooling: mean

Suffixes: B rows of the batch, C dense columns, W numbers of a row's vectors, E entries of a field, F fields, D columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from embstore.batch import Batch, FeatureTokens
from embstore.ctr import CtrModel
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import ConfigError, DataError
from embstore.hashing import PRUNED_TOKEN
from embstore.kernels import Request
from embstore.logs import ParquetLog
from embstore.progress import Progress, no_progress
from embstore.selection.batches import Layout
from embstore.selection.data import Columns
from embstore.selection.methods.registry import check_both_classes, check_setting
from embstore.threads import usable_cores

Part = Callable[..., Any]  # ``part(source, batch, number, *given)``: what a batch adds, a pure function

REPLACEMENTS = ("mean", "pruned")


class Others(Protocol):
    """Others than this process, who do the batches of a source."""

    def __call__(self, part: Part, given: tuple[Any, ...]) -> Iterator[tuple[int, int, Any]]:
        """As ``tried`` of each batch, in order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A trained model and rows to try it on.

    To prune values: the rows that the pruned model will learn from; to rank fields: rows that the model has not seen
    (docs/selection.md).

    Args:
        model: its weights are read only; it is left in eval mode.
        log: labelled rows.
        columns: of the log; the fields are features of the model's table, without crosses.
        rows: of a batch.
        shuffle_window: rows shuffled together; neighbours in a log are alike, and change places with each other.
        seed: of the shuffle.
        threads: batches at a time, one thread of torch each; all cores by default. They decide no bit.
        others: who do the batches instead.
        progress: shown here, pass by pass.

    Raises:
        ConfigError: the model doesn't read what ``columns`` has.
    """

    model: CtrModel
    log: ParquetLog
    columns: Columns
    rows: int = 8192
    shuffle_window: int = 262_144
    seed: int = 0
    threads: int | None = None
    others: Others | None = None
    progress: Progress = no_progress

    def __post_init__(self) -> None:
        check_setting("rows", self.rows, least=1)
        check_model(self.model, self.columns)

    def each(self, part: Part, *given: Any) -> Iterator[Any]:
        """What each batch adds, in order: ``part(self, batch, number, *given)`` of an ``EmbeddedBatch``.

        Raises:
            DataError: no labels, or of one class.
        """
        rows = positives = 0
        done = self._here(part, given) if self.others is None else self.others(part, given)
        with self.progress("judge", self.log.rows) as bar:
            for batch_rows, batch_positives, added in done:
                rows += batch_rows
                positives += batch_positives
                bar.advance(batch_rows)
                yield added
        check_both_classes(rows, positives)

    def total(self, part: Part, *given: Any) -> Sums:
        """The sum of what each batch adds, ``Sums``."""
        total = Sums(self.columns.layout)
        for sums in self.each(part, *given):
            total.field_F += sums.field_F
            total.column_D += sums.column_D
        return total

    def _here(self, part: Part, given: tuple[Any, ...]) -> Iterator[tuple[int, int, Any]]:
        """By threads of their own, of whose work a few batches wait to be taken."""
        self.model.eval()
        threads, before = self.threads or usable_cores(), torch.get_num_threads()
        batches = self.log.batches(self.rows, shuffle_window=self.shuffle_window, seed=self.seed)
        under_way = deque[Future[tuple[int, int, Any]]]()
        try:
            with closing(batches), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as by:
                asked = (by.submit(tried, self, batch, number, part, given) for number, batch in enumerate(batches))
                try:
                    while True:
                        under_way += islice(asked, 2 * threads - len(under_way))
                        if not under_way:
                            return
                        yield under_way.popleft().result()
                finally:
                    for waiting in under_way:
                        waiting.cancel()
        finally:
            torch.set_num_threads(before)


@torch.no_grad()
def tried(source: Trained, batch: Batch, number: int, part: Part, given: tuple[Any, ...]) -> tuple[int, int, Any]:
    """Rows of a batch, those of them that are positive, and what the batch adds.

    With one thread of torch, which cuts its sums by how many it has.
    """
    embedded = embed(source.model, source.columns, batch)
    return len(batch), int(embedded.label_B.sum()), part(source, embedded, number, *given)


def check_model(model: CtrModel, columns: Columns) -> None:
    """Refuse a model that doesn't read the columns.

    Raises:
        ConfigError: naming what doesn't fit.
    """
    if columns.crosses:
        found = columns.crosses[0].name
        raise ConfigError("columns of a model", expected="features of its table", found=f"the cross {found}")
    names, dense = columns.layout.names, columns.layout.dense
    if set(names) != set(model.table.plan.names) or dense != model.normalizer.names:
        raise ConfigError(
            "columns of a model",
            expected=", ".join((*model.table.plan.names, *model.normalizer.names)),
            found=", ".join((*names, *dense)),
        )
    if len(model.table.shard) != model.table.num_rows:
        raise ConfigError("table of a model", expected="all rows here", found="a shard")


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """Values of a field in a batch.

    Args:
        name: of the field.
        tokens: of this field alone.
        row_E, column_E: int64.
        share_E: float32, what part of an entry's vector is in its row's.
        single: each row has exactly one.
    """

    name: str
    tokens: FeatureTokens
    row_E: Tensor
    column_E: NDArray[np.int64]
    share_E: Tensor
    single: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedBatch:
    """What a model's network is given for some rows.

    Args:
        dense_BC, embedded_BW: float32.
        label_B, weight_B: float32; weights are 1 for logs without.
        fields: entries of each feature, in the layout's order.
    """

    dense_BC: Tensor
    embedded_BW: Tensor
    label_B: Tensor
    weight_B: Tensor
    fields: Mapping[str, Entries]

    def loss_B(self, network: nn.Module, dense_BC: Tensor, embedded_BW: Tensor) -> Tensor:
        """Each row's loss at these inputs."""
        logits_B = network(dense_BC, embedded_BW)
        return binary_cross_entropy_with_logits(logits_B, self.label_B, weight=self.weight_B, reduction="none")


def embed(model: CtrModel, columns: Columns, batch: Batch, *, train: bool = False) -> EmbeddedBatch:
    """A batch through table and normalizer.

    Args:
        train: look up so that a backward updates the table, and let the normalizer learn.

    Raises:
        DataError: no labels.
    """
    if batch.label_B is None:
        raise DataError("rows to select features by", expected="labels", found="none")
    means = {feature.name: feature.pooling == "mean" for feature in model.table.features}
    fields = {name: _entries(columns, name, batch.tokens, means[name]) for name in columns.layout.names}
    batch = batch.to(model.table.weight.device)
    assert batch.label_B is not None
    if train:
        model.normalizer.update(batch.dense_BD)
        embedded_BW = model.table(batch)
    else:
        with torch.no_grad():
            embedded_BW = model.table(batch)
    return EmbeddedBatch(
        dense_BC=model.normalizer(batch.dense_BD),
        embedded_BW=embedded_BW,
        label_B=batch.label_B,
        weight_B=torch.ones_like(batch.label_B) if batch.weight_B is None else batch.weight_B,
        fields=fields,
    )


def vectors(table: UnifiedEmbedding, batch: EmbeddedBatch, entries: Entries) -> Tensor:
    """The vector of each entry, ``[E, width of the feature]``."""
    if entries.single:
        return batch.embedded_BW[:, table.slices[entries.name]].detach()
    return lookup(table, entries.name, entries.tokens.feature(entries.name)[0])


@torch.no_grad()
def lookup(table: UnifiedEmbedding, name: str, tokens_E: Tensor) -> Tensor:
    """The vector of each token of a feature, of pruned ones that which they are looked up as."""
    tokens = FeatureTokens.concatenate({name: (tokens_E, None)}, len(tokens_E))
    tokens = (tokens if table.pruned is None else table.pruned(tokens)).to(table.weight.device)
    return table.kernel.forward(Request(tokens, table.plan.only(name)), table.table())


@dataclass(frozen=True, kw_only=True, eq=False)
class Replacements:
    """What stands in for what is left out.

    Args:
        field_W: for whole fields: the mean of their rows' vectors.
        value_W: for a value among others: the mean of its field's entries, or its field's pruned token.
        dense_C: for dense columns: their means.
    """

    field_W: Tensor
    value_W: Tensor
    dense_C: Tensor

    @classmethod
    def of(cls, source: Trained, kind: str) -> Replacements:
        """By one pass over the rows.

        Raises:
            ConfigError: an unknown kind.
        """
        if kind not in REPLACEMENTS:
            raise ConfigError("selection.replacement", expected=" or ".join(REPLACEMENTS), found=repr(kind))
        table = source.model.table
        rows, field_W, value_W, entries_W, dense_C = reduce(_added, source.each(_means))
        value_W /= entries_W.clamp(min=1)
        if kind == "pruned":
            token = torch.from_numpy(np.array([PRUNED_TOKEN], np.uint64).view(np.int64))
            for name, at in table.slices.items():
                value_W[at] = lookup(table, name, token)[0].double()
        return cls(field_W=(field_W / rows).float(), value_W=value_W.float(), dense_C=(dense_C / rows).float())


def _means(source: Trained, batch: EmbeddedBatch, number: int) -> list[Tensor]:
    """Of a batch how many rows, and the sum of their vectors; of entries the sum, and how many; of dense columns."""
    table = source.model.table
    value_W = torch.zeros(table.width, dtype=torch.float64, device=batch.embedded_BW.device)
    entries_W = torch.zeros_like(value_W)
    for name, entries in batch.fields.items():
        value_W[table.slices[name]] = vectors(table, batch, entries).double().sum(dim=0)
        entries_W[table.slices[name]] = len(entries.column_E)
    rows = torch.tensor(len(batch.label_B))
    return [rows, batch.embedded_BW.double().sum(dim=0), value_W, entries_W, batch.dense_BC.double().sum(dim=0)]


def _added(one: list[Tensor], other: list[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(one, other, strict=True)]


class Sums:
    """What rows and entries add up to, by field and by column."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.field_F, self.column_D = np.zeros(len(layout.fields)), np.zeros(layout.columns)

    def add(self, name: str, field: float | Tensor, columns_E: NDArray[np.int64], of_E: Tensor) -> None:
        """To a field, and to its columns entry by entry."""
        at = self.layout.names.index(name)
        start, stop = self.layout.bounds_F[at : at + 2]
        self.field_F[at] += float(field)
        weights = of_E.detach().double().cpu().numpy()
        self.column_D[start:stop] += np.bincount(columns_E - start, weights=weights, minlength=int(stop - start))

    def add_dense(self, of_C: Tensor) -> None:
        """To the dense columns, each a field of its own."""
        dense_C = of_C.detach().double().cpu().numpy()
        if len(dense_C):
            self.field_F[-len(dense_C) :] += dense_C
            self.column_D[-len(dense_C) :] += dense_C


def _entries(columns: Columns, name: str, tokens: FeatureTokens, mean: bool) -> Entries:
    column_E, indptr_B = columns.entries(name, tokens)
    length_B = np.diff(indptr_B)
    row_E = torch.from_numpy(np.repeat(np.arange(len(length_B)), length_B))
    share_B = 1 / np.maximum(length_B, 1) if mean else np.ones(len(length_B))
    share_E = torch.from_numpy(np.repeat(share_B, length_B)).float()
    single = tokens.feature(name)[1] is None
    return Entries(
        name=name, tokens=tokens.select((name,)), row_E=row_E, column_E=column_E, share_E=share_E, single=single
    )
