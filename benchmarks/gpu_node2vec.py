"""node2vec's skip-gram by torch on a CUDA GPU, against embstore's on all cores of the same host.

    python -m benchmarks.gpu_node2vec --json

The walks (10 of 80 nodes from each, p = q = 0.25) are made before; seconds are from walks on the host to vectors there
(128 numbers, window 10, one epoch), from the spectral prior and from random vectors; the best of ``REPEATS``, after a
short training that compiles. Quality is Macro-F1 as in ``benchmarks.node2vec``, without propagation, one seed.

    seconds_START_GRAPH      by torch on the GPU, and by ``SkipGram`` on the CPU
    macro_f1_START_GRAPH     of both
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.graphs.files import found, graph_of, labels_of
from benchmarks.node2vec import OURS, SKIP_GRAM, WALKS
from benchmarks.report import Result, claim, main
from embstore.errors import ConfigError
from embstore.node2vec import SkipGram, SkipGramSettings, Walker, WalkSettings
from embstore.node2vec.classification import ClassificationSettings, classify
from embstore.node2vec.spectral import SpectralSettings, spectral_vectors
from embstore.node2vec.torch_skipgram import TorchSkipGram
from embstore.threads import usable_cores

GRAPHS, STARTS, REPEATS, PIECE = ("ppi", "blogcatalog"), ("prior", "random"), 2, 16_384
CPU, GPU = "SkipGram on the CPU", "torch"
Vectors = dict[str, NDArray[np.float32]]


def measure(quick: bool) -> Result:
    """Train and judge; a quick run takes the smaller graph."""
    if not torch.cuda.is_available():
        raise ConfigError("benchmarks.gpu_node2vec", expected="a CUDA GPU", found="none that torch sees")
    seconds: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    for name in GRAPHS[:1] if quick else GRAPHS:
        seconds[name], vectors = trained(name)
        scores[name] = judged(name, vectors)
    return Result(
        claims=claims(seconds, scores),
        samples={"seconds": seconds, "macro_f1": scores},
        settings={"walks": WALKS, "skip_gram": {**SKIP_GRAM, **OURS["skip_gram"]}, "cpu_threads": usable_cores()},
        packages=("scipy", "scikit-learn"),
    )


def trained(name: str, device: str = "cuda") -> tuple[dict[str, list[float]], Vectors]:
    """Seconds and vectors of each contender, by start."""
    graph, threads = graph_of(found(f"{name}.edges.tsv"), first=1), usable_cores()
    walker = Walker(graph, WalkSettings(**WALKS, seed=0))
    walks_WL = walker.walks(0, walker.num_walks, threads=threads)
    visits_N = np.bincount(walks_WL[walks_WL >= 0], minlength=graph.num_nodes)
    how = SkipGramSettings(**{**SKIP_GRAM, **OURS["skip_gram"]}, seed=0)
    vectors_ND, contexts_ND = spectral_vectors(graph, how.dim, SpectralSettings(), threads=threads)
    prior = {"vectors": vectors_ND, "contexts": contexts_ND}
    seconds: dict[str, list[float]] = {}
    vectors: Vectors = {}

    def make(contender: str, start: str) -> Any:
        given = prior if start == "prior" else {}
        if contender == CPU:
            return SkipGram(visits_N, walker.num_walks, how, **given)
        return TorchSkipGram(visits_N, walker.num_walks, how, device=device, **given)

    for start in STARTS:
        for contender in (CPU, GPU):
            settings = {"threads": threads} if contender == CPU else {}
            make(contender, start).train(walks_WL[:1024], 0, **settings)
            for _ in range(REPEATS):
                model = make(contender, start)
                begin = time.perf_counter()
                for at in range(0, len(walks_WL), PIECE):
                    model.train(walks_WL[at : at + PIECE], at, **settings)
                vectors[f"{contender}, {start}"] = model.vectors
                seconds.setdefault(f"{contender}, {start}", []).append(time.perf_counter() - begin)
    return seconds, vectors


def judged(name: str, vectors: Vectors) -> dict[str, float]:
    """Macro-F1 of each contender."""
    labels = found(f"{name}.labels.tsv")
    return {
        contender: classify(
            of_ND, labels_of(labels, len(of_ND), first=1), ClassificationSettings(seeds=(0, 1, 2))
        ).mean("macro_f1")
        for contender, of_ND in vectors.items()
    }


def claims(seconds: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, Any]:
    """Both of each graph and start."""
    out = {}
    for name in seconds:
        for start in STARTS:
            ours, peer, label = f"{GPU}, {start}", f"{CPU}, {start}", f"{start}_{name}"
            taken, theirs = min(seconds[name][ours]), min(seconds[name][peer])
            out[f"seconds_{label}"] = claim(taken, "s", CPU, theirs, higher_is_better=False)
            out[f"macro_f1_{label}"] = claim(scores[name][ours], "", CPU, scores[name][peer])
    return out


if __name__ == "__main__":
    main("gpu_node2vec", measure)
