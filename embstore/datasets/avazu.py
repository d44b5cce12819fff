"""Avazu click-through rate prediction: 22 categories of ten days of mobile ads.

A CSV with a header. ``hour`` (YYMMDDHH, UTC) becomes the column ``timestamp``, from which the schema takes the features
``hour`` and ``weekday``; ``id``, different in every row, is dropped. With three days or more, the last day is test and the one
before it valid, so that the model is judged on days it hasn't seen; else the first 80% of the lines are train, the next 10%
valid. (The Avazu_x1 and x4 splits of BARS are random, and so see the test days in training: figures don't compare.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embstore.datasets.conversion import (
    Raw,
    by_order,
    count_lines,
    find,
    find_splits,
    first_line,
    not_found,
    presplit_rows,
    split_rows,
    text_tables,
)
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
_DAY = np.timedelta64(1, "D")


def open_raw(source: Path) -> Raw:
    """From ``train.gz``, ``train.csv`` or ``train.csv.gz``, or train, dev and test files that are split already."""
    suffixes = (".csv", ".csv.gz", ".gz")
    if splits := find_splits(source, "{}", *suffixes):
        if all(_is_labelled(path) for path in splits.values()):
            return Raw(
                files=tuple(splits.values()),
                schema=SCHEMA,
                rule="as the source files are split",
                rows=lambda: presplit_rows(splits, _tables),
            )
    path = source if source.is_file() else find(source, *(f"train{suffix}" for suffix in suffixes))
    if path is None:
        raise not_found("avazu", source, "train.gz, train.csv or train.csv.gz (or train, dev and test .csv)")
    days = sorted(set().union(*(np.unique(_days(table)) for table in _tables(path))))
    if len(days) < 3:
        rows = count_lines(path) - _has_header(path)
        rule = f"in order ({len(days)} day{'s' * (len(days) != 1)} only): 80% train, 10% valid, 10% test"
        return Raw(
            files=(path,), schema=SCHEMA, rule=rule, rows=lambda: split_rows(_tables(path), by_order(rows))
        )
    last_two = np.array(days[-2:])
    return Raw(
        files=(path,),
        schema=SCHEMA,
        rule=f"by day: {days[-1]} is test, {days[-2]} is valid, the {len(days) - 2} days before are train",
        rows=lambda: split_rows(_tables(path), lambda table, _: np.searchsorted(last_two, _days(table), side="right")),
    )
