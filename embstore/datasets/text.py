"""Delimited text -> Arrow tables, in bounded memory, with errors that name file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from embstore.errors import DatasetError

BLOCK_BYTES = 8 << 20  # parsed at a time
_UNIT = "\x1f"  # ASCII's unit separator, in the place of delimiters of two characters


def text_tables(
    path: Path,
    types: Mapping[str, pa.DataType],
    *,
    delimiter: str,
    header: bool = False,
    quoted: bool = False,
    only: Sequence[str] = (),
    encoding: str = "utf8",
) -> Iterator[pa.Table]:
    """Delimited text (``.gz`` too) as tables of some MB; an empty field is null.

    Args:
        types: of all fields, in order.
        delimiter: one character; a file with a longer one is read whole.
        header: the first line names the fields; it must name these.
        quoted: fields may be in double quotes.
        only: fields to keep (all when empty).

    Raises:
        DatasetError: a line with another number of fields, or a field of another type: file and line are named.
    """
    if header:
        _check_header(path, types, delimiter)
    # Arrow knows row numbers, for messages, only without threads; writing Parquet takes longer than parsing anyway.
    read = pacsv.ReadOptions(
        column_names=list(types), skip_rows=int(header), block_size=BLOCK_BYTES, use_threads=False, encoding=encoding
    )
    parse = pacsv.ParseOptions(
        delimiter=_one(delimiter), quote_char='"' if quoted else False, newlines_in_values=quoted
    )
    convert = pacsv.ConvertOptions(
        column_types=dict(types), null_values=[""], strings_can_be_null=True, include_columns=list(only)
    )
    try:
        with (
            _open(path, delimiter) as stream,
            pacsv.open_csv(stream, read_options=read, parse_options=parse, convert_options=convert) as reader,
        ):
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise _broken(path, str(error).split("\n")[0], list(types)) from error


def _open(path: Path, delimiter: str) -> pa.NativeFile:
    stream = pa.input_stream(str(path))
    return stream if len(delimiter) == 1 else pa.BufferReader(stream.read().replace(delimiter.encode(), _UNIT.encode()))


def _one(delimiter: str) -> str:
    return delimiter if len(delimiter) == 1 else _UNIT


def text_table(path: Path, types: Mapping[str, pa.DataType], **options: object) -> pa.Table:
    """All of ``text_tables``."""
    return pa.concat_tables(text_tables(path, types, **options))  # type: ignore[arg-type]


def first_line(path: Path) -> str:
    """The first line of a text file (``.gz`` too)."""
    try:
        with pa.input_stream(str(path)) as stream:
            return bytes(stream.read(1 << 16)).split(b"\n")[0].decode(errors="replace").rstrip("\r")
    except (OSError, pa.ArrowException) as error:
        raise _broken(path, str(error).split("\n")[0], []) from error


def count_lines(path: Path) -> int:
    """Lines of a text file (``.gz`` too), the last with or without its newline."""
    lines, last = 0, b"\n"
    try:
        with pa.input_stream(str(path)) as stream:
            while block := stream.read(BLOCK_BYTES):
                lines += block.count(b"\n")
                last = block[-1:]
    except (OSError, pa.ArrowException) as error:
        raise _broken(path, str(error).split("\n")[0], []) from error
    return lines + (last != b"\n")


def _check_header(path: Path, types: Mapping[str, pa.DataType], delimiter: str) -> None:
    found = [field.strip('"').strip("\ufeff") for field in first_line(path).split(delimiter)]
    if found != list(types):
        raise DatasetError(
            f"{path}: the first line", expected=delimiter.join(types), found=delimiter.join(found)[:500] or "nothing"
        )


def _broken(path: Path, message: str, fields: Sequence[str]) -> DatasetError:
    """What Arrow says of a bad file, in our words."""
    row = re.search(r"Row #(\d+)", message)
    where = f"{path}, line {int(row[1]):,}" if row else str(path)
    if width := re.search(r"Expected (\d+) columns, got (\d+)", message):
        return DatasetError(where, expected=f"{width[1]} fields", found=width[2])
    if value := re.search(r"In CSV column #(\d+).*conversion error to (\w+): (.*)", message):
        kind = {"string": "UTF-8 text", "double": "a number", "float": "a number"}.get(value[2], "a whole number")
        return DatasetError(where, expected=f"{kind} in field {fields[int(value[1])]}", found=value[3])
    if "Empty CSV" in message:
        return DatasetError(where, expected="rows", found="an empty file")
    return DatasetError(where, expected="a whole, readable file", found=message)
