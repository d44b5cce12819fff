"""Pieces of a job's walks: pure functions of what is shared and of bounds, done here or by tasks of a cluster."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from embstore.node2vec.graph import Graph
from embstore.node2vec.walk_files import write_part
from embstore.node2vec.walks import Walker, WalkSettings, count_visits

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
        write_part(walks_WL, begin, walker, folder)
    visits_N = np.zeros(walker.num_nodes, dtype=np.int64)
    count_visits(walks_WL, visits_N)
    return visits_N


def trained_at_once(length: int) -> int:
    """Walks of this length that are trained on in one call: after each training can stop."""
    return max(_TRAINED // length // _ALIGNED, 1) * _ALIGNED


def walked_at_once(length: int) -> int:
    """Walks of a piece: several calls' worth."""
    return trained_at_once(length) * (_WALKED // _TRAINED)
