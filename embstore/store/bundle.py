"""What is published as one: table, schema, vocabulary, dense model, and what training goes on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from embstore.errors import StoreError
from embstore.schema import Schema

if TYPE_CHECKING:
    from embstore.store.version import Version
    from embstore.vocabulary import Vocabulary

NO_NETWORK = "none"  # the model's name in a version of vectors alone
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much in all: bytes of ``"write"``, ``"upload"``,
``"verify"`` and ``"diff"``, rows of ``"compare"`` (a delta's)."""


class TableSource(Protocol):
    """A table that can be published: ``UnifiedEmbedding``, or the table of another version."""

    @property
    def dim(self) -> int:
        """Numbers per row."""

    @property
    def num_rows(self) -> int:
        """Rows of the whole table, exact blocks included."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""

    def describe(self) -> dict[str, Any]:
        """Plain values: hash_spec, seed, hashed_rows, num_tables, and features, each a schema entry with its ``rows``:
        ``{"base", "size"}`` of the range that each lookup falls in."""

    def read_rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` on the host, ``[stop - start, dim]``."""

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of these numbers (int64, ascending) on the host, ``[len(rows), dim]``, a copy."""

    def exact_tokens(self) -> Mapping[str, Tensor]:
        """Sorted int64 tokens of each exact feature."""


@dataclass(frozen=True, kw_only=True)
class OptimizerState:
    """What an optimizer remembers, so that training can go on where it stopped.

    Args:
        name: of the table's optimizer, e.g. ``"rowwise_adagrad"``.
        steps: updates of the table done.
        rates: the sum of their learning rates.
        table: its tensors by name, ``[N]`` or ``[N, width]``.
        dense: those of the network's optimizer.
    """

    name: str
    steps: int
    rates: float
    table: Mapping[str, Tensor]
    dense: Mapping[str, Tensor]

    def kinds(self, rows: int) -> dict[str, tuple[torch.dtype, int]]:
        """By name of the table's tensors, their dtype and numbers a row, 0 for ``[N]``.

        Raises:
            StoreError: one is not of ``rows`` rows, or has more than two dimensions.
        """
        for name, tensor in self.table.items():
            if tensor.dim() not in (1, 2) or len(tensor) != rows:
                expected = f"[{rows:,}] or [{rows:,}, width]"
                raise StoreError(f"optimizer tensor {name!r}", expected=expected, found=str(list(tensor.shape)))
        return {name: (of.dtype, of.shape[1] if of.dim() > 1 else 0) for name, of in self.table.items()}

    @property
    def row_bytes(self) -> int:
        """Of a row of all the table's tensors."""
        return sum(tensor[:1].numel() * tensor.itemsize for tensor in self.table.values())


@dataclass(frozen=True, kw_only=True)
class Change:
    """A version published as what changed since another one.

    Args:
        base: that version; its table has the same layout and exact tokens.
        touched: int64, ascending: the only rows that may have changed; all are compared when not given.
        significance: rows that changed by no more than this (L2) are left out; readers, and who trains on, have the
            base's values and optimizer state of them until they have changed by more.
        encoding: of the changed rows: a table's dtype, ``int8`` or ``int4``; the table's own dtype when not given. What
            readers would have of a row in it must have changed too, by as much.
        smallest: publish what takes the fewest bytes: the whole table, in its own dtype, where a delta would take no
            fewer; and nothing where nothing has changed: the base is the version then.
    """

    base: Version
    touched: Tensor | None = None
    significance: float = 0.0
    encoding: str | None = None
    smallest: bool = False


def without_network(schema: Schema, dim: int) -> dict[str, Any]:
    """The ``model`` of a bundle of vectors alone: readers look up and search it, and say that it has no scores."""
    widths = [feature.lookups * dim for feature in schema.features]
    return {"name": NO_NETWORK, "settings": {}, "dense_width": 0, "widths": widths}


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What is published, promoted and rolled back as one.

    Args:
        table: the rows.
        schema: of the logs it was trained on; its features are the table's.
        dense_state: the ``state_dict`` of all but the table: names from ``"normalizer."`` and ``"network."``; none of
            vectors alone, which no network reads.
        model: ``{"name", "settings", "dense_width", "widths"}``: what builds the network again; ``without_network`` of
            vectors alone.
        metrics: numbers by name, nested if need be; one that is not finite is stored as null.
        lineage: where it came from, under ``logs``, ``vocabulary``, ``selection``, ``node2vec``, ``config``; and
            ``space``, the id that versions share whose vectors can be compared (training continued from one another);
            a new one when absent.
        columns: Arrow type, as text, of the log's column of each feature; a feature whose type is not known is absent.
        optimizer: what training goes on from; not needed to read.
        vocabulary: the values that features take; a value it has dropped is looked up as its stand-in, or as the
            feature's pruned token. A delta without has its base's. Of several processes that publish together, the
            first one's counts.
        compacts: id of the delta whose rows these are; for ``Store.compact``.
        shard: the rows of the table, and of the optimizer's tensors, that are in this process, when several publish
            together; all when not given.
    """

    table: TableSource
    schema: Schema
    dense_state: Mapping[str, Tensor]
    model: Mapping[str, Any]
    metrics: Mapping[str, Any]
    lineage: Mapping[str, Any]
    columns: Mapping[str, str] = field(default_factory=dict)
    optimizer: OptimizerState | None = None
    vocabulary: Vocabulary | None = None
    compacts: str | None = None
    shard: range | None = None

    @property
    def rows(self) -> range:
        """Those that are in this process."""
        return range(self.table.num_rows) if self.shard is None else self.shard
