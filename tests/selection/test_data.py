"""Columns of a log's rows, against Python's own counting of values, lists and crosses."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embstore.errors import ConfigError, DataError, SchemaError
from embstore.hashing import rows, salt, splitmix64
from embstore.logs import ParquetLog
from embstore.schema import Schema
from embstore.selection import Columns, Cross, FeatureGradientsSettings, LogBatches, Scores, SparseBatch, fit
from embstore.selection.batches import Layout
from embstore.tokens import token
from embstore.vocabulary import FeatureValues, Vocabulary

USER = ["ann", "bob", None, "eve", "zoe", "ann"]
TAGS: list[Any] = [[1, 2], [], None, [2, None, 2], [9], [1]]
PRICE = [1.0, None, 3.0, 0.0, 5.0, 6.0]


def _log(folder: Path, **schema: Any) -> ParquetLog:
    table = pa.table({"user": USER, "tags": TAGS, "price": PRICE, "y": [0, 1, 0, 1, 1, 0]})
    pq.write_table(table, folder / "log.parquet")
    return ParquetLog(folder, Schema.from_dict({"label": "y", "features": ["user", "tags"], **schema}))


def _rows(batch: SparseBatch) -> list[list[int]]:
    return [batch.indices_E[start:stop].tolist() for start, stop in pairwise(batch.indptr_N)]


def test_columns_of_a_vocabulary_hashes_and_crosses(tmp_path: Path) -> None:
    log = _log(tmp_path, dense=["price"])
    known = FeatureValues.of("user", ["eve", "ann", "bob"], kept=[True, True, False])
    cross = Cross(features=("user", "tags"), columns=50)
    columns = Columns(schema=log.schema, vocabulary=Vocabulary({"user": known}), hashed=20, crosses=[cross], seed=3)
    layout = columns.layout
    assert layout.names == ("user", "tags", "user x tags")
    assert layout.bounds_F.tolist() == [0, 4, 24, 74]
    assert layout.dense == ("price",)
    assert layout.all_bounds_F.tolist() == [0, 4, 24, 74, 75]

    [batch] = LogBatches(log=log, columns=columns, rows=100, shuffle_window=0)
    layout.check(batch)
    users = {"ann": 0, "eve": 1, None: 2, "bob": 3, "zoe": 3}

    def hashed(tokens: list[int], name: str, size: int) -> list[int]:
        return rows(np.array(tokens, np.uint64), salt(name, 0, 3), size).tolist()  # type: ignore[no-any-return]

    expected = []
    for user, tags in zip(USER, TAGS, strict=True):
        tags = [None] if tags is None else tags
        pairs = [int(splitmix64(np.array([token(a)], np.uint64))[0]) ^ token(b) for a, b in product([user], tags)]
        tag_columns = [4 + column for column in hashed([token(tag) for tag in tags], "tags", 20)]
        pair_columns = [24 + column for column in hashed(pairs, "user x tags", 50)]
        expected.append([users[user], *tag_columns, *pair_columns])
    assert _rows(batch) == expected
    assert batch.labels_N.tolist() == [0, 1, 0, 1, 1, 0]
    np.testing.assert_allclose(batch.dense_NC[:, 0], np.log1p(np.array(PRICE, float)), rtol=1e-6)


def test_a_selection_of_a_log_names_its_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    user, item, shown = rng.integers(0, 6, 6000), rng.integers(0, 4, 6000), rng.random(6000)
    label = rng.random(6000) < np.where(user == 2, 0.8, 0.2)
    table = pa.table({"user": user, "item": item, "shown": shown, "y": label})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=700)
    schema = {"label": "y", "features": ["user", "item"], "dense": ["shown"]}
    log = ParquetLog(tmp_path, Schema.from_dict(schema))
    columns = Columns(schema=log.schema, vocabulary=Vocabulary.collect(log))
    batches = LogBatches(log=log, columns=columns, rows=1000, shuffle_window=3000)
    scores = fit(batches, columns.layout, FeatureGradientsSettings(epochs=5, batches_per_step=2))
    assert scores.top_fields(1) == ("user",)
    found = columns.table("user", scores)
    assert found.column("value").to_pylist() == list(range(6))
    assert int(np.argmax(found.column("score").to_numpy())) == 2
    with pytest.raises(SchemaError, match="usr"):
        columns.table("usr", scores)


def test_the_example_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    user, category, hour = rng.integers(0, 30, 2000), rng.integers(0, 5, 2000), rng.integers(0, 24, 2000)
    label = rng.random(2000) < np.where(category == 1, 0.7, 0.2)
    (tmp_path / "logs").mkdir()
    table = pa.table({"user": user, "category": category, "hour": hour, "y": label})
    pq.write_table(table, tmp_path / "logs" / "train.parquet")
    names = ["user", "category", "hour", *(f"hour{i}" for i in range(9))]
    features = [{"name": name, "column": name.rstrip("0123456789")} for name in names]
    schema = Schema.from_dict({"label": "y", "features": features})
    (tmp_path / "schema.yaml").write_text(schema.to_yaml())
    Vocabulary.collect(ParquetLog(tmp_path / "logs", schema), ["user"]).to_parquet(tmp_path / "vocabulary")
    page = (Path(__file__).parents[2] / "docs" / "selection.md").read_text()
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0].replace("logs/train", "logs"), found)
    assert len(found["scores"].top_fields(10)) == 10
    back = Scores.from_parquet(tmp_path / "scores")
    assert np.array_equal(back.log_column_D, found["scores"].log_column_D)


def test_what_can_not_be_columns(tmp_path: Path) -> None:
    log = _log(tmp_path)
    with pytest.raises(SchemaError, match="usr"):
        Columns(schema=log.schema, crosses=[Cross(features=("usr", "tags"))])
    with pytest.raises(SchemaError, match="item"):
        Columns(schema=log.schema, vocabulary={"item": FeatureValues.of("item", [1])})
    for features in ((), ("user",), ("user", "user")):
        with pytest.raises(ConfigError, match="two or more"):
            Cross(features=features)
    with pytest.raises(ConfigError, match="label"):
        Columns(schema=Schema.from_dict({"features": ["user"]}))
    unlabelled = ParquetLog(tmp_path, log.schema, labelled=False)
    with pytest.raises(DataError, match="labels"):
        list(LogBatches(log=unlabelled, columns=Columns(schema=log.schema)))


def test_batches_that_are_none() -> None:
    layout = Layout(names=("a", "b"), bounds_F=np.array([0, 2, 5]), dense=())
    good = SparseBatch.of(np.array([[0, 2], [1, 4]]), np.array([0, 1]))
    layout.check(good)
    with pytest.raises(DataError, match="0 to 4"):
        layout.check(SparseBatch.of(np.array([[0, 5]]), np.array([0])))
    with pytest.raises(DataError, match="0 or 1"):
        layout.check(SparseBatch.of(np.array([[0, 2]]), np.array([2])))
    with pytest.raises(DataError, match="dense"):
        layout.check(SparseBatch.of(np.array([[0, 2]]), np.array([1]), np.zeros((1, 1))))
    for bounds in ([0, 2], [1, 2, 3], [0, 2, 2]):
        with pytest.raises(ConfigError, match="at least one"):
            Layout(names=("a", "b"), bounds_F=np.array(bounds))
    with pytest.raises(ConfigError, match="a name each"):
        Layout(names=("a", "a"), bounds_F=np.array([0, 2, 5]))


@pytest.mark.parametrize("lists", [False, True])
def test_rows_taken_of_a_batch(lists: bool) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 4, 50) if lists else np.full(50, 3)
    batch = SparseBatch(
        indptr_N=np.concatenate([[0], np.cumsum(lengths)]),
        indices_E=rng.integers(0, 99, lengths.sum()).astype(np.int32),
        labels_N=rng.integers(0, 2, 50).astype(np.float32),
        dense_NC=rng.random((50, 2)).astype(np.float32),
    )
    order = rng.permutation(50)[:20]
    taken = batch.take(order)
    assert _rows(taken) == [_rows(batch)[number] for number in order]
    assert np.array_equal(taken.labels_N, batch.labels_N[order])
    assert np.array_equal(taken.dense_NC, batch.dense_NC[order])
    assert len(batch.take(order[:0])) == 0


def test_rows_as_they_were_read_are_the_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = 40_000  # enough for threads
    tags = pa.ListArray.from_arrays(np.arange(rows + 1) * 2, pa.array(rng.integers(0, 50, 2 * rows)))
    table = pa.table({"user": rng.integers(0, 999, rows), "tags": tags, "y": rng.integers(0, 2, rows)})
    pq.write_table(table, tmp_path / "log.parquet")
    log = ParquetLog(tmp_path, Schema.from_dict({"label": "y", "features": ["user", "tags"]}))
    columns = Columns(schema=log.schema, vocabulary={"user": Vocabulary.collect(log)["user"]}, hashed=30)
    batches = LogBatches(log=log, columns=columns, rows=1000, shuffle_window=40_000, seed=5)
    same = log.batches(1000, shuffle_window=40_000, seed=5)
    for one, other in zip(batches, map(columns.batch, same), strict=True):
        assert np.array_equal(one.indptr_N, other.indptr_N)
        assert np.array_equal(one.indices_E, other.indices_E)
        assert np.array_equal(one.labels_N, other.labels_N)
