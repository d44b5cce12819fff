"""Avazu: a CSV with a header; the hour becomes a timestamp, the last two days valid and test."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embstore import datasets
from embstore.errors import DatasetError
from embstore.logs import ParquetLog

HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
    "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)


def line(number: int, hour: str) -> str:
    texts = ",".join(f"{number:04x}{field:04x}" for field in range(9))
    return f"{10**19 + number},{number % 2},{hour},1005,0,{texts},1,0,{15_000 + number},320,50,1722,0,35,-1,79"


def raw(folder: Path, hours: list[str], name: str = "train.csv") -> Path:
    folder.mkdir()
    text = "\n".join([HEADER, *(line(number, hour) for number, hour in enumerate(hours))]) + "\n"
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return folder


def numbers(result: datasets.Conversion, split: str) -> list[int]:
    return [value - 15_000 for value in pq.read_table(result.split(split)).column("C14").to_pylist()]


@pytest.mark.parametrize("name", ["train.csv", "train.gz", "train.csv.gz"])
def test_the_last_days_are_valid_and_test(tmp_path: Path, name: str) -> None:
    # Not in the order of time on purpose.
    hours = ["14102100", "14102223", "14102412", "14102301", "14102113", "14102423", "14102300"]
    result = datasets.convert("avazu", raw(tmp_path / "raw", hours, name), tmp_path / "out")
    assert [numbers(result, split) for split in ("train", "valid", "test")] == [[0, 1, 4], [3, 6], [2, 5]]
    assert "2014-10-24 is test" in result.rule
    assert pq.read_table(result.split("train")).column("timestamp").to_pylist() == [
        datetime(2014, 10, 21),
        datetime(2014, 10, 22, 23),
        datetime(2014, 10, 21, 13),
    ]


def test_columns_and_schema(tmp_path: Path) -> None:
    hours = ["14102100", "14102200", "14102323"]
    result = datasets.convert("avazu", raw(tmp_path / "raw", hours), tmp_path / "out")
    columns = HEADER.split(",")
    assert pq.read_schema(result.split("train") / "part-00000.parquet").names == ["timestamp", "click", *columns[3:]]
    assert [feature.name for feature in result.schema.features] == ["hour", "weekday", *columns[3:]]
    batch = next(iter(ParquetLog(result.split("test"), result.schema).batches(8)))
    assert batch.label_B is not None
    assert batch.label_B.tolist() == [0.0]
    assert batch.tokens.names[:2] == ("hour", "weekday")


def test_fewer_than_three_days_are_split_in_order(tmp_path: Path) -> None:
    result = datasets.convert("avazu", raw(tmp_path / "raw", ["14102100"] * 12 + ["14102200"] * 8), tmp_path / "out")
    assert [numbers(result, split) for split in ("train", "valid", "test")] == [[*range(16)], [16, 17], [18, 19]]


@pytest.mark.parametrize("hour", ["14132100", "141021", "1410210", "14102124", "tomorrow", ""])
def test_a_bad_hour_is_named_with_its_line(tmp_path: Path, hour: str) -> None:
    source = raw(tmp_path / "raw", ["14102100", "14102200", hour, "14102300"])
    with pytest.raises(DatasetError, match=r"train\.csv, line 4; expected YYMMDDHH in field hour"):
        datasets.convert("avazu", source, tmp_path / "out")


def test_a_short_line_is_named(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", ["14102100", "14102200"])
    with (source / "train.csv").open("a") as file:
        file.write("1,2,3\n")
    with pytest.raises(DatasetError, match=r"train\.csv, line 4; expected 24 fields; found 3"):
        datasets.convert("avazu", source, tmp_path / "out")


def test_the_sample_keeps_its_split(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    source = shared_data("avazu-sample")
    result = datasets.convert("avazu", source, tmp_path / "out")
    assert result.rows == {"train": 8087, "valid": 480, "test": 432}
    for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        with (source / f"{name}.csv").open() as file:
            lines = list(csv.reader(file))
        expected = lines[1:] if lines[0][0] == "id" else lines
        table = pq.read_table(result.split(split)).drop_columns("timestamp")
        assert [[str(value) for value in row.values()] for row in table.to_pylist()] == [
            [fields[1], *fields[3:]] for fields in expected
        ]
