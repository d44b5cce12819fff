"""Feature Gradients on planted batches in memory: what a search finds, and how fast a pass is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.feature_selection import chi2

from benchmarks.report import claim, interleave, median
from benchmarks.selections.part import PLANTED, Part
from embstore.selection import FeatureGradients, FeatureGradientsSettings, Layout, SparseBatch, fit
from embstore.selection.feature_gradients import SAMPLE, gradients
from embstore.selection.planted import PlantedBatches
from embstore.selection.standardization import Standardization, Statistics
from embstore.threads import usable_cores

# One pass at 0.1 leaves rare values without effect at the top, where the first steps were lucky for them.
PLANTED_SEARCH: dict[str, Any] = {"level": "values", "batches_per_step": 2, "epochs": 3, "learning_rate": 0.05}


def planted(*, batches: int, columns: int, seeds: int) -> Part:
    """Of the columns that are planted or say nothing, are the best ones the planted? The worst of the seeds."""
    found = [_found(seed=seed, batches=batches, columns=columns) for seed in range(seeds)]
    return Part(
        claims={"planted_precision": claim(min(one["precision"] for one in found), "")},
        samples={"planted": {"columns": columns, "rows": batches * PLANTED["rows"], "seeds": found}},
    )


def _found(*, seed: int, batches: int, columns: int) -> dict[str, Any]:
    rows = PlantedBatches(**{**PLANTED, "batches": batches, "columns": columns, "seed": seed})
    held = list(rows)
    settings = FeatureGradientsSettings(**PLANTED_SEARCH, threads=usable_cores())
    start, cpu = time.perf_counter(), time.process_time()
    scores = fit(held, rows.layout, settings)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    wanted = set(rows.planted_columns.tolist())
    judged_D = rows.effect_D == 0
    judged_D[list(wanted)] = True
    among = np.flatnonzero(judged_D)
    best = among[np.argsort(-scores.log_column_D[among], kind="stable")[: len(wanted)]]
    precision = len(wanted & set(best.tolist())) / len(wanted)
    return {"seed": seed, "k": len(wanted), "precision": precision, "seconds": seconds, "cpu_seconds": cpu}


def speed(*, rows: int, columns: int, repeats: int) -> Part:
    """A pass over rows that are in memory; peer: scikit-learn's ``chi2`` of the same rows."""
    source = PlantedBatches(**{**PLANTED, "columns": columns, "batches": rows // PLANTED["rows"]})
    batches = list(source)
    matrix, label_N = _csr(batches, source.layout.sparse)
    statistics = Statistics(source.layout)
    for batch in batches:
        statistics.add(batch)
    start = time.perf_counter()
    standardization = Standardization.of(statistics, batches[:SAMPLE])
    once = time.perf_counter() - start
    cpu: list[float] = []

    def ours() -> None:
        begun = time.process_time()
        _pass(batches, source.layout, standardization)
        cpu.append(time.process_time() - begun)

    contenders: dict[str, Callable[[], object]] = {"embstore": ours, "chi2": lambda: chi2(matrix, label_N)}
    seconds = interleave(contenders, repeats=repeats)
    rate = {name: matrix.nnz / median(of) for name, of in seconds.items()}
    return Part(
        claims={
            "nnz_per_second": claim(rate["embstore"], "1/s", "scikit-learn chi2", rate["chi2"]),
            "nnz_per_cpu_second": claim(matrix.nnz / median(cpu[1:]), "1/s"),
        },
        samples={
            "speed": {
                "rows": rows,
                "columns": columns,
                "entries": matrix.nnz,
                "pass_seconds": seconds,
                "pass_cpu_seconds": cpu[1:],  # the first compiles
                "once_seconds": once,
            }
        },
    )


def _pass(batches: list[SparseBatch], layout: Layout, standardization: Standardization) -> None:
    """Count, and search: what is done to every row."""
    statistics = Statistics(layout)
    for batch in batches:
        statistics.add(batch)
    settings = FeatureGradientsSettings(level="values", threads=usable_cores())
    search = FeatureGradients(layout, standardization, settings)
    per_step = settings.per_step(len(batches))
    for at in range(0, len(batches), per_step):
        search.step(gradients(batches[at : at + per_step], search.weights(), settings.threads))


def _csr(batches: list[SparseBatch], columns: int) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    starts = np.cumsum([0, *(len(one.indices_E) for one in batches)])
    indptr = [one.indptr_N[:-1] + start for one, start in zip(batches, starts[:-1], strict=True)]
    indices = np.concatenate([one.indices_E for one in batches])
    shape = (sum(len(one) for one in batches), columns)
    csr = scipy.sparse.csr_matrix(
        (np.ones(len(indices), np.float32), indices, np.concatenate([*indptr, starts[-1:]])), shape=shape
    )
    return csr, np.concatenate([one.labels_N for one in batches])
