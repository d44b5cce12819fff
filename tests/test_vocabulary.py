"""Vocabularies of logs, against Python's own counting; tokens of exact features, against sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embstore.errors import DataError, LogError, SchemaError, StoreError
from embstore.logs import ParquetLog
from embstore.schema import Schema
from embstore.store import open_values
from embstore.tokens import token
from embstore.vocabulary import FeatureValues, ValueStatus, Vocabulary, exact_tokens


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


def _log(folder: Path, **columns: Any) -> ParquetLog:
    """A log of these columns, all of them features, in small row groups."""
    pq.write_table(
        pa.table({**columns, "y": [0] * len(next(iter(columns.values())))}), folder / "log.parquet", row_group_size=7
    )
    return ParquetLog(folder, Schema.from_dict({"label": "y", "features": list(columns)}))


def test_a_vocabulary_of_a_log(tmp_path: Path) -> None:
    user = ["ann", None, "bob", "ann"] * 5
    tags = pa.array([[1, 2], [], None, [2, None, 2]] * 5, pa.list_(pa.uint16()))
    log = _log(tmp_path, user=user, tags=tags, flag=[True, None, False, True] * 5)
    seen: list[int] = []
    vocabulary = Vocabulary.collect(log, progress=seen.append)
    assert sum(seen) == 20
    counts = {name: dict(zip(of.values.to_pylist(), of.count.tolist(), strict=True)) for name, of in vocabulary.items()}
    assert counts == {"user": {"ann": 10, "bob": 5}, "tags": {1: 5, 2: 15}, "flag": {False: 5, True: 10}}
    assert {name: of.kind for name, of in vocabulary.items()} == {"user": "string", "tags": "int64", "flag": "bool"}
    assert all(of.kept.all() for of in vocabulary.values())
    asked = np.array([token(value) for value in ("ann", None, "eve")], np.uint64)
    assert vocabulary.status("user", asked).tolist() == [ValueStatus.KNOWN, ValueStatus.MISSING, ValueStatus.UNSEEN]
    assert vocabulary.filtered("user", asked) is vocabulary.filtered("other", asked) is asked

    some = Vocabulary.collect(log, ["tags", "tags"])
    assert list(some) == ["tags"]
    assert some["tags"].same(vocabulary["tags"])
    assert not Vocabulary.collect(log, [], progress=lambda rows: 1 / 0)
    with pytest.raises(SchemaError, match=r"no feature 'users'.*did you mean 'user'"):
        Vocabulary.collect(log, ["users"])


def test_a_value_that_is_no_category(tmp_path: Path) -> None:
    log = _log(tmp_path, text=["a" * 70_000, "b"])
    with pytest.raises(DataError, match=r"values of 'text'.*65,536 bytes"):
        Vocabulary.collect(log)


@given(
    names=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6), unique=True),
    data=st.data(),
)
def test_parquet_and_back(names: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    values = st.one_of(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), unique=True, max_size=6),
        st.lists(st.binary(max_size=4), unique=True, min_size=1, max_size=6),
        st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=1, max_size=6),
        st.lists(st.integers(2**63, 2**64 - 1), unique=True, min_size=1, max_size=6).map(
            lambda of: pa.array(of, pa.uint64())
        ),
        st.just([False, True]),
    )
    features = {}
    for name in names:
        of = data.draw(values)
        kept = data.draw(st.lists(st.booleans(), min_size=len(of), max_size=len(of)))
        features[name] = FeatureValues.of(name, of, count=range(len(of)), kept=kept)
    vocabulary, folder = Vocabulary(features), tmp_path_factory.mktemp("out") / "vocabulary"
    vocabulary.to_parquet(folder)
    if not names:
        with pytest.raises((LogError, SchemaError)):
            Vocabulary.from_parquet(folder)
        return
    again = Vocabulary.from_parquet(folder)
    assert again.same(vocabulary)
    assert open_values(folder).keys() == vocabulary.keys()  # as `embstore export --values` reads it
    with pytest.raises(StoreError, match="a new name"):
        vocabulary.to_parquet(folder)


def test_parquet_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "feature=a%20b"
    folder.mkdir()
    pq.write_table(pa.table({"value": ["y", "x"]}), folder / "1.parquet")
    pq.write_table(pa.table({"value": ["a"]}), folder / "0.parquet")
    of = Vocabulary.from_parquet(tmp_path)["a b"]
    assert (of.values.to_pylist(), of.count.tolist(), of.kept.tolist()) == (["a", "x", "y"], [0] * 3, [True] * 3)
    for table, error, message in (
        (pa.table({"value": ["x"]}), DataError, "each once"),
        (pa.table({"value": [None, "z"]}), DataError, "missing"),
        (pa.table({"values": ["x"]}), SchemaError, "a column 'value'"),
    ):
        for path in folder.iterdir():
            path.unlink()
        pq.write_table(table, folder / "0.parquet")
        if message == "each once":
            pq.write_table(table, folder / "1.parquet")
        with pytest.raises(error, match=message):
            Vocabulary.from_parquet(tmp_path)
    with pytest.raises(LogError, match="nowhere"):
        Vocabulary.from_parquet(tmp_path / "nowhere")


def test_vocabularies_of_two_days() -> None:
    monday = Vocabulary({"a": FeatureValues.of("a", ["x", "y"], count=[1, 2], kept=[True, False])})
    tuesday = Vocabulary({"a": FeatureValues.of("a", ["y", "z"], count=[3, 4]), "b": FeatureValues.of("b", [1])})
    both = monday.merged(tuesday)
    assert both.keys() == {"a", "b"}
    assert dict(zip(both["a"].values.to_pylist(), both["a"].count.tolist(), strict=True)) == Counter(
        "x" + "y" * 5 + "z" * 4
    )
    assert both["a"].kept.tolist() == [True, False, True]
    assert both.same(tuesday.merged(monday))
    assert not both.same(monday)
