"""How node2vec grows with the graph: Erdos-Renyi graphs of average degree 10, up to a million nodes.

The paper's experiment (section 4.5, figure 6): 10 walks of 80 nodes from each node, window 10, 128 numbers, one epoch.
Each graph has a process of its own on two cores (``benchmarks.graphs.embed``), whose stages are timed one by one:

    graph    from arrays of edges, in random order, to a ``Graph``
    walks    all, once, to count visits
    train    all, again, and skip-gram

    seconds_of_N_nodes      of all stages
    exponent                of the least-squares line through log seconds over log nodes, from ``FITTED`` nodes on:
                            1 is linear; ``graph``, ``walks`` and ``train`` alone are in the samples
    peak_mib_of_N_nodes     the greatest memory of the process

``--quick`` ends at 100,000 nodes. ``--out FILE`` also draws the plot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.graphs.processes import CORES, EMBED, ended, judged, two_cores
from benchmarks.report import Result, claim, main

DEGREE = 10
SIZES = (1_000, 3_162, 10_000, 31_623, 100_000, 1_000_000)
QUICK = 100_000
FITTED = 10_000  # smaller graphs lie in the caches
STAGES = ("graph", "walks", "train")
SETTINGS = {
    "degree": DEGREE,
    "threads": CORES,
    "walks": {"p": 1.0, "q": 1.0, "length": 80, "num_walks": 10, "seed": 0},
    "skip_gram": {"dim": 128, "window": 10, "epochs": 1, "seed": 0},
    "spectral": None,
    "propagation": 0.0,
    "out": None,
}


def measure(quick: bool) -> Result:
    """One process for each size."""
    sizes = [size for size in SIZES if not quick or size <= QUICK]
    two_cores()
    ended(EMBED, {**SETTINGS, "nodes": 100})  # compiles
    reports = {size: ended(EMBED, {**SETTINGS, "nodes": size}) for size in sizes}
    exponents = {
        **{stage: exponent({size: of["seconds"][stage] for size, of in reports.items()}) for stage in STAGES},
        "whole": exponent({size: of["whole"] for size, of in reports.items()}),
        "cpu_seconds": exponent({size: of["cpu_seconds"] for size, of in reports.items()}),
    }
    claims = {"exponent": claim(exponents["whole"], "")}
    claims |= {f"seconds_of_{size}_nodes": claim(of["whole"], "s") for size, of in reports.items()}
    claims |= {f"peak_mib_of_{size}_nodes": claim(of["peak_mib"], "MiB") for size, of in reports.items()}
    claims, others = judged(claims, reports.values())
    return Result(
        claims=claims,
        samples={"processes": {str(size): of for size, of in reports.items()}, "exponents": exponents},
        settings={
            **SETTINGS,
            "sizes": sizes,
            "fitted_from": FITTED,
            "cores": CORES,
            "share_of_cores_used_by_others": round(others, 3),
        },
        plot=lambda path: plot(reports, exponents["whole"], path),
    )


def exponent(seconds: Mapping[int, float]) -> float:
    """Of a power of the size, by least squares of logarithms, from ``FITTED`` on.

    >>> round(exponent({1_000: 9.0, 10_000: 2.0, 100_000: 20.0, 1_000_000: 200.0}), 6)
    1.0
    """
    sizes = [size for size in seconds if size >= FITTED]
    return float(np.polyfit(np.log(sizes), np.log([seconds[size] for size in sizes]), 1)[0])


def plot(reports: Mapping[int, dict[str, Any]], slope: float, path: Path) -> None:
    """Seconds of each stage and peak memory over nodes, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = list(reports)
    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for stage in STAGES:
        time.loglog(sizes, [reports[size]["seconds"][stage] for size in sizes], marker=".", label=stage)
        memory.loglog(sizes, [reports[size]["mib"][stage] for size in sizes], marker=".", label=stage)
    whole = [reports[size]["whole"] for size in sizes]
    time.loglog(sizes, whole, "k", marker="o", label=f"whole, exponent {slope:.2f}")
    time.loglog(sizes, _linear(sizes, whole), "k:", label="linear")
    time.set(xlabel="nodes", ylabel="seconds", title=f"average degree {DEGREE}, {CORES} cores")
    memory.set(xlabel="nodes", ylabel="MiB", title="peak memory of the process")
    for axes in (time, memory):
        axes.grid(which="both", alpha=0.2)
        axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


def _linear(sizes: Sequence[int], whole: Sequence[float]) -> list[float]:
    return [whole[-1] * size / sizes[-1] for size in sizes]


if __name__ == "__main__":
    main("node2vec_scaling", measure)
