"""Models trained again on what methods keep, each once: what is trained is kept as a line of JSON in the work folder.

    WORK/frappe-small.jsonl     {"of": "values", "method": "lift", "kept": 0.5, "seed": 0, "valid": ..., "test": ...}
    WORK/runs/                  the models that keep all, one a seed; others are removed once they are judged

A benchmark that is started again, or killed and started again, trains what has no line yet. Jobs are a method and a
seed each; several processes take one each, with one thread on a core of its own, so that a line depends on its
(config, method, share, seed) alone, not on how many there are.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from benchmarks.report import environment
from benchmarks.retraining import Outcome, Retraining
from benchmarks.selections.scoring import ALIKE, BOTH, MODEL_BASED, TOGETHER, alike, kept_by, scores
from embstore import models
from embstore.ctr import CtrModel
from embstore.run import Run
from embstore.selection.pruning import best_fields, without_fields
from embstore.selection.report import Report, Trial
from embstore.settings import RunConfig
from embstore.threads import usable_cores

VALUES, FIELDS, ALL = "values", "fields", "all"
_BEFORE = ((FIELDS, "leave_one_out"), (ALL, ALL))  # by whose trainings fields are left out


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained on one data set.

    Args:
        config: name of the training, in configs/.
        seeds: how many.
        methods: that rank values.
        shares: of all values, kept.
        field_methods: that rank fields.
        field_counts: of fields, kept.
    """

    config: str
    seeds: int
    methods: Sequence[str]
    shares: Sequence[float]
    field_methods: Sequence[str] = ()
    field_counts: Sequence[int] = ()

    @property
    def trainings(self) -> int:
        """All of it, full models included."""
        each = len(self.methods) * len(self.shares) + len(self.field_methods) * len(self.field_counts) + 1
        return self.seeds * each

    def run(self, work: Path, *, processes: int = 1) -> None:
        """Train what has no line in the work folder yet."""
        work.mkdir(parents=True, exist_ok=True)
        seeds = range(self.seeds)
        methods = [method for method in self.methods if method != BOTH]
        kinds = [(_values, methods, self.shares), (_fields, self.field_methods, self.field_counts)]
        jobs = [
            (method in MODEL_BASED, work_on, (work, self.config, seed, method, tuple(kept)))
            for work_on, methods, kept in kinds
            for seed, method in product(seeds, methods)
        ]
        full = [(_full, (work, self.config, seed)) for seed in seeds]
        _done([*full, *(job for after, *job in jobs if not after)], processes, self, work)
        _done([job for after, *job in jobs if after], processes, self, work)
        if BOTH in self.methods:
            _done([(_both, (work, self.config, seed, tuple(self.shares))) for seed in seeds], processes, self, work)

    def reports(self, work: Path) -> list[Report]:
        """Of values and of fields; methods that have not all of their trials yet are left out."""
        lines = Lines(work / f"{self.config}.jsonl")
        full = {seed: line for seed in range(self.seeds) if (line := lines.find(ALL, ALL, 1.0, seed))}
        if len(full) < self.seeds:
            return []
        total = next(iter(full.values()))["fields"]
        out = []
        for of, methods, kept in (
            (VALUES, self.methods, self.shares),
            (FIELDS, self.field_methods, [count / total for count in self.field_counts]),
        ):
            trials: list[Trial] = []
            for method in methods:
                found = [lines.find(of, method, share, seed) for seed, share in product(full, kept)]
                trials += [_trial(line) for line in found if line is not None] if None not in found else []
            if trials:
                whole = {seed: _trial(line) for seed, line in full.items()}
                out.append(Report(title=self.config, of=of, trials=tuple(trials), full=whole))
        return out

    def missing(self, work: Path) -> int:
        """Trainings without a line."""
        return self.trainings - sum(1 for line in Lines(work / f"{self.config}.jsonl").read() if self._mine(line))

    def _mine(self, line: dict[str, Any]) -> bool:
        total = line["fields"]
        of = {
            ALL: ((ALL,), (1.0,)),
            VALUES: (self.methods, self.shares),
            FIELDS: (self.field_methods, [count / total for count in self.field_counts]),
        }
        methods, kept = of[line["of"]]
        return line["seed"] < self.seeds and line["method"] in methods and line["kept"] in kept


