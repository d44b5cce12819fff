"""Choosing values: planted ones among a million columns, the speed of a pass, and models trained again on what is kept.

    python -m benchmarks.selection --quick --json                        all parts, small, in under a minute
    python -m benchmarks.selection --part scale --work DIR               one part, kept in DIR
    python -m benchmarks.selection --part frappe --work DIR --processes 2
    python -m benchmarks.selection --work DIR --out FILE                 the parts in DIR, put together; with the plots

part planted
    planted_precision    of the best k columns, how many of ``embstore.selection.planted``'s k planted values are
                         (columns of signal fields, which matter too, are left out); ``level="values"``; the worst seed
part speed
    nnz_per_second       entries by the seconds of one pass of Feature Gradients over batches in memory, counting
                         included, without what is done once whatever the rows (``once_seconds``: the largest
                         eigenvalue); peer: scikit-learn's ``chi2`` on the same rows as a CSR matrix: a simpler question
part scale               the job of ``embstore select`` on a log in Parquet (``benchmarks.selections.scale``)
    exponent             of its pass's seconds over rows, from an eighth of the rows to all: 1 is linear
    log_nnz_per_second   entries by seconds of its pass, reading the log twice and finding columns included
    pass_memory          of the largest log, less than before the job; peer: of the smallest
parts frappe (Frappe_x1r) and movielens_1m
    auc_loss_at_half_rows_DATA                   test AUC of all values less that of half, by the best method
    auc_gain_over_frequency_at_SHARE_rows_DATA   of the best method, at a quarter, half and three quarters
    auc_gain_over_random_at_half_rows_DATA
    aukc_of_fields_DATA                          of the method best at choosing fields; peer: random ones

A method sees the training log, and the full model trained on it. Which is the best is said by the validation log
(``embstore.selection.report``); the test log decides nothing. A share is of the values of all features together, each
of which has one row. All models are trained from the same seed in the same way (``configs/*-small.yaml``), each once:
a part that is started again goes on (``benchmarks.selections.trials``). Use another folder for other code.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import Result, claim, main
from benchmarks.selections.part import PLANTED, Part
from benchmarks.selections.passes import PLANTED_SEARCH, planted, speed
from benchmarks.selections.scale import scale
from benchmarks.selections.scoring import FIELD_METHODS, FREQUENCY, GATES, METHODS, QUICK, RANDOM, SEARCH
from benchmarks.selections.trials import FIELDS, VALUES, Plan, told
from embstore.selection.report import Report
from embstore.threads import usable_cores

SHARES = {0.25: "quarter", 0.5: "half", 0.75: "three_quarters"}
PLANS = {
    "frappe": Plan(
        config="frappe-small",
        seeds=3,
        methods=METHODS,
        shares=tuple(SHARES),
        field_methods=FIELD_METHODS,
        field_counts=(2, 4, 6, 8),
    ),
    "movielens_1m": Plan(
        config="movielens-1m-small",
        seeds=3,
        methods=METHODS,
        shares=tuple(SHARES),
        field_methods=FIELD_METHODS,
        field_counts=(2, 4, 6),
    ),
}
QUICK_PLANS = {"frappe": Plan(config="frappe-small", seeds=1, methods=QUICK, shares=(0.25, 0.5))}


def measured(work: Path, *, quick: bool) -> dict[str, Callable[[], Part]]:
    """The parts that end in one go."""
    if quick:
        return {
            "planted": lambda: planted(batches=64, columns=100_000, seeds=1),
            "speed": lambda: speed(rows=262_144, columns=100_000, repeats=3),
            "scale": lambda: scale(work, rows=262_144, columns=100_000, files=(2, 8)),
        }
    return {
        "planted": lambda: planted(batches=128, columns=PLANTED["columns"], seeds=3),
        "speed": lambda: speed(rows=1_048_576, columns=PLANTED["columns"], repeats=5),
        "scale": lambda: scale(work, rows=10_485_760, columns=PLANTED["columns"]),
    }


def judged(data: str, plan: Plan, work: Path) -> Part | None:
    """What is trained so far says, by the best method, as validation says; ``None`` where that is nothing yet."""
    reports = {report.of: report for report in plan.reports(work)}
    if not reports:
        return None
    claims: dict[str, dict[str, Any]] = {}
    if VALUES in reports and {FREQUENCY} < set(reports[VALUES].methods):
        claims |= _of_values(data, reports[VALUES])
    if FIELDS in reports and RANDOM in reports[FIELDS].methods:
        report = reports[FIELDS]
        best = report.best([name for name in report.methods if name != RANDOM])
        mine, peer = (statistics.fmean(report.aukc(name)) for name in (best, RANDOM))
        claims[f"aukc_of_fields_{data}"] = claim(mine, "AUKC", f"random ({best})", peer)
    return Part(claims=claims, samples={data: dict(told(tuple(reports.values()), plan, work))})


def _of_values(data: str, report: Report) -> dict[str, dict[str, Any]]:
    best = report.best([name for name in report.methods if name not in (FREQUENCY, RANDOM)])
    mean, half = statistics.fmean, 0.5
    full, kept = mean(one.test for one in report.full.values()), mean(report.quality(best, half))
    claims = {f"auc_loss_at_half_rows_{data}": claim(full - kept, "AUC", f"all values ({best})", full)}
    claims[f"auc_loss_at_half_rows_{data}"]["ratio"] = kept / full
    gains = [(FREQUENCY, share) for share in report.shares] + [(RANDOM, half)] * (RANDOM in report.methods)
    for other, share in gains:
        gain, peer = mean(report.difference(best, share, to=other)), mean(report.quality(other, share))
        name = f"auc_gain_over_{other}_at_{SHARES[share]}_rows_{data}"
        claims[name] = {**claim(gain, "AUC", f"{other} ({best})", peer), "ratio": None}
    return claims


def assembled(parts: Mapping[str, Part], reports: Sequence[Report]) -> Result:
    """One result of the parts that are there."""
    return Result(
        claims={name: of for part in parts.values() for name, of in part.claims.items()},
        samples={
            **{name: of for part in parts.values() for name, of in part.samples.items()},
            "parts": {name: dict(part.env) for name, part in parts.items()},
        },
        settings={
            "feature_gradients": {**SEARCH, "planted": PLANTED_SEARCH},
            "gates": GATES,
            "planted": PLANTED,
            "configs": {data: plan.config for data, plan in PLANS.items()},
            "cores": usable_cores(),
            "parts": sorted(parts),
        },
        packages=("torch", "scipy", "scikit-learn"),
        plot=partial(draw, reports=reports, scaled=parts.get("scale")) if reports or "scale" in parts else None,
    )


def in_parts(work: Path, quick: bool, parts: Sequence[str] | None = None, *, processes: int = 1) -> Result:
    """Measure these parts and keep them in the folder; none of them: put together what is there."""
    plans, kept = QUICK_PLANS if quick else PLANS, {}
    for name, measure in measured(work, quick=quick).items():
        path = work / f"{name}.json"
        if parts is not None and name in parts:
            measure().write(path)
        if path.exists():
            kept[name] = Part.read(path)
    reports = []
    for name, plan in plans.items():
        if parts is not None and name in parts:
            plan.run(work, processes=processes)
        part = judged(name, plan, work)
        if part is not None:
            kept[name] = part
            reports += plan.reports(work)
    if parts is None:
        _say_missing(work, kept, plans, measured(work, quick=quick))
    return assembled(kept, reports)


def _say_missing(work: Path, kept: Mapping[str, Part], plans: Mapping[str, Plan], others: Iterable[str]) -> None:
    for name in others:
        if name not in kept:
            print(f"part {name} is missing", file=sys.stderr)
    for name, plan in plans.items():
        if missing := plan.missing(work):
            print(f"part {name}: {missing:,} of {plan.trainings:,} trainings are missing", file=sys.stderr)


def draw(path: Path, reports: Sequence[Report], scaled: Part | None) -> None:
    """Quality by what is kept, then seconds and memory by rows."""
    from matplotlib.figure import Figure

    count = len(reports) + (2 if scaled else 0)
    columns = min(3, count)
    figure = Figure(figsize=(6 * columns, 4.5 * -(-count // columns)), layout="constrained")
    axes = figure.subplots(-(-count // columns), columns, squeeze=False).reshape(-1)
    for unused in axes[count:]:
        unused.set_axis_off()
    for report, one in zip(reports, axes, strict=False):
        report.plot(one)
        one.set_title(f"{report.title}, {report.of}")
    if scaled is not None:
        of, (time, memory) = scaled.samples["scale"], axes[len(reports) : count]
        rows = [int(row) for row in of["seconds_by_rows"]]
        entries = [row * of["entries_of_a_row"] for row in rows]
        for name, label in (("seconds_by_rows", "seconds"), ("cpu_seconds_by_rows", "CPU seconds")):
            found = list(of[name].values())
            line = time.loglog(entries, found, marker="o", label=label)
            time.loglog(entries, [found[-1] * at / entries[-1] for at in entries], ":", color=line[0].get_color())
        time.set(title="a pass of the job (dotted: linear)", xlabel="entries", ylabel="seconds")
        memory.plot(rows, list(of["memory_by_rows"].values()), marker="o")
        memory.set(title="greatest memory, more than before", xlabel="rows", ylabel="MiB", ylim=0)
        time.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _parsed() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", add_help=False, allow_abbrev=False)
    parser.add_argument("--part", action="append", choices=("planted", "speed", "scale", *PLANS))
    parser.add_argument("--work", type=Path, metavar="DIR", help="where parts are kept, and found again")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="models trained at a time")
    return parser.parse_known_args()


def measure(quick: bool, *, part: Sequence[str] | None, work: Path | None, processes: int) -> Result:
    """A part, or what the parts in the folder say; without a folder, all of it."""
    if work is not None:
        return in_parts(work, quick, part, processes=processes)
    with tempfile.TemporaryDirectory() as place:
        every = [*measured(Path(place), quick=quick), *(QUICK_PLANS if quick else PLANS)]
        return in_parts(Path(place), quick, part or every, processes=usable_cores() if quick else processes)


if __name__ == "__main__":
    options, sys.argv[1:] = _parsed()
    main("selection", partial(measure, **vars(options)))
