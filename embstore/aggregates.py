"""What is known of each distinct value of a feature, added up block by block: exact, in any order, in any parts.

    value       string, int64, ...   what a lookup takes: of a list its elements, of a time what its transform gives
    count       int64                how often
    clicks      int64                the sum of its rows' labels; of lists, each element counts its row's
    first_seen  int64                the least and the greatest of its rows' times, null without
    last_seen   int64

A ``Summary`` adds blocks of a log (``add``) and such tables of other summaries (``absorb``), and gives one, sorted by
value. Sums, least and greatest don't depend on the order of adding, so neither does what it gives.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embstore.errors import DataError, SchemaError
from embstore.flat_values import bytes_of, fixed, is_text, numbers_of, single_values, tallied, validity_of
from embstore.kernels import aggregate as kernels
from embstore.kernels import entries as ordering
from embstore.kernels.aggregate import EVER, NEVER
from embstore.schema import Feature
from embstore.tokens import MAX_BYTES
from embstore.value_tables import ValueTable

VALUE, COUNT, CLICKS, FIRST, LAST = "value", "count", "clicks", "first_seen", "last_seen"

_NONE = np.empty(0, np.int64)
_DIVIDED = 1 << 14  # values of a table that is divided among several, so that threads need not wait
_FIRST_UNSIGNED = 1 << 63
_NAMED = {
    str(kind): kind
    for kind in (
        *(pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.large_string(), pa.large_binary()),
    )
}


@dataclass(frozen=True)
class Brought:
    """What the rows of a block bring to the values in them; empty: a count of 1, no clicks, no time.

    Args:
        clicks: int64 labels, 0 or 1.
        first, last: int64 times; of a row without one ``NEVER`` and ``EVER``.
        count: int64, of rows that stand for many.
    """

    clicks: NDArray[np.int64] = field(default_factory=lambda: _NONE)
    first: NDArray[np.int64] = field(default_factory=lambda: _NONE)
    last: NDArray[np.int64] = field(default_factory=lambda: _NONE)
    count: NDArray[np.int64] = field(default_factory=lambda: _NONE)


@dataclass(frozen=True)
class Kinds:
    """What types the values of a feature had, of which ``Summary.type`` makes one.

    Args:
        types: of blocks that held values.
        untyped: of one that held none.
        beyond: a value that int64 can't hold, if there was one.
    """

    types: tuple[pa.DataType, ...] = ()
    untyped: pa.DataType | None = None
    beyond: int | None = None

    def to_metadata(self) -> dict[str, str]:
        """As texts; other than the names of Arrow's plain types there are none."""
        untyped = "" if self.untyped is None else str(self.untyped)
        return {"types": ",".join(sorted(map(str, self.types))), "untyped": untyped, "beyond": str(self.beyond or "")}

    @classmethod
    def from_metadata(cls, texts: Mapping[Any, Any]) -> Kinds:
        """What ``to_metadata`` gave.

        Raises:
            KeyError, ValueError: something else.
        """
        plain = {str(key, "utf-8") if isinstance(key, bytes) else key: of for key, of in texts.items()}
        plain = {key: str(of, "utf-8") if isinstance(of, bytes) else of for key, of in plain.items()}
        types = tuple(_NAMED[name] for name in plain["types"].split(",") if name)
        untyped = _NAMED[plain["untyped"]] if plain["untyped"] else None
        return cls(types, untyped, int(plain["beyond"]) if plain["beyond"] else None)


