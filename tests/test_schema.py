"""Schemas: what they allow, their YAML, and their messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from embstore.errors import ConfigError, SchemaError
from embstore.schema import Dense, Feature, Schema
from embstore.transforms import TRANSFORMS

EXAMPLE = """
label: click
group: user_id
features:
  - {name: user_id, lookups: 2}
  - item_id
  - {name: genres, pooling: mean, max_length: 20}
  - {name: hour, column: timestamp, transform: hour}
dense:
  - age
  - {name: price, scale: linear}
"""
SCHEMA = Schema(
    label="click",
    group="user_id",
    features=(
        Feature(name="user_id", lookups=2),
        Feature(name="item_id"),
        Feature(name="genres", pooling="mean", max_length=20),
        Feature(name="hour", column="timestamp", transform="hour"),
    ),
    dense=(Dense(name="age"), Dense(name="price", scale="linear")),
)

# Any text: spaces and line breaks of all alphabets included.
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
features = st.builds(
    Feature,
    name=names,
    column=st.none() | names,
    transform=st.none() | st.sampled_from(sorted(TRANSFORMS)),
    lookups=st.integers(1, 8),
    pooling=st.sampled_from(["sum", "mean"]),
    max_length=st.none() | st.integers(1, 99),
    exact=st.booleans(),
)
denses = st.builds(Dense, name=names, column=st.none() | names, scale=st.sampled_from(["log", "linear"]))
schemas = st.builds(
    Schema,
    features=st.lists(features, max_size=4, unique_by=lambda feature: feature.name).map(tuple),
    dense=st.lists(denses, max_size=3, unique_by=lambda column: column.name).map(tuple),
    label=st.just("the label that no column has"),
    group=st.none() | names,
)


def test_yaml_text_and_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text(EXAMPLE)
    assert Schema.from_yaml(EXAMPLE) == Schema.from_yaml(path) == SCHEMA


@given(schemas)
def test_a_schema_survives_yaml_and_dict(schema: Schema) -> None:
    assert Schema.from_yaml(schema.to_yaml()) == schema
    assert Schema.from_dict(schema.to_dict()) == schema
    assert yaml.safe_load(schema.to_yaml()) == schema.to_dict()


def test_yaml_is_one_line_a_column_with_reasons_beside() -> None:
    reasons = {"click": "label", "user_id": "string, 9 values", "timestamp": "time", "ip": "left out: row id"}
    schema = Schema(label="click", group="user_id", features=SCHEMA.features, dense=SCHEMA.dense, reasons=reasons)
    assert schema.to_yaml().splitlines() == [
        "label: click",
        "group: user_id",
        "features:",
        "  - {name: user_id, lookups: 2}  # string, 9 values",
        "  - {name: item_id}",
        "  - {name: genres, pooling: mean, max_length: 20}",
        "  - {name: hour, column: timestamp, transform: hour}  # time",
        "dense:",
        "  - {name: age}",
        "  - {name: price, scale: linear}",
        "# ip: left out: row id",
    ]
    assert Schema.from_yaml(schema.to_yaml()) == schema  # reasons don't count


def test_to_dict_has_only_what_differs_from_defaults() -> None:
    assert SCHEMA.to_dict() == {
        "label": "click",
        "group": "user_id",
        "features": [
            {"name": "user_id", "lookups": 2},
            {"name": "item_id"},
            {"name": "genres", "pooling": "mean", "max_length": 20},
            {"name": "hour", "column": "timestamp", "transform": "hour"},
        ],
        "dense": [{"name": "age"}, {"name": "price", "scale": "linear"}],
    }


def test_columns_are_each_read_once() -> None:
    two = (Feature(name="hour", column="t", transform="hour"), Feature(name="weekday", column="t", transform="weekday"))
    schema = Schema(
        features=(*two, Feature(name="user")), dense=(Dense(name="p"),), label="y", weight="w", group="user"
    )
    assert schema.columns == ("t", "user", "p", "y", "w")


def test_feature_by_name() -> None:
    assert SCHEMA.feature("genres").max_length == 20
    with pytest.raises(SchemaError, match="no feature 'genre'; did you mean 'genres'"):
        SCHEMA.feature("genre")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": ""}, "feature name; expected a non-empty text"),
        ({"name": "a\0b"}, "feature name"),
        ({"name": "a", "lookups": 0}, "feature 'a': lookups; expected 1 or more; found 0"),
        ({"name": "a", "pooling": "max"}, "feature 'a': pooling; expected sum or mean; found 'max'"),
        ({"name": "a", "max_length": 0}, "feature 'a': max_length; expected 1 or more; found 0"),
        ({"name": "a", "transform": "hours"}, "feature 'a': unknown transform 'hours'; did you mean 'hour'"),
    ],
)
def test_feature_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Feature(**settings)
    assert str(caught.value).startswith(message)


def test_dense_scale() -> None:
    with pytest.raises(ConfigError, match="dense 'a': scale; expected log or linear; found 'sqrt'"):
        Dense(name="a", scale="sqrt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": (Feature(name="a"), Feature(name="a", lookups=2))}, "feature 'a' is declared twice"),
        ({"dense": (Dense(name="a"), Dense(name="a"))}, "dense column 'a' is declared twice"),
        ({"label": "y", "features": (Feature(name="y"),)}, "column 'y' is the label or weight and also an input"),
        ({"label": "y", "features": (Feature(name="x", column="y"),)}, "column 'y' is the label or weight"),
        ({"weight": "w", "dense": (Dense(name="w"),)}, "column 'w' is the label or weight"),
    ],
)
def test_schemas_that_contradict_themselves(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Schema(**settings)
    assert str(caught.value).startswith(message)


def test_a_column_may_be_feature_and_dense_and_group() -> None:
    schema = Schema(features=(Feature(name="age"),), dense=(Dense(name="age"),), group="age")
    assert schema.columns == ("age",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lable: y", "schema: unknown key 'lable'; did you mean 'label'?"),
        ("features: [{name: a, lookup: 2}]", "schema.features[0]: unknown key 'lookup'; did you mean 'lookups'?"),
        ("features: [{lookups: 2}]", "schema.features[0]: key 'name' is missing"),
        ("features: [3]", "schema.features[0]; expected a mapping"),
        ("features: user_id", "schema.features; expected a list; found 'user_id'"),
        ("dense: [{name: 3}]", "schema.dense[0].name; expected text; found 3 (int)"),
        ("features: [", "schema; expected valid YAML"),
        ("- a", "schema; expected a mapping"),
        ("", "schema; expected a mapping"),
    ],
)
def test_bad_yaml(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Schema.from_yaml(text)
    assert str(caught.value).startswith(message)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml; expected a readable YAML file"):
        Schema.from_yaml(tmp_path / "none.yaml")
