"""Nearest neighbours among the values of a feature, exact or by usearch's graph.

    values = values_of(version, "item_id", "vectors/items.parquet")
    near = Neighbors.build(values, vectors_of(version, "item_id", values))
    names, scores_QK = near.search(version.lookup("item_id", ["lamp", "sofa"]), k=10)

N values, U distinct vectors, D numbers each, Q queries, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embstore.counting import VALUE
from embstore.errors import ConfigError, DataError
from embstore.serving.graph import Graph
from embstore.serving.matrices import as_kept, distinct, floats, normalized
from embstore.serving.scores import Metric, best, best_of, spread
from embstore.store.export import Values, chosen_values
from embstore.store.files import FileDigest
from embstore.store.version import Version

_MOST_RESULTS = 1 << 27
_PIECE_NUMBERS = 1 << 22  # of vectors at a time
_QUERIES = 1024  # at a time, by the graph
_CHOICES: dict[str, tuple[int, int]] = {"connectivity": (2, 1024), "expansion": (1, 1 << 16), "threads": (1, 1024)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbors:
    """Nearest neighbours among a feature's values. Make one with ``build`` or ``open``; any thread may search it.

    **A higher score is nearer**, whatever the metric: the cosine of the angle, the dot product, or minus the squared
    Euclidean distance. Scores are summed in float64 and rounded to float32, and are the same bits from an exact and an
    approximate search, of one query or of many. Values of equal score come in the order in which they were given.

    - Values with one vector (in a hashed table, all that share its rows) are one node of the graph, so none hides
      another: the first of them by position come first.
    - A zero vector has no direction: its cosine with anything is 0.
    - Values may repeat, but not be missing; each position counts for itself.
    - No values: every search finds none.

    Args:
        values: of N positions, as they were given.
        metric: ``"cosine"``, ``"dot"`` or ``"l2"``.
        vectors_UD: the distinct vectors, by first position; for cosine of length 1.
        group_N: which of them each value has.
        expansion: candidates an approximate search considers, unless told otherwise.
        graph: ``None`` where every search is exact.
        starts_U1, order_N: the values of vector u are ``order_N[starts_U1[u]:starts_U1[u + 1]]``, ascending.
    """

    values: pa.Array
    metric: Metric
    vectors_UD: NDArray[np.float32]
    group_N: NDArray[np.int64]
    expansion: int
    graph: Graph | None
    starts_U1: NDArray[np.int64]
    order_N: NDArray[np.int64]

    @classmethod
    def build(
        cls,
        values: pa.Array | pa.ChunkedArray,
        vectors_ND: Any,
        *,
        metric: Metric = "cosine",
        exact_below: int = 10_000,
        connectivity: int = 16,
        expansion_build: int = 128,
        expansion: int = 128,
        threads: int = 1,
        progress: Callable[[int], object] | None = None,
    ) -> Neighbors:
        """Make these values searchable by their vectors.

        Args:
            values: N of any Arrow type, none missing.
            vectors_ND: float16, float32 or float64 ``[N, D]`` (kept as float32), finite, of length 1e18 at most.
            metric: what makes a score.
            exact_below: with fewer distinct vectors than this, no graph is built and every search is exact.
            connectivity: neighbours of a node in the graph (HNSW's M); more find more and take more memory.
            expansion_build: candidates considered when a node is added (HNSW's efConstruction).
            expansion: candidates considered by a search (HNSW's ef); ``recall`` says what a choice is worth.
            threads: that build the graph. With one, the same vectors always give the same graph; with more, it
                is sooner done, and differs a little each time.
            progress: called with the number of distinct vectors after each piece added to the graph.

        Raises:
            ConfigError: a wrong argument or shape, or usearch is needed and not installed.
            DataError: a missing value, or a number that is not finite or too large.
        """
        _check_choices(metric, connectivity=connectivity, expansion=expansion, threads=threads)
        _check_choices(metric, expansion=expansion_build)
        vectors_ND = floats(vectors_ND, "vectors")
        if isinstance(values, pa.ChunkedArray):
            values = _whole(values)
        if len(values) != len(vectors_ND):
            found = f"{len(values):,} values and {len(vectors_ND):,} vectors"
            raise ConfigError("values", expected="a vector for each", found=found)
        if values.null_count:
            row = pc.index(values.is_null(), True).as_py()
            raise DataError(f"values, row {row:,}", expected="a value", found="a missing one")
        vectors_UD, group_N = distinct(as_kept(vectors_ND, metric))
        graph = None
        if len(vectors_UD) >= max(1, exact_below):
            graph = Graph.build(
                vectors_UD,
                metric,
                connectivity=connectivity,
                expansion=expansion_build,
                threads=threads,
                progress=progress,
            )
        return cls.of_parts(
            values=values, metric=metric, vectors_UD=vectors_UD, group_N=group_N, expansion=expansion, graph=graph
        )

    @classmethod
    def of_parts(cls, **parts: Any) -> Neighbors:
        """From all but what the groups tell: ``starts_U1`` and ``order_N``."""
        group_N = parts["group_N"]
        starts_U1 = np.zeros(len(parts["vectors_UD"]) + 1, dtype=np.int64)
        np.cumsum(np.bincount(group_N, minlength=len(starts_U1) - 1), out=starts_U1[1:])
        return cls(starts_U1=starts_U1, order_N=np.argsort(group_N, kind="stable"), **parts)

    def __len__(self) -> int:
        """How many values."""
        return len(self.values)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.vectors_UD.shape[1]

    def search(
        self, queries_QD: Any, k: int, *, exact: bool = False, expansion: int | None = None, exclude_Q: Any = None
    ) -> tuple[pa.Array, NDArray[np.float32]]:
        """The ``k`` nearest values of each query, nearest first.

        Args:
            queries_QD: float16, float32 or float64 ``[Q, D]``, an array or a tensor.
            k: how many, 1 or more.
            exact: compare with all vectors, even where there is a graph.
            expansion: candidates to consider; what the index was built with if ``None``.
            exclude_Q: for each query the position of a value to leave out, as its own is when neighbours of
                known values are asked for; -1 for none.

        Returns:
            Values ``[Q * K]``, row after row, missing ones where there are fewer than K; and scores, float32
            ``[Q, K]``, -inf there. There are fewer only where the index holds no more.

        Raises:
            ConfigError: a wrong argument or shape.
            DataError: a number that is not finite or too large.
        """
        positions_QK, scores_QK = self.positions(queries_QD, k, exact=exact, expansion=expansion, exclude_Q=exclude_Q)
        return self.values_at(positions_QK), scores_QK

    def positions(
        self, queries_QD: Any, k: int, *, exact: bool = False, expansion: int | None = None, exclude_Q: Any = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As ``search``, with positions of values ``[Q, K]`` instead of values; -1 where there are fewer."""
        expansion = self.expansion if expansion is None else expansion
        _check_choices(self.metric, expansion=expansion)
        queries_QD = floats(queries_QD, "queries")
        if queries_QD.shape[1] != self.width:
            raise ConfigError("queries", expected=f"{self.width} numbers each", found=str(queries_QD.shape[1]))
        if not _is_whole(k) or not 1 <= k <= _MOST_RESULTS or k * len(queries_QD) > _MOST_RESULTS:
            expected = f"a whole number of 1 or more, and at most {_MOST_RESULTS:,} results"
            found = f"k {k!r} for {len(queries_QD):,} queries"
            raise ConfigError("neighbours", expected=expected, found=found, do="ask in parts")
        excluded_Q = self._excluded(exclude_Q, len(queries_QD))
        positions_QK = np.full((len(queries_QD), k), -1, dtype=np.int64)
        scores_QK = np.full((len(queries_QD), k), -np.inf, dtype=np.float32)
        most = min(k + (exclude_Q is not None), len(self.vectors_UD))
        for start in range(0, len(queries_QD) if most else 0, _QUERIES):
            some = slice(start, start + _QUERIES)
            kept_QD = normalized(queries_QD[some]) if self.metric == "cosine" else queries_QD[some].astype(np.float64)
            index, scores = self._distinct_nearest(kept_QD, most, exact, expansion)
            spread(index, scores, self.starts_U1, self.order_N, excluded_Q[some], positions_QK[some], scores_QK[some])
        return positions_QK, scores_QK

    def values_at(self, positions_QK: NDArray[np.int64]) -> pa.Array:
        """Values of positions ``[Q * K]``, missing ones for -1."""
        flat = positions_QK.reshape(-1)
        return self.values.take(pa.array(flat, mask=flat < 0))

    def value_bytes(self, positions_QK: NDArray[np.int64]) -> int:
        """How many bytes ``values_at`` would take."""
        return int(self._bytes_N[positions_QK[positions_QK >= 0]].sum())

    @cached_property
    def _bytes_N(self) -> NDArray[np.int64]:
        kind = self.values.type
        if kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
            return pc.binary_length(self.values).cast(pa.int64()).to_numpy(zero_copy_only=False)
        return np.full(len(self.values), 8, dtype=np.int64)

    def products(self, queries: int, k: int, *, exact: bool = False) -> int:
        """Numbers that a search multiplies, about: each query's with all vectors', or with those the graph visits."""
        distinct = len(self.vectors_UD)
        if self.graph is None or exact:
            return queries * distinct * self.width
        return queries * min(distinct, 32 * max(k, self.expansion)) * self.width

    def recall(self, k: int, *, sample: int = 1000, seed: int = 0, expansion: int | None = None) -> float:
        """Which part of the ``k`` nearest an approximate search finds, for some of the values themselves.

        A value's own position is left out. What scores as high as the last of the exact neighbours counts as found, so
        that ties are no loss.

        Args:
            k: neighbours.
            sample: values asked for, drawn without repetition; all where there are no more.
            seed: of the draw.
            expansion: as in ``search``.

        Returns:
            From 0 to 1; 1 where there is nothing to find.
        """
        if not _is_whole(sample) or sample < 1:
            raise ConfigError("sample", expected="a whole number of 1 or more", found=repr(sample))
        drawn_Q = np.random.default_rng(seed).permutation(len(self))[:sample]
        queries_QD = self.vectors_UD[self.group_N[drawn_Q]]
        _, exact_QK = self.positions(queries_QD, k, exact=True, exclude_Q=drawn_Q)
        _, found_QK = self.positions(queries_QD, k, expansion=expansion, exclude_Q=drawn_Q)
        there_QK = np.isfinite(exact_QK)
        worst_Q1 = np.where(there_QK, exact_QK, np.inf).min(axis=1, initial=np.inf, keepdims=True)
        return float((found_QK >= worst_Q1).sum() / there_QK.sum()) if there_QK.any() else 1.0

    def save(self, folder: str | Path) -> FileDigest:
        """Write a new folder, durably, all of it or nothing; see ``embstore.serving.search_files``.

        Returns:
            Length and sha256 of its ``neighbors.json``, which holds those of all else.

        Raises:
            StoreError: the folder exists, or can't be written.
        """
        from embstore.serving.search_files import write

        return write(self, Path(folder))

    @classmethod
    def open(cls, folder: str | Path, *, sha256: str | None = None) -> Neighbors:
        """Open what ``save`` wrote: checked whole, then mapped, so that processes share its memory.

        Its files must not be written to meanwhile.

        Args:
            folder: where.
            sha256: what that of its ``neighbors.json`` must be, for those who keep it elsewhere.

        Raises:
            CorruptVersionError: a file is absent or damaged, or what it holds can't be.
            LaterVersionError: a later embstore wrote it.
        """
        from embstore.serving.search_files import read

        return read(Path(folder), sha256)

    def _distinct_nearest(
        self, queries_QD: NDArray[np.float64], k: int, exact: bool, expansion: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The ``k`` best distinct vectors of each query; ``k`` is at most U."""
        count = max(k, expansion)
        if exact or self.graph is None or count >= len(self.vectors_UD):
            return best(queries_QD, self.vectors_UD, k, self.metric)
        candidates_QC = self.graph.candidates(queries_QD.astype(np.float32), count, expansion)
        index_QK, scores_QK = best_of(queries_QD, self.vectors_UD, candidates_QC, k, self.metric)
        short_S = np.flatnonzero(index_QK[:, -1] < 0)  # a part of the graph was out of reach
        if len(short_S):
            index_QK[short_S], scores_QK[short_S] = best(queries_QD[short_S], self.vectors_UD, k, self.metric)
        return index_QK, scores_QK

    def _excluded(self, exclude_Q: Any, queries: int) -> NDArray[np.int64]:
        if exclude_Q is None:
            return np.full(queries, -1, dtype=np.int64)
        excluded_Q = np.asarray(exclude_Q)
        if excluded_Q.shape != (queries,) or (queries and excluded_Q.dtype.kind not in "iu"):
            found = f"{excluded_Q.dtype} {list(excluded_Q.shape)}"
            raise ConfigError("exclude_Q", expected=f"{queries} whole numbers", found=found)
        if queries and not (excluded_Q.min() >= -1 and excluded_Q.max() < len(self)):
            found = f"{excluded_Q.min()} to {excluded_Q.max()}"
            raise ConfigError("exclude_Q", expected=f"positions from 0 to {len(self) - 1}, or -1", found=found)
        return excluded_Q.astype(np.int64)


def values_of(version: Version, feature: str, source: Values | None = None) -> pa.Array:
    """The values of one feature, each once.

    Args:
        source: a file or folder of them, or an Arrow array by feature, as ``export_parquet`` takes it; those that the
            version's vocabulary has kept when not given. For a list feature, what its lists hold.

    Raises:
        ConfigError: no source, and the version has no vocabulary of the feature.
        SchemaError, LogError, DataError: as ``export_parquet``.
    """
    spec = version.schema.feature(feature, of=f"version {version.id}")
    if source is None:
        if version.vocabulary is None or feature not in version.vocabulary:
            do = "publish it with one: publish.vocabulary of its run (docs/store.md)"
            raise ConfigError(f"neighbours of {feature!r}", expected="its values", found="no vocabulary", do=do)
        known = version.vocabulary[feature]
        return known.values if known.kept.all() else known.values.filter(pa.array(known.kept))
    column = chosen_values(version, source, [spec.name])[feature]
    pieces = [piece.column(VALUE) for piece in column.pieces(1 << 16)]
    chunks = [chunk for piece in pieces for chunk in piece.chunks]
    return _whole(pc.unique(_wide(pa.chunked_array(chunks, type=column.type))), column.type)


def vectors_of(
    version: Version, feature: str, values: pa.Array, *, progress: Callable[[int], object] | None = None
) -> NDArray[np.float32]:
    """The vectors of a feature's values, as ``Version.lookup`` gives them, piece by piece.

    A list feature's value has the vector of a list that holds it alone; of several lookups, it is all of them in a row.

    Args:
        progress: called with the number of values after each piece.

    Returns:
        float32 ``[len(values), lookups * dim]``.
    """
    width = version.schema.feature(feature, of=f"version {version.id}").lookups * version.table.dim
    vectors_ND = np.empty((len(values), width), dtype=np.float32)
    step = max(1, _PIECE_NUMBERS // width)
    for start in range(0, len(values), step):
        piece = values.slice(start, step)
        vectors_ND[start : start + len(piece)] = version.lookup(feature, piece).numpy()
        if progress is not None:
            progress(len(piece))
    return vectors_ND


def _wide(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text of offsets that don't end at 2 GiB."""
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(column.type)
    return column if wide is None else column.cast(wide)


def _whole(column: pa.Array | pa.ChunkedArray, kind: pa.DataType | None = None) -> pa.Array:
    """One array, of type ``kind`` where 32 bits of offsets are enough."""
    column = column.cast(kind or column.type) if column.nbytes < 1 << 31 else _wide(column)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _check_choices(metric: str, **numbers: Any) -> None:
    if metric not in get_args(Metric):
        raise ConfigError("metric", expected=", ".join(get_args(Metric)), found=repr(metric))
    for name, number in numbers.items():
        low, high = _CHOICES[name]
        if not _is_whole(number) or not low <= number <= high:
            raise ConfigError(name, expected=f"a whole number from {low} to {high:,}", found=repr(number))


def _is_whole(number: Any) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)
