"""Counts, clicks and times of a log's values. The judges: Python's own counting, and DuckDB."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embstore.aggregates import Brought, Kinds, Summary
from embstore.counting import count, time_type, times_of
from embstore.errors import DataError, LogError, SchemaError
from embstore.kernels.aggregate import KEY, fill_slots
from embstore.logs import ParquetLog
from embstore.merging import merged, split
from embstore.schema import Feature, Schema
from embstore.synthetic import SyntheticLog

KNOWN = ("value", "count", "clicks", "first_seen", "last_seen")


def _counted(path: Path, schema: Schema, time: str | None = None, **options: Any) -> dict[str, pa.Table]:
    log = ParquetLog(path, schema, also=() if time is None else (time,), labelled=schema.label is not None)
    found = count(log, time=time, **options)
    rows = {"range_rows": options["room"] // 400} if "room" in options else {}
    return {
        name: pa.concat_tables(list(merged(name, parts, **rows))).combine_chunks()
        for name, parts in found.parts.items()
    }


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Schema]:
    folder = tmp_path_factory.mktemp("log")
    generated = SyntheticLog(rows=200_000, users=60_000, items=3_000)
    generated.write(folder, rows_per_file=70_000)
    return folder, replace(generated.schema(), dense=(), group=None)


@pytest.fixture(scope="module")
def whole(log: tuple[Path, Schema]) -> dict[str, pa.Table]:
    return _counted(*log, "timestamp", threads=1)


def test_as_duckdb_counts(log: tuple[Path, Schema], whole: dict[str, pa.Table]) -> None:
    duckdb = pytest.importorskip("duckdb")
    folder, schema = log
    rows = f"read_parquet('{folder}/*.parquet')"
    values = {"hour": "hour(timestamp)", "weekday": "isodow(timestamp) - 1"}
    for feature in schema.features:
        value = values.get(feature.name, feature.name)
        if feature.name == "tags":
            value, source = "value", f"(select unnest(tags[1:5]) as value, click, timestamp from {rows})"
        else:
            source = rows
        least, greatest = "epoch_us(min(timestamp))", "epoch_us(max(timestamp))"
        query = f"select {value}, count(*), sum(click), {least}, {greatest} from {source} where {value} is not null"
        judged = duckdb.connect().sql(f"{query} group by 1 order by 1").fetchall()
        ours = whole[feature.name]
        assert list(zip(*(ours.column(name).to_pylist() for name in KNOWN), strict=True)) == judged


@pytest.mark.parametrize(
    "options", [{"threads": 2}, {"threads": 8}, {"room": 1 << 20}, {"room": 4 << 20, "threads": 2}]
)
def test_the_same_by_threads_and_in_little_memory(
    options: dict[str, Any], log: tuple[Path, Schema], whole: dict[str, pa.Table], tmp_path: Path
) -> None:
    found = _counted(*log, "timestamp", folder=tmp_path, **options)
    assert all(found[name].equals(table) for name, table in whole.items())
    runs = list(tmp_path.rglob("*.arrow"))
    assert bool(runs) == ("room" in options)


def _columns() -> st.SearchStrategy[pa.Array]:
    text = st.one_of(st.none(), st.text(st.sampled_from("ab\0é𝄞"), max_size=12))
    narrow = st.one_of(st.none(), st.integers(-128, 127))
    wide = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3))
    unsigned = st.one_of(st.none(), st.integers(0, 2**64 - 1), st.integers(0, 3))
    kinds = [
        (text, pa.string()),
        (text, pa.large_string()),
        (text, pa.dictionary(pa.int8(), pa.string())),
        (st.one_of(st.none(), st.binary(max_size=20)), pa.binary()),
        (narrow, pa.int8()),
        (wide, pa.int64()),
        (unsigned, pa.uint64()),
        (st.one_of(st.none(), st.booleans()), pa.bool_()),
        (st.one_of(st.none(), st.lists(text, max_size=4)), pa.list_(pa.string())),
        (st.one_of(st.none(), st.lists(wide, max_size=4)), pa.large_list(pa.int64())),
        (st.one_of(st.none(), st.lists(narrow, min_size=2, max_size=2)), pa.list_(pa.int8(), 2)),
        (st.none(), pa.null()),
    ]
    return st.sampled_from(kinds).flatmap(
        lambda of: st.lists(of[0], max_size=60).map(lambda values: pa.array(values, of[1]))
    )


@settings(deadline=None, max_examples=200)
@given(column=_columns(), data=st.data())
def test_any_blocks_give_the_same(column: pa.Array, data: st.DataObject) -> None:
    rows = len(column)
    clicks = np.array(data.draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows)), np.int64)
    times = np.array(data.draw(st.lists(st.integers(-5, 5), min_size=rows, max_size=rows)), np.int64)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, rows), max_size=4))), rows]
    feature = Feature(name="f", max_length=3)
    parts = []
    for low, high in pairwise(cuts):
        part = Summary("f")
        brought = Brought(clicks[low:high], times[low:high], times[low:high])
        part.add(pa.chunked_array([column.slice(low, high - low)]), feature, brought)
        parts.append(part)
    into = Summary("f")
    for part in data.draw(st.permutations(parts)):
        if data.draw(st.booleans()):
            into.join(part)
        else:
            into.absorb(part.sorted().table(), part.kinds)
    got = into.sorted().table()

    expected: dict[Any, list[int]] = {}
    for value, click, time in zip(column.to_pylist(), clicks.tolist(), times.tolist(), strict=True):
        for one in value[:3] if isinstance(value, list) else [value]:
            if one is not None:
                was = expected.setdefault(one, [0, 0, time, time])
                expected[one] = [was[0] + 1, was[1] + click, min(was[2], time), max(was[3], time)]
    assert got.to_pydict() == {
        "value": sorted(expected),
        **{name: [expected[value][k] for value in sorted(expected)] for k, name in enumerate(KNOWN[1:])},
    }


def test_texts_that_begin_alike_are_sorted() -> None:
    values = [f"https://example.org/{'long/' * (i % 7)}{i * i % 997}" for i in range(3_000)] + ["", "https", "h\0"]
    summary = Summary("f")
    summary.add(pa.chunked_array([values]), Feature(name="f"), Brought())
    table = summary.sorted().table()
    counted = Counter(values)
    assert table.column("value").to_pylist() == sorted(counted)
    assert table.column("count").to_pylist() == [counted[value] for value in sorted(counted)]
    assert table.column("first_seen").null_count == len(table)
    parts = split(table, ["https", "https://example.org/5"])
    assert pa.concat_tables(parts).equals(table)
    assert max(parts[1].column("value").to_pylist()) < "https://example.org/5"


@pytest.mark.parametrize("common", range(20))
def test_texts_in_and_beyond_an_entry_are_sorted(common: int) -> None:
    """An entry holds 16 bytes, of which 8 are sorted by: all lengths about these, and zeros that are no ends."""
    ends = [b"\0" * zeros + b"a" * letters for zeros in range(3) for letters in range(12)]
    values = [b"x" * common + end for end in [*ends, b"a\0", b"a\0b", b"a" * 17, b"a" * 16 + b"\0", b"\xff" * 9]]
    summary = Summary("f")
    summary.add(pa.chunked_array([pa.array(values[::-1] + values)]), Feature(name="f"), Brought())
    table = summary.sorted().table()
    assert table.column("value").to_pylist() == sorted(set(values))
    assert set(table.column("count").to_pylist()) == {2}


@pytest.mark.parametrize("tables", [1, 4])
def test_threads_that_add_while_values_are_taken(tables: int) -> None:
    """Values that were taken while the only table was written to were lost, or garbage."""
    columns = [
        pa.chunked_array([[f"{k * k % 40_009}-{'long' * (k % 9)}" for k in range(n, n + 20_000)]]) for n in range(24)
    ]
    summary, taken, over = Summary("f", tables=tables), Summary("f"), threading.Event()

    def add(part: int) -> None:
        for column in columns[part::3]:
            summary.add(column, Feature(name="f"), Brought())

    def take() -> None:
        while not over.is_set():
            taken.absorb(summary.taken().table())

    with ThreadPoolExecutor(4) as pool:
        taking = pool.submit(take)
        for adding in [pool.submit(add, part) for part in range(3)]:
            adding.result()
        over.set()
        taking.result()
    taken.join(summary)
    expected = Counter(value for column in columns for value in column.to_pylist())
    found = taken.sorted().table()
    assert dict(zip(found["value"].to_pylist(), found["count"].to_pylist(), strict=True)) == expected


def test_texts_of_one_hash_are_two_values() -> None:
    """Hashes of 64 bits don't meet by chance: entries are given one another's here."""
    summary = Summary("f")
    summary.add(pa.chunked_array([["ann", "bob"]]), Feature(name="f"), Brought())
    (table,) = summary._tables
    table.entries[0, KEY] = table.entries[1, KEY]  # "ann" with the hash of "bob"
    table._slots[:] = 0
    fill_slots(table.entries, 2, False, table._slots)
    summary.add(pa.chunked_array([["bob", "bob"]]), Feature(name="f"), Brought())
    assert summary.sorted().table().column("count").to_pylist() == [1, 3]


def test_times_may_be_missing_and_of_many_types(tmp_path: Path) -> None:
    schema = Schema(features=(Feature(name="f"),), label="y")
    day = datetime(2026, 3, 1)
    times = {
        "us": pa.array([None, day, day + timedelta(1), None]),
        "s": pa.array([None, day, day + timedelta(1), None], pa.timestamp("s", "Europe/Berlin")),
        "day": pa.array([None, date(2026, 3, 1), date(2026, 3, 2), None]),
        "number": pa.array([None, 1, 2, None], pa.int16()),
    }
    table = pa.table({"f": ["a", "b", "b", "b"], "y": [True, False, True, True], **times})
    pq.write_table(table, tmp_path / "log.parquet")
    for name, column in times.items():
        found = _counted(tmp_path, schema, name)["f"]
        low, high = times_of(pa.chunked_array([column]), name).to_pylist()[1:3]
        assert found.to_pydict() == {
            **{"value": ["a", "b"], "count": [1, 3], "clicks": [1, 2]},
            **{"first_seen": [None, low], "last_seen": [None, high]},
        }
    assert str(time_type(pa.timestamp("s", "Europe/Berlin"), "t")) == "timestamp[ms, tz=UTC]"
    with pytest.raises(SchemaError, match=r"time column 'f'; expected timestamps, dates or integers; found string"):
        _counted(tmp_path, schema, "f")
    with pytest.raises(SchemaError, match=r"'when' is not in the log"):
        _counted(tmp_path, schema, "when")


def test_what_cannot_be_counted(tmp_path: Path) -> None:
    schema = Schema(features=(Feature(name="f"),), label="y")
    with pytest.raises(LogError, match="no Parquet file"):
        _counted(tmp_path, schema)
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"f": pa.array([], pa.string()), "y": pa.array([], pa.int8())}), path)
    with pytest.raises(LogError, match="at least one row"):
        _counted(tmp_path, schema)
    pq.write_table(pa.table({"f": ["a", "b"], "y": [0, 2]}), path)
    with pytest.raises(DataError, match=r"label 'y'.*log.parquet.*expected 0 or 1; found 2"):
        _counted(tmp_path, schema)
    pq.write_table(pa.table({"f": ["a", "b" * 65_537], "y": [0, 1]}), path)
    with pytest.raises(DataError, match=r"values of 'f'; expected at most 65,536 bytes each; found one of 65,537"):
        _counted(tmp_path, schema)
    pq.write_table(pa.table({"f": [0.5, 1.5], "y": [0, 1]}), path)
    with pytest.raises(SchemaError, match="column 'f' can't be a feature"):
        _counted(tmp_path, schema)


def test_kinds_as_texts() -> None:
    kinds = Kinds((pa.int8(), pa.uint64()), None, 2**64 - 1)
    assert Kinds.from_metadata({key.encode(): of.encode() for key, of in kinds.to_metadata().items()}) == kinds
    assert Kinds.from_metadata(Kinds((), pa.large_string()).to_metadata()) == Kinds((), pa.large_string())
