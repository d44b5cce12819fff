"""A first schema for a log: what each column is, guessed from its type, its name and a sample of its values.

Types decide most columns. Integers are the hard case, being codes (a user, a device type) or measures (a count, an
age): names decide where they can, the distribution elsewhere (``embstore.distribution``). ``Schema.reasons`` says for
every column what was decided and from which numbers, so that a person can correct it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embstore import transforms
from embstore.distribution import Integers, scale
from embstore.encoding import check_types
from embstore.errors import ConfigError, LogError, SchemaError, nearest
from embstore.logs import ParquetLog, Piece
from embstore.schema import Dense, Feature, Schema
from embstore.tokens import check_type

SAMPLED_GROUPS = 16  # row groups read, evenly spaced over the log
SKIM_ROWS = 1_024  # rows kept together
SKIPPED = 10  # rows decoded for each row kept, at most: a long row group is skimmed, not read whole
FEW = 10  # so few integers are codes, whatever they look like
MANY = 100  # values that differ in so many rows are row ids

# A name's last word that says "a code"; a name's first word, or any, that says "a measure".
_CODE = re.compile(
    "ids?|key|code|type|kind|class|hash|category|cat|group|segment|bucket|zip|zipcode|postcode|year|month|weekday|hour|"
    "user|item|product|movie|ad|campaign|advertiser|publisher|site|app|device|os|browser|country|city|region|state|"
    "store|shop|seller|brand|author|channel|language|occupation|gender|"
    r"(?!(?:.*(?:flu|gr|hum|hybr|liqu|rap|sol|squ|val)|a|b|cov|k|pa|vo)id$)[a-z]+id"  # userid, but not paid or valid
)
_MEASURE_FIRST = re.compile("n|num|total|avg|sum|mean")
_MEASURE = re.compile(
    "age|amount|avg|average|balance|bytes|clicks|counts?|cnt|days|distance|duration|freq|frequency|height|hits|hours|"
    "impressions|income|length|likes|max|mean|median|min|minutes|ms|num|price|qty|quantity|rate|ratio|revenue|salary|"
    "score|seconds|secs|size|std|sum|total|value|views|visits|volume|weight|width"
)
_TEXT_DATE = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d|$)")
_TO_TIMESTAMP = "cast to a timestamp for its hour and weekday"


@dataclass(frozen=True)
class _Verdict:
    """What a column is. Neither features nor a dense column: it is left out."""

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
    warn: Callable[[str], object] | None = None,
) -> Schema:
    """Read a sample of ``logs`` and say what each column is, and why.

    Strings, booleans and integer codes become features, lists of them pooled features, timestamps their hour and
    weekday; floats, decimals and integer measures become dense columns, on a log scale when skewed. Columns that are
    constant, empty, different in every row, nested, or that give the label away are left out.

    Args:
        logs: what ``ParquetLog`` takes.
        label: the 0/1 column to predict.
        group: the column whose values GAUC averages over; it may be a feature too.
        weight: the column of sample weights.
        sample_rows: rows looked at, spread over the log.
        warn: called with a line when the label, as far as it was looked at, can't be trained on.

    Returns:
        A schema whose ``reasons`` hold one clause for each column of the log.

    Raises:
        SchemaError: no such label, group or weight (the nearest name is given), or of a type its role can't take.
        LogError: no log, no rows, files that disagree on a column, or a file that can't be read.
    """
    if sample_rows < 1:
        raise ConfigError("schema inference: sample_rows", expected="1 or more", found=str(sample_rows))
    table = _sample(ParquetLog(logs, Schema(), compare_all=True), sample_rows)
    for role, name in (("label", label), ("group", group), ("weight", weight)):
        if name is not None and name not in table.column_names:
            raise SchemaError(f"{role} {name!r} is not in the log", do=nearest(name, table.column_names))

    label_B = _binary(table.column(label))
    verdicts = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name == label:
            verdicts[name] = _Verdict(_label_reason(column, label_B))
        elif name == weight:
            verdicts[name] = _Verdict("weight")
        else:
            verdict = _judge(name, column, table.column_names)
            used = verdict.features or verdict.dense
            verdicts[name] = (_leak(column, label_B) if used and label_B is not None else None) or verdict
    schema = Schema(
        features=tuple(feature for verdict in verdicts.values() for feature in verdict.features),
        dense=tuple(column for verdict in verdicts.values() for column in verdict.dense),
        label=label,
        group=group,
        weight=weight,
        reasons={name: verdict.reason for name, verdict in verdicts.items()},
    )
    check_types(table.schema, schema)
    if warn is not None and (trouble := _label_trouble(table.column(label))):
        warn(f"label {label!r}: {trouble}")
    return schema


def _sample(log: ParquetLog, sample_rows: int) -> pa.Table:
    """About ``sample_rows`` rows, spread over the log."""
    pieces = log.pieces
    if log.rows > sample_rows and len(pieces) > SAMPLED_GROUPS:
        pieces = [pieces[i * len(pieces) // SAMPLED_GROUPS] for i in range(SAMPLED_GROUPS)]
    share = min(1.0, sample_rows / sum(piece.rows for piece in pieces))
    columns: pa.Schema | None = None
    parts = []
    for piece in pieces:
        try:
            with pq.ParquetFile(piece.path, filesystem=log.filesystem) as file:
                columns = columns or file.schema_arrow.remove_metadata()
                parts += [pa.table(batch).select(columns.names).cast(columns) for batch in _skim(file, piece, share)]
        except (OSError, pa.ArrowException) as error:
            raise LogError(
                f"{piece.path} can't be read",
                expected=f"a whole Parquet file with values that fit the types of {log.paths[0]}",
                found=str(error).split("\n")[0],
                do="write it again, or move it out of the log",
            ) from error
    return pa.concat_tables(parts)


def _skim(file: pq.ParquetFile, piece: Piece, share: float) -> Iterator[pa.RecordBatch]:
    """``share`` of a row group in short stretches, spread over it (over its first part if it is very long)."""
    wanted = max(1, round(piece.rows * share))
    stride = SKIM_ROWS * min(piece.rows / wanted, SKIPPED)
    position, kept, following = 0, 0, 0.0
    for batch in file.iter_batches(batch_size=SKIM_ROWS, row_groups=[piece.row_group]):
        if position >= following:
            yield batch.slice(0, wanted - kept)
            kept, following = kept + batch.num_rows, following + stride
            if kept >= wanted:
                return
        position += batch.num_rows


def _binary(label: pa.ChunkedArray) -> NDArray[np.float64] | None:
    """The label as 0 and 1, if that is what it holds."""
    if not _is_number(label.type):
        return None
    values = _numbers(label)
    return values if len(values) == len(label) and np.isin(values, (0, 1)).all() else None


def _label_reason(column: pa.ChunkedArray, label_B: NDArray[np.float64] | None) -> str:
    if label_B is not None:
        return f"label, 1 in {label_B.mean():.3g} of rows"
    shown = ", ".join(_show(value) for value in pc.unique(column).slice(0, 5).to_pylist())
    return f"label, but training needs 0 and 1 and it holds {shown}"


def _label_trouble(column: pa.ChunkedArray) -> str:
    """Why training would refuse the label or learn nothing from it; empty when nothing speaks against it."""
    values = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    wrong = ~np.isin(numbers, (0, 1))
    rows = len(numbers)
    if wrong.any():
        kinds = pc.unique(column.filter(pa.array(wrong))).slice(0, 5).to_pylist()
        held = ", ".join("missing" if value is None else _show(value) for value in kinds)
        return (
            f"{wrong.sum():,} of {rows:,} rows looked at are not 0 or 1 ({held}); train will stop at the first with "
            '"expected 0 or 1": drop these rows or make the label binary when the log is written'
        )
    if numbers.min() == numbers.max():
        return f"{numbers[0]:.0f} in all {rows:,} rows looked at; train will warn that one class teaches nothing"
    return ""


def _leak(column: pa.ChunkedArray, label_B: NDArray[np.float64]) -> _Verdict | None:
    """A column each of whose values goes with one label knows the label; of rare values or labels it proves nothing."""
    if _is_list(column.type) or min(label_B.sum(), (1 - label_B).sum()) < 20:
        return None
    coded = _bare(column).combine_chunks().dictionary_encode(null_encoding="encode")
    codes, distinct = coded.indices.to_numpy(), len(coded.dictionary)
    if distinct > len(codes) / 20:
        return None
    rows = np.bincount(codes, minlength=distinct)
    ones = np.bincount(codes, weights=label_B, minlength=distinct)
    if ((ones > 0) & (ones < rows)).any():
        return None
    return _Verdict(f"left out: gives the label away, each of its {distinct} values goes with one label")


def _judge(name: str, column: pa.ChunkedArray, names: Sequence[str]) -> _Verdict:
    kind, bare = column.type, _bare(column)
    if column.null_count == len(column):
        return _Verdict("left out: null in every row")
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _judge_time(name, column, names)
    if _is_list(kind):
        return _judge_list(name, column)
    if not _is_number(kind) and not _can_be_feature(kind):
        return _Verdict(f"left out: {kind} is neither a category nor a number")
    if len(pc.unique(bare)) == 1:
        return _Verdict(f"left out: {_show(bare[0].as_py())} in every row")
    if pa.types.is_integer(kind):
        return _judge_integer(name, column)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _judge_float(name, column)
    return _judge_text(name, bare)


def _judge_time(name: str, column: pa.ChunkedArray, names: Sequence[str]) -> _Verdict:
    wanted = ("hour", "weekday") if pa.types.is_timestamp(column.type) else ("weekday",)
    varying = [t for t in wanted if len(pc.unique(transforms.apply(column, t, name=name))) > 1]
    missing = [t for t in varying if f"{name}_{t}" not in names]
    if not missing:
        why = "columns already" if varying else "the same in every row"
        return _Verdict(f"left out: {' and '.join(varying or wanted)} of it {why}")
    span = pc.min_max(column).as_py()
    return _Verdict(
        f"time from {span['min']:%Y-%m-%d} to {span['max']:%Y-%m-%d}",
        features=tuple(Feature(name=f"{name}_{t}", column=name, transform=t) for t in missing),
    )


def _judge_list(name: str, column: pa.ChunkedArray) -> _Verdict:
    if not _can_be_feature(column.type):
        return _Verdict(f"left out: {column.type} is no list of categories")
    lengths = pc.list_value_length(column).drop_null().to_numpy()
    distinct = len(pc.unique(pc.list_flatten(column)))
    if distinct <= 1 and lengths.min() == lengths.max():
        return _Verdict("left out: the same list in every row")
    longest = max(1, int(np.quantile(lengths, 0.99, method="higher")))
    reason = f"list, {distinct:,} values, {lengths.mean():.1f} a row, {longest} or fewer in 99% of rows"
    return _Verdict(reason, features=(Feature(name=name, pooling="mean", max_length=longest),))


def _judge_text(name: str, column: pa.ChunkedArray) -> _Verdict:
    present = column.drop_null()
    distinct = pc.unique(present)
    rows = len(present)
    if len(distinct) == rows >= MANY:
        return _Verdict(f"left out: a different value in each of {rows:,} rows, as a row id")
    head = [value for value in distinct.slice(0, MANY).to_pylist() if isinstance(value, str)]
    if head and all(_TEXT_DATE.match(value) for value in head):
        return _Verdict(f"left out: dates as text ({head[0][:19]}); {_TO_TIMESTAMP}")
    if head and len(distinct) > rows / 2 and np.mean([len(value) for value in head]) > 60:
        return _Verdict(f"left out: long text, {_of(len(distinct), rows)}")
    return _Verdict(
        f"{str(column.type).removeprefix('large_')}, {_of(len(distinct), rows)}", features=(Feature(name=name),)
    )


def _judge_float(name: str, column: pa.ChunkedArray) -> _Verdict:
    values = _numbers(column)
    values = values[np.isfinite(values)]
    distinct, rows = len(np.unique(values)), len(values)
    if distinct < 2:
        return _Verdict("left out: no two different finite values")
    if _name_says(name) == "code" and distinct == rows >= MANY:
        return _Verdict(f"left out: a different value in each of {rows:,} rows, as a row id")
    how, why = scale(values)
    if (values == np.floor(values)).all():
        # pandas makes floats of integers with nulls, and CSV readers of integers beyond 64 bits.
        why += f"; all whole, {_of(distinct, rows)}: if it is an id, write it as an integer"
    return _Verdict(f"{column.type}, {why}", dense=(Dense(name=name, scale=how),))


def _judge_integer(name: str, column: pa.ChunkedArray) -> _Verdict:
    sample, said = Integers.of(column), _name_says(name)
    if time := sample.written_date or (said != "code" and sample.unix_time):
        return _Verdict(f"left out: {time}; {_TO_TIMESTAMP}")
    if sample.distinct == sample.rows >= MANY and (said == "code" or not (sample.falling or sample.bell)):
        return _Verdict(f"left out: a different integer in each of {sample.rows:,} rows, as a row id")
    code, why = _is_code(sample, said)
    if code:
        return _Verdict(f"{why}, {sample}", features=(Feature(name=name),))
    how, skewed = scale(sample.values)
    return _Verdict(f"{why}, {sample}, {skewed}", dense=(Dense(name=name, scale=how),))


def _is_code(sample: Integers, said: str) -> tuple[bool, str]:
    """Whether integers are codes, and why; the first rule that fits decides."""
    if sample.distinct <= 2:
        return True, "flag"
    if said == "code":
        return True, "code by its name"
    if sample.falling:
        return False, "count, frequencies fall with the value"
    if sample.distinct <= FEW and sample.distinct <= sample.rows / 4:
        return True, "code, few values"
    if said == "measure":
        return False, "measure by its name"
    if sample.negative:
        return False, "measure, negative values"
    if sample.bell:
        return False, "measure, frequencies rise and fall smoothly"
    return True, "code, frequencies don't follow the numbers"


def _name_says(name: str) -> str:
    """``"code"``, ``"measure"`` or nothing."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if not words:
        return ""
    if _MEASURE_FIRST.fullmatch(words[0]):
        return "measure"
    if _CODE.fullmatch(words[-1]):
        return "code"
    return "measure" if any(_MEASURE.fullmatch(word) for word in words) else ""


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _of(distinct: int, rows: int) -> str:
    return f"{distinct:,} values in {rows:,} rows"


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """The values of the rows that have one; NaN is none."""
    column = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
    values = column.drop_null().cast(pa.float64(), safe=False).to_numpy()
    return values[~np.isnan(values)]


def _bare(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of a dictionary or extension column."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _bare(pa.chunked_array([chunk.storage for chunk in column.chunks], type=kind.storage_type))
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def _is_number(kind: pa.DataType) -> bool:
    is_a = pa.types
    return bool(is_a.is_integer(kind) or is_a.is_floating(kind) or is_a.is_decimal(kind) or is_a.is_boolean(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _can_be_feature(kind: pa.DataType) -> bool:
    try:
        check_type(kind, "")
    except SchemaError:
        return False
    return True
