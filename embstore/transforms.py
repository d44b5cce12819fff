"""Declared transforms: a timestamp or date column -> an integer column that can be a feature.

Timestamps are never categorical as they are (every value would be new); the schema names what to take from them.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from embstore.errors import SchemaError

_DATE_ONLY = ("weekday", "day", "month")

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
