"""Values that a trained model treats alike: by run and version, here and on Ray; the command; training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dying import dies_once

from embstore.cli.prune import prune as command
from embstore.config import parse
from embstore.errors import ConfigError, EmbstoreError, SchemaError, StoreError
from embstore.feature_values import FeatureValues
from embstore.logs import ParquetLog
from embstore.models import build
from embstore.pipelines import judging, sharing
from embstore.pipelines.sharing import JudgedBy, Sharing, share
from embstore.run import Run
from embstore.selection import Columns
from embstore.selection.alike import share_alike
from embstore.selection.methods import Trained
from embstore.settings import RunConfig
from embstore.store import Store
from embstore.synthetic import SyntheticLog
from embstore.vocabulary import Vocabulary

pytestmark = pytest.mark.usefixtures("one_thread")
CLICKS = SyntheticLog(rows=3_000, users=60, items=50)


class World:
    """A log, a run that has learnt from it, the version it published, a vocabulary."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        CLICKS.write(self.log)
        schema = CLICKS.schema()
        two = tuple(replace(of, lookups=2 if of.name == "item_id" else 1) for of in schema.features)
        self.schema = replace(schema, features=two)
        self.config: dict[str, Any] = {
            "logs": {"train": str(self.log)},
            "schema": self.schema.to_dict(),
            "table": {"rows": 2_000, "dim": 4, "optimizer": {"learning_rate": 0.1}},
            "model": {"name": "dnn", "hidden": [8]},
            "training": {"batch_size": 250, "seed": 1},
            "output": str(folder / "run"),
        }
        self.run = Run(parse(RunConfig, self.config), build)
        self.run.train()
        self.by = JudgedBy(run=str(folder / "run"))
        self.store = Store(folder / "store")
        self.version = self.store.publish(self.run.bundle()).id
        self.vocabulary = Vocabulary.collect(ParquetLog(self.log, self.schema), ["user_id", "item_id"])
        self.vocabulary.to_parquet(folder / "vocabulary")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def half(world: World) -> Sharing:
    return share(world.vocabulary, world.by, keep=0.5)


def test_as_in_python_by_run_and_by_version(world: World, half: Sharing) -> None:
    log = ParquetLog(world.log, replace(world.schema, group=None))
    columns = Columns(schema=log.schema, vocabulary=world.vocabulary)
    here = share_alike(Trained(model=world.run.trained(), log=log, columns=columns), world.vocabulary, keep=0.5)
    for name, (kept_V, stand_in_V) in here.items():
        assert np.array_equal(half.vocabulary[name].kept, kept_V)
        assert np.array_equal(half.vocabulary[name].stood_in, stand_in_V)
    stored = share(world.vocabulary, JudgedBy(store=str(world.folder / "store"), version=world.version[:9]), keep=0.5)
    assert stored.vocabulary.digest() == half.vocabulary.digest()
    assert stored.lineage["model"]["version"] == world.version
    assert half.lineage["model"]["run"] == str(world.folder / "run")
    assert half.lineage["log"] == {"source": str(world.log), "fingerprint": log.fingerprint, "rows": log.rows}
    assert half.lookups == {"user_id": 1, "item_id": 2}
    named = share(world.vocabulary, JudgedBy(run=str(world.folder / "run"), log=[str(world.log)]), keep=0.5)
    assert named.vocabulary.digest() == half.vocabulary.digest()


def test_sharing_again_is_honoured(world: World, half: Sharing) -> None:
    """What stood in for others takes them along; nobody becomes pruned."""
    less = share(half.vocabulary, world.by, keep=0.5).vocabulary
    for name, of in less.items():
        assert (of.kept <= half.vocabulary[name].kept).all()
        assert ((of.stood_in >= 0) == ~of.kept).all()
        was = half.vocabulary[name].stood_in
        moved = np.flatnonzero(was >= 0)
        now = np.where(of.kept[was[moved]], was[moved], of.stood_in[was[moved]])
        assert np.array_equal(of.stood_in[moved], now)


