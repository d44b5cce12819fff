"""The vectors that training begins with."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embstore.errors import ConfigError
from embstore.node2vec.folder import JobFolder
from embstore.node2vec.graph import Graph
from embstore.node2vec.settings import JobSettings
from embstore.node2vec.spectral import SpectralSettings, spectral_vectors
from embstore.progress import Progress, no_progress
from embstore.threads import usable_cores

Start = tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]


def starting_vectors(graph: Graph, config: JobSettings, progress: Progress = no_progress) -> Start:
    """Vectors and contexts as ``start`` says, float32 ``[N, dim]``; ``None`` for those that skip-gram draws itself.

    Raises:
        ConfigError: former vectors of another dim, or of none of the graph's features.
        CheckpointError: former vectors that can't be read.
    """
    vectors_ND = contexts_ND = None
    dim, seed = config.skip_gram.dim, config.skip_gram.seed
    if config.start.prior == "spectral":
        progress.say("start: spectral vectors")
        vectors_ND, contexts_ND = spectral_vectors(
            graph, dim, SpectralSettings(seed=seed), threads=config.threads or usable_cores()
        )
        nothing_N = ~vectors_ND.any(axis=1)
        if nothing_N.any():  # where all are zeros, and contexts too, nothing ever moves
            vectors_ND[nothing_N] = _random(graph.num_nodes, dim, seed)[nothing_N]
            progress.say(f"start: {nothing_N.sum():,} nodes have no spectral vector, but a random one")
    if config.start.vectors is None:
        return vectors_ND, contexts_ND
    if vectors_ND is None or contexts_ND is None:
        vectors_ND = _random(graph.num_nodes, dim, seed)
        contexts_ND = np.zeros_like(vectors_ND)
    former, known = JobFolder(config.start.vectors).read_vectors(), 0
    what = f"start.vectors {config.start.vectors}"
    if not former.keys() & graph.parts().keys():
        raise ConfigError(what, expected=f"vectors of {', '.join(graph.parts())}", found=", ".join(former))
    for feature, numbers in graph.parts().items():
        if feature not in former:
            continue
        values, vectors_VD, contexts_VD = former[feature]
        if vectors_VD.shape[1] != dim:
            raise ConfigError(what, expected=f"vectors of skip_gram.dim ({dim})", found=str(vectors_VD.shape[1]))
        nodes = pa.array(np.arange(graph.num_nodes)) if graph.nodes is None else graph.nodes[feature]
        place_V = _places(nodes, values)
        there = np.flatnonzero(place_V >= 0)
        vectors_ND[there + numbers.start] = vectors_VD[place_V[there]]
        contexts_ND[there + numbers.start] = contexts_VD[place_V[there]]
        known += len(there)
    progress.say(f"start: {known:,} of {graph.num_nodes:,} nodes have former vectors")
    return vectors_ND, contexts_ND


def _random(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    generator = np.random.Generator(np.random.Philox(key=[seed, 2**32]))
    return (generator.random((count, dim), dtype=np.float32) - np.float32(0.5)) / np.float32(dim)


def _places(nodes: pa.Array, values: pa.Array) -> NDArray[np.int64]:
    """Where each node's value is among the former ones; -1 where it isn't."""
    if nodes.type != values.type:  # no value of one is a value of the other
        return np.full(len(nodes), -1)
    places: NDArray[np.int64] = pc.index_in(nodes, values).fill_null(-1).to_numpy(zero_copy_only=False)
    return places
