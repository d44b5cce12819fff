"""Inference on columns made for a purpose, on generated logs and on real ones: what an expert would have written."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embstore import datasets
from embstore.errors import ConfigError, LogError, SchemaError
from embstore.logs import ParquetLog
from embstore.schema import Dense, Feature, Schema
from embstore.synthetic import SyntheticLog

N = 3000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


LABEL = pa.array((rng(99).random(N) < 0.3).astype(np.int8))


@pytest.fixture
def infer(tmp_path: Path) -> Callable[..., Schema]:
    """The schema of a log with these columns and a label."""

    def of(columns: dict[str, Any] | None = None, /, **more: Any) -> Schema:
        pq.write_table(pa.table({"label": LABEL, **(columns or {}), **more}), tmp_path / "log.parquet")
        return Schema.infer(tmp_path / "log.parquet", label="label")

    return of


def role(schema: Schema, name: str) -> str:
    """feature, log, linear or out."""
    assert name in schema.reasons
    if any(feature.source == name for feature in schema.features):
        return "feature"
    scales = [column.scale for column in schema.dense if column.source == name]
    if scales:
        return scales[0]
    assert schema.reasons[name].startswith("left out: ")
    return "out"


HASHES = rng(1).integers(0, 2**63, 500)
ZIPF = np.minimum(rng(2).zipf(1.3, N), 10**9)
DAY = dt.datetime(2024, 2, 29)
INTEGERS: dict[str, tuple[Any, str]] = {
    # What names say.
    "user_id": (rng(0).integers(0, 900, N), "feature"),
    "userid": (rng(0).poisson(20, N), "feature"),
    "countryCode": (rng(0).poisson(20, N), "feature"),
    "HTTPType": (rng(0).poisson(20, N), "feature"),
    "user_age": (rng(0).integers(18, 80, N), "linear"),
    "num_items": (rng(0).integers(0, 50, N), "linear"),
    "paid": (rng(0).poisson(40, N), "linear"),  # ends in id by chance
    "age_group": (rng(0).integers(0, 20, N), "feature"),
    "total_price": (np.exp(rng(0).normal(8, 1, N)).astype(np.int64), "log"),
    # What distributions say.
    "a_flag": (rng(0).integers(0, 2, N), "feature"),
    "a_few": (rng(0).integers(1, 6, N), "feature"),
    "a_poisson": (rng(0).poisson(30, N), "linear"),
    "a_geometric": (rng(0).geometric(0.05, N) - 1, "log"),
    "a_short_run": (np.minimum(rng(0).geometric(0.6, N) - 1, 5), "log"),
    "a_heavy_tail": (ZIPF, "log"),
    "a_hash": (HASHES[np.minimum(rng(0).zipf(1.4, N), 500) - 1], "feature"),
    "a_signed_hash": (HASHES[rng(0).integers(0, 500, N)] - 2**62, "feature"),
    "a_unique_measure": (rng(0).permutation(np.unique(rng(0).normal(10**7, 10**6, 2 * N).astype(int)))[:N], "linear"),
    "a_wide_hash": (rng(0).permutation(np.repeat(rng(0).integers(0, 2**40, N // 2), 2)), "feature"),
    "a_sparse_code": (rng(0).choice(np.array([36, 50, 90, 250, 480, *range(1000, 1040, 3)]), N), "feature"),
    "a_temperature": (rng(0).normal(5, 12, N).astype(np.int64), "linear"),
    "minus_one_is_missing": (np.where(rng(0).random(N) < 0.5, -1, rng(0).integers(100_000, 100_300, N)), "feature"),
    # What is of no use as it is.
    "row_id": (np.arange(N), "out"),
    "index": (rng(0).permutation(N) + 7, "out"),
    "when": (rng(0).integers(1_700_000_000, 1_700_900_000, N), "out"),
    "when_ms": (rng(0).integers(1_700_000_000_000, 1_700_900_000_000, N), "out"),
    "on": (rng(0).choice(np.array([20240228, 20240229, 20240301]), N), "out"),
    "constant": (np.full(N, 7), "out"),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(infer: Callable[..., Schema], name: str) -> None:
    values, expected = INTEGERS[name]
    schema = infer({name: values})
    assert role(schema, name) == expected, schema.reasons[name]
    assert any(character.isdigit() for character in schema.reasons[name])


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64()])
def test_every_integer_type_with_nulls(infer: Callable[..., Schema], kind: pa.DataType) -> None:
    codes = pa.array(rng().integers(0, 50, N), type=kind, mask=rng(1).random(N) < 0.2)
    counts = pa.array(np.minimum(rng().geometric(0.1, N) - 1, 120), type=kind, mask=rng(1).random(N) < 0.2)
    schema = infer(shop=codes, visits=counts)
    assert (role(schema, "shop"), role(schema, "visits")) == ("feature", "log")


def test_unsigned_ids_beyond_float_precision_are_counted_exactly(infer: Callable[..., Schema]) -> None:
    ids = pa.array([2**64 - 1 - n % 600 for n in range(N)], pa.uint64())
    assert "600 values in 3,000 rows" in infer(x=ids).reasons["x"]


def test_text_binary_bool_and_dictionary_are_features(infer: Callable[..., Schema]) -> None:
    words = pa.array([f"w{n % 40}" for n in range(N)])
    columns = {
        "text": words,
        "large": words.cast(pa.large_string()),
        "bytes": words.cast(pa.binary()),
        "fixed": pa.array([b"%04d" % (n % 9) for n in range(N)], pa.binary(4)),
        "flag": pa.array([n % 3 == 0 for n in range(N)]),
        "dictionary": words.dictionary_encode(),
        "half_missing": pa.array(["x" if n % 2 else None for n in range(N)]),
    }
    schema = infer(columns)
    assert [role(schema, name) for name in columns] == ["feature"] * len(columns)
    assert schema.reasons["text"] == "string, 40 values in 3,000 rows"


def test_lists_are_pooled_and_cut_at_a_high_quantile(infer: Callable[..., Schema]) -> None:
    # 0.5% of the rows have 50 values, the others up to 4.
    tags = [[f"t{(n + i) % 30}" for i in range(50 if n % 201 == 0 else n % 5)] for n in range(N)]
    schema = infer(tags=tags, ids=[[n % 7, 2] for n in range(N)], vector=[[0.5, n / N] for n in range(N)])
    assert schema.feature("tags") == Feature(name="tags", pooling="mean", max_length=4)
    assert schema.feature("ids") == Feature(name="ids", pooling="mean", max_length=2)
    assert "30 values" in schema.reasons["tags"]
    assert role(schema, "vector") == "out"


def test_lists_that_say_nothing_are_left_out(infer: Callable[..., Schema]) -> None:
    empty = pa.array([[]] * N, pa.list_(pa.string()))
    schema = infer(empty=empty, same=pa.array([["a"]] * N), null=pa.array([None] * N, pa.list_(pa.string())))
    assert {role(schema, name) for name in ("empty", "same", "null")} == {"out"}


def test_floats_and_decimals_are_dense(infer: Callable[..., Schema]) -> None:
    schema = infer(
        height=rng().normal(170, 10, N),
        price=np.exp(rng().normal(3, 1, N)).astype(np.float32),
        share=rng().beta(0.5, 20, N),  # skewed, but a log changes nothing below 1
        cents=pa.array([Decimal(n % 997) / 100 for n in range(N)], pa.decimal128(9, 2)),
        gaps=pa.array(np.where(rng().random(N) < 0.3, np.nan, rng().normal(0, 1, N))),
        spikes=np.where(rng().random(N) < 0.01, np.inf, rng().normal(0, 1, N)),
    )
    roles = {column.name: column.scale for column in schema.dense}
    assert roles.pop("price") == "log"
    assert roles == dict.fromkeys(["height", "share", "cents", "gaps", "spikes"], "linear")
    assert "skewness" in schema.reasons["price"]
    assert schema.features == ()


def test_integers_that_pandas_made_floats_are_dense_with_advice(infer: Callable[..., Schema]) -> None:
    values = np.where(rng().random(N) < 0.1, np.nan, rng().integers(0, 30, N).astype(float))
    schema = infer(shop_id=values, nothing=np.full(N, np.nan), same=np.full(N, 2.5), row_id=np.arange(N).astype(float))
    assert role(schema, "shop_id") == "linear"
    assert "if it is an id, write it as an integer" in schema.reasons["shop_id"]
    assert {role(schema, name) for name in ("nothing", "same", "row_id")} == {"out"}


def test_times_give_hour_and_weekday(infer: Callable[..., Schema]) -> None:
    times = [DAY + dt.timedelta(minutes=7 * n) for n in range(N)]
    schema = infer(
        seen=pa.array(times, pa.timestamp("us")),
        zoned=pa.array(times, pa.timestamp("ms", "Europe/Berlin")),
        day=pa.array([time.date() for time in times]),
        midnight=pa.array([dt.datetime.combine(time.date(), dt.time()) for time in times], pa.timestamp("us")),
        once=pa.array([DAY] * N, pa.timestamp("us")),
        clock=pa.array([time.time() for time in times]),
    )
    assert [(f.name, f.column, f.transform) for f in schema.features] == [
        ("seen_hour", "seen", "hour"),
        ("seen_weekday", "seen", "weekday"),
        ("zoned_hour", "zoned", "hour"),
        ("zoned_weekday", "zoned", "weekday"),
        ("day_weekday", "day", "weekday"),
        ("midnight_weekday", "midnight", "weekday"),
    ]
    assert "2024-02-29" in schema.reasons["seen"]
    assert {role(schema, name) for name in ("once", "clock")} == {"out"}


def test_a_column_that_has_the_derived_name_stays(infer: Callable[..., Schema]) -> None:
    times = pa.array([DAY + dt.timedelta(minutes=7 * n) for n in range(N)], pa.timestamp("us"))
    schema = infer(seen=times, seen_hour=rng().integers(0, 24, N))
    assert [feature.name for feature in schema.features] == ["seen_weekday", "seen_hour"]
    assert schema.feature("seen_hour").transform is None


def test_columns_of_no_use_are_left_out_with_the_reason(infer: Callable[..., Schema]) -> None:
    schema = infer(
        null=pa.nulls(N),
        null_text=pa.array([None] * N, pa.string()),
        same=["x"] * N,
        uuid=[f"{n:032x}" for n in range(N)],
        struct=[{"a": n} for n in range(N)],
        map=pa.array([[("k", n)] for n in range(N)], pa.map_(pa.string(), pa.int64())),
        review=[
            f"This is what customer {n % 2500} had to say about the product, at some length indeed" for n in range(N)
        ],
        date=[f"2024-02-{1 + n % 28:02d} 10:00:00" for n in range(N)],
        duration=pa.array([dt.timedelta(seconds=n) for n in range(N)]),
    )
    assert {role(schema, name) for name in schema.reasons if name != "label"} == {"out"}
    assert schema.features == schema.dense == ()
    for name, part in [
        ("null", "null in every row"),
        ("same", "'x' in every row"),
        ("uuid", "a different value in each of 3,000 rows"),
        ("review", "long text"),
        ("date", "dates as text (2024-02-01 10:00:00)"),
    ]:
        assert part in schema.reasons[name]


def test_columns_that_know_the_label_are_left_out(infer: Callable[..., Schema]) -> None:
    click = LABEL.to_numpy()
    schema = infer(
        copy=click,
        outcome=np.where(click == 1, "bought", "left"),
        rating=np.where(click == 1, rng().integers(4, 6, N), rng().integers(1, 3, N)),
        dwell=np.where(click == 1, 3.5, rng().integers(0, 3, N).astype(float)),
        hint=np.where(rng().random(N) < 0.02, 1 - click, click),
    )
    assert [role(schema, name) for name in ("copy", "outcome", "rating", "dwell")] == ["out"] * 4
    assert "gives the label away, each of its 4 values" in schema.reasons["rating"]
    assert role(schema, "hint") == "feature"


def test_label_group_and_weight(tmp_path: Path) -> None:
    table = pa.table({"y": LABEL, "user": rng().integers(0, 99, N), "w": rng().random(N), "x": ["a", "b"] * (N // 2)})
    pq.write_table(table, tmp_path / "a.parquet")
    schema = Schema.infer(tmp_path / "a.parquet", label="y", group="user", weight="w")
    assert (schema.label, schema.group, schema.weight) == ("y", "user", "w")
    assert [feature.name for feature in schema.features] == ["user", "x"]
    assert schema.dense == ()
    assert schema.reasons["y"] == f"label, 1 in {LABEL.to_numpy().mean():.3g} of rows"
    assert list(schema.reasons) == ["y", "user", "w", "x"]


def test_a_label_that_is_no_label_yet_is_said(tmp_path: Path) -> None:
    pq.write_table(pa.table({"rating": [1, 2, 3, 4, 5] * 20, "x": ["a", "b"] * 50}), tmp_path / "a.parquet")
    schema = Schema.infer(tmp_path / "a.parquet", label="rating")
    assert schema.reasons["rating"] == "label, but training needs 0 and 1 and it holds 1, 2, 3, 4, 5"


def test_unknown_columns_get_the_nearest_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"click": [0, 1], "user_id": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match="label 'clicks' is not in the log; did you mean 'click'"):
        Schema.infer(tmp_path, label="clicks")
    with pytest.raises(SchemaError, match="group 'userid' is not in the log; did you mean 'user_id'"):
        Schema.infer(tmp_path, label="click", group="userid")
    with pytest.raises(SchemaError, match="weight 'w' is not in the log; known: click, user_id"):
        Schema.infer(tmp_path, label="click", weight="w")


def test_bad_logs_and_settings(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no Parquet file"):
        Schema.infer(tmp_path, label="click")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"click": pa.array([], pa.int8()), "x": pa.array([], pa.string())}), path)
    with pytest.raises(LogError, match="at least one row"):
        Schema.infer(path, label="click")
    pq.write_table(pa.table({"click": ["yes", "no"], "x": ["a", "b"]}), path)
    with pytest.raises(
        SchemaError, match=r"label 'click'; expected a column of 0 and 1 .*; found string; make .* binary"
    ):
        Schema.infer(path, label="click")
    with pytest.raises(ConfigError, match="sample_rows; expected 1 or more"):
        Schema.infer(path, label="click", sample_rows=0)


def test_files_that_disagree_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"click": [0, 1], "x": [1, 2]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"click": [0, 1]}), tmp_path / "b.parquet")
    with pytest.raises(LogError, match=r"have different columns: .*b\.parquet has no 'x'; expected .* of .*a\.parquet"):
        Schema.infer(tmp_path, label="click")
    pq.write_table(pa.table({"click": [0, 1], "x": ["1", "2"]}), tmp_path / "b.parquet")
    with pytest.raises(
        LogError, match=r"disagree on column 'x'; expected int64 as in .*a\.parquet; found string in .*b"
    ):
        Schema.infer(tmp_path, label="click")


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ([0.0, 1.0, float("nan"), None], r"'click': 2 of 4 rows looked at are not 0 or 1 \(nan, missing\); train will"),
        ([0, 1, 2, 2], r"2 of 4 rows looked at are not 0 or 1 \(2\)"),
        ([0, 0, 0, 0], "0 in all 4 rows looked at"),
        ([False, True, True, True], None),
        ([0, 1, 1, 0], None),
    ],
)
def test_a_label_that_cannot_be_trained_on_is_warned_of(tmp_path: Path, label: list[Any], said: str | None) -> None:
    pq.write_table(pa.table({"click": label, "x": ["a", "b", "a", "b"]}), tmp_path / "a.parquet")
    warnings: list[str] = []
    assert Schema.infer(tmp_path, label="click", warn=warnings.append).label == "click"
    assert len(warnings) == (said is not None)
    if said is not None:
        assert re.search(said, warnings[0])


def test_the_sample_is_bounded_and_spread(tmp_path: Path) -> None:
    for part in range(40):
        start = part * 5000
        table = pa.table({"y": [0, 1] * 2500, "part": [f"p{part}"] * 5000, "row": range(start, start + 5000)})
        pq.write_table(table, tmp_path / f"{part:02d}.parquet", row_group_size=2500)
    schema = Schema.infer(tmp_path, label="y", sample_rows=800)
    assert schema.reasons["part"] == "string, 16 values in 800 rows"
    whole = Schema.infer(sorted(tmp_path.glob("*.parquet")), label="y", sample_rows=10**6)
    assert whole.reasons["part"] == "string, 40 values in 200,000 rows"


def test_a_long_row_group_is_skimmed(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"y": [0, 1] * 30_000, "tenth": [f"t{n // 6000}" for n in range(60_000)]}), tmp_path / "a.parquet"
    )
    assert Schema.infer(tmp_path, label="y", sample_rows=10_000).reasons["tenth"] == "string, 10 values in 10,000 rows"


def test_the_yaml_shows_every_column_and_reads_back(infer: Callable[..., Schema]) -> None:
    schema = infer(user_id=rng().integers(0, 900, N), price=np.exp(rng().normal(3, 1, N)), same=["x"] * N)
    text = schema.to_yaml()
    assert "- {name: user_id}  # code by its name, " in text
    assert "# same: left out: 'x' in every row" in text
    assert Schema.from_yaml(text) == schema


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 300))
def test_whatever_is_inferred_can_be_read(tmp_path: Path, seed: int, rows: int) -> None:
    """Any mixture of columns, down to one row, gives a schema that the log can be streamed with."""
    draw = rng(seed)
    distinct = int(draw.integers(1, rows + 1))
    codes = draw.integers(0, distinct, rows)
    mask = draw.random(rows) < draw.choice([0, 0.3, 1])
    columns = {
        "label": pa.array(draw.integers(0, 2, rows)),
        "a": pa.array(codes * int(draw.choice([1, 2**40, -1])), mask=mask),
        "b": pa.array(draw.normal(0, 1, rows), mask=mask),
        "c": pa.array(codes.astype(str), mask=mask),
        "d": pa.array([list(range(code % 4)) for code in codes], pa.list_(pa.int32())),
        "e": pa.array((codes * 3600).astype("datetime64[s]"), mask=mask),
        "f": pa.array(codes % 2 == 0, mask=mask),
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    schema = Schema.infer(path, label="label")
    assert set(schema.reasons) == set(columns)
    batches = list(ParquetLog(path, schema).batches(64))
    assert sum(map(len, batches)) == rows


def test_a_generated_log_gets_the_schema_it_was_made_by(tmp_path: Path) -> None:
    log = SyntheticLog(rows=30_000, days=8)
    log.write(tmp_path)
    schema = Schema.infer(tmp_path, label="click", group="user_id", sample_rows=10_000)
    truth = log.schema()
    assert {(f.source, f.transform) for f in schema.features} == {(f.source, f.transform) for f in truth.features}
    assert schema.feature("tags") == truth.feature("tags")
    assert (
        schema.dense
        == truth.dense
        == (Dense(name="price"), Dense(name="age", scale="linear"), Dense(name="clicks_before"))
    )


def test_criteo_sample(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    result = datasets.convert("criteo", shared_data("criteo-sample"), tmp_path / "out")
    schema = Schema.infer(result.split("train"), label="label")
    assert schema.features == result.schema.features
    assert [column.name for column in schema.dense] == [column.name for column in result.schema.dense]
    assert {column.name for column in schema.dense if column.scale == "linear"} <= {"I10"}  # 0 to 4


def test_avazu_sample(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    result = datasets.convert("avazu", shared_data("avazu-sample"), tmp_path / "out")
    schema = Schema.infer(result.split("train"), label="click")
    # All of one hour, so nothing is taken from the timestamp.
    assert schema.features == result.schema.features[2:]
    assert schema.dense == ()
    assert role(schema, "timestamp") == "out"


@pytest.mark.parametrize("sample_rows", [3_000, 100_000])
def test_frappe(shared_data: Callable[[str], Path], sample_rows: int) -> None:
    schema = Schema.infer(shared_data("frappe-x1r"), label="label", sample_rows=sample_rows)
    assert [feature.name for feature in schema.features] == list(datasets.frappe.FIELDS)
    assert schema.dense == ()


@pytest.mark.parametrize("sample_rows", [5_000, 100_000])
def test_movielens_100k(shared_data: Callable[[str], Path], sample_rows: int) -> None:
    schema = Schema.infer(shared_data("movielens-100k"), label="rating", sample_rows=sample_rows)
    assert {f.name for f in schema.features} == {
        *("user_id", "item_id", "gender", "occupation", "zip_code", "movie_title", "release_year", "genres"),
        *("timestamp_hour", "timestamp_weekday"),
    }
    assert schema.dense == (Dense(name="age", scale="linear"),)
    assert schema.feature("genres").max_length in range(4, 7)


def test_a_glob_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"y": [0, 1], "x": ["a", "b"]}), tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)
    assert [feature.name for feature in Schema.infer("*.parquet", label="y").features] == ["x"]
