"""The values whose vectors are exported, given as arrays or read from files (those of a log: ``embstore.counting``).

A table knows rows, not values. A vocabulary is a table of distinct values for each feature:

    value   string, int64, ...   one type a feature, no nulls; for a list column, what its lists hold; for a
                                 transformed timestamp, what the transform gives
    count   int64                if known
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from embstore.column_types import stored_type
from embstore.counting import COUNT, VALUE
from embstore.errors import DataError, LogError, SchemaError
from embstore.schema import Feature
from embstore.tokens import check_type

FEATURE = "feature"
_INTEGER = "u?int(8|16|32|64)|bool"
_NAME_ROWS = 1 << 20  # names of features read at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueColumn:
    """The values of one feature, read piece by piece.

    Args:
        source: where they are.
        column: name of the column that holds them.
        count: name of the column of counts, or ``None``.
        only: the rows that are this feature's; all when ``None``.
        where: for messages.
    """

    source: ds.Dataset
    column: str = VALUE
    count: str | None = None
    only: ds.Expression | None = None
    where: str

    @property
    def type(self) -> pa.DataType:
        """Of the values, as a file holds them: plain text instead of dictionaries, views and 64-bit offsets."""
        return stored_type(self.source.schema.field(self.column).type)

    def rows(self) -> int:
        """How many there are."""
        with reading(self.where):
            return self.source.count_rows(filter=self.only)

    def pieces(self, size: int) -> Iterator[pa.Table]:
        """Tables of ``value`` and, where counted, ``count`` (int64), of at most ``size`` rows, in order.

        Raises:
            DataError: a value or count is missing.
            LogError: a file can't be read.
        """
        columns = {VALUE: ds.field(self.column)} | ({COUNT: ds.field(self.count)} if self.count else {})
        with reading(self.where):
            batches = scan(self.source, columns, size, only=self.only)
        done = 0
        while True:
            with reading(self.where):
                batch = next(batches, None)
                if batch is None:
                    return
                arrays = {VALUE: batch.column(VALUE).cast(self.type)}
                if self.count:
                    arrays[COUNT] = batch.column(COUNT).cast(pa.int64())
            for name, array in arrays.items():
                if array.null_count:
                    row = done + pc.index(array.is_null(), True).as_py()
                    raise DataError(f"{self.where}: {name}, row {row:,}", expected="a value", found="a missing one")
            done += batch.num_rows
            for start in range(0, batch.num_rows, size):
                yield pa.table(arrays).slice(start, size)


@dataclass(frozen=True, kw_only=True, eq=False)
class TextLines:
    """The values of one feature in a text file of UTF-8: each line, as it stands, is one.

    Args:
        path: of the file.
        type: what a line is read as.
        where: for messages.
    """

    path: Path
    type: pa.DataType
    where: str
    count = None

    def rows(self) -> int:
        """How many there are."""
        with reading(self.where, "lines of text"), self.path.open("rb") as file:
            return sum(1 for _ in file)

    def pieces(self, size: int) -> Iterator[pa.Table]:
        """Tables of ``value``, of at most ``size`` rows, in order.

        Raises:
            DataError: no lines, or one that is blank, not UTF-8 or not of the type; lines are counted from 1.
            LogError: the file can't be read.
        """
        done = 0
        with reading(self.where, "lines of text"), self.path.open("rb") as file:
            while lines := [line.removesuffix(b"\n").removesuffix(b"\r") for line in islice(file, size)]:
                if not done:
                    lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
                yield pa.table({VALUE: self._values(lines, done + 1)})
                done += len(lines)
        if not done:
            raise DataError(self.where, expected="a value in each line", found="an empty file")

    def _values(self, lines: list[bytes], first: int) -> pa.Array:
        """Lines as values; ``first`` is the number of the first."""
        if b"" in lines:
            do = "take it out: a blank line is no value"
            raise DataError(
                f"{self.where}, line {first + lines.index(b''):,}", expected="a value", found="a blank line", do=do
            )
        try:
            return pa.array(lines, pa.binary()).cast(pa.string()).cast(self.type)
        except pa.ArrowInvalid as error:
            if len(lines) == 1:
                found = lines[0][:80].decode(errors="backslashreplace")
                expected = f"{self.type} in UTF-8, as `embstore lookup` takes it"
                raise DataError(f"{self.where}, line {first:,}", expected=expected, found=repr(found)) from error
            middle = len(lines) // 2  # the first line at fault is in one half, or in the other
            self._values(lines[:middle], first)
            return self._values(lines[middle:], first + middle)


def in_memory(values: Any, feature: str) -> ValueColumn:
    """The column of an Arrow array, or of a table of ``value`` and perhaps ``count``.

    Raises:
        SchemaError: something else.
    """
    where = f"values of {feature!r}"
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        values = pa.table({VALUE: values})
    if not isinstance(values, pa.Table) or VALUE not in values.column_names:
        found = f"columns {', '.join(values.column_names)}" if isinstance(values, pa.Table) else type(values).__name__
        raise SchemaError(where, expected="an Arrow array, or a table with a column 'value'", found=found)
    return ValueColumn(source=ds.dataset(values), count=COUNT if COUNT in values.column_names else None, where=where)


def open_values(
    path: str | Path, *, feature: str | None = None, trained_on: str | None = None, known: Collection[str] = ()
) -> dict[str, ValueColumn | TextLines]:
    """The values in a file or folder, by feature. Nothing but footers and the names of features is read.

    Three layouts of Parquet are known: folders ``feature=NAME`` with a column ``value`` (what ``export_parquet``
    writes), columns ``feature`` and ``value``, or a column for each feature, of which nulls are left out. The first two
    may have ``count``. Two more hold the values of one feature: Parquet with the column ``value``, perhaps ``count``,
    and others, which are not read, unless one is called as a feature is; and text, a file named ``.txt`` with one value
    a line.

    Args:
        path: where.
        feature: whose values they are, where the file doesn't say.
        trained_on: its log's column type as a manifest has it: what lines of text are read as, text when not given.
        known: names of features.

    Raises:
        LogError: nothing there, or neither Parquet nor ``.txt``.
        SchemaError: a folder's file has no column ``value``, or text without a feature.
    """
    path, where = Path(path), f"values {path}"
    if path.suffix == ".txt" and not path.is_dir():
        if feature is None:
            do = "name it, and no other"
            raise SchemaError(where, expected="the feature whose values these are", found="none or several", do=do)
        if not path.exists():
            raise LogError(where, expected="a text file, one value a line", found="no such file")
        return {feature: TextLines(path=path, type=text_type(trained_on or ""), where=where)}
    folders = sorted(path.glob(f"{FEATURE}=*/")) if path.is_dir() else []
    if folders:
        return {
            unquote(folder.name.partition("=")[2]): _long(open_dataset(folder, "values"), f"{where}/{folder.name}")
            for folder in folders
        }
    source = open_dataset(path, "values")
    columns = set(source.schema.names)
    alone = columns <= {VALUE, COUNT} or columns.isdisjoint({FEATURE, *known})
    if feature is not None and feature not in columns and VALUE in columns and alone:
        return {feature: _long(source, where)}
    if not {FEATURE, VALUE} <= columns:
        return {
            name: ValueColumn(source=source, column=name, only=ds.field(name).is_valid(), where=f"{where}: {name}")
            for name in source.schema.names
        }
    names: dict[str, None] = {}
    with reading(where):
        for batch in scan(source, {FEATURE: ds.field(FEATURE)}, _NAME_ROWS):
            names |= dict.fromkeys(batch.column(FEATURE).unique().to_pylist())
    if None in names:
        raise DataError(where, expected="a feature in each row", found="a row without one")
    return {name: replace(_long(source, where), only=ds.field(FEATURE) == name) for name in names}


def open_dataset(path: str | Path, what: str) -> ds.Dataset:
    """A Parquet file or folder, to be read in bounded memory: Arrow would keep every row group it has read.

    Args:
        path: where.
        what: it holds, for messages.

    Raises:
        LogError: nothing there, or no Parquet.
    """
    options = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
    with reading(f"{what} {path}"):
        source = ds.dataset(path, format=ds.ParquetFileFormat(default_fragment_scan_options=options))
    if not source.files:
        raise LogError(f"{what} {path}", expected="a Parquet file, or a folder of them", found="none")
    return source


def scan(
    source: ds.Dataset, columns: Mapping[str, ds.Expression], size: int, *, only: ds.Expression | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of about ``size`` rows, in order and read no further ahead than one."""
    ahead = {"use_threads": False, "batch_readahead": 1, "fragment_readahead": 1}
    return iter(source.scanner(columns=dict(columns), filter=only, batch_size=size, **ahead).to_batches())


