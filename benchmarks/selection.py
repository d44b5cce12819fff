"""Choosing values: planted ones among a million columns, the speed of a pass, and models trained again on what is kept.

    planted_precision    of the best k columns, how many of ``embstore.selection.planted``'s k planted values are
                         (columns of signal fields, which matter too, are left out); ``level="values"``
    nnz_per_second       entries by the seconds of one pass of Feature Gradients, counting included, without what is
                         done once whatever the rows (``once_seconds``: the largest eigenvalue); peer: scikit-learn's
                         ``chi2`` on the same rows as a CSR matrix: a simpler question, one pass, too
    exponent             of seconds over rows, from an eighth of the rows to all: 1 is linear
    pass_memory          of a process that makes its batches as it goes, less than before: by columns, not rows
    auc_loss_at_half_rows_DATA                   test AUC of all values less that of half, by the best method
    auc_gain_over_frequency_at_SHARE_rows_DATA   of the best method, at a quarter, half and three quarters
    auc_gain_over_random_at_half_rows_DATA

DATA is frappe (Frappe_x1r) or movielens_1m. A method sees the training log, and the full model trained on it. Which is
the best is said by the validation log (``embstore.selection.report``); the test log decides nothing. A share is of the
values of all features together, each of which has one row. All models are trained from the same seed in the same way
(``configs/*-small.yaml``). ``--quick``: 100,000 planted columns, Frappe, one seed, a quarter and half of the values,
four methods. ``--out FILE`` also draws the plots.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.feature_selection import chi2

from benchmarks.report import Result, claim, interleave, main, median
from benchmarks.retraining import Outcome, Retraining
from embstore.selection import FeatureGradients, FeatureGradientsSettings, Layout, LogBatches, Scores, SparseBatch, fit
from embstore.selection.feature_gradients import SAMPLE, gradients
from embstore.selection.methods import Rows, Trained, score
from embstore.selection.planted import PlantedBatches
from embstore.selection.report import Report, Trial
from embstore.selection.standardization import Standardization, Statistics
from embstore.threads import usable_cores

SEARCH: dict[str, Any] = {"level": "values", "epochs": 8, "batches_per_step": 2}
FREQUENCY, RANDOM, FEATURE_GRADIENTS = "frequency", "random", "feature_gradients"
TOGETHER = "leave_out_together"  # whose scores are for a share
MODEL_BASED = (TOGETHER, "leave_one_out", "shark", "sfs")
QUICK = (FREQUENCY, RANDOM, TOGETHER, FEATURE_GRADIENTS)
METHODS = (*QUICK, *MODEL_BASED[1:], "lift", "mutual_information", "lasso")
FIELDS = {"signal_fields": 4, "mixed_fields": 4, "noise_fields": 24}
PLANTED: dict[str, Any] = {"columns": 1_000_000, "rows": 8192, **FIELDS}
DATA = {"frappe": "frappe-small", "movielens_1m": "movielens-1m-small"}
SHARES = {0.25: "quarter", 0.5: "half", 0.75: "three_quarters"}
_PASS = """
import json, resource, sys, threading
from embstore.selection import FeatureGradientsSettings, fit
from embstore.selection.planted import PlantedBatches
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
def search(**settings):
    planted = PlantedBatches(**settings)
    fit(planted, planted.layout, FeatureGradientsSettings(level="values"))
settings = json.loads(sys.argv[1])
search(**{**settings, "columns": 1000, "rows": 100, "batches": 4})  # compiles
before, most, over = resident(), 0, threading.Event()
def watch():
    global most
    while not over.wait(0.02):
        most = max(most, resident())
watcher = threading.Thread(target=watch)
watcher.start()
search(**settings)
over.set()
watcher.join()
print((most - before) / 2**20)
"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some claims, and what they come from."""

    claims: Mapping[str, dict[str, Any]]
    samples: Mapping[str, Any]