class Summary:
    """The distinct values of one feature and what is known of each. Threads may add to it at the same time.

    Args:
        feature: its name, for messages.
        tables: a power of 2: into so many the values are divided when they are many, each with a lock of its own.
    """

    def __init__(self, feature: str, *, tables: int = 1) -> None:
        self.feature = feature
        self.types: dict[pa.DataType, None] = {}  # of the blocks that held values
        self.untyped: pa.DataType | None = None  # of one that held none
        self._beyond: int | None = None  # a value that int64 can't hold
        self._tables = [ValueTable()]
        self._most = tables
        self._lock = threading.Lock()  # of what is above

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return sum(table.bytes for table in self._tables)

    @property
    def type(self) -> pa.DataType:
        """One type for all values: the log's, or where files differ in the width of integers, one that holds them.

        Raises:
            SchemaError: there is none.
        """
        kinds = list(self.types) or ([self.untyped] if self.untyped is not None else [pa.large_string()])
        if len(kinds) == 1:
            return kinds[0]
        if all(pa.types.is_unsigned_integer(kind) for kind in kinds):
            return pa.uint64()
        if not all(pa.types.is_integer(kind) or pa.types.is_boolean(kind) for kind in kinds):
            found = ", ".join(map(str, kinds))
            raise SchemaError(f"values of {self.feature!r}", expected="values of one type", found=found)
        if self._beyond is not None:
            found = f"{self._beyond} and {', '.join(map(str, kinds))}"
            raise SchemaError(f"values of {self.feature!r}", expected="integers of one type", found=found)
        return pa.int64()

    def add(self, column: pa.ChunkedArray, feature: Feature, brought: Brought) -> None:
        """Add a column of a log, with what its rows bring.

        Raises:
            DataError: a text that is too long to be a category.
            SchemaError: a column that can't be taken apart as the feature says.
        """
        start = 0
        for chunk in column.chunks or [pa.array([], column.type)]:
            stop = start + len(chunk)
            values, rows = single_values(chunk, feature)
            part = Brought(*(of[start:stop] for of in (brought.clicks, brought.first, brought.last)))
            self._add(values, rows, part)
            start = stop

    def agree(self, kinds: Kinds) -> None:
        """Take notice of the types of values that come from elsewhere."""
        with self._lock:
            self.types |= dict.fromkeys(kinds.types)
            self.untyped = kinds.untyped if self.untyped is None else self.untyped
            self._beyond = max((of for of in (self._beyond, kinds.beyond) if of is not None), default=None)

    @property
    def kinds(self) -> Kinds:
        """What types its values had."""
        return Kinds(tuple(self.types), self.untyped, self._beyond)

    def absorb(self, table: pa.Table, kinds: Kinds | None = None) -> None:
        """Add what another summary gave; ``kinds`` are those of its values, if the table's type doesn't tell."""
        if kinds is not None:
            own = self.kinds
        self._absorb(table)
        if kinds is not None:
            self.types, self.untyped, self._beyond = dict.fromkeys(own.types), own.untyped, own.beyond
            self.agree(kinds)

    def _absorb(self, table: pa.Table) -> None:
        first = table.column(FIRST).fill_null(NEVER).to_numpy()
        last = table.column(LAST).fill_null(EVER).to_numpy()
        clicks, count = table.column(CLICKS).to_numpy(), table.column(COUNT).to_numpy()
        start = 0
        for chunk in table.column(VALUE).chunks:
            stop = start + len(chunk)
            part = Brought(*(of[start:stop] for of in (clicks, first, last, count)))
            self._add(chunk, _NONE, part)
            start = stop
        if table.num_rows == 0:
            self._add(pa.array([], table.schema.field(VALUE).type), _NONE, Brought())

    def join(self, other: Summary) -> None:
        """Add another one's values.

        Raises:
            SchemaError: they are of another type.
        """
        self.agree(other.kinds)
        numbers = not is_text(self.type)
        for table in other._tables:
            self._join(table, numbers)

    def _join(self, table: ValueTable, numbers: bool) -> None:
        given = (table.entries, table.text, table.hashes(numbers))

        def put(into: ValueTable, pick_M: NDArray[np.int64]) -> None:
            into.add(kernels.add_entries, (*given, pick_M), len(pick_M), numbers)

        self._deal(given[2], *validity_of(None), _NONE, _NONE, put, numbers)

    def forget(self) -> None:
        """Be without values again, but with the room for as many, and knowing what types they had."""
        for table in self._tables:
            table.forget()

    def taken(self) -> Sorted:
        """Its values in order; they are its own no more. What is added meanwhile stays."""
        with self._lock:  # they are not divided meanwhile
            tables = [table.taken() for table in self._tables]
        return Sorted(self.type, tables)

    def sorted(self) -> Sorted:
        """Its values in order; it must not change while this is used."""
        return Sorted(self.type, self._tables)

    def _add(self, values: pa.Array, rows: NDArray[np.int64], brought: Brought) -> None:
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if len(values) == values.null_count:
            with self._lock:
                self.untyped = kind if self.untyped is None else self.untyped
            return
        most = pc.max(values).as_py() if kind == pa.uint64() else 0
        with self._lock:
            self.types[kind] = None
            self._beyond = max(most, self._beyond or 0) if most >= _FIRST_UNSIGNED else self._beyond
        given = (brought.count, brought.clicks, brought.first, brought.last)
        values, rows, (count, *others) = tallied(values, rows, *given)
        validity, shift = validity_of(values)
        brings = tuple(map(fixed, (rows, count, *others)))
        hash_N = np.empty(len(values), np.uint64)
        numbers = not is_text(kind)
        given_values: tuple[NDArray[Any], ...]
        if numbers:
            given_values = (numbers_of(values),)
            kernels.hash_numbers(*given_values, hash_N)
            kernel = kernels.add_numbers
        else:
            given_values = bytes_of(values)
            longest = kernels.hash_text(*given_values, hash_N)
            if longest > MAX_BYTES:
                raise DataError(
                    f"values of {self.feature!r}",
                    expected=f"at most {MAX_BYTES:,} bytes each",
                    found=f"one of {longest:,}",
                    do="leave the column out if it is free text, or shorten its values when the log is written",
                )
            kernel = kernels.add_text

        def put(into: ValueTable, pick_M: NDArray[np.int64]) -> None:
            into.add(kernel, (*given_values, hash_N, pick_M, *brings), len(pick_M), numbers)

        self._deal(hash_N, validity, shift, brings[0], brings[1], put, numbers)

    def _deal(
        self,
        hash_N: NDArray[np.uint64],
        validity: NDArray[np.uint8],
        shift: int,
        rows: NDArray[np.int64],
        count: NDArray[np.int64],
        put: Callable[[ValueTable, NDArray[np.int64]], None],
        numbers: bool,
    ) -> None:
        """Put values into the tables that they belong to."""

        def dealt(tables: int) -> list[NDArray[np.int64]]:
            begin_T, pick_N = np.empty(tables + 1, np.int64), np.empty(len(hash_N), np.int64)
            bits = tables.bit_length() - 1
            kernels.deal(hash_N, validity, shift, fixed(rows), fixed(count), bits, begin_T, pick_N)
            return np.split(pick_N[: begin_T[-1]], begin_T[1:-1])

        with self._lock:
            if len(self._tables) == 1:
                with self._tables[0].lock:
                    put(self._tables[0], *dealt(1))
                if self._most > 1 and len(self._tables[0]) > _DIVIDED:
                    self._divide(numbers)
                return
        waiting = deque(zip(self._tables, dealt(len(self._tables)), strict=True))
        waiting.rotate(threading.get_native_id() % len(waiting))
        unwilling = 0  # tables that others have, one after the other
        while waiting:
            table, pick_M = waiting.popleft()
            if table.lock.acquire(blocking=unwilling >= len(waiting)):
                try:
                    put(table, pick_M)
                finally:
                    table.lock.release()
                unwilling = 0
            else:
                waiting.append((table, pick_M))
                unwilling += 1

    def _divide(self, numbers: bool) -> None:
        (whole,) = self._tables
        hash_E = whole.hashes(numbers)
        tables = [ValueTable() for _ in range(self._most)]
        upper = hash_E >> np.uint64(64 - (self._most.bit_length() - 1))
        for number, table in enumerate(tables):
            pick_M = np.flatnonzero(upper == number)
            table.add(kernels.add_entries, (whole.entries, whole.text, hash_E, pick_M), len(pick_M), numbers)
        self._tables = tables


