"""The selection job: the same bytes serially and on Ray, as ``fit`` in one process; killed workers; what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from dying import dies_once
from shown import Shown

from embstore.cli.select import select as command
from embstore.errors import ConfigError, DataError, SchemaError, StoreError
from embstore.logs import ParquetLog
from embstore.pipelines import selection as job
from embstore.pipelines.selection import SelectionSettings, select
from embstore.schema import Schema
from embstore.selection import Columns, FeatureGradientsSettings, LogBatches, Scores, fit
from embstore.vocabulary import Vocabulary

ROWS = 12_000
SCHEMA = {"label": "click", "features": [{"name": "good"}, {"name": "bad"}], "dense": [{"name": "price"}]}
OPTIONS: dict[str, Any] = {"batches_per_step": 3, "epochs": 2, "level": "both"}
ORDER: dict[str, Any] = {"rows": 512, "shuffle_window": 2048, "hashed": 64}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clicks that ``good`` decides, and ``price`` a little."""
    folder, rng = tmp_path_factory.mktemp("selection") / "log", np.random.default_rng(0)
    folder.mkdir()
    good, bad, price = rng.integers(0, 20, ROWS), rng.integers(0, 20, ROWS), rng.normal(size=ROWS)
    click = rng.random(ROWS) < 1 / (1 + np.exp(1.5 - 2.5 * (good % 4 == 0) - 0.3 * price))
    table = pa.table({"click": click.astype(np.int8), "good": good, "bad": bad, "price": price})
    for part in range(3):
        pq.write_table(table.slice(part * 4000, 4000), folder / f"{part}.parquet", row_group_size=1500)
    vocabulary = Vocabulary.collect(ParquetLog(folder, Schema.from_dict(SCHEMA)), ["good"])
    vocabulary.to_parquet(folder.parent / "vocabulary")
    return folder


def _settings(log: Path, output: Path, **given: Any) -> SelectionSettings:
    both = {"schema": SCHEMA, "vocabulary": str(log.parent / "vocabulary"), "options": OPTIONS, **ORDER, **given}
    return SelectionSettings(log=str(log), output=str(output), **both)


