"""YAML written by an enemy: refused at once, with a typed error and a short message."""

from __future__ import annotations

from pathlib import Path

import pytest

from embstore.config import load_yaml
from embstore.errors import ConfigError
from embstore.schema import Schema

BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("features: " + "[" * 100_000, "at most 16 levels", id="nested brackets take PyYAML minutes"),
        pytest.param(
            "a:\n" + "".join(" " * i + "- a:\n" for i in range(1, 400)), "at most 16 levels", id="nested blocks"
        ),
        pytest.param(BOMB, "without aliases", id="aliases of aliases mean a billion values"),
        pytest.param("label: !!python/object/apply:os.system [true]", "valid YAML", id="tags that run code"),
        pytest.param("label: y\nlabel: z", "twice", id="a key twice"),
        pytest.param("label: 2024-13-45", "valid YAML", id="a date that is none"),
        pytest.param("label: " + "9" * 10_000, "schema|config", id="a number too long to print"),
        pytest.param("label: \x00", "valid YAML", id="control characters"),
        pytest.param("- a\n- b", "mapping", id="a list"),
        pytest.param("", "mapping", id="empty"),
    ],
)
def test_hostile_text(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Schema.from_yaml(text)
    assert len(str(caught.value)) < 1000
    if "label" not in text:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_yaml(path)


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'lookup'; did you mean 'lookups'"):
        Schema.from_yaml("label: y\nfeatures:\n  - {name: a, lookup: 2}")
