"""The values of one feature, and what a token is by them.

    values  [ann  bob  eve]     ascending, each once; int64, uint64, bool, large_string, large_binary
    count   [ 12    3    1]     int64: how often
    kept    [yes  yes   no]     a value that is not is looked up as the feature's pruned token,
    stand_in [-1   -1    0]     or as the kept value that stands in for it, here ann
    clicks  [  3    0    1]     int64: the sum of its labels, where they were counted
    first_seen, last_seen       times, where they were noted
    unseen  keep                whether values that are not here are looked up as they are, or pruned too

Suffixes: V values of the feature, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embstore.aggregates import CLICKS, COUNT, FIRST, LAST, VALUE
from embstore.errors import ConfigError, DataError, SchemaError
from embstore.hashing import MISSING_TOKEN, PRUNED_TOKEN
from embstore.kernels.known import fill_any_status, fill_status, index_known
from embstore.store.manifest import UNSEEN
from embstore.tokens import MAX_BYTES, check_type, tokenize

if TYPE_CHECKING:
    from embstore.token_filter import PrunedTokens

KEPT, STAND_IN = "kept", "stand_in"
_UNSEEN_KEY = b"embstore.unseen"  # in the metadata of a table
_MISSING, _PRUNED = np.int64(MISSING_TOKEN), np.int64(PRUNED_TOKEN)
TYPES = {
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "bool": pa.bool_(),
    "string": pa.large_string(),
    "binary": pa.large_binary(),
}


class ValueStatus(IntEnum):
    """What a vocabulary says of a value."""

    KNOWN = 0
    MISSING = 1
    PRUNED = 2
    """It is in the vocabulary, and dropped; nothing stands in for it."""
    UNSEEN = 3
    """It is not in the vocabulary."""


class TokenStatus:
    """What each of many tokens is, by a hash table of those that are known.

    Args:
        kept_V, dropped_V: uint64; those that another value stands in for are among the first. A token among both counts
            as kept.
    """

    def __init__(self, kept_V: NDArray[np.uint64], dropped_V: NDArray[np.uint64]) -> None:
        self.kept, self.dropped = len(kept_V), len(dropped_V)
        known = np.concatenate([kept_V, dropped_V]).view(np.int64)
        self._index = index_known(known, np.array([0, len(known)], np.int64))

    def of(self, tokens_N: NDArray[Any]) -> NDArray[np.uint8]:
        """``ValueStatus`` of each token, uint8 ``[N]``."""
        flat = np.ascontiguousarray(tokens_N).view(np.int64)
        status_N = np.empty(len(flat), np.uint8)
        fill_status(flat, self._index, self.kept, _MISSING, _PRUNED, status_N)
        return status_N

    @staticmethod
    def of_any(tokens_N: NDArray[Any]) -> NDArray[np.uint8]:
        """As ``of``, where every value is known."""
        flat = np.ascontiguousarray(tokens_N).view(np.int64)
        status_N = np.empty(len(flat), np.uint8)
        fill_any_status(flat, _MISSING, _PRUNED, status_N)
        return status_N


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureValues:
    """The values of one feature; ``of`` makes one of any column.

    Args:
        name: of the feature.
        values: one of ``TYPES``, strictly ascending (text by its bytes), none missing.
        count: int64 ``[V]``, how often each was seen; 0 where nobody knows.
        kept: bool ``[V]``.
        stand_in: int64 ``[V]``: of a value that is not kept, the number of a kept one that it is looked up as; -1 where
            none stands in. All -1 become ``None``, which says the same.
        clicks: int64 ``[V]``, or ``None``.
        first_seen, last_seen: Arrow timestamps, dates or int64 ``[V]``, null where nobody knows; or ``None``.
        unseen: ``"prune"``: values that are not here are looked up as the pruned token, too.

    Raises:
        ConfigError: another ``unseen``.
        DataError: values out of order, twice, missing, not Unicode or longer than a category may be; or columns of
            different lengths, negative counts.
        SchemaError: another type.
    """

    name: str
    values: pa.Array
    count: NDArray[np.int64]
    kept: NDArray[np.bool_]
    stand_in: NDArray[np.int64] | None = None
    clicks: NDArray[np.int64] | None = None
    first_seen: pa.Array | None = None
    last_seen: pa.Array | None = None
    unseen: str = "keep"

    def __post_init__(self) -> None:
        where, values = f"values of {self.name!r}", self.values
        if self.unseen not in UNSEEN:
            raise ConfigError(f"{where}: unseen", expected=" or ".join(UNSEEN), found=repr(self.unseen))
        if values.type not in TYPES.values():
            raise SchemaError(where, expected=", ".join(map(str, TYPES.values())), found=str(values.type))
        try:
            values.validate(full=True)
        except pa.ArrowInvalid as error:
            raise DataError(where, expected="valid ones", found=str(error)) from error
        if values.null_count:
            raise DataError(where, expected="no missing ones", found=f"{values.null_count:,}")
        if not len(values) == len(self.count) == len(self.kept):
            found = f"{len(values):,}, {len(self.count):,} and {len(self.kept):,}"
            raise DataError(where, expected="as many counts and flags", found=found)
        for column in self._more.values():
            if len(column) != len(values):
                found = f"{len(column):,} for {len(values):,}"
                raise DataError(where, expected="as many clicks and times", found=found)
        if self.count.dtype != np.int64 or self.kept.dtype != np.bool_ or (len(values) and self.count.min() < 0):
            raise DataError(where, expected="counts of 0 or more, flags of true or false", found="others")
        if self.stand_in is not None:
            self._check_stand_ins(self.stand_in)
            if (self.stand_in < 0).all():  # a version would say that it has none, and hold a column of them
                object.__setattr__(self, "stand_in", None)
        if len(values) > 1 and not pc.all(pc.less(values[:-1], values[1:])).as_py():
            raise DataError(where, expected="each once, ascending", found="others")
        if self.kind in ("string", "binary") and (pc.max(pc.binary_length(values)).as_py() or 0) > MAX_BYTES:
            raise DataError(where, expected=f"at most {MAX_BYTES:,} bytes each", found="a longer one")

    @classmethod
    def of(
        cls,
        name: str,
        values: pa.Array | pa.ChunkedArray | Sequence[Any],
        *,
        count: Any = None,
        kept: Any = None,
        stand_in: Any = None,
        clicks: Any = None,
        first_seen: pa.Array | None = None,
        last_seen: pa.Array | None = None,
        unseen: str = "keep",
    ) -> FeatureValues:
        """Of distinct values in any order; a type among ``TYPES`` is found for them.

        Args:
            count: how often each was seen, 0 when not given.
            kept: whether each is, all when not given.
            stand_in: for each the value that stands in for it, or null.
            clicks, first_seen, last_seen: as the class.

        Raises:
            DataError, SchemaError: as the class.
        """
        column = _plain(values, name)
        size = len(column)
        count = np.zeros(size, np.int64) if count is None else np.asarray(count, dtype=np.int64)
        kept = np.ones(size, np.bool_) if kept is None else np.asarray(kept, dtype=np.bool_)
        if not size == len(count) == len(kept):
            found = f"{size:,}, {len(count):,} and {len(kept):,}"
            raise DataError(f"values of {name!r}", expected="as many counts and flags", found=found)
        more: dict[str, Any] = {
            CLICKS: None if clicks is None else np.asarray(clicks, np.int64),
            FIRST: first_seen,
            LAST: last_seen,
        }
        more = {key: of for key, of in more.items() if of is not None}
        if any(len(of) != size for of in more.values()):
            raise DataError(f"values of {name!r}", expected="as many clicks and times", found="fewer or more")
        order = pc.sort_indices(column).to_numpy()
        if (order[1:] < order[:-1]).any():
            column, count, kept = column.take(pa.array(order)), count[order], kept[order]
            more = {key: of[order] if key == CLICKS else of.take(pa.array(order)) for key, of in more.items()}
        numbers = None if stand_in is None else _numbers_of(stand_in, column, name, order)
        return cls(name=name, values=column, count=count, kept=kept, stand_in=numbers, unseen=unseen, **more)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def kind(self) -> str:
        """``int64``, ``uint64``, ``bool``, ``string`` or ``binary``."""
        return next(kind for kind, of in TYPES.items() if of == self.values.type)

    @property
    def _more(self) -> dict[str, Any]:
        """What is known of the values besides, by column."""
        columns = {CLICKS: self.clicks, FIRST: self.first_seen, LAST: self.last_seen}
        return {name: of for name, of in columns.items() if of is not None}

    @cached_property
    def tokens(self) -> NDArray[np.uint64]:
        """The token of each value, ``[V]``."""
        return tokenize(self.values, name=self.name).values

    @cached_property
    def known(self) -> TokenStatus:
        """What tokens are, by these values."""
        return TokenStatus(self.tokens[~self.pruned], self.tokens[self.pruned])

    @cached_property
    def pruned_tokens(self) -> PrunedTokens:
        """Which tokens are looked up as another."""
        from embstore.token_filter import PrunedTokens

        return PrunedTokens.of(self)

    @property
    def pruned(self) -> NDArray[np.bool_]:
        """Which values are looked up as the pruned token: dropped ones without a stand-in, bool ``[V]``."""
        return ~self.kept & (self.stood_in < 0)

    @property
    def prunes(self) -> bool:
        """Whether any token is looked up as another."""
        return self.unseen == "prune" or not self.kept.all()

    def filtered(self, tokens_N: NDArray[Any]) -> NDArray[Any]:
        """Tokens as they are looked up; the same array when all stay."""
        return self.pruned_tokens.replaced(tokens_N) if self.prunes else tokens_N

    def keep(self, kept: NDArray[np.bool_], stand_in: NDArray[np.int64] | None = None) -> FeatureValues:
        """The same values with other flags, bool ``[V]``, and stand-ins: without, those that still hold."""
        if stand_in is None and self.stand_in is not None:
            stand_in = np.where(~kept & (self.stand_in >= 0), self.stand_in, -1)
            stand_in = np.where((stand_in >= 0) & kept[stand_in], stand_in, -1)
        return replace(self, kept=kept, stand_in=stand_in)

    def same(self, other: FeatureValues) -> bool:
        """Whether values, counts and flags are equal: what a version holds of them."""
        return self is other or (
            self.values.equals(other.values)
            and np.array_equal(self.count, other.count)
            and np.array_equal(self.kept, other.kept)
            and np.array_equal(self.stood_in, other.stood_in)
            and self.unseen == other.unseen
        )

    def merged(self, other: FeatureValues) -> FeatureValues:
        """The values of both: counts and clicks are added, and what either has dropped, or prunes unseen, is not kept.
        Stand-ins are these values' or else the other's, where they are kept. Clicks and times that one of them hasn't
        are left out.

        Raises:
            SchemaError: values of another kind, or times of another type.
        """
        kinds = {self.kind, other.kind}
        wide = self.values.type if len(kinds) == 1 else pa.int64()
        try:
            if len(kinds) > 1 and not kinds <= {"int64", "uint64"}:
                raise pa.ArrowInvalid(other.kind)
            both = pa.chunked_array([self.values.cast(wide), other.values.cast(wide)])
        except pa.ArrowInvalid as error:
            found = str(error)
            raise SchemaError(f"values of {self.name!r}", expected=f"{self.kind}, as before", found=found) from error
        codes = both.combine_chunks().dictionary_encode()
        at, size = codes.indices.to_numpy(), len(codes.dictionary)
        count, kept = np.zeros(size, np.int64), np.ones(size, np.bool_)
        np.add.at(count, at, np.concatenate([self.count, other.count]))
        np.logical_and.at(kept, at, np.concatenate([self.kept, other.kept]))
        more: dict[str, Any] = {}
        if self.clicks is not None and other.clicks is not None:
            more[CLICKS] = np.zeros(size, np.int64)
            np.add.at(more[CLICKS], at, np.concatenate([self.clicks, other.clicks]))
        for name, function in ((FIRST, "min"), (LAST, "max")):
            if name in self._more and name in other._more:
                more[name] = _extremes(self._more[name], other._more[name], at, function, self.name)
        unseen = "keep"
        for of, held in ((self, at[: len(self)]), (other, at[len(self) :])):
            if of.unseen == "prune":
                unseen = "prune"
                kept &= np.isin(np.arange(size), held)
        stand_in = np.full(size, -1)
        for of, held in ((other, at[len(self) :]), (self, at[: len(self)])):
            there = of.stood_in >= 0
            stand_in[held[there]] = held[of.stood_in[there]]
        stand_in = np.where(~kept & (stand_in >= 0) & kept[stand_in], stand_in, -1)
        if (stand_in >= 0).any():
            more[STAND_IN] = codes.dictionary.take(pa.array(stand_in, mask=stand_in < 0))
        return FeatureValues.of(self.name, codes.dictionary, count=count, kept=kept, unseen=unseen, **more)

    @property
    def stood_in(self) -> NDArray[np.int64]:
        """``stand_in``, -1 for all where there is none."""
        return np.full(len(self), -1) if self.stand_in is None else self.stand_in

    def _check_stand_ins(self, stand_in_V: NDArray[np.int64]) -> None:
        there_V = stand_in_V >= 0
        if (
            stand_in_V.dtype != np.int64
            or stand_in_V.shape != (len(self),)
            or (len(self) and not -1 <= stand_in_V.min() <= stand_in_V.max() < len(self))
            or self.kept[there_V].any()
            or not self.kept[stand_in_V[there_V]].all()
        ):
            expected = "kept values, for values that are not"
            raise DataError(f"stand-ins of {self.name!r}", expected=expected, found="others")

    def table(self, *, dropped: bool = True) -> pa.Table:
        """``value``, ``count``, ``kept``; ``stand_in``, ``clicks``, ``first_seen``, ``last_seen`` where they are known.

        Args:
            dropped: with the values that are not kept.
        """
        columns = {VALUE: self.values, COUNT: self.count, **self._more, KEPT: self.kept}
        if self.stand_in is not None:
            columns[STAND_IN] = self.values.take(pa.array(self.stand_in, mask=self.stand_in < 0))
        table = pa.table(columns)
        if self.unseen != "keep":
            table = table.replace_schema_metadata({_UNSEEN_KEY: self.unseen})
        return table if dropped else table.filter(table.column(KEPT))


def _extremes(ours: pa.Array, theirs: pa.Array, at: NDArray[np.int64], function: str, name: str) -> pa.Array:
    """The least or greatest of the times at each place."""
    if ours.type != theirs.type:
        raise SchemaError(f"times of {name!r}", expected=str(ours.type), found=str(theirs.type))
    times = pa.table({"at": at, "time": pa.chunked_array([ours, theirs])})
    found = times.group_by("at").aggregate([("time", function)]).sort_by("at")
    return found.column(f"time_{function}").combine_chunks()


def _numbers_of(stand_in: Any, values: pa.Array, name: str, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the ascending ``values`` the given ones are, in their order; -1 for null."""
    given = _plain(stand_in, name)
    if len(given) != len(values):
        found = f"{len(given):,} for {len(values):,}"
        raise DataError(f"stand-ins of {name!r}", expected="a value or null for each", found=found)
    if given.null_count == len(given):
        return np.full(len(given), -1)
    if given.type != values.type:
        raise SchemaError(f"stand-ins of {name!r}", expected=str(values.type), found=str(given.type))
    found = pc.index_in(given, values)
    if found.null_count > given.null_count:
        raise DataError(f"stand-ins of {name!r}", expected="values that are here", found="others")
    return found.fill_null(-1).to_numpy().astype(np.int64)[order]


def unseen_of(table: pa.Table) -> str:
    """What a table that ``FeatureValues.table`` made says of unseen values."""
    return (table.schema.metadata or {}).get(_UNSEEN_KEY, b"keep").decode("utf-8", "replace")


def _plain(values: Any, name: str) -> pa.Array:
    """As one array of one of ``TYPES``."""
    column = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        column, kind = column.cast(kind.storage_type), kind.storage_type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    check_type(kind, name)
    if pa.types.is_nested(kind):
        raise SchemaError(f"values of {name!r}", expected="single values", found=str(kind))
    if pa.types.is_integer(kind):
        wanted = pa.uint64() if kind == pa.uint64() else pa.int64()
    elif pa.types.is_boolean(kind):
        wanted = kind
    else:
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
        wanted = pa.large_string() if text or pa.types.is_null(kind) else pa.large_binary()
    column = column.cast(wanted)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
