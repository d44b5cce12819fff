"""Frappe: three files that are split already, as CSV, Parquet or libfm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embstore import datasets
from embstore.datasets.frappe import FIELDS
from embstore.errors import DatasetError
from embstore.logs import ParquetLog

ROWS = {
    "train": [[1, 0, 957, 5040, 5047, 5053, 5055, 5058, 5060, 5069, 5149], [0, 3, 960, *[5050] * 8]],
    "valid": [[0, 1, 958, *range(5041, 5049)]],
    "test": [[1, 2, 959, *range(5042, 5050)]],
}


def csv_folder(folder: Path) -> Path:
    for split, rows in ROWS.items():
        lines = [",".join(["label", *FIELDS]), *(",".join(map(str, row)) for row in rows)]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def libfm_folder(folder: Path) -> Path:
    for split, rows in ROWS.items():
        lines = [" ".join(["1" if row[0] else "-1", *(f"{value}:1" for value in row[1:])]) for row in rows]
        name = {"valid": "validation"}.get(split, split)
        (folder / f"frappe.{name}.libfm").write_text("\n".join(lines) + "\n")
    return folder


def parquet_folder(folder: Path) -> Path:
    for split, rows in ROWS.items():
        columns = dict(zip(["label", *FIELDS], zip(*rows, strict=True), strict=True))
        pq.write_table(
            pa.table({name: pa.array(values, pa.int64()) for name, values in columns.items()}),
            folder / f"{split}.parquet",
        )
    return folder


@pytest.mark.parametrize("make", [csv_folder, libfm_folder, parquet_folder])
def test_all_formats_give_the_same(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "raw").mkdir()
    result = datasets.convert("frappe", make(tmp_path / "raw"), tmp_path / "out")
    for split, rows in ROWS.items():
        table = pq.read_table(result.split(split))
        assert [list(row.values()) for row in table.to_pylist()] == rows
        assert table.column_names == ["label", *FIELDS]
        assert table.schema.field("user").type == pa.int32()
    assert [feature.name for feature in result.schema.features] == list(FIELDS)
    assert (result.schema.label, result.schema.group, result.schema.dense) == ("label", "user", ())


def test_a_bad_libfm_entry_is_shown(tmp_path: Path) -> None:
    path = libfm_folder(tmp_path) / "frappe.test.libfm"
    path.write_text(path.read_text().replace("5042:1", "5042:0.5"))
    with pytest.raises(DatasetError, match=r"frappe\.test\.libfm: field daytime; expected number:1; found '5042:0\.5'"):
        datasets.convert("frappe", tmp_path, tmp_path / "out")


def test_parquet_without_a_column_is_an_error(tmp_path: Path) -> None:
    path = parquet_folder(tmp_path) / "valid.parquet"
    pq.write_table(pq.read_table(path).drop_columns("city"), path)
    with pytest.raises(DatasetError, match=r"valid\.parquet; expected Parquet with columns label, user"):
        datasets.convert("frappe", tmp_path, tmp_path / "out")


def test_frappe_x1r(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    source = shared_data("frappe-x1r")
    result = datasets.convert("frappe", source, tmp_path / "out")
    assert result.rows == {"train": 199_305, "valid": 57_722, "test": 28_860}
    expected = pq.read_table(source / "test.parquet")
    assert pq.read_table(result.split("test")).to_pydict() == expected.to_pydict()
    assert ParquetLog(result.split("train"), result.schema).rows == 199_305
