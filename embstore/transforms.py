"""Declared transforms: a timestamp or date column -> an integer column that can be a feature.

Timestamps are never categorical as they are (every value would be new); the schema names what to take from them.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from embstore.errors import SchemaError

_DATE_ONLY = ("weekday", "day", "month")

_RESULTS = {"hour": (0, 23), "weekday": (0, 6), "day": (1, 31), "month": (1, 12)}

TRANSFORMS: dict[str, Callable[[pa.ChunkedArray], pa.ChunkedArray]] = {
    "hour": pc.hour,  # 0-23
    "weekday": pc.day_of_week,  # Monday is 0
    "day": pc.day,  # of the month, from 1
    "month": pc.month,  # from 1
}


def apply(column: pa.ChunkedArray, transform: str, *, name: str) -> pa.ChunkedArray:
    """The integers that ``transform`` takes from a timestamp column (in its own time zone), nulls kept.

    Raises:
        SchemaError: the column is no timestamp (or date, for weekday, day, month).
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or (pa.types.is_date(kind) and transform in _DATE_ONLY):
        try:
            return TRANSFORMS[transform](column)
        except pa.ArrowException as error:  # a time zone nobody knows
            raise SchemaError(
                f"feature {name!r}: transform {transform!r}", expected="a known time zone", found=str(error)
            ) from error
    raise SchemaError(
        f"feature {name!r}: transform {transform!r}",
        expected="a timestamp column" + (" or a date" if transform in _DATE_ONLY else ""),
        found=str(kind),
        do="remove the transform, or convert the column when the log is written",
    )


def apply_or_keep(column: pa.Array | pa.ChunkedArray, transform: str, *, name: str) -> pa.Array | pa.ChunkedArray:
    """What ``apply`` gives for a timestamp or date column; integers that it could have given are kept as they are.

    Raises:
        SchemaError: another type, or an integer that the transform never gives (seconds since 1970, say).
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind):
        return column
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return apply(column, transform, name=name)
    if not pa.types.is_integer(kind):
        raise _not_a_result(transform, name, str(column.type))
    bounds = pc.min_max(column.cast(kind))
    low, high = bounds["min"].as_py(), bounds["max"].as_py()
    if low is not None:
        check_results(low, high, transform, name=name)
    return column


def check_results(low: int, high: int, transform: str, *, name: str) -> None:
    """Raise ``SchemaError`` unless ``transform`` could have given all integers from ``low`` to ``high``."""
    least, most = _RESULTS[transform]
    for bound in (low, high):
        if not least <= bound <= most:
            raise _not_a_result(transform, name, str(bound))


def _not_a_result(transform: str, name: str, found: str) -> SchemaError:
    low, high = _RESULTS[transform]
    expected = f"timestamps, or what {transform!r} takes from them: {low} to {high}"
    return SchemaError(f"values of feature {name!r}", expected=expected, found=found)
