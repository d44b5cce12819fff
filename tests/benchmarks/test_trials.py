"""Trainings of the benchmark of selection: each once, whatever was cut off, and the same by whoever makes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from benchmarks import retraining
from benchmarks.retraining import Outcome, Retraining
from benchmarks.selections import trials
from benchmarks.selections.trials import ALL, FIELDS, VALUES, Lines, Plan

FEATURES = ("good", "fair", "bad")
PLAN = Plan(
    config="tiny",
    seeds=1,
    methods=("frequency", "random"),
    shares=(0.25, 0.5),
    field_methods=("lift", "mutual_information"),
    field_counts=(1, 2),
)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was trained, with a small training as ``configs/tiny.yaml`` and one process that is this one."""
    rng = np.random.default_rng(3)
    for split, rows in (("train", 1500), ("valid", 400), ("test", 400)):
        codes = {name: rng.integers(0, 12, rows) for name in FEATURES}
        rate = np.where(codes["good"] < 6, 0.8, 0.2) + np.where(codes["fair"] == 0, 0.1, 0.0)
        (tmp_path / "logs" / split).mkdir(parents=True)
        table = pa.table({**codes, "y": (rng.random(rows) < rate).astype(np.int8)})
        pq.write_table(table, tmp_path / "logs" / split / "log.parquet")
    config = {
        "logs": {split: str(tmp_path / "logs" / split) for split in ("train", "valid", "test")},
        "schema": {"label": "y", "features": [{"name": name, "exact": True} for name in FEATURES]},
        "table": {"rows": 0, "dim": 4},
        "model": {"name": "dnn", "hidden": [4], "batch_norm": False},
        "training": {"batch_size": 250, "epochs": 1},
    }
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(retraining, "ROOT", tmp_path)
    seen: list[str] = []
    train: Callable[..., Outcome] = Retraining.train

    def trained(self: Retraining, name: str, *kept: Any) -> Outcome:
        seen.append(name)
        return train(self, name, *kept)

    def done(jobs: Any, *others: Any) -> None:
        for function, arguments in jobs:
            function(*arguments)

    monkeypatch.setattr(Retraining, "train", trained)
    monkeypatch.setattr(trials, "_done", done)
    return seen


def _without_seconds(path: Path) -> list[dict[str, Any]]:
    lines = Lines(path).read()
    return [{name: of for name, of in line.items() if "seconds" not in name} for line in lines]


def test_goes_on_where_it_was_cut_off(names: list[str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert PLAN.missing(work) == PLAN.trainings == 9
    PLAN.run(work)
    assert PLAN.missing(work) == 0
    path = work / "tiny.jsonl"
    whole, before = _without_seconds(path), list(names)
    assert before[:5] == [
        "full",
        *(f"{VALUES}-{method}-{share:g}" for method in PLAN.methods for share in PLAN.shares),
    ]
    names.clear()
    PLAN.run(work)
    assert names == []

    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(text[:2]) + text[2][:-20])  # killed while it wrote the third
    assert PLAN.missing(work) == 7
    PLAN.run(work)
    assert names == before[2:]
    assert _without_seconds(path) == whole
    assert [one.name for one in (work / "runs").iterdir()] == ["tiny-0-full"]


def test_the_same_fields_are_trained_once(names: list[str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    PLAN.run(work)
    lines = [line for line in Lines(work / "tiny.jsonl").read() if line["of"] == FIELDS]
    assert len(lines) == 4
    sets = {tuple(line["dropped"]) for line in lines}
    assert sum(name.startswith(FIELDS) for name in names) == len(sets) < len(lines)
    best = [line for line in lines if line["kept"] == 1 / 3]
    assert [line["dropped"] for line in best] == [["fair", "bad"]] * 2
    assert best[0]["test"] == best[1]["test"] > 0.7


def test_reports_of_what_is_complete(names: list[str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    PLAN.run(work)
    values, fields = PLAN.reports(work)
    assert (values.of, fields.of) == (VALUES, FIELDS)
    assert values.methods == PLAN.methods
    assert fields.shares == (1 / 3, 2 / 3)
    path = work / "tiny.jsonl"
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in text if json.loads(line)["method"] != "random"))
    assert [report.methods for report in PLAN.reports(work)] == [("frequency",), PLAN.field_methods]
    path.write_text("")
    assert PLAN.reports(work) == []


def test_a_line_after_one_that_was_cut_off(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "trials.jsonl")
    first, second = ({"of": ALL, "method": ALL, "kept": 1.0, "seed": seed, "valid": 0.5} for seed in (0, 1))
    lines.add(first)
    with lines.path.open("a") as file:
        file.write('{"of": "all", "me')
    lines.add(second)
    assert lines.read() == [first, second]
    assert lines.find(ALL, ALL, 1.0, 1) == second
    assert lines.find(VALUES, ALL, 1.0, 1) is None


@pytest.mark.slow
def test_processes_have_a_core_each_and_no_say(tmp_path: Path) -> None:
    """Two at a time say what this process says."""
    context = trials.multiprocessing.get_context("spawn")
    cores = context.Queue()
    cores.put(trials._cores()[-1])
    with trials.ProcessPoolExecutor(1, mp_context=context, initializer=trials._alone, initargs=(cores,)) as pool:
        assert pool.submit(trials._cores).result() == trials._cores()[-1:]
        assert pool.submit(torch.get_num_threads).result() == 1
