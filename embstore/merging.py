"""Parts of what is known of a feature's values, in memory or on disk -> sorted tables, in bounded memory.

    run 0   | a .. f | f .. k | k .. z |        sorted, in batches whose first values are known
    run 1   | b .. c | d .. q | r .. y |
    range     a ........ d ....... k ....... z   cut at some of the batches' first values; merged one at a time

Each range goes through a ``Summary``, so what comes out doesn't depend on the number of parts or where they
were cut.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from embstore.aggregates import VALUE, Kinds, Sorted, Summary

RUN_ROWS = 16_384  # of a batch of a run
TABLE_ROWS = 131_072  # of a table that is given
RANGE_ROWS = 1 << 20  # merged at a time


@dataclass(frozen=True)
class Partial:
    """A part of what is known of a feature's values: of some rows, or as it was yesterday.

    Args:
        kinds: of its values.
        summary, table, run: where they are, one of the three; a run is sorted.
    """

    kinds: Kinds
    summary: Summary | None = None
    table: pa.Table | None = None
    run: Path | None = None

    @classmethod
    def of(cls, table: pa.Table, *parts: Partial) -> Partial:
        """A table that was made of parts."""
        agreed = Summary("")
        for part in parts:
            agreed.agree(part.kinds)
        return cls(agreed.kinds, table=table)


def merged(feature: str, parts: Sequence[Partial], *, range_rows: int = RANGE_ROWS) -> Iterator[pa.Table]:
    """What all parts of a feature know together, in sorted tables of ``TABLE_ROWS`` (the last: fewer; at least one).

    Summaries among the parts may be changed.

    Args:
        feature: its name.
        parts: at least one.
        range_rows: of runs, about so many rows are in memory at a time.

    Raises:
        SchemaError: their values have no common type.
    """
    if not any(part.run for part in parts):
        whole = _absorbed(feature, parts).sorted()
        return whole.tables(TABLE_ROWS)
    return resized(_by_ranges(feature, parts, range_rows))


def write_run(path: Path, values: Sorted) -> None:
    """Write sorted values as a run."""
    _write(path, values.tables(RUN_ROWS))


def write_tables(path: Path, tables: Iterator[pa.Table]) -> None:
    """Write sorted tables as a run."""
    _write(path, (table.slice(at, RUN_ROWS) for table in tables for at in range(0, max(table.num_rows, 1), RUN_ROWS)))


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as file:
        file.write_table(first)
        for table in tables:
            file.write_table(table)


def split(table: pa.Table, cuts: Sequence[Any]) -> list[pa.Table]:
    """A sorted table in ``len(cuts) + 1`` parts, each of the values from a cut on to the next."""
    column = table.column(VALUE).combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    at = [0, *(_position(column, cut) for cut in cuts), table.num_rows]
    return [table.slice(low, high - low) for low, high in pairwise(at)]


def _position(column: pa.Array, value: Any) -> int:
    """How many values are less."""
    return bisect_left(range(len(column)), value, key=lambda row: column[row].as_py())


def _absorbed(feature: str, parts: Sequence[Partial]) -> Summary:
    summaries = [part.summary for part in parts if part.summary is not None]
    whole = max(summaries, key=len, default=Summary(feature))
    for part in parts:
        if part.summary is None:
            whole.absorb(part.table, part.kinds)
        elif part.summary is not whole:
            whole.join(part.summary)
    return whole


class _Run:
    """A sorted run that is read forward, from value to value."""

    def __init__(self, path: Path) -> None:
        self.file = pa.ipc.open_file(pa.OSFile(str(path)))
        self.heads: list[Any] = []
        for number in range(self.file.num_record_batches):
            batch = self.file.get_batch(number)
            self.heads.append(batch.column(VALUE)[0].as_py() if batch.num_rows else None)
        if self.heads == [None]:
            self.heads = []
        self.batch = self.row = 0

    def until(self, cut: Any) -> list[pa.RecordBatch]:
        """What lies before a value; the rest, when it is ``None``."""
        out = []
        stop = len(self.heads) if cut is None else bisect_left(self.heads, cut)
        for number in range(self.batch, stop):
            batch = self.file.get_batch(number)
            start = self.row if number == self.batch else 0
            last = number == stop - 1 and cut is not None
            end = _position(batch.column(VALUE), cut) if last else batch.num_rows
            out.append(batch.slice(start, end - start))
            self.batch, self.row = (number, end) if end < batch.num_rows else (number + 1, 0)
        return out


def _by_ranges(feature: str, parts: Sequence[Partial], range_rows: int) -> Iterator[pa.Table]:
    kinds = Partial.of(pa.table({}), *parts).kinds
    held = [part for part in parts if part.run is None]
    paths = [part.run for part in parts if part.run is not None]
    if held:
        paths.append(paths[0].with_suffix(".rest.arrow"))
        write_run(paths[-1], _absorbed(feature, held).sorted())
    runs = [_Run(path) for path in paths]
    heads = sorted(head for run in runs for head in run.heads)
    cuts = heads[:: max(1, range_rows // RUN_ROWS)][1:]
    summary = Summary(feature)
    summary.agree(kinds)
    for cut in [*dict.fromkeys(cuts), None]:
        for run in runs:
            for batch in run.until(cut):
                summary.absorb(pa.Table.from_batches([batch]), kinds)
        yield summary.sorted().table()
        summary.forget()


def resized(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of ``TABLE_ROWS``."""
    waiting: pa.Table | None = None
    for table in tables:
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while waiting.num_rows > TABLE_ROWS:
            yield waiting.slice(0, TABLE_ROWS).combine_chunks()
            waiting = waiting.slice(TABLE_ROWS)
    if waiting is not None:
        yield waiting.combine_chunks()
