"""Tokens of exact features, against Python sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embstore.logs import ParquetLog
from embstore.schema import Schema
from embstore.tokens import token
from embstore.vocabulary import exact_tokens


def test_distinct_tokens_of_exact_features(tmp_path: Path) -> None:
    a = ["x", None, "y", "x"] * 50
    b = [[1, 2], [], None, [2, None, 3]] * 50
    pq.write_table(
        pa.table({"a": a, "b": b, "c": range(200), "y": [0, 1] * 100}), tmp_path / "log.parquet", row_group_size=60
    )
    features = [{"name": "a", "exact": True}, {"name": "b", "exact": True}, "c"]
    log = ParquetLog(tmp_path, Schema.from_dict({"label": "y", "features": features}))
    seen: list[int] = []
    found = exact_tokens(log, progress=seen.append)
    assert sum(seen) == 200
    expected = {"a": {token(v) for v in ("x", "y", None)}, "b": {token(v) for v in (1, 2, 3, None)}}
    assert {name: set(tokens.numpy().view(np.uint64).tolist()) for name, tokens in found.items()} == expected
    assert all((tokens.diff() > 0).all() for tokens in found.values())


def test_no_exact_features_no_pass(tmp_path: Path) -> None:
    pq.write_table(pa.table({"c": [1], "y": [0]}), tmp_path / "log.parquet")
    log = ParquetLog(tmp_path, Schema.from_dict({"label": "y", "features": ["c"]}))
    assert exact_tokens(log, progress=lambda rows: 1 / 0) == {}
