"""node2vec on real graphs, vectors of 128 numbers: embstore against PecanPy's walks with gensim's skip-gram.

Each contender reads the same file of edges, walks (10 walks of 80 nodes from each, p = q = 0.25), trains (window 10)
and writes its vectors, in a process of its own on the same two cores, seed by seed in turn. Then both kinds of vectors
are judged alike (``embstore.node2vec.classification``): logistic regression, C = 1, half of the labelled nodes.

    speedup_vs_pecanpy_GRAPH        seconds from the file of edges to the file of vectors; imports are not counted,
                                    the peer's compiling is (it can't keep what it compiled; see ``compile_seconds``)
    cpu_seconds_vs_pecanpy_GRAPH    processor time of the process until then, imports included: what a busy machine
                                    disturbs least
    walks_..., training_...         of the walks alone, and of the rest: ours makes its walks again in each epoch
    plain_vs_pecanpy_GRAPH, macro_f1_plain_GRAPH   ours with the peer's settings: from random vectors, no propagation
    one_thread_vs_pecanpy_GRAPH     ours on one thread, where every run gives the same bits, the peer on two
    peak_memory_vs_pecanpy_GRAPH    the greatest memory of the process; without GRAPH: of the greatest graph
    macro_f1_GRAPH, micro_f1_GRAPH  the papers' protocol: of each node as many labels as it has
    ..._f1_threshold_GRAPH          labels of a probability of 0.5 or more
    macro_auroc_GRAPH               mean over the labels
    first_run_seconds               what compiling adds to the first run after an install or an update
    hadamard_auc_ego_facebook       link prediction, half of the edges removed; beside the paper's value (table 4)

Ours has been compiled before, and that is kept on disk. Peer: ``benchmarks.peers.pecanpy_gensim``. ``--quick`` runs one
seed on the smaller graph. The cores' time that others used is in ``settings``: above a tenth, measure again.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.graphs.embed import vectors_of
from benchmarks.graphs.files import found, graph_of, labels_of
from benchmarks.graphs.processes import CORES, EMBED, ended, judged, two_cores
from benchmarks.peers import pecanpy_gensim
from benchmarks.report import Result, claim, main, median
from embstore.errors import ConfigError
from embstore.node2vec import SkipGramSettings, WalkSettings
from embstore.node2vec.classification import METRICS, ClassificationSettings, classify
from embstore.node2vec.links import OPERATORS, baseline_auc, operator_auc, split_links

# Where we differ from the settings of both, alike on all graphs; and ours without.
OURS: dict[str, Any] = {"skip_gram": {"learning_rate": 0.015}, "spectral": {}, "propagation": 0.25}
PAPERS: dict[str, Any] = {"skip_gram": {}, "spectral": None, "propagation": 0.0}
WALKS = {"p": 0.25, "q": 0.25, "length": 80, "num_walks": 10}
SKIP_GRAM = {"dim": 128, "window": 10}
GRAPHS = ("ppi", "blogcatalog")
SEEDS = (0, 1, 2)
SPLITS = (0, 1, 2)  # of the nodes, for each seed
LINKS, LINKS_SKIP_GRAM = {"p": 1.0, "q": 1.0}, {"epochs": 2}  # for link prediction, chosen among 8 on one split
PAPER_HADAMARD = 0.968
PEER, ONE_THREAD, PLAIN = "PecanPy + gensim", "one thread", "the peer's settings"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Reports of its processes by seed, and the vectors they wrote."""

    reports: list[dict[str, Any]]
    vectors: list[NDArray[np.float32]]

    def seconds(self, *stages: str) -> float:
        """The median over seeds, of some stages or the whole."""
        return median(
            [sum(one["seconds"][stage] for stage in stages) if stages else one["whole"] for one in self.reports]
        )

    def cpu_seconds(self) -> float:
        return median([one["cpu_seconds"] for one in self.reports])

    def peak_mib(self) -> float:
        return median([one["peak_mib"] for one in self.reports])


