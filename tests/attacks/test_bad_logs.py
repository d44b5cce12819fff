"""Logs that can't be trained on: each is refused with a clear typed error, or has a documented treatment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from embstore.batch import Batch
from embstore.errors import DataError, EmbstoreError, LogError, SchemaError
from embstore.hashing import MISSING_TOKEN
from embstore.logs import ParquetLog
from embstore.schema import Schema

GOOD = {"f": ["a", "b", None, "a"], "x": [1.0, 2.0, None, 4.0], "y": [0, 1, 1, 0]}


def _schema(**changes: object) -> Schema:
    return Schema.from_dict({"label": "y", "features": ["f"], "dense": ["x"], **changes})


def _write(folder: Path, columns: dict[str, object], name: str = "a.parquet") -> Path:
    pq.write_table(pa.table(columns), folder / name)
    return folder


def _read(source: Path, schema: Schema) -> list[Batch]:
    return list(ParquetLog(source, schema).batches(2))


def _refused(kind: type[EmbstoreError], message: str, source: Path, schema: Schema | None = None) -> None:
    with pytest.raises(kind, match=message) as caught:
        _read(source, schema or _schema())
    assert isinstance(caught.value, EmbstoreError)


@pytest.mark.parametrize(
    ("columns", "kind", "message"),
    [
        (
            {"y": [0.0, float("nan"), 1.0, 1.0]},
            DataError,
            r"label 'y' in .*a\.parquet.*row 1.*expected 0 or 1; found nan",
        ),
        ({"y": [0, None, 1, 1]}, DataError, r"label 'y'.*a missing value"),
        ({"y": [0, 1, 2, 1]}, DataError, r"label 'y'.*row 2.*found 2"),
        (
            {"y": ["0", "1", "1", "0"]},
            SchemaError,
            r"label 'y'; expected a column of 0 and 1 .*found string; make the label binary",
        ),
        ({"y": [[0], [1], [1], [0]]}, SchemaError, r"label 'y'.*found list"),
        ({"f": [0.5, 1.5, 2.5, 3.5]}, SchemaError, r"'f'.*(float|double)"),
        ({"f": [[0.5], [1.5], [], None]}, SchemaError, r"'f'.*(float|double)"),
        ({"f": [{"k": 1}] * 4}, SchemaError, r"'f'.*struct"),
        ({"f": pa.array([1, 2, 3, 4], pa.timestamp("s"))}, SchemaError, r"'f'.*transform"),
        ({"f": ["a" * 65_537, "b", "c", "d"]}, DataError, r"'f'.*65,?537"),
        ({"x": ["1", "2", "3", "4"]}, SchemaError, r"column 'x' is used as a number.*features"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path: Path, columns: dict, kind: type[EmbstoreError], message: str) -> None:
    _refused(kind, message, _write(tmp_path, {**GOOD, **columns}))


@pytest.mark.parametrize(
    ("weight", "found"),
    [([1.0, -1.0, 1.0, 1.0], "-1.0"), ([1.0, float("nan"), 1.0, 1.0], "nan"), ([1.0, None, 1.0, 1.0], "None")],
)
def test_weights_that_cannot_be_used(tmp_path: Path, weight: list, found: str) -> None:
    _refused(
        DataError,
        rf"weight 'w'.*row 1.*0 or more; found {found}",
        _write(tmp_path, {**GOOD, "w": weight}),
        _schema(weight="w"),
    )


def test_a_list_is_no_group(tmp_path: Path) -> None:
    _refused(SchemaError, "one value a row", _write(tmp_path, {**GOOD, "g": [[1], [2], [3], [4]]}), _schema(group="g"))


@pytest.mark.parametrize(
    ("absent", "near"), [("f", "did you mean 'ff'"), ("y", "did you mean 'yy'"), ("x", "did you mean 'xx'")]
)
def test_a_missing_column_names_the_nearest(tmp_path: Path, absent: str, near: str) -> None:
    columns = {name * 2 if name == absent else name: values for name, values in GOOD.items()}
    _refused(SchemaError, rf"column '{absent}' is not in the log; {near}", _write(tmp_path, columns))


def test_nothing_there(tmp_path: Path) -> None:
    _refused(LogError, "no Parquet file there", tmp_path)
    _refused(LogError, "no Parquet file there", tmp_path / "absent")
    _refused(
        LogError,
        "expected at least one row",
        _write(tmp_path, {**GOOD, "f": pa.array([], pa.string()), "x": [], "y": []}),
    )


def test_an_all_null_column_is_all_missing(tmp_path: Path) -> None:
    """The documented treatment: a null is the missing token, a missing number is NaN (0 after normalisation)."""
    (batch,) = ParquetLog(_write(tmp_path, {"f": pa.nulls(4), "x": pa.nulls(4), "y": [0, 1, 0, 1]}), _schema()).batches(
        4
    )
    assert batch.tokens.values_N.numpy().view(np.uint64).tolist() == [MISSING_TOKEN] * 4
    assert torch.isnan(batch.dense_BD).all()


@pytest.mark.parametrize("keep", [0, 1, 3, 4, 50, 0.5, -1, -8])
def test_cut_short(tmp_path: Path, keep: float) -> None:
    path = _write(tmp_path, GOOD) / "a.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    _refused(LogError, r"a\.parquet can't be read.*whole Parquet file.*write it again", tmp_path)


def test_not_parquet_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("f,x,y\na,1,0\n")
    _refused(LogError, r"a\.parquet can't be read", tmp_path)


def test_broken_in_the_middle(tmp_path: Path) -> None:
    """The footer is whole; the data it points at is not."""
    rows = 20_000
    columns = {"f": [f"value {i}" for i in range(rows)], "x": np.arange(rows) * 1.0, "y": np.arange(rows) % 2}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[1000:9000] = b"\xff" * 8000
    path.write_bytes(data)
    with pytest.raises(EmbstoreError, match=r"a\.parquet"):
        list(ParquetLog(tmp_path, _schema()).batches(1000))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": GOOD["x"], "y": GOOD["y"]}, r"different columns: .*b\.parquet has no 'f'"),
        ({**GOOD, "f": [1, 2, 3, 4]}, r"disagree on column 'f'.*string as in .*a\.parquet.*int64 in .*b\.parquet"),
        ({**GOOD, "f": [["a"], [], None, ["b"]]}, r"disagree on column 'f'.*list"),
    ],
)
def test_mixed_schemas(tmp_path: Path, other: dict, message: str) -> None:
    _write(tmp_path, GOOD)
    _refused(LogError, message, _write(tmp_path, other, "b.parquet"))


def test_types_that_encode_alike_mix(tmp_path: Path) -> None:
    """Integers of any width, strings of any layout: the same values are the same tokens."""
    strings = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
    for number, kind in enumerate(strings):
        f = (
            pa.array(GOOD["f"]).cast(kind)
            if not pa.types.is_dictionary(kind)
            else pa.array(GOOD["f"]).dictionary_encode()
        )
        y = pa.array(GOOD["y"], [pa.int8(), pa.uint64(), pa.int32(), pa.int64()][number])
        _write(tmp_path, {**GOOD, "f": f, "y": y}, f"{number}.parquet")
    batches = list(ParquetLog(tmp_path, _schema()).batches(4))
    assert len(batches) == 4
    assert all(torch.equal(batch.tokens.values_N, batches[0].tokens.values_N) for batch in batches)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.unlink(), id="vanishes"),
        pytest.param(lambda path: path.write_bytes(b""), id="is emptied"),
        pytest.param(lambda path: pq.write_table(pa.table(GOOD).slice(0, 3), path), id="gets shorter"),
    ],
)
def test_a_file_that_changes_after_opening(tmp_path: Path, change: Callable[[Path], None]) -> None:
    log = ParquetLog(_write(tmp_path, GOOD), _schema())
    change(tmp_path / "a.parquet")
    with pytest.raises(LogError, match=r"a\.parquet"):
        list(log.batches(2))


def test_only_the_columns_of_the_schema_are_read(tmp_path: Path) -> None:
    """Thousands of other columns, of types that couldn't be encoded, are no obstacle."""
    others = {f"c{i}": [[0.5]] * 4 for i in range(3000)}
    (batch,) = ParquetLog(_write(tmp_path, {**GOOD, **others}), _schema()).batches(4)
    assert len(batch) == 4


def test_a_column_name_twice(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(GOOD["f"]), pa.array(GOOD["f"]), pa.array(GOOD["y"])], names=["f", "f", "y"])
    pq.write_table(table, tmp_path / "a.parquet")
    _refused(SchemaError, r"column 'f'; expected one of that name; found 2", tmp_path, _schema(dense=[]))


def test_a_time_zone_nobody_knows(tmp_path: Path) -> None:
    column = pa.array([1, 2, 3, 4], pa.timestamp("us", "Nowhere/Atlantis"))
    schema = _schema(features=[{"name": "h", "column": "t", "transform": "hour"}])
    _refused(SchemaError, "known time zone", _write(tmp_path, {**GOOD, "t": column}), schema)
