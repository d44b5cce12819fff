"""Scores: the best of them, and to Parquet and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embstore.errors import ConfigError, LogError, SchemaError, StoreError
from embstore.selection import Layout, Scores

LAYOUT = Layout(names=("user", "item"), bounds_F=np.array([0, 2, 5]), dense=("price",))
# Of the two best values both scores are 1.0 in float64.
SCORES = Scores(
    layout=LAYOUT,
    log_field_F=np.log([0.9, 0.2, 0.5]),
    log_column_D=np.array([-1e-30, -1e-40, -3.0, -1.0, -2.0, -0.5]),
)


def test_the_best() -> None:
    assert SCORES.top_fields(2) == ("user", "price")
    assert SCORES.top_columns(3).tolist() == [1, 0, 5]
    assert SCORES.top_columns(0).tolist() == []
    np.testing.assert_allclose(SCORES.of_field("item"), np.exp([-3.0, -1.0, -2.0]))
    np.testing.assert_allclose(SCORES.of_field("price"), np.exp([-0.5]))
    with pytest.raises(ConfigError, match="0 to 3"):
        SCORES.top_fields(4)
    with pytest.raises(SchemaError, match="price"):
        SCORES.of_field("prise")


def test_to_parquet_and_back(tmp_path: Path) -> None:
    SCORES.to_parquet(tmp_path / "scores")
    back = Scores.from_parquet(tmp_path / "scores")
    assert np.array_equal(back.log_field_F, SCORES.log_field_F)
    assert np.array_equal(back.log_column_D, SCORES.log_column_D)
    assert (back.layout.names, back.layout.dense) == (LAYOUT.names, LAYOUT.dense)
    assert np.array_equal(back.layout.bounds_F, LAYOUT.bounds_F)
    with pytest.raises(StoreError, match="scores"):
        SCORES.to_parquet(tmp_path / "scores")


def test_scores_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"fields\.parquet"):
        Scores.from_parquet(tmp_path)
    (tmp_path / "fields.parquet").write_bytes(b"no Parquet")
    with pytest.raises(LogError, match=r"fields\.parquet"):
        Scores.from_parquet(tmp_path)
