"""A log's rows as columns to select among: known values of features, hashed ones, and crosses of features.

    feature in the vocabulary     a column for each value kept, one for missing, one for all others
    any other feature             ``hashed`` columns, values by their hash
    cross of features             columns by the hash of their values together: all pairs where they are lists

Of a list, each value is an entry. Dense columns are taken on their schema's scale.
Suffixes: N rows, E entries, V values.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore.batch import Batch, FeatureTokens
from embstore.counting import VALUE
from embstore.encoding import Rows
from embstore.errors import ConfigError, DataError, SchemaError, nearest
from embstore.feature_values import FeatureValues
from embstore.hashing import MISSING_TOKEN, compiled, fill_rows, salt, splitmix64_scalar
from embstore.kernels.known import KnownIndex, index_known, rank_tokens
from embstore.logs import ParquetLog
from embstore.prefetch import Prefetch
from embstore.schema import Schema
from embstore.selection.batches import Layout, SparseBatch
from embstore.selection.scores import Scores
from embstore.threads import pool

_POOLED = 32_768  # rows whose fields are worth a thread each
_BLOCK = 4096  # rows
_MISSING = np.array([MISSING_TOKEN], np.uint64).view(np.int64)
_Values: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64] | None]  # and where each row's begin; None: one each
_Reader: TypeAlias = Callable[[str], _Values]  # tokens of a feature


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
        label_N = None if batch.label_B is None else batch.label_B.numpy()
        return self._sparse(_reader(batch.tokens), len(batch), label_N, batch.dense_BD.numpy())

    def rows(self, rows: Rows) -> SparseBatch:
        """Rows as they were read, all of them; of many fields' columns a thread of the pool each.

        Raises:
            DataError: rows without labels.
        """

        def read(name: str) -> _Values:
            return rows.features[name].values.view(np.int64), rows.features[name].offsets

        return self._sparse(read, rows.size, rows.label_B, rows.dense_BD)

    def _sparse(
        self, read: _Reader, rows: int, label_N: NDArray[np.float32] | None, dense_NC: NDArray[np.float32]
    ) -> SparseBatch:
        if label_N is None:
            raise DataError("rows to select features by", expected="labels", found="none")
        names = self.layout.names
        begins = [self._begins(name, read) for name in names]
        sizes = [rows if indptr_N is None else int(indptr_N[-1]) for indptr_N in begins]
        columns_E = np.empty(sum(sizes), np.int32)  # field by field
        parts = [columns_E[start:stop] for start, stop in pairwise(np.cumsum([0, *sizes]).tolist())]

        def fill(name: str, part: NDArray[np.int32]) -> None:
            self._fill(name, self._tokens(name, read), part)

        _ = self._index  # made here, once
        list((pool().map if rows >= _POOLED else map)(fill, names, parts))
        if all(indptr_N is None for indptr_N in begins):
            indices_E = np.ascontiguousarray(columns_E.reshape(len(parts), rows).T).reshape(-1)
            ends_N = _ones(rows) * len(parts)
        else:
            bounds = [_ones(rows) if indptr_N is None else indptr_N for indptr_N in begins]
            ends_N = np.sum(bounds, axis=0)
            indices_E, next_N = np.empty_like(columns_E), ends_N[:-1].copy()
            for start in range(0, rows, _BLOCK):  # whose entries stay in the cache until all fields are in
                for part, indptr_N in zip(parts, bounds, strict=True):
                    _place(part, indptr_N, start, min(start + _BLOCK, rows), next_N, indices_E)
        dense_NC = dense_NC.copy()
        for c, dense in enumerate(self.schema.dense):
            if dense.scale == "log":
                dense_NC[:, c] = np.sign(dense_NC[:, c]) * np.log1p(np.abs(dense_NC[:, c]))
        return SparseBatch(indptr_N=ends_N, indices_E=indices_E, labels_N=label_N.copy(), dense_NC=dense_NC)

    def entries(self, name: str, tokens: FeatureTokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Columns of a field's values, int64 ``[E]``, and where each row's begin, int64 ``[N + 1]``."""
        read = _reader(tokens)
        tokens_E, indptr_N = self._tokens(name, read), self._begins(name, read)
        columns_E = np.empty(len(tokens_E), np.int64)
        self._fill(name, tokens_E, columns_E)
        return columns_E, _ones(tokens.rows) if indptr_N is None else indptr_N

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

    def _features(self, name: str) -> tuple[str, ...]:
        """Of a field: its own, or those of the cross."""
        return next((cross.features for cross in self.crosses if cross.name == name), (name,))

    def _begins(self, name: str, read: _Reader) -> NDArray[np.int64] | None:
        """Where each row's values of a field begin; ``None``: one each."""
        lists = [np.diff(indptr_N) for _, indptr_N in map(read, self._features(name)) if indptr_N is not None]
        return np.concatenate([[0], np.cumsum(np.prod(lists, axis=0))]) if lists else None

    def _tokens(self, name: str, read: _Reader) -> NDArray[np.int64]:
        """Of a field's values."""
        first, *others = self._features(name)
        tokens_E, indptr_N = read(first)
        for other in others:
            theirs_E, their_indptr_N = read(other)
            ours_N = _ones(len(tokens_E)) if indptr_N is None else indptr_N
            theirs_N = _ones(len(theirs_E)) if their_indptr_N is None else their_indptr_N
            indptr_N = np.concatenate([[0], np.cumsum(np.diff(ours_N) * np.diff(theirs_N))])
            both_E = np.empty(indptr_N[-1], np.int64)
            _cross(tokens_E, ours_N, theirs_E, theirs_N, both_E)
            tokens_E = both_E
        return tokens_E

    def _fill(self, name: str, tokens_E: NDArray[np.int64], columns_E: NDArray[np.integer]) -> None:
        """The column of each token of a field."""
        at = self.layout.names.index(name)
        base, end = self.layout.bounds_F[at : at + 2].tolist()
        if name in self._index:
            rank_tokens(tokens_E, self._index[name], 0, len(self._kept[name]) + 1, base, columns_E)
        else:
            by = np.uint64(salt(name, 0, self.seed))
            fill_rows(tokens_E.view(np.uint64), by, np.uint64(end - base), base, columns_E)


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
        for window in self.windows():
            yield from window

    def windows(self) -> Generator[Iterator[SparseBatch], None, None]:
        """The batches of each window; those of the next are made by a thread while those of one are used."""
        with Prefetch(self._encoded(), depth=1, name="embstore-columns") as encoded:
            for rows, orders in encoded:
                yield map(rows.take, orders)

    def window(self, start: int) -> list[SparseBatch]:
        """The batches of the window that begins with this row (``ParquetLog.windows``), made here."""
        rows, orders = next(self._encoded(start))
        return list(map(rows.take, orders))

    def _encoded(self, start: int = 0) -> Iterator[tuple[SparseBatch, list[NDArray[np.int64]]]]:
        for rows, orders in self.log.rows_and_orders(
            self.rows, start=start, shuffle_window=self.shuffle_window, seed=self.seed
        ):
            yield self.columns.rows(rows), orders


def _reader(tokens: FeatureTokens) -> _Reader:
    def read(name: str) -> _Values:
        values, offsets = tokens.feature(name)
        return values.numpy(), None if offsets is None else offsets.numpy()

    return read


def _ones(rows: int) -> NDArray[np.int64]:
    """Where each row's value begins."""
    return np.arange(rows + 1, dtype=np.int64)


@compiled(nogil=True)
def _place(columns_E, indptr_N, start, stop, next_N, indices_E):  # type: ignore[no-untyped-def]
    """Entries of a field into these rows' next places."""
    for n in range(start, stop):
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
