"""Selection by a model: as the methods in one process, on Ray, killed; what it refuses; pruning by what comes of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from dying import TASKS, dies_once
from shown import Shown

from embstore.cli.prune import prune as prune_command
from embstore.cli.select import select as command
from embstore.config import parse
from embstore.errors import CheckpointError, ConfigError, DataError, LogError, SchemaError
from embstore.logs import ParquetLog
from embstore.models import build
from embstore.pipelines import judging
from embstore.pipelines.selection import SelectionSettings, select
from embstore.run import Run
from embstore.schema import Schema
from embstore.selection import Columns, Scores
from embstore.selection.methods import Search, Trained, names, score
from embstore.settings import RunConfig
from embstore.store import Store
from embstore.synthetic import SyntheticLog
from embstore.vocabulary import Vocabulary

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = 4_000
CLICKS = SyntheticLog(rows=ROWS, users=60, items=50)
ORDER: dict[str, Any] = {"rows": 512, "shuffle_window": 1024, "hashed": 64}
FILES = ("fields.parquet", "columns.parquet")


class World:
    """Logs, a run that has learnt from them, the version it published, a vocabulary."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.logs = folder, {name: folder / name for name in ("train", "valid")}
        for number, path in enumerate(self.logs.values()):
            replace(CLICKS, seed=number).write(path)
        self.schema = CLICKS.schema()
        exact = tuple(replace(of, exact=of.name == "category") for of in self.schema.features)
        self.schema = replace(self.schema, features=exact)
        self.config: dict[str, Any] = {
            "logs": {name: str(path) for name, path in self.logs.items()},
            "schema": self.schema.to_dict(),
            "table": {"rows": 500, "dim": 4, "optimizer": {"learning_rate": 0.1, "l2": 1e-3}},
            "model": {"name": "dnn", "hidden": [8]},
            "training": {"batch_size": 250, "seed": 1},
            "output": str(folder / "run"),
        }
        self.run = Run(parse(RunConfig, self.config), build)
        self.run.train()
        self.store = Store(folder / "store")
        self.version = self.store.publish(self.run.bundle()).id
        self.vocabulary = Vocabulary.collect(self.log(), ["user_id", "item_id", "category"])
        self.vocabulary.to_parquet(folder / "vocabulary")

    def log(self, name: str = "train") -> ParquetLog:
        return ParquetLog(self.logs[name], self.schema)

    def settings(self, output: Path, **given: Any) -> dict[str, Any]:
        return {"vocabulary": str(self.folder / "vocabulary"), "output": str(output), **ORDER, **given}

    def select(self, output: Path, workers: int | None = None, **given: Any) -> dict[str, Any]:
        return select(parse(SelectionSettings, self.settings(output, **given)), workers=workers)

    @property
    def columns(self) -> Columns:
        return Columns(schema=replace(self.schema, group=None), vocabulary=self.vocabulary, hashed=64)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ``leave_one_out``, by the run, in this process."""
    folder = tmp_path_factory.mktemp("whole") / "scores"
    world.select(folder, method="leave_one_out", run=str(world.folder / "run"))
    return folder


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


@pytest.mark.parametrize("method", names(Trained))
def test_as_the_method_by_run_and_by_version(world: World, method: str, tmp_path: Path) -> None:
    told = world.select(tmp_path / "run", method=method, run=str(world.folder / "run"))
    world.select(tmp_path / "version", method=method, store=str(world.folder / "store"), version=world.version[:9])
    source = Trained(
        model=world.run.trained(), log=world.log(), columns=world.columns, rows=512, shuffle_window=1024, threads=1
    )
    here = score(method, source)
    written = Scores.from_parquet(tmp_path / "run")
    assert np.array_equal(here.log_field_F, written.log_field_F)
    assert np.array_equal(here.log_column_D, written.log_column_D)
    assert _bytes(tmp_path / "run") == _bytes(tmp_path / "version")
    assert told["lineage"]["log"]["fingerprint"] == world.log().fingerprint
    assert told["lineage"]["log"]["source"] == str(world.logs["train"])


def test_what_it_judged_by_is_told(world: World, whole: Path, tmp_path: Path) -> None:
    by_run = json.loads((whole / "manifest.json").read_text())["lineage"]["model"]
    _, digest = world.run.finished()
    assert by_run == {"run": str(world.folder / "run"), "sha256": digest}
    shown, valid = Shown(), str(world.logs["valid"])
    given = world.settings(tmp_path / "v", method="sfs", store=str(world.folder / "store"), log=valid)
    told = select(parse(SelectionSettings, given), progress=shown)["lineage"]
    version = world.store.open("latest")
    assert told["model"] == {"store": str(world.folder / "store"), "version": version.id, "sha256": version.digest}
    assert told["log"]["fingerprint"] == world.log("valid").fingerprint
    assert [(bar.label, bar.total, bar.rows) for bar in shown.bars] == [("judge", ROWS, ROWS), ("write", 1, 1)]


@pytest.mark.parametrize("method", names(Search))
def test_a_search_trains_a_model_as_a_run_says(world: World, method: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(world.config))
    told = world.select(tmp_path / "yaml", method=method, run=str(config), options={"learning_rate": 0.02})
    world.select(tmp_path / "folder", method=method, run=str(world.folder / "run"), options={"learning_rate": 0.02})
    world.select(tmp_path / "settings", method=method, run=world.config, options={"learning_rate": 0.02})
    assert _bytes(tmp_path / "yaml") == _bytes(tmp_path / "folder") == _bytes(tmp_path / "settings")
    assert told["lineage"]["model"]["settings"]["table"]["rows"] == 500
    shown, given = Shown(), world.settings(tmp_path / "shown", method=method, run=world.config)
    select(parse(SelectionSettings, given), progress=shown)
    assert sum(bool(re.match(r"hint: only \d+ steps; a smaller training\.", line)) for line in shown.lines) == 1
    run = Run(parse(RunConfig, {**world.config, "output": str(tmp_path / "run")}), build)
    how = run.config.training
    columns, valid = world.columns, ParquetLog(world.logs["valid"], world.columns.schema)
    source = Search(
        build=run.untrained, train=ParquetLog(world.logs["train"], columns.schema), valid=valid, columns=columns,
        batch_size=how.batch_size, learning_rate=how.learning_rate, seed=how.seed,
    )  # fmt: skip
    here, written = score(method, source, learning_rate=0.02), Scores.from_parquet(tmp_path / "yaml")
    assert np.array_equal(here.log_column_D, written.log_column_D)
    assert len(set(written.log_field_F.tolist())) > 2


def test_a_search_honours_what_its_run_does(world: World, tmp_path: Path) -> None:
    """Values that the run prunes share a vector; the folder of a run has them when their source is gone."""
    names_V = np.arange(len(world.vocabulary["user_id"])) % 2 == 0
    pruned = Vocabulary({"user_id": replace(world.vocabulary["user_id"], kept=names_V)})
    pruned.to_parquet(tmp_path / "pruned")
    config = {**world.config, "vocabulary": str(tmp_path / "pruned"), "output": str(tmp_path / "run")}
    Run(parse(RunConfig, config), build).train()
    world.select(tmp_path / "yaml", method="lpfs", run=config)
    (tmp_path / "pruned").rename(tmp_path / "gone")
    world.select(tmp_path / "folder", method="lpfs", run=str(tmp_path / "run"))
    assert _bytes(tmp_path / "yaml") == _bytes(tmp_path / "folder")
    world.select(tmp_path / "all", method="lpfs", run=world.config)
    assert _bytes(tmp_path / "all") != _bytes(tmp_path / "folder")


def test_on_ray(cluster: str, world: World, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a worker is killed at each kind of task."""
    by, deaths = {"run": str(world.folder / "run")}, tmp_path / "deaths"
    deaths.mkdir()
    for name in ("_read", "_tried"):
        monkeypatch.setattr(judging, name, dies_once(getattr(judging, name), deaths / name))
    told = world.select(tmp_path / "v", workers=2, method="leave_one_out", **by)
    assert len(list(deaths.iterdir())) == 2
    assert _bytes(tmp_path / "v") == _bytes(whole)
    assert told == json.loads((whole / "manifest.json").read_text())
    for method in ("permutation", "leave_out_together"):
        for workers in (None, 2):
            world.select(tmp_path / f"{method}-{workers}", workers=workers, method=method, **by)
        assert _bytes(tmp_path / f"{method}-None") == _bytes(tmp_path / f"{method}-2")
    with pytest.raises(ConfigError, match="trains one model here"):
        world.select(tmp_path / "w", workers=2, method="optfs", **by)


