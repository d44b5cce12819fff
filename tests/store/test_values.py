"""The values that are exported: counted in logs, read from Parquet. The judge: Python's own counting."""

from __future__ import annotations

import os
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import FEATURES, bits, publish, read, text

from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import SchemaError
from embstore.logs import ParquetLog
from embstore.schema import Feature, Schema
from embstore.store import export_parquet, open_values, vocabulary_of

kinds = st.sampled_from(
    [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
)


def of_kind(kind: pa.DataType) -> st.SearchStrategy[Any]:
    low = 0 if pa.types.is_unsigned_integer(kind) else -(2 ** (kind.bit_width - 1))
    high = 2**kind.bit_width - 1 if low == 0 else -low - 1
    return st.integers(low, min(high, low + 3)) | st.integers(max(low, high - 3), high)


element_and_values = st.one_of(
    kinds.flatmap(lambda kind: st.tuples(st.just(kind), st.just(of_kind(kind)))),
    st.sampled_from([pa.string(), pa.large_string()]).map(lambda kind: (kind, text)),
    st.just((pa.binary(), st.binary(max_size=3))),
    st.just((pa.bool_(), st.booleans())),
)


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.Array, list[Any]]:
    """A log's column of any type a feature may have, and its values one by one."""
    kind, values = draw(element_and_values)
    one = st.none() | values
    if draw(st.booleans()):
        rows = draw(st.lists(st.none() | st.lists(one, max_size=4), min_size=1, max_size=30))
        list_kind = draw(st.sampled_from([pa.list_, pa.large_list]))
        flat = [value for row in rows for value in (row or [])]
        return pa.array(rows, list_kind(kind)), [value for value in flat if value is not None]
    rows = draw(st.lists(one, min_size=1, max_size=30))
    array = pa.array(rows, kind)
    if draw(st.booleans()) and not pa.types.is_boolean(kind):
        array = array.dictionary_encode()
    return array, [value for value in rows if value is not None]


@settings(max_examples=150)
@given(column=columns(), groups=st.integers(1, 30))
def test_a_vocabulary_counts_what_the_column_holds(
    column: tuple[pa.Array, list[Any]], groups: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    array, values = column
    path = tmp_path_factory.mktemp("log")
    half = len(array) // 2
    if half:
        pq.write_table(pa.table({"f": array[half:]}), path / "b.parquet", row_group_size=groups)
    pq.write_table(pa.table({"f": array[: half or None]}), path / "a.parquet", row_group_size=groups)
    schema = Schema(features=(Feature(name="f"),))
    found = vocabulary_of(ParquetLog(path, schema), schema)["f"]
    counted = dict(zip(found["value"].to_pylist(), found["count"].to_pylist(), strict=True))
    assert counted == Counter(values)
    assert len(counted) == found.num_rows

    table = UnifiedEmbedding(schema.features, 7, 2)
    version = publish(path / "store", table)
    export_parquet(version, {"f": found}, path / "out")
    got = read(path / "out", "f")
    assert got["value"].to_pylist() == found["value"].to_pylist()
    if values:
        given = pa.array(got["value"].to_pylist(), got.schema.field("value").type)
        assert bits(got["vector"].to_pylist()) == bits(table.lookup("f", given).numpy())


def test_a_vocabulary_is_what_lookups_take(tmp_path: Path) -> None:
    """Lists cut to their length, the hours of timestamps, and one type for files that differ in width."""
    moments = pa.array([datetime(2026, 1, 1, 5), datetime(2026, 2, 1, 5), None], pa.timestamp("us"))
    tags = [["a", "b", "c"], ["b"], None]
    common = {"time": moments, "tags": tags, "click": [0, 1, 0]}
    (tmp_path / "log").mkdir()
    pq.write_table(pa.table({**common, "item": pa.array([1, 2, 2], pa.int32())}), tmp_path / "log" / "a.parquet")
    pq.write_table(pa.table({**common, "item": pa.array([2**40, 2, None])}), tmp_path / "log" / "b.parquet")
    schema = Schema(features=tuple(f for f in FEATURES if f.source in ("time", "tags", "item")), label="click")
    done: list[int] = []
    found = vocabulary_of(ParquetLog(tmp_path / "log", schema), schema, progress=done.append)
    assert sum(done) == 6
    assert {name: table.to_pydict() for name, table in found.items()} == {
        "hour": {"value": [5], "count": [4]},
        "tags": {"value": ["a", "b"], "count": [2, 4]},
        "Straße/..=%": {"value": [1, 2, 2**40], "count": [1, 3, 1]},
    }


def test_a_vocabulary_is_merged_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embstore.value_tables._ENTRIES", 2)
    monkeypatch.setattr("embstore.value_tables._BYTES", 16)
    values = [f"v{(i * i) % 13}" for i in range(1000)]
    pq.write_table(pa.table({"f": values}), tmp_path / "log.parquet", row_group_size=3)
    schema = Schema(features=(Feature(name="f"),))
    found = vocabulary_of(ParquetLog(tmp_path / "log.parquet", schema), schema)["f"]
    assert dict(zip(found["value"].to_pylist(), found["count"].to_pylist(), strict=True)) == Counter(values)
    assert found["value"].to_pylist() == sorted(set(values))


def test_integers_without_a_common_type_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    pq.write_table(pa.table({"f": pa.array([2**63], pa.uint64())}), tmp_path / "log" / "a.parquet")
    pq.write_table(pa.table({"f": pa.array([-1])}), tmp_path / "log" / "b.parquet")
    schema = Schema(features=(Feature(name="f"),))
    with pytest.raises(SchemaError, match="values of 'f'; expected integers of one type"):
        vocabulary_of(ParquetLog(tmp_path / "log", schema), schema)


def test_values_are_read_in_bounded_memory(tmp_path: Path) -> None:
    """The case: Arrow kept the bytes of every row group it had read until the last was done."""
    schema = pa.schema({"feature": pa.string(), "value": pa.string()})
    with pq.ParquetWriter(tmp_path / "values.parquet", schema) as file:
        for group in range(30):
            values = [f"{group}-{i}-" + os.urandom(500).hex() for i in range(1000)]
            file.write_table(pa.table({"feature": ["user"] * 1000, "value": values}))
    before, held = pa.total_allocated_bytes(), []
    for piece in open_values(tmp_path / "values.parquet")["user"].pieces(1000):
        assert piece.num_rows <= 1000
        held.append(pa.total_allocated_bytes() - before)
    assert len(held) == 30
    assert max(held) < 8 << 20  # of 30 MB
