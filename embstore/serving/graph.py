"""A graph of near vectors (HNSW) by usearch: built, searched, and its file checked before usearch reads it.

usearch trusts its files: a neighbour's number beyond the end is an address outside the mapping. What it would follow is
therefore checked here, all of it, each time a file is opened. The file (usearch 2, little-endian):

    uint32 U, uint32 4D | float32 [U, D] | head, 64 bytes | uint64 U, M, M0, top level, entry | int16 level [U] | nodes
    node: uint64 key, int16 level, M0 neighbours of level 0, M neighbours of each level from 1
    neighbours: uint32 count, then room for M0 or M uint32 numbers of nodes

U distinct vectors of D numbers, Q queries, C candidates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embstore.errors import ConfigError, CorruptVersionError
from embstore.hashing import compiled
from embstore.serving.scores import Metric

if TYPE_CHECKING:
    from usearch.index import Index

_BLOCK = 4096
_HEAD, _GRAPH_HEAD = 64, 40
_F32, _U64, _U32 = 11, 14, 15  # usearch's codes of scalars
_CODES = {"ip": 105, "l2sq": 101}  # and of metrics


class Graph:
    """usearch's index of distinct vectors; a node's key is the vector's number.

    Args:
        index: of usearch.
        mapping: what a viewed index lies in.
    """

    def __init__(self, index: Index, mapping: Any = None) -> None:
        self.index, self._mapping = index, mapping
        self._lock = threading.Lock()

    @classmethod
    def build(
        cls,
        vectors_UD: NDArray[np.float32],
        metric: Metric,
        *,
        connectivity: int,
        expansion: int,
        threads: int,
        progress: Callable[[int], object] | None,
    ) -> Graph:
        """A graph of these vectors, those of cosine being of length 1 or 0."""
        index = _new(metric, vectors_UD.shape[1], connectivity=connectivity, expansion_add=expansion)
        for start in range(0, len(vectors_UD), _BLOCK):
            block = np.ascontiguousarray(vectors_UD[start : start + _BLOCK])
            keys = np.arange(start, start + len(block), dtype=np.uint64)
            index.add(keys, block, threads=threads)
            if progress is not None:
                progress(len(block))
        return cls(index)

    @classmethod
    def view(cls, data: Any, metric: Metric, vectors_UD: NDArray[np.float32], *, where: str) -> Graph:
        """The graph of these vectors in a file's bytes, which are used where they lie.

        Raises:
            CorruptVersionError: a graph of other vectors, or one that points outside itself.
        """
        bytes_ = np.frombuffer(data, dtype=np.uint8)
        wrong = _wrong_with(bytes_, metric, vectors_UD)
        if wrong:
            expected = f"usearch's graph of {len(vectors_UD):,} vectors of {vectors_UD.shape[1]}"
            raise CorruptVersionError(where, expected=expected, found=wrong)
        index = _new(metric, vectors_UD.shape[1])
        try:
            index.view(data)
        except (ValueError, RuntimeError) as error:
            raise CorruptVersionError(where, expected="a file that usearch reads", found=str(error)) from error
        return cls(index, data)

    def save(self, path: Path) -> None:
        """Write usearch's own file."""
        self.index.save(path)

    def candidates(self, queries_QD: NDArray[np.float32], count: int, expansion: int) -> NDArray[np.int64]:
        """Vectors near each query ``[Q, count]``, -1 where fewer are found.

        usearch changes an index's buffers at every search, so that one search runs at a time.
        """
        with self._lock:
            self.index.expansion_search = expansion  # type: ignore[misc]  # its setter has a name of its own
            found: Any = self.index.search(queries_QD, count, threads=1)
        if len(queries_QD) == 1:  # usearch then returns a row without its padding
            out_QC = np.full((1, count), -1, dtype=np.int64)
            out_QC[0, : len(found.keys)] = found.keys
            return out_QC
        index_QC: NDArray[np.int64] = found.keys.astype(np.int64)
        index_QC[np.arange(count) >= found.counts[:, None]] = -1
        return index_QC