@dataclass(frozen=True)
class Lines:
    """A file of trials, to which any number of processes append."""

    path: Path

    def read(self) -> list[dict[str, Any]]:
        """One of each; the last line may have been cut off when a process was killed."""
        found = {}
        for text in self.path.read_text().splitlines(keepends=True) if self.path.exists() else ():
            if text.endswith("}\n"):
                line = json.loads(text)
                found.setdefault(_key(line), line)
        return list(found.values())

    def find(self, of: str, method: str, kept: float, seed: int) -> dict[str, Any] | None:
        """A trial, if it was made."""
        wanted = {"of": of, "method": method, "kept": kept, "seed": seed}
        return next((line for line in self.read() if _key(line) == _key(wanted)), None)

    def add(self, line: dict[str, Any]) -> None:
        """Append it, in one write."""
        text = json.dumps(line) + "\n"
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(file).st_size
            begun = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # what was cut off gets a line of its own
            os.write(file, (("\n" if begun else "") + text).encode())
        finally:
            os.close(file)


@dataclass(frozen=True, kw_only=True)
class WithoutFields(Retraining):
    """Trainings without some of the features."""

    dropped: tuple[str, ...]

    @cached_property
    def settings(self) -> RunConfig:
        """Whose schema is without them."""
        whole = Retraining(config=self.config, seed=self.seed, folder=self.folder).settings
        return whole.with_schema(without_fields(whole.read_schema(), self.dropped))


def _full(work: Path, config: str, seed: int) -> None:
    lines = Lines(work / f"{config}.jsonl")
    if lines.find(ALL, ALL, 1.0, seed) is None:
        task = Retraining(config=config, seed=seed, folder=work / "runs")
        _add(lines, task, (ALL, ALL, 1.0), partial(task.train, "full"))


def _values(work: Path, config: str, seed: int, method: str, shares: Sequence[float]) -> None:
    """A job: the shares of a method that have no line."""
    lines = Lines(work / f"{config}.jsonl")
    task = Retraining(config=config, seed=seed, folder=work / "runs")
    found = None
    for share in shares:
        if lines.find(VALUES, method, share, seed) is not None:
            continue
        start = time.process_time()
        if method == TOGETHER:
            found = scores(method, task, lambda: _model(task), keep=share)
        elif found is None and method != ALIKE:
            found = scores(method, task, lambda: _model(task))
        kept = kept_by(method, task, lambda: _model(task), share, found)
        taken, name = time.process_time() - start, f"{VALUES}-{method}-{share:g}"
        _add(lines, task, (VALUES, method, share), partial(_anew, task, name, kept), score_cpu_seconds=taken)


def _fields(work: Path, config: str, seed: int, method: str, counts: Sequence[int]) -> None:
    """A job: the numbers of fields of a method that have no line. What keeps the same fields is trained once."""
    lines = Lines(work / f"{config}.jsonl")
    whole = Retraining(config=config, seed=seed, folder=work / "runs")
    names = [feature.name for feature in whole.schema.features]
    found = None
    for count in counts:
        kept = count / len(names)
        if lines.find(FIELDS, method, kept, seed) is not None:
            continue
        start = time.process_time()
        if found is None:
            found = scores(method, whole, lambda: _model(whole), of=FIELDS)
        taken = time.process_time() - start
        best = best_fields(dict(zip(found.layout.fields, found.log_field_F.tolist(), strict=True)), keep=count)
        dropped = tuple(name for name in names if name not in best)
        of_seed = (line for line in lines.read() if (line["of"], line["seed"]) == (FIELDS, seed))
        same = (line for line in of_seed if line["dropped"] == list(dropped))
        if (line := next(same, None)) is not None:
            lines.add({**line, "of": FIELDS, "method": method, "kept": kept, "score_cpu_seconds": taken})
            continue
        task = WithoutFields(config=config, seed=seed, folder=whole.folder, dropped=dropped)
        name = f"{FIELDS}-{method}-{count}"
        told = {"dropped": list(dropped), "score_cpu_seconds": taken}
        _add(lines, whole, (FIELDS, method, kept), partial(_anew, task, name), **told)


