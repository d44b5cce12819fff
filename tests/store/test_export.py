"""Vectors written for others and taken from others. The judges: plain pyarrow, the safetensors library, brute force."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import embstore.store
from embstore.cli import cli
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import ConfigError, DataError, EmbstoreError, LogError, SchemaError, StoreError
from embstore.kernels import TableOptimizer
from embstore.logs import ParquetLog
from embstore.schema import Feature, Schema
from embstore.store import (
    Bundle,
    Store,
    Version,
    export_parquet,
    export_safetensors,
    import_vectors,
    open_values,
    vocabulary_of,
)
from embstore.tokens import token

FEATURES = (
    Feature(name="user", lookups=2),
    Feature(name="Straße/..=%", column="item"),
    Feature(name="tags", pooling="mean", max_length=2),
    Feature(name="hour", column="time", transform="hour"),
    Feature(name="day", exact=True, lookups=2),
    Feature(name="7"),
)
COLUMNS = {
    "user": "string",
    "Straße/..=%": "int64",
    "tags": "list<element: string>",
    "hour": "timestamp[us]",
    "day": "int64",
    "7": "bool",
}
KNOWN_DAYS = [1, 2, 7]
VALUES: dict[str, list[Any]] = {
    "user": ["ann", "", "été", "👩‍👩‍👧", "\ufeff\u202e", "nan", "null", " a ", "a\nb", "x" * 3000],
    "Straße/..=%": [0, -1, 2**63 - 1, -(2**63), 17],
    "tags": ["a", "b"],
    "hour": [0, 23, 5],
    "day": [1, 2, 7, 8],
    "7": [True, False],
}


def tokens_of(values: list[Any]) -> torch.Tensor:
    return torch.tensor([np.uint64(token(value)).astype(np.int64) for value in values])


def make_table(dtype: torch.dtype = torch.float32, num_rows: int = 40, **options: Any) -> UnifiedEmbedding:
    days = {"day": tokens_of(KNOWN_DAYS)}
    return UnifiedEmbedding(FEATURES, num_rows, 3, exact_tokens=days, dtype=dtype, init_std=1.0, **options)


def publish(folder: Path, table: UnifiedEmbedding) -> Version:
    bundle = Bundle(
        table=table,
        schema=Schema(features=table.features, label="click"),
        dense_state={"network.weight": torch.arange(6.0).reshape(2, 3), "normalizer.count": torch.tensor(5)},
        model={"name": "dnn", "settings": {}, "dense_width": 0, "widths": list(table.widths)},
        metrics={},
        lineage={},
        columns={name: kind for name, kind in COLUMNS.items() if name in table.plan.names},
    )
    return Store(folder).publish(bundle)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def version(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Version:
    return publish(tmp_path_factory.mktemp("store"), make_table(request.param))


def bits(vectors: Any) -> list[Any]:
    return np.asarray(vectors, dtype=np.float32).view(np.int32).tolist()


def looked_up(table: UnifiedEmbedding, feature: str, values: list[Any]) -> Any:
    if feature == "hour":
        values = pa.array([datetime(2026, 1, 2, hour) for hour in values], pa.timestamp("us"))
    return table.lookup(feature, values).numpy()


def read(folder: Path, feature: str) -> pa.Table:
    found = ds.dataset(folder, partitioning=ds.partitioning(pa.schema([("feature", pa.string())]), flavor="hive"))
    (path,) = [fragment.path for fragment in found.get_fragments(filter=ds.field("feature") == feature)]
    return pq.ParquetFile(path).read()


def test_only_who_exports_pays_for_arrow() -> None:
    code = "import sys, embstore.store as s; sys.exit('pyarrow' in sys.modules or not callable(s.export_parquet))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="nothing"):
        _ = embstore.store.nothing


# Parquet


def test_vectors_are_those_of_lookup_bit_for_bit(version: Version, tmp_path: Path) -> None:
    done: list[int] = []
    values = {name: pa.array(list_) for name, list_ in VALUES.items()}
    written = export_parquet(version, values, tmp_path / "new" / "out", progress=done.append)
    assert written == {name: len(list_) for name, list_ in VALUES.items()}
    assert sum(done) == sum(written.values())
    table = UnifiedEmbedding.restore(version.table)
    for feature in FEATURES:
        got = read(tmp_path / "new" / "out", feature.name)
        assert got["value"].to_pylist() == VALUES[feature.name]
        assert got.schema.field("vector").type.equals(pa.list_(pa.float32(), 3 * feature.lookups))
        expected = looked_up(table, feature.name, VALUES[feature.name])
        assert bits(got["vector"].to_pylist()) == bits(expected)
        moment = datetime.fromisoformat(version.manifest["created"])
        assert set(got["created"].to_pylist()) == {moment.astimezone(UTC)}
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_files_say_where_they_come_from(version: Version, tmp_path: Path) -> None:
    export_parquet(version, {"user": pa.array(["a"])}, tmp_path / "out")
    said = pq.read_schema(tmp_path / "out" / "feature=user" / "part-0.parquet").metadata
    assert said[b"embstore.version"].decode() == version.id
    assert said[b"embstore.digest"].decode() == version.digest
    assert said[b"embstore.space"].decode() == version.space
    assert said[b"embstore.dim"] == b"3"
    assert said[b"embstore.feature"] == b"user"
    assert json.loads(said[b"embstore.widths"])["user"] == 6


def test_partitions_are_read_by_name(version: Version, tmp_path: Path) -> None:
    """What a Hive reader makes of the folders, for values of one type."""
    export_parquet(version, {name: pa.array([1, 2]) for name in ("Straße/..=%",)}, tmp_path / "out")
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name == "feature=Straße%2F..%3D%25"  # as Spark's escapePathName has it, ASCII alone escaped
    rows = ds.dataset(tmp_path / "out", partitioning="hive").to_table().to_pylist()
    assert {row["feature"] for row in rows} == {"Straße/..=%"}


@pytest.mark.parametrize(
    ("given_type", "stored"),
    [
        (pa.large_string(), pa.string()),
        (pa.string_view(), pa.string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.string()),
        (pa.dictionary(pa.int32(), pa.large_string()), pa.string()),
    ],
)
def test_text_is_stored_plainly(version: Version, tmp_path: Path, given_type: pa.DataType, stored: pa.DataType) -> None:
    values = pa.chunked_array([pa.array(["a", "b"]), pa.array(["c"])])
    if pa.types.is_dictionary(given_type):
        values = values.cast(given_type.value_type).dictionary_encode().cast(given_type)
    else:
        values = values.cast(given_type)
    export_parquet(version, {"user": values}, tmp_path / "out")
    got = read(tmp_path / "out", "user")
    assert got.schema.field("value").type == stored
    assert got["value"].to_pylist() == ["a", "b", "c"]
    assert bits(got["vector"].to_pylist()) == bits(
        looked_up(UnifiedEmbedding.restore(version.table), "user", ["a", "b", "c"])
    )


def test_timestamps_are_taken_through_their_transform(version: Version, tmp_path: Path) -> None:
    moments = pa.array([datetime(2026, 1, 2, 5, 7), datetime(2025, 1, 1, 5)], pa.timestamp("s"))
    export_parquet(version, {"hour": moments}, tmp_path / "out")
    got = read(tmp_path / "out", "hour")
    assert got["value"].to_pylist() == moments.to_pylist()
    assert bits(got["vector"].to_pylist()) == bits(
        UnifiedEmbedding.restore(version.table).lookup("hour", moments).numpy()
    )


def test_many_values_are_written_in_pieces(tmp_path: Path) -> None:
    version = publish(tmp_path / "store", UnifiedEmbedding([Feature(name="user", lookups=20)], 5, 64))
    done: list[int] = []
    values = pa.array([f"u{i}" for i in range(10_000)])
    export_parquet(version, {"user": values}, tmp_path / "out", progress=done.append)
    assert len(done) > 2
    assert max(done) * 20 * 64 * 4 <= 16 << 20
    file = pq.ParquetFile(tmp_path / "out" / "feature=user" / "part-0.parquet")
    assert file.metadata.num_row_groups == len(done)
    got = file.read()
    assert got["value"].to_pylist() == values.to_pylist()
    last = UnifiedEmbedding.restore(version.table).lookup("user", values[-3:]).numpy()
    assert bits(got["vector"][-3:].to_pylist()) == bits(last)


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


def test_an_export_names_the_values_of_the_next(version: Version, tmp_path: Path) -> None:
    values: dict[str, Any] = {name: pa.array(list_) for name, list_ in VALUES.items()}
    values["user"] = pa.table({"value": ["b", "a"], "count": pa.array([7, 9], pa.int32())})
    export_parquet(version, values, tmp_path / "one")
    export_parquet(version, tmp_path / "one", tmp_path / "two")
    for feature in FEATURES:
        assert read(tmp_path / "one", feature.name).equals(read(tmp_path / "two", feature.name), check_metadata=True)
    assert read(tmp_path / "two", "user")["count"].to_pylist() == [7, 9]
    assert "count" not in read(tmp_path / "two", "day").column_names


@pytest.mark.parametrize("dictionary", [False, True])
def test_values_from_rows_of_feature_and_value(version: Version, tmp_path: Path, dictionary: bool) -> None:
    names = pa.array(["day", "Straße/..=%", "day"])
    table = pa.table({"feature": names.dictionary_encode() if dictionary else names, "value": [1, 5, 8]})
    pq.write_table(table, tmp_path / "values.parquet", row_group_size=1)
    assert export_parquet(version, tmp_path / "values.parquet", tmp_path / "a") == {"day": 2, "Straße/..=%": 1}
    assert read(tmp_path / "a", "day")["value"].to_pylist() == [1, 8]
    assert export_parquet(version, tmp_path / "values.parquet", tmp_path / "b", features=["day"]) == {"day": 2}


def test_values_from_a_column_for_each_feature(version: Version, tmp_path: Path) -> None:
    table = pa.table({"day": [1, 8, None, None], "user": ["a", None, "b", "c"], "other": [1.5] * 4})
    pq.write_table(table, tmp_path / "values.parquet")
    written = export_parquet(version, str(tmp_path / "values.parquet"), tmp_path / "out", features=["user", "day"])
    assert written == {"user": 3, "day": 2}
    assert read(tmp_path / "out", "user")["value"].to_pylist() == ["a", "b", "c"]
    with pytest.raises(SchemaError, match="no feature 'other'"):
        export_parquet(version, tmp_path / "values.parquet", tmp_path / "no")


def test_no_values_are_an_empty_file(version: Version, tmp_path: Path) -> None:
    assert export_parquet(version, {"user": pa.array([])}, tmp_path / "out") == {"user": 0}
    got = read(tmp_path / "out", "user")
    assert (got.num_rows, got.schema.field("value").type) == (0, pa.string())


@pytest.mark.parametrize(
    ("values", "features", "error", "message"),
    [
        ({"usr": pa.array(["a"])}, None, SchemaError, "no feature 'usr' .*did you mean 'user'"),
        ({"user": pa.array(["a"])}, ["day"], SchemaError, "no values of feature 'day'"),
        ({"user": pa.array([1, 2])}, None, SchemaError, "expected values like string; found int64"),
        ({"day": pa.array(["1"])}, None, SchemaError, "expected values like int64; found string"),
        ({"tags": pa.array([1])}, None, SchemaError, "expected values like list"),
        ({"tags": pa.array([["a"]])}, None, SchemaError, "expected single values"),
        ({"hour": pa.array(["5"])}, None, SchemaError, "expected values like hour"),
        ({"user": pa.array([1.5])}, None, SchemaError, "found double"),
        ({"day": pa.array([datetime(2026, 1, 1)])}, None, SchemaError, "can't be a feature"),
        ({"user": pa.array(["a", None])}, None, DataError, "value, row 1; expected a value"),
        ({"user": ["a"]}, None, SchemaError, "expected an Arrow array"),
        ({"user": pa.table({"v": ["a"]})}, None, SchemaError, "found columns v"),
        ({"user": pa.table({"value": ["a"], "count": [None]})}, None, DataError, "count, row 0"),
        ({}, None, SchemaError, "at least one feature"),
        ("nowhere.parquet", None, LogError, "nowhere.parquet"),
        ("empty", None, LogError, "found none"),
        ("broken.parquet", None, LogError, "broken.parquet"),
        ("nothing.parquet", None, DataError, "a row without one"),
        ("halves", None, SchemaError, "a column 'value'"),
    ],
)
def test_values_that_cannot_be_exported(
    version: Version, tmp_path: Path, values: Any, features: list[str] | None, error: type[Exception], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    pq.write_table(pa.table({"feature": ["user", None], "value": ["a", "b"]}), tmp_path / "nothing.parquet")
    (tmp_path / "halves" / "feature=user").mkdir(parents=True)
    pq.write_table(pa.table({"v": ["a"]}), tmp_path / "halves" / "feature=user" / "part-0.parquet")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        export_parquet(
            version, tmp_path / values if isinstance(values, str) else values, tmp_path / "out", features=features
        )
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_what_exists_is_never_written_over(version: Version, tmp_path: Path, there: str) -> None:
    target = tmp_path / "out"
    if there == "file":
        target.write_text("mine")
    elif there == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")
    for export in (
        lambda: export_parquet(version, {"user": pa.array(["a"])}, target),
        lambda: export_safetensors(version, target),
    ):
        with pytest.raises(StoreError, match="expected a new name; found one that exists"):
            export()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert there != "file" or target.read_text() == "mine"


@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_appears_meanwhile_is_not_written_over(version: Version, tmp_path: Path, there: str) -> None:
    target = tmp_path / "out"

    def appear(_: int) -> None:
        if there == "file":
            target.write_text("mine")
        else:
            (target / "mine").mkdir(parents=True, exist_ok=True)

    for export in (
        lambda: export_parquet(version, {"user": pa.array(["a"])}, target, progress=appear),
        lambda: export_safetensors(version, target, progress=appear),
    ):
        with pytest.raises(StoreError, match="found one that exists"):
            export()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        if there == "file":
            assert target.read_text() == "mine"
            target.unlink()
        else:
            assert [path.name for path in target.iterdir()] == ["mine"]
            (target / "mine").rmdir()
            target.rmdir()


def test_a_target_that_cannot_be_made(version: Version, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a place that can be written"):
        export_parquet(version, {"user": pa.array(["a"])}, tmp_path / "file" / "out")


def test_an_error_midway_leaves_nothing(version: Version, tmp_path: Path) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("stop")

    for export in (
        lambda: export_parquet(version, {"user": pa.array(["a"])}, tmp_path / "out", progress=fail),
        lambda: export_safetensors(version, tmp_path / "out", progress=fail),
    ):
        with pytest.raises(RuntimeError, match="stop"):
            export()
        assert list(tmp_path.iterdir()) == []


def test_files_and_folders_are_on_the_disk_before_their_name(
    version: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename, link = os.fsync, os.rename, os.link
    monkeypatch.setattr(os, "fsync", lambda n: (events.append(os.readlink(f"/proc/self/fd/{n}")), fsync(n))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("named"), rename(a, b))[1])
    monkeypatch.setattr(os, "link", lambda a, b: (events.append("named"), link(a, b))[1])
    export_parquet(version, {"user": pa.array(["a"])}, tmp_path / "out")
    names = [Path(event).name for event in events]
    assert names[:2] == ["part-0.parquet", "feature=user"]
    assert names[2].startswith(".tmp-")
    assert names[3:] == ["named", tmp_path.name]
    events.clear()
    export_safetensors(version, tmp_path / "file")
    assert Path(events[0]).name.startswith(".tmp-")
    assert [Path(event).name for event in events[1:]] == ["named", tmp_path.name]


# safetensors


def test_the_safetensors_library_reads_the_whole_table(version: Version, tmp_path: Path) -> None:
    done: list[int] = []
    export_safetensors(version, tmp_path / "new" / "all.safetensors", progress=done.append)
    assert sum(done) == version.table.num_rows
    with safetensors.safe_open(str(tmp_path / "new" / "all.safetensors"), "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        said = file.metadata()
    assert set(found) == {"rows", "exact.day", "dense.network.weight", "dense.normalizer.count"}
    assert found["rows"].dtype == version.table.dtype
    assert torch.equal(found["rows"], version.table.read_rows(0, version.table.num_rows))
    assert found["exact.day"].tolist() == sorted(tokens_of(KNOWN_DAYS).tolist())
    assert found["dense.network.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["dense.normalizer.count"].item() == 5
    assert (said["embstore.version"], said["embstore.digest"]) == (version.id, version.digest)
    assert json.loads(said["embstore.table"]) == version.manifest["table"]
    assert json.loads(said["embstore.features"])[0]["rows"] == [{"base": 0, "size": 40}] * 2


# vocabulary


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
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
    monkeypatch.setattr("embstore.store.values._MERGE_ROWS", 4)
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


# import


def rows_of(table: UnifiedEmbedding, feature: str, value: Any) -> list[int]:
    plan = table.plan.only(feature)
    return [int(plan.rows_of(lookup, tokens_of([value]))[0]) for lookup in plan.lookups]


def brute_force(
    table: UnifiedEmbedding, feature: str, given: dict[Any, tuple[list[float], float]], known: Callable[[Any], bool]
) -> dict[int, list[float]]:
    """By row the weighted mean of what its values bring, in exact order-free arithmetic."""
    from fractions import Fraction

    brought: dict[int, list[tuple[Fraction, list[float]]]] = defaultdict(list)
    for value, (vector, weight) in given.items():
        if known(value):
            for number, row in enumerate(rows_of(table, feature, value)):
                part = vector[3 * number : 3 * number + 3] if len(vector) > 3 else vector
                brought[row].append((Fraction(weight), part))
    return {
        row: [float(sum(w * Fraction(p[d]) for w, p in parts) / sum(w for w, _ in parts)) for d in range(3)]
        for row, parts in brought.items()
    }


@settings(max_examples=60)
@given(
    feature=st.sampled_from(["user", "day"]),
    wide=st.booleans(),
    weighted=st.booleans(),
    data=st.data(),
    num_rows=st.sampled_from([4, 40]),
)
def test_rows_are_weighted_means(feature: str, wide: bool, weighted: bool, data: st.DataObject, num_rows: int) -> None:
    table = make_table(num_rows=num_rows)
    before = table.weight.clone()
    one = st.integers(-5, 12) if feature == "day" else text
    numbers = st.lists(st.floats(-1e3, 1e3, width=32), min_size=6 if wide else 3, max_size=6 if wide else 3)
    weights = st.floats(1e-3, 1e6) if weighted else st.just(1.0)
    given = data.draw(st.dictionaries(one, st.tuples(numbers, weights), max_size=25))
    rows = pa.table(
        {
            "value": pa.array(list(given), pa.int64() if feature == "day" else pa.string()),
            "vector": pa.array([v for v, _ in given.values()], pa.list_(pa.float32())),
            "w": pa.array([w for _, w in given.values()], pa.float64()),
        }
    )
    result = import_vectors(table, feature, rows, weight_column="w" if weighted else None)

    def known(value: Any) -> bool:
        return feature == "user" or value in KNOWN_DAYS

    expected = brute_force(table, feature, given, known)
    for row in range(table.num_rows):
        if row in expected:
            np.testing.assert_allclose(table.weight[row].numpy(), expected[row], rtol=1e-6, atol=1e-9)
        else:
            assert torch.equal(table.weight[row], before[row])
    where = {value: set(rows_of(table, feature, value)) for value in given if known(value)}
    shared = [v for v in where if any(where[v] & where[other] for other in where if other != v)]
    assert (result.values, result.rows) == (len(given), len(expected))
    assert (result.shared, result.unknown) == (len(shared), len(given) - len(where))

    again = make_table(num_rows=num_rows)
    order = data.draw(st.permutations(range(len(given))))
    import_vectors(again, feature, rows.take(pa.array(order, pa.int64())), weight_column="w" if weighted else None)
    assert bits(again.weight) == bits(table.weight)  # the order of the file is of no matter


def test_values_alone_get_their_vectors_exactly() -> None:
    """Weights from 1e-300 to 1e300, and the sign of a zero, change nothing."""
    table = make_table(num_rows=40_000)
    values = [f"v{i}" for i in range(20)]
    assert len({row for value in values for row in rows_of(table, "user", value)}) == 40
    vectors = torch.randn(20, 6, generator=torch.Generator().manual_seed(1)).numpy()
    vectors[3, 2], vectors[19, 4] = -0.0, 3e38  # the last times its weight is more than float64 holds
    weight = 10.0 ** np.linspace(-300, 300, 20)
    rows = pa.table({"name": values, "numbers": list(vectors), "w": weight})
    result = import_vectors(table, "user", rows, value_column="name", vector_column="numbers", weight_column="w")
    assert (result.values, result.rows, result.shared, result.unknown) == (20, 40, 0, 0)
    assert bits([table.weight[rows_of(table, "user", v)].reshape(-1).tolist() for v in values]) == bits(vectors)
    assert table.lookup("user", values).tolist() == vectors.tolist()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_sums_do_not_depend_on_the_order_of_the_file(order: tuple[int, ...]) -> None:
    """In float64, 1e30 + 1 - 1e30 is 0 or 1, as it is added."""
    rows = pa.table({"value": ["a", "b", "c"], "vector": [[1e30, 1.0, -1e30], [1.0, -1e30, 1e30], [-1e30, 1e30, 1.0]]})
    weights = []
    for taken in (rows, rows.take(list(order))):
        table = make_table(num_rows=1)
        result = import_vectors(table, "user", taken)
        assert (result.rows, result.shared) == (1, 3)
        weights.append(table.weight[0].tolist())
    assert weights[0] == weights[1]


def test_an_export_starts_another_table(tmp_path: Path) -> None:
    """Exact features keep their numbers whatever the new table's layout; a list feature's values come flat."""
    old = make_table()
    version = publish(tmp_path / "store", old)
    days = pa.table({"value": [1, 2, 7], "count": [3, 1, 1]})
    export_parquet(version, {"day": days, "tags": pa.array(["a", "b"])}, tmp_path / "out")
    new = make_table(num_rows=4096, seed=5)
    assert new.lookup("day", [1]).tolist() != old.lookup("day", [1]).tolist()
    for folder in (tmp_path / "out" / "feature=day", str(tmp_path / "out" / "feature=day" / "part-0.parquet")):
        result = import_vectors(new, "day", folder, weight_column="count")
        assert (result.values, result.rows, result.shared, result.unknown) == (3, 6, 0, 0)
    assert new.lookup("day", KNOWN_DAYS).tolist() == old.lookup("day", KNOWN_DAYS).tolist()
    import_vectors(new, "tags", tmp_path / "out" / "feature=tags")
    assert new.lookup("tags", [["a", "b"]]).tolist() == old.lookup("tags", [["a", "b"]]).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_rows_are_rounded_to_nearest(dtype: torch.dtype) -> None:
    table = make_table(dtype, num_rows=4000)
    vector = [0.1, -1 / 3, 2.00049]
    import_vectors(table, "7", pa.table({"value": [True], "vector": [vector]}))
    assert table.lookup("7", [True])[0].tolist() == torch.tensor(vector).to(dtype).float().tolist()


def test_rows_that_owe_a_penalty_are_set_as_of_now() -> None:
    table = make_table(optimizer=TableOptimizer(name="sgd", learning_rate=0.5, l2=0.5), num_rows=400)
    table.train()
    table(_batch(table)).sum().backward()
    import_vectors(table, "user", pa.table({"value": ["new"], "vector": [[1.0, 2.0, 3.0]]}))
    assert table.lookup("user", ["new"]).tolist() == [[1.0, 2.0, 3.0] * 2]


def _batch(table: UnifiedEmbedding) -> Any:
    from embstore.batch import FeatureTokens

    features = [replace(feature, column=None, transform=None) for feature in table.features]
    return FeatureTokens.from_columns({name: [values[0]] for name, values in VALUES.items()}, features)


def rows_table(**columns: Any) -> pa.Table:
    return pa.table({"value": ["a", "b"], "vector": [[1.0, 2.0, 3.0]] * 2, **columns})


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (pa.table({"value": ["a"]}), SchemaError, "column 'vector'; expected one; found none"),
        (pa.table({"valu": ["a"], "vector": [[1.0]]}), SchemaError, "did you mean 'valu'"),
        (rows_table(vector=[[1.0] * 3, [1.0] * 2]), DataError, "row 1; expected a vector of 3, as in row 0; found 2"),
        (rows_table(vector=[[1.0] * 3, [1.0] * 6]), DataError, "row 1; expected a vector of 3, as in row 0; found 6"),
        (rows_table(vector=[[1.0] * 4] * 2), DataError, "row 0; expected a vector of 3 or 6; found 4"),
        (rows_table(vector=[[]] * 2).cast(pa.schema([("value", pa.string()), ("vector", pa.list_(pa.float32()))])),
         DataError, "row 0; expected a vector of 3 or 6; found 0"),
        (rows_table(vector=[[1.0] * 3, [1.0, float("nan"), 0.0]]), DataError, "row 1; expected finite .*nan"),
        (rows_table(vector=[[1.0] * 3, [1.0, float("inf"), 0.0]]), DataError, "row 1; expected finite .*inf"),
        (rows_table(vector=[[1.0] * 3, [1.0, 1e300, 0.0]]), DataError, "row 1; expected finite .*1e[+]300"),
        (rows_table(vector=[[1.0] * 3, [1.0, None, 0.0]]), DataError, "row 1; expected finite .*None"),
        (rows_table(vector=[[1.0] * 3, None]), DataError, "column 'vector', row 1; expected no missing"),
        (rows_table(vector=[[1] * 3] * 2), SchemaError, "expected lists of floats; found list<item: int64>"),
        (rows_table(vector=[1.0, 2.0]), SchemaError, "expected lists of floats; found double"),
        (rows_table(value=["a", None]), DataError, "column 'value', row 1; expected no missing"),
        (rows_table(value=["é", "é"]), DataError, "each value once; found 'é' in rows 0 and 1"),
        (rows_table(value=[1.5, 2.5]), SchemaError, "'value' can't be a feature"),
        (rows_table(value=[["a"], ["b"]]), SchemaError, "expected single values"),
        (rows_table(w=["1", "2"]), SchemaError, "column 'w'; expected numbers"),
        (rows_table(w=[1.0, 0.0]), DataError, "column 'w', row 1; expected a finite number above 0; found 0.0"),
        (rows_table(w=[1.0, float("inf")]), DataError, "column 'w', row 1"),
        (rows_table(w=[1, None]), DataError, "column 'w', row 1; expected no missing"),
        ("nowhere.parquet", LogError, "nowhere.parquet"),
        ("broken.parquet", LogError, "broken.parquet"),
    ],
)  # fmt: skip
def test_vectors_that_cannot_be_taken(tmp_path: Path, vectors: Any, error: type[Exception], message: str) -> None:
    table = make_table()
    before = table.weight.clone()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    weight = "w" if isinstance(vectors, pa.Table) and "w" in vectors.column_names else None
    with pytest.raises(error, match=message):
        import_vectors(table, "user", tmp_path / vectors if isinstance(vectors, str) else vectors, weight_column=weight)
    assert torch.equal(table.weight, before)
    with pytest.raises(SchemaError, match="did you mean 'user'"):
        import_vectors(table, "usr", rows_table())


def test_numbers_a_narrow_table_cannot_hold_are_refused() -> None:
    with pytest.raises(DataError, match=r"finite numbers of float16; found .*70000"):
        import_vectors(make_table(torch.float16), "7", pa.table({"value": [True], "vector": [[1.0, 70_000.0, 0.0]]}))


def test_duplicates_across_dictionary_chunks_are_found() -> None:
    value = pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode()])
    rows = pa.table({"value": value, "vector": [[1.0, 2.0, 3.0]] * 4})
    with pytest.raises(DataError, match="'a' in rows 0 and 3"):
        import_vectors(make_table(), "user", rows)


# command line


def invoke(*arguments: object) -> Any:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def store(tmp_path: Path) -> Path:
    version = publish(tmp_path / "store", make_table())
    Store(tmp_path / "store").promote(version.id)
    (tmp_path / "log").mkdir()
    log = {
        "user": ["ann", "bob", "ann"],
        "item": [3, 4, 4],
        "tags": [["a"], [], ["b", "a"]],
        "time": pa.array([datetime(2026, 1, 1, 5)] * 3, pa.timestamp("us")),
        "day": [1, 1, 9],
        "7": [True, True, False],
    }
    pq.write_table(pa.table(log), tmp_path / "log" / "a.parquet")
    return tmp_path


def test_export_command_takes_values_from_a_log(store: Path) -> None:
    flags = ["export", "--store", store / "store", "--version", "production", "--log", store / "log"]
    result = json.loads(invoke(*flags, "--to", store / "out", "--json").stdout)
    version = Store(store / "store").open()
    counts = {"user": 2, "Straße/..=%": 2, "tags": 2, "hour": 1, "day": 2, "7": 2}
    assert result == {"version": version.id, "target": str(store / "out"), "format": "parquet", "features": counts}
    got = read(store / "out", "user")
    assert got["value"].to_pylist() == ["ann", "bob"]
    assert got["count"].to_pylist() == [2, 1]
    table = UnifiedEmbedding.restore(version.table)
    assert bits(got["vector"].to_pylist()) == bits(table.lookup("user", ["ann", "bob"]).numpy())
    shown = invoke(*flags, "--to", store / "some", *["--feature", "day", "--feature", "hour", "--feature", "day"])
    assert shown.output == f"exported {version.id} to {store / 'some'}: day 2, hour 1\n"
    assert sorted(path.name for path in (store / "some").iterdir()) == ["feature=day", "feature=hour"]


def test_export_command_takes_values_from_parquet_and_writes_safetensors(store: Path) -> None:
    pq.write_table(pa.table({"feature": ["day"] * 2, "value": [1, 5]}), store / "vocab.parquet")
    common = ["export", "--store", store / "store"]
    result = invoke(*common, "--values", store / "vocab.parquet", "--to", store / "out", "--json")
    assert json.loads(result.stdout)["features"] == {"day": 2}
    assert result.stderr == ""  # no bar where no terminal is
    result = invoke(*common, "--format", "safetensors", "--to", store / "all.safetensors", "--json")
    assert json.loads(result.stdout)["rows"] == 48
    with safetensors.safe_open(str(store / "all.safetensors"), "pt") as file:
        assert file.get_slice("rows").get_shape() == [48, 3]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected --values or --log"),
        (["--values", "x", "--log", "y"], "found both"),
        (["--format", "safetensors", "--log", "y"], "nothing but a version"),
        (["--log", "log", "--feature", "usr"], "did you mean 'user'"),
        (["--log", "nowhere"], "no Parquet file"),
        (["--log", "log", "--version", "canary"], "no version 'canary'"),
    ],
)
def test_export_command_says_what_is_wrong(
    store: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(store)
    with pytest.raises(EmbstoreError, match=message):
        invoke("export", "--to", "out", *flags)
    assert not (store / "out").exists()


def test_export_command_refuses_a_target_before_it_counts(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store)
    with pytest.raises(StoreError, match="target log; expected a new name"):
        invoke("export", "--log", "nowhere", "--to", "log")
    with pytest.raises(ConfigError, match="neither"):
        invoke("export", "--to", "log")
