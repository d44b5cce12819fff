"""Plain mappings to dataclasses: what is taken, what is refused and how it is said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embstore.config import load_yaml, parse
from embstore.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Layer:
    width: int
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Training:
    rows: int
    rate: float = 1e-3
    name: str = ""
    shuffle: bool = True
    optimizer: Literal["adam", "sgd"] = "adam"
    limit: int | None = None
    layers: tuple[Layer, ...] = ()
    head: Layer | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    anything: Any = None
    digest: str = field(default="computed", init=False)


def test_defaults_and_nesting() -> None:
    config = parse(Training, {"rows": 3, "layers": [{"width": 4}, {"width": 2, "dropout": 1}], "head": {"width": 1}})
    assert config == Training(rows=3, layers=(Layer(width=4), Layer(width=2, dropout=1.0)), head=Layer(width=1))


def test_made_dataclasses_and_tuples_pass() -> None:
    config = Training(rows=1, layers=(Layer(width=2),), head=Layer(width=3), extra={"a": [1]}, anything={2})
    values = {key: getattr(config, key) for key in asdict(config) if key != "digest"}
    assert parse(Training, values) == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rows": 1, "shufle": True}, "config: unknown key 'shufle'; did you mean 'shuffle'?"),
        ({"rows": 1, "digest": "x"}, "config: unknown key 'digest'"),
        ({"rows": 1, 7: "x"}, "config: unknown key 7"),
        ({}, "config: key 'rows' is missing; add rows: <a whole number>"),
        ({"rows": "many"}, "config.rows; expected a whole number; found 'many' (str)"),
        ({"rows": 1.5}, "config.rows; expected a whole number; found 1.5 (float)"),
        ({"rows": True}, "config.rows; expected a whole number; found True (bool)"),
        ({"rows": None}, "config.rows; expected a whole number; found nothing"),
        ({"rows": 1, "shuffle": 1}, "config.shuffle; expected true or false; found 1 (int)"),
        ({"rows": 1, "rate": "fast"}, "config.rate; expected a number; found 'fast' (str)"),
        ({"rows": 1, "rate": True}, "config.rate; expected a number; found True (bool)"),
        ({"rows": 1, "name": 3}, "config.name; expected text; found 3 (int)"),
        ({"rows": 1, "optimizer": "adma"}, "config.optimizer; expected 'adam' or 'sgd'; found 'adma'"),
        ({"rows": 1, "limit": "3"}, "config.limit; expected a whole number; found '3' (str)"),
        ({"rows": 1, "layers": "wide"}, "config.layers; expected a list; found 'wide' (str)"),
        (
            {"rows": 1, "layers": [{"width": 1}, {"with": 1}]},
            "config.layers[1]: unknown key 'with'; did you mean 'width'?",
        ),
        ({"rows": 1, "head": 3}, "config.head; expected a mapping of keys to values; found 3 (int)"),
        ({"rows": 1, "extra": [1]}, "config.extra; expected a mapping; found [1] (list)"),
        ([1], "config; expected a mapping of keys to values; found [1] (list)"),
        (None, "config; expected a mapping of keys to values; found nothing"),
    ],
)
def test_what_is_wrong_is_said(data: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Training, data)
    assert str(caught.value).startswith(message)


def test_numbers_as_yaml_reads_them() -> None:
    # YAML 1.1 takes 1e-3 for text, and 1 for an integer.
    assert parse(Training, {"rows": 1, "rate": "1e-3"}).rate == 1e-3
    rate = parse(Training, {"rows": 1, "rate": 1}).rate
    assert (rate, type(rate)) == (1.0, float)
    assert parse(Training, {"rows": 1, "limit": None}).limit is None


def test_where_opens_the_message() -> None:
    with pytest.raises(ConfigError, match=r"^run\.training\.rows; expected"):
        parse(Training, {"rows": ""}, where="run.training")


@given(
    st.fixed_dictionaries(
        {"rows": st.integers()},
        optional={
            "rate": st.floats(allow_nan=False),
            "name": st.text(),
            "shuffle": st.booleans(),
            "optimizer": st.sampled_from(["adam", "sgd"]),
            "limit": st.none() | st.integers(),
            "layers": st.lists(st.fixed_dictionaries({"width": st.integers()}, optional={"dropout": st.floats(0, 1)})),
        },
    )
)
def test_a_parsed_config_holds_what_was_given_and_defaults(data: dict[str, Any]) -> None:
    made = asdict(parse(Training, data))
    made["layers"] = list(made["layers"])
    expected = asdict(Training(rows=0)) | data
    expected["layers"] = [{"dropout": 0.0, **layer} for layer in data.get("layers", [])]
    assert made == expected


def test_load_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb: {c: [x]}\n")
    assert load_yaml(path) == load_yaml(str(path)) == {"a": 1, "b": {"c": ["x"]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "expected valid YAML"),
        (b"\xff\xfe\xff", "expected valid YAML"),
        (b"- 1\n", "expected a mapping of keys to values; found [1] (list)"),
        (b"", "expected a mapping of keys to values; found nothing"),
        (b"a: !!python/object/apply:os.getcwd []", "expected valid YAML"),
    ],
)
def test_load_yaml_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_load_yaml_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a readable YAML file; found No such file"):
        load_yaml(tmp_path / "none.yaml")
