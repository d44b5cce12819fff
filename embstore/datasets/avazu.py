"""Avazu click-through rate prediction: 22 categories of ten days of mobile ads.

A CSV with a header. ``hour`` (YYMMDDHH, UTC) becomes the column ``timestamp``, from which the schema takes the features
``hour`` and ``weekday``; ``id``, different in every row, is dropped. With three days or more, the last day is test and
the one before it valid, so that the model is judged on days it hasn't seen; else the first 80% of the lines are train,
the next 10% valid. (The Avazu_x1 and x4 splits of BARS are random, and so see the test days in training: figures don't
compare.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embstore.datasets.conversion import Raw, by_order, find, find_splits, not_found, presplit_rows, split_rows
from embstore.datasets.text import count_lines, first_line, text_tables
from embstore.errors import DatasetError
from embstore.schema import Feature, Schema

_TEXT = (
    "site_id",
    "site_domain",
    "site_category",
    "app_id",
    "app_domain",
    "app_category",
    "device_id",
    "device_ip",
    "device_model",
)
TYPES = {
    **{"id": pa.string(), "click": pa.int8(), "hour": pa.string(), "C1": pa.int32(), "banner_pos": pa.int32()},
    **dict.fromkeys(_TEXT, pa.string()),
    **dict.fromkeys(("device_type", "device_conn_type"), pa.int32()),
    **{f"C{number}": pa.int32() for number in range(14, 22)},
}
SCHEMA = Schema(
    label="click",
    features=(
        Feature(name="hour", column="timestamp", transform="hour"),
        Feature(name="weekday", column="timestamp", transform="weekday"),
        *(Feature(name=name) for name in TYPES if name not in ("id", "click", "hour")),
    ),
)


def open_raw(source: Path) -> Raw:
    """From ``train.gz``, ``train.csv`` or ``train.csv.gz``, or train, dev and test files that are split already."""
    suffixes = (".csv", ".csv.gz", ".gz")
    if splits := find_splits(source, "{}", *suffixes):
        return Raw(
            files=tuple(splits.values()),
            schema=SCHEMA,
            rule="as the source files are split",
            rows=lambda: presplit_rows(splits, _tables),
        )
    path = source if source.is_file() else find(source, *(f"train{suffix}" for suffix in suffixes))
    if path is None:
        raise not_found("avazu", source, "train.gz, train.csv or train.csv.gz (or train, dev and test .csv)")
    days = sorted({day for table in _tables(path, only=("hour",)) for day in np.unique(_days(table))})
    if len(days) < 3:
        rows = count_lines(path) - _has_header(path)
        rule = f"in order ({len(days)} day{'s' * (len(days) != 1)} only): 80% train, 10% valid, 10% test"
        return Raw(files=(path,), schema=SCHEMA, rule=rule, rows=lambda: split_rows(_tables(path), by_order(rows)))
    last_two = np.array(days[-2:])
    return Raw(
        files=(path,),
        schema=SCHEMA,
        rule=f"by day: {days[-1]} is test, {days[-2]} is valid, the {len(days) - 2} days before are train",
        rows=lambda: split_rows(_tables(path), lambda table, _: np.searchsorted(last_two, _days(table), side="right")),
    )


def _tables(path: Path, only: tuple[str, ...] = ()) -> Iterator[pa.Table]:
    line = 1 + _has_header(path)
    for table in text_tables(path, TYPES, delimiter=",", header=_has_header(path), only=only):
        timestamp = _timestamps(table.column("hour"), path, line)
        line += table.num_rows
        kept = [name for name in table.column_names if name not in ("id", "click", "hour")]
        columns = {name: table.column(name) for name in ("click", *kept) if name in table.column_names}
        yield pa.table({"timestamp": timestamp, **columns})


def _timestamps(hours: pa.ChunkedArray, path: Path, line: int) -> pa.ChunkedArray:
    """YYMMDDHH -> the beginning of the hour; ``line`` is that of the first."""
    timestamps = pc.strptime(hours, "%y%m%d%H", "us", error_is_null=True)
    good = pc.and_(pc.match_substring_regex(hours, r"^\d{8}$"), timestamps.is_valid()).fill_null(False).to_numpy()
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise DatasetError(
            f"{path}, line {line + row:,}", expected="YYMMDDHH in field hour", found=repr(hours[row].as_py())
        )
    return timestamps


def _days(table: pa.Table) -> NDArray[np.datetime64]:
    return table.column("timestamp").to_numpy().astype("datetime64[D]")


def _has_header(path: Path) -> bool:
    return first_line(path).startswith("id,")
