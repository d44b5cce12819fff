"""Declared transforms, against Python's own calendar."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embstore.errors import ConfigError, SchemaError
from embstore.schema import Feature
from embstore.transforms import TRANSFORMS, apply, apply_or_keep

EXPECTED = {
    "hour": lambda t: t.hour,
    "weekday": lambda t: t.weekday(),
    "day": lambda t: t.day,
    "month": lambda t: t.month,
}
moments = st.datetimes(min_value=datetime(1902, 1, 1), max_value=datetime(2100, 1, 1))


@pytest.mark.parametrize("transform", TRANSFORMS)
@given(values=st.lists(st.none() | moments, min_size=1, max_size=5), unit=st.sampled_from(["s", "ms", "us"]))
def test_timestamps(transform: str, values: list[datetime | None], unit: str) -> None:
    values = [None if t is None else t.replace(microsecond=0) for t in values]
    out = apply(pa.chunked_array([pa.array(values, pa.timestamp(unit))]), transform, name="t")
    assert out.to_pylist() == [None if t is None else EXPECTED[transform](t) for t in values]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_time_zone_of_the_column_is_the_one_that_counts(transform: str) -> None:
    moments = [datetime(2025, 3, 31, 23, 30, tzinfo=UTC) + timedelta(hours=h) for h in range(0, 60, 7)]
    out = apply(pa.chunked_array([pa.array(moments, pa.timestamp("us", "Asia/Tokyo"))]), transform, name="t")
    assert out.to_pylist() == [EXPECTED[transform](t.astimezone(ZoneInfo("Asia/Tokyo"))) for t in moments]


def test_dates_have_no_hour() -> None:
    column = pa.chunked_array([pa.array([date(2025, 1, 6), None], pa.date32())])
    assert apply(column, "weekday", name="t").to_pylist() == [0, None]
    with pytest.raises(SchemaError, match=r"feature 't': transform 'hour'.*found date32"):
        apply(column, "hour", name="t")


def test_other_columns_and_unknown_transforms_are_refused() -> None:
    with pytest.raises(SchemaError, match="expected a timestamp column"):
        apply(pa.chunked_array([pa.array(["2025-01-01"])]), "day", name="t")
    with pytest.raises(ConfigError, match="did you mean 'hour'"):
        Feature(name="t", transform="hours")


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_a_transform_gives_is_taken_as_it_is(transform: str) -> None:
    """Every day of four years and every hour: their results, all of them, and nothing beyond."""
    start = datetime(2024, 1, 1)
    column = pa.chunked_array([pa.array([start + timedelta(hours=h) for h in range(0, 4 * 366 * 24, 5)])])
    given = apply(column, transform, name="t")
    assert apply_or_keep(column, transform, name="t") == given
    for integers in (given, given.cast(pa.int8()), given.dictionary_encode(), given.combine_chunks()):
        assert apply_or_keep(integers, transform, name="t").to_pylist() == given.to_pylist()
    values = set(given.to_pylist())
    assert apply_or_keep(pa.array([], pa.int64()), transform, name="t").to_pylist() == []
    assert apply_or_keep(pa.array([None]), transform, name="t").to_pylist() == [None]
    for wrong in (min(values) - 1, max(values) + 1, 1_767_225_600):
        with pytest.raises(SchemaError, match=f"'t'; expected timestamps, or what '{transform}' .*; found {wrong}"):
            apply_or_keep(pa.array([min(values), None, wrong]), transform, name="t")
    for column in (pa.array(["5"]), pa.array([5.0]), pa.array([True])):
        with pytest.raises(SchemaError, match=f"expected timestamps, or .*; found {column.type}"):
            apply_or_keep(column, transform, name="t")