def _both(work: Path, config: str, seed: int, shares: Sequence[float]) -> None:
    """A job: fields are left out, then values share rows, as many as where all fields have theirs."""
    lines = Lines(work / f"{config}.jsonl")
    left = [share for share in shares if lines.find(VALUES, BOTH, share, seed) is None]
    if not left:
        return
    whole = Retraining(config=config, seed=seed, folder=work / "runs")
    tried = [line for line in lines.read() if line["seed"] == seed and (line["of"], line["method"]) in _BEFORE]
    dropped = max(tried, key=lambda line: line["valid"]).get("dropped", [])
    task = WithoutFields(config=config, seed=seed, folder=whole.folder, dropped=tuple(dropped))
    start = time.process_time()
    model = _anew(task, BOTH).model
    taken = time.process_time() - start
    for share in left:
        kept = alike(task, model, round(share * len(whole.values_A)))
        told = {"dropped": dropped, "score_cpu_seconds": taken}
        _add(lines, whole, (VALUES, BOTH, share), partial(_anew, task, f"{BOTH}-{share:g}", kept), **told)


def _add(
    lines: Lines, task: Retraining, key: tuple[str, str, float], train: Callable[[], Outcome], **told: Any
) -> None:
    of, method, kept = key
    start = time.process_time()
    outcome = train()
    line = {"of": of, "method": method, "kept": kept, "seed": task.seed, **outcome.told()}
    about = {"fields": len(task.schema.features), "revision": environment()["revision"]}
    lines.add({**line, "cpu_seconds": round(time.process_time() - start, 2), **told, **about})


def _anew(task: Retraining, name: str, *kept: Any) -> Outcome:
    """A training whose folders are there for it alone."""
    folder = task.folder / f"{task.config}-{task.seed}-{name}"
    places = (folder, folder.with_name(f"{folder.name}-vocabulary"))
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
    outcome = task.train(name, *kept)
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
    return outcome


def _model(task: Retraining) -> CtrModel:
    """That keeps all, as it was trained."""
    config = task.settings.with_seed(task.seed, str(task.folder / f"{task.config}-{task.seed}-full"))
    return Run(config, models.build).trained()


def _done(jobs: Sequence[tuple[Callable[..., None], tuple[Any, ...]]], processes: int, plan: Plan, work: Path) -> None:
    """Do the jobs, and say how far it is; what one raises is raised when the others have ended."""
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in islice(cycle(_cores()), processes):
        cores.put(core)
    errors: list[BaseException] = []
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_alone, initargs=(cores,)) as pool:
        futures = [pool.submit(function, *arguments) for function, arguments in jobs]
        try:
            for future in as_completed(futures):
                if (error := future.exception()) is not None:
                    errors.append(error)
                else:
                    print(f"{plan.config}: {plan.missing(work):,} trainings left", file=sys.stderr)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if errors:
        raise errors[0]


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def _alone(cores: Any) -> None:
    """One thread, on a core of its own."""
    core = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    usable_cores.cache_clear()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)


def _key(line: dict[str, Any]) -> tuple[str, str, float, int]:
    return line["of"], line["method"], line["kept"], line["seed"]


def _trial(line: dict[str, Any]) -> Trial:
    return Trial(**{name: line[name] for name in ("method", "kept", "seed", "valid", "test")})


def told(reports: Sequence[Report], plan: Plan, work: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Samples of a data set: what each report says, and seconds of trainings and of scores."""
    lines = [line for line in Lines(work / f"{plan.config}.jsonl").read() if plan._mine(line)]
    for report in reports:
        yield report.of, report.summary()
    yield (
        "trainings",
        {
            "revisions": sorted({line["revision"] for line in lines}),
            "cpu_seconds": sum(line["cpu_seconds"] for line in lines),
            "score_cpu_seconds": sum(line.get("score_cpu_seconds", 0.0) for line in lines),
            "missing": plan.missing(work),
        },
    )
