"""A process that makes vectors of a graph by embstore.node2vec alone, and says what they cost.

    python -m benchmarks.graphs.embed SETTINGS

``SETTINGS`` is JSON: ``edges`` (a text file, its nodes counted from ``first``) or ``nodes`` and ``degree`` (an
Erdos-Renyi graph), ``walks``, ``skip_gram``, ``spectral`` (settings of the prior, or null), ``propagation``,
``threads``, ``out`` (where the vectors go, or null). The last line printed is JSON: seconds and, as the greatest since
the stage began, MiB of memory of each stage, and of all.

torch is not imported. The walks are made once to count visits, and again in each epoch: the stage ``walks`` is the
first, ``train`` has the others in it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.graphs.files import graph_of
from embstore.node2vec import Graph, SkipGram, SkipGramSettings, Walker, WalkSettings
from embstore.node2vec.propagation import propagated
from embstore.node2vec.spectral import SpectralSettings, spectral_vectors

_WALKS = 16384  # in memory at once


class Stages:
    """Seconds and peak memory of parts of a process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.mib: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        with suppress(OSError):  # where it isn't allowed, a stage's peak is that of all before it, too
            Path("/proc/self/clear_refs").write_text("5")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.mib[name] = peak_mib()

    def report(self) -> dict[str, Any]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "seconds": self.seconds,
            "mib": self.mib,
            "whole": sum(self.seconds.values()),
            "peak_mib": max(self.mib.values()),
            "cpu_seconds": used.ru_utime + used.ru_stime,
        }


def peak_mib() -> float:
    """The greatest memory in use; not ru_maxrss, which a process may have from the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def vectors_of(
    graph: Graph,
    walks: WalkSettings,
    skip_gram: SkipGramSettings,
    *,
    spectral: SpectralSettings | None,
    propagation: float,
    threads: int,
    stages: Stages | None = None,
) -> NDArray[np.float32]:
    """float32 ``[N, dim]``."""
    stages = stages or Stages()
    vectors_ND = contexts_ND = None
    if spectral is not None:
        with stages.stage("prior"):
            vectors_ND, contexts_ND = spectral_vectors(graph, skip_gram.dim, spectral, threads=threads)
    walker = Walker(graph, walks)
    with stages.stage("walks"):
        visits_N = np.zeros(graph.num_nodes, dtype=np.int64)
        for begin, end in walker.chunks(_WALKS):
            walks_WL = walker.walks(begin, end, threads=threads)
            visits_N += np.bincount(walks_WL[walks_WL >= 0], minlength=graph.num_nodes)
    with stages.stage("train"):
        model = SkipGram(visits_N, walker.num_walks, skip_gram, vectors=vectors_ND, contexts=contexts_ND)
        for epoch in range(skip_gram.epochs):
            for begin, end in walker.chunks(_WALKS):
                model.train(walker.walks(begin, end, threads=threads), begin, epoch=epoch, threads=threads)
    if not propagation:
        return model.vectors
    with stages.stage("propagation"):
        return propagated(graph, model.vectors, propagation, threads=threads)


def erdos_renyi(nodes: int, degree: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both ends of ``nodes * degree / 2`` edges drawn uniformly; loops and the few drawn twice are none."""
    ends_E2 = np.random.default_rng(seed).integers(0, nodes, (round(nodes * degree / 2), 2))
    ends_E2 = ends_E2[ends_E2[:, 0] != ends_E2[:, 1]]
    return ends_E2[:, 0], ends_E2[:, 1]


def main(settings: dict[str, Any]) -> dict[str, Any]:
    stages = Stages()
    if "edges" in settings:
        with stages.stage("read"):
            graph = graph_of(Path(settings["edges"]), first=settings["first"])
    else:
        ends = erdos_renyi(settings["nodes"], settings["degree"], settings["walks"]["seed"])
        with stages.stage("graph"):
            graph = Graph.of_edges(*ends, num_nodes=settings["nodes"])
        del ends
    spectral = None if settings["spectral"] is None else SpectralSettings(**settings["spectral"])
    vectors_ND = vectors_of(
        graph,
        WalkSettings(**settings["walks"]),
        SkipGramSettings(**settings["skip_gram"]),
        spectral=spectral,
        propagation=settings["propagation"],
        threads=settings["threads"],
        stages=stages,
    )
    if settings["out"] is not None:
        with stages.stage("write"):
            np.savez(settings["out"], ids=np.arange(graph.num_nodes), vectors=vectors_ND)
    assert "torch" not in sys.modules
    return {**stages.report(), "num_nodes": graph.num_nodes, "num_edges": graph.num_edges}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
