"""Vectors written for others. The judges: plain pyarrow and the safetensors library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from vectors import FEATURES, KNOWN_DAYS, VALUES, bits, looked_up, publish, read, tokens_of

import embstore.store
from embstore.embeddings.unified import UnifiedEmbedding
from embstore.errors import DataError, LogError, SchemaError, StoreError
from embstore.schema import Feature
from embstore.store import Version, export_parquet, export_safetensors, open_values


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


def test_values_of_one_feature_from_a_column_alone(version: Version, tmp_path: Path) -> None:
    path = tmp_path / "values.parquet"
    for columns in ({"value": [1, 8]}, {"count": [7, 9], "value": [1, 8]}):
        pq.write_table(pa.table(columns), path)
        target = tmp_path / f"{len(columns)}"
        assert export_parquet(version, path, target, features=["day", "day"]) == {"day": 2}
        got = read(target, "day")
        assert got["value"].to_pylist() == [1, 8]
        assert ("count" in got.column_names) == ("count" in columns)
    for features in (None, ["day", "user"]):
        with pytest.raises(SchemaError, match="name one feature, whose values these are"):
            export_parquet(version, path, tmp_path / "no", features=features)
    pq.write_table(pa.table({"other": [1]}), path)
    with pytest.raises(
        SchemaError, match=r"no values of feature 'day'; known: other; .* in a column 'value', or in a \.txt"
    ):
        export_parquet(version, path, tmp_path / "no", features=["day"])


@pytest.mark.parametrize(
    ("feature", "text", "values"),
    [
        ("user", 'ann\n"q",b \n\u202e\n', ["ann", '"q",b ', "\u202e"]),
        ("user", "\ufeffa\x1fb\n \n", ["a\x1fb", " "]),
        ("user", "NA\r\nnull", ["NA", "null"]),
        ("day", "1\n-9223372036854775808", [1, -(2**63)]),
        ("7", "true\nfalse\n", [True, False]),
        ("tags", "a\n", ["a"]),
        ("hour", "2026-01-31T18:30\n", [datetime(2026, 1, 31, 18, 30)]),
    ],
)
def test_values_of_one_feature_from_lines_of_text(
    version: Version, tmp_path: Path, feature: str, text: str, values: list[Any]
) -> None:
    path = tmp_path / "values.txt"
    path.write_bytes(text.encode())
    export_parquet(version, path, tmp_path / "out", features=[feature])
    got = read(tmp_path / "out", feature)
    assert got["value"].to_pylist() == values
    expected = UnifiedEmbedding.restore(version.table).lookup(feature, got["value"])
    assert bits(got["vector"].to_pylist()) == bits(expected)


@pytest.mark.parametrize(
    ("feature", "text", "error", "message"),
    [
        ("day", "1\nx\n2\ny", DataError, r"values\.txt, line 2; expected int64 in UTF-8, .*; found 'x'$"),
        ("day", "1\n\n2", DataError, r"values\.txt, line 2; expected a value; found a blank line"),
        ("user", "a\n\r\n", DataError, r"values\.txt, line 2; expected a value; found a blank line"),
        ("user", b"a\nb\n\xff\xfe", DataError, r"line 3; expected string in UTF-8.*xff"),
        ("user", "", DataError, r"values\.txt; expected a value in each line; found an empty file"),
        ("user", None, LogError, r"values\.txt; expected a text file, one value a line; found no such file"),
        (None, "a", SchemaError, "the feature whose values these are; found none or several"),
    ],
)
def test_text_that_cannot_be_exported(
    version: Version,
    tmp_path: Path,
    feature: str | None,
    text: str | bytes | None,
    error: type[Exception],
    message: str,
) -> None:
    path = tmp_path / "values.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=message):
        export_parquet(version, path, tmp_path / "out", features=None if feature is None else [feature])
    assert [found.name for found in tmp_path.iterdir()] == ["values.txt"] * (text is not None)


def test_a_line_at_fault_is_counted_over_pieces(tmp_path: Path) -> None:
    path = tmp_path / "values.txt"
    for fault in (1, 5, 6, 10, 17):
        path.write_text("\n".join("x" if line == fault else str(line) for line in range(1, 18)))
        with pytest.raises(DataError, match=rf"line {fault}; .*'x'"):
            list(open_values(path, feature="day", trained_on="int64")["day"].pieces(5))


def test_of_the_columns_of_one_feature_s_file_only_value_and_count_are_read(version: Version, tmp_path: Path) -> None:
    """The case: a file of value and vector, as import takes it, was read as a column for each feature."""
    path = tmp_path / "values.parquet"
    pq.write_table(pa.table({"value": [1, 8], "vector": [[0.0]] * 2, "title": ["a", None]}), path)
    assert export_parquet(version, path, tmp_path / "out", features=["day"]) == {"day": 2}
    assert read(tmp_path / "out", "day")["value"].to_pylist() == [1, 8]
    with pytest.raises(SchemaError, match="name one feature, whose values these are"):
        export_parquet(version, path, tmp_path / "no")
    pq.write_table(pa.table({"value": [1, 8], "user": ["a", "b"]}), path)  # columns of features: no feature's alone
    with pytest.raises(SchemaError, match="no values of feature 'day'; known: user, value"):
        export_parquet(version, path, tmp_path / "no", features=["day"])


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
        ({"hour": pa.array([5, 24])}, None, SchemaError, "takes from them: 0 to 23; found 24"),
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
