"""Pruning, against sorting in Python; the command, and a run that is trained on what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import invoke
from hypothesis import given
from hypothesis import strategies as st

from embstore import models
from embstore.config import parse
from embstore.errors import ConfigError, DataError, EmbstoreError, LogError, SchemaError
from embstore.feature_values import FeatureValues
from embstore.logs import ParquetLog
from embstore.planning.collisions import cardinalities, shared
from embstore.run import Run
from embstore.schema import Schema
from embstore.selection.batches import Layout
from embstore.selection.pruning import Summary, best_fields, prune, summaries, without_fields
from embstore.selection.score_files import read_field_scores, read_scores
from embstore.selection.scores import Scores
from embstore.settings import RunConfig
from embstore.synthetic import SyntheticLog
from embstore.vocabulary import Vocabulary


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[Vocabulary, dict[str, np.ndarray]]:
    """Two features of few counts and scores, so that there are ties, some values dropped before."""
    vocabulary, scores = {}, {}
    for name in ("b", "a"):
        size = draw(st.integers(0, 12))
        counts = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
        kept = draw(st.lists(st.sampled_from([True, True, False]), min_size=size, max_size=size))
        score = draw(st.lists(st.sampled_from([-1.0, 0.5, 2.0]), min_size=size, max_size=size))
        vocabulary[name] = FeatureValues.of(name, pa.array(range(size), pa.int64()), count=counts, kept=kept)
        scores[name] = np.array(score, np.float64)
    return Vocabulary(vocabulary), scores


def _judge(
    vocabulary: Vocabulary, scores: dict[str, Any], budget: float, at_least: int, threshold: float, cost: dict[str, int]
) -> dict[str, set[int]]:
    """By a plain sort of all, after each feature's first few."""
    kept: dict[str, set[int]] = {name: set() for name in vocabulary}
    rest = []
    for number, (name, of) in enumerate(vocabulary.items()):
        ranked = sorted((-scores[name][v], -int(of.count[v]), number, v, name) for v in range(len(of)) if of.kept[v])
        for entry in ranked[:at_least]:
            kept[name].add(entry[3])
            budget -= cost[name]
        rest += [entry for entry in ranked[at_least:] if -entry[0] >= threshold]
    for *_, v, name in sorted(rest):
        budget -= cost[name]
        if budget < 0:
            break
        kept[name].add(v)
    return kept


@given(
    given_=vocabularies(),
    rows=st.integers(0, 40),
    at_least=st.integers(0, 3),
    threshold=st.sampled_from([None, 0.5, 3.0]),
    by_count=st.booleans(),
    lookups=st.sampled_from([1, 2]),
    per_feature=st.booleans(),
)
def test_the_best_are_kept(
    given_: tuple[Vocabulary, dict[str, np.ndarray]],
    rows: int,
    at_least: int,
    threshold: float | None,
    by_count: bool,
    lookups: int,
    per_feature: bool,
) -> None:
    vocabulary, scores = given_
    cost = {"a": lookups, "b": 1}
    pruned = prune(
        vocabulary,
        None if by_count else scores,
        rows=rows,
        threshold=threshold,
        per_feature=per_feature,
        at_least=at_least,
        lookups={"a": lookups},
    )
    ranks = {name: of.count.astype(float) for name, of in vocabulary.items()} if by_count else scores
    groups = [Vocabulary({name: of}) for name, of in vocabulary.items()] if per_feature else [vocabulary]
    least = -np.inf if threshold is None else threshold
    for group in groups:
        for name, kept in _judge(group, ranks, rows, at_least, least, cost).items():
            assert set(np.flatnonzero(pruned[name].kept).tolist()) == kept
            assert pruned[name].values.equals(vocabulary[name].values)
            assert not (pruned[name].kept & ~vocabulary[name].kept).any()


@pytest.mark.parametrize(("keep", "kept"), [(0.0, 0), (0.3, 3), (0.7, 7), (0.99, 9), (1.0, 10)])
def test_a_share_of_the_rows(keep: float, kept: int) -> None:
    values = FeatureValues.of("a", range(12), count=range(12), kept=[v > 1 for v in range(12)])  # 10 are kept
    pruned = prune(Vocabulary({"a": values}), keep=keep, at_least=0)
    assert np.flatnonzero(pruned["a"].kept).tolist() == list(range(12 - kept, 12))


