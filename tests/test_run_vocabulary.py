"""Runs that honour a vocabulary. The judge: logs in which the pruned values were replaced by hand.

``"embstore\\0pruned"`` is the text whose hash is the pruned token, so a log of texts can hold it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner

from embstore import models
from embstore.cli import commands
from embstore.config import parse
from embstore.ctr import CtrModel
from embstore.errors import CheckpointError, ConfigError, SchemaError
from embstore.feature_values import FeatureValues
from embstore.hashing import PRUNED_TOKEN
from embstore.logs import ParquetLog
from embstore.run import Run
from embstore.run_vocabulary import VocabularySource
from embstore.schema import Schema
from embstore.settings import RunConfig
from embstore.store import Store
from embstore.tokens import token
from embstore.vocabulary import Vocabulary

PRUNED = "embstore\0pruned"
UNSEEN = ("keep", "prune", "keep_shared", "prune_shared")
ROWS = 2_400
SCHEMA: dict[str, Any] = {
    "label": "click",
    "features": [{"name": "user", "lookups": 2}, {"name": "place", "exact": True}, {"name": "tags", "pooling": "mean"}],
    "dense": ["price"],
}


def _columns(seed: int, map_: Callable[[str, str], str] = lambda feature, value: value) -> pa.Table:
    draw = np.random.Generator(np.random.Philox(seed))
    users = [f"u{u}" for u in draw.zipf(1.5, ROWS) % 300]
    places = [None if p == 11 else f"p{p}" for p in draw.integers(0, 12, ROWS)]
    tags = [[f"t{t}" for t in draw.integers(0, 40, n)] for n in draw.integers(0, 4, ROWS)]
    noisy = draw.random(ROWS) < 0.2
    return pa.table(
        {
            "user": [map_("user", user) for user in users],
            "place": [place and map_("place", place) for place in places],
            "tags": [[map_("tags", tag) for tag in of] for of in tags],
            "price": draw.normal(size=ROWS).astype(np.float32),
            "click": [int(user in ("u1", "u2")) ^ int(noise) for user, noise in zip(users, noisy, strict=True)],
        }
    )


def _write(folder: Path, name: str, table: pa.Table) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f"{name}.parquet", row_group_size=500)
    return str(folder / f"{name}.parquet")


def _vocabulary(unseen: str = "keep") -> Vocabulary:
    """Of all values but u290 and later; users from u20 on, odd tags and places below p4 are dropped.

    With stand-ins for some of them where ``unseen`` says so: ``keep_shared``, ``prune_shared``.
    """
    users, tags, places = ([f"{letter}{n}" for n in range(size)] for letter, size in (("u", 290), ("t", 40), ("p", 11)))
    kept = {
        "user": [int(user[1:]) < 20 for user in users],
        "tags": [int(tag[1:]) % 2 == 0 for tag in tags],
        "place": [int(place[1:]) >= 4 for place in places],
    }
    values = {"user": users, "tags": tags, "place": places}
    stand_in: dict[str, list[str | None]] = {}
    if unseen.endswith("shared"):
        stand_in["user"] = [f"u{int(u[1:]) % 20}" if int(u[1:]) >= 100 else None for u in users]
        stand_in["tags"] = [
            None if keeps else f"t{int(t[1:]) - 1}" for t, keeps in zip(tags, kept["tags"], strict=True)
        ]
    unseen = unseen.partition("_")[0]
    return Vocabulary(
        {
            name: FeatureValues.of(name, of, kept=kept[name], stand_in=stand_in.get(name), unseen=unseen)
            for name, of in values.items()
        }
    )


def _by_hand(unseen: str) -> Callable[[str, str], str]:
    of: dict[str, dict[str, str]] = {}
    for name, values in _vocabulary(unseen).items():
        table = values.table()
        others = table["stand_in"].to_pylist() if "stand_in" in table.column_names else [None] * len(values)
        columns = (table["value"].to_pylist(), values.kept.tolist(), others)
        of[name] = {value: value if keeps else other or PRUNED for value, keeps, other in zip(*columns, strict=True)}
    return lambda feature, value: of[feature].get(value, value if unseen.startswith("keep") else PRUNED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("honour")
    for number, split in enumerate(("train", "valid")):
        _write(where / "plain", split, _columns(number))
        for name in UNSEEN:
            _write(where / name, split, _columns(number, _by_hand(name)))
    _vocabulary().to_parquet(where / "vocabulary")
    _vocabulary("keep_shared").to_parquet(where / "vocabulary_shared")
    return where


def _config(folder: Path, logs: str, output: Path, **more: Any) -> RunConfig:
    settings = {
        "logs": {name: str(folder / logs / f"{name}.parquet") for name in ("train", "valid")},
        "schema": SCHEMA,
        "table": {"rows": 120, "dim": 4, "num_tables": 2, "optimizer": {"learning_rate": 0.1, "l2": 1e-3, "eps": 1e-3}},
        "model": {"name": "dnn", "hidden": [8]},
        "training": {"batch_size": 200, "epochs": 2, "shuffle_window": 1000, "evaluate_every": 7},
        "output": str(output),
        **more,
    }
    return parse(RunConfig, settings)


def _train(config: RunConfig) -> tuple[Run, dict[str, Any], dict[str, torch.Tensor]]:
    run = Run(config, models.build)
    result = run.train()
    return run, result, run.trained().state_dict()


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_text_is_the_pruned_token() -> None:
    assert token(PRUNED) == PRUNED_TOKEN


@pytest.mark.parametrize("unseen", UNSEEN)
@pytest.mark.parametrize("kernel", ["cpu", "reference"])
def test_training_is_that_on_a_log_where_the_values_were_replaced(
    folder: Path, tmp_path: Path, unseen: str, kernel: str
) -> None:
    table = {"rows": 120, "dim": 4, "num_tables": 2, "kernel": kernel}
    kind, _, shared = unseen.partition("_")
    vocabulary = {"path": str(folder / ("vocabulary" + (shared and "_shared"))), "unseen": kind}
    run, result, state = _train(_config(folder, "plain", tmp_path / "run", table=table, vocabulary=vocabulary))
    _, judge, expected = _train(_config(folder, unseen, tmp_path / "judge", table=table))
    assert _same(state, expected)
    assert {key: value for key, value in result.items() if key != "logs"} == {
        key: value for key, value in judge.items() if key != "logs"
    }
    places = run.trained().table.exact_tokens()["place"].numpy().view(np.uint64).tolist()
    assert set(places) == {token(f"p{n}") for n in range(4, 11)} | {PRUNED_TOKEN, token(None)}
    _, _, plain = _train(_config(folder, "plain", tmp_path / "plain", table=table))
    assert not _same({"": state["table.weight"][:120]}, {"": plain["table.weight"][:120]})
    # Evaluating another log, and a run that is opened where it lies, though the vocabulary has gone.
    moved = tmp_path / "moved"
    (tmp_path / "run").rename(moved)
    config = (moved / "config.yaml").read_text().replace(vocabulary["path"], str(folder / "gone"))
    (moved / "config.yaml").write_text(config)
    valid = str(folder / "plain" / "valid.parquet")
    again = Run.open(moved, models.build)
    assert again.evaluate(valid) == pytest.approx(judge["valid"])
    by_hand = Run.open(tmp_path / "judge", models.build).evaluate(str(folder / unseen / "valid.parquet"))
    assert again.evaluate(valid) == by_hand


@pytest.mark.parametrize("unseen", UNSEEN)
def test_a_published_version_scores_as_training_did_and_is_gone_on_from(
    folder: Path, tmp_path: Path, unseen: str
) -> None:
    publish = {"store": str(tmp_path / "store"), "vocabulary": True, "every_rows": 1500, "whole_every": 2}
    logs, (unseen, _, shared) = unseen, unseen.partition("_")
    vocabulary = {"path": str(folder / ("vocabulary" + (shared and "_shared"))), "unseen": unseen}
    config = _config(folder, "plain", tmp_path / "run", vocabulary=vocabulary, publish=publish)
    run, result, _ = _train(config)
    version = Store(tmp_path / "store").open(result["version"])
    assert version.vocabulary is not None
    assert version.vocabulary.digest() == run.config.honoured.sha256  # type: ignore[union-attr]
    assert version.vocabulary.same(_vocabulary(logs))
    assert version.manifest["format"] == (5 if shared else 4 if unseen == "prune" else 3)
    honoured = version.manifest["lineage"]["vocabulary"]["honoured"]
    assert honoured["sha256"] == version.vocabulary.digest()
    assert honoured["unseen"] == unseen
    model, trained = CtrModel.restore(version, models.build), run.trained()
    for batch in ParquetLog(folder / "plain" / "valid.parquet", run.schema).batches(500):
        with torch.no_grad():
            assert torch.equal(model(batch), trained(batch))
            assert torch.equal(model.table(batch.tokens.to_kjt()), trained.table(batch))
    asked = ["u1", "u20", "u295", "u101", None]
    assert torch.equal(version.lookup("user", asked), trained.table.lookup("user", asked))
    vectors = trained.table.lookup("user", asked)
    assert not torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[1], vectors[2]) == (unseen == "prune")
    assert torch.equal(vectors[3], vectors[0 if shared else 1])

    # What goes on from it prunes as it did; with its deltas it does so too.
    start = {"store": str(tmp_path / "store"), "version": version.id}
    further = {"logs": {"train": str(folder / "plain" / "valid.parquet")}, "start": start, "publish": publish}
    next_ = parse(RunConfig, {**further, "training": {"batch_size": 200}, "output": str(tmp_path / "next")})
    inheriting, found, state = _train(next_)
    publish = {**publish, "store": str(tmp_path / "by-hand"), "vocabulary": False}  # publishing settles the penalty
    Run(_config(folder, logs, tmp_path / "judge", publish=publish), models.build).train()
    further = {
        "logs": {"train": str(folder / logs / "valid.parquet")},
        "start": {"store": publish["store"]},
        "publish": publish,
        "training": {"batch_size": 200},
        "output": str(tmp_path / "judge-next"),
    }
    _, _, expected = _train(parse(RunConfig, further))
    assert _same(state, expected)
    last = Store(tmp_path / "store").open(found["version"])
    assert last.manifest["lineage"]["vocabulary"]["honoured"] == honoured
    assert last.vocabulary is not None
    assert last.vocabulary["user"].unseen == unseen
    new = set(last.vocabulary["user"].values.to_pylist()) - set(_vocabulary()["user"].values.to_pylist())
    kept = last.vocabulary["user"].table(dropped=False).column("value").to_pylist()
    assert new
    assert new & set(kept) == (set() if unseen == "prune" else new)
    assert torch.equal(last.lookup("user", asked), inheriting.trained().table.lookup("user", asked))


def test_a_run_is_that_of_its_vocabulary(folder: Path, tmp_path: Path) -> None:
    config = _config(folder, "plain", tmp_path / "run", vocabulary=str(folder / "vocabulary"))
    run, result, _ = _train(config)
    assert Run(config, models.build).train() == result
    moved = tmp_path / "elsewhere"
    _vocabulary().to_parquet(moved)
    counted = Vocabulary({n: replace(of, count=of.count + 7) for n, of in _vocabulary().items()})
    assert Run(replace(config, vocabulary=str(moved)), models.build).train() == result  # where it lies decides nothing
    counted.to_parquet(tmp_path / "counted")  # nor do counts
    assert Run(replace(config, vocabulary=str(tmp_path / "counted")), models.build).train() == result
    for other in (None, VocabularySource(path=str(moved), unseen="prune")):
        with pytest.raises(CheckpointError, match=r"another vocabulary"):
            Run(replace(config, vocabulary=other), models.build).train()
    assert run.config.identity(None) != replace(run.config, vocabulary=None).identity(None)
    pinned = replace(run.config.honoured, path=str(tmp_path / "counted"))  # type: ignore[type-var]
    Run(replace(config, vocabulary=pinned, output=str(tmp_path / "pinned")), models.build).train()
    wrong = VocabularySource(path=str(moved), sha256="0" * 64)
    with pytest.raises(ConfigError, match="sha256 0000"):
        Run(replace(config, vocabulary=wrong, output=str(tmp_path / "wrong")), models.build).train()


def test_a_retrained_run_reproduces(folder: Path, tmp_path: Path) -> None:
    states = [
        _train(_config(folder, "plain", tmp_path / name, vocabulary=str(folder / "vocabulary")))[2] for name in "ab"
    ]
    assert _same(*states)


def test_of_a_published_version(folder: Path, tmp_path: Path) -> None:
    publish = {"store": str(tmp_path / "store")}
    path = {"path": str(folder / "vocabulary"), "unseen": "prune"}
    _, result, state = _train(_config(folder, "plain", tmp_path / "one", vocabulary=path, publish=publish))
    config = _config(folder, "plain", tmp_path / "two", vocabulary={"store": str(tmp_path / "store")})
    run, _, again = _train(config)
    assert _same(state, again)
    assert run.config.honoured.version == result["version"]  # type: ignore[union-attr]
    keep = {"store": str(tmp_path / "store"), "unseen": "keep"}
    _, _, kept = _train(_config(folder, "plain", tmp_path / "three", vocabulary=keep))
    assert not _same(state, kept)
    with pytest.raises(ConfigError, match="a path"):
        VocabularySource(path="a", store="b")


def test_what_can_not_be_honoured(folder: Path, tmp_path: Path) -> None:
    Vocabulary({"user": FeatureValues.of("user", [1, 2], kept=[True, False])}).to_parquet(tmp_path / "numbers")
    with pytest.raises(SchemaError, match=r"values of 'user'"):
        Run(_config(folder, "plain", tmp_path / "a", vocabulary=str(tmp_path / "numbers")), models.build).train()
    Vocabulary({"usr": FeatureValues.of("usr", ["a"])}).to_parquet(tmp_path / "other")
    with pytest.raises(ConfigError, match="one of the features user"):
        Run(_config(folder, "plain", tmp_path / "b", vocabulary=str(tmp_path / "other")), models.build)
    run, _, _ = _train(_config(folder, "plain", tmp_path / "c", vocabulary=str(folder / "vocabulary")))
    for part in (tmp_path / "c" / "honoured").rglob("*.parquet"):
        if "user" in str(part):
            table = pq.read_table(part)
            pq.write_table(table.set_column(2, "kept", pa.array([True] * len(table))), part)
    with pytest.raises(CheckpointError, match="its vocabulary"):
        Run.open(tmp_path / "c", models.build).trained()
    assert run.trained() is not None  # which has read it


def test_features_that_are_frozen_know_no_dropped_values(folder: Path, tmp_path: Path) -> None:
    values = [f"p{n}" for n in range(11)]
    vectors = pa.table({"value": values, "vector": [[float(n), 1.0, 2.0, -3.0] for n in range(11)]})
    pq.write_table(vectors, tmp_path / "vectors.parquet")
    start = [{"vectors": str(tmp_path / "vectors.parquet"), "features": ["place"], "frozen": True}]
    table = {"rows": 120, "dim": 4, "warm_start": start}
    config = _config(folder, "plain", tmp_path / "run", table=table, vocabulary=str(folder / "vocabulary"))
    trained = _train(config)[0].trained().table
    assert set(trained.exact_tokens()["place"].numpy().view(np.uint64).tolist()) == {token(p) for p in values[4:]}
    assert not trained.lookup("place", ["p0", None, "nobody"]).any()
    assert trained.lookup("place", ["p4"]).any()


def test_the_command(folder: Path, tmp_path: Path) -> None:
    config = _config(folder, "plain", tmp_path / "judge", vocabulary=str(folder / "vocabulary"))
    expected = _train(config)[1]
    plain = yaml.safe_load((tmp_path / "judge" / "config.yaml").read_text())
    del plain["vocabulary"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    arguments = ["train", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run"), "--json"]
    done = CliRunner().invoke(commands.cli, [*arguments, "--vocabulary", str(folder / "vocabulary")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["valid"] == expected["valid"]
    assert Schema.from_yaml(tmp_path / "run" / "schema.yaml").label == "click"


def test_a_run_that_goes_on_may_name_a_vocabulary_of_its_own(folder: Path, tmp_path: Path) -> None:
    publish = {"store": str(tmp_path / "store")}
    first = _train(_config(folder, "plain", tmp_path / "one", vocabulary=str(folder / "vocabulary"), publish=publish))[
        1
    ]
    fewer = {"user": FeatureValues.of("user", ["u1", "u2"], kept=[True, False])}
    Vocabulary(fewer).to_parquet(tmp_path / "fewer")
    further = {
        "logs": {"train": str(folder / "plain" / "valid.parquet")},
        "vocabulary": str(tmp_path / "fewer"),
        "start": publish,
        "publish": {**publish, "vocabulary": ["user", "tags"]},
        "output": str(tmp_path / "two"),
    }
    run, result, _ = _train(parse(RunConfig, further))
    version, table = Store(tmp_path / "store").open(result["version"]), run.trained().table
    assert version.id != first["version"]
    assert version.vocabulary is not None
    assert version.vocabulary["user"].same(fewer["user"])  # nothing is counted of it
    assert version.vocabulary["tags"].kept.all()
    assert version.vocabulary.keys() == {"user", "tags"}
    asked = ["u2", "u20", "u1", None]
    assert torch.equal(version.lookup("user", asked), table.lookup("user", asked))
    before = Store(tmp_path / "store").open(first["version"])
    assert set(table.exact_tokens()["place"].tolist()) == set(before.table.exact_tokens()["place"].tolist())
