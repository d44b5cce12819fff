"""The log reader: every row once, an order that is a pure function, resumption from any cursor, flat memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embstore.batch import Batch
from embstore.errors import LogError
from embstore.logs import Cursor, ParquetLog
from embstore.schema import Schema

SCHEMA = Schema.from_dict(
    {"label": "y", "group": "id", "features": ["id", {"name": "l", "pooling": "mean"}], "dense": ["x"]}
)
ROWS = 1000


def _table(start: int, rows: int) -> pa.Table:
    ids = np.arange(start, start + rows)
    lists = [None if i % 11 == 0 else [f"v{i % 7}"] * (i % 4) for i in ids]
    columns = {"id": ids, "l": pa.array(lists, pa.list_(pa.string())), "x": ids.astype(np.float64), "y": ids % 2}
    return pa.table(columns)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of uneven row groups; the dense column x is the row's number."""
    path = tmp_path_factory.mktemp("log")
    for number, (start, stop, group) in enumerate([(0, 130, 50), (130, 700, 200), (700, ROWS, 90)]):
        pq.write_table(_table(start, stop - start), path / f"part-{number}.parquet", row_group_size=group)
    (path / "_SUCCESS").write_text("")
    (path / "_temporary.parquet").write_text("not data")
    return path


def _numbers(batches: list[Batch]) -> list[int]:
    return [int(x) for batch in batches for x in batch.dense_BD[:, 0]]


def _same(one: Batch, other: Batch) -> bool:
    offsets = zip(one.tokens.offsets.values(), other.tokens.offsets.values(), strict=True)
    return (
        torch.equal(one.tokens.values_N, other.tokens.values_N)
        and all(torch.equal(a, b) for a, b in offsets)
        and torch.equal(one.dense_BD, other.dense_BD)
        and torch.equal(one.label_B, other.label_B)  # type: ignore[arg-type]
        and torch.equal(one.group_B, other.group_B)  # type: ignore[arg-type]
        and one.cursor == other.cursor
    )


@settings(max_examples=30)
@given(
    size=st.integers(1, 1200),
    window=st.sampled_from([0, 1, 64, 333, 5000]),
    seed=st.integers(0, 9),
    prefetch=st.integers(1, 4),
)
def test_every_row_once_an_epoch(folder: Path, size: int, window: int, seed: int, prefetch: int) -> None:
    log = ParquetLog(folder, SCHEMA)
    batches = list(log.batches(size, shuffle_window=window, seed=seed, epochs=2, prefetch=prefetch))
    assert len(batches) == 2 * log.batch_count(size)
    numbers = _numbers(batches)
    assert sorted(numbers[:ROWS]) == list(range(ROWS))
    assert sorted(numbers[ROWS:]) == list(range(ROWS))
    if window == 0:
        assert numbers[:ROWS] == list(range(ROWS))
    for batch in batches:
        assert torch.equal(batch.label_B, batch.dense_BD[:, 0] % 2)  # a row stays a row
        values, offsets = batch.tokens.feature("l")
        lengths = [1 if int(x) % 11 == 0 else int(x) % 4 for x in batch.dense_BD[:, 0]]
        assert offsets.diff().tolist() == lengths  # type: ignore[union-attr]
        assert len(values) == sum(lengths)