@cache
def element_type(kind: str) -> str:
    """An Arrow type as text, the lists and dictionaries around it taken off.

    >>> element_type("list<element: int64>"), element_type("timestamp[us, tz=UTC]")
    ('int64', 'timestamp')
    """
    return re.sub(r"^.*(list<[^:]*: |values=)|[,>\[].*$", "", kind)


def text_type(trained_on: str) -> pa.DataType:
    """What text is read as, to be values of a log's column of this type (as a manifest has it)."""
    element = element_type(trained_on)
    if re.fullmatch(_INTEGER, element):
        return pa.type_for_alias(element)
    return pa.timestamp("us") if element.startswith(("timestamp", "date")) else pa.string()


def check_values(kind: pa.DataType, feature: Feature, trained_on: str | None) -> None:
    """Raise ``SchemaError`` unless values of this type are what the feature was trained on.

    Args:
        kind: of the values, one each.
        trained_on: the log's column type as a manifest has it, or ``None`` where it isn't known.
    """
    temporal = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    if feature.transform is not None and temporal:
        return
    check_type(kind, feature.name)
    if pa.types.is_nested(kind):
        do = "give the values in the lists, each once"
        raise SchemaError(f"values of {feature.name!r}", expected="single values", found=str(kind), do=do)
    expected = "integer" if feature.transform is not None else _family(trained_on or "")
    if expected not in ("", _family(str(kind))):
        column = feature.transform or trained_on
        do = "cast them: other types hash to other rows"
        raise SchemaError(f"values of {feature.name!r}", expected=f"values like {column}", found=str(kind), do=do)


def _family(kind: str) -> str:
    """``integer`` or ``text`` of an Arrow type as text, the lists and dictionaries around it taken off; else empty."""
    element = element_type(kind)
    if re.fullmatch(_INTEGER, element):
        return "integer"
    return "text" if element in ("string", "large_string", "string_view") or "binary" in element else ""


def _long(source: ds.Dataset, where: str) -> ValueColumn:
    if VALUE not in source.schema.names:
        raise SchemaError(where, expected="a column 'value'", found=", ".join(source.schema.names))
    return ValueColumn(source=source, count=COUNT if COUNT in source.schema.names else None, where=where)


class reading:  # noqa: N801 - reads as a phrase: with reading(where)
    """Turns what Arrow raises for what can't be read into ``LogError``."""

    def __init__(self, where: str, expected: str = "Parquet that can be read") -> None:
        self.where, self.expected = where, expected

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OSError, pa.ArrowException)):
            found = "no such file" if isinstance(error, FileNotFoundError) else str(error)  # which is only the path
            raise LogError(self.where, expected=self.expected, found=found) from error
