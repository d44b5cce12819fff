"""A log's rows as columns to select among: known values of features, hashed ones, and crosses of features.

    feature in the vocabulary     a column for each value kept, one for missing, one for all others
    any other feature             ``hashed`` columns, values by their hash
    cross of features             columns by the hash of their values together: all pairs where they are lists

Of a list, each value is an entry. Dense columns are taken on their schema's scale.
Suffixes: N rows, E entries, V values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore.batch import Batch, FeatureTokens
from embstore.counting import VALUE
from embstore.errors import ConfigError, DataError, SchemaError, nearest
from embstore.feature_values import FeatureValues
from embstore.hashing import MISSING_TOKEN, compiled, fill_rows, salt, splitmix64_scalar
from embstore.kernels.known import KnownIndex, index_known, rank_tokens
from embstore.logs import ParquetLog
from embstore.schema import Schema
from embstore.selection.batches import Layout, SparseBatch
from embstore.selection.scores import Scores

_MISSING = np.array([MISSING_TOKEN], np.uint64).view(np.int64)


@dataclass(frozen=True, kw_only=True)
class Cross:
    """Features whose values are taken together.

    Args:
        features: names, two or more.
        columns: that the pairs (triples, ...) are hashed into.
    """

    features: tuple[str, ...]
    columns: int = 65_536

    def __post_init__(self) -> None:
        if len(set(self.features)) < max(2, len(self.features)):
            raise ConfigError("cross", expected="two or more features", found=", ".join(self.features) or "none")

    @property
    def name(self) -> str:
        """``a x b``."""
        return " x ".join(self.features)


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """Which column each value of a log has.

    Args:
        schema: of the log; with a label.
        vocabulary: values of some of its features; a ``Vocabulary``, or a mapping alike.
        hashed: columns of each feature that has no vocabulary.
        crosses: of its features.
        seed: of the hashes.

    Raises:
        ConfigError: no label.
        SchemaError: a vocabulary or a cross of a feature that is not there.
    """

    schema: Schema
    vocabulary: Mapping[str, FeatureValues] = field(default_factory=dict)
    hashed: int = 65_536
    crosses: Sequence[Cross] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.schema.features]
        for name in (*self.vocabulary, *(name for cross in self.crosses for name in cross.features)):
            if name not in names:
                raise SchemaError(f"no feature {name!r} to select", do=nearest(name, names))
        if self.schema.label is None:
            raise ConfigError("selection", expected="a schema with a label", found="none")

    @cached_property
    def layout(self) -> Layout:
        """The columns, field by field: features, then crosses, then dense columns."""
        known = {name: len(kept_V) + 2 for name, kept_V in self._kept.items()}
        sizes = {feature.name: known.get(feature.name, self.hashed) for feature in self.schema.features}
        sizes |= {cross.name: cross.columns for cross in self.crosses}
        return Layout(
            names=tuple(sizes),
            bounds_F=np.concatenate([[0], np.cumsum(list(sizes.values()), dtype=np.int64)]).astype(np.int64),
            dense=tuple(dense.name for dense in self.schema.dense),
        )

    def batch(self, batch: Batch) -> SparseBatch:
        """Rows of the log.

        Raises:
            DataError: rows without labels.
        """
        if batch.label_B is None:
            raise DataError("rows to select features by", expected="labels", found="none")
        fields = [self.entries(name, batch.tokens) for name in self.layout.names]
        ends_N = sum((indptr_N for _, indptr_N in fields), np.zeros(len(batch) + 1, np.int64))
        indices_E, next_N = np.empty(ends_N[-1], np.int32), ends_N[:-1].copy()
        for columns_E, indptr_N in fields:
            _place(columns_E, indptr_N, next_N, indices_E)
        dense_NC = batch.dense_BD.numpy().copy()
        for c, dense in enumerate(self.schema.dense):
            if dense.scale == "log":
                dense_NC[:, c] = np.sign(dense_NC[:, c]) * np.log1p(np.abs(dense_NC[:, c]))
        return SparseBatch(
            indptr_N=ends_N, indices_E=indices_E, labels_N=batch.label_B.numpy().copy(), dense_NC=dense_NC
        )

    def entries(self, name: str, tokens: FeatureTokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Columns of a field's values, int64 ``[E]``, and where each row's begin, int64 ``[N + 1]``."""
        tokens_E, indptr_N = self._tokens(name, tokens)
        return self._columns(name, tokens_E, int(self.layout.bounds_F[self.layout.names.index(name)])), indptr_N

    def table(self, name: str, scores: Scores) -> pa.Table:
        """The kept values of a feature in the vocabulary with their scores: ``value``, ``score``.

        Raises:
            SchemaError: no such feature in the vocabulary.
        """
        if name not in self.vocabulary:
            raise SchemaError(f"no values of {name!r}", do=nearest(name, self.vocabulary))
        values = self.vocabulary[name]
        kept = values.values.filter(pa.array(values.kept))
        return pa.table({VALUE: kept, "score": scores.of_field(name)[: len(kept)]})

    @cached_property
    def _kept(self) -> dict[str, NDArray[np.int64]]:
        """Tokens of the values kept."""
        return {name: of.tokens[of.kept].view(np.int64) for name, of in self.vocabulary.items()}

    @cached_property
    def _index(self) -> dict[str, KnownIndex]:
        """Where each known token ranks; that of a missing value is the last."""
        known = {name: np.concatenate([kept_V, _MISSING]) for name, kept_V in self._kept.items()}
        return {name: index_known(of_V, np.array([0, len(of_V)], np.int64)) for name, of_V in known.items()}

    def _tokens(self, name: str, tokens: FeatureTokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens of a field, and where each row's begin."""
        cross = next((cross for cross in self.crosses if cross.name == name), None)
        if cross is None:
            values, offsets = tokens.feature(name)
            ones_N = np.arange(tokens.rows + 1, dtype=np.int64)
            return values.numpy(), ones_N if offsets is None else offsets.numpy()
        tokens_E, indptr_N = self._tokens(cross.features[0], tokens)
        for other in cross.features[1:]:
            theirs_E, their_indptr_N = self._tokens(other, tokens)
            both_N = np.concatenate([[0], np.cumsum(np.diff(indptr_N) * np.diff(their_indptr_N))])
            both_E = np.empty(both_N[-1], np.int64)
            _cross(tokens_E, indptr_N, theirs_E, their_indptr_N, both_E)
            tokens_E, indptr_N = both_E, both_N
        return tokens_E, indptr_N

    def _columns(self, name: str, tokens_E: NDArray[np.int64], base: int) -> NDArray[np.int64]:
        columns_E = np.empty(len(tokens_E), np.int64)
        if name in self._index:
            rank_tokens(tokens_E, self._index[name], 0, len(self._kept[name]) + 1, base, columns_E)
        else:
            size = int(np.diff(self.layout.bounds_F)[self.layout.names.index(name)])
            by = np.uint64(salt(name, 0, self.seed))
            fill_rows(tokens_E.view(np.uint64), by, np.uint64(size), base, columns_E)
        return columns_E


@dataclass(frozen=True, kw_only=True, eq=False)
class LogBatches:
    """A log's rows in batches, as often as it is iterated over.

    Rows that follow each other in a log are often of one user or one minute and alike for that reason; in a batch they
    would pass for signal. So they are shuffled.

    Args:
        log: of ``columns``' schema.
        columns: which each value has.
        rows: of a batch.
        shuffle_window: rows shuffled together; 0 for none.
        seed: of the shuffle.
    """

    log: ParquetLog
    columns: Columns
    rows: int = 8192
    shuffle_window: int = 262_144
    seed: int = 0

    def __iter__(self) -> Iterator[SparseBatch]:
        for batch in self.log.batches(self.rows, shuffle_window=self.shuffle_window, seed=self.seed):
            yield self.columns.batch(batch)


@compiled(nogil=True)
def _place(columns_E, indptr_N, next_N, indices_E):  # type: ignore[no-untyped-def]
    """Entries of a field into each row's next places."""
    for n in range(len(next_N)):
        for e in range(indptr_N[n], indptr_N[n + 1]):
            indices_E[next_N[n]] = columns_E[e]
            next_N[n] += 1


@compiled(nogil=True)
def _cross(left_E, left_N, right_E, right_N, out_E):  # type: ignore[no-untyped-def]
    place = 0
    for n in range(len(left_N) - 1):
        for i in range(left_N[n], left_N[n + 1]):
            mixed = splitmix64_scalar(np.uint64(left_E[i]))
            for j in range(right_N[n], right_N[n + 1]):
                out_E[place] = np.int64(mixed ^ np.uint64(right_E[j]))
                place += 1
