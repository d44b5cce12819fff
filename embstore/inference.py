"""A first schema for a log: what each column is, guessed from its type, its name and a sample of its values.

Types decide most columns. Integers are the hard case, being either codes (a user, a device type) or measures (a count, an
age); what tells them apart is that the frequencies of a measure change smoothly along the number line and those of codes
don't. ``Schema.reasons`` says for every column what was decided and from which numbers, so that a person can correct it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore import transforms
from embstore.encoding import check_types
from embstore.errors import ConfigError, LogError, SchemaError, nearest
from embstore.logs import ParquetLog, Piece
from embstore.schema import Dense, Feature, Schema

SAMPLED_GROUPS = 16  # row groups read, evenly spaced over the log
DECODED = 10  # rows decoded for each row kept, at most: long row groups are skimmed, not read whole
SKIM_ROWS = 1_024  # rows kept together

# The last word of a name that says "a code", and words of a name that say "a measure".
_CODE_WORDS = frozenset(
    "id ids key code type kind class hash category cat group segment bucket zip zipcode postcode year month weekday hour "
    "user item product movie ad campaign advertiser publisher site app device os browser country city region state store "
    "shop seller brand author channel language occupation gender".split()
)
_MEASURE_WORDS = frozenset(
    "age amount avg average balance bytes clicks count counts cnt days distance duration freq frequency height hits hours "
    "impressions income length likes max mean median min minutes ms num price qty quantity rate ratio revenue salary score "
    "seconds secs size std sum total value views visits volume weight width".split()
)
_ENDS_IN_ID_BY_CHANCE = frozenset(
    "aid bid covid fluid grid humid hybrid kid liquid paid rapid solid squid valid void".split()
)
_TEXT_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d|$)")
_UNIX_SECONDS = (631_152_000, 2_051_222_400)  # the years 1990 to 2034


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """What a column is. Neither features nor dense columns: it is left out."""

    reason: str
    features: tuple[Feature, ...] = ()
    dense: tuple[Dense, ...] = ()


def infer(
    logs: str | Path | Sequence[str | Path],
    *,
    label: str,
    group: str | None = None,
    weight: str | None = None,
    sample_rows: int = 100_000,
) -> Schema:
    """Read a sample of ``logs`` and say what each column is, and why.

    Strings, booleans and integer codes become features, lists of them pooled features, timestamps their hour and weekday;
    floats, decimals and integer measures become dense columns, on a log scale when skewed. Columns that are constant,
    empty, different in every row, nested, or that give the label away are left out.

    Args:
        logs: what ``ParquetLog`` takes.
        label: the 0/1 column to predict.
        group: the column whose values GAUC averages over; may be a feature too.
        weight: the column of sample weights.
        sample_rows: rows looked at, spread over the log.

    Returns:
        A schema whose ``reasons`` hold one clause for each column of the log.

    Raises:
        SchemaError: label, group or weight is not in the log (the nearest name is given) or can't be what it is said to be.
        LogError: no log, no rows, or a file that can't be read.
    """
    if sample_rows < 1:
        raise ConfigError("schema inference: sample_rows", expected="1 or more", found=str(sample_rows))
    table = _sample(ParquetLog(logs, Schema()), sample_rows)
    for role, name in (("label", label), ("group", group), ("weight", weight)):
        if name is not None and name not in table.column_names:
            raise SchemaError(f"{role} {name!r} is not in the log", do=nearest(name, table.column_names))

    leaks = _Leak(table.column(label))
    verdicts: dict[str, _Verdict] = {label: _Verdict(reason=_label_reason(table.column(label)))}
    if weight is not None:
        verdicts[weight] = _Verdict(reason="weight")
    for name in table.column_names:
        if name not in verdicts:
            verdict = _judge(name, table.column(name), set(table.column_names))
            leak = leaks.reason(table.column(name)) if verdict.features or verdict.dense else None
            verdicts[name] = _Verdict(reason=leak) if leak else verdict
    schema = Schema(
        features=tuple(feature for name in table.column_names for feature in verdicts[name].features),
        dense=tuple(column for name in table.column_names for column in verdicts[name].dense),
        label=label,
        group=group,
        weight=weight,
        reasons={name: verdicts[name].reason for name in table.column_names},
    )
    check_types(table.schema, schema)
    return schema


def _sample(log: ParquetLog, sample_rows: int) -> pa.Table:
    """About ``sample_rows`` rows, spread over the log, as one table with one chunk a column."""
    step = max(1, len(log.pieces) // SAMPLED_GROUPS)
    pieces = log.pieces[::step][:SAMPLED_GROUPS] if log.rows > sample_rows else log.pieces
    share = min(1.0, sample_rows / sum(piece.rows for piece in pieces))
    first: pa.Schema | None = None
    tables = []
    for piece in pieces:
        try:
            with pq.ParquetFile(piece.path, filesystem=log.filesystem) as file:
                first = file.schema_arrow.remove_metadata() if first is None else first
                tables += [pa.table(batch).select(first.names).cast(first) for batch in _skim(file, piece, share)]
        except (OSError, KeyError, pa.ArrowException) as error:
            raise LogError(
                f"{piece.path} can't be read",
                expected=f"a whole Parquet file with the columns of {log.paths[0]}",
                found=str(error).split("\n")[0],
                do="write it again, or move it out of the log",
            ) from error
    table = pa.concat_tables(tables).combine_chunks()
    if len(set(table.column_names)) < len(table.column_names):
        raise SchemaError("a log", expected="columns with different names", found=", ".join(table.column_names))
    return table


def _skim(file: pq.ParquetFile, piece: Piece, share: float) -> Iterator[pa.RecordBatch]:
    """``share`` of a row group, in short stretches spread over its first rows (all of it, unless it is very long)."""
    wanted = max(1, round(piece.rows * share))
    spread = min(piece.rows, wanted * DECODED)
    every = SKIM_ROWS * spread / wanted
    kept, position, following = 0, 0, 0.0
    for batch in file.iter_batches(batch_size=SKIM_ROWS, row_groups=[piece.row_group]):
        if position >= following:
            batch = batch.slice(0, wanted - kept)
            kept, following = kept + batch.num_rows, following + every
            yield batch
        position += SKIM_ROWS
        if kept >= wanted:
            return


def _label_reason(column: pa.ChunkedArray) -> str:
    if _is_number(column.type) or pa.types.is_boolean(column.type):
        values = _numbers(column)
        if len(values) == len(column) and np.isin(values, (0, 1)).all():
            return f"label, {values.mean():.3g} of rows are 1"
    distinct = pc.unique(column).slice(0, 5).to_pylist()
    return f"label, but training needs 0 and 1: the log has {', '.join(map(str, distinct))}"


class _Leak:
    """Columns that give the label away: the label is the same in all rows of each of their values."""

    def __init__(self, label: pa.ChunkedArray) -> None:
        self.label_B: NDArray[np.float64] | None = None
        if _is_number(label.type) or pa.types.is_boolean(label.type):
            values = _numbers(label)
            if len(values) == len(label) and np.isin(values, (0, 1)).all():
                self.label_B = values

    def reason(self, column: pa.ChunkedArray) -> str | None:
        # Of few rows, or of values that come once, purity proves nothing.
        if self.label_B is None or min(self.label_B.sum(), (1 - self.label_B).sum()) < 20 or _is_list(column.type):
            return None
        coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        codes, distinct = coded.indices.to_numpy(), len(coded.dictionary)
        if distinct > len(codes) / 20:
            return None
        rows, ones = (
            np.bincount(codes, minlength=distinct),
            np.bincount(codes, weights=self.label_B, minlength=distinct),
        )
        if ((ones > 0) & (ones < rows)).any():
            return None
        return f"left out: gives the label away, each of its {distinct} values goes with one label"


def _judge(name: str, column: pa.ChunkedArray, taken: set[str]) -> _Verdict:
    kind = column.type
    if column.null_count == len(column):
        return _Verdict(reason="left out: null in every row of the sample")
    if pa.types.is_dictionary(kind) and _is_code(kind.value_type):
        column = column.cast(kind.value_type)
        verdict = _judge_text(name, column, "dictionary")
        return verdict
    if _is_list(kind):
        return _judge_list(name, column)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _judge_time(name, column, taken)
    if _constant(column):
        return _Verdict(reason=f"left out: {column.drop_null()[0].as_py()!r} in every row")
    if pa.types.is_integer(kind):
        return _judge_integer(name, column)
    if _is_number(kind):
        return _judge_float(name, column)
    if _is_code(kind):
        return _judge_text(name, column, str(kind).removeprefix("large_"))
    return _Verdict(reason=f"left out: {kind} is neither a category nor a number")


def _judge_text(name: str, column: pa.ChunkedArray, what: str) -> _Verdict:
    if _constant(column):
        return _Verdict(reason=f"left out: {column.drop_null()[0].as_py()!r} in every row")
    rows, distinct = len(column) - column.null_count, pc.count_distinct(column).as_py()
    if distinct == rows >= 100:
        return _Verdict(reason=f"left out: a different value in each of {rows:,} rows, as a row id")
    head = [value for value in pc.unique(column.drop_null()).slice(0, 100).to_pylist() if isinstance(value, str)]
    if head and all(_TEXT_DATE.match(value) for value in head):
        return _Verdict(reason=f"left out: dates as text ({head[0]}); cast it to a timestamp for its hour and weekday")
    if head and distinct > rows / 2 and np.mean([len(value) for value in head]) > 60:
        return _Verdict(reason=f"left out: long text, {distinct:,} values in {rows:,} rows")
    return _Verdict(reason=f"{what}, {_of(distinct, rows)}", features=(Feature(name=name),))


def _judge_list(name: str, column: pa.ChunkedArray) -> _Verdict:
    if not _is_code(column.type.value_type):
        return _Verdict(reason=f"left out: {column.type} is no list of categories")
    lengths = pc.list_value_length(column).drop_null().to_numpy()
    distinct = pc.count_distinct(pc.list_flatten(column)).as_py()
    if lengths.max() == 0 or (distinct == 1 and lengths.min() == lengths.max()):
        return _Verdict(reason="left out: the same list in every row")
    longest = max(1, int(np.quantile(lengths, 0.99, method="higher")))
    reason = f"list, {distinct:,} distinct values, {lengths.mean():.1f} a row, 99% of rows have {longest} or fewer"
    return _Verdict(reason=reason, features=(Feature(name=name, pooling="mean", max_length=longest),))


def _judge_time(name: str, column: pa.ChunkedArray, taken: set[str]) -> _Verdict:
    wanted = ("hour", "weekday") if pa.types.is_timestamp(column.type) else ("weekday",)
    varying = [
        t for t in wanted if not _constant(transforms.apply(column, t, name=name)) and f"{name}_{t}" not in taken
    ]
    if not varying:
        return _Verdict(reason=f"left out: {' and '.join(wanted)} are the same in every row or columns already")
    span = pc.min_max(column).as_py()
    return _Verdict(
        reason=f"time from {span['min']:%Y-%m-%d} to {span['max']:%Y-%m-%d}: {' and '.join(varying)}",
        features=tuple(Feature(name=f"{name}_{t}", column=name, transform=t) for t in varying),
    )


def _judge_float(name: str, column: pa.ChunkedArray) -> _Verdict:
    values = _numbers(column)
    values = values[np.isfinite(values)]
    if len(values) == 0 or values.min() == values.max():
        return _Verdict(reason="left out: no two different finite values")
    scale, why = _scale(values)
    reason = f"{column.type}, {why}"
    if pa.types.is_floating(column.type) and (values == np.floor(values)).all() and np.abs(values).max() < 2**53:
        # pandas stores integers with nulls so.
        reason += f"; {_of(len(np.unique(values)), len(values))}, all whole: if it is an id, cast it to integer when the log is written"
    return _Verdict(reason=reason, dense=(Dense(name=name, scale=scale),))


def _judge_integer(name: str, column: pa.ChunkedArray) -> _Verdict:
    shape = _Shape.of(column)
    said = _name_says(name)
    code = _Verdict(reason="", features=(Feature(name=name),))
    scale, skewed = _scale(shape.values)
    measure = _Verdict(reason="", dense=(Dense(name=name, scale=scale),))

    def because(verdict: _Verdict, clause: str) -> _Verdict:
        tail = f", {skewed}" if verdict.dense else ""
        return _Verdict(reason=f"{clause}, {shape}{tail}", features=verdict.features, dense=verdict.dense)

    time = shape.time(said)
    if time:
        return _Verdict(reason=f"left out: {time}; cast it to a timestamp for its hour and weekday")
    if shape.distinct == shape.rows >= 100 and (said == "code" or not (shape.count_like or shape.bell)):
        return _Verdict(reason=f"left out: a different value in each of {shape.rows:,} rows, as a row id")
    if shape.distinct == 2:
        return because(code, "a flag")
    if said == "code":
        return because(code, "named as a code")
    if shape.count_like:
        return because(measure, "frequencies fall from small to large values as those of a count")
    if shape.distinct <= 10 and shape.distinct <= shape.rows / 4:
        return because(code, "few values")
    if said == "measure":
        return because(measure, "named as a measure")
    if shape.negative:
        return because(measure, "negative values")
    if shape.bell:
        return because(measure, "frequencies rise and fall smoothly as those of a measure")
    return because(code, "frequencies don't follow the numbers, as those of codes")


@dataclass(frozen=True)
class _Shape:
    """How often an integer column takes which values."""

    values: NDArray[np.float64]  # of the rows that have one
    levels: NDArray[np.float64]  # distinct values, ascending
    counts: NDArray[np.int64]  # rows of each

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> _Shape:
        # Exact values to count by; float64 would merge ids beyond 2^53.
        exact = column.drop_null().to_numpy()
        levels, counts = np.unique(exact, return_counts=True)
        return cls(exact.astype(np.float64), levels.astype(np.float64), counts)

    def __str__(self) -> str:
        return f"{_of(self.distinct, self.rows)}, from {self.levels[0]:.10g} to {self.levels[-1]:.10g}"

    @property
    def rows(self) -> int:
        return len(self.values)

    @property
    def distinct(self) -> int:
        return len(self.levels)

    @property
    def negative(self) -> bool:
        """Below zero more than a code for "missing" (-1) is; hashes that fill their 32 or 64 bits are codes."""
        return bool(self.levels[0] < -1 and np.abs(self.levels).max() < 2**30)

    @property
    def trend(self) -> float:
        """Correlation of a value's rank with its frequency's rank: near -1 when large values are rare."""
        ranks = np.unique(self.counts, return_inverse=True)[1]
        return _correlation(np.arange(self.distinct), ranks)

    @property
    def count_like(self) -> bool:
        """Starts near zero and thins out: a long tail with gaps, or a short run 0, 1, 2, 3 of falling frequencies."""
        low, high = self.levels[0], self.levels[-1]
        if not -10 <= low <= 1 or self.distinct < 4:
            return False
        filled = self.distinct / (high - low + 1)
        # Codes given out by popularity thin out too, but leave no gaps.
        tail = _skewness(self.values) > 2 and filled < 0.8 and self.distinct > 10
        return self.trend < -0.3 if tail else bool(filled == 1 and self.distinct <= 20 and self.trend < -0.95)

    @property
    def bell(self) -> bool:
        """A smooth histogram with its peak inside."""
        heights = self.counts
        if self.distinct > 64:
            ends = np.quantile(self.values, (0.005, 0.995))
            heights = np.histogram(self.values, bins=32, range=(ends[0], max(ends[1], ends[0] + 1)))[0]
        if len(heights) <= 10 or max(heights[0], heights[-1]) > heights.max() / 2:
            return False
        return _correlation(heights[:-1], heights[1:]) > 0.7

    def time(self, said: str) -> str | None:
        """A clause if these are Unix times or dates written as YYYYMMDD."""
        low, high = int(self.levels[0]), int(self.levels[-1])
        for unit, per_second in (("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)):
            if said != "code" and _UNIX_SECONDS[0] <= low / per_second and high / per_second <= _UNIX_SECONDS[1]:
                first, last = (np.datetime64(int(t / per_second), "s").astype("datetime64[D]") for t in (low, high))
                return f"Unix times in {unit} from {first} to {last}"
        year, month, day = self.levels // 10_000, self.levels // 100 % 100, self.levels % 100
        if ((year >= 1900) & (year <= 2100) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all():
            return f"dates as YYYYMMDD from {low} to {high}"
        return None


def _name_says(name: str) -> str:
    """``"code"``, ``"measure"`` or ``""``."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if not words:
        return ""
    if words[0] in ("n", "num", "total", "avg", "sum", "mean"):
        return "measure"
    if words[-1] in _CODE_WORDS or (words[-1].endswith("id") and words[-1] not in _ENDS_IN_ID_BY_CHANCE):
        return "code"
    return "measure" if _MEASURE_WORDS.intersection(words) else ""


