"""Frappe: which app a phone's user opened, in which context; negatives are drawn.

Ten categories as one numbering over all fields (the split and numbering of Frappe_x1, made by AFN, Cheng et al. 2020,
from the files of NFM, He and Chua 2017). Read from train, valid and test, as ``.parquet``, as ``.csv`` with a header
(BARS), or as ``.libfm`` (NFM): a label 1 or -1, then ``number:1`` for each field.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embstore.datasets.conversion import Raw, find_splits, not_found, presplit_rows
from embstore.datasets.text import text_tables
from embstore.errors import DatasetError
from embstore.schema import Feature, Schema

FIELDS = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
TYPES = {"label": pa.int8(), **dict.fromkeys(FIELDS, pa.int32())}
SCHEMA = Schema(label="label", group="user", features=tuple(Feature(name=name) for name in FIELDS))
_LIBFM_TYPES = {"label": pa.int8(), **dict.fromkeys(FIELDS, pa.string())}


def open_raw(source: Path) -> Raw:
    """From train, valid and test files; the split is kept."""
    splits = (
        find_splits(source, "{}", ".parquet")
        or find_splits(source, "{}", ".csv", ".csv.gz")
        or find_splits(source, "frappe.{}", ".libfm")
    )
    if splits is None:
        raise not_found(
            "frappe", source, "train, valid and test .csv or .parquet, or frappe.train.libfm and its two others"
        )
    return Raw(
        files=tuple(splits.values()),
        schema=SCHEMA,
        rule="as the source files are split (Frappe_x1: 7:2:1 at random)",
        rows=lambda: presplit_rows(splits, _tables),
    )


def _tables(path: Path) -> Iterator[pa.Table]:
    if path.suffix == ".parquet":
        yield _parquet(path)
    elif path.suffix == ".libfm":
        for table in text_tables(path, _LIBFM_TYPES, delimiter=" "):
            yield _libfm(table, path)
    else:
        yield from text_tables(path, TYPES, delimiter=",", header=True)


def _parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(TYPES)).cast(pa.schema(TYPES))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError(
            f"{path}", expected=f"Parquet with columns {', '.join(TYPES)}", found=str(error).split("\n")[0]
        ) from error


def _libfm(table: pa.Table, path: Path) -> pa.Table:
    columns = {"label": pc.equal(table.column("label"), 1).cast(pa.int8())}
    for name in FIELDS:
        values = table.column(name)
        wrong = pc.invert(pc.match_substring_regex(values, r"^\d+:1$").fill_null(False))
        if pc.any(wrong).as_py():
            found = values.filter(wrong)[0].as_py()
            raise DatasetError(f"{path}: field {name}", expected="number:1", found=repr(found))
        columns[name] = pc.utf8_slice_codeunits(values, 0, -2).cast(pa.int32())
    return pa.table(columns)