def measure(quick: bool) -> Result:
    """All of it."""
    speed = _speed(rows=262_144 if quick else 1_048_576, repeats=3 if quick else 5)
    parts = [_planted(batches=64 if quick else 128, columns=100_000 if quick else 1_000_000), speed]
    reports = {}
    for data, config in list(DATA.items())[: 1 if quick else None]:
        reports[data] = (
            retrained(config, seeds=1, methods=QUICK, shares=(0.25, 0.5))
            if quick
            else retrained(config, seeds=3, methods=METHODS, shares=tuple(SHARES))
        )
        parts.append(_judged(data, reports[data]))
    plots = [one.plot for one in reports.values()]
    return Result(
        claims={name: of for part in parts for name, of in part.claims.items()},
        samples={name: of for part in parts for name, of in part.samples.items()},
        settings={"feature_gradients": SEARCH, "planted": PLANTED, "configs": DATA, "cores": usable_cores()},
        packages=("torch", "scipy", "scikit-learn"),
        plot=lambda path: _draw(path, plots, speed),
    )


def _planted(*, batches: int, columns: int) -> Part:
    """Of the columns that are planted or say nothing, are the best ones the planted?"""
    planted = PlantedBatches(**{**PLANTED, "batches": batches, "columns": columns})
    start = time.perf_counter()
    settings = FeatureGradientsSettings(level="values", batches_per_step=2, threads=usable_cores())
    scores = fit(list(planted), planted.layout, settings)
    seconds = time.perf_counter() - start
    wanted = set(planted.planted_columns.tolist())
    judged_D = planted.effect_D == 0
    judged_D[list(wanted)] = True
    among = np.flatnonzero(judged_D)
    best = among[np.argsort(-scores.log_column_D[among], kind="stable")[: len(wanted)]]
    found = len(wanted & set(best.tolist()))
    return Part(
        claims={"planted_precision": claim(found / len(wanted), "")},
        samples={"planted": {"columns": columns, "rows": batches * planted.rows, "k": len(wanted), "seconds": seconds}},
    )