def test_what_can_not_be_pruned() -> None:
    vocabulary = Vocabulary({"a": FeatureValues.of("a", [1, 2]), "b": FeatureValues.of("b", [1])})
    for settings in ({}, {"keep": 0.5, "rows": 1}, {"keep": 1.5}, {"rows": -1}, {"threshold": np.nan}):
        with pytest.raises(ConfigError, match="prune"):
            prune(vocabulary, **settings)  # type: ignore[arg-type]
    with pytest.raises(SchemaError, match="none of 'b'"):
        prune(vocabulary, {"a": np.zeros(2)}, keep=0.5)
    assert prune(vocabulary, {"a": np.array([0.0, 1.0])}, keep=0.5, per_feature=True)["a"].kept.tolist() == [
        False,
        True,
    ]
    with pytest.raises(SchemaError, match="no feature 'c'"):
        prune(vocabulary, keep=1.0, drop_fields=["c"])
    with pytest.raises(SchemaError, match="not dropped"):
        prune(vocabulary, keep=1.0, drop_fields=["a", "b"])
    for wrong in (np.zeros(3), np.zeros(2, np.float32), np.array([0.0, np.nan])):
        with pytest.raises(DataError, match="scores of 'a'"):
            prune(vocabulary, {"a": wrong, "b": np.zeros(1)}, keep=0.5)


def test_fields() -> None:
    scores = {"user": 0.9, "hour": 0.1, "item": 0.9, "day": 0.4}
    assert best_fields(scores, keep=2) == ["user", "item"]
    assert best_fields(scores, threshold=0.4) == ["user", "item", "day"]
    assert best_fields(scores, keep=1, threshold=0.95) == []
    for keep in (None, 0):
        with pytest.raises(ConfigError, match="fields"):
            best_fields(scores, keep=keep)
    with pytest.raises(DataError, match="'user'"):
        best_fields({"user": float("nan")}, keep=1)
    schema = Schema.from_dict({"label": "y", "features": ["user", "item"], "dense": ["price"]})
    assert without_fields(schema, ["item", "price"]).columns == ("user", "y")
    with pytest.raises(SchemaError, match="no field 'itm'"):
        without_fields(schema, ["itm"])
    with pytest.raises(SchemaError, match="not dropped"):
        without_fields(schema, ["user", "item", "price"])


def test_scores_are_put_in_the_order_of_the_values(tmp_path: Path) -> None:
    folder = tmp_path / "feature=a%20b"
    folder.mkdir()
    pq.write_table(pa.table({"value": ["y", "z", "x"], "score": [2.0, 3.0, 1.0]}), folder / "part.parquet")
    pq.write_table(pa.table({"field": ["a b", "c"], "log_score": [-1.0, -2.0]}), tmp_path / "fields.parquet")
    values = FeatureValues.of("a b", ["w", "x", "y"], kept=[False, True, True])
    assert read_scores(tmp_path, Vocabulary({"a b": values}))["a b"].tolist() == [0.0, 1.0, 2.0]
    assert read_scores(tmp_path, Vocabulary({"other": values})) == {}
    assert read_field_scores(tmp_path) == {"a b": -1.0, "c": -2.0}
    with pytest.raises(DataError, match="1 without"):
        read_scores(tmp_path, Vocabulary({"a b": FeatureValues.of("a b", ["w", "x"])}))
    pq.write_table(pa.table({"value": ["x", "x"], "score": [2.0, 3.0]}), folder / "part.parquet")
    with pytest.raises(DataError, match="one twice"):
        read_scores(tmp_path, Vocabulary({"a b": values}))
    pq.write_table(pa.table({"value": ["x"], "points": [2.0]}), folder / "part.parquet")
    with pytest.raises(SchemaError, match="columns value and score"):
        read_scores(tmp_path, Vocabulary({"a b": values}))
    with pytest.raises(LogError, match="folders feature=NAME"):
        read_scores(tmp_path / "none", Vocabulary({"a b": values}))
    with pytest.raises(LogError, match="scores of fields"):
        read_field_scores(tmp_path / "none")


