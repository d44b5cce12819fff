"""Vectors of nodes as others take them: looked up bit for bit, searched, imported; what is left out; lineage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from embstore import models
from embstore.cli import cli
from embstore.continuous import StartSettings
from embstore.errors import ConfigError, GraphError
from embstore.feature_values import ValueStatus
from embstore.node2vec import Graph
from embstore.node2vec.publishing import graph_fingerprint, publish_vectors, vectors_table
from embstore.serving.indexes import Indexes
from embstore.serving.reader import Reader
from embstore.settings import RunConfig
from embstore.store import Store, Version
from embstore.tokens import tokenize

NODES = {"user": pa.array(["ann", "bob", "eve"]), "item": pa.array([7, 9, 8], pa.int32())}
EDGES = np.array([0, 0, 1, 1]), np.array([3, 4, 4, 4])  # eve and item 8 have none


def make_graph(**fields: Any) -> Graph:
    weight = np.array([1.0, 2.0, 3.0, 0.5])
    return Graph.of_edges(*EDGES, weight, **{"nodes": NODES, **fields})


def make_vectors(dim: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, dim)).astype(np.float32)


@pytest.fixture
def version(tmp_path: Path) -> Version:
    lineage = {"walks": {"p": 0.5}}
    logs = {"train": {"fingerprint": "ab", "rows": 4}}
    return publish_vectors(
        Store(tmp_path / "n2v"), make_graph(), make_vectors(), lineage, logs=logs, metrics={"loss": 2.5}
    )


def test_vectors_are_looked_up_bit_for_bit(version: Version) -> None:
    vectors_ND = make_vectors()
    for feature, values, rows in (("user", ["bob", "ann"], [1, 0]), ("item", [9, 7], [4, 3])):
        found = version.lookup(feature, values).numpy()
        assert found.view(np.int32).tolist() == vectors_ND[rows].view(np.int32).tolist()
    for unknown in (["eve", "kim", None], [8, 10, None]):
        feature = "user" if "eve" in unknown else "item"
        assert not version.lookup(feature, unknown).any()
    tokens = tokenize(pa.array(["ann", None, "eve"]), name="user").values
    assert [ValueStatus(of).name for of in version.status("user", tokens)] == ["KNOWN", "MISSING", "UNSEEN"]
    version.verify()


def test_what_a_version_says_of_its_making(version: Version, tmp_path: Path) -> None:
    assert version.manifest["lineage"]["node2vec"] == {
        "graph": {
            "sha256": graph_fingerprint(make_graph()),
            "nodes": {"user": 3, "item": 3},
            "edges": 3,
            "directed": False,
            "weighted": True,
        },
        "dim": 5,
        "walks": {"p": 0.5},
    }
    assert version.manifest["lineage"]["logs"] == {"train": {"fingerprint": "ab", "rows": 4}}
    assert version.manifest["columns"] == {"user": "string", "item": "int32"}
    assert version.vocabulary is not None
    assert version.vocabulary["item"].table().to_pydict() == {"value": [7, 9], "count": [1, 6], "kept": [True, True]}
    run = CliRunner().invoke(cli, ["versions", "--store", str(tmp_path / "n2v"), "--json"])
    (row,) = json.loads(run.output)
    assert row["model"] == "none"
    assert row["node2vec"] == version.manifest["lineage"]["node2vec"]
    shown = CliRunner().invoke(cli, ["versions", "--store", str(tmp_path / "n2v")]).output
    assert "node2vec" in shown


def test_two_runs_are_of_two_spaces(version: Version, tmp_path: Path) -> None:
    again = publish_vectors(Store(tmp_path / "n2v"), make_graph(), make_vectors(), {}, parent=version.id)
    assert again.space != version.space
    assert again.parent == version.id


def test_it_is_served_and_searched_but_scores_nothing(version: Version, tmp_path: Path) -> None:
    reader = Reader(version, models.build, Indexes(features=["item"], folder=tmp_path / "index"))
    reader.load()
    assert not reader.scores
    assert np.array_equal(reader.lookup("item", [7]).vectors_BW, make_vectors()[3:4])
    values, scores = reader.neighbors("item", [7], 2)
    a, b = make_vectors()[3:5].astype(np.float64)
    assert values.to_pylist() == [9, None]
    assert scores[0, 0] == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)))
    with pytest.raises(ConfigError, match="a network"):
        reader.score({"user": ["ann"], "item": [7]})


def test_a_run_cannot_go_on_from_vectors_alone(version: Version, tmp_path: Path) -> None:
    from embstore.run import Run
    from embstore.settings import LogSettings

    start = StartSettings(store=str(tmp_path / "n2v"))
    config = RunConfig(logs=LogSettings(train="nowhere"), start=start, output=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"vectors alone.*table\.warm_start"):
        Run(config, models.build)


def test_tables_are_what_import_takes(tmp_path: Path) -> None:
    tables = vectors_table(make_graph(), make_vectors())
    assert tables["user"].column("value").to_pylist() == ["ann", "bob"]
    assert tables["item"].column("weight").to_pylist() == [1.0, 5.5]
    assert tables["item"].column("vector").to_pylist() == make_vectors()[3:5].tolist()
    named = vectors_table(make_graph(), make_vectors(), weights_N=np.arange(1, 7))
    assert named["user"].column("weight").to_pylist() == [1.0, 2.0]
    numbered = vectors_table(make_graph(nodes=None, num_nodes=6), make_vectors())
    assert numbered["node"].column("value").to_pylist() == [0, 1, 3, 4]
    arcs = Graph.of_edges(*EDGES, directed=True, nodes=NODES)
    assert vectors_table(arcs, make_vectors())["item"].column("weight").to_pylist() == [1.0, 2.0]

    other = publish_vectors(Store(tmp_path / "store"), make_graph(), np.zeros((6, 5), np.float32), {})
    pq.write_table(tables["item"], tmp_path / "items.parquet")
    arguments = ["import", str(tmp_path / "items.parquet"), "--feature", "item", "--weight-column", "weight"]
    run = CliRunner().invoke(cli, [*arguments, "--store", str(tmp_path / "store"), "--json"], catch_exceptions=False)
    assert json.loads(run.output)["taken"] == 2
    assert torch.equal(Store(tmp_path / "store").open().lookup("item", [7, 9]), torch.from_numpy(make_vectors()[3:5]))
    assert not other.lookup("item", [7]).any()


def test_a_graph_s_fingerprint_is_of_all_that_decides() -> None:
    graph = make_graph()
    assert graph_fingerprint(graph) == graph_fingerprint(make_graph())
    renamed = {"user": NODES["user"], "film": NODES["item"]}
    others = (
        make_graph(nodes={**NODES, "item": pa.array([7, 9, 6])}),
        make_graph(nodes=renamed),
        make_graph(nodes=None, num_nodes=6),
        make_graph(directed=True),
        Graph.of_edges(*EDGES, nodes=NODES),
    )
    assert len({graph_fingerprint(of) for of in (graph, *others)}) == 6


@pytest.mark.parametrize(
    ("vectors", "weights", "message"),
    [
        (np.zeros((5, 4)), None, r"\[6, dim\]"),
        (np.zeros((6, 0)), None, r"\[6, dim\]"),
        (np.zeros((6, 4), int), None, "floats"),
        (np.full((6, 4), np.nan), None, "finite"),
        (np.full((6, 4), 1e300), None, "finite"),
        (np.zeros((6, 4)), np.ones(5), "6 finite numbers"),
        (np.zeros((6, 4)), np.zeros(6), "above 0"),
    ],
)
def test_vectors_that_are_not_the_graph_s(vectors: Any, weights: Any, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        vectors_table(make_graph(), vectors, weights_N=weights)


def test_a_feature_without_nodes_is_left_out(tmp_path: Path) -> None:
    nodes = {"user": pa.array([1]), "none": pa.array([], pa.large_string()), "item": pa.array([2, 3])}
    graph = Graph.of_edges(np.array([0, 0]), np.array([1, 2]), nodes=nodes)
    version = publish_vectors(Store(tmp_path), graph, np.eye(3), {})
    assert [feature.name for feature in version.schema.features] == ["user", "item"]
    assert version.lookup("item", [3]).tolist() == [[0, 0, 1]]


def test_nothing_to_publish(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="an edge"):
        vectors_table(Graph.of_edges(np.array([], int), np.array([], int), num_nodes=2), np.zeros((2, 3)))
    twice = {"user": pa.array(["ann", "ann", "eve"]), "item": NODES["item"]}
    with pytest.raises(GraphError, match="one of them twice"):
        publish_vectors(Store(tmp_path), make_graph(nodes=twice), make_vectors(), {})
