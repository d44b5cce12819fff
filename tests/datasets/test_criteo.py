"""Criteo: 40 tab-separated fields, empty is missing, six days and a seventh in halves."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embstore import datasets
from embstore.errors import DatasetError
from embstore.logs import ParquetLog


def line(number: int) -> str:
    integers = ["" if number % 5 == 0 else str(number - 2), *map(str, range(12))]
    return "\t".join([str(number % 2), *integers, *(f"{number:04x}{field:04x}" for field in range(25)), ""])


def raw(folder: Path, rows: int = 71) -> Path:
    folder.mkdir()
    (folder / "train.txt").write_text("".join(line(number) + "\n" for number in range(rows)))
    # The official test.txt has no labels, and is not read.
    (folder / "test.txt").write_text("\t".join(line(0).split("\t")[1:]) + "\n")
    return folder


def first_category(result: datasets.Conversion, split: str) -> list[int]:
    return [int(value[:4], 16) for value in pq.read_table(result.split(split)).column("C1").to_pylist()]


def test_fields_and_split(tmp_path: Path) -> None:
    result = datasets.convert("criteo", raw(tmp_path / "raw"), tmp_path / "out")
    train = pq.read_table(result.split("train"))
    assert train.column_names == ["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
    assert train.slice(1, 1).to_pylist()[0] == {
        "label": 1,
        "I1": -1,
        **{f"I{n + 2}": n for n in range(12)},
        **{f"C{n + 1}": f"0001{n:04x}" for n in range(25)},
        "C26": None,
    }
    assert train.column("I1").to_pylist()[:6] == [None, -1, 0, 1, 2, None]
    assert first_category(result, "train") == list(range(60))  # 71 * 6 // 7
    assert first_category(result, "valid") == list(range(60, 71, 2))
    assert first_category(result, "test") == list(range(61, 71, 2))


def test_gzip_and_a_file_as_source_give_the_same(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw")
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "train.txt.gz").write_bytes(gzip.compress((source / "train.txt").read_bytes()))
    results = [
        datasets.convert("criteo", given, tmp_path / f"out{number}")
        for number, given in enumerate((source, source / "train.txt", tmp_path / "zipped"))
    ]
    for split in ("train", "valid", "test"):
        first, *others = [pq.read_table(result.split(split)) for result in results]
        assert all(first == other for other in others)


def test_a_short_line_is_named(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw")
    lines = (source / "train.txt").read_text().split("\n")
    lines[16] = "\t".join(lines[16].split("\t")[:37])
    (source / "train.txt").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=r"train\.txt, line 17; expected 40 fields; found 37"):
        datasets.convert("criteo", source, tmp_path / "out")


def test_quotes_are_text(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw")
    text = (source / "train.txt").read_text().replace("00030004", '"003')
    (source / "train.txt").write_text(text)
    result = datasets.convert("criteo", source, tmp_path / "out")
    assert pq.read_table(result.split("train")).column("C5")[3].as_py() == '"003'


def test_the_sample_keeps_its_split(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    source = shared_data("criteo-sample")
    result = datasets.convert("criteo", source, tmp_path / "out")
    assert result.rows == {"train": 7200, "valid": 409, "test": 391}
    for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        expected = [row.split("\t") for row in (source / f"{name}.tsv").read_text().rstrip("\n").split("\n")]
        table = pq.read_table(result.split(split))
        shown = [["" if value is None else str(value) for value in row.values()] for row in table.to_pylist()]
        assert shown == expected
    batch = next(iter(ParquetLog(result.split("train"), result.schema).batches(64)))
    assert (batch.tokens.rows, len(batch.tokens.names), batch.dense_BD.shape[1]) == (64, 26, 13)
