"""The values of one feature. The judge: dictionaries and sets of Python's own values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embstore.errors import DataError, SchemaError
from embstore.feature_values import FeatureValues, TokenStatus, ValueStatus
from embstore.hashing import MISSING_TOKEN, PRUNED_TOKEN
from embstore.tokens import token

kinds = st.one_of(
    st.just((pa.int64(), "int64", st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3))),
    st.just((pa.int8(), "int64", st.integers(-128, 127))),
    st.just((pa.uint32(), "int64", st.integers(0, 2**32 - 1))),
    st.just((pa.uint64(), "uint64", st.integers(0, 2**64 - 1) | st.integers(2**63, 2**63 + 3))),
    st.just((pa.bool_(), "bool", st.booleans())),
    st.just((pa.string(), "string", st.text(max_size=4))),
    st.just((pa.string_view(), "string", st.text(max_size=4))),
    st.just((pa.large_binary(), "binary", st.binary(max_size=4))),
    st.just((pa.binary(2), "binary", st.binary(min_size=2, max_size=2))),
)


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.DataType, str, dict[Any, tuple[int, bool]], list[Any]]:
    """A type, what it is stored as, values with count and flag, and values that may be among them or not."""
    kind, stored, values = draw(kinds)
    known = draw(st.dictionaries(values, st.tuples(st.integers(0, 2**62), st.booleans()), max_size=12))
    return kind, stored, known, draw(st.lists(values, max_size=8))


@given(of=columns())
def test_status_is_what_python_says(of: tuple[pa.DataType, str, dict[Any, tuple[int, bool]], list[Any]]) -> None:
    kind, stored, known, others = of
    count, kept = [c for c, _ in known.values()], [k for _, k in known.values()]
    values = FeatureValues.of("f", pa.array(list(known), kind), count=count, kept=kept)
    assert values.kind == stored
    ordered = sorted(known, key=lambda value: value.encode() if isinstance(value, str) else value)
    assert values.values.to_pylist() == ordered
    assert dict(zip(ordered, zip(values.count.tolist(), values.kept.tolist(), strict=True), strict=True)) == known
    asked = [*known, *others, None]
    tokens_N = np.array([token(value) for value in asked], np.uint64)
    expected = [
        ValueStatus.MISSING
        if value is None
        else ValueStatus.UNSEEN
        if value not in known
        else ValueStatus.KNOWN
        if known[value][1]
        else ValueStatus.PRUNED
        for value in asked
    ]
    assert values.known.of(tokens_N).tolist() == expected
    assert values.known.of(tokens_N.view(np.int64)).tolist() == expected
    filtered_N = values.filtered(tokens_N)
    assert (filtered_N is tokens_N) == (ValueStatus.PRUNED not in expected)
    pruned_N = np.array(expected) == ValueStatus.PRUNED
    assert filtered_N.tolist() == np.where(pruned_N, np.uint64(PRUNED_TOKEN), tokens_N).tolist()
    assert filtered_N.dtype == np.uint64
    assert values.filtered(tokens_N.view(np.int64)).view(np.uint64).tolist() == filtered_N.tolist()
    table = values.table(dropped=False)
    assert table["value"].to_pylist() == [value for value in ordered if known[value][1]]


@given(one=columns(), keys=st.data())
def test_merging_adds_counts_and_keeps_what_both_keep(one: Any, keys: st.DataObject) -> None:
    kind, _, known, _ = one
    other = keys.draw(
        st.dictionaries(st.sampled_from(list(known)), st.tuples(st.integers(0, 9), st.booleans()), max_size=5)
        if known
        else st.just({})
    )

    def of(values: dict[Any, tuple[int, bool]]) -> FeatureValues:
        count, kept = [c for c, _ in values.values()], [k for _, k in values.values()]
        return FeatureValues.of("f", pa.array(list(values), kind), count=count, kept=kept)

    merged = of(known).merged(of(other))
    expected = {v: (c + other.get(v, (0, True))[0], k and other.get(v, (0, True))[1]) for v, (c, k) in known.items()}
    assert merged.same(of(expected))
    assert of(other).merged(of(known)).same(merged)


def test_many_tokens() -> None:
    """A table of many: every one is found, and none that isn't there."""
    size = 200_000
    values = FeatureValues.of("f", np.arange(size), kept=np.arange(size) % 3 > 0)
    status_N = values.known.of(values.tokens)
    assert (status_N == np.where(values.kept, ValueStatus.KNOWN, ValueStatus.PRUNED)).all()
    unseen = FeatureValues.of("f", np.arange(size, 2 * size))
    assert (values.known.of(unseen.tokens) == ValueStatus.UNSEEN).all()


