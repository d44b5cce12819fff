"""One version, read by many: raw values to vectors, to statuses, to scores.

    raw values ──values.py──> tokens ──plan──> rows of the mapped table ──> vectors ──network──> scores

The table stays where it lies: processes that read a version share its memory. Everything is as ``Version.lookup`` and
``CtrModel.restore`` give it, bit for bit.

Shape suffixes: B rows, N values, W width, D dense columns.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from embstore.batch import FeatureTokens
from embstore.checkpoints import load_into
from embstore.ctr import BuildNetwork, build_network
from embstore.encoding import column_of, dense_numbers
from embstore.errors import ConfigError, RequestError, SchemaError, nearest
from embstore.kernels import Table, TableOptimizer
from embstore.kernels.changed import ChangedRows
from embstore.kernels.cpu import DTYPES, CpuKernel
from embstore.kernels.few import MOST, FewLookup
from embstore.kernels.plan import LookupPlan, Request
from embstore.kernels.reference import pooled
from embstore.normalization import StreamingNormalizer
from embstore.schema import Feature
from embstore.serving.indexes import Index, Indexes
from embstore.serving.protocol import BYTES, Tensor
from embstore.serving.values import byte_tokens, check_alike, tokens_of
from embstore.store.quantization import encoding_of
from embstore.store.table import VersionTable
from embstore.store.version import Version
from embstore.tokens import Tokens

Records = Any  # columns by name, an Arrow table or batch, or a sequence of rows


class Looked(NamedTuple):
    """What a lookup of one feature gives.

    Args:
        vectors_BW: float32 ``[B, lookups * dim]``.
        status_N: uint8, a ``ValueStatus`` for each value (of a list feature, those of all lists, one after the other).
    """

    vectors_BW: NDArray[np.float32]
    status_N: NDArray[np.uint8]


@dataclass(frozen=True)
class Prepared:
    """Features whose rows are resolved, for requests that repeat.

    Args:
        reader: whose.
        features: in the order of the output.
        plan: of their rows.
    """

    reader: Reader
    features: tuple[Feature, ...]
    plan: LookupPlan

    @property
    def width(self) -> int:
        """W: numbers of an output row."""
        return self.plan.width

    @property
    def slices(self) -> dict[str, slice]:
        """Where each feature's numbers lie in the output."""
        return self.plan.slices

    def embed(self, records: Records) -> NDArray[np.float32]:
        """``Reader.embed`` of these features."""
        columns = _columns(records)
        tokens = {feature.name: self.reader.tokens(feature, _values(columns, feature)) for feature in self.features}
        return self.of_tokens(tokens)

    def of_tokens(self, tokens: Mapping[str, Tokens]) -> NDArray[np.float32]:
        """The vectors of tokens by feature, float32 ``[B, width]``.

        Raises:
            RequestError: features of different numbers of rows.
        """
        rows = check_alike({name: count(of) for name, of in tokens.items()})
        few = self.reader.few(self.plan)
        if few is not None and rows * self.plan.width <= MOST and all(of.offsets is None for of in tokens.values()):
            values = [tokens[name].values for name in self.plan.names]
            return few((values[0] if len(values) == 1 else np.concatenate(values)).view(np.int64), rows)
        return self.reader.vectors(self.plan, tokens, rows)