LOG = SyntheticLog(rows=2_000, days=3, users=200, items=100)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, its schema and vocabulary."""
    folder = tmp_path_factory.mktemp("log")
    LOG.write(folder / "train", rows=LOG.day_rows(0, 3))
    features = [{"name": "user_id", "lookups": 2}, "item_id", {"name": "category", "exact": True}, "device"]
    schema = Schema.from_dict({"label": "click", "features": features, "dense": ["price"]})
    (folder / "schema.yaml").write_text(schema.to_yaml())
    Vocabulary.collect(ParquetLog(folder / "train", schema)).to_parquet(folder / "vocabulary")
    return folder


def test_the_command_and_training_from_scratch_on_what_it_writes(log: Path, tmp_path: Path) -> None:
    to = ["--to", tmp_path / "pruned", "--to-schema", tmp_path / "pruned.yaml", "--schema", log / "schema.yaml"]
    what = ["--keep", 0.5, "--drop-field", "device", "--drop-field", "price", "--table-rows", 500]
    told = json.loads(invoke("prune", log / "vocabulary", *what, *to, "--json").stdout)
    before, pruned = (Vocabulary.from_parquet(of) for of in (log / "vocabulary", tmp_path / "pruned"))
    lookups = {"user_id": 2}
    assert pruned.same(prune(before, keep=0.5, lookups=lookups, drop_fields=["device"]))
    assert told["sha256"] == pruned.digest()
    each, whole = summaries(before, pruned, lookups)
    assert {name: Summary(**of) for name, of in told["features"].items()} == each
    assert Summary(**told["total"]) == whole
    assert 0.45 * whole.rows < whole.kept_rows <= 0.5 * whole.rows
    assert whole.occurrences is not None
    assert whole.occurrences > 0.6
    hashed = [of for of in cardinalities(pruned, lookups) if of.name != "category"]
    assert told["table_rows"] < 500  # fewer values, so fewer rows for as many collisions
    assert shared(hashed, told["table_rows"]).share <= told["colliding_share"]
    schema = Schema.from_yaml(tmp_path / "pruned.yaml")
    assert [of.name for of in schema.features] == ["user_id", "item_id", "category"]
    assert schema.dense == ()

    # Retrained from scratch, twice: the same bits, in fewer rows than before.
    settings = {
        "logs": {"train": str(log / "train")},
        "schema": str(tmp_path / "pruned.yaml"),
        "vocabulary": {"path": str(tmp_path / "pruned"), "unseen": "prune"},
        "table": {"rows": told["table_rows"], "dim": 4},
        "model": {"name": "dnn", "hidden": [8]},
        "training": {"batch_size": 250},
    }
    states = []
    for name in "ab":
        run = Run(parse(RunConfig, {**settings, "output": str(tmp_path / name)}), models.build)
        run.train()
        states.append(run.trained().state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_command_by_scores(log: Path, tmp_path: Path) -> None:
    before = Vocabulary.from_parquet(log / "vocabulary")
    for number, (name, of) in enumerate(before.items()):
        folder = tmp_path / "scores" / f"feature={name}"
        folder.mkdir(parents=True)
        score = np.random.Generator(np.random.Philox(number)).permutation(len(of)).astype(np.float64)
        pq.write_table(pa.table({"value": of.values, "score": score}), folder / "part.parquet")
    fields = pa.table({"field": [*before, "price"], "score": [0.5] * len(before) + [0.1]})
    pq.write_table(fields, tmp_path / "scores" / "fields.parquet")
    scores = read_scores(tmp_path / "scores", before)
    options = ["--by", "scores", "--scores", tmp_path / "scores"]
    done = invoke("prune", log / "vocabulary", "--rows", 100, *options, "--to", tmp_path / "a").stdout
    assert Vocabulary.from_parquet(tmp_path / "a").same(prune(before, scores, rows=100))
    assert "table rows suggested" in done
    invoke("prune", log / "vocabulary", "--threshold", 20, "--per-feature", *options, "--to", tmp_path / "b")
    assert Vocabulary.from_parquet(tmp_path / "b").same(prune(before, scores, threshold=20))
    told = json.loads(
        invoke(
            *("prune", log / "vocabulary", *options, "--keep-fields", 3, "--to", tmp_path / "c", "--json"),
            *("--schema", log / "schema.yaml", "--to-schema", tmp_path / "c.yaml"),
        ).stdout
    )
    assert told["dropped_fields"] == [*list(before)[3:], "price"]
    assert set(told["features"]) == set(list(before)[:3])
    assert told["total"]["kept"] == told["total"]["values"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--by", "scores", "--keep", 0.5], "--scores FOLDER"),
        (["--keep", 0.5, "--to-schema", "x.yaml"], "--schema FILE"),
        ([], "none of them"),
        (["--keep", 0.5, "--drop-field", "nobody"], "no feature 'nobody'"),
    ],
)
def test_what_the_command_refuses(log: Path, tmp_path: Path, options: list[Any], match: str) -> None:
    with pytest.raises(EmbstoreError, match=match):
        invoke("prune", log / "vocabulary", *options, "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_selections_folder_has_scores_of_its_vocabulary(tmp_path: Path) -> None:
    values = FeatureValues.of("user", ["a", "b", "c"], kept=[True, False, True])
    vocabulary = Vocabulary({"user": values})
    layout = Layout(names=("item", "user"), bounds_F=np.array([0, 2, 5]), dense=())  # and one for all other users
    scores = Scores(layout=layout, log_field_F=np.zeros(2), log_column_D=np.log([0.5, 0.5, 0.25, 0.125, 0.5]))
    folder = tmp_path / "scores"
    scores.to_parquet(folder)
    with pytest.raises(LogError, match="the manifest of a selection"):
        read_scores(folder, vocabulary)
    lineage = {"vocabulary": {"sha256": vocabulary.digest()}}
    (folder / "manifest.json").write_text(json.dumps({"lineage": lineage}))
    assert read_scores(folder, vocabulary)["user"].tolist() == pytest.approx([0.25, 0.0, 0.125])
    with pytest.raises(DataError, match="scores by this vocabulary; found another"):
        read_scores(folder, Vocabulary({"user": values.keep(np.ones(3, dtype=bool))}))