@pytest.mark.slow
def test_eight_workers_that_die_come_to_the_same_bytes(world: World, whole: Path, tmp_path: Path) -> None:
    """By one and by eight workers of a cluster, and by this process, with a death at each kind of task."""
    schema, log = world.schema.to_dict(), str(world.logs["train"])
    kinds: dict[str, dict[str, Any]] = {
        "gradients": {"schema": schema, "log": log, "options": {"batches_per_step": 3}},
        "worth": {"method": "leave_one_out", "run": str(world.folder / "run")},
    }
    for kind, given in kinds.items():
        world.select(tmp_path / f"{kind}-0", **given)
    for workers in (1, 8):
        deaths, config = tmp_path / f"deaths-{workers}", tmp_path / f"{workers}.json"
        deaths.mkdir()
        asked = [world.settings(tmp_path / f"{kind}-{workers}", **given) for kind, given in kinds.items()]
        config.write_text(json.dumps(asked))
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        script = [sys.executable, str(Path(__file__).with_name("dying.py")), config, deaths, str(workers)]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in deaths.iterdir()} == {name for _, name in TASKS}
        for kind in kinds:
            assert _bytes(tmp_path / f"{kind}-{workers}") == _bytes(tmp_path / f"{kind}-0")
    assert _bytes(tmp_path / "worth-8") == _bytes(whole)