class Sorted:
    """The values of some tables in order, given in pieces.

    Args:
        kind: of the values.
        tables: they must not change while this is used.
    """

    def __init__(self, kind: pa.DataType, tables: list[ValueTable]) -> None:
        self.type, self._kept = kind, tables
        self._entry_T = np.array([table.entries.ctypes.data for table in tables], np.uint64)
        self._text_T = np.array([table.text.ctypes.data for table in tables], np.uint64)
        count_T = np.array(list(map(len, tables)), np.int64)
        code_K = np.empty(int(count_T.sum()), np.int64)
        if is_text(kind):
            text_key_K = np.empty(len(code_K), np.uint64)
            skip = ordering.common_beginning(self._entry_T, self._text_T, count_T)
            ordering.text_keys(self._entry_T, self._text_T, count_T, skip, code_K, text_key_K)
            order = np.argsort(text_key_K)
            self._code_K = code_K[order]
            ordering.sort_ties(self._entry_T, self._text_T, skip, text_key_K[order], self._code_K)
        else:
            key_K = np.empty(len(code_K), np.int64)
            ordering.number_keys(self._entry_T, count_T, code_K, key_K)
            self._code_K = code_K[np.argsort(key_K.view(np.uint64) if kind == pa.uint64() else key_K)]

    def __len__(self) -> int:
        return len(self._code_K)

    def tables(self, rows: int) -> Iterator[pa.Table]:
        """Tables of at most so many rows; one without rows when there is nothing."""
        for start in range(0, max(len(self), 1), rows):
            yield self._table(self._code_K[start : start + rows])

    def table(self) -> pa.Table:
        """All of it."""
        return self._table(self._code_K)

    def _table(self, code_K: NDArray[np.int64]) -> pa.Table:
        key, count, clicks, first, last, size, head, rest = (np.empty(len(code_K), np.int64) for _ in range(8))
        ordering.gather(self._entry_T, code_K, key, count, clicks, first, last, size, head, rest)
        unseen = first > last
        mask = unseen if unseen.any() else None
        if not is_text(self.type):
            values = pa.array(key.view(np.uint64)) if self.type == pa.uint64() else pa.array(key).cast(self.type)
        else:
            bounds = np.zeros(len(code_K) + 1, np.int64)
            np.cumsum(size, out=bounds[1:])
            data = np.empty(int(bounds[-1]) + kernels.SHORT, np.uint8)
            ordering.gather_text(self._text_T, code_K, bounds, head, rest, data)
            wide = pa.large_string() if self.type in (pa.string(), pa.large_string()) else pa.large_binary()
            buffers = [None, pa.py_buffer(bounds), pa.py_buffer(data).slice(0, int(bounds[-1]))]
            values = pa.Array.from_buffers(wide, len(code_K), buffers)
        times = {FIRST: pa.array(first, mask=mask), LAST: pa.array(last, mask=mask)}
        return pa.table({VALUE: values, COUNT: count, CLICKS: clicks, **times})