def test_on_ray_when_a_worker_dies(
    cluster: str, world: World, half: Sharing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_read", "_tried"):
        monkeypatch.setattr(judging, name, dies_once(getattr(judging, name), tmp_path / name))
    found = share(world.vocabulary, world.by, keep=0.5, workers=2)
    assert len(list(tmp_path.iterdir())) == 2
    assert found.vocabulary.digest() == half.vocabulary.digest()


def _run(*arguments: Any) -> str:
    return CliRunner().invoke(command, [str(one) for one in arguments], catch_exceptions=False).output


def test_the_command_and_training_by_what_it_wrote(world: World, half: Sharing, tmp_path: Path) -> None:
    given = [world.folder / "vocabulary", "--by", "alike", "--keep", 0.5]
    told = json.loads(_run(*given, "--run", world.folder / "run", "--to", tmp_path / "v", "--json"))
    written = Vocabulary.from_parquet(tmp_path / "v")
    assert written.digest() == told["sha256"] == half.vocabulary.digest()
    sharing = sum(len(set(of.stood_in[~of.kept])) + int((~of.kept).sum()) for of in written.values())
    assert told["total"]["sharing"] == sharing > 0
    assert told["total"]["kept_rows"] <= told["total"]["rows"] / 2 < told["total"]["kept_rows"] + 2
    assert told["lineage"]["model"] == {"run": str(world.folder / "run"), "sha256": world.run.finished()[1]}
    stored = ["--store", world.folder / "store", "--version", world.version, "--log", world.log]
    text = _run(*given, *stored, "--per-feature", "--to", tmp_path / "w")
    assert "sharing" in text
    for name, of in Vocabulary.from_parquet(tmp_path / "w").items():
        assert int(of.kept.sum()) == len(world.vocabulary[name]) // 2
    config = {**world.config, "vocabulary": str(tmp_path / "v"), "output": str(tmp_path / "run")}
    run = Run(parse(RunConfig, config), build)
    run.train()
    table, of = run.trained().table, written["user_id"]
    place = int(np.flatnonzero(of.stood_in >= 0)[0])
    one, other = (table.lookup("user_id", of.values.take([at])) for at in (place, int(of.stood_in[place])))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--by", "alike", "--keep", 0.5], "a run .*or a store and a version; found none"),
        (["--by", "alike", "--keep", 0.5, "--run", "RUN", "--store", "here"], "found both"),
        (["--by", "alike", "--run", "RUN"], "keep .*rows"),
        (["--by", "alike", "--threshold", 2, "--run", "RUN"], "found --threshold"),
        (["--keep", 0.5, "--run", "RUN"], "--run; expected --by alike"),
        (["--keep", 0.5, "--workers", 2], "--workers; expected --by alike"),
        (["--keep", 0.5, "--version", "latest"], "--version; expected --by alike"),
        (["--by", "alike", "--keep", 0.5, "--run", "RUN", "--version", "latest"], "--version; expected --store"),
        (["--by", "alike", "--keep", 0.5, "--run", "RUN", "--scores", "s"], "--scores; expected --by scores or"),
        (["--by", "alike", "--keep", 0.5, "--run", "nowhere"], "the folder of a run"),
    ],
)
def test_what_does_not_fit_is_refused(world: World, given: list[Any], message: str, tmp_path: Path) -> None:
    given = [str(world.folder / "run") if one == "RUN" else one for one in given]
    with pytest.raises(EmbstoreError, match=message):
        _run(world.folder / "vocabulary", *given, "--to", tmp_path / "v")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_refused_before_the_work(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "share", None)
    with pytest.raises(StoreError, match=str(tmp_path)):
        _run(
            world.folder / "vocabulary",
            "--by",
            "alike",
            "--keep",
            0.5,
            *("--run", world.folder / "run"),
            "--to",
            tmp_path,
        )


def test_values_of_other_features_or_kinds_are_refused(world: World) -> None:
    with pytest.raises(SchemaError, match="user_id"):
        share(Vocabulary({"user": FeatureValues.of("user", ["1"])}), world.by, keep=0.5)
    with pytest.raises(SchemaError, match="values like"):
        share(Vocabulary({"user_id": FeatureValues.of("user_id", [True, False])}), world.by, keep=0.5)
    with pytest.raises(ConfigError, match="both"):
        share(world.vocabulary, world.by, keep=0.5, rows=3)
