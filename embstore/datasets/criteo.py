"""Criteo display advertising challenge: 13 counts, 26 hashed categories, a click.

Each line has 40 fields, tab-separated, without a header: label, I1-I13, C1-C26; an empty field is missing. Lines run
over seven consecutive days, about the same number a day, and have no dates. The split is the one of DCN (Wang et al.
2017, "Deep & Cross Network for Ad Click Predictions", section 4.1) and DLRM (Naumov et al. 2019): six days to train on,
the seventh in halves. They halve it at random; here its lines go to valid and test in turn, which needs no second pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from embstore.datasets.conversion import Raw, find, find_splits, not_found, presplit_rows, split_rows
from embstore.datasets.text import count_lines, text_tables
from embstore.schema import Dense, Feature, Schema

INTEGERS = tuple(f"I{number}" for number in range(1, 14))
CATEGORIES = tuple(f"C{number}" for number in range(1, 27))
TYPES = {"label": pa.int8(), **dict.fromkeys(INTEGERS, pa.int64()), **dict.fromkeys(CATEGORIES, pa.string())}
SCHEMA = Schema(
    label="label",
    features=tuple(Feature(name=name) for name in CATEGORIES),
    dense=tuple(Dense(name=name) for name in INTEGERS),
)


def open_raw(source: Path) -> Raw:
    """From ``train.txt[.gz]`` (the official file), or train, dev and test files that are split already."""
    suffixes = (".tsv", ".txt", ".tsv.gz", ".txt.gz")
    if splits := find_splits(source, "{}", *suffixes):
        return Raw(
            files=tuple(splits.values()),
            schema=SCHEMA,
            rule="as the source files are split",
            rows=lambda: presplit_rows(splits, _tables),
        )
    path = source if source.is_file() else find(source, *(f"train{suffix}" for suffix in suffixes))
    if path is None:
        raise not_found("criteo", source, "train.txt or train.txt.gz (or train, dev and test .tsv)")
    lines = count_lines(path)
    train = lines * 6 // 7
    return Raw(
        files=(path,),
        schema=SCHEMA,
        rule="in order: the first 6/7 (six of seven days) are train; the rest goes to valid and test in turn",
        rows=lambda: split_rows(_tables(path), lambda _, row: (row >= train) * (1 + (row - train) % 2)),
    )


def _tables(path: Path) -> Iterator[pa.Table]:
    return text_tables(path, TYPES, delimiter="\t")