def test_a_token_that_is_kept_and_dropped_is_kept() -> None:
    """Two values may share a token; the one that is kept must not be lost."""
    known = TokenStatus(np.array([5], np.uint64), np.array([5, 6], np.uint64))
    assert known.of(np.array([5, 6, 7], np.uint64)).tolist() == [0, 2, 3]


def test_the_pruned_and_the_missing_token_are_what_they_are() -> None:
    tokens_N = np.array([MISSING_TOKEN, PRUNED_TOKEN, 5], np.uint64)
    assert TokenStatus(tokens_N, tokens_N[:0]).of(tokens_N).tolist() == [1, 2, 0]
    assert TokenStatus(tokens_N[:0], tokens_N[:0]).of(tokens_N).tolist() == [1, 2, 3]
    assert TokenStatus.of_any(tokens_N).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("values", "others", "message"),
    [
        (["a", "a"], {}, "each once, ascending"),
        (["a", None], {}, "no missing ones"),
        ([1, 2], {"count": [1]}, "as many counts"),
        ([1, 2], {"kept": [True]}, "as many counts"),
        ([1, 2], {"count": [1, -1]}, "counts of 0 or more"),
        (["a" * 65_537], {}, "65,536 bytes"),
        (pa.array([b"\xff"]).view(pa.string()), {}, "valid ones"),
    ],
)
def test_values_that_are_none(values: Any, others: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"values of 'f'.*{message}"):
        FeatureValues.of("f", values, **others)


@pytest.mark.parametrize("values", [[1.5], [[1]], pa.array([1], pa.timestamp("s"))], ids=str)
def test_types_that_are_no_categories(values: Any) -> None:
    with pytest.raises(SchemaError, match="'f'"):
        FeatureValues.of("f", values)


def test_values_of_two_kinds_do_not_merge() -> None:
    one, other = FeatureValues.of("f", [1]), FeatureValues.of("f", ["a"])
    with pytest.raises(SchemaError, match="values of 'f'; expected int64, as before"):
        one.merged(other)
    wide = FeatureValues.of("f", pa.array([2**63], pa.uint64()))
    with pytest.raises(SchemaError, match="expected uint64, as before"):
        wide.merged(one)
    merged = FeatureValues.of("f", pa.array([2], pa.uint64())).merged(one)
    assert (merged.kind, merged.values.to_pylist()) == ("int64", [1, 2])


def test_stand_ins_are_values_that_are_kept() -> None:
    users = ["tom", "ann", "eve", "joe"]  # in any order
    values = FeatureValues.of("user", users, kept=[True, True, False, False], stand_in=[None, None, "ann", "tom"])
    assert values.values.to_pylist() == ["ann", "eve", "joe", "tom"]
    assert values.stood_in.tolist() == [-1, 0, 3, -1]
    assert values.table()["stand_in"].to_pylist() == [None, "ann", "tom", None]
    assert values.known.of(values.tokens).tolist() == [ValueStatus.KNOWN] * 4
    fewer = values.keep(np.array([False, False, False, True]))
    assert fewer.stood_in.tolist() == [-1, -1, 3, -1]
    assert fewer.known.of(values.tokens).tolist() == [ValueStatus.PRUNED] * 2 + [ValueStatus.KNOWN] * 2
    assert fewer.pruned.tolist() == [True, True, False, False]
    assert fewer.keep(np.ones(4, bool)).stand_in is None
    assert FeatureValues.of("user", users, kept=[True, True, False, False], stand_in=[None] * 4).stand_in is None
    assert not values.same(values.keep(values.kept, np.array([-1, 3, 0, -1])))
    for kept, stand_in in (
        ([True, True], [None, "a"]),  # of a kept one
        ([False, False], ["b", None]),  # one that is dropped itself
        ([True, False], [None, "c"]),  # none of them
    ):
        with pytest.raises(DataError, match="stand-ins of 'f'"):
            FeatureValues.of("f", ["a", "b"], kept=kept, stand_in=stand_in)
    with pytest.raises(SchemaError, match="stand-ins of 'f'"):
        FeatureValues.of("f", ["a", "b"], kept=[True, False], stand_in=[None, 1])
    values = FeatureValues.of("f", ["a", "b"], kept=[True, False])
    with pytest.raises(DataError, match="stand-ins of 'f'"):
        values.keep(values.kept, np.array([-1, 2]))


def test_merging_keeps_stand_ins_that_are_kept() -> None:
    ours = FeatureValues.of("f", [1, 2, 3, 4], kept=[True, True, False, False], stand_in=[None, None, 1, 2])
    theirs = FeatureValues.of(
        "f", [2, 3, 4, 5, 6], kept=[False, True, True, True, False], stand_in=[5, None, None, None, 5]
    )
    merged = ours.merged(theirs)
    assert merged.kept.tolist() == [True, False, False, False, True, False]
    assert merged.stood_in.tolist() == [-1, 4, 0, -1, -1, 4]  # 2, which stood in for 4, is dropped
