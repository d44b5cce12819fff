"""Which values of a vocabulary are kept: seen often enough, long enough, lately enough, by luck, among the first.

A value that is not kept stays in the vocabulary with its counts, so that what a later day adds to it is exact; it is
looked up as the pruned token.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embstore.aggregates import COUNT, FIRST, LAST, VALUE
from embstore.errors import ConfigError
from embstore.hashing import salt, splitmix64
from embstore.tokens import tokenize

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UNITS = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What a value must have to be kept; all of it.

    Args:
        min_count: seen at least so often.
        min_age: first seen at least so long before the latest row: ``"30m"``, ``"12h"``, ``"2d"``, ``"1w"``, or a
            number in the units of a time column of integers.
        expire_after: last seen at most so long before it.
        probability: each sighting admits with this probability, so ``count`` of them do with ``1 - (1 - p)^count``. The
            draw is a hash of feature and value: it is the same every day, and a value that is in stays in.
        max_values: of a feature, at most so many, the most frequent; of equally frequent ones the first in order.

    Raises:
        ConfigError: out of range.
    """

    min_count: int = 1
    min_age: str | int | None = None
    expire_after: str | int | None = None
    probability: float | None = None
    max_values: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("min_count", 1), ("max_values", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"admission: {name}", expected=f"{least} or more", found=str(value))
        if self.probability is not None and not 0 < self.probability <= 1:
            raise ConfigError("admission: probability", expected="above 0, at most 1", found=str(self.probability))
        for name in ("min_age", "expire_after"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 0:
                raise ConfigError(f"admission: {name}", expected="0 or more", found=str(value))
            if isinstance(value, str) and not re.fullmatch(rf"\d+[{''.join(_SECONDS)}]", value):
                expected = "a number with s, m, h, d or w, such as 30d"
                raise ConfigError(f"admission: {name}", expected=expected, found=repr(value))

    @property
    def timed(self) -> bool:
        """Whether it asks for times."""
        return self.min_age is not None or self.expire_after is not None


def duration(length: str | int, kind: pa.DataType) -> int:
    """A length of time in units of a type of times.

    Raises:
        ConfigError: one that the type can't tell.
    """
    if pa.types.is_integer(kind) != isinstance(length, int):
        expected = "a number, in the time column's units" if pa.types.is_integer(kind) else "a text such as 30d"
        raise ConfigError(f"admission: a time of {length!r} with times of {kind}", expected=expected)
    if isinstance(length, int):
        return length
    seconds = int(length[:-1]) * _SECONDS[length[-1]]
    if pa.types.is_date(kind):
        if seconds % 86_400:
            raise ConfigError(f"admission: a time of {length!r} with dates", expected="whole days")
        return seconds // 86_400
    return seconds * _UNITS[kind.unit]


class Judge:
    """Decides for one feature which of its values are kept.

    Args:
        feature: its name.
        admission: what is asked for.
        kind: the type of times; ``None`` without.
        latest: the greatest of them.

    Raises:
        ConfigError: a length of time that doesn't go with the type, or no times where they are asked for.
    """

    def __init__(self, feature: str, admission: Admission, kind: pa.DataType | None, latest: int | None) -> None:
        self.feature, self.admission = feature, admission
        self._before = self._since = None
        if admission.timed:
            if kind is None:
                raise ConfigError("admission by age, or expiry", expected="a time column", found="none", do="name it")
            if latest is not None:
                if admission.min_age is not None:
                    self._before = latest - duration(admission.min_age, kind)
                if admission.expire_after is not None:
                    self._since = latest - duration(admission.expire_after, kind)
        self._counts: Counter[int] = Counter()  # of admitted values: how many there are of each count

    @property
    def patient(self) -> bool:
        """Whether it must see all values before it can say of any whether it is kept."""
        return self.admission.max_values is not None

    def see(self, table: pa.Table) -> None:
        """Take notice of some values."""
        if self.admission.max_values is not None:
            counts, many = np.unique(table.column(COUNT).to_numpy()[self._admitted(table)], return_counts=True)
            self._counts.update(dict(zip(counts.tolist(), many.tolist(), strict=True)))

    def judged(self, tables: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, NDArray[np.bool_]]]:
        """All values in order, and which of them are kept; a patient judge has seen them all before."""
        least, room = self._least()
        for table in tables:
            kept = self._admitted(table)
            if least is not None:
                count = table.column(COUNT).to_numpy()
                last = np.flatnonzero(kept & (count == least))
                kept &= count >= least
                kept[last[room:]] = False
                room -= min(room, len(last))
            yield table, kept

    def _least(self) -> tuple[int | None, int]:
        """The count of the last ones that ``max_values`` lets in, and how many of these it does."""
        most, taken = self.admission.max_values, 0
        if most is None:
            return None, 0
        for count in sorted(self._counts, reverse=True):
            if taken + self._counts[count] > most:
                return count, most - taken
            taken += self._counts[count]
        return None, 0

    def _admitted(self, table: pa.Table) -> NDArray[np.bool_]:
        count = table.column(COUNT).to_numpy()
        kept: NDArray[np.bool_] = count >= self.admission.min_count
        for column, bound, compare in ((FIRST, self._before, pc.less_equal), (LAST, self._since, pc.greater_equal)):
            if bound is not None:
                right = compare(table.column(column), pa.scalar(bound, pa.int64())).fill_null(False)
                kept = kept & right.to_numpy()
        if self.admission.probability is not None:
            kept = kept & (draws(table.column(VALUE), self.feature) < chances(count, self.admission.probability))
        return kept


def draws(values: pa.ChunkedArray | pa.Array, feature: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each value, of the upper 53 bits of its token, salted by the feature and mixed."""
    mixed = splitmix64(tokenize(values, name=feature).values ^ np.uint64(salt(f"{feature}\0admission", 0, 0)))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def chances(count: NDArray[np.int64], probability: float) -> NDArray[np.float64]:
    """``1 - (1 - p)^count``."""
    if probability == 1.0:
        return (count > 0).astype(np.float64)
    chance: NDArray[np.float64] = -np.expm1(count * np.log1p(-probability))
    return chance