@settings(max_examples=30)
@given(data=st.data(), size=st.integers(20, 400), window=st.sampled_from([0, 64, 333, 5000]))
def test_resumes_at_any_batch(folder: Path, data: st.DataObject, size: int, window: int) -> None:
    log = ParquetLog(folder, SCHEMA)
    whole = list(log.batches(size, shuffle_window=window, seed=1, epochs=3))
    at = data.draw(st.integers(0, len(whole) - 1))
    cursor = Cursor(**whole[at].cursor.to_dict())
    rest = list(log.batches(size, cursor=cursor, shuffle_window=window, seed=1, epochs=3))
    assert len(rest) == len(whole) - at - 1
    assert all(_same(one, other) for one, other in zip(rest, whole[at + 1 :], strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_each_batch(folder: Path, world_size: int) -> None:
    log = ParquetLog(folder, SCHEMA)
    whole = list(log.batches(150, shuffle_window=400, seed=2))
    parts = [
        list(log.batches(150, shuffle_window=400, seed=2, rank=r, world_size=world_size)) for r in range(world_size)
    ]
    for number, batch in enumerate(whole):
        assert _numbers([batch]) == _numbers([part[number] for part in parts])
        assert all(part[number].cursor == batch.cursor for part in parts)


@pytest.mark.parametrize(("size", "window"), [(64, 256), (150, 400), (90, 10_000)])
def test_windows_apart_are_the_batches(folder: Path, size: int, window: int) -> None:
    log = ParquetLog(folder, SCHEMA)
    whole = list(log.batches(size, shuffle_window=window, seed=2))
    how: dict[str, int] = {"shuffle_window": window, "seed": 2}
    at = 0
    together = log.rows_and_orders(size, **how)
    for start, count in log.windows(size, shuffle_window=window):
        for rows, orders in (next(log.rows_and_orders(size, start=start, **how)), next(together)):
            assert len(orders) == count
            apart = [rows.batch(order) for order in orders]
            for part, other in zip(apart, whole[at : at + count], strict=True):
                assert _same(replace(part, cursor=other.cursor), other)
        at += count
    assert at == len(whole)
    assert next(together, None) is None


def test_order_depends_on_seed_and_epoch_alone(folder: Path) -> None:
    log = ParquetLog(folder, SCHEMA)
    orders = [_numbers(list(log.batches(100, shuffle_window=300, seed=seed, epochs=2))) for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0][:ROWS] != orders[0][ROWS:]


def test_file_folder_glob_list_and_uri_are_the_same_log(folder: Path) -> None:
    files = sorted(folder.glob("part-*.parquet"))
    sources = [
        folder,
        str(folder),
        f"{folder}/part-*.parquet",
        files,
        folder.as_uri(),
        f"{folder.as_uri()}/part-*.parquet",
    ]
    logs = [ParquetLog(source, SCHEMA) for source in sources]
    assert {log.fingerprint for log in logs} == {logs[0].fingerprint}
    assert all(_numbers(list(log.batches(300))) == list(range(ROWS)) for log in logs)
    assert ParquetLog(files[0], SCHEMA).rows == 130


def test_a_real_file_named_like_a_glob_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a[1] ü.parquet"
    pq.write_table(_table(0, 10), path)
    assert ParquetLog(path, SCHEMA).rows == 10


@pytest.mark.parametrize("pattern", ["*.parquet", "**/*.parquet", "*/*.parquet", "a/**/*.parquet", "[ab]/*.parquet"])
def test_globs_mean_the_same_in_a_uri(tmp_path: Path, pattern: str) -> None:
    for number, name in enumerate(["top", "a/one", "a/deep/two", "b/three"]):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(_table(0, 10 + number), path)
    local, uri = ParquetLog(f"{tmp_path}/{pattern}", SCHEMA), ParquetLog(f"{tmp_path.as_uri()}/{pattern}", SCHEMA)
    assert sorted(local.paths) == sorted(uri.paths)


def test_lists_mix_kinds_of_paths_but_no_file_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        pq.write_table(_table(0, 10), tmp_path / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)
    mixed = ParquetLog(["a.parquet", str(tmp_path / "b.parquet")], SCHEMA)
    assert mixed.fingerprint == ParquetLog(tmp_path, SCHEMA).fingerprint
    with pytest.raises(LogError, match="twice"):
        ParquetLog(["a.parquet", "a.parquet"], SCHEMA)
    with pytest.raises(LogError, match="one file system"):
        ParquetLog(["a.parquet", "mock://b"], SCHEMA)


def test_other_rows_under_the_same_names_are_another_log(tmp_path: Path) -> None:
    prints = []
    for start in (0, 100_000):
        pq.write_table(_table(start, 100), tmp_path / "a.parquet")
        prints.append(ParquetLog(tmp_path, SCHEMA).fingerprint)
    assert prints[0] != prints[1]


def test_a_cursor_of_another_log_is_refused(folder: Path, tmp_path: Path) -> None:
    cursor = next(iter(ParquetLog(folder, SCHEMA).batches(100))).cursor
    pq.write_table(_table(0, 10), tmp_path / "a.parquet")
    with pytest.raises(LogError, match="not the one this run was reading"):
        next(iter(ParquetLog(tmp_path, SCHEMA).batches(5, cursor=cursor)))


def test_leaving_early_stops_the_threads(folder: Path) -> None:
    before = set(threading.enumerate())
    batches = ParquetLog(folder, SCHEMA).batches(10, epochs=None, shuffle_window=100)
    next(batches)
    batches.close()
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert {
        name for name in left if not name.startswith("embstore-kernels")
    } == set()  # those are the process's own pool


_MEASURE = """
import resource, sys
from embstore.logs import ParquetLog
from embstore.schema import Schema
schema = Schema.from_dict({"label": "click", "features": ["user_id", "item_id", "tags"], "dense": ["price"]})
log = ParquetLog(sys.argv[1], schema)
rows = sum(len(batch) for batch in log.batches(4096, shuffle_window=100_000))
assert rows == log.rows
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_is_flat_in_the_length_of_the_log(tmp_path: Path) -> None:
    """A log of ten shuffle windows needs hardly more than one of two."""
    from embstore.synthetic import SyntheticLog

    peaks = []
    for rows in (200_000, 1_000_000):
        SyntheticLog(rows=rows).write(tmp_path / str(rows))
        command = [sys.executable, "-c", _MEASURE, str(tmp_path / str(rows))]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] < 1.2 * peaks[0], peaks