class Reader:
    """Vectors, statuses and scores of a version; any number of threads may ask at once.

    Args:
        version: opened.
        build: builds its network (``embstore.models.build``), for scores.
        indexes: which features' values are searched for neighbours.
    """

    waits = False  # for other processes, when asked

    def __init__(self, version: Version, build: BuildNetwork | None = None, indexes: Indexes | None = None) -> None:
        self.version, self._build, self._indexes = version, build, indexes
        self._features = {feature.name: feature for feature in version.schema.features}
        self._trained_on = version.manifest["columns"]
        self._few: dict[tuple[str, ...], FewLookup] = {}
        self._kernels = threading.local()
        table = version.table
        self._is_plain = table.dtype in DTYPES and table.encoding == encoding_of(table.dtype)  # it lies as it is read
        self._table = _mapped(table) if self._is_plain and not table.overlays else None
        self._changed: ChangedRows | None = None  # by deltas, once they are at hand

    def load(self, *, progress: Any = None) -> None:
        """Read, and check, all of the table and build the network, so that no request waits for a disk.

        Raises:
            CorruptVersionError: bytes are not what was published.
            CheckpointError: ``build`` makes another network than the one published.
        """
        self.load_rows(progress=progress)
        for feature in self._features.values():  # compiled, and resolved
            self.lookup(feature.name, pa.array([None], pa.null()))
        byte_tokens(Tensor("warm", BYTES, (1,), b"\0\0\0\0"))
        if self.scores:
            self.model  # noqa: B018 - built once
        self.indexes  # noqa: B018 - opened once

    def load_rows(self, *, progress: Any = None) -> None:
        """Have the table's rows at hand, checked."""
        table = self.version.table
        table.buckets.check(range(table.layout.buckets), progress=progress)
        overlays = table.overlays
        if overlays and ChangedRows.serves(table.dim, table.dtype):
            changes = [(of.index_R.numpy(), of.rows_RD) for of in (overlays[delta] for delta in range(len(overlays)))]
            self._changed = ChangedRows(changes, table.num_rows)

    def ahead(self, tokens: Mapping[str, Tokens], deadline: float | None = None) -> Reader:
        """A reader that has the rows of these tokens, by feature, at hand: this one, unless it ``waits``.

        Args:
            deadline: ``time.monotonic()`` when nobody waits for them any more.
        """
        return self

    @property
    def scores(self) -> bool:
        """Whether it has a network to score with."""
        return self._build is not None and bool(self.version.dense)

    def feature(self, name: str) -> Feature:
        """The feature of that name.

        Raises:
            SchemaError: there is none.
        """
        return self._features.get(name) or self.version.schema.feature(name, of=f"version {self.version.id}")

    def trained_on(self, feature: str) -> str | None:
        """The Arrow type of the log's column, as text, where it is known."""
        return self._trained_on.get(feature)

    def prepare(self, *features: str) -> Prepared:
        """These features (all when none is named), resolved for requests that repeat.

        Raises:
            SchemaError: no such feature.
        """
        names = features or tuple(self._features)
        # Made anew: kept by its reader, in a circle, it would keep a version in memory until the garbage is collected.
        return Prepared(self, tuple(self.feature(name) for name in names), self.version.plan.only(*names))

    def lookup(self, feature: str, values: pa.Array | pa.ChunkedArray | Iterable[Any]) -> Looked:
        """The vectors and statuses of raw values of one feature.

        Args:
            values: as the log's column holds them, ``None`` for missing; lists for list features; for a feature with a
                transform also what the transform gives.

        Raises:
            SchemaError: no such feature, or values of another type than it was trained on.
            DataError: a value that has no token.
            CorruptVersionError: rows that are not what was published.
        """
        spec = self.feature(feature)
        return self.look(spec.name, self.tokens(spec, values))

    def look(self, feature: str, tokens: Tokens) -> Looked:
        """``lookup`` of tokens."""
        vectors = self.prepare(feature).of_tokens({feature: tokens})
        return Looked(vectors, self.version.status(feature, tokens.values))

    def tokens(self, feature: Feature, values: Any) -> Tokens:
        """Raw values as tokens."""
        return self.filtered(feature, tokens_of(values, feature, self.trained_on(feature.name)))

    def filtered(self, feature: Feature, tokens: Tokens) -> Tokens:
        """Tokens as they are looked up: of values that the vocabulary has dropped, the pruned one."""
        return Tokens(self.version.filtered(feature.name, tokens.values), tokens.offsets)

    def embed(self, records: Records, features: Sequence[str] = ()) -> NDArray[np.float32]:
        """The vectors of records, concatenated as the model reads them.

        Args:
            records: columns by name (of a feature, or else of its column in the log), an Arrow table, or rows.
            features: which, in order; all when empty.

        Returns:
            float32 ``[B, width]``; ``prepare(*features).slices`` says where each feature's numbers lie.

        Raises:
            SchemaError: a feature is missing, or has values of another type than it was trained on.
            RequestError: columns of different lengths.
        """
        return self.prepare(*features).embed(records)

    def score(self, records: Records) -> NDArray[np.float32]:
        """The model's probability of a positive label for each record.

        Args:
            records: as for ``embed``, with the schema's dense columns, too.

        Returns:
            float32 ``[B]``.

        Raises:
            ConfigError: no network to score with.
            SchemaError, RequestError: as ``embed``.
        """
        columns = _columns(records)
        embedded_BW = self.embed(columns)
        dense = [
            dense_numbers(column_of(_dense(columns, of.name, of.source), of.name), of.source)
            for of in self.version.schema.dense
        ]
        return self.score_of(embedded_BW, dense)

    def score_of(self, embedded_BW: NDArray[np.float32], dense: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """``score`` of vectors and dense columns in the schema's order, ``[B]`` each, NaN where missing."""
        rows = check_alike({"vectors": len(embedded_BW), **{str(i): len(of) for i, of in enumerate(dense)}})
        dense_BD = torch.from_numpy(np.stack(dense, axis=1)) if dense else torch.empty(rows, 0)
        with torch.inference_mode():
            logits_B = self.model["network"](self.model["normalizer"](dense_BD), torch.from_numpy(embedded_BW))
            return logits_B.sigmoid().numpy()

    @cached_property
    def model(self) -> torch.nn.ModuleDict:
        """The normalizer and the network.

        Raises:
            ConfigError: no network to score with.
            CheckpointError: ``build`` makes another network than the one published.
        """
        version = self.version
        if self._build is None or not version.dense:
            found = "none" if self._build is not None else "no builder of networks"
            raise ConfigError(f"scores of version {version.id}", expected="a network", found=found)
        with torch.random.fork_rng(devices=[]):
            network = build_network(self._build, version.manifest["model"])
        model = torch.nn.ModuleDict({"normalizer": StreamingNormalizer(version.schema.dense), "network": network})
        load_into(model, version.dense, origin=f"version {version.id}")
        return model.eval().requires_grad_(False)

    def neighbors(
        self, feature: str, values: pa.Array | pa.ChunkedArray | Iterable[Any], k: int = 10, *, exact: bool = False
    ) -> tuple[pa.Array, NDArray[np.float32]]:
        """The ``k`` nearest values of a feature to each of some of its values, themselves left out.

        Args:
            values: as for ``lookup``.
            exact: compare with all vectors, even where there is a graph.

        Returns:
            Values ``[B * k]``, row after row, missing ones where there are fewer; and scores, float32 ``[B, k]``:
            higher is nearer, -inf there.

        Raises:
            ConfigError: the feature is not searched.
            SchemaError, DataError: as ``lookup``.
        """
        spec = self.feature(feature)
        tokens = self.tokens(spec, values)
        return self.index(feature).search(
            self.look(feature, tokens).vectors_BW,
            k,
            token_Q=tokens.values if tokens.offsets is None else None,
            exact=exact,
        )

    def index(self, feature: str) -> Index:
        """Of a feature's values.

        Raises:
            ConfigError: it is not searched.
        """
        if feature not in self.indexes:
            found, do = ", ".join(self.indexes) or "none", f"serve with --search {feature}"
            raise ConfigError(f"neighbours of {feature!r}", expected="a feature that is searched", found=found, do=do)
        return self.indexes[feature]

    @cached_property
    def indexes(self) -> dict[str, Index]:
        """By feature, of those that are searched."""
        return {} if self._indexes is None else self._indexes.of(self.version)

    def vectors(self, plan: LookupPlan, tokens: Mapping[str, Tokens], rows: int) -> NDArray[np.float32]:
        """The output of a plan, float32 ``[rows, plan.width]``."""
        table = self._table if self.version.table.buckets.complete else None
        columns = {
            name: (
                torch.from_numpy(of.values.view(np.int64)),
                None if of.offsets is None else torch.from_numpy(of.offsets),
            )
            for name, of in ((name, tokens[name]) for name in plan.names)
        }
        request = Request(FeatureTokens.concatenate(columns, rows), plan)
        with torch.no_grad():
            if table is not None:
                return self._kernel.forward(request, table).numpy()
            return pooled(request, self._gather).numpy()

    def _gather(self, rows_T: torch.Tensor) -> torch.Tensor:
        table = self.version.table
        if self._changed is None:
            rows_TD = table.gather(rows_T)
        else:
            rows_TD = table.stored(rows_T)
            self._changed.put(rows_T, rows_TD)
        return rows_TD.float() if rows_TD.dtype == torch.float64 else rows_TD

    def few(self, plan: LookupPlan) -> FewLookup | None:
        """A plan's lookup of few rows, made once, where the table is read as it lies, and is at hand."""
        table = self.version.table
        if not (self._is_plain and table.buckets.complete) or (table.overlays and self._changed is None):
            return None
        if plan.names not in self._few:
            self._few[plan.names] = FewLookup(plan, table.buckets.rows, self._changed)
        return self._few[plan.names]

    @property
    def _kernel(self) -> CpuKernel:
        """Of this thread."""
        if not hasattr(self._kernels, "kernel"):
            self._kernels.kernel = CpuKernel()
        kernel: CpuKernel = self._kernels.kernel
        return kernel


def count(tokens: Tokens) -> int:
    """Rows of them."""
    return len(tokens.values) if tokens.offsets is None else len(tokens.offsets) - 1


def _mapped(table: VersionTable) -> Table:
    """The table as kernels take it."""
    return Table(
        weight_ND=table.buckets.rows,
        state={},
        optimizer=TableOptimizer(name="sgd"),
        learning_rate=0.0,
        progress=np.zeros(2),
    )


def _columns(records: Records) -> Mapping[str, Any]:
    """Values by name."""
    if isinstance(records, Mapping):
        return records
    if not isinstance(records, pa.Table | pa.RecordBatch):
        try:
            records = pa.Table.from_pylist(list(records))
        except (pa.ArrowException, TypeError, AttributeError) as error:
            raise RequestError(
                "records", expected="columns by name, an Arrow table, or rows", found=str(error)
            ) from error
    return dict(zip(records.schema.names, records.columns, strict=True))


def _values(columns: Mapping[str, Any], feature: Feature) -> Any:
    return _dense(columns, feature.name, feature.source)


def _dense(columns: Mapping[str, Any], name: str, source: str) -> Any:
    for key in (name, source):
        if key in columns:
            return columns[key]
    raise SchemaError(f"records have no {name!r}", do=nearest(name, columns))
