"""What holds for every data set: names, the target folder, its description, errors."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embstore import datasets
from embstore.datasets import conversion
from embstore.datasets.conversion import Raw, split_rows
from embstore.datasets.text import count_lines, text_table, text_tables
from embstore.errors import DatasetError
from embstore.logs import ParquetLog
from embstore.schema import Feature, Schema

SCHEMA = Schema(label="label", features=(Feature(name="x"),))
FIELDS = {"label": pa.int8(), "name": pa.string(), "size": pa.int64()}


def frappe_folder(folder: Path, label: str = "1") -> Path:
    folder.mkdir()
    for split in ("train", "valid", "test"):
        text = "label,user,item,daytime,weekday,isweekend,homework,cost,weather,country,city\n"
        (folder / f"{split}.csv").write_text(text + f"{label},1,2,3,4,5,6,7,8,9,10\n0,1,2,3,4,5,6,7,8,9,11\n")
    return folder


def test_names_are_the_documented_ones() -> None:
    assert datasets.names() == ("avazu", "criteo", "frappe", "movielens-100k", "movielens-1m", "movielens-latest")


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no data set 'movielens-1M'; did you mean 'movielens-1m'"):
        datasets.convert("movielens-1M", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", datasets.names())
def test_a_wrong_folder_lists_what_is_expected_and_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "holiday.jpg").touch()
    with pytest.raises(DatasetError, match=r"expected .*(train|ratings|u\.data).*; found holiday\.jpg"):
        datasets.convert(name, tmp_path / "raw", tmp_path / "out")
    with pytest.raises(DatasetError, match="found nothing there"):
        datasets.convert(name, tmp_path / "nowhere", tmp_path / "out")
    assert os.listdir(tmp_path) == ["raw"]


def test_the_target_holds_splits_schema_and_description(tmp_path: Path) -> None:
    source = frappe_folder(tmp_path / "raw")
    steps: list[int] = []
    result = datasets.convert("frappe", source, tmp_path / "a" / "out", progress=steps.append)
    assert Path(result) == result.path == tmp_path / "a" / "out"
    assert result.rows == {"train": 2, "valid": 2, "test": 2}
    assert sum(steps) == 6
    assert sorted(os.listdir(result)) == ["dataset.json", "schema.yaml", "test", "train", "valid"]
    assert Schema.from_yaml(result.path / "schema.yaml") == result.schema
    description = json.loads((result.path / "dataset.json").read_text())
    digest = hashlib.sha256((source / "valid.csv").read_bytes()).hexdigest()
    assert description["name"] == "frappe"
    assert description["rows"] == dict(result.rows)
    assert description["split"] == result.rule
    assert description["source"]["valid.csv"] == {"bytes": (source / "valid.csv").stat().st_size, "sha256": digest}
    assert ParquetLog(result.split("train"), result.schema).rows == 2


def test_a_target_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    source, target = frappe_folder(tmp_path / "raw"), tmp_path / "out"
    target.mkdir()
    datasets.convert("frappe", source, target)  # empty is fine
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    with pytest.raises(DatasetError, match="is not empty"):
        datasets.convert("frappe", source, target)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    source = frappe_folder(tmp_path / "raw")
    with (source / "test.csv").open("a") as file:
        file.write("1,2,3\n")
    with pytest.raises(DatasetError, match=r"test\.csv, line 4; expected 11 fields; found 3"):
        datasets.convert("frappe", source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["raw"]


@pytest.mark.parametrize(("label", "found"), [("2", "2"), ("", "none")])
def test_a_label_must_be_0_or_1(tmp_path: Path, label: str, found: str) -> None:
    with pytest.raises(DatasetError, match=f"frappe: label; expected 0 or 1 in every row; found {found}"):
        datasets.convert("frappe", frappe_folder(tmp_path / "raw", label), tmp_path / "out")


def test_a_split_without_rows_is_an_error(tmp_path: Path) -> None:
    source = frappe_folder(tmp_path / "raw")
    header = (source / "test.csv").read_text().split("\n")[0]
    (source / "test.csv").write_text(header + "\n")
    with pytest.raises(DatasetError, match="too few rows to split"):
        datasets.convert("frappe", source, tmp_path / "out")


def test_row_groups_and_files_are_full_whatever_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "GROUP_ROWS", 100)
    monkeypatch.setattr(conversion, "FILE_ROWS", 300)
    table = pa.table({"label": pa.array([0, 1] * 500, pa.int8()), "x": list(range(1000))})
    sizes = [7, 250, 0, 93, 550, 100]

    def rows() -> object:
        for split in ("train", "valid", "test"):
            start = 0
            for size in sizes:
                yield split, table.slice(start, size)
                start += size

    raw = Raw(files=(), schema=SCHEMA, rule="", rows=rows)  # type: ignore[arg-type]
    result = conversion.write("x", lambda: raw, tmp_path / "out")
    files = sorted(result.split("train").iterdir())
    assert [path.name for path in files] == [f"part-0000{n}.parquet" for n in range(4)]
    groups = [pq.ParquetFile(path).metadata for path in files]
    assert [[m.row_group(g).num_rows for g in range(m.num_row_groups)] for m in groups] == [[100] * 3] * 3 + [[100]]
    assert pq.read_table(files).column("x").to_pylist() == list(range(1000))


def test_split_rows_numbers_rows_over_all_tables() -> None:
    tables = [pa.table({"x": [0, 1, 2]}), pa.table({"x": [3]}), pa.table({"x": [4, 5]})]
    dealt: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for split, table in split_rows(tables, lambda _, row: row % 3):
        dealt[split] += table.column("x").to_pylist()
    assert dealt == {"train": [0, 3], "valid": [1, 4], "test": [2, 5]}


def test_text_is_read_in_blocks_and_gzip_reads_the_same(tmp_path: Path) -> None:
    lines = "".join(f"{n % 2}\tname{n}\t{n if n % 7 else ''}\n" for n in range(5000))
    (tmp_path / "a.tsv").write_text(lines)
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    plain = text_table(tmp_path / "a.tsv", FIELDS, delimiter="\t")
    assert plain.num_rows == 5000
    assert plain.column("size").null_count == 715  # 0, 7, ..., 4998
    assert plain.column("name").to_pylist()[4321] == "name4321"
    assert plain == text_table(tmp_path / "a.tsv.gz", FIELDS, delimiter="\t")
    assert count_lines(tmp_path / "a.tsv") == count_lines(tmp_path / "a.tsv.gz") == 5000


def test_the_last_line_needs_no_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"1\ta\t1\n0\tb\t2")
    assert count_lines(path) == text_table(path, FIELDS, delimiter="\t").num_rows == 2
    path.write_bytes(b"")
    assert count_lines(path) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1\ta", r"line 4,001; expected 3 fields; found 2"),
        (b"1\ta\t2\t3", r"line 4,001; expected 3 fields; found 4"),
        (b"1\ta\tmany", r"line 4,001; expected a whole number in field size; found invalid value 'many'"),
        (b"300\ta\t1", r"line 4,001; expected a whole number in field label"),
        (b"1\t\xff\t1", r"line 4,001; expected UTF-8 text in field name"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embstore.datasets.text.BLOCK_BYTES", 4096)  # far from the first block
    lines = [b"1\ta\t%d" % n for n in range(5000)]
    lines[4000] = line
    (tmp_path / "a.tsv").write_bytes(b"\n".join(lines))
    with pytest.raises(DatasetError, match=rf"a\.tsv, {message}"):
        text_table(tmp_path / "a.tsv", FIELDS, delimiter="\t")


def test_a_bad_line_below_a_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,name,size\n1,a,1\n1,a,x\n")
    with pytest.raises(DatasetError, match=r"a\.csv, line 3; expected a whole number in field size; found .*'x'"):
        text_table(tmp_path / "a.csv", FIELDS, delimiter=",", header=True)


def test_another_header_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("label,size,name\n1,1,a\n")
    with pytest.raises(DatasetError, match=r"the first line; expected label,name,size; found label,size,name"):
        text_table(tmp_path / "a.csv", FIELDS, delimiter=",", header=True)


def test_a_truncated_gzip_is_an_error(tmp_path: Path) -> None:
    whole = gzip.compress("".join(f"1\tname{n * 7919}\t{n}\n" for n in range(20_000)).encode())
    (tmp_path / "a.tsv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"a\.tsv\.gz.*expected a whole, readable file"):
        list(text_tables(tmp_path / "a.tsv.gz", FIELDS, delimiter="\t"))
    with pytest.raises(DatasetError, match=r"a\.tsv\.gz"):
        count_lines(tmp_path / "a.tsv.gz")


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").touch()
    with pytest.raises(DatasetError, match=r"a\.tsv; expected rows; found an empty file"):
        list(text_tables(tmp_path / "a.tsv", FIELDS, delimiter="\t"))