@pytest.fixture(scope="module")
def whole(log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole") / "scores"
    return folder, select(_settings(log, folder), threads=1)


def test_what_is_written(log: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    folder, manifest = whole
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    told = manifest["lineage"]
    vocabulary = Vocabulary.from_parquet(log.parent / "vocabulary")
    opened = ParquetLog(log, Schema.from_dict(SCHEMA))
    assert (told["log"]["rows"], told["log"]["fingerprint"]) == (ROWS, opened.fingerprint)
    assert told["vocabulary"]["sha256"] == vocabulary.digest()
    assert manifest["found"]["steps"] == 2 * -(-len(list(opened.batches(512))) // 3)
    scores = Scores.from_parquet(folder)
    assert [one["name"] for one in manifest["fields"]] == ["good", "bad", "price"] == list(scores.layout.fields)
    assert scores.top_fields(1) == ("good",)
    best = scores.of_field("good")[:20].reshape(5, 4)
    assert best[:, 0].mean() > best[:, 1:].mean()


def test_as_in_one_process(log: Path, tmp_path: Path) -> None:
    schema = {**SCHEMA, "dense": []}  # whose sums are by window, so in another order
    select(_settings(log, tmp_path / "v", schema=schema))
    opened = ParquetLog(log, Schema.from_dict(schema))
    vocabulary = Vocabulary.from_parquet(log.parent / "vocabulary")
    columns = Columns(schema=opened.schema, vocabulary=vocabulary, hashed=64)
    batches = LogBatches(log=opened, columns=columns, rows=512, shuffle_window=2048)
    here = fit(batches, columns.layout, FeatureGradientsSettings(**OPTIONS))
    written = Scores.from_parquet(tmp_path / "v")
    assert np.array_equal(here.log_column_D, written.log_column_D)
    assert np.array_equal(here.log_field_F, written.log_field_F)


def test_the_same_bytes_by_threads(log: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shown = Shown()
    assert select(_settings(log, tmp_path / "v"), threads=4, progress=shown) == whole[1]
    bars = [("count", ROWS, ROWS), ("search", 2 * ROWS, 2 * ROWS), ("write", 1, 1)]
    assert [(bar.label, bar.total, bar.rows) for bar in shown.bars] == bars
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_on_ray(
    cluster: str, log: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    for name in ("_gradient", "_encode"):
        monkeypatch.setattr(job, name, dies_once(getattr(job, name), deaths / name))
    shown = Shown()
    assert select(_settings(log, tmp_path / "v"), workers=2, progress=shown) == whole[1]
    assert len(list(deaths.iterdir())) == 2
    assert all(bar.rows == bar.total for bar in shown.bars)
    monkeypatch.undo()
    assert select(_settings(log, tmp_path / "one"), workers=1) == whole[1]
    counted = [
        select(_settings(log, tmp_path / f"c-{workers}", method="mutual_information", options={}), workers=workers)
        for workers in (None, 2)
    ]
    assert counted[0] == counted[1]


@pytest.mark.parametrize("method", ["frequency", "lasso", "random"])
def test_methods_that_take_rows(method: str, log: Path, tmp_path: Path) -> None:
    manifest = select(_settings(log, tmp_path / "v", method=method, options={}))
    assert manifest["method"] == method
    scores = Scores.from_parquet(tmp_path / "v")
    if method == "lasso":
        assert scores.top_fields(1) == ("good",)


@pytest.mark.parametrize(
    ("options", "hint"),
    [({}, "only 1 step: "), ({"batches_per_step": 8, "epochs": 2}, "only 2 steps, "), ({"epochs": 3}, None)],
)
def test_few_steps_are_said(options: dict[str, Any], hint: str | None, log: Path, tmp_path: Path) -> None:
    shown = Shown()
    settings = _settings(log, tmp_path / "v", rows=ROWS // 5, shuffle_window=ROWS, options=options)
    found = select(settings, progress=shown)["found"]
    hints = [line for line in shown.lines if line.startswith("hint")]
    assert [line for line in hints if hint and hint in line] == hints
    assert bool(hints) == (hint is not None) == (found["steps"] < 12)


def test_what_fails_leaves_nothing(log: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a name that is free"):
        select(_settings(log, log))
    for given, error, message in (
        ({"method": "feature_gradient"}, ConfigError, "feature_gradients"),
        ({"options": {"rows": -3}}, ConfigError, "beside options in the YAML"),
        ({"method": "sfs"}, ConfigError, "the folder of a trained one"),
        ({"options": {"ordr": 2}}, ConfigError, "order"),
        ({"method": "lift", "options": {"smoothin": 2}}, ConfigError, "smoothing"),
        ({"features": ("god",)}, SchemaError, "good"),
    ):
        with pytest.raises(error, match=message):
            select(_settings(log, tmp_path / "v", **given))
    for wrong in ({"rows": 0}, {"hashed": 0}, {"schema": None}, {"features": ()}, {"seed": -1}):
        with pytest.raises(ConfigError):
            _settings(log, tmp_path / "v", **wrong)
    table = pq.read_table(log).slice(0, 10)
    broken = table.set_column(table.schema.get_field_index("click"), "click", pa.array([0] * 9 + [3]))
    pq.write_table(broken, tmp_path / "a.parquet", row_group_size=5)
    with pytest.raises(DataError, match="label 'click'"):
        select(_settings(tmp_path / "a.parquet", tmp_path / "v", vocabulary=None))
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_the_command(log: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    def run(*arguments: Any) -> str:
        return CliRunner().invoke(command, [str(of) for of in arguments], catch_exceptions=False).output

    (tmp_path / "config.yaml").write_text(json.dumps({"schema": SCHEMA, **ORDER}))
    options = [flag for name, value in OPTIONS.items() for flag in ("--set", f"{name}={value}")]
    vocabulary = ["--vocabulary", log.parent / "vocabulary"]
    config = ["--config", tmp_path / "config.yaml"]
    made = run(log, *config, *vocabulary, *options, "--to", tmp_path / "v", "--json")
    assert json.loads(made)["files"] == whole[1]["files"]
    text = run(log, "--label", "click", "--feature", "bad", "--method", "frequency", "--to", tmp_path / "w")
    assert text.splitlines()[1].split()[0] == "bad" or "bad" in text
    assert f"wrote {tmp_path / 'w'}" in text
