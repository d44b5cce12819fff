"""Pieces of a job's walks: pure functions of what is shared and of bounds, done here or by tasks of a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore.node2vec.graph import Graph
from embstore.node2vec.walks import NO_NODE, Walker, WalkSettings

_TRAINED, _WALKED = 2**17, 2**20  # nodes trained on in one call, and walked to in one piece
_ALIGNED = 64  # walks


def prepared(graph: Graph, settings: WalkSettings) -> Walker:
    """A walker with all that walks need of a graph, computed once for all who get it; its nodes' values stay behind."""
    walker = Walker(replace(graph, nodes=None), settings)
    walker.walks(0, 1)
    return walker


def walks_of(walker: Walker, begin: int, end: int, threads: int) -> NDArray[np.int32]:
    """Walks ``begin`` to ``end``."""
    return walker.walks(begin, end, threads=threads)


def visits_of(walker: Walker, begin: int, end: int, threads: int, folder: str | None) -> NDArray[np.int64]:
    """How often they come to each node, ``[N]``; where a folder is given, they are written down in it."""
    walks_WL = walks_of(walker, begin, end, threads)
    if folder is not None:
        _write(walks_WL, begin, Path(folder) / f"part-{begin:012d}.parquet")
    return np.bincount(walks_WL[walks_WL != NO_NODE], minlength=walker.graph.num_nodes)


def trained_at_once(length: int) -> int:
    """Walks of this length that are trained on in one call: after each training can stop."""
    return max(_TRAINED // length // _ALIGNED, 1) * _ALIGNED


def walked_at_once(length: int) -> int:
    """Walks of a piece: several calls' worth."""
    return trained_at_once(length) * (_WALKED // _TRAINED)


def _write(walks_WL: NDArray[np.int32], begin: int, path: Path) -> None:
    there_WL = walks_WL != NO_NODE
    offsets = np.concatenate([[0], np.cumsum(there_WL.sum(axis=1))]).astype(np.int32)
    walks = pa.ListArray.from_arrays(pa.array(offsets), pa.array(walks_WL[there_WL]))
    partial = path.with_name(f".{path.name}")
    pq.write_table(
        pa.table({"number": np.arange(begin, begin + len(walks_WL)), "walk": walks}), partial, compression="zstd"
    )
    partial.replace(path)
