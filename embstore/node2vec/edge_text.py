"""Edge lists as text: fields found and whole numbers read by one compiled pass over the bytes.

    # comment        fields     0:"ann" "bob" "2.5"
    ann bob 2.5                 1:"bob" "eve" "1"

Ids are numbers where all of a file are whole numbers as one would print them; else all are text, so that ``7`` and
``007`` are two nodes. Suffixes: E edges, B bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore.errors import GraphError
from embstore.hashing import compiled

CHUNK = 2**24  # bytes read at a time
_LONGEST = 2**20  # bytes of a line
_SPACE, _TAB, _LINE, _RETURN, _COMMA = b" \t\n\r,"
_COMMENT, _PERCENT = b"#%"
_NAMES = ("source", "target", "weight")


@dataclass(frozen=True)
class Fields:
    """Of the edges in some lines."""

    data_B: NDArray[np.uint8]
    bounds: NDArray[np.int64]  # [E, 3, 2]: first byte and end of each field; those of no weight are 0
    line_E: NDArray[np.int64]  # counted from 1
    number_E2: NDArray[np.int64]
    whole_E: NDArray[np.bool_]  # whether both ids are whole numbers, as printed

    def ids(self, end: int) -> pa.Array:
        """The sources (0) or targets (1) as text."""
        return self._text(end).cast(pa.large_string())

    def weights(self) -> NDArray[np.float64]:
        """The third field of each line, ``[E]``."""
        text = self._text(2)
        try:
            return text.cast(pa.large_string()).cast(pa.float64()).to_numpy()
        except pa.ArrowException:
            for place in range(len(text)):
                try:
                    text.slice(place, 1).cast(pa.large_string()).cast(pa.float64())
                except pa.ArrowException as error:
                    do = "take a header out, or begin it with #; name the separator where ids hold spaces"
                    found = f"{text[place].as_py()[:40]!r}"
                    raise GraphError(
                        f"line {self.line_E[place]:,}", expected="a number as the third field", found=found, do=do
                    ) from error
            raise

    def _text(self, field: int) -> pa.Array:
        bounds = self.bounds[:, field]
        offsets = np.concatenate([[0], np.cumsum(bounds[:, 1] - bounds[:, 0])])
        data_B = np.empty(int(offsets[-1]), np.uint8)
        _gather(self.data_B, bounds, offsets, data_B)
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(bounds), [None, pa.py_buffer(offsets), pa.py_buffer(data_B)]
        )


def fields_of(stream: pa.NativeFile, separator: str | None) -> Iterator[tuple[Fields, bool]]:
    """The edges of a text, and whether they have weights, some lines at a time.

    Args:
        separator: one character; when None, a comma where the first line has one, else any spaces and tabs.

    Raises:
        GraphError: a line that is no edge, with its number.
    """
    mark = -1 if separator is None else separator.encode()[0]
    rest, lines, width = b"", 0, 0
    while True:
        chunk = stream.read(CHUNK)
        data = rest + chunk
        cut = len(data) if not chunk else data.rfind(b"\n") + 1
        data, rest = data[:cut], data[cut:]
        if len(rest) > max(CHUNK, _LONGEST):
            raise GraphError(f"line {lines + 1:,}", expected="an edge", found="16 MiB without an end of line")
        if b"\0" in data:
            raise GraphError("a list of edges", expected="text, or Parquet", found="binary data")
        if data:
            if mark < 0:
                mark = _separator(data)
            data_B = np.frombuffer(data, np.uint8)
            count = data.count(b"\n") + 1
            bounds, line_E = np.zeros((count, 3, 2), np.int64), np.empty(count, np.int64)
            edges, lines, width, wrong = _split(data_B, max(mark, 0), lines, width, bounds, line_E)
            if wrong:
                expected = f"{width} fields as in the first line" if width else "two ids, and a weight or none"
                found = "another number of them, or an empty one"
                raise GraphError(f"line {lines:,}", expected=expected, found=found)
            number_E2, whole_E = np.empty((edges, 2), np.int64), np.empty(edges, bool)
            _read(data_B, bounds[:edges], number_E2, whole_E)
            yield Fields(data_B, bounds[:edges], line_E[:edges], number_E2, whole_E), width == 3
        if not chunk:
            return


def is_header(fields: Fields, weighted: bool) -> bool:
    """Whether the first line names the columns."""
    first = [bytes(fields.data_B[a:b]).lower() for a, b in fields.bounds[0, : 3 if weighted else 2].tolist()]
    return first == [name.encode() for name in _NAMES[: len(first)]]


def _separator(data: bytes) -> int:
    for line in data.split(b"\n", 1000):
        line = line.strip()
        if line and line[0] not in (_COMMENT, _PERCENT):
            return _COMMA if b"," in line else 0
    return -1


@compiled(nogil=True)
def _split(data_B, mark, lines, width, bounds, line_E):  # type: ignore[no-untyped-def]
    """Fields of each line between separators, or, when it is 0, runs of spaces and tabs; spaces around them go."""
    edges, at, size = 0, 0, len(data_B)
    while at < size:
        end = at
        while end < size and data_B[end] != _LINE:
            end += 1
        lines += 1
        begin, stop = at, end
        at = end + 1
        while begin < stop and (data_B[begin] == _SPACE or data_B[begin] == _TAB) and data_B[begin] != mark:
            begin += 1
        while stop > begin and (
            (data_B[stop - 1] == _SPACE or data_B[stop - 1] == _TAB or data_B[stop - 1] == _RETURN)
            and data_B[stop - 1] != mark
        ):
            stop -= 1
        if begin == stop or data_B[begin] == _COMMENT or data_B[begin] == _PERCENT:
            continue
        count, place = 0, begin
        while True:
            low = place
            while place < stop and (
                data_B[place] != mark if mark else data_B[place] != _SPACE and data_B[place] != _TAB
            ):
                place += 1
            high = place
            while low < high and (data_B[low] == _SPACE or data_B[low] == _TAB):
                low += 1
            while high > low and (data_B[high - 1] == _SPACE or data_B[high - 1] == _TAB):
                high -= 1
            if count == 3 or low == high:
                return edges, lines, width, True
            bounds[edges, count, 0], bounds[edges, count, 1] = low, high
            count += 1
            if place >= stop:
                break
            place += 1
            if not mark:
                while data_B[place] == _SPACE or data_B[place] == _TAB:
                    place += 1
        if count < 2 or (width and count != width):
            return edges, lines, width, True
        width = count
        line_E[edges] = lines
        edges += 1
    return edges, lines, width, False


@compiled(nogil=True)
def _read(data_B, bounds, number_E2, whole_E):  # type: ignore[no-untyped-def]
    for e in range(len(bounds)):
        whole_E[e] = True
        for end in range(2):
            low, high = bounds[e, end, 0], bounds[e, end, 1]
            minus = data_B[low] == 45
            low += minus
            number = np.int64(0)
            # As printed: no leading zero, no -0, and at most 18 digits, which never overflow.
            if high == low or high - low > 18 or (data_B[low] == 48 and (minus or high - low > 1)):
                whole_E[e] = False
                continue
            for place in range(low, high):
                digit = np.int64(data_B[place]) - 48
                if digit < 0 or digit > 9:
                    whole_E[e] = False
                    break
                number = number * 10 + digit
            number_E2[e, end] = -number if minus else number


@compiled(nogil=True)
def _gather(data_B, bounds, offsets, out_B):  # type: ignore[no-untyped-def]
    for e in range(len(bounds)):
        start = offsets[e]
        for i in range(bounds[e, 1] - bounds[e, 0]):
            out_B[start + i] = data_B[bounds[e, 0] + i]
