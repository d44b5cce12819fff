"""Generated logs: the same rows however they are made, and a Bayes AUC that is right by brute force."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from embstore import synthetic
from embstore.errors import ConfigError, DataError
from embstore.logs import ParquetLog
from embstore.synthetic import CHUNK_ROWS, NULLABLE, SyntheticLog

SMALL = SyntheticLog(rows=2_000, days=4, users=50, items=60)
# Two chunks, the second short.
LONG = SyntheticLog(rows=CHUNK_ROWS + 5_000, days=3, users=300, items=200)


@pytest.fixture(scope="module")
def long_table() -> pa.Table:
    return LONG.table()


def test_the_same_settings_give_the_same_rows(long_table: pa.Table) -> None:
    again = SyntheticLog(rows=LONG.rows, days=3, users=300, items=200)
    assert again.bias == LONG.bias
    assert again.table() == long_table
    assert long_table.num_rows == LONG.rows


@pytest.mark.parametrize("changed", [{"seed": 1}, {"users": 51}, {"signal": 0.5}, {"drift": 0.1}, {"null_share": 0.2}])
def test_other_settings_give_other_rows(changed: dict[str, Any]) -> None:
    assert SyntheticLog(**{"rows": 2_000, "days": 4, "users": 50, "items": 60} | changed).table() != SMALL.table()


@given(st.lists(st.integers(0, LONG.rows), max_size=4), st.randoms())
@settings(max_examples=15)
def test_any_division_gives_the_same_rows(long_table: pa.Table, cuts: list[int], random: Any) -> None:
    bounds = sorted([0, *cuts, LONG.rows])
    parts = [range(start, stop) for start, stop in pairwise(bounds)]
    order = list(range(len(parts)))
    random.shuffle(order)  # workers finish in any order
    made = {number: LONG.table(parts[number]) for number in order}
    assert pa.concat_tables(made[number] for number in range(len(parts))) == long_table


def test_tables_are_cut_at_chunks(long_table: pa.Table) -> None:
    tables = list(LONG.tables(range(CHUNK_ROWS - 10, CHUNK_ROWS + 20)))
    assert [table.num_rows for table in tables] == [10, 20]
    assert list(LONG.tables(range(5, 5))) == []
    assert LONG.table(range(5, 5)).schema == long_table.schema


def test_files_hold_the_same_rows_however_they_are_cut(tmp_path: Path, long_table: pa.Table) -> None:
    steps: list[int] = []
    one = LONG.write(tmp_path / "one", progress=steps.append)
    many = LONG.write(tmp_path / "many", rows_per_file=20_000, compression="snappy")
    assert sum(steps) == LONG.rows
    assert [path.name for path in one] == ["part-00000.parquet"]
    assert [pq.ParquetFile(path).metadata.num_rows for path in many] == [20_000, 20_000, 20_000, LONG.rows - 60_000]
    assert pq.read_table(one) == pq.read_table(many) == long_table
    assert {path.name for path in (tmp_path / "many").iterdir()} == {path.name for path in many}


def test_writing_again_replaces_and_never_mixes(tmp_path: Path) -> None:
    assert SMALL.write(tmp_path) == SMALL.write(tmp_path)
    SMALL.write(tmp_path, rows=range(100))
    assert pq.read_table(tmp_path) == SMALL.table(range(100))
    SMALL.write(tmp_path / "three", rows_per_file=700)
    with pytest.raises(ConfigError, match=r"would mix logs; .*found part-00001\.parquet, part-00002\.parquet"):
        SMALL.write(tmp_path / "three", rows=range(100))
    assert pq.read_table(tmp_path / "three") == SMALL.table()


def test_a_write_cut_short_leaves_no_half_file(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LONG.write(tmp_path, progress=stop)
    assert list(tmp_path.iterdir()) == []


def brute_force_auc(label: np.ndarray, score: np.ndarray) -> float:
    positive, negative = score[label == 1], score[label == 0]
    pairs = positive[:, None] - negative[None, :]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_bayes_auc_is_the_share_of_ordered_pairs() -> None:
    table = SMALL.table()
    label, logit = table["click"].to_numpy(), SMALL.true_logits(table)
    assert SMALL.bayes_auc(table) == pytest.approx(brute_force_auc(label, logit), abs=1e-12)
    assert SMALL.bayes_auc(table) == pytest.approx(roc_auc_score(label, logit), abs=1e-12)


def test_expected_auc_is_the_ratio_of_expected_pairs() -> None:
    table = SMALL.table(range(300))
    p = SMALL.probabilities(table)
    above = (p[:, None] > p[None, :]) + 0.5 * (p[:, None] == p[None, :])
    weight = p[:, None] * (1 - p[None, :])  # row i is a click, row j is none
    np.fill_diagonal(weight, 0.0)
    assert SMALL.expected_auc(table) == pytest.approx((weight * above).sum() / weight.sum(), abs=1e-12)


def test_expected_auc_is_the_mean_over_labels_drawn_anew() -> None:
    p = SMALL.probabilities(range(2_000))
    rng = np.random.default_rng(0)
    drawn = [roc_auc_score(rng.random(len(p)) < p, p) for _ in range(400)]
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - SMALL.expected_auc(range(2_000))) < 4 * error + 1e-4


def test_no_signal_is_a_coin_toss() -> None:
    log = SyntheticLog(rows=500, days=1, users=20, items=20, signal=0, base_rate=0.3)
    assert log.probabilities(range(500)) == pytest.approx(0.3, abs=1e-5)
    assert log.expected_auc(range(500)) == pytest.approx(0.5, abs=1e-12)


def test_more_signal_is_a_higher_auc() -> None:
    aucs = [
        SyntheticLog(rows=3_000, days=4, users=50, items=60, signal=signal).expected_auc(range(3_000))
        for signal in (0.0, 0.5, 1.0, 2.0)
    ]
    assert aucs == sorted(aucs)
    assert aucs[-1] > 0.8


def test_labels_follow_the_probabilities(long_table: pa.Table) -> None:
    p, label = LONG.probabilities(long_table), long_table["click"].to_numpy()
    # In each tenth of the rows by probability, clicks are what a binomial of these probabilities gives.
    for tenth in np.array_split(np.argsort(p), 10):
        deviation = np.sqrt((p[tenth] * (1 - p[tenth])).sum())
        assert abs(label[tenth].sum() - p[tenth].sum()) < 4 * deviation
    assert abs(p.mean() - LONG.base_rate) < 0.01


def test_ranges_tables_and_files_have_the_same_truth(tmp_path: Path) -> None:
    rows = range(300, 1_100)
    files = SMALL.write(tmp_path, rows=rows, rows_per_file=250)
    logits = SMALL.true_logits(rows)
    assert logits.shape == (800,)
    assert np.array_equal(logits, SMALL.true_logits(SMALL.table(rows)))
    assert np.array_equal(logits, SMALL.true_logits(tmp_path))
    assert np.array_equal(logits, SMALL.true_logits(files))
    assert SMALL.bayes_auc(rows) == SMALL.bayes_auc(tmp_path)
    # What the rows show decides, not their order.
    order = np.random.default_rng(0).permutation(800)
    assert np.array_equal(logits[order], SMALL.true_logits(SMALL.table(rows).take(pa.array(order))))
    assert SMALL.true_logits(range(0)).shape == (0,)


def test_days_follow_each_other_and_their_rows_are_of_that_day() -> None:
    log = SyntheticLog(rows=1_001, days=7, users=20, items=20)
    ranges = [log.day_rows(day) for day in range(7)]
    assert [row for days in ranges for row in days] == list(range(1_001))
    assert log.day_rows(2, 5) == range(ranges[2].start, ranges[4].stop)
    for day, rows in enumerate(ranges):
        shown = log.table(rows)["timestamp"].to_numpy().astype("datetime64[D]")
        assert set(shown) == {np.datetime64(log.start, "D") + day}
    times = log.table()["timestamp"].to_numpy()
    assert (np.diff(times) >= np.timedelta64(0)).all()


@pytest.mark.parametrize(("first", "stop"), [(-1, None), (4, None), (2, 2), (3, 2), (0, 5)])
def test_days_outside_the_log(first: int, stop: int | None) -> None:
    with pytest.raises(ConfigError, match="synthetic log: days; expected 0 <= first < stop <= 4"):
        SMALL.day_rows(first, stop)


def head(log: SyntheticLog, day: int) -> set[int]:
    """The 40 most frequent items of a day."""
    values = log.table(log.day_rows(day))["item_id"].value_counts().to_pylist()
    return {entry["values"] for entry in sorted(values, key=lambda entry: -entry["counts"])[:40]}


def test_popular_items_change_with_the_days_and_some_stay() -> None:
    still, moving = (SyntheticLog(rows=40_000, days=8, users=50, items=400, drift=drift) for drift in (0, 0.05))
    kept = [len(head(log, 0) & head(log, 7)) for log in (still, moving)]
    assert 10 < kept[1] < kept[0]


def test_nulls_are_where_they_are_said_to_be(long_table: pa.Table) -> None:
    for name in long_table.column_names:
        expected = LONG.null_share if name in NULLABLE and name != "tags" else 0  # of tags, null is an empty list
        assert long_table[name].null_count / LONG.rows == pytest.approx(expected, abs=0.005 if expected else 0)
    none = SyntheticLog(rows=500, days=1, users=20, items=20, null_share=0).table()
    assert sum(none[name].null_count for name in none.column_names) == 0
    every = SyntheticLog(rows=500, days=1, users=20, items=20, null_share=1)
    assert {name for name in NULLABLE if every.table()[name].null_count == 500} == set(NULLABLE) - {"tags"}
    assert np.isfinite(every.true_logits(range(500))).all()


def test_lists_hold_distinct_tags(long_table: pa.Table) -> None:
    lists = long_table["tags"].to_pylist()
    assert all(len(set(tags)) == len(tags) <= 5 for tags in lists)
    assert {len(tags) for tags in lists} == set(range(6))


def test_the_schema_reads_the_log(tmp_path: Path) -> None:
    SMALL.write(tmp_path)
    batches = list(ParquetLog(tmp_path, SMALL.schema()).batches(256))
    assert sum(map(len, batches)) == SMALL.rows
    labels = np.concatenate([batch.label_B.numpy() for batch in batches])  # type: ignore[union-attr]
    assert np.array_equal(labels, SMALL.table()["click"].to_numpy().astype(np.float32))


def test_rows_of_another_log_are_refused() -> None:
    other = SyntheticLog(rows=2_000, days=4, users=900, items=60).table()
    with pytest.raises(DataError, match="these rows are of another log; expected users and items of SyntheticLog"):
        SMALL.true_logits(other)
    missing = SMALL.table().set_column(3, "item_id", pa.nulls(2_000, pa.int64()))
    with pytest.raises(DataError, match="another log"):
        SMALL.true_logits(missing)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, "rows; expected 1 or more; found 0"),
        ({"days": 0}, "days; expected 1 or more; found 0"),
        ({"users": 0}, "users; expected 1 or more; found 0"),
        ({"items": 1}, "items; expected 2 or more; found 1"),
        ({"seed": -1}, "seed; expected 0 or more; found -1"),
        ({"signal": -0.5}, "signal; expected 0 or more; found -0.5"),
        ({"base_rate": 0.0}, "base_rate; expected between 0 and 1; found 0.0"),
        ({"base_rate": 1.0}, "base_rate; expected between 0 and 1; found 1.0"),
        ({"null_share": 1.5}, "null_share; expected 0 to 1; found 1.5"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"synthetic log: {message}"):
        SyntheticLog(**settings)


@pytest.mark.parametrize("rows", [range(-1, 5), range(0, 2_001), range(0, 10, 2)])
def test_rows_outside_the_log(rows: range) -> None:
    with pytest.raises(ConfigError, match="synthetic log: rows; expected a range within 0 to 2000"):
        list(SMALL.tables(rows))


def test_rows_per_file_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rows_per_file; expected 1 or more; found 0"):
        SMALL.write(tmp_path, rows_per_file=0)


def test_a_log_of_one_row_works() -> None:
    log = SyntheticLog(rows=1, days=1, users=1, items=2)
    assert log.table().num_rows == 1
    assert log.true_logits(range(1)).shape == (1,)


@pytest.mark.parametrize("days", [1, 3, 8])
def test_ids_are_one_to_one(days: int) -> None:
    log = SyntheticLog(rows=20_000, days=days, users=100, items=100, user_exponent=0, item_exponent=0)
    table = log.table()
    assert len(set(table["user_id"].to_pylist())) == 100
    assert len(set(table["item_id"].to_pylist())) == 100


def test_nothing_but_the_seed_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = SMALL.table(range(50))
    np.random.seed(7)  # the global state must not matter
    state = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    assert SyntheticLog(rows=2_000, days=4, users=50, items=60).table(range(50)) == expected
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index, union-attr]
    assert synthetic.CHUNK_ROWS == 65_536  # part of what a seed means
