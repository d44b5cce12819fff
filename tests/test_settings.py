"""What a run's settings decide, and what they don't."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embstore.config import parse
from embstore.errors import ConfigError
from embstore.kernels import TableOptimizer
from embstore.settings import RunConfig, TableSettings
from embstore.store.manifest import Layout

SCHEMA = {"label": "click", "features": ["user", {"name": "hour", "column": "time", "transform": "hour"}]}


def config(**settings: Any) -> RunConfig:
    return parse(RunConfig, {"logs": {"train": "logs"}, "schema": SCHEMA, **settings})


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({}, []),
        ({"output": "elsewhere", "logs": {"train": "moved"}, "publish": {"store": "s", "vocabulary": True}}, []),
        ({"training": {"checkpoint_every": 3, "checkpoint_minutes": None}}, []),
        ({"table": {"rows": 8, "optimizer": {"l2": 0.5}}}, ["table.optimizer.l2", "table.rows"]),
        ({"model": {"name": "dnn", "hidden": [4]}}, ["model.hidden", "model.name"]),
        ({"training": {"seed": 1}, "start": {"store": "s"}}, ["start.version", "training.seed"]),
        ({"start": {"store": "s", "version": "v1"}}, ["start.version"]),
        ({"schema": {**SCHEMA, "features": ["user"]}}, ["schema.features"]),
        ({"label": "buy"}, ["schema.label"]),
    ],
)
def test_what_differs_is_named(settings: dict[str, Any], changed: list[str]) -> None:
    assert config(**settings).changed_from(config()) == changed
    assert config().changed_from(config(**settings)) == changed


def test_a_schema_s_file_and_its_text_are_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_text(config().read_schema().to_yaml())
    assert config(schema=str(tmp_path / "schema.yaml")).changed_from(config()) == []


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"output": "elsewhere", "logs": {"train": "moved"}, "publish": {"store": "s"}, "start": {"store": "s"}}, True),
        ({"training": {"seed": 1}}, True),  # the trainer compares its own settings
        ({"table": {"seed": 1}}, False),
        ({"model": {"name": "dnn"}}, False),
        ({"schema": {**SCHEMA, "label": "buy"}}, False),
    ],
)
def test_checkpoints_belong_to_what_decides_their_numbers(settings: dict[str, Any], same: bool) -> None:
    assert (config(**settings).identity(None) == config().identity(None)) == same


def test_a_seed_is_that_of_all_that_is_drawn() -> None:
    seeded = config().with_seed(7, "out")
    assert (seeded.table.seed, seeded.training.seed, seeded.output) == (7, 7, "out")
    back = replace(
        seeded, table=replace(seeded.table, seed=0), training=replace(seeded.training, seed=0), output=config().output
    )
    assert back == config()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, r"table\.seed; expected 0 to"),
        ({"seed": 2**63}, r"table\.seed; expected 0 to"),
        ({"dtype": "float23"}, "unknown 'float23'; did you mean 'float32'"),
    ],
)
def test_tables_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TableSettings(**settings)


def test_the_least_there_is() -> None:
    least = parse(RunConfig, {"logs": {"train": "logs"}, "label": "click"})
    assert least.model == {"name": "dcn"}
    assert least.table.optimizer == TableOptimizer()
    with pytest.raises(ConfigError, match="a schema, or the label"):
        parse(RunConfig, {"logs": {"train": "logs"}})


def test_a_version_of_float64_rows_is_no_start() -> None:
    """They are read by everyone, but no kernel trains them."""
    layout = Layout(dim=4, encoding="float64", rows=8, hashed_rows=8, num_tables=1, hash_spec=1, seed=0, bucket_rows=8)
    version: Any = SimpleNamespace(
        id="v1", table=SimpleNamespace(layout=layout), manifest={"lineage": {"config": None}}
    )
    with pytest.raises(ConfigError, match=r"start from version v1; expected rows of float32.*found float64; publish"):
        config(start={"store": "s"}).with_start(version)