def measure(quick: bool) -> Result:
    """Both on each graph; the peer's absence is an error."""
    absent = pecanpy_gensim.missing()
    if absent is not None:
        raise ConfigError("benchmarks.node2vec", expected="its peer", found=absent)
    names, seeds = (GRAPHS[:1], SEEDS[:1]) if quick else (GRAPHS, SEEDS)
    files = {name: (found(f"{name}.edges.tsv"), found(f"{name}.labels.tsv")) for name in names}
    links = None if quick else found("ego-facebook.edges.txt")
    two_cores()
    claims: dict[str, Any] = {}
    samples: dict[str, Any] = {}
    reports: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        _ours(files[names[0]][0], Path(folder), seed=0, threads=1)  # compiles
        for name in names:
            edges, labels = files[name]
            contenders = _contend(edges, Path(folder), seeds)
            for contender in contenders.values():
                reports += contender.reports
            claims |= _costs(name, contenders)
            found_claims, scores = _quality(name, contenders, labels)
            claims |= found_claims
            samples[name] = {
                "processes": {label: contender.reports for label, contender in contenders.items()},
                "classification": scores,
            }
        claims["peak_memory_vs_pecanpy"] = claims[f"peak_memory_vs_pecanpy_{names[-1]}"]
        if links is not None:
            claims["first_run_seconds"] = _first_run(files[names[0]][0], Path(folder), samples[names[0]])
    if links is not None:
        claims["hadamard_auc_ego_facebook"], samples["ego_facebook"] = _links(links, seeds)
    claims, others = judged(claims, reports)
    return Result(
        claims=claims,
        samples=samples,
        settings={
            **{"graphs": list(names), "seeds": list(seeds), "splits": list(SPLITS), "cores": CORES},
            **{"walks": WALKS, "skip_gram": SKIP_GRAM, "ours": OURS, "links": {**LINKS, **LINKS_SKIP_GRAM}},
            "peer_packages": next(one["packages"] for one in reports if "packages" in one),
            "share_of_cores_used_by_others": round(others, 3),
        },
        packages=("scipy", "scikit-learn"),
    )


def _contend(edges: Path, folder: Path, seeds: Sequence[int]) -> dict[str, Contender]:
    contenders = {name: Contender(reports=[], vectors=[]) for name in ("embstore", PEER, ONE_THREAD, PLAIN)}
    for seed in seeds:
        for name, contender in contenders.items():
            if name == PEER:
                report, vectors_ND = _peer(edges, folder, seed)
            else:
                threads, how = 1 if name == ONE_THREAD else CORES, PAPERS if name == PLAIN else OURS
                report, vectors_ND = _ours(edges, folder, seed=seed, threads=threads, how=how)
            contender.reports.append(report)
            contender.vectors.append(vectors_ND)
    _, again_ND = _ours(edges, folder, seed=seeds[0], threads=1)
    if not np.array_equal(again_ND, contenders[ONE_THREAD].vectors[0]):
        raise RuntimeError("one thread did not give the same bits again")
    return contenders


