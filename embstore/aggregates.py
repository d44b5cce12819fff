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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embstore import transforms
from embstore.column_types import stored_type
from embstore.errors import DataError, SchemaError
from embstore.kernels import aggregate as kernels
from embstore.kernels.aggregate import EVER, NEVER
from embstore.schema import Feature
from embstore.tokens import MAX_BYTES

VALUE, COUNT, CLICKS, FIRST, LAST = "value", "count", "clicks", "first_seen", "last_seen"

_NONE = np.empty(0, np.int64)
_NO_BITS: NDArray[np.uint8] = np.empty(0, np.uint8)
_ENTRIES, _BYTES = 1 << 10, 1 << 14  # room at first
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
    """The distinct values of one feature and what is known of each.

    Args:
        feature: its name, for messages.
    """

    def __init__(self, feature: str) -> None:
        self.feature = feature
        self.types: dict[pa.DataType, None] = {}  # of the blocks that held values
        self.untyped: pa.DataType | None = None  # of one that held none
        self._beyond: int | None = None  # a value that int64 can't hold
        self.clear()

    def clear(self) -> None:
        """Forget all values, but not what types they had."""
        self._slots = np.zeros(4 * _ENTRIES, np.uint64)
        self._entries = np.empty((_ENTRIES, 8), np.int64)
        self._text = np.empty(0, np.uint8)
        self._used = np.zeros(2, np.int64)

    def __len__(self) -> int:
        return int(self._used[0])

    @property
    def bytes(self) -> int:
        """Memory it holds."""
        return self._slots.nbytes + self._entries.nbytes + self._text.nbytes

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

    def unsorted(self) -> pa.Table:
        """Its values in any order."""
        entries = self._entries[: len(self)]
        return Sorted(self.type, entries, self._text, np.arange(len(self))).table()

    def sorted(self) -> Sorted:
        """Its values in order; it must not change while this is used."""
        count = len(self)
        entries = self._entries[:count]
        if not _is_text(self.type):
            keys = entries[:, kernels.KEY].copy()
            order = np.argsort(keys.view(np.uint64) if self.type == pa.uint64() else keys)
        else:
            text_keys = np.empty(count, np.uint64)
            skip = kernels.text_keys(entries, count, self._text, text_keys)
            order = np.argsort(text_keys)
            kernels.sort_ties(entries, self._text, skip, text_keys, order)
        return Sorted(self.type, entries, self._text, order)

    def _add(self, values: pa.Array, rows: NDArray[np.int64], brought: Brought) -> None:
        kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
        if len(values) == values.null_count:
            self.untyped = kind if self.untyped is None else self.untyped
            return
        self.types[kind] = None
        if kind == pa.uint64():
            most = pc.max(values).as_py()
            self._beyond = max(most, self._beyond or 0) if most >= _FIRST_UNSIGNED else self._beyond
        if pa.types.is_dictionary(values.type):
            values, brought = _tallied(values, rows, brought)
            rows = _NONE
        validity, shift = _validity(values)
        shared = (validity, shift, rows, brought.count, brought.clicks, brought.first, brought.last)
        done, size = 0, len(values)
        if _is_text(kind):
            data, bounds = _bytes(values)
            longest = int(np.diff(bounds).max(initial=0))
            if longest > MAX_BYTES:
                raise DataError(
                    f"values of {self.feature!r}",
                    expected=f"at most {MAX_BYTES:,} bytes each",
                    found=f"one of {longest:,}",
                    do="leave the column out if it is free text, or shorten its values when the log is written",
                )
            while True:
                state = (self._slots, self._entries, self._text, self._used)
                done = kernels.add_text(data, bounds, *shared, *state, done)
                if done == size:
                    return
                self._grow(int(bounds[done + 1] - bounds[done]))
        numbers = _numbers(values)
        while True:
            done = kernels.add_numbers(numbers, *shared, self._slots, self._entries, self._used, done)
            if done == size:
                return
            self._grow(None)

    def _grow(self, needed: int | None) -> None:
        """Room for more entries or, where a text of so many bytes is the next, for text."""
        count, text_bytes = self._used.tolist()
        if needed is not None and text_bytes + needed > len(self._text):
            larger = np.empty(max(_BYTES, 2 * len(self._text), text_bytes + needed), np.uint8)
            larger[:text_bytes] = self._text[:text_bytes]
            self._text = larger
        if count >= min(len(self._entries), len(self._slots) // 2):
            entries = np.empty((2 * len(self._entries), 8), np.int64)
            entries[:count] = self._entries[:count]
            self._entries = entries
            self._slots = np.zeros(4 * len(entries), np.uint64)
            kernels.fill_slots(entries, count, needed is None, self._slots)


class Sorted:
    """The values of a summary in order, given in pieces."""

    def __init__(
        self, kind: pa.DataType, entries: NDArray[np.int64], text: NDArray[np.uint8], order: NDArray[np.int64]
    ) -> None:
        self.type, self._entries, self._text, self._order = kind, entries, text, order

    def __len__(self) -> int:
        return len(self._order)

    def tables(self, rows: int) -> Iterator[pa.Table]:
        """Tables of at most so many rows; one without rows when there is nothing."""
        for start in range(0, max(len(self), 1), rows):
            yield self._table(self._order[start : start + rows])

    def table(self) -> pa.Table:
        """All of it."""
        return self._table(self._order)

    def _table(self, order: NDArray[np.int64]) -> pa.Table:
        entries = self._entries[order]
        first, last = entries[:, kernels.FIRST].copy(), entries[:, kernels.LAST].copy()
        unseen = first > last
        return pa.table(
            {
                VALUE: self._values(entries, order),
                COUNT: entries[:, kernels.COUNT].copy(),
                CLICKS: entries[:, kernels.CLICKS].copy(),
                FIRST: pa.array(first, mask=unseen),
                LAST: pa.array(last, mask=unseen),
            }
        )

    def _values(self, entries: NDArray[np.int64], order: NDArray[np.int64]) -> pa.Array:
        if not _is_text(self.type):
            keys = entries[:, kernels.KEY].copy()
            if self.type == pa.uint64():
                return pa.array(keys.view(np.uint64))
            return pa.array(keys).cast(self.type)
        bounds = np.zeros(len(order) + 1, np.int64)
        np.cumsum(entries[:, kernels.SIZE], out=bounds[1:])
        data = np.empty(int(bounds[-1]), np.uint8)
        kernels.gather_text(self._entries, self._text, order, bounds, data)
        wide = pa.large_string() if self.type in (pa.string(), pa.large_string()) else pa.large_binary()
        buffers = [None, pa.py_buffer(bounds), pa.py_buffer(data)]
        return pa.Array.from_buffers(wide, len(order), buffers)


def single_values(values: pa.Array, feature: Feature) -> tuple[pa.Array, NDArray[np.int64]]:
    """What the feature's lookups see of a column: flat values, and the row that each is of (empty: its own).

    Text has offsets of 64 bits, or is a dictionary of such.
    """
    rows = _NONE
    if feature.transform is not None:
        values = transforms.apply(values, feature.transform, name=feature.name)
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.cast(values.type.storage_type)
    if pa.types.is_nested(values.type):
        if feature.max_length is not None and (pc.max(pc.list_value_length(values)).as_py() or 0) > feature.max_length:
            values = pc.list_slice(values, 0, feature.max_length, return_fixed_size_list=False)
        rows = pc.list_parent_indices(values).to_numpy().astype(np.int64, copy=False)
        values = pc.list_flatten(values)
    if isinstance(values.type, pa.BaseExtensionType):
        values = values.cast(values.type.storage_type)
    kind = stored_type(values.type)
    # Offsets of 32 bits would end at 2 GiB of distinct text.
    wide = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(kind, kind)
    if pa.types.is_fixed_size_binary(kind):
        wide = pa.large_binary()
    if pa.types.is_dictionary(values.type) and _is_text(wide) and len(values.dictionary) <= 2 * len(values):
        codes = values.indices.cast(pa.int32())
        return pa.DictionaryArray.from_arrays(codes, values.dictionary.cast(wide)), rows
    return values.cast(wide), rows


def _tallied(values: pa.DictionaryArray, rows: NDArray[np.int64], brought: Brought) -> tuple[pa.Array, Brought]:
    """The dictionary's values, each standing for all rows that hold its code."""
    size = len(values.dictionary)
    count, clicks = np.zeros(size, np.int64), np.zeros(size if len(brought.clicks) else 0, np.int64)
    timed = size if len(brought.first) else 0
    first, last = np.full(timed, NEVER, np.int64), np.full(timed, EVER, np.int64)
    codes = np.frombuffer(values.indices.buffers()[1], np.int32, len(values), 4 * values.offset)
    validity, shift = _validity(values.indices)
    given = (brought.clicks, brought.first, brought.last)
    kernels.tally(codes, validity, shift, rows, *given, count, clicks, first, last)
    return values.dictionary, Brought(clicks, first, last, count)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_large_string(kind) or types.is_large_binary(kind) or types.is_null(kind)


def _bytes(values: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of texts, and where each begins and the last one ends."""
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, np.int64, len(values) + 1, 8 * values.offset)
    return _readonly(data), bounds


def _numbers(values: pa.Array) -> NDArray[np.int64]:
    """The bits of integers or booleans as int64; anything where they are null."""
    kind = values.type
    if pa.types.is_boolean(kind):
        values, kind = values.cast(pa.uint8()), pa.uint8()
    numbers = np.frombuffer(
        values.buffers()[1], kind.to_pandas_dtype(), len(values), values.offset * kind.bit_width // 8
    )
    return numbers.view(np.int64) if kind.bit_width == 64 else numbers.astype(np.int64)


def _validity(values: pa.Array) -> tuple[NDArray[np.uint8], int]:
    if values.null_count == 0:
        return _readonly(None), 0
    return _readonly(values.buffers()[0]), values.offset


def _readonly(buffer: pa.Buffer | None) -> NDArray[np.uint8]:
    """One type of array for the kernels, whoever owns the memory."""
    view = np.frombuffer(buffer, np.uint8) if buffer is not None and buffer.size else _NO_BITS.view()
    view.flags.writeable = False
    return view
