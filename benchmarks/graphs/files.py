"""Where the public graphs lie, and the labels of their nodes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embstore.errors import DatasetError
from embstore.node2vec.graph import Graph

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = Path(os.environ.get("EMBSTORE_GRAPHS", ROOT.parent / "shared" / "data" / "graphs"))


def found(name: str) -> Path:
    """A file of ``FOLDER``.

    Raises:
        DatasetError: there is none.
    """
    path = FOLDER / name
    if not path.is_file():
        raise DatasetError(
            f"the graph file {name}",
            expected=f"it in {FOLDER.parent.name}/{FOLDER.name}, or in the folder that EMBSTORE_GRAPHS names",
            found="no such file",
            do="get the graphs as docs/node2vec.md says",
        )
    return path


def graph_of(path: Path, *, first: int) -> Graph:
    """An undirected graph of a text file: two numbers of nodes a line, counted from ``first``."""
    edges_E2 = np.loadtxt(path, dtype=np.int64, ndmin=2) - first
    return Graph.of_edges(edges_E2[:, 0], edges_E2[:, 1])


def labels_of(path: Path, num_nodes: int, *, first: int) -> NDArray[np.bool_]:
    """Bool ``[N, K]`` of a text file, a node and one of its labels a line; labels that no node has are left out."""
    pairs_M2 = np.loadtxt(path, dtype=np.int64, ndmin=2)
    labels_NK = np.zeros((num_nodes, pairs_M2[:, 1].max() + 1), dtype=bool)
    labels_NK[pairs_M2[:, 0] - first, pairs_M2[:, 1]] = True
    return labels_NK[:, labels_NK.any(axis=0)]