def test_the_commands_end_in_a_vocabulary_to_train_with(world: World, whole: Path, tmp_path: Path) -> None:
    def run(of: Any, *arguments: Any) -> str:
        return CliRunner().invoke(of, [str(one) for one in arguments], catch_exceptions=False).output

    order = [*("--config", tmp_path / "order.yaml"), "--vocabulary", world.folder / "vocabulary"]
    (tmp_path / "order.yaml").write_text(json.dumps(ORDER))
    by = ["--run", world.folder / "run"]
    told = json.loads(run(command, *order, "--method", "leave_one_out", *by, "--to", tmp_path / "v", "--json"))
    assert told["files"] == json.loads((whole / "manifest.json").read_text())["files"]
    stored = ["--store", world.folder / "store", "--version", "latest"]
    text = run(command, *order, "--method", "leave_out_together", "--keep", 0.3, *stored, "--to", tmp_path / "w")
    assert f"wrote {tmp_path / 'w'}" in text
    assert json.loads((tmp_path / "w" / "manifest.json").read_text())["settings"]["options"] == {"keep": 0.3}
    pruning = ["--keep", 0.5, "--by", "scores", "--scores", tmp_path / "v", "--to", tmp_path / "pruned"]
    run(prune_command, world.folder / "vocabulary", *pruning)
    pruned = Vocabulary.from_parquet(tmp_path / "pruned")
    kept = sum(int(of.kept.sum()) for of in pruned.values())
    assert kept == sum(len(of) for of in world.vocabulary.values()) // 2
    scores = Scores.from_parquet(whole).of_field("user_id")[: len(pruned["user_id"])]
    assert scores[pruned["user_id"].kept].min() >= scores[~pruned["user_id"].kept].max()
    config = {**world.config, "vocabulary": str(tmp_path / "pruned"), "output": str(tmp_path / "run")}
    assert Run(parse(RunConfig, config), build).train()["valid"]["auc"] > 0.5


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"method": "lift"}, ConfigError, "key 'log' is missing"),
        ({"method": "leave_one_out"}, ConfigError, "a run .*or a store.*found none"),
        ({"method": "leave_one_out", "log": "here", "label": "click"}, ConfigError, "a run .*or a store.*found none"),
        ({"method": "leave_one_out", "run": "RUN", "store": "here"}, ConfigError, "found a run and a store"),
        ({"method": "leave_one_out", "run": {}}, ConfigError, "found settings of a run"),
        ({"method": "lift", "run": "RUN"}, ConfigError, "takes rows alone"),
        ({"run": "RUN"}, ConfigError, "takes rows alone"),
        ({"method": "optfs", "store": "here"}, ConfigError, "says how to train one"),
        ({"method": "leave_one_in", "run": "RUN"}, ConfigError, "did you mean 'leave_one_out'"),
        ({"method": "leave_one_out", "run": "RUN", "options": {"replace": "mean"}}, ConfigError, "replacement"),
        ({"method": "leave_out_together", "run": "RUN", "options": {"keep": "half"}}, ConfigError, "keep"),
        ({"method": "leave_out_together", "run": "RUN", "options": {"keep": 2}}, ConfigError, "keep"),
        ({"method": "shark", "run": "RUN", "features": ["user_id"]}, ConfigError, "all that the model reads"),
        ({"method": "shark", "run": "RUN", "schema": {"features": ["user_id"]}}, ConfigError, "item_id"),
        ({"method": "shark", "run": "RUN", "crosses": [{"features": ["user_id", "item_id"]}]}, ConfigError, "cross"),
        ({"method": "shark", "run": "nowhere"}, CheckpointError, "the folder of a run"),
        ({"method": "optfs", "run": "RUN", "log": ["a", "b"]}, ConfigError, "one, to train on"),
        ({"method": "optfs", "run": "RUN", "options": {"temperature": 0.5}}, ConfigError, "temperature"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    world: World, given: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    if given.get("run") == "RUN":
        given = {**given, "run": str(world.folder / "run")}
    with pytest.raises(error, match=message):
        world.select(tmp_path / "v", **given)
    assert not list(tmp_path.iterdir())


def test_vocabularies_of_other_values_are_refused(world: World, tmp_path: Path) -> None:
    by = {"method": "shark", "run": str(world.folder / "run")}

    def of(**columns: list[Any]) -> str:
        table, path = pa.table({**columns, "click": [0, 1] * 2}), tmp_path / f"{len(list(tmp_path.iterdir()))}"
        pq.write_table(table, f"{path}.parquet")
        schema = Schema.from_dict({"label": "click", "features": list(columns)})
        Vocabulary.collect(ParquetLog(f"{path}.parquet", schema)).to_parquet(path)
        return str(path)

    with pytest.raises(SchemaError, match="values like"):
        world.select(tmp_path / "v", **by, vocabulary=of(user_id=[1, 2, 1, 3]))
    with pytest.raises(ConfigError, match="one of the features user_id"):
        world.select(tmp_path / "v", **by, vocabulary=of(user=[1, 2, 1, 2]))
    unknown = pa.array([str(number) for number in range(9_000, 9_004)])
    kind = world.log().types.field("category").type
    with pytest.raises(DataError, match="none of 4"):
        world.select(tmp_path / "v", **by, vocabulary=of(category=unknown.cast(kind).to_pylist()))
    shown = Shown()
    both = [*world.vocabulary["category"].values.to_pylist()[:2], *unknown.cast(kind).to_pylist()[:2]]
    given = world.settings(tmp_path / "w", **by, log=str(world.logs["train"])) | {"vocabulary": of(category=both)}
    select(parse(SelectionSettings, given), progress=shown)
    assert any("2 of 4 values" in line for line in shown.lines)


def test_logs_that_are_not_what_was_learnt_are_refused(world: World, tmp_path: Path) -> None:
    table = pq.read_table(world.logs["train"])
    (tmp_path / "run").mkdir()
    pq.write_table(table, tmp_path / "log.parquet")
    config = {**world.config, "logs": {"train": str(tmp_path / "log.parquet")}, "output": str(tmp_path / "run")}
    Run(parse(RunConfig, config), build).train()
    pq.write_table(table.slice(0, 1000), tmp_path / "log.parquet")
    by = {"method": "shark", "run": str(tmp_path / "run")}
    with pytest.raises(LogError, match="has learnt from"):
        world.select(tmp_path / "v", **by)
    assert world.select(tmp_path / "w", **by, log=str(tmp_path / "log.parquet"))["lineage"]["log"]["rows"] == 1000
    at = table.schema.get_field_index("user_id")
    numbered = table.set_column(at, "user_id", pa.array(range(len(table))))
    pq.write_table(numbered, tmp_path / "numbered.parquet")
    with pytest.raises(SchemaError, match="as when"):
        world.select(tmp_path / "v", **by, log=str(tmp_path / "numbered.parquet"))
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="a finished run"):
        world.select(tmp_path / "v", **by)
    assert not (tmp_path / "v").exists()
