"""The values features take: which a table knows, how often each was seen, and which are dropped.

    Vocabulary    {"user": FeatureValues, "item": FeatureValues, ...}    see ``embstore.feature_values``

Suffix: N tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from embstore.counting import CLICKS, COUNT, FIRST, LAST, VALUE, vocabulary_of
from embstore.distributed import ALONE, Group
from embstore.errors import DataError, SchemaError
from embstore.feature_values import KEPT, STAND_IN, FeatureValues, ValueStatus, unseen_of
from embstore.logs import ParquetLog
from embstore.store.export import appearing, escaped
from embstore.store.files import fsync_file, fsync_folder
from embstore.store.values import FEATURE, open_dataset, reading
from embstore.token_filter import TokenFilter

__all__ = ["FeatureValues", "ValueStatus", "Vocabulary", "exact_tokens"]

_COLUMNS = (COUNT, CLICKS, FIRST, LAST, KEPT, STAND_IN)  # besides the values


class Vocabulary(Mapping[str, FeatureValues]):
    """The values of some features, by name.

    Args:
        features: read when they are asked for, if the mapping does so.

    >>> ann = FeatureValues.of("user", ["eve", "ann"], count=[1, 12], kept=[False, True])
    >>> vocabulary = Vocabulary({"user": ann})
    >>> vocabulary["user"].values.to_pylist()
    ['ann', 'eve']
    >>> from embstore.tokens import tokenize
    >>> tokens_N = tokenize(pa.array(["eve", None, "bob", "ann"]), name="user").values
    >>> [ValueStatus(status).name for status in vocabulary.status("user", tokens_N)]
    ['PRUNED', 'MISSING', 'UNSEEN', 'KNOWN']
    """

    def __init__(self, features: Mapping[str, FeatureValues]) -> None:
        self._features = features

    @classmethod
    def collect(
        cls,
        log: ParquetLog,
        features: Sequence[str] | None = None,
        *,
        progress: Callable[[int], object] | None = None,
        group: Group = ALONE,
    ) -> Vocabulary:
        """The values in a log and how often each occurs, all kept; memory as ``vocabulary_of``.

        Args:
            log: usually the training log.
            features: names; all of the log's schema when not given.
            progress: called with the number of rows after each chunk read.
            group: whose ranks count a part of the log each; rank 0 has the whole vocabulary, the others an empty one.

        Raises:
            SchemaError: no such feature, or as ``vocabulary_of``.
            DataError: a value that can't be a category.
            LogError: as ``ParquetLog``.
        """
        names = [feature.name for feature in log.schema.features] if features is None else list(dict.fromkeys(features))
        if not names:
            return cls({})
        schema = replace(log.schema, features=tuple(log.schema.feature(name) for name in names))
        found = vocabulary_of(log, schema, progress=progress, group=group)
        return group.together(lambda: cls({name: _of_table(name, table) for name, table in found.items()}))

    @classmethod
    def from_parquet(cls, folder: str | Path) -> Vocabulary:
        """What ``to_parquet`` or the vocabulary job wrote; all columns but ``value`` may be absent.

        Raises:
            LogError: nothing there, or it can't be read.
            SchemaError, DataError: other columns, or values that can't be a vocabulary's.
        """
        out = {}
        for path in sorted(Path(folder).glob(f"{FEATURE}=*/")):
            name = unquote(path.name.partition("=")[2])
            source = open_dataset(path, "vocabulary")
            if VALUE not in source.schema.names:
                found = ", ".join(source.schema.names)
                raise SchemaError(f"vocabulary {path}", expected=f"a column {VALUE!r}", found=found)
            columns = [column for column in (VALUE, *_COLUMNS) if column in source.schema.names]
            with reading(f"vocabulary {path}"):
                table = source.to_table(columns=columns, use_threads=False)
            out[name] = _of_table(name, table)
        if not out:
            open_dataset(Path(folder), "vocabulary")  # says what is wrong, where that is known
            raise SchemaError(f"vocabulary {folder}", expected=f"folders {FEATURE}=NAME", found="none")
        return cls(out)

    def to_parquet(self, folder: str | Path) -> None:
        """Write a new folder, ``feature=NAME/part-0.parquet`` with the columns of ``FeatureValues.table``.

        It appears whole or not at all; ``embstore export --values`` takes it.

        Raises:
            StoreError: ``folder`` exists, or can't be written.
        """
        with appearing(Path(folder)) as temporary:
            temporary.mkdir()
            for name, of in self.items():
                part = temporary / f"{FEATURE}={escaped(name)}"
                part.mkdir()
                told = of.unseen != "keep"  # Parquet keeps what a table's metadata say with its Arrow schema only
                with (part / "part-0.parquet").open("xb") as file:
                    pq.write_table(of.table(), file, compression="zstd", store_schema=told)
                    fsync_file(file)
                fsync_folder(part)
            fsync_folder(temporary)

    def __getitem__(self, name: str) -> FeatureValues:
        return self._features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    def status(self, feature: str, tokens_N: NDArray[Any]) -> NDArray[np.uint8]:
        """``ValueStatus`` of tokens of one of its features, uint8 ``[N]``.

        Args:
            tokens_N: uint64, or their bits as int64.
        """
        return self[feature].known.of(tokens_N)

    def filtered(self, feature: str, tokens_N: NDArray[Any]) -> NDArray[Any]:
        """Tokens as they are looked up; the same array when all stay.

        Those of dropped values become their stand-in's or the pruned one, as do unseen ones where these are pruned.

        A feature that is not in the vocabulary has no dropped values.
        """
        return self[feature].filtered(tokens_N) if feature in self else tokens_N

    def merged(self, other: Vocabulary) -> Vocabulary:
        """The values of both: counts are added, and what either has dropped is not kept.

        Raises:
            SchemaError: a feature whose values are of different kinds.
        """
        out = dict(self)
        for name, of in other.items():
            out[name] = out[name].merged(of) if name in out else of
        return Vocabulary(out)

    def digest(self) -> str:
        """sha256 of what decides how values are looked up: names, values, which are kept, what stands in for those that
        are not, whether unseen ones are kept."""
        digest = hashlib.sha256()
        for name, of in sorted(self.items()):
            digest.update(f"{len(name.encode())} {name} {len(of)} {of.unseen}\n".encode())
            order = np.argsort(of.tokens, kind="stable")
            digest.update(of.tokens[order].data)
            digest.update(np.packbits(of.kept[order]).data)
            if of.stand_in is not None:
                place = np.argsort(order)
                digest.update(np.where(of.stand_in >= 0, place[of.stand_in], -1)[order].data)
        return digest.hexdigest()

    def same(self, other: Vocabulary) -> bool:
        """Whether all is equal."""
        return self is other or (self.keys() == other.keys() and all(of.same(other[name]) for name, of in self.items()))


def exact_tokens(
    log: ParquetLog,
    *,
    pruned: TokenFilter | None = None,
    progress: Callable[[int], object] | None = None,
    group: Group = ALONE,
) -> dict[str, Tensor]:
    """The distinct tokens of each exact feature in a log, in one pass over those columns.

    Args:
        log: usually the training log.
        pruned: which values are looked up as others or as the pruned token, which then are among the tokens.
        progress: called with the number of rows after each chunk read.
        group: whose ranks read a part of the log each; all have the tokens of the whole.

    Returns:
        ``{feature: sorted int64 tokens}`` for the features with ``exact=True``; no pass when there are none.
    """
    features = tuple(feature for feature in log.schema.features if feature.exact)
    if not features:
        return {}
    schema = replace(log.schema, features=features, dense=(), label=None, weight=None, group=None)
    seen: dict[str, NDArray[np.int64]] = {feature.name: np.empty(0, np.int64) for feature in features}
    log = ParquetLog(log.source, schema, labelled=False)
    for rows in log.rows_from(pieces=log.pieces[group.rank :: group.world]):
        for name, tokens in rows.features.items():
            values = tokens.values if pruned is None else pruned.of_feature(name, tokens.values)
            seen[name] = np.union1d(seen[name], values.view(np.int64))
        if progress is not None:
            progress(rows.size)
    return {name: torch.cat(group.gather(torch.from_numpy(tokens))).unique() for name, tokens in seen.items()}


def _of_table(name: str, table: pa.Table) -> FeatureValues:
    """Of ``value`` and those of ``_COLUMNS`` that are there."""
    others: dict[str, Any] = {}
    for column in _COLUMNS:
        if column in table.column_names:
            given = table.column(column)
            if column in (FIRST, LAST, STAND_IN):
                others[column] = given.combine_chunks()
                continue
            if given.null_count:
                raise DataError(f"values of {name!r}: {column}", expected="one for each", found="a missing one")
            others[column] = given.to_numpy()
    return FeatureValues.of(name, table.column(VALUE), unseen=unseen_of(table), **others)
