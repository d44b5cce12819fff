"""How the values of a sample are distributed: what tells integer codes from integer measures.

Frequencies of a measure change smoothly along the number line: those of a count fall, those of an age rise and fall.
Frequencies of codes don't follow the numbers, unless codes were given out by popularity; then they leave no gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_UNIX_SECONDS = (631_152_000, 2_051_222_400)  # the years 1990 to 2034
_BINS = 32


@dataclass(frozen=True)
class Integers:
    """The integers of a column.

    Args:
        values: float64, of the rows that have one.
        levels: float64, the distinct values, ascending.
        counts: int64, rows of each level.
    """

    values: NDArray[np.float64]
    levels: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Integers:
        """Nulls are left out."""
        # Counted as they are: float64 would merge ids beyond 2^53.
        exact = column.drop_null().to_numpy()
        levels, counts = np.unique(exact, return_counts=True)
        return cls(exact.astype(np.float64), levels.astype(np.float64), counts)

    def __str__(self) -> str:
        return f"{self.distinct:,} values in {self.rows:,} rows, {self.levels[0]:.10g} to {self.levels[-1]:.10g}"

    @property
    def rows(self) -> int:
        """Rows that have a value."""
        return len(self.values)

    @property
    def distinct(self) -> int:
        """Different values."""
        return len(self.levels)

    @property
    def negative(self) -> bool:
        """Below -1, which is a code for "missing"; but hashes, which fill their 32 or 64 bits, are codes."""
        return bool(self.levels[0] < -1 and np.abs(self.levels).max() < 2**30)

    @property
    def falling(self) -> bool:
        """As a count: from about zero on, thinning out, in a long tail with gaps or a short run 0, 1, 2, 3 without."""
        low, high = self.levels[0], self.levels[-1]
        if not -10 <= low <= 1 or self.distinct < 4:
            return False
        ranks = np.unique(self.counts, return_inverse=True)[1]
        trend = _correlation(np.arange(self.distinct), ranks)
        filled = self.distinct / (high - low + 1)
        if self.distinct > 10 and filled < 0.8 and skewness(self.values) > 2:
            return trend < -0.3
        return bool(self.distinct <= 20 and filled == 1 and trend < -0.95)

    @property
    def bell(self) -> bool:
        """A smooth histogram with its peak inside."""
        heights = self.counts
        if self.distinct > 2 * _BINS:
            low, high = np.quantile(self.values, (0.005, 0.995))
            inside = self.values[(self.values >= low) & (self.values <= high)]
            # Not np.histogram: it refuses ids of 64 bits, which lie closer together than float64 can tell.
            place = (inside - low) / max(high - low, 1) * _BINS
            heights = np.bincount(np.minimum(place.astype(np.int64), _BINS - 1), minlength=_BINS)
        if len(heights) <= 10 or max(heights[0], heights[-1]) > heights.max() / 2:
            return False
        return _correlation(heights[:-1], heights[1:]) > 0.7

    @property
    def unix_time(self) -> str:
        """A clause if these can be Unix times of the years 1990 to 2034, else nothing."""
        low, high = self.levels[0], self.levels[-1]
        for unit, per_second in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
            if _UNIX_SECONDS[0] <= low / per_second and high / per_second <= _UNIX_SECONDS[1]:
                first, last = (np.datetime64(int(time / per_second), "s").astype("M8[D]") for time in (low, high))
                return f"Unix times in {unit} from {first} to {last}"
        return ""

    @property
    def written_date(self) -> str:
        """A clause if all are dates written as YYYYMMDD, else nothing."""
        year, month, day = self.levels // 10_000, self.levels // 100 % 100, self.levels % 100
        good = (year >= 1900) & (year <= 2100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
        return f"dates as YYYYMMDD from {self.levels[0]:.0f} to {self.levels[-1]:.0f}" if good.all() else ""


def scale(values: NDArray[np.float64]) -> tuple[str, str]:
    """``"log"`` or ``"linear"`` for a dense column, and why: a log scale where it shortens a long tail."""
    plain = skewness(values)
    logarithmic = skewness(np.sign(values) * np.log1p(np.abs(values)))
    if plain > 1.5 and abs(logarithmic) < plain and np.abs(values).max() > 1:
        return "log", f"skewness {plain:.1f}, {logarithmic:.1f} on a log scale"
    return "linear", f"skewness {plain:.1f}"


def skewness(values: NDArray[np.float64]) -> float:
    """The third standardised moment; 0 for a constant."""
    centred = values - values.mean()
    deviation = np.sqrt(np.mean(centred**2))
    return float(np.mean((centred / deviation) ** 3)) if deviation > 0 else 0.0


def _correlation(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0