def _speed(*, rows: int, repeats: int) -> Part:
    """A pass over rows that are in memory."""
    columns = {"columns": 100_000} if rows < 1_000_000 else {}
    planted = PlantedBatches(**{**PLANTED, **columns, "batches": rows // PLANTED["rows"]})
    batches = list(planted)
    matrix, label_N = _csr(batches, planted.layout.sparse)
    statistics = Statistics(planted.layout)
    for batch in batches:
        statistics.add(batch)
    start = time.perf_counter()
    standardization = Standardization.of(statistics, batches[:SAMPLE])
    once = time.perf_counter() - start

    def ours(part: list[SparseBatch]) -> Callable[[], object]:
        return lambda: _pass(part, planted.layout, standardization)

    seconds = interleave({"embstore": ours(batches), "chi2": lambda: chi2(matrix, label_N)}, repeats=repeats)
    sizes = [len(batches) // 8, len(batches) // 4, len(batches) // 2]
    by_rows = interleave({str(size): ours(batches[:size]) for size in sizes}, repeats=repeats)
    curve = {size * planted.rows: median(by_rows[str(size)]) for size in sizes} | {rows: median(seconds["embstore"])}
    slope = float(np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)[0])
    memory = {
        len(batches) // by * planted.rows: _memory({**PLANTED, **columns, "batches": len(batches) // by})
        for by in (4, 1)
    }
    few, many = memory.values()
    speed = {name: matrix.nnz / median(of) for name, of in seconds.items()}
    return Part(
        claims={
            "nnz_per_second": claim(speed["embstore"], "1/s", "scikit-learn chi2", speed["chi2"]),
            "exponent": claim(slope, ""),
            "pass_memory": claim(many, "MiB", "a quarter of the rows", few, False),
        },
        samples={
            "pass_seconds": seconds,
            "once_seconds": once,
            "seconds_by_rows": curve,
            "memory_by_rows": memory,
            "entries": matrix.nnz,
        },
    )


def _memory(settings: dict[str, Any]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _PASS, json.dumps(settings)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _pass(part: list[SparseBatch], layout: Layout, standardization: Standardization) -> None:
    """Count, and search: what is done to every row."""
    statistics = Statistics(layout)
    for batch in part:
        statistics.add(batch)
    settings = FeatureGradientsSettings(level="values", threads=usable_cores())
    search = FeatureGradients(layout, standardization, settings)
    for at in range(0, len(part), settings.batches_per_step):
        search.step(gradients(part[at : at + settings.batches_per_step], search.weights(), settings.threads))


def _csr(batches: list[SparseBatch], columns: int) -> tuple[scipy.sparse.csr_matrix, np.ndarray]:
    starts = np.cumsum([0, *(len(one.indices_E) for one in batches)])
    indptr = [one.indptr_N[:-1] + start for one, start in zip(batches, starts[:-1], strict=True)]
    indices = np.concatenate([one.indices_E for one in batches])
    shape = (sum(len(one) for one in batches), columns)
    csr = scipy.sparse.csr_matrix(
        (np.ones(len(indices), np.float32), indices, np.concatenate([*indptr, starts[-1:]])), shape=shape
    )
    return csr, np.concatenate([one.labels_N for one in batches])


def retrained(config: str, *, seeds: int, methods: Sequence[str], shares: Sequence[float]) -> Report:
    """Trainings on what each method keeps."""
    trials, full = [], {}
    torch.set_num_threads(usable_cores())
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as place:
            task = Retraining(config=config, seed=seed, folder=Path(place))
            whole = task.train("full")
            full[seed] = _trial("all", 1.0, seed, whole)
            for method in methods:
                scores = None if method == TOGETHER else _scores(method, task, whole)
                for share in shares:
                    if method == TOGETHER:
                        scores = _scores(method, task, whole, keep=share)
                    assert scores is not None
                    again = task.train(f"{method}-{share}", task.best_D(scores, share))
                    trials.append(_trial(method, share, seed, again))
    return Report(title=config, trials=tuple(trials), full=full)


def _trial(method: str, kept: float, seed: int, of: Outcome) -> Trial:
    return Trial(method=method, kept=kept, seed=seed, valid=of.valid, test=of.test)


def _scores(method: str, task: Retraining, whole: Outcome, **options: Any) -> Scores:
    """Of the training log, and for some the model trained on it."""
    if method in MODEL_BASED:
        return score(method, Trained(model=whole.model, log=task.log(), columns=task.columns), **options)
    batches = list(LogBatches(log=task.log(), columns=task.columns, seed=task.seed))
    if method == FEATURE_GRADIENTS:
        settings = FeatureGradientsSettings(**SEARCH, threads=usable_cores())
        return fit(batches, task.columns.layout, settings)
    options |= {"seed": task.seed} if method == RANDOM else {}
    return score(method, Rows(batches=batches, layout=task.columns.layout), **options)


def _judged(data: str, report: Report) -> Part:
    """By the best method, as validation says."""
    best = report.best([name for name in report.methods if name not in (FREQUENCY, RANDOM)])
    mean, half = statistics.fmean, 0.5
    full, kept = mean(one.test for one in report.full.values()), mean(report.quality(best, half))
    claims = {f"auc_loss_at_half_rows_{data}": claim(full - kept, "AUC", f"all values ({best})", full)}
    claims[f"auc_loss_at_half_rows_{data}"]["ratio"] = kept / full
    for share in report.shares:
        gain = mean(report.difference(best, share, to=FREQUENCY))
        peer = mean(report.quality(FREQUENCY, share))
        name = f"auc_gain_over_frequency_at_{SHARES[share]}_rows_{data}"
        claims[name] = {**claim(gain, "AUC", f"frequency ({best})", peer), "ratio": None}
    gain, peer = mean(report.difference(best, half, to=RANDOM)), mean(report.quality(RANDOM, half))
    claims[f"auc_gain_over_random_at_half_rows_{data}"] = {
        **claim(gain, "AUC", f"random ({best})", peer),
        "ratio": None,
    }
    return Part(claims=claims, samples={data: report.summary()})


def _draw(path: Path, plots: list[Callable[[Any], None]], speed: Part) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * (len(plots) + 1), 4.5), layout="constrained")
    axes = figure.subplots(1, len(plots) + 1, squeeze=False)[0]
    for plot, one in zip(plots, axes, strict=False):
        plot(one)
    curve = speed.samples["seconds_by_rows"]
    axes[-1].loglog(list(curve), list(curve.values()), marker="o")
    axes[-1].set(title="one pass of Feature Gradients", xlabel="rows", ylabel="seconds")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main("selection", measure)
