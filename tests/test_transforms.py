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
from embstore.transforms import TRANSFORMS, apply

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