def _ours(
    edges: Path, folder: Path, *, seed: int, threads: int, how: Mapping[str, Any] = OURS, **environment: str
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    settings = {
        **{"edges": str(edges), "first": 1, "threads": threads, "out": str(folder / "ours.npz")},
        **how,
        "walks": {**WALKS, "seed": seed},
        "skip_gram": {**SKIP_GRAM, **how["skip_gram"], "seed": seed},
    }
    report = ended(EMBED, settings, **environment)
    with np.load(folder / "ours.npz") as written:
        return report, written["vectors"]


def _peer(edges: Path, folder: Path, seed: int) -> tuple[dict[str, Any], NDArray[np.float32]]:
    settings = {
        **{"edges": str(edges), "seed": seed, "threads": CORES, "out": str(folder / "peer.npz")},
        **WALKS,
        **SKIP_GRAM,
    }
    report = ended(pecanpy_gensim.COMMAND, settings, PYTHONPATH="")
    with np.load(folder / "peer.npz") as written:
        vectors_ND = np.zeros((written["ids"].max(), SKIP_GRAM["dim"]), dtype=np.float32)
        vectors_ND[written["ids"] - 1] = written["vectors"]
    return report, vectors_ND


def _costs(name: str, contenders: Mapping[str, Contender]) -> dict[str, Any]:
    ours, peer, alone, plain = (contenders[label] for label in ("embstore", PEER, ONE_THREAD, PLAIN))

    def lower(value: float, unit: str, of_peer: float) -> dict[str, Any]:
        return claim(value, unit, PEER, of_peer, higher_is_better=False)

    return {
        f"speedup_vs_pecanpy_{name}": lower(ours.seconds(), "s", peer.seconds()),
        f"cpu_seconds_vs_pecanpy_{name}": lower(ours.cpu_seconds(), "s", peer.cpu_seconds()),
        f"walks_vs_pecanpy_{name}": lower(ours.seconds("walks"), "s", peer.seconds("walks")),
        f"training_vs_gensim_{name}": lower(ours.seconds("prior", "train", "propagation"), "s", peer.seconds("train")),
        f"plain_vs_pecanpy_{name}": lower(plain.seconds(), "s", peer.seconds()),
        f"one_thread_vs_pecanpy_{name}": lower(alone.seconds(), "s", peer.seconds()),
        f"peak_memory_vs_pecanpy_{name}": lower(ours.peak_mib(), "MiB", peer.peak_mib()),
    }


def _quality(name: str, contenders: Mapping[str, Contender], labels: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Means over seeds and splits; the scores of each."""
    scores: dict[str, dict[str, list[float]]] = {}
    for label, contender in contenders.items():
        scores[label] = {metric: [] for metric in METRICS}
        for vectors_ND in contender.vectors:
            labels_NK = labels_of(labels, len(vectors_ND), first=1)
            judged = classify(vectors_ND, labels_NK, ClassificationSettings(seeds=SPLITS))
            for metric in METRICS:
                scores[label][metric] += judged.values[metric]
    mean = {label: {metric: statistics.fmean(of) for metric, of in by.items()} for label, by in scores.items()}
    claims = {f"{metric}_{name}": claim(mean["embstore"][metric], "", PEER, mean[PEER][metric]) for metric in METRICS}
    claims[f"macro_f1_plain_{name}"] = claim(mean[PLAIN]["macro_f1"], "", PEER, mean[PEER]["macro_f1"])
    deviation = {label: {metric: statistics.stdev(of) for metric, of in by.items()} for label, by in scores.items()}
    return claims, {"mean": mean, "deviation": deviation, "scores": scores}


def _first_run(edges: Path, folder: Path, samples: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as empty:
        cold, _ = _ours(edges, folder, seed=0, threads=CORES, NUMBA_CACHE_DIR=empty)
    warm = median([one["process_seconds"] for one in samples["processes"]["embstore"]])
    return claim(cold["process_seconds"] - warm, "s")


def _links(edges: Path, seeds: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A split, walks and vectors for each seed."""
    graph = graph_of(edges, first=0)
    found: dict[str, list[float]] = {}
    for seed in seeds:
        split = split_links(graph, 0.5, seed=seed)
        walks = WalkSettings(**{**WALKS, **LINKS, "seed": seed})
        skip_gram = SkipGramSettings(**{**SKIP_GRAM, **LINKS_SKIP_GRAM, "seed": seed})
        vectors_ND = vectors_of(split.residual, walks, skip_gram, spectral=None, propagation=0.0, threads=CORES)
        areas = {name: operator_auc(vectors_ND, split, name) for name in OPERATORS}
        for name, area in {**areas, **baseline_auc(split)}.items():
            found.setdefault(name, []).append(area)
    value = statistics.fmean(found["hadamard"])
    return claim(value, "AUC", "node2vec's paper, its own removal", PAPER_HADAMARD), found


if __name__ == "__main__":
    main("node2vec", measure)