def _new(metric: Metric, width: int, **options: Any) -> Index:
    try:
        from usearch.index import Index
    except ImportError as error:
        do = "pip install 'embstore[serve]', or search exactly"
        raise ConfigError("approximate search", expected="the package usearch", found=str(error), do=do) from error
    return Index(ndim=width, metric=_kind(metric), dtype="f32", enable_key_lookups=False, **options)


def _kind(metric: Metric) -> str:
    return "l2sq" if metric == "l2" else "ip"


def _wrong_with(data: NDArray[np.uint8], metric: Metric, vectors_UD: NDArray[np.float32]) -> str:
    """What makes a file none that usearch may read; empty when nothing does."""
    vectors, width = vectors_UD.shape
    head = 8 + vectors * width * 4
    levels = head + _HEAD + _GRAPH_HEAD
    nodes = levels + 2 * vectors
    if len(data) < nodes:
        return f"only {len(data):,} bytes"
    if data[:8].view("<u4").tolist() != [vectors, 4 * width]:
        return "vectors of other number or width"
    said = data[head : head + _HEAD].tobytes()
    kinds = bytes([_CODES[_kind(metric)], _F32, _U64, _U32])
    counts = vectors.to_bytes(8, "little") + bytes(8) + width.to_bytes(8, "little") + bytes(1)
    if said[:7] != b"usearch" or said[13:42] != kinds + counts:
        return "another head"
    size, room, room_0, top, entry = (int(n) for n in data[head + _HEAD : levels].copy().view("<u8"))
    level_U = data[levels:nodes].copy().view("<i2").astype(np.int64)
    if size != vectors or not (1 <= room <= 1 << 16 and 1 <= room_0 <= 1 << 16) or entry >= vectors:
        return "another graph"
    if level_U.min() < 0 or level_U.max() != top or top > 64 or level_U[entry] != top:
        return "levels that can't be"
    ends_U = nodes + np.cumsum(14 + 4 * room_0 + level_U * (4 + 4 * room))
    if int(ends_U[-1]) != len(data):
        return f"{len(data):,} bytes instead of {int(ends_U[-1]):,}"
    key_U = np.full(vectors, -1, dtype=np.int64)
    node = _first_wrong(data, level_U, nodes, room, room_0, key_U)
    if node >= 0:
        return f"node {node:,} that points outside the graph"
    stored_UD = data[8:head].view("<f4").reshape(vectors, width)
    for start in range(0, vectors, _BLOCK):
        some = slice(start, start + _BLOCK)
        if not np.array_equal(stored_UD[some], vectors_UD[key_U[some]]):
            return "other vectors"
    return ""


@compiled(nogil=True)
def _first_wrong(
    data: NDArray[np.uint8],
    level_U: NDArray[np.int64],
    start: int,
    room: int,
    room_0: int,
    key_U: NDArray[np.int64],
) -> int:  # pragma: no cover - compiled
    """The first node whose key, level or neighbours can't be, or -1; ``key_U`` becomes the keys."""
    seen_U = np.zeros(len(level_U), dtype=np.bool_)
    at = start
    for u in range(len(level_U)):
        key = np.int64(_uint32(data, at))
        if _uint32(data, at + 4) != 0 or key >= len(level_U) or seen_U[key]:
            return u
        seen_U[key], key_U[u] = True, key
        if data[at + 8] + 256 * np.int64(data[at + 9]) != level_U[u]:
            return u
        at += 10
        for level in range(level_U[u] + 1):
            most = room_0 if level == 0 else room
            count = _uint32(data, at)
            if count > most:
                return u
            for i in range(count):
                other = _uint32(data, at + 4 + 4 * i)
                if other >= len(level_U) or level_U[other] < level:
                    return u
            at += 4 + 4 * most
    return -1


@compiled(nogil=True)
def _uint32(data: NDArray[np.uint8], at: int) -> np.int64:  # pragma: no cover - compiled
    return (
        np.int64(data[at]) | np.int64(data[at + 1]) << 8 | np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 24
    )