def _scale(values: NDArray[np.float64]) -> tuple[str, str]:
    """``log`` when that makes a long tail shorter."""
    skewness = _skewness(values)
    logarithmic = _skewness(np.sign(values) * np.log1p(np.abs(values)))
    if skewness > 1.5 and abs(logarithmic) < skewness and np.abs(values).max() > 1:
        return "log", f"skewness {skewness:.1f} ({logarithmic:.1f} on a log scale)"
    return "linear", f"skewness {skewness:.1f}"


def _skewness(values: NDArray[np.float64]) -> float:
    centred = values - values.mean()
    deviation = np.sqrt(np.mean(centred**2))
    return float(np.mean((centred / deviation) ** 3)) if deviation > 0 else 0.0


def _correlation(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0


def _of(distinct: int, rows: int) -> str:
    return f"{distinct:,} values in {rows:,} rows"


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """The values of the rows that have one; NaN counts as none."""
    column = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
    values = column.drop_null().cast(pa.float64(), safe=False).to_numpy()
    return values[~np.isnan(values)]


def _constant(column: pa.ChunkedArray) -> bool:
    """One value in every row; a null is a second value."""
    return bool(len(pc.unique(column)) == 1)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_code(kind: pa.DataType) -> bool:
    """Types that can be looked up as they are."""
    tests: Iterable = (
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
    )
    return any(test(kind) for test in tests)
